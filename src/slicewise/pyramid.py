"""Level after level: a plan of the whole head on large pixels, then drawn on smaller ones.

Every level is a denoiser (see `ascii`): the plan is best one of whole heads, which samples all slices at once; the
others are chains that make slice after slice. Those also see the level above, enlarged, at the slices above, at and
below the one to draw: the plan decides size, ventricles and lobes, and the drawer, which learns on patches, puts in the
rest without drifting.
"""

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slicewise.ascii import Arm, Calibrate, arms_of, between, chain, head_extent, is_air, whole_heads
from slicewise.checkpoint import DENOISERS, fitted, kind_of, load_denoiser, save_model, weights_file
from slicewise.data.windows import pooled
from slicewise.diffusion.denoiser import Denoiser, Guidance, Recipe
from slicewise.errors import UserError
from slicewise.hu import HU_MIN, round_hu
from slicewise.io.tensors import load_tensors
from slicewise.sampling import ChainSettings

KIND = "pyramid"


@dataclass(frozen=True)
class Pyramid:
    """Denoisers from the plan to the finest level.

    Attributes
    ----------
    levels : the denoisers, coarsest first.
    meta : what the checkpoint says.
    """

    levels: tuple[Denoiser, ...]
    meta: dict[str, Any]

    @property
    def recipe(self) -> Recipe:
        """That of the finest level, on whose grid volumes come out."""
        return self.levels[-1].recipe


def check_levels(recipes: Sequence[Recipe], name: object) -> None:
    """`UserError` where levels do not fit one another: the first must see no level above, and each other one that which
    is there; on one field of view, one slice spacing and one HU scale."""
    if len(recipes) < 2:
        raise UserError(f"{name}: one level is not a pyramid; give the plan and the levels that follow it")
    if recipes[0].above:
        raise UserError(f"{name}: its first level follows a level above, which is missing; give the plan first")
    for number, (coarse, fine) in enumerate(pairwise(recipes), 2):
        for what, found, expected in (
            ("pixels per side", fine.size, coarse.size * fine.above),
            ("slice spacing", round(fine.spacing_mm[0], 2), round(coarse.spacing_mm[0], 2)),
            ("pixel size", round(fine.spacing_mm[1] * fine.above, 2), round(coarse.spacing_mm[1], 2)),
            ("HU scale", fine.scale, coarse.scale),
        ):
            if found != expected:
                raise UserError(
                    f"{name}: level {number} has {what} {found} where the level above it gives {expected}; join "
                    "levels that were trained for one another"
                )


@dataclass(frozen=True)
class Head:
    """A head that has been drawn.

    Attributes
    ----------
    hu : int16 HU (Z, Y, X), superior first.
    known : which of its slices were given.
    """

    hu: np.ndarray
    known: tuple[int, ...] = ()


def draw(
    pyramid: Pyramid,
    settings: ChainSettings,
    seed: int,
    volumes: Sequence[int],
    known: Mapping[int, np.ndarray] | None = None,
    outward: Sequence[Arm] | None = None,
    calibrate: Calibrate | None = None,
    device: str = "cpu",
    progress: Callable[[int], None] = lambda slices: None,
) -> list[Head]:
    """Heads of a pyramid, as many slices as the plan of each has.

    Parameters
    ----------
    pyramid : the levels.
    settings : how each level's slices are sampled.
    seed, volumes : key of the noise; a volume is the same whichever batch it is made in.
    known : int16 HU (H, W), slices that the heads are to hold, by their number below the vertex; those that lie between
        them are drawn given both sides.
    outward : which ways to continue from the known slices; None takes those of `settings.direction`, () none.
    calibrate : applied to each slice of the finest level before it is given to the next, or None.
    device : torch device.
    progress : called with the number of slices done of all levels.

    Raises `UserError` where a known slice does not fit the plan, or a plan holds no head.
    """
    plan, known, fine = pyramid.levels[0], dict(known or {}), pyramid.recipe.size
    arms = arms_of(settings.direction) if outward is None else outward
    if settings.direction != "down" and not known:
        raise UserError(
            f"ChainSettings.direction={settings.direction}: needs GenerateSettings.seed_volume; without it, heads are "
            "drawn downward"
        )
    if known and not plan.recipe.whole:
        raise UserError(
            "GenerateSettings.seed_volume: the plan of this checkpoint begins at the vertex; train one with unet3d"
        )
    if wrong := [hu.shape for hu in known.values() if hu.shape != (fine, fine)]:
        raise UserError(f"seed slice of {wrong[0]} pixels: the checkpoint draws {fine}; resample it")
    first, last = (min(known), max(known)) if known else (0, -1)
    stacks = _plan(plan, settings, seed, volumes, known, device)
    extents = [_extent(stack, known, plan.recipe, number) for stack, number in zip(stacks, volumes)]
    if settings.slices:  # so many either way
        extents = [(max(0, first - settings.slices), min(stacks.shape[1], last + 1 + settings.slices))] * len(volumes)
    if known:
        extents = [(top if "up" in arms else first, bottom if "down" in arms else last + 1) for top, bottom in extents]
    elif not settings.slices:  # what lies above the vertex is not drawn
        stacks = _stacked([stack[top:bottom] for stack, (top, bottom) in zip(stacks, extents)])
        extents = [(0, bottom - top) for top, bottom in extents]
    reach = range(min(top for top, _ in extents), max(bottom for _, bottom in extents))
    done = itertools.count(stacks.shape[1])

    def tick() -> None:
        progress(next(done))

    tick()
    for number, level in enumerate(pyramid.levels[1:], 1):
        inside = calibrate if level is pyramid.levels[-1] else None
        # Each level has noise of its own.
        stacks = _level(level, settings, seed + (number << 48), volumes, stacks, known, reach, inside, device, tick)
    held = sorted(known)
    return [Head(stack[top:bottom], tuple(z - top for z in held)) for stack, (top, bottom) in zip(stacks, extents)]


def _level(
    level: Denoiser,
    settings: ChainSettings,
    seed: int,
    volumes: Sequence[int],
    above: np.ndarray,
    known: Mapping[int, np.ndarray],
    reach: range,
    calibrate: Calibrate | None,
    device: str,
    tick: Callable[[], None],
) -> np.ndarray:
    """int16 HU (B, Z, H, W) of one level: the slices of `reach` that are not known, after those of the level above."""
    dz, size, more = level.recipe.spacing_mm[0], level.recipe.size, level.recipe.slices - 1
    drawn = np.full((*above.shape[:2], size, size), HU_MIN, np.int16)
    for z, hu in known.items():
        drawn[:, z] = pooled_slice(hu, size)
    first, last = (min(known), max(known)) if known else (0, -1)
    inner = slice(first, last + 1)
    missing = [z - first for z in range(first, last + 1) if z not in known]
    if missing:
        stacks, seen = drawn[:, inner], above[:, inner]
        for z, slices in between(level, settings, seed + (1 << 46), volumes, stacks, missing, first * dz, device, seen):
            drawn[:, first + z] = slices
            tick()
    ways: dict[Arm, tuple[range, slice, int]] = {
        "down": (range(last + 1, reach.stop), slice(max(first, last + 1 - more), last + 1), last),
        "up": (range(first - 1, reach.start - 1, -1), slice(first, min(last + 1, first + more)), first),
    }
    for arm, (order, near, at) in ways.items():
        if not order:
            continue
        chosen = replace(settings, direction=arm, slices=len(order))
        start = drawn[:, near].swapaxes(0, 1) if known else None
        key = seed + ((arm == "up") << 47)
        made = chain(level, chosen, key, volumes, start, max(at, 0) * dz, calibrate, device, above)
        for z, slices in zip(order, made):
            drawn[:, z] = slices
            tick()
    return drawn


def _plan(
    plan: Denoiser,
    settings: ChainSettings,
    seed: int,
    volumes: Sequence[int],
    known: Mapping[int, np.ndarray],
    device: str,
) -> np.ndarray:
    """int16 HU (B, Z, h, w) of the first level, with the known slices as it sees them."""
    if not plan.recipe.whole:
        return np.stack(list(chain(plan, settings, seed, volumes, device=device)), axis=1)
    return whole_heads(
        plan, settings, seed, volumes, {z: pooled_slice(hu, plan.recipe.size) for z, hu in known.items()}, device
    )


def pooled_slice(hu: np.ndarray, size: int) -> np.ndarray:
    """A slice (H, W) on so many pixels, int16 HU, as training sees it."""
    return round_hu(pooled(torch.from_numpy(hu.copy())[None, None], len(hu) // size)[0, 0].numpy())


def _extent(stack: np.ndarray, known: Collection[int], recipe: Recipe, number: int) -> tuple[int, int]:
    """First slice of the head in a plan (Z, h, w), and the one after its last: the run of slices that are no air about
    the known ones, or the first long one (see `ascii.head_extent`)."""
    air = is_air(stack, recipe.scale.air)
    if not known:
        first, end = head_extent(stack, recipe.scale.air)
    else:
        before, after = np.flatnonzero(air[: min(known)]), np.flatnonzero(air[max(known) + 1 :])
        first = int(before[-1]) + 1 if len(before) else 0
        end = max(known) + 1 + int(after[0]) if len(after) else len(stack)
    if end - first < 2:
        raise UserError(
            f"the plan of volume {number} holds no head; train the plan for longer, or give another "
            "GenerateSettings.seed"
        )
    return first, end


def _stacked(heads: Sequence[np.ndarray]) -> np.ndarray:
    """(B, Z, h, w), the shorter ones followed by air."""
    longest = max(map(len, heads))
    out = np.full((len(heads), longest, *heads[0].shape[1:]), HU_MIN, np.int16)
    for stack, head in zip(out, heads):
        stack[: len(head)] = head
    return out


def join(levels: Sequence[Path], out: Path, half: bool = False, size: int = 0) -> Path:
    """Write one checkpoint of several levels, coarsest first.

    Parameters
    ----------
    levels : run folders or weights of `slicewise train`.
    out : file to write.
    half : write float16, which is half as large (single numbers stay float32).
    size : pixels per side that are drawn unless another size is asked for; 0 takes the finest level.

    Raises `UserError` where a level cannot be read, they do not fit one another, or none draws `size`.
    """
    read = [load_tensors(weights_file(path)) for path in levels]
    for path, (_, meta) in zip(levels, read):
        if meta.get("kind") not in DENOISERS:
            raise UserError(f"{path}: holds {meta.get('kind', 'no network')}, expected a denoiser of slicewise train")
    recipes = [Recipe.from_dict(meta["recipe"], path) for path, (_, meta) in zip(levels, read)]
    check_levels(recipes, out)
    size = size or recipes[-1].size
    _check_size(size, recipes[1:], out)
    tensors = {f"{n}.{key}": value for n, (held, _) in enumerate(read) for key, value in held.items()}
    if half:
        tensors = {key: value.half() if value.dim() else value for key, value in tensors.items()}
    metas = [meta for _, meta in read]
    about = {"levels": metas, "size": size, "step": [meta["step"] for meta in metas], "data": metas[-1]["data"]}
    save_model(out, KIND, {}, tensors, about)
    return out


def load_generator(
    path: Path, core_dtype: torch.dtype = torch.float32, device: str = "cpu", size: int = 0
) -> "Denoiser | Pyramid":
    """What a checkpoint file or a run folder holds: a pyramid, or a denoiser alone.

    `size` is the pixels per side to draw, for pyramids of several; 0 takes what the checkpoint says. Raises `UserError`
    where it draws no such size, and as `load_pyramid` and `load_denoiser` do.
    """
    if kind_of(path) == KIND:
        return load_pyramid(path, core_dtype, device, size)
    denoiser = load_denoiser(path, core_dtype, device)
    _check_size(size or denoiser.recipe.size, [denoiser.recipe], path)
    return denoiser


def _check_size(size: int, recipes: Sequence[Recipe], name: object) -> None:
    if size not in (sizes := [recipe.size for recipe in recipes]):
        raise UserError(f"{name}: does not draw {size} pixels per side; choose {' or '.join(map(str, sizes))}")


def guided(model: "Denoiser | Pyramid", guide: "Denoiser | Pyramid", settings: ChainSettings) -> "Denoiser | Pyramid":
    """A model whose levels are each led away from those of `guide`. Raises `UserError` where they do not fit."""

    def lead(level: Denoiser, by: Denoiser) -> Denoiser:
        for what in ("slices", "size", "scale", "whole", "above", "position", "joint"):
            if getattr(level.recipe, what) != getattr(by.recipe, what):
                raise UserError(
                    f"GenerateSettings.guide: its {what} is {getattr(by.recipe, what)} where the checkpoint's is "
                    f"{getattr(level.recipe, what)}; give an earlier or smaller checkpoint of the same levels"
                )
        return replace(level, guidance=Guidance(by, settings.guidance, settings.guidance_interval))

    if isinstance(model, Denoiser) and isinstance(guide, Denoiser):
        return lead(model, guide)
    if isinstance(model, Pyramid) and isinstance(guide, Pyramid) and len(model.levels) == len(guide.levels):
        return replace(model, levels=tuple(map(lead, model.levels, guide.levels)))
    raise UserError(
        "GenerateSettings.guide: its levels differ from the checkpoint's; give an earlier or smaller one of the same "
        "levels"
    )


def load_pyramid(path: Path, core_dtype: torch.dtype = torch.float32, device: str = "cpu", size: int = 0) -> Pyramid:
    """A pyramid from its checkpoint file, down to the level that draws `size` pixels per side (0: what the file says).
    Raises `UserError` for a file that is damaged, lacks a level's weights, whose levels do not fit one another, or none
    of which draws that size."""
    tensors, meta = load_tensors(weights_file(path))
    if meta.get("kind") != KIND:
        raise UserError(f"{path}: holds a network of kind {meta.get('kind')}, expected {KIND}")
    recipes = [Recipe.from_dict(one["recipe"], path) for one in meta["levels"]]
    check_levels(recipes, path)
    size = size or meta.get("size", recipes[-1].size)
    _check_size(size, recipes[1:], path)
    levels = []
    for number, (one, recipe) in enumerate(zip(meta["levels"], recipes)):
        if recipe.size > size:
            break
        own = f"{number}."
        weights = {key.removeprefix(own): value for key, value in tensors.items() if key.startswith(own)}
        network = fitted(one["kind"], one["network"], weights, f"{path}, level {number + 1}").to(device)
        levels.append(Denoiser(network, recipe, one, core_dtype))
    return Pyramid(tuple(levels), meta)
