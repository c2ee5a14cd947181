"""Volumes made alike, so that nothing but the picture tells real from synthetic: one grid, one number of slices, one
frame, the same air in and around the head, the same largest HU, no HU that never occurs, files of one size with one
header."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from slicewise.data.resample import Grid, body_mask, crop_above, remove_table, resample_volume
from slicewise.errors import UserError
from slicewise.hu import HU_MIN, TRUE_AIR_HU, round_hu
from slicewise.io.geometry import axial
from slicewise.viewer.display import encode
from slicewise.volume import Volume, volume_from_affine

# Fewer slices show no structure from end to end.
MIN_SLICES = 8
# What is below this, HU, is set to air without noise, since air has noise in a scan, and none, or another, in a
# synthetic volume. Lower than `hu.AIR_HU`, so that mastoid cells stay as they are.
_AIR_BELOW_HU = -800
# Standard deviation of the noise that every case gets, HU: a third of a scan's quantum noise or less, it fills codes
# that rescaling left empty, and makes the second showing of a case another file.
DITHER = 1.0
# Spacings that differ by less than this share of themselves are one.
_SAME = 1e-3


def common_grid(
    spacings: Sequence[tuple[float, float, float]], pixel_mm: float, slice_mm: float, fov_mm: float, table: bool
) -> Grid:
    """The grid for volumes of these (z, y, x) spacings: the coarsest pixel and slice step of all, or the ones given."""
    pixel = pixel_mm or max(max(y, x) for _, y, x in spacings)
    step = slice_mm or max(z for z, _, _ in spacings)
    size = round(fov_mm / pixel)
    if size < 16:
        raise UserError(
            f"StudySettings.fov_mm={fov_mm:g}: only {size} pixels of {pixel:g} mm; choose a larger one or a smaller "
            "StudySettings.pixel_mm"
        )
    return Grid(size, size * pixel, step, crop_air_above=True, remove_table=table)


def on_grid(volume: Volume, grid: Grid) -> np.ndarray:
    """int16 HU (Z, size, size) on the grid, from the vertex down, the head in the middle.

    A volume that has the grid's spacing already is only moved by whole pixels: interpolating it, when others need none,
    would soften its noise and so give it away.
    """
    pixel = grid.fov_mm / grid.size
    if not _fits(volume, (grid.slice_mm, pixel, pixel)):
        return resample_volume(volume, grid).hu
    volume = volume_from_affine(volume.hu.transpose(2, 1, 0), volume.affine, volume.acquisition)
    head = body_mask(volume)
    if not head.any():
        raise UserError(f"{volume.acquisition.source}: no head in it")
    if grid.remove_table:
        volume = remove_table(volume)
    _, y, x = ndimage.center_of_mass(head)
    return _window(crop_above(volume).hu, y, x, grid.size)


def alike(hu: np.ndarray, ceiling: int, rng: np.random.Generator) -> np.ndarray:
    """int16 HU of the same shape with what is no anatomy made the same in all cases: air, the largest HU, and which
    codes occur. `ceiling` is one that every case reaches; some voxels of each end on it."""
    noisy = round_hu(hu + rng.normal(0.0, DITHER, hu.shape))
    noisy[hu >= ceiling] = ceiling
    return np.where(hu < _AIR_BELOW_HU, np.int16(TRUE_AIR_HU), np.clip(noisy, _AIR_BELOW_HU, ceiling)).astype(np.int16)


def case_file(hu: np.ndarray, grid: Grid) -> bytes:
    """The case as readers get it: .nii bytes whose length and header depend on the grid and the slices alone."""
    pixel = grid.fov_mm / grid.size
    return encode(Volume.regular(np.ascontiguousarray(hu), (grid.slice_mm, pixel, pixel)))


def _fits(volume: Volume, spacing: tuple[float, float, float]) -> bool:
    """Whether the volume is axial, even, untilted, along the patient's axes, and of this spacing."""
    if not volume.is_even or abs(volume.normal[2]) < 1 - 1e-6 or np.abs(volume.row_axis).max() < 1 - 1e-6:
        return False
    if np.abs(np.diff(volume.positions[:, :2], axis=0)).max() > 0.02:
        return False
    return bool(np.allclose(axial(volume).spacing, spacing, rtol=_SAME))


def _window(hu: np.ndarray, y: float, x: float, size: int) -> np.ndarray:
    """The square of `size` pixels around (y, x) in every slice; air where the volume does not reach."""
    out = np.full((len(hu), size, size), HU_MIN, np.int16)
    starts = [round(centre - (size - 1) / 2) for centre in (y, x)]
    target, source = [], []
    for start, length in zip(starts, hu.shape[1:]):
        low, high = max(start, 0), min(start + size, length)
        target.append(slice(low - start, high - start))
        source.append(slice(low, high))
    out[:, target[0], target[1]] = hu[:, source[0], source[1]]
    return out
