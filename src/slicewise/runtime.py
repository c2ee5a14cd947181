"""Where a program computes: its processes, its device, its threads, and the dtype of a network's core."""

import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from slicewise.errors import UserError

# Exit status of a command that was stopped by Ctrl-C.
STOPPED = 130
_PARENT = "SLICEWISE_PARENT"
# Set when this process is stopping already, asked to or told so by another, so that it is not asked again.
ending = threading.Event()


@dataclass(frozen=True)
class Process:
    """This process among those that work together (torchrun sets them): its rank, their number, its device, and the
    group in which they agree on numbers of the host without waiting for a GPU."""

    rank: int
    world: int
    device: torch.device
    control: Any = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, total: int) -> range:
        """The part of range(total) that this process takes; contiguous, so that joining the parts gives the whole."""
        return range(total * self.rank // self.world, total * (self.rank + 1) // self.world)

    def agree(self, *values: float) -> tuple[float, ...]:
        """The largest of each value over all processes: all then take the same decision."""
        if self.world == 1:
            return values
        together = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(together, op=dist.ReduceOp.MAX, group=self.control)
        return tuple(together.tolist())

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean over all processes, which is what one process with the whole batch would have."""
        if self.world == 1:
            return value
        total = value.detach().double()
        dist.all_reduce(total)
        return total / self.world

    def tell(self, value: Any) -> Any:
        """The first process's value, in all of them."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, group=self.control)
        return box[0]

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier(group=self.control)


ALONE = Process(0, 1, torch.device("cpu"))


@contextlib.contextmanager
def processes(device: str = "auto") -> Iterator[Process]:
    """Join the process group that torchrun describes (none without it), and leave it in order.

    With gloo, processes can abort at exit while a DDP wrapper is still alive, so the group is destroyed only after the
    caller's frames are gone and garbage is collected. Raises `UserError` for a device that is not there.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device={device}: no CUDA device is available; use device=cpu")
    chosen = torch.device(f"cuda:{local}" if name == "cuda" else name)
    control = None
    if _PARENT in os.environ:
        threading.Thread(target=_stop_with_parent, daemon=True).start()
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        # TF32 has half a HU in its last place: what is to be float32 is float32.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if world > 1:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        control = dist.new_group(backend="gloo")
    try:
        yield Process(rank, world, chosen, control)
    finally:
        if chosen.type == "cuda":
            torch.cuda.synchronize()
        gc.collect()
        if world > 1 and dist.is_initialized():
            dist.destroy_process_group()


def processors() -> int:
    """Processors that this program may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processes_for(batch: int, device: str) -> int:
    """How many processes of one thread train fastest on this machine's processors: one for each that OMP_NUM_THREADS
    leaves (all, unless it is set) as long as each has four samples of the batch or more; one where a GPU trains or
    torchrun has started this process."""
    if "WORLD_SIZE" in os.environ or not (device == "cpu" or (device == "auto" and not torch.cuda.is_available())):
        return 1
    most = int(os.environ.get("OMP_NUM_THREADS") or processors())
    return max(n for n in range(1, max(1, most) + 1) if n == 1 or (batch % n == 0 and batch // n >= 4))


def run_processes(count: int, arguments: Sequence[str]) -> int:
    """Run `python -m slicewise ARGUMENTS` in `count` processes of one thread each on this machine, as torchrun would,
    and return the exit status. Two processes of one thread train faster than one of two threads: most of a network's
    layers are too small to share. Signals are passed on; where one process fails the others are stopped.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "slicewise", *arguments]
    with tempfile.TemporaryFile() as aside:  # what the others say, which is mostly what the first says too
        started = [
            subprocess.Popen(
                command,
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), _PARENT: str(os.getpid())},
                stderr=aside if rank else None,
                start_new_session=True,  # Ctrl-C reaches them through their parent alone, once
            )
            for rank in range(count)
        ]

        def pass_on(number: int, frame: Any) -> None:
            for process in started:
                if process.poll() is None:
                    process.send_signal(number)

        old = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            status = _wait_for_all(started)
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
        if status and started[0].returncode <= 0:
            aside.seek(0)
            sys.stderr.write(aside.read().decode(errors="replace"))
        return status


def _wait_for_all(started: Sequence["subprocess.Popen[bytes]"]) -> int:
    """Exit status of processes that belong together: that of the first that failed, else zero. The others wait in vain
    for the one that is gone, and are killed; those that were told to stop save first."""
    while any(process.poll() is None for process in started):
        failed = [process.returncode for process in started if process.returncode]
        if failed and failed[0] != STOPPED:
            for process in started:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                process.kill()
            return int(failed[0])
        time.sleep(0.1)
    return next((process.returncode for process in started if process.returncode), 0)


def _stop_with_parent() -> None:
    """Ask this process to stop, as Ctrl-C would, when the one that started it is gone."""
    parent = int(os.environ[_PARENT])
    while os.getppid() == parent:
        time.sleep(1)
    if not ending.is_set():
        os.kill(os.getpid(), signal.SIGTERM)


def core_dtype(device: torch.device, choice: str = "auto") -> torch.dtype:
    """dtype of the network core: bfloat16 where the device computes it natively (CUDA; CPUs with AVX-512 BF16 or AMX),
    else float32, since emulated bfloat16 is ten times slower. `choice` "float32" or "bfloat16" overrides."""
    if choice != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[choice]
    if device.type == "cuda":
        return torch.bfloat16
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def free_memory(device: torch.device) -> int:
    """Bytes of memory that are free on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def threads_alone(count: int) -> Iterator[Executor]:
    """`count` threads in which torch uses one processor each and keeps no gradients. Meanwhile the caller leaves its
    own work to them."""
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(count, initializer=_compute_alone) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)  # the last call counts for threads that are yet to come


def _compute_alone() -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
