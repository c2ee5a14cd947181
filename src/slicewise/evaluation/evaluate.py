"""How good is a set of synthetic volumes? Distances, tissue, continuity and copies, against a set of real ones."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slicewise.data.sets import open_set
from slicewise.errors import UserError
from slicewise.evaluation.audit import audit
from slicewise.evaluation.collect import Side, Voxels, Work, read_again, stream_sets
from slicewise.evaluation.page import PICTURED, page
from slicewise.evaluation.result import Evaluation
from slicewise.evaluation.settings import EvaluateSettings
from slicewise.evaluation.tables import to_csv, to_json, to_markdown
from slicewise.io.atomic import write_whole
from slicewise.io.cache import Cache
from slicewise.metrics.compare import (
    DIVERSITY,
    FRECHET,
    SHORT,
    Distance,
    Measurement,
    anatomy_distances,
    anatomy_measurements,
    feature_distances,
    measurement,
    voxel_distances,
    window_text,
)
from slicewise.progress import counting_bar

__all__ = ["EvaluateSettings", "Evaluation", "evaluate", "write_evaluation"]


def evaluate(
    real: Path,
    synth: Path,
    settings: EvaluateSettings | None = None,
    *,
    train: Path | None = None,
    splits: tuple[str, str, str] = ("all", "all", "all"),
    cache: Path | None = None,
    progress: bool = True,
) -> Evaluation:
    """Compare two sets of volumes.

    Parameters
    ----------
    real, synth : a prepared store, a folder of `slicewise generate`, or any DICOM and NIfTI.
    train : what the generator was trained on, for the memorisation audit; `real` must be held out from it.
    splits : which split of a prepared store is meant by real, synth and train.
    cache : folder of what was computed of each volume; None keeps it for this evaluation only.

    A few volumes are in memory at a time; of each 50 kB stay (200 kB with `train`), whatever its size.

    Raises `UserError` for fewer than two volumes, grids that differ, constant volumes, and missing weights.
    """
    from slicewise.metrics.extractors import make_extractor

    started = time.monotonic()
    settings = settings or EvaluateSettings()
    sides = [Side("REAL", open_set(real, splits[0])), Side("SYNTH", open_set(synth, splits[1]))]
    trained = Side("TRAIN", open_set(train, splits[2])) if train is not None else None
    for side in sides:
        _check_count(side, len(side.source.members))
    extractor = make_extractor(settings.extractor, settings.weights, settings.weights_sha256)
    with tempfile.TemporaryDirectory() as folder, counting_bar(progress, transient=True) as bar:
        work = Work(settings, extractor, Cache(cache or Path(folder)), audited=trained is not None)
        voxels = stream_sets(sides, work, bar)
        for side in sides:
            _check_count(side, len(side.names))
        found = audit(sides[0], sides[1], trained, work, bar) if trained is not None else None
        distances = _distances(sides, voxels, work, bar)
    rows = anatomy_measurements(
        sides[0].anatomy, sides[1].anatomy, settings.rounds, settings.seed, (sides[0].patients, sides[1].patients)
    )
    assert work.frame is not None
    return Evaluation(
        extractor.name,
        settings,
        work.frame,
        sides[0],
        sides[1],
        tuple(distances),
        (*rows, *_diversity(voxels, settings)),
        found,
        tuple(_notices(sides, trained, work)),
        time.monotonic() - started,
    )


def write_evaluation(found: Evaluation, out: Path) -> list[Path]:
    """Write metrics.json, tables.md, distances.csv, measurements.csv and evaluation.html into the folder `out`, each
    whole or not at all; returns their paths. Raises `UserError` where that cannot be done."""
    shown = [
        [read_again(side, i, found.settings, found.frame) for i in range(min(PICTURED, len(side.names)))]
        for side in (found.real, found.synth)
    ]
    texts = {
        "metrics.json": to_json(found),
        "tables.md": to_markdown(found),
        "distances.csv": to_csv(found.distances),
        "measurements.csv": to_csv(found.measurements),
        "evaluation.html": page(found, *shown),
    }
    for name, text in texts.items():
        write_whole(out / name, text.encode())
    return [out / name for name in texts]


def _check_count(side: Side, count: int) -> None:
    if count < 2:
        why = f"; left out: {side.skipped[0][0]}: {side.skipped[0][1]}" if side.skipped else ""
        raise UserError(f"{side.source.path}: {count} usable volume where a comparison needs two or more{why}")


def _distances(sides: Sequence[Side], voxels: Voxels, work: Work, bar: Any) -> list[Distance]:
    """Rows of the table of distances, Fréchet distances first."""
    settings = work.settings
    patients = sides[0].patients, sides[1].patients
    real, synth = ({key: np.stack(rows) for key, rows in side.middles.items()} for side in sides)
    task = bar.add_task("compare", total=None)
    rows = feature_distances(
        real, synth, settings.windows, settings.neighbours, settings.rounds, settings.seed, patients
    )
    bar.update(task, total=1, completed=1)
    if settings.all_slices:
        rows += _all_slices(sides, work, bar)
        rows.sort(key=lambda row: row.group != FRECHET)
    if voxels.between:
        batch = min(settings.batch, *(len(side.source.members) for side in sides))
        floors = {w: voxels.floor.get(w, []) for w in settings.windows}
        rows += voxel_distances(voxels.between, floors, batch, settings.seed)
    return rows + anatomy_distances(sides[0].anatomy, sides[1].anatomy, settings.rounds, settings.seed, patients)


def _all_slices(sides: Sequence[Side], work: Work, bar: Any) -> list[Distance]:
    """Fréchet distances on all slices: one plane and window at a time, features streaming by from the cache."""
    from slicewise.metrics.frechet import slices_estimate

    settings, rows = work.settings, []
    sizes = len(sides[0].names), len(sides[1].names)
    patients = sides[0].patients, sides[1].patients
    task = bar.add_task("slices", total=len(settings.windows) * len(SHORT))
    for window in settings.windows:
        for plane, short in SHORT.items():
            real, synth = (work.rows_of(side, (plane, window)) for side in sides)
            size = work.extractor.features
            found = slices_estimate(
                real, synth, sizes, size, rounds=settings.rounds, seed=settings.seed, patients=patients
            )
            rows.append(Distance(FRECHET, f"FID-{short}", window_text(window), "all", "", found.estimate, *sizes))
            bar.advance(task)
    return rows


def _diversity(voxels: Voxels, settings: EvaluateSettings) -> list[Measurement]:
    """MS-SSIM between pairs of one set: high where volumes resemble each other more than real ones do."""
    rows = []
    for form, title in (("correct", "MS-SSIM of pairs"), ("legacy", "MS-SSIM of pairs, legacy")):
        for window in settings.windows:
            real, synth = (
                [np.array([v]) for v in voxels.ms_ssim.get((side, window, form), [])] for side in ("REAL", "SYNTH")
            )
            name = f"{title}, {window_text(window)}"
            rows.append(measurement(DIVERSITY, name, "", real, synth, settings.rounds, settings.seed))
    return [row for row in rows if row is not None]


def _names(side: Side) -> set[str]:
    """Whose volumes a side holds, by name."""
    return {side.source.members[place].patient for place in side.members}


def _notices(sides: Sequence[Side], train: Side | None, work: Work) -> list[str]:
    """What a reader must know before trusting the numbers."""
    real, synth = sides
    said = []
    if work.settings.extractor == "radimagenet" and not work.settings.weights_sha256:
        said.append(
            "RadImageNet's weights exist in several files, and EvaluateSettings.weights_sha256 was not given: compare "
            "numbers only with those from the same file, whose hash is in the extractor's name."
        )
    if set(real.digests) == set(synth.digests):
        said.append(f"{real.source.path} is on both sides: every distance is that of a set to itself.")
    elif shared := len(set(real.digests) & set(synth.digests)):
        said.append(f"{shared} volumes are in both sets, voxel for voxel.")
    if train and (known := _names(real) & _names(train)):
        said.append(
            f"{len(known)} patients ({min(known)}, …) are, by their names, in both REAL and TRAIN: such heads are "
            "nearer to the training set than held-out ones, and copies may pass the audit."
        )
    for side in (*sides, *([train] if train else [])):
        if len(set(side.digests)) < len(side.digests):
            said.append(f"{side.source.path}: {len(side.digests) - len(set(side.digests))} volumes are duplicates.")
        said += [f"left out: {name}: {reason}" for name, reason in side.skipped]
        said += [f"left out: {entry.source}: {entry.reason}" for entry in side.source.skipped]
        said += [f"repaired: {note}" for note in side.notes]
    for side in sides:
        without = sum(not a.has_brain for a in side.anatomy)
        if without:
            said.append(
                f"{side.source.path}: no brain found in {without} of {len(side.anatomy)} volumes; tissue, noise and "
                "continuity leave them out" + (" and cannot be compared." if len(side.anatomy) - without < 2 else ".")
            )
        patients, volumes = len(set(side.patients)), len(side.names)
        if patients < volumes:
            said.append(
                f"{side.source.path}: {volumes} volumes of {patients} patients, by their names; intervals and floors "
                "resample patients."
            )
        elif len(_names(side)) == 1:
            said.append(
                f"{side.source.path}: all {volumes} volumes have the same patient name, "
                f"{side.source.members[0].patient}; each is taken as a patient of its own."
            )
        if patients < 4:
            of = f"volumes of {patients} patients" if patients < volumes else "volumes"
            said.append(f"{side.source.path}: {volumes} {of} are too few for a floor or a useful interval.")
        if side.resampled and work.frame:
            said.append(f"{side.source.path}: {side.resampled} volumes were resampled onto {work.frame.text}.")
    return said
