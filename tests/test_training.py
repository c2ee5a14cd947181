"""Training the denoiser: it learns, resumes bit for bit, and comes to one result however it is split or stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from slicewise.checkpoint import load_denoiser, load_model
from slicewise.data.store import Store, open_store, put_volume
from slicewise.diffusion.loss import weighted_errors
from slicewise.diffusion.precondition import c_skip
from slicewise.diffusion.settings import SigmaDistribution, WindowTask
from slicewise.errors import UserError
from slicewise.hu import HUScale
from slicewise.io.tensors import load_tensors
from slicewise.networks.shapes import NCSNppConfig, UNetConfig
from slicewise.networks.unet import UNet
from slicewise.runtime import Process, core_dtype
from slicewise.training import ema
from slicewise.training import run as training_run
from slicewise.training.denoiser import Batches, DenoiserTrainer, train_denoiser, training_windows
from slicewise.training.folder import StatsLog
from slicewise.training.run import learning_rate
from slicewise.training.settings import DenoiserTraining, RunSettings
from slicewise.volume import Volume

TINY = UNetConfig(channels=(8, 16), blocks=(1, 1), attention=(False, True), embedding=16, fold=1)
TOY = DenoiserTraining(
    unet=TINY, steps=12, batch=4, lr=3e-3, warmup=0.2, validations=0, core="float32", device="cpu",
    validation_windows=4,
)  # fmt: skip
TOY_SIGMA = SigmaDistribution(mean=-1.0, std=1.0)


def _losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "stats.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def _state(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "state" / "state.safetensors")


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def trained(toy_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 80 steps with validation at its end."""
    out = tmp_path_factory.mktemp("trained") / "run"
    settings = replace(TOY, steps=80, batch=8, lr=1e-2, validations=1, sigma=TOY_SIGMA)
    train_denoiser(toy_store, out, settings)
    return out


def test_the_loss_falls_and_the_run_folder_is_whole(trained, toy_store):
    """On batches that training has not seen; at these noise levels a network that says nothing has a loss near one."""
    batches = Batches(training_windows(toy_store, "train", 3), replace(TOY, sigma=TOY_SIGMA), range(64))
    denoiser, batch = load_denoiser(trained), batches.make(1000)
    noisy = batch["clean"] + batch["sigma"].float()[:, :, None, None] * batch["noise"]
    loss = []
    for network in (UNet(replace(TINY, local=False)).eval(), denoiser.network):
        with torch.no_grad():
            d = replace(denoiser, network=network)(noisy, batch["sigma"], batch["position"])
        errors = weighted_errors(d, batch["clean"], batch["sigma"], denoiser.recipe.sigma_data)
        loss.append(float(errors[batch["wanted"]].mean()))
    assert 0.6 < loss[0] < 1.4, loss
    assert loss[1] < 0.85 * loss[0], loss
    assert len(_losses(trained)) == 4
    for name in ("config.toml", "env.json", "stats.jsonl", "weights.safetensors", "weights.json"):
        assert (trained / name).is_file(), name
    assert not list(trained.rglob("*.tmp"))


def test_the_checkpoint_says_all_that_is_needed_and_denoises(trained, toy_store):
    denoiser = load_denoiser(trained)
    recipe = denoiser.recipe
    assert (recipe.slices, recipe.size, recipe.spacing_mm, recipe.max_slices) == (3, 16, (5.0, 12.0, 12.0), 8)
    assert denoiser.meta["step"] == 80
    assert denoiser.meta["data"] == toy_store.fingerprint
    hu, position = training_windows(toy_store, "val", 3).read(4)
    clean = torch.from_numpy(recipe.scale.encode(hu))[None].double()
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal(clean.shape))
    x, sigma = clean + 0.5 * noise, torch.full((1, 3), 0.5, dtype=torch.float64)
    with torch.no_grad():
        d = denoiser(x, sigma, torch.tensor([position]))
    untrained = c_skip(torch.tensor(0.5), recipe.sigma_data) * x
    assert float((d - clean)[:, 2].square().mean()) < 0.9 * float((untrained - clean)[:, 2].square().mean())


@pytest.mark.parametrize("scale", [HUScale(), HUScale(companding="half"), HUScale(-10, 70)])
def test_the_checkpoint_says_where_its_hu_scale_puts_the_brain(scale, toy_store, tmp_path):
    """In units of sigma_data: 30 HU, and by a finite difference what a HU there is worth."""
    train_denoiser(toy_store, tmp_path / "run", replace(TOY, steps=1, scale=scale))
    denoiser = load_denoiser(tmp_path / "run")
    below, centre, above = scale.encode(np.array([29.5, 30.0, 30.5])).astype(float) / denoiser.recipe.sigma_data
    assert float(denoiser.network.centre) == pytest.approx(centre, abs=1e-6)
    assert float(denoiser.network.zoom) * (above - below) == pytest.approx(UNet.HU, rel=1e-3)


def test_validation_gives_errors_in_hu_by_noise_level(trained):
    lines = [json.loads(line) for line in (trained / "stats.jsonl").read_text().splitlines()]
    rows = next(line["validation"] for line in lines if "validation" in line)
    assert [row["sigma"] for row in rows][:2] == [0.003, 0.01]
    heads = [row["head_rmse_hu"] for row in rows]
    assert 0 < heads[0] < 20
    assert heads[0] < heads[4] < heads[-1] < 3000
    assert rows[0]["brain_rmse_hu"] > 0
    assert abs(rows[0]["brain_bias_hu"]) <= rows[0]["brain_rmse_hu"]


@pytest.mark.parametrize("variant", ["per slice", "joint", "ncsnpp"])
def test_a_stopped_run_goes_on_bit_for_bit(variant, toy_store, tmp_path):
    settings = replace(TOY, steps=12)
    if variant == "joint":
        settings = replace(settings, task=WindowTask(joint=True), position=False, balance=False, slices=2, flip=True)
        settings = replace(settings, crop=(8, 0))
    if variant == "ncsnpp":
        small = NCSNppConfig(channels=8, multipliers=(1, 2), blocks=1, attention=(8,))
        settings = replace(settings, network="ncsnpp", ncsnpp=small, crop=(8, 12))
    train_denoiser(toy_store, tmp_path / "whole", settings)
    _stop_after(toy_store, tmp_path / "parts", settings, 7)
    assert _place(tmp_path / "parts")["step"] == 7
    train_denoiser(toy_store, tmp_path / "parts", settings)
    assert _same(_state(tmp_path / "whole"), _state(tmp_path / "parts"))
    assert _same(*(load_file(tmp_path / p / "weights.safetensors") for p in ("whole", "parts")))


def _place(out: Path) -> dict[str, float]:
    return load_tensors(out / "state" / "state.safetensors")[1]["place"]


def _stop_after(store: Store, out: Path, settings: DenoiserTraining, steps: int) -> None:
    """Train until Ctrl-C comes in the middle of the last of so many steps."""
    made = Batches.fill

    def fill(self, plan, hu=None):
        if plan["step"] == steps - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return made(self, plan, hu)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batches, "fill", fill)
        with pytest.raises(KeyboardInterrupt):
            train_denoiser(store, out, settings)


def test_a_process_that_is_told_to_stop_by_another_is_not_asked_again(toy_store, tmp_path, monkeypatch):
    """The first process to hear that their parent is gone tells the others; SIGTERM must not end them while they save
    or after."""
    ending = threading.Event()
    monkeypatch.setattr(training_run, "ending", ending)
    agree = Process.agree
    monkeypatch.setattr(
        Process, "agree", lambda self, *values: (1.0, *values[1:]) if len(values) == 3 else agree(self, *values)
    )
    asked = []
    monkeypatch.setattr(training_run, "save", lambda *rest: asked.append(ending.is_set()))
    with pytest.raises(KeyboardInterrupt):
        train_denoiser(toy_store, tmp_path, TOY)
    assert asked == [True]


def test_a_finished_run_is_left_as_it_is(toy_store, tmp_path):
    train_denoiser(toy_store, tmp_path, TOY)
    before = (tmp_path / "weights.safetensors").stat().st_mtime_ns
    train_denoiser(toy_store, tmp_path, TOY)
    assert (tmp_path / "weights.safetensors").stat().st_mtime_ns == before


def test_a_run_by_the_clock_uses_its_minutes_and_goes_on_when_given_more(toy_store, tmp_path):
    # A long cooldown: on a crowded machine few steps begin in the last second.
    settings = replace(TOY, steps=10**9, minutes=0.05, cooldown=0.9, validations=2)
    train_denoiser(toy_store, tmp_path, settings)
    first = _place(tmp_path)
    assert first["seconds"] >= 3
    assert first["step"] > 0
    rates = [row["lr"] for row in _rows(tmp_path) if "lr" in row]
    assert rates[-1] < 0.5 * settings.lr, "it ended in its cooldown"
    train_denoiser(toy_store, tmp_path, replace(settings, minutes=0.1))
    second = _place(tmp_path)
    assert second["step"] > first["step"]
    assert second["seconds"] >= 6
    assert second["begun"] == first["seconds"]
    assert load_denoiser(tmp_path).meta["step"] == second["step"]


def test_heads_that_come_while_training_are_taken_in(toy_store, tmp_path):
    """A head is written into the store in the middle of a run; continuing knows its order."""
    path = tmp_path / "store"
    shutil.copytree(toy_store.path, path)
    made = Batches.fill

    def fill(self, plan, hu=None):
        if plan["step"] == 10:
            put_volume(path, Volume.regular(np.full((9, 16, 16), 40, np.int16), (5.0, 12.0, 12.0)), id="a-new",
                       patient="new", split="train", vertex_slice=0)  # fmt: skip
        return made(self, plan, hu)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batches, "fill", fill)
        patch.setattr("slicewise.training.run.INTAKE_SECONDS", 0.0)
        train_denoiser(open_store(path), tmp_path / "run", replace(TOY, steps=40))
    meta = load_tensors(tmp_path / "run" / "state" / "state.safetensors")[1]
    assert [name for name, _ in meta["heads"]] == ["h0", "h1", "h2", "h3", "h4", "a-new"]
    assert load_denoiser(tmp_path / "run").recipe.max_slices == 9
    train_denoiser(open_store(path), tmp_path / "run", replace(TOY, steps=44))
    (path / "manifest.jsonl").write_text(
        "".join(line + "\n" for line in (path / "manifest.jsonl").read_text().splitlines() if '"h2"' not in line)
    )
    with pytest.raises(UserError, match="trained on h2, which is no longer in the train split"):
        train_denoiser(open_store(path), tmp_path / "run", replace(TOY, steps=48))


def test_two_runs_in_one_folder_are_refused(toy_store, tmp_path):
    made = Batches.fill

    def fill(self, plan, hu=None):
        if plan["step"] == 1:
            with pytest.raises(UserError, match="another program is training here"):
                train_denoiser(toy_store, tmp_path, TOY)
        return made(self, plan, hu)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batches, "fill", fill)
        train_denoiser(toy_store, tmp_path, TOY)
    assert _place(tmp_path)["step"] == 12


def test_a_full_disk_ends_in_one_line_and_keeps_the_last_checkpoint(toy_store, tmp_path, monkeypatch):
    train_denoiser(toy_store, tmp_path, replace(TOY, steps=4))

    def full(tensors, path, metadata):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("slicewise.io.tensors.save_file", full)
    with pytest.raises(UserError, match="space") as caught:
        train_denoiser(toy_store, tmp_path, TOY)
    assert "\n" not in str(caught.value)
    assert _place(tmp_path)["step"] == 4
    monkeypatch.undo()
    train_denoiser(toy_store, tmp_path, TOY)


def test_a_loss_that_is_not_finite_ends_in_one_line_and_keeps_the_last_checkpoint(toy_store, tmp_path, monkeypatch):
    made = Batches.fill

    def spoilt(self, plan, hu=None):
        batch = made(self, plan, hu)
        if plan["step"] == 3:
            batch["clean"][0, 0, 0, 0] = float("nan")
        return batch

    monkeypatch.setattr(Batches, "fill", spoilt)
    with pytest.raises(UserError, match="not finite at step 4") as caught:
        train_denoiser(toy_store, tmp_path, replace(TOY, save_minutes=0.0))
    assert "\n" not in str(caught.value)
    tensors, meta = load_tensors(tmp_path / "state" / "state.safetensors")
    assert meta["place"]["step"] == 3
    assert all(t.isfinite().all() for t in tensors.values())
    monkeypatch.undo()
    train_denoiser(toy_store, tmp_path, TOY)  # and continues


def test_what_memory_does_not_hold_is_said_with_what_it_does(toy_store, tmp_path, monkeypatch):
    """A device that takes three windows at once: eight are told to go by twos, and do so on request."""
    forward = UNet.forward

    def small(self, x, *rest, **named):
        if len(x) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return forward(self, x, *rest, **named)

    settings = replace(TOY, batch=8, steps=4)
    train_denoiser(toy_store, tmp_path / "large", settings)
    monkeypatch.setattr(UNet, "forward", small)
    with pytest.raises(UserError, match=r"batch=8: does not fit .*micro_batch=2, which does, or .*fit_memory=True"):
        train_denoiser(toy_store, tmp_path / "told", settings)
    for name, change in (("told", {"micro_batch": 2}), ("asked", {"fit_memory": True})):
        train_denoiser(toy_store, tmp_path / name, replace(settings, **change))
        a, b = (load_file(tmp_path / run / "weights.safetensors") for run in ("large", name))
        for key in a:
            torch.testing.assert_close(b[key], a[key], rtol=1e-3, atol=1e-4)


def test_weights_that_are_not_finite_are_never_saved(toy_store, tmp_path, monkeypatch):
    step = DenoiserTrainer.step

    def spoil(self, number):
        shown = step(self, number)
        if number == 3:
            with torch.no_grad():
                self.parameters[0][0] = float("inf")
        return shown

    monkeypatch.setattr(DenoiserTrainer, "step", spoil)
    with pytest.raises(UserError, match="not finite"):
        train_denoiser(toy_store, tmp_path, replace(TOY, save_minutes=0.0, clip=1e30))
    assert _place(tmp_path)["step"] == 3


@pytest.mark.parametrize(
    "change, what",
    [
        ({"unet": replace(TINY, channels=(8, 24))}, "run's unet is"),
        ({"unet": replace(TINY, blocks=(1, 2))}, "run's unet is"),
        ({"scale": HUScale()}, "run's scale is"),
        ({"task": WindowTask(joint=True)}, "run's task is"),
        ({"slices": 2}, "run's slices is"),
        ({"position": False}, "run's position is"),
        ({"seed": 1}, "run's seed is"),
    ],
)
def test_going_on_with_what_the_run_is_not_is_refused_and_changes_nothing(change, what, toy_store, trained, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    before = {f: f.read_bytes() for f in out.rglob("*") if f.is_file()}
    with pytest.raises(UserError, match=what) as caught:
        train_denoiser(toy_store, out, replace(TOY, steps=90, sigma=TOY_SIGMA, **change))
    assert "\n" not in str(caught.value)
    assert {f: f.read_bytes() for f in out.rglob("*") if f.is_file()} == before


@pytest.mark.parametrize(
    "change, what",
    [
        ({"slices": 1}, "slices=1"),
        ({"batch": 0}, "batch=0"),
        ({"steps": 0}, "steps=0"),
        ({"minutes": -1.0}, "minutes=-1"),
        ({"warmup": 1.5}, "warmup=1.5"),
        ({"ema": 0.5}, "ema=0.5"),
        ({"unet": replace(TINY, channels=(8, 8, 8, 8), blocks=(1,) * 4, attention=(False,) * 4, fold=4)}, "16 pixels"),
        ({"unet": replace(TINY, blocks=(1, 1, 1))}, "one per level"),
        ({"unet": replace(TINY, window=(16.0,))}, "UNetConfig.window_mean"),
        ({"crop": (7, 8)}, "DenoiserTraining.crop"),
        ({"crop": (8, 18)}, "DenoiserTraining.crop"),
        ({"unet": replace(TINY, window=(16.0,), window_mean=(4,))}, "the means odd"),
        ({"device": "cuda"}, "device=cuda"),
    ],
)
def test_settings_that_cannot_work_are_said_before_anything_is_written(change, what, toy_store, tmp_path):
    if change.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(UserError, match=what) as caught:
        train_denoiser(toy_store, tmp_path / "run", replace(TOY, **change))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_fine_tuning_starts_from_the_given_weights_and_keeps_their_recipe(toy_store, trained, tmp_path):
    settings = replace(TOY, steps=2, lr=1e-12)
    train_denoiser(toy_store, tmp_path / "tuned", settings, init=trained)
    theirs, ours = load_file(trained / "weights.safetensors"), load_file(tmp_path / "tuned" / "weights.safetensors")
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)
    assert load_denoiser(tmp_path / "tuned").recipe.sigma_data == load_denoiser(trained).recipe.sigma_data
    with pytest.raises(UserError, match="HU scale"):
        train_denoiser(toy_store, tmp_path / "other", replace(settings, scale=HUScale()), init=trained)
    with pytest.raises(UserError, match="network"):
        other = replace(settings, unet=replace(TINY, channels=(8, 24)))
        train_denoiser(toy_store, tmp_path / "other", other, init=trained)
    assert not (tmp_path / "other").exists()


def test_learning_rate_warms_up_holds_and_falls():
    s = RunSettings(warmup=0.1, cooldown=0.3)
    assert learning_rate(0, 1000, s) == pytest.approx(0.01)
    assert learning_rate(49, 1000, s) == pytest.approx(0.5)
    assert learning_rate(99, 1000, s) == learning_rate(500, 1000, s) == learning_rate(700, 1000, s) == 1.0
    assert learning_rate(850, 1000, s) == pytest.approx(0.5)
    assert learning_rate(999, 1000, s) == pytest.approx(1 / 300)
    assert learning_rate(999, 1000, replace(s, cooldown=0.0)) == 1.0
    assert learning_rate(649, 1000, s, begun=600) == pytest.approx(0.5), "a run that was finished warms up again"


def test_one_process_has_nothing_to_shard(toy_store, tmp_path):
    for parallel in ("ddp", "fsdp"):
        train_denoiser(toy_store, tmp_path / parallel, replace(TOY, steps=2, parallel=parallel))
    a, b = (load_file(tmp_path / parallel / "weights.safetensors") for parallel in ("ddp", "fsdp"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def _rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "stats.jsonl").read_text().splitlines()]


def test_the_width_of_the_average_is_chosen_by_validation_or_asked_for(toy_store, tmp_path):
    settings = replace(TOY, steps=64, validations=1, sigma=TOY_SIGMA)
    train_denoiser(toy_store, tmp_path, settings)
    scores = next(row["ema"] for row in _rows(tmp_path) if "ema" in row)
    best = min(scores, key=scores.get)
    assert len(scores) == len(ema.TRIED)
    assert load_denoiser(tmp_path).meta["ema"] == float(best)
    chosen = load_file(tmp_path / "weights.safetensors")
    train_denoiser(toy_store, tmp_path, replace(settings, ema=0.2))
    assert load_denoiser(tmp_path).meta["ema"] == 0.2
    assert not _same(chosen, load_file(tmp_path / "weights.safetensors")) or best == "0.2"


def test_stats_log_drops_what_a_crash_left_behind(tmp_path):
    path = tmp_path / "stats.jsonl"
    path.write_text('{"step": 20, "loss": 1}\n{"step": 40, "loss": 2}\n{"step": 60, "lo')
    StatsLog(tmp_path, 20).write(step=40, loss=3)
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [1, 3]


def test_core_dtype_can_be_chosen():
    cpu = torch.device("cpu")
    assert core_dtype(cpu, "float32") == torch.float32
    assert core_dtype(cpu, "bfloat16") == torch.bfloat16
    assert core_dtype(cpu) in (torch.float32, torch.bfloat16)


# Checkpoints -------------------------------------------------------------------------------------------------------


def _copy(trained: Path, to: Path) -> Path:
    to.mkdir(exist_ok=True)
    for name in ("weights.safetensors", "weights.json"):
        (to / name).write_bytes((trained / name).read_bytes())
    return to / "weights.safetensors"


def _rewrite(path: Path, **changes) -> None:
    """The same tensors under other metadata."""
    tensors, meta = load_tensors(path)
    save_file(tensors, path, metadata={"slicewise": json.dumps({**meta, **changes})})
    path.with_suffix(".json").unlink()


def _cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def _cut_in_header(path):
    path.write_bytes(path.read_bytes()[:40])


def _alter(path):
    data = bytearray(path.read_bytes())
    data[-10] ^= 0x40
    path.write_bytes(bytes(data))


def _other_kind(path):
    _rewrite(path, kind="icnet")


def _other_size(path):
    meta = load_tensors(path)[1]
    _rewrite(path, network={**meta["network"], "channels": [8, 24]})


@pytest.mark.parametrize(
    "damage, what",
    [
        (_cut, "cut short or damaged"),
        (_cut_in_header, "cut short or damaged"),
        (_alter, "SHA-256"),
        (lambda p: p.write_bytes(b""), "cut short or damaged"),
        (lambda p: p.unlink(), "no such checkpoint"),
        (lambda p: p.with_suffix(".json").write_text("{"), "weights.json"),
        (lambda p: _rewrite(p, format=99), "format 99"),
        (_other_kind, "kind icnet"),
        (lambda p: _rewrite(p, kind="gan"), "gan"),
        (_other_size, "do not fit"),
        (lambda p: _rewrite(p, network={"slices": 3, "depth": 5}), "do not fit"),
        (lambda p: save_file({"a": torch.zeros(1)}, p), "not a slicewise checkpoint"),
    ],
)
def test_a_bad_checkpoint_is_one_line_that_names_it(damage, what, trained, tmp_path):
    path = _copy(trained, tmp_path / "copy")
    damage(path)
    with pytest.raises(UserError, match=what) as caught:
        load_denoiser(path)
    assert str(path.parent) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_needs_no_sidecar_and_a_training_state_is_none(trained, tmp_path):
    path = _copy(trained, tmp_path / "copy")
    path.with_suffix(".json").unlink()
    assert load_model(path)[1]["step"] == 80
    with pytest.raises(UserError, match="format None"):
        load_model(trained / "state" / "state.safetensors")


# Many processes ----------------------------------------------------------------------------------------------------

SCRIPT = """
import sys, torch
from pathlib import Path
from dataclasses import replace
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from test_training import TOY
from slicewise.data.store import open_store
from slicewise.training.denoiser import train_denoiser
if __name__ == "__main__":
    settings = replace(TOY, steps=40, parallel={parallel!r}, validations=1)
    train_denoiser(open_store({store!r}), Path({out!r}), settings)
"""


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_train_as_one(parallel, toy_store, tmp_path):
    """The same global batch over two gloo processes gives the same losses, weights and validation."""
    pytest.importorskip("torch.distributed")
    one, two = tmp_path / "one", tmp_path / "two"
    settings = replace(TOY, steps=40, validations=1)
    train_denoiser(toy_store, one, settings)
    script = tmp_path / "run.py"
    script.write_text(
        SCRIPT.format(tests=str(Path(__file__).parent), parallel=parallel, store=str(toy_store.path), out=str(two))
    )
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)],
        capture_output=True, text=True, timeout=900, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    np.testing.assert_allclose(_losses(two), _losses(one), rtol=1e-4)
    a, b = _state(one), _state(two)
    assert a.keys() == b.keys()
    for name in a:
        if name.startswith(("denoiser.", "ema.")):
            torch.testing.assert_close(b[name], a[name], rtol=1e-3, atol=2e-4)
    # One process continues with what two have begun.
    train_denoiser(toy_store, two, replace(settings, steps=41))
    assert load_model(two)[1]["step"] == 41
