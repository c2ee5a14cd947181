"""IC-Net: the network, and its training."""

import json
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from slicewise.calibrate import calibrate_slice
from slicewise.checkpoint import load_model
from slicewise.data.store import open_store, put_volume
from slicewise.data.windows import Heads
from slicewise.errors import UserError
from slicewise.hu import ICNET, to_unit
from slicewise.io.tensors import load_tensors
from slicewise.networks.icnet import ICNet, confine
from slicewise.networks.shapes import OUTPUTS, ICNetConfig
from slicewise.random import VALIDATION
from slicewise.settings import fill
from slicewise.training.icnet import ICNetTrainer, Pairs, distort, draw_batch, error_hu, train_icnet
from slicewise.training.settings import ICNetTraining
from slicewise.volume import Volume

SMALL = ICNetTraining(
    network=ICNetConfig(channels=8, levels=3),
    steps=12,
    batch=4,
    warmup=0.25,
    cooldown=0.75,
    validations=3,
    validation_pairs=6,
    device="cpu",
)


def random_pair(rng, batch=2, side=32):
    return torch.from_numpy(rng.uniform(-1.3, 1.3, (batch, 2, side, side)).clip(-1, 1).astype(np.float32))


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("side", [32, 45, 128])
def test_starts_as_the_identity_to_the_bit(output, side):
    x = random_pair(np.random.default_rng(0), side=side)
    y = ICNet(ICNetConfig(output=output))(x)
    assert y.dtype == torch.float32
    assert torch.equal(y, x[:, :1])


@pytest.mark.parametrize("output", OUTPUTS)
def test_every_parameter_learns(output):
    torch.manual_seed(0)
    net = ICNet(ICNetConfig(channels=8, levels=3, output=output))
    for p in [*net.map.parameters(), *(net.image.parameters() if output == "residual" else ())]:
        torch.nn.init.normal_(p, std=0.1)
    x = random_pair(np.random.default_rng(1))
    (net(x) * torch.randn(2, 1, 32, 32)).sum().backward()
    still = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not still


@pytest.mark.parametrize("output", OUTPUTS)
def test_the_previous_slice_matters(output):
    torch.manual_seed(0)
    net = ICNet(ICNetConfig(channels=8, levels=3, output=output))
    for p in [*net.map.parameters(), *(net.image.parameters() if output == "residual" else ())]:
        torch.nn.init.normal_(p, std=0.1)
    x = random_pair(np.random.default_rng(2), batch=1)
    other = x.clone()
    other[:, 1] = (other[:, 1] * 0.8 + 0.05).clamp(-1, 1)
    assert (net(x) - net(other)).abs().max() > 1e-4


@pytest.mark.parametrize("output", OUTPUTS)
def test_stays_lean(output):
    assert sum(p.numel() for p in ICNet(ICNetConfig(output=output)).parameters()) < 600_000


def test_confine_bounds_a_correction_by_the_distance_to_the_border():
    rng = np.random.default_rng(3)
    x = torch.linspace(-1, 1, 2001)
    for _ in range(50):
        gain, offset = rng.uniform(0.5, 2.0), rng.uniform(-0.4, 0.4)
        y = confine(x, gain * x + offset)
        assert y[0] == -1
        assert y[-1] == 1
        rise = torch.diff(y) / torch.diff(x)
        assert 0.09 < rise.min()
        assert rise.max() < 2.01
    wild = confine(x, torch.from_numpy(rng.normal(0, 3, x.shape).astype(np.float32)))
    assert wild.abs().max() <= 1
    assert wild[0] == -1
    assert wild[-1] == 1
    assert torch.equal(confine(x, x), x)


# --- training ---------------------------------------------------------------------------------------------------------


def made_up_head(rng, slices=8, side=32):
    """A disc of brain with ventricles in a ring of bone, growing from the vertex down; slice 0 is air."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    radius = np.hypot(y, x * rng.uniform(1.0, 1.2))
    hu = np.full((slices, side, side), -1000.0)
    for z in range(1, slices):
        r = 5 + 9 * np.sqrt(z / slices)
        hu[z][radius < r] = 1200
        hu[z][radius < r - 2] = rng.normal(32, 4, np.count_nonzero(radius < r - 2))
        hu[z][radius < r / 4] = 6
        hu[z][(radius > r) & (radius < r + 2)] = -90
    return Volume.regular(np.rint(hu).astype(np.int16), (5.0, 6.0, 6.0))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("icnet") / "store"
    rng = np.random.default_rng(0)
    for i in range(5):
        split = "val" if i == 4 else "train"
        put_volume(path, made_up_head(rng), id=f"v{i}", patient=f"p{i}", split=split, source="made up")
    return open_store(path)


@pytest.fixture(scope="module")
def pairs(store):
    return Pairs(Heads(store, "train"), SMALL.least_tissue)


def draw(pairs, settings, step, count):
    """A batch as NumPy has it."""
    return (t.numpy() for t in draw_batch(pairs, settings, step, range(count)))


def test_distort_is_equation_3_on_the_voxels_inside_the_window():
    rng = np.random.default_rng(5)
    hu = rng.uniform(-300, 300, (3, 9, 11))
    gain, offset = np.array([0.7, 1.0, 1.3]), np.array([5.0, -20.0, 0.0])
    result = distort(hu, gain, offset)
    for b in range(3):
        mean = np.mean([v for v in hu[b].ravel() if -150 < v < 150])
        for (i, j), v in np.ndenumerate(hu[b]):
            expected = (v - mean) * gain[b] + mean + offset[b] if -150 < v < 150 else v
            assert result[b, i, j] == pytest.approx(expected, abs=1e-9)
    as_tensors = distort(*(torch.from_numpy(a) for a in (hu, gain, offset)))
    np.testing.assert_allclose(as_tensors.numpy(), result, atol=1e-9)
    np.testing.assert_array_equal(distort(np.full((4, 4), -1024), 1.3, 20.0), -1024)


def test_batches_depend_on_seed_step_and_sample_alone(store, pairs):
    x, target = draw(pairs, SMALL, 7, 16)
    again, _ = draw(pairs, SMALL, 7, 16)
    np.testing.assert_array_equal(x, again)
    assert x.shape == (16, 2, 32, 32)
    assert target.shape == (16, 1, 32, 32)
    assert x.dtype == target.dtype == np.float32
    part, _ = draw_batch(pairs, SMALL, 7, range(5, 9))
    np.testing.assert_array_equal(x[5:9], part.numpy())
    from_disk = Pairs(Heads(store, "train", memory=0), SMALL.least_tissue)
    np.testing.assert_array_equal(x, next(draw(from_disk, SMALL, 7, 16)))
    for settings, step, stream in ((SMALL, 8, ()), (replace(SMALL, seed=1), 7, ()), (SMALL, 7, (VALIDATION,))):
        other, _ = draw_batch(pairs, settings, step, range(16), *stream)
        assert not np.array_equal(x, other.numpy())


def test_heads_that_come_meanwhile_give_pairs_too(store):
    names = [record.id for record in store.select("train")]
    heads = Heads(store, "train", ids=names[:2])
    pairs = Pairs(heads, SMALL.least_tissue)
    before = pairs.upper()
    heads.take(store, names[2:])
    assert torch.equal(pairs.upper(), Pairs(Heads(store, "train", ids=names), SMALL.least_tissue).upper())
    assert torch.equal(pairs.upper()[: len(before)], before)
    assert len(pairs.upper()) > len(before)
    last = torch.from_numpy(heads.ends) - 1
    assert not torch.isin(pairs.upper(), last).any(), "no pair of two heads"


@pytest.mark.parametrize("recipe, both_ways", [("paper", False), ("offset", True)])
def test_pairs_are_real_neighbours_and_undoing_the_distortion_gives_the_target(store, pairs, recipe, both_ways):
    settings = replace(SMALL, recipe=recipe, both_ways=both_ways, air_pairs=0.2, neighbour_error_hu=0.0, slight=0.0)
    records = store.select("train")
    unit = {r.id: to_unit(store.hu(r), ICNET) for r in records}
    x, target = draw(pairs, settings, 3, 200)
    at_air, upward, gains, offsets = 0, 0, [], []
    for (distorted, neighbour), (true,) in zip(x, target):
        [(name, z)] = [(n, z) for n, v in unit.items() for z in range(8) if np.array_equal(v[z], true)]
        assert z > 0, "the slice of air is no target"
        inside = np.abs(true) < 1
        gain, offset = np.polyfit(true[inside], distorted[inside], 1)
        if np.all(neighbour == -1):
            at_air += 1
            np.testing.assert_array_equal(distorted, true)
            continue
        below = z + 1 < 8 and np.array_equal(neighbour, unit[name][z + 1])
        assert below or np.array_equal(neighbour, unit[name][z - 1])
        upward += below
        clipped = np.abs(distorted[inside]) == 1
        if not clipped.any():
            gains.append(gain)
            offsets.append(150 * (gain * true[inside].mean() + offset - true[inside].mean()))
        np.testing.assert_array_equal(distorted[~inside], true[~inside])
    assert 20 <= at_air <= 60
    assert 0.69 < min(gains) < 0.75
    assert 1.1 < max(gains) < 1.31
    if recipe == "paper":
        assert upward == 0
        assert np.abs(offsets).max() < 1e-3
    else:
        assert 50 < upward < 120
        assert -20.01 < min(offsets) < -15
        assert 15 < max(offsets) < 20.01


@pytest.mark.parametrize("recipe, share", [("offset", 0.7), ("paper", 0.0)])
def test_a_share_of_slices_is_distorted_slightly(pairs, recipe, share):
    settings = replace(SMALL, recipe=recipe, air_pairs=0.0, slight=0.7)
    whole, target = draw(pairs, replace(settings, slight=0.0), 3, 300)
    mixed, _ = draw(pairs, settings, 3, 300)
    moved = np.abs(whole[:, :1] - target).max((1, 2, 3)), np.abs(mixed[:, :1] - target).max((1, 2, 3))
    unclipped = (np.abs(whole[:, :1]) < 1).sum((1, 2, 3)) == (np.abs(target) < 1).sum((1, 2, 3))
    part = (moved[1] / moved[0])[unclipped]
    slight = part < 0.5
    assert np.count_nonzero(unclipped) > 100
    assert slight.mean() == pytest.approx(share, abs=0.12)
    np.testing.assert_allclose(part[slight], 0.1, rtol=1e-3)
    np.testing.assert_allclose(part[~slight], 1.0)


def test_the_neighbour_drifts_as_far_as_it_is_said_to(pairs):
    true, _ = draw(pairs, replace(SMALL, neighbour_error_hu=0.0, air_pairs=0.0), 3, 300)
    drifted, _ = draw(pairs, replace(SMALL, neighbour_error_hu=5.0, air_pairs=0.0), 3, 300)
    paper, _ = draw(pairs, replace(SMALL, recipe="paper", air_pairs=0.0), 3, 300)
    np.testing.assert_array_equal(paper[:, 1], true[:, 1])
    np.testing.assert_array_equal(drifted[:, 0], true[:, 0])
    fits = [np.polyfit(t[m], d[m], 1) for t, d in zip(true[:, 1], drifted[:, 1]) for m in [np.abs(t) < 0.7]]
    means = [150 * (d[m].mean() - t[m].mean()) for t, d in zip(true[:, 1], drifted[:, 1]) for m in [np.abs(t) < 1]]
    assert np.std([gain for gain, _ in fits]) == pytest.approx(0.05, rel=0.15)
    assert np.std(means) == pytest.approx(5.0, rel=0.15)
    assert abs(np.mean(means)) < 1.0


def test_training_learns_and_its_checkpoint_calibrates(store, tmp_path):
    settings = replace(SMALL, steps=90, batch=8, lr=3e-3, validations=2, validation_pairs=32, air_pairs=0.0)
    weights = train_icnet(store, tmp_path / "run", settings)
    net, meta = load_model(weights, ("icnet",))
    assert meta["step"] == 90
    assert meta["data"] == store.fingerprint
    stats = [json.loads(line) for line in (tmp_path / "run/stats.jsonl").read_text().splitlines()]
    assert [s["step"] for s in stats if "val_hu" in s] == [45, 90]
    assert meta["val_mae_hu"] == pytest.approx(stats[-1]["val_hu"], abs=1e-3)
    hu = store.hu(store.select("val")[0]).astype(float)
    true, neighbour = hu[5], hu[4]
    soft = (true > -150) & (true < 150)
    before, after = [], []
    for offset in (-18.0, -10.0, 10.0, 18.0):
        shifted = distort(true, 1.0, offset)
        before.append(np.abs(shifted - true)[soft].mean())
        after.append(np.abs(calibrate_slice(net, shifted, neighbour) - true)[soft].mean())
    assert np.mean(after) < 0.4 * np.mean(before), (before, after)


def stop_after(store, out, settings, steps):
    """Train until Ctrl-C comes in the middle of the last of so many steps."""
    made = ICNetTrainer.step

    def step(self, step):
        if step == steps - 1:
            signal.raise_signal(signal.SIGINT)
        return made(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ICNetTrainer, "step", step)
        with pytest.raises(KeyboardInterrupt):
            train_icnet(store, out, settings)


def test_a_stopped_run_goes_on_bit_for_bit(store, tmp_path):
    whole = train_icnet(store, tmp_path / "whole", SMALL)
    for stop in (3, 7):
        stop_after(store, tmp_path / "parts", SMALL, stop)
        assert load_model(tmp_path / "parts")[1]["step"] == stop, "the step in hand is finished, then all is saved"
    parts = train_icnet(store, tmp_path / "parts", SMALL)
    for file in ("weights.safetensors", "state/state.safetensors"):
        a, b = (load_tensors(p.parent / file)[0] for p in (whole, parts))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a)
    a, b = ([s for s in map(json.loads, open(p.parent / "stats.jsonl")) if "val_hu" in s] for p in (whole, parts))
    assert a == b
    assert [s["step"] for s in a] == [4, 8, 12]
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_checkpoint(store, tmp_path):
    stop_after(store, tmp_path, SMALL, 4)
    kept = {f: f.read_bytes() for f in tmp_path.rglob("*.safetensors")}
    assert len(kept) == 2
    with pytest.raises(UserError, match="last good checkpoint is kept"):
        train_icnet(store, tmp_path, replace(SMALL, lr=float("inf")))
    assert kept == {f: f.read_bytes() for f in tmp_path.rglob("*.safetensors")}


def test_a_picture_shows_what_the_network_makes_of_slices(store, tmp_path):
    train_icnet(store, tmp_path, replace(SMALL, steps=2, samples=1))
    assert (tmp_path / "samples" / "0000002.png").is_file()


def test_mistakes_are_told_in_one_line(store, tmp_path):
    train_icnet(store, tmp_path / "run", replace(SMALL, steps=1))
    air = tmp_path / "air"
    for split in ("train", "val"):
        volume = Volume.regular(np.full((4, 16, 16), -1000, np.int16), (5.0, 1.0, 1.0))
        put_volume(air, volume, id=split, patient=split, split=split)
    no_val = tmp_path / "no_val"
    put_volume(no_val, volume, id="a", patient="a", split="train")
    for message, call in {
        "slight is 0.7, this one's is 0.2": lambda: train_icnet(store, tmp_path / "run", replace(SMALL, slight=0.2)),
        "soft tissue": lambda: train_icnet(open_store(air), tmp_path / "b", SMALL),
        "train and val": lambda: train_icnet(open_store(no_val), tmp_path / "c", SMALL),
        "recipe = 'gain', expected one of": lambda: fill(SMALL, {"recipe": "gain"}, "preset"),
        "steps=0": lambda: train_icnet(store, tmp_path / "d", replace(SMALL, steps=0)),
        "slight=2": lambda: train_icnet(store, tmp_path / "d", replace(SMALL, slight=2.0)),
        "least_tissue=1": lambda: train_icnet(store, tmp_path / "d", replace(SMALL, least_tissue=1.0)),
        "output": lambda: ICNetConfig(output="image"),
    }.items():
        with pytest.raises(UserError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


def test_error_counts_only_voxels_that_truly_lie_in_the_window():
    rng = np.random.default_rng(0)
    true, result = rng.integers(-400, 400, (2, 20, 20)).astype(float)
    errors = [
        abs(min(max(r, -150.0), 150.0) - t) for r, t in zip(result.ravel(), true.ravel(), strict=True) if -150 < t < 150
    ]
    assert error_hu(result, true) == pytest.approx(sum(errors) / len(errors), rel=1e-12)
    assert np.isnan(error_hu(result, np.full_like(true, -1000.0)))
