"""The order of the house: imports run one way, numerics know no files, start-up needs no torch, nothing is pickled."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "src" / "slicewise"
PACKAGE = "slicewise"

# Each module belongs to the first entry whose name it is or lies below; it may import from its own layer and from those
# before it.
LAYERS = (
    ("slicewise.errors", "slicewise.hu", "slicewise.volume", "slicewise.progress", "slicewise.workers"),
    ("slicewise.random", "slicewise.runtime"),
    ("slicewise.codec",),
    ("slicewise.io",),
    ("slicewise.settings",),  # fills and writes dataclasses; knows no part of the program
    ("slicewise.data", "slicewise.diffusion", "slicewise.networks", "slicewise.metrics"),
    ("slicewise.checkpoint", "slicewise.reporting"),
    ("slicewise.sampling", "slicewise.ascii", "slicewise.calibrate", "slicewise.pyramid", "slicewise.baselines"),
    ("slicewise.training",),
    ("slicewise.generate", "slicewise.fill"),
    (
        "slicewise.release",
        "slicewise.monai_bundle",
        "slicewise.export",
        "slicewise.info",
        "slicewise.evaluation",
    ),
    ("slicewise.anomaly",),
    ("slicewise.viewer",),
    ("slicewise.study",),
    ("slicewise.cli", "slicewise.presets"),
    ("slicewise.__main__",),
)
# Raw networks, noise-level arithmetic and the HU scale: pure numbers.
NUMERICS = ("slicewise.hu", "slicewise.diffusion", "slicewise.networks")
# What the command line and notebooks load to read, write and look at data: no torch (2.6 s) at module level.
LIGHT = (
    "slicewise.errors", "slicewise.hu", "slicewise.volume", "slicewise.settings", "slicewise.cli", "slicewise.info",
    "slicewise.sampling", "slicewise.training.settings", "slicewise.networks.shapes", "slicewise.baselines.shapes",
    "slicewise.diffusion.settings",
    "slicewise.anomaly.settings", "slicewise.anomaly.score", "slicewise.anomaly.baselines",
    "slicewise.calibrate", "slicewise.reporting", "slicewise.export", "slicewise.data",
    "slicewise.io", "slicewise.metrics", "slicewise.release", "slicewise.evaluation",
    "slicewise.viewer", "slicewise.study", "slicewise.progress", "slicewise.workers",
)  # fmt: skip
# Tensors are what they are about.
TORCH_IO = (
    "slicewise.io.tensors", "slicewise.data.windows", "slicewise.data.heads", "slicewise.metrics.inception",
    "slicewise.metrics.efficientnet",
    "slicewise.metrics.resnet",
    "slicewise.data.phantom.fields", "slicewise.data.phantom.parts", "slicewise.data.phantom.real",
    "slicewise.data.phantom.scanner", "slicewise.data.phantom.tissue", "slicewise.data.phantom.warp",
)  # fmt: skip


def _modules() -> dict[str, ast.Module]:
    found = {}
    for file in sorted(ROOT.rglob("*.py")):
        parts = (PACKAGE, *file.relative_to(ROOT).with_suffix("").parts)
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(file.read_text(), str(file))
    return found


MODULES = _modules()


def _imports(tree: ast.AST) -> set[str]:
    """Every module that an import statement names; of `from package import module` the module."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where things come from"
            whole = node.module or ""
            names |= {f"{whole}.{a.name}" if f"{whole}.{a.name}" in MODULES else whole for a in node.names}
    return names


def _at_start(tree: ast.Module) -> set[str]:
    """Imports that run when the module is loaded: not in functions, not under TYPE_CHECKING."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names |= _imports(node)
    return names


def _below(name: str, roots: tuple[str, ...]) -> bool:
    return any(name == root or name.startswith(root + ".") for root in roots)


def _layer(name: str) -> int:
    for level, roots in enumerate(LAYERS):
        if _below(name, roots):
            return level
    raise AssertionError(f"{name} stands in no layer: give it its place in the house")


@pytest.mark.parametrize("name", [m for m in MODULES if m != PACKAGE])
def test_imports_run_one_way(name):
    for target in sorted(i for i in _imports(MODULES[name]) if i.startswith(PACKAGE + ".")):
        assert _layer(target) <= _layer(name), f"{name} imports {target}, which stands above it"


def test_no_two_modules_need_each_other():
    edges = {n: {i for i in _at_start(t) if i in MODULES and i != n} for n, t in MODULES.items()}

    def reaches(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for following in edges[todo.pop()] - seen:
                seen.add(following)
                todo.append(following)
        return seen

    assert not [n for n in edges if n in reaches(n)]


@pytest.mark.parametrize("name", [m for m in MODULES if _below(m, NUMERICS)])
def test_numerics_know_no_files_dicom_command_line_or_plots(name):
    foreign = ("slicewise.io", "slicewise.cli", "slicewise.data", "pathlib", "os", "json", "pydicom", "nibabel")
    foreign += ("matplotlib", "rich", "tyro", "tomllib", "argparse", "torch.distributed")
    assert not [i for i in _imports(MODULES[name]) if _below(i, foreign)]
    called = {n.func.id for n in ast.walk(MODULES[name]) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    assert not called & {"open", "print"}


@pytest.mark.parametrize("name", [m for m in MODULES if _below(m, LIGHT) and m not in TORCH_IO])
def test_torch_waits_until_it_is_needed(name):
    assert not [i for i in _at_start(MODULES[name]) if _below(i, ("torch", "safetensors", *TORCH_IO))]


@pytest.mark.parametrize("name", list(MODULES))
def test_nothing_is_pickled(name):
    assert not [i for i in _imports(MODULES[name]) if _below(i, ("pickle", "dill", "shelve", "joblib", "marshal"))]
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert call != "torch.load" or given.get("weights_only") == "True", f"{name}:{node.lineno}"
            assert call != "torch.save", f"{name}:{node.lineno}"
            if call in ("np.load", "np.save"):
                assert given.get("allow_pickle") == "False", f"{name}:{node.lineno}"


def test_files_stay_readable():
    long = {n: len((ROOT.parent / t).read_text().splitlines()) for n, t in _files()}
    assert not {n: lines for n, lines in long.items() if lines > 600}


def _files() -> list[tuple[str, Path]]:
    return [(str(f.relative_to(ROOT)), f.relative_to(ROOT.parent)) for f in ROOT.rglob("*.py")]
