"""The statistics of a reading study. Cases are the units: ratings of one case by several readers are not independent.

Every function takes plain arrays and knows no study.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import optimize, stats

from slicewise.metrics.estimate import percentiles

NAN = math.nan


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence limits; NaN where there is too little to say."""

    value: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Difference:
    """Mean of synthetic minus mean of real cases.

    Attributes
    ----------
    fixed : for these readers: cases are drawn from all cases, the readers are the ones there are.
    p : one-sided P of the non-inferiority test for these readers; small means not worse by the margin.
    at_large : for readers like these: readers are drawn from all readers, too. NaN with one reader.
    p_at_large : its P.
    """

    fixed: Interval
    p: float
    at_large: Interval
    p_at_large: float


def student_interval(values: np.ndarray, low: float, high: float, level: float = 0.95) -> Interval:
    """Mean of independent values on a scale [low, high] with Student's t interval, clipped to the scale.

    Where all n values are one, t would claim certainty. Then: a share q of all cases that lies elsewhere escapes n
    draws with probability (1 - q)^n, so q <= 1 - (alpha/2)^(1/n), and each moves the mean by high - low at most.
    """
    values = values[np.isfinite(values)]
    n = len(values)
    if n < 2:
        return Interval(float(values[0]) if n else NAN, NAN, NAN)
    mean, sd = float(values.mean()), float(values.std(ddof=1))
    if _constant(values):
        half = (high - low) * (1 - ((1 - level) / 2) ** (1 / n))
    else:
        half = float(stats.t.ppf((1 + level) / 2, n - 1)) * sd / math.sqrt(n)
    return Interval(mean, max(low, mean - half), min(high, mean + half))


def difference(
    real: np.ndarray, synthetic: np.ndarray, margin: float, low: float, high: float, level: float = 0.95
) -> Difference:
    """Compare ratings of real and synthetic cases, float (readers, cases) each, NaN where there is no rating.

    For these readers: Welch's t on the means of cases over readers; where one kind's means are all one, the limits of
    both kinds are combined (MOVER, Zou and Donner 2008) with `student_interval`'s bound. For readers at large:
    Obuchowski and Rockette's method with Hillis's degrees of freedom, on the cases that all readers rated.
    Non-inferiority: H0 difference <= -margin, one-sided.
    """
    r, s = _case_means(real), _case_means(synthetic)
    fixed, p = _welch(r, s, margin, low, high, level)
    full_r, full_s = (k[:, np.isfinite(k).all(axis=0)] for k in (real, synthetic))
    if len(real) < 2 or min(full_r.shape[1], full_s.shape[1]) < 2:
        return Difference(fixed, p, Interval(NAN, NAN, NAN), NAN)
    theta = full_s.mean(axis=1) - full_r.mean(axis=1)
    covariance = np.cov(full_r) / full_r.shape[1] + np.cov(full_s) / full_s.shape[1]
    at_large, p_large = readers_at_large(theta, covariance, level, null=-margin)
    return Difference(fixed, p, at_large, p_large)


def readers_at_large(
    theta: np.ndarray, covariance: np.ndarray, level: float = 0.95, null: float = 0.0
) -> tuple[Interval, float]:
    """Mean of a figure over readers drawn at random, who all read the same cases; and one-sided P of mean > null.

    `theta` float (R,), one a reader; `covariance` (R, R) of theta that comes from the cases. With S2 the variance of
    theta between readers and c the mean covariance, Var = S2/R + max(c, 0), and degrees of freedom
    (S2 + R max(c, 0))^2 / (S2^2 / (R - 1)) (Obuchowski and Rockette 1995, Hillis 2007).
    """
    readers = len(theta)
    mean, s2 = float(theta.mean()), float(theta.var(ddof=1))
    shared = max(float((covariance.sum() - np.trace(covariance)) / (readers * (readers - 1))), 0.0)
    variance = s2 / readers + shared
    if variance <= 0:
        return Interval(mean, NAN, NAN), NAN
    freedom = (s2 + readers * shared) ** 2 / (s2**2 / (readers - 1)) if s2 > 0 else math.inf
    t = stats.t(freedom) if math.isfinite(freedom) else stats.norm()
    half = float(t.ppf((1 + level) / 2)) * math.sqrt(variance)
    return Interval(mean, mean - half, mean + half), float(t.sf((mean - null) / math.sqrt(variance)))


def holm(p: Sequence[float]) -> list[float]:
    """P values adjusted for their number (Holm 1979); NaN stays NaN and does not count."""
    adjusted = [NAN] * len(p)
    known = sorted((value, i) for i, value in enumerate(p) if math.isfinite(value))
    worst = 0.0
    for rank, (value, i) in enumerate(known):
        worst = max(worst, min(1.0, (len(known) - rank) * value))
        adjusted[i] = worst
    return adjusted


def confusion(first: np.ndarray, second: np.ndarray, categories: Sequence[float]) -> np.ndarray:
    """Counts (k, k) of pairs of ratings, int; pairs with a rating outside the categories (or NaN) are left out."""
    table = np.zeros((len(categories), len(categories)), int)
    for i, a in enumerate(categories):
        for j, b in enumerate(categories):
            table[i, j] = np.count_nonzero((first == a) & (second == b))
    return table


def weighted_kappa(tables: np.ndarray, weights: Literal["linear", "quadratic"] = "linear") -> np.ndarray:
    """Cohen's weighted kappa 1 - sum(w o)/sum(w e) of counts (..., k, k), float (...), w = |i - j| or its square; NaN
    where no disagreement could be expected (both always say the same one thing)."""
    k = tables.shape[-1]
    distance = np.abs(np.subtract.outer(np.arange(k), np.arange(k))).astype(float)
    w = distance if weights == "linear" else distance**2
    rows, columns = tables.sum(axis=-1), tables.sum(axis=-2)
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = rows[..., :, None] * columns[..., None, :] / tables.sum(axis=(-2, -1))[..., None, None]
        chance = (w * expected).sum(axis=(-2, -1))
        return np.where(chance > 0, 1.0 - (w * tables).sum(axis=(-2, -1)) / chance, NAN)


def agreement_share(table: np.ndarray) -> float:
    """Share of pairs that agree exactly; NaN without pairs."""
    return float(np.trace(table) / table.sum()) if table.sum() else NAN


def case_interval(
    figure: Callable[[np.ndarray], float], cases: int, level: float = 0.95, draws: int = 1000, seed: int = 0
) -> Interval:
    """A figure of cases with the percentile interval over cases drawn again with replacement.

    `figure` takes indices of cases (repeats count as often as they come). Draws without a value are left out.
    """
    value = figure(np.arange(cases))
    if cases < 2 or not math.isfinite(value):
        return Interval(value, NAN, NAN)
    rng = np.random.default_rng(seed)
    drawn = np.array([figure(rng.integers(0, cases, cases)) for _ in range(draws)])
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) < draws / 2:
        return Interval(value, NAN, NAN)
    lower, upper = percentiles(drawn, level)
    return Interval(value, float(lower), float(upper))


def auc(real: np.ndarray, synthetic: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Areas under the ROC of several readers and their covariance (DeLong et al. 1988).

    Scores float (readers, cases), higher for what looks synthetic. Returns areas (R,) and covariance (R, R); NaN where
    a kind has fewer than two cases.
    """
    readers, m, n = len(real), real.shape[1], synthetic.shape[1]
    if min(m, n) < 2:
        return np.full(readers, NAN), np.full((readers, readers), NAN)
    wins = [np.sign(np.subtract.outer(s, r)) / 2 + 0.5 for r, s in zip(real, synthetic)]
    by_synthetic = np.array([w.mean(axis=1) for w in wins])
    by_real = np.array([w.mean(axis=0) for w in wins])
    covariance = np.atleast_2d(np.cov(by_synthetic)) / n + np.atleast_2d(np.cov(by_real)) / m
    return by_synthetic.mean(axis=1), covariance


def auc_interval(area: float, variance: float, real: int, synthetic: int, level: float = 0.95) -> Interval:
    """An area with its interval on the logit scale; at 0 and 1, where that has none, Newcombe's method 5 (2006)."""
    if not math.isfinite(area):
        return Interval(NAN, NAN, NAN)
    z = float(stats.norm.ppf((1 + level) / 2))
    if 0 < area < 1 and variance > 0:
        logit, half = math.log(area / (1 - area)), z * math.sqrt(variance) / (area * (1 - area))
        return Interval(area, _expit(logit - half), _expit(logit + half))
    more = (real + synthetic) / 2 - 1

    def excess(x: float) -> float:
        spread = x * (1 - x) / (real * synthetic) * (1 + more * ((1 - x) / (2 - x) + x / (1 + x)))
        return (area - x) ** 2 - z**2 * spread

    tiny = 1e-12
    lower = (
        optimize.brentq(excess, tiny, area - tiny) if area > tiny and excess(tiny) > 0 > excess(area - tiny) else 0.0
    )
    over = area < 1 - tiny and excess(1 - tiny) > 0 > excess(area + tiny)
    upper = optimize.brentq(excess, area + tiny, 1 - tiny) if over else 1.0
    return Interval(area, float(lower), float(upper))


def roc(real: np.ndarray, synthetic: np.ndarray, thresholds: Sequence[float]) -> list[tuple[float, float]]:
    """Points (share of real called synthetic, share of synthetic called so) from (0, 0) to (1, 1)."""
    points = [(float((real >= t).mean()), float((synthetic >= t).mean())) for t in sorted(thresholds, reverse=True)]
    return [(0.0, 0.0), *points, (1.0, 1.0)]


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """A share with Wilson's score interval."""
    if n == 0:
        return Interval(NAN, NAN, NAN)
    z = float(stats.norm.ppf((1 + level) / 2))
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(p, max(0.0, centre - half), min(1.0, centre + half))


def _case_means(ratings: np.ndarray) -> np.ndarray:
    """Mean over readers of every case that anyone rated, float (n,)."""
    counts = np.isfinite(ratings).sum(axis=0)
    sums = np.nansum(ratings, axis=0)
    found: np.ndarray = sums[counts > 0] / counts[counts > 0]
    return found


def _welch(
    r: np.ndarray, s: np.ndarray, margin: float, low: float, high: float, level: float
) -> tuple[Interval, float]:
    if min(len(r), len(s)) < 2:
        return Interval(float(s.mean() - r.mean()) if len(r) and len(s) else NAN, NAN, NAN), NAN
    d = float(s.mean() - r.mean())
    if _constant(r) or _constant(s):

        def lower(at: float) -> float:
            a, b = student_interval(s, low, high, at), student_interval(r, low, high, at)
            return d - math.hypot(a.value - a.lower, b.upper - b.value)

        a, b = student_interval(s, low, high, level), student_interval(r, low, high, level)
        fixed = Interval(d, lower(level), d + math.hypot(a.upper - a.value, b.value - b.lower))
        return fixed, _invert(lambda alpha: lower(1 - 2 * alpha) + margin)
    v_r, v_s = r.var(ddof=1) / len(r), s.var(ddof=1) / len(s)
    freedom = (v_r + v_s) ** 2 / (v_r**2 / (len(r) - 1) + v_s**2 / (len(s) - 1))
    error = math.sqrt(v_r + v_s)
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * error
    return Interval(d, d - half, d + half), float(stats.t.sf((d + margin) / error, freedom))


def _invert(distance: Callable[[float], float]) -> float:
    """P: the least alpha at which the lower limit passes the margin (`distance` >= 0); 1 where none below one half
    does, 0 where all do."""
    tiny = 1e-12
    if distance(0.5 - tiny) <= 0:
        return 1.0
    return 0.0 if distance(tiny) > 0 else float(optimize.brentq(distance, tiny, 0.5 - tiny))


def _constant(values: np.ndarray) -> bool:
    """Means over readers that are equal may differ in the last place."""
    return float(np.ptp(values)) < 1e-9


def _expit(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0
