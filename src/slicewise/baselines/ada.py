"""Adaptive discriminator augmentation (Karras et al. 2020b, "Training GANs with limited data") for CT slices.

Every slice that the discriminator sees, real or generated, is moved and recoloured with a probability p per
transformation that follows how far the discriminator overfits. Of the paper's groups these are "bgc": pixel blitting,
geometry, and what colour means for one channel (brightness, contrast, sign). All of it, p included, lies on the device,
so that nothing waits for it; slices go through one interpolation, whatever the number of transformations.
"""

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from slicewise.random import Draws

# Low-pass of the sym6 wavelet (Daubechies 1992): orthogonal, so filtering up and down again gives the image back.
SYM6 = np.array([
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
    0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
    0.0017677118642428036, -0.007800708325034148,
])  # fmt: skip
# Where the filter's centre of mass lies, in taps.
_CENTRE = float((SYM6 * np.arange(12)).sum() / SYM6.sum())


def overfitting_sign(real_logits: Tensor) -> Tensor:
    """r_t = E[sign D(real)]: 0 is no overfitting, 1 complete (equation 1); a scalar."""
    return real_logits.sign().mean()


def adjusted(p: Tensor, overfitting: Tensor, target: float, images: int, ramp_images: int) -> Tensor:
    """p after `images` more images: a fixed step up where the heuristic is above its target, else down, such that p
    goes from 0 to 1 within `ramp_images`; within [0, 1]. Scalars."""
    return (p + (overfitting - target).sign() * images / ramp_images).clamp(0.0, 1.0)


def draw(draws: Draws, p: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """A transformation for each of B slices: (geometry, contrast, brightness), each part with probability p, a scalar
    (appendix B).

    `geometry` is float32 (B, 2, 3): where the pixel at (x, y, 1), from the centre of the slice, of the result comes
    from. The result's values are contrast · x + brightness, (B,). Every number is drawn whether it is used or not.
    """
    chance = p.float().repeat(11)
    # Two rotations, before and after anisotropic scaling, make p together.
    chance[4:7:2] = 1 - (1 - p).sqrt()
    used = (draws.uniform(11) < chance).float().unbind(1)
    u, n = draws.uniform(7), draws.normal(6)
    flip, quarter = (u[:, 0] < 0.5) * used[0], (4 * u[:, 1]).floor() * used[1]
    shift = ((u[:, 2:4] - 0.5) / 4 * size).round() * used[2][:, None]
    scale, stretch = (0.2 * n[:, 0] * used[3]).exp2(), (0.2 * n[:, 1] * used[5]).exp2()
    before, after = math.pi * (2 * u[:, 4] - 1) * used[4], math.pi * (2 * u[:, 5] - 1) * used[6]
    fraction = 0.125 * size * n[:, 2:4] * used[7][:, None]
    # Where pixels come from: each step undone, the last one first.
    matrix = _scale(1 - 2 * flip, torch.ones_like(flip)) @ _rotate(math.pi / 2 * quarter)
    origin = -matrix @ shift[:, :, None]
    matrix = matrix @ _scale(1 / scale, 1 / scale) @ _rotate(before) @ _scale(1 / stretch, stretch) @ _rotate(after)
    origin = origin - matrix @ fraction[:, :, None]
    contrast = (0.5 * n[:, 4] * used[9]).exp2() * (1 - 2 * (u[:, 6] < 0.5) * used[10])
    return torch.cat([matrix, origin], dim=2), contrast, 0.2 * n[:, 5] * used[8] * contrast


def augment(x: Tensor, geometry: Tensor, contrast: Tensor, brightness: Tensor) -> Tensor:
    """Slices (B, 1, H, W), square, with one drawn transformation each (see `draw`); differentiable once in x."""
    gain, offset = (value.to(x)[:, None, None, None] for value in (contrast, brightness))
    return move(x, geometry.to(x)) * gain + offset


def move(x: Tensor, geometry: Tensor) -> Tensor:
    """Resample (B, 1, N, N) at geometry · (x, y, 1), (B, 2, 3), in pixels from the centre; mirrored beyond the border.

    Upsampled by two with the sym6 filter, bilinear there, and downsampled with the same filter, which is sharp and
    nearly free of aliasing; shifts by whole pixels come out exact.
    """
    n = x.shape[-1]
    margin = min(n - 1, n // 8 + 10)
    padded = F.pad(x, (margin,) * 4, mode="reflect")
    fine = _up(padded)
    # Sample m of the fine grid stands at pixel (m - centre)/2 - margin; the result needs 2N + 10 of them.
    at = (torch.arange(2 * n + len(SYM6) - 2, device=x.device, dtype=x.dtype) - _CENTRE) / 2 - (n - 1) / 2
    rows, columns = torch.meshgrid(at, at, indexing="ij")
    points = torch.stack([columns, rows, torch.ones_like(rows)], dim=-1)
    source = torch.einsum("hwk,bjk->bhwj", points, geometry) + (n - 1) / 2
    mirrored = (n - 1) - (source.remainder(2 * (n - 1)) - (n - 1)).abs()  # triangle wave
    # Three pixels from the end of what is padded, the filter still saw all its taps.
    far = (source < 3 - margin) | (source > n - 1 + margin - 3)
    source = torch.where(far, mirrored, source)
    place = (source + margin) * 2 + _CENTRE
    moved = F.grid_sample(
        fine, (2 * place + 1) / fine.shape[-1] - 1, mode="bilinear", padding_mode="border", align_corners=False
    )
    return _down(moved)


def _up(x: Tensor) -> Tensor:
    """Zeros between samples, then sym6 with gain 2, along both axes: N to 2N + 10."""
    taps = _taps(math.sqrt(2.0), x.dtype, x.device)
    x = F.conv_transpose2d(x, taps.view(1, 1, 1, -1), stride=(1, 2))
    return F.conv_transpose2d(x, taps.view(1, 1, -1, 1), stride=(2, 1))


def _down(x: Tensor) -> Tensor:
    """The transpose of `_up`, with gain 1: 2N + 10 to N."""
    taps = _taps(math.sqrt(0.5), x.dtype, x.device)
    return F.conv2d(F.conv2d(x, taps.view(1, 1, 1, -1), stride=(1, 2)), taps.view(1, 1, -1, 1), stride=(2, 1))


@lru_cache(maxsize=8)
def _taps(gain: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.from_numpy(SYM6 * gain).to(device, dtype)


def _scale(x: Tensor, y: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack([x, y], dim=1))


def _rotate(angle: Tensor) -> Tensor:
    c, s = angle.cos(), angle.sin()
    return torch.stack([c, -s, s, c], dim=1).view(-1, 2, 2)
