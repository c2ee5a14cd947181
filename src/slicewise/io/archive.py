"""Everything that a path can mean: one volume, or all volumes below a folder, DICOM and NIfTI alike."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slicewise.errors import UserError
from slicewise.io.dicom import Reading, load, one_series
from slicewise.io.dicom_scan import LeftOut, Series, files_below, scan
from slicewise.io.nifti import is_nifti, load_nifti


@dataclass(frozen=True)
class Archive:
    """What lies below some paths: DICOM series, NIfTI files, and what was left out and why."""

    series: tuple[Series, ...]
    nifti: tuple[str, ...]
    left_out: tuple[LeftOut, ...]


def find(paths: Iterable[Path | str], map_headers: Callable[..., Iterable[Any]] = map) -> Archive:
    """List the volumes below the paths; reads DICOM headers only. A path given twice counts once."""
    files = list(dict.fromkeys(file for path in paths for file in files_below(path)))
    nifti = tuple(file for file in files if is_nifti(file))
    found = scan((file for file in files if not is_nifti(file)), map_headers)
    return Archive(found.series, nifti, found.left_out)


def read_volume(path: Path | str, *, series_uid: str = "", interpolate_missing: bool = False) -> Reading:
    """The one volume at a path: a NIfTI file, a DICOM folder or a (multi-frame) DICOM file.

    Raises `UserError` where there is none, or more than one (`series_uid` picks a DICOM series).
    """
    path = Path(path)
    if path.is_file() and is_nifti(path):
        return load_nifti(path)
    if path.is_dir():
        archive = find([path])
        if archive.nifti and not archive.series:
            if len(archive.nifti) > 1:
                raise UserError(f"{path}: {len(archive.nifti)} NIfTI files where one volume was expected; name one")
            return load_nifti(archive.nifti[0])
    return load(one_series(path, series_uid), interpolate_missing=interpolate_missing)


def read_volumes(
    path: Path | str, left_out: Callable[[LeftOut], None] | None = None, *, interpolate_missing: bool = False
) -> Iterator[Reading]:
    """Every volume below a folder, one after the other; what is no volume goes to `left_out` with its reason."""
    archive = find([path])
    tell = left_out or (lambda entry: None)
    for entry in archive.left_out:
        tell(entry)
    for series in archive.series:
        try:
            yield load(series, interpolate_missing=interpolate_missing)
        except UserError as error:
            tell(LeftOut(series.acquisition.source, str(error), series_uid=series.acquisition.series_uid))
    for file in archive.nifti:
        try:
            yield load_nifti(file)
        except UserError as error:
            tell(LeftOut(file, str(error)))
