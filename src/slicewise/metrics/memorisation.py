"""Does a generator give its training data back? Nearest training volumes, judged by held-out real ones.

A volume's distance to its nearest training neighbour alone says little: it is small for any smooth or average head.
What a copy cannot hide is that its nearest neighbour lies much nearer than its second nearest (of another patient). So
the audit compares that ratio with the same ratio of held-out real volumes, which cannot have been copied.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from slicewise.hu import ICNET, to_unit

# A volume whose ratio is below this share of the smallest held-out ratio is a copy, whatever the others do.
COPY_SHARE = 0.5
# Level of the rank test, for all measures of an audit together.
LEVEL = 0.01
SLICE_PIXELS = 48
VOLUME_SHAPE = (16, 32, 32)
MEASURES = ("slices, features", "volumes, features", "slices, correlation", "volumes, correlation")


def slice_pictures(hu: np.ndarray) -> np.ndarray:
    """Slices (Z, Y, X) in [-150, 150] HU as pictures of 48 x 48 pixels, of zero mean and unit norm: float32 (Z, 2304).
    The distance of two is sqrt(2 - 2 r), r their cross-correlation. Slices in which nothing differs become zero."""
    return _normalised(_shrunk(to_unit(hu, ICNET), (len(hu), SLICE_PIXELS, SLICE_PIXELS)).reshape(len(hu), -1))


def volume_picture(hu: np.ndarray) -> np.ndarray:
    """A whole volume likewise, at 16 levels of 32 x 32 pixels: float32 (1, 16384)."""
    return _normalised(_shrunk(to_unit(hu, ICNET), VOLUME_SHAPE).reshape(1, -1))


def query_slices(count: int) -> list[int]:
    """The slices of a volume that are looked for in the training data: at a quarter, half and three quarters."""
    return sorted({count // 4, count // 2, (3 * count) // 4})


@dataclass
class Nearest:
    """Nearest and second-nearest training rows of some queries, found while training volumes stream by.

    Attributes
    ----------
    queries : float32 (q, d).
    first : distance to the nearest training row, float64 (q,).
    second : distance to the nearest of any other patient than that row's.
    volume, row : where the nearest is, int (q,).
    """

    queries: np.ndarray
    first: np.ndarray = field(init=False)
    second: np.ndarray = field(init=False)
    volume: np.ndarray = field(init=False)
    row: np.ndarray = field(init=False)
    _patient: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        n = len(self.queries)
        self.first, self.second = np.full(n, np.inf), np.full(n, np.inf)
        self.volume, self.row, self._patient = (np.full(n, -1) for _ in range(3))

    def add(self, rows: np.ndarray, volume: int, patient: int) -> None:
        """Look at the rows (n, d) of one training volume."""
        q, r = self.queries.astype(np.float64), rows.astype(np.float64)
        squares = (q**2).sum(1)[:, None] + (r**2).sum(1)[None] - 2.0 * q @ r.T
        best = squares.argmin(axis=1)
        distance = np.sqrt(np.maximum(squares[np.arange(len(q)), best], 0.0))
        same = self._patient == patient
        nearer = distance < self.first
        self.second = np.where(same, self.second, np.where(nearer, self.first, np.minimum(self.second, distance)))
        self.first = np.where(nearer, distance, self.first)
        self.row, self.volume = np.where(nearer, best, self.row), np.where(nearer, volume, self.volume)
        self._patient = np.where(nearer, patient, self._patient)

    @property
    def ratio(self) -> np.ndarray:
        """Nearest over second nearest, in [0, 1]; 1 where both are 0."""
        found: np.ndarray = np.divide(self.first, self.second, out=np.ones_like(self.first), where=self.second > 0)
        return found


@dataclass(frozen=True)
class Verdict:
    """One measure's verdict on a set of synthetic volumes.

    Attributes
    ----------
    name : of `MEASURES`.
    synth, real : ratio of nearest to second-nearest training distance of every synthetic, held-out volume.
    synth_distance, real_distance : nearest training distance itself.
    below : synthetic volumes whose ratio is below every held-out one.
    p : probability of so many, were both sets drawn from one distribution.
    copies : indices of synthetic volumes whose ratio is below half the smallest held-out one.
    passed : no copies, and p not below `LEVEL` shared out over the measures.
    """

    name: str
    synth: np.ndarray
    real: np.ndarray
    synth_distance: np.ndarray
    real_distance: np.ndarray
    below: int
    p: float
    copies: tuple[int, ...]
    passed: bool

    @property
    def distance_ratio(self) -> float:
        """Median nearest training distance of synthetic over that of held-out volumes: far below 1 for copies."""
        return float(np.median(self.synth_distance) / max(float(np.median(self.real_distance)), 1e-12))


def judge(name: str, synth: Nearest, synth_of: np.ndarray, real: Nearest, real_of: np.ndarray) -> Verdict:
    """Verdict from the queries of both sets, of which `synth_of`, `real_of` say whose they are; a volume counts by the
    query with the lowest ratio."""
    s, r = _per_volume(synth, synth_of), _per_volume(real, real_of)
    below = int((s[0] < r[0].min()).sum())
    p = rank_p(below, len(s[0]), len(r[0]))
    copies = tuple(int(i) for i in np.flatnonzero(s[0] < COPY_SHARE * r[0].min()))
    return Verdict(name, s[0], r[0], s[1], r[1], below, p, copies, not copies and p >= LEVEL / len(MEASURES))


def rank_p(below: int, n_synth: int, n_real: int) -> float:
    """Probability that the `below` smallest of n_synth + n_real exchangeable values are all synthetic."""
    i = np.arange(below)
    return float(np.prod((n_synth - i) / (n_synth + n_real - i)))


def _per_volume(found: Nearest, of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest ratio and smallest distance of every volume's queries."""
    volumes = np.unique(of)
    ratio, first = found.ratio, found.first
    return tuple(np.array([values[of == v].min() for v in volumes]) for values in (ratio, first))  # type: ignore[return-value]


def _normalised(rows: np.ndarray) -> np.ndarray:
    rows = rows - rows.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.where(norm > 1e-3, rows / np.maximum(norm, 1e-3), 0.0).astype(np.float32)


def _shrunk(values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Means over equal parts of every axis (parts may overlap by a voxel); axes shorter than asked repeat voxels."""
    for axis, count in enumerate(shape):
        length = values.shape[axis]
        if length == count:
            continue
        edges = np.arange(count + 1) * length / count
        first = np.minimum(np.floor(edges[:-1]).astype(int), length - 1)
        last = np.maximum(np.ceil(edges[1:]).astype(int), first + 1)
        sums = np.concatenate(
            [np.zeros_like(np.take(values, [0], axis)), np.cumsum(values, axis=axis, dtype=np.float64)], axis=axis
        )
        width = (last - first).reshape([-1 if a == axis else 1 for a in range(values.ndim)])
        values = (np.take(sums, last, axis) - np.take(sums, first, axis)) / width
    return values
