"""Take out of DICOM images what says who the patient is: Basic Application Level Confidentiality Profile, PS3.15 E.

Nothing stays but what is listed here: numbers and terms that describe a CT image and its geometry, and the names of
maker, model and kernel. So what the profile's table removes goes, and what no table knows goes as well: private and
unknown attributes, other calendars, order numbers, URLs, free text. UIDs and the Patient ID become others through a
keyed hash (HMAC-SHA256): who holds the key gets the same ones again, so that series and patients stay together between
runs, and nobody else finds the way back. Pixels are decoded and written plain, cut to the bits that are stored, so that
nothing rides above or behind them; what they show is not looked at, but for the face, on request.
"""

import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from slicewise.errors import UserError
from slicewise.hu import TRUE_AIR_HU
from slicewise.io.atomic import write_whole
from slicewise.io.dicom import load
from slicewise.io.dicom_scan import CT_IMAGE, ENHANCED_CT, Slice, read_header, scan
from slicewise.io.files import Files, Skipped, files_below
from slicewise.io.nifti import is_nifti
from slicewise.io.provenance import REAL_FRAME, code_item
from slicewise.io.secret import keep_key, keyed, read_key
from slicewise.volume import Volume

KEY_FILE = ".deidentify-key"  # hidden, so that no scan reads it; not to be given away with the data
REPORT_FILE = "deidentified.json"

# What stays: numbers of the CT Image and Enhanced CT Image IODs (PS3.3 A.3, A.38), whatever they are.
NUMBERS = frozenset(
    """
    SamplesPerPixel Rows Columns NumberOfFrames BitsAllocated BitsStored HighBit PixelRepresentation PixelAspectRatio
    PixelPaddingValue PixelPaddingRangeLimit PixelSpacing SliceThickness SpacingBetweenSlices SliceLocation
    ImagePositionPatient ImageOrientationPatient RescaleSlope RescaleIntercept WindowCenter WindowWidth
    LossyImageCompressionRatio SeriesNumber AcquisitionNumber InstanceNumber InStackPositionNumber DimensionIndexValues
    DimensionIndexPointer FunctionalGroupPointer TemporalPositionIndex ReferencedFrameNumber
    KVP XRayTubeCurrent XRayTubeCurrentInmA ExposureTime ExposureTimeInms Exposure ExposureInmAs GeneratorPower
    GantryDetectorTilt TableHeight TableSpeed TableFeedPerRotation SpiralPitchFactor RevolutionTime
    SingleCollimationWidth TotalCollimationWidth DataCollectionDiameter ReconstructionDiameter
    ReconstructionFieldOfView ReconstructionPixelSpacing ReconstructionAngle ReconstructionTargetCenterPatient
    DataCollectionCenterPatient DistanceSourceToDetector DistanceSourceToPatient
    DistanceSourceToDataCollectionCenter FocalSpots CTDIvol EstimatedDoseSaving TubeAngle
    """.split()
)
# Terms: what stays of these attributes, value by value (defined terms of PS3.3 and what scanners add to Image Type).
TERMS: Mapping[str, frozenset[str]] = {
    name: frozenset(terms.split("|"))
    for name, terms in {
        "ImageType": "ORIGINAL|DERIVED|PRIMARY|SECONDARY|AXIAL|LOCALIZER|VOLUME|HELIX|SPI|CT_SOM5|CT_SOM7|NONE|MPR|"
        "REFORMATTED|RESAMPLED|SCOUT",
        "FrameType": "ORIGINAL|DERIVED|PRIMARY|AXIAL|LOCALIZER|VOLUME|NONE|MPR|RESAMPLED",
        "Modality": "CT|MR|PT|OT|SR|SEG",
        "PhotometricInterpretation": "MONOCHROME1|MONOCHROME2|RGB|PALETTE COLOR",
        "PatientPosition": "HFS|HFP|HFDR|HFDL|FFS|FFP|FFDR|FFDL",
        "RescaleType": "HU|US",
        "LossyImageCompression": "00|01",
        "LossyImageCompressionMethod": "ISO_10918_1|ISO_14495_1|ISO_15444_1",
        "BodyPartExamined": "HEAD|BRAIN|SKULL|NECK|HEADNECK|FACE|ORBIT|SINUS",
        "BurnedInAnnotation": "NO",
        "SyntheticData": "YES|NO",
        "FrameComments": REAL_FRAME,
        "WindowCenterWidthExplanation": "BRAIN|SUBDURAL|BONE|WHOLE RANGE|WINDOW1|WINDOW2",
        "PresentationLUTShape": "IDENTITY|INVERSE",
        "PixelPresentation": "MONOCHROME|COLOR",
        "VolumetricProperties": "VOLUME|SAMPLED|DISTORTED|MIXED",
        "VolumeBasedCalculationTechnique": "NONE|MAX_IP|MIN_IP|VOLUME_RENDER|MPR|CURVED_MPR",
        "ContentQualification": "PRODUCT|RESEARCH|SERVICE",
        "AcquisitionType": "SEQUENCED|SPIRAL|CONSTANT_ANGLE|STATIONARY|FREE",
        "RotationDirection": "CW|CC",
        "FilterType": "WEDGE|BUTTERFLY|MULTIPLE|STRIP|NONE",
        "ReconstructionAlgorithm": "FILTER_BACK_PROJ|ITERATIVE",
        "FrameLaterality": "R|L|U|B",
        "DimensionDescriptionLabel": "StackID|InStackPositionNumber|ImagePositionPatient",
        "StackID": "1",
    }.items()
}
# Free text that stays: it tells scanners apart, not patients.
TEXTS = frozenset(("Manufacturer", "ManufacturerModelName", "ConvolutionKernel"))
# Sequences that are looked into; all others go.
SEQUENCES = frozenset(
    """
    SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence PixelMeasuresSequence PlanePositionSequence
    PlaneOrientationSequence PixelValueTransformationSequence FrameVOILUTSequence FrameContentSequence
    CTImageFrameTypeSequence CTAcquisitionTypeSequence CTAcquisitionDetailsSequence CTTableDynamicsSequence
    CTPositionSequence CTGeometrySequence CTReconstructionSequence CTExposureSequence CTXRayDetailsSequence
    FrameAnatomySequence DimensionOrganizationSequence DimensionIndexSequence SourceImageSequence
    IrradiationEventIdentificationSequence
    """.split()
)
UIDS = frozenset(
    """
    SOPInstanceUID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID DimensionOrganizationUID
    ReferencedSOPInstanceUID IrradiationEventUID
    """.split()
)
CLASSES = frozenset(("SOPClassUID", "ReferencedSOPClassUID"))
# Attributes that the IODs want empty (type 2) and, where the image had them, with some value (type 1).
_EMPTY = (
    "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID",
    "PositionReferenceIndicator",
)  # fmt: skip
_DUMMIES = {
    "ContentDate": "19000101", "ContentTime": "000000", "AcquisitionDateTime": "19000101000000",
    "DeviceSerialNumber": "REMOVED", "SoftwareVersions": "REMOVED",
}  # fmt: skip
_PADDING = ("PixelPaddingValue", "PixelPaddingRangeLimit")
_NUMERIC = frozenset(("US", "SS", "UL", "SL", "UV", "SV", "FL", "FD", "DS", "IS", "AT"))

# Which voxels of a volume show the face: bool (Z, Y, X).
FaceMask = Callable[[Volume], np.ndarray]


@dataclass(frozen=True)
class DeidentifyReport:
    """What a run did: files written and there before, how many files each attribute was taken out of (by keyword, in
    all runs into the folder), what was left out and why, and what to look at."""

    written: int
    there_before: int
    attributes: dict[str, int]
    skipped: tuple[Skipped, ...]
    warnings: tuple[str, ...]


def deidentify_files(
    paths: Iterable[Path | str],
    out: Path | str,
    progress: Callable[[int, int], None] = lambda done, total: None,
    face: FaceMask | None = None,
) -> DeidentifyReport:
    """De-identify every CT image below the paths into `out/PATIENT/STUDY/SERIES/INSTANCE.dcm`, all of them new names.

    The key is made with the first image, in `out/.deidentify-key`; with it, a later run continues and skips what
    exists. `out/deidentified.json` counts what was removed; it holds no value and no file name. With `face`, what
    that function finds of each series is set to air; a series whose volume cannot be read is then left out.

    Raises `UserError` where there is no CT image, and where `out` cannot be written; whole files stay.
    """
    out = Path(out)
    files, key = files_below(paths), read_key(out / KEY_FILE)
    faces: dict[tuple[str, int], np.ndarray] = {}
    attributes, skipped, doubts, written, before = _counted(out), files.skipped, Counter[str](), 0, 0
    refused: set[str] = set()
    if face is not None:
        faces, refused = _faces(files, face, skipped)
    for number, file in enumerate(files.paths):
        progress(number, len(files.paths))
        if is_nifti(file):
            reason = "NIfTI is not de-identified: check its name, its header's texts and its JSON file yourself"
            skipped.append(Skipped(file, reason))
            continue
        found = read_header(file)
        if found is None or file in refused:
            continue
        if isinstance(found, Skipped):
            skipped.append(found)
            continue
        try:
            ds = pydicom.dcmread(file)
            why = unfit(ds)
            if why:
                skipped.append(Skipped(file, why))
                continue
            doubts.update(doubtful(ds))
            target = out / _place(ds, key)
            if target.is_file():
                before += 1
                continue
            touched, stream = deidentify(ds, key), BytesIO()
            _blank(ds, found[1], faces)
            ds.save_as(stream, enforce_file_format=True)
        except UserError:
            raise
        except Exception as error:  # pydicom raises many kinds on elements that are garbled
            skipped.append(Skipped(file, f"damaged header or pixels ({type(error).__name__})", damaged=True))
            continue
        attributes.update(touched)
        keep_key(out / KEY_FILE, key)
        write_whole(target, stream.getvalue())
        written += 1
    told = tuple(Skipped(files.named(e.source), files.named(e.reason), e.damaged, e.series_uid) for e in skipped)
    if not written and not before:
        why = f"; {told[0].source}: {told[0].reason}" if told else ""
        raise UserError(f"{', '.join(map(str, paths))}: no CT image to de-identify here{why}")
    # Of a reason, not what stands in brackets: it could quote a header.
    reasons = Counter(entry.reason.partition("(")[0].strip() for entry in told)
    _write_report(out, attributes, written + before, reasons)
    notes = tuple(f"{count} images {text}" for text, count in doubts.items())
    return DeidentifyReport(written, before, dict(attributes), told, notes)


def unfit(ds: Dataset) -> str:
    """Why an image cannot be given away whatever its header is cleaned of, "" where it can."""
    burned = str(ds.get("BurnedInAnnotation") or "").strip().upper()
    kinds = {str(value).strip().upper() for value in _values(ds.get("ImageType"))}
    if burned[:1] in ("Y", "T", "1"):
        return "annotation is burned into the pixels, which is not cleaned"
    if any("SCREEN" in kind for kind in kinds):
        return "a screen capture by its Image Type, which can show names"
    return ""


def doubtful(ds: Dataset) -> list[str]:
    """What of an image is to be looked at, though nothing forbids it."""
    kinds = {str(value).strip().upper() for value in _values(ds.get("ImageType"))}
    synthetic = ds.get("SyntheticData") == "YES"
    return [
        text
        for text, holds in (
            ("are SECONDARY by their Image Type: look for text in the pixels", "SECONDARY" in kinds and not synthetic),
            ("were converted from film or screen: look for text in the pixels", bool(ds.get("ConversionType"))),
            (
                "say that they show a recognisable face: see the option deface",
                str(ds.get("RecognizableVisualFeatures") or "").strip().upper()[:1] == "Y",
            ),
        )
        if holds
    ]


def deidentify(ds: Dataset, key: bytes) -> set[str]:
    """Clean a data set with its pixels in place; the keywords of what was taken out of it.

    Afterwards Patient Identity Removed (0012,0062) is YES, with method and code (DCM 113100), and Longitudinal Temporal
    Information Modified (0028,0303) is REMOVED. The file meta information is rebuilt; the transfer syntax is Explicit
    VR Little Endian. Images of other classes than CT keep no pixels: they are blanked.

    Raises whatever pydicom raises for garbled elements and pixels.
    """
    patient = pseudonym(str(ds.get("PatientID") or ds.get("StudyInstanceUID", "")), key)
    ds.decode()
    touched: set[str] = set()
    _clean_pixels(ds)
    had = [name for name in _DUMMIES if name in ds]
    _clean(ds, key, touched)
    for name in _EMPTY:
        setattr(ds, name, None)
    for name in had:
        setattr(ds, name, _DUMMIES[name])
    if ds.SOPClassUID in ENHANCED_CT:
        ds.AcquisitionContextSequence = []
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.PatientID, ds.PatientName = patient, patient
    ds.PatientIdentityRemoved = "YES"
    ds.LongitudinalTemporalInformationModified = "REMOVED"
    ds.DeidentificationMethod = "PS3.15 basic profile, and all but listed attributes"
    ds.DeidentificationMethodCodeSequence = [code_item("113100", "Basic Application Confidentiality Profile")]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationVersionName = "SLICEWISE"
    ds.file_meta, ds.preamble = meta, b"\0" * 128
    return touched


def pseudonym(patient_id: str, key: bytes) -> str:
    """The Patient ID that stands for another."""
    return "ANON-" + keyed(key, "patient", patient_id.strip()).hex()[:16]


def new_uid(uid: str, key: bytes) -> UID:
    """The UID that stands for another (PS3.5 B.2: 2.25. and 128 bits)."""
    return UID(f"2.25.{uuid.UUID(bytes=keyed(key, 'uid', uid)[:16], version=5).int}")


def _place(header: Dataset, key: bytes) -> Path:
    """PATIENT/STUDY/SERIES/INSTANCE.dcm of an image, all of them new names."""
    patient = pseudonym(str(header.get("PatientID") or header.get("StudyInstanceUID", "")), key)
    uids = (header.get(k, "") for k in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"))
    study, series, instance = (new_uid(uid, key) for uid in uids)
    return Path(patient, study, series, f"{instance}.dcm")


def _clean(ds: Dataset, key: bytes, touched: set[str]) -> None:
    """Take out of a data set, and of the items of sequences that stay, all that is not listed to stay."""
    for element in list(ds):
        name = element.keyword
        if name in SEQUENCES and element.VR == "SQ":
            for item in element.value:
                _clean(item, key, touched)
        elif name == "AnatomicRegionSequence" and _is_head(element):
            element.value = [code_item("69536005", "Head", "SCT")]
        elif name in UIDS and element.VR == "UI":
            touched.add(name)
            element.value = _each(element.value, lambda uid: new_uid(uid, key))
        elif name == "PixelData":
            continue
        elif not _stays(element):
            if not element.is_empty:
                touched.add(_named(element))
            del ds[element.tag]


def _stays(element: DataElement) -> bool:
    """Whether an attribute is one that is kept, and holds what such an attribute holds; of Image Type and the like the
    values that are no known term are taken out here."""
    name = element.keyword
    if name in NUMBERS:
        return element.VR in _NUMERIC
    if name in CLASSES:
        return str(element.value) in _KNOWN_CLASSES
    if name in TEXTS:
        return element.VR in ("LO", "SH")
    if name in TERMS and element.VR in ("CS", "LO", "SH", "LT"):
        known = [str(value) for value in _values(element.value) if str(value).strip() in TERMS[name]]
        element.value = known[0] if len(known) == 1 else known
        return bool(known)
    return False


_KNOWN_CLASSES = frozenset(pydicom.uid.UID_dictionary)  # type: ignore[attr-defined]


def _is_head(region: DataElement) -> bool:
    """Whether the code of an anatomic region says head or brain, in SNOMED CT or RT."""
    codes = {str(item.get("CodeValue", "")) for item in region.value} if region.VR == "SQ" else set()
    return bool(codes) and codes <= {"69536005", "12738006", "T-D1100", "T-A0100"}


def _named(element: DataElement) -> str:
    """A name for counting: never a value, and for private attributes not even a tag."""
    if element.tag.is_private:
        return "private attributes"
    if 0x5000 <= element.tag.group <= 0x50FF or 0x6000 <= element.tag.group <= 0x60FF:
        return "curves and overlays"
    return element.keyword or "unknown attributes"


def _values(value: object) -> list[object]:
    return list(value) if isinstance(value, MultiValue | list | tuple) else [] if value in (None, "") else [value]


def _each(value: object, change: Callable[[str], object]) -> object:
    """A change of one value or of each of several."""
    if isinstance(value, MultiValue):
        return [change(str(v)) for v in value]
    return change(str(value)) if value else value


# --- Pixels ---------------------------------------------------------------------------------------------------------


def _clean_pixels(ds: Dataset) -> None:
    """Write the pixels plain: decoded, each cut to its stored bits at the lower end of the word, none behind the last.

    Padding that these bits cannot hold becomes the least value they can. Images of other classes than CT are blanked.
    """
    if "PixelData" not in ds:
        return
    if ds.SOPClassUID not in (CT_IMAGE, *ENHANCED_CT) or ds.get("SamplesPerPixel", 1) != 1 or ds.BitsAllocated != 16:
        size = ds.Rows * ds.Columns * int(ds.get("NumberOfFrames") or 1) * ds.get("SamplesPerPixel", 1)
        pixels = bytes(size * -(-ds.BitsAllocated // 8))
        vr = "OW" if ds.BitsAllocated > 8 else "OB"
    else:
        patterns = _patterns(ds)
        pixels, vr = _bit_table(ds).take(patterns).astype("<u2").tobytes(), "OW"
    ds.PixelData = pixels + b"\0" * (len(pixels) % 2)
    ds["PixelData"].VR = vr
    ds["PixelData"].is_undefined_length = False


def _patterns(ds: Dataset) -> np.ndarray:
    """The 16-bit words of the image as they are stored, with what rides above the stored bits; uint16, flat."""
    syntax = UID(ds.file_meta.TransferSyntaxUID)
    if syntax.is_compressed and syntax != DeflatedExplicitVRLittleEndian:
        return np.ascontiguousarray(pixel_array(ds, raw=True)).astype(np.int64).astype(np.uint16).ravel()
    count = ds.Rows * ds.Columns * int(ds.get("NumberOfFrames") or 1)
    order = "<u2" if syntax.is_little_endian else ">u2"
    return np.frombuffer(ds.PixelData, order, count).astype(np.uint16)


def _signed(value: int, signed: bool) -> int:
    """A 16-bit number read with a sign or without."""
    value %= 65536
    return value - 65536 if signed and value > 32767 else value


def _bit_table(ds: Dataset) -> np.ndarray:
    """What becomes of every 16-bit pattern, uint16 (65536,); Bits Stored, High Bit and padding are put right."""
    stored, signed = int(ds.BitsStored), ds.get("PixelRepresentation", 0) == 1
    high = int(ds.get("HighBit", stored - 1))
    raw = np.arange(65536, dtype=np.uint16)
    at_top = raw << np.uint16(15 - high)
    value = (at_top.view(np.int16) if signed else at_top).astype(np.int32) >> (16 - stored)
    least = -(1 << (stored - 1)) if signed else 0
    if ds.get("PixelPaddingValue") is not None:
        # Read with the pixels' sign, whatever the element's own (PS3.3 C.7.5.1.1.2).
        ends = [_signed(int(ds.get(name, ds.PixelPaddingValue)), signed) for name in _PADDING]
        whole = (raw.view(np.int16) if signed else raw).astype(np.int32)
        lost = (whole >= min(ends)) & (whole <= max(ends)) & (whole != value)
        value[lost] = least
        if lost.any():
            ds["PixelPaddingValue"] = DataElement(0x00280120, "SS" if signed else "US", least)
            if "PixelPaddingRangeLimit" in ds:
                del ds.PixelPaddingRangeLimit
    ds.HighBit = stored - 1
    return value.astype(np.int16).view(np.uint16) if signed else value.astype(np.uint16)


def _faces(files: Files, face: FaceMask, skipped: list[Skipped]) -> tuple[dict[tuple[str, int], np.ndarray], set[str]]:
    """The face in every slice, packed bits by file and frame, and the files of series in which it cannot be found."""
    faces: dict[tuple[str, int], np.ndarray] = {}
    refused: set[str] = set()
    dicom = Files([path for path in files.paths if not is_nifti(path)])
    for series in scan(dicom).series:
        try:
            volume = load(series).volume
            mask = face(volume)
        except UserError as error:
            refused |= {s.path for s in series.slices}
            skipped.append(Skipped(series.acquisition.source, f"no face can be found in it: {error}", damaged=True))
            continue
        places = {tuple(np.round(place, 3)): z for z, place in enumerate(volume.positions)}
        for s in series.slices:
            z = places.get(tuple(np.round(s.position, 3)))
            if z is None:
                refused.add(s.path)
                skipped.append(Skipped(s.path, "no axial slice to find a face in", damaged=True))
            else:
                faces[s.path, s.frame] = np.packbits(mask[z])
    return faces, refused


def _blank(ds: Dataset, slices: Iterable[Slice], faces: Mapping[tuple[str, int], np.ndarray]) -> None:
    """Set the face in the pixels of a cleaned data set to air, and say so."""
    if not faces:
        return
    signed, stored = ds.PixelRepresentation == 1, int(ds.BitsStored)
    least, most = (-(1 << (stored - 1)), (1 << (stored - 1)) - 1) if signed else (0, (1 << stored) - 1)
    pixels = np.frombuffer(ds.PixelData, "<i2" if signed else "<u2").copy()
    frames = pixels[: pixels.size].reshape(-1, ds.Rows * ds.Columns)
    for s in slices:
        mask = np.unpackbits(faces[s.path, s.frame], count=frames.shape[1]).astype(bool)
        air = round((TRUE_AIR_HU - s.intercept) / s.slope)
        frames[s.frame][mask] = min(max(air, least), most)
    ds.PixelData = pixels.tobytes()
    ds.DeidentificationMethodCodeSequence.append(code_item("113102", "Clean Recognizable Visual Features Option"))
    ds.DeidentificationMethod = [ds.DeidentificationMethod, "face set to air"]


def _counted(out: Path) -> Counter[str]:
    """The counts of earlier runs."""
    try:
        return Counter(json.loads((out / REPORT_FILE).read_text())["attributes"])
    except (FileNotFoundError, NotADirectoryError):
        return Counter()
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{out / REPORT_FILE}: damaged; remove it to start a new count") from None


def _write_report(out: Path, attributes: Counter[str], files: int, skipped: Counter[str]) -> None:
    report = {
        "profile": "PS3.15 Basic Application Level Confidentiality Profile; all removed but listed attributes",
        "files": files,
        "attributes": dict(attributes.most_common()),
        "skipped": dict(skipped.most_common()),
    }
    write_whole(out / REPORT_FILE, (json.dumps(report, indent=2) + "\n").encode())
