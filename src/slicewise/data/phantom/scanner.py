"""The CT scanner of the phantom: slice profile, point spread, beam hardening and noise with the texture of filtered
back-projection."""

import numpy as np
from scipy import fft, ndimage

AIR_HU = -1000.0


def slice_weights(step_mm: float, slice_mm: float) -> np.ndarray:
    """float64 weights of sub-slices `step_mm` apart, centred: a box of `slice_mm` with slopes of a fifth of it."""
    reach = int(np.ceil(0.6 * slice_mm / step_mm))
    at = np.abs(np.arange(-reach, reach + 1) * step_mm)
    profile = np.clip((0.6 * slice_mm - at) / (0.2 * slice_mm), 0, 1)
    return profile / profile.sum()


def integrate_slices(fine: np.ndarray, centres: np.ndarray, step_mm: float, slice_mm: float) -> np.ndarray:
    """Average sub-slices (Z', Y, X) around each centre index with the slice profile; float32 (len(centres), Y, X)."""
    weights = slice_weights(step_mm, slice_mm)
    half = len(weights) // 2
    matrix = np.zeros((len(centres), fine.shape[0]), np.float32)
    for row, centre in enumerate(centres):
        for k, w in zip(range(centre - half, centre + half + 1), weights, strict=True):
            matrix[row, min(max(k, 0), fine.shape[0] - 1)] += w
    return np.tensordot(matrix, fine, (1, 0))


def blur_in_plane(slices: np.ndarray, pixel_mm: float, fwhm_mm: float) -> np.ndarray:
    """Gaussian point spread of the given full width at half maximum, float32."""
    sigma = fwhm_mm / 2.355 / pixel_mm
    return ndimage.gaussian_filter(slices, (0, sigma, sigma), mode="nearest")


def reduce_pixels(slices: np.ndarray, factor: int) -> np.ndarray:
    """Average blocks of factor x factor pixels."""
    if factor == 1:
        return slices
    n_z, n_y, n_x = slices.shape
    return slices.reshape(n_z, n_y // factor, factor, n_x // factor, factor).mean((2, 4), dtype=np.float32)


def beam_hardening(slices: np.ndarray, pixel_mm: float, strength: float) -> np.ndarray:
    """HU to add: brain brighter under the skull (cupping) and in slices near the vertex, where much of what a ray
    crosses is bone; darker on lines between dense bones (as between the petrous ridges).

    `strength` 1 gives about +2 HU under the vault, +10 HU 15 mm below the vertex and -5 HU between the petrous bones;
    two real heads rise by 12 and by 22 HU from the middle of the brain to there (bench/phantom_vs_real.py).
    """
    bone = np.clip((slices - 150) / 1000, 0, 1.5).astype(np.float32)
    near = ndimage.gaussian_filter(bone, (0.8, 7 / pixel_mm, 7 / pixel_mm), mode="nearest")
    across = ndimage.uniform_filter1d(bone, max(int(130 / pixel_mm), 1), axis=2, mode="constant")
    across = ndimage.gaussian_filter(across, (0, 2.5 / pixel_mm, 2.5 / pixel_mm), mode="constant")
    matter = np.clip((slices + 1000) / 1000, 0, 2.5).sum((1, 2)) + 1.0
    share = ndimage.gaussian_filter1d(bone.sum((1, 2)) / matter, 0.7, mode="nearest")[:, None, None]
    tissue = np.clip((slices + 200) / 200, 0, 1) * np.clip((300 - slices) / 200, 0, 1)
    added = 11.0 * np.minimum(near, 0.5) - 26.0 * np.maximum(across - 0.13, 0) + 110.0 * np.clip(share - 0.085, 0, 0.15)
    return np.float32(strength) * tissue * added


def noise_filter(size: int, pixel_mm: float, cutoff_per_mm: float) -> np.ndarray:
    """Amplitude (size, size // 2 + 1) for rfft2: square root of the noise power f exp(-(f/fc)^2), a ramp with
    apodisation, scaled so that white unit noise comes out with unit variance."""
    f = np.hypot(fft.fftfreq(size, pixel_mm)[:, None], fft.rfftfreq(size, pixel_mm)[None])
    power = (f + 0.012) * np.exp(-((f / cutoff_per_mm) ** 2))
    full = power.sum() * 2 - power[:, 0].sum() - (power[:, -1].sum() if size % 2 == 0 else 0)
    return np.sqrt(power * (size * size) / full).astype(np.float32)


def noise(rng: np.random.Generator, slices: np.ndarray, pixel_mm: float, sd_hu: float) -> np.ndarray:
    """Noise, float32, of `sd_hu` in the middle of a head: stronger where rays cross more matter and bone, weak in the
    air beside the head; ramp-shaped spectrum, so that it has the grain of back-projected CT."""
    size = slices.shape[-1]
    white = rng.standard_normal(slices.shape, dtype=np.float32)
    spectrum = fft.rfft2(white) * noise_filter(size, pixel_mm, float(rng.uniform(0.32, 0.42)))
    grain = fft.irfft2(spectrum, s=slices.shape[1:]).astype(np.float32)
    matter = np.clip((slices + 1000) / 1000, 0, 3).astype(np.float32)
    coarse = max(1, size // 64)
    low = reduce_pixels(matter, coarse)
    sigma = 38 / (pixel_mm * coarse)
    path = ndimage.gaussian_filter(low, (0, sigma, sigma), mode="constant")
    across = ndimage.uniform_filter1d(
        np.clip(low - 1.3, 0, 2), max(int(150 / (pixel_mm * coarse)), 1), axis=2, mode="constant"
    )
    amplitude = np.exp(1.35 * (path - 0.78) + 1.6 * across)
    brain = (low > 1.0) & (low < 1.06) & (path > 0.8)
    amplitude /= amplitude[brain].mean() if brain.any() else 1.0
    amplitude = ndimage.zoom(amplitude, (1, coarse, coarse), order=1, mode="nearest", grid_mode=True)
    return grain * amplitude * np.float32(sd_hu)
