"""The training objective: weights, roles of slices in a window, and the learned balance over noise levels."""

import numpy as np
import pytest
import torch

from slicewise.diffusion.loss import SigmaUncertainty, deviation_loss, weighted_errors
from slicewise.diffusion.settings import SigmaDistribution, WindowTask
from slicewise.random import TRAIN_ORDER, Draws

DISTRIBUTION = SigmaDistribution(sigma_min=0.002, sigma_max=80.0)


def _draws(task: WindowTask, n: int = 4000, slices: int = 3):
    sigma, wanted = task.draw(Draws(0, range(n), 0, 0, TRAIN_ORDER), slices, DISTRIBUTION)
    return sigma.numpy(), wanted.numpy()


def test_weighted_error_is_one_for_a_network_that_says_nothing():
    """D = 0 at high noise errs by the data's power sigma_data^2, which the weight brings to one."""
    rng = torch.Generator().manual_seed(0)
    clean = 0.5 * torch.randn(2, 3, 64, 64, generator=rng)
    sigma = torch.full((2, 3), 500.0, dtype=torch.float64)
    errors = weighted_errors(torch.zeros_like(clean), clean, sigma, 0.5)
    assert errors.dtype == torch.float32
    torch.testing.assert_close(errors, torch.ones(2, 3), rtol=0.05, atol=0)


def test_weighted_error_is_the_formula_slice_by_slice():
    clean, denoised = torch.rand(1, 2, 4, 4), torch.rand(1, 2, 4, 4)
    sigma = torch.tensor([[0.1, 3.0]], dtype=torch.float64)
    found = weighted_errors(denoised, clean, sigma, 0.5)
    for k, s in enumerate((0.1, 3.0)):
        weight = (s**2 + 0.25) / (s * 0.5) ** 2
        assert float(found[0, k]) == pytest.approx(weight * float(((denoised - clean)[0, k] ** 2).mean()), rel=1e-5)


def test_a_voxel_counts_more_where_a_smaller_error_is_expected():
    """Weight 1/d^2 between c_out's and `most` times it; constant to the gradient."""
    clean, denoised = torch.rand(1, 1, 1, 4), torch.rand(1, 1, 1, 4)
    sigma = torch.tensor([[0.3]], dtype=torch.float64)
    c_out = 0.3 * 0.5 / np.hypot(0.3, 0.5)
    deviation = torch.tensor([[[[2.0, 1.0, 0.25, 0.01]]]]) * c_out
    deviation.requires_grad_()
    found = weighted_errors(denoised, clean, sigma, 0.5, deviation, 32.0)
    expected = (np.array([1.0, 1.0, 16.0, 32.0]) * ((denoised - clean).numpy().ravel() / c_out) ** 2).mean()
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert not found.requires_grad


def test_weighting_by_what_the_network_sees_leaves_the_best_answer_the_mean():
    """Two kinds of voxel, told apart in the input: the least weighted error is at each kind's own mean."""
    rng = torch.Generator().manual_seed(0)
    first_kind = 0.2 + 0.01 * torch.randn(20_000, generator=rng)
    clean = torch.stack([first_kind, -0.4 + 0.3 * torch.rand(20_000, generator=rng)]).view(1, 1, 2, -1)
    deviation = torch.tensor([0.01, 0.09]).view(1, 1, 2, 1).expand_as(clean)
    answer = torch.zeros(1, 1, 2, 1, requires_grad=True)
    sigma = torch.tensor([[0.5]], dtype=torch.float64)

    def slope(at):
        errors = weighted_errors(at.expand_as(clean), clean, sigma, 0.5, deviation)
        return torch.autograd.grad(errors.sum(), answer)[0]

    for _ in range(2):  # the error is quadratic: Newton steps from its slopes at the answer and one beyond
        first, second = slope(answer), slope(answer + 1)
        answer = (answer - first / (second - first)).detach().requires_grad_()
    torch.testing.assert_close(answer.detach(), clean.mean(dim=3, keepdim=True), rtol=0, atol=1e-5)


def test_deviation_loss_is_least_at_the_errors_own_deviation():
    """For Laplace errors the least is at their standard deviation; for any, at sqrt(2) times the mean error."""
    rng = np.random.default_rng(0)
    for errors in (rng.laplace(0, 0.03, 200_000), rng.normal(0, 0.03, 200_000)):
        clean = torch.zeros(1, 1, 1, len(errors))
        denoised = torch.from_numpy(errors).float().view_as(clean).requires_grad_()
        tries = np.exp(np.linspace(np.log(0.01), np.log(0.1), 231))
        losses = [float(deviation_loss(denoised, clean, torch.full_like(clean, d))) for d in tries]
        assert tries[np.argmin(losses)] == pytest.approx(np.sqrt(2) * np.abs(errors).mean(), rel=0.02)
        assert not deviation_loss(denoised, clean, torch.ones_like(clean)).requires_grad


def test_joint_windows_share_one_level_and_want_every_slice():
    sigma, wanted = _draws(WindowTask(joint=True), 200)
    assert wanted.all()
    assert (sigma == sigma[:, :1]).all()
    assert sigma.dtype == np.float64
    assert len(np.unique(sigma[:, 0])) > 150


def test_roles_come_as_often_as_stated():
    task = WindowTask(known_sigma=0.05, missing=0.1, last_wanted=0.6)
    sigma, wanted = _draws(task, 40_000)
    # 0.6 the last slice (downward); a third of the rest the first (upward), a third any one (gaps), a third a subset:
    # one is forced, and each other is in it half of the time.
    forced, pair, triple = 1 / 3 / 4, 2 / 3 / 4, 1 / 4
    one = 0.4 / 3 * (1 / 3 + forced)
    expected = {
        (0, 0, 1): 0.6 + one, (1, 0, 0): 0.4 / 3 + one, (0, 1, 0): one,
        (1, 1, 0): 0.4 / 3 * pair, (1, 0, 1): 0.4 / 3 * pair, (0, 1, 1): 0.4 / 3 * pair, (1, 1, 1): 0.4 / 3 * triple,
    }  # fmt: skip
    assert sum(expected.values()) == pytest.approx(1), "every window wants a slice"
    for pattern, share in expected.items():
        found = (wanted == np.array(pattern, bool)).all(axis=1).mean()
        assert found == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / len(sigma))), pattern
    context = sigma[~wanted]
    missing = context == DISTRIBUTION.sigma_max
    assert missing.mean() == pytest.approx(0.1, abs=0.006)
    known = context[~missing]
    assert known.min() >= 0.05 / 15
    assert known.max() <= 0.05
    # log-uniform: the median lies at the geometric mean of the ends
    assert np.median(np.log(known)) == pytest.approx(np.log(0.05**2 / 15) / 2, abs=0.1)


def test_a_whole_head_is_wanted_but_for_a_run_of_known_slices_or_is_known_but_for_a_gap():
    sigma, wanted = WindowTask(known_sigma=0.05, seeded=0.3).draw_whole(
        Draws(0, range(4000), 0, 0, TRAIN_ORDER), 40, DISTRIBUTION
    )
    sigma, wanted = sigma.numpy(), wanted.numpy()
    known = ~wanted
    run, gap = known[known.sum(axis=1) < 20], wanted[known.sum(axis=1) > 20]
    for some in (run[run.any(axis=1)], gap):
        assert len(some) / len(sigma) == pytest.approx(0.15, abs=4 * np.sqrt(0.13 / len(sigma)))
        assert set(some.sum(axis=1)) == {1, 2, 3, 4, 5}, "up to an eighth"
        assert all((np.diff(np.flatnonzero(each)) == 1).all() for each in some), "a run"
    for levels, w in zip(sigma, wanted):
        assert len(np.unique(levels[w])) == 1, "all that are wanted at one level"
    assert sigma[known].min() >= 0.05 / 15
    assert sigma[known].max() <= 0.05


def test_wanted_slices_of_a_window_share_their_level():
    sigma, wanted = _draws(WindowTask(last_wanted=0.0), 500)
    for levels, w in zip(sigma, wanted):
        assert len(np.unique(levels[w])) == 1


def test_learned_uncertainty_settles_where_it_balances():
    """L / e^u + u is least at e^u = L: after fitting, every level's share of the loss is one."""
    torch.manual_seed(0)
    balance = SigmaUncertainty()
    levels = torch.tensor([[-1.0, 0.0, 1.0]])
    errors = torch.tensor([[3.0, 0.5, 0.02]])
    wanted = torch.ones(1, 3, dtype=torch.bool)
    optimizer = torch.optim.Adam(balance.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        balance(errors, levels, wanted).sum().backward()
        optimizer.step()
    with torch.no_grad():
        # With errors = 0 the loss is u alone.
        u = balance(torch.zeros(1, 3), levels, wanted)
        torch.testing.assert_close(u.exp(), errors, rtol=0.03, atol=0)
        torch.testing.assert_close(balance(errors, levels, wanted), 1 + errors.log(), rtol=0.03, atol=0.02)


def test_uncertainty_starts_at_one_and_leaves_out_what_is_not_wanted():
    errors = torch.tensor([[2.0, 7.0]], requires_grad=True)
    found = SigmaUncertainty()(errors, torch.zeros(1, 2), torch.tensor([[True, False]]))
    assert found.tolist() == [[2.0, 0.0]]
    found.sum().backward()
    assert errors.grad is not None
    assert errors.grad.tolist() == [[1.0, 0.0]]
