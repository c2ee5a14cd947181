"""The slice-to-3D VAE's formulas against PyTorch's distributions and NumPy's covariance."""

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from slicewise.baselines import slice_vae
from slicewise.baselines.shapes import SliceVAEConfig
from slicewise.baselines.slice_vae import SliceVAE, fit_columns, vae_loss

TINY = SliceVAEConfig(channels=(4, 8), latent=6, slices=5, components=3, size=16)


def test_divergence_is_pytorchs():
    mean, log_variance = torch.randn(4, 7, dtype=torch.float64), torch.randn(4, 7, dtype=torch.float64)
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(dim=1)
    assert torch.allclose(slice_vae.kl_divergence(mean, log_variance), expected)
    x, decoded = torch.randn(2, 4, 1, 3, 3, dtype=torch.float64)
    error = ((x - decoded).numpy() ** 2).sum() / 4
    found = vae_loss(x, decoded, mean, log_variance, 0.2).item()
    assert found == pytest.approx(error + 0.2 * expected.mean().item())


def test_network_keeps_shapes_and_noise_moves_the_latent_by_its_deviation():
    torch.manual_seed(0)
    net = SliceVAE(TINY).eval()
    x = torch.randn(3, 1, 16, 16)
    noise = torch.randn(3, 6 * 16)
    decoded, mean, log_variance = net(x, noise)
    assert decoded.shape == x.shape
    assert mean.shape == (3, 96)
    assert net.column_noise == (96, 3)
    assert torch.allclose(decoded, net.decode(mean + torch.exp(0.5 * log_variance) * noise), atol=1e-6)


def test_columns_have_the_sample_mean_and_covariance():
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((40, 6, 3)) @ rng.standard_normal((3, 3)) + rng.standard_normal((6, 3))
    mean, factor = fit_columns(torch.from_numpy(latents), components=64)
    assert factor.shape == (3, 6, 6)
    assert np.allclose(mean.numpy(), latents.mean(axis=0), atol=1e-6)
    for d in range(3):
        covariance = np.cov(latents[:, :, d], rowvar=False)
        assert np.allclose((factor[d] @ factor[d].T).numpy(), covariance, atol=1e-5)


def test_fewer_components_keep_the_largest_part():
    rng = np.random.default_rng(1)
    latents = rng.standard_normal((50, 8, 1)) * np.linspace(3, 0.1, 8)[None, :, None]
    _, factor = fit_columns(torch.from_numpy(latents), components=3)
    values, vectors = np.linalg.eigh(np.cov(latents[:, :, 0], rowvar=False))
    best = (vectors[:, -3:] * values[-3:]) @ vectors[:, -3:].T  # Eckart and Young
    assert np.allclose((factor[0] @ factor[0].T).numpy(), best, atol=1e-4)


@pytest.mark.parametrize("heads", [1, 3])
def test_few_heads_leave_the_other_components_empty(heads):
    latents = torch.randn(heads, 6, 2)
    _, factor = fit_columns(latents, components=5)
    assert factor.shape == (2, 6, 5)
    assert torch.linalg.matrix_rank(factor.double(), atol=1e-4).tolist() == [heads - 1] * 2


def test_drawn_columns_follow_the_fitted_gaussian():
    rng = np.random.default_rng(2)
    root = np.tril(rng.standard_normal((5, 5)))
    latents = rng.standard_normal((400, 5)) @ root.T + 2.0
    net = SliceVAE(SliceVAEConfig(channels=(2,), latent=1, slices=5, components=5, size=2))
    net.columns_mean, net.columns_factor = fit_columns(torch.from_numpy(latents)[:, :, None], 5)
    noise = torch.from_numpy(rng.standard_normal((4000, 1, 5))).float()
    drawn = np.stack([net.draw_columns(n).numpy()[:, 0] for n in noise])
    expected = np.cov(latents, rowvar=False)
    assert np.allclose(np.cov(drawn, rowvar=False), expected, atol=0.12 * np.abs(expected).max())
    assert np.allclose(drawn.mean(axis=0), latents.mean(axis=0), atol=4 * np.sqrt(np.diag(expected).max() / 4000))
