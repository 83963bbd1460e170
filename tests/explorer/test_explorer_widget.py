"""The widget without a browser: what Python can set and read, and what it may not set."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from traitlets import TraitError

import convfc
from convfc import ConvGeometry
from convfc.errors import ArgumentError, MissingDependencyError
from convfc.explorer.page import asset
from convfc.explorer.state import explorer_state, state_layer
from convfc.explorer.widget import ExplorerWidget

NOTHING = {"p": 0, "f": 0, "q": None, "element": None}


@pytest.fixture
def state() -> dict[str, Any]:
    geometry = ConvGeometry(1, 2, (3,), padding=1)
    return explorer_state(np.arange(6.0).reshape(2, 3, 1), np.arange(5.0)[:, None], geometry)


def test_explore_shows_a_layer_of_pytorch_exactly() -> None:
    layer = torch.nn.Conv2d(2, 3, (3, 2), stride=2, padding=1)
    x = torch.randn(4, 2, 7, 6, generator=torch.Generator().manual_seed(0))
    widget = convfc.explore(layer, x, title="mine", height=500)
    assert isinstance(widget, ExplorerWidget)
    found, shown = state_layer(widget.state)
    weight = layer.weight.detach().movedim(1, -1).numpy()
    assert np.array_equal(np.asarray(found.filters, np.float32), weight)
    assert np.array_equal(np.asarray(found.bias, np.float32), layer.bias.detach().numpy())
    assert np.array_equal(np.asarray(shown, np.float32), x[0].movedim(0, -1).numpy())
    assert (widget.state["title"], widget.height) == ("mine", 500)


def test_explore_without_a_layer_starts_with_the_page() -> None:
    widget = convfc.explore()
    assert (widget.state, widget.selection, widget.height) == ({}, NOTHING, 0)
    assert "of the experiment" in repr(widget)
    assert "convfc explore" in repr(widget)


def test_explore_with_an_input_and_no_layer_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"^x: there is no layer that it belongs to"):
        convfc.explore(x=np.ones(5))
    with pytest.raises(ArgumentError, match=r"^filters: there is no layer"):
        convfc.explore(filters=[1])


def test_the_bundle_is_the_pages(state: dict[str, Any]) -> None:
    widget = ExplorerWidget(state=state)
    sent = widget.get_state()
    assert sent["_esm"] == asset("explorer.js")
    assert sent["_css"] == asset("explorer.css")
    assert sent["state"] == state
    assert sent["selection"] == state["selection"]


def test_a_state_can_be_set_and_brings_its_selection(state: dict[str, Any]) -> None:
    widget = ExplorerWidget()
    seen = []
    widget.observe(lambda change: seen.append(change["new"]), "selection")
    state["selection"] = {"p": 4, "f": 1, "q": 2, "element": None}
    widget.state = state
    assert widget.state == state
    assert widget.selection == state["selection"]
    assert seen == [state["selection"]]
    widget.state = {}
    assert widget.selection == NOTHING


def test_a_selection_can_be_set_in_part(state: dict[str, Any]) -> None:
    widget = ExplorerWidget(state=state)
    widget.selection = {"p": 3, "f": 1}
    assert widget.selection == {"p": 3, "f": 1, "q": None, "element": None}


@pytest.mark.parametrize(
    ("selection", "text"),
    [
        ({"p": 5}, r"selection\.p: there is no such row of M; expected 0 to 4; got 5"),
        ({"f": 2}, r"selection\.f: there is no such filter; expected 0 to 1; got 2"),
        ({"q": 3}, r"selection\.q: there is no such column of M; expected 0 to 2; got 3"),
        ({"element": 5}, r"selection\.element: there is no such input element; .* 0 to 4"),
        ({"p": -1}, r"selection\.p: .* got -1"),
        ({"p": None}, r"selection\.p: .* got None"),
        ({"p": True}, r"selection\.p: .* got True"),
        ({"p": 1.0}, r"selection\.p: .* got 1\.0"),
        ({"row": 1}, r"selection\.row: a selection has no such part; expected p, f, q, element"),
    ],
)
def test_a_wrong_selection_is_refused_and_changes_nothing(
    state: dict[str, Any], selection: dict[str, Any], text: str
) -> None:
    widget = ExplorerWidget(state=state)
    before = widget.selection
    with pytest.raises(TraitError, match=text):
        widget.selection = selection
    assert widget.selection == before


def test_other_settings_may_leave_no_room_for_the_selection_that_was_there(
    state: dict[str, Any],
) -> None:
    state["selection"] = {"p": 4, "f": 1, "q": 2, "element": None}
    widget = ExplorerWidget(state=state)
    wider = {**widget.state, "settings": {**state["settings"], "stride": [3]}}  # two rows of M
    widget.state = wider
    assert widget.selection == widget.state["selection"] == NOTHING
    widget.selection = {"p": 1}
    same = {**widget.state, "settings": {**state["settings"], "stride": [2]}}
    widget.state = same
    assert widget.state == same  # there is room: it is as it was given
    with pytest.raises(TraitError, match=r"selection\.p: there is no such row of M"):
        widget.state = {**wider, "selection": {"p": 3}}  # asked for


def broken(state: dict[str, Any], *path: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(state)
    place = changed
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        (("settings", "kernel"), [9], "the kernel is larger than the padded input on axis 0"),
        (("settings", "groups"), 2, "groups do not divide in_channels"),
        (("settings", "size"), [225], "the page does not go so far; expected 1 to 224; got 225"),
        (("filters",), [1, 2], r"filters: these are not the numbers .* expected 6 numbers"),
        (("filters",), [np.nan] * 6, "filters: a number that is not finite"),
        (("input",), [1, 2], "input: no state of the explorer; expected a mapping; got list"),
        (("version",), 2, "version: a state of another version; expected 1; got 2"),
        (("selection", "p"), 99, r"selection\.p: there is no such row of M"),
    ],
)
def test_a_wrong_state_is_refused_and_changes_nothing(
    state: dict[str, Any], path: tuple[str, ...], value: Any, text: str
) -> None:
    widget = ExplorerWidget(state=state)
    with pytest.raises(TraitError, match=text):
        widget.state = broken(state, *path, value=value)
    assert widget.state == state


def test_a_height_below_nothing_is_refused() -> None:
    with pytest.raises(TraitError, match="height"):
        ExplorerWidget(height=-1)


def test_without_anywidget_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.delitem(sys.modules, "convfc.explorer.widget")
    with pytest.raises(
        MissingDependencyError, match=r"anywidget.*pip install 'convfc\[explorer\]'"
    ):
        convfc.explore()


def test_reading_a_layer_does_not_import_what_shows_it() -> None:
    program = (
        "import sys, convfc, convfc.explorer.state, convfc.explorer.page\n"
        "print({'anywidget', 'ipywidgets', 'traitlets', 'PIL'} & set(sys.modules) or 'none')"
    )
    run = subprocess.run(  # noqa: S603 (our own interpreter)
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert run.stdout.strip() == "none"
