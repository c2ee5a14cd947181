"""The contents of the skull: cortex and white matter, fluid spaces, nuclei, cerebellum, brain stem, dura, vessels.

Shapes of pairs are told of |x|; folds, noise and the bent coordinates make the two sides differ.
"""

import numpy as np
from scipy import ndimage

from slicewise.data.phantom.labels import LABELS
from slicewise.data.phantom.shapes import Canvas, F, Person, Piece, ellipsoid, smooth_max, smooth_noise, tube, union


def tentorium_height(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Height of the tentorium: a tent whose ridge runs from the notch (y = 34, z = 6) down to the torcula."""
    ridge = 7 - 0.42 * np.maximum(y - 34, 0) - 0.5 * np.maximum(20 - y, 0)
    edge = -24 + 0.2 * (y - 40)
    t = np.clip(np.abs(x) / 56, 0, 1)
    found: np.ndarray = edge + np.maximum(ridge - edge, 0) * (1 - t) ** (1.7 + 2.0 * np.clip((26 - y) / 20, 0, 1))
    return found


def paint_brain(c: Canvas, p: Person) -> None:
    """Fill the cranial cavity."""
    c.paint(c.inner + 0.2, p.csf + 2, "sulci", 0.9)
    for paint in (_cerebrum, _cisterns, _ventricles, _nuclei, _cerebellum, _brain_stem, _dura_and_vessels):
        paint(c, p)


def _cerebrum(c: Canvas, p: Person) -> None:
    """Cortical ribbon folded along sulci, white matter inside.

    Sulci are zero sets of a smooth noise that is read at each point's foot on the brain surface, so that they run
    perpendicular to the surface; their depth and width vary along them. All is done on the voxels of the brain alone.
    """
    b, old = c.cut((-75, -92, -55), (75, 92, 86)), p.atrophy
    x, y, z = b.x, b.y, b.z
    gap = (0.9 + 1.6 * old) * (1 + 0.5 * np.clip((-y - 20) / 40, 0, 1)) + 0.5 * b.noise(25.0)
    floor = np.where(y > 2, F(0.85) * (tentorium_height(x, y) + 2 - z), F(-30))
    hemi = smooth_max(b.inner + gap, floor, 3)
    # The fissure between the hemispheres stops at an arc above and before the callosum.
    arc = np.hypot((y - 2) / 44, (z - 4) / np.where(z > 4, F(26), F(15))) - 1
    width = 0.35 + 1.1 * old * np.clip(-y / 50 + 0.5, 0.2, 1)
    fissure = width - np.abs(x - 1.2 * b.noise(45.0) - 0.6 * b.noise(14.0)) + 30 * np.minimum(arc, 0)
    surface = np.maximum(hemi, fissure)
    inside = (surface < 0.8) & (b.inner < -0.3)
    on_falx = (fissure > hemi)[inside]
    # The gradient of depth gives the foot; blurred, or it would jump at ridges.
    gz, gy, gx = (g[inside] for g in np.gradient(ndimage.uniform_filter(surface, 5), *b.step))
    x, y, z, surface = x[inside], y[inside], z[inside], surface[inside]
    depth = np.maximum(-surface, 0)
    travel = np.minimum(depth, 24) * F(0.85) / (np.sqrt(gz * gz + gy * gy + gx * gx) + F(0.1))
    foot = (z - travel * gz, y + travel * gy, x + travel * gx)  # z falls along the slice axis
    main, small, deep, broad, wide = (_noise_at(c.rng, foot, scale) for scale in (5.6, 4.1, 14.0, 11.0, 30.0))

    def sulci(distance: np.ndarray, reach: np.ndarray, half: np.ndarray) -> np.ndarray:
        half = half * np.sqrt(np.clip(1 - depth / reach, 0, 1))
        found: np.ndarray = np.hypot(distance, np.maximum(depth - reach, 0)) - half
        return found

    # |noise| times a length is about the distance to its zeros. Sulci on the medial and the lower surface are less
    # open: they lie along the falx or the slice, where they would show too much.
    quiet = np.where(on_falx, F(0.55), F(1)) * (1 - F(0.5) * np.clip((2 - z) / 12, 0, 1))
    half = quiet * np.clip(0.7 + 1.2 * old + (0.6 + 0.4 * old) * broad + 0.45 * wide, 0.15, 2.7)
    half *= 1 + 0.6 * np.exp(-depth / 3)
    fluid = sulci(np.abs(main + 0.25 * small) * F(4.6), np.clip(14 + 8 * deep, 2.5, 27), half)
    half = np.clip(0.1 + 0.4 * old + 0.25 * wide, 0.05, 1.2)
    fluid = np.minimum(fluid, sulci(np.abs(small) * F(3.4), np.clip(3.5 + 4 * broad, 0.1, 8), half))
    fluid = np.minimum(fluid, _sylvian(old, np.abs(x), y, z, broad))
    white = p.white + 0.9 * wide - 3.5 * old * np.exp(-(((np.abs(x) - 20) / 9) ** 2))  # darker about the ventricles
    is_white = np.clip(0.5 + (np.minimum(fluid, depth) - 2.9 - 0.5 * deep) / 1.4, 0, 1)
    is_fluid = np.clip(0.5 - np.minimum(fluid, -surface) / 0.9, 0, 1)
    hu = p.grey + deep + is_white * (white - p.grey - deep)
    b.hu[inside] = hu + is_fluid * (p.csf + 1.5 - hu)
    tissue = np.where(is_white > 0.5, LABELS["white matter"], LABELS["grey matter"])
    b.labels[inside] = np.where(is_fluid > 0.5, LABELS["sulci"], tissue)


def _noise_at(rng: np.random.Generator, foot: tuple[np.ndarray, ...], scale: float) -> np.ndarray:
    """Unit noise of `scale` mm at scattered points, (z, y, x) in mm: a field of 3 points a scale, trilinear."""
    halves, step = (100, 120, 105), scale / 3
    field = smooth_noise(rng, tuple(int(2 * half / step) for half in halves), (step,) * 3, scale)
    at = [(v + F(half)) / F(step) for v, half in zip(foot, halves, strict=True)]
    found: np.ndarray = ndimage.map_coordinates(field, at, order=1, mode="nearest", output=np.float32)
    return found


def _sylvian(old: float, a: np.ndarray, y: np.ndarray, z: np.ndarray, broad: np.ndarray) -> np.ndarray:
    """Distance to the Sylvian fissures: the sheet on the insula and the cleft that rises backwards from it to the
    surface. `a` is |x|."""
    width = 0.7 + 1.9 * old + 0.6 * broad
    iy, iz = (y - 2) / 25, (z - 4) / 17
    far = np.hypot(iy, iz)
    sheet = np.abs(a - 41.5 + 4.5 * iy * iy + 3 * iz * iz - 2 * broad) - width * np.clip(1.25 - far, 0, 0.75)
    taper = np.clip((38 - y) / 25, 0, 1) * np.clip((y + 31) / 16, 0, 1) * (0.75 + 0.5 * np.clip(-y / 25, 0, 1))
    cleft = np.abs(z + 6 - 0.34 * (y + 15) - 0.3 * (a - 46) - 1.8 * broad) + 0.3 - width * taper
    cleft = np.maximum(cleft, np.maximum(39 - a, np.abs(y - 5) - 35))
    found: np.ndarray = np.minimum(np.maximum(sheet, (far - 1) * 16), cleft)
    return found


def _cisterns(c: Canvas, p: Person) -> None:
    """Fluid about the brain stem, which is painted over it."""
    b, k = c.cut((-42, -34, -70), (42, 66, 14), 4), 0.85 + 0.3 * p.atrophy
    space = union(
        2.5,
        ellipsoid((0, -13, -17), (10 * k, 9, 6.5)),  # suprasellar
        tube(((0, -11, -16), (17, -17, -16), (40, -18, -8)), (4.5 * k, 2 * k, 1.7 * k)),
        ellipsoid((0, 9, -13), (19.5 + k, 17.5 + k, 15)),  # ambient
        tube(((0, 30, 1), (7, 28.5, -1), (17, 26, -6)), (4 * k, 2.6 * k, 1.2)),  # quadrigeminal
        ellipsoid((0, 8, -32), (19, 16, 18)),  # before and beside the pons
        ellipsoid((0, 45, -60), (11 * k, 9, 10 * k)),  # magna
        ellipsoid((0, 22, -62), (12, 13, 20)),
    )
    b.paint(np.maximum(space(np.abs(b.x), b.y, b.z) + b.noise(9.0), b.inner + 0.3), p.csf + 2, "cisterns")


def _ventricles(c: Canvas, p: Person) -> None:
    """Callosum and lateral ventricles."""
    arc = ((0, -24, -1), (0, -37, 6), (0, -32, 19), (0, -5, 27), (0, 22, 24), (0, 36, 14))
    c.pieces(Piece("corpus callosum", p.white - 0.5, arc, (2, 5, 4.5, 3.5, 4.2, 5.5), 2, (4, 1, 1)))
    for s in (-1, 1):
        f = p.ventricle * c.rng.normal(1, 0.05)
        b = c.cut((s * 20 - 24, -52, -30), (s * 20 + 24, 72, 34), 2)
        x = s * b.x
        body = np.array(((11, -37, 8), (7, -24, 11), (6, -6, 16), (9, 12, 20), (16, 27, 17), (24, 37, 8)), float)
        body[:, 0] += np.array((2, 1.5, 1.5, 2, 3, 2)) * f
        body += c.rng.normal(0, 0.8, body.shape)
        back, horn = body[-1].tolist(), c.rng.uniform(0.3, 1.2)
        space = union(
            4,
            tube(body.tolist(), np.multiply((2.8, 5.6, 4.4, 4.6, 5.0, 6.2), f).tolist(), (1, 1, 1.35)),
            tube((back, (25, 50, 4), (20, 54 + 8 * horn, 2)), (4 * f, 2.6 * f, f)),
            tube((back, (32, 24, -7), (32, 8, -17), (27, -6, -22)), (4.2 * f, 2.2 * f, 1.5 * f, 2 * f)),
        )
        # Nothing crosses the septum.
        b.paint(smooth_max(space(x, b.y, b.z), 0.9 - x, 2) + 0.7 * b.noise(12.0), p.csf, "ventricles", 1.2)


def _nuclei(c: Canvas, p: Person) -> None:
    """Caudate, capsule, thalamus, putamen, pallidum, third ventricle, and what calcifies in some."""
    g, v = p.grey - 0.6, p.ventricle
    caudate = ((13.5 + 2 * v, -27, 5), (13.5 + 2.2 * v, -17, 12), (14 + 2.5 * v, 0, 19), (18 + 3 * v, 16, 21))
    capsule = ((17, -25, 8), (17.5, -4, 6), (23, 14, 8))
    pieces = [
        Piece("deep nuclei", p.grey, caudate, (5.6, 5, 3, 1.8), 1.6),
        Piece("internal capsule", p.white - 1, capsule, (4.5, 4, 4.8), 2.5, (1, 1, 3.6)),
        Piece("deep nuclei", g - 1, ((10.5 + 1.2 * v, 8, 7),), (7.8, 14.5, 9.5), 2.5),
        Piece("deep nuclei", g + 0.6, ((27, -20, 4), (29, -5, 4), (26, 10, 4)), (3.5, 5, 3.2), 1.8, (1, 1, 2.4)),
        Piece("deep nuclei", g - 1.6, ((21.5, -10, 2), (22.5, -2, 2), (20, 6, 2)), (2.5, 4.2, 2.5), 2, (1, 1, 1.8)),
        Piece("ventricles", p.csf, ((0, 5, 0),), (1 + 1.9 * v * (0.5 + 0.6 * p.atrophy), 16.5, 11), 1.2),
    ]
    for place in (((0, 26, 3),), ((24 + 2 * v, 36, 7),)):  # pineal gland, choroid plexus
        if c.rng.random() < 0.6:
            pieces += [Piece("calcification", c.rng.uniform(110, 420), place, (1.6, 2.2, 2), 1.5)]
    c.pieces(*pieces)


def _cerebellum(c: Canvas, p: Person) -> None:
    """Two hemispheres under the tentorium with folia about a white core, and a valley between them."""
    b = c.cut((-62, -4, -100), (62, 92, 14), 6)
    a, y, z = np.abs(b.x), b.y, b.z
    d = smooth_max(b.inner + 1.2 + 0.8 * p.atrophy, z + 1.5 - tentorium_height(a, y), 4)
    d = smooth_max(d, ellipsoid((0, 48, -34), (62, 36, 32))(a, y, z), 4)
    d = smooth_max(d, 14 - 5 * np.clip((a - 10) / 10, 0, 1) + 0.12 * a - y + 0.05 * (z + 30), 5)
    valley = tube(((0, 84, -18), (0, 72, -48), (0, 52, -62)), (3.5, 4 + 2 * p.atrophy, 5))
    d = smooth_max(d, -valley(a, y, z), 4) + 0.5 * b.noise(8.0)
    # Folia are shells about the middle; fluid opens between them near the surface.
    shells = np.sqrt((a / 1.25) ** 2 + (y - 26) ** 2 + ((z + 28) * 1.15) ** 2) + 2.6 * b.noise(12.0)
    folia = np.cos(shells * F(2 * np.pi / 6)) * np.clip(-d / 2, 0, 1)
    core = np.clip((a - 5) / 6, 0, 1) * np.clip((-d - 10) / 7, 0, 1)
    hu = 0.62 * p.grey + 0.38 * p.white + 2.2 * folia + b.noise(5.0) + np.exp(-((a / 7) ** 2))
    hu += 0.8 * core * (p.white + 1 - hu)
    hu -= np.clip(folia - 0.6, 0, 1) * np.clip(1 + d / 14, 0, 1) * (14 + 30 * p.atrophy)
    b.paint(np.maximum(d, b.inner + 0.3), hu, "cerebellum")


def _brain_stem(c: Canvas, p: Person) -> None:
    """Midbrain, pons, medulla, their peduncles, and the fourth ventricle with its ways in and out."""
    b = c.cut((-30, -8, -110), (30, 60, 10), 6)
    at = np.abs(b.x), b.y, b.z
    stem = union(
        4,
        ellipsoid((0, 12, -12), (15.5, 12.5, 14)),
        tube(((9, 2, -12), (14, 2, -2)), (6, 8)),
        ellipsoid((0, 13, -32), (17, 12.5, 14.5)),
        tube(((0, 14, -42), (0, 20, -56), (0, 26, -70), (0, 31, -105)), (10.5, 8, 6.3, 5.5), (1.15, 1, 1)),
        tube(((12, 14, -33), (26, 32, -36)), (7.5, 8)),
    )
    notch = tube(((0, -4, -14), (0, 1, -12)), (3.5, 2))
    d = smooth_max(stem(*at), -notch(*at), 3) + 0.4 * b.noise(7.0)
    d = smooth_max(d, b.z + 1, 3)  # the thalamus begins above
    b.paint(np.maximum(d, b.inner + 1), 0.5 * (p.grey + p.white) + 0.3, "brain stem", 1.3)
    v = p.ventricle**0.6
    fourth = union(
        3,
        ellipsoid((0, 28, -34), (8 * v, 4.6 * v, 11)),
        tube(((0, 25, -28), (0, 21, -10), (0, 20, 0)), (2, 1, 0.9)),
        tube(((0, 29, -42), (0, 36, -56)), (2.5, 3)),
    )
    b.paint(fourth(*at) + 0.4 * b.noise(6.0), p.csf, "ventricles", 1.2)


def _dura_and_vessels(c: Canvas, p: Person) -> None:
    """Falx and tentorium; the venous sinuses where they meet the skull, larger on one side; arteries of the base."""
    b, blood = c.cut((-8, -92, -34), (8, 94, 90), 6), p.blood
    x, y, z, inner = b.x, b.y, b.z, b.inner
    off = np.abs(x - 1.3 * b.noise(50.0))
    clear = np.hypot((y - 4) / 56, (z - 2) / np.where(z > 2, F(40), F(30)))  # down to an arc above the callosum
    floor = np.where(y > 34, tentorium_height(0 * x, y), F(-14)) - z
    falx = np.maximum(off - 0.3 - 0.3 * np.clip(y / 60, 0, 1), np.maximum((1 - clear) * 40, floor))
    b.paint(np.maximum(falx, inner + 0.2), blood + 4, "falx and tentorium", 1.2)
    wedge = np.maximum((off - 4.2) * 0.75 - (inner + 3) * 0.55, np.maximum(-7 - inner, inner + 0.2))
    wedge += 2.5 * np.clip((10 - y) / 60, 0, 1) + np.where((z > 12) | (y > 30), F(0), F(30))
    b.paint(smooth_max(wedge, -18 - z, 2), blood, "venous sinuses")
    b = c.cut((-64, 2, -64), (64, 94, 14), 6)
    x, y, z, inner = b.x, b.y, b.z, b.inner
    above = z - tentorium_height(x, y)
    notch = np.maximum((1 - np.hypot(x / 17, (y - 8) / 24)) * 16, 14 - y + 0.1 * np.abs(x))
    leaf = np.maximum(np.abs(above) * F(0.75) - 0.65, np.maximum(notch, inner + 0.3))
    b.paint(leaf, blood - 3, "falx and tentorium", 1.2)
    big = c.rng.choice((-1, 1), p=(0.35, 0.65))
    r = np.where(x * big > 0, F(4.4), F(2.9))
    transverse = np.hypot(above - 0.5, np.minimum(inner + 0.7 * r, 0)) - 0.85 * r
    transverse = np.maximum(transverse, np.maximum(inner + 0.3, np.maximum(30 - y, -6 - inner)))
    sigmoid = tube(((54, 40, -24), (53, 30, -32), (45, 24, -44), (34, 18, -56)), (0, 0, 0, 0))(np.abs(x), y, z) - r
    b.paint(np.minimum(transverse, sigmoid), blood, "venous sinuses", 1.2)
    straight = ((0, 30, 6), (0, 36, 9), (0, 55, -2), (0, 80, -14))
    # Basilar artery before the pons with the vertebral and posterior cerebral ones; carotid and middle cerebral.
    thick, bend = c.rng.uniform(1.9, 2.6), c.rng.normal(0, 1.5)
    basilar = ((0, 7.5, -50), (bend, 2, -42), (0.6 * bend, -1.5, -32), (0, -3.5, -20))
    carotid = ((8, -14, -24), (8, -15, -16), (22, -17, -13), (36, -17, -8))
    c.pieces(
        Piece("venous sinuses", blood, straight, (2, 1.7, 1.8, 2.4)),
        Piece("basilar artery", blood + 3, basilar, (thick, thick, thick, 0.9 * thick)),
        Piece("basilar artery", blood, ((7, 10, -60), (0, 7.5, -50)), (0.8 * thick, 0.8 * thick)),
        Piece("basilar artery", blood - 4, ((16, 9, -14), (9, 0, -17), (0, -3.5, -20)), (0.8, 1, 1.1)),
        Piece("venous sinuses", blood, carotid, (2.3, 2, 1.3, 1)),
    )
