"""Train the levels of the release for the minutes that a GPU is there, and bring them home.

    python bench/gpu/release.py [--minutes 7] [--anatomy MAPS | --store STORE] [--resume PARCEL]      on the GPU
    python bench/gpu/release.py --home PARCEL                                                         at home

Takes at most 10 minutes of the GPU. Heads are made in the background by all processors but one (or taken from
`--store`), and training begins with the first few dozen. The levels are trained one after another, the plan first,
which has half of the time (`--presets`; one preset alone trains that denoiser). Then volumes are drawn and measured
against heads that were held out. Weights, state, curves and volumes go into a parcel (see parcel.py) under `--out`,
with table.md and results.json; the table is printed last. With `--resume` the next minutes continue from there, on new
heads, since the old ones did not travel. At home the levels are joined, and reports and a picture are written.
"""

import argparse
import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import draw
import parcel
from heads import HELD, Heads, seed_of
from table import command, device_of, finish, machine, out_folder

from slicewise.data.store import Store, open_store
from slicewise.errors import UserError
from slicewise.networks.shapes import UNet3dConfig, UNetConfig
from slicewise.pyramid import join
from slicewise.sampling import ChainSettings
from slicewise.settings import fill, preset
from slicewise.training.denoiser import train_denoiser
from slicewise.training.settings import DenoiserTraining
from slicewise.volume import Volume

# Heads to begin with, and seconds that are kept for what comes after training and drawing.
FIRST_HEADS = 48
LAST_SECONDS = 35.0
# Share of all the time by which training ends at the latest.
SHARE = 0.85
PYRAMID = "pyramid.safetensors"
# The short form: seconds on one processor, to try the way through.
TOY = UNetConfig(channels=(8, 16), blocks=(1, 1), attention=(False, True), embedding=16)
TOY_3D = UNet3dConfig(channels=(8, 16), blocks=(1, 1), attention=(False, True), fold=1, embedding=16, modes=3)


def settings_of(a: argparse.Namespace, name: str, minutes: float) -> DenoiserTraining:
    """The training of a preset, for so many minutes in all."""
    base = fill(DenoiserTraining(), preset("train", name), f"--presets {name}")
    wanted = replace(
        base,
        minutes=minutes,
        batch=a.batch if a.short else a.batch * base.batch,
        lr=a.lr or base.lr,
        seed=a.seed,
        device=a.device,
        save_minutes=2.0,
        fit_memory=True,
        compile=a.compile,
    )
    if not a.short:
        return wanted
    small = {"validations": 1, "validation_windows": 4}
    return replace(wanted, unet=TOY, unet3d=TOY_3D, crop=(0, 0), **small)


def place_of(run: Path) -> tuple[float, list[str]]:
    """Minutes that a run has had, and the heads that it was trained on last."""
    path = (run / parcel.STATE).with_suffix(".json")
    if not path.is_file():
        return 0.0, []
    about = json.loads(path.read_text())
    return about["place"]["seconds"] / 60, [name for name, _ in about["heads"] or about.get("forgotten", [])]


def resume(a: argparse.Namespace) -> None:
    """Unpack earlier runs, which continue with other heads where their own did not travel."""
    there = {record.id for record in open_store(a.store).records} if a.store else set()
    for run in parcel.unpack(a.resume, a.work):
        if not set(place_of(run)[1]) <= there:
            parcel.forget_heads(run)


def held_out(store: Store, count: int) -> list[Volume]:
    """Heads to judge by: neither trained on nor validated on, where there are such."""
    split = "test" if store.select("test") else "val"
    return [store.volume(record) for record in store.select(split)[:count]]


def lines_of(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log."""
    path = run / "stats.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def training_rows(lines: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Speed and loss at the first and the last line of the log."""
    steps = [line for line in lines if "images_per_s" in line]
    rows: dict[str, dict[str, Any]] = {}
    for name, line in (("first 20 steps", steps[0]), ("last", steps[-1])) if steps else ():
        rows[name] = {
            "step": line["step"],
            "minutes": line["seconds"] / 60,
            "windows/s": line["images_per_s"],
            "loss": line["loss"],
            "lr": line["lr"],
        }
    return rows


def validation_rows(lines: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Error by noise level at the first and the last validation."""
    found = [line for line in lines if "validation" in line]
    rows = {}
    for line in [found[0], found[-1]] if len(found) > 1 else found:
        for kind in ("head", "brain"):
            errors = {f"σ {row['sigma']:g}": row[f"{kind}_rmse_hu"] for row in line["validation"]}
            rows[f"{kind}, RMSE in HU, step {line['step']}"] = errors
    return rows


def train(a: argparse.Namespace, runs: Sequence[Path], began: float) -> tuple[Store, str]:
    """Heads, then training of level after level; the store, and what went wrong or an empty text: what there is goes
    home all the same."""
    places = [place_of(run) for run in runs]
    size = 32 if a.short else int(preset("prepare", a.grid)["size"])
    folder = a.store or a.work / f"heads-{size}"
    # A run that was stopped here still has its heads; others follow on those that it has seen, wherever it was.
    seed = 1 + max((seed_of(name) for _, held in places for name in held), default=-1)
    train_heads, held_heads = (4, 4) if a.short else (FIRST_HEADS, HELD)
    most = 12 if a.short else 100_000
    background = nullcontext()
    if not a.store:
        background = Heads(folder, size, most, seed, held_heads, toy=a.short, anatomy=a.anatomy)
    problem = ""
    with background as making:
        if making is not None:
            making.wait_for(train_heads, held_heads)
        passed = (time.monotonic() - began) / 60
        minutes = min(a.minutes, max(0.01, SHARE * a.total - passed))
        print(f"training begins after {60 * passed:.0f} s, for {minutes:.3g} minutes", flush=True)
        shares = [1.0] if len(runs) == 1 else [a.share, *[(1 - a.share) / (len(runs) - 1)] * (len(runs) - 1)]
        for run, (done, _), share in zip(runs, places, shares):
            try:
                train_denoiser(open_store(folder), run, settings_of(a, run.name, done + share * minutes))
            except (UserError, RuntimeError) as error:
                problem = f"{run.name}: {str(error).splitlines()[0]}"
                break
            except KeyboardInterrupt:
                problem = f"{run.name}: stopped"
                break
    return open_store(folder), problem


def main(argv: Sequence[str] | None = None) -> None:
    a = arguments(argv)
    if a.home:
        return bring_home(a.home, a.work)
    began = time.monotonic()
    runs = [a.work / name for name in a.presets]
    if a.resume and not any(run.exists() for run in runs):
        resume(a)
    store, problem = train(a, runs, began)
    there = [run for run in runs if (run / parcel.WEIGHTS).is_file()]
    if not there:
        raise UserError(problem)  # nothing is there to bring home
    parcel.pack(there, a.out)  # and again with volumes, should drawing them come to an end
    device, drawing = device_of(a.device), time.monotonic()
    left = 60 * a.total - LAST_SECONDS - (drawing - began)
    chain = ChainSettings(steps=4, plan_steps=4, draw_steps=4, slices=10) if a.short else ChainSettings()
    volumes: list[Volume] = []
    try:
        last = there[-1] if len(there) == 1 else join(there, a.work / PYRAMID)
        volumes += draw.draw(last, a.volumes, min(a.volumes, 16), device, left, chain)
    except (UserError, RuntimeError) as error:
        problem = problem or str(error).splitlines()[0]
    drawn = time.monotonic() - drawing
    draw.keep(volumes[: a.keep], there[-1])
    left_out = parcel.pack(there, a.out)
    compared = {"held-out heads": held_out(store, 16), "generated": volumes}
    about = {
        "machine": machine(device),
        "heads": sum(record.split == "train" for record in store.records),
        "volumes a minute": 60 * len(volumes) / drawn,
        "seconds in all": time.monotonic() - began,
        "what went wrong": problem,
        "left out of the parcel": ", ".join(left_out),
    }
    sections: dict[str, Any] = {}
    for run in there:
        sections[f"Training of {run.name}"] = training_rows(lines_of(run))
        sections[f"Validation of {run.name}"] = validation_rows(lines_of(run))
    sections |= {
        "Generated volumes against held-out heads, HU": {
            name: draw.comparison(those) for name, those in compared.items() if those
        },
    }
    finish(a.out, about, sections)


def bring_home(home: Path, work: Path) -> None:
    """Unpack, join the levels, and write the runs' reports and a picture of every volume."""
    from slicewise.reporting.montage import save_montage
    from slicewise.training.report import write_run_page

    runs = parcel.unpack(home, work)
    if len(runs) > 1:
        print(join(runs, work / PYRAMID))
    for run in runs:
        if (run / "stats.jsonl").is_file():
            print(write_run_page(run))
        volumes = draw.kept(run)
        if volumes:
            save_montage(volumes, run / "volumes.png", [f"volume {n}" for n in range(len(volumes))])
            print(run / "volumes.png")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=7.0, help="of training, with start and compiling")
    parser.add_argument("--total", type=float, default=9.5, help="minutes for everything; drawing ends in time for it")
    parser.add_argument("--store", type=Path, help="prepared store to train on instead of heads made here")
    parser.add_argument("--resume", type=Path, help="parcel of an earlier run to continue from")
    parser.add_argument("--home", type=Path, help="parcel to unpack: report and pictures")
    parser.add_argument("--out", type=Path, default=out_folder("release"), help="what is to be kept")
    parser.add_argument("--work", type=Path, default=Path("runs/gpu-work"), help="heads and run, kept between calls")
    parser.add_argument("--anatomy", type=Path, help="label maps of real heads to make heads from (needs nibabel)")
    parser.add_argument("--presets", nargs="+", default=["plan-32", "draw-128"], help="of the levels, the plan first")
    parser.add_argument("--share", type=float, default=0.5, help="of the minutes that the plan has")
    parser.add_argument("--grid", default="head-128", help="preset of the grid that heads are made on")
    parser.add_argument("--batch", type=int, default=4, help="times the presets' batches, which leave a GPU idle")
    parser.add_argument("--lr", type=float, default=0.0, help="0 takes the preset's")
    parser.add_argument("--volumes", type=int, default=32, help="drawn and measured")
    parser.add_argument("--keep", type=int, default=8, help="volumes of these that are kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto", help="auto: on a GPU")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--short", action="store_true", help="seconds on one processor: shows that it runs")
    a = parser.parse_args(argv)
    if a.short:
        a.minutes, a.batch, a.volumes, a.keep, a.total = min(a.minutes, 0.1), 4, 2, 2, 1.0
    return a


if __name__ == "__main__":
    command(main)
