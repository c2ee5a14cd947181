"""Maximum mean discrepancy: KID on features, and bMMD² on voxels as the field reports it.

MMD² = E k(x, x') + E k(y, y') - 2 E k(x, y) (Gretton et al. 2012). The unbiased form leaves a sample's product with
itself out; the biased form keeps it, so that its expectation holds (tr S_x + tr S_y)/B for a linear kernel and batches
of B: it rewards a generator that has collapsed. It is here for comparison with other people's numbers only.
"""

import numpy as np

from slicewise.metrics.estimate import Score


def mmd2(xx: np.ndarray, yy: np.ndarray, xy: np.ndarray, unbiased: bool) -> float:
    """MMD² from kernel matrices of x with x (n, n), y with y (m, m) and x with y (n, m); unbiased needs n, m > 1."""

    def within(k: np.ndarray) -> float:
        n = len(k)
        found: float = (k.sum() - np.trace(k)) / (n * (n - 1)) if unbiased else k.mean()
        return found

    return float(within(xx) + within(yy) - 2.0 * xy.mean())


def polynomial_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(x·y/d + 1)³ of feature vectors (n, d) and (m, d), float64 (n, m) (Bińkowski et al. 2018)."""
    found: np.ndarray = (x.astype(np.float64) @ y.astype(np.float64).T / x.shape[1] + 1.0) ** 3
    return found


def kid_score(pool: np.ndarray) -> Score:
    """Kernel inception distance between any two parts of a pool of features (n, d): unbiased MMD² with the polynomial
    kernel. Drawn twice, a vector is not paired with itself, so that the bootstrap stays unbiased too."""
    kernel = polynomial_kernel(pool, pool)

    def within(i: np.ndarray) -> float:
        times = np.bincount(i, minlength=len(kernel)).astype(np.float64)
        weight = len(i) ** 2 - (times**2).sum()
        return float((times @ kernel @ times - (times**2 * np.diag(kernel)).sum()) / weight)

    def score(i: np.ndarray, j: np.ndarray) -> float:
        return within(i) + within(j) - 2.0 * float(kernel[np.ix_(i, j)].mean())

    return score


def batch_mmd2(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """MMD² with a linear kernel between two batches of flattened volumes in [-1, 1], (B, voxels) each: biased, as
    published code has it, (Σ xx' + Σ yy')/B² - 2 Σ xy'/B², and unbiased. Sums run in float64."""
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    xx, yy, xy = (_products(a, b) for a, b in ((x, x), (y, y), (x, y)))
    return mmd2(xx, yy, xy, unbiased=False), mmd2(xx, yy, xy, unbiased=True)


def _products(a: np.ndarray, b: np.ndarray, chunk: int = 1 << 18) -> np.ndarray:
    """a b' in float64, by pieces, so that float32 volumes are never held in float64 as a whole."""
    total = np.zeros((len(a), len(b)))
    for first in range(0, a.shape[1], chunk):
        part = slice(first, first + chunk)
        total += a[:, part].astype(np.float64) @ b[:, part].astype(np.float64).T
    return total
