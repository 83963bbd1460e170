"""Whatever is chosen, wherever and however, everything else follows: the store and the drawing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from browser import PRESETS, TABS

if TYPE_CHECKING:
    from browser import Explorer, OpensPage

VIEWS = ("input", "filters", "M", "K", "Y", "output")


def near(box: tuple[float, ...] | None, expected: tuple[int, int, int, int], slack: float) -> bool:
    """Return whether an outline runs along the cells from (top, left) to (bottom, right)."""
    return box is not None and all(
        abs(found - wanted) <= slack for found, wanted in zip(box, expected, strict=True)
    )


def test_an_output_pixel_lights_its_window_its_row_and_its_sum(explorer: Explorer) -> None:
    explorer.click("output", 3, 5)
    assert explorer.chosen("p", "f") == (3 * 13 + 5, 0)
    window = explorer.ask("explorer.palette.window")
    assert near(explorer.lit("output", window), (3, 5, 4, 6), 0.5)
    assert near(explorer.lit("input", window), (6, 10, 10, 14), 0.5)  # stride 2, 4 x 4
    top, left, bottom, right = explorer.lit("M", window) or (0, 0, 0, 0)
    assert top <= 44.5 <= bottom  # the row, enlarged where it is too low to be seen
    assert bottom - top < 13
    assert (round(left), round(right)) == (0, 16)
    live = explorer.live()
    assert "row 3, column 5" in live
    assert "rows 6 to 9, columns 10 to 13" in live
    assert explorer.ask("explorer.store.describe()") == live


@pytest.mark.parametrize(
    ("view", "row", "column", "expected"),
    [
        ("M", 40, 6, {"p": 40, "q": 6, "element": (6 + 1) * 28 + 2 + 2}),
        ("K", 5, 2, {"f": 2, "q": 5}),
        ("Y", 100, 3, {"p": 100, "f": 3}),
        ("filters", 1, 2, {"f": 0, "q": 6}),
        ("input", 11, 17, {"element": 11 * 28 + 17}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_choosing_in_a_view_changes_all_of_them(
    explorer: Explorer, view: str, row: int, column: int, expected: dict[str, int]
) -> None:
    before = {name: explorer.picture(name) for name in VIEWS}
    sentence = explorer.live()
    explorer.click(view, row, column)
    selection = explorer.selection
    # A row of M is half as high as the pointer's own precision: the neighbour is as good.
    slack = 1 if explorer.side(view)[0] < 2 else 0
    assert abs(selection["p"] - expected.get("p", selection["p"])) <= slack
    if "element" in expected and not slack:
        assert selection["element"] == expected["element"]
    for name in ("f", "q"):
        assert selection[name] == expected.get(name, selection[name])
    changed = {name for name in VIEWS if explorer.picture(name) != before[name]}
    assert view in changed
    assert len(changed) >= 2
    if {"p", "f"} & expected.keys():
        assert explorer.live() != sentence
    if selection["q"] is not None:
        followed = explorer.ask("store.map.element(store.selection.p, store.selection.q)")
        assert followed == (-1 if selection["element"] is None else selection["element"])


def test_looking_is_not_choosing(explorer: Explorer) -> None:
    explorer.click("output", 2, 2)
    chosen, drawn = explorer.selection, explorer.picture("input")
    explorer.grid("output").hover(position=explorer.point("output", 9, 9))
    explorer.settled()
    assert explorer.selection == chosen
    window = explorer.ask("explorer.palette.window")
    assert near(explorer.lit("input", window), (18, 18, 22, 22), 0.5)
    explorer.page.mouse.move(0, 0)
    explorer.settled()
    assert explorer.picture("input") == drawn


def test_every_channel_has_its_block_of_products_and_looking_at_one_shows_it(
    open_page: OpensPage,
) -> None:
    explorer = open_page(address="#1;preset=figure-3;at=5.1")
    view = explorer.view("arithmetic")
    x = np.reshape(explorer.ask("[...store.input]"), (6, 6, 3))[1:4, 1:4]  # the window
    w = np.reshape(explorer.ask("[...store.filters]"), (3, 3, 3, 3))[1]
    lists = view.get_by_role("list")
    for d, part in enumerate((x * w).sum(axis=(0, 1)).tolist()):
        said = f"{'+ ' if d else ''}channel {d}: {part:g}"
        assert view.get_by_text(said, exact=True).is_visible()
        products = lists.nth(d)
        assert products.get_attribute("aria-label") == f"Products, {said}"
        shown = [float(text) for text in products.locator(".x").all_inner_texts()]
        assert shown == x[..., d].ravel().tolist()  # as the window lies
        tops = products.locator("li").evaluate_all("all => all.map((li) => li.offsetTop)")
        assert len(set(tops)) == 3
        assert tops == sorted(tops)
    assert view.get_by_text(f"= {(x * w).sum():g}", exact=True).count() == 2
    # The input shows the channel of the product that the pointer is on, and then its own again.
    shown = explorer.picture("input", "base")
    lists.nth(2).locator("li").first.hover()
    explorer.settled()
    assert explorer.ask("explorer.strip.input.channel") == 2
    assert explorer.picture("input", "base") != shown
    assert explorer.root.locator("[data-channel='2']").get_attribute("aria-pressed") == "true"
    assert explorer.selection["q"] is None
    explorer.page.mouse.move(0, 0)
    explorer.settled()
    assert explorer.ask("explorer.strip.input.channel") == 0
    assert explorer.picture("input", "base") == shown
    # On a wide page the list is as long as it is; on a narrow one it scrolls, by keyboard too.
    assert view.get_by_role("region", name="Products").count() == 0
    explorer.page.set_viewport_size({"width": 390, "height": 844})
    explorer.settled()
    region = view.get_by_role("region", name="Products")
    region.focus()
    region.press("End")
    explorer.page.wait_for_function("() => document.activeElement.scrollTop > 0")
    assert region.evaluate("e => e.clientHeight") <= 300


def test_keys_move_in_every_view_which_says_where(explorer: Explorer) -> None:
    explorer.click("output", 0, 0)
    for view, keys, names, expected in (
        ("output", "ArrowRight ArrowRight ArrowDown", "p", (15,)),
        ("output", "End", "p", (25,)),
        ("output", "Home ArrowLeft ArrowUp ArrowUp", "p", (0,)),  # it stays inside
        ("M", "ArrowDown ArrowRight", "p q element", (1, 1, 3)),
        ("K", "ArrowDown ArrowRight", "f q", (1, 2)),
        ("Y", "ArrowDown ArrowRight", "p f", (2, 2)),
        ("filters", "ArrowDown", "f q", (2, 6)),
    ):
        explorer.press(view, *keys.split())
        assert explorer.chosen(*names.split()) == expected, (view, keys)
    for view in VIEWS:
        grid = explorer.grid(view)
        assert grid.get_attribute("tabindex") == "0"
        assert grid.get_attribute("aria-label")
        assert min(explorer.cells(view)) >= 1
        cell = explorer.page.locator(f"#{grid.get_attribute('aria-activedescendant')}")
        said = cell.text_content()
        explorer.press(view, "ArrowDown", "ArrowRight")
        assert cell.text_content() != said, view


def test_a_tap_of_the_one_big_matrix_chooses_its_row(explorer: Explorer) -> None:
    explorer.preset("transposed")
    explorer.tab("matrix")
    rows, columns = explorer.cells("T")
    assert (rows, columns) == (8 * 8 * 2, 4 * 4)
    explorer.press("T", "Control+Home", "ArrowDown", "ArrowDown", "ArrowDown")
    assert explorer.chosen("p", "f") == (1, 1)  # rows are (p, f), like the output
    assert str(explorer.live()).startswith("Output row 0, column 1, filter 1")
    explorer.preset("experiment")
    before = explorer.picture("T")
    explorer.click("output", 7, 4)
    assert explorer.picture("T") != before
    weights = explorer.ask("[...store.bigRow()]")
    elements = [element for element, _ in weights]
    assert elements == [i * 28 + j for i in range(14, 18) for j in range(8, 12)]


def test_the_index_map_says_of_each_axis_what_it_reads(explorer: Explorer) -> None:
    """Row 10 of the transposed preset: in rows element 1, in columns a zero between elements."""
    explorer.preset("transposed")
    explorer.ask("store.select({p: 10, f: 0, q: 8})")
    explorer.tab("algorithm")
    rows = explorer.view("map").locator("tbody tr")
    read = dict(row.split("\t", 1) for row in rows.all_inner_texts())
    assert read["i"].endswith("\t1")
    assert read["j"].endswith("between elements: 0")
    assert read["i′ of the filter"].endswith("2 − 2\t0")  # it is turned: the last tap is the first
    assert "a zero" in explorer.view("map").inner_text()
    explorer.preset("dilated")
    explorer.ask("store.select({p: 4, f: 0, q: 1})")  # above the input, in its middle
    explorer.settled()
    read = dict(row.split("\t", 1) for row in rows.all_inner_texts())
    assert read["i"].endswith("padding, 0")
    assert read["j"].endswith("\t4")


@pytest.mark.parametrize("preset", ["dilated", "transposed", "signal", "depthwise"])
def test_the_way_back_lights_all_that_an_input_feeds_and_nothing_else(
    explorer: Explorer, preset: str
) -> None:
    explorer.preset(preset)
    explorer.switch("feeds")
    rows, columns = explorer.cells("input")
    explorer.click("input", rows // 2, columns // 2)
    element = explorer.selection["element"]
    if element is None:  # a zero between the elements of a transposed input
        explorer.press("input", "ArrowRight")
        element = explorer.selection["element"]
    readers = explorer.ask("[...store.map.readers(argument)]", element)
    assert readers
    shape = explorer.ask("[1, ...store.outputSize].slice(-2)")
    positions = {divmod(p, shape[1]) for p, _ in readers}
    lit = explorer.ask("explorer.palette.lit")
    box = explorer.lit("output", lit)
    expected = (
        min(r for r, _ in positions),
        min(c for _, c in positions),
        max(r for r, _ in positions) + 1,
        max(c for _, c in positions) + 1,
    )
    assert near(box, expected, 0.3)
    entries = {p for p, _ in readers}
    top, _, bottom, _ = explorer.lit("M", lit) or (0, 0, 0, 0)
    slack = 4 / explorer.side("M")[0]
    assert abs(top - min(entries)) <= slack
    assert abs(bottom - max(entries) - 1) <= slack
    assert f"through {len(readers)} entr" in explorer.live()


def test_without_the_switch_nothing_of_the_way_back_is_drawn(explorer: Explorer) -> None:
    explorer.click("input", 14, 14)
    plain = explorer.picture("M")
    explorer.switch("feeds")
    assert explorer.picture("M") != plain
    assert "feeds 4 output positions" in explorer.live()
    explorer.switch("feeds", on=False)
    assert explorer.picture("M") == plain
    assert "feeds" not in explorer.live()


ARROWS = {"ArrowUp": (0, -1), "ArrowDown": (0, 1), "ArrowLeft": (-1, -1), "ArrowRight": (-1, 1)}


@pytest.mark.parametrize("preset", PRESETS)
def test_an_arrow_moves_the_window_by_one_in_its_direction_or_stays_at_the_edge(
    explorer: Explorer, preset: str
) -> None:
    explorer.preset(preset)
    size = explorer.ask("store.outputSize")
    last = explorer.ask("store.map.rows - 1")
    moved = 0
    for p, element in ((0, None), (last // 2, "Math.floor(store.input.length / 2)"), (last, None)):
        for key, (axis, by) in ARROWS.items():
            explorer.ask(f"store.select({{p: {p}, element: {element or 'null'}}})")
            before = explorer.ask("store.map.position(store.selection.p)")
            explorer.press("input", key)
            expected = list(before)
            if len(size) > 1 or axis == -1:
                expected[axis] = min(max(before[axis] + by, 0), size[axis] - 1)
            assert explorer.ask("store.map.position(store.selection.p)") == expected, key
            moved += expected != before
    assert moved >= (0 if last == 0 else 2 * len(size))


def test_home_end_and_pages_move_the_window_to_the_edges(explorer: Explorer) -> None:
    where = "store.map.position(store.selection.p)"
    explorer.click("output", 5, 6)
    for key, expected in (
        ("End", [5, 12]),
        ("Home", [5, 0]),
        ("PageDown", [12, 0]),
        ("PageUp", [2, 0]),
        ("Control+End", [12, 12]),
        ("Control+Home", [0, 0]),
    ):
        explorer.press("input", key)
        assert explorer.ask(where) == expected, key


def test_with_shift_an_arrow_moves_the_chosen_element(explorer: Explorer) -> None:
    explorer.click("input", 12, 9)
    assert explorer.selection["element"] == 12 * 28 + 9
    explorer.press("input", "Shift+ArrowRight", "Shift+ArrowDown")
    assert explorer.selection["element"] == 13 * 28 + 10
    explorer.preset("transposed")  # over the zeros between the elements, to the next one
    explorer.ask("store.select({p: 9, element: 5})")
    explorer.press("input", "Shift+ArrowRight")
    assert explorer.selection["element"] == 6
    for _ in range(4):
        explorer.press("input", "Shift+ArrowRight")
    assert explorer.selection["element"] == 7  # at the edge it stays


# --- steps over the positions, tabs, motion ---


def test_steps_and_the_slider_visit_every_position(explorer: Explorer) -> None:
    slider = explorer.control("position")
    for actions, p in (("first", 0), ("forward forward", 2), ("back", 1), ("last", 168)):
        for action in actions.split():
            explorer.act(action)
        assert explorer.chosen("p") == (p,), actions
    assert slider.input_value() == slider.get_attribute("max") == "168"
    slider.fill("12")
    explorer.act("forward")  # at the end of a row it goes on with the next
    assert explorer.chosen("p") == (13,)
    assert "row 1, column 0" in explorer.live()
    slider.press("ArrowRight")
    assert explorer.settled().chosen("p") == (14,)
    assert slider.get_attribute("aria-valuetext") == "output position 1, 1"
    explorer.preset("figure-2")  # fewer positions: the slider follows
    assert slider.get_attribute("max") == "0"


def test_playing_moves_on_its_own_and_stops_when_asked(explorer: Explorer) -> None:
    explorer.enter(speed="fast").act("first").act("play")
    explorer.until("store.selection.p >= 3")
    explorer.act("play")
    p = explorer.selection["p"]
    assert explorer.rest(130).selection["p"] == p  # two steps' time


def test_who_asks_for_less_motion_sees_no_transition(open_page: OpensPage) -> None:
    durations = (
        "() => Math.max(...[...document.querySelectorAll('.convfc-explorer, .convfc-explorer *')]"
        ".flatMap((e) => { const s = getComputedStyle(e);"
        " return [...s.transitionDuration.split(','), ...s.animationDuration.split(',')]; })"
        ".map((text) => parseFloat(text)))"
    )
    moving = open_page()
    assert 0 < moving.page.evaluate(durations) < 1
    still = open_page(reduced_motion="reduce")
    assert still.page.evaluate(durations) < 0.001
    still.act("first").act("forward")
    assert still.chosen("p") == (1,)


def test_tabs_are_worked_with_arrow_keys(explorer: Explorer) -> None:
    explorer.tab("arithmetic")
    tabs = explorer.root.locator("[role=tab][data-tab]")
    assert tabs.evaluate_all("all => all.map((tab) => tab.dataset.tab)") == [*TABS]
    first = explorer.root.locator("[role=tab][data-tab=arithmetic]")
    first.focus()
    for name in [*TABS[1:], TABS[0]]:
        explorer.page.keyboard.press("ArrowRight")
        explorer.settled()
        tab = explorer.root.locator(f"[role=tab][data-tab={name}]")
        assert tab.get_attribute("aria-selected") == "true"
        assert tab.evaluate("tab => tab === document.activeElement")
        panel = explorer.page.locator(f"#{tab.get_attribute('aria-controls')}")
        assert panel.is_visible()
        assert panel.get_attribute("role") == "tabpanel"
        assert explorer.ask("store.view.tab") == name
    explorer.page.keyboard.press("End")
    explorer.settled()
    assert explorer.ask("store.view.tab") == "code"
