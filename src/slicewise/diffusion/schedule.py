"""Noise levels: the paper's geometric VE schedule, the EDM spacing, and the distribution to train on.

A schedule is a float64 tensor of descending sigmas, ending at sigma_min. Samplers add the last step to sigma = 0.
"""

import torch

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
    found: torch.Tensor = (sigma_max ** (1 / rho) + t * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return found


def last_diffusion_step(sigmas: torch.Tensor) -> float:
    """sqrt(sigma_1^2 - sigma_0^2) of the two smallest levels: the noise that the last reverse step moves, in units of
    x. The paper compares it with one HU = 4.9e-4: 0.00017 for sigma_min = 0.001, 0.00155 for 0.01, at N = 1000."""
    return float(torch.sqrt(sigmas[-2] ** 2 - sigmas[-1] ** 2))
