"""Damage of every kind in DICOM and NIfTI files: nothing hangs, crashes, or makes half a volume.

FUZZ_EXAMPLES=1000 pytest tests/test_fuzz.py looks longer than the default of 25 examples a test."""

import gzip
import os
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slicewise.errors import UserError
from slicewise.io.archive import find, read_volumes
from slicewise.io.deidentify import deidentify_files
from slicewise.io.dicom_enhanced import write_enhanced
from slicewise.io.dicom_write import SYNTAXES, write_series
from slicewise.io.nifti import write_nifti
from slicewise.io.pacs import read_instances
from slicewise.volume import Volume
from test_dicom_read import ct_slice

pytestmark = pytest.mark.filterwarnings("ignore")  # pydicom warns of what it repairs
SHAPE = (3, 34, 33)
FUZZ = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "25")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small volume in every form that we write: a folder of DICOM series, Enhanced CT and NIfTI."""
    folder = tmp_path_factory.mktemp("zoo")
    hu = np.random.default_rng(0).integers(-1024, 3072, SHAPE).astype(np.int16)
    volume = Volume.regular(hu, (5.0, 1.0, 1.5))
    for syntax in SYNTAXES:
        write_series(volume, folder / syntax, synthetic=None, patient_id=syntax, syntax=syntax)
    write_enhanced(volume, folder / "enhanced" / "e.dcm", synthetic=None, patient_id="enhanced")
    write_nifti(volume, folder / "nifti" / "n.nii.gz")
    write_nifti(volume, folder / "plain" / "n.nii")
    return folder


FORMS = [*SYNTAXES, "enhanced", "nifti", "plain"]


def is_whole(volume: Volume) -> bool:
    """Whether a volume keeps the promises of its type."""
    return (
        volume.hu.dtype == np.int16
        and len(volume.hu) == len(volume.positions) >= 2
        and volume.hu.min() >= -1024
        and volume.hu.max() <= 3071
        and np.isfinite(volume.positions).all()
        and min(volume.pixel_spacing) > 0
    )


def read_all(folder: Path) -> list[Volume]:
    """Everything below a folder, by every way in; what cannot be read must be said in one line."""
    said: list[str] = []
    volumes = [r.volume for r in read_volumes(folder, lambda entry: said.append(entry.reason))]
    assert all(is_whole(v) for v in volumes)
    assert all("\n" not in text for text in said), said
    assert volumes or said, "what is no volume is listed"
    for entry in find([folder]).skipped:
        assert "\n" not in entry.reason
    read_instances([folder])
    with suppress(UserError):
        deidentify_files([folder], folder.with_name("clean"))
    return volumes


@pytest.mark.parametrize("form", FORMS)
@FUZZ
@given(data=st.data())
def test_damaged_bytes(zoo, tmp_path, form, data):
    folder = tmp_path / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(zoo / form, folder)
    victim = data.draw(st.sampled_from(sorted(folder.iterdir())))
    raw = bytearray(victim.read_bytes())
    if form == "nifti" and data.draw(st.booleans()):
        raw = bytearray(gzip.decompress(raw))
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "zero", "repeat"]))
    # Headers are where damage does the most.
    place = data.draw(st.integers(0, min(len(raw) - 1, data.draw(st.sampled_from([400, 2000, len(raw) - 1])))))
    if kind == "flip":
        for _ in range(data.draw(st.integers(1, 8))):
            where = data.draw(st.integers(max(0, place - 40), min(len(raw) - 1, place + 40)))
            raw[where] = data.draw(st.integers(0, 255))
    elif kind == "cut":
        del raw[place:]
    elif kind == "insert":
        raw[place:place] = data.draw(st.binary(min_size=1, max_size=300))
    elif kind == "zero":
        raw[place : place + 100] = bytes(len(raw[place : place + 100]))
    else:
        raw[place:place] = raw[max(0, place - 200) : place]
    if form == "nifti" and raw[:2] != b"\x1f\x8b":
        raw = bytearray(gzip.compress(raw))
    victim.write_bytes(raw)
    read_all(folder)


# Values that real files and mischief put where numbers are due.
ODD = st.one_of(
    st.none(),
    st.sampled_from(["", "0", "-1", "nan", "inf", "1e400", "1e-400", "999999999999", "a", "1\\2", "--5", "1,5"]),
    st.floats(allow_nan=False, allow_infinity=False, width=32).map(lambda v: f"{v:.6g}"),
)
NUMBERS = ["RescaleSlope", "RescaleIntercept", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
           "SliceThickness", "KVP", "GantryDetectorTilt", "NumberOfFrames", "InstanceNumber"]  # fmt: skip
COUNTS = ["Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"]


@FUZZ
@given(
    numbers=st.dictionaries(st.sampled_from(NUMBERS), st.lists(ODD, max_size=7), max_size=3),
    counts=st.dictionaries(st.sampled_from(COUNTS), st.integers(0, 65535), max_size=2),
    gone=st.sets(st.sampled_from([*NUMBERS, *COUNTS, "PixelData", "Modality", "StudyInstanceUID"]), max_size=2),
    on_all=st.booleans(),
)
def test_odd_values_in_headers(tmp_path, numbers, counts, gone, on_all):
    folder = tmp_path / "odd"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for z in range(3):
        ds = ct_slice(np.full((6, 5), 40, np.int16), (0.0, 0.0, 5.0 * z), InstanceNumber=z + 1, KVP="120")
        if z == 0 or on_all:
            for keyword, values in numbers.items():
                text = "\\".join("" if v is None else v for v in values).encode()
                tag = pydicom.tag.Tag(keyword)
                raw = pydicom.dataelem.RawDataElement(tag, "DS", len(text), text, 0, False, True, True)
                ds[tag] = pydicom.dataelem.DataElement(tag, "UN", raw.value) if not text else raw
            for keyword, value in counts.items():
                setattr(ds, keyword, value)
            for keyword in gone:
                if keyword in ds:
                    delattr(ds, keyword)
        if "PixelData" in ds:
            ds["PixelData"].VR = "OW"
        ds.save_as(folder / f"{z}.dcm", enforce_file_format=True, implicit_vr=False, little_endian=True)
    read_all(folder)


@FUZZ
@given(
    content=st.binary(max_size=3000),
    magic=st.sampled_from([b"", b"\0" * 128 + b"DICM", b"\x1f\x8b", b"\x5c\x01\0\0"]),
    name=st.sampled_from(["x.dcm", "x", "x.nii", "x.nii.gz", "x.ima"]),
)
def test_anything_at_all(tmp_path, content, magic, name):
    folder = tmp_path / "any"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / name).write_bytes(magic + content)
    assert [v for v in read_volumes(folder)] == []
    read_instances([folder])
    with pytest.raises(UserError) as info:
        deidentify_files([folder], tmp_path / "out")
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("rows, columns, frames", [(65535, 65535, 1), (8192, 8192, 99999), (65535, 1, 1), (0, 5, 1)])
def test_claimed_sizes_are_not_believed(tmp_path, rows, columns, frames):
    """A small file that claims to be huge is refused by its header; nothing of that size is allocated."""
    import resource

    ds = ct_slice(np.zeros((4, 4), np.int16))
    ds.Rows, ds.Columns, ds.NumberOfFrames = rows, columns, frames
    ds.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (left,) = find([tmp_path]).skipped
    assert "implausible" in left.reason or "truncated" in left.reason or "several frames" in left.reason
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB
