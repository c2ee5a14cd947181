"""The HU scale on a device: HU to the network's x and back."""

from functools import lru_cache

import torch

from slicewise.hu import HUScale


class Codec:
    """`HUScale.encode` and `HUScale.decode` for tensors; off by less than 0.01 HU. Encoding is the formula in float32,
    decoding the scale's table of half HU and linear between them.

    Parameters
    ----------
    scale : HU scale.
    device : where the tensors lie.
    """

    def __init__(self, scale: HUScale, device: torch.device | str = "cpu") -> None:
        codes, x = scale.table()
        self.scale, self.first = scale, float(codes[0])
        self.x = torch.from_numpy(x).to(device)

    def encode(self, hu: torch.Tensor) -> torch.Tensor:
        """HU, any real dtype and shape, to x, float32; clipped half a HU beyond the scale's window."""
        scale = self.scale
        hu = hu.float().clamp(scale.lo - 0.5, scale.hi + 0.5)
        gain, offset = scale.linear_part
        x = hu * gain + offset
        if scale.companding == "linear":
            return x
        centre, width, share = scale.asinh_part
        return x.add_(((hu - centre) / width).asinh_(), alpha=share)

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        """x to HU, float64, not rounded, clipped to the scale's window."""
        x = x.double().contiguous()
        left = (torch.searchsorted(self.x, x, right=True) - 1).clamp(0, len(self.x) - 2)
        low, high = self.x[left], self.x[left + 1]
        hu = self.first + 0.5 * (left + (x - low) / (high - low))
        return hu.clamp(self.scale.lo, self.scale.hi)


@lru_cache(maxsize=16)
def codec(scale: HUScale, device: torch.device) -> Codec:
    """The codec of a scale on a device, made once."""
    return Codec(scale, device)
