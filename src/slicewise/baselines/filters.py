"""Low-pass filters of StyleGAN3 and the resampling around its nonlinearities (Karras et al. 2021, appendix C).

Frequencies are in cycles per image width, so a signal of rate s has s samples across the image and a band limit of s/2.
"""

import numpy as np
import torch
from scipy import signal, special
from torch import Tensor
from torch.nn import functional as F


def lowpass(taps: int, cutoff: float, half_width: float, rate: float) -> np.ndarray:
    """Kaiser-windowed sinc, float64 (taps,), summing to one: passes up to about `cutoff - half_width`, stops from about
    `cutoff + half_width` on, at `rate` samples (equations 6 and 7). One tap is the identity."""
    if taps == 1:
        return np.ones(1)
    return np.asarray(signal.firwin(taps, cutoff, width=2 * half_width, fs=rate))


def radial_lowpass(taps: int, cutoff: float, half_width: float, rate: float) -> np.ndarray:
    """The rotationally symmetric counterpart, float64 (taps, taps): jinc, the inverse transform of a disc of radius
    `cutoff`, under an outer product of Kaiser windows; summing to one."""
    at = (np.arange(taps) - (taps - 1) / 2) / rate
    radius = np.hypot(at[:, None], at[None, :])
    if taps == 1:
        return np.ones((1, 1))
    phase = 2 * np.pi * cutoff * radius
    jinc = np.where(radius == 0, np.pi * cutoff**2, cutoff * special.j1(phase) / np.where(radius == 0, 1.0, radius))
    attenuation = signal.kaiser_atten(taps, 2 * half_width / (rate / 2))
    window = signal.windows.kaiser(taps, signal.kaiser_beta(attenuation))
    kernel = jinc * np.outer(window, window)
    return np.asarray(kernel / kernel.sum())


def padding(size_in: int, size_out: int, up: int, down: int, taps_up: int, taps_down: int) -> tuple[int, int]:
    """Samples (before, after) to add to `up` · `size_in` upsampled ones (fewer than none: to cut), so that after both
    filters and every `down`-th sample `size_out` are left, with input and output centred on each other.

    Sample i of the input stands at up·i + before, and its centre at up·(size_in - 1)/2 + before; output sample j looks
    from down·j, over the length of both filters. Setting both centres equal gives `before`.
    """
    twice = down * (size_out - 1) + taps_up + taps_down - 2 - up * (size_in - 1)
    assert twice % 2 == 0, "sizes and filters must leave the grids centred"
    before = twice // 2
    total = down * (size_out - 1) + 1 + taps_up + taps_down - 2
    return before, total - up * size_in - before


def filter_matrix(taps: Tensor, count: int, up: int = 1, before: int = 0, after: int = 0, down: int = 1) -> Tensor:
    """Along one axis, everything that a filter `taps` (n,) does to `count` samples as a matrix (m, count): `up` - 1
    zeros between them, `before` and `after` more around (fewer than none: cut), the filter where it lies wholly inside,
    every `down`-th sample of that."""
    out = torch.arange((up * count + before + after - len(taps)) // down + 1, device=taps.device)
    tap = up * torch.arange(count, device=taps.device) + before - down * out[:, None]
    return torch.where((tap >= 0) & (tap < len(taps)), taps[tap.clamp(0, len(taps) - 1)], 0.0)


def along_both(x: Tensor, matrix: Tensor) -> Tensor:
    """(B, C, N, N) with `matrix` (m, N) along both axes; (B, C, m, m).

    Most of what a filter between zeros multiplies is zero. A dense product does more of it and is faster on a CPU, as
    it reads and writes the large side once.
    """
    b, c, h, w = x.shape
    wide = x.reshape(-1, w) @ matrix.t()
    return (matrix @ wide.view(b * c, h, -1)).view(b, c, len(matrix), len(matrix))


def filter_whole(x: Tensor, taps: Tensor, down: int) -> Tensor:
    """Filter (B, C, H, W) with `taps` (n, n), which need not be separable, and keep every `down`-th sample."""
    c = x.shape[1]
    return F.conv2d(x, taps.expand(c, 1, *taps.shape), stride=down, groups=c)


def as_tensor(taps: np.ndarray) -> Tensor:
    return torch.from_numpy(taps).float()
