"""The numbers themselves: cells edited, digits chosen and drawn, an image opened."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from convfc import ConvGeometry
from convfc.explorer.state import explorer_state

if TYPE_CHECKING:
    from browser import Explorer, OpensPage

FIGURE_2 = "#1;preset=figure-2"
PHONE: dict[str, Any] = {
    "has_touch": True,
    "viewport": {"width": 390, "height": 844},
    "is_mobile": True,
}


def test_an_edited_input_changes_m_y_and_the_arithmetic(open_page: OpensPage) -> None:
    explorer = open_page(address=FIGURE_2)
    assert explorer.ask("store.value(0, 0)") == 4
    drawn = {view: explorer.picture(view, "base") for view in ("input", "M", "Y", "output")}
    explorer.edit("input", 0, 0, "7")
    assert explorer.ask("[store.input[0], store.M[0]]") == [7, 7]
    assert explorer.ask("store.value(0, 0)") == 4 + 6
    assert "10" in explorer.view("arithmetic").inner_text()
    assert "sum 10" in explorer.live()
    for view, before in drawn.items():
        assert explorer.picture(view, "base") != before, view
    explorer.edit("M", 0, 4, "-2,5")  # with a comma, as half of the world types
    assert explorer.ask("[store.input[4], store.M[4]]") == [-2.5, -2.5]


def test_an_edited_weight_is_one_in_its_filter_and_in_k(explorer: Explorer) -> None:
    drawn = {name: explorer.picture(name, "base") for name in ("K", "Y")}
    explorer.edit("K", 5, 2, "9")
    assert explorer.ask("store.filters.indexOf(9)") == 2 * 16 + 5
    assert explorer.ask("store.K.indexOf(9)") == 5 * 4 + 2
    assert explorer.chosen("f", "q") == (2, 5)
    for name, before in drawn.items():
        assert explorer.picture(name, "base") != before, name
    filters = explorer.picture("filters", "base")
    explorer.edit("filters", 0, 1, "8")  # of the filter that is shown now
    assert explorer.ask("[store.filters.indexOf(8), store.K.indexOf(8)]") == [33, 6]
    assert explorer.picture("filters", "base") != filters


def test_a_bias_is_edited_beside_its_filter(explorer: Explorer) -> None:
    assert explorer.control("bias-value").is_hidden()
    explorer.switch("bias")
    explorer.click("K", 0, 1)
    before = explorer.ask("store.value(0, 1)")
    explorer.enter(bias__value=2.5)
    assert explorer.ask("[...store.bias]") == [0, 2.5, 0, 0]
    assert explorer.ask("store.value(0, 1)") == before + 2.5


def test_escape_and_rubbish_change_nothing(open_page: OpensPage) -> None:
    explorer = open_page(address=FIGURE_2)
    explorer.edit("input", 1, 1, "55", end="Escape")
    assert explorer.ask("store.input[4]") == 1
    explorer.edit("input", 1, 1, "four")
    editor = explorer.view("input").locator("input[name=cell]")
    assert editor.get_attribute("aria-invalid") == "true"
    assert explorer.ask("store.input[4]") == 1
    editor.press("Escape")
    assert editor.count() == 0
    assert explorer.grid("input").evaluate("grid => grid === document.activeElement")
    # By keyboard alone.
    explorer.press("K", "ArrowDown", "Enter")
    editor = explorer.view("K").locator("input[name=cell]")
    assert editor.evaluate("editor => editor === document.activeElement")
    assert editor.get_attribute("aria-label")
    explorer.page.keyboard.type("3")
    explorer.page.keyboard.press("Enter")
    assert explorer.ask("store.filters[store.selection.q]") == 3


def test_zero_padding_says_why_it_cannot_be_edited(explorer: Explorer) -> None:
    explorer.preset("dilated")
    explorer.grid("input").dblclick(position=explorer.point("input", 0, 0))
    note = explorer.view("input").get_by_role("alert")
    assert "not part of the input" in note.inner_text()
    assert explorer.view("input").locator("input[name=cell]").count() == 0


def test_digits_of_the_library_are_inputs(explorer: Explorer) -> None:
    digits = explorer.root.locator("[data-digit]")
    assert digits.count() >= 10
    before, product = explorer.ask("[...store.input]"), explorer.picture("Y", "base")
    explorer.root.locator("[data-digit='2']").click()
    explorer.settled()
    assert explorer.ask("[...store.input]") != before
    assert explorer.picture("Y", "base") != product
    assert explorer.ask("store.digit") == 2
    assert explorer.root.locator("[data-digit='2']").get_attribute("aria-checked") == "true"


def corners(explorer: Explorer) -> tuple[float, float, float, float]:
    box = explorer.view("pad").locator("canvas").bounding_box()
    return box["x"], box["y"], box["width"], box["height"]


def is_the_stroke(explorer: Explorer) -> None:
    """The input is a line down its middle, as it was drawn, and nothing else."""
    pixels = explorer.ask("[...store.input]")
    inked = {divmod(at, 28) for at, value in enumerate(pixels) if value > 0}
    assert {row for row, _ in inked} >= set(range(8, 20))
    assert {column for _, column in inked} <= set(range(11, 18))
    assert max(pixels) == 1
    assert 0 < min(value for value in pixels if value) < 1  # the brush is soft
    assert explorer.ask("store.digit") is None


def test_a_digit_is_drawn_with_the_mouse(explorer: Explorer) -> None:
    before = explorer.ask("[...store.input]")
    explorer.act("draw")
    explorer.view("pad").get_by_role("button", name="Use").click()
    assert explorer.ask("[...store.input]") == before  # nothing is drawn yet
    explorer.act("draw")
    x, y, width, height = corners(explorer)
    mouse = explorer.page.mouse
    mouse.move(x + width / 2, y + height / 4)
    mouse.down()
    for step in range(1, 9):
        mouse.move(x + width / 2, y + height * (0.25 + step / 16))
    mouse.up()
    mouse.move(x + 5, y + 5)  # the button is up: no ink
    explorer.view("pad").get_by_role("button", name="Use").click()
    explorer.settled()
    is_the_stroke(explorer)


def test_a_digit_is_drawn_with_a_finger(open_page: OpensPage) -> None:
    explorer = open_page(**PHONE)
    explorer.grid("output").tap(position=explorer.point("output", 6, 2))
    assert explorer.settled().chosen("p") == (6 * 13 + 2,)
    explorer.act("settings").act("draw")
    x, y, width, height = corners(explorer)
    finger = explorer.page.context.new_cdp_session(explorer.page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        finger.send(
            "Input.dispatchTouchEvent",
            {"type": kind, "touchPoints": [{"x": px, "y": py} for px, py in points]},
        )

    touch("touchStart", (x + width / 2, y + height / 4))
    for step in range(1, 9):
        touch("touchMove", (x + width / 2, y + height * (0.25 + step / 16)))
    touch("touchEnd")
    # Not a tap: so soon after a stroke the browser takes none.
    explorer.view("pad").get_by_role("button", name="Use").click()
    explorer.view("pad").wait_for(state="hidden")
    explorer.settled()
    is_the_stroke(explorer)


def file(pixels: Any) -> bytes:
    """Return a picture as a PNG file."""
    written = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(written, "PNG")
    return written.getvalue()


def opened(explorer: Explorer, name: str, data: bytes) -> str:
    """Open a file on the page; return what the head says then."""
    given = {"name": name, "mimeType": "image/png", "buffer": data}
    explorer.control("picture").set_input_files(files=[given])
    intro = explorer.root.locator(".intro")
    intro.get_by_text(name).first.wait_for()
    explorer.settled()
    return intro.inner_text()


def test_a_photo_is_opened_as_a_photo_and_named_in_the_head(explorer: Explorer) -> None:
    before = explorer.state
    halves = np.zeros((90, 120, 3))
    halves[:, :60, 0] = halves[:, 60:, 2] = 255
    head = opened(explorer, "photo.png", file(halves))
    assert explorer.settings["size"] == [64, 64]
    assert explorer.settings["channels"] == 3
    pixels = np.array(explorer.ask("[...store.input]")).reshape(64, 64, 3)
    assert pixels[:, :31].tolist() == np.full((64, 31, 3), [1, 0, 0]).tolist()
    assert pixels[:, 33:].tolist() == np.full((64, 31, 3), [0, 0, 1]).tolist()
    assert explorer.ask("explorer.strip.input.channel") == "rgb"
    assert explorer.root.get_by_role("heading", level=2).first.inner_text() == "photo.png"
    assert (
        "Input: cut and resized from 90 × 120 to 64 × 64, in colour. Filters: vertical edges,"
        in head
    )
    assert "paper trains" not in head
    # What the filters are said to show: of a 4 × 4 window in the red half, and over the edge.
    Y = np.reshape(explorer.ask("[...store.Y]"), (31, 31, 4))
    assert np.round(Y[3, 3], 9).tolist() == [0, 0, 1, round(1 / 3, 9)]
    assert np.round(Y[3, 28], 9).tolist() == [0, 0, -1, round(1 / 3, 9)]
    assert Y[3, 15, 2] == pytest.approx(0, abs=0.1)  # half red, half blue
    # Another one takes its place; each is one step back.
    assert "Back to" not in opened(explorer, "other.png", file(halves[..., ::-1]))
    assert explorer.ask("store.title") == "other.png"
    explorer.act("undo")
    assert explorer.ask("store.title") == "photo.png"
    explorer.act("undo")  # sizes, numbers and title together
    assert explorer.ask("store.digit") == 5
    assert explorer.state == before


def test_small_and_grey_pictures_are_as_they_are_and_dropped_ones_are_opened(
    explorer: Explorer,
) -> None:
    pixels = np.arange(9 * 12).reshape(9, 12) * 2
    head = opened(explorer, "small.png", file(pixels))
    assert (explorer.settings["size"], explorer.settings["channels"]) == ([9, 12], 1)
    assert np.array_equal(
        np.round(np.multiply(explorer.ask("[...store.input]"), 255)), pixels.ravel()
    )
    assert "9 × 12, its grey values. Filters: vertical edges, horizontal edges, a blur." in head
    data = base64.b64encode(file(np.stack([pixels, pixels, 0 * pixels], axis=-1))).decode()
    explorer.page.evaluate(
        """(data) => {
          const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
          const given = new DataTransfer();
          given.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
          const target = document.querySelector('[data-view="input"] [role=grid]');
          const how = { dataTransfer: given, bubbles: true, cancelable: true };
          if (target.dispatchEvent(new DragEvent("dragover", how))) throw Error("not taken");
          target.dispatchEvent(new DragEvent("drop", how));
        }""",
        data,
    )
    explorer.until("store.title === 'dropped.png'")
    assert (explorer.settings["size"], explorer.settings["channels"]) == ([9, 12], 3)
    assert explorer.ask("[...store.input].slice(-3)") == [0.839, 0.839, 0]
    # Filters of a preset are not those of a layer, which would keep its size and channels.
    explorer.preset("figure-2")
    opened(explorer, "photo.png", file(np.zeros((90, 120))))
    assert (explorer.settings["size"], explorer.settings["filters"]) == ([64, 64], 4)
    # With groups there are as many channels as before.
    explorer.preset("depthwise")
    opened(explorer, "photo.png", file(np.zeros((90, 120))))
    assert (explorer.settings["size"], explorer.settings["channels"]) == ([64, 64], 3)


def test_a_photo_for_a_layer_is_made_to_fit_the_layer(open_page: OpensPage) -> None:
    geometry = ConvGeometry(1, 2, (3, 3))
    state = explorer_state(np.arange(18.0).reshape(2, 3, 3, 1), 7, geometry, title="net, conv1")
    explorer = open_page(state)
    head = opened(explorer, "half.png", file([[255 * (row >= 14)] * 28 for row in range(28)]))
    assert "net, conv1, changed here" in head
    assert "half.png, 28 × 28, its grey values" in head
    pixels = explorer.ask("[...store.input]")
    assert pixels == [float(row >= 14) for row in range(28) for _ in range(28)]
    assert explorer.state["filters"] == state["filters"]


def test_numbers_that_overflow_are_said_and_drawn(open_page: OpensPage) -> None:
    explorer = open_page(address=FIGURE_2)
    blank = explorer.picture("Y", "base")
    explorer.edit("input", 0, 0, "1e308").edit("input", 1, 0, "1e308").edit("input", 2, 0, "1e308")
    assert explorer.ask("store.value(0, 0)") == float("inf")
    assert explorer.ask("Number.isFinite(store.largest('output'))")
    assert "= ∞" in explorer.view("arithmetic").inner_text()
    assert "sum ∞" in explorer.live()
    assert explorer.picture("Y", "base") != blank
    red, green, blue, alpha = explorer.ask(
        "(({ base, ratio }) => [...base.getContext('2d').getImageData("
        "8 * ratio, 8 * ratio, 1, 1).data])(explorer.strip.Y.panel.grid)"
    )
    assert alpha == 255
    assert explorer.ask("explorer.palette.css(Infinity, 1)") == f"rgb({red}, {green}, {blue})"
    cell = explorer.grid("Y").locator("[role=gridcell]")
    assert cell.text_content() == "row 0, column 0: ∞"
    for _ in explorer.panels():
        explorer.settled()
    explorer.edit("input", 0, 0, "1")
    explorer.edit("input", 1, 0, "0")
    assert explorer.ask("store.value(0, 0)") == 1e308


def test_a_file_that_is_no_image_is_refused_in_words(explorer: Explorer) -> None:
    before = explorer.ask("[...store.input]")
    given = {"name": "notes.png", "mimeType": "image/png", "buffer": b"not an image"}
    explorer.control("picture").set_input_files(files=[given])
    note = explorer.root.get_by_role("alert").filter(has_text="notes.png")
    note.wait_for()
    assert "PNG or JPEG" in note.inner_text()
    assert explorer.ask("[...store.input]") == before
