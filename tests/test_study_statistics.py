"""The study's statistics against reference libraries, closed forms and simulations."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import cohen_kappa_score, roc_auc_score, roc_curve

from slicewise.study.statistics import (
    agreement_share,
    auc,
    auc_interval,
    case_interval,
    confusion,
    difference,
    holm,
    readers_at_large,
    roc,
    student_interval,
    weighted_kappa,
    wilson,
)

NAN = math.nan
seeds = st.integers(0, 2**32 - 1)


def limits(interval):
    return interval.lower, interval.upper


@given(seed=seeds, n=st.integers(3, 60))
@settings(max_examples=30, deadline=None)
def test_student_interval_is_students(seed, n):
    values = np.random.default_rng(seed).normal(2, 0.2, n)
    got = student_interval(values, -math.inf, math.inf, 0.9)
    low, high = stats.t.interval(0.9, n - 1, values.mean(), stats.sem(values))
    np.testing.assert_allclose([got.value, *limits(got)], [values.mean(), low, high], rtol=1e-12)


def test_student_interval_keeps_to_the_scale_and_leaves_out_what_is_missing():
    got = student_interval(np.array([3, 3, 2, NAN, 3]), 1, 3)
    assert got.value == 2.75
    assert got.upper == 3
    assert got.lower == pytest.approx(2.75 - 3.182446 * 0.25, abs=1e-6)
    assert math.isnan(student_interval(np.array([2.0]), 1, 3).lower)
    assert math.isnan(student_interval(np.array([]), 1, 3).value)


@pytest.mark.parametrize("n", [2, 10, 50])
def test_interval_of_equal_values_covers_the_worst_case(n):
    """Cases are 3 but for a share q, which is 1: all n are 3 with probability (1-q)^n. The limit is the mean at which
    that is 2.5 %."""
    got = student_interval(np.full(n, 3.0), 1, 3)
    share = (3 - got.lower) / 2
    assert stats.binom.pmf(0, n, share) == pytest.approx(0.025)
    assert got.upper == 3


def test_means_that_differ_in_the_last_place_are_equal_and_others_are_not():
    """0.1 + 0.2 is not 0.3 to a computer. Ratings of any scale and number of readers differ by far more."""
    last_place = student_interval(np.array([0.1 + 0.2, 0.3] * 5), 0, 1)
    equal = student_interval(np.full(10, 0.3), 0, 1)
    np.testing.assert_allclose(limits(last_place), limits(equal), atol=1e-12)
    assert equal.lower == 0
    values = np.array([0.3, 0.3001] * 5)
    got = student_interval(values, 0, 1)
    np.testing.assert_allclose(limits(got), stats.t.interval(0.95, 9, values.mean(), stats.sem(values)), rtol=1e-9)


# Real against synthetic ----------------------------------------------------------------------------------------------


@given(seed=seeds, readers=st.integers(1, 4), n=st.integers(3, 30), m=st.integers(3, 30))
@settings(max_examples=30, deadline=None)
def test_difference_is_welchs_t_on_means_of_cases(seed, readers, n, m):
    rng = np.random.default_rng(seed)
    real, synthetic = rng.normal(2.5, 0.3, (readers, n)), rng.normal(2.4, 0.5, (readers, m))
    got = difference(real, synthetic, 0.25, 1, 3)
    r, s = real.mean(axis=0), synthetic.mean(axis=0)
    interval = stats.ttest_ind(s, r, equal_var=False).confidence_interval(0.95)
    np.testing.assert_allclose(limits(got.fixed), interval, rtol=1e-9)
    test = stats.ttest_ind(s + 0.25, r, equal_var=False, alternative="greater")
    assert got.p == pytest.approx(test.pvalue, rel=1e-9)
    assert math.isnan(got.p_at_large) == (readers == 1)


def test_missing_ratings_count_for_their_case_alone():
    rng = np.random.default_rng(1)
    real, synthetic = rng.normal(2.5, 0.3, (3, 12)), rng.normal(2.4, 0.3, (3, 10))
    real[0, 3], synthetic[:, 4], synthetic[1, 2] = NAN, NAN, NAN
    got = difference(real, synthetic, 0.25, 1, 3)
    r, s = np.nanmean(real, axis=0), np.nanmean(np.delete(synthetic, 4, axis=1), axis=0)
    assert got.p == pytest.approx(stats.ttest_ind(s + 0.25, r, equal_var=False, alternative="greater").pvalue)
    whole = difference(np.delete(real, 3, 1), np.delete(synthetic, [2, 4], 1), 0.25, 1, 3)
    assert got.p_at_large == pytest.approx(whole.p_at_large)
    nothing = difference(np.full((2, 3), NAN), synthetic, 0.25, 1, 3)
    assert math.isnan(nothing.p)
    assert math.isnan(nothing.fixed.value)


def test_ratings_without_variance_still_have_an_interval_and_a_p():
    full = np.full((2, 50), 3.0)
    same = difference(full, full, 0.25, 1, 3)
    assert same.fixed.value == 0
    assert -0.25 < same.fixed.lower < 0 < same.fixed.upper < 0.25
    assert 0 < same.p < 0.025
    few = difference(full[:, :12], full[:, :12], 0.25, 1, 3)
    assert 0.025 < few.p < 0.5, "twelve cases show too little"
    # P is the level at which the lower limit touches the margin.
    level = 1 - 2 * few.p
    assert difference(full[:, :12], full[:, :12], 0.25, 1, 3, level).fixed.lower == pytest.approx(-0.25, abs=1e-6)
    assert difference(full, np.full((2, 50), 2.0), 0.25, 1, 3).p == 1.0


def test_readers_at_large_without_shared_cases_is_students_t_over_readers():
    theta = np.random.default_rng(2).normal(-0.1, 0.05, 6)
    got, p = readers_at_large(theta, np.diag(np.full(6, 0.01)), 0.95, null=-0.2)
    low, high = stats.ttest_1samp(theta, 0).confidence_interval(0.95)
    np.testing.assert_allclose(limits(got), [low, high], rtol=1e-9)
    assert p == pytest.approx(stats.ttest_1samp(theta, -0.2, alternative="greater").pvalue)
    # Readers who all say the same are left with the spread of the cases, and no end of degrees of freedom.
    got, _ = readers_at_large(np.full(4, 0.3), np.full((4, 4), 0.04), 0.95)
    np.testing.assert_allclose(limits(got), 0.3 + 0.2 * stats.norm.ppf([0.025, 0.975]), rtol=1e-9)


def simulated(rng, readers, cases, loss, kind_effect=0.1, reader_effect=0.1):
    """Ratings (readers, cases) on 1, 2, 3 of real and synthetic cases: cases differ, readers differ, and readers differ
    in what they think of synthetic cases; synthetic ones are lower by about `loss`."""
    base = rng.normal(0, reader_effect, (readers, 1))

    def rate(mean):
        latent = mean + rng.normal(0, 0.35, (1, cases)) + rng.normal(0, 0.3, (readers, cases))
        return np.clip(np.rint(latent), 1, 3)

    return rate(2.2 + base), rate(2.2 - loss + base + rng.normal(0, kind_effect, (readers, 1)))


def test_intervals_cover_the_truth_as_often_as_they_say():
    """1200 simulated studies of 4 readers and 30 + 30 cases. With readers who do not differ in what they think of
    synthetic cases, both intervals cover; with such readers, only the one for readers at large."""
    rng = np.random.default_rng(3)
    real, synthetic = simulated(np.random.default_rng(4), 2000, 1000, 0.2, 0.0)
    truth = synthetic.mean() - real.mean()
    fixed, large, wide_fixed, wide_large, rejected = 0, 0, 0, 0, 0
    for _ in range(1200):
        same = difference(*simulated(rng, 4, 30, 0.2, 0.0), -truth, 1, 3)
        fixed += same.fixed.lower <= truth <= same.fixed.upper
        large += same.at_large.lower <= truth <= same.at_large.upper
        rejected += same.p < 0.025  # the truth lies on the margin: H0 holds
        differing = difference(*simulated(rng, 4, 30, 0.2, 0.3), 0.25, 1, 3)
        wide_fixed += differing.fixed.lower <= truth <= differing.fixed.upper
        wide_large += differing.at_large.lower <= truth <= differing.at_large.upper
    assert 0.925 <= fixed / 1200 <= 0.975
    assert 0.925 <= large / 1200 <= 0.99
    assert rejected / 1200 <= 0.045
    assert wide_fixed / 1200 < 0.85
    assert 0.92 <= wide_large / 1200 <= 0.99


@given(p=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_holm_is_the_closed_test(p):
    """A hypothesis is rejected where every set that holds it is rejected by Bonferroni: its adjusted P is the largest
    of the sets' P."""
    for i, adjusted in enumerate(holm(p)):
        sets = [c for k in range(1, len(p) + 1) for c in itertools.combinations(range(len(p)), k) if i in c]
        assert adjusted == pytest.approx(max(min(1.0, len(c) * min(p[j] for j in c)) for c in sets))


def test_holm_leaves_out_what_is_missing():
    assert holm([0.01, 0.04])[0] == 0.02
    got = holm([0.01, NAN, 0.04])
    assert got[0] == 0.02
    assert math.isnan(got[1])
    assert got[2] == 0.04


# Agreement -----------------------------------------------------------------------------------------------------------


@given(seed=seeds, weights=st.sampled_from(["linear", "quadratic"]), n=st.integers(5, 80))
@settings(max_examples=40, deadline=None)
def test_kappa_is_scikit_learns(seed, weights, n):
    rng = np.random.default_rng(seed)
    a = rng.integers(1, 4, n)
    b = np.where(rng.random(n) < 0.5, a, rng.integers(1, 4, n))
    a[:3] = [1, 2, 3]
    table = confusion(a.astype(float), b.astype(float), (1, 2, 3))
    assert table.sum() == n
    assert (table.sum(axis=1) == [(a == v).sum() for v in (1, 2, 3)]).all()
    expected = cohen_kappa_score(a, b, weights=weights, labels=[1, 2, 3])
    assert weighted_kappa(table, weights) == pytest.approx(expected, abs=1e-12)
    stacked = weighted_kappa(np.stack([table, table.T]), weights)
    assert stacked.shape == (2,)
    assert stacked == pytest.approx([expected] * 2)
    assert agreement_share(table) == pytest.approx((a == b).mean())


def test_kappa_of_readers_with_known_behaviour():
    """B copies A with probability q and else draws from the same scores: every weighted kappa is q."""
    rng = np.random.default_rng(5)
    a, other = (rng.choice([1.0, 2.0, 3.0], 200_000, p=[0.2, 0.3, 0.5]) for _ in range(2))
    b = np.where(rng.random(len(a)) < 0.7, a, other)
    for weights in ("linear", "quadratic"):
        assert weighted_kappa(confusion(a, b, (1, 2, 3)), weights) == pytest.approx(0.7, abs=0.01)


def test_kappa_where_there_is_none():
    only = confusion(np.full(9, 3.0), np.full(9, 3.0), (1, 2, 3))
    assert math.isnan(weighted_kappa(only))
    assert agreement_share(only) == 1
    empty = confusion(np.array([NAN, 1.0]), np.array([2.0, NAN]), (1, 2, 3))
    assert empty.sum() == 0
    assert math.isnan(weighted_kappa(empty))
    assert math.isnan(agreement_share(empty))


def test_bootstrap_of_a_mean_is_near_students_interval():
    values = np.random.default_rng(6).normal(2, 0.5, 200)
    got = case_interval(lambda cases: float(values[cases].mean()), 200)
    assert got.value == values.mean()
    np.testing.assert_allclose(limits(got), stats.t.interval(0.95, 199, values.mean(), stats.sem(values)), atol=0.012)
    assert got == case_interval(lambda cases: float(values[cases].mean()), 200), "the same each time"
    assert math.isnan(case_interval(lambda cases: NAN, 10).lower)
    assert math.isnan(case_interval(lambda c: 1.0, 1).lower)


# Real or synthetic? --------------------------------------------------------------------------------------------------


@given(seed=seeds, readers=st.integers(1, 4), m=st.integers(2, 25), n=st.integers(2, 25))
@settings(max_examples=30, deadline=None)
def test_auc_is_scikit_learns_and_its_covariance_delongs(seed, readers, m, n):
    rng = np.random.default_rng(seed)
    real, synthetic = rng.integers(-3, 3, (readers, m)), rng.integers(-2, 4, (readers, n))
    areas, covariance = auc(real, synthetic)
    truth = [0] * m + [1] * n
    for r in range(readers):
        assert areas[r] == pytest.approx(roc_auc_score(truth, [*real[r], *synthetic[r]]))

    def psi(x, y):
        return 1.0 if y > x else 0.5 if y == x else 0.0

    # DeLong, DeLong and Clarke-Pearson 1988, equations 4 to 6, term by term.
    v10 = [[sum(psi(x, y) for x in real[r]) / m for y in synthetic[r]] for r in range(readers)]
    v01 = [[sum(psi(x, y) for y in synthetic[r]) / n for x in real[r]] for r in range(readers)]
    for a, b in itertools.product(range(readers), repeat=2):
        s10 = sum((p - areas[a]) * (q - areas[b]) for p, q in zip(v10[a], v10[b])) / (n - 1)
        s01 = sum((p - areas[a]) * (q - areas[b]) for p, q in zip(v01[a], v01[b])) / (m - 1)
        assert covariance[a, b] == pytest.approx(s10 / n + s01 / m, abs=1e-12)


def test_auc_covariance_is_the_spread_of_repeated_studies():
    """Three readers see the same cases 2000 times: the covariance of their areas is the mean of the estimates."""
    rng = np.random.default_rng(7)
    areas, estimates = [], []
    for _ in range(2000):
        seen = [rng.normal(mean, 1, (1, 25)) + rng.normal(0, 1, (3, 25)) for mean in (0.0, 1.0)]
        area, covariance = auc(*seen)
        areas.append(area)
        estimates.append(covariance)
    np.testing.assert_allclose(np.mean(estimates, axis=0), np.cov(np.array(areas).T), rtol=0.12)
    # Two normals of variance 2, one apart: Phi(1 / 2).
    assert np.mean(areas) == pytest.approx(stats.norm.cdf(0.5), abs=0.005)


def test_interval_of_an_area():
    got = auc_interval(0.8, 0.05**2, 30, 30)
    logit, half = math.log(4), 1.959964 * 0.05 / 0.16
    np.testing.assert_allclose(
        limits(got), [1 / (1 + math.exp(half - logit)), 1 / (1 + math.exp(-half - logit))], rtol=1e-6
    )
    # At the ends: the limit is the area from which the estimate lies 1.96 standard errors away (Newcombe 2006).
    for area, other in ((1.0, 0), (0.0, 1)):
        few, many = (auc_interval(area, 0.0, n, n) for n in (10, 100))
        assert limits(few)[1 - other] == area
        assert 0 < limits(few)[other] < 1
        assert abs(limits(many)[other] - area) < abs(limits(few)[other] - area)
        x = limits(few)[other]
        spread = x * (1 - x) / 100 * (1 + 9 * ((1 - x) / (2 - x) + x / (1 + x)))
        assert abs(area - x) == pytest.approx(1.959964 * math.sqrt(spread), rel=1e-6)
    middle = auc_interval(0.5, 0.0, 10, 10)
    assert middle.lower < 0.5 < middle.upper
    assert middle.lower == pytest.approx(1 - middle.upper)
    assert math.isnan(auc_interval(NAN, NAN, 0, 0).value)
    assert np.isnan(auc(np.zeros((2, 1)), np.zeros((2, 5)))[0]).all()


def test_roc_is_scikit_learns():
    rng = np.random.default_rng(8)
    real, synthetic = rng.integers(-3, 3, 40), rng.integers(-2, 4, 30)
    x, y, _ = roc_curve([0] * 40 + [1] * 30, [*real, *synthetic], drop_intermediate=False)
    ours = roc(real, synthetic, range(-3, 4))
    assert ours[0] == (0, 0)
    assert ours[-1] == (1, 1)
    assert {(round(a, 12), round(b, 12)) for a, b in zip(x, y)} == {(round(a, 12), round(b, 12)) for a, b in ours}


@given(n=st.integers(1, 200), share=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_wilson_is_scipys(n, share):
    k = round(n * share)
    got = wilson(k, n, 0.9)
    expected = stats.binomtest(k, n).proportion_ci(0.9, method="wilson")
    np.testing.assert_allclose([got.value, *limits(got)], [k / n, expected.low, expected.high], atol=1e-12)
    assert math.isnan(wilson(0, 0).value)
