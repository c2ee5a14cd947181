"""What deforms a person in a wanted way: velocity fields that widen ventricles, thicken skull, scalp or sinuses by one
millimetre, and what two persons are registered by."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from slicewise.data.phantom import warp
from slicewise.data.phantom.maps import BONE, BRAIN, HeadMap, outside
from slicewise.data.phantom.parts import region_distance

TARGETS = ("ventricles", "skull", "scalp", "sinuses")
CLASSES = ("outside", "bone", "fluid", "white and grey", "eye", "air inside")
ITERATIONS, RATE, ROUGHNESS = 50, 0.35, 3e-3
LOWEST_MM = -78.0  # maps may end below this


@dataclass(frozen=True)
class Fields:
    """A person on the velocity grid of `warp`.

    Attributes
    ----------
    targets : float32 (4, 3, D, H, W), velocities that move the surface of each of `TARGETS` outward by 1 mm.
    classes : float32 (6, D, H, W), share of each of `CLASSES`, smoothed.
    ventricle_ml : volume of the ventricles.
    ventricle_mm : volume over surface: widening by this much times ln(r) makes them r times as large.
    """

    targets: np.ndarray
    classes: np.ndarray
    ventricle_ml: float
    ventricle_mm: float


def make_fields(head: HeadMap) -> Fields:
    """Fields of a head map."""
    nodes = warp.grid_mm().numpy()
    index = np.einsum("ji,j...->i...", head.axes, nodes)[::-1] + head.origin[::-1].reshape(3, 1, 1, 1)

    def read(volume: np.ndarray) -> np.ndarray:
        return ndimage.map_coordinates(volume, index, order=1, mode="nearest", output=np.float32)

    def share(mask: np.ndarray) -> np.ndarray:
        return read(ndimage.gaussian_filter(mask.astype(np.float32), 1.8))

    ventricle = head.mask("ventricle", "midline ventricle", "choroid plexus")
    around = outside(head.tissue)
    brain = head.mask(*BRAIN, "fluid")
    cavity = ndimage.binary_closing(brain, iterations=2)
    sinus = (head.tissue == 0) & ~around
    far = {n: read(region_distance(m, 60)) for n, m in (("v", ventricle), ("c", cavity), ("s", sinus), ("o", ~around))}
    room = np.clip(-far["c"] / 12, 0, 1)
    targets = [
        _outward(far["v"]) * np.exp(-((np.maximum(far["v"], 0) / 12) ** 2)) * room,
        _outward(far["c"]) * np.clip(far["c"] / 7, 0, 1),
        _outward(far["o"]) * np.exp(-((far["o"] / 8) ** 2)),
        _outward(far["s"]) * np.exp(-((np.maximum(far["s"], 0) / 5) ** 2)),
    ]
    classes = [
        share(m)
        for m in (around, head.mask(*BONE), head.mask("fluid") | ventricle, brain & ~ventricle & ~head.mask("fluid"),
                  head.mask("eye"), sinus)
    ]  # fmt: skip
    surface = sum(np.abs(np.diff(ventricle.astype(np.int8), axis=a)).sum() for a in range(3)) * 2 / 3
    volume = float(ventricle.sum())
    # Sampling pulls back: what is to grow outward is read from further in.
    return Fields(-np.stack(targets), np.stack(classes), volume / 1000, volume / max(float(surface), 1.0))


def _outward(distance: np.ndarray) -> np.ndarray:
    """float32 (3, D, H, W): smooth unit normals (x, y, z) of a signed distance on the velocity grid."""
    dz, dy, dx = np.gradient(ndimage.gaussian_filter(distance, 0.8))
    normal = np.stack((dx, dy, dz))
    length = np.sqrt((normal**2).sum(0))
    return (normal / np.maximum(length, 0.3 * warp.STEP_MM)).astype(np.float32)


def register(moving: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Velocity float32 (3, D, H, W) whose flow carries the fixed classes' points to the moving ones': moving(exp(v)(x))
    is near fixed(x). Gradient descent (Adam) on the squared difference and the field's roughness."""
    still, move = torch.from_numpy(fixed), torch.from_numpy(moving)
    nodes = warp.grid_mm()
    shown = (nodes[2] > LOWEST_MM).float()
    half = [(n + 1) // 2 for n in warp.SHAPE]
    control = torch.zeros(1, 3, *half, requires_grad=True)
    adam = torch.optim.Adam([control], lr=RATE)

    def velocity() -> torch.Tensor:
        return functional.interpolate(control, warp.SHAPE, mode="trilinear", align_corners=True)[0]

    with torch.enable_grad():
        for _ in range(ITERATIONS):
            adam.zero_grad()
            moved = warp.sample(move, nodes + warp.exponential(velocity(), 4))
            rough = sum(control.diff(dim=d).square().mean() for d in (2, 3, 4))
            ((moved - still).square().mean(0) * shown).mean().add(ROUGHNESS * rough).backward()
            adam.step()
    return velocity().detach().numpy()
