"""Files and folders that are either whole or not there."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from slicewise.errors import output_errors


def umask() -> int:
    """The mode bits that new files of this process are without."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A hidden name beside `path`, under which to make a file or a folder: on success it gets its name (a file is
    synced first), on failure it is gone. An OSError on the way names `path`, for nobody should look for the other."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        if temporary.is_file():
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if str(temporary) in str(error.filename):
            error.filename = str(error.filename).replace(str(temporary), str(path))
        raise
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary stream into a file that appears as `path` when all is written (see `atomic_path`)."""
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        yield stream


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Write a file whole or not at all, with the folders above it. Raises `UserError` where that cannot be done."""
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as stream:
            stream.write(data)
