"""How well a denoiser sees inside the brain, noise level by noise level, beside a linear filter with the same inputs.

    python bench/brain_error.py STORE --checkpoint CHECKPOINT

The error of the denoised slice in HU over voxels at least four pixels inside the brain (edges of bone would drown it),
its predecessors known, on windows of the validation split: 1.48 times its median, the standard deviation of a normal
error, since a few voxels near the skull base may with right expect bone. The filter is the least-squares sum of a
constant, the noisy slice blurred by seven Gaussians and both predecessors by three each, fitted on the same voxels: a
network that knows anatomy must be below it. "smooth" is the error's own 2-pixel Gaussian mean over those voxels alone,
in which texture plays no part. A second table says whether D is the mean of what it stands for: the truth less D, by
the HU at which D puts a voxel. Prints Markdown.
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from slicewise.checkpoint import load_denoiser
from slicewise.data.store import open_store
from slicewise.data.windows import training_windows
from slicewise.hu import BRAIN
from slicewise.metrics.tissue import brain_mask

# HU between which D's voxels are taken together: of CSF, white and grey matter.
EDGES_HU = (-8, -4, 0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44)
# Fewer voxels than this say nothing.
LEAST_VOXELS = 100
SIGMAS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


def blurred(hu: np.ndarray, pixels: float) -> np.ndarray:
    """(N, H, W) blurred in plane."""
    return np.asarray(ndimage.gaussian_filter(hu.astype(np.float64), (0, pixels, pixels)))


def smooth(values: np.ndarray, deep: np.ndarray) -> np.ndarray:
    """2-pixel Gaussian mean of (N, H, W) over `deep` alone."""
    return blurred(values * deep, 2) / np.maximum(blurred(deep, 2), 1e-6)


def spread(error: np.ndarray) -> float:
    """1.48 times the median of |error|."""
    return 1.4826 * float(np.median(np.abs(error)))


def filtered(hu: np.ndarray, noisy: np.ndarray, deep: np.ndarray) -> np.ndarray:
    """Error (N, H, W) in HU of the linear filter; zero outside `deep`."""
    columns = [np.ones(int(deep.sum()))]
    columns += [blurred(noisy, g)[deep] for g in (0.7, 1, 1.5, 2, 3, 4, 6)]
    columns += [blurred(hu[:, k], g)[deep] for k in range(hu.shape[1] - 1) for g in (0.7, 1.5, 3)]
    design = np.stack(columns, axis=1)
    true = hu[:, -1][deep]
    error = np.zeros(deep.shape)
    error[deep] = design @ np.linalg.lstsq(design, true, rcond=None)[0] - true
    return error


def bias(denoised: np.ndarray, true: np.ndarray) -> list[float]:
    """Mean of true - denoised, HU, by the range of `EDGES_HU` in which `denoised` lies; NaN where few voxels do."""
    ranges = np.digitize(denoised, EDGES_HU)
    inside = [ranges == i for i in range(1, len(EDGES_HU))]
    return [float((true - denoised)[v].mean()) if v.sum() >= LEAST_VOXELS else float("nan") for v in inside]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    denoiser = load_denoiser(a.checkpoint)
    scale, k = denoiser.recipe.scale, denoiser.recipe.slices
    windows = training_windows(open_store(a.store), "val", k)
    rng = np.random.default_rng(a.seed)
    read = [windows.read(int(i)) for i in rng.integers(0, len(windows), a.windows)]
    hu = np.stack([r[0] for r in read]).astype(np.float64)
    position = torch.tensor([r[1] for r in read])
    masks = [brain_mask(window, denoiser.recipe.spacing_mm)[-1] for window in hu]
    deep = np.stack([ndimage.binary_erosion(ndimage.binary_fill_holes(m), iterations=4) for m in masks])
    soft = np.clip(hu, BRAIN.lo - 10, BRAIN.hi + 10)
    clean, noise = torch.from_numpy(scale.encode(hu)), rng.standard_normal(hu.shape).astype(np.float32)
    per_hu = float(scale.slope(np.array(BRAIN.centre)))
    true = soft[:, -1] - soft[:, -1][deep].mean()
    print(
        f"{a.windows} windows; {int(deep.sum())} voxels; about their mean they spread by {spread(true[deep]):.2f} HU, "
        f"smooth {spread(smooth(true, deep)[deep]):.2f} HU.\n"
    )
    print("| σ | noise, HU | network | smooth | linear filter | smooth |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    biases = {}
    for level in SIGMAS:
        sigma = torch.full((a.windows, k), level, dtype=torch.float64)
        sigma[:, :-1] = denoiser.recipe.sigma_min
        noisy = clean + sigma.float()[:, :, None, None] * torch.from_numpy(noise)
        parts = [denoiser(*batch)[:, -1] for batch in zip(noisy.split(16), sigma.split(16), position.split(16))]
        denoised = scale.decode(torch.cat(parts).numpy())
        network = denoised - hu[:, -1]
        biases[level] = bias(denoised[deep], hu[:, -1][deep])
        linear = filtered(soft, soft[:, -1] + level / per_hu * noise[:, -1], deep)
        cells = [f"{spread(v[deep]):.2f}" for e in (network, linear) for v in (e, smooth(e, deep))]
        print(f"| {level:g} | {level / per_hu:.0f} | " + " | ".join(cells) + " |")
    print("\nTruth less D, HU, of voxels that D puts at:\n")
    print("| σ | " + " | ".join(f"{lo} … {hi}" for lo, hi in itertools.pairwise(EDGES_HU)) + " |")
    print("| ---: |" + " ---: |" * (len(EDGES_HU) - 1))
    for level, row in biases.items():
        print(f"| {level:g} | " + " | ".join("–" if np.isnan(v) else f"{v:+.1f}" for v in row) + " |")


if __name__ == "__main__":
    main()
