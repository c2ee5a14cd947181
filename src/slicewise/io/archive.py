"""Everything that a path can mean: one volume, or all volumes below a folder, DICOM and NIfTI alike."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slicewise.errors import UserError
from slicewise.io.dicom import Reading, load, one_series
from slicewise.io.dicom_scan import Series, scan
from slicewise.io.files import Files, Skipped, files_below
from slicewise.io.nifti import is_nifti, load_nifti
from slicewise.volume import Volume


@dataclass(frozen=True)
class Archive:
    """What lies below some paths: DICOM series, NIfTI files, what was left out and why, and how many other files, by
    the end of their names."""

    series: tuple[Series, ...]
    nifti: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    others: Mapping[str, int]


def find(paths: Iterable[Path | str], map_headers: Callable[..., Iterable[Any]] = map) -> Archive:
    """List the volumes below the paths; reads DICOM headers only. A path given twice counts once."""
    files = files_below(paths)
    nifti = tuple(file for file in files.paths if is_nifti(file))
    rest = Files([file for file in files.paths if not is_nifti(file)], files.skipped, files.unpacked)
    found = scan(rest, map_headers)
    return Archive(found.series, nifti, found.skipped, found.others)


def read_volume(
    path: Path | str,
    *,
    series_uid: str = "",
    interpolate_missing: bool = False,
    largest_part: bool = False,
    keep_holes: bool = False,
    grid_mm: float = 0.0,
) -> Reading:
    """The one volume at a path: a NIfTI file, a DICOM folder or a (multi-frame) DICOM file.

    Raises `UserError` where there is none, or more than one (`series_uid` picks a DICOM series). For the other
    parameters see `slicewise.io.dicom.load`.
    """
    path = Path(path)
    if path.is_file() and is_nifti(path):
        return load_nifti(path)
    if path.is_dir():
        archive = find([path])
        if archive.nifti and not archive.series:
            if len(archive.nifti) > 1:
                raise UserError(f"{path}: {len(archive.nifti)} NIfTI files where one volume was expected; specify one")
            return load_nifti(archive.nifti[0])
    series = one_series(path, series_uid)
    return load(
        series,
        interpolate_missing=interpolate_missing,
        largest_part=largest_part,
        keep_holes=keep_holes,
        grid_mm=grid_mm,
    )


def read_one(path: Path | str, **how: Any) -> Volume:
    """The one volume at a path, as `read_volume` finds it, without what was noticed on the way."""
    return read_volume(path, **how).volume


def read_volumes(
    path: Path | str, skipped: Callable[[Skipped], None] | None = None, *, interpolate_missing: bool = False
) -> Iterator[Reading]:
    """Every volume below a folder, one after the other; what is no volume goes to `skipped` with its reason."""
    archive = find([path])
    tell = skipped or (lambda entry: None)
    for entry in archive.skipped:
        tell(entry)
    for series in archive.series:
        try:
            yield load(series, interpolate_missing=interpolate_missing)
        except UserError as error:
            tell(Skipped(series.acquisition.source, str(error), series_uid=series.acquisition.series_uid))
    for file in archive.nifti:
        try:
            yield load_nifti(file)
        except UserError as error:
            tell(Skipped(file, str(error)))
