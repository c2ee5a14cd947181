"""The command line: a thin skin over the Python API, a file for each group of commands.

A command is a frozen dataclass: its fields are the flags, the strings below them the help, and `run` does it. Its
module is imported when the command is called, and `run` imports what it needs, so that help answers at once.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

import slicewise
from slicewise.errors import UserError

if TYPE_CHECKING:
    from slicewise.cli.parse import Command

# Of each group its title, its module, and its commands: their classes there and what they do.
GROUPS = (
    (
        "Make volumes",
        "generation",
        {
            "demo": ("Demo", "generate a few volumes with the release checkpoint: DICOM, pictures, report"),
            "generate": ("Generate", "generate volumes with a checkpoint"),
            "fill": ("Fill", "draw the missing slices of a scan from the slices it has"),
            "calibrate": ("Calibrate", "calibrate a volume's slices with IC-Net, or match their histograms"),
        },
    ),
    (
        "Prepare data",
        "data",
        {
            "prepare": ("Prepare", "turn DICOM and NIfTI archives into a store of training data"),
            "phantom": ("Phantom", "make head phantoms: DICOM series, or a store to train on"),
            "split": ("Split", "split a store again into training, validation and test, by patient"),
        },
    ),
    (
        "Train",
        "training",
        {
            "train": ("Train", "train the denoiser on a store"),
            "train-icnet": ("TrainICNet", "train IC-Net, the intensity calibration network, on a store"),
            "train-slice-vae": ("TrainSliceVAE", "train a baseline: the slice-to-3D VAE"),
            "train-gan": ("TrainGAN", "train a baseline: StyleGAN2 or StyleGAN3, for single slices"),
            "pyramid": ("JoinLevels", "join a plan and the levels that follow it into one checkpoint"),
        },
    ),
    (
        "Evaluate",
        "evaluation",
        {
            "evaluate": ("Evaluate", "compare synthetic volumes with real ones: tables and an HTML report"),
            "reference": ("Reference", "measure a store as a reference for the report of generate"),
        },
    ),
    (
        "Find anomalies (research use)",
        "anomaly",
        {
            "anomaly": ("Anomaly", "draw what a scan would look like if it were normal, and score the difference"),
            "anomaly-reference": ("AnomalyReference", "measure normal heads as a reference for anomaly"),
        },
    ),
    (
        "View and convert",
        "volumes",
        {
            "info": ("Info", "describe a checkpoint, store, run, DICOM folder or NIfTI file"),
            "view": ("View", "view volumes in a browser: three planes, 3D, windows, two side by side"),
            "export": ("Export", "write any volume as a DICOM series, NIfTI or picture"),
        },
    ),
    (
        "Clinic",
        "clinic",
        {
            "push": ("Push", "send DICOM to a PACS (DICOMweb or DIMSE)"),
            "pull": ("Pull", "fetch CT series from a PACS, for prepare to read"),
            "deidentify": ("Deidentify", "copy CT images without anything that identifies the patient"),
            "segmentation": ("Segmentation", "write a label map as a DICOM segmentation"),
        },
    ),
    (
        "Blinded reading study",
        "study",
        {
            "study create": ("Create", "draw the cases, hide which is which, make the readers' links"),
            "study serve": ("Serve", "serve the readers' pages"),
            "study close": ("Close", "accept no more answers"),
            "study report": ("Report", "tables, tests, agreement and ROC of the answers so far"),
        },
    ),
    (
        "Shell",
        "completion",
        {"completion": ("Completion", "print a script that completes commands and flags in bash, zsh or fish")},
    ),
)
COMMANDS = {name: (module, kind) for _, module, commands in GROUPS for name, (kind, _) in commands.items()}

HEAD = """\
usage: slicewise COMMAND [OPTIONS]        (slicewise COMMAND --help explains each)

Whole head CT volumes, slice by slice, in the full 12-bit range (-1024 ... 3071 HU).
"""
FOOT = """\
Settings come from flags, then --config FILE (TOML), then --preset NAME, then defaults.
Results go to stdout, progress to stderr; info, prepare, generate, evaluate, anomaly, push, pull and deidentify take
--json.
Exit status: 0 done, 1 bad input (one line on stderr), 2 bad usage, 130 stopped by Ctrl-C.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command. Exit status: 0 done, 1 bad input (one line on stderr), 2 bad usage, 130 stopped by Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage(), end="", file=sys.stdout if argv else sys.stderr)
        sys.exit(0 if argv else 2)
    if argv[0] in ("-V", "--version"):
        print(f"slicewise {slicewise.__version__}")
        return
    name = next((n for n in (" ".join(argv[:2]), argv[0]) if n in COMMANDS), "")
    if not name:
        _explain(argv)
    from slicewise.cli.parse import as_flags, parse

    kind = command_class(name)
    try:
        parse(name, kind, argv[len(name.split()) :]).run()
    except UserError as error:
        print(f"slicewise {name}: {as_flags(str(error), kind)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"slicewise {name}: stopped; run the same command again to resume", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def command_class(name: str) -> "type[Command]":
    """The class of a command, its module imported now."""
    module, kind = COMMANDS[name]
    found: type[Command] = getattr(import_module(f"slicewise.cli.{module}"), kind)
    return found


def usage(family: str = "") -> str:
    """What can be done: all commands, or those of two words that begin with `family`."""
    width = max(map(len, COMMANDS))
    parts = []
    for title, _, commands in GROUPS:
        rows = [f"  {n:{width}}  {does}" for n, (_, does) in commands.items() if n.startswith(family)]
        if rows:
            parts.append("\n".join([f"{title}:", *rows, ""]))
    return "\n".join(parts if family else [HEAD, *parts, FOOT])


def _explain(argv: Sequence[str]) -> None:
    """End where no command was named: with the commands of a family that was, or with what was wrong."""
    family = usage(f"{argv[0]} ") if argv[0].isalpha() else ""
    asked = bool(family) and len(argv) > 1 and argv[1] in ("-h", "--help", "help")
    if family:
        print(family, end="", file=sys.stdout if asked else sys.stderr)
    else:
        print(f"slicewise: unknown command {argv[0]!r}; slicewise --help lists them", file=sys.stderr)
    sys.exit(0 if asked else 2)
