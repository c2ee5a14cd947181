"""A scan from its voxels to what was found in it, and normal heads to the reference that it is judged by."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from slicewise.anomaly.draws import judged_slices, pseudo_normal, vertex_slice
from slicewise.anomaly.reference import Judged, NormalReference, measure_normal
from slicewise.anomaly.score import (
    Region,
    empirical_p,
    find_regions,
    slice_scores,
    studentised,
    tissue_map,
    volume_score,
)
from slicewise.anomaly.settings import AnomalySettings
from slicewise.diffusion.denoiser import Denoiser
from slicewise.errors import UserError, output_errors
from slicewise.fill import on_models_grid
from slicewise.hu import HU_MAX, HU_MIN, round_hu
from slicewise.io.atomic import atomic_file, write_whole
from slicewise.io.dicom import Reading
from slicewise.io.provenance import Provenance
from slicewise.pyramid import Pyramid
from slicewise.volume import Volume

# What of a run decides its draws; another run in the same folder is refused.
_DRAWN = ("method", "seed", "noise", "plan_noise", "steps", "gap", "above_mm")

# Slices done, of how many, over all draws.
Progress = Callable[[int, int], None]


def no_progress(done: int, total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Anomalies:
    """What was found in a scan. Arrays are (Z, Y, X) on the model's grid.

    Attributes
    ----------
    volume : the scan there; source : where it came from.
    pseudo_normal : the mean of the draws.
    residual : int16 HU, the scan less that mean.
    tissue : uint8, where residuals are judged (see `score.tissue_map`).
    z : float32, z-scores.
    regions_map : uint8, 1 where the scan is denser than expected, 2 where less dense; regions : a list of them.
    slice_scores, slice_p : float64 (Z,), NaN where a slice is not judged.
    score, p : of the volume.
    """

    volume: Volume
    source: Provenance
    pseudo_normal: Volume
    residual: np.ndarray
    tissue: np.ndarray
    z: np.ndarray
    regions_map: np.ndarray
    regions: tuple[Region, ...]
    slice_scores: np.ndarray
    slice_p: np.ndarray
    score: float
    p: float


def find_anomalies(
    model: Denoiser | Pyramid,
    checkpoint: str,
    reading: Reading,
    reference: NormalReference,
    settings: AnomalySettings,
    folder: Path,
    *,
    resample: bool = False,
    device: str = "cpu",
    progress: Progress = no_progress,
) -> Anomalies:
    """What a scan has that normal heads have not; its draws are kept in `folder`, from where a run resumes.

    `checkpoint` is the SHA-256 of the model's file. Raises `UserError` where the reference is of another checkpoint or
    of other settings, where the scan is on another grid and may not be resampled, and as `judged_slices` does.
    """
    reference.check(checkpoint, settings)
    volume, _, steps = on_models_grid(model, reading.volume, (), resample)
    head, pseudo = judge(model, checkpoint, volume, settings, folder, device, progress)
    residual = volume.hu - pseudo.astype(np.float32)
    z = reference.z(head.studentised, head.cells)
    marked, regions = find_regions(z, residual, volume.spacing, settings.z, settings.region_cm3)
    scores = slice_scores(z, head.tissue, volume.spacing)
    score = volume_score(scores)
    return Anomalies(
        volume,
        reading.source.after(*steps),
        volume.with_hu(round_hu(pseudo)),
        np.clip(np.rint(residual), HU_MIN, HU_MAX).astype(np.int16),
        head.tissue,
        z,
        marked,
        regions,
        scores,
        np.array([empirical_p(one, reference.slices) for one in scores]),
        score,
        empirical_p(score, reference.volumes),
    )


def judge(
    model: Denoiser | Pyramid,
    checkpoint: str,
    volume: Volume,
    settings: AnomalySettings,
    folder: Path,
    device: str = "cpu",
    progress: Progress = no_progress,
) -> tuple[Judged, np.ndarray]:
    """A head on the model's grid with its studentised residuals, and the mean of its pseudo-normal draws, float32."""
    slices = judged_slices(model, volume, settings)
    draws = drawn(model, checkpoint, volume, settings, folder, device, progress)
    tissue = tissue_map(volume.hu, volume.spacing, slices)
    if not tissue.any():
        raise UserError(f"{volume.acquisition.source or 'volume'}: no brain within a skull found")
    values = studentised(volume.hu, draws, tissue, volume.spacing, settings.smooth_mm)
    depth = settings.above_mm + (np.arange(len(volume.hu)) - vertex_slice(volume, settings)) * volume.spacing[0]
    mean: np.ndarray = np.stack(draws).mean(axis=0, dtype=np.float32)
    return Judged.of(values, tissue, depth, volume.spacing), mean


def drawn(
    model: Denoiser | Pyramid,
    checkpoint: str,
    volume: Volume,
    settings: AnomalySettings,
    folder: Path,
    device: str = "cpu",
    progress: Progress = no_progress,
) -> list[np.ndarray]:
    """The pseudo-normal draws of a head, int16 HU (Z, Y, X) each: those that `folder` holds, and the rest made now.

    Raises `UserError` where the folder holds draws of another head, checkpoint or setting.
    """
    count = len(judged_slices(model, volume, settings))
    about = {"voxels": voxels_of(volume), "checkpoint": checkpoint} | {name: getattr(settings, name) for name in _DRAWN}
    _claim(folder, about)
    made = []
    for number in range(settings.draws):
        file = folder / f"{number:03d}.npy"
        hu = _held(file, volume.hu.shape)
        if hu is None:
            tell = partial(_tell, progress, number * count, settings.draws * count)
            hu = pseudo_normal(model, volume, settings, number, device, tell)
            with output_errors(file), atomic_file(file) as stream:
                np.save(stream, hu, allow_pickle=False)
        made.append(hu)
        progress((number + 1) * count, settings.draws * count)
    return made


def _tell(progress: Progress, before: int, total: int, slices: int) -> None:
    progress(before + slices, total)


def voxels_of(volume: Volume) -> str:
    """SHA-256 of a volume's voxels."""
    return hashlib.sha256(np.ascontiguousarray(volume.hu).tobytes()).hexdigest()


def _claim(folder: Path, about: dict[str, Any]) -> None:
    """Say in a folder what its draws are of. Raises `UserError` where it says something else."""
    file = folder / "drawn.json"
    if file.is_file():
        try:
            held = json.loads(file.read_text())
        except ValueError:
            held = None
        if held != about:
            raise UserError(
                f"{folder}: holds draws of another scan or checkpoint, or made with other settings; give a new folder"
            )
    else:
        write_whole(file, (json.dumps(about, indent=1) + "\n").encode())


def _held(file: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """A draw that is there whole, else None."""
    try:
        hu: np.ndarray = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return hu if hu.shape == shape and hu.dtype == np.int16 else None


def measure_heads(
    model: Denoiser | Pyramid,
    checkpoint: str,
    heads: Iterable[Volume],
    settings: AnomalySettings,
    folder: Path,
    source: str,
    *,
    resample: bool = False,
    device: str = "cpu",
    progress: Callable[[int], None] = lambda heads: None,
) -> NormalReference:
    """The reference of normal heads; their draws are kept below `folder`. Raises `UserError` as `find_anomalies` does,
    and for too few heads."""
    judged = []
    for number, head in enumerate(heads, 1):
        volume, _, _ = on_models_grid(model, head, (), resample)
        judged.append(judge(model, checkpoint, volume, settings, folder / voxels_of(volume)[:16], device)[0])
        progress(number)
    return measure_normal(judged, checkpoint, settings, source)


def summary(found: Anomalies, settings: AnomalySettings, about: dict[str, Any]) -> dict[str, Any]:
    """What anomaly.json holds: plain types, NaN as null; positions of regions in LPS mm."""

    def number(value: float) -> float | None:
        return round(float(value), 4) if np.isfinite(value) else None

    affine = found.volume.affine
    regions = []
    for region in found.regions:
        place = affine @ [*region.centre[::-1], 1.0]
        told = {k: number(v) if isinstance(v, float) else v for k, v in asdict(region).items()}
        regions.append({**told, "centre": [number(v) for v in region.centre], "lps_mm": [number(v) for v in place[:3]]})
    return {
        "use": "research use only; nothing here is a diagnosis",
        **about,
        "settings": asdict(settings),
        "score": number(found.score),
        "p": number(found.p),
        "slices": [
            {"slice": z, "score": number(s), "p": number(p)}
            for z, (s, p) in enumerate(zip(found.slice_scores, found.slice_p))
        ],
        "regions": regions,
    }
