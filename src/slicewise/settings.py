"""Settings from presets, TOML files and the command line: flag > file > preset > default.

Settings are the frozen dataclasses that the parts of the program define; this file only fills them from tables and
writes them back.
"""

import contextlib
import dataclasses
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tomli_w

from slicewise.errors import UserError
from slicewise.io.atomic import write_whole

T = TypeVar("T")


def presets(command: str) -> dict[str, dict[str, Any]]:
    """The packaged presets that hold a table for `command` ("train", "phantom", …), by name."""
    found = {}
    for file in sorted(resources.files("slicewise.presets").iterdir(), key=lambda f: f.name):
        if file.name.endswith(".toml"):
            table = tomllib.loads(file.read_text())
            if command in table:
                found[file.name.removesuffix(".toml")] = table[command]
    return found


def preset(command: str, name: str) -> dict[str, Any]:
    """One preset's table for `command`."""
    known = presets(command)
    if name not in known:
        raise UserError(
            f"preset {name}: unknown for {command}; choose {', '.join(known) or 'none, there is no preset'}"
        )
    return known[name]


def read_table(path: Path, command: str) -> dict[str, Any]:
    """The settings of `command` in a TOML file: its table of that name, or the whole file where there is none."""
    try:
        table = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not TOML ({error}); fix the file") from None
    found: dict[str, Any] = table.get(command, table)
    return found


def fill(settings: T, table: Mapping[str, Any], where: str) -> T:
    """`settings` (a dataclass) with the values of a nested table; `UserError` for an unknown key or a wrong type."""
    if not isinstance(table, Mapping):
        raise UserError(f"{where}: {table!r}, expected a table of settings")
    hints = get_type_hints(type(settings))
    changes: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in hints:
            raise UserError(f"{where}: unknown setting {key!r}; expected one of {', '.join(hints)}")
        current = getattr(settings, name)
        if dataclasses.is_dataclass(current) and not isinstance(current, type):
            changes[name] = fill(current, value, f"{where}: {key}")
            continue
        try:
            changes[name] = _as_kind(value, hints[name])
        except TypeError:
            choices = get_args(hints[name]) if get_origin(hints[name]) is Literal else ()
            expected = f"one of {', '.join(map(repr, choices))}" if choices else f"a value like {current!r}"
            raise UserError(f"{where}: {key} = {value!r}, expected {expected}") from None
    try:
        return dataclasses.replace(settings, **changes)  # type: ignore[type-var]
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _as_kind(value: Any, kind: Any) -> Any:
    """A TOML value as a field's type has it; raises TypeError where it does not fit."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        for part in parts:
            with contextlib.suppress(TypeError):
                return _as_kind(value, part)
    elif origin is Literal:
        if value in parts:
            return value
    elif origin is tuple and isinstance(value, list):
        kinds = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        if len(kinds) == len(value):
            return tuple(map(_as_kind, value, kinds))
    elif isinstance(value, bool) != (kind is bool):
        pass
    elif kind is Path and isinstance(value, str):
        return Path(value)
    elif kind is float and isinstance(value, (int, float)):
        return float(value)
    elif kind in (bool, int, str) and isinstance(value, kind):
        return value
    raise TypeError


def write_settings(path: Path, command: str, settings: Any) -> None:
    """Write settings as a TOML file that `read_table` reads back."""
    write_whole(path, tomli_w.dumps({command: _as_toml(settings)}).encode())


def _as_toml(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {name: _as_toml(v) for name, v in fields if v is not None}
    if isinstance(value, (list, tuple)):
        return [_as_toml(v) for v in value]
    return str(value) if isinstance(value, Path) else value
