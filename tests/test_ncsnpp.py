"""NCSN++: resampling against SciPy, structure against an independent count, the interface of every denoiser core."""

import math

import numpy as np
import pytest
import torch
from scipy.signal import upfirdn

from slicewise.errors import UserError
from slicewise.networks.layers import FourierFeatures, Resample, group_norm
from slicewise.networks.ncsnpp import Attention, NCSNpp, ResidualBlock
from slicewise.networks.shapes import NCSNppConfig

SMALL = dict(image_size=16, channels=8, multipliers=(1, 2, 2), blocks=1, attention=(8,))


def make(seed=0, alive=True, **settings):
    """A small network; `alive` gives the zero-initialised layers random weights, as training would."""
    torch.manual_seed(seed)
    net = NCSNpp(NCSNppConfig(**{**SMALL, **settings}))
    if alive:
        for parameter in net.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    return net.eval()


def inputs(k=2, batch=2, side=16, condition=0, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, k, side, side, generator=g)
    noise = torch.randn(batch, k, generator=g)
    return x, noise, torch.rand(batch, condition, generator=g) if condition else None


@pytest.mark.parametrize("shape", [(8, 8), (6, 10), (2, 4)])
def test_fir_resampling_is_upfirdn(shape):
    x = np.random.default_rng(1).normal(size=(2, 3, *shape))
    taps = np.array([1.0, 3.0, 3.0, 1.0]) / 8
    down, up = (Resample(up=u).double()(torch.from_numpy(x)).numpy() for u in (False, True))

    def filtered(axis, x, factor_up, samples):
        full = np.apply_along_axis(lambda v: upfirdn(factor_up * taps, v, up=factor_up), axis, x)
        return full[(slice(None),) * axis + (samples,)]

    # Up: one sample off either end centres the filter. Down: output j sees inputs 2j - 1 … 2j + 2, whose full
    # convolution stands at 2j + 2.
    grown, shrunk = slice(1, -1), slice(2, -1, 2)
    np.testing.assert_allclose(up, filtered(3, filtered(2, x, 2, grown), 2, grown), atol=1e-6)
    np.testing.assert_allclose(down, filtered(3, filtered(2, x, 1, shrunk), 1, shrunk), atol=1e-6)
    assert up.shape[2:] == (2 * shape[0], 2 * shape[1])
    assert down.shape[2:] == (shape[0] // 2, shape[1] // 2)


@pytest.mark.parametrize("fir", [True, False])
def test_resampling_keeps_a_constant_and_a_ramp_centred(fir):
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)
    down, up = Resample(False, fir)(ramp), Resample(True, fir)(ramp)
    inner = slice(2, -2)
    torch.testing.assert_close(down[0, 0, 4, 1:-1], torch.arange(0.5, 16, 2)[1:-1])
    torch.testing.assert_close(up[0, 0, 8, inner].view(-1, 2).mean(1), torch.arange(16.0)[1:-1])
    ones = torch.ones(1, 2, 8, 8)
    for module in (Resample(False, fir), Resample(True, fir)):
        torch.testing.assert_close(module(ones)[..., inner, inner], torch.ones_like(module(ones)[..., inner, inner]))


def test_fourier_features_are_the_definition_and_do_not_lose_digits():
    layer = FourierFeatures(5, 16.0)
    values = torch.tensor([[-6.9, 0.0], [3.3, 7.2]])
    w = layer.frequencies.double().numpy()
    phase = 2 * np.pi * values.double().numpy()[..., None] * w
    with torch.autocast("cpu", torch.bfloat16):
        result = layer(values)
    assert result.dtype == torch.float32
    assert result.shape == (2, 2, 10)
    np.testing.assert_allclose(result, np.concatenate([np.sin(phase), np.cos(phase)], -1), atol=1e-3)
    assert 10 < FourierFeatures(4000, 16.0).frequencies.std() < 22
    assert "frequencies" in layer.state_dict()


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("condition", [0, 2])
def test_shapes_for_any_window(k, condition):
    net = make(slices=k, condition=condition)
    x, noise, scalars = inputs(k, condition=condition)
    y = net(x, noise, scalars)
    assert y.shape == x.shape
    assert y.dtype == torch.float32
    assert y.isfinite().all()
    assert net(x[:, :, :8, :], noise, scalars).shape == (2, k, 8, 16)
    other = make(slices=k, condition=condition, in_channels=k + 1, out_channels=1)
    assert other(torch.cat([x, x[:, :1]], 1), noise, scalars).shape == (2, 1, 16, 16)


def test_starts_at_zero_and_becomes_alive_everywhere():
    net = make(alive=False, condition=1)
    x, noise, scalars = inputs(condition=1)
    assert not net(x, noise, scalars).any()
    net = make(condition=1)
    net(x, noise, scalars).square().sum().backward()
    still = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not still


def test_a_few_steps_from_the_start_reach_every_parameter():
    net = make(alive=False)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    before = {name: p.clone() for name, p in net.named_parameters()}
    x, noise, _ = inputs()
    losses = []
    for _ in range(8):
        loss = (net(x, noise) - x).square().mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < losses[0]
    assert not [name for name, p in net.named_parameters() if torch.equal(p, before[name])]


def test_every_noise_level_and_every_condition_is_heard():
    net = make(slices=3, condition=2)
    x, noise, scalars = inputs(3, condition=2)
    base = net(x, noise, scalars)
    for k in range(3):
        other = noise.clone()
        other[:, k] += 0.3
        assert (net(x, other, scalars) - base).abs().max() > 1e-3
    for c in range(2):
        other = scalars.clone()
        other[:, c] += 0.3
        assert (net(x, noise, other) - base).abs().max() > 1e-3
    swapped = net(x, noise[:, [1, 0, 2]], scalars)
    assert (swapped - base).abs().max() > 1e-3, "the levels must know whose they are"


def test_samples_do_not_see_their_batch_mates():
    net = make()
    x, noise, _ = inputs(batch=3)
    torch.testing.assert_close(net(x, noise)[1:2], net(x[1:2], noise[1:2]), atol=1e-5, rtol=1e-4)


def test_output_is_float32_under_autocast_and_close_to_full_precision():
    net = make()
    x, noise, _ = inputs()
    full = net(x, noise)
    seen = []
    hook = lambda module, args, result: seen.append((args[0].dtype, result.dtype))  # noqa: E731
    for output in net.output:
        output[-1].register_forward_hook(hook)
    with torch.autocast("cpu", torch.bfloat16):
        half = net(x, noise)
    assert half.dtype == torch.float32
    assert seen == [(torch.float32, torch.float32)] * 3
    error = (half - full).abs().max() / full.abs().max()
    assert 0 < error < 0.05


def test_attention_is_softmax_attention():
    torch.manual_seed(0)
    layer = Attention(8).double()
    torch.nn.init.normal_(layer.out.weight)
    x = torch.randn(2, 8, 3, 4, dtype=torch.float64)
    h = layer.norm(x).flatten(2).transpose(1, 2)
    q, k, v = (h @ w.T + b for w, b in zip(layer.qkv.weight.chunk(3), layer.qkv.bias.chunk(3)))
    weights = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(8), dim=-1)
    expected = (x.flatten(2).transpose(1, 2) + layer.out(weights @ v)) / math.sqrt(2)
    torch.testing.assert_close(layer(x), expected.transpose(1, 2).reshape(x.shape))


def test_residual_block_keeps_the_variance_of_its_input():
    torch.manual_seed(0)
    block = ResidualBlock(32, 32, 16, "", True)
    torch.nn.init.xavier_uniform_(block.conv2.weight)
    y = block(torch.randn(4, 32, 16, 16), torch.randn(4, 16))
    assert 0.5 < y.std() < 1.5


@pytest.mark.parametrize("channels, groups", [(4, 1), (8, 2), (16, 4), (64, 16), (128, 32), (512, 32), (144, 24)])
def test_group_norm_has_groups_of_at_least_four(channels, groups):
    assert group_norm(channels).num_groups == groups


def count_parameters(nf, multipliers, blocks, attention, size, k, channels):
    """Parameters of NCSN++ as the paper's appendix describes it, counted layer by layer, with nothing of the code."""
    code = 4 * nf

    def conv(a, b, side=3):
        return side * side * a * b + b

    def res(a, b, resampled=False):
        n = 2 * a + conv(a, b) + code * b + b + 2 * b + conv(b, b)
        return n + (conv(a, b, 1) if a != b or resampled else 0)

    def attn(c):
        return 2 * c + 4 * (c * c + c)

    total = (2 * nf * k) * code + code + code * code + code + conv(channels, nf)
    stack, width = [nf], nf
    for i, m in enumerate(multipliers):
        for _ in range(blocks):
            total += res(width, m * nf) + (attn(m * nf) if size // 2**i in attention else 0)
            width = m * nf
            stack += [width]
        if i + 1 < len(multipliers):
            total += res(width, width, True) + conv(channels, width, 1)
            stack += [width]
    total += 2 * res(width, width) + attn(width)
    for i, m in reversed(list(enumerate(multipliers))):
        for _ in range(blocks + 1):
            total += res(width + stack.pop(), m * nf)
            width = m * nf
        total += attn(width) if size // 2**i in attention else 0
        total += 2 * width + conv(width, channels)
        total += res(width, width, True) if i else 0
    return total


@pytest.mark.parametrize(
    "settings",
    [
        dict(slices=2, **SMALL),
        dict(slices=3, image_size=32, channels=16, multipliers=(1, 2, 4), blocks=2, attention=(16, 8)),
        dict(slices=2, image_size=512, channels=32, multipliers=(1, 2, 4, 8, 16, 16, 16), blocks=1, attention=(16,)),
    ],
)
def test_structure_is_the_papers_by_count(settings):
    with torch.device("meta"):
        net = NCSNpp(NCSNppConfig(**settings))
    s = NCSNppConfig(**settings)
    expected = count_parameters(s.channels, s.multipliers, s.blocks, s.attention, s.image_size, s.slices, s.slices)
    assert sum(p.numel() for p in net.parameters()) == expected


def test_bad_shapes_are_told_in_one_line():
    for settings in (dict(image_size=20, multipliers=(1, 2, 2, 2)), dict(channels=6), dict(slices=0), dict(blocks=0)):
        with pytest.raises(UserError, match="NCSN") as error:
            NCSNppConfig(**settings)
        assert "\n" not in str(error.value)
