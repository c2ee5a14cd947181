"""From what was measured of two sets of volumes to the rows of an evaluation's tables."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from slicewise.errors import UserError
from slicewise.hu import Window
from slicewise.metrics.distribution import histogram_score, sample_score, spectrum_score
from slicewise.metrics.estimate import Estimate, Patients, difference_interval, estimate, mean_interval
from slicewise.metrics.features import PLANES
from slicewise.metrics.frechet import frechet_score
from slicewise.metrics.kernel import kid_score
from slicewise.metrics.manifold import manifold_estimates
from slicewise.metrics.reference import BRAIN_EDGES, HEAD_EDGES
from slicewise.metrics.survey import Anatomy

SHORT = {"axial": "Ax", "coronal": "Cor", "sagittal": "Sag"}
FRECHET, KERNEL, MANIFOLD = "Fréchet distance", "Kernel distance", "Manifolds"
VOXELS, HISTOGRAMS, NOISE = "Voxels", "HU distribution", "Noise"
TISSUE, CONTINUITY, DIVERSITY = "Tissue", "Continuity", "Diversity"


@dataclass(frozen=True)
class Distance:
    """One distance between the sets.

    Attributes
    ----------
    group, name : what it is.
    window : HU window, as text; empty where there is none.
    slices : "middle" slices, "all", or empty.
    unit : of the value.
    estimate : with interval and floor.
    n_real, n_synth : volumes it was computed from (of bMMD², batches).
    """

    group: str
    name: str
    window: str
    slices: str
    unit: str
    estimate: Estimate
    n_real: int
    n_synth: int


@dataclass(frozen=True)
class Measurement:
    """One quantity, measured in both sets.

    Attributes
    ----------
    group, name, unit : what it is.
    real_mean, real_sd, synth_mean, synth_sd : over all values.
    difference, low, high : of the means, synthetic less real, with its 95 % interval over volumes.
    distance : Wasserstein-1 between both sets' values, with interval and floor.
    n_real, n_synth : volumes (of MS-SSIM, pairs) that had a value.
    """

    group: str
    name: str
    unit: str
    real_mean: float
    real_sd: float
    synth_mean: float
    synth_sd: float
    difference: float
    low: float
    high: float
    distance: Estimate
    n_real: int
    n_synth: int


def window_text(window: Window) -> str:
    """A window as the tables name it."""
    return f"[{window.lo:g}, {window.hi:g}] HU"


def feature_distances(
    real: Mapping[tuple[str, Window], np.ndarray],
    synth: Mapping[tuple[str, Window], np.ndarray],
    windows: Sequence[Window],
    neighbours: int = 5,
    rounds: int = 200,
    seed: int = 0,
    patients: Patients | None = None,
) -> list[Distance]:
    """FID, KID, precision, recall, density and coverage of the middle slices' features, (n, d) by plane and window.
    Here as below, `patients` says whose each volume is; without it every one is one's own.

    Raises `UserError` where the vectors of the two sets have different lengths, or hold NaN.
    """
    rows = []
    for window in windows:
        for plane in PLANES:
            a, b = (check_features(side[plane, window]).astype(np.float64) for side in (real, synth))
            if a.shape[1] != b.shape[1]:
                raise UserError(
                    f"features of {a.shape[1]} and of {b.shape[1]} numbers come from different extractors and cannot "
                    "be compared; extract both sets with one extractor"
                )
            pool, sizes = np.concatenate([a, b]), (len(a), len(b))
            where = (window_text(window), "middle")
            fid = estimate(frechet_score(pool), *sizes, rounds=rounds, seed=seed, least=0.0, patients=patients)
            kid = estimate(kid_score(pool), *sizes, rounds=rounds, seed=seed, patients=patients)
            rows.append(Distance(FRECHET, f"FID-{SHORT[plane]}", *where, "", fid, *sizes))
            rows.append(Distance(KERNEL, f"KID-{SHORT[plane]}", *where, "", kid, *sizes))
            for name, found in manifold_estimates(a, b, neighbours, seed, patients).items():
                title = f"{name.capitalize()}-{SHORT[plane]}"
                rows.append(Distance(MANIFOLD, title, *where, "", found, *sizes))
    order = {FRECHET: 0, KERNEL: 1, MANIFOLD: 2}
    return sorted(rows, key=lambda row: order[row.group])


def check_features(rows: np.ndarray) -> np.ndarray:
    """Feature vectors as they are. Raises `UserError` where one holds NaN or infinity."""
    if not np.isfinite(rows).all():
        bad = int((~np.isfinite(rows)).any(axis=1).sum())
        raise UserError(
            f"{bad} of {len(rows)} feature vectors hold NaN: the extractor's weights do not fit its network"
        )
    return rows


def voxel_distances(
    between: Mapping[Window, Sequence[tuple[float, float]]],
    floor: Mapping[Window, Sequence[tuple[float, float]]],
    batch: int,
    seed: int = 0,
) -> list[Distance]:
    """bMMD² (biased, unbiased) from its values over batches: `between` real and synthetic, `floor` real and real."""
    rows = []
    for column, form in enumerate(("biased", "unbiased")):
        name = f"bMMD² of {batch}, {form}"
        for window, values in between.items():
            v = np.array(values)[:, column]
            f = np.array(floor[window]).reshape(-1, 2)[:, column]
            low, high = mean_interval(v, np.random.default_rng(seed)) if len(v) > 1 else (np.nan, np.nan)
            mean, sd = (float(f.mean()) if len(f) else np.nan), (float(f.std()) if len(f) > 1 else np.nan)
            found = Estimate(float(v.mean()), low, high, batch, mean, sd, float(v.mean()))
            rows.append(Distance(VOXELS, name, window_text(window), "", "", found, len(v), len(v)))
    return rows


def anatomy_distances(
    real: Sequence[Anatomy],
    synth: Sequence[Anatomy],
    rounds: int = 200,
    seed: int = 0,
    patients: Patients | None = None,
) -> list[Distance]:
    """Distances of the HU distributions by tissue and of the noise-power spectra. What cannot be measured in two
    volumes of either set is left out."""
    rows = []
    whose = patients or (range(len(real)), range(len(synth)))
    owned = [list(zip(side, owners, strict=True)) for side, owners in zip((real, synth), whose)]
    brains = [[(a, p) for a, p in side if a.has_brain] for side in owned]
    heads = [[(a, p) for a, p in side if a.stats.head_histogram.any()] for side in owned]
    kinds = [
        (name, brains, row, BRAIN_EDGES) for row, name in enumerate(("CSF", "Grey matter", "White matter", "Brain"))
    ]
    kinds.append(("Head, air left out", heads, -1, HEAD_EDGES))
    for name, sides, row, edges in kinds:
        sizes = len(sides[0]), len(sides[1])
        if min(sizes) < 2:
            continue
        histograms = [a.stats.head_histogram if row < 0 else a.stats.brain_histogram[row] for s in sides for a, _ in s]
        score = histogram_score(np.array(histograms), edges)
        found = estimate(score, *sizes, rounds=rounds, seed=seed, least=0.0, patients=_owners(sides))
        rows.append(Distance(HISTOGRAMS, name, "", "", "HU", found, *sizes))
    spectra = [[(a.spectrum, p) for a, p in side if a.spectrum.size] for side in owned]
    sizes = len(spectra[0]), len(spectra[1])
    if min(sizes) >= 2:
        score = spectrum_score(np.array([s for side in spectra for s, _ in side]))
        found = estimate(score, *sizes, rounds=rounds, seed=seed, least=0.0, patients=_owners(spectra))
        rows.append(Distance(NOISE, "Noise-power spectrum", "", "", "share of power", found, *sizes))
    return rows


def anatomy_measurements(
    real: Sequence[Anatomy],
    synth: Sequence[Anatomy],
    rounds: int = 200,
    seed: int = 0,
    patients: Patients | None = None,
) -> list[Measurement]:
    """Tissue means, noise, contrast, variation and continuity, one row each."""
    rows = []
    for group, name, unit, values in _QUANTITIES:
        a, b = ([values(one) for one in side] for side in (real, synth))
        row = measurement(group, name, unit, a, b, rounds, seed, patients)
        if row is not None:
            rows.append(row)
    return rows


def measurement(
    group: str,
    name: str,
    unit: str,
    real: Sequence[np.ndarray],
    synth: Sequence[np.ndarray],
    rounds: int = 200,
    seed: int = 0,
    patients: Patients | None = None,
) -> Measurement | None:
    """One row from one array of values a volume (empty, or NaN, where it has none); None where fewer than two volumes
    of either set have any."""
    whose = patients or (range(len(real)), range(len(synth)))
    owned = [
        [(v[np.isfinite(v)], p) for v, p in zip(side, owners, strict=True) if np.isfinite(v).any()]
        for side, owners in zip((real, synth), whose)
    ]
    sizes = len(owned[0]), len(owned[1])
    if min(sizes) < 2:
        return None
    sides, left = [[v for v, _ in side] for side in owned], _owners(owned)
    a, b = (np.concatenate(side) for side in sides)
    difference, low, high = difference_interval(sides[0], sides[1], np.random.default_rng(seed), patients=left)
    score = sample_score(sides[0] + sides[1])
    found = estimate(score, *sizes, rounds=rounds, seed=seed, least=0.0, patients=left)
    spread = [float(v.std(ddof=1)) for v in (a, b)]
    means = [float(v.mean()) for v in (a, b)]
    return Measurement(
        group, name, unit, means[0], spread[0], means[1], spread[1], difference, low, high, found, *sizes
    )


def _owners(sides: Sequence[Sequence[tuple[Any, Hashable]]]) -> Patients:
    """Whose the volumes are that are left on either side."""
    real, synth = ([owner for _, owner in side] for side in sides)
    return real, synth


def _scalar(name: str):  # type: ignore[no-untyped-def]
    return lambda a: np.array([a.stats.scalars[name]])


def _cnr(a: Anatomy) -> np.ndarray:
    """Contrast of grey and white matter over the noise between pixels."""
    s = a.stats.scalars
    return np.array([(s["grey"] - s["white"]) / s["noise"]]) if s["noise"] > 0 else np.empty(0)


_QUANTITIES = (
    (TISSUE, "CSF", "HU", _scalar("csf")),
    (TISSUE, "Grey matter", "HU", _scalar("grey")),
    (TISSUE, "White matter", "HU", _scalar("white")),
    (TISSUE, "Brain", "HU", _scalar("brain")),
    (TISSUE, "Noise", "HU", _scalar("noise")),
    (TISSUE, "Contrast to noise, grey − white", "", _cnr),
    (TISSUE, "CV in the parenchyma, by slice", "", lambda a: a.cv),
    (CONTINUITY, "|Δ mean| between slices, brain", "HU", lambda a: a.continuity.mean_step),
    (CONTINUITY, "|Δ median| between slices, brain", "HU", lambda a: a.continuity.median_step),
    (CONTINUITY, "Drift of the brain's mean, downward", "HU/cm", lambda a: np.array([a.continuity.drift])),
    (CONTINUITY, "SSIM of neighbours, brain window", "", lambda a: a.continuity.ssim),
    (CONTINUITY, "NCC of neighbours, brain window", "", lambda a: a.continuity.ncc),
    (CONTINUITY, "SSIM of neighbours, whole range", "", lambda a: a.continuity.ssim_whole),
    (CONTINUITY, "NCC of neighbours, whole range", "", lambda a: a.continuity.ncc_whole),
)
