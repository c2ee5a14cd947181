"""ASCII: slice after slice, each sampled given the ones before (Jeong et al. 2023, section 2.2).

A window of K slices moves along the volume. Its first K-1 slices are known (air before the first slice, the paper's
seed, or a slice of a real volume) and the last is sampled; upward the window is turned round. The chain's state is
whole HU, so that a slice can be calibrated before the next one is given it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Literal

import numpy as np
import torch

from slicewise.codec import codec
from slicewise.data.windows import enlarged
from slicewise.diffusion import samplers
from slicewise.diffusion.denoiser import Denoiser, Recipe, Replayed, quickest
from slicewise.errors import UserError
from slicewise.hu import AIR_HU, HU_MIN, round_hu
from slicewise.random import INITIAL, KNOWN, SliceNoise
from slicewise.sampling import ChainSettings

# (slices (B, H, W) float64 HU, the slices before them (B, H, W) int16 HU) -> calibrated HU, float
Calibrate = Callable[[np.ndarray, np.ndarray], np.ndarray]

# The ways that a chain can go; "both" are two chains.
Arm = Literal["down", "up"]

# A slice with less of its area denser than air than this is air: the head has ended.
END_FRACTION = 0.005
# Fewer slices in a row than this, with air on both sides, are specks before the head, not a head that has ended.
SHORTEST = 5


def arms_of(direction: Literal["down", "up", "both"]) -> tuple[Arm, ...]:
    """The chains that a direction takes."""
    return ("down", "up") if direction == "both" else (direction,)


@torch.no_grad()
def chain(
    denoiser: Denoiser,
    settings: ChainSettings,
    seed: int,
    volumes: Sequence[int],
    start: np.ndarray | None = None,
    start_mm: float = 0.0,
    calibrate: Calibrate | None = None,
    device: str = "cpu",
    above: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """Generate a batch of volumes, one slice at a time.

    Parameters
    ----------
    denoiser : the trained denoiser.
    settings : how to sample, and which way: down or up.
    seed, volumes : key of the noise; a volume is the same whichever batch it is made in.
    start : int16 HU (S, H, W), or (S, B, H, W) where each volume has its own: slices to continue from, superior first;
        None starts from air above the vertex.
    start_mm : position in mm below the vertex of the slice of `start` that is next to the first generated one.
    calibrate : applied to each slice before it is given to the next (IC-Net inside the chain), or None.
    device : torch device.
    above : int16 HU (B, Z, h, w) of the level above from the vertex down, for a denoiser that sees one.

    Yields
    ------
    int16 HU (B, H, W), in the order of generation. A denoiser of whole heads samples all slices at once. With
    `settings.slices == 0` the chain ends when every volume of the batch has come to a slice of air after a head (see
    `trim`) or to one slice more than the longest volume trained on.
    """
    recipe = denoiser.recipe
    if (above is not None) != bool(recipe.above):
        raise UserError(
            "this denoiser follows the plan of a level above; join both with slicewise pyramid"
            if recipe.above
            else "this denoiser does not use a level above"
        )
    if recipe.whole:
        if start is not None:
            raise UserError("a plan of whole heads can continue from a slice only in a pyramid; see slicewise pyramid")
        stacks = whole_heads(denoiser, settings, seed, volumes, {}, device)
        yield from stacks[:, : settings.slices or None].swapaxes(0, 1)
        return
    assert settings.direction != "both", "two chains, one each way"
    down = settings.direction == "down"
    step_mm = recipe.spacing_mm[0] * (1 if down else -1)
    size = (recipe.size, recipe.size)
    if start is None:
        if settings.direction == "up":
            raise UserError(
                "ChainSettings.direction=up needs GenerateSettings.seed_volume: an upward chain has no slice of air to "
                "start from"
            )
        before = [np.full((len(volumes), *size), HU_MIN, np.int16)] * (recipe.slices - 1)
        position = 0.0
    else:
        if start.shape[-2:] != size:
            raise UserError(
                f"seed slice of {start.shape[-2:]} pixels: the checkpoint was trained on {size}; resample it"
            )
        near = start if down else start[::-1]
        before = [np.broadcast_to(s, (len(volumes), *size)).copy() for s in near[-(recipe.slices - 1) :]]
        position = start_mm + step_mm
    limit = settings.slices or recipe.max_slices + 1
    sigmas = settings.sigmas(denoiser)
    denoise = quickest(denoiser, device)
    run, ended = np.full(len(volumes), 0 if start is None else SHORTEST), np.zeros(len(volumes), bool)
    for index in range(limit):
        seen = None if above is None else _slices_above(above, round(position / recipe.spacing_mm[0]))
        window = _moving_window(before, recipe.slices, down)
        wanted, last_mm = (recipe.slices - 1, position) if down else (0, position - (recipe.slices - 1) * step_mm)
        hu = _sample_slice(denoise, settings, sigmas, seed, volumes, index, window, wanted, last_mm, device, seen)
        if calibrate is not None:
            hu = calibrate(hu, before[-1])
        slices = round_hu(hu)
        yield slices
        air = is_air(slices, recipe.scale.air)
        ended |= air & (run >= SHORTEST)
        run = np.where(air, 0, run + 1)
        if settings.slices == 0 and ended.all():
            return
        before = [*before, slices][-(recipe.slices - 1) :]
        position += step_mm


def _moving_window(before: Sequence[np.ndarray], count: int, down: bool) -> list[np.ndarray | None]:
    """The window of `count` slices whose last one, or going up first one, is to be sampled after those `before` it, in
    the order of generation; None where nothing is known."""
    window = [None] * (count - 1 - len(before)) + [*before, None]
    return window if down else window[::-1]


@torch.no_grad()
def between(
    denoiser: Denoiser,
    settings: ChainSettings,
    seed: int,
    volumes: Sequence[int],
    stacks: np.ndarray,
    missing: Sequence[int],
    start_mm: float = 0.0,
    device: str = "cpu",
    above: np.ndarray | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Sample slices that lie between known ones, from the outside inward, each given its neighbours on both sides as
    far as they are known or made (per-slice noise levels know either).

    Parameters
    ----------
    denoiser, settings, seed, volumes, device, above : as in `chain`; `settings.direction` and `slices` do not count.
    stacks : int16 HU (B, Z, H, W), superior first; what stands at the missing places does not count.
    missing : which of them to sample.
    start_mm : position of the first slice in mm below the vertex.

    Yields
    ------
    The number of a slice and int16 HU (B, H, W), in the order of generation.
    """
    recipe = denoiser.recipe
    stacks = stacks.copy()
    known = set(range(stacks.shape[1])) - set(missing)
    assert known, "slices lie between known ones"
    sigmas = settings.sigmas(denoiser)
    denoise = quickest(denoiser, device)
    order = sorted(missing, key=lambda z: (min(abs(z - k) for k in known), z))
    for index, z in enumerate(order):
        first = _best_window(z, known, recipe.slices)
        window = [stacks[:, n] if n in known else None for n in range(first, first + recipe.slices)]
        last_mm = start_mm + (first + recipe.slices - 1) * recipe.spacing_mm[0]
        seen = None if above is None else _slices_above(above, z)
        place = z - first
        hu = _sample_slice(denoise, settings, sigmas, seed, volumes, index, window, place, last_mm, device, seen)
        stacks[:, z] = round_hu(hu)
        known.add(z)
        yield z, stacks[:, z]


def _best_window(z: int, known: Set[int], count: int) -> int:
    """First slice of the window of `count` about slice `z` that holds the most known ones; of equal ones the one in
    whose middle z lies."""
    firsts = range(z - count + 1, z + 1)
    return max(firsts, key=lambda n: (len(known & set(range(n, n + count))), -abs(n + (count - 1) / 2 - z)))


@torch.no_grad()
def whole_heads(
    denoiser: Denoiser,
    settings: ChainSettings,
    seed: int,
    volumes: Sequence[int],
    known: Mapping[int, np.ndarray],
    device: str = "cpu",
    begun: np.ndarray | None = None,
) -> np.ndarray:
    """Whole heads by a denoiser of such, all slices at once: int16 HU (B, K, H, W) from the vertex down, air below the
    head. `known` are slices, int16 HU (H, W) by their number from the vertex, that the heads are to hold. Sampled from
    pure noise, or from a head `begun`, int16 HU (K, H, W), with noise at the schedule's first level on it."""
    recipe = denoiser.recipe
    k, batch, size = recipe.slices, len(volumes), recipe.size
    if not all(0 <= z < k for z in known):
        deepest = (k - 1) * recipe.spacing_mm[0]
        raise UserError(
            f"the seed slice lies {max(known) * recipe.spacing_mm[0]:g} mm below the vertex, but the plan covers heads "
            f"only down to {deepest:g} mm; choose a slice above that"
        )
    scale = codec(recipe.scale, torch.device(device))
    context = torch.zeros(1, k, size, size, dtype=torch.float64, device=device)
    is_known = torch.zeros(k, dtype=torch.bool, device=device)
    for z, slices in known.items():
        context[:, z] = scale.encode(torch.from_numpy(np.ascontiguousarray(slices)).to(device)).double()
        is_known[z] = True
    noise = SliceNoise(seed, volumes, 0, (k, size, size), device)
    level, mask = max(settings.known_sigma, recipe.sigma_min), is_known[None, :, None, None]
    context = context + level * noise(0, KNOWN)
    run = quickest(denoiser, device)

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        levels = torch.full((batch, k), sigma, dtype=torch.float64, device=device)
        return run(torch.where(mask, context, x), torch.where(is_known, level, levels), None)

    sigmas = settings.sigmas(denoiser)
    x = float(sigmas[0]) * noise(0, INITIAL)
    if begun is not None:
        x = x + scale.encode(torch.from_numpy(np.ascontiguousarray(begun)).to(device)).double()
    x = _sampled(settings, recipe, denoise, x, sigmas, noise, samplers.nothing_known)
    hu = round_hu(scale.decode(x).cpu().numpy())
    for z, slices in known.items():
        hu[:, z] = slices
    return hu


@torch.no_grad()
def noised_and_back(
    denoiser: Denoiser,
    settings: ChainSettings,
    seed: int,
    hu: np.ndarray,
    slices: Sequence[int],
    start_mm: float = 0.0,
    device: str = "cpu",
    above: np.ndarray | None = None,
) -> np.ndarray:
    """Slices of a head with noise at the level `settings.sigma_max` put on them and taken off again, each given its
    true neighbours (partial noising, after Wyatt et al. 2022, "AnoDDPM"): what the denoiser does not expect between
    such neighbours goes with the noise, what is coarser than it stays. All slices are sampled in one batch.

    Parameters
    ----------
    denoiser : one with a noise level a slice.
    settings : how to sample, from `sigma_max` down.
    seed : key of the noise, of which each slice has its own.
    hu : int16 HU (Z, H, W), the head.
    slices : which of them; the window about each must end within the head (see `last_in_middle`).
    start_mm : position of the first slice of `hu` in mm below the vertex.
    device : torch device.
    above : int16 HU (Z, h, w), the head in the level above, for a denoiser that sees one.

    Returns int16 HU (len(slices), H, W).
    """
    recipe = denoiser.recipe
    assert not recipe.joint
    assert not recipe.whole
    assert (above is not None) == bool(recipe.above)
    assert max(slices) <= last_in_middle(recipe, len(hu))
    half = recipe.slices // 2
    air = np.full((half, *hu.shape[1:]), HU_MIN, np.int16)
    padded = np.concatenate([air, hu])  # what lies above the vertex is air
    window = [None if k == half else padded[np.add(slices, k)] for k in range(recipe.slices)]
    seen = None if above is None else np.concatenate([_slices_above(above[None], z) for z in slices])
    last_mm = start_mm + (np.array(slices) - half + recipe.slices - 1) * recipe.spacing_mm[0]
    begun, sigmas = np.ascontiguousarray(hu[list(slices)]), settings.sigmas(denoiser)
    # Too few evaluations to record a graph for (see `quickest`).
    made = _sample_slice(denoiser, settings, sigmas, seed, slices, 0, window, half, last_mm, device, seen, begun)
    return round_hu(made)


def last_in_middle(recipe: Recipe, count: int) -> int:
    """The last of `count` slices about which a whole window of a denoiser fits into the head."""
    return count - 1 - (recipe.slices - 1 - recipe.slices // 2)


def _slices_above(above: np.ndarray, z: int) -> np.ndarray:
    """(B, 3, h, w): those at z - 1, z and z + 1; air beyond the ends."""
    air = np.full_like(above[:, 0], HU_MIN)
    return np.stack([above[:, n] if 0 <= n < above.shape[1] else air for n in range(z - 1, z + 2)], axis=1)


def is_air(slices: np.ndarray, air_hu: float = AIR_HU) -> np.ndarray:
    """Which of int16 HU (B, H, W) are slices of air, bool (B,): next to nothing in them is denser than `air_hu`.

    Stricter than `hu.shows_head`, which scans need: a generated slice has no head holder, and the crown is small.
    """
    found: np.ndarray = (slices > air_hu).mean(axis=(1, 2)) < END_FRACTION
    return found


def trim(hu: np.ndarray, begun: bool = False, air_hu: float = AIR_HU) -> np.ndarray:
    """The head in generated slices (Z, Y, X), in the order of generation (see `head_extent`); where the head had
    `begun` with a real slice, those up to the first slice of air. Where that is fewer than two, which are no volume,
    and no head had begun, all slices."""
    if begun:
        air = is_air(hu, air_hu)
        return hu[: int(np.argmax(air))] if air.any() else hu
    first, end = head_extent(hu, air_hu)
    return hu if end - first < 2 else hu[first:end]


def head_extent(hu: np.ndarray, air_hu: float = AIR_HU) -> tuple[int, int]:
    """First slice of the head in (Z, Y, X) and the one after its last: the first `SHORTEST` or more in a row that are
    not air (see `is_air`), or the most in a row there are; (0, 0) where all are air."""
    air = is_air(hu, air_hu)
    edges = np.flatnonzero(np.diff(np.concatenate([[True], air, [True]]).astype(int)))
    runs = list(zip(edges[::2].tolist(), edges[1::2].tolist()))
    heads = [run for run in runs if run[1] - run[0] >= SHORTEST] or sorted(runs, key=lambda run: run[0] - run[1])
    return heads[0] if heads else (0, 0)


def _sample_slice(
    denoiser: Denoiser | Replayed,
    settings: ChainSettings,
    sigmas: torch.Tensor,
    seed: int,
    volumes: Sequence[int],
    index: int,
    window: Sequence[np.ndarray | None],
    wanted: int,
    last_mm: float | np.ndarray,
    device: str,
    above: np.ndarray | None,
    begun: np.ndarray | None = None,
) -> np.ndarray:
    """One new slice for each volume, HU in float64 (B, H, W), not rounded: the one at place `wanted` of the window, of
    whose K slices those that are known are given, int16 HU (B, H, W) each, superior first. `last_mm` is the position
    of the window's last slice, one for all or (B,). Sampled from pure noise, or from slices `begun`, int16 HU
    (B, H, W), with noise at the schedule's first level on them."""
    recipe = denoiser.recipe
    k, batch = recipe.slices, len(volumes)
    size = (recipe.size, recipe.size) if begun is None else begun.shape[1:]
    scale = codec(recipe.scale, torch.device(device))
    known_x = torch.zeros(batch, k, *size, dtype=torch.float64, device=device)
    is_known = torch.zeros(k, dtype=torch.bool)
    for place, slices in enumerate(window):
        if slices is not None:
            known_x[:, place] = scale.encode(torch.from_numpy(slices).to(device)).double()
            is_known[place] = True
    mask = is_known.to(device)[None, :, None, None]
    positions = torch.as_tensor(last_mm, dtype=torch.float32, device=device).expand(batch)
    channels = k if recipe.joint else 1
    noise = SliceNoise(seed, volumes, index, (channels, *size), device)
    extra = 0 if above is None else above.shape[1]
    fixed = SliceNoise(seed, volumes, index, (k + extra, *size), device)(0, KNOWN)
    if above is not None:
        seen = enlarged(torch.from_numpy(above).to(device), recipe.above)
        known_x = torch.cat([known_x, scale.encode(seen).double()], dim=1)
        mask = torch.cat([mask, mask.new_ones(1, extra, 1, 1)], dim=1)

    if recipe.joint:
        # The paper's way: all K slices are sampled, and known ones are put back at the current noise level.
        def impose(x: torch.Tensor, sigma: float, step: int) -> torch.Tensor:
            return torch.where(mask, known_x + sigma * noise(step, KNOWN), x)

        def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
            return denoiser(x, torch.full((batch, k), sigma, dtype=torch.float64, device=device), positions)
    else:
        # Known slices come in nearly clean, missing ones as pure noise; only the wanted slice is sampled.
        impose = samplers.nothing_known
        level = max(settings.known_sigma, recipe.sigma_min)
        levels = torch.full((batch, k + extra), recipe.sigma_max, dtype=torch.float64)
        levels[:, :k][:, is_known] = level
        levels[:, k:] = max(settings.above_sigma, recipe.sigma_min)
        levels = levels.to(device)
        context = torch.where(mask, known_x, torch.zeros_like(known_x)) + levels[:, :, None, None] * fixed

        def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
            slices, sigmas_of = context.clone(), levels.clone()
            slices[:, wanted], sigmas_of[:, wanted] = x[:, 0], sigma
            return denoiser(slices, sigmas_of, positions)[:, wanted : wanted + 1]

    x = float(sigmas[0]) * noise(0, INITIAL)
    if begun is not None:
        x = x + scale.encode(torch.from_numpy(begun).to(device)).double()[:, None]
    x = _sampled(settings, recipe, denoise, x, sigmas, noise, impose)
    return scale.decode(x[:, wanted if recipe.joint else 0]).cpu().numpy()


def _sampled(
    settings: ChainSettings,
    recipe: Recipe,
    denoise: samplers.Denoise,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    noise: SliceNoise,
    impose: samplers.Impose,
) -> torch.Tensor:
    """`x` at the first of `sigmas` taken to zero by the chosen sampler."""
    name = settings.sampler_of(recipe)
    if name.startswith("pc"):
        return samplers.pc(denoise, x, sigmas, noise, impose, settings.snr, clean_mean=name == "pc")
    sampler = {"heun": samplers.heun, "dpmpp_2m": samplers.dpmpp_2m, "dpmpp_2m_sde": samplers.dpmpp_2m_sde}[name]
    return sampler(denoise, x, sigmas, noise, impose)
