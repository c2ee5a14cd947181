"""The one type for a CT volume, from ingest to export."""

from dataclasses import dataclass, field, replace

import numpy as np

from slicewise.errors import UserError
from slicewise.hu import HU_MAX, HU_MIN

# Steps between slices that differ by less than this are one spacing; DICOM positions are often rounded to 0.01 mm.
EVEN_TOLERANCE_MM = 0.02


@dataclass(frozen=True)
class Acquisition:
    """What is known about how a volume came to be; empty text or None where it is not. No patient data but the id that
    keeps patients apart in a split; `names_patient` is whether the headers hold a patient's name; `synthetic` whether
    the source says that something in it was made artificially (Synthetic Data, 0008,001C), and `real_slices` which of
    its slices, by index, it says were not: the seed that a chain went on from."""

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
        assert self.hu.ndim == 3 and self.hu.dtype == np.int16, "hu must be int16 (Z, Y, X)"
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
        return np.abs(np.diff(self.positions @ self.normal))

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
