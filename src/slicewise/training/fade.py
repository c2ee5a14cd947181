"""What a chain does to its own slices, done to known slices in training, so that the denoiser learns to undo it.

A denoiser that is given true slices and a chain that is given its own are not the same: every slice loses a little of
the contrast between brain tissues and gains a little mottle, and the next takes that for the truth.
"""

import numpy as np
from scipy import ndimage

from slicewise.hu import BRAIN

# Pixels, of about 2 mm: noise is finer than the first, anatomy lies between, the level of the neighbourhood is coarser
# than the last.
FINE, BROAD = 1.0, 6.0
# Least and most contrast kept, and most mottle in HU, of a faded slice.
CONTRAST = (0.4, 1.1)
MOTTLE_HU = 2.0


def fade(hu: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One slice (H, W) in HU with the contrast of its soft tissue scaled about its neighbourhood's level and mottle
    added to it, float64; its noise, bone and air stay as they are."""
    values = np.clip(hu, BRAIN.lo, BRAIN.hi).astype(np.float64)
    anatomy = ndimage.gaussian_filter(values, FINE)
    inside = (values > BRAIN.lo) & (values < BRAIN.hi)
    soft = (inside & (anatomy > BRAIN.lo + 5) & (anatomy < BRAIN.hi - 15)).astype(np.float64)
    level = ndimage.gaussian_filter(soft * anatomy, BROAD) / np.maximum(ndimage.gaussian_filter(soft, BROAD), 1e-3)
    white = rng.standard_normal(hu.shape)
    mottle = ndimage.gaussian_filter(white, 1.0) - ndimage.gaussian_filter(white, 3.0)
    mottle *= rng.uniform(0.0, MOTTLE_HU) / mottle.std()
    return hu + soft * ((rng.uniform(*CONTRAST) - 1.0) * (anatomy - level) + mottle)
