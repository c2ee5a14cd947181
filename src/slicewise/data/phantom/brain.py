"""The contents of the skull: cortex and white matter, fluid spaces, nuclei, cerebellum, brain stem, dura, vessels."""

import numpy as np

from slicewise.data.phantom.labels import LABELS
from slicewise.data.phantom.shapes import Canvas, Person, Point, ellipsoid, smooth_max, smooth_min, tube

SIDES = (-1.0, 1.0)
F = np.float32


def tentorium_height(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Height of the tentorium: a tent whose ridge runs from the notch (y = 34, z = 6) down to the torcula."""
    ridge = 7 - 0.42 * np.maximum(y - 34, 0) - 0.5 * np.maximum(20 - y, 0)
    edge = -24 + 0.2 * (y - 40)
    t = np.clip(np.abs(x) / 56, 0, 1)
    return edge + (np.maximum(ridge, edge) - edge) * (1 - t) ** (1.7 + 2.0 * np.clip((26 - y) / 20, 0, 1))


def paint_brain(c: Canvas, p: Person, inner: np.ndarray) -> None:
    """Fill the cranial cavity (`inner` < 0)."""
    c.paint(c.everywhere(), inner + 0.2, p.csf + 2, "sulci", 0.9)
    _cerebrum(c, p, inner)
    _cisterns(c, p, inner)
    _ventricles(c, p)
    _nuclei(c, p)
    _posterior_fossa(c, p, inner)
    _dura_and_vessels(c, p, inner)


def _cerebrum(c: Canvas, p: Person, inner: np.ndarray) -> None:
    """Cortical ribbon folded along sulci, white matter inside.

    Sulci are zero sets of a smooth noise that is read at each point's foot on the brain surface, so that they run
    perpendicular to the surface; their depth and width vary along them. All is done on the voxels of the brain alone.
    """
    rng = c.rng
    old = p.atrophy
    # Depth below the brain's own surface, and the direction outward, from smooth fields.
    skin_gap = 0.9 + 1.6 * old
    region = c.box((-75, -92, -55), (75, 92, 86))
    x, y, z = c.at(region)
    gap = skin_gap * (1 + 0.5 * np.clip((-y - 20) / 40, 0, 1)) + 0.5 * c.noise(25.0, region)
    outer = inner[region] + gap
    roof = tentorium_height(x, y) + 2.0
    above = np.where(y > 2, (roof - z) * F(0.85), F(-30))
    above = np.where((y < 26) & (z < -6), np.minimum(above, 4), above)
    hemi = smooth_max(outer, above.astype(np.float32), 3)
    midline = 1.2 * c.noise(45.0, region) + 0.6 * c.noise(14.0, region)
    xm = x - midline
    arch = (
        np.sqrt(((y - 2) / 44) ** 2 + ((z - 4) / np.where(z > 4, F(26), F(15))) ** 2) - 1
    )  # callosum and below: no fissure
    width = 0.35 + 1.1 * old * np.clip(-y / 50 + 0.5, 0.2, 1)
    medial = width - np.abs(xm)  # > 0 inside the fissure
    medial = np.where(arch * 30 > 0, medial, np.maximum(-30 * F(1.0), medial - 3 + arch * 30))
    # Gradient of depth gives the foot point.
    blurred = np.maximum(hemi, medial * F(0.9))
    inside = np.maximum(hemi, medial) < 0.8
    gz, gy, gx = np.gradient(_smooth(blurred), *c.step)
    gz = -gz  # z falls along the slice axis
    norm = np.sqrt(gz * gz + gy * gy + gx * gx) + 0.1
    depth = np.maximum(-np.maximum(hemi, medial)[inside], 0)
    travel = np.minimum(depth, 24) * F(0.85) / norm[inside]
    foot = [(v[inside] + travel * g[inside]) for v, g in ((x, gx), (y, gy), (z, gz))]
    noises = [_lookup(rng, foot, scale) for scale in (5.6, 4.0, 14.0, 11.0, 30.0, 9.0)]
    main, small, deep, broad, wide_region, wiggle = noises
    main = main + 0.25 * small
    # Main sulci; |noise| times a length is about the distance to the zero set.
    distance = np.abs(main + 0.12 * wiggle) * F(4.6)
    reach = np.clip(14.0 + 8.0 * deep, 2.5, 27)
    half = np.clip(0.7 + 1.2 * old + (0.6 + 0.4 * old) * broad + 0.45 * wide_region, 0.15, 2.7)
    # The medial and the lower surface are less open, and lie along the slice or the falx, where they show too much.
    on_falx = (medial > hemi)[inside]
    half = half * np.where(on_falx, F(0.55), F(1)) * (1 - F(0.5) * np.clip((2 - z[inside]) / 12, 0, 1))
    reach = reach * np.where(on_falx, F(0.75), F(1))
    half = half * np.sqrt(np.clip(1 - depth / reach, 0, 1)) * (1 + 0.6 * np.exp(-depth / 3.0))
    cut = np.where(depth < reach, distance - half, np.hypot(distance, depth - reach))
    # Shallow tertiary sulci between them.
    distance2 = np.abs(_lookup(rng, foot, 4.2) + 0.3 * wiggle) * F(3.4)
    reach2 = np.clip(3.5 + 4.0 * broad, 0, 8)
    half2 = np.clip(0.1 + 0.4 * old + 0.25 * wide_region, 0.05, 1.2) * np.sqrt(
        np.clip(1 - depth / np.maximum(reach2, 0.1), 0, 1)
    )
    cut2 = np.where(depth < reach2, distance2 - half2, np.hypot(distance2, depth - reach2))
    sylvian, insula = _sylvian(c, p, x[inside], y[inside], z[inside], wiggle, broad)
    cut = np.minimum(cut, cut2)
    fluid = np.minimum(cut, sylvian)
    ribbon = F(2.9) + F(0.5) * deep
    to_fluid = np.minimum(np.minimum(cut, insula), depth)
    # Compose.
    slow = _lookup(rng, foot, 14.0)
    grey = p.grey + F(1.0) * slow
    white = p.white + F(0.9) * wide_region - F(3.5) * F(old) * np.exp(-(((np.abs(x[inside]) - 20) / 9) ** 2))
    a_white = np.clip(F(0.5) + (to_fluid - ribbon) / F(1.4), 0, 1)
    hu = grey + a_white * (white - grey)
    a_fluid = np.clip(F(0.5) - fluid / F(0.9), 0, 1)
    edge = np.clip(F(0.5) + np.maximum(hemi, medial)[inside] / F(0.9), 0, 1)
    a_fluid = np.maximum(a_fluid, edge)
    hu = hu + a_fluid * (p.csf + F(1.5) - hu)
    ok = inner[region][inside] < -0.3
    target = c.hu[region]
    target[inside] = np.where(ok, hu, target[inside])
    labels = np.where(a_white > 0.5, LABELS["white matter"], LABELS["grey matter"])
    labels = np.where(a_fluid > 0.5, LABELS["sulci"], labels).astype(np.uint8)
    view = c.labels[region]
    view[inside] = np.where(ok, labels, view[inside])


def _smooth(field: np.ndarray) -> np.ndarray:
    """A cheap 3-point blur along every axis, applied twice, so that the gradient does not jump at ridges."""
    for _ in range(2):
        for axis in range(3):
            n = field.shape[axis]
            lo, hi = np.maximum(np.arange(n) - 2, 0), np.minimum(np.arange(n) + 2, n - 1)
            field = (field + field.take(lo, axis) + field.take(hi, axis)) * F(1 / 3)
    return field


def _lookup(rng: np.random.Generator, at: list[np.ndarray], scale: float) -> np.ndarray:
    """Unit noise of `scale` mm read at scattered points (x, y, z in mm): a twofold refined lattice, trilinear."""
    from scipy.ndimage import map_coordinates

    from slicewise.data.phantom.shapes import expand, spline_matrix

    n = [int(np.ceil(2 * half / scale)) for half in (105, 120, 100)]
    lattice = rng.standard_normal([k + 3 for k in n]).astype(np.float32)
    fine = expand(lattice, *(spline_matrix(4 * k, k) for k in n)) / F(0.479**1.5)
    coordinates = [(v + F(half)) * F(4 / scale) - F(0.5) for v, half in zip(at, (105, 120, 100), strict=True)]
    return map_coordinates(fine, coordinates, order=1, mode="nearest", output=np.float32)


def _sylvian(
    c: Canvas, p: Person, x: np.ndarray, y: np.ndarray, z: np.ndarray, wiggle: np.ndarray, broad: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Distances to the Sylvian fluid and to the surfaces that carry grey matter (fissure and insula)."""
    fluid = np.full(x.shape, 30, np.float32)
    surface = fluid.copy()
    for s in SIDES:
        j = c.rng.normal(0, 1.0, 4).tolist()
        ax = s * x
        w = 0.7 + 1.9 * p.atrophy + 0.3 * j[0] + 0.6 * broad
        # Insular sheet: bulges outward at its middle.
        iy, iz = (y - 2 - j[1]) / 25, (z - 4) / 17
        rr = np.sqrt(iy * iy + iz * iz)
        sheet = 41.5 + j[2] - 4.5 * iy * iy - 3.0 * iz * iz + 1.5 * wiggle + 1.2 * broad
        d = np.abs(ax - sheet) - w * np.clip(1.25 - rr, 0, 0.75)
        d = np.maximum(d, (rr - 1) * 16)
        # Opercular cleft from the insula to the surface, rising backwards.
        level = -6 + 0.34 * (y + 15) + 0.3 * (ax - 46) + 1.8 * wiggle + j[3]
        e = (
            np.abs(z - level)
            - w * (0.75 + 0.5 * np.clip((-y) / 25, 0, 1)) * np.clip((38 - y) / 25, 0, 1) * np.clip((y + 31) / 16, 0, 1)
            + 0.3
        )
        e = np.maximum(e, np.maximum(39 - ax, np.maximum(-30 - y, y - 40)))
        # Stem from the suprasellar cistern along the middle cerebral artery.
        stem = tube([(14, -16, -16), (28, -17, -12), (40, -18, -6)], [1.4 + w * 0.35] * 3, blend=1)(ax, y, z)
        here = np.minimum(np.minimum(d, e), stem)
        fluid = np.minimum(fluid, here)
        surface = np.minimum(surface, here)
    return fluid, surface


def _cisterns(c: Canvas, p: Person, inner: np.ndarray) -> None:
    """Suprasellar, ambient, quadrigeminal and prepontine cisterns, cisterna magna: fluid first, the brain stem over
    it."""
    fluid = p.csf + 2
    old = p.atrophy
    k = 0.85 + 0.3 * old
    box = c.box((-32, -34, -70), (32, 66, 14), 4)
    x, y, z = c.at(box)
    if not x.size:
        return
    n = 1.0 * c.noise(9.0, box)
    star = smooth_min(
        ellipsoid((0, -13, -17), (10 * k, 9, 6.5))(x, y, z),
        tube([(-17, -17, -16), (0, -11, -16), (17, -17, -16)], [1.8, 4.5 * k, 1.8])(x, y, z),
        3,
    )
    star = smooth_min(star, tube([(0, -16, -17), (0, -27, -15)], [3.0, 1.5])(x, y, z), 3)
    ring = ellipsoid((0, 9, -13), (19.5 + k, 17.5 + k, 15))(x, y, z)
    quad = tube(
        [(-17, 26, -6), (-7, 28.5, -1), (0, 30, 1), (7, 28.5, -1), (17, 26, -6)], [1.2, 2.6 * k, 4.0 * k, 2.6 * k, 1.2]
    )(x, y, z)
    pons = ellipsoid((0, 8, -32), (19, 16, 18))(x, y, z)
    angle = ellipsoid((0, 10, -38), (25, 7, 6))(x, y, z)
    magna = ellipsoid((0, 45, -60), (11 * k, 9, 10 * k))(x, y, z)
    vermian = ellipsoid((0, 38, 0), (5, 8, 4))(x, y, z)
    canal = ellipsoid((0, 22, -62), (12, 13, 20))(x, y, z)
    d = star
    for other in (ring, quad, pons, angle, magna, canal, vermian):
        d = smooth_min(d, other, 2.5)
    c.paint(box, np.maximum(d + n, inner[box] + 0.3), fluid, "cisterns")


def _ventricles(c: Canvas, p: Person) -> None:
    rng = c.rng
    v = p.ventricle
    white = p.white
    # Corpus callosum and periventricular white matter first.
    arc: list[Point] = [(0, -24, -1), (0, -37, 6), (0, -32, 19), (0, -5, 27), (0, 22, 24), (0, 36, 14)]
    c.shape(
        (-24, -46, -8),
        (24, 46, 34),
        tube(arc, [2, 5, 4.5, 3.5, 4.2, 5.5], (4.0, 1, 1)),
        white - 0.5,
        "corpus callosum",
        2,
    )
    skew = rng.normal(0, 0.08)
    for s in SIDES:
        f = v * (1 + s * skew) * rng.normal(1, 0.04)
        j = rng.normal(0, 0.9, (8, 3))
        m: list[Point] = [
            (s * (11 + 2 * f), -37 - 2.5 * f, 8),
            (s * (7 + 1.5 * f), -24, 11),
            (s * (6 + 1.5 * f), -6, 16),
            (s * (9 + 2 * f), 12, 20),
            (s * (16 + 3 * f), 27, 17),
            (s * (24 + 2 * f), 37, 8),
        ]
        m = [tuple(np.add(q, o * (0.8, 1, 1))) for q, o in zip(m, j, strict=False)]  # type: ignore[misc]
        horn = rng.uniform(0.3, 1.2)
        occipital: list[Point] = [m[5], (s * 25, 50, 4), (s * 20, 54 + 8 * horn, 2)]
        temporal: list[Point] = [m[5], (s * 32, 24, -7), (s * 32, 8, -17), (s * 27, -6, -22)]
        box = c.box((s * 20 - 24, -52, -30), (s * 20 + 24, 72, 34), 2)
        if not c.x[box].size:
            continue
        x, y, z = c.at(box)
        main = tube(m, [2.8 * f, 5.6 * f, 4.4 * f, 4.6 * f, 5.0 * f, 6.2 * f], (1.0, 1.0, 1.35), 4)(x, y, z)
        main = smooth_min(main, tube(occipital, [4.0 * f, 2.6 * f, 1.0 * f])(x, y, z), 4)
        main = smooth_min(main, tube(temporal, [4.2 * f, 2.2 * f, 1.5 * f, 2.0 * f])(x, y, z), 3)
        main = smooth_max(main, 0.9 - s * x, 2)  # septum
        main = main + 0.7 * c.noise(12.0, box)
        c.paint(box, main, p.csf, "ventricles", 1.2)
        # Caudate and thalamus press into the wall.
        caudate: list[Point] = [
            (s * (13.5 + 2 * f), -27, 5),
            (s * (13.5 + 2.2 * f), -17, 12),
            (s * (14 + 2.5 * f), 0, 19),
            (s * (18 + 3 * f), 16, 21),
        ]
        c.cord(caudate, [5.6, 5.0, 3.0, 1.8], p.grey, "deep nuclei", 1.6)
        if rng.random() < 0.75:
            choroid: list[Point] = [(s * (23 + 2 * f), 33, 10), (s * (25 + 2 * f), 37, 6)]
            calcified = rng.random() < 0.5
            c.cord(choroid, [2.2, 2.4], 36, "ventricles", 2)
            if calcified:
                c.blob(
                    (s * (24 + 2 * f), 36 + rng.normal(), 7.0),
                    (1.6, 2.4, 2.2),
                    float(rng.uniform(120, 420)),
                    "calcification",
                    1.5,
                )


def _nuclei(c: Canvas, p: Person) -> None:
    """Capsules, basal ganglia, thalamus, third ventricle, pineal gland."""
    rng = c.rng
    g, v = p.grey - 0.6, p.ventricle
    for s in SIDES:
        j = rng.normal(0, 0.7, 6).tolist()
        fan: list[Point] = [(s * 17, -25, 8), (s * 17.5, -4, 6), (s * 23, 14, 8)]
        c.shape(
            (s * 22 - 14, -34, -12),
            (s * 22 + 14, 28, 26),
            tube(fan, [4.5, 4.0, 4.8], (1.0, 1.0, 3.6), 3),
            p.white - 1,
            "internal capsule",
            2.5,
        )
        thalamus = (s * (10.5 + 1.2 * v + j[0] * 0.5), 8 + j[1], 7)
        c.blob(thalamus, (7.8, 14.5, 9.5), g - 1.0, "deep nuclei", 2.5)
        box = c.box((s * 26 - 16, -36, -16), (s * 26 + 16, 30, 22), 2)
        if not c.x[box].size:
            continue
        x, y, z = c.at(box)
        bend = 0.006 * (y + 3) ** 2
        putamen = ellipsoid((s * (29 + j[2] * 0.5), -5 + j[3], 4), (5.0, 18.5, 12.5))(x + s * bend, y, z)
        pallidum = ellipsoid((s * (22.5 + j[2] * 0.5), -2 + j[3], 2), (4.5, 10.5, 8))(x + s * bend, y, z)
        c.paint(box, putamen + 0.5 * c.noise(8.0, box), g + 0.6, "deep nuclei", 1.8)
        c.paint(box, pallidum, g - 1.6, "deep nuclei", 2.0)
        c.cord([(s * 14, -22, -4), (s * 24, -16, -6)], [4, 4.5], g, "deep nuclei", 2)  # accumbens
    width = 0.9 + 1.7 * v * (0.5 + 0.6 * p.atrophy)
    c.shape(
        (-7, -12, -14),
        (7, 24, 14),
        lambda x, y, z: smooth_max(np.abs(x) - width, ellipsoid((0, 5, 0), (40, 16.5, 11))(x, y, z), 1.5),
        p.csf,
        "ventricles",
        1.2,
    )
    c.blob((0, 7, 1), (3, 2.2, 2.2), g, "deep nuclei", 1.5)  # massa intermedia
    c.blob((0, 26, 3), (2.8, 3.6, 2.4), 42, "deep nuclei")
    if rng.random() < 0.65:
        c.blob((float(rng.normal(0, 0.4)), 26, 3), (1.5, 2.0, 1.6), float(rng.uniform(110, 420)), "calcification", 1.3)


def _posterior_fossa(c: Canvas, p: Person, inner: np.ndarray) -> None:
    """Cerebellum with folia, fourth ventricle, brain stem."""
    g, w = p.grey, p.white
    box = c.box((-62, -4, -100), (62, 92, 14), 6)
    x, y, z = c.at(box)
    if not x.size:
        return
    tent = tentorium_height(x, y) - 1.5 - z
    d = smooth_max(inner[box] + 1.2 + 0.8 * p.atrophy, -tent.astype(np.float32), 4)
    hemispheres = ellipsoid((0, 48, -34), (62, 36, 32))(x, y, z)
    d = smooth_max(d, hemispheres, 4)
    front = 14 - 5 * np.clip((np.abs(x) - 10) / 10, 0, 1) + 0.12 * np.abs(x) - y + 0.05 * (z + 30)
    d = smooth_max(d, front.astype(np.float32), 5)
    valley = tube([(0, 84, -18), (0, 72, -48), (0, 52, -62)], [3.5, 4.0 + 2 * p.atrophy, 5.0])(x, y, z)
    d = smooth_max(d, -valley, 4) + 0.5 * c.noise(8.0, box)
    c.paint(box, np.maximum(d, inner[box] + 0.3), 0.55 * g + 0.45 * w + 0.6, "cerebellum")
    inside = d < -0.5
    n = [c.noise(scale, box)[inside] for scale in (12.0, 5.0)]
    ball = np.sqrt((x[inside] / 1.25) ** 2 + (y[inside] - 26) ** 2 + ((z[inside] + 28) * 1.15) ** 2)
    folia = np.cos((ball + 2.6 * n[0]) * F(2 * np.pi / 6.0)) * np.clip(-d[inside] / 2, 0, 1)
    core = np.clip((np.abs(x[inside]) - 5) / 6, 0, 1) * np.clip((-d[inside] - 10) / 7, 0, 1)
    tissue = 0.62 * g + 0.38 * w + 2.2 * folia + 1.0 * n[1] + 1.0 * np.exp(-((x[inside] / 7) ** 2))
    tissue = tissue + core * (w + 1.0 - tissue) * 0.8
    cleft = np.clip(folia - 0.6, 0, 1) * np.clip(1 - (-d[inside]) / 14, 0, 1) * (14 + 30 * p.atrophy)
    target = c.hu[box]
    target[inside] = tissue - cleft
    # Brain stem over the cisterns.
    stem = 0.5 * (g + w) + 0.3
    top = smooth_min(
        ellipsoid((0, 12, -12), (15.5, 12.5, 14))(x, y, z), tube([(-9, 2, -12), (-14, 2, -2)], [6.0, 8.0])(x, y, z), 3
    )
    top = smooth_min(top, tube([(9, 2, -12), (14, 2, -2)], [6.0, 8.0])(x, y, z), 3)
    pons = ellipsoid((0, 13, -32), (17, 12.5, 14.5))(x, y, z)
    peduncles = tube([(-12, 14, -33), (-26, 32, -36)], [7.5, 8.0])(x, y, z)
    peduncles = smooth_min(peduncles, tube([(12, 14, -33), (26, 32, -36)], [7.5, 8.0])(x, y, z), 2)
    cord = tube([(0, 14, -42), (0, 20, -56), (0, 26, -70), (0, 31, -105)], [10.5, 8.0, 6.3, 5.5], (1.15, 1.0, 1.0))(
        x, y, z
    )
    d = smooth_min(smooth_min(smooth_min(top, pons, 4), cord, 5), peduncles, 4)
    notch = tube([(0, -4, -14), (0, 1, -12)], [3.5, 2.0])(x, y, z)
    d = smooth_max(d, -notch, 3) + 0.4 * c.noise(7.0, box)
    # Behind the midbrain the stem ends where the thalamus begins.
    c.paint(box, np.maximum(smooth_max(d, z + 1, 3), inner[box] + 1.0), stem, "brain stem", 1.3)
    v = p.ventricle**0.6
    fourth = smooth_min(
        ellipsoid((0, 28, -34), (8.0 * v, 4.6 * v, 11))(x, y, z),
        tube([(-10 * v, 27, -38), (10 * v, 27, -38)], [1.2, 1.2])(x, y, z),
        3,
    )
    fourth = smooth_min(fourth, tube([(0, 28, -34), (0, 36, -36)], [3.6 * v, 2.4 * v])(x, y, z), 3)
    fourth = smooth_min(fourth, tube([(0, 25, -28), (0, 21, -10), (0, 20, 0)], [2.0, 1.0, 0.9])(x, y, z), 2)
    fourth = smooth_min(fourth, tube([(0, 29, -42), (0, 36, -56)], [2.5, 3.0])(x, y, z), 3)
    c.paint(box, fourth + 0.4 * c.noise(6.0, box), p.csf, "ventricles", 1.2)


def _dura_and_vessels(c: Canvas, p: Person, inner: np.ndarray) -> None:
    rng, blood = c.rng, p.blood
    # Falx: down to an arc above the callosum in front, to the tentorium behind.
    box = c.box((-8, -92, -34), (8, 94, 90), 6)
    x, y, z = c.at(box)
    lean = 1.3 * c.noise(50.0, box)
    clear = np.sqrt(((y - 4) / 56) ** 2 + ((z - 2) / np.where(z > 2, F(40), F(30))) ** 2)
    floor = np.where(y > 34, tentorium_height(x * 0, y) - z, -14 - z)
    falx = np.abs(x - lean) - 0.3 - 0.3 * np.clip(y / 60, 0, 1)
    falx = np.maximum(falx, np.maximum(np.maximum(inner[box] + 0.2, (1 - clear) * 40), floor))
    c.paint(box, falx, blood + 4, "falx and tentorium", 1.2)
    if rng.random() < 0.25:
        c.blob((1, -58 + 20 * rng.random(), 40.0), (1.2, 5, 5), float(rng.uniform(200, 500)), "calcification")
    wedge = (np.abs(x - lean) - 4.2) * 0.75 - (inner[box] + 3.0) * 0.55
    sagittal = np.maximum(np.maximum(wedge, -7 - inner[box]), inner[box] + 0.2)
    sagittal = np.maximum(sagittal, np.where((z > 12) | (y > 30), F(-30), F(30)) + np.where(z < -10, F(60), F(0)))
    taper = 2.5 * np.clip((-y + 10) / 60, 0, 1)
    c.paint(box, smooth_max(sagittal + taper, -18 - z, 2), blood, "venous sinuses")
    c.cord([(0, 36, 8), (0, 55, -2), (0, 80, -14)], [1.6, 1.8, 2.4], blood, "venous sinuses")
    c.cord([(0, 30, 6), (0, 36, 9)], [2.0, 1.8], blood, "venous sinuses")  # great vein
    big = 1.0 if rng.random() < 0.65 else -1.0
    # Tentorium and transverse sinuses at its attachment.
    box = c.box((-64, 2, -36), (64, 94, 14), 6)
    x, y, z = c.at(box)
    leaf = np.abs(z - tentorium_height(x, y)) * F(0.75) - 0.65
    notch = np.sqrt((x / 17) ** 2 + ((y - 8) / 24) ** 2)
    leaf = np.maximum(leaf, np.maximum((1 - notch) * 16, inner[box] + 0.3))
    leaf = np.maximum(leaf, 14 - y + 0.1 * np.abs(x))
    c.paint(box, leaf, blood - 3, "falx and tentorium", 1.2)
    size = np.where(x * big > 0, F(4.6), F(3.0))
    along = np.sqrt((z - tentorium_height(x, y) - 0.5) ** 2 + np.minimum(inner[box] + size * 0.7, 0) ** 2) - size * 0.8
    along = np.maximum(along, np.maximum(inner[box] + 0.3, 30 - y))
    along = smooth_max(along, -6 - inner[box], 1)
    c.paint(box, along, blood, "venous sinuses")
    for s in SIDES:
        r = 4.2 if s == big else 2.9
        box = c.box((s * 48 - 14, 4, -64), (s * 48 + 14, 46, -18), 4)
        if c.x[box].size:
            sigmoid = tube([(s * 54, 40, -24), (s * 53, 30, -32), (s * 45, 24, -44), (s * 34, 18, -56)], [r, r, r, r])(
                *c.at(box)
            )
            c.paint(box, sigmoid, blood, "venous sinuses", 1.2)
    # Basilar artery before the pons, its top dividing; carotids and middle cerebral arteries.
    bend = rng.normal(0, 1.5)
    r = float(rng.uniform(1.9, 2.6))
    artery: list[Point] = [(bend * 0.5, 7.5, -50), (bend, 2.0, -42), (bend * 0.6, -1.5, -32), (0, -3.5, -20)]
    c.cord(artery, [r, r, r, r * 0.9], blood + 3, "basilar artery", 1.0)
    for s in SIDES:
        c.cord([artery[0], (s * 7, 10, -60)], [r * 0.8, r * 0.8], blood, "basilar artery")
        c.cord([artery[-1], (s * 9, 0, -17), (s * 16, 9, -14)], [1.1, 1.0, 0.8], blood - 4, "basilar artery")
        c.cord(
            [(s * 8, -14, -24), (s * 8, -15, -16), (s * 22, -17, -13), (s * 36, -17, -8)],
            [2.3, 2.0, 1.3, 1.0],
            blood,
            "venous sinuses",
        )
        if p.atrophy > 0.5 and rng.random() < 0.6:
            c.blob((s * 9.5, -13, -23), (1.8, 1.5, 2.5), float(rng.uniform(200, 600)), "calcification")
