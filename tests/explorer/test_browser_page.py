"""How the page stands and is worked: themes, accessibility, the keyboard."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
from browser import WEB, lacking

if TYPE_CHECKING:
    from browser import Explorer, OpensPage
    from playwright.sync_api import Locator

WIDE: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "has_touch": True,
    "is_mobile": True,
    "device_scale_factor": 2,
}


def has_focus(element: Locator) -> bool:
    """Return whether an element has the focus."""
    return element.evaluate("element => element === document.activeElement")


def press(explorer: Explorer, *keys: str) -> None:
    """Press keys, wherever the focus is."""
    for key in keys:
        explorer.page.keyboard.press(key)
    explorer.settled()


# --- where things are ---


def test_wide_the_page_is_a_row_that_is_seen_at_once(open_page: OpensPage) -> None:
    explorer = open_page(**WIDE)
    root = explorer.root.bounding_box()
    assert (root["x"], root["y"], root["width"]) == (0, 0, 1280)
    assert root["height"] >= 800
    views = ("input", "M", "K", "Y", "output", "transport")
    boxes = [explorer.view(view).bounding_box() or {} for view in views]
    assert max(box["y"] + box["height"] for box in boxes) <= 800
    left = [box["x"] for box in boxes[:-1]]
    assert left == sorted(left)
    top = [box["y"] for box in boxes[:-1]]
    assert max(top) - min(top) < 150


def test_on_a_phone_it_is_a_column_above_a_transport_that_stays(open_page: OpensPage) -> None:
    explorer = open_page(**PHONE)
    first, second, *_, last = [
        explorer.view(view).bounding_box() or {} for view in ("input", "M", "K", "Y", "output")
    ]
    assert first["y"] + first["height"] <= second["y"] + 1
    assert second["y"] < last["y"]
    for share in (0, 0.5, 1):
        explorer.page.evaluate(
            "(share) => scrollTo(0, share * document.documentElement.scrollHeight)", share
        )
        explorer.settled()
        box = explorer.view("transport").bounding_box()
        assert 700 < box["y"] + box["height"] <= 845
    explorer.act("first").act("forward")
    assert explorer.chosen("p") == (1,)


# --- accessibility ---


def violations(explorer: Explorer, where: str) -> list[str]:
    found = explorer.page.evaluate(
        "([where, rules]) => axe.run(where, {runOnly: {type: 'tag', values: rules}})",
        [where, ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]],
    )
    assert found["passes"], where
    return [
        f"{violation['id']}: {node['html'][:160]} {node['failureSummary'][:300]}"
        for violation in found["violations"]
        for node in violation["nodes"]
    ]


@pytest.mark.parametrize(
    ("scheme", "size"), [("light", WIDE), ("dark", PHONE)], ids=["light-1280", "dark-390"]
)
def test_axe_finds_nothing(open_page: OpensPage, scheme: str, size: dict[str, Any]) -> None:
    axe = WEB / "node_modules/axe-core/axe.min.js"
    if not axe.exists():
        lacking("axe-core is not there; remedy: npm ci in src/convfc/explorer/web")
    # The policy of the page would refuse axe's own script.
    explorer = open_page(bypass_csp=True, color_scheme=scheme, **size)
    explorer.page.add_script_tag(content=axe.read_text(encoding="utf-8"))
    found = {}
    for tab in explorer.panels():
        found[tab] = violations(explorer, "[role=tabpanel]:not([hidden])")
    explorer.tab("algorithm").act("forward")
    found["film"] = violations(explorer, "[role=tabpanel]:not([hidden])")
    explorer.preset("depthwise").switch("feeds").click("input", 3, 3)
    explorer.enter(kernel__0=40)
    explorer.act("draw")
    found["page with a problem, and a pad"] = violations(explorer, ".convfc-explorer")
    assert {where: what for where, what in found.items() if what} == {}


FOCUSED = """() => {
  const e = document.activeElement;
  const box = e.getBoundingClientRect();
  const style = getComputedStyle(e);
  return {
    name: e.name || e.dataset.action || e.dataset.preset || e.dataset.tab
      || e.getAttribute('aria-label') || e.textContent.slice(0, 30),
    where: e.closest('[data-view]')?.dataset.view ?? '',
    body: e === document.body,
    ring: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) > 0
      || style.boxShadow !== 'none' || e.matches('.unseen'),
    role: e.getAttribute('role') ?? e.localName,
    order: [box.top, box.left],
  };
}"""


def test_tab_visits_everything_once_and_shows_where_it_is(explorer: Explorer) -> None:
    """Few stops lead to the picture, and groups have one each."""
    page = explorer.page
    page.evaluate("() => { document.activeElement.blur(); scrollTo(0, 0); }")
    visited: list[dict[str, Any]] = []
    for _ in range(200):
        page.keyboard.press("Tab")
        now = page.evaluate(FOCUSED)
        if now["body"]:
            break
        visited.append(now)
    assert [place["name"] for place in visited if not place["ring"]] == []
    where = [place["where"] for place in visited]
    for view in ("controls", "input", "M", "K", "Y", "output", "transport"):
        assert view in where, view
    # In the order of reading: settings are one block, then the equation from left to right.
    strip = [view for view in where if view in {"input", "M", "K", "Y", "output"}]
    assert list(dict.fromkeys(strip)) == ["input", "M", "K", "Y", "output"]
    grids = [place for place in visited if place["role"] == "grid"]
    assert len(grids) == len({place["where"] for place in grids})  # one stop each, arrows inside
    assert sum(place["role"] == "button" and place["where"] == "" for place in visited) <= 12
    names = [place["name"] for place in visited]
    assert names.index("position") > names.index("kernel-0")
    assert names[0] == "Skip to the picture"
    assert sum(place["role"] == "radio" for place in visited) == 2  # presets, and digits
    assert where.index("input") <= 34


def test_there_is_one_live_region_and_one_first_heading(explorer: Explorer) -> None:
    live = explorer.root.locator("[data-live]")
    assert live.count() == 1
    assert live.get_attribute("aria-live") == "polite"
    headings = explorer.page.locator("h1, h2, h3").evaluate_all(
        "all => all.map((one) => Number(one.localName[1]))"
    )
    assert headings.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(headings))
    assert explorer.page.evaluate("() => document.documentElement.lang") == "en"
    assert explorer.page.title()


# --- the keyboard ---


@pytest.mark.parametrize("width", [1280, 390])
def test_the_first_stop_skips_to_the_picture(open_page: OpensPage, width: int) -> None:
    explorer = open_page(viewport={"width": width, "height": 800}, address="#1;preset=figure-6")
    link = explorer.root.get_by_role("link", name="Skip to the picture")
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
    press(explorer, "Control+Home", "Alt+End")  # shortcuts of the browser, and no moves
    assert checked(group) == [5]
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
    explorer.edit("input", 14, 14, "5")  # it is not a digit of the library any more
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
