"""What the page is told of a layer, what comes back from it, and the widget without a browser."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import keras
import numpy as np
import pytest
import torch
from browser import PATIENCE
from hypothesis import given
from hypothesis import strategies as st
from model import settings_of
from strategies import cases
from torch import nn
from traitlets import TraitError

import convfc
from convfc import ConvGeometry, ConvLayer
from convfc.errors import (
    ArgumentError,
    ConvfcError,
    DataError,
    GeometryError,
    MemoryBudgetError,
    MissingDependencyError,
    ShapeError,
    UnsupportedLayer,
    UnsupportedModel,
)
from convfc.explorer import explorer_state
from convfc.explorer import state as state_module
from convfc.explorer.page import asset
from convfc.explorer.state import (
    LARGEST,
    LIMITS,
    PADDING,
    VERSION,
    check_selection,
    settings_of_geometry,
    state_layer,
)
from convfc.explorer.widget import ExplorerWidget

if TYPE_CHECKING:
    from cases import Case
    from model import Model

NOTHING = {"p": 0, "f": 0, "q": None, "element": None}


@pytest.fixture
def state() -> dict[str, Any]:
    """A state with everything in it: two groups, a bias, an input, a selection."""
    geometry = ConvGeometry(2, 4, (2, 3), padding=((0, 1), (2, 0)), groups=2)
    rng = np.random.default_rng(0)
    layer = ConvLayer(
        geometry, rng.integers(-9, 10, (4, 2, 3, 1)), rng.integers(-9, 10, 4), "features.0"
    )
    return explorer_state(layer, rng.integers(-9, 10, (5, 6, 2)))


# --- there and back ---


@given(cases(max_ndim=2), st.booleans())
def test_a_state_leads_back_to_its_layer_and_its_input(case: Case, with_bias: bool) -> None:
    x, filters, bias = case.integers()
    layer = ConvLayer(case.geometry, filters, bias if with_bias else None)
    state = json.loads(json.dumps(explorer_state(layer, x)))
    assert state["settings"] == settings_of(case.geometry, case.input_size, bias=with_bias)
    found, given_x = state_layer(state)
    assert found.geometry == case.geometry
    assert (found.filters == filters).all()
    assert (found.bias is None) != with_bias
    assert found.bias is None or (found.bias == bias).all()
    assert (given_x == x[0]).all()


FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(FINITE, min_size=3, max_size=3), st.sampled_from(["float16", "float32", "float64"]))
def test_every_number_comes_back_to_the_bit(numbers: list[float], dtype: str) -> None:
    with np.errstate(over="ignore"):
        filters = np.array(numbers).astype(dtype)
    filters[~np.isfinite(filters)] = 1
    state = explorer_state(filters.reshape(1, 3, 1), geometry=ConvGeometry(1, 1, (3,)))
    found = np.array(json.loads(json.dumps(state))["filters"])
    assert (found.astype(dtype) == filters).all()


def test_numbers_are_written_short() -> None:
    third, tenth = np.float32(1) / np.float32(3), np.float32(0.1)
    filters = np.array([third, tenth, 2, -0.5, 1e-30, 3e30], dtype=np.float32)
    state = explorer_state(filters.reshape(1, 6, 1), geometry=ConvGeometry(1, 1, (6,)))
    assert json.dumps(state["filters"]) == "[0.33333334, 0.1, 2, -0.5, 1e-30, 3e+30]"


def test_a_state_goes_through_the_page(model: Model, state: dict[str, Any]) -> None:
    found = model.ask("load", state)
    for name in ("version", "title", "source", "settings", "input", "filters", "bias", "selection"):
        assert found[name] == state[name], name
    layer, x = state_layer(found)
    before, x_before = state_layer(state)
    assert (layer(x[None]) == before(x_before[None])).all()


def test_where_it_comes_from_and_what_it_starts_with(state: dict[str, Any]) -> None:
    assert state["title"] == "features.0"
    layer = ConvLayer(ConvGeometry(1, 1, (2,)), np.ones((1, 2, 1)), name="block.conv")
    found = explorer_state(layer, title="mine", source="a run")
    assert (found["title"], found["source"], found["version"]) == ("mine", "a run", VERSION)
    assert explorer_state(layer, 3)["source"] == "Input: a handwritten 3, its middle row"
    geometry = ConvGeometry(2, 4, (3,))
    unnamed = "CONV layer (2, 4, kernel 3)"
    assert explorer_state(np.zeros((4, 3, 2)), None, geometry)["title"] == unnamed
    for made, unnamed in (
        (nn.Conv2d(3, 16, 5, padding=2), "Conv2d(3, 16, kernel 5 × 5, padding 2)"),
        (
            nn.Conv2d(4, 8, 3, stride=(1, 2), padding=(0, 1), groups=2, padding_mode="reflect"),
            "Conv2d(4, 8, kernel 3 × 3, stride 1 × 2, padding 0 × 1, groups 2, reflect)",
        ),
        (
            nn.Conv2d(1, 2, 2, dilation=3, padding="same"),
            "Conv2d(1, 2, kernel 2 × 2, padding 1+2, dilation 3)",
        ),
        (
            nn.ConvTranspose1d(1, 2, 2, stride=2, output_padding=1),
            "ConvTranspose1d(1, 2, kernel 2, stride 2, output padding 1)",
        ),
    ):
        assert explorer_state(made)["title"] == unnamed
    unnamed = "ConvTranspose2d(1, 2, kernel 2 × 4)"
    assert explorer_state(nn.ConvTranspose2d(1, 5, (2, 4)), filters=[0, 2])["title"] == unnamed
    x = torch.ones(2, 3, 5, 6)
    assert explorer_state(nn.Conv2d(3, 1, 2), x)["source"] == "Input: an array of 2 × 3 × 5 × 6"
    middle = explorer_state(nn.Conv2d(1, 2, 4, stride=2), input_size=(28, 28))["selection"]
    assert middle == {"p": 6 * 13 + 6, "f": 0, "q": None, "element": None}


def test_a_state_that_was_changed_names_its_layer_so_and_what_was_given_is_checked() -> None:
    geometry = ConvGeometry(1, 2, (3,))
    state = explorer_state(np.arange(6).reshape(2, 3, 1), np.arange(5)[:, None], geometry)
    given = {name: state[name] for name in ("settings", "input", "filters", "bias")}
    changed = {**state, "filters": [0] * 6, "given": given}
    layer, _ = state_layer(changed)
    assert layer.name == "CONV layer (1, 2, kernel 3), changed here"
    assert state_layer(given)[0].filters.ravel().tolist() == list(range(6))
    with pytest.raises(DataError, match=r"filters: these are not the numbers of its settings"):
        state_layer({**changed, "given": {**given, "filters": [1, 2]}})


# --- layers and inputs of every kind ---

X = np.random.default_rng(1).integers(-9, 10, (5, 6, 3))


@pytest.mark.parametrize(
    ("form", "dtype"),
    [("native", torch.bfloat16), ("patch", torch.float32), ("weight", torch.float64)],
    ids=str,
)
def test_layers_of_pytorch_in_every_form(form: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    native = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect").to(dtype)
    with torch.no_grad():
        for parameter in native.parameters():
            parameter.copy_(torch.randint(-4, 5, parameter.shape))
    layer = native if form == "native" else convfc.to_fc(native, form=form)
    x = torch.as_tensor(X).movedim(-1, 0).to(dtype)
    widget = convfc.explore(layer, x.requires_grad_(), title="mine", height=500)
    assert (widget.state["title"], widget.height) == ("mine", 500)
    found, given_x = state_layer(widget.state)
    assert found.geometry.padding_mode == "reflect"
    assert (given_x == X).all()
    y = native(x[None]).detach().to(torch.float64).movedim(1, -1).numpy()
    assert (found(given_x[None]) == y).all()


@pytest.mark.parametrize(
    ("name", "shape", "batched"),
    [("last", (7, 6, 2), True), ("first", (2, 6, 5), True), ("first", (2, 6, 5), False)],
)
def test_the_page_shows_what_keras_computes(
    name: str, shape: tuple[int, ...], batched: bool
) -> None:
    rest = {"padding": "same", "strides": 2, "data_format": f"channels_{name}"}
    layer = keras.layers.Conv2D(3, (3, 2), **rest)
    layer.build((None, *shape))
    rng = np.random.default_rng(0)
    layer.set_weights([rng.integers(-4, 5, w.shape).astype("float32") for w in layer.weights])
    x = rng.integers(-4, 5, (2, *shape)).astype("float32")
    found, shown = state_layer(explorer_state(layer, keras.ops.array(x) if batched else x[0]))
    theirs = keras.ops.convert_to_numpy(layer(x))[0]
    ours = found(shown[None])[0]
    assert np.array_equal(np.moveaxis(ours, -1, 0) if name == "first" else ours, theirs)


def test_of_keras_the_activation_is_named_and_layers_without_weights_are_refused() -> None:
    layer = keras.layers.Conv2D(3, 3, activation="relu", name="first")
    with pytest.raises(UnsupportedLayer, match="it has no weights yet"):
        convfc.explore(layer, np.ones((6, 5, 1), np.float32))
    with pytest.raises(UnsupportedLayer, match="LazyConv2d: its weight has no size yet"):
        convfc.explore(nn.LazyConv2d(3, 3), np.ones((1, 6, 5), np.float32))
    layer.build((None, 6, 5, 1))
    widget = convfc.explore(layer, np.ones((6, 5, 1), np.float32))
    assert widget.state["title"] == "first, before its relu"


def test_inputs_of_every_library_are_read() -> None:
    geometry = ConvGeometry(3, 1, (2, 2))
    filters = np.ones((1, 2, 2, 3))
    for x in (X, X.astype(np.uint8) * 0 + 3, torch.as_tensor(X), jnp.asarray(X), X.astype(bool)):
        values = explorer_state(filters, x, geometry)["input"]["values"]
        assert values == np.asarray(x).astype(int).ravel().tolist()
    half = jnp.asarray(X, dtype=jnp.bfloat16)
    assert explorer_state(filters, half, geometry)["input"]["values"] == X.ravel().tolist()


def test_a_size_is_enough_and_even_that_can_be_left_out() -> None:
    layer = nn.Conv2d(3, 4, 3)
    state = explorer_state(layer, input_size=(9, 7))
    assert (state["settings"]["size"], state["input"]) == ([9, 7], None)
    assert state_layer(state)[1] is None
    assert explorer_state(layer)["settings"]["size"] == [28, 28]
    assert explorer_state(nn.Conv1d(1, 1, 3))["settings"]["size"] == [28]
    wide = nn.Conv1d(1, 1, 9, dilation=5)
    assert explorer_state(wide)["settings"]["size"] == [41]
    deep = nn.Conv1d(1, 1, 3, padding=30, padding_mode="reflect")
    assert explorer_state(deep)["settings"]["size"] == [31]


@pytest.mark.parametrize("filters", [[2, 0], range(1, 3), 3])
def test_some_of_the_filters_are_shown(filters: Any) -> None:
    layer = nn.Conv2d(3, 5, 2)
    state = explorer_state(layer, X, filters=filters)
    index = [filters] if isinstance(filters, int) else list(filters)
    found, _ = state_layer(state)
    assert found.geometry.out_channels == len(index)
    weight = layer.weight.detach().movedim(1, -1).numpy()
    assert (np.float32(found.filters) == weight[index]).all()
    assert (np.float32(found.bias) == layer.bias.detach().numpy()[index]).all()


# --- what is refused ---

CONV = nn.Conv2d(3, 4, 3)
COMPLEX = nn.Conv2d(3, 4, 3, dtype=torch.complex64)


@pytest.mark.parametrize(
    ("layer", "x", "options", "error", "words"),
    [
        (nn.Conv3d(1, 1, 2), None, {}, GeometryError, "one or two spatial axes; got 3"),
        (nn.Linear(2, 2), None, {}, ConvfcError, "Linear"),
        ("conv1", None, {}, UnsupportedModel, "layer"),
        (np.ones((1, 2, 1)), None, {}, ArgumentError, "filters alone"),
        (CONV, np.ones((4, 5, 6)), {}, ShapeError, r"expected \(3, size, size\)"),
        (CONV, np.ones((3, 2, 2)), {}, GeometryError, "larger than the padded input"),
        (CONV, X, {"input_size": (9, 9)}, ArgumentError, "an array has its own size"),
        (CONV, None, {"input_size": (9,)}, GeometryError, "input_size"),
        (CONV, X * 1j, {}, DataError, "x: the page shows real numbers"),
        (CONV, np.where(X > 5, np.nan, X), {}, DataError, r"x: .* not finite; got \d+ of 90"),
        (COMPLEX, X, {}, DataError, "filters: the page shows real numbers"),
        (CONV, True, {}, ShapeError, "x: the input does not fit the layer"),
        (CONV, None, {"input_size": (225, 9)}, GeometryError, "size: .*expected 1 to 224; got 225"),
        (nn.Conv1d(1, 1, 2, padding=225), None, {"input_size": (9,)}, GeometryError, "padding: .*"),
        (nn.Conv2d(1024, 256, 3), None, {}, MemoryBudgetError, r"filters=range\(8\)"),
        (CONV, None, {"filters": [4]}, ArgumentError, r"numbers from 0 to 3; got \[4\]"),
        (CONV, None, {"filters": range(99)}, ArgumentError, r"numbers from 0 to 3; got 0, ..., 98"),
        (CONV, None, {"filters": []}, ArgumentError, "numbers from 0 to 3"),
        (nn.Conv2d(4, 4, 3, groups=2), None, {"filters": [0]}, ArgumentError, "groups=2"),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_is_refused(
    layer: Any, x: Any, options: dict[str, Any], error: type[ConvfcError], words: str
) -> None:
    layer = copy.deepcopy(layer)
    with pytest.raises(error, match=words) as caught:
        explorer_state(layer, x, **options)
    assert "Remedy" in str(caught.value)


def test_the_last_number_that_the_page_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = ConvGeometry(1, 2, (3,))
    monkeypatch.setattr(state_module, "LARGEST", 9 + 6)
    assert settings_of_geometry(geometry, (9,), bias=False)["size"] == [9]
    with pytest.raises(MemoryBudgetError, match="at most 15; got 16"):
        settings_of_geometry(geometry, (10,), bias=False)
    wide = ConvGeometry(1, 1, (2,), stride=16, transposed=True)
    with pytest.raises(MemoryBudgetError, match=r"the output of one filter .* at most 15; got 18"):
        settings_of_geometry(wide, (2,), bias=False)


def changed(state: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return a state with another value at a place such as `settings.kernel`; ... is none."""
    found = copy.deepcopy(state)
    *rest, last = path.split(".")
    place = found
    for name in rest:
        place = place[name]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return found


NUMBERS = [0] * 23


@pytest.mark.parametrize(
    ("path", "value", "error", "words"),
    [
        ("version", 2, DataError, "version: a state of another version; expected 1; got 2"),
        ("settings", None, DataError, "settings: no state of the explorer"),
        ("filters", [1, 2], DataError, r"filters: .* 24 numbers, \(4, 2, 3, 1\); got 2"),
        ("filters", [None, *NUMBERS], DataError, "filters"),
        ("filters", [[1], *NUMBERS], DataError, "filters"),
        ("filters", [np.nan, *NUMBERS], DataError, "filters: a number that is not finite"),
        ("bias", None, DataError, r"bias: .* 4 numbers"),
        ("input", [1], DataError, "input: no state of the explorer; expected a mapping; got list"),
        ("settings.groups", 3, GeometryError, "groups do not divide"),
        ("settings.axes", 1, GeometryError, "settings.axes: .*expected 2; got 1"),
        ("settings.bias", 1, ArgumentError, "settings.bias: this is a yes or a no"),
        ("settings.bias", False, DataError, "bias: there are numbers of a bias"),
        ("settings.size", [5], GeometryError, "input_size"),
        ("settings.stride", [1, 65], GeometryError, "expected 1 to 64"),
        ("settings.colour", 3, DataError, "settings.colour: there is no such field"),
        ("settings.flip", ..., DataError, "settings.flip: a field is missing"),
        ("selection.p", 30, DataError, "there is no such row of M; expected 0 to 29; got 30"),
        ("selection.p", -1, DataError, "selection.p: there is no such row of M"),
        ("selection.p", True, DataError, "selection.p"),
        ("selection.f", 4, DataError, "there is no such filter; expected 0 to 3; got 4"),
        ("selection.q", 12, DataError, "selection.q: .*0 to 11"),
        ("selection.element", 60, DataError, "selection.element: .*0 to 59"),
        ("selection.row", 1, DataError, "a selection has no such part; expected p, f, q, element"),
    ],
)
def test_a_broken_state_is_named_by_its_field(
    state: dict[str, Any], path: str, value: Any, error: type[ConvfcError], words: str
) -> None:
    """Also by the widget, which then stays as it was."""
    broken = changed(state, path, value)
    with pytest.raises(error, match=words) as caught:
        state_layer(broken)
    if path not in {"settings.bias", "settings.size"}:
        assert "Remedy" in str(caught.value)
    widget = ExplorerWidget(state=state)
    with pytest.raises(TraitError, match=words):
        widget.state = broken
    assert widget.state == state


def test_what_may_be_in_a_state_and_what_may_not(state: dict[str, Any]) -> None:
    without = changed(changed(state, "settings.bias", False), "bias", None)
    assert state_layer(without)[0].bias is None
    assert state_layer(state | {"input": {"digit": 3}})[1] is None  # its numbers are on the page
    last = {"p": 29, "f": 3, "q": 11, "element": 59}
    assert state_layer(state | {"selection": last})[0].geometry.out_channels == 4
    # Where the geometry is not known yet, there is no last one.
    assert check_selection({"p": 10**9, "f": 10**9, "q": None, "element": None}) is None
    for wrong in ({"p": -1}, {"p": True}, {"f": 1.0}, {"row": 1}):
        with pytest.raises(DataError, match=f"selection.{next(iter(wrong))}: "):
            check_selection(wrong)


# --- the widget ---


def test_explore_without_a_layer_starts_with_the_page() -> None:
    widget = convfc.explore()
    assert (widget.state, widget.selection, widget.height) == ({}, NOTHING, 0)
    assert "of a small picture" in repr(widget)
    assert "convfc explore" in repr(widget)
    with pytest.raises(ArgumentError, match=r"^x: there is no layer that it belongs to"):
        convfc.explore(x=np.ones(5))
    with pytest.raises(ArgumentError, match=r"^filters: there is no layer"):
        convfc.explore(filters=[1])
    with pytest.raises(TraitError, match="height"):
        ExplorerWidget(height=-1)


def test_the_widget_is_the_page_with_a_state_that_brings_its_selection(
    state: dict[str, Any],
) -> None:
    sent = ExplorerWidget(state=state).get_state()
    assert (sent["_esm"], sent["_css"]) == (asset("explorer.js"), asset("explorer.css"))
    assert (sent["state"], sent["selection"]) == (state, state["selection"])
    widget = ExplorerWidget()
    seen = []
    widget.observe(lambda change: seen.append(change["new"]), "selection")
    state["selection"] = {"p": 4, "f": 1, "q": 2, "element": None}
    widget.state = state
    assert (widget.state, widget.selection) == (state, state["selection"])
    assert seen == [state["selection"]]
    widget.selection = {"p": 3, "f": 1}  # in part
    assert widget.selection == {"p": 3, "f": 1, "q": None, "element": None}
    for wrong, text in (
        ({"p": 30}, "selection.p: .* 0 to 29; got 30"),
        ({"row": 1}, "no such part"),
    ):
        with pytest.raises(TraitError, match=text):
            widget.selection = wrong
    assert widget.selection["p"] == 3
    widget.state = {}
    assert widget.selection == NOTHING


def test_other_settings_may_leave_no_room_for_the_selection_that_was_there(
    state: dict[str, Any],
) -> None:
    state["selection"] = {"p": 29, "f": 1, "q": 2, "element": None}
    widget = ExplorerWidget(state=state)
    wider = changed(widget.state, "settings.stride", [3, 3])  # four rows of M
    widget.state = wider
    assert widget.selection == widget.state["selection"] == NOTHING
    widget.selection = {"p": 1}
    same = changed(widget.state, "settings.stride", [2, 2])
    widget.state = same
    assert widget.state == same  # there is room: it is as it was given
    with pytest.raises(TraitError, match=r"selection\.p: there is no such row of M"):
        widget.state = {**wider, "selection": {"p": 29}}  # asked for


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
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert run.stdout.strip() == "none"


# --- facts that stand twice ---


def test_the_page_goes_as_far_as_python_lets_it(facts: dict[str, Any]) -> None:
    there = {**facts["perAxis"], **facts["single"]}
    assert {name: (rule["min"], rule["max"]) for name, rule in there.items()} == LIMITS
    assert (facts["padding"]["min"], facts["padding"]["max"]) == PADDING
    assert facts["most"] == LARGEST
    assert facts["version"] == VERSION
    wanted = settings_of(ConvGeometry(1, 1, (2, 2)), (6, 6))
    assert set(facts["defaults"]) == set(wanted)
