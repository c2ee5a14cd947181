"""The command line: a thin skin over the Python API. Each command imports what it needs when it is called, so that
`slicewise --help` answers at once."""

import importlib
import inspect
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import slicewise
from slicewise.errors import UserError, output_errors

T = TypeVar("T")

USAGE = """\
usage: slicewise COMMAND [OPTIONS]        (slicewise COMMAND --help explains one)

Whole head CT volumes, slice by slice, in the full 12-bit range (-1024 ... 3071 HU).

  demo         generate a few volumes with the release checkpoint: DICOM, pictures, report
  phantom      make head phantoms: DICOM series, or a store to train on
  prepare      DICOM and NIfTI archives to a store of training data
  split        split a store anew into training, validation and test, by patient
  train        train the denoiser on a store
  train-icnet  train IC-Net, the intensity calibration network, on a store
  pyramid      join a plan and what draws after it into one checkpoint
  train-slice-vae  train a baseline: the slice-to-3D VAE
  train-gan    train a baseline: StyleGAN2 or StyleGAN3, of single slices
  generate     generate volumes with a checkpoint
  calibrate    calibrate a volume's slices with IC-Net, or match their histograms
  export       write any volume as a DICOM series, NIfTI or picture
  info         say what a checkpoint, store, run, DICOM folder or NIfTI file holds
  reference    measure a store, for the report to compare with
  evaluate     compare synthetic volumes with real ones: tables and an HTML report
  view         look at volumes in a browser: three planes, 3D, windows, two side by side
  study        blinded reading of real and synthetic volumes: create, serve, report
  push         send DICOM to a PACS (DICOMweb or DIMSE)
  pull         fetch CT series from a PACS, for prepare to read
  deidentify   copy CT images without what says who the patient is
  segmentation write a label map as a DICOM segmentation

Settings come from flags, then --config FILE (TOML), then --preset NAME, then defaults.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command. Exit status: 0 done, 1 bad input (one line on stderr), 2 bad usage, 130 stopped by Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        sys.exit(0 if argv else 2)
    if argv[0] in ("-V", "--version"):
        print(f"slicewise {slicewise.__version__}")
        return
    if argv[0] not in COMMANDS:
        print(f"slicewise: unknown command {argv[0]!r}; slicewise --help lists them", file=sys.stderr)
        sys.exit(2)
    try:
        COMMANDS[argv[0]](argv[1:])
    except UserError as error:
        print(f"slicewise {argv[0]}: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"slicewise {argv[0]}: stopped; the same command goes on where it was", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parse(command: str, kind: type[T], argv: list[str], **settings: Any) -> T:
    """Parse `argv` into the dataclass `kind`. Its fields named in `settings` are themselves dataclasses of settings,
    given with their defaults; --preset and --config fill the one called `settings`."""
    import tyro

    from slicewise.settings import fill, preset, presets, read_table

    argv, name = _take(argv, "--preset")
    argv, file = _take(argv, "--config")
    if "settings" in settings:
        if name:
            settings["settings"] = fill(settings["settings"], preset(command, name), f"preset {name}")
        if file:
            settings["settings"] = fill(settings["settings"], read_table(Path(file), command), f"--config {file}")
    elif name or file:
        raise UserError(f"--preset and --config have nothing to set in {command}")
    known = ", ".join(presets(command))
    description = " ".join((kind.__doc__ or "").split("Attributes")[0].split())
    if "settings" in settings:
        description += "\n\n--config FILE reads settings from TOML" + (
            f"; --preset NAME is one of {known}." if known else "."
        )
    for documented in (kind, *(type(value) for value in settings.values())):
        _document(documented)
    values = {f: getattr(kind, f, tyro.MISSING) for f in kind.__dataclass_fields__}  # type: ignore[attr-defined]
    return tyro.cli(
        kind, args=argv, prog=f"slicewise {command}", description=description, default=kind(**{**values, **settings})
    )


def _document(kind: type) -> None:
    """Turn a dataclass's "Attributes" section ("name, name : text"), and those of its fields' types, into the form from
    which tyro takes the help of each flag. What follows from other settings or the data (a field with `derived` in its
    metadata) is no flag."""
    import tyro

    for parent in kind.__mro__[1:]:
        if is_dataclass(parent):
            _document(parent)
    for field in fields(kind):  # type: ignore[arg-type]
        if is_dataclass(field.type):
            _document(field.type)  # type: ignore[arg-type]
        if field.metadata.get("derived"):
            kind.__annotations__[field.name] = Annotated[int, tyro.conf.Fixed, tyro.conf.Suppress]
    head, found, tail = inspect.cleandoc(kind.__doc__ or "").partition("Attributes\n----------\n")
    if not found:
        return
    entries: list[tuple[str, str]] = []
    for line in tail.splitlines():
        if line and not line.startswith(" "):
            names, _, text = line.partition(" : ")
            entries.append((names, text))
        elif entries:
            entries[-1] = (entries[-1][0], f"{entries[-1][1]} {line.strip()}".strip())
    described = [f"    {name}: {text}" for names, text in entries for name in names.split(", ")]
    kind.__doc__ = "\n".join([head.strip(), "", "Args:", *described])


def _take(argv: list[str], flag: str) -> tuple[list[str], str | None]:
    """Remove `flag VALUE` or `flag=VALUE` from argv."""
    for i, argument in enumerate(argv):
        if argument == flag:
            if i + 1 == len(argv):
                raise UserError(f"{flag} needs a value")
            return argv[:i] + argv[i + 2 :], argv[i + 1]
        if argument.startswith(flag + "="):
            return argv[:i] + argv[i + 1 :], argument.split("=", 1)[1]
    return argv, None


def phantom(argv: list[str]) -> None:
    import tyro

    from slicewise.data.phantom import PhantomSettings, store_phantoms, write_phantoms
    from slicewise.settings import write_settings

    @dataclass(frozen=True)
    class Phantom:
        """Make head phantoms, procedural or from label maps of real heads (--anatomy), each from its own seed: DICOM
        series with label maps.

        Attributes
        ----------
        out : folder to write to; heads that are there already are kept.
        count : number of heads.
        seed : of the first head; the next has seed + 1, and so on.
        workers : processes; 0 takes one a processor.
        store : write a prepared store to train on instead of DICOM; training can begin while heads are being made.
        segmentations : write the labels as DICOM Segmentations, too (needs the clinic extra).
        dry_run : only say what would be written.
        """

        out: Annotated[Path, tyro.conf.Positional]
        settings: Annotated[PhantomSettings, tyro.conf.arg(name="")]
        count: int = 10
        seed: int = 0
        workers: int = 0
        store: bool = False
        segmentations: bool = False
        dry_run: bool = False

    a = parse("phantom", Phantom, argv, settings=PhantomSettings())
    workers = a.workers or os.cpu_count() or 1
    if a.dry_run:
        print(f"would write {a.count} heads of {a.settings.size} pixels to {a.out}, with {workers} processes")
        return
    if a.store:
        store = store_phantoms(a.out, a.count, a.seed, a.settings, workers)
        print(f"{len(store.records)} heads in the store {a.out}")
    else:
        folders = write_phantoms(a.out, a.count, a.seed, a.settings, workers, a.segmentations)
        print(f"{len(folders)} DICOM series in {a.out / 'dicom'}, labels in {a.out / 'labels'}")
    write_settings(a.out / "config.toml", "phantom", a.settings)


def prepare(argv: list[str]) -> None:
    import tyro

    from slicewise.data import prepare as data
    from slicewise.io.files import listed
    from slicewise.settings import write_settings

    @dataclass(frozen=True)
    class Prepare:
        """Read every CT volume below the given folders (DICOM, however nested and mixed, and NIfTI), resample it onto
        the working grid and store it for training. Running it again does only what is new.

        Attributes
        ----------
        inputs : folders or files.
        out : store to write.
        dry_run : only list what would be prepared and what is left out.
        """

        inputs: Annotated[tuple[Path, ...], tyro.conf.Positional]
        out: Path
        settings: Annotated[data.PrepareSettings, tyro.conf.arg(name="")]
        dry_run: bool = False

    a = parse("prepare", Prepare, argv, settings=data.PrepareSettings())
    report = data.prepare(a.inputs, a.out, a.settings, dry_run=a.dry_run)
    for left in report.left_out:
        print(f"left out  {left.source}: {left.reason}")
    for note in report.notes:
        print(f"note      {note}")
    if report.others:
        print(f"note      {sum(report.others.values())} other files, which are no images: {listed(report.others)}")
    for warning in report.warnings:
        print(f"warning   {warning}")
    verb = "would prepare" if a.dry_run else "prepared"
    splits = ", ".join(f"{n} {split}" for split, n in report.splits.items())
    print(f"{verb} {len(report.prepared)} volumes, {len(report.already_done)} were there; the store holds {splits}")
    if not report.splits.get("val"):
        print("note      no patient is in the validation split: train judges itself on what it trains on, and")
        print("          train-icnet needs one; slicewise split changes the shares, more patients fill them")
    if not a.dry_run:
        write_settings(a.out / "config.toml", "prepare", a.settings)


def split(argv: list[str]) -> None:
    import tyro

    from slicewise.data.store import SPLITS, split_store

    @dataclass(frozen=True)
    class Split:
        """Split a prepared store anew into training, validation and test, by patient; no voxel is touched. Checkpoints
        that were trained on the store have then seen volumes that it calls validation or test.

        Attributes
        ----------
        store : prepared store.
        val : share of patients for validation.
        test : share of patients for test.
        seed : of the draw.
        """

        store: Annotated[Path, tyro.conf.Positional]
        val: float = 0.1
        test: float = 0.1
        seed: int = 0

    a = parse("split", Split, argv)
    store = split_store(a.store, (1.0 - a.val - a.test, a.val, a.test), a.seed)
    for name in SPLITS:
        held = store.select(name)
        print(f"{name:6} {len(held)} volumes of {len({record.patient for record in held})} patients")


def train(argv: list[str]) -> None:
    import tyro

    from slicewise.data.store import open_store
    from slicewise.runtime import processes_for, run_processes
    from slicewise.training import denoiser as training

    @dataclass(frozen=True)
    class Train:
        """Train the denoiser. On GPUs with one process each: torchrun --nproc-per-node N -m slicewise train ...

        Attributes
        ----------
        data : prepared store.
        out : run folder; a started run in it goes on where it was, bit for bit.
        init : checkpoint to start from (fine-tuning); give the settings it was made with.
        processes : processes of one thread to train with on a CPU; 0 takes as many as train fastest.
        """

        data: Annotated[Path, tyro.conf.Positional]
        out: Path
        settings: Annotated[training.DenoiserTraining, tyro.conf.arg(name="")]
        init: Path | None = None
        processes: int = 0

    a = parse("train", Train, argv, settings=training.DenoiserTraining())
    count = a.processes or processes_for(a.settings.batch, a.settings.device)
    if count > 1 and "WORLD_SIZE" not in os.environ:
        sys.exit(run_processes(count, ["train", *argv]))
    weights = training.train_denoiser(open_store(a.data), a.out, a.settings, a.init)
    report_training(weights)


def report_training(weights: Path) -> None:
    """Write the report of a finished run, and say where it is (in the first process only)."""
    from slicewise.training.report import write_run_page

    if os.environ.get("RANK", "0") == "0":
        print(f"checkpoint: {weights}")
        print(f"report: {write_run_page(weights.parent)}")


def train_icnet(argv: list[str]) -> None:
    import tyro

    from slicewise.data.store import open_store
    from slicewise.training import icnet as training

    @dataclass(frozen=True)
    class TrainICNet:
        """Train IC-Net, self-supervised, on neighbouring slices of a store.

        Attributes
        ----------
        data : prepared store.
        out : run folder; a started run in it goes on where it was, bit for bit.
        """

        data: Annotated[Path, tyro.conf.Positional]
        out: Path
        settings: Annotated[training.ICNetTraining, tyro.conf.arg(name="")]

    a = parse("train-icnet", TrainICNet, argv, settings=training.ICNetTraining())
    report_training(training.train_icnet(open_store(a.data), a.out, a.settings))


def pyramid(argv: list[str]) -> None:
    import tyro

    from slicewise.pyramid import join

    @dataclass(frozen=True)
    class JoinLevels:
        """Join levels that were trained for one another into one checkpoint, which generate takes: a plan of the whole
        head (train --pool), then what draws after it (train --above).

        Attributes
        ----------
        levels : run folders or weights, the plan first.
        out : .safetensors file to write.
        half : write float16, half as large.
        """

        levels: Annotated[tuple[Path, ...], tyro.conf.Positional]
        out: Path
        half: bool = False

    a = parse("pyramid", JoinLevels, argv)
    print(f"checkpoint: {join(a.levels, a.out, a.half)}")


def generate(argv: list[str]) -> None:
    import tyro

    from slicewise import generate as generation
    from slicewise.release import CHECKPOINT, ICNET, REFERENCE

    @dataclass(frozen=True)
    class Generate:
        """Generate head CT volumes, slice after slice: DICOM series, NIfTI, pictures and a report.

        Attributes
        ----------
        out : folder to write to; volumes that are there already are kept.
        checkpoint : run folder or weights of a denoiser, a pyramid or a baseline; default: the release checkpoint.
        icnet : run folder or weights of IC-Net; default: the release one.
        reference : measures of the training data for the report (slicewise reference); default: the release's.
        report : write pictures and the HTML report.
        dry_run : only say what would be done.
        """

        out: Path
        settings: Annotated[generation.GenerateSettings, tyro.conf.arg(name="")]
        checkpoint: Path = CHECKPOINT
        icnet: Path = ICNET
        reference: Path = REFERENCE
        report: bool = True
        dry_run: bool = False

    a = parse("generate", Generate, argv, settings=generation.GenerateSettings())
    _generate(a.out, a.checkpoint, a.icnet, a.reference, a.settings, a.report, a.dry_run)


def demo(argv: list[str]) -> None:
    from slicewise import generate as generation
    from slicewise.release import CHECKPOINT, ICNET, REFERENCE

    @dataclass(frozen=True)
    class Demo:
        """Generate a few head CT volumes with the release checkpoint and say where to look.

        Attributes
        ----------
        out : folder to write to.
        count : volumes.
        seed : of the run.
        """

        out: Path = Path("runs/demo")
        count: int = 4
        seed: int = 0

    a = parse("demo", Demo, argv)
    settings = generation.GenerateSettings(count=a.count, seed=a.seed)
    _generate(a.out, CHECKPOINT, ICNET, REFERENCE, settings, True, False)


def _generate(
    out: Path, checkpoint: Path, icnet: Path, reference: Path, settings: Any, report: bool, dry_run: bool
) -> None:
    """Generate, then pictures and report (in the first process only)."""
    from slicewise import generate as generation
    from slicewise.progress import counting_bar
    from slicewise.settings import write_settings

    if report and not reference.is_file():
        raise UserError(f"--reference {reference}: no such file; make one with slicewise reference, or add --no-report")
    if dry_run:
        print(f"would generate {settings.count} volumes with {checkpoint} into {out}")
        return
    main_process = os.environ.get("RANK", "0") == "0"
    started = time.monotonic()
    with counting_bar(main_process) as bar:
        task = bar.add_task("volumes", total=settings.count)
        run = generation.generate(
            checkpoint,
            out,
            settings,
            icnet if settings.calibrate != "off" else None,
            lambda volumes, slices: bar.update(task, completed=volumes, note=f"slice {slices}" if slices else ""),
            lambda text: print(f"note          {text}", file=sys.stderr) if text else None,
        )
    if not main_process:
        return
    write_settings(out / "config.toml", "generate", settings)
    print(f"DICOM series  {out / 'dicom'}   ({time.monotonic() - started:.0f} s)")
    if settings.nifti:
        print(f"NIfTI         {out / 'nifti'}")
    if report:
        from slicewise.report import write_run_report

        for path in write_run_report(out, generation.results(out, settings.count), reference, run):
            print(f"{'Report' if path.suffix == '.html' else 'Picture':13} {path}")


def reference(argv: list[str]) -> None:
    import tyro

    from slicewise.data.store import open_store
    from slicewise.metrics.reference import measure_reference

    @dataclass(frozen=True)
    class Reference:
        """Measure tissue means, HU distribution and slice steps of a store, for the report to compare with.

        Attributes
        ----------
        data : prepared store.
        out : JSON file to write.
        split : which volumes.
        """

        data: Annotated[Path, tyro.conf.Positional]
        out: Path
        split: str = "val"

    a = parse("reference", Reference, argv)
    store = open_store(a.data)
    records = store.select(a.split)
    if not records:
        raise UserError(f"{a.data}: no volume in the {a.split} split")
    what = f"{len(records)} volumes, {a.split} split of {a.data.name}"
    stats = measure_reference((store.volume(r) for r in records), what)
    with output_errors(a.out):
        a.out.parent.mkdir(parents=True, exist_ok=True)
        a.out.write_text(stats.to_json() + "\n")
    print(f"wrote {a.out}, measured on {len(records)} volumes")


def _in_module(module: str, command: str) -> Callable[[list[str]], None]:
    """A command of another module, which is loaded when the command is called."""

    def run(argv: list[str]) -> None:
        getattr(importlib.import_module(f"slicewise.{module}"), command)(argv)

    return run


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "demo": demo,
    "phantom": phantom,
    "prepare": prepare,
    "split": split,
    "train": train,
    "train-icnet": train_icnet,
    "pyramid": pyramid,
    "train-slice-vae": _in_module("cli_baselines", "train_slice_vae"),
    "train-gan": _in_module("cli_baselines", "train_gan"),
    "generate": generate,
    "calibrate": _in_module("cli_volumes", "calibrate"),
    "export": _in_module("cli_volumes", "export"),
    "info": _in_module("cli_volumes", "info"),
    "reference": reference,
    "evaluate": _in_module("cli_evaluate", "evaluate"),
    "view": _in_module("cli_study", "view"),
    "study": _in_module("cli_study", "study"),
    "push": _in_module("cli_pacs", "push"),
    "pull": _in_module("cli_pacs", "pull"),
    "deidentify": _in_module("cli_pacs", "deidentify"),
    "segmentation": _in_module("cli_pacs", "segmentation"),
}

if __name__ == "__main__":
    main()
