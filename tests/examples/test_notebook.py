"""The notebook: valid, without stored outputs, and its cells run in order."""

import ast
import os
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "notebook.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_valid_and_holds_no_outputs(notebook):
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) >= 5
    for cell in cells:
        ast.parse(cell.source)
        assert (cell.outputs, cell.execution_count) == ([], None)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_runs_in_a_kernel_and_the_model_learns(notebook, tmp_path):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    root = str(NOTEBOOK.parents[1])
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=environment)
    said = [
        "".join(out.get("text", "") + out.get("data", {}).get("text/plain", "") for out in cell.get("outputs", ()))
        for cell in notebook.cells
    ]
    assert "Step 15" in said[3]
    assert "'steps': 15" in said[6]
    before, after = map(float, re.findall(r"^(?:before|after): ([\d.]+) %", said[-1], re.MULTILINE))
    assert after > before + 20
