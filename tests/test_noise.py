"""Counter-based noise: a function of its key alone."""

import numpy as np
import pytest
import torch
from scipy import stats

from slicewise.diffusion.noise import CORRECTOR, INITIAL, KNOWN, PREDICTOR, SliceNoise, generator

SHAPE = (2, 12, 10)


def test_a_volume_has_the_same_noise_in_any_batch():
    alone = SliceNoise(7, [5], 3, SHAPE)(2, PREDICTOR)
    among = SliceNoise(7, [9, 5, 0], 3, SHAPE)(2, PREDICTOR)
    assert alone.shape == (1, *SHAPE) and alone.dtype == torch.float64
    assert torch.equal(alone[0], among[1])


def test_every_part_of_the_key_counts():
    keys = [(7, 5, 3, 2, s) for s in (INITIAL, PREDICTOR, CORRECTOR, KNOWN)]
    keys += [(8, 5, 3, 2, INITIAL), (7, 6, 3, 2, INITIAL), (7, 5, 4, 2, INITIAL), (7, 5, 3, 3, INITIAL)]
    keys += [(5, 7, 3, 2, INITIAL), (7, 5, 2, 3, INITIAL)]  # order of the key's parts
    draws = np.stack([generator(*key).standard_normal(4000, np.float32) for key in keys])
    correlation = np.corrcoef(draws) - np.eye(len(keys))
    assert np.abs(correlation).max() < 5 / np.sqrt(4000)
    # Neighbouring counters must not be shifted copies of each other either.
    a, b = draws[0], draws[7]
    assert not np.isin(a[:100], b).any()


def test_noise_is_standard_normal():
    x = SliceNoise(1, range(4), 0, (1, 64, 64))(0, INITIAL).numpy().ravel()
    assert stats.kstest(x, "norm").pvalue > 1e-3
    assert stats.skew(x) == pytest.approx(0, abs=0.1) and stats.kurtosis(x) == pytest.approx(0, abs=0.2)
    assert abs(np.mean(x[:-1] * x[1:])) < 5 / np.sqrt(x.size)


def test_the_same_numbers_on_every_machine():
    """Frozen: released volumes can be made again only as long as these do not change."""
    drawn = generator(3, 1, 4, 1, PREDICTOR).standard_normal(3, np.float32)
    philox = np.random.Philox(counter=[0, 4, 1, PREDICTOR], key=[3, 1])
    assert np.array_equal(drawn, np.random.Generator(philox).standard_normal(3, np.float32))


@pytest.mark.parametrize("seed", [0, 2**63, 2**64 - 1, -1])
def test_any_integer_is_a_seed(seed):
    assert np.isfinite(generator(seed, 0, 0, 0, INITIAL).standard_normal())
