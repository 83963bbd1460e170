"""Where the page comes from: the server, a file that was written, a layer too large for numbers."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from browser import Explorer, Watch

from convfc import ConvGeometry
from convfc.layer import ConvLayer

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable, Iterator

    from playwright.sync_api import BrowserContext

RUN = (sys.executable, "-m", "convfc", "explore")
PATIENCE = 60


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of `convfc explore`, which runs until the tests of this file are done."""
    command = [*RUN, "--no-browser", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603
    assert server.stdout is not None
    found = None
    for line in server.stdout:
        if found := re.search(r"http://127\.0\.0\.1:\d+/", line):
            break
    assert found, "the server says where it is"
    yield found.group()
    server.send_signal(signal.SIGINT)
    assert server.wait(PATIENCE) in {0, 130}  # Ctrl-C ends it, as it ends any program
    server.stdout.close()


def test_the_served_page_obeys_its_strict_policy(
    open_context: Callable[..., BrowserContext], address: str
) -> None:
    page = open_context().new_page()
    watch = Watch(page, own=[address.rstrip("/")])
    answer = page.goto(address)
    assert answer is not None
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    explorer = Explorer(page).ready().act("guide-close")
    for preset in ("depthwise", "transposed", "experiment"):
        explorer.preset(preset)
    for _ in explorer.panels():
        explorer.click("output", 2, 2)
    with page.expect_download():
        explorer.act("png")
    with page.expect_download():
        explorer.act("svg")
    explorer.act("draw")
    watch.check()
    assert all(request.startswith(address) for request in watch.requests)
    assert {"document", "script", "stylesheet"} >= set(
        page.evaluate(
            "() => performance.getEntriesByType('resource').map((e) => e.initiatorType)"
            ".map((type) => ({link: 'stylesheet'})[type] ?? type)"
        )
    )


def test_the_policy_is_enforced(open_context: Callable[..., BrowserContext], address: str) -> None:
    page = open_context().new_page()
    watch = Watch(page, own=[address.rstrip("/")])
    page.goto(address)
    Explorer(page).ready()
    page.evaluate(
        "() => document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:9/x.png'}))"
    )
    page.wait_for_function("() => window.brokenPolicy.length > 0")
    with pytest.raises(AssertionError, match="img-src"):
        watch.check()


def test_a_link_from_the_server_says_that_it_ends_with_it(
    open_context: Callable[..., BrowserContext], address: str
) -> None:
    context = open_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto(address)
    explorer = Explorer(page).ready().act("guide-close").act("copy-link")
    toast = explorer.root.locator(".toast")
    toast.wait_for()
    assert "on this machine only, while convfc explore runs" in toast.inner_text()
    assert page.evaluate("() => navigator.clipboard.readText()").startswith(address)


def written(tmp_path: pathlib.Path, *arguments: str) -> pathlib.Path:
    """Return the page that `convfc explore --html` has written."""
    out = tmp_path / "a copy with spaces & signs.html"
    command = [*RUN, *arguments, "--html", str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)  # noqa: S603
    return out


def test_a_written_page_works_from_disk_and_asks_for_nothing(
    open_context: Callable[..., BrowserContext], tmp_path: pathlib.Path
) -> None:
    page = open_context().new_page()
    watch = Watch(page)
    page.goto(written(tmp_path).as_uri())
    explorer = Explorer(page).ready().act("guide-close")
    explorer.click("output", 5, 5)
    assert explorer.chosen("p") == (5 * 13 + 5,)
    assert "row 5, column 5" in explorer.live()
    for preset in ("figure-3", "signal"):
        explorer.preset(preset)
    watch.check()
    assert len(watch.requests) == 1


def test_a_written_page_of_a_layer_shows_that_layer(
    open_context: Callable[..., BrowserContext], tmp_path: pathlib.Path
) -> None:
    arguments = ["torch.nn:Conv2d", "--arg", "in_channels=2", "--arg", "out_channels=3"]
    arguments += ["--arg", "kernel_size=3", "--arg", "padding=1", "--input", "1,2,6,7"]
    page = open_context().new_page()
    watch = Watch(page)
    page.goto(written(tmp_path, *arguments).as_uri())
    explorer = Explorer(page).ready().act("guide-close")
    settings = explorer.settings
    assert settings["size"] == [6, 7]
    assert [settings[name] for name in ("channels", "filters", "bias")] == [2, 3, True]
    assert settings["padding"] == [[1, 1], [1, 1]]
    assert explorer.cells("M") == (42, 18)
    watch.check()


def big() -> tuple[dict[str, Any], ConvLayer, np.ndarray]:
    """Return the first layer of resnet18 on an image of its size, with whole numbers."""
    from convfc.explorer.state import explorer_state

    rng = np.random.default_rng(0)
    geometry = ConvGeometry(3, 64, (7, 7), stride=2, padding=3)
    filters = rng.integers(-9, 10, geometry.filters_shape).astype(float)
    x = rng.integers(0, 10, (224, 224, 3)).astype(float)
    layer = ConvLayer(geometry, filters, name="conv1")
    return explorer_state(layer, x), layer, x


def test_a_layer_too_large_to_be_held_opens_within_two_seconds_and_is_right(
    open_page: Callable[..., Explorer],
) -> None:
    state, layer, x = big()
    # The least of three: other programs on the machine only ever add to it.
    taken = []
    for _ in range(3):
        explorer = open_page(state)
        taken.append(explorer.page.evaluate("() => window.explorerReady"))
    assert min(taken) < 2000
    assert explorer.cells("M") == (112 * 112, 147)
    assert explorer.ask("store.M") is None  # virtual
    p, f = 112 * 50 + 60, 37
    explorer.ask("store.select(argument)", {"p": p, "f": f})
    explorer.settled()
    assert f"row 50, column 60, filter {f}" in explorer.live()
    window = x[50 * 2 - 3 : 50 * 2 + 4, 60 * 2 - 3 : 60 * 2 + 4]
    assert explorer.ask("store.value(store.selection.p, store.selection.f)") == float(
        (window * np.asarray(layer.filters)[f]).sum()
    )
    for tab in explorer.panels():
        box = explorer.page.locator("[role=tabpanel]:visible").bounding_box()
        assert box is not None
        assert box["height"] > 40, tab
    slow = explorer.page.evaluate(
        "() => { const { explorer } = document.querySelector('.convfc-explorer');"
        " explorer.store.show({tab: 'arithmetic'});"
        " return [5, 77, 5000, 12000, 9000].map((p) => { explorer.store.select({p});"
        " return explorer.redraw(); }); }"
    )
    assert min(slow) < 100  # it stays responsive
