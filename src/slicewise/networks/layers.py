"""Layers of NCSN++: FIR resampling and Gaussian Fourier features."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Resample(nn.Module):
    """Resampling by two along both sides, without parameters; (B, C, H, W) -> (B, C, H/2, W/2) or (B, C, 2H, 2W).

    With `fir`, each axis is filtered with [1, 3, 3, 1] (anti-aliased, StyleGAN2; Song et al. 2021, appendix H), zero
    beyond the border; else a box: mean of 2x2 going down, repetition going up. H and W must be even going down.
    """

    kernel: Tensor

    def __init__(self, up: bool, fir: bool = True) -> None:
        super().__init__()
        self.up, self.fir = up, fir
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8.0
        # Not in the state dict: it is no weight.
        self.register_buffer("kernel", torch.outer(taps, taps)[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        if not self.fir:
            return F.interpolate(x, scale_factor=2.0) if self.up else F.avg_pool2d(x, 2)
        kernel = self.kernel.to(x.dtype).expand(channels, 1, 4, 4)
        if self.up:
            # Zeros between the samples take three quarters of the sum away: gain 4.
            return F.conv_transpose2d(x, 4.0 * kernel, stride=2, padding=1, groups=channels)
        return F.conv2d(x, kernel, stride=2, padding=1, groups=channels)


class FourierFeatures(nn.Module):
    """[sin, cos](2π w v) at `count` fixed random frequencies w ~ N(0, scale²) (Tancik et al. 2020): (...) to
    (..., 2 count), in float32 under autocast as well, since the phases reach thousands of radians.

    The frequencies are part of the state dict.
    """

    frequencies: Tensor

    def __init__(self, count: int, scale: float) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(count) * scale)

    def forward(self, values: Tensor) -> Tensor:
        phase = 2.0 * math.pi * values.float().unsqueeze(-1) * self.frequencies
        return torch.cat([phase.sin(), phase.cos()], dim=-1)


def group_norm(channels: int) -> nn.GroupNorm:
    """At most 32 groups of at least 4 channels, as many as divide the channels."""
    groups = max(g for g in range(1, max(min(channels // 4, 32), 1) + 1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, eps=1e-6)
