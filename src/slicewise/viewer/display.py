"""What a browser needs to show a volume: its voxels as NIfTI, display windows, and the curve of its slice means."""

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Any

import nibabel as nib
import numpy as np

from slicewise.data.store import first_head_slice
from slicewise.hu import BRAIN, HEAD_HU, ICNET, WHOLE, Window
from slicewise.metrics.tissue import brain_mask, brain_profile
from slicewise.volume import RAS_TO_LPS, Volume, volume_from_affine

# Keys 1 to 9 in the viewer; 9 is the volume's own range.
WINDOWS: tuple[tuple[str, Window], ...] = (
    ("Brain", BRAIN),
    ("Stroke", Window(20, 60)),
    ("Subdural", Window(-25, 175)),
    ("Soft tissue", Window(-160, 240)),
    ("IC-Net", ICNET),
    ("Bone", Window(-800, 2000)),
    ("Air and sinuses", Window(-1150, 350)),
    ("Whole range", WHOLE),
)


@dataclass(frozen=True)
class Shown:
    """A volume ready for the browser.

    Attributes
    ----------
    volume : the volume in display order: axial slices, even, rows to the left, columns to the back.
    nifti : a whole .nii file, int16 HU, uncompressed, axes towards the patient's right, front and head.
    about : plain values for the page: shape and spacing (z, y, x), the least and greatest HU, the first slice with head
        (`vertex`), a fingerprint of the geometry, and a note where slices were rearranged.
    """

    volume: Volume
    nifti: bytes
    about: dict[str, Any]


def show(volume: Volume) -> Shown:
    """Everything the viewer asks for of one volume."""
    note = ""
    if not volume.is_even:
        steps = volume.slice_steps
        note = f"uneven slices ({steps.min():.2f} to {steps.max():.2f} mm): the nearest one is shown at every position"
        volume = evenly(volume)
    volume = volume_from_affine(volume.hu.transpose(2, 1, 0), volume.affine, volume.acquisition)  # display order
    geometry = np.concatenate([volume.positions[[0, -1]].ravel(), volume.row_axis, volume.pixel_spacing])
    about = {
        "shape": list(volume.hu.shape),
        "spacing": [round(s, 4) for s in volume.spacing],
        "range": [int(volume.hu.min()), int(volume.hu.max())],
        "vertex": first_head_slice(volume.hu),
        "geometry": hashlib.sha256(np.round(geometry, 2).tobytes() + str(volume.hu.shape).encode()).hexdigest()[:16],
        "note": note,
    }
    return Shown(volume, encode(volume), about)


def curve(shown: Shown) -> dict[str, Any]:
    """The curve below the picture: mean HU by slice, superior first, None where there is nothing; and what it is of.
    Takes longer than all else, so the page asks for it last."""
    values, what = slice_means(shown.volume)
    return {"of": what, "values": [None if math.isnan(v) else round(float(v), 2) for v in values]}


def encode(volume: Volume) -> bytes:
    """A .nii file of int16 HU with slope 1 and voxel axes in RAS order: what NiiVue draws without rearranging.

    The length depends on the volume's shape alone, the 352 bytes before the voxels on shape and affine alone. Raises
    `UserError` for uneven slices (see `evenly`).
    """
    image = nib.Nifti1Image(volume.hu.transpose(2, 1, 0), RAS_TO_LPS @ volume.affine, dtype=np.int16)
    image = nib.as_closest_canonical(image)
    image.header.set_slope_inter(1, 0)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b""
    found: bytes = image.to_bytes()
    return found


def evenly(volume: Volume) -> Volume:
    """The volume at its median slice step, every place shown by the slice nearest to it, so that all HU are measured
    ones."""
    places = volume.positions @ volume.normal
    count = round(abs(places[-1] - places[0]) / volume.spacing[0]) + 1
    wanted = np.linspace(places[0], places[-1], count)
    nearest = np.abs(places[None, :] - wanted[:, None]).argmin(axis=1)
    share = np.linspace(0.0, 1.0, count)[:, None]
    positions = (1 - share) * volume.positions[0] + share * volume.positions[-1]
    return replace(volume, hu=volume.hu[nearest], positions=positions)


def slice_means(volume: Volume) -> tuple[np.ndarray, str]:
    """Mean HU by slice, float64 (Z,), NaN where there is nothing, and of what: "brain", or "head" where no brain is
    found."""
    mask = brain_mask(volume.hu, volume.spacing)
    profile = brain_profile(volume.hu, mask, volume.spacing)
    if np.isfinite(profile).sum() >= 2:
        return profile, "brain"
    head = volume.hu > HEAD_HU
    counts = head.sum(axis=(1, 2))
    sums = np.where(head, volume.hu, 0).sum(axis=(1, 2), dtype=np.float64)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan), "head"


def windows() -> list[dict[str, Any]]:
    """The presets for the page, in the order of their keys."""
    return [{"name": name, "lo": window.lo, "hi": window.hi} for name, window in WINDOWS]
