"""Push DICOM files to another system, and pull series from it, so that being cut at any moment costs nothing.

What the peer holds already is not sent, what lies here already is not fetched. A series that is being pulled lies in a
hidden folder, which nothing reads, and gets its name when it is whole.
"""

import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom

from slicewise.errors import UserError, output_errors
from slicewise.io.atomic import atomic_file
from slicewise.io.dicom_scan import read_header
from slicewise.io.files import Skipped, files_below
from slicewise.io.folders import generated_series
from slicewise.io.peer import (
    Address,
    Instance,
    Peer,
    PeerSettings,
    PeerUnavailable,
    Query,
    RemoteSeries,
    check_privacy,
    is_code,
    is_uid,
    parse_address,
    read_credentials,
)
from slicewise.io.received import Damaged, TooMuch, Unasked, check_file
from slicewise.io.secret import keep_key, read_key

# The longest wait before another attempt, s.
MAX_WAIT_S = 60.0

Progress = Callable[[int, int], None]  # (done, of how many)
Connect = Callable[[], AbstractContextManager[Peer]]


@dataclass(frozen=True)
class PushReport:
    """What a push did: UIDs of the instances that were sent and that the peer held before, and files left out."""

    sent: tuple[str, ...]
    there_before: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    can_be_asked: bool = True


@dataclass(frozen=True)
class PullReport:
    """What a pull did: the series that match, the folders that hold them, and images fetched and there before."""

    series: tuple[RemoteSeries, ...]
    folders: tuple[Path, ...]
    fetched: int
    there_before: int


def push(
    paths: Iterable[Path | str],
    to: str,
    settings: PeerSettings | None = None,
    *,
    dry_run: bool = False,
    progress: Progress = lambda done, total: None,
) -> PushReport:
    """Send every DICOM file below the paths (folders, files, runs of `slicewise generate`) to the peer at `to`.

    Files go out as they are; compressed ones are decoded where a DIMSE peer does not take their transfer syntax. What
    the peer holds already, by SOP Instance UID, is not sent again. A failure that may pass is tried again
    `settings.retries` times with growing waits, counted anew whenever something got through. With `dry_run` the peer is
    asked what it holds, and nothing is sent (`sent` is then what would be).

    Raises `UserError` where there is nothing to send, where the peer cannot be reached or refuses us, and, after
    all others were sent, where it refused instances.
    """
    settings = settings or PeerSettings()
    address, connect = _connection(to, settings)
    instances, skipped = read_instances(paths)
    if not instances:
        why = f"; {skipped[0].source}: {skipped[0].reason}" if skipped else ""
        raise UserError(f"{', '.join(map(str, paths))}: no DICOM file to push here{why}")
    by_series: dict[tuple[str, str], list[Instance]] = defaultdict(list)
    for instance in instances:
        by_series[instance.study, instance.series].append(instance)
    sent: dict[str, None] = {}
    held: dict[str, None] = {}
    refused: dict[str, str] = {}
    mute = False

    def told(instance: Instance, refusal: str) -> None:
        if refusal:
            refused[instance.uid] = refusal
        else:
            sent[instance.uid] = None
        progress(len(sent) + len(held) + len(refused), len(instances))

    def work(peer: Peer) -> None:
        nonlocal mute
        peer.check()
        for (study, series), members in by_series.items():
            todo = [i for i in members if i.uid not in sent and i.uid not in held and i.uid not in refused]
            if not todo:
                continue
            there = peer.instances(study, series)
            mute = there is None
            held.update((i.uid, None) for i in todo if there is not None and i.uid in there)
            progress(len(sent) + len(held) + len(refused), len(instances))
            todo = [i for i in todo if i.uid not in held]
            if dry_run:
                sent.update((i.uid, None) for i in todo)
            elif todo:
                peer.store(todo, told)

    _persist(address, settings, connect, work, lambda: len(instances) - len(sent) - len(held) - len(refused))
    if refused:
        first = next(i for i in instances if i.uid in refused)
        raise UserError(
            f"{address.url}: refused {len(refused)} of {len(instances)} files, the first {first.path} "
            f"({refused[first.uid]}); the others are stored"
        )
    return PushReport(tuple(sent), tuple(held), tuple(skipped), not mute)


def pull(
    source: str,
    query: Query,
    out: Path | str,
    settings: PeerSettings | None = None,
    *,
    deidentify: bool = False,
    dry_run: bool = False,
    progress: Progress = lambda done, total: None,
) -> PullReport:
    """Fetch every series that matches into `out/STUDY-UID/SERIES-UID/SOP-UID.dcm`, a folder that `prepare` reads.

    Names of folders and files are UIDs, never names of patients. A series appears when it is whole; images that lie
    there from an earlier run are not fetched again. Failures that may pass are tried again as in `push`. With
    `deidentify` every image is stripped (see `slicewise.io.deidentify`) before it is written, and has its new UIDs: the
    disk never sees the old ones.

    Raises `UserError` where nothing matches, where the peer cannot be reached or refuses us, where images stay away,
    and where `out` cannot be written; what came until then is kept, and the next run resumes from it.
    """
    settings, out = settings or PeerSettings(), Path(out)
    address, connect = _connection(source, settings)
    stripping = cache(lambda: _Strip(out))
    found: list[RemoteSeries] = []
    asked: dict[str, dict[str, str]] = {}
    whole: dict[str, Path] = {}
    before: dict[str, int] = {}
    fetched = 0

    def total() -> int:
        return max(fetched + sum(before.values()), sum(len(asked.get(s.series) or ()) or s.images or 0 for s in found))

    def work(peer: Peer) -> None:
        peer.check()
        if not found:
            found.extend(_checked(peer.find(query), address))
        for series in () if dry_run else found:
            if series.series not in whole:
                whole[series.series] = fetch(peer, series)

    def fetch(peer: Peer, series: RemoteSeries) -> Path:
        if series.series not in asked:
            asked[series.series] = _listed(peer, series, address)
        wanted = asked[series.series]
        strip = stripping() if deidentify else None
        name = strip.uid if strip else str
        kept = {name(uid) for uid in wanted}
        final = out / name(series.study) / name(series.series)
        partial = final.with_name(f".{final.name}.partial")
        with output_errors(out):
            have = _uids_in(final)
            if final.is_dir() and not kept <= have:
                os.replace(final, partial)  # the series has grown since it was pulled
            elif final.is_dir():
                before.setdefault(series.series, len(have))
                progress(fetched + sum(before.values()), total())
                return final
            partial.mkdir(parents=True, exist_ok=True)
            have = _uids_in(partial)
        before.setdefault(series.series, len(have))
        missing = {uid: kind for uid, kind in wanted.items() if name(uid) not in have}
        came, damage = 0, Counter[str]()

        def keep(file: bytes) -> bool:
            nonlocal fetched, came
            came += 1
            try:
                if came > 2 * len(wanted) + 16:
                    raise Unasked("more images than it lists")
                uid = check_file(file, series, settings.max_image_mb << 20)
            except (Unasked, TooMuch) as error:
                raise UserError(f"{address.url}: sends {error}; nothing more is accepted from it") from None
            except Damaged as error:
                damage[str(error)] += 1  # as if it had not come: it is asked for again
                return False
            if uid not in missing:
                return True  # sent twice, or newer than the list
            with output_errors(out), atomic_file(partial / f"{name(uid)}.dcm") as stream:
                stream.write(strip.file(file) if strip else file)
            del missing[uid]
            fetched += 1
            progress(fetched + sum(before.values()), total())
            return True

        if missing:
            peer.retrieve(series, dict(missing), len(missing) == len(wanted), keep)
        if missing:
            raise PeerUnavailable(
                f"{len(missing)} of {len(wanted)} images of series {series.series} did not arrive"
                + "".join(f"; it sent {what}" for what, _ in damage.most_common(1))
            )
        with output_errors(out):
            os.replace(partial, final)
        return final

    _persist(address, settings, connect, work, lambda: -fetched - len(whole) - len(found))
    if not found:
        kind = f"{query.modality} " if query.modality else ""
        raise UserError(
            f"{address.url}: no {kind}series matches; check Query.patient, Query.study, Query.series and Query.date"
        )
    return PullReport(tuple(found), tuple(whole.values()), fetched, sum(before.values()))


def read_instances(paths: Iterable[Path | str]) -> tuple[list[Instance], list[Skipped]]:
    """Every DICOM instance below the paths, by its header, each UID once; and what is left out and why.

    Of a run of `slicewise generate`, the `dicom` folder. Files that are not DICOM are passed over; cut ones, and ones
    without the UIDs that sending takes, are left out.
    """
    found: dict[str, Instance] = {}
    skipped: list[Skipped] = []
    for path in paths:
        files = files_below([generated_series(path) or path])
        skipped += files.skipped
        for file in files.paths:
            read = read_header(file)
            if read is None:
                continue
            if isinstance(read, Skipped) and read.damaged:
                skipped.append(read)
                continue
            instance = _identity(file)
            if instance is None:
                skipped.append(Skipped(file, "one of the UIDs needed for sending is missing or invalid"))
            elif instance.uid in found:
                skipped.append(Skipped(file, f"the same SOP Instance UID as {found[instance.uid].path}"))
            else:
                found[instance.uid] = instance
    return list(found.values()), skipped


_IDENTITY = ("SOPInstanceUID", "SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID")


class _Strip:
    """De-identification on the way to the disk, under the key of a folder, which is written with the first image."""

    def __init__(self, out: Path) -> None:
        from slicewise.io import deidentify

        self._module, self._file = deidentify, out / deidentify.KEY_FILE
        self._key = read_key(self._file)

    def uid(self, uid: str) -> str:
        """The new UID."""
        return str(self._module.new_uid(uid, self._key))

    def file(self, file: bytes) -> bytes:
        """The DICOM file, stripped. Raises `UserError` where it says that its pixels show annotation or a screen."""
        dataset, stripped = pydicom.dcmread(BytesIO(file)), BytesIO()
        if why := self._module.unfit(dataset):
            series = self.uid(dataset.SeriesInstanceUID)
            raise UserError(f"series {series} (its new UID): {why}; pull the others by Query.study or Query.series")
        self._module.deidentify(dataset, self._key)
        dataset.save_as(stripped, enforce_file_format=True)
        keep_key(self._file, self._key)
        return stripped.getvalue()


def _identity(file: str) -> Instance | None:
    """What tells a file's instance from others; None where a part of it is missing or meta and data set differ."""
    try:
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_IDENTITY), force=True)
        uid, kind, study, series = (str(header.get(name) or "") for name in _IDENTITY)
        syntax = str(header.file_meta.get("TransferSyntaxUID") or "")
        named = str(header.file_meta.get("MediaStorageSOPInstanceUID") or "")
    except Exception:  # pydicom raises many kinds on elements that are garbled
        return None
    if not all(map(is_uid, (uid, kind, study, series, syntax))):
        return None
    if named != uid:
        return None
    return Instance(file, uid, kind, study, series, syntax, os.path.getsize(file))


def _connection(text: str, settings: PeerSettings) -> tuple[Address, Connect]:
    """The address, and how to connect to it; raises `UserError` where the libraries for it are not installed."""
    address = parse_address(text)
    credentials = read_credentials(settings.credentials)
    check_privacy(address, credentials)
    protocol: Any
    try:
        if address.is_web:
            import dicomweb_client  # noqa: F401  (what is missing shows here, once)

            from slicewise.io import dicomweb as protocol
        else:
            import pynetdicom  # noqa: F401

            from slicewise.io import dimse as protocol
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed; pip install 'slicewise[clinic]'") from None
    return address, lambda: protocol.connect(address, settings, credentials)


def _persist(
    address: Address, settings: PeerSettings, connect: Connect, work: Callable[[Peer], None], left: Callable[[], int]
) -> None:
    """Do the work, again after each failure that may pass; waits grow (with jitter, so that many clients of one server
    do not come back at once) until something gets through (`left` falls)."""
    failures = 0
    while True:
        before = left()
        try:
            with connect() as peer:
                work(peer)
            return
        except PeerUnavailable as error:
            failures = 1 if left() < before else failures + 1
            if failures > settings.retries:
                raise UserError(f"{address.url}: {error}; run it again later to resume") from None
        longest = min(settings.backoff_s * 2 ** (failures - 1), MAX_WAIT_S)
        time.sleep(random.uniform(longest / 2, longest))


def _checked(found: Sequence[RemoteSeries], address: Address) -> list[RemoteSeries]:
    """The series once each; their UIDs become names of folders, so nothing else may stand in them."""
    for series in found:
        if not (is_uid(series.study) and is_uid(series.series)):
            raise UserError(f"{address.url}: gives an invalid UID for a series; nothing is pulled")
        if not is_code(series.modality):
            raise UserError(f"{address.url}: gives an invalid code for a modality; nothing is pulled")
    return list({s.series: s for s in found}.values())


def _listed(peer: Peer, series: RemoteSeries, address: Address) -> dict[str, str]:
    """SOP Class by SOP Instance UID of the images of a series; these become names of files."""
    listed = peer.instances(series.study, series.series)
    if listed is None:
        raise UserError(f"{address.url}: does not answer queries, so it cannot be pulled from")
    if not listed:
        raise PeerUnavailable(f"it lists no images of series {series.series}")
    if not all(map(is_uid, listed)):
        raise UserError(
            f"{address.url}: gives an invalid UID for an image of series {series.series}; nothing is pulled"
        )
    return listed


def _uids_in(folder: Path) -> set[str]:
    """UIDs of the images that lie in a folder of a pulled series."""
    return {file.stem for file in folder.glob("*.dcm") if not file.name.startswith(".")} if folder.is_dir() else set()
