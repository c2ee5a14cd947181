"""A lean U-Net denoiser core for small machines: 2x2 pixels folded into channels, one norm that runs along memory.

It shares NCSN++'s interface and purpose but spends its arithmetic at the resolutions where a convolution reaches the
machine's peak: a quarter of the pixels at full resolution, few channels there, layer norm over channels (contiguous in
channels_last, where group norm is not), plain average-pool and nearest-neighbour resampling.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from slicewise.networks.local import Local
from slicewise.networks.shapes import UNetConfig


def fourier_features(values: torch.Tensor, count: int, lowest: float, highest: float) -> torch.Tensor:
    """sin and cos of `values` (..., ) at `count` geometrically spaced frequencies, (..., 2 count) float32."""
    frequencies = torch.exp(torch.linspace(math.log(lowest), math.log(highest), count, device=values.device))
    phase = values.float().unsqueeze(-1) * frequencies
    return torch.cat([phase.sin(), phase.cos()], dim=-1)


def channel_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Layer norm over the channels of each pixel or voxel, (B, C, ...) with channels last in memory, times a learned
    gain (C,)."""
    return F.layer_norm(x.movedim(1, -1), (x.shape[1],), weight, None, 1e-6).movedim(-1, 1)


class Block(nn.Module):
    """Residual block: norm, SiLU, 3x3; norm modulated by the embedding, SiLU, 3x3; skip scaled by 1/sqrt(2). With
    `conv` nn.Conv3d it is 3x3x3, and every slice has an embedding of its own."""

    def __init__(
        self, c_in: int, c_out: int, embedding: int, attention: bool, conv: type[nn.Conv2d | nn.Conv3d] = nn.Conv2d
    ) -> None:
        super().__init__()
        self.gain1 = nn.Parameter(torch.ones(c_in))
        self.conv1 = conv(c_in, c_out, 3, padding=1)
        self.modulate = nn.Linear(embedding, 2 * c_out)
        self.gain2 = nn.Parameter(torch.ones(c_out))
        self.conv2 = conv(c_out, c_out, 3, padding=1)
        self.skip = conv(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        self.attention = Attention(c_out) if attention else None
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """x (B, C, H, W) with embedding (B, E), or x (B, C, Z, H, W) with embedding (B, Z, E)."""
        h = self.conv1(F.silu(channel_norm(x, self.gain1)))
        scale, shift = self.modulate(embedding).movedim(-1, 1)[..., None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, channel_norm(h, self.gain2), 1 + scale)
        h = self.conv2(F.silu(h))
        x = (self.skip(x) + h) * math.sqrt(0.5)
        return x if self.attention is None else self.attention(x)


class Attention(nn.Module):
    """Multi-head self-attention over all pixels or voxels with 32 channels a head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(1, channels // 32)
        self.gain = nn.Parameter(torch.ones(channels))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, c = x.shape[:2]
        tokens = F.layer_norm(x.movedim(1, -1).reshape(b, -1, c), (c,), self.gain, None, 1e-6)
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.heads, c // self.heads)).permute(2, 0, 3, 1, 4)
        if x.device.type == "cpu":  # over a few hundred pixels four times faster there than the fused kernel
            attended = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1) @ v
        else:
            attended = F.scaled_dot_product_attention(q, k, v)
        attended = attended.transpose(1, 2).reshape(b, -1, c)
        found: torch.Tensor = x + self.out(attended).unflatten(1, x.shape[2:]).movedim(-1, 1)
        return found


class Levels(NamedTuple):
    """The blocks of a U-Net: a list a level on the way down, a list a level on the way up, the one between them."""

    down: nn.ModuleList
    up: nn.ModuleList
    middle: Block


def u_levels(
    channels: tuple[int, ...],
    counts: tuple[int, ...],
    attention: tuple[bool, ...],
    embedding: int,
    conv: type[nn.Conv2d | nn.Conv3d] = nn.Conv2d,
) -> Levels:
    """Blocks of these widths, numbers and attention a level, from `channels[0]` channels to as many; each block on the
    way up also takes what one on the way down gave."""
    down, up = nn.ModuleList(), nn.ModuleList()
    width, skips = channels[0], []
    for c_level, count, attends in zip(channels, counts, attention):
        blocks = nn.ModuleList()
        for _ in range(count):
            blocks.append(Block(width, c_level, embedding, attends, conv))
            width = c_level
            skips.append(width)
        down.append(blocks)
    middle = Block(width, width, embedding, attention[-1], conv)
    for c_level, count, attends in reversed(list(zip(channels, counts, attention))):
        blocks = nn.ModuleList()
        for _ in range(count):
            blocks.append(Block(width + skips.pop(), c_level, embedding, attends, conv))
            width = c_level
        up.append(blocks)
    return Levels(down, up, middle)


def through(levels: Levels, h: torch.Tensor, embeddings: Sequence[torch.Tensor]) -> torch.Tensor:
    """h (B, C, ...) down and up again, halved and doubled along every axis from level to level; `embeddings` are those
    of each level."""
    pool = F.avg_pool2d if h.dim() == 4 else F.avg_pool3d
    skips = []
    for level, blocks in enumerate(levels.down):
        if level > 0:
            h = pool(h, 2)
        for block in blocks:  # type: ignore[attr-defined]
            h = block(h, embeddings[level])
            skips.append(h)
    h = levels.middle(h, embeddings[-1])
    for level, blocks in enumerate(levels.up):
        if level > 0:
            h = F.interpolate(h, scale_factor=2, mode="nearest")
        for block in blocks:  # type: ignore[attr-defined]
            h = block(torch.cat([h, skips.pop()], dim=1), embeddings[-1 - level])
    return h


class UNet(nn.Module):
    """The raw network: no sigma arithmetic inside, output layer in float32.

    forward(x (B, K, H, W) float32, noise (B, K) float32 = log(sigma)/4, condition (B, C) or None) -> F (B, A, H, W)
    float32, or `Local` where it is that, of the first A slices: all but the last `UNetConfig.context`. H and W must
    divide by `UNetConfig.multiple`. Where x is cut from larger slices, `frame` (B, 4) says where: top, left, bottom and
    right, of slices that span -1 … 1.

    The buffers say where in x the brain lies; training sets them (`brain`). `centre` holds its value in units of
    sigma_data (that of 30 HU), and `zoom` how much less of x than on the "half" scale of the whole range a HU of it
    takes: all that is made for the brain, in and out, is by so much finer. About 1 on that scale, 5 on the linear whole
    range, 0.1 on the window.
    """

    FEATURES = 16
    # In units of sigma_data / zoom: what a HU of brain is worth, what 1 is worth in the fine mean (18 HU), and how near
    # to the centre the coarse mean hands over to it (half at 35 HU).
    HU, FINE, NEAR = 1 / 360, 0.05, 0.15
    # How many e-folds below sigma_data a voxel's spread may lie, at zoom 1: to 0.4 % of it, 1.5 HU in the brain.
    DEPTH = 5.5
    centre: torch.Tensor
    zoom: torch.Tensor

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        c, e = config.channels, config.embedding
        pixels = config.fold**2
        self.embed = nn.Sequential(
            nn.Linear(2 * self.FEATURES * (config.slices + config.condition), e), nn.SiLU(), nn.Linear(e, e), nn.SiLU()
        )
        self.register_buffer("centre", torch.zeros(()))
        self.register_buffer("zoom", torch.ones(()))
        self.register_load_state_dict_pre_hook(_at_zoom_1)  # type: ignore[no-untyped-call]
        self.outputs = (config.slices - config.context) * (4 if config.local else 1)
        shown = config.slices * (1 + len(config.detail) + len(config.window))
        self.stem = nn.Conv2d(shown * pixels + 3 * config.coordinates, c[0], 3, padding=1)
        self.mix = nn.Linear(e, self.outputs * shown) if config.copy else None
        if self.mix is not None:
            nn.init.zeros_(self.mix.weight)
            nn.init.zeros_(self.mix.bias)
        self.down, self.up, self.middle = u_levels(c, config.blocks, config.attention, e)
        self.gain = nn.Parameter(torch.ones(c[0]))
        self.head = nn.Conv2d(c[0], self.outputs * pixels, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def blocks(self) -> list[nn.Module]:
        """The parts that repeat, which is what is worth compiling."""
        return [module for module in self.modules() if isinstance(module, Block)]

    def brain(self, value: float, slope: float) -> None:
        """Set `centre` and `zoom` by the brain's value and what a HU of it is worth, both in units of sigma_data."""
        self.centre.fill_(value)
        self.zoom.fill_(self.HU / slope)

    def forward(
        self,
        x: torch.Tensor,
        noise: torch.Tensor,
        condition: torch.Tensor | None = None,
        frame: torch.Tensor | None = None,
    ) -> torch.Tensor | Local:
        assert x.shape[2] % self.config.multiple == 0
        assert x.shape[3] % self.config.multiple == 0
        # log(sigma)/4 spans about [-1.8, 1.8]; conditions span about [0, 2]: the same frequencies serve both.
        scalars = noise if condition is None else torch.cat([noise, condition], dim=1)
        features = fourier_features(scalars, self.FEATURES, 0.5, 64.0).flatten(1)
        embedding = self.embed(features)
        windowed = [
            redescend(gain * self.zoom * (_mean(x, side) - self.centre))
            for gain, side in zip(self.config.window, self.config.window_mean)
        ]
        x = torch.cat([x, *_details(self.zoom * x, self.config.detail), *windowed], dim=1)
        h = F.pixel_unshuffle(x, self.config.fold).contiguous(memory_format=torch.channels_last)
        if self.config.coordinates:
            h = torch.cat([h, _coordinates(h, frame)], dim=1)
        h = self.stem(h)
        h = through(Levels(self.down, self.up, self.middle), h, [embedding] * len(self.down))
        h = F.silu(channel_norm(h, self.gain))
        with torch.autocast(x.device.type, enabled=False):
            out = F.pixel_shuffle(self.head(h.float()), self.config.fold)
            if self.mix is not None:
                weights = self.mix(embedding.float()).unflatten(1, (self.outputs, x.shape[1]))
                out = torch.baddbmm(out.flatten(2), weights, x.float().flatten(2)).view_as(out)
            if not self.config.local:
                plain: torch.Tensor = out
                return plain
            f, mean, depth, fine = out.chunk(4, dim=1)
            near = (1 + (self.zoom * (mean - self.centre) / self.NEAR).square()).pow(-2)
            mean = torch.lerp(mean, self.centre + self.FINE / self.zoom * fine, near)
            spread = -(self.DEPTH + self.zoom.log()) * torch.sigmoid(depth)
            return Local(f, mean, spread)


def _at_zoom_1(module: nn.Module, state: dict[str, torch.Tensor], prefix: str, *rest: object) -> None:
    """Weights that name no zoom were trained at 1, whatever their scale."""
    state.setdefault(f"{prefix}zoom", torch.ones(()))


def _details(x: torch.Tensor, gains: tuple[float, ...]) -> list[torch.Tensor]:
    """Each slice less its 3 x 3 mean, amplified by each gain, in x's shape and dtype."""
    if not gains:
        return []
    high = x - _mean(x, 3)
    return [redescend(gain * high) for gain in gains]


def _mean(x: torch.Tensor, side: int) -> torch.Tensor:
    """Mean of the `side` x `side` pixels (odd) about each pixel, fewer at the border."""
    if side == 1:
        return x
    # Two products with band matrices: on CPUs five to ten times faster than pooling, and as exact.
    with torch.autocast(x.device.type, enabled=False):
        return _band(x.shape[2], side, x.device) @ x @ _band(x.shape[3], side, x.device).T


@lru_cache(maxsize=64)
def _band(pixels: int, side: int, device: torch.device) -> torch.Tensor:
    """(pixels, pixels) matrix that takes the mean of `side` pixels about each, fewer at the border."""
    place = torch.arange(pixels, device=device)
    near = ((place[:, None] - place).abs() <= side // 2).float()
    return near / near.sum(dim=1, keepdim=True)


def redescend(u: torch.Tensor) -> torch.Tensor:
    """u / (1 + u^2/4): linear in what is faint, and back to zero where the noise is strong, an edge runs or the tissue
    is another, so that an amplified input disturbs nothing there."""
    return u / (1 + u.square() / 4)


def _coordinates(h: torch.Tensor, frame: torch.Tensor | None) -> torch.Tensor:
    """x, y and x^2 + y^2 of every pixel of h (B, C, H, W), within the slice's -1 … 1: (B, 3, H, W) in h's dtype."""
    if frame is None:
        low = torch.full((h.shape[0], 2), -1.0, device=h.device, dtype=h.dtype)
        frame = torch.cat([low, -low], dim=1)
    top, left, bottom, right = frame.to(h.dtype)[:, :, None, None].unbind(1)
    y = torch.lerp(top, bottom, torch.linspace(0, 1, h.shape[2], device=h.device, dtype=h.dtype)[:, None])
    x = torch.lerp(left, right, torch.linspace(0, 1, h.shape[3], device=h.device, dtype=h.dtype))
    y, x = torch.broadcast_tensors(y, x)
    return torch.stack([x, y, x**2 + y**2], dim=1)
