"""Train the denoiser: one loop for one process or, under torchrun, for many.

Every batch is a function of (seed, step, sample), so a run split over processes sees the same windows, noise levels and
noise as one process with the same global batch, and a resumed run goes on bit for bit.
"""

import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from slicewise import checkpoint
from slicewise.checkpoint import Denoiser, Recipe, build_network, position_condition, save_model
from slicewise.data.stacks import Windows, crop, root_mean_square, training_windows
from slicewise.data.store import Store
from slicewise.diffusion.loss import SigmaUncertainty, WindowTask, deviation_loss, weighted_errors
from slicewise.diffusion.noise import TRAIN_NOISE, TRAIN_ORDER, generator
from slicewise.diffusion.precondition import c_noise, posterior
from slicewise.diffusion.schedule import SigmaDistribution
from slicewise.errors import UserError
from slicewise.hu import BRAIN, HUScale
from slicewise.io.tensors import load_tensors, save_tensors
from slicewise.networks.ncsnpp import NCSNppConfig
from slicewise.networks.unet import UNet, UNetConfig
from slicewise.settings import write_settings
from slicewise.training.ema import EMA
from slicewise.training.engine import (
    Process,
    StatsLog,
    StopRequest,
    any_process,
    core_dtype,
    mean_of_processes,
    processes,
    write_environment,
)
from slicewise.training.fade import fade
from slicewise.training.residual import add_residual_filter
from slicewise.training.validation import validate


@dataclass(frozen=True)
class DenoiserTraining:
    """Settings of a denoiser's training.

    Attributes
    ----------
    network : "unet" (lean) or "ncsnpp" (the paper's).
    unet, ncsnpp : shape of the chosen network; its number of slices and conditions follow from the fields below.
    slices : K, slices in a window.
    task : joint (the paper) or per-slice noise levels, and how slices of a window are corrupted.
    sigma : distribution of noise levels.
    scale : window and companding of the HU scale.
    position : tell the network each window's position below the vertex.
    starts : share of windows, beside their own, at which a chain starts from air: one slice in thirty decides the rest.
    fade : share of windows whose known slices are faded as a chain fades its own (see `fade`).
    flip : mirror windows left to right at random (the paper augments nothing).
    crop : rows and columns of the part of each window that is trained on, about the head and at random within that;
        (0, 0) takes the whole. Half of a head CT is air, of which there is little to learn.
    steps : optimiser steps.
    batch : windows a step, over all processes together.
    lr : learning rate of Adam.
    warmup : steps of linear warm-up.
    decay : share of the steps, at the end, over which the rate falls linearly to zero.
    clip : largest gradient norm.
    ema : decay of the moving average of weights that is validated and saved.
    balance : balance the loss over noise levels by a learned uncertainty (EDM2).
    seed : of weights, order and noise.
    save_every, validate_every, sample_every : steps between checkpoints, validations and sample pictures (0 = never).
    validation_windows : windows in a validation.
    residual_windows : windows to find the trained network's residual filter on (see `diffusion.residual`); 0 for none.
    core : dtype of the network core: "auto" (bfloat16 where the device has it), "float32" or "bfloat16".
    device : "auto", "cpu" or "cuda".
    parallel : "ddp" or, for networks too large for one device, "fsdp".
    tensorboard : also write TensorBoard logs.
    """

    network: Literal["unet", "ncsnpp"] = "unet"
    unet: UNetConfig = field(default_factory=UNetConfig)
    ncsnpp: NCSNppConfig = field(default_factory=NCSNppConfig)
    slices: int = 3
    task: WindowTask = field(default_factory=WindowTask)
    sigma: SigmaDistribution = field(default_factory=SigmaDistribution)
    scale: HUScale = field(default_factory=lambda: HUScale(companding="half"))
    position: bool = True
    starts: float = 0.08
    fade: float = 0.0
    flip: bool = False
    crop: tuple[int, int] = (0, 0)
    steps: int = 6000
    batch: int = 16
    lr: float = 1e-3
    warmup: int = 200
    decay: float = 0.3
    clip: float = 1.0
    ema: float = 0.998
    balance: bool = True
    seed: int = 0
    save_every: int = 500
    validate_every: int = 1000
    sample_every: int = 0
    validation_windows: int = 32
    residual_windows: int = 0
    core: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    tensorboard: bool = False


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
    """The batches of a run; `make(step)` is a pure function of the settings and the step."""

    windows: Windows
    settings: DenoiserTraining
    share: range

    def make(self, step: int) -> dict[str, torch.Tensor]:
        """clean, noise (B, K, H, W) float32; sigma (B, K) float64; wanted (B, K) bool; position (B,) mm; frame (B, 4),
        where they are cut from slices of -1 … 1 (see `UNet`)."""
        s = self.settings
        rows: list[tuple[np.ndarray, ...]] = []
        for sample in self.share:
            rng = generator(s.seed, sample, step, 0, TRAIN_ORDER)
            index = int(rng.integers(0, len(self.windows)))
            if rng.random() < s.starts:
                index = self.windows.start(int(rng.integers(0, len(self.windows.records))))
            hu, position = self.windows.read(index)
            if s.flip and rng.random() < 0.5:
                hu = hu[:, :, ::-1]
            hu, frame = crop(hu, s.crop, s.unet.fold, rng)
            sigma, wanted = s.task.draw(rng, s.slices, s.sigma)
            if rng.random() < s.fade:
                hu = np.stack([one if sought else fade(one, rng) for one, sought in zip(hu, wanted)])
            draws = generator(s.seed, sample, step, 0, TRAIN_NOISE)
            # Whole HU are spread over their bin, so that the network models a density and not 4096 spikes.
            clean = s.scale.encode(hu + draws.uniform(-0.5, 0.5, hu.shape))
            noise = draws.standard_normal(hu.shape, np.float32)
            rows.append((clean, noise, sigma, wanted, np.array(position, np.float32), frame))
        columns = [torch.from_numpy(np.stack(column)) for column in zip(*rows)]
        return dict(zip(("clean", "noise", "sigma", "wanted", "position", "frame"), columns))

    def ahead(self, first: int, last: int) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
        """Steps first … last-1 with their batches, each made while the one before is used."""
        with ThreadPoolExecutor(1) as pool:
            following = pool.submit(self.make, first) if first < last else None
            for step in range(first, last):
                assert following is not None
                batch = following.result()
                following = pool.submit(self.make, step + 1) if step + 1 < last else None
                yield step, batch


def learning_rate(step: int, settings: DenoiserTraining) -> float:
    """Linear warm-up, constant, linear fall to zero over the last `decay` share of the steps."""
    up = min(1.0, (step + 1) / max(1, settings.warmup))
    down = min(1.0, (settings.steps - step) / max(1.0, settings.decay * settings.steps))
    return settings.lr * up * down


def check_settings(settings: DenoiserTraining) -> None:
    """`UserError` for settings that no training can have."""
    for name, least in (("slices", 2), ("steps", 1), ("batch", 1), ("validation_windows", 1)):
        if getattr(settings, name) < least:
            raise UserError(f"--{name.replace('_', '-')} {getattr(settings, name)}: must be {least} or more")
    if not 0 < settings.sigma.sigma_min < settings.sigma.sigma_max:
        raise UserError(
            f"--sigma.sigma-min {settings.sigma.sigma_min:g}, --sigma.sigma-max {settings.sigma.sigma_max:g}: "
            "must be above 0, and the first below the second"
        )


def network_config(settings: DenoiserTraining, size: int) -> dict[str, Any]:
    """Settings of the chosen network with what follows from the data and the recipe filled in; `UserError` where they
    do not fit one another or slices of `size` pixels."""
    condition = 1 if settings.position else 0
    multiple = settings.unet.multiple if settings.network == "unet" else 2 ** (len(settings.ncsnpp.multipliers) - 1)
    if any(side < 0 or side > size or side % multiple for side in settings.crop):
        raise UserError(
            f"--crop {settings.crop[0]} {settings.crop[1]}: must be multiples of {multiple} up to {size}, or 0 for all"
        )
    if settings.network == "unet":
        shape = settings.unet
        if not len(shape.channels) == len(shape.blocks) == len(shape.attention):
            raise UserError("--unet.channels, --unet.blocks, --unet.attention: give as many of each, one a level")
        if len(shape.window) != len(shape.window_mean) or any(side < 1 or side % 2 == 0 for side in shape.window_mean):
            raise UserError("--unet.window, --unet.window-mean: give as many of each, the means odd and above 0")
        if size % shape.multiple:
            raise UserError(
                f"slices of {size} pixels do not divide by {shape.multiple}, as {len(shape.channels)} levels and "
                f"--unet.fold {shape.fold} need; prepare another size or take fewer levels"
            )
        return asdict(replace(settings.unet, slices=settings.slices, condition=condition))
    return asdict(
        replace(
            settings.ncsnpp,
            in_channels=settings.slices,
            out_channels=settings.slices,
            slices=settings.slices,
            condition=condition,
            image_size=size,
        )
    )


def train_denoiser(store: Store, out: Path, settings: DenoiserTraining, init: Path | None = None) -> Path:
    """Train on a prepared store and write a run folder; a folder that holds a started run is resumed.

    Parameters
    ----------
    store : prepared store (see `data.prepare`).
    out : run folder: config.toml, stats.jsonl, weights.safetensors + .json, state/, env.json, samples/.
    settings : see `DenoiserTraining`.
    init : checkpoint whose weights to start from (fine-tuning); its network and recipe are kept.

    Returns
    -------
    Path of the weights. Raises `UserError` where the store is empty or uneven, a checkpoint does not fit, or the loss
    is not finite (the last good checkpoint is kept), and KeyboardInterrupt, with the state saved, after Ctrl-C or
    SIGTERM.
    """
    check_settings(settings)
    with processes(settings.device) as process:
        if settings.batch % process.world:
            raise UserError(
                f"--batch {settings.batch} does not divide over {process.world} processes; make it a multiple"
            )
        try:
            return _train(store, out, settings, init, process)
        finally:
            if process.device.type == "cuda":
                torch.cuda.synchronize()


def _train(store: Store, out: Path, settings: DenoiserTraining, init: Path | None, process: Process) -> Path:
    windows = training_windows(store, "train", settings.slices)
    size = windows.records[0].shape[1]
    config = network_config(settings, size)
    torch.manual_seed(settings.seed)
    network = build_network(settings.network, config).to(process.device)
    sharded = settings.parallel == "fsdp" and process.world > 1
    if not sharded:  # FSDP takes contiguous parameters only
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    recipe = Recipe(
        slices=settings.slices,
        joint=settings.task.joint,
        size=size,
        spacing_mm=windows.records[0].spacing_mm,
        scale=settings.scale,
        sigma_data=root_mean_square(windows, settings.scale),
        sigma_min=settings.sigma.sigma_min,
        sigma_max=settings.sigma.sigma_max,
        position=settings.position,
        min_slices=min(r.shape[0] - r.vertex_slice for r in windows.records),
        max_slices=max(r.shape[0] - r.vertex_slice for r in windows.records),
    )
    state = out / "state" / "state.safetensors"
    started = load_tensors(state) if state.is_file() else None
    if started is not None:
        recipe = _recipe_of_run(state, started[1], recipe, settings)
    elif init is not None:
        recipe = _start_from(network, config, recipe, init)
    if isinstance(network, UNet):
        centre, scale = np.array(BRAIN.centre), recipe.scale
        network.brain(float(scale.encode(centre)) / recipe.sigma_data, float(scale.slope(centre)) / recipe.sigma_data)
    core = core_dtype(process.device, settings.core)
    objective = Objective(network, recipe.sigma_data, settings.balance, core).to(process.device)
    if sharded:
        from torch.distributed.fsdp import fully_shard

        fully_shard(objective.network)  # a unit of its own, so that validation can call it alone
        fully_shard(objective)
    parameters = list(objective.parameters())
    model: nn.Module = objective
    if settings.parallel == "ddp" and process.world > 1:
        model = DistributedDataParallel(objective, broadcast_buffers=False)
    optimizer = torch.optim.Adam(parameters, lr=settings.lr, betas=(0.9, 0.99), fused=True)
    ema = EMA(parameters, settings.ema)

    first = 0 if started is None else _resume(state, *started, objective, optimizer, ema)
    log = StatsLog(out / "stats.jsonl", first) if process.is_main else None
    board = _tensorboard(out) if settings.tensorboard and process.is_main else None
    meta = {"recipe": recipe.to_dict(), "training": asdict(settings), "data": store.fingerprint}
    if process.is_main:
        write_settings(out / "config.toml", "train", settings)
        write_environment(out)
    batches = Batches(windows, settings, process.share(settings.batch))
    weights = out / checkpoint.WEIGHTS

    def diverged(step: int) -> UserError:
        return UserError(
            f"{out}: the loss is not finite at step {step}; the last good checkpoint is kept, "
            "resume with a smaller --lr or --core float32"
        )

    def save(step: int) -> None:
        # A step may spoil the weights after its own loss was sound.
        if any_process(not all(bool(p.isfinite().all()) for p in map(_local, parameters)), process):
            raise diverged(step)
        tensors = _state(objective, optimizer, ema)
        if process.is_main:
            ema_weights = {
                n.removeprefix("network."): tensors[f"ema.{n}"]
                for n, _ in objective.named_parameters()
                if n.startswith("network.")
            }
            buffers = {n: b for n, b in network.named_buffers() if n in network.state_dict()}
            save_model(weights, settings.network, config, {**ema_weights, **buffers}, {**meta, "step": step})
            # The state goes last: after a crash between the two, the resumed run comes by here again.
            about = {"step": step, "settings": asdict(settings), "recipe": recipe.to_dict()}
            save_tensors(state, tensors, about)

    with StopRequest() as stop, _progress(settings.steps, first, process.is_main) as progress:
        begun, seen = time.monotonic(), 0
        for step, batch in batches.ahead(first, settings.steps):
            batch = {k: v.to(process.device, non_blocking=True) for k, v in batch.items()}
            condition = position_condition(batch["position"]) if settings.position else None
            frame = batch["frame"] if any(settings.crop) else None
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, settings)
            optimizer.zero_grad(set_to_none=True)
            loss, plain = model(batch["clean"], batch["noise"], batch["sigma"], batch["wanted"], condition, frame)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
            norm_value = float(_full(norm))
            if any_process(not math.isfinite(norm_value), process):
                raise diverged(step)
            optimizer.step()
            ema.update(parameters, step)
            done, seen = step + 1, seen + settings.batch
            rate = seen / (time.monotonic() - begun)
            progress(done, float(plain), rate)
            if done % 20 == 0 or done == settings.steps:
                whole = mean_of_processes(float(plain), process)
                if log:
                    log.write(step=done, loss=whole, grad_norm=norm_value, images_per_s=round(rate, 2))
                if board:
                    board.add_scalar("loss", whole, done)
            stopping = any_process(stop.requested, process) and done < settings.steps
            if _due(done, settings.save_every) or done == settings.steps or stopping:
                save(done)
            if stopping:
                raise KeyboardInterrupt
            if settings.validate_every and (done % settings.validate_every == 0 or done == settings.steps):
                ema.swap(parameters)
                bands = validate(
                    Denoiser(network, recipe, {}, core),
                    store,
                    settings.validation_windows,
                    settings.batch,
                    settings.seed,
                )
                ema.swap(parameters)
                if log:
                    log.write(step=done, validation=bands)
                    if board:
                        for row in bands:
                            board.add_scalar(f"brain_rmse_hu/sigma_{row['sigma']}", row["brain_rmse_hu"], done)
            if _due(done, settings.sample_every):
                ema.swap(parameters)
                _sample_picture(Denoiser(network, recipe, {}, core), out / "samples" / f"{done:07d}.png", process)
                ema.swap(parameters)
    if settings.residual_windows and process.is_main:
        how = settings.residual_windows, settings.batch, settings.seed, core, str(process.device)
        add_residual_filter(weights, store, *how)
    return weights


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def _recipe_of_run(state: Path, meta: dict[str, Any], recipe: Recipe, settings: DenoiserTraining) -> Recipe:
    """The recipe of a started run, whose sigma_data it keeps; `UserError` where these settings or data mean another."""
    if "recipe" not in meta:
        return recipe
    theirs = Recipe.from_dict(meta["recipe"], state)
    for name, found, expected in (
        ("network", settings.network, meta["settings"]["network"]),
        *_differences(recipe, theirs),
        ("position", recipe.position, theirs.position),
        ("slices", recipe.slices, theirs.slices),
    ):
        if found != expected:
            raise UserError(
                f"{state}: the started run's {name} is {expected}, this one's is {found}; give another --out or the "
                "settings and data of that run"
            )
    return replace(recipe, sigma_data=theirs.sigma_data)


def _differences(recipe: Recipe, theirs: Recipe) -> list[tuple[str, Any, Any]]:
    """(name, ours, theirs) of what weights cannot be carried across."""
    ours_mm, theirs_mm = (tuple(round(mm, 2) for mm in r.spacing_mm) for r in (recipe, theirs))
    return [
        ("size", recipe.size, theirs.size),
        ("spacing", ours_mm, theirs_mm),
        ("HU scale", recipe.scale, theirs.scale),
        ("joint", recipe.joint, theirs.joint),
    ]


def _start_from(network: nn.Module, config: dict[str, Any], recipe: Recipe, init: Path) -> Recipe:
    """Load weights to fine-tune; scale and sigma_data stay those that the weights were trained with."""
    loaded, meta = checkpoint.load_model(init, ("unet", "ncsnpp"))
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
    network.load_state_dict(loaded.state_dict())
    return replace(recipe, sigma_data=theirs.sigma_data)


def _full(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor that FSDP may have sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a tensor that FSDP may have sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _state(objective: nn.Module, optimizer: torch.optim.Optimizer, ema: EMA) -> dict[str, torch.Tensor]:
    """Weights, moving averages and Adam moments under one flat naming."""
    tensors: dict[str, torch.Tensor] = {}
    for (name, parameter), average in zip(objective.named_parameters(), ema.averages):
        tensors[f"model.{name}"] = _full(parameter.detach())
        tensors[f"ema.{name}"] = _full(average)
        for key, value in optimizer.state[parameter].items():
            tensors[f"adam.{key}.{name}"] = _full(value)
    return {name: tensor.clone() for name, tensor in tensors.items()}


@torch.no_grad()
def _resume(
    path: Path,
    tensors: dict[str, torch.Tensor],
    meta: dict[str, Any],
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: EMA,
) -> int:
    """Take over the state of a started run; returns the step to go on from."""
    names = {name for name, _ in objective.named_parameters()}
    if {n.removeprefix("model.") for n in tensors if n.startswith("model.")} != names:
        raise UserError(f"{path}: the started run has another network; give another --out or the settings of that run")
    for (name, parameter), average in zip(objective.named_parameters(), ema.averages):
        if tensors[f"model.{name}"].shape != parameter.shape:
            raise UserError(f"{path}: {name} has another size than this network's; give another --out")
        _copy(parameter, tensors[f"model.{name}"])
        _copy(average, tensors[f"ema.{name}"])
        state = optimizer.state[parameter]
        for key in ("step", "exp_avg", "exp_avg_sq"):
            value = tensors[f"adam.{key}.{name}"]
            if key == "step":
                state[key] = value.clone()
            else:
                state[key] = torch.zeros_like(parameter)
                _copy(state[key], value)
    return int(meta["step"])


def _copy(target: torch.Tensor, source: torch.Tensor) -> None:
    if isinstance(target, DTensor):
        source = distribute_tensor(source.to(target.device), target.device_mesh, target.placements)
    target.copy_(source)


def _sample_picture(denoiser: Denoiser, path: Path, process: Process) -> None:
    """One generated volume as a montage, to see how training goes. All processes sample it, since FSDP's network needs
    them all; the first writes it."""
    from slicewise.ascii import ChainSettings, chain, trim
    from slicewise.montage import save_montage
    from slicewise.volume import Volume

    denoiser.network.eval()
    slices = list(chain(denoiser, ChainSettings(steps=12), seed=0, volumes=[0], device=str(process.device)))
    hu = trim(np.stack([s[0] for s in slices]), most=denoiser.recipe.scale.air)
    denoiser.network.train()
    if not process.is_main:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    save_montage([Volume.regular(hu, denoiser.recipe.spacing_mm)], path, [path.stem])


def _tensorboard(out: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("--tensorboard: TensorBoard is not installed; pip install 'slicewise[tensorboard]'") from None
    return SummaryWriter(out / "tensorboard")  # type: ignore[no-untyped-call]


class _progress:
    """Bar with loss, images/s and time left; silent in all processes but the first."""

    def __init__(self, total: int, first: int, shown: bool) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.bar = Progress(
            TextColumn("train"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}  loss {task.fields[loss]:.4f}  {task.fields[rate]:.1f} images/s"),
            TimeRemainingColumn(),
            disable=not shown,
        )
        self.task = self.bar.add_task("train", total=total, completed=first, loss=math.nan, rate=0.0)

    def __enter__(self) -> "_progress":
        self.bar.start()
        return self

    def __call__(self, done: int, loss: float, rate: float) -> None:
        self.bar.update(self.task, completed=done, loss=loss, rate=rate)

    def __exit__(self, *exc: object) -> None:
        self.bar.stop()
