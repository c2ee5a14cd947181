"""The tissues that come out as labels, and the tissue volume that both anatomies end in."""

from dataclasses import dataclass
from typing import Any

import numpy as np

LABELS: dict[str, int] = {
    "air": 0,
    "skin": 1,
    "fat": 2,
    "muscle": 3,
    "skull": 4,
    "diploe": 5,
    "skull base": 6,
    "mastoid": 7,
    "facial bone": 8,
    "air cavities": 9,
    "orbit": 10,
    "eye": 11,
    "lens": 12,
    "optic nerve": 13,
    "sulci": 14,
    "cisterns": 15,
    "ventricles": 16,
    "grey matter": 17,
    "white matter": 18,
    "deep nuclei": 19,
    "internal capsule": 20,
    "corpus callosum": 21,
    "cerebellum": 22,
    "brain stem": 23,
    "falx and tentorium": 24,
    "venous sinuses": 25,
    "basilar artery": 26,
    "calcification": 27,
    "bleed": 28,
    "infarct": 29,
    "table": 30,
    "mucosa": 31,
    "teeth": 32,
    "suture": 33,
    "artery": 34,
    "spinal cord": 35,
    "oedema": 36,
    "tumour": 37,
    "fracture": 38,
}


@dataclass(frozen=True)
class TissueVolume:
    """A head before it is scanned: sub-slices, finer than the output, cut to the head in plane.

    Attributes
    ----------
    hu : float32 (Z', Y', X') HU; labels : uint8, same shape, numbers of `LABELS`.
    step_mm : (z, y, x) grid step.
    centres : int (Z,), the sub-slice in the middle of every output slice.
    crop : (rows, columns) where the cut lies in the full fine plane; around it is air.
    n_fine : pixels per side of the full fine plane.
    description : what the head is, plain JSON types.
    """

    hu: np.ndarray
    labels: np.ndarray
    step_mm: tuple[float, float, float]
    centres: np.ndarray
    crop: tuple[slice, slice]
    n_fine: int
    description: dict[str, Any]


def fine_grid(size: int, fov_mm: float, slice_mm: float, finest_z_mm: float) -> tuple[int, int]:
    """(sub-slices a slice, pixels of the fine plane a pixel): in plane at most 1.2 mm, whatever the output's pixel."""
    return max(1, int(np.ceil(slice_mm / finest_z_mm))), 2 if fov_mm / size > 1.2 else 1
