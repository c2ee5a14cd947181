"""State of a run that trains several networks: what must be the same to go on, and all tensors under flat names."""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slicewise.data.store import Store
from slicewise.errors import UserError


def identity(settings: Any, free: Collection[str], store: Store) -> dict[str, Any]:
    """What decides the bits of a run, as JSON has it: settings but for those that are `free` to change, and data."""
    values = {name: value for name, value in asdict(settings).items() if name not in free}
    return dict(json.loads(json.dumps({"settings": values, "data": store.fingerprint})))


def check_same(path: Path, held: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """`UserError` where a started run at `path` has another identity; names the first setting that differs."""
    for name, value in wanted["settings"].items():
        found = held.get("settings", {}).get(name)
        if found != value:
            raise UserError(
                f"{path}: the started run's --{name.replace('_', '-')} is {found}, this one's is {value}; give another "
                "--out or the settings of that run"
            )
    if held.get("data") != wanted["data"]:
        raise UserError(f"{path}: the started run was trained on other data; give another --out or that run's store")


def pack(modules: Mapping[str, nn.Module], adams: Mapping[str, torch.optim.Adam]) -> dict[str, torch.Tensor]:
    """Copies of all weights and buffers, and of the moments of the optimiser of the same name."""
    tensors = {f"{n}.{key}": value for n, module in modules.items() for key, value in module.state_dict().items()}
    for name, adam in adams.items():
        for key, parameter in modules[name].named_parameters():
            tensors |= {f"adam.{name}.{moment}.{key}": value for moment, value in adam.state[parameter].items()}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@torch.no_grad()
def unpack(
    tensors: Mapping[str, torch.Tensor], modules: Mapping[str, nn.Module], adams: Mapping[str, torch.optim.Adam]
) -> None:
    """Take over what `pack` gave. A parameter that never had a gradient has no moments."""
    for name, module in modules.items():
        module.load_state_dict({key: tensors[f"{name}.{key}"] for key in module.state_dict()})
    for name, adam in adams.items():
        for key, parameter in modules[name].named_parameters():
            for moment in ("step", "exp_avg", "exp_avg_sq"):
                held = tensors.get(f"adam.{name}.{moment}.{key}")
                if held is not None:
                    # The step counts on the CPU.
                    adam.state[parameter][moment] = held.clone().to("cpu" if moment == "step" else parameter.device)


def finite(*modules: nn.Module) -> bool:
    """Whether every weight is a finite number."""
    return all(bool(p.isfinite().all()) for module in modules for p in module.parameters())
