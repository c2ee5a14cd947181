"""Everything of the head but the brain: skin, fat, muscles, skull, facial bones, air spaces, orbits, ears."""

from collections.abc import Sequence

import numpy as np

from slicewise.data.phantom.shapes import Canvas, F, Person, Piece, ellipsoid, smooth_max, smooth_min, tube, union

PETROUS = ((12, 0, -38), (34, 9, -36), (58, 23, -34))
EAR = Piece("skin", 15, ((72, 6, -38), (86, 36, -38)), (2.2, 2.2), 1, (1, 1, 10))
# Chewing muscles, fat between them, parotid gland.
DEEP_FACE = (
    Piece("muscle", 52, ((58, -42, -46), (55, -34, -82)), (6.5, 7)),
    Piece("fat", -96, ((40, -52, -64),), (11, 9, 20), 3),
    Piece("muscle", 54, ((24, -18, -56), (40, -16, -84)), (6, 7)),
    Piece("muscle", 5, ((57, -2, -76),), (7, 14, 18), 4),
)
BONES = (
    Piece("skull base", 1050, PETROUS, (5.6, 7, 8), 1.5),
    Piece("skull base", 1750, ((27, 8, -38), (38, 12, -38)), (4, 4.5), 1.5),  # otic capsule
    Piece("mastoid", 900, ((57, 27, -42),), (9.5, 13, 15), 1.5),
    Piece("mastoid", 950, ((58, 27, -48), (55, 24, -62)), (8, 5), 1.5),
    # Zygomatic arch, rim and outer wall of the orbit; ramus of the mandible.
    Piece("facial bone", 1050, ((43, -76, -42), (57, -64, -44), (66, -42, -43), (67, -14, -40)), (4.5, 3.8, 2.4, 3)),
    Piece("facial bone", 1050, ((46, -74, -42), (50, -66, -27), (47, -72, -10)), (3.6, 2.6, 3.4)),
    Piece("facial bone", 1050, ((50, -66, -28), (44, -48, -26), (34, -36, -22)), (2, 1.8, 2.4)),
    Piece("facial bone", 1150, ((52, -8, -48), (50, -12, -60), (50, -18, -95)), (4.6, 3.6, 4.4), 1, (0.7, 1.7, 1)),
    # Sphenoid wing, clivus; occipital condyle, atlas, dens.
    Piece("skull base", 700, ((20, -26, -34), (36, -22, -42)), (4.5, 4), 2),
    Piece("skull base", 620, ((0, -20, -28), (0, -14, -32), (0, -9, -42), (0, 8, -62)), (10, 7, 5.5, 4), 2),
    Piece("skull base", 750, ((17, 19, -64),), (6, 10, 6), 1.5),
    Piece("skull base", 800, ((20, 19, -78), (18, 38, -78), (0, 47, -78)), (8.5, 3.5, 3.5)),
    Piece("skull base", 900, ((0, 15, -74), (0, 16, -110)), (5, 6.5)),
    # Upper jaw and palate; nasal bones and the frame of the nose.
    Piece("facial bone", 900, ((29, -46, -80), (25, -70, -80), (11, -85, -80), (0, -86, -80)), (5.5,) * 4, 2),
    Piece("facial bone", 1050, ((0, -56, -72),), (26, 28, 1.6)),
    Piece("facial bone", 1050, ((0, -86, -14), (0, -93, -30)), (4.5, 3)),
    Piece("facial bone", 1050, ((5, -88, -28), (14, -80, -42), (13, -80, -62)), (2.2, 2.4, 2.6)),
)
# In the nasal cavity: septum and turbinates. Behind it the pharynx; beside it the ear canals.
AIRWAYS = (
    Piece("mucosa", 130, ((0, -58, -44),), (1.5, 33, 27)),
    Piece("mucosa", 42, ((7, -64, -47), (7.5, -34, -47)), (3, 3), 1, (1, 1, 2.2)),
    Piece("mucosa", 42, ((7, -78, -61), (7.5, -34, -61)), (3.6, 3.6), 1, (1, 1, 2.2)),
    Piece("mucosa", 40, ((0, -20, -58), (0, -14, -72), (0, -12, -100)), (9, 9, 7)),
    Piece("air cavities", -990, ((0, -22, -58), (0, -15, -72), (0, -12, -100)), (6, 5.5, 6), 1, (1.8, 1, 1)),
    Piece("air cavities", -980, ((76, 10, -46), (62, 10, -44), (46, 8, -42)), (2.8, 3, 4)),
)
# Optic nerve, four straight muscles, lid, globe with sclera, vitreous and lens.
EYES = (
    Piece("optic nerve", 36, ((31.5, -62, -27), (25, -50, -26), (18, -36, -24)), (2.6, 2, 2.2)),
    Piece("orbit", 52, ((41.5, -70, -27), (34.5, -54, -27), (20, -36, -24)), (0.9, 2.2, 1.2)),
    Piece("orbit", 52, ((21.5, -70, -27), (17.5, -54, -27), (16, -36, -24)), (0.9, 2.2, 1.2)),
    Piece("orbit", 52, ((31.5, -70, -17), (26, -54, -18.5), (18, -36, -22)), (0.9, 2.2, 1.2)),
    Piece("orbit", 52, ((31.5, -70, -37), (26, -54, -35.5), (18, -36, -26)), (0.9, 2.2, 1.2)),
    Piece("skin", 40, ((31.5, -80.5, -27),), (13, 4, 10)),
    Piece("eye", 48, ((31.5, -72, -27),), (11.8, 11.8, 11.8)),
    Piece("eye", 9, ((31.5, -72, -27),), (10.5, 10.5, 10.5)),
    Piece("lens", 85, ((31.5, -80.2, -27),), (4.6, 2.2, 4.6)),
)


def surfaces(p: Person, rng: np.random.Generator, at: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Distances to the inner table of the skull and to the skin, mm, float32; `at` is x, y, z."""
    inner = _vault(p, *at)
    outside = inner - F(p.skull + p.scalp) - 3 * np.clip((-at[2] - 5) / 40, 0, 1)
    low = int(np.argmax((at[2] < 40).any((1, 2))))  # what lies above is vault alone
    inner[low:] = _fossae(p, rng, inner[low:], *(v[low:] for v in at))
    outside[low:] = _face(rng, outside[low:], *(v[low:] for v in at))
    return inner, outside


def _vault(p: Person, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Distance to the vault: an egg, broader behind, a superellipsoid of exponent 2.3, deeper below z = 8."""
    n = 2.3
    wide = p.width * (1 - p.egg * np.clip((-y - 5) / 80, -0.25, 1.1) - 0.05 * np.clip((y - 30) / 50, 0, 1))
    radii = (wide, F(p.length), np.where(z > 8, F(p.height), F(105)))
    ratios = [np.abs(v) / r for v, r in zip((x, y, z - 8), radii, strict=True)]
    powers = [u ** (n - 1) for u in ratios]
    s = sum(u * q for u, q in zip(ratios, powers, strict=True)) + F(1e-6)
    f = s ** (1 / n)
    slope = f / s * np.sqrt(sum((q / r) ** 2 for q, r in zip(powers, radii, strict=True)))
    found: np.ndarray = (f - 1) / np.maximum(slope, F(2e-3))
    return found


def _fossae(p: Person, rng: np.random.Generator, vault: np.ndarray, *at: np.ndarray) -> np.ndarray:
    """The vault over the three fossae, less petrous ridges, sphenoid wings, clivus and occipital crest."""
    j = rng.normal(0, 1.2, 5).tolist()
    x, y, z = at
    a, k = np.abs(x), p.width / 67
    roof = 9.5 * np.exp(-(((a - 29) / 15) ** 2) - ((y + 58) / 24) ** 2)  # of the orbits
    upper = smooth_max(vault, j[0] - 17.5 + roof - 4 * np.exp(-((x / 7) ** 2)) - z, 6)
    back = ellipsoid((0, 40 + j[1], -30), (57 * k, 46, 35 + j[2]))
    middle = ellipsoid((39 * k, -15 + j[3], -22), (27 * k, 32, 20.5 + j[4]))
    out = smooth_min(upper, smooth_max(union(3, back, middle)(a, y, z), vault + 1, 8), 5)
    ridges = union(
        2,
        tube(PETROUS, (6, 7.5, 8.5)),
        tube(((10, -25, -16), (34, -36, -13), (60, -44, -8)), (2.6, 2.4, 4.5)),
        tube(((0, -22, -24), (0, -13, -26), (0, -8, -42), (0, 9, -64)), (8.5, 5, 5, 4), (2, 1, 1)),
        tube(((0, 92, -12), (0, 84, -40), (0, 62, -66)), (5, 5.5, 4)),
    )
    out = smooth_max(out, -ridges(a, y, z), 4)
    return smooth_min(out, tube(((0, 27, -50), (0, 29, -66), (0, 33, -100)), (17, 14.5, 11.5))(x, y, z), 3)


def _face(rng: np.random.Generator, vault: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """The vault joined by face, brow, cheeks, nose and neck, with a hollow before each orbit."""
    j = rng.normal(0, 1.3, 5).tolist()
    for fillet, shape in (
        (12, ellipsoid((0, -36, -50), (71 + j[0], 62 + j[1], 62))),
        (10, ellipsoid((0, -62, -10), (44, 33, 18))),
        (8, ellipsoid((0, -50, -62), (64 + j[2], 47, 36))),
        (8, tube(((0, -90, -18), (0, -101 + j[3], -38), (0, -107 + j[3], -54)), (5, 6.5, 9.5))),
        (5, ellipsoid((0, -99, -58), (16, 7.5, 7.5))),
        (14, tube(((0, 28, -45), (0, 30, -120)), (53 + j[4], 52 + j[4]), (1.16, 1, 1))),
    ):
        vault = smooth_min(vault, shape(x, y, z), fillet)
    return smooth_max(vault, -ellipsoid((34, -103, -27), (17, 10, 13))(np.abs(x), y, z), 8)


def paint_soft_tissue(c: Canvas, p: Person) -> None:
    """Ears; skin, fat, and muscle bellies between fat planes, wherever there is head."""
    c.pieces(EAR, spread=1.5)
    c.paint(c.outside, 52, "skin")
    c.paint(smooth_max(c.outside + 2.3, 4 - c.inner, 1), -98 + 9 * c.noise(5.0), "fat")
    low = c.cut((-85, -100, -130), (85, 100, -8), 4)
    bundle, wide = low.noise(10.0), low.noise(40.0)
    # Planes are the zeros of a noise, wider in front.
    belly = (0.12 + 0.06 * wide + 0.16 * np.clip((12 - low.y) / 20, 0, 1) - np.abs(bundle)) * 8
    belly = np.maximum(belly, low.outside + 6 + 2.5 * wide + 7 * np.clip((-low.y - 35) / 30, 0, 1))
    belly = smooth_max(np.maximum(belly, 6 - low.inner), low.z + 30, 5)
    low.paint(belly, 54 + 3 * low.noise(3.0), "muscle", 1.3)
    temple = c.cut((-86, -62, -52), (86, 22, 28), 4)
    fan = ellipsoid((60, -22, -8), (24, 36, 34))(np.abs(temple.x), temple.y, temple.z)
    lies = smooth_max(temple.inner - 15, temple.outside + 3, 2)
    temple.paint(smooth_max(fan, lies, 3), 51 + 4 * temple.noise(5.0), "muscle")
    c.pieces(*DEEP_FACE, spread=1.0)


def paint_skull(c: Canvas, p: Person) -> None:
    """Vault with two tables and diploe, thin at the temples; skull base, mastoids, facial skeleton."""
    relief = c.noise(40.0)
    side = np.clip((np.abs(c.x) - 40) / 20, 0, 1) * np.clip((28 - c.z) / 30, 0, 1)
    thick = (p.skull + 0.7 * relief) * (1 - 0.42 * side)
    thick += 3 * np.exp(-((c.x / 12) ** 2) - ((c.z + 16) / 14) ** 2) * (c.y > 50)  # external occipital protuberance
    base = np.clip((-8 - c.z) / 6, 0, 1) * np.clip((58 - c.y) / 15, 0, 1)
    thick += base * (2.4 + 0.6 * relief - thick)
    shell = np.maximum(-c.inner, c.inner - np.minimum(thick, c.inner - c.outside - 3))
    # Below the foramen the canal has no skull.
    c.paint(np.maximum(shell, -66 - c.z), p.bone + 90 * c.noise(8.0), "skull")
    marrow = np.maximum(1.5 - c.inner, c.inner - thick + 1.7) + 0.35 * c.noise(4.0)
    c.paint(np.maximum(marrow, base * 8 - 2), 300 + 0.07 * p.bone + 150 * c.noise(3.0), "diploe", 1.3)
    c.pieces(*BONES)


def paint_air(c: Canvas, p: Person) -> None:
    """Nasal cavity, ethmoid and mastoid cells, the other sinuses, nasopharynx, ear canals."""
    nose = c.cut((-18, -103, -78), (18, -14, -34), 4)
    passage = tube(((0, -96, -62), (0, -77, -55), (0, -50, -54), (0, -28, -56)), (6, 12, 13, 11), (1, 1, 1.4))
    _hollow(nose, passage(nose.x, nose.y, nose.z), "facial bone", 1.6)
    for label, centre, radii, medial, spread in (
        ("facial bone", (31.0, -58.0, -56.0), (13.0, 16.0, 15.0), 15.0, 0.07),
        ("skull base", (8.5, -24.0, -31.0), (9.5, 11.0, 8.5), 0.0, 0.12),
        ("skull", (10.0, 5 - p.length - 0.5 * p.skull, -8.0), (11.0, 4.0, 12.0), 0.8, 0.3),
    ):
        for s in (-1, 1):
            r = np.array(radii) * np.clip(p.sinus * c.rng.normal(1, spread), 0.3, 1.4)
            at = np.array(centre) * (s, 1, 1) + c.rng.normal(0, 0.8, 3)
            part = c.cut((at - r).tolist(), (at + r).tolist(), 8)
            sinus = ellipsoid(at.tolist(), r.tolist())(part.x, part.y, part.z) + 1.5 * part.noise(11.0)
            # Mucosa is thin in most sinuses and swollen in some.
            _hollow(part, smooth_max(sinus, medial - s * part.x, 2), label, c.rng.gamma(0.7, 0.9))
    ethmoid = c.cut((-15, -84, -44), (15, -32, -14), 4)
    cells = tube(((0, -72, -29), (0, -46, -29)), (12, 13.5))(ethmoid.x, ethmoid.y, ethmoid.z) + ethmoid.noise(9.0)
    _hollow(ethmoid, cells, "facial bone", 0)
    walls = np.minimum(np.abs(ethmoid.noise(7.0)), np.abs(ethmoid.noise(8.0))) * 4.5 - 0.6  # zeros of noise
    ethmoid.paint(np.maximum(walls, cells), 300, "facial bone")
    mastoid = c.cut((-69, 4, -66), (69, 46, -24), 6)
    shape = union(3, ellipsoid((57, 27, -42), (8, 11, 13)), tube(((44, 14, -38), (56, 24, -37)), (4.5, 6)))
    reach = shape(np.abs(mastoid.x), mastoid.y, mastoid.z) + 6 * (1 - p.sinus)
    walls = np.abs(mastoid.noise(6.5)) + 0.5 * np.abs(mastoid.noise(5.0))
    mastoid.paint(np.maximum(reach, (0.5 - walls) * 4), -820, "mastoid", 1.4)
    c.pieces(*AIRWAYS, spread=0.7)


def _hollow(c: Canvas, distance: np.ndarray, wall: str, lining: float) -> None:
    """An air space: its bony wall around `distance`, mucosa of `lining` mm within, air."""
    c.paint(distance - 1.3, 900, wall)
    c.paint(distance, 38, "mucosa")
    c.paint(distance + lining, -985, "air cavities")


def paint_orbits(c: Canvas, p: Person) -> None:
    """Bony cones filled with fat, and the eyes in them."""
    part = c.cut((-56, -96, -52), (56, -32, -2), 4)
    cone = tube(((31.5, -74, -27), (28, -56, -27), (19, -36, -24)), (18, 15.5, 5.5))(np.abs(part.x), part.y, part.z)
    part.paint(smooth_max(np.abs(cone - 1) - 1, -80 - part.y, 2), 900, "facial bone")
    part.paint(smooth_max(cone, part.outside + 2.6, 2), -88, "orbit")
    c.pieces(*EYES, spread=0.8)
