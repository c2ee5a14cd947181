"""Figure 1: coefficient of variation (standard deviation / mean) of the parenchyma in single generated slices, for four
noise schedules and two GANs; bones and air are left out by the brain window, as in the paper.

    python studies/fig1.py [--quick]

Trains ASCII(2) once for each schedule and both GANs on the same number of slices, draws volumes with `slicewise
generate`, and writes fig1.png, fig1.md and fig1.json. Run it again to resume.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import wasserstein_distance
from steps import (
    Study,
    arguments,
    command,
    drawn,
    gan,
    paper_denoiser,
    paper_sampler,
    schedule_run,
    trained,
    write_results,
)

from slicewise.errors import UserError
from slicewise.hu import BRAIN, WHOLE, Window
from slicewise.metrics.tissue import parenchyma_cv
from slicewise.reporting.montage import save_figure
from slicewise.sampling import ChainSettings

SCHEDULES = ((0.01, 68.0), (0.01, 1348.0), (0.001, 68.0), (0.001, 1348.0))
GANS = {"StyleGAN2-ADA": "stylegan2", "StyleGAN3": "stylegan3"}
REFERENCE = "training data"
# A slice with less of its area in the brain window shows no parenchyma to speak of.
LEAST_SHARE = 0.02
SLICES = 1000


def usable(volumes: Iterable[np.ndarray], most: int = SLICES) -> list[np.ndarray]:
    """Up to `most` slices, int16 HU (Y, X), that show some parenchyma."""
    found: list[np.ndarray] = []
    for hu in volumes:
        share = ((hu > BRAIN.lo) & (hu < BRAIN.hi)).mean(axis=(1, 2))
        found += list(hu[share >= LEAST_SHARE])
        if len(found) >= most:
            break
    return found[:most]


def row(slices: list[np.ndarray], reference: np.ndarray) -> dict[str, float]:
    """CV over slices: mean, standard deviation, variance (the paper's criterion) and distance from the data's."""
    cv = np.array([parenchyma_cv(s) for s in slices])
    cv = cv[np.isfinite(cv)]
    if not len(cv):
        return {"slices": 0, **dict.fromkeys(("CV", "SD of CV", "variance of CV", "distance of CV"), float("nan"))}
    return {
        "slices": len(cv),
        "CV": float(cv.mean()),
        "SD of CV": float(cv.std()),
        "variance of CV": float(cv.var()),
        "distance of CV": float(wasserstein_distance(cv, reference)),
    }


def settings_of(study: Study) -> dict[str, list[np.ndarray]]:
    """The slices of every setting, by its name."""
    held = study.store
    found = {REFERENCE: usable(np.asarray(held.hu(r)) for r in held.select("train"))}
    for low, high in SCHEDULES:
        name = schedule_run((low, high))
        run = trained(study, name, paper_denoiser(study, low, high))
        found[f"σ {low:g} – {high:g}"] = usable(v.hu for v in drawn(study, name, run, paper_sampler(study)))
    # A GAN's volume is a stack of independent slices: as many as a head has.
    for title, network in GANS.items():
        run = trained(study, network, gan(study, network))
        found[title] = usable(v.hu for v in drawn(study, network, run, ChainSettings()))
    return found


def figure(settings: dict[str, list[np.ndarray]]) -> Figure:
    """Distribution of CV above, a middle slice of each setting in the whole range and the brain window below."""
    picture = Figure(figsize=(2.0 * len(settings), 7.2), dpi=130, layout="constrained")
    grid = picture.add_gridspec(3, len(settings), height_ratios=(1.5, 1, 1))
    plot = picture.add_subplot(grid[0, :])
    values = [[cv for cv in map(parenchyma_cv, slices) if np.isfinite(cv)] for slices in settings.values()]
    plot.boxplot([v or [float("nan")] for v in values], showfliers=True, widths=0.5, flierprops={"markersize": 2})
    plot.set_xticks(range(1, len(settings) + 1), [f"{n}\nn = {len(v)}" for n, v in zip(settings, values)])
    plot.set_yscale("log")  # single slices of a GAN lie twenty times higher than the rest
    for formatter in (plot.yaxis.set_major_formatter, plot.yaxis.set_minor_formatter):
        formatter("{x:g}")
    plot.set_ylabel("CV in the parenchyma")
    plot.grid(axis="y", alpha=0.3)
    for column, slices in enumerate(settings.values()):
        for line, window in enumerate((WHOLE, BRAIN), start=1):
            _slice(picture.add_subplot(grid[line, column]), slices, window, column == 0)
    return picture


def _slice(axes, slices: list[np.ndarray], window: Window, first: bool) -> None:  # type: ignore[no-untyped-def]
    axes.set_xticks([])
    axes.set_yticks([])
    if first:
        axes.set_ylabel(f"{window.lo:g} … {window.hi:g} HU")
    if slices:
        # The slice with the median of brain shows neither the vertex nor the neck.
        share = [((s > BRAIN.lo) & (s < BRAIN.hi)).mean() for s in slices]
        middle = slices[int(np.argsort(share)[len(share) // 2])]
        axes.imshow(middle, cmap="gray", vmin=window.lo, vmax=window.hi)


def main(argv: Sequence[str] | None = None) -> None:
    study = arguments("fig1", __doc__, argv)
    settings = settings_of(study)
    reference = np.array([parenchyma_cv(s) for s in settings[REFERENCE]])
    if not len(reference):
        raise UserError(f"{study.store.path}: no training slice shows parenchyma ({BRAIN.lo:g} to {BRAIN.hi:g} HU)")
    rows = {name: row(slices, reference) for name, slices in settings.items()}
    save_figure(figure(settings), study.out / "fig1.png")
    caption = (
        f"**Figure 1.** Coefficient of variation in the parenchyma of single slices (window {BRAIN.lo:g} to "
        f"{BRAIN.hi:g} HU); schedules: ASCII(2), predictor-corrector with {study.budget.levels} levels; distance: "
        "Wasserstein, from the training data's."
    )
    write_results(study, rows, caption)


if __name__ == "__main__":
    command(main)
