"""What every training has in common: the settings of a run, and what the loop needs of a method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from slicewise.data.windows import Heads
from slicewise.errors import UserError
from slicewise.training.ema import EMA


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings of every training.

    Attributes
    ----------
    steps : optimiser steps.
    minutes : instead of steps, minutes of wall-clock time that the whole run may take (0 = by steps); a finished run
        that is given more goes on.
    batch : samples a step, over all processes together.
    lr : learning rate of Adam.
    warmup : share of the run over which the rate rises linearly.
    cooldown : share of the run, at its end, over which the rate falls linearly to zero.
    clip : largest norm of the gradient.
    seed : of weights, order and noise.
    save_minutes : minutes between checkpoints (0 = after every step).
    validations : validations in a run, evenly spread.
    samples : pictures of generated slices in a run, evenly spread.
    device : "auto" (CUDA if there is one), "cpu", "cuda", "cuda:1", …
    tensorboard : also write TensorBoard logs.
    """

    steps: int = 6000
    minutes: float = 0.0
    batch: int = 16
    lr: float = 1e-3
    warmup: float = 0.02
    cooldown: float = 0.3
    clip: float = 1.0
    seed: int = 0
    save_minutes: float = 5.0
    validations: int = 6
    samples: int = 0
    device: str = "auto"
    tensorboard: bool = False

    def check(self) -> None:
        """`UserError` naming the first setting that no training can have."""
        above = [name for name in ("steps", "batch", "lr", "clip") if not getattr(self, name) > 0]
        below = [n for n in ("minutes", "save_minutes", "validations", "samples") if not getattr(self, n) >= 0]
        outside = [n for n in ("warmup", "cooldown") if not 0 <= getattr(self, n) <= 1]
        for names, bound in ((above, "be above 0"), (below, "not be below 0"), (outside, "lie in [0, 1]")):
            for name in names:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: must {bound}")


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
