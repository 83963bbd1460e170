"""What leaves the page: its address, the code, pictures of the strip."""

from __future__ import annotations

import io
import json
import pathlib
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import pytest
from browser import lacking
from PIL import Image

from convfc import ConvGeometry
from convfc.explorer.state import explorer_state

if TYPE_CHECKING:
    from collections.abc import Callable

    from browser import Explorer

MODEL = pathlib.Path(__file__).parents[2] / "src/convfc/explorer/web/src/model"
CLIPBOARD = "() => navigator.clipboard.readText()"
SVG = "{http://www.w3.org/2000/svg}"


def copied(explorer: Explorer, action: str) -> str:
    """Press a copy button; return what is on the clipboard then."""
    explorer.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    explorer.page.bring_to_front()
    explorer.act(action)
    explorer.page.wait_for_timeout(50)
    text: str = explorer.page.evaluate(CLIPBOARD)
    return text


def test_an_address_opens_the_same_state_on_a_new_page(open_page: Callable[..., Explorer]) -> None:
    explorer = open_page()
    explorer.preset("dilated")
    explorer.enter(stride__0=2, filters=3)
    explorer.switch("bias")
    explorer.enter(bias__value=-3)
    explorer.edit("input", 4, 4, "-7")
    explorer.edit("K", 2, 1, "0.25")
    explorer.click("output", 1, 2)
    explorer.tab("map")
    explorer.switch("feeds")
    link = copied(explorer, "copy-link")
    assert "#1;" in link
    other = open_page(address="#" + link.partition("#")[2])
    for part in ("settings", "filters", "bias", "selection"):
        assert other.state[part] == explorer.state[part], part
    assert other.state["input"]["values"] == explorer.state["input"]["values"]
    assert other.ask("[store.view.tab, store.view.feeds]") == ["map", True]
    for page in (explorer, other):  # each says its selection when there is a new one
        page.press("output", "ArrowRight")
    assert other.live() == explorer.live()
    for view in ("input", "M", "K", "Y", "output"):
        assert other.picture(view, "base") == explorer.picture(view, "base"), view


def test_a_link_says_where_it_opens(open_page: Callable[..., Explorer]) -> None:
    explorer = open_page()
    assert copied(explorer, "copy-link").startswith("file:")
    said = explorer.root.locator(".toast").inner_text()
    assert said == "The link is copied. It opens on this machine only."


def test_the_address_of_the_page_keeps_step(open_page: Callable[..., Explorer]) -> None:
    explorer = open_page()
    explorer.preset("figure-6")
    explorer.click("output", 3, 3)
    explorer.page.wait_for_function("() => location.hash.includes('at=24')")
    assert "preset=figure-6" in explorer.page.evaluate("() => location.hash")
    entries = explorer.page.evaluate("() => history.length")
    explorer.click("output", 1, 1)
    explorer.page.wait_for_function("() => location.hash.includes('at=8')")
    assert explorer.page.evaluate("() => history.length") == entries  # only a start is an entry


def test_an_address_typed_over_the_old_one_is_opened(open_page: Callable[..., Explorer]) -> None:
    explorer = open_page()
    explorer.page.evaluate("() => { location.hash = '#1;preset=transposed;at=9.1' }")
    explorer.page.wait_for_function(
        "() => document.querySelector('.convfc-explorer').explorer.store.settings.transposed"
    )
    assert explorer.chosen("p", "f") == (9, 1)


@pytest.mark.parametrize(
    "address", ["#9;x", "#1;preset=nothing", "#1;k=40.40", "#%E0%A4%A", "#1;at=a.b;i=1,2,oops"]
)
def test_rubbish_in_an_address_is_said_and_the_page_works(
    open_page: Callable[..., Explorer], address: str
) -> None:
    explorer = open_page(address=address)
    assert explorer.ask("store.problems") == []
    explorer.click("output", 0, 1)
    assert explorer.chosen("p") == (1,)
    assert explorer.root.locator("p[role=status]").inner_text().strip()


def model_code(settings: dict[str, Any], language: str) -> str:
    """Return the code that the page's model makes of settings, which other tests run."""
    node = shutil.which("node") or lacking("node is not on this machine; remedy: install Node.js")
    program = (
        f"import {{ code }} from {json.dumps((MODEL / 'code.js').as_uri())};"
        f"process.stdout.write(code({json.dumps(settings)}, {json.dumps(language)}))"
    )
    command = [node, "--input-type=module", "--eval", program]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    return done.stdout


@pytest.mark.parametrize("language", ["numpy", "torch", "keras"])
def test_copied_code_is_the_code_that_is_tested(explorer: Explorer, language: str) -> None:
    explorer.preset("dilated")
    explorer.tab("code")
    explorer.root.locator(f'[data-language="{language}"]').click()
    code = model_code(explorer.settings, language)
    assert explorer.view("code").locator("code").text_content() == code
    assert copied(explorer, "copy-code") == code
    assert code.endswith("\n")
    word = {"numpy": "ConvGeometry(", "torch": "nn.Conv2d(", "keras": "layers.Conv2D("}
    assert word[language] in code


def test_the_numpy_program_computes_what_is_shown(explorer: Explorer) -> None:
    explorer.preset("depthwise")
    explorer.tab("code")
    names: dict[str, np.ndarray] = {}
    exec(copied(explorer, "copy-code"), names)  # noqa: S102
    state = explorer.state
    state["input"] = {"values": names["x"].ravel().tolist()}
    state["filters"] = names["filters"].ravel().tolist()
    explorer.ask("store.load(argument)", state)
    assert explorer.ask("[...store.M]") == names["M"].ravel().tolist()
    assert explorer.ask("[...store.Y]") == names["y"].ravel().tolist()


def saved(explorer: Explorer, action: str) -> tuple[str, bytes]:
    """Press an export button; return the name and the bytes of the file that arrives."""
    with explorer.page.expect_download() as waiting:
        explorer.act(action)
    path: pathlib.Path = waiting.value.path()
    return waiting.value.suggested_filename, path.read_bytes()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_strip_is_saved_as_png(open_page: Callable[..., Explorer], scheme: str) -> None:
    explorer = open_page(color_scheme=scheme)
    name, data = saved(explorer, "png")
    assert name.endswith(".png")
    with Image.open(io.BytesIO(data)) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[0] >= 200
    assert pixels.shape[1] >= 800
    background = pixels[2, 2]
    assert (background.mean() < 128) == (scheme == "dark")
    share = (np.abs(pixels.astype(int) - background).sum(axis=2) > 60).mean()
    assert 0.02 < share < 0.9  # neither blank nor one colour
    # What is selected, and the cells: the frame of the window, the ones in K.
    window = explorer.ask("explorer.palette.window")
    one = explorer.ask("explorer.palette.css(1, store.largest('filters'))")
    for colour, least in (
        ([int(window[at : at + 2], 16) for at in (1, 3, 5)], 100),
        ([int(part) for part in re.findall(r"\d+", one)], 2000),
    ):
        assert (np.abs(pixels.astype(int) - colour).sum(axis=2) < 30).sum() > least, colour


def test_the_strip_is_saved_as_svg_with_its_numbers(open_page: Callable[..., Explorer]) -> None:
    explorer = open_page(address="#1;preset=figure-2")
    explorer.edit("input", 0, 0, "123")
    name, data = saved(explorer, "svg")
    assert name.endswith(".svg")
    root = ElementTree.fromstring(data)  # noqa: S314
    assert root.tag == f"{SVG}svg"
    texts = ["".join(text.itertext()).replace("−", "-") for text in root.iter(f"{SVG}text")]
    for number in ("123", "3", "-2", "126"):  # an input, another, a weight, the sum
        assert number in texts, number
    assert sum(text == "123" for text in texts) >= 2  # in the input and in M
    assert len(list(root.iter(f"{SVG}rect"))) >= 9


def test_large_matrices_are_images_in_the_svg(explorer: Explorer) -> None:
    _, data = saved(explorer, "svg")
    root = ElementTree.fromstring(data)  # noqa: S314
    hrefs = [
        image.get("href") or image.get("{http://www.w3.org/1999/xlink}href") or ""
        for image in root.iter(f"{SVG}image")
    ]
    assert hrefs
    assert all(href.startswith("data:image/png;base64,") for href in hrefs)
    assert any("169" in "".join(text.itertext()) for text in root.iter(f"{SVG}text"))


@pytest.mark.parametrize("filters", [2, 40], ids=["numbers-fit", "numbers-are-too-many"])
def test_an_address_says_what_is_selected_of_the_layer_that_a_page_holds(
    open_page: Callable[..., Explorer], filters: int
) -> None:
    rng = np.random.default_rng(0)
    geometry = ConvGeometry(3, filters, (5, 5), padding=1)
    weights = np.round(rng.normal(size=geometry.filters_shape), 6)
    state = explorer_state(weights, np.round(rng.normal(size=(9, 8, 3)), 6), geometry)
    explorer = open_page(state)
    explorer.click("output", 2, 3)
    explorer.tab("map")
    link = copied(explorer, "copy-link")
    assert ("cut=1" in link) == (filters == 40)
    other = open_page(state, address="#" + link.partition("#")[2])
    assert other.selection == explorer.selection
    assert other.chosen("p") == (2 * 6 + 3,)
    for part in ("settings", "filters", "view"):
        assert other.state[part] == explorer.state[part], part
    assert other.state["input"]["values"] == state["input"]["values"]
    # Other settings are another layer: the address has its way.
    changed = open_page(state, address="#1;preset=dilated;at=3.1")
    assert changed.settings["dilation"] == [2, 2]
