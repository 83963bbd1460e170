"""The tab "Algorithm": the film moves, the strip shows what is written, and a file comes of it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageSequence
from playwright.sync_api import expect

if TYPE_CHECKING:
    from browser import Explorer, OpensPage


def film(explorer: Explorer, preset: str = "figure-3") -> Explorer:
    """Three filters on three channels: M is 16 x 27, 499 steps."""
    return explorer.preset(preset).tab("algorithm")


def blank(explorer: Explorer, view: str) -> int:
    """Return how many cells of a grid are drawn empty, by the colours in their corners."""
    return explorer.ask(
        """(() => {
          const { grid } = explorer.strip[argument].panel;
          const { width, height } = grid.base;
          const context = new OffscreenCanvas(width, height).getContext("2d");
          context.drawImage(grid.base, 0, 0);
          const { data } = context.getImageData(0, 0, width, height);
          let count = 0;
          for (let r = 0; r < grid.source.rows; r++) for (let c = 0; c < grid.source.columns; c++) {
            const { x, y } = grid.box(r, c);
            const [i, j] = [x + 2, y + 2].map((v) => Math.floor(v * grid.ratio));
            const [red, green, blue] = data.slice(4 * (j * width + i));
            count += explorer.palette.empty === `rgb(${red}, ${green}, ${blue})`;
          }
          return count; })()""",
        view,
    )


def test_the_film_writes_m_then_k_then_y_then_the_output(explorer: Explorer) -> None:
    film(explorer)
    views = ("M", "K", "Y", "output")
    assert [blank(explorer, view) for view in views] == [0, 0, 0, 0]  # it has not begun
    explorer.act("forward")  # a row
    assert explorer.ask("store.view.step") == 27
    assert [blank(explorer, view) for view in views] == [15 * 27, 81, 48, 16]
    explorer.enter(unit="number").act("forward")
    assert explorer.chosen("p", "q", "element") == (1, 0, 3)  # row 1, column 0 reads (0, 1, 0)
    assert [blank(explorer, view) for view in views] == [15 * 27 - 1, 81, 48, 16]
    lines = explorer.view("algorithm").locator("[aria-current=step]")
    assert lines.get_attribute("data-line") == "14"
    assert explorer.live() == "Step 28 of 499: line 14."
    lit = explorer.picture("M")
    explorer.switch("feeds")  # the film lights what it reads and writes
    assert explorer.picture("M") == lit
    explorer.switch("feeds", False)
    explorer.enter(unit="part").act("forward").act("forward")
    assert [blank(explorer, view) for view in views] == [0, 0, 48, 16]
    explorer.act("forward").enter(unit="row").act("forward")
    assert [blank(explorer, view) for view in views] == [0, 0, 0, 15]
    assert explorer.view("algorithm").locator(".now strong").all_inner_texts() == [
        "1,296", f"{432 + 81 + 2 * 1296:,}", "432",
    ]  # fmt: skip
    explorer.act("back").act("back")
    assert [blank(explorer, view) for view in views] == [0, 0, 3, 16]
    explorer.control("position").fill("100")  # scrubbing back takes away what was written
    assert [blank(explorer.settled(), view) for view in views] == [432 - 100, 81, 48, 16]
    explorer.tab("arithmetic")
    assert [blank(explorer, view) for view in views] == [0, 0, 0, 0]
    explorer.tab("algorithm")
    assert blank(explorer, "M") == 332
    explorer.enter(stride__0=2)  # another film
    assert explorer.ask("store.moment") is None
    assert blank(explorer, "M") == 0


def test_each_way_has_its_counters_and_all_their_sum(explorer: Explorer) -> None:
    film(explorer)
    algorithm = explorer.view("algorithm")
    for lane, step, written, costs in (
        ("loops", 27 * 3 + 5, [432, 81, 48, 15], ["86", "172", "86"]),
        ("matrix", 108 * 3 + 7, [432, 81, 45, 16], ["331", "662", "0"]),
    ):
        explorer.root.locator(f"[data-lane={lane}]").click()
        explorer.ask(f"store.goTo({step})")
        explorer.settled()
        assert [blank(explorer, view) for view in ("M", "K", "Y", "output")] == written, lane
        assert algorithm.locator(".now strong").all_inner_texts() == costs
        assert algorithm.locator("[data-lane][aria-pressed=true]").count() == 1
    said = algorithm.inner_text()
    assert "largest difference of the results: 0 " in said
    assert "48 outputs" in said
    assert "T: 5,184" in said  # 48 x 108
    assert "M: 432" in said
    assert "75 % of T’s products are with zeros" in said


def test_it_plays_pauses_and_ends(explorer: Explorer) -> None:
    film(explorer).enter(speed="fast", unit="row").act("play")
    explorer.until("store.view.step >= 54")
    explorer.act("play")
    step = explorer.ask("store.view.step")
    assert step % 27 == 0
    assert explorer.rest(130).ask("store.view.step") == step
    explorer.act("play").tab("arithmetic")  # leaving it stops it
    assert not explorer.ask("explorer.transport.playing")
    p = explorer.selection["p"]
    assert explorer.act("forward").selection["p"] == p + 1  # the positions have it again
    explorer.tab("algorithm").enter(unit="part").act("play")
    explorer.until("store.view.step === 499")
    assert not explorer.rest(130).ask("explorer.transport.playing")


def test_who_asks_for_less_motion_has_steps_alone(open_page: OpensPage) -> None:
    explorer = film(open_page(reduced_motion="reduce"))
    expect(explorer.root.locator("[data-action=play]")).to_be_hidden()
    assert explorer.act("forward").ask("store.view.step") == 27
    explorer.tab("arithmetic")
    expect(explorer.root.locator("[data-action=play]")).to_be_visible()


def test_a_link_opens_the_film_where_it_stands(open_page: OpensPage) -> None:
    explorer = film(open_page())
    explorer.ask("store.show({lane: 'matrix'})")
    explorer.ask("store.goTo(300)")
    explorer.rest(400)
    other = open_page(address=explorer.ask("location.hash"))
    assert other.ask("[store.view.lane, store.moment]") == ["matrix", 300]
    assert blank(other, "Y") == blank(explorer, "Y") == 48 - 2
    # What an address does not choose, the film does: 52 entries are written, nine in a row.
    typed = open_page(address="#1;preset=first;tab=algorithm;film=im2col.52")
    assert typed.chosen("p", "q") == divmod(51, 9)
    rubbish = open_page(address="#1;preset=signal;tab=algorithm;film=im2col.999999")
    assert rubbish.ask("store.moment === store.trace.steps")


def test_the_film_is_saved_as_a_gif_of_ten_seconds_at_most(open_page: OpensPage) -> None:
    explorer = film(open_page(viewport={"width": 1000, "height": 700}))
    with explorer.page.expect_download() as download:
        explorer.act("gif")
    assert download.value.suggested_filename == "convfc-figure-3-im2col.gif"
    data = download.value.path().read_bytes()
    assert len(data) < 3_000_000
    image = Image.open(io.BytesIO(data))
    frames, durations = [], []
    for frame in ImageSequence.Iterator(image):
        frames.append(np.asarray(frame.convert("RGB")).astype(int))
        durations.append(frame.info["duration"])
    assert len(durations) == 48
    assert sum(durations) <= 10_000
    assert (abs(frames[0] - frames[-1]).max(-1) > 60).mean() > 0.02
    # The last picture is the strip, as PNG has it.
    with explorer.page.expect_download() as download:
        explorer.act("png")
    still = (
        Image.open(download.value.path()).convert("RGB").resize(image.size, Image.Resampling.BOX)
    )
    assert abs(np.asarray(still).astype(int) - frames[-1]).mean() < 6
    expect(explorer.root.locator("[data-action=gif]")).to_have_text("Save as GIF")
