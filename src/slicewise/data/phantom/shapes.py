"""Signed distances, smooth random fields and the canvas on which `skull` and `brain` paint a head.

Head frame, mm: x to the patient's left, y to the back, z up; the origin lies between the commissures, so that the
vertex of the brain is near z = +75 and the foramen magnum near z = -62. Distances are float32, mm, negative inside.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from slicewise.data.phantom.labels import LABELS

Point = tuple[float, float, float]
Box = tuple[slice, slice, slice]
Shape = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def ellipsoid(centre: Point, radii: Point) -> Shape:
    """First-order signed distance to an axis-aligned ellipsoid."""

    def distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        u, v, w = ((p - np.float32(c)) / np.float32(r) for p, c, r in zip((x, y, z), centre, radii, strict=True))
        k0 = np.sqrt(u * u + v * v + w * w)
        a, b, c = radii
        k1 = np.sqrt((u / np.float32(a)) ** 2 + (v / np.float32(b)) ** 2 + (w / np.float32(c)) ** 2) + 1e-6
        return k0 * (k0 - 1) / k1

    return distance


def tube(points: list[Point], radii: list[float], squash: Point = (1.0, 1.0, 1.0), blend: float = 2.0) -> Shape:
    """Smooth union of round cones along a polyline; `squash` widens (> 1) the cross-section along an axis."""

    def distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        p = [c / np.float32(s) for c, s in zip((x, y, z), squash, strict=True)]
        out: np.ndarray | None = None
        for a, b, ra, rb in zip(points[:-1], points[1:], radii[:-1], radii[1:], strict=True):
            a_ = np.array(a, np.float32) / np.array(squash, np.float32)
            ab = np.array(b, np.float32) / np.array(squash, np.float32) - a_
            pa = [c - o for c, o in zip(p, a_, strict=True)]
            t = np.clip((pa[0] * ab[0] + pa[1] * ab[1] + pa[2] * ab[2]) / max(float(ab @ ab), 1e-6), 0, 1)
            d = np.sqrt(sum((c - t * e) ** 2 for c, e in zip(pa, ab, strict=True))) - (
                np.float32(ra) + np.float32(rb - ra) * t
            )
            out = d if out is None else smooth_min(out, d, blend)
        assert out is not None, "a tube needs two points"
        return out

    return distance


def smooth_min(a: np.ndarray, b: np.ndarray, k: float) -> np.ndarray:
    """Union of two distances with a fillet of about k mm (polynomial smooth minimum)."""
    h = a - b
    np.abs(h, out=h)
    np.subtract(np.float32(k), h, out=h)
    np.maximum(h, 0, out=h)
    h *= h
    h *= np.float32(-0.25 / k)
    h += np.minimum(a, b)
    return h


def smooth_max(a: np.ndarray, b: np.ndarray, k: float) -> np.ndarray:
    """Intersection of two distances with a fillet of about k mm."""
    return -smooth_min(-a, -b, k)


def spline_matrix(n_out: int, n_low: int) -> np.ndarray:
    """float32 (n_out, n_low + 3): cubic B-spline weights of `n_low` equal intervals seen by `n_out` points."""
    t = (np.arange(n_out) + 0.5) / n_out * n_low
    i = np.minimum(t.astype(int), n_low - 1)
    f = t - i
    weights = np.zeros((n_out, n_low + 3))
    rows = np.arange(n_out)
    weights[rows, i] = (1 - f) ** 3 / 6
    weights[rows, i + 1] = (3 * f**3 - 6 * f**2 + 4) / 6
    weights[rows, i + 2] = (-3 * f**3 + 3 * f**2 + 3 * f + 1) / 6
    weights[rows, i + 3] = f**3 / 6
    return weights.astype(np.float32)


def linear_matrix(n_out: int, step: int) -> np.ndarray:
    """float32 (n_out, n_low): linear interpolation from the nodes 0, step, 2 step ... (the last extrapolates)."""
    n_low = max(-(-n_out // step), 2)
    t = np.arange(n_out) / step
    i = np.minimum(t.astype(int), n_low - 2)
    weights = np.zeros((n_out, n_low), np.float32)
    weights[np.arange(n_out), i] = 1 - (t - i)
    weights[np.arange(n_out), i + 1] += t - i
    return weights


def expand(low: np.ndarray, mz: np.ndarray, my: np.ndarray, mx: np.ndarray) -> np.ndarray:
    """Separable interpolation of (z, y, x) by three matrices; about a hundred times faster than ndimage.zoom."""
    out = np.tensordot(mz, low, (1, 0))
    out = np.matmul(my[None], out)
    return np.matmul(out, mx.T[None])


def rotation(pitch: float, roll: float, yaw: float) -> np.ndarray:
    """float64 (3, 3): rotation about x, then y, then z; radians."""
    cp, sp, cr, sr, cy, sy = (f(a) for a in (pitch, roll, yaw) for f in (np.cos, np.sin))
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_y = np.array([[cr, 0, sr], [0, 1, 0], [-sr, 0, cr]])
    about_z = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], step: tuple[float, ...], scale: float) -> np.ndarray:
    """float32 field of unit variance: a Gaussian lattice of `scale` mm through cubic B-splines; `step` in mm."""
    lows = [max(int(np.ceil(n * s / scale)), 1) for n, s in zip(shape, step, strict=True)]
    lattice = rng.standard_normal([n + 3 for n in lows]).astype(np.float32)
    # The variance of a cubic B-spline lattice averages 0.479 an axis.
    return expand(lattice, *(spline_matrix(n, low) for n, low in zip(shape, lows, strict=True))) / np.float32(
        0.479**1.5
    )


@dataclass
class Canvas:
    """The head while it is painted: fine grid (z, y, x), HU and labels, and each voxel's head-frame coordinates.

    Attributes
    ----------
    x, y, z : float32 (Z, Y, X), warped head-frame coordinates in mm.
    step : (z, y, x) grid step in mm.
    hu : float32 (Z, Y, X); labels : uint8 (Z, Y, X).
    rng : this head's own generator.
    """

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    step: tuple[float, float, float]
    rng: np.random.Generator
    hu: np.ndarray = field(init=False)
    labels: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.hu = np.full(self.x.shape, -1000.0, np.float32)
        self.labels = np.zeros(self.x.shape, np.uint8)
        # Coordinates bend little, so a box in mm is found through the three central lines and a margin.
        c = [n // 2 for n in self.x.shape]
        self._lines = (self.z[:, c[1], c[2]], self.y[c[0], :, c[2]], self.x[c[0], c[1], :])

    def box(self, low: Point, high: Point, margin: float = 14.0) -> Box:
        """Index box that holds the head-frame box low..high (x, y, z in mm) with a margin for rotation and warp."""
        out = []
        for line, lo, hi in zip(self._lines, low[::-1], high[::-1], strict=True):
            inside = np.flatnonzero((line > lo - margin) & (line < hi + margin))
            out.append(slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0))
        return out[0], out[1], out[2]

    def everywhere(self) -> Box:
        return slice(None), slice(None), slice(None)

    def at(self, box: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.x[box], self.y[box], self.z[box]

    def noise(self, scale: float, box: Box | None = None) -> np.ndarray:
        """Smooth unit noise of `scale` mm on a box of the grid."""
        shape = self.x.shape if box is None else self.x[box].shape
        return smooth_noise(self.rng, shape, self.step, scale)

    def paint(self, box: Box, distance: np.ndarray, hu: "float | np.ndarray", label: str, soft: float = 1.0) -> None:
        """Lay a tissue over what is there: opacity 1 inside, 0 outside, a ramp of `soft` mm across the surface: the
        partial volume of a fine voxel."""
        if distance.size == 0:
            return
        alpha = np.clip(np.float32(0.5) - distance / np.float32(soft), 0, 1)
        target = self.hu[box]
        target += alpha * (hu - target)
        self.labels[box][distance < 0] = LABELS[label]

    def shape(self, low: Point, high: Point, shape: Shape, hu: float, label: str, soft: float = 1.0) -> None:
        """Paint a shape known to lie within low..high."""
        box = self.box(low, high)
        if self.x[box].size:
            self.paint(box, shape(*self.at(box)), hu, label, soft)

    def blob(self, centre: Point, radii: Point, hu: float, label: str, soft: float = 1.0) -> None:
        """Paint an ellipsoid."""
        low = tuple(c - r for c, r in zip(centre, radii, strict=True))
        high = tuple(c + r for c, r in zip(centre, radii, strict=True))
        self.shape(low, high, ellipsoid(centre, radii), hu, label, soft)  # type: ignore[arg-type]

    def cord(
        self,
        points: list[Point],
        radii: list[float],
        hu: float,
        label: str,
        soft: float = 1.0,
        squash: Point = (1.0, 1.0, 1.0),
    ) -> None:
        """Paint a tube."""
        p, r = np.array(points), max(radii) * np.array(squash)
        self.shape(tuple(p.min(0) - r), tuple(p.max(0) + r), tube(points, radii, squash), hu, label, soft)


@dataclass(frozen=True)
class Person:
    """What makes one head: sizes in mm, age-like width of the fluid spaces, tissue HU.

    Attributes
    ----------
    width, length, height : half axes of the cranial cavity, mm.
    atrophy : 0 young .. 1 old; widens ventricles, sulci and the gap under the skull.
    skull : mean thickness of the vault, mm.
    scalp : thickness of the scalp over the vault, mm.
    grey, white, csf, blood : HU of the tissues.
    sinus : size factor of the paranasal sinuses and mastoid cells.
    """

    width: float
    length: float
    height: float
    egg: float
    atrophy: float
    ventricle: float
    skull: float
    scalp: float
    grey: float
    white: float
    csf: float
    blood: float
    bone: float
    sinus: float
    tilt: float


def draw_person(rng: np.random.Generator) -> Person:
    """Draw a person. Width, length and height of the cavity follow the brain masks of 35 head and neck scans (width
    133 +- 5 mm, length 163 +- 10 mm; see ATTRIBUTION.md)."""
    atrophy = float(rng.beta(1.6, 2.2))
    size = rng.normal(1, 0.025)
    white = rng.normal(26.0, 0.9)
    return Person(
        width=float(67 * size * rng.normal(1, 0.03)),
        length=float(82.5 * size * rng.normal(1, 0.03)),
        height=float(68 * size * rng.normal(1, 0.03)),
        egg=float(rng.uniform(0.06, 0.16)),
        atrophy=atrophy,
        ventricle=float(np.exp(rng.normal(0.03, 0.17)) * (0.78 + 0.55 * atrophy)),
        skull=float(rng.uniform(5.2, 8.8)),
        scalp=float(rng.uniform(4.5, 7.5)),
        grey=float(white + rng.uniform(8.0, 10.5)),
        white=float(white),
        csf=float(rng.uniform(4, 9)),
        blood=float(rng.uniform(47, 58)),
        bone=float(rng.uniform(1450, 1850)),
        sinus=float(rng.uniform(0.8, 1.15)),
        tilt=float(np.clip(rng.normal(0, 4.5), -9, 9)),
    )
