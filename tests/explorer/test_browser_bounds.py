"""The largest settings allowed: nothing walks all of M, and every tab opens at once.

Steps are counted, not milliseconds: a slow machine, or a busy one, counts the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from convfc import ConvGeometry
from convfc.explorer.state import explorer_state
from convfc.layer import ConvLayer

if TYPE_CHECKING:
    from browser import Explorer, OpensPage

MOST = 80_000_000
"""Steps of the page's code from a change until it is drawn: less than half a second.

The page takes at most 70 million; a walk of all of M takes a hundred at the least.
"""

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
CHOICE = "store.select({p: Math.floor(store.map.rows / 2), q: store.map.columns - 1})"
CHANGES = (
    "store.show({tab: 'algorithm'})",
    "store.goTo(store.trace.steps >> 1)",
    CHOICE,
    "store.show({tab: 'matrix'})",
    "store.select({p: 1, q: 0})",
    "store.show({tab: 'backward'})",
    CHOICE,
    "store.startGradient('ones')",
    "store.startGradient('one')",
    "store.show({tab: 'train'})",
    "store.show({tab: 'code'})",
    "store.show({tab: 'arithmetic'})",
    "store.show({feeds: true})",
)


def steps(explorer: Explorer, change: str) -> int:
    """Return how many steps a change takes until it is drawn."""
    explorer.steps.taken()
    explorer.ask(f"(({change}), 0)")
    return explorer.settled().steps.taken()


@pytest.mark.parametrize("name", LARGEST)
def test_every_tab_is_there_at_once(open_page: OpensPage, name: str) -> None:
    explorer = open_page(address=f"#1;{LARGEST[name]}", counted=True)
    assert 1_000_000 < explorer.steps.taken() < MOST
    assert explorer.root.locator("p.note").is_hidden()  # it is this convolution that is shown
    for change in CHANGES:
        assert 1000 < steps(explorer, change) < MOST, change


def test_a_layer_too_large_to_be_held_is_right(open_page: OpensPage) -> None:
    """The first layer of resnet18 on an image of its size, with whole numbers."""
    rng = np.random.default_rng(0)
    geometry = ConvGeometry(3, 64, (7, 7), stride=2, padding=3)
    filters = rng.integers(-9, 10, geometry.filters_shape).astype(float)
    x = rng.integers(0, 10, (224, 224, 3)).astype(float)
    explorer = open_page(explorer_state(ConvLayer(geometry, filters), x), counted=True)
    assert explorer.steps.taken() < MOST / 2
    assert explorer.cells("M") == (112 * 112, 147)
    assert explorer.ask("store.M") is None  # virtual
    p, f = 112 * 50 + 60, 37
    explorer.ask("store.select(argument)", {"p": p, "f": f})
    assert f"row 50, column 60, filter {f}" in explorer.live()
    window = x[50 * 2 - 3 : 50 * 2 + 4, 60 * 2 - 3 : 60 * 2 + 4]
    assert explorer.ask("store.value(argument, 37)", p) == float((window * filters[f]).sum())
    for tab in explorer.panels():
        box = explorer.page.locator("[role=tabpanel]:visible").bounding_box()
        assert box["height"] > 40, tab
    explorer.tab("arithmetic")
    for p in (5, 5000, 12000):  # it stays responsive
        assert steps(explorer, f"store.select({{p: {p}}})") < MOST / 20


def test_what_is_too_much_is_drawn_in_part_and_stays_exact(open_page: OpensPage) -> None:
    """One element is read by all taps: each output is it times the sum of the filter."""
    explorer = open_page(address=f"#1;{LARGEST['610-million-products']}")
    weights = explorer.ask("[0, 1, 2].map((f) => store.filters.slice(4096 * f, 4096 * (f + 1))"
                           ".reduce((sum, w) => sum + w, 0) * store.input[0])")  # fmt: skip
    assert explorer.ask("store.plane(0)") is None
    for p in (0, 77_777, 386 * 386 - 1):
        assert explorer.ask("[0, 1, 2].map((f) => store.value(argument, f))", p) == weights
    explorer.tab("algorithm")
    said = explorer.view("map").inner_text()
    assert f"{386 * 386 * 4096} entries" in said  # 386 = 1 + 2 · 224 - 64 + 1 positions an axis
    explorer.tab("backward")
    explorer.root.locator("[data-start=ones]").click()
    explorer.settled()
    assert "more products than the page computes" in explorer.view("backward").inner_text()
    explorer.root.locator("[data-start=one]").click()
    assert explorer.ask("store.dX[0]") == weights[0] / explorer.ask("store.input[0]")


def test_a_picture_of_the_one_big_matrix_looks_at_few_weights(open_page: OpensPage) -> None:
    """Every row of it has 262,144."""
    explorer = open_page(address=f"#1;{LARGEST['a-long-signal']}", counted=True)
    drawing = "Array.from({length: 300}, (_, p) => store.bigBins(p, 0, 900))"
    assert 300 * 10_000 < steps(explorer, drawing) < 300 * 262_144 / 2
