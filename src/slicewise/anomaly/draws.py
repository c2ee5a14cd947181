"""Pseudo-normal heads: what every slice of a head could look like, given its neighbours, if it were normal."""

from collections.abc import Callable
from typing import Any

import numpy as np

from slicewise.anomaly.settings import AnomalySettings
from slicewise.ascii import last_in_middle, noised_and_back, whole_heads
from slicewise.data.store import first_head_slice
from slicewise.diffusion.denoiser import Denoiser
from slicewise.errors import UserError
from slicewise.fill import fill_volume
from slicewise.hu import AIR_HU, HU_MIN
from slicewise.pyramid import Pyramid, pooled_slice
from slicewise.sampling import ChainSettings
from slicewise.volume import Volume

# Samplers come down to this share of the noise that was put on: less of it no region shows.
LOWEST_NOISE = 1 / 8
USUAL_STEPS = 2
# What is cut away in plane is air this far from the head, in pixels; sides are whole multiples of 16 for the network.
MARGIN = 8
SIDE = 16
# A slice that shows more of a head than this is not its first.
VERTEX_CM2 = 60.0


def pseudo_normal(
    model: Denoiser | Pyramid,
    volume: Volume,
    settings: AnomalySettings,
    number: int = 0,
    device: str = "cpu",
    progress: Callable[[int], None] = lambda slices: None,
) -> np.ndarray:
    """One pseudo-normal head, int16 HU (Z, Y, X).

    Parameters
    ----------
    model : what `load_generator` read, on `device`.
    volume : a head on the model's grid.
    settings : how to draw.
    number : of the draw; another one has other noise.
    device : torch device.
    progress : called with the number of slices done.

    Slices that cannot be judged (see `judged_slices`) stay the scan's. Raises `UserError` where the checkpoint cannot
    do it, or the head is cut above.
    """
    slices = judged_slices(model, volume, settings)
    seed = (settings.seed << 20) + number
    if settings.method == "neighbours":
        return _from_neighbours(model, volume, slices, settings, seed, device, progress)
    return _noised(model, volume, slices, settings, seed, device, progress)


def judged_slices(model: Denoiser | Pyramid, volume: Volume, settings: AnomalySettings) -> range:
    """The slices that are drawn: those with a neighbour on both sides, from the second of the head on, as far down as
    the plan of a pyramid reaches.

    Raises `UserError` where there are none, where the first slice shows so much of a head that its vertex must be
    missing, and for a checkpoint that cannot do it.
    """
    recipe, (dz, dy, dx) = model.recipe, volume.spacing
    if recipe.joint and settings.method == "noising":
        raise UserError(
            "AnomalySettings.method=noising: this checkpoint has one noise level for its whole window, so true "
            "neighbours cannot stay clean; use AnomalySettings.method=neighbours"
        )
    if recipe.whole:
        raise UserError("this checkpoint is a plan of whole heads; give a pyramid or a denoiser that draws slices")
    if isinstance(model, Denoiser) and recipe.above:
        raise UserError("this denoiser follows the plan of a level above; join both with slicewise pyramid")
    area = float((volume.hu[0] > AIR_HU).sum() * dy * dx / 100)
    if not settings.above_mm and area > VERTEX_CM2:
        raise UserError(
            f"{volume.acquisition.source or 'volume'}: its first slice shows {area:.0f} cm2, so the vertex is cut off; "
            "give AnomalySettings.above_mm, the height of the missing part"
        )
    first = vertex_slice(volume, settings) + 1
    end = last_in_middle(recipe, len(volume.hu)) + 1 if settings.method == "noising" else len(volume.hu) - 1
    if isinstance(model, Pyramid):
        end = min(end, model.levels[0].recipe.slices - 1 - round(settings.above_mm / dz) + first - 1)
    if first >= end:
        raise UserError(f"{volume.acquisition.source or 'volume'}: no slice of the head has neighbours on both sides")
    return range(first, end)


def vertex_slice(volume: Volume, settings: AnomalySettings) -> int:
    """The first slice of the head."""
    return 0 if settings.above_mm else first_head_slice(volume.hu)


def _from_neighbours(
    model: Denoiser | Pyramid,
    volume: Volume,
    slices: range,
    settings: AnomalySettings,
    seed: int,
    device: str,
    progress: Callable[[int], None],
) -> np.ndarray:
    """Every other run of `gap` slices drawn given the rest, then the rest given those."""
    made, n = volume.hu.copy(), settings.steps
    chain = ChainSettings(steps=n, plan_steps=n, draw_steps=n) if n else None
    above = settings.above_mm
    for half in (0, 1):
        missing = [z for z in slices if (z - slices[0]) // settings.gap % 2 == half]
        if missing:
            filled = fill_volume(model, volume, missing, seed=seed, chain=chain, above_mm=above, device=device)
            made[missing] = filled.hu[missing]
            progress(len(slices) if half else len(missing))
    return made


def _noised(
    model: Denoiser | Pyramid,
    volume: Volume,
    slices: range,
    settings: AnomalySettings,
    seed: int,
    device: str,
    progress: Callable[[int], None],
) -> np.ndarray:
    """Every slice noised and denoised given its true neighbours and the level above, which was noised and denoised
    before it."""
    levels = model.levels if isinstance(model, Pyramid) else (model,)
    top, dz = vertex_slice(volume, settings), model.recipe.spacing_mm[0]
    hu, start_mm = volume.hu[top:], round(settings.above_mm / dz) * dz
    inside = [z - top for z in slices]
    above: np.ndarray | None = None
    for number, level in enumerate(levels):
        key = seed + (number << 48)  # each level has noise of its own
        here = hu if level.recipe.size == hu.shape[1] else np.stack([pooled_slice(s, level.recipe.size) for s in hu])
        if level.recipe.whole:
            above = _plan(level, here, round(start_mm / dz), settings, key, device)
            continue
        made = here.copy()
        rows, columns = _about_head(here) if level.recipe.above else (slice(None), slice(None))
        cut = np.ascontiguousarray(here[:, rows, columns])
        seen = None if above is None else _coarse(above, rows, columns, level.recipe.above)
        chain = _chain(settings, settings.noise)
        for begin in range(0, len(inside), settings.batch):
            some = inside[begin : begin + settings.batch]
            made[some, rows, columns] = noised_and_back(level, chain, key, cut, some, start_mm, device, seen)
            progress(begin + len(some))
        above = made
    assert above is not None
    return np.concatenate([volume.hu[:top], above])


def _plan(plan: Denoiser, hu: np.ndarray, first: int, settings: AnomalySettings, seed: int, device: str) -> np.ndarray:
    """int16 HU (Z, h, w): the head as a plan has it, noised and denoised as a whole; its first slice is number `first`
    below the vertex."""
    if not settings.plan_noise:
        return hu
    count = min(len(hu), plan.recipe.slices - first)
    if first:  # what the scan does not show is drawn, given what it shows
        known = {first + z: hu[z] for z in range(count)}
        head = whole_heads(plan, ChainSettings(), seed, [0], known, device)[0]
    else:
        air = np.full((plan.recipe.slices - count, *hu.shape[1:]), HU_MIN, np.int16)
        head = np.concatenate([hu[:count], air])
    made = whole_heads(plan, _chain(settings, settings.plan_noise), seed, [0], {}, device, head)[0]
    return np.concatenate([made[first : first + count], hu[count:]])


def _chain(settings: AnomalySettings, noise: float) -> ChainSettings:
    """How to sample from a noise level down."""
    n = settings.steps or USUAL_STEPS
    return ChainSettings(sigma_max=noise, sigma_min=noise * LOWEST_NOISE, steps=n, plan_steps=n, draw_steps=n)


def _about_head(hu: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of (Z, Y, X) that hold the head, so that a network of local sight, as those that draw after a
    plan are, need not look at air."""
    tissue = hu > AIR_HU
    return _span(tissue.any(axis=(0, 2))), _span(tissue.any(axis=(0, 1)))


def _span(occupied: Any) -> slice:
    """The occupied part of an axis with its margin, in whole multiples of `SIDE` pixels from the first."""
    places, count = np.flatnonzero(occupied), len(occupied)
    first = max(0, int(places[0]) - MARGIN) // SIDE * SIDE
    last = min(count, -(-min(count, int(places[-1]) + 1 + MARGIN) // SIDE) * SIDE)
    return slice(first, last)


def _coarse(above: np.ndarray, rows: slice, columns: slice, times: int) -> np.ndarray:
    """The same part of a level whose pixels are so many times as large."""
    y, x = (slice(s.start // times, s.stop // times) for s in (rows, columns))
    return np.ascontiguousarray(above[:, y, x])
