"""A U-Net over whole heads in three dimensions, for the plan of a pyramid: all slices at once, on few large pixels.

It shares the interface of the other networks, (B, K, H, W) with K the slices of a whole head from the vertex down, and
is told the noise level of every slice. It starts from the Gaussian of the training heads and learns the rest: at high
noise the best denoiser is the Gaussian's, which has a closed form (Wang and Vastola 2024, "The unreasonable
effectiveness of Gaussian score approximation"), and at low noise each voxel is measured in units of what varies at its
place, a few HU in the brain and hundreds at the edge of bone.

The Gaussian is a factor model: x = mean + spread (modes^T c + sqrt(own) e) with c and e standard normal; spread and own
are numbers of each voxel, own the share of its variance that no mode explains. Given c every voxel is on its own, so
that its exact posterior mean is a local network's (see `precondition.posterior`) of which F is zero.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from slicewise.networks.local import Local
from slicewise.networks.shapes import UNet3dConfig
from slicewise.networks.unet import (
    Block,
    Levels,
    UNet,
    channel_norm,
    fourier_features,
    redescend,
    through,
    u_levels,
)


@dataclass(frozen=True)
class Gaussian:
    """What whole heads are like, as far as a Gaussian goes: `mean` and `spread` (K, H, W) in units of x, `modes`
    (modes, K, H, W) in units of the spread, `own` (K, H, W) the share of variance that no mode explains."""

    mean: torch.Tensor
    spread: torch.Tensor
    modes: torch.Tensor
    own: torch.Tensor


def fit_gaussian(heads: torch.Tensor, modes: int) -> Gaussian:
    """The factor model of heads (N, K, H, W) in units of x, and of their mirror images: principal components of what
    lies off the mean, each voxel divided by its spread. The spread is a mean over neighbours and not below a hundredth:
    what never varied may vary yet."""
    heads = torch.cat([heads, heads.flip(-1)])
    mean = heads.mean(dim=0)
    variance = heads.var(dim=0, correction=0)
    spread = _near(variance).sqrt().clamp_min(0.01)
    off = ((heads - mean) / spread).flatten(1)
    modes = min(modes, len(off) - 1)
    with torch.random.fork_rng(devices=[]):  # it starts from random vectors
        torch.manual_seed(0)
        _, singular, vectors = torch.svd_lowrank(off, q=min(modes + 16, *off.shape), niter=4)
    rest = off - (off @ vectors[:, :modes]) @ vectors[:, :modes].T
    own = _near(rest.square().mean(dim=0).view(mean.shape)).clamp_min(1e-3)
    # What the modes are given too much: each also holds its share of what is every voxel's own.
    kept = (singular[:modes].square() / len(off) - own.mean()).clamp_min(0).sqrt()
    return Gaussian(mean, spread, (vectors[:, :modes] * kept).T.unflatten(1, mean.shape).contiguous(), own)


def _near(values: torch.Tensor) -> torch.Tensor:
    """Mean over 3 x 3 x 3 voxels about each of (K, H, W), fewer at the border."""
    return F.avg_pool3d(values[None, None], 3, 1, 1, count_include_pad=False)[0, 0]


class UNet3d(nn.Module):
    """The raw network: no sigma arithmetic inside, output layer in float32.

    forward(x (B, K, H, W) float32, noise (B, K) float32 = log(sigma)/4) -> `Local`, (B, K, H, W) float32 each.

    Buffers, which training sets (`gaussian`): `mean` and `log_spread` (K, H, W) in units of `sigma_data`, `modes`
    (modes, K H W) and `own` (K, H, W); `centre`, the value of 30 HU in these units, and `zoom` (`brain`, see `UNet`).
    """

    memory_format = torch.channels_last_3d
    FEATURES = 16
    mean: torch.Tensor
    log_spread: torch.Tensor
    modes: torch.Tensor
    own: torch.Tensor
    sigma_data: torch.Tensor
    centre: torch.Tensor
    zoom: torch.Tensor

    def __init__(self, config: UNet3dConfig) -> None:
        super().__init__()
        self.config = config
        c, e, pixels = config.channels, config.embedding, config.fold**2
        grid = (config.slices, config.size, config.size)
        self.register_buffer("mean", torch.zeros(grid))
        self.register_buffer("log_spread", torch.zeros(grid))
        self.register_buffer("modes", torch.zeros(config.modes, math.prod(grid)))
        self.register_buffer("own", torch.ones(grid))
        self.register_buffer("sigma_data", torch.ones(()))
        self.register_buffer("centre", torch.zeros(()))
        self.register_buffer("zoom", torch.ones(()))
        self.embed = nn.Sequential(nn.Linear(2 * self.FEATURES, e), nn.SiLU(), nn.Linear(e, e), nn.SiLU())
        # What is shown of every pixel: x, how far it is from the mean, what the Gaussian makes of it, and both through
        # the windows; then noise level and place.
        self.stem = nn.Conv3d((3 + 2 * len(config.window)) * pixels + 4, c[0], 3, padding=1)
        self.down, self.up, self.middle = u_levels(c, config.blocks, config.attention, e, nn.Conv3d)
        self.gain = nn.Parameter(torch.ones(c[0]))
        self.head = nn.Conv3d(c[0], pixels, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def blocks(self) -> list[nn.Module]:
        """The parts that repeat, which is what is worth compiling."""
        return [module for module in self.modules() if isinstance(module, Block)]

    def gaussian(self, g: "Gaussian", sigma_data: float) -> None:
        """Set the Gaussian to start from; fewer modes than there is room for leave the others zero."""
        self.mean.copy_(g.mean / sigma_data)
        self.log_spread.copy_((g.spread / sigma_data).log())
        self.modes.zero_()
        self.modes[: len(g.modes)] = g.modes.flatten(1)
        self.own.copy_(g.own)
        self.sigma_data.fill_(sigma_data)

    def brain(self, value: float, slope: float) -> None:
        """Set `centre` and `zoom` by the brain's value and what a HU of it is worth, both in units of sigma_data."""
        self.centre.fill_(value)
        self.zoom.fill_(UNet.HU / slope)

    def forward(self, x: torch.Tensor, noise: torch.Tensor, condition: torch.Tensor | None = None) -> Local:
        assert condition is None, "a whole head has no position"
        b, k, h, w = x.shape
        fold = self.config.fold
        # x comes times c_in. Freed of that, its distance from the mean is told in what noise and heads make it vary.
        sigma = ((4 * noise).exp() / self.sigma_data)[:, :, None, None]
        values = x * (1 + sigma.square()).sqrt()
        spread = self.log_spread.exp()
        expected = self.mean + spread * self.expected((values - self.mean) / spread, sigma / spread)
        off = (values - self.mean) / (sigma.square() + spread.square()).sqrt()
        shown = [x, off, (expected - self.mean) / spread]
        for gain in self.config.window:
            shown += [redescend(gain * self.zoom * (each - self.centre)) for each in (values, expected)]
        folded = F.pixel_unshuffle(torch.stack(shown, dim=2).flatten(0, 1), fold)
        volume = folded.unflatten(0, (b, k)).transpose(1, 2)
        told = noise[:, None, :, None, None].expand(-1, 1, -1, h // fold, w // fold)
        volume = torch.cat([volume, told, _places(volume)], dim=1).contiguous(memory_format=self.memory_format)
        embeddings = [self.embed(fourier_features(noise, self.FEATURES, 0.5, 64.0))]
        while len(embeddings) < len(self.down):  # of two slices that become one the mean
            embeddings.append(embeddings[-1].unflatten(1, (-1, 2)).mean(dim=2))
        y = through(Levels(self.down, self.up, self.middle), self.stem(volume), embeddings)
        y = F.silu(channel_norm(y, self.gain))
        with torch.autocast(x.device.type, enabled=False):
            out = self.head(y.float())
        f = F.pixel_shuffle(out.transpose(1, 2).flatten(0, 1), fold).view(b, k, h, w)
        # The Gaussian's answer m + own / (own + sigma^2) (x - m), all in units of the spread, is that of a local
        # network with this mean, if F is to be measured in the whole spread: what the modes get wrong is of that size.
        mean = expected + (self.own - 1) / (self.own + (sigma / spread).square()) * (values - expected)
        return Local(f, mean, self.log_spread.expand_as(f))

    def expected(self, off: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """modes^T E[c | x] of x that lies `off` the mean at noise `sigma`, all (B, K, H, W) in units of the spread."""
        weight = (self.own + sigma.square()).reciprocal().flatten(1)  # (B, voxels)
        scaled = self.modes * weight.sqrt()[:, None]
        precision = (scaled @ scaled.mT).double() + torch.eye(len(self.modes), dtype=torch.float64, device=off.device)
        seen = ((off.flatten(1) * weight) @ self.modes.T).double()
        factor, _ = torch.linalg.cholesky_ex(precision)
        best = torch.cholesky_solve(seen[:, :, None], factor)[:, :, 0]
        return (best.to(off.dtype) @ self.modes).view_as(off)


def _places(volume: torch.Tensor) -> torch.Tensor:
    """z, y and x of every voxel of (B, C, Z, H, W), each from -1 to 1: (B, 3, Z, H, W)."""
    axes = [torch.linspace(-1, 1, n, device=volume.device, dtype=volume.dtype) for n in volume.shape[2:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).expand(len(volume), -1, -1, -1, -1)
