"""Train the slice-to-3D VAE: slices first, then, from all encoded volumes, the columns of each latent dimension."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slicewise.baselines.slice_vae import SliceVAE, fit_columns, vae_loss
from slicewise.codec import codec
from slicewise.data.store import Store
from slicewise.data.windows import Heads
from slicewise.errors import UserError
from slicewise.hu import AIR_HU, WHOLE
from slicewise.io.tensors import load_tensors
from slicewise.random import LATENT, VALIDATION, Draws
from slicewise.runtime import Process, processes
from slicewise.training.ema import EMA
from slicewise.training.run import run, training_heads
from slicewise.training.settings import SliceVAETraining
from slicewise.training.slices import Slices, recipe_of
from slicewise.training.state import state_file


def train_slice_vae(store: Store, out: Path, settings: SliceVAETraining | None = None) -> Path:
    """Train on a prepared store, in one process, fit the columns, and return the weights, out/weights.safetensors.

    `out` is a run folder (see `run`); stats.jsonl holds the loss and val_rmse_hu of reconstructions. Raises `UserError`
    for a store with less than two training volumes or of another grid, under torchrun, and as `run` does;
    KeyboardInterrupt, with the state saved, after Ctrl-C or SIGTERM.
    """
    settings = settings or SliceVAETraining()
    settings.check()
    with processes(settings.device) as process:
        if process.world > 1:
            raise UserError("train-slice-vae: it runs in one process (batch norm); start it without torchrun")
        return run(SliceVAETrainer(store, out, settings, process), out, "train-slice-vae", process)


class SliceVAETrainer:
    """The slice VAE in training, as the loop takes it (see `run.Trainer`)."""

    name, exported = "slice VAE", "vae"
    free = frozenset({"validation_slices"})
    average: EMA | None = None
    width: float | None = None

    def __init__(self, store: Store, out: Path, settings: SliceVAETraining, process: Process) -> None:
        self.settings, self.fitted = settings, False
        self.heads = training_heads(store, out, process)
        if len(self.heads.records) < 2:
            raise UserError(f"{store.path}: one training volume has no columns to compare; prepare two or more")
        recipe = recipe_of(self.heads, settings.scale)
        # One slice more than the longest head, so that every column learns to end in air.
        length = _started_length(out) or recipe.max_slices + 1
        self.recipe = replace(recipe, max_slices=length - 1)
        config = replace(settings.network, slices=length, size=recipe.size)
        if config.size % 2 ** len(config.channels) or config.bottom < 1:
            raise UserError(
                f"SliceVAEConfig.channels: {len(config.channels)} halvings do not fit slices of {config.size} pixels; "
                "give fewer"
            )
        self.slices = Slices(self.heads, settings.scale, length)
        held = Heads(store, "val" if store.select("val") else "train", process.device)
        self.validation = Slices(held, settings.scale)
        torch.manual_seed(settings.seed)
        self.network = SliceVAE(config).to(process.device)
        self.networks: dict[str, nn.Module] = {"vae": self.network}
        adam = torch.optim.Adam(self.network.parameters(), lr=settings.lr, fused=True)
        self.optimizers: Sequence[torch.optim.Optimizer] = [adam]

    def step(self, step: int) -> dict[str, Tensor]:
        s, network, optimizer = self.settings, self.network, self.optimizers[0]
        samples = range(s.batch)
        x = self.slices.batch(s.seed, step, samples)
        noise = Draws(s.seed, samples, 0, step, LATENT, x.device).normal(network.column_noise[0])
        optimizer.zero_grad(set_to_none=True)
        decoded, mean, log_variance = network(x, noise)
        loss = vae_loss(x, decoded, mean, log_variance, s.kl)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), s.clip)
        optimizer.step()
        self.fitted = False
        return {"loss": loss.detach(), "grad_norm": norm}

    def model(self) -> tuple[str, dict[str, Any], dict[str, Any]]:
        about = {"recipe": self.recipe.to_dict(), "training": asdict(self.settings), "fitted": self.fitted}
        return "slice-vae", asdict(self.network.config), about

    @torch.no_grad()
    def validate(self) -> dict[str, Any]:
        """Root mean square error in HU, over head voxels (above -500 HU), of validation slices that are encoded to
        their posterior mean and decoded."""
        s = self.settings
        numbers = Draws(s.seed, range(s.validation_slices), 0, 0, VALIDATION).integers(len(self.validation))[:, 0]
        squares, voxels = 0.0, 0
        for part in numbers.split(s.batch):
            hu = self.validation.hu(part)
            head = hu > AIR_HU
            squares += float(((self._decoded(hu) - hu).square() * head).sum())
            voxels += int(head.sum())
        return {"val_rmse_hu": round(math.sqrt(squares / voxels), 3) if voxels else None}

    def _decoded(self, hu: Tensor) -> Tensor:
        """Slices (B, 1, H, W), encoded to their posterior mean and decoded, float64 HU."""
        through = codec(self.settings.scale, hu.device)
        self.network.eval()
        x = self.network.decode(self.network.encode(through.encode(hu))[0])
        self.network.train()
        return through.decode(x)

    @torch.no_grad()
    def sample(self, path: Path) -> None:
        """The first slices of validation, encoded and decoded."""
        from slicewise.hu import round_hu
        from slicewise.reporting.montage import slice_sheet
        from slicewise.volume import Volume

        hu = self._decoded(self.validation.hu(torch.arange(min(24, len(self.validation)))))
        path.parent.mkdir(parents=True, exist_ok=True)
        slice_sheet(Volume.regular(round_hu(hu[:, 0].cpu().numpy()), self.recipe.spacing_mm), path, WHOLE, path.stem)

    def memory(self) -> dict[str, Any]:
        return {}

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Nothing but weights and moments is its state."""

    @torch.no_grad()
    def finish(self) -> None:
        """Fit the columns to the posterior means of the training volumes."""
        network = self.network.eval()
        count = min(self.settings.heads, len(self.heads.records))
        latents = [network.encode(self.slices.column(head))[0] for head in range(count)]
        mean, factor = fit_columns(torch.stack(latents), network.config.components)
        network.columns_mean.copy_(mean)
        network.columns_factor.copy_(factor)
        self.fitted = True


def _started_length(out: Path) -> int:
    """Slices of a column in a started run, which keeps them whatever heads have come since; 0 where there is none."""
    path = state_file(out)
    return len(load_tensors(path)[0].get("vae.columns_mean", ())) if path.is_file() else 0
