"""The example notebook runs from top to bottom, with few steps, and holds the pictures of a run with all of them."""

import base64
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "heads.ipynb"
FEW = "slicewise.ChainSettings(plan_steps=2, draw_steps=2, slices=3)"


def outputs(notebook: dict) -> list[list[dict]]:
    return [cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.fixture(scope="module")
def stored() -> dict:
    return json.loads(NOTEBOOK.read_text())


@pytest.fixture(scope="module")
def executed(stored) -> dict:
    sys.path.insert(0, str(ROOT / "bench"))
    try:
        from notebook import run
    finally:
        sys.path.remove(str(ROOT / "bench"))
    return run(stored, lambda code: code.replace("slicewise.ChainSettings()", FEW).replace("count=2", "count=1"))


def test_cells_run_and_give_the_kinds_of_output_that_are_stored(stored, executed):
    kinds = [[[o["output_type"] for o in cell] for cell in outputs(notebook)] for notebook in (stored, executed)]
    one_head_less = [cell[1:] if len(cell) == 2 and cell == ["display_data"] * 2 else cell for cell in kinds[0]]
    assert kinds[1] == one_head_less


@pytest.mark.parametrize("claim", ["the same voxels: True", "the same HU: True", "synthetic: True"])
def test_what_the_notebook_claims_holds(stored, executed, claim):
    for notebook in (stored, executed):
        printed = "".join(line for cell in outputs(notebook) for o in cell for line in o.get("text", ()))
        assert claim in printed


def test_stored_pictures_are_there_and_small(stored):
    pictures = [o["data"]["image/png"] for cell in outputs(stored) for o in cell if "data" in o]
    assert len(pictures) == 4
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    assert NOTEBOOK.stat().st_size < 1_000_000
