"""From a label map to the parts of a head: 0.5 mm voxels, with all that the map does not name.

A part is finer than a tissue: cortex comes in shells by its distance from the sulcus, soft tissue in layers by its
depth under the skin and in levels of a noise that draws the planes between muscles. Which shell is cortex or fluid,
which layer fat or muscle, is decided anew for every head by a table of HU (`tissue.py`), so that sulci, fat and planes
vary without touching a voxel here.
"""

from copy import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from slicewise.data.phantom.maps import BONE, BRAIN, CEREBRUM, CODE, HeadMap, outside, temporal_bone

PARTS_VERSION = 7
FINE_MM = 0.5
SHELLS_MM = (0.4, 0.8, 1.2)  # of cortex from the fluid; of fluid from the cortex
LAYER_MM = 0.8
SKIN_MM = 1.6
LAYERS = 10
LEVELS = 10
LEVEL_MM = 0.25  # of distance from the plane between muscles
_SIMPLE = (
    "air", "air cavities", "mucosa", "skin", "scalp fat", "galea", "orbital fat", "vitreous", "sclera", "lens",
    "eye muscle", "optic nerve", "sulcus", "cistern", "ventricle", "choroid plexus", "choroid glomus", "pineal",
    "pineal core", "cortex", "white matter", "internal capsule", "corpus callosum", "white matter lesion", "thalamus",
    "caudate", "putamen", "pallidum", "hippocampus", "diencephalon", "cerebellar cortex", "cerebellar white matter",
    "brain stem", "falx", "tentorium", "venous sinus", "vein", "artery", "basilar artery", "chiasm", "spinal cord",
    "vault", "diploe", "skull base", "skull base marrow", "facial bone", "facial marrow", "mastoid", "mastoid cells",
    "dense bone", "septum", "fat", "muscle", "dura", "tooth", "suture",
)  # fmt: skip
PARTS = (
    *_SIMPLE,
    *(f"cortex {i}" for i in range(len(SHELLS_MM))),
    *(f"sulcus {i}" for i in range(len(SHELLS_MM))),
    *(f"periventricular {i}" for i in range(2)),
    *(f"layer {i}" for i in range(LAYERS)),
    *(f"soft {i}" for i in range(LEVELS)),
)
PART = {name: code for code, name in enumerate(PARTS)}
assert len(PARTS) <= 255


@dataclass(frozen=True)
class Parts:
    """A head ready to be warped and scanned.

    Attributes
    ----------
    name : of the person (the map's file).
    code : uint8 (Z, Y, X), codes of `PARTS`, voxels of 0.5 mm, first slice superior; memory-mapped where it comes from
        the cache.
    axes, origin : the head frame in these voxels: index = origin + 2 axes^T mm, (x, y, z-down).
    """

    name: str
    code: np.ndarray
    axes: np.ndarray
    origin: np.ndarray


def make_parts(head: HeadMap) -> Parts:
    """Parts of a head; the same bits for the same map."""
    coarse = _Coarse(head)
    fine = refine(head.tissue)
    code = np.zeros(fine.shape, np.uint8)
    for tissue, part in _PLAIN.items():
        code[fine == CODE[tissue]] = PART[part]
    box = coarse.box("brain stem", "ventral diencephalon", "cerebellar cortex", *CEREBRUM)
    _brain(coarse.cut(box), code[tuple(slice(2 * b.start, 2 * b.stop) for b in box)])
    _bone_and_air(coarse, fine, code)
    _soft_tissue(coarse, fine, code)
    _eyes(coarse, fine, code)
    return Parts(head.name, code, head.axes, head.origin * 2 + 0.5)


_PLAIN = {
    "mucosa": "mucosa", "left white matter": "white matter", "right white matter": "white matter",
    "white matter": "white matter", "left cortex": "cortex", "right cortex": "cortex", "cortex": "cortex",
    "ventricle": "ventricle", "midline ventricle": "ventricle", "cerebellar white matter": "cerebellar white matter",
    "cerebellar cortex": "cerebellar cortex", "brain stem": "brain stem", "thalamus": "thalamus",
    "caudate": "caudate", "putamen": "putamen", "pallidum": "pallidum", "hippocampus": "hippocampus",
    "ventral diencephalon": "diencephalon", "fluid": "sulcus", "white matter lesion": "white matter lesion",
    "vessel": "sulcus", "chiasm": "chiasm", "choroid plexus": "choroid plexus", "artery": "artery", "vein": "vein",
    "eye": "vitreous", "eye muscle": "eye muscle", "optic nerve": "optic nerve", "spinal cord": "spinal cord",
    "fat": "fat", "muscle": "muscle", "dura": "dura",
}  # fmt: skip


def refine(tissue: np.ndarray) -> np.ndarray:
    """Twice as fine in each direction, uint8: every tissue's share is smoothed and interpolated; the largest wins."""
    best = np.zeros(tuple(2 * n for n in tissue.shape), np.float32)
    fine = np.zeros(best.shape, np.uint8)
    boxes = ndimage.find_objects(tissue.astype(np.int32) + 1)
    for code, box in enumerate(boxes):
        if box is None:
            continue
        low = [max(s.start - 1, 0) for s in box]
        high = [min(s.stop + 1, n) for s, n in zip(box, tissue.shape)]
        share = upsample(_smooth((tissue[tuple(map(slice, low, high))] == code).astype(np.float32)))
        there = tuple(slice(2 * a, 2 * b) for a, b in zip(low, high))
        wins = share > best[there]
        fine[there][wins] = code
        np.maximum(best[there], share, out=best[there])
    return fine


def _smooth(field: np.ndarray) -> np.ndarray:
    """Weights 1 2 1 along every axis: little enough to leave walls of one voxel."""
    for axis in range(3):
        field = ndimage.correlate1d(field, [0.25, 0.5, 0.25], axis, mode="nearest")
    return field


def upsample(field: np.ndarray) -> np.ndarray:
    """float32 on the 0.5 mm grid: trilinear between voxel centres of the 1 mm grid."""
    low = torch.from_numpy(np.ascontiguousarray(field, np.float32))[None, None]
    return functional.interpolate(low, scale_factor=2, mode="trilinear", align_corners=False)[0, 0].numpy()


def signed_distance(mask: np.ndarray, reach: float = 40.0) -> np.ndarray:
    """float32 mm to the surface of a mask on the 1 mm grid, negative inside, correct up to `reach` outside it."""
    out = np.full(mask.shape, reach, np.float32)
    where = np.argwhere(mask)
    if not len(where):
        return out
    low, high = np.maximum(where.min(0) - int(reach), 0), np.minimum(where.max(0) + int(reach) + 1, mask.shape)
    box = tuple(map(slice, low, high))
    inside = mask[box]
    distance = ndimage.distance_transform_edt(~inside) - ndimage.distance_transform_edt(inside)
    out[box] = np.minimum(distance - 0.5 * np.sign(distance), reach)
    return out


def region_distance(mask: np.ndarray, reach: float) -> np.ndarray:
    """`signed_distance` computed on every second voxel, an eighth of the work: for regions, not for surfaces."""
    thin = signed_distance(mask[::2, ::2, ::2], reach / 2) * 2
    return upsample(thin)[tuple(slice(0, n) for n in mask.shape)]


def mirrored_noise(c: "_Coarse", seed: int, scale: tuple[float, float, float]) -> np.ndarray:
    """Smooth noise of unit variance on the head's grid, the same left and right; `scale` mm along (z, y, x)."""
    steps = [s / 3 for s in scale]
    shape = [int(n / step) + 4 for n, step in zip((260, 290, 115), steps)]
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape, np.float32), 1.2)
    at = [(v + low) / step for v, low, step in zip((c.z, c.y, np.abs(c.x)), (145, 145, 0), steps)]
    found: np.ndarray = ndimage.map_coordinates(noise / noise.std(), at, order=1, mode="nearest", output=np.float32)
    return found


def lattice_noise(seed: int, shape: tuple[int, ...], scale: tuple[float, float, float]) -> np.ndarray:
    """Smooth noise of unit variance on the 1 mm grid, float32; `scale` mm along (z, y, x)."""
    sigma = [s / 2.5 for s in scale]
    noise = np.random.default_rng(seed).standard_normal(shape, np.float32)
    for axis, s in enumerate(sigma):
        noise = ndimage.gaussian_filter1d(noise, s, axis, mode="wrap", truncate=3)
    found: np.ndarray = noise / noise.std()
    return found


class _Coarse:
    """A head's map at 1 mm with what several steps below need: head coordinates in mm, air around it, its bone."""

    def __init__(self, head: HeadMap) -> None:
        self.head = head
        self.seed = int(head.sha256[:8], 16)
        grid = np.indices(head.tissue.shape, np.float32)[::-1] - head.origin.astype(np.float32)[:, None, None, None]
        self.x, self.y, self.z = np.tensordot(head.axes.astype(np.float32), grid, 1)
        self.outside = outside(head.tissue)
        self.bone = head.mask(*BONE)
        eyes = head.mask("eye")
        self.eyes = tuple(float(v[eyes].mean()) for v in (self.y, self.z)) if eyes.any() else (-60.0, -30.0)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.head.tissue.shape

    def box(self, *tissues: str) -> tuple[slice, ...]:
        """The box of these tissues with 12 mm about it."""
        found = ndimage.find_objects(self.head.mask(*tissues).astype(np.uint8))[0]
        return tuple(slice(max(s.start - 12, 0), min(s.stop + 12, n)) for s, n in zip(found, self.shape))

    def cut(self, box: tuple[slice, ...]) -> "_Coarse":
        """The same on a box alone."""
        part = copy(self)
        part.head = replace(self.head, tissue=self.head.tissue[box])
        for name in ("x", "y", "z", "outside", "bone"):
            setattr(part, name, getattr(self, name)[box])
        return part


def _among(code: np.ndarray, *parts: str) -> np.ndarray:
    """bool: where any of these parts is."""
    table = np.zeros(256, bool)
    table[[PART[name] for name in parts]] = True
    found: np.ndarray = table[code]
    return found


def _brain(c: _Coarse, code: np.ndarray) -> None:
    """Shells of cortex and fluid, white matter by place, dura, vessels; on the brain's box alone."""
    head = c.head
    cerebrum = [n for n in CEREBRUM if n.startswith("left")], [n for n in CEREBRUM if n.startswith("right")]
    fluid = upsample(signed_distance(head.mask("fluid"), 6))
    cortex_names = ("left cortex", "right cortex", "cortex")
    ribbon = upsample(signed_distance(head.mask(*cortex_names), 6))
    is_cortex, is_fluid = code == PART["cortex"], code == PART["sulcus"]
    for i in range(len(SHELLS_MM) - 1, -1, -1):
        code[is_cortex & (fluid < SHELLS_MM[i])] = PART[f"cortex {i}"]
        code[is_fluid & (ribbon < SHELLS_MM[i])] = PART[f"sulcus {i}"]
    stem = region_distance(head.mask("brain stem", "ventral diencephalon", "chiasm", "midline ventricle"), 14)
    cistern = (stem < 12) & (np.abs(c.x) < 32) & (c.z < 0)
    code[is_fluid & _double(cistern) & (code == PART["sulcus"])] = PART["cistern"]
    ventricle = upsample(signed_distance(head.mask("ventricle"), 12))
    white = code == PART["white matter"]
    code[white & (ventricle < 5)] = PART["periventricular 1"]
    code[white & (ventricle < 2.5)] = PART["periventricular 0"]
    medial = region_distance(head.mask("thalamus", "caudate"), 16)
    lateral = region_distance(head.mask("putamen", "pallidum"), 16)
    white = _among(code, "white matter", "periventricular 0", "periventricular 1")
    code[white & (upsample(medial + lateral) < 11) & _double((medial < 9) & (lateral < 9))] = PART["internal capsule"]
    callosum = (np.abs(c.x) < 9) & (region_distance(head.mask("ventricle"), 12) < 9) & (c.z > -10)
    code[white & _double(callosum)] = PART["corpus callosum"]
    # Dura between the hemispheres and above the cerebellum, where fluid or cortex of both sides meet.
    left, right = (signed_distance(head.mask(*names), 9) for names in cerebrum)
    both = upsample(np.abs(left - right)) < 1.0
    reach = _double((np.minimum(left, right) < 5) & (stem > 9) & (np.abs(c.x) < 14))
    shells = [f"{name} {i}" for i in range(len(SHELLS_MM)) for name in ("cortex", "sulcus")]
    meets = _among(code, "sulcus", "cortex", *shells)
    code[both & reach & meets] = PART["falx"]
    upper = signed_distance(head.mask(*CEREBRUM), 9)
    lower = signed_distance(head.mask("cerebellar cortex", "cerebellar white matter"), 9)
    both = upsample(np.abs(upper - lower)) < 1.2
    reach = _double((np.minimum(upper, lower) < 5) & (stem > 4))
    meets |= _among(code, "cerebellar cortex", "cistern")
    code[both & reach & meets] = PART["tentorium"]
    # Sinuses run along the skull inside it; other veins do not.
    near = _double((region_distance(head.mask(*BRAIN), 12) < 9) & (c.y > -75))
    code[(code == PART["vein"]) & near] = PART["venous sinus"]
    pons = c.y[head.mask("brain stem")]
    basilar = (np.abs(c.x) < 7) & (stem < 9) & (c.y < (pons.mean() if pons.size else -np.inf))
    code[(code == PART["artery"]) & _double(basilar)] = PART["basilar artery"]
    _calcifiable(c, code)


def _calcifiable(c: _Coarse, code: np.ndarray) -> None:
    """Pineal gland behind the thalami, and the glomus of the choroid plexus: what calcifies in many adults."""
    thalami, plexus = c.head.mask("thalamus"), c.head.mask("choroid plexus")
    if thalami.any():
        y, z = (float(np.percentile(v[thalami], p)) for v, p in ((c.y, 96), (c.z, 30)))
        radius = np.sqrt((c.x / 1.0) ** 2 + ((c.y - y - 2) / 1.4) ** 2 + ((c.z - z) / 1.0) ** 2)
        code[upsample(radius) < 2.8] = PART["pineal"]
        code[upsample(radius + 0.5 * lattice_noise(c.seed, c.shape, (4, 4, 4))) < 1.7] = PART["pineal core"]
    for side in (1, -1):
        here = plexus & (side * c.x > 0)
        if here.sum() > 50:
            y, z = (float(np.percentile(v[here], p)) for v, p in ((c.y, 82), (c.z, 60)))
            x = float(np.median(c.x[here & (np.abs(c.y - y) < 4)])) if (here & (np.abs(c.y - y) < 4)).any() else 0.0
            ball = (c.x - x) ** 2 + (c.y - y) ** 2 + ((c.z - z) / 1.5) ** 2 < 5.5**2
            code[(code == PART["choroid plexus"]) & _double(ball)] = PART["choroid glomus"]


def _bone_and_air(c: _Coarse, fine: np.ndarray, code: np.ndarray) -> None:
    brain = region_distance(c.head.mask(*BRAIN, "fluid"), 22)
    temporal = temporal_bone(c.head.tissue)
    eye_y, eye_z = c.eyes
    base = c.z < eye_z + 8 + np.clip((-c.y - 25) * 0.25, 0, 14) - np.clip((c.y - 15) * 0.8, 0, 34)
    face = (brain > 14) | ((c.y < eye_y + 22) & (c.z < eye_z + 12) & (brain > 3.5))
    # Thin places of the occiput and vault are full of holes in some maps.
    gaps = ndimage.binary_closing(c.bone, ndimage.generate_binary_structure(3, 1), 2) & ~c.bone
    gaps &= (brain > 0.9) & (brain < 13) & ~face & ~temporal
    gaps &= c.head.mask("air", "soft tissue", "fluid", "skin")
    fine[_double(gaps)] = CODE["cortical bone"]
    cortical, marrow = fine == CODE["cortical bone"], fine == CODE["cancellous bone"]
    regions = (
        (np.ones(c.shape, bool), "vault", "diploe"),
        (base, "skull base", "skull base marrow"),
        (face & base, "facial bone", "facial marrow"),
        (temporal & base, "mastoid", "mastoid cells"),
    )
    for where, hard, spongy in regions:
        there = _double(where)
        code[cortical & there] = PART[hard]
        code[marrow & there] = PART[spongy]
    depth = upsample(-signed_distance(c.bone, 3))
    inner = _double((np.abs(c.x) < 48) & base & (brain < 14))
    code[cortical & inner & (depth > 2.2)] = PART["dense bone"]
    # Diploe between the tables of the vault, where the map has compact bone throughout.
    between = 1.5 + 0.35 * upsample(lattice_noise(c.seed + 9, c.shape, (9, 9, 9)))
    code[(code == PART["vault"]) & (depth > between)] = PART["diploe"]
    wiggle = 1.6 * lattice_noise(c.seed + 10, c.shape, (4, 4, 4))
    side = np.abs(c.x)
    sutures = (
        np.abs(c.y + 25 - 0.35 * (c.z - 35) + wiggle) + 40 * (c.z < -12),
        np.abs((c.y - 56) * 0.8 + (side - 30) * 0.55 - (c.z + 5) * 0.25 + wiggle) + 40 * (c.z < -35),
        np.abs(c.x - 0.6 + wiggle) + 40 * ((c.y < -22) | (c.y > 58) | (c.z < 5)),
    )
    code[(code == PART["vault"]) & (upsample(np.minimum.reduce(sutures)) < 0.45)] = PART["suture"]
    jaw = (c.z < eye_z - 46) & (c.y < eye_y + 42) & (brain > 20)
    arc = np.cos(np.arctan2(c.x, eye_y + 40 - c.y) * 15)
    teeth = _double(jaw & (arc > -0.5) & (depth[::2, ::2, ::2] > 0.8))
    code[_among(code, "facial bone", "facial marrow") & teeth & (depth > 1)] = PART["tooth"]
    # At the skin the finer surface may lie a voxel deeper than the map's own.
    air = (fine == 0) & ~_double(ndimage.binary_dilation(c.outside))
    code[air] = PART["air cavities"]
    # Cells: septa finer than the map, zero sets of noise in the air of mastoid and ethmoid.
    walls = (np.abs(lattice_noise(c.seed + i, c.shape, (scale, scale, scale))) for i, scale in ((1, 6.0), (2, 7.0)))
    ethmoid = (np.abs(c.x) < 15) & (np.abs(c.z - eye_z) < 14) & (c.y > eye_y - 10) & (c.y < eye_y + 34)
    cells = temporal & (brain < 30)
    septa = upsample(np.minimum(*walls))
    code[air & _double(cells) & (septa < 0.22)] = PART["septum"]
    code[air & _double(ethmoid) & (septa < 0.09)] = PART["septum"]


def _soft_tissue(c: _Coarse, fine: np.ndarray, code: np.ndarray) -> None:
    """Skin, fat under it, muscles with fat between them; scalp over the vault."""
    depth = np.minimum(ndimage.distance_transform_edt(~c.outside) - 0.5, 60).astype(np.float32)
    to_bone = signed_distance(c.bone, 30)
    thick = ndimage.gaussian_filter(np.minimum(depth + to_bone, 30), 2.0)
    eye_y, eye_z = c.eyes
    mass = (fine == CODE["skin"]) | (fine == CODE["soft tissue"])
    # The outer nose is drawn as mucosa; it is skin, fat and cartilage.
    nose = (fine == CODE["mucosa"]) & _double((c.y < eye_y - 2) & (depth < 9))
    plane = upsample(_muscle_planes(c, depth)) / np.float32(LEVEL_MM)
    code[mass | nose] = PART["soft 0"]
    code[mass] += np.clip(plane[mass], 0, LEVELS - 1).astype(np.uint8)
    depth_fine = upsample(depth)
    layer = (depth_fine - SKIN_MM) / LAYER_MM
    layered = mass & (layer < LAYERS)
    code[layered] = np.uint8(PART["layer 0"]) + np.clip(layer[layered], 0, LAYERS - 1).astype(np.uint8)
    # Over the vault there is no muscle but the temporalis, and the occipital muscles low at the back.
    temporalis = (np.abs(c.x) > 32) & (c.y < 28) & (c.z < 42) & (thick > 8)
    vault = (c.z > eye_z + 5 - np.clip((c.y - 20) * 0.5, 0, 25)) & (thick < 16) & ~temporalis
    bare = mass & _double(vault)
    code[bare] = PART["scalp fat"]
    code[bare & (upsample(to_bone) < 0.8)] = PART["galea"]
    code[bare & (upsample(np.abs(lattice_noise(c.seed + 4, c.shape, (9, 9, 9)))) < 0.06)] = PART["galea"]
    under = mass & _double(temporalis) & (depth_fine > SKIN_MM + 2.5) & (code < PART["soft 0"])
    code[under] = PART["muscle"]
    code[(mass | (fine == CODE["mucosa"])) & (depth_fine < SKIN_MM)] = PART["skin"]


def _muscle_planes(c: _Coarse, depth: np.ndarray) -> np.ndarray:
    """Distance in mm, float32, from the planes of fat between muscles: layers one under another in the nape, bundles
    and bodies of fat in the face."""
    wave = mirrored_noise(c, c.seed + 5, (40, 26, 26))
    turn = (depth / 12.0 + 0.5 * wave) % 1.0
    layers = np.minimum(turn, 1 - turn) * 12.0 + np.maximum(mirrored_noise(c, c.seed + 11, (40, 22, 22)), 0)
    spokes = np.abs(mirrored_noise(c, c.seed + 6, (40, 17, 17))) * 8.0
    nape = np.minimum(layers, spokes)
    nape = np.minimum(nape, np.abs(c.x) * 0.8)  # nuchal ligament
    bundles = np.abs(mirrored_noise(c, c.seed + 7, (22, 15, 13))) * 6.0
    bodies = (1.05 - mirrored_noise(c, c.seed + 8, (24, 17, 17))) * 6.0
    cheek = np.clip((-c.y - 20) / 30, 0, 1) * np.clip((np.abs(c.x) - 12) / 15, 0, 1)
    face = np.minimum(bundles, bodies - 2.5 * cheek) + 1.5 * np.clip((depth - 30) / 12, 0, 1)
    back = np.clip((c.y - 8) / 14, 0, 1)
    found: np.ndarray = (back * nape + (1 - back) * face).astype(np.float32)
    return found


def _eyes(c: _Coarse, fine: np.ndarray, code: np.ndarray) -> None:
    content = c.head.mask("eye", "eye muscle", "optic nerve")
    if not content.any():
        return
    for side in (1, -1):
        here = content & (side * c.x > 0)
        if here.sum() < 500:
            continue
        at = np.argwhere(here)
        box = tuple(map(slice, np.maximum(at.min(0) - 18, 0), at.max(0) + 19))
        closed = _closing(here[box], 14)
        fine_box = tuple(slice(2 * s.start, 2 * s.start + 2 * n) for s, n in zip(box, closed.shape))
        view = code[fine_box]
        soft = (view >= PART["layer 0"]) & ~_double(c.outside[box])
        deep = _double(ndimage.distance_transform_edt(~c.outside[box]) > 4)
        view[soft & deep & _double(closed)] = PART["orbital fat"]
        globe = c.head.mask("eye")[box] & here[box]
        if globe.sum() < 500:
            continue
        shell = upsample(-signed_distance(globe, 4))
        view[(view == PART["vitreous"]) & (shell < 1.1)] = PART["sclera"]
        centre = [float(v[box][globe].mean()) for v in (c.x, c.y, c.z)]
        off = [v[box] - m for v, m in zip((c.x, c.y, c.z), centre)]
        lens = (off[0] / 4.6) ** 2 + ((off[1] + 8.2) / 2.1) ** 2 + (off[2] / 4.6) ** 2
        view[(upsample(lens) < 1) & np.isin(view, [PART["vitreous"], PART["sclera"]])] = PART["lens"]


def _closing(mask: np.ndarray, radius: float) -> np.ndarray:
    grown = ndimage.distance_transform_edt(~np.pad(mask, 2)) <= radius
    found: np.ndarray = (ndimage.distance_transform_edt(grown) > radius)[2:-2, 2:-2, 2:-2] | mask
    return found


def _double(mask: np.ndarray) -> np.ndarray:
    """A mask on the 0.5 mm grid."""
    return mask.repeat(2, 0).repeat(2, 1).repeat(2, 2)
