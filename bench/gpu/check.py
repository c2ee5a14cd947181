"""Does everything compute on this GPU what it computes on the CPU, and how fast is it?

    python bench/gpu/check.py [--seconds 160] [--device auto]

Correctness: random numbers, batches, denoiser, IC-Net, NCSN++ and samplers against float32 on the CPU; the errors are
stated, in HU where there are such, for the float32 and the bfloat16 core. Speed: training and generation at several
sizes, in batches as large as the memory allows, the paper's own network at 512 pixels, and what torch.compile gains and
takes; beside the peak of bfloat16 matrix products and of copying that are measured first. Each part has its own share
of the time and stops between two rows when it is over; at the end of all of it what there is is printed, whatever is in
work. Writes table.md and results.json under `--out` ($OUT, or runs/gpu-check).

FLOP are those of torch.utils.flop_counter over a whole training step (convolutions, linear layers and attention,
forward and backward), two for a multiply-add. Bytes are an estimate from below: every convolution and linear layer
reads its input and writes its output once forward and twice backward, in the core's dtype, and a step moves 40 bytes a
parameter (gradient, Adam, a quarter of two averages). Norms and activations in between come on top where they are not
fused.
"""

import argparse
import copy
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from heads import store_toy
from release import TOY
from table import command, device_of, finish, machine, out_folder
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from slicewise.ascii import chain
from slicewise.checkpoint import load_icnet
from slicewise.data.store import Store, open_store
from slicewise.data.windows import training_windows, uncut
from slicewise.diffusion.denoiser import Denoiser
from slicewise.diffusion.samplers import nfe
from slicewise.errors import UserError
from slicewise.hu import AIR_HU
from slicewise.networks.icnet import ICNet
from slicewise.networks.ncsnpp import NCSNpp
from slicewise.networks.shapes import ICNetConfig, NCSNppConfig, UNet3dConfig
from slicewise.networks.unet3d import UNet3d, fit_gaussian
from slicewise.random import TRAIN_NOISE, Draws
from slicewise.release import ICNET
from slicewise.runtime import Process, core_dtype
from slicewise.sampling import ChainSettings
from slicewise.settings import fill, preset
from slicewise.training.denoiser import Batches, DenoiserTrainer
from slicewise.training.settings import DenoiserTraining

CPU = torch.device("cpu")
# Slices that a volume is counted as.
SLICES = 32
# Bytes that the optimiser and the averages move for a parameter and step.
STATE_BYTES = 40
BYTES = {torch.bfloat16: 2, torch.float32: 4}

Rows = Iterator[tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class Effort:
    """How much is measured: seconds of one measurement; sides of the matrices; of copying, megabytes; (name, preset,
    pixels, training batches, generation batches) of what is timed; pixels and noise levels of what is compared."""

    seconds: float
    matrix: int
    copy_mb: int
    timed: tuple[tuple[str, str, int, tuple[int, ...], tuple[int, ...]], ...]
    size: int
    steps: int


FULL = Effort(
    seconds=1.5,
    matrix=8192,
    copy_mb=2048,
    timed=(
        ("head-128", "head-128", 128, (16, 64, 256, 1024), (8, 32, 128)),
        ("head-256", "head-256", 256, (8, 32, 128), (8, 32)),
        ("head-256 at 512", "head-256", 512, (4, 16, 64), (4, 16)),
        ("paper-512", "paper-512", 512, (2, 8, 32), ()),
    ),
    size=128,
    steps=10,
)
SHORT = Effort(0.05, 256, 8, (("toy", "tiny-64", 32, (2, 4), (2,)),), 32, 3)


class Check:
    """The parts, on one device; every part yields its rows as it has them."""

    def __init__(self, device: torch.device, effort: Effort, work: Path, short: bool) -> None:
        self.device, self.effort, self.work, self.short = device, effort, work, short
        self.core = core_dtype(device)
        self.peak_flops = self.peak_bytes = float("nan")

    def parts(self) -> list[tuple[str, float, Callable[[], Rows]]]:
        """Title, seconds and rows of each."""
        parts: list[tuple[str, float, Callable[[], Rows]]] = [
            ("Peak", 10, self.peak),
            ("Random numbers and batches against the CPU", 10, self.same_numbers),
            ("Networks against float32 on the CPU", 25, self.same_networks),
            ("Samplers against float32 on the CPU, first slices of a chain", 25, self.same_samplers),
        ]
        for name, *about in self.effort.timed:
            parts.append((f"Training, {name}", 14, lambda about=about: self.training(*about[:3])))  # type: ignore[misc]
            if about[3]:
                parts.append((f"Generation, {name}", 14, lambda about=about: self.generation(*about)))  # type: ignore[misc]
        if self.device.type == "cuda":
            parts.append(("torch.compile, head-128", 90, self.compiled))
        return parts

    # --- Peak ---

    def peak(self) -> Rows:
        n = self.effort.matrix
        for dtype in (torch.bfloat16, torch.float32):
            a, b = (torch.randn(n, n, device=self.device).to(dtype) for _ in range(2))
            flops = 2 * n**3 / self.seconds_of(lambda a=a, b=b: a @ b)  # type: ignore[misc]
            if dtype == self.core:
                self.peak_flops = flops
            yield f"matrix product, {_name(dtype)}, {n} x {n}", {"TFLOP/s": flops / 1e12}
            c = 128 if n > 1000 else 16
            x = torch.randn(n // 128, c, 64, 64, device=self.device, dtype=dtype).to(memory_format=torch.channels_last)
            w = torch.randn(c, c, 3, 3, device=self.device, dtype=dtype).to(memory_format=torch.channels_last)
            seconds = self.seconds_of(lambda x=x, w=w: nn.functional.conv2d(x, w, padding=1))  # type: ignore[misc]
            flops = 2 * 9 * c * c * x.shape[0] * 64**2
            yield f"3 x 3 convolution, {_name(dtype)}, {c} channels", {"TFLOP/s": flops / seconds / 1e12}
        x = torch.zeros(self.effort.copy_mb * 250_000, device=self.device)
        y = torch.empty_like(x)
        self.peak_bytes = 2 * 4 * x.numel() / self.seconds_of(lambda: y.copy_(x))
        yield "copy, reading and writing", {"GB/s": self.peak_bytes / 1e9}

    # --- The same as on the CPU ---

    def same_numbers(self) -> Rows:
        count = 100_001 if self.device.type == "cuda" else 1001

        def both(draw: Callable[[Draws], Tensor]) -> tuple[Tensor, Tensor]:
            made = (Draws(2**40 + 7, range(5), 3, 11, TRAIN_NOISE, device) for device in (CPU, self.device))
            here, there = (draw(draws).cpu() for draws in made)
            return here, there

        for name, draw in (
            ("Philox words", lambda d: d.words(count)),
            ("uniform", lambda d: d.uniform(count)),
            ("dither", lambda d: d.dither(count)),
            ("whole numbers", lambda d: d.integers(1000, count)),
            ("normal", lambda d: d.normal(count)),
        ):
            here, there = both(draw)
            difference = float((here.double() - there.double()).abs().max())
            yield name, {"equal": "yes" if torch.equal(here, there) else "no", "largest difference": difference}
        store, settings = self.store(self.effort.size), self.settings("head-128")
        batches = [
            Batches(training_windows(store, "train", settings.slices, device), settings, range(4)).make(5)
            for device in (CPU, self.device)
        ]
        hu = [settings.scale.decode(batch["clean"].cpu().numpy()) for batch in batches]
        yield "batch, clean, HU", {"largest difference": float(np.abs(hu[0] - hu[1]).max())}
        noise, sigma = ([batch[name].cpu().double() for batch in batches] for name in ("noise", "sigma"))
        yield "batch, noise", {"largest difference": float((noise[0] - noise[1]).abs().max())}
        yield "batch, sigma", {"largest difference": float((sigma[0] - sigma[1]).abs().max())}

    def same_networks(self) -> Rows:
        denoiser = self.denoiser()
        store = self.store(denoiser.recipe.size)
        k, scale = denoiser.recipe.slices, denoiser.recipe.scale
        windows = training_windows(store, "train", k)
        numbers = torch.tensor([6, 9])
        hu = windows.heads.cut(uncut(windows.heads, windows.rows(numbers)))
        clean, position = torch.from_numpy(scale.encode(hu.numpy())).double(), windows.position(numbers)
        noise = Draws(0, range(2), 0, 0, TRAIN_NOISE).normal(clean[0].numel()).view_as(clean)
        head, brain = hu[:, -1].numpy() > AIR_HU, np.abs(hu[:, -1].numpy() - 30) <= 30
        levels = (0.01, 0.1, 1.0)

        def denoised(how: Denoiser, device: torch.device) -> list[np.ndarray]:
            made = []
            for level in levels:
                sigma = torch.full((2, k), level, dtype=torch.float64)
                with torch.no_grad():
                    x = (clean + level * noise).to(device)
                    made.append(how(x, sigma.to(device), position.to(device))[:, -1].cpu().numpy())
            return made

        expected = denoised(denoiser, CPU)
        for name, one, device in self.ways(denoiser):
            row: dict[str, Any] = {}
            for level, want, got in zip(levels, expected, denoised(one, device)):
                error = scale.decode(got) - scale.decode(want)
                row[f"σ {level:g}: relative"] = float(np.linalg.norm(got - want) / np.linalg.norm(want))
                row[f"σ {level:g}: RMS in the head, HU"] = _rms(error[head])
                row[f"σ {level:g}: in the brain, HU"] = _rms(error[brain])
            yield f"denoiser, {name}", row
        yield from self.same_others()

    def same_others(self) -> Rows:
        """IC-Net, a small NCSN++ and a small network of whole heads: relative error, of IC-Net in HU too."""
        size = self.effort.size
        torch.manual_seed(0)
        try:
            icnet = load_icnet(ICNET)
        except UserError:
            icnet = ICNet(ICNetConfig()).eval()
        x = torch.rand(2, 2, size, size) * 2 - 1
        paper = NCSNpp(NCSNppConfig(channels=16, multipliers=(1, 2), blocks=1, attention=(size // 2,), image_size=size,
                                    in_channels=2, out_channels=2, slices=2, condition=0)).eval()  # fmt: skip
        shape = UNet3dConfig(channels=(16, 32), blocks=(1, 1), attention=(False, True), size=size, modes=8)
        whole = UNet3d(shape).eval()
        whole.gaussian(fit_gaussian(torch.randn(12, 40, size, size), 8), 1.0)
        for network in (paper, whole):
            _wake(network)
        heads = torch.randn(2, 40, size, size)
        for name, network, arguments in (
            ("IC-Net", icnet, (x,)),
            ("NCSN++, small", paper, (x, torch.zeros(2, 2), None)),
            ("U-Net of whole heads, small", whole, (heads, torch.zeros(2, 40))),
        ):
            with torch.no_grad():
                want = _joined(network(*arguments))
                network.to(self.device)
                on_device = [t.to(self.device) if t is not None else None for t in arguments]
                for exact in (True, False):
                    with _exact(exact):
                        got = _joined(network(*on_device)).cpu()
                    row: dict[str, Any] = {"relative": float((got - want).norm() / want.norm())}
                    if name == "IC-Net":
                        row["largest, HU"] = 150 * float((got - want).abs().max())
                    yield f"{name}, {self.device.type} float32{'' if exact else ', as set'}", row

    def same_samplers(self) -> Rows:
        denoiser = self.denoiser()
        for sampler in ("dpmpp_2m", "dpmpp_2m_sde", "heun", "pc"):
            settings = ChainSettings(sampler=sampler, steps=self.effort.steps, slices=2)  # type: ignore[arg-type]
            want = _first_slices(denoiser, settings, CPU)
            for name, one, device in self.ways(denoiser):
                got = _first_slices(one, settings, device)
                error = (got.astype(float) - want)[want > AIR_HU] if (want > AIR_HU).any() else got.astype(float) - want
                yield (
                    f"{sampler}, {settings.steps} levels, {name}",
                    {
                        "RMS in the head, HU": _rms(error),
                        "within 1 HU": float((np.abs(error) <= 1).mean()),
                    },
                )

    def ways(self, denoiser: Denoiser) -> Iterator[tuple[str, Denoiser, torch.device]]:
        """The denoiser in every way that it may be computed here, and where."""
        kind = self.device.type
        there = replace(denoiser, network=copy.deepcopy(denoiser.network).to(self.device))
        with _exact(True):
            yield f"{kind} float32", there, self.device
        if kind == "cuda":
            yield "cuda float32, as set", there, self.device
        yield f"{kind} bfloat16", replace(there, core_dtype=torch.bfloat16), self.device

    # --- Speed ---

    def training(self, name: str, size: int, batches: Sequence[int]) -> Rows:
        trainer = self.trainer(name, size, "off")
        for batch in batches:
            try:
                yield f"batch {batch}", self.training_row(trainer, batch)
            except (UserError, torch.OutOfMemoryError) as error:
                yield f"batch {batch}", {"windows/s": "does not fit", "why": str(error).splitlines()[0][:120]}
                return

    def training_row(self, trainer: DenoiserTrainer, batch: int) -> dict[str, Any]:
        """Speed of one batch size; the first step, which is not timed, is counted."""
        self.set_batch(trainer, batch)
        self.reset_memory()
        with FlopCounterMode(display=False) as counter:
            trainer.step(0)
        flops, step = counter.get_total_flops(), iter(range(1, 10**9))
        seconds = self.seconds_of(lambda: trainer.step(next(step)))
        bytes_ = batch * self.bytes_of_window(trainer) + STATE_BYTES * sum(p.numel() for p in trainer.parameters)
        return {
            "windows/s": batch / seconds,
            "ms a step": 1e3 * seconds,
            "GFLOP a window": flops / batch / 1e9,
            "TFLOP/s": flops / seconds / 1e12,
            "of the peak": flops / seconds / self.peak_flops,
            "GB/s, at least": bytes_ / seconds / 1e9,
            "of copying": bytes_ / seconds / self.peak_bytes,
            "peak memory, GB": self.memory(),
        }

    def generation(self, name: str, size: int, _: Sequence[int], batches: Sequence[int]) -> Rows:
        trainer = self.trainer(name, size, "off")
        denoiser = replace(trainer.denoiser(), network=trainer.objective.network.eval())
        settings = ChainSettings(slices=4 if not self.short else 3)
        for batch in batches:
            self.reset_memory()
            marks = []
            try:
                for _slices in chain(denoiser, settings, 0, range(batch), device=str(self.device)):
                    self.wait()
                    marks.append(time.perf_counter())
            except torch.OutOfMemoryError as error:
                yield f"batch {batch}", {"volumes/s": "does not fit", "why": str(error).splitlines()[0][:120]}
                return
            seconds = (marks[-1] - marks[0]) / (len(marks) - 1)  # the first slice records the graph
            evaluations = nfe(settings.sampler_of(denoiser.recipe), settings.steps)
            yield (
                f"batch {batch}",
                {
                    "volumes/s": batch / (SLICES * seconds),
                    "s a slice of all": seconds,
                    "ms an evaluation": 1e3 * seconds / evaluations,
                    "TFLOP/s": batch * evaluations * self.flops_of_window(denoiser) / seconds / 1e12,
                    "peak memory, GB": self.memory(),
                },
            )

    def compiled(self) -> Rows:
        trainer, batch = self.trainer("head-128", 128, "on"), 64
        self.set_batch(trainer, batch)
        self.reset_memory()
        began = time.perf_counter()
        trainer.step(0)
        self.wait()
        yield "first step, with compiling", {"s": time.perf_counter() - began}
        step = iter(range(1, 10**9))
        seconds = self.seconds_of(lambda: trainer.step(next(step)))
        yield f"batch {batch}", {"windows/s": batch / seconds, "peak memory, GB": self.memory()}

    # --- Parts of parts ---

    def settings(self, name: str) -> DenoiserTraining:
        base = fill(DenoiserTraining(), preset("train", "tiny-64" if self.short else name), name)
        base = replace(base, unet=TOY, crop=(0, 0)) if self.short else base
        return replace(base, validation_windows=2)

    def trainer(self, name: str, size: int, compile_: str) -> DenoiserTrainer:
        settings = replace(self.settings(name), compile=compile_, batch=16)  # type: ignore[arg-type]
        if not self.short:  # a preset's crop, for slices of another size
            times = size // int(preset("prepare", name)["size"])
            settings = replace(settings, crop=(times * settings.crop[0], times * settings.crop[1]))
        process = Process(0, 1, self.device)
        return DenoiserTrainer(self.store(size), self.work / "run", settings, None, process)

    def set_batch(self, trainer: DenoiserTrainer, batch: int) -> None:
        """Another batch for a trainer; what it had planned for the old one is dropped."""
        trainer.batches = replace(trainer.batches, share=range(batch))
        trainer.micro, trainer.ahead = batch, None

    def store(self, size: int) -> Store:
        """Three heads to train on and one to validate on; what they show does not matter."""
        folder = self.work / f"heads-{size}"
        if not folder.is_dir():
            for seed in range(4):
                store_toy(folder, size, ("val", "train", "train", "train"), seed)
        return open_store(folder)

    def denoiser(self) -> Denoiser:
        """A denoiser with random weights, on the CPU."""
        trainer = DenoiserTrainer(
            self.store(self.effort.size), self.work / "run", replace(self.settings("head-128"), compile="off"), None,
            Process(0, 1, CPU),
        )  # fmt: skip
        _wake(trainer.objective.network)
        return replace(trainer.denoiser(), network=trainer.objective.network.eval(), core_dtype=torch.float32)

    def bytes_of_window(self, trainer: DenoiserTrainer) -> float:
        """See the head of the file; of one window of the training's own shape."""
        moved: list[int] = []

        def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
            moved.append(inputs[0].numel() + output.numel())

        layers = [m for m in trainer.objective.network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        hooks = [layer.register_forward_hook(count) for layer in layers]
        kept, trainer.batches = trainer.batches, replace(trainer.batches, share=range(1))
        micro, trainer.micro, trainer.ahead = trainer.micro, 1, None
        trainer.step(0)
        trainer.batches, trainer.micro, trainer.ahead = kept, micro, None
        for hook in hooks:
            hook.remove()
        return 3.0 * BYTES[trainer.core] * sum(moved)

    def flops_of_window(self, denoiser: Denoiser) -> int:
        """FLOP of one evaluation of one whole window."""
        r = denoiser.recipe
        x = torch.zeros(1, r.slices, r.size, r.size, device=self.device)
        sigma = torch.ones(1, r.slices, dtype=torch.float64, device=self.device)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            denoiser(x, sigma, torch.zeros(1, device=self.device))
        return int(counter.get_total_flops())

    def seconds_of(self, work: Callable[[], Any]) -> float:
        """Seconds of a call: the mean of as many as fit into the effort, between two waits for the device."""
        for _ in range(2):
            work()
        self.wait()
        began = time.perf_counter()
        work()
        self.wait()
        count = max(1, min(1000, int(self.effort.seconds / (time.perf_counter() - began))))
        began = time.perf_counter()
        for _ in range(count):
            work()
        self.wait()
        return (time.perf_counter() - began) / count

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def reset_memory(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def memory(self) -> float | None:
        return torch.cuda.max_memory_allocated(self.device) / 1e9 if self.device.type == "cuda" else None


class _exact:
    """Float32 products of all 24 bits for as long as this lasts, where `really`; cuDNN takes 11 of them otherwise."""

    def __init__(self, really: bool) -> None:
        self.really = really

    def __enter__(self) -> None:
        self.before = torch.backends.cudnn.allow_tf32
        if self.really:
            torch.backends.cudnn.allow_tf32 = False

    def __exit__(self, *exc: object) -> None:
        torch.backends.cudnn.allow_tf32 = self.before


def _wake(network: nn.Module) -> None:
    """Give layers that begin at zero, and would hide all before them, some weight."""
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)


def _joined(answer: Any) -> torch.Tensor:
    """All that a network answers as one tensor."""
    return answer if isinstance(answer, torch.Tensor) else torch.cat(list(answer))


def _first_slices(denoiser: Denoiser, settings: ChainSettings, device: torch.device) -> np.ndarray:
    return np.stack(list(chain(denoiser, settings, 0, [0, 1], device=str(device))))


def _rms(error: np.ndarray) -> float:
    return float(np.sqrt(np.mean(error**2))) if error.size else float("nan")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=160.0, help="for everything, with start")
    parser.add_argument("--out", type=Path, default=out_folder("check"), help="table and numbers")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--short", action="store_true", help="seconds on one processor: shows that it runs")
    a = parser.parse_args(argv)
    began, device = time.monotonic(), device_of(a.device)
    sections: dict[str, dict[str, dict[str, Any]]] = {}
    once = threading.Lock()

    def last(note: str) -> None:
        """The table, once."""
        if once.acquire(blocking=False):
            about = {"machine": machine(device), "seconds": time.monotonic() - began, "note": note}
            finish(a.out, about, {title: dict(rows) for title, rows in sections.items()})

    def give_up() -> None:
        last("the time was over before all parts were done")
        sys.stdout.flush()
        os._exit(0)

    watch = threading.Timer(a.seconds, give_up)
    watch.daemon = True
    watch.start()
    with tempfile.TemporaryDirectory() as folder:
        check = Check(device, SHORT if a.short else FULL, Path(folder), a.short)
        for title, seconds, part in check.parts():
            measure(title, part, min(time.monotonic() + seconds, began + a.seconds), sections.setdefault(title, {}))
        watch.cancel()
        last("")


def measure(title: str, part: Callable[[], Rows], until: float, rows: dict[str, dict[str, Any]]) -> None:
    """Take the rows of a part until its time is over; what goes wrong in it is a row."""
    began = time.monotonic()
    try:
        for name, row in part():
            rows[name] = row
            if time.monotonic() > until:
                rows["(time over)"] = {}
                break
    except Exception as error:  # whatever a part meets, the others are to be seen
        rows["(failed)"] = {"why": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".replace("|", "/")}
    print(f"{title}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    command(main)
