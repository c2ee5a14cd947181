"""Level after level: a plan of the whole head on large pixels, then drawn on smaller ones.

Every level is a denoiser (see `ascii`): the plan is best one of whole heads, which samples all slices at once; the
others are chains that make slice after slice. Those also see the level above, enlarged, at the slices above, at and
below the one to draw: the plan decides size, ventricles and lobes, and the drawer, which learns on patches, puts in the
rest without drifting.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slicewise.ascii import Calibrate, ChainSettings, arms_of, chain, head_extent, is_air, whole_heads
from slicewise.checkpoint import DENOISERS, fitted, kind_of, load_denoiser, save_model, weights_file
from slicewise.data.windows import pooled
from slicewise.diffusion.denoiser import Denoiser, Guidance, Recipe
from slicewise.errors import UserError
from slicewise.hu import HU_MIN, round_hu
from slicewise.io.tensors import load_tensors

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
        raise UserError(f"{name}: one level is no pyramid; give the plan and what draws after it")
    if recipes[0].above:
        raise UserError(f"{name}: its first level sees a level above, which is missing; give the plan first")
    for number, (coarse, fine) in enumerate(pairwise(recipes), 2):
        for what, found, expected in (
            ("pixels per side", fine.size, coarse.size * fine.above),
            ("slice spacing", round(fine.spacing_mm[0], 2), round(coarse.spacing_mm[0], 2)),
            ("pixel size", round(fine.spacing_mm[1] * fine.above, 2), round(coarse.spacing_mm[1], 2)),
            ("HU scale", fine.scale, coarse.scale),
        ):
            if found != expected:
                raise UserError(
                    f"{name}: level {number} has {what} {found} where the level above it leads to {expected}; join "
                    "levels that were trained for one another"
                )


@dataclass(frozen=True)
class Head:
    """A head that has been drawn, int16 HU (Z, Y, X) each, superior first: the slices `above` the seed slice, none
    where there was no seed, and those `below` it."""

    above: np.ndarray
    below: np.ndarray


def draw(
    pyramid: Pyramid,
    settings: ChainSettings,
    seed: int,
    volumes: Sequence[int],
    start: np.ndarray | None = None,
    start_mm: float = 0.0,
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
    start : int16 HU (H, W), a real slice to go on from, down, up or both ways, or None.
    start_mm : position of that slice in mm below the vertex.
    calibrate : applied to each slice of the finest level before it is given to the next, or None.
    device : torch device.
    progress : called with the number of slices done of all levels.

    Raises `UserError` where a seed does not fit the plan, or a plan holds no head.
    """
    plan = pyramid.levels[0]
    at = None if start is None else round(start_mm / plan.recipe.spacing_mm[0])
    if settings.direction != "down" and start is None:
        raise UserError(
            f"--chain.direction {settings.direction}: needs --seed-volume; heads are drawn downward without"
        )
    if start is not None and not plan.recipe.whole:
        raise UserError("--seed-volume: the plan of this checkpoint begins at the vertex; train one with unet3d")
    if start is not None and start.shape != (pyramid.recipe.size,) * 2:
        raise UserError(f"seed slice of {start.shape} pixels: the checkpoint draws {pyramid.recipe.size}; resample it")
    stacks = _plan(plan, settings, seed, volumes, start, at, device)
    extents = [_extent(stack, at, plan.recipe, number) for stack, number in zip(stacks, volumes)]
    if settings.slices:  # so many either way
        middle = (0, 0) if at is None else (at, at + 1)
        reach = max(0, middle[0] - settings.slices), min(stacks.shape[1], middle[1] + settings.slices)
        extents = [reach] * len(volumes)
    elif at is None:  # what lies above the vertex is not drawn
        stacks = _stacked([stack[first:end] for stack, (first, end) in zip(stacks, extents)])
        extents = [(0, end - first) for first, end in extents]
    done = stacks.shape[1]
    progress(done)
    arms = arms_of(settings.direction)
    for number, level in enumerate(pyramid.levels[1:], 1):
        fine = level.recipe.size
        drawn = np.full((*stacks.shape[:2], fine, fine), HU_MIN, np.int16)
        before = None
        if start is not None:
            before = _means(start, fine)[None]
            drawn[:, at] = before[0]
        for arm in arms:
            order = range(0 if at is None else at + 1, max(end for _, end in extents))
            if at is not None and arm == "up":
                order = range(at - 1, min(first for first, _ in extents) - 1, -1)
            chosen = replace(settings, direction=arm, slices=len(order))
            inside = calibrate if level is pyramid.levels[-1] else None
            # Each level has noise of its own, and so has each arm.
            key = seed + (number << 48) + ((arm == "up") << 47)
            made = chain(level, chosen, key, volumes, before, start_mm, inside, device, stacks) if order else ()
            for z, slices in zip(order, made):
                drawn[:, z] = slices
                done += 1
                progress(done)
        stacks = drawn
    heads = []
    for stack, (first, end) in zip(stacks, extents):
        upper, lower = (0, 0) if at is None else (at, at + 1)
        above = stack[first:upper] if "up" in arms else stack[:0]
        heads.append(Head(above, stack[lower:end] if "down" in arms else stack[:0]))
    return heads


def _plan(
    plan: Denoiser,
    settings: ChainSettings,
    seed: int,
    volumes: Sequence[int],
    start: np.ndarray | None,
    at: int | None,
    device: str,
) -> np.ndarray:
    """int16 HU (B, Z, h, w) of the first level, with the seed slice as it sees it at number `at`."""
    if not plan.recipe.whole:
        return np.stack(list(chain(plan, settings, seed, volumes, device=device)), axis=1)
    known = {} if start is None or at is None else {at: _means(start, plan.recipe.size)}
    return whole_heads(plan, settings, seed, volumes, known, device)


def _means(hu: np.ndarray, size: int) -> np.ndarray:
    """A slice (H, W) on so many pixels, int16 HU, as training sees it."""
    return round_hu(pooled(torch.from_numpy(hu.copy())[None, None], len(hu) // size)[0, 0].numpy())


def _extent(stack: np.ndarray, at: int | None, recipe: Recipe, number: int) -> tuple[int, int]:
    """First slice of the head in a plan (Z, h, w), and the one after its last: the run of slices that are no air about
    the seed slice, or the first long one (see `ascii.head_extent`)."""
    air = is_air(stack, recipe.scale.air)
    if at is None:
        first, end = head_extent(stack, recipe.scale.air)
    else:
        before, after = np.flatnonzero(air[:at]), np.flatnonzero(air[at + 1 :])
        first = int(before[-1]) + 1 if len(before) else 0
        end = at + 1 + int(after[0]) if len(after) else len(stack)
    if end - first < 2:
        raise UserError(f"the plan of volume {number} holds no head; train the plan for longer, or give another --seed")
    return first, end


def _stacked(heads: Sequence[np.ndarray]) -> np.ndarray:
    """(B, Z, h, w), the shorter ones followed by air."""
    longest = max(map(len, heads))
    out = np.full((len(heads), longest, *heads[0].shape[1:]), HU_MIN, np.int16)
    for stack, head in zip(out, heads):
        stack[: len(head)] = head
    return out


def join(levels: Sequence[Path], out: Path, half: bool = False) -> Path:
    """Write one checkpoint of several levels, coarsest first: run folders or weights of `slicewise train`; with `half`
    in float16, which is half as large (single numbers stay float32).

    Raises `UserError` where a level cannot be read, or they do not fit one another.
    """
    read = [load_tensors(weights_file(path)) for path in levels]
    for path, (_, meta) in zip(levels, read):
        if meta.get("kind") not in DENOISERS:
            raise UserError(f"{path}: holds {meta.get('kind', 'no network')}, a level is a denoiser of slicewise train")
    check_levels([Recipe.from_dict(meta["recipe"], path) for path, (_, meta) in zip(levels, read)], out)
    tensors = {f"{n}.{key}": value for n, (held, _) in enumerate(read) for key, value in held.items()}
    if half:
        tensors = {key: value.half() if value.dim() else value for key, value in tensors.items()}
    metas = [meta for _, meta in read]
    about = {"levels": metas, "step": [meta["step"] for meta in metas], "data": metas[-1]["data"]}
    save_model(out, KIND, {}, tensors, about)
    return out


def load_generator(path: Path, core_dtype: torch.dtype = torch.float32, device: str = "cpu") -> "Denoiser | Pyramid":
    """What a checkpoint file or a run folder holds: a pyramid, or a denoiser alone."""
    load = load_pyramid if kind_of(path) == KIND else load_denoiser
    return load(path, core_dtype, device)


def guided(model: "Denoiser | Pyramid", guide: "Denoiser | Pyramid", settings: ChainSettings) -> "Denoiser | Pyramid":
    """A model whose levels are each led away from those of `guide`. Raises `UserError` where they do not fit."""

    def lead(level: Denoiser, by: Denoiser) -> Denoiser:
        for what in ("slices", "size", "scale", "whole", "above", "position", "joint"):
            if getattr(level.recipe, what) != getattr(by.recipe, what):
                raise UserError(
                    f"--guide: its {what} is {getattr(by.recipe, what)} where the checkpoint's is "
                    f"{getattr(level.recipe, what)}; give an earlier or smaller checkpoint of the same levels"
                )
        return replace(level, guidance=Guidance(by, settings.guidance, settings.guidance_interval))

    if isinstance(model, Denoiser) and isinstance(guide, Denoiser):
        return lead(model, guide)
    if isinstance(model, Pyramid) and isinstance(guide, Pyramid) and len(model.levels) == len(guide.levels):
        return replace(model, levels=tuple(map(lead, model.levels, guide.levels)))
    raise UserError("--guide: has other levels than the checkpoint; give an earlier or smaller one of the same levels")


def load_pyramid(path: Path, core_dtype: torch.dtype = torch.float32, device: str = "cpu") -> Pyramid:
    """A pyramid from its checkpoint file. Raises `UserError` for a file that is damaged, lacks a level's weights, or
    whose levels do not fit one another."""
    tensors, meta = load_tensors(weights_file(path))
    if meta.get("kind") != KIND:
        raise UserError(f"{path}: holds a network of kind {meta.get('kind')}, expected {KIND}")
    levels = []
    for number, one in enumerate(meta["levels"]):
        own = f"{number}."
        weights = {key.removeprefix(own): value for key, value in tensors.items() if key.startswith(own)}
        network = fitted(one["kind"], one["network"], weights, f"{path}, level {number + 1}").to(device)
        levels.append(Denoiser(network, Recipe.from_dict(one["recipe"], path), one, core_dtype))
    check_levels([level.recipe for level in levels], path)
    return Pyramid(tuple(levels), meta)
