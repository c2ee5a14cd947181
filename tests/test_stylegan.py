"""StyleGAN2 and StyleGAN3 against closed forms, float64 and SciPy: layers, filters, losses, equivariance."""

import math

import numpy as np
import pytest
import torch
from scipy import signal, special

from slicewise.baselines.discriminator import Discriminator, with_group_spread
from slicewise.baselines.filters import (
    along_both,
    as_tensor,
    filter_matrix,
    filter_whole,
    lowpass,
    padding,
    radial_lowpass,
)
from slicewise.baselines.gan_loss import (
    discriminator_loss,
    generator_loss,
    gradient_norm2,
    path_lengths,
    r1_weight,
)
from slicewise.baselines.shapes import DiscriminatorConfig, StyleGAN2Config, StyleGAN3Config
from slicewise.baselines.style import ACTIVATION_GAIN, EqualConv, EqualLinear, activate, blur, modulated_conv, normalise
from slicewise.baselines.stylegan2 import StyleGAN2
from slicewise.baselines.stylegan3 import Magnitude, StyleGAN3, bands

FIR = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64.0


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def _zeros_between(x: np.ndarray) -> np.ndarray:
    spread = np.zeros((2 * x.shape[0], 2 * x.shape[1]))
    spread[::2, ::2] = x
    return spread


# Layers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1.0, 0.01])
def test_equalised_layers_keep_variance_and_change_by_one_share_in_a_step_of_adam(rate):
    shares = []
    for width in (16, 256):
        layer = EqualLinear(width, 256, rate=rate)
        x = torch.randn(512, width)
        assert layer(x).std().item() == pytest.approx(1.0, rel=0.05), "unit variance in, unit variance out"
        before = (layer.weight * layer.scale).detach().clone()
        adam = torch.optim.Adam(layer.parameters(), lr=1e-3, betas=(0.0, 0.99))
        layer(x).square().sum().backward()
        adam.step()
        # Adam's first step moves each stored weight by lr; the effective one by lr times the scale.
        change = ((layer.weight * layer.scale).detach() - before).abs().mean()
        shares.append((change / before.std()).item())
    assert shares[0] == pytest.approx(1e-3 * rate, rel=0.1)
    assert shares[1] == pytest.approx(1e-3 * rate, rel=0.1)


def test_activation_keeps_the_mean_square_of_a_normal():
    x = torch.randn(400_000, dtype=torch.float64)
    expected = ACTIVATION_GAIN**2 * (1 + 0.2**2) / 2  # E over both halves
    assert activate(x).square().mean().item() == pytest.approx(expected, rel=0.01)
    assert torch.allclose(normalise(torch.randn(5, 32) * 7).square().mean(dim=1), torch.ones(5), atol=1e-5)


@pytest.mark.parametrize("kernel", [1, 3])
def test_downsampling_convolution_is_blur_then_convolution_then_every_second_sample(kernel):
    conv = EqualConv(2, 3, kernel, bias=False, down=True).double()
    x = torch.randn(1, 2, 8, 8, dtype=torch.float64)
    found = conv(x)[0].detach().numpy()
    weight = (conv.weight * conv.scale).detach().numpy()
    for j in range(3):
        whole = sum(
            signal.correlate2d(signal.convolve2d(x[0, i].numpy(), FIR), weight[j, i]) for i in range(2)
        )  # full, as far as both reach
        first = 2 + kernel // 2  # where the first coarse pixel lies: between fine pixels 0 and 1
        centre = slice(first, first + 16, 2)
        inner = whole[centre, centre][1:3, 1:3]
        assert np.allclose(found[j][1:3, 1:3], inner), "away from the border"
    assert found.shape == (3, 4, 4)


@pytest.mark.parametrize("kernel, up", [(1, False), (3, False), (3, True)])
def test_modulated_convolution_is_one_set_of_weights_for_each_sample(kernel, up):
    x = torch.randn(3, 4, 6, 6, dtype=torch.float64)
    weight, style = torch.randn(5, 4, kernel, kernel, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    found = modulated_conv(x, weight, style, up=up).numpy()
    for b in range(3):
        own = weight.numpy() * style[b].numpy()[None, :, None, None]  # equation 1
        own = own / np.sqrt((own**2).sum(axis=(1, 2, 3), keepdims=True) + 1e-8)  # equation 3
        for j in range(5):
            if up:
                # The kernel of a transposed convolution is turned round against a correlation's.
                planes = [signal.convolve2d(_zeros_between(x[b, i].numpy()), own[j, i], "same") for i in range(4)]
                expected = signal.convolve2d(sum(planes), 4 * FIR)[1:-2, 1:-2]
                assert np.allclose(found[b, j][2:-2, 2:-2], expected[2:-2, 2:-2])
            else:
                planes = [signal.correlate2d(x[b, i].numpy(), own[j, i], "same") for i in range(4)]
                assert np.allclose(found[b, j], sum(planes))


def test_demodulation_gives_unit_variance_whatever_the_style():
    x, weight = torch.randn(4, 64, 16, 16), torch.randn(32, 64, 3, 3)
    style = torch.tensor([0.1, 1.0, 10.0, 100.0])[:, None] * (1 + torch.rand(4, 64))
    inner = modulated_conv(x, weight, style)[:, :, 2:-2, 2:-2]
    # Equation 3 assumes independent inputs of unit variance, which these are.
    assert torch.allclose(inner.std(dim=(1, 2, 3)), torch.ones(4), atol=0.1)


def test_blur_is_the_binomial_filter_and_up_then_down_keeps_a_constant():
    x = torch.randn(1, 1, 7, 7, dtype=torch.float64)
    found = blur(x, 1, 2)[0, 0].numpy()
    expected = signal.convolve2d(x[0, 0].numpy(), FIR)[2:-1, 2:-1]
    assert np.allclose(found, expected)
    flat = modulated_conv(torch.ones(1, 1, 8, 8), torch.tensor([[[[0.0, 0, 0], [0, 1, 0], [0, 0, 0]]]]),
                          torch.ones(1, 1), demodulate=False, up=True)  # fmt: skip
    assert torch.allclose(flat[:, :, 2:-2, 2:-2], torch.ones(1, 1, 12, 12))


def test_group_spread_is_the_mean_standard_deviation_of_the_group():
    x = torch.randn(6, 3, 4, 4, dtype=torch.float64)
    found = with_group_spread(x, 2)
    assert found.shape == (6, 4, 4, 4)
    assert torch.equal(found[:, :3], x)
    for first in (0, 2, 4):
        expected = np.sqrt(x[first : first + 2].numpy().var(axis=0) + 1e-8).mean()
        assert np.allclose(found[first : first + 2, 3].numpy(), expected)
    assert with_group_spread(x, 4).shape == (6, 4, 4, 4)  # groups of the common divisor


# Losses ------------------------------------------------------------------------------------------------------------


def test_losses_are_the_logistic_ones():
    real, made = torch.randn(50, dtype=torch.float64), torch.randn(50, dtype=torch.float64)
    expected = -np.log(special.expit(real.numpy())).mean() - np.log(1 - special.expit(made.numpy())).mean()
    assert discriminator_loss(real, made).item() == pytest.approx(expected)
    assert generator_loss(made).item() == pytest.approx(-np.log(special.expit(made.numpy())).mean())


def test_r1_of_a_quadratic_is_known_and_its_gradient_too():
    # D(x) = a ‖x‖² has ∇D = 2 a x, so ‖∇D‖² = 4 a² ‖x‖², and its derivative in a is 8 a ‖x‖².
    a = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    x = torch.randn(3, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    norms = gradient_norm2(a * x.square().sum(dim=(1, 2, 3)), x)
    squares = x.detach().square().sum(dim=(1, 2, 3))
    assert torch.allclose(norms, 4 * 0.7**2 * squares)
    (slope,) = torch.autograd.grad(norms.mean(), a)
    assert slope.item() == pytest.approx((8 * 0.7 * squares).mean().item())


def test_r1_of_the_discriminator_matches_finite_differences():
    d = Discriminator(DiscriminatorConfig(size=8, channel_base=64, channel_max=8)).double()
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    norms = gradient_norm2(d(x), x)
    grid = torch.eye(128, dtype=torch.float64).reshape(128, 2, 1, 8, 8) * 1e-6
    with torch.no_grad():
        slopes = torch.stack([(d(x + e).sum() - d(x - e).sum()) / 2e-6 for e in grid]).reshape(2, 64)
    assert torch.allclose(norms, slopes.square().sum(dim=1), rtol=1e-5)
    penalties = torch.autograd.grad(norms.mean(), list(d.parameters()), allow_unused=True)
    assert any(p is not None and p.abs().sum() > 0 for p in penalties), "it trains the discriminator"


def test_path_length_of_a_linear_generator_is_that_of_its_matrix():
    # g(w) = Σ_l M_l w_l: J_wᵀ y = M_lᵀ y for each layer.
    matrices = torch.randn(3, 16, 5, dtype=torch.float64)
    styles = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    images = torch.einsum("lpd,bld->bp", matrices, styles).reshape(2, 1, 4, 4)
    y = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    found = path_lengths(images, styles, y).detach().numpy()
    for b in range(2):
        per_layer = [(m.T @ (y[b].numpy().ravel() / 4)) ** 2 for m in matrices.numpy()]
        assert found[b] == pytest.approx(np.sqrt(np.mean([p.sum() for p in per_layer])))


@pytest.mark.parametrize("size", [64, 256, 1024])
def test_path_weight_two_is_the_papers_formula(size):
    layers = 2 * math.log2(size) - 2
    paper = math.log(2) / (size**2 * (math.log(size) - math.log(2)))
    # Ours: norm averaged over layers and y divided by the square root of the pixels.
    assert 2.0 / (layers * size**2) == pytest.approx(paper)


def test_r1_weight_of_the_papers_ffhq_256():
    assert r1_weight(256, 64) == pytest.approx(0.2048)
    assert r1_weight(1024, 32) == pytest.approx(6.5536)


# StyleGAN2 ---------------------------------------------------------------------------------------------------------

TINY2 = StyleGAN2Config(size=16, latent=16, mapping=2, channel_base=128, channel_max=16)


def test_stylegan2_mixes_styles_at_the_crossover():
    g = StyleGAN2(TINY2)
    assert g.style_count == 2 * 4 - 2
    assert g.noise_sizes == [4, 8, 8, 16, 16]
    a, b = torch.randn(2, 16), torch.randn(2, 16)
    mixed = g.styles(a, b, torch.tensor([2, 6]))
    alone, other = g.styles(a), g.styles(b)
    assert torch.equal(mixed[0, :2], alone[0, :2])
    assert torch.equal(mixed[0, 2:], other[0, 2:])
    assert torch.equal(mixed[1], alone[1])


def test_stylegan2_noise_moves_only_what_its_strength_lets_it():
    g = StyleGAN2(TINY2)
    z = torch.randn(2, 16)
    noises = [[torch.randn(2, 1, r, r) for r in g.noise_sizes] for _ in range(2)]
    assert torch.equal(g(z, noises[0]), g(z, noises[1])), "strength starts at zero"
    with torch.no_grad():
        g.convs[-1].strength.fill_(0.5)
    assert not torch.equal(g(z, noises[0]), g(z, noises[1]))
    assert g(z, noises[0]).shape == (2, 1, 16, 16)


def test_a_slice_does_not_depend_on_its_batch():
    for g in (StyleGAN2(TINY2), StyleGAN3(StyleGAN3Config(16, "t", 16, 2, 4, 128, 16)).eval()):
        z = torch.randn(3, 16)
        noise = [torch.randn(3, 1, r, r) for r in g.noise_sizes]
        together = g(z, noise)
        alone = g(z[1:2], [n[1:2] for n in noise])
        assert torch.allclose(together[1:2], alone, atol=1e-5)


# StyleGAN3: filters ------------------------------------------------------------------------------------------------


def _response(taps: np.ndarray, frequency: np.ndarray, rate: float) -> np.ndarray:
    """|H(f)| from the definition, in float64."""
    at = np.arange(len(taps)) - (len(taps) - 1) / 2
    return np.abs((taps[None] * np.exp(-2j * np.pi * frequency[:, None] * at / rate)).sum(axis=1))


@pytest.mark.parametrize("taps, cutoff, half_width, rate", [(12, 8.0, 6.0, 64), (24, 20.0, 12.0, 256), (12, 2, 14, 64)])
def test_lowpass_is_the_kaiser_windowed_sinc(taps, cutoff, half_width, rate):
    found = lowpass(taps, cutoff, half_width, rate)
    # Kaiser (1974): attenuation of n taps over a transition Δf of the Nyquist frequency, then β of the window.
    attenuation = 2.285 * (taps - 1) * np.pi * 2 * half_width / (rate / 2) + 7.95
    assert attenuation > 21
    beta = 0.1102 * (attenuation - 8.7) if attenuation > 50 else (
        0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    )  # fmt: skip
    n = np.arange(taps) - (taps - 1) / 2
    window = np.i0(beta * np.sqrt(1 - (2 * n / (taps - 1)) ** 2)) / np.i0(beta)
    sinc = 2 * cutoff / rate * np.sinc(2 * cutoff / rate * n) * window
    assert np.allclose(found, sinc / sinc.sum(), atol=1e-12)
    assert found.sum() == pytest.approx(1.0)
    stop = np.linspace(cutoff + half_width, rate / 2, 200)
    ripple = 10 ** (-attenuation / 20)
    assert _response(found, stop, rate).max() < 3 * ripple + 1e-3, "the stop band is as deep as the taps allow"
    if cutoff > half_width:
        passed = _response(found, np.linspace(0, cutoff - half_width, 50), rate)
        assert np.abs(passed - 1).max() < 3 * ripple + 1e-3


@pytest.mark.parametrize("variant", ["t", "r"])
def test_filters_of_every_layer_stop_what_would_alias(variant):
    """At its output rate s, content of a layer above s - cutoff folds back below its cutoff: it must be stopped."""
    config = StyleGAN3Config(size=64, variant=variant)
    plan = bands(config)
    for before, band in zip([plan[0], *plan[: config.layers - 1]], plan[: config.layers]):
        fine = 2 * max(before.rate, band.rate)
        taps = 6 * (fine // band.rate)
        frequency = np.linspace(band.rate - band.cutoff, fine / 2, 200)
        response = _response(lowpass(taps, band.cutoff, band.half_width, fine), frequency, fine)
        critical = band.cutoff == config.size / 2
        # The last two layers are sampled critically: there the paper gives up alias-freedom for sharp detail.
        assert response.max() < (0.6 if critical else 0.06)


def test_radial_lowpass_is_the_disc_in_frequency_alike_in_every_direction():
    taps, cutoff, half_width, rate = 24, 10.0, 8.0, 128.0
    kernel = radial_lowpass(taps, cutoff, half_width, rate)
    assert kernel.sum() == pytest.approx(1.0)
    assert np.allclose(kernel, kernel.T)
    assert np.allclose(kernel, kernel[::-1])
    at = (np.arange(taps) - (taps - 1) / 2) / rate

    def response(f: float, angle: float) -> float:
        wave = np.exp(-2j * np.pi * f * (np.cos(angle) * at[None, :] + np.sin(angle) * at[:, None]))
        return float(np.abs((kernel * wave).sum()))

    angles = np.linspace(0, np.pi / 2, 7)
    for f in (2.0, 10.0, 20.0, 40.0):
        around = [response(f, a) for a in angles]
        assert np.ptp(around) < 0.03, "no direction is preferred"
    separable = np.outer(*[lowpass(taps, cutoff, half_width, rate)] * 2)
    corner = 10.0 * np.sqrt(2)  # a separable filter passes its corners like its cutoff
    wave = np.exp(-2j * np.pi * 10.0 * (at[None, :] + at[:, None]))
    assert response(corner, np.pi / 4) < 0.75 * np.abs((separable * wave).sum())
    assert response(0.5, 0.3) == pytest.approx(1.0, abs=0.02)
    assert response(22.0, 0.3) < 0.05
    # The unwindowed closed form: transform of a disc.
    r = np.hypot(at[:, None], at[None, :])
    jinc = cutoff * special.j1(2 * np.pi * cutoff * r) / r
    window = kernel / jinc
    assert np.allclose(window / window.max(), np.outer(*[window[taps // 2] / window[taps // 2].max()] * 2), atol=1e-6)


@pytest.mark.parametrize(
    "up, down, size_in, size_out",
    [(2, 2, 36, 36), (4, 2, 36, 52), (2, 4, 52, 36), (2, 2, 52, 32)],
)  # fmt: skip
def test_resampling_keeps_a_wave_in_its_place(up, down, size_in, size_out):
    """Waves come out in their place at the new rate, with the gain that both filters have at their frequency."""
    rate_in, rate_out = 32.0, 32.0 * up / down
    fine = rate_in * up
    taps_up, taps_down = lowpass(6 * up, 8.0, 7.0, fine), lowpass(6 * down, min(8.0, rate_out / 4), rate_out / 5, fine)

    def wave(size: int, rate: float, gains: tuple[float, float]) -> np.ndarray:
        at = (np.arange(size) - (size - 1) / 2) / rate
        return gains[0] * np.cos(2 * np.pi * 1.3 * at[:, None] + 0.4) + gains[1] * np.sin(2 * np.pi * 0.9 * at[None, :])

    x = torch.from_numpy(wave(size_in, rate_in, (1.0, 1.0)))[None, None]
    both = np.array([1.3, 0.9])
    gains = tuple(_response(taps_up, both, fine) * _response(taps_down, both, fine))
    pad = padding(size_in, size_out, up, down, len(taps_up), len(taps_down))
    upsampled = along_both(x, filter_matrix(torch.from_numpy(taps_up) * up, size_in, up, *pad))
    falling = filter_matrix(torch.from_numpy(taps_down), upsampled.shape[2], down=down)
    y = along_both(upsampled, falling)[0, 0].numpy()
    assert y.shape == (size_out, size_out)
    assert np.abs(y - wave(size_out, rate_out, gains))[10:-10, 10:-10].max() < 0.02
    radial = torch.from_numpy(np.outer(taps_down, taps_down))
    whole = filter_whole(upsampled, radial, down)[0, 0].numpy()
    assert np.allclose(whole, y)
    assert as_tensor(taps_up).dtype == torch.float32


def test_layer_plan_of_the_paper_at_1024():
    """Canvas sizes and channels of config T's published networks at 1024 pixels."""
    plan = bands(StyleGAN3Config(size=1024, channel_base=32768, channel_max=512))
    sizes = [36, 36, 52, 52, 84, 148, 148, 276, 276, 532, 1044, 1044, 1044, 1024, 1024]
    assert [b.size for b in plan] == sizes
    assert [b.channels for b in plan] == [512] * 7 + [323, 203, 128, 81, 51, 32, 32, 1]
    assert plan[0].cutoff == 2.0
    assert plan[12].cutoff == plan[14].cutoff == 512.0
    steps = np.diff(np.log([b.cutoff for b in plan[:13]]))
    assert np.allclose(steps, steps[0]), "cutoffs grow by equal factors"
    assert all(b.cutoff + b.half_width >= b.rate / 2 for b in plan)
    turning = bands(StyleGAN3Config(size=1024, variant="r", channel_base=32768, channel_max=512))
    assert turning[0].channels == 1024


# StyleGAN3: the network --------------------------------------------------------------------------------------------


def test_magnitude_tracks_the_mean_square_in_training_only():
    m = Magnitude()
    x = 3.0 * torch.randn(4, 8, 16, 16)
    for _ in range(6000):
        m(x[:, :1, :2, :2])
    power = x[:, :1, :2, :2].square().mean()
    expected = power + (1 - power) * 0.999**6000
    assert m.power.item() == pytest.approx(expected.item(), rel=1e-3)
    m.eval()
    held = m.power.clone()
    assert torch.allclose(m(x), x / held.sqrt())
    assert torch.equal(m.power, held)


def _shift_error(g: StyleGAN3, pixels: int) -> float:
    """Peak signal to noise in dB between the moved image and the image of the moved input (EQ-T, appendix E.3). One
    pixel of the image is half a sample of the first layers."""
    z = torch.randn(2, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        styles = g.styles(z)
        plain = g.synthesise(styles, [])
        moved = g.synthesise(styles, [], shift=torch.tensor([[pixels / g.config.size, 0.0]]))
    error = (moved[..., pixels + 4 : -4] - plain[..., 4 : -pixels - 4]).square().mean()
    span = plain.amax() - plain.amin()
    return float(10 * torch.log10(span**2 / error))


def test_stylegan3_moves_the_image_with_its_input_and_aliasing_filters_do_not():
    g = StyleGAN3(StyleGAN3Config(32, "t", 16, 2, 6, 256, 16)).eval()
    ours = _shift_error(g, 1)
    for layer in g.layers:  # bare sample repetition and picking instead of low-pass filters
        layer.up_taps.zero_()
        layer.up_taps[len(layer.up_taps) // 2 - layer.up // 2 :][: layer.up] = 1.0 / layer.up
        layer.down_taps.zero_()
        layer.down_taps[len(layer.down_taps) // 2] = 1.0
    aliased = _shift_error(g, 1)
    assert ours > 40, (ours, aliased)
    assert ours > aliased + 10, (ours, aliased)


def test_stylegan3_r_turns_the_image_with_its_input():
    """A quarter turn of the input's waves turns the image: exact for radial filters and 1×1 convolutions."""
    g = StyleGAN3(StyleGAN3Config(32, "r", 16, 2, 6, 256, 16)).eval()
    z = torch.randn(2, 16)
    with torch.no_grad():
        styles = g.styles(z)
        plain = g.synthesise(styles, [])
        g.input.affine.bias.copy_(torch.tensor([0.0, 1.0, 0.0, 0.0]))
        turned = g.synthesise(styles, [])
    span = plain.amax() - plain.amin()
    best = min((torch.rot90(plain, k, (2, 3)) - turned).abs().max() / span for k in (1, 3))
    assert best < 1e-4
    assert (plain - turned).abs().max() / span > 0.05
