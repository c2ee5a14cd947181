"""Where slices lie: their order, gaps and duplicates along the normal, and volumes from an affine.

`superior_first` is the one place that decides the order of slices.
"""

from dataclasses import replace
from itertools import pairwise

import numpy as np

from slicewise.errors import UserError
from slicewise.volume import Acquisition, Volume

# Slices closer than this along the normal are at one place; scanners never reconstruct finer.
SAME_PLACE_MM = 0.01
# The largest hole, in steps of the series or of the grid it is resampled to, that interpolation may fill.
MAX_INTERPOLATED_STEPS = 3


def superior_first(positions: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Order of slices from the most superior to the most inferior, int (Z,), along the slice normal.

    `positions` are LPS mm (Z, 3); `normal` points either way. Slices at one place keep their order. Where the normal
    is horizontal (coronal and sagittal stacks) the order is the one of growing index of the patient axis it is nearest.
    """
    main = int(np.argmax(np.abs(normal)))
    sign = np.sign(normal[main]) * (-1.0 if main == 2 else 1.0)
    return np.argsort(sign * (positions @ normal), kind="stable")


def find_gaps(steps: np.ndarray) -> list[tuple[int, int]]:
    """Holes in a series: (i, k) where the i-th step between slices is k >= 2 times the step around it.

    A change of spacing that lasts (three steps or more: thin slices through the posterior fossa, thick above) is no
    hole, and neither is a step that is no whole multiple: uneven spacing is kept as it is.
    """
    runs: list[list[int]] = []
    for i, step in enumerate(steps):
        if runs and abs(step - steps[runs[-1][0]]) <= 0.1 * step:
            runs[-1].append(i)
        else:
            runs.append([i])
    gaps = []
    for r, run in enumerate(runs):
        around = [float(steps[runs[j][0]]) for j in (r - 1, r + 1) if 0 <= j < len(runs)]
        if len(run) >= 3 or not around:
            continue
        usual, step = max(around), float(steps[run[0]])
        k = round(step / usual)
        if k >= 2 and abs(step - k * usual) <= 0.1 * usual:
            gaps += [(i, k) for i in run]
    return gaps


def interpolate_gaps(volume: Volume, gaps: list[tuple[int, int]]) -> Volume:
    """Fill the holes that `find_gaps` found with slices interpolated linearly between their neighbours (HU rounded half
    to even)."""
    hu, positions = [volume.hu[0]], [volume.positions[0]]
    holes = dict(gaps)
    for i in range(len(volume.hu) - 1):
        for j in range(1, holes.get(i, 1)):
            t = j / holes[i]
            between = (1 - t) * volume.hu[i].astype(np.float32) + t * volume.hu[i + 1].astype(np.float32)
            hu.append(np.rint(between).astype(np.int16))
            positions.append((1 - t) * volume.positions[i] + t * volume.positions[i + 1])
        hu.append(volume.hu[i + 1])
        positions.append(volume.positions[i + 1])
    return replace(volume, hu=np.stack(hu), positions=np.stack(positions))


def largest_part(volume: Volume, holes: list[tuple[int, int]]) -> Volume:
    """The longest run of slices between the holes (see `find_gaps`); the higher of equal ones."""
    ends = [0, *(i + 1 for i, _ in holes), len(volume.hu)]
    first, last = max(pairwise(ends), key=lambda part: part[1] - part[0])
    return replace(volume, hu=volume.hu[first:last], positions=volume.positions[first:last])


def volume_from_affine(hu: np.ndarray, affine: np.ndarray, acquisition: Acquisition | None = None) -> Volume:
    """A Volume from int16 voxels indexed [x, y, z] and their LPS affine (4, 4), in display order.

    Axes are permuted and flipped, never resampled: slices along the axis nearest to the patient's long axis, the most
    superior first; rows towards the patient's left and columns towards the back. Shear between the slice axis and the
    plane (a tilted gantry) is kept; raises `UserError` where the rows and columns themselves are sheared.
    """
    source = acquisition.source if acquisition else "volume"
    linear = affine[:3, :3]
    spacing = np.linalg.norm(linear, axis=0)
    if not np.isfinite(affine).all() or spacing.min() < 1e-4 or abs(np.linalg.det(linear / spacing)) < 1e-3:
        raise UserError(f"{source}: the affine is singular, so the voxels have no place; repair the header")
    order = _nearest_axes(linear / spacing)
    flips = [linear[axis, order[axis]] < 0 for axis in range(3)]
    flips[2] = not flips[2]
    directions = linear[:, order] * np.where(flips, -1.0, 1.0)
    shape = np.array(hu.shape)[list(order)]
    origin = affine[:3, 3] + sum(linear[:, order[a]] * (shape[a] - 1) for a in range(3) if flips[a])
    voxels = hu.transpose(order[2], order[1], order[0])[
        tuple(slice(None, None, -1 if flips[a] else 1) for a in (2, 1, 0))
    ]
    row, column = directions[:, 0] / spacing[order[0]], directions[:, 1] / spacing[order[1]]
    if abs(row @ column) > 1e-3:
        raise UserError(
            f"{source}: rows and columns are not at right angles; resample the file to a straight grid first"
        )
    return Volume(
        hu=np.ascontiguousarray(voxels),
        positions=origin + np.arange(shape[2])[:, None] * directions[:, 2],
        row_axis=row,
        column_axis=column,
        pixel_spacing=(float(spacing[order[1]]), float(spacing[order[0]])),
        acquisition=acquisition or Acquisition(),
    )


def axial(volume: Volume) -> Volume:
    """The volume with its slices along the patient's long axis: itself where they are already, else (coronal and
    sagittal stacks) with its axes permuted. Raises `UserError` for such a stack with uneven slices."""
    if int(np.argmax(np.abs(volume.normal))) == 2:
        return volume
    return volume_from_affine(volume.hu.transpose(2, 1, 0), volume.affine, volume.acquisition)


def _nearest_axes(directions: np.ndarray) -> tuple[int, int, int]:
    """For each patient axis (x, y, z) the voxel axis nearest to it; a one-to-one assignment."""
    permutations = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    return max(permutations, key=lambda order: sum(abs(directions[a, order[a]]) for a in range(3)))
