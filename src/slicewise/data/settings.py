"""How training data are made: from an archive, or as phantoms."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from slicewise.errors import UserError

if TYPE_CHECKING:
    from slicewise.data.resample import Grid


def check_shares(fractions: Sequence[float]) -> None:
    """`UserError` for shares of train, val and test that do not sum to one."""
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise UserError(f"split fractions {tuple(fractions)}: give three shares (train, val, test) that sum to 1")


@dataclass(frozen=True)
class PrepareSettings:
    """How an archive becomes training data."""

    size: int = 128
    """Pixels per side of a prepared slice."""
    fov_mm: float = 240.0
    """Side of the field of view, mm; the head is in its middle."""
    slice_mm: float = 5.0
    """Distance between prepared slices, mm."""
    crop_air_above: bool = True
    """Start with the first slice that shows the head."""
    min_coverage: float = 0.85
    """Smallest share of the head that the scan must cover in a slice (the ends of tilted scans are cut)."""
    remove_table: bool = False
    """Set table and head holder to air."""
    interpolate_missing: bool = False
    """Fill gaps by linear interpolation where no more than two slices are missing, of the series or of the working
    grid; otherwise such a series is left out."""
    largest_part: bool = False
    """From a scan with gaps that are not filled, use the longest part without one."""
    keep_tilt: bool = False
    """Keep slices in the plane of a tilted gantry instead of upright, so that thick ones are not interpolated
    across."""
    trust_hu: bool = False
    """Accept volumes whose values, judging by their histogram, cannot be HU (no air near -1000, soft tissue not near
    30, no bone); they are left out otherwise."""
    patient_from: Literal["id", "path"] = "id"
    """How patients are told apart: "id", by Patient ID, and NIfTI by path; or "path", by the first folder below the
    given one."""
    min_slices: int = 8
    """Smallest number of slices, before and after resampling; shorter volumes are left out."""
    split: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Shares of patients for training, validation and test."""
    seed: int = 0
    """Seed of the split; a patient's split depends on it alone, except that a small store fills validation and test
    from training. An existing store splits new patients by its own shares and seed."""
    keep_sources: bool = False
    """Write the paths of the scans into the manifest, where anyone who gets the store can read them."""
    allow_names: bool = False
    """Accept DICOM whose headers contain patients' names, which is refused otherwise (a store contains no names, but
    the folders it comes from do)."""
    workers: int = 0
    """Processes; 0 means one per processor."""

    def __post_init__(self) -> None:
        if self.size < 8 or self.fov_mm <= 0 or self.slice_mm <= 0 or self.min_slices < 1 or self.workers < 0:
            raise UserError(
                f"PrepareSettings.size={self.size} PrepareSettings.fov_mm={self.fov_mm:g} "
                f"PrepareSettings.slice_mm={self.slice_mm:g} PrepareSettings.min_slices="
                f"{self.min_slices} PrepareSettings.workers={self.workers}: size must be 8 or more, the others positive"
            )
        check_shares(self.split)

    @property
    def grid(self) -> "Grid":
        """The working grid of these settings."""
        from slicewise.data.resample import Grid

        return Grid(**{f.name: getattr(self, f.name) for f in fields(Grid)})


@dataclass(frozen=True)
class PhantomSettings:
    """How the heads are made."""

    size: int = 256
    """Pixels per side in plane: 128, 256 or 512."""
    fov_mm: float = 240.0
    """In-plane field of view in mm."""
    slice_mm: float = 5.0
    """Slice spacing and slice profile width in mm."""
    pathology: float = 0.2
    """Probability that a head has a mild pathology: bleed, infarct, tumour, calcification or fracture."""
    table: float = 0.0
    """Probability that the head holder is in view."""
    profile_mm: float = 0.0
    """Width of the slice profile in mm; 0: same as slice_mm."""
    kernel: str = "soft"
    """Reconstruction kernel: soft, standard or bone."""
    hardening: float = 1.0
    """Beam hardening (cupping, dark bar between the petrous bones) relative to the usual; 0: none."""
    offset_hu: float = 0.6
    """Standard deviation of the offset in HU that each slice has of its own."""
    motion: float = 0.0
    """Probability that the head moves in one to three slices."""
    metal: float = 0.0
    """Probability of a filling or a clip with its streaks."""
    noise_hu: float = 4.0
    """Mean noise standard deviation in the brain in HU at pixels up to 1 mm; it varies a little from head to head, and
    larger pixels average some of it away (a factor 0.78 at 128 pixels)."""
    anatomy: Path | None = None
    """Folder of label maps of real heads (NIfTI) to make heads from; none: the procedural anatomy."""
    numbering: Path | None = None
    """TOML table of the maps' label numbers; none: FreeSurfer's and SynthSeg's."""
    split_people: tuple[int, int, int] = (10, 3, 3)
    """How many persons of the folder go into train, val and test; no two splits share one."""
    split: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Shares of heads for train, val and test."""
    cache: Path | None = None
    """Folder for what is computed once for every map; none: the user's cache folder."""
    device: str = "cpu"
    """Where heads from real anatomy are warped: cpu or cuda."""
