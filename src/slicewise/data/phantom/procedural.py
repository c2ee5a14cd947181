"""The procedural anatomy: a head from nothing but draws, the default that needs no data.

Shape statistics come from the brain masks of TCIA head and neck scans (CC BY 4.0, see ATTRIBUTION.md).
"""

import numpy as np

from slicewise.data.phantom.brain import paint_brain
from slicewise.data.phantom.labels import TissueVolume, fine_grid
from slicewise.data.phantom.shapes import Canvas, Person, draw_person, expand, linear_matrix, rotation, smooth_noise
from slicewise.data.phantom.skull import (
    cavity,
    paint_air,
    paint_ears,
    paint_orbits,
    paint_skull,
    paint_soft_tissue,
    skin,
)


def make_tissue(rng: np.random.Generator, size: int, fov_mm: float, slice_mm: float) -> TissueVolume:
    """The head of these draws on sub-slices of at most 1.7 mm."""
    person = draw_person(rng)
    per_slice, factor = fine_grid(size, fov_mm, slice_mm, 1.7)
    dz, n_fine = slice_mm / per_slice, size * factor
    pixel = fov_mm / n_fine
    top = 8 + person.height + person.skull + person.scalp + 8 + slice_mm * float(rng.uniform(0, 1))
    bottom = float(rng.uniform(-80, -66))
    n_slices = round((top - bottom) / slice_mm)
    n_z = n_slices * per_slice + per_slice
    canvas, crop = _canvas(rng, person, (n_z, n_fine, n_fine), (dz, pixel, pixel), top + per_slice // 2 * dz)
    _paint(canvas, person)
    centres = np.arange(n_slices) * per_slice + per_slice // 2
    described = {k: (round(v, 3) if isinstance(v, float) else v) for k, v in vars(person).items()}
    return TissueVolume(canvas.hu, canvas.labels, (dz, pixel, pixel), centres, crop, n_fine, described)


def _canvas(
    rng: np.random.Generator,
    person: Person,
    shape: tuple[int, int, int],
    step: tuple[float, float, float],
    top: float,
) -> tuple[Canvas, tuple[slice, slice]]:
    """The fine grid, cropped to the head in plane, with head coordinates: shifted, turned and gently warped."""
    n_z, n_y, n_x = shape
    shift = rng.normal(0, 1, 3) * (2.5, 2.5, 0)
    centre_y = (n_y - 1) / 2 + (8 + shift[1]) / step[1]
    centre_x = (n_x - 1) / 2 + shift[0] / step[2]
    y0, y1 = max(0, int(centre_y - 122 / step[1])), min(n_y, int(centre_y + 108 / step[1]))
    x0, x1 = max(0, int(centre_x - 92 / step[2])), min(n_x, int(centre_x + 92 / step[2]))
    y0, x0 = y0 // 2 * 2, x0 // 2 * 2
    z = (top - np.arange(n_z) * step[0]).astype(np.float32)[:, None, None]
    y = ((np.arange(y0, y1) - centre_y) * step[1]).astype(np.float32)[None, :, None]
    x = ((np.arange(x0, x1) - centre_x) * step[2]).astype(np.float32)[None, None, :]
    pitch, roll, yaw = np.deg2rad([person.tilt, rng.normal(0, 2.0), rng.normal(0, 3.0)])
    turn = rotation(pitch, roll, yaw).astype(np.float32)
    full = (n_z, y1 - y0, x1 - x0)
    out = []
    for row in range(3):  # x, y, z of the head frame
        warp = 1.2 * smooth_noise(rng, full, step, 48.0) + 0.4 * smooth_noise(rng, full, step, 20.0)
        # Turn about the middle of the brain, (0, 5, 5).
        out.append(turn[row, 0] * x + turn[row, 1] * (y - 5) + turn[row, 2] * (z - 5) + warp + (0, 5, 5)[row])
    head_x, head_y, head_z = (v.astype(np.float32) for v in out)
    return Canvas(head_x, head_y, head_z, step, rng), (slice(y0, y1), slice(x0, x1))


def _paint(c: Canvas, person: Person) -> None:
    """Paint the whole head."""
    every_other = (slice(None), slice(None, None, 2), slice(None, None, 2))
    up = (np.eye(c.x.shape[0], dtype=np.float32), *(linear_matrix(n, 2) for n in c.x.shape[1:]))
    coarse = (c.x[every_other], c.y[every_other], c.z[every_other])

    def enlarge(low: np.ndarray) -> np.ndarray:
        return expand(low, *up)

    # The base is more rugged than the vault.
    rugged = np.clip((-12 - c.z) / 12, 0, 1)
    inner = enlarge(cavity(person, c.rng, *coarse)) + (np.float32(0.3) + rugged) * c.noise(13.0)
    outside = enlarge(skin(person, c.rng, *coarse)) + np.float32(0.4) * c.noise(15.0) + np.float32(0.7) * c.noise(55.0)
    paint_soft_tissue(c, person, outside, inner)
    paint_skull(c, person, inner, outside)
    paint_orbits(c, outside)
    paint_air(c, person)
    paint_brain(c, person, inner)
    paint_ears(c, person, outside)
