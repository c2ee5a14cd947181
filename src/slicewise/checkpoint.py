"""A trained network on disk: one safetensors file and one JSON that says everything needed to use it."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

import slicewise
from slicewise.diffusion.precondition import denoise
from slicewise.diffusion.residual import ResidualFilter
from slicewise.errors import UserError
from slicewise.hu import HUScale
from slicewise.io.tensors import load_tensors, save_tensors

if TYPE_CHECKING:
    from slicewise.networks.icnet import ICNet

FORMAT = 1
WEIGHTS = "weights.safetensors"


def build_network(kind: str, config: dict[str, Any]) -> nn.Module:
    """The raw network of a kind ("unet", "ncsnpp", "icnet") with the given settings."""
    settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
    if kind == "unet":
        from slicewise.networks.unet import UNet, UNetConfig

        return UNet(UNetConfig(**settings))
    if kind == "ncsnpp":
        from slicewise.networks.ncsnpp import NCSNpp, NCSNppConfig

        return NCSNpp(NCSNppConfig(**settings))
    if kind == "icnet":
        from slicewise.networks.icnet import ICNet, ICNetConfig

        return ICNet(ICNetConfig(**settings))
    raise UserError(f"network kind {kind!r} is not known; expected unet, ncsnpp or icnet")


def save_model(
    path: Path, kind: str, network_config: dict[str, Any], state_dict: dict[str, torch.Tensor], meta: dict[str, Any]
) -> None:
    """Write weights and their JSON atomically; `meta` is whatever the kind needs to be used (recipe, scale, step)."""
    head = {"format": FORMAT, "slicewise": slicewise.__version__, "kind": kind, "network": network_config}
    save_tensors(path, state_dict, {**head, **meta})


def weights_file(path: Path) -> Path:
    """The checkpoint file that a path means: itself, or the weights in a run folder."""
    return Path(path) / WEIGHTS if Path(path).is_dir() else Path(path)


def kind_of(path: Path) -> str:
    """The kind of network in a checkpoint file or run folder, from its header alone; empty where it cannot be read,
    which loading then explains."""
    try:
        with safe_open(weights_file(path), framework="pt") as file:  # type: ignore[no-untyped-call]
            return str(json.loads((file.metadata() or {})["slicewise"])["kind"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return ""


def load_model(
    path: Path,
    kinds: tuple[str, ...] = ("unet", "ncsnpp", "icnet"),
    build: Callable[[str, dict[str, Any]], nn.Module] = build_network,
) -> tuple[nn.Module, dict[str, Any]]:
    """Read a checkpoint file, or the weights of a run folder: the network in eval mode and its metadata. `build` makes
    the raw network from its kind and settings.

    Raises `UserError` for a file that is absent, cut, of another format, of another kind or of another size.
    """
    path = weights_file(path)
    tensors, meta = load_tensors(path)
    if meta.get("format") != FORMAT:
        raise UserError(
            f"{path}: checkpoint format {meta.get('format')} (written by slicewise {meta.get('slicewise', '?')}), "
            f"this version reads format {FORMAT}; use the version that wrote it"
        )
    if meta["kind"] not in kinds:
        raise UserError(f"{path}: holds a network of kind {meta['kind']}, expected {' or '.join(kinds)}")
    try:
        network = build(meta["kind"], meta["network"])
        network.load_state_dict(tensors)
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path}: weights do not fit the network it names ({reason}); it is from another version"
        ) from None
    return network.eval().to(memory_format=torch.channels_last), meta  # type: ignore[call-overload]


@dataclass(frozen=True)
class Recipe:
    """All that turns a raw network into a denoiser of CT windows.

    Attributes
    ----------
    slices : K, slices in a window.
    joint : one sigma for the whole window (the paper) instead of one a slice.
    size : in-plane pixels per side.
    spacing_mm : voxel spacing (z, y, x) in mm of the data it was trained on.
    scale : HU scale.
    sigma_data : root mean square of clean x.
    sigma_min, sigma_max : trained range of noise levels, units of x.
    position : whether the network is told each window's position below the vertex (of its last slice, in 100 mm).
    min_slices, max_slices : lengths of the volumes it was trained on.
    residual : filter of what the trained network leaves undone (see `diffusion.residual`), or None.
    """

    slices: int
    joint: bool
    size: int
    spacing_mm: tuple[float, float, float]
    scale: HUScale
    sigma_data: float
    sigma_min: float
    sigma_max: float
    position: bool
    min_slices: int
    max_slices: int
    residual: ResidualFilter | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any], path: Path) -> "Recipe":
        """The inverse of `to_dict`, after JSON; `UserError` for a recipe of another version, which names the `path` it
        comes from."""
        residual = values.get("residual")
        try:
            typed = {
                "scale": HUScale(**values["scale"]),
                "spacing_mm": tuple(values["spacing_mm"]),
                "residual": ResidualFilter.from_dict(residual) if residual else None,
            }
            return Recipe(**{**values, **typed})
        except (KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{path}: the checkpoint's recipe is from another version ({reason}); use the version that wrote it"
            ) from None


@dataclass(frozen=True)
class Denoiser:
    """D(x; sigma, context): a network and its recipe."""

    network: nn.Module
    recipe: Recipe
    meta: dict[str, Any]
    core_dtype: torch.dtype = torch.float32

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, position_mm: torch.Tensor | None) -> torch.Tensor:
        """(B, K, H, W) noisy x and (B, K) sigmas to the clean slices; `position_mm` (B,) of the last slice."""
        condition = None
        if self.recipe.position:
            assert position_mm is not None
            condition = position_condition(position_mm)
        denoised = denoise(self.network, x, sigma, condition, self.recipe.sigma_data, self.core_dtype)
        residual = self.recipe.residual
        return denoised if residual is None else residual(denoised, x, sigma)


def position_condition(position_mm: torch.Tensor) -> torch.Tensor:
    """Position of the window's last slice below the vertex, (B,) mm, as the network's scalar condition (B, 1)."""
    return (position_mm.float() / 100.0).unsqueeze(1)


def load_denoiser(path: Path, core_dtype: torch.dtype = torch.float32, device: str = "cpu") -> Denoiser:
    """A denoiser from a checkpoint file or a run folder."""
    network, meta = load_model(path, ("unet", "ncsnpp"))
    return Denoiser(network.to(device), Recipe.from_dict(meta["recipe"], path), meta, core_dtype)


def load_icnet(path: Path, device: str = "cpu") -> "ICNet":
    """An IC-Net from a checkpoint file or a run folder."""
    network, _ = load_model(path, ("icnet",))
    return network.to(device)  # type: ignore[return-value]
