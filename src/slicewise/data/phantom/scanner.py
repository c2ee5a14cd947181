"""The CT scanner of the phantom: slice profile, reconstruction kernel, beam hardening, noise with the texture of
filtered back-projection; and, where asked for, head holder, motion and metal.

Everything is linear algebra on whole volumes in torch: what acts along one axis is a small matrix.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from slicewise.data.phantom.labels import LABELS, TissueVolume
from slicewise.hu import TRUE_AIR_HU


@dataclass(frozen=True)
class Kernel:
    """A reconstruction kernel: `fwhm_mm` of the point spread (from, to), `sharpen` (share of an unsharp mask of three
    times that width), `cutoff_per_mm` of the noise spectrum (from, to), `noise` relative to the soft kernel."""

    fwhm_mm: tuple[float, float]
    sharpen: float
    cutoff_per_mm: tuple[float, float]
    noise: float


KERNELS = {
    "soft": Kernel((1.1, 1.7), 0.0, (0.32, 0.42), 1.0),
    "standard": Kernel((1.0, 1.3), 0.15, (0.42, 0.52), 1.4),
    "bone": Kernel((0.6, 0.8), 0.5, (0.7, 0.9), 4.0),
}


@dataclass(frozen=True)
class Scanner:
    """How a head is imaged.

    Attributes
    ----------
    size, fov_mm, slice_mm : pixels per side, field of view and slice spacing.
    profile_mm : width of the slice profile.
    kernel : name in `KERNELS`.
    noise_hu : noise in the brain at pixels up to 1 mm.
    hardening : beam hardening relative to the usual.
    offset_hu : standard deviation of the offset that each slice has of its own, as sequential scans show it; half to
        one and a half times that in a head.
    table, motion, metal : probabilities of a head holder in view, of a slice or three with motion, of a metal piece.
    """

    size: int
    fov_mm: float
    slice_mm: float
    profile_mm: float
    kernel: str = "soft"
    noise_hu: float = 4.0
    hardening: float = 1.0
    offset_hu: float = 0.0
    table: float = 0.0
    motion: float = 0.0
    metal: float = 0.0


def scan(seed: tuple[int, ...], tissue: TissueVolume, s: Scanner) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Image a tissue volume: float32 HU (Z, size, size), uint8 labels on the same grid, and what was drawn.

    Every option has its own numbers from `seed`, so that switching one changes nothing else.
    """
    draws = [np.random.default_rng([*seed, i]) for i in range(8)]
    kernel = KERNELS[s.kernel]
    dz, pixel, _ = tissue.step_mm
    step, factor = s.fov_mm / s.size, tissue.n_fine // s.size
    centres = _from_vertex(draws[0], tissue, pixel)
    fwhm = float(draws[1].uniform(*kernel.fwhm_mm))
    matter = torch.from_numpy(tissue.hu) - TRUE_AIR_HU
    along = torch.from_numpy(slice_matrix(centres, len(tissue.hu), dz, s.profile_mm))
    seen = torch.tensordot(along, matter, 1)
    seen = _blur(seen, tissue, fwhm, factor, kernel.sharpen) + TRUE_AIR_HU
    labels = np.zeros((len(centres), tissue.n_fine, tissue.n_fine), np.uint8)
    labels[:, tissue.crop[0], tissue.crop[1]] = tissue.labels[centres]
    labels = np.ascontiguousarray(labels[:, factor // 2 :: factor, factor // 2 :: factor])
    if draws[2].random() < s.table:
        _head_holder(draws[2], seen, labels, step)
    if draws[3].random() < s.metal:
        _metal(draws[3], seen, labels, step)
    seen += beam_hardening(seen, step, s.hardening * float(draws[4].uniform(0.5, 2.4)))
    if draws[5].random() < s.motion:
        _motion(draws[5], seen, step)
    offset = draws[7].uniform(0.5, 1.5) * s.offset_hu * draws[7].standard_normal((len(seen), 1, 1))
    seen += torch.from_numpy(offset.astype(np.float32)) * ((seen + 1000) / 1000).clamp(0, 1)
    # Pixels over 1 mm average some of the grain away (real head: 3.6 HU at 0.98 mm, 2.75 HU at 1.95 mm).
    level = s.noise_hu * kernel.noise * float(draws[6].uniform(0.85, 1.15)) * min(1.0, step**-0.4)
    if level > 0:
        seen += noise(draws[6], seen, step, level, float(draws[6].uniform(*kernel.cutoff_per_mm)))
    return seen.numpy(), labels, {"noise_hu": round(level, 3), "fwhm_mm": round(fwhm, 3), "kernel": s.kernel}


def _from_vertex(rng: np.random.Generator, tissue: TissueVolume, pixel: float) -> np.ndarray:
    """Output slices from the vertex on: warp and tilt decide where it is; at most one slice of air is left above."""
    head = (tissue.labels[tissue.centres] > 0).sum((1, 2)) * pixel * pixel > 150.0
    return tissue.centres[max(int(np.argmax(head)) - int(rng.random() < 0.3), 0) :]


def slice_weights(step_mm: float, slice_mm: float) -> np.ndarray:
    """float64 weights of sub-slices `step_mm` apart, centred: a box of `slice_mm` with slopes of a fifth of it."""
    reach = int(np.ceil(0.6 * slice_mm / step_mm))
    at = np.abs(np.arange(-reach, reach + 1) * step_mm)
    profile = np.clip((0.6 * slice_mm - at) / (0.2 * slice_mm), 0, 1)
    found: np.ndarray = profile / profile.sum()
    return found


def slice_matrix(centres: np.ndarray, n: int, step_mm: float, slice_mm: float) -> np.ndarray:
    """float32 (len(centres), n): the slice profile about each centre; the sub-slices at the ends are repeated."""
    weights = slice_weights(step_mm, slice_mm)
    half = len(weights) // 2
    matrix = np.zeros((len(centres), n), np.float32)
    for row, centre in enumerate(centres):
        for k, w in zip(range(centre - half, centre + half + 1), weights, strict=True):
            matrix[row, min(max(k, 0), n - 1)] += w
    return matrix


def gaussian_matrix(n: int, sigma: float, edge: str = "nearest") -> torch.Tensor:
    """float32 (n, n): a normalised Gaussian along one axis; what lies beyond the edge is its value ("nearest") or
    nothing ("zero")."""
    at = torch.arange(n, dtype=torch.float64)
    weights = torch.exp(-0.5 * ((at[:, None] - at) / max(sigma, 1e-3)) ** 2)
    # The sum of samples is the integral where they are dense; elsewhere the middle row shows the whole bell.
    full = sigma * np.sqrt(2 * np.pi) if sigma > 1.5 else float(weights[n // 2].sum())
    weights /= full
    if edge == "nearest":
        lost = 1 - weights.sum(1)
        first = at < n / 2
        weights[first, 0] += lost[first]
        weights[~first, -1] += lost[~first]
    return weights.float()


def box_matrix(n: int, width: int) -> torch.Tensor:
    """float32 (n, n): mean over `width` samples about each, nothing beyond the edge."""
    at = torch.arange(n)
    return ((at[:, None] - at).abs() <= width // 2).float() / (2 * (width // 2) + 1)


def in_plane(volume: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """rows @ slice @ columns^T of every slice."""
    return torch.matmul(torch.matmul(rows, volume), columns.T)


def _blur(seen: torch.Tensor, tissue: TissueVolume, fwhm: float, factor: int, sharpen: float) -> torch.Tensor:
    """Point spread, then means over factor x factor pixels, on the whole plane; one matrix an axis."""

    def matrix(crop: slice, width: float) -> torch.Tensor:
        blurred = gaussian_matrix(tissue.n_fine, width / 2.355 / tissue.step_mm[1])[:, crop]
        return blurred.reshape(-1, factor, blurred.shape[1]).mean(1)

    sharp = in_plane(seen, *(matrix(crop, fwhm) for crop in tissue.crop))
    if not sharpen:
        return sharp
    wide = in_plane(seen, *(matrix(crop, 3 * fwhm) for crop in tissue.crop))
    return sharp + sharpen * (sharp - wide)


def beam_hardening(slices: torch.Tensor, pixel_mm: float, strength: float) -> torch.Tensor:
    """HU to add: brain brighter under the skull (cupping) and in slices near the vertex, where much of what a ray
    crosses is bone; darker on lines between dense bones (as between the petrous ridges).

    `strength` 1 gives about +2 HU under the vault, +10 HU 15 mm below the vertex and -5 HU between the petrous bones;
    two real heads rise by 12 and by 22 HU from the middle of the brain to there (bench/phantom_vs_real.py).
    """
    n_z, n, _ = slices.shape
    bone = ((slices - 150) / 1000).clamp(0, 1.5)
    blur = gaussian_matrix(n, 7 / pixel_mm)
    near = torch.tensordot(gaussian_matrix(n_z, 0.8), in_plane(bone, blur, blur), 1)
    narrow = gaussian_matrix(n, 2.5 / pixel_mm, "zero")
    across = in_plane(bone, narrow, narrow @ box_matrix(n, max(int(130 / pixel_mm), 1)))
    matter = ((slices + 1000) / 1000).clamp(0, 2.5).sum((1, 2)) + 1.0
    share = (gaussian_matrix(n_z, 0.7) @ (bone.sum((1, 2)) / matter))[:, None, None]
    tissue = ((slices + 200) / 200).clamp(0, 1) * ((300 - slices) / 200).clamp(0, 1)
    added = 11.0 * near.clamp(max=0.5) - 26.0 * (across - 0.13).clamp(min=0) + 110.0 * (share - 0.085).clamp(0, 0.15)
    found: torch.Tensor = strength * tissue * added
    return found


def noise_filter(size: int, pixel_mm: float, cutoff_per_mm: float) -> np.ndarray:
    """Amplitude (size, size // 2 + 1) for rfft2: square root of the noise power f exp(-(f/fc)^2), a ramp with
    apodisation, scaled so that white unit noise comes out with unit variance."""
    f = np.hypot(np.fft.fftfreq(size, pixel_mm)[:, None], np.fft.rfftfreq(size, pixel_mm)[None])
    power = (f + 0.012) * np.exp(-((f / cutoff_per_mm) ** 2))
    full = power.sum() * 2 - power[:, 0].sum() - (power[:, -1].sum() if size % 2 == 0 else 0)
    found: np.ndarray = np.sqrt(power * (size * size) / full).astype(np.float32)
    return found


def noise(
    rng: np.random.Generator, slices: torch.Tensor, pixel_mm: float, sd_hu: float, cutoff_per_mm: float
) -> torch.Tensor:
    """Noise, float32, of `sd_hu` in the middle of a head: stronger where rays cross more matter and bone, weak in the
    air beside the head; ramp-shaped spectrum, so that it has the grain of back-projected CT."""
    size = slices.shape[-1]
    white = torch.from_numpy(rng.standard_normal(tuple(slices.shape), dtype=np.float32))
    spectrum = torch.fft.rfft2(white) * torch.from_numpy(noise_filter(size, pixel_mm, cutoff_per_mm))
    grain = torch.fft.irfft2(spectrum, s=(size, size))
    coarse = max(1, size // 64)
    low = torch.nn.functional.avg_pool2d(((slices + 1000) / 1000).clamp(0, 3)[:, None], coarse)[:, 0]
    n = low.shape[-1]
    blur = gaussian_matrix(n, 38 / (pixel_mm * coarse), "zero")
    path = in_plane(low, blur, blur)
    across = in_plane((low - 1.3).clamp(0, 2), torch.eye(n), box_matrix(n, max(int(150 / (pixel_mm * coarse)), 1)))
    amplitude = torch.exp(1.35 * (path - 0.78) + 1.6 * across)
    brain = (low > 1.0) & (low < 1.06) & (path > 0.8)
    if brain.any():
        amplitude /= amplitude[brain].mean()
    amplitude = torch.nn.functional.interpolate(amplitude[:, None], size=(size, size), mode="bilinear")[:, 0]
    found: torch.Tensor = grain * amplitude * sd_hu
    return found


def _head_holder(rng: np.random.Generator, seen: torch.Tensor, labels: np.ndarray, pixel: float) -> None:
    """A cup of carbon fibre below the head and a wall at either side, the same in every slice; its core is foam."""
    n = seen.shape[-1]
    at = (torch.arange(n) - (n - 1) / 2) * pixel
    y, x = torch.meshgrid(at, at, indexing="ij")
    # It bears the head: just below its lowest point. Not `hu.HEAD_HU`, which would move the holder of stored phantoms.
    head = (seen > -400).any(0)
    lowest = float(torch.nonzero(head.any(1)).max()) * pixel - (n - 1) * pixel / 2 + 3
    radius, shift = float(rng.uniform(105, 120)), float(rng.normal(0, 3))
    height = lowest - radius
    ring = ((x - shift).square() + (y - height).square()).sqrt() - radius
    cup = torch.maximum(ring.abs() - float(rng.uniform(1.0, 2.2)), 0.25 * radius - (y - height))
    alpha = (0.5 - cup / pixel).clamp(0, 1)
    empty = ((-700 - seen) / 250).clamp(0, 1)
    seen += alpha * empty * (float(rng.uniform(-250, 120)) - TRUE_AIR_HU)
    labels[((alpha > 0.5) & (empty > 0.5)).numpy() & (labels == 0)] = LABELS["table"]


def _motion(rng: np.random.Generator, seen: torch.Tensor, pixel: float) -> None:
    """The head moves while one to three slices are taken: they show it at two places at once."""
    first, count = int(rng.integers(2, max(len(seen) - 4, 3))), int(rng.integers(1, 4))
    shift = torch.from_numpy(rng.normal(0, 1.2, 2) / pixel * 2 / seen.shape[-1]).float()
    turn = float(np.deg2rad(rng.normal(0, 0.8)))
    matrix = torch.tensor([[np.cos(turn), -np.sin(turn), 0.0], [np.sin(turn), np.cos(turn), 0.0]]).float()
    matrix[:, 2] = shift
    part = seen[first : first + count, None]
    grid = torch.nn.functional.affine_grid(matrix.expand(len(part), 2, 3), list(part.shape), align_corners=False)
    moved = torch.nn.functional.grid_sample(part, grid, padding_mode="border", align_corners=False)
    share = float(rng.uniform(0.25, 0.5))
    seen[first : first + count] = (1 - share) * part[:, 0] + share * moved[:, 0]


def _metal(rng: np.random.Generator, seen: torch.Tensor, labels: np.ndarray, pixel: float) -> None:
    """A filling in a tooth or a clip at an artery: 3000 HU and more, with bright and dark streaks that fade away."""
    there = np.argwhere(np.isin(labels, [LABELS["teeth"], LABELS["artery"], LABELS["basilar artery"]]))
    if not len(there):
        return
    z, row, column = there[int(rng.integers(len(there)))]
    n = seen.shape[-1]
    y, x = torch.meshgrid(torch.arange(n) - int(row), torch.arange(n) - int(column), indexing="ij")
    radius = torch.sqrt((x.square() + y.square()).float()) * pixel
    angle = torch.atan2(y.float(), x.float())
    streak = torch.zeros(n, n)
    for _ in range(int(rng.integers(6, 14))):
        at, width, sign = float(rng.uniform(0, np.pi)), float(rng.uniform(0.015, 0.06)), float(rng.choice([-1.0, 1.0]))
        streak += sign * torch.exp(-((torch.sin(angle - at) / width) ** 2))
    strength = float(rng.uniform(150, 600))
    core = float(rng.uniform(1.5, 3.0))
    for k, fade in ((-1, 0.3), (0, 1.0), (1, 0.3)):
        if 0 <= z + k < len(seen):
            head = ((seen[z + k] + 600) / 300).clamp(0, 1)
            seen[z + k] += fade * strength * streak * head * torch.exp(-radius / 45)
            solid = (0.5 + (core - radius) / pixel).clamp(0, 1) * fade
            seen[z + k] += solid * (3400 - seen[z + k])
