"""The page by keyboard: few stops to the picture, groups of one stop, a guide that closes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from browser import Explorer
    from playwright.sync_api import Locator

FEW = 34
"""Presses of Tab from the top of the page to the input grid, at most."""


def has_focus(element: Locator) -> bool:
    """Return whether an element has the focus."""
    found: bool = element.evaluate("element => element === document.activeElement")
    return found


def press(explorer: Explorer, *keys: str) -> None:
    """Press keys, wherever the focus is."""
    for key in keys:
        explorer.page.keyboard.press(key)
    explorer.settled()


def skip_link(explorer: Explorer) -> Locator:
    return explorer.root.get_by_role("link", name="Skip to the picture")


# --- stops ---


def test_few_stops_lead_to_the_picture(explorer: Explorer) -> None:
    grid = explorer.grid("input")
    press(explorer, "Tab")
    assert has_focus(skip_link(explorer))
    presses = 1
    while presses < FEW and not has_focus(grid):
        press(explorer, "Tab")
        presses += 1
    assert has_focus(grid)


@pytest.mark.parametrize("width", [1280, 820, 390])
def test_the_first_stop_skips_to_the_picture(
    open_page: Callable[..., Explorer], width: int
) -> None:
    explorer = open_page(viewport={"width": width, "height": 800}, address="#1;preset=figure-6")
    link = skip_link(explorer)
    on_top = (
        "link => { const { left, top, width, height } = link.getBoundingClientRect();"
        " return document.elementFromPoint(left + width / 2, top + height / 2) === link }"
    )
    assert not link.evaluate(on_top)  # only with the focus it is seen
    press(explorer, "Tab")
    assert has_focus(link)
    assert link.evaluate(on_top)
    press(explorer, "Enter")
    assert has_focus(explorer.grid("input"))
    before = explorer.selection
    press(explorer, "Control+End")
    assert explorer.selection != before
    assert explorer.ask("location.hash").startswith("#1;")  # the address is still the state's
    assert explorer.ask("store.preset") == "figure-6"


def stops(group: Locator) -> list[int]:
    """Return at which radios of a group Tab stops."""
    found: list[int] = group.evaluate(
        "group => [...group.children].flatMap((one, at) => (one.tabIndex < 0 ? [] : [at]))"
    )
    return found


def checked(group: Locator) -> list[int]:
    """Return which radios of a group are checked."""
    found: list[int] = group.get_by_role("radio").evaluate_all(
        "all => all.flatMap((one, at) => one.getAttribute('aria-checked') === 'true' ? [at] : [])"
    )
    return found


def test_arrow_keys_choose_a_digit(explorer: Explorer) -> None:
    group = explorer.root.get_by_role("radiogroup", name="A digit as the input")
    count = group.get_by_role("radio").count()
    assert count == group.locator(":scope > *").count() == 20
    assert (stops(group), checked(group)) == ([5], [5])  # the digit of the experiment
    group.get_by_role("radio", checked=True).focus()
    for key, expected in [
        ("ArrowRight", 6),
        ("ArrowDown", 7),
        ("ArrowLeft", 6),
        ("ArrowUp", 5),
        ("End", count - 1),
        ("ArrowRight", 0),
        ("ArrowLeft", count - 1),
        ("Home", 0),
    ]:
        press(explorer, key)
        assert has_focus(group.get_by_role("radio").nth(expected)), key
        assert (stops(group), checked(group)) == ([expected], [expected]), key
        assert explorer.ask("store.digit") == expected, key
    explorer.edit("input", 14, 14, "5")  # it is no digit of the library any more
    assert (stops(group), checked(group)) == ([0], [])


def test_arrow_keys_move_among_presets_and_enter_or_space_chooses(explorer: Explorer) -> None:
    group = explorer.root.get_by_role("radiogroup", name="Start from")
    radios = group.get_by_role("radio")
    assert radios.count() == group.locator(":scope > *").count()
    explorer.edit("input", 3, 3, "7")
    (here,) = stops(group)
    assert checked(group) == [here]
    radios.nth(here).focus()
    before = explorer.state
    press(explorer, "ArrowRight")
    assert has_focus(radios.nth(here + 1))
    assert stops(group) == [here + 1]
    explorer.ask("explorer.controls.update()")  # whatever else is drawn again, the focus stays
    assert stops(group) == [here + 1]
    assert explorer.state == before  # what was edited is still there
    press(explorer, "End", "ArrowDown", "Home", "ArrowUp", "ArrowUp")
    assert has_focus(radios.nth(radios.count() - 2))
    press(explorer, "Tab", "Shift+Tab")
    assert has_focus(radios.nth(here))  # Tab comes back to the one that is chosen
    press(explorer, "ArrowRight", "Enter")
    assert checked(group) == stops(group) == [here + 1]
    assert explorer.ask("store.preset") == radios.nth(here + 1).get_attribute("data-preset")
    assert has_focus(radios.nth(here + 1))
    press(explorer, "ArrowLeft", "Space")
    assert checked(group) == [here]
    assert explorer.ask("store.preset") == "experiment"


def test_a_shortcut_of_the_browser_is_not_a_move(explorer: Explorer) -> None:
    group = explorer.root.get_by_role("radiogroup", name="A digit as the input")
    group.get_by_role("radio", checked=True).focus()
    press(explorer, "Control+Home", "Alt+End")
    assert checked(group) == [5]


# --- the guide ---


def test_the_guide_is_the_stop_after_the_skip_link(open_page: Callable[..., Explorer]) -> None:
    explorer = open_page(guided=True)
    press(explorer, "Tab")
    assert has_focus(skip_link(explorer))
    press(explorer, "Tab")
    assert explorer.view("guide").evaluate("guide => guide.contains(document.activeElement)")
    press(explorer, "Enter")  # its first button closes it
    assert explorer.view("guide").is_hidden()
    assert has_focus(skip_link(explorer))  # where the focus was


def test_closing_the_guide_brings_the_focus_back(explorer: Explorer) -> None:
    button, guide = explorer.root.locator("[data-action=guide]"), explorer.view("guide")
    for close in ("Escape", "done"):
        button.focus()
        press(explorer, "Enter")
        assert guide.evaluate("guide => guide.contains(document.activeElement)")
        if close == "Escape":
            press(explorer, "Escape")
        else:
            for _ in range(5):
                explorer.act("guide-next")
        assert guide.is_hidden()
        assert has_focus(button)


def test_escape_closes_the_guide_from_anywhere(open_page: Callable[..., Explorer]) -> None:
    explorer = open_page(guided=True)
    guide, grid = explorer.view("guide"), explorer.grid("input")
    assert guide.is_visible()
    press(explorer, "Escape")  # nothing has the focus yet
    assert guide.is_hidden()
    explorer.act("guide")
    grid.focus()
    press(explorer, "Escape")
    assert guide.is_hidden()
    assert has_focus(grid)  # it was not in the guide, so it stays
    explorer.act("guide")
    explorer.control("stride-0").focus()
    press(explorer, "Escape")
    assert guide.is_hidden()
    assert has_focus(explorer.control("stride-0"))


def test_escape_closes_one_thing_at_a_time(open_page: Callable[..., Explorer]) -> None:
    explorer = open_page(guided=True)
    guide = explorer.view("guide")
    explorer.grid("K").focus()
    press(explorer, "Enter")
    editor = explorer.view("K").locator("input[name=cell]")
    assert has_focus(editor)
    press(explorer, "Escape")
    assert editor.count() == 0
    assert guide.is_visible()
    explorer.root.locator("[data-action=draw]").focus()
    press(explorer, "Enter")
    assert explorer.view("pad").is_visible()
    press(explorer, "Escape")
    assert explorer.view("pad").is_hidden()
    assert guide.is_visible()
    press(explorer, "Escape")
    assert guide.is_hidden()


@pytest.mark.parametrize("size", [(1280, 720), (820, 1180), (390, 844)], ids=str)
def test_the_guide_stands_beside_what_it_is_about(
    open_page: Callable[..., Explorer], size: tuple[int, int]
) -> None:
    width, height = size
    explorer = open_page(guided=True, viewport={"width": width, "height": height})
    for step, view in enumerate(("input", "M", "K", "output")):
        guide, about = explorer.view("guide").bounding_box(), explorer.view(view).bounding_box()
        assert guide is not None
        assert about is not None
        assert guide["x"] >= 0
        assert guide["x"] + guide["width"] <= width
        if width > 780:  # below what it is about, else at the bottom of the screen
            assert guide["y"] >= about["y"] + about["height"]
        else:
            assert height / 2 < guide["y"] < guide["y"] + guide["height"] < height
        if step < 3:
            explorer.act("guide-next")
