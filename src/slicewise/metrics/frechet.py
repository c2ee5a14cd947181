"""Fréchet distance between two sets of feature vectors, its uncertainty and its real-against-real floor.

d² = |m1 - m2|² + tr S1 + tr S2 - 2 tr (S1 S2)^½ for Gaussians of means m and covariances S (Dowson and Landau 1982;
Heusel et al. 2017). All in float64. The value depends on the number of samples and on the extractor: give both beside
it, and the floor at the same n.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from slicewise.metrics.estimate import Estimate, Patients, Score, bootstrap, by_patient, draw, parts


@dataclass
class Moments:
    """Mean and covariance of features that come in batches; memory does not grow with their number.

    Batches are merged by the pairwise update of Chan, Golub and LeVeque (1983), which loses no digits to a large mean.

    Attributes
    ----------
    size : length d of a feature vector.
    count : vectors so far.
    mean : float64 (d,).
    scatter : float64 (d, d), sum of outer products of deviations from the mean.
    """

    size: int
    count: int = 0
    mean: np.ndarray = field(init=False)
    scatter: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.mean = np.zeros(self.size)
        self.scatter = np.zeros((self.size, self.size))

    def add(self, features: np.ndarray) -> None:
        """Take in a batch (n, d) of any real dtype; n may be 0."""
        assert features.ndim == 2, "features must be (n, d)"
        assert features.shape[1] == self.size, "features must be (n, d)"
        if not len(features):
            return
        batch = np.asarray(features, np.float64)
        n, total = len(batch), self.count + len(batch)
        mean = batch.mean(axis=0)
        centred = batch - mean
        shift = mean - self.mean
        self.scatter += centred.T @ centred + np.outer(shift, shift) * (self.count * n / total)
        self.mean = self.mean + shift * (n / total)
        self.count = total

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance, float64 (d, d); needs two vectors."""
        assert self.count > 1, "a covariance needs two vectors"
        return self.scatter / (self.count - 1)


def frechet_distance(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """d² between two Gaussians given their means (d,) and covariances (d, d), float64.

    tr (S1 S2)^½ is the sum of square roots of the eigenvalues of S1^½ S2 S1^½, which is symmetric and positive
    semi-definite: no complex round-off and no trouble with singular covariances, as a matrix square root of S1 S2 has.
    """
    return _from_root(mean1, cov1, _root(cov1), mean2, cov2)


def _root(cov: np.ndarray) -> np.ndarray:
    """Symmetric square root of a covariance; eigenvalues below 0 are round-off and count as 0."""
    values, vectors = np.linalg.eigh(cov)
    found: np.ndarray = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    return found


def _from_root(mean1: np.ndarray, cov1: np.ndarray, root: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """d² where the root of the first covariance is known."""
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov2 @ root), 0.0)).sum()
    return float(((mean1 - mean2) ** 2).sum() + np.trace(cov1) + np.trace(cov2) - 2.0 * cross)


def frechet_of_features(a: np.ndarray, b: np.ndarray) -> float:
    """d² between the Gaussians fitted to two sets of feature vectors (n, d) and (m, d), n and m at least 2.

    Equal to `frechet_distance` of their `Moments`, but through the n x m products of centred vectors: with S1 = A'A and
    S2 = B'B, tr (S1 S2)^½ is the sum of singular values of A B'. A few dozen volumes with 1280 features take
    milliseconds this way.
    """
    return _from_products(*_products(a, b), np.arange(len(a)), np.arange(len(b)))


def frechet_score(pool: np.ndarray) -> Score:
    """`frechet_of_features` between any two parts of a pool of vectors (n, d), given by indices, from one n x n
    product: what a bootstrap over small sets needs."""
    centred = pool - pool.mean(axis=0, dtype=np.float64)
    gram = centred @ centred.T

    def score(i: np.ndarray, j: np.ndarray) -> float:
        return _from_products(gram, gram, gram, i, j)

    return score


def real_floor(pool: np.ndarray, n: int, rounds: int = 50, seed: int = 0) -> tuple[float, float]:
    """What the distance comes to between two sets of `n` real vectors each: mean and standard deviation over random
    disjoint pairs of subsets of `pool` (m, d). Needs m >= 2n: use n = m // 2 where there are fewer."""
    assert 2 <= n <= len(pool) // 2, "the floor needs two disjoint subsets of n >= 2"
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(rounds):
        order = rng.permutation(len(pool))
        values.append(frechet_of_features(pool[order[:n]], pool[order[n : 2 * n]]))
    return float(np.mean(values)), float(np.std(values))


@dataclass(frozen=True)
class SlicesEstimate:
    """Fréchet distance on all slices.

    Attributes
    ----------
    estimate : the distance; interval and floor draw patients, of whom slices are parts.
    n_real, n_synth : vectors on either side.
    components, share : the interval is taken in so many leading principal components of both sets' vectors together
        (of the real ones' alone it would not see what synthetic ones do beside them), which hold this share of their
        variance.
    """

    estimate: Estimate
    n_real: int
    n_synth: int
    components: int
    share: float


def slices_estimate(
    real: Callable[[], Iterable[np.ndarray]],
    synth: Callable[[], Iterable[np.ndarray]],
    volumes: tuple[int, int],
    size: int,
    *,
    rounds: int = 200,
    splits: int = 2,
    components: int = 64,
    level: float = 0.95,
    seed: int = 0,
    patients: Patients | None = None,
) -> SlicesEstimate:
    """Distance between all vectors of two sets of so many `volumes`, one array (n, size) each, that stream by twice.
    Without `patients` every volume is one's own.

    Memory grows with the number of volumes only by the moments of `components` numbers for each. A bootstrap over
    volumes in all 1280 or 2048 dimensions would take minutes; the leading components carry nearly all of the spread.
    """
    n_real, n_synth = volumes
    rng = np.random.default_rng(seed)
    half = min(n_real // 2, n_synth)
    groups = [by_patient(side) for side in patients or (range(n_real), range(n_synth))]
    drawn = [[*parts(rng, groups[0], half, 2), *parts(rng, groups[1], half, 1)] for _ in range(splits)]
    drawn = [split for split in drawn if min(map(len, split)) > 1]
    whole = [Moments(size), Moments(size)]
    halves = [[Moments(size) for _ in split] for split in drawn]
    for side, (rows_of, which) in enumerate(zip((real, synth), (slice(0, 2), slice(2, 3)))):
        targets = [(whole[side], np.arange(volumes[side]))]
        for moments, split in zip(halves, drawn):
            targets += zip(moments[which], split[which])
        _fill(targets, rows_of())
    value = frechet_distance(whole[0].mean, whole[0].covariance, whole[1].mean, whole[1].covariance)
    apart = whole[1].mean - whole[0].mean
    values, vectors = np.linalg.eigh((whole[0].covariance + whole[1].covariance) / 2 + np.outer(apart, apart) / 4)
    basis = vectors[:, ::-1][:, :components]
    low, high = _patient_bootstrap([real, synth], groups, basis, whole[0].mean, value, rounds, level, rng)
    floors, same = [], []
    for a, b, s in halves:
        root = _root(a.covariance)
        floors.append(_from_root(a.mean, a.covariance, root, b.mean, b.covariance))
        same.append(_from_root(a.mean, a.covariance, root, s.mean, s.covariance))
    floor, sd, at_n = (np.mean(floors), np.std(floors), np.mean(same)) if floors else (np.nan,) * 3
    share = float(values[::-1][:components].sum() / max(values.sum(), 1e-300))
    found = Estimate(value, low, high, half, float(floor), float(sd), float(at_n))
    return SlicesEstimate(found, whole[0].count, whole[1].count, min(components, size), share)


def _fill(targets: Sequence[tuple[Moments, np.ndarray]], volumes: Iterable[np.ndarray], enough: int = 1024) -> None:
    """Count every volume's vectors in the moments of each part, given by places, that it falls into, `enough` of them
    at a time: what an addition costs hardly depends on how many vectors it adds."""
    waiting: list[list[np.ndarray]] = [[] for _ in targets]

    def flush(least: int) -> None:
        for (moments, _), rows in zip(targets, waiting):
            if rows and sum(map(len, rows)) >= least:
                moments.add(np.concatenate(rows))
                rows.clear()

    for place, rows in enumerate(volumes):
        for (_, part), queue in zip(targets, waiting):
            if place in part:
                queue.append(rows)
        flush(enough)
    flush(1)


def _patient_bootstrap(
    sides: list[Callable[[], Iterable[np.ndarray]]],
    groups: list[list[np.ndarray]],
    basis: np.ndarray,
    origin: np.ndarray,
    value: float,
    rounds: int,
    level: float,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """Interval about `value` from patients drawn with replacement, on vectors projected onto `basis` (size, p); NaN
    where a side is one patient's."""
    if min(map(len, groups)) < 2:
        return np.nan, np.nan
    sums: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for rows_of in sides:
        projected = [(rows - origin) @ basis for rows in rows_of()]
        sums.append(
            (
                np.array([len(p) for p in projected], np.float64),
                np.array([p.sum(axis=0) for p in projected]),
                np.array([p.T @ p for p in projected]),
            )
        )

    def drawn(side: int) -> tuple[np.ndarray, np.ndarray]:
        counts, totals, squares = sums[side]
        times = np.bincount(draw(rng, groups[side]), minlength=len(counts)).astype(np.float64)
        n, mean = times @ counts, times @ totals / (times @ counts)
        square = np.tensordot(times, squares, 1)
        return mean, (square - n * np.outer(mean, mean)) / max(n - 1, 1)

    return bootstrap(lambda: frechet_distance(*drawn(0), *drawn(1)), value, rounds, level)


def _products(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Products of all vectors of a with those of b, of a with a, of b with b, about a common origin."""
    assert a.ndim == b.ndim == 2, "features must be (n, d) and (m, d)"
    assert a.shape[1] == b.shape[1], "features must be (n, d) and (m, d)"
    assert len(a) > 1, "a covariance needs two vectors"
    assert len(b) > 1, "a covariance needs two vectors"
    origin = np.concatenate([a, b]).mean(axis=0, dtype=np.float64)
    a, b = a - origin, b - origin
    return a @ b.T, a @ a.T, b @ b.T


def _from_products(ab: np.ndarray, aa: np.ndarray, bb: np.ndarray, i: np.ndarray, j: np.ndarray) -> float:
    """d² of the vectors i of a and j of b from their products."""
    ab, aa, bb = ab[np.ix_(i, j)], aa[np.ix_(i, i)], bb[np.ix_(j, j)]
    means = aa.mean() + bb.mean() - 2.0 * ab.mean()
    trace_a = (np.trace(aa) - aa.mean() * len(i)) / (len(i) - 1)
    trace_b = (np.trace(bb) - bb.mean() * len(j)) / (len(j) - 1)
    centred = ab - ab.mean(axis=0) - ab.mean(axis=1, keepdims=True) + ab.mean()
    cross = np.linalg.svd(centred, compute_uv=False).sum() / np.sqrt((len(i) - 1) * (len(j) - 1))
    return float(means + trace_a + trace_b - 2.0 * cross)
