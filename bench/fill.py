"""How well missing slices are filled, against interpolation.

    python bench/fill.py [CHECKPOINT] --store STORE [--split test] [--count 20] [--holes 1 3] [--draws 4]
                         [--out docs/results/fill.png]

STORE is a prepared store of heads that the checkpoint has not seen. From each head, at a quarter, half and three
quarters of its height, so many slices are taken away and put back: by linear and by cubic interpolation along z, by
motion-compensated interpolation (dense optical flow from either side, scikit-image's ILK), and by the checkpoint: one
draw, and the mean of several. Prints one Markdown table a hole size, with 95 % bootstrap intervals over heads:

- error: mean absolute difference to the slice that was taken away, HU: in the brain, where the true slice is bone
  (above 300 HU), and everywhere
- edges: the mean gradient at the true slice's steepest 5 % of pixels, as a share of the true one's
- texture: standard deviation of the brain less its smooth part (Gaussian, 2 pixels), as a share of the true slice's
- step: mean absolute difference of neighbouring slices in the brain, at all borders of drawn slices, as a share of the
  true one's

and writes a picture of the first heads.
"""

import argparse
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from scipy.interpolate import CubicSpline
from skimage.registration import optical_flow_ilk
from skimage.transform import warp

from slicewise.data.store import first_head_slice, open_store
from slicewise.diffusion.denoiser import Denoiser
from slicewise.fill import fill_volume
from slicewise.hu import BONE_HU, BRAIN, round_hu
from slicewise.metrics.estimate import mean_interval
from slicewise.metrics.tissue import brain_mask
from slicewise.pyramid import Pyramid, load_generator
from slicewise.release import CHECKPOINT
from slicewise.runtime import core_dtype
from slicewise.volume import Volume

FLOW_WINDOW = (-100.0, 200.0)


def linear(hu: np.ndarray, hole: range) -> np.ndarray:
    """The slices of a hole, float HU, by linear interpolation between those that bound it."""
    a, b = hu[hole.start - 1].astype(float), hu[hole.stop].astype(float)
    t = (np.arange(len(hole)) + 1) / (len(hole) + 1)
    return (1 - t)[:, None, None] * a + t[:, None, None] * b


def cubic(hu: np.ndarray, hole: range) -> np.ndarray:
    """By the cubic spline through the two slices on either side."""
    known = [hole.start - 2, hole.start - 1, hole.stop, hole.stop + 1]
    return np.clip(CubicSpline(known, hu[known].astype(float), axis=0)(np.arange(hole.start, hole.stop)), -1024, 3071)


def motion(hu: np.ndarray, hole: range) -> np.ndarray:
    """By linear interpolation along the paths of the optical flow between the slices that bound the hole."""
    a, b = hu[hole.start - 1].astype(float), hu[hole.stop].astype(float)
    lo, hi = FLOW_WINDOW
    seen = [np.clip((s - lo) / (hi - lo), 0, 1) for s in (a, b)]
    flow = optical_flow_ilk(*seen, radius=5)  # a(p) lies at b(p + flow)
    grid = np.mgrid[: a.shape[0], : a.shape[1]].astype(float)
    out = []
    for t in (np.arange(len(hole)) + 1) / (len(hole) + 1):
        from_a = warp(a, grid - t * flow, mode="edge", preserve_range=True)
        from_b = warp(b, grid + (1 - t) * flow, mode="edge", preserve_range=True)
        out.append((1 - t) * from_a + t * from_b)
    return np.stack(out)


def measures(true: np.ndarray, made: np.ndarray, hole: range, brain: np.ndarray) -> dict[str, float]:
    """What the table shows of one hole: HU (Z, Y, X) with the true and with the made slices, and the brain's mask."""
    inside = slice(hole.start, hole.stop)
    off, bone = np.abs(made - true)[inside], true[inside] > BONE_HU
    steepness = {
        name: np.stack([np.hypot(*np.gradient(s.astype(float))) for s in hu[inside]])
        for name, hu in (("true", true), ("made", made))
    }
    edge = steepness["true"] >= np.quantile(steepness["true"], 0.95)
    core = ndimage.binary_erosion(brain[inside], np.ones((1, 3, 3)), iterations=2)
    both = brain[hole.start - 1 : hole.stop] & brain[hole.start : hole.stop + 1]

    def texture(hu: np.ndarray) -> float:
        rough = hu[inside] - np.stack([ndimage.gaussian_filter(s.astype(float), 2.0) for s in hu[inside]])
        return float(rough[core].std())

    def step(hu: np.ndarray) -> float:
        return float(np.abs(np.diff(hu[hole.start - 1 : hole.stop + 1].astype(float), axis=0))[both].mean())

    return {
        "error in the brain, HU": float(off[brain[inside]].mean()),
        "error in bone, HU": float(off[bone].mean()),
        "error, HU": float(off.mean()),
        "edges": float(steepness["made"][edge].mean() / steepness["true"][edge].mean()),
        "texture": texture(made) / texture(true),
        "step": step(made) / step(true),
    }


def interval(values: list[list[float]], rounds: int = 1000) -> str:
    """The mean over all holes of all heads, with its 95 % bootstrap interval over heads."""
    heads = np.array([np.mean(head) for head in values])
    low, high = mean_interval(heads, np.random.default_rng(0), rounds)
    digits = 1 if np.mean(heads) >= 3 else 2
    return f"{np.mean(heads):.{digits}f} ({low:.{digits}f}, {high:.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=CHECKPOINT)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--holes", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("fill.png"))
    a = parser.parse_args()
    model = load_generator(a.checkpoint, core_dtype(torch.device("cpu")))
    store = open_store(a.store)
    volumes = [store.reading(record).volume for record in store.select(a.split)[: a.count]]
    rows: list[np.ndarray] = []
    seconds: list[float] = []
    for size in a.holes:
        table: dict[str, dict[str, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
        for number, volume in enumerate(volumes):
            holes, began = holes_of(volume, size), time.monotonic()
            ways = filled(model, volume, holes, a.draws)
            seconds.append(time.monotonic() - began)
            for method, columns in judged(volume, ways, holes).items():
                for name, values in columns.items():
                    table[method][name].append(values)
            if number < 3:
                shown = [volume.hu, *(ways[method] for method in ("linear", "motion-compensated", "one draw"))]
                rows.append(np.hstack([_grey(hu[hole.start + size // 2]) for hole in holes[:2] for hu in shown]))
        names = list(next(iter(table.values())))
        print(f"\n{size} slice{'s' if size > 1 else ''} missing\n\n| | {' | '.join(names)} |")
        print(f"| --- |{' ---: |' * len(names)}")
        for method, columns in table.items():
            print(f"| {method} | {' | '.join(interval(columns[name]) for name in names)} |")
    each = f"{np.mean(seconds):.1f} s a head in all ways, {torch.get_num_threads()} thread(s)"
    print(f"\n{len(volumes)} heads of {a.store} ({a.split}), three holes each; {each}")
    print(f"{a.out}: the first heads; true, linear, motion-compensated, drawn; two holes a row")
    Image.fromarray(np.vstack(rows)).save(a.out)


def holes_of(volume: Volume, size: int) -> list[range]:
    """The holes of `size` slices at a quarter, half and three quarters of a head's height, as far as they lie in it."""
    first = first_head_slice(volume.hu)
    height = len(volume.hu) - first
    starts = [first + round(height * share) for share in (0.25, 0.5, 0.75)]
    return [range(z, z + size) for z in starts if z + size + 1 < len(volume.hu)]


def filled(model: Denoiser | Pyramid, volume: Volume, holes: list[range], draws: int) -> dict[str, np.ndarray]:
    """The head, float HU (Z, Y, X), with its holes filled in every way."""
    ways = {}
    for name, way in (("linear", linear), ("cubic", cubic), ("motion-compensated", motion)):
        ways[name] = volume.hu.astype(float)
        for hole in holes:
            ways[name][hole.start : hole.stop] = round_hu(way(volume.hu, hole))
    missing = sorted({z for hole in holes for z in hole})
    made = [fill_volume(model, volume, missing, seed=seed).hu for seed in range(draws)]
    return {**ways, "one draw": made[0].astype(float), f"mean of {draws} draws": np.mean(made, axis=0)}


def judged(volume: Volume, ways: dict[str, np.ndarray], holes: list[range]) -> dict[str, dict[str, list[float]]]:
    """Every measure of every way, a value for each hole in which brain is missing; empty where none is."""
    true, brain = volume.hu.astype(float), brain_mask(volume.hu, volume.spacing)
    in_brain = [hole for hole in holes if brain[hole.start].sum() > 200]
    if not in_brain:
        return {}
    found = {}
    for name, hu in ways.items():
        each = [measures(true, hu, hole, brain) for hole in in_brain]
        found[name] = {key: [one[key] for one in each] for key in each[0]}
    return found


def _grey(hu: np.ndarray) -> np.ndarray:
    grey = np.clip((hu - BRAIN.lo) / (BRAIN.hi - BRAIN.lo), 0, 1)
    return np.kron((255 * grey).astype(np.uint8), np.ones((2, 2), np.uint8))


if __name__ == "__main__":
    main()
