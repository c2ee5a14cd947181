"""The procedural anatomy: a head from nothing but draws, the default that needs no data.

Shape statistics come from the brain masks of TCIA head and neck scans (CC BY 4.0, see ATTRIBUTION.md).
"""

import numpy as np

from slicewise.data.phantom.brain import paint_brain
from slicewise.data.phantom.labels import TissueVolume, fine_grid
from slicewise.data.phantom.shapes import Canvas, Person, rotation, smooth_noise
from slicewise.data.phantom.skull import paint_air, paint_orbits, paint_skull, paint_soft_tissue, surfaces


def make_tissue(rng: np.random.Generator, size: int, fov_mm: float, slice_mm: float) -> TissueVolume:
    """The head of these draws on sub-slices of at most 1.7 mm, cropped in plane to the head."""
    person = Person(rng)
    per_slice, factor = fine_grid(size, fov_mm, slice_mm, 1.7)
    n_fine = size * factor
    step = (slice_mm / per_slice, fov_mm / n_fine, fov_mm / n_fine)
    top = 8 + person.height + person.skull + person.scalp + 8 + slice_mm * rng.uniform(0, 1)
    n_slices = round((top - rng.uniform(-80, -66)) / slice_mm)
    centres = np.arange(n_slices) * per_slice + per_slice // 2
    z = top + (per_slice // 2 - np.arange((n_slices + 1) * per_slice)) * step[0]
    across = (np.arange(n_fine) - (n_fine - 1) / 2) * step[1]
    y, x = across - 8 - rng.normal(0, 2.5), across - rng.normal(0, 2.5)
    y0, y1, x0, x1 = (int(n) // 2 * 2 for n in (*np.searchsorted(y, (-122, 108)), *np.searchsorted(x, (-92, 92))))
    # Head coordinates are the scanner's turned about the middle of the brain, (0, 5, 5), and gently warped.
    turn = rotation(*np.deg2rad([person.tilt, rng.normal(0, 2.0), rng.normal(0, 3.0)])).astype(np.float32)
    z, y, x = (v.astype(np.float32) for v in np.ix_(z - 5, y[y0:y1] - 5, x[x0:x1]))
    shape = (z.size, y.size, x.size)
    at = []
    for (a, b, c), middle in zip(turn, (0, 5, 5)):
        warp = 1.2 * smooth_noise(rng, shape, step, 48.0) + 0.4 * smooth_noise(rng, shape, step, 20.0)
        at.append(a * x + b * y + c * z + warp + middle)
    # The surfaces are smooth: every other point in plane will do, with lines between.
    halves = surfaces(person, rng, [v[:, ::2, ::2] for v in at])
    up = [np.maximum(1 - np.abs(np.arange(n)[:, None] / 2 - np.arange(n // 2)), 0) for n in shape[1:]]
    inner, outside = (up[0].astype(np.float32) @ v @ up[1].T.astype(np.float32) for v in halves)
    rugged = np.clip((-12 - at[2]) / 12, 0, 1)  # the base more than the vault
    inner += (0.3 + rugged) * smooth_noise(rng, shape, step, 13.0)
    outside += 0.4 * smooth_noise(rng, shape, step, 15.0) + 0.7 * smooth_noise(rng, shape, step, 55.0)
    air = np.full(shape, -1000, np.float32)
    head = Canvas(at[0], at[1], at[2], inner, outside, air, np.zeros(shape, np.uint8), step, rng)
    for paint in (paint_soft_tissue, paint_skull, paint_orbits, paint_air, paint_brain):
        paint(head, person)
    described = {k: round(v, 3) for k, v in vars(person).items()}
    return TissueVolume(head.hu, head.labels, step, centres, (slice(y0, y1), slice(x0, x1)), n_fine, described)
