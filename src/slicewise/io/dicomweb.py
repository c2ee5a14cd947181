"""A DICOMweb service as a `Peer`: QIDO-RS to search, WADO-RS to retrieve, STOW-RS to store (PS3.18), through
dicomweb-client."""

import json
import logging
import math
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from typing import Any

import pydicom
from pydicom.dataset import Dataset

from slicewise.errors import UserError
from slicewise.io.peer import (
    MOST_ROW_BYTES,
    MOST_ROWS,
    SEARCH_TIMEOUTS,
    Address,
    Credentials,
    Instance,
    PeerSettings,
    PeerUnavailable,
    Query,
    RemoteSeries,
)
from slicewise.io.received import TooMuch, parts

# One request carries so many instances, and bytes, at most: it is held in memory, and is what a cut costs again.
BATCH_INSTANCES, BATCH_BYTES = 32, 32 << 20
# Rows of one answer to a search; services may give fewer.
PAGE = 1000
# Of an answer so much is read at a time, and so much must come within the time-out.
_CHUNK = 1 << 16
# What may pass: request time-out, too many requests, and a server or gateway in trouble.
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


@contextmanager
def connect(address: Address, settings: PeerSettings, credentials: Credentials) -> Iterator["WebPeer"]:
    """A session with a DICOMweb service. Proxies come from the environment, as for every HTTP program."""
    import requests
    from dicomweb_client import DICOMwebClient

    watch = _Watch(settings.timeout_s)

    class Session(requests.Session):
        """One in which `PeerSettings.ca` goes before REQUESTS_CA_BUNDLE, and whose answers are watched."""

        def merge_environment_settings(self, *arguments: Any) -> Any:
            merged = super().merge_environment_settings(*arguments)
            return {**merged, "verify": str(settings.ca)} if settings.ca else merged

        def send(self, request: Any, **options: Any) -> Any:
            with watch if request.method == "GET" else nullcontext():
                return super().send(request, **options)

    for name in ("dicomweb_client", "urllib3", "retrying"):  # they would print what the errors below say better
        logging.getLogger(name).addHandler(logging.NullHandler())
    session: Any = Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, _watched_adapter(watch))
    if credentials.token:
        session.auth = _bearer(credentials.token)
    elif credentials.user:
        session.auth = (credentials.user.encode(), credentials.password.encode())
    if settings.certificate:
        session.cert = (str(settings.certificate), str(settings.key))
    session.headers["Accept"] = "application/dicom+json"  # of STOW-RS; searches and retrieval name their own
    session.hooks["response"].append(_limited(watch))
    client = DICOMwebClient(address.url, session, timeout=settings.timeout_s)
    client.set_http_retry_params(False)
    with session, closing(watch):
        yield WebPeer(address, settings, client, session, watch)


def _bearer(token: str) -> Callable[[Any], Any]:
    """As a requests authentication, which a .netrc does not override and a redirect to another host drops."""

    def sign(request: Any) -> Any:
        request.headers["Authorization"] = f"Bearer {token}"
        return request

    return sign


class _Watch:
    """Cuts connections from which too little comes. The time-outs of sockets hold for one reading each, so that a peer
    that drips, byte by byte, would be waited for forever: in its headers, within a chunk, in the TLS handshake."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s, self._deadline = timeout_s, math.inf
        self._handles: list[socket.socket] = []
        self._closed = threading.Event()
        self.has_cut = False
        threading.Thread(target=self._run, daemon=True).start()

    def add(self, connection: socket.socket) -> None:
        """Watch a connection, by a handle of our own: the socket itself may turn into one of TLS. The last few are
        watched; more are not in use at a time."""
        self._handles.append(connection.dup())
        if len(self._handles) > 4:
            self._handles.pop(0).close()

    def __enter__(self) -> None:
        """From now on something must come within the time-out."""
        self._deadline = time.monotonic() + self._timeout_s

    def __exit__(self, *_: Any) -> None:
        """It came, or is no longer waited for."""
        self._deadline = math.inf

    def _run(self) -> None:
        while not self._closed.wait(min(self._timeout_s / 10, 1.0)):
            if time.monotonic() > self._deadline:
                self.has_cut = True
                for handle in tuple(self._handles):
                    with suppress(OSError):  # closed meanwhile
                        handle.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the watch."""
        self._closed.set()
        for handle in self._handles:
            handle.close()


def _watched_adapter(watch: _Watch) -> Any:
    """An adapter of requests whose connections are watched, through a proxy or not."""
    from requests.adapters import HTTPAdapter

    class Adapter(HTTPAdapter):
        def get_connection_with_tls_context(self, *arguments: Any, **options: Any) -> Any:
            pool = super().get_connection_with_tls_context(*arguments, **options)
            if not hasattr(pool.ConnectionCls, "is_watched"):
                pool.ConnectionCls = watched(pool.ConnectionCls)
            return pool

    def watched(kind: Any) -> Any:
        class Watched(kind):  # type: ignore[misc]
            is_watched = True

            def _new_conn(self) -> socket.socket:
                connection = super()._new_conn()
                watch.add(connection)
                found: socket.socket = connection
                return found

        return Watched

    return Adapter()


def _limited(watch: _Watch) -> Callable[..., None]:
    """A hook of requests: answers are read in small pieces, watched, and up to a limit, as they are once decompressed;
    without one where a multipart message was asked for, whose parts have their own."""
    import requests

    def limit(response: Any, **_: Any) -> None:
        if watch.has_cut:  # headers that end early pass for whole ones
            raise requests.ConnectionError
        chunks = response.iter_content
        most = math.inf if response.request.headers["Accept"].startswith("multipart/") else MOST_ROW_BYTES

        def watched(*_: Any, **__: Any) -> Iterator[bytes]:
            size, stream = 0, chunks(_CHUNK)
            while True:
                piece = bytearray()
                with watch:
                    for chunk in stream:
                        piece += chunk
                        if len(piece) >= _CHUNK:
                            break
                if not piece:
                    return
                size += len(piece)
                if size > most:
                    response.close()
                    raise TooMuch(f"an answer of more than {MOST_ROW_BYTES >> 20} MB")
                yield bytes(piece)

        response.iter_content = watched

    return limit


class WebPeer:
    """A `Peer` over DICOMweb."""

    def __init__(self, address: Address, settings: PeerSettings, client: Any, session: Any, watch: _Watch) -> None:
        self._address, self._settings, self._client = address, settings, client
        self._session, self._watch = session, watch

    def check(self) -> None:
        """See `Peer`."""
        with self._errors():
            self._client.search_for_studies(limit=1)

    def find(self, query: Query) -> list[RemoteSeries]:
        """See `Peer`."""
        filters = {"SeriesInstanceUID": query.series, "Modality": query.modality}
        filters = {key: value for key, value in filters.items() if value}
        with self._errors():
            studies: list[str | None] = [query.study or None]
            if query.patient or query.date:
                asked = {"PatientID": query.patient, "StudyInstanceUID": query.study, "StudyDate": query.date}
                rows = self._rows(self._client.search_for_studies, search_filters={k: v for k, v in asked.items() if v})
                mine = [r for r in rows if query.patient in ("", _value(r, "00100020").strip() or query.patient)]
                studies = list(dict.fromkeys(_value(row, "0020000D") for row in mine))
            rows = [
                row
                for study in studies
                for row in self._rows(
                    self._client.search_for_series, study_instance_uid=study, search_filters=dict(filters)
                )
            ]
            found = [
                RemoteSeries(
                    study=_value(row, "0020000D"),
                    series=_value(row, "0020000E"),
                    modality=_value(row, "00080060"),
                    images=int(_value(row, "00201209") or 0) or None,
                )
                for row in rows
            ]
        return [s for s in found if query.modality in ("", s.modality) and query.series in ("", s.series)]

    def instances(self, study: str, series: str) -> dict[str, str] | None:
        """See `Peer`."""
        with self._errors():
            rows = self._rows(self._client.search_for_instances, study_instance_uid=study, series_instance_uid=series)
            return {_value(row, "00080018"): _value(row, "00080016") for row in rows}

    def store(self, instances: Sequence[Instance], told: Callable[[Instance, str], None]) -> None:
        """See `Peer`."""
        batch: list[Instance] = []
        for instance in instances:
            if batch and (len(batch) == BATCH_INSTANCES or sum(i.size for i in [*batch, instance]) > BATCH_BYTES):
                self._store_batch(batch, told)
                batch = []
            batch.append(instance)
        if batch:
            self._store_batch(batch, told)

    def _store_batch(self, batch: Sequence[Instance], told: Callable[[Instance, str], None]) -> None:
        from requests import HTTPError

        try:
            with self._errors(passing=(400, 409, 413, 415)):
                answer = self._client.store_instances([pydicom.dcmread(i.path) for i in batch])
        except HTTPError as error:
            status = _status(error)
            if status == 413 and len(batch) > 1:  # too much at once for this server
                for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
                    self._store_batch(half, told)
                return
            answer = _answer_of(error.response)
            if "FailedSOPSequence" not in answer:
                for instance in batch:
                    told(instance, f"HTTP status {status}")
                return
        refused = {i.ReferencedSOPInstanceUID: _reason(i) for i in answer.get("FailedSOPSequence") or []}
        stored = {i.ReferencedSOPInstanceUID for i in answer.get("ReferencedSOPSequence") or []}
        for instance in batch:
            silent = instance.uid not in stored and bool(stored or refused)
            told(instance, refused.get(instance.uid, "not acknowledged by the peer" if silent else ""))

    def retrieve(
        self, series: RemoteSeries, wanted: Mapping[str, str], whole: bool, keep: Callable[[bytes], bool]
    ) -> None:
        """See `Peer`."""
        place = f"{self._address.url}/studies/{series.study}/series/{series.series}"
        for url in [place] if whole else [f"{place}/instances/{uid}" for uid in wanted]:
            with self._errors():
                for file in self._files(url):
                    keep(file)

    def _files(self, url: str) -> Iterator[bytes]:
        """The DICOM files of an answer of WADO-RS, as they are there: nothing is decoded and encoded on the way."""
        accept = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
        with self._session.get(url, headers=accept, stream=True, timeout=self._settings.timeout_s) as answer:
            answer.raise_for_status()
            kind = answer.headers.get("Content-Type", "")
            boundary = re.search(r'boundary="?([^";]+)', kind, re.IGNORECASE)
            if not kind.lower().startswith("multipart/related") or boundary is None:
                raise ValueError("no multipart message")
            yield from parts(answer.iter_content(), boundary[1].strip().encode(), self._settings.max_image_mb << 20)

    def _rows(self, search: Callable[..., list[dict[str, Any]]], **arguments: Any) -> list[dict[str, Any]]:
        """All rows of a search, page by page; none where the service knows no such study or series (404: that there is
        a service at all is for `check`). One that does not know `offset` gives the same rows again: the end."""
        from requests import HTTPError

        rows: list[dict[str, Any]] = []
        deadline = time.monotonic() + SEARCH_TIMEOUTS * self._settings.timeout_s
        while True:
            try:
                page = search(limit=PAGE, offset=len(rows), **arguments)
            except HTTPError as error:
                if _status(error) == 404:
                    return rows
                raise
            if not page or page[0] in rows:
                return rows
            rows += page
            if len(rows) > MOST_ROWS or time.monotonic() > deadline:
                raise TooMuch(f"endless answers to one search ({len(rows)} so far)")

    @contextmanager
    def _errors(self, passing: tuple[int, ...] = ()) -> Iterator[None]:
        """What requests and dicomweb-client raise, as our two kinds. Their own texts are not repeated: they can hold
        proxies with passwords. HTTP errors of a status in `passing` go through."""
        import requests

        where = self._address.url
        try:
            yield
        except requests.HTTPError as error:
            status = _status(error)
            if status in passing:
                raise
            raise _http_failure(where, status) from None
        except TooMuch as error:
            raise UserError(f"{where}: sends {error}; nothing more is accepted from it") from None
        except EOFError:
            raise PeerUnavailable("its message ended early") from None
        except (ValueError, ArithmeticError, LookupError, AttributeError, TypeError, RecursionError) as error:
            kind = type(error).__name__
            raise UserError(f"{where}: answers, but not as a DICOMweb service does ({kind}); fix the path") from error
        except requests.RequestException as error:
            if self._watch.has_cut:
                raise PeerUnavailable(
                    f"too little of its answer arrived within {self._settings.timeout_s:g} s"
                ) from None
            causes = list(_causes(error))
            if any(isinstance(c, ssl.SSLCertVerificationError) for c in causes):
                reason = next(c.verify_message for c in causes if isinstance(c, ssl.SSLCertVerificationError))
                raise UserError(
                    f"{where}: its TLS certificate is not trusted ({reason}); give PeerSettings.ca=FILE"
                ) from None
            if any(isinstance(c, ssl.SSLError) and c.reason == "WRONG_VERSION_NUMBER" for c in causes):
                raise UserError(f"{where}: does not speak TLS at this port; fix the port, or use http://") from None
            lookups = [c.errno for c in causes if isinstance(c, socket.gaierror)]
            if socket.EAI_NONAME in lookups:
                raise UserError(f"{where}: no host with that name; fix the address") from None
            if lookups:
                raise PeerUnavailable("the name of its host cannot be looked up") from None
            raise PeerUnavailable(_why(error, causes, self._settings.timeout_s)) from None
        except OSError as error:
            raise PeerUnavailable(error.strerror or type(error).__name__) from None


def _status(error: Any) -> int:
    """The status of a requests.HTTPError."""
    return int(error.response.status_code)


def _http_failure(where: str, status: int) -> Exception:
    """What a status other than success means to the user."""
    if status in _TRANSIENT:
        return PeerUnavailable(f"the server failed or is busy (HTTP status {status})")
    if status in (401, 407):
        who = "the proxy" if status == 407 else "it"
        return UserError(f"{where}: {who} does not accept these credentials (HTTP status {status}); check them")
    if status == 403:
        return UserError(f"{where}: these credentials do not allow that (HTTP status 403); ask for permission")
    if status in (404, 405):
        return UserError(f"{where}: no DICOMweb service there (HTTP status {status}); fix the path of the address")
    return UserError(f"{where}: refused the request (HTTP status {status})")


def _why(error: Exception, causes: Sequence[BaseException], timeout_s: float) -> str:
    """One line on a failed connection, without the texts of libraries."""
    import requests

    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy that the environment names (HTTPS_PROXY, HTTP_PROXY) cannot be used"
    if isinstance(error, requests.Timeout):
        return f"no answer within {timeout_s:g} s"
    told = [c.strerror for c in causes if isinstance(c, OSError) and not isinstance(c, requests.RequestException)]
    return next((text.lower() for text in reversed(told) if text), "the connection was cut")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and all that it was raised from or carries as arguments."""
    todo, seen = [error], set()
    while todo:
        e = todo.pop()
        if id(e) in seen:
            continue
        seen.add(id(e))
        yield e
        linked = [e.__cause__, e.__context__, getattr(e, "reason", None), *e.args]
        todo += [x for x in linked if isinstance(x, BaseException)]


def _value(row: Mapping[str, Any], tag: str) -> str:
    """The first value of an attribute in the DICOM JSON model (PS3.18 F.2), "" where there is none."""
    values = row.get(tag, {}).get("Value") or [""]
    return str(values[0])


def _answer_of(response: Any) -> Dataset:
    """The data set in a STOW-RS answer; empty where there is none."""
    try:
        return Dataset.from_json(json.loads(response.content))
    except (ValueError, TypeError, KeyError, AttributeError):
        return Dataset()


def _reason(item: Dataset) -> str:
    """Failure Reason (0008,1197), PS3.18 table I.2-2."""
    return f"failure reason {int(item.get('FailureReason') or 0):04X}H"
