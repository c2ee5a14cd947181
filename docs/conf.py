"""Sphinx: the pages of this folder and, from the docstrings, the API. `make docs` builds them, without the network."""

import re

import slicewise

project = "slicewise"
author = "The slicewise authors"
project_copyright = "2026, The slicewise authors"
version = release = slicewise.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
# What the studies write, captions and tables, stands in results/paper.md.
written = ["clean_mean", "drift", "fig*", "table*"]
exclude_patterns = ["pypi.md", "_build", *(f"results/{name}.md" for name in written)]
# Links out of this folder (model card, attribution, licence) hold in the repository; tests/test_docs.py checks them.
suppress_warnings = ["myst.xref_missing"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_ivar = True

smartquotes = False
default_role = "code"  # docstrings mark code by single backticks

html_theme = "alabaster"
html_theme_options = {
    "description": "Whole head CT volumes, slice by slice, in the full 12-bit range",
    "page_width": "1100px",
}
html_show_sourcelink = False


def as_restructured_text(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings are plain text with code in backticks: what else reStructuredText would take for markup is escaped.
    After "name :" comes what it is, in words and not as a type; nor is what a property says before a colon a type."""
    plain, section = [], ""
    for number, line in enumerate(lines):
        parts = re.split(r"(`[^`]*`)", line)
        parts[::2] = [re.sub(r"([|*])", r"\\\1", text) for text in parts[::2]]
        line = re.sub(r"(`[^`]+`)(?=\w)", r"\1\\ ", "".join(parts))
        if line and number + 1 < len(lines) and re.fullmatch("-{3,}", lines[number + 1]):
            section = line
        entry = re.fullmatch(r"(\w[\w, ]*) : (.*)", line) if section in ("Attributes", "Parameters") else None
        if entry:
            line = "\n".join(f"{one}\n    {entry[2]}" for one in entry[1].split(", "))
        plain += (line.replace(": ", " – ") if what == "property" else line).split("\n")
    lines[:] = plain


def setup(app) -> None:
    app.connect("autodoc-process-docstring", as_restructured_text, priority=400)  # before napoleon, at 500
