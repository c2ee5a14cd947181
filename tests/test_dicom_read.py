"""Reading DICOM: HU against the formula and ITK, geometry, order, compressed files, and every kind of bad input."""

import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from slicewise.errors import UserError
from slicewise.hu import Clipped
from slicewise.io.archive import find, read_volume, read_volumes
from slicewise.io.dicom import load, read_series, read_slice
from slicewise.io.dicom_scan import CT_IMAGE, read_header, scan
from slicewise.io.geometry import find_gaps, superior_first

DATA = Path(__file__).parents[1].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not (DATA / "ge-head").exists(), reason="the real scans (../shared/data) are not here")

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def ct_slice(stored: np.ndarray, position=(0.0, 0.0, 0.0), **tags) -> Dataset:
    """A CT image as a scanner writes it; `tags` replace elements, None deletes them."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = CT_IMAGE
    ds.SOPClassUID = CT_IMAGE
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.Modality, ds.ImageType, ds.PatientID = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], "P1"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.3.5"
    ds.ImagePositionPatient, ds.ImageOrientationPatient = list(position), list(AXIAL)
    ds.PixelSpacing, ds.SliceThickness = [0.5, 0.75], 5.0
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = stored.shape[-2:]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.PixelRepresentation = int(stored.dtype.kind == "i")
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, 0, "HU"
    ds.PixelData = stored.astype(f"<{stored.dtype.kind}2").tobytes()
    for name, value in tags.items():
        if value is None:
            delattr(ds, name)
        else:
            setattr(ds, name, value)
    return ds


def save(ds: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds.save_as(path, enforce_file_format=True)
    return path


def head(rng, n=6, rows=12, columns=10) -> np.ndarray:
    return rng.integers(-1000, 2000, (n, rows, columns)).astype(np.int16)


def write_stack(folder: Path, hu: np.ndarray, z0=100.0, step=5.0, skip=(), **tags) -> list[Path]:
    """Slices from the top down under names that sort otherwise, without extension."""
    names = np.random.default_rng(3).permutation(len(hu))
    return [
        save(ct_slice(plane, (-3.0, 4.0, z0 - step * k), **tags), folder / f"I{names[k]}")
        for k, plane in enumerate(hu)
        if k not in skip
    ]


# --- HU -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_hu_of_every_kind_of_pixel(tmp_path, seed):
    """Signed and unsigned, 12 to 16 bits with rubbish above them, odd high bits, float slopes: value for value."""
    rng = np.random.default_rng(seed)
    bits = int(rng.integers(12, 17))
    high = int(rng.integers(bits - 1, 16))
    signed = bool(rng.integers(2))
    slope = float(rng.choice([1.0, 2.0, 0.5, 0.123456, 1.0009765625]))
    intercept = float(rng.choice([0.0, -1024.0, -8192.0, -1000.5, 3.25]))
    low, top = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    value = rng.integers(low, top, (2, 9, 7))
    rubbish = rng.integers(0, 65536, value.shape) & ~(((1 << bits) - 1) << (high - bits + 1))
    pattern = (((value & ((1 << bits) - 1)) << (high - bits + 1)) | rubbish).astype(np.uint16)
    for k in range(2):
        ds = ct_slice(pattern[k], (0, 0, 5.0 * k), BitsStored=bits, HighBit=high, PixelRepresentation=int(signed))
        ds.RescaleSlope, ds.RescaleIntercept = slope, intercept
        save(ds, tmp_path / f"{k}.dcm")
    reading = load(scan(tmp_path).series[0])
    expected = np.array([[round(float(v) * slope + intercept) for v in row] for row in value[::-1].reshape(2, -1)])
    assert np.array_equal(reading.volume.hu.reshape(2, -1), np.clip(expected, -1024, 3071))
    clipped = (expected > 3071) | ((expected < -1024) & (expected >= -1200))
    assert reading.clipped.voxels == clipped.sum()


def test_padding_is_air_and_no_clipping(tmp_path):
    stored = np.array([[-1500, -2000, -3024, -1024], [-1023, 40, 3071, 3072]], np.int16)
    for k in range(2):
        save(ct_slice(stored, (0, 0, 5.0 * k), PixelPaddingValue=-1500), tmp_path / f"{k}")
    reading = load(scan(tmp_path).series[0])
    assert reading.volume.hu[0].tolist() == [[-1024, -1024, -1024, -1024], [-1023, 40, 3071, 3071]]
    assert reading.clipped.voxels == 2
    assert "2 voxels of 3072 HU clipped" in reading.notes[-1]


def test_pixels_without_a_sign_said_are_unsigned(tmp_path):
    stored = np.array([[33000, 34000], [32768, 33100]], np.uint16)
    for k in range(2):
        ds = ct_slice(stored, (0, 0, 5.0 * k), BitsAllocated=16, BitsStored=16, HighBit=15, PixelRepresentation=None)
        ds.RescaleIntercept = -33000.0
        save(ds, tmp_path / f"{k}")
    reading = load(scan(tmp_path).series[0])
    assert reading.volume.hu[0].tolist() == [[0, 1000], [-232, 100]]


@pytest.mark.parametrize("value", [-1100, 3200])
def test_clipping_at_one_end_alone_is_told(tmp_path, value):
    for k in range(2):
        save(ct_slice(np.array([[value, 40], [30, -900]], np.int16), (0, 0, 5.0 * k)), tmp_path / f"{k}")
    reading = load(scan(tmp_path).series[0])
    assert reading.clipped == Clipped(2, value, value)
    assert f"2 voxels of {value} HU clipped" in reading.notes[-1]


def test_padding_range_and_padding_above_the_stored_bits(tmp_path):
    """63536 is -2000 in 16 bits; cut to 12 bits it would be 2096, bone."""
    stored = np.array([[63536, 1064], [10, 20]], np.uint16)
    for k in range(2):
        ds = ct_slice(stored, (0, 0, 5.0 * k), BitsStored=12, HighBit=11, RescaleIntercept=-1024)
        ds.PixelPaddingValue = 63536
        save(ds, tmp_path / "a" / f"{k}")
        ds["PixelPaddingValue"].VR, ds["PixelPaddingValue"].value = "SS", -2000
        save(ds, tmp_path / "c" / f"{k}")
        del ds.PixelPaddingValue
        ds.PixelPaddingValue, ds.PixelPaddingRangeLimit = 0, 15
        save(ds, tmp_path / "b" / f"{k}")
    for folder in "ac":
        assert read_series(tmp_path / folder).hu[0].tolist() == [[-1024, 40], [-1014, -1004]]
    assert read_series(tmp_path / "b").hu[0, 1].tolist() == [-1024, -1004]


def test_padding_that_could_be_tissue_counts_only_at_the_border(tmp_path):
    """A padding value of 0 HU must not punch holes of air into the CSF."""
    plane = np.full((9, 9), 35, np.int16)
    plane[0], plane[:, 0], plane[4, 4] = 0, 0, 0
    for k in range(2):
        save(ct_slice(plane, (0, 0, 5.0 * k), PixelPaddingValue=0), tmp_path / f"{k}")
    hu = read_series(tmp_path).hu[0]
    assert hu[0, 3] == hu[5, 0] == -1024
    assert hu[4, 4] == 0


@pytest.mark.parametrize("place", [np.s_[0, 3:6], np.s_[-1, 3:6], np.s_[3:6, 0], np.s_[3:6, -1]])
def test_padding_at_any_one_border_is_air(tmp_path, place):
    plane = np.full((9, 9), 35, np.int16)
    plane[place] = 0
    expected = np.where(plane == 0, -1024, 35)
    plane[4, 4] = 0
    expected[4, 4] = 0
    for k in range(2):
        save(ct_slice(plane, (0, 0, 5.0 * k), PixelPaddingValue=0), tmp_path / f"{k}")
    assert np.array_equal(read_series(tmp_path).hu[0], expected)


@pytest.mark.parametrize("slope, padding", [(1, (-2000, 0)), (1, (0, -2000)), (-1, (0, 2000))])
def test_a_padding_range_that_reaches_tissue_counts_only_at_the_border(tmp_path, slope, padding):
    """From -2000 to 0 HU, whichever of the two tags names which end and whichever way stored values run."""
    plane = np.full((9, 9), 35, np.int16)
    plane[0], plane[4, 4] = -900, 0
    for k in range(2):
        ds = ct_slice(slope * plane, (0, 0, 5.0 * k), RescaleSlope=slope, RescaleIntercept=0)
        ds.PixelPaddingValue, ds.PixelPaddingRangeLimit = padding
        save(ds, tmp_path / f"{k}")
    hu = read_series(tmp_path).hu[0]
    assert (hu[0] == -1024).all()
    assert hu[4, 4] == 0


@pytest.mark.parametrize("padding, kept", [(-901, -1024), (-900, -1024), (-899, -899)])
def test_padding_of_air_counts_everywhere(tmp_path, padding, kept):
    """Up to -900 HU nothing in a head is lost by calling it air: there is none of it but in the sinuses."""
    plane = np.full((9, 9), 35, np.int16)
    plane[4, 4] = padding
    for k in range(2):
        save(ct_slice(plane, (0, 0, 5.0 * k), PixelPaddingValue=padding), tmp_path / f"{k}")
    assert read_series(tmp_path).hu[0, 4, 4] == kept


def test_slope_and_intercept_of_each_slice(tmp_path):
    stored = np.random.default_rng(5).integers(0, 2000, (4, 5, 6)).astype(np.uint16)
    slopes, intercepts = [1, 0.5, 1.5, 2], [-1024, -500, -1000, -900]
    for k in range(4):
        ds = ct_slice(stored[k], (0, 0, -5.0 * k), RescaleSlope=slopes[k], RescaleIntercept=intercepts[k])
        save(ds, tmp_path / f"{k}")
    expected = np.rint(stored * np.reshape(slopes, (4, 1, 1)) + np.reshape(intercepts, (4, 1, 1)))
    assert np.array_equal(read_series(tmp_path).hu, np.clip(expected, -1024, 3071))


SYNTAXES = [
    ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless,
    JPEG2000Lossless, JPEGLSLossless, JPEGLosslessSV1,
]  # fmt: skip


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: uid.keyword)
@pytest.mark.parametrize("signed", [True, False])
def test_transfer_syntaxes(tmp_path, syntax, signed):
    """The same HU whichever way the pixels are packed; lossless JPEG is encoded by GDCM through ITK."""
    rng = np.random.default_rng(11)
    hu = np.clip(rng.normal(0, 400, (3, 64, 72)), -1024, 3071).astype(np.int16)
    stored = hu if signed else (hu + 1024).astype(np.uint16)
    for k in range(3):
        ds = ct_slice(stored[k], (0, 0, -5.0 * k), RescaleIntercept=0 if signed else -1024)
        path = tmp_path / f"{k}.dcm"
        if syntax == JPEGLosslessSV1:
            save(ds, path)
            recode_with_gdcm(path)
        elif syntax.is_compressed and syntax != DeflatedExplicitVRLittleEndian:
            ds.compress(syntax, generate_instance_uid=False)
            save(ds, path)
        else:
            ds.file_meta.TransferSyntaxUID = syntax
            if syntax == ExplicitVRBigEndian:
                ds.PixelData = stored[k].astype(f">{stored.dtype.kind}2").tobytes()
                ds["PixelData"].VR = "OW"
                pydicom.dcmwrite(path, ds, little_endian=False, implicit_vr=False, enforce_file_format=True)
            else:
                save(ds, path)
        assert pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID == syntax
    assert np.array_equal(read_series(tmp_path).hu, hu)


def recode_with_gdcm(path: Path) -> None:
    gdcm = pytest.importorskip("gdcm")
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


# --- Geometry -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_oblique_and_flipped_stacks_keep_every_voxel_in_place(tmp_path, seed):
    """Every voxel of a randomly turned stack has the LPS place that its own header gives it; slice 0 is the highest."""
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(seed)
    turn = Rotation.from_euler("xyz", rng.uniform(-35, 35, 3), degrees=True).as_matrix()
    flip = np.diag(rng.choice([-1.0, 1.0], 3))
    row, column = (turn @ flip)[:, 0], (turn @ flip)[:, 1]
    normal = np.cross(row, column)
    hu = head(rng)
    places = {}
    for k in rng.permutation(len(hu)):
        position = np.round(np.array([7.0, -3.0, 50.0]) + 4.0 * k * normal, 6)
        orientation = [float(f"{v:.9f}") for v in (*row, *column)]
        save(ct_slice(hu[k], position.tolist(), ImageOrientationPatient=orientation), tmp_path / f"{k:02d}")
        places[hu[k].tobytes()] = position
    volume = read_series(tmp_path)
    assert (np.diff(volume.positions[:, 2]) < 0).all()
    for z in range(len(hu)):
        assert np.array_equal(volume.positions[z], places[volume.hu[z].tobytes()])
    assert np.allclose(volume.row_axis, row, atol=1e-8)
    assert np.allclose(volume.column_axis, column, atol=1e-8)
    assert volume.pixel_spacing == (0.5, 0.75)
    assert np.allclose(volume.slice_steps, 4.0, atol=1e-5)


def test_superior_first_whichever_way_the_normal_points():
    positions = np.array([[0, 0, z] for z in (3.0, 9.0, -1.0)])
    for sign in (1.0, -1.0):
        assert superior_first(positions, np.array([0.0, 0.0, sign])).tolist() == [1, 0, 2]


def test_coronal_stack_becomes_axial(tmp_path):
    rng = np.random.default_rng(2)
    hu = head(rng, 5, 7, 6)
    for k in range(5):
        ds = ct_slice(hu[k], (10.0, 20.0 + 2.0 * k, 30.0), ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
        save(ds, tmp_path / f"{k}")
    volume = read_series(tmp_path)
    assert np.array_equal(volume.hu, hu.transpose(1, 0, 2))
    assert np.allclose(volume.positions[:, 2], 30 - 0.5 * np.arange(7))
    assert np.allclose(volume.column_axis, [0, 1, 0])
    assert volume.pixel_spacing == pytest.approx((2.0, 0.75))


def test_gaps_are_told_from_changes_of_spacing():
    assert find_gaps(np.array([5.0, 5, 10, 5, 5])) == [(2, 2)]
    assert find_gaps(np.array([5.0, 5, 15, 5, 10])) == [(2, 3), (4, 2)]
    assert find_gaps(np.array([2.5] * 8 + [5.0] * 12)) == []
    assert find_gaps(np.array([7.0] * 13 + [1.08] + [4.0] * 13)) == []
    assert find_gaps(np.array([5.0, 5, 7.3, 5, 5])) == []
    assert find_gaps(np.array([5.0, 5, 10.4, 5, 5])) == [(2, 2)], "off a multiple by less than a tenth of a step"
    assert find_gaps(np.array([5.0, 5, 10.6, 5, 5])) == []
    assert find_gaps(np.array([5.0])) == []


def test_missing_slices(tmp_path):
    hu = head(np.random.default_rng(7), 9)
    write_stack(tmp_path, hu, skip=(3, 4))
    series = scan(tmp_path).series[0]
    with pytest.raises(UserError, match=r"2 slices missing.*interpolate_missing=True"):
        load(series)
    reading = load(series, interpolate_missing=True)
    t = np.array([1 / 3, 2 / 3])[:, None, None]
    expected = (1 - t) * hu[2] + t * hu[5]
    assert np.abs(reading.volume.hu[3:5] - expected).max() <= 0.501
    assert np.allclose(reading.volume.positions[:, 2], 100 - 5.0 * np.arange(9))
    assert "interpolated" in reading.notes[0]
    with pytest.raises(UserError, match="too wide"):
        write_stack(tmp_path / "wide", head(np.random.default_rng(7), 12), skip=(4, 5, 6))
        read_series(tmp_path / "wide", interpolate_missing=True)


def test_double_slices(tmp_path):
    hu = head(np.random.default_rng(8))
    write_stack(tmp_path, hu)
    save(ct_slice(hu[2], (-3.0, 4.0, 90.0)), tmp_path / "copy" / "again")
    reading = load(scan(tmp_path).series[0])
    assert np.array_equal(reading.volume.hu, hu)
    assert reading.notes == ("1 duplicate slice dropped",)
    save(ct_slice(hu[1], (-3.0, 4.0, 90.0)), tmp_path / "copy" / "again")
    with pytest.raises(UserError, match="two different images at one position"):
        load(scan(tmp_path).series[0])


@pytest.mark.parametrize("compress", [False, True])
def test_enhanced_multi_frame(tmp_path, compress):
    """Frames in any order, each with its own place and rescaling, a localiser among them."""
    rng = np.random.default_rng(9)
    hu = head(rng, 5)
    order = [3, 0, 4, 1, 2]
    intercepts = [-1000, -1024, -1500, -1024, -1200]
    stored = np.stack([hu[k] - intercepts[k] for k in order] + [hu[0] * 0]).astype(np.uint16)
    ds = ct_slice(stored, NumberOfFrames=6, SOPClassUID=CT_IMAGE + ".1")
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(ds, name)
    del ds.RescaleType

    def item(**elements) -> Sequence:
        inner = Dataset()
        for name, value in elements.items():
            setattr(inner, name, value)
        return Sequence([inner])

    shared = Dataset()
    shared.PixelMeasuresSequence = item(PixelSpacing=[0.5, 0.75], SliceThickness=5.0)
    shared.PlaneOrientationSequence = item(ImageOrientationPatient=list(AXIAL))
    frames = []
    for k in [*order, 0]:
        frame = Dataset()
        frame.PlanePositionSequence = item(ImagePositionPatient=[1.5, 2.5, 40.0 - 5 * k])
        frame.PixelValueTransformationSequence = item(RescaleSlope=1, RescaleIntercept=intercepts[k], RescaleType="HU")
        kind = "AXIAL" if len(frames) < 5 else "LOCALIZER"
        frame.CTImageFrameTypeSequence = item(FrameType=["ORIGINAL", "PRIMARY", kind, "NONE"])
        frames.append(frame)
    ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = Sequence([shared]), Sequence(frames)
    if compress:
        ds.compress(JPEGLSLossless, generate_instance_uid=False)
    volume = read_volume(save(ds, tmp_path / "enhanced")).volume
    assert np.array_equal(volume.hu, hu)
    assert np.array_equal(volume.positions, [[1.5, 2.5, 40.0 - 5 * k] for k in range(5)])


# --- Archives -------------------------------------------------------------------------------------------------------


def test_mixed_archive(tmp_path):
    """Patients, series, localisers, pictures and texts in one heap: volumes of all series, reasons for the rest."""
    rng = np.random.default_rng(4)
    heap = tmp_path / "heap"
    stacks = [head(rng, n) for n in (5, 6, 7)]
    for i, hu in enumerate(stacks):
        for k, plane in enumerate(hu):
            tags = {"SeriesInstanceUID": f"1.2.3.{i}", "PatientID": f"P{i // 2}", "StudyInstanceUID": f"1.2.{i // 2}"}
            save(ct_slice(plane, (0, 0, -2.5 * k), **tags), heap / f"{k % 3}" / f"f{i}{k}")
    plane = stacks[0][0]
    save(ct_slice(plane, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), heap / "scout")
    save(ct_slice(plane, Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4"), heap / "mr")
    pet = ct_slice(plane, Modality="PT", SOPClassUID="1.2.840.10008.5.1.4.1.1.128", RescaleType=None)
    pet.Units = "BQML"
    save(pet, heap / "pet")
    save(ct_slice(plane, RescaleType="MGML"), heap / "iodine")
    save(ct_slice(plane, SOPClassUID="1.2.840.10008.5.1.4.1.1.7"), heap / "dose page")
    save(ct_slice(plane, BitsAllocated=8, BitsStored=8, HighBit=7), heap / "bytes")
    save(ct_slice(plane, SamplesPerPixel=3, PhotometricInterpretation="RGB"), heap / "colours")
    (heap / "readme.txt").write_text("not DICOM, and not called so")
    (heap / "notes.dcm").write_text("text")
    found = scan(heap)
    reasons = {Path(entry.source).name: entry.reason for entry in found.skipped}
    assert sorted(len(series.slices) for series in found.series) == [5, 6, 7]
    assert reasons.keys() == {"scout", "mr", "pet", "iodine", "dose page", "bytes", "colours", "notes.dcm"}
    for name, words in {
        "scout": "localiser", "mr": "MR, not CT", "pet": "BQML", "iodine": "MGML", "dose page": "Secondary Capture",
        "bytes": "8-bit", "colours": "RGB", "notes.dcm": "not a DICOM file",
    }.items():  # fmt: skip
        assert words in reasons[name]
    skipped = []
    volumes = {r.volume.acquisition.series_uid: r.volume for r in read_volumes(heap, skipped.append)}
    assert all(np.array_equal(volumes[f"1.2.3.{i}"].hu, hu) for i, hu in enumerate(stacks))
    assert volumes["1.2.3.2"].acquisition.patient_id == "P1"
    assert len(skipped) == 8
    with pytest.raises(UserError, match="3 series where one was expected"):
        read_series(heap)
    assert np.array_equal(read_series(heap, series_uid="1.2.3.1").hu, stacks[1])


@pytest.mark.parametrize("slices, others, strays", [(9, 1, True), (9, 2, True), (9, 3, False), (8, 1, False)])
def test_two_images_beside_more_than_eight_slices_are_strays_and_more_are_a_series(tmp_path, slices, others, strays):
    rng = np.random.default_rng(6)
    write_stack(tmp_path, head(rng, slices))
    write_stack(tmp_path / "other", head(rng, others, 20, 20))
    found = scan(tmp_path)
    if strays:
        assert len(found.series[0].slices) == slices
        assert "another geometry (20x20" in found.skipped[0].reason
        assert read_series(tmp_path).hu.shape == (slices, 12, 10)
    else:
        assert not found.skipped
        with pytest.raises(UserError, match="two series are mixed under one series UID"):
            read_series(tmp_path)


def test_patients_of_two_kinds_share_no_series(tmp_path):
    rng = np.random.default_rng(6)
    write_stack(tmp_path / "p", head(rng, 3))
    write_stack(tmp_path / "p" / "q", head(rng, 3), PatientID="P2")
    with pytest.raises(UserError, match="2 patients share one series UID"):
        read_series(tmp_path / "p")


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def garble(path: Path) -> Path:
    """Overwrite the start of the compressed stream."""
    data = path.read_bytes()
    start = data.index(b"\xff\xd8\xff")
    path.write_bytes(data[:start] + bytes(64) + data[start + 64 :])
    return path


def blank(path: Path, tag: bytes) -> Path:
    """Zeros from within an element's value representation on, which leaves one that there is not."""
    data = path.read_bytes()
    start = data.index(tag) + 5
    path.write_bytes(data[:start] + bytes(100) + data[start + 100 :])
    return path


def bad_inputs():
    plane = head(np.random.default_rng(1), 1, 64, 64)[0]

    def one(folder, **tags):
        return save(ct_slice(plane, **tags), folder / "x.dcm")

    def compressed(folder):
        ds = ct_slice(plane)
        ds.compress(JPEGLSLossless, generate_instance_uid=False)
        save(ct_slice(plane, (0, 0, 5)), folder / "y.dcm")
        return save(ds, folder / "x.dcm")

    mr = {"Modality": "MR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"}
    pet = {"Modality": "PT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.128"}
    rgb = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}
    return {
        "empty folder": (lambda f: None, "no DICOM series"),
        "truncated pixels": (lambda f: cut(one(f), 0.9), "truncated"),
        "truncated header": (lambda f: cut(one(f), 0.03), "x.dcm"),
        "truncated stream": (lambda f: cut(compressed(f), 0.8), "truncated"),
        "garbled stream": (lambda f: garble(compressed(f)), "cannot be decoded"),
        "garbled series UID": (lambda f: blank(one(f), b"\x20\0\x0e\0UI"), "damaged header"),
        "text": (lambda f: (f / "x.dcm").write_text("hello " * 40), "not a DICOM file"),
        "empty file": (lambda f: (f / "x.dcm").write_bytes(b""), "not a DICOM file"),
        "no pixel data": (lambda f: one(f, PixelData=None), "pixel data missing"),
        "one slice": (lambda f: one(f), "1 slice where 2 or more are needed"),
        "copies of one slice": (
            lambda f: [save(ct_slice(plane), f / f"{n}.dcm") for n in range(3)],
            "1 slice in 3 copies where 2 or more are needed",
        ),
        "MR": (lambda f: one(f, **mr), "MR, not CT"),
        "PET": (lambda f: one(f, **pet), "PET, not CT"),
        "RGB": (lambda f: one(f, **rgb), "colour image"),
        "8 bit": (lambda f: one(f, BitsAllocated=8, BitsStored=8, HighBit=7), "8-bit"),
        "bits": (lambda f: one(f, BitsStored=12, HighBit=9), "High Bit 9"),
        "not a number": (
            lambda f: one(f, ImagePositionPatient=[0, 0, float("inf")]),
            "is .0.0.0.0.inf., not 3 numbers",
        ),
        "no rescale": (
            lambda f: one(f, RescaleSlope=None),
            "Rescale Slope .0028,1053. is missing, so the values are not in HU",
        ),
        "no position": (lambda f: one(f, ImagePositionPatient=None), "has no position"),
        "absurd size": (lambda f: one(f, Rows=60000, Columns=60000), "implausible"),
        "singular": (lambda f: one(f, ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "Image Orientation"),
    }


@pytest.mark.parametrize("case", bad_inputs())
def test_bad_input_ends_in_one_line(tmp_path, case):
    make, words = bad_inputs()[case]
    make(tmp_path)
    with pytest.raises(UserError, match=words) as caught:
        read_series(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("off", [[0.9, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0.9, 0], [1, 0, 0, 0.3, 0.954, 0]])
def test_directions_that_are_not_unit_vectors_at_right_angles_are_refused(tmp_path, off):
    save(ct_slice(np.zeros((4, 4), np.int16), ImageOrientationPatient=off), tmp_path / "x")
    with pytest.raises(UserError, match="not two unit vectors at right angles"):
        read_series(tmp_path)


def test_a_truncated_file_spoils_its_series_and_no_other(tmp_path):
    rng = np.random.default_rng(12)
    cut(write_stack(tmp_path / "a", head(rng, 5, 64, 64))[2], 0.9)
    write_stack(tmp_path / "b", head(rng, 5), SeriesInstanceUID="1.2.3.9")
    skipped = []
    assert [r.volume.acquisition.series_uid for r in read_volumes(tmp_path, skipped.append)] == ["1.2.3.9"]
    assert all("truncated" in entry.reason for entry in skipped)


# --- Real files -----------------------------------------------------------------------------------------------------


@needs_data
@pytest.mark.parametrize("folder", ["ge-head", "philips-phantom/S21570/S2010", "philips-phantom/S21610/S2010"])
def test_real_series_against_itk(folder):
    """HU and the place of each slice's first voxel as ITK (GDCM) reads them, file by file."""
    sitk = pytest.importorskip("SimpleITK")
    volume = read_series(DATA / folder)
    files = [str(f) for f in (DATA / folder).iterdir() if f.suffix != ".txt" and f.name != "DIRFILE"]
    images = sorted((sitk.ReadImage(f) for f in files), key=lambda image: -image.GetOrigin()[2])
    assert len(images) == len(volume.hu)
    for z in range(0, len(images), 5):
        image = images[z]
        assert np.array_equal(volume.hu[z], np.clip(sitk.GetArrayFromImage(image)[0], -1024, 3071))
        corner = image.TransformIndexToPhysicalPoint((511, 300, 0))
        dy, dx = volume.pixel_spacing
        ours = volume.positions[z] + 511 * dx * volume.row_axis + 300 * dy * volume.column_axis
        assert np.allclose(corner, ours, atol=1e-4)


@needs_data
def test_tilt_and_uneven_steps_of_the_real_head_are_kept():
    volume = read_series(DATA / "ge-head")
    headers = [pydicom.dcmread(f, stop_before_pixels=True) for f in (DATA / "ge-head").glob("*.dcm")]
    expected = sorted(([float(v) for v in h.ImagePositionPatient] for h in headers), key=lambda p: -p[2])
    assert np.array_equal(volume.positions, expected)
    assert not volume.is_even
    assert volume.acquisition.gantry_tilt_deg == 18.5
    assert volume.hu.min() == -1024


@needs_data
def test_mixed_real_folder():
    found = find([DATA / "philips-phantom"])
    assert sorted(len(series.slices) for series in found.series) == [28, 54]
    assert [entry.reason for entry in found.skipped] == ["localiser", "localiser"]
    assert len({series.acquisition.study_uid for series in found.series}) == 2


def test_pydicoms_own_ct_files():
    """Files from several scanners and encoders, against ITK; no file of another kind passes for CT."""
    sitk = pytest.importorskip("SimpleITK")
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("CT_small.dcm", "693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm"):
            _, (s,), _ = read_header(str(folder / name))
            expected = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / name)))[0]
            assert np.array_equal(read_slice(s)[0], np.clip(expected, -1024, 3071))
        for name in ("MR_small.dcm", "MR_truncated.dcm", "SC_rgb_rle.dcm", "rtdose.dcm", "reportsi.dcm", "rtplan.dcm"):
            assert read_header(str(folder / name)).reason
