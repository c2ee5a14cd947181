"""StyleGAN3's alias-free generator (Karras et al. 2021) for single-channel slices.

Every layer works on a band-limited signal: the nonlinearity, which makes new frequencies, acts at twice the rate
between two low-pass filters, and the canvas reaches ten samples beyond the image so that no border leaks in. "t" is
equivariant to translation (3×3 convolutions), "r" to rotation as well (1×1 convolutions, twice the channels, radial
filters).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slicewise.baselines.filters import (
    along_both,
    as_tensor,
    filter_matrix,
    filter_whole,
    lowpass,
    padding,
    radial_lowpass,
)
from slicewise.baselines.shapes import StyleGAN3Config
from slicewise.baselines.style import ACTIVATION_GAIN, SLOPE, EqualLinear, Mapping, StyledConv

# Lowest cutoff and stop-band edge, cycles per image width, and how far beyond the Nyquist frequency of the image the
# last stop band begins (appendix C).
FIRST_CUTOFF = 2.0
FIRST_STOP = 2.0**2.1
LAST_STOP = 2.0**0.3
CRITICAL_LAYERS = 2
MARGIN = 10
TAPS = 6


@dataclass(frozen=True)
class Band:
    """The signal after a layer: highest frequency kept, half the transition width, sampling rate (all per image
    width), samples per side with margin, channels."""

    cutoff: float
    half_width: float
    rate: int
    size: int
    channels: int


def bands(config: StyleGAN3Config) -> list[Band]:
    """The band of each layer, and of the output as the last (appendix C, figure 4): cutoff and stop band grow by equal
    factors, until in the last layers the cutoff is the image's Nyquist frequency."""
    nyquist = config.size / 2
    widen = 2 if config.variant == "r" else 1
    found = []
    for i in range(config.layers + 1):
        share = min(i / (config.layers - CRITICAL_LAYERS), 1.0)
        cutoff = FIRST_CUTOFF * (nyquist / FIRST_CUTOFF) ** share
        stop = FIRST_STOP * (nyquist * LAST_STOP / FIRST_STOP) ** share
        rate = int(2 ** math.ceil(math.log2(min(2 * stop, config.size))))
        size = config.size if i >= config.layers - 1 else rate + 2 * MARGIN
        channels = min(round(widen * config.channel_base / (2 * cutoff)), widen * config.channel_max)
        width = max(stop, rate / 2) - cutoff
        found.append(Band(cutoff, width, rate, size, 1 if i == config.layers else max(1, channels)))
    return found


class StyleGAN3(nn.Module):
    """z (B, D) to slices x (B, 1, H, W), unbounded, in the unit range of the HU scale."""

    def __init__(self, config: StyleGAN3Config) -> None:
        super().__init__()
        self.config, plan = config, bands(config)
        self.mapping = Mapping(config.latent, config.mapping)
        self.input = FourierInput(plan[0], config.latent)
        kernel = 1 if config.variant == "r" else 3
        self.layers = nn.ModuleList(
            _Layer(
                plan[max(i - 1, 0)], plan[i], config.latent, kernel,
                radial=config.variant == "r" and i < config.layers - CRITICAL_LAYERS,
            )
            for i in range(config.layers)
        )  # fmt: skip
        self.magnitude = Magnitude()
        self.output = StyledConv(plan[-2].channels, 1, 1, config.latent, demodulate=False)

    @property
    def noise_sizes(self) -> list[int]:
        """It takes no noise."""
        return []

    def styles(self, z: Tensor, other: Tensor | None = None, crossover: Tensor | None = None) -> Tensor:
        """w, (B, 1, D), for all layers; StyleGAN3 mixes no styles."""
        found: Tensor = self.mapping(z)[:, None]
        return found

    def synthesise(self, styles: Tensor, noise: list[Tensor], shift: Tensor | None = None) -> Tensor:
        """Slices (B, 1, H, W) from styles (B, 1, D); `shift` (B, 2) moves the image by (x, y) image widths."""
        w = styles[:, 0]
        x = self.input(w, shift)
        for layer in self.layers:
            x = layer(x, w)
        found: Tensor = self.output(self.magnitude(x), w) + self.output.bias[:, None, None]
        return found

    def forward(self, z: Tensor, noise: list[Tensor]) -> Tensor:
        return self.synthesise(self.styles(z), noise)


class FourierInput(nn.Module):
    """Waves of frequencies spread evenly over the disc below the first cutoff, turned and moved as w says, then mixed:
    (B, C, size, size) (section 3.2 and appendix F)."""

    frequencies: Tensor
    phases: Tensor
    grid: Tensor

    def __init__(self, band: Band, latent: int) -> None:
        super().__init__()
        c = band.channels
        angle, radius = 2 * math.pi * torch.rand(c), band.cutoff * torch.rand(c).sqrt()
        self.register_buffer("frequencies", torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1))
        self.register_buffer("phases", torch.rand(c))
        at = (torch.arange(band.size) - (band.size - 1) / 2) / band.rate
        y, x = torch.meshgrid(at, at, indexing="ij")
        self.register_buffer("grid", torch.stack([x, y], dim=-1), persistent=False)
        self.mix = nn.Parameter(torch.randn(c, c))
        # (cos, sin) of the rotation, and the translation: none at first, for any w.
        self.affine = EqualLinear(latent, 4)
        with torch.no_grad():
            self.affine.weight.zero_()
            self.affine.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))

    def forward(self, w: Tensor, shift: Tensor | None = None) -> Tensor:
        t = self.affine(w)
        t = t / t[:, :2].norm(dim=1, keepdim=True)
        cos, sin, move = t[:, 0:1], t[:, 1:2], t[:, 2:] if shift is None else t[:, 2:] + shift
        fx, fy = self.frequencies[:, 0], self.frequencies[:, 1]
        # Turning and moving an image is turning its waves and shifting their phases.
        turned = torch.stack([fx * cos - fy * sin, fx * sin + fy * cos], dim=2)  # (B, C, 2)
        phases = self.phases - (turned * move[:, None]).sum(dim=2)
        waves = torch.einsum("hwk,bck->bchw", self.grid, turned) + phases[:, :, None, None]
        waves = (2 * math.pi * waves).sin() * math.sqrt(2.0)
        return F.conv2d(waves, (self.mix / math.sqrt(len(self.mix)))[:, :, None, None])


class Magnitude(nn.Module):
    """Divide by the root of a moving average of the mean square over all slices seen in training (appendix C): unit
    power on the whole, without the per-slice statistics that would tie distant pixels together."""

    power: Tensor
    DECAY = 0.999

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("power", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.power.lerp_(x.square().mean(), 1 - self.DECAY)
        return x * torch.rsqrt(self.power)


class _Layer(nn.Module):
    """Modulated convolution at the rate of the band before, activation at twice the higher rate, down to this band."""

    up_taps: Tensor
    down_taps: Tensor

    def __init__(self, before: Band, band: Band, latent: int, kernel: int, radial: bool) -> None:
        super().__init__()
        self.magnitude = Magnitude()
        self.conv = StyledConv(before.channels, band.channels, kernel, latent)
        fine = 2 * max(before.rate, band.rate)
        self.up, self.down = fine // before.rate, fine // band.rate
        up_taps = lowpass(TAPS * self.up, before.cutoff, before.half_width, fine)
        design = radial_lowpass if radial else lowpass
        down_taps = design(TAPS * self.down, band.cutoff, band.half_width, fine)
        self.register_buffer("up_taps", as_tensor(up_taps), persistent=False)
        self.register_buffer("down_taps", as_tensor(np.asarray(down_taps)), persistent=False)
        self.pad = padding(before.size, band.size, self.up, self.down, len(up_taps), len(down_taps))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        x = (self.conv(self.magnitude(x), w) + self.conv.bias[:, None, None]) * ACTIVATION_GAIN
        rise = filter_matrix(self.up_taps * self.up, x.shape[2], self.up, *self.pad)
        separable = self.down_taps.ndim == 1
        fall = filter_matrix(self.down_taps, len(rise), down=self.down) if separable else None

        def activated(part: Tensor) -> Tensor:
            fine = F.leaky_relu(along_both(part, rise), SLOPE, inplace=True)
            return filter_whole(fine, self.down_taps, self.down) if fall is None else along_both(fine, fall)

        # The fine maps of a batch outgrow a CPU's caches, and what its allocator keeps.
        return torch.cat([activated(part) for part in x.split(1 if x.device.type == "cpu" else len(x))])
