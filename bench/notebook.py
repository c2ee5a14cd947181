"""Run the example notebook with plain Python and store what it prints and draws in it:

python bench/notebook.py [examples/heads.ipynb]
"""

import base64
import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parents[1] / "examples" / "heads.ipynb"
# Dots an inch of the pictures that are stored.
DPI = 70


def run(notebook: dict[str, Any], edit: Callable[[str], str] = lambda code: code) -> dict[str, Any]:
    """The notebook with the outputs of its code cells, which run in one namespace after `edit` of their code."""
    names: dict[str, Any] = {"__name__": "notebook"}
    cells, number = [], 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            number += 1
            outputs: list[dict[str, Any]] = []
            text = io.StringIO()
            with _figures_into(outputs), redirect_stdout(text):
                exec(compile(edit("".join(cell["source"])), f"cell {number}", "exec"), names)
            if text.getvalue():
                lines = text.getvalue().splitlines(keepends=True)
                outputs.append({"output_type": "stream", "name": "stdout", "text": lines})
            cell = {**cell, "execution_count": number, "outputs": outputs}
        cells.append(cell)
    return {**notebook, "cells": cells}


@contextmanager
def _figures_into(outputs: list[dict[str, Any]]) -> Iterator[None]:
    """`plt.show` appends the open figures to `outputs`, as Jupyter does."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    def show() -> None:
        for number in plt.get_fignums():
            png = io.BytesIO()
            figure = plt.figure(number)
            figure.savefig(png, dpi=DPI, facecolor=figure.get_facecolor(), metadata={"Software": None})
            data = {"image/png": base64.b64encode(png.getvalue()).decode(), "text/plain": ["<Figure>"]}
            outputs.append({"output_type": "display_data", "metadata": {}, "data": data})
        plt.close("all")

    shown, plt.show = plt.show, show
    try:
        yield
    finally:
        plt.show = shown
        plt.close("all")


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else NOTEBOOK
    made = run(json.loads(path.read_text()))
    path.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
