"""Smooth, invertible deformations of a head: stationary velocity fields in the head frame, integrated by scaling and
squaring (Arsigny et al. 2006)."""

import numpy as np
import torch
from torch.nn import functional

from slicewise.data.phantom.shapes import smooth_noise

# The head frame's box in mm, (z, y, x) from .. to, and the grid step on which velocities live.
LOW = (-140.0, -140.0, -104.0)
HIGH = (112.0, 132.0, 104.0)
STEP_MM = 4.0
SHAPE = tuple(round((b - a) / STEP_MM) + 1 for a, b in zip(LOW, HIGH))
SQUARINGS = 6


def grid_mm() -> torch.Tensor:
    """float32 (3, D, H, W): x, y, z of the velocity grid's nodes in the head frame, mm."""
    z, y, x = (torch.linspace(a, b, n) for a, b, n in zip(LOW, HIGH, SHAPE))
    return torch.stack(torch.meshgrid(z, y, x, indexing="ij")[::-1])


def random_velocity(rng: np.random.Generator, scales_mm: tuple[float, ...], sds_mm: tuple[float, ...]) -> torch.Tensor:
    """float32 (3, D, H, W) mm: the sum of smooth noises, each with its scale and standard deviation."""
    parts = [
        [sd * smooth_noise(rng, SHAPE, (STEP_MM,) * 3, scale) for _ in range(3)]
        for scale, sd in zip(scales_mm, sds_mm, strict=True)
    ]
    return torch.from_numpy(np.sum(parts, 0, dtype=np.float32))


def sample(field: torch.Tensor, at_mm: torch.Tensor) -> torch.Tensor:
    """A field (C, D, H, W) on the velocity grid read at points (3, ...) in mm, trilinear, constant beyond the box."""
    low, high = (torch.tensor(v[::-1], device=at_mm.device).view(3, *[1] * (at_mm.ndim - 1)) for v in (LOW, HIGH))
    unit = ((at_mm - low) / (high - low) * 2 - 1).reshape(3, -1).T.view(1, -1, 1, 1, 3)
    read = functional.grid_sample(field[None], unit, mode="bilinear", padding_mode="border", align_corners=True)
    return read.view(field.shape[0], *at_mm.shape[1:])


def exponential(velocity: torch.Tensor, squarings: int = SQUARINGS) -> torch.Tensor:
    """Displacement float32 (3, D, H, W) mm of the flow along a velocity field for unit time."""
    nodes = grid_mm().to(velocity.device)
    moved = velocity / 2**squarings
    for _ in range(squarings):
        moved = moved + sample(moved, nodes + moved)
    found: torch.Tensor = moved
    return found


def jacobian(displacement: torch.Tensor) -> torch.Tensor:
    """Determinant of the Jacobian of x -> x + displacement, (D - 1, H - 1, W - 1), by forward differences."""
    whole = grid_mm().to(displacement.device) + displacement
    core = (slice(None), slice(-1), slice(-1), slice(-1))
    columns = [whole.diff(dim=d)[(*core[:d], slice(None), *core[d + 1 :])] / STEP_MM for d in (3, 2, 1)]
    found: torch.Tensor = torch.linalg.det(torch.stack(columns).permute(2, 3, 4, 0, 1))
    return found
