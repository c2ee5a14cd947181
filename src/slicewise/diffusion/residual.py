"""What a trained denoiser leaves undone at small sigma, and the linear filter that least squares finds for it.

Where the noise is a few HU, an error that is hardly larger than the best denoiser's makes samples whose noise is much
too strong: too much of the finest noise stays, and structure goes with the coarser. Both show in what
the network took away, x - D, band by band, and can be put right there without training.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch.nn import functional as F

# Standard deviations in pixels of the blurs between which the bands lie.
BLURS = (0.7, 1.2, 2.0, 4.0)
BANDS = len(BLURS) + 1


@dataclass(frozen=True)
class ResidualFilter:
    """Gains by noise level and band; between levels they are interpolated in ln sigma, above the last they are zero.

    Attributes
    ----------
    sigmas : (S,), ascending, units of x.
    gains : (S, BANDS), finest band first.
    """

    sigmas: tuple[float, ...]
    gains: tuple[tuple[float, ...], ...]

    @staticmethod
    def from_dict(values: dict[str, list]) -> "ResidualFilter":
        """The inverse of `dataclasses.asdict`, after JSON."""
        return ResidualFilter(tuple(values["sigmas"]), tuple(tuple(row) for row in values["gains"]))

    def at(self, sigma: torch.Tensor) -> torch.Tensor:
        """Gains (BANDS, *sigma.shape), float32."""
        level = np.log(sigma.cpu().numpy())
        known, columns = np.log(self.sigmas), np.array(self.gains).T
        rows = np.stack([np.interp(level, known, column, right=0.0) for column in columns])
        return torch.from_numpy(rows.astype(np.float32)).to(sigma.device)

    def __call__(
        self, denoised: torch.Tensor, x: torch.Tensor, sigma: torch.Tensor, brain: torch.Tensor
    ) -> torch.Tensor:
        """D + sum of gain times band of what D took away. D, x (B, K, H, W), sigma (B, K); only where `brain` (B, K, H,
        W) bool says that D is in the range of the brain, in which the gains were found."""
        gains = self.at(sigma)
        if not gains.any():
            return denoised
        change = (gains[..., None, None] * bands(taken_away(denoised, x, sigma))).sum(dim=0)
        return denoised + torch.where(brain, change, torch.zeros_like(change)).to(denoised.dtype)


def taken_away(denoised: torch.Tensor, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """x - D (B, K, H, W) float32, no more than three sigma: errors at edges of bone shall not spread."""
    most = 3 * sigma[:, :, None, None].float()
    return (x - denoised).float().clamp(-most, most)


def bands(values: torch.Tensor) -> torch.Tensor:
    """(B, K, H, W) split into (BANDS, B, K, H, W), finest first, which add up to it."""
    blurred = [values, *(blur(values, pixels) for pixels in BLURS)]
    return torch.stack([*(fine - coarse for fine, coarse in pairwise(blurred)), blurred[-1]])


def blur(values: torch.Tensor, pixels: float) -> torch.Tensor:
    """(B, K, H, W) blurred by a Gaussian of that standard deviation, cut at three, the border pixels repeated."""
    reach = int(3 * pixels + 0.5)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=values.device) / pixels) ** 2)
    kernel = (kernel / kernel.sum()).to(values.dtype)
    slices = F.pad(values.flatten(0, 1).unsqueeze(1), (reach,) * 4, mode="replicate")
    slices = F.conv2d(F.conv2d(slices, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return slices.view_as(values)
