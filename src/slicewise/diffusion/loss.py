"""Denoising score matching with one noise level a slice, and which slices of a window are known, wanted or missing."""

import math

import torch

from slicewise.diffusion.precondition import loss_weight


def weighted_errors(
    denoised: torch.Tensor,
    clean: torch.Tensor,
    sigma: torch.Tensor,
    sigma_data: float,
    deviation: torch.Tensor | None = None,
    max_weight: float = 1000.0,
) -> torch.Tensor:
    """lambda(sigma) mean((D - x0)^2) of every slice, (B, K) float32: 1 for an untrained zero-output network at
    sigma >> sigma_data, less for a better one (Karras et al. 2022, eq. 2).

    With the `deviation` (B, K, H, W) that a local network expects, a voxel counts up to `max_weight` times more where
    the error is expected to be smaller than c_out: a few HU in the brain beside a hundred at the edge of bone. The
    weight is a constant to the gradient and depends on what the network sees alone, so that the best D stays the
    posterior mean.
    """
    squared = (denoised - clean).float().square()
    weight = loss_weight(sigma, sigma_data).float()
    if deviation is not None:
        squared = squared * (deviation.detach().square() * weight[:, :, None, None]).reciprocal().clamp(1, max_weight)
    return squared.mean(dim=(2, 3)) * weight


def deviation_loss(denoised: torch.Tensor, clean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    """mean(sqrt(2) |D - x0| / d + ln d) of every slice, (B, K): the negative log-likelihood of Laplace errors of
    standard deviation d, least where d is sqrt(2) times the mean absolute error. D gets no gradient from it."""
    off = (denoised.detach() - clean).abs()
    return (math.sqrt(2) * off / deviation + torch.log(deviation)).mean(dim=(2, 3))


class SigmaUncertainty(torch.nn.Module):
    """Learned log-uncertainty u(sigma) by which the loss is balanced over noise levels: L / e^u + u (Karras et al.
    2024, eq. 21). Levels whose error cannot shrink (sigma below the scan's own noise) then do not drown the others."""

    centers: torch.Tensor

    def __init__(self, features: int = 32) -> None:
        super().__init__()
        self.register_buffer("centers", torch.linspace(-2.5, 2.5, features))
        self.linear = torch.nn.Linear(features, 1)
        torch.nn.init.zeros_(self.linear.weight)
        torch.nn.init.zeros_(self.linear.bias)

    def forward(self, errors: torch.Tensor, c_noise: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """errors, c_noise = ln(sigma)/4 and wanted, all (B, K) -> the balanced loss of every slice (B, K); slices that
        are not wanted count zero."""
        bumps = torch.exp(-0.5 * ((c_noise.unsqueeze(-1) - self.centers) / 0.16) ** 2)
        u = self.linear(bumps).squeeze(-1)
        return torch.where(wanted, errors / u.exp() + u, torch.zeros_like(errors))
