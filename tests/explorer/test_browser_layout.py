"""Room at every width, colours that can be seen and read, and what is drawn on return."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from browser import ANNOUNCED, PRESETS, TABS

from convfc import ConvGeometry
from convfc.explorer.state import explorer_state

if TYPE_CHECKING:
    from browser import Explorer, OpensPage

OTHERS: dict[str, dict[str, Any]] = {
    "the paper's 128 filters": {
        "size": [28, 28],
        "filters": 128,
        "kernel": [4, 4],
        "stride": [2, 2],
    },
    "64 filters of a photograph": {
        "size": [56, 56],
        "channels": 3,
        "filters": 64,
        "kernel": [7, 7],
        "stride": [2, 2],
        "padding": [[3, 3], [3, 3]],
    },
    "64 channels": {"size": [14, 14], "channels": 64, "filters": 64, "kernel": [3, 3]},
    "a long signal": {"axes": 1, "size": [224], "filters": 8, "kernel": [64]},
    "one column": {"size": [200, 1], "filters": 5, "kernel": [9, 1]},
    "one weight": {"size": [20, 20], "filters": 1, "kernel": [1, 1]},
}
MANY = [name for name in OTHERS if "64" in name or "128" in name]
STATES = (*PRESETS, *OTHERS)
NARROWEST, WIDEST, STEP = 320, 2000, 17
SCHEMES = pytest.mark.parametrize("scheme", ["light", "dark"])


# What is wrong with the page as it stands, in words.
FAULTS = """(width) => {
  const { explorer } = document.querySelector('.convfc-explorer');
  const found = [];
  const wide = document.documentElement.scrollWidth;
  if (wide > width) found.push(`the page is ${wide} wide`);
  const { strip, tabs } = explorer;
  const { panel, x, y } = tabs.views.matrix;
  const { dY, dK, dX } = tabs.views.backward;
  const others = [panel, x, y, dY, dK.panel, dX];
  for (const { grid, options } of [...strip.views.map((view) => view.panel), ...others]) {
    if (!grid.element.offsetParent) continue; // in a tab that is closed
    const { rows, columns } = grid.source;
    for (const [side, count] of [[grid.width, columns], [grid.height, rows]])
      if (side < 60 && side / count < 3) found.push(`${options.view}: ${count} cells on ${side}`);
  }
  for (const card of document.querySelectorAll('.card')) {
    const { left, right } = card.getBoundingClientRect();
    for (const node of card.querySelectorAll('*')) {
      const box = node.getBoundingClientRect();
      const scrolls = '.unseen, [role=tablist], .scroll, pre, .sums[tabindex] *';
      if (!box.width || node.closest(scrolls)) continue;
      if (box.left < left - 1 || box.right > right + 1)
        found.push(`${node.localName}.${node.className} is outside its card`);
    }
  }
  return found;
}"""

# Width of M, of Y and of all grids in the row, and the layout of the page.
WIDTHS = """({ M: explorer.strip.M.panel.grid.width, Y: explorer.strip.Y.panel.grid.width,
  all: explorer.strip.views.filter((view) => view !== explorer.strip.filters)
    .reduce((sum, { panel }) => sum + panel.grid.width, 0),
  layout: explorer.root.dataset.width })"""

SMALL = """() => [...document.querySelectorAll('.convfc-explorer :is(button, select, input)')]
  .filter((e) => e.offsetParent && !e.matches('.unseen'))
  .map((e) => [e.name || e.getAttribute('aria-label') || e.textContent, e.getBoundingClientRect()])
  .filter(([, box]) => box.height && Math.min(box.width, box.height) < 24)
  .map(([name, box]) => `${name} ${box.width} x ${box.height}`)"""


def start(explorer: Explorer, state: str) -> Explorer:
    """Show one of the states: a preset, or settings."""
    if state in PRESETS:
        return explorer.preset(state)
    explorer.ask("store.load({ settings: argument, view: store.view })", OTHERS[state])
    return explorer.settled()


def resize(explorer: Explorer, width: int, height: int = 800) -> Explorer:
    explorer.page.set_viewport_size({"width": width, "height": height})
    return explorer.settled()


@pytest.mark.parametrize("state", STATES)
def test_every_grid_can_be_seen_at_every_width(explorer: Explorer, state: str) -> None:
    """The states share the widths among them, and the tabs; many filters leave M its part."""
    start(explorer, state)
    first = NARROWEST + STEP * STATES.index(state)
    layouts = set()
    tabs = itertools.cycle(TABS)
    for width in [NARROWEST, NARROWEST, *range(first, WIDEST + 1, STEP * len(STATES))]:
        resize(explorer, width).tab(next(tabs))
        assert explorer.page.evaluate(FAULTS, width) == [], width
        side = explorer.ask(WIDTHS)
        layouts.add(side["layout"])
        if state in MANY and side["layout"] != "narrow":
            share = 0.33 if side["layout"] == "wide" else 0.28
            assert side["M"] >= max(140, share * side["all"]), width
    assert layouts == {"narrow", "middle", "wide"}


def test_a_pixel_more_does_not_take_m_away(explorer: Explorer) -> None:
    """Where the layout changes: from a column to a row, and to a row beside the settings."""

    def at(width: int) -> dict[str, Any]:
        return resize(explorer, width).ask(WIDTHS)

    def first(low: int, high: int, layout: str) -> int:
        """Return the width from which the page has a layout: it has at `high`, not at `low`."""
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if at(middle)["layout"] == layout else (middle, high)
        return high

    row, beside = first(NARROWEST, 1000, "middle"), first(1000, WIDEST, "wide")
    for width in (row, row + 1, row + 20, beside - 1, beside, beside + 1):
        assert at(width)["M"] > 90, width
    assert at(beside)["M"] > 0.5 * at(beside - 1)["M"]


@pytest.mark.parametrize(("width", "height"), [(320, 700), (844, 390), (820, 1180), (1280, 800)])
def test_the_page_of_any_device_can_be_pressed(
    open_page: OpensPage, width: int, height: int
) -> None:
    explorer = open_page(viewport={"width": width, "height": height}, has_touch=True)
    assert explorer.settled().page.evaluate(FAULTS, width) == []
    assert explorer.page.evaluate(SMALL) == []  # WCAG 2.2, target size (minimum)
    explorer.enter(size__0=224, size__1=224, kernel__0=1, kernel__1=1, stride__0=1, stride__1=1)
    explorer.act("last")
    assert "of 50176" in explorer.view("transport").inner_text().replace("\n", " ")
    assert explorer.page.evaluate(FAULTS, width) == []


@pytest.mark.parametrize("width", [320, 1280])
def test_a_layer_with_a_long_name_is_no_wider(open_page: OpensPage, width: int) -> None:
    name = "backbone.encoder.stages_with_a_long_name.2.blocks." * 3
    geometry = ConvGeometry(1, 1, (3, 3))
    state = explorer_state(np.ones((1, 3, 3, 1)), 3, geometry, title=name)
    explorer = open_page(state, viewport={"width": width, "height": 800})
    explorer.enter(stride__0=2)
    assert explorer.page.evaluate(FAULTS, width) == []
    outside = (
        "(() => { const { right } = explorer.controls.presets.getBoundingClientRect();"
        " return [...document.querySelectorAll('.title, .presets, [data-action=restore]')].filter("
        "(one) => one.getBoundingClientRect().right > innerWidth + 20 || one.scrollWidth >"
        " one.clientWidth + 1 && getComputedStyle(one).overflowX === 'visible').length; })()"
    )
    assert explorer.ask(outside) == 0
    tile = explorer.root.locator("[data-preset=own]").bounding_box()
    assert tile["width"] <= 240


# --- forced colours --------------------------------------------------------------------------

PRESSED = {
    "figure-3": ("[name=flip]", ".chip[data-filter='1']", ".plane[data-filter='1']",
                 ".chip[data-channel='1']", "[data-tab=algorithm]", "[data-preset=dilated]"),
    "experiment": ("[data-digit='3']",),
}  # fmt: skip


@SCHEMES
def test_with_forced_colours_what_is_pressed_looks_so(open_page: OpensPage, scheme: str) -> None:
    explorer = open_page(forced_colors="active", color_scheme=scheme, reduced_motion="reduce")

    def picture(selector: str) -> bytes:
        """Return what is inside its border: another border alone is too little to be seen."""
        explorer.page.mouse.move(0, 0)
        explorer.page.evaluate("() => document.activeElement.blur()")
        explorer.root.locator(selector).scroll_into_view_if_needed()
        box = explorer.settled().root.locator(selector).bounding_box()
        width, height = box["width"] - 16, box["height"] - 10
        return explorer.page.screenshot(
            clip={"x": box["x"] + 8, "y": box["y"] + 5, "width": width, "height": height}
        )

    for preset, selectors in PRESSED.items():
        for selector in selectors:
            explorer.preset(preset)
            button = explorer.root.locator(selector)
            off = picture(selector)
            button.click()
            assert picture(selector) != off, selector
            colours = button.evaluate(
                "e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor]"
            )
            assert contrast(*map(channels, colours)) >= 4.5, selector


def test_with_forced_colours_arrows_the_scale_and_knobs_are_drawn(open_page: OpensPage) -> None:
    explorer = open_page(forced_colors="active", reduced_motion="reduce")
    for part in (".arrow", ".bar"):
        drawn = explorer.root.locator(part).first
        before = drawn.screenshot()
        drawn.evaluate("e => { e.style.backgroundImage = 'none'; }")
        assert drawn.screenshot() != before, part
    explorer.control("flip").scroll_into_view_if_needed()
    box = explorer.control("flip").bounding_box()
    knob, beside = [
        explorer.page.screenshot(
            clip={"x": box["x"] + x, "y": box["y"] + 10, "width": 4, "height": 4}
        )
        for x in (10, 28)
    ]
    assert knob != beside


# --- numbers on canvases ---------------------------------------------------------------------


def channels(colour: str) -> list[float]:
    """Return red, green and blue of a colour as the browser writes it."""
    return [float(part) for part in colour.strip("rgba()").split(",")[:3]]


def luminance(colour: list[float]) -> float:
    """Return the relative luminance, as WCAG defines it."""
    linear = [v / 255 / 12.92 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: list[float], other: list[float]) -> float:
    """Return the contrast of two colours, as WCAG defines it."""
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def blended(below: list[float], above: list[float], alpha: float) -> list[float]:
    return [a + (b - a) * alpha for a, b in zip(below, above, strict=True)]


# In each cell that shows a number: what is behind it (the most frequent colour of its middle), and
# the colour of the middle that differs most from that, as [r, g, b] each.
NUMBERS = """([view, paper]) => {
  const { explorer } = document.querySelector('.convfc-explorer');
  const { grid } = (view === 'T' ? explorer.tabs.views.matrix : explorer.strip[view]).panel;
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [grid.base.width, grid.base.height];
  const context = canvas.getContext('2d', { willReadFrequently: true });
  context.fillStyle = paper;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(grid.base, 0, 0);
  context.drawImage(grid.overlay, 0, 0);
  const { r0, r1, c0, c1 } = grid.visible;
  const found = [];
  for (let r = r0; r <= r1; r++) for (let c = c0; c <= c1; c++) {
    const { x, y, w, h } = grid.box(r, c);
    if (x < 5 || y < 5 || x + w > grid.width + 5 || y + h > grid.height + 5) continue;
    const box = [x + w / 2 - 5, y + h / 2 - 4, 10, 8].map((v) => Math.round(v * grid.ratio));
    const { data } = context.getImageData(...box);
    const count = new Map();
    for (let at = 0; at < data.length; at += 4) {
      const key = data.slice(at, at + 3).join();
      count.set(key, (count.get(key) ?? 0) + 1);
    }
    const all = [...count].sort((a, b) => b[1] - a[1]).map(([key]) => key.split(',').map(Number));
    const far = (a) => Math.abs(a[0] - all[0][0]) + Math.abs(a[1] - all[0][1])
      + Math.abs(a[2] - all[0][2]);
    found.push([all[0], all.reduce((a, b) => (far(b) > far(a) ? b : a)), r, c]);
  }
  return found;
}"""


LOOKS = (
    ("figure-3", "input", "store.show({ channel: 1 })"),
    ("dilated", "input", "store.select({ p: 10 })"),
    ("dilated", "output", "(store.show({ feeds: true }), store.select({ element: 30 }))"),
    ("transposed", "input", "store.select({ p: 20 })"),
    ("depthwise", "M", "(explorer.strip.M.panel.grid.zoomBy(4, [90, 60]), store.select({f: 1}))"),
    ("figure-2", "T", "(store.show({ tab: 'matrix' }), store.select({ element: 4 }))"),
    ("signal", "T", "store.select({ element: 5 })"),
)


@SCHEMES
def test_every_number_can_be_read(open_page: OpensPage, scheme: str) -> None:
    wide = {"width": 1600, "height": 900}
    explorer = open_page(color_scheme=scheme, device_scale_factor=3, viewport=wide)
    paper = explorer.ask("explorer.palette.paper")
    for preset, view, look in LOOKS:
        explorer.preset(preset).ask(f"({look}, 0)")
        numbers = explorer.settled().page.evaluate(NUMBERS, [view, paper])
        if view == "T":  # most of its cells are empty
            numbers = [number for number in numbers if number[0] != number[1]]
        assert numbers, look
        bad = [
            (row, column, round(contrast(ground, ink), 2))
            for ground, ink, row, column in numbers
            if contrast(ground, ink) < 4.45  # of rounded colours
        ]
        assert bad == [], look


@SCHEMES
def test_on_every_colour_of_the_scale_there_is_a_colour_to_write(
    open_page: OpensPage, scheme: str
) -> None:
    explorer = open_page(color_scheme=scheme)
    names = explorer.ask("({ window: explorer.palette.window, paper: explorer.palette.paper })")
    for name, alpha in [("window", 0), ("window", 0.13), ("window", 0.26), ("paper", 0.55)]:
        tint = {"colour": names[name], "alpha": alpha} if alpha else None
        colours = explorer.ask(
            "Array.from({ length: 511 }, (_, i) => [0, 1, 2].map((n) => n === 0"
            " ? explorer.palette.css(i - 255, 255)"
            " : explorer.palette.on(i - 255, 255, argument, n === 2)))",
            tint,
        )
        above = explorer.ask(
            "((context) => { context.fillStyle = argument; context.fillRect(0, 0, 1, 1);"
            " return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3); })"
            "(document.createElement('canvas').getContext('2d'))",
            names[name],
        )
        for cell, *inks in colours:
            ground = [float(round(part)) for part in blended(channels(cell), above, alpha)]
            for ink in inks:
                written = [float(int(ink[at : at + 2], 16)) for at in (1, 3, 5)]
                assert contrast(ground, written) >= 4.5, (cell, ink, tint)


@SCHEMES
def test_what_is_not_finite_has_a_colour(open_page: OpensPage, scheme: str) -> None:
    explorer = open_page(color_scheme=scheme)
    found = explorer.ask(
        "['css', 'on', 'packed'].map((ask) => [[1, 1], [Infinity, 1], [Infinity, Infinity],"
        " [-1, 1], [-Infinity, 1], [-Infinity, Infinity], [0, 1], [NaN, 1], [NaN, NaN], [0, 0],"
        " [1, Infinity], [1, NaN]].map((pair) => explorer.palette[ask](...pair)))"
    )
    for highest, *same in found:
        assert same[:2] == [highest] * 2  # as the largest
        assert same[3:5] == [same[2]] * 2  # as the smallest
        assert same[6:] == [same[5]] * len(same[6:])  # nothing
    css = found[0]
    assert len({css[0], css[3], css[6]}) == 3


# --- how many cells are evaluated for a picture ----------------------------------------------

# Draws a source of so many rows and columns in M's grid: how many cells it asked for, and of how
# many rows and columns.
ASKED = """((given) => {
  const { grid } = explorer.strip.M.panel;
  const [asked, down, across] = [[], new Set(), new Set()];
  const value = (r, c) => {
    asked.push(0);
    down.add(r);
    across.add(c);
    return Math.sin(r * given.columns + c);
  };
  grid.show({ ...given, largest: 1, value }, explorer.palette);
  grid.fit(...(given.cell ?? [400 / given.columns, 300 / given.rows]));
  grid.draw();
  return [asked.length, down.size, across.size];
})(argument)"""


def test_a_picture_evaluates_no_more_cells_than_its_source_allows(explorer: Explorer) -> None:
    for rows, columns, cells in (
        (300, 200, 1000),
        (200, 300, 60_000),
        (5000, 2, 100),
        (1, 4000, 10),
        (400, 400, 1),
    ):
        grid = {"rows": rows, "columns": columns}
        asked, down, across = explorer.ask(ASKED, {**grid, "cells": cells})
        pixels = min(rows, 300), min(columns, 400)
        assert 0 < asked == down * across <= cells
        if min(down, across) > 10:
            assert down / across == pytest.approx(pixels[0] / pixels[1], rel=0.1)
        assert explorer.ask(ASKED, grid) == [pixels[0] * pixels[1], *pixels]
    # Where more cells are seen than are evaluated, no numbers are written.
    for cells in (24, 25):
        asked, *_ = explorer.ask(ASKED, {"rows": 5, "columns": 5, "cell": [40, 30], "cells": cells})
        assert (asked <= cells) == (cells == 24)
        assert (explorer.ask("explorer.strip.M.panel.grid.font") is None) == (cells == 24)


def test_a_line_of_a_source_has_the_cells_that_are_asked_for(open_page: OpensPage) -> None:
    many = {"size": [150, 150], "channels": 3, "filters": 128, "kernel": [5, 5]}
    explorer = open_page({"settings": many})
    assert explorer.ask("store.Y") is None  # so it is asked for line by line
    assert explorer.ask(
        "(({ line, value }) => [[0], [5, 3], [127, 64, 1]].every((along) =>"
        " JSON.stringify([...line(7, along)]) === JSON.stringify(along.map((c) => value(7, c)))))"
        "(explorer.strip.Y.panel.grid.source)"
    )
    # Every nth of more than there are pixels; and the same picture without lines.
    side = explorer.ask(WIDTHS)
    for view, columns in (("M", 75), ("Y", 128)):
        assert explorer.ask(f"store.{view}") is None
        assert side[view] < columns or view == "M"
        whole = explorer.picture(view, "base")
        explorer.ask(
            f"((grid) => {{ delete grid.source.line; grid.draw(); }})"
            f"(explorer.strip.{view}.panel.grid)"
        )
        assert explorer.picture(view, "base") == whole


# --- out of sight: a notebook's cell that is scrolled away or collapsed, an inactive tab ---------

CHANGES = {
    "selection": "store.select({ p: 40, f: 1, q: 3 })",
    "number": "store.edit('input', 200, 3.5)",
    "settings": "store.set({ stride: [3, 2] })",
    "theme": "explorer.theme.choose('dark')",
    "tab": "store.show({ tab: 'matrix' })",
    "feeds": "store.show({ feeds: true })",
    "gradient": "(store.show({ tab: 'backward' }), store.startGradient('ones'))",
    "problem": "store.set({ stride: [0, 1] })",
    "state": "store.load({ title: 'Another one', settings: { size: [6, 5], kernel: [2, 3],"
    " padding: [[1, 1], [0, 0]], bias: true }, filters: [1, -2, 3, -4, 5, -6] })",
    "preset": "root.querySelector('[data-preset=figure-2]').click()",
}


# How it goes away and comes back. The last one is over before a frame is drawn, as when JupyterLab
# changes its theme.
WAYS = {
    "hidden": "parent.style.display = 'none'; await frames(); CHANGE; await frames();"
    " parent.style.display = '';",
    "removed": "parent.remove(); await frames(); CHANGE; await frames(); body.prepend(parent);",
    "removed for a moment": "parent.remove(); CHANGE; body.prepend(parent);",
}


# Every element with its attributes, what controls hold, and the pixels of every canvas.
SHOWN = """({
  html: explorer.root.outerHTML,
  values: [...explorer.root.querySelectorAll("input, select")].map((one) =>
    [one.name, one.value, one.checked]),
  pictures: [...explorer.root.querySelectorAll("canvas")].map((one) => one.toDataURL()),
})"""


def do(explorer: Explorer, actions: str) -> None:
    """Run JavaScript that may take the explorer out of the document."""
    explorer.page.evaluate(
        "async () => { const root = document.querySelector('.convfc-explorer');"
        " const { explorer } = root; const { store } = explorer; const { body } = document;"
        " const parent = root.parentElement; const frames = () => new Promise((done) =>"
        f" requestAnimationFrame(() => requestAnimationFrame(done))); {actions} }}"
    )
    explorer.settled().rest(ANNOUNCED)


def test_what_changes_out_of_sight_is_drawn_on_return(open_page: OpensPage) -> None:
    """One page is always seen, and the others are away while each change is made."""
    seen, *others = (open_page(reduced_motion="reduce") for _ in range(4))
    before = seen.ask(SHOWN)
    for change, code in CHANGES.items():
        do(seen, code)
        expected = seen.ask(SHOWN)
        assert expected != before, change
        before = expected
        for away, (way, actions) in zip(others, WAYS.items(), strict=True):
            do(away, actions.replace("CHANGE", code))
            now = away.ask(SHOWN)
            same = {part: now[part] == expected[part] for part in expected}
            assert all(same.values()), (change, way, same)


def test_the_ribbons_are_drawn_at_the_size_at_which_they_are_shown(open_page: OpensPage) -> None:
    """Also where a line that comes or goes as the selection is drawn changes the strip's height."""
    explorer = open_page(reduced_motion="reduce")
    for change, code in {"start": "", **CHANGES}.items():
        do(explorer, code)
        drawn, seen = explorer.ask(
            "(({ width, height, clientWidth, clientHeight }) =>"
            " [[width, height], [clientWidth, clientHeight]])(explorer.strip.links.element)"
        )
        assert drawn == seen, change
