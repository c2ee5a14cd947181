"""The report of a generate run: one HTML file without outside assets, readable in light and dark.

Volumes pass through one at a time: pictures are drawn of the first few, of the rest only sums are kept, so memory does
not grow with the run.
"""

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slicewise.errors import UserError
from slicewise.io.atomic import write_whole
from slicewise.metrics.reference import (
    BRAIN_EDGES,
    DEPTH_EDGES_MM,
    HEAD_EDGES,
    STEP_EDGES,
    ReferenceStats,
    StatsSum,
    VolumeStats,
    measure,
)
from slicewise.reporting.montage import montage, png
from slicewise.reporting.pages import CSF, GREY, INK, RAW, REF, RUN, WHITE, figure_axes, flat, legend, svg, template
from slicewise.volume import Volume

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = 8
# Targets of a release: tissue means this near to the reference, steps at most this many times as large.
TISSUE_TARGET_HU = 2.0
STEP_TARGET_RATIO = 1.25
_ROWS = {
    "csf": "CSF",
    "grey": "Grey matter",
    "white": "White matter",
    "brain": "Whole brain",
    "noise": "Noise level",
    "steps": "Step between slices",
}


@dataclass(frozen=True)
class _Card:
    """One pictured volume: its montage and its profile, ready for the page."""

    name: str
    picture: str
    profile: str
    shape: str


def write_report(
    out: Path,
    volumes: Iterable[tuple[str, Volume | None, Volume]],
    reference: ReferenceStats | None,
    run: Mapping[str, Any],
    pictures: int = PICTURES,
    picture_folder: Path | None = None,
) -> ReferenceStats:
    """Write the report of a run to the file `out`; returns the sums over the run's volumes.

    Parameters
    ----------
    volumes : (name, volume before calibration or None, volume) one after the other; may be a generator.
    reference : the set to compare with, as stored with a checkpoint; None leaves the comparison out.
    run : what was run, shown as given; plain values, or mappings, which become sections. "seconds_per_volume",
        "nfe_per_slice" (network evaluations), "model" and "seed" (also in "settings") come first where present.
    pictures : how many volumes are pictured; the rest count in tables and histograms.
    picture_folder : where to put the pictures as PNG files as well, one a pictured volume; None for nowhere.

    Raises `UserError` where `out` cannot be written, or there are no volumes.
    """
    total, total_raw = StatsSum(), StatsSum()
    cards: list[_Card] = []
    slices = 0
    for name, raw, volume in volumes:
        stats = measure(volume)
        stats_raw = measure(raw) if raw is not None else None
        total.add(stats)
        if stats_raw is not None:
            total_raw.add(stats_raw)
        slices += len(volume.hu)
        if len(cards) < pictures:
            picture = png(montage([volume], [name]), dpi=120)
            cards.append(_card(name, volume, picture, stats, stats_raw, reference))
            if picture_folder is not None:
                write_whole(picture_folder / f"{name}.png", picture)
    if total.count == 0:
        raise UserError(f"{out}: no volumes to report on; generate some first")
    after = total.result()
    before = total_raw.result() if total_raw.count else None
    page = template(Path(__file__).with_suffix(".html")).render(
        cards=cards,
        count=total.count,
        without_brain=total.without_brain,
        reference=reference,
        facts=_facts(run, total.count, slices),
        rows=_rows(after, before, reference),
        has_raw=before is not None,
        targets=(TISSUE_TARGET_HU, STEP_TARGET_RATIO),
        tissue_plot=svg(_tissue_figure(after, reference), "tissue"),
        head_plot=svg(_head_figure(after, reference), "head"),
        step_plot=svg(_step_figure(after, before, reference), "steps"),
        mean_plot=svg(_mean_profile_figure(after, before, reference), "mean"),
        settings=_settings(run),
    )
    write_whole(Path(out), page.encode())
    return after


def write_run_report(
    folder: Path,
    volumes: Iterable[tuple[str, Volume | None, Volume]],
    reference: Path,
    run: Mapping[str, Any],
) -> list[Path]:
    """Report on a run in its own folder: report.html, pictures/*.png and measured.json, the run's own statistics.

    `reference` is a file of `ReferenceStats`; where there is none, the report does without. The rest as `write_report`.
    Returns the pictures and the report.
    """
    known = ReferenceStats.load(reference) if reference.exists() else None
    pictures, page = folder / "pictures", folder / "report.html"
    write_report(page, volumes, known, run, picture_folder=pictures).save(folder / "measured.json")
    return [*sorted(pictures.glob("*.png")), page]


def _card(
    name: str,
    volume: Volume,
    picture: bytes,
    stats: VolumeStats,
    raw: VolumeStats | None,
    reference: ReferenceStats | None,
) -> _Card:
    z, y, x = volume.spacing
    slices, rows, columns = volume.hu.shape
    return _Card(
        name=name,
        picture=base64.b64encode(picture).decode(),
        profile=svg(_profile_figure(stats, raw, reference), f"profile {name}"),
        shape=f"{slices} slices of {rows} × {columns}, {z:.2f} × {y:.2f} × {x:.2f} mm",
    )


def _facts(run: Mapping[str, Any], count: int, slices: int) -> list[tuple[str, str]]:
    """The figures on top of the page: (label, value)."""
    facts = [("volumes", f"{count}"), ("slices", f"{slices}")]
    settings = run.get("settings")
    values = {**(settings if isinstance(settings, Mapping) else {}), **run}
    for key, label in (("model", "model"), ("seed", "seed"), ("nfe_per_slice", "evaluations per slice (NFE)")):
        if key in values:
            facts.append((label, str(values[key])))
    if "seconds_per_volume" in values:
        seconds = float(values["seconds_per_volume"])
        facts.append(("time", str(timedelta(seconds=round(seconds * count)))))
        facts.append(("time per slice", f"{seconds * count / slices:.2f} s"))
    return facts


def _settings(run: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Everything in `run`, by section: plain values first, then every mapping under its name, nested ones flattened."""
    plain = flat({key: value for key, value in run.items() if not isinstance(value, Mapping)})
    sections = [(key, flat(value)) for key, value in run.items() if isinstance(value, Mapping)]
    return ([("Run", plain)] if plain else []) + sections


def _rows(
    after: ReferenceStats, before: ReferenceStats | None, reference: ReferenceStats | None
) -> list[dict[str, str | bool | None]]:
    """Rows of the table: mean ± standard deviation between volumes, difference from the reference, target reached.

    A step is compared by ratio, a tissue by difference; the whole brain and noise have no target.
    """
    rows: list[dict[str, str | bool | None]] = []
    for key, label in _ROWS.items():
        row: dict[str, str | bool | None] = {"label": label, "after": _plus_minus(after, key), "reached": None}
        row["before"] = _plus_minus(before, key) if before else ""
        row["reference"] = _plus_minus(reference, key) if reference else ""
        row["difference"] = ""
        if reference and math.isfinite(after.means[key]) and math.isfinite(reference.means[key]):
            if key == "steps":
                ratio = after.mean_step / reference.mean_step if reference.mean_step else math.nan
                row["difference"] = f"{ratio:.2f} ×"
                row["reached"] = ratio <= STEP_TARGET_RATIO
            else:
                difference = after.means[key] - reference.means[key]
                row["difference"] = f"{difference:+.1f}".replace("-", "\N{MINUS SIGN}")
                if key in ("csf", "grey", "white"):
                    row["reached"] = abs(difference) <= TISSUE_TARGET_HU
        rows.append(row)
    return rows


def _plus_minus(stats: ReferenceStats, key: str) -> str:
    mean, std = stats.means[key], stats.stds[key]
    digits = 2 if key == "steps" else 1
    if not math.isfinite(mean):
        return "–"
    return f"{mean:.{digits}f} ± {std:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _profile_figure(stats: VolumeStats, raw: VolumeStats | None, reference: ReferenceStats | None) -> "Figure":
    """Mean HU of one brain, slice by slice, over the reference's range."""
    figure, axes = figure_axes(6.4, 2.3, "depth below the vertex of the brain, mm", "brain mean, HU")
    _reference_band(axes, reference)
    if raw is not None:
        axes.plot(raw.depth_mm, raw.profile, color=RAW, linewidth=1.2, label="without calibration")
    axes.plot(
        stats.depth_mm,
        stats.profile,
        color=RUN,
        linewidth=1.6,
        marker="o",
        markersize=2.5,
        label="with calibration" if raw is not None else "this volume",
    )
    _widen(axes)
    legend(axes, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def _mean_profile_figure(
    after: ReferenceStats, before: ReferenceStats | None, reference: ReferenceStats | None
) -> "Figure":
    """The same, averaged over all volumes of the run, with their spread."""
    figure, axes = figure_axes(6.4, 2.8, "depth below the vertex of the brain, mm", "brain mean, HU")
    _reference_band(axes, reference)
    depth = (DEPTH_EDGES_MM[1:] + DEPTH_EDGES_MM[:-1]) / 2
    if before is not None:
        axes.plot(depth, _numbers(before.profile_mean), color=RAW, linewidth=1.2, label="without calibration")
    mean, std = _numbers(after.profile_mean), _numbers(after.profile_std)
    name = "with calibration" if before is not None else "this run"
    axes.errorbar(depth, mean, std, color=RUN, linewidth=1.6, elinewidth=0.7, label=f"{name} (± 1 sd)")
    _widen(axes)
    legend(axes, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def _reference_band(axes: Any, reference: ReferenceStats | None) -> None:
    if reference is None:
        return
    depth = (DEPTH_EDGES_MM[1:] + DEPTH_EDGES_MM[:-1]) / 2
    mean, std = _numbers(reference.profile_mean), _numbers(reference.profile_std)
    axes.fill_between(depth, mean - 2 * std, mean + 2 * std, color=REF, alpha=0.25, linewidth=0)
    axes.plot(depth, mean, color=REF, linewidth=1.0, linestyle="--", label="reference (± 2 sd)")


def _widen(axes: Any) -> None:
    """At least 20 HU high, so that a flat profile looks flat."""
    lo, hi = axes.get_ylim()
    if hi - lo < 20:
        axes.set_ylim((lo + hi) / 2 - 10, (lo + hi) / 2 + 10)


def _tissue_figure(after: ReferenceStats, reference: ReferenceStats | None) -> "Figure":
    """Brain histogram by tissue: this run filled, the reference as lines."""
    figure, axes = figure_axes(6.4, 3.0, "HU", "share of the brain per HU, %")
    x = (BRAIN_EDGES[1:] + BRAIN_EDGES[:-1]) / 2
    for row, (label, colour) in enumerate((("CSF", CSF), ("grey", GREY), ("white", WHITE), ("all", INK))):
        y = 100 * np.asarray(after.brain_histogram[row])
        if row < 3:
            axes.fill_between(x, y, step="mid", color=colour, alpha=0.3, linewidth=0, label=label)
        else:
            axes.step(x, y, where="mid", color=colour, linewidth=1.3, label="all, this run")
        if reference is not None:
            line = 100 * np.asarray(reference.brain_histogram[row])
            axes.plot(x, line, color=colour, linewidth=1.1, linestyle="--", label="reference" if row == 3 else None)
    axes.set_xlim(-25, 75)
    axes.set_ylim(bottom=0)
    legend(axes, loc="upper left")
    return figure


def _head_figure(after: ReferenceStats, reference: ReferenceStats | None) -> "Figure":
    """Everything that is not air, whole range, logarithmic."""
    figure, axes = figure_axes(6.4, 3.0, "HU", "share of the head per 16 HU, %")
    x = (HEAD_EDGES[1:] + HEAD_EDGES[:-1]) / 2
    axes.step(x, _positive(after.head_histogram), where="mid", color=RUN, linewidth=1.3, label="this run")
    if reference is not None:
        line = _positive(reference.head_histogram)
        axes.step(x, line, where="mid", color=REF, linewidth=1.1, linestyle="--", label="reference")
    axes.set_yscale("log")
    axes.set_xlim(-320, 3071)
    legend(axes, loc="upper right")
    return figure


def _step_figure(after: ReferenceStats, before: ReferenceStats | None, reference: ReferenceStats | None) -> "Figure":
    """How many interfaces have at most a given step: the further left the curve, the smoother the volume."""
    figure, axes = figure_axes(
        6.4, 2.8, "|difference of mean HU| between neighbouring slices", "share of interfaces, %"
    )
    name = "with calibration" if before is not None else "this run"
    lines = [(reference, REF, "--", "reference"), (before, RAW, "-", "without calibration"), (after, RUN, "-", name)]
    widest = 1.0
    for stats, colour, style, label in lines:
        counts = np.cumsum(stats.step_counts) if stats is not None else np.zeros(1)
        if counts[-1]:
            axes.plot(STEP_EDGES, np.r_[0, 100 * counts / counts[-1]], color=colour, linestyle=style, label=label)
            widest = max(widest, float(STEP_EDGES[1 + np.searchsorted(counts, 0.995 * counts[-1])]))
    axes.set_xlim(0, 1.1 * widest)
    axes.set_ylim(0, 101)
    legend(axes, loc="lower right")
    return figure


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([math.nan if v is None else v for v in values])


def _positive(shares: Sequence[float]) -> np.ndarray:
    """Shares in percent, NaN where there is nothing: a logarithmic axis cannot show zero."""
    percent = 100 * np.asarray(shares, float)
    return np.where(percent > 0, percent, np.nan)
