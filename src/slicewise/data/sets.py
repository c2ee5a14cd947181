"""A set of volumes behind one path, whatever form it has: a prepared store, a run, DICOM and NIfTI below a folder."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from slicewise.data.store import SPLITS, open_store
from slicewise.errors import UserError
from slicewise.io.archive import find
from slicewise.io.dicom import Reading, load
from slicewise.io.files import Skipped
from slicewise.io.folders import generated_series, is_store
from slicewise.io.nifti import load_nifti, patient_of
from slicewise.volume import without_real_slices


@dataclass(frozen=True)
class Member:
    """One volume of a set, not yet read.

    Attributes
    ----------
    name : to call it by.
    patient : whose it is.
    read : reads it; raises `UserError` where the files are damaged.
    """

    name: str
    patient: str
    read: Callable[[], Reading]


@dataclass(frozen=True)
class VolumeSet:
    """The volumes behind a path, in a fixed order, and what lies there that is none."""

    path: Path
    members: tuple[Member, ...]
    skipped: tuple[Skipped, ...] = ()


def open_set(path: Path | str, split: str = "all") -> VolumeSet:
    """List a set: of a prepared store the volumes of a split ("train", "val", "test" or "all"); of a folder of
    `slicewise generate` its DICOM series; else every DICOM series and NIfTI file below the path. No voxel is read.

    Raises `UserError` where there is nothing, or the split is unknown.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if split not in (*SPLITS, "all"):
        raise UserError(f"{path}: unknown split {split!r}; choose one of {', '.join(SPLITS)}, all")
    if is_store(path):
        store = open_store(path)
        records = store.records if split == "all" else store.select(split)
        members = [Member(r.id, r.patient, partial(store.reading, r)) for r in records]
        if not members:
            raise UserError(f"{path}: no volume in the {split} split of this store")
        return VolumeSet(path, tuple(members))
    archive = find([generated_series(path) or path])
    skipped = list(archive.skipped)
    members = []
    for series in archive.series:
        about = series.acquisition
        if series.problem:
            skipped.append(Skipped(about.source, series.problem, series_uid=about.series_uid))
        else:
            read = partial(_judged, partial(load, series))
            members.append(Member(about.source, about.patient_id or about.series_uid, read))
    members += [Member(file, patient_of(file), partial(_judged, partial(load_nifti, file))) for file in archive.nifti]
    if not members:
        found = f"; left out: {skipped[0].source}: {skipped[0].reason}" if skipped else ""
        raise UserError(f"{path}: no CT volume here (DICOM, NIfTI or a prepared store){found}")
    return VolumeSet(path, tuple(members), tuple(skipped))


def _judged(read: Callable[[], Reading]) -> Reading:
    """A volume without the slices of a real scan that a synthetic one continued from: they say nothing of the model."""
    reading = read()
    doubt = (f"values do not look like HU: {reading.doubt}",) if reading.doubt else ()
    real = len(reading.volume.acquisition.real_slices)
    left = (f"{real} seed slice{'s' * (real > 1)} of a real scan left out",) if real else ()
    return replace(reading, volume=without_real_slices(reading.volume), notes=(*reading.notes, *doubt, *left))
