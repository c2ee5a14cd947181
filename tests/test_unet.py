"""The lean U-Net core: what it promises to the preconditioning, and that every input reaches its output."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from slicewise.networks.local import Local
from slicewise.networks.shapes import UNetConfig
from slicewise.networks.unet import UNet, _details, _mean, channel_norm, fourier_features
from slicewise.settings import fill, preset

TINY = UNetConfig(channels=(8, 16), blocks=(1, 1), attention=(False, True), embedding=16)


def _random(config: UNetConfig = TINY, seed: int = 0) -> UNet:
    """A network with random instead of zero output layers, so that something comes through."""
    torch.manual_seed(seed)
    net = UNet(config)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return net.eval()


def _inputs(config: UNetConfig = TINY, size: int = 16):
    torch.manual_seed(1)
    return torch.randn(2, config.slices, size, size), torch.randn(2, config.slices), torch.rand(2, config.condition)


def _all(answer: Local) -> torch.Tensor:
    return torch.cat(answer, dim=1)


def test_untrained_network_says_nothing():
    """F = 0 and M = 0; the spread is half-way, by e-folds, between the whole data's and the least."""
    x, noise, condition = _inputs()
    assert not UNet(replace(TINY, local=False))(x, noise, condition).any()
    f, mean, spread = UNet(TINY)(x, noise, condition)
    assert f.shape == x.shape
    assert not f.any()
    assert not mean.any()
    assert (spread == -UNet.DEPTH / 2).all()


def test_the_fine_mean_takes_over_near_the_brain():
    """The local network's mean against its own head's answers: at the centre the fine one, far away the coarse one."""
    k, pixels = TINY.slices, TINY.fold**2
    net, inputs = _random(replace(TINY, copy=False)), _inputs()
    net.centre.fill_(-0.3)
    answers = []
    rows = slice(k * pixels, 2 * k * pixels)
    with torch.no_grad():
        net.head.weight[rows] = 0
        hook = net.head.register_forward_hook(lambda module, given, out: answers.append(out))
        for coarse, share in ((-0.3, 1.0), (-0.15, 0.25), (20.0, 0.0)):
            net.head.bias[rows] = coarse
            found = net(*inputs).mean
            fine = torch.nn.functional.pixel_shuffle(answers[-1], TINY.fold).chunk(4, dim=1)[3]
            torch.testing.assert_close(found, coarse + share * (-0.3 + 0.05 * fine - coarse), rtol=1e-4, atol=1e-4)
        hook.remove()


def test_what_is_made_for_the_brain_is_finer_where_a_scale_gives_it_less_of_x():
    """Seen through windows and details alone, a brain of a fifth of the contrast at five times the zoom looks the same:
    so are F, the mean in HU, and the least spread."""
    noise, condition = _inputs()[1:]
    found = {}
    for contrast in (1.0, 0.2):
        torch.manual_seed(3)
        brain = 0.02 * torch.randn(2, TINY.slices, 16, 16)
        net = _random(replace(TINY, copy=False))
        net.brain(0.0, contrast * UNet.HU)
        k, pixels = TINY.slices, TINY.fold**2
        with torch.no_grad():
            net.stem.weight[:, : k * pixels] = 0  # the plain slices
            net.head.weight[k * pixels : 2 * k * pixels] = net.head.bias[k * pixels : 2 * k * pixels] = 0
            net.head.weight[2 * k * pixels : 3 * k * pixels] = 0
            net.head.bias[2 * k * pixels : 3 * k * pixels] = 50.0
            found[contrast] = net(contrast * brain, noise, condition)
    (f, mean, spread), (f_less, mean_less, spread_less) = found.values()
    torch.testing.assert_close(f_less, f, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(mean_less, 0.2 * mean, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(spread_less.exp(), 0.2 * spread.exp())
    assert mean.std() > 0
    assert f.std() > 0


def test_of_slices_that_are_only_shown_nothing_is_said():
    """The same answers for the others as from a network that also says something of those."""
    config = replace(TINY, slices=5)
    net, less = _random(config), UNet(replace(config, context=2)).eval()
    weights = net.state_dict()
    kept = [part * 5 + k for part in range(4) for k in range(3)]
    pixels = TINY.fold**2
    for name in ("head.weight", "head.bias", "mix.weight", "mix.bias"):
        rows = weights[name].unflatten(0, (20, -1))[kept].flatten(0, 1)
        assert name.startswith("mix") or len(rows) == 12 * pixels
        weights[name] = rows
    less.load_state_dict(weights)
    inputs = _inputs(config)
    for found, expected in zip(less(*inputs), net(*inputs)):
        assert found.shape == (2, 3, 16, 16)
        torch.testing.assert_close(found, expected[:, :3])


def test_weights_that_name_no_zoom_were_trained_at_1():
    net, state = UNet(TINY), {name: t for name, t in _random().state_dict().items() if name != "zoom"}
    net.brain(0.0, 0.2 * UNet.HU)
    net.load_state_dict(state)
    assert float(net.zoom) == 1
    assert "zoom" in net.state_dict()


def test_output_is_float32_and_close_under_autocast():
    net, inputs = _random(), _inputs()
    with torch.no_grad():
        full = _all(net(*inputs))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = _all(net(*inputs))
    assert full.dtype == half.dtype == torch.float32
    assert full.shape == (2, 9, 16, 16)
    assert 0 < float((full - half).abs().max()) < 0.1 * float(full.abs().max())


def test_every_level_condition_and_slice_reaches_the_output():
    net, (x, noise, condition) = _random(), _inputs()
    with torch.no_grad():
        base = _all(net(x, noise, condition))
        changed = []
        for k in range(TINY.slices):
            other = noise.clone()
            other[:, k] += 0.5
            changed.append(_all(net(x, other, condition)))
        changed.append(_all(net(x, noise, condition + 0.3)))
        for k in range(TINY.slices):
            other = x.clone()
            other[:, k] += 0.5
            changed.append(_all(net(other, noise, condition)))
    for i, one in enumerate(changed):
        assert float((one - base).abs().max()) > 1e-3, f"input {i} does not matter"
        for other in changed[:i]:
            assert float((one - other).abs().max()) > 1e-4, "two inputs do the same"


def test_samples_of_a_batch_do_not_mix():
    net, (x, noise, condition) = _random(), _inputs()
    with torch.no_grad():
        both = _all(net(x, noise, condition))
        alone = torch.cat([_all(net(x[i : i + 1], noise[i : i + 1], condition[i : i + 1])) for i in range(2)])
    torch.testing.assert_close(both, alone, rtol=1e-4, atol=1e-5)


def test_attention_sees_the_whole_picture_and_folding_loses_no_pixel():
    net, (x, noise, condition) = _random(), _inputs()
    x = x[:1].requires_grad_()
    net(x, noise[:1], condition[:1]).f[0, 0, 0, 0].backward()
    assert x.grad is not None, "some pixel cannot reach the far corner"
    assert (x.grad.abs() > 0).all(), "some pixel cannot reach the far corner"


def test_all_parameters_learn():
    net, (x, noise, condition) = _random(), _inputs()
    _all(net(x, noise, condition)).square().mean().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().max() > 0, name


def test_the_default_is_small_and_the_presets_of_128_pixels_are_larger():
    count, drawer, head = (
        sum(p.numel() for p in UNet(config).parameters())
        for config in (
            UNetConfig(),
            *(fill(UNetConfig(), preset("train", name)["unet"], name) for name in ("draw-128", "head-128")),
        )
    )
    assert 1e6 < count < 5e6
    assert count < head
    assert drawer < head, "what draws after a plan needs no wide view"


def test_without_conditions():
    config = replace(TINY, condition=0, slices=2, fold=1)
    x, noise, _ = _inputs(config)
    with torch.no_grad():
        assert _random(config)(x, noise, None).spread.shape == (2, 2, 16, 16)


@pytest.mark.parametrize("size", [16, 20, 24])
def test_sizes_that_divide(size):
    x, noise, condition = _inputs(TINY, size)
    with torch.no_grad():
        assert _random()(x, noise, condition).f.shape == (2, 3, size, size)


@pytest.mark.parametrize("size", [15, 18])
def test_sizes_that_do_not_divide_are_our_own_bug_here(size):
    with pytest.raises(AssertionError):
        UNet(TINY)(*_inputs(TINY, size))


def test_channel_norm_is_layer_norm_of_each_pixel():
    x, gain = torch.randn(2, 5, 3, 4), torch.rand(5)
    found = channel_norm(x, gain)
    for b, i, j in ((0, 0, 0), (1, 2, 3)):
        v = x[b, :, i, j]
        expected = (v - v.mean()) / torch.sqrt(v.var(unbiased=False) + 1e-6) * gain
        torch.testing.assert_close(found[b, :, i, j], expected, rtol=1e-4, atol=1e-5)


def test_fourier_features_tell_close_noise_levels_apart():
    """Neighbouring levels of a 12-step schedule, and 1 % of noise, must differ in the features."""
    levels = torch.tensor([0.001, 0.00101, 0.01, 80.0, 80.8]).log() / 4
    features = fourier_features(levels, 16, 0.5, 64.0)
    assert features.shape == (5, 32)
    assert features.abs().max() <= 1
    distance = torch.cdist(features, features) + torch.eye(5)
    assert distance.min() > 0.1


def test_details_amplify_faint_noise_and_leave_plains_and_edges_alone():
    torch.manual_seed(0)
    noise = torch.randn(1, 1, 32, 32)
    weak, strong = _details(1e-4 * noise, (8.0, 64.0)), _details(1e3 * noise, (8.0, 64.0))
    # An independent 3 x 3 mean, by SciPy, away from the border.
    high = 1e-4 * (noise[0, 0].double().numpy() - ndimage.uniform_filter(noise[0, 0].double().numpy(), 3))
    for gain, shown in zip((8.0, 64.0), weak):
        np.testing.assert_allclose(shown[0, 0, 1:-1, 1:-1], gain * high[1:-1, 1:-1], rtol=1e-3, atol=1e-6)
    assert float(strong[1].abs().median()) < 1e-3
    assert float(_details(torch.full((1, 1, 8, 8), 0.7), (64.0,))[0].abs().max()) < 1e-4
    assert _details(noise, ()) == []


@pytest.mark.parametrize("side", [1, 3, 5])
def test_means_are_means_of_the_pixels_there_are(side):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 9, 8)
    inside = ndimage.uniform_filter(np.ones((9, 8)), side, mode="constant")
    for found, one in zip(_mean(x, side).flatten(0, 1), x.double().flatten(0, 1)):
        expected = ndimage.uniform_filter(one.numpy(), side, mode="constant") / inside
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_windows_show_the_brain_amplified_and_nothing_far_from_it():
    """Only through their windows do these networks see the slices: they must tell 5 HU apart in the brain, not in
    bone. Several, since what one draw of weights makes of a window varies tenfold."""
    config = replace(TINY, slices=1, copy=False, detail=())
    noise, condition = torch.zeros(1, 1), torch.zeros(1, 1)
    near, far = 0.0, 0.0
    for seed in range(8):
        net = _random(config, seed)
        net.centre.fill_(-0.4)

        def shift(level, net=net):
            first, second = (
                _all(net(torch.full((1, 1, 16, 16), level + step), noise, condition)) for step in (0, 0.005)
            )
            return float((first - second).abs().mean())

        with torch.no_grad():
            net.stem.weight[:, : config.fold**2] = 0  # the plain slice
            near, far = near + shift(-0.4), far + shift(0.9)
    assert near > 30 * far > 0
