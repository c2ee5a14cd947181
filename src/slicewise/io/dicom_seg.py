"""Tissue labels as a DICOM Segmentation (PS3.3 A.51) of the CT series that they belong to, and back; by highdicom."""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom

import slicewise
from slicewise.errors import UserError, output_errors
from slicewise.io.atomic import atomic_file
from slicewise.io.dicom import load, one_series
from slicewise.io.dicom_write import name_uid
from slicewise.io.provenance import PATIENT, copied
from slicewise.volume import RAS_TO_LPS, Acquisition, Volume, volume_from_affine

# SNOMED CT concepts of labels, by their names in pydicom's dictionary; others are coded in a scheme of our own.
SNOMED = {
    "skin": "Skin", "fat": "AdiposeTissue", "muscle": "SkeletalMuscle", "skull": "Skull", "mastoid": "MastoidBone",
    "facial bone": "FacialBones", "orbit": "Orbit", "eye": "Eye", "optic nerve": "OpticNerve",
    "ventricles": "BrainVentricle", "grey matter": "GrayMatter", "white matter": "CerebralWhiteMatter",
    "internal capsule": "InternalCapsule", "corpus callosum": "CorpusCallosum", "cerebellum": "Cerebellum",
    "brain stem": "BrainStem", "basilar artery": "BasilarArtery", "bleed": "Hemorrhage",
}  # fmt: skip
# Labels that are not anatomical structures: abnormal ones and objects (categories of segments, PS3.16 CID 7150).
ABNORMAL = frozenset({"calcification", "bleed", "infarct", "oedema", "tumour", "fracture"})
OBJECTS = frozenset({"table"})
SCHEME = "99SLICEWISE"  # a coding scheme of our own (PS3.3 8.2)
# A file has a plane a segment and slice; more than a byte holds are no label map.
MOST_LABELS = 255


# Of every image (type 2, PS3.3 C.7.1.1 and C.7.2.1), and read by highdicom; scans without a patient's details often
# lack them.
EXPECTED = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip


def write_segmentation(labels: Path, series: Path, out: Path, names: Path | None = None) -> tuple[str, ...]:
    """Write the label map `labels` (NIfTI, whole numbers, 0 is background) as one binary segmentation of the CT series
    in the folder `series`; the names of the segments.

    A segment is written for each label that occurs, coded in SNOMED CT where it has the concept. `names` is a JSON file
    {name: label}; by default labels.json beside the label map. The segmentation lies in the study and the frame of
    reference of the series and refers to its instances; that of a synthetic series says that it is synthetic. UIDs
    follow from content.

    Raises `UserError` where a file is missing or damaged, where labels and series are not on one grid, where a label
    has no name, and where `out` is there or cannot be written.
    """
    found_labels = read_label_map(labels)
    named = label_names(names or labels.with_name("labels.json"))
    return write_segments(found_labels.hu, found_labels.positions, named, series, out, labels)


def write_segments(
    voxels: np.ndarray,
    positions: np.ndarray,
    named: Mapping[int, str],
    series: Path,
    out: Path,
    labels: object = "labels",
    series_uid: str = "",
    description: str = "Tissue labels",
    abnormal: bool = False,
) -> tuple[str, ...]:
    """`write_segmentation` of labels at hand: whole numbers (Z, Y, X), the positions of their slices (as in `Volume`)
    and what the numbers are called; errors call them `labels`. With `abnormal` every segment is categorised as a
    morphologically abnormal structure, whatever it is called."""
    if out.exists():
        raise UserError(f"{out}: already exists; give a new name, or remove it first")
    found = one_series(series, series_uid)
    reading = load(found).volume
    files = {tuple(s.position): s.path for s in found.slices}
    if len({s.path for s in found.slices}) != len(reading.hu) or len(files) != len(reading.hu):
        raise UserError(f"{series}: expected a series of one file per slice, each at its own position")
    if voxels.shape != reading.hu.shape or np.abs(positions - reading.positions).max() > 0.01:
        raise UserError(f"{labels}: not on the grid of {series}: {voxels.shape} voxels against {reading.hu.shape}")
    present = [int(v) for v in np.unique(voxels) if v]
    unnamed = [v for v in present if v not in named]
    if unnamed or not present:
        what = f"no name for label {unnamed[0]}" if unnamed else "no label in it"
        raise UserError(f"{labels}: {what}; give names=FILE, a JSON file of names and labels")
    sources = [pydicom.dcmread(files[tuple(p)]) for p in reading.positions]
    dataset = _segmentation(voxels, [(v, named[v]) for v in present], sources, description, abnormal)
    with output_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(out) as stream:
            dataset.save_as(stream, enforce_file_format=True)
    return tuple(named[v] for v in present)


def _segmentation(
    voxels: np.ndarray,
    segments: list[tuple[int, str]],
    sources: Sequence[pydicom.Dataset],
    description: str,
    abnormal: bool,
) -> Any:
    try:
        import highdicom
    except ModuleNotFoundError:
        raise UserError("highdicom is not installed; pip install 'slicewise[clinic]'") from None
    from pydicom.sr.coding import Code

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="slicewise", version=slicewise.__version__, family=Code("label-map", SCHEME, "Given label map")
    )
    descriptions = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=_category(name, abnormal),
            segmented_property_type=_code(label, name),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, (label, name) in enumerate(segments, 1)
    ]
    for keyword in EXPECTED:
        if keyword not in sources[0]:
            setattr(sources[0], keyword, "")
    planes = np.stack([voxels == label for label, _ in segments], axis=-1).astype(np.uint8)
    series = name_uid("segmentation", sources[0].SeriesInstanceUID, planes.tobytes())
    with warnings.catch_warnings():
        # Names of one part, as replaced ones are, are no news to whoever runs this.
        warnings.filterwarnings("ignore", "The string .* is unlikely to represent", UserWarning)
        dataset = highdicom.seg.Segmentation(
            source_images=sources,
            pixel_array=planes,
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=descriptions,
            series_instance_uid=series,
            series_number=int(sources[0].get("SeriesNumber") or 1) + 100,
            sop_instance_uid=name_uid("instance", series, 0),
            instance_number=1,
            manufacturer="slicewise",
            manufacturer_model_name="slicewise",
            software_versions=slicewise.__version__,
            device_serial_number=slicewise.__version__,
            series_description=description,
        )
    dataset.update(copied(sources[0], ("SyntheticData", "ContributingEquipmentSequence", *PATIENT)))
    if any(source.get("SyntheticData") == "YES" for source in sources):
        dataset.SyntheticData = "YES"
    dataset.SeriesDate, dataset.SeriesTime = sources[0].get("SeriesDate", ""), sources[0].get("SeriesTime", "")
    return dataset


def _category(name: str, abnormal: bool) -> Any:
    """What kind of thing a segment is (PS3.16 CID 7150)."""
    from pydicom.sr.codedict import codes

    if abnormal or name in ABNORMAL:
        return codes.SCT.MorphologicallyAbnormalStructure
    return codes.SCT.PhysicalObject if name in OBJECTS else codes.SCT.AnatomicalStructure


def _code(label: int, name: str) -> Any:
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    return getattr(codes.SCT, SNOMED[name]) if name in SNOMED else Code(str(label), SCHEME, name)


def read_segmentation(file: Path) -> tuple[Volume, dict[int, str]]:
    """A DICOM Segmentation as labels, a Volume of whole numbers (the last segment counts where several lie on a voxel),
    and the names of its segments. Raises `UserError` where the file is none."""
    try:
        import highdicom
    except ModuleNotFoundError:
        raise UserError("highdicom is not installed; pip install 'slicewise[clinic]'") from None
    try:
        found = highdicom.seg.segread(file)
        names = {n: str(found.get_segment_description(n).segment_label) for n in found.segment_numbers}
        held = found.get_volume(combine_segments=True, skip_overlap_checks=True)
        order = [2, 1, 0, 3]  # its axes are (slice, row, column)
        frame = Acquisition(frame_of_reference_uid=str(found.FrameOfReferenceUID), source=str(file))
        return volume_from_affine(held.array.astype(np.int16).transpose(2, 1, 0), held.affine[:, order], frame), names
    except Exception as error:  # highdicom and pydicom raise many kinds on what is no segmentation
        kind = type(error).__name__
        raise UserError(f"{file}: not a DICOM segmentation, or damaged ({kind}); give a label map") from error


def read_label_map(file: Path) -> Volume:
    """Labels of a NIfTI file, whole numbers from 0 to `MOST_LABELS`, as a Volume; `UserError` where it has others."""
    try:
        image: Any = nib.load(file)
        values = np.asanyarray(image.dataobj)
    except Exception as error:  # nibabel raises many kinds on what is no image
        raise UserError(f"{file}: not a NIfTI file, or damaged ({type(error).__name__}); give a label map") from error
    if values.ndim != 3 or (values != np.rint(values)).any() or values.min() < 0 or values.max() > MOST_LABELS:
        raise UserError(f"{file}: expected a 3D map of whole-number labels from 0 to {MOST_LABELS}")
    return volume_from_affine(values.astype(np.int16), RAS_TO_LPS @ image.affine)


def label_names(file: Path) -> dict[int, str]:
    """The names in a JSON file {name: label}. Raises `UserError` where it is none."""
    try:
        table = json.loads(file.read_text())
        return {int(label): str(name) for name, label in table.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        raise UserError(
            f'{file}: not a file of label names; give names=FILE, a JSON file like {{"skull": 4}}'
        ) from None
