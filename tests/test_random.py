"""Counter-based random numbers: functions of their key alone, the same everywhere, and as random as they should be."""

import numpy as np
import pytest
import torch
from scipy import stats

from slicewise.random import CORRECTOR, INITIAL, KNOWN, PREDICTOR, TRAIN_ORDER, Draws, SliceNoise, generator, philox

SHAPE = (2, 12, 10)

# Known answers of the reference implementation, Random123 1.14 (kat_vectors, philox4x32 10): counter, key, result.
KNOWN_ANSWERS = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


@pytest.mark.parametrize("counter, key, answer", KNOWN_ANSWERS)
def test_philox_is_the_reference_in_torch_and_numpy(counter, key, answer):
    in_torch = philox(tuple(torch.tensor([word]) for word in counter), key)
    in_numpy = philox(tuple(np.array([word], np.int64) for word in counter), key)
    assert tuple(int(word[0]) for word in in_torch) == tuple(int(word[0]) for word in in_numpy) == answer


def _philox_by_big_integers(counter, key):
    """Salmon et al. 2011, section 3.3, in Python's own integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        low, high = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(high >> 32) ^ c[1] ^ k[0], high % 2**32, (low >> 32) ^ c[3] ^ k[1], low % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def test_philox_is_that_of_big_integers_at_random_counters():
    words = np.random.default_rng(0).integers(0, 2**32, (200, 6), dtype=np.int64)
    for row in words.tolist():
        found = philox(tuple(torch.tensor([word]) for word in row[:4]), (row[4], row[5]))
        assert [int(word) for word in found] == _philox_by_big_integers(row[:4], row[4:])


def test_draws_follow_the_counter_and_go_on_where_they_were():
    draws = Draws(2**40 + 5, [3, 9], 7, 11, PREDICTOR)
    first, second = draws.words(6), draws.words(3)
    for i, sample in enumerate((3, 9)):
        key = ((2**40 + 5) % 2**32, 2**8)
        blocks = [_philox_by_big_integers((n, sample, 7, 11 * 16 + PREDICTOR), key) for n in range(3)]
        assert first[i].tolist() == (blocks[0] + blocks[1])[:6]
        assert second[i].tolist() == blocks[2][:3]


def test_large_draws_are_the_same_in_pieces_that_fit_a_cache():
    alone = Draws(0, [4], 0, 0, INITIAL).words(100_001)
    among = Draws(0, range(8), 0, 0, INITIAL).words(100_001)
    assert torch.equal(alone[0], among[4])


def test_uniform_dither_and_integers_have_their_distributions():
    draws = Draws(1, range(50), 0, 0, TRAIN_ORDER)
    uniform, dither = draws.uniform(2000).numpy().ravel(), draws.dither(2000).numpy().ravel()
    assert 0 <= uniform.min()
    assert uniform.max() < 1
    assert stats.kstest(uniform, "uniform").pvalue > 1e-3
    assert -0.5 < dither.min()
    assert dither.max() < 0.5
    assert stats.kstest(dither, "uniform", args=(-0.5, 1)).pvalue > 1e-3
    counts = np.bincount(draws.integers(7, 2000).numpy().ravel(), minlength=7)
    assert len(counts) == 7
    assert stats.chisquare(counts).pvalue > 1e-3
    below = torch.arange(1, 51)[:, None]
    drawn = draws.integers(below, 300)
    assert int(drawn.min()) == 0
    assert bool((drawn.amax(dim=1) == below[:, 0] - 1).all())


def test_a_volume_has_the_same_noise_in_any_batch():
    alone = SliceNoise(7, [5], 3, SHAPE)(2, PREDICTOR)
    among = SliceNoise(7, [9, 5, 0], 3, SHAPE)(2, PREDICTOR)
    assert alone.shape == (1, *SHAPE)
    assert alone.dtype == torch.float64
    assert torch.equal(alone[0], among[1])


def test_every_part_of_the_key_counts():
    keys = [(7, 5, 3, 2, s) for s in (INITIAL, PREDICTOR, CORRECTOR, KNOWN)]
    keys += [(8, 5, 3, 2, INITIAL), (7, 6, 3, 2, INITIAL), (7, 5, 4, 2, INITIAL), (7, 5, 3, 3, INITIAL)]
    keys += [(5, 7, 3, 2, INITIAL), (7, 5, 2, 3, INITIAL)]  # order of the key's parts
    draws = np.stack([Draws(k[0], [k[1]], *k[2:]).normal(4000)[0].numpy() for k in keys])
    correlation = np.corrcoef(draws) - np.eye(len(keys))
    assert np.abs(correlation).max() < 5 / np.sqrt(4000)
    # Neighbouring counters must not be shifted copies of each other either.
    a, b = draws[0], draws[7]
    assert not np.isin(a[:100], b).any()


def test_noise_is_standard_normal():
    x = SliceNoise(1, range(4), 0, (1, 64, 64))(0, INITIAL).numpy().ravel()
    assert stats.kstest(x, "norm").pvalue > 1e-3
    assert stats.skew(x) == pytest.approx(0, abs=0.1)
    assert stats.kurtosis(x) == pytest.approx(0, abs=0.2)
    assert abs(np.mean(x[:-1] * x[1:])) < 5 / np.sqrt(x.size)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_draws_the_same_words_and_the_same_normals_to_the_last_place():
    on_cpu, on_cuda = (Draws(3, range(5), 2, 9, KNOWN, device) for device in ("cpu", "cuda"))
    assert torch.equal(on_cpu.words(10_000), on_cuda.words(10_000).cpu())
    torch.testing.assert_close(on_cuda.normal(10_000).cpu(), on_cpu.normal(10_000), rtol=1e-5, atol=1e-6)


def test_the_same_numbers_on_every_machine():
    """Frozen: released volumes can be made again only as long as these do not change."""
    words = Draws(3, [1], 4, 1, PREDICTOR).words(4)[0].tolist()
    assert words == _philox_by_big_integers((0, 1, 4, 1 * 16 + 1), (3, 0))
    drawn = generator(3, 1, 4, 1, PREDICTOR).standard_normal(3, np.float32)
    philox = np.random.Philox(counter=[0, 4, 1, PREDICTOR], key=[3, 1])
    assert np.array_equal(drawn, np.random.Generator(philox).standard_normal(3, np.float32))


@pytest.mark.parametrize("seed", [0, 2**63, 2**64 - 1, -1])
def test_any_integer_is_a_seed(seed):
    assert Draws(seed, [0], 0, 0, INITIAL).normal(8).isfinite().all()
    assert np.isfinite(generator(seed, 0, 0, 0, INITIAL).standard_normal())
