"""IC-Net: brings the intensity of a generated slice into line with the slice before it.

Raw network only: input and output lie in the unit range of the IC-Net window [-150, 150] HU; `slicewise.calibrate`
applies it to Hounsfield units. float32 throughout: one HU is 2/300 here, one unit in the last place of bfloat16 near 1
would be half a HU.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slicewise.errors import UserError

OUTPUTS = ("affine", "residual")

# Bounds of the per-slice map: gain in [1/2, 2] (the paper's distortion needs 1/1.3 to 1/0.7), offset within 60 HU.
_MAX_LOG_GAIN = math.log(2.0)
_MAX_OFFSET = 60.0 / 150.0
# Slopes between which `confine` keeps a map that starts and ends on the window's borders.
_LEAST_SLOPE, _MOST_SLOPE = 0.1, 2.0


@dataclass(frozen=True)
class ICNetConfig:
    """Shape of an IC-Net.

    Attributes
    ----------
    channels : width at the first level; the levels below have twice as many.
    levels : resolutions, each half the one above.
    fold : side of the pixel square that goes into channels at the input: full-resolution convolutions would be most of
        the cost. The input's sides are padded with air to a multiple of fold * 2**(levels - 1).
    output : "affine" (one gain and one offset for a slice, so that anatomy cannot change) or "residual" (a correction
        image added to the slice, the paper's image-to-image form).
    """

    channels: int = 32
    levels: int = 4
    fold: int = 2
    output: str = "affine"

    def __post_init__(self) -> None:
        if self.output not in OUTPUTS:
            raise UserError(f"IC-Net output {self.output!r} is unknown; choose one of {', '.join(OUTPUTS)}")
        if self.levels < 2 or self.channels < 4 or self.fold < 1:
            raise UserError(f"IC-Net: {self.levels} levels, {self.channels} channels; it takes 2 and 4 at the least")


def confine(x: Tensor, y: Tensor) -> Tensor:
    """Bound a corrected slice y by its input x, both in unit range, so that y = x at the window's borders x = -1, 1.

    Voxels outside the window keep their HU, so a correction that were simply cut off at the border would leave a step
    there: a voxel at -151 HU stays, its neighbour at -149 moves by 10 HU, and fat gets an outline. Between two lines
    through each border (slopes 0.1 and 2) the correction fades out over about as many HU as it is large, and is exact
    further in. As minima and maxima of rising functions, the result of a rising map x -> y rises too.
    """
    below, above = x + 1.0, 1.0 - x
    low = torch.maximum(_LEAST_SLOPE * below - 1.0, 1.0 - _MOST_SLOPE * above)
    high = torch.minimum(_MOST_SLOPE * below - 1.0, 1.0 - _LEAST_SLOPE * above)
    return torch.minimum(torch.maximum(y, low), high)


class ICNet(nn.Module):
    """Calibration network of Jeong et al. 2023 (section 2.3), starting as the identity.

    No normalisation layers: they would take away the absolute intensity that is to be judged.
    """

    def __init__(self, config: ICNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ICNetConfig()
        widths = [config.channels] + [2 * config.channels] * (config.levels - 1)
        self.stem = nn.Conv2d(2 * config.fold**2, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(_Block(w) for w in widths)
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        self.summary = nn.Sequential(
            nn.Linear(widths[-1] + _N_STATISTICS, 2 * widths[-1]), nn.SiLU(), nn.Linear(2 * widths[-1], widths[-1])
        )
        if config.output == "affine":
            self.head: nn.Module = nn.Linear(widths[-1], 2)
        else:
            self.ups = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(reversed(widths)))
            self.head = nn.Conv2d(widths[0], config.fold**2, 3, padding=1)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2, H, W) float32, [slice, slice before it] in unit range -> (B, 1, H, W), the calibrated slice.

        Voxels on the window's borders (all that lie outside it, after clipping) come back unchanged; see `confine`.
        """
        image = x[:, :1]
        if self.config.output == "affine":
            gain, offset = self.gain_offset(x)
            gain, offset = gain.view(-1, 1, 1, 1), offset.view(-1, 1, 1, 1)
            mean = _window_moments(image)[0].view(-1, 1, 1, 1)
            # Written as a change of x, so that gain 1 and offset 0 give x back to the bit.
            return confine(image, image + ((gain - 1.0) * (image - mean) + offset))
        padded = self._pad(x)
        levels, code = self._encode(padded)
        h = levels.pop() + code[:, :, None, None]
        for up in self.ups:
            h = levels.pop() + F.interpolate(up(F.silu(h)), scale_factor=2.0)
        residual = F.pixel_shuffle(self.head(F.silu(h)), self.config.fold)
        return confine(image, image + residual[..., : image.shape[2], : image.shape[3]])

    def gain_offset(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Affine output only: gain (B,) and offset (B,), in unit range (150 HU), about the slice's in-window mean."""
        assert self.config.output == "affine"
        raw = self.head(self._encode(self._pad(x))[1])
        return torch.exp(_MAX_LOG_GAIN * torch.tanh(raw[:, 0])), _MAX_OFFSET * torch.tanh(raw[:, 1])

    def _pad(self, x: Tensor) -> Tensor:
        multiple = self.config.fold * 2 ** (self.config.levels - 1)
        right, bottom = -x.shape[3] % multiple, -x.shape[2] % multiple
        return F.pad(x, (0, right, 0, bottom), value=-1.0) if right or bottom else x

    def _encode(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Features of every level, and one code (B, C) for the whole slice."""
        h = F.silu(self.stem(F.pixel_unshuffle(x, self.config.fold)))
        levels = []
        for i, block in enumerate(self.blocks):
            h = block(F.silu(self.downs[i - 1](h)) if i else h)
            levels.append(h)
        # Tissue in the window speaks, air and bone do not: weight the pooled features by its share of each cell.
        weight = F.avg_pool2d(_in_window(x[:, :1]), x.shape[3] // h.shape[3])
        pooled = (h * weight).sum((2, 3)) / (weight.sum((2, 3)) + 1.0)
        return levels, self.summary(torch.cat([pooled, _statistics(x)], 1))


class _Block(nn.Module):
    """Residual block of two 3x3 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        with torch.no_grad():
            # Small at the start, since nothing normalises the sum.
            self.second.weight.mul_(0.1)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.second(F.silu(self.first(h)))


_N_STATISTICS = 7


def _in_window(x: Tensor) -> Tensor:
    """1 where a voxel lies strictly inside the window, else 0."""
    return (x.abs() < 1.0).to(x.dtype)


def _window_moments(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, standard deviation and share of the voxels inside the window, (B,) each; 0 where there are none."""
    weight = _in_window(image).flatten(1)
    values = image.flatten(1)
    count = weight.sum(1).clamp_min(1.0)
    mean = (weight * values).sum(1) / count
    spread = ((weight * (values - mean[:, None]) ** 2).sum(1) / count + 1e-12).sqrt()
    return mean, spread, weight.mean(1)


def _statistics(x: Tensor) -> Tensor:
    """(B, 7): moments of both slices in the window, and their mean difference where both lie inside it; scaled to
    about 1. The network could find them itself, but not to the one part in 150 that a HU is."""
    a, b = (_window_moments(x[:, i]) for i in (0, 1))
    both = (_in_window(x[:, 0]) * _in_window(x[:, 1])).flatten(1)
    step = (both * (x[:, 0] - x[:, 1]).flatten(1)).sum(1) / both.sum(1).clamp_min(1.0)
    return torch.stack([*a, *b, 10.0 * step], 1)
