"""Exponential moving average of a network's parameters, kept in float32."""

from collections.abc import Iterable

import torch


class EMA:
    """ema <- d ema + (1 - d) p after every step, with d = min(decay, (1 + step)/(10 + step)): short at the start, so
    that early averages are not dominated by the random initial weights."""

    def __init__(self, parameters: Iterable[torch.Tensor], decay: float) -> None:
        self.decay = decay
        self.averages = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self, parameters: Iterable[torch.Tensor], step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.averages, [p.detach() for p in parameters], 1 - decay)

    @torch.no_grad()
    def swap(self, parameters: Iterable[torch.Tensor]) -> None:
        """Exchange averages and parameters in place; a second call undoes it."""
        for average, parameter in zip(self.averages, parameters):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)
