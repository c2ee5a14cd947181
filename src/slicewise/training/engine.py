"""What every training needs and no method does: device, processes, safe files, logs, stopping.

Nothing here knows of denoisers. Randomness of training is keyed by the step (see `diffusion.noise`), so the whole state
of a run is its step, its weights and its optimiser moments, and a resumed run continues bit for bit.
"""

import contextlib
import gc
import json
import os
import platform
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import slicewise
from slicewise.errors import UserError
from slicewise.io.tensors import write_atomically


@dataclass(frozen=True)
class Process:
    """This process among those that train together (torchrun sets them): its rank, their number, its device."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, total: int) -> range:
        """The part of range(total) that this process takes; contiguous, so that joining the parts gives the whole."""
        return range(total * self.rank // self.world, total * (self.rank + 1) // self.world)


@contextlib.contextmanager
def processes(device: str = "auto") -> Iterator[Process]:
    """Join the process group that torchrun describes (none without it), and leave it in order.

    With gloo, processes can abort at exit while a DDP wrapper is still alive, so the group is destroyed only after the
    caller's frames are gone and garbage is collected.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {device}: no CUDA device is available; use --device cpu")
    chosen = torch.device(f"cuda:{local}" if name == "cuda" else name)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world > 1:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Process(rank, world, chosen)
    finally:
        gc.collect()
        if world > 1 and dist.is_initialized():
            dist.destroy_process_group()


def core_dtype(device: torch.device, choice: str = "auto") -> torch.dtype:
    """dtype of the network core: bfloat16 where the device computes it natively (CUDA; CPUs with AVX-512 BF16 or AMX),
    else float32, since emulated bfloat16 is ten times slower. `choice` "float32" or "bfloat16" overrides."""
    if choice != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[choice]
    if device.type == "cuda":
        return torch.bfloat16
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # type: ignore[attr-defined]
    return torch.bfloat16 if native else torch.float32


class StatsLog:
    """`stats.jsonl`: one JSON object a line. Opening it for a resumed run drops lines after the step it resumes at."""

    def __init__(self, path: Path, resume_step: int = 0) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            lines = [line for line in path.read_text().splitlines() if _step(line) <= resume_step]
            write_atomically(path, "".join(f"{line}\n" for line in lines).encode())

    def write(self, **values: Any) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(values) + "\n")


def _step(line: str) -> float:
    try:
        return float(json.loads(line).get("step", 0))
    except ValueError:
        return float("inf")  # a line cut by a crash


class StopRequest:
    """Set by Ctrl-C or SIGTERM: the loop then saves and ends. A second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "StopRequest":
        self._old = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _handle(self, number: int, frame: Any) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


def any_process(flag: bool, process: Process) -> bool:
    """Whether `flag` is set in any process: all must take the same decision at the same step."""
    if process.world == 1:
        return flag
    value = torch.tensor([float(flag)], device=process.device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())


def mean_of_processes(value: float, process: Process) -> float:
    """The mean over all processes, which is what one process with the whole batch would have."""
    if process.world == 1:
        return value
    total = torch.tensor([value], dtype=torch.float64, device=process.device)
    dist.all_reduce(total)
    return float(total.item()) / process.world


def write_environment(out: Path) -> None:
    """`env.json` of a run folder: what the run ran on."""
    about = {
        "slicewise": slicewise.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    write_atomically(out / "env.json", (json.dumps(about, indent=2) + "\n").encode())
