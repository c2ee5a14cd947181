"""Which noise levels training draws, and on which slices of a window."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from slicewise.random import Draws


@dataclass(frozen=True)
class SigmaDistribution:
    """Which noise levels training draws.

    ln sigma ~ N(mean, std^2), but a `uniform` share of draws is log-uniform over [sigma_min, sigma_max], so that no
    level is ever starved; all are clipped to that range. The EDM default (-1.2, 1.2) draws sigma < 0.01, which is 20
    HU of the linear range, 0.2 % of the time; these draw it 4 %.
    """

    mean: float = -1.2
    """Mean of ln sigma."""
    std: float = 2.0
    """Standard deviation of ln sigma."""
    uniform: float = 0.1
    """Share of log-uniform draws."""
    sigma_min: float = 0.001
    """Lowest level, in units of x."""
    sigma_max: float = 80.0
    """Highest level, in units of x."""

    def draw(self, draws: "Draws", count: int) -> "torch.Tensor":
        """Independent sigmas of every sample, (B, count) float64."""
        import torch

        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        normal = draws.normal(count).double() * self.std + self.mean
        flat = low + (high - low) * draws.uniform(count).double()
        chosen = torch.where(draws.uniform(count) < self.uniform, flat, normal)
        return chosen.clamp(low, high).exp()


@dataclass(frozen=True)
class WindowTask:
    """How the slices of a training window are corrupted."""

    joint: bool = False
    """The paper's joint model: all K slices share one sigma and all are wanted. Otherwise each slice has a role:
    *known* (clean, or with a little noise, which stops errors from building up along the chain), *wanted* (noisy; the
    only ones in the loss) or *missing* (pure noise at sigma_max: nothing is known of it)."""
    known_sigma: float = 0.05
    """Largest noise on a known slice, in units of x; drawn log-uniformly from a fifteenth of it upward."""
    missing: float = 0.1
    """Probability that an unwanted slice is missing, so that a chain can start from fewer slices."""
    last_wanted: float = 0.6
    """Probability that exactly the last slice is wanted (the downward chain); otherwise, in a third of windows the
    first slice is wanted (upward), in a third any one (filling gaps), and in a third a random subset."""
    seeded: float = 0.2
    """Probability that some slices of a whole head are known (networks of whole heads only): in half of them a short
    run, from which a head continues, in half all but one, which is a gap."""

    def draw(self, draws: "Draws", slices: int, distribution: SigmaDistribution) -> "tuple[torch.Tensor, torch.Tensor]":
        """Noise levels (B, K) float64 and the mask of wanted slices (B, K) bool of a batch of windows."""
        import torch

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
        self, draws: "Draws", slices: int, distribution: SigmaDistribution
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """As `draw`, of whole heads: all slices are wanted at one sigma but, in some heads, a run of up to an eighth of
        them or all outside such a run, which are known."""
        import torch

        sigma = distribution.draw(draws, 1).expand(-1, slices)
        seeded = draws.uniform(1) < self.seeded
        count = 1 + draws.integers(max(1, slices // 8))
        first = draws.integers(slices)
        run = (torch.arange(slices) >= first) & (torch.arange(slices) < first + count)
        known = self._known(draws, slices)
        gap = draws.uniform(1) < 0.5
        wanted = ~seeded | torch.where(gap, run, ~run)
        return torch.where(wanted, sigma, known), wanted

    def _known(self, draws: "Draws", slices: int) -> "torch.Tensor":
        import torch

        fraction = draws.uniform(slices).double()
        return self.known_sigma * torch.exp((fraction - 1.0) * math.log(15.0))
