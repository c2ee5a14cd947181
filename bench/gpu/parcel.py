"""Pack what is to be kept of run folders into a few small files, and make run folders of them again at home.

    python bench/gpu/parcel.py pack OUT RUN [RUN ...]
    python bench/gpu/parcel.py unpack PARCEL FOLDER

A parcel is `parcel.json`, which says what is in it, and `parcel.0`, `parcel.1`, …, the parts of one tar file: 63 MB at
most, 16 MB a part, each with its SHA-256. An unpacked run is resumed by `slicewise train` and drawn from by `slicewise
generate`. A run travels in one of two ways:

- *whole*: weights in training and buffers as they are; averages of weights, and the saved weights where the state does
  not hold them, in float16; Adam's second moments in bfloat16. First moments start from zero: Adam has them again after
  ten steps. Snapshots of averages stay behind.
- *brief*, where that does not fit: the saved weights, from which training goes on with a fresh Adam, and what else the
  state needs (a GAN's discriminator), all in float16.

Tensors are squeezed without loss: their bytes go place by place (all signs and exponents, then all that follow), which
Huffman's code shortens by a seventh of float32 and float16 and a third of bfloat16. Samples and volumes come last; what
does not fit is left out and named in `parcel.json`.
"""

import argparse
import hashlib
import io
import json
import sys
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from slicewise.errors import UserError, output_errors
from slicewise.io.atomic import write_whole
from slicewise.io.folders import WEIGHTS
from slicewise.io.tensors import load_tensors, save_tensors, sha256

PART_BYTES = 16_000_000
# Four parts, less what a table and its numbers beside them may take.
PARCEL_BYTES = 63_000_000
MANIFEST = "parcel.json"
STATE = "state/state.safetensors"
TENSORS = "tensors.squeezed"
# Small files of a run folder, kept before anything else.
NOTES = ("config.toml", "env.json", "stats.jsonl")
# A file in a tar has a header and is filled up to whole blocks.
_BLOCK = 512

Packed = list[tuple[str, bytes]]  # names and contents


def pack(runs: Sequence[Path], out: Path, limit: int = PARCEL_BYTES) -> list[str]:
    """Pack run folders, of different names, into `out`; the first are the most worth keeping whole.

    Returns what was left out, since it did not fit into `limit` bytes. Raises `UserError` where there is nothing to
    pack or `out` cannot be written.
    """
    runs = [run for run in runs if run.is_dir()]
    if not runs:
        raise UserError("nothing to pack: none of the run folders is there; train first")
    room, files, left_out = limit, Packed(), []
    brief = {run: _tensors(run, True) for run in runs}
    reserved = sum(map(_size, brief.values()))
    for run in runs:
        notes = [(name, (run / name).read_bytes()) for name in NOTES if (run / name).is_file()]
        room -= _size(notes)
        files += _in_run(run, notes)
    for run in runs:
        reserved -= _size(brief[run])
        tensors = _tensors(run, False)
        if _size(tensors) > room - reserved:
            left_out.append(f"{run.name}: whole state")
            tensors = brief[run]
        if _size(tensors) > room:
            left_out.append(f"{run.name}: weights")
            tensors = []
        room -= _size(tensors)
        files += _in_run(run, tensors)
    for run in runs:
        for path in _rest(run):
            one = [(str(path.relative_to(run)), path.read_bytes())]
            if _size(one) <= room:
                files += _in_run(run, one)
                room -= _size(one)
            else:
                left_out.append(f"{run.name}/{one[0][0]}")
    _write(out, files, left_out)
    return left_out


def unpack(parcel: Path, folder: Path) -> list[Path]:
    """Make run folders in `folder` of a parcel, and return them. Raises `UserError` where a part is absent or altered,
    or a run already exists."""
    about = _manifest(parcel)
    content = b"".join(_part(parcel / part["file"], part) for part in about["parts"])
    runs = [folder / name for name in about["runs"]]
    for run in runs:
        if run.exists():
            raise UserError(f"{run}: already exists; give another folder, or delete it")
    with output_errors(folder), tarfile.open(fileobj=io.BytesIO(content)) as tar:
        folder.mkdir(parents=True, exist_ok=True)
        tar.extractall(folder, filter="data")
    for run in runs:
        _restore(run)
    return runs


def forget_heads(run: Path) -> None:
    """Let an unpacked run continue with other heads than it was trained on, where those did not travel with it."""
    tensors, meta = load_tensors(run / STATE)
    save_tensors(run / STATE, tensors, {**meta, "heads": [], "forgotten": meta["heads"] or meta.get("forgotten", [])})


def slim(name: str, tensor: Tensor) -> Tensor:
    """A tensor of a state as it travels whole."""
    if name.startswith("ema."):
        return tensor.half()
    return tensor.bfloat16() if name.startswith("adam.exp_avg_sq.") else tensor


def squeeze(tensors: Mapping[str, Tensor], about: Any) -> bytes:
    """Tensors, and what JSON can hold about them, as bytes."""
    kinds = {name: [str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()}
    content = save({name: _places(t) for name, t in tensors.items()})
    head = json.dumps({"kinds": kinds, "about": about}).encode()
    return len(head).to_bytes(8, "little") + head + _huffman(content)


def expand(content: bytes) -> tuple[dict[str, Tensor], Any]:
    """The inverse of `squeeze`."""
    end = 8 + int.from_bytes(content[:8], "little")
    head = json.loads(content[8:end])
    places = load(zlib.decompress(content[end:]))
    tensors = {}
    for name, (kind, shape) in head["kinds"].items():
        tensors[name] = places[name].T.contiguous().flatten().view(getattr(torch, kind)).reshape(shape)
    return tensors, head["about"]


def _places(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, uint8 (bytes an element, elements)."""
    return tensor.contiguous().flatten().view(torch.uint8).view(-1, tensor.element_size()).T.contiguous()


def _huffman(content: bytes) -> bytes:
    coder = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_HUFFMAN_ONLY)
    return coder.compress(content) + coder.flush()


def _tensors(run: Path, brief: bool) -> Packed:
    """A run's tensors, squeezed, and from which of them the state's and the saved weights are made again."""
    state, meta = load_tensors(run / STATE) if (run / STATE).is_file() else ({}, {})
    weights, about = load_tensors(run / WEIGHTS) if (run / WEIGHTS).is_file() else ({}, {})
    if not state and not weights:
        return []
    exported = _exported(weights, state)
    copies = {} if brief else _copies(weights, state, exported)
    # Averages are made from the saved weights where it is brief, and the exported network's own weights too.
    shared = (f"{exported}.", "ema.0.", "ema.1.") if brief and exported else ()
    small = {} if copies else {f"weights/{name}": _half(tensor) for name, tensor in weights.items()}
    state_from = {}
    for name, tensor in state.items():
        prefix = next((prefix for prefix in shared if name.startswith(prefix)), None)
        if prefix:
            state_from[name] = f"weights/{name.removeprefix(prefix)}"
        elif not name.startswith("adam." if brief else "adam.exp_avg."):
            small[f"state/{name}"] = _half(tensor) if brief else slim(name, tensor)
            state_from[name] = f"state/{name}"
    weights_from = {name: f"state/{copies[name]}" if copies else f"weights/{name}" for name in weights}
    made = {"state": meta, "state_from": state_from, "weights": about, "weights_from": weights_from}
    return [(TENSORS, squeeze(small, made))]


def _exported(weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """The network of a state whose weights are saved to be used; empty where there is none."""
    networks = dict.fromkeys(name.split(".", 1)[0] for name in state)
    named = (n for n in networks if n not in ("adam", "ema") and all(f"{n}.{name}" in state for name in weights))
    return next(named, "") if weights else ""


def _copies(weights: Mapping[str, Tensor], state: Mapping[str, Tensor], exported: str) -> dict[str, str]:
    """For every saved weight the tensor of the state that it is a copy of; empty where one is not found."""
    found = {}
    for name, weight in weights.items():
        same = [other for other in (f"ema.0.{name}", f"{exported}.{name}") if other in state]
        found[name] = next((other for other in same if torch.equal(state[other], weight)), "")
    return found if all(found.values()) else {}


def _half(tensor: Tensor) -> Tensor:
    return tensor.half() if tensor.dtype == torch.float32 else tensor


def _restore(run: Path) -> None:
    """Make the state and the saved weights of an unpacked run again."""
    path = run / TENSORS
    if not path.is_file():
        return
    small, made = expand(path.read_bytes())
    whole = {name: t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for name, t in small.items()}
    for target, file in (("weights", WEIGHTS), ("state", STATE)):
        tensors = {name: whole[source].clone() for name, source in made[f"{target}_from"].items()}
        for name in [name for name in tensors if name.startswith("adam.exp_avg_sq.")]:
            tensors[name.replace("exp_avg_sq", "exp_avg", 1)] = torch.zeros_like(tensors[name])
        if tensors:
            save_tensors(run / file, tensors, made[target])
    path.unlink()


def _rest(run: Path) -> list[Path]:
    """What else a run folder holds but for its state and what is made again."""
    made_again = {*NOTES, WEIGHTS, Path(WEIGHTS).with_suffix(".json").name}
    paths = (path for path in sorted(run.rglob("*")) if path.is_file())
    return [path for path in paths if path.name not in made_again and path.relative_to(run).parts[0] != "state"]


def _in_run(run: Path, files: Packed) -> Packed:
    return [(f"{run.name}/{name}", content) for name, content in files]


def _size(files: Packed) -> int:
    """Bytes that files take in a tar."""
    return sum(_BLOCK + -(-len(content) // _BLOCK) * _BLOCK for _, content in files)


def _write(out: Path, files: Packed, left_out: Sequence[str]) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    whole = stream.getvalue()
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        for old in out.glob("parcel.*"):
            old.unlink()
    parts = []
    for number, first in enumerate(range(0, len(whole), PART_BYTES)):
        content = whole[first : first + PART_BYTES]
        write_whole(out / f"parcel.{number}", content)
        parts.append({"file": f"parcel.{number}", "sha256": hashlib.sha256(content).hexdigest()})
    runs = list(dict.fromkeys(name.split("/", 1)[0] for name, _ in files))
    about = {"parts": parts, "runs": runs, "files": [name for name, _ in files], "left_out": list(left_out)}
    write_whole(out / MANIFEST, (json.dumps(about, indent=2) + "\n").encode())


def _manifest(parcel: Path) -> dict[str, Any]:
    path = parcel / MANIFEST
    try:
        about = json.loads(path.read_text())
        return {"parts": about["parts"], "runs": about["runs"]}
    except OSError:
        raise UserError(f"{path}: is not there; give the folder that holds a parcel") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: is damaged; bring the parcel home again") from None


def _part(path: Path, about: dict[str, str]) -> bytes:
    if not path.is_file() or sha256(path) != about["sha256"]:
        raise UserError(f"{path}: is absent or damaged; bring the parcel home again")
    return path.read_bytes()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="run folders into a parcel")
    packing.add_argument("out", type=Path)
    packing.add_argument("runs", type=Path, nargs="+")
    unpacking = commands.add_parser("unpack", help="a parcel into run folders")
    unpacking.add_argument("parcel", type=Path)
    unpacking.add_argument("folder", type=Path)
    a = parser.parse_args(argv)
    try:
        if a.command == "pack":
            for name in pack(a.runs, a.out):
                print(f"left out, since it does not fit: {name}")
        else:
            for run in unpack(a.parcel, a.folder):
                print(run)
    except UserError as problem:
        sys.exit(f"parcel: {problem}")


if __name__ == "__main__":
    main()
