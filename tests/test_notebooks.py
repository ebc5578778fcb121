"""Every notebook asks one question, is stored executed, ends with a check, and runs small."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


def test_form(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    first, *_ = notebook.cells
    assert first.cell_type == "markdown" and "?" in first.source, "cell 1 states the question"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert any('"CI" in os.environ' in cell.source for cell in code)
    assert "assert" in code[-1].source, "a notebook ends with a check"
    assert all(cell.execution_count for cell in code), "run `make notebooks`"
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs and not any(output.output_type == "error" for output in outputs)
    noise = [output.text for output in outputs if output.get("name") == "stderr"]
    assert not noise, "no warnings or progress bars in stored outputs"


def test_runs_in_the_small_setting(path):
    """Executed as CI does it; the stored notebook stays as it is."""
    before = path.read_bytes()
    done = subprocess.run(
        [sys.executable, str(FOLDER / "execute.py"), "--small", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert path.read_bytes() == before
