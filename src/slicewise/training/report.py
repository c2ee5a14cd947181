"""The report of a training run, RUN/report.html: one file without outside assets, readable in light and dark."""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from slicewise.errors import UserError
from slicewise.io.atomic import write_whole
from slicewise.reporting.pages import FAINT, RAW, REF, RUN, figure_axes, flat, legend, svg, template

# Pictures of samples on the page, evenly chosen from those there are.
PICTURES = 6
_ROW_NAMES = {
    "loss": "Loss",
    "loss_hu": "Error, HU",
    "loss_g": "Loss of the generator",
    "loss_d": "Loss of the discriminator",
}


def write_run_page(run: Path) -> Path:
    """Write report.html of a run folder from its stats.jsonl, env.json, weights.json and samples/.

    Raises `UserError` where the folder holds no run, or cannot be written.
    """
    rows = _rows(run / "stats.jsonl")
    steps = [row for row in rows if "images_per_s" in row]
    if not steps:
        raise UserError(f"{run}: no training run here (stats.jsonl has no step); give a run folder of slicewise train")
    validations = [row for row in rows if "validation" in row]
    widths = next((row["ema"] for row in reversed(rows) if "ema" in row), None)
    about, env = _json(run / "weights.json"), _json(run / "env.json")
    plots = [(_loss(steps), "Loss, averaged over 20 steps. Grey: each average; line: smoothed over 5 % of the run.")]
    if validations:
        noise = validations[-1].get("noise_hu")
        plots.append((_levels(validations, about, noise), _levels_caption(noise)))
    plots.append((_curve(steps, "lr", "learning rate"), "Learning rate: warm-up, constant, cooldown."))
    plots.append((_curve(steps, "images_per_s", "images per second"), "Images per second, of all processes together."))
    if widths:
        chosen = about.get("ema")
        made = "made after training from two that were kept (Karras et al. 2024)"
        caption = f"Validation of averages of the weights by relative width (0: none), {made}. Saved: {chosen}."
        plots.append((_widths(widths, chosen), caption))
    page = template(Path(__file__).with_suffix(".html")).render(
        title=f"Training run {run.name}",
        facts=_facts(steps, about, env),
        plots=plots,
        pictures=_pictures(run / "samples"),
        settings=flat(about.get("training", {})),
    )
    write_whole(run / "report.html", page.encode())
    return run / "report.html"


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            found.append(dict(json.loads(line)))
        except ValueError:
            continue  # a line that is being written
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def _facts(
    steps: Sequence[Mapping[str, Any]], about: Mapping[str, Any], env: Mapping[str, Any]
) -> list[tuple[str, str]]:
    last = steps[-1]
    batch = about.get("training", {}).get("batch", 0)
    cpu = f"{env.get('processes', 1)} x {env.get('threads', '?')} threads, {env.get('cpu_capability')}"
    return [
        ("Steps", f"{last['step']:,}"),
        ("Images seen", f"{last['step'] * batch:,}"),
        ("Time", str(timedelta(seconds=round(last.get("seconds", 0))))),
        ("Loss", f"{_first(last):.4g}"),
        ("Ran on", str(env.get("cuda") or cpu)),
    ]


def _first(row: Mapping[str, Any]) -> float:
    return float(next(row[name] for name in _ROW_NAMES if name in row))


def _loss(steps: Sequence[Mapping[str, Any]]) -> str:
    figure, axes = figure_axes(5.4, 3.2, "step", "loss")
    x, y = [row["step"] for row in steps], [_first(row) for row in steps]
    axes.plot(x, y, color=FAINT, linewidth=0.6)
    over = max(1, len(y) // 20)
    smooth = [sum(y[max(0, i - over) : i + 1]) / len(y[max(0, i - over) : i + 1]) for i in range(len(y))]
    axes.plot(x, smooth, color=RUN, linewidth=1.6)
    if min(y) > 0:
        axes.set_yscale("log")
        axes.tick_params(which="both", colors=FAINT, labelsize=8)
    return svg(figure, "loss")


def _curve(steps: Sequence[Mapping[str, Any]], name: str, label: str) -> str:
    figure, axes = figure_axes(5.4, 2.6, "step", label)
    axes.plot([row["step"] for row in steps], [row.get(name, math.nan) for row in steps], color=RUN, linewidth=1.2)
    axes.set_ylim(bottom=0)
    return svg(figure, name)


def _levels(validations: Sequence[Mapping[str, Any]], about: Mapping[str, Any], noise_hu: float | None) -> str:
    """Error of the brain and of the head by noise level, at the first and the last validation, and the floor."""
    figure, axes = figure_axes(5.4, 3.6, "noise level, units of x", "error, HU")
    shown = [(validations[-1], 1.8, "")]
    if len(validations) > 1:
        shown.insert(0, (validations[0], 0.8, f" at step {validations[0]['step']:,}"))
    for row, width, when in shown:
        for name, colour, what in (("brain_rmse_hu", RUN, "brain"), ("head_rmse_hu", RAW, "head")):
            points = [(level["sigma"], level[name]) for level in row["validation"] if level[name]]
            axes.plot(*zip(*points), color=colour, linewidth=width, marker="o", markersize=2, label=what + when)
    slope = _brain_slope(about)
    if noise_hu and slope:
        sigmas = [level["sigma"] for level in validations[-1]["validation"]]
        floor = [noise_hu * (s / slope) / math.hypot(noise_hu, s / slope) for s in sigmas]
        axes.plot(sigmas, floor, color=REF, linestyle="--", linewidth=1.2, label="floor of the brain")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.tick_params(which="both", colors=FAINT, labelsize=8)
    legend(axes)
    return svg(figure, "levels")


def _levels_caption(noise_hu: float | None) -> str:
    floor = (
        f" Floor: a denoiser that knew everything but the scan's own noise of {noise_hu:.1f} HU." if noise_hu else ""
    )
    return f"Root mean square error of the denoised slice by noise level, given its neighbours.{floor}"


def _brain_slope(about: Mapping[str, Any]) -> float:
    """What a HU of brain is worth in x, or 0 where the checkpoint does not say."""
    import numpy as np

    from slicewise.hu import BRAIN, HUScale

    scale = about.get("recipe", {}).get("scale")
    return float(HUScale(**scale).slope(np.array(BRAIN.centre))) if scale else 0.0


def _widths(scores: Mapping[str, float], chosen: float | None) -> str:
    figure, axes = figure_axes(5.4, 2.6, "relative width of the average", "validation, HU")
    points = sorted((float(width), score) for width, score in scores.items())
    axes.plot(*zip(*points), color=RUN, linewidth=1.4, marker="o", markersize=3)
    if chosen is not None:
        axes.axvline(chosen, color=REF, linestyle="--", linewidth=1)
    return svg(figure, "widths")


def _pictures(folder: Path) -> list[tuple[str, str]]:
    """(step, PNG as a data URI) of samples evenly chosen over time, the last among them."""
    files = sorted(folder.glob("*.png"))
    count = min(PICTURES, len(files))
    chosen = [files[-1 - round(i * (len(files) - 1) / max(1, count - 1))] for i in range(count)][::-1]
    return [(f"step {int(f.stem):,}", base64.b64encode(f.read_bytes()).decode()) for f in chosen]
