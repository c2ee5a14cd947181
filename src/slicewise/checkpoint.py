"""A trained network on disk: one safetensors file and one JSON that says everything needed to use it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

import slicewise
from slicewise.diffusion.denoiser import Denoiser, Recipe
from slicewise.errors import UserError
from slicewise.io.folders import WEIGHTS
from slicewise.io.tensors import load_tensors, save_tensors

if TYPE_CHECKING:
    from slicewise.networks.icnet import ICNet

FORMAT = 1
DENOISERS = ("unet", "unet3d", "ncsnpp")


def build_network(kind: str, config: dict[str, Any]) -> nn.Module:
    """The raw network of a kind ("unet", "unet3d", "ncsnpp", "icnet") with the given settings."""
    settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
    if kind == "unet":
        from slicewise.networks.shapes import UNetConfig
        from slicewise.networks.unet import UNet

        return UNet(UNetConfig(**settings))
    if kind == "unet3d":
        from slicewise.networks.shapes import UNet3dConfig
        from slicewise.networks.unet3d import UNet3d

        return UNet3d(UNet3dConfig(**settings))
    if kind == "ncsnpp":
        from slicewise.networks.ncsnpp import NCSNpp
        from slicewise.networks.shapes import NCSNppConfig

        return NCSNpp(NCSNppConfig(**settings))
    if kind == "icnet":
        from slicewise.networks.icnet import ICNet
        from slicewise.networks.shapes import ICNetConfig

        return ICNet(ICNetConfig(**settings))
    raise UserError(f"network kind {kind!r} is not known; expected unet, unet3d, ncsnpp or icnet")


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
        with safe_open(weights_file(path), framework="pt") as file:
            return str(json.loads((file.metadata() or {})["slicewise"])["kind"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return ""


def load_model(
    path: Path,
    kinds: tuple[str, ...] = (*DENOISERS, "icnet"),
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
    return fitted(meta["kind"], meta["network"], tensors, path, build), meta


def fitted(
    kind: str,
    config: dict[str, Any],
    weights: dict[str, torch.Tensor],
    name: object,
    build: Callable[[str, dict[str, Any]], nn.Module] = build_network,
) -> nn.Module:
    """A network in eval mode with these weights; `UserError`, which calls it `name`, where they do not fit."""
    try:
        network = build(kind, config)
        network.load_state_dict(weights)
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{name}: weights do not fit the network it names ({reason}); it is from another version"
        ) from None
    return network.eval().to(memory_format=memory_format(network))  # type: ignore[call-overload, no-any-return]


def memory_format(network: nn.Module) -> torch.memory_format:
    """How a network's weights lie in memory: channels last, in two dimensions or three."""
    found: torch.memory_format = getattr(network, "memory_format", torch.channels_last)
    return found


def load_denoiser(path: Path, core_dtype: torch.dtype = torch.float32, device: str = "cpu") -> Denoiser:
    """A denoiser from a checkpoint file or a run folder."""
    network, meta = load_model(path, DENOISERS)
    return Denoiser(network.to(device), Recipe.from_dict(meta["recipe"], path), meta, core_dtype)


def load_icnet(path: Path, device: str = "cpu") -> "ICNet":
    """An IC-Net from a checkpoint file or a run folder."""
    network, _ = load_model(path, ("icnet",))
    return network.to(device)  # type: ignore[return-value]
