"""Level after level: what a level sees, that levels fit, and heads that come out of a plan and its drawer."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from scipy import ndimage
from torch.nn.functional import interpolate

from conftest import toy_head
from slicewise.ascii import _best_window, between, head_extent, whole_heads
from slicewise.checkpoint import load_denoiser
from slicewise.cli import main
from slicewise.codec import codec
from slicewise.data.store import Store, open_store, put_volume
from slicewise.data.windows import as_level, training_windows
from slicewise.errors import UserError
from slicewise.generate import generate, results
from slicewise.io.nifti import write_nifti
from slicewise.io.tensors import load_tensors
from slicewise.networks.shapes import UNet3dConfig, UNetConfig
from slicewise.pyramid import draw, guided, join, load_generator, load_pyramid
from slicewise.sampling import ChainSettings, GenerateSettings
from slicewise.training.denoiser import Batches, train_denoiser
from slicewise.training.settings import DenoiserTraining
from slicewise.volume import Volume

PLAN = DenoiserTraining(
    unet=UNetConfig(channels=(8, 16), blocks=(1, 1), attention=(False, False), embedding=16, fold=1),
    steps=6, batch=4, validations=1, validation_windows=4, core="float32", device="cpu", slices=3, pool=4,
)  # fmt: skip
DRAWER = replace(PLAN, pool=1, above=4, crop=(16, 24), flip=True, unet=replace(PLAN.unet, fold=2))
# A plan of whole heads: at these few steps it is hardly more than the Gaussian that it starts from.
WHOLE = replace(
    PLAN, network="unet3d", slices=12, position=False,
    unet3d=UNet3dConfig(channels=(8, 16), blocks=(1, 1), attention=(False, True), embedding=16, fold=1, modes=4),
)  # fmt: skip
CHAIN = ChainSettings(steps=3, draw_steps=3, plan_steps=3, slices=5)
FEW = ChainSettings(steps=6, draw_steps=6, plan_steps=6)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return _store(tmp_path_factory.mktemp("pyramid"), 32, 6.0)


def _store(path: Path, size: int, mm: float) -> Store:
    for i in range(4):
        volume = Volume.regular(toy_head(i, slices=8, size=size), (5.0, mm, mm))
        put_volume(path, volume, id=f"h{i}", patient=f"p{i}", split="val" if i == 3 else "train", vertex_slice=0)
    return open_store(path)


@pytest.fixture(scope="module")
def levels(store: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    out = tmp_path_factory.mktemp("levels")
    return train_denoiser(store, out / "plan", PLAN), train_denoiser(store, out / "drawer", DRAWER)


@pytest.fixture(scope="module")
def joined(levels: tuple[Path, Path]) -> Path:
    return join(levels, levels[0].parents[1] / "pyramid.safetensors")


@pytest.fixture(scope="module")
def three(levels: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pyramid of 8, 32 and 64 pixels per side that draws 32 unless told otherwise."""
    out = tmp_path_factory.mktemp("three")
    finer = train_denoiser(_store(out / "store", 64, 3.0), out / "finer", replace(DRAWER, above=2))
    return join([*levels, finer], out / "pyramid.safetensors", size=32)


@pytest.fixture(scope="module")
def whole(store: Store, levels: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pyramid whose plan is of whole heads."""
    out = tmp_path_factory.mktemp("whole")
    return join([train_denoiser(store, out / "plan", WHOLE), levels[1]], out / "pyramid.safetensors")


def test_a_drawer_goes_straight_to_where_its_plan_leaves_off_and_pyramids_are_sampled_with_fresh_noise(levels):
    plan, drawer = (load_denoiser(level) for level in levels)
    whole = replace(plan, recipe=replace(plan.recipe, whole=True))
    chain = ChainSettings(draw_steps=5, plan_steps=4, draw_sigma=0.5)
    low, high = drawer.recipe.sigma_min, drawer.recipe.sigma_max
    found = chain.sigmas(drawer).tolist()
    assert found[0] == high
    assert found[1:] == pytest.approx([0.5 * (low / 0.5) ** (n / 3) for n in range(4)], rel=1e-12)
    assert chain.sigmas(whole).tolist() == pytest.approx([high * (low / high) ** (n / 3) for n in range(4)], rel=1e-12)
    beyond = replace(chain, draw_sigma=100.0)  # nothing to skip
    assert beyond.sigmas(drawer).tolist() == pytest.approx([high * (low / high) ** (n / 4) for n in range(5)])
    samplers = [chain.sampler_of(level.recipe) for level in (drawer, whole, plan)]
    assert samplers == ["dpmpp_2m_sde", "dpmpp_2m_sde", "dpmpp_2m"]
    assert replace(chain, sampler="heun").sampler_of(drawer.recipe) == "heun"


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
    assert made["clean"].shape == (40, 6, 32, 32)
    assert made["sigma"].shape == made["wanted"].shape == (40, 6)
    assert not made["wanted"][:, 3:].any()
    assert float(made["sigma"][:, 3:].max()) <= settings.above_sigma
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


def test_pictures_of_a_drawer_in_training_follow_the_plan_of_a_validation_head(store, tmp_path):
    train_denoiser(store, tmp_path / "drawer", replace(DRAWER, steps=2, samples=1))
    (picture,) = (tmp_path / "drawer" / "samples").iterdir()
    with Image.open(picture) as image:
        grey = np.asarray(image.convert("L"))
    assert grey.std() > 5, "the drawer, which has learnt nothing, shows the head that it is told of"


def test_heads_come_out_on_the_finest_grid_whichever_batch_they_are_in(joined):
    pyramid = load_pyramid(joined)
    alone, among = draw(pyramid, CHAIN, 7, [2]), draw(pyramid, CHAIN, 7, [0, 2])
    one, first, second = alone[0].hu, among[0].hu, among[1].hu
    assert first.shape == second.shape == (5, 32, 32)
    assert second.dtype == np.int16
    assert np.abs(one.astype(int) - second).max() <= 1, "up to a rounding"
    assert np.abs(first.astype(int) - second).mean() > 20


def test_a_drawer_follows_its_plan(joined):
    """The same drawer and noise after two plans gives two heads; what it draws depends on the slices about its own."""
    drawer = load_pyramid(joined).levels[1]
    from slicewise.ascii import chain

    plan = np.full((1, 5, 8, 8), -1000, np.int16)
    other = plan.copy()
    other[:, 3, 2:6, 2:6] = 60
    a, b = (np.stack(list(chain(drawer, CHAIN, 0, [0], above=p)), axis=1) for p in (plan, other))
    assert np.array_equal(a[0, :2], b[0, :2])
    assert not np.array_equal(a[0, 2], b[0, 2])


def test_generate_takes_a_pyramid(levels, tmp_path):
    main(["pyramid", *map(str, levels), "--out", str(tmp_path / "both.safetensors")])
    settings = GenerateSettings(count=2, batch=2, chain=CHAIN, calibrate="off", nifti=False)
    generate(tmp_path / "both.safetensors", tmp_path / "run", settings)
    volumes = [volume for _, _, volume in results(tmp_path / "run", 2)]
    drawn = generate(tmp_path / "both.safetensors", tmp_path / "auto", replace(settings, count=1, calibrate="auto"))
    assert drawn["settings"]["calibrate"] == "off", "what follows a plan is not calibrated unless asked for"
    assert [v.hu.shape for v in volumes] == [(5, 32, 32)] * 2
    assert volumes[0].spacing == (5.0, 6.0, 6.0)
    with pytest.raises(UserError, match="the plan of this checkpoint begins at the vertex"):
        seeded = replace(settings, seed_volume=tmp_path / "run" / "dicom" / "volume-0000")
        generate(tmp_path / "both.safetensors", tmp_path / "seeded", seeded)


def test_a_pyramid_of_several_sizes_draws_the_one_that_is_asked_for(three):
    sizes = [[level.recipe.size for level in load_generator(three, size=n).levels] for n in (0, 32, 64)]
    assert sizes == [[8, 32], [8, 32], [8, 32, 64]]
    with pytest.raises(UserError, match="does not draw 8 pixels per side; choose 32 or 64"):
        load_generator(three, size=8)


def test_a_finer_level_draws_after_the_one_above_it(three):
    """What it is shown of the level above is that level's own result, as without it, enlarged."""
    chain = replace(CHAIN, above_sigma=1e-9)
    coarse = draw(load_generator(three), chain, 5, [3])[0].hu
    seen = []
    finer = load_generator(three, size=64)
    last = finer.levels[-1]
    spied = replace(last, network=_Spy(last.network, seen))
    head = draw(replace(finer, levels=(*finer.levels[:-1], spied)), chain, 5, [3])[0].hu
    assert head.shape == (len(coarse), 64, 64)
    above = seen[0][0, -2].double() * last.recipe.sigma_data  # about the first slice; its noise is that of sigma_min
    found = codec(last.recipe.scale, torch.device("cpu")).decode(above).numpy()
    enlarged = interpolate(torch.from_numpy(coarse[:2, None]).double(), scale_factor=2, mode="bilinear")[:, 0].numpy()
    assert np.abs(found - enlarged[0]).max() < 8
    assert np.abs(found - enlarged[1]).max() > 50


class _Spy(torch.nn.Module):
    """A network that keeps what it is given."""

    def __init__(self, network: torch.nn.Module, seen: list) -> None:
        super().__init__()
        self.network, self.seen = network, seen

    def forward(self, x, *rest, **named):
        self.seen.append(x)
        return self.network(x, *rest, **named)


def test_generate_draws_the_size_that_is_asked_for(three, levels, tmp_path):
    settings = GenerateSettings(count=1, size=64, chain=CHAIN, device="cpu", nifti=False)
    record = generate(three, tmp_path / "fine", settings)
    assert next(results(tmp_path / "fine", 1))[2].hu.shape[1:] == (64, 64)
    assert record["settings"]["size"] == 64
    assert record["spacing_mm"] == [5.0, 3.0, 3.0]
    record = generate(three, tmp_path / "coarse", replace(settings, size=0))
    assert record["settings"]["size"] == 32
    with pytest.raises(UserError, match="does not draw 64 pixels per side; choose 8"):
        generate(levels[0], tmp_path / "one", replace(settings, calibrate="off"))


def test_a_size_that_no_level_draws_is_one_line(levels, tmp_path):
    with pytest.raises(UserError, match="does not draw 64 pixels per side; choose 32"):
        join(levels, tmp_path / "pyramid.safetensors", size=64)


def _changed(path: Path, out: Path, **recipe) -> Path:
    tensors, meta = load_tensors(path)
    save_file(tensors, out, metadata={"slicewise": json.dumps({**meta, "recipe": {**meta["recipe"], **recipe}})})
    return out


def test_levels_that_do_not_fit_are_one_line(levels, tmp_path):
    plan, drawer = levels
    cases = {
        "one level is not a pyramid": [plan],
        "follows a level above, which is missing": [drawer, plan],
        "pixels per side 32 where .* 64": [_changed(plan, tmp_path / "size.safetensors", size=16), drawer],
        "slice spacing 5.0 where .* 2.5": [
            _changed(plan, tmp_path / "mm.safetensors", spacing_mm=[2.5, 24.0, 24.0]), drawer
        ],
        "pixels per side 8 where": [plan, plan],
    }  # fmt: skip
    for what, given in cases.items():
        with pytest.raises(UserError, match=what) as caught:
            join(given, tmp_path / "out.safetensors")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out.safetensors").exists()


def test_a_pyramid_that_lost_a_level_is_one_line(joined, tmp_path):
    tensors, meta = load_tensors(joined)
    without = {name: tensor for name, tensor in tensors.items() if not name.startswith("1.")}
    save_file(without, tmp_path / "p.safetensors", metadata={"slicewise": json.dumps(meta)})
    with pytest.raises(UserError, match="level 2: weights do not fit"):
        load_pyramid(tmp_path / "p.safetensors")
    with pytest.raises(UserError, match="follows the plan of a level above"):
        generate(
            Path(joined).parent / "drawer",
            tmp_path / "run",
            GenerateSettings(count=1, chain=CHAIN, calibrate="off", nifti=False),
        )


@pytest.mark.parametrize(
    "change, what",
    [
        ({"pool": 0}, "pool=0"),
        ({"pool": 3}, "pool=3"),
        ({"above": -1}, "above=-1"),
        ({"crop": (10, 10)}, "multiples of 4"),
    ],
)
def test_levels_that_no_network_takes_are_said(change, what, store, tmp_path):
    with pytest.raises(UserError, match=what):
        train_denoiser(store, tmp_path / "run", replace(PLAN, **{"above": 4, "pool": 1, **change}))


def test_a_plan_of_whole_heads_is_drawn_as_long_as_it_is(whole):
    pyramid = load_pyramid(whole)
    assert pyramid.levels[0].recipe.whole
    assert not pyramid.recipe.whole
    settings = FEW
    together = draw(pyramid, settings, 3, [0, 1])
    alone = draw(pyramid, settings, 3, [1])[0]
    assert [h.known for h in together] == [(), ()]
    assert 5 <= len(alone.hu) <= 12
    np.testing.assert_allclose(together[1].hu.astype(int), alone.hu, atol=2)
    plans = whole_heads(pyramid.levels[0], settings, 3, [0, 1], {})
    first, end = head_extent(plans[1], pyramid.recipe.scale.air)
    assert end - first == len(alone.hu), "the drawer draws what the plan holds"


@pytest.mark.parametrize("direction", ["down", "up", "both"])
def test_a_seed_slice_is_known_to_the_plan_and_drawn_from_either_way(direction, whole, store):
    pyramid = load_pyramid(whole)
    hu = np.asarray(store.hu(store.records[0]))
    at = 3
    head = draw(pyramid, replace(FEW, direction=direction), 0, [0], {at: hu[at]})[0]
    (place,) = head.known
    np.testing.assert_array_equal(head.hu[place], hu[at])
    assert (0 < place <= at) == (direction != "down")
    assert (len(head.hu) > place + 1) == (direction != "up")
    means = np.rint(hu[at].reshape(8, 4, 8, 4).mean(axis=(1, 3)))
    plan = whole_heads(pyramid.levels[0], FEW, 0, [0], {at: means.astype(np.int16)})
    np.testing.assert_array_equal(plan[0, at], means)


def test_each_way_is_the_same_whether_or_not_the_other_is_taken(whole, store):
    pyramid = load_pyramid(whole)
    hu = np.asarray(store.hu(store.records[0]))
    made = {d: draw(pyramid, replace(FEW, direction=d), 0, [0], {3: hu[3]})[0] for d in ("down", "up", "both")}
    (place,) = made["both"].known
    np.testing.assert_array_equal(made["both"].hu[place:], made["down"].hu)
    np.testing.assert_array_equal(made["both"].hu[: place + 1], made["up"].hu)


def test_slices_between_known_ones_are_drawn_given_both_sides(whole, store):
    pyramid = load_pyramid(whole)
    hu = np.asarray(store.hu(store.records[0]))
    known = {z: hu[z] for z in (1, 2, 5, 6)}
    head = draw(pyramid, FEW, 0, [0, 1], known, ())[1]
    assert (len(head.hu), head.known) == (6, (0, 1, 4, 5)), "from the first known slice to the last"
    np.testing.assert_array_equal(head.hu[[0, 1, 4, 5]], hu[[1, 2, 5, 6]])
    assert np.abs(head.hu[2] - head.hu[1].astype(int)).mean() > 0
    # What lies below counts for the slice above it, and the other way about.
    for changed, drawn in ((6, 3), (1, 2)):
        other = draw(pyramid, FEW, 0, [0, 1], {**known, changed: np.flip(hu[changed], 0).copy()}, ())[1]
        assert not np.array_equal(other.hu[drawn], head.hu[drawn])


def test_a_head_is_completed_either_way_and_its_holes_filled(whole, store):
    pyramid = load_pyramid(whole)
    hu = np.asarray(store.hu(store.records[0]))
    known = {3: hu[3], 5: hu[5]}
    inner = draw(pyramid, FEW, 0, [0], known, ())[0]
    both = draw(pyramid, FEW, 0, [0], known, ("up", "down"))[0]
    first = both.known[0]
    assert 0 < first <= 3
    assert len(both.hu) > first + 3
    np.testing.assert_array_equal(both.hu[first : first + 3], inner.hu)


def test_the_window_about_a_missing_slice_holds_the_most_known_ones():
    assert _best_window(5, {3, 4, 6, 7}, 3) == 4, "one on either side"
    assert _best_window(5, {3, 4}, 3) == 3, "the last of its window"
    assert _best_window(5, {6, 7}, 3) == 5, "the first of its window"
    assert _best_window(5, {4, 6, 7, 8}, 4) == 4


def test_slices_between_are_made_from_the_outside_inward(joined, store):
    drawer = load_pyramid(joined).levels[1]
    stacks = np.asarray(store.hu(store.records[0]))[None, :8]
    plan = np.zeros((1, 8, 8, 8), np.int16)
    made = dict(between(drawer, FEW, 0, [0], stacks, [2, 3, 4, 5, 6], 0.0, above=plan))
    assert list(made) == [2, 6, 3, 5, 4]
    rubbish = stacks.copy()
    rubbish[:, 2:7] = 3000
    again = dict(between(drawer, FEW, 0, [0], rubbish, [2, 3, 4, 5, 6], 0.0, above=plan))
    for z, slices in made.items():
        np.testing.assert_array_equal(slices, again[z])  # what stood there does not count


def test_seeds_that_do_not_fit_are_one_line(whole, joined, store):
    pyramid = load_pyramid(whole)
    hu = np.asarray(store.hu(store.records[0]))
    with pytest.raises(UserError, match="lies 70 mm below the vertex, but the plan covers heads only down to 55 mm"):
        draw(pyramid, FEW, 0, [0], {14: hu[3]})
    with pytest.raises(UserError, match=r"needs GenerateSettings\.seed_volume"):
        draw(pyramid, replace(FEW, direction="up"), 0, [0])
    with pytest.raises(UserError, match="the plan of this checkpoint begins at the vertex"):
        draw(load_pyramid(joined), FEW, 0, [0], {3: hu[3]})
    with pytest.raises(UserError, match="the checkpoint draws 32; resample it"):
        draw(pyramid, FEW, 0, [0], {3: hu[3, ::2, ::2]})


def test_a_plan_without_a_head_is_one_line(whole):
    pyramid = load_pyramid(whole)
    network = pyramid.levels[0].network
    network.mean.fill_(-2.0)  # of air
    network.modes.zero_()
    network.log_spread.fill_(-6.0)
    with pytest.raises(UserError, match="the plan of volume 7 holds no head"):
        draw(pyramid, FEW, 0, [7])


def test_generate_goes_both_ways_from_a_seed(whole, store, tmp_path):
    """Written: all but the seed slice, at its place in the patient."""
    volume = Volume.regular(np.asarray(store.hu(store.records[0])), (5.0, 6.0, 6.0))
    write_nifti(volume, tmp_path / "real.nii.gz")
    settings = GenerateSettings(
        count=1, chain=replace(FEW, direction="both"), calibrate="off",
        seed_volume=tmp_path / "real.nii.gz", seed_slice=3, keep_seed=True, core="float32", device="cpu",
    )  # fmt: skip
    generate(whole, tmp_path / "out", settings)
    _, _, made = next(iter(results(tmp_path / "out", 1)))
    at = int(np.argmin(np.abs(made.positions[:, 2] - volume.positions[3, 2])))
    assert 0 < at < len(made.hu) - 1
    assert made.acquisition.real_slices == (at,)
    np.testing.assert_array_equal(made.hu[at], volume.hu[3])
    assert made.is_even


def test_whole_heads_need_room_and_no_position(store, tmp_path):
    with pytest.raises(UserError, match="the longest head has 8 slices; give more than that"):
        train_denoiser(store, tmp_path / "a", replace(WHOLE, slices=8))
    with pytest.raises(UserError, match="give slices divisible by 2"):
        train_denoiser(store, tmp_path / "b", replace(WHOLE, slices=11))
    with pytest.raises(UserError, match="position=False"):
        train_denoiser(store, tmp_path / "c", replace(WHOLE, position=True))
    with pytest.raises(UserError, match="give the same number of each, one per level"):
        train_denoiser(store, tmp_path / "d", replace(WHOLE, unet3d=replace(WHOLE.unet3d, blocks=(1,))))


def test_float16_halves_the_file_and_hardly_moves_a_head(levels, whole, tmp_path):
    plan = whole.parent / "plan"
    halved = join([plan, levels[1]], tmp_path / "half.safetensors", half=True)
    assert halved.stat().st_size < 0.62 * whole.stat().st_size  # the JSON in the header stays as long
    a, b = (draw(load_pyramid(path), FEW, 0, [0])[0].hu for path in (whole, halved))
    assert a.shape == b.shape
    assert np.abs(a.astype(int) - b).mean() < 5


def test_training_goes_on_from_the_level_that_fits(whole, store, tmp_path):
    """Fine-tuning keeps the Gaussian that the plan was trained with."""
    for number, settings in enumerate((WHOLE, DRAWER)):
        weights = train_denoiser(store, tmp_path / str(number), replace(settings, steps=2, lr=1e-9), init=whole)
        tuned, level = load_denoiser(weights), load_pyramid(whole).levels[number]
        for name, value in level.network.state_dict().items():
            found = tuned.network.state_dict()[name]  # averages of weights are kept in float16
            torch.testing.assert_close(found, value, atol=1e-4, rtol=1e-3)
    with pytest.raises(UserError, match=r"its network is .*this training's is"):
        train_denoiser(store, tmp_path / "other", replace(DRAWER, above=0), init=whole)


def test_training_goes_on_from_the_level_that_draws_its_size(three, tmp_path):
    fine, settings = open_store(three.parent / "store"), replace(DRAWER, above=2, steps=2, lr=1e-9)
    tuned = load_denoiser(train_denoiser(fine, tmp_path / "finer", settings, init=three)).network.state_dict()
    for name, value in load_generator(three, size=64).levels[-1].network.state_dict().items():
        torch.testing.assert_close(tuned[name], value, atol=1e-4, rtol=1e-3)


def test_guidance_leads_away_from_the_guide_within_its_interval(whole):
    pyramid = load_pyramid(whole)
    level = pyramid.levels[1]
    worse = copy.deepcopy(level)
    for parameter in worse.network.parameters():
        parameter.data *= 0.9
    lead = guided(level, worse, ChainSettings(guidance=1.7, guidance_interval=(0.1, 2.0)))
    x, position = torch.randn(2, 6, 32, 32, dtype=torch.float64), torch.tensor([20.0, 40.0])
    sigma = torch.tensor([[0.05, 0.1, 1.0, 0.01, 0.01, 0.01], [0.05, 2.0, 2.1, 0.01, 0.01, 0.01]], dtype=torch.float64)
    with torch.no_grad():
        good, bad, found = (d(x, sigma, position) for d in (level, worse, lead))
    inside = torch.tensor([[0, 1, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0]], dtype=torch.bool)
    expected = torch.where(inside[:, :3, None, None], good + 0.7 * (good - bad), good)
    torch.testing.assert_close(found, expected)
    assert (found - good).abs().max() > 1e-3


def test_generate_is_guided_by_an_earlier_checkpoint_of_the_same_levels(whole, joined, levels, tmp_path):
    settings = GenerateSettings(count=1, chain=CHAIN, calibrate="off", nifti=False, guide=whole)
    plain = generate(whole, tmp_path / "plain", replace(settings, guide=None))
    same = generate(whole, tmp_path / "same", settings)
    assert same["settings"]["guide"]
    assert not plain["settings"]["guide"]
    hu = [next(iter(results(tmp_path / name, 1)))[2].hu for name in ("plain", "same")]
    np.testing.assert_array_equal(*hu)  # led away from itself nothing moves
    with pytest.raises(UserError, match="guide: its slices is 3 where the checkpoint's is 12"):
        generate(whole, tmp_path / "a", replace(settings, guide=joined))
    with pytest.raises(UserError, match="guide: its levels differ"):
        generate(whole, tmp_path / "b", replace(settings, guide=levels[1]))


def test_so_many_slices_are_drawn_either_way_of_the_seed(whole, store):
    pyramid = load_pyramid(whole)
    hu = np.asarray(store.hu(store.records[0]))
    for direction, above, below in (("down", 0, 2), ("up", 2, 0), ("both", 2, 2)):
        head = draw(pyramid, replace(FEW, direction=direction, slices=2), 0, [0], {3: hu[3]})[0]
        assert (len(head.hu), head.known) == (above + 1 + below, (above,))
