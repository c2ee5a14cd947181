"""What a trained denoiser leaves undone in the brain, and the filter and curve that least squares finds for it.

Where the noise is a few HU, an error that is hardly larger than the best denoiser's makes samples whose noise is much
too strong: too much of the finest noise stays, and structure goes with the coarser. Both show in what
the network took away, x - D, band by band, and can be put right there without training.

And D must be the mean of what it stands for, E[x0 | D] = D. A rare tissue is learnt late: of voxels that D puts below
the HU of CSF, most are CSF. A curve over D moves every value to the mean of what it stood for.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

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
    span : the range of x of the brain; where D is outside the gains change nothing, and a step of the curve further out
        the curve does not either.
    curve : (S, N), what is added to D, units of x, at N values of D spread evenly over `span` (see `hats`).
    """

    sigmas: tuple[float, ...]
    gains: tuple[tuple[float, ...], ...]
    span: tuple[float, float]
    curve: tuple[tuple[float, ...], ...]

    @staticmethod
    def from_dict(values: dict[str, list]) -> "ResidualFilter":
        """The inverse of `dataclasses.asdict`, after JSON."""
        low, high = values["span"]
        gains, curve = (tuple(tuple(row) for row in values[name]) for name in ("gains", "curve"))
        return ResidualFilter(tuple(values["sigmas"]), gains, (low, high), curve)

    def at(self, sigma: torch.Tensor, rows: tuple[tuple[float, ...], ...]) -> torch.Tensor:
        """Rows of `gains` or `curve` at these sigmas, (*sigma.shape, columns), float32."""
        known, values = (_on_device(v, sigma.device) for v in (self.sigmas, rows))
        level, known = sigma.double().log(), known.log()
        left = torch.searchsorted(known, level, right=True).sub(1).clamp(0, max(0, len(known) - 2))
        right = (left + 1).clamp_max(len(known) - 1)
        span = (known[right] - known[left]).clamp_min(1e-12)
        share = ((level - known[left]) / span).clamp(0.0, 1.0)[..., None]
        found = torch.lerp(values[left], values[right], share)
        return torch.where((level > known[-1])[..., None], 0.0, found).float()

    def __call__(self, denoised: torch.Tensor, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """D with each band of what it took away added in its gain, then moved by the curve. D, x (B, K, H, W), sigma
        (B, K)."""
        return self.moved(self.filtered(denoised, x, sigma), sigma)

    def filtered(self, denoised: torch.Tensor, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """D + sum of gain times band of what D took away."""
        gains = self.at(sigma, self.gains)
        if gains.device.type == "cpu" and not gains.any():  # elsewhere the look would cost more than it saves
            return denoised
        change = (gains.movedim(-1, 0)[..., None, None] * bands(taken_away(denoised, x, sigma))).sum(dim=0)
        inside = (denoised > self.span[0]) & (denoised < self.span[1])
        return denoised + torch.where(inside, change, torch.zeros_like(change)).to(denoised.dtype)

    def moved(self, denoised: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """D + curve(D)."""
        curve = self.at(sigma, self.curve)
        if curve.device.type == "cpu" and not curve.any():
            return denoised
        left, share = hats(denoised.flatten(2), self.span, curve.shape[-1])
        # Outside the span both ends are the nodes beyond the first and the last, which are zero.
        curve = F.pad(curve, (1, 1))
        change = torch.lerp(curve.gather(2, left), curve.gather(2, left + 1), share)
        return denoised + change.view_as(denoised).to(denoised.dtype)


@lru_cache(maxsize=64)
def _on_device(values: tuple, device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, device=device)


def taken_away(denoised: torch.Tensor, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """x - D (B, K, H, W) float32, no more than three sigma: errors at edges of bone shall not spread."""
    most = 3 * sigma[:, :, None, None].float()
    return (x - denoised).float().clamp(-most, most)


def hats(values: torch.Tensor, span: tuple[float, float], nodes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where values lie among `nodes` evenly spread over `span`, with one more, of zero, beyond either end: the index of
    the node to the left (int64, of the nodes + 2) and the share of the way from it to the next (float32, 0 … 1)."""
    step = (span[1] - span[0]) / (nodes - 1)
    place = ((values - span[0]) / step + 1).float().clamp(0, nodes + 1)
    left = place.floor().clamp(max=nodes)
    return left.long(), place - left


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
