"""Whether the numbers of a head CT can be Hounsfield units: air near -1000, soft tissue near 30, and bone.

Files lose their rescale intercept, get it twice, are windowed, stripped of the skull, or scaled to grey levels, and
still look like heads. What the histogram shows is said, not corrected.
"""

import numpy as np

from slicewise.hu import AIR_HU, BONE_HU, HU_CODES, HU_MAX, HU_MIN, Window

# Where the peaks may lie. Scanners that cannot store less put all air at -1024; muscle and brain make the other peak.
AIR_PEAK = Window(HU_MIN, -900)
TISSUE_PEAK = Window(0, 62)
# Of all that is denser than air, 5 % and more are bone in a head.
LEAST_BONE = 0.01
# Denser than any bone but teeth and metal.
TOO_DENSE_HU = 2200
MOST_TOO_DENSE = 0.02
# Least share of all voxels that air and what is denser must have: less is no peak.
LEAST_SHARE = 0.005
_SMOOTH = 11


def hu_doubt(hu: np.ndarray) -> str:
    """Why the values cannot be the HU of a head, in a few words, "" where they can. `hu` is int16 (Z, Y, X) in
    [-1024, 3071]; of large slices every other pixel is looked at."""
    step = 2 if hu.shape[-1] >= 256 else 1
    values = hu[:, ::step, ::step].astype(np.int32).ravel() - HU_MIN
    counts = np.bincount(values, minlength=HU_CODES)
    codes = np.arange(HU_MIN, HU_MAX + 1)
    smooth = np.convolve(counts, np.ones(_SMOOTH), "same")
    air, dense = codes <= AIR_HU, codes > AIR_HU
    soft = dense & (codes < BONE_HU)
    peak = int(codes[soft][np.argmax(smooth[soft])])
    if counts[dense].sum() < LEAST_SHARE * len(values):
        return f"nothing is denser than {AIR_HU} HU"
    if counts[air].sum() < LEAST_SHARE * len(values):
        guess = _guess(peak, counts, codes)
        return f"no air: nothing lies near -1000 HU, the main peak at {peak}{guess}"
    air_peak = int(codes[air][np.argmax(smooth[air])])
    if air_peak > AIR_PEAK.hi:
        return f"air lies at {air_peak} HU instead of near -1000"
    if not TISSUE_PEAK.lo <= peak <= TISSUE_PEAK.hi:
        return f"soft tissue lies at {peak} HU instead of near 30{_guess(peak, counts, codes)}"
    share = counts[dense].sum()
    if counts[codes > TOO_DENSE_HU].sum() > MOST_TOO_DENSE * share:
        return f"more than {MOST_TOO_DENSE:.0%} of the head is denser than {TOO_DENSE_HU} HU, as if scaled up"
    if counts[codes > BONE_HU].sum() < LEAST_BONE * share:
        return f"hardly anything is denser than {BONE_HU} HU: no skull, or a window that cuts bone"
    return ""


def _guess(peak: int, counts: np.ndarray, codes: np.ndarray) -> str:
    """What may have happened, where that can be told."""
    held = codes[counts > 0]
    if counts[codes > TOO_DENSE_HU].sum() > counts.sum() / 4:
        return ", as if negative values were read as unsigned"
    if peak < -50 and counts[0] and counts[codes < -950].sum() - counts[0] > LEAST_SHARE * counts.sum():
        return ", as if the rescale intercept of -1024 were applied twice"
    if held[0] >= 0 and held[-1] <= 255:
        return ", as if scaled to grey levels"
    if held[-1] <= 400:
        return ", as if cut to a window"
    if held[0] >= -200 and np.count_nonzero(counts[codes > 900]):
        return ", as if the rescale intercept of -1024 were missing"
    return ""
