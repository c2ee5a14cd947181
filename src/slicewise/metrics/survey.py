"""Everything that an evaluation keeps of one volume: features of its slices, tissue, noise, continuity, small pictures.

Half a megabyte for a volume of 30 slices (feature vectors take most of it), all of it arrays, so that it can be kept on
disk under the hash of the volume.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from slicewise.hu import BRAIN, Window
from slicewise.io.cache import key_of
from slicewise.metrics.continuity import Continuity, continuity
from slicewise.metrics.distribution import FREQUENCIES
from slicewise.metrics.features import BATCH, PLANES, Extractor, chosen_slices, plane_slice, windowed
from slicewise.metrics.reference import SCALARS, VolumeStats, measure
from slicewise.metrics.tissue import brain_mask, noise_power_spectrum, parenchyma_cv
from slicewise.volume import Volume

# Changes whenever what is measured changes, so that kept surveys of an older program are not taken for this one's.
VERSION = "1"


@dataclass(frozen=True)
class Features:
    """Feature vectors of one plane in one window.

    Attributes
    ----------
    rows : float32 (n, d), the slices of `chosen_slices` in their order.
    middle : which of them is the middle slice.
    indices : int64 (n,), places of the slices in the volume.
    """

    rows: np.ndarray
    middle: int
    indices: np.ndarray


@dataclass(frozen=True)
class Anatomy:
    """What is measured in HU.

    Attributes
    ----------
    stats : tissue means, histograms, profile.
    continuity : from slice to slice.
    cv : coefficient of variation in the parenchyma of every slice with brain, float64 (n,).
    spectrum : noise-power spectrum at `FREQUENCIES`, HU² mm²; empty where no region fits.
    """

    stats: VolumeStats
    continuity: Continuity
    cv: np.ndarray
    spectrum: np.ndarray

    @property
    def has_brain(self) -> bool:
        return bool(np.isfinite(self.stats.scalars["brain"]))


def anatomy(volume: Volume, window: Window = BRAIN) -> Anatomy:
    """Measure one volume; `window` is what counts as parenchyma for the CV."""
    mask = brain_mask(volume.hu, volume.spacing)
    stats = measure(volume, mask)
    with_brain = np.flatnonzero(np.isfinite(stats.profile))
    cv = np.array([parenchyma_cv(volume.hu[z], mask[z], window) for z in with_brain], np.float64)
    frequency, power = noise_power_spectrum(volume.hu, mask, volume.spacing)
    spectrum = np.interp(FREQUENCIES, frequency, power) if len(frequency) else np.empty(0)
    return Anatomy(stats, continuity(volume.hu, mask, volume.spacing), cv[np.isfinite(cv)], spectrum)


def anatomy_arrays(found: Anatomy) -> dict[str, np.ndarray]:
    """As arrays by name, for a cache; `anatomy_from` is the inverse."""
    stats = {name: value for name, value in vars(found.stats).items() if name != "scalars"}
    stats["scalars"] = np.array([found.stats.scalars[name] for name in SCALARS])
    steps = {f"continuity.{name}": np.asarray(value) for name, value in asdict(found.continuity).items()}
    return {**{f"stats.{n}": v for n, v in stats.items()}, **steps, "cv": found.cv, "spectrum": found.spectrum}


def anatomy_from(arrays: dict[str, np.ndarray]) -> Anatomy:
    """From what `anatomy_arrays` gave."""

    def part(prefix: str) -> dict[str, np.ndarray]:
        return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}

    stats, steps = part("stats."), part("continuity.")
    scalars = dict(zip(SCALARS, stats.pop("scalars").tolist()))
    drift = float(steps.pop("drift"))
    return Anatomy(
        VolumeStats(scalars=scalars, **stats), Continuity(drift=drift, **steps), arrays["cv"], arrays["spectrum"]
    )


def all_features(
    volume: Volume,
    extractor: Extractor,
    windows: Sequence[Window],
    step_mm: float,
    planes: Sequence[str] = PLANES,
    whole: Sequence[str] = PLANES,
    batch: int = BATCH,
) -> dict[tuple[str, Window], Features]:
    """Features of the chosen slices (see `chosen_slices`) in every plane and window; of planes that are not in `whole`
    the middle slice alone.

    They are spread over threads that compute alone, a few pictures at a time: pictures are too small to share one among
    several, planes and windows too few to come out even.
    """
    import torch

    from slicewise.runtime import threads_alone

    chosen = {plane: chosen_slices(volume, plane, step_mm) for plane in planes}
    for plane in set(planes) - set(whole):
        indices, middle = chosen[plane]
        chosen[plane] = [indices[middle]], 0
    parts = [
        (plane, window, chosen[plane][0][first : first + batch])
        for plane in planes
        for window in windows
        for first in range(0, len(chosen[plane][0]), batch)
    ]

    def rows(plane: str, window: Window, indices: Sequence[int]) -> np.ndarray:
        return extractor([windowed(plane_slice(volume, plane, i), window) for i in indices])

    with threads_alone(torch.get_num_threads()) as pool:
        found = list(pool.map(rows, *zip(*parts)))
    return {
        (plane, window): Features(
            np.concatenate([r for (p, w, _), r in zip(parts, found) if (p, w) == (plane, window)]),
            chosen[plane][1],
            np.array(chosen[plane][0]),
        )
        for plane in planes
        for window in windows
    }


def feature_names(plane: str, window: Window) -> tuple[str, str, str]:
    """Names of the arrays that hold rows, middle and indices of one plane and window."""
    name = f"{plane} {window.lo:g} {window.hi:g}"
    return f"{name} rows", f"{name} middle", f"{name} indices"


def features_arrays(found: dict[tuple[str, Window], Features]) -> dict[str, np.ndarray]:
    """As arrays by name, for a cache; `features_from` is the inverse."""
    arrays: dict[str, np.ndarray] = {}
    for (plane, window), f in found.items():
        arrays |= dict(zip(feature_names(plane, window), (f.rows, np.array(f.middle), f.indices)))
    return arrays


def features_from(arrays: dict[str, np.ndarray]) -> dict[tuple[str, Window], Features]:
    """From what `features_arrays` gave."""
    found = {}
    for name in (n for n in arrays if n.endswith(" rows")):
        plane, lo, hi, _ = name.split()
        window = Window(float(lo), float(hi))
        rows, middle, indices = (arrays[part] for part in feature_names(plane, window))
        found[plane, window] = Features(rows, int(middle), indices)
    return found


def digest(volume: Volume) -> str:
    """SHA-256 of a volume's voxels and spacing: what its surveys are kept under."""
    return key_of(volume.hu, " ".join(f"{step:.6f}" for step in volume.spacing))
