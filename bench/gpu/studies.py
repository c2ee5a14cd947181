"""The models of the paper's Figures 1 and 2, Table 1 and both open questions, trained side by side on one GPU.

    python bench/gpu/studies.py [--minutes 6] [--size 64] [--store STORE] [--models NAME …] [--resume PARCEL]

Each model is trained by its own trainer in a process of its own, all at once, for the same minutes: that is the equal
budget, 2 million slices each being the aim; the table says how many each saw. `--slices N` makes it slices instead of
minutes. Then each draws volumes, which are measured in the brain window against held-out heads. The runs go into a
parcel (see parcel.py) under `--out`, with table.md and results.json; the table is printed last. At home `parcel.py
unpack` makes run folders of it; the figures themselves are made by studies/.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import ceil, log2
from pathlib import Path
from typing import Any

import draw
import parcel
from heads import HELD, Heads, seed_of
from release import TOY, held_out, lines_of, place_of
from table import command, device_of, finish, machine, out_folder

from slicewise.baselines.shapes import SliceVAEConfig
from slicewise.calibrate import calibrate_volume
from slicewise.checkpoint import load_icnet
from slicewise.data.store import Store, open_store
from slicewise.diffusion.settings import SigmaDistribution, WindowTask
from slicewise.errors import UserError
from slicewise.hu import BRAIN, HUScale
from slicewise.networks.shapes import ICNetConfig
from slicewise.sampling import ChainSettings
from slicewise.settings import fill, preset
from slicewise.training.denoiser import train_denoiser
from slicewise.training.gan import train_gan
from slicewise.training.icnet import train_icnet
from slicewise.training.settings import DenoiserTraining, GANTraining, ICNetTraining, RunSettings, SliceVAETraining
from slicewise.training.slice_vae import train_slice_vae
from slicewise.volume import Volume

AIM = 2_000_000
PRESETS = {64: "tiny-64", 128: "head-128", 256: "head-256"}
FIRST_HEADS = 96
LAST_SECONDS = 40.0
# Share of all the time by which training ends at the latest: many processes draw at once.
SHARE = 0.75
WHOLE_RANGE = HUScale()


@dataclass(frozen=True)
class Ascii:
    """A denoiser as the paper trains it: K, HU scale, joint or per-slice noise levels, their range."""

    slices: int = 2
    scale: HUScale = WHOLE_RANGE
    joint: bool = True
    sigma: tuple[float, float] = (0.001, 1348.0)


# By the names that the studies' runs have. Figure 1 is the four schedules and both GANs, Figure 2 the window, Table 1
# ASCII(2) and (3), IC-Net and the slice VAE; the two questions are why intensity drifts in the whole range (window,
# half-joint, linear-per-slice, half-per-slice) and what each way of training makes of one budget (all).
DENOISERS = {
    "sigma-0.001-1348": Ascii(),
    "sigma-0.001-68": Ascii(sigma=(0.001, 68.0)),
    "sigma-0.01-1348": Ascii(sigma=(0.01, 1348.0)),
    "sigma-0.01-68": Ascii(sigma=(0.01, 68.0)),
    "sigma-0.001-1348-k3": Ascii(slices=3),
    "window": Ascii(scale=HUScale(BRAIN.lo, BRAIN.hi), sigma=(0.01, 1348.0)),
    "half-joint": Ascii(scale=HUScale(companding="half")),
    "linear-per-slice": Ascii(joint=False),
    "half-per-slice": Ascii(scale=HUScale(companding="half"), joint=False),
}
ICNET = "icnet"
CALIBRATED = ("sigma-0.001-1348", "sigma-0.001-1348-k3")
MODELS = (*DENOISERS, ICNET, "slice-vae", "stylegan2", "stylegan3")
SHORT = ("sigma-0.001-1348", "slice-vae")


def settings_of(name: str, a: argparse.Namespace, done_minutes: float) -> RunSettings:
    """The training of a model, with the budget that all of them have."""
    named = PRESETS.get(a.size, "tiny-64" if a.size < 128 else "head-256")
    budget: dict[str, Any] = {"batch": a.batch, "device": a.device, "seed": a.seed, "samples": 0, "save_minutes": 2.0}
    budget |= {"steps": ceil(a.slices / a.batch)} if a.slices else {"minutes": done_minutes + a.minutes}
    if name in DENOISERS:
        how = DENOISERS[name]
        base = fill(DenoiserTraining(), preset("train", named), named)
        base = replace(base, unet=TOY) if a.short else base
        return replace(
            base,
            slices=how.slices,
            task=WindowTask(joint=how.joint),
            scale=how.scale,
            sigma=SigmaDistribution(uniform=1.0, sigma_min=how.sigma[0], sigma_max=how.sigma[1]),
            position=False,
            flip=False,
            starts=0.0,
            crop=(0, 0),
            validations=0,
            fit_memory=True,
            compile=a.compile,
            **budget,
        )
    if name == ICNET:
        small = {"network": ICNetConfig(), "validation_pairs": 16} if a.short else {}
        return replace(ICNetTraining(recipe="paper", validations=1), **small, **budget)
    if name == "slice-vae":
        vae = fill(SliceVAETraining(), preset("train-slice-vae", named), named)
        # Published and in the presets, the latent is 2 x 2 pixels; smaller slices take fewer halvings.
        shape = replace(vae.network, channels=vae.network.channels[: int(log2(a.size)) - 1])
        shape = SliceVAEConfig(channels=(8, 8, 8), latent=8) if a.short else shape
        return replace(vae, network=shape, validations=0, **budget)
    gan = replace(fill(GANTraining(), preset("train-gan", named), named), network=name)  # type: ignore[arg-type]
    if a.short:
        small_g = replace(gan.stylegan2, channel_base=128, channel_max=8, latent=16)
        gan = replace(gan, stylegan2=small_g, discriminator=replace(gan.discriminator, channel_base=128, channel_max=8))
    return replace(gan, **budget)


def train_one(name: str, a: argparse.Namespace) -> None:
    """Train one model and draw its volumes, in this process."""
    run, store, device = a.work / name, open_store(a.store), device_of(a.device)
    settings = settings_of(name, a, place_of(run)[0])
    train: Callable[..., Path] = train_denoiser
    if isinstance(settings, ICNetTraining):
        train = train_icnet
    elif isinstance(settings, SliceVAETraining):
        train = train_slice_vae
    elif isinstance(settings, GANTraining):
        train = train_gan
    train(store, run, settings)
    if name == ICNET:
        return
    # The paper's sampler, at fewer levels than its 1000.
    chain = ChainSettings(sampler="pc", steps=a.levels, spacing="geometric", snr=0.15, known_sigma=0.02)
    left = a.until - time.time() - LAST_SECONDS
    draw.keep(list(draw.draw(run, a.volumes, a.volumes, device, left, chain)), run)


def train_all(a: argparse.Namespace, store: Path) -> dict[str, str]:
    """Every model in its own process, all at once; what went wrong, by name."""
    options = ["--store", str(store), "--work", str(a.work), "--device", a.device, "--until", str(a.until)]
    for name in ("size", "minutes", "slices", "batch", "volumes", "levels", "seed", "compile"):
        options += [f"--{name}", str(getattr(a, name))]
    options += ["--short"] * a.short
    # So many processes at once: each compiles and computes on the host in one thread.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    logs = {name: a.work / f"{name}.log" for name in a.models}
    started = {}
    for name, log in logs.items():
        with open(log, "w") as file:
            one = [sys.executable, __file__, "--one", name, *options]
            started[name] = subprocess.Popen(one, env=environment, stdout=file, stderr=file)
    wrong = {}
    for name, process in started.items():
        try:
            status = process.wait(max(1.0, a.until - LAST_SECONDS / 2 - time.time()))
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        if status:
            said = logs[name].read_text().strip().splitlines()
            wrong[name] = (said[-1] if said else f"status {status}")[:200]
    return wrong


def row_of(run: Path) -> dict[str, Any]:
    """What a model saw."""
    path = (run / parcel.STATE).with_suffix(".json")
    steps = [line for line in lines_of(run) if "images_per_s" in line]
    if not path.is_file() or not steps:
        return {}
    place = json.loads(path.read_text())["place"]
    batch = json.loads((run / parcel.WEIGHTS).with_suffix(".json").read_text())["training"]["batch"]
    seen = place["step"] * batch
    return {
        "slices seen": seen,
        "of the aim": f"{seen / AIM:.0%}",
        "minutes": place["seconds"] / 60,
        "slices/s": steps[-1]["images_per_s"],
    }


def measured(a: argparse.Namespace, store: Store) -> dict[str, dict[str, Any]]:
    """The table: held-out heads, then every model, then ASCII with IC-Net after it."""
    rows: dict[str, dict[str, Any]] = {}

    def add(name: str, about: dict[str, Any], volumes: Sequence[Volume]) -> None:
        rows[name] = {**about, **(draw.comparison_in_window(volumes) if volumes else {})}

    add("held-out heads", {}, held_out(store, 16))
    for name in a.models:
        add(name, row_of(a.work / name), draw.kept(a.work / name))
    if (a.work / ICNET / parcel.WEIGHTS).is_file():
        net = load_icnet(a.work / ICNET)
        for name in CALIBRATED:
            add(f"{name} + IC-Net", {}, [calibrate_volume(net, volume) for volume in draw.kept(a.work / name)])
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    a = arguments(argv)
    if a.one:
        return train_one(a.one, a)
    began = time.monotonic()
    a.work.mkdir(parents=True, exist_ok=True)
    seen: list[str] = []
    if a.resume and not any((a.work / name).exists() for name in a.models):
        for run in parcel.unpack(a.resume, a.work):
            seen += place_of(run)[1]
            if (run / parcel.STATE).is_file() and a.store is None:
                parcel.forget_heads(run)
    store = a.store or a.work / f"heads-{a.size}"
    seed = 1 + max(map(seed_of, seen), default=-1)
    train_heads, held_heads, most = (4, 4, 6) if a.short else (FIRST_HEADS, HELD, 100_000)
    background = nullcontext() if a.store else Heads(store, a.size, most, seed, held_heads, toy=a.short)
    with background as making:
        if making is not None:
            making.wait_for(train_heads, held_heads)
        a.minutes = min(a.minutes, max(0.01, SHARE * a.total - (time.monotonic() - began) / 60))
        wrong = train_all(a, store)
    runs = [a.work / name for name in a.models]
    left_out = parcel.pack(runs, a.out)
    about = {
        "machine": machine(device_of(a.device)),
        "size": f"{a.size} x {a.size} pixels",
        "heads": sum(record.split == "train" for record in open_store(store).records),
        "sampler": f"predictor-corrector, {a.levels} levels",
        "seconds in all": time.monotonic() - began,
        "what went wrong": "; ".join(f"{name}: {text}" for name, text in wrong.items()),
        "left out of the parcel": ", ".join(left_out),
    }
    finish(a.out, about, {"Models, measured in the brain window, HU": measured(a, open_store(store))})


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=6.0, help="of training, of all models together")
    parser.add_argument("--slices", type=int, default=0, help="slices that each model is to see, instead of minutes")
    parser.add_argument("--total", type=float, default=9.5, help="minutes for everything; drawing ends in time for it")
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    parser.add_argument("--models", nargs="+", choices=MODELS, help="default: all")
    parser.add_argument("--store", type=Path, help="prepared store to train on instead of heads made here")
    parser.add_argument("--resume", type=Path, help="parcel of an earlier run to continue from")
    parser.add_argument("--out", type=Path, default=out_folder("studies"), help="what is to be kept")
    parser.add_argument("--work", type=Path, default=Path("runs/gpu-studies-work"), help="heads and runs")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--volumes", type=int, default=8, help="drawn from each")
    parser.add_argument("--levels", type=int, default=50, help="noise levels of the sampler")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto", help="auto: on a GPU")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--short", action="store_true", help="seconds on one processor: shows that it runs")
    parser.add_argument("--one", choices=MODELS, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    a = parser.parse_args(argv)
    if a.short:
        a.minutes, a.batch, a.volumes, a.levels, a.size = min(a.minutes, 0.02), 4, 1, 2, 32
    a.models = a.models or (SHORT if a.short else MODELS)
    a.until = a.until or time.time() + 60 * a.total
    if a.size < 64 and not a.short:
        raise UserError(f"--size {a.size}: give 64, 128 or 256")
    return a


if __name__ == "__main__":
    command(main)
