"""The bar on stderr of a program that counts what it has done."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


@contextmanager
def counting_bar(show: bool, transient: bool = False) -> "Iterator[Progress]":
    """A rich progress with one line a task: name, bar, done/total, time passed and left. `transient` wipes it away at
    the end; nothing is drawn without `show`."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=transient, disable=not show) as bar:
        yield bar
