"""The residual discriminator of StyleGAN2 (Karras et al. 2020, section 4.1), which StyleGAN3 keeps."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from slicewise.baselines.shapes import DiscriminatorConfig
from slicewise.baselines.style import EqualConv, EqualLinear, activate


def channels_at(size: int, base: int, most: int) -> int:
    """Channels at `size` pixels per side."""
    return max(1, min(base // size, most))


class Discriminator(nn.Module):
    """x (B, 1, H, W) to logits (B,): positive means real."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        sizes = [2**k for k in range(int(math.log2(config.size)), 2, -1)]  # config.size … 8
        widths = [channels_at(s, config.channel_base, config.channel_max) for s in [*sizes, 4]]
        self.entry = EqualConv(1, widths[0], 1)
        self.blocks = nn.ModuleList(_Block(a, b) for a, b in pairwise(widths))
        self.last = EqualConv(widths[-1] + 1, widths[-1], 3)
        self.dense = EqualLinear(widths[-1] * 16, widths[-1])
        self.out = EqualLinear(widths[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        x = activate(self.entry(x))
        for block in self.blocks:
            x = block(x)
        x = activate(self.last(with_group_spread(x, self.config.group)))
        found: Tensor = self.out(activate(self.dense(x.flatten(1))))[:, 0]
        return found


class _Block(nn.Module):
    """Two convolutions and a halving beside a linear skip path; their mean keeps the variance (factor 1/√2)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = EqualConv(inputs, inputs, 3)
        self.second = EqualConv(inputs, outputs, 3, down=True)
        self.skip = EqualConv(inputs, outputs, 1, bias=False, down=True)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = (activate(self.second(activate(self.first(x)))) + self.skip(x)) / math.sqrt(2.0)
        return found


def with_group_spread(x: Tensor, group: int) -> Tensor:
    """Append a channel with the standard deviation over groups of neighbouring samples, averaged over channels and
    pixels (Karras et al. 2018, section 3): (B, C, H, W) to (B, C + 1, H, W).

    Groups are as large as `group` where B divides by it, else the largest common divisor.
    """
    b, c, h, w = x.shape
    n = math.gcd(b, group)
    spread = (x.reshape(b // n, n, c, h, w).var(dim=1, unbiased=False) + 1e-8).sqrt().mean(dim=(1, 2, 3))
    return torch.cat([x, spread.repeat_interleave(n)[:, None, None, None].expand(b, 1, h, w)], dim=1)
