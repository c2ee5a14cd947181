"""The folder of a run: its log, what it ran on, and that one program alone writes into it."""

import contextlib
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import slicewise
from slicewise.errors import UserError, output_errors
from slicewise.io.atomic import write_whole
from slicewise.runtime import Process


@contextlib.contextmanager
def alone(out: Path, process: Process) -> Iterator[None]:
    """Holds the run folder, so that no two programs write into it; the lock goes with the process."""
    if not process.is_main:
        yield
        return
    try:
        import fcntl
    except ImportError:  # Windows: the user has to see to it
        yield
        return
    with output_errors(out), open(out / "state" / "lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{out}: another program is training here; wait until it ends, or give another folder"
            ) from None
        yield


def write_environment(out: Path) -> None:
    """`env.json` of a run folder: what the run ran on."""
    about = {
        "slicewise": slicewise.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    write_whole(out / "env.json", (json.dumps(about, indent=2) + "\n").encode())


class StatsLog:
    """`stats.jsonl`: one JSON object a line. Opening it for a resumed run drops lines after the step it resumes at."""

    def __init__(self, out: Path, resume_step: int = 0, tensorboard: bool = False) -> None:
        self.path = out / "stats.jsonl"
        if self.path.is_file():
            lines = [line for line in self.path.read_text().splitlines() if _step(line) <= resume_step]
            write_whole(self.path, "".join(f"{line}\n" for line in lines).encode())
        self.board = _tensorboard(out) if tensorboard else None

    def write(self, step: int, **values: Any) -> None:
        with output_errors(self.path), open(self.path, "a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self.board is not None:
            for name, value in values.items():
                if isinstance(value, float):
                    self.board.add_scalar(name, value, step)
                for row in value if isinstance(value, list) else ():
                    self.board.add_scalar(f"brain_rmse_hu/sigma_{row['sigma']}", row["brain_rmse_hu"], step)


def _step(line: str) -> float:
    try:
        return float(json.loads(line).get("step", 0))
    except ValueError:
        return float("inf")  # a line cut by a crash


def _tensorboard(out: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "RunSettings.tensorboard: TensorBoard is not installed; pip install 'slicewise[tensorboard]'"
        ) from None
    return SummaryWriter(out / "tensorboard")
