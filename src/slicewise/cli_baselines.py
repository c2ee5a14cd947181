"""The commands `train-slice-vae` and `train-gan`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from slicewise.cli import parse
from slicewise.data.store import open_store
from slicewise.training import gan, slice_vae


def train_slice_vae(argv: list[str]) -> None:
    """`slicewise train-slice-vae`."""

    @dataclass(frozen=True)
    class TrainSliceVAE:
        """Train the slice-to-3D VAE (Volokitin et al. 2020) on a store: slices, then how latents run along a head.
        slicewise generate draws heads from it, with --calibrate off.

        Attributes
        ----------
        data : prepared store.
        out : run folder; a started run in it goes on where it was, bit for bit.
        """

        data: Annotated[Path, tyro.conf.Positional]
        out: Path
        settings: Annotated[slice_vae.SliceVAETraining, tyro.conf.arg(name="")]

    a = parse("train-slice-vae", TrainSliceVAE, argv, settings=slice_vae.SliceVAETraining())
    print(f"checkpoint: {slice_vae.train_slice_vae(open_store(a.data), a.out, a.settings)}")


def train_gan(argv: list[str]) -> None:
    """`slicewise train-gan`."""

    @dataclass(frozen=True)
    class TrainGAN:
        """Train StyleGAN2 or StyleGAN3 on a store's slices, with adaptive augmentation. slicewise generate draws
        independent slices from it, stacked as volumes, with --calibrate off. One process, or many under torchrun.

        Attributes
        ----------
        data : prepared store.
        out : run folder; a started run in it goes on where it was, bit for bit.
        """

        data: Annotated[Path, tyro.conf.Positional]
        out: Path
        settings: Annotated[gan.GANTraining, tyro.conf.arg(name="")]

    a = parse("train-gan", TrainGAN, argv, settings=gan.GANTraining())
    weights = gan.train_gan(open_store(a.data), a.out, a.settings)
    if os.environ.get("RANK", "0") == "0":
        print(f"checkpoint: {weights}")
