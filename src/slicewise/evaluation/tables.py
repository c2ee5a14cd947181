"""An evaluation as JSON, CSV and Markdown."""

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import slicewise
from slicewise.evaluation.audit import Audit, sentence
from slicewise.evaluation.collect import Side
from slicewise.evaluation.result import Evaluation
from slicewise.metrics.compare import (
    CONTINUITY,
    DIVERSITY,
    FRECHET,
    HISTOGRAMS,
    KERNEL,
    MANIFOLD,
    NOISE,
    TISSUE,
    VOXELS,
    Distance,
    Measurement,
)
from slicewise.metrics.estimate import Estimate
from slicewise.metrics.memorisation import Verdict
from slicewise.metrics.reference import rounded


@dataclass(frozen=True)
class Table:
    """A table ready to print: its title, how to read it, heads of the columns, rows of text."""

    title: str
    note: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(found: Evaluation) -> list[Table]:
    """Every table of an evaluation, by group; columns in which no row says anything are omitted."""
    made = []
    for group in dict.fromkeys(row.group for row in found.distances):
        distances = [row for row in found.distances if row.group == group]
        made.append(_table(group, _distance_heads(distances), [_distance_row(row) for row in distances]))
    for group in dict.fromkeys(row.group for row in found.measurements):
        chosen = [row for row in found.measurements if row.group == group]
        made.append(_table(group, _measurement_heads(chosen), [_measurement_row(row) for row in chosen]))
    if found.audit is not None:
        made.append(_table("Memorisation", VERDICT_HEADS, [_verdict_row(v) for v in found.audit.verdicts]))
    return made


NOTES = {
    FRECHET: (
        "Distance between Gaussians fitted to the slices' features (Heusel et al. 2017); lower is better. It grows "
        "as n falls, so compare the floor with the value at the floor's n."
    ),
    KERNEL: (
        "Unbiased MMD² of the middle slices' features, polynomial kernel (Bińkowski et al. 2018); its expectation "
        "is 0 for identical distributions, so it can be negative by chance."
    ),
    MANIFOLD: (
        "Precision and density: how well synthetic slices fall among real ones; recall and coverage: how much of "
        "the real set the synthetic set covers (Kynkäänniemi et al. 2019, Naeem et al. 2020). Compare them with "
        "the floor: with few volumes they do not reach 1."
    ),
    VOXELS: (
        "MMD² with a linear kernel on voxels in [-1, 1], in batches. The biased form is the one that papers "
        "report. Its expectation includes the variances of both sets, so it rewards a collapsed generator; the "
        "unbiased form does not."
    ),
    HISTOGRAMS: (
        "Wasserstein-1 distance between the HU of both sets. Tissues are separated without labels, by a mixture "
        "model with partial volume."
    ),
    NOISE: "Area between the noise-power spectra over the frequency plane, as a share of the real noise power.",
    TISSUE: (
        "One value per volume (CV: per slice). The contrast is grey minus white matter, divided by the noise level."
    ),
    CONTINUITY: (
        "One value per pair of adjacent slices (drift: per volume), within the brain; whole range: within the head."
    ),
    DIVERSITY: (
        "MS-SSIM between pairs of volumes of one set; above the real value, volumes are too alike. Legacy is the "
        "widely copied form with its errors (the last scale's term to the fourth power, constants for half the "
        "range), for comparison only."
    ),
    "Memorisation": "Distances to the training set, by features and by cross-correlation.",
}
VERDICT_HEADS = (
    "", "nearest distance, synthetic / held-out", "nearest / second, synthetic", "… held-out",
    "below every held-out one", "p", "copies", "verdict",
)  # fmt: skip


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    used = [i for i in range(len(heads)) if any(row[i] for row in rows)]
    return Table(title, NOTES[title], tuple(heads[i] for i in used), tuple(tuple(row[i] for i in used) for row in rows))


def _floor_heads(numbers: set[int]) -> tuple[str, str]:
    at = f"n = {numbers.pop()}" if len(numbers) == 1 else "its n"
    return f"at {at}", f"real-real floor ± sd, {at}"


def _distance_heads(rows: Sequence[Distance]) -> tuple[str, ...]:
    floors = _floor_heads({row.estimate.floor_n for row in rows})
    return ("", "window", "slices", "unit", "value (95 % interval)", *floors, "n")


def _measurement_heads(rows: Sequence[Measurement]) -> tuple[str, ...]:
    floors = _floor_heads({row.distance.floor_n for row in rows})
    means = ("real, mean ± sd", "synthetic, mean ± sd", "difference (95 % interval)")
    return ("", "unit", *means, "Wasserstein distance (95 % interval)", *floors, "n")


def _distance_row(row: Distance) -> tuple[str, ...]:
    return (row.name, row.window, row.slices, row.unit, *_estimate_cells(row.estimate), f"{row.n_real} / {row.n_synth}")


def _measurement_row(row: Measurement) -> tuple[str, ...]:
    means = plus_minus(row.real_mean, row.real_sd), plus_minus(row.synth_mean, row.synth_sd)
    difference = number(row.difference, sign=True) + interval(row.low, row.high)
    return (row.name, row.unit, *means, difference, *_estimate_cells(row.distance), f"{row.n_real} / {row.n_synth}")


def _estimate_cells(e: Estimate) -> tuple[str, str, str]:
    return number(e.value) + interval(e.low, e.high), number(e.same_n), plus_minus(e.floor, e.floor_sd)


def _verdict_row(v: Verdict) -> tuple[str, ...]:
    return (
        v.name,
        number(v.distance_ratio),
        f"{v.synth.min():.3f} … {v.synth.max():.3f}",
        f"{v.real.min():.3f} … {v.real.max():.3f}",
        f"{v.below} of {len(v.synth)}",
        f"{v.p:.2g}",
        str(len(v.copies)),
        "passed" if v.passed else "FAILED",
    )


def number(value: float, sign: bool = False) -> str:
    """Three or four significant digits; a dash for what there is none."""
    if not math.isfinite(value):
        return "–"
    digits = max(0, 3 - math.floor(math.log10(abs(value))) - 1) if abs(value) >= 1e-12 else 2
    text = f"{value:{'+' if sign else ''}.{min(digits, 6)}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def plus_minus(mean: float, sd: float) -> str:
    """Mean and spread with the digits that the spread allows."""
    if not math.isfinite(mean):
        return "–"
    if not sd > 1e-9 * abs(mean):
        return number(mean)
    size = max(abs(sd), 1e-4 * abs(mean), 1e-12)
    digits = min(6, max(0, 2 - math.floor(math.log10(size)) - 1))
    return f"{mean:.{digits}f} ± {sd:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def interval(low: float, high: float) -> str:
    """An interval to stand behind its value; nothing where there is none."""
    return f" ({number(low)} … {number(high)})" if math.isfinite(low) else ""


def to_markdown(found: Evaluation) -> str:
    """All tables, with what is needed to read them."""
    lines = [f"# {title(found)}", ""]
    lines += [f"- {line}" for line in facts(found)]
    lines += [f"- {line}" for line in found.notices]
    for table in tables(found):
        lines += ["", f"## {table.title}", "", table.note, ""]
        lines += [_line(table.heads), _line(["---"] * len(table.heads))]
        lines += [_line(row) for row in table.rows]
    if found.audit is not None:
        lines += ["", f"Audit {sentence(found.audit)}."]
    return "\n".join(lines) + "\n"


def title(found: Evaluation) -> str:
    """What was compared, in a few words."""
    return f"{found.synth.source.path.resolve().name} against {found.real.source.path.resolve().name}"


def facts(found: Evaluation) -> list[str]:
    """What was compared, and how, a sentence each."""
    said = [
        f"{side.title}: {side.source.path}, {len(side.names)} volumes, {min(side.slices)} to {max(side.slices)} slices"
        for side in (found.real, found.synth)
    ]
    said.append(f"Grid: {found.frame.text}")
    said.append(f"Features: {found.extractor}")
    said.append(
        "Coronal and sagittal slices are resampled to square pixels and padded with air to squares; no 8-bit step"
    )
    step = found.settings.step_mm
    others = f"coronal and sagittal slices every {step:g} mm" if step else "every coronal and sagittal slice"
    said.append(f"All slices: every axial slice, {others}; slices without head are skipped")
    said.append(
        f"bMMD² and MS-SSIM use the uppermost {found.frame.depth} slices, shorter volumes padded with air; MS-SSIM is "
        "computed on isotropic voxels with as many of its five scales as fit (the legacy form on the voxels as they "
        "are)"
    )
    said.append(
        "Floors are distances between two random halves of the real set; compare them with the value at their n"
    )
    return said


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def to_csv(rows: Sequence[Distance] | Sequence[Measurement]) -> str:
    """Rows with all their digits; the estimate's fields are columns of their own."""
    text = io.StringIO()
    flat = [_columns(row) for row in rows]
    if flat:
        writer = csv.DictWriter(text, list(flat[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)
    return text.getvalue()


def _columns(row: Distance | Measurement) -> dict[str, Any]:
    values = asdict(row)
    nested = "estimate" if isinstance(row, Distance) else "distance"
    prefix = "" if isinstance(row, Distance) else "wasserstein_"
    inner = values.pop(nested)
    return values | {f"{prefix}{name}": value for name, value in inner.items()}


def to_json(found: Evaluation) -> str:
    """Everything but the volumes' own profiles, numbers with six digits, missing ones null."""
    values = {
        "slicewise": slicewise.__version__,
        "extractor": found.extractor,
        "settings": {k: str(v) if k == "weights" and v else v for k, v in asdict(found.settings).items()},
        "grid": asdict(found.frame),
        "real": _side(found.real),
        "synth": _side(found.synth),
        "notices": list(found.notices),
        "distances": [_columns(row) for row in found.distances],
        "measurements": [_columns(row) for row in found.measurements],
        "audit": _audit(found.audit),
        "seconds": round(found.seconds, 1),
    }
    return json.dumps(rounded(values), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _side(side: Side) -> dict[str, Any]:
    volumes = [
        {"name": n, "sha256": d, "slices": s, "brain": a.has_brain}
        for n, d, s, a in zip(side.names, side.digests, side.slices, side.anatomy)
    ]
    return {"path": str(side.source.path), "count": len(volumes), "volumes": volumes}


def _audit(found: Audit | None) -> dict[str, Any] | None:
    if found is None:
        return None
    verdicts = [
        {
            "measure": v.name,
            "passed": v.passed,
            "distance_ratio": v.distance_ratio,
            "below": v.below,
            "p": v.p,
            "copies": list(v.copies),
            "synth_ratios": v.synth.tolist(),
            "real_ratios": v.real.tolist(),
        }
        for v in found.verdicts
    ]
    pairs = [
        {
            "synth": p.synth,
            "synth_slice": p.synth_slice,
            "train": p.train,
            "train_slice": p.train_slice,
            "ratio": p.ratio,
            "correlation": p.correlation,
        }
        for p in found.pairs
    ]
    return {
        "passed": found.passed,
        "training_volumes": found.volumes,
        "exact_copies": list(found.exact),
        "verdicts": verdicts,
        "closest_pairs": pairs,
    }
