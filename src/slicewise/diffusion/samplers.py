"""Samplers as pure functions of a denoiser, a start, a schedule and a noise source.

All take `denoise(x, sigma) -> D` with x and D (B, C, H, W) float64 and sigma a float; `x`, already at sigmas[0];
`sigmas`, a descending float64 tensor (see `schedule`); `noise(step, stream)`, standard normal of x's shape; and
`impose(x, sigma, step) -> x`, which puts known slices back at the given noise level after every update (the identity
where nothing is known). All return the clean estimate at sigma = 0. The state is float64 from end to end.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch

from slicewise.diffusion.precondition import score
from slicewise.random import CORRECTOR, PREDICTOR

Denoise = Callable[[torch.Tensor, float], torch.Tensor]
Noise = Callable[[int, int], torch.Tensor]
Impose = Callable[[torch.Tensor, float, int], torch.Tensor]


def nothing_known(x: torch.Tensor, sigma: float, step: int) -> torch.Tensor:
    """The `impose` of a sampler with no known slices."""
    return x


def _norm(x: torch.Tensor) -> torch.Tensor:
    """Euclidean norm of each sample, (B, 1, 1, 1): a volume must not depend on its batch mates."""
    found: torch.Tensor = x.flatten(1).norm(dim=1)[:, None, None, None]
    return found


def pc(
    denoise: Denoise,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    noise: Noise,
    impose: Impose = nothing_known,
    snr: float = 0.15,
    clean_mean: bool = True,
) -> torch.Tensor:
    """Predictor-corrector: Langevin corrector, then reverse diffusion, at every level (Song et al. 2021, algorithm 2;
    the paper's sampler). NFE = 2 N.

    With `clean_mean=False` the result keeps the noise of the last update, as the widely copied inpainting code does
    (it takes its mean from an already re-noised x): about sigma_min in x, 20 HU at 0.01, 2 HU at 0.001.
    """
    levels = [*sigmas.tolist(), 0.0]
    mean = x
    for step, (sigma, following) in enumerate(pairwise(levels)):
        x = impose(x, sigma, step)
        gradient = score(denoise(x, sigma), x, sigma)
        z = noise(step, CORRECTOR)
        size = 2.0 * (snr * _norm(z) / _norm(gradient)) ** 2
        x = impose(x + size * gradient + torch.sqrt(2.0 * size) * z, sigma, step)
        variance = sigma**2 - following**2
        mean = x + variance * score(denoise(x, sigma), x, sigma)
        x = mean + math.sqrt(variance) * noise(step, PREDICTOR)
    return mean if clean_mean else x


def heun(
    denoise: Denoise, x: torch.Tensor, sigmas: torch.Tensor, noise: Noise, impose: Impose = nothing_known
) -> torch.Tensor:
    """Heun's second-order method on the probability-flow ODE dx/dsigma = (x - D)/sigma (Karras et al. 2022,
    algorithm 1). Deterministic given x. NFE = 2 N - 1."""
    levels = [*sigmas.tolist(), 0.0]
    for step, (sigma, following) in enumerate(pairwise(levels)):
        x = impose(x, sigma, step)
        slope = (x - denoise(x, sigma)) / sigma
        ahead = x + (following - sigma) * slope
        if following > 0:
            ahead = impose(ahead, following, step + 1)
            slope_ahead = (ahead - denoise(ahead, following)) / following
            ahead = x + (following - sigma) * 0.5 * (slope + slope_ahead)
        x = ahead
    return x


def dpmpp_2m(
    denoise: Denoise, x: torch.Tensor, sigmas: torch.Tensor, noise: Noise, impose: Impose = nothing_known
) -> torch.Tensor:
    """DPM-Solver++(2M), multistep, data prediction (Lu et al. 2022, algorithm 2) with alpha = 1. Deterministic given
    x. NFE = N."""
    return _multistep(denoise, x, sigmas, noise, impose, fresh=False)


def dpmpp_2m_sde(
    denoise: Denoise, x: torch.Tensor, sigmas: torch.Tensor, noise: Noise, impose: Impose = nothing_known
) -> torch.Tensor:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, section 5) with alpha = 1: the reverse SDE, whose fresh noise at every
    level lets later evaluations correct what earlier ones got wrong. NFE = N."""
    return _multistep(denoise, x, sigmas, noise, impose, fresh=True)


def _multistep(
    denoise: Denoise, x: torch.Tensor, sigmas: torch.Tensor, noise: Noise, impose: Impose, fresh: bool
) -> torch.Tensor:
    levels = [*sigmas.tolist(), 0.0]
    previous: torch.Tensor | None = None
    previous_h = 0.0
    for step, (sigma, following) in enumerate(pairwise(levels)):
        x = impose(x, sigma, step)
        denoised = denoise(x, sigma)
        if following == 0:
            return denoised
        h = math.log(sigma / following)
        if previous is None:
            estimate = denoised
        else:
            r = previous_h / h
            estimate = (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * previous
        if fresh:
            added = following * math.sqrt(-math.expm1(-2 * h)) * noise(step, PREDICTOR)
            x = (following / sigma) ** 2 * x - math.expm1(-2 * h) * estimate + added
        else:
            x = (following / sigma) * x - math.expm1(-h) * estimate
        previous, previous_h = denoised, h
    return x


def nfe(sampler: str, steps: int) -> int:
    """Evaluations of the denoiser for one slice with `steps` noise levels."""
    once, twice = ("dpmpp_2m", "dpmpp_2m_sde"), ("pc", "pc_noisy")
    return {**dict.fromkeys(once, steps), **dict.fromkeys(twice, 2 * steps), "heun": 2 * steps - 1}[sampler]
