"""Precision, recall, density and coverage: fidelity and diversity apart, from nearest neighbours in feature space.

Precision and recall after Kynkäänniemi et al. (2019), density and coverage after Naeem et al. (2020). The manifold of a
set is the union of balls about its points, each reaching to the point's k-th nearest neighbour in its own set.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from slicewise.metrics.estimate import Estimate, Patients, estimate, mean_interval

MEASURES = ("precision", "recall", "density", "coverage")


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances of features (n, d) and (m, d), float64 (n, m), about a common origin so that no digits are
    lost to a large mean."""
    origin = b.mean(axis=0, dtype=np.float64)
    a, b = a - origin, b - origin
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2.0 * a @ b.T
    found: np.ndarray = np.sqrt(np.maximum(squares, 0.0))
    return found


def point_scores(between: np.ndarray, real: np.ndarray, synth: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """What each point adds to the four measures, which are the means of these.

    `between`: distances in a pool, (n, n); `real`, `synth`: indices of the two sets in it, each once, more than k.
    precision and density have a value a synthetic point, recall and coverage one a real point.
    """
    assert len(real) > k, "the k-th neighbour needs more than k points"
    assert len(synth) > k, "the k-th neighbour needs more than k points"
    cross = between[np.ix_(real, synth)]
    real_reach = np.sort(between[np.ix_(real, real)], axis=1)[:, k]  # column 0 is the point itself
    synth_reach = np.sort(between[np.ix_(synth, synth)], axis=1)[:, k]
    in_real = cross <= real_reach[:, None]
    in_synth = cross <= synth_reach[None]
    return {
        "precision": in_real.any(axis=0).astype(float),
        "recall": in_synth.any(axis=1).astype(float),
        "density": in_real.sum(axis=0) / k,
        "coverage": (cross.min(axis=1) <= real_reach).astype(float),
    }


def manifold_estimates(
    real: np.ndarray, synth: np.ndarray, k: int = 5, seed: int = 0, patients: Patients | None = None
) -> dict[str, Estimate]:
    """The four measures of synthetic against real features (n, d), (m, d), with interval and floor (two halves of the
    real set: what a perfect generator reaches, 1 at most for all but density).

    Intervals draw the patients whose points are judged (every point one's own without `patients`); the manifolds they
    are judged by stay as they are, since a point drawn twice is its own neighbour at distance 0. `k` is lowered where
    half the real set has no more points than that.
    """
    pool = np.concatenate([real, synth])
    between = distances(pool, pool)
    k = neighbours(len(real), len(synth), k)
    everything = point_scores(between, np.arange(len(real)), len(real) + np.arange(len(synth)), k)
    whose = patients or (range(len(real)), range(len(synth)))

    def score(name: str, i: np.ndarray, j: np.ndarray) -> float:
        return float(point_scores(between, i, j, k)[name].mean())

    def interval(name: str) -> Callable[[np.random.Generator], tuple[float, float]]:
        judged = whose[0 if name in ("recall", "coverage") else 1]
        return lambda rng: mean_interval(everything[name], rng, patients=judged)

    return {
        name: estimate(
            partial(score, name), *map(len, whose), seed=seed, interval=interval(name), patients=whose, fewest=k + 1
        )
        for name in MEASURES
    }


def neighbours(n_real: int, n_synth: int, k: int = 5) -> int:
    """The number of neighbours that the sizes allow, at most `k`."""
    return max(1, min(k, n_real // 2 - 1, n_synth - 1))
