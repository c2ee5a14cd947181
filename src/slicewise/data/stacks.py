"""Windows of K contiguous slices from prepared volumes, with air above the vertex and below the last slice."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from slicewise.data.store import Record, Store
from slicewise.errors import UserError
from slicewise.hu import HU_MIN, HUScale


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
