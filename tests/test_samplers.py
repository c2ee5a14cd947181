"""Samplers on data whose denoiser is known in closed form: what they draw against what they should."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats

from slicewise.diffusion.samplers import dpmpp_2m, dpmpp_2m_sde, heun, nfe, pc
from slicewise.diffusion.schedule import geometric, karras
from slicewise.random import CORRECTOR, INITIAL, PREDICTOR, SliceNoise

ONE_HU = 2 / 4095
SHAPE = (1, 64, 64)
# Every pixel is drawn on its own from this mixture: weights, means, standard deviations.
WEIGHTS, MEANS, STDS = np.array([0.7, 0.3]), np.array([-0.8, 0.5]), np.array([0.05, 0.15])


def mixture(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """E[x0 | x] of the mixture under noise sigma: posterior weights times the normal posteriors' means."""
    m, s2, w = (torch.from_numpy(v) for v in (MEANS, STDS**2, WEIGHTS))
    total = s2 + sigma**2
    d = x.unsqueeze(-1) - m
    weight = torch.softmax(torch.log(w) - 0.5 * torch.log(total) - d**2 / (2 * total), dim=-1)
    return (weight * (m + s2 / total * d)).sum(-1)


def normal(x: torch.Tensor, sigma: float) -> torch.Tensor:
    return 0.3 + 0.25**2 / (0.25**2 + sigma**2) * (x - 0.3)


def _draw(sampler, denoise, sigmas, volumes=(0, 1), **options):
    noise = SliceNoise(11, volumes, 0, SHAPE)
    return sampler(denoise, float(sigmas[0]) * noise(0, INITIAL), sigmas, noise, **options)


# pc is a discretisation of a stochastic equation: many more levels, as in the paper.
CASES = [
    pytest.param(pc, geometric(300, 0.002, 30.0), id="pc"),
    pytest.param(heun, karras(40, 0.002, 30.0), id="heun"),
    pytest.param(dpmpp_2m, karras(80, 0.002, 30.0), id="dpmpp_2m"),
    pytest.param(dpmpp_2m_sde, karras(80, 0.002, 30.0), id="dpmpp_2m_sde"),
]


@pytest.mark.parametrize("sampler, sigmas", CASES)
def test_a_normal_distribution_comes_out(sampler, sigmas):
    x = _draw(sampler, normal, sigmas).numpy().ravel()
    assert x.mean() == pytest.approx(0.3, abs=4 * 0.25 / math.sqrt(x.size) + 0.003)
    assert x.std() == pytest.approx(0.25, rel=0.05)
    assert stats.kurtosis(x) == pytest.approx(0, abs=0.25)


@pytest.mark.parametrize("snr", [0.15, 0.4])
def test_pc_is_song_et_als_algorithm_step_by_step(snr):
    """Song et al. 2021, algorithms 2 and 5: at each level x + eps g + sqrt(2 eps) z with g the score there and
    eps = 2 (snr |z| / |g|)^2 of each sample, then x + (s^2 - s'^2) g + sqrt(s^2 - s'^2) z. The factor 2 makes the
    move along g `snr` times as long as the noise that goes with it."""
    sigmas, noise = geometric(3, 0.05, 2.0), SliceNoise(11, (0, 1), 0, SHAPE)
    x = 2.0 * noise(0, INITIAL)
    found = pc(normal, x, sigmas, noise, snr=snr)
    for step, (sigma, following) in enumerate(pairwise([*sigmas.tolist(), 0.0])):
        g, z = (normal(x, sigma) - x) / sigma**2, noise(step, CORRECTOR)
        lengths = [torch.stack([one.square().sum().sqrt() for one in v])[:, None, None, None] for v in (g, z)]
        eps = 2 * (snr * lengths[1] / lengths[0]) ** 2
        along, aside = eps * g, torch.sqrt(2 * eps) * z
        assert float(along[1].norm() / aside[1].norm()) == pytest.approx(snr, rel=1e-9)
        x = x + along + aside
        step_variance = sigma**2 - following**2
        mean = x + step_variance * (normal(x, sigma) - x) / sigma**2
        x = mean + math.sqrt(step_variance) * noise(step, PREDICTOR)
    torch.testing.assert_close(found, mean, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sampler, sigmas", CASES)
def test_a_mixture_comes_out_with_its_modes_and_their_weights(sampler, sigmas):
    x = _draw(sampler, mixture, sigmas).numpy().ravel()
    left = x < -0.3
    assert left.mean() == pytest.approx(0.7, abs=0.03)
    for mode, (mean, std) in enumerate(zip(MEANS, STDS)):
        part = x[left] if mode == 0 else x[~left]
        assert part.mean() == pytest.approx(mean, abs=0.02)
        assert part.std() == pytest.approx(std, rel=0.12)


@pytest.mark.parametrize("sampler", [heun, dpmpp_2m])
def test_the_ode_is_solved_to_second_order(sampler):
    """Against the exact solution for normal data, x(0) = m + (x - m) s / sqrt(s^2 + sigma^2); the last step, to zero,
    is the same for all and is taken off by comparing with a fine solution."""
    x = torch.linspace(-60, 60, 7, dtype=torch.float64).reshape(1, 1, 1, 7)

    def solve(steps, by=sampler):
        return by(normal, x, geometric(steps, 0.002, 30.0), lambda *key: torch.zeros_like(x))

    fine = solve(4000, heun)
    exact = 0.3 + (x - 0.3) * 0.25 / math.sqrt(0.25**2 + 30.0**2)
    torch.testing.assert_close(fine, exact, rtol=0, atol=5e-5)
    errors = [float((solve(n) - fine).abs().max()) for n in (40, 80, 160, 320)]
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert orders[-1] == pytest.approx(2, abs=0.3), errors
    assert errors[-1] < 1e-3, errors


def test_the_sde_sampler_keeps_the_noise_level_however_few_the_steps():
    """Data that are one constant: the equation is then linear, so that x at sigma is the constant plus sigma n,
    exactly, but for a start without the constant; and what x keeps of the level before fades as (sigma' / sigma)^2."""
    seen: dict[float, torch.Tensor] = {}

    def constant(x, sigma):
        seen[sigma] = x
        return torch.full_like(x, 0.3)

    sigmas = geometric(4, 0.02, 10.0)
    assert bool((_draw(dpmpp_2m_sde, constant, sigmas, volumes=range(8)) == 0.3).all())
    drawn = [seen[sigma] - 0.3 for sigma in sigmas.tolist()]
    for n, sigma in zip(drawn, sigmas.tolist()):
        assert float(n.std()) == pytest.approx(sigma, rel=0.02)
    for (before, after), (a, b) in zip(pairwise(sigmas.tolist()), pairwise(drawn)):
        slope = float((a * b).sum() / (a * a).sum())
        assert slope == pytest.approx((after / before) ** 2, abs=0.02 * after / before)


@pytest.mark.parametrize("sampler", [heun, dpmpp_2m])
def test_the_ode_samplers_are_deterministic_given_their_start(sampler):
    def noise(step, stream):
        raise AssertionError("no noise may be drawn")

    x = 5 * torch.randn(1, 1, 4, 4, dtype=torch.float64)
    sigmas = karras(6, 0.01, 5.0)
    assert torch.equal(sampler(mixture, x, sigmas, noise), sampler(mixture, x, sigmas, noise))


@pytest.mark.parametrize("sigma_min, hu", [(0.01, 20.5), (0.001, 2.05)])
def test_the_widely_copied_pc_leaves_its_last_noise_in(sigma_min, hu):
    """Data that are one constant: the clean mean is that constant, the faulty variant is off by sigma_min in x, which
    is 20 HU of the linear whole range at 0.01 and 2 HU at 0.001."""

    def constant(x, sigma):
        return torch.full_like(x, 0.25)

    sigmas = geometric(20, sigma_min, 30.0)
    clean = _draw(pc, constant, sigmas)
    noisy = _draw(pc, constant, sigmas, clean_mean=False)
    assert float((clean - 0.25).abs().max()) / ONE_HU < 1e-6
    assert float((noisy - 0.25).std()) / ONE_HU == pytest.approx(hu, rel=0.03)


@pytest.mark.parametrize(
    "sampler, name", [(pc, "pc"), (heun, "heun"), (dpmpp_2m, "dpmpp_2m"), (dpmpp_2m_sde, "dpmpp_2m_sde")]
)
def test_evaluations_are_as_many_as_stated_and_in_float64(sampler, name):
    calls = []

    def denoise(x, sigma):
        assert x.dtype == torch.float64
        assert isinstance(sigma, float)
        assert sigma > 0
        calls.append(sigma)
        return normal(x, sigma)

    for steps in (2, 7):
        calls.clear()
        sigmas = geometric(steps, 0.01, 30.0)
        assert _draw(sampler, denoise, sigmas).dtype == torch.float64
        assert len(calls) == nfe(name, steps)
        assert set(calls) <= set(sigmas.tolist()), "a level that the schedule does not have"


@pytest.mark.parametrize("sampler", [pc, heun, dpmpp_2m, dpmpp_2m_sde])
def test_a_volume_does_not_depend_on_its_batch_mates(sampler):
    """Langevin steps are as long as each sample's own norms say; a mate of other norms must change nothing."""

    def uneven(x, sigma):
        scale = torch.where(x[:, :, :1, :1] == x[:1, :, :1, :1], 1.0, 3.0)  # other data for the mates
        return scale * normal(x, sigma)

    sigmas = geometric(15, 0.01, 30.0)
    alone = _draw(sampler, uneven, sigmas, (4,))
    among = _draw(sampler, uneven, sigmas, (4, 9, 2))
    assert torch.equal(alone[0], among[0])


@pytest.mark.parametrize("sampler", [pc, heun, dpmpp_2m, dpmpp_2m_sde])
def test_known_slices_are_imposed_at_the_level_of_each_evaluation(sampler):
    """Two channels, the first known: whenever the denoiser is asked, it must see the known one at that noise level."""
    known = torch.full((64, 64), 0.7, dtype=torch.float64)
    seen = []

    def impose(x, sigma, step):
        x = x.clone()
        x[:, 0] = known + sigma * SliceNoise(3, [step], 0, SHAPE)(0, INITIAL)[0, 0]
        return x

    def denoise(x, sigma):
        seen.append((sigma, float((x[:, 0] - known).std()), float((x[:, 0] - known).mean())))
        return normal(x, sigma)

    sigmas = karras(9, 0.01, 30.0)
    noise = SliceNoise(1, [0], 0, (2, 64, 64))
    sampler(denoise, float(sigmas[0]) * noise(0, INITIAL), sigmas, noise, impose)
    for sigma, std, mean in seen:
        assert std == pytest.approx(sigma, rel=0.06)
        assert abs(mean) < 5 * sigma / 64


def test_a_known_slice_pulls_the_unknown_one_towards_it():
    """Joint sampling by imposing: two slices of correlation 0.95; given one at +2 std, the other comes out near it."""
    covariance = 0.25**2 * np.array([[1, 0.95], [0.95, 1]])
    known = torch.full(SHAPE[1:], 0.5, dtype=torch.float64)
    noise = SliceNoise(5, [0], 0, (2, 64, 64))

    def denoise(x, sigma):
        gain = torch.from_numpy(covariance @ np.linalg.inv(covariance + sigma**2 * np.eye(2)))
        return torch.einsum("ij,bjhw->bihw", gain, x)

    def impose(x, sigma, step):
        return torch.stack([known.expand(len(x), -1, -1) + sigma * noise(step, 3)[:, 0], x[:, 1]], dim=1)

    sigmas = geometric(400, 0.002, 30.0)
    x = pc(denoise, float(sigmas[0]) * noise(0, INITIAL), sigmas, noise, impose)
    # Exactly conditioned: mean 0.475, std 0.078. Imposing is an approximation (noisier), with no shift of the mean.
    assert float(x[0, 1].mean()) == pytest.approx(0.475, abs=0.05)
    assert 0.06 < float(x[0, 1].std()) < 0.16
