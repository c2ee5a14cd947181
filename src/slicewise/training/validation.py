"""How well a denoiser denoises, noise level by noise level, in HU."""

import numpy as np
import torch

from slicewise.checkpoint import Denoiser
from slicewise.data.stacks import training_windows
from slicewise.data.store import Store
from slicewise.diffusion.noise import VALIDATION, generator
from slicewise.hu import AIR_HU

# Noise levels of the validation table, from below the scan's own noise to pure noise.
VALIDATION_SIGMAS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 40.0)


@torch.no_grad()
def validate(denoiser: Denoiser, store: Store, count: int, batch: int, seed: int) -> list[dict[str, float | None]]:
    """Error of the denoised last slice by noise level, on `count` windows and noise that the seed fixes,
    `batch` at a time, its predecessors known.

    Each row: sigma; head_rmse_hu over voxels above -500 HU; brain_rmse_hu and brain_bias_hu over voxels whose true HU
    lies in [0, 60]; None where the windows hold no such voxel.
    """
    split = "val" if store.select("val") else "train"
    windows = training_windows(store, split, denoiser.recipe.slices)
    k, scale = denoiser.recipe.slices, denoiser.recipe.scale
    device = next(denoiser.network.parameters()).device
    rng = generator(seed, 0, 0, 0, VALIDATION)
    chosen = rng.integers(0, len(windows), count)
    denoiser.network.eval()
    rows: list[dict[str, float | None]] = []
    for level in VALIDATION_SIGMAS:
        head, brain = [], []
        for first in range(0, len(chosen), batch):
            read = [windows.read(int(i)) for i in chosen[first : first + batch]]
            hu = np.stack([r[0] for r in read])
            position = torch.tensor([r[1] for r in read], device=device)
            clean = torch.from_numpy(scale.encode(hu)).to(device)
            noise = generator(seed, first, 1, 0, VALIDATION).standard_normal(hu.shape, np.float32)
            sigma = torch.full((len(read), k), level, dtype=torch.float64, device=device)
            if not denoiser.recipe.joint:
                sigma[:, :-1] = denoiser.recipe.sigma_min
            noisy = clean + sigma.float()[:, :, None, None] * torch.from_numpy(noise).to(device)
            denoised = scale.decode(denoiser(noisy, sigma, position)[:, -1].cpu().numpy())
            error = denoised - hu[:, -1]
            head.append(error[hu[:, -1] > AIR_HU])
            brain.append(error[(hu[:, -1] >= 0) & (hu[:, -1] <= 60)])
        rows.append(
            {
                "sigma": level,
                "head_rmse_hu": _rms(head),
                "brain_rmse_hu": _rms(brain),
                "brain_bias_hu": _mean(brain),
            }
        )
    denoiser.network.train()
    return rows


def _rms(parts: list[np.ndarray]) -> float | None:
    joined = np.concatenate(parts)
    return round(float(np.sqrt(np.mean(joined**2))), 3) if joined.size else None


def _mean(parts: list[np.ndarray]) -> float | None:
    joined = np.concatenate(parts)
    return round(float(np.mean(joined)), 3) if joined.size else None
