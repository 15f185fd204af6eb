"""Every notebook runs from a clean kernel, and is short enough to be read."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def code_lines(notebook) -> int:
    """Lines of Python; a model file that a cell writes is data."""
    cells = [c.source for c in notebook.cells if c.cell_type == "code" and not c.source.startswith("%%writefile")]
    return sum(bool(line.strip()) and not line.strip().startswith("#") for c in cells for line in c.splitlines())


@pytest.mark.thorough
@pytest.mark.parametrize("path", NOTEBOOKS, ids=[p.stem for p in NOTEBOOKS])
def test_notebook_runs(path, tmp_path):
    """A notebook that does not run teaches the wrong thing."""
    notebook = nbformat.read(path, as_version=4)
    assert code_lines(notebook) <= 30
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 1
    assert not [o for o in outputs if o.output_type == "error"]
    said = "".join(o.get("text", "") for o in outputs)
    assert "ok: R-hat" in said


def test_there_are_notebooks():
    """An empty folder would make the test above vacuous."""
    assert NOTEBOOKS
