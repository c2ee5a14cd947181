"""Level after level: what a level sees, that levels fit, and heads that come out of a plan and its drawer."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import ndimage

from conftest import toy_head
from slicewise.ascii import ChainSettings
from slicewise.checkpoint import load_denoiser
from slicewise.cli import main
from slicewise.data.store import Store, open_store, put_volume
from slicewise.data.windows import as_level, training_windows
from slicewise.errors import UserError
from slicewise.generate import GenerateSettings, generate, results
from slicewise.io.tensors import load_tensors
from slicewise.networks.unet import UNetConfig
from slicewise.pyramid import draw, join, load_pyramid
from slicewise.training.denoiser import Batches, DenoiserTraining, train_denoiser
from slicewise.volume import Volume

PLAN = DenoiserTraining(
    unet=UNetConfig(channels=(8, 16), blocks=(1, 1), attention=(False, False), embedding=16, fold=1),
    steps=6, batch=4, validations=1, validation_windows=4, core="float32", device="cpu", slices=3, pool=4,
)  # fmt: skip
DRAWER = replace(PLAN, pool=1, above=4, crop=(16, 24), flip=True, unet=replace(PLAN.unet, fold=2))
CHAIN = ChainSettings(steps=3, slices=5)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("pyramid") / "store"
    for i in range(4):
        volume = Volume.regular(toy_head(i, slices=8, size=32), (5.0, 6.0, 6.0))
        put_volume(path, volume, id=f"h{i}", patient=f"p{i}", split="val" if i == 3 else "train", vertex_slice=0)
    return open_store(path)


@pytest.fixture(scope="module")
def levels(store: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    out = tmp_path_factory.mktemp("levels")
    return train_denoiser(store, out / "plan", PLAN), train_denoiser(store, out / "drawer", DRAWER)


@pytest.fixture(scope="module")
def joined(levels: tuple[Path, Path]) -> Path:
    return join(levels, levels[0].parents[1] / "pyramid.safetensors")


def test_a_level_sees_means_and_the_level_above_enlarged():
    hu = np.random.default_rng(0).integers(-1000, 2000, (2, 5, 32, 24)).astype(np.int16)
    seen = as_level(torch.from_numpy(hu), 2, 2, 2).numpy()
    means = hu[:, :2].reshape(2, 2, 16, 2, 12, 2).mean(axis=(3, 5))
    np.testing.assert_allclose(seen[:, :2], means, atol=1e-3)
    coarse = hu[:, 2:].reshape(2, 3, 8, 4, 6, 4).mean(axis=(3, 5))
    at = [(np.arange(n) + 0.5) / 2 - 0.5 for n in (16, 12)]
    grid = np.stack(np.meshgrid(*at, indexing="ij"))
    for b in range(2):
        for k in range(3):
            expected = ndimage.map_coordinates(coarse[b, k], grid, order=1, mode="nearest")
            np.testing.assert_allclose(seen[b, 2 + k], expected, atol=1e-2)


def test_a_drawers_batch_holds_its_slices_and_those_about_the_wanted_one_as_the_level_above_has_them(store):
    """Without noise of the scan's own bin and without flips: against the volumes themselves."""
    settings = replace(DRAWER, flip=False, crop=(0, 0))
    windows = training_windows(store, "train", 3)
    batches = Batches(windows, settings, range(40))
    plan = batches.plan(3)
    made = batches.fill(plan)
    assert made["clean"].shape == (40, 6, 32, 32) and made["sigma"].shape == made["wanted"].shape == (40, 6)
    assert not made["wanted"][:, 3:].any() and float(made["sigma"][:, 3:].max()) <= settings.above_sigma
    hu = settings.scale.decode(made["clean"].numpy())
    air = np.full((32, 32), -1024.0)
    seen = 0
    for b in range(40):
        rows = plan["cut"].rows[b].tolist()
        last = int(made["wanted"][b, :3].nonzero().max())
        head = int(np.searchsorted(windows.heads.ends, max(rows), side="right"))
        volume = np.asarray(store.hu(windows.records[head])).astype(float)
        first = int(windows.heads.starts[head])
        centre = round(float(made["position"][b]) / 5.0) - 2 + last
        for k, z in enumerate(range(centre - 1, centre + 2)):
            true = volume[z] if 0 <= z < len(volume) else air
            assert rows[3 + k] == (first + z if 0 <= z < len(volume) else -1)
            means = true.reshape(8, 4, 8, 4).mean(axis=(1, 3))
            expected = ndimage.zoom(means, 4, order=1, mode="nearest", grid_mode=True)
            np.testing.assert_allclose(hu[b, 3 + k], np.clip(expected, -1024, 3071), atol=1.0)
            seen += 1
    assert seen == 120


def test_a_plan_is_trained_on_its_own_pixels(levels):
    recipe = load_denoiser(levels[0]).recipe
    assert (recipe.size, recipe.spacing_mm, recipe.above) == (8, (5.0, 24.0, 24.0), 0)
    recipe = load_denoiser(levels[1]).recipe
    assert (recipe.size, recipe.spacing_mm, recipe.above, recipe.slices) == (32, (5.0, 6.0, 6.0), 4, 3)


def test_heads_come_out_on_the_finest_grid_whichever_batch_they_are_in(joined):
    pyramid = load_pyramid(joined)
    alone, among = draw(pyramid, CHAIN, 7, [2]), draw(pyramid, CHAIN, 7, [0, 2])
    assert [head.shape for head in among] == [(5, 32, 32)] * 2 and among[1].dtype == np.int16
    assert np.abs(alone[0].astype(int) - among[1]).max() <= 1, "up to a rounding"
    assert np.abs(among[0].astype(int) - among[1]).mean() > 20


def test_a_drawer_follows_its_plan(joined):
    """The same drawer and noise after two plans gives two heads; what it draws depends on the slices about its own."""
    drawer = load_pyramid(joined).levels[1]
    from slicewise.ascii import chain

    plan = np.full((1, 5, 8, 8), -1000, np.int16)
    other = plan.copy()
    other[:, 3, 2:6, 2:6] = 60
    a, b = (np.stack(list(chain(drawer, CHAIN, 0, [0], above=p)), axis=1) for p in (plan, other))
    assert np.array_equal(a[0, :2], b[0, :2]) and not np.array_equal(a[0, 2], b[0, 2])


def test_generate_takes_a_pyramid(levels, tmp_path):
    main(["pyramid", *map(str, levels), "--out", str(tmp_path / "both.safetensors")])
    settings = GenerateSettings(count=2, batch=2, chain=CHAIN, calibrate="off", nifti=False)
    generate(tmp_path / "both.safetensors", tmp_path / "run", settings)
    volumes = [volume for _, _, volume in results(tmp_path / "run", 2)]
    assert [v.hu.shape for v in volumes] == [(5, 32, 32)] * 2 and volumes[0].spacing == (5.0, 6.0, 6.0)
    with pytest.raises(UserError, match="cannot go on from a slice"):
        seeded = replace(settings, seed_volume=tmp_path / "run" / "dicom" / "volume-0000")
        generate(tmp_path / "both.safetensors", tmp_path / "seeded", seeded)


def _changed(path: Path, out: Path, **recipe) -> Path:
    tensors, meta = load_tensors(path)
    save_file(tensors, out, metadata={"slicewise": json.dumps({**meta, "recipe": {**meta["recipe"], **recipe}})})
    return out


def test_levels_that_do_not_fit_are_one_line(levels, tmp_path):
    plan, drawer = levels
    cases = {
        "one level is no pyramid": [plan],
        "sees a level above, which is missing": [drawer, plan],
        "pixels per side 32 where .* 64": [_changed(plan, tmp_path / "size.safetensors", size=16), drawer],
        "slice spacing 5.0 where .* 2.5": [
            _changed(plan, tmp_path / "mm.safetensors", spacing_mm=[2.5, 24.0, 24.0]), drawer
        ],
        "pixels per side 8 where": [plan, plan],
    }  # fmt: skip
    for what, given in cases.items():
        with pytest.raises(UserError, match=what) as caught:
            join(given, tmp_path / "out.safetensors")
        assert "\n" not in str(caught.value) and not (tmp_path / "out.safetensors").exists()


def test_a_pyramid_that_lost_a_level_is_one_line(joined, tmp_path):
    tensors, meta = load_tensors(joined)
    without = {name: tensor for name, tensor in tensors.items() if not name.startswith("1.")}
    save_file(without, tmp_path / "p.safetensors", metadata={"slicewise": json.dumps(meta)})
    with pytest.raises(UserError, match="level 2: weights do not fit"):
        load_pyramid(tmp_path / "p.safetensors")
    with pytest.raises(UserError, match="draws after the plan of a level above"):
        generate(
            Path(joined).parent / "drawer",
            tmp_path / "run",
            GenerateSettings(count=1, chain=CHAIN, calibrate="off", nifti=False),
        )


@pytest.mark.parametrize(
    "change, what",
    [
        ({"pool": 0}, "--pool 0"),
        ({"pool": 3}, "--pool 3"),
        ({"above": -1}, "--above -1"),
        ({"crop": (10, 10)}, "multiples of 4"),
    ],
)
def test_levels_that_no_network_takes_are_said(change, what, store, tmp_path):
    with pytest.raises(UserError, match=what):
        train_denoiser(store, tmp_path / "run", replace(PLAN, **{"above": 4, "pool": 1, **change}))
