"""Figure 5: mean absolute error in HU of distorted slices after IC-Net, after histogram matching, and untouched.

    python studies/fig5.py [--quick]

Trains IC-Net with the paper's recipe (contrast) and with ours (contrast and offset). The 7th, 14th, 21st and 28th slice
of held-out heads are distorted by μ = 0.7 … 1.3 about the mean of their soft tissue (equation 3) and calibrated by the
true slice before. Errors are over the voxels whose true value lies in (-150, 150) HU. Writes fig5.png, .md and .json.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.figure import Figure
from steps import Study, arguments, command, steps_for, write_results

from slicewise.calibrate import calibrate_slice, match_histogram
from slicewise.checkpoint import load_icnet
from slicewise.errors import UserError
from slicewise.hu import ICNET
from slicewise.reporting.montage import save_figure
from slicewise.training.icnet import distort, error_hu, train_icnet
from slicewise.training.settings import ICNetTraining

SLICES = (6, 13, 20, 27)
GAINS = (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3)
DIFFERENCE_HU = 20.0

# (distorted slice, slice before it) -> calibrated, HU
Method = Callable[[np.ndarray, np.ndarray], np.ndarray]


def pairs(study: Study) -> dict[int, list[tuple[np.ndarray, np.ndarray]]]:
    """(slice, slice before), int16 HU, of held-out heads, by slice number."""
    records = study.store.select("test") or study.store.select("val")
    volumes = [np.asarray(study.store.hu(r)) for r in records[: study.budget.volumes]]
    found = {z: [(hu[z], hu[z - 1]) for hu in volumes if z < len(hu)] for z in SLICES}
    if not any(found.values()):
        raise UserError(f"{study.store.path}: no held-out head of {SLICES[0] + 1} slices; prepare more heads")
    return {z: held for z, held in found.items() if held}


def icnet(study: Study, recipe: Literal["offset", "paper"]) -> Path:
    """IC-Net trained with a recipe on the study's budget."""
    base = ICNetTraining(recipe=recipe, validations=4, seed=study.seed, device=study.device)
    settings = replace(base, steps=steps_for(study.budget.images, base.batch))
    return train_icnet(study.store, study.work / f"icnet-{recipe}", settings)


def figure(
    held: dict[int, list[tuple[np.ndarray, np.ndarray]]], errors: dict[str, dict[int, list[float]]], method: Method
) -> Figure:
    """Error against μ, slice by slice, above; below, one slice distorted, calibrated and its remaining error."""
    picture = Figure(figsize=(11, 8.4), dpi=130, layout="constrained")
    grid = picture.add_gridspec(4, len(GAINS), height_ratios=(1.6, 1, 1, 1))
    plots = [picture.add_subplot(part) for part in grid[0, :].subgridspec(1, len(errors))]
    for plot, (name, by_slice) in zip(plots, errors.items()):
        for z, values in by_slice.items():
            plot.plot(GAINS, values, marker="o", markersize=3, label=f"slice {z + 1}")
        plot.set_title(name, fontsize=9)
        plot.set_xlabel("μ")
        plot.grid(alpha=0.3)
    plots[0].set_ylabel("mean absolute error, HU")
    plots[0].legend(fontsize=7)
    true, before = held[min(held, key=lambda z: abs(z - SLICES[1]))][0]
    for column, gain in enumerate(GAINS):
        shifted = distort(true, gain)
        result = method(shifted, before)
        shown = ((shifted, "gray", ICNET.lo, ICNET.hi), (result, "gray", ICNET.lo, ICNET.hi),
                 (result - true, "RdBu_r", -DIFFERENCE_HU, DIFFERENCE_HU))  # fmt: skip
        labels = ("distorted", "IC-Net", f"difference, ±{DIFFERENCE_HU:g} HU")
        for line, (image, colours, low, high) in enumerate(shown, start=1):
            axes = picture.add_subplot(grid[line, column])
            axes.imshow(image, cmap=colours, vmin=low, vmax=high)
            axes.set_xticks([])
            axes.set_yticks([])
            if column == 0:
                axes.set_ylabel(labels[line - 1], fontsize=8)
            if line == 1:
                axes.set_title(f"μ = {gain:g}", fontsize=9)
    return picture


def main(argv: Sequence[str] | None = None) -> None:
    study = arguments("fig5", __doc__, argv, shared="fig1")
    held = pairs(study)
    paper, ours = (load_icnet(icnet(study, recipe)) for recipe in ("paper", "offset"))
    methods: dict[str, Method] = {
        "untouched": lambda hu, before: hu,
        "histogram matching": match_histogram,
        "IC-Net, paper's recipe": lambda hu, before: calibrate_slice(paper, hu, before),
        "IC-Net, with offsets": lambda hu, before: calibrate_slice(ours, hu, before),
    }
    errors = {
        name: {
            z: [float(np.nanmean([error_hu(m(distort(t, g), b), t) for t, b in held[z]])) for g in GAINS] for z in held
        }
        for name, m in methods.items()
    }
    rows = {
        f"μ = {g:g}": {name: float(np.nanmean([v[i] for v in by_slice.values()])) for name, by_slice in errors.items()}
        for i, g in enumerate(GAINS)
    }
    save_figure(figure(held, errors, methods["IC-Net, paper's recipe"]), study.out / "fig5.png")
    count = sum(map(len, held.values()))
    caption = (
        f"**Figure 5.** Mean absolute error in HU over the soft tissue of {count} held-out slices (slices "
        f"{', '.join(str(z + 1) for z in held)} of each head), distorted by μ, calibrated by the true slice before."
    )
    write_results(study, rows, caption)


if __name__ == "__main__":
    command(main)
