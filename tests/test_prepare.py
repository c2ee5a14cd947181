"""Resampling against closed forms and oracles; the store; and preparing an archive, again, in part, in trouble."""

import errno
import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from scipy.interpolate import RegularGridInterpolator
from scipy.spatial.transform import Rotation

from slicewise.data import prepare as prepare_module
from slicewise.data.prepare import KEY_FILE, prepare
from slicewise.data.resample import Grid, body_mask, crop_above, remove_table, resample_volume
from slicewise.data.settings import PrepareSettings
from slicewise.data.store import append, assign_split, first_head_slice, open_store, private_folder, put_volume
from slicewise.errors import UserError
from slicewise.io.dicom import read_series
from slicewise.io.nifti import read_nifti, write_nifti
from slicewise.io.secret import keep_key
from slicewise.volume import Volume

DATA = Path(__file__).parents[1].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not (DATA / "ge-head").exists(), reason="the real scans (../shared/data) are not here")


def ball(shape=(16, 40, 40), spacing=(5.0, 4.0, 4.0), radii=(36.0, 60.0, 50.0), seed=None, inside=40.0) -> Volume:
    """A head of a kind: an ellipsoid at 40 HU, in air, in the middle of an even axial grid; noise with a seed."""
    z, y, x = (
        (np.arange(n) - (n - 1) / 2).reshape([-1 if a == b else 1 for b in range(3)]) * s
        for a, (n, s) in enumerate(zip(shape, spacing))
    )
    hu = np.where((z / radii[0]) ** 2 + (y / radii[1]) ** 2 + (x / radii[2]) ** 2 <= 1, inside, -1000.0)
    if seed is not None:
        hu = hu + np.random.default_rng(seed).normal(0, 5, shape)
    return Volume.regular(np.rint(hu).astype(np.int16), spacing)


def write_dicom(folder: Path, volume: Volume, patient: str, series: str, skip=()) -> None:
    """A bare CT series, by pydicom alone."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, plane in enumerate(volume.hu):
        if k in skip:
            continue
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        ds.Modality, ds.ImageType, ds.PatientID = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], patient
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SeriesDescription = f"1.2.{series}", f"1.2.{series}.1", "Head"
        ds.ImagePositionPatient = [float(f"{v:.10g}") for v in volume.positions[k]]
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        ds.PixelSpacing = list(volume.pixel_spacing)
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 1
        ds.Rows, ds.Columns = plane.shape
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
        ds.RescaleSlope, ds.RescaleIntercept = 1, 0
        ds.PixelData = plane.astype("<i2").tobytes()
        ds.save_as(folder / f"{k:03d}", enforce_file_format=True)


# --- Resampling -----------------------------------------------------------------------------------------------------


def linear_field(points: np.ndarray) -> np.ndarray:
    return 100.0 + points @ np.array([2.0, -1.5, 2.5])


@pytest.mark.parametrize("kind", ["axial", "tilted", "uneven", "oblique", "thin", "flipped", "jump"])
def test_a_linear_field_stays_linear_in_any_geometry(kind):
    """HU that are linear in patient space must come out as the same function of patient space, whatever the slices:
    every geometry error, shift of half a voxel or wrong direction shows."""
    steps = {"uneven": [2.0] * 12 + [0.8] + [4.0] * 12, "thin": [1.0] * 60}.get(kind, [3.0] * 25)
    row, column, normal = np.eye(3)
    if kind == "tilted":
        column = np.array([0.0, np.cos(0.3), -np.sin(0.3)])
    if kind == "oblique":
        turn = Rotation.from_euler("xyz", [11, -7, 5], degrees=True).as_matrix()
        row, column, normal = turn.T
    if kind == "flipped":
        row, column = -row, -column
    n = len(steps) + 1
    positions = -np.concatenate([[0], np.cumsum(steps)])[:, None] * normal
    positions = positions - positions.mean(axis=0) - 63 * 1.2 / 2 * row - 63 * 1.5 / 2 * column
    if kind == "jump":
        positions[n // 2 :] += [6.0, -4.0, 0.0]
    y, x = np.mgrid[:64, :64]
    points = positions[:, None, None] + y[..., None] * 1.5 * column + x[..., None] * 1.2 * row
    volume = Volume(np.rint(linear_field(points)).astype(np.int16), positions, row, column, (1.5, 1.2))
    out = resample_volume(volume, Grid(size=20, fov_mm=45.0, slice_mm=5.0, crop_air_above=False))
    assert np.allclose(np.diff(out.positions, axis=0), [0, 0, -5])
    assert out.spacing == (5.0, 2.25, 2.25)
    assert len(out.hu) >= 5
    y, x = np.mgrid[:20, :20] * 2.25
    for z in range(1, len(out.hu) - 1):
        place = out.positions[z] + np.stack([x, y, np.zeros_like(x)], axis=-1)
        assert np.abs(out.hu[z] - linear_field(place)).max() <= 1.01


def test_tilted_volume_against_interpolation_through_its_affine():
    """Random voxels of a sheared volume: SciPy's interpolator through the inverse affine is the oracle."""
    rng = np.random.default_rng(3)
    column = np.array([0.0, np.cos(0.25), np.sin(0.25)])
    positions = np.array([-30.0, -28.0, 40.0]) - 5.0 * np.arange(18)[:, None] * [0, 0, 1]
    hu = rng.integers(-200, 1500, (18, 30, 30)).astype(np.int16)
    volume = Volume(hu, positions, np.eye(3)[0], column, (2.0, 2.0))
    step = 5.0 * np.cos(0.25)
    out = resample_volume(volume, Grid(size=15, fov_mm=30.0, slice_mm=step, crop_air_above=False))
    oracle = RegularGridInterpolator([np.arange(n) for n in hu.shape], hu.astype(float))
    y, x = np.mgrid[:15, :15] * 2.0
    for z in range(len(out.hu)):
        place = out.positions[z] + np.stack([x, y, np.zeros_like(x)], axis=-1)
        index = (place - volume.affine[:3, 3]) @ np.linalg.inv(volume.affine[:3, :3]).T
        inside = ((index >= 0) & (index <= np.array(hu.shape[::-1]) - 1)).all(axis=-1)
        expected = oracle(index[inside][:, ::-1])
        assert inside.any()
        assert np.abs(out.hu[z][inside] - expected).max() <= 2.0


def test_a_volume_on_the_grid_already_is_not_touched():
    volume = ball(seed=1)
    out = resample_volume(volume, Grid(size=40, fov_mm=160.0, slice_mm=5.0, crop_air_above=False))
    centre_shift = out.positions[0, :2] - volume.positions[0, :2]
    assert np.allclose(centre_shift, 0, atol=0.3)  # the centroid of a noisy mask is not exactly the middle
    exact = ball()
    out = resample_volume(exact, Grid(size=40, fov_mm=160.0, slice_mm=5.0, crop_air_above=False))
    assert np.allclose(out.positions, exact.positions)
    assert np.array_equal(out.hu, exact.hu)


def test_thin_slices_are_averaged_and_nothing_is_lost():
    """A layer of 1 mm comes out with the same integral over z, spread over slices of 5 mm."""
    hu = np.zeros((80, 24, 24), np.int16)
    hu[43] = 600
    out = resample_volume(Volume.regular(hu, (1.0, 4.0, 4.0)), Grid(24, 96.0, 5.0, crop_air_above=False))
    profile = out.hu[:, 12, 12].astype(float)
    assert 5.0 * profile.sum() == pytest.approx(600.0, rel=0.05)
    assert 90 <= profile.max() <= 130
    assert np.count_nonzero(profile) <= 3


def test_downsampling_does_not_alias():
    """Stripes finer than the new pixels vanish; stripes that they can hold stay."""
    x = np.arange(200)
    for period, low, high in ((2.7, 0.0, 0.02), (4.4, 0.0, 0.12), (40.0, 0.9, 1.01)):
        hu = np.tile(np.rint(250 * np.sin(2 * np.pi * x / period)).astype(np.int16), (10, 200, 1))
        out = resample_volume(Volume.regular(hu, (5.0, 0.5, 0.5)), Grid(40, 80.0, 5.0, crop_air_above=False))
        assert low <= np.std(out.hu[3, 10:30, 5:35]) / (250 / np.sqrt(2)) <= high


def test_air_outside_and_above():
    volume = ball()
    out = resample_volume(volume, Grid(size=60, fov_mm=300.0, slice_mm=5.0))
    assert (out.hu[:, :10] == -1024).all()
    assert (out.hu[:, :, -10:] == -1024).all()
    assert (out.hu[0] > -300).any()
    assert out.positions[0, 2] < volume.positions[0, 2]


@pytest.mark.parametrize("width, begins", [(5.0, 0), (4.9, 1)])
def test_a_head_begins_with_a_slice_of_one_square_centimetre(width, begins):
    """A cross of five pixels above the head: 100 mm² is a slice of it, 98 mm² is not."""
    hu = ball((12, 40, 40), (5.0, 4.0, width)).hu.copy()
    hu[:3] = -1000
    hu[2, 20, 19:22] = hu[2, 19:22, 20] = 40
    volume = Volume.regular(hu, (5.0, 4.0, width))
    assert np.array_equal(crop_above(volume).positions, volume.positions[2 + begins :])
    assert np.array_equal(crop_above(volume).hu, hu[2 + begins :])


@pytest.mark.parametrize("step, slices, lost", [(3.0, 16, 0.0), (2.6, 26, 5.0)])
def test_the_end_slices_of_a_scan_reach_half_a_step_beyond_themselves(step, slices, lost):
    """A target slice of 5 mm at the end of a scan through the head averages three places. Of slices 3 mm apart the
    outermost place lies 1.33 mm beyond the last one, which is still in it; of slices 2.6 mm apart 1.42 mm, which is
    outside the scan."""
    volume = Volume.regular(np.full((slices, 24, 24), 40, np.int16), (step, 4.0, 4.0))
    out = resample_volume(volume, Grid(24, 96.0, 5.0, crop_air_above=False))
    np.testing.assert_allclose(out.positions[[0, -1], 2] - volume.positions[[0, -1], 2], [-lost, lost], atol=1e-6)
    assert (out.hu[:, 8:16, 8:16] == 40).all()


def test_ends_of_a_tilted_scan_that_show_half_a_head_are_left_away():
    upright = ball((40, 64, 64), (2.0, 3.0, 3.0), (200.0, 60.0, 50.0))
    column = np.array([0.0, np.cos(0.35), -np.sin(0.35)])
    positions = upright.positions - np.array([0, 0, 1.0]) * 0
    tilted = Volume(upright.hu, positions, upright.row_axis, column, upright.pixel_spacing)
    strict = resample_volume(tilted, Grid(64, 192.0, 2.0, crop_air_above=False, min_coverage=0.95))
    loose = resample_volume(tilted, Grid(64, 192.0, 2.0, crop_air_above=False, min_coverage=0.3))
    area = [np.count_nonzero(plane > -300) for plane in strict.hu]
    assert min(area) > 0.9 * max(area)
    assert len(loose.hu) > len(strict.hu) + 4


def test_table_goes_and_ears_and_nose_stay():
    volume = ball((20, 128, 128), (5.0, 1.875, 1.875), (60.0, 80.0, 65.0))
    hu = volume.hu.copy()
    y, x = (np.mgrid[:128, :128] - 63.5) * 1.875
    ear = (np.abs(np.abs(x) - 72) < 9) & (np.abs(y) < 3)
    nose = (np.abs(x) < 6) & (np.abs(y + 84) < 8)
    radius = np.hypot(x / 1.05, y)
    holder = (np.abs(radius - 88) < 2) & (y > 10)
    foam = (radius < 86) & (y > 10) & (hu[10] < -300)
    hu[:, foam] = -940
    hu[:, holder] = 150
    head = hu.copy()
    for z in range(8, 12):
        hu[z][ear | nose] = 30
    cleaned = remove_table(volume.with_hu(hu)).hu
    body = volume.hu > -300
    assert (cleaned[body] == hu[body]).all()
    for z in range(8, 12):
        assert (cleaned[z][ear | nose] == 30).mean() > 0.95
    away = holder & (np.abs(x) < 60) & (y > 84)
    assert (cleaned[:, away] == -1024).all()
    assert (cleaned[0][holder] == -1024).all()
    assert body_mask(volume.with_hu(head)).sum() == pytest.approx(body.sum(), rel=0.02)


def test_no_head():
    volume = Volume.regular(np.full((10, 20, 20), -1000, np.int16), (5.0, 2.0, 2.0))
    with pytest.raises(UserError, match="no head in it"):
        resample_volume(volume)


def test_the_vertex_is_the_first_slice_with_two_per_cent_of_head():
    """Skin lies above -300 HU. Fewer pixels than one in fifty are a holder's, or noise."""
    hu = np.full((4, 10, 10), -300, np.int16)
    hu[1, 0, :1] = hu[2, 0, :2] = hu[3] = -299
    assert first_head_slice(hu) == 2
    assert first_head_slice(hu[:2]) == 0, "none is the vertex"


# --- Store ----------------------------------------------------------------------------------------------------------


def test_every_code_survives_the_store(tmp_path):
    hu = np.random.default_rng(0).permutation(np.arange(-1024, 3072)).astype(np.int16).reshape(16, 16, 16)
    volume = Volume.regular(hu, (5.0, 1.5, 1.25), origin=(-3.0, 7.0, 11.0))
    record = put_volume(tmp_path, volume, id="a", patient="p", split="train", source="here")
    store = open_store(tmp_path)
    assert store.records == (record,)
    assert store.select("train") == (record,)
    assert store.select("val") == ()
    assert np.array_equal(store.hu(record), hu)
    assert store.hu(record).dtype == np.int16
    back = store.volume(record)
    assert np.allclose(back.affine, volume.affine)
    assert np.array_equal(back.hu, hu)
    store.verify()


def test_fingerprint_knows_contents_and_splits_but_no_order(tmp_path):
    volumes = [ball(seed=k) for k in range(3)]
    for folder, order in (("a", (0, 1, 2)), ("b", (2, 0, 1))):
        for k in order:
            put_volume(tmp_path / folder, volumes[k], id=f"v{k}", patient=f"p{k}", split="train")
    a, b = open_store(tmp_path / "a"), open_store(tmp_path / "b")
    assert a.fingerprint == b.fingerprint
    put_volume(tmp_path / "b", volumes[1], id="v0", patient="p0", split="train")
    assert open_store(tmp_path / "b").fingerprint != a.fingerprint
    assert len(open_store(tmp_path / "b").records) == 3


def test_damaged_store(tmp_path):
    volume = ball(seed=0)
    record = put_volume(tmp_path, volume, id="a", patient="p", split="val")
    file = tmp_path / record.file
    whole = file.read_bytes()

    def complaint(words, check=lambda: open_store(tmp_path).hu(record)):
        with pytest.raises(UserError, match=words) as caught:
            check()
        assert "\n" not in str(caught.value)
        assert str(tmp_path) in str(caught.value)

    file.write_bytes(whole[:-1000])
    complaint("damaged: it is cut")
    file.write_bytes(whole + b"x")
    complaint("damaged: it has")
    np.save(file, volume.hu[1:])
    complaint("the manifest says")
    file.write_bytes(b"text")
    complaint("damaged")
    file.unlink()
    complaint("missing")
    file.write_bytes(whole[:-4] + b"abcd")
    complaint("SHA-256", lambda: open_store(tmp_path).verify())
    (tmp_path / "manifest.jsonl").write_text('{"id": 3}\n')
    complaint("line 1 is damaged", lambda: open_store(tmp_path))
    (tmp_path / "manifest.jsonl").unlink()
    complaint("no prepared data here", lambda: open_store(tmp_path))


def test_a_manifest_cut_within_a_line_loses_that_line_only(tmp_path):
    for k in range(3):
        put_volume(tmp_path, ball(seed=k), id=f"v{k}", patient="p", split="train")
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_bytes(manifest.read_bytes()[:-40])
    assert [r.id for r in open_store(tmp_path).records] == ["v0", "v1"]
    append(tmp_path, open_store(tmp_path).records[0])
    assert [r.id for r in open_store(tmp_path).records] == ["v0", "v1"]
    put_volume(tmp_path, ball(seed=2), id="v2", patient="p", split="train")
    assert [r.id for r in open_store(tmp_path).records] == ["v0", "v1", "v2"]
    open_store(tmp_path).verify()


def test_split_is_by_patient_and_stays():
    splits = [assign_split(f"patient {k}") for k in range(4000)]
    shares = [splits.count(name) / 4000 for name in ("train", "val", "test")]
    assert np.allclose(shares, (0.8, 0.1, 0.1), atol=0.025)
    assert splits[:50] == [assign_split(f"patient {k}") for k in range(50)]
    assert splits != [assign_split(f"patient {k}", seed=1) for k in range(4000)]
    with pytest.raises(UserError, match="sum to 1"):
        assign_split("p", (0.5, 0.1, 0.1))


def test_full_disk(tmp_path, monkeypatch):
    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device; free some space"):
        put_volume(tmp_path, ball(), id="a", patient="p", split="train")
    assert not list((tmp_path / "volumes").iterdir())
    assert not (tmp_path / "manifest.jsonl").exists()


# --- Preparing ------------------------------------------------------------------------------------------------------

# Balls have no skull, so they are taken on trust.
SETTINGS = PrepareSettings(size=32, fov_mm=160.0, workers=1, split=(0.5, 0.25, 0.25), trust_hu=True)


@pytest.fixture
def archive(tmp_path):
    """Four patients, one with two studies, a NIfTI, a series with a hole, a short one, and rubbish."""
    root = tmp_path / "archive"
    for k, patient in enumerate(["Miller", "Smith", "Smith", "Jones"]):
        write_dicom(root / f"{k}" / "deep", ball(seed=k), patient, f"{k + 10}")
    write_dicom(root / "hole", ball(seed=9), "Hole", "20", skip=(7,))
    write_dicom(root / "short", ball((5, 40, 40), seed=9), "Short", "21")
    write_nifti(ball(seed=5), root / "sub-01_ct.nii.gz")
    nii = ball(seed=6)
    write_nifti(nii.with_hu((nii.hu > -300).astype(np.int16) * 255), root / "mask.nii")
    (root / "broken.dcm").write_text("no")
    (root / "README").write_text("no")
    return root


def with_key(out: Path) -> Path:
    """A store to be whose key is a known one, so that it can be compared with others."""
    keep_key(private_folder(out) / KEY_FILE, b"0" * 32)
    return out


def test_prepare_an_archive(tmp_path, archive):
    out = tmp_path / "store"
    report = prepare([archive], out, SETTINGS, progress=False)
    store = open_store(out)
    store.verify()
    assert len(report.prepared) == len(store.records) == 5
    assert sum(report.splits.values()) == 5
    reasons = " | ".join(entry.reason for entry in report.skipped)
    for words in ("1 slice missing", "5 slices, fewer than 8", "so they are not HU", "not a DICOM file"):
        assert words in reasons
    assert len(report.skipped) == len(store.skipped) == 4
    for record in store.records:
        assert store.hu(record).shape == record.shape
        assert record.spacing_mm == (5.0, 5.0, 5.0)
        assert abs(float(np.median(store.hu(record)[6, 14:18, 14:18])) - 40) < 5
        assert record.vertex_slice == 0
        assert (store.hu(record)[0] > -300).any()
    assert len({r.patient for r in store.records}) == 4
    assert all(re.fullmatch("p[0-9a-f]{12}", r.patient) for r in store.records)
    everything = b"".join(f.read_bytes() for f in out.glob("*.json*"))
    assert not any(name in everything for name in (b"Miller", b"Smith", b"Jones"))
    assert store.settings["size"] == 32
    assert "workers" not in store.settings


def test_a_second_run_does_only_what_is_new(tmp_path, archive):
    out = tmp_path / "store"
    prepare([archive], out, SETTINGS, progress=False)
    before = {f.name: f.stat().st_mtime_ns for f in (out / "volumes").iterdir()}
    fingerprint, skipped = open_store(out).fingerprint, open_store(out).skipped
    again = prepare([archive], out, SETTINGS, progress=False)
    assert again.prepared == ()
    assert len(again.already_done) == 5
    assert {f.name: f.stat().st_mtime_ns for f in (out / "volumes").iterdir()} == before
    assert open_store(out).fingerprint == fingerprint
    assert open_store(out).skipped == skipped
    write_dicom(archive / "new", ball(seed=12), "New", "30")
    victim = next((out / "volumes").iterdir())
    victim.write_bytes(b"damaged")
    third = prepare([archive], out, SETTINGS, progress=False)
    assert len(third.prepared) == 2
    assert len(third.already_done) == 4
    assert victim.stem in third.prepared
    store = open_store(out)
    store.verify()
    assert len(store.records) == 6
    other = tmp_path / "other"
    write_dicom(other, ball(seed=13), "Other", "31")
    prepare([other], out, SETTINGS, progress=False)
    assert len(open_store(out).skipped) == 4
    assert len(open_store(out).records) == 7


def test_stopped_in_the_middle(tmp_path, archive, monkeypatch):
    whole = with_key(tmp_path / "whole")
    prepare([archive], whole, SETTINGS, progress=False)
    out, make, calls = with_key(tmp_path / "store"), prepare_module._make, []

    def stop(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return make(*args)

    monkeypatch.setattr(prepare_module, "_make", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare([archive], out, SETTINGS, progress=False)
    store = open_store(out)
    store.verify()
    assert 0 < len(store.records) < 5
    monkeypatch.setattr(prepare_module, "_make", make)
    report = prepare([archive], out, SETTINGS, progress=False)
    assert len(report.already_done) == len(store.records)
    assert open_store(out).fingerprint == open_store(whole).fingerprint


def test_many_workers_make_the_same_store(tmp_path, archive):
    """More workers than volumes, in fresh processes."""
    prepare([archive], with_key(tmp_path / "one"), SETTINGS, progress=False)
    prepare([archive], with_key(tmp_path / "many"), replace(SETTINGS, workers=3), progress=False)
    assert open_store(tmp_path / "one").fingerprint == open_store(tmp_path / "many").fingerprint


def test_missing_slices_are_interpolated_on_request(tmp_path, archive):
    report = prepare(
        [archive / "hole"], tmp_path / "store", replace(SETTINGS, interpolate_missing=True), progress=False
    )
    assert len(report.prepared) == 1
    assert "1 missing slice interpolated" in report.notes[0]
    assert open_store(tmp_path / "store").records[0].notes[0] == "1 missing slice interpolated"


def test_what_a_killed_run_left_half_written_goes_after_an_hour(tmp_path, archive):
    volumes = tmp_path / "store" / "volumes"
    volumes.mkdir(parents=True)
    for name, age in (("old", 3700), ("new", 3500)):
        file = volumes / f".{name}.tmp"
        file.write_bytes(b"half")
        os.utime(file, (time.time() - age,) * 2)
    prepare([archive / "short"], tmp_path / "store", SETTINGS, progress=False, dry_run=True)
    assert {f.name for f in volumes.glob(".*.tmp")} == {".old.tmp", ".new.tmp"}
    with pytest.raises(UserError):
        prepare([archive / "short"], with_key(tmp_path / "store"), SETTINGS, progress=False)
    assert {f.name for f in volumes.glob(".*.tmp")} == {".new.tmp"}


def test_dry_run_writes_nothing(tmp_path, archive):
    report = prepare([archive], tmp_path / "store", SETTINGS, progress=False, dry_run=True)
    assert len(report.prepared) == 7
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "inputs, words",
    [
        (["archive/README"], "no DICOM or NIfTI file here"),
        (["archive/nowhere"], "no such file or folder"),
        (["archive/mask.nii"], "not HU"),
        (["archive/hole"], "1 slice missing"),
        (["archive/short", "archive/broken.dcm"], "not a DICOM file"),
        ([], "nothing to prepare"),
    ],
)
def test_nothing_to_prepare_leaves_nothing(tmp_path, archive, inputs, words):
    with pytest.raises(UserError, match=words) as caught:
        prepare([tmp_path / name for name in inputs], tmp_path / "store", SETTINGS, progress=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_bad_outputs(tmp_path, archive):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        prepare([archive / "0"], tmp_path / "file" / "store", SETTINGS, progress=False)
    prepare([archive / "0"], tmp_path / "store", SETTINGS, progress=False)
    with pytest.raises(UserError, match=r"other settings \(size = 32, now 64\)"):
        prepare([archive], tmp_path / "store", replace(SETTINGS, size=64), progress=False)
    with pytest.raises(UserError, match="size=0"):
        PrepareSettings(size=0)
    with pytest.raises(UserError, match="sum to 1"):
        PrepareSettings(split=(0.9, 0.9, 0.9))


@needs_data
def test_prepared_real_heads_keep_their_hu(tmp_path):
    """Tilted, uneven DICOM and a NIfTI: the soft tissue of the brain keeps its mean, and every slice shows a head."""
    out = tmp_path / "store"
    inputs = [DATA / "ge-head", DATA / "cranium" / "Cranium.nii.gz"]
    report = prepare(inputs, out, PrepareSettings(workers=1, remove_table=True, keep_sources=True), progress=False)
    assert len(report.prepared) == 2
    assert report.skipped == ()
    store = open_store(out)
    sources = {str(DATA / "ge-head"): read_series(inputs[0]), str(inputs[1]): read_nifti(inputs[1])}
    for record in store.records:
        hu, source = store.hu(record), sources[record.source]
        assert record.shape[1:] == (128, 128)
        assert 22 <= record.shape[0] <= 34
        # A box well inside the brain, in patient space, 25 to 45 mm below the vertex.
        middle = np.array([record.origin_mm[0] + 120, record.origin_mm[1] + 120, record.origin_mm[2] - 45])
        prepared = hu[7:12, 54:74, 54:74]
        y, x = (np.arange(n) for n in source.hu.shape[1:])
        planes = [
            plane[
                np.ix_(
                    np.abs(p[1] + source.column_axis[1] * source.pixel_spacing[0] * y - middle[1]) < 19,
                    np.abs(p[0] + source.pixel_spacing[1] * x - middle[0]) < 19,
                )
            ]
            for plane, p in zip(source.hu, source.positions)
            if abs(p[2] + source.column_axis[2] * (middle[1] - p[1]) / source.column_axis[1] - middle[2]) < 12
        ]
        assert abs(float(prepared.mean()) - np.mean([plane.mean() for plane in planes])) < 2.0
        assert prepared.std() < 12
        assert 15 < prepared.mean() < 45
        assert all(np.count_nonzero(plane > -300) > 100 for plane in hu[1:])
        assert (hu[0] > -300).sum() > 25


def test_a_store_holds_no_name_path_or_hash_that_can_be_guessed(tmp_path, archive):
    import hashlib

    series = archive / "Jane Miller" / "CT"
    write_dicom(series, ball(seed=20), "Miller", "99")
    stores = [tmp_path / name for name in ("a", "b")]
    for out in stores:
        prepare([archive], out, SETTINGS, progress=False)
        held = b"".join(f.read_bytes() for f in out.rglob("*") if f.suffix != ".npy" and f.is_file())
        for text in ("Miller", "Jane", str(archive), "1.2.99", "sub-01"):
            assert text.encode() not in held
        for guess in ("Miller", "1.2.99 1.2.99.1"):
            assert hashlib.sha256(guess.encode()).hexdigest()[:8].encode() not in held
        key = private_folder(out) / KEY_FILE
        assert key.stat().st_mode & 0o777 == 0o600
        assert key.read_bytes().strip() not in held
        assert "broken.dcm" in (private_folder(out) / "left_out.jsonl").read_text()
    first, second = (open_store(out) for out in stores)
    assert not {r.patient for r in first.records} & {r.patient for r in second.records}, "salted by store"
    assert {r.source for r in first.records} == {""}
    assert sorted(r.split for r in first.records if r.patient)
    assert len(first.records) == len(second.records) == 6
    assert first.volume(first.records[0]).acquisition.source.endswith(first.records[0].id)


def test_a_store_without_its_key_takes_no_more(tmp_path, archive):
    prepare([archive / "0"], tmp_path / "store", SETTINGS, progress=False)
    key = private_folder(tmp_path / "store") / KEY_FILE
    held = key.read_bytes()
    key.unlink()
    with pytest.raises(UserError, match="restore it, or prepare into another folder"):
        prepare([archive], tmp_path / "store", SETTINGS, progress=False)
    assert not key.exists()
    assert len(open_store(tmp_path / "store").records) == 1
    key.write_bytes(held)
    assert len(prepare([archive], tmp_path / "store", SETTINGS, progress=False).prepared) == 4
    prepare([archive / "1"], tmp_path / "told", replace(SETTINGS, keep_sources=True), progress=False)
    assert open_store(tmp_path / "told").records[0].source == str(archive / "1" / "deep")


def test_settings_file_is_plain_json(tmp_path, archive):
    prepare([archive / "0"], tmp_path / "store", SETTINGS, progress=False)
    saved = json.loads((tmp_path / "store" / "settings.json").read_text())
    assert saved["fov_mm"] == 160.0
    assert saved["split"] == [0.5, 0.25, 0.25]
