"""Every command of the README and of the page on one's own archive runs, on small data and with few steps; the notebook
code too."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from conftest import toy_head
from label_maps import label_map, write_map
from slicewise.cli import main
from slicewise.data.store import assign_split
from slicewise.io.dicom_write import write_series
from slicewise.release import CHECKPOINT
from slicewise.volume import Volume

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = README + (ROOT / "docs" / "how-to" / "own-archive.md").read_text()
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", PAGES, re.S)
SHELL = "".join(text for kind, text in BLOCKS if kind == "sh")
# A command that both show runs once.
COMMANDS = list(dict.fromkeys(line for line in SHELL.splitlines() if line.startswith("slicewise ")))
# What makes a command short; everything else stays as the README has it.
SHORTER = {
    "train": "--steps 2 --validations 0 --unet.channels 8 8 8 8 --unet.blocks 1 1 1 1 "
    "--unet.attention False False False True",
    "train-icnet": "--steps 2 --validation-pairs 2",
    "generate": "--chain.steps 2 --chain.plan-steps 2 --chain.draw-steps 2 --chain.slices 3",
    "evaluate": "--no-all-slices --rounds 10",
}


def archive(path: Path) -> Path:
    """DICOM series of made-up heads whose patient ids fall into the splits for training and validation."""
    wanted = ["train", "train", "val", "val"]
    number = 0
    while wanted:
        name = f"HEAD-{number}"
        split = assign_split(name)
        if split in wanted:
            wanted.remove(split)
            volume = Volume.regular(toy_head(number, slices=20, size=48), (5.0, 5.0, 5.0))
            write_series(volume, path / name, synthetic=None, patient_id=name)
        number += 1
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("readme")
    archive(path / "archive")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        yield path


def test_readme_has_the_main_commands() -> None:
    shown = set(re.findall(r"^slicewise (\S+)", README, re.M))
    assert {"prepare", "train", "train-icnet", "reference", "generate", "evaluate"} <= shown


def test_page_on_archives_has_the_others() -> None:
    shown = {shlex.split(c)[1] for c in COMMANDS}
    assert {"pyramid", "phantom", "info", "export", "calibrate"} <= shown


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_readme_begins_with_two_commands(command: str) -> None:
    assert command in README.split("## ")[1]


@pytest.mark.parametrize("number", range(len(COMMANDS)), ids=lambda n: COMMANDS[n][:50])
def test_command_of_the_readme_runs(number: int, folder: Path) -> None:
    """In the order of the pages: a command may use what the ones before it made."""
    series = next((folder / "archive").iterdir())
    text = COMMANDS[number].replace("ARCHIVE", "archive").replace("SERIES", f"archive/{series.name}")
    text = re.sub(r"--count \d+", "--count 2", text)
    if "MAPS" in text:
        (folder / "maps").mkdir()
        write_map(folder / "maps" / "head.nii.gz", label_map(0.93))
        text = text.replace("MAPS", "maps --split-people 1 0 0 --cache cache")
    text = re.sub(r"--chain\.slices \d+", "", text)
    argv = shlex.split(text)[1:]
    if "--seed-volume" in argv or argv[0] in ("generate", "calibrate", "demo"):
        if not CHECKPOINT.is_file():
            pytest.skip("the release checkpoint is not in the package")
    main([*argv, *SHORTER.get(argv[0], "").split()])


def test_demo_runs(folder: Path) -> None:
    """`make demo` is `slicewise demo` with its defaults; here with one volume."""
    main(["demo", "--out", "runs/demo", "--count", "1"])
    assert len(list((folder / "runs/demo/dicom/volume-0000").glob("*.dcm"))) > 15
    assert (folder / "runs/demo/report.html").stat().st_size > 100_000


def test_notebook_code_runs(folder: Path) -> None:
    code = next(text for kind, text in BLOCKS if kind == "python")
    few = "slicewise.ChainSettings(steps=2, plan_steps=2, draw_steps=2, slices=3)"
    code = code.replace("count=2", f"count=1, chain={few}")
    names: dict[str, object] = {}
    exec(compile(code, "README", "exec"), names)
    assert isinstance(names["volume"], Volume)
    assert names["volume"].hu.dtype == np.int16
