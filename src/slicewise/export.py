"""One volume to a file or folder, in the form that its name asks for."""

from pathlib import Path

from slicewise.errors import UserError, output_errors
from slicewise.io.dicom_enhanced import write_enhanced
from slicewise.io.dicom_write import SyntheticOrigin, write_series
from slicewise.io.nifti import write_nifti
from slicewise.volume import Volume


def write_volume(
    volume: Volume,
    out: Path,
    *,
    patient_id: str = "EXPORT",
    description: str = "Head CT",
    synthetic: SyntheticOrigin | None = None,
    syntax: str = "uncompressed",
) -> None:
    """Write NIfTI (.nii, .nii.gz), a montage in three planes (.png), one Enhanced CT file (.dcm) or, for any other
    name, a DICOM series. `syntax` is the transfer syntax of DICOM, one of `SYNTAXES`.

    Raises `UserError` where `out` cannot be written, or the folder of a DICOM series is in use.
    """
    name = out.name.lower()
    with output_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith((".nii", ".nii.gz")):
        with output_errors(out):
            write_nifti(volume, out)
    elif name.endswith(".png"):
        from slicewise.montage import save_montage

        save_montage([volume], out, [volume.acquisition.series_description])
    elif out.suffix in (".gz", ".jpg", ".npy", ".nrrd", ".mha"):
        raise UserError(f"--out {out}: slicewise writes .nii, .nii.gz, .png, .dcm or a DICOM folder; give such a name")
    else:
        write = write_enhanced if name.endswith(".dcm") else write_series
        write(volume, out, synthetic=synthetic, patient_id=patient_id, series_description=description, syntax=syntax)
