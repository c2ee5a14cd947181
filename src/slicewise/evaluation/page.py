"""An evaluation as one HTML page without outside assets: verdicts on top, plots, tables, pictures."""

import base64
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slicewise.evaluation.audit import ClosePair, sentence
from slicewise.evaluation.result import Evaluation
from slicewise.evaluation.tables import facts, number, tables, title
from slicewise.hu import BRAIN
from slicewise.metrics.compare import FRECHET, Distance
from slicewise.metrics.distribution import FREQUENCIES
from slicewise.metrics.memorisation import Verdict
from slicewise.metrics.reference import BRAIN_EDGES
from slicewise.metrics.survey import Anatomy
from slicewise.reporting.montage import montage, png
from slicewise.reporting.pages import CSF, GREY, INK, RAW, REF, RUN, WHITE, figure_axes, legend, svg, template
from slicewise.volume import Volume

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Volumes of either set that are pictured.
PICTURED = 3


def page(found: Evaluation, real: Sequence[Volume], synth: Sequence[Volume]) -> str:
    """The page; a few volumes of either set are pictured."""
    anatomies = found.real.anatomy, found.synth.anatomy
    plots = [
        (_frechet_figure(found.distances), "Fréchet distances with their 95 % intervals. Open: at the floor's n. "
         "Dashes: the floor, two halves of the real set. A perfect generator's open marks lie on the dashes."),
        (_tissue_figure(*anatomies), "The brain's HU by tissue. Filled: synthetic; dashed: real."),
        (_steps_figure(*anatomies), "Share of slice interfaces with at most a given step of the brain's mean."),
        (_neighbour_figure(*anatomies), "How alike neighbouring slices are in the brain window."),
        (_spectrum_figure(*anatomies), "Noise-power spectrum within slices of the brain."),
        (_cv_figure(*anatomies), "Coefficient of variation in the parenchyma, slice by slice."),
    ]  # fmt: skip
    drawn = [(svg(figure, f"plot {i}"), text) for i, (figure, text) in enumerate(plots) if figure is not None]
    audit = found.audit
    result: str = template(Path(__file__).with_suffix(".html")).render(
        title=title(found),
        headline=_headline(found),
        facts=facts(found),
        notices=found.notices,
        plots=drawn,
        tables=tables(found),
        pictures=_pictures(real, synth),
        audit=None
        if audit is None
        else {
            "sentence": sentence(audit),
            "passed": audit.passed,
            "plot": svg(_audit_figure(audit.verdicts), "audit"),
            "pairs": [_pair(p) for p in audit.pairs],
        },
    )
    return result


def _headline(found: Evaluation) -> list[tuple[str, str]]:
    """A few figures for the top: (label, value)."""
    rows = [("real volumes", f"{len(found.real.names)}"), ("synthetic volumes", f"{len(found.synth.names)}")]
    for row in found.distances:
        if row.group == FRECHET and row.slices == "middle":
            e = row.estimate
            times = f" ({e.same_n / e.floor:.2f} × floor)" if e.floor > 0 and math.isfinite(e.same_n) else ""
            rows.append((f"{row.name}, {row.window}", f"{number(e.value)}{times}"))
    if found.audit is not None:
        rows.append(("memorisation audit", "passed" if found.audit.passed else "FAILED"))
    return rows


def _frechet_figure(distances: Sequence[Distance]) -> "Figure":
    rows = [row for row in distances if row.group == FRECHET]
    figure, axes = figure_axes(6.4, 0.9 + 0.3 * len(rows), "Fréchet distance", "")
    for y, row in enumerate(rows):
        e, first = row.estimate, y == 0
        if math.isfinite(e.low):
            axes.plot([e.low, e.high], [y, y], color=RUN, linewidth=1.4)
        axes.plot(e.value, y, "o", color=RUN, markersize=5, label="all volumes" if first else None)
        if math.isfinite(e.floor):
            label = f"n = {e.floor_n}" if first else None
            axes.plot(e.same_n, y, "o", color=RUN, markersize=5, markerfacecolor="none", label=label)
            label = "real-real floor" if first else None
            axes.plot([e.floor] * 2, [y - 0.32, y + 0.32], color=REF, linewidth=1.8, linestyle="--", label=label)
    axes.set_yticks(range(len(rows)), [f"{r.name}, {r.window}, {r.slices}" for r in rows], color=INK)
    axes.invert_yaxis()
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    legend(axes, ncols=3, loc="lower center", bbox_to_anchor=(0.4, 1.0))
    return figure


def _tissue_figure(real: Sequence[Anatomy], synth: Sequence[Anatomy]) -> "Figure | None":
    means = [_mean([a.stats.brain_histogram for a in side if a.has_brain]) for side in (real, synth)]
    if means[0] is None or means[1] is None:
        return None
    figure, axes = figure_axes(6.4, 3.0, "HU", "share of the brain per HU, %")
    x = (BRAIN_EDGES[1:] + BRAIN_EDGES[:-1]) / 2
    for row, (label, colour) in enumerate((("CSF", CSF), ("grey", GREY), ("white", WHITE), ("all", INK))):
        if row < 3:
            axes.fill_between(x, 100 * means[1][row], step="mid", color=colour, alpha=0.3, linewidth=0, label=label)
        else:
            axes.step(x, 100 * means[1][row], where="mid", color=colour, linewidth=1.3, label="all, synthetic")
        label = "real" if row == 3 else ""
        axes.plot(x, 100 * means[0][row], color=colour, linewidth=1.1, linestyle="--", label=label or None)
    axes.set_xlim(-25, 75)
    axes.set_ylim(bottom=0)
    legend(axes, loc="upper left")
    return figure


def _steps_figure(real: Sequence[Anatomy], synth: Sequence[Anatomy]) -> "Figure | None":
    sides = [_joined([a.continuity.mean_step for a in side]) for side in (real, synth)]
    return _cumulative(sides, "|Δ mean HU| between neighbouring slices", "share of interfaces, %")


def _cv_figure(real: Sequence[Anatomy], synth: Sequence[Anatomy]) -> "Figure | None":
    sides = [_joined([a.cv for a in side]) for side in (real, synth)]
    return _cumulative(sides, "CV (standard deviation / mean) in the parenchyma", "share of slices, %")


def _cumulative(sides: Sequence[np.ndarray], x_label: str, y_label: str) -> "Figure | None":
    if not all(side.size for side in sides):
        return None
    figure, axes = figure_axes(6.4, 2.8, x_label, y_label)
    for values, colour, style, label in zip(sides, (REF, RUN), ("--", "-"), ("real", "synthetic")):
        values = np.sort(values)
        axes.step(values, 100 * (np.arange(values.size) + 1) / values.size, color=colour, linestyle=style, label=label)
    axes.set_xlim(0, 1.05 * max(np.quantile(side, 0.995) for side in sides))
    axes.set_ylim(0, 101)
    legend(axes, loc="lower right")
    return figure


def _neighbour_figure(real: Sequence[Anatomy], synth: Sequence[Anatomy]) -> "Figure | None":
    figure, axes = figure_axes(6.4, 2.8, "similarity of neighbouring slices", "share of interfaces per 0.05, %")
    edges = np.arange(-0.2, 1.0001, 0.05)
    drawn = False
    values: Callable[[Anatomy], np.ndarray]
    for name, colour, values in (("SSIM", RUN, lambda a: a.continuity.ssim), ("NCC", RAW, lambda a: a.continuity.ncc)):
        for side, style, label in ((real, "--", "real"), (synth, "-", "synthetic")):
            joined = _joined([values(a) for a in side])
            if joined.size:
                share = 100 * np.histogram(joined, edges)[0] / joined.size
                axes.stairs(share, edges, color=colour, linestyle=style, linewidth=1.3, label=f"{name}, {label}")
                drawn = True
    legend(axes, loc="upper left")
    return figure if drawn else None


def _spectrum_figure(real: Sequence[Anatomy], synth: Sequence[Anatomy]) -> "Figure | None":
    means = [_mean([a.spectrum for a in side if a.spectrum.size]) for side in (real, synth)]
    if means[0] is None or means[1] is None:
        return None
    figure, axes = figure_axes(6.4, 2.8, "spatial frequency, 1/mm", "noise power, HU² mm²")
    for mean, colour, style, label in zip(means, (REF, RUN), ("--", "-"), ("real", "synthetic")):
        axes.plot(FREQUENCIES, mean, color=colour, linestyle=style, label=label)
    axes.set_ylim(bottom=0)
    legend(axes, loc="upper right")
    return figure


def _audit_figure(verdicts: Sequence[Verdict]) -> "Figure":
    """Ratios of every volume, a row a measure: copies lie far to the left of all held-out ones."""
    figure, axes = figure_axes(6.4, 0.8 + 0.5 * len(verdicts), "nearest / second-nearest training distance", "")
    rng = np.random.default_rng(0)
    for y, v in enumerate(verdicts):
        for values, shift, colour, label in ((v.real, -0.15, REF, "held-out real"), (v.synth, 0.15, RUN, "synthetic")):
            jitter = y + shift + rng.uniform(-0.08, 0.08, len(values))
            axes.plot(values, jitter, ".", color=colour, alpha=0.7, markersize=5, label=label if y == 0 else None)
    axes.set_yticks(range(len(verdicts)), [v.name for v in verdicts], color=INK)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.02)
    legend(axes, ncols=2, loc="lower center", bbox_to_anchor=(0.4, 1.0))
    return figure


def _pair(pair: ClosePair) -> dict[str, Any]:
    """Both slices and their difference, as one picture, with its caption."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 2.5), dpi=100, facecolor="black")
    one, other = (p.astype(np.float32) for p in pair.pictures)
    shown = ((one, "synthetic", "gray", BRAIN.lo, BRAIN.hi), (other, "training", "gray", BRAIN.lo, BRAIN.hi))
    for i, (picture, text, colours, lo, hi) in enumerate(
        (*shown, (one - other, "difference ± 40 HU", "RdBu_r", -40, 40))
    ):
        axes = figure.add_axes((i / 3, 0, 0.328, 0.9))
        axes.imshow(picture, cmap=colours, vmin=lo, vmax=hi)
        axes.set_axis_off()
        figure.text(i / 3 + 0.01, 0.925, text, color="#e8e8e8", fontsize=8)
    caption = (
        f"{pair.synth}, slice {pair.synth_slice + 1}; nearest: {pair.train}, slice {pair.train_slice + 1}; "
        f"ratio {pair.ratio:.2f}, correlation {pair.correlation:.3f}"
    )
    return {"picture": base64.b64encode(png(figure)).decode(), "caption": caption}


def _pictures(real: Sequence[Volume], synth: Sequence[Volume]) -> str:
    titles = [f"real {i + 1}" for i in range(len(real))] + [f"synthetic {i + 1}" for i in range(len(synth))]
    return base64.b64encode(png(montage([*real, *synth], titles), dpi=90)).decode()


def _mean(arrays: Sequence[np.ndarray]) -> np.ndarray | None:
    return np.mean(arrays, axis=0) if len(arrays) else None


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([*arrays, np.empty(0)])
