"""Continuity from slice to slice, measured at every interface of a volume without labels."""

from dataclasses import dataclass

import numpy as np

from slicewise.hu import BRAIN, HEAD_HU, WHOLE
from slicewise.metrics.structure import neighbour_ncc, neighbour_ssim
from slicewise.metrics.tissue import MIN_SECTION_CM2, brain_profile, interface_steps


@dataclass(frozen=True)
class Continuity:
    """What happens from each slice to the next; arrays float64, one value an interface, interfaces without a brain (or
    head, where it says whole) left out.

    Attributes
    ----------
    mean_step, median_step : |difference of the brain's mean, median HU|.
    ssim, ncc : structural similarity and correlation of the two slices' brain, brain window.
    ssim_whole, ncc_whole : of the two slices' head, whole range.
    drift : slope of the brain's mean HU over depth by least squares, HU per cm, downward; NaN for fewer than 3 slices.
    """

    mean_step: np.ndarray
    median_step: np.ndarray
    ssim: np.ndarray
    ncc: np.ndarray
    ssim_whole: np.ndarray
    ncc_whole: np.ndarray
    drift: float


def continuity(hu: np.ndarray, mask: np.ndarray, spacing: tuple[float, float, float]) -> Continuity:
    """Continuity of a volume (Z, Y, X), given its brain mask and spacing (z, y, x) in mm.

    Slices whose brain is smaller than 15 cm² do not count: they hold too little to tell a step from anatomy.
    """
    profile = brain_profile(hu, mask, spacing)
    brain = mask & np.isfinite(profile)[:, None, None]
    head = hu > HEAD_HU
    pixels = 100.0 * MIN_SECTION_CM2 / (spacing[1] * spacing[2])
    both = np.isfinite(profile[:-1]) & np.isfinite(profile[1:])
    both_head = (head[:-1] & head[1:]).sum(axis=(1, 2)) >= pixels
    return Continuity(
        mean_step=interface_steps(profile),
        median_step=interface_steps(brain_medians(hu, brain)),
        ssim=_finite(neighbour_ssim(hu, brain, BRAIN)[both]),
        ncc=_finite(neighbour_ncc(hu, brain, BRAIN)[both]),
        ssim_whole=_finite(neighbour_ssim(hu, head, WHOLE)[both_head]),
        ncc_whole=_finite(neighbour_ncc(hu, head, WHOLE)[both_head]),
        drift=drift_slope(profile, spacing[0]),
    )


def brain_medians(hu: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Median HU of the mask in every slice, float64 (Z,); NaN where it is empty."""
    return np.array([np.median(h[m]) if m.any() else np.nan for h, m in zip(hu, mask)], np.float64)


def drift_slope(profile: np.ndarray, step_mm: float) -> float:
    """Least-squares slope of a profile (Z,), HU per cm downward; NaN values are left out, fewer than 3 give NaN."""
    place = np.flatnonzero(np.isfinite(profile))
    if len(place) < 3:
        return float("nan")
    return float(np.polyfit(place * step_mm / 10.0, profile[place], 1)[0])


def _finite(values: np.ndarray) -> np.ndarray:
    found: np.ndarray = values[np.isfinite(values)]
    return found
