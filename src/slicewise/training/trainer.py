"""What every training has in common: the settings of a run, and what the loop needs of a method."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from slicewise.data.windows import Heads
from slicewise.training.ema import EMA
from slicewise.training.settings import RunSettings

# What a started run may change.
FREE = frozenset(field.name for field in fields(RunSettings)) - {"seed"}


class Trainer(Protocol):
    """What the loop needs of a method.

    Attributes
    ----------
    name : for the progress line.
    settings : of the run.
    free : settings of its own that a started run may change.
    networks : everything with weights, by name.
    optimizers : of those weights.
    exported : the network that is saved to be used.
    average : of its parameters, or None.
    width : of the average at the end, made from snapshots; 0 chooses it, None keeps the average as it is.
    heads : the training data.
    """

    name: str
    free: frozenset[str]
    networks: dict[str, nn.Module]
    optimizers: Sequence[Optimizer]
    exported: str
    average: EMA | None
    width: float | None
    heads: Heads

    @property
    def settings(self) -> RunSettings: ...

    def step(self, step: int) -> dict[str, Tensor]:
        """One step of training; scalars to log, on the device, the mean over this process's samples."""

    def model(self) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Kind, configuration and what else the checkpoint says."""

    def validate(self) -> dict[str, Any]:
        """What to log of a validation; its "score", less is better, decides the width of the average."""

    def sample(self, path: Path) -> None:
        """Write a picture of what the exported network draws: all processes draw, the first writes."""

    def memory(self) -> dict[str, Any]:
        """What else its state is, as JSON has it."""

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Take over what `memory` gave."""

    def finish(self) -> None:
        """What is done once, after the last step, with the weights that are to be used."""
