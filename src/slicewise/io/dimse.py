"""A DIMSE application entity as a `Peer`: C-ECHO, C-FIND, C-STORE, C-GET and C-MOVE (PS3.4, PS3.7), through
pynetdicom."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

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

VERIFICATION = "1.2.840.10008.1.1"
# Study Root Query/Retrieve Information Model (PS3.4 C.6.2).
FIND, MOVE, GET = (f"1.2.840.10008.5.1.4.1.2.2.{n}" for n in (1, 2, 3))
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
PLAIN: list[str] = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
# A presentation context settles on one transfer syntax; a peer that does not transcode needs one for each it stores.
RECEIVED: list[list[str]] = [
    PLAIN, [JPEGLSLossless], [JPEG2000Lossless], [RLELossless], [JPEGLosslessSV1], [JPEGLossless],
    [JPEGLSNearLossless], [JPEG2000], [JPEGBaseline8Bit], [JPEGExtended12Bit], [DeflatedExplicitVRLittleEndian],
    [ExplicitVRBigEndian],
]  # fmt: skip
# Presentation contexts of one association (PS3.8 9.3.2.2: odd identifiers of one byte).
MOST_CONTEXTS = 128
# Instances that one image-level C-GET or C-MOVE names.
LIST_LENGTH = 64
# The longest PDU that we let peers send, and take, bytes (PS3.8 D.1.1).
LONGEST_PDU = 1 << 20
# Messages that wait to be read; a peer that sends more meanwhile waits, too.
_MOST_WAITING = 2
# Statuses of C-STORE and C-GET for want of resources (PS3.4 B.2.3, C.4.2.1.5): they may pass.
_OUT_OF_RESOURCES = range(0xA700, 0xA800)


@contextmanager
def connect(address: Address, settings: PeerSettings, credentials: Credentials) -> Iterator["DimsePeer"]:
    """A peer that opens an association for each thing asked of it, and leaves none open."""
    import pynetdicom

    # Its logs, where a program turns them on, hold data sets with names, and user identities.
    pynetdicom._config.LOG_HANDLER_LEVEL = "none"
    pynetdicom._config.LOG_REQUEST_IDENTIFIERS = pynetdicom._config.LOG_RESPONSE_IDENTIFIERS = False
    pynetdicom._config.STORE_SEND_CHUNKED_DATASET = True  # a file goes out as it is, neither decoded nor held
    yield DimsePeer(address, settings, credentials)


class DimsePeer:
    """A `Peer` over DIMSE, Study Root information model."""

    def __init__(self, address: Address, settings: PeerSettings, credentials: Credentials) -> None:
        self._address, self._settings, self._credentials = address, settings, credentials
        self._excess = ""  # what the peer sent too much of
        self._heard = 0.0  # when it last sent something that was asked for, s

    def check(self) -> None:
        """See `Peer`."""
        with self._association([(VERIFICATION, PLAIN)]) as association:
            status = association.send_c_echo()
            self._status(status, "C-ECHO")

    def find(self, query: Query) -> list[RemoteSeries]:
        """See `Peer`."""
        with self._errors():
            return self._matching(query)

    def _matching(self, query: Query) -> list[RemoteSeries]:
        if query.series and not (query.study or query.patient or query.date):
            studies = [Dataset()]  # allowed to a peer that knows relational queries (PS3.4 C.4.1.2.2)
        else:
            asked = _keys("STUDY", PatientID=query.patient, StudyInstanceUID=query.study, StudyDate=query.date)
            studies = [row for row in self._asked(asked) if _is_patient(row, query.patient)]
        found: list[RemoteSeries] = []
        for study in studies:
            uid = str(study.get("StudyInstanceUID", ""))
            asked = _keys("SERIES", StudyInstanceUID=uid, SeriesInstanceUID=query.series, Modality=query.modality)
            asked.NumberOfSeriesRelatedInstances = None
            for row in self._asked(asked):
                images = row.get("NumberOfSeriesRelatedInstances")
                found.append(
                    RemoteSeries(
                        study=str(row.get("StudyInstanceUID", uid)) or uid,
                        series=str(row.get("SeriesInstanceUID", "")),
                        modality=str(row.get("Modality", "")),
                        images=None if images is None else int(images),
                    )
                )
        return [s for s in found if query.modality in ("", s.modality) and query.series in ("", s.series)]

    def instances(self, study: str, series: str) -> dict[str, str] | None:
        """See `Peer`."""
        with self._errors():
            rows = self._find(_keys("IMAGE", StudyInstanceUID=study, SeriesInstanceUID=series, SOPClassUID=""))
            if rows is None:
                return None
            return {str(row.SOPInstanceUID): str(row.get("SOPClassUID", "")) or CT_IMAGE for row in rows}

    def store(self, instances: Sequence[Instance], told: Callable[[Instance, str], None]) -> None:
        """See `Peer`."""
        kinds = dict.fromkeys((i.sop_class, i.syntax) for i in instances)
        contexts: list[tuple[str, list[str]]] = [(kind, [syntax]) for kind, syntax in kinds]
        contexts += [(kind, PLAIN) for kind in dict.fromkeys(i.sop_class for i in instances)]
        with self._association(contexts) as association:
            accepted = {(c.abstract_syntax, c.transfer_syntax[0]) for c in association.accepted_contexts}
            for number, instance in enumerate(instances):
                what: Any = instance.path
                if (instance.sop_class, instance.syntax) not in accepted:
                    if not any(kind == instance.sop_class for kind, _ in accepted):
                        told(instance, f"the peer does not accept {UID(instance.sop_class).name}")
                        continue
                    what = _uncompressed(instance)
                self._check_open(association)
                try:
                    status = association.send_c_store(what, msg_id=message_id(number))
                except RuntimeError:  # the peer aborted between the check and now
                    raise PeerUnavailable("the peer closed the association") from None
                told(instance, self._refusal(status))

    def retrieve(
        self, series: RemoteSeries, wanted: Mapping[str, str], whole: bool, keep: Callable[[bytes], bool]
    ) -> None:
        """See `Peer`."""
        from pynetdicom import evt

        problems: list[Exception] = []
        missing = dict(wanted)
        lock = threading.Lock()

        def on_store(event: Any) -> int:
            uid = str(event.request.AffectedSOPInstanceUID)
            try:
                with lock:
                    if not keep(event.encoded_dataset()):
                        return 0xC000
                    missing.pop(uid, None)
                    self._heard = time.monotonic()
            except Exception as error:  # it must reach the caller, through a thread that is not his
                problems.append(error)
                event.assoc.abort()  # or a peer could continue forever
                event.assoc.dimse.msg_queue.put((None, None))  # who waits for an answer would wait the whole time-out
                return 0xA700
            return 0x0000

        kinds = list(dict.fromkeys(wanted.values()))
        handlers = [(evt.EVT_C_STORE, on_store)]
        try:
            if self._settings.receive_port:
                self._move(_identifiers(series, missing, whole), kinds, handlers)
                return
            self._get(_identifiers(series, missing, whole), kinds, RECEIVED, handlers)
            if missing and not problems:
                # Some peers send over the first context of the kind, be its transfer syntax the file's or not.
                self._get(_identifiers(series, missing, False), kinds, RECEIVED[1:], handlers)
        except UserError:
            if 0 < len(missing) < len(wanted):
                # It takes such requests, as it had begun: Orthanc ends a C-MOVE so (C000H) whose association was cut.
                raise PeerUnavailable(f"the peer stopped after {len(wanted) - len(missing)} images") from None
            raise
        finally:
            if problems:
                raise problems[0]

    def _get(
        self, asked: Sequence[Dataset], kinds: Sequence[str], syntaxes: Sequence[list[str]], handlers: Sequence[Any]
    ) -> None:
        """C-GET: what is sent comes over the association that asks for it."""
        from pynetdicom import build_role

        contexts = [(GET, PLAIN)]
        contexts += [(kind, each) for kind in kinds for each in syntaxes][: MOST_CONTEXTS - 1]
        roles = [build_role(kind, scp_role=True) for kind in kinds]
        with self._association(contexts, roles, [*handlers, *self._limits()]) as association:
            if not any(c.abstract_syntax == GET for c in association.accepted_contexts):
                raise UserError(
                    f"{self._address.url}: does not accept C-GET; to use C-MOVE, give PeerSettings.receive_port and "
                    f"register our title {self._settings.ae_title} at the peer"
                )
            for keys in asked:
                for status, _ in self._bounded(association.send_c_get(keys, GET)):
                    self._retrieve_status(status, "C-GET")

    def _move(self, asked: Sequence[Dataset], kinds: Sequence[str], handlers: Sequence[Any]) -> None:
        """C-MOVE: the peer opens associations to us, at the address it has on record for our title."""
        receiver = self._entity()
        receiver.require_called_aet = True
        receiver.supported_contexts = []
        for kind in kinds:
            receiver.add_supported_context(kind, [syntax for syntaxes in RECEIVED for syntax in syntaxes])
        where = (self._settings.receive_host, self._settings.receive_port)
        tls = self._server_tls() if self._address.scheme == "dicoms" else None
        try:
            every = [*handlers, *self._limits()]
            server = receiver.start_server(where, block=False, evt_handlers=every, ssl_context=tls)
        except OSError as error:
            raise UserError(
                f"PeerSettings.receive_port={where[1]}: cannot listen on {where[0]} ({error.strerror}); choose another"
            ) from None
        with ExitStack() as stack:
            stack.callback(server.shutdown)
            association = stack.enter_context(self._association([(MOVE, PLAIN)]))
            if not association.accepted_contexts:
                raise UserError(
                    f"{self._address.url}: does not accept C-MOVE; leave out PeerSettings.receive_port to use C-GET"
                )
            for keys in asked:
                for status, _ in self._bounded(association.send_c_move(keys, self._settings.ae_title, MOVE)):
                    if status and status.Status == 0xA801:
                        raise UserError(
                            f"{self._address.url}: does not know our AE title {self._settings.ae_title} as a C-MOVE "
                            f"destination; register it there with this host and port {where[1]}"
                        )
                    self._retrieve_status(status, f"C-MOVE to {self._settings.ae_title}, which it may not know")

    def _find(self, keys: Dataset) -> list[Dataset] | None:
        """The answers to a C-FIND; None where the peer takes none."""
        rows = []
        with self._association([(FIND, PLAIN)]) as association:
            if not association.accepted_contexts:
                return None
            for status, identifier in self._bounded(association.send_c_find(keys, FIND)):
                self._status(status, f"C-FIND at {keys.QueryRetrieveLevel} level")
                if identifier is not None:
                    rows.append(identifier)
        return rows

    def _bounded(self, answers: Iterable[Any]) -> Iterator[Any]:
        """The answers to one request, up to a number, and a time since it was made or the last image came."""
        self._heard = time.monotonic()
        for count, answer in enumerate(answers):
            if count > MOST_ROWS or time.monotonic() - self._heard > SEARCH_TIMEOUTS * self._settings.timeout_s:
                raise self._too_much(f"endless answers to one request ({count} so far)")
            yield answer

    def _too_much(self, what: str) -> UserError:
        return UserError(f"{self._address.url}: sends {what}; nothing more is accepted from it")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """What pydicom raises on answers that make no sense, as one line."""
        try:
            yield
        except (ValueError, ArithmeticError, LookupError, AttributeError, TypeError, RecursionError) as error:
            kind = type(error).__name__
            raise UserError(f"{self._address.url}: its answers to a query are invalid ({kind})") from error

    def _asked(self, keys: Dataset) -> list[Dataset]:
        """The answers to a C-FIND without which nothing can be pulled."""
        rows = self._find(keys)
        if rows is None:
            raise UserError(f"{self._address.url}: does not answer queries (C-FIND), so nothing can be pulled from it")
        return rows

    def _status(self, status: Dataset, what: str) -> int:
        """A status code; raises for an answer that did not come, and for failures."""
        code = self._answered(status)
        if code in _OUT_OF_RESOURCES:
            raise PeerUnavailable(f"the peer is out of resources (status {code:04X}H)")
        if code not in (0x0000, 0xFF00, 0xFF01) and code >> 12 != 0xB:
            comment = "".join(c for c in str(status.get("ErrorComment", "")) if c.isprintable()).strip()
            raise UserError(
                f"{self._address.url}: does not accept our {what} (status "
                f"{code:04X}H{': ' if comment else ''}{comment})"
            )
        return code

    def _retrieve_status(self, status: Dataset, what: str) -> None:
        """As `_status`; single instances that failed (A702H, B000H) show in what did not come."""
        if self._answered(status) != 0xA702:
            self._status(status, what)

    def _refusal(self, status: Dataset) -> str:
        """Why an instance was refused; "" where it was stored."""
        code = self._answered(status)
        if code in _OUT_OF_RESOURCES:
            raise PeerUnavailable(f"the peer is out of resources (status {code:04X}H)")
        return "" if is_stored(code) else f"status {code:04X}H"

    def _answered(self, status: Dataset) -> int:
        if self._excess:
            raise self._too_much(self._excess)
        if "Status" not in status:
            raise PeerUnavailable(f"the connection was cut, or no answer within {self._settings.timeout_s:g} s")
        return int(status.Status)

    def _check_open(self, association: Any) -> None:
        if not association.is_established:
            raise PeerUnavailable("the peer closed the association")

    def _entity(self) -> Any:
        from pynetdicom import AE

        entity = AE(self._settings.ae_title)
        entity.acse_timeout = entity.dimse_timeout = entity.connection_timeout = self._settings.timeout_s
        entity.network_timeout = self._settings.timeout_s
        entity.maximum_pdu_size = LONGEST_PDU
        return entity

    @contextmanager
    def _association(
        self, contexts: Sequence[tuple[str, list[str]]], roles: Sequence[Any] = (), handlers: Sequence[Any] = ()
    ) -> Iterator[Any]:
        """An open association; released at the end, aborted on an error."""
        from pynetdicom import build_context, evt
        from pynetdicom.pdu import A_ASSOCIATE_RJ

        rejections: list[A_ASSOCIATE_RJ] = []

        def on_pdu(event: Any) -> None:
            """Note a rejection: of one that comes and closes at once, pynetdicom sees but the closed connection."""
            if isinstance(event.pdu, A_ASSOCIATE_RJ):
                rejections.append(event.pdu)

        address = self._address
        try:
            socket.getaddrinfo(address.host, address.port)
        except socket.gaierror as error:
            if error.errno == socket.EAI_NONAME:
                raise UserError(f"{address.url}: no host with that name; fix the address") from None
            raise PeerUnavailable("the name of its host cannot be looked up") from None
        association = self._entity().associate(
            address.host,
            address.port,
            contexts=[build_context(kind, syntaxes) for kind, syntaxes in contexts],
            ae_title=address.ae_title,
            max_pdu=LONGEST_PDU,
            ext_neg=[*roles, *self._identity()],
            tls_args=(self._client_tls(), address.host) if address.scheme == "dicoms" else None,
            evt_handlers=[
                *(handlers or self._limits(MOST_ROW_BYTES)),
                (evt.EVT_PDU_RECV, on_pdu),
                (evt.EVT_CONN_OPEN, _unbuffered),
                (evt.EVT_DATA_SENT, _acknowledge_at_once),
            ],
        )
        association.unbind(evt.EVT_PDU_RECV, on_pdu)
        _leave_answers_to_the_asker(association)
        if not association.is_established:
            if self._excess:
                raise self._too_much(self._excess)
            if rejections:
                raise self._rejected(rejections[0])
            if association.acceptor.primitive is None:
                raise self._not_connected()
            yield association  # the peer answered and took none of the contexts: what that means is for the caller
            return
        try:
            yield association
        except BaseException:
            association.abort()
            raise
        association.release()

    def _limits(self, most_in_all: int = 0) -> list[Any]:
        """Handlers by which an association takes no PDU and no message that is longer than it may be, or that does not
        come within the time-out, and no more messages than are read; or so many bytes `most_in_all`. pynetdicom takes
        what a peer claims."""
        from pynetdicom import evt

        most = most_in_all or self._settings.max_image_mb << 20
        sizes: dict[Any, int] = {}

        def on_open(event: Any) -> None:
            association, transport = event.assoc, event.assoc.dul.socket

            def recv(count: int) -> bytearray:
                deadline = time.monotonic() + self._settings.timeout_s
                while association.dimse.msg_queue.qsize() > _MOST_WAITING and time.monotonic() < deadline:
                    time.sleep(0.0005)
                sizes[association] = sizes.get(association, 0) + count
                if count > LONGEST_PDU + 6:
                    self._excess = f"a PDU of {count >> 20} MB where {LONGEST_PDU >> 20} MB was agreed on"
                elif sizes[association] > most:
                    what = "answers" if most_in_all else "an image"
                    self._excess = (
                        f"{what} of more than {most >> 20} MB{'' if most_in_all else ' (PeerSettings.max_image_mb)'}"
                    )
                if self._excess:
                    raise OSError(self._excess)
                got = bytearray()
                while len(got) < count:
                    if time.monotonic() > deadline:
                        raise TimeoutError
                    transport.socket.settimeout(max(deadline - time.monotonic(), 0.001))
                    if not (piece := transport.socket.recv(count - len(got))):
                        break
                    got += piece
                transport.socket.settimeout(self._settings.timeout_s)
                return got

            transport.recv = recv

        def on_message(event: Any) -> None:
            sizes[event.assoc] = 0

        return [(evt.EVT_CONN_OPEN, on_open), *([] if most_in_all else [(evt.EVT_DIMSE_RECV, on_message)])]

    def _rejected(self, answer: Any) -> Exception:
        """What an A-ASSOCIATE-RJ (PS3.8 9.3.4) means to the user."""
        # PS3.7 D.3.3.7.3: refused credentials look transient, without a reason, from the ACSE provider.
        is_identity = bool(self._identity()) and (answer.source, answer.reason_diagnostic) == (2, 1)
        if answer.result == 2 and not is_identity:
            return PeerUnavailable("the peer rejects associations for now")
        reason = answer.reason_str[:1].lower() + answer.reason_str[1:]
        return UserError(
            f"{self._address.url}: rejects the association ({reason}); check the AE titles {self._address.ae_title} "
            f"(its) and {self._settings.ae_title} (ours, PeerSettings.ae_title), and the credentials"
        )

    def _not_connected(self) -> Exception:
        """Why there is no connection: pynetdicom does not tell, another connection does."""
        where = self._address.url
        try:
            with socket.create_connection((self._address.host, self._address.port), self._settings.timeout_s) as plain:
                if self._address.scheme == "dicoms":
                    with self._client_tls().wrap_socket(plain, server_hostname=self._address.host):
                        pass
        except ssl.SSLCertVerificationError as error:
            return UserError(
                f"{where}: its TLS certificate is not trusted ({error.verify_message}); give PeerSettings.ca=FILE"
            )
        except ssl.SSLError as error:
            return UserError(
                f"{where}: TLS failed ({error.reason}); check that this port uses TLS and that "
                "PeerSettings.certificate is the right one"
            )
        except ConnectionResetError:
            return PeerUnavailable("it accepts the connection and resets it: check whether this port uses TLS")
        except TimeoutError:
            return PeerUnavailable(f"no answer within {self._settings.timeout_s:g} s")
        except OSError as error:
            return PeerUnavailable((error.strerror or type(error).__name__).lower())
        return PeerUnavailable("it accepts the connection and closes it: not a DICOM port, TLS missing, or busy")

    def _identity(self) -> list[Any]:
        """User Identity Negotiation (PS3.7 D.3.3.7): type 2, user and passcode, or 5, a JSON web token."""
        from pynetdicom.pdu_primitives import UserIdentityNegotiation

        given = self._credentials
        if not (given.user or given.token):
            return []
        item = UserIdentityNegotiation()
        item.user_identity_type = 2 if given.user else 5
        item.primary_field = (given.user or given.token).encode()
        if given.user:
            item.secondary_field = given.password.encode()
        item.positive_response_requested = False
        return [item]

    def _client_tls(self) -> ssl.SSLContext:
        return self._with_certificate(ssl.create_default_context(cafile=self._settings.ca))

    def _server_tls(self) -> ssl.SSLContext:
        if self._settings.certificate is None:
            raise UserError(
                "PeerSettings.receive_port over TLS: the peer connects to us, so give PeerSettings.certificate and "
                "PeerSettings.key"
            )
        return self._with_certificate(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self._settings.ca))

    def _with_certificate(self, context: ssl.SSLContext) -> ssl.SSLContext:
        if self._settings.certificate is not None and self._settings.key is not None:
            try:
                context.load_cert_chain(self._settings.certificate, self._settings.key)
            except (ssl.SSLError, OSError):
                raise UserError(
                    f"PeerSettings.certificate={self._settings.certificate}: not a PEM certificate that matches "
                    "PeerSettings.key"
                ) from None
        return context


def _keys(level: str, **keys: Any) -> Dataset:
    """An identifier of a query or retrieval; empty keys are universal matches and come back filled."""
    asked = Dataset()
    asked.QueryRetrieveLevel = level
    unique = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}[level]
    for keyword, value in {unique: "", **keys}.items():
        setattr(asked, keyword, value)
    return asked


def _is_patient(row: Dataset, patient: str) -> bool:
    """Whether a study is of the patient that was asked for, whatever else the peer takes for a match."""
    return not patient or "PatientID" not in row or str(row.PatientID).strip() == patient


def _leave_answers_to_the_asker(association: Any) -> None:
    """Have pynetdicom's reactor, which serves what a peer asks of us (nothing, over an association of ours, but what
    C-GET serves itself), take no message. `send_*` pauses it by two flags that it reads one after the other: a fast
    peer's answer can come in between, be thrown away as "unexpected", and be waited for until the time is up."""
    dimse = association.dimse
    take = dimse.get_msg
    dimse.get_msg = lambda block=False: take(block=True) if block else (None, None)


def _unbuffered(event: Any) -> None:
    """Have no message wait on another's acknowledgement. The last piece of ours would be kept back until the peer
    acknowledges the others (RFC 896), the second piece of its answer until we acknowledge the first; and either may put
    that off for 40 ms (RFC 1122, 4.2.3.2), which is most of the time that an image takes."""
    event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _acknowledge_at_once(event: Any) -> None:
    """The other half of `_unbuffered`, which Linux forgets, so that it is sent again for each answer."""
    if hasattr(socket, "TCP_QUICKACK"):
        with suppress(OSError):  # closed meanwhile
            event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def is_stored(code: int) -> bool:
    """Whether an instance was stored, by the status of its C-STORE: success, or a warning (PS3.7 C)."""
    return code == 0 or code >> 12 == 0xB or code in (0x0001, 0x0107, 0x0116)


def message_id(number: int) -> int:
    """The Message ID of the request after `number` others: 1 … 65535, and from the start again (PS3.7 E.1)."""
    return number % 65535 + 1


def _identifiers(series: RemoteSeries, uids: Iterable[str], whole: bool) -> list[Dataset]:
    """What to ask for by C-GET or C-MOVE: the series, or lists of its instances."""
    above = {"StudyInstanceUID": series.study, "SeriesInstanceUID": series.series}
    if whole:
        return [_keys("SERIES", **above)]
    rest = iter(uids)
    parts = iter(lambda: list(islice(rest, LIST_LENGTH)), [])
    return [_keys("IMAGE", **above, SOPInstanceUID=part) for part in parts]


def _uncompressed(instance: Instance) -> Dataset:
    """A file for a peer that does not take its transfer syntax: decoded where it is compressed, under the same UID."""
    dataset = pydicom.dcmread(instance.path)
    if UID(instance.syntax).is_compressed:
        try:
            dataset.decompress(generate_instance_uid=False)
        except Exception as error:  # decoders raise whatever they like
            raise UserError(
                f"{instance.path}: the peer does not accept {UID(instance.syntax).name}, and decoding fails; fix "
                "the file"
            ) from error
    return dataset
