"""Counter-based noise: every number is a function of (seed, volume, slice, step), never of the batch it is drawn in."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

# Which use a stream serves; part of the key, so that no two uses ever share numbers.
INITIAL, PREDICTOR, CORRECTOR, KNOWN, TRAIN_ORDER, TRAIN_NOISE, VALIDATION, LATENT, AUGMENT = range(9)


def generator(seed: int, volume: int, slice_index: int, step: int, stream: int) -> np.random.Generator:
    """A NumPy generator on the Philox 4x64 counter (Salmon et al. 2011) at the given key; seeds count modulo 2^64."""
    counter = np.array([0, slice_index % 2**64, step % 2**64, stream], np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=np.array([seed % 2**64, volume], np.uint64)))


@dataclass(frozen=True)
class SliceNoise:
    """Standard normal noise for a batch of slices that are generated together.

    Attributes
    ----------
    seed : of the whole run.
    volumes : number of each volume in the batch.
    slice_index : number of the slice in its chain.
    shape : (C, H, W) of one volume's noise.
    device : where the noise is wanted.
    """

    seed: int
    volumes: Sequence[int]
    slice_index: int
    shape: tuple[int, int, int]
    device: str = "cpu"

    def __call__(self, step: int, stream: int) -> torch.Tensor:
        """(B, C, H, W) float64: the same for a volume whichever batch it is in."""
        draws = [
            generator(self.seed, v, self.slice_index, step, stream).standard_normal(self.shape, np.float32)
            for v in self.volumes
        ]
        return torch.from_numpy(np.stack(draws)).to(self.device).double()
