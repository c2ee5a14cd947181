"""EDM preconditioning against its own derivation, and what autocast may and may not touch."""

import math

import numpy as np
import pytest
import torch

from slicewise.diffusion.precondition import (
    c_in,
    c_noise,
    c_out,
    c_skip,
    denoise,
    loss_weight,
    posterior,
    score,
)
from slicewise.hu import HUScale
from slicewise.networks.local import Local
from slicewise.networks.shapes import UNetConfig
from slicewise.networks.unet import UNet

SIGMA_DATA = 0.62
LEVELS = torch.tensor([1e-3, 0.02, 0.3, 0.62, 2.0, 80.0, 1348.0], dtype=torch.float64)


def _zero(x, noise, condition):
    return torch.zeros_like(x)


def test_network_input_and_target_have_unit_power():
    """Karras et al. 2022, appendix B.6: c_in gives the input, c_out and c_skip the target, variance one, at every
    level; by Monte Carlo on data that are nothing like normal."""
    rng = np.random.default_rng(0)
    clean = rng.choice([-1.0, 0.1, 0.7], 400_000)
    clean *= SIGMA_DATA / np.sqrt(np.mean(clean**2))
    for level in LEVELS:
        noisy = clean + float(level) * rng.standard_normal(clean.shape)
        assert np.mean((float(c_in(level, SIGMA_DATA)) * noisy) ** 2) == pytest.approx(1, abs=0.02)
        target = (clean - float(c_skip(level, SIGMA_DATA)) * noisy) / float(c_out(level, SIGMA_DATA))
        assert np.mean(target**2) == pytest.approx(1, abs=0.02)


def test_c_skip_is_the_choice_that_amplifies_the_networks_error_least():
    """c_out^2 = (1 - c_skip)^2 sigma_data^2 + c_skip^2 sigma^2 (eq. 120 there), least where its derivative is zero."""
    s, d = LEVELS, SIGMA_DATA
    skip = c_skip(s, d)
    torch.testing.assert_close(c_out(s, d) ** 2, (1 - skip) ** 2 * d**2 + skip**2 * s**2, rtol=1e-12, atol=0)
    torch.testing.assert_close((1 - skip) * d**2, skip * s**2, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(loss_weight(s, d), 1 / c_out(s, d) ** 2, rtol=1e-12, atol=0)
    torch.testing.assert_close(c_noise(s), s.log() / 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_denoise_is_the_formula_with_one_level_a_slice(dtype):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    sigma = torch.tensor([[0.01, 0.5, 40.0], [2.0, 0.001, 0.3]], dtype=torch.float64)
    seen = {}

    def network(inputs, noise, condition):
        seen.update(inputs=inputs, noise=noise, condition=condition)
        return torch.tanh(inputs) + 0.1

    condition = torch.ones(2, 1)
    found = denoise(network, x.to(dtype), sigma, condition, SIGMA_DATA)
    assert found.dtype == dtype
    expected = torch.empty_like(x)
    for b in range(2):
        for k in range(3):
            s, d = float(sigma[b, k]), SIGMA_DATA
            f = np.tanh(x[b, k].numpy() / np.sqrt(s**2 + d**2)) + 0.1
            expected[b, k] = torch.from_numpy(d**2 / (s**2 + d**2) * x[b, k].numpy() + s * d / np.sqrt(s**2 + d**2) * f)
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=1e-5)
    assert seen["inputs"].dtype == torch.float32
    assert seen["noise"].dtype == torch.float32
    torch.testing.assert_close(seen["noise"], (sigma.log() / 4).float())
    assert seen["condition"] is condition


def test_the_skip_path_costs_no_hu_under_a_half_precision_core():
    """With F = 0 and a tiny sigma D is x: all 4096 codes must come back, though the core runs in bfloat16."""
    scale = HUScale()
    codes = np.arange(-1024, 3072).reshape(1, 1, 64, 64)
    x = torch.from_numpy(scale.encode(codes))
    sigma = torch.full((1, 1), 1e-5, dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        d = denoise(_zero, x.to(dtype), sigma, None, SIGMA_DATA, torch.bfloat16)
        assert d.dtype == dtype
        assert np.array_equal(scale.decode_codes(d.numpy()), codes)


@pytest.mark.parametrize("local", [False, True])
def test_a_half_precision_core_costs_little_hu_where_little_noise_is(local):
    """The core's rounding reaches D through c_out, and M's through 1 - c_skip(s): worth a fraction of a HU at
    sigma = 0.01. The local network keeps an untrained one's spread, 6 % of sigma_data."""
    torch.manual_seed(0)
    shape = UNetConfig(channels=(8, 16), blocks=(1, 1), attention=(False, True), embedding=16, condition=0, local=local)
    net = UNet(shape)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.15)
    if local:
        with torch.no_grad():
            for p in (net.head.weight, net.head.bias, net.mix.weight, net.mix.bias):
                p[p.shape[0] // 2 : p.shape[0] * 3 // 4] = 0
    x = torch.rand(1, 3, 16, 16) * 2 - 1
    for level, bound in ((0.001, 0.1), (0.01, 1.0)):
        sigma = torch.full((1, 3), level, dtype=torch.float64)
        with torch.no_grad():
            full = denoise(net, x, sigma, None, SIGMA_DATA)
            half = denoise(net, x, sigma, None, SIGMA_DATA, torch.bfloat16)
        error = float((full - half).abs().max()) / (2 / 4095)
        assert 0 < error < bound


def test_score_of_a_normal_distribution():
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    sigma = 0.8
    denoised = x / (1 + sigma**2)  # E[x0 | x] for x0 ~ N(0, 1)
    torch.testing.assert_close(score(denoised, x, sigma), -x / (1 + sigma**2))


def _answers(f, mean, spread):
    """A local network that answers F, M and the S of a spread, each a float, for one slice."""
    values = (f, mean / SIGMA_DATA, math.log(spread / SIGMA_DATA))
    return lambda x, noise, condition: Local(*(torch.full_like(x[:, :1], value).float() for value in values))


def test_a_local_network_is_the_posterior_of_a_gaussian_voxel():
    """x0 ~ N(m, s^2): D and the deviation against the product of the two Gaussians on a grid, at random levels."""
    rng = np.random.default_rng(1)
    grid = np.linspace(-3, 3, 600_001)
    for _ in range(8):
        mean, spread = rng.uniform(-1, 1), SIGMA_DATA * np.exp(rng.uniform(-4, -0.1))
        sigma = np.exp(rng.uniform(np.log(0.003), np.log(3)))
        noisy = mean + rng.standard_normal() * np.hypot(spread, sigma)
        density = np.exp(-((grid - mean) ** 2) / (2 * spread**2) - (grid - noisy) ** 2 / (2 * sigma**2))
        density /= density.sum()
        expected = (grid * density).sum()
        deviation = np.sqrt(((grid - expected) ** 2 * density).sum())
        x = torch.full((1, 1, 2, 2), noisy, dtype=torch.float64)
        levels = torch.full((1, 1), sigma, dtype=torch.float64)
        found, found_deviation = posterior(_answers(0.0, mean, spread), x, levels, None, SIGMA_DATA)
        assert float(found[0, 0, 0, 0]) == pytest.approx(expected, abs=1e-6)
        assert float(found_deviation[0, 0, 0, 0]) == pytest.approx(deviation, rel=1e-4)


def test_a_local_network_with_the_whole_datas_spread_is_edm():
    torch.manual_seed(0)
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    levels = torch.tensor([[0.01], [0.5], [40.0]], dtype=torch.float64)
    found, deviation = posterior(_answers(0.7, 0.0, SIGMA_DATA), x, levels, None, SIGMA_DATA)
    plain, c = posterior(lambda x, noise, condition: torch.full_like(x, 0.7), x, levels, None, SIGMA_DATA)
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(deviation, c.expand_as(deviation), rtol=1e-5, atol=0)


def test_a_networks_error_costs_a_local_brain_few_hu():
    """An error of 0.05 in F at sigma = 0.3: 28 HU of the linear range under EDM, 1 HU where the spread is 20 HU."""
    unit = 2 / 4095
    x, levels = torch.zeros(1, 1, 2, 2), torch.full((1, 1), 0.3, dtype=torch.float64)

    def change(network):
        return abs(float((denoise(network(0.05), x, levels, None, SIGMA_DATA) / unit).mean()))

    edm = change(lambda f: lambda x, noise, condition: torch.full_like(x, f))
    local = change(lambda f: _answers(f, 0.0, 20 * unit))
    assert edm == pytest.approx(0.05 * float(c_out(levels, SIGMA_DATA)) / unit, rel=1e-4)
    assert edm > 20
    assert local < 1.05
