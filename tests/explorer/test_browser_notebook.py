"""The widget in real notebooks, JupyterLab and marimo: Python and the page share what is chosen."""

from __future__ import annotations

import importlib.util
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from browser import PATIENCE, Explorer, Watch, lacking, profile
from notebooks import ask, becomes, said, served

if TYPE_CHECKING:
    from collections.abc import Iterator

    from browser import OpensContext
    from playwright.sync_api import Browser, Page

# --- JupyterLab: two widgets in one notebook ---


CELLS = (
    """\
import numpy as np

import convfc
from convfc.layer import ConvLayer

geometry = convfc.ConvGeometry(1, 2, (3, 3), padding=1)
layer = ConvLayer(geometry, np.arange(18.0).reshape(geometry.filters_shape))
x = np.arange(36.0).reshape(6, 6, 1)
w = convfc.explore(layer, x)
w""",
    "second = convfc.explore(layer, x)\nsecond",
)

SERVER = (
    "--no-browser",
    "--allow-root",
    "--ip=127.0.0.1",
    "--IdentityProvider.token=",
    "--LabApp.expose_app_in_browser=True",  # as `jupyterapp`, which has the menus' commands
    "--LabApp.extension_manager=readonly",  # the other one asks for what could be installed
)

QUIET = '{"fetchNews": "false", "checkForUpdates": false}'  # neither asked for nor asked about

IDLE = "() => globalThis.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status"

# What a cell with this code does, and what an expression is afterwards.
PYTHON = """async ([code, value]) => {
  const { kernel } = jupyterapp.shell.currentWidget.sessionContext.session;
  const request = { code, user_expressions: { value } };
  const { content } = await kernel.requestExecute(request).done;
  if (content.status !== "ok") throw new Error(content.evalue);
  return content.user_expressions.value.data["text/plain"];
}"""

# The mean grey of M, 0 to 255, in each widget; what lies behind its canvas is not in it.
GREYS = """() => [...document.querySelectorAll(".convfc-explorer [data-view=M] canvas.base")].map(
  (canvas) => {
    const { width, height } = canvas;
    const copy = document.createElement("canvas");
    [copy.width, copy.height] = [width, height];
    const context = copy.getContext("2d", { willReadFrequently: true });
    context.drawImage(canvas, 0, 0);
    const { data } = context.getImageData(10, 10, width - 20, height - 20);
    const sum = data.reduce((so, value, at) => so + (at % 4 < 3 ? value : 0), 0);
    return sum / (0.75 * data.length);
  })"""


@pytest.fixture(scope="module")
def jupyter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of JupyterLab with a notebook, all its settings in a folder of its own."""
    if importlib.util.find_spec("jupyterlab") is None:
        lacking("the package jupyterlab is not installed; remedy: pip install jupyterlab")
    folder = tmp_path_factory.mktemp("jupyter")
    written: list[dict[str, Any]] = [
        {
            "cell_type": "code",
            "id": f"cell-{number}",
            "metadata": {},
            "execution_count": None,
            "outputs": [],
            "source": source,
        }
        for number, source in enumerate(CELLS)
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}}
    (folder / "notebook.ipynb").write_text(json.dumps({**notebook, "cells": written}), "utf-8")
    places = {name: folder / ".jupyter" / name for name in ("config", "data", "runtime")}
    quiet = places["config"] / "lab/user-settings/@jupyterlab/apputils-extension"
    quiet.mkdir(parents=True)
    (quiet / "notification.jupyterlab-settings").write_text(QUIET, "utf-8")
    with served(
        "jupyterlab",
        *SERVER,
        folder=folder,
        health="/api",
        IPYTHONDIR=str(folder / ".ipython"),
        **{f"JUPYTER_{name.upper()}_DIR": str(place) for name, place in places.items()},
    ) as running:
        yield running


@pytest.fixture(scope="module")
def loaded(browser: Browser, jupyter: str) -> Iterator[tuple[Page, Watch]]:
    """The notebook in JupyterLab, opened once: that takes longer than all of its tests."""
    context = profile(browser, viewport={"width": 1280, "height": 720}, reduced_motion="reduce")
    page = context.new_page()
    watch = Watch(
        page,
        own=[jupyter, jupyter.replace("http", "ws")],
        levels=("error",),
        script="blob:",  # where a notebook runs a widget's module
    )
    spoken: list[str] = []
    page.on("console", lambda message: spoken.append(message.text))
    page.goto(f"{jupyter}/lab/tree/notebook.ipynb?reset")
    page.wait_for_function(f"{IDLE} === 'idle'")
    yield page, watch
    context.close()
    assert [text for text in spoken if "Deprecation" in text] == []


@pytest.fixture
def lab(loaded: tuple[Page, Watch]) -> Iterator[Page]:
    """The notebook with all its cells run anew, and two new widgets."""
    page, watch = loaded
    page.evaluate(
        "() => document.querySelectorAll('.convfc-explorer').forEach((old) => {"
        " old.dataset.old = 1; })"
    )
    command(page, "notebook:run-all-cells")
    page.wait_for_function(
        "() => { const all = [...document.querySelectorAll('.convfc-explorer')];"
        " return all.length === 2 && all.every((one) => !one.dataset.old && one.clientWidth); }"
    )
    Explorer(page).ready()
    yield page
    watch.check()


def command(page: Page, name: str, **arguments: str) -> None:
    """Do what an entry of a menu does."""
    page.evaluate("([name, so]) => jupyterapp.commands.execute(name, so)", [name, arguments])


def python(page: Page, code: str, value: str = "None") -> str:
    """Run code in the notebook's Python; return what a value is then, as it is written."""
    return page.evaluate(PYTHON, [code, value])


def says(page: Page, value: str, expected: Any) -> None:
    """Wait until a value in the notebook's Python is what is expected."""
    until = time.monotonic() + PATIENCE
    while (now := python(page, "", value)) != repr(expected):
        assert time.monotonic() < until, f"{value} is {now}"
        page.wait_for_timeout(50)


def cells(page: Page) -> Any:
    return page.evaluate("() => jupyterapp.shell.currentWidget.content.model.sharedModel.toJSON()")


def test_both_widgets_are_shown_and_python_has_their_selection(lab: Page) -> None:
    first = Explorer(lab)
    assert lab.locator(".convfc-explorer").count() == 2
    # The settings of the window are above the picture, and little else.
    top, kernel, M = (
        first.root.locator(part).first.bounding_box()["y"]
        for part in (":scope > .top", "[name=kernel-0]", ".panel-M")
    )
    assert top < kernel < M < top + 260
    # From the page to Python: the first widget's alone.
    untouched = int(python(lab, "", "second.selection['p']"))
    first.click("output", 2, 3)
    says(lab, "w.selection['p']", 15)
    says(lab, "second.selection['p']", untouched)
    # From Python to the page.
    python(lab, "w.selection = {'p': 20, 'f': 1}")
    becomes(lab, "[store.selection.p, store.selection.f]", [20, 1])
    python(lab, "w.state = {**w.state, 'settings': {**w.state['settings'], 'flip': True}}")
    becomes(lab, "store.settings.flip", True)
    # What Python gave last is the first to start from.
    python(lab, "w.state = convfc.explorer.explorer_state(layer, 7 * x, title='seven times')")
    becomes(lab, "store.title", "seven times")
    first.act("more").preset("dilated").preset("own").act("more")
    assert first.root.locator("[data-preset=own]").inner_text().startswith("seven times")
    says(lab, "w.state['input']['values'][1]", 7)


def test_keys_in_the_widget_do_not_work_the_notebook(lab: Page) -> None:
    first = Explorer(lab)
    before = cells(lab)
    first.click("output", 2, 3)
    # Above, below, cut, delete, Markdown, run and go on, if the notebook got them.
    first.press("output", "a", "b", "x", "d", "d", "m", "Shift+Enter", "ArrowDown")
    assert first.chosen("p") == (21,)
    first.control("stride-0").press("2")
    assert cells(first.rest(200).page) == before


def test_python_is_told_nothing_of_the_story(lab: Page) -> None:
    first = Explorer(lab)
    python(lab, "before = w.state, w.selection")
    parts = "('settings', 'input', 'filters', 'bias', 'title')"
    same = f"[w.state[part] == before[0][part] for part in {parts}] + [w.selection == before[1]]"
    first.act("story").act("story-next")
    first.control("answer").fill("22")
    first.control("answer").press("Enter")
    assert first.view("story").locator("li.done").count() == 1
    first.act("story-next")
    lab.keyboard.press("ArrowRight")  # the window's
    assert first.rest(400).chosen("p") == (1,)
    says(lab, same, 6 * [True])
    lab.keyboard.press("Escape")
    assert first.rest(400).view("story").is_hidden()
    says(lab, same, 6 * [True])
    # Python's next state ends the story.
    first.act("story")
    python(lab, "w.state = {**w.state, 'title': 'Python again'}")
    becomes(lab, "store.title", "Python again")
    assert first.view("story").is_hidden()


def test_what_changes_while_the_output_is_collapsed_is_there_when_it_is_opened(lab: Page) -> None:
    first = Explorer(lab)
    before = first.picture("M", "base")
    root = first.root.element_handle()
    collapser = lab.locator(".jp-OutputCollapser").first
    collapser.click()
    lab.wait_for_function("(root) => !root.clientWidth", arg=root)
    python(lab, "values = [float(n % 7) for n in range(36)]")
    python(lab, "w.state = {**w.state, 'input': {'values': values}}")
    python(lab, "w.selection = {'p': 9, 'f': 1}")
    lab.wait_for_function(
        "({ explorer }) => explorer.store.input[1] === 1 && explorer.store.selection.p === 9",
        arg=root,
    )
    collapser.click()
    lab.wait_for_function("(root) => root.clientWidth", arg=root)
    first.settled()
    views = ("input", "filters", "M", "K", "Y", "output")
    shown = [first.picture(view, layer) for view in views for layer in ("base", "overlay")]
    assert first.picture("M", "base") != before
    first.ask("explorer._update('numbers')")
    assert shown == [first.picture(view, layer) for view in views for layer in ("base", "overlay")]
    assert "Y(9, 1)" in first.view("arithmetic").inner_text()


def test_each_change_of_theme_changes_the_colours_of_the_grids(lab: Page) -> None:
    (light, _) = lab.evaluate(GREYS)
    for theme in ("dark", "light"):
        command(lab, "apputils:change-theme", theme=f"JupyterLab {theme.title()}")
        lab.wait_for_function(
            "(theme) => [...document.querySelectorAll('.convfc-explorer')].every((root) =>"
            " root.dataset.scheme === theme && root.clientWidth)",
            arg=theme,
        )
        Explorer(lab).settled()
        greys = lab.evaluate(GREYS)
        if theme == "light":
            assert greys == [light, light]
        else:
            assert all(grey < light - 30 for grey in greys)


def test_what_is_retyped_in_the_widget_leaves_pythons_numbers_alone(lab: Page) -> None:
    first = Explorer(lab)
    before = python(lab, "", "[w.state['filters'], w.state['input']]")
    control = first.uncover("size-0")
    control.click()
    control.press("Control+a")
    control.press("1")
    says(lab, "w.state['settings']['size']", [1, 6])  # taken on the way
    control.press("2")
    control.press("Enter")
    says(lab, "w.state['settings']['size']", [12, 6])
    says(lab, "w.state['given']['settings']['size']", [6, 6])
    assert "changed on the page" in python(lab, "", "w")
    first.rest(801)  # what follows at once is one change with it
    control.press("Control+a")
    control.press("6")
    control.press("Enter")
    says(lab, "w.state['settings']['size']", [6, 6])
    assert python(lab, "", "[w.state['filters'], w.state['input']]") == before
    says(lab, "'given' in w.state", False)
    cells_before = cells(lab)
    first.grid("output").press("Control+z")  # undoes here, and not in the notebook
    says(lab, "w.state['settings']['size']", [12, 6])
    first.act("restore")
    says(lab, "w.state['settings']['size']", [6, 6])
    assert cells(lab) == cells_before


# --- marimo ---

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
def marimo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a notebook that runs."""
    if importlib.util.find_spec("marimo") is None:
        lacking("the package marimo is not installed; remedy: pip install marimo")
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "notebook.py").write_text(NOTEBOOK, encoding="utf-8")
    command = ["marimo", "run", "notebook.py", "--headless", "--no-token", "--host", "127.0.0.1"]
    with served(*command, folder=folder, health="/health", MARIMO_SKIP_UPDATE_CHECK="1") as running:
        yield running


def test_in_marimo_both_have_one_selection_and_one_state(
    open_context: OpensContext, marimo: str
) -> None:
    notebook = open_context(viewport={"width": 1280, "height": 1200}).new_page()
    watch = Watch(notebook, own=[marimo, marimo.replace("http", "ws")], levels=("error",))
    notebook.goto(marimo)
    notebook.locator(".convfc-explorer").wait_for()
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
    # Settings, both ways; the output is 3 x 3 then, and p its last number.
    stride = notebook.locator('[name="stride-0"]')
    stride.fill("2")
    said(notebook, "Python has p=8, f=0, stride=[2, 2].")
    notebook.get_by_role("button", name="stride in Python").click()
    becomes(notebook, "store.settings.stride", [1, 2])
    assert stride.input_value() == "1"
    grid.press("Control+Home")
    said(notebook, "Python has p=0, f=0, stride=[1, 2].")
    # The notebook is left as it is.
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
    watch.check()
