"""From an archive of DICOM and NIfTI to a store of volumes on one working grid, split by patient.

Running it again does only what is new; stopping it at any moment loses no finished volume.
"""

import json
import multiprocessing
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from slicewise.data.resample import body_mask, crop_above, resample_volume, shear_note
from slicewise.data.settings import PrepareSettings
from slicewise.data.store import (
    Record,
    Store,
    append,
    assign_split,
    fill_splits,
    move_patients,
    open_store,
    private_folder,
    write_settings,
    write_skipped,
    write_volume,
)
from slicewise.errors import UserError
from slicewise.io.archive import find
from slicewise.io.dicom import load
from slicewise.io.dicom_scan import PLACEHOLDER, Series
from slicewise.io.files import Skipped
from slicewise.io.folders import is_store
from slicewise.io.nifti import load_nifti, patient_of
from slicewise.io.secret import keep_key, keyed, read_key
from slicewise.progress import counting_bar
from slicewise.volume import Volume
from slicewise.workers import start_worker

KEY_FILE = "key"
# Below so many files a pool costs more than it saves while headers are read.
POOLED_FILES = 3000
# Widths of one head in two scans differ by less, below a vertex of this height.
UNLIKE_MM = 15.0
HEAD_TOP_MM = 100.0


@dataclass(frozen=True)
class PrepareReport:
    """What a run did.

    Attributes
    ----------
    prepared : ids of the volumes made (in a dry run: to be made).
    already_done : ids of those that were there before.
    skipped : what no volume was made of, and why.
    splits : volumes by split, in the whole store.
    clipped_voxels : voxels outside [-1024, 3071] HU in the volumes made by this run.
    others : how many files are no images, by the end of their names.
    warnings : what to look at: Patient IDs that may stand for several people, patients moved between splits.
    notes : "source: what was repaired", clipped voxels too, for the volumes made by this run.
    """

    prepared: tuple[str, ...]
    already_done: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    splits: dict[str, int]
    clipped_voxels: int
    notes: tuple[str, ...]
    others: Mapping[str, int]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Job:
    """One volume to make. `source` is a DICOM series, or the path of a NIfTI file."""

    id: str
    patient: str
    patient_id: str
    split: str
    name: str
    fingerprint: str
    source: Series | str


def prepare(
    inputs: Sequence[Path | str],
    out: Path | str,
    settings: PrepareSettings | None = None,
    progress: bool = True,
    dry_run: bool = False,
) -> PrepareReport:
    """Make every CT volume below the inputs ready for training, in the store `out`.

    Each volume is written as soon as it is made; a second run passes over those whose files have not changed. Patients
    are known in the store by a hash of their id under a key of its own, which lies beside it, in `out`.private.

    Raises `UserError` where the inputs hold nothing to prepare, where the store was made with other settings or its key
    is not there, and where it cannot be written.
    """
    settings, out = settings or PrepareSettings(), Path(out)
    if not inputs:
        raise UserError("nothing to prepare: give one or more folders or files")
    _check_store(out, settings)
    store = open_store(out) if is_store(out) else None
    key_file = private_folder(out) / KEY_FILE
    key = _key_of(store, key_file)
    done = {record.id: record for record in store.records} if store else {}
    warnings: list[str] = []
    if store and (rule := _split_of(store)) not in (None, (settings.split, settings.seed)):
        settings = replace(settings, split=rule[0], seed=rule[1])
        shares = " ".join(f"{share:g}" for share in settings.split)
        warnings.append(
            f"new patients are split like the rest of the store ({shares}, seed {settings.seed}); see slicewise split"
        )
    with _pool(settings.workers) as pool, counting_bar(progress) as bar:
        jobs, skipped, others = _find_jobs(inputs, settings, key, pool, bar)
        warnings += _shared_ids(jobs)
        if not jobs and not skipped:
            raise UserError(f"{_names(inputs)}: no DICOM or NIfTI file here; give a folder that holds CT scans")
        named = [job for job in jobs if isinstance(job.source, Series) and job.source.acquisition.names_patient]
        if named and not settings.allow_names:
            raise UserError(
                f"{named[0].name}: the headers of {len(named)} of {len(jobs)} scans hold patients' names; run "
                "slicewise deidentify first, or add PrepareSettings.allow_names=True"
            )
        finished = {job.id for job in jobs if _is_done(out, done.get(job.id), job)}
        todo = [job for job in jobs if job.id not in finished]
        if not dry_run:
            _remove_stale(out)
        records: list[Record] = []
        for result in () if dry_run else _run(todo, out, settings, pool, bar):
            if isinstance(result, Skipped):
                skipped.append(result)
            else:
                if not done and not records:
                    keep_key(key_file, key)
                    write_settings(out, _saved(settings) | {"key_check": _digest(key, "key", "")})
                append(out, result)
                records.append(result)
    if not dry_run and not done and not records:
        raise UserError(_nothing(inputs, skipped))
    if not dry_run:
        _write_skipped(out, skipped, jobs)
        warnings += _unlike_heads(open_store(out), {record.patient for record in records})
        moves = fill_splits(open_store(out), settings.split, settings.seed)
        move_patients(open_store(out), moves)
        records = [replace(record, split=moves.get(record.patient, record.split)) for record in records]
        done = {id: replace(r, split=moves.get(r.patient, r.split)) for id, r in done.items()}
    names = {job.id: job.name for job in jobs}
    total = {record.id: record.split for record in [*done.values(), *records]}
    if dry_run:
        total |= {job.id: job.split for job in todo}
    return PrepareReport(
        prepared=tuple(sorted(job.id for job in todo) if dry_run else sorted(record.id for record in records)),
        already_done=tuple(sorted(finished)),
        skipped=tuple(skipped),
        splits=dict(Counter(total.values())),
        clipped_voxels=sum(record.clipped_voxels for record in records),
        notes=tuple(f"{names[record.id]}: {note}" for record in records for note in record.notes),
        others=others,
        warnings=tuple(warnings),
    )


def _find_jobs(
    inputs: Iterable[Path | str], settings: PrepareSettings, key: bytes, pool: Executor | None, bar: Any
) -> tuple[list[_Job], list[Skipped], Mapping[str, int]]:
    """The volumes that can be made of the inputs, in a fixed order, what is left out by its header, and how many other
    files there are."""

    def map_headers(function: Any, files: Iterable[str]) -> Iterator[Any]:
        files = list(files)
        task = bar.add_task("headers", total=len(files))
        many = pool is not None and len(files) >= POOLED_FILES
        results = pool.map(function, files, chunksize=64) if many and pool else map(function, files)
        for result in results:
            bar.advance(task)
            yield result

    archive = find(inputs, map_headers)
    skipped, jobs = list(archive.skipped), []
    for series in archive.series:
        about = series.acquisition
        count = len(series.slices)
        if series.problem:
            skipped.append(Skipped(about.source, series.problem, series_uid=about.series_uid))
        elif count < settings.min_slices:
            reason = f"{count} slices, fewer than {settings.min_slices}"
            skipped.append(Skipped(series.name, reason, series_uid=about.series_uid))
        else:
            files = sorted({s.path for s in series.slices})
            patient = _patient(about.patient_id, about.source, inputs, settings)
            identity = f"{about.study_uid} {about.series_uid}"
            jobs.append(_job(patient, identity, about.source, files, series, settings, key))
    for file in archive.nifti:
        patient = _patient(patient_of(file), file, inputs, settings)
        jobs.append(_job(patient, os.path.abspath(file), file, [file], file, settings, key))
    return jobs, skipped, archive.others


def _patient(known: str, source: str, inputs: Iterable[Path | str], settings: PrepareSettings) -> str:
    """Whose scan a source is: as known, or the first folder or file below the input that it lies in."""
    if settings.patient_from == "id":
        return known
    place = Path(os.path.abspath(source))
    for root in (Path(os.path.abspath(path)) for path in inputs):
        if place.is_relative_to(root):
            return str(root / place.relative_to(root).parts[0]) if place != root else str(root)
    return str(place)


def _shared_ids(jobs: Sequence[_Job]) -> list[str]:
    """Warnings of Patient IDs that name nobody and stand for several studies."""
    studies: dict[str, set[str]] = defaultdict(set)
    for job in jobs:
        if isinstance(job.source, Series):
            studies[job.patient_id].add(job.source.acquisition.study_uid)
    return [
        f"Patient ID {patient} has {len(uids)} studies, which are taken as one patient's; if they are of several "
        "people, add PrepareSettings.patient_from=path"
        for patient, uids in studies.items()
        if len(uids) > 1 and PLACEHOLDER.fullmatch(patient)
    ]


def _unlike_heads(store: Store, patients: set[str]) -> list[str]:
    """Warnings of patients whose heads are of clearly different width, which a grown-up's is for life."""
    told = []
    for patient in sorted(patients):
        records = [record for record in store.records if record.patient == patient]
        if len(records) < 2:
            continue
        widths = {record.id: _head_width_mm(store.volume(record)) for record in records}
        narrow, wide = min(widths, key=widths.__getitem__), max(widths, key=widths.__getitem__)
        if widths[wide] - widths[narrow] > UNLIKE_MM:
            told.append(
                f"{narrow} and {wide} have the same Patient ID, but the heads are {widths[narrow]:.0f} and "
                f"{widths[wide]:.0f} mm wide; if they are of several people, add PrepareSettings.patient_from=path"
            )
    return told


def _head_width_mm(volume: Volume) -> float:
    """Greatest width of the head in the 100 mm below its vertex, where there are no ears' worth of difference."""
    below = max(1, round(HEAD_TOP_MM / volume.spacing[0]))
    columns = body_mask(crop_above(volume))[:below].any(axis=1)
    return float(columns.sum(axis=1).max()) * volume.pixel_spacing[1]


def _job(
    patient: str,
    identity: str,
    name: str,
    files: Sequence[str],
    source: Series | str,
    settings: PrepareSettings,
    key: bytes,
) -> _Job:
    """A job under a pseudonym of the patient; the id depends on the scan alone, the fingerprint on its files, all of
    them under the store's key: nobody who guesses a name can check the guess."""
    pseudonym = "p" + _digest(key, "patient", patient)[:12]
    states = ((os.path.basename(file), os.stat(file)) for file in files)
    text = "".join(f"{base} {state.st_size} {state.st_mtime_ns}\n" for base, state in states)
    return _Job(
        id=f"{pseudonym}-{_digest(key, 'scan', identity)[:8]}",
        patient=pseudonym,
        patient_id=patient,
        split=assign_split(patient, settings.split, settings.seed),
        name=name,
        fingerprint=_digest(key, "files", text),
        source=source,
    )


def _make(job: _Job, out: Path, settings: PrepareSettings) -> Record | Skipped:
    """Read, resample and write one volume: what a worker does. What is wrong with the scan makes it left out; what is
    wrong with the output is raised."""
    try:
        if isinstance(job.source, str):
            reading = load_nifti(job.source)
        else:
            reading = load(
                job.source,
                interpolate_missing=settings.interpolate_missing,
                largest_part=settings.largest_part,
                grid_mm=settings.slice_mm,
                threads=1,
            )
        if reading.doubt and not settings.trust_hu:
            raise UserError(
                f"{job.name}: values cannot be HU: {reading.doubt}; fix the file, or add PrepareSettings.trust_hu=True"
            )
        shear = "" if settings.keep_tilt else shear_note(reading.volume)
        volume = resample_volume(reading.volume, settings.grid)
        if len(volume.hu) < settings.min_slices:
            made = f"{len(volume.hu)} slices of {settings.slice_mm:g} mm after resampling"
            raise UserError(f"{job.name}: {made}, fewer than {settings.min_slices}")
    except UserError as error:
        uid = "" if isinstance(job.source, str) else job.source.acquisition.series_uid
        return Skipped(job.name, str(error), series_uid=uid)
    except MemoryError:
        return Skipped(job.name, "too large for the available memory; use fewer PrepareSettings.workers")
    return write_volume(
        out,
        volume,
        id=job.id,
        patient=job.patient,
        split=job.split,
        source=job.name if settings.keep_sources else "",
        clipped_voxels=reading.clipped.voxels,
        synthetic=reading.volume.acquisition.synthetic,
        vertex_slice=0 if settings.crop_air_above else None,
        source_fingerprint=job.fingerprint,
        notes=(*reading.notes, *filter(None, [reading.doubt and f"taken as HU although {reading.doubt}", shear])),
    )


def _run(
    jobs: Sequence[_Job], out: Path, settings: PrepareSettings, pool: Executor | None, bar: Any
) -> Iterator[Record | Skipped]:
    """Results as they come. Only as many jobs are handed out as keep the workers busy, so that a stop is quick."""
    task = bar.add_task("volumes", total=len(jobs))
    waiting = iter(jobs)
    if pool is None:
        for job in waiting:
            yield _make(job, out, settings)
            bar.advance(task)
        return
    ahead = _workers(settings.workers)
    running = {pool.submit(_make, job, out, settings) for job in islice(waiting, ahead)}
    try:
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                yield future.result()
                bar.advance(task)
                running |= {pool.submit(_make, job, out, settings) for job in islice(waiting, 1)}
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, most likely because memory ran out; run it again with fewer "
            "PrepareSettings.workers (finished volumes are kept)"
        ) from error


@contextmanager
def _pool(workers: int) -> Iterator[Executor | None]:
    """A pool of fresh processes; None for one worker."""
    count = _workers(workers)
    if count == 1:
        yield None
        return
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), start_worker)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _workers(workers: int) -> int:
    return workers or os.cpu_count() or 1


def _saved(settings: PrepareSettings) -> dict[str, Any]:
    """The settings that a store's volumes depend on; neither the number of workers is one nor what is allowed."""
    saved = asdict(settings) | {"split": list(settings.split)}
    for name in ("workers", "allow_names", "trust_hu", "keep_sources"):
        del saved[name]
    return saved


def _key_of(store: Store | None, file: Path) -> bytes:
    """The key of a store's pseudonyms, or a new one. Raises `UserError` where it is not the one that the store was made
    with: the same patients would get other names, and could come into two splits."""
    key = read_key(file)
    if store and store.settings.get("key_check") != _digest(key, "key", ""):
        raise UserError(
            f"{file}: missing, or not the key that {store.path} was made with, so its patients cannot be recognised; "
            "restore it, or prepare into another folder"
        )
    return key


def _split_of(store: Store) -> tuple[tuple[float, float, float], int] | None:
    """Shares and seed by which a store is split; None where it does not say."""
    held = store.settings
    return (tuple(held["split"]), held["seed"]) if "split" in held and "seed" in held else None


def _check_store(out: Path, settings: PrepareSettings) -> None:
    """Raise `UserError` where the store was made with other settings: its volumes would not go together."""
    file = out / "settings.json"
    if not file.exists() or not is_store(out):
        return
    try:
        before = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file}: damaged; restore it, or prepare into another folder") from error
    defaults = _saved(PrepareSettings())  # of settings that are younger than the store
    now = {key: value for key, value in _saved(settings).items() if key not in ("split", "seed")}
    held = defaults | before
    changed = [f"{key} = {held[key]}, now {value}" for key, value in now.items() if held[key] != value]
    if changed:
        raise UserError(f"{out}: prepared with other settings ({'; '.join(changed)}); prepare into another folder")


def _is_done(out: Path, record: Record | None, job: _Job) -> bool:
    """Whether a volume was made of the same files, and is there in full size."""
    if record is None or record.source_fingerprint != job.fingerprint:
        return False
    try:
        size = (out / record.file).stat().st_size
    except OSError:
        return False
    z, y, x = record.shape
    return 0 < size - 2 * z * y * x <= 1024


def _write_skipped(out: Path, skipped: list[Skipped], jobs: Sequence[_Job]) -> None:
    """Write what is left out, with what earlier runs over other inputs left out."""
    seen = {entry.source for entry in skipped} | {job.name for job in jobs}
    before = [e for e in (open_store(out).skipped if is_store(out) else ()) if e["source"] not in seen]
    now = [{"source": entry.source, "reason": entry.reason} for entry in skipped]
    write_skipped(out, [*before, *now])


def _remove_stale(out: Path) -> None:
    """Remove what a killed run left half written; an hour is longer than any volume takes."""
    for file in (out / "volumes").glob(".*.tmp"):
        with suppress(OSError):
            if time.time() - file.stat().st_mtime > 3600:
                file.unlink()


def _nothing(inputs: Sequence[Path | str], skipped: Sequence[Skipped]) -> str:
    """Why no volume could be made, in one line: the most telling reasons."""
    told = sorted(skipped, key=lambda entry: not entry.damaged)[:3]
    reasons = "; ".join(e.reason if e.source in e.reason else f"{e.source}: {e.reason}" for e in told)
    more = f"; and {len(skipped) - len(told)} more" if len(skipped) > len(told) else ""
    return f"{_names(inputs)}: no volume can be prepared: {reasons}{more}"


def _digest(key: bytes, kind: str, text: str) -> str:
    return keyed(key, kind, text).hex()


def _names(inputs: Sequence[Path | str]) -> str:
    return str(inputs[0]) if len(inputs) == 1 else f"{inputs[0]} and {len(inputs) - 1} more"
