"""The backward pass on the page: dY is changed, and dK, dX and their products follow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from judges import torch_layer
from model import geometry_of, turned

if TYPE_CHECKING:
    from browser import Explorer, OpensPage

FIGURE_2 = "#1;preset=figure-2"


def judged(explorer: Explorer, dY: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return dX and dK of PyTorch's autograd, for the page's numbers; dK as the page turns it."""
    state = explorer.state
    geometry, size = geometry_of(state["settings"])
    x = torch.tensor(state["input"]["values"], dtype=torch.float64)
    filters = torch.tensor(state["filters"], dtype=torch.float64)
    x = x.reshape(1, *size, geometry.in_channels).requires_grad_()
    filters = filters.reshape(geometry.filters_shape).requires_grad_()
    torch_layer(x, filters, geometry).backward(torch.tensor(dY)[None])
    return x.grad[0].numpy(), turned(filters.grad.numpy(), geometry)


def written(explorer: Explorer) -> list[tuple[float, float, float]]:
    """Return the products that the tab spells out."""
    items = (
        explorer.view("backward")
        .locator("li[data-term]")
        .evaluate_all(
            "all => all.map((li) => ['.x', '.w', '.product'].map((part) =>"
            " Number(li.querySelector(part).textContent.replace('−', '-'))))"
        )
    )
    return [(x, w, product) for x, w, product in items]


def total(explorer: Explorer) -> float:
    text = explorer.view("backward").locator(".sum").inner_text()
    return float(text.removeprefix("= ").replace("−", "-"))


@pytest.mark.parametrize("preset", ["figure-2", "transposed", "depthwise"])
def test_what_stands_there_is_the_gradient_of_autograd(explorer: Explorer, preset: str) -> None:
    explorer.preset(preset)
    explorer.tab("backward")
    size = (*explorer.ask("store.outputSize"), explorer.settings["filters"])
    p, f = explorer.chosen("p", "f")
    dY = np.zeros(size)
    place = (*np.unravel_index(p, size[:-1]), f)
    dY[place] = 1  # the one follows the choice, until a number is typed
    assert explorer.ask("[...store.dX]") == judged(explorer, dY)[0].ravel().tolist()
    dY[place] = 0
    for start in ("one", "ones"):
        if start == "ones":
            explorer.root.locator("[data-start=ones]").click()
            dY = np.ones(size)
        explorer.edit("dY", 0, 0, "-3")
        dY[(0,) * (len(size) - 1) + (f,)] = -3
        if dY.size > 1:
            explorer.edit("dY", 1, 1, "2")  # what was typed before is still there
            dY[(1,) * (len(size) - 1) + (f,)] = 2
        dX, dK = judged(explorer, dY)
        assert explorer.ask("[...store.dX]") == dX.ravel().tolist()
        assert explorer.ask("[...store.dK(store.selection.f)]") == dK[f].ravel().tolist()
        # One number of dK, with its products: column q of M with column f of dY.
        explorer.click("dK", 1, 1)
        assert "dK at row" in explorer.live()
        q, first = explorer.chosen("q")[0], explorer.ask("store.map.taps")
        assert total(explorer) == pytest.approx(dK[f].ravel()[q % first])
        assert sum(product for *_, product in written(explorer)) == pytest.approx(total(explorer))
        column = {(x, w) for x, w, _ in written(explorer)}
        assert {w for _, w in column} <= set(dY[..., f].ravel().tolist()) - {0.0}
        # One number of dX: the weights that met it, each with the dY of their output.
        explorer.click("dX", 1, 1)
        element = explorer.selection["element"]
        assert f"dX at input {element}: " in explorer.live()
        assert total(explorer) == pytest.approx(dX.ravel()[element])
        products = written(explorer)
        assert sum(product for *_, product in products) == pytest.approx(total(explorer))
        assert all(x * w == product for x, w, product in products)


def test_the_image_stays_and_the_same_lights_are_lit(explorer: Explorer) -> None:
    image = explorer.picture("input", "base")
    explorer.tab("backward")
    assert explorer.picture("input", "base") == image
    row = explorer.picture("M")
    explorer.click("dK", 2, 1)
    assert explorer.picture("M") != row
    lit = explorer.ask("explorer.palette.lit")
    top, left, bottom, right = explorer.lit("M", lit) or (0, 0, 0, 0)
    assert top <= 0
    assert bottom >= 169  # all of column q
    assert left <= explorer.chosen("q")[0] + 0.5 <= right
    assert right - left < 3
    explorer.click("dX", 14, 14)
    readers = explorer.ask("[...store.map.readers(store.selection.element)]")
    top, _, bottom, _ = explorer.lit("Y", lit) or (0, 0, 0, 0)
    slack = 4 / explorer.side("Y")[0]
    assert abs(top - min(p for p, _ in readers)) <= slack
    assert abs(bottom - max(p for p, _ in readers) - 1) <= slack
    explorer.click("output", 3, 3)  # another choice: the row of the window again
    explorer.click("output", 7, 6)
    explorer.ask("store.select({q: null})")
    explorer.settled()
    assert explorer.picture("M") == row
    assert explorer.picture("input", "base") == image


def test_dy_is_where_the_chosen_output_is(explorer: Explorer) -> None:
    explorer.tab("backward")
    explorer.click("dY", 2, 5)
    assert explorer.chosen("p") == (2 * 13 + 5,)
    assert explorer.ask("[...store.gradients()]") == [[2 * 13 + 5, 0, 1]]
    patch = explorer.ask("[...store.entries(store.selection.p, [...Array(16).keys()])]")
    assert explorer.ask("[...store.dK(0)]") == patch  # of one output, dK is its patch
    explorer.edit("dY", 2, 5, "3")
    explorer.click("dY", 4, 4)  # what was typed does not follow the choice
    assert explorer.ask("[...store.gradients()]") == [[2 * 13 + 5, 0, 3]]
    assert explorer.root.locator("[data-start=zeros]").get_attribute("aria-pressed") == "true"
    explorer.root.locator("[data-start=one]").click()
    assert explorer.ask("[...store.gradients()]") == [[4 * 13 + 4, 0, 1]]


def test_changed_gradients_go_with_the_address_and_are_undone(open_page: OpensPage) -> None:
    explorer = open_page(address="#1;preset=figure-3;tab=backward;dy=ones")
    explorer.edit("dY", 2, 3, "2.5")
    explorer.page.wait_for_function("() => location.hash.includes('e=2_3_0_2.5')")
    other = open_page(address=explorer.page.evaluate("() => location.hash"))
    assert other.ask("[...store.gradients()]") == explorer.ask("[...store.gradients()]")
    assert other.ask("[store.gradient(11, 0), store.gradient(11, 1)]") == [2.5, 1]
    assert "changed" not in other.root.locator(".intro").inner_text()
    explorer.act("undo")
    assert explorer.ask("store.gradient(11, 0)") == 1
    # A place of dY stays what it is when the output grows.
    other.enter(padding__0__low=1)
    assert other.ask("store.gradient(2 * 4 + 3, 0)") == 2.5
    other.enter(size__1=3)
    assert other.ask("[...store.gradients()].every(([, , value]) => value === 1)")


def test_what_a_pixel_feeds_keeps_the_image_and_ends_with_the_preset(explorer: Explorer) -> None:
    image = explorer.picture("input", "base")
    switch = explorer.control("feeds")
    assert "feeds" in switch.evaluate("input => input.labels[0].textContent")
    explorer.switch("feeds")
    explorer.click("input", 9, 9)
    assert explorer.picture("input", "base") == image
    assert "read 4 times, feeds 4 outputs" in explorer.view("input").inner_text()
    explorer.preset("figure-2")
    assert not switch.is_checked()
    assert explorer.ask("store.view.feeds") is False
    assert "feeds" not in explorer.view("input").inner_text()


def test_the_flipped_filter_turns_and_the_window_stays(open_page: OpensPage) -> None:
    explorer = open_page(address=FIGURE_2)
    M, K, filters = (explorer.picture(view, "base") for view in ("M", "K", "filters"))
    before = explorer.ask("[...store.filters]")
    explorer.switch("flip")
    assert explorer.picture("M", "base") == M
    assert explorer.picture("K", "base") != K
    assert explorer.picture("filters", "base") != filters
    assert explorer.ask("[...store.K]") == before[::-1]
    assert explorer.ask("[...store.filters]") == before  # of the layer, for Python
    for view in ("K", "filters"):
        assert "turned" in explorer.view(view).inner_text()
    terms = explorer.view("arithmetic").locator(".terms .x").all_inner_texts()
    assert terms == explorer.ask("[...store.input]").__str__()[1:-1].split(", ")
    # An edited cell is the weight that is seen there.
    explorer.edit("filters", 0, 0, "9")
    assert explorer.ask("store.filters[8]") == 9
    explorer.edit("K", 1, 0, "7")
    assert explorer.ask("store.filters[7]") == 7
    y = explorer.ask("store.value(0, 0)")
    state = explorer.state
    geometry, _ = geometry_of(state["settings"])
    expected = torch_layer(
        torch.tensor(state["input"]["values"], dtype=torch.float64).reshape(1, 3, 3, 1),
        torch.tensor(state["filters"], dtype=torch.float64).reshape(1, 3, 3, 1),
        geometry,
    )
    assert y == expected.item()
    # Python's column of M is the layer's own.
    explorer.click("M", 0, 2)
    assert explorer.selection["q"] == 2
    assert explorer.state["selection"]["q"] == 6


def test_a_transposed_layers_arithmetic_is_in_the_windows_order(explorer: Explorer) -> None:
    explorer.preset("transposed")
    window = explorer.ask(
        "(() => { const { input } = explorer.strip; const { source } = input.panel.grid;"
        " return Array.from({length: 9}, (_, q) =>"
        " source.value(...input.cellRead(store.selection.p, q))); })()"
    )
    box = explorer.ask("explorer.strip.input.window(store.selection.p)")
    assert (box[2] - box[0], box[3] - box[1]) == (2, 2)
    rows = explorer.ask(
        "(([r0, c0]) => Array.from({length: 9}, (_, i) => explorer.strip.input.panel.grid.source"
        ".value(r0 + Math.floor(i / 3), c0 + (i % 3))))(explorer.strip.input.window("
        "store.selection.p))"
    )
    assert window == rows
    terms = explorer.view("arithmetic").locator(".terms .x").all_inner_texts()
    assert [float(term) for term in terms] == rows
