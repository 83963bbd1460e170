"""The explorer in a real browser: how soon it is there, and how soon a selection is drawn.

The page is written to a file and opened in Chromium without a display, in a profile that has seen
nothing before. First paint is what the browser itself reports, ready is when every view has been
drawn, both from the start of the navigation; the median over pages. Redraw is what one selection
costs: the store completes it, all views draw it, and a pixel of every canvas is read back, so that
the browser cannot leave the drawing for later; the median over many selections all over the
output, each of the four tabs open in turn. The bundle is what a user gets: one module and one
stylesheet, digits inside.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import sys
import tempfile
from typing import Any

import numpy as np
from harness import console, header, table, write_tables
from playwright.sync_api import Browser, Page, sync_playwright

from convfc import ConvGeometry
from convfc.explorer.page import asset, page
from convfc.explorer.state import explorer_state
from convfc.layer import ConvLayer

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests/explorer"))

from browser import ARGUMENTS, find_browser

PACKAGES = ("playwright",)
TABS = ("arithmetic", "map", "matrix", "backward", "code")
WINDOW = {"width": 1280, "height": 800}

# Opened as soon as there is an explorer; `window.ready` is the time at which it had drawn.
CLOCK = """
localStorage.setItem('convfc-explorer-guide-seen', '1');
const poll = () => {
  const { explorer } = document.querySelector('.convfc-explorer') ?? {};
  if (!explorer) return requestAnimationFrame(poll);
  explorer.ready.then(() => { window.ready = performance.now(); });
};
poll();
"""
PAINTED = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"

# Selections that are spread over the output and the filters; between two of them the browser has
# the time to show the first.
REDRAW = """async ([tab, count]) => {
  const { explorer } = document.querySelector('.convfc-explorer');
  const { store } = explorer;
  store.show({ tab });
  const canvases = [...explorer.root.querySelectorAll('.grid .overlay, .links')]
    .filter((canvas) => canvas.width && canvas.offsetParent);
  const times = [];
  for (let i = 0; i < count; i++) {
    const p = (i * 7919 + 13) % store.map.rows;
    const start = performance.now();
    store.select({ p, f: i % store.settings.filters });
    explorer.redraw();
    for (const canvas of canvases) canvas.getContext('2d').getImageData(0, 0, 1, 1);
    times.push(performance.now() - start);
    await new Promise((done) => requestAnimationFrame(done));
  }
  return times;
}"""

Mark = tuple[str, float, float, str]
"""What is asked, the number that was measured, the one that it has to stay below, and its unit."""


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=7, help="pages opened of each kind")
    parser.add_argument("--selections", type=int, default=60, help="selections of each tab")
    parser.add_argument("--no-write", action="store_true", help="leave benchmarks/results/ alone")
    arguments = parser.parse_args()
    chromium = find_browser()
    if chromium is None:
        raise SystemExit("there is no Chromium on this machine; remedy: apt-get install chromium")
    header("The explorer in a browser", *PACKAGES)
    with (
        sync_playwright() as playwright,
        tempfile.TemporaryDirectory() as folder,
        console.status("opening pages"),
    ):
        browser = playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS))
        console.print(f"Chromium {browser.version}, {WINDOW['width']} x {WINDOW['height']}")
        opening, drawing, marks = [], [], [bundle()]
        for name, state, ready, redraw in kinds():
            file = pathlib.Path(folder) / "page.html"
            file.write_text(page(state), encoding="utf-8")
            paints, readies = [], []
            for _ in range(arguments.pages):
                opened = open_page(browser, file)
                paints.append(opened.evaluate(f"() => {PAINTED}"))
                readies.append(opened.evaluate("() => window.ready"))
                if len(paints) < arguments.pages:
                    opened.context.close()
            size = file.stat().st_size / 1000
            opening.append([name, *map(shown, (size, *summary(paints), *summary(readies)))])
            times = {tab: opened.evaluate(REDRAW, [tab, arguments.selections]) for tab in TABS}
            opened.context.close()
            drawing.append([name, *(shown(statistics.median(times[tab])) for tab in TABS)])
            worst = max(statistics.median(times[tab]) for tab in TABS)
            if redraw:
                marks.append((f"{name}: selection to redraw, worst tab", worst, redraw, "ms"))
            if ready:
                marks.append((f"{name}: ready", statistics.median(readies), ready, "ms"))
            if name == "the experiment":
                marks.append((f"{name}: first paint", statistics.median(paints), 1000, "ms"))
        version = browser.version
        browser.close()
    columns = ["page", "file, kB", "first paint, ms", "least", "ready, ms", "least"]
    tables = [
        ("Opening", columns, opening),
        ("Selection to redraw, ms, with this tab open", ["page", *TABS], drawing),
        marks_table(marks),
    ]
    for title, names, lines in tables:
        table(title, names, lines)
    if not arguments.no_write:
        write_tables("explorer", tables, PACKAGES, f"Chromium {version} without a display")


def kinds() -> list[tuple[str, dict[str, Any] | None, float, float]]:
    """Return pages: name, state, and the milliseconds that opening and a redraw may take."""
    rng = np.random.default_rng(0)

    def layer(geometry: ConvGeometry, size: tuple[int, int]) -> dict[str, Any]:
        filters = rng.integers(-4, 5, geometry.filters_shape).astype(float)
        x = rng.integers(0, 10, (*size, geometry.in_channels)).astype(float)
        return explorer_state(ConvLayer(geometry, filters), x)

    return [
        ("the experiment", None, 0, 16),
        ("64 x 64, 3 x 3", layer(ConvGeometry(1, 4, (3, 3)), (64, 64)), 0, 50),
        (
            "resnet18 conv1, 224 x 224 x 3",
            layer(ConvGeometry(3, 64, (7, 7), stride=2, padding=3), (224, 224)),
            2000,
            0,
        ),
    ]


def open_page(browser: Browser, file: pathlib.Path) -> Page:
    """Open a file in a fresh profile; return when everything has been drawn."""
    context = browser.new_context(viewport=WINDOW)
    opened = context.new_page()
    opened.add_init_script(CLOCK)
    opened.goto(file.as_uri())
    opened.wait_for_function("() => window.ready > 0")
    opened.wait_for_function(f"() => {PAINTED} > 0")
    return opened


def bundle() -> Mark:
    """Return the size of module and stylesheet."""
    size = sum(len(asset(f"explorer.{kind}").encode()) for kind in ("js", "css"))
    return ("module and stylesheet", size / 1000, 300, "kB")


def summary(values: list[float]) -> tuple[float, float]:
    """Return the median and the least."""
    return statistics.median(values), min(values)


def shown(value: float) -> str:
    """Return a number for a table."""
    return f"{value:,.1f}"


def marks_table(marks: list[Mark]) -> tuple[str, list[str], list[list[str]]]:
    """Return what was asked for, and whether it came."""
    lines = [
        [asked, f"{found:,.1f} {unit}", f"below {limit:g} {unit}", "yes" if found < limit else "no"]
        for asked, found, limit, unit in marks
    ]
    return ("Marks", ["mark", "measured", "asked", "met"], lines)


if __name__ == "__main__":
    main()
