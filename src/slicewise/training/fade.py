"""What a chain does to its own slices, done to known slices in training, so that the denoiser learns to undo it.

A denoiser that is given true slices and a chain that is given its own are not the same: every slice loses a little of
the contrast between brain tissues and gains a little mottle, and the next takes that for the truth.
"""

from functools import lru_cache

import numpy as np
import torch
from scipy import ndimage

from slicewise.hu import BRAIN

# Pixels, of about 2 mm: noise is finer than the first, anatomy lies between, the level of the neighbourhood is coarser
# than the last.
FINE, BROAD = 1.0, 6.0
# Least and most contrast kept, and most mottle in HU, of a faded slice.
CONTRAST = (0.4, 1.1)
MOTTLE_HU = 2.0


def fade(hu: torch.Tensor, contrast: torch.Tensor, mottle_hu: torch.Tensor, white: torch.Tensor) -> torch.Tensor:
    """Slices (N, H, W) in HU with the contrast of their soft tissue scaled about its neighbourhood's level by
    `contrast` (N,) and mottle of `mottle_hu` (N,) made from white noise (N, H, W) added to it, float32; their noise,
    bone and air stay as they are."""
    values = hu.float().clamp(BRAIN.lo, BRAIN.hi)
    anatomy = blur(values, FINE)
    inside = (values > BRAIN.lo) & (values < BRAIN.hi)
    soft = (inside & (anatomy > BRAIN.lo + 5) & (anatomy < BRAIN.hi - 15)).float()
    level = blur(soft * anatomy, BROAD) / blur(soft, BROAD).clamp_min(1e-3)
    mottle = blur(white, 1.0) - blur(white, 3.0)
    mottle = mottle * (mottle_hu / mottle.flatten(1).std(dim=1))[:, None, None]
    return hu.float() + soft * ((contrast[:, None, None] - 1.0) * (anatomy - level) + mottle)


def blur(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """SciPy's Gaussian filter of slices (N, H, W) with standard deviation `sigma` pixels, as two products with band
    matrices: on so few pixels faster than convolutions of one channel."""
    down, across = (_blur_matrix(side, sigma, x.device) for side in x.shape[1:])
    return down @ x @ across.T


@lru_cache(maxsize=32)
def _blur_matrix(side: int, sigma: float, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(ndimage.gaussian_filter1d(np.eye(side, dtype=np.float32), sigma, axis=0)).to(device)
