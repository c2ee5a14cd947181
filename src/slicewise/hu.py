"""The 12-bit Hounsfield scale: windows, the map to [-1, 1] and back, and its invertible companding.

Everything here is NumPy in float64 inside and float32 at the network's side; nothing is ever truncated. The whole
range holds 4096 codes, so one HU is 2/4095 = 4.884e-4 of the linear unit range.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from slicewise.errors import UserError

# The ends of 12 bits. The lower one is also what is written where nothing was measured: outside a scan, as padding, in
# place of a table.
HU_MIN = -1024
HU_MAX = 3071
HU_CODES = HU_MAX - HU_MIN + 1
# Air as a scanner measures it, by the definition of the unit.
TRUE_AIR_HU = -1000
# What is less dense is air: as far from air as from water, so that an edge lies where it does however blurred it is.
AIR_HU = -500
# What is denser is head: skin and all in it. Foam and most of a head holder lie between air and this.
HEAD_HU = -300
# What is denser is bone: above any soft tissue or acute blood, and low enough that a thin skull still counts where it
# shares its voxels with brain.
BONE_HU = 200
# A slice with less of its area in the head shows a head holder or noise.
_HEAD_SHARE = 0.02


@dataclass(frozen=True)
class Window:
    """A range of Hounsfield units [lo, hi]."""

    lo: float
    hi: float

    def __post_init__(self) -> None:
        assert self.hi > self.lo, "a window needs hi > lo"

    @property
    def centre(self) -> float:
        """Its middle in HU; of the brain window 30 HU, between white and grey matter."""
        return (self.lo + self.hi) / 2


@dataclass(frozen=True)
class Clipped:
    """Voxels of a source outside the 12-bit range: how many, and the least and greatest HU they had."""

    voxels: int = 0
    low: int = 0
    high: int = 0

    def __add__(self, other: "Clipped") -> "Clipped":
        if not (self.voxels and other.voxels):
            return self if self.voxels else other
        return Clipped(self.voxels + other.voxels, min(self.low, other.low), max(self.high, other.high))

    def __str__(self) -> str:
        voxels = "1 voxel" if self.voxels == 1 else f"{self.voxels} voxels"
        values = f"of {self.low}" if self.low == self.high else f"between {self.low} and {self.high}"
        return f"{voxels} {values} HU clipped to [{HU_MIN}, {HU_MAX}]"

    @staticmethod
    def of(hu: np.ndarray) -> "Clipped":
        """What is clipped of these HU, all of which lie outside the range (any real dtype, rounded outward to whole
        HU)."""
        return Clipped(hu.size, int(np.floor(hu.min())), int(np.ceil(hu.max()))) if hu.size else Clipped()


WHOLE = Window(HU_MIN, HU_MAX)
BRAIN = Window(-10.0, 70.0)
ICNET = Window(-150.0, 150.0)

# How much of the unit range each companding gives to asinh; the rest is linear, so that bone keeps its resolution.
COMPANDINGS = {"linear": 0.0, "half": 0.5}
# asinh((HU - CENTRE)/WIDTH): the slope peaks in grey and white matter, about 30 HU.
_CENTRE = 30.0
_WIDTH = 60.0


def round_hu(hu: np.ndarray) -> np.ndarray:
    """Round to whole HU, half to even, and clip to the 12-bit range; returns int16."""
    found: np.ndarray = np.clip(np.rint(hu), HU_MIN, HU_MAX).astype(np.int16)
    return found


def shows_head(hu: np.ndarray) -> np.ndarray:
    """Which slices of a scan, HU (Z, Y, X), show the head, bool (Z,): 2 % or more of their pixels lie above -300 HU."""
    found: np.ndarray = np.count_nonzero(hu > HEAD_HU, axis=(1, 2)) / hu[0].size >= _HEAD_SHARE
    return found


def to_unit(hu: np.ndarray, window: Window = WHOLE) -> np.ndarray:
    """Linear map x = 2 (HU - lo)/(hi - lo) - 1, float32, clipped to the window."""
    clipped = np.clip(np.asarray(hu, np.float64), window.lo, window.hi)
    return (2.0 * (clipped - window.lo) / (window.hi - window.lo) - 1.0).astype(np.float32)


def from_unit(x: np.ndarray, window: Window = WHOLE) -> np.ndarray:
    """Inverse of `to_unit` in float64 HU, not yet rounded (see `round_hu`); values beyond [-1, 1] extrapolate."""
    return (np.asarray(x, np.float64) + 1.0) * 0.5 * (window.hi - window.lo) + window.lo


@dataclass(frozen=True)
class HUScale:
    """One-to-one map between HU in a window and the network's unit range [-1, 1].

    Raises `UserError` for an unknown companding or an empty window.
    """

    lo: float = HU_MIN
    """Lower end of the window in HU; by default of the whole 12-bit range."""
    hi: float = HU_MAX
    """Upper end of the window in HU."""
    companding: str = "linear"
    """Companding: "linear" (the paper) or "half" (the mean of that and of asinh((HU - 30)/60), rescaled), which gives
    soft tissue a larger share of the unit range, so that a relative error of the network costs fewer HU there. Either
    rounds back exactly on all 4096 codes in float32."""

    def __post_init__(self) -> None:
        if self.companding not in COMPANDINGS:
            raise UserError(f"companding {self.companding!r} is unknown; choose one of {', '.join(COMPANDINGS)}")
        if not self.hi > self.lo:
            raise UserError(f"HU window {self.lo:g} to {self.hi:g} is empty; lo must be below hi")

    @property
    def air(self) -> float:
        """HU up to which a voxel may be air: -500, or the middle of a window that does not reach below."""
        return AIR_HU if self.lo < AIR_HU else (self.lo + self.hi) / 2

    def encode(self, hu: np.ndarray) -> np.ndarray:
        """HU (any real dtype, any shape) to x in float32. Values outside the window are clipped half a HU beyond it,
        so that dequantised data (code ± ½ HU) keep their place."""
        h = np.clip(np.asarray(hu, np.float64), self.lo - 0.5, self.hi + 0.5)
        return self._forward(h).astype(np.float32)

    def decode(self, x: np.ndarray) -> np.ndarray:
        """x to HU in float64 (not rounded), clipped to the window; the inverse of `encode`."""
        x = np.asarray(x, np.float64)
        if COMPANDINGS[self.companding] == 0.0:
            found: np.ndarray = np.clip(from_unit(x, Window(self.lo, self.hi)), self.lo, self.hi)
            return found
        codes, table = self.table()
        found = np.clip(np.interp(x, table, codes), self.lo, self.hi)
        return found

    def decode_codes(self, x: np.ndarray) -> np.ndarray:
        """x to whole HU, int16: round half to even, then clip."""
        return round_hu(self.decode(x))

    def slope(self, hu: np.ndarray) -> np.ndarray:
        """dx/dHU at the given HU, float64: what one HU is worth in unit range (4.884e-4 for the linear whole range)."""
        h = np.asarray(hu, np.float64)
        centre, width, share = self.asinh_part
        return self.linear_part[0] + share / np.sqrt((h - centre) ** 2 + width**2)

    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """Every half HU from half a HU below the window to half a HU above it, and its x; both float64. For encoding
        and decoding by linear interpolation, which is off by less than 0.01 HU."""
        return _table(self)

    @property
    def linear_part(self) -> tuple[float, float]:
        """(gain, offset) with which x = gain HU + offset + share asinh((HU - centre) / width); see `asinh_part`."""
        share, (low, rise) = COMPANDINGS[self.companding], self._asinh_range
        gain = (1 - share) * 2.0 / (self.hi - self.lo)
        return gain, -(1 - share) - gain * self.lo - share * (1.0 + 2.0 * low / rise)

    @property
    def asinh_part(self) -> tuple[float, float, float]:
        """(centre in HU, width in HU, share) of the companding; the share is that of one unit of asinh in x."""
        return _CENTRE, _WIDTH, 2.0 * COMPANDINGS[self.companding] / self._asinh_range[1]

    @property
    def _asinh_range(self) -> tuple[float, float]:
        """asinh at the window's lower border, and how much it rises to the upper one."""
        low, high = (float(np.arcsinh((v - _CENTRE) / _WIDTH)) for v in (self.lo, self.hi))
        return low, high - low

    def _forward(self, h: np.ndarray) -> np.ndarray:
        gain, offset = self.linear_part
        centre, width, share = self.asinh_part
        return gain * h + offset + share * np.arcsinh((h - centre) / width)


@lru_cache(maxsize=16)
def _table(scale: HUScale) -> tuple[np.ndarray, np.ndarray]:
    """Half-HU grid and its image under `scale` (see `HUScale.table`)."""
    codes = np.arange(scale.lo - 0.5, scale.hi + 0.5 + 1e-9, 0.5)
    return codes, scale._forward(codes)
