"""What a local network says of every voxel."""

from typing import NamedTuple

import torch


class Local(NamedTuple):
    """The answer of a local network (see `diffusion.precondition.posterior`), all (B, A, H, W) float32.

    Attributes
    ----------
    f : F, what is left to add once mean and spread are known, in units of the expected error.
    mean : M, of the voxel before its noisy value is seen, in units of sigma_data.
    spread : S, log of the standard deviation about that mean, in units of sigma_data.
    """

    f: torch.Tensor
    mean: torch.Tensor
    spread: torch.Tensor
