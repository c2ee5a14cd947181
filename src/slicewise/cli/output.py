"""What commands say on stdout: lines for people, one JSON object for scripts (--json)."""

import json
from collections.abc import Iterable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from slicewise.cli.parse import Command, as_flags
from slicewise.io.files import Skipped


def print_json(result: Any) -> None:
    """A result of dataclasses, paths and plain types as JSON."""
    print(json.dumps(result, default=_as_json, indent=2, ensure_ascii=False))


def print_notes(command: Command, label: str, texts: Iterable[str]) -> None:
    """A line for each text, with the command's flags for settings."""
    for text in texts:
        print(f"{label:10}{as_flags(text, type(command))}")


def print_skipped(command: Command, skipped: Iterable[Skipped]) -> None:
    """A line for each file, folder or series that nothing was made of."""
    for one in skipped:
        print(f"left out  {one.source}: {as_flags(one.reason, type(command))}")


def _as_json(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} has no form in JSON")
