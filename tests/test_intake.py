"""What comes in: nothing that cannot be HU, no file passed over, patients told apart, holes and tilts as asked for."""

import os
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from conftest import toy_head
from slicewise import cli
from slicewise.data.prepare import PrepareReport, prepare
from slicewise.data.resample import Grid, resample_volume, shear_note
from slicewise.data.settings import PrepareSettings
from slicewise.data.store import fill_splits, open_store, put_volume, split_store
from slicewise.errors import UserError
from slicewise.io import files as files_module
from slicewise.io.archive import find, read_volume
from slicewise.io.dicom import load
from slicewise.io.dicom_scan import scan
from slicewise.io.files import files_below
from slicewise.io.nifti import load_nifti, write_nifti
from slicewise.io.plausible import hu_doubt
from slicewise.volume import Volume
from test_dicom_read import ct_slice, save

DATA = Path(__file__).parents[1].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not (DATA / "ge-head").exists(), reason="the real scans (../shared/data) are not here")
SETTINGS = PrepareSettings(size=32, fov_mm=250.0, workers=1, split=(0.5, 0.25, 0.25))
SPACING = (5.0, 6.0, 6.0)


def series(folder: Path, hu: np.ndarray | None = None, number: int = 0, step: float = 5.0, skip=(), **tags) -> Path:
    """A toy head as DICOM; stored values are HU + 1024 unless `tags` say otherwise."""
    hu = toy_head(number, 16, 32) if hu is None else hu
    uids = {"SeriesInstanceUID": f"1.2.3.{number}", "StudyInstanceUID": f"1.2.4.{number}", "PatientID": f"P{number}"}
    for k, plane in enumerate(hu):
        if k not in skip:
            ds = ct_slice(plane, (0, 0, -step * k), **{**uids, "PixelSpacing": list(SPACING[1:]), **tags})
            save(ds, folder / f"{k:03d}.dcm")
    return folder


def nifti(path: Path, hu: np.ndarray, spacing=SPACING) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(Volume.regular(hu, spacing), path)
    return path


def prepared(tmp_path: Path, *inputs: Path, **changes) -> PrepareReport:
    return prepare(inputs, tmp_path / "store", replace(SETTINGS, **changes), progress=False)


# --- HU -------------------------------------------------------------------------------------------------------------

BASE = toy_head(0, 16, 32).astype(int)
WRONG = {
    "offset lost": (BASE + 1024, "intercept of -1024 were missing"),
    "offset twice": (np.where(BASE - 1024 < -1200, -1024, BASE - 1024), "intercept of -1024 were applied twice"),
    "unsigned": (np.where(BASE < 0, BASE + 65536, BASE), "negative values were read as unsigned"),
    "window": (np.clip(BASE, -100, 300), "as if cut to a window"),
    "grey levels": ((np.clip(BASE, -100, 300) + 100) * 255 // 400, "as if scaled to grey levels"),
    "halved": (BASE // 2, "instead of near -1000"),
    "doubled": (np.where(BASE * 2 < -1200, -1024, BASE * 2), "soft tissue lies at 7"),
    "no skull": (np.where(BASE > 200, -1000, BASE), "no skull, or a window"),
    "air only": (np.full_like(BASE, -1000), "nothing is denser"),
}


@pytest.mark.parametrize("case", WRONG)
def test_values_that_cannot_be_hu_are_recognised(case):
    hu, words = WRONG[case]
    assert words in hu_doubt(np.clip(hu, -1024, 3071).astype(np.int16))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("change", [lambda hu: hu, lambda hu: np.where(hu < -900, -1024, hu), lambda hu: hu + 8])
def test_heads_with_any_air_and_a_small_shift_pass(seed, change):
    assert hu_doubt(change(toy_head(seed, 16, 32).astype(int)).astype(np.int16)) == ""


@needs_data
def test_real_heads_pass_and_a_plastic_one_does_not():
    for real in (DATA / "ge-head", DATA / "cranium" / "Cranium.nii.gz"):
        assert read_volume(real).doubt == ""
    assert "soft tissue lies at 9" in read_volume(DATA / "philips-phantom" / "S21610").doubt


@pytest.mark.parametrize("kind", ["dicom", "nifti"])
def test_data_without_their_offset_are_left_out_unless_trusted(tmp_path, kind, capsys):
    if kind == "dicom":
        # Stored as written for an intercept of -1024, but the header says 0.
        source = series(tmp_path / "in", toy_head(0, 16, 32), RescaleIntercept=0, PixelRepresentation=1)
        for file in source.iterdir():
            ds = pydicom.dcmread(file)
            ds.PixelData = (ds.pixel_array.astype(int) + 1024).astype("<u2").tobytes()
            ds.save_as(file)
    else:
        source = nifti(tmp_path / "in" / "a.nii", np.clip(BASE - 1024, -1024, 3071).astype(np.int16))
    with pytest.raises(UserError, match=r"values cannot be HU: .*trust_hu=True"):
        prepared(tmp_path, source)
    assert not (tmp_path / "store").exists()
    report = prepared(tmp_path, source, trust_hu=True)
    assert len(report.prepared) == 1
    assert "taken as HU although" in report.notes[0]
    cli.main(["info", str(source)])
    assert "values do not look like HU" in capsys.readouterr().out


# --- Everything below a folder --------------------------------------------------------------------------------------


def zipped(path: Path, *folders: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for folder in folders:
            for file in sorted(folder.iterdir()):
                archive.write(file, f"../{folder.name}/{file.name}")
    return path


def test_every_file_is_read_listed_or_counted(tmp_path):
    root, outside = tmp_path / "in", tmp_path / "outside"
    series(root / "good", number=0)
    series(outside / "zipped", number=1)
    series(outside / "tarred", number=2)
    series(outside / "linked", number=3)
    zipped(root / "two.zip", outside / "zipped")
    with tarfile.open(root / "three.tar.gz", "w:gz") as archive:
        archive.add(outside / "tarred", "x")
        archive.add(Path(__file__), "notes.txt")
    os.symlink("../outside/linked", root / "link")
    os.symlink(".", root / "loop")
    os.symlink("good/000.dcm", root / "same.dcm")
    os.symlink("nowhere", root / "broken.dcm")
    for name in ("a.mha", "b.nrrd", "c.img", "d.mgz", "e.7z", "readme.txt"):
        (root / name).write_bytes(b"x" * 200)
    (root / "cut.zip").write_bytes((root / "two.zip").read_bytes()[:300])
    report = prepared(tmp_path, root, keep_sources=True)
    assert len(report.prepared) == 4
    reasons = {Path(e.source).name: e.reason for e in report.skipped}
    words = {
        "a.mha": "MetaImage", "b.nrrd": "NRRD", "c.img": "Analyze", "d.mgz": "mri_convert", "e.7z": "unpack it",
        "loop": "already been read", "same.dcm": "already been read", "broken.dcm": "a broken link",
        "cut.zip": "cut short or damaged", "three.tar.gz": "also in it: 1 .txt",
    }  # fmt: skip
    assert reasons.keys() == words.keys()
    assert all(text in reasons[name] for name, text in words.items())
    assert report.others == {".txt": 1}
    sources = {Path(record.source).name for record in open_store(tmp_path / "store").records}
    assert sources == {"good", "two.zip", "three.tar.gz", "link"}
    again = prepared(tmp_path, root, keep_sources=True)
    assert again.prepared == (), "unpacked again, the files are the same"
    assert len(again.already_done) == 4, "unpacked again, the files are the same"
    assert list(tmp_path.glob("*")), "nothing was written by a member's name"
    assert not list(outside.glob("*.zip")), "nothing was written by a member's name"
    assert np.array_equal(read_volume(root / "two.zip").volume.hu, toy_head(1, 16, 32))


def test_a_folder_that_cannot_be_opened_is_told(tmp_path, monkeypatch):
    series(tmp_path / "in" / "good")
    (tmp_path / "in" / "locked").mkdir()
    real = os.scandir

    def scandir(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    (entry,) = find([tmp_path / "in"]).skipped
    assert entry.source.endswith("locked")
    assert "Permission denied" in entry.reason
    assert entry.damaged


@pytest.mark.parametrize("limit, value, words", [("MOST_FILES", 5, "more than 5 files"), ("MOST_BYTES", 9000, "0 GiB")])
def test_archives_have_limits_and_leave_nothing(tmp_path, monkeypatch, limit, value, words):
    zipped(tmp_path / "big.zip", series(tmp_path / "in"))
    monkeypatch.setattr(files_module, limit, value)
    found = files_below([tmp_path / "big.zip"])
    assert found.paths == []
    assert words in found.skipped[0].reason
    assert found.skipped[0].damaged


def test_a_bomb_is_stopped_while_it_unpacks(tmp_path, monkeypatch):
    """The size that a member claims is not asked: what comes out is counted."""
    monkeypatch.setattr(files_module, "MOST_BYTES", 2**22)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", bytes(128) + b"DICM" + bytes(2**26))
    assert (tmp_path / "bomb.zip").stat().st_size < 2**17
    assert "unpack it first" in files_below([tmp_path / "bomb.zip"]).skipped[0].reason


# --- Patients -------------------------------------------------------------------------------------------------------


def test_an_id_that_names_nobody_is_warned_about_and_paths_tell_patients_apart(tmp_path):
    for number in range(3):
        series(tmp_path / "in" / f"p{number}" / "scan", number=number, PatientID="ANONYMOUS")
        nifti(tmp_path / "in" / f"q{number}" / "ct.nii.gz", toy_head(number, 16, 32))
    by_id = prepared(tmp_path, tmp_path / "in")
    assert "ANONYMOUS has 3 studies" in by_id.warnings[0]
    assert "patient_from=path" in by_id.warnings[0]
    patients = {r.patient for r in open_store(tmp_path / "store").records}
    assert len(patients) == 4, "three files of one name are three patients"
    prepare([tmp_path / "in"], tmp_path / "other", replace(SETTINGS, patient_from="path"), progress=False)
    assert len({r.patient for r in open_store(tmp_path / "other").records}) == 6


def test_one_id_over_clearly_different_heads_is_warned_about(tmp_path):
    wide = np.repeat(toy_head(1, 16, 32), 2, axis=2)[:, :, 13:51]
    series(tmp_path / "in" / "a", number=0, PatientID="P7")
    series(tmp_path / "in" / "b", wide, number=1, PatientID="P7")
    series(tmp_path / "in" / "c", number=0, PatientID="P8", StudyInstanceUID="1.9", SeriesInstanceUID="1.9.1")
    (warning,) = prepared(tmp_path, tmp_path / "in", fov_mm=400.0).warnings
    assert "have the same Patient ID" in warning
    assert "mm wide" in warning
    assert "patient_from=path" in warning


# --- Geometry -------------------------------------------------------------------------------------------------------


def test_directions_that_jitter_within_half_a_degree_are_one_series(tmp_path):
    for k in range(16):
        s = 0.00501 if k % 2 else 0.00499  # rounds to 0.01 and to 0.00
        ds = ct_slice(
            toy_head(0, 16, 32)[k], (0, 0, -5.0 * k), ImageOrientationPatient=[1, 0, 0, 0, (1 - s * s) ** 0.5, s]
        )
        save(ds, tmp_path / "in" / f"{k}.dcm")
    (found,) = scan(tmp_path / "in").series
    assert not found.problem
    assert np.array_equal(load(found).volume.hu, toy_head(0, 16, 32))
    ds = ct_slice(toy_head(0, 16, 32)[0], (0, 0, 5.0), ImageOrientationPatient=[1, 0, 0, 0, np.cos(0.02), np.sin(0.02)])
    save(ds, tmp_path / "in" / "x.dcm")  # 1.1 degrees
    found = scan(tmp_path / "in")
    assert len(found.series[0].slices) == 16
    assert "another geometry" in found.skipped[0].reason


def test_a_decimal_comma_is_one_line_a_series_with_tag_and_value(tmp_path):
    series(tmp_path / "in")
    for file in (tmp_path / "in").iterdir():
        data = file.read_bytes()
        assert data.count(b"6.0\\6.0 ") == 1 or data.count(b"6\\6 ") == 1
        file.write_bytes(data.replace(b"6.0\\6.0 ", b"6,0\\6,0 ").replace(b"6\\6 ", b"6,\\6"))
    (entry,) = scan(tmp_path / "in").skipped
    assert "Pixel Spacing (0028,0030) is '6,0\\6,0', not 2 numbers" in entry.reason
    assert "decimal point" in entry.reason
    assert "(16 files)" in entry.reason
    assert entry.source == str(tmp_path / "in")


@pytest.mark.parametrize("which", ["qform", "pixdim", "none"])
def test_a_nifti_header_that_says_two_things_is_told(tmp_path, which):
    path = nifti(tmp_path / "a.nii", toy_head(0, 16, 32))
    image = nib.load(path)
    if which == "qform":
        image.set_qform(np.diag([-6.0, -6.0, 2.5, 1.0]), 1)
    else:
        image.set_qform(None, 0)
        image.header["pixdim"][3] = 2.5 if which == "pixdim" else 5.0
    nib.save(image, tmp_path / "b.nii")
    reading = load_nifti(tmp_path / "b.nii")
    assert reading.volume.spacing == pytest.approx(SPACING), "the sform's"
    words = {"qform": "its qform puts voxels up to", "pixdim": "its pixdim says 6 x 6 x 2.5"}
    assert [words[which] in note for note in reading.notes] == [True] if which in words else reading.notes == ()


# --- Holes ----------------------------------------------------------------------------------------------------------

FINE = np.repeat(toy_head(0, 16, 32), 3, axis=0)[:40]


def test_the_message_names_only_what_works(tmp_path, capsys):
    source, out = series(tmp_path / "in", FINE, step=2.0, skip=(20, 21, 22, 23, 24, 25, 26, 27)), tmp_path / "o.nii.gz"
    with pytest.raises(
        UserError, match=r"8 slices missing.*too wide to interpolate, largest_part=True uses the 20 slices"
    ) as e:
        read_volume(source)
    assert "interpolate_missing=True" not in str(e.value)
    with pytest.raises(UserError, match="too wide to interpolate"):
        read_volume(source, interpolate_missing=True, grid_mm=5.0)
    cli.main(["export", str(source), "--out", str(out), "--largest-part"])
    assert "the 20 slices from z = 0.00 to -38.00 mm, of a scan with gaps" in capsys.readouterr().out
    assert np.array_equal(read_volume(out).volume.hu, FINE[:20])
    narrow = series(tmp_path / "narrow", FINE, step=2.0, skip=(20,))
    with pytest.raises(UserError, match="interpolate_missing=True fills them"):
        read_volume(narrow)
    assert len(read_volume(narrow, interpolate_missing=True).volume.hu) == 40


def test_wide_holes_of_thin_slices_are_bridged_on_a_coarse_grid(tmp_path):
    source = series(tmp_path / "in", FINE, step=2.0, skip=(20, 21, 22))
    with pytest.raises(UserError, match="a gap of 3 is too wide"):
        read_volume(source, interpolate_missing=True)
    reading = read_volume(source, interpolate_missing=True, grid_mm=5.0)
    assert len(reading.volume.hu) == 40
    assert "3 missing slices interpolated" in reading.notes
    report = prepared(tmp_path, source, interpolate_missing=True, slice_mm=5.0)
    assert len(report.prepared) == 1
    part = prepare([source], tmp_path / "part", replace(SETTINGS, largest_part=True, min_slices=5), progress=False)
    assert "the 20 slices" in part.notes[0]
    assert open_store(tmp_path / "part").records[0].shape[0] == 7


# --- Tilt -----------------------------------------------------------------------------------------------------------


def tilted(step: float = 6.0, degrees: float = 20.0) -> Volume:
    """Slices of a tilted gantry, 6 mm apart along the table."""
    upright = Volume.regular(toy_head(0, 16, 32), (step, 6.0, 6.0))
    angle = np.deg2rad(degrees)
    return replace(upright, column_axis=np.array([0.0, np.cos(angle), -np.sin(angle)]))


def test_kept_tilt_leaves_slices_as_they_were_scanned():
    """On a grid of the scan's own step along its normal, no slice is mixed with another; upright they are."""
    volume, along = tilted(), 6.0 * np.cos(np.deg2rad(20.0))
    kept = resample_volume(volume, Grid(48, 48 * 6.0, along, crop_air_above=False, keep_tilt=True))
    assert np.allclose(kept.positions[:, :2], kept.positions[0, :2])
    assert np.allclose(kept.slice_steps, along)
    held = volume.hu.mean(axis=(1, 2)) + 1000
    means = [(plane + 1000.0).sum() / volume.hu[0].size for plane in np.where(kept.hu == -1024, -1000, kept.hu)]
    assert np.allclose(means[: len(held)], held, atol=12)
    upright = resample_volume(volume, Grid(48, 48 * 6.0, 6.0, crop_air_above=False))
    skull = [np.count_nonzero(v.hu > 700) / v.hu.size * np.prod(v.hu.shape) for v in (kept, upright)]
    assert skull[0] > 1.2 * skull[1], "bone is diluted across thick slices"


def test_shear_is_told_where_it_shows(tmp_path):
    assert "6.0 mm apart are tilted by 20.0 degrees" in shear_note(
        replace(tilted(), positions=tilted().positions * [1, 1, 1 / np.cos(np.deg2rad(20))])
    )
    assert shear_note(tilted(degrees=0.5)) == ""
    assert shear_note(tilted(step=1.0)) == ""
    assert shear_note(tilted(step=2.4 / np.cos(np.deg2rad(20)))) == "", "thin slices are not seen in the vault"
    assert "2.6 mm apart" in shear_note(tilted(step=2.6 / np.cos(np.deg2rad(20))))
    ds_tilt = [1, 0, 0, 0, float(np.cos(0.35)), -float(np.sin(0.35))]
    source = series(tmp_path / "in", ImageOrientationPatient=ds_tilt)
    assert any("keep_tilt=True" in note for note in prepared(tmp_path, source, min_coverage=0.3).notes)
    report = prepare([source], tmp_path / "kept", replace(SETTINGS, keep_tilt=True), progress=False)
    assert len(report.prepared) == 1
    assert report.notes == ()


# --- Splits ---------------------------------------------------------------------------------------------------------


def store_of(path: Path, patients: int, split: str = "train") -> None:
    for k in range(patients):
        for scan_of in range(2):
            volume = Volume.regular(toy_head(k), (5.0, 12.0, 12.0))
            put_volume(path, volume, id=f"h{k}-{scan_of}", patient=f"p{k}", split=split, vertex_slice=0)


@pytest.mark.parametrize(
    "patients, most", [(1, {}), (2, {"val": 1}), (6, {"val": 2, "test": 1}), (24, {"val": 2, "test": 1})]
)
def test_a_small_store_has_something_to_judge_by(tmp_path, patients, most):
    store_of(tmp_path, patients)
    moves = fill_splits(open_store(tmp_path), (0.8, 0.1, 0.1), 0)
    assert {split: list(moves.values()).count(split) for split in set(moves.values())} == most
    assert fill_splits(open_store(tmp_path), (1.0, 0.0, 0.0), 0) == {}


def test_24_heads_have_two_in_validation(tmp_path):
    from slicewise.data.phantom import PhantomSettings, store_phantoms

    for number in range(8):
        nifti(tmp_path / "in" / f"{number}" / "ct.nii", toy_head(number, 16, 32))
    report = prepared(tmp_path, tmp_path / "in", split=(0.98, 0.01, 0.01))
    assert report.splits == {"train": 5, "val": 2, "test": 1}
    assert {s: len(open_store(tmp_path / "store").select(s)) for s in report.splits} == report.splits
    store = store_phantoms(tmp_path / "ph", 2, 0, PhantomSettings(size=128, split=(1.0 - 1e-9, 1e-9, 0.0)))
    assert [len(store.select(split)) for split in ("train", "val", "test")] == [1, 1, 0]


def test_split_changes_shares_by_patient_and_new_data_follow(tmp_path, capsys):
    store_of(tmp_path / "s", 40)
    before = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "s" / "volumes").iterdir()}
    cli.main(["split", str(tmp_path / "s"), "--val", "0.3", "--test", "0.2", "--seed", "4"])
    store = open_store(tmp_path / "s")
    sizes = {split: len({r.patient for r in store.select(split)}) for split in ("train", "val", "test")}
    assert sum(sizes.values()) == 40
    assert 6 <= sizes["val"] <= 18
    assert 3 <= sizes["test"] <= 14
    assert f"val    {2 * sizes['val']} volumes of {sizes['val']} patients" in capsys.readouterr().out
    assert {f.name: f.stat().st_mtime_ns for f in (tmp_path / "s" / "volumes").iterdir()} == before
    assert split_store(tmp_path / "s", (0.5, 0.3, 0.2), 4).fingerprint == store.fingerprint
    with pytest.raises(UserError, match="sum to 1"):
        split_store(tmp_path / "s", (0.5, 0.3, 0.3), 4)


def test_a_store_that_was_split_anew_takes_more_data(tmp_path):
    nifti(tmp_path / "in" / "0" / "ct.nii", toy_head(0, 16, 32))
    prepared(tmp_path, tmp_path / "in")
    split_store(tmp_path / "store", (1.0, 0.0, 0.0), 3)
    for number in range(1, 5):
        nifti(tmp_path / "in" / f"{number}" / "ct.nii", toy_head(number, 16, 32))
    report = prepared(tmp_path, tmp_path / "in")
    assert report.splits == {"train": 5}
    assert "split like the rest of the store (1 0 0, seed 3)" in report.warnings[0]
