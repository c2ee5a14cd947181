"""What a set of head CT volumes is like, in a few kilobytes: the yardstick stored with a checkpoint.

Volumes come one at a time and only sums are kept, so a set may have any size.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np

from slicewise.errors import UserError
from slicewise.hu import HEAD_HU, HU_MAX, HU_MIN
from slicewise.io.atomic import write_whole
from slicewise.metrics.tissue import (
    MIN_VOXELS,
    TISSUES,
    brain_mask,
    brain_profile,
    interface_steps,
    tissue_histogram,
    tissue_means,
)
from slicewise.volume import Volume

# Scalars of one volume, in HU.
SCALARS = (*TISSUES, "brain", "noise", "steps")
BRAIN_EDGES = np.arange(-30.5, 91.0)
HEAD_EDGES = np.linspace(HU_MIN, HU_MAX + 1, 257)
STEP_EDGES = np.linspace(0.0, 20.0, 401)
DEPTH_EDGES_MM = np.arange(-2.5, 200.0, 5.0)


@dataclass(frozen=True)
class VolumeStats:
    """What `measure` finds in one volume.

    Attributes
    ----------
    scalars : HU by name of `SCALARS`; NaN where there was no brain to measure. "steps" is the mean of the volume's
        interface steps.
    profile : mean HU of the brain by slice, float64 (Z,), NaN where there is none.
    steps : |difference of mean HU| between neighbouring slices, float64 (n,).
    depth_mm : depth of every slice below the first one with brain, float64 (Z,).
    brain_histogram : float64 (4, 121): shares of CSF, grey, white and all brain voxels in bins of 1 HU, `BRAIN_EDGES`.
    head_histogram : float64 (256,): shares of all voxels that are not air in bins of 16 HU, `HEAD_EDGES`.
    """

    scalars: dict[str, float]
    profile: np.ndarray
    steps: np.ndarray
    depth_mm: np.ndarray
    brain_histogram: np.ndarray
    head_histogram: np.ndarray


def measure(volume: Volume, mask: np.ndarray | None = None) -> VolumeStats:
    """Tissue means, profile, steps, noise and histograms of one volume; NaN and zeros where no brain is found. `mask`
    is its `brain_mask`, where that is known already."""
    hu, spacing = volume.hu, volume.spacing
    mask = brain_mask(hu, spacing) if mask is None else mask
    profile = brain_profile(hu, mask, spacing)
    steps = interface_steps(profile)
    scalars = dict.fromkeys(SCALARS, math.nan)
    histogram = np.zeros((4, len(BRAIN_EDGES) - 1))
    if np.isfinite(profile).any() and np.count_nonzero(mask) >= MIN_VOXELS:
        stats = tissue_means(hu, mask, spacing)
        scalars |= {name: getattr(stats, name).mean for name in TISSUES}
        scalars |= {"brain": stats.mean, "noise": stats.noise, "steps": float(steps.mean()) if steps.size else math.nan}
        histogram[:3] = tissue_histogram(hu, mask, stats.mixture, BRAIN_EDGES)
        histogram[3] = np.histogram(hu[mask], BRAIN_EDGES)[0] / np.count_nonzero(mask)
    down = np.concatenate([[0.0], np.cumsum(volume.slice_steps)])
    first = int(np.flatnonzero(np.isfinite(profile))[0]) if np.isfinite(profile).any() else 0
    head = hu[hu > HEAD_HU]
    shares = np.histogram(head, HEAD_EDGES)[0] / max(1, head.size)
    return VolumeStats(scalars, profile, steps, down - down[first], histogram, shares)


@dataclass(frozen=True)
class ReferenceStats:
    """A set of volumes, summed up.

    Attributes
    ----------
    count : volumes in the set; without_brain : those of them in which no brain was found, left out below.
    means, stds : between volumes, HU, by name of `SCALARS`.
    brain_histogram, head_histogram : as in `VolumeStats`, averaged.
    step_counts : interface steps in bins of 0.05 HU, `STEP_EDGES`; the last bin takes all that is larger.
    profile_mean, profile_std : brain mean HU against depth below the vertex of the brain, bins of 5 mm,
        `DEPTH_EDGES_MM`; None where no volume reaches.
    source : what the set is, in a few words.
    """

    count: int
    without_brain: int
    means: dict[str, float]
    stds: dict[str, float]
    brain_histogram: list[list[float]]
    head_histogram: list[float]
    step_counts: list[int]
    profile_mean: list[float | None]
    profile_std: list[float | None]
    source: str = ""

    def to_json(self) -> str:
        """JSON text of about 6 kB; numbers with six digits, missing ones null."""
        return json.dumps(rounded(asdict(self)), allow_nan=False)

    @staticmethod
    def from_json(text: str, name_of_text: str = "reference statistics") -> "ReferenceStats":
        """The inverse of `to_json`. Raises `UserError` for anything else."""
        try:
            values = json.loads(text)
            expected = {f.name for f in fields(ReferenceStats)}
            if set(values) != expected:
                raise ValueError(f"fields {sorted(set(values) ^ expected)} are missing or unknown")
            for name in ("means", "stds"):
                values[name] = {key: math.nan if v is None else float(v) for key, v in values[name].items()}
            stats = ReferenceStats(**values)
            shapes = np.shape(stats.brain_histogram), np.shape(stats.head_histogram), np.shape(stats.step_counts)
            if shapes != ((4, len(BRAIN_EDGES) - 1), (len(HEAD_EDGES) - 1,), (len(STEP_EDGES) - 1,)):
                raise ValueError("histograms have other bins")
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"{name_of_text}: not the statistics of a reference set ({error}); measure it again"
            ) from error
        return stats

    def save(self, path: Path) -> None:
        """Write `to_json` to a file. Raises `UserError` where it cannot be written."""
        write_whole(path, f"{self.to_json()}\n".encode())

    @staticmethod
    def load(path: Path) -> "ReferenceStats":
        """Read what `save` wrote. Raises `UserError` for a file that is missing or something else."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read ({error}); give a file that slicewise reference wrote") from error
        return ReferenceStats.from_json(text, str(path))

    @property
    def mean_step(self) -> float:
        """Mean of all interface steps of the set, HU (NaN where there are none)."""
        counts = np.asarray(self.step_counts)
        middles = (STEP_EDGES[1:] + STEP_EDGES[:-1]) / 2
        return float(counts @ middles / counts.sum()) if counts.sum() else math.nan


@dataclass
class StatsSum:
    """Running sums over volumes: `add` one after the other, then take `result`."""

    count: int = 0
    without_brain: int = 0
    _scalars: list[np.ndarray] = field(default_factory=lambda: [np.zeros(len(SCALARS)) for _ in range(3)])
    _brain: np.ndarray = field(default_factory=lambda: np.zeros((4, len(BRAIN_EDGES) - 1)))
    _head: np.ndarray = field(default_factory=lambda: np.zeros(len(HEAD_EDGES) - 1))
    _steps: np.ndarray = field(default_factory=lambda: np.zeros(len(STEP_EDGES) - 1, np.int64))
    _profile: list[np.ndarray] = field(default_factory=lambda: [np.zeros(len(DEPTH_EDGES_MM) - 1) for _ in range(3)])

    def add(self, stats: VolumeStats) -> None:
        """Count one volume."""
        self.count += 1
        self._head += stats.head_histogram
        if not math.isfinite(stats.scalars["brain"]):
            self.without_brain += 1
            return
        values = np.array([stats.scalars[name] for name in SCALARS])
        _count_in(self._scalars, np.arange(len(SCALARS)), values)
        self._brain += stats.brain_histogram
        self._steps += np.histogram(np.minimum(stats.steps, STEP_EDGES[-1]), STEP_EDGES)[0]
        bins = np.digitize(stats.depth_mm, DEPTH_EDGES_MM) - 1
        within = (bins >= 0) & (bins < len(DEPTH_EDGES_MM) - 1)
        _count_in(self._profile, bins[within], stats.profile[within])

    def result(self, source: str = "") -> ReferenceStats:
        """The set so far."""
        means, stds = _moments(self._scalars)
        profile_mean, profile_std = _moments(self._profile)
        with_brain = max(1, self.count - self.without_brain)
        return ReferenceStats(
            count=self.count,
            without_brain=self.without_brain,
            means=dict(zip(SCALARS, means.tolist())),
            stds=dict(zip(SCALARS, stds.tolist())),
            brain_histogram=(self._brain / with_brain).tolist(),
            head_histogram=(self._head / max(1, self.count)).tolist(),
            step_counts=self._steps.tolist(),
            profile_mean=[None if math.isnan(v) else v for v in profile_mean.tolist()],
            profile_std=[None if math.isnan(v) else v for v in profile_std.tolist()],
            source=source,
        )


def measure_reference(volumes: Iterable[Volume], source: str = "") -> ReferenceStats:
    """Sum up a set of volumes, one in memory at a time. Raises `UserError` where the set is empty."""
    total = StatsSum()
    for volume in volumes:
        total.add(measure(volume))
    if total.count == 0:
        raise UserError(f"{source or 'reference set'}: no volumes to measure; give a prepared store that holds some")
    return total.result(source)


def _count_in(sums: list[np.ndarray], where: np.ndarray, values: np.ndarray) -> None:
    """Add finite values to the sums (number, values, squares) at `where`."""
    finite = np.isfinite(values)
    for power, total in enumerate(sums):
        np.add.at(total, where[finite], values[finite] ** power)


def _moments(sums: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (0 for a single value) from sums; NaN where nothing was counted."""
    n = np.where(sums[0] > 0, sums[0], np.nan)
    mean = sums[1] / n
    variance = np.maximum(sums[2] / n - mean**2, 0.0) * n / np.maximum(n - 1, 1)
    return mean, np.sqrt(variance)


def rounded(value: object) -> object:
    """Plain values with six significant digits, NaN and infinity as None: small, valid JSON."""
    if isinstance(value, dict):
        return {key: rounded(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
