"""What lies below a path: every file is read, or listed with the reason why not, or counted.

Links are followed once, zip and tar are unpacked into a temporary folder that goes when the process ends.
"""

import atexit
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from slicewise.errors import UserError, output_errors

ZIP = (".zip",)
TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
# Volumes that are not read, by the end of their names: what they are, and how to make NIfTI of them.
_ITK = "convert it to NIfTI first (in Python: SimpleITK.WriteImage(SimpleITK.ReadImage(FILE), 'head.nii.gz'))"
_UNREAD = {
    (".nrrd", ".nhdr"): f"NRRD; {_ITK}",
    (".mha", ".mhd"): f"MetaImage; {_ITK}",
    (".hdr", ".img"): f"Analyze, which does not tell left from right; {_ITK} and check the sides",
    (".mgz", ".mgh"): "FreeSurfer; convert it first (mri_convert FILE head.nii.gz)",
    (".mnc",): "MINC; convert it first (mnc2nii FILE head.nii)",
    (".7z", ".rar"): "an archive of an unsupported kind; unpack it first",
    (".dcm.gz", ".dcm.bz2"): "a compressed DICOM file; unpack it first",
}
# What one zip or tar may unpack to.
MOST_FILES = 100_000
MOST_BYTES = 16 * 2**30

# What unpacking raises on archives that are cut, garbled or encrypted.
_DAMAGED = (
    OSError, EOFError, RuntimeError, ValueError, NotImplementedError, zipfile.BadZipFile, tarfile.TarError, zlib.error,
    lzma.LZMAError,
)  # fmt: skip

_scratch = ExitStack()
atexit.register(_scratch.close)


@dataclass(frozen=True)
class Skipped:
    """A file, folder or series that no volume is made of, and why. `damaged`: it ought to have been readable."""

    source: str
    reason: str
    damaged: bool = False
    series_uid: str = ""


@dataclass
class Files:
    """What lies below some paths.

    Attributes
    ----------
    paths : files to look into, in sorted order, each once; members of zip and tar under the temporary folders of
        `unpacked`.
    skipped : what is not looked into, and why.
    unpacked : temporary folder by archive.
    """

    paths: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    unpacked: dict[str, str] = field(default_factory=dict)

    def named(self, text: str) -> str:
        """A text with the archives' names in the place of the folders they were unpacked to."""
        for archive, folder in self.unpacked.items():
            text = text.replace(folder, archive)
        return text


def files_below(sources: Iterable[Path | str]) -> Files:
    """Every file below some folders; a source that is a file is taken itself.

    Hidden files and folders are passed over. Raises `UserError` where there is nothing at a path.
    """
    found, seen = Files(), dict[tuple[int, int], str]()
    for source in sources:
        source = os.fspath(source)
        if not os.path.exists(source):
            raise UserError(f"{source}: no such file or folder")
        for path in [source] if os.path.isfile(source) else _walk(source, found, seen):
            _sort_in(path, found, seen)
    found.paths.sort()
    return found


def _walk(top: str, found: Files, seen: dict[tuple[int, int], str]) -> Iterator[str]:
    """Files below a folder, links last, so that what they lead to is known by its own name where it lies below, too. A
    folder that was read already is told, if a link led to it again."""
    links: list[str] = []

    def unreadable(error: OSError) -> None:
        reason = error.strerror or type(error).__name__
        found.skipped.append(Skipped(str(error.filename), f"folder cannot be opened: {reason}", damaged=True))

    for folder, folders, names in os.walk(top, onerror=unreadable):
        state = os.stat(folder)
        place = state.st_dev, state.st_ino
        if place in seen:
            if os.path.islink(folder):
                found.skipped.append(Skipped(folder, f"a link to {seen[place]}, which has already been read"))
            folders.clear()
            continue
        seen[place] = folder
        entries = [os.path.join(folder, name) for name in (*folders, *names) if not name.startswith(".")]
        links += filter(os.path.islink, entries)
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (entry for entry in entries if not os.path.islink(entry) and not os.path.isdir(entry))
    for link in sorted(links):
        if os.path.isdir(link):
            yield from _walk(link, found, seen)
        else:
            yield link


def _sort_in(path: str, found: Files, seen: dict[tuple[int, int], str]) -> None:
    name = path.lower()
    try:
        state = os.stat(path)
    except OSError as error:
        reason = "a broken link" if os.path.islink(path) else f"cannot be read: {error.strerror}"
        found.skipped.append(Skipped(path, reason, damaged=True))
        return
    if not stat.S_ISREG(state.st_mode):
        found.skipped.append(Skipped(path, "a device, socket or pipe"))
        return
    place = state.st_dev, state.st_ino
    if place in seen:
        if seen[place] != path:
            found.skipped.append(Skipped(path, f"a link to {seen[place]}, which has already been read"))
        return
    seen[place] = path
    unread = next((text for ends, text in _UNREAD.items() if name.endswith(ends)), "")
    if unread:
        found.skipped.append(Skipped(path, unread))
    elif name.endswith(ZIP + TAR):
        _unpack(path, found)
    else:
        found.paths.append(path)


def _unpack(path: str, found: Files) -> None:
    """Unpack the DICOM files of a zip or tar; what else lies in it is told."""
    with output_errors(Path(tempfile.gettempdir())):
        folder = tempfile.mkdtemp(prefix="slicewise-")
    _scratch.callback(shutil.rmtree, folder, ignore_errors=True)
    members, others, size = 0, Counter[str](), 0
    when = os.stat(path).st_mtime_ns  # so that unpacking again gives the same files
    try:
        for name, stream in _members(path):
            start = stream.read(132)
            if start[128:] != b"DICM":
                others[kind_of(name)] += 1
                continue
            if members == MOST_FILES:
                raise _TooLarge(f"more than {MOST_FILES} files")
            file = Path(folder, f"{members:06d}-{os.path.basename(name)[-60:]}")
            with output_errors(file), file.open("wb") as out:
                out.write(start)
                while block := stream.read(2**20):
                    size += len(block)
                    if size > MOST_BYTES:
                        raise _TooLarge(f"more than {MOST_BYTES // 2**30} GiB")
                    out.write(block)
            os.utime(file, ns=(when, when))
            found.paths.append(str(file))
            members += 1
    except _TooLarge as error:
        found.paths[:] = [p for p in found.paths if not p.startswith(folder + os.sep)]
        found.skipped.append(Skipped(path, f"unpacks to {error}; unpack it first", damaged=True))
        return
    except _DAMAGED as error:
        why = "is encrypted; unpack it first" if "password" in str(error) else "is cut short or damaged; copy it again"
        found.skipped.append(Skipped(path, f"an archive that {why}", damaged=True))
    else:
        if others or not members:
            rest = listed(others) or "nothing"
            found.skipped.append(Skipped(path, f"only DICOM is read from an archive; also in it: {rest}"))
    if members:
        found.unpacked[path] = folder


class _TooLarge(Exception):
    """An archive beyond the limits; the message says which."""


def _members(path: str) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of the files in an archive. Names are for telling only: nothing is written under them."""
    if path.lower().endswith(ZIP):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    with archive.open(info) as stream:
                        yield info.filename, stream
    else:
        with tarfile.open(path, "r:*") as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isfile() else None
                if content is not None:
                    yield member.name, content


def kind_of(name: str) -> str:
    """The end of a file's name, for counting."""
    base = os.path.basename(name).lower()
    return ".nii.gz" if base.endswith(".nii.gz") else os.path.splitext(base)[1] or "without suffix"


def listed(kinds: Mapping[str, int]) -> str:
    """Counts in words: "3 .txt, 1 .json"."""
    return ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
