"""The phantom from real anatomy measured: heads a second, folds, how near heads come to one another; pictures.

    python bench/phantom.py OUT --anatomy FOLDER [--data ../shared/data] [--only speed jacobian neighbours …]

Prints Markdown; pictures go to OUT. Times are processor seconds of one thread, procedural and real anatomy in one run.
All heads are of the training split.
"""

import argparse
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from slicewise.data.phantom import PhantomSettings, make_phantom, real, warp
from slicewise.data.phantom.heads import draw_descent
from slicewise.data.phantom.people import default_cache, load_person, load_shape
from slicewise.data.phantom.tissue import draw_tissues
from slicewise.data.resample import Grid, resample_volume
from slicewise.data.store import first_head_slice
from slicewise.io.archive import read_volume
from slicewise.io.dicom import read_series

TRAIN = (1.0, 0.0, 0.0)
WINDOWS = {"brain": (-10, 70), "bone": (-500, 1500), "whole range": (-1000, 2000)}


def speed(anatomy: Path) -> None:
    """Processor seconds a head, whose person is at hand; one head before the clock starts."""
    print("| pixels | procedural, s a head | real anatomy, s a head | heads |\n| --- | --- | --- | --- |")
    for size, count in ((128, 6), (256, 3), (512, 2)):
        cells = []
        for settings in (PhantomSettings(size=size), PhantomSettings(size=size, anatomy=anatomy, split=TRAIN)):
            for seed in range(count):
                make_phantom(seed, settings)
            started = time.process_time()
            for seed in range(count):
                make_phantom(seed, settings)
            cells.append((time.process_time() - started) / count)
        print(f"| {size} | {cells[0]:.2f} | {cells[1]:.2f} | {count} |", flush=True)


def jacobian(anatomy: Path, count: int) -> None:
    """Determinants of the whole deformation of heads: random, targeted and morph together."""
    settings = PhantomSettings(anatomy=anatomy, split=TRAIN)
    lowest, highest, spread, weakened = [], [], [], 0
    for seed in range(count):
        d = draw_descent(seed, settings)
        _, fields = load_person(d.person, None, default_cache())
        here, there = (torch.from_numpy(load_shape(p, d.first, None, default_cache())) for p in (d.person, d.other))
        tissues = draw_tissues(d.rng, fields.fluid_share)
        velocity = real.draw_velocity(d.rng, tissues, fields, d.share * (here - there))[0]
        weakened += bool(warp.jacobian(warp.exponential(velocity)).min() < real.LEAST_JACOBIAN)
        found = warp.jacobian(real.unfolded(velocity))
        lowest.append(float(found.min()))
        highest.append(float(found.max()))
        spread.append(float(found.log().std()))
    print(f"{count} heads: least {min(lowest):.3f}, median of least {np.median(lowest):.3f}, ", end="")
    print(f"greatest {max(highest):.2f}")
    print(f"standard deviation of the logarithm {np.mean(spread):.3f}; weakened for folds: {weakened}")


def neighbours(anatomy: Path, count: int) -> None:
    """Distance between heads: root mean square of HU clipped to [-100, 200] on slices aligned at the vertex, 5 mm and
    3.75 mm, over what is head in either; each head's nearest, and the nearest of the same person."""
    heads, persons = [], []
    for seed in range(count):
        made = make_phantom(seed, PhantomSettings(size=128, anatomy=anatomy, split=TRAIN, pathology=0.0))
        hu = np.clip(made.volume.hu[:26], -100, 200).astype(np.float32)
        heads.append(hu.reshape(len(hu), 64, 2, 64, 2).mean((2, 4)))
        persons.append(made.source.split(" of ")[1].split(",")[0])
    stack = torch.from_numpy(np.stack(heads).reshape(count, -1))
    apart = torch.cdist(stack, stack) / stack.shape[1] ** 0.5
    apart.fill_diagonal_(torch.inf)
    same = torch.tensor([[a == b for a in persons] for b in persons]).fill_diagonal_(False)
    nearest = apart.min(1).values
    own = apart[same]
    others = apart[~same & apart.isfinite()]
    print(f"{count} heads of {len(set(persons))} persons, HU: nearest pair {nearest.min():.1f}, ", end="")
    print(f"median of nearest {nearest.median():.1f}; ", end="")
    print(f"pairs of one person {own.median():.1f}, of two {others.median():.1f}")


def planes(hu: np.ndarray, spacing: tuple[float, float, float]) -> list[tuple[np.ndarray, float]]:
    """Axial, coronal and sagittal slice through the head's middle, each with the ratio of its pixel's sides."""
    z, y, x = (int(np.median(v)) for v in np.nonzero(hu[: int(140 / spacing[0])] > -300))
    return [(hu[z], 1.0), (hu[:, y], spacing[0] / spacing[2]), (hu[:, :, x], spacing[0] / spacing[1])]


def pictures(anatomy: Path, ge: Path, out: Path) -> None:
    """Three planes in three windows at three sizes, beside the GE head where it is there."""
    shown = []
    for size, slice_mm in ((128, 5.0), (256, 5.0), (512, 2.5)):
        volume = make_phantom(11, PhantomSettings(size=size, slice_mm=slice_mm, anatomy=anatomy, split=TRAIN)).volume
        shown.append((f"{size} x {size}, {slice_mm:g} mm", volume.hu, volume.spacing))
    if ge.is_dir():
        volume = read_series(ge)
        shown.append(("GE HiSpeed", volume.hu, volume.spacing))
    for name, (low, high) in WINDOWS.items():
        fig, axes = plt.subplots(3, len(shown), figsize=(4 * len(shown), 11), facecolor="black", squeeze=False)
        for column, (title, hu, spacing) in zip(axes.T, shown):
            for ax, (picture, aspect) in zip(column, planes(hu, spacing)):
                ax.imshow(picture, cmap="gray", vmin=low, vmax=high, aspect=aspect, interpolation="bilinear")
                ax.axis("off")
            column[0].set_title(title, color="white")
        fig.subplots_adjust(0, 0, 1, 0.96, 0.01, 0.01)
        fig.savefig(out / f"phantom-{name.replace(' ', '-')}-planes.png", dpi=70)
        plt.close(fig)


def crowd(anatomy: Path, data: Path, out: Path, count: int) -> None:
    """Heads side by side, 65 mm below the vertex, in the brain and bone windows; real ones among them where they are
    at hand, brought to the same pixels. Prints where those are."""
    settings = PhantomSettings(size=128, anatomy=anatomy, split=TRAIN, table=0.4)
    grid = Grid(size=128, fov_mm=settings.fov_mm, slice_mm=settings.slice_mm)
    volumes = [make_phantom(seed, settings).volume for seed in range(count)]
    for place, path in ((7, data / "ge-head"), (14, data / "cranium" / "Cranium.nii.gz")):
        if path.exists():
            real_head = resample_volume(read_volume(path).volume, grid)
            flipped = path.name == "Cranium.nii.gz"  # its affine is wrong
            volumes[place] = real_head.with_hu(real_head.hu[:, ::-1]) if flipped else real_head
            print(f"picture {place + 1} of the crowd is {path.name}")
    heads = [volume.hu[first_head_slice(volume.hu) + 13] for volume in volumes]
    for name in ("brain", "bone"):
        low, high = WINDOWS[name]
        fig, axes = plt.subplots(4, count // 4, figsize=(2.4 * count // 4, 11), facecolor="black")
        for hu, ax in zip(heads, axes.ravel()):
            ax.imshow(hu, cmap="gray", vmin=low, vmax=high, interpolation="bilinear")
            ax.axis("off")
        fig.subplots_adjust(0, 0, 1, 1, 0.01, 0.01)
        fig.savefig(out / f"phantom-{name}-crowd.png", dpi=70)
        plt.close(fig)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the pictures")
    parser.add_argument("--anatomy", type=Path, required=True, help="folder of label maps")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of real heads")
    parser.add_argument("--count", type=int, default=200, help="heads for neighbours; a quarter of them for Jacobians")
    parts = ("speed", "jacobian", "neighbours", "pictures", "crowd")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    if "speed" in args.only:
        speed(args.anatomy)
    if "jacobian" in args.only:
        jacobian(args.anatomy, args.count // 4)
    if "neighbours" in args.only:
        neighbours(args.anatomy, args.count)
    if "pictures" in args.only:
        pictures(args.anatomy, args.data / "ge-head", args.out)
    if "crowd" in args.only:
        crowd(args.anatomy, args.data, args.out, 20)


if __name__ == "__main__":
    main()
