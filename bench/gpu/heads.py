"""Make heads for training in the background, with all processors but one, while training runs on those there are.

    python bench/gpu/heads.py STORE --size 128 [--anatomy MAPS] [--count 100000] [--seed 0] [--workers N]

First the heads that are held out, the same for every run, half to validate on and half to judge by; then those to train
on, each from its own seed. Heads that already exist are kept. With `--toy` they are balls, made at once, to try the
way through. With `--anatomy`, heads from label maps of real ones, held-out heads from persons whom none to train on
comes from; without, procedural ones, which need no torch, which every worker would have to load.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from threading import Thread

import numpy as np

from slicewise.data.phantom import SIZES, PhantomSettings, make_phantom, prepare_people, write_each
from slicewise.data.resample import Grid, resample_volume
from slicewise.data.store import open_store, put_volume
from slicewise.errors import UserError
from slicewise.io.folders import is_store
from slicewise.volume import Volume

# Seeds of held-out heads start here; no run trains on so many.
HELD_SEED = 90_000_000
HELD = 32


def store_head(out: Path, size: int, anatomy: Path | None, splits: Sequence[str], seed: int) -> None:
    """Put the head of a seed into the store; `splits` take turns. Below the phantom's smallest size it is made there
    and averaged down."""
    split = splits[seed % len(splits)]
    shares = (float(split == "train"), float(split == "val"), float(split == "test"))
    settings = PhantomSettings(size=max(size, min(SIZES)), anatomy=anatomy, split=shares)
    volume = make_phantom(seed, settings).volume
    if size < settings.size:
        grid = Grid(size=size, fov_mm=settings.fov_mm, slice_mm=settings.slice_mm, crop_air_above=False)
        volume = resample_volume(volume, grid)
    name = f"phantom-{seed:08d}"
    put_volume(out, volume, id=name, patient=name, split=split, source=volume.acquisition.source)


def store_toy(out: Path, size: int, splits: Sequence[str], seed: int) -> None:
    """Put a ball of white and grey matter about a ventricle, in a skull, into the store."""
    rng = np.random.default_rng(seed)
    axes = (np.linspace(-0.5, 1.2, 14), *(np.linspace(-1.25, 1.25, size) + rng.uniform(-0.1, 0.1) for _ in range(2)))
    z, y, x = np.meshgrid(*axes, indexing="ij")
    radius = np.sqrt((z - 0.5) ** 2 + y**2 + x**2) * rng.uniform(0.9, 1.1)
    hu = np.select([radius < 0.25, radius < 0.6, radius < 0.8, radius < 1.0], [8.0, 27.0, 35.0, 900.0], -1000.0)
    noisy = np.rint(hu + rng.normal(0.0, 4.0, hu.shape)).astype(np.int16)
    name = f"phantom-{seed:08d}"
    split = splits[seed % len(splits)]
    put_volume(out, Volume.regular(noisy, (5.0, 240.0 / size, 240.0 / size)), id=name, patient=name, split=split)


def processors() -> int:
    return len(os.sched_getaffinity(0))


def seed_of(name: str) -> int:
    """The seed of a head by its name in the store; -1 where it is no phantom."""
    return int(name.removeprefix("phantom-")) if name.startswith("phantom-") else -1


def make(
    out: Path, size: int, count: int, seed: int, held: int, workers: int, toy: bool = False, anatomy: Path | None = None
) -> None:
    """Make the held-out heads, then the others."""
    write = partial(store_toy, out, size) if toy else partial(store_head, out, size, anatomy)
    if anatomy and not toy:
        prepare_people(PhantomSettings(size=size, anatomy=anatomy), range(200), workers)
    out.mkdir(parents=True, exist_ok=True)
    there = {record.id for record in open_store(out).records} if is_store(out) else set()
    for first, number, splits in ((HELD_SEED, held, ("val", "test")), (seed, count, ("train",))):
        missing = [s for s in range(first, first + number) if f"phantom-{s:08d}" not in there]
        write_each(partial(write, splits), missing, workers, number)


def end_with(parent: int) -> None:
    """End this process and its workers when its parent is gone."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.killpg(os.getpgrp(), 15)


class Heads:
    """Heads that are being made for as long as this lasts, by processes that give way to all others."""

    def __init__(
        self,
        store: Path,
        size: int,
        count: int = 100_000,
        seed: int = 0,
        held: int = HELD,
        toy: bool = False,
        anatomy: Path | None = None,
    ) -> None:
        self.store = store
        workers = 1 if toy else max(1, processors() - 1)
        options = {"size": size, "count": count, "seed": seed, "held": held, "workers": workers}
        command = [sys.executable, __file__, str(store), *(f"--{name}={value}" for name, value in options.items())]
        command += [f"--parent={os.getpid()}", *["--toy"] * toy]
        command += [f"--anatomy={anatomy}"] if anatomy else []
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)

    def wait_for(self, train: int, held: int, say: Callable[[str], None] = print) -> None:
        """Until there are so many to train on and held out. Raises `UserError` where making them failed."""
        while True:
            ended = self.process.poll()
            counts = [0, 0]
            if is_store(self.store):
                records = open_store(self.store).records
                counts = [sum((r.split == "train") == of_train for r in records) for of_train in (True, False)]
            if counts[0] >= train and counts[1] >= held:
                say(f"{counts[0]} heads to train on, {counts[1]} held out")
                return
            if ended is not None:
                raise UserError(f"{self.store}: no heads were made (status {ended}); run {__file__} alone to see why")
            time.sleep(0.2)

    def __enter__(self) -> "Heads":
        return self

    def __exit__(self, *exc: object) -> None:
        """The workers are the process's children, in a group of their own."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, 15)
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--held", type=int, default=HELD)
    parser.add_argument("--workers", type=int, default=processors())
    parser.add_argument("--anatomy", type=Path)
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--parent", type=int, help="end with this process, however it ends")
    a = parser.parse_args()
    os.nice(10)
    if a.parent:
        Thread(target=end_with, args=(a.parent,), daemon=True).start()
    make(a.store, a.size, a.count, a.seed, a.held, a.workers, a.toy, a.anatomy)


if __name__ == "__main__":
    try:
        main()
    except UserError as problem:
        sys.exit(f"heads: {problem}")
