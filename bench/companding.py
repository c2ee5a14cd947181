"""Linear against companded HU scales at one budget: error per tissue, drift and spread of the brain's mean in HU.

    python bench/companding.py --store STORE --work runs/companding --steps 1500 --volumes 16

Trains the tiny-64 network once for each map on a store of 64 x 64 pixels (slicewise prepare --preset tiny-64), with the
same seeds, windows and noise, generates volumes of each, and compares them with the store's volumes. Prints Markdown
and writes companding.png, the first volume of each.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from slicewise.ascii import chain, trim
from slicewise.checkpoint import load_denoiser
from slicewise.data.store import open_store
from slicewise.hu import COMPANDINGS, HUScale
from slicewise.metrics.reference import VolumeStats, measure
from slicewise.reporting.montage import save_montage
from slicewise.sampling import ChainSettings
from slicewise.settings import fill, preset
from slicewise.training.denoiser import train_denoiser
from slicewise.training.settings import DenoiserTraining
from slicewise.volume import Volume

# What no preset takes, for comparison: asinh alone, and a quarter of it.
COMPANDINGS.update(asinh=1.0, soft=0.25)


def row(name: str, stats: list[VolumeStats]) -> str:
    """One line of the table: mean HU by tissue, spread of the brain's mean between volumes, step and drift."""
    profiles = [s.profile for s in stats]
    means = np.array([np.nanmean(p) for p in profiles])
    steps = np.concatenate([np.abs(np.diff(p)) for p in profiles])
    slopes = []
    for p in profiles:
        seen = np.flatnonzero(np.isfinite(p))
        slopes.append(np.polyfit(seen, p[seen], 1)[0] if len(seen) > 3 else np.nan)
    cells = [np.nanmean([s.scalars[tissue] for s in stats]) for tissue in ("csf", "grey", "white", "noise")]
    cells += [means.mean(), means.std(), np.nanmean(steps), np.nanmean(np.abs(slopes))]
    return f"| {name} | " + " | ".join(f"{c:.2f}" for c in cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--volumes", type=int, default=16)
    parser.add_argument("--maps", nargs="+", default=list(COMPANDINGS))
    a = parser.parse_args()
    store = open_store(a.store)
    base = fill(DenoiserTraining(), preset("train", "tiny-64"), "tiny-64")
    reference = [measure(store.volume(r)) for r in store.records[: max(a.volumes, 16)]]
    table = [
        f"{a.steps} steps of {base.batch} windows for every map; {a.volumes} volumes each, 12 evaluations a slice, "
        "no IC-Net; HU throughout.",
        "",
        "| map | CSF | grey | white | noise | brain mean | spread between volumes | slice step | drift a slice |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        row("reference", reference),
    ]
    head = " | ".join(f"noise of {hu} HU" for hu in (5, 20, 100, 500))
    errors = [f"| map | {head} |", "| --- | --- | --- | --- | --- |"]
    shown = []
    for name in a.maps:
        run = a.work / name
        settings = replace(base, steps=a.steps, scale=HUScale(companding=name), validations=1)
        train_denoiser(store, run, settings)
        denoiser = load_denoiser(run)
        made = []
        for first in range(0, a.volumes, 8):
            numbers = list(range(first, min(first + 8, a.volumes)))
            stack = np.stack(list(chain(denoiser, ChainSettings(steps=12), 0, numbers)), axis=1)
            made += [Volume.regular(trim(hu), denoiser.recipe.spacing_mm) for hu in stack]
        shown.append(made[0])
        table.append(row(name, [measure(v) for v in made]))
        lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
        bands = [line for line in lines if "validation" in line][-1]["validation"]
        # The same noise in HU is another sigma on every map: compare at what sigma is worth in the brain.
        worth = np.array([b["sigma"] for b in bands]) / float(settings.scale.slope(np.array(30.0)))
        brain = np.array([b["brain_rmse_hu"] for b in bands])
        at = [np.exp(np.interp(np.log(hu), np.log(worth), np.log(brain))) for hu in (5, 20, 100, 500)]
        errors.append(f"| {name} | " + " | ".join(f"{v:.2f}" for v in at) + " |")
    save_montage(shown, a.work / "companding.png", a.maps)
    print("\n".join([*table, "", "Error of the denoised brain in HU, at noise worth so many HU there:", "", *errors]))


if __name__ == "__main__":
    main()
