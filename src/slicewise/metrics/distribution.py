"""How far two distributions of HU, of noise or of anything measured a volume lie apart."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import wasserstein_distance

from slicewise.metrics.estimate import Score

# Frequencies at which noise-power spectra are compared, 1/mm.
FREQUENCIES = np.arange(0.02, 0.26, 0.01)


def histogram_distance(a: np.ndarray, b: np.ndarray, edges: np.ndarray) -> float:
    """Wasserstein-1 distance of two histograms, in the unit of `edges` (HU): the area between their cumulative
    distributions, exact to half a bin. Each is normalised; NaN where one is empty."""
    if a.sum() <= 0 or b.sum() <= 0:
        return float("nan")
    gap = np.cumsum(a / a.sum() - b / b.sum())
    return float(np.abs(gap[:-1]) @ np.diff((edges[1:] + edges[:-1]) / 2))


def histogram_score(histograms: np.ndarray, edges: np.ndarray) -> Score:
    """`histogram_distance` of the mean histograms of any two parts of a pool (volumes, bins)."""

    def score(i: np.ndarray, j: np.ndarray) -> float:
        return histogram_distance(histograms[i].sum(axis=0), histograms[j].sum(axis=0), edges)

    return score


def sample_score(values: Sequence[np.ndarray]) -> Score:
    """Wasserstein-1 distance between all values of any two parts of a pool, given one array a volume."""

    def score(i: np.ndarray, j: np.ndarray) -> float:
        a, b = (np.concatenate([values[k] for k in part]) for part in (i, j))
        return float(wasserstein_distance(a, b))

    return score


def spectrum_score(spectra: np.ndarray) -> Score:
    """Distance of the mean noise-power spectra of any two parts of a pool (volumes, frequencies), the first being the
    reference: the area between them over the frequency plane, as a share of the reference's noise power,
    Σ |S₂ - S₁| f / Σ S₁ f. 0 where they are equal; noise twice as strong throughout gives 3 (power)."""

    def score(i: np.ndarray, j: np.ndarray) -> float:
        first, second = spectra[i].mean(axis=0), spectra[j].mean(axis=0)
        return float(np.abs(second - first) @ FREQUENCIES / (first @ FREQUENCIES))

    return score
