"""Adaptive discriminator augmentation (Karras et al. 2020b, "Training GANs with limited data") for CT slices.

Every slice that the discriminator sees, real or generated, is moved and recoloured with a probability p per
transformation that follows how far the discriminator overfits. Of the paper's groups these are "bgc": pixel blitting,
geometry, and what colour means for one channel (brightness, contrast, sign). Draws are NumPy float64; slices go through
one interpolation, whatever the number of transformations.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

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


def adjusted(p: float, overfitting: float, target: float, images: int, ramp_images: int) -> float:
    """p after `images` more images: a fixed step up where the heuristic is above its target, else down, such that p
    goes from 0 to 1 within `ramp_images`; within [0, 1]."""
    return float(np.clip(p + np.sign(overfitting - target) * images / ramp_images, 0.0, 1.0))


def draw(rng: np.random.Generator, p: float, size: int) -> tuple[np.ndarray, float, float]:
    """One slice's transformation: (geometry, contrast, brightness), each part with probability p (appendix B).

    `geometry` is float64 (2, 3): where the pixel at (x, y, 1), from the centre of the slice, of the result comes from.
    The result's values are contrast · x + brightness. Every number is drawn whether it is used or not.
    """
    use = rng.random(11) < p
    # Two rotations, before and after anisotropic scaling, make p together.
    use[[4, 6]] = rng.random(2) < 1 - np.sqrt(1 - p)
    flip, quarter = rng.integers(0, 2), rng.integers(0, 4)
    shift = np.rint(rng.uniform(-0.125, 0.125, 2) * size)
    scale, stretch = np.exp2(0.2 * rng.standard_normal(2))
    before, after = rng.uniform(-np.pi, np.pi, 2)
    fraction = rng.standard_normal(2) * 0.125 * size
    brightness, contrast, sign = 0.2 * rng.standard_normal(), np.exp2(0.5 * rng.standard_normal()), rng.integers(0, 2)
    steps = (
        _scale(1.0 - 2.0 * flip, 1.0),
        _rotate(-np.pi / 2 * quarter),
        _translate(*shift),
        _scale(scale, scale),
        _rotate(-before),
        _scale(stretch, 1.0 / stretch),
        _rotate(-after),
        _translate(*fraction),
    )
    geometry = np.eye(3)
    for used, step in zip(use, steps):
        geometry = step @ geometry if used else geometry
    gain = (contrast if use[9] else 1.0) * (1.0 - 2.0 * sign if use[10] else 1.0)
    offset = (brightness if use[8] else 0.0) * gain
    return np.linalg.inv(geometry)[:2], float(gain), float(offset)


def augment(x: Tensor, drawn: Sequence[tuple[np.ndarray, float, float]]) -> Tensor:
    """Slices (B, 1, H, W), square, with one drawn transformation each (see `draw`); differentiable once in x."""
    geometry = torch.from_numpy(np.stack([d[0] for d in drawn])).to(x)
    gain, offset = (torch.tensor([d[i] for d in drawn]).to(x)[:, None, None, None] for i in (1, 2))
    return move(x, geometry) * gain + offset


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
    taps = torch.from_numpy(SYM6 * np.sqrt(2.0)).to(x)
    x = F.conv_transpose2d(x, taps.view(1, 1, 1, -1), stride=(1, 2))
    return F.conv_transpose2d(x, taps.view(1, 1, -1, 1), stride=(2, 1))


def _down(x: Tensor) -> Tensor:
    """The transpose of `_up`, with gain 1: 2N + 10 to N."""
    taps = torch.from_numpy(SYM6 / np.sqrt(2.0)).to(x)
    return F.conv2d(F.conv2d(x, taps.view(1, 1, 1, -1), stride=(1, 2)), taps.view(1, 1, -1, 1), stride=(2, 1))


def _scale(x: float, y: float) -> np.ndarray:
    return np.diag([x, y, 1.0])


def _rotate(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def _translate(x: float, y: float) -> np.ndarray:
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])
