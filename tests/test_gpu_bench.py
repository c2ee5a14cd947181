"""The scripts for ten minutes of a GPU: their short forms on the CPU, their parcels, and what they need to be there."""

import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from slicewise.checkpoint import load_denoiser
from slicewise.data.store import Store
from slicewise.errors import UserError
from slicewise.io.tensors import load_tensors
from slicewise.networks.shapes import UNetConfig
from slicewise.pyramid import load_pyramid
from slicewise.training.denoiser import train_denoiser
from slicewise.training.settings import DenoiserTraining

ROOT = Path(__file__).parents[1]
GPU = ROOT / "bench" / "gpu"
TOY = DenoiserTraining(
    unet=UNetConfig(channels=(8, 16), blocks=(1, 1), attention=(False, True), embedding=16, fold=1),
    steps=8, batch=4, validations=0, core="float32", device="cpu", validation_windows=4,
)  # fmt: skip


def module(name: str):
    """A file of the folder, which is no package: its names are its own only while it is loaded."""
    sys.path.insert(0, str(GPU))
    before = set(sys.modules)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(GPU))
        for other in set(sys.modules) - before:
            if Path(getattr(sys.modules[other], "__file__", None) or "/").parent == GPU:
                del sys.modules[other]


@pytest.fixture(scope="module")
def parcel():
    return module("parcel")


@pytest.fixture(scope="module")
def run(toy_store: Store, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("gpu") / "run"
    train_denoiser(toy_store, out, TOY)
    return out


def script(name: str, *options: str | Path, env: dict[str, str] | None = None) -> str:
    """What a script prints; its last lines are the table."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", **(env or {})}
    done = subprocess.run(
        [sys.executable, GPU / name, *map(str, options)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(text: str) -> dict[str, dict[str, str]]:
    """The rows of all Markdown tables in a text, by name."""
    found, columns = {}, []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if not cells or cells[0] == "---":
            continue
        if cells[0] == "":
            columns = cells[1:]
        else:
            found[cells[0]] = dict(zip(columns, cells[1:], strict=True))
    return found


def number(text: str) -> float:
    return float(text.replace(",", "").rstrip("%"))


# --- Parcels ---------------------------------------------------------------------------------------------------------


def test_a_parcel_gives_back_a_run_that_training_goes_on_from(parcel, run, toy_store, tmp_path):
    assert parcel.pack([run], tmp_path / "out") == []
    (back,) = parcel.unpack(tmp_path / "out", tmp_path / "home")
    (before, about), (after, about_after) = (load_tensors(r / parcel.STATE) for r in (run, back))
    assert about == about_after
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        if name.startswith("adam.exp_avg."):
            assert not after[name].any()
        elif name.startswith("adam.exp_avg_sq."):
            assert torch.allclose(after[name], tensor, rtol=2**-8, atol=0)
        elif name.startswith("ema."):
            assert torch.equal(after[name], tensor.half().float())
        else:
            assert torch.equal(after[name], tensor), name
    (weights, said), (weights_after, said_after) = (load_tensors(r / "weights.safetensors") for r in (run, back))
    assert said == said_after
    assert weights.keys() == weights_after.keys()
    assert all(torch.allclose(weights_after[name], w, rtol=2**-10, atol=1e-7) for name, w in weights.items())
    for name in parcel.NOTES:
        assert (back / name).read_bytes() == (run / name).read_bytes()
    train_denoiser(toy_store, back, replace(TOY, steps=12))
    assert load_denoiser(back).meta["step"] == 12


def test_a_parcel_that_has_little_room_keeps_what_training_can_start_from(parcel, run, toy_store, tmp_path):
    """Brief: a fresh Adam, all averages the saved weights."""
    whole = parcel._size(parcel._tensors(run, False))
    left_out = parcel.pack([run], tmp_path / "out", limit=whole - 1)
    assert "run: whole state" in left_out
    (back,) = parcel.unpack(tmp_path / "out", tmp_path / "home")
    state, weights = load_tensors(back / parcel.STATE)[0], load_tensors(back / "weights.safetensors")[0]
    assert not any(name.startswith("adam.") for name in state)
    assert {name for name in load_tensors(run / parcel.STATE)[0] if not name.startswith("adam.")} == state.keys()
    assert all(torch.equal(state[f"denoiser.{name}"], weight) for name, weight in weights.items())
    train_denoiser(toy_store, back, replace(TOY, steps=10))
    assert load_denoiser(back).meta["step"] == 10
    assert parcel.pack([run], tmp_path / "least", limit=20_000) == ["run: whole state", "run: weights"]


def test_a_parcel_comes_in_parts_and_a_damaged_one_is_refused(parcel, run, tmp_path, monkeypatch):
    monkeypatch.setattr(parcel, "PART_BYTES", 20_000)
    parcel.pack([run], tmp_path)
    about = json.loads((tmp_path / "parcel.json").read_text())
    parts = [tmp_path / part["file"] for part in about["parts"]]
    assert len(parts) > 1
    assert all(part.stat().st_size <= 20_000 for part in parts)
    content = bytearray(parts[1].read_bytes())
    content[100] ^= 1
    parts[1].write_bytes(content)
    with pytest.raises(UserError, match=r"parcel\.1: is absent or damaged; bring the parcel home again"):
        parcel.unpack(tmp_path, tmp_path / "home")
    assert not (tmp_path / "home").exists()


def test_the_parcel_of_the_release_network_fits(parcel):
    """5.5 million parameters: whole state and saved weights, in 63 MB. Random numbers stand for weights: no pattern
    helps."""
    torch.manual_seed(0)
    n = 550_000  # a tenth
    w = 0.05 * torch.randn(n)
    small = {"w": w, "ema.0": w.half(), "ema.1": w.half(), "weights": w.half(), "v": w.square().bfloat16()}
    content = parcel.squeeze(small, {})
    back, _ = parcel.expand(content)
    assert all(torch.equal(back[name], tensor) for name, tensor in small.items())
    assert 10 * len(content) < parcel.PARCEL_BYTES - 5_000_000


# --- Scripts ---------------------------------------------------------------------------------------------------------


def test_release_trains_draws_and_goes_on_from_its_parcel(parcel, tmp_path):
    options = ("--short", "--device", "cpu")
    first = rows(script("release.py", *options, "--work", tmp_path / "a", env={"OUT": str(tmp_path / "out")}))
    assert number(first["generated"]["volumes"]) == 2
    assert number(first["held-out heads"]["brain"]) == pytest.approx(31, abs=3)
    assert number(first["last"]["windows/s"]) > 0
    files = list((tmp_path / "out").iterdir())
    assert {f.name for f in files} == {"parcel.0", "parcel.json", "table.md", "results.json"}
    again = script("release.py", *options, "--work", tmp_path / "b", "--out", tmp_path / "out2",
                   "--resume", tmp_path / "out")  # fmt: skip
    assert number(rows(again)["last"]["step"]) > number(first["last"]["step"])
    module("release").main(["--home", str(tmp_path / "out2"), "--work", str(tmp_path / "home")])
    assert len(load_pyramid(tmp_path / "home" / "pyramid.safetensors").levels) == 2
    run = tmp_path / "home" / "draw-128"
    assert (run / "volumes.png").read_bytes()[:4] == b"\x89PNG"
    assert "Learning rate" in (run / "report.html").read_text()
    assert load_denoiser(run).meta["step"] == number(rows(again)["last"]["step"])
    assert again.rstrip().endswith("|")
    assert (tmp_path / "out2" / "table.md").read_text().strip() in again


def test_studies_trains_models_side_by_side(tmp_path):
    out = ("--out", tmp_path / "out", "--work", tmp_path / "work")
    found = rows(script("studies.py", "--short", "--device", "cpu", *out))
    for name in ("sigma-0.001-1348", "slice-vae"):
        assert number(found[name]["slices seen"]) > 0, found
        assert number(found[name]["volumes"]) == 1, found


def test_studies_has_all_the_models_of_the_figures():
    """Four schedules and two GANs (Figure 1), the window (2), ASCII(2) and (3), IC-Net, slice VAE (Table 1), and three
    more ways of training; at both sizes settings that training takes."""
    studies = module("studies")
    for size in ("64", "128"):
        a = studies.arguments(["--size", size, "--device", "cpu"])
        for name in studies.MODELS:
            settings = studies.settings_of(name, a, 2.5)
            settings.check()
            assert (settings.minutes, settings.batch) == (8.5, 64)
    assert len(studies.MODELS) == 13
    by_slices = studies.settings_of("stylegan3", studies.arguments(["--slices", "2000000"]), 2.5)
    assert (by_slices.minutes, by_slices.steps) == (0, 31250)


def test_check_says_what_agrees_and_how_fast_it_is(tmp_path):
    """On the CPU it compares the CPU with itself: nothing but the bfloat16 core may differ."""
    text = script("check.py", "--short", "--device", "cpu", "--out", tmp_path)
    found = rows(text)
    assert "(failed)" not in text, text
    assert "(time over)" not in text, text
    assert found["Philox words"]["equal"] == found["normal"]["equal"] == "yes"
    exact, half = (found[f"denoiser, cpu {core}"] for core in ("float32", "bfloat16"))
    assert all(number(value) == 0 for value in exact.values() if value != "–")
    assert 0 < number(half["σ 0.1: relative"]) < 0.1
    assert number(found["copy, reading and writing"]["GB/s"]) > 0.1
    assert set(json.loads((tmp_path / "results.json").read_text())["Training, toy"]) == {"batch 2", "batch 4"}
    training = text.split("### Training, toy")[1].split("### ")[0]
    speed = rows(training)["batch 4"]
    assert number(speed["windows/s"]) == pytest.approx(4000 / number(speed["ms a step"]), rel=0.01)
    assert number(speed["TFLOP/s"]) == pytest.approx(
        number(speed["GFLOP a window"]) * number(speed["windows/s"]) / 1000, rel=0.01
    )


def test_check_prints_its_table_when_the_time_is_over(tmp_path):
    """Whatever is in work then."""
    text = script("check.py", "--short", "--device", "cpu", "--out", tmp_path, "--seconds", "0.2")
    assert "the time was over before all parts were done" in text
    assert (tmp_path / "results.json").is_file()


# --- What has to be there --------------------------------------------------------------------------------------------

BARE = """
import sys

KNOWN = {"torch", "numpy", "scipy", "safetensors", "rich", "tomli_w", "slicewise", *sys.stdlib_module_names}

class Refuse:
    '''No module but those above, and what they themselves import.'''
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top in KNOWN or top.startswith("_") or not self.of_slicewise():
            return None
        raise ImportError(f"{name} is not on a bare machine")

    def of_slicewise(self):
        frame = sys._getframe(2)
        while frame:
            file = frame.f_code.co_filename
            if not file.startswith("<frozen importlib"):
                return any(ours in file.split("/site-packages/")[-1] for ours in ("slicewise", "bench/gpu"))
            frame = frame.f_back
        return False

OURS = {"check", "draw", "heads", "parcel", "release", "studies", "table"}
KNOWN |= OURS
sys.meta_path.insert(0, Refuse())
sys.path.insert(0, sys.argv[3])
import check, release, studies
from dataclasses import replace
from pathlib import Path

from slicewise.ascii import ChainSettings, chain
from slicewise.checkpoint import load_denoiser
from slicewise.data.store import open_store
from slicewise.networks.unet import UNetConfig
from slicewise.settings import fill, preset
from slicewise.training.denoiser import DenoiserTraining, train_denoiser

store, out = open_store(sys.argv[1]), Path(sys.argv[2])
settings = fill(DenoiserTraining(), preset("train", "tiny-64"), "preset")
settings = replace(
    settings, unet=UNetConfig(channels=(8, 16), blocks=(1, 1), attention=(False, True), embedding=16, fold=1),
    crop=(0, 0), batch=4, steps=2, validations=1, validation_windows=2, device="cpu",
)
train_denoiser(store, out, settings)
train_denoiser(store, out, replace(settings, steps=4))
denoiser = load_denoiser(out)
slices = next(iter(chain(denoiser, ChainSettings(steps=2, slices=1), 0, [0])))
print(denoiser.meta["step"], slices.shape)
try:
    import pydicom
except ImportError:
    print("refused")
"""


def test_training_and_drawing_need_no_more_than_a_bare_machine_has(toy_store, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    code = tmp_path / "slicewise_bare.py"
    code.write_text(BARE)
    command = [sys.executable, code, toy_store.path, tmp_path / "run", GPU]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["4 (1, 16, 16)", "refused"]
