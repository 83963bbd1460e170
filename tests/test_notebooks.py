"""The notebooks of docs/: each is run as a reader runs it, and is kept as such a run leaves it."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import commands
import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def program() -> ModuleType:
    return commands.program("docs/run_notebooks.py")


def kept(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell: NotebookNode) -> list[tuple[str, ...]]:
    """What sort of outputs a cell has; pictures and texts may differ from machine to machine."""
    return [
        (output.output_type, *sorted(output.get("data", {}))) for output in cell.get("outputs", [])
    ]


def made(*sources: str) -> NotebookNode:
    cells = [nbformat.v4.new_code_cell(source, id=f"cell-{n}") for n, source in enumerate(sources)]
    return nbformat.v4.new_notebook(cells=cells)


def test_there_is_one_for_each_reader() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["engineer", "researcher", "student"]


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_opens_with_the_widget(program: ModuleType, path: Path) -> None:
    notebook = kept(path)
    run = program.executed(notebook, seconds=240)
    assert program.WIDGET in code(run)[0].outputs[-1].data
    ((_, state),) = program.shown(run)
    assert bool(state) == (path.stem != "student")  # a layer of that reader, or the page's start
    scrubbed = program.scrubbed(run)  # refuses a warning
    code(scrubbed)[0].outputs[-1].data["image/png"] = "a still"
    for cell, before in zip(code(scrubbed), code(notebook), strict=True):
        assert cell.source == before.source
        assert kinds(cell) == kinds(before), f"{cell.id}: run python docs/run_notebooks.py"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_kept_as_a_run_leaves_it(program: ModuleType, path: Path) -> None:
    notebook = kept(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert program.scrubbed(notebook) == notebook
    assert [cell.execution_count for cell in code(notebook)] == [*range(1, len(code(notebook)) + 1)]
    assert path.read_text("utf-8") == program.written(notebook)
    assert path.stat().st_size < 300_000
    ids = [cell.id for cell in notebook.cells]
    assert [name for name in ids if not re.fullmatch(r"[a-z][a-z0-9-]+", name)] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_is_told_and_every_picture_described(path: Path) -> None:
    cells = kept(path).cells
    assert cells[0].source.startswith("# ")
    assert "minute" in cells[0].source
    untold = [
        cell.id
        for before, cell in itertools.pairwise(cells)
        if cell.cell_type == before.cell_type == "code"
    ]
    assert untold == []
    drawing = {cell.id for cell in cells if any("image/png" in kind for kind in kinds(cell))}
    assert drawing == {cell.id for cell in cells if cell.metadata.get("alt")}


# The program.


def test_an_error_in_a_cell_is_raised(program: ModuleType) -> None:
    with pytest.raises(CellExecutionError, match="assert 1 == 2"):
        program.executed(made("x = 1", "assert 1 == 2"))


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ({"output_type": "stream", "name": "stderr", "text": "Warning: old"}, "warns: Warning"),
        ({"output_type": "stream", "name": "stdout", "text": "in /tmp/a/b"}, "shows a place"),
        (
            {
                "output_type": "display_data",
                "metadata": {},
                "data": {"text/plain": "<f at 0x7f12ab34cd>"},
            },
            "shows a place",
        ),
    ],
    ids=["warning", "path", "address"],
)
def test_what_must_not_be_kept_is_refused(
    program: ModuleType, output: dict[str, Any], told: str
) -> None:
    notebook = made("1")
    notebook.cells[0].outputs = [nbformat.from_dict(output)]
    with pytest.raises(ValueError, match=f"cell cell-0 {told}"):
        program.scrubbed(notebook)


def test_only_what_a_reader_sees_is_kept(program: ModuleType) -> None:
    notebook = made("1")
    notebook.metadata["widgets"] = {program.STATES: {"state": {}}}
    notebook.metadata["language_info"] = {"name": "python", "version": "3.11.7"}
    cell = notebook.cells[0]
    cell.metadata.update(alt="a picture", execution={"iopub.execute_input": "2026-01-01"})
    cell.outputs = [
        nbformat.v4.new_output(
            "execute_result", {"text/plain": "<w>", program.WIDGET: {"model_id": "1"}}
        )
    ]
    kept = program.scrubbed(notebook)
    assert kept.metadata == program.METADATA
    assert kept.cells[0].metadata == {"alt": "a picture"}
    assert kept.cells[0].outputs[0].data == {"text/plain": "<w>"}
    assert program.WIDGET in cell.outputs[0].data, "the notebook that was given has changed"
