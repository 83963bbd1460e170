"""What the page is told of a layer, and what comes back from it."""

from __future__ import annotations

import copy
import json
import re
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import keras
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model import running, settings_of
from strategies import cases
from torch import nn

import convfc
from convfc import ConvGeometry, ConvLayer
from convfc.errors import (
    ArgumentError,
    ConvfcError,
    DataError,
    GeometryError,
    MemoryBudgetError,
    ShapeError,
    UnsupportedModel,
)
from convfc.explorer import explorer_state
from convfc.explorer import state as state_module
from convfc.explorer.state import (
    LARGEST,
    LIMITS,
    PADDING,
    VERSION,
    check_selection,
    settings_of_geometry,
    state_layer,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cases import Case
    from model import Model


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    yield from running()


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
    assert given_x is not None
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
    assert x is not None
    assert (layer(x[None]) == before(x_before[None])).all()


def test_it_starts_in_the_middle_of_the_output() -> None:
    state = explorer_state(nn.Conv2d(1, 2, 4, stride=2), input_size=(28, 28))
    assert state["selection"] == {"p": 6 * 13 + 6, "f": 0, "q": None, "element": None}


def test_where_it_comes_from_is_said() -> None:
    layer = ConvLayer(ConvGeometry(1, 1, (2,)), np.ones((1, 2, 1)), name="block.conv")
    assert explorer_state(layer)["title"] == "block.conv"
    state = explorer_state(layer, title="mine", source="a run")
    assert (state["title"], state["source"], state["version"]) == ("mine", "a run", VERSION)
    assert explorer_state(layer, 3)["source"] == "a handwritten 3, its middle row"


# --- layers and inputs of every kind ---

X = np.random.default_rng(1).integers(-9, 10, (5, 6, 3))


@pytest.mark.parametrize("form", ["native", "patch", "weight"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_layers_of_pytorch_in_every_form(form: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    native = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect").to(dtype)
    with torch.no_grad():
        for parameter in native.parameters():
            parameter.copy_(torch.randint(-4, 5, parameter.shape))
    layer = native if form == "native" else convfc.to_fc(native, form=form)
    x = torch.as_tensor(X).movedim(-1, 0).to(dtype)
    found, given_x = state_layer(explorer_state(layer, x.requires_grad_()))
    assert found.geometry.padding_mode == "reflect"
    assert given_x is not None
    assert (given_x == X).all()
    y = native(x[None]).detach().to(torch.float64).movedim(1, -1).numpy()
    assert (found(given_x[None]) == y).all()


@pytest.mark.parametrize("order", ["channels_last", "channels_first"])
def test_layers_of_keras(order: str) -> None:
    layer = keras.layers.Conv2D(4, 3, strides=2, padding="same", data_format=order)
    last = order == "channels_last"
    x = X if last else np.moveaxis(X, -1, 0)
    layer.build((None, *x.shape))
    rng = np.random.default_rng(2)
    weights = [rng.integers(-4, 5, w.shape).astype("float32") for w in layer.weights]
    for variable, numbers in zip(layer.weights, weights, strict=True):
        variable.assign(numbers)
    found, given_x = state_layer(explorer_state(layer, x[None]))
    assert found.geometry.padding == ((1, 1), (0, 1))
    assert given_x is not None
    assert (given_x == X).all()
    assert (found.filters == np.moveaxis(weights[0], -1, 0)).all()


def test_inputs_of_every_library_are_read() -> None:
    geometry = ConvGeometry(3, 1, (2, 2))
    filters = np.ones((1, 2, 2, 3))
    for x in (X, X.astype(np.uint8) * 0 + 3, torch.as_tensor(X), jnp.asarray(X), X.astype(bool)):
        values = explorer_state(filters, x, geometry)["input"]["values"]
        assert values == np.asarray(x).astype(int).ravel().tolist()
    half = jnp.asarray(X, dtype=jnp.bfloat16)
    assert explorer_state(filters, half, geometry)["input"]["values"] == X.ravel().tolist()


def test_the_first_of_a_batch_is_shown() -> None:
    geometry = ConvGeometry(3, 1, (2, 2))
    state = explorer_state(np.ones((1, 2, 2, 3)), np.stack([X, -X]), geometry)
    assert state["input"]["values"] == X.ravel().tolist()


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


@pytest.mark.parametrize("filters", [[2, 0], range(1, 3), 3, (4,)])
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
        (CONV, np.ones((0, 3, 5, 6)), {}, ShapeError, "does not fit the layer"),
        (CONV, np.ones((3, 2, 2)), {}, GeometryError, "larger than the padded input"),
        (CONV, X, {"input_size": (9, 9)}, ArgumentError, "an array has its own size"),
        (CONV, None, {"input_size": (9,)}, GeometryError, "input_size"),
        (CONV, X * 1j, {}, DataError, "x: the page shows real numbers"),
        (CONV, np.where(X > 5, np.nan, X), {}, DataError, r"x: .* not finite; got \d+ of 90"),
        (COMPLEX, X, {}, DataError, "filters: the page shows real numbers"),
        (CONV, {"x": 1}, {}, DataError, "x: the page shows real numbers"),
        (CONV, True, {}, ShapeError, "x: the input does not fit the layer"),
        (CONV, None, {"input_size": (225, 9)}, GeometryError, "size: .*expected 1 to 224; got 225"),
        (nn.Conv1d(1, 1, 65), None, {}, GeometryError, "kernel: .*expected 1 to 64"),
        (nn.Conv1d(1, 1, 2, stride=65), None, {}, GeometryError, "stride: .*expected 1 to 64"),
        (nn.Conv1d(1, 1, 2, padding=225), None, {"input_size": (9,)}, GeometryError, "padding: .*"),
        (nn.Conv1d(1, 4097, 2), None, {}, GeometryError, "filters: .*1 to 4096"),
        (nn.Conv2d(1024, 256, 3), None, {}, MemoryBudgetError, r"filters=range\(8\)"),
        (CONV, None, {"filters": [4]}, ArgumentError, r"numbers from 0 to 3; got \[4\]"),
        (CONV, None, {"filters": range(99)}, ArgumentError, r"numbers from 0 to 3; got 0, ..., 98"),
        (CONV, None, {"filters": [-1]}, ArgumentError, "numbers from 0 to 3"),
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


BROKEN = {
    "version": (2, "version: a state of another version; expected 1; got 2"),
    "settings": (None, "settings: no state of the explorer"),
    "filters": ([1, 2], r"filters: .* 24 numbers, \(4, 2, 3, 1\); got 2"),
    "bias": (None, r"bias: .* 4 numbers"),
    "input": ([1], "input: no state of the explorer"),
    "selection": ({"p": 30}, "selection.p: there is no such row of M; expected 0 to 29; got 30"),
}


@pytest.mark.parametrize("field", BROKEN)
def test_a_broken_state_is_named_by_its_field(state: dict[str, Any], field: str) -> None:
    value, words = BROKEN[field]
    with pytest.raises(DataError, match=words) as caught:
        state_layer(state | {field: value})
    assert "Remedy" in str(caught.value)


@pytest.mark.parametrize("field", ["filters", "bias"])
@pytest.mark.parametrize("odd", [None, "1", float("nan"), float("inf"), [1]])
def test_numbers_that_are_none_are_refused(state: dict[str, Any], field: str, odd: object) -> None:
    with pytest.raises(DataError, match=field):
        state_layer(state | {field: [odd, *state[field][1:]]})


@pytest.mark.parametrize(
    ("name", "value", "error", "words"),
    [
        ("kernel", [9, 9], GeometryError, "kernel is larger"),
        ("groups", 3, GeometryError, "groups do not divide"),
        ("axes", 1, GeometryError, "settings.axes: .*expected 2; got 1"),
        ("bias", 1, ArgumentError, "settings.bias: this is a yes or a no"),
        ("size", [5], GeometryError, "input_size"),
        ("stride", [1, 65], GeometryError, "expected 1 to 64"),
        ("colour", 3, DataError, "settings.colour: there is no such field"),
        ("flip", ..., DataError, "settings.flip: a field is missing"),
    ],
)
def test_broken_settings_are_named(
    state: dict[str, Any], name: str, value: Any, error: type[ConvfcError], words: str
) -> None:
    settings = {**state["settings"], name: value}
    if value is ...:
        del settings[name]
    with pytest.raises(error, match=words):
        state_layer(state | {"settings": settings})


def test_a_bias_that_the_settings_do_not_have_is_refused(state: dict[str, Any]) -> None:
    settings = {**state["settings"], "bias": False}
    with pytest.raises(DataError, match="bias: there are numbers of a bias"):
        state_layer(state | {"settings": settings})
    assert state_layer(state | {"settings": settings, "bias": None})[0].bias is None


def test_a_digit_of_the_page_has_its_numbers_there(state: dict[str, Any]) -> None:
    assert state_layer(state | {"input": {"digit": 3}})[1] is None


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        ({"p": -1}, "selection.p: there is no such row of M"),
        ({"p": 1.0}, "selection.p"),
        ({"p": True}, "selection.p"),
        ({"p": None}, "selection.p"),
        ({"f": 4}, "selection.f: there is no such filter; expected 0 to 3; got 4"),
        ({"q": 12}, "selection.q: .*0 to 11"),
        ({"element": 60}, "selection.element: .*0 to 59"),
        ({"row": 1}, "selection.row: a selection has no such part; expected p, f, q, element"),
    ],
)
def test_selections_that_there_are_not(
    state: dict[str, Any], selection: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        state_layer(state | {"selection": selection})
    if not re.search("0 to", words):
        with pytest.raises(DataError, match=words.partition(";")[0]):
            check_selection(selection)


def test_the_last_of_everything_can_be_selected(state: dict[str, Any]) -> None:
    last = {"p": 29, "f": 3, "q": 11, "element": 59}
    assert state_layer(state | {"selection": last})[0].geometry.out_channels == 4
    assert check_selection({"p": 10**9, "f": 10**9, "q": None, "element": None}) is None


# --- facts that stand twice ---


def test_the_page_goes_as_far_as_python_lets_it(model: Model) -> None:
    facts = model.ask("facts")
    there = {**facts["perAxis"], **facts["single"]}
    assert {name: (rule["min"], rule["max"]) for name, rule in there.items()} == LIMITS
    assert (facts["padding"]["min"], facts["padding"]["max"]) == PADDING
    assert facts["most"] == LARGEST
    assert facts["version"] == VERSION
    wanted = settings_of(ConvGeometry(1, 1, (2, 2)), (6, 6))
    assert set(facts["defaults"]) == set(wanted)


def test_a_layer_without_a_name_is_titled_by_its_kind_and_sizes() -> None:
    geometry = ConvGeometry(2, 4, (3,))
    assert explorer_state(np.zeros((4, 3, 2)), None, geometry)["title"] == (
        "CONV layer, 2 to 4 channels, kernel 3"
    )
    layer = torch.nn.ConvTranspose2d(1, 5, (2, 4))
    assert explorer_state(layer, filters=[0, 2])["title"] == (
        "ConvTranspose2d, 1 to 2 channels, kernel 2 × 4"
    )


def test_a_state_that_was_changed_names_its_layer_so_and_what_was_given_is_checked() -> None:
    geometry = ConvGeometry(1, 2, (3,))
    state = explorer_state(np.arange(6).reshape(2, 3, 1), np.arange(5)[:, None], geometry)
    given = {name: state[name] for name in ("settings", "input", "filters", "bias")}
    changed = {**state, "filters": [0] * 6, "given": given}
    layer, _ = state_layer(changed)
    assert layer.name == "CONV layer, 1 to 2 channels, kernel 3, changed here"
    assert state_layer(given)[0].filters.ravel().tolist() == list(range(6))
    with pytest.raises(DataError, match=r"filters: these are not the numbers of its settings"):
        state_layer({**changed, "given": {**given, "filters": [1, 2]}})
