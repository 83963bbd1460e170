"""The largest settings allowed: nothing walks all of M, and every tab opens at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from browser import Explorer

SOON = 1500  # ms; 500 on a quiet machine, and 18 s where something walks all of M
"""Milliseconds within which a tab is drawn, also on a machine that has other work."""

# Each is allowed, and large in another way.
LARGEST = {
    "610-million-products": "n=1.1;k=64.64;p=224_224.224_224;m=circular",
    "two-million-columns": "n=2.2;c=4096;f=1;k=22.22;p=224_224.224_224",
    "145-million-products": "n=224.224;c=3;f=64;k=31.31;p=15_15.15_15;m=circular",
    "2048-filters": "n=56.56;c=64;f=2048;k=3.3",
    "4096-planes": "n=100.100;c=1;f=4096;k=1.1;p=224_224.224_224;m=replicate",
    "two-million-outputs": "n=22.22;c=21;f=21;k=64.64;s=64.64;t=1",
    "semantic-segmentation": "n=8.8;c=21;f=21;k=64.64;s=32.32;t=1",  # the last layer of FCN-32s
    "800-million-products": "n=1.1;c=4096;f=480;k=1.1;p=224_224.224_224;m=replicate",
    "a-long-signal": "a=1;n=224;c=4096;f=4;k=64;p=224_224;m=circular",
}

# Milliseconds until the frame in which something is drawn; the least of three.
TIMED = """async (change) => {
  const { explorer } = document.querySelector('.convfc-explorer');
  const { store } = explorer;
  const drawn = () => new Promise((done) =>
    requestAnimationFrame(() => requestAnimationFrame(done)));
  const taken = [];
  for (let i = 0; i < 3; i++) {
    store.show({tab: change.tab === 'code' ? 'arithmetic' : 'code'});
    await drawn();
    const start = performance.now();
    if (change.tab) store.show({tab: change.tab});
    if (change.start) store.startGradient(i % 2 ? 'one' : change.start);
    if (change.feeds) store.show({feeds: i % 2 === 0});
    if (change.q !== undefined) {
      const { rows, columns } = store.map;
      store.select({p: Math.floor(rows / 2) + i, q: columns - 1 - i});
    }
    await drawn();
    taken.push(performance.now() - start);
  }
  return Math.min(...taken);
}"""


@pytest.mark.parametrize("name", LARGEST)
def test_every_tab_is_there_at_once(open_page: Callable[..., Explorer], name: str) -> None:
    opened = []
    for _ in range(3):
        explorer = open_page(address=f"#1;{LARGEST[name]}")
        opened.append(explorer.page.evaluate("() => window.explorerReady"))
        if min(opened) < 1000:
            break
    assert min(opened) < 1000
    assert explorer.root.locator("p.note").is_hidden()  # it is this convolution that is shown
    changes = [{"tab": tab} for tab in ("arithmetic", "map", "matrix", "backward", "code")]
    changes += [{"tab": "map", "q": 0}, {"tab": "matrix", "q": 0}, {"tab": "backward", "q": 0}]
    changes += [{"tab": "backward", "start": "ones"}, {"tab": "arithmetic", "feeds": True, "q": 0}]
    for change in changes:
        taken = explorer.page.evaluate(TIMED, change)
        assert taken < SOON, change


def test_what_is_too_much_is_drawn_in_part_and_stays_exact(
    open_page: Callable[..., Explorer],
) -> None:
    """One element is read by all taps: each output is it times the sum of the filter."""
    explorer = open_page(address=f"#1;{LARGEST['610-million-products']}")
    weights = explorer.ask("[0, 1, 2].map((f) => store.filters.slice(4096 * f, 4096 * (f + 1))"
                           ".reduce((sum, w) => sum + w, 0) * store.input[0])")  # fmt: skip
    assert explorer.ask("store.plane(0)") is None
    for p in (0, 77_777, 386 * 386 - 1):
        assert explorer.ask("[0, 1, 2].map((f) => store.value(argument, f))", p) == weights
    explorer.tab("map")
    said = explorer.view("map").inner_text()
    assert f"{386 * 386 * 4096} entries" in said  # 386 = 1 + 2 · 224 - 64 + 1 positions an axis
    explorer.tab("backward")
    explorer.root.locator("[data-start=ones]").click()
    explorer.settled()
    assert "more products than the page computes" in explorer.view("backward").inner_text()
    explorer.root.locator("[data-start=one]").click()
    assert explorer.ask("store.dX[0]") == weights[0] / explorer.ask("store.input[0]")


def test_every_reader_of_an_element_is_counted(open_page: Callable[..., Explorer]) -> None:
    """The counts come from the axes; the entries, of which few are listed, from a walk."""
    explorer = open_page(address="#1;n=5.6;k=3.3;p=2_2.2_2;m=circular;c=2;f=2")
    found = explorer.ask(
        "Array.from(store.input, (_, at) => [[...store.map.readers(at)].length,"
        " store.map.readerCounts(at).entries, [...store.map.readers(at, 9)].length])"
    )
    assert all(listed == counted for listed, counted, _ in found)
    assert all(0 < few <= 9 for *_, few in found)


def test_a_picture_of_the_one_big_matrix_looks_at_few_weights(
    open_page: Callable[..., Explorer],
) -> None:
    """Every row of it has 262,144; all of them would take several times as long as this."""
    explorer = open_page(address=f"#1;{LARGEST['a-long-signal']}")
    taken = explorer.ask(
        "Math.min(...[0, 1, 2].map((f) => { const start = performance.now();"
        " for (let p = 0; p < 300; p++) store.bigBins(p, f, 900);"
        " return performance.now() - start; }))"
    )
    assert taken < 150
