"""What deforms a person in a wanted way: velocity fields that widen ventricles, thicken skull, scalp or sinuses by one
millimetre, and what two persons are registered by."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from slicewise.data.phantom import warp
from slicewise.data.phantom.maps import BONE, BRAIN, HeadMap, outside
from slicewise.data.phantom.parts import signed_distance

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

    @property
    def fluid_share(self) -> float:
        """Fluid in fluid and brain, above the skull base."""
        fluid, brain = (float(self.classes[i][warp.grid_mm()[2].numpy() > -50].sum()) for i in (2, 3))
        return fluid / (fluid + brain)


def make_fields(head: HeadMap) -> Fields:
    """Fields of a head map, computed on every second voxel."""
    thin = replace(head, tissue=np.ascontiguousarray(head.tissue[::2, ::2, ::2]))
    around = outside(head.tissue)[::2, ::2, ::2]
    nodes = warp.grid_mm().numpy()
    index = np.einsum("ji,j...->i...", head.axes, nodes)[::-1] + head.origin[::-1].reshape(3, 1, 1, 1)

    def read(volume: np.ndarray) -> np.ndarray:
        found: np.ndarray = ndimage.map_coordinates(volume, index / 2, order=1, mode="nearest", output=np.float32)
        return found

    ventricle = thin.mask("ventricle", "midline ventricle", "choroid plexus")
    brain = thin.mask(*BRAIN, "fluid")
    cavity = ndimage.binary_closing(brain)
    sinus = (thin.tissue == 0) & ~around
    surfaces = {"ventricle": ventricle, "cavity": cavity, "sinus": sinus, "head": ~around}
    far = {name: read(signed_distance(mask, 30) * 2) for name, mask in surfaces.items()}
    room = np.clip(-far["cavity"] / 12, 0, 1)
    targets = [
        _outward(far["ventricle"]) * np.exp(-((np.maximum(far["ventricle"], 0) / 12) ** 2)) * room,
        _outward(far["cavity"]) * np.clip(far["cavity"] / 7, 0, 1),
        _outward(far["head"]) * np.exp(-((far["head"] / 8) ** 2)),
        _outward(far["sinus"]) * np.exp(-((np.maximum(far["sinus"], 0) / 5) ** 2)),
    ]
    fluid = thin.mask("fluid") | ventricle
    masks = (around, thin.mask(*BONE), fluid, brain & ~fluid, thin.mask("eye"), sinus)
    classes = [read(ndimage.gaussian_filter(mask.astype(np.float32), 0.9)) for mask in masks]
    whole = head.mask("ventricle", "midline ventricle", "choroid plexus")
    # Faces of voxels overstate a smooth surface by a half.
    faces = (np.diff(np.moveaxis(whole, axis, 0), axis=0).sum() for axis in range(3))
    surface = float(sum(faces)) / 1.5
    volume = float(whole.sum())
    # Sampling pulls back: what is to grow outward is read from further in.
    return Fields(-np.stack(targets), np.stack(classes), volume / 1000, volume / max(surface, 1.0))


def _outward(distance: np.ndarray) -> np.ndarray:
    """float32 (3, D, H, W): smooth unit normals (x, y, z) of a signed distance on the velocity grid."""
    dz, dy, dx = np.gradient(ndimage.gaussian_filter(distance, 0.8))
    normal = np.stack((dx, dy, dz))
    length = np.sqrt((normal**2).sum(0))
    found: np.ndarray = (normal / np.maximum(length, 0.3 * warp.STEP_MM)).astype(np.float32)
    return found


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
