"""Enhanced CT and compressed transfer syntaxes: valid, and the same HU and geometry for every reader."""

import subprocess
from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK

from slicewise import cli
from slicewise.errors import UserError
from slicewise.hu import HU_MIN
from slicewise.io.archive import read_volume
from slicewise.io.dicom_enhanced import write_enhanced
from slicewise.io.dicom_write import SYNTAXES, write_series
from slicewise.volume import Volume
from test_dicom_write import ORIGIN, all_codes_volume, run_tool, tilted_volume

WHEN = datetime(2024, 2, 29, 12, 30, 15)
COMPRESSED = [name for name in SYNTAXES if name != "uncompressed"]
UNKNOWN = "Error - Attribute with an even group number is not a recognized standard attribute - (0x0008,0x001c)  ? "


def enhanced(volume: Volume, file: Path, synthetic=ORIGIN, **options) -> pydicom.Dataset:
    """Write and read back."""
    write_enhanced(volume, file, synthetic=synthetic, patient_id="syn-1", when=WHEN, **options)
    return pydicom.dcmread(file)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("make", [all_codes_volume, tilted_volume])
def test_enhanced_ct_reads_back_the_same(tmp_path, make, syntax):
    volume = make()
    ds = enhanced(volume, tmp_path / "e.dcm", syntax=syntax)
    assert ds.file_meta.TransferSyntaxUID == SYNTAXES[syntax]
    assert ds.SOPClassUID.name == "Enhanced CT Image Storage"
    np.testing.assert_array_equal(ds.pixel_array.astype(int) + HU_MIN, volume.hu)
    back = read_volume(tmp_path / "e.dcm").volume
    np.testing.assert_array_equal(back.hu, volume.hu)
    np.testing.assert_array_equal(back.positions, volume.positions)
    np.testing.assert_allclose([back.row_axis, back.column_axis], [volume.row_axis, volume.column_axis], atol=1e-13)
    assert back.pixel_spacing == volume.pixel_spacing


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("synthetic", [ORIGIN, None])
def test_dciodvfy_finds_enhanced_ct_clean(tmp_path, synthetic, syntax):
    for make in (all_codes_volume, tilted_volume):
        enhanced(make(), tmp_path / make.__name__, synthetic, syntax=syntax)
        output = run_tool("dciodvfy", str(tmp_path / make.__name__))
        assert "EnhancedCTImage" in output
        errors = [line for line in output.splitlines() if line.startswith("Error")]
        assert errors == ([UNKNOWN] if synthetic else [])


def test_enhanced_header(tmp_path):
    volume = tilted_volume()
    ds = enhanced(volume, tmp_path / "e.dcm")
    frame = ds.PerFrameFunctionalGroupsSequence[2]
    np.testing.assert_array_equal(frame.PlanePositionSequence[0].ImagePositionPatient, volume.positions[2])
    assert frame.FrameContentSequence[0].DimensionIndexValues == [1, 3]
    assert (ds.ContentDate, ds.ContentTime) == ("20240229", "123015")
    assert ds[0x0008001C].value == "YES"
    assert "seed 7" in ds.ImageComments
    assert "Synthesizing" in str(ds.ContributingEquipmentSequence)
    series = pydicom.dcmread(
        write_series(volume, tmp_path / "s", synthetic=ORIGIN, patient_id="syn-1")[0], stop_before_pixels=True
    )
    assert ds.StudyInstanceUID == series.StudyInstanceUID
    assert ds.FrameOfReferenceUID == series.FrameOfReferenceUID
    assert ds.SeriesInstanceUID != series.SeriesInstanceUID
    assert ds.SOPInstanceUID != series.SOPInstanceUID
    assert b"SECRET" not in (tmp_path / "e.dcm").read_bytes()


@pytest.mark.parametrize("synthetic, qualification", [(ORIGIN, "RESEARCH"), (None, "PRODUCT")])
def test_synthetic_images_are_for_research_and_scans_keep_their_standing(tmp_path, synthetic, qualification):
    """Content Qualification (0018,9004) tells images of a product from those of research."""
    assert enhanced(tilted_volume(), tmp_path / "e.dcm", synthetic).ContentQualification == qualification


def test_gdcm_itk_and_dcmtk_read_enhanced_ct(tmp_path):
    volume = all_codes_volume()
    enhanced(volume, tmp_path / "e.dcm")
    image = SimpleITK.ReadImage(str(tmp_path / "e.dcm"))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), volume.hu)
    np.testing.assert_allclose(image.GetSpacing()[:2], volume.pixel_spacing[::-1])
    np.testing.assert_allclose(image.GetOrigin(), volume.positions[0])
    assert "EnhancedCTImageStorage" in run_tool("dcmdump", "+P", "SOPClassUID", str(tmp_path / "e.dcm"))
    run_tool("gdcmconv", "--raw", str(tmp_path / "e.dcm"), str(tmp_path / "g.dcm"))
    np.testing.assert_array_equal(pydicom.dcmread(tmp_path / "g.dcm").pixel_array.astype(int) + HU_MIN, volume.hu)


# Debian's build of dcm2niix has no JPEG-LS.
@pytest.mark.parametrize("what", ["enhanced", "jpeg-2000", "rle"])
def test_dcm2niix_reads_the_same_volume(tmp_path, what):
    nibabel = pytest.importorskip("nibabel")
    volume = all_codes_volume()
    (tmp_path / "in").mkdir()
    if what == "enhanced":
        enhanced(volume, tmp_path / "in" / "e.dcm")
    else:
        write_series(volume, tmp_path / "in" / "s", synthetic=ORIGIN, patient_id="syn-1", syntax=what)
    run_tool("dcm2niix", "-b", "n", "-z", "n", "-f", "out", "-o", str(tmp_path), str(tmp_path / "in"))
    image = nibabel.load(tmp_path / "out.nii")
    voxels = np.asarray(image.dataobj).transpose(2, 1, 0)
    voxels = voxels[::-1] if image.affine[2, 2] > 0 else voxels
    voxels = voxels[:, ::-1] if image.affine[1, 1] > 0 else voxels
    voxels = voxels[:, :, ::-1] if image.affine[0, 0] > 0 else voxels
    np.testing.assert_array_equal(voxels, volume.hu)
    np.testing.assert_allclose(np.abs(np.diag(image.affine)[:3]), np.abs(np.diag(volume.affine)[:3]), rtol=1e-6)


@pytest.mark.parametrize("syntax", COMPRESSED)
def test_compressed_series_hold_the_same(tmp_path, syntax):
    volume = tilted_volume()
    plain = write_series(volume, tmp_path / "plain", synthetic=ORIGIN, patient_id="syn-1")
    packed = write_series(volume, tmp_path / "packed", synthetic=ORIGIN, patient_id="syn-1", syntax=syntax)
    back = read_volume(tmp_path / "packed").volume
    np.testing.assert_array_equal(back.hu, volume.hu)
    for a, b in zip(plain, packed):
        one, other = pydicom.dcmread(a), pydicom.dcmread(b)
        assert other.file_meta.TransferSyntaxUID == SYNTAXES[syntax]
        assert one.SOPInstanceUID == other.SOPInstanceUID
        assert other.LossyImageCompression == "00"
        np.testing.assert_array_equal(one.pixel_array, other.pixel_array)
        np.testing.assert_array_equal(
            SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(b)))[0], volume.hu[packed.index(b)]
        )
    errors = [line for line in run_tool("dciodvfy", str(packed[1])).splitlines() if line.startswith("Error")]
    assert errors == [UNKNOWN]
    # DCMTK decodes JPEG-LS and RLE; JPEG 2000 it does not know.
    decoder = {"jpeg-ls": "dcmdjpls", "rle": "dcmdrle"}.get(syntax)
    if decoder:
        subprocess.run([decoder, str(packed[0]), str(tmp_path / "d.dcm")], check=True)
        decoded = pydicom.dcmread(tmp_path / "d.dcm").pixel_array
        np.testing.assert_array_equal(decoded.astype(int) + HU_MIN, volume.hu[0])


def test_equal_volumes_make_equal_enhanced_files(tmp_path):
    for name in "ab":
        enhanced(tilted_volume(), tmp_path / name, syntax="jpeg-ls")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_export_command_writes_both(tmp_path, capsys):
    write_series(tilted_volume(), tmp_path / "in", synthetic=None, patient_id="x")
    for out in ("e.dcm", "series"):
        cli.main(["export", str(tmp_path / "in"), "--out", str(tmp_path / out), "--syntax", "jpeg-ls"])
        back = read_volume(tmp_path / out).volume
        np.testing.assert_array_equal(back.hu, tilted_volume().hu)
        assert back.acquisition.patient_id == "x"
    assert pydicom.dcmread(tmp_path / "e.dcm").SOPClassUID.name == "Enhanced CT Image Storage"
    with pytest.raises(SystemExit):
        cli.main(["export", str(tmp_path / "in"), "--out", str(tmp_path / "other"), "--syntax", "jpeg"])
    assert "--syntax jpeg: unknown; choose" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_bad_requests_leave_nothing(tmp_path):
    (tmp_path / "there.dcm").write_text("x")
    bad = all_codes_volume().with_hu(np.full((4, 64, 48), 4000, np.int16))
    cases = [
        (all_codes_volume(), "there.dcm", {}, "already exists"),
        (all_codes_volume(), "there.dcm/under.dcm", {}, "cannot write"),
        (all_codes_volume(), "new.dcm", {"syntax": "jpeg"}, "choose uncompressed, jpeg-ls, jpeg-2000, rle"),
        (
            Volume.regular(np.zeros((2, 16, 16), np.int16), (5.0, 1.0, 1.0)),
            "new.dcm",
            {"syntax": "jpeg-2000"},
            "jpeg-2000: cannot encode 16 x 16 pixels",
        ),
        (bad, "new.dcm", {}, "voxels lie outside"),
        (all_codes_volume(), "new.dcm", {"patient_id": ""}, "Patient ID"),
    ]
    for volume, name, options, what in cases:
        with pytest.raises(UserError, match=what) as info:
            write_enhanced(volume, tmp_path / name, synthetic=None, **{"patient_id": "x", **options})
        assert "\n" not in str(info.value)
    assert [p.name for p in tmp_path.iterdir()] == ["there.dcm"]
