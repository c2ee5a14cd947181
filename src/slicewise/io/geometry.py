"""Where slices lie: their order, gaps and duplicates along the normal, and volumes from an affine.

`superior_first` is the one place that decides the order of slices.
"""

from dataclasses import replace
from itertools import pairwise

import numpy as np

from slicewise.volume import Volume, volume_from_affine

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


def axial(volume: Volume) -> Volume:
    """The volume with its slices along the patient's long axis: itself where they are already, else (coronal and
    sagittal stacks) with its axes permuted. Raises `UserError` for such a stack with uneven slices."""
    if int(np.argmax(np.abs(volume.normal))) == 2:
        return volume
    return volume_from_affine(volume.hu.transpose(2, 1, 0), volume.affine, volume.acquisition)
