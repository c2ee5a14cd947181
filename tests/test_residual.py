"""The residual filter: its bands are whole, and least squares turns a denoiser that is off into the best one."""

import json
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from slicewise.data.store import open_store, put_volume
from slicewise.data.windows import Windows, training_windows
from slicewise.diffusion.denoiser import Denoiser, Recipe
from slicewise.diffusion.residual import BANDS, BLURS, ResidualFilter, bands, taken_away
from slicewise.errors import UserError
from slicewise.hu import HUScale
from slicewise.training.fade import blur, fade
from slicewise.training.residual import fit_residual_filter
from slicewise.volume import Volume

SCALE = HUScale(companding="half")
RECIPE = Recipe(3, False, 64, (5.0, 3.75, 3.75), SCALE, 0.8, 0.002, 80.0, False, 8, 8)
SLOPE = float(SCALE.slope(np.array(30.0)))


def test_bands_add_up_and_lie_between_gaussian_blurs():
    x = torch.randn(2, 3, 24, 20, generator=torch.Generator().manual_seed(0))
    split = bands(x)
    assert split.shape == (BANDS, 2, 3, 24, 20)
    torch.testing.assert_close(split.sum(0), x, atol=1e-5, rtol=0)
    exact = x.double().numpy()
    blurred = [exact] + [ndimage.gaussian_filter(exact, (0, 0, s, s), mode="nearest", truncate=3) for s in BLURS]
    for band, (fine, coarse) in zip(split, pairwise(blurred)):
        np.testing.assert_allclose(band, fine - coarse, atol=1e-5)


def test_gains_and_curve_run_with_ln_sigma_between_levels_and_end_with_the_last():
    rows = ((1.0,) * BANDS, (3.0,) * BANDS)
    found = ResidualFilter((0.01, 0.1), rows, (-0.1, 0.1), ((0.0, 0.5), (0.25, 0.0)))
    assert ResidualFilter.from_dict(json.loads(json.dumps(asdict(found)))) == found
    sigma = torch.tensor([[0.001, 0.01], [np.sqrt(0.001), 0.1], [0.11, 80.0]], dtype=torch.float64)
    expected = torch.tensor([[1.0, 1.0], [2.0, 3.0], [0.0, 0.0]])
    torch.testing.assert_close(found.at(sigma, rows), expected[..., None].expand(3, 2, BANDS), atol=1e-6, rtol=0)
    expected = torch.tensor([[[0.0, 0.5], [0.0, 0.5]], [[0.125, 0.25], [0.25, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    torch.testing.assert_close(found.at(sigma, found.curve), expected, atol=1e-6, rtol=0)


def test_a_recipe_with_a_filter_of_another_version_is_told_so():
    values = json.loads(json.dumps(RECIPE.to_dict()))
    path = Path("old.safetensors")
    assert Recipe.from_dict(values, path) == RECIPE
    for change in ({"residual": {"sigmas": [0.01], "gains": [[0.0] * BANDS]}}, {"unheard_of": 1}):
        with pytest.raises(UserError, match=r"^old\.safetensors: .* another version"):
            Recipe.from_dict({**values, **change}, path)


def test_the_filter_adds_its_share_of_what_was_taken_away_in_the_brain_alone():
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(1, 2, 16, 16, generator=rng, dtype=torch.float64)
    denoised = x - 0.01 * torch.randn(x.shape, generator=rng, dtype=torch.float64)
    sigma = torch.tensor([[0.01, 5.0]], dtype=torch.float64)
    filtering = ResidualFilter((0.01, 0.1), ((-0.25,) * BANDS, (0.0,) * BANDS), (-0.5, 0.5), ((0.0,) * 3,) * 2)
    found = filtering(denoised, x, sigma)
    brain = (denoised > -0.5) & (denoised < 0.5)
    change = torch.where(brain, -0.25 * (x - denoised).clamp(-0.03, 0.03), 0.0)
    change[:, 1] = 0  # above the last level
    torch.testing.assert_close(found, denoised + change, atol=1e-7, rtol=0)
    assert found.dtype == torch.float64 and 100 < int(brain.sum()) < 400
    assert float(taken_away(denoised, x + 1, sigma)[0, 0].max()) == pytest.approx(0.03)


def test_the_curve_is_piecewise_linear_over_the_span_and_ends_a_step_beyond_it():
    rng = np.random.default_rng(3)
    curve = rng.normal(0, 0.01, (2, 5))
    moving = ResidualFilter((0.01, 0.1), ((0.0,) * BANDS,) * 2, (-0.2, 0.2), tuple(map(tuple, curve.tolist())))
    denoised = torch.from_numpy(rng.uniform(-0.6, 0.6, (2, 3, 8, 8)))
    sigma = torch.tensor([[0.01, 0.1, 5.0], [0.1, 1.0, 0.01]], dtype=torch.float64)
    nodes = np.linspace(-0.3, 0.3, 7)
    ends = {0.01: np.pad(curve[0], 1), 0.1: np.pad(curve[1], 1)}
    expected = denoised.clone()
    for b, k in np.ndindex(2, 3):
        if float(sigma[b, k]) in ends:
            expected[b, k] += torch.from_numpy(np.interp(denoised[b, k], nodes, ends[float(sigma[b, k])], 0, 0))
    torch.testing.assert_close(moving(denoised, denoised, sigma), expected, atol=1e-7, rtol=0)


@pytest.fixture(scope="module")
def noisy_heads(tmp_path_factory):
    """Heads of flat brain, 30 HU with white noise of 4 HU, in a ring of bone."""
    path, rng = tmp_path_factory.mktemp("heads"), np.random.default_rng(0)
    radius = np.hypot(*np.mgrid[-32:32, -32:32])
    for i in range(3):
        hu = np.where(radius < 22, 30 + 4 * rng.standard_normal((8, 64, 64)), np.where(radius < 25, 1200, -1024))
        volume = Volume.regular(np.rint(hu).astype(np.int16), RECIPE.spacing_mm)
        put_volume(path, volume, id=f"v{i}", patient=f"p{i}", split="val" if i else "train", source="made up")
    return open_store(path)


def _windows(path: Path, denoiser: Denoiser) -> Windows:
    store = open_store(path)
    return training_windows(store, store.records[0].split, denoiser.recipe.slices)


def test_least_squares_makes_the_wiener_filter_of_one_that_is_off(noisy_heads, monkeypatch):
    """In flat tissue with white noise of variance s2 the best D is mu + w (x - mu), w = s2/(s2 + sigma2). Of one with
    gain g in place of w every band's residual gain is (w - g)/(1 - g), and the mended D has gain w."""
    mu, gain = float(SCALE.encode(np.array(30.0))), 0.02

    def off(network, x, sigma, condition, sigma_data, core):
        return mu + gain * (x - mu)

    monkeypatch.setattr("slicewise.diffusion.denoiser.denoise", off)
    denoiser = Denoiser(torch.nn.Linear(1, 1), RECIPE, {})
    found = fit_residual_filter(denoiser, training_windows(noisy_heads, "val", denoiser.recipe.slices), 12, 4, seed=0)
    assert found is not None and found.sigmas[0] == 0.002 and found.sigmas[-1] == pytest.approx(200 * SLOPE, rel=1e-3)
    variance = (4**2 + 2 / 12) * SLOPE**2  # rounding, and spreading over the bin
    for sigma, row in zip(found.sigmas, found.gains):
        wiener = variance / (variance + sigma**2)
        error = np.array(row) - (wiener - gain) / (1 - gain)
        # Beyond three sigma nothing is counted, which small sigma meet; coarse bands hold few independent voxels.
        if sigma > 0.015:
            assert np.all(np.abs(error) < (0.02, 0.04, 0.08, 0.15, 0.15)), (sigma, row)
    mended = replace(denoiser, recipe=replace(RECIPE, residual=found))
    sigma = 0.02
    hu = 30 + 4 * np.random.default_rng(5).standard_normal((4, 3, 64, 64))
    clean = torch.from_numpy(SCALE.encode(hu))
    x = clean + sigma * torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    levels = torch.full((4, 3), sigma, dtype=torch.float64)
    before, after = (float((d(x, levels, None) - clean).square().mean().sqrt()) / SLOPE for d in (denoiser, mended))
    best = float(np.sqrt(variance * sigma**2 / (variance + sigma**2))) / SLOPE
    assert before > 1.05 * best and after < 1.01 * best, (before, after, best)


def test_the_curve_gives_every_value_the_mean_of_what_it_stood_for(monkeypatch, tmp_path):
    """Two tissues, 10 and 34 HU, the same in every slice, of which a denoiser that goes by the slice before says 0 and
    34: the curve lifts the first by ten, and leaves the second."""
    rng = np.random.default_rng(4)
    radius = np.hypot(*np.mgrid[-32:32, -32:32])
    tissue = np.where(rng.random((8, 8)) < 0.2, 10, 34).repeat(8, axis=0).repeat(8, axis=1)
    hu = np.where(radius < 22, tissue, np.where(radius < 25, 1200, -1024)).astype(np.int16)[None].repeat(8, axis=0)
    put_volume(tmp_path, Volume.regular(hu, RECIPE.spacing_mm), id="v", patient="p", split="val", source="made up")

    def off(network, x, sigma, condition, sigma_data, core):
        first = np.abs(SCALE.decode(x[:, 1:2].expand(x.shape).numpy()) - 10) < 9
        return torch.from_numpy(SCALE.encode(np.where(first, 0.0, 34.0)))

    monkeypatch.setattr("slicewise.diffusion.denoiser.denoise", off)
    denoiser = Denoiser(torch.nn.Linear(1, 1), RECIPE, {})
    found = fit_residual_filter(denoiser, _windows(tmp_path, denoiser), 60, 4, seed=0)
    assert found is not None
    said = torch.from_numpy(SCALE.encode(np.array([0.0, 34.0]))).view(1, 1, 1, 2)
    sigma = torch.full((1, 1), found.sigmas[-3], dtype=torch.float64)
    low, high = SCALE.decode(found.moved(said, sigma).numpy()).ravel()
    # The first slice has but air before it, and is called 34 HU all over.
    assert low == pytest.approx(10, abs=0.8) and high == pytest.approx(34, abs=0.8)


def test_no_brain_no_filter(tmp_path):
    air = Volume.regular(np.full((8, 64, 64), -1000, np.int16), RECIPE.spacing_mm)
    put_volume(tmp_path, air, id="air", patient="air", split="train", source="made up")
    torch.manual_seed(0)
    denoiser = Denoiser(_Still(), RECIPE, {})
    assert fit_residual_filter(denoiser, _windows(tmp_path, denoiser), 4, 4, seed=0) is None


class _Still(torch.nn.Module):
    """A raw network that says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, noise, condition):
        return torch.zeros_like(x)


def _faded(hu, contrast: float, mottle: float, seed: int) -> np.ndarray:
    white = torch.randn(1, *hu.shape, generator=torch.Generator().manual_seed(seed))
    slices, *amounts = (torch.from_numpy(np.asarray(v, np.float32))[None] for v in (hu, contrast, mottle))
    return fade(slices, *amounts, white)[0].numpy()


def test_fading_scales_contrast_and_adds_mottle_but_keeps_noise_bone_air_and_level():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-48:48, -48:48]
    radius = np.hypot(y, x)
    stripes = 8 * np.sign(np.sin(2 * np.pi * x / 16))  # broader than noise, finer than the neighbourhood
    noise = rng.standard_normal(x.shape)
    hu = np.rint(np.where(radius < 40, 30 + stripes + noise, np.where(radius < 45, 1200, -1000)))
    faded = _faded(hu, 0.5, 0.0, 1)
    outside, deep = (radius >= 40) & (np.abs(hu) > 100), radius < 28
    assert np.array_equal(faded[outside], hu[outside])
    wave = np.where(deep, stripes, 0)
    kept = (faded * wave).sum() / (hu * wave).sum()
    assert 0.45 < kept < 0.65, "half of the contrast, but for edges finer than the noise filter"
    assert abs(faded[deep].mean() - hu[deep].mean()) < 0.5
    fine = [(v - ndimage.gaussian_filter(v, 1.0))[deep & (np.abs(x % 8 - 4) < 2)].std() for v in (hu, faded)]
    assert fine[1] == pytest.approx(fine[0], rel=0.05)
    for mottle in (0.5, 2.0):
        amounts = [(_faded(hu, 1.0, mottle, seed) - hu)[deep].std() for seed in range(10)]
        assert 0.8 * mottle < min(amounts) and max(amounts) < 1.15 * mottle


@pytest.mark.parametrize("sigma", [1.0, 6.0])
def test_blurring_is_that_of_scipy(sigma):
    x = np.random.default_rng(3).normal(size=(2, 40, 32)).astype(np.float32)
    expected = ndimage.gaussian_filter(x, (0, sigma, sigma))
    np.testing.assert_allclose(blur(torch.from_numpy(x), sigma).numpy(), expected, atol=1e-5)
