"""What commands say on stdout: lines for people, one JSON object for scripts (--json)."""

import json
from collections.abc import Iterable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from slicewise.io.files import LeftOut


def print_json(result: Any) -> None:
    """A result of dataclasses, paths and plain types as JSON."""
    print(json.dumps(result, default=_plain, indent=2, ensure_ascii=False))


def print_left_out(left_out: Iterable[LeftOut]) -> None:
    for left in left_out:
        print(f"left out  {left.source}: {left.reason}")


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} has no form in JSON")
