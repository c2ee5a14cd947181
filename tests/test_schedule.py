"""Noise schedules against their closed forms, and the distribution of training's noise levels against SciPy's."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from slicewise.diffusion.schedule import PAPER_SCHEDULES, geometric, karras, last_diffusion_step, sigma_at
from slicewise.diffusion.settings import SigmaDistribution
from slicewise.random import TRAIN_ORDER, Draws

ONE_HU = 2 / 4095


def test_the_papers_two_numbers():
    """Jeong et al., section 3.1: the last diffusion step of sigma_min = 0.001 is below one HU, of 0.01 above."""
    fine = last_diffusion_step(geometric(1000, 0.001, 1348.0))
    coarse = last_diffusion_step(geometric(1000, 0.01, 1348.0))
    assert f"{fine:.5f}" == "0.00017"
    assert f"{coarse:.5f}" == "0.00155"
    assert fine < ONE_HU < coarse


@pytest.mark.parametrize("low, high", PAPER_SCHEDULES)
def test_geometric_levels_have_one_ratio(low, high):
    sigmas = geometric(1000, low, high).numpy()
    assert sigmas.dtype == np.float64
    assert len(sigmas) == 1000
    ratio = math.exp(math.log(high / low) / 999)
    np.testing.assert_allclose(sigmas, high / ratio ** np.arange(1000), rtol=1e-12)
    assert last_diffusion_step(torch.from_numpy(sigmas)) == pytest.approx(low * math.sqrt(ratio**2 - 1), rel=1e-9)


def test_sigma_at_is_the_ve_sde():
    t = np.linspace(0, 1, 7)
    found = sigma_at(torch.from_numpy(t), 0.001, 1348.0).numpy()
    np.testing.assert_allclose(np.log(found), np.log(0.001) + t * np.log(1348 / 0.001), rtol=1e-12)


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
def test_karras_levels_are_even_in_their_root(rho):
    sigmas = karras(12, 0.002, 80.0, rho).numpy()
    assert sigmas.dtype == np.float64
    np.testing.assert_allclose(sigmas[[0, -1]], [80.0, 0.002], rtol=1e-11)
    steps = np.diff(sigmas ** (1 / rho))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-8)
    # Karras et al. 2022, eq. 5, entry by entry.
    i = np.arange(12)
    expected = (80 ** (1 / rho) + i / 11 * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
    np.testing.assert_allclose(sigmas, expected, rtol=1e-10)


def test_sigma_distribution_has_the_stated_quantiles():
    d = SigmaDistribution(mean=-1.2, std=2.0, uniform=0.25, sigma_min=0.001, sigma_max=80.0)
    low, high = math.log(0.001), math.log(80)
    drawn = np.log(d.draw(Draws(1, range(1000), 0, 0, TRAIN_ORDER), 60).numpy())
    for at in np.linspace(low + 0.2, high - 0.2, 9):
        expected = 0.75 * stats.norm.cdf(at, -1.2, 2.0) + 0.25 * (at - low) / (high - low)
        assert np.mean(drawn <= at) == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 60000))
    assert drawn.min() >= low - 1e-12
    assert drawn.max() <= high + 1e-12


def test_default_distribution_does_not_starve_low_noise():
    """The docstring's figures: sigma below 0.01 (20 HU) comes 0.2 % of the time with EDM's default, 4 % with ours."""
    edm = SigmaDistribution(mean=-1.2, std=1.2, uniform=0.0)
    draws = Draws(2, range(1000), 0, 0, TRAIN_ORDER)
    assert np.mean(edm.draw(draws, 100).numpy() < 0.01) == pytest.approx(0.0023, abs=0.0008)
    ours = np.mean(SigmaDistribution().draw(draws, 100).numpy() < 0.01)
    d = SigmaDistribution()
    expected = 0.9 * stats.norm.cdf(math.log(0.01), d.mean, d.std) + 0.1 * math.log(10) / math.log(80000)
    assert ours == pytest.approx(expected, abs=0.003)
    assert expected > 0.04
