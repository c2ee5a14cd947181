"""NCSN++ (Song et al. 2021, "Score-based generative modeling through stochastic differential equations", appendix H),
written from the paper, for any number of slices in the window and one noise level a slice.

The raw network F only: no σ arithmetic beyond the embedding of its logarithm, nothing parallel. Its output is computed
in float32 also under autocast.
"""

import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slicewise.networks.layers import FourierFeatures, Resample, group_norm
from slicewise.networks.shapes import NCSNppConfig

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


class NCSNpp(nn.Module):
    """The raw network F, zero everywhere at the start.

    forward(x (B, C_in, H, W) float32, noise (B, K) float32 = log(σ)/4, condition (B, C) or None) -> (B, C_out, H, W)
    float32.
    """

    def __init__(self, config: NCSNppConfig) -> None:
        super().__init__()
        self.config = config
        c_in, c_out = config.in_channels or config.slices, config.out_channels or config.slices
        widths = [config.channels * m for m in config.multipliers]
        attended = [config.image_size >> level in config.attention for level in range(len(widths))]
        code = 4 * config.channels

        self.fourier = FourierFeatures(config.channels, config.fourier_scale)
        self.embed = nn.Sequential(
            _init(nn.Linear(2 * config.channels * config.slices + config.condition, code)),
            nn.SiLU(),
            _init(nn.Linear(code, code)),
            nn.SiLU(),
        )

        def block(a: int, b: int, resample: str = "") -> ResidualBlock:
            return ResidualBlock(a, b, code, resample, config.fir)

        self.shrink, self.grow = Resample(up=False, fir=config.fir), Resample(up=True, fir=config.fir)
        self.stem = _init(nn.Conv2d(c_in, widths[0], 3, padding=1))
        # Of every level its blocks, and of every level but the first of each half what brings it to its resolution.
        self.down_resample, self.down_image, self.down = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        width, skips = widths[0], [widths[0]]
        for level, w in enumerate(widths):
            if level > 0:
                self.down_resample.append(block(width, width, "down"))
                self.down_image.append(_init(nn.Conv2d(c_in, width, 1)))
                skips.append(width)
            blocks = nn.ModuleList()
            for _ in range(config.blocks):
                blocks.append(_Attended(block(width, w), attended[level]))
                width = w
                skips.append(width)
            self.down.append(blocks)

        self.middle = nn.ModuleList([_Attended(block(width, width), True), _Attended(block(width, width), False)])

        self.up_resample, self.up, self.output = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(len(widths))):
            if level < len(widths) - 1:
                self.up_resample.append(block(width, width, "up"))
            blocks = nn.ModuleList()
            for i in range(config.blocks + 1):
                attend = attended[level] and i == config.blocks
                blocks.append(_Attended(block(width + skips.pop(), widths[level]), attend))
                width = widths[level]
            self.up.append(blocks)
            last = _init(nn.Conv2d(width, c_out, 3, padding=1), zero=True)
            self.output.append(nn.Sequential(group_norm(width), nn.SiLU(), last))
        assert not skips

    def blocks(self) -> list[nn.Module]:
        """The parts that repeat, which is what is worth compiling."""
        return [module for module in self.modules() if isinstance(module, ResidualBlock)]

    def forward(self, x: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        assert noise.shape == (x.shape[0], self.config.slices)
        assert (0 if condition is None else condition.shape[1]) == self.config.condition
        features = self.fourier(4.0 * noise).flatten(1)
        if condition is not None:
            features = torch.cat([features, condition.float()], dim=1)
        code = self.embed(features)

        image = x.contiguous(memory_format=torch.channels_last)
        h = self.stem(image)
        skips = [h]
        for level, blocks in enumerate(self.down):
            if level > 0:
                # Input skip: the image itself, shrunk, enters at every level.
                image = self.shrink(image)
                h = self.down_resample[level - 1](h, code) + self.down_image[level - 1](image)
                skips.append(h)
            for block in _modules(blocks):
                h = block(h, code)
                skips.append(h)
        for block in self.middle:
            h = block(h, code)
        result: Tensor | None = None
        for level, blocks in enumerate(self.up):
            if level > 0:
                h = self.up_resample[level - 1](h, code)
            for block in _modules(blocks):
                h = block(torch.cat([h, skips.pop()], dim=1), code)
            # Output skip: every level adds its share to the image, grown level by level; in float32, as x is.
            with torch.autocast(x.device.type, enabled=False):
                share = self.output[level](h.float())
                result = share if result is None else self.grow(result) + share
        assert result is not None
        return result


class ResidualBlock(nn.Module):
    """BigGAN's residual block: norm, SiLU, (resample), 3x3, plus code; norm, SiLU, 3x3 (zero at the start); added to
    the (resampled, 1x1) input and scaled by 1/√2. `resample` is "", "up" or "down"."""

    def __init__(self, c_in: int, c_out: int, code: int, resample: str, fir: bool) -> None:
        super().__init__()
        self.norm1 = group_norm(c_in)
        self.conv1 = _init(nn.Conv2d(c_in, c_out, 3, padding=1))
        self.code = _init(nn.Linear(code, c_out))
        self.norm2 = group_norm(c_out)
        self.conv2 = _init(nn.Conv2d(c_out, c_out, 3, padding=1), zero=True)
        self.resample = Resample(resample == "up", fir) if resample else nn.Identity()
        self.skip = _init(nn.Conv2d(c_in, c_out, 1)) if resample or c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        h = self.conv1(self.resample(F.silu(self.norm1(x))))
        h = h + self.code(code)[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        found: Tensor = (self.skip(self.resample(x)) + h) * math.sqrt(0.5)
        return found


class Attention(nn.Module):
    """Self-attention over all pixels with one head (DDPM's), added to its input and scaled by 1/√2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        for part in self.qkv.weight.chunk(3):
            nn.init.xavier_uniform_(part)
        nn.init.zeros_(self.qkv.bias)
        self.out = _init(nn.Linear(channels, channels), zero=True)

    def forward(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(b, 1, height * width, c)
        query, key, value = self.qkv(tokens).chunk(3, dim=-1)
        h = self.out(F.scaled_dot_product_attention(query, key, value))
        found: Tensor = (x + h.reshape(b, height, width, c).permute(0, 3, 1, 2)) * math.sqrt(0.5)
        return found


class _Attended(nn.Module):
    """A residual block, with attention behind it where asked for."""

    def __init__(self, block: ResidualBlock, attention: bool) -> None:
        super().__init__()
        self.block = block
        self.attention = Attention(block.conv2.out_channels) if attention else nn.Identity()

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        found: Tensor = self.attention(self.block(x, code))
        return found


def _modules(blocks: nn.Module) -> nn.ModuleList:
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def _init(layer: Layer, zero: bool = False) -> Layer:
    """Uniform with variance 2/(fan in + fan out), bias zero; all zero for the last layer of a residual branch."""
    if zero:
        nn.init.zeros_(layer.weight)
    else:
        nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
