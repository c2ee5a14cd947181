"""Windows of K contiguous slices from prepared volumes, with air above the vertex and below the last slice."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from slicewise.data.store import Record, Store
from slicewise.errors import UserError
from slicewise.hu import AIR_HU, HU_MIN, HUScale


@dataclass(frozen=True)
class Windows:
    """All windows of a set of prepared volumes.

    Window (volume, last) holds slices last-K+1 … last, counted from the first slice that shows the head. Slices above
    it are air, which is how a chain begins (the paper's seed); one window a volume reaches an air slice below the last,
    which is how a chain learns to end.

    Attributes
    ----------
    store : where the volumes lie.
    records : which of them.
    slices : K.
    """

    store: Store
    records: Sequence[Record]
    slices: int

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([r.shape[0] - r.vertex_slice + 1 for r in self.records])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self.records) else 0

    def start(self, volume: int) -> int:
        """Index of the window at which the chain of volume number `volume` starts: its last slice is the vertex."""
        return int(self._ends[volume - 1]) if volume else 0

    def read(self, index: int) -> tuple[np.ndarray, float]:
        """Window `index`: int16 HU (K, Y, X), and the position of its last slice in mm below the vertex."""
        volume = int(np.searchsorted(self._ends, index, side="right"))
        record = self.records[volume]
        last = index - self.start(volume)
        hu = self.store.hu(record)
        window = np.full((self.slices, *record.shape[1:]), HU_MIN, np.int16)
        for k in range(self.slices):
            z = last - self.slices + 1 + k
            if 0 <= z < record.shape[0] - record.vertex_slice:
                window[k] = hu[z + record.vertex_slice]
        return window, last * record.spacing_mm[0]


def crop(hu: np.ndarray, sides: tuple[int, int], fold: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A part of a window, and its frame.

    Parameters
    ----------
    hu : (K, H, W).
    sides : rows and columns of the part; 0 takes all. Along each axis it holds the head, or lies within it where the
        head is longer, and is random beyond that.
    fold : pixels whose multiple the part's first row and column are.
    rng : drawn from only where there is something to cut.

    Returns
    -------
    hu (K, rows, columns), and float32 (4,): its top, left, bottom and right, where the whole spans -1 … 1 between the
    centres of its first and last `fold` pixels.
    """
    head = np.any(hu > AIR_HU, axis=0)
    firsts = []
    for axis, side in enumerate(sides):
        spare = head.shape[axis] - side
        if not side or not spare:
            firsts.append(0)
            continue
        seen = np.flatnonzero(np.any(head, axis=1 - axis))
        begin, end = (int(seen[0]), int(seen[-1]) + 1) if len(seen) else (0, head.shape[axis])
        low, high = sorted((end - side, begin))
        low, high = -(-max(0, low) // fold), min(spare, high) // fold
        firsts.append(fold * int(rng.integers(low, max(low, high) + 1)))
    shape = tuple(side or whole for side, whole in zip(sides, head.shape))
    top, left = firsts
    part = hu[:, top : top + shape[0], left : left + shape[1]]
    last = [(first + side) / fold - 1 for first, side in zip(firsts, shape)]
    spans = [max(1, whole / fold - 1) for whole in head.shape]
    frame = [2 * at / span - 1 for at, span in zip((top / fold, left / fold, *last), (*spans, *spans))]
    return part, np.array(frame, np.float32)


def training_windows(store: Store, split: str, slices: int) -> Windows:
    """The windows of one split; `UserError` where it is empty, or its volumes not square or of several grids."""
    records = store.select(split)
    if not records:
        raise UserError(f"{store.path}: no volume in the {split} split; prepare more patients or change --split")
    shapes = {r.shape[1:] for r in store.records}
    spacings = {tuple(round(mm, 3) for mm in r.spacing_mm) for r in store.records}
    if len(shapes) > 1 or len(spacings) > 1 or any(y != x for y, x in shapes):
        raise UserError(
            f"{store.path}: volumes differ in size or spacing, or are not square ({sorted(shapes)} pixels, "
            f"{sorted(spacings)} mm); prepare them onto one grid"
        )
    return Windows(store, records, slices)


def root_mean_square(windows: Windows, scale: HUScale, count: int = 256, seed: int = 0) -> float:
    """sigma_data: root mean square of x over randomly chosen windows (EDM assumes data of mean zero; with the mean in
    it, c_in still scales the network's input to unit power)."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, len(windows), count)
    return float(
        np.sqrt(np.mean([np.mean(scale.encode(windows.read(int(i))[0]).astype(np.float64) ** 2) for i in chosen]))
    )
