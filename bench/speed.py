"""Speed and memory: training, generation and diffusers' ScoreSdeVe pipeline on one network, against the machine's peak.

    python bench/speed.py [--preset head-128] [--quick] [--out table.md]

Every part runs in a process of its own, one after the other, so that its peak memory (ru_maxrss) is its own and nothing
competes. Speed does not hang on weights, so an untrained network of the preset is used; training is the real program on
a small store. FLOPs are those of convolutions, linear layers and attention (torch.utils.flop_counter), two for a
multiply-add; a training step counts three times its forward pass. The peak is the fastest of several 3x3 convolutions
in channels_last, in the same number format as the network core. Prints Markdown.

diffusers' pipeline is given the same network (its score is made from the denoiser) and the same number of evaluations;
it draws all K = 3 slices of a window at once, unconditionally, since it knows no neighbours. Its line holds what the
library's loop costs on top of the network.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from slicewise.errors import UserError

BATCHES = (1, 4, 8)
# (batch, channels, pixels per side) of the 3x3 convolutions that look for the peak.
SHAPES = ((4, 64, 64), (4, 128, 64), (8, 96, 32), (8, 128, 32), (8, 160, 16), (4, 256, 32), (16, 256, 16))
QUICK_SHAPES = ((4, 64, 32), (4, 128, 16))


@dataclass(frozen=True)
class Effort:
    """How much to measure: seconds for each convolution, training steps (a multiple of 20), slices a chain."""

    seconds: float
    train_steps: int
    slices: int
    batches: tuple[int, ...]
    shapes: tuple[tuple[int, int, int], ...]


FULL = Effort(1.0, 60, 4, BATCHES, SHAPES)
QUICK = Effort(0.1, 40, 2, (1, 2), QUICK_SHAPES)


# --- Parts: each runs in its own process and returns plain numbers ---------------------------------------------------


def preset_training(preset: str) -> Any:
    from slicewise.settings import fill
    from slicewise.settings import preset as read_preset
    from slicewise.training.settings import DenoiserTraining

    return fill(DenoiserTraining(), read_preset("train", preset), f"--preset {preset}")


def preset_size(preset: str) -> int:
    from slicewise.settings import preset as read_preset

    return int(read_preset("prepare", preset)["size"])


def make_denoiser(preset: str) -> Any:
    """The preset's network, untrained, as a denoiser in the number format that this machine takes."""
    import torch

    from slicewise.checkpoint import build_network
    from slicewise.diffusion.denoiser import Denoiser, Recipe
    from slicewise.runtime import core_dtype
    from slicewise.training.denoiser import network_config

    s, size = preset_training(preset), preset_size(preset)
    torch.manual_seed(0)
    network = build_network(s.network, network_config(s, size)).eval().to(memory_format=torch.channels_last)
    recipe = Recipe(
        slices=s.slices,
        joint=s.task.joint,
        size=size,
        spacing_mm=(5.0, 240.0 / size, 240.0 / size),
        scale=s.scale,
        sigma_data=0.8,
        sigma_min=s.sigma.sigma_min,
        sigma_max=s.sigma.sigma_max,
        position=s.position,
        min_slices=28,
        max_slices=36,
    )
    return Denoiser(network, recipe, {}, core_dtype(torch.device("cpu"), s.core))


def flops_of(denoiser: Any) -> int:
    """FLOPs of one evaluation of one window."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    r = denoiser.recipe
    x, sigma = torch.zeros(1, r.slices, r.size, r.size), torch.ones(1, r.slices, dtype=torch.float64)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        denoiser(x, sigma, torch.zeros(1))
    return int(counter.get_total_flops())


def part_idle(preset: str, effort: Effort) -> dict[str, Any]:
    """What the interpreter, torch and the network's weights take by themselves."""
    import torch

    denoiser = make_denoiser(preset)
    return {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "core": str(denoiser.core_dtype).removeprefix("torch."),
        "flops": flops_of(denoiser),
        "parameters": sum(p.numel() for p in denoiser.network.parameters()),
    }


def best_time(run: Callable[[], Any], seconds: float) -> float:
    """Shortest time of a call within about `seconds`, after two calls to warm up."""
    run()
    run()
    best, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < seconds:
        before = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - before)
    return best


def part_peak(preset: str, effort: Effort) -> dict[str, Any]:
    """Best GFLOP/s of 3x3 convolutions, forward and forward with both gradients, in the core's format and float32."""
    import torch
    from torch.nn import functional as F

    core = make_denoiser(preset).core_dtype
    found: dict[str, Any] = {}
    for dtype in dict.fromkeys((core, torch.float32)):
        forward, both = [], []
        for b, c, n in effort.shapes:
            x = torch.randn(b, c, n, n).to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
            w = torch.randn(c, c, 3, 3).to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
            g = torch.ones_like(x)
            flops = 2.0 * b * n * n * c * c * 9

            def convolve(x: Any = x, w: Any = w) -> Any:
                with torch.no_grad():
                    return F.conv2d(x, w, padding=1)

            def train(x: Any = x, w: Any = w, g: Any = g) -> Any:
                return torch.autograd.grad(F.conv2d(x, w, padding=1), (x, w), g)

            shape = f"{b} x {c} x {n}²"
            forward.append((flops / best_time(convolve, effort.seconds) / 1e9, shape))
            both.append((3 * flops / best_time(train, effort.seconds) / 1e9, shape))
        found[str(dtype).removeprefix("torch.")] = {"forward": max(forward), "both": max(both)}
    return found


def part_train(preset: str, effort: Effort) -> dict[str, Any]:
    """Images/s of `slicewise train` on a small store, between the logged steps: start-up and first step left out."""
    from slicewise.data.store import open_store, put_volume
    from slicewise.training.denoiser import train_denoiser
    from slicewise.volume import Volume

    settings = replace(preset_training(preset), steps=effort.train_steps, validations=0, samples=0)
    size = preset_size(preset)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(4):
            hu = rng.integers(-1024, 1500, (30, size, size)).astype(np.int16)
            volume = Volume.regular(hu, (5.0, 240.0 / size, 240.0 / size))
            put_volume(Path(folder) / "store", volume, id=f"v{i}", patient=f"v{i}", split="train")
        train_denoiser(open_store(Path(folder) / "store"), Path(folder) / "run", settings)
        lines = [json.loads(line) for line in (Path(folder) / "run" / "stats.jsonl").read_text().splitlines()]
    rows = [row for row in lines if "images_per_s" in row]
    return {
        "rate": median(row["images_per_s"] for row in rows[1:]),
        "batch": settings.batch,
        "steps": effort.train_steps,
    }


def chain_seconds(denoiser: Any, settings: Any, batch: int, slices: int) -> float:
    """Median seconds of a step of the chain, which makes one slice of each of `batch` volumes; the first warms up."""
    from slicewise.ascii import chain

    marks = []
    for _ in chain(denoiser, replace(settings, slices=slices + 1), 0, list(range(batch))):
        marks.append(time.perf_counter())
    return median(np.diff(marks).tolist())


def part_generate(preset: str, effort: Effort, batch: int) -> dict[str, Any]:
    """Seconds of one slice of `batch` volumes with the default sampler."""
    from slicewise.diffusion.samplers import nfe
    from slicewise.sampling import ChainSettings

    settings, denoiser = ChainSettings(), make_denoiser(preset)
    sampler = settings.sampler_of(denoiser.recipe)
    seconds = chain_seconds(denoiser, settings, batch, effort.slices)
    return {"seconds": seconds, "nfe": nfe(sampler, settings.steps), "sampler": sampler}


def part_pc(preset: str, effort: Effort, batch: int) -> dict[str, Any]:
    """The same with our predictor-corrector sampler, which is what diffusers' pipeline runs."""
    from slicewise.diffusion.samplers import nfe
    from slicewise.sampling import ChainSettings

    settings = ChainSettings(sampler="pc", steps=ChainSettings().steps // 2, spacing="geometric")
    seconds = chain_seconds(make_denoiser(preset), settings, batch, effort.slices)
    return {"seconds": seconds, "nfe": nfe(settings.sampler, settings.steps)}


def part_diffusers(preset: str, effort: Effort, batch: int) -> dict[str, Any]:
    """diffusers' ScoreSdeVePipeline with ScoreSdeVeScheduler on the same network; "error" says what broke."""
    import torch

    from slicewise.sampling import ChainSettings

    denoiser = make_denoiser(preset)
    recipe = denoiser.recipe
    if recipe.slices != 3:
        return {"error": f"the pipeline draws 3 channels, the preset has K = {recipe.slices}"}
    try:
        import diffusers
        from diffusers import ScoreSdeVePipeline, ScoreSdeVeScheduler
    except Exception as error:  # whatever its optional imports raise is the finding
        return {"error": f"import of diffusers: {type(error).__name__}: {' '.join(str(error).split())[:300]}"}

    class Score(torch.nn.Module):
        """What the pipeline expects of a network: unet(sample, sigma (B,)).sample is the score."""

        device, dtype = torch.device("cpu"), torch.float32

        def __init__(self) -> None:
            super().__init__()
            self.network = denoiser.network
            self.config = type("Config", (), {"sample_size": recipe.size, "in_channels": recipe.slices})()
            self.calls = 0

        def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> Any:
            self.calls += 1
            levels = sigma.double()[:, None].repeat(1, recipe.slices)
            with torch.no_grad():
                clean = denoiser(x, levels, torch.zeros(len(x)))
            return type("Output", (), {"sample": (clean - x) / sigma[:, None, None, None] ** 2})()

    steps = ChainSettings().steps // 2
    try:
        scheduler = ScoreSdeVeScheduler(
            num_train_timesteps=steps, snr=0.15, sigma_min=recipe.sigma_min, sigma_max=recipe.sigma_max, correct_steps=1
        )
        unet = Score()
        pipeline = ScoreSdeVePipeline(unet=unet, scheduler=scheduler)
        pipeline.set_progress_bar_config(disable=True)
        times = []
        for _ in range(effort.slices + 1):
            before, unet.calls = time.perf_counter(), 0
            pipeline(batch_size=batch, num_inference_steps=steps, output_type="np")
            times.append(time.perf_counter() - before)
    except Exception as error:  # as above
        return {
            "error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            "version": diffusers.__version__,
        }
    return {"seconds": median(times[1:]), "nfe": unet.calls, "version": diffusers.__version__}


def run_part(name: str, preset: str, effort: Effort) -> dict[str, Any]:
    """Run one part here and add its peak memory."""
    kind, _, batch = name.partition("-")
    parts: dict[str, Callable[..., dict[str, Any]]] = {
        "idle": part_idle,
        "peak": part_peak,
        "train": part_train,
        "generate": part_generate,
        "pc": part_pc,
        "diffusers": part_diffusers,
    }
    result = parts[kind](preset, effort, int(batch)) if batch else parts[kind](preset, effort)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kB here
    return result | {"memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6}


# --- Parent ----------------------------------------------------------------------------------------------------------


def in_own_process(name: str, options: argparse.Namespace) -> dict[str, Any]:
    print(f"measuring {name} …", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, __file__, "--preset", options.preset, "--part", name, "--out", str(result)]
        done = subprocess.run(command + ["--quick"] * options.quick, stdout=subprocess.DEVNULL)
        if done.returncode or not result.is_file():
            raise UserError(f"part {name} ended with status {done.returncode}; run it alone with --part {name}")
        return json.loads(result.read_text())


def report(found: dict[str, dict[str, Any]], preset: str, batches: tuple[int, ...]) -> str:
    idle, train = found["idle"], found["train"]
    core, flops = idle["core"], idle["flops"]
    forward, both = found["peak"][core]["forward"], found["peak"][core]["both"]
    lines = [
        f"Preset {preset}: {idle['parameters'] / 1e6:.2f} M parameters, {flops / 1e9:.2f} GFLOP an evaluation of a "
        f"window; core in {core}, {idle['threads']} threads of {os.cpu_count()} processors, {idle['capability']}, "
        f"torch {idle['torch']}.",
        "",
        "| 3x3 convolution, channels_last | forward, GFLOP/s | forward and backward, GFLOP/s |",
        "| --- | ---: | ---: |",
    ]
    for dtype, value in found["peak"].items():
        if isinstance(value, dict):
            cells = " | ".join(f"{value[k][0]:.0f} ({value[k][1]})" for k in ("forward", "both"))
            lines.append(f"| {dtype}, best shape (batch x channels x pixels) | {cells} |")
    lines += [
        "",
        "| | images/s | s a slice of one volume | s a step of the chain | NFE | ms an evaluation of one window | "
        "GFLOP/s | of the peak | peak memory, MB |",
        "| --- |" + " ---: |" * 8,
    ]
    rate = train["rate"]
    speed = 3 * flops * rate / 1e9
    lines.append(
        f"| training, batch {train['batch']} | {rate:.1f} | – | – | – | – | {speed:.0f} | {speed / both[0]:.0%} | "
        f"{train['memory_mb']:.0f} |"
    )
    kinds = {"generate": "generation", "pc": "generation, pc", "diffusers": "diffusers ScoreSdeVe"}
    for kind, title in kinds.items():
        for batch in batches:
            one = found.get(f"{kind}-{batch}")
            if one is None:
                continue
            title_of = f"{title} ({one['sampler']})" if "sampler" in one else title
            title_of += f" {one['version']}" if "version" in one else ""
            if "error" in one:
                lines.append(f"| {title_of}, batch {batch} | {one['error']} |" + " |" * 7)
                continue
            seconds, nfe = one["seconds"], one["nfe"]
            speed, memory = flops * nfe * batch / seconds / 1e9, one["memory_mb"]
            lines.append(
                f"| {title_of}, batch {batch} | {batch / seconds:.2f} | {seconds / batch:.3f} | {seconds:.3f} | {nfe} "
                f"| {1e3 * seconds / nfe / batch:.1f} | {speed:.0f} | {speed / forward[0]:.0%} | {memory:.0f} |"
            )
    lines += [
        "",
        f"Of the memory, {idle['memory_mb']:.0f} MB are the interpreter, torch and the weights. An image is a window "
        "in training and in diffusers' pipeline, a new slice in generation.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="head-128", help="network and batch; see slicewise train --help")
    parser.add_argument("--quick", action="store_true", help="a look in a minute: fewer and shorter measurements")
    parser.add_argument("--part", help="run one part in this process: idle, peak, train, generate-B, pc-B, diffusers-B")
    parser.add_argument("--out", type=Path, help="also write the result to this file")
    options = parser.parse_args()
    effort = QUICK if options.quick else FULL
    if options.part:
        text = json.dumps(run_part(options.part, options.preset, effort), indent=2)
    else:
        names = ["idle", "peak", "train"]
        names += [f"{kind}-{b}" for kind in ("generate", "pc", "diffusers") for b in effort.batches]
        found = {name: in_own_process(name, options) for name in names}
        text = report(found, options.preset, effort.batches)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    try:
        main()
    except UserError as problem:
        raise SystemExit(f"speed: {problem}") from None
