"""Train the denoiser: its settings, its batches, its loss and its validation, for the loop of `training.run`."""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from slicewise import checkpoint
from slicewise.checkpoint import DENOISERS, build_network, memory_format
from slicewise.codec import codec
from slicewise.data.store import Store
from slicewise.data.windows import (
    Cut,
    Windows,
    as_level,
    draw_cut,
    pooled,
    root_mean_square,
    slices_of,
    training_windows,
    uncut,
    whole_heads,
)
from slicewise.diffusion.denoiser import Denoiser, Recipe, position_condition
from slicewise.diffusion.loss import SigmaUncertainty, deviation_loss, weighted_errors
from slicewise.diffusion.precondition import c_noise, posterior
from slicewise.errors import UserError
from slicewise.hu import BRAIN, round_hu
from slicewise.metrics.tissue import brain_mask, noise_level
from slicewise.networks.ncsnpp import NCSNpp
from slicewise.networks.unet import UNet
from slicewise.networks.unet3d import UNet3d, fit_gaussian
from slicewise.pyramid import KIND as PYRAMID
from slicewise.pyramid import load_pyramid
from slicewise.random import TRAIN_DITHER, TRAIN_NOISE, TRAIN_ORDER, Draws
from slicewise.runtime import Process, core_dtype, processes
from slicewise.training import ema
from slicewise.training.ema import EMA
from slicewise.training.run import run, training_heads
from slicewise.training.settings import DenoiserTraining
from slicewise.training.state import whole
from slicewise.training.validation import errors_by_level, score


class Objective(nn.Module):
    """Network and loss as one module, so that DDP sees a single forward pass."""

    def __init__(self, network: nn.Module, sigma_data: float, balance: bool, core: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.balance = SigmaUncertainty() if balance else None
        self.sigma_data, self.core = sigma_data, core

    def forward(
        self,
        clean: torch.Tensor,
        noise: torch.Tensor,
        sigma: torch.Tensor,
        wanted: torch.Tensor,
        condition: torch.Tensor | None,
        frame: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean loss over the batch, and the mean weighted error of wanted slices (1 = untrained), both scalars."""
        noisy = clean + sigma.float()[:, :, None, None] * noise
        framed = frame is not None and isinstance(self.network, UNet)
        network = partial(self.network, frame=frame) if framed else self.network
        denoised, deviation = posterior(network, noisy, sigma, condition, self.sigma_data, self.core)
        answered = denoised.shape[1]
        clean, sigma, wanted = clean[:, :answered], sigma[:, :answered], wanted[:, :answered]
        errors = weighted_errors(denoised, clean, sigma, self.sigma_data)
        share = wanted.float() / wanted.sum(dim=1, keepdim=True)  # every window counts the same
        plain = (errors * share).sum(dim=1).mean().detach()
        local = deviation.shape == clean.shape
        if local:
            errors = weighted_errors(denoised, clean, sigma, self.sigma_data, deviation)
        if self.balance is not None:
            errors = self.balance(errors, c_noise(sigma).float(), wanted)
        if local:  # a tenth: it teaches what error to expect, and should not steer what D is made of
            errors = errors + 0.1 * deviation_loss(denoised, clean, deviation)
        return (errors * share).sum(dim=1).mean(), plain


@dataclass(frozen=True)
class Batches:
    """The batches of a run: pure functions of (seed, step, sample).

    Attributes
    ----------
    windows : the training windows, and by their heads the device.
    settings : of the training.
    share : samples of the whole batch that this process makes.
    """

    windows: Windows
    settings: DenoiserTraining
    share: range

    def plan(self, step: int) -> dict[str, Any]:
        """What a batch is to hold, on the host: its cut, noise levels, positions and frames."""
        s, windows = self.settings, self.windows
        draws = Draws(s.seed, self.share, 0, step, TRAIN_ORDER)
        own = draws.integers(len(windows))[:, 0]
        head = draws.integers(len(windows.records))[:, 0]
        start = windows.heads.starts[head] + head
        numbers = torch.where(draws.uniform(1)[:, 0] < s.starts, start, own)
        rows = windows.heads.whole(head, s.slices) if s.whole else windows.rows(numbers)
        cut, frame = draw_cut(windows.heads, rows, s.crop, s.pool * s.unet.fold, s.flip, draws, s.grain)
        sigma, wanted = (s.task.draw_whole if s.whole else s.task.draw)(draws, s.slices, s.sigma)
        if s.above:
            last_wanted = s.slices - 1 - wanted.flip(1).int().argmax(dim=1)
            cut = replace(cut, rows=torch.cat([cut.rows, windows.about(numbers, last_wanted)], dim=1))
            fraction = draws.uniform(3).double()
            sigma = torch.cat([sigma, s.above_sigma * torch.exp((fraction - 1.0) * math.log(15.0))], dim=1)
            wanted = torch.cat([wanted, torch.zeros(len(wanted), 3, dtype=torch.bool)], dim=1)
        return {
            "step": step,
            "cut": cut,
            "frame": frame,
            "sigma": sigma,
            "wanted": wanted,
            "position": windows.position(numbers),
        }

    def make(self, step: int) -> dict[str, Tensor]:
        """The batch of a step, on the device: clean, noise (B, K, H, W) float32; sigma (B, K) float64; wanted (B, K)
        bool; position (B,) mm; frame (B, 4), where they are cut from slices of -1 … 1 (see `UNet`)."""
        return self.fill(self.plan(step))

    def fill(self, plan: Mapping[str, Any], hu: Tensor | None = None) -> dict[str, Tensor]:
        """The batch that a plan describes; `hu` where it has been cut already."""
        s, device = self.settings, self.windows.heads.device
        cut: Cut = plan["cut"]
        hu_values = as_level(self.windows.heads.cut(cut) if hu is None else hu, s.slices, s.pool, s.above)
        count, shape = hu_values[0].numel(), hu_values.shape
        samples = torch.arange(self.share.start, self.share.stop, device=device)
        noise = Draws(s.seed, samples, 0, plan["step"], TRAIN_NOISE, device)
        # Whole HU are spread over their bin, so that the network models a density and not 4096 spikes.
        dither = Draws(s.seed, samples, 0, plan["step"], TRAIN_DITHER, device).dither(count).view(shape)
        made = {name: plan[name].to(device, non_blocking=True) for name in ("sigma", "wanted", "position", "frame")}
        clean = codec(s.scale, device).encode(hu_values + dither)
        return {"clean": clean, "noise": noise.normal(count).view(shape), **made}


def network_config(settings: DenoiserTraining, size: int) -> dict[str, Any]:
    """Settings of the chosen network with what follows from the data and the recipe filled in; `UserError` where they
    do not fit one another or slices of `size` pixels."""
    condition, slices = 1 if settings.position else 0, settings.slices + (3 if settings.above else 0)
    if settings.network == "unet3d":
        return _whole_config(settings, size)
    multiple = settings.unet.multiple if settings.network == "unet" else 2 ** (len(settings.ncsnpp.multipliers) - 1)
    multiple = math.lcm(multiple * settings.pool, settings.grain)
    if any(side < 0 or side > size or side % multiple for side in settings.crop):
        raise UserError(
            f"DenoiserTraining.crop={settings.crop[0]} {settings.crop[1]}: must be multiples of {multiple} up to "
            f"{size}, or 0 for all"
        )
    if settings.network == "unet":
        shape = settings.unet
        if not len(shape.channels) == len(shape.blocks) == len(shape.attention):
            raise UserError(
                "UNetConfig.channels, UNetConfig.blocks, UNetConfig.attention: give the same number of each, one per "
                "level"
            )
        if len(shape.window) != len(shape.window_mean) or any(side < 1 or side % 2 == 0 for side in shape.window_mean):
            raise UserError(
                "UNetConfig.window, UNetConfig.window_mean: give the same number of each, the means odd and above 0"
            )
        if size % multiple:
            pooling = f", DenoiserTraining.pool={settings.pool}" if settings.pool > 1 else ""
            raise UserError(
                f"slices of {size} pixels are not divisible by {multiple}, as {len(shape.channels)} levels and "
                f"UNetConfig.fold={shape.fold}{pooling} require; prepare another size or use fewer levels"
            )
        return asdict(replace(settings.unet, slices=slices, context=slices - settings.slices, condition=condition))
    return asdict(
        replace(
            settings.ncsnpp,
            in_channels=slices,
            out_channels=slices,
            slices=slices,
            condition=condition,
            image_size=size,
        )
    )


def _whole_config(settings: DenoiserTraining, size: int) -> dict[str, Any]:
    shape = settings.unet3d
    if not len(shape.channels) == len(shape.blocks) == len(shape.attention):
        raise UserError(
            "UNet3dConfig.channels, UNet3dConfig.blocks, UNet3dConfig.attention: give the same number of each, one per "
            "level"
        )
    if size % (shape.multiple * settings.pool) or settings.slices % shape.slices_multiple:
        raise UserError(
            f"{settings.slices} slices of {size} pixels, DenoiserTraining.pool={settings.pool}: give slices divisible "
            f"by {shape.slices_multiple} and pixels divisible by {shape.multiple * settings.pool}, or fewer levels"
        )
    return asdict(replace(shape, slices=settings.slices, size=size // settings.pool))


def train_denoiser(store: Store, out: Path, settings: DenoiserTraining, init: Path | None = None) -> Path:
    """Train on a prepared store and write a run folder (see `training.run`); a started run in it is resumed.

    Parameters
    ----------
    store : prepared store (see `data.prepare`); heads that are written into it meanwhile are taken in.
    out : run folder.
    settings : see `DenoiserTraining`.
    init : checkpoint whose weights to start from (fine-tuning); its network and recipe are kept.

    Returns
    -------
    Path of the weights. Raises `UserError` where the store is empty or uneven, a checkpoint does not fit, the memory
    does not hold the batch, and as `run` does; KeyboardInterrupt, with the state saved, after Ctrl-C or SIGTERM.
    """
    settings.check()
    with processes(settings.device) as process:
        if settings.batch % process.world:
            raise UserError(
                f"DenoiserTraining.batch={settings.batch} is not divisible by {process.world} processes; make it a "
                "multiple"
            )
        return run(DenoiserTrainer(store, out, settings, init, process), out, "train", process)


class DenoiserTrainer:
    """A denoiser in training, as the loop takes it (see `run.Trainer`)."""

    name, exported = "denoiser", "denoiser"
    free = frozenset({"ema", "micro_batch", "fit_memory", "validation_windows", "core", "parallel", "compile"})

    def __init__(
        self, store: Store, out: Path, settings: DenoiserTraining, init: Path | None, process: Process
    ) -> None:
        self.settings, self.process = settings, process
        self.width: float | None = settings.ema
        self.heads = training_heads(store, out, process)
        windows = Windows(self.heads, settings.slices)
        size, device = self.heads.side // settings.pool, process.device
        self.config = network_config(settings, self.heads.side)
        dz, dy, dx = self.heads.records[0].spacing_mm
        torch.manual_seed(settings.seed)
        network = build_network(settings.network, self.config).to(device)
        sharded = settings.parallel == "fsdp" and process.world > 1
        if not sharded:  # FSDP takes contiguous parameters only
            network = network.to(memory_format=memory_format(network))  # type: ignore[call-overload]
        self.recipe = Recipe(
            slices=settings.slices,
            joint=settings.task.joint,
            size=size,
            spacing_mm=(dz, dy * settings.pool, dx * settings.pool),
            scale=settings.scale,
            sigma_data=root_mean_square(windows, settings.scale, settings.pool),
            sigma_min=settings.sigma.sigma_min,
            sigma_max=settings.sigma.sigma_max,
            position=settings.position,
            min_slices=0,
            max_slices=0,
            whole=settings.whole,
            above=settings.above,
            above_sigma=settings.above_sigma if settings.above else 0.0,
        )
        if init is not None:
            self.recipe = _start_from(network, self.config, self.recipe, init)
        if settings.whole:
            longest = max(map(slices_of, self.heads.records))
            if longest >= settings.slices:
                raise UserError(
                    f"DenoiserTraining.slices={settings.slices}: the longest head has {longest} slices; give more "
                    "than that"
                )
        _place_brain(network, self.recipe)
        if isinstance(network, UNet3d) and init is None:
            known = whole_heads(self.heads, settings.slices, settings.scale, settings.pool)
            network.gaussian(fit_gaussian(known, settings.unet3d.modes), self.recipe.sigma_data)
        if settings.compile == "on" or (settings.compile == "auto" and device.type == "cuda"):
            assert isinstance(network, UNet | UNet3d | NCSNpp)
            torch._dynamo.config.recompile_limit = 64  # a graph for each shape of block, of which there are a dozen
            for block in network.blocks():
                block.compile(dynamic=False)
        self.core = core_dtype(device, settings.core)
        objective = Objective(network, self.recipe.sigma_data, settings.balance, self.core).to(device)
        if sharded:
            from torch.distributed.fsdp import fully_shard

            fully_shard(objective.network)  # a unit of its own, so that validation can call it alone
            fully_shard(objective)
        self.objective = objective
        self.wrapped: nn.Module = objective
        if process.world > 1 and not sharded:
            self.wrapped = DistributedDataParallel(objective, broadcast_buffers=False)
        self.networks: dict[str, nn.Module] = {"denoiser": objective.network}
        if objective.balance is not None:
            self.networks["balance"] = objective.balance
        self.parameters = list(objective.parameters())
        self.optimizers: Sequence[torch.optim.Optimizer] = [
            torch.optim.Adam(self.parameters, lr=settings.lr, betas=(0.9, 0.99), fused=True)
        ]
        self.average: EMA | None = EMA(objective.network.parameters(), [ema.power(width) for width in ema.KEPT])
        self.batches = Batches(windows, settings, process.share(settings.batch))
        self.micro = settings.micro_batch or len(self.batches.share)
        split = "val" if store.select("val") else "train"
        self.validation = training_windows(store, split, settings.slices, device)
        self.noise_hu = _noise_of(self.validation)
        self.pool = ThreadPoolExecutor(1)
        self.ahead: tuple[tuple[int, int], Future[Any]] | None = None

    def step(self, step: int) -> dict[str, Tensor]:
        batch = self.batches.fill(*self._planned(step))
        optimizer = self.optimizers[0]
        optimizer.zero_grad(set_to_none=True)
        shown = self._gradients(batch)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        optimizer.step()
        return {"loss": shown, "grad_norm": whole(norm)}

    def _planned(self, step: int) -> tuple[dict[str, Any], Tensor | None]:
        """The plan of a step, made while the one before was in work, and its HU where they come from disk."""

        def prepare(step: int) -> tuple[dict[str, Any], Tensor | None]:
            plan = self.batches.plan(step)
            return plan, self.heads.cut(plan["cut"]) if self.heads.rows is None else None

        if self.heads.rows is not None and self.process.device.type == "cpu":
            return prepare(step)
        # Heads that were taken in meanwhile change what a plan means: it is made again then.
        key = step, len(self.heads.records)
        held = self.ahead[1].result() if self.ahead is not None and self.ahead[0] == key else prepare(step)
        self.ahead = (step + 1, len(self.heads.records)), self.pool.submit(prepare, step + 1)
        return held

    def _gradients(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Add up the gradients of a batch, as many windows at once as memory holds; the mean weighted error of wanted
        slices (1 = untrained)."""
        held = self.micro
        while True:
            try:
                shown = self._accumulate(batch)
                break
            except RuntimeError as error:
                if not (isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)):
                    raise
            if self.micro == 1 or self.process.world > 1:  # processes would have to halve together
                raise UserError(
                    f"DenoiserTraining.micro_batch={self.micro}: does not fit in the memory of {self.process.device}; "
                    "give a smaller one, or a smaller network"
                )
            self.optimizers[0].zero_grad(set_to_none=True)
            if self.process.device.type == "cuda":
                torch.cuda.empty_cache()
            self.micro = -(-self.micro // 2)
        if self.micro < held and not self.settings.fit_memory:
            raise UserError(
                f"DenoiserTraining.batch={self.settings.batch}: does not fit in the memory of {self.process.device} at "
                f"once; add DenoiserTraining.micro_batch={self.micro}, which does, or DenoiserTraining.fit_memory=True"
            )
        return shown

    def _accumulate(self, batch: Mapping[str, Tensor]) -> Tensor:
        count = len(batch["sigma"])
        parts = list(torch.arange(count).split(self.micro))
        shown = torch.zeros((), device=self.process.device)
        for number, part in enumerate(parts):
            one = {name: value[part[0] : part[-1] + 1] for name, value in batch.items()}
            more = number < len(parts) - 1
            wrapped = self.wrapped
            with wrapped.no_sync() if more and isinstance(wrapped, DistributedDataParallel) else nullcontext():
                condition = position_condition(one["position"]) if self.settings.position else None
                frame = one["frame"] if any(self.settings.crop) else None
                loss, plain = wrapped(one["clean"], one["noise"], one["sigma"], one["wanted"], condition, frame)
                (loss * (len(part) / count)).backward()
            shown = shown + plain * (len(part) / count)
        return shown

    def denoiser(self) -> Denoiser:
        return Denoiser(self.objective.network, self.recipe, {}, self.core)

    def model(self) -> tuple[str, dict[str, Any], dict[str, Any]]:
        lengths = [slices_of(record) for record in self.heads.records]
        recipe = replace(self.recipe, min_slices=min(lengths), max_slices=max(lengths))
        return self.settings.network, self.config, {"recipe": recipe.to_dict(), "training": asdict(self.settings)}

    # Other shapes than training's are not worth a minute of compiling.
    @torch.compiler.set_stance("force_eager")  # type: ignore[untyped-decorator]
    def validate(self) -> dict[str, Any]:
        s = self.settings
        rows = errors_by_level(self.denoiser(), self.validation, s.validation_windows, self.micro, s.seed, s.pool)
        return {"validation": rows, "score": score(rows), "noise_hu": self.noise_hu}

    @torch.compiler.set_stance("force_eager")  # type: ignore[untyped-decorator]
    def sample(self, path: Path) -> None:
        """One generated volume as a montage; what draws after a plan draws after that of a validation head. All
        processes sample it, since FSDP's network needs them all; the first writes it."""
        from slicewise.ascii import chain, trim
        from slicewise.reporting.montage import save_montage
        from slicewise.sampling import ChainSettings
        from slicewise.volume import Volume

        denoiser = self.denoiser()
        denoiser.network.eval()
        longest = max(map(slices_of, self.heads.records))
        denoiser = replace(denoiser, recipe=replace(self.recipe, max_slices=longest))
        above = self._plan_of_a_head() if self.recipe.above else None
        few = ChainSettings(steps=12, plan_steps=12, slices=0 if above is None else above.shape[1])
        made = chain(denoiser, few, seed=0, volumes=[0], device=str(self.process.device), above=above)
        hu = trim(np.stack([slices[0] for slices in made]), air_hu=self.recipe.scale.air)
        denoiser.network.train()
        if self.process.is_main:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_montage([Volume.regular(hu, self.recipe.spacing_mm)], path, [path.stem])

    def _plan_of_a_head(self) -> np.ndarray:
        """int16 HU (1, Z, H, W): the first validation head as the level above has it."""
        heads = self.validation.heads
        rows = heads.whole(torch.zeros(1, dtype=torch.int64), slices_of(heads.records[0]))
        true = heads.cut(uncut(heads, rows))
        return round_hu(pooled(true, self.settings.pool * self.recipe.above).cpu().numpy())

    def memory(self) -> dict[str, Any]:
        return {"sigma_data": self.recipe.sigma_data}

    def remember(self, memory: Mapping[str, Any]) -> None:
        """A run keeps the sigma_data that it began with, whatever heads have come since."""
        self.recipe = replace(self.recipe, sigma_data=memory["sigma_data"])
        self.objective.sigma_data = self.recipe.sigma_data
        _place_brain(self.objective.network, self.recipe)

    def finish(self) -> None:
        """Nothing is left to do."""


def _noise_of(windows: Windows, heads: int = 8) -> float | None:
    """Median noise in the brain of a few heads, HU: what no denoiser can foresee. None where they show no brain."""
    found = []
    for record in windows.records[:heads]:
        hu = np.asarray(windows.heads.store.hu(record))
        found.append(noise_level(hu, brain_mask(hu, record.spacing_mm), record.spacing_mm))
    sound = [value for value in found if np.isfinite(value)]
    return round(float(np.median(sound)), 3) if sound else None


def _place_brain(network: nn.Module, recipe: Recipe) -> None:
    """Tell a network that knows of brains where in x they lie."""
    if not isinstance(network, UNet | UNet3d):
        return
    centre, scale = np.array(BRAIN.centre), recipe.scale
    network.brain(float(scale.encode(centre)) / recipe.sigma_data, float(scale.slope(centre)) / recipe.sigma_data)


def _differences(recipe: Recipe, theirs: Recipe) -> list[tuple[str, Any, Any]]:
    """(name, ours, theirs) of what weights cannot be carried across."""
    ours_mm, theirs_mm = (tuple(round(mm, 2) for mm in r.spacing_mm) for r in (recipe, theirs))
    return [
        ("size", recipe.size, theirs.size),
        ("spacing", ours_mm, theirs_mm),
        ("HU scale", recipe.scale, theirs.scale),
        ("joint", recipe.joint, theirs.joint),
        ("level above", recipe.above, theirs.above),
    ]


def _level_like(init: Path, recipe: Recipe) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    """Weights to start from and what is said of them; of a pyramid those of the level that draws the same size."""
    if checkpoint.kind_of(init) != PYRAMID:
        loaded, meta = checkpoint.load_model(init, DENOISERS)
        return loaded.state_dict(), meta
    like = load_pyramid(init, size=recipe.size).levels[-1] if recipe.above else load_pyramid(init).levels[0]
    return like.network.state_dict(), like.meta


def _start_from(network: nn.Module, config: dict[str, Any], recipe: Recipe, init: Path) -> Recipe:
    """Load weights to fine-tune; scale and sigma_data stay those that the weights were trained with."""
    loaded, meta = _level_like(init, recipe)
    theirs = Recipe.from_dict(meta["recipe"], init)
    listed = {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}
    for name, found, expected in (
        ("network", listed, meta["network"]),
        *_differences(recipe, theirs),
    ):
        if found != expected:
            raise UserError(
                f"{init}: its {name} is {expected}, this training's is {found}; use the settings it was made with"
            )
    network.load_state_dict(loaded)
    return replace(recipe, sigma_data=theirs.sigma_data)
