"""Messages of the library name settings, which a notebook has; the command line alone turns them into flags."""

import ast
import re
from pathlib import Path

import pytest

from slicewise.cli import COMMANDS, command_class
from slicewise.cli.parse import as_flags, flag_names

ROOT = Path(__file__).parent.parent / "src" / "slicewise"
LIBRARY = sorted(file for file in ROOT.rglob("*.py") if file.parent.name != "cli")
TREES = {file: ast.parse(file.read_text()) for file in LIBRARY}
# A setting in a message: `Settings.field`, `Settings.field=value`, or a parameter `name=value`.
SETTING = re.compile(r"(?<![\w./-])([A-Z]\w*)\.([a-z]\w*)\b")
PARAMETER = re.compile(r"(?<![\w./-])([a-z]\w*)=(?:True|False|FILE|STORE)\b")
FLAG = re.compile(r"(?<![\w-])--[a-z]")
# Advice of another program's flag, and colours of a page's style.
FOREIGN = re.compile(r"--force-reinstall|var\(--\w+\)|slicewise [a-z-]+( [a-z]+)? --[a-z-]+")


def _texts(tree: ast.Module) -> list[str]:
    """Every string of a module, docstrings aside; of an f-string its pieces, with {} for what is filled in."""
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    joined = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    within = {id(part) for node in joined for part in node.values}
    whole = ["".join(p.value if isinstance(p, ast.Constant) else "{}" for p in node.values) for node in joined]
    plain = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node)} & (docs | within)
    ]
    return whole + plain


TEXTS = [(file, text) for file, tree in TREES.items() for text in _texts(tree)]


def _name(decorator: ast.expr) -> str:
    return ast.unparse(decorator).partition("(")[0]


def _fields() -> dict[str, set[str]]:
    """The fields of every dataclass of the library, inherited ones with them."""
    own, parents = {}, {}
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and "dataclass" in map(_name, node.decorator_list):
                own[node.name] = {f.target.id for f in node.body if isinstance(f, ast.AnnAssign)}
                parents[node.name] = [base.id for base in node.bases if isinstance(base, ast.Name)]
    return {name: own[name].union(*(own.get(p, set()) for p in parents[name])) for name in own}


FIELDS = _fields()
NAMED = sorted({found for _, text in TEXTS for found in SETTING.findall(text) if found[0] in FIELDS})


def test_no_message_of_the_library_names_a_flag():
    flags = [(file.name, text) for file, text in TEXTS if FLAG.search(FOREIGN.sub("", text))]
    assert not flags


def test_settings_are_found_in_messages():
    assert len(NAMED) > 70
    assert ("ChainSettings", "direction") in NAMED


@pytest.mark.parametrize("owner, field", NAMED, ids=".".join)
def test_every_setting_that_a_message_names_exists_and_has_a_flag(owner, field):
    assert field in FIELDS[owner]
    kinds = [command_class(name) for name in COMMANDS]
    assert any(as_flags(f"{owner}.{field}=", kind).startswith("--") for kind in kinds)


def test_every_parameter_that_a_message_names_is_a_flag_of_a_command():
    named = {name for _, text in TEXTS for name in PARAMETER.findall(text)}
    assert {"interpolate_missing", "allow_leak"} <= named
    assert named <= {name for command in COMMANDS for name in flag_names(command_class(command))}


@pytest.mark.parametrize(
    "command, message, said",
    [
        ("generate", "ChainSettings.direction=up: needs GenerateSettings.guide", "--chain.direction up: needs --guide"),
        ("train", "RunSettings.batch=0: or DenoiserTraining.batch=0", "--batch 0: or --batch 0"),
        ("train", "DenoiserTraining.position=False, UNetConfig.local=False", "--no-position, --unet.no-local"),
        ("train", "give UNetConfig.window_mean", "give --unet.window-mean"),
        ("pull", "Query.patient=ID or PeerSettings.ca=FILE", "--patient ID or --ca FILE"),
        ("export", "syntax=jpeg: unknown, Grid.keep_tilt=True keeps", "--syntax jpeg: unknown, --keep-tilt keeps"),
        ("demo", "GenerateSettings.count=0", "--count 0"),
        ("demo", "ChainSettings.steps=1", "ChainSettings.steps=1"),
        ("prepare", "/data/size=3/a.dcm: size of a.split=b", "/data/size=3/a.dcm: size of a.split=b"),
    ],
)  # fmt: skip
def test_a_command_says_its_own_flags(command, message, said):
    assert as_flags(message, command_class(command)) == said
