"""De-identification: nothing of the patient stays, HU and geometry do; data with names are not trained on untold."""

import json
import subprocess
from copy import deepcopy
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.config import IGNORE
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from conftest import toy_head
from slicewise import cli
from slicewise.data.deface import face_mask
from slicewise.errors import UserError
from slicewise.io import deidentify as module
from slicewise.io.archive import find, read_volume
from slicewise.io.deidentify import KEY_FILE, REPORT_FILE, _named, deidentify, deidentify_files, new_uid, pseudonym
from slicewise.io.dicom import load
from slicewise.io.dicom_scan import scan
from slicewise.volume import Volume
from test_dicom_read import ct_slice
from test_dicom_write import run_tool

DATA = Path(__file__).parents[1].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not (DATA / "ge-head").exists(), reason="the real scans (../shared/data) are not here")
KEY = b"0" * 32
SECRETS = {
    "PatientName": "SECRETNAME^Jane", "PatientID": "SECRET-ID", "PatientBirthDate": "19581231", "PatientAge": "065Y",
    "PatientAddress": "SECRET Street 1", "OtherPatientIDs": ["SECRET-2"], "AccessionNumber": "SECRET-ACC",
    "ReferringPhysicianName": "SECRET^Doctor", "InstitutionName": "SECRET Hospital", "StationName": "SECRET-STATION",
    "StudyDate": "20231224", "StudyTime": "235959", "StudyID": "SECRET-STUDY", "StudyDescription": "SECRET study",
    "SeriesDescription": "SECRET series", "ContentDate": "20231224", "AcquisitionDateTime": "20231224235959",
    "DeviceSerialNumber": "SECRET-SERIAL", "OperatorsName": ["SECRET^One", "SECRET^Two"], "ImageComments": "SECRET",
    "RequestingPhysician": "SECRET^Third", "PatientComments": "SECRET", "ProtocolName": "SECRET protocol",
}  # fmt: skip


def identified(folder: Path, seed: int = 0, slices: int = 10, **tags) -> list[Path]:
    """A series of one patient with secrets in every corner of its headers."""
    folder.mkdir(parents=True)
    hu = toy_head(seed, slices, 32)
    paths = []
    for z, plane in enumerate(hu):
        ds = ct_slice(plane, (0.0, 0.0, 5.0 * (slices - z)), PixelSpacing=[7.5, 7.5], **{**SECRETS, **tags})
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{seed}.{z}"
        ds.StudyInstanceUID, ds.SeriesInstanceUID = f"1.2.3.{seed}", f"1.2.3.{seed}.99"
        inner = Dataset()
        inner.PersonName = "SECRET^Deep"
        inner.ReferencedSOPClassUID, inner.ReferencedSOPInstanceUID = CTImageStorage, f"1.2.3.{seed}.0"
        outer = Dataset()
        outer.ReferencedImageSequence = [inner]
        ds.SourceImageSequence = [inner]
        ds.RequestAttributesSequence = [outer]
        ds.add_new(0x00090010, "LO", "SECRET CREATOR")
        ds.add_new(0x00091001, "LO", "SECRET PRIVATE")
        ds.add_new(0x60000010, "US", 1)
        ds.add_new(0x60003000, "OW", b"SECRETOVERLAY..")
        ds.file_meta.SourceApplicationEntityTitle = "SECRET-AE"
        ds.KVP, ds.ConvolutionKernel = 120, "H30s"
        ds.preamble = b"SECRET".ljust(128, b"\0")
        paths.append(folder / f"{z}.dcm")
        ds.save_as(paths[-1], enforce_file_format=True)
    return paths


def test_nothing_of_the_patient_is_left_and_the_image_is(tmp_path):
    identified(tmp_path / "in")
    report = deidentify_files([tmp_path / "in"], tmp_path / "out")
    assert (report.written, report.there_before, report.skipped) == (10, 0, ())
    files = sorted((tmp_path / "out").rglob("*.dcm"))
    for path in files:
        data = path.read_bytes()
        for secret in (b"SECRET", b"19581231", b"20231224", b"065Y", b"1.2.3."):
            assert secret not in data, secret
        assert "SECRET" not in str(path)
        ds = pydicom.dcmread(path)
        assert ds.LongitudinalTemporalInformationModified == "REMOVED"
        assert ds.PatientIdentityRemoved == "YES"
        assert ds.PatientID == ds.PatientName == path.parts[-4]
        assert ds.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
        assert (ds.KVP, ds.ConvolutionKernel, ds.Modality) == (120, "H30s", "CT")
        (source,) = ds.SourceImageSequence
        assert source.ReferencedSOPClassUID == CTImageStorage
        assert "PersonName" not in source
        assert source.ReferencedSOPInstanceUID in {file.stem for file in files}, "references still lead there"
    before, after = read_volume(tmp_path / "in").volume, read_volume(tmp_path / "out").volume
    np.testing.assert_array_equal(after.hu, before.hu)
    np.testing.assert_array_equal(after.positions, before.positions)
    assert after.pixel_spacing == before.pixel_spacing
    assert not after.acquisition.names_patient
    said = json.loads((tmp_path / "out" / REPORT_FILE).read_text())
    assert said["files"] == 10
    assert said["attributes"]["PatientName"] == 10
    assert "SECRET" not in json.dumps(said)
    assert said["attributes"].keys() >= {*SECRETS, "private attributes", "curves and overlays"} - {"PatientComments"}
    assert (tmp_path / "out" / KEY_FILE).stat().st_mode & 0o077 == 0


def test_patients_and_series_stay_together_between_runs(tmp_path):
    identified(tmp_path / "in" / "a", 0)
    identified(tmp_path / "in" / "b", 1)
    identified(tmp_path / "in" / "c", 2, PatientID="SECRET-OTHER")
    deidentify_files([tmp_path / "in" / "a"], tmp_path / "out")
    report = deidentify_files([tmp_path / "in"], tmp_path / "out")
    assert (report.written, report.there_before) == (20, 10)
    assert report.attributes["PatientName"] == 30
    found = find([tmp_path / "out"]).series
    assert len(found) == 3
    assert sorted(len(s.slices) for s in found) == [10, 10, 10]
    assert len({s.acquisition.patient_id for s in found}) == 2
    assert len({s.acquisition.study_uid for s in found}) == 3
    # Another folder has another key: nothing joins the two.
    deidentify_files([tmp_path / "in" / "a"], tmp_path / "elsewhere")
    other = find([tmp_path / "elsewhere"]).series[0].acquisition
    assert other.patient_id not in {s.acquisition.patient_id for s in found}
    assert other.series_uid not in {s.acquisition.series_uid for s in found}


@given(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1), st.binary(min_size=32, max_size=32))
@settings(max_examples=50, deadline=None)
def test_new_names_are_valid_and_hang_on_the_key(text, key):
    assert new_uid(text, key).is_valid
    assert len(new_uid(text, key)) <= 64
    assert new_uid(text, key) == new_uid(text, key)
    assert new_uid(text, key) != new_uid(text + "1", key)
    assert new_uid(text, key) != new_uid(text, key[::-1] + b"1")
    assert pseudonym(text, key) != pseudonym(text, key + b"1")
    assert pseudonym(f" {text} ", key) == pseudonym(text, key)


MARKERS = {
    **dict.fromkeys(("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT", "UR"), "MARKER"),
    "DA": "18881224", "TM": "235957", "DT": "18881224235957", "AS": "088Y", "UI": "1.2.999.4242.1",
    "DS": "42424", "IS": "42424", **dict.fromkeys(("US", "SS", "UL", "SL", "UV", "SV", "FL", "FD"), 4242),
    **dict.fromkeys(("OB", "OW", "UN", "OL", "OV"), b"MARKER  MARKER  "), "OF": b"MARKER  ", "OD": b"MARKER  ",
    "AT": 0x42424242,
}  # fmt: skip
TRACES = (b"MARKER", b"18881224", b"235957", b"088Y", b"1.2.999.4242")
# What an image cannot be decoded without.
STRUCTURE = frozenset(
    """SamplesPerPixel PhotometricInterpretation NumberOfFrames Rows Columns BitsAllocated BitsStored HighBit
    PixelRepresentation PixelData FloatPixelData DoubleFloatPixelData SOPClassUID SpecificCharacterSet
    PlanarConfiguration PixelPaddingValue PixelPaddingRangeLimit
    ExtendedOffsetTable ExtendedOffsetTableLengths""".split()
)


def marked(sequences: bool = True) -> Dataset:
    """A data set with every attribute of the dictionary, repeating groups and some that no dictionary knows, all with a
    marker for a value; sequences hold an item with a marker, and those that stay one with all markers."""
    from pydicom.datadict import DicomDictionary

    ds, item = Dataset(), Dataset()
    item.TextValue = "MARKER"
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        if tag >> 16 in (0x0000, 0x0002, 0xFFFE) or keyword in STRUCTURE or tag & 0xFFFF == 0:
            continue
        if vr == "SQ":
            deep = sequences and keyword in module.SEQUENCES | {"AnatomicRegionSequence", "RequestAttributesSequence"}
            ds.add_new(tag, "SQ", [marked(False)] if deep else [deepcopy(item)])
        else:
            kind = vr.split(" ")[0]
            ds.add(DataElement(tag, kind, MARKERS[kind], validation_mode=IGNORE))
    for tag in (0x00090010, 0x00091001, 0x60000022, 0x60003000, 0x50000022, 0x0008FFF1, 0x7FDF0010):
        ds.add_new(tag, "LO" if tag != 0x60003000 else "OW", "MARKER" if tag != 0x60003000 else b"MARKER")
    return ds


def test_of_every_attribute_there_is_nothing_survives_but_what_is_listed():
    """5,000 attributes with a marker each, at top level and in every sequence that stays."""
    ds = ct_slice(np.zeros((4, 4), np.int16))
    image = {name: ds[name].value for name in STRUCTURE if name in ds}
    ds.update(marked())
    for name, value in image.items():
        setattr(ds, name, value)
    before = sum(1 for _ in ds.iterall())
    assert len(ds) > 4500
    assert before > 100_000
    deidentify(ds, KEY)
    ours = {
        "PatientID", "PatientName", "PatientIdentityRemoved", "LongitudinalTemporalInformationModified",
        "DeidentificationMethod", "DeidentificationMethodCodeSequence", "CodeValue", "CodingSchemeDesignator",
        "CodeMeaning", *module._EMPTY, *module._DUMMIES,
    }  # fmt: skip
    listed = ours | STRUCTURE | module.NUMBERS | module.TERMS.keys() | module.SEQUENCES | module.UIDS | module.CLASSES
    survivors = {element.keyword for element in ds.iterall()}
    assert survivors - listed == module.TEXTS, "and nothing that no dictionary knows"
    for element in list(ds.iterall()):
        if element.keyword in module.TEXTS:
            element.value = "maker"
    for name in ("SOPClassUID", "SOPInstanceUID"):
        assert name in ds
    ds.SOPClassUID = CTImageStorage
    stream = BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    assert [trace for trace in TRACES if trace in stream.getvalue()] == []


def test_nothing_that_the_profiles_table_acts_upon_stays_as_it_is():
    """dicom-anonymizer holds table E.1-1: the list of what stays must keep out of it."""
    from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector
    from pydicom.datadict import keyword_for_tag

    table = dicom_anonymization_database_selector("dicomfields_2026c")
    acted = {keyword_for_tag(tag) for name, tags in table.items() for tag in tags if len(tag) == 2} - {""}
    assert len(acted) > 400
    stay = module.NUMBERS | module.TEXTS | module.CLASSES
    assert acted & stay == set()
    # Terms: only such values as nobody's name can be; Series and Frame Comments among them for our own words.
    assert acted & module.TERMS.keys() <= {"FrameComments", "DimensionDescriptionLabel"}


def test_sequences_are_cleaned_all_the_way_down():
    ds = ct_slice(np.zeros((2, 2), np.int16))
    bottom = Dataset()
    bottom.NameOfPhysiciansReadingStudy = "SECRET^A"
    bottom.SliceThickness = 3
    item = bottom
    for _ in range(5):
        above = Dataset()
        above.SourceImageSequence = [item]
        item = above
    ds.SourceImageSequence = [item]
    ds.ViewCodeSequence = [item]
    deidentify(ds, KEY)
    assert "ViewCodeSequence" not in ds
    for _ in range(6):
        ds = ds.SourceImageSequence[0]
    assert ds.SliceThickness == 3
    assert "SECRET" not in str(ds)


# Pixels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("high_bit", [11, 12])
def test_bits_that_are_not_stored_and_bytes_behind_the_image_go(tmp_path, signed, high_bit):
    hu = toy_head(0, 1, 32)[0]
    ds = ct_slice(hu, PixelRepresentation=int(signed), BitsStored=12, HighBit=high_bit)
    stored = (hu.astype(np.int32) - int(ds.RescaleIntercept)).clip(0, 2047 if signed else 4095)
    shift = high_bit - 11
    overlay = np.random.default_rng(0).integers(0, 2, hu.shape) << (15 if shift == 0 else 14)
    ds.PixelData = ((stored << shift) | overlay).astype("<u2").tobytes() + b"SECRET BEHIND IT"
    ds.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    before = load(scan(tmp_path / "a.dcm").series[0], min_slices=1).volume.hu
    deidentify(ds, KEY)
    assert len(ds.PixelData) == 2 * hu.size
    assert ds.HighBit == 11
    left = np.frombuffer(ds.PixelData, "<i2" if signed else "<u2")
    assert (np.abs(left.astype(int)) < 4096).all()
    assert np.array_equal(left.reshape(hu.shape), stored)
    ds.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(load(scan(tmp_path / "b.dcm").series[0], min_slices=1).volume.hu, before)


def test_padding_that_the_stored_bits_cannot_hold_stays_air(tmp_path):
    hu = toy_head(0, 1, 32)[0]
    ds = ct_slice(hu, PixelRepresentation=1, BitsStored=12, HighBit=11, PixelPaddingValue=-3024, RescaleIntercept=0)
    stored = hu.clip(-2048, 2047).astype(np.int16)
    stored[:3] = -3024
    ds.PixelData = stored.tobytes()
    deidentify(ds, KEY)
    ds.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    back = load(scan(tmp_path / "b.dcm").series[0], min_slices=1).volume.hu[0]
    assert (back[:3] == -1024).all()
    assert np.array_equal(back[3:], stored[3:])
    assert ds.PixelPaddingValue == -2048


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless, RLELossless, DeflatedExplicitVRLittleEndian])
def test_comments_in_a_compressed_stream_do_not_survive(tmp_path, syntax):
    hu = np.kron(toy_head(0, 1, 32)[0], np.ones((2, 2), np.int16))
    ds = ct_slice(hu, PixelSpacing=[3.0, 3.0])
    if syntax == DeflatedExplicitVRLittleEndian:
        ds.file_meta.TransferSyntaxUID = syntax
    else:
        ds.compress(syntax, generate_instance_uid=False)
        (frame,) = generate_frames(ds.PixelData, number_of_frames=1)
        if syntax == JPEGLSLossless:  # a comment segment after the start of image
            frame = frame[:2] + b"\xff\xfe\x00\x08SECRET" + frame[2:]
        ds.PixelData = encapsulate([frame + b"SECRET" * 4])
    ds.save_as(tmp_path / "in.dcm", enforce_file_format=True)
    assert syntax == DeflatedExplicitVRLittleEndian or b"SECRET" in (tmp_path / "in.dcm").read_bytes()
    deidentify_files([tmp_path / "in.dcm"], tmp_path / "out")
    (file,) = (tmp_path / "out").rglob("*.dcm")
    assert b"SECRET" not in file.read_bytes()
    np.testing.assert_array_equal(load(scan(file).series[0], min_slices=1).volume.hu[0], hu)


# Faces -------------------------------------------------------------------------------------------------------------


def skull_with_fat(row: int, pixels: int = 25, fine: bool = False) -> Volume:
    """Brain in a box of bone, one pixel of 2.5 x 2.4 mm thick, from row and column 10 to 60; two pixels of bone before
    it in row 9 and one in row 8; from slice 20 on so many pixels of fat in one row. With `fine` on pixels of half the
    size, two of which make one of those."""
    hu = np.full((30, 70, 70), -1000, np.int16)
    hu[:, 10:61, 10:61] = 800
    hu[:, 11:60, 11:60] = 35
    hu[:, 9, 30:32] = hu[:, 8, 30] = 800
    hu[20:, row, 20 : 20 + pixels] = -90
    if fine:
        hu = np.roll(hu.repeat(2, axis=1).repeat(2, axis=2), -1, axis=(1, 2))
    return Volume.regular(hu, (5.0, 1.25, 1.2) if fine else (5.0, 2.5, 2.4))


@pytest.mark.parametrize("fine", [False, True])
def test_a_face_reaches_from_the_orbits_roof_down_and_45_mm_back_from_the_forehead(fine):
    """150 mm² of fat, 5 mm off the bone, mark the roof; the forehead is the first row with two pixels of bone."""
    volume = skull_with_fat(11, fine=fine)
    expected = np.zeros(volume.hu.shape, bool)
    expected[20:, : (9 + 18) * (2 if fine else 1)] = True
    np.testing.assert_array_equal(face_mask(volume), expected)


@pytest.mark.parametrize("row, pixels", [(11, 24), (10, 25), (26, 25), (43, 25)])
def test_less_fat_or_fat_on_the_bone_or_in_the_middle_is_no_orbit(row, pixels):
    """Then the roof is taken to lie 110 mm below the vertex: 22 slices."""
    assert np.flatnonzero(face_mask(skull_with_fat(row, pixels)).any(axis=(1, 2))).tolist() == list(range(22, 30))


@pytest.mark.parametrize("row, back", [(25, False), (44, True), (59, True)])
def test_orbits_lie_in_the_front_third_of_the_skull(row, back):
    if back:
        with pytest.raises(UserError, match="orbits lie at the back"):
            face_mask(skull_with_fat(row))
    else:
        assert np.flatnonzero(face_mask(skull_with_fat(row)).any(axis=(1, 2)))[0] == 20


@needs_data
@pytest.mark.parametrize("which", ["ge-head", "cranium"])
def test_a_face_goes_and_everything_above_the_orbits_stays(which):
    volume = read_volume(DATA / ("ge-head" if which == "ge-head" else "cranium/Cranium.nii.gz")).volume
    if which == "cranium":  # its header has front and back swapped
        with pytest.raises(UserError, match="orbits lie at the back"):
            face_mask(volume)
        volume = volume.with_hu(np.ascontiguousarray(volume.hu[:, ::-1]))
    mask = face_mask(volume)
    first = int(np.flatnonzero(mask.any(axis=(1, 2)))[0])
    depth = np.r_[0, np.cumsum(volume.slice_steps)][first]
    assert 80 < depth < 115, "orbital roofs lie 85 to 110 mm below the top of these scans"
    rows = np.flatnonzero(mask[first].any(axis=1))
    assert mask[first:, rows].all(), "whole rows, down to the last slice"
    assert mask.sum() == mask[first:, rows].size, "whole rows, down to the last slice"
    skull = np.flatnonzero((volume.hu[first - 1] > 400).any(axis=1))
    assert 40 < (rows[-1] - skull[0]) * volume.pixel_spacing[0] < 50
    assert not face_mask(replace(volume, hu=volume.hu[:first], positions=volume.positions[:first])).any()


@needs_data
def test_deface_writes_air_into_the_face_alone(tmp_path, capsys):
    before = read_volume(DATA / "ge-head").volume
    cli.main(["deidentify", str(DATA / "ge-head"), "--out", str(tmp_path / "out"), "--deface"])
    after, mask = read_volume(tmp_path / "out").volume, face_mask(before)
    assert (after.hu[mask] == -1000).all()
    assert np.array_equal(after.hu[~mask], before.hu[~mask])
    header = pydicom.dcmread(next((tmp_path / "out").rglob("*.dcm")))
    assert [c.CodeValue for c in header.DeidentificationMethodCodeSequence] == ["113100", "113102"]
    files = sorted((DATA / "philips-phantom" / "S21610" / "S2010").iterdir())
    (tmp_path / "hole").mkdir()
    for file in [*files[:20], *files[24:]]:
        (tmp_path / "hole" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="no face can be found"):
        deidentify_files([tmp_path / "hole"], tmp_path / "none", face=face_mask)
    assert not (tmp_path / "none").exists()


def test_images_of_other_kinds_keep_no_pixels():
    ds = ct_slice(np.full((4, 4), 77, np.int16), SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    deidentify(ds, KEY)
    assert ds.PixelData == bytes(32)


@pytest.mark.parametrize(
    "tags, skipped, warned",
    [
        ({"BurnedInAnnotation": "yes"}, True, False),
        ({"BurnedInAnnotation": " Y"}, True, False),
        ({"BurnedInAnnotation": "TRUE"}, True, False),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, True, False),
        ({"ImageType": ["DERIVED", "SECONDARY", "AXIAL"]}, False, True),
        ({"RecognizableVisualFeatures": "YES"}, False, True),
        ({"ConversionType": "DF"}, False, True),
        ({"BurnedInAnnotation": "NO"}, False, False),
    ],
)
def test_what_pixels_may_show_is_left_out_or_warned_about(tmp_path, tags, skipped, warned, capsys):
    with IgnoredValues():
        identified(tmp_path / "in", 0, **tags)
        identified(tmp_path / "good", 1)
    cli.main(["deidentify", str(tmp_path / "in"), str(tmp_path / "good"), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert f"wrote {10 if skipped else 20} images" in said
    assert ("warning   10 images" in said) == warned
    assert said.count("left out") == 10 * skipped


class IgnoredValues:
    """Values that their value representation does not allow, as files have them."""

    def __enter__(self):
        self.held = pydicom.config.settings.writing_validation_mode
        pydicom.config.settings.writing_validation_mode = IGNORE

    def __exit__(self, *_):
        pydicom.config.settings.writing_validation_mode = self.held


def test_no_key_is_left_where_nothing_was_written(tmp_path):
    identified(tmp_path / "in", 0, BurnedInAnnotation="YES")
    with pytest.raises(UserError, match="burned into the pixels"):
        deidentify_files([tmp_path / "in"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_archives_links_and_nifti_are_dealt_with(tmp_path, capsys):
    from conftest import toy_head as head
    from slicewise.io.nifti import write_nifti
    from test_intake import zipped

    zipped(tmp_path / "a.zip", identified(tmp_path / "x", 0)[0].parent)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to("../x")
    write_nifti(Volume.regular(head(0, 8, 16), (5.0, 6.0, 6.0)), tmp_path / "in" / "DOE_JANE.nii")
    cli.main(["deidentify", str(tmp_path / "a.zip"), str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "wrote 10 images, 10 already there" in said
    assert "DOE_JANE.nii: NIfTI is not de-identified" in said


@pytest.mark.parametrize("enhanced", [False, True])
def test_dciodvfy_finds_no_error_that_was_not_there(tmp_path, enhanced):
    source = identified(tmp_path / "in", slices=3)[0]
    if enhanced:
        cli.main(["export", str(tmp_path / "in"), "--out", str(tmp_path / "e" / "head.dcm")])
        source = tmp_path / "e" / "head.dcm"
    deidentify_files([source], tmp_path / "out")

    def errors(path: Path) -> set[str]:
        lines = run_tool("dciodvfy", str(path)).splitlines()
        return {line for line in lines if line.startswith("Error")}

    assert errors(next((tmp_path / "out").rglob("*.dcm"))) <= errors(source)


def test_what_cannot_be_cleaned_is_left_out(tmp_path, capsys):
    identified(tmp_path / "in" / "burned", 0, BurnedInAnnotation="YES")
    identified(tmp_path / "in" / "mr", 1, Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4")
    paths = identified(tmp_path / "in" / "good", 2)
    packed = pydicom.dcmread(paths[0])
    packed.compress(JPEGLSLossless, generate_instance_uid=False)
    packed.save_as(paths[0])
    paths[1].write_bytes(paths[1].read_bytes()[:-100])
    cli.main(["deidentify", str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert out.count("burned into the pixels") == 10
    assert out.count("MR, not CT") == 10
    assert "truncated" in out
    assert "wrote 9 images, 0 already there" in out
    said = (tmp_path / "out" / REPORT_FILE).read_text()
    assert str(tmp_path) not in said
    assert "SECRET" not in said
    assert "burned into the pixels" in said
    with pytest.raises(UserError, match="no CT image to de-identify"):
        deidentify_files([tmp_path / "in" / "mr"], tmp_path / "none")


def test_a_damaged_key_is_refused(tmp_path):
    identified(tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / KEY_FILE).write_text("not hex")
    with pytest.raises(UserError, match="damaged; restore it"):
        deidentify_files([tmp_path / "in"], tmp_path / "out")


# Names in what is to be trained on ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, named",
    [("DOE^JANE", True), ("Doe", True), ("Ångström^Åsa", True), ("ANONYMOUS", False), ("Anon^0012", False), ("", False),
     ("REMOVED", False), ("Synthetic^7", False), ("P1", False), ("0012", False), ("^^^^", False), ("xxxx", False),
     ("De-Identified", False), ("PATIENT^12", False), ("No Name", False)],
)  # fmt: skip
def test_what_counts_as_a_name(tmp_path, name, named):
    path = tmp_path / "x.dcm"
    ds = ct_slice(np.zeros((4, 4), np.int16), PatientName=name, SpecificCharacterSet="ISO_IR 192")
    ds.save_as(path, enforce_file_format=True)
    assert find([tmp_path]).series[0].acquisition.names_patient == named
    ds.PatientIdentityRemoved = "YES"
    ds.save_as(path, enforce_file_format=True)
    assert not find([tmp_path]).series[0].acquisition.names_patient


def test_prepare_refuses_names_unless_told(tmp_path, capsys):
    identified(tmp_path / "in")
    command = ["prepare", str(tmp_path / "in"), "--out", str(tmp_path / "store"), "--size", "32", "--workers", "1"]
    with pytest.raises(SystemExit) as stop:
        cli.main(command)
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 1
    assert "1 of 1 scans hold patients' names; run slicewise deidentify first" in err
    assert not (tmp_path / "store").exists()
    assert "SECRETNAME" not in err
    cli.main(["deidentify", str(tmp_path / "in"), "--out", str(tmp_path / "clean")])
    cli.main(["prepare", str(tmp_path / "clean"), *command[2:]])
    assert "prepared 1 volumes" in capsys.readouterr().out
    cli.main([*command[:3], str(tmp_path / "told"), *command[4:], "--allow-names"])
    assert "prepared 1 volumes" in capsys.readouterr().out
    held = subprocess.run(["grep", "-rl", "SECRETNAME", str(tmp_path / "told")], capture_output=True, text=True)
    assert held.stdout == "", "a store never holds names"


@pytest.mark.parametrize(
    ("group", "name"),
    [(0x4FFE, "unknown attributes"), (0x5000, "curves and overlays"), (0x50FE, "curves and overlays"),
     (0x5100, "unknown attributes"), (0x6000, "curves and overlays"), (0x60FE, "curves and overlays"),
     (0x6100, "unknown attributes"), (0x5001, "private attributes")],
)  # fmt: skip
def test_what_has_no_name_is_counted_by_its_group(group, name):
    assert _named(DataElement((group, 0x0FF0), "LO", "text")) == name
