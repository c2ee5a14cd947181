"""How well a denoiser denoises, noise level by noise level, in HU."""

import math

import torch

from slicewise.codec import codec
from slicewise.data.windows import Windows, as_level, uncut
from slicewise.diffusion.denoiser import Denoiser
from slicewise.hu import AIR_HU
from slicewise.random import VALIDATION, Draws

# Noise levels of the validation table, from below the scan's own noise to pure noise.
VALIDATION_SIGMAS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 40.0)


@torch.no_grad()
def errors_by_level(
    denoiser: Denoiser, windows: Windows, count: int, batch: int, seed: int, pool: int = 1
) -> list[dict[str, float | None]]:
    """Error of the denoised last slice by noise level, on `count` windows and noise that the seed fixes, `batch` at a
    time, its predecessors known, and the level above where there is one; on pixels `pool` times the store's. Of a
    denoiser of whole heads, the error of all slices of `count` heads, none known.

    Each row: sigma; head_rmse_hu over voxels above -500 HU; brain_rmse_hu and brain_bias_hu over voxels whose true HU
    lies in [0, 60]; None where the windows hold no such voxel.
    """
    k, scale, device = denoiser.recipe.slices, denoiser.recipe.scale, windows.heads.device
    above, whole = denoiser.recipe.above, denoiser.recipe.whole
    wanted = slice(0 if whole else k - 1, k)
    to_x = codec(scale, device)
    below = len(windows.records) if whole else len(windows)
    chosen = Draws(seed, range(count), 0, 0, VALIDATION).integers(below)[:, 0]
    sums = torch.zeros(len(VALIDATION_SIGMAS), 5, dtype=torch.float64, device=device)
    training = denoiser.network.training
    denoiser.network.eval()
    for part in torch.arange(count).split(batch):
        numbers = chosen[part]
        rows = windows.heads.whole(numbers, k) if whole else windows.rows(numbers)
        if above:
            rows = torch.cat([rows, windows.about(numbers, torch.full_like(numbers, k - 1))], dim=1)
        hu = as_level(windows.heads.cut(uncut(windows.heads, rows)), k, pool, above)
        clean, position = to_x.encode(hu), windows.position(numbers).to(device)
        noise = Draws(seed, part.tolist(), 0, 1, VALIDATION, device).normal(clean[0].numel()).view_as(clean)
        true = hu[:, wanted].double()
        head, brain = true > AIR_HU, (true >= 0) & (true <= 60)
        for row, level in enumerate(VALIDATION_SIGMAS):
            sigma = torch.full(clean.shape[:2], level, dtype=torch.float64, device=device)
            if not denoiser.recipe.joint:
                sigma[:, : wanted.start] = denoiser.recipe.sigma_min
            sigma[:, k:] = max(0.2 * denoiser.recipe.above_sigma, denoiser.recipe.sigma_min)
            noisy = clean + sigma.float()[:, :, None, None] * noise
            denoised = denoiser(noisy, sigma, position)[:, wanted]
            error = to_x.decode(denoised) - true
            square = error.square()
            sums[row] += torch.stack(
                [head.sum(), (square * head).sum(), brain.sum(), (square * brain).sum(), (error * brain).sum()]
            )
    denoiser.network.train(training)
    return [
        {
            "sigma": level,
            "head_rmse_hu": _rounded(math.sqrt(square / voxels)) if voxels else None,
            "brain_rmse_hu": _rounded(math.sqrt(brain_square / brain_voxels)) if brain_voxels else None,
            "brain_bias_hu": _rounded(brain_error / brain_voxels) if brain_voxels else None,
        }
        for level, (voxels, square, brain_voxels, brain_square, brain_error) in zip(VALIDATION_SIGMAS, sums.tolist())
    ]


def score(rows: list[dict[str, float | None]]) -> float:
    """Geometric mean over noise levels of the error of the head and that of the brain, HU: no level and neither tissue
    drowns the others."""
    errors = [row[name] for row in rows for name in ("head_rmse_hu", "brain_rmse_hu")]
    logs = [math.log(error) for error in errors if error]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def _rounded(value: float) -> float:
    return round(value, 3)
