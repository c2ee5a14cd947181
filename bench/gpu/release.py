"""Train the release denoiser for the minutes that a GPU is there, and bring it home.

    python bench/gpu/release.py [--minutes 7] [--store STORE] [--resume PARCEL]       on the GPU: at most 10 minutes
    python bench/gpu/release.py --home PARCEL                                         at home: report and pictures

Heads are made in the background by all processors but one (or taken from `--store`), and training begins with the first
few dozen. Then volumes are drawn and measured against heads that were held out. Weights, state, curves and volumes go
into a parcel (see parcel.py) under `--out`, with table.md and results.json; the table is printed last. With `--resume`
the next minutes go on from there, on new heads, since the old ones did not travel.
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

from slicewise.ascii import ChainSettings
from slicewise.data.store import Store, open_store
from slicewise.errors import UserError
from slicewise.networks.unet import UNetConfig
from slicewise.settings import fill, preset
from slicewise.training.denoiser import DenoiserTraining, train_denoiser
from slicewise.volume import Volume

# Heads to begin with, and seconds that are kept for what comes after training and drawing.
FIRST_HEADS = 48
LAST_SECONDS = 35.0
# Share of all the time by which training ends at the latest.
SHARE = 0.85
NAME = "release"
# The short form: seconds on one processor, to try the way through.
TOY = UNetConfig(channels=(8, 16), blocks=(1, 1), attention=(False, True), embedding=16)


def settings_of(a: argparse.Namespace, done_minutes: float) -> DenoiserTraining:
    """The preset's training, for so many more minutes than are done."""
    base = fill(DenoiserTraining(), preset("train", a.preset), f"--preset {a.preset}")
    wanted = replace(
        base,
        minutes=done_minutes + a.minutes,
        batch=a.batch,
        lr=a.lr or base.lr,
        seed=a.seed,
        device=a.device,
        save_minutes=2.0,
        fit_memory=True,
        compile=a.compile,
    )
    if not a.short:
        return wanted
    small = {"validations": 1, "validation_windows": 4, "residual_windows": 4}
    return replace(wanted, unet=TOY, crop=(0, 0), **small)


def place_of(run: Path) -> tuple[float, list[str]]:
    """Minutes that a run has had, and the heads that it was trained on last."""
    path = (run / parcel.STATE).with_suffix(".json")
    if not path.is_file():
        return 0.0, []
    about = json.loads(path.read_text())
    return about["place"]["seconds"] / 60, [name for name, _ in about["heads"] or about.get("forgotten", [])]


def resume(a: argparse.Namespace, run: Path) -> None:
    """Unpack an earlier run, which goes on with other heads where its own did not travel."""
    parcel.unpack(a.resume, a.work)
    there = {record.id for record in open_store(a.store).records} if a.store else set()
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


def train(a: argparse.Namespace, run: Path, began: float) -> tuple[Store, str]:
    """Heads, then training; the store, and what went wrong or an empty text: what there is goes home all the same."""
    done, held = place_of(run)
    size = 32 if a.short else int(preset("prepare", a.preset)["size"])
    folder = a.store or a.work / f"heads-{size}"
    # A run that was stopped here still has its heads; others follow on those that it has seen, wherever it was.
    seed = 1 + max((seed_of(name) for name in held), default=-1)
    train_heads, held_heads = (4, 4) if a.short else (FIRST_HEADS, HELD)
    most = 12 if a.short else 100_000
    background = nullcontext() if a.store else Heads(folder, size, most, seed, held_heads, toy=a.short)
    with background as making:
        if making is not None:
            making.wait_for(train_heads, held_heads)
        passed = (time.monotonic() - began) / 60
        a.minutes = min(a.minutes, max(0.01, SHARE * a.total - passed))
        print(f"training begins after {60 * passed:.0f} s, for {a.minutes:.3g} minutes", flush=True)
        try:
            train_denoiser(open_store(folder), run, settings_of(a, done))
            problem = ""
        except (UserError, RuntimeError) as error:
            problem = str(error).splitlines()[0]
        except KeyboardInterrupt:
            problem = "stopped"
    return open_store(folder), problem


def main(argv: Sequence[str] | None = None) -> None:
    a = arguments(argv)
    if a.home:
        return bring_home(a.home, a.work)
    began = time.monotonic()
    run = a.work / NAME
    if a.resume and not run.exists():
        resume(a, run)
    store, problem = train(a, run, began)
    if not (run / parcel.WEIGHTS).is_file():
        raise UserError(problem)  # nothing is there to bring home
    parcel.pack([run], a.out)  # and again with volumes, should drawing them come to an end
    device, drawing = device_of(a.device), time.monotonic()
    left = 60 * a.total - LAST_SECONDS - (drawing - began)
    chain = ChainSettings(steps=4, slices=10) if a.short else ChainSettings()
    volumes: list[Volume] = []
    try:
        volumes += draw.draw(run, a.volumes, a.volumes, device, left, chain)
    except RuntimeError as error:
        problem = problem or str(error).splitlines()[0]
    drawn = time.monotonic() - drawing
    draw.keep(volumes[: a.keep], run)
    left_out = parcel.pack([run], a.out)
    lines = lines_of(run)
    compared = {"held-out heads": held_out(store, 16), "generated": volumes}
    about = {
        "machine": machine(device),
        "heads": sum(record.split == "train" for record in store.records),
        "volumes a minute": 60 * len(volumes) / drawn,
        "seconds in all": time.monotonic() - began,
        "what went wrong": problem,
        "left out of the parcel": ", ".join(left_out),
    }
    sections = {
        "Training": training_rows(lines),
        "Validation": validation_rows(lines),
        "Generated volumes against held-out heads, HU": {
            name: draw.comparison(those) for name, those in compared.items() if those
        },
    }
    finish(a.out, about, sections)


def bring_home(home: Path, work: Path) -> None:
    """Unpack, and write the run's report and a picture of every volume."""
    from slicewise.montage import save_montage
    from slicewise.training.report import write_run_page

    for run in parcel.unpack(home, work):
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
    parser.add_argument("--resume", type=Path, help="parcel of an earlier run to go on from")
    parser.add_argument("--home", type=Path, help="parcel to unpack: report and pictures")
    parser.add_argument("--out", type=Path, default=out_folder("release"), help="what is to be kept")
    parser.add_argument("--work", type=Path, default=Path("runs/gpu-work"), help="heads and run, kept between calls")
    parser.add_argument("--preset", default="head-128")
    parser.add_argument("--batch", type=int, default=64, help="the preset's 16 would leave a GPU idle")
    parser.add_argument("--lr", type=float, default=0.0, help="0 takes the preset's")
    parser.add_argument("--volumes", type=int, default=32, help="drawn and measured")
    parser.add_argument("--keep", type=int, default=8, help="volumes of these that are kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto", help="auto: on a GPU")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--short", action="store_true", help="seconds on one processor: shows that it runs")
    a = parser.parse_args(argv)
    if a.short:
        a.minutes, a.batch, a.volumes, a.keep, a.total = min(a.minutes, 0.05), 4, 2, 2, 1.0
    return a


if __name__ == "__main__":
    command(main)
