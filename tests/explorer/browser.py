"""A real browser with the explorer in it: what the tests of the page see, press and ask."""

from __future__ import annotations

import os
import pathlib
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeAlias

    from playwright.sync_api import (
        Browser,
        BrowserContext,
        ConsoleMessage,
        Error,
        Locator,
        Page,
        Request,
        ViewportSize,
    )

    OpensPage: TypeAlias = "Callable[..., Explorer]"
    OpensContext: TypeAlias = Callable[..., BrowserContext]

REQUIRED = "CONVFC_REQUIRE_BROWSER"
"""Set in continuous integration: where there is no browser, a test then fails."""

NAMES = (
    "chromium-headless-shell",  # the same engine without windows, in three quarters of the time
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
)
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PRESETS = (
    "first",
    "figure-2",
    "figure-3",
    "figure-6",
    "experiment",
    "depthwise",
    "dilated",
    "transposed",
    "signal",
)
"""What the page has to start from, in its order."""

TABS = ("arithmetic", "algorithm", "matrix", "backward", "train", "code")
"""The tabs below the picture, in their order."""

WEB = pathlib.Path(__file__).parents[2] / "src/convfc/explorer/web"
WINDOW: ViewportSize = {"width": 1280, "height": 800}
MARGIN = 5
"""CSS pixels between the edge of a grid's canvas and its cells (web/src/views/grid.js)."""
ANNOUNCED = 121
"""Milliseconds after which a change has been said in the live region (web/src/explorer.js)."""
PATIENCE = 240
"""Seconds for what is over in one, or in ten, on a machine that has nothing else to do."""

BROKEN_POLICY = """
window.brokenPolicy = [];
document.addEventListener("securitypolicyviolation", (event) =>
  window.brokenPolicy.push(`${event.violatedDirective}: ${event.blockedURI} ${event.sample}`));
"""

# In CSS pixels, the box around all pixels of a grid's overlay that have a colour.
INK = """([view, colour]) => {
  const canvas = document.querySelector(`[data-view="${view}"] [role=grid]`);
  const one = document.createElement("canvas").getContext("2d");
  one.fillStyle = colour;
  one.fillRect(0, 0, 1, 1);
  const [r, g, b] = one.getImageData(0, 0, 1, 1).data;
  const { width, height } = canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  let [x0, y0, x1, y1, count] = [Infinity, Infinity, -Infinity, -Infinity, 0];
  for (let at = 0; at < data.length; at += 4) {
    const off = Math.abs(data[at] - r) + Math.abs(data[at + 1] - g) + Math.abs(data[at + 2] - b);
    if (data[at + 3] < 200 || off > 30) continue;
    const [x, y] = [(at / 4) % width, Math.floor(at / 4 / width)];
    [x0, y0, x1, y1] = [Math.min(x0, x), Math.min(y0, y), Math.max(x1, x + 1), Math.max(y1, y + 1)];
    count += 1;
  }
  const scale = canvas.clientWidth / width;
  return count ? [x0, y0, x1, y1].map((side) => side * scale) : null;
}"""


def find_browser() -> str | None:
    """Return the path of a Chromium on this machine, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def missing() -> str | None:
    """Return why there is no browser to test in, in words; None if there is one."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "the package playwright is not installed; remedy: pip install playwright"
    if find_browser() is None:
        return f"no Chromium on this machine ({', '.join(NAMES)}); remedy: apt-get install chromium"
    return None


def required() -> bool:
    """Return whether a test in a browser may not be skipped here."""
    return bool(os.environ.get(REQUIRED))


def lacking(reason: str) -> NoReturn:
    """Skip the test, in words; fail it where the tests in a browser are required."""
    import pytest  # benchmarks and figures, which find the browser here, run without it

    if required():
        pytest.fail(f"the tests in a browser are required ({REQUIRED}), but {reason}")
    pytest.skip(f"not tested in a browser: {reason}")


def profile(browser: Browser, **options: Any) -> BrowserContext:
    """Make a fresh profile: no cookie, nothing stored, nothing of an earlier test."""
    context = browser.new_context(**{"viewport": WINDOW, **options})
    context.set_default_timeout(1000 * PATIENCE)
    return context


@dataclass
class Watch:
    """What a page did that none of ours does: errors, broken policy, requests to another host."""

    page: Page
    own: Sequence[str] = ()
    """The only addresses (scheme and host) that it may ask."""
    levels: Sequence[str] = ("error", "warning")
    """What must not be said on the console."""
    script: str = ""
    """Uncaught errors count with this address on their stack: others are the notebook's own."""
    faults: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.add_init_script(BROKEN_POLICY)
        self.page.on("console", self._console)
        self.page.on("pageerror", self._uncaught)
        self.page.on("request", self._request)
        self.page.on("requestfailed", lambda request: self.faults.append(f"lost: {request.url}"))

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in self.levels:
            self.faults.append(f"console {message.type}: {message.text}")

    def _uncaught(self, error: Error) -> None:
        stack = error.stack or ""
        if self.script in stack:
            self.faults.append(f"uncaught: {error}\n{stack}")

    def _request(self, request: Request) -> None:
        url = urlsplit(request.url)
        if url.scheme in {"data", "blob"}:
            return
        self.requests.append(request.url)
        if url.scheme != "file" and f"{url.scheme}://{url.netloc}" not in self.own:
            self.faults.append(f"request to another host: {request.url}")

    def check(self) -> None:
        """Fail if there was anything."""
        if not self.page.is_closed():
            broken = self.page.evaluate("() => window.brokenPolicy ?? []")
            self.faults += [f"against the policy: {what}" for what in broken]
        assert not self.faults, "\n".join(self.faults)


class Steps:
    """Counts what a page computes: how often a function, a branch or a loop's body is run.

    The engine counts them itself. They are the same on every machine, whatever else it is doing; a
    hundred million of them take a quiet one about a third of a second.
    """

    def __init__(self, page: Page) -> None:
        self._engine = page.context.new_cdp_session(page)
        self._engine.send("Profiler.enable")
        counting = {"callCount": True, "detailed": True}
        self._engine.send("Profiler.startPreciseCoverage", counting)

    def taken(self) -> int:
        """Return the steps since this was asked last."""
        scripts = self._engine.send("Profiler.takePreciseCoverage")["result"]
        functions = (function for script in scripts for function in script["functions"])
        return sum(block["count"] for function in functions for block in function["ranges"])


class Explorer:
    """One explorer on a page: found by its roles and names, asked through `root.explorer.store`."""

    steps: Steps

    def __init__(self, page: Page) -> None:
        self.page = page
        self.root = page.locator(".convfc-explorer").first

    def ready(self) -> Explorer:
        """Wait until it stands there."""
        self.root.wait_for()
        self.page.evaluate(  # null: the explorer itself, as JSON, takes longer than the page
            "() => document.querySelector('.convfc-explorer').explorer.ready.then(() => null)"
        )
        return self.settled()

    def settled(self) -> Explorer:
        """Wait until everything that has been asked for is drawn."""
        self.page.evaluate(
            "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )
        return self

    def rest(self, milliseconds: int) -> Explorer:
        """Wait until all that was to happen within this time has: the page's timers keep order."""
        self.page.evaluate("(ms) => new Promise((done) => setTimeout(done, ms))", milliseconds)
        return self

    def until(self, condition: str) -> Explorer:
        """Wait until something is true of the `store`."""
        self.page.wait_for_function(
            "() => { const { store } = document.querySelector('.convfc-explorer').explorer;"
            f" return {condition}; }}"
        )
        return self

    def ask(self, expression: str, argument: Any = None) -> Any:
        """Evaluate JavaScript in which `explorer`, `store` and `argument` are known."""
        return self.page.evaluate(
            "(argument) => { const { explorer } = document.querySelector('.convfc-explorer');"
            f" const {{ store }} = explorer; return ({expression}); }}",
            argument,
        )

    @property
    def state(self) -> dict[str, Any]:
        """What the store holds, as JSON."""
        return self.ask("store.toJSON()")

    @property
    def settings(self) -> dict[str, Any]:
        return self.ask("store.settings")

    @property
    def selection(self) -> dict[str, Any]:
        return self.ask("store.selection")

    def chosen(self, *names: str) -> tuple[Any, ...]:
        """Return some of the selection."""
        selection = self.selection
        return tuple(selection[name] for name in names)

    def live(self) -> str:
        """Return what a screen reader is told, once the page has come to rest."""
        return self.rest(ANNOUNCED).root.locator("[data-live]").inner_text()

    # --- grids ---

    def view(self, name: str) -> Locator:
        return self.root.locator(f'[data-view="{name}"]')

    def grid(self, view: str) -> Locator:
        return self.view(view).get_by_role("grid")

    def cells(self, view: str) -> tuple[int, int]:
        """Return how many rows and columns a grid says that it has."""
        grid = self.grid(view)
        return int(grid.get_attribute("aria-rowcount") or 0), int(
            grid.get_attribute("aria-colcount") or 0
        )

    def side(self, view: str) -> tuple[float, float]:
        """Return height and width of a cell where a grid shows all of them."""
        rows, columns = self.cells(view)
        width, height = self.grid(view).evaluate("grid => [grid.clientWidth, grid.clientHeight]")
        return (height - 2 * MARGIN) / rows, (width - 2 * MARGIN) / columns

    def point(self, view: str, row: int, column: int) -> dict[str, float]:
        """Return the middle of a cell, from the grid's corner."""
        high, wide = self.side(view)
        return {"x": MARGIN + (column + 0.5) * wide, "y": MARGIN + (row + 0.5) * high}

    def click(self, view: str, row: int, column: int) -> Explorer:
        self.grid(view).click(position=self.point(view, row, column))
        return self.settled()

    def edit(self, view: str, row: int, column: int, text: str, end: str = "Enter") -> Explorer:
        """Type a number into a cell, opened by a double click."""
        self.grid(view).dblclick(position=self.point(view, row, column))
        editor = self.view(view).locator("input[name=cell]")
        editor.fill(text)
        editor.press(end)
        return self.settled()

    def press(self, view: str, *keys: str) -> Explorer:
        for key in keys:
            self.grid(view).press(key)
        return self.settled()

    def lit(self, view: str, colour: str) -> tuple[float, float, float, float] | None:
        """Return the box around what is drawn in a colour, in cells: top, left, bottom, right."""
        box = self.page.evaluate(INK, [view, colour])
        if box is None:
            return None
        high, wide = self.side(view)
        x0, y0, x1, y1 = (side - MARGIN for side in box)
        return y0 / high, x0 / wide, y1 / high, x1 / wide

    def picture(self, view: str, layer: str = "overlay") -> str:
        """Return what a grid shows, as bytes in text: equal for equal pictures."""
        canvas = self.view(view).locator(f"canvas.{layer}").first
        return canvas.evaluate("canvas => canvas.toDataURL()")

    # --- controls ---

    def control(self, name: str) -> Locator:
        return self.root.locator(f'[name="{name}"]')

    def uncover(self, name: str) -> Locator:
        """Return a control, once it can be seen: what hides it is opened as a user would."""
        control = self.control(name)
        for action, layout in (("settings", "narrow"), ("more", "middle")):
            button = self.root.locator(f'[data-action="{action}"]')
            closed = button.is_visible() and button.get_attribute("aria-expanded") != "true"
            here = self.root.get_attribute("data-width") == layout
            if closed and here and not control.is_visible():
                button.click()
        if not control.is_visible():  # rows and columns are one number until they are unlocked
            self.control("lock").set_checked(False)
        return control

    def enter(self, **values: float | str) -> Explorer:
        """Type values into controls; `__` in a name stands for a dash."""
        for name, value in values.items():
            control = self.uncover(name.replace("__", "-"))
            if control.evaluate("element => element.localName") == "select":
                control.select_option(str(value))
            else:
                control.fill(str(value))
                control.press("Tab")
        return self.settled()

    def switch(self, name: str, on: bool = True) -> Explorer:
        self.uncover(name).set_checked(on)
        return self.settled()

    def preset(self, name: str) -> Explorer:
        self.root.locator(f'[data-preset="{name}"]').click()
        return self.settled()

    def act(self, action: str) -> Explorer:
        self.root.locator(f'[data-action="{action}"]').first.click()
        return self.settled()

    def tab(self, name: str) -> Explorer:
        self.root.locator(f'[role=tab][data-tab="{name}"]').click()
        return self.settled()

    def problem(self, field: str) -> Locator:
        return self.root.locator(f'[data-problem="{field}"]')

    def panels(self) -> Iterator[str]:
        """Open each of the tabs in turn."""
        for name in TABS:
            self.tab(name)
            yield name
