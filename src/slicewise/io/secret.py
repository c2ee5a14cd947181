"""A secret key in a file for its owner alone: with it the same pseudonyms come again, without it no way leads back."""

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from slicewise.errors import UserError, output_errors


def read_key(file: Path) -> bytes:
    """The key in a file; a new one, not yet written (see `keep_key`), where there is none.

    Raises `UserError` where the file is damaged.
    """
    try:
        return bytes.fromhex(file.read_text().strip())
    except (FileNotFoundError, NotADirectoryError):
        return secrets.token_bytes(32)
    except ValueError:
        raise UserError(f"{file}: damaged; restore it, or write into another folder") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); only its owner may read it") from error


def keep_key(file: Path, key: bytes) -> None:
    """Write the key, readable for its owner alone, where it is not there yet: once something was made with it.

    Raises `UserError` where another key has come there meanwhile.
    """
    with output_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
                stream.write(key.hex() + "\n")
        except FileExistsError:
            if read_key(file) != key:
                raise UserError(f"{file}: another process has started there with its own key; run it again") from None


def keyed(key: bytes, kind: str, text: str) -> bytes:
    """HMAC-SHA256 of a text of some kind, 32 bytes."""
    return hmac.new(key, f"{kind} {text}".encode(), hashlib.sha256).digest()
