"""The audit: nearest training volumes are found, a copying generator fails, an honest one passes."""

from itertools import pairwise

import numpy as np
import pytest

from slicewise.hu import ICNET, to_unit
from slicewise.metrics.memorisation import (
    LEVEL,
    MEASURES,
    Nearest,
    judge,
    query_slices,
    rank_p,
    slice_pictures,
    volume_picture,
)


def head(rng: np.random.Generator, size: int = 64) -> np.ndarray:
    """int16 HU (12, size, size): a skull of its own shape around smooth anatomy of its own, with scan noise."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    a, b = rng.uniform(0.7, 0.9, 2)
    radius = np.sqrt((x / a) ** 2 + (y / b) ** 2)[None] * np.linspace(1.3, 1.0, 12)[:, None, None]
    waves = rng.normal(0, 1, (6, 4))
    folds = sum(w[0] * np.sin(6 * w[1] * x + 6 * w[2] * y + 3 * w[3]) for w in waves)
    hu = np.select([radius < 0.9, radius < 1.0], [35 + 8 * folds, 900.0], -1000.0)
    return np.clip(hu + rng.normal(0, 4, hu.shape), -1024, 3071).astype(np.int16)


def audit(synth: list[np.ndarray], real: list[np.ndarray], train: list[np.ndarray], name: str):
    of = {}
    for key, volumes in (("synth", synth), ("real", real)):
        if name.startswith("slices"):
            rows = [slice_pictures(v)[query_slices(len(v))] for v in volumes]
        else:
            rows = [volume_picture(v) for v in volumes]
        nearest = Nearest(np.concatenate(rows))
        for i, v in enumerate(train):
            nearest.add(slice_pictures(v) if name.startswith("slices") else volume_picture(v), i, i)
        of[key] = nearest, np.repeat(np.arange(len(volumes)), [len(r) for r in rows])
    return judge(name, *of["synth"], *of["real"]), of["synth"][0]


@pytest.mark.parametrize("name", ["slices, correlation", "volumes, correlation"])
def test_a_generator_that_returns_training_volumes_with_noise_fails_and_an_honest_one_passes(name: str) -> None:
    rng = np.random.default_rng(0)
    train, real, honest = ([head(rng) for _ in range(n)] for n in (16, 8, 8))
    copied = rng.permutation(16)[:8]
    copies = [np.clip(train[i] + rng.normal(0, 8, train[i].shape), -1024, 3071).astype(np.int16) for i in copied]
    caught, nearest = audit(copies, real, train, name)
    assert not caught.passed
    assert caught.below == 8
    assert len(caught.copies) == 8
    assert caught.p < LEVEL / len(MEASURES)
    assert caught.distance_ratio < 0.6
    assert (nearest.volume.reshape(8, -1) == copied[:, None]).all(), "every copy is traced to its original"
    if name.startswith("slices"):
        assert (nearest.row.reshape(8, -1) == query_slices(12)).all()
    clean, _ = audit(honest, real, train, name)
    assert clean.passed
    assert not clean.copies
    assert 0.8 < clean.distance_ratio < 1.25
    one, _ = audit([*honest[:7], copies[0]], real, train, name)
    assert not one.passed, "one copy among honest volumes is enough"
    assert one.copies == (7,), "one copy among honest volumes is enough"


def test_a_second_scan_of_the_copied_patient_does_not_hide_the_copy() -> None:
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((6, 40)).astype(np.float32)
    nearest = Nearest(rows[0] + 0.01 * rng.standard_normal((1, 40)).astype(np.float32))
    for volume, patient in enumerate([0, 1, 0, 2, 3, 0]):
        row = rows[patient] + 0.02 * rng.standard_normal(40)
        nearest.add(row[None].astype(np.float32), volume, patient)
    assert nearest.ratio[0] < 0.1
    assert nearest.volume[0] in (0, 2, 5)


def test_nearest_and_second_nearest_are_those_of_a_full_search() -> None:
    rng = np.random.default_rng(2)
    queries, patients = rng.standard_normal((30, 5)).astype(np.float32), rng.integers(0, 4, 12)
    volumes = [rng.standard_normal((n, 5)).astype(np.float32) for n in rng.integers(1, 6, 12)]
    found = Nearest(queries)
    for i, (rows, patient) in enumerate(zip(volumes, patients)):
        found.add(rows, i, int(patient))
    for q, query in enumerate(queries):
        gaps = [np.linalg.norm(rows - query, axis=1) for rows in volumes]
        best = int(np.argmin([g.min() for g in gaps]))
        assert found.first[q] == pytest.approx(gaps[best].min(), rel=1e-5)
        assert found.volume[q] == best
        assert found.row[q] == gaps[best].argmin()
        others = [g.min() for g, p in zip(gaps, patients) if p != patients[best]]
        assert found.second[q] == pytest.approx(min(others), rel=1e-5)


def test_distance_of_pictures_is_their_correlation() -> None:
    rng = np.random.default_rng(3)
    a, b = slice_pictures(head(rng, 96)), slice_pictures(head(rng, 96))
    assert a.shape == (12, 48 * 48)
    correlation = [np.corrcoef(p, q)[0, 1] for p, q in zip(a, b)]
    np.testing.assert_allclose(np.linalg.norm(a - b, axis=1), np.sqrt(2 - 2 * np.array(correlation)), atol=1e-5)
    hu = head(rng, 96)
    block = to_unit(hu, ICNET).reshape(12, 48, 2, 48, 2).mean(axis=(2, 4)).reshape(12, -1)
    block -= block.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(slice_pictures(hu), block / np.linalg.norm(block, axis=1, keepdims=True), atol=1e-5)
    assert volume_picture(hu).shape == (1, 16 * 32 * 32)
    assert np.linalg.norm(volume_picture(hu)) == pytest.approx(1)
    assert (slice_pictures(np.full((2, 50, 70), -1000, np.int16)) == 0).all(), "nothing to compare, and no NaN"
    small = volume_picture(hu[:5, :20, :20])
    assert np.isfinite(small).all()
    assert small.shape == (1, 16 * 32 * 32)


def test_rank_test_counts_orderings() -> None:
    """Of all orders of 3 synthetic and 2 real values: k smallest all synthetic."""
    from itertools import permutations

    orders = set(permutations("sssrr"))
    for k in range(4):
        share = sum(order[:k] == ("s",) * k for order in orders) / len(orders)
        assert rank_p(k, 3, 2) == pytest.approx(share)
    assert all(a > b for a, b in pairwise(rank_p(k, 50, 50) for k in range(9)))


def test_volumes_are_looked_for_by_three_slices_of_48_pixels() -> None:
    assert query_slices(40) == [10, 20, 30]
    assert query_slices(2) == [0, 1]
    pictures = slice_pictures(np.random.default_rng(0).integers(-150, 150, (3, 24, 24)).astype(np.int16))
    assert pictures.shape == (3, 48 * 48)


def test_a_picture_of_fewer_pixels_repeats_them() -> None:
    """24 x 24 pixels on 48 x 48: each four times, of zero mean and unit norm."""
    hu = np.random.default_rng(1).integers(-150, 150, (2, 24, 24)).astype(np.int16)
    wide = hu.repeat(2, axis=1).repeat(2, axis=2).reshape(2, -1) / 150.0
    wide = wide - wide.mean(axis=1, keepdims=True)
    expected = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    np.testing.assert_allclose(slice_pictures(hu), expected, atol=1e-6)
