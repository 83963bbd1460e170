"""What comes and what leaves: the page served and written, its address, code, pictures."""

from __future__ import annotations

import base64
import io
import json
import re
import signal
import subprocess
import sys
from email.message import Message
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np
import pytest
from browser import PATIENCE, Explorer, Watch
from PIL import Image

from convfc import ConvGeometry
from convfc.explorer.state import explorer_state

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

    from browser import OpensContext, OpensPage
    from model import Model

RUN = (sys.executable, "-m", "convfc", "explore")
CLIPBOARD = "() => navigator.clipboard.readText()"
SVG = "{http://www.w3.org/2000/svg}"

# --- where the page comes from ---


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of `convfc explore`, which runs until the tests of this file are done."""
    command = [*RUN, "--no-browser", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603
    found = None
    for line in server.stdout:
        if found := re.search(r"http://127\.0\.0\.1:\d+/", line):
            break
    assert found, "the server says where it is"
    yield found.group()
    server.send_signal(signal.SIGINT)
    assert server.wait(PATIENCE) in {0, 130}  # Ctrl-C ends it, as it ends any program
    server.stdout.close()


def test_the_served_page_obeys_its_strict_policy(open_context: OpensContext, address: str) -> None:
    page = open_context(permissions=["clipboard-read", "clipboard-write"]).new_page()
    watch = Watch(page, own=[address.rstrip("/")])
    answer = page.goto(address)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    explorer = Explorer(page).ready()
    for preset in ("depthwise", "transposed", "experiment"):
        explorer.preset(preset)
    for name in explorer.panels():
        if name != "train":  # which has pictures of its own
            explorer.click("output", 2, 2)
    for action in ("png", "svg"):
        with page.expect_download():
            explorer.act(action)
    explorer.act("copy-link").act("draw")
    said = explorer.root.locator(".toast").inner_text()
    assert "on this machine only, while convfc explore runs" in said
    assert page.evaluate(CLIPBOARD).startswith(address)
    watch.check()
    assert all(request.startswith(address) for request in watch.requests)
    # It is enforced.
    page.evaluate(
        "() => document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:9/x.png'}))"
    )
    page.wait_for_function("() => window.brokenPolicy.length > 0")
    with pytest.raises(AssertionError, match="img-src"):
        watch.check()


# --- its address ---


def copied(explorer: Explorer, action: str) -> str:
    """Press a copy button; return what is on the clipboard once the page has said so."""
    explorer.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    explorer.page.bring_to_front()
    explorer.ask("void (explorer.toast.hidden = true)")
    explorer.act(action)
    explorer.root.locator(".toast").wait_for()
    return explorer.page.evaluate(CLIPBOARD)


def test_an_address_opens_the_same_state_on_a_new_page(open_page: OpensPage) -> None:
    explorer = open_page()
    explorer.preset("dilated")
    explorer.enter(stride__0=2, filters=3)
    explorer.switch("bias")
    explorer.enter(bias__value=-3)
    explorer.edit("input", 4, 4, "-7")
    explorer.edit("K", 2, 1, "0.25")
    explorer.click("output", 1, 2)
    explorer.tab("algorithm")
    explorer.switch("feeds")
    link = copied(explorer, "copy-link")
    assert link.startswith("file:")
    said = explorer.root.locator(".toast").inner_text()
    assert said == "The link is copied. It opens on this machine only."
    assert "#1;" in link
    other = open_page(address="#" + link.partition("#")[2])
    for part in ("settings", "filters", "bias", "selection"):
        assert other.state[part] == explorer.state[part], part
    assert other.state["input"]["values"] == explorer.state["input"]["values"]
    assert other.ask("[store.view.tab, store.view.feeds]") == ["algorithm", True]
    for page in (explorer, other):  # each says its selection when there is a new one
        page.press("output", "ArrowRight")
    assert other.live() == explorer.live()
    for view in ("input", "M", "K", "Y", "output"):
        ours, theirs = (pixels(page.picture(view, "base")) for page in (explorer, other))
        # The edges of digits may be smoothed in another way on a page that is older.
        assert np.abs(ours - theirs).max() <= 32, view


@pytest.mark.parametrize("filters", [2, 40], ids=["numbers-fit", "numbers-are-too-many"])
def test_of_a_page_on_this_machine_the_link_leads_to_the_public_one(
    open_page: OpensPage, monkeypatch: pytest.MonkeyPatch, filters: int
) -> None:
    urls = Message()
    urls["Project-URL"] = "Documentation, https://docs.example/convfc/"
    monkeypatch.setattr("convfc.explorer.page.metadata", lambda _: urls)
    geometry = ConvGeometry(3, filters, (5, 5))
    weights = np.random.default_rng(0).integers(-9, 9, geometry.filters_shape)
    explorer = open_page(explorer_state(weights, np.ones((9, 8, 3)), geometry))
    explorer.click("output", 2, 3)
    link = copied(explorer, "copy-link")
    site, _, address = link.partition("#")
    assert site == "https://docs.example/convfc/explorer/index.html"
    said = explorer.root.locator(".toast").inner_text()
    expected = "The link is copied. It opens on docs.example"
    if filters == 40:
        expected += " and has the usual numbers: these are too many for an address"
    assert said == f"{expected}."
    # The public page is made for no layer.
    other = open_page(address="#" + address)
    assert (other.settings, other.selection) == (explorer.settings, explorer.selection)
    assert (other.state["filters"] == explorer.state["filters"]) == (filters == 2)


def pixels(url: str) -> np.ndarray:
    """Return the picture of a data URL."""
    file = io.BytesIO(base64.b64decode(url.partition(",")[2]))
    return np.asarray(Image.open(file).convert("RGB"), np.int64)


def test_the_address_of_the_page_keeps_step(open_page: OpensPage) -> None:
    explorer = open_page()
    explorer.preset("figure-6")
    explorer.click("output", 3, 3)
    explorer.page.wait_for_function("() => location.hash.includes('at=24')")
    assert "preset=figure-6" in explorer.page.evaluate("() => location.hash")
    entries = explorer.page.evaluate("() => history.length")
    explorer.click("output", 1, 1)
    explorer.page.wait_for_function("() => location.hash.includes('at=8')")
    assert explorer.page.evaluate("() => history.length") == entries  # only a start is an entry
    # An address typed over the old one is opened.
    explorer.page.evaluate("() => { location.hash = '#1;preset=transposed;at=9.1' }")
    assert explorer.until("store.settings.transposed").chosen("p", "f") == (9, 1)


@pytest.mark.parametrize("address", ["#9;x", "#1;k=40.40", "#%E0%A4%A", "#1;at=a.b;i=1,2,oops"])
def test_rubbish_in_an_address_is_said_and_the_page_works(
    open_page: OpensPage, address: str
) -> None:
    explorer = open_page(address=address)
    assert explorer.ask("store.problems") == []
    explorer.click("output", 0, 1)
    assert explorer.chosen("p") == (1,)
    assert explorer.root.locator("p[role=status]").inner_text().strip()


@pytest.mark.parametrize("filters", [2, 40], ids=["numbers-fit", "numbers-are-too-many"])
def test_an_address_says_what_is_selected_of_the_layer_that_a_page_holds(
    open_page: OpensPage, filters: int
) -> None:
    rng = np.random.default_rng(0)
    geometry = ConvGeometry(3, filters, (5, 5), padding=1)
    weights = np.round(rng.normal(size=geometry.filters_shape), 6)
    state = explorer_state(weights, np.round(rng.normal(size=(9, 8, 3)), 6), geometry)
    explorer = open_page(state)
    explorer.click("output", 2, 3)
    explorer.tab("algorithm")
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


# --- its code and its pictures ---


def test_copied_code_is_the_code_that_is_tested(explorer: Explorer, model: Model) -> None:
    explorer.preset("depthwise").tab("code")
    for column, language in enumerate(("torch", "keras", "numpy")):
        explorer.root.locator(f'[data-language="{language}"]').click()
        explorer.click("output", 3, column)  # the program follows
        asked = explorer.state, language, [explorer.selection]
        (code,) = model.ask("programs", *asked)["programs"]
        assert explorer.view("code").locator("code").text_content() == code
        assert copied(explorer, "copy-code") == code
        name, data = saved(explorer, "notebook")
        assert name == f"convfc-depthwise-{language}.ipynb"
        about, cell = json.loads(data)["cells"]
        assert cell["source"] + "\n" == code
        assert about["source"].startswith("# Depthwise\n")
        assert explorer.ask("explorer.link") in about["source"]
    # The numbers of the program are the page's.
    names: dict[str, np.ndarray] = {}
    exec(code, names)  # noqa: S102
    assert explorer.ask("[...store.M]") == names["M"].ravel().tolist()
    assert explorer.ask("[...store.Y]") == names["y"].ravel().tolist()
    explorer.switch("numbers", on=False)
    code = model.ask("code", explorer.settings, "numpy")
    assert explorer.view("code").locator("code").text_content() == code
    # Of many numbers there are none unless they are wanted, and of very many never.
    explorer.preset("experiment").switch("numbers", on=True)
    assert "assert abs(y[0, 7, 6, 0] " in explorer.view("code").locator("code").inner_text()
    explorer.enter(channels=40)
    assert explorer.control("numbers").is_disabled()
    assert not explorer.control("numbers").is_checked()


def saved(explorer: Explorer, action: str) -> tuple[str, bytes]:
    """Press an export button; return the name and the bytes of the file that arrives."""
    with explorer.page.expect_download() as waiting:
        explorer.act(action)
    path: pathlib.Path = waiting.value.path()
    return waiting.value.suggested_filename, path.read_bytes()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_strip_is_saved_as_png(open_page: OpensPage, scheme: str) -> None:
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


def test_the_strip_is_saved_as_svg_with_its_numbers(open_page: OpensPage) -> None:
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
