"""NIfTI: exact round trips, ITK as oracle for HU and places, and files that are no CT."""

import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from slicewise.errors import UserError
from slicewise.io.archive import read_volume
from slicewise.io.dicom import read_series
from slicewise.io.nifti import load_nifti, patient_of, read_nifti, write_nifti
from slicewise.volume import Volume

DATA = Path(__file__).parents[1].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not (DATA / "cranium").exists(), reason="the real scans (../shared/data) are not here")


def all_codes(shape=(8, 16, 32)) -> np.ndarray:
    """Every one of the 4096 HU codes once, in random order."""
    return np.random.default_rng(0).permutation(np.arange(-1024, 3072)).astype(np.int16).reshape(shape)


def tilted(volume: Volume, mm_per_slice: float) -> Volume:
    positions = volume.positions + np.arange(len(volume.hu))[:, None] * [0.0, mm_per_slice, 0.0]
    return Volume(volume.hu, positions, volume.row_axis, volume.column_axis, volume.pixel_spacing)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("shear", [0.0, 1.5])
def test_round_trip_is_exact(tmp_path, suffix, shear):
    volume = tilted(Volume.regular(all_codes(), (5.0, 0.5, 0.75), origin=(-11.25, 8.5, 140.0)), shear)
    write_nifti(volume, tmp_path / f"v{suffix}")
    back = read_nifti(tmp_path / f"v{suffix}")
    assert np.array_equal(back.hu, volume.hu)
    assert back.hu.dtype == np.int16
    assert np.array_equal(back.positions, volume.positions)
    assert np.array_equal(back.row_axis, volume.row_axis)
    assert np.array_equal(back.column_axis, volume.column_axis)
    assert back.pixel_spacing == volume.pixel_spacing
    header = nib.load(tmp_path / f"v{suffix}").header
    assert header["sform_code"] == 1
    assert header["qform_code"] == (0 if shear else 1)
    assert header.get_data_dtype() == np.int16
    assert header.get_slope_inter() in ((1, 0), (None, None))
    assert header.get_xyzt_units()[0] == "mm"
    assert [f.name for f in tmp_path.iterdir()] == [f"v{suffix}"]


def test_same_volume_same_bytes(tmp_path):
    volume = Volume.regular(all_codes(), (5.0, 0.5, 0.75))
    for name in "ab":
        write_nifti(volume, tmp_path / f"{name}.nii.gz")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize("seed", range(8))
def test_any_orientation_against_itk(tmp_path, seed):
    """Axes permuted, flipped and turned at random: every voxel keeps its place as ITK sees it, the top slice first."""
    sitk = pytest.importorskip("SimpleITK")
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(seed)
    array = rng.permutation(np.arange(-1000, 2360))[: 6 * 7 * 8].reshape(6, 7, 8).astype(np.int16)
    array[0, 0, 0] = -1000
    turn = Rotation.from_euler("xyz", rng.uniform(-20, 20, 3), degrees=True).as_matrix()
    axes = turn @ np.eye(3)[:, rng.permutation(3)] @ np.diag(rng.choice([-1.0, 1.0], 3))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes * rng.uniform(0.5, 3, 3), rng.uniform(-80, 80, 3)
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    nib.save(image, tmp_path / "v.nii")
    volume = read_nifti(tmp_path / "v.nii")
    itk = sitk.ReadImage(str(tmp_path / "v.nii"))
    assert (np.diff(volume.positions[:, 2]) < 0).all()
    assert volume.row_axis[0] > 0.8
    assert volume.column_axis[1] > 0.8
    dy, dx = volume.pixel_spacing
    for z, y, x in rng.integers(0, volume.hu.shape, (20, 3)):
        place = volume.positions[z] + x * dx * volume.row_axis + y * dy * volume.column_axis
        index = itk.TransformPhysicalPointToIndex(place.tolist())
        assert itk[index] == volume.hu[z, y, x]
        assert np.allclose(itk.TransformIndexToPhysicalPoint(index), place, atol=1e-3)


def test_scaled_floats_are_rounded_half_to_even(tmp_path):
    values = np.full((4, 4, 4), -1000.0)
    values[0, 0] = [0.5, 1.5, -0.5, 2.4999]
    values[1, 1] = [np.nan, -3024.0, 3071.4, 4000.0]
    nib.save(nib.Nifti1Image(values.transpose(2, 1, 0), np.diag([-1, -1, -1, 1])), tmp_path / "v.nii.gz")
    reading = load_nifti(tmp_path / "v.nii.gz")
    assert reading.volume.hu[0, 0].tolist() == [0, 2, 0, 2]
    assert reading.volume.hu[1, 1].tolist() == [-1024, -1024, 3071, 3071]
    assert reading.clipped.voxels == 1
    assert len(reading.notes) == 2


def test_slope_and_intercept(tmp_path):
    stored = np.random.default_rng(1).integers(0, 4000, (3, 4, 5)).astype(np.uint16)
    stored[0, 0, 0] = 0
    for slope, intercept in ((1.0, -1024.0), (0.5, -1000.0), (1.0, -1000.5)):
        image = nib.Nifti1Image(stored, np.diag([-1, -1, -1, 1]))
        image.header.set_slope_inter(slope, intercept)
        nib.save(image, tmp_path / "v.nii")
        raw = bytearray((tmp_path / "v.nii").read_bytes())  # nibabel would rescale on saving; say it in the header
        raw[112:120] = struct.pack("<2f", slope, intercept)
        raw[int(image.header["vox_offset"]) or 352 :] = stored.tobytes(order="F")
        (tmp_path / "v.nii").write_bytes(raw)
        expected = np.clip(np.rint(stored * slope + intercept), -1024, 3071).transpose(2, 1, 0)
        assert np.array_equal(read_nifti(tmp_path / "v.nii").hu, expected)


def damaged(name):
    hu = Volume.regular(all_codes(), (5.0, 0.5, 0.75))

    def image(array, affine=None):
        def make(path):
            nib.save(nib.Nifti1Image(array, np.diag([-1.0, -1, -1, 1]) if affine is None else affine), path)

        return make

    def written(change):
        def make(path):
            write_nifti(hu, path)
            path.write_bytes(change(path.read_bytes()))

        return make

    def claim(data):
        head = bytearray(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
        head[40:56] = struct.pack("<8h", 3, 30000, 30000, 30000, 1, 1, 1, 1)
        return bytes(head) if data[:2] != b"\x1f\x8b" else gzip.compress(head)

    random = np.random.default_rng(0)
    singular = np.diag([1.0, 1, 1, 1])
    singular[:3, 1] = singular[:3, 0]
    return {
        "grey levels.nii": (
            image(random.integers(0, 256, (4, 5, 6)).astype(np.uint8)),
            r"lie in \[0, 255\], so .* not HU",
        ),
        "unit range.nii": (image(random.random((4, 5, 6))), "not HU"),
        "normalised.nii": (image(random.uniform(-1, 1, (4, 5, 6))), "not HU"),
        "not negative.nii": (image(random.uniform(0, 2000, (4, 5, 6)).astype(np.float32)), "not HU"),
        "flat.nii": (image(all_codes().reshape(64, 64)), "2 dimensions"),
        "series.nii": (image(all_codes((4, 8, 8, 16))), "4 dimensions"),
        "one slice.nii": (image(all_codes((64, 64, 1))), "1 slice where"),
        "complex.nii": (image(np.full((3, 3, 3), -1000 + 1j, np.complex64)), "not HU"),
        "absurd.nii": (written(claim), "claims 30000 x 30000 x 30000"),
        "absurd.nii.gz": (written(claim), "claims 30000 x 30000 x 30000"),
        "cut.nii": (written(lambda data: data[:5000]), "truncated"),
        "cut.nii.gz": (written(lambda data: data[: len(data) // 2]), "truncated"),
        "text.nii": (lambda path: path.write_text("hello " * 100), "not a NIfTI"),
        "empty.nii.gz": (lambda path: path.write_bytes(b""), "not a NIfTI"),
        "singular.nii": (image(all_codes(), singular), "singular"),
        "tiny voxels.nii": (image(all_codes(), np.diag([1e-3, 1e-3, 1e-3, 1])), "implausible"),
        "sheared.nii": (
            image(all_codes(), np.array([[1, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])),
            "right angles",
        ),
    }[name]


NAMES = """grey levels.nii, unit range.nii, normalised.nii, not negative.nii, flat.nii, series.nii, one slice.nii,
complex.nii, absurd.nii, absurd.nii.gz, cut.nii, cut.nii.gz, text.nii, empty.nii.gz, singular.nii, tiny voxels.nii,
sheared.nii""".replace("\n", " ").split(", ")


@pytest.mark.parametrize("name", NAMES)
def test_bad_input_ends_in_one_line(tmp_path, name):
    make, words = damaged(name)
    make(tmp_path / name)
    with pytest.raises(UserError, match=words) as caught:
        read_volume(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("code, mm", [(0, 1.0), (1, 1000.0), (2, 1.0), (3, 0.001), (4, 1.0), (2 + 8, 1.0)])
def test_every_code_of_the_spatial_unit(tmp_path, code, mm):
    """Three bits, of which the format defines four values; time's unit is in the others."""
    image = nib.Nifti1Image(all_codes(), np.diag([0.5 / mm, 0.75 / mm, 5.0 / mm, 1.0]))
    image.header["xyzt_units"] = code
    nib.save(image, tmp_path / "v.nii")
    assert read_nifti(tmp_path / "v.nii").spacing == pytest.approx((5.0, 0.75, 0.5))


@pytest.mark.parametrize("field, offset, value", [("scl_inter", 116, 2.0**31), ("vox_offset", 108, 1e30)])
def test_numbers_beyond_whole_ones_in_a_header(tmp_path, field, offset, value):
    nib.save(nib.Nifti1Image(all_codes(), np.eye(4)), tmp_path / "v.nii")
    data = bytearray((tmp_path / "v.nii").read_bytes())
    data[112:116], data[offset : offset + 4] = np.float32(1).tobytes(), np.float32(value).tobytes()
    (tmp_path / "v.nii").write_bytes(data)
    with pytest.raises(UserError) as caught:
        read_nifti(tmp_path / "v.nii")
    assert "\n" not in str(caught.value)


def test_bad_output(tmp_path):
    volume = Volume.regular(all_codes(), (5.0, 0.5, 0.75))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_nifti(volume, tmp_path / "file" / "v.nii")
    with pytest.raises(UserError, match=r"named \.nii or \.nii\.gz"):
        write_nifti(volume, tmp_path / "v.img")
    positions = volume.positions.copy()
    positions[3:, 2] -= 1.0
    uneven = Volume(volume.hu, positions, volume.row_axis, volume.column_axis, volume.pixel_spacing)
    with pytest.raises(UserError, match="unevenly spaced"):
        write_nifti(uneven, tmp_path / "v.nii")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["file"]


def test_patient_of_a_path():
    subject = patient_of("/data/sub-017/ses-1/sub-017_ses-1_ct.nii.gz")
    assert subject.startswith("sub-017-")
    assert subject == patient_of("/data/sub-017/ses-2/sub-017_ct.nii")
    assert subject != patient_of("/other/sub-017/ses-1/sub-017_ses-1_ct.nii.gz"), "another data set"
    assert subject != patient_of("/data/sub-0170/ct.nii")
    assert patient_of("/data/1/ct.nii.gz") != patient_of("/data/2/ct.nii.gz")
    assert patient_of("/data/case 3.NII.GZ").startswith("case_3-")
    assert patient_of("/data/case 3.NII.GZ") == patient_of("/data/x/../case 3.nii")


@needs_data
def test_real_head_against_itk():
    sitk = pytest.importorskip("SimpleITK")
    path = DATA / "cranium" / "Cranium.nii.gz"
    volume, itk = read_nifti(path), sitk.ReadImage(str(path))
    assert volume.hu.shape == (108, 256, 256)
    assert volume.spacing == pytest.approx((1.5, 0.957, 0.957))
    assert volume.positions[0, 2] > volume.positions[-1, 2]
    for z, y, x in np.random.default_rng(0).integers(0, volume.hu.shape, (200, 3)):
        dy, dx = volume.pixel_spacing
        place = volume.positions[z] + x * dx * volume.row_axis + y * dy * volume.column_axis
        assert itk[itk.TransformPhysicalPointToIndex(place.tolist())] == volume.hu[z, y, x]


@needs_data
def test_tilted_series_through_nifti(tmp_path):
    """A real tilted series keeps every voxel's place, within the float32 of the format."""
    volume = read_series(DATA / "philips-phantom" / "S21610")
    write_nifti(volume, tmp_path / "v.nii")
    back = read_nifti(tmp_path / "v.nii")
    assert np.array_equal(back.hu, volume.hu)
    assert np.abs(back.positions - volume.positions).max() < 1e-4
    assert np.allclose(back.column_axis, volume.column_axis, atol=1e-6)
