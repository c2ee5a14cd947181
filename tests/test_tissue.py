"""Brain mask, tissue means, continuity and noise against constructed truth, and on the real heads at hand."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from slicewise.data.phantom import LABELS, PhantomSettings, make_phantom
from slicewise.hu import Window
from slicewise.metrics.tissue import (
    _CENTRES,
    _PARTS,
    Mixture,
    brain_mask,
    brain_profile,
    fit_mixture,
    interface_steps,
    noise_level,
    noise_power_spectrum,
    parenchyma_cv,
    tissue_histogram,
    tissue_means,
)

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"


def ellipsoid(shape, spacing, centre, radii):
    """Which voxels lie in an ellipsoid; all in mm, (z, y, x) from the volume's middle."""
    axes = [(np.arange(n) - (n - 1) / 2) * s - c for n, s, c in zip(shape, spacing, centre)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    return (z / radii[0]) ** 2 + (y / radii[1]) ** 2 + (x / radii[2]) ** 2 <= 1


def bare_head(shape, spacing, noise=4.0, seed=0):
    """A bare head: scalp, skull with a hole of 5 mm, brain, eyes in fat in front, a table. Returns HU, brain, hole."""

    def inside(dz, dy, dx):
        return ellipsoid(shape, spacing, (10, 8, 0), (70 + dz, 80 + dy, 68 + dx))

    brain, skull, scalp = inside(0, 0, 0), inside(7, 7, 7), inside(13, 13, 13)
    hu = np.where(scalp, 45.0, -1000.0)
    hu[skull] = 900.0
    hu[brain] = 30.0
    burr = np.zeros(shape, bool)
    middle = shape[2] // 2
    burr[shape[0] // 2, :, middle - int(2.5 / spacing[2]) : middle + 1 + int(2.5 / spacing[2])] = True
    burr &= skull & ~brain
    hu[burr] = 40.0
    for side in (-1, 1):
        hu[ellipsoid(shape, spacing, (30, -84, side * 32), (22, 24, 22))] = 800.0
        hu[ellipsoid(shape, spacing, (30, -88, side * 32), (17, 24, 17))] = -90.0
        hu[ellipsoid(shape, spacing, (30, -92, side * 32), (13, 13, 13))] = 15.0
    rows = np.arange(shape[1]) * spacing[1]
    hu[:, (rows > 232) & (rows < 237)] = 500.0
    hu[brain & ~skull] = 30.0
    rng = np.random.default_rng(seed)
    return np.rint(hu + rng.normal(0, noise, shape)).clip(-1024, 3071).astype(np.int16), brain & (hu == 30.0), burr


@pytest.mark.parametrize(
    "shape, spacing",
    [((32, 128, 128), (5.0, 1.9, 1.9)), ((32, 128, 96), (5.0, 1.9, 2.5)), ((64, 256, 256), (2.5, 0.95, 0.95))],
)
def test_brain_mask_finds_the_brain_and_nothing_else(shape, spacing):
    hu, brain, burr = bare_head(shape, spacing)
    mask = brain_mask(hu, spacing)
    assert mask.shape == hu.shape
    assert mask.dtype == bool
    assert not (mask & ~brain & ~burr).any(), "no scalp, skull, eye or table"
    found = (mask & brain).sum() / brain.sum()
    assert 0.80 < found < 1.0, "all but a brim of about 2 mm"
    depth = np.stack([ndimage.distance_transform_edt(s, sampling=spacing[1:]) for s in brain])
    deep = depth > 2.0 + 2 * max(spacing[1:])
    wide = depth.max(axis=(1, 2)) > 12.0  # sections thinner than the core are left out by design
    assert mask[wide][deep[wide]].mean() > 0.995, "the burr hole tears no stripe"


def test_brain_mask_is_empty_without_a_skull():
    rng = np.random.default_rng(0)
    for hu in (np.full((6, 64, 64), -1000), rng.normal(30, 5, (6, 64, 64))):
        mask = brain_mask(np.rint(hu).astype(np.int16), (5.0, 3.0, 3.0))
        assert mask.shape == hu.shape
        assert not mask.any()


def test_profile_and_steps():
    hu, brain, _ = bare_head((32, 128, 128), (5.0, 1.9, 1.9), noise=0.0)
    shifts = np.random.default_rng(1).normal(0, 3, 32)
    shifted = hu + shifts[:, None, None]
    profile = brain_profile(shifted, brain, (5.0, 1.9, 1.9))
    enough = brain.sum(axis=(1, 2)) * 1.9**2 >= 1500
    assert enough.any()
    assert not enough.all()
    np.testing.assert_allclose(profile[enough], 30 + shifts[enough], atol=1e-6)
    assert np.isnan(profile[~enough]).all()
    np.testing.assert_allclose(interface_steps(profile), np.abs(np.diff(shifts[enough])), atol=1e-6)


def test_profile_of_int16_does_not_overflow():
    hu = np.full((2, 400, 400), 3000, np.int16)
    np.testing.assert_array_equal(brain_profile(hu, np.ones(hu.shape, bool), (5.0, 1.0, 1.0)), [3000, 3000])


def test_steps_skip_gaps():
    np.testing.assert_allclose(interface_steps(np.array([np.nan, 1, 3, np.nan, 7, 6.5])), [2, 0.5])


@lru_cache
def folds(px: float, grey_above: float):
    """Folded CSF, grey and white matter on a fine grid, as fractions of 5 mm voxels: float (3, Z, Y, X)."""
    rng = np.random.default_rng(5)
    fine = ndimage.gaussian_filter(rng.standard_normal((40, 320, 320), np.float32), [4.0, 20.0 / px, 20.0 / px])
    low, high = np.quantile(fine, [0.1, grey_above])
    labels = np.where(fine < low, 0, np.where(fine < high, 1, 2))
    return np.stack([(labels == k).reshape(10, 4, 80, 4, 80, 4).mean(axis=(1, 3, 5)) for k in range(3)])


def textured(shape, sigma_px, std, seed):
    """Noise with the correlation of a blur of sigma_px and the given standard deviation."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), (0, sigma_px, sigma_px))
    return noise * std / noise.std()


@pytest.mark.parametrize("px", [0.5, 1.9])
@pytest.mark.parametrize("means", [(7, 36, 26), (4, 33, 26.5), (10, 39, 30)])
@pytest.mark.parametrize("noise", [2.0, 4.0])
def test_tissue_means_through_partial_volume_and_noise(px, means, noise):
    fractions = folds(px, 0.55)
    clean = np.tensordot(means, fractions, 1)
    hu = np.rint(clean + textured(clean.shape, 0.6, noise, 3)).astype(np.int16)
    stats = tissue_means(hu, np.ones(hu.shape, bool), (5.0, px, px))
    found = (stats.csf.pure, stats.grey.pure, stats.white.pure)
    np.testing.assert_allclose(found, means, atol=1.5)
    np.testing.assert_allclose(
        (stats.csf.fraction, stats.grey.fraction, stats.white.fraction), fractions.mean(axis=(1, 2, 3)), atol=0.09
    )
    most = fractions.argmax(axis=0)
    labelled = [hu[most == i].mean() for i in (1, 2)]
    np.testing.assert_allclose((stats.grey.mean, stats.white.mean), labelled, atol=1.5)
    assert stats.mean == pytest.approx(hu.mean())
    assert stats.std == pytest.approx(hu.std())


def test_tissue_means_follow_a_shift():
    clean = np.tensordot((7, 36, 26), folds(1.9, 0.55), 1)
    hu = np.rint(clean + textured(clean.shape, 0.6, 3.0, 3)).astype(np.int16)
    mask = np.ones(hu.shape, bool)
    a, b = (tissue_means(hu + np.int16(s), mask, (5.0, 1.9, 1.9)) for s in (0, 4))
    for name in ("csf", "grey", "white"):
        assert getattr(b, name).mean - getattr(a, name).mean == pytest.approx(4, abs=0.5)


def test_tissue_means_refuse_too_few_voxels():
    with pytest.raises(ValueError, match="too few"):
        tissue_means(np.full((2, 10, 10), 30, np.int16), np.ones((2, 10, 10), bool), (5.0, 1.0, 1.0))


def test_mixture_is_not_led_astray_by_bright_voxels_or_noise():
    # Grey and white unresolved, as in many real scans, and a tail of vessels and beam hardening.
    rng = np.random.default_rng(0)
    brain = np.concatenate([rng.normal(27, 7, 45000), rng.normal(36, 7, 45000), rng.normal(8, 7, 8000)])
    mixture = fit_mixture(np.concatenate([brain, rng.uniform(45, 65, 6000)]))
    np.testing.assert_allclose(mixture.means, (8, 36, 27), atol=3.0)
    assert sum(mixture.shares) == pytest.approx(1.0)


def test_tissue_histogram_shares_out_the_brain():
    fractions = folds(1.9, 0.55)
    clean = np.tensordot((6, 37, 26), fractions, 1)
    hu = np.rint(clean + textured(clean.shape, 0.6, 1.5, 3)).astype(np.int16)
    mask = np.ones(hu.shape, bool)
    edges = np.arange(-30.5, 80.0)
    by_tissue = tissue_histogram(hu, mask, tissue_means(hu, mask, (5.0, 1.9, 1.9)).mixture, edges)
    whole, _ = np.histogram(hu, edges)
    assert (by_tissue >= 0).all()
    assert (by_tissue.sum(axis=0) <= whole / hu.size + 1e-12).all()
    np.testing.assert_allclose(by_tissue.sum(axis=1), fractions.mean(axis=(1, 2, 3)), atol=0.04)
    assert [edges[:-1][row.argmax()] + 0.5 for row in by_tissue] == pytest.approx([6, 37, 26], abs=3)


def test_parenchyma_cv_leaves_out_air_and_bone():
    rng = np.random.default_rng(2)
    section = np.full((100, 100), -1000.0)
    section[20:80, 20:80] = 1200
    section[25:75, 25:75] = rng.normal(30, 4, (50, 50))
    values = section[25:75, 25:75]
    assert parenchyma_cv(section) == pytest.approx(values.std() / values.mean(), rel=1e-6)
    assert parenchyma_cv(section, window=Window(20, 40)) < parenchyma_cv(section)
    assert np.isnan(parenchyma_cv(np.full((8, 8), -1000.0)))


@pytest.mark.parametrize("px, sigma, std", [(0.5, 0.0, 3.0), (0.5, 1.2, 4.0), (1.9, 0.0, 5.0), (1.9, 0.5, 3.0)])
def test_noise_level_of_known_noise(px, sigma, std):
    hu = 30 + textured((12, 96, 96), sigma, std, 4) + np.linspace(-5, 5, 96)[:, None]  # a slow gradient is not noise
    found = noise_level(hu, np.ones(hu.shape, bool), (5.0, px, px))
    assert found == pytest.approx(std, rel=0.10)


def test_noise_level_without_room():
    assert np.isnan(noise_level(np.zeros((2, 32, 32)), np.zeros((2, 32, 32), bool), (5.0, 2.0, 2.0)))


def test_noise_power_spectrum_of_white_and_coloured_noise():
    mask, spacing, std = np.ones((10, 128, 128), bool), (5.0, 0.8, 0.8), 4.0
    white = textured(mask.shape, 0.0, std, 6)
    f, power = noise_power_spectrum(white, mask, spacing, keep=1.0)
    # Flat at variance times pixel area; the lowest frequencies go with the detrending.
    np.testing.assert_allclose(power[2:], std**2 * 0.8**2, rtol=0.06)
    assert (np.diff(f) > 0).all()
    assert f[-1] <= 0.5 / 0.8 + 1e-9
    sigma = 1.2
    coloured = textured(mask.shape, sigma, std, 7)
    f, power = noise_power_spectrum(coloured, mask, spacing, keep=1.0)
    expected = np.exp(-((2 * np.pi * f * sigma * 0.8) ** 2))
    np.testing.assert_allclose(power[2:8] / power[3], expected[2:8] / expected[3], rtol=0.25)
    ring_area = 2 * np.pi * f * (f[1] - f[0])
    assert (power * ring_area).sum() == pytest.approx(std**2, rel=0.15)


def test_noise_power_spectrum_is_blind_to_a_second_order_surface_alone():
    mask, spacing = np.ones((1, 64, 64), bool), (5.0, 0.8, 0.8)
    y, x = np.mgrid[:64, :64] / 10.0
    _, none = noise_power_spectrum((3 * x * x - 2 * x * y + y * y + 5 * x - 7)[None], mask, spacing, keep=1.0)
    assert none.max() < 1e-12
    _, cubic = noise_power_spectrum((x**3)[None], mask, spacing, keep=1.0)
    assert cubic.max() > 1.0


def test_bins_hold_one_whole_hu_each():
    np.testing.assert_array_equal(_CENTRES, np.arange(-20, 66))


def test_every_component_of_the_mixture_is_shares_of_three_tissues():
    np.testing.assert_allclose(_PARTS.sum(axis=1), 1.0)
    assert _PARTS.min() == 0.0
    np.testing.assert_array_equal(_PARTS[:3], np.eye(3))
    np.testing.assert_allclose(_PARTS[3:13, 2], 0.0)
    np.testing.assert_allclose(_PARTS[13:, 0], 0.0)
    np.testing.assert_allclose(_PARTS[3:13].mean(axis=0), (0.5, 0.5, 0.0))


def test_partial_volume_counts_by_halves():
    found = Mixture((8.0, 37.0, 32.0), 4.0, (0.1, 0.3, 0.2, 0.08, 0.3, 0.02)).fractions
    np.testing.assert_allclose(found, (0.14, 0.49, 0.35), rtol=1e-12)


def test_noise_power_spectrum_bias_of_keeping_quiet_regions():
    mask = np.ones((10, 128, 128), bool)
    noise = textured(mask.shape, 0.8, 4.0, 8)
    _, everything = noise_power_spectrum(noise, mask, (5.0, 0.8, 0.8), keep=1.0)
    _, quiet = noise_power_spectrum(noise, mask, (5.0, 0.8, 0.8))
    assert 0.85 < quiet.sum() / everything.sum() < 1.0


@pytest.mark.parametrize("side", [38, 56, 57])
def test_noise_power_spectrum_stays_within_the_slice(side):
    noise = np.random.default_rng(side).normal(0, 4, (3, side, side))
    _, power = noise_power_spectrum(noise, np.ones(noise.shape, bool), (5.0, 0.8, 0.8), keep=1.0)
    assert power[2:].mean() == pytest.approx(4**2 * 0.8**2, rel=0.2)


def test_noise_power_spectrum_without_room():
    f, power = noise_power_spectrum(np.zeros((2, 32, 32)), np.zeros((2, 32, 32), bool), (5.0, 2.0, 2.0))
    assert f.size == power.size == 0


def test_against_the_labels_of_a_phantom():
    # Without beam hardening: it brightens fluid as it does brain, by HU that no label knows.
    phantom = make_phantom(11, PhantomSettings(size=128, hardening=0.0))
    hu, spacing = phantom.volume.hu, phantom.volume.spacing

    def labelled(*names):
        return np.isin(phantom.labels, [LABELS[name] for name in names])

    mask = brain_mask(hu, spacing)
    outside = labelled("air", "skin", "fat", "muscle", "facial bone", "air cavities", "orbit", "eye", "table")
    assert (mask & outside).sum() < 0.002 * mask.sum()
    parenchyma = labelled("grey matter", "white matter", "deep nuclei", "internal capsule", "corpus callosum")
    assert (mask & parenchyma).sum() > 0.9 * parenchyma.sum()
    stats = tissue_means(hu, mask, spacing)
    grey = hu[mask & labelled("grey matter", "deep nuclei")].mean()
    white = hu[mask & labelled("white matter", "internal capsule", "corpus callosum")].mean()
    assert stats.grey.mean == pytest.approx(grey, abs=1.5)
    assert stats.white.mean == pytest.approx(white, abs=1.0)
    assert stats.csf.mean == pytest.approx(phantom.description["csf"], abs=3.5)


def test_on_the_real_heads():
    nibabel = pytest.importorskip("nibabel")
    path = REAL / "cranium" / "Cranium.nii.gz"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    stored = np.asarray(nibabel.load(path).dataobj).transpose(2, 1, 0)[::-1, ::-1]
    hu = np.ascontiguousarray(stored[2::3, ::2, ::2]).clip(-1024, 3071).astype(np.int16)
    spacing = (4.5, 1.914, 1.914)
    mask = brain_mask(hu, spacing)
    assert 1100 < mask.sum() * np.prod(spacing) / 1000 < 1600, "ml of an adult brain"
    values = hu[mask]
    assert np.mean((values > -40) & (values < 90)) > 0.99
    assert not mask[-1].any(), "neither jaw nor the air above"
    assert not mask[0].any(), "neither jaw nor the air above"
    stats = tissue_means(hu, mask, spacing)
    assert stats.csf.mean < 12 < stats.white.mean < stats.grey.mean < 42
    assert 2 < stats.noise < 12
    profile = brain_profile(hu, mask, spacing)
    assert np.isfinite(profile).sum() > 24
    assert np.median(interface_steps(profile)) < 3
