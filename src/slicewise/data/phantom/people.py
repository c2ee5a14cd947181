"""The persons of a folder of label maps: who is in which split, and their parts, made once and cached."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from slicewise.data.phantom.maps import find_maps, read_map, read_numbering
from slicewise.errors import UserError, output_errors
from slicewise.io.atomic import atomic_file

if TYPE_CHECKING:
    from slicewise.data.phantom.fields import Fields
    from slicewise.data.phantom.parts import Parts

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
            f"PhantomSettings.split_people={' '.join(map(str, shares))}: {folder} holds {len(files)} maps; give three "
            "numbers (train, val, test) that add up to that"
        )
    codes = json.dumps(sorted(read_numbering(numbering).items()))
    held: dict[str, Path] = {}
    keys = {}
    for file in files:
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        if content in held:
            raise UserError(f"{file} and {held[content].name} are the same map; remove one of them")
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
def load_person(person: Person, numbering: Path | None, cache: Path) -> "tuple[Parts, Fields]":
    """Parts and fields of a person: from the cache, memory-mapped, or made now (a minute) and kept there."""
    from slicewise.data.phantom.fields import Fields, make_fields
    from slicewise.data.phantom.parts import Parts, make_parts

    voxels, rest = _files(person, cache)
    if not is_prepared(person, cache):
        head = read_map(person.file, read_numbering(numbering))
        made, fields = make_parts(head), make_fields(head)
        _keep(voxels, lambda stream: np.save(stream, made.code, allow_pickle=False))
        about = {"axes": made.axes, "origin": made.origin} | vars(fields)
        _keep(rest, lambda stream: np.savez(stream, **about))
    with np.load(rest, allow_pickle=False) as held:
        parts = Parts(person.name, np.load(voxels, mmap_mode="c", allow_pickle=False), held["axes"], held["origin"])
        numbers = float(held["ventricle_ml"]), float(held["ventricle_mm"])
        return parts, Fields(held["targets"], held["classes"], *numbers)


@lru_cache(maxsize=64)
def load_shape(person: Person, reference: Person, numbering: Path | None, cache: Path) -> np.ndarray:
    """Velocity float32 (3, D, H, W) from the reference person of a split to this one: registered once and kept."""
    from slicewise.data.phantom.fields import register

    assert person.split == reference.split, "no shape crosses splits"
    file = shape_file(person, reference, cache)
    if not file.is_file():
        moving, fixed = (load_person(p, numbering, cache)[1].classes for p in (person, reference))
        velocity = register(moving, fixed) if person != reference else np.zeros((3, *moving.shape[1:]), np.float32)
        _keep(file, lambda stream: np.save(stream, velocity, allow_pickle=False))
    found: np.ndarray = np.load(file, allow_pickle=False)
    return found


def is_prepared(person: Person, cache: Path) -> bool:
    """Whether the parts and fields of a person are in the cache."""
    return all(file.is_file() for file in _files(person, cache))


def shape_file(person: Person, reference: Person, cache: Path) -> Path:
    """Where the shape of a person, told from the reference, is or will be."""
    return cache / f"{person.key[:32]}-{reference.key[:32]}.npy"


def _files(person: Person, cache: Path) -> tuple[Path, Path]:
    return cache / f"{person.key}.npy", cache / f"{person.key}.npz"


def _keep(file: Path, write: Callable[[BinaryIO], None]) -> None:
    with output_errors(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as stream:
            write(stream)
