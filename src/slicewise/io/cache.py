"""Computed arrays, kept under the hash of what they were computed from: what is known is not computed again."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slicewise.io.atomic import write_whole


@dataclass(frozen=True)
class Cache:
    """A folder of safetensors files, one a key. Processes may share it: a file appears whole or not at all, and says
    the same whoever writes it. It may be deleted at any time.

    Attributes
    ----------
    folder : where the files are; made when first written to. None keeps nothing.
    """

    folder: Path | None

    def get(self, key: str, names: Sequence[str] | None = None) -> dict[str, np.ndarray] | None:
        """The arrays kept under a key (or some of them, by name); None where they are not, or the file is damaged."""
        from safetensors import SafetensorError, safe_open

        if self.folder is None:
            return None
        try:
            with safe_open(self._file(key), "numpy") as file:
                return {name: file.get_tensor(name) for name in (file.keys() if names is None else names)}
        except (OSError, SafetensorError, ValueError):
            return None

    def put(self, key: str, arrays: dict[str, np.ndarray]) -> None:
        """Keep arrays (numbers only). Raises `UserError` where the folder cannot be written to."""
        from safetensors.numpy import save

        if self.folder is None:
            return
        file = self._file(key)
        data = save({name: np.asarray(array, order="C") for name, array in arrays.items()})
        write_whole(file, data)

    def _file(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / key[:2] / f"{key}.safetensors"


def key_of(*parts: str | bytes | np.ndarray) -> str:
    """SHA-256 of text, bytes and arrays (their type and shape included), as hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype}{part.shape}".encode())
            data: bytes | memoryview = np.ascontiguousarray(part).reshape(-1).view(np.uint8).data
        else:
            data = part.encode() if isinstance(part, str) else part
        digest.update(f"{len(data)}:".encode())
        digest.update(data)
    return digest.hexdigest()
