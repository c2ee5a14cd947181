"""The one type for a CT volume, from ingest to export."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from slicewise.errors import UserError
from slicewise.hu import HU_MAX, HU_MIN, round_hu

if TYPE_CHECKING:
    import nibabel
    import SimpleITK
    import torchio
    from monai.data.meta_tensor import MetaTensor

# DICOM and ITK count to the patient's left and back, NIfTI and what follows it to the right and front.
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

# Steps between slices that differ by less than this are one spacing; DICOM positions are often rounded to 0.01 mm.
EVEN_TOLERANCE_MM = 0.02


@dataclass(frozen=True)
class Acquisition:
    """What is known about how a volume came to be; empty text or None where it is not. No patient data but the id that
    keeps patients apart in a split; `names_patient` is whether the headers hold a patient's name; `synthetic` whether
    the source says that something in it was made artificially (Synthetic Data, 0008,001C), and `real_slices` which of
    its slices, by index, it says were not: the seed that a chain continued from."""

    patient_id: str = ""
    study_uid: str = ""
    series_uid: str = ""
    frame_of_reference_uid: str = ""
    series_description: str = ""
    manufacturer: str = ""
    model: str = ""
    kernel: str = ""
    kvp: float | None = None
    slice_thickness_mm: float | None = None
    gantry_tilt_deg: float | None = None
    source: str = ""
    names_patient: bool = False
    synthetic: bool = False
    real_slices: tuple[int, ...] = ()


@dataclass(frozen=True)
class Volume:
    """A CT volume in Hounsfield units with its patient-space geometry (DICOM LPS, mm).

    Attributes
    ----------
    hu : int16 (Z, Y, X), whole HU in [-1024, 3071]; slice 0 is the most superior one.
    positions : float64 (Z, 3), centre of voxel [z, 0, 0] of every slice (Image Position (Patient), PS3.3 C.7.6.2.1.1).
        Keeping one per slice holds gantry tilt and uneven spacing exactly.
    row_axis, column_axis : float64 (3,), unit directions of increasing x (along a row) and of increasing y
        (Image Orientation (Patient)).
    pixel_spacing : (between rows = y, between columns = x) in mm, as in Pixel Spacing (0028,0030).
    acquisition : what is known about the scan.
    """

    hu: np.ndarray
    positions: np.ndarray
    row_axis: np.ndarray
    column_axis: np.ndarray
    pixel_spacing: tuple[float, float]
    acquisition: Acquisition = field(default_factory=Acquisition)

    def __post_init__(self) -> None:
        assert self.hu.ndim == 3, "hu must be int16 (Z, Y, X)"
        assert self.hu.dtype == np.int16, "hu must be int16 (Z, Y, X)"
        assert self.positions.shape == (self.hu.shape[0], 3), "one position a slice"

    @staticmethod
    def regular(
        hu: np.ndarray,
        spacing: tuple[float, float, float],
        acquisition: Acquisition | None = None,
        origin: tuple[float, float, float] | None = None,
    ) -> "Volume":
        """An axial volume on a regular grid: `spacing` is (z, y, x) in mm. Without `origin` (LPS of voxel [0, 0, 0])
        the grid is centred in the axial plane and the last slice lies at z = 0."""
        dz, dy, dx = spacing
        n_z, n_y, n_x = hu.shape
        if origin is None:
            origin = (-(n_x - 1) * dx / 2, -(n_y - 1) * dy / 2, (n_z - 1) * dz)
        positions = np.tile(np.asarray(origin, np.float64), (n_z, 1))
        positions[:, 2] = origin[2] - dz * np.arange(n_z)
        return Volume(
            hu=hu,
            positions=positions,
            row_axis=np.array([1.0, 0.0, 0.0]),
            column_axis=np.array([0.0, 1.0, 0.0]),
            pixel_spacing=(dy, dx),
            acquisition=acquisition or Acquisition(),
        )

    @property
    def normal(self) -> np.ndarray:
        """Unit slice normal row x column, float64 (3,): points superior-to-inferior or the reverse, as acquired."""
        return np.cross(self.row_axis, self.column_axis)

    @property
    def slice_steps(self) -> np.ndarray:
        """Distances between neighbouring slices along the normal, mm, float64 (Z - 1,), all positive."""
        found: np.ndarray = np.abs(np.diff(self.positions @ self.normal))
        return found

    @property
    def is_even(self) -> bool:
        """Whether all slice steps are one spacing, and one direction, within 0.02 mm."""
        if len(self.positions) < 3:
            return True
        steps = np.diff(self.positions, axis=0)
        return bool(np.abs(steps - steps.mean(axis=0)).max() <= EVEN_TOLERANCE_MM)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel spacing (z, y, x) in mm; z is the median slice step along the normal."""
        dz = float(np.median(self.slice_steps)) if len(self.positions) > 1 else self.acquisition.slice_thickness_mm
        return (float(dz or 1.0), *self.pixel_spacing)

    @property
    def affine(self) -> np.ndarray:
        """float64 (4, 4): voxel index (x, y, z, 1) to LPS mm; a tilted gantry shows as a sheared third column.

        Raises `UserError` where the slices are unevenly spaced: no affine can hold them; resample first.
        """
        if not self.is_even:
            raise UserError(
                f"{self.acquisition.source or 'volume'}: slices are unevenly spaced "
                f"({self.slice_steps.min():.2f} to {self.slice_steps.max():.2f} mm), which one affine cannot hold; "
                "resample to an even grid first (slicewise prepare)"
            )
        affine = np.eye(4)
        affine[:3, 0] = self.row_axis * self.pixel_spacing[1]
        affine[:3, 1] = self.column_axis * self.pixel_spacing[0]
        if len(self.positions) > 1:
            affine[:3, 2] = (self.positions[-1] - self.positions[0]) / (len(self.positions) - 1)
        else:
            affine[:3, 2] = [0.0, 0.0, -self.spacing[0]]
        affine[:3, 3] = self.positions[0]
        return affine

    def with_hu(self, hu: np.ndarray) -> "Volume":
        """The same geometry and acquisition with other voxels of the same shape."""
        assert hu.shape == self.hu.shape
        return replace(self, hu=hu)

    # What other libraries hold a volume in. Voxels there are indexed [x, y, z] and share this volume's memory where the
    # library allows it. All raise `UserError` for unevenly spaced slices, as `affine` does.

    def to_nibabel(self) -> "nibabel.Nifti1Image":
        """As nibabel's image: int16 HU, RAS affine in mm; shares memory."""
        import nibabel

        image = nibabel.Nifti1Image(self.hu.transpose(2, 1, 0), RAS_TO_LPS @ self.affine)
        image.header.set_xyzt_units("mm")
        return image

    def to_simpleitk(self) -> "SimpleITK.Image":
        """As SimpleITK's image: int16 HU, the first slice the most superior; a copy."""
        import SimpleITK

        image = SimpleITK.GetImageFromArray(self.hu)
        affine = self.affine
        steps = np.linalg.norm(affine[:3, :3], axis=0)
        image.SetSpacing(steps.tolist())
        image.SetDirection((affine[:3, :3] / steps).ravel().tolist())
        image.SetOrigin(affine[:3, 3].tolist())
        return image

    def to_torchio(self) -> "torchio.ScalarImage":
        """As TorchIO's image: int16 HU (1, X, Y, Z), RAS affine; shares memory."""
        import torch
        import torchio

        return torchio.ScalarImage(
            tensor=torch.from_numpy(self.hu.transpose(2, 1, 0))[None], affine=RAS_TO_LPS @ self.affine
        )

    def to_monai(self) -> "MetaTensor":
        """As MONAI's tensor: int16 HU (1, X, Y, Z), RAS affine; shares memory."""
        import torch
        from monai.data.meta_tensor import MetaTensor

        affine = torch.from_numpy(RAS_TO_LPS @ self.affine)
        return MetaTensor(torch.from_numpy(self.hu.transpose(2, 1, 0))[None], affine=affine)

    @staticmethod
    def from_nibabel(image: Any, acquisition: Acquisition | None = None) -> "Volume":
        """Of nibabel's image in HU, scaled or not (see `from_values`)."""
        return Volume.from_values(np.asanyarray(image.dataobj), RAS_TO_LPS @ image.affine, acquisition)

    @staticmethod
    def from_simpleitk(image: Any, acquisition: Acquisition | None = None) -> "Volume":
        """Of SimpleITK's image in HU (see `from_values`)."""
        import SimpleITK

        affine = np.eye(4)
        affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
        affine[:3, 3] = image.GetOrigin()
        return Volume.from_values(SimpleITK.GetArrayViewFromImage(image).transpose(2, 1, 0), affine, acquisition)

    @staticmethod
    def from_torchio(image: Any, acquisition: Acquisition | None = None) -> "Volume":
        """Of TorchIO's image of one channel in HU (see `from_values`)."""
        return Volume.from_values(image.numpy()[0], RAS_TO_LPS @ image.affine, acquisition)

    @staticmethod
    def from_monai(tensor: Any, acquisition: Acquisition | None = None) -> "Volume":
        """Of MONAI's tensor of one channel in HU (see `from_values`)."""
        affine = RAS_TO_LPS @ tensor.affine.double().cpu().numpy()
        return Volume.from_values(tensor.detach().cpu().numpy()[0], affine, acquisition)

    @staticmethod
    def from_values(values: np.ndarray, affine: np.ndarray, acquisition: Acquisition | None = None) -> "Volume":
        """Of HU of any real dtype, indexed [x, y, z], and their LPS affine: rounded half to even, clipped to the 12-bit
        range, brought into display order (see `volume_from_affine`). Raises `UserError` where they are not 3D or not
        finite."""
        values = np.asarray(values)
        if values.ndim != 3:
            raise UserError(f"{values.ndim} dimensions {values.shape} where one volume is expected; select one channel")
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise UserError("voxels that are not finite; replace them before making a volume of them")
        hu = values if values.dtype == np.int16 else round_hu(values.astype(np.float64))
        return volume_from_affine(np.clip(hu, HU_MIN, HU_MAX).astype(np.int16), affine, acquisition)


def volume_from_affine(hu: np.ndarray, affine: np.ndarray, acquisition: Acquisition | None = None) -> Volume:
    """A Volume from int16 voxels indexed [x, y, z] and their LPS affine (4, 4), in display order.

    Axes are permuted and flipped, never resampled: slices along the axis nearest to the patient's long axis, the most
    superior first; rows towards the patient's left and columns towards the back. Shear between the slice axis and the
    plane (a tilted gantry) is kept; raises `UserError` where the rows and columns themselves are sheared.
    """
    source = acquisition.source if acquisition else "volume"
    linear = affine[:3, :3]
    spacing = np.linalg.norm(linear, axis=0)
    if not np.isfinite(affine).all() or spacing.min() < 1e-4 or abs(np.linalg.det(linear / spacing)) < 1e-3:
        raise UserError(f"{source}: the affine is singular, so the voxels have no position; fix the header")
    order = _nearest_axes(linear / spacing)
    flips = [linear[axis, order[axis]] < 0 for axis in range(3)]
    flips[2] = not flips[2]
    directions = linear[:, order] * np.where(flips, -1.0, 1.0)
    shape = np.array(hu.shape)[list(order)]
    origin = affine[:3, 3] + sum(linear[:, order[a]] * (shape[a] - 1) for a in range(3) if flips[a])
    voxels = hu.transpose(order[2], order[1], order[0])[
        tuple(slice(None, None, -1 if flips[a] else 1) for a in (2, 1, 0))
    ]
    row, column = directions[:, 0] / spacing[order[0]], directions[:, 1] / spacing[order[1]]
    if abs(row @ column) > 1e-3:
        raise UserError(
            f"{source}: rows and columns are not at right angles; resample the file to a straight grid first"
        )
    return Volume(
        hu=np.ascontiguousarray(voxels),
        positions=origin + np.arange(shape[2])[:, None] * directions[:, 2],
        row_axis=row,
        column_axis=column,
        pixel_spacing=(float(spacing[order[1]]), float(spacing[order[0]])),
        acquisition=acquisition or Acquisition(),
    )


def _nearest_axes(directions: np.ndarray) -> tuple[int, int, int]:
    """For each patient axis (x, y, z) the voxel axis nearest to it; a one-to-one assignment."""
    permutations = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    return max(permutations, key=lambda order: sum(abs(directions[a, order[a]]) for a in range(3)))


def without_real_slices(volume: Volume) -> Volume:
    """A synthetic volume without the slices that it took from a real scan, so that they are not judged with it."""
    real = volume.acquisition.real_slices
    if not real:
        return volume
    keep = np.setdiff1d(np.arange(len(volume.hu)), real)
    return replace(
        volume,
        hu=volume.hu[keep],
        positions=volume.positions[keep],
        acquisition=replace(volume.acquisition, real_slices=()),
    )


def check_hu_range(hu: np.ndarray) -> int:
    """Number of voxels outside the 12-bit range [-1024, 3071]."""
    return int(np.count_nonzero((hu < HU_MIN) | (hu > HU_MAX)))
