"""What push and pull make of other systems: addresses, credentials, and services that answer oddly."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pynetdicom import AE, AllStoragePresentationContexts, evt

from slicewise.errors import UserError
from slicewise.io import dicomweb
from slicewise.io.dicom_write import SyntheticOrigin, write_series
from slicewise.io.pacs import pull, push, read_instances
from slicewise.io.peer import (
    Credentials,
    PeerSettings,
    Query,
    check_privacy,
    is_uid,
    parse_address,
    read_credentials,
)
from slicewise.volume import Volume

ONCE = PeerSettings(retries=0, timeout_s=10)
SECRET = "pa55-w0rd"


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four synthetic slices of 16 x 16 pixels."""
    folder = tmp_path_factory.mktemp("peer") / "series"
    hu = np.random.default_rng(0).integers(-1024, 3072, (4, 16, 16)).astype(np.int16)
    origin = SyntheticOrigin("random", "1", seed=0)
    write_series(Volume.regular(hu, (5.0, 1.0, 1.0)), folder, synthetic=origin, patient_id="P1")
    return folder


# Addresses and credentials -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, url, is_web, private",
    [
        ("https://pacs.example/dicom-web/", "https://pacs.example:443/dicom-web", True, True),
        ("http://127.0.0.1:8042/dicom-web", "http://127.0.0.1:8042/dicom-web", True, True),
        ("http://pacs:8042", "http://pacs:8042", True, False),
        ("dicom://ORTHANC@pacs", "dicom://ORTHANC@pacs:104", False, False),
        ("dicom://a.b-c_1@[::1]:11112", "dicom://a.b-c_1@[::1]:11112", False, True),
        ("dicoms://PACS@localhost", "dicoms://PACS@localhost:2762", False, True),
    ],
)
def test_addresses(text, url, is_web, private):
    address = parse_address(text)
    assert (address.url, address.is_web, address.is_private) == (url, is_web, private)
    assert parse_address(address.url) == address


@pytest.mark.parametrize(
    "text",
    ["", "pacs", "ftp://pacs/x", "dicom://pacs:104", "dicom://@pacs", "dicom://A-TITLE-TOO-LONG-BY-FAR@pacs", "https://",
     "https://pacs:notaport/", "dicom://A B@pacs", "http://[::1/x", f"https://me:{SECRET}@pacs/x",
     f"dicom://AET:{SECRET}@pacs", f"https://{SECRET}@pacs/x", f"https://pacs/x?token={SECRET}", f"me:{SECRET}@pacs"],
)  # fmt: skip
def test_bad_addresses_are_one_line_without_secrets(text):
    with pytest.raises(UserError) as info:
        parse_address(text)
    assert "\n" not in str(info.value)
    assert SECRET not in str(info.value)


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_no_text_as_an_address_does_more_than_be_refused(text):
    try:
        address = parse_address(text)
        assert address.host
        assert 0 < address.port < 65536
    except UserError as error:
        assert "\n" not in str(error) or "\n" in text


def test_credentials_come_from_a_file_or_the_environment(tmp_path):
    assert read_credentials(None, {}) == Credentials()
    env = {"SLICEWISE_PACS_USER": "me", "SLICEWISE_PACS_PASSWORD": SECRET}
    assert read_credentials(None, env) == Credentials("me", SECRET)
    assert SECRET not in repr(read_credentials(None, env))
    file = tmp_path / "credentials.toml"
    file.write_text(f'token = "{SECRET}"\n')
    file.chmod(0o600)
    assert read_credentials(file, env) == Credentials(token=SECRET)


@pytest.mark.parametrize(
    "text, mode, what",
    [
        (f'user = "me"\npassword = "{SECRET}"', 0o644, "others can read it; run chmod 600"),
        (f'user = "me"\npassword = {SECRET}', 0o600, "not TOML"),
        (f'pass = "{SECRET}"', 0o600, "expected strings named"),
        (f'password = "{SECRET}"', 0o600, "go together"),
        ("password = 3", 0o600, "expected strings named"),
        (f'user = "me"\npassword = "{SECRET}"\ntoken = "{SECRET}"', 0o600, "both user and token"),
        (f'token = "{SECRET}\\n"', 0o600, "control characters"),
    ],
)
def test_bad_credentials_are_one_line_without_secrets(text, mode, what, tmp_path):
    file = tmp_path / "credentials.toml"
    file.write_text(text)
    file.chmod(mode)
    with pytest.raises(UserError, match=what) as info:
        read_credentials(file, {})
    assert "\n" not in str(info.value)
    assert SECRET not in str(info.value)


def test_credentials_do_not_cross_a_network_in_clear():
    given = Credentials("me", SECRET)
    for text in ("http://pacs/x", "dicom://AET@pacs", "http://192.168.1.2/x"):
        with pytest.raises(UserError, match=r"in clear text; use (https|dicoms)://"):
            check_privacy(parse_address(text), given)
        check_privacy(parse_address(text), Credentials())
    for text in ("https://pacs/x", "dicoms://AET@pacs", "http://127.0.0.1/x", "dicom://AET@[::1]"):
        check_privacy(parse_address(text), given)


@pytest.mark.parametrize(
    "given_settings, what",
    [
        ({"ae_title": "WITH BLANK"}, "PeerSettings.ae_title="),
        ({"retries": -1}, "retries=-1"),
        ({"timeout_s": 0}, "timeout_s=0"),
        ({"receive_port": 70000}, "receive_port=70000"),
        ({"ca": Path("absent.pem")}, "ca=absent.pem"),
        ({"certificate": Path(__file__)}, "go together"),
        ({"ca": Path(__file__)}, "no certificate in it"),
    ],
)
def test_bad_settings(given_settings, what):
    with pytest.raises(UserError, match=what):
        PeerSettings(**given_settings)


@pytest.mark.parametrize(
    "query, what",
    [({}, "say what to pull"), ({"study": "../x"}, "not a DICOM UID"), ({"series": "1." * 40 + "1"}, "not a DICOM UID"),
     ({"date": "2020-01-01"}, "YYYYMMDD"), ({"patient": "a\\b"}, "backslash")],
)  # fmt: skip
def test_bad_queries(query, what):
    with pytest.raises(UserError, match=what):
        Query(**query)


# What is sent ------------------------------------------------------------------------------------------------------


def test_only_whole_dicom_files_are_read_to_be_sent(series, tmp_path):
    names = sorted(series.iterdir())
    (tmp_path / "sub").mkdir()
    for n, file in enumerate(names):
        (tmp_path / "sub" / f"{n}.dcm").write_bytes(file.read_bytes())
    (tmp_path / "again.dcm").write_bytes(names[0].read_bytes())
    (tmp_path / "notes.txt").write_text("no DICOM")
    (tmp_path / "junk.dcm").write_text("no DICOM")
    (tmp_path / "sub" / "3.dcm").write_bytes(names[3].read_bytes()[:-20])
    ds = pydicom.dcmread(names[2])
    del ds.StudyInstanceUID
    ds.save_as(tmp_path / "sub" / "2.dcm")
    found, skipped = read_instances([tmp_path])
    assert [Path(i.path).name for i in found] == ["again.dcm", "1.dcm"]
    reasons = {Path(entry.source).name: entry.reason for entry in skipped}
    assert reasons.keys() == {"junk.dcm", "3.dcm", "2.dcm", "0.dcm"}
    assert "truncated" in reasons["3.dcm"]
    assert "same SOP Instance UID" in reasons["0.dcm"]
    assert "missing" in reasons["2.dcm"]
    with pytest.raises(UserError, match="no DICOM file to push here"):
        push([tmp_path / "notes.txt"], "http://127.0.0.1:9")


# A DICOMweb service that answers oddly -----------------------------------------------------------------------------

Answer = tuple[int, str, bytes]
JSON = "application/dicom+json"


@contextmanager
def service(answer: Callable[[str, str, bytes, dict[str, str]], Answer]) -> Iterator[str]:
    """A service whose answers (status, type, body) come from `answer(method, path, body, headers)`; its address."""

    class Handler(BaseHTTPRequestHandler):
        def handle_one(self, method: str) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            status, kind, content = answer(method, self.path, body, dict(self.headers))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            if kind.startswith("multipart"):
                self.close_connection = True  # no length: the end of the connection is the end of the message
            else:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            self.handle_one("GET")

        def do_POST(self) -> None:
            self.handle_one("POST")

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/dicom-web"
    finally:
        server.shutdown()
        server.server_close()


def rows(*found: dict[str, str]) -> Answer:
    """An answer to a search."""
    shown = [{tag: {"vr": "UI", "Value": [value]} for tag, value in row.items()} for row in found]
    return 200, JSON, json.dumps(shown).encode()


def page_of(path: str, *found: dict[str, str]) -> Answer:
    """An answer to a search that honours `offset`."""
    return rows(*(() if "offset=" in path and "offset=0" not in path else found))


def uids_in(body: bytes) -> list[str]:
    """SOP Instance UIDs of the DICOM files in a STOW-RS request."""
    parts = body.split(b"\r\n\r\n")[1:]
    return [pydicom.dcmread(pydicom.filebase.DicomBytesIO(part)).SOPInstanceUID for part in parts]


def stored(uids: list[str], failed: dict[str, int] | None = None) -> bytes:
    """The body of a STOW-RS answer."""
    ds = pydicom.Dataset()
    for name, sequence in (("ReferencedSOPSequence", {u: 0 for u in uids}), ("FailedSOPSequence", failed or {})):
        items = []
        for uid, reason in sequence.items():
            item = pydicom.Dataset()
            item.ReferencedSOPInstanceUID = uid
            if reason:
                item.FailureReason = reason
            items.append(item)
        if items:
            setattr(ds, name, items)
    return ds.to_json().encode()


def test_a_busy_server_is_asked_again_and_a_broken_one_given_up(series):
    for failures, done in ((3, True), (99, False)):
        left = [failures]

        def answer(method, path, body, headers, left=left):
            if method == "GET":
                return rows()
            left[0] -= 1
            return (503, "text/html", b"busy") if left[0] >= 0 else (200, JSON, stored(uids_in(body)))

        with service(answer) as url:
            patient = PeerSettings(retries=3, backoff_s=0.001)
            if done:
                assert len(push([series], url, patient).sent) == 4
            else:
                with pytest.raises(
                    UserError, match=r"server failed or is busy \(HTTP status 503\); run it again later"
                ):
                    push([series], url, patient)
                assert left[0] == 99 - 4


def test_refused_instances_are_named_and_the_rest_is_stored(series):
    files = sorted(series.iterdir())
    bad = pydicom.dcmread(files[1]).SOPInstanceUID
    seen: list[str] = []

    def answer(method, path, body, headers):
        if method == "GET":
            return rows()
        seen.extend(uids_in(body))
        return 409, JSON, stored([u for u in seen if u != bad], {bad: 0x0110})

    with service(answer) as url, pytest.raises(UserError) as info:
        push([series], url, ONCE)
    assert f"refused 1 of 4 files, the first {files[1]} (failure reason 0110H)" in str(info.value)
    assert len(seen) == 4


def test_a_server_that_takes_little_at_once_gets_little(series):
    sizes = []

    def answer(method, path, body, headers):
        if method == "GET":
            return rows()
        sizes.append(len(uids_in(body)))
        return (413, "text/html", b"") if sizes[-1] > 1 else (200, JSON, stored(uids_in(body)))

    with service(answer) as url:
        assert len(push([series], url, ONCE).sent) == 4
    assert sizes == [4, 2, 1, 1, 2, 1, 1]


def test_batches_stay_small(series, monkeypatch):
    monkeypatch.setattr(dicomweb, "BATCH_INSTANCES", 3)
    sizes = []

    def answer(method, path, body, headers):
        if method == "GET":
            return rows()
        sizes.append(len(uids_in(body)))
        return 200, JSON, stored(uids_in(body))

    with service(answer) as url:
        push([series], url, ONCE)
    assert sizes == [3, 1]


def test_a_token_is_sent_and_shown_nowhere(series, monkeypatch, caplog):
    caplog.set_level("DEBUG")
    monkeypatch.setenv("SLICEWISE_PACS_TOKEN", SECRET)
    sent = []

    def answer(method, path, body, headers):
        sent.append(headers.get("Authorization"))
        return rows() if method == "GET" else (200, JSON, stored(uids_in(body)))

    with service(answer) as url:
        push([series], url, ONCE)
    assert set(sent) == {f"Bearer {SECRET}"}
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    "status, kind, body, what",
    [
        (200, "text/html", b"<html>login</html>", "answers, but not as a DICOMweb service"),
        (200, JSON, b'[{"0020000D": 3}]', "answers, but not as a DICOMweb service"),
        (200, JSON, b'["text"]', "answers, but not as a DICOMweb service"),
        (403, "text/html", b"", "do not allow that"),
        (404, "text/html", b"", "no DICOMweb service there"),
        (418, "text/html", b"", "HTTP status 418"),
    ],
)
def test_odd_answers_to_a_search_are_one_line(status, kind, body, what, tmp_path):
    with service(lambda *_: (status, kind, body)) as url, pytest.raises(UserError, match=what) as info:
        pull(url, Query(patient="x"), tmp_path / "out", ONCE)
    assert "\n" not in str(info.value)
    assert not (tmp_path / "out").exists()


def test_a_server_that_does_not_page_does_not_hang(tmp_path):
    row = {"0020000D": "1.2.3", "0020000E": "1.2.3.4", "00080060": "CT"}
    with service(lambda *_: rows(row)) as url:
        report = pull(url, Query(study="1.2.3"), tmp_path, ONCE, dry_run=True)
    assert [s.series for s in report.series] == ["1.2.3.4"]


@pytest.mark.parametrize("tag, value", [("0020000E", "../../evil"), ("0020000D", "/etc"), ("00080018", "..")])
def test_names_from_a_server_cannot_leave_the_folder(tag, value, tmp_path):
    def answer(method, path, body, headers):
        row = {"0020000D": "1.2.3", "0020000E": "1.2.3.4", "00080060": "CT", "00080018": "1.2.3.4.5"}
        return page_of(path, {**row, tag: value})

    with service(answer) as url, pytest.raises(UserError, match=r"gives an invalid UID for .*; nothing is pulled"):
        pull(url, Query(study="1.2.3"), tmp_path / "out", ONCE)
    assert not (tmp_path / "out").exists()


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=70))
def test_a_uid_is_a_safe_name(text):
    if is_uid(text):
        assert Path("folder", text).parent == Path("folder")
        assert text not in (".", "..")


def wado(files: list[bytes]) -> bytes:
    """The body of a WADO-RS answer with the boundary "b"."""
    parts = (b"\r\n--b\r\nContent-Type: application/dicom\r\n\r\n" + file for file in files)
    return b"".join(parts) + b"\r\n--b--"


@pytest.mark.parametrize("cut", [1, 200, 700])
def test_a_message_that_ends_early_leaves_whole_files_only(series, tmp_path, cut):
    files = sorted(series.iterdir())
    headers_ = [pydicom.dcmread(f) for f in files]
    study, one = headers_[0].StudyInstanceUID, headers_[0].SeriesInstanceUID
    whole = wado([f.read_bytes() for f in files])

    def answer(method, path, body, headers):
        if "/instances" in path and "?" not in path:
            (file,) = (f for f, ds in zip(files, headers_) if path.endswith(ds.SOPInstanceUID))
            return 200, 'multipart/related; type="application/dicom"; boundary=b', wado([file.read_bytes()])
        if path.endswith(one):
            return 200, 'multipart/related; type="application/dicom"; boundary=b', whole[: -cut - 7]
        row = {"0020000D": study, "0020000E": one, "00080060": "CT"}
        if "/instances" in path:
            return page_of(path, *({**row, "00080018": ds.SOPInstanceUID} for ds in headers_))
        return page_of(path, row)

    with service(answer) as url:
        with pytest.raises(UserError, match="run it again"):
            pull(url, Query(study=study), tmp_path, ONCE)
        kept = [p for p in tmp_path.rglob("*") if p.is_file()]
        assert len(kept) == 3
        assert all(p.parent.name == f".{one}.partial" for p in kept)
        assert pull(url, Query(study=study), tmp_path, ONCE).fetched == 1
    pulled = {p.name: pydicom.dcmread(p) for p in (tmp_path / study / one).iterdir()}
    assert pulled == {f"{ds.SOPInstanceUID}.dcm": ds for ds in headers_}


def test_what_another_series_sends_is_refused(series, tmp_path):
    file = next(series.iterdir())
    row = {"0020000D": "1.2.3", "0020000E": "1.2.3.4", "00080060": "CT", "00080018": "1.2.3.4.5"}

    def answer(method, path, body, headers):
        if path.endswith("1.2.3.4"):
            return 200, 'multipart/related; type="application/dicom"; boundary=b', wado([file.read_bytes()])
        return page_of(path, row)

    with service(answer) as url, pytest.raises(UserError, match="of another series than the one asked for"):
        pull(url, Query(study="1.2.3"), tmp_path, ONCE)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


# A DIMSE peer that knows its users, and one that only stores -------------------------------------------------------


@contextmanager
def storage(handlers: list) -> Iterator[str]:
    """A Storage SCP that takes no queries; its address."""
    entity = AE("STORE")
    entity.supported_contexts = AllStoragePresentationContexts
    entity.add_supported_context("1.2.840.10008.1.1")
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    try:
        yield f"dicom://STORE@127.0.0.1:{server.socket.getsockname()[1]}"
    finally:
        server.shutdown()


def test_user_identity_is_negotiated(series, monkeypatch):
    given, got = [], []

    def on_identity(event):
        given.append((event.user_id_type, event.primary_field, event.secondary_field))
        return event.secondary_field == SECRET.encode() or event.primary_field == b"token", None

    def on_store(event):
        got.append(event.request.AffectedSOPInstanceUID)
        return 0x0000

    with storage([(evt.EVT_USER_ID, on_identity), (evt.EVT_C_STORE, on_store)]) as url:
        monkeypatch.setenv("SLICEWISE_PACS_USER", "me")
        monkeypatch.setenv("SLICEWISE_PACS_PASSWORD", "wrong")
        with pytest.raises(UserError, match="rejects the association") as info:
            push([series], url, ONCE)
        assert "wrong" not in str(info.value)
        assert not got
        monkeypatch.setenv("SLICEWISE_PACS_PASSWORD", SECRET)
        report = push([series], url, ONCE)
        assert len(report.sent) == len(got) == 4
        assert not report.can_be_asked
        monkeypatch.delenv("SLICEWISE_PACS_USER")
        monkeypatch.delenv("SLICEWISE_PACS_PASSWORD")
        monkeypatch.setenv("SLICEWISE_PACS_TOKEN", "token")
        push([series], url, ONCE)
    assert set(given) == {(2, b"me", b"wrong"), (2, b"me", SECRET.encode()), (5, b"token", b"")}
    with storage([]) as url, pytest.raises(UserError, match="does not answer queries"):
        pull(url, Query(patient="P1"), Path("unused"), ONCE)


def test_a_store_that_refuses_or_runs_full(series):
    files = sorted(series.iterdir())
    bad = pydicom.dcmread(files[2]).SOPInstanceUID
    full = [2]

    def on_store(event):
        if event.request.AffectedSOPInstanceUID == bad:
            return 0xC000
        full[0] -= 1
        return 0xA700 if full[0] >= 0 else 0xB000

    patient = PeerSettings(retries=2, backoff_s=0.001, timeout_s=10)
    with storage([(evt.EVT_C_STORE, on_store)]) as url:
        with pytest.raises(UserError, match=rf"refused 1 of 4 files, the first {files[2]} \(status C000H\)"):
            push([series], url, patient)
        full[0] = 99
        with pytest.raises(UserError, match="out of resources"):
            push([files[0]], url, patient)
