"""Moving averages of a network's weights, and averages of any length made from two of them after training.

Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models", section 3 and appendix C.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch

# Relative widths of the two averages that are kept, and of those that are tried at the end, the likeliest first; 0 are
# the last weights as they are.
KEPT = (0.05, 0.10)
TRIED = (0.05, 0.10, 0.03, 0.14, 0.02, 0.07, 0.20, 0.01, 0.25, 0.0)
# Optimiser steps between updates of the averages: weights hardly move meanwhile, and it saves memory's time.
EVERY = 4

# Share of the old average that an update keeps, by the steps done before it and after it.
Keep = Callable[[int, int], float]


class EMA:
    """Averages of the same parameters under several profiles, in float32.

    Parameters
    ----------
    parameters : what is averaged.
    profiles : one average each.
    """

    def __init__(self, parameters: Iterable[torch.Tensor], profiles: Sequence[Keep]) -> None:
        parameters = list(parameters)
        self.profiles = tuple(profiles)
        self.averages = [[p.detach().clone() for p in parameters] for _ in profiles]

    @torch.no_grad()
    def update(self, parameters: Iterable[torch.Tensor], before: int, done: int) -> None:
        """Take in the weights after step `done`; the last update was after step `before`."""
        now = [p.detach() for p in parameters]
        for keep, averages in zip(self.profiles, self.averages):
            torch._foreach_lerp_(averages, now, 1.0 - keep(before, done))


@torch.no_grad()
def swap(parameters: Iterable[torch.Tensor], others: Iterable[torch.Tensor]) -> None:
    """Exchange parameters and other tensors of their shapes in place; a second call undoes it."""
    for parameter, other in zip(parameters, others):
        kept = parameter.detach().clone()
        parameter.copy_(other)
        other.copy_(kept)


def exponential(half_life: float) -> Keep:
    """Halves what is older every `half_life` steps, but is short at the start, so that early averages are not dominated
    by the random initial weights."""
    return lambda before, done: min(0.5 ** ((done - before) / half_life), (before / done) ** 9)


def power(sigma_rel: float) -> Keep:
    """The average with weights proportional to t^gamma, whose standard deviation is `sigma_rel` of the training so far:
    it forgets the start at the same relative rate however long training is (equation 7)."""
    gamma = exponent(sigma_rel)
    return lambda before, done: (before / done) ** (gamma + 1.0)


def exponent(sigma_rel: float) -> float:
    """gamma of a power profile of relative width `sigma_rel`, 0 < sigma_rel < 0.2886: the positive root of
    (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) = sigma_rel^2 (equation 8)."""
    assert 0 < sigma_rel < math.sqrt(1 / 12)
    target = sigma_rel**-2
    # (g + 2)^2 (g + 3) = target (g + 1)
    roots = np.roots([1.0, 7.0, 16.0 - target, 12.0 - target])
    return float(max(roots.real))


def weights_of_snapshots(steps: Sequence[int], widths: Sequence[float], step: int, sigma_rel: float) -> np.ndarray:
    """Weights (N,) float64 with which snapshots of power averages, taken after `steps` with relative `widths`, add up
    to the average of relative width `sigma_rel` after `step`: least squares of their profiles in time (algorithm 3),
    brought to a sum of one, so that few snapshots do not shrink what never changed."""
    t, gamma = np.array(steps, np.float64), np.array([exponent(width) for width in widths])
    wanted_t, wanted = np.array([step], np.float64), np.array([exponent(sigma_rel)])
    gram = _inner(t[:, None], gamma[:, None], t[None], gamma[None])
    right = _inner(t[:, None], gamma[:, None], wanted_t[None], wanted[None])[:, 0]
    weights = np.linalg.lstsq(gram, right, rcond=1e-10)[0]
    found: np.ndarray = weights / weights.sum()
    return found


def _inner(t_a: np.ndarray, gamma_a: np.ndarray, t_b: np.ndarray, gamma_b: np.ndarray) -> np.ndarray:
    """Integral over time of the product of two profiles (gamma + 1) tau^gamma / t^(gamma + 1), tau in [0, t]."""
    total = gamma_a + gamma_b + 1.0
    logs = total * np.log(np.minimum(t_a, t_b)) - (gamma_a + 1) * np.log(t_a) - (gamma_b + 1) * np.log(t_b)
    found: np.ndarray = (gamma_a + 1) * (gamma_b + 1) / total * np.exp(logs)
    return found
