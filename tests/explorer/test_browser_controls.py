"""Settings chosen, typed and mistyped; the numbers of the page are those of convfc."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from browser import MARGIN, PRESETS
from model import forwards, turned

from convfc import conv_as_matmul, im2col
from convfc.explorer.state import state_layer

if TYPE_CHECKING:
    from browser import Explorer, OpensPage

# Names of controls and what is put into them, one after the other; each step is a convolution.
CHANGES: list[dict[str, Any]] = [
    {"stride__0": 3, "stride__1": 1},
    {"padding__0__low": 2, "padding__1__high": 1, "mode": "reflect"},
    {"channels": 2, "filters": 4, "groups": 2, "flip": True, "bias": True},
    {"kernel__0": 2, "kernel__1": 3, "dilation__1": 2, "size__0": 9, "size__1": 11},
    {"mode": "circular", "padding__0__high": 3},
    {"axes": 1, "size__0": 12, "kernel__0": 3, "dilation__0": 1, "stride__0": 2},
    {"mode": "zeros", "transposed": True, "outputPadding__0": 1},
]


def agrees_with_python(explorer: Explorer) -> None:
    """Compare what the page shows with what convfc computes from the same numbers: exactly."""
    state = explorer.state
    # Whole numbers in the place of the page's, so that every sum is exact in every order.
    rng = np.random.default_rng(0)
    state["input"] = {"values": rng.integers(-9, 10, len(state["input"]["values"])).tolist()}
    state["filters"] = rng.integers(-9, 10, len(state["filters"])).tolist()
    if state["bias"] is not None:
        state["bias"] = rng.integers(-9, 10, len(state["bias"])).tolist()
    explorer.ask("store.load(argument)", state)
    layer, x = state_layer(explorer.state)
    x, filters = np.asarray(x)[None], np.asarray(layer.filters)
    shown = explorer.ask(
        "({M: [...store.M], Y: [...store.Y], size: store.outputSize, rows: store.map.rows})"
    )
    y = conv_as_matmul(x, filters, layer.geometry)
    if layer.bias is not None:
        y = y + layer.bias
    assert tuple(shown["size"]) == y.shape[1:-1]
    assert shown["M"] == im2col(x, forwards(layer.geometry)).ravel().tolist()
    assert shown["Y"] == y.ravel().tolist()
    assert explorer.cells("M") == (shown["rows"], len(shown["M"]) // shown["rows"])


# The colours of cells in a grid's picture: near their corner, or in the middle of low ones.
COLOURS = """([view, cells, high, wide, margin]) => {
  const shown = document.querySelector(`[data-view="${view}"] canvas.base`);
  const { width, height } = shown;
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.drawImage(shown, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  const inside = (side) => (side < 8 ? side / 2 : 2.5);
  return cells.map(([r, c]) => {
    const x = Math.floor(margin + c * wide + inside(wide));
    const y = Math.floor(margin + r * high + inside(high));
    return `rgb(${data.slice(4 * (y * width + x), 4 * (y * width + x) + 3).join(", ")})`;
  });
}"""


def test_cells_have_the_colours_of_the_numbers_of_convfc(explorer: Explorer) -> None:
    for preset in ("figure-3", "transposed", "experiment"):
        explorer.preset(preset)
        explorer.ask("store.select({p: 0, f: 1})")
        explorer.settled()
        layer, x = state_layer(explorer.state)
        x, filters = np.asarray(x)[None], np.asarray(layer.filters)
        M = im2col(x, forwards(layer.geometry))[0]
        Y = np.array(explorer.ask("[...store.Y]")).reshape(len(M), -1)  # compared elsewhere
        plane = Y[:, 1].reshape(explorer.ask("store.outputSize"))
        K = turned(filters, layer.geometry).reshape(len(filters), -1).T
        kinds = {"M": (M, "input"), "K": (K, "filters"), "Y": (Y, "output")}
        for view, (numbers, kind) in {**kinds, "output": (plane, "output")}.items():
            assert explorer.cells(view) == numbers.shape, view
            places = [(r, c) for r in range(0, len(numbers), 3) for c in range(numbers.shape[1])]
            sides = explorer.side(view)
            found = explorer.page.evaluate(COLOURS, [view, places, *sides, MARGIN])
            expected = explorer.ask(
                "argument[0].map((n) => explorer.palette.css(n, store.largest(argument[1])))",
                [[float(numbers[place]) for place in places], kind],
            )
            assert len(set(expected)) > 1, view
            assert found == expected, view


def test_presets_are_the_convolutions_that_they_name(
    explorer: Explorer, facts: dict[str, Any]
) -> None:
    tiles = explorer.root.locator("[data-preset]")
    names = tiles.evaluate_all("all => all.map((one) => one.dataset.preset)")
    assert tuple(names) == PRESETS
    assert explorer.ask("store.preset") == "experiment"  # what opens when nothing is asked for
    for preset, known in zip(PRESETS, facts["presets"], strict=True):
        explorer.preset(preset)
        tile = explorer.root.locator(f'[data-preset="{preset}"]')
        assert tile.get_attribute("aria-checked") == "true"
        assert explorer.root.locator(".intro .text").inner_text() == known["text"]
        assert explorer.ask("store.problems") == []
        agrees_with_python(explorer)


def test_every_setting_has_a_control_and_every_change_is_followed_exactly(
    explorer: Explorer,
) -> None:
    for change in CHANGES:
        for name, value in change.items():
            if isinstance(value, bool):
                explorer.switch(name, on=value)
            else:
                explorer.enter(**{name: value})
        assert explorer.ask("store.problems") == [], change
        settings = explorer.settings
        for name, value in change.items():
            field, *rest = name.split("__")
            found = settings[field]
            for part in rest:
                found = found[{"low": 0, "high": 1}[part] if not part.isdigit() else int(part)]
            assert found == value, name
        agrees_with_python(explorer)


WRONG = (
    ("kernel-0", "40", "kernel", "reaches over 40", "5"),
    ("stride-1", "0", "stride", "from 1 to 64", "1"),
    ("size-0", "", "size", "whole number", "28"),
    ("size-1", "2.5", "size", "This is 2.5", "28"),
    ("groups", "3", "groups", "3 groups do not divide", "1"),
    ("outputPadding-0", "1", "outputPadding", "Only a transposed", "0"),
    ("filters", "-2", "filters", "from 1 to", "4"),
)


def test_what_cannot_be_is_explained_beside_the_control(explorer: Explorer) -> None:
    for name, value, field, said, good in WRONG:
        before, drawn = explorer.settings, explorer.picture("M", "base")
        control, note = explorer.control(name), explorer.problem(field)
        if not control.is_visible():
            explorer.switch("lock", False)
        assert note.is_hidden(), name
        control.fill(value)
        control.press("Enter")
        explorer.settled()
        assert said in note.inner_text()
        assert note.get_attribute("role") == "alert"
        assert control.get_attribute("aria-invalid") == "true"
        assert control.get_attribute("aria-describedby") == note.get_attribute("id")
        assert control.input_value() == value  # what was typed is left alone
        assert explorer.settings == before  # the last convolution stays on show
        assert explorer.picture("M", "base") == drawn
        top, bottom = note.bounding_box(), control.bounding_box()
        assert 0 <= top["y"] - bottom["y"] - bottom["height"] < 60, name
        control.fill(good)
        control.press("Enter")
        explorer.settled()
        assert note.is_hidden(), name
        assert control.get_attribute("aria-invalid") is None
        assert explorer.ask("store.problems") == []


def test_reflection_and_transposition_say_which_mode_to_choose(explorer: Explorer) -> None:
    explorer.enter(mode="reflect", padding__0__low=30)
    assert "at most 27" in explorer.problem("padding").inner_text()
    explorer.enter(padding__0__low=3)
    assert explorer.problem("padding").is_hidden()
    explorer.switch("transposed")
    assert "Choose zeros" in explorer.problem("mode").inner_text()
    explorer.enter(mode="zeros")
    assert explorer.settings["transposed"] is True


def test_one_axis_hides_the_controls_of_the_second(explorer: Explorer) -> None:
    explorer.switch("lock", False)
    for axes in (2, 1, 2):
        explorer.enter(axes=axes)
        assert explorer.control("kernel-1").is_visible() == (axes == 2)
        assert len(explorer.settings["kernel"]) == axes
        assert (explorer.cells("input")[0] == 1) == (axes == 1)


def test_a_theme_is_what_the_system_says_until_the_switch_says_otherwise(
    open_page: OpensPage,
) -> None:
    background = "element => getComputedStyle(element).backgroundColor"
    seen = {}
    for scheme in ("light", "dark"):
        explorer = open_page(color_scheme=scheme)
        seen[scheme] = explorer.root.evaluate(background)
        assert explorer.ask("explorer.palette.scheme") == scheme
        explorer.page.emulate_media(color_scheme="light" if scheme == "dark" else "dark")
        explorer.settled()
        assert explorer.root.evaluate(background) != seen[scheme]
        explorer.page.emulate_media(color_scheme=scheme)
    assert seen["light"] != seen["dark"]
    explorer = open_page(color_scheme="light")
    painted = explorer.picture("input", "base")
    explorer.enter(theme="dark")
    assert explorer.root.evaluate(background) == seen["dark"]
    assert explorer.picture("input", "base") != painted  # the canvases change with it
    explorer.page.emulate_media(color_scheme="light")
    explorer.settled()
    assert explorer.root.evaluate(background) == seen["dark"]
    explorer.enter(theme="light")
    assert explorer.picture("input", "base") == painted
