"""A Volume as one Enhanced CT Image (PS3.3 A.38): all slices as frames of a single file.

What slices of a CT series repeat stands once in the shared functional groups, what tells them apart in the per-frame
ones. HU are stored as in `dicom_write`: 12 of 16 bits, unsigned, with Rescale Intercept -1024.
"""

from datetime import datetime
from itertools import count
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import UID, EnhancedCTImageStorage

import slicewise
from slicewise.errors import UserError, output_errors
from slicewise.hu import HU_MIN
from slicewise.io.atomic import atomic_file
from slicewise.io.dicom_write import (
    SyntheticOrigin,
    check_content,
    compress,
    decimal_string,
    file_meta,
    name_uid,
    series_header,
    source_images,
)
from slicewise.io.provenance import REAL_FRAME, Provenance
from slicewise.volume import Volume

# Attributes of the CT Image IOD that the enhanced one holds in functional groups, or not at all.
_MOVED = (
    "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices", "RescaleIntercept",
    "RescaleSlope", "RescaleType", "WindowCenter", "WindowWidth", "WindowCenterWidthExplanation", "KVP",
    "ConvolutionKernel", "GantryDetectorTilt", "DerivationDescription", "DerivationCodeSequence", "AcquisitionNumber",
)  # fmt: skip
# Image Type and Frame Type (C.8.15.2.1.1): derived, of a volume, no derived pixel contrast.
_IMAGE_TYPE = ["DERIVED", "PRIMARY", "VOLUME", "NONE"]
_STACK = "1"


def write_enhanced(
    volume: Volume,
    file: Path,
    *,
    synthetic: SyntheticOrigin | None,
    patient_id: str = "",
    series_description: str = "Head CT",
    series_number: int = 1,
    when: datetime | None = None,
    syntax: str = "uncompressed",
    source: Provenance | None = None,
) -> Path:
    """Write `volume` as one Enhanced CT file; parameters as in `write_series`.

    The study and the frame of reference are those of `write_series` for the same volume; the series is another one.

    Raises `UserError` for a file that exists or cannot be written, a bad patient id, an unknown syntax, or HU outside
    12 bits; then nothing is left behind.
    """
    file = Path(file)
    check_content(volume, file, syntax)
    if file.exists():
        raise UserError(f"{file}: already exists; give a new name, or remove it first")
    description = series_description
    series = series_header(volume, synthetic, patient_id, description, series_number, when, source)
    ds = compress(_dataset(series, volume, source or Provenance()), syntax)
    with output_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as stream:
            ds.save_as(stream, enforce_file_format=True)
    return file


def _dataset(series: Dataset, volume: Volume, source: Provenance) -> Dataset:
    ds = Dataset()
    ds.update({tag: series[tag] for tag in series.keys() if tag not in map(Tag, _MOVED)})
    ds.SOPClassUID = EnhancedCTImageStorage
    ds.SeriesInstanceUID = name_uid("enhanced", series.SeriesInstanceUID)
    ds.SOPInstanceUID = name_uid("instance", ds.SeriesInstanceUID, 0)

    # Enhanced General Equipment, C.7.5.2, and Acquisition Context, C.7.6.14
    ds.DeviceSerialNumber = slicewise.__version__
    ds.AcquisitionContextSequence = Sequence()

    # Enhanced CT Image, C.8.15.2
    ds.ImageType = _IMAGE_TYPE
    ds.InstanceNumber = 1
    ds.ContentQualification = "RESEARCH" if series.get("SyntheticData") == "YES" else "PRODUCT"
    ds.ImageComments = series.DerivationDescription
    ds.PresentationLUTShape = "IDENTITY"
    _describe(ds)

    # Multi-frame Functional Groups, C.7.6.16, and Dimension, C.7.6.17
    ds.NumberOfFrames = len(volume.hu)
    # A.38.1.4 lets a derived image name its irradiation event, and dciodvfy asks for it. The UID is ours alone.
    shared = _shared(series)
    event = name_uid("irradiation", series.StudyInstanceUID)
    shared.IrradiationEventIdentificationSequence = [_item(IrradiationEventUID=event)]
    ds.SharedFunctionalGroupsSequence = [shared]
    sources = [source_images(volume, index, source, series) for index in range(len(volume.hu))]
    ds.PerFrameFunctionalGroupsSequence = [_frame(*frame) for frame in zip(count(), volume.positions, sources)]
    for index in volume.acquisition.real_slices:
        ds.PerFrameFunctionalGroupsSequence[index].FrameContentSequence[0].FrameComments = REAL_FRAME
    if any(sources):
        ds.ReferencedImageEvidenceSequence = [_evidence(sources, source, volume.acquisition.series_uid)]
    organization = name_uid("dimensions", ds.SeriesInstanceUID)
    ds.DimensionOrganizationSequence = [_item(DimensionOrganizationUID=organization)]
    ds.DimensionIndexSequence = [
        _dimension(organization, "StackID"),
        _dimension(organization, "InStackPositionNumber"),
    ]

    ds.PixelData = (volume.hu.astype(np.int32) - HU_MIN).astype("<u2").tobytes()
    ds.file_meta = file_meta(ds)
    return ds


def _shared(series: Dataset) -> Dataset:
    """What all frames have in common (A.38.1.4)."""
    groups = Dataset()
    measures = _item(PixelSpacing=series.PixelSpacing, SliceThickness=series.SliceThickness)
    if "SpacingBetweenSlices" in series:
        measures.SpacingBetweenSlices = series.SpacingBetweenSlices
    groups.PixelMeasuresSequence = [measures]
    groups.PlaneOrientationSequence = [_item(ImageOrientationPatient=series.ImageOrientationPatient)]
    head = _item(CodeValue="69536005", CodingSchemeDesignator="SCT", CodeMeaning="Head")
    groups.FrameAnatomySequence = [_item(FrameLaterality="U", AnatomicRegionSequence=[head])]
    kind = _item(FrameType=_IMAGE_TYPE)
    _describe(kind)
    groups.CTImageFrameTypeSequence = [kind]
    groups.PixelValueTransformationSequence = [_item(RescaleIntercept=str(HU_MIN), RescaleSlope="1", RescaleType="HU")]
    groups.FrameVOILUTSequence = [
        _item(
            WindowCenter=series.WindowCenter,
            WindowWidth=series.WindowWidth,
            WindowCenterWidthExplanation=series.WindowCenterWidthExplanation,
        )
    ]
    return groups


def _evidence(images: list[list[Dataset]], source: Provenance, series_uid: str) -> Dataset:
    """All referenced images by study and series (Hierarchical SOP Instance Reference macro, C.17.2.1)."""
    classes = {item.ReferencedSOPInstanceUID: item.ReferencedSOPClassUID for items in images for item in items}
    referenced = [_item(ReferencedSOPClassUID=c, ReferencedSOPInstanceUID=uid) for uid, c in classes.items()]
    series = _item(SeriesInstanceUID=series_uid, ReferencedSOPSequence=referenced)
    return _item(StudyInstanceUID=source.header.StudyInstanceUID, ReferencedSeriesSequence=[series])


def _frame(index: int, position: np.ndarray, sources: list[Dataset]) -> Dataset:
    """What belongs to one frame: its place in the stack and in the patient, and the images it was made of."""
    number = index + 1
    content = _item(StackID=_STACK, InStackPositionNumber=number, DimensionIndexValues=[1, number])
    groups = _item(FrameContentSequence=[content])
    groups.PlanePositionSequence = [_item(ImagePositionPatient=[decimal_string(v) for v in position])]
    if sources:
        groups.ReferencedImageSequence = sources
    return groups


def _describe(ds: Dataset) -> None:
    """Common CT/MR Image Description macro, C.8.16.2."""
    ds.PixelPresentation = "MONOCHROME"
    ds.VolumetricProperties = "VOLUME"
    ds.VolumeBasedCalculationTechnique = "NONE"


def _dimension(organization: UID, keyword: str) -> Dataset:
    item = _item(DimensionOrganizationUID=organization, DimensionDescriptionLabel=keyword)
    item.DimensionIndexPointer = Tag(keyword)
    item.FunctionalGroupPointer = Tag("FrameContentSequence")
    return item


def _item(**values: object) -> Dataset:
    ds = Dataset()
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds
