"""De-identification: nothing of the patient stays, HU and geometry do; data with names are not trained on untold."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, JPEGLSLossless

from conftest import toy_head
from slicewise import cli
from slicewise.errors import UserError
from slicewise.io import deidentify as module
from slicewise.io.archive import find, read_volume
from slicewise.io.deidentify import KEY_FILE, REPORT_FILE, deidentify, deidentify_files, new_uid, pseudonym
from test_dicom_read import ct_slice
from test_dicom_write import run_tool

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
    assert (report.written, report.there_before, report.left_out) == (10, 0, ())
    files = sorted((tmp_path / "out").rglob("*.dcm"))
    for path in files:
        data = path.read_bytes()
        for secret in (b"SECRET", b"19581231", b"20231224", b"065Y", b"1.2.3."):
            assert secret not in data, secret
        assert "SECRET" not in str(path)
        ds = pydicom.dcmread(path)
        assert ds.PatientIdentityRemoved == "YES" and ds.PatientID == ds.PatientName == path.parts[-4]
        assert ds.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
        assert (ds.KVP, ds.ConvolutionKernel, ds.Modality) == (120, "H30s", "CT")
        (source,) = ds.SourceImageSequence
        assert source.ReferencedSOPClassUID == CTImageStorage and source.PersonName == "REMOVED"
        assert source.ReferencedSOPInstanceUID in {file.stem for file in files}, "references still lead there"
    before, after = read_volume(tmp_path / "in").volume, read_volume(tmp_path / "out").volume
    np.testing.assert_array_equal(after.hu, before.hu)
    np.testing.assert_array_equal(after.positions, before.positions)
    assert after.pixel_spacing == before.pixel_spacing and not after.acquisition.names_patient
    said = json.loads((tmp_path / "out" / REPORT_FILE).read_text())
    assert said["files"] == 10 and said["attributes"]["PatientName"] == 10 and "SECRET" not in json.dumps(said)
    assert said["attributes"].keys() >= {*SECRETS, "private attributes", "curves and overlays"} - {"PatientComments"}
    assert (tmp_path / "out" / KEY_FILE).stat().st_mode & 0o077 == 0


def test_patients_and_series_stay_together_between_runs(tmp_path):
    identified(tmp_path / "in" / "a", 0)
    identified(tmp_path / "in" / "b", 1)
    identified(tmp_path / "in" / "c", 2, PatientID="SECRET-OTHER")
    deidentify_files([tmp_path / "in" / "a"], tmp_path / "out")
    report = deidentify_files([tmp_path / "in"], tmp_path / "out")
    assert (report.written, report.there_before) == (20, 10) and report.attributes["PatientName"] == 30
    found = find([tmp_path / "out"]).series
    assert len(found) == 3 and sorted(len(s.slices) for s in found) == [10, 10, 10]
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
    assert new_uid(text, key).is_valid and len(new_uid(text, key)) <= 64 and new_uid(text, key) == new_uid(text, key)
    assert new_uid(text, key) != new_uid(text + "1", key) and new_uid(text, key) != new_uid(text, key[::-1] + b"1")
    assert pseudonym(text, key) != pseudonym(text, key + b"1") and pseudonym(f" {text} ", key) == pseudonym(text, key)


def test_every_attribute_of_the_table_is_dealt_with():
    """An attribute of each kind in the table, with a value: afterwards it is gone, empty, or another."""
    from pydicom.datadict import dictionary_VR, keyword_for_tag

    texts = dict.fromkeys(("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT", "UR"), "SECRET")
    values = {**texts, "DA": "20231224", "TM": "235959", "DT": "20231224235959", "AS": "065Y", "UI": "1.2.3.4"}
    values |= {"DS": "7", "IS": "7", **dict.fromkeys(("US", "SS", "UL", "SL", "FL", "FD"), 7)}
    values |= dict.fromkeys(("OB", "OW", "UN"), b"77")
    checked = 0
    for tag, action in module._actions().items():
        if not keyword_for_tag(tag) or (kind := dictionary_VR(tag)) not in values:
            continue
        ds = ct_slice(np.zeros((2, 2), np.int16))
        ds.add_new(tag, kind, values[kind])
        touched = deidentify(ds, KEY)
        assert keyword_for_tag(tag) in touched
        left = ds.get(tag)
        assert left is None or left.value != values[kind], (keyword_for_tag(tag), action)
        if action == "X" and tag not in ((0x0012, 0x0063), (0x0010, 0x0010)):
            assert left is None
        checked += 1
    assert checked > 400


def test_sequences_are_cleaned_all_the_way_down():
    ds = ct_slice(np.zeros((2, 2), np.int16))
    bottom = Dataset()
    bottom.NameOfPhysiciansReadingStudy = "SECRET^A"
    bottom.StartTrim = 3
    item = bottom
    for _ in range(5):
        above = Dataset()
        above.ViewCodeSequence = [item]
        item = above
    ds.ViewCodeSequence = [item]
    deidentify(ds, KEY)
    for _ in range(6):
        ds = ds.ViewCodeSequence[0]
    assert ds.StartTrim == 3 and "SECRET" not in str(ds)


def test_dciodvfy_finds_no_error_that_was_not_there(tmp_path):
    paths = identified(tmp_path / "in", slices=1)
    deidentify_files([tmp_path / "in"], tmp_path / "out")

    def errors(path: Path) -> set[str]:
        lines = run_tool("dciodvfy", str(path)).splitlines()
        return {line for line in lines if line.startswith("Error")}

    assert errors(next((tmp_path / "out").rglob("*.dcm"))) <= errors(paths[0])


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
    assert out.count("burned into the pixels") == 10 and out.count("MR, not CT") == 10 and "truncated" in out
    assert "wrote 9 images, 0 were there" in out
    said = (tmp_path / "out" / REPORT_FILE).read_text()
    assert str(tmp_path) not in said and "SECRET" not in said and "burned into the pixels" in said
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
    assert stop.value.code == 1 and "1 of 1 scans hold patients' names; run slicewise deidentify first" in err
    assert not (tmp_path / "store").exists() and "SECRETNAME" not in err
    cli.main(["deidentify", str(tmp_path / "in"), "--out", str(tmp_path / "clean")])
    cli.main(["prepare", str(tmp_path / "clean"), *command[2:]])
    assert "prepared 1 volumes" in capsys.readouterr().out
    cli.main([*command[:3], str(tmp_path / "told"), *command[4:], "--allow-names"])
    assert "prepared 1 volumes" in capsys.readouterr().out
    held = subprocess.run(["grep", "-rl", "SECRETNAME", str(tmp_path / "told")], capture_output=True, text=True)
    assert held.stdout == "", "a store never holds names"
