"""Windows of K contiguous slices, cut on the device that trains, with air above the vertex and below the last slice.

The heads of a split lie in the device's memory as int16 HU, one row a slice; where they do not fit, rows are read from
disk as they are wanted. What a batch holds is decided by small tensors on the host (`Cut`), so that cutting it is one
gather on the device and waits for nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch.nn import functional as F

from slicewise.codec import codec
from slicewise.data.store import Record, Store
from slicewise.errors import UserError
from slicewise.hu import AIR_HU, HU_MIN, HUScale
from slicewise.random import Draws
from slicewise.runtime import free_memory

# Share of the free memory that heads may take.
MEMORY_SHARE = 0.5


@dataclass(frozen=True)
class Cut:
    """Which parts of which slices make up a batch; all on the host.

    Attributes
    ----------
    rows : (B, K) int64 rows of `Heads`; -1 is a slice of air.
    top, left : (B,) int64, first pixel of the part, in the mirrored slice where it is mirrored.
    flip : (B,) bool, mirrored left to right.
    shape : rows and columns of the part.
    """

    rows: torch.Tensor
    top: torch.Tensor
    left: torch.Tensor
    flip: torch.Tensor
    shape: tuple[int, int]


class Heads:
    """The heads of one split of a store, slices counted from the first that shows the head.

    Parameters
    ----------
    store : a prepared store; `take` adds what has been written into it since.
    split : "train", "val" or "test".
    device : where windows are wanted.
    ids : which heads, in this order; None takes all of the split.
    memory : bytes of the device's memory that heads may take; None takes half of what is free.

    Raises `UserError` where the split is empty, volumes are not square or of several grids, a file is damaged, or a
    head of `ids` is not in the split.
    """

    def __init__(
        self,
        store: Store,
        split: str,
        device: torch.device | str = "cpu",
        ids: Sequence[str] | None = None,
        memory: int | None = None,
    ) -> None:
        self.split, self.device = split, torch.device(device)
        self.memory = int(MEMORY_SHARE * free_memory(self.device)) if memory is None else memory
        self.records: list[Record] = []
        # Of every head the row after its last; of every row its head's extent.
        self.ends = np.zeros(0, np.int64)
        self.extents = np.zeros((0, 4), np.int64)
        self.rows: torch.Tensor | None = torch.zeros(0, dtype=torch.int16, device=self.device)
        self.take(store, [r.id for r in store.select(split)] if ids is None else ids)
        if not self.records:
            raise UserError(f"{store.path}: no volume in the {split} split; prepare more patients, or use another")

    def take(self, store: Store, ids: Sequence[str]) -> None:
        """Take in heads that are not held yet, in this order."""
        self.store = store
        there = {record.id: record for record in store.select(self.split)}
        lost = [name for name in ids if name not in there]
        if lost:
            raise UserError(
                f"{store.path}: the existing run trained on {lost[0]}, which is no longer in the {self.split} split; "
                "give that run's store or another folder"
            )
        if not ids:
            return
        check_grid(store)
        new = [there[name] for name in ids]
        counts = [slices_of(record) for record in new]
        before = int(self.ends[-1]) if len(self.ends) else 0
        bytes_ = 2 * new[0].shape[1] * new[0].shape[2] * (before + sum(counts))
        keep = self.rows is not None and bytes_ <= self.memory
        parts = [self.rows] if keep and before else []
        extents = [self.extents]
        for record in new:
            hu = np.array(store.hu(record)[record.vertex_slice :])
            extents.append(_extents(hu))
            if keep:
                parts.append(torch.from_numpy(hu).to(self.device))
        self.rows = torch.cat(parts) if keep else None  # type: ignore[arg-type]
        self.records += new
        self.ends = np.concatenate([self.ends, before + np.cumsum(counts)])
        self.extents = np.concatenate(extents)
        self.__dict__.pop("starts", None)

    @cached_property
    def starts(self) -> torch.Tensor:
        """(V,) int64, the first row of every head."""
        return torch.from_numpy(np.concatenate([[0], self.ends[:-1]]))

    @property
    def side(self) -> int:
        """Pixels per side."""
        return self.records[0].shape[1]

    def whole(self, heads: torch.Tensor, slices: int) -> torch.Tensor:
        """(B, slices) rows of heads (B,) from the vertex down, -1 below their last."""
        rows = self.starts[heads][:, None] + torch.arange(slices)
        return torch.where(rows < torch.from_numpy(self.ends)[heads][:, None], rows, -1)

    def cut(self, cut: Cut) -> torch.Tensor:
        """The parts that `cut` names, int16 HU (B, K, rows, columns), on the device."""
        y = cut.top[:, None] + torch.arange(cut.shape[0])
        x = cut.left[:, None] + torch.arange(cut.shape[1])
        x = torch.where(cut.flip[:, None], self.side - 1 - x, x)
        if self.rows is None:
            return self._from_disk(cut.rows, y, x)
        rows, y, x = (t.to(self.device, non_blocking=True) for t in (cut.rows, y, x))
        hu = self.rows[rows[:, :, None, None].clamp_min(0), y[:, None, :, None], x[:, None, None, :]]
        return torch.where((rows < 0)[:, :, None, None], HU_MIN, hu)

    def _from_disk(self, rows: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        hu = np.full((*rows.shape, y.shape[1], x.shape[1]), HU_MIN, np.int16)
        for b, k in np.argwhere(rows.numpy() >= 0):
            hu[b, k] = self._row(int(rows[b, k]))[np.ix_(y[b].numpy(), x[b].numpy())]
        host = torch.from_numpy(hu)
        return host.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else host

    def _row(self, row: int) -> np.ndarray:
        """One slice, read and not mapped: a file that is cut meanwhile is an error then, and not the program's end."""
        volume = int(np.searchsorted(self.ends, row, side="right"))
        record = self.records[volume]
        z = row - int(self.starts[volume]) + record.vertex_slice
        pixels = record.shape[1] * record.shape[2]
        file = self.store.path / record.file
        try:
            read = np.fromfile(file, np.int16, pixels, offset=self.store.hu(record).offset + 2 * pixels * z)
        except OSError as error:
            raise UserError(
                f"{file}: cannot be read ({error.strerror}); fix the store and run this command again"
            ) from None
        if read.size != pixels:
            raise UserError(
                f"{file}: was cut short while in use; delete it, prepare it again and run this command again"
            )
        return read.reshape(record.shape[1:])


def slices_of(record: Record) -> int:
    """Slices of a volume from the first that shows the head."""
    return record.shape[0] - record.vertex_slice


def check_grid(store: Store) -> None:
    """`UserError` where volumes are not square or of several grids."""
    shapes = {r.shape[1:] for r in store.records}
    spacings = {tuple(round(mm, 3) for mm in r.spacing_mm) for r in store.records}
    if len(shapes) > 1 or len(spacings) > 1 or any(y != x for y, x in shapes):
        raise UserError(
            f"{store.path}: volumes differ in size or spacing, or are not square ({sorted(shapes)} pixels, "
            f"{sorted(spacings)} mm); prepare them onto one grid"
        )


def _extents(hu: np.ndarray) -> np.ndarray:
    """(Z, 4) int64 of every slice: first row of the head, the row after its last, and the same of columns; (side, 0)
    where it shows none, which bounds nothing."""
    head = hu > AIR_HU
    out = np.empty((len(hu), 4), np.int64)
    for column, axis in ((0, 2), (2, 1)):
        seen: np.ndarray = np.any(head, axis=axis)
        found = seen.any(axis=1)
        out[:, column] = np.where(found, seen.argmax(axis=1), hu.shape[1 + column // 2])
        out[:, column + 1] = np.where(found, seen.shape[1] - seen[:, ::-1].argmax(axis=1), 0)
    return out


@dataclass(frozen=True)
class Windows:
    """All windows of K slices of some heads.

    Window (head, last) holds slices last-K+1 … last. Slices above the first are air, which is how a chain begins (the
    paper's seed); one window a head reaches an air slice below the last, which is how a chain learns to end. They are
    numbered head after head.

    Attributes
    ----------
    heads : where they lie.
    slices : K.
    """

    heads: Heads
    slices: int

    @property
    def records(self) -> Sequence[Record]:
        return self.heads.records

    def __len__(self) -> int:
        return int(self.heads.ends[-1]) + len(self.records)

    def start(self, head: int) -> int:
        """Number of the window at which the chain of a head starts: its last slice is the vertex."""
        return int(self.heads.starts[head]) + head

    def _head(self, numbers: torch.Tensor) -> torch.Tensor:
        """(B,) the heads of windows (B,); each has a window more than slices."""
        ends = torch.from_numpy(self.heads.ends) + torch.arange(1, len(self.records) + 1)
        return torch.searchsorted(ends, numbers, right=True)

    def rows(self, numbers: torch.Tensor, margin: int = 0) -> torch.Tensor:
        """(B, K) rows of windows (B,), -1 where there is air; with a `margin`, so many more at either end."""
        head = self._head(numbers)
        last = numbers - head  # the row it would be, were there no window of air after each head
        rows = last[:, None] + torch.arange(1 - self.slices - margin, 1 + margin)
        first, end = self.heads.starts[head], torch.from_numpy(self.heads.ends)[head]
        return torch.where((rows < first[:, None]) | (rows >= end[:, None]), -1, rows)

    def position(self, numbers: torch.Tensor) -> torch.Tensor:
        """(B,) float32, mm below the vertex of the last slice of windows (B,)."""
        head = self._head(numbers)
        return ((numbers - head - self.heads.starts[head]) * self.records[0].spacing_mm[0]).float()

    def about(self, numbers: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """(B, 3) rows of the slices above, at and below those at `place` (B,) in windows (B,); -1 where there is
        air."""
        return self.rows(numbers, margin=1).gather(1, place[:, None] + torch.arange(3))

    def read(self, number: int) -> tuple[np.ndarray, float]:
        """One window: int16 HU (K, Y, X), and the position of its last slice in mm below the vertex."""
        numbers = torch.tensor([number])
        return self.heads.cut(uncut(self.heads, self.rows(numbers)))[0].cpu().numpy(), float(self.position(numbers))


def uncut(heads: Heads, rows: torch.Tensor) -> Cut:
    """Slices at rows (B, K), whole and as they lie."""
    zero = torch.zeros(len(rows), dtype=torch.int64)
    return Cut(rows, zero, zero, zero.bool(), (heads.side, heads.side))


def draw_cut(
    heads: Heads,
    rows: torch.Tensor,
    sides: tuple[int, int],
    fold: int,
    flip: bool,
    draws: Draws,
    grain: int = 0,
) -> tuple[Cut, torch.Tensor]:
    """Parts of windows, and their frames.

    Parameters
    ----------
    heads : what they are cut from.
    rows : (B, K) rows of the windows' slices.
    sides : rows and columns of the parts; 0 takes all. Along each axis a part holds the head, or lies within it where
        the head is longer, and is random beyond that.
    fold : pixels that a network folds into one.
    flip : mirror half of the windows left to right.
    draws : the random numbers of these samples.
    grain : pixels whose multiple the first row and column of a part are; 0 takes `fold`.

    Returns
    -------
    The cut, and float32 (B, 4): top, left, bottom and right of each part, where the whole spans -1 … 1 between the
    centres of its first and last `fold` pixels.
    """
    side, grain = heads.side, grain or fold
    mirrored = draws.uniform(1)[:, 0] < 0.5 if flip else torch.zeros(len(rows), dtype=torch.bool)
    extents = torch.from_numpy(heads.extents)[rows.clamp_min(0)]
    air = (rows < 0)[:, :, None]
    nothing = torch.tensor([side, 0, side, 0])
    extents = torch.where(air, nothing, extents)
    begin, end = extents[:, :, 0::2].amin(dim=1), extents[:, :, 1::2].amax(dim=1)  # (B, 2): down, across
    across = torch.stack([side - end[:, 1], side - begin[:, 1]])
    begin[:, 1], end[:, 1] = torch.where(mirrored, across, torch.stack([begin[:, 1], end[:, 1]]))
    shape = tuple(wanted or side for wanted in sides)
    firsts = []
    for axis, length in enumerate(shape):
        a, b = end[:, axis] - length, begin[:, axis]
        low = (torch.minimum(a, b).clamp_min(0) + grain - 1) // grain
        high = torch.maximum(a, b).clamp(0, side - length) // grain
        choices = (torch.maximum(low, high) - low + 1)[:, None]
        firsts.append(grain * (low + draws.integers(choices)[:, 0]))
    top, left = firsts
    span = max(1.0, side / fold - 1)
    edges = torch.stack([top / fold, left / fold, (top + shape[0]) / fold - 1, (left + shape[1]) / fold - 1], dim=1)
    return Cut(rows, top, left, mirrored, (shape[0], shape[1])), (2 * edges / span - 1).float()


def training_windows(store: Store, split: str, slices: int, device: torch.device | str = "cpu") -> Windows:
    """The windows of one split; raises `UserError` as `Heads` does."""
    return Windows(Heads(store, split, device), slices)


def pooled(hu: torch.Tensor, factor: int) -> torch.Tensor:
    """Slices (B, K, H, W) on pixels `factor` times as large: the means of factor x factor pixels, float32 HU."""
    return F.avg_pool2d(hu.float(), factor) if factor > 1 else hu.float()


def enlarged(hu: torch.Tensor, factor: int) -> torch.Tensor:
    """Slices (B, K, h, w) of a coarser level on pixels `factor` times as small, bilinear between pixel centres, the
    border repeated; float32 HU."""
    return F.interpolate(hu.float(), scale_factor=factor, mode="bilinear", align_corners=False)


def as_level(hu: torch.Tensor, slices: int, pool: int, above: int) -> torch.Tensor:
    """What a level of a pyramid sees of HU on the store's pixels, (B, K, H/pool, W/pool) float32: the window's `slices`
    on its own pixels, then the others as the level above has them, on pixels `above` times as large, enlarged."""
    window = pooled(hu[:, :slices], pool)
    return torch.cat([window, enlarged(pooled(hu[:, slices:], pool * above), above)], dim=1) if above else window


def root_mean_square(windows: Windows, scale: HUScale, pool: int = 1, count: int = 256, seed: int = 0) -> float:
    """sigma_data: root mean square of x over randomly chosen windows, on pixels `pool` times as large (EDM assumes data
    of mean zero; with the mean in it, c_in still scales the network's input to unit power)."""
    chosen = torch.from_numpy(np.random.default_rng(seed).integers(0, len(windows), count))
    encode = codec(scale, windows.heads.device).encode
    parts = (pooled(windows.heads.cut(uncut(windows.heads, windows.rows(part))), pool) for part in chosen.split(16))
    squares = [encode(part).double().square().mean() for part in parts]
    return float(torch.stack(squares).mean().sqrt())


def whole_heads(heads: Heads, slices: int, scale: HUScale, pool: int = 1, most: int = 2048) -> torch.Tensor:
    """Whole heads from the vertex down, (N, slices, H, W) x on pixels `pool` times as large, on the CPU: evenly chosen
    ones where there are more than `most`."""
    chosen = torch.linspace(0, len(heads.records) - 1, min(most, len(heads.records))).round().long()
    encode = codec(scale, heads.device).encode
    parts = (heads.cut(uncut(heads, heads.whole(part, slices))) for part in chosen.split(16))
    return torch.cat([encode(pooled(part, pool)).float().cpu() for part in parts])
