"""The command `completion`: what a shell needs to know of all the others."""

from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from slicewise.cli import COMMANDS, command_class
from slicewise.cli.parse import registry, unfilled


@dataclass(frozen=True, kw_only=True)
class Completion:
    """Print a script that completes commands and flags. In bash: slicewise completion bash >
    ~/.local/share/bash-completion/completions/slicewise"""

    shell: Annotated[Literal["bash", "zsh", "fish"], Positional]
    """Shell to complete in."""

    def run(self) -> None:
        classes = {name: command_class(name) for name in COMMANDS}
        families: dict[str, list[Any]] = {}
        for name, kind in classes.items():
            first, _, second = name.partition(" ")
            word = tyro.conf.subcommand(second or first, default=unfilled(kind), prefix_name=False)
            families.setdefault(first, []).append(_marked(kind, word))
        kinds = [
            one[0] if first in classes else _marked(reduce(or_, one), tyro.conf.subcommand(first))
            for first, one in families.items()
        ]
        tyro.cli(
            reduce(or_, kinds),
            prog="slicewise",
            args=["--tyro-print-completion", self.shell],
            registry=registry({kind: name for name, kind in classes.items()}),
        )


def _marked(kind: Any, mark: Any) -> Any:
    return Annotated[kind, mark]
