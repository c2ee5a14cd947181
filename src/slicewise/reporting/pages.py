"""What HTML pages are made of: templates, and plots as inline SVG in the page's colours, so that one drawing serves
light and dark."""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Stand-ins that the page turns into CSS variables.
_CSS = {"#010203": "var(--ink)", "#040506": "var(--faint)", "#070809": "var(--run)", "#0a0b0c": "var(--raw)"}
_CSS |= {"#0d0e0f": "var(--ref)", "#101112": "var(--csf)", "#131415": "var(--grey)", "#161718": "var(--white)"}
INK, FAINT, RUN, RAW, REF, CSF, GREY, WHITE = _CSS


def template(file: Path) -> Any:
    """A template, which may include `style.html`; a name that the page is not given is an error, and text is
    escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader([file.parent, Path(__file__).parent])
    return Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template(file.name)


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Rows of (name, text) of settings or facts: nested names joined by points, numbers with six digits."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += flat(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", f"{value:.6g}" if isinstance(value, float) else str(value)))
    return rows


def figure_axes(width: float, height: float, x_label: str, y_label: str) -> tuple["Figure", Any]:
    """An empty figure, width and height in inches, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=FAINT, labelsize=8, length=3)
    axes.set_xlabel(x_label, color=INK, fontsize=9)
    axes.set_ylabel(y_label, color=INK, fontsize=9)
    return figure, axes


def svg(figure: "Figure", name: str) -> str:
    """A figure as inline SVG whose colours are the page's; `name` keeps the ids of several drawings apart."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    prefix = re.sub(r"[^a-z0-9]+", "-", name.lower())
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    for colour, variable in _CSS.items():
        text = text.replace(colour, variable)
    return text


def legend(axes: Any, **options: Any) -> None:
    """A legend in the page's ink, where there is anything to name."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles, labels, frameon=False, fontsize=8, labelcolor=INK, **options)
