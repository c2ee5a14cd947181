"""Residuals to z-scores, to scores of slices and of the head, and to regions. NumPy and SciPy only.

A residual is smoothed within its tissue, divided by what the draws differ in, and compared with what normal heads leave
in the same tissue at the same depth. Arrays are (Z, Y, X), axial slices, superior first; `spacing` is (z, y, x) in mm.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from slicewise.data.resample import disc
from slicewise.hu import BONE_HU
from slicewise.metrics.tissue import brain_mask, depth

# Tissues of a head whose residuals are judged, each by its own kind: brain away from the skull, brain at it (where
# residuals are large, since a skull that is off by a pixel is off by a thousand HU), and the skull about the brain.
TISSUES = ("brain", "brain at the skull", "skull")
EDGE_MM = 6.0
SKULL_MM = 12.0
# Depths below the vertex are told apart in steps of this.
DEPTH_MM = 20.0
DEPTHS = 12
# Draws of a head that differ by less than this are not surer than it: noise of a smoothed scan, HU.
LEAST_SPREAD_HU = 3.0
# A score is the mean |z| of the voxels that stand out most, together of this size.
SCORED_CM3 = 1.0


@dataclass(frozen=True)
class Region:
    """A connected part of a head that is denser or less dense than expected.

    Attributes
    ----------
    number : of the region, the largest |z| summed over its voxels first.
    denser : whether it is denser than expected.
    cm3 : its volume.
    centre : its middle in voxels (z, y, x).
    slices : the first and last slice that it is in.
    residual_hu : mean residual.
    peak_z : its z-score that is farthest from 0.
    """

    number: int
    denser: bool
    cm3: float
    centre: tuple[float, float, float]
    slices: tuple[int, int]
    residual_hu: float
    peak_z: float


def tissue_map(hu: np.ndarray, spacing: tuple[float, float, float], slices: Sequence[int]) -> np.ndarray:
    """uint8 (Z, Y, X): 0 where residuals are not judged, else 1 + the place in `TISSUES`; 0 outside `slices`."""
    _, dy, dx = spacing
    brain = ndimage.binary_closing(brain_mask(hu, spacing), disc(6.0, dy, dx)[None])
    brain = np.stack([ndimage.binary_fill_holes(plane) for plane in brain])
    from_brain = depth(~brain, dy, dx)
    into_brain = depth(brain, dy, dx)
    bone = ndimage.binary_closing(hu > BONE_HU, disc(4.0, dy, dx)[None]) & ~brain & (from_brain <= SKULL_MM)
    found = np.zeros(hu.shape, np.uint8)
    found[brain] = np.where(into_brain[brain] > EDGE_MM, 1, 2)
    found[bone] = 3
    outside = np.ones(len(hu), bool)
    outside[list(slices)] = False
    found[outside] = 0
    return found


def smoothed(
    values: np.ndarray, tissue: np.ndarray, spacing: tuple[float, float, float], smooth_mm: float
) -> np.ndarray:
    """Means of the values under a Gaussian, float32, each over its own tissue alone; 0 where nothing is judged."""
    sigma = [smooth_mm / step for step in spacing]
    out = np.zeros(values.shape, np.float32)
    for kind in range(1, len(TISSUES) + 1):
        mask = tissue == kind
        weight = ndimage.gaussian_filter(mask.astype(np.float32), sigma)
        mean = ndimage.gaussian_filter(np.where(mask, values, 0).astype(np.float32), sigma)
        out[mask] = mean[mask] / weight[mask]
    return out


def studentised(
    hu: np.ndarray,
    draws: Sequence[np.ndarray],
    tissue: np.ndarray,
    spacing: tuple[float, float, float],
    smooth_mm: float,
) -> np.ndarray:
    """The smoothed residual of a head, int16 HU, over the spread of its pseudo-normal `draws`, float32.

    The spread is that of the smoothed draws, root mean square over the same neighbourhood; with one draw it is the
    least spread, and what comes out is the residual in units of it.
    """
    means = [smoothed(hu - draw.astype(np.float32), tissue, spacing, smooth_mm) for draw in draws]
    variance = np.full(hu.shape, LEAST_SPREAD_HU**2, np.float32)
    if len(draws) > 1:
        variance += smoothed(np.var(means, axis=0, ddof=1), tissue, spacing, smooth_mm)
    found: np.ndarray = np.mean(means, axis=0) / np.sqrt(variance)
    return found


def bins(tissue: np.ndarray, depth_mm: np.ndarray) -> np.ndarray:
    """int64 (Z, Y, X): the place of every voxel's tissue and depth in a table of a normal reference, -1 where nothing
    is judged; `depth_mm` (Z,) is how far each slice lies below the vertex."""
    place = np.clip(depth_mm / DEPTH_MM, 0, DEPTHS - 1).astype(int)
    return np.where(tissue > 0, (tissue.astype(int) - 1) * DEPTHS + place[:, None, None], -1)


def slice_scores(z: np.ndarray, tissue: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """float64 (Z,): the mean |z| of each slice's `SCORED_CM3` that stand out most; NaN where less of it is judged."""
    count = max(1, round(SCORED_CM3 * 1000 / float(np.prod(spacing))))
    found = np.full(len(z), np.nan)
    for k, (plane, judged) in enumerate(zip(np.abs(z), tissue > 0)):
        if judged.sum() >= count:
            found[k] = np.partition(plane[judged], -count)[-count:].mean()
    return found


def volume_score(slices: np.ndarray) -> float:
    """The score of a head: that of its highest slice; NaN where no slice has one."""
    return float(np.nanmax(slices)) if np.isfinite(slices).any() else float("nan")


def empirical_p(score: float, normal: Sequence[float] | np.ndarray) -> float:
    """(1 + how many normal scores are as high) / (1 + how many there are): the chance that a normal one ranks as high
    (Phipson and Smyth 2010). NaN for no score."""
    if not np.isfinite(score):
        return float("nan")
    held = np.asarray(normal, float)
    held = held[np.isfinite(held)]
    return float((1 + np.count_nonzero(held >= score)) / (1 + len(held)))


def find_regions(
    z: np.ndarray, residual: np.ndarray, spacing: tuple[float, float, float], least_z: float, least_cm3: float
) -> tuple[np.ndarray, tuple[Region, ...]]:
    """Connected parts (26 neighbours) with z at or beyond `least_z` or `-least_z`, of `least_cm3` or more.

    Returns a map, uint8 (Z, Y, X): 1 in what is denser than expected, 2 in what is less dense; and the regions.
    """
    voxel = float(np.prod(spacing)) / 1000
    marked = np.zeros(z.shape, np.uint8)
    found: list[tuple[float, Region]] = []
    for sign, kind in ((1, 1), (-1, 2)):
        parts, _ = ndimage.label(sign * z >= least_z, np.ones((3, 3, 3)))
        for number, box in enumerate(ndimage.find_objects(parts), 1):
            part = parts[box] == number
            if part.sum() * voxel < least_cm3:
                continue
            marked[box][part] = kind
            places = np.argwhere(part) + [s.start for s in box]
            z_mean, y_mean, x_mean = places.mean(axis=0).tolist()
            region = Region(
                number=0,
                denser=sign > 0,
                cm3=float(part.sum() * voxel),
                centre=(z_mean, y_mean, x_mean),
                slices=(int(places[:, 0].min()), int(places[:, 0].max())),
                residual_hu=float(residual[box][part].mean()),
                peak_z=float(sign * np.max(sign * z[box][part])),
            )
            found.append((float(np.abs(z[box][part]).sum()), region))
    ordered = [region for _, region in sorted(found, key=lambda one: -one[0])]
    return marked, tuple(replace(region, number=n) for n, region in enumerate(ordered, 1))
