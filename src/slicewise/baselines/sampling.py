"""Trained baselines on disk, and volumes drawn from them: each a function of (seed, number) alone."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from slicewise.ascii import trim
from slicewise.baselines.shapes import SliceVAEConfig, StyleGAN2Config, StyleGAN3Config
from slicewise.baselines.slice_vae import SliceVAE
from slicewise.baselines.stylegan2 import StyleGAN2
from slicewise.baselines.stylegan3 import StyleGAN3
from slicewise.checkpoint import load_model
from slicewise.errors import UserError
from slicewise.hu import HUScale
from slicewise.random import INITIAL, Draws

KINDS = ("slice-vae", "stylegan2", "stylegan3")
# Slices that go through a network at once.
_AT_ONCE = 16


@dataclass(frozen=True)
class BaselineRecipe:
    """What turns a baseline's x into CT.

    Attributes
    ----------
    size : in-plane pixels per side.
    spacing_mm : voxel spacing (z, y, x) in mm of the data it was trained on.
    scale : HU scale.
    max_slices : slices of the longest volume it was trained on.
    """

    size: int
    spacing_mm: tuple[float, float, float]
    scale: HUScale
    max_slices: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "BaselineRecipe":
        return BaselineRecipe(
            values["size"], tuple(values["spacing_mm"]), HUScale(**values["scale"]), values["max_slices"]
        )


@dataclass(frozen=True)
class Baseline:
    """A trained baseline: network, recipe and what its checkpoint says."""

    network: nn.Module
    recipe: BaselineRecipe
    meta: dict[str, Any]

    @property
    def kind(self) -> str:
        return str(self.meta["kind"])

    @property
    def way(self) -> str:
        """How its volumes come about, in words for headers and reports."""
        return "slice VAE, whole columns" if self.kind == "slice-vae" else f"{self.kind}, independent slices"

    def check_slices(self, slices: int) -> None:
        """`UserError` where it cannot draw volumes of so many slices."""
        if isinstance(self.network, SliceVAE) and slices > self.network.config.slices:
            raise UserError(
                f"ChainSettings.slices={slices}: a slice VAE draws heads of {self.network.config.slices} slices, as "
                "long as the longest it was trained on; give no more than that"
            )


def build_baseline(kind: str, config: dict[str, Any]) -> nn.Module:
    """The network of a kind ("slice-vae", "stylegan2", "stylegan3") with the given settings."""
    settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
    if kind == "slice-vae":
        return SliceVAE(SliceVAEConfig(**settings))
    if kind == "stylegan2":
        return StyleGAN2(StyleGAN2Config(**settings))
    if kind == "stylegan3":
        return StyleGAN3(StyleGAN3Config(**settings))
    raise UserError(f"baseline {kind!r} is not known; expected {', '.join(KINDS)}")


def load_baseline(path: Path, device: str = "cpu") -> Baseline:
    """A baseline from a checkpoint file or a run folder, ready to draw from.

    Raises `UserError` for a file that is damaged or of another kind, and for a slice VAE whose training has not come to
    its end, where the model of columns is fitted.
    """
    network, meta = load_model(path, KINDS, build_baseline)
    if meta["kind"] == "slice-vae" and not meta["fitted"]:
        raise UserError(
            f"{path}: its training stopped at step {meta['step']}, before its columns were fitted; run the same "
            "train-slice-vae again"
        )
    return Baseline(network.to(device), BaselineRecipe.from_dict(meta["recipe"]), meta)


@torch.no_grad()
def draw_volume(baseline: Baseline, seed: int, number: int, slices: int = 0) -> np.ndarray:
    """Volume `number` of run `seed`, int16 HU (Z, H, W), superior first.

    The slice VAE draws a whole head and cuts it where the head ends, or keeps the first `slices`. A GAN knows nothing
    of neighbours: its volume is `slices` independent slices (0: as many as the longest volume it was trained on).
    """
    baseline.check_slices(slices)
    if isinstance(baseline.network, SliceVAE):
        hu = _draw_head(baseline, baseline.network, seed, number)
        return hu[:slices] if slices else trim(hu, air_hu=baseline.recipe.scale.air)
    wanted = slices or baseline.recipe.max_slices
    # Whole groups, since the sums of some processors' convolutions depend on how many slices there are.
    groups = range(0, wanted, _AT_ONCE)
    made = [_draw_slices(baseline, seed, number, range(first, first + _AT_ONCE)) for first in groups]
    return baseline.recipe.scale.decode_codes(np.concatenate(made)[:wanted])


def _draw_head(baseline: Baseline, network: SliceVAE, seed: int, number: int) -> np.ndarray:
    dimensions, components = network.column_noise
    draws = Draws(seed, [number], 0, 0, INITIAL, network.columns_mean.device)
    latents = network.draw_columns(draws.normal(dimensions * components).view(dimensions, components))
    x = torch.cat([network.decode(part) for part in latents.split(_AT_ONCE)])
    return baseline.recipe.scale.decode_codes(x[:, 0].cpu().numpy())


def _draw_slices(baseline: Baseline, seed: int, number: int, slices: range) -> np.ndarray:
    """x of some independent slices, (S, H, W)."""
    network = baseline.network
    assert isinstance(network, StyleGAN2 | StyleGAN3)
    # Nothing binds the slices of a volume: they are the samples here, and the volume is what they have in common.
    draws = Draws(seed, slices, number, 0, INITIAL, next(network.parameters()).device)
    z, *noise = slice_noise(network, draws)
    return np.asarray(network(z, noise)[:, 0].cpu().numpy())


def slice_noise(network: StyleGAN2 | StyleGAN3, draws: Draws) -> list[torch.Tensor]:
    """z (B, D), then the noise (B, 1, r, r) of every layer that takes some: all that slices are made from."""
    z = draws.normal(network.config.latent)
    return [z, *(draws.normal(r * r).view(-1, 1, r, r) for r in network.noise_sizes)]
