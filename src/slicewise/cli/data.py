"""Commands that make training data: `prepare`, `phantom` and `split`."""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from slicewise.cli.output import print_json, print_notes, print_skipped
from slicewise.cli.parse import PLAIN
from slicewise.data.settings import PhantomSettings, PrepareSettings
from slicewise.settings import write_settings


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Read every CT volume below the given folders (DICOM, however nested and mixed, and NIfTI), resample it onto
    the working grid and store it for training. Running it again adds only what is new."""

    inputs: Annotated[tuple[Path, ...], Positional]
    """Folders or files."""
    out: Path
    """Store to write."""
    dry_run: bool = False
    """Only list what would be prepared and what is left out."""
    json: bool = False
    """Print the report as JSON."""
    settings: Annotated[PrepareSettings, PLAIN] = field(default_factory=PrepareSettings)

    def run(self) -> None:
        from slicewise.data.prepare import prepare
        from slicewise.io.files import listed

        report = prepare(self.inputs, self.out, self.settings, dry_run=self.dry_run)
        if not self.dry_run:
            write_settings(self.out / "config.toml", "prepare", self.settings)
        if self.json:
            print_json({"store": self.out, "dry_run": self.dry_run, **asdict(report)})
            return
        print_skipped(self, report.skipped)
        print_notes(self, "note", report.notes)
        if report.others:
            print(f"note      {sum(report.others.values())} other files that are not images: {listed(report.others)}")
        print_notes(self, "warning", report.warnings)
        verb = "would prepare" if self.dry_run else "prepared"
        splits = ", ".join(f"{n} {split}" for split, n in report.splits.items())
        print(
            f"{verb} {len(report.prepared)} volumes, {len(report.already_done)} already there; the store holds {splits}"
        )
        if not report.splits.get("val"):
            print("note      no patient is in the validation split, so train validates on its training data, and")
            print("          train-icnet cannot run; change the shares with slicewise split, or add patients")


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """Make head phantoms, procedural or from label maps of real heads (--anatomy), each from its own seed: DICOM series
    with label maps."""

    out: Annotated[Path, Positional]
    """Folder to write to; heads that already exist are kept."""
    count: int = 10
    """Number of heads."""
    seed: int = 0
    """Seed of the first head; the next has seed + 1, and so on."""
    workers: int = 0
    """Processes; 0 means one per processor."""
    store: bool = False
    """Write a prepared store to train on instead of DICOM; training can begin while heads are being made."""
    segmentations: bool = False
    """Also write the labels as DICOM Segmentations (needs the clinic extra)."""
    dry_run: bool = False
    """Only say what would be written."""
    settings: Annotated[PhantomSettings, PLAIN] = field(default_factory=PhantomSettings)

    def run(self) -> None:
        from slicewise.data.phantom import store_phantoms, write_phantoms

        workers = self.workers or os.cpu_count() or 1
        if self.dry_run:
            print(
                f"would write {self.count} heads of {self.settings.size} pixels to {self.out}, with {workers} processes"
            )
            return
        if self.store:
            store = store_phantoms(self.out, self.count, self.seed, self.settings, workers)
            print(f"{len(store.records)} heads in the store {self.out}")
        else:
            folders = write_phantoms(self.out, self.count, self.seed, self.settings, workers, self.segmentations)
            print(f"{len(folders)} DICOM series in {self.out / 'dicom'}, labels in {self.out / 'labels'}")
        write_settings(self.out / "config.toml", "phantom", self.settings)


@dataclass(frozen=True, kw_only=True)
class Split:
    """Split a prepared store again into training, validation and test, by patient; no voxel is touched. Checkpoints
    trained on the store before may then have seen volumes of the new validation and test splits."""

    store: Annotated[Path, Positional]
    """Prepared store."""
    val: float = 0.1
    """Share of patients for validation."""
    test: float = 0.1
    """Share of patients for test."""
    seed: int = 0
    """Seed of the draw."""

    def run(self) -> None:
        from slicewise.data.store import SPLITS, split_store

        store = split_store(self.store, (1.0 - self.val - self.test, self.val, self.test), self.seed)
        for name in SPLITS:
            held = store.select(name)
            print(f"{name:6} {len(held)} volumes of {len({record.patient for record in held})} patients")
