"""Mutation testing: do the tests fail where the numerics are changed?

    python bench/mutants.py [--count 200] [--seed 0] [--minutes 60] [--work runs/mutants] [--again]
                            [--modules hu.py diffusion/ …] [--tests hu samplers …]

Draws changes of one place each (an operator, a comparison, a constant, a condition, a `not`, a return value) from the
modules below, and runs against each only the tests that reach its line, by a map from lines to tests that `coverage`
makes first (pip install coverage). All happens in a copy of the tree under --work; whatever is done there is kept, and
the same command resumes. --modules and --tests run a part: the drawn changes of some modules alone, or those that some
files of tests reach. --again runs what was not killed once more, after tests were added. Writes
docs/results/mutants.md.

Which changes are drawn depends on the seed and on the text around each, not on line numbers: mending one place leaves
the others drawn as they were. Docstrings, messages, annotations, decorators, assertions and imports are left alone.
What no test can tell from the original is in EQUIVALENT, with the reason.
"""

import argparse
import ast
import contextlib
import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = "src/slicewise"
MODULES = (
    "hu.py", "ascii.py", "calibrate.py", "checkpoint.py",
    "diffusion/*.py", "metrics/*.py", "io/*.py", "data/*.py", "training/*.py",
)  # fmt: skip
# Tests of what stands above or beside these modules take minutes or a browser, and say little about them.
LEFT_OUT = (
    "architecture", "cli", "fuzz", "gpu_bench", "hostile", "library", "montage", "ncsnpp", "phantom",
    "readme", "stud", "stylegan", "unet", "viewer",
)  # fmt: skip
# What tests import and is slow to import: done once, before the forks.
PRELOAD = (
    "numpy", "torch", "scipy.stats", "scipy.ndimage", "pydicom", "pydicom.pixels", "nibabel", "hypothesis", "pytest",
    "coverage", "SimpleITK", "matplotlib.pyplot", "monai.metrics", "rich", "safetensors.torch", "skimage.metrics",
)  # fmt: skip
# Changes that no test can see, by module and change: why.
EQUIVALENT = {
    "data/prepare.py: _is_done: return False -> return None": "only a condition asks for it",
    "data/resample.py: resample_volume: 1e-6 -> 1.5e-06": "slack for rounding",
    "data/windows.py: pooled: factor > 1 -> (factor >= 1)": "the mean of one pixel is the pixel",
    "data/windows.py: whole_heads: 2048 -> 2049": "one head more in a mean of thousands",
    "diffusion/denoiser.py: from_dict: 200 -> 201": "the length of a message",
    "diffusion/settings.py: draw: draws.uniform(count) < self.uniform -> (draws.uniform(count) <= self.uniform)": (
        "a uniform number equals another once in 2^24"
    ),
    "diffusion/settings.py: draw_whole: draws.uniform(1) < 0.5 -> (draws.uniform(1) <= 0.5)": "the same",
    "diffusion/samplers.py: _multistep: return x -> return None": "the last of the levels, 0, has returned before",
    "io/dicom.py: _stored: s.pixels.offset >= 0 -> (s.pixels.offset > 0)": "no DICOM file begins with its pixels",
    "io/dicom.py: load (2): 1 -> 2": "threads change no voxel",
    "io/dicom_scan.py: read_header (3): True -> False": "reads the pixels, too, and drops them",
    "io/dicomweb.py: module: 20 -> 21": "how much a request carries",
    "io/dimse.py: on_message: 0 -> 1": "a byte more of megabytes",
    "io/dimse.py: recv: 0 -> 1": "the same",
    "io/nifti.py: _open: 0 -> 1": "an image of one byte is refused either way",
    "io/received.py: parts: len(data) - len(mark) - 1 -> (len(data) - len(mark) + 1)": (
        "what has come of a mark is shorter than the mark"
    ),
    "metrics/estimate.py: difference_interval: 1000 -> 1001": "one draw more of a bootstrap says nothing else",
    "metrics/reference.py: _moments: sums[0] > 0 -> (sums[0] >= 0)": "nothing over nothing is no number either",
    "metrics/tissue.py: _denoised: 200 -> 201": "far from any tissue",
    "metrics/tissue.py: fit_mixture: 1000 -> 1001": "one iteration more of a fit that has converged",
    "training/denoiser.py: _noise_of: 3 -> 4": "digits of a number that is shown",
    "training/denoiser.py: plan: 1 -> 2": "a random number more than is used",
    "training/icnet.py: sample: HU_PER_UNIT * torch.cat([x[:, :1], self.net(x), target])[:, 0].cpu().numpy() + "
    "ICNET.centre -> (HU_PER_UNIT * torch.cat([x[:, :1], self.net(x), target])[:, 0].cpu().numpy() - ICNET.centre)": (
        "the centre is 0"
    ),
    "training/icnet.py: validate: 4 -> 5": "digits of a number that is shown",
    "training/report.py: _curve: 5.4 -> 8.100000000000001": "the width of a figure",
    "training/settings.py: module: 1e6 -> 1500000.0": "no gradient is so large",
    "training/slice_vae.py: validate (2): 0 -> 1": "other random numbers",
    "training/slices.py: batch: 1 -> 2": "a random number more than is used",
}

SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitOr,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.And: ast.Or, ast.Or: ast.And,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip


# Conditions that no change of an operator turns round.
CONDITIONS = (ast.Name, ast.Attribute, ast.Call, ast.Subscript)


@dataclass(frozen=True)
class Mutant:
    """One change.

    Attributes
    ----------
    file : below `SOURCE`.
    span : start and end of what is replaced, bytes.
    lines : first and last line of the statement it is in.
    body : lines of the function or module whose tests concern it where its own lines run at import alone.
    before, after : the text that is replaced, and what replaces it.
    place : tells changes of one text apart: the function, and a number where it has several.
    """

    file: str
    span: tuple[int, int]
    lines: tuple[int, int]
    body: tuple[int, int]
    before: str
    after: str
    place: str

    @property
    def key(self) -> str:
        return f"{self.file}: {self.place}: {_short(self.before)} -> {_short(self.after)}"


@dataclass(frozen=True)
class Result:
    """What became of a mutant: "killed", "hung" (killed, too), "survived" or "untested" (no test reaches it)."""

    status: str
    seconds: float
    tests: int


def main() -> None:
    """Draw, run, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no mutant after so long")
    parser.add_argument("--budget", type=float, default=40.0, help="seconds of tests a mutant, the quickest first")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "mutants")
    parser.add_argument("--modules", nargs="*", default=[""], help="beginnings of the modules whose changes are run")
    parser.add_argument("--tests", nargs="*", help="tests/test_….py by the name in the middle; all that concern them")
    parser.add_argument("--again", action="store_true", help="run what was not killed once more")
    arguments = parser.parse_args()
    until = time.monotonic() + 60 * arguments.minutes
    work = arguments.work.resolve()
    tree = copied(work / "tree")
    shared = work / "shared"  # some tests look for real scans there
    if (ROOT.parent / "shared").exists() and not shared.exists():
        shared.symlink_to(ROOT.parent / "shared")
    os.environ.update(PYTHONPATH=str(tree / "src"), OMP_NUM_THREADS="1", HYPOTHESIS_STORAGE_DIRECTORY=str(work / "h"))
    sys.path.insert(0, str(tree / "src"))
    for name in PRELOAD:
        __import__(name)
    reached, durations = test_map(tree, work, arguments.tests)
    drawn = draw(tree, arguments.seed, arguments.count)
    record = work / f"results-{arguments.seed}.jsonl"
    done = {key: Result(*values) for key, *values in map(json.loads, _lines(record))}
    for number, mutant in enumerate(drawn):
        known = done.get(mutant.key)
        again = arguments.again and known and known.status != "killed" and mutant.key not in EQUIVALENT
        if (known and not again) or time.monotonic() > until:
            continue
        tests = concerned(mutant, reached, durations, arguments.budget, bool(arguments.tests))
        if not mutant.file.startswith(tuple(arguments.modules)) or (arguments.tests and not tests):
            continue
        done[mutant.key] = run(mutant, tests, tree, work, number, durations)
        with record.open("a") as stream:
            stream.write(json.dumps([mutant.key, *vars(done[mutant.key]).values()]) + "\n")
        print(f"{number + 1}/{len(drawn)} {done[mutant.key].status}: {mutant.key}", flush=True)
    report(arguments, drawn, done)


def copied(tree: Path) -> Path:
    """The tree as it is now, without what was compiled or run."""
    shutil.rmtree(tree, ignore_errors=True)
    leave = shutil.ignore_patterns("__pycache__", ".hypothesis")
    for name in ("src", "tests", "studies", "bench"):
        shutil.copytree(ROOT / name, tree / name, ignore=leave)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tree / name)
    return tree


# Which changes there are -------------------------------------------------------------------------------------------


def draw(tree: Path, seed: int, count: int) -> list[Mutant]:
    """`count` of all changes, in the order of a hash of seed and change."""
    every = [m for pattern in MODULES for path in sorted((tree / SOURCE).glob(pattern)) for m in mutants(path, tree)]
    every.sort(key=lambda mutant: hashlib.sha256(f"{seed} {mutant.key}".encode()).digest())
    print(f"{len(every)} changes possible, {count} drawn")
    return every[:count]


def mutants(path: Path, tree: Path) -> Iterator[Mutant]:
    """All changes of one module."""
    source = path.read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    seen: dict[tuple[str, str, str], int] = defaultdict(int)
    for node, after, statement, function in changes(ast.parse(source)):
        span = tuple(
            starts[line - 1] + column
            for line, column in ((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset))
        )
        before = source[span[0] : span[1]].decode()
        name = function.name if function else "module"
        seen[name, _short(before), _short(after)] += 1
        number = seen[name, _short(before), _short(after)]
        whole = (function.lineno, function.end_lineno) if function else (1, len(starts))
        yield Mutant(
            str(path.relative_to(tree / SOURCE)),
            span,
            (min(node.lineno, statement.lineno), node.end_lineno),
            whole,
            before,
            after,
            name if number == 1 else f"{name} ({number})",
        )


def changes(tree: ast.AST) -> Iterator[tuple]:
    """(node, text in its place, its statement, its function or None) of every change."""

    def walk(node: ast.AST, statement: ast.stmt | None, function: ast.FunctionDef | None) -> Iterator[tuple]:
        if _is_left_alone(node):
            return
        if isinstance(node, ast.stmt):
            statement = node
        for after in _variants(node):
            yield node, after, statement, function
        if isinstance(node, (ast.If, ast.IfExp, ast.While)) and isinstance(node.test, CONDITIONS):
            yield node.test, f"(not {ast.unparse(node.test)})", statement, function
        inner = node if isinstance(node, ast.FunctionDef) else function
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_params"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from walk(child, statement, inner)

    yield from walk(tree, None, None)


def _is_left_alone(node: ast.AST) -> bool:
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return True
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("UserError", "print"):
        return True
    if isinstance(node, ast.keyword) and node.arg == "strict":  # of zip: an assertion
        return True
    return isinstance(node, (ast.Raise, ast.Assert, ast.JoinedStr, ast.Import, ast.ImportFrom))


def _variants(node: ast.AST) -> Iterator[str]:
    """What may stand in a node's place."""
    match node:
        case ast.Constant(value=bool(value)):
            yield str(not value)
        case ast.Constant(value=int(value)):
            yield str(value + 1)
        case ast.Constant(value=float(value)):
            yield repr(1.5 * value or 1.0)
        case ast.BinOp() | ast.BoolOp() if type(node.op) in SWAPPED:
            yield f"({_swapped(node)})"
        case ast.AugAssign() if type(node.op) in SWAPPED:
            yield _swapped(node)
        case ast.Compare() if len(node.ops) == 1:
            changed = deepcopy(node)
            changed.ops[0] = SWAPPED[type(node.ops[0])]()
            yield f"({ast.unparse(changed)})"
        case ast.UnaryOp(op=ast.Not()):
            yield f"({ast.unparse(node.operand)})"
        case ast.UnaryOp(op=ast.USub()) if not isinstance(node.operand, ast.Constant):
            yield f"({ast.unparse(node.operand)})"
        case ast.Return(value=ast.expr()):
            yield "return None"


def _swapped(node: ast.BinOp | ast.BoolOp | ast.AugAssign) -> str:
    changed = deepcopy(node)
    changed.op = SWAPPED[type(node.op)]()
    return ast.unparse(changed)


# Which tests reach a line ------------------------------------------------------------------------------------------


def test_map(
    tree: Path, work: Path, names: list[str] | None
) -> tuple[dict[str, dict[int, set[str]]], dict[str, float]]:
    """For every module and line the tests that run it, and how long each takes. A line that a test's fixtures run
    concerns all tests of its file, given as that."""
    reached: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    durations: dict[str, float] = {}
    sources = b"".join(path.read_bytes() for path in sorted((tree / SOURCE).rglob("*.py")))
    for path in sorted((tree / "tests").glob("test_*.py")):
        name = path.stem.removeprefix("test_")
        if name.startswith(LEFT_OUT) or (names and name not in names):
            continue
        version = hashlib.sha256(sources + path.read_bytes()).hexdigest()[:16]
        found = work / "map" / f"{path.stem}-{version}.json"
        if not found.exists():
            found.parent.mkdir(parents=True, exist_ok=True)
            began = time.monotonic()
            in_child(lambda path=path, found=found: _trace(path, tree, found), work, 1200)
            print(f"{path.name}: traced in {time.monotonic() - began:.0f} s", flush=True)
        if found.exists():
            lines, seconds = json.loads(found.read_text())
            durations |= seconds
            for file, by_line in lines.items():
                for line, tests in by_line.items():
                    reached[file][int(line)] |= set(tests)
    return reached, durations


def _trace(path: Path, tree: Path, found: Path) -> int:
    """Run one file of tests and write which of them ran which lines."""
    import coverage
    import pytest

    tracer = coverage.Coverage(data_file=None, include=[str(tree / SOURCE / pattern) for pattern in MODULES])
    seconds: dict[str, float] = defaultdict(float)

    class Contexts:
        @pytest.hookimpl(tryfirst=True)
        def pytest_runtest_setup(self, item):  # type: ignore[no-untyped-def]
            tracer.switch_context(f"tests/{path.name}")

        @pytest.hookimpl(tryfirst=True)
        def pytest_runtest_call(self, item):  # type: ignore[no-untyped-def]
            tracer.switch_context(item.nodeid)

        def pytest_runtest_logreport(self, report):  # type: ignore[no-untyped-def]
            seconds[report.nodeid] += report.duration
            seconds[f"tests/{path.name}"] += report.duration

    tracer.start()
    code = _pytest([f"tests/{path.name}"], tree, found.parent.parent, [Contexts()])
    tracer.stop()
    data = tracer.get_data()
    lines = {
        str(Path(file).relative_to(tree / SOURCE)): {
            line: [test for test in tests if test] for line, tests in data.contexts_by_lineno(file).items()
        }
        for file in data.measured_files()
    }
    found.write_text(json.dumps([lines, seconds]))
    return code


def concerned(
    mutant: Mutant, reached: dict[str, dict[int, set[str]]], durations: dict[str, float], budget: float, part: bool
) -> list[str]:
    """The tests that run a mutant's lines, quickest first, as many as fit; of what runs at import alone, those of its
    function or, where that is none, of its module. Where a `part` of the tests is known, what its own lines have."""
    of_file = reached.get(mutant.file, {})
    # A line that runs at import is that of whichever test imports the module first.
    at_import = mutant.place.split()[0] == "module"
    for first, last in [(0, 10**9)] if at_import else (mutant.lines, mutant.body, (0, 10**9))[: 1 if part else 3]:
        tests = {test for line, tests in of_file.items() if first <= line <= last for test in tests}
        if tests:
            break
    # What a fixture runs may fail in any test of its file; so may what an import runs.
    files = {test.split("::")[0] for test in tests if at_import or "::" not in test}
    alone = {
        test for test in tests | durations.keys() if "::" in test and (test in tests or test.split("::")[0] in files)
    }
    chosen, total = [], 0.0
    for test in sorted(alone, key=lambda test: durations.get(test, 0.0)):
        total += durations.get(test, 0.0)
        if chosen and total > budget:
            break
        chosen.append(test)
    return chosen


# Running -----------------------------------------------------------------------------------------------------------


def run(mutant: Mutant, tests: list[str], tree: Path, work: Path, number: int, durations: dict[str, float]) -> Result:
    """Change the tree, run the tests, change it back."""
    if not tests:
        return Result("untested", 0.0, 0)
    path = tree / SOURCE / mutant.file
    original = path.read_bytes()
    changed = original[: mutant.span[0]] + mutant.after.encode() + original[mutant.span[1] :]
    began = time.monotonic()
    try:
        path.write_bytes(changed)
        # Python takes compiled code for current that is of the same second and size.
        os.utime(path, (10**9 + number, 10**9 + number))
        limit = 120 + 10 * sum(durations.get(test, 0.0) for test in tests)
        code = in_child(lambda: _pytest(["-x", *tests], tree, work), work, limit)
    finally:
        path.write_bytes(original)
    status = "hung" if code is None else "survived" if code == 0 else "killed"
    return Result(status, round(time.monotonic() - began, 1), len(tests))


def _pytest(tests: list[str], tree: Path, work: Path, plugins: list[object] | None = None) -> int:
    import pytest

    os.chdir(tree)
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--basetemp={work / 'tmp'}", f"--rootdir={tree}"]
    return int(pytest.main([*options, *tests], plugins=plugins or []))


def in_child(work_of: Callable[[], int], work: Path, limit: float) -> int | None:
    """What a forked process returns, or None where it took longer than `limit` seconds and was ended with all it
    started. A fork has the slow imports done."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.setsid()
            log = os.open(work / "last.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for stream in (1, 2):
                os.dup2(log, stream)
            code = work_of()
        except BaseException:  # whatever it is, the child must not run on as its parent
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    began, ended, status = time.monotonic(), 0, 0
    while not ended and time.monotonic() - began < limit:
        ended, status = os.waitpid(child, os.WNOHANG)
        if not ended:
            time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if not ended:
        os.waitpid(child, 0)
        return None
    return os.waitstatus_to_exitcode(status)


# Report ------------------------------------------------------------------------------------------------------------


def report(arguments: argparse.Namespace, drawn: list[Mutant], done: dict[str, Result]) -> None:
    """Write docs/results/mutants.md of what has been run."""
    ran = [mutant for mutant in drawn if mutant.key in done]
    equal = [mutant for mutant in ran if mutant.key in EQUIVALENT and done[mutant.key].status != "killed"]
    counted = [mutant for mutant in ran if mutant not in equal]
    alive = [mutant for mutant in counted if done[mutant.key].status in ("survived", "untested")]
    by_group: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for mutant in counted:
        group = by_group[mutant.file.split("/")[0].removesuffix(".py")]
        group[0] += 1
        group[1] += mutant in alive
    share = len(alive) / max(len(counted), 1)
    text = [
        "# Mutation testing",
        "",
        f"`python bench/mutants.py --count {arguments.count} --seed {arguments.seed}` draws {len(drawn)} changes of "
        f"one place each from {', '.join(f'`{pattern}`' for pattern in MODULES)} (not `data/phantom/`, whose "
        "numbers draw anatomy) and runs against each the tests that reach its line. Tests that take more than ten "
        "times as long as they should have failed. Tests have been written for what survived of this draw: another "
        "seed tells what else there is.",
        "",
        *([f"{len(ran)} of them have been run so far; the same command resumes.", ""] if len(ran) < len(drawn) else []),
        f"{len(counted) - len(alive)} killed, {len(alive)} survived ({share:.1%}), {len(equal)} equivalent.",
        "",
        "| module | mutants | survived |",
        "| --- | ---: | ---: |",
        *(f"| {name} | {total} | {left} |" for name, (total, left) in sorted(by_group.items())),
        "",
        "## Survived",
        "",
        *(f"- `{_plain(mutant)}`" for mutant in sorted(alive, key=lambda m: m.key)),
        "",
        "## Equivalent",
        "",
        *(f"- `{_plain(mutant)}`: {EQUIVALENT[mutant.key]}" for mutant in sorted(equal, key=lambda m: m.key)),
    ]
    (ROOT / "docs" / "results" / "mutants.md").write_text("\n".join(text).rstrip() + "\n")
    print(text[4])


def _plain(mutant: Mutant) -> str:
    return mutant.key.replace("`", "'")


def _short(text: str, most: int = 110) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most // 2]} … {line[-most // 2 :]}"


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    main()
