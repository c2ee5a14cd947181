"""SSIM in two and three dimensions, correlation and continuity, against scikit-image, MONAI and closed forms."""

import numpy as np
import pytest
import torch
from monai.metrics.regression import compute_ms_ssim
from scipy import signal
from skimage.metrics import structural_similarity

from conftest import toy_head
from slicewise.hu import BRAIN, WHOLE, Window, to_unit
from slicewise.metrics.continuity import brain_medians, continuity, drift_slope
from slicewise.metrics.structure import (
    SCALES,
    at_depth,
    gaussian,
    isotropic_unit,
    ms_ssim,
    ms_ssim_legacy,
    neighbour_ncc,
    neighbour_ssim,
    scales_that_fit,
)


def pair(rng: np.random.Generator, shape: tuple[int, ...], noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Two smooth arrays in [-1, 1] that look alike."""
    x = rng.standard_normal(shape)
    for axis in range(len(shape)):
        x = np.apply_along_axis(np.convolve, axis, x, np.ones(5) / 5, "same")
    x = np.clip(x / np.abs(x).max(), -1, 1)
    return x, np.clip(x + noise * rng.standard_normal(shape), -1, 1)


@pytest.mark.parametrize(("shape", "window", "weights"), [
    ((40, 44, 48), 7, (0.3, 0.7)), ((21, 24, 30), 4, (0.2, 0.5, 0.3)), ((176, 180), 11, SCALES),
])  # fmt: skip
def test_ms_ssim_is_monais(shape: tuple[int, ...], window: int, weights: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    for noise in (0.05, 0.3):
        x, y = pair(rng, shape, noise)
        tensors = [torch.from_numpy(v.astype(np.float32))[None, None] for v in (x, y)]
        monai = compute_ms_ssim(*tensors, len(shape), 2.0, kernel_size=window, weights=weights)
        assert ms_ssim(x, y, 2.0, weights, window) == pytest.approx(float(monai), abs=2e-5)
        assert ms_ssim(x, x, 2.0, weights, window) == pytest.approx(1, abs=1e-12)


def test_one_scale_of_ms_ssim_is_scikit_images_ssim_inside_the_border() -> None:
    rng = np.random.default_rng(1)
    x, y = pair(rng, (30, 34, 40), 0.2)
    _, image = structural_similarity(
        x, y, data_range=2.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    assert ms_ssim(x, y, 2.0, weights=(1.0,)) == pytest.approx(image[5:-5, 5:-5, 5:-5].mean(), rel=1e-9)


def test_only_scales_that_fit_are_used_and_their_weights_sum_to_one() -> None:
    rng = np.random.default_rng(2)
    assert [scales_that_fit((n, 200, 200)) for n in (10, 11, 22, 44, 80, 176)] == [0, 1, 2, 3, 3, 5]
    x, y = pair(rng, (24, 24, 24), 0.2)
    first, second = SCALES[0] / sum(SCALES[:2]), SCALES[1] / sum(SCALES[:2])
    assert ms_ssim(x, y, 2.0) == pytest.approx(ms_ssim(x, y, 2.0, weights=(first, second)), rel=1e-12)
    with pytest.raises(ValueError, match="smaller than the window"):
        ms_ssim(x[:8], y[:8], 2.0)


def legacy_by_hand(x: np.ndarray, y: np.ndarray) -> float:
    """The copied formula once more, from SciPy's convolution of the full 3-D window."""
    terms = []
    for _ in range(5):
        g = gaussian(min(11, *x.shape))
        window = g[:, None, None] * g[None, :, None] * g[None, None, :]
        mean = [signal.fftconvolve(v, window, mode="valid") for v in (x, y, x * x, y * y, x * y)]
        cs = (2 * (mean[4] - mean[0] * mean[1]) + 0.03**2) / (mean[2] + mean[3] - mean[0] ** 2 - mean[1] ** 2 + 0.03**2)
        light = (2 * mean[0] * mean[1] + 0.01**2) / (mean[0] ** 2 + mean[1] ** 2 + 0.01**2)
        terms.append((cs.mean(), (cs * light).mean()))
        x, y = (torch.nn.functional.avg_pool3d(torch.from_numpy(v)[None, None], 2)[0, 0].numpy() for v in (x, y))
    return float(np.prod([cs**w * terms[-1][1] ** SCALES[-1] for (cs, _), w in zip(terms[:-1], SCALES)]))


def test_legacy_ms_ssim_has_the_faults_of_the_copied_code() -> None:
    rng = np.random.default_rng(3)
    x, y = pair(rng, (32, 40, 48), 0.1)
    assert ms_ssim_legacy(x, y) == pytest.approx(legacy_by_hand(x, y), rel=1e-6)
    assert abs(ms_ssim_legacy(x, y) - ms_ssim(x, y, 2.0)) > 0.02
    assert ms_ssim_legacy(x, x) == pytest.approx(1)


def test_volumes_become_isotropic_and_equally_deep() -> None:
    z = np.arange(6, dtype=np.int16)[:, None, None] * 10 + np.zeros((1, 4, 4), np.int16)
    unit = isotropic_unit(z, (5.0, 2.0, 2.0), Window(-100, 100))
    places = np.clip((np.arange(15) + 0.5) * 0.4 - 0.5, 0, 5)
    assert unit.shape == (15, 4, 4)
    assert unit.dtype == np.float32
    np.testing.assert_allclose(unit[:, 0, 0], places * 10 / 100, atol=1e-6)
    assert at_depth(z, 4).shape == (4, 4, 4)
    assert (at_depth(z, 8)[6:] == -1024).all()


@pytest.mark.parametrize("window", [BRAIN, WHOLE])
def test_neighbour_similarity_is_scikit_images_over_the_mask(window: Window) -> None:
    rng = np.random.default_rng(4)
    hu = np.clip(30 + 20 * rng.standard_normal((5, 40, 36)), -1024, 3071).astype(np.int16)
    mask = np.zeros(hu.shape, bool)
    mask[:4, 8:30, 8:28] = True
    found, correlation = neighbour_ssim(hu, mask, window), neighbour_ncc(hu, mask, window)
    for z in range(3):
        x, y = (np.clip(hu[k], window.lo, window.hi) - window.lo for k in (z, z + 1))
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "full": True}
        _, image = structural_similarity(x, y, data_range=window.hi - window.lo, **options)
        assert found[z] == pytest.approx(image[mask[z] & mask[z + 1]].mean(), abs=2e-5)
        inside = mask[z] & mask[z + 1]
        assert correlation[z] == pytest.approx(np.corrcoef(x[inside], y[inside])[0, 1], abs=1e-9)
    assert np.isnan(found[3]), "no mask on one side"
    assert np.isnan(correlation[3]), "no mask on one side"
    flat = neighbour_ncc(np.zeros((2, 9, 9), np.int16), np.ones((2, 9, 9), bool), window)
    assert np.isnan(flat).all(), "where nothing varies there is no correlation"


def test_drift_and_medians() -> None:
    profile = np.array([np.nan, 30.0, 31.0, np.nan, 33.0, 34.0])
    assert drift_slope(profile, 5.0) == pytest.approx(2.0), "1 HU a slice of 5 mm is 2 HU per cm"
    assert np.isnan(drift_slope(profile[:3], 5.0))
    hu = np.array([[[1, 2, 9]], [[4, 5, 6]]], np.int16)
    found = brain_medians(hu, np.array([[[True, True, True]], [[False, False, False]]]))
    assert found[0] == 2
    assert np.isnan(found[1])


def test_continuity_sees_what_is_broken_on_purpose() -> None:
    """Every second slice 6 HU brighter: steps rise by 6 HU; slices of another head: similarity falls."""
    hu = toy_head(0, slices=14, size=64)
    mask, spacing = (hu > 0) & (hu < 100), (5.0, 3.0, 3.0)
    whole = continuity(hu, mask, spacing)
    striped = hu + np.where(np.arange(14) % 2, 6, 0)[:, None, None].astype(np.int16) * mask
    broken = continuity(striped, mask, spacing)
    assert whole.mean_step.max() < 1
    assert len(whole.mean_step) > 6
    np.testing.assert_allclose(broken.mean_step, 6, atol=1)
    np.testing.assert_allclose(broken.median_step, 6, atol=1)
    assert abs(whole.drift) < 0.3
    other = hu.copy()
    other[::2] = np.roll(toy_head(5, slices=14, size=64)[::2], 7, axis=2)
    mixed = continuity(other, (other > 0) & (other < 100), spacing)
    assert mixed.ssim_whole.mean() < whole.ssim_whole.mean() - 0.05
    assert mixed.ncc_whole.mean() < whole.ncc_whole.mean() - 0.05
    empty = continuity(hu, np.zeros_like(mask), spacing)
    assert empty.mean_step.size == empty.ssim.size == 0
    assert np.isnan(empty.drift)
    unit = to_unit(hu, WHOLE)
    assert unit.min() >= -1
