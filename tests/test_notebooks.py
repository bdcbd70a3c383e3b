"""Notebooks: each has its pair in step with it, holds no outputs, and runs."""

import jupytext
import nbformat
import pytest
from support.recipes import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = ["free_video_llm"]


def cells(notebook) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_there_are_notebooks_and_each_can_be_run():
    assert [path.stem for path in NOTEBOOKS] == NAMES
    assert sorted(path.stem for path in (ROOT / "notebooks").glob("*.py")) == NAMES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_pair_is_in_step(path):
    notebook, text = nbformat.read(path, as_version=4), jupytext.read(path.with_suffix(".py"))
    assert cells(notebook) == cells(text), f"jupytext --sync {path.relative_to(ROOT)}"
    assert notebook.metadata.jupytext.formats == text.metadata.jupytext.formats == "ipynb,py:percent"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_outputs_are_kept(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and not any(cell.outputs or cell.execution_count for cell in code)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("WORK", str(tmp_path / "work"))
    monkeypatch.setenv("XLA_FLAGS", "")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    ).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", []) if output.output_type != "stream"]
    assert sum("image/png" in output.data for output in shown) == 5  # three questions, then each kind of three frames
    tables = [
        output.data["text/markdown"] for output in shown if "visual tokens" in output.data.get("text/markdown", "")
    ]
    assert [table.splitlines()[2].split("|")[4].strip() for table in tables] == ["256", "54", "54"]
    assert any("video/mp4" in output.data.get("text/html", "") for output in shown)
