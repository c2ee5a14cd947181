"""PACS peers that mean harm or are broken: each is a server of its own kind, on the loopback, for one pull.

`WEB` and `DIMSE` map what a peer does to a context manager that runs it and gives its address. All of them hold one
series of `IMAGES` and answer as they should until they do what they are named after.
"""

import gzip
import itertools
import json
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind as FIND,
)
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelGet as GET,
)

STUDY, SERIES = "1.2.3", "1.2.3.4"
IMAGES = 3
JSON = "application/dicom+json"
MULTIPART = 'multipart/related; type="application/dicom"; boundary=b'


def image(number: int, size: int = 16, series: str = SERIES) -> pydicom.Dataset:
    """A CT image of size x size pixels of noise."""
    ds = pydicom.Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, f"{SERIES}.{number}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.Modality, ds.PatientID = STUDY, series, "CT", "P1"
    ds.Rows = ds.Columns = size
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 1
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 12, 11
    ds.PixelData = np.random.default_rng(number).integers(-1024, 1024, (size, size)).astype("<i2").tobytes()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def without_pixels(number: int) -> pydicom.Dataset:
    """The header of an image."""
    ds = image(number)
    del ds.PixelData
    return ds


def cut(number: int) -> pydicom.Dataset:
    """An image with half of its pixels."""
    ds = image(number)
    ds.PixelData = ds.PixelData[: len(ds.PixelData) // 2]
    return ds


def file_of(ds: pydicom.Dataset) -> bytes:
    """A DICOM file."""
    stream = BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


@cache
def deflated_bomb(side: int = 16384) -> bytes:
    """A deflated data set (PS3.5 A.5) of an image of zeros: 512 MB in 520 kB."""
    ds = image(0)
    ds.Rows = ds.Columns = side
    ds.PixelData = b""
    size = 2 * side * side
    header = file_of(ds)
    header = header[144 + int.from_bytes(header[140:144], "little") : -4] + size.to_bytes(4, "little")
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    pieces = [deflater.compress(header), *(deflater.compress(bytes(1 << 20)) for _ in range(size >> 20))]
    return b"".join([*pieces, deflater.flush()])


def bomb_file() -> bytes:
    """The bomb as a DICOM file."""
    ds = pydicom.Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, f"{SERIES}.0"
    stream = BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    start = 144 + int.from_bytes(stream.getvalue()[140:144], "little")
    return stream.getvalue()[:start] + deflated_bomb()


# DICOMweb ------------------------------------------------------------------------------------------------------------


class Web(BaseHTTPRequestHandler):
    """A DICOMweb service. Attacks override `search`, `series` and `one`, which write a whole answer."""

    protocol_version = "HTTP/1.1"
    prepare: Callable[[], Any] = staticmethod(lambda: None)

    def do_GET(self) -> None:
        with suppress(OSError):  # we were cut off, as we should be
            path, _, query = self.path.partition("?")
            if query or path.endswith(("studies", "/series", "/instances")):
                self.search(path, "offset=" in query and "offset=0" not in query)
            elif path.endswith(SERIES):
                self.series()
            else:
                self.one(int(path.rpartition(".")[2]))

    def search(self, path: str, more: bool) -> None:
        self.rows([] if more else [row(i) for i in range(IMAGES if path.endswith("instances") else 1)])

    def series(self) -> None:
        self.files([file_of(self.image(i)) for i in range(IMAGES)])

    def one(self, number: int) -> None:
        self.files([file_of(self.image(number))])

    def image(self, number: int) -> pydicom.Dataset:
        return image(number)

    def rows(self, found: list[dict[str, Any]]) -> None:
        body = json.dumps(found).encode()
        self.head(JSON, **{"Content-Length": str(len(body))})
        self.wfile.write(body)

    def files(self, files: list[bytes]) -> None:
        self.head(MULTIPART, Connection="close")
        self.wfile.write(b"".join(part(file) for file in files) + b"\r\n--b--")
        self.close_connection = True

    def head(self, kind: str, **headers: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def log_message(self, *arguments: object) -> None:
        pass


def row(number: int) -> dict[str, Any]:
    """A row of a search, of any level."""
    values = {"0020000D": STUDY, "0020000E": SERIES, "00080060": "CT", "00080018": f"{SERIES}.{number}"}
    values |= {"00080016": str(CTImageStorage), "00100020": "P1"}
    return {tag: {"vr": "UI", "Value": [value]} for tag, value in values.items()}


def part(file: bytes) -> bytes:
    """A part of a multipart message with the boundary "b"."""
    return b"\r\n--b\r\nContent-Type: application/dicom\r\n\r\n" + file


class EndlessAnswer(Web):
    """Sends a JSON array that does not end."""

    def search(self, path: str, more: bool) -> None:
        self.head(JSON, **{"Transfer-Encoding": "chunked"})
        rows = b"[" + b",".join([json.dumps(row(0)).encode()] * 4000)
        for _ in itertools.count():
            self.chunk(rows)


class GzipBomb(Web):
    """Sends 4 MB that are 4 GB."""

    prepare = staticmethod(cache(lambda: gzip.compress(bytes(1 << 28), 9, mtime=0) * 16))

    def search(self, path: str, more: bool) -> None:
        body = self.prepare()
        self.head(JSON, **{"Content-Encoding": "gzip", "Content-Length": str(len(body))})
        self.wfile.write(body)


class EndlessPages(Web):
    """Has another page of rows whenever it is asked."""

    count = itertools.count()

    def search(self, path: str, more: bool) -> None:
        self.rows([row(next(self.count)) for _ in range(1000)])


class DrippingHeaders(Web):
    """Sends its headers byte by byte."""

    def search(self, path: str, more: bool) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        drip(self.wfile.write)


class DrippingAnswer(Web):
    """Sends its answer byte by byte."""

    def search(self, path: str, more: bool) -> None:
        self.head(JSON, **{"Content-Length": "100000000"})
        drip(self.wfile.write)


class DrippingImage(Web):
    """Sends an image byte by byte, each a chunk."""

    def series(self) -> None:
        self.head(MULTIPART, **{"Transfer-Encoding": "chunked"})
        self.chunk(part(b""))
        drip(self.chunk)


class EndlessImage(Web):
    """Sends one image that does not end."""

    def series(self) -> None:
        self.head(MULTIPART, Connection="close")
        self.wfile.write(part(file_of(image(0))))
        for _ in itertools.count():
            self.wfile.write(bytes(1 << 20))


class EndlessImages(Web):
    """Sends one image over and over."""

    def series(self) -> None:
        self.head(MULTIPART, Connection="close")
        for _ in itertools.count():
            self.wfile.write(part(file_of(image(0))))


class DeflatedBomb(Web):
    """Sends an image of 520 kB that inflates to 512 MB."""

    prepare = staticmethod(deflated_bomb)

    def series(self) -> None:
        self.files([bomb_file()])


class NoPixels(Web):
    """Sends headers without pixels."""

    def image(self, number: int) -> pydicom.Dataset:
        return without_pixels(number)


class CutPixels(Web):
    """Sends images with half of their pixels."""

    def image(self, number: int) -> pydicom.Dataset:
        return cut(number)


class OtherSeries(Web):
    """Sends images of another series."""

    def image(self, number: int) -> pydicom.Dataset:
        return image(number, series="1.2.3.5")


class NestedAnswer(Web):
    """Answers with JSON that is nested a million deep."""

    def search(self, path: str, more: bool) -> None:
        body = b"[" * 10**6 + b"]" * 10**6
        self.head(JSON, **{"Content-Length": str(len(body))})
        self.wfile.write(body)


def drip(write: Callable[[bytes], Any], pause_s: float = 0.2) -> None:
    """A byte now and then, for an hour."""
    for _ in range(int(3600 / pause_s)):
        write(b" ")
        time.sleep(pause_s)


@contextmanager
def web(handler: type[Web]) -> Iterator[str]:
    """A service; its address."""
    handler.prepare()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads, server.block_on_close = True, False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/dicom-web"
    finally:
        server.shutdown()
        server.server_close()


# DIMSE ---------------------------------------------------------------------------------------------------------------


def answer_find(event: Any) -> Iterator[tuple[int, pydicom.Dataset]]:
    """The study, the series, or its images."""
    for i in range(IMAGES if event.identifier.QueryRetrieveLevel == "IMAGE" else 1):
        yield 0xFF00, found(event, i)


def found(event: Any, number: int) -> pydicom.Dataset:
    """An answer to a C-FIND."""
    ds = pydicom.Dataset()
    ds.QueryRetrieveLevel = event.identifier.QueryRetrieveLevel
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.Modality, ds.PatientID = STUDY, SERIES, "CT", "P1"
    if ds.QueryRetrieveLevel == "IMAGE":
        ds.SOPInstanceUID, ds.SOPClassUID = f"{SERIES}.{number}", CTImageStorage
    return ds


def answer_get(event: Any, make: Callable[[int], pydicom.Dataset]) -> Iterator[Any]:
    """Every image that was asked for."""
    asked = event.identifier.get("SOPInstanceUID", "")
    numbers = [i for i in range(IMAGES) if not asked or f"{SERIES}.{i}" in asked]
    yield len(numbers)
    for i in numbers:
        yield 0xFF00, make(i)


def endless_find(event: Any) -> Iterator[tuple[int, pydicom.Dataset]]:
    """Always one more."""
    for i in itertools.count():
        yield 0xFF00, found(event, i)


def wide_find(event: Any) -> Iterator[tuple[int, pydicom.Dataset]]:
    """Answers of ten megabytes each."""
    for i in itertools.count():
        ds = found(event, i)
        ds.TextValue = "x" * 10_000_000
        yield 0xFF00, ds


def endless_get(event: Any) -> Iterator[Any]:
    """One image over and over."""
    yield 65535
    for _ in itertools.count():
        yield 0xFF00, image(0)


def raw(event: Any, write: Callable[[Callable[[bytes], Any]], None]) -> Iterator[Any]:
    """Bytes of ours in place of an answer, by-passing pynetdicom."""
    with suppress(OSError):
        write(event.assoc.dul.socket.socket.sendall)
    event.assoc.abort()
    yield 0


def claim(send: Callable[[bytes], Any]) -> None:
    """A PDU that says it is 4 GB long, and comes."""
    send(struct.pack(">BBL", 4, 0, 0xFFFFFFFF))
    for _ in range(4096):
        send(bytes(1 << 20))


def without_end(send: Callable[[bytes], Any]) -> None:
    """A message whose fragments do not end."""
    body = bytes(1 << 16)
    for _ in itertools.count():
        send(struct.pack(">BBLLBB", 4, 0, len(body) + 6, len(body) + 2, 1, 0) + body)


def slowly(send: Callable[[bytes], Any]) -> None:
    """A PDU byte by byte."""
    send(struct.pack(">BBL", 4, 0, 60000))
    drip(send)


@contextmanager
def dimse(find: Callable[..., Any] = answer_find, get: Callable[..., Any] | None = None) -> Iterator[str]:
    """An application entity that can be asked and gives by C-GET; its address."""
    entity = AE("HOSTILE")
    entity.maximum_pdu_size = 0
    entity.add_supported_context("1.2.840.10008.1.1")
    entity.add_supported_context(FIND)
    entity.add_supported_context(GET)
    syntaxes = [DeflatedExplicitVRLittleEndian] if get is deflated_get else [ExplicitVRLittleEndian]
    entity.add_supported_context(CTImageStorage, syntaxes, scu_role=True, scp_role=True)
    handlers = [(evt.EVT_C_FIND, find), (evt.EVT_C_GET, get or partial(answer_get, make=image))]
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    try:
        yield f"dicom://HOSTILE@127.0.0.1:{server.socket.getsockname()[1]}"
    finally:
        for association in server.active_associations:
            with suppress(OSError, AttributeError):
                association.dul.socket.socket.shutdown(socket.SHUT_RDWR)
        server.shutdown()


def zeros(number: int) -> pydicom.Dataset:
    """An image of 32 MB of zeros, which deflate to a thousandth on the way."""
    ds = image(number)
    ds.Rows = ds.Columns = 4096
    ds.PixelData = bytes(2 * 4096**2)
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    return ds


deflated_get = partial(answer_get, make=zeros)

# Runs a command of slicewise and tells its peak of memory, kB, last.
_COMMAND = """
import atexit, re
atexit.register(lambda: print("\\n" + re.search("VmHWM:\\\\s*([0-9]+)", open("/proc/self/status").read())[1]))
from slicewise.cli import main
main()
"""


def measured(url: str, timeout_s: float, max_image_mb: int) -> tuple[float, float, str]:
    """Seconds, MB at most, and the last line of a `slicewise pull` without retries."""
    flags = ["--study", STUDY, "--timeout-s", str(timeout_s), "--max-image-mb", str(max_image_mb), "--retries", "0"]
    with tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        command = [sys.executable, "-c", _COMMAND, "pull", url, "--out", folder, *flags]
        said = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
        *lines, peak = (line for line in said.replace(folder, "OUT").splitlines() if line.strip())
        return time.monotonic() - begun, int(peak) / 1024, lines[-1].removeprefix(f"slicewise pull: {url}: ")


WEB: dict[str, Callable[[], Any]] = {
    "what was asked for": partial(web, Web),
    "an answer to a search that does not end": partial(web, EndlessAnswer),
    "an answer of 4 MB that is 4 GB decompressed": partial(web, GzipBomb),
    "pages of answers without end": partial(web, EndlessPages),
    "headers that drip": partial(web, DrippingHeaders),
    "an answer that drips": partial(web, DrippingAnswer),
    "an image that drips": partial(web, DrippingImage),
    "an image that does not end": partial(web, EndlessImage),
    "images without end": partial(web, EndlessImages),
    "a deflated image of 512 MB": partial(web, DeflatedBomb),
    "images without pixels": partial(web, NoPixels),
    "images cut short": partial(web, CutPixels),
    "images of another series": partial(web, OtherSeries),
    "JSON nested a million deep": partial(web, NestedAnswer),
}
DIMSE: dict[str, Callable[[], Any]] = {
    "what was asked for": dimse,
    "answers to a search without end": partial(dimse, endless_find),
    "answers of 10 MB each without end": partial(dimse, wide_find),
    "a PDU that claims 4 GB": partial(dimse, partial(raw, write=claim)),
    "a message that does not end": partial(dimse, partial(raw, write=without_end)),
    "an answer that drips": partial(dimse, partial(raw, write=slowly)),
    "an image of 4 GB claimed": partial(dimse, get=partial(raw, write=claim)),
    "an image that does not end": partial(dimse, get=partial(raw, write=without_end)),
    "an image that drips": partial(dimse, get=partial(raw, write=slowly)),
    "images without end": partial(dimse, get=endless_get),
    "a deflated image of 32 MB": partial(dimse, get=deflated_get),
    "images without pixels": partial(dimse, get=partial(answer_get, make=without_pixels)),
    "images cut short": partial(dimse, get=partial(answer_get, make=cut)),
    "images of another series": partial(dimse, get=partial(answer_get, make=partial(image, series="1.2.3.5"))),
}
