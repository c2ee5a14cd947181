"""The chain of slices, with denoisers whose answer is known: what each slice is given, and when a head ends."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

from slicewise.ascii import chain, is_air, trim
from slicewise.diffusion.denoiser import Denoiser, Recipe
from slicewise.errors import UserError
from slicewise.hu import HUScale
from slicewise.networks.shapes import UNetConfig
from slicewise.networks.unet import UNet
from slicewise.sampling import ChainSettings

SIZE, DZ = 8, 5.0
RECIPE = Recipe(
    slices=3, joint=False, size=SIZE, spacing_mm=(DZ, 2.0, 2.0), scale=HUScale(companding="half"), sigma_data=0.5,
    sigma_min=1e-5, sigma_max=20.0, position=True, min_slices=3, max_slices=6,
)  # fmt: skip
FAST = ChainSettings(steps=3, known_sigma=0.0)


@dataclass
class Known:
    """A stand-in for a Denoiser that writes down what it is given and answers `answer(HU of the window, positions)`."""

    answer: object
    recipe: Recipe = RECIPE
    calls: list = field(default_factory=list)

    def __call__(self, x, sigma, position):
        hu = self.recipe.scale.decode(x.numpy())
        self.calls.append((x.clone(), sigma.clone(), position.clone()))
        out = np.asarray(self.answer(hu, position.numpy()), np.float64)
        return torch.from_numpy(self.recipe.scale.encode(np.broadcast_to(out, hu.shape))).double()


def _flat(value):
    return np.stack([np.full((SIZE, SIZE), v, np.int16) for v in np.atleast_1d(value)])


def _run(denoiser, settings, volumes=(0,), **more):
    return np.stack(list(chain(denoiser, settings, 1, list(volumes), **more)))


def _rounded(x, recipe=RECIPE):
    return recipe.scale.decode_codes(x.numpy())


def test_each_slice_is_given_the_two_before_it_and_air_before_the_first():
    """The answer is the slice before plus 100 HU, so slice i must be -1024 + 100 (i + 1)."""
    denoiser = Known(lambda hu, mm: hu[:, 1:2] + 100)
    found = _run(denoiser, replace(FAST, slices=4))
    assert found.dtype == np.int16
    assert found.shape == (4, 1, SIZE, SIZE)
    assert [np.unique(s).tolist() for s in found] == [[-924], [-824], [-724], [-624]]
    given = [[int(np.median(s)) for s in _rounded(x)[0, :2]] for x, _, _ in denoiser.calls[2::3]]
    assert given == [[-1024, -1024], [-1024, -924], [-924, -824], [-824, -724]]


def test_positions_count_down_from_the_vertex():
    denoiser = Known(lambda hu, mm: np.full_like(hu, 0))
    _run(denoiser, replace(FAST, slices=3))
    assert [float(p[0]) for _, _, p in denoiser.calls[::3]] == [0.0, 5.0, 10.0]
    assert all(p.dtype == torch.float32 for _, _, p in denoiser.calls)


def test_known_slices_are_nearly_clean_and_only_the_wanted_one_is_sampled():
    denoiser = Known(lambda hu, mm: np.full_like(hu, 40))
    _run(denoiser, replace(FAST, slices=2, known_sigma=0.004))
    levels = np.stack([s.numpy()[0] for _, s, _ in denoiser.calls])
    assert (levels[:, :2] == 0.004).all()
    assert levels[:3, 2].tolist() == pytest.approx([20.0, levels[1, 2], 1e-5])
    air = RECIPE.scale.encode(np.array(-1024.0))
    for x, _, _ in denoiser.calls[:3]:
        assert float((x[0, :2] - float(air)).std()) == pytest.approx(0.004, rel=0.2)


def test_up_turns_the_window_round():
    """Given slices of 100 and 200 HU (the first is the superior one), upward continues from the one of 100."""
    denoiser = Known(lambda hu, mm: hu[:, 1:2] - 10)
    found = _run(denoiser, replace(FAST, slices=3, direction="up"), start=_flat([100, 200]), start_mm=50.0)
    assert [int(s[0, 0, 0]) for s in found] == [90, 80, 70]
    given = [[int(np.median(s)) for s in _rounded(x)[0, 1:]] for x, _, _ in denoiser.calls[2::3]]
    assert given == [[100, 200], [90, 100], [80, 90]]
    # The condition is the position of the window's last slice: two below the wanted one, which lies at 45, 40, 35 mm.
    assert [float(p[0]) for _, _, p in denoiser.calls[::3]] == [55.0, 50.0, 45.0]


def test_down_goes_on_from_real_slices():
    denoiser = Known(lambda hu, mm: hu[:, 1:2] + hu[:, 0:1])
    found = _run(denoiser, replace(FAST, slices=3), start=_flat([9, 1, 2]), start_mm=50.0)
    assert [int(s[0, 0, 0]) for s in found] == [3, 5, 8]
    assert [float(p[0]) for _, _, p in denoiser.calls[::3]] == [55.0, 60.0, 65.0]


def test_what_is_not_known_comes_in_as_pure_noise():
    denoiser = Known(lambda hu, mm: np.full_like(hu, 0))
    _run(denoiser, replace(FAST, slices=2), start=_flat([30]), start_mm=20.0)
    x, sigma, _ = denoiser.calls[0]
    assert sigma[0].tolist() == [20.0, 1e-5, pytest.approx(20.0)]
    assert float(x[0, 0].std()) == pytest.approx(20.0, rel=0.4)
    assert _rounded(x[0, 1]).max() == 30
    assert denoiser.calls[3][1][0].tolist() == [1e-5, 1e-5, pytest.approx(20.0)]


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun", "pc"])
def test_the_joint_model_sees_its_known_slices_at_the_noise_level_of_the_others(sampler):
    recipe = replace(RECIPE, joint=True, size=SIZE)
    denoiser = Known(lambda hu, mm: hu[:, 1:2] * 0 + 40, recipe)
    settings = replace(FAST, steps=5, slices=2, sampler=sampler)
    found = _run(denoiser, settings, start=_flat([10, 20]), start_mm=5.0)
    assert np.unique(found).tolist() == [40]
    known = torch.from_numpy(recipe.scale.encode(_flat([10, 20])))
    for x, sigma, _ in denoiser.calls[: len(denoiser.calls) // 2]:
        assert sigma.shape == (1, 3)
        assert len(set(sigma[0].tolist())) == 1
        assert float(((x[0, :2] - known) / sigma[0, 0]).std()) == pytest.approx(1, abs=0.3)


def test_pc_noisy_leaves_its_noise_in_the_slice():
    recipe = replace(RECIPE, scale=HUScale(), sigma_min=0.01, size=32)
    denoiser = Known(lambda hu, mm: np.full_like(hu, 40), recipe)
    clean, noisy = (_run(denoiser, replace(FAST, slices=1, sampler=s)) for s in ("pc", "pc_noisy"))
    assert (clean == 40).all()
    assert noisy.std() == pytest.approx(20.5, rel=0.1)


def test_a_chain_ends_when_every_head_has_ended_and_air_before_the_vertex_is_no_end():
    """Two volumes: the first shows a speck at slice 0 and its head at slices 2 to 6, the second its head at 0 to 7."""

    def answer(hu, mm):
        at = round(float(mm[0]) / DZ)
        shown = [at in (0, 2, 3, 4, 5, 6), at <= 7]
        return np.array([40 if s else -1000 for s in shown])[:, None, None, None]

    recipe = replace(RECIPE, max_slices=20)
    found = _run(Known(answer, recipe), FAST, volumes=(0, 1))
    assert len(found) == 9, "one slice of air after the longer head"
    assert [len(trim(found[:, i])) for i in (0, 1)] == [5, 8]
    assert (trim(found[:, 0]) == 40).all()
    assert (trim(found[:, 1]) == 40).all()
    assert len(_run(Known(answer, recipe), replace(FAST, slices=2), volumes=(0, 1))) == 2, "as many as asked for"


def test_a_model_of_a_window_sees_its_head_end_although_its_air_is_as_dense_as_the_window():
    recipe = replace(RECIPE, scale=HUScale(-10, 70), max_slices=20)
    known = Known(lambda hu, mm: np.full_like(hu, 40 if 1 <= round(float(mm[0]) / DZ) <= 5 else -1000), recipe)
    found = _run(known, FAST)
    assert [int(s.min()) for s in found] == [-10, *[40] * 5, -10]
    assert len(trim(found[:, 0], air_hu=recipe.scale.air)) == 5


def test_a_head_that_began_with_a_real_slice_ends_at_the_first_slice_of_air():
    known = Known(lambda hu, mm: np.full_like(hu, 40 if round(float(mm[0]) / DZ) <= 2 else -1000))
    found = _run(known, FAST, start=_flat([40, 40]), start_mm=DZ)
    assert len(found) == 2
    assert len(trim(found[:, 0], begun=True)) == 1


def test_a_head_that_does_not_end_stops_one_slice_after_the_longest_known():
    assert len(_run(Known(lambda hu, mm: np.full_like(hu, 40)), FAST)) == RECIPE.max_slices + 1


def test_trim():
    air, head = np.full((SIZE, SIZE), -1000, np.int16), np.full((SIZE, SIZE), 40, np.int16)
    speck = air.copy()
    speck[0, 0] = 40  # 1 of 64 pixels is more than 0.5 %
    assert is_air(np.stack([air, head, speck])).tolist() == [True, False, False]
    stack = np.stack([air, head, head, air, *[head] * 5, air, *[head] * 6])
    assert np.array_equal(trim(stack), stack[4:9]), "the first of five or more"
    assert np.array_equal(trim(stack[:4]), stack[1:3])
    assert np.array_equal(trim(stack[:8]), stack[4:8])
    assert len(trim(stack[1:3])) == 2
    assert len(trim(stack[:1])) == 1
    assert len(trim(stack[2:4])) == 2, "a single slice is no volume"
    assert len(trim(stack, begun=True)) == 0
    assert len(trim(stack[1:], begun=True)) == 2


def test_a_calibrated_slice_is_what_the_next_is_given():
    seen = []

    def calibrate(hu, before):
        seen.append((float(np.median(hu)), int(np.median(before)), hu.dtype, before.dtype))
        return hu + 0.6

    found = _run(
        Known(lambda hu, mm: hu[:, 1:2] + 10), replace(FAST, slices=2), start=_flat([0, 0]), calibrate=calibrate
    )
    assert [int(s[0, 0, 0]) for s in found] == [11, 22]  # 10.6 and 21.6, rounded
    assert [s[1] for s in seen] == [0, 11]
    assert seen[0][2] == np.float64
    assert seen[0][3] == np.int16


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun", "pc"])
def test_a_volume_is_the_same_in_any_batch(sampler):
    """Bit for bit where the denoiser works on each pixel alone; another volume or seed is another head."""

    def answer(hu, mm):
        return 200 * np.tanh(hu[:, 2:3] / 500) + 0.3 * hu[:, 1:2]

    settings = replace(FAST, slices=3, sampler=sampler)
    alone = _run(Known(answer), settings, volumes=(7,))
    among = _run(Known(answer), settings, volumes=(3, 7, 12))
    assert np.array_equal(alone[:, 0], among[:, 1])
    assert not np.array_equal(among[:, 0], among[:, 1])
    other_seed = np.stack(list(chain(Known(answer), settings, 2, [7])))
    assert not np.array_equal(other_seed, alone)


def test_a_network_makes_the_same_volume_in_any_batch():
    torch.manual_seed(0)
    net = UNet(UNetConfig(channels=(8, 16), blocks=(1, 1), attention=(False, True), embedding=16))
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    denoiser = Denoiser(net.eval(), RECIPE, {})
    settings = ChainSettings(steps=4, slices=2)
    alone, among = _run(denoiser, settings, (7,)), _run(denoiser, settings, (1, 7))
    assert np.abs(alone[:, 0].astype(int) - among[:, 1]).max() <= 1  # kernels may round differently
    assert np.array_equal(among, _run(denoiser, settings, (1, 7))), "the same batch gives the same bits"


@pytest.mark.parametrize(
    "settings, more, what",
    [
        (replace(FAST, direction="up"), {}, "ChainSettings.direction=up needs GenerateSettings.seed_volume"),
        (replace(FAST, slices=1), {"start": np.zeros((2, 9, 9), np.int16)}, "seed slice of"),
        (replace(FAST, steps=1), {}, "ChainSettings.steps=1"),
        (replace(FAST, sigma_min=30.0), {}, "sigma"),
        (replace(FAST, sigma_min=-1.0), {}, "sigma"),
        (replace(FAST, rho=0.0), {}, "rho"),
        (replace(FAST, slices=-2), {}, "ChainSettings.slices=-2"),
        (replace(FAST, known_sigma=-0.1), {}, "ChainSettings.known_sigma"),
        (replace(FAST, snr=0.0, sampler="pc"), {}, "snr"),
    ],
)
def test_bad_settings_are_one_line(settings, more, what):
    with pytest.raises(UserError, match=what) as caught:
        _run(Known(lambda hu, mm: np.full_like(hu, 0)), settings, **more)
    assert "\n" not in str(caught.value)
