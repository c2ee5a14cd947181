"""The network of whole heads: it starts as the exact denoiser of a Gaussian, by dense linear algebra in float64."""

import numpy as np
import pytest
import torch

from slicewise.diffusion.precondition import denoise
from slicewise.networks.shapes import UNet3dConfig
from slicewise.networks.unet3d import Gaussian, UNet3d, fit_gaussian

GRID = (4, 8, 8)
CONFIG = UNet3dConfig(
    slices=4, size=8, channels=(8, 16), blocks=(1, 1), attention=(False, True), embedding=16, modes=5
)  # fmt: skip


def _gaussian(rng: np.random.Generator) -> Gaussian:
    mean, spread = rng.normal(0, 0.5, GRID), rng.uniform(0.02, 0.4, GRID)
    modes, own = rng.normal(0, 0.6, (5, *GRID)), rng.uniform(0.05, 0.5, GRID)
    return Gaussian(*(torch.from_numpy(each).float() for each in (mean, spread, modes, own)))


def _covariance(g: Gaussian) -> np.ndarray:
    spread, modes, own = (each.double().numpy() for each in (g.spread, g.modes, g.own))
    whitened = modes.reshape(5, -1)
    return (whitened.T @ whitened + np.diag(own.ravel())) * np.outer(spread.ravel(), spread.ravel())


@pytest.mark.parametrize("levels", [(0.01,) * 4, (3.0,) * 4, (80.0,) * 4, (0.005, 0.7, 0.7, 0.03)])
def test_untrained_it_is_the_gaussians_posterior_mean(levels):
    """D = m + S (S + N)^-1 (x - m), with noise of its own for every slice."""
    rng = np.random.default_rng(int(1000 * sum(levels)))
    g = _gaussian(rng)
    network = UNet3d(CONFIG)
    network.gaussian(g, 0.6)
    covariance = _covariance(g)
    sigma = np.repeat(levels, 64)
    clean = rng.multivariate_normal(g.mean.double().numpy().ravel(), covariance, 3)
    noisy = clean + sigma * rng.standard_normal(clean.shape)
    mean = g.mean.double().numpy().ravel()
    expected = mean + (noisy - mean) @ np.linalg.solve(covariance + np.diag(sigma**2), covariance)
    x = torch.from_numpy(noisy).view(3, *GRID)
    with torch.no_grad():
        found = denoise(network, x, torch.tensor([levels] * 3, dtype=torch.float64), None, 0.6)
    np.testing.assert_allclose(found.numpy().reshape(3, -1), expected, atol=2e-5)


def test_the_factor_model_is_found_in_its_own_samples():
    """Covariance of a fit to many mirror-symmetric samples against the true one, the voxels' own part included."""
    rng = np.random.default_rng(5)
    spread = np.full(GRID, 0.3)
    modes = rng.normal(0, 1, (2, *GRID))
    modes += modes[..., ::-1]
    factors = rng.standard_normal((2000, 2))
    off = np.einsum("nr,rzyx->nzyx", factors, modes) + 0.5 * rng.standard_normal((2000, *GRID))
    heads = torch.from_numpy(1.0 + spread * off).float()
    g = fit_gaussian(heads, 2)
    true = (np.einsum("ra,rb->ab", modes.reshape(2, -1), modes.reshape(2, -1)) + 0.25 * np.eye(256)) * 0.09
    whitened = g.modes.flatten(1).double().numpy() * g.spread.double().numpy().ravel()
    found = whitened.T @ whitened + np.diag((g.own * g.spread.square()).double().numpy().ravel())
    assert np.abs(found - true).max() < 0.15 * np.abs(true).max()
    assert np.linalg.norm(found - true) < 0.05 * np.linalg.norm(true)
    np.testing.assert_allclose(g.mean.numpy(), 1.0, atol=0.06)


def test_what_never_varies_may_vary_a_little():
    g = fit_gaussian(torch.full((4, *GRID), -1.0), 3)
    assert torch.equal(g.spread, torch.full(GRID, 0.01))
    assert torch.isfinite(g.modes).all()


def test_slices_are_told_their_own_noise_levels():
    """A trained network may use that a slice is known: its answer for others depends on it."""
    torch.manual_seed(0)
    network = UNet3d(CONFIG)
    network.gaussian(_gaussian(np.random.default_rng(1)), 0.6)
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    x = torch.randn(1, *GRID)
    levels = torch.full((1, 4), -0.3)
    other = levels.clone()
    other[0, 0] = -1.2
    with torch.no_grad():
        a, b = (torch.cat(network(x, each), dim=1) for each in (levels, other))
    assert a.shape == (1, 12, 8, 8)
    assert a.dtype == torch.float32
    assert (a[:, 1:4] - b[:, 1:4]).abs().max() > 1e-4
