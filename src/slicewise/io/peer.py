"""Another system that keeps DICOM: where it is, who we are to it, and what can be asked of it.

Two kinds answer to one address: `https://host/dicom-web` is a DICOMweb service (PS3.18), `dicom://AET@host:104` a
DIMSE application entity (PS3.7), `dicoms://` one over TLS. User, password and token never stand in an address, so that
an address can be printed.
"""

import ipaddress
import os
import re
import ssl
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from slicewise.errors import UserError

ENV_USER, ENV_PASSWORD, ENV_TOKEN = "SLICEWISE_PACS_USER", "SLICEWISE_PACS_PASSWORD", "SLICEWISE_PACS_TOKEN"
# Registered ports: dicom and dicom-tls (PS3.8 9.1.1), http and https.
_PORTS = {"http": 80, "https": 443, "dicom": 104, "dicoms": 2762}
# An application entity title (PS3.5 6.2, AE) as addresses can hold it.
_AE_TITLE = re.compile(r"[!-.0-?A-\[\]-~]{1,16}")
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
# A Patient ID (PS3.5 6.2, LO) without what a query takes for wildcards (PS3.4 C.2.2.2.4); a code string (CS).
_PATIENT = re.compile(r"[^\\*?]{0,64}")
_CODE = re.compile(r"[A-Z0-9 _]{0,16}")
# Ceilings on what one search may bring: answers, bytes in all, and how many of the time-outs it may take. A hospital's
# day is some thousand series.
MOST_ROWS, MOST_ROW_BYTES, SEARCH_TIMEOUTS = 100_000, 64 << 20, 10


class PeerUnavailable(Exception):
    """A failure that may pass: a lost connection, a server too busy, a time-out. The message is one line for the user.
    What cannot pass (credentials refused, a wrong address) is a `UserError` at once."""


@dataclass(frozen=True)
class Address:
    """Where a peer is. `url` holds no credentials; `ae_title` is the called one (DIMSE)."""

    url: str
    scheme: str
    host: str
    port: int
    ae_title: str = ""

    @property
    def is_web(self) -> bool:
        """Whether it is a DICOMweb service."""
        return self.scheme in ("http", "https")

    @property
    def is_private(self) -> bool:
        """Whether nobody on the way can read: TLS, or this machine itself."""
        return self.scheme in ("https", "dicoms") or _is_loopback(self.host)


@dataclass(frozen=True)
class Credentials:
    """User and password, or a token; never shown."""

    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)


@dataclass(frozen=True)
class PeerSettings:
    """How to talk to a PACS."""

    credentials: Path | None = None
    """TOML file with user and password, or token, that only you can read; without it they come from SLICEWISE_PACS_USER
    and SLICEWISE_PACS_PASSWORD, or SLICEWISE_PACS_TOKEN."""
    ca: Path | None = None
    """PEM file of the authority that signed the peer's TLS certificate, if the system does not know it."""
    certificate: Path | None = None
    """PEM file of our own TLS certificate, if the peer asks for one."""
    key: Path | None = None
    """PEM file of the private key of that certificate."""
    ae_title: str = "SLICEWISE"
    """Our application entity title (DIMSE)."""
    receive_port: int = 0
    """Port to receive on by C-MOVE, as registered at the peer for our title; 0 uses C-GET."""
    receive_host: str = "127.0.0.1"
    """Address to receive on by C-MOVE."""
    timeout_s: float = 30.0
    """Seconds without an answer after which a connection is given up; less than 64 KiB in that time counts as no
    answer."""
    retries: int = 4
    """Further attempts after one that received nothing."""
    backoff_s: float = 1.0
    """Seconds before the first retry; each further one waits twice as long."""
    max_image_mb: int = 512
    """Largest image to accept from the peer, MB; larger ones are refused."""

    def __post_init__(self) -> None:
        if not _AE_TITLE.fullmatch(self.ae_title):
            raise UserError(
                f"PeerSettings.ae_title={self.ae_title!r}: expected 1 to 16 letters, digits or punctuation marks, no "
                "spaces"
            )
        if self.timeout_s <= 0 or self.retries < 0 or self.backoff_s < 0 or not 0 <= self.receive_port < 65536:
            raise UserError(
                f"PeerSettings.timeout_s={self.timeout_s:g} PeerSettings.retries={self.retries} "
                f"PeerSettings.backoff_s={self.backoff_s:g} "
                f"PeerSettings.receive_port={self.receive_port}: the time-out must be positive, the others 0 or more"
            )
        if self.max_image_mb < 1:
            raise UserError(f"PeerSettings.max_image_mb={self.max_image_mb}: must be 1 or more")
        if (self.certificate is None) != (self.key is None):
            raise UserError(
                "PeerSettings.certificate and PeerSettings.key go together: give both PEM files, or neither"
            )
        for name in ("ca", "certificate", "key"):
            file = getattr(self, name)
            if file is not None and not file.is_file():
                raise UserError(f"PeerSettings.{name}={file}: no such file; give a PEM file")
        if self.ca is not None:
            try:
                ssl.create_default_context(cafile=self.ca)
            except ssl.SSLError:
                raise UserError(f"PeerSettings.ca={self.ca}: no certificate in it; give a PEM file") from None


@dataclass(frozen=True)
class Query:
    """Which series: every field that is given must match."""

    patient: str = ""
    """Patient ID."""
    study: str = ""
    """Study Instance UID."""
    series: str = ""
    """Series Instance UID."""
    date: str = ""
    """Study date YYYYMMDD, or a range YYYYMMDD-YYYYMMDD."""
    modality: str = "CT"
    """Modality of the series; "" for all."""

    def __post_init__(self) -> None:
        if not (self.patient or self.study or self.series or self.date):
            raise UserError(
                "say what to pull: Query.patient=ID, Query.study=UID, Query.series=UID or Query.date=YYYYMMDD-YYYYMMDD"
            )
        for name, uid in (("study", self.study), ("series", self.series)):
            if uid and not is_uid(uid):
                raise UserError(f"Query.{name}={uid}: not a DICOM UID (digits and dots, 64 at most)")
        if self.date and not re.fullmatch(r"\d{8}|\d{8}-(\d{8})?|-\d{8}", self.date):
            raise UserError(f"Query.date={self.date}: expected YYYYMMDD, or YYYYMMDD-YYYYMMDD for a range")
        patient = self.patient.strip()
        if not _PATIENT.fullmatch(patient) or not patient.isprintable() or (self.patient and not patient):
            raise UserError(
                f"Query.patient={self.patient!r}: expected one Patient ID of up to 64 characters, without * and ?, "
                "which would match others, backslashes and control characters; pull by Query.study if the ID contains "
                "them"
            )
        if not is_code(self.modality):
            raise UserError(f"Query.modality={self.modality!r}: expected a code such as CT, or nothing for all")


@dataclass(frozen=True)
class RemoteSeries:
    """A series at a peer; `images` is how many it says it has, None where it does not say."""

    study: str
    series: str
    modality: str = ""
    images: int | None = None


@dataclass(frozen=True)
class Instance:
    """A DICOM file here: its SOP Instance, SOP Class, study, series and transfer syntax UIDs, and its size in bytes."""

    path: str
    uid: str
    sop_class: str
    study: str
    series: str
    syntax: str
    size: int


class Peer(Protocol):
    """What can be asked of a peer. Every method raises `PeerUnavailable` for what may pass and `UserError` else."""

    def check(self) -> None:
        """Return where the peer answers to us (C-ECHO, or an empty search)."""

    def find(self, query: Query) -> list[RemoteSeries]:
        """The series that match."""

    def instances(self, study: str, series: str) -> dict[str, str] | None:
        """SOP Class by SOP Instance UID of all that the peer holds of a series; None where it answers no queries."""

    def store(self, instances: Sequence[Instance], told: Callable[[Instance, str], None]) -> None:
        """Send files. `told` hears of each as it is acknowledged: "" for stored, else the reason of its refusal."""

    def retrieve(
        self, series: RemoteSeries, wanted: Mapping[str, str], whole: bool, keep: Callable[[bytes], bool]
    ) -> None:
        """Fetch the `wanted` instances of a series (SOP Class by UID), which are all of it where `whole`; `keep` gets
        each DICOM file, says whether it is whole, and raises where it is not what was asked for."""


def is_uid(text: str) -> bool:
    """Whether a text is a DICOM UID (PS3.5 9.1), and so also safe as a file name."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def is_code(text: str) -> bool:
    """Whether a text is a code string (PS3.5 6.2, CS), and so also safe to print."""
    return _CODE.fullmatch(text) is not None


def parse_address(text: str) -> Address:
    """An address as users write it; raises `UserError` where it is none, never repeating a password in it."""
    try:
        parts = urlsplit(text)
        scheme, host, port = parts.scheme.lower(), parts.hostname or "", parts.port
    except ValueError:
        scheme, host, port = "", "", None
    if scheme not in _PORTS or not host:
        shown = text if "@" not in text else "the address of the PACS"
        raise UserError(f"{shown}: expected https://HOST/PATH (DICOMweb) or dicom://AE-TITLE@HOST:PORT (DIMSE)")
    where = f"[{host}]" if ":" in host else host
    port = port or _PORTS[scheme]
    if parts.password is not None or (parts.username is not None and scheme in ("http", "https")):
        raise UserError(
            f"{scheme}://{where}: a user or password does not belong in an address; set {ENV_USER} and "
            f"{ENV_PASSWORD}, or give PeerSettings.credentials=FILE"
        )
    if scheme in ("http", "https"):
        if parts.query or parts.fragment:
            raise UserError(f"{scheme}://{where}: an address ends before ? and #; tokens go into {ENV_TOKEN}")
        return Address(f"{scheme}://{where}:{port}{parts.path.rstrip('/')}", scheme, host, port)
    title = parts.username or ""
    if not _AE_TITLE.fullmatch(title):
        raise UserError(f"{scheme}://{where}: the peer's AE title is missing; write {scheme}://AE-TITLE@{where}:{port}")
    return Address(f"{scheme}://{title}@{where}:{port}", scheme, host, port, title)


def read_credentials(file: Path | None, environ: Mapping[str, str] = os.environ) -> Credentials:
    """Credentials from a file, else from the environment, else none.

    Raises `UserError` for a file that others can read, that is no TOML or holds other keys, for half a pair, and for
    user and token at once; no message holds a value.
    """
    if file is not None:
        where = f"PeerSettings.credentials={file}"
        given = _read_private(file, where)
    else:
        where = f"{ENV_USER}, {ENV_PASSWORD}, {ENV_TOKEN}"
        names = {"user": ENV_USER, "password": ENV_PASSWORD, "token": ENV_TOKEN}
        given = {key: environ[name] for key, name in names.items() if environ.get(name)}
    if bool(given.get("user")) != bool(given.get("password")):
        raise UserError(f"{where}: user and password go together; one of them is missing")
    if given.get("token") and given.get("user"):
        raise UserError(f"{where}: both user and token are set; keep one of them")
    if any(not value.isprintable() for value in given.values()):
        raise UserError(f"{where}: line breaks or control characters in a value; remove them")
    return Credentials(**given)


def check_privacy(address: Address, credentials: Credentials) -> None:
    """Raise `UserError` where credentials would cross a network in clear."""
    if (credentials.user or credentials.token) and not address.is_private:
        secure = {"http": "https", "dicom": "dicoms"}[address.scheme]
        raise UserError(
            f"{address.url}: user, password or token would cross the network in clear text; use {secure}://, or unset "
            "them"
        )


def _read_private(file: Path, where: str) -> dict[str, str]:
    try:
        mode = file.stat().st_mode
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{where}: cannot be read ({type(error).__name__}); give a TOML file that you can read"
        ) from None
    if os.name == "posix" and mode & 0o077:
        raise UserError(f"{where}: others can read it; run chmod 600 {file}")
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError:  # its message could quote the file
        raise UserError(f'{where}: not TOML; expected lines like user = "..." and password = "..."') from None
    if not table.keys() <= {"user", "password", "token"} or not all(isinstance(v, str) for v in table.values()):
        raise UserError(f"{where}: expected strings named user and password, or token")
    return table


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
