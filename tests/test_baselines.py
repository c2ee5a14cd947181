"""Baselines as the main model: they train, continue bit for bit, are drawn by `generate`, and fail in one line."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from safetensors.torch import load_file

from conftest import TOY_SPACING, toy_head
from slicewise import cli
from slicewise.baselines.gan_loss import path_lengths
from slicewise.baselines.sampling import draw_volume, load_baseline
from slicewise.baselines.shapes import DiscriminatorConfig, SliceVAEConfig, StyleGAN2Config, StyleGAN3Config
from slicewise.codec import codec
from slicewise.data.store import Store, open_store, put_volume
from slicewise.data.windows import Heads
from slicewise.errors import UserError
from slicewise.generate import generate
from slicewise.hu import HU_MIN, HUScale
from slicewise.io.archive import read_volume
from slicewise.random import AUGMENT, Draws
from slicewise.runtime import ALONE, Process
from slicewise.sampling import ChainSettings, GenerateSettings
from slicewise.settings import read_table
from slicewise.training import gan
from slicewise.training.gan import GANTrainer, adam, train_gan
from slicewise.training.settings import GANTraining, SliceVAETraining
from slicewise.training.slice_vae import SliceVAETrainer, train_slice_vae
from slicewise.training.slices import Slices, recipe_of
from slicewise.volume import Volume

VAE = SliceVAETraining(
    network=SliceVAEConfig(channels=(8, 16), latent=8), steps=6, batch=6, validations=0, validation_slices=4,
    device="cpu",
)  # fmt: skip
GAN2 = GANTraining(
    stylegan2=StyleGAN2Config(latent=16, mapping=2, channel_base=128, channel_max=16),
    stylegan3=StyleGAN3Config(latent=16, mapping=2, layers=4, channel_base=64, channel_max=8),
    discriminator=DiscriminatorConfig(channel_base=128, channel_max=16, group=2),
    steps=6, batch=4, r1_every=3, path_every=2, ada_images=20, device="cpu",
)  # fmt: skip
GAN3 = replace(GAN2, network="stylegan3")
TRAINERS = {"slice-vae": SliceVAETrainer, "stylegan2": GANTrainer, "stylegan3": GANTrainer}
TRAIN = {"slice-vae": (train_slice_vae, VAE), "stylegan2": (train_gan, GAN2), "stylegan3": (train_gan, GAN3)}
PLAIN = GenerateSettings(count=2, calibrate="off", device="cpu")


@pytest.fixture(scope="module")
def runs(toy_store: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A short run of each baseline."""
    folder = tmp_path_factory.mktemp("baselines")
    for kind, (train, settings) in TRAIN.items():
        train(toy_store, folder / kind, settings)
    return {kind: folder / kind for kind in TRAIN}


def _state(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "state" / "state.safetensors")


def _memory(out: Path) -> dict[str, float]:
    return json.loads((out / "state" / "state.json").read_text())["memory"]


def _slices(store: Store, length: int | None = None) -> Slices:
    return Slices(Heads(store, "train"), HUScale(), length)


def _stop_after(kind: str, store: Store, out: Path, settings: GANTraining | SliceVAETraining, steps: int) -> None:
    """Train until Ctrl-C comes in the middle of the last of so many steps."""
    made = TRAINERS[kind].step

    def step(self: object, step: int) -> dict[str, torch.Tensor]:
        if step == steps - 1:
            signal.raise_signal(signal.SIGINT)
        return made(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TRAINERS[kind], "step", step)
        with pytest.raises(KeyboardInterrupt):
            TRAIN[kind][0](store, out, settings)


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def _lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "stats.jsonl").read_text().splitlines()]


# Data --------------------------------------------------------------------------------------------------------------


def test_slices_are_those_below_the_vertex_and_air_fills_a_column(tmp_path):
    heads = [toy_head(i, slices=n) for i, n in enumerate((6, 4))]
    for i, hu in enumerate(heads):
        volume = Volume.regular(hu, TOY_SPACING)
        put_volume(tmp_path, volume, id=f"h{i}", patient=f"p{i}", split="train", vertex_slice=1)
    slices = _slices(open_store(tmp_path))
    recipe = recipe_of(slices.heads, HUScale())
    assert len(slices) == 5 + 3
    assert recipe.max_slices == 5
    assert recipe.size == 16

    def hu(slices: Slices, number: int) -> np.ndarray:
        return slices.hu(torch.tensor([number]))[0, 0].numpy()

    assert np.array_equal(hu(slices, 4), heads[0][5])
    assert np.array_equal(hu(slices, 5), heads[1][1])
    padded = replace(slices, length=6)
    assert len(padded) == 12
    assert np.array_equal(hu(padded, 8), heads[1][3])
    assert (hu(padded, 9) == HU_MIN).all()
    assert (hu(padded, 5) == HU_MIN).all()
    column = HUScale().decode_codes(padded.column(1)[:, 0].numpy())
    assert np.array_equal(column[:3], heads[1][1:])
    assert (column[3:] == HU_MIN).all()
    cut = replace(slices, length=2)
    assert len(cut) == 4
    assert np.array_equal(hu(cut, 1), heads[0][2])
    assert np.array_equal(hu(cut, 2), heads[1][1])


def test_a_batch_is_a_function_of_its_key_and_rounds_back_to_the_data(toy_store):
    slices = _slices(toy_store)
    whole = slices.batch(3, 5, range(6))
    assert torch.equal(torch.cat([slices.batch(3, 5, range(2)), slices.batch(3, 5, range(2, 6))]), whole)
    assert not torch.equal(slices.batch(3, 6, range(6)), whole)
    every = np.concatenate([toy_store.hu(r) for r in slices.heads.records])
    for x in HUScale().decode(whole[:, 0].numpy()):
        nearest = min(every, key=lambda hu: np.abs(hu - x).max())
        assert np.abs(nearest - x).max() <= 0.51, "half a HU of dequantisation"
    flipped = slices.batch(3, 5, range(6), flip=True)
    turned = [bool((a - b.flip(-1)).abs().max() < 1.01 / 2047) for a, b in zip(flipped, whole)]
    assert any(turned)
    assert not all(turned)


# Training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(TRAIN))
def test_a_stopped_run_goes_on_bit_for_bit(kind, toy_store, runs, tmp_path):
    train, settings = TRAIN[kind]
    _stop_after(kind, toy_store, tmp_path / "run", settings, 3)
    half = _state(tmp_path / "run")
    train(toy_store, tmp_path / "run", settings)
    assert _memory(tmp_path / "run") == _memory(runs[kind])
    assert _same(_state(tmp_path / "run"), _state(runs[kind]))
    assert not _same(half, _state(runs[kind]))
    assert _same(load_file(tmp_path / "run" / "weights.safetensors"), load_file(runs[kind] / "weights.safetensors"))
    for name in ("config.toml", "env.json", "weights.json", "stats.jsonl"):
        assert (tmp_path / "run" / name).is_file()
    assert _lines(runs[kind])[-1]["step"] == 6


@pytest.mark.parametrize("kind", list(TRAIN))
def test_another_run_in_the_folder_is_refused_and_changes_nothing(kind, toy_store, runs):
    train, settings = TRAIN[kind]
    before = {f: f.read_bytes() for f in runs[kind].rglob("*") if f.is_file()}
    with pytest.raises(UserError, match="seed is 0, this one's is 1"):
        train(toy_store, runs[kind], replace(settings, seed=1, steps=9))
    assert {f: f.read_bytes() for f in runs[kind].rglob("*") if f.is_file()} == before


@pytest.mark.parametrize("kind", ["stylegan2", "stylegan3"])
def test_the_shape_of_the_other_generator_is_free_to_change(kind, toy_store, runs):
    train, settings = TRAIN[kind]
    other = "stylegan3" if settings.network == "stylegan2" else "stylegan2"
    changed = replace(getattr(settings, other), channel_base=77)
    before = _state(runs[kind])
    train(toy_store, runs[kind], replace(settings, **{other: changed}))
    assert _same(_state(runs[kind]), before)
    with pytest.raises(UserError, match=f"run's {settings.network} is"):
        own = replace(getattr(settings, settings.network), channel_base=77)
        train(toy_store, runs[kind], replace(settings, **{settings.network: own}))


def test_the_vae_learns_and_its_columns_are_those_of_the_encoded_heads(toy_store, tmp_path):
    settings = replace(VAE, steps=60, batch=16, validations=3, samples=1)
    train_slice_vae(toy_store, tmp_path / "vae", settings)
    losses = [line["loss"] for line in _lines(tmp_path / "vae") if "loss" in line]
    assert losses[-1] < 0.7 * losses[0]
    assert [line["step"] for line in _lines(tmp_path / "vae") if "val_rmse_hu" in line] == [20, 40, 60]
    assert (tmp_path / "vae" / "samples" / "0000060.png").is_file()
    baseline = load_baseline(tmp_path / "vae")
    net = baseline.network
    columns = _slices(toy_store, net.config.slices)
    with torch.no_grad():
        latents = np.stack([net.encode(columns.column(i))[0].numpy() for i in range(5)])
    assert np.allclose(net.columns_mean.numpy(), latents.mean(axis=0), atol=1e-4)
    for d in (0, 17):
        held = (net.columns_factor[d] @ net.columns_factor[d].T).numpy()
        assert np.allclose(held, np.cov(latents[:, :, d], rowvar=False), atol=1e-4)


def test_a_finished_vae_that_goes_on_fits_its_columns_anew_and_keeps_their_length(toy_store, tmp_path):
    """Longer heads that have come since are cut to the columns that the run began with."""
    store = tmp_path / "store"
    for i, n in enumerate((6, 5, 9)):
        volume = Volume.regular(toy_head(i, slices=n), TOY_SPACING)
        if i == 2:
            train_slice_vae(open_store(store), tmp_path / "run", VAE)
            before = _state(tmp_path / "run")
        put_volume(store, volume, id=f"h{i}", patient=f"p{i}", split="train", vertex_slice=0)
    train_slice_vae(open_store(store), tmp_path / "run", replace(VAE, steps=8))
    after = _state(tmp_path / "run")
    assert after["vae.columns_mean"].shape == before["vae.columns_mean"].shape == (7, 8 * 16)
    assert not torch.equal(after["vae.columns_factor"], before["vae.columns_factor"])
    baseline = load_baseline(tmp_path / "run")
    assert baseline.recipe.max_slices == 6
    assert baseline.meta["step"] == 8


def test_gan_regularisers_and_augmentation_take_part(toy_store, runs, tmp_path):
    lines = _lines(runs["stylegan2"])
    assert {"loss_g", "loss_d", "r1", "path_length", "augment", "sign"} <= lines[0].keys()
    memory = _memory(runs["stylegan2"])
    assert memory["path_mean"] > 0
    assert 0 < memory["probability"] <= 1
    assert abs(memory["sign"]) <= 2
    assert "path_length" not in _lines(runs["stylegan3"])[0]
    trainer = GANTrainer(toy_store, tmp_path, GAN2, ALONE)
    real = trainer.slices.batch(0, 0, range(4))
    trainer.probability = torch.tensor(0.9)
    seen = trainer._augmented(real, 0, 3)
    assert not torch.allclose(seen, real, atol=1e-2)
    assert torch.equal(seen, trainer._augmented(real, 0, 3))
    trainer.probability = torch.tensor(0.0)
    assert torch.allclose(trainer._augmented(real, 0, 3), real, atol=2e-5)
    never = GANTrainer(toy_store, tmp_path, replace(GAN2, ada_target=0.0), ALONE)
    assert torch.equal(never._augmented(real, 0, 3), real)


def _taken(trainer: GANTrainer, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the trainer would have each optimiser descend, in order; no network changes."""
    losses: list[float] = []
    monkeypatch.setattr(trainer, "_update", lambda module, optimizer, loss: losses.append(float(loss.detach())))
    return losses


def test_lazy_regularisers_are_scaled_by_their_interval(toy_store, tmp_path, monkeypatch):
    """R1 is γ/2 E|∇D|² times its interval, path length E(l - a)² times weight and interval, a the mean with 0.99."""
    settings = replace(GAN2, r1=3.0, path=2.0, r1_every=5, path_every=4, ada_target=0.0)
    trainer = GANTrainer(toy_store, tmp_path, settings, ALONE)
    losses = _taken(trainer, monkeypatch)
    seen = trainer.step(0)
    assert losses[-1] == pytest.approx(3.0 / 2 * 5 * float(seen["r1"]), rel=1e-6)
    trainer.path_mean = torch.tensor(0.5, dtype=torch.float64)
    styles, noise = trainer._styles(8, gan._PATH, [0, 2])
    images = trainer.generator.synthesise(styles, noise)
    directions = Draws(settings.seed, [0, 2], gan._PATH, 8, AUGMENT).normal(16 * 16).view(2, 1, 16, 16)
    lengths = path_lengths(images, styles, directions).detach()
    mean = 0.99 * 0.5 + 0.01 * float(lengths.mean())
    trainer._path_step(8)
    assert losses[-1] == pytest.approx(2.0 * 4 * float((lengths - mean).square().mean()), rel=1e-5)


@pytest.mark.parametrize("mixing", [0.0, 1.0])
def test_slices_are_mixed_of_two_latents_as_often_as_stated(mixing, toy_store, tmp_path):
    trainer = GANTrainer(toy_store, tmp_path, replace(GAN2, mixing=mixing), ALONE)
    styles, _ = trainer._styles(0, gan._G, range(16))
    alike = (styles == styles[:, :1]).all(dim=2)
    assert alike[:, 0].all()
    assert alike[:, -1].all().item() is (mixing == 0.0)
    if mixing:
        assert not alike[:, -1].any(), "crossovers at many layers"
        assert alike.sum(dim=1).unique().numel() > 2, "crossovers at many layers"


@pytest.mark.parametrize("sign", [1, -1])
def test_augmentation_grows_while_the_discriminator_knows_the_real_ones(sign, toy_store, tmp_path):
    """Four steps in which it is sure of them (or of the contrary) move p by as many images as they saw."""
    trainer = GANTrainer(toy_store, tmp_path, replace(GAN2, ada_images=100), ALONE)
    trainer.probability = torch.tensor(0.5, dtype=torch.float64)
    for step in range(gan._ADA_EVERY):
        trainer._adapt(torch.tensor(float(sign)), step)
    assert trainer.probability.item() == pytest.approx(0.5 + sign * 4 * gan._ADA_EVERY / 100)


def test_a_gan_learns_a_constant_level(tmp_path):
    """Slices of one grey value each: the generator's mean comes near the data's, from far away."""
    for i in range(3):
        volume = Volume.regular(np.full((4, 8, 8), 1500 + 10 * i, np.int16), TOY_SPACING)
        put_volume(tmp_path / "store", volume, id=f"h{i}", patient=f"p{i}", split="train", vertex_slice=0)
    settings = replace(GAN2, steps=120, batch=8, r1=0.5, ada_target=0.0, r1_every=4, path_every=16, ema_images=300.0)
    train_gan(open_store(tmp_path / "store"), tmp_path / "run", replace(settings, lr=0.01, lr_discriminator=0.01))
    hu = draw_volume(load_baseline(tmp_path / "run"), 0, 0, 8)
    assert abs(hu.mean() - 1510) < 200, hu.mean()  # an untrained one is at 1023


def test_adam_of_a_lazy_regulariser_forgets_as_fast_as_without():
    plain, lazy = (adam([torch.nn.Parameter(torch.zeros(1))], 0.01, every) for every in (0, 4))
    group = lazy.param_groups[0]
    assert group["lr"] * 5 == pytest.approx(plain.param_groups[0]["lr"] * 4)
    assert group["betas"][1] ** 5 == pytest.approx(0.99**4)


def test_two_processes_train_what_one_does(toy_store, runs, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import os, sys\nfrom test_baselines import TRAIN, open_store, Path\n"
        "for kind, port in zip(('stylegan2', 'stylegan3'), sys.argv[3:]):\n"
        "    os.environ['MASTER_PORT'] = port\n    train, settings = TRAIN[kind]\n"
        "    train(open_store(sys.argv[1]), Path(sys.argv[2]) / kind, settings)\n"
    )
    command = [sys.executable, script, toy_store.path, tmp_path, *_free_ports(2)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    ranks = [
        subprocess.Popen(
            list(map(str, command)),
            env={**env, "RANK": str(rank), "WORLD_SIZE": "2"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in ranks:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    for kind in ("stylegan2", "stylegan3"):
        one, two = _state(runs[kind]), _state(tmp_path / kind)
        assert one.keys() == two.keys()
        ours, theirs = _memory(runs[kind]), _memory(tmp_path / kind)
        assert ours == pytest.approx(theirs, rel=1e-3)
        for name in (n for n in one if n.startswith("ema.")):
            # Adam makes a whole step of a rounding difference where a gradient is near zero.
            assert (one[name] - two[name]).abs().mean() < 2e-4, name


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in held:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in held]


@pytest.mark.parametrize(
    "train, change, what",
    [
        (train_slice_vae, {"batch": 1}, "batch=1"),
        (train_slice_vae, {"kl": -1.0}, "kl=-1"),
        (train_slice_vae, {"network": SliceVAEConfig(channels=(4,) * 6)}, "SliceVAEConfig.channels: 6 halvings"),
        (train_slice_vae, {"steps": 0}, "steps=0"),
        (train_gan, {"mixing": 1.5}, "mixing=1.5"),
        (train_gan, {"r1_every": 0}, "r1_every=0"),
        (train_gan, {"network": "stylegan3", "stylegan3": StyleGAN3Config(layers=2)}, "StyleGAN3Config.layers=2"),
    ],
)
def test_settings_that_cannot_work_are_said_before_anything_is_written(train, change, what, toy_store, tmp_path):
    base = VAE if train is train_slice_vae else GAN2
    with pytest.raises(UserError, match=what) as caught:
        train(toy_store, tmp_path / "run", replace(base, **change))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_gan_takes_sizes_that_are_powers_of_two_and_a_vae_two_heads(tmp_path):
    volume = Volume.regular(toy_head(0, size=24), TOY_SPACING)
    put_volume(tmp_path / "store", volume, id="h", patient="p", split="train")
    with pytest.raises(UserError, match="slices of 24 pixels: stylegan2 needs a power of two"):
        train_gan(open_store(tmp_path / "store"), tmp_path / "run", GAN2)
    with pytest.raises(UserError, match="one training volume has no columns"):
        train_slice_vae(open_store(tmp_path / "store"), tmp_path / "run", VAE)


def test_a_loss_that_is_no_number_keeps_the_last_checkpoint(toy_store, tmp_path, monkeypatch):
    made = Slices.batch

    def spoilt(self, seed, step, samples, flip=False):
        return made(self, seed, step, samples, flip) * (float("nan") if step == 3 else 1.0)

    monkeypatch.setattr(Slices, "batch", spoilt)
    for kind, (train, settings) in TRAIN.items():
        with pytest.raises(UserError, match="not finite at step 4"):
            train(toy_store, tmp_path / kind, replace(settings, save_minutes=0.0))
        assert all(t.isfinite().all() for t in _state(tmp_path / kind).values() if t.is_floating_point())
        assert json.loads((tmp_path / kind / "state" / "state.json").read_text())["place"]["step"] == 3
    with pytest.raises(UserError, match="before its columns were fitted"):
        generate(tmp_path / "slice-vae", tmp_path / "out", PLAIN)


# Volumes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(TRAIN))
def test_generate_draws_baselines_and_a_run_goes_on(kind, runs, tmp_path):
    out, settings = tmp_path / "out", replace(PLAIN, chain=ChainSettings(slices=5))
    about = generate(runs[kind], out, replace(settings, count=1))
    assert kind in about["way"].replace(" ", "-").lower()
    assert about["nfe_per_slice"] == 1
    first = read_volume(out / "dicom" / "volume-0000").volume
    generate(runs[kind], out, settings)
    volumes = [read_volume(out / "dicom" / f"volume-000{i}").volume for i in range(2)]
    assert np.array_equal(volumes[0].hu, first.hu)
    assert not np.array_equal(volumes[0].hu, volumes[1].hu)
    assert volumes[0].hu.shape == (5, 16, 16)
    assert np.allclose(volumes[0].spacing, TOY_SPACING)
    stored = np.asarray(nibabel.load(out / "nifti" / "volume-0001.nii.gz").dataobj)
    assert np.array_equal(np.sort(stored, axis=None), np.sort(volumes[1].hu, axis=None))
    header = pydicom.dcmread(next((out / "dicom" / "volume-0001").iterdir()))
    assert header.SyntheticData == "YES"
    assert kind.split("-")[0] in str(header.to_json_dict()).lower()
    # A volume is a function of seed and number alone.
    baseline = load_baseline(runs[kind])
    assert np.array_equal(draw_volume(baseline, 0, 1, 5), volumes[1].hu)
    assert not np.array_equal(draw_volume(baseline, 1, 1, 5), volumes[1].hu)


def test_the_slices_of_a_gan_are_independent_and_as_many_as_asked(runs):
    baseline = load_baseline(runs["stylegan2"])
    assert len(draw_volume(baseline, 0, 0)) == 8 == baseline.recipe.max_slices
    long = draw_volume(baseline, 0, 0, 20)
    assert len(long) == 20
    assert np.array_equal(long[:5], draw_volume(baseline, 0, 0, 5))
    with pytest.raises(UserError, match="slices=20: a slice VAE draws heads of 9"):
        draw_volume(load_baseline(runs["slice-vae"]), 0, 0, 20)


@pytest.mark.parametrize(
    "change, what",
    [
        ({"calibrate": "inside"}, "calibrate=inside"),
        ({"seed_volume": Path("x")}, "GenerateSettings.seed_volume"),
        ({"chain": ChainSettings(steps=7)}, "GenerateSettings.chain"),
    ],
)
def test_settings_that_a_baseline_has_no_use_for_are_refused(change, what, runs, tmp_path):
    with pytest.raises(UserError, match=what):
        generate(runs["stylegan2"], tmp_path / "out", replace(PLAIN, **change), icnet=Path("absent"))
    assert not (tmp_path / "out").exists()


# Command line ------------------------------------------------------------------------------------------------------


def _main(*argv: object) -> int:
    try:
        cli.main([str(a) for a in argv])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_commands_train_and_generate(toy_store, tmp_path, capsys):
    small = "--network.channels 4 8 --network.latent 4 --batch 4 --device cpu --steps 2".split()
    assert _main("train-slice-vae", toy_store.path, "--out", tmp_path / "vae", *small) == 0
    small = "--stylegan2.latent 8 --stylegan2.channel-base 32 --discriminator.channel-base 32 --batch 2".split()
    small += "--stylegan2.channel-max 8 --discriminator.channel-max 8 --steps 2 --device cpu".split()
    assert _main("train-gan", toy_store.path, "--out", tmp_path / "gan", *small) == 0
    assert "checkpoint:" in capsys.readouterr().out
    assert read_table(tmp_path / "gan" / "config.toml", "train-gan")["steps"] == 2
    flags = "--count 1 --calibrate off --no-report --device cpu".split()
    assert _main("generate", "--checkpoint", tmp_path / "vae", "--out", tmp_path / "volumes", *flags) == 0
    assert (tmp_path / "volumes" / "dicom" / "volume-0000").is_dir()
    assert _main("info", tmp_path / "gan") == 0
    assert "stylegan2 with" in capsys.readouterr().out
    calibrated = ("--out", tmp_path / "other", "--calibrate", "after")
    assert _main("generate", "--checkpoint", tmp_path / "vae", *calibrated) == 1
    assert "add --calibrate off" in capsys.readouterr().err
    assert _main("train-gan", tmp_path / "absent", "--out", tmp_path / "other") == 1
    assert "no prepared data" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_slice_vae_is_validated_by_the_mean_of_its_posterior(toy_store, tmp_path):
    trainer = SliceVAETrainer(toy_store, tmp_path, VAE, Process(0, 1, torch.device("cpu")))
    hu = trainer.validation.hu(torch.arange(2))
    seen = []
    trainer.network.decode = lambda latent: seen.append(latent) or torch.zeros(2, 1, *hu.shape[-2:])
    trainer._decoded(hu)
    trainer.network.eval()
    x = codec(VAE.scale, hu.device).encode(hu)
    with torch.no_grad():
        mean, log_variance = trainer.network.encode(x)
    torch.testing.assert_close(seen[0], mean)
    assert not torch.allclose(mean, log_variance)
