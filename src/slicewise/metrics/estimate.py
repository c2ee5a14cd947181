"""A distance between two sets of volumes, never alone: its bootstrap interval and its real-against-real floor.

A score is a function of two index arrays into one pool that holds the real volumes first, then the synthetic ones.
What is drawn is patients with all their volumes, never slices: slices of one volume, and two scans of one head, are no
independent samples.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

Score = Callable[[np.ndarray, np.ndarray], float]
# Whose each real and each synthetic volume is.
Patients = tuple[Sequence[Hashable], Sequence[Hashable]]


@dataclass(frozen=True)
class Estimate:
    """A distance of the synthetic set from the real one.

    Attributes
    ----------
    value : on all volumes.
    low, high : bootstrap interval of `value`; NaN where there is none.
    floor_n : volumes on either side of the floor; a few less where a patient's do not fit in.
    floor, floor_sd : the same distance between two disjoint halves of the real set, no patient in both, mean and
        standard deviation over random halves.
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
    patients: Patients | None = None,
    fewest: int = 2,
) -> Estimate:
    """Score of real volumes 0 … n_real - 1 against synthetic ones n_real … n_real + n_synth - 1, with all that belongs
    to it. `interval` replaces the bootstrap for scores that must not see a volume twice; `least` is what no score
    falls below; without `patients` every volume is one's own. The score needs `fewest` volumes a side.

    Draws repeat volumes, which by itself moves a distance; the quantiles are shifted by the difference between the
    draws' mean and the value, so that the interval lies about the value. NaN where fewer than four real volumes (or
    fewer than two synthetic ones), or too few patients, leave no halves; no interval for a single patient's.
    """
    real, synth = (by_patient(side) for side in patients or (range(n_real), range(n_synth)))
    synth = [n_real + group for group in synth]
    rng = np.random.default_rng(seed)
    value = score(np.arange(n_real), n_real + np.arange(n_synth))
    if interval is not None:
        low, high = interval(rng)
    elif min(len(real), len(synth)) < 2:
        low, high = np.nan, np.nan
    else:
        low, high = bootstrap(lambda: score(_draw_several(rng, real), _draw_several(rng, synth)), value, rounds, level)
        low = max(low, least)
    half = min(n_real // 2, n_synth)
    floors, same = [], []
    for _ in range(splits if half > 1 else 0):
        (a, b), (s,) = parts(rng, real, half, 2), parts(rng, synth, half, 1)
        if min(len(a), len(b), len(s)) >= fewest:
            floors.append(score(a, b))
            same.append(score(a, s))
    floor, sd, at_n = (np.mean(floors), np.std(floors), np.mean(same)) if floors else (np.nan,) * 3
    return Estimate(value, low, high, half, float(floor), float(sd), float(at_n))


def by_patient(patients: Sequence[Hashable]) -> list[np.ndarray]:
    """The places of each patient's volumes, patients in the order of their first."""
    groups: dict[Hashable, list[int]] = {}
    for place, patient in enumerate(patients):
        groups.setdefault(patient, []).append(place)
    return [np.array(places) for places in groups.values()]


def draw(rng: np.random.Generator, groups: Sequence[np.ndarray]) -> np.ndarray:
    """The volumes of as many patients as there are, drawn with replacement."""
    return np.concatenate([groups[k] for k in rng.integers(0, len(groups), len(groups))])


def parts(rng: np.random.Generator, groups: Sequence[np.ndarray], size: int, count: int) -> list[np.ndarray]:
    """Random disjoint parts of at most `size` volumes, no patient in two: each goes where first there is room for all
    of theirs."""
    found: list[list[int]] = [[] for _ in range(count)]
    for k in rng.permutation(len(groups)):
        room = (part for part in found if len(part) + len(groups[k]) <= size)
        next(room, []).extend(groups[k])
    return [np.array(part, int) for part in found]


def bootstrap(draw: Callable[[], float], value: float, rounds: int = 200, level: float = 0.95) -> tuple[float, float]:
    """Interval about `value`, a distance, from repeated draws, whose own bias is taken off: sets in which volumes come
    twice lie further apart. What is not moved by that (means, ratios, kappa) takes `percentiles` of its draws."""
    draws = np.array([draw() for _ in range(rounds)])
    low, high = percentiles(draws, level) - draws.mean()
    return value + float(low), value + float(high)


def percentiles(draws: Sequence[float] | np.ndarray, level: float = 0.95) -> np.ndarray:
    """Between which two values the middle `level` of bootstrap draws lies, float64 (2,)."""
    found: np.ndarray = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return found


def mean_interval(
    values: np.ndarray,
    rng: np.random.Generator,
    rounds: int = 1000,
    level: float = 0.95,
    patients: Sequence[Hashable] | None = None,
) -> tuple[float, float]:
    """Bootstrap interval of the mean of values, float64 (n,), each one's own unless `patients` says whose they are;
    NaN for one patient's."""
    sums = _sums([np.atleast_1d(v) for v in values], patients)
    if len(sums) < 2:
        return np.nan, np.nan
    low, high = percentiles(_drawn_means(sums, rng, rounds), level)
    return float(low), float(high)


def difference_interval(
    real: Sequence[np.ndarray],
    synth: Sequence[np.ndarray],
    rng: np.random.Generator,
    rounds: int = 1000,
    patients: Patients | None = None,
) -> tuple[float, float, float]:
    """Mean over all synthetic values less mean over all real ones, and its 95 % bootstrap interval (NaN where a side
    is one patient's); the values come as one array a volume, and patients are drawn."""
    sums = [_sums(side, whose) for side, whose in zip((real, synth), patients or (None, None))]
    means = [s[:, 0].sum() / s[:, 1].sum() for s in sums]
    low = high = np.nan
    if min(map(len, sums)) > 1:
        drawn = [_drawn_means(s, rng, rounds) for s in sums]
        low, high = percentiles(drawn[1] - drawn[0])
    return float(means[1] - means[0]), float(low), float(high)


def _sums(values: Sequence[np.ndarray], patients: Sequence[Hashable] | None) -> np.ndarray:
    """Sum and number of each patient's values, float64 (patients, 2)."""
    each = np.array([(v.sum(dtype=np.float64), v.size) for v in values], np.float64)
    return each if patients is None else np.array([each[group].sum(axis=0) for group in by_patient(patients)])


def _drawn_means(sums: np.ndarray, rng: np.random.Generator, rounds: int) -> np.ndarray:
    """Means over the values of patients drawn with replacement, (rounds,)."""
    drawn = sums[rng.integers(0, len(sums), (rounds, len(sums)))].sum(axis=1)
    found: np.ndarray = drawn[:, 0] / drawn[:, 1]
    return found


def _draw_several(rng: np.random.Generator, groups: Sequence[np.ndarray]) -> np.ndarray:
    """As `draw`, but never one volume alone: a covariance of copies is none."""
    while True:
        drawn = draw(rng, groups)
        if (drawn != drawn[0]).any():
            return drawn
