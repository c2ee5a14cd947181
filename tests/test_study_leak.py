"""The leak test: blind to what is alike, not to what is not; and the steps that make cases alike."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from conftest import toy_head
from slicewise.errors import UserError
from slicewise.hu import TRUE_AIR_HU
from slicewise.io.nifti import write_nifti
from slicewise.study.cases import alike
from slicewise.study.create import create
from slicewise.study.design import StudySettings
from slicewise.study.leak import MOST_AUC, features, leak_test, logistic
from slicewise.volume import Volume


def test_logistic_regression_is_scikit_learns():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 5))
    y = (x[:, 0] + rng.normal(size=60) > 0.3).astype(float)
    oracle = LogisticRegression(C=1.0, tol=1e-9, max_iter=1000).fit(x, y)
    assert logistic(x, y) == pytest.approx(np.r_[oracle.intercept_, oracle.coef_[0]], abs=1e-3)


def case(seed: int, **change: float) -> np.ndarray:
    """A toy head as scanners give it, or changed as generators do."""
    hu = toy_head(seed, 12, 40).astype(float)
    rng = np.random.default_rng(seed + 1000)
    air = hu < -800
    hu[air] = -1000 + rng.normal(0, change.get("noise", 12), air.sum())
    hu[6, 20, 20] = change.get("largest", 3071)
    if change.get("even"):
        hu = 2 * np.round((hu + rng.uniform(-1, 1, hu.shape)) / 2)
    return np.clip(np.rint(hu), -1024, 3071).astype(np.int16)


def measured(made: list[np.ndarray]) -> list[dict[str, float]]:
    return [features(b"header" + hu.tobytes(), hu) for hu in made]


@pytest.mark.parametrize("change", [{"largest": 2800}, {"noise": 0}, {"even": 1}])
def test_what_unblinds_is_found_and_made_alike(change):
    """One fault at a time tells all cases before they are made alike, and none after."""
    real, synthetic = [case(i) for i in range(12)], [case(100 + i, **change) for i in range(12)]
    leak = leak_test(measured(real), measured(synthetic))
    assert leak.tells
    assert min(leak.auc.value, leak.form.value) > 0.95
    assert leak.feature_auc == 1.0
    rng = np.random.default_rng(0)
    ceiling = min(int(hu.max()) for hu in (*real, *synthetic))
    after = [[alike(hu, ceiling, rng) for hu in kind] for kind in (real, synthetic)]
    leak = leak_test(*map(measured, after))
    assert not leak.tells, f"{leak.auc} {leak.feature}"
    for hu in (*after[0], *after[1]):
        assert hu.min() == TRUE_AIR_HU
        assert hu.max() == ceiling
        assert not ((hu > TRUE_AIR_HU) & (hu < -800)).any()


def test_heads_of_one_kind_are_not_told_apart_by_more_than_chance():
    """The area is unbiased: over 20 draws of one population its mean is 0.5, and few intervals miss that."""
    leaks = []
    for k in range(20):
        one, other = ([case(40 * k + n + i) for i in range(10)] for n in (0, 20))
        leaks.append(leak_test(measured(one), measured(other), k))
    areas = np.array([leak.auc.value for leak in leaks])
    assert abs(areas.mean() - 0.5) < 0.12
    assert sum(leak.auc.lower > 0.5 for leak in leaks) <= 3
    assert MOST_AUC == 0.65


def test_areas_are_those_of_the_scores():
    rng = np.random.default_rng(1)
    real, synthetic = ([{"a": float(v), "least HU": 1.0} for v in rng.normal(m, 1, 30)] for m in (0, 1.5))
    leak = leak_test(real, synthetic)
    values = [c["a"] for c in (*real, *synthetic)]
    alone = roc_auc_score([0] * 30 + [1] * 30, values)
    assert leak.feature == "a"
    assert leak.feature_auc == pytest.approx(alone)
    assert leak.auc.value == pytest.approx(alone, abs=0.03)
    assert leak.form.value == 0.5, "of what is the same in all"


def test_a_study_that_leaks_is_not_made_unless_told(tmp_path):
    """Smoother synthetic heads pack better: no step takes that away, so it is said."""
    for i in range(6):
        write_nifti(Volume.regular(case(i), (5.0, 6.0, 6.0)), tmp_path / "real" / f"{i}.nii")
        smooth = case(50 + i)
        smooth[(smooth > -200) & (smooth < 200)] = 35
        write_nifti(Volume.regular(smooth, (5.0, 6.0, 6.0)), tmp_path / "synthetic" / f"{i}.nii")
    settings = StudySettings(readers=1, cases="6+6", repeats="0+0", practice="0+0", fov_mm=192)
    with pytest.raises(UserError, match=r"told apart without looking .* AUC 1\.00 .*allow_leak=True"):
        create(tmp_path / "study", tmp_path / "real", tmp_path / "synthetic", settings)
    assert not (tmp_path / "study").exists()
    _, _, leak = create(tmp_path / "study", tmp_path / "real", tmp_path / "synthetic", settings, allow_leak=True)
    assert leak.tells
    assert (tmp_path / "study" / "study.json").is_file()
    assert "AUC" not in (tmp_path / "study" / "study.json").read_text()
