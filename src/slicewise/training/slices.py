"""Single slices as the baselines take them: each a function of (seed, step, sample)."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from slicewise.baselines.sampling import BaselineRecipe
from slicewise.data.stacks import training_windows
from slicewise.data.store import Record, Store
from slicewise.diffusion.noise import TRAIN_NOISE, TRAIN_ORDER, generator
from slicewise.hu import HU_MIN, HUScale


@dataclass(frozen=True)
class Slices:
    """The slices of some volumes, counted from the first that shows the head.

    Attributes
    ----------
    store : where the volumes lie.
    records : which of them.
    scale : HU scale of x.
    length : slices of a volume: air below its last one, cut where it is longer. None takes each as long as it is.
    """

    store: Store
    records: tuple[Record, ...]
    scale: HUScale
    length: int | None = None

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([self.length or r.shape[0] - r.vertex_slice for r in self.records])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def hu(self, index: int) -> np.ndarray:
        """Slice `index`, int16 HU (Y, X)."""
        volume = int(np.searchsorted(self._ends, index, side="right"))
        record = self.records[volume]
        z = index - (int(self._ends[volume - 1]) if volume else 0) + record.vertex_slice
        if z >= record.shape[0]:
            return np.full(record.shape[1:], HU_MIN, np.int16)
        return np.asarray(self.store.hu(record)[z])

    def column(self, volume: int) -> Tensor:
        """All slices of one volume, x (T, 1, H, W) float32, without dequantisation noise. Needs `length`."""
        assert self.length is not None
        hu = np.stack([self.hu(volume * self.length + z) for z in range(self.length)])
        return torch.from_numpy(self.scale.encode(hu))[:, None]

    def batch(self, seed: int, step: int, samples: range, flip: bool = False) -> Tensor:
        """x (B, 1, H, W) float32 of a step's samples; whole HU are spread over their bin."""
        made = []
        for sample in samples:
            rng = generator(seed, sample, step, 0, TRAIN_ORDER)
            hu = self.hu(int(rng.integers(0, len(self))))
            if flip and rng.random() < 0.5:
                hu = hu[:, ::-1]
            spread = generator(seed, sample, step, 0, TRAIN_NOISE).uniform(-0.5, 0.5, hu.shape)
            made.append(self.scale.encode(hu + spread))
        return torch.from_numpy(np.stack(made))[:, None]


def training_slices(store: Store, scale: HUScale) -> tuple[Slices, BaselineRecipe]:
    """The training split's slices and the recipe that goes with them; `UserError` as `training_windows` has it."""
    records = tuple(training_windows(store, "train", 1).records)
    longest = max(r.shape[0] - r.vertex_slice for r in records)
    recipe = BaselineRecipe(records[0].shape[1], records[0].spacing_mm, scale, longest)
    return Slices(store, records, scale), recipe
