"""Level after level: a plan of the whole head on large pixels, then drawn on smaller ones.

Every level is a denoiser whose chain makes slice after slice (see `ascii`). Those below the first also see the level
above, enlarged, at the slices above, at and below the one to draw: the plan decides size, ventricles and lobes, and the
drawer, which learns on patches, puts in the rest without drifting.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slicewise.ascii import Calibrate, ChainSettings, chain, trim
from slicewise.checkpoint import fitted, save_model, weights_file
from slicewise.diffusion.denoiser import Denoiser, Recipe
from slicewise.errors import UserError
from slicewise.hu import HU_MIN
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


def draw(
    pyramid: Pyramid,
    settings: ChainSettings,
    seed: int,
    volumes: Sequence[int],
    calibrate: Calibrate | None = None,
    device: str = "cpu",
    progress: Callable[[int], None] = lambda slices: None,
) -> list[np.ndarray]:
    """Heads of a pyramid, int16 HU (Z, Y, X) each, superior first, as many slices as the plan of each has.

    Parameters
    ----------
    pyramid : the levels.
    settings : how each level's slices are sampled.
    seed, volumes : key of the noise; a volume is the same whichever batch it is made in.
    calibrate : applied to each slice of the finest level before it is given to the next, or None.
    device : torch device.
    progress : called with the number of slices done of all levels.
    """
    if settings.direction == "up":
        raise UserError("--chain.direction up: a pyramid draws downward; leave it out")
    heads: list[np.ndarray] | None = None
    done = 0
    for number, level in enumerate(pyramid.levels):
        last = number == len(pyramid.levels) - 1
        above = None if heads is None else _stacked(heads)
        chosen = settings if above is None else replace(settings, slices=above.shape[1])
        # Each level has noise of its own.
        key = seed + (number << 48)
        made: list[np.ndarray] = []
        for slices in chain(level, chosen, key, volumes, None, 0.0, calibrate if last else None, device, above):
            made.append(slices)
            done += 1
            progress(done)
        stacks = np.stack(made, axis=1)
        if heads is None:
            most = level.recipe.scale.air
            heads = [stack if settings.slices else trim(stack, most=most) for stack in stacks]
        else:
            heads = [stack[: len(head)] for stack, head in zip(stacks, heads)]
    assert heads is not None
    return heads


def _stacked(heads: Sequence[np.ndarray]) -> np.ndarray:
    """(B, Z, h, w), the shorter ones followed by air."""
    longest = max(map(len, heads))
    out = np.full((len(heads), longest, *heads[0].shape[1:]), HU_MIN, np.int16)
    for stack, head in zip(out, heads):
        stack[: len(head)] = head
    return out


def join(levels: Sequence[Path], out: Path) -> Path:
    """Write one checkpoint of several levels, coarsest first: run folders or weights of `slicewise train`.

    Raises `UserError` where a level cannot be read, or they do not fit one another.
    """
    read = [load_tensors(weights_file(path)) for path in levels]
    for path, (_, meta) in zip(levels, read):
        if meta.get("kind") not in ("unet", "ncsnpp"):
            raise UserError(f"{path}: holds {meta.get('kind', 'no network')}, a level is a denoiser of slicewise train")
    check_levels([Recipe.from_dict(meta["recipe"], path) for path, (_, meta) in zip(levels, read)], out)
    tensors = {f"{n}.{key}": value for n, (held, _) in enumerate(read) for key, value in held.items()}
    metas = [meta for _, meta in read]
    about = {"levels": metas, "step": [meta["step"] for meta in metas], "data": metas[-1]["data"]}
    save_model(out, KIND, {}, tensors, about)
    return out


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
