"""A distance between two sets of volumes, never alone: its bootstrap interval and its real-against-real floor.

A score is a function of two index arrays into one pool that holds the real volumes first, then the synthetic ones.
Volumes are what is drawn, never slices: slices of one volume are no independent samples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Score = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class Estimate:
    """A distance of the synthetic set from the real one.

    Attributes
    ----------
    value : on all volumes.
    low, high : bootstrap interval of `value`; NaN where there is none.
    floor_n : volumes on either side of the floor.
    floor, floor_sd : the same distance between two disjoint halves of the real set, mean and standard deviation over
        random halves.
    same_n : the distance of `floor_n` synthetic from `floor_n` real volumes, mean over random draws: what `floor` is to
        be compared with, since such distances grow as n falls.
    """

    value: float
    low: float
    high: float
    floor_n: int
    floor: float
    floor_sd: float
    same_n: float


def estimate(
    score: Score,
    n_real: int,
    n_synth: int,
    *,
    rounds: int = 200,
    splits: int = 20,
    level: float = 0.95,
    seed: int = 0,
    least: float = -np.inf,
    interval: Callable[[np.random.Generator], tuple[float, float]] | None = None,
) -> Estimate:
    """Score of real volumes 0 … n_real - 1 against synthetic ones n_real … n_real + n_synth - 1, with all that belongs
    to it. `interval` replaces the bootstrap for scores that must not see a volume twice; `least` is what no score
    falls below.

    Draws repeat volumes, which by itself moves a distance; the quantiles are shifted by the difference between the
    draws' mean and the value, so that the interval lies about the value. NaN where fewer than four real volumes (or
    fewer than two synthetic ones) leave no halves.
    """
    real, synth = np.arange(n_real), n_real + np.arange(n_synth)
    rng = np.random.default_rng(seed)
    value = score(real, synth)
    if interval is not None:
        low, high = interval(rng)
    else:
        low, high = bootstrap(lambda: score(_draw(rng, real), _draw(rng, synth)), value, rounds, level)
        low = max(low, least)
    half = min(n_real // 2, n_synth)
    if half < 2:
        return Estimate(value, low, high, half, np.nan, np.nan, np.nan)
    floors, same = [], []
    for _ in range(splits):
        order = rng.permutation(real)
        floors.append(score(order[:half], order[half : 2 * half]))
        same.append(score(order[:half], rng.permutation(synth)[:half]))
    return Estimate(value, low, high, half, float(np.mean(floors)), float(np.std(floors)), float(np.mean(same)))


def bootstrap(draw: Callable[[], float], value: float, rounds: int = 200, level: float = 0.95) -> tuple[float, float]:
    """Interval about `value` from repeated draws, whose own bias is taken off."""
    draws = np.array([draw() for _ in range(rounds)])
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]) - draws.mean()
    return value + float(low), value + float(high)


def mean_interval(
    values: np.ndarray, rng: np.random.Generator, rounds: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Bootstrap interval of the mean of independent values, float64 (n,)."""
    values = np.asarray(values, np.float64)
    means = values[rng.integers(0, len(values), (rounds, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def difference_interval(
    real: Sequence[np.ndarray], synth: Sequence[np.ndarray], rng: np.random.Generator, rounds: int = 1000
) -> tuple[float, float, float]:
    """Mean over all synthetic values less mean over all real ones, and its 95 % bootstrap interval; the values come as
    one array a volume, and volumes are drawn."""
    sums = [np.array([(v.sum(), v.size) for v in side], np.float64) for side in (real, synth)]

    def mean(side: np.ndarray) -> np.ndarray:
        return side[..., 0].sum(-1) / side[..., 1].sum(-1)

    drawn = [side[rng.integers(0, len(side), (rounds, len(side)))] for side in sums]
    low, high = np.quantile(mean(drawn[1]) - mean(drawn[0]), [0.025, 0.975])
    return float(mean(sums[1]) - mean(sums[0])), float(low), float(high)


def _draw(rng: np.random.Generator, which: np.ndarray) -> np.ndarray:
    """As many, with replacement, but never one volume alone: a covariance of copies is none."""
    while True:
        drawn = which[rng.integers(0, len(which), len(which))]
        if len(which) < 2 or (drawn != drawn[0]).any():
            return drawn
