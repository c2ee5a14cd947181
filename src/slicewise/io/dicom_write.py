"""A Volume as a DICOM CT Image Storage series, one file a slice (PS3.3 A.3, the CT Image IOD).

Stored values are HU + 1024 in 12 of 16 bits, unsigned, with Rescale Intercept -1024 and slope 1, so that all 4096 codes
read back bit for bit. Every number that goes through a Decimal String is the shortest text that parses to the same
float64 where 16 characters can hold it, and the nearest one else (an error below 1e-9 mm for any head).

A series appears whole or not at all: it is written to a hidden folder beside its target and renamed at the end.
"""

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)
from pydicom.valuerep import format_number_as_ds

import slicewise
from slicewise.errors import UserError
from slicewise.hu import HU_MAX, HU_MIN
from slicewise.io.atomic import atomic_path
from slicewise.io.geometry import SAME_PLACE_MM
from slicewise.io.provenance import PATIENT, STITCHED, STUDY, Provenance, code_item, copied
from slicewise.volume import Volume, check_hu_range

# (explanation, centre, width) in HU, PS3.3 C.11.2.1.2. The brain preset is the paper's window [-10, 70]; the last one
# is exactly the 12-bit range, since a width w spans w - 1 HU about centre - 0.5.
WINDOW_PRESETS = (
    ("BRAIN", 30, 80),
    ("SUBDURAL", 75, 215),
    ("BONE", 600, 2800),
    ("WHOLE RANGE", 1024, 4096),
)

# Transfer syntaxes to write, by the name that users give; all of them lossless.
SYNTAXES = {
    "uncompressed": ExplicitVRLittleEndian,
    "jpeg-ls": JPEGLSLossless,
    "jpeg-2000": JPEG2000Lossless,
    "rle": RLELossless,
}

# Study and series date of volumes whose scan has none known: synthetic ones, and NIfTI.
FIXED_DATE = datetime(2000, 1, 1)
# Longest Patient ID and other LO text, and ST text (PS3.5 table 6.2-1).
_LO_LENGTH = 64
_ST_LENGTH = 1024


@dataclass(frozen=True)
class SyntheticOrigin:
    """What made a synthetic volume; it goes into the header of every slice.

    Attributes
    ----------
    model : name of the generator (checkpoint or "phantom").
    version : version of the checkpoint or program.
    seed : seed of the run.
    volume : index of the volume within the run.
    description : anything else worth saying in one line (sampler, steps, calibration).
    from_scan : it continues from a slice of a real scan.
    drawn : of a scan whose other slices are real, the slices that are synthetic, counted from 0.
    """

    model: str
    version: str
    seed: int
    volume: int = 0
    description: str = ""
    from_scan: bool = False
    drawn: tuple[int, ...] = ()

    def sentence(self, real_slices: Sequence[int] = ()) -> str:
        """One line for Derivation Description and Contribution Description; `real_slices` (counted from 0) are those
        of the scan that the volume continues from."""
        text = "Synthetic volume, not a patient"
        if self.drawn:
            numbers = ", ".join(str(z + 1) for z in self.drawn)
            text = f"Scan of a patient in which slice {numbers} is synthetic, for research only"
        elif self.from_scan:
            text = "Synthetic continuation of a scan of a patient; "
            numbers = ", ".join(str(z + 1) for z in real_slices)
            text += f"slice {numbers} is from that scan" if real_slices else "no slice is from that scan"
        text += f": model {self.model}, version {self.version}, seed {self.seed}, volume {self.volume}"
        return f"{text}; {self.description}" if self.description else text


def write_series(
    volume: Volume,
    folder: Path,
    *,
    synthetic: SyntheticOrigin | None,
    patient_id: str = "",
    series_description: str = "Head CT",
    series_number: int = 1,
    when: datetime | None = None,
    syntax: str = "uncompressed",
    source: Provenance | None = None,
) -> list[Path]:
    """Write `volume` as a CT series into the new folder `folder`; returns the files, the most superior slice first.

    With a `source`, the series joins its study: patient, study and frame of reference are repeated, the images refer to
    those that they were made of, and what the source says of its own making stays said (see `series_header`). All other
    UIDs are new and derived from a SHA-256 (PS3.5 B.2, "2.25."): the same volume from the same origin always gets the
    same ones (in any transfer syntax, since all are lossless), a volume that differs in a single voxel or position gets
    another series; volumes of one origin (raw and calibrated, say) share the study and the frame of reference. Of
    `volume.acquisition` only technical data are written: kVp, kernel, slice thickness, gantry tilt.

    Parameters
    ----------
    volume : HU in [-1024, 3071]; its positions and axes are written as they are, one position a slice.
    folder : must not exist, or be empty; parents are made.
    synthetic : what made the volume; sets Synthetic Data (0008,001C) = YES, and NO in the slices that
        `volume.acquisition.real_slices` names. None for a real volume says nothing but what `source` says.
    patient_id : Patient ID (0010,0020), at most 64 characters; without, the source's. With another one than the
        source's nothing that leads back to its patient, study or images is written.
    when : study date and time where the source has none; without, `FIXED_DATE`, so that equal volumes make equal files
        and a PACS still finds them by date.
    syntax : one of `SYNTAXES`.
    source : where the voxels came from, as `slicewise.io.archive.read_volume` says it.

    Raises `UserError` for a folder in use or not writable, a full disk, a bad patient id, or HU outside 12 bits; then
    nothing is left behind.
    """
    folder = Path(folder)
    source = source or Provenance()
    check_folder(folder)
    check_content(volume, folder, syntax)
    header = series_header(volume, synthetic, patient_id, series_description, series_number, when, source)
    names = [f"{number:04d}.dcm" for number in range(1, len(volume.hu) + 1)]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder) as partial:
            partial.mkdir()
            for index, name in enumerate(names):
                ds = compress(_slice_dataset(header, volume, index, source), syntax)
                ds.save_as(partial / name, enforce_file_format=True)
            if folder.is_dir():
                folder.rmdir()  # empty, as checked; an explicit rmdir works on every platform
    except OSError as error:  # not `output_errors`, which does not know how much space is needed
        reason = error.strerror or str(error)
        raise UserError(
            f"{folder}: cannot write the DICOM series ({reason}); nothing was kept, choose a writable folder with "
            f"{_megabytes(volume)} MB free"
        ) from error
    return [folder / name for name in names]


def decimal_string(value: float) -> str:
    """Decimal String (PS3.5 6.2, at most 16 characters): parses back to `value` where 16 characters can hold it."""
    value = float(value) + 0.0  # no "-0.0"
    text = repr(value)
    text = text[:-2] if text.endswith(".0") else text
    return text if len(text) <= 16 else format_number_as_ds(value)


def compress(ds: Dataset, syntax: str) -> Dataset:
    """The data set with its pixels encoded, losslessly, in one of `SYNTAXES`; its SOP Instance UID stays.

    Raises `UserError` where the encoder cannot: that of JPEG 2000 takes images of 32 pixels a side and more.
    """
    if syntax != "uncompressed":
        try:
            ds.compress(SYNTAXES[syntax], generate_instance_uid=False)
        except RuntimeError:  # how pydicom says that no encoder succeeded
            size = f"{ds.Rows} x {ds.Columns}"
            raise UserError(f"syntax={syntax}: cannot encode {size} pixels; choose another") from None
    return ds


def check_folder(folder: Path) -> None:
    """Raise `UserError` unless a series can be written there: nothing is at the path, or an empty folder."""
    try:
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"{folder}: folder is not empty; give a new one, or remove it first")
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: is a file, not a folder; give another name")
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be read ({error.strerror}); check its permissions or choose another folder"
        ) from error


def check_patient_id(patient_id: str) -> None:
    """Raise `UserError` for what is no Patient ID (LO, PS3.5 table 6.2-1)."""
    if not patient_id.strip() or len(patient_id) > _LO_LENGTH or "\\" in patient_id or not patient_id.isprintable():
        raise UserError(
            f"patient_id={patient_id!r}: a DICOM Patient ID has 1 to {_LO_LENGTH} printable characters and no "
            "backslash; give one"
        )


def check_content(volume: Volume, out: Path, syntax: str) -> None:
    """Raise `UserError` for a transfer syntax or HU that DICOM of ours cannot hold."""
    if syntax not in SYNTAXES:
        raise UserError(f"syntax={syntax}: unknown; choose {', '.join(SYNTAXES)}")
    outside = check_hu_range(volume.hu)
    if outside:
        raise UserError(
            f"{out}: {outside} voxels lie outside [{HU_MIN}, {HU_MAX}] HU, which 12 bits cannot store; clip the "
            "volume first"
        )


def _megabytes(volume: Volume) -> int:
    return int(np.ceil((volume.hu.nbytes + 4096 * len(volume.hu)) / 1e6))


def name_uid(*parts: object) -> UID:
    """A UUID-derived UID (PS3.5 B.2): 2.25. and 128 bits of a SHA-256 over the parts, marked as a name-based UUID."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return UID(f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}")


def _fingerprint(volume: Volume) -> str:
    """SHA-256 over voxels and geometry."""
    digest = hashlib.sha256(np.asarray(volume.hu, "<i2").tobytes())
    for array in (volume.positions, volume.row_axis, volume.column_axis, np.asarray(volume.pixel_spacing)):
        digest.update(np.asarray(array, "<f8").tobytes())
    return digest.hexdigest()


def series_header(
    volume: Volume,
    synthetic: SyntheticOrigin | None,
    patient_id: str,
    series_description: str,
    series_number: int = 1,
    when: datetime | None = None,
    source: Provenance | None = None,
) -> Dataset:
    """All attributes that the slices of a series have in common; parameters as in `write_series`.

    Of the source's header are repeated: patient, study and frame of reference, where the Patient ID is the source's and
    the volume is not made up but for some slices of a scan (`SyntheticOrigin.drawn`);
    Synthetic Data, Derivation Description and Code, and Contributing Equipment always, with what was done since added.

    Raises `UserError` for a bad Patient ID, or none where the source has none either.
    """
    source = source or Provenance()
    made_up = synthetic is not None and not synthetic.drawn
    if made_up or patient_id not in ("", source.header.get("PatientID")):
        source = source.without_patient()
    known, real = source.header, volume.acquisition.real_slices
    patient_id = patient_id or str(known.get("PatientID", ""))
    check_patient_id(patient_id)
    content = _fingerprint(volume)
    study = ("study", patient_id, synthetic or volume.acquisition.study_uid or content)
    series = ("series", *study, series_description, series_number, content, *(i.uid for i in source.instances[:1]))
    when = when or FIXED_DATE
    date, time = when.strftime("%Y%m%d"), when.strftime("%H%M%S")
    is_synthetic = bool(synthetic) or known.get("SyntheticData") == "YES" or volume.acquisition.synthetic
    derivation = _derivation(synthetic, real, source)
    ds = Dataset()

    # SOP Common, PS3.3 C.12.1
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID = CTImageStorage
    ds.ContributingEquipmentSequence = [*_earlier_equipment(known), _equipment(synthetic, derivation)]
    if is_synthetic:
        ds.SyntheticData = "YES"

    # Patient, C.7.1.1: the source's below, else the id that the caller chose, and nothing else
    ds.PatientName = f"Synthetic^{_name_part(patient_id)}" if is_synthetic and not real else _name_part(patient_id)
    ds.PatientID = patient_id
    ds.PatientBirthDate = ""
    ds.PatientSex = ""

    # General Study, C.7.2.1
    ds.StudyInstanceUID = name_uid(*study)
    ds.StudyID = ds.StudyInstanceUID[-12:]
    ds.StudyDate = date
    ds.StudyTime = time
    ds.ReferringPhysicianName = ""
    ds.AccessionNumber = ""
    ds.StudyDescription = "Synthetic head CT" if is_synthetic else "Head CT"

    # General Series, C.7.3.1, and Frame of Reference, C.7.4.1
    ds.Modality = "CT"
    ds.SeriesInstanceUID = name_uid(*series)
    ds.SeriesNumber = series_number
    ds.SeriesDate = date
    ds.SeriesTime = time
    ds.SeriesDescription = series_description[:_LO_LENGTH]
    ds.BodyPartExamined = "HEAD"
    ds.PatientPosition = "HFS"
    ds.FrameOfReferenceUID = name_uid("frame", *study)
    ds.PositionReferenceIndicator = ""
    ds.update(_joined(known))

    # General Equipment, C.7.5.1
    ds.Manufacturer = "slicewise"
    ds.ManufacturerModelName = (synthetic.model if synthetic else "slicewise")[:_LO_LENGTH]
    ds.SoftwareVersions = slicewise.__version__

    # General Image, C.7.6.1, and CT Image, C.8.2.1
    ds.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    ds.DerivationDescription = derivation
    codes = {step.code for step in source.steps if step.code} | ({STITCHED} if synthetic and real else set())
    items = [*known.get("DerivationCodeSequence", ()), *(code_item(*code) for code in sorted(codes))]
    if items:
        ds.DerivationCodeSequence = items
    ds.ContentDate = date
    ds.ContentTime = time
    ds.AcquisitionNumber = 1
    ds.BurnedInAnnotation = "NO"
    ds.LossyImageCompression = "00"
    _add_technique(ds, volume)
    _add_pixel_format(ds, volume)
    return ds


def _joined(known: Dataset) -> Dataset:
    """What the source says of patient, study, frame of reference and table, where it has a study to join."""
    if "StudyInstanceUID" not in known:
        return copied(known, PATIENT)
    ds = Dataset()
    for name in ("StudyDate", "StudyTime", "StudyID", "StudyDescription", "SeriesDate", "SeriesTime"):
        setattr(ds, name, "")  # a study says the same in all of its series, or nothing
    ds.SeriesDate, ds.SeriesTime = known.get("StudyDate", ""), known.get("StudyTime", "")
    ds.update(copied(known, (*PATIENT, *STUDY)))
    return ds


def _derivation(synthetic: SyntheticOrigin | None, real_slices: Sequence[int], source: Provenance) -> str:
    """Derivation Description (0008,2111): what the source says, and what was done since."""
    if synthetic:
        return synthetic.sentence(real_slices)[:_ST_LENGTH]
    done = "; ".join(step.text for step in source.steps) or "HU unchanged"
    before = str(source.header.get("DerivationDescription", "")).rstrip(". ")
    now = f"Exported by slicewise: {done}"
    return f"{before[: _ST_LENGTH - len(now) - 2]}; {now}" if before else now[:_ST_LENGTH]


def _earlier_equipment(known: Dataset) -> list[Dataset]:
    """Contributing Equipment of the source, with the scanner that made it where it is not of ours."""
    earlier = list(known.get("ContributingEquipmentSequence", ()))
    maker = str(known.get("Manufacturer", ""))
    if maker and maker != "slicewise":
        scanner = copied(known, ("Manufacturer", "ManufacturerModelName", "SoftwareVersions"))
        scanner.PurposeOfReferenceCodeSequence = [code_item("109101", "Acquisition Equipment")]
        earlier.append(scanner)
    return earlier


def _equipment(synthetic: SyntheticOrigin | None, derivation: str) -> Dataset:
    """An item of Contributing Equipment Sequence (0018,A001), PS3.3 C.12.1, purpose from CID 7005."""
    item = Dataset()
    purpose = ("109100", "Synthesizing Equipment") if synthetic else ("109102", "Processing Equipment")
    item.PurposeOfReferenceCodeSequence = [code_item(*purpose)]
    item.Manufacturer = "slicewise"
    item.ManufacturerModelName = (synthetic.model if synthetic else "slicewise")[:_LO_LENGTH]
    item.SoftwareVersions = (synthetic.version if synthetic else slicewise.__version__)[:_LO_LENGTH]
    item.ContributionDescription = derivation
    return item


def _name_part(text: str) -> str:
    """Text fit for one component of a Person Name: no separators, and room for the other component."""
    return "".join(" " if c in "^=" else c for c in text)[: _LO_LENGTH - len("Synthetic^")]


def _add_technique(ds: Dataset, volume: Volume) -> None:
    """Technical data of the acquisition (PS3.3 C.8.2.1) and slice geometry (Image Plane, C.7.6.2)."""
    acquisition, steps = volume.acquisition, volume.slice_steps
    ds.KVP = None if acquisition.kvp is None else decimal_string(acquisition.kvp)
    if acquisition.kernel:
        ds.ConvolutionKernel = acquisition.kernel[:16]
    if acquisition.gantry_tilt_deg is not None:
        ds.GantryDetectorTilt = decimal_string(acquisition.gantry_tilt_deg)
    ds.SliceThickness = decimal_string(acquisition.slice_thickness_mm or volume.spacing[0])
    if len(steps) and volume.is_even:
        ds.SpacingBetweenSlices = decimal_string(volume.spacing[0])
    ds.PixelSpacing = [decimal_string(v) for v in volume.pixel_spacing]
    ds.ImageOrientationPatient = [decimal_string(v) for v in (*volume.row_axis, *volume.column_axis)]


def _add_pixel_format(ds: Dataset, volume: Volume) -> None:
    """Image Pixel (PS3.3 C.7.6.3), Modality LUT values (C.8.2.1.1.5) and window presets (VOI LUT, C.11.2)."""
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = volume.hu.shape[1:]
    ds.BitsAllocated = 16
    ds.BitsStored = 12
    ds.HighBit = 11
    ds.PixelRepresentation = 0
    ds.RescaleIntercept = str(HU_MIN)
    ds.RescaleSlope = "1"
    ds.RescaleType = "HU"
    ds.WindowCenter = [str(centre) for _, centre, _ in WINDOW_PRESETS]
    ds.WindowWidth = [str(width) for _, _, width in WINDOW_PRESETS]
    ds.WindowCenterWidthExplanation = [name for name, _, _ in WINDOW_PRESETS]


def source_images(volume: Volume, index: int, source: Provenance, header: Dataset) -> list[Dataset]:
    """Items of Source Image Sequence (0008,2112), PS3.3 C.7.6.1.1.4, of a slice of a series with that header: the
    source's image of its place, or all images where it has none there; none where the series is another patient's, or
    is synthetic and this slice not of the scan that it continues from."""
    real = volume.acquisition.real_slices
    joined = header.StudyInstanceUID == source.header.get("StudyInstanceUID")
    if not joined and index not in real:
        return []
    place = volume.positions[index]
    here = [i for i in source.instances if np.abs(np.subtract(i.position, place)).max() < SAME_PLACE_MM]
    items: dict[str, Dataset] = {}
    for instance in here or source.instances:
        item = items.setdefault(instance.uid, Dataset())
        item.ReferencedSOPClassUID = source.header.get("SOPClassUID", CTImageStorage)
        item.ReferencedSOPInstanceUID = instance.uid
        item.PurposeOfReferenceCodeSequence = [code_item("121322", "Source image for image processing operation")]
        if here and instance.frame:
            item.ReferencedFrameNumber = instance.frame
    return list(items.values())


def _slice_dataset(header: Dataset, volume: Volume, index: int, source: Provenance) -> Dataset:
    """The header with what belongs to one slice: number, UID, position, sources, pixels."""
    ds = Dataset()
    ds.update(header)
    ds.SOPInstanceUID = name_uid("instance", header.SeriesInstanceUID, index)
    ds.InstanceNumber = index + 1
    if index in volume.acquisition.real_slices:
        # Not `ds.SyntheticData =`: the element is the header's own, in all slices.
        ds["SyntheticData"] = DataElement(0x0008001C, "CS", "NO")
    if sources := source_images(volume, index, source, header):
        ds.SourceImageSequence = sources
    ds.ImagePositionPatient = [decimal_string(v) for v in volume.positions[index]]
    ds.PixelData = (volume.hu[index].astype(np.int32) - HU_MIN).astype("<u2").tobytes()
    ds.file_meta = file_meta(ds)
    return ds


def file_meta(ds: Dataset) -> FileMetaDataset:
    """File Meta Information (PS3.10 7.1) of an uncompressed data set of ours."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ds.SOPClassUID
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationVersionName = "SLICEWISE"
    return meta
