"""Slice-to-3D VAE (Volokitin et al. 2020): a variational autoencoder of single slices, and a Gaussian model of how each
latent dimension runs along the slices of a head.

A head of T slices is T latents of D dimensions. Dimension by dimension, the columns of T numbers of all training heads
are taken for draws of one Gaussian, whose covariance says how neighbouring slices hang together; a new head is one
column drawn for each dimension, decoded slice by slice.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slicewise.baselines.shapes import SliceVAEConfig


class SliceVAE(nn.Module):
    """Encoder, decoder and the model of columns, which is empty until `fit_columns`."""

    columns_mean: Tensor
    columns_factor: Tensor

    def __init__(self, config: SliceVAEConfig) -> None:
        super().__init__()
        self.config = config
        widths = (config.channels[0], *config.channels)
        self.entry = nn.Conv2d(1, widths[0], 3, padding=1)
        self.down = nn.ModuleList(_Block(a, b, up=False) for a, b in pairwise(widths))
        self.posterior = nn.Conv2d(widths[-1], 2 * config.latent, 1)
        self.prior = nn.Conv2d(config.latent, widths[-1], 1)
        turned = widths[::-1]
        self.up = nn.ModuleList(_Block(a, b, up=True) for a, b in pairwise(turned))
        self.out = nn.Conv2d(widths[0], 1, 3, padding=1)
        dimensions = config.latent * config.bottom**2
        kept = min(config.components, config.slices)
        self.register_buffer("columns_mean", torch.zeros(config.slices, dimensions))
        self.register_buffer("columns_factor", torch.zeros(dimensions, config.slices, kept))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Slices (B, 1, H, W) to mean and log variance of the posterior, each (B, D)."""
        h = self.entry(x)
        for block in self.down:
            h = block(h)
        mean, log_variance = self.posterior(h).chunk(2, dim=1)
        return mean.flatten(1), log_variance.flatten(1)

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, D) to slices (B, 1, H, W)."""
        h = self.prior(z.reshape(len(z), self.config.latent, self.config.bottom, self.config.bottom))
        for block in self.up:
            h = block(h)
        found: Tensor = self.out(h)
        return found

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction (B, 1, H, W) from a latent drawn with standard normal `noise` (B, D); mean, log variance."""
        mean, log_variance = self.encode(x)
        return self.decode(mean + (log_variance / 2).exp() * noise), mean, log_variance

    @property
    def column_noise(self) -> tuple[int, int]:
        """Shape of the noise that `draw_columns` takes: (D, components)."""
        return self.columns_factor.shape[0], self.columns_factor.shape[2]

    def draw_columns(self, noise: Tensor) -> Tensor:
        """Latents of one head, (T, D), from standard normal `noise` (D, components)."""
        return self.columns_mean + torch.einsum("dtk,dk->td", self.columns_factor, noise)


class _Block(nn.Module):
    """Residual block with batch norm that halves or doubles the size."""

    def __init__(self, inputs: int, outputs: int, up: bool) -> None:
        super().__init__()
        stride = 1 if up else 2
        self.up = up
        self.first = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        if self.up:
            x = F.interpolate(x, scale_factor=2.0)
        h = F.leaky_relu(self.norms[0](self.first(x)), 0.2)
        return F.leaky_relu(self.norms[1](self.second(h)) + self.norms[2](self.skip(x)), 0.2)


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) ‖ N(0, 1)) summed over the D dimensions, (B,)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(dim=1)


def vae_loss(x: Tensor, decoded: Tensor, mean: Tensor, log_variance: Tensor, weight: float) -> Tensor:
    """Squared error summed over the pixels of a slice, plus `weight` times the divergence; mean over the batch."""
    error = (x - decoded).square().sum(dim=(1, 2, 3))
    return (error + weight * kl_divergence(mean, log_variance)).mean()


def fit_columns(latents: Tensor, components: int) -> tuple[Tensor, Tensor]:
    """The Gaussian of every latent dimension's columns, from posterior means (N, T, D) of N heads.

    Returns mean (T, D) and factor (D, T, k), k = min(components, T), both float32: factor · factorᵀ is the best
    approximation of rank k to the (N - 1)-normalised covariance over slices, by singular value decomposition of the
    centred (N, T) matrix of each dimension. With fewer heads than components the rest is zero. Computed in float64.
    """
    heads, slices, dimensions = latents.shape
    kept = min(components, slices)
    mean = latents.double().mean(dim=0)
    centred = (latents.double() - mean).permute(2, 0, 1)  # (D, N, T)
    factor = torch.zeros(dimensions, slices, kept, dtype=torch.float64, device=latents.device)
    if heads > 1:
        _, values, rows = torch.linalg.svd(centred, full_matrices=False)
        rank = min(kept, values.shape[1])
        factor[:, :, :rank] = (rows * values[:, :, None]).transpose(1, 2)[:, :, :rank] / (heads - 1) ** 0.5
    return mean.float(), factor.float()
