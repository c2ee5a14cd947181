"""Label maps as DICOM segmentations: every voxel where it was, valid, and tied to the series they belong to."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes

from slicewise import cli, read_volume
from slicewise.data.phantom import LABELS
from slicewise.errors import UserError
from slicewise.io.dicom_seg import (
    ABNORMAL,
    EXPECTED,
    OBJECTS,
    SNOMED,
    read_segmentation,
    write_segmentation,
    write_segments,
)
from slicewise.io.dicom_write import write_series
from slicewise.volume import Volume
from test_dicom_write import ORIGIN, run_tool

SHAPE = (5, 24, 16)


@pytest.fixture()
def head(tmp_path: Path) -> tuple[Path, Path, np.ndarray]:
    """A CT series, its label map (NIfTI, with labels.json beside it) and the labels, uint8 (Z, Y, X)."""
    rng = np.random.default_rng(4)
    labels = rng.choice(np.array([0, 4, 12, 17, 31], np.uint8), SHAPE)
    labels[2] = 0  # a slice of background alone
    labels[3:][labels[3:] == 12] = 0
    volume = Volume.regular(rng.integers(-1024, 3072, SHAPE).astype(np.int16), (5.0, 1.5, 2.0))
    write_series(volume, tmp_path / "series", synthetic=ORIGIN, patient_id="P1")
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    nib.save(nib.Nifti1Image(labels.transpose(2, 1, 0), affine), tmp_path / "labels.nii.gz")
    (tmp_path / "labels.json").write_text(json.dumps(LABELS))
    return tmp_path / "labels.nii.gz", tmp_path / "series", labels


def test_every_voxel_comes_back_where_it_was(head, tmp_path):
    file, series, labels = head
    assert write_segmentation(file, series, tmp_path / "seg.dcm") == ("skull", "lens", "grey matter", "mucosa")
    ds = pydicom.dcmread(tmp_path / "seg.dcm")
    sources = {s.SOPInstanceUID: s for s in map(pydicom.dcmread, series.iterdir())}
    places = sorted((-float(s.ImagePositionPatient[2]), uid) for uid, s in sources.items())
    rows = {uid: z for z, (_, uid) in enumerate(places)}
    by_number = {s.SegmentNumber: LABELS[s.SegmentLabel] for s in ds.SegmentSequence}
    back = np.zeros(SHAPE, np.uint8)
    for frame, groups in zip(ds.pixel_array, ds.PerFrameFunctionalGroupsSequence):
        number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        source = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        z = rows[source]
        place = groups.PlanePositionSequence[0].ImagePositionPatient
        assert place == sources[source].ImagePositionPatient
        assert not back[z][frame > 0].any()
        back[z][frame > 0] = by_number[number]
    np.testing.assert_array_equal(back, labels)
    first = next(iter(sources.values()))
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "SyntheticData"):
        assert ds[keyword].value == first[keyword].value
    assert ds.SeriesInstanceUID != first.SeriesInstanceUID
    assert ds.Modality == "SEG"
    assert ds.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Skull"
    assert ds.SegmentSequence[1].SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator == "99SLICEWISE"


def test_dciodvfy_finds_it_clean_but_for_the_tag_it_does_not_know(head, tmp_path):
    file, series, _ = head
    write_segmentation(file, series, tmp_path / "seg.dcm")
    output = run_tool("dciodvfy", str(tmp_path / "seg.dcm"))
    errors = [line for line in output.splitlines() if line.startswith("Error")]
    assert "Segmentation" in output
    unknown = "Error - Attribute with an even group number is not a recognized standard attribute - (0x0008,0x001c)  ? "
    assert errors == [unknown]


def test_a_scan_without_any_of_its_patients_details_gets_segments(head, tmp_path):
    file, series, labels = head
    for image in series.iterdir():
        ds = pydicom.dcmread(image)
        for keyword in EXPECTED:
            if keyword in ds:
                delattr(ds, keyword)
        ds.save_as(image)
    write_segmentation(file, series, tmp_path / "seg.dcm")
    ds = pydicom.dcmread(tmp_path / "seg.dcm")
    assert all(not ds[keyword].value for keyword in EXPECTED)
    np.testing.assert_array_equal(np.asarray(read_segmentation(tmp_path / "seg.dcm")[0].hu > 0), labels > 0)


def test_equal_labels_have_equal_uids(head, tmp_path):
    file, series, _ = head
    for name in "ab":
        write_segmentation(file, series, tmp_path / name)
    a, b = (pydicom.dcmread(tmp_path / name) for name in "ab")
    assert a.SOPInstanceUID == b.SOPInstanceUID
    assert a.SeriesInstanceUID == b.SeriesInstanceUID


def test_names_are_those_of_the_phantom_and_snomed_knows_them():
    assert SNOMED.keys() <= LABELS.keys()
    assert all(getattr(codes.SCT, name).scheme_designator == "SCT" for name in SNOMED.values())


def test_lesions_are_no_anatomy(head, tmp_path):
    _, series, _ = head
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[0], voxels[1], voxels[2] = LABELS["grey matter"], LABELS["infarct"], LABELS["table"]
    positions = read_volume(series).positions
    write_segments(voxels, positions, {v: n for n, v in LABELS.items()}, series, tmp_path / "seg.dcm")
    segments = pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence
    found = {s.SegmentLabel: s.SegmentedPropertyCategoryCodeSequence[0].CodeValue for s in segments}
    assert found == {"grey matter": "91723000", "infarct": "49755003", "table": "260787004"}
    assert ABNORMAL | OBJECTS <= LABELS.keys()


def test_where_segments_overlap_the_last_counts(head, tmp_path):
    _, series, _ = head
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[1, :12], voxels[1, 12:] = LABELS["grey matter"], LABELS["white matter"]
    positions = read_volume(series).positions
    write_segments(voxels, positions, {v: n for n, v in LABELS.items()}, series, tmp_path / "seg.dcm")
    ds = pydicom.dcmread(tmp_path / "seg.dcm")
    assert ds.NumberOfFrames == 2
    ds.PixelData = b"\xff" * len(ds.PixelData)
    ds.save_as(tmp_path / "overlapping.dcm")
    found, names = read_segmentation(tmp_path / "overlapping.dcm")
    assert names == {1: "grey matter", 2: "white matter"}
    assert {int(v) for v in np.unique(found.hu)} <= {0, 2}
    assert (found.hu == 2).sum() == SHAPE[1] * SHAPE[2]


def test_the_command(head, tmp_path, capsys):
    file, series, _ = head
    cli.main(["segmentation", str(file), str(series), "--out", str(tmp_path / "seg.dcm")])
    assert "4 segments: skull, lens, grey matter, mucosa" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["segmentation", str(file), str(series), "--out", str(tmp_path / "seg.dcm")])
    assert "already exists" in capsys.readouterr().err


def test_what_does_not_go_together_is_one_line(head, tmp_path):
    file, series, _ = head
    image = nib.load(file)
    moved = image.affine.copy()
    moved[:3, 3] += 1
    cases = {
        "grid": nib.Nifti1Image(np.asarray(image.dataobj)[:-1], image.affine),
        "shifted": nib.Nifti1Image(np.asarray(image.dataobj), moved),
        "empty": nib.Nifti1Image(np.zeros(SHAPE[::-1], np.uint8), image.affine),
        "unnamed": nib.Nifti1Image(np.full(SHAPE[::-1], 200, np.uint8), image.affine),
        "fractions": nib.Nifti1Image(np.full(SHAPE[::-1], 0.5, np.float32), image.affine),
    }
    expected = {"grid": "not on the grid", "shifted": "not on the grid", "empty": "no label in it"}
    expected |= {"unnamed": "no name for label 200", "fractions": "whole-number labels"}
    for name, case in cases.items():
        nib.save(case, tmp_path / "bad.nii.gz")
        with pytest.raises(UserError, match=expected[name]) as info:
            write_segmentation(tmp_path / "bad.nii.gz", series, tmp_path / "seg.dcm")
        assert "\n" not in str(info.value)
    with pytest.raises(UserError, match="give names"):
        write_segmentation(file, series, tmp_path / "seg.dcm", tmp_path / "absent.json")
    with pytest.raises(UserError, match="not a NIfTI file"):
        write_segmentation(tmp_path / "labels.json", series, tmp_path / "seg.dcm")
    assert not (tmp_path / "seg.dcm").exists()
    assert not list(tmp_path.glob(".*"))
