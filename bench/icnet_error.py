"""Figure 5 as numbers: how many HU a distorted slice is off after IC-Net, after histogram matching, and untouched.

    python bench/icnet_error.py STORE WEIGHTS [WEIGHTS ...] [--split test] [--volumes 20]

Prints two Markdown tables. The first distorts the 7th, 14th, 21st and 28th slice of every volume (the paper's) by a
gain μ about the slice's mean or by an offset; the slice before it is the true one. The second lets gain and offset walk
at random down each volume from its first good slice, as a generated chain drifts, and calibrates slice after slice,
each by its already calibrated predecessor. All errors are mean absolute HU over the voxels whose true value lies inside
(-150, 150) HU, both sides clipped to that window.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from slicewise.calibrate import calibrate_slice, match_histogram
from slicewise.checkpoint import load_model
from slicewise.data.store import open_store
from slicewise.errors import UserError
from slicewise.hu import ICNET
from slicewise.training.icnet import distort, error_hu

SLICES = (6, 13, 20, 27)
GAINS = (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3)
OFFSETS = (-20.0, -10.0, -5.0, 5.0, 10.0, 20.0)
# Chains start at the first slice with this share of soft tissue: matching histograms to a slice of air gives air.
START_SHARE = 0.1
WALK_GAIN, WALK_OFFSET_HU = 0.02, 2.0

Method = Callable[[np.ndarray, np.ndarray], np.ndarray]


def single_slices(volumes: list[np.ndarray], methods: dict[str, Method]) -> list[tuple[str, list[float]]]:
    pairs = [(hu[z], hu[z - 1]) for hu in volumes for z in SLICES if z < len(hu)]
    cases = [(g, 0.0) for g in GAINS] + [(1.0, o) for o in OFFSETS]
    rows = []
    for gain, offset in cases:
        distorted = [(distort(true, gain, offset), before, true) for true, before in pairs]
        errors = [np.mean([error_hu(m(d, b), t) for d, b, t in distorted]) for m in methods.values()]
        name = f"offset {offset:+.0f} HU" if offset else f"μ = {gain}"
        rows.append((name, [float(e) for e in errors]))
    return rows


def chains(volumes: list[np.ndarray], methods: dict[str, Method]) -> list[tuple[str, list[float]]]:
    found: dict[tuple[str, int], list[float]] = {}
    for i, hu in enumerate(volumes):
        share = np.mean((hu > ICNET.lo) & (hu < ICNET.hi), axis=(1, 2))
        start = int(np.argmax(share >= START_SHARE))
        walk = np.random.default_rng(i).normal(size=(2, len(hu))).cumsum(axis=1)
        drifted = distort(hu, np.exp(WALK_GAIN * walk[0]), WALK_OFFSET_HU * walk[1])
        for name, method in methods.items():
            before = hu[start].astype(np.float64)
            for z in range(start + 1, len(hu)):
                before = method(drifted[z], before)
                found.setdefault((name, z), []).append(error_hu(before, hu[z]))
    rows = [z for z in SLICES if (next(iter(methods)), z) in found]
    return [(f"slice {z + 1}", [float(np.nanmean(found[name, z])) for name in methods]) for z in rows]


def table(title: str, names: list[str], rows: list[tuple[str, list[float]]]) -> str:
    lines = [f"| {title} | {' | '.join(names)} |", f"| --- |{' ---: |' * len(names)}"]
    return "\n".join(lines + [f"| {name} | {' | '.join(f'{v:.2f}' for v in values)} |" for name, values in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("weights", type=Path, nargs="+")
    parser.add_argument("--split", default="test")
    parser.add_argument("--volumes", type=int, default=20)
    options = parser.parse_args()
    store = open_store(options.store)
    volumes = [np.asarray(store.hu(r)) for r in store.select(options.split)[: options.volumes]]
    if not volumes:
        raise UserError(f"{options.store}: has no volumes in the split {options.split!r}")

    methods: dict[str, Method] = {"untouched": lambda hu, before: hu, "histogram matching": match_histogram}
    for path in options.weights:
        net, meta = load_model(path, ("icnet",))
        name = f"IC-Net, {meta['network']['output']}, {meta['training']['recipe']} recipe"
        name += f" ({path})" if len(options.weights) > 1 else ""
        methods[name] = lambda hu, before, net=net: calibrate_slice(net, hu, before)  # type: ignore[misc]

    print(f"{len(volumes)} volumes of {options.store}, split {options.split}; mean absolute error in HU\n")
    print(table("one slice, true predecessor", list(methods), single_slices(volumes, methods)), end="\n\n")
    title = f"chain, gain ± {WALK_GAIN:.0%} and offset ± {WALK_OFFSET_HU:.0f} HU a slice"
    print(table(title, list(methods), chains(volumes, methods)))


if __name__ == "__main__":
    try:
        main()
    except UserError as problem:
        raise SystemExit(f"icnet_error: {problem}") from None
