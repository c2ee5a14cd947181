"""The command line of evaluating."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from slicewise.cli import parse


def evaluate(argv: list[str]) -> None:
    import tyro

    from slicewise import evaluate as evaluation
    from slicewise.evaluation.audit import sentence
    from slicewise.evaluation.tables import interval, number
    from slicewise.settings import write_settings

    @dataclass(frozen=True)
    class Evaluate:
        """Compare synthetic volumes with real ones: Fréchet and kernel distances, tissue, noise, continuity, diversity,
        each beside what two halves of the real set give; with the training data, a search for copies.

        Attributes
        ----------
        real : real volumes: a prepared store, or DICOM and NIfTI below a folder.
        synth : synthetic volumes, likewise, or a folder of slicewise generate.
        out : folder for metrics.json, tables (Markdown, CSV) and evaluation.html.
        train : what the generator was trained on, for the memorisation audit; REAL must be held out from it.
        real_split, synth_split, train_split : of a prepared store: "train", "val", "test" or "all".
        cache : folder of what was computed of each volume, to share between evaluations; default: cache in OUT.
        """

        real: Annotated[Path, tyro.conf.Positional]
        synth: Annotated[Path, tyro.conf.Positional]
        out: Path
        settings: Annotated[evaluation.EvaluateSettings, tyro.conf.arg(name="")]
        train: Path | None = None
        real_split: str = "all"
        synth_split: str = "all"
        train_split: str = "all"
        cache: Path | None = None

    a = parse("evaluate", Evaluate, argv, settings=evaluation.EvaluateSettings())
    found = evaluation.evaluate(
        a.real,
        a.synth,
        a.settings,
        train=a.train,
        splits=(a.real_split, a.synth_split, a.train_split),
        cache=a.cache or a.out / "cache",
    )
    written = evaluation.write_evaluation(found, a.out)
    write_settings(a.out / "config.toml", "evaluate", a.settings)
    for notice in found.notices:
        print(f"note          {notice}")
    for row in found.distances:
        if row.name.startswith("FID") and row.slices == "middle":
            e = row.estimate
            at = f", at n = {e.floor_n}: {number(e.same_n)}, floor {number(e.floor)}" if e.floor_n > 1 else ""
            print(f"{row.name:13} {row.window:18} {number(e.value)}{interval(e.low, e.high)}{at}")
    if found.audit is not None:
        print(f"{'Audit':13} {sentence(found.audit)}")
    for path in written:
        print(f"{'Report' if path.suffix == '.html' else 'Numbers':13} {path}   ({found.seconds:.0f} s)")
