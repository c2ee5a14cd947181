"""The persons of a folder of label maps: who is in which split, and their parts, made once and cached."""

import hashlib
import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from slicewise.data.phantom.maps import find_maps, read_map, read_numbering
from slicewise.errors import UserError, output_errors
from slicewise.io.atomic import atomic_file

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Person:
    """One map file: `name` without suffix, `split` it belongs to, `key` of what its parts are made from."""

    file: Path
    name: str
    split: str
    key: str


@lru_cache(maxsize=4)
def find_people(folder: Path, numbering: Path | None, shares: tuple[int, int, int]) -> tuple[Person, ...]:
    """The persons of a folder, each in a split for good: by a hash of the file's name, so the order does not matter.

    `shares` are persons for train, val and test. Raises `UserError` where they do not add up to the maps there are,
    or two files are one map.
    """
    from slicewise.data.phantom.parts import PARTS_VERSION

    files = find_maps(folder)
    if len(shares) != 3 or min(shares) < 0 or sum(shares) != len(files) or not shares[0]:
        raise UserError(
            f"--split-people {' '.join(map(str, shares))}: {folder} holds {len(files)} maps; give three numbers "
            "(train, val, test) that add up to them"
        )
    codes = json.dumps(sorted(read_numbering(numbering).items()))
    held: dict[str, Path] = {}
    keys = {}
    for file in files:
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        if content in held:
            raise UserError(f"{file} and {held[content].name} are one map under two names; remove one of them")
        held[content] = file
        keys[file] = hashlib.sha256(f"{PARTS_VERSION} {content} {codes}".encode()).hexdigest()
    ordered = sorted(files, key=lambda f: hashlib.sha256(_name(f).encode()).hexdigest())
    splits = [split for split, n in zip(SPLITS, shares) for _ in range(n)]
    found = [Person(file, _name(file), split, keys[file]) for file, split in zip(ordered, splits, strict=True)]
    return tuple(sorted(found, key=lambda p: p.name))


def _name(file: Path) -> str:
    return file.name.removesuffix(".gz").removesuffix(".nii")


def default_cache() -> Path:
    """Where parts are kept unless told otherwise: the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slicewise" / "anatomy"


@lru_cache(maxsize=64)
def load_parts(person: Person, numbering: Path | None, cache: Path):  # type: ignore[no-untyped-def]
    """The `Parts` of a person: from the cache, memory-mapped, or made now (a minute) and kept there."""
    from slicewise.data.phantom.parts import Parts, make_parts

    voxels, frame = cache / f"{person.key}.npy", cache / f"{person.key}.json"
    if not frame.is_file():
        made = make_parts(read_map(person.file, read_numbering(numbering)))
        with output_errors(cache):
            cache.mkdir(parents=True, exist_ok=True)
            with atomic_file(voxels) as stream:
                np.save(stream, made.code, allow_pickle=False)
            with atomic_file(frame) as stream:
                about = {"person": person.name, "axes": made.axes.tolist(), "origin": made.origin.tolist()}
                stream.write(json.dumps(about).encode())
    about = json.loads(frame.read_text())
    code = np.load(voxels, mmap_mode="c", allow_pickle=False)
    return Parts(person.name, code, np.array(about["axes"]), np.array(about["origin"]))
