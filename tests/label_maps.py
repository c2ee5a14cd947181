"""A small head as a label map in FreeSurfer's numbers: ellipsoids, enough for every step of the phantom."""

from pathlib import Path

import nibabel as nib
import numpy as np

# RAS to the voxel axes of the published maps: left, inferior, anterior.
LIA = np.array([[-1.0, 0, 0, 60], [0, 0, 1.0, -75], [0, -1.0, 0, 92], [0, 0, 0, 1]])


def label_map(scale: float = 1.0, ventricle: float = 1.0) -> np.ndarray:
    """int16 (x, y, z) in RAS order, 1 mm: a head of 2 litres, its middle at (72, 88, 100)."""
    x, y, z = np.ogrid[0:144, 0:180, 0:196]
    x, y, z = x - 72, y - 88, z - 100  # to the right, the front, up

    def ball(cx: float, cy: float, cz: float, rx: float, ry: float, rz: float) -> np.ndarray:
        return np.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2) / scale <= 1

    out = np.zeros((144, 180, 196), np.int16)
    neck = ((x / 45) ** 2 + ((y + 15) / 50) ** 2 <= scale**2) & (z < 0) & (z > -92)
    out[ball(0, 0, 10, 64, 80, 76) | neck] = 511
    inner_neck = ((x / 42) ** 2 + ((y + 15) / 47) ** 2 <= scale**2) & (z < 0) & (z > -92)
    out[ball(0, 0, 10, 61.5, 77.5, 73.5) | inner_neck] = 507
    out[ball(0, -4, 18, 57, 69, 62)] = 515
    out[ball(0, -4, 18, 53, 65, 58)] = 24
    for side, white, cortex, lateral, deep in ((1, 41, 42, 43, 49), (-1, 2, 3, 4, 10)):
        half = side * x > 0.5
        sulci = ~ball(0, -4, 22, 44, 54, 46) & (np.sin(np.arctan2(y + 4, x) * 16) > 0.93)
        out[ball(0, -4, 22, 51, 62, 53) & half & (z > -12) & ~sulci] = cortex
        out[ball(0, -4, 22, 47, 58, 49) & half & (z > -8) & ~sulci] = white
        out[ball(side * 11, -4, 22, 7, 9 * 1.2, 8)] = deep
        out[ball(side * 22, 2, 22, 5, 12, 9)] = 51 if side > 0 else 12
        out[ball(side * 9, -6, 34, 5 * ventricle, 20, 6 * ventricle)] = lateral
        out[ball(side * 22, -48, -20, 18, 14, 9) & (z < -13)] = 47 if side > 0 else 8
        out[ball(side * 26, 66, -8, 10, 10, 10)] = 506
        out[ball(side * 20, 52, -8, 4, 8, 3)] = 508
        out[ball(side * 48, -10, -26, 9, 12, 12)] = 515
        out[ball(side * 48, -10, -26, 7, 9, 9) & ((x + y + z) % 4 == 0)] = 0
    out[ball(0, -6, 10, 2.0, 9, 7)] = 14
    out[ball(0, -20, -14, 9, 9, 16)] = 16
    out[ball(0, -11, -16, 2.2, 2.2, 14)] = 502
    out[ball(0, -66, 20, 4, 3.5, 20)] = 514
    out[ball(0, 62, -22, 12, 14, 14) & (np.abs(x) > 1)] = 0
    return out


def write_map(file: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Save in the voxel order of the published maps, or as it is with another affine."""
    if affine is None:
        values, affine = values[::-1, :, ::-1].transpose(0, 2, 1), LIA
    nib.save(nib.Nifti1Image(values, affine), file)
    return file
