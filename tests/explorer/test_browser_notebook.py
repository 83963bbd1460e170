"""The widget in a real notebook page (marimo): what is chosen goes to Python, and comes from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from browser import Watch, lacking
from notebooks import PATIENCE, ask, becomes, said, served

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import BrowserContext, Page

NOTEBOOK = """
import marimo

app = marimo.App()


@app.cell
def _():
    import marimo as mo
    import numpy as np

    import convfc
    from convfc.layer import ConvLayer

    geometry = convfc.ConvGeometry(1, 2, (3, 3), padding=1)
    filters = np.arange(18.0).reshape(geometry.filters_shape)
    x = np.arange(36.0).reshape(6, 6, 1)
    widget = convfc.explore(ConvLayer(geometry, filters), x)
    widget.selection = {"p": 8, "f": 1, "q": None, "element": None}
    shown = mo.ui.anywidget(widget)
    return mo, shown, widget


@app.cell
def _(shown):
    shown
    return


@app.cell
def _(mo, shown):
    chosen = shown.value["selection"]
    stride = shown.value["state"]["settings"]["stride"]
    mo.md(f"Python has p={chosen['p']}, f={chosen['f']}, stride={stride}.")
    return


@app.cell
def _(mo, widget):
    def choose(_):
        widget.selection = {"p": 20, "f": 0, "q": None, "element": None}

    def widen(_):
        settings = {**widget.state["settings"], "stride": [1, 2]}
        widget.state = {**widget.state, "settings": settings}

    choosing = mo.ui.button(label="choose in Python", on_click=choose)
    widening = mo.ui.button(label="stride in Python", on_click=widen)
    mo.hstack([choosing, widening])
    return choosing, widening
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a notebook that runs."""
    try:
        import marimo  # noqa: F401
    except ImportError:
        lacking("the package marimo is not installed; remedy: pip install marimo")
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "notebook.py").write_text(NOTEBOOK, encoding="utf-8")
    command = ["marimo", "run", "notebook.py", "--headless", "--no-token", "--host", "127.0.0.1"]
    with served(*command, folder=folder, health="/health", MARIMO_SKIP_UPDATE_CHECK="1") as running:
        yield running


@pytest.fixture
def notebook(open_context: Callable[..., BrowserContext], address: str) -> Iterator[Page]:
    """The notebook's page, with the widget on it."""
    context = open_context(viewport={"width": 1280, "height": 1200})
    context.set_default_timeout(PATIENCE * 1000)
    page = context.new_page()
    watch = Watch(page, own=[address, address.replace("http", "ws")], levels=("error",))
    page.goto(address)
    page.locator(".convfc-explorer").wait_for()
    yield page
    watch.check()


def test_the_widget_and_python_have_one_selection_and_one_state(notebook: Page) -> None:
    # What Python has chosen before the widget was shown.
    assert ask(notebook, "[store.selection.p, store.selection.f]") == [8, 1]
    assert ask(notebook, "[...store.filters]") == list(range(18))
    said(notebook, "Python has p=8, f=1, stride=[1, 1].")
    # From the page to Python: a click, then a key.
    grid = notebook.locator('[data-view="output"]').get_by_role("grid")
    width, height = grid.evaluate("grid => [grid.clientWidth, grid.clientHeight]")
    grid.click(position={"x": 5 + 3.5 * (width - 10) / 6, "y": 5 + 2.5 * (height - 10) / 6})
    assert ask(notebook, "store.selection.p") == 15
    said(notebook, "Python has p=15, f=1, stride=[1, 1].")
    grid.press("ArrowRight")
    said(notebook, "Python has p=16, f=1, stride=[1, 1].")
    # From Python to the page. (That runs no cell again; marimo does so for changes on the page.)
    notebook.get_by_role("button", name="choose in Python").click()
    becomes(notebook, "[store.selection.p, store.selection.f]", [20, 0])
    # Settings, both ways; the output is 3 x 6 then, and p is in its last row.
    stride = notebook.locator('[name="stride-0"]')
    stride.fill("2")
    said(notebook, "Python has p=17, f=0, stride=[2, 1].")
    notebook.get_by_role("button", name="stride in Python").click()
    becomes(notebook, "store.settings.stride", [1, 2])
    assert stride.input_value() == "1"
    grid.press("Control+Home")
    said(notebook, "Python has p=0, f=0, stride=[1, 2].")


def test_the_widget_leaves_the_notebook_as_it_is(notebook: Page) -> None:
    outside = notebook.evaluate(
        "() => [...document.styleSheets, ...document.adoptedStyleSheets].flatMap((sheet) =>"
        " { try { return [...sheet.cssRules]; } catch { return []; } })"
        ".filter((rule) => rule.selectorText && /convfc/.test(rule.cssText)"
        " && !rule.selectorText.split(',').every((one) => one.includes('.convfc-explorer')))"
        ".map((rule) => rule.selectorText)"
    )
    assert outside == []
    assert notebook.locator(".convfc-explorer h1").count() == 0  # the notebook has its own
    assert notebook.evaluate("() => location.hash") == ""
    assert notebook.locator("[data-view=guide]").is_hidden()
