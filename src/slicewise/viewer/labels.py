"""Label maps to lay over a volume: DICOM segmentations and NIfTI files of whole numbers, put onto the volume's grid."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from slicewise.errors import UserError
from slicewise.io.dicom_seg import label_names, read_label_map, read_segmentation
from slicewise.io.nifti import is_nifti
from slicewise.volume import Volume


@dataclass(frozen=True)
class Labels:
    """Labels as a volume (int16, 0 is background), their names, and the frame of reference that they lie in, "" where
    it is not known."""

    title: str
    volume: Volume
    names: Mapping[int, str]
    frame: str = ""


def read_labels(path: Path) -> Labels:
    """Labels of a NIfTI file, named by labels.json beside it where there is one, or of a DICOM segmentation.

    Raises `UserError` where the file is neither, or damaged.
    """
    if is_nifti(path):
        volume = read_label_map(path)
        beside = path.with_name("labels.json")
        names, frame = (label_names(beside) if beside.is_file() else {}), ""
    else:
        volume, names = read_segmentation(path)
        frame = volume.acquisition.frame_of_reference_uid
    present = [int(v) for v in np.unique(volume.hu) if v]
    return Labels("/".join(path.parts[-2:]), volume, {v: names.get(v, f"label {v}") for v in present}, frame)


def on_grid(labels: Labels, volume: Volume) -> Volume:
    """The labels at the centres of a volume's voxels, each that of the nearest one, 0 outside.

    Raises `UserError` where they belong to another volume: their frame of reference is another one or, where either has
    none, their corners lie elsewhere.
    """
    frame = volume.acquisition.frame_of_reference_uid
    if labels.frame != frame if labels.frame and frame else not _same_place(labels.volume, volume):
        raise UserError(f"{labels.title}: belongs to another volume; choose the labels of this one")
    to_labels = np.linalg.inv(labels.volume.affine) @ volume.affine  # of voxels (x, y, z)
    found = ndimage.affine_transform(
        labels.volume.hu.transpose(2, 1, 0),
        to_labels[:3, :3],
        to_labels[:3, 3],
        output_shape=volume.hu.shape[::-1],
        order=0,
        output=np.int16,
        prefilter=False,
    )
    return volume.with_hu(np.ascontiguousarray(found.transpose(2, 1, 0)))


def _same_place(one: Volume, other: Volume) -> bool:
    """Whether the corners of two volumes are the same to a voxel."""
    corners = [
        np.array([v.affine @ [*(c * (np.array(v.hu.shape[::-1]) - 1)), 1] for c in np.ndindex(2, 2, 2)])
        for v in (one, other)
    ]
    return bool(np.abs(corners[0] - corners[1]).max() <= max(*one.spacing, *other.spacing))
