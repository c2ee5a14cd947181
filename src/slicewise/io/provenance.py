"""Where voxels came from, carried from the series that was read to the one that is written."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pydicom
from pydicom.config import IGNORE
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import UID

# Attributes that a derived series repeats (PS3.3: Patient C.7.1.1, Patient Study C.7.2.2; General Study C.7.2.1, Frame
# of Reference C.7.4.1; of General Series, C.7.3.1, the date and how the patient lay).
PATIENT = (
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge", "PatientSize",
    "PatientWeight", "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence",
)  # fmt: skip
STUDY = (
    "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber",
    "ReferringPhysicianName", "FrameOfReferenceUID", "PositionReferenceIndicator", "SeriesDate", "SeriesTime",
    "PatientPosition", "BodyPartExamined",
)  # fmt: skip
HISTORY = (
    "SyntheticData", "DerivationDescription", "DerivationCodeSequence", "ContributingEquipmentSequence",
    "SOPClassUID", "ImageType", "Manufacturer", "ManufacturerModelName", "SoftwareVersions",
)  # fmt: skip

# Frame Comments (0020,9158) of a frame that was not synthesised, in a file that says Synthetic Data = YES.
REAL_FRAME = "Slice of a real scan"

# Derivation codes (PS3.16 CID 7203) of what is done to voxels here.
RESAMPLED = ("113085", "Spatial resampling")
EDITED = ("113077", "Volume editing")
STITCHED = ("113090", "Image stitching")


@dataclass(frozen=True)
class Step:
    """One thing that was done to voxels since they were stored: a text, and its code (value, meaning) in CID 7203."""

    text: str
    code: tuple[str, str] | None = None


@dataclass(frozen=True)
class Instance:
    """A stored image: its SOP Instance UID, the frame (from 1; 0 where the file is one image), and the position of its
    slice (Image Position (Patient), LPS mm)."""

    uid: str
    frame: int
    position: tuple[float, float, float]


@dataclass(frozen=True)
class Provenance:
    """What is known of the source of a volume, for the header of what is made of it.

    Attributes
    ----------
    header : those of `PATIENT`, `STUDY` and `HISTORY` that the source has.
    instances : its images; empty where it is no DICOM.
    steps : what was done to its voxels since.
    """

    header: Dataset = field(default_factory=Dataset)
    instances: tuple[Instance, ...] = ()
    steps: tuple[Step, ...] = ()

    def after(self, *steps: Step) -> "Provenance":
        """With more steps done."""
        return replace(self, steps=(*self.steps, *steps))

    def without_patient(self) -> "Provenance":
        """The history alone: nothing that leads back to patient, study or images."""
        return Provenance(copied(self.header, HISTORY), (), self.steps)


def read_header(path: str, instances: Iterable[Instance], steps: Iterable[Step]) -> Provenance:
    """The provenance of a DICOM file and of all images of its series."""
    tags = [Tag(name) for name in (*PATIENT, *STUDY, *HISTORY, "SpecificCharacterSet")]
    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(tags), force=True)
    known = copied(header, (*PATIENT, *STUDY, *HISTORY))
    ours = [e for e in known.get("ContributingEquipmentSequence", ()) if e.get("Manufacturer") == "slicewise"]
    if "DerivationDescription" not in known and ours:  # Enhanced CT has no place for it but there
        known.DerivationDescription = str(ours[-1].get("ContributionDescription", ""))
    return Provenance(known, tuple(instances), tuple(steps))


def copied(source: Dataset, names: Iterable[str]) -> Dataset:
    """Some attributes of a data set, decoded so that they can be written in any character set; those that are garbled
    or empty are omitted."""
    ds = Dataset()
    for name in names:
        try:
            element = source[name] if name in source else None
            if element is None or element.is_empty:
                continue
            value = str(element.value) if element.VR == "PN" else element.value
            ds[name] = DataElement(element.tag, element.VR, value, validation_mode=IGNORE)
        except Exception:  # pydicom raises many kinds on what is garbled
            continue
    return ds


def from_sidecar(about: Mapping[str, Any]) -> Provenance:
    """The provenance that a JSON file beside a NIfTI one tells (see `slicewise.io.nifti.sidecar`)."""
    ds = Dataset()
    for name in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "Manufacturer", "ManufacturersModelName"):
        value = about.get(name)
        if isinstance(value, str) and 0 < len(value) <= 64 and (not name.endswith("UID") or UID(value).is_valid):
            setattr(ds, name.replace("ManufacturersModel", "ManufacturerModel"), value)
    if about.get("SyntheticData") is True:
        ds.SyntheticData = "YES"
    if isinstance(about.get("Description"), str):
        ds.DerivationDescription = about["Description"][:1024]
    return Provenance(ds)


def code_item(value: str, meaning: str, scheme: str = "DCM") -> Dataset:
    """An item of a code sequence (PS3.3 8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item
