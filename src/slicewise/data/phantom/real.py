"""A head of real anatomy: a person's parts, morphed, warped and posed, sampled on the sub-slices of a scan."""

from dataclasses import asdict

import numpy as np
import torch

from slicewise.data.phantom import warp
from slicewise.data.phantom.fields import TARGETS, Fields
from slicewise.data.phantom.labels import TissueVolume, fine_grid
from slicewise.data.phantom.parts import FINE_MM, Parts
from slicewise.data.phantom.shapes import rotation, smooth_noise
from slicewise.data.phantom.tissue import Tissues, draw_tissues, tables, texture_table

FINEST_Z_MM = 1.25
FLOOR_MM = (-104.0, -88.0)  # the lowest slice lies below the middle of the cerebrum: at the upper jaw
COARSE_MM = 4.0
TEXTURE_MM = (12.0, 3.0)  # scales of the texture inside tissues
LEAST_JACOBIAN = 0.1
RANDOM_SCALES_MM, RANDOM_SDS_MM = (60.0, 30.0, 14.0), (2.2, 1.2, 0.45)


def make_tissue(
    rng: np.random.Generator, parts: Parts, fields: Fields, morph: np.ndarray | float, size: int, fov_mm: float,
    slice_mm: float, device: str = "cpu",
) -> TissueVolume:  # fmt: skip
    """The head of these draws on sub-slices of at most 1.25 mm; in plane half the pixel at 128, else the pixel.

    `morph` is a velocity float32 (3, D, H, W) towards another person, or 0.
    """
    tissues = draw_tissues(rng, fields.fluid_share)
    hu_table, label_table = tables(tissues)
    pose = draw_pose(rng, parts)
    velocity, amounts = draw_velocity(rng, tissues, fields, torch.as_tensor(morph))
    displacement = unfolded(velocity.to(device))
    per_slice, factor = fine_grid(size, fov_mm, slice_mm, FINEST_Z_MM)
    dz, n_fine = slice_mm / per_slice, size * factor
    pixel = fov_mm / n_fine
    corners = _surface(parts) @ np.linalg.inv(pose).T
    top = corners[:, 2].max() + 6 + slice_mm * float(rng.uniform(0, 1))
    floor = max(_floor(parts, pose), float(rng.uniform(*FLOOR_MM)))
    n_slices = int((top - floor) / slice_mm)
    n_z = (n_slices + 1) * per_slice
    middle = (corners.min(0) + corners.max(0)) / 2
    shift = rng.normal(0, 2.5, 2)
    half = (corners.max(0) - corners.min(0)) / 2 + 9
    rows, x_mm = _span(middle[0], half[0], n_fine, pixel, float(shift[0]))
    columns = rows
    rows, y_mm = _span(middle[1], half[1], n_fine, pixel, float(shift[1]))
    z_mm = top - (np.arange(n_z) - per_slice // 2) * dz
    code = sample_parts(parts, displacement, pose, z_mm, y_mm, x_mm, device).cpu().numpy()
    hu, labels = np.take(hu_table, code), np.take(label_table, code)
    step = (dz, pixel, pixel)
    grain = sum(smooth_noise(rng, code.shape, step, scale) for scale in TEXTURE_MM)
    hu += np.take(texture_table() / np.sqrt(len(TEXTURE_MM), dtype=np.float32), code) * grain
    centres = np.arange(n_slices) * per_slice + per_slice // 2
    described = {k: round(v, 3) for k, v in asdict(tissues).items()}
    described |= {f"{name}_mm": round(a, 3) for name, a in zip(TARGETS, amounts)}
    return TissueVolume(hu, labels, step, centres, (rows, columns), n_fine, described)


def draw_amounts(rng: np.random.Generator, tissues: Tissues, fields: Fields) -> list[float]:
    """Millimetres by which the surfaces of `TARGETS` move outward. Ventricles go to a size that suits the age, 0.6 to
    2.5 times what they are."""
    wanted_ml = np.exp(np.log(20) + 0.021 * (tissues.age - 55) + rng.normal(0, 0.38))
    factor = np.clip(wanted_ml / max(fields.ventricle_ml, 1.0), 0.6, 2.5)
    ventricles = np.log(factor) * fields.ventricle_mm
    skull = np.clip(rng.normal(0.2, 0.8), -1.3, 2.0)
    scalp = np.clip(0.35 * (tissues.fat_mm - 4) + rng.normal(0, 0.5), -1.2, 2.5)
    return [float(v) for v in (ventricles, skull, scalp, np.clip(rng.normal(0, 0.8), -1.5, 1.5))]


def draw_velocity(
    rng: np.random.Generator, tissues: Tissues, fields: Fields, morph: torch.Tensor
) -> tuple[torch.Tensor, list[float]]:
    """Velocity float32 (3, D, H, W) mm of a head: random, morph and targets; and the targets' amounts in mm."""
    amounts = draw_amounts(rng, tissues, fields)
    velocity = warp.random_velocity(rng, RANDOM_SCALES_MM, RANDOM_SDS_MM) + morph
    velocity += torch.tensordot(torch.tensor(amounts, dtype=torch.float32), torch.from_numpy(fields.targets), 1)
    return velocity, amounts


def unfolded(velocity: torch.Tensor) -> torch.Tensor:
    """Displacement of a velocity field, weakened until it folds nowhere: Jacobian above 0.1 on every grid cell."""
    displacement = warp.exponential(velocity)
    while warp.jacobian(displacement).min() < LEAST_JACOBIAN:
        velocity = velocity * 0.85
        displacement = warp.exponential(velocity)
    return displacement


def draw_pose(rng: np.random.Generator, parts: Parts) -> np.ndarray:
    """float64 (3, 3): scan frame to head frame, both (x, y, z) mm: turned, a little larger or smaller, sheared; half
    of the heads are mirrored. A head whose map ends early is tilted so that its end lies flat."""
    pitch, roll, yaw = np.deg2rad([rng.uniform(-8, 20), rng.normal(0, 2.5), rng.normal(0, 3.5)])
    own = np.arctan2(parts.axes[1, 2], parts.axes[1, 1]) + np.deg2rad(rng.normal(0, 1.5))
    scale = np.diag(1 / (rng.normal(1, 0.03) * rng.normal(1, 0.025, 3)))
    shear = np.eye(3) + np.triu(rng.normal(0, 0.012, (3, 3)), 1)
    mirror = np.diag([-1.0 if rng.random() < 0.5 else 1.0, 1.0, 1.0])
    head = mirror @ shear @ scale
    pose = head @ rotation(pitch, roll, yaw)
    found: np.ndarray = head @ rotation(own, roll / 2, yaw) if _floor(parts, pose) > FLOOR_MM[1] else pose
    return found


def _to_mm(parts: Parts, index: np.ndarray) -> np.ndarray:
    """(n, 3) voxel indices (z, y, x) as head frame (x, y, z) mm."""
    found: np.ndarray = (index[:, ::-1] - parts.origin) * FINE_MM @ parts.axes.T
    return found


def _surface(parts: Parts) -> np.ndarray:
    """(n, 3) points of the head in the head frame, mm, every 4 mm."""
    return _to_mm(parts, np.argwhere(parts.code[::8, ::8, ::8]) * 8.0)


def _floor(parts: Parts, pose: np.ndarray) -> float:
    """Height in the scan frame, mm, below which the map has been cut off."""
    cut = np.argwhere(parts.code[-1, ::8, ::8]) * 8.0
    if not len(cut):
        return -np.inf
    index = np.concatenate([np.full((len(cut), 1), float(parts.code.shape[0])), cut], 1)
    return float((_to_mm(parts, index) @ np.linalg.inv(pose).T)[:, 2].max()) + 5.0


def _span(middle: float, half: float, n: int, pixel: float, shift: float) -> tuple[slice, np.ndarray]:
    """Pixels of the fine plane that hold middle - half .. middle + half when the middle is at the plane's centre but
    for `shift` mm, and their coordinates in the scan frame, mm."""
    centre = (n - 1) / 2 + shift / pixel
    first = max(0, int(centre - half / pixel)) // 2 * 2
    last = min(n, (int(centre + half / pixel) + 2) // 2 * 2)
    return slice(first, last), (np.arange(first, last) - centre) * pixel + middle


def sample_parts(
    parts: Parts, displacement: torch.Tensor, pose: np.ndarray, z_mm: np.ndarray, y_mm: np.ndarray, x_mm: np.ndarray,
    device: str = "cpu",
) -> torch.Tensor:  # fmt: skip
    """uint8 (Z', Y', X'): the part at every point of a grid in the scan frame; nearest voxel of 0.5 mm.

    The map is computed on nodes 4 mm apart and interpolated linearly between them, which a smooth field allows.
    """
    nodes, weights = zip(*(_nodes(v) for v in (z_mm, y_mm, x_mm)))
    z, y, x = torch.meshgrid(*(torch.from_numpy(n.astype(np.float32)) for n in nodes), indexing="ij")
    scan = torch.stack((x, y, z)).to(device)
    head = torch.einsum("ij,jzyx->izyx", torch.from_numpy(pose.astype(np.float32)).to(device), scan)
    head = head + warp.sample(displacement, head)
    to_index = torch.from_numpy((parts.axes.T / FINE_MM).astype(np.float32)).to(device)
    index = torch.einsum("ij,jzyx->izyx", to_index, head)
    index += torch.from_numpy(parts.origin.astype(np.float32)).to(device).view(3, 1, 1, 1)
    wz, wy, wx = (torch.from_numpy(w).to(device) for w in weights)
    depth, height, width = parts.code.shape
    volume = torch.from_numpy(np.asarray(parts.code)).to(device).view(-1)
    out = torch.empty((len(z_mm), len(y_mm), len(x_mm)), dtype=torch.uint8, device=device)
    rows = torch.einsum("czyx,Yy,Xx->czYX", index, wy, wx)
    for k in range(len(z_mm)):
        plane = _between(rows, wz[k])
        i = plane.round_().to(torch.int32)
        inside = (i[0] >= 0) & (i[0] < width) & (i[1] >= 0) & (i[1] < height) & (i[2] >= 0)
        flat = (i[2].clamp_(0, depth - 1) * height + i[1].clamp_(0, height - 1)) * width + i[0].clamp_(0, width - 1)
        out[k] = volume.index_select(0, flat.view(-1)).view_as(flat) * inside
    return out


def _nodes(mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nodes that span coordinates, mm, and the float32 matrix (len(mm), nodes) that interpolates between them."""
    n = max(int(np.ceil(abs(mm[-1] - mm[0]) / COARSE_MM)), 1) + 1
    nodes = np.linspace(mm[0], mm[-1], n)
    at = np.linspace(0, n - 1, len(mm))
    low = np.minimum(at.astype(int), n - 2)
    weights = np.zeros((len(mm), n), np.float32)
    weights[np.arange(len(mm)), low] = 1 - (at - low)
    weights[np.arange(len(mm)), low + 1] = at - low
    return nodes, weights


def _between(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The plane between the two nodes that have weight."""
    two = weights.nonzero().view(-1)
    plane = rows[:, two[0]] * weights[two[0]]
    return plane + rows[:, two[1]] * weights[two[1]] if len(two) > 1 else plane
