"""Find a trained denoiser's residual filter by least squares (see `diffusion.residual`)."""

import numpy as np
import torch

from slicewise.data.windows import Windows
from slicewise.diffusion.denoiser import Denoiser
from slicewise.diffusion.residual import ResidualFilter, bands, hats, taken_away
from slicewise.hu import BRAIN
from slicewise.metrics.tissue import MIN_VOXELS, brain_mask
from slicewise.random import VALIDATION, generator
from slicewise.sampling import ChainSettings

# The noise levels are spread evenly in ln sigma, from the least trained one to so many HU in the brain.
LEVELS = 14
HIGHEST_HU = 200.0
# Values of D at which the curve is found, over this range. Where few voxels lie it is as at the next value: so many
# weigh as much as the belief that it is level.
NODES = 23
RANGE_HU = (-18.0, 70.0)
STIFFNESS = 50.0
# Errors beyond this are edges of bone, HU in the brain.
_EDGE_HU = 22.0


@torch.no_grad()
def fit_residual_filter(
    denoiser: Denoiser, windows: Windows, count: int, batch: int, seed: int
) -> ResidualFilter | None:
    """Regress what is left of the last slice's error, within the brain, on the bands of what was taken away, and what
    is then left on D itself, at every level, over `count` of the windows, their predecessors known as in a chain. The
    denoiser has none yet. None where the windows hold too little brain.
    """
    recipe, device = denoiser.recipe, windows.heads.device
    rng = generator(seed, 1, 0, 0, VALIDATION)
    read = [windows.read(int(i)) for i in rng.integers(0, len(windows), count)]
    hu = np.stack([window for window, _ in read])
    position = torch.tensor([mm for _, mm in read], device=device)
    inside = torch.from_numpy(np.stack([brain_mask(window, recipe.spacing_mm)[-1] for window in hu]))
    per_hu = float(recipe.scale.slope(np.array(BRAIN.centre)))
    low, high = (float(f"{x:.6g}") for x in recipe.scale.encode(np.array(RANGE_HU)))
    clean = torch.from_numpy(recipe.scale.encode(hu + rng.uniform(-0.5, 0.5, hu.shape)))
    noise = torch.from_numpy(rng.standard_normal(hu.shape, np.float32))
    levels = np.geomspace(recipe.sigma_min, max(HIGHEST_HU * per_hu, 2 * recipe.sigma_min), LEVELS)
    sigmas = tuple(float(f"{level:.5g}") for level in levels)
    gains: list[tuple[float, ...]] = []
    curve: list[tuple[float, ...]] = []
    for level in sigmas:
        sigma = torch.full(hu.shape[:2], level, dtype=torch.float64)
        if not recipe.joint:
            sigma[:, :-1] = max(ChainSettings().known_sigma, recipe.sigma_min)
        seen, left, taken = [], [], []
        for part in torch.arange(count).split(batch):
            x = clean[part] + sigma[part].float()[:, :, None, None] * noise[part]
            denoised = denoiser(x.to(device), sigma[part].to(device), position[part]).cpu()[:, -1:]
            found = bands(taken_away(denoised, x[:, -1:], sigma[part, -1:]))
            seen.append(denoised[:, 0][inside[part]])
            left.append((clean[part, -1:] - denoised)[:, 0][inside[part]])
            taken.append(found[:, :, 0][:, inside[part]].T)
        values, error, design = torch.cat(seen).double(), torch.cat(left).double(), torch.cat(taken).double()
        keep = error.abs() < _EDGE_HU * per_hu
        if int(keep.sum()) < MIN_VOXELS:
            return None
        solution = torch.linalg.lstsq(design[keep], error[keep, None]).solution[:, 0]
        gains.append(tuple(round(float(g), 4) for g in solution))
        change = torch.where((values > low) & (values < high), design @ solution, 0.0)
        shift = _curve((values + change)[keep], (error - change)[keep], (low, high))
        curve.append(tuple(round(float(c), 6) for c in shift))
    return ResidualFilter(sigmas, tuple(gains), (low, high), tuple(curve))


def _curve(values: torch.Tensor, error: torch.Tensor, span: tuple[float, float]) -> torch.Tensor:
    """The piecewise linear function of `values` (n,) nearest to `error` (n,), at `NODES` values over `span`."""
    node, share = hats(values, span, NODES)
    normal, right = torch.zeros((NODES + 2) ** 2, dtype=torch.float64), torch.zeros(NODES + 2, dtype=torch.float64)
    sides = ((node, 1 - share.double()), (node + 1, share.double()))
    for i, a in sides:
        right.index_add_(0, i, a * error)
        for j, b in sides:
            normal.index_add_(0, i * (NODES + 2) + j, a * b)
    normal = normal.view(NODES + 2, NODES + 2)[1:-1, 1:-1]
    rise = torch.eye(NODES, dtype=torch.float64).diff(dim=0)
    return torch.linalg.pinv(normal + STIFFNESS * rise.T @ rise, hermitian=True) @ right[1:-1]
