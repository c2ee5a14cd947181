"""Intensity calibration of slices and volumes in Hounsfield units: IC-Net, and histogram matching as the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from slicewise.errors import UserError
from slicewise.hu import HU_MIN, ICNET, round_hu, to_unit
from slicewise.volume import Volume

if TYPE_CHECKING:
    from slicewise.networks.icnet import ICNet


def calibrate_slice(net: ICNet, hu_slice: np.ndarray, previous: np.ndarray) -> np.ndarray:
    """Calibrate slices with IC-Net, each by the slice before it.

    `hu_slice` and `previous` are HU, any real dtype, (B, H, W) or (H, W); returns float64 HU of the same shape, not
    rounded. Voxels outside the window [-150, 150] HU keep their HU exactly. Inside, the correction fades out towards
    the window's borders (`slicewise.networks.icnet.confine`), so that no step appears between a voxel that is corrected
    and its neighbour that is not. Runs in float32 on the device of `net`.
    """
    import torch

    assert hu_slice.shape == previous.shape
    assert hu_slice.ndim in (2, 3)
    hu = np.asarray(hu_slice, np.float64)
    x = torch.from_numpy(_pair(hu, previous)).to(next(net.parameters()).device)
    with torch.no_grad():
        change = (net(x) - x[:, :1])[:, 0].double().cpu().numpy().reshape(hu.shape)
    inside = (hu > ICNET.lo) & (hu < ICNET.hi)
    return hu + np.where(inside, change * (ICNET.hi - ICNET.lo) / 2.0, 0.0)


def calibrate_volume(net: ICNet, volume: Volume, seed_slice: int | None = None) -> Volume:
    """Calibrate a volume slice after slice with IC-Net, each given the already calibrated slice before it.

    Without `seed_slice` the chain runs downward from a slice of air, as the paper's generation does. With it, that
    slice is the reference: it keeps its HU and the chain runs outward from it, down and up. Slices pass from one to the
    next unrounded; the result is rounded to whole HU once.

    Raises `UserError` if `seed_slice` is not a slice of the volume.
    """
    if seed_slice is None:
        return volume.with_hu(round_hu(calibrate_chains(net, [volume.hu], seeded=False)[0]))
    _check_seed(volume, seed_slice)
    down, up = calibrate_chains(net, [volume.hu[seed_slice:], volume.hu[seed_slice::-1]], seeded=True)
    return volume.with_hu(round_hu(np.concatenate([up[:0:-1], down])))


def calibrate_chains(net: ICNet, chains: Sequence[np.ndarray], seeded: bool) -> list[np.ndarray]:
    """Calibrate chains of slices side by side, each slice given the calibrated one before it; HU (Z, H, W) each, in the
    order of the chain, any real dtype and number of slices. The first slice is the reference where the chains are
    `seeded`, else it is given air. Returns float64 HU, not rounded.
    """
    done = [chain.astype(np.float64) for chain in chains]
    air = np.full(done[0].shape[1:], float(HU_MIN))
    for z in range(int(seeded), max(map(len, done))):
        held = [chain for chain in done if z < len(chain)]
        before = np.stack([chain[z - 1] if z else air for chain in held])
        for chain, result in zip(held, calibrate_slice(net, np.stack([chain[z] for chain in held]), before)):
            chain[z] = result
    return done


def brain_shift(before: Volume, after: Volume) -> tuple[float, float] | None:
    """By how many HU a calibration moved the brain: the mean over all its slices, and that of the slice that moved
    most. None where no brain is found."""
    from slicewise.metrics.tissue import brain_mask

    mask = brain_mask(before.hu, before.spacing)
    change = after.hu.astype(np.float64) - before.hu
    by_slice = [float(change[z][mask[z]].mean()) for z in np.flatnonzero(mask.any(axis=(1, 2)))]
    return (float(change[mask].mean()), max(by_slice, key=abs)) if by_slice else None


def match_histogram(image: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Give `image` the grey value distribution of `reference`: each value goes to the reference's value of the same
    cumulative share (linear between them), as scikit-image's `match_histograms` does.

    Both are HU arrays of any real dtype and shape; returns float64 of the image's shape. The baseline of the paper
    (section 3.3): the shares of tissue differ between slices, so this bends anatomy.
    """
    _, codes, counts = np.unique(image, return_inverse=True, return_counts=True)
    reference_values, reference_counts = np.unique(reference, return_counts=True)
    share = np.cumsum(counts) / image.size
    reference_share = np.cumsum(reference_counts) / reference.size
    return np.interp(share, reference_share, reference_values.astype(np.float64))[codes.reshape(image.shape)]


def match_volume(volume: Volume, to: str = "previous", seed_slice: int = 0) -> Volume:
    """Match the histogram of every slice to the seed slice (`to="seed"`) or, chained outward from the seed slice, to
    its already matched neighbour (`to="previous"`). The seed slice keeps its HU.

    Raises `UserError` for another `to` or a seed slice that is not in the volume.
    """
    if to not in ("seed", "previous"):
        raise UserError(f"match_volume: to={to!r} is unknown; choose 'seed' or 'previous'")
    _check_seed(volume, seed_slice)
    hu = volume.hu.astype(np.float64)
    for before, z in _outward(len(hu), seed_slice):
        hu[z] = match_histogram(hu[z], hu[seed_slice if to == "seed" else before])
    return volume.with_hu(round_hu(hu))


def _pair(hu: np.ndarray, previous: np.ndarray) -> np.ndarray:
    """(B, 2, H, W) float32 in the IC-Net window's unit range."""
    slices = [to_unit(h, ICNET).reshape(-1, 1, *hu.shape[-2:]) for h in (hu, previous)]
    return np.concatenate(slices, axis=1)


def _outward(n_slices: int, seed: int) -> list[tuple[int, int]]:
    """(slice before, slice) from the seed down to the last slice, then from the seed up to the first."""
    down = [(z - 1, z) for z in range(seed + 1, n_slices)]
    return down + [(z + 1, z) for z in range(seed - 1, -1, -1)]


def _check_seed(volume: Volume, seed_slice: int) -> None:
    if not 0 <= seed_slice < len(volume.hu):
        name = volume.acquisition.source or "volume"
        raise UserError(f"{name}: seed slice {seed_slice} is not among its {len(volume.hu)} slices (0 is the topmost)")
