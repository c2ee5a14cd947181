"""What is handed out: source archive and wheel, built and installed; citation, licences, version, changelog."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

import slicewise

ROOT = Path(__file__).parents[1]
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "runs", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis"
)


def build(kind: str, source: Path, out: Path) -> Path:
    """The sdist or wheel of `source`, by the build backend that pyproject.toml names, without the network."""
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})"
    made = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-2000:]
    return next(out.iterdir())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source archive, so that this is whole, too."""
    path = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT, path / "source", ignore=LEFT_OUT)
    archive = build("sdist", path / "source", path / "sdist")
    shutil.unpack_archive(archive, path / "unpacked", filter="data")
    return build("wheel", next((path / "unpacked").iterdir()), path / "wheel")


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with the wheel in it; what it depends on comes from this one."""
    path = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(path)
    python = path / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    # A line of a .pth file in a folder that is itself named by one is not read: no editable install comes along.
    packages = next((path / "lib").glob("python*/site-packages"))
    (packages / "dependencies.pth").write_text(f"{Path(pytest.__file__).parents[1]}\n")
    return python


def run(*command: str | Path, cwd: Path) -> str:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wheel_holds_every_file_of_the_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    source = ROOT / "src" / "slicewise"
    files = {f.relative_to(source.parent).as_posix() for f in source.rglob("*") if f.is_file()}
    assert not {f for f in files if "__pycache__" not in f} - names
    assert {"slicewise/py.typed", "slicewise/release/pyramid.safetensors", "slicewise/presets/head-128.toml"} <= names


def test_wheel_carries_the_licences(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    held = {n.split("/licenses/")[1] for n in names if "/licenses/" in n}
    assert {"LICENSE", "NOTICE", "src/slicewise/viewer/assets/niivue.LICENSE"} <= held


def test_installed_package_is_imported(python, tmp_path):
    code = "import slicewise; from pathlib import Path; print(slicewise.__file__, slicewise.__version__)"
    file, version = run(python, "-c", code, cwd=tmp_path).split()
    assert Path(file).is_relative_to(python.parents[1])
    assert version == slicewise.__version__


def test_installed_command_finds_its_release_and_presets(python, tmp_path):
    command = python.with_name("slicewise")
    assert "generate" in run(command, "--help", cwd=tmp_path)
    code = """
import slicewise
from slicewise.settings import presets
print(slicewise.release.CHECKPOINT.is_file() and slicewise.release.ICNET.is_file(), *presets("train"))
"""
    found, *names = run(python, "-c", code, cwd=tmp_path).split()
    assert found == "True"
    assert {"head-128", "paper-512", "plan-32"} <= set(names)


def test_page_for_the_package_index_needs_nothing_beside_it():
    """There, relative links and pictures lead nowhere."""
    page = (ROOT / "docs" / "pypi.md").read_text()
    assert not re.findall(r"\]\((?!https://)[^)]*\)", page)


def test_page_for_the_package_index_shows_what_the_readme_shows():
    """Its commands and code are those that the tests of the README run."""
    readme = (ROOT / "README.md").read_text()
    code = re.findall(r"```(?:sh|python)\n(.*?)```", (ROOT / "docs" / "pypi.md").read_text(), re.S)
    lines = [line for block in code for line in block.splitlines() if line.strip()]
    assert [line for line in lines if line not in readme] == ["pip install slicewise", "slicewise demo --out runs/demo"]


def _bibtex() -> dict[str, dict[str, str]]:
    """Entry type -> field -> value of `slicewise.citation()`."""
    entries = re.findall(r"@(\w+)\{\w+,\n(.*?)\n\}", slicewise.citation(), re.S)
    fields = {kind: re.findall(r"(\w+)\s*=\s*\{(.*?)\},?\n", body + "\n", re.S) for kind, body in entries}
    return {
        kind: {name: " ".join(value.strip("{}").split()) for name, value in pairs} for kind, pairs in fields.items()
    }


def test_citation_file_and_function_name_the_same_paper():
    paper = yaml.safe_load((ROOT / "CITATION.cff").read_text())["preferred-citation"]
    bibtex = _bibtex()["inproceedings"]
    authors = " and ".join(f"{a['family-names']}, {a['given-names']}" for a in paper["authors"])
    pages, series = f"{paper['start']}--{paper['end']}", f"LNCS {paper['volume']}"
    assert (bibtex["author"], bibtex["title"]) == (authors, paper["title"])
    assert (bibtex["doi"], bibtex["year"]) == (paper["doi"], str(paper["year"]))
    assert (bibtex["booktitle"], bibtex["series"], bibtex["pages"]) == (paper["collection-title"], series, pages)


def test_citation_file_and_function_name_the_same_software():
    software = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    bibtex = _bibtex()["software"]
    assert [bibtex["author"]] == [a["name"] for a in software["authors"]]
    assert (bibtex["title"], bibtex["version"]) == (software["title"], software["version"])
    assert (bibtex["license"], bibtex["year"]) == (software["license"], str(software["date-released"].year))


def test_newest_entry_of_the_changelog_is_this_version():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    released = str(yaml.safe_load((ROOT / "CITATION.cff").read_text())["date-released"])
    newest = re.search(r"^## (\d\S*) - (\S+)$", changelog, re.M)
    assert newest
    assert newest.groups() == (slicewise.__version__, released)


def test_hooks_are_local_and_run_the_projects_own_tools():
    (source,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert source["repo"] == "local"
    assert {h["entry"].split()[0] for h in source["hooks"]} == {".venv/bin/ruff", ".venv/bin/mypy"}


def test_workflow_runs_the_script_of_this_repository_on_the_projects_python():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = workflow["jobs"]["run"]["steps"]
    assert steps[-1]["run"] == ".ci/run"
    used = [s["uses"] for s in steps if "uses" in s]
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@v\d+\.\d+\.\d+", name) for name in used)
    python = next(s["with"]["python-version"] for s in steps if "python-version" in s.get("with", {}))
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"] == f">={python}"
