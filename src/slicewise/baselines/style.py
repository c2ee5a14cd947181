"""Layers that both StyleGANs are made of: equalised learning rate, mapping network, modulated convolution.

Written from the papers: Karras et al. 2018 (progressive growing), 2019 (StyleGAN) and 2020 (StyleGAN2). Float32.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.2
ACTIVATION_GAIN = math.sqrt(2.0)


def activate(x: Tensor) -> Tensor:
    """Leaky ReLU, times √2 so that unit variance stays about unit variance."""
    return F.leaky_relu(x, SLOPE) * ACTIVATION_GAIN


def normalise(z: Tensor) -> Tensor:
    """Scale each row of (B, D) to a root mean square of one (Karras et al. 2018, section 4.2)."""
    return z * torch.rsqrt(z.square().mean(dim=1, keepdim=True) + 1e-8)


class EqualLinear(nn.Module):
    """Fully connected layer with equalised learning rate (Karras et al. 2018, section 4.1): (B, in) to (B, out).

    Weights are stored as N(0, 1)/rate and multiplied by rate/√in where they are used, so that Adam's step of fixed size
    changes every layer by the same share, and a `rate` below one makes a layer learn that much more slowly.
    """

    def __init__(self, inputs: int, outputs: int, bias: float = 0.0, rate: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))
        self.scale, self.rate = rate / math.sqrt(inputs), rate

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias * self.rate)


class EqualConv(nn.Module):
    """Convolution with equalised learning rate, same size out; (B, C, H, W). With `down`, [1, 3, 3, 1] blur and
    stride 2: half the size."""

    def __init__(self, inputs: int, outputs: int, kernel: int, bias: bool = True, down: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.scale, self.down = 1.0 / math.sqrt(inputs * kernel**2), down

    def forward(self, x: Tensor) -> Tensor:
        pad = self.weight.shape[-1] // 2
        if not self.down:
            return F.conv2d(x, self.weight * self.scale, self.bias, padding=pad)
        # Blurring by four taps shifts by half a pixel, as does the stride: together they stay centred.
        return F.conv2d(blur(x, pad + 1, pad + 1), self.weight * self.scale, self.bias, stride=2)


def blur(x: Tensor, before: int, after: int, gain: float = 1.0) -> Tensor:
    """Filter (B, C, H, W) along both axes with [1, 3, 3, 1]/8·gain after `before` and `after` rows and columns of
    zeros."""
    return separable(F.pad(x, (before, after, before, after)), _binomial(gain, x.dtype, x.device))


@lru_cache(maxsize=8)
def _binomial(gain: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=dtype, device=device) * (gain / 8.0)


def separable(x: Tensor, taps: Tensor) -> Tensor:
    """Filter (B, C, H, W) with `taps` (n,) along both axes, each channel by itself; only where the filter lies wholly
    inside. Depthwise convolutions are what CPU and GPU do fastest where every sample counts."""
    c, n = x.shape[1], len(taps)
    x = F.conv2d(x, taps.view(1, 1, 1, n).expand(c, 1, 1, n), groups=c)
    return F.conv2d(x, taps.view(1, 1, n, 1).expand(c, 1, n, 1), groups=c)


class Mapping(nn.Module):
    """z (B, D), standard normal, to the intermediate latent w (B, D) by `layers` fully connected layers that learn a
    hundred times more slowly than the rest (Karras et al. 2019, appendix C)."""

    def __init__(self, latent: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EqualLinear(latent, latent, rate=0.01) for _ in range(layers))

    def forward(self, z: Tensor) -> Tensor:
        w = normalise(z)
        for layer in self.layers:
            w = activate(layer(w))
        return w


def modulated_conv(x: Tensor, weight: Tensor, style: Tensor, demodulate: bool = True, up: bool = False) -> Tensor:
    """Convolution with weights w'_ijk = s_i w_ijk, demodulated to unit norm for each output channel j (Karras et al.
    2020, equations 1 to 3).

    x (B, I, H, W), weight (J, I, k, k), style (B, I); same size out. Instead of making B sets of weights, the style
    scales the input channels and the demodulation the output channels, which is the same by linearity. With `up`, the
    result has twice the size: transposed convolution of stride 2, then [1, 3, 3, 1].
    """
    pad = weight.shape[-1] // 2
    x = x * style[:, :, None, None]
    if up:
        x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2, padding=pad)
        # 2N - 1 samples, of which three in four of the input's were zeros: gain 2 along each axis.
        x = blur(x, 2, 2, gain=2.0)
    else:
        x = F.conv2d(x, weight, padding=pad)
    if demodulate:
        norm = style.square() @ weight.square().sum(dim=(2, 3)).t()  # Σ_ik w'², (B, J)
        x = x * torch.rsqrt(norm + 1e-8)[:, :, None, None]
    return x


class StyledConv(nn.Module):
    """A modulated convolution whose style is an affine map of w; bias follows, activation is the caller's."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, latent: int, demodulate: bool = True, up: bool = False
    ) -> None:
        super().__init__()
        self.affine = EqualLinear(latent, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.demodulate, self.up = demodulate, up
        # Demodulation takes any scale out; without it the equalised one stands in.
        self.scale = 1.0 if demodulate else 1.0 / math.sqrt(inputs * kernel**2)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """(B, I, H, W) and (B, D) to (B, J, H, W), without bias."""
        return modulated_conv(x, self.weight, self.affine(w) * self.scale, self.demodulate, self.up)
