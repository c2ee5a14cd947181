"""How far a long command is, on stderr: a bar at a terminal, a line a minute where there is none (a log, a job)."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Event, Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, Task

LINE_EVERY_S = 60.0
# Speeds are taken over this long: a volume or a validation can take minutes.
_SPEED_OVER_S = 600.0


@contextmanager
def counting_bar(show: bool, transient: bool = False, every_s: float = LINE_EVERY_S) -> "Iterator[Progress]":
    """A rich progress with one line a task: name, bar, done/total, time passed and left, and the task's field `note`
    where it has one (`add_task(..., note="")`, `update(task, note="loss 0.1")`).

    Where stderr is no terminal, the tasks in work are said in one plain line every `every_s` seconds instead.
    `transient` wipes the bar away at the end; nothing is said without `show`.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class NoteColumn(ProgressColumn):
        def render(self, task: "Task") -> Text:
            return Text(str(task.fields.get("note", "")))

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        NoteColumn(),
    )
    console = Console(stderr=True)
    drawn = show and console.is_terminal
    with Progress(
        *columns, console=console, transient=transient, disable=not drawn, speed_estimate_period=_SPEED_OVER_S
    ) as bar:
        if drawn or not show:
            yield bar
            return
        ended = Event()
        talker = Thread(target=_say_lines, args=(bar, ended, every_s), daemon=True)
        talker.start()
        try:
            yield bar
        finally:
            ended.set()
            talker.join()


def _say_lines(bar: "Progress", ended: Event, every_s: float) -> None:
    while not ended.wait(every_s):
        told = [_line(task) for task in bar.tasks if task.total is None or task.completed < task.total]
        if told:
            print("; ".join(told), file=sys.stderr, flush=True)


def _line(task: "Task") -> str:
    """A task in words: "volumes 12/300, 0:04:10 passed, 1:40:00 left"."""
    total = "" if task.total is None else f"/{task.total:g}"
    parts = [f"{task.description.strip()} {task.completed:g}{total}"]
    for seconds, what in ((task.elapsed, "passed"), (task.time_remaining, "left")):
        if seconds is not None:
            parts.append(f"{timedelta(seconds=round(seconds))} {what}")
    if note := str(task.fields.get("note", "")).strip():
        parts.append(note)
    return ", ".join(parts)
