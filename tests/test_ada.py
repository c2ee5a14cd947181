"""Adaptive augmentation: its filter, its geometry, its chances and its heuristic against closed forms."""

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from slicewise.baselines import ada
from slicewise.random import AUGMENT, Draws


def test_sym6_is_the_orthogonal_filter_with_six_vanishing_moments():
    h = ada.SYM6
    assert h.sum() == pytest.approx(np.sqrt(2))
    for k in range(6):
        expected = 1.0 if k == 0 else 0.0
        assert (h[2 * k :] * h[: 12 - 2 * k]).sum() == pytest.approx(expected, abs=1e-10)
    highpass = h[::-1] * (-1.0) ** np.arange(12)
    moments = [(highpass * (np.arange(12) / 11) ** m).sum() for m in range(7)]
    assert np.allclose(moments[:6], 0, atol=1e-10)
    assert abs(moments[6]) > 1e-6
    # Least asymmetric of its family: nearly linear phase, so one centre stands for all frequencies.
    frequency = np.linspace(0.01, 0.8, 50)
    response = (h * np.exp(-1j * frequency[:, None] * np.arange(12))).sum(axis=1)
    delay = -np.unwrap(np.angle(response)) / frequency
    assert np.allclose(delay, ada._CENTRE, atol=0.15)


def _draw(count: int, p: float, size: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    return ada.draw(Draws(seed, range(count), 0, 0, AUGMENT), torch.tensor(p, dtype=torch.float64), size)


def _identity(batch: int) -> torch.Tensor:
    return torch.eye(3, dtype=torch.float64)[:2].repeat(batch, 1, 1)


def test_nothing_to_do_changes_nothing_and_whole_pixels_move_exactly():
    x = torch.randn(3, 1, 16, 16, dtype=torch.float64)
    assert torch.allclose(ada.move(x, _identity(3)), x, atol=1e-9)
    shift = _identity(3)
    shift[:, 0, 2], shift[:, 1, 2] = 2.0, -3.0
    # What lies beyond the border is mirrored at the border pixels, as SciPy's "mirror".
    expected = np.stack([ndimage.shift(i[0], (3, -2), order=0, mode="mirror") for i in x.numpy()])
    assert np.allclose(ada.move(x, shift)[:, 0].numpy(), expected, atol=1e-9)


def test_geometry_moves_a_smooth_slice_where_its_matrix_says():
    rng = np.random.default_rng(0)
    at = np.arange(64) - 31.5
    y, x = np.meshgrid(at, at, indexing="ij")

    def scene(px: np.ndarray, py: np.ndarray) -> np.ndarray:
        return np.exp(-((px - 3) ** 2 + (py + 5) ** 2 / 2) / 60) + 0.5 * np.sin(px / 9 + py / 7)

    for _ in range(5):
        angle, zoom, shift = rng.uniform(-3, 3), rng.uniform(0.9, 1.2), rng.uniform(-4, 4, 2)
        c, s = np.cos(angle), np.sin(angle)
        m = np.array([[zoom * c, -s, shift[0]], [s, zoom * c, shift[1]]])
        moved = ada.move(torch.from_numpy(scene(x, y))[None, None], torch.from_numpy(m)[None])[0, 0].numpy()
        px, py = (m[i, 0] * x + m[i, 1] * y + m[i, 2] for i in range(2))
        inside = (np.abs(px) < 29) & (np.abs(py) < 29)
        assert np.abs(moved - scene(px, py))[inside].max() < 0.01


def test_gradients_pass_through_augmentation():
    x = torch.randn(2, 1, 10, 10, dtype=torch.float64, requires_grad=True)
    drawn = _draw(2, 1.0, 10)
    assert torch.autograd.gradcheck(lambda v: ada.augment(v, *drawn), (x,), atol=1e-5)


def test_no_probability_no_change_and_every_number_is_drawn_all_the_same():
    geometry, gain, offset = _draw(20, 0.0, 32)
    assert torch.equal(geometry, torch.eye(3)[:2].repeat(20, 1, 1))
    assert (gain == 1.0).all()
    assert (offset == 0.0).all()
    one, other = (Draws(0, range(20), 0, 0, AUGMENT) for _ in range(2))
    ada.draw(one, torch.tensor(0.0), 32), ada.draw(other, torch.tensor(0.7), 32)
    assert torch.equal(one.uniform(1), other.uniform(1)), "a draw takes as much of the stream at any probability"


def test_a_slice_is_moved_alike_whichever_batch_it_is_in():
    whole, part = _draw(6, 0.5, 32), ada.draw(Draws(0, range(2, 5), 0, 0, AUGMENT), torch.tensor(0.5), 32)
    assert all(torch.equal(a[2:5], b) for a, b in zip(whole, part))


def test_geometry_undoes_its_steps_from_the_last_to_the_first():
    """Against each step's matrix (appendix B), multiplied up and inverted by NumPy."""
    geometry, _, _ = _draw(50, 1.0, 32, seed=3)
    draws = Draws(3, range(50), 0, 0, AUGMENT)
    draws.uniform(11)
    u, n = draws.uniform(7).double().numpy(), draws.normal(6).double().numpy()

    def scale(x: float, y: float) -> np.ndarray:
        return np.diag([x, y, 1.0])

    def rotate(angle: float) -> np.ndarray:
        c, s = np.cos(angle), np.sin(angle)
        return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])

    def translate(x: float, y: float) -> np.ndarray:
        return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])

    for found, v, g in zip(geometry.numpy(), u, n):
        zoom, stretch = 2 ** (0.2 * g[0]), 2 ** (0.2 * g[1])
        steps = (
            scale(-1.0 if v[0] < 0.5 else 1.0, 1.0),
            rotate(-np.pi / 2 * np.floor(4 * v[1])),
            translate(*np.rint((v[2:4] - 0.5) / 4 * 32)),
            scale(zoom, zoom),
            rotate(-np.pi * (2 * v[4] - 1)),
            scale(stretch, 1 / stretch),
            rotate(-np.pi * (2 * v[5] - 1)),
            translate(*(0.125 * 32 * g[2:4])),
        )
        forward = np.eye(3)
        for step in steps:
            forward = step @ forward
        assert np.allclose(found, np.linalg.inv(forward)[:2], atol=1e-4)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_transformations_come_as_often_as_stated(p):
    n = 2000
    geometry, gain, offset = (t.numpy() for t in _draw(n, p, 32))
    brighter, negative = np.mean(offset != 0), np.mean(gain < 0)
    assert abs(brighter - p) < 4 * np.sqrt(p * (1 - p) / n)
    assert abs(negative - p / 2) < 4 * np.sqrt(p / n)
    gains = np.abs(gain)[np.abs(gain) != 1.0]
    assert stats.kstest(np.log2(gains) / 0.5, "norm").pvalue > 1e-3
    # Nothing in the plane happened with probability (1-p) for each of scale, stretch and shifts, (1-p/2) for a flip,
    # (1-3p/4) for a quarter turn, and (1-p) for both rotations together; a drawn whole shift of zero is rare.
    still = np.mean([np.allclose(g, np.eye(3)[:2]) for g in geometry])
    zero_shift = (1 / 8) ** 2  # both of ±4 pixels rounded: 1 in 8 each
    expected = (1 - p) ** 4 * (1 - p / 2) * (1 - 0.75 * p) * ((1 - p) + p * zero_shift)
    assert abs(still - expected) < 4 * np.sqrt(expected * (1 - expected) / n) + 0.003


def test_heuristic_is_the_mean_sign_of_real_logits():
    logits = torch.tensor([2.0, 0.1, -3.0, 5.0])
    assert ada.overfitting_sign(logits).item() == 0.5
    assert ada.overfitting_sign(torch.tensor([3.0, 1.0])).item() == 1.0, "complete"


def test_probability_climbs_while_overfitting_and_falls_back():
    def adjusted(p: float, overfitting: float, images: int, ramp_images: int) -> float:
        held = torch.tensor([p, overfitting], dtype=torch.float64)
        return ada.adjusted(*held, 0.6, images, ramp_images).item()

    p = 0.0
    for _ in range(5000):
        p = adjusted(p, 0.9, images=64, ramp_images=500_000)
    assert p == pytest.approx(5000 * 64 / 500_000)
    p = adjusted(p, 0.5, images=64, ramp_images=500_000)
    assert p == pytest.approx(4999 * 64 / 500_000)
    assert adjusted(0.0, -1.0, 64, 100) == 0.0
    assert adjusted(0.9, 1.0, 64, 100) == 1.0
    assert adjusted(0.3, 0.6, 64, 100) == 0.3, "on target"
