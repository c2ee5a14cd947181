"""Signed distances, smooth random fields and the canvas on which `skull` and `brain` paint a head.

Head frame, mm: x to the patient's left, y to the back, z up; the origin lies between the commissures, so that the
vertex of the brain is near z = +75 and the foramen magnum near z = -62. Distances are float32, mm, negative inside.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, NamedTuple

import numpy as np

from slicewise.data.phantom.labels import LABELS

F = np.float32
Shape = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
Points = Sequence[Sequence[float]]


def ellipsoid(centre: Sequence[float], radii: Sequence[float]) -> Shape:
    """First-order signed distance to an axis-aligned ellipsoid."""

    def distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        u, v, w = ((p - F(c)) / F(r) for p, c, r in zip((x, y, z), centre, radii, strict=True))
        a, b, c = (F(r) for r in radii)
        k0 = np.sqrt(u * u + v * v + w * w)
        found: np.ndarray = k0 * (k0 - 1) / (np.sqrt((u / a) ** 2 + (v / b) ** 2 + (w / c) ** 2) + F(1e-6))
        return found

    return distance


def tube(points: Points, radii: Sequence[float], squash: Sequence[float] = (1, 1, 1)) -> Shape:
    """Smooth union of round cones along a polyline; `squash` widens (> 1) the cross-section along an axis."""

    def distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        p = [c / F(s) for c, s in zip((x, y, z), squash, strict=True)]
        ends = np.array(points, F) / np.array(squash, F)
        cones = []
        for a, b, ra, rb in zip(ends[:-1], ends[1:], radii[:-1], radii[1:], strict=True):
            ab = b - a
            pa = [c - o for c, o in zip(p, a, strict=True)]
            t = np.clip((pa[0] * ab[0] + pa[1] * ab[1] + pa[2] * ab[2]) / max(ab @ ab, F(1e-6)), 0, 1)
            cones.append(np.sqrt(sum((c - t * e) ** 2 for c, e in zip(pa, ab, strict=True))) - (F(ra) + F(rb - ra) * t))
        return reduce(lambda a, b: smooth_min(a, b, 2), cones)

    return distance


def union(k: float, *shapes: Shape) -> Shape:
    """Union of shapes with fillets of about k mm."""
    return lambda x, y, z: reduce(lambda a, b: smooth_min(a, b, k), (shape(x, y, z) for shape in shapes))


def smooth_min(a: np.ndarray, b: np.ndarray, k: float) -> np.ndarray:
    """Union of two distances with a fillet of about k mm (polynomial smooth minimum)."""
    h = np.maximum(F(k) - np.abs(a - b), 0)
    found: np.ndarray = np.minimum(a, b) - h * h * F(0.25 / k)
    return found


def smooth_max(a: np.ndarray, b: np.ndarray, k: float) -> np.ndarray:
    """Intersection of two distances with a fillet of about k mm."""
    return -smooth_min(-a, -b, k)


def _spline_matrix(n_out: int, n_low: int) -> np.ndarray:
    """float32 (n_out, n_low + 3): cubic B-spline weights of `n_low` equal intervals seen by `n_out` points."""
    t = (np.arange(n_out) + 0.5) / n_out * n_low
    u = np.abs(t[:, None] + 1 - np.arange(n_low + 3))  # from each point to each knot, in intervals
    found: np.ndarray = (np.where(u < 1, 3 * u**3 - 6 * u**2 + 4, np.maximum(2 - u, 0) ** 3) / 6).astype(F)
    return found


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], step: tuple[float, ...], scale: float) -> np.ndarray:
    """float32 field of unit variance: a Gaussian lattice of `scale` mm through cubic B-splines; `step` in mm."""
    lows = [max(int(np.ceil(n * s / scale)), 1) for n, s in zip(shape, step, strict=True)]
    lattice = rng.standard_normal([n + 3 for n in lows]).astype(F)
    mz, my, mx = (_spline_matrix(n, low) for n, low in zip(shape, lows, strict=True))
    # Separable; about a hundred times faster than ndimage.zoom. The variance of a lattice averages 0.479 an axis.
    found: np.ndarray = my @ np.tensordot(mz, lattice, 1) @ mx.T / F(0.479**1.5)
    return found


def rotation(pitch: float, roll: float, yaw: float) -> np.ndarray:
    """float64 (3, 3): rotation about x, then y, then z; radians."""
    cp, sp, cr, sr, cy, sy = (f(a) for a in (pitch, roll, yaw) for f in (np.cos, np.sin))
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_y = np.array([[cr, 0, sr], [0, 1, 0], [-sr, 0, cr]])
    about_z = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    found: np.ndarray = about_z @ about_y @ about_x
    return found


class Piece(NamedTuple):
    """A small structure: an ellipsoid (one point, three radii) or a tube (as many radii as points), mm, with its HU and
    the width in mm of its border. The right one of a pair is the mirror image of what stands here."""

    label: str
    hu: float
    points: Points
    radii: Sequence[float]
    soft: float = 1.0
    squash: Sequence[float] = (1, 1, 1)


@dataclass
class Canvas:
    """The head while it is painted, or a box of it, on the fine grid (z, y, x).

    Attributes
    ----------
    x, y, z : float32 (Z, Y, X), warped head-frame coordinates in mm.
    inner, outside : float32 (Z, Y, X), distances to the inner table of the skull and to the skin in mm.
    hu : float32 (Z, Y, X); labels : uint8 (Z, Y, X).
    step : (z, y, x) grid step in mm.
    rng : this head's own generator.
    """

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    inner: np.ndarray
    outside: np.ndarray
    hu: np.ndarray
    labels: np.ndarray
    step: tuple[float, float, float]
    rng: np.random.Generator

    def cut(self, low: Sequence[float], high: Sequence[float], margin: float = 14.0) -> "Canvas":
        """The part that holds the head-frame box low..high (x, y, z in mm), as views, with a margin for rotation and
        warp: coordinates bend little, so that the three central lines show where it lies."""
        i, j, k = (n // 2 for n in self.x.shape)
        box = []
        for line, lo, hi in zip((self.z[:, j, k], self.y[i, :, k], self.x[i, j]), low[::-1], high[::-1], strict=True):
            inside = np.flatnonzero((line > lo - margin) & (line < hi + margin))
            box.append(slice(inside[0], inside[-1] + 1) if len(inside) else slice(0))
        views: dict[str, Any] = {k: v[tuple(box)] for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        return replace(self, **views)

    def noise(self, scale: float) -> np.ndarray:
        """Smooth unit noise of `scale` mm."""
        return smooth_noise(self.rng, self.x.shape, self.step, scale)

    def paint(self, distance: np.ndarray, hu: "float | np.ndarray", label: str, soft: float = 1.0) -> None:
        """Lay a tissue over what is there: opacity 1 inside, 0 outside, a ramp of `soft` mm across the surface: the
        partial volume of a fine voxel."""
        self.hu += np.clip(F(0.5) - distance / F(soft), 0, 1) * (hu - self.hu)
        self.labels[distance < 0] = LABELS[label]

    def pieces(self, *pieces: Piece, spread: float = 0.5) -> None:
        """Paint pieces in order, those off the midline on both sides. All of a side are shifted together, by a draw of
        standard deviation `spread` mm along each axis, so that no head is a mirror image of itself."""
        off = {s: self.rng.normal(0, spread, 3) for s in (-1, 1)}
        for label, hu, points, radii, soft, squash in pieces:
            for s in (-1, 1) if points[0][0] else (1,):
                at = np.array(points) * (s, 1, 1) + off[s]
                reach = max(radii) * np.array(squash)
                part = self.cut((at.min(0) - reach).tolist(), (at.max(0) + reach).tolist())
                shape = tube(at.tolist(), radii, squash) if len(at) > 1 else ellipsoid(at[0].tolist(), radii)
                part.paint(shape(part.x, part.y, part.z), hu, label, soft)


class Person:
    """What makes one head, drawn at random.

    Attributes
    ----------
    width, length, height : half axes of the cranial cavity, mm, which follow the brain masks of 35 head and neck scans
        (width 133 +- 5 mm, length 163 +- 10 mm; see ATTRIBUTION.md); egg : how much narrower it is in front.
    atrophy : 0 young .. 1 old; widens sulci and the gap under the skull. ventricle : width relative to the usual.
    skull, scalp : mean thickness over the vault, mm.
    grey, white, csf, blood, bone : HU of the tissues.
    sinus : size factor of the paranasal sinuses and mastoid cells.
    tilt : of the head to the slices, degrees.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.atrophy = rng.beta(1.6, 2.2)
        size, self.white = rng.normal(1, 0.025), rng.normal(26.0, 0.9)
        self.width, self.length, self.height = (size * rng.normal(1, 0.03, 3) * (67, 82.5, 68)).tolist()
        self.egg = rng.uniform(0.06, 0.16)
        self.ventricle = float(np.exp(rng.normal(0.03, 0.17)) * (0.78 + 0.55 * self.atrophy))
        self.skull, self.scalp = rng.uniform(5.2, 8.8), rng.uniform(4.5, 7.5)
        self.grey = self.white + rng.uniform(8.0, 10.5)
        self.csf, self.blood, self.bone = rng.uniform(4, 9), rng.uniform(47, 58), rng.uniform(1450, 1850)
        self.sinus = rng.uniform(0.8, 1.15)
        self.tilt = float(np.clip(rng.normal(0, 4.5), -9, 9))
