"""Tensors on disk, whole or not at all: safetensors with a JSON beside it, never pickle."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from slicewise.errors import UserError, output_errors
from slicewise.io.atomic import atomic_path, umask, write_whole


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
    """Write a safetensors file and `<stem>.json` beside it with `meta` and the file's SHA-256; both atomically.

    The JSON also stands in the safetensors header, so that the tensor file alone is enough after an unlucky crash
    between the two renames.
    """
    contiguous = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            try:
                save_file(contiguous, temporary, metadata={"slicewise": json.dumps(meta)})
            except SafetensorError as error:  # how it says what the operating system said
                raise OSError(str(error)) from error
            os.chmod(temporary, 0o666 & ~umask())  # safetensors makes files for their owner alone
            digest = sha256(temporary)
    sidecar = json.dumps({**meta, "file": path.name, "sha256": digest}, indent=2) + "\n"
    write_whole(path.with_suffix(".json"), sidecar.encode())


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote: tensors on the CPU and the metadata.

    Raises `UserError` where the file is absent, cut, altered (SHA-256), or from a newer format.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; expected a .safetensors file that slicewise wrote")
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {}).get("slicewise", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path}: the checkpoint is cut short or damaged ({error}); copy it again or train again"
        ) from error
    if meta is None:
        raise UserError(f"{path}: not a slicewise checkpoint (no metadata in it); give one that slicewise wrote")
    sidecar = path.with_suffix(".json")
    if sidecar.is_file():
        try:
            stated = json.loads(sidecar.read_text())
            said = stated.pop("sha256")
            stated.pop("file")
        except (ValueError, KeyError, AttributeError, OSError) as error:
            raise UserError(
                f"{sidecar}: damaged; copy it again, or delete it: {path.name} holds the same metadata"
            ) from error
        if stated == meta and said != sha256(path):
            raise UserError(f"{path}: SHA-256 is not the one in {sidecar.name}; the file is damaged, copy it again")
    return tensors, meta


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
