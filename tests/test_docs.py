"""The documentation: it builds, its links lead somewhere, the names that it gives are there."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import slicewise

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "src").rglob("*.md"), *(ROOT / "bench").rglob("*.md")]
)
METHOD = DOCS / "concepts" / "method.md"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as its readers make them."""
    headings = re.findall(r"^#+ +(.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken(page: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = (page.parent / name).resolve() if name else page
    return not target.exists() or (anchor != "" and anchor not in anchors(target))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_within_the_project_lead_somewhere(page):
    links = re.findall(r"\]\(([^()\s]+)\)", page.read_text())
    assert not [link for link in links if not re.match(r"[a-z]+:", link) and broken(page, link)]


@pytest.mark.parametrize("link", ["gone.md", "method.md#gone", "#gone"])
def test_a_broken_link_is_found(link):
    assert broken(METHOD, link)


def test_every_function_that_the_method_names_is_there():
    named = set(re.findall(r"`([a-z]\w*(?:\.\w+)+)`", METHOD.read_text())) - {"slicewise.hu.round_hu"}
    assert len(named) > 40
    assert not {name for name in named if not _found(name)}


def _found(name: str) -> bool:
    """Whether `name`, relative to the package, is an attribute of the longest part of it that is a module."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module("slicewise." + ".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part, None)
        return found is not None
    return False


def test_documentation_builds_without_a_warning_and_has_every_public_name(tmp_path):
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", "-d", tmp_path / "cache"]
    built = subprocess.run([*command, DOCS, tmp_path / "html"], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    page = (tmp_path / "html" / "reference" / "api.html").read_text()
    documented = re.findall(r'id="(?:module-)?slicewise\.(\w+)"', page)
    assert set(slicewise.__all__) - {"__version__"} == set(documented)
