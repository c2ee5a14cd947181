"""MMD, KID, precision, recall, density, coverage, floors and intervals, against MONAI, loops and closed forms."""

import numpy as np
import pytest
import torch
from monai.metrics import MMDMetric

from slicewise.metrics.distribution import sample_score
from slicewise.metrics.estimate import bootstrap, difference_interval, estimate, mean_interval, parts
from slicewise.metrics.frechet import frechet_of_features, frechet_score, slices_estimate
from slicewise.metrics.kernel import batch_mmd2, kid_score, mmd2, polynomial_kernel
from slicewise.metrics.manifold import MEASURES, manifold_estimates, neighbours, point_scores
from slicewise.metrics.manifold import distances as between


def by_loops(x: np.ndarray, y: np.ndarray, kernel, unbiased: bool) -> float:
    """MMD² as the definition reads, term by term."""

    def within(a):
        pairs = [kernel(p, q) for i, p in enumerate(a) for j, q in enumerate(a) if not unbiased or i != j]
        return np.mean(pairs)

    return float(within(x) + within(y) - 2 * np.mean([kernel(p, q) for p in x for q in y]))


def test_batch_mmd_is_the_definition_and_monais() -> None:
    rng = np.random.default_rng(0)
    for n, shape in ((4, (5, 6, 7)), (3, (600_000,))):
        x, y = (rng.uniform(-1, 1, (n, *shape)).astype(np.float32) for _ in range(2))
        biased, unbiased = batch_mmd2(x, y)
        flat = [v.reshape(n, -1).astype(np.float64) for v in (x, y)]
        assert biased == pytest.approx(by_loops(*flat, np.dot, unbiased=False), rel=1e-9)
        assert unbiased == pytest.approx(by_loops(*flat, np.dot, unbiased=True), rel=1e-9, abs=1e-6)
        monai = MMDMetric()(torch.from_numpy(flat[0])[:, None], torch.from_numpy(flat[1])[:, None])
        assert unbiased == pytest.approx(float(monai), rel=1e-9, abs=1e-6)


def test_biased_form_rewards_collapse_and_the_unbiased_one_does_not() -> None:
    """Its expectation holds (tr S_r + tr S_s)/B: a generator that always makes the mean beats a perfect one."""
    rng = np.random.default_rng(1)
    perfect, collapsed = [], []
    for _ in range(200):
        real, honest = rng.standard_normal((2, 4, 50))
        perfect.append(batch_mmd2(real, honest))
        collapsed.append(batch_mmd2(real, np.zeros((4, 50))))
    (biased, unbiased), (biased_zero, unbiased_zero) = np.mean(perfect, axis=0), np.mean(collapsed, axis=0)
    assert biased == pytest.approx((50 + 50) / 4, rel=0.05)
    assert biased_zero == pytest.approx(50 / 4, rel=0.05)
    assert abs(unbiased) < 1
    assert abs(unbiased_zero) < 1


def test_kid_is_the_unbiased_definition_and_stays_unbiased_when_vectors_repeat() -> None:
    rng = np.random.default_rng(2)
    pool = rng.standard_normal((14, 5))
    x, y = pool[:8], pool[8:]

    def kernel(p, q):
        return (p @ q / 5 + 1) ** 3

    score = kid_score(pool)
    expected = by_loops(x, y, kernel, unbiased=True)
    assert score(np.arange(8), np.arange(8, 14)) == pytest.approx(expected, rel=1e-10)
    kernels = [polynomial_kernel(a, b) for a, b in ((x, x), (y, y), (x, y))]
    assert mmd2(*kernels, unbiased=True) == pytest.approx(expected, rel=1e-10)
    draws = [score(rng.integers(0, 8, 8), rng.integers(8, 14, 6)) for _ in range(6000)]
    assert np.mean(draws) == pytest.approx(expected, abs=5 * np.std(draws) / np.sqrt(6000))


def manifold_by_loops(real: np.ndarray, synth: np.ndarray, k: int) -> dict[str, float]:
    def reach(points, p):
        return np.sort([np.linalg.norm(points[p] - q) for q in points])[k]

    real_reach, synth_reach = ([reach(s, p) for p in range(len(s))] for s in (real, synth))
    gap = [[np.linalg.norm(r - s) for s in synth] for r in real]
    n, m = len(real), len(synth)
    return {
        "precision": np.mean([any(gap[i][j] <= real_reach[i] for i in range(n)) for j in range(m)]),
        "recall": np.mean([any(gap[i][j] <= synth_reach[j] for j in range(m)) for i in range(n)]),
        "density": np.mean([sum(gap[i][j] <= real_reach[i] for i in range(n)) / k for j in range(m)]),
        "coverage": np.mean([any(gap[i][j] <= real_reach[i] for j in range(m)) for i in range(n)]),
    }


def test_manifold_measures_are_their_definitions() -> None:
    rng = np.random.default_rng(3)
    for shift in (0.0, 0.7, 2.0):
        real, synth = rng.standard_normal((24, 3)) + 1e4, rng.standard_normal((17, 3)) + 1e4 + shift
        pool = between(np.concatenate([real, synth]), np.concatenate([real, synth]))
        expected = manifold_by_loops(real, synth, 3)
        found = point_scores(pool, np.arange(24), 24 + np.arange(17), 3)
        for name in MEASURES:
            assert found[name].mean() == pytest.approx(expected[name]), name
        estimates = manifold_estimates(real, synth, 3)
        assert estimates["recall"].value == pytest.approx(expected["recall"])
        assert all(e.low <= e.value <= e.high and np.isfinite(e.floor) for e in estimates.values())
    assert neighbours(50, 50) == 5
    assert neighbours(8, 50) == 3
    assert neighbours(4, 2) == 1


def test_a_half_of_too_few_points_gives_no_floor() -> None:
    """Of two persons one has four points, of which none has a fifth neighbour."""
    rng = np.random.default_rng(5)
    real, synth = rng.standard_normal((12, 2)), rng.standard_normal((12, 2))
    found = manifold_estimates(real, synth, 5, patients=([0] * 8 + [1] * 4, list(range(12))))
    assert all(np.isnan(e.floor) for e in found.values())
    found = manifold_estimates(real, synth, 5, patients=([0] * 6 + [1] * 6, list(range(12))))
    assert all(np.isfinite(e.floor) for e in found.values())


def test_manifold_measures_tell_fidelity_from_diversity() -> None:
    rng = np.random.default_rng(4)
    real = rng.standard_normal((60, 2))
    collapsed = manifold_estimates(real, 0.02 * rng.standard_normal((60, 2)))
    wild = manifold_estimates(real, 8 * rng.standard_normal((60, 2)))
    assert collapsed["precision"].value == 1
    assert collapsed["recall"].value < 0.1
    assert collapsed["coverage"].value < 0.3
    assert wild["precision"].value < 0.5
    assert wild["recall"].value > 0.9
    for name in MEASURES:
        assert collapsed[name].floor > 0.6, "two halves of one set lie in each other's manifold"


def test_estimate_of_one_distribution_is_its_floor_and_of_another_is_above() -> None:
    rng = np.random.default_rng(5)
    real, same, other = rng.standard_normal((3, 40, 6))
    honest = estimate(frechet_score(np.concatenate([real, same])), 40, 40, rounds=60)
    away = estimate(frechet_score(np.concatenate([real, other + 1])), 40, 40, rounds=60)
    assert honest.floor_n == 20
    assert honest.same_n == pytest.approx(honest.floor, abs=4 * honest.floor_sd)
    assert away.same_n > away.floor + 4 * away.floor_sd
    assert away.low > honest.high
    assert away.low < away.value < away.high
    assert away.value == pytest.approx(frechet_of_features(real, other + 1), rel=1e-9)
    again = estimate(frechet_score(np.concatenate([real, other + 1])), 40, 40, rounds=60)
    assert again == away, "the same seed gives the same numbers"
    few = estimate(frechet_score(rng.standard_normal((5, 3))), 3, 2, rounds=20)
    assert few.floor_n == 1
    assert np.isnan(few.floor)
    assert np.isfinite(few.value)


def test_second_scans_of_patients_make_nothing_surer() -> None:
    """Sets in which every scan is there twice: with patients known, interval and floor are those of the sets without;
    taken for other patients, they are too narrow and too low."""
    rng = np.random.default_rng(8)
    once = [rng.normal(0, 1, 24), rng.normal(0.3, 1, 20)]
    twice = [np.repeat(side, 2) for side in once]
    patients = np.arange(24).repeat(2).tolist(), np.arange(20).repeat(2).tolist()

    def found(sides, whose):
        return estimate(sample_score([v[None] for s in sides for v in s]), *map(len, sides), patients=whose)

    alone, known, unknown = found(once, None), found(twice, patients), found(twice, None)
    assert (known.value, known.low, known.high) == pytest.approx((alone.value, alone.low, alone.high), abs=1e-12)
    assert (known.floor, known.same_n) == pytest.approx((alone.floor, alone.same_n), abs=1e-12)
    assert (known.floor_n, alone.floor_n) == (24, 12)
    assert unknown.high - unknown.low < 0.9 * (known.high - known.low)
    assert unknown.floor < 0.9 * known.floor
    columns = [[v[None] for v in side] for side in (*once, *twice)]
    seeds = [np.random.default_rng(1) for _ in range(4)]
    assert difference_interval(*columns[2:], seeds[0], patients=patients) == pytest.approx(
        difference_interval(*columns[:2], seeds[1])
    )
    assert mean_interval(twice[0], seeds[2], patients=patients[0]) == pytest.approx(mean_interval(once[0], seeds[3]))
    everyone = [0] * 48, [0] * 40
    single = found(twice, everyone)
    assert single.value == known.value
    assert np.isnan([single.low, single.high, single.floor, single.same_n]).all()
    assert np.isnan(mean_interval(twice[0], seeds[0], patients=everyone[0])).all()


def test_parts_share_no_patient() -> None:
    rng = np.random.default_rng(9)
    for round_ in range(200):
        cuts = 29 if round_ % 10 == 0 else rng.integers(1, 20)  # of 29 cuts every volume is another patient's
        groups = np.split(np.arange(30), np.sort(rng.choice(np.arange(1, 30), cuts, replace=False)))
        size = int(rng.integers(2, 16))
        whose = np.concatenate([np.full(len(g), k) for k, g in enumerate(groups)])
        a, b = parts(rng, groups, size, 2)
        assert max(len(a), len(b)) <= size
        assert not {*whose[a]} & {*whose[b]}
        assert len({*a, *b}) == len(a) + len(b) == np.isin(whose, [*whose[a], *whose[b]]).sum(), "patients come whole"
        if len(groups) == 30:
            assert len(a) == len(b) == size


def test_streamed_slices_draw_patients_too() -> None:
    rng = np.random.default_rng(10)
    once = [[rng.standard_normal((40, 3)) + rng.normal(k, 1, 3) for _ in range(12)] for k in (0, 0.2)]
    twice = [[v for v in side for _ in range(2)] for side in once]
    patients = np.arange(12).repeat(2).tolist(), np.arange(12).repeat(2).tolist()

    def found(sides, whose):
        sizes = len(sides[0]), len(sides[1])
        return slices_estimate(
            lambda: iter(sides[0]), lambda: iter(sides[1]), sizes, 3, splits=20, rounds=300, patients=whose
        ).estimate

    alone, known, unknown = found(once, None), found(twice, patients), found(twice, None)
    for name in ("value", "low", "high", "floor", "same_n"):
        assert getattr(known, name) == pytest.approx(getattr(alone, name), rel=0.02, abs=0.01), name
    assert unknown.high - unknown.low < 0.85 * (known.high - known.low)
    assert unknown.floor < 0.85 * known.floor
    assert np.isnan(found(twice, ([0] * 24, patients[1])).low)


def test_intervals_have_their_level() -> None:
    """Of 95 % intervals for a mean, and for a difference of means over volumes, about 95 % hold the truth."""
    rng = np.random.default_rng(6)
    held = np.zeros(2)
    for _ in range(120):
        low, high = mean_interval(rng.normal(3, 2, 40), rng, rounds=200)
        real = [rng.normal(1, 1) + rng.standard_normal(7) for _ in range(30)]
        synth = [rng.normal(2, 1) + rng.standard_normal(9) for _ in range(30)]
        value, first, last = difference_interval(real, synth, rng, rounds=200)
        assert value == pytest.approx(np.concatenate(synth).mean() - np.concatenate(real).mean())
        held += [low < 3 < high, first < 1 < last]
    assert (held > 0.86 * 120).all()
    assert (held < 120).any()
    draws = iter(rng.normal(10, 1, 400))
    low, high = bootstrap(lambda: next(draws), 5.0, rounds=400)
    assert low == pytest.approx(5 - 1.96, abs=0.35)
    assert high == pytest.approx(5 + 1.96, abs=0.35)


def test_a_point_on_the_edge_of_a_neighbourhood_lies_in_it() -> None:
    """Real points at 0 and 1, each the other's nearest: their balls of radius 1 hold -1 and 2, and nothing further."""
    points = np.array([0.0, 1.0, -1.0, 2.0, 2.5, 9.0])
    apart = np.abs(points[:, None] - points)
    scores = point_scores(apart, np.arange(2), np.arange(2, 4), 1)
    assert scores["precision"].tolist() == [1, 1]
    assert scores["density"].tolist() == [1, 1]
    assert scores["coverage"].tolist() == [1, 1]
    assert point_scores(apart, np.arange(2), np.arange(4, 6), 1)["coverage"].tolist() == [0, 0]
