"""Mild pathology in a head, with its label: bleeds in each compartment, infarcts, tumours, calcification, fracture."""

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from slicewise.data.phantom.labels import LABELS, TissueVolume
from slicewise.data.phantom.shapes import smooth_noise

COARSE_MM = 2.5


def _where(*names: str) -> np.ndarray:
    """bool (256,): these labels."""
    table = np.zeros(256, bool)
    table[[LABELS[name] for name in names]] = True
    return table


_WHITE = _where("white matter", "internal capsule", "corpus callosum")
_CORTEX, _DEEP = _where("grey matter"), _where("deep nuclei")
_TISSUE = _WHITE | _CORTEX | _DEEP
_FLUID, _VENTRICLE = _where("sulci", "cisterns"), _where("ventricles")
_CAVITY = _TISSUE | _FLUID | _VENTRICLE | _where("falx and tentorium")
_VAULT = _where("skull", "diploe", "suture")


class Scene:
    """A head on its sub-slices while something is painted into it.

    Attributes
    ----------
    hu, labels : float32, uint8 (Z, Y, X), changed in place.
    whole : uint8 (Z, Y, X), the labels as they were.
    step : (z, y, x) mm.
    grey, white, csf, blood : HU of this head's tissues.
    rng : draws of the pathology alone.
    """

    def __init__(self, rng: np.random.Generator, tissue: TissueVolume) -> None:
        self.rng, self.step = rng, tissue.step_mm
        self.hu, self.labels, self.whole = tissue.hu, tissue.labels, tissue.labels.copy()
        self.grey, self.white, self.csf, self.blood = (
            float(tissue.description[name]) for name in ("grey", "white", "csf", "blood")
        )

    def pick(self, table: np.ndarray) -> np.ndarray | None:
        """A random voxel (z, y, x) of these labels; None where there is none."""
        thin = self.whole[::2, ::3, ::3]
        there = np.flatnonzero(table[thin])
        if not len(there):
            return None
        at = np.unravel_index(there[int(self.rng.integers(len(there)))], thin.shape)
        return np.array(at) * (2, 3, 3)

    def around(self, centre: np.ndarray, reach_mm: float) -> tuple[tuple[slice, ...], list[np.ndarray]]:
        """The box within `reach_mm` of a voxel, and its (z, y, x) coordinates about it, mm, open grids."""
        step = np.array(self.step)
        low = np.maximum(np.floor(centre - reach_mm / step), 0).astype(int)
        high = np.minimum(np.ceil(centre + reach_mm / step) + 1, self.whole.shape).astype(int)
        grids = np.ogrid[tuple(slice(a, b) for a, b in zip(low, high))]
        return tuple(map(slice, low, high)), [(g - c) * s for g, c, s in zip(grids, centre, step)]

    def blob(self, centre: np.ndarray, radius: float, ragged: float) -> tuple[tuple[slice, ...], np.ndarray]:
        """A box and the signed distance, mm, of an ellipsoid of about this radius with a ragged surface."""
        radii = radius * np.exp(self.rng.normal(0, 0.22, 3))
        box, mm = self.around(centre, 1.7 * radius + 3)
        unit = np.sqrt(sum((m / r) ** 2 for m, r in zip(mm, radii)))
        noise = smooth_noise(self.rng, unit.shape, self.step, max(radius * 0.7, 3.0))
        return box, (unit - 1) * radius + ragged * radius * noise

    def mix(self, box: tuple[slice, ...], alpha: np.ndarray, hu: float | np.ndarray, label: str | None) -> None:
        """Blend HU in with opacity `alpha`; label where it is over half."""
        self.hu[box] += alpha * (hu - self.hu[box])
        if label:
            self.labels[box][alpha > 0.5] = LABELS[label]


def intracerebral_bleed(s: Scene) -> str:
    centre = s.pick(_DEEP if s.rng.random() < 0.6 else _WHITE)
    if centre is None:
        return ""
    radius = float(s.rng.uniform(5, 17))
    box, d = s.blob(centre, radius, 0.22)
    tissue = _TISSUE[s.whole[box]]
    s.mix(box, np.clip(0.5 - (d - 4) / 5, 0, 1) * tissue * 0.7, s.white - 9, "oedema")
    density = s.blood * 1.25 + s.rng.normal(0, 3)
    s.mix(box, np.clip(0.5 - d / 1.5, 0, 1) * (_TISSUE | _VENTRICLE)[s.whole[box]], density, "bleed")
    return f"intracerebral bleed of {2 * radius:.0f} mm"


def extradural_bleed(s: Scene) -> str:
    """A plane cuts a cap off the cavity at its side: convex against the brain, between sutures."""
    return _cap(s, depth=float(s.rng.uniform(5, 13)), curve=0.0, name="extradural bleed")


def subdural_bleed(s: Scene) -> str:
    """A wide crescent that follows the brain."""
    return _cap(s, depth=float(s.rng.uniform(3.5, 10)), curve=1.0, name="subdural bleed")


def _cap(s: Scene, depth: float, curve: float, name: str) -> str:
    stride = [max(1, round(COARSE_MM / v)) for v in s.step]
    cavity = _CAVITY[s.whole[:: stride[0], :: stride[1], :: stride[2]]]
    if cavity.sum() < 1000:
        return ""
    step = [a * b for a, b in zip(stride, s.step)]
    inside = ndimage.distance_transform_edt(ndimage.binary_closing(cavity, iterations=2), step).astype(np.float32)
    rim = np.argwhere((inside > 0) & (inside < 3))
    top = np.flatnonzero(cavity.any((1, 2)))
    middle = np.array(cavity.nonzero()).mean(1)
    high = rim[(rim[:, 0] < top[0] + 0.6 * np.ptp(top)) & (np.abs(rim[:, 2] - middle[2]) * step[2] > 35)]
    if not len(high):
        return ""
    at = high[int(s.rng.integers(len(high)))]
    out = (at - middle) * step
    out /= np.linalg.norm(out)
    grids = np.ogrid[tuple(slice(0, n) for n in cavity.shape)]
    along = sum((g - c) * v * o for g, c, v, o in zip(grids, at, step, out))
    if curve:
        wide = np.sqrt(sum(((g - c) * v) ** 2 for g, c, v in zip(grids, at, step)))
        shape = inside - depth * np.clip(1.25 - (wide / 62) ** 2, 0, 1)
    else:
        shape = -depth - along
    shape = np.where(inside > 0, shape, 9).astype(np.float32)
    zoom = [n / m for n, m in zip(s.whole.shape, shape.shape)]
    fine = ndimage.zoom(shape, zoom, order=1, mode="nearest", grid_mode=True)
    age = s.rng.random()
    density = s.blood * 1.2 if age < 0.6 or not curve else s.rng.uniform(14, 40)
    everywhere = (slice(None),) * 3
    s.mix(everywhere, np.clip(0.5 - fine / 1.5, 0, 1) * _CAVITY[s.whole], density, "bleed")
    return f"{name}, {depth:.0f} mm deep"


def subarachnoid_bleed(s: Scene) -> str:
    centre = s.pick(_where("cisterns"))
    if centre is None:
        return ""
    reach = float(s.rng.uniform(18, 45))
    box, mm = s.around(centre, 2 * reach)
    fade = np.exp(-sum(m * m for m in mm) / (2 * reach * reach))
    s.mix(box, (fade * _FLUID[s.whole[box]]).astype(np.float32), s.blood * 1.1, "bleed")
    return f"subarachnoid bleed, {reach:.0f} mm about a cistern"


def intraventricular_bleed(s: Scene) -> str:
    """Blood settles in the back of the lateral ventricles, with a level."""
    ventricle = _VENTRICLE[s.whole]
    rows = np.flatnonzero(ventricle.any((0, 2)))
    if len(rows) < 10:
        return ""
    level = float(np.quantile(rows, s.rng.uniform(0.72, 0.9)))
    y = np.arange(s.whole.shape[1])[None, :, None]
    s.mix((slice(None),) * 3, ventricle * np.clip(0.5 + (y - level) * s.step[1], 0, 1), s.blood * 1.2, "bleed")
    return "intraventricular bleed"


def infarct(s: Scene) -> str:
    centre = s.pick(_CORTEX if s.rng.random() < 0.6 else _WHITE | _DEEP)
    if centre is None:
        return ""
    radius = float(np.exp(s.rng.uniform(np.log(5), np.log(28))))
    box, d = s.blob(centre, radius, 0.28)
    old = s.rng.random() < 0.45
    alpha = np.clip(0.5 - d / (2 if old else 6), 0, 1) * _TISSUE[s.whole[box]]
    target = s.csf + 6 if old else s.white - s.rng.uniform(2, 7)
    s.mix(box, alpha, target, "infarct")
    return f"{'old' if old else 'recent'} infarct of {2 * radius:.0f} mm"


def tumour(s: Scene) -> str:
    centre = s.pick(_WHITE)
    if centre is None:
        return ""
    radius = float(s.rng.uniform(4, 11))
    box, d = s.blob(centre, radius, 0.15)
    big, rim = s.blob(centre, radius * 2.2, 0.25)
    s.mix(big, np.clip(0.5 - rim / 5, 0, 1) * _WHITE[s.whole[big]] * 0.8, s.white - 8, "oedema")
    s.mix(box, np.clip(0.5 - d / 2, 0, 1), s.grey + s.rng.uniform(-2, 12), "tumour")
    if radius > 6:
        s.mix(box, np.clip(0.5 - (d + 3.5) / 2, 0, 1), s.csf + 8, "tumour")
    return f"tumour of {2 * radius:.0f} mm"


def calcification(s: Scene) -> str:
    centre = s.pick(_DEEP if s.rng.random() < 0.5 else _TISSUE)
    if centre is None:
        return ""
    radius = float(s.rng.uniform(1.5, 4))
    box, d = s.blob(centre, radius, 0.3)
    s.mix(box, np.clip(0.5 - d / 2, 0, 1), float(s.rng.uniform(90, 350)), "calcification")
    return f"calcification of {2 * radius:.0f} mm"


def fracture(s: Scene) -> str:
    """A thin wavy cleft through the vault along a plane."""
    centre = s.pick(_VAULT)
    if centre is None:
        return ""
    length = float(s.rng.uniform(20, 55))
    box, mm = s.around(centre, length)
    normal = s.rng.normal(0, 1, 3)
    normal /= np.linalg.norm(normal)
    wave = 1.5 * smooth_noise(s.rng, s.whole[box].shape, s.step, 12.0)
    across = np.abs(sum(m * n for m, n in zip(mm, normal)) + wave) - s.rng.uniform(0.35, 0.9)
    within = np.sqrt(sum(m * m for m in mm)) < length
    s.mix(box, np.clip(0.5 - across, 0, 1) * (_VAULT[s.whole[box]] & within), 90.0, "fracture")
    return f"skull fracture of {length:.0f} mm"


KINDS: tuple[Callable[[Scene], str], ...] = (
    intracerebral_bleed, extradural_bleed, subdural_bleed, subarachnoid_bleed, intraventricular_bleed, infarct, infarct,
    infarct, tumour, calcification, fracture,
)  # fmt: skip


def paint_pathology(rng: np.random.Generator, tissue: TissueVolume) -> str:
    """Paint one kind at random into a tissue volume; what it is, or empty text where the head shows no place for it."""
    return KINDS[int(rng.integers(len(KINDS)))](Scene(rng, tissue))
