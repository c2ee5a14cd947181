"""Averages of the weights: the recursion, power profiles, and any width from two after training (post-hoc EMA)."""

import numpy as np
import pytest
import torch

from slicewise.training import ema
from slicewise.training.ema import EMA


def test_ema_is_the_recursion_and_swaps_back():
    p, average = [torch.tensor([1.0])], 1.0
    kept = EMA(p, [ema.exponential(6.0)])
    for step in range(200):
        p[0][0] = float(step)
        kept.update(p, step, step + 1)
        d = min(0.5 ** (1 / 6), (step / (step + 1)) ** 9)
        average = d * average + (1 - d) * step
    assert float(kept.averages[0][0]) == pytest.approx(average, rel=1e-5)
    ema.swap(p, kept.averages[0])
    assert float(p[0]) == pytest.approx(average, rel=1e-5)
    assert float(kept.averages[0][0]) == 199
    ema.swap(p, kept.averages[0])
    assert float(p[0]) == 199


@pytest.mark.parametrize("width", [0.02, 0.1, 0.25])
def test_a_power_average_weighs_time_as_its_profile_does(width):
    """Of weights that are the time itself, it is their mean under t^gamma, and its width is what was asked for."""
    p = [torch.zeros(1, dtype=torch.float64)]
    first, second = EMA(p, [ema.power(width)]), EMA(p, [ema.power(width)])
    for step in range(1, 20_001):
        p[0][0] = step
        first.update(p, step - 1, step)
        second.update([p[0] ** 2], step - 1, step)
    mean, square = (float(e.averages[0][0]) for e in (first, second))
    gamma = ema.exponent(width)
    assert mean / 20_000 == pytest.approx((gamma + 1) / (gamma + 2), rel=1e-3)
    assert np.sqrt(square - mean**2) / 20_000 == pytest.approx(width, rel=1e-2)


@pytest.mark.parametrize("width", [0.03, 0.07, 0.15, 0.25])
def test_an_average_of_any_width_is_made_of_two_after_training(width):
    """Against the average of that width kept all along, over weights that wander as training's do."""
    rng = np.random.default_rng(0)
    path = np.cumsum(rng.standard_normal((4000, 50)), axis=0) / 60 + np.sin(np.arange(4000)[:, None] / 900)
    p = [torch.zeros(50, dtype=torch.float64)]
    kept, wanted = EMA(p, [ema.power(w) for w in ema.KEPT]), EMA(p, [ema.power(width)])
    steps, snapshots = [], []
    for step in range(4, 4001, 4):
        p[0].copy_(torch.from_numpy(path[step - 1]))
        kept.update(p, step - 4, step)
        wanted.update(p, step - 4, step)
        if step % 250 < 4:
            steps += [step, step]
            snapshots += [averages[0].clone() for averages in kept.averages]
    shares = ema.weights_of_snapshots(steps, ema.KEPT * (len(steps) // 2), 4000, width)
    made = sum(share * snapshot for share, snapshot in zip(shares, snapshots))
    off = float((made - wanted.averages[0][0]).square().mean().sqrt())
    spread = float((wanted.averages[0][0] - torch.from_numpy(path[-1])).square().mean().sqrt())
    assert shares.sum() == pytest.approx(1, abs=0.02)
    assert off < 0.05 * spread
