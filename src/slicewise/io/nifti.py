"""Read and write NIfTI: HU with the same geometry, RAS on disk and LPS inside."""

import gzip
import hashlib
import json
import os
import re
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from pydicom.dataset import Dataset

from slicewise.errors import UserError
from slicewise.hu import HU_MAX, HU_MIN, Clipped
from slicewise.io.atomic import write_whole
from slicewise.io.dicom import PADDING_HU, Reading
from slicewise.io.plausible import hu_doubt
from slicewise.io.provenance import EDITED, Step, from_sidecar
from slicewise.volume import RAS_TO_LPS, Acquisition, Volume, volume_from_affine

SUFFIXES = (".nii", ".nii.gz")
# The least dense tissue, fat, lies above this. Every CT of a head shows air too: with nothing below this, a file is
# scaled to grey levels.
LEAST_TISSUE_HU = -200
# How far two statements of a header on a voxel's place may differ: float32 and rounding.
CONFLICT_MM = 0.5
# The most that gzip can shrink: a header that claims more than this many times the file's size is wrong.
GZIP_LIMIT = 1032
# By the code of the spatial unit: metre, millimetre, micrometre.
_MM_PER_UNIT = {1: 1000.0, 2: 1.0, 3: 0.001}


def is_nifti(path: Path | str) -> bool:
    """Whether the name is one of a NIfTI file."""
    return os.fspath(path).lower().endswith(SUFFIXES)


def read_nifti(path: Path | str) -> Volume:
    """Read a .nii or .nii.gz file in HU into a Volume; see `load_nifti` for what is checked."""
    return load_nifti(path).volume


def load_nifti(path: Path | str, min_slices: int = 2) -> Reading:
    """Read a NIfTI file in HU, with what was clipped and repaired.

    Axes are permuted and flipped (never resampled) so that slice 0 is the most superior, rows run to the patient's left
    and columns to the back. Scaled values are rounded half to even; below -1200 HU is padding, so air.

    Raises `UserError` where the file is cut or no NIfTI, is not 3D, claims more voxels than it can hold,
    holds no HU (nothing below -200), has fewer than `min_slices` slices, or its affine makes no sense.
    """
    name = os.fspath(path)
    image = _open(name)
    if len(image.shape) < 3 or any(n != 1 for n in image.shape[3:]):
        raise UserError(f"{name}: {len(image.shape)} dimensions {image.shape}, where one 3D volume is expected")
    values = _values(name, image).reshape(image.shape[:3])
    notes: list[str] = []
    changes: list[str] = []
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        changes.append(f"{np.count_nonzero(~np.isfinite(values))} non-finite voxels set to air")
        values = np.nan_to_num(values, nan=HU_MIN, posinf=HU_MIN, neginf=HU_MIN)
    low, high = values.min(), values.max()
    if low >= LEAST_TISSUE_HU:
        raise UserError(
            f"{name}: values lie in [{low:g}, {high:g}], so they are not HU (air is -1000); convert the original again"
        )
    outside = (values > HU_MAX + 0.5) | ((values < HU_MIN - 0.5) & (values >= PADDING_HU))
    clipped = Clipped.of(values[outside]) if high > HU_MAX or low < HU_MIN else Clipped()
    if clipped.voxels:
        changes.append(str(clipped))
    if values.dtype.kind == "f":
        values = np.rint(values)
    hu = np.clip(values, HU_MIN, HU_MAX).astype(np.int16)
    if not (image.header["sform_code"] or image.header["qform_code"]):
        notes.append("the header gives no orientation: taken as right, anterior, superior")
    notes += _conflicts(image)
    affine = RAS_TO_LPS @ image.affine
    # Three bits of a byte (NIfTI-1, xyzt_units), of which nibabel knows not every value.
    affine[:3] *= _MM_PER_UNIT.get(int(image.header["xyzt_units"]) % 8, 1.0)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if np.isfinite(spacing).all() and not 0.02 <= spacing.min() <= spacing.max() <= 50:
        raise UserError(f"{name}: voxels of {' x '.join(f'{v:g}' for v in spacing)} mm are implausible; fix the header")
    about = _read_sidecar(name)
    real = about.get("RealSlices") or ()
    acquisition = Acquisition(
        patient_id=patient_of(name),
        source=name,
        synthetic=about.get("SyntheticData") is True,
        real_slices=tuple(z for z in real if isinstance(z, int) and 0 <= z < max(hu.shape)),
    )
    volume = volume_from_affine(hu, affine, acquisition)
    if len(volume.hu) < min_slices:
        raise UserError(f"{name}: {len(volume.hu)} slice where {min_slices} or more are needed; give a whole volume")
    source = from_sidecar({"PatientID": volume.acquisition.patient_id, **about})
    source = source.after(*(Step(text, EDITED) for text in changes))
    return Reading(volume, clipped, (*notes, *changes), source, hu_doubt(volume.hu))


def write_nifti(volume: Volume, path: Path | str, header: Dataset | None = None) -> None:
    """Write int16 HU with slope 1 and the volume's affine: sform and qform, or sform alone where a tilt shears it.

    `header` is the one that a DICOM series of the volume would have (`slicewise.io.dicom_write.series_header`): where
    the voxels came from stands then in `descrip`, as far as 79 characters go, and in a JSON file beside (`sidecar`).

    The file appears whole or not at all. Reading it back gives the same HU; geometry is stored in float32, as the
    format has it. Raises `UserError` for uneven slices, another suffix than .nii or .nii.gz, a JSON file of something
    else in the sidecar's place, and an output that cannot be written.
    """
    path = Path(path)
    if not is_nifti(path):
        raise UserError(f"{path}: a NIfTI file is named .nii or .nii.gz")
    affine = RAS_TO_LPS @ volume.affine
    image = nib.Nifti1Image(volume.hu.transpose(2, 1, 0), affine, dtype=np.int16)
    image.header.set_slope_inter(1, 0)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    sheared = np.abs(directions.T @ directions - np.eye(3)).max() > 1e-6
    image.set_qform(affine, code=0 if sheared else 1, strip_shears=True)
    if header is not None:
        image.header["descrip"] = str(header.DerivationDescription).encode("ascii", "replace")[:79]
        _write_sidecar(path, sidecar(header, volume))
    data = image.to_bytes()
    if path.name.lower().endswith(".gz"):
        data = gzip.compress(data, compresslevel=4, mtime=0)
    write_whole(path, data)


def sidecar(header: Dataset, volume: Volume) -> dict[str, Any]:
    """What is said of a NIfTI file in a JSON file of its name, in BIDS terms where BIDS has them (GeneratedBy and
    Description of derivatives, and names of DICOM attributes as dcm2niix writes them).

    `RealSlices` counts from the most superior slice, 0, as `Volume` does. Patient ID and UIDs are told of synthetic and
    of de-identified volumes alone: NIfTI is handed on as free of them.
    """
    synthetic, model = header.get("SyntheticData") == "YES", str(header.ManufacturerModelName)
    about = {
        "Modality": "CT",
        "Units": "HU",
        "ImageType": list(header.ImageType),
        "SyntheticData": synthetic,
        "Description": str(header.DerivationDescription),
        "GeneratedBy": [{"Name": "slicewise", "Version": str(header.SoftwareVersions), "Description": model}],
        "SeriesDescription": str(header.SeriesDescription),
        "SliceThickness": float(header.SliceThickness),
    }
    if volume.acquisition.real_slices:
        about["RealSlices"] = list(volume.acquisition.real_slices)
    if synthetic or header.get("PatientIdentityRemoved") == "YES":
        names = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
        about |= {name: str(header[name].value) for name in names}
    return about


def _sidecar_of(path: Path | str) -> Path:
    return Path(re.sub(r"\.nii(\.gz)?$", ".json", os.fspath(path), flags=re.I))


def _read_sidecar(path: Path | str) -> dict[str, Any]:
    """What the JSON file beside says; nothing where there is none that can be read."""
    try:
        about = json.loads(_sidecar_of(path).read_text())
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def _write_sidecar(path: Path, about: dict[str, Any]) -> None:
    file = _sidecar_of(path)
    if file.exists() and "GeneratedBy" not in _read_sidecar(path):
        raise UserError(
            f"{file}: already exists and was not written by slicewise; move it, or give {path.name} another name"
        )
    write_whole(file, (json.dumps(about, indent=2) + "\n").encode())


def patient_of(path: Path | str) -> str:
    """Whose scan a NIfTI file is, by its path: that up to the first BIDS subject (sub-...) in it, or else all of it,
    since many archives name every file alike. A readable name with a hash of that path."""
    path = os.path.realpath(path)
    subject = re.search(r"(?<=[/\\])sub-[A-Za-z0-9]+", path)
    whose = path[: subject.end()] if subject else re.sub(r"\.nii(\.gz)?$", "", path, flags=re.I)
    name = re.sub(r"[^\w.-]", "_", os.path.basename(whose))[:40]
    return f"{name}-{hashlib.sha256(whose.encode()).hexdigest()[:12]}"


def _open(name: str) -> Any:
    """The image with its header checked; no voxel is read."""
    if not os.path.isfile(name):
        raise UserError(f"{name}: no such file")
    try:
        image = nib.load(name)
    except Exception as error:  # nibabel raises many kinds on what is no image
        raise UserError(f"{name}: not a NIfTI file, or its header is damaged ({_one_line(error)})") from error
    if not isinstance(image, nib.Nifti1Image):
        raise UserError(f"{name}: a {type(image).__name__} where NIfTI is expected; convert it first")
    dtype = image.get_data_dtype()
    if dtype.kind not in "iuf":
        raise UserError(f"{name}: voxels of type {dtype} (colour or complex), not HU")
    claimed = int(np.prod([int(n) for n in image.shape], dtype=object)) * dtype.itemsize
    size = os.path.getsize(name)
    most = size * GZIP_LIMIT + 1024 if name.lower().endswith(".gz") else size
    if claimed <= 0 or claimed > most:
        shape = " x ".join(str(n) for n in image.shape)
        raise UserError(
            f"{name}: truncated or a damaged header: it claims {shape} voxels, {claimed} bytes, and the file has {size}"
        )
    return image


def _conflicts(image: Any) -> list[str]:
    """Where a NIfTI-1 header says two things of where its voxels lie: which is taken, and how far off the other is."""
    header, affine, told = image.header, image.affine, []
    sform, qform = (bool(header[f"{which}_code"]) for which in ("sform", "qform"))
    far = np.array([[*corner, 1.0] for corner in np.ndindex(2, 2, 2)]) * [*(np.array(image.shape[:3]) - 1), 1.0]
    if sform and qform:
        try:
            off = np.linalg.norm(far @ (affine - header.get_qform()).T, axis=1).max()
        except ValueError:
            return ["the header's sform is used; its qform is not a rotation"]
        if off > CONFLICT_MM:
            told.append(f"the header's sform is used; its qform puts voxels up to {off:.1f} mm elsewhere")
    elif sform:
        spacing, stated = np.linalg.norm(affine[:3, :3], axis=0), np.array(header.get_zooms()[:3], np.float64)
        if (np.abs(spacing - stated) * image.shape[:3]).max() > CONFLICT_MM:
            sizes = (" x ".join(f"{v:g}" for v in np.round(size, 3)) for size in (spacing, stated))
            told.append("the header's sform is used, voxels of {} mm; its pixdim says {}".format(*sizes))
    return told


def _values(name: str, image: Any) -> np.ndarray:
    """Voxel values: integers where the header's slope is 1 and its intercept whole, else float64."""
    try:
        raw = np.asanyarray(image.dataobj.get_unscaled())
    except (OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
        raise UserError(f"{name}: truncated or damaged ({_one_line(error)}); copy it again") from error
    slope, intercept = image.dataobj.slope, image.dataobj.inter
    if raw.dtype.kind in "iu" and slope == 1 and float(intercept).is_integer() and abs(intercept) < 2**30:
        wide = raw.astype(np.int64) if raw.dtype.itemsize > 2 else raw.astype(np.int32)
        found: np.ndarray = wide + int(intercept) if intercept else wide
        return found
    found = raw.astype(np.float64) * slope + intercept
    return found


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
