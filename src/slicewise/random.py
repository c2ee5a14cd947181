"""Counter-based random numbers: every number is a function of (seed, sample, slice, step, use), never of the batch or
the device it is drawn on.

Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") written with the operators that NumPy
and torch share, so that integers and uniform numbers agree bit for bit between NumPy, CPU and CUDA; normal numbers
agree up to the last place of the device's logarithm and sine.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

# Which use a stream serves; part of the counter, so that no two uses ever share numbers.
INITIAL, PREDICTOR, CORRECTOR, KNOWN, TRAIN_ORDER, TRAIN_NOISE, TRAIN_DITHER, VALIDATION, LATENT, AUGMENT = range(10)
STREAMS = 16

ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF
# Counters that one CPU core ciphers while they stay in its cache.
_CHUNK = 1 << 14


def philox(counter: tuple[Any, Any, Any, Any], key: tuple[int, int]) -> tuple[Any, Any, Any, Any]:
    """The cipher: four words of 32 bits, held in int64 arrays (NumPy or torch, broadcastable), to four random words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # The product of two words wraps into int64 with all of its 64 bits in place.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = ((p1 >> 32) ^ c1 ^ k0) & _WORD, ((p0 >> 32) ^ c3 ^ k1) & _WORD
        c1, c3 = p1 & _WORD, p0 & _WORD
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


class Draws:
    """A generator for a batch of samples that draws each sample's own numbers, as if it were alone.

    Parameters
    ----------
    seed : of the whole run, modulo 2^64.
    samples : number of each sample or volume, modulo 2^32.
    slice_index : number of the slice in its chain, modulo 2^32, one for all samples or (B,); 0 where there is none.
    step : step of the training or of the sampler, below 2^28.
    stream : the use that the numbers serve.
    device : where they are wanted.
    """

    def __init__(
        self,
        seed: int,
        samples: Sequence[int] | torch.Tensor,
        slice_index: int | torch.Tensor,
        step: int,
        stream: int,
        device: torch.device | str = "cpu",
    ) -> None:
        assert 0 <= stream < STREAMS
        assert 0 <= step < 1 << 28
        self.key = seed & _WORD, (seed >> 32) & _WORD
        if not isinstance(samples, torch.Tensor):
            samples = torch.tensor(list(samples), dtype=torch.int64)
        self.samples = samples.to(device, non_blocking=True) & _WORD
        self.device = self.samples.device
        self.slice_index = slice_index & _WORD
        if isinstance(self.slice_index, torch.Tensor):
            self.slice_index = self.slice_index.to(self.device, non_blocking=True)[:, None]
        self.last = step * STREAMS + stream
        self.drawn = 0

    def words(self, count: int) -> torch.Tensor:
        """The next `count` words of 32 bits of every sample, (B, count) int64."""
        first, blocks = self.drawn, -(-count // 4)
        self.drawn += blocks
        out = torch.empty(len(self.samples), blocks, 4, dtype=torch.int64, device=self.device)
        chunk = max(1, _CHUNK // max(1, len(self.samples))) if self.device.type == "cpu" else blocks
        for begin in range(0, blocks, max(1, chunk)):
            end = min(begin + chunk, blocks)
            index = torch.arange(first + begin, first + end, device=self.device)[None]
            word1 = self.samples[:, None]
            # Scalars in the counter are words too, but cost nothing to carry until they meet an array.
            made = philox((index, word1, self.slice_index, self.last), self.key)
            for k in range(4):
                out[:, begin:end, k] = made[k]
        return out.view(len(self.samples), 4 * blocks)[:, :count]

    def uniform(self, count: int) -> torch.Tensor:
        """Uniform in [0, 1) in steps of 2^-24, (B, count) float32."""
        return (self.words(count) >> 8).float() * 2.0**-24

    def dither(self, count: int) -> torch.Tensor:
        """Uniform in (-1/2, 1/2) in steps of 2^-8, (B, count) float32, at a quarter of the cost of `uniform`."""
        words = self.words(-(-count // 4))
        bytes_ = torch.cat([(words >> shift) & 0xFF for shift in (0, 8, 16, 24)], dim=1)[:, :count]
        return (bytes_.float() + 0.5) * 2.0**-8 - 0.5

    def integers(self, below: torch.Tensor | int, count: int = 1) -> torch.Tensor:
        """Whole numbers in [0, below), (B, count) int64; `below` < 2^31 may be one for all or (B, count)."""
        return (self.words(count) * below) >> 32

    def normal(self, count: int) -> torch.Tensor:
        """Standard normal, (B, count) float32, by Box and Muller's transform; none lies beyond 6.7."""
        pairs = -(-count // 2)
        words = self.words(2 * pairs)
        # In (0, 1]: the logarithm of zero is never asked for.
        radius = ((words[:, :pairs].float() + 1.0) * 2.0**-32).log_().mul_(-2.0).sqrt_()
        angle = words[:, pairs:].float().mul_(2.0 * math.pi * 2.0**-32)
        return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]


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
        draws = Draws(self.seed, self.volumes, self.slice_index, step, stream, self.device)
        return draws.normal(math.prod(self.shape)).view(len(self.volumes), *self.shape).double()


def generator(seed: int, volume: int, slice_index: int, step: int, stream: int) -> np.random.Generator:
    """A NumPy generator (Philox 4x64) at the given key, for draws on the host whose number is not known beforehand.
    Seeds count modulo 2^64."""
    counter = np.array([0, slice_index % 2**64, step % 2**64, stream], np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=np.array([seed % 2**64, volume], np.uint64)))
