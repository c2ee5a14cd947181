"""Denoising score matching with one noise level a slice, and which slices of a window are known, wanted or missing."""

import math
from dataclasses import dataclass

import torch

from slicewise.diffusion.precondition import loss_weight
from slicewise.diffusion.schedule import SigmaDistribution
from slicewise.random import Draws


@dataclass(frozen=True)
class WindowTask:
    """How the slices of a training window are corrupted.

    Attributes
    ----------
    joint : the paper's joint model: all K slices share one sigma and all are wanted. Otherwise each slice has a role:
        *known* (clean, or with a little noise, which stops errors from building up along the chain), *wanted* (noisy;
        the only ones in the loss) or *missing* (pure noise at sigma_max: nothing is known of it).
    known_sigma : largest noise on a known slice, in units of x; drawn log-uniformly from a fifteenth of it upward.
    missing : probability that a slice that is not wanted is missing, so that a chain can start from fewer slices.
    last_wanted : probability that exactly the last slice is wanted (the downward chain); else it is in a third of
        windows the first (upward), in a third any (filling gaps), and in a third a random subset.
    seeded : probability that some slices of a whole head are known (networks of whole heads only): in half of them a
        short run, from which a head goes on, in half all but one, which is a gap.
    """

    joint: bool = False
    known_sigma: float = 0.05
    missing: float = 0.1
    last_wanted: float = 0.6
    seeded: float = 0.2

    def draw(self, draws: Draws, slices: int, distribution: SigmaDistribution) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise levels (B, K) float64 and the mask of wanted slices (B, K) bool of a batch of windows."""
        sigma = distribution.draw(draws, 1).expand(-1, slices)
        if self.joint:
            return sigma, torch.ones(sigma.shape, dtype=torch.bool)
        role = draws.uniform(2)
        last, first, one = role[:, :1] < self.last_wanted, role[:, 1:] < 1 / 3, role[:, 1:] < 2 / 3
        which = torch.where(last, slices - 1, torch.where(first, 0, draws.integers(slices)))
        wanted = torch.arange(slices) == which
        wanted |= ~last & ~one & (draws.uniform(slices) < 0.5)
        known = self._known(draws, slices)
        missing = draws.uniform(slices) < self.missing
        return torch.where(wanted, sigma, torch.where(missing, distribution.sigma_max, known)), wanted

    def draw_whole(
        self, draws: Draws, slices: int, distribution: SigmaDistribution
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `draw`, of whole heads: all slices are wanted at one sigma but, in some heads, a run of up to an eighth of
        them or all outside such a run, which are known."""
        sigma = distribution.draw(draws, 1).expand(-1, slices)
        seeded = draws.uniform(1) < self.seeded
        count = 1 + draws.integers(max(1, slices // 8))
        first = draws.integers(slices)
        run = (torch.arange(slices) >= first) & (torch.arange(slices) < first + count)
        known = self._known(draws, slices)
        gap = draws.uniform(1) < 0.5
        wanted = ~seeded | torch.where(gap, run, ~run)
        return torch.where(wanted, sigma, known), wanted

    def _known(self, draws: Draws, slices: int) -> torch.Tensor:
        fraction = draws.uniform(slices).double()
        return self.known_sigma * torch.exp((fraction - 1.0) * math.log(15.0))


def weighted_errors(
    denoised: torch.Tensor,
    clean: torch.Tensor,
    sigma: torch.Tensor,
    sigma_data: float,
    deviation: torch.Tensor | None = None,
    most: float = 1000.0,
) -> torch.Tensor:
    """lambda(sigma) mean((D - x0)^2) of every slice, (B, K) float32: 1 for an untrained zero-output network at
    sigma >> sigma_data, less for a better one (Karras et al. 2022, eq. 2).

    With the `deviation` (B, K, H, W) that a local network expects, a voxel counts up to `most` times more where the
    error is expected to be smaller than c_out: a few HU in the brain beside a hundred at the edge of bone. The weight
    is a constant to the gradient and depends on what the network sees alone, so that the best D stays the posterior
    mean.
    """
    squared = (denoised - clean).float().square()
    weight = loss_weight(sigma, sigma_data).float()
    if deviation is not None:
        squared = squared * (deviation.detach().square() * weight[:, :, None, None]).reciprocal().clamp(1, most)
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
