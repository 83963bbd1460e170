"""What changes while the page cannot be seen is there when it is seen again.

So it is with a notebook's cell that is scrolled out of view or collapsed, and with inactive tabs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from browser import ANNOUNCED

if TYPE_CHECKING:
    from collections.abc import Callable

    from browser import Explorer

CHANGES = {
    "state": "store.load({ title: 'Another one', settings: { size: [6, 5], kernel: [2, 3],"
    " padding: [[1, 1], [0, 0]], bias: true }, filters: [1, -2, 3, -4, 5, -6] })",
    "settings": "store.set({ stride: [3, 2] })",
    "problem": "store.set({ stride: [0, 1] })",
    "selection": "store.select({ p: 40, f: 1, q: 3 })",
    "number": "store.edit('input', 200, 3.5)",
    "theme": "explorer.theme.choose('dark')",
    "tab": "store.show({ tab: 'matrix' })",
    "feeds": "store.show({ feeds: true })",
    "gradient": "(store.show({ tab: 'backward' }), store.startGradient('ones'))",
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
    explorer.settled()
    explorer.page.wait_for_timeout(ANNOUNCED)


def shown(explorer: Explorer) -> Any:
    return explorer.ask(SHOWN)


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_out_of_sight_is_drawn_on_return(
    open_page: Callable[..., Explorer], change: str
) -> None:
    seen = open_page(reduced_motion="reduce")  # nothing flies where nobody sees it
    start = shown(seen)
    do(seen, CHANGES[change])
    expected = shown(seen)
    assert expected != start
    for way, actions in WAYS.items():
        away = open_page(reduced_motion="reduce")
        assert shown(away) == start
        do(away, actions.replace("CHANGE", CHANGES[change]))
        now = shown(away)
        same = {part: now[part] == expected[part] for part in expected}
        assert all(same.values()), (way, same)


def test_the_ribbons_are_drawn_at_the_size_at_which_they_are_shown(explorer: Explorer) -> None:
    # A part of the strip that is hidden as the selection is drawn had made the strip lower.
    drawn, seen = explorer.ask(
        "(({ width, height, clientWidth, clientHeight }) =>"
        " [[width, height], [clientWidth, clientHeight]])(explorer.strip.links.element)"
    )
    assert drawn == seen
