"""Structural similarity of slices and volumes: SSIM, multi-scale SSIM in three dimensions, and cross-correlation.

SSIM after Wang et al. (2004): a Gaussian window of 1.5 pixels, 11 wide, population covariance, K1 = 0.01, K2 = 0.03.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from slicewise.hu import HU_MIN, Window, to_unit

SIGMA = 1.5
WINDOW = 11
# Exponents of the five scales (Wang, Simoncelli and Bovik 2003).
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def gaussian(size: int = WINDOW, sigma: float = SIGMA) -> np.ndarray:
    """Normalised Gaussian window, float64 (size,)."""
    x = np.arange(size) - (size - 1) / 2
    weights = np.exp(-(x**2) / (2 * sigma**2))
    found: np.ndarray = weights / weights.sum()
    return found


def similarity(
    moments: Sequence[np.ndarray], data_range: float, k1: float = 0.01, k2: float = 0.03
) -> tuple[np.ndarray, np.ndarray]:
    """SSIM and its contrast-structure part, point by point, from the local means of x, y, x², y² and xy."""
    x, y, xx, yy, xy = moments
    c1, c2 = (k1 * data_range) ** 2, (k2 * data_range) ** 2
    contrast = (2 * (xy - x * y) + c2) / (xx - x * x + yy - y * y + c2)
    return contrast * (2 * x * y + c1) / (x * x + y * y + c1), contrast


def ms_ssim(
    x: np.ndarray,
    y: np.ndarray,
    data_range: float,
    weights: Sequence[float] = SCALES,
    window: int = WINDOW,
    sigma: float = SIGMA,
) -> float:
    """Multi-scale SSIM of two arrays of one shape and any number of axes, float64: Π cs_j^w_j · ssim_M^w_M.

    Values start at 0, as SSIM's luminance term needs: where a mean may be negative, it takes a small offset near 0 for
    a total difference.
    Windows lie wholly inside; scales are halved by averaging blocks of 2; a negative mean counts as 0. As many scales
    are used as fit (`scales_that_fit`), the weights of fewer rescaled to sum to 1: numbers compare at one shape only.
    Raises `ValueError` where not one fits.
    """
    count = scales_that_fit(x.shape, len(weights), window)
    if count == 0:
        raise ValueError(f"{' x '.join(map(str, x.shape))} is smaller than the window of {window}")
    used = np.asarray(weights[:count], np.float64)
    if count < len(weights):
        used = used / used.sum()
    product = 1.0
    for scale, weight in enumerate(used):
        ssim, contrast = similarity(_local_moments(x, y, gaussian(window, sigma)), data_range)
        product *= max(0.0, float((ssim if scale == count - 1 else contrast).mean())) ** weight
        x, y = _halved(x), _halved(y)
    return product


def scales_that_fit(shape: Sequence[int], most: int = len(SCALES), window: int = WINDOW) -> int:
    """How many halvings leave every axis as long as the window."""
    return sum(min(shape) // 2**scale >= window for scale in range(most))


def ms_ssim_legacy(x: np.ndarray, y: np.ndarray) -> float:
    """The 3D MS-SSIM that is widely copied, faults and all, for arrays in [-1, 1]: the last scale's term, raised to its
    weight, is multiplied in once for every other scale (four times), and the constants are those of a range of 1 where
    the data's is 2. The window shrinks to the shortest axis. Only for comparison with numbers computed that way."""
    means = []
    for _ in SCALES:
        ssim, contrast = similarity(_local_moments(x, y, gaussian(min(WINDOW, *x.shape))), data_range=1.0)
        means.append((float(ssim.mean()), float(contrast.mean())))
        x, y = _halved(x), _halved(y)
    last = max(0.0, means[-1][0]) ** SCALES[-1]
    return float(np.prod([max(0.0, c) ** w * last for (_, c), w in zip(means[:-1], SCALES)]))


def isotropic_unit(hu: np.ndarray, spacing: tuple[float, float, float], window: Window) -> np.ndarray:
    """A window of a volume in [-1, 1], float32, with slices one pixel apart (linear along z, end slices repeated for
    half a slice), so that one round window serves all axes."""
    unit = to_unit(hu, window)
    count = max(1, round(len(hu) * spacing[0] / spacing[1]))
    place = np.clip((np.arange(count) + 0.5) * len(hu) / count - 0.5, 0, len(hu) - 1)
    below = np.minimum(place.astype(int) + 1, len(hu) - 1)
    weight = (place - place.astype(int)).astype(np.float32)[:, None, None]
    found: np.ndarray = unit[place.astype(int)] * (1 - weight) + unit[below] * weight
    return found


def at_depth(hu: np.ndarray, slices: int) -> np.ndarray:
    """The uppermost `slices` of a volume (Z, Y, X), filled up with air below where there are fewer."""
    return np.pad(hu[:slices], ((0, max(0, slices - len(hu))), (0, 0), (0, 0)), constant_values=HU_MIN)


def neighbour_ssim(hu: np.ndarray, mask: np.ndarray, window: Window) -> np.ndarray:
    """Mean SSIM of every two neighbouring slices over the pixels in both slices' mask, float64 (Z - 1,); NaN where
    there are none. HU are clipped to the window, whose width is the data range."""
    clipped = np.clip(hu, window.lo, window.hi).astype(np.float32) - np.float32(window.lo)
    kernel = gaussian()

    def local(values: np.ndarray) -> np.ndarray:
        along = ndimage.correlate1d(values, kernel, axis=1, mode="reflect")
        found: np.ndarray = ndimage.correlate1d(along, kernel, axis=2, mode="reflect")
        return found

    mean, square = local(clipped), local(clipped**2)
    moments = mean[:-1], mean[1:], square[:-1], square[1:], local(clipped[:-1] * clipped[1:])
    ssim, _ = similarity(moments, window.hi - window.lo)
    return _masked_means(ssim, mask[:-1] & mask[1:])


def neighbour_ncc(hu: np.ndarray, mask: np.ndarray, window: Window) -> np.ndarray:
    """Pearson correlation of every two neighbouring slices over the pixels in both slices' mask, HU clipped to the
    window, float64 (Z - 1,); NaN where there are fewer than two, or nothing varies."""
    clipped = np.clip(hu, window.lo, window.hi).astype(np.float64)
    both = mask[:-1] & mask[1:]
    x, y = clipped[:-1], clipped[1:]
    mean_x, mean_y = _masked_means(x, both), _masked_means(y, both)
    dx, dy = x - mean_x[:, None, None], y - mean_y[:, None, None]
    xy, xx, yy = (_masked_means(v, both) for v in (dx * dy, dx * dx, dy * dy))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(xx * yy > 1e-12, xy / np.sqrt(xx * yy), np.nan)


def _masked_means(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean of every slice over its mask, float64 (Z,); NaN where the mask is empty."""
    counts = mask.sum(axis=(1, 2))
    sums = np.where(mask, values, 0.0).sum(axis=(1, 2), dtype=np.float64)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _local_moments(x: np.ndarray, y: np.ndarray, kernel: np.ndarray) -> list[np.ndarray]:
    """Means of x, y, x², y² and xy under the window, float64, where it lies wholly inside."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    before = len(kernel) // 2
    after = len(kernel) - 1 - before
    found = []
    for values in (x, y, x * x, y * y, x * y):
        for axis, length in enumerate(values.shape):
            values = ndimage.correlate1d(values, kernel, axis=axis)
            values = np.take(values, np.arange(before, length - after), axis=axis)
        found.append(values)
    return found


def _halved(values: np.ndarray) -> np.ndarray:
    """Means of blocks of 2 along every axis; an odd last layer is dropped, an axis of one stays."""
    for axis, length in enumerate(values.shape):
        if length > 1:
            even = np.take(values, np.arange(length // 2 * 2), axis=axis)
            shape = (*even.shape[:axis], length // 2, 2, *even.shape[axis + 1 :])
            values = even.reshape(shape).mean(axis=axis + 1)
    return values
