"""Single slices as the baselines take them, made on the device: each a function of (seed, step, sample)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from slicewise.baselines.sampling import BaselineRecipe
from slicewise.codec import codec
from slicewise.data.windows import Cut, Heads, slices_of
from slicewise.hu import HUScale
from slicewise.random import TRAIN_DITHER, TRAIN_ORDER, Draws


@dataclass(frozen=True)
class Slices:
    """The slices of some heads, counted from the first that shows the head.

    Attributes
    ----------
    heads : where they lie.
    scale : HU scale of x.
    length : slices of a head: air below its last one, cut where it is longer. None takes each as long as it is.
    """

    heads: Heads
    scale: HUScale
    length: int | None = None

    def __len__(self) -> int:
        return self.length * len(self.heads.records) if self.length else int(self.heads.ends[-1])

    def hu(self, numbers: Tensor, flip: Tensor | None = None) -> Tensor:
        """Slices (B,), int16 HU (B, 1, Y, X) on the device; mirrored where `flip` (B,) says so."""
        rows = numbers
        if self.length:
            head, depth = numbers // self.length, numbers % self.length
            row = self.heads.starts[head] + depth
            rows = torch.where(row < torch.from_numpy(self.heads.ends)[head], row, -1)
        zero, side = torch.zeros_like(numbers), self.heads.side
        return self.heads.cut(Cut(rows[:, None], zero, zero, zero.bool() if flip is None else flip, (side, side)))

    def column(self, head: int) -> Tensor:
        """All slices of one head, x (T, 1, Y, X) float32, without dequantisation noise. Needs `length`."""
        assert self.length is not None
        return codec(self.scale, self.heads.device).encode(
            self.hu(torch.arange(head * self.length, (head + 1) * self.length))
        )

    def batch(self, seed: int, step: int, samples: range, flip: bool = False) -> Tensor:
        """x (B, 1, Y, X) float32 of a step's samples; whole HU are spread over their bin. With `flip`, half of them are
        mirrored left to right."""
        order = Draws(seed, samples, 0, step, TRAIN_ORDER)
        numbers, mirrored = order.integers(len(self))[:, 0], order.uniform(1)[:, 0] < 0.5
        hu = self.hu(numbers, mirrored if flip else None)
        dither = Draws(seed, samples, 0, step, TRAIN_DITHER, self.heads.device).dither(hu[0].numel())
        return codec(self.scale, self.heads.device).encode(hu + dither.view(hu.shape))


def recipe_of(heads: Heads, scale: HUScale) -> BaselineRecipe:
    """The recipe of a baseline that is trained on these heads."""
    first = heads.records[0]
    return BaselineRecipe(heads.side, first.spacing_mm, scale, max(map(slices_of, heads.records)))
