"""Everything of the head but the brain: skin, fat, muscles, skull, facial bones, air spaces, orbits, ears."""

import numpy as np

from slicewise.data.phantom.shapes import Canvas, Person, Point, ellipsoid, smooth_max, smooth_min, tube

SIDES = (-1.0, 1.0)
F = np.float32


def dome(p: Person, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Distance to the vault: an egg, broader behind, a superellipsoid of exponent 2.3, deeper below z = 8."""
    n = 2.3
    wide = p.width * (1 - p.egg * np.clip((-y - 5) / 80, -0.25, 1.1) - 0.05 * np.clip((y - 30) / 50, 0, 1))
    u = np.abs(x) / wide
    v = np.abs(y) / np.float32(p.length)
    w = np.where(z > 8, (z - 8) / np.float32(p.height), (8 - z) / np.float32(105.0))
    s = u**n + v**n + w**n + 1e-6
    f = s ** (1 / n)
    height = np.where(z > 8, F(p.height), F(105.0))
    slope = (s ** (1 / n - 1)) * np.sqrt(
        (u ** (n - 1) / wide) ** 2 + (v ** (n - 1) / p.length) ** 2 + (w ** (n - 1) / height) ** 2
    )
    return ((f - 1) / np.maximum(slope, 2e-3)).astype(np.float32)


def petrous(s: float) -> tuple[list[Point], list[float]]:
    return [(s * 12, 0, -38), (s * 34, 9, -36), (s * 58, 23, -34)], [6.0, 7.5, 8.5]


def cavity(p: Person, rng: np.random.Generator, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Distance to the inner table: vault over the three fossae, less petrous ridges, sphenoid wings and clivus."""
    vault = dome(p, x, y, z)
    low = lowest(z, 24)
    vault[low:] = _fossae(p, rng, vault[low:], x[low:], y[low:], z[low:])
    return vault


def lowest(z: np.ndarray, level: float) -> int:
    """First slice that reaches below `level` mm; above it the head is vault alone."""
    return int(np.argmax((z < level).any((1, 2))))


def _fossae(
    p: Person, rng: np.random.Generator, vault: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray
) -> np.ndarray:
    jit = rng.normal(0, 1.2, 24).tolist()
    k = p.width / 67
    floor = (
        -17.5
        + 9.5 * np.exp(-(((np.abs(x) - 29) / 15) ** 2) - ((y + 58) / 24) ** 2)
        - 4.0 * np.exp(-((x / 7) ** 2))
        + jit[0]
    )
    upper = smooth_max(vault, (floor - z).astype(np.float32), 6)
    lower = ellipsoid((0, 40 + jit[1], -30), (57 * k, 46, 35 + jit[2]))(x, y, z)
    for i, s in enumerate(SIDES):
        middle = ellipsoid((s * 39 * k, -15 + jit[3 + i], -22), (27 * k, 32, 20.5 + jit[5 + i]))(x, y, z)
        lower = smooth_min(lower, middle, 3)
    lower = smooth_max(lower, vault + 1.0, 8)
    out = smooth_min(upper, lower, 5)
    for i, s in enumerate(SIDES):
        out = smooth_max(out, -tube(*petrous(s))(x, y, z + jit[7 + i]), 4)
        wing = tube([(s * 10, -25, -16), (s * 34, -36, -13), (s * 60, -44, -8)], [2.6, 2.4, 4.5])
        out = smooth_max(out, -wing(x, y + jit[9 + i], z), 4)
    clivus = tube([(0, -22, -24), (0, -13, -26), (0, -8, -42), (0, 9, -64)], [8.5, 5, 5, 4], (2.0, 1.0, 1.0))
    out = smooth_max(out, -clivus(x, y, z), 4)
    crest = tube([(0, 92, -12), (0, 84, -40), (0, 62, -66)], [5.0, 5.5, 4.0], blend=1)
    out = smooth_max(out, -crest(x, y, z), 5)
    canal = tube([(0, 27, -50), (0, 29, -66), (0, 33, -100)], [17.0, 14.5, 11.5])
    return smooth_min(out, canal(x, y, z), 3)


def skin(p: Person, rng: np.random.Generator, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Distance to the surface of the head."""
    j = rng.normal(0, 1.3, 12).tolist()
    low = np.clip((-z - 5) / 40, 0, 1)
    whole = dome(p, x, y, z) - np.float32(p.skull + p.scalp) - np.float32(3.0) * low
    start = lowest(z, 40)
    out, x, y, z = whole[start:], x[start:], y[start:], z[start:]
    face = ellipsoid((0, -36, -50), (71 + j[0], 62 + j[1], 62))(x, y, z)
    out = smooth_min(out, face, 12)
    brow = ellipsoid((0, -62, -10), (44, 33 + j[2] * 0.5, 18))(x, y, z)
    out = smooth_min(out, brow, 10)
    cheek = ellipsoid((0, -50, -62), (64 + j[3], 47, 36))(x, y, z)
    out = smooth_min(out, cheek, 8)
    nose = tube([(0, -90, -18), (0, -101 + j[4], -38), (0, -107 + j[5], -54)], [5, 6.5, 9.5])(x, y, z)
    nose = smooth_min(nose, tube([(-9, -99, -58), (9, -99, -58)], [7.5, 7.5])(x, y, z), 5)
    out = smooth_min(out, nose, 8)
    neck = tube([(0, 28 + j[6], -45), (0, 30 + j[6], -120)], [53 + j[7], 52 + j[7]], (1.16, 1.0, 1.0))(x, y, z)
    out = smooth_min(out, neck, 14)
    for i, s in enumerate(SIDES):  # the socket's hollow beside the nose
        out = smooth_max(out, -ellipsoid((s * 34, -103, -27 + j[8 + i]), (17, 10, 13))(x, y, z), 8)
    whole[start:] = out
    return whole


def paint_soft_tissue(c: Canvas, p: Person, outside: np.ndarray, inner: np.ndarray) -> None:
    """Skin, fat with septa, and muscle bellies between fat planes, wherever there is head."""
    every = c.everywhere()
    c.paint(every, outside, 52, "skin")
    fat = -98 + 9 * c.noise(5.0)
    c.paint(every, smooth_max(outside + 2.3, -(inner - 4), 1), fat, "fat")
    # Galea and vessels: strands in the scalp.
    strand = np.abs(c.noise(7.0))
    c.paint(every, np.maximum((strand - 0.10) * 4, outside + 2.5), 15, "skin")
    low = c.box((-85, -100, -130), (85, 100, -8), 4)
    x, y, z = c.at(low)
    if x.size:
        bundle, wide = c.noise(10.0, low), c.noise(40.0, low)
        depth = outside[low]
        rind = 6 + 2.5 * wide + 7 * np.clip((-y - 35) / 30, 0, 1)
        planes = 0.12 + 0.06 * wide + 0.16 * np.clip((12 - y) / 20, 0, 1)
        belly = np.maximum((planes - np.abs(bundle)) * 8.0, depth + rind)
        belly = np.maximum(belly, 6 - inner[low])
        belly = smooth_max(belly, z + 30, 5)
        c.paint(low, belly, 54 + 3 * c.noise(3.0, low), "muscle", 1.3)
    for s in SIDES:
        j = c.rng.normal(0, 1.2, 4).tolist()
        # Temporalis lies on the vault; masseter and pterygoids hang from the arch and the base.
        box = c.box((s * 62 - 24, -62, -52), (s * 62 + 24, 22, 28), 4)
        if c.x[box].size:
            fan = ellipsoid((s * 60, -22 + j[0], -8), (24, 36, 34 + j[1]))(*c.at(box))
            c.paint(
                box,
                smooth_max(fan, smooth_max(inner[box] - 15, outside[box] + 3.0, 2), 3),
                51 + 4 * c.noise(5.0, box),
                "muscle",
            )
        c.cord([(s * 58, -42, -46), (s * 55, -34, -82)], [6.5, 7], 52, "muscle")
        c.blob((s * 40, -52 + j[2], -64), (11, 9, 20), -96, "fat", 3)  # buccal fat
        c.cord([(s * 22, -8, -52), (s * 24, -10, -80)], [5, 5], -90, "fat", 3)  # parapharyngeal fat
        c.blob((s * 37, -27 + j[2], -56), (10, 13, 8), 54, "muscle")
        c.cord([(s * 24, -18, -56), (s * 40, -16, -84)], [6, 7], 54, "muscle")
        c.cord([(s * 8, 1, -58), (s * 9, 4, -110)], [7, 8], 55, "muscle")
        c.blob((s * 57, -2 + j[3], -76), (7, 14, 18), 5, "muscle", 4)  # parotid


def paint_skull(c: Canvas, p: Person, inner: np.ndarray, outside: np.ndarray) -> None:
    """Vault with two tables, diploe and sutures; skull base, mastoids, facial skeleton."""
    every = c.everywhere()
    x, y, z = c.x, c.y, c.z
    relief = c.noise(40.0)
    thick = p.skull + 0.7 * relief + 0.12 * c.noise(6.0)
    side = np.clip((np.abs(x) - 40) / 20, 0, 1) * np.clip((28 - z) / 30, 0, 1)
    thick = thick * (1 - 0.42 * side)
    thick += 3.0 * np.exp(-((x / 12) ** 2) - ((z + 16) / 14) ** 2) * (y > 50)  # external occipital protuberance
    base = np.clip((-8 - z) / 6, 0, 1) * np.clip((58 - y) / 15, 0, 1)
    thick = thick * (1 - base) + base * (2.4 + 0.6 * relief)
    keep_in = np.minimum(thick, -outside + inner - 3.0)
    shell = np.maximum(-inner, inner - keep_in)
    shell = np.maximum(shell, -66 - z)  # below the foramen the canal has no skull
    table = p.bone + 90 * c.noise(8.0)
    c.paint(every, shell, table, "skull")
    cancellous = np.maximum(1.5 - inner, inner - thick + 1.7) + 0.35 * c.noise(4.0)
    cancellous = np.maximum(cancellous, base * 8 - 2)
    c.paint(every, cancellous, 300 + 0.07 * p.bone + 150 * c.noise(3.0), "diploe", 1.3)
    # Sutures: coronal, lambdoid, sagittal; seen as thin dark wavy clefts.
    wiggle = 1.6 * c.noise(4.0)
    coronal = np.abs(y + 22 - 0.35 * (z - 50) + wiggle) + np.where(z > 2, F(0), F(40))
    lambdoid = np.abs((y - 58) * 0.8 + (np.abs(x) - 30) * 0.55 - (z - 10) * 0.25 + wiggle) + np.where(
        z > -20, F(0), F(40)
    )
    sagittal = np.abs(x - 0.6 + wiggle) + np.where((y > -20) & (y < 60) & (z > 20), F(0), F(40))
    cleft = np.minimum(np.minimum(coronal, lambdoid), sagittal) - 0.5
    c.paint(every, np.maximum(cleft, shell), 480, "skull", 1.2)
    _base_and_face(c, p)


def _base_and_face(c: Canvas, p: Person) -> None:
    rng = c.rng
    bone = 1050.0
    for s in SIDES:
        points, radii = petrous(s)
        c.cord(points, [r * 0.93 for r in radii], 1050, "skull base", 1.5)
        c.cord([(s * 27, 8, -38), (s * 38, 12, -38)], [4.0, 4.5], 1750, "skull base", 1.5)  # otic capsule
        c.blob((s * 57, 27, -42), (9.5, 13, 15), 900, "mastoid", 1.5)
        c.cord([(s * 58, 27, -48), (s * 55, 24, -62)], [8, 5], 950, "mastoid", 1.5)
        # Zygomatic arch, lateral orbital rim, condyle and ramus, pterygoid plate, occipital condyle, atlas.
        arch: list[Point] = [(s * 43, -76, -42), (s * 57, -64, -44), (s * 66, -42, -43), (s * 67, -14, -40)]
        c.cord(arch, [4.5, 3.8, 2.4, 3.0], bone, "facial bone")
        c.cord([(s * 46, -74, -42), (s * 50, -66, -27), (s * 47, -72, -10)], [3.6, 2.6, 3.4], bone, "facial bone")
        c.cord([(s * 50, -66, -28), (s * 44, -48, -26), (s * 34, -36, -22)], [2.0, 1.8, 2.4], bone, "facial bone")
        c.cord(
            [(s * 52, -8, -48), (s * 50, -12, -60), (s * 50, -18, -95)],
            [4.6, 3.6, 4.4],
            1150,
            "facial bone",
            1.0,
            (0.7, 1.7, 1.0),
        )
        c.blob((s * 52, -8, -49), (3.4, 2.6, 3.0), 450, "facial bone")
        c.cord(
            [(s * 51, -36, -56), (s * 51, -30, -85)], [2.4, 4.0], bone, "facial bone", 1.0, (0.6, 1.3, 1.0)
        )  # coronoid
        c.cord([(s * 15, -26, -48), (s * 19, -24, -74)], [2.0, 2.0], 900, "facial bone")
        c.cord([(s * 20, -26, -34), (s * 36, -22, -42)], [4.5, 4.0], 700, "skull base", 2)  # greater wing
        c.blob((s * 17, 19, -64), (6, 10, 6), 750, "skull base", 1.5)
        c.blob((s * 21, 20, -78), (10, 9, 8), 700, "skull base", 1.5)
        ring: list[Point] = [(s * 20, 20, -78), (s * 18, 38, -78), (0, 47, -78)]
        c.cord(ring, [4.5, 3.5, 3.5], bone, "skull base")
    c.cord([(0, -20, -28), (0, -14, -32), (0, -9, -42), (0, 8, -62)], [10, 7, 5.5, 4.0], 620, "skull base", 2)
    c.cord([(0, -9, -19), (0, -10, -26)], [1.8, 3.0], 1000, "skull base")  # dorsum sellae
    c.cord([(-12, 13, -78), (0, 8, -78), (12, 13, -78)], [4, 4, 4], bone, "skull base")
    c.cord([(0, 15, -74), (0, 16, -110)], [5.0, 6.5], 900, "skull base")  # dens
    # Upper jaw: an arch of bone and teeth; the palate above it.
    jaw: list[Point] = [
        (-29, -46, -80),
        (-25, -70, -80),
        (-11, -85, -80),
        (11, -85, -80),
        (25, -70, -80),
        (29, -46, -80),
    ]
    c.cord(jaw, [5.5] * 6, 900, "facial bone", 2)
    for t in np.linspace(0.03, 0.97, 14):
        k = t * 5
        i = min(int(k), 4)
        a, b = np.array(jaw[i]), np.array(jaw[i + 1])
        q = a + (k - i) * (b - a)
        c.blob((float(q[0]), float(q[1]), -88.0), (3.6, 3.6, 8), 1900 + 150 * rng.normal(), "facial bone")
    c.shape(
        (-26, -80, -74),
        (26, -34, -70),
        lambda x, y, z: np.maximum(ellipsoid((0, -54, -72), (27, 30, 9))(x, y, z), np.abs(z + 72) - 1.4),
        bone,
        "facial bone",
    )
    c.cord([(0, -86, -14), (0, -93, -30)], [4.5, 3.0], bone, "facial bone")  # nasal bones
    for s in SIDES:
        c.cord([(s * 5, -88, -28), (s * 14, -80, -42), (s * 13, -80, -62)], [2.2, 2.4, 2.6], bone, "facial bone")


def paint_air(c: Canvas, p: Person) -> None:
    """Frontal, ethmoid, sphenoid and maxillary sinuses, nasal cavity with septum and turbinates, nasopharynx, mastoid
    cells, ear canals."""
    rng, k = c.rng, p.sinus
    bent = float(rng.normal(0, 2.0))
    # Nasal cavity: pear-shaped, lined with mucosa.
    nose = [(0.0, -96.0, -62.0), (0.0, -78.0, -50.0), (0.0, -50.0, -48.0), (0.0, -28.0, -54.0)]
    for grow, hu, label in ((2.6, 850.0, "facial bone"), (1.6, 40.0, "mucosa"), (0.0, -985.0, "air cavities")):
        c.cord(nose, [5 + grow, 11 + grow, 12.5 + grow, 10 + grow], hu, label)
        low: list[Point] = [(0, -76, -63), (0, -40, -64)]
        c.cord(low, [10 + grow, 10 + grow], hu, label)
    for s in SIDES:
        r = np.array([13.0, 16, 15.0]) * k * rng.normal(1, 0.07, 3)
        centre = (s * (31 + rng.normal()), -58.0 + rng.normal(), -56.0 + rng.normal())
        wall = rng.uniform(0.0, 0.8) if rng.random() < 0.8 else rng.uniform(2, 5)
        warp = c.box(tuple(np.array(centre) - r - 3), tuple(np.array(centre) + r + 3), 6)
        if not c.x[warp].size:
            continue
        d = ellipsoid(centre, tuple(r))(*c.at(warp)) + 2.2 * c.noise(14.0, warp)
        d = smooth_max(d, s * -c.x[warp] + 15, 3)
        c.paint(warp, d - 1.3, 900, "facial bone")
        c.paint(warp, d, 35, "mucosa")
        c.paint(warp, d + wall, -990, "air cavities")
    # Ethmoid cells: a labyrinth whose walls are zero sets of noise.
    box = c.box((-15, -84, -44), (15, -32, -14), 4)
    if c.x[box].size:
        x, y, z = c.at(box)
        taper = 11.5 + 3.0 * np.clip((y + 80) / 45, 0, 1)
        d = smooth_max(np.abs(x) - taper, np.maximum(np.abs(y + 58) - 24, np.abs(z + 30) - 12), 4) + 1.3 * c.noise(
            9.0, box
        )
        c.paint(box, d - 1.2, 800, "facial bone")
        c.paint(box, d, -960, "air cavities")
        septa = np.minimum(np.abs(c.noise(7.0, box)), np.abs(c.noise(8.0, box))) * 4.5 - 0.6
        c.paint(box, np.maximum(septa, d), 300, "facial bone")
    for s in SIDES:  # turbinates
        for height, y0, girth in ((-47.0, -64.0, 3.0), (-61.0, -78.0, 3.6)):
            q: list[Point] = [(s * 6.5 + bent * 0.4, y0, height), (s * 7.5, -34, height)]
            thick = girth * float(rng.uniform(0.8, 1.25))
            c.shape(
                (s * 7 - 6, y0 - 5, height - 9),
                (s * 7 + 6, -30, height + 9),
                tube(q, [thick, thick], (1, 1, 2.2)),
                42,
                "mucosa",
            )
            c.shape(
                (s * 7 - 6, y0 - 5, height - 9),
                (s * 7 + 6, -30, height + 9),
                tube(q, [0.6, 0.6], (1, 1, 4)),
                200,
                "facial bone",
            )
    box = c.box((-8, -92, -74), (8, -26, -18), 4)
    if c.x[box].size:
        x, y, z = c.at(box)
        plane = np.abs(x - bent * np.sin((y + 90) / 22) * np.clip((-z - 20) / 20, 0, 1)) - 1.2
        septum = np.maximum(plane, np.maximum(np.abs(y + 58) - 33, np.abs(z + 44) - 27))
        c.paint(box, septum, 130, "mucosa")
    for s in SIDES:
        r = np.array([9.5, 11, 8.5]) * k * rng.normal(1, 0.12, 3)
        c.blob((s * 8.5, -24, -31), tuple(r + 1.2), 900, "skull base")
        c.blob((s * 8.5, -24, -31), tuple(r), -985, "air cavities")
        _frontal_sinus(c, p, s)
        _mastoid_cells(c, p, s)
    c.cord([(0, -20, -58), (0, -14, -72), (0, -12, -100)], [9, 9, 7], 40, "mucosa")
    c.shape(
        (-16, -26, -100),
        (16, 0, -54),
        tube([(0, -22, -58), (0, -15, -72), (0, -12, -100)], [6, 5.5, 6], (1.8, 1.0, 1.0)),
        -990,
        "air cavities",
    )


def _frontal_sinus(c: Canvas, p: Person, s: float) -> None:
    size = float(np.clip(c.rng.normal(p.sinus, 0.3), 0.3, 1.5))
    front = -p.length - p.skull * 0.5
    centre, r = (s * 10 * size, front + 5.0, -12 + 5 * size), (11 * size, 4.0 * size**0.5, 12 * size)
    box = c.box(tuple(np.subtract(centre, r)), tuple(np.add(centre, r)), 8)
    if not c.x[box].size:
        return
    d = ellipsoid(centre, r)(*c.at(box)) + 1.5 * c.noise(9.0, box)
    d = smooth_max(d, 0.8 - s * c.x[box], 1.5)
    c.paint(box, d - 2.0, 1150, "skull")
    c.paint(box, d, -985, "air cavities")


def _mastoid_cells(c: Canvas, p: Person, s: float) -> None:
    box = c.box((s * 52 - 17, 4, -66), (s * 52 + 17, 46, -24), 6)
    if not c.x[box].size:
        return
    x, y, z = c.at(box)
    d = smooth_min(
        ellipsoid((s * 57, 27, -42), (8, 11, 13))(x, y, z),
        tube([(s * 44, 14, -38), (s * 56, 24, -37)], [4.5, 6.0])(x, y, z),
        3,
    )
    d = d + (1.0 - p.sinus) * 6
    cells = np.abs(c.noise(6.5, box)) + 0.5 * np.abs(c.noise(5.0, box))
    c.paint(box, np.maximum(d, (0.5 - cells) * 4), -820, "mastoid", 1.4)
    canal: list[Point] = [(s * 76, 10, -46), (s * 62, 10, -44), (s * 46, 8, -42)]
    c.cord(canal, [2.8, 3.0, 4.0], -980, "air cavities")
    c.cord([(s * 45, 8, -43), (s * 44, 8, -38)], [0.8, 0.9], 900, "mastoid")  # ossicles


def paint_orbits(c: Canvas, outside: np.ndarray) -> None:
    """Bony cone filled with fat; globe with sclera, vitreous and lens; optic nerve, rectus muscles, lids."""
    for s in SIDES:
        j = c.rng.normal(0, 0.8, 4).tolist()
        cx, cy, cz = s * (31.5 + j[0]), -72.0 + j[1], -27.0 + j[2] * 0.6
        cone: list[Point] = [(cx, -74, cz), (s * 28, -56, cz), (s * 19, -36, cz + 3)]
        box = c.box((cx - 24, -96, cz - 24), (cx + 24, -32, cz + 24), 4)
        if not c.x[box].size:
            continue
        x, y, z = c.at(box)
        d = tube(cone, [18.0, 15.5, 5.5])(x, y, z)
        wall = smooth_max(smooth_max(d - 2.0, -d, 1), -80 - y, 2)
        c.paint(box, wall, 900, "facial bone")
        c.paint(box, smooth_max(d, outside[box] + 2.6, 2), -88, "orbit")
        gaze = c.rng.normal(0, 0.1)
        r = 11.8 + 0.4 * j[3]
        c.cord([(cx, cy + 10, cz), (s * 25, -50, cz + 1), (s * 18, -36, cz + 3)], [2.6, 2.0, 2.2], 36, "optic nerve")
        for dx, dz in ((10.0, 0.0), (-10.0, 0.0), (0.0, 10.0), (0.0, -10.0)):
            ends: list[Point] = [
                (cx + dx, cy + 2, cz + dz),
                (s * 26 + 0.85 * dx, -54, cz + 0.85 * dz),
                (s * 18 + 0.2 * dx, -36, cz + 3 + 0.2 * dz),
            ]
            c.cord(ends, [0.9, 2.2, 1.2], 52, "orbit")
        c.cord([(cx + s * 11, cy - 2, cz + 9), (cx + s * 13, cy + 6, cz + 9)], [3.0, 2.5], 42, "orbit")  # lacrimal
        c.blob((cx, cy - r * 0.72, cz), (13, 4.0, 10), 40, "skin")
        c.blob((cx, cy, cz), (r, r, r), 48, "eye")
        c.blob((cx, cy, cz), (r - 1.3, r - 1.3, r - 1.3), 9, "eye")
        c.blob((cx + gaze * 7, cy - r + 3.6, cz), (4.6, 2.2, 4.6), 85, "lens")


def paint_ears(c: Canvas, p: Person, outside: np.ndarray) -> None:
    """Auricles: a folded plate beside the canal."""
    for s in SIDES:
        j = c.rng.normal(0, 1.5, 4).tolist()
        box = c.box((s * 84 - 16, -8, -74), (s * 84 + 16, 46, -8), 6)
        if not c.x[box].size:
            continue
        x, y, z = c.at(box)
        yc, zc = y - 22 - j[0], z + 40 + j[1]
        lift = 73 + 0.33 * (y - 8) + 2.2 * np.sin((y + 2 * z / 3) / 4.0) + j[2]
        rim = np.sqrt((yc / 17) ** 2 + (zc / 28) ** 2)
        plate = np.maximum(np.abs(s * x - lift) - (2.0 + 0.8 * (rim > 0.8)), (rim - 1) * 17)
        plate = np.maximum(plate, -outside[box] - 2)
        c.paint(box, plate, 20, "skin")
