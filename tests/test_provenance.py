"""Where voxels came from is said in every form that is written: patient, study, origin, and what was done to them."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from conftest import toy_head
from slicewise import cli
from slicewise.data.store import open_store, put_volume
from slicewise.errors import UserError
from slicewise.export import write_volume
from slicewise.hu import Clipped
from slicewise.info import describe, facts
from slicewise.io.archive import read_volume
from slicewise.io.dicom_write import write_series
from slicewise.io.nifti import write_nifti
from slicewise.io.provenance import EDITED, Step
from slicewise.volume import Acquisition, Volume, without_real_slices
from test_dicom_read import ct_slice, save
from test_dicom_write import ORIGIN, run_tool

STUDY = {
    "PatientID": "P-17", "PatientName": "Åström^Åsa", "PatientBirthDate": "19581231", "PatientSex": "F",
    "IssuerOfPatientID": "HERE", "StudyInstanceUID": "1.2.3.4", "StudyDate": "20231224", "StudyTime": "235959",
    "StudyID": "S7", "AccessionNumber": "A9", "StudyDescription": "CT head", "ReferringPhysicianName": "Doe^J",
    "FrameOfReferenceUID": "1.2.3.6",
}  # fmt: skip


def real_series(folder: Path, hu: np.ndarray | None = None, **tags) -> Path:
    """A head of a patient, 12 slices, in Latin-1, by a scanner; `tags` replace those of `STUDY`."""
    for k, plane in enumerate(toy_head(0, 12, 32) if hu is None else hu):
        maker = {"Manufacturer": "MAKER", "ManufacturerModelName": "Scanner 7", "SpecificCharacterSet": "ISO_IR 100"}
        ds = ct_slice(plane, (0, 0, 60 - 5.0 * k), **{**maker, **STUDY, "SeriesInstanceUID": "1.2.3.5", **tags})
        save(ds, folder / f"{k:02d}.dcm")
    return folder


def first(path: Path) -> Dataset:
    return pydicom.dcmread(path if path.is_file() else sorted(path.iterdir())[0])


def export(*arguments: object) -> None:
    cli.main(["export", *map(str, arguments)])


@pytest.mark.parametrize("form", ["series", "packed", "enhanced.dcm"])
def test_an_exported_scan_stays_in_its_patients_study(tmp_path, form):
    source = real_series(tmp_path / "in")
    export(source, "--out", tmp_path / form, *(["--syntax", "jpeg-ls"] if form == "packed" else []))
    ds, back = first(tmp_path / form), read_volume(tmp_path / form)
    assert {name: str(ds[name].value) for name in STUDY} == STUDY
    assert (ds.SeriesDate, ds.SeriesTime) == (STUDY["StudyDate"], STUDY["StudyTime"])
    assert ds.SeriesInstanceUID != "1.2.3.5"
    assert "SyntheticData" not in ds
    scanner, ours = ds.ContributingEquipmentSequence
    assert (scanner.Manufacturer, scanner.ManufacturerModelName) == ("MAKER", "Scanner 7")
    assert scanner.PurposeOfReferenceCodeSequence[0].CodeValue == "109101"
    assert ours.Manufacturer == "slicewise"
    assert ours.ContributionDescription == "Exported by slicewise: HU unchanged"
    originals = {pydicom.dcmread(f).SOPInstanceUID for f in source.iterdir()}
    if form == "enhanced.dcm":
        frames = ds.PerFrameFunctionalGroupsSequence
        named = [frame.ReferencedImageSequence[0].ReferencedSOPInstanceUID for frame in frames]
    else:
        files = [pydicom.dcmread(f) for f in sorted((tmp_path / form).iterdir())]
        assert all(len(f.SourceImageSequence) == 1 for f in files), "each slice names the one it is"
        named = [f.SourceImageSequence[0].ReferencedSOPInstanceUID for f in files]
    assert set(named) == originals
    assert len(named) == 12
    assert np.array_equal(back.volume.hu, toy_head(0, 12, 32))


@pytest.mark.parametrize("form", ["series", "enhanced.dcm"])
@pytest.mark.parametrize("synthetic", [True, False])
def test_dciodvfy_finds_no_error_in_what_carries_its_origin(tmp_path, form, synthetic):
    if synthetic:
        write_series(
            Volume.regular(toy_head(0, 12, 32), (5.0, 1, 1)), tmp_path / "in", synthetic=ORIGIN, patient_id="S"
        )
    else:
        real_series(tmp_path / "in", PatientName="A^B")
    export(tmp_path / "in", "--out", tmp_path / form, "--slice-mm", "4")
    file = tmp_path / form if form == "enhanced.dcm" else sorted((tmp_path / form).iterdir())[3]
    errors = [line for line in run_tool("dciodvfy", str(file)).splitlines() if line.startswith("Error")]
    assert errors == ["Error - Attribute with an even group number is not a recognized standard attribute - "
                      "(0x0008,0x001c)  ? "] * synthetic  # fmt: skip


@pytest.mark.parametrize("form", ["series", "enhanced.dcm", "head.nii.gz"])
def test_a_synthetic_volume_stays_synthetic_through_every_form(tmp_path, form):
    volume = Volume.regular(toy_head(0, 12, 32), (5.0, 1.0, 1.0))
    write_series(volume, tmp_path / "in", synthetic=ORIGIN, patient_id="SYN-1")
    export(tmp_path / "in", "--out", tmp_path / form)
    export(tmp_path / form, "--out", tmp_path / "again")
    made, again = first(tmp_path / "in"), first(tmp_path / "again")
    assert again.SyntheticData == "YES"
    assert again.PatientID == "SYN-1"
    assert again.StudyInstanceUID == made.StudyInstanceUID
    assert again.FrameOfReferenceUID == made.FrameOfReferenceUID
    assert ORIGIN.sentence() in again.DerivationDescription
    if form != "head.nii.gz":
        codes = [e.PurposeOfReferenceCodeSequence[0].CodeValue for e in again.ContributingEquipmentSequence]
        assert codes == ["109100", "109102", "109102"], "synthesised, and written twice since"


def test_clipped_voxels_are_told_with_their_values_on_screen_in_header_and_by_info(tmp_path, capsys):
    hu = toy_head(0, 12, 32).astype(np.int32)
    hu[3, 16, 16:19] = 3100, 9000, 25000
    source = real_series(tmp_path / "in", hu, BitsStored=16, HighBit=15, PixelRepresentation=1, RescaleIntercept=0)
    said = "3 voxels between 3100 and 25000 HU clipped to [-1024, 3071]"
    for form in ("series", "enhanced.dcm", "head.nii.gz"):
        export(source, "--out", tmp_path / form)
        assert f"note      {said}" in capsys.readouterr().out
    for form in ("series", "enhanced.dcm"):
        text = str(first(tmp_path / form))
        assert said in text
        assert "HU unchanged" not in text
    assert [c.CodeValue for c in first(tmp_path / "series").DerivationCodeSequence] == ["113077"]
    assert said in json.loads((tmp_path / "head.json").read_text())["Description"]
    assert said in describe(facts(source))
    assert "HU clipped" not in describe(facts(tmp_path / "series"))


def test_clipped_adds_up():
    none, some, more = Clipped(), Clipped(3, 3100, 4000), Clipped(2, -1100, -1030)
    assert none + some == some + none == some
    assert some + more == Clipped(5, -1100, 4000)
    assert not (none + none).voxels
    assert Clipped.of(np.array([3071.6, 5000.2])) == Clipped(2, 3071, 5001)
    assert Clipped.of(np.array([])) == none


def test_another_patient_id_leads_nowhere_back(tmp_path):
    source = real_series(tmp_path / "in")
    for form in ("series", "enhanced.dcm"):
        export(source, "--out", tmp_path / form, "--patient-id", "STUDY-001")
        ds = first(tmp_path / form)
        text = str(ds)
        assert ds.PatientID == "STUDY-001"
        assert ds.PatientBirthDate == ""
        assert "Source Image" not in text
        assert not [v for k, v in STUDY.items() if k not in ("PatientSex", "StudyDescription") and v in text]
        assert ds.StudyDate == "20000101"
        assert ds.StudyID
        assert "MAKER" in text


def test_no_two_sources_get_one_patient_id(tmp_path, capsys):
    volume = Volume.regular(toy_head(0, 12, 32), (5.0, 1.0, 1.0))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_nifti(volume, tmp_path / name / "ct.nii.gz")
        export(tmp_path / name / "ct.nii.gz", "--out", tmp_path / f"{name}-series")
    assert first(tmp_path / "a-series").PatientID != first(tmp_path / "b-series").PatientID
    real_series(tmp_path / "nameless", PatientID="")
    with pytest.raises(SystemExit):
        export(tmp_path / "nameless", "--out", tmp_path / "c")
    assert "--patient-id" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_a_nifti_file_tells_its_origin_and_of_a_patient_nothing(tmp_path):
    export(real_series(tmp_path / "in"), "--out", tmp_path / "head.nii.gz")
    about = json.loads((tmp_path / "head.json").read_text())
    assert about["SyntheticData"] is False
    assert about["GeneratedBy"][0]["Name"] == "slicewise"
    assert about["Description"] == "Exported by slicewise: HU unchanged"
    assert not [v for v in STUDY.values() if v in json.dumps(about).replace('"CT head"', "")]
    assert (
        bytes(nib.load(tmp_path / "head.nii.gz").header["descrip"]).rstrip(b"\0").startswith(b"Exported by slicewise")
    )
    volume = Volume.regular(toy_head(0, 12, 32), (5.0, 1.0, 1.0))
    write_volume(volume, tmp_path / "s.nii", synthetic=ORIGIN, patient_id="SYN-1")
    assert bytes(nib.load(tmp_path / "s.nii").header["descrip"]).startswith(b"Synthetic volume, not a patient")
    assert read_volume(tmp_path / "s.nii").volume.acquisition.synthetic
    (tmp_path / "mine.json").write_text('{"my": "notes"}')
    with pytest.raises(UserError, match="was not written by slicewise"):
        write_volume(volume, tmp_path / "mine.nii", synthetic=ORIGIN, patient_id="SYN-1")
    assert json.loads((tmp_path / "mine.json").read_text()) == {"my": "notes"}
    assert not (tmp_path / "mine.nii").exists()


def test_a_store_knows_what_is_synthetic(tmp_path):
    for name, synthetic in (("real", False), ("made", True)):
        volume = Volume.regular(toy_head(0, 12, 32), (5.0, 1.0, 1.0))
        put_volume(tmp_path / "store", volume, id=name, patient=f"p{name}", split="train", synthetic=synthetic)
        export(f"{tmp_path / 'store'}:{name}", "--out", tmp_path / name)
        ds = first(tmp_path / name)
        assert (ds.get("SyntheticData") == "YES") is synthetic
        assert ds.PatientID == f"p{name}"
    assert [r.synthetic for r in open_store(tmp_path / "store").records] == [True, False]


def test_a_segmentation_lies_in_the_study_of_its_series(tmp_path):
    source = real_series(tmp_path / "in")
    labels = np.ascontiguousarray((toy_head(0, 12, 32) > 300).astype(np.uint8)[::-1].transpose(2, 1, 0))
    affine = np.diag([-0.75, -0.5, 5.0, 1.0])
    affine[2, 3] = read_volume(source).volume.positions[-1, 2]
    nib.save(nib.Nifti1Image(labels, affine), tmp_path / "l.nii.gz")
    (tmp_path / "labels.json").write_text('{"skull": 1}')
    cli.main(["segmentation", str(tmp_path / "l.nii.gz"), str(source), "--out", str(tmp_path / "seg.dcm")])
    ds = first(tmp_path / "seg.dcm")
    for name in (
        "PatientID",
        "PatientName",
        "PatientBirthDate",
        "StudyInstanceUID",
        "StudyDate",
        "FrameOfReferenceUID",
    ):
        assert str(ds[name].value) == STUDY[name], name
    assert "SyntheticData" not in ds
    assert ds.IssuerOfPatientID == "HERE"
    assert "SeriesDate" in ds


def test_synthetic_volumes_have_a_date_a_pacs_can_search_and_stay_identical(tmp_path):
    volume = Volume.regular(toy_head(0, 12, 32), (5.0, 1.0, 1.0))
    for name in ("a.dcm", "b.dcm"):
        write_volume(volume, tmp_path / name, synthetic=ORIGIN, patient_id="SYN-1")
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()
    ds = first(tmp_path / "a.dcm")
    for name in ("StudyDate", "SeriesDate", "ContentDate"):
        assert ds[name].value == "20000101"
    assert ds.StudyTime == ds.SeriesTime == "000000"
    assert 0 < len(ds.StudyID) <= 16


# The slice that a chain continued from -------------------------------------------------------------------------------


def kept_seed(tmp_path: Path, slices: int = 12) -> tuple[Volume, Path]:
    """A volume of which slice 0 is of a scan, as `generate --keep-seed` writes it."""
    scan = read_volume(real_series(tmp_path / "scan"))
    origin = type(ORIGIN)(**{**vars(ORIGIN), "from_scan": True})
    about = Acquisition(synthetic=True, real_slices=(0,))
    volume = Volume.regular(toy_head(1, slices, 32), (5.0, 1.0, 1.0), about)
    write_series(volume, tmp_path / "out", synthetic=origin, patient_id="SYN-1", source=scan.source)
    return volume, tmp_path / "out"


def test_what_holds_real_voxels_says_so(tmp_path):
    volume, folder = kept_seed(tmp_path)
    files = [pydicom.dcmread(f) for f in sorted(folder.iterdir())]
    assert [f.SyntheticData for f in files] == ["NO"] + ["YES"] * 11
    assert "SourceImageSequence" in files[0]
    assert not any("SourceImageSequence" in f for f in files[1:])
    for f in files:
        assert "not a patient" not in str(f)
        assert "slice 1 is" in f.DerivationDescription
        assert f.ImageType[0] == "DERIVED"
        assert not str(f.PatientName).startswith("Synthetic^")
        assert "Åsa" not in str(f)
        assert "P-17" not in str(f)
        assert f.DerivationCodeSequence[0].CodeValue == "113090"
    back = read_volume(folder).volume
    assert back.acquisition.real_slices == (0,)
    assert "but for slice 0" in describe(facts(folder))
    judged = without_real_slices(back)
    assert np.array_equal(judged.hu, volume.hu[1:])
    assert np.array_equal(judged.positions, volume.positions[1:])
    for form in ("v.nii.gz", "v.dcm"):
        export(folder, "--out", tmp_path / form)
        assert read_volume(tmp_path / form).volume.acquisition.real_slices == (0,)
    export(folder, "--out", tmp_path / "again")
    assert [pydicom.dcmread(f).SyntheticData for f in sorted((tmp_path / "again").iterdir())] == ["NO"] + ["YES"] * 11


def test_judges_leave_the_seed_slice_out(tmp_path):
    from slicewise.data.sets import open_set

    volume, folder = kept_seed(tmp_path)
    (member,) = open_set(folder).members
    reading = member.read()
    assert np.array_equal(reading.volume.hu, volume.hu[1:])
    assert "1 seed slice of a real scan left out" in reading.notes


def test_a_study_leaves_the_seed_slice_out(tmp_path):
    from slicewise.study.create import _draw

    _, folder = kept_seed(tmp_path, slices=8)
    skipped = []
    with pytest.raises(UserError, match="0 usable volumes"):
        _draw(folder, "synthetic", 1, np.random.default_rng(0), skipped)
    assert skipped[-1].reason == "7 slices where 8 or more are needed"


def test_steps_add_up_in_the_derivation(tmp_path):
    source = read_volume(real_series(tmp_path / "in"))
    steps = source.source.after(Step("calibrated", EDITED), Step("shown to nobody"))
    write_volume(source.volume, tmp_path / "out", source=steps)
    ds = first(tmp_path / "out")
    assert ds.DerivationDescription == "Exported by slicewise: calibrated; shown to nobody"
    assert [c.CodeValue for c in ds.DerivationCodeSequence] == ["113077"]
