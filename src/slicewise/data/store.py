"""Prepared data: one memory-mapped int16 volume a file and one manifest line a volume.

    <store>/manifest.jsonl      one JSON object a line, one volume a line; of two lines with one id the later holds
    <store>/volumes/<id>.npy    int16 HU (Z, Y, X), C order
    <store>/settings.json       how the volumes were made
    <store>.private/            beside the store, not to be shared: the key of the pseudonyms, and left_out.jsonl, what
                                was not prepared (by path) and why

A volume is written under a temporary name, renamed, and only then named in the manifest, so a store that was cut off at
any moment is whole: it holds fewer volumes. Several processes may add to one store at once.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slicewise.data.settings import check_shares
from slicewise.errors import UserError, output_errors
from slicewise.hu import shows_head
from slicewise.io.atomic import write_whole
from slicewise.io.folders import MANIFEST, is_store
from slicewise.volume import Acquisition, Volume

if TYPE_CHECKING:
    from slicewise.io.dicom import Reading

try:
    import fcntl
except ImportError:  # Windows: one writer at a time
    fcntl = None  # type: ignore[assignment]

SPLITS = ("train", "val", "test")
SKIPPED = "left_out.jsonl"  # so named in the stores that there are
SETTINGS = "settings.json"


@dataclass(frozen=True)
class Record:
    """One line of the manifest: a prepared volume.

    Attributes
    ----------
    id : name of the volume, unique in the store.
    file : path of the .npy file inside the store.
    shape : (Z, Y, X).
    spacing_mm : (z, y, x) in mm.
    split : "train", "val" or "test".
    patient : what keeps volumes of one person in one split.
    sha256 : of the .npy file.
    source : the file or folder the volume came from, where that is kept, or what made it.
    origin_mm : DICOM LPS position of voxel [0, 0, 0]: (x, y, z) in mm.
    clipped_voxels : how many voxels of the source lay outside [-1024, 3071] HU.
    vertex_slice : first slice that shows the head.
    source_fingerprint : SHA-256 over the source's files (names, sizes, times), or empty: what is done is known by it.
    notes : what was repaired on the way (duplicates dropped, slices interpolated, table removed, …).
    synthetic : whether the source said that it was made artificially.
    """

    id: str
    file: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    split: str
    patient: str
    sha256: str
    source: str
    origin_mm: tuple[float, float, float]
    clipped_voxels: int = 0
    vertex_slice: int = 0
    source_fingerprint: str = ""
    notes: tuple[str, ...] = ()
    synthetic: bool = False

    @staticmethod
    def from_json(text: str | bytes) -> "Record":
        """Parse a manifest line. Raises ValueError, KeyError or TypeError where it is not one; unknown keys (of a later
        version) are passed over."""
        fields = json.loads(text)
        known = {key: value for key, value in fields.items() if key in Record.__dataclass_fields__}
        known |= {key: tuple(fields[key]) for key in ("shape", "spacing_mm", "origin_mm")}
        return Record(**known | {"notes": tuple(fields.get("notes", ()))})


@dataclass(frozen=True)
class Store:
    """A prepared store, open for reading. `records` are in the order of their ids, however many workers made them."""

    path: Path
    records: tuple[Record, ...]

    def select(self, split: str) -> tuple[Record, ...]:
        """The records of one split ("train", "val", "test"); may be empty."""
        if split not in SPLITS:
            raise UserError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
        return tuple(record for record in self.records if record.split == split)

    def hu(self, record: Record) -> np.memmap:
        """The voxels, int16 HU (Z, Y, X), memory-mapped and read-only.

        Raises `UserError` naming the file where it is missing, cut, or of another shape than the manifest says. Cheap
        enough to call for every training sample: an unchanged file is mapped once.
        """
        file = self.path / record.file
        try:
            state = file.stat()
        except OSError as error:
            raise UserError(f"{file}: prepared volume is missing; run `slicewise prepare` again") from error
        return _map(file, record.shape, state.st_size, state.st_mtime_ns)

    def volume(self, record: Record) -> Volume:
        """The prepared volume with its geometry (a copy in memory)."""
        source = record.source or f"{self.path}:{record.id}"
        acquisition = Acquisition(patient_id=record.patient, source=source, synthetic=record.synthetic)
        return Volume.regular(np.array(self.hu(record)), record.spacing_mm, acquisition, record.origin_mm)

    def reading(self, record: Record) -> "Reading":
        """The prepared volume, as if read from a file: with what was repaired and where it came from, as far as a store
        knows it."""
        from pydicom.dataset import Dataset  # training does without DICOM

        from slicewise.io.dicom import Reading
        from slicewise.io.provenance import EDITED, RESAMPLED, Provenance, Step

        header = Dataset()
        header.PatientID = record.patient
        steps = [Step(note, EDITED) for note in record.notes]
        if record.source_fingerprint:  # a phantom is made on the grid
            steps.append(Step("resampled onto the grid of a prepared store", RESAMPLED))
        return Reading(self.volume(record), notes=record.notes, source=Provenance(header, (), tuple(steps)))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over id, split and file hash of every volume: two stores with one fingerprint train alike."""
        lines = (f"{record.id} {record.split} {record.sha256}\n" for record in self.records)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What settings.json says; empty where there is none."""
        file = self.path / SETTINGS
        return json.loads(file.read_text()) if file.exists() else {}

    @cached_property
    def skipped(self) -> tuple[dict[str, str], ...]:
        """The lines of left_out.jsonl: {"source", "reason"}."""
        return tuple(json.loads(line) for line in _lines(private_folder(self.path) / SKIPPED))

    def verify(self) -> None:
        """Read every volume and compare its SHA-256 with the manifest; raises `UserError` naming the first bad file."""
        for record in self.records:
            self.hu(record)
            with (self.path / record.file).open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            if found != record.sha256:
                raise _damaged(self.path / record.file, "its SHA-256 is not the one in the manifest")


def private_folder(store_path: Path | str) -> Path:
    """The folder beside a store for what is not shared with it."""
    path = Path(os.path.abspath(store_path))
    return path.with_name(f"{path.name}.private")


def open_store(path: Path | str) -> Store:
    """Open a prepared store. Raises `UserError` where the folder is none, or a manifest line cannot be read."""
    path = Path(path)
    if not is_store(path):
        raise UserError(f"{path}: no prepared data here ({MANIFEST} is missing); make them with `slicewise prepare`")
    records: dict[str, Record] = {}
    manifest = path / MANIFEST
    for number, line in enumerate(_lines(manifest), 1):
        try:
            record = Record.from_json(line)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{manifest}: line {number} is damaged; delete it and run `slicewise prepare` again"
            ) from error
        records[record.id] = record
    return Store(path, tuple(records[key] for key in sorted(records)))


def assign_split(patient: str, fractions: Sequence[float] = (0.8, 0.1, 0.1), seed: int = 0) -> str:
    """The split of a patient, by hash: all volumes of one are together, and adding data moves none.

    `fractions` are the shares of train, val and test, summing to one.
    """
    check_shares(fractions)
    place = _place(patient, seed)
    train, val, _ = fractions
    return "train" if place < train else "val" if place < train + val else "test"


def fill_splits(store: Store, fractions: Sequence[float], seed: int) -> dict[str, str]:
    """Patients to move out of training so that a small store has something to judge by: two in validation and one in
    test, as far as their shares are not 0 and one in two patients stays to train on. The ones are next whose hash is
    nearest to the share that is short. Patient to split.
    """
    by_patient = {record.patient: record.split for record in store.records}
    training = sorted((p for p, split in by_patient.items() if split == "train"), key=lambda p: _place(p, seed))
    moves: dict[str, str] = {}
    for split, share, least in (("val", fractions[1], 1), ("test", fractions[2], 1), ("val", fractions[1], 2)):
        held = sum({**by_patient, **moves}[p] == split for p in by_patient)
        if share > 0 and held < least and len(training) > max(1, len(by_patient) // 2):
            moves[training.pop()] = split
    return moves


def move_patients(store: Store, splits: Mapping[str, str]) -> None:
    """Give all volumes of some patients another split, in the manifest."""
    for record in store.records:
        if splits.get(record.patient, record.split) != record.split:
            append(store.path, replace(record, split=splits[record.patient]))


def split_store(path: Path | str, fractions: Sequence[float], seed: int) -> Store:
    """Split a store again, by patient, without touching a voxel; volumes that are added later follow the new shares.

    Raises `UserError` for shares that do not sum to one, a store whose heads share persons (heads from real anatomy),
    and where the store cannot be written.
    """
    store = open_store(path)
    if store.settings.get("phantom", {}).get("anatomy"):
        raise UserError(
            f"{path}: its heads come from a few persons, and another split would put one person into several splits; "
            "generate them again with slicewise phantom --split-people"
        )
    move_patients(store, {record.patient: assign_split(record.patient, fractions, seed) for record in store.records})
    store = open_store(path)
    move_patients(store, fill_splits(store, fractions, seed))
    write_settings(path, store.settings | {"split": list(fractions), "seed": seed})
    return open_store(path)


def _place(patient: str, seed: int) -> float:
    """A number in [0, 1) from the hash of a patient."""
    digest = hashlib.sha256(f"{seed}:{patient}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def write_volume(
    store_path: Path | str,
    volume: Volume,
    *,
    id: str,
    patient: str,
    split: str,
    source: str = "",
    clipped_voxels: int = 0,
    vertex_slice: int | None = None,
    source_fingerprint: str = "",
    notes: Sequence[str] = (),
    synthetic: bool = False,
) -> Record:
    """Write the .npy file of a volume and return its record, which is not yet in the manifest (see `append`).

    The volume must lie on an even axial grid (rows to the patient's left, columns to the back). Without `vertex_slice`
    the first slice with tissue in it is looked for.
    """
    path = Path(store_path)
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    axes = np.array([volume.row_axis, volume.column_axis])
    in_plane = volume.positions[:, :2]
    if not np.allclose(axes, np.eye(3)[:2], atol=1e-6) or not np.allclose(in_plane, in_plane[0]):
        raise UserError(f"{source or id}: a store holds axial volumes only; resample first (slicewise prepare)")
    assert volume.is_even, "a store holds evenly spaced volumes"
    file = f"volumes/{id}.npy"
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(volume.hu), allow_pickle=False)
    data = buffer.getbuffer()
    write_whole(path / file, data)
    x, y, z = (float(v) for v in volume.positions[0])
    return Record(
        id=id,
        file=file,
        shape=volume.hu.shape,
        spacing_mm=volume.spacing,
        split=split,
        patient=patient,
        sha256=hashlib.sha256(data).hexdigest(),
        source=source,
        origin_mm=(x, y, z),
        clipped_voxels=clipped_voxels,
        vertex_slice=first_head_slice(volume.hu) if vertex_slice is None else vertex_slice,
        source_fingerprint=source_fingerprint,
        notes=tuple(notes),
        synthetic=synthetic,
    )


def append(store_path: Path | str, record: Record) -> None:
    """Add a record to the manifest: one write under a lock, synced to disk. A line that an earlier crash left half
    written is cut off first."""
    manifest = Path(store_path) / MANIFEST
    with output_errors(manifest), manifest.open("ab+") as stream:
        if fcntl is not None:
            fcntl.flock(stream, fcntl.LOCK_EX)
        stream.seek(0)
        content = stream.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            stream.truncate(whole)
        stream.write(json.dumps(asdict(record)).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def put_volume(store_path: Path | str, volume: Volume, *, id: str, patient: str, split: str, **about: Any) -> Record:
    """Write a volume and its manifest line; replaces a volume of the same id. Takes what `write_volume` takes."""
    record = write_volume(store_path, volume, id=id, patient=patient, split=split, **about)
    append(store_path, record)
    return record


def write_settings(store_path: Path | str, settings: dict[str, Any]) -> None:
    """Write settings.json."""
    write_whole(Path(store_path) / SETTINGS, (json.dumps(settings, indent=2) + "\n").encode())


def write_skipped(store_path: Path | str, entries: Iterable[dict[str, str]]) -> None:
    """Write left_out.jsonl anew from {"source", "reason"} entries."""
    lines = "".join(json.dumps(entry) + "\n" for entry in entries)
    write_whole(private_folder(store_path) / SKIPPED, lines.encode())


def first_head_slice(hu: np.ndarray) -> int:
    """Index of the first slice that shows the head (see `hu.shows_head`), or 0 where none does: the vertex."""
    return int(np.argmax(shows_head(hu)))


def _lines(path: Path) -> list[bytes]:
    """Whole lines of a file; a last line without its end was cut by a crash and does not count."""
    if not path.exists():
        return []
    content = path.read_bytes()
    return [line for line in content[: content.rfind(b"\n") + 1].splitlines() if line.strip()]


@lru_cache(maxsize=4096)
def _map(file: Path, shape: tuple[int, ...], size: int, mtime_ns: int) -> np.memmap:
    """Map a .npy file after checking it; size and mtime are part of the key, so that a changed file is mapped again."""
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise _damaged(file, "it is cut short or not an .npy file") from error
    if array.dtype != np.int16 or array.shape != tuple(shape) or not array.flags.c_contiguous:
        raise _damaged(file, f"it holds {array.dtype} {array.shape}, the manifest says int16 {tuple(shape)}")
    if array.offset + array.nbytes != size:
        raise _damaged(file, f"it has {size} bytes, expected {array.offset + array.nbytes}")
    found: np.memmap = array
    return found


def _damaged(file: Path, why: str) -> UserError:
    return UserError(f"{file}: prepared volume is damaged: {why}; delete it and run `slicewise prepare` again")
