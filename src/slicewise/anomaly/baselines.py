"""What a generative method has to beat: left against right, and the mean of normal heads. NumPy and SciPy only.

Both give one pseudo-normal head, which is then scored exactly as a drawn one is.
"""

import numpy as np
from scipy import ndimage, optimize

from slicewise.hu import AIR_HU, HU_MIN, round_hu

# What tells left from right: soft tissue and the skull's outline.
_CLIP = (-100.0, 200.0)


def mirrored(hu: np.ndarray) -> np.ndarray:
    """The head, int16 HU (Z, Y, X), reflected in its midsagittal plane, int16.

    The plane is that of the in-plane rotation and shift, the same in all slices, for which head and reflection agree
    best in [-100, 200] HU.
    """
    seen = np.clip(hu[::2].astype(np.float32), *_CLIP)
    n, height, width = seen.shape
    thin = seen[:, : height // 2 * 2, : width // 2 * 2].reshape(n, height // 2, 2, width // 2, 2).mean(axis=(2, 4))
    centred = (width - 1) / 2 - _middle(hu)

    def misfit(at: np.ndarray) -> float:
        return float(np.abs(thin - _reflected(thin, at[0], at[1], _CLIP[0])).mean())

    found = optimize.minimize(misfit, np.array([0.0, centred]), method="Powell", options={"xtol": 0.02, "ftol": 1e-4})
    return round_hu(_reflected(hu.astype(np.float32), found.x[0], 2 * found.x[1], HU_MIN))


def _middle(hu: np.ndarray) -> float:
    """The mean column of what is not air."""
    columns = (hu > AIR_HU).sum(axis=(0, 1))
    return float((columns * np.arange(len(columns))).sum() / max(1, columns.sum()))


def _reflected(hu: np.ndarray, degrees: float, shift: float, outside: float) -> np.ndarray:
    """Each slice reflected left to right, then turned about its centre by `degrees` and shifted right by `-shift`."""
    turn = np.deg2rad(degrees)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    centre = (np.array(hu.shape[1:]) - 1) / 2
    offset = centre - matrix @ centre + np.array([0.0, shift])
    flipped = hu[:, :, ::-1]
    made = [ndimage.affine_transform(p, matrix, offset, order=1, mode="constant", cval=outside) for p in flipped]
    return np.stack(made)


def in_frame(hu: np.ndarray, levels: int) -> np.ndarray:
    """A head from its vertex, int16 HU (Z, H, W), in the frame of an atlas, float32 (levels, H, W): slices from the
    vertex down, air below the last, in-plane the box of the head stretched to the whole field. The mean of normal heads
    in this frame is their atlas."""
    rows, columns = _box(hu)
    out = np.full((levels, *hu.shape[1:]), HU_MIN, np.float32)
    y, x = (np.linspace(*span, n) for span, n in zip((rows, columns), hu.shape[1:]))
    grid = np.meshgrid(y, x, indexing="ij")
    for z in range(min(levels, len(hu))):
        out[z] = ndimage.map_coordinates(hu[z].astype(np.float32), grid, order=1, mode="nearest")
    return out


def from_frame(mean: np.ndarray, hu: np.ndarray) -> np.ndarray:
    """An atlas, float32 (levels, H, W), laid on a head, int16 HU (Z, H, W); the head itself below the atlas."""
    rows, columns = _box(hu)
    out = hu.copy()
    y, x = ((np.arange(n) - span[0]) / (span[1] - span[0]) * (n - 1) for span, n in zip((rows, columns), hu.shape[1:]))
    grid = np.meshgrid(y, x, indexing="ij")
    for z in range(min(len(mean), len(hu))):
        plane = ndimage.map_coordinates(mean[z], grid, order=1, mode="constant", cval=HU_MIN)
        out[z] = round_hu(plane)
    return out


def _box(hu: np.ndarray) -> tuple[tuple[float, float], tuple[float, float]]:
    """First and last row and column of the head, in the slices of its upper half, where there is no face."""
    upper = (hu > AIR_HU)[: max(1, len(hu) // 2)]
    spans = []
    for axes in ((0, 2), (0, 1)):
        places = np.flatnonzero(upper.any(axis=axes))
        spans.append((float(places[0]), float(places[-1])) if len(places) else (0.0, float(hu.shape[1] - 1)))
    return spans[0], spans[1]
