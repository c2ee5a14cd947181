"""Commands that train networks: `train`, `train-icnet`, the baselines' and `pyramid`."""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from slicewise.cli.parse import PLAIN, typed
from slicewise.training.settings import DenoiserTraining, GANTraining, ICNetTraining, SliceVAETraining


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train the denoiser. On GPUs with one process each: torchrun --nproc-per-node N -m slicewise train ..."""

    data: Annotated[Path, Positional]
    """Prepared store."""
    out: Path
    """Run folder; a run already in it resumes where it stopped, bit for bit."""
    init: Path | None = None
    """Checkpoint to start from (fine-tuning); give the settings it was trained with."""
    processes: int = 0
    """Single-threaded processes to train with on a CPU; 0 uses as many as train fastest."""
    settings: Annotated[DenoiserTraining, PLAIN] = field(default_factory=DenoiserTraining)

    def run(self) -> None:
        from slicewise.data.store import open_store
        from slicewise.runtime import processes_for, run_processes
        from slicewise.training.denoiser import train_denoiser

        count = self.processes or processes_for(self.settings.batch, self.settings.device)
        if count > 1 and "WORLD_SIZE" not in os.environ:
            sys.exit(run_processes(count, ["train", *typed]))
        _report(train_denoiser(open_store(self.data), self.out, self.settings, self.init))


@dataclass(frozen=True, kw_only=True)
class TrainICNet:
    """Train IC-Net, self-supervised, on neighbouring slices of a store."""

    data: Annotated[Path, Positional]
    """Prepared store."""
    out: Path
    """Run folder; a run already in it resumes where it stopped, bit for bit."""
    settings: Annotated[ICNetTraining, PLAIN] = field(default_factory=ICNetTraining)

    def run(self) -> None:
        from slicewise.data.store import open_store
        from slicewise.training.icnet import train_icnet

        _report(train_icnet(open_store(self.data), self.out, self.settings))


@dataclass(frozen=True, kw_only=True)
class TrainSliceVAE:
    """Train the slice-to-3D VAE (Volokitin et al. 2020) on a store: first slices, then how their latents vary along
    a head. slicewise generate draws heads from it, with --calibrate off."""

    data: Annotated[Path, Positional]
    """Prepared store."""
    out: Path
    """Run folder; a run already in it resumes where it stopped, bit for bit."""
    settings: Annotated[SliceVAETraining, PLAIN] = field(default_factory=SliceVAETraining)

    def run(self) -> None:
        from slicewise.data.store import open_store
        from slicewise.training.slice_vae import train_slice_vae

        print(f"checkpoint: {train_slice_vae(open_store(self.data), self.out, self.settings)}")


@dataclass(frozen=True, kw_only=True)
class TrainGAN:
    """Train StyleGAN2 or StyleGAN3 on a store's slices, with adaptive augmentation. slicewise generate draws
    independent slices from it, stacked as volumes, with --calibrate off. One process, or many under torchrun."""

    data: Annotated[Path, Positional]
    """Prepared store."""
    out: Path
    """Run folder; a run already in it resumes where it stopped, bit for bit."""
    settings: Annotated[GANTraining, PLAIN] = field(default_factory=GANTraining)

    def run(self) -> None:
        from slicewise.data.store import open_store
        from slicewise.training.gan import train_gan

        weights = train_gan(open_store(self.data), self.out, self.settings)
        if _is_main():
            print(f"checkpoint: {weights}")


@dataclass(frozen=True, kw_only=True)
class JoinLevels:
    """Join levels that were trained for one another into one checkpoint for generate: a plan of the whole head
    (train --pool), then the levels that follow it (train --above)."""

    levels: Annotated[tuple[Path, ...], Positional]
    """Run folders or weights, the plan first."""
    out: Path
    """File to write (.safetensors)."""
    half: bool = False
    """Write float16, which halves the file."""
    size: int = 0
    """Pixels per side that generate draws unless told otherwise; 0 takes the finest level."""

    def run(self) -> None:
        from slicewise.pyramid import join

        print(f"checkpoint: {join(self.levels, self.out, self.half, self.size)}")


def _report(weights: Path) -> None:
    """Write the report of a finished run, and say where it is (in the first process only)."""
    from slicewise.training.report import write_run_page

    if _is_main():
        print(f"checkpoint: {weights}")
        print(f"report: {write_run_page(weights.parent)}")


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"
