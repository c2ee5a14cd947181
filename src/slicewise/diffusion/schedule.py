"""Noise levels: the paper's geometric VE schedule, the EDM spacing, and the distribution to train on.

A schedule is a float64 tensor of descending sigmas, ending at sigma_min. Samplers add the last step to sigma = 0.
"""

import math
from dataclasses import dataclass

import torch

from slicewise.random import Draws

# The paper's four schedules (sigma_min, sigma_max): Fig. 1.
PAPER_SCHEDULES = ((0.01, 68.0), (0.001, 68.0), (0.01, 1348.0), (0.001, 1348.0))


def sigma_at(t: torch.Tensor, sigma_min: float, sigma_max: float) -> torch.Tensor:
    """sigma(t) = sigma_min (sigma_max/sigma_min)^t, t in [0, 1] (Song et al. 2021, VE-SDE)."""
    return sigma_min * (sigma_max / sigma_min) ** t.double()


def geometric(steps: int, sigma_min: float, sigma_max: float) -> torch.Tensor:
    """`steps` geometrically spaced sigmas from sigma_max down to sigma_min, float64 (the paper's N scales)."""
    return sigma_at(torch.linspace(1.0, 0.0, steps, dtype=torch.float64), sigma_min, sigma_max)


def karras(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> torch.Tensor:
    """Sigmas evenly spaced in sigma^(1/rho), descending, float64 (Karras et al. 2022, eq. 5)."""
    t = torch.linspace(0.0, 1.0, steps, dtype=torch.float64)
    return (sigma_max ** (1 / rho) + t * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho


def last_diffusion_step(sigmas: torch.Tensor) -> float:
    """sqrt(sigma_1^2 - sigma_0^2) of the two smallest levels: the noise that the last reverse step moves, in units of
    x. The paper compares it with one HU = 4.9e-4: 0.00017 for sigma_min = 0.001, 0.00155 for 0.01, at N = 1000."""
    return float(torch.sqrt(sigmas[-2] ** 2 - sigmas[-1] ** 2))


@dataclass(frozen=True)
class SigmaDistribution:
    """Which noise levels training draws.

    ln sigma ~ N(mean, std^2), but a `uniform` share of draws is log-uniform over [sigma_min, sigma_max], so that no
    level is ever starved; all are clipped to that range. The EDM default (-1.2, 1.2) draws sigma < 0.01, which is 20
    HU of the linear range, 0.2 % of the time; these draw it 4 %.

    Attributes
    ----------
    mean : of ln sigma.
    std : standard deviation of ln sigma.
    uniform : share of log-uniform draws.
    sigma_min : lowest level, in units of x.
    sigma_max : highest level, in units of x.
    """

    mean: float = -1.2
    std: float = 2.0
    uniform: float = 0.1
    sigma_min: float = 0.001
    sigma_max: float = 80.0

    def draw(self, draws: Draws, count: int) -> torch.Tensor:
        """Independent sigmas of every sample, (B, count) float64."""
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        normal = draws.normal(count).double() * self.std + self.mean
        flat = low + (high - low) * draws.uniform(count).double()
        chosen = torch.where(draws.uniform(count) < self.uniform, flat, normal)
        return chosen.clamp(low, high).exp()
