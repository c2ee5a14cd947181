"""StyleGAN2's generator (Karras et al. 2020) for single-channel slices: skips to the output at every size."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from slicewise.baselines.discriminator import channels_at
from slicewise.baselines.shapes import StyleGAN2Config
from slicewise.baselines.style import Mapping, StyledConv, activate
from slicewise.networks.layers import Resample


class StyleGAN2(nn.Module):
    """z (B, D) and noise to slices x (B, 1, H, W), unbounded, in the unit range of the HU scale."""

    def __init__(self, config: StyleGAN2Config) -> None:
        super().__init__()
        self.config = config
        self.sizes = [2**k for k in range(2, int(math.log2(config.size)) + 1)]
        widths = [channels_at(s, config.channel_base, config.channel_max) for s in self.sizes]
        self.mapping = Mapping(config.latent, config.mapping)
        self.start = nn.Parameter(torch.randn(1, widths[0], 4, 4))
        convs, outputs = [_Layer(widths[0], widths[0], config.latent)], [_output(widths[0], config.latent)]
        for before, width in pairwise(widths):
            convs += [_Layer(before, width, config.latent, up=True), _Layer(width, width, config.latent)]
            outputs.append(_output(width, config.latent))
        self.convs, self.outputs = nn.ModuleList(convs), nn.ModuleList(outputs)
        self.enlarge = Resample(up=True)

    @property
    def style_count(self) -> int:
        """L, styles of an image: one for each convolution, and one for the last output layer."""
        return len(self.convs) + 1

    @property
    def noise_sizes(self) -> list[int]:
        """Pixels per side of the noise that each convolution takes."""
        return [4] + [s for s in self.sizes[1:] for _ in range(2)]

    def styles(self, z: Tensor, other: Tensor | None = None, crossover: Tensor | None = None) -> Tensor:
        """w of every layer, (B, L, D); with `other` (B, D) and `crossover` (B,), layers from that number on take the
        other's (style mixing, Karras et al. 2019)."""
        w = self.mapping(z)[:, None].expand(-1, self.style_count, -1)
        if other is None or crossover is None:
            found: Tensor = w
            return found
        later = torch.arange(self.style_count, device=z.device)[None] >= crossover[:, None]
        return torch.where(later[:, :, None], self.mapping(other)[:, None], w)

    def synthesise(self, styles: Tensor, noise: list[Tensor]) -> Tensor:
        """Slices (B, 1, H, W) from styles (B, L, D) and standard normal noise (B, 1, r, r) of each convolution."""
        x = self.convs[0](self.start.expand(len(styles), -1, -1, -1), styles[:, 0], noise[0])
        # The output layer of a size shares its style with the first convolution of the next.
        image = _add_bias(self.outputs[0], x, styles[:, 1])
        for level, output in enumerate(self.outputs[1:], start=1):
            i = 2 * level - 1
            x = self.convs[i](x, styles[:, i], noise[i])
            x = self.convs[i + 1](x, styles[:, i + 1], noise[i + 1])
            image = self.enlarge(image) + _add_bias(output, x, styles[:, i + 2])
        return image

    def forward(self, z: Tensor, noise: list[Tensor]) -> Tensor:
        return self.synthesise(self.styles(z), noise)


class _Layer(nn.Module):
    """Modulated 3×3 convolution, noise of learned strength, bias, activation."""

    def __init__(self, inputs: int, outputs: int, latent: int, up: bool = False) -> None:
        super().__init__()
        self.conv = StyledConv(inputs, outputs, 3, latent, up=up)
        self.strength = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, w: Tensor, noise: Tensor) -> Tensor:
        return activate(self.conv(x, w) + self.strength * noise + self.conv.bias[:, None, None])


def _output(width: int, latent: int) -> StyledConv:
    return StyledConv(width, 1, 1, latent, demodulate=False)


def _add_bias(output: nn.Module, x: Tensor, w: Tensor) -> Tensor:
    return output(x, w) + output.bias[:, None, None]  # type: ignore[index, no-any-return]
