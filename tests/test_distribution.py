"""Distances of distributions and what is measured a volume, against SciPy and closed forms; sets and caches."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from conftest import toy_head
from slicewise.data.sets import open_set
from slicewise.data.store import Store
from slicewise.errors import UserError
from slicewise.hu import BRAIN, WHOLE, Window
from slicewise.io.cache import Cache, key_of
from slicewise.io.nifti import write_nifti
from slicewise.metrics.distribution import (
    FREQUENCIES,
    histogram_distance,
    histogram_score,
    sample_score,
    spectrum_score,
)
from slicewise.metrics.features import Extractor, chosen_slices, plane_features
from slicewise.metrics.survey import (
    all_features,
    anatomy,
    anatomy_arrays,
    anatomy_from,
    digest,
    features_arrays,
    features_from,
)
from slicewise.volume import Volume


def test_histogram_distance_is_scipys_wasserstein() -> None:
    rng = np.random.default_rng(0)
    edges = np.arange(-30.5, 91.0)
    middles = (edges[1:] + edges[:-1]) / 2
    for _ in range(5):
        a, b = rng.random((2, len(middles)))
        assert histogram_distance(a, b, edges) == pytest.approx(wasserstein_distance(middles, middles, a, b), rel=1e-9)
    wide = np.array([0.0, 1.0, 10.0, 40.0])
    expected = wasserstein_distance([0.5, 5.5, 25.0], [0.5, 5.5, 25.0], [1, 2, 3], [3, 1, 1])
    assert histogram_distance(np.array([1, 2, 3]), np.array([3, 1, 1]), wide) == pytest.approx(expected)
    whole = rng.integers(0, 60, 500)
    shifted = [np.histogram(whole + s, edges)[0] for s in (0, 7)]
    assert histogram_distance(*shifted, edges) == pytest.approx(7), "an offset of 7 HU is a distance of 7 HU"
    assert np.isnan(histogram_distance(np.zeros(3), np.ones(3), wide))


def test_scores_of_parts_pool_their_volumes() -> None:
    rng = np.random.default_rng(1)
    values = [rng.standard_normal(n) for n in (3, 8, 5, 6)]
    i, j = np.array([0, 1, 1]), np.array([2, 3])
    expected = wasserstein_distance(np.r_[values[0], values[1], values[1]], np.r_[values[2], values[3]])
    assert sample_score(values)(i, j) == pytest.approx(expected)
    histograms, edges = rng.random((4, 6)), np.arange(7.0)
    pooled = [histograms[k].mean(axis=0) for k in (i, j)]
    assert histogram_score(histograms, edges)(i, j) == pytest.approx(histogram_distance(*pooled, edges))
    spectra = np.stack([np.exp(-FREQUENCIES * 8) * s for s in (1, 1, 4, 4)])
    assert spectrum_score(spectra)(np.array([0, 1]), np.array([2, 3])) == pytest.approx(3), "noise twice as strong"
    assert spectrum_score(spectra)(np.array([0]), np.array([1])) == 0


def test_slices_of_air_are_left_out_and_the_middle_one_stays() -> None:
    hu = np.full((9, 40, 40), -1000, np.int16)
    hu[2:7, 10:30, 12:28] = 40
    volume = Volume.regular(hu, (5.0, 2.0, 2.0))
    axial, middle = chosen_slices(volume, "axial", 10.0)
    assert axial == [2, 3, 4, 5, 6]
    assert axial[middle] == 4
    coronal, middle = chosen_slices(volume, "coronal", 10.0)
    assert coronal == [10, 15, 20, 25]
    assert coronal[middle] == 20
    everything, _ = chosen_slices(volume, "sagittal", 0.0)
    assert everything == list(range(12, 28))
    air, middle = chosen_slices(Volume.regular(np.full_like(hu, -1000), (5.0, 2.0, 2.0)), "axial", 10.0)
    assert air == [4]
    assert middle == 0


def mean_extractor() -> Extractor:
    return Extractor("mean", 32, 3, (0.5,) * 3, (0.25,) * 3, lambda x: x.mean(dim=(2, 3), keepdim=True))


def test_middle_of_all_features_is_what_middle_slices_give_and_arrays_keep_everything() -> None:
    volume = Volume.regular(toy_head(0, 12, 48), (5.0, 4.0, 4.0))
    windows = [WHOLE, BRAIN, Window(0.0, 40.5)]
    found = all_features(volume, mean_extractor(), windows, 10.0, batch=3)
    middle = plane_features([volume], mean_extractor(), windows)
    assert set(found) == set(middle)
    for key, features in found.items():
        np.testing.assert_allclose(features.rows[features.middle], middle[key][0], rtol=1e-5)
        again = features_from(features_arrays(found))[key]
        assert (again.rows == features.rows).all()
        assert again.middle == features.middle
    alone = all_features(volume, mean_extractor(), windows, 10.0, ["coronal"], whole=["axial"])
    assert {plane for plane, _ in alone} == {"coronal"}
    assert all(f.rows.shape == (1, 3) for f in alone.values())
    np.testing.assert_allclose(alone["coronal", BRAIN].rows, middle["coronal", BRAIN], rtol=1e-5)
    measured = anatomy(volume)
    again = anatomy_from(anatomy_arrays(measured))
    np.testing.assert_equal(again.stats.scalars, measured.stats.scalars)
    np.testing.assert_equal(vars(again.continuity), vars(measured.continuity))
    assert digest(volume) != digest(Volume.regular(volume.hu, (5.0, 4.0, 4.1)))
    assert digest(volume) == digest(Volume.regular(volume.hu.copy(), (5.0, 4.0, 4.0)))


def test_cache_keeps_arrays_and_forgets_damaged_files(tmp_path: Path) -> None:
    cache, key = Cache(tmp_path / "cache"), key_of("a", b"b", np.arange(3))
    assert key != key_of("a", b"b", np.arange(3.0))
    assert key != key_of("ab", b"", np.arange(3))
    assert cache.get(key) is None
    arrays = {"rows": np.arange(6.0).reshape(2, 3), "middle": np.array(1), "none": np.empty(0)}
    cache.put(key, arrays)
    np.testing.assert_equal(cache.get(key), arrays)
    assert set(cache.get(key, ["rows"]) or ()) == {"rows"}
    assert cache.get(key, ["absent"]) is None
    file = next((tmp_path / "cache").rglob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-3])
    assert cache.get(key) is None
    Cache(None).put(key, arrays)
    assert Cache(None).get(key) is None
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        Cache(tmp_path / "file").put(key, arrays)


def test_a_set_is_a_store_a_folder_or_a_run(toy_store: Store, tmp_path: Path) -> None:
    assert len(open_set(toy_store.path).members) == 6
    (validation,) = open_set(toy_store.path, "val").members
    assert validation.name == "h5"
    assert (validation.read().volume.hu == toy_head(5)).all()
    for i in range(2):
        write_nifti(Volume.regular(toy_head(i), (5.0, 12.0, 12.0)), tmp_path / "set" / f"{i}.nii.gz")
    found = open_set(tmp_path / "set")
    assert [Path(m.name).name for m in found.members] == ["0.nii.gz", "1.nii.gz"]
    assert (found.members[1].read().volume.hu == toy_head(1)).all()
    (tmp_path / "empty").mkdir()
    for path, split, reason in [
        (tmp_path / "absent", "all", "no such file"),
        (tmp_path / "empty", "all", "no CT volume here"),
        (toy_store.path, "test", "no volume in the test split"),
        (toy_store.path, "nope", "unknown split 'nope'"),
    ]:
        with pytest.raises(UserError, match=reason):
            open_set(path, split)
