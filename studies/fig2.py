"""Figure 2: continuity and calibration from slice to slice of ASCII trained on the brain window and on the whole range.

    python studies/fig2.py [--quick]

ASCII(2) on the whole range with the paper's schedule for it (σ 0.001 – 1348, Figure 1's model) and on the window [-10,
70] HU with the paper's for that (0.01 – 1348), trained on the same number of slices, no calibration. Everything is
measured and shown in the window. Writes fig2.png, fig2.md and fig2.json.
"""

from collections.abc import Sequence

import numpy as np
from fig3 import SCHEDULE, row
from matplotlib.figure import Figure
from steps import (
    Study,
    arguments,
    command,
    drawn,
    drawn_schedule,
    held_out,
    paper_denoiser,
    paper_sampler,
    trained,
    write_results,
)

from slicewise.hu import BRAIN, HU_MAX, HU_MIN, HUScale
from slicewise.metrics.reference import VolumeStats, measure
from slicewise.metrics.tissue import brain_mask
from slicewise.reporting.montage import save_figure
from slicewise.volume import Volume

WINDOW = (0.01, 1348.0)
SHOWN = 8


def window_scale() -> HUScale:
    """The brain window as a training range."""
    return HUScale(BRAIN.lo, BRAIN.hi)


def windowed(study: Study) -> list[Volume]:
    """Volumes of ASCII(2) on the window."""
    run = trained(study, "window", paper_denoiser(study, *WINDOW, scale=window_scale()))
    return list(drawn(study, "window", run, paper_sampler(study)))


def measured(volume: Volume) -> VolumeStats:
    """What `measure` finds in the window. A model of the window knows neither bone nor air: the brain is found with the
    window's upper end taken for bone and its lower for air."""
    hu = volume.hu
    if hu.min() >= BRAIN.lo and hu.max() <= BRAIN.hi:
        hu = np.where(hu >= BRAIN.hi, HU_MAX, np.where(hu <= BRAIN.lo, HU_MIN, hu)).astype(np.int16)
    mask = brain_mask(hu, volume.spacing)
    return measure(volume.with_hu(np.clip(volume.hu, BRAIN.lo, BRAIN.hi).astype(np.int16)), mask)


def figure(sets: dict[str, list[Volume]], stats: dict[str, list[VolumeStats]]) -> Figure:
    """Slices that follow one another, and the brain's mean by depth of every volume."""
    picture = Figure(figsize=(1.5 * SHOWN, 1.6 * len(sets) + 2.8), dpi=130, layout="constrained")
    grid = picture.add_gridspec(len(sets) + 1, 1, height_ratios=[1.0] * len(sets) + [1.6])
    for line, (title, volumes) in enumerate(sets.items()):
        hu = volumes[0].hu
        first = max(0, len(hu) // 2 - SHOWN // 2)
        for column, place in enumerate(grid[line, 0].subgridspec(1, SHOWN)):
            axes = picture.add_subplot(place)
            axes.set_xticks([])
            axes.set_yticks([])
            if first + column < len(hu):
                axes.imshow(hu[first + column], cmap="gray", vmin=BRAIN.lo, vmax=BRAIN.hi)
            if column == 0:
                axes.set_ylabel(title, fontsize=8)
    plots = [picture.add_subplot(place) for place in grid[-1, 0].subgridspec(1, len(sets), wspace=0.05)]
    for plot, (title, found) in zip(plots, stats.items()):
        for s in found:
            plot.plot(s.depth_mm, s.profile, linewidth=0.8)
        plot.set_ylim(BRAIN.lo, BRAIN.hi)
        plot.set_xlim(0, 160)
        plot.set_title(title, fontsize=8)
        plot.set_xlabel("mm below the vertex")
        plot.grid(alpha=0.3)
    plots[0].set_ylabel("mean of the brain, HU")
    return picture


def main(argv: Sequence[str] | None = None) -> None:
    study = arguments("fig2", __doc__, argv, shared="fig1")
    sets = {
        "held-out heads": held_out(study),
        "trained on the window": windowed(study),
        "trained on the whole range": drawn_schedule(study, SCHEDULE),
    }
    stats = {title: [measured(v) for v in volumes] for title, volumes in sets.items()}
    save_figure(figure(sets, stats), study.out / "fig2.png")
    caption = (
        f"**Figure 2.** Continuity in the window {BRAIN.lo:g} to {BRAIN.hi:g} HU of ASCII(2) trained on it (σ "
        f"{WINDOW[0]:g} – {WINDOW[1]:g}) and on the whole range (σ {SCHEDULE[0]:g} – {SCHEDULE[1]:g}), "
        f"{study.budget.levels} levels, no calibration."
    )
    write_results(study, {title: row(found) for title, found in stats.items()}, caption)


if __name__ == "__main__":
    command(main)
