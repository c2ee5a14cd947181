"""Commands that measure volumes: `evaluate` and `reference`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from slicewise.cli.output import print_notes
from slicewise.cli.parse import PLAIN
from slicewise.errors import UserError
from slicewise.evaluation.settings import EvaluateSettings


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Compare synthetic volumes with real ones: Fréchet and kernel distances, tissue, noise, continuity, diversity,
    each next to the value between two halves of the real set; with the training data, also a search for copies."""

    real: Annotated[Path, Positional]
    """Real volumes: a prepared store, or a folder of DICOM and NIfTI files."""
    synth: Annotated[Path, Positional]
    """Synthetic volumes: the same, or a folder written by slicewise generate."""
    out: Path
    """Folder for metrics.json, tables (Markdown, CSV) and evaluation.html."""
    train: Path | None = None
    """The generator's training data, for the memorisation audit; REAL must be held out from it."""
    real_split: str = "all"
    """Split to use if REAL is a prepared store: "train", "val", "test" or "all"."""
    synth_split: str = "all"
    """Split to use if SYNTH is a prepared store: "train", "val", "test" or "all"."""
    train_split: str = "all"
    """Split to use if --train is a prepared store: "train", "val", "test" or "all"."""
    cache: Path | None = None
    """Folder for what was computed for each volume, to share between evaluations; by default cache in OUT."""
    json: bool = False
    """Print the contents of metrics.json."""
    settings: Annotated[EvaluateSettings, PLAIN] = field(default_factory=EvaluateSettings)

    def run(self) -> None:
        from slicewise.evaluation.audit import sentence
        from slicewise.evaluation.evaluate import evaluate, write_evaluation
        from slicewise.evaluation.tables import interval, number, to_json
        from slicewise.settings import write_settings

        found = evaluate(
            self.real,
            self.synth,
            self.settings,
            train=self.train,
            splits=(self.real_split, self.synth_split, self.train_split),
            cache=self.cache or self.out / "cache",
        )
        written = write_evaluation(found, self.out)
        write_settings(self.out / "config.toml", "evaluate", self.settings)
        if self.json:
            print(to_json(found).rstrip())
            return
        print_notes(self, "note", found.notices)
        for row in found.distances:
            if row.name.startswith("FID") and row.slices == "middle":
                e = row.estimate
                at = f", at n = {e.floor_n}: {number(e.same_n)}, floor {number(e.floor)}" if e.floor_n > 1 else ""
                print(f"{row.name:13} {row.window:18} {number(e.value)}{interval(e.low, e.high)}{at}")
        if found.audit is not None:
            print(f"{'Audit':13} {sentence(found.audit)}")
        for path in written:
            print(f"{'Report' if path.suffix == '.html' else 'Numbers':13} {path}   ({found.seconds:.0f} s)")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Measure tissue means, HU distribution and slice steps of a store, as a reference for the report of generate."""

    data: Annotated[Path, Positional]
    """Prepared store."""
    out: Path
    """JSON file to write."""
    split: str = "val"
    """Split to measure: "train", "val" or "test"."""

    def run(self) -> None:
        from slicewise.data.store import open_store
        from slicewise.metrics.reference import measure_reference

        store = open_store(self.data)
        records = store.select(self.split)
        if not records:
            raise UserError(f"{self.data}: no volume in the {self.split} split")
        what = f"{len(records)} volumes, {self.split} split of {self.data.name}"
        stats = measure_reference((store.volume(r) for r in records), what)
        stats.save(self.out)
        print(f"wrote {self.out}, measured on {len(records)} volumes")
