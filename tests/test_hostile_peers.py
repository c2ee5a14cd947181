"""Peers that mean harm or are broken: a pull ends in one line, in little memory and time, and keeps nothing wrong."""

import json
import sys
import time
from functools import cache, partial

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, JPEG2000Lossless

import hostile
from slicewise.errors import UserError
from slicewise.io import dicomweb, dimse
from slicewise.io.pacs import pull
from slicewise.io.peer import PeerSettings, Query, RemoteSeries
from slicewise.io.received import Damaged, TooMuch, _pixel_problem, check_file, parts

ONCE = PeerSettings(retries=0, timeout_s=1, max_image_mb=8)
ENDS = {
    "search": "sends (an answer|answers) of more than 64 MB",
    "4 GB decompressed": "sends an answer of more than 64 MB",
    "pages of answers": r"sends endless answers to one search \(\d+ so far\)",
    "drip": "too little of its answer arrived within 1 s|no answer within 1 s",
    "image that does not end": r"sends an image of more than 8 MB \(PeerSettings\.max_image_mb\)",
    "images without end": "sends more images than it lists",
    "deflated": r"sends an image that inflates to more than 8 MB",
    "without pixels": "3 of 3 images .* did not arrive; it sent an image without pixels",
    "cut short": "3 of 3 images .* did not arrive; it sent an image cut short: 256 bytes of pixels, expected 512",
    "another series": "sends an instance of another series than the one asked for",
    "nested": "answers, but not as a DICOMweb service does",
    "to a search without end": r"sends endless answers to one request \(\d+ so far\)",
    "10 MB each": "sends answers of more than 64 MB",
    "claim": "sends a PDU of 4095 MB where 1 MB was agreed on",
    "message that does not end": "sends answers of more than 64 MB",
}
ATTACKS = [(kind, what) for kind in ("WEB", "DIMSE") for what in getattr(hostile, kind) if what != "what was asked for"]


@pytest.mark.parametrize("kind, what", ATTACKS)
def test_a_pull_ends_in_one_line_and_keeps_nothing(kind, what, tmp_path, monkeypatch):
    monkeypatch.setattr(dicomweb, "MOST_ROWS", 5000)
    monkeypatch.setattr(dimse, "SEARCH_TIMEOUTS", 3)
    expected = [text for key, text in ENDS.items() if key in what]
    begun = time.monotonic()
    with getattr(hostile, kind)[what]() as url, pytest.raises(UserError, match=expected[-1]) as info:
        pull(url, Query(study=hostile.STUDY), tmp_path / "out", ONCE)
    assert "\n" not in str(info.value)
    assert time.monotonic() - begun < 30
    assert not list(tmp_path.rglob("*.dcm")) or what == "images without end", "but what is whole and was asked for"


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    "kind, what",
    [a for a in ATTACKS if any(w in a[1] for w in ("does not end", "4 GB", "10 MB", "deflated image of 512"))],
)
def test_memory_has_a_ceiling(kind, what):
    with getattr(hostile, kind)[what]() as url:
        _, peak, _ = hostile.measured(url, 5, 16)
    assert peak < usual_peak(kind) + 200, f"{peak:.0f} MB"


@cache
def usual_peak(kind: str) -> float:
    """MB that a pull takes where nothing is wrong."""
    with getattr(hostile, kind)["what was asked for"]() as url:
        _, peak, line = hostile.measured(url, 5, 16)
    assert "3 images fetched" in line
    return peak


@pytest.mark.parametrize("kind", ["web", "dimse"])
def test_what_came_cut_is_fetched_again_and_not_counted(kind, tmp_path):
    seen: list[int] = []

    def make(number: int) -> pydicom.Dataset:
        """Image 1 is cut the first time."""
        seen.append(number)
        return hostile.cut(1) if number == 1 and seen.count(1) == 1 else hostile.image(number)

    class Service(hostile.Web):
        def image(self, number: int) -> pydicom.Dataset:
            return make(number)

    peer = hostile.web(Service) if kind == "web" else hostile.dimse(get=partial(hostile.answer_get, make=make))
    with peer as url:
        report = pull(url, Query(study=hostile.STUDY), tmp_path, PeerSettings(retries=1, timeout_s=5, backoff_s=0.01))
    assert report.fetched == 3
    assert seen.count(1) >= 2
    assert [len(pydicom.dcmread(f).PixelData) for f in sorted(tmp_path.rglob("*.dcm"))] == [512] * 3


def test_a_patient_is_no_pattern_and_another_ones_studies_are_left(tmp_path):
    for patient in ("*", "P?", "P*1", " ", "a\\b", "x" * 65):
        with pytest.raises(UserError, match="expected one Patient ID"):
            Query(patient=patient)
    with pytest.raises(UserError, match="expected a code"):
        Query(patient="P1", modality="C*")
    for peer in (hostile.web(hostile.Web), hostile.dimse()):  # both answer every query with the study of P1
        with peer as url:
            assert len(pull(url, Query(patient="P1"), tmp_path, ONCE, dry_run=True).series) == 1
            with pytest.raises(UserError, match="no CT series matches"):
                pull(url, Query(patient="P2"), tmp_path, ONCE)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["vr", "Value", "0020000D", "00201209", "00080060", "00100020"]), inner)
    ),
    max_leaves=12,
)


def test_odd_json_ends_in_one_line(tmp_path):
    answer = b""

    class Service(hostile.Web):
        def search(self, path: str, more: bool) -> None:
            self.head(hostile.JSON, **{"Content-Length": str(len(answer))})
            self.wfile.write(answer)

    with hostile.web(Service) as url:

        @settings(max_examples=60, deadline=None)
        @given(value=values | st.lists(st.dictionaries(st.just("0020000D"), values, max_size=2), max_size=2))
        def ask(value: object) -> None:
            nonlocal answer
            answer = json.dumps(value).encode()
            for query in (Query(study=hostile.STUDY, modality=""), Query(patient="P1")):
                with pytest.raises(UserError) as info:
                    pull(url, query, tmp_path / "out", ONCE)
                assert "\n" not in str(info.value)
                assert str(info.value).isprintable()

        ask()
        hostile_rows = {
            "0020000D": {"Value": ["1.2"]},
            "0020000E": {"Value": ["1.3"]},
            "00080060": {"Value": ["\x1b[2J"]},
        }
        answer = json.dumps([hostile_rows]).encode()
        with pytest.raises(UserError, match="invalid code") as info:
            pull(url, Query(study="1.2", modality=""), tmp_path / "out", ONCE)
        assert str(info.value).isprintable()


@given(st.lists(st.binary(max_size=300), max_size=4), st.integers(1, 70))
@settings(max_examples=60, deadline=None)
def test_parts_are_whole_however_the_message_is_cut_into_pieces(files, step):
    whole = b"".join(hostile.part(file) for file in files) + b"\r\n--b--"
    if any(b"--b" in file for file in files):
        return
    pieces = [whole[i : i + step] for i in range(0, len(whole), step)]
    assert list(parts(pieces, b"b", 1 << 20)) == files
    for end in range(0, len(whole), step):
        got = []
        with pytest.raises(EOFError):
            got += parts([whole[:end]], b"b", 1 << 20)
        assert got == files[: len(got)]


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_a_deflated_file_is_inflated_as_far_as_it_may():
    series = RemoteSeries(hostile.STUDY, hostile.SERIES)
    ds = hostile.image(2)
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    assert check_file(hostile.file_of(ds), series, 8 << 20) == f"{hostile.SERIES}.2"
    with pytest.raises(TooMuch, match="inflates"):
        check_file(hostile.bomb_file(), series, 8 << 20)
    lying = bytearray(hostile.bomb_file())
    lying[140:144] = (int.from_bytes(lying[140:144], "little") + 100).to_bytes(4, "little")
    with pytest.raises(Damaged):
        check_file(bytes(lying), series, 8 << 20)
    for length in range(0, 900, 37):
        with pytest.raises(Damaged):
            check_file(hostile.file_of(hostile.image(0))[:length], series, 8 << 20)


@pytest.mark.parametrize("offsets", [True, False], ids=["offset table", "empty offset table"])
@pytest.mark.parametrize("fragments", [1, 2])
def test_compressed_frames_are_counted_whatever_the_offset_table_holds(offsets, fragments):
    """An offset table may be empty (PS3.5 A.4), and most are."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    dataset.SOPClassUID, dataset.Rows = CTImageStorage, 4
    dataset.PixelData = encapsulate([b"ab" * 8, b"cd" * 8], fragments_per_frame=fragments, has_bot=offsets)
    for frames, problem in ((2, ""), (2 * fragments + 1, f"{2 * fragments} compressed frames, expected")):
        dataset.NumberOfFrames = frames
        found = _pixel_problem(dataset)
        assert problem in found
        assert bool(problem) == bool(found)
