"""What a run resumes from, RUN/state/: weights, averages and moments under flat names, and what makes it this run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from slicewise.errors import UserError
from slicewise.io.tensors import load_tensors, save_tensors
from slicewise.runtime import Process
from slicewise.training import ema
from slicewise.training.trainer import FREE, Trainer


def state_file(out: Path) -> Path:
    return out / "state" / "state.safetensors"


def identity(trainer: Trainer) -> dict[str, Any]:
    """What decides the bits of a run, as JSON has it: settings but for those that are free to change, and the heads in
    the order in which they were taken in."""
    free = FREE | trainer.free
    values = {name: value for name, value in asdict(trainer.settings).items() if name not in free}
    heads = [[record.id, record.sha256[:16]] for record in trainer.heads.records]
    return dict(json.loads(json.dumps({"settings": values, "heads": heads})))


def check_same(path: Path, held: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """`UserError` where a started run at `path` has another identity; names the first setting that differs."""
    for name, value in wanted["settings"].items():
        found = held.get("settings", {}).get(name)
        if found != value:
            raise UserError(
                f"{path}: the existing run's {name} is {found}, this one's is {value}; give another "
                "folder or the settings of that run"
            )
    if held["heads"] != wanted["heads"][: len(held["heads"])]:
        raise UserError(f"{path}: the existing run was trained on other data; give another folder or that run's store")


def pack(trainer: Trainer) -> dict[str, Tensor]:
    """Copies of all weights and buffers, averages and moments, under flat names."""
    tensors: dict[str, Tensor] = {}
    for name, network in trainer.networks.items():
        tensors |= {f"{name}.{key}": value for key, value in network.state_dict().items()}
        for key, parameter in network.named_parameters():
            for optimizer in trainer.optimizers:
                moments = optimizer.state.get(parameter, {})
                tensors |= {f"adam.{moment}.{name}.{key}": value for moment, value in moments.items()}
    if trainer.average is not None:
        named = trainer.networks[trainer.exported].named_parameters
        for number, averages in enumerate(trainer.average.averages):
            tensors |= {f"ema.{number}.{key}": value for (key, _), value in zip(named(), averages)}
    return {name: whole(tensor.detach()).clone() for name, tensor in tensors.items()}


@torch.no_grad()
def unpack(path: Path, trainer: Trainer, tensors: Mapping[str, Tensor]) -> None:
    """Take over what `pack` gave. A parameter that never had a gradient has no moments. Raises `UserError` where the
    tensors are of other networks."""
    for name, network in trainer.networks.items():
        for key, target in network.state_dict().items():
            source = tensors.get(f"{name}.{key}")
            if source is None or source.shape != target.shape:
                raise UserError(
                    f"{path}: the existing run has another network ({name}.{key}); give another folder or the settings "
                    "of that run"
                )
            copy(target, source)
        for optimizer in trainer.optimizers:
            held = {id(p) for group in optimizer.param_groups for p in group["params"]}
            for key, parameter in network.named_parameters():
                for moment in ("step", "exp_avg", "exp_avg_sq"):
                    source = tensors.get(f"adam.{moment}.{name}.{key}")
                    if source is None or id(parameter) not in held:
                        continue
                    target = torch.zeros_like(parameter) if moment != "step" else source.clone()
                    if moment == "step" and optimizer.defaults.get("fused"):
                        target = target.to(parameter.device)
                    optimizer.state[parameter][moment] = target
                    if moment != "step":
                        copy(target, source)
    if trainer.average is not None:
        named = trainer.networks[trainer.exported].named_parameters
        for number, averages in enumerate(trainer.average.averages):
            for (key, _), average in zip(named(), averages):
                copy(average, tensors[f"ema.{number}.{key}"])


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that FSDP may have sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that FSDP may have sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def copy(target: Tensor, source: Tensor) -> None:
    if isinstance(target, DTensor):
        source = distribute_tensor(source.to(target.device), target.device_mesh, target.placements)
    target.copy_(source)


def snapshot(trainer: Trainer, out: Path, process: Process, step: int) -> None:
    """Both averages in half precision, under the step."""
    assert trainer.average is not None
    named = trainer.networks[trainer.exported].named_parameters
    tensors = {
        f"{number}.{key}": whole(average).half()
        for number, averages in enumerate(trainer.average.averages)
        for (key, _), average in zip(named(), averages)
    }
    if process.is_main:
        save_tensors(snapshots(out) / f"{step:09d}.safetensors", tensors, {"step": step})


def snapshots(out: Path) -> Path:
    return out / "state" / "snapshots"


def reconstruct(files: Sequence[Path], width: float, names: Sequence[str], like: Sequence[Tensor]) -> list[Tensor]:
    """The average of one width after the last snapshot, from all of them."""
    steps, kept = [int(file.stem) for file in files], len(ema.KEPT)
    shares = ema.weights_of_snapshots(
        [step for step in steps for _ in range(kept)], ema.KEPT * len(files), steps[-1], width
    ).reshape(len(files), kept)
    total = [torch.zeros(target.shape, dtype=torch.float64) for target in like]
    for file, of_file in zip(files, shares):
        held = load_tensors(file)[0]
        for number, share in enumerate(of_file):
            for sum_, name in zip(total, names):
                sum_ += held[f"{number}.{name}"].double() * share
    made = [torch.empty_like(target) for target in like]
    for target, source in zip(made, total):
        copy(target, source.to(target.dtype))
    return made
