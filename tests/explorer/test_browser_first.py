"""What the page shows before anything is pressed, and what is at hand at every size of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from convfc import ConvGeometry
from convfc.explorer.state import explorer_state

if TYPE_CHECKING:
    from browser import Explorer, OpensPage

LECTURE = {"width": 1280, "height": 720}
PHONE = {"width": 390, "height": 844}
WALK = 600
"""Milliseconds between two positions (web/src/views/transport.js)."""

CAPTIONS = {
    "input": "input 5 × 5 × 1",
    "M": "M: patches 9 × 9",
    "K": "K: filters 9 × 2",
    "Y": "Y = M K 9 × 2",
    "output": "output 3 × 3 × 2",
}


def bottom(explorer: Explorer, selector: str) -> float:
    box = explorer.root.locator(selector).last.bounding_box()
    return box["y"] + box["height"]


def test_every_number_of_the_first_picture_is_read_with_its_products(open_page: OpensPage) -> None:
    explorer = open_page(address="", viewport=LECTURE, reduced_motion="reduce")
    for view, caption in CAPTIONS.items():
        said = explorer.view(view).get_by_role("heading").inner_text()
        assert " ".join(said.split()) == caption
        size = explorer.ask("explorer.strip[argument].panel.grid.font?.size ?? 0", view)
        assert size >= 11, view
    assert explorer.root.locator(".terms li").count() == 9
    assert bottom(explorer, ".terms li") <= LECTURE["height"]
    paper = explorer.root.locator(".brand a")
    assert paper.inner_text() == "the paper"
    assert paper.get_attribute("href") == "https://arxiv.org/abs/1712.01252"


def test_the_window_walks_until_anything_is_touched(open_page: OpensPage) -> None:
    explorer = open_page(address="")
    explorer.until("store.selection.p === 2").until("store.selection.p === 1")  # and begins anew
    assert explorer.page.evaluate("() => location.hash") == ""
    assert explorer.live() == ""  # nobody is told of each step
    explorer.root.locator(".title").click()
    stopped = explorer.chosen("p")
    assert explorer.rest(2 * WALK + 100).chosen("p") == stopped
    assert explorer.root.locator("[data-action=play]").get_attribute("aria-label") == "Play"


def test_the_window_stands_still_where_it_should(open_page: OpensPage) -> None:
    explorer = open_page(address="", reduced_motion="reduce")
    assert explorer.rest(WALK + 300).chosen("p") == (0,)
    own = explorer_state(np.ones((1, 1, 2, 1)), 3, ConvGeometry(1, 1, (1, 2)))
    still = open_page(own)
    before = still.chosen("p")
    assert still.rest(WALK + 300).chosen("p") == before
    assert open_page(address="#1;preset=first;at=4.1").rest(WALK + 300).chosen("p") == (4,)


def test_a_large_window_is_used(open_page: OpensPage) -> None:
    explorer = open_page(address="", viewport={"width": 1920, "height": 1080})
    high, wide = explorer.side("M")
    assert min(high, wide) >= 46
    assert 0.8 * 1080 <= bottom(explorer, ".terms li") <= 1080
    explorer.page.set_viewport_size({"width": 1920, "height": 760})  # it follows the height, too
    assert explorer.settled().side("M")[0] < high
    assert bottom(explorer, ".terms li") <= 760


# --- settings ----------------------------------------------------------------------------------


def test_rows_and_columns_are_one_number_until_they_are_unlocked(explorer: Explorer) -> None:
    explorer.act("stride-less")
    assert explorer.settings["stride"] == [1, 1]
    explorer.enter(kernel__0=5, padding=2)
    assert explorer.settings["kernel"] == [5, 5]
    assert explorer.settings["padding"] == [[2, 2], [2, 2]]
    assert explorer.control("kernel-1").is_hidden()
    explorer.switch("lock", False).enter(kernel__1=3, padding__0__high=0)
    assert explorer.settings["kernel"] == [5, 3]
    assert explorer.settings["padding"] == [[2, 0], [2, 2]]
    assert explorer.root.locator(".slide:visible").count() == 1  # groups have no axes
    explorer.switch("lock")
    assert explorer.settings["kernel"] == [5, 5]
    assert explorer.settings["padding"] == [[2, 2], [2, 2]]
    explorer.act("undo")  # what is not alike unlocks them
    assert explorer.settings["kernel"] == [5, 3]
    assert not explorer.control("lock").is_checked()
    explorer.preset("transposed")
    assert explorer.control("lock").is_checked()


@pytest.mark.parametrize("field", ["kernel", "stride", "padding", "dilation", "groups"])
def test_buttons_and_sliders_offer_convolutions_only(open_page: OpensPage, field: str) -> None:
    explorer = open_page(address="#1;n=6.5;c=6;f=4;k=2.2;m=reflect")
    more = explorer.root.locator(f'[data-action="{field}-more"]')
    seen = [explorer.settings[field]]
    while more.is_enabled():
        more.click()
        explorer.settled()
        assert explorer.ask("store.problems") == []
        seen.append(explorer.settings[field])
    last = {"kernel": 5, "stride": 8, "padding": 4, "dilation": 4, "groups": 2}[field]
    flat = [max(v if isinstance(v, list) else [v], key=str) for v in seen]
    assert str(last) in str(flat[-1])
    assert len(seen) > 1
    slider = explorer.root.locator(f'.field:has([data-action="{field}-more"]) .slide')
    slider.fill("0")
    assert explorer.settled().settings[field] == seen[0] or field == "kernel"
    assert explorer.ask("store.problems") == []
    assert explorer.root.locator(f'[data-action="{field}-less"]').is_disabled()


def test_a_slider_offers_the_present_number_however_large_it_is(open_page: OpensPage) -> None:
    explorer = open_page(address="#1;n=3.3;c=512;f=512;k=3.3;g=512")
    slider = explorer.root.locator('.field:has([data-action="groups-more"]) .slide')
    assert slider.evaluate("e => [e.value, e.max]") == [
        "6",
        "6",
    ]  # 2 (1 is too large for the page), 4, ... 64, and 512
    explorer.control("groups").fill("1000000000")
    explorer.control("groups").press("Enter")
    assert explorer.settled().problem("groups").is_visible()
    explorer.act("groups-less")
    assert explorer.settings["groups"] == 64


# --- presented, on a phone, in a notebook --------------------------------------------------------


def test_presented_the_picture_is_alone_and_larger(open_page: OpensPage) -> None:
    explorer = open_page(address="#1;preset=first;at=0.0", viewport=LECTURE)
    before = explorer.side("M"), explorer.view("M").locator(".caption").bounding_box()["height"]
    explorer.act("present")
    assert explorer.view("controls").is_hidden()
    after = explorer.side("M"), explorer.view("M").locator(".caption").bounding_box()["height"]
    assert after[0][0] * after[0][1] > 1.2 * before[0][0] * before[0][1]
    assert after[1] > 1.4 * before[1]
    page = explorer.page
    page.keyboard.press("PageDown")
    page.keyboard.press("PageDown")
    page.keyboard.press("PageUp")
    assert explorer.settled().chosen("p") == (1,)
    page.keyboard.press("Space")
    explorer.until("store.selection.p === 3")
    page.keyboard.press("Escape")
    explorer.root.locator(".controls").wait_for()
    assert explorer.settled().side("M") == before[0]


def test_on_a_phone_the_equation_goes_along_and_settings_come_from_below(
    open_page: OpensPage,
) -> None:
    explorer = open_page(address="#1;preset=first;at=4.0", viewport=PHONE)
    band = explorer.root.locator(".pocket")
    assert band.is_hidden()  # the input itself is in view
    explorer.view("Y").scroll_into_view_if_needed()
    band.wait_for()
    drawn = "e => e.querySelector('canvas').toDataURL()"
    before, box = band.evaluate(drawn), band.bounding_box()
    assert (box["y"], box["width"]) == (0, 390)
    explorer.act("forward")
    assert band.evaluate(drawn) != before
    assert explorer.view("controls").is_hidden()
    explorer.act("settings")
    sheet = explorer.view("controls").bounding_box()
    assert sheet["y"] >= 844 / 2 - 30  # the picture stays in view above it
    before = band.evaluate(drawn)
    explorer.enter(stride__0=2)
    assert explorer.settings["stride"] == [2, 2]
    assert band.evaluate(drawn) != before
    explorer.act("settings")
    assert explorer.view("controls").is_hidden()
    explorer.page.evaluate("() => scrollTo(0, 0)")
    band.wait_for(state="hidden")


@pytest.mark.parametrize("width", [800, 1006])
def test_in_a_cell_the_main_settings_are_above_the_picture(
    open_page: OpensPage, width: int
) -> None:
    explorer = open_page(viewport={"width": width, "height": 900})
    assert explorer.root.get_attribute("data-width") == "middle"
    for name in ("kernel-0", "stride-0", "padding", "dilation-0", "groups"):
        assert explorer.control(name).bounding_box()["y"] < explorer.view("M").bounding_box()["y"]
    assert explorer.control("channels").is_hidden()
    explorer.act("more")
    assert explorer.control("channels").is_visible()
    explorer.act("more")
    assert explorer.root.bounding_box()["height"] < 1250
