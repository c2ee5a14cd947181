"""What was found in a scan, as files: NIfTI, DICOM that refers to the scan, JSON and a page. All say "research use".

<out>/anomaly.json                   settings, scores with their empirical p, regions
<out>/report.html                    the same with pictures
<out>/nifti/pseudo-normal.nii.gz     HU: the mean of the draws, on the checkpoint's grid
<out>/nifti/residual.nii.gz          HU: the scan less that mean
<out>/nifti/z.nii.gz                 float32 z-scores
<out>/nifti/regions.nii.gz           1 denser than expected, 2 less dense
<out>/dicom/pseudo-normal, residual  the first two as series in the scan's study
<out>/dicom/regions.dcm              the regions as a segmentation of the scan itself, where that is DICOM
"""

import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from scipy import ndimage

import slicewise
from slicewise.anomaly.page import page
from slicewise.anomaly.run import Anomalies, summary
from slicewise.anomaly.settings import AnomalySettings
from slicewise.errors import UserError
from slicewise.io.atomic import write_whole
from slicewise.io.dicom_seg import write_segments
from slicewise.io.dicom_write import SyntheticOrigin, series_header, write_series
from slicewise.io.nifti import write_nifti
from slicewise.volume import RAS_TO_LPS, Volume

RESEARCH_USE = "research use"
REGIONS = {1: f"denser than expected ({RESEARCH_USE})", 2: f"less dense than expected ({RESEARCH_USE})"}
_SERIES = {
    "pseudo-normal": "what the scan would look like if it were normal",
    "residual": "residual: the scan minus what it would look like if it were normal, in HU",
}


def write_anomalies(
    found: Anomalies,
    settings: AnomalySettings,
    out: Path,
    *,
    scan: Volume,
    path: Path,
    series_uid: str = "",
    patient_id: str = "",
    about: dict[str, Any],
) -> list[str]:
    """Write all that `found` holds below `out`, over what an earlier run wrote there; notes on what was omitted.

    Parameters
    ----------
    scan, path, series_uid : the scan as it was read, on its own grid; from which file or folder; which series there.
    patient_id : to write; by default the scan's.
    about : for anomaly.json: `model`, the checkpoint in words, and what else is to be told.

    Raises `UserError` where `out` cannot be written, or there is no Patient ID.
    """
    dicom, nifti = out / "dicom", out / "nifti"
    for folder in (dicom, nifti):
        shutil.rmtree(folder, ignore_errors=True)
    slices = tuple(range(len(found.volume.hu)))
    volumes = {"pseudo-normal": found.pseudo_normal, "residual": found.volume.with_hu(found.residual)}
    for number, (name, volume) in enumerate(volumes.items(), 901):
        said = replace(volume, acquisition=replace(volume.acquisition, real_slices=()))
        origin = SyntheticOrigin(
            about["model"], slicewise.__version__, settings.seed, 0, f"{_SERIES[name]}; {RESEARCH_USE}", drawn=slices
        )
        title = f"{name.capitalize()} ({RESEARCH_USE})"
        header = series_header(said, origin, patient_id, title, number, source=found.source)
        write_nifti(said, nifti / f"{name}.nii.gz", header)
        write_series(
            said,
            dicom / name,
            synthetic=origin,
            patient_id=patient_id,
            series_description=title,
            series_number=number,
            source=found.source,
        )
    _write_map(found.z, found.volume, nifti / "z.nii.gz", f"z-scores, {RESEARCH_USE}")
    _write_map(found.regions_map, found.volume, nifti / "regions.nii.gz", f"regions, {RESEARCH_USE}")
    notes = []
    if found.source.instances and patient_id in ("", found.source.header.get("PatientID")):
        notes = _segment(found, scan, path, dicom / "regions.dcm", series_uid)
    told = summary(found, settings, about)
    write_whole(out / "anomaly.json", (json.dumps(told, indent=1) + "\n").encode())
    write_whole(out / "report.html", page(found, told).encode())
    return notes


def _segment(found: Anomalies, scan: Volume, path: Path, file: Path, series_uid: str) -> list[str]:
    """Write the regions as a segmentation of the scan's own images; why that was omitted, where it was."""
    marked = on_scans_grid(found.regions_map, found.volume, scan)
    if not marked.any():
        return ["no region was found, so no segmentation was written"]
    title = f"Unexpected regions ({RESEARCH_USE})"
    try:
        write_segments(marked, scan.positions, REGIONS, path, file, "regions", series_uid, title, abnormal=True)
    except UserError as error:
        return [f"no segmentation: {error}"]
    return []


def on_scans_grid(marked: np.ndarray, volume: Volume, scan: Volume) -> np.ndarray:
    """Labels on the grid of `volume`, uint8 (Z, Y, X), at the voxels of `scan`, the nearest for each; 0 outside."""
    inverse = np.linalg.inv(volume.affine)
    rows, columns = np.mgrid[: scan.hu.shape[1], : scan.hu.shape[2]].astype(np.float64)
    dy, dx = scan.pixel_spacing
    out = np.zeros(scan.hu.shape, np.uint8)
    in_plane = rows[..., None] * dy * scan.column_axis + columns[..., None] * dx * scan.row_axis
    for z, position in enumerate(scan.positions):
        places = (in_plane + position) @ inverse[:3, :3].T + inverse[:3, 3]  # x, y, z
        out[z] = ndimage.map_coordinates(marked, np.moveaxis(places, -1, 0)[::-1], order=0, mode="constant", cval=0)
    return out


def _write_map(values: np.ndarray, volume: Volume, file: Path, description: str) -> None:
    """A map on the grid of a volume as NIfTI of its own dtype."""
    image = nibabel.Nifti1Image(values.transpose(2, 1, 0), RAS_TO_LPS @ volume.affine)
    image.header["descrip"] = description.encode()
    image.header.set_xyzt_units("mm")
    write_whole(file, gzip.compress(image.to_bytes(), compresslevel=4, mtime=0))
