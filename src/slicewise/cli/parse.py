"""From what was typed to a command with its settings: flag > --config FILE > --preset NAME > default."""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from slicewise.errors import UserError
from slicewise.settings import fill, preset, presets, read_table

# Settings whose flags bear no prefix.
PLAIN = tyro.conf.arg(name="")
# What was typed after a command's name, which `train` hands to the processes that it starts.
typed: list[str] = []


class Command(Protocol):
    """A frozen dataclass of a command's flags. Its field `settings`, where it has one, is filled by --config and
    --preset."""

    def run(self) -> None: ...


def parse(name: str, kind: type[Command], argv: list[str]) -> Command:
    """The command `name` with its flags. Leaves with status 2, or 0 after --help; raises `UserError` for a bad file or
    preset."""
    typed[:] = argv
    argv, chosen = _take(argv, "--preset")
    argv, file = _take(argv, "--config")
    command = unfilled(kind)
    settings = getattr(command, "settings", None)
    if settings is not None:
        if chosen:
            settings = fill(settings, preset(name, chosen), f"preset {chosen}")
        if file:
            settings = fill(settings, read_table(Path(file), name), f"--config {file}")
        command = unfilled(kind, settings=settings)
    elif chosen or file:
        raise UserError(f"{name} has no settings for --preset or --config")
    about = " ".join((kind.__doc__ or "").split())
    parsed = tyro.cli(
        kind, args=argv, prog=f"slicewise {name}", description=about, default=command, registry=registry({kind: name})
    )
    for field, hint in get_type_hints(kind, include_extras=True).items():
        if _is_positional(hint) and getattr(parsed, field) == ():
            print(f"slicewise {name}: give one or more {field.upper()}; see --help", file=sys.stderr)
            sys.exit(2)
    return parsed


def unfilled(kind: type[Command], **given: Any) -> Command:
    """A command with the defaults of its flags, and what has none marked as missing."""
    return kind(**{**_defaults(kind), **given})


def _defaults(kind: type) -> dict[str, Any]:
    return {f.name: f.default_factory() if callable(f.default_factory) else _default(f) for f in fields(kind)}


def _default(field: Field[Any]) -> Any:
    return tyro.MISSING if field.default is MISSING else field.default


def registry(names: Mapping[type, str]) -> ConstructorRegistry:
    """How tyro reads our dataclasses: the string below a field is its help, and what follows from other settings or the
    data (`derived` in a field's metadata) is no flag. `names` are those of commands, to which --config and --preset are
    added where they have settings."""
    known = ConstructorRegistry()

    @known.struct_rule
    def flags_of(info: StructTypeInfo) -> StructConstructorSpec | None:
        kind = info.type
        if not (is_dataclass(kind) and kind.__module__.startswith("slicewise.")):
            return None
        given = vars(info.default) if isinstance(info.default, kind) else _defaults(kind)
        docs, hints = field_docs(kind), get_type_hints(kind, include_extras=True)
        kept = {f.name: given[f.name] for f in fields(kind) if f.metadata.get("derived")}
        offered = [
            StructFieldSpec(name, _shown(name, hints[name], docs.get(name, "")), value, docs.get(name, ""))
            for name, value in given.items()
            if name not in kept
        ]
        if kind in names and "settings" in given:
            offered += _sources(names[kind])
        return StructConstructorSpec(partial(_made, kind, kept), tuple(offered))

    return known


def _is_positional(hint: Any) -> bool:
    return tyro.conf.Positional in getattr(hint, "__metadata__", ())


def _sources(name: str) -> list[StructFieldSpec]:
    """The flags that fill settings; `parse` has taken them before tyro looks, which only explains them."""
    found = [
        StructFieldSpec("config", _shown("config", Path | None), None, "TOML file of settings; flags override it.")
    ]
    if known := tuple(presets(name)):
        kind = _shown("preset", Literal[known] | None)
        found.append(
            StructFieldSpec(
                "preset", kind, None, "Settings that come with slicewise; flags and --config override them."
            )
        )
    return found


def _shown(name: str, hint: Any, text: str = "") -> Any:
    """A field's type, with what help shows for its value: a positional's name, and of what may be left out its kind;
    no default where the text says it."""
    hidden: dict[str, Any] = {"help_behavior_hint": ""} if "by default" in text else {}
    if _is_positional(hint):
        if get_origin(get_args(hint)[0]) is tuple:
            return Annotated[hint, tyro.conf.arg(metavar=f"{name.upper()} ...", help_behavior_hint="(required)")]
        return Annotated[hint, tyro.conf.arg(metavar=name.upper())]
    if type(None) not in get_args(hint):
        return Annotated[hint, tyro.conf.arg(**hidden)] if hidden else hint
    (kind,) = (part for part in get_args(hint) if part is not type(None))
    metavar = kind.__name__.upper() if isinstance(kind, type) else "{" + ",".join(get_args(kind)) + "}"
    return Annotated[hint, tyro.conf.arg(metavar=metavar, help_behavior_hint="")]


def _made(kind: type, kept: dict[str, Any], config: None = None, preset: None = None, **given: Any) -> Any:
    return kind(**kept, **given)


@lru_cache
def field_docs(kind: type) -> dict[str, str]:
    """The strings below the fields of a dataclass and of its parents, each on one line, by field."""
    docs: dict[str, str] = {}
    for parent in reversed(kind.__mro__):
        if is_dataclass(parent):
            (definition,) = ast.parse(textwrap.dedent(inspect.getsource(parent))).body
            assert isinstance(definition, ast.ClassDef)
            for field, below in pairwise(definition.body):
                if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                    docs[ast.unparse(field.target)] = " ".join(ast.literal_eval(below.value).split())
    return docs


def as_flags(text: str, kind: type[Command]) -> str:
    """A message or help text in which the flags of a command stand for settings: the library names a setting
    `ChainSettings.direction` or `ChainSettings.direction=up`, or a parameter `syntax=rle`."""
    known = flag_names(kind)

    def flag(found: re.Match[str]) -> str:
        owner, name, value = found.groups()
        named = known.get(f"{owner}.{name}") if owner else None
        named = named or known.get(name)
        if named is None or not (owner or value):
            return found[0]
        if value == "=False":
            group, _, last = named.removeprefix("--").rpartition(".")
            return f"--{group}{'.' if group else ''}no-{last}"
        return named + (" " if value == "=" else "")

    return re.sub(r"(?<![\w./-])(?:([A-Z]\w*)\.)?([a-z]\w*)\b(=True\b|=False\b|=)?", flag, text)


@lru_cache
def flag_names(kind: type, prefix: str = "") -> dict[str, str]:
    """The flags of a dataclass and of those in its fields, by class and field; those without prefix by the field
    alone, too."""
    found: dict[str, str] = {}
    hints = get_type_hints(kind, include_extras=True)
    owners = [parent.__name__ for parent in kind.__mro__ if is_dataclass(parent)]
    for field in fields(kind):
        bare = get_args(hints[field.name])[0] if get_origin(hints[field.name]) is Annotated else hints[field.name]
        name = f"--{prefix}{field.name.replace('_', '-')}"
        if is_dataclass(bare) and isinstance(bare, type):
            below = prefix if bare is not hints[field.name] else f"{prefix}{field.name.replace('_', '-')}."
            found = {**flag_names(bare, below), **found}
        if not (field.metadata.get("derived") or _is_positional(hints[field.name])):
            found |= {f"{owner}.{field.name}": name for owner in owners}
            if not prefix:
                found[field.name] = name
    return found


def _take(argv: list[str], flag: str) -> tuple[list[str], str | None]:
    """Remove `flag VALUE` or `flag=VALUE` from argv."""
    for i, argument in enumerate(argv):
        if argument == flag:
            if i + 1 == len(argv):
                raise UserError(f"{flag} needs a value")
            return argv[:i] + argv[i + 2 :], argv[i + 1]
        if argument.startswith(flag + "="):
            return argv[:i] + argv[i + 1 :], argument.split("=", 1)[1]
    return argv, None
