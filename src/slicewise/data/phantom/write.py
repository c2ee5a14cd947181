"""Heads as files: DICOM series with label maps, or straight into a prepared store."""

import gzip
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from slicewise.data.phantom.heads import (
    PHANTOM_VERSION,
    cache_of,
    check_settings,
    draw_descent,
    make_phantom,
    patient_id,
)
from slicewise.data.phantom.labels import LABELS
from slicewise.data.phantom.people import Person, is_prepared, load_person, load_shape, shape_file
from slicewise.data.settings import PhantomSettings
from slicewise.data.store import (
    Store,
    assign_split,
    fill_splits,
    move_patients,
    open_store,
    put_volume,
    write_settings,
)
from slicewise.errors import UserError, output_errors
from slicewise.io.atomic import write_whole
from slicewise.io.folders import is_store
from slicewise.progress import counting_bar
from slicewise.workers import start_worker


def write_phantoms(
    out: Path,
    count: int,
    seed: int = 0,
    settings: PhantomSettings | None = None,
    workers: int = 1,
    segmentations: bool = False,
) -> list[Path]:
    """Write heads `seed` .. `seed + count - 1` under `out`; returns their DICOM folders.

        out/dicom/<patient id>/           one CT series a head, each a patient of its own
        out/labels/<patient id>.nii.gz    tissue labels (uint8, same grid), names in out/labels/labels.json
        out/labels/<patient id>.json      what the head is, and the settings that made it
        out/segmentations/<patient id>.dcm   with `segmentations`: the labels as DICOM Segmentation

    A head that already exists with these settings is left alone, so a run that was stopped resumes.
    Raises `UserError` for bad settings, for a head made with other settings, and where `out` cannot be written.
    """
    settings = settings or PhantomSettings()
    check_settings(settings)
    if count < 1:
        raise UserError(f"count={count}: must be 1 or more")
    if seed < 0:
        raise UserError(f"seed={seed}: must be 0 or more")
    out = Path(out)
    with output_errors(out):
        (out / "dicom").mkdir(parents=True, exist_ok=True)
    write_whole(out / "labels" / "labels.json", (json.dumps(LABELS, indent=1) + "\n").encode())
    seeds = range(seed, seed + count)
    missing = [one for one in seeds if not _is_written(out, one, settings)]
    prepare_people(settings, missing, workers)
    write_each(partial(_write_one, out, settings), missing, workers, count)
    if segmentations:
        write_each(partial(_write_segmentation, out), list(seeds), workers, count, "segmentations")
    return [out / "dicom" / patient_id(one) for one in seeds]


def prepare_people(settings: PhantomSettings, seeds: Sequence[int], workers: int) -> None:
    """Compute once what heads of real anatomy need of their persons: parts, then the shapes of those that are morphed.
    Done beforehand, no two workers do the same."""
    if settings.anatomy is None:
        return
    drawn = [draw_descent(seed, settings) for seed in seeds]
    persons = {p for d in drawn for p in ((d.person, d.other, d.first) if d.share else (d.person,))}
    morphed = {(p, d.first) for d in drawn for p in d.morphed}
    cache = cache_of(settings)
    missing = sorted((p for p in persons if not is_prepared(p, cache)), key=lambda p: p.name)
    shapes = sorted((m for m in morphed if not shape_file(*m, cache).is_file()), key=lambda m: m[0].name)
    write_each(partial(_prepare, settings, missing), range(len(missing)), workers, len(missing), "label maps")
    write_each(partial(_register, settings, shapes), range(len(shapes)), workers, len(shapes), "shapes")


def _prepare(settings: PhantomSettings, persons: list[Person], number: int) -> None:
    load_person(persons[number], settings.numbering, cache_of(settings))


def _register(settings: PhantomSettings, shapes: list[tuple[Person, Person]], number: int) -> None:
    load_shape(*shapes[number], settings.numbering, cache_of(settings))


def write_each(
    write: Callable[[int], None], seeds: Sequence[int], workers: int, total: int, what: str = "phantoms"
) -> None:
    """`write(seed)` for every seed, in as many processes as there are workers, with a progress bar; the others of
    `total` already exist."""
    with counting_bar(bool(seeds), transient=True) as bar:
        task = bar.add_task(what, total=total, completed=total - len(seeds))
        if workers <= 1 or len(seeds) <= 1:
            for seed in seeds:
                write(seed)
                bar.advance(task)
            return
        with (
            _one_thread_each(),
            ProcessPoolExecutor(min(workers, len(seeds)), get_context("spawn"), start_worker) as pool,
        ):
            jobs = [pool.submit(write, seed) for seed in seeds]
            try:
                for job in as_completed(jobs):
                    job.result()
                    bar.advance(task)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes begun meanwhile do linear algebra in one thread unless the user says otherwise: with a process for
    every processor, more threads only wait for one another."""
    held = [name for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS") if name not in os.environ]
    os.environ.update(dict.fromkeys(held, "1"))
    try:
        yield
    finally:
        for name in held:
            del os.environ[name]


def _written(settings: PhantomSettings) -> dict[str, Any]:
    """Settings that decide what a head is, as plain JSON types."""
    plain = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items() if k != "cache"}
    found: dict[str, Any] = json.loads(json.dumps(plain))
    return found


def _is_written(out: Path, seed: int, settings: PhantomSettings) -> bool:
    """Whether this head is there whole (its description is written last). Raises `UserError` if made otherwise."""
    note = out / "labels" / f"{patient_id(seed)}.json"
    if not note.is_file() or not (out / "dicom" / patient_id(seed)).is_dir():
        return False
    try:
        found = json.loads(note.read_text())
        made = (found["version"], found["settings"])
    except (ValueError, KeyError, TypeError):
        return False
    if made != (PHANTOM_VERSION, _written(settings)):
        raise UserError(f"{note}: this head was made with other settings or another version; give a new folder")
    return True


def _write_one(out: Path, settings: PhantomSettings, seed: int) -> None:
    import nibabel

    from slicewise.io.dicom_write import SyntheticOrigin, write_series

    phantom = make_phantom(seed, settings)
    name = patient_id(seed)
    folder = out / "dicom" / name
    origin = SyntheticOrigin(
        model="slicewise head phantom",
        version=str(PHANTOM_VERSION),
        seed=seed,
        volume=0,
        description=f"{phantom.source}, pathology: {phantom.description['pathology'] or 'none'}",
    )
    shutil.rmtree(folder, ignore_errors=True)
    write_series(phantom.volume, folder, synthetic=origin, patient_id=name, series_description="Head phantom")
    # NIfTI keeps x, y, z order and RAS; DICOM is LPS.
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ phantom.volume.affine
    labels = nibabel.Nifti1Image(phantom.labels.transpose(2, 1, 0), affine).to_bytes()
    write_whole(out / "labels" / f"{name}.nii.gz", gzip.compress(labels, compresslevel=4, mtime=0))
    described = phantom.description | {"settings": _written(settings)}
    write_whole(out / "labels" / f"{name}.json", (json.dumps(described, indent=1) + "\n").encode())


def _write_segmentation(out: Path, seed: int) -> None:
    from slicewise.io.dicom_seg import write_segmentation

    name = patient_id(seed)
    file = out / "segmentations" / f"{name}.dcm"
    if not file.is_file():
        write_segmentation(out / "labels" / f"{name}.nii.gz", out / "dicom" / name, file)


def store_phantoms(
    out: Path,
    count: int,
    seed: int = 0,
    settings: PhantomSettings | None = None,
    workers: int = 1,
) -> Store:
    """Heads `seed` … `seed + count - 1` as a prepared store, in the split of the person they come from; procedural
    heads by `settings.split`, a small store with two in validation (see `fill_splits`).

    Voxels are exactly those of `make_phantom` (no resampling). Heads that already exist are kept. Raises
    `UserError` for bad settings, a folder that holds phantoms of other settings, or one that cannot be written.
    """
    settings = settings or PhantomSettings()
    check_settings(settings)
    if count < 1 or seed < 0:
        raise UserError(f"count={count}, seed={seed}: count must be 1 or more, seed 0 or more")
    out = Path(out)
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    about = {"phantom": _written(settings), "phantom_version": PHANTOM_VERSION}
    there = open_store(out) if is_store(out) else None
    held = {r.id for r in there.records} if there else set()
    if there is None or not held:
        write_settings(out, about)
    elif {key: there.settings.get(key) for key in about} != about:
        raise UserError(f"{out}: holds phantoms made with other settings or another version; choose another folder")
    missing = [s for s in range(seed, seed + count) if _name(s) not in held]
    prepare_people(settings, missing, workers)
    write_each(partial(_store_one, out, settings), missing, workers, count)
    if missing and settings.anatomy is None:  # heads of real anatomy stay in the split of their person
        made = open_store(out)
        move_patients(made, fill_splits(made, settings.split, 0))
    return open_store(out)


def _name(seed: int) -> str:
    return f"phantom-{seed:08d}"


def _store_one(out: Path, settings: PhantomSettings, seed: int) -> None:
    name = _name(seed)
    made = make_phantom(seed, settings)
    split = made.split or assign_split(name, settings.split)
    put_volume(out, made.volume, id=name, patient=name, split=split, source=made.source, synthetic=True)
