"""Endless labelled heads for anyone's training loop."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from slicewise.data.phantom import PhantomSettings, make_phantom


@dataclass(frozen=True)
class SyntheticHeads(IterableDataset[dict[str, Any]]):
    """Head phantoms with their label maps, each from its own seed, no two alike, for a torch `DataLoader`.

    Each item is a dictionary: `image`, float32 HU (1, Z, Y, X), first slice the most superior; `label`, uint8 of the
    same shape, names in `slicewise.LABELS`; `spacing`, mm (z, y, x); `seed`; `description`, what the head is. Heads
    differ in their number of slices. Workers of a loader take turns at the seeds, so that none is made twice; the order
    is that of the seeds where there is one worker.

    Attributes
    ----------
    settings : how heads are made; `anatomy` takes label maps of real heads.
    seed : of the first head.
    count : how many; 0 for no end.
    """

    settings: PhantomSettings = field(default_factory=lambda: PhantomSettings(size=128))
    seed: int = 0
    count: int = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        while not self.count or number < self.count:
            made = make_phantom(self.seed + number, self.settings)
            yield {
                "image": torch.from_numpy(made.volume.hu)[None].float(),
                "label": torch.from_numpy(made.labels)[None],
                "spacing": torch.tensor(made.volume.spacing),
                "seed": self.seed + number,
                "description": made.description,
            }
            number += workers
