"""Train the slice-to-3D VAE: slices first, then, from all encoded volumes, the columns of each latent dimension."""

import math
import os
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress, TextColumn

from slicewise.baselines.sampling import BaselineRecipe
from slicewise.baselines.slice_vae import SliceVAE, SliceVAEConfig, fit_columns, vae_loss
from slicewise.checkpoint import WEIGHTS, save_model
from slicewise.data.store import Store
from slicewise.diffusion.noise import LATENT, VALIDATION, generator
from slicewise.errors import UserError
from slicewise.hu import AIR_HU, HUScale
from slicewise.io.tensors import load_tensors, save_tensors
from slicewise.settings import write_settings
from slicewise.training.engine import StatsLog, StopRequest, processes, write_environment
from slicewise.training.slices import Slices, training_slices
from slicewise.training.state import check_same, finite, identity, pack, unpack

# Settings that a started run may change.
_FREE = ("steps", "save_every", "validate_every", "validation_slices", "device")


@dataclass(frozen=True)
class SliceVAETraining:
    """Settings of the slice VAE's training; defaults as published, but for the batch.

    Attributes
    ----------
    network : shape of the network.
    scale : window and companding of the HU scale.
    kl : weight of the divergence beside the squared error summed over a slice's pixels.
    steps : optimiser steps.
    batch : slices a step (published: 128).
    lr : learning rate of Adam.
    clip : largest gradient norm.
    heads : most volumes that the columns are fitted to.
    seed : of weights, order and noise.
    save_every, validate_every : steps between checkpoints and between validations (0 = only at the end).
    validation_slices : slices in a validation.
    device : "auto", "cpu" or "cuda".
    """

    network: SliceVAEConfig = field(default_factory=SliceVAEConfig)
    scale: HUScale = field(default_factory=HUScale)
    kl: float = 0.2
    steps: int = 20000
    batch: int = 32
    lr: float = 1e-3
    clip: float = 1e4
    heads: int = 400
    seed: int = 0
    save_every: int = 500
    validate_every: int = 1000
    validation_slices: int = 64
    device: str = "auto"


def check_settings(settings: SliceVAETraining) -> None:
    """`UserError` naming the flag of a setting that cannot work."""
    for name in ("steps", "batch", "lr", "clip", "heads", "validation_slices"):
        if not getattr(settings, name) > 0:
            raise UserError(f"--{name.replace('_', '-')} {getattr(settings, name)}: must be above zero")
    if settings.batch < 2:
        raise UserError(f"--batch {settings.batch}: batch norm needs two slices or more")
    for name in ("kl", "save_every", "validate_every"):
        if getattr(settings, name) < 0:
            raise UserError(f"--{name.replace('_', '-')} {getattr(settings, name)}: must not be below zero")
    shape = settings.network
    if not shape.channels or min(shape.channels) < 1 or shape.latent < 1 or shape.components < 1:
        raise UserError("--network.channels, --network.latent, --network.components: must be above zero")


def train_slice_vae(store: Store, out: Path, settings: SliceVAETraining | None = None) -> Path:
    """Train on a prepared store, fit the columns, and return the weights, out/weights.safetensors.

    The run folder holds config.toml, stats.jsonl (step, loss, images_per_s; val_rmse_hu of reconstructions), env.json
    and state/; a run that was stopped goes on from there bit for bit.

    Raises `UserError` for a store without training volumes or of another grid, a folder that holds another run, and a
    loss that is no number (the last good checkpoint is kept); KeyboardInterrupt, with the state saved, after Ctrl-C.
    """
    settings = settings or SliceVAETraining()
    check_settings(settings)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("train-slice-vae: it takes one process (batch norm); start it without torchrun")
    slices, recipe = training_slices(store, settings.scale)
    if len(slices.records) < 2:
        raise UserError(f"{store.path}: one training volume has no columns to compare; prepare two or more")
    # One slice more than the longest head, so that every column learns to end in air.
    slices = replace(slices, length=recipe.max_slices + 1)
    config = replace(settings.network, slices=recipe.max_slices + 1, size=recipe.size)
    if config.size % 2 ** len(config.channels) or config.bottom < 1:
        raise UserError(
            f"--network.channels: {len(config.channels)} halvings do not fit slices of {config.size} pixels; give fewer"
        )
    with processes(settings.device) as process:
        return _train(store, slices, recipe, config, out, settings, process.device)


def _train(
    store: Store,
    slices: Slices,
    recipe: BaselineRecipe,
    config: SliceVAEConfig,
    out: Path,
    settings: SliceVAETraining,
    device: torch.device,
) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = SliceVAE(config)
    network = network.to(device)
    adam = torch.optim.Adam(network.parameters(), lr=settings.lr)
    modules, adams, same = {"vae": network}, {"vae": adam}, identity(settings, _FREE, store)
    state, first, fitted = out / "state" / "state.safetensors", 0, False
    if state.is_file():
        tensors, meta = load_tensors(state)
        check_same(state, meta, same)
        unpack(tensors, modules, adams)
        first, fitted = int(meta["step"]), bool(meta["fitted"])
    write_settings(out / "config.toml", "train-slice-vae", settings)
    write_environment(out)
    log = StatsLog(out / "stats.jsonl", first)

    def diverged(step: int) -> UserError:
        return UserError(
            f"{out}: the loss is not finite at step {step}; the last good checkpoint is kept, resume in another --out "
            "with a smaller --lr"
        )

    def save(step: int, fitted: bool) -> None:
        if not finite(network):
            raise diverged(step)
        about = {"recipe": recipe.to_dict(), "training": asdict(settings), "data": store.fingerprint}
        weights = network.state_dict()
        save_model(out / WEIGHTS, "slice-vae", asdict(config), weights, {**about, "step": step, "fitted": fitted})
        # The state goes last: after a crash between the two, the resumed run comes by here again.
        save_tensors(state, pack(modules, adams), {**same, "step": step, "fitted": fitted})

    network.train()
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[loss]:.1f}"))
    with StopRequest() as stop, Progress(*columns, transient=True) as bar:
        task = bar.add_task("slice VAE", total=settings.steps, completed=first, loss=math.nan)
        begun = time.monotonic()
        for step in range(first, settings.steps):
            x = slices.batch(settings.seed, step, range(settings.batch)).to(device)
            noise = _noise(settings, step, network.column_noise[0]).to(device)
            decoded, mean, log_variance = network(x, noise)
            loss = vae_loss(x, decoded, mean, log_variance, settings.kl)
            adam.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
            if not math.isfinite(float(norm)):
                raise diverged(step)
            adam.step()
            done, value = step + 1, float(loss.detach())
            bar.update(task, completed=done, loss=value)
            if done % 20 == 0 or done == settings.steps:
                rate = (done - first) * settings.batch / (time.monotonic() - begun)
                log.write(step=done, loss=value, grad_norm=float(norm), images_per_s=round(rate, 2))
            ending = done == settings.steps
            if not ending and (stop.requested or (settings.save_every and done % settings.save_every == 0)):
                save(done, fitted=False)
            if stop.requested and not ending:
                raise KeyboardInterrupt
            if ending or (settings.validate_every and done % settings.validate_every == 0):
                log.write(step=done, val_rmse_hu=round(validate(network, store, settings), 3))
    if first < settings.steps or not fitted:
        network.columns_mean, network.columns_factor = _fit(network, slices, settings)
        save(max(first, settings.steps), fitted=True)
    return out / WEIGHTS


def _noise(settings: SliceVAETraining, step: int, dimensions: int) -> torch.Tensor:
    """Standard normal (B, D) float32 of a step."""
    draws = (generator(settings.seed, sample, step, 0, LATENT) for sample in range(settings.batch))
    return torch.from_numpy(np.stack([rng.standard_normal(dimensions, np.float32) for rng in draws]))


@torch.no_grad()
def _fit(network: SliceVAE, slices: Slices, settings: SliceVAETraining) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and factor of the columns, from the posterior means of the training volumes."""
    network.eval()
    count = min(settings.heads, len(slices.records))
    device = network.columns_mean.device
    latents = [network.encode(slices.column(volume).to(device))[0] for volume in range(count)]
    mean, factor = fit_columns(torch.stack(latents), network.config.components)
    return mean.to(device), factor.to(device)


@torch.no_grad()
def validate(network: SliceVAE, store: Store, settings: SliceVAETraining) -> float:
    """Root mean square error in HU, over head voxels (above -500 HU), of validation slices that are encoded to their
    posterior mean and decoded."""
    records = store.select("val") or store.select("train")
    held = Slices(store, records, settings.scale)
    device = network.columns_mean.device
    network.eval()
    errors = []
    for index in generator(settings.seed, 0, 0, 0, VALIDATION).integers(0, len(held), settings.validation_slices):
        hu = held.hu(int(index))
        x = torch.from_numpy(settings.scale.encode(hu))[None, None].to(device)
        decoded = settings.scale.decode(network.decode(network.encode(x)[0]).cpu().numpy())[0, 0]
        errors.append((decoded - hu)[hu > AIR_HU])
    network.train()
    joined = np.concatenate(errors)
    return float(np.sqrt(np.mean(joined**2))) if joined.size else math.nan
