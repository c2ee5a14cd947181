"""One volume to a file or folder, in the form that its name asks for."""

from pathlib import Path

from slicewise.errors import UserError, output_errors
from slicewise.io.dicom_enhanced import write_enhanced
from slicewise.io.dicom_write import SyntheticOrigin, check_folder, check_patient_id, series_header, write_series
from slicewise.io.nifti import is_nifti, write_nifti
from slicewise.io.provenance import Provenance
from slicewise.volume import Volume


def write_volume(
    volume: Volume,
    out: Path,
    *,
    patient_id: str = "",
    description: str = "Head CT",
    synthetic: SyntheticOrigin | None = None,
    syntax: str = "uncompressed",
    source: Provenance | None = None,
) -> None:
    """Write NIfTI (.nii, .nii.gz) with its JSON file, a montage in three planes (.png), one Enhanced CT file (.dcm) or,
    for any other name, a DICOM series. `syntax` is the transfer syntax of DICOM, one of `SYNTAXES`; `source` says where
    the voxels came from, and every form but the montage carries it (see `slicewise.io.dicom_write.write_series`).

    Raises `UserError` for what `check_target` refuses, and where `out` cannot be written.
    """
    source, name = source or Provenance(), out.name.lower()
    check_target(out, patient_id, source)
    with output_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    if is_nifti(name):
        write_nifti(volume, out, series_header(volume, synthetic, patient_id, description, source=source))
    elif name.endswith(".png"):
        from slicewise.reporting.montage import save_montage

        save_montage([volume], out, [volume.acquisition.series_description])
    else:
        write = write_enhanced if name.endswith(".dcm") else write_series
        write(
            volume,
            out,
            synthetic=synthetic,
            patient_id=patient_id,
            series_description=description,
            syntax=syntax,
            source=source,
        )


def check_target(out: Path, patient_id: str, source: Provenance) -> None:
    """Raise `UserError` where `write_volume` could not write to `out`, as far as that shows before the voxels are made:
    a name of another format, a folder or file in use, no Patient ID."""
    name = out.name.lower()
    if out.suffix.lower() in (".gz", ".jpg", ".npy", ".nrrd", ".mha") and not is_nifti(name):
        raise UserError(
            f"{out}: slicewise writes .nii, .nii.gz, .png, .dcm or a DICOM folder; give a name of that kind"
        )
    if not name.endswith(".png"):
        check_patient_id(patient_id or str(source.header.get("PatientID", "")))
    if name.endswith(".dcm") and out.exists():
        raise UserError(f"{out}: already exists; give a new name, or remove it first")
    if not (is_nifti(name) or name.endswith((".png", ".dcm"))):
        check_folder(out)
