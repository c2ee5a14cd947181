"""What the scripts of this folder share: where they write, and the table that comes last."""

import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from slicewise.errors import UserError
from slicewise.io.atomic import write_whole

Row = Mapping[str, Any]


def out_folder(name: str) -> Path:
    """Where results go unless `--out` says: $OUT, or runs/gpu-<name>."""
    return Path(os.environ.get("OUT") or f"runs/gpu-{name}")


def markdown(rows: Mapping[str, Row]) -> str:
    """Values by row and column as a Markdown table; what a row lacks is a dash."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [f"| | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    lines += [f"| {name} | {' | '.join(_shown(row.get(c)) for c in columns)} |" for name, row in rows.items()]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def finish(out: Path, about: Row, sections: Mapping[str, Mapping[str, Row]]) -> None:
    """Write table.md (what it was, then one table a section) and results.json, and print the tables. What is empty is
    left out."""
    facts = [f"- {name}: {_shown(value)}" for name, value in about.items() if value not in ("", None)]
    parts = ["\n".join(facts)]
    for title, rows in sections.items():
        if rows:
            parts += [f"### {title}", markdown(rows)]
    text = "\n\n".join(parts) + "\n"
    write_whole(out / "table.md", text.encode())
    write_whole(out / "results.json", (json.dumps(_finite({**about, **sections}), indent=1) + "\n").encode())
    print(text, flush=True)


def _finite(value: Any) -> Any:
    """As JSON has it: numbers that are not finite are null."""
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def device_of(name: str) -> torch.device:
    """The device that "auto", "cpu", "cuda", … means."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def machine(device: torch.device) -> str:
    """The machine in a line."""
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return f"{card}, {os.cpu_count()} processors, torch {torch.__version__}"


def command(main: Callable[[], None]) -> None:
    """Run a script from the command line: what the user did wrong ends in one line."""
    try:
        main()
    except UserError as problem:
        sys.exit(f"{Path(sys.argv[0]).stem}: {problem}")
