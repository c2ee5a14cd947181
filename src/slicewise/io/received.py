"""What a peer sends, before it is believed: one whole DICOM file of the series that was asked for, and not more of it
than can be meant."""

import zlib
from collections.abc import Iterable, Iterator
from io import BytesIO
from itertools import islice

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import generate_fragments
from pydicom.filereader import read_dataset
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import UID

from slicewise.io.peer import RemoteSeries

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_MOST_HEADER = 1 << 16


class Damaged(Exception):
    """An image that did not come whole: it may the next time. The message says what is missing."""


class Unasked(Exception):
    """What a peer sent was not asked for. The message says what it is."""


class TooMuch(Exception):
    """A peer sends more than can be meant. The message says of what."""


def check_file(file: bytes, series: RemoteSeries, most: int) -> str:
    """The SOP Instance UID of a received DICOM file of the series, whose pixel data are all there.

    Raises `Unasked` for an instance of another series, `Damaged` for a file that does not parse, an image without
    pixel data (Image Storage classes, and whatever has Rows) and pixel data shorter than PS3.5 8.1.1 and A.4 have it,
    `TooMuch` for a deflated file of more than `most` bytes.
    """
    try:
        dataset = _read(file, most)
        uid = str(dataset.SOPInstanceUID)
        found = (str(dataset.StudyInstanceUID), str(dataset.SeriesInstanceUID))
        named = str(dataset.file_meta.MediaStorageSOPInstanceUID)
        problem = _pixel_problem(dataset)
    except TooMuch:
        raise
    except Exception as error:  # pydicom raises many kinds on a file that is cut or garbled
        raise Damaged(f"a file that cannot be read ({type(error).__name__})") from error
    if found != (series.study, series.series):
        raise Unasked("an instance of another series than the one asked for")
    if named != uid:
        raise Unasked("an instance under another UID than its own")
    if problem:
        raise Damaged(problem)
    return uid


def parts(chunks: Iterable[bytes], boundary: bytes, most: int) -> Iterator[bytes]:
    """The contents of a multipart message's parts (RFC 2046 5.1.1), one after the other, never more of it in memory.

    Raises `EOFError` where the message ends before its last delimiter, which tells a cut one from a whole one, and
    `TooMuch` for a part of more than `most` bytes.
    """
    mark = b"\r\n--" + boundary
    data, begun, searched = bytearray(b"\r\n"), False, 0
    for chunk in chunks:
        data += chunk
        while (end := data.find(mark, searched)) >= 0 and len(data) >= end + len(mark) + 2:
            if begun:
                yield _content(data[:end])
            last = data[end + len(mark) : end + len(mark) + 2] == b"--"
            del data[: end + len(mark)]
            begun, searched = True, 0
            if last:
                return
        searched = max(len(data) - len(mark) - 1, 0) if end < 0 else end
        if len(data) > most + _MOST_HEADER:
            raise TooMuch(f"an image of more than {most >> 20} MB (PeerSettings.max_image_mb)")
    raise EOFError


def _content(part: bytearray) -> bytes:
    """A part without its header."""
    end = part.find(b"\r\n\r\n")
    if end < 0:
        raise ValueError("a part without a header")
    return bytes(part[end + 4 :])


def _read(file: bytes, most: int) -> Dataset:
    """The data set with its file meta information (PS3.10 7.1). Read by its group length alone, so that what is
    inflated here, to `most` bytes, is what any reader would inflate; pydicom knows no limit."""
    start = 144 + int.from_bytes(file[140:144], "little")
    meta = read_dataset(BytesIO(file[132:start]), False, True)
    if file[128:136] != b"DICM\x02\x00\x00\x00" or any(tag.group != 2 for tag in meta.keys()):
        raise ValueError("no file meta information")
    syntax = UID(str(meta.TransferSyntaxUID))
    body = _inflated(file[start:], most) if syntax.is_deflated else file[start:]
    dataset = read_dataset(BytesIO(body), syntax.is_implicit_VR, syntax.is_little_endian)
    dataset.file_meta = FileMetaDataset(meta)
    return dataset


def _inflated(deflated: bytes, most: int) -> bytes:
    """What a deflated data set (PS3.5 A.5) inflates to."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(deflated, most + 1)
    if len(inflated) > most:
        raise TooMuch(f"an image that inflates to more than {most >> 20} MB (PeerSettings.max_image_mb)")
    return inflated


def _pixel_problem(dataset: Dataset) -> str:
    """What is missing of an image's pixels; "" where nothing is, or where the object is no image."""
    if "Rows" not in dataset and "Image Storage" not in UID(str(dataset.SOPClassUID)).name:
        return ""
    keyword = next((name for name in _PIXELS if name in dataset), None)
    if keyword is None or not dataset[keyword].value:
        return "an image without pixels"
    if not UID(str(dataset.file_meta.TransferSyntaxUID)).is_encapsulated:
        due, there = get_expected_length(dataset, "bytes"), len(dataset[keyword].value)
        return f"an image cut short: {there} bytes of pixels, expected {due}" if there < due else ""
    frames = int(dataset.get("NumberOfFrames") or 1)
    fragments = islice(generate_fragments(dataset[keyword].value), 1, None)  # the first item is the offset table
    there = sum(map(bool, fragments))
    return f"an image cut short: {there} compressed frames, expected {frames}" if there < frames else ""
