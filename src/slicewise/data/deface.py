"""Where a head CT shows the face: by one stated rule, so that everybody can tell what is missing.

The orbits begin at the first slice, from the vertex down, in which fat lies inside the skull's outline, in its front
third: there is none among brain. From that slice down, all that lies in front of a coronal plane is face: eyes, nose,
mouth, chin, with the bone about them. The plane stands `DEPTH_MM` behind the forehead, the foremost bone of the slice
above. Above the orbits nothing is touched; ears are not either.
"""

from dataclasses import replace

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

from slicewise.data.resample import body_mask
from slicewise.errors import UserError
from slicewise.hu import BONE_HU, Window
from slicewise.volume import Volume

FAT = Window(-140.0, -40.0)
# Fat of the orbits that marks their roof, and how far from bone it counts: skin before the forehead is fat as well.
ORBITAL_FAT_MM2 = 150.0
OFF_BONE_MM = 4.0
# From the forehead back to the plane: eyes reach about 40 mm, temporal lobes begin behind 60 mm.
DEPTH_MM = 45.0
# Where no orbit is found, it is taken to lie this far below the vertex, which is below the roofs of most.
ORBIT_BELOW_VERTEX_MM = 110.0
# Pixels on which orbits are looked for.
COARSE_MM = 2.0


def face_mask(volume: Volume) -> np.ndarray:
    """The voxels that show the face, bool (Z, Y, X); none where the scan ends above the orbits.

    Slices are taken as they lie; a tilted gantry's go along the orbits most often. Rows must run to the patient's left
    or right and columns to the front or back, as in every axial scan. Raises `UserError` where the orbits lie at the
    back: the header has front and back swapped, and the rule would take the occiput away.
    """
    mask = np.zeros(volume.hu.shape, bool)
    coarse, step = _coarse(volume)
    head = body_mask(coarse)
    rows = _from_the_front(coarse)
    fat = np.array([_orbital_fat(coarse, head, z, rows) for z in range(len(coarse.hu))])
    front, back = (next(iter(np.flatnonzero(side >= ORBITAL_FAT_MM2)), len(fat)) for side in fat.T)
    if back < front:
        raise UserError(f"{volume.acquisition.source}: its orbits lie at the back; fix the orientation in its header")
    top = front if front < len(fat) else _at_depth(coarse, head)
    bone = np.flatnonzero((head & (coarse.hu > BONE_HU))[max(0, top - 1), rows].sum(axis=1) >= 2)
    if top < len(fat) and len(bone):
        reach = bone[0] * step + round(DEPTH_MM / volume.pixel_spacing[0])
        mask[top:, _from_the_front(volume)[:reach]] = True
    return mask


def _coarse(volume: Volume) -> tuple[Volume, int]:
    """Every n-th row and column of smoothed slices, about 2 mm apart, and n."""
    step = max(1, round(COARSE_MM / max(volume.pixel_spacing)))
    hu = np.stack([ndimage.uniform_filter(plane.astype(np.float32), step)[::step, ::step] for plane in volume.hu])
    spacing = (volume.pixel_spacing[0] * step, volume.pixel_spacing[1] * step)
    return replace(volume, hu=np.rint(hu).astype(np.int16), pixel_spacing=spacing), step


def _from_the_front(volume: Volume) -> np.ndarray:
    """Indices of the rows, the foremost first (LPS: +y is to the back)."""
    rows = np.arange(volume.hu.shape[1])
    return rows[::-1] if volume.column_axis[1] < 0 else rows


def _at_depth(volume: Volume, head: np.ndarray) -> int:
    """The first slice as far below the vertex as orbits lie; the number of slices where the scan ends above."""
    shown = np.flatnonzero(head.any(axis=(1, 2)))
    depth = np.concatenate([[0.0], np.cumsum(volume.slice_steps)])
    deep = np.flatnonzero(depth >= depth[shown[0]] + ORBIT_BELOW_VERTEX_MM) if len(shown) else shown
    return int(deep[0]) if len(deep) else len(volume.hu)


def _orbital_fat(volume: Volume, head: np.ndarray, z: int, rows: np.ndarray) -> tuple[float, float]:
    """Fat inside the outline of the skull, off the bone, in the front and the back third of the skull, mm²."""
    bone = head[z] & (volume.hu[z] > BONE_HU)
    if bone.sum() < 10:
        return 0.0, 0.0
    inside = _filled_hull(np.argwhere(bone), bone.shape)
    deep = ndimage.distance_transform_edt(inside, sampling=volume.pixel_spacing) > OFF_BONE_MM
    fat = (deep & (volume.hu[z] > FAT.lo) & (volume.hu[z] < FAT.hi))[rows]
    skull = np.flatnonzero(bone[rows].any(axis=1))
    third = (skull[-1] - skull[0]) // 3
    pixel = volume.pixel_spacing[0] * volume.pixel_spacing[1]
    front, back = fat[skull[0] : skull[0] + third], fat[skull[-1] - third + 1 : skull[-1] + 1]
    return float(front.sum() * pixel), float(back.sum() * pixel)


def _filled_hull(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The convex hull of some pixels, bool of the shape."""
    try:
        hull = ConvexHull(points)
    except QhullError:  # all in one line
        return np.zeros(shape, bool)
    y, x = np.indices(shape)
    inside = np.ones(shape, bool)
    for a, b, c in hull.equations:
        inside &= a * y + b * x + c <= 0.5
    return inside
