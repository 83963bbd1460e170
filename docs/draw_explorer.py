"""Take the pictures of the explorer in `docs/`: ``python docs/draw_explorer.py`` takes them anew.

They are what a browser shows: Chromium without a display, in a profile that has seen nothing. Each
picture is kept small by a palette of its own. Needs ``pip install playwright pillow`` and Chromium.
"""

from __future__ import annotations

import io
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

from convfc.explorer.page import write_page
from convfc.files import replacing

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests/explorer"))

from browser import ARGUMENTS, find_browser  # (the tests know where a browser is)

FIGURES = pathlib.Path(__file__).with_name("figures")
COLOURS, COMMON = 256, 96
WIDE = {"viewport": {"width": 1280, "height": 800}}
START = "#1;preset=first;at=4.0"
# Name: address, what the browser is set to.
PICTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "explorer": (START, WIDE),
    "explorer-film": (
        "#1;preset=first;tab=algorithm;film=im2col.52",
        {**WIDE, "color_scheme": "dark"},
    ),
    "explorer-story": ("#1;story=2", WIDE),
    "explorer-train": ("#1;preset=first;tab=train;train=1.900.adam.1e-1.1.32", WIDE),
}

TRAINED = """() => {
  const { store, tabs } = document.querySelector('.convfc-explorer').explorer;
  return store.view.tab !== 'train' || tabs.views.train.twins?.steps >= 900;
}"""


def main() -> None:
    """Take every picture."""
    for name, picture in taken({name: ({}, *so) for name, so in PICTURES.items()}):
        with replacing(FIGURES / f"{name}.png") as handle:
            small(picture).save(handle, format="PNG", optimize=True)


def taken(
    wanted: Mapping[str, tuple[dict[str, Any], str, dict[str, Any]]],
) -> Iterator[tuple[str, Image.Image]]:
    """Yield what the window shows of each: a state, an address, what the browser is set to."""
    chromium = find_browser()
    if chromium is None:
        raise SystemExit("there is no Chromium on this machine; remedy: apt-get install chromium")
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "explorer.html"
        browser = playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS))
        for name, (state, address, options) in wanted.items():
            write_page(file, state or None)
            context = browser.new_context(**options)
            page = context.new_page()
            page.goto(file.as_uri() + address)
            page.locator(".convfc-explorer").wait_for()
            page.evaluate("() => document.querySelector('.convfc-explorer').explorer.ready")
            page.wait_for_function(TRAINED, timeout=300_000)
            page.wait_for_timeout(500)  # transitions
            yield name, Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            context.close()
        browser.close()


def small(picture: Image.Image) -> Image.Image:
    """Return a picture with a palette of its own: the commonest colours as they are, and others."""
    colours, where, counts = np.unique(
        np.asarray(picture).reshape(-1, 3), axis=0, return_inverse=True, return_counts=True
    )
    common = colours[np.argsort(-counts)[:COMMON]]
    spread = picture.quantize(COLOURS - len(common), method=Image.Quantize.MAXCOVERAGE)
    palette = np.vstack([common, np.reshape(spread.getpalette(), (-1, 3))]).astype(int)
    # Pillow's own choice from a palette is coarse; each colour takes the nearest of it here.
    nearest = np.abs(colours[:, None].astype(int) - palette).sum(axis=-1).argmin(axis=1)
    made = Image.fromarray(nearest[where.ravel()].astype(np.uint8).reshape(picture.size[::-1]))
    made.putpalette(palette.astype(np.uint8).tobytes())
    return made


if __name__ == "__main__":
    main()
