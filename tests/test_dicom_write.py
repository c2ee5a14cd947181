"""The export: HU and geometry bit for bit, validity by outside tools, and nothing half written."""

import errno
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slicewise.errors import UserError
from slicewise.hu import BRAIN, HU_CODES, HU_MAX, HU_MIN
from slicewise.io import dicom_write
from slicewise.io.archive import read_volume
from slicewise.io.dicom_write import WINDOW_PRESETS, SyntheticOrigin, decimal_string, write_series
from slicewise.volume import Acquisition, Volume

ORIGIN = SyntheticOrigin("head-128", "0.1.0", seed=7, volume=3, description="dpmpp_2m, 20 evaluations a slice")


def all_codes_volume(seed: int = 0, shape: tuple[int, int, int] = (4, 64, 48)) -> Volume:
    """A volume in which every one of the 4096 codes occurs, in random order."""
    rng = np.random.default_rng(seed)
    codes = np.resize(np.arange(HU_MIN, HU_MAX + 1), int(np.prod(shape)))
    return Volume.regular(rng.permutation(codes).reshape(shape).astype(np.int16), (5.0, 0.48828125, 0.75))


def tilted_volume() -> Volume:
    """A gantry tilted by 18.5 degrees: slices sheared along y, unevenly spaced, as in the real ge-head series."""
    hu = all_codes_volume(1).hu
    tilt = np.deg2rad(18.5)
    z = np.array([120.13, 113.11, 106.02, 102.01])
    positions = np.stack([np.full(4, -124.8), -98.7 + 0.0 * z, z], axis=1)
    return Volume(
        hu=hu,
        positions=positions,
        row_axis=np.array([1.0, 0.0, 0.0]),
        column_axis=np.array([0.0, np.cos(tilt), -np.sin(tilt)]),
        pixel_spacing=(0.488281, 0.488281),
        acquisition=Acquisition(
            patient_id="SECRET-ID",
            study_uid="1.2.3.4",
            series_uid="1.2.3.5",
            frame_of_reference_uid="1.2.3.6",
            series_description="SECRET SERIES",
            manufacturer="SECRET MAKER",
            kvp=120.0,
            kernel="STANDARD",
            slice_thickness_mm=7.0,
            gantry_tilt_deg=18.5,
            source="/secret/path",
        ),
    )


def write(volume: Volume, folder: Path, synthetic: SyntheticOrigin | None = ORIGIN, **options) -> list[Path]:
    return write_series(volume, folder, synthetic=synthetic, patient_id=options.pop("patient_id", "syn-1"), **options)


def test_every_code_reads_back_bit_for_bit(tmp_path):
    volume = all_codes_volume()
    datasets = [pydicom.dcmread(path) for path in write(volume, tmp_path / "s")]
    back = np.stack([d.pixel_array.astype(float) * d.RescaleSlope + d.RescaleIntercept for d in datasets])
    assert len(np.unique(back)) == HU_CODES
    np.testing.assert_array_equal(back, volume.hu)
    assert {(d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation) for d in datasets} == {(16, 12, 11, 0)}
    assert {d.RescaleType for d in datasets} == {"HU"}


@pytest.mark.parametrize("make", [all_codes_volume, tilted_volume])
def test_geometry_reads_back(tmp_path, make):
    volume = make()
    datasets = [pydicom.dcmread(path) for path in write(volume, tmp_path / "s")]
    assert [int(d.InstanceNumber) for d in datasets] == [1, 2, 3, 4]
    positions = np.array([d.ImagePositionPatient for d in datasets], float)
    np.testing.assert_array_equal(positions, volume.positions)
    assert (np.diff(positions[:, 2]) < 0).all(), "superior first"
    for d in datasets:
        np.testing.assert_allclose(np.array(d.ImageOrientationPatient[:3], float), volume.row_axis, atol=1e-13)
        np.testing.assert_allclose(np.array(d.ImageOrientationPatient[3:], float), volume.column_axis, atol=1e-13)
        assert tuple(map(float, d.PixelSpacing)) == volume.pixel_spacing
        assert (d.Rows, d.Columns) == volume.hu.shape[1:]


@pytest.mark.parametrize("make", [all_codes_volume, tilted_volume])
def test_our_own_reader_gets_the_same_volume(tmp_path, make):
    volume = make()
    write(volume, tmp_path / "s")
    back = read_volume(tmp_path / "s").volume
    np.testing.assert_array_equal(back.hu, volume.hu)
    np.testing.assert_array_equal(back.positions, volume.positions)
    np.testing.assert_allclose(back.row_axis, volume.row_axis, atol=1e-13)
    np.testing.assert_allclose(back.column_axis, volume.column_axis, atol=1e-13)
    assert back.pixel_spacing == volume.pixel_spacing
    assert back.acquisition.kvp == volume.acquisition.kvp
    assert back.acquisition.patient_id == "syn-1"


def test_spacing_between_slices_only_where_it_is_one_number(tmp_path):
    even = pydicom.dcmread(write(all_codes_volume(), tmp_path / "even")[0])
    uneven = pydicom.dcmread(write(tilted_volume(), tmp_path / "uneven")[0])
    assert float(even.SpacingBetweenSlices) == 5.0
    assert float(even.SliceThickness) == 5.0
    assert "SpacingBetweenSlices" not in uneven
    assert float(uneven.SliceThickness) == 7.0
    assert float(uneven.GantryDetectorTilt) == 18.5


@given(st.floats(-5000, 5000))
def test_decimal_strings_are_short_and_parse_back(value):
    text = decimal_string(value)
    assert len(text) <= 16
    exact = len(repr(value).removesuffix(".0")) <= 16
    assert float(text) == value if exact else abs(float(text) - value) < 1e-9


def test_header_says_synthetic_and_what_made_it(tmp_path):
    for path in write(all_codes_volume(), tmp_path / "s"):
        d = pydicom.dcmread(path)
        assert d[0x0008001C].value == "YES"
        assert str(d.PatientName).startswith("Synthetic^")
        assert d.PatientID == "syn-1"
        (equipment,) = d.ContributingEquipmentSequence
        assert equipment.ManufacturerModelName == "head-128"
        assert equipment.SoftwareVersions == "0.1.0"
        assert equipment.PurposeOfReferenceCodeSequence[0].CodeValue == "109100"  # Synthesizing Equipment
        for text in (equipment.ContributionDescription, d.DerivationDescription):
            assert "head-128" in text
            assert "0.1.0" in text
            assert "seed 7" in text
            assert "volume 3" in text
        assert list(d.WindowCenterWidthExplanation) == ["BRAIN", "SUBDURAL", "BONE", "WHOLE RANGE"]
        assert list(map(float, d.WindowCenter)) == [30, 75, 600, 1024]
        assert list(map(float, d.WindowWidth)) == [80, 215, 2800, 4096]


def test_whole_range_preset_spans_exactly_twelve_bits_and_brain_is_the_papers_window():
    presets = {name: (centre, width) for name, centre, width in WINDOW_PRESETS}
    centre, width = presets["WHOLE RANGE"]
    # The linear function of PS3.3 C.11.2.1.2.1: black at or below the first, white above the second.
    assert (centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2) == (HU_MIN, HU_MAX)
    centre, width = presets["BRAIN"]
    assert (centre - width / 2, centre + width / 2) == (BRAIN.lo, BRAIN.hi)


def test_nothing_of_the_patient_is_carried_over(tmp_path):
    for folder, synthetic in (("a", ORIGIN), ("b", None)):
        for path in write(tilted_volume(), tmp_path / folder, synthetic):
            data = path.read_bytes()
            assert b"SECRET" not in data
            assert b"1.2.3." not in data
            assert b"/secret" not in data


def test_real_volume_is_not_called_synthetic(tmp_path):
    d = pydicom.dcmread(write(tilted_volume(), tmp_path / "s", None)[0])
    assert (0x0008, 0x001C) not in d
    assert "ynthetic" not in str(d)


def test_uids_follow_origin_and_content(tmp_path):
    def uids(name, volume=None, origin=ORIGIN):
        ds = [pydicom.dcmread(p) for p in write(volume or all_codes_volume(), tmp_path / name, origin)]
        assert len({d.SeriesInstanceUID for d in ds}) == len({d.FrameOfReferenceUID for d in ds}) == 1
        assert len({d.SOPInstanceUID for d in ds}) == len(ds)
        assert all(d.SOPInstanceUID.is_valid and len(d.SOPInstanceUID) <= 64 for d in ds)
        assert all(d.file_meta.MediaStorageSOPInstanceUID == d.SOPInstanceUID for d in ds)
        return ds[0].StudyInstanceUID, ds[0].SeriesInstanceUID, ds[0].FrameOfReferenceUID, ds[0].SOPInstanceUID

    first = uids("first")
    assert uids("again") == first
    calibrated = all_codes_volume().hu.copy()
    calibrated[0, 0, 0] += 1 if calibrated[0, 0, 0] < HU_MAX else -1
    other = uids("calibrated", all_codes_volume().with_hu(calibrated))
    assert other[0] == first[0], "same study and frame of reference"
    assert other[2] == first[2], "same study and frame of reference"
    assert other[1] != first[1], "another series"
    assert other[3] != first[3], "another series"
    assert not set(uids("seed 8", origin=replace(ORIGIN, seed=8))) & set(first)


def test_equal_volumes_make_equal_files(tmp_path):
    a, b = (write(tilted_volume(), tmp_path / name) for name in "ab")
    assert [p.read_bytes() for p in a] == [p.read_bytes() for p in b]


def run_tool(*command: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


@pytest.mark.parametrize("make", [all_codes_volume, tilted_volume])
@pytest.mark.parametrize("synthetic", [ORIGIN, None])
def test_dciodvfy_finds_no_error_but_the_tag_it_does_not_know(tmp_path, make, synthetic):
    path = write(make(), tmp_path / "s", synthetic)[1]
    output = run_tool("dciodvfy", str(path))
    assert "CTImage" in output
    errors = [line for line in output.splitlines() if line.startswith("Error")]
    unknown = "Error - Attribute with an even group number is not a recognized standard attribute - (0x0008,0x001c)  ? "
    assert errors == ([unknown] if synthetic else [])


def test_dcentvfy_finds_the_series_consistent(tmp_path):
    paths = write(all_codes_volume(), tmp_path / "s")
    assert "Error" not in run_tool("dcentvfy", *map(str, paths))


def test_dcm2niix_reads_the_same_voxels_and_affine(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    volume = all_codes_volume()
    write(volume, tmp_path / "s")
    run_tool("dcm2niix", "-b", "n", "-z", "n", "-f", "out", "-o", str(tmp_path), str(tmp_path / "s"))
    image = nibabel.load(tmp_path / "out.nii")
    lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    z, y, x = np.meshgrid(*(np.arange(n) for n in volume.hu.shape), indexing="ij")
    world = np.stack([x, y, z, np.ones_like(x)], axis=-1).reshape(-1, 4) @ (lps @ volume.affine).T
    index = np.rint(world @ np.linalg.inv(image.affine).T)[:, :3].astype(int)
    np.testing.assert_array_equal(image.get_fdata()[tuple(index.T)].reshape(volume.hu.shape), volume.hu)


def test_dcmtk_and_gdcm_decode_a_slice(tmp_path):
    volume = all_codes_volume()
    path = write(volume, tmp_path / "s")[2]
    assert "[YES]" in run_tool("dcmdump", "+P", "0008,001c", str(path))
    run_tool("gdcmconv", "--raw", str(path), str(tmp_path / "gdcm.dcm"))
    np.testing.assert_array_equal(pydicom.dcmread(tmp_path / "gdcm.dcm").pixel_array, volume.hu[2] - HU_MIN)


def test_a_folder_in_use_is_left_alone(tmp_path):
    folder = tmp_path / "s"
    write(all_codes_volume(), folder)
    before = {p: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(UserError, match=r"not empty") as info:
        write(tilted_volume(), folder)
    assert "\n" not in str(info.value)
    assert str(folder) in str(info.value)
    assert {p: p.read_bytes() for p in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "s").mkdir()
    assert len(write(all_codes_volume(), tmp_path / "s")) == len(list((tmp_path / "s").iterdir())) == 4


def test_a_file_in_the_way_or_above(tmp_path):
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "s"):
        with pytest.raises(UserError) as info:
            write(all_codes_volume(), folder)
        assert "\n" not in str(info.value)
    assert (tmp_path / "file").read_text() == "x"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_disk_that_fills_up_leaves_nothing(tmp_path):
    # The kernel refuses to let a file grow beyond the limit, in the middle of a slice.
    code = (
        "import sys, resource; from pathlib import Path; import test_dicom_write as t\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "try: t.write(t.all_codes_volume(), Path(sys.argv[1]))\n"
        "except t.UserError as error: print('USER', error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "s")], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    assert done.stdout.startswith("USER"), done.stderr
    assert done.stdout.count("\n") == 1, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_in_the_middle_leaves_nothing(tmp_path, monkeypatch):
    real, calls = dicom_write._slice_dataset, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(dicom_write, "_slice_dataset", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(all_codes_volume(), tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("patient_id", ["", "  ", "a\\b", "x" * 65, "a\nb"])
def test_bad_patient_ids(tmp_path, patient_id):
    with pytest.raises(UserError, match="Patient ID"):
        write(all_codes_volume(), tmp_path / "s", patient_id=patient_id)
    assert list(tmp_path.iterdir()) == []


def test_hu_beyond_twelve_bits_is_refused(tmp_path):
    hu = all_codes_volume().hu.copy()
    hu[0, 0, :3] = [HU_MIN - 1, HU_MAX + 1, 30000]
    with pytest.raises(UserError, match="3 voxels"):
        write(all_codes_volume().with_hu(hu), tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_errno_text_is_in_the_message(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(dicom_write, "_slice_dataset", full)
    with pytest.raises(UserError, match="No space left on device"):
        write(all_codes_volume(), tmp_path / "s")
