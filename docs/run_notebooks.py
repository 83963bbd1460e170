"""Run the notebooks of `docs/notebooks/`: ``python docs/run_notebooks.py`` writes them anew.

A notebook is its own source: change it in JupyterLab or an editor, run this program, commit. What
is kept of a run is what a reader of the page sees: texts, pictures, and a still in the place of the
widget, which only a running notebook can show. Names of notebooks run those alone. The stills need
``pip install playwright pillow`` and Chromium.
"""

from __future__ import annotations

import base64
import io
import os
import pathlib
import re
import sys
import tempfile
import time
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

from convfc.files import replacing

NOTEBOOKS = pathlib.Path(__file__).with_name("notebooks")
WIDGET = "application/vnd.jupyter.widget-view+json"
STATES = "application/vnd.jupyter.widget-state+json"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# What must not be kept: places on this machine, and addresses in its memory.
PLACES = re.compile(r"(?<![\w/:.])/(?:home|root|tmp|Users|usr|var|work)/| at 0x[0-9a-f]{6,}")


def executed(notebook: NotebookNode, seconds: float = 240) -> NotebookNode:
    """Run a copy of a notebook with this Python, in an empty folder, for so many seconds at most.

    Raises what nbclient does: `CellExecutionError` for an error in a cell, `CellTimeoutError`.
    """
    until = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        manager = AsyncKernelManager(
            kernel_name="python3",
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),  # not another one of the user's
            transport="ipc",
            connection_file=f"{folder}/kernel.json",
        )
        client = NotebookClient(
            nbformat.from_dict(notebook),
            km=manager,
            timeout_func=lambda _: max(1, until - time.monotonic()),
            coalesce_streams=True,
            record_timing=False,
            resources={"metadata": {"path": folder}},
        )
        # Nor are the user's settings.
        places = {"IPYTHONDIR": f"{folder}/.ipython", "MPLCONFIGDIR": f"{folder}/.matplotlib"}
        places["TMPDIR"] = folder
        backend = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
        result: NotebookNode = client.execute(
            cleanup_kc=True, env={**os.environ, **places, **backend}
        )
    return result


def scrubbed(notebook: NotebookNode) -> NotebookNode:
    """Return a notebook that was run, without what belongs to that run only.

    Raises `ValueError` for a warning, and for a text that names a place on this machine.
    """
    kept = nbformat.from_dict(notebook)
    kept.metadata = nbformat.from_dict(METADATA)
    for cell in kept.cells:
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k == "alt"})
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                raise ValueError(f"cell {cell.id} warns: {output.text}")
            data = output.get("data", {})
            data.pop(WIDGET, None)
            texts = [output.get("text", ""), *(v for k, v in data.items() if k.startswith("text/"))]
            if found := PLACES.search("\n".join(texts)):
                raise ValueError(f"cell {cell.id} shows a place on this machine: {found[0]}...")
    return kept


def shown(notebook: NotebookNode) -> list[tuple[NotebookNode, dict[str, Any]]]:
    """Return the outputs that are widgets, each with the state that the explorer has."""
    states = notebook.metadata.get("widgets", {}).get(STATES, {}).get("state", {})
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    widgets = [output for output in outputs if WIDGET in output.get("data", {})]
    return [(w, states[w.data[WIDGET]["model_id"]]["state"]["state"]) for w in widgets]


def with_pictures(notebook: NotebookNode) -> NotebookNode:
    """Give every widget its still, and every picture a palette of its own: half the size."""
    from draw_explorer import START, WIDE, small, taken

    found = shown(notebook)
    wanted = {str(at): (state, "" if state else START, WIDE) for at, (_, state) in enumerate(found)}
    for (output, _), (_, still) in zip(found, taken(wanted), strict=True):
        output.data["image/png"] = _encoded(still)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if given := output.get("data", {}).get("image/png"):
                picture = Image.open(io.BytesIO(base64.b64decode(given))).convert("RGB")
                output.data["image/png"] = _encoded(small(picture))
    return notebook


def _encoded(picture: Image.Image) -> str:
    data = io.BytesIO()
    picture.save(data, format="PNG", optimize=True)
    return base64.b64encode(data.getvalue()).decode("ascii") + "\n"


def written(notebook: NotebookNode) -> str:
    """Return a notebook as its file."""
    return str(nbformat.writes(notebook, version=nbformat.NO_CONVERT)).rstrip("\n") + "\n"


def main(names: list[str]) -> None:
    """Run these notebooks, or all, and write each with its outputs."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        if not names or path.stem in names:
            run = executed(nbformat.read(path, as_version=nbformat.NO_CONVERT))
            with replacing(path) as handle:
                handle.write(written(scrubbed(with_pictures(run))).encode("utf-8"))


if __name__ == "__main__":
    main(sys.argv[1:])
