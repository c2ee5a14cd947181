"""IC-Net: brings the intensity of a generated slice into line with the slice before it.

Raw network only: input and output lie in the unit range of the IC-Net window [-150, 150] HU; `slicewise.calibrate`
applies it to Hounsfield units. float32 throughout: one HU is 2/300 here, one unit in the last place of bfloat16 near 1
would be half a HU.
"""

import math
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slicewise.networks.shapes import ICNetConfig

# Bounds of the per-slice map: gain in [1/2, 2] (the paper's distortion needs 1/1.3 to 1/0.7), offset within 60 HU.
_MAX_LOG_GAIN = math.log(2.0)
_MAX_OFFSET = 60.0 / 150.0
# Where the second copy of the input is centred: 30 HU.
_BRAIN = 30.0 / 150.0
_QUANTILES = (0.05, 0.15, 0.3, 0.5, 0.7, 0.85, 0.95)
_N_STATISTICS = 9 + 2 * len(_QUANTILES)
# Slopes between which `confine` keeps a map that starts and ends on the window's borders.
_LEAST_SLOPE, _MOST_SLOPE = 0.1, 2.0


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

    An encoder and the statistics of both slices' soft tissue give one gain and one offset for the slice; with the
    residual output a decoder adds a correction image. There are no normalisation layers: they would take away the
    absolute intensity that is to be judged.
    """

    def __init__(self, config: ICNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ICNetConfig()
        widths = [config.channels] + [2 * config.channels] * (config.levels - 1)
        code = 2 * widths[-1]
        self.stem = nn.Conv2d(4 * config.fold**2, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(_Block(w) for w in widths)
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        self.summary = nn.Sequential(
            nn.Linear(widths[-1] + _N_STATISTICS, code), nn.SiLU(), nn.Linear(code, code), nn.SiLU()
        )
        self.map = _zero(nn.Linear(code, 2))
        if config.output == "residual":
            self.code = nn.Linear(code, widths[-1])
            self.ups = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(reversed(widths)))
            self.image = _zero(nn.Conv2d(widths[0], config.fold**2, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2, H, W) float32, [slice, slice before it] in unit range -> (B, 1, H, W), the calibrated slice.

        Voxels on the window's borders (all that lie outside it, after clipping) come back unchanged; see `confine`.
        """
        image = x[:, :1]
        levels, code = self._encode(x)
        gain, offset = (v.view(-1, 1, 1, 1) for v in self._gain_offset(code))
        mean = _window_moments(image)[0].view(-1, 1, 1, 1)
        # Written as a change of x, so that gain 1 and offset 0 give x back to the bit.
        change = (gain - 1.0) * (image - mean) + offset
        if self.config.output == "residual":
            h = levels.pop() + self.code(code)[:, :, None, None]
            for up in self.ups:
                h = levels.pop() + F.interpolate(up(F.silu(h)), scale_factor=2.0)
            residual = F.pixel_shuffle(self.image(F.silu(h)), self.config.fold)
            change = change + residual[..., : image.shape[2], : image.shape[3]]
        return confine(image, image + change)

    def gain_offset(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The per-slice part of the correction: gain (B,) and offset (B,), in unit range (150 HU), about the slice's
        mean over the voxels inside the window."""
        return self._gain_offset(self._encode(x)[1])

    def _gain_offset(self, code: Tensor) -> tuple[Tensor, Tensor]:
        gain, offset = torch.tanh(self.map(code)).unbind(1)
        return torch.exp(_MAX_LOG_GAIN * gain), _MAX_OFFSET * offset

    def _encode(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Features of every level, and one code (B, C) for the whole slice."""
        multiple = self.config.fold * 2 ** (self.config.levels - 1)
        padded = F.pad(x, (0, -x.shape[3] % multiple, 0, -x.shape[2] % multiple), value=-1.0)
        # Brain fills a sixth of the window: a second copy shows it at four times the contrast.
        zoomed = torch.tanh(4.0 * (padded - _BRAIN))
        h = F.silu(self.stem(F.pixel_unshuffle(torch.cat([padded, zoomed], 1), self.config.fold)))
        levels = []
        for i, block in enumerate(self.blocks):
            h = block(F.silu(self.downs[i - 1](h)) if i else h)
            levels.append(h)
        # Tissue in the window speaks, air and bone do not: weight the pooled features by its share of each cell.
        weight = F.avg_pool2d(_in_window(padded[:, :1]), padded.shape[3] // h.shape[3])
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
        found: Tensor = h + self.second(F.silu(self.first(h)))
        return found


def _zero(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


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


def _quantiles(image: Tensor) -> Tensor:
    """(B, 7) quantiles of the voxels inside the window, 0 where there are none."""
    values = image.flatten(1)
    inside = values.abs() < 1.0
    count = inside.sum(1, keepdim=True)
    ordered = torch.where(inside, values, 2.0).sort(1).values
    ranks = _ranks(image.device) * (count - 1).clamp_min(0)
    return torch.where(count > 0, ordered.gather(1, ranks.round().long()), 0.0)


@lru_cache(maxsize=4)
def _ranks(device: torch.device) -> Tensor:
    """The quantiles' ranks as shares, kept where they are used: sending them each time would wait for the device."""
    return torch.tensor(_QUANTILES, device=device)


def _statistics(x: Tensor) -> Tensor:
    """(B, 23): moments and quantiles of both slices inside the window and their differences, scaled to about 1.

    Convolutions find such numbers only after long training, and not to the one part in 150 that a HU is: with them the
    network reaches 1.3 HU in the time in which it stands at 4 without.
    """
    stride = max(1, min(x.shape[2:]) // 128)
    x = x[..., ::stride, ::stride]
    a, b = (_window_moments(x[:, i]) for i in (0, 1))
    both = (_in_window(x[:, 0]) * _in_window(x[:, 1])).flatten(1)
    step = (both * (x[:, 0] - x[:, 1]).flatten(1)).sum(1) / both.sum(1).clamp_min(1.0)
    contrast = torch.log((b[1] + 0.01) / (a[1] + 0.01))
    scalars = torch.stack([*a, *b, 10.0 * step, 10.0 * (b[0] - a[0]), 5.0 * contrast], 1)
    quantiles, others = _quantiles(x[:, 0]), _quantiles(x[:, 1])
    return torch.cat([scalars, 10.0 * (others - quantiles), 3.0 * others], 1)
