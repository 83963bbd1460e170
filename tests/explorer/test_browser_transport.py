"""Step, play and scrub over the output positions; tabs and motion."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from browser import Explorer


def test_steps_visit_every_position(explorer: Explorer) -> None:
    explorer.act("first")
    assert explorer.chosen("p") == (0,)
    explorer.act("forward").act("forward")
    assert explorer.chosen("p") == (2,)
    explorer.act("back")
    assert explorer.chosen("p") == (1,)
    explorer.act("last")
    assert explorer.chosen("p") == (168,)
    assert explorer.control("position").input_value() == "168"


def test_a_step_at_the_end_of_a_row_goes_on_with_the_next(explorer: Explorer) -> None:
    explorer.act("first")
    for _ in range(13):
        explorer.act("forward")
    assert explorer.chosen("p") == (13,)
    assert "row 1, column 0" in explorer.live()


def test_scrubbing_follows_the_thumb(explorer: Explorer) -> None:
    slider = explorer.control("position")
    assert slider.get_attribute("max") == "168"
    slider.fill("84")
    explorer.settled()
    assert explorer.chosen("p") == (84,)
    slider.press("ArrowRight")
    explorer.settled()
    assert explorer.chosen("p") == (85,)
    assert slider.get_attribute("aria-valuetext") or slider.get_attribute("aria-label")
    explorer.preset("figure-2")  # fewer positions: the slider follows
    assert slider.get_attribute("max") == "0"


def test_playing_moves_on_its_own_and_stops_when_asked(explorer: Explorer) -> None:
    explorer.act("first")
    explorer.act("play")
    explorer.page.wait_for_function(
        "() => document.querySelector('.convfc-explorer').explorer.store.selection.p >= 3"
    )
    explorer.act("play")
    p = explorer.selection["p"]
    explorer.page.wait_for_timeout(700)
    assert explorer.selection["p"] == p


def test_who_asks_for_less_motion_sees_no_transition(
    open_page: Callable[..., Explorer],
) -> None:
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
    names = ["arithmetic", "map", "matrix", "backward", "code"]
    assert (
        explorer.page.evaluate(
            "() => [...document.querySelectorAll('[role=tab][data-tab]')].map((t) => t.dataset.tab)"
        )
        == names
    )
    first = explorer.root.locator("[role=tab][data-tab=arithmetic]")
    first.focus()
    for name in [*names[1:], names[0]]:
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
