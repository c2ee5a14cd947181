"""The command line: it answers at once, takes settings in the stated order, and fails in one line."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest

from slicewise import cli, release
from slicewise.cli.parse import field_docs, unfilled
from slicewise.data.phantom import PhantomSettings
from slicewise.data.settings import PrepareSettings
from slicewise.errors import UserError
from slicewise.io.nifti import write_nifti
from slicewise.io.tensors import load_tensors
from slicewise.pyramid import load_pyramid
from slicewise.sampling import GenerateSettings
from slicewise.settings import fill, preset, presets, read_table, write_settings
from slicewise.training.settings import DenoiserTraining, GANTraining, ICNetTraining, SliceVAETraining
from slicewise.volume import Volume

SETTINGS = {
    "phantom": PhantomSettings(),
    "prepare": PrepareSettings(),
    "train": DenoiserTraining(),
    "train-icnet": ICNetTraining(),
    "train-slice-vae": SliceVAETraining(),
    "train-gan": GANTraining(),
    "generate": GenerateSettings(),
}
TINY = (
    "--unet.channels 8 16 --unet.blocks 1 1 --unet.attention False True --unet.embedding 16 --batch 4 --core float32 "
    "--validations 0 --device cpu"
).split()
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def _main(*argv: str) -> int:
    """Exit status of a command."""
    try:
        cli.main([str(a) for a in argv])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def _fails(capsys, *argv) -> str:
    """The one line that a command with bad input says; status 1 and nothing else on stderr."""
    assert _main(*argv) == 1
    err = capsys.readouterr().err.strip()  # a progress bar may have ended before it
    assert "\n" not in err
    assert err.startswith(f"slicewise {argv[0]}: ")
    assert "Traceback" not in err
    return err


# Help --------------------------------------------------------------------------------------------------------------


def test_help_answers_without_what_commands_need():
    """`slicewise --help` needs no tyro, and no command's help what the command computes with."""
    code = """
import sys
from slicewise import cli, release
def call(*argv):
    try:
        cli.main(argv)
    except SystemExit:
        pass
for argv in (["--help"], ["--version"], ["nonsense"], ["study"], []):
    call(*argv)
assert "tyro" not in sys.modules
for command in cli.COMMANDS:
    call(*command.split(), "--help")
    heavy = {"torch", "scipy", "matplotlib", "pydicom", "nibabel", "safetensors", "rich"} & set(sys.modules)
    assert not heavy, (command, heavy)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV)
    assert run.returncode == 0, run.stderr
    for command in cli.COMMANDS:
        assert f"\n  {command} " in run.stdout, f"{command} is not in the usage text"


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_help_of_every_command_answers(command, capsys):
    assert _main(*command.split(), "--help") == 0
    out = capsys.readouterr().out
    assert f"usage: slicewise {command} " in out
    assert ("--config" in out) == hasattr(unfilled(cli.command_class(command)), "settings")
    assert ("--preset" in out) == bool(presets(command))


def _settings_of(kind: type) -> Iterator[type]:
    """The dataclass of a command, and those of its fields."""
    yield kind
    for field in fields(kind):
        if not isinstance(field.default_factory, type):
            hint = get_type_hints(kind)[field.name]
            yield from _settings_of(hint) if is_dataclass(hint) else ()
        elif is_dataclass(field.default_factory):
            yield from _settings_of(field.default_factory)


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_every_flag_has_a_text_of_its_own(command):
    for kind in _settings_of(cli.command_class(command)):
        docs = field_docs(kind)
        flags = [f for f in fields(kind) if not is_dataclass(get_type_hints(kind)[f.name])]
        texts = [docs.get(f.name, "") for f in flags]
        assert all(text.endswith((".", "completions/slicewise", '"', "…")) for text in texts), (kind, texts)
        assert len(set(texts)) == len(texts), kind


@pytest.mark.parametrize(
    "command, flag, text", [("train", "--lr", "Learning rate of Adam"), ("info", "PATH", "File or folder")]
)
def test_flags_are_explained_by_the_docs_of_their_fields(command, flag, text, capsys):
    _main(command, "--help")
    out = " ".join(capsys.readouterr().out.split())
    assert flag in out
    assert text in out


@pytest.mark.parametrize(
    "command, flags",
    [("train", ("--unet.slices", "--ncsnpp.image-size", "--unet3d.size")), ("train-gan", ("--validations", "--size"))],
)
def test_what_follows_from_the_data_is_no_flag(command, flags, capsys):
    _main(command, "--help")
    out = capsys.readouterr().out
    assert not [flag for flag in flags if f"{flag} " in out]
    assert _main(command, "store", "--out", "run", flags[0], "3") == 2


def test_exit_status_of_bad_usage(capsys):
    assert _main() == 2
    assert _main("nonsense") == 2
    assert _main("train") == 2
    assert _main("info", "x", "--no-such-flag") == 2
    assert _main("study") == 2
    assert _main("study", "nonsense") == 2
    assert _main("study", "--help") == 0
    assert _main("prepare", "--out", "store") == 2
    assert "give one or more INPUTS" in capsys.readouterr().err


def test_exit_status_is_explained_where_one_looks(capsys):
    _main("--help")
    assert "0 done, 1 bad input (one line on stderr), 2 bad usage, 130 stopped" in capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_reads_its_completion(shell, tmp_path, capsys):
    assert _main("completion", shell) == 0
    script = tmp_path / "slicewise"
    script.write_text(capsys.readouterr().out)
    text = script.read_text()
    assert "train-icnet" in text
    assert "draw-128" in text
    assert "sigma.std" in text
    if program := shutil.which(shell):
        assert subprocess.run([program, "-n", script]).returncode == 0


def test_bash_completes_commands_flags_and_choices(tmp_path, capsys):
    _main("completion", "bash")
    (tmp_path / "slicewise").write_text(capsys.readouterr().out)
    ask = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
_tyro_slicewise slicewise "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\n' "${COMPREPLY[@]}"
"""

    def completed(*words: str) -> set[str]:
        run = subprocess.run(
            ["bash", "-c", ask, "ask", tmp_path / "slicewise", "slicewise", *words], capture_output=True, text=True
        )
        return set(run.stdout.split())

    assert completed("pre") == {"prepare"}
    assert completed("study", "cl") == {"close"}
    assert completed("study", "create", "--pra") == {"--practice"}
    assert {"plan-32", "draw-128"} <= completed("train", "--preset", "")


# Results for scripts -----------------------------------------------------------------------------------------------


def _json(capsys, *argv) -> dict:
    """What a command prints with --json, which is all that it prints on stdout."""
    assert _main(*argv, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_info_tells_the_levels_of_a_pyramid(capsys):
    """The released checkpoint is one."""
    cli.main(["info", str(release.CHECKPOINT), "--json"])
    found = json.loads(capsys.readouterr().out)
    levels = load_pyramid(release.CHECKPOINT).levels
    assert found["parameters"] == sum(p.numel() for level in levels for p in level.network.parameters())
    cli.main(["info", str(release.CHECKPOINT)])
    shown = capsys.readouterr().out
    assert "pyramid with " in shown
    assert "levels 1:\n" in shown
    assert "levels 2:\n" in shown


def test_info_and_prepare_print_json(tmp_path, capsys):
    hu = np.full((12, 32, 32), -1000, np.int16)
    hu[1:, 8:24, 8:24] = 40
    (tmp_path / "in").mkdir()
    write_nifti(Volume.regular(hu, (5.0, 8.0, 8.0)), tmp_path / "in" / "head.nii.gz")
    (tmp_path / "in" / "broken.nii.gz").write_bytes(b"no NIfTI")
    found = _json(capsys, "info", tmp_path / "in")
    assert found["kind"] == "volumes"
    assert found["volumes"][0]["shape"] == [12, 32, 32]
    assert "broken" in found["skipped"][0]["source"]
    prepare = ["prepare", tmp_path / "in", "--out", tmp_path / "store", "--size", "32", "--workers", "1"]
    report = _json(capsys, *prepare, "--trust-hu")
    assert len(report["prepared"]) == 1
    assert "broken" in report["skipped"][0]["source"]
    found = _json(capsys, "info", tmp_path / "store")
    assert found["kind"] == "store"
    assert [v["id"] for v in found["volumes"]] == report["prepared"]


# Settings ----------------------------------------------------------------------------------------------------------


@pytest.fixture()
def taken(monkeypatch):
    """The settings that `slicewise train` would train with."""
    from slicewise.data import store
    from slicewise.training import denoiser

    got = []
    monkeypatch.setattr(store, "open_store", lambda path: path)
    monkeypatch.setattr(denoiser, "train_denoiser", lambda store, out, settings, init: got.append(settings) or out)
    return got


def test_flag_beats_file_beats_preset_beats_default(taken, tmp_path, capsys):
    file = tmp_path / "mine.toml"
    file.write_text("[train]\nbatch = 5\nsteps = 77\n[train.sigma]\nstd = 1.5\n")
    base = ["train", "store", "--out", tmp_path / "run"]
    _main(*base)
    _main(*base, "--preset", "tiny-64")
    _main(*base, "--preset", "tiny-64", "--config", file)
    _main(*base, f"--config={file}", "--preset=tiny-64", "--batch", "9", "--sigma.mean", "-2")
    default, by_preset, by_file, by_flag = taken
    assert default == DenoiserTraining()
    assert (by_preset.batch, by_preset.unet.channels, by_preset.sigma.sigma_min) == (16, (32, 64, 96), 0.002)
    assert (by_file.batch, by_file.steps, by_file.sigma.std, by_file.unet.channels) == (5, 77, 1.5, (32, 64, 96))
    assert by_file.sigma.sigma_min == 0.002, "a file's table leaves the preset's other keys alone"
    assert (by_flag.batch, by_flag.steps, by_flag.sigma.mean, by_flag.sigma.std) == (9, 77, -2.0, 1.5)
    assert by_flag == replace(by_file, batch=9, sigma=replace(by_file.sigma, mean=-2.0))


def test_train_hands_all_that_was_typed_to_its_processes(monkeypatch):
    from slicewise import runtime

    handed = []
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(runtime, "run_processes", lambda count, arguments: handed.append((count, arguments)) or 0)
    typed = ["train", "store", "--out", "run", "--processes", "2", "--preset", "tiny-64", "--batch", "8"]
    assert _main(*typed) == 0
    assert handed == [(2, typed)]


@pytest.mark.parametrize(
    "text, what",
    [
        ("[train]\nlerning_rate = 1\n", "unknown setting 'lerning_rate'"),
        ("[train.unet]\nwidth = 3\n", "unet: unknown setting 'width'"),
        ("[train]\nbatch = 'many'\n", "batch = 'many'"),
        ("[train]\nbatch = 2.5\n", "batch = 2.5"),
        ("[train]\nbatch = true\n", "batch = True"),
        ("[train]\nnetwork = 'gan'\n", "one of 'unet', 'unet3d', 'ncsnpp'"),
        ("[train]\nsigma = 3\n", "expected a table"),
        ("[train.unet]\nchannels = ['a']\n", r"channels = \['a'\]"),
        ("[train.scale]\ncompanding = 'mu'\n", "companding 'mu' is unknown"),
        ("train = 3\n", "expected a table"),
        ("[train\n", "not TOML"),
        ("\udce4".encode("utf-8", "surrogateescape").decode("latin-1"), "not TOML"),
    ],
)
def test_a_bad_file_is_one_line(text, what, taken, tmp_path, capsys):
    import re

    file = tmp_path / "bad.toml"
    file.write_bytes(text.encode("latin-1"))
    err = _fails(capsys, "train", "store", "--out", tmp_path / "run", "--config", file)
    assert re.search(what, err)
    assert "bad.toml" in err
    assert not taken


def test_bad_flags_of_settings(taken, tmp_path, capsys):
    base = ["train", "store", "--out", tmp_path / "run"]
    assert "preset nope: unknown for train; choose draw-128, draw-512, head-128" in _fails(
        capsys, *base, "--preset", "nope"
    )
    assert "cannot be read" in _fails(capsys, *base, "--config", tmp_path / "absent.toml")
    assert "cannot be read" in _fails(capsys, *base, "--config", tmp_path)
    assert "--config needs a value" in _fails(capsys, *base, "--config")
    assert "companding 'mu' is unknown" in _fails(capsys, *base, "--scale.companding", "mu")
    assert "info has no settings for --preset or --config" in _fails(capsys, "info", "x", "--preset", "tiny-64")
    assert _main(*base, "--batch", "many") == 2
    assert _main(*base, "--network", "gan") == 2
    assert not taken


@pytest.mark.parametrize("command", list(SETTINGS))
def test_every_preset_fits_and_written_settings_read_back(command, tmp_path):
    for name in presets(command):
        filled = fill(SETTINGS[command], preset(command, name), name)
        write_settings(tmp_path / "config.toml", command, filled)
        again = fill(SETTINGS[command], read_table(tmp_path / "config.toml", command), "file")
        assert again == filled
    assert fill(SETTINGS[command], {}, "nothing") == SETTINGS[command]


def test_optional_fields_keep_their_type(tmp_path):
    settings = replace(GenerateSettings(), seed_volume=Path("a/b.nii.gz"))
    write_settings(tmp_path / "c.toml", "generate", settings)
    assert fill(GenerateSettings(), read_table(tmp_path / "c.toml", "generate"), "file") == settings
    with pytest.raises(UserError, match="seed_volume = 3"):
        fill(GenerateSettings(), {"seed_volume": 3}, "file")
    # A file without tables is read whole.
    (tmp_path / "flat.toml").write_text("count = 9\n")
    assert fill(GenerateSettings(), read_table(tmp_path / "flat.toml", "generate"), "file").count == 9


# Errors ------------------------------------------------------------------------------------------------------------


def test_bad_input_is_one_line_that_names_it(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    cases = [
        ("info", tmp_path / "absent"),
        ("info", tmp_path / "empty"),
        ("train", tmp_path / "absent", "--out", tmp_path / "run"),
        ("train-icnet", tmp_path / "absent", "--out", tmp_path / "run"),
        ("generate", "--out", tmp_path / "out", "--checkpoint", tmp_path / "absent.safetensors"),
        ("generate", "--out", tmp_path / "out", "--count", "0"),
        ("calibrate", tmp_path / "absent", "--out", tmp_path / "x.nii.gz"),
        ("export", tmp_path / "absent", "--out", tmp_path / "x.nii.gz"),
        ("reference", tmp_path / "absent", "--out", tmp_path / "x.json"),
        ("prepare", tmp_path / "absent", "--out", tmp_path / "store"),
        ("phantom", tmp_path / "heads", "--count", "0"),
    ]
    for case in cases:
        err = _fails(capsys, *case)
        assert any(word in err for word in ("absent", "empty", "--count")), err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty"], "nothing was written"


@pytest.mark.parametrize("command", ["phantom", "prepare", "generate"])
def test_dry_run_writes_nothing(command, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    hu = np.full((12, 32, 32), -1000, np.int16)
    hu[1:, 8:24, 8:24] = 40
    write_nifti(Volume.regular(hu, (5.0, 8.0, 8.0)), tmp_path / "in" / "head.nii.gz")
    arguments = {
        "phantom": ["phantom", tmp_path / "out", "--count", "2"],
        "prepare": ["prepare", tmp_path / "in", "--out", tmp_path / "out", "--workers", "1"],
        "generate": ["generate", "--out", tmp_path / "out"],
    }[command]
    assert _main(*arguments, "--dry-run") == 0
    assert "would" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


# From data to volumes, and Ctrl-C on the way -----------------------------------------------------------------------


def _signalled(command, run: Path, how: signal.Signals) -> tuple[int, str]:
    """Start a training, send it a signal once it has saved, and wait for it and its children, which hold the other end
    of stderr, to end: exit status and what it said."""
    process = subprocess.Popen(
        [sys.executable, "-m", "slicewise", *map(str, command)], env=ENV, stderr=subprocess.PIPE, text=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not (run / "state" / "state.safetensors").is_file() and process.poll() is None:
        assert time.monotonic() < deadline, "training did not start"
        time.sleep(0.05)
    process.send_signal(how)
    return process.wait(300), process.communicate(timeout=300)[1]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_training_in_two_processes_stops_with_its_parent_and_goes_on(how, toy_store, tmp_path):
    """Ctrl-C, or the parent killed outright: both processes save and end, and one resumes what two have begun."""
    run = tmp_path / "run"
    command = ["train", toy_store.path, "--out", run, *TINY, "--batch", "8", "--processes", "2", "--steps", "4000"]
    command += ["--save-minutes", "0"]
    status, err = _signalled(command, run, how)
    assert err.count("stopped; run the same command again to resume") == 1
    assert "Traceback" not in err
    assert status == (130 if how == signal.SIGINT else -signal.SIGKILL)
    step = load_tensors(run / "state" / "state.safetensors")[1]["place"]["step"]
    command[command.index("--processes") + 1] = "1"
    command[command.index("4000")] = str(step + 2)
    assert _main(*command) == 0
    assert load_tensors(run / "weights.safetensors")[1]["step"] == step + 2


def test_train_and_generate_stop_at_ctrl_c_and_go_on(toy_store, tmp_path, capsys, monkeypatch):
    """A real process is stopped in mid-training, the same command here ends it; generating is stopped and ended too."""
    run, out = tmp_path / "run", tmp_path / "out"
    command = ["train", toy_store.path, "--out", run, *TINY, "--steps", "4000", "--save-minutes", "0"]
    status, err = _signalled(command, run, signal.SIGINT)
    assert status == 130
    assert "stopped; run the same command again to resume" in err
    assert "Traceback" not in err
    step = load_tensors(run / "state" / "state.safetensors")[1]["place"]["step"]
    assert 1 <= step < 4000
    assert _main("train", toy_store.path, "--out", run, *TINY, "--steps", str(step + 2)) == 0
    assert load_tensors(run / "weights.safetensors")[1]["step"] == step + 2
    assert read_table(run / "config.toml", "train")["steps"] == step + 2
    capsys.readouterr()

    from slicewise import generate as generation

    flags = ["--count", "3", "--batch", "1", "--chain.steps", "2", "--chain.slices", "2", "--calibrate", "off"]
    flags += ["--no-report", "--core", "float32", "--device", "cpu"]
    command = ["generate", "--out", out, "--checkpoint", run, *flags]
    write = generation._write

    def stop(to, number, *rest):
        if number == 1:
            os.kill(os.getpid(), signal.SIGINT)
        write(to, number, *rest)

    monkeypatch.setattr(generation, "_write", stop)
    held = signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where tests run in the background
    assert _main(*command) == 130
    signal.signal(signal.SIGINT, held)
    assert "run the same command again to resume" in capsys.readouterr().err
    made = sorted(p.name for p in (out / "dicom").iterdir())
    assert made == ["volume-0000", "volume-0001"], "what was being written is whole, what came after it is not there"
    monkeypatch.undo()
    assert _main(*command) == 0
    assert sorted(p.name for p in (out / "dicom").iterdir()) == [f"volume-{i:04d}" for i in range(3)]
    assert not [p for p in out.rglob(".*")], "no half-written files are left"
    assert "DICOM series" in capsys.readouterr().out
    assert json.loads((out / "generate.json").read_text())["volumes"] == 3
    assert _main("info", run) == 0
    assert "unet with" in capsys.readouterr().out
    assert _main("info", out / "dicom" / "volume-0000") == 0
    assert "2 x 16 x 16 voxels" in capsys.readouterr().out
