"""Draw volumes from a trained run, keep them, and measure them against held-out heads. Needs no DICOM, no pictures."""

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slicewise import pyramid
from slicewise.ascii import SHORTEST, chain, trim
from slicewise.baselines.sampling import KINDS, draw_volume, load_baseline
from slicewise.checkpoint import kind_of, load_denoiser
from slicewise.hu import BRAIN, HU_MAX, HU_MIN
from slicewise.metrics.continuity import drift_slope
from slicewise.metrics.reference import SCALARS, VolumeStats, measure
from slicewise.metrics.tissue import brain_mask, parenchyma_cv
from slicewise.runtime import core_dtype
from slicewise.sampling import ChainSettings
from slicewise.volume import Volume

VOLUMES = "volumes"


def draw(
    run: Path, count: int, batch: int, device: torch.device, seconds: float, settings: ChainSettings | None = None
) -> Iterator[Volume]:
    """Up to `count` volumes of a run folder or a pyramid's file, `batch` at once; the last are cut or not begun where
    `seconds` are over. A volume is the same whichever batch it is made in."""
    until = time.monotonic() + seconds
    if kind_of(run) in KINDS:
        baseline = load_baseline(run, str(device))
        for number in range(count):
            if time.monotonic() < until:
                yield Volume.regular(draw_volume(baseline, 0, number), baseline.recipe.spacing_mm)
        return
    if kind_of(run) == pyramid.KIND:
        levels = pyramid.load_pyramid(run, core_dtype(device), str(device))
        for first in range(0, count, batch):
            if time.monotonic() < until:
                numbers = range(first, min(first + batch, count))
                for head in pyramid.draw(levels, settings or ChainSettings(), 0, numbers, device=str(device)):
                    yield Volume.regular(np.ascontiguousarray(head.hu), levels.recipe.spacing_mm)
        return
    denoiser = load_denoiser(run, core_dtype(device), str(device))
    for first in range(0, count, batch):
        made = []
        for slices in chain(denoiser, settings or ChainSettings(), 0, range(first, min(first + batch, count)),
                            device=str(device)):  # fmt: skip
            made.append(np.asarray(slices))
            if time.monotonic() > until:
                break
        if len(made) > SHORTEST:
            for hu in np.stack(made, axis=1):
                head = np.ascontiguousarray(trim(hu, air_hu=denoiser.recipe.scale.air))
                yield Volume.regular(head, denoiser.recipe.spacing_mm)
        if time.monotonic() > until:
            return


def keep(volumes: Sequence[Volume], run: Path) -> None:
    """Write volumes into a run folder, compressed: int16 HU and the spacing in mm."""
    if volumes:
        (run / VOLUMES).mkdir(exist_ok=True)
    for number, volume in enumerate(volumes):
        np.savez_compressed(run / VOLUMES / f"{number:04d}.npz", hu=volume.hu, spacing_mm=volume.spacing)


def kept(run: Path) -> list[Volume]:
    """The volumes that `keep` wrote."""
    found = []
    for path in sorted((run / VOLUMES).glob("*.npz")):
        with np.load(path, allow_pickle=False) as file:
            found.append(Volume.regular(file["hu"], tuple(file["spacing_mm"].tolist())))
    return found


def in_window(volume: Volume) -> VolumeStats:
    """What `measure` finds in the brain window. A model of the window knows neither bone nor air: the brain is found
    with the window's upper end taken for bone and its lower for air."""
    hu = volume.hu
    if hu.min() >= BRAIN.lo and hu.max() <= BRAIN.hi:
        hu = np.where(hu >= BRAIN.hi, HU_MAX, np.where(hu <= BRAIN.lo, HU_MIN, hu)).astype(np.int16)
    mask = brain_mask(hu, volume.spacing)
    return measure(volume.with_hu(np.clip(volume.hu, BRAIN.lo, BRAIN.hi).astype(np.int16)), mask)


def comparison(volumes: Sequence[Volume]) -> dict[str, Any]:
    """Mean of every tissue, noise and step between slices over volumes, HU, and how far the brains' means lie apart."""
    return _summary(volumes, [measure(volume) for volume in volumes])


def comparison_in_window(volumes: Sequence[Volume]) -> dict[str, Any]:
    """The same in the brain window, and what Figures 1 and 2 show: variation of the parenchyma in single slices, and
    drift from slice to slice, HU a cm, either way."""
    stats = [in_window(volume) for volume in volumes]
    cv = [one for v in volumes for s in v.hu if _shows_brain(s) and math.isfinite(one := parenchyma_cv(s))]
    drifts = [abs(drift_slope(s.profile, v.spacing[0])) for s, v in zip(stats, volumes)]
    return {**_summary(volumes, stats), "CV": _mean(cv), "SD of CV": _spread(cv), "drift a cm": _mean(drifts)}


def _summary(volumes: Sequence[Volume], stats: Sequence[VolumeStats]) -> dict[str, Any]:
    values = {name: [s.scalars[name] for s in stats] for name in SCALARS}
    return {
        "volumes": len(volumes),
        "slices": _mean([len(v.hu) for v in volumes]),
        **{"step between slices" if name == "steps" else name: _mean(found) for name, found in values.items()},
        **{f"spread of {name}": _spread(values[name]) for name in ("brain", "grey", "white")},
    }


def _shows_brain(hu: np.ndarray) -> bool:
    """Whether a fiftieth of a slice lies in the brain window."""
    return bool(((hu > BRAIN.lo) & (hu < BRAIN.hi)).mean() >= 0.02)


def _mean(values: Sequence[float]) -> float:
    sound = [value for value in values if math.isfinite(value)]
    return float(np.mean(sound)) if sound else math.nan


def _spread(values: Sequence[float]) -> float:
    """Standard deviation."""
    sound = [value for value in values if math.isfinite(value)]
    return float(np.std(sound, ddof=1)) if len(sound) > 1 else math.nan
