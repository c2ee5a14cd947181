"""The one exception type for mistakes that a user can fix."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """Bad input: one line that names the flag, tag or file, what was found, what was expected, and the remedy.

    The command line prints the message and exits with status 1; it never shows a traceback for it. Bugs of our own are
    `AssertionError`s and keep their tracebacks.
    """


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says about an output (full disk, no permission, …) into one `UserError` line."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        remedy = "free some space" if error.errno == errno.ENOSPC else "choose another output folder"
        raise UserError(f"{error.filename or path}: cannot write: {reason}; {remedy} and run it again") from error
