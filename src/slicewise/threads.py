"""Threads that compute alone: small work is done faster side by side than shared piece by piece."""

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def threads_alone(count: int) -> Iterator[Executor]:
    """`count` threads in which torch uses one processor each and keeps no gradients. Meanwhile the caller leaves its
    own work to them."""
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(count, initializer=_compute_alone) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)  # the last call counts for threads that are yet to come


def _compute_alone() -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
