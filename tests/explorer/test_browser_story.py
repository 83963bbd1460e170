"""The story as somebody reads it: told to the end, checked, covered, turned, and left."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from browser import WEB, lacking

if TYPE_CHECKING:
    from browser import Explorer, OpensPage

PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True}
SMALL: dict[str, Any] = {"viewport": {"width": 1280, "height": 720}}
PICTURES = range(1, 10)

# What of the page is outside the window, in words; of a phone's, what is too wide.
OUTSIDE = """(narrow) => {
  const { innerWidth, innerHeight } = window;
  const { scrollWidth, scrollHeight } = document.documentElement;
  const found = scrollWidth > innerWidth ? [`the page is ${scrollWidth} wide`] : [];
  if (!narrow && scrollHeight > innerHeight) found.push(`the page is ${scrollHeight} high`);
  for (const node of document.querySelectorAll('.convfc-explorer *')) {
    const box = node.getBoundingClientRect();
    const hidden = !box.width || getComputedStyle(node).visibility === 'hidden';
    if (hidden || node.closest('.unseen, .skip, dialog, .links')) continue;
    const below = !narrow && box.bottom > innerHeight + 0.5;
    if (box.left < -0.5 || box.right > innerWidth + 0.5 || below)
      found.push(`${node.localName}.${node.className} is outside`);
    if (!narrow && node.scrollHeight > node.clientHeight + 1 && node.matches('.story, .card, .main'))
      found.push(`${node.className} scrolls`);
  }
  return found;
}"""


def turn(explorer: Explorer, n: int) -> Explorer:
    """Open the nth picture."""
    explorer.ask("explorer.story.go(argument)", n)
    return explorer.settled()


def answer(explorer: Explorer, number: float) -> Explorer:
    field = explorer.control("answer")
    field.fill(str(number))
    field.press("Enter")
    return explorer.settled()


def said(explorer: Explorer) -> str:
    return explorer.view("story").locator(".said").inner_text()


def done(explorer: Explorer) -> int:
    """Return how many tasks of the picture are ticked."""
    return explorer.view("story").locator("li.done").count()


def violations(explorer: Explorer) -> list[str]:
    found = explorer.page.evaluate(
        "(rules) => axe.run('.convfc-explorer', {runOnly: {type: 'tag', values: rules}})",
        ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"],
    )
    return [
        f"{one['id']}: {node['html'][:200]}" for one in found["violations"] for node in one["nodes"]
    ]


@pytest.mark.parametrize(
    ("size", "scheme"), [(SMALL, "light"), (PHONE, "dark")], ids=["1280x720", "390x844"]
)
def test_the_story_is_told_to_the_end(
    open_page: OpensPage, size: dict[str, Any], scheme: str
) -> None:
    """As a reader does it, with mouse and keys; all of it can be seen, and axe finds nothing."""
    axe = WEB / "node_modules/axe-core/axe.min.js"
    if not axe.exists():
        lacking("axe-core is not there; remedy: npm ci in src/convfc/explorer/web")
    narrow = size is PHONE
    explorer = open_page(bypass_csp=True, color_scheme=scheme, **size)
    explorer.page.add_script_tag(content=axe.read_text(encoding="utf-8"))
    found: dict[str, list[str]] = {}

    def seen(when: str, tasks: int) -> None:
        assert done(explorer) == tasks, when
        found[when] = explorer.page.evaluate(OUTSIDE, narrow)

    def following(n: int) -> None:
        assert explorer.view("story").get_by_role("heading").count() == 1
        found[f"axe, {n - 1} done"] = violations(explorer)
        explorer.act("story-next")
        assert explorer.ask("store.view.story") == n
        seen(f"{n}", 0)

    explorer.act("start-story")
    seen("1", 0)
    explorer.click("input", 0, 2)
    assert said(explorer) == "Not yet: this is 8, and there is a larger one in row 1."
    seen("1, wrong", 0)
    explorer.click("input", 1, 2).edit("input", 1, 2, "0")
    seen("1, done", 2)
    following(2)
    answer(explorer, 5)
    seen("2, wrong", 0)
    answer(explorer, 22)
    seen("2, done", 1)
    following(3)
    explorer.page.keyboard.press("ArrowRight")
    answer(explorer, 22)
    seen("3, wrong", 1)
    answer(explorer, 17)
    seen("3, done", 2)
    following(4)
    explorer.click("M", 3, 3)
    seen("4, wrong", 0)
    explorer.click("M", 4, 3)
    seen("4, done", 1)
    following(5)
    explorer.click("M", 7, 3)
    seen("5, wrong", 0)
    explorer.click("K", 3, 1)
    seen("5, done", 1)
    following(6)
    answer(explorer, 12)
    seen("6, wrong", 0)
    answer(explorer, 5)
    seen("6, done", 1)
    assert explorer.chosen("p") == (5,)
    following(7)
    explorer.enter(stride__0=2)
    seen("7, wrong", 0)
    explorer.enter(kernel__0=0)
    seen("7, no convolution", 0)
    explorer.enter(kernel__0=3, stride__1=2)
    seen("7, done", 1)
    following(8)
    explorer.click("T", 0, 0)
    seen("8, wrong", 0)
    explorer.click("T", 0, 20)
    answer(explorer, 225)
    seen("8, half", 1)
    answer(explorer, 9)
    seen("8, done", 2)
    following(9)
    explorer.act("story-press")
    seen("9, half", 1)
    explorer.act("story-press")
    pad = explorer.root.locator("dialog[open]")
    assert pad.is_visible()
    explorer.page.keyboard.press("Escape")  # it closes the pad, not the story
    assert pad.count() == 0
    explorer.settled().root.locator(".chip[data-filter='1']").click()
    seen("9, wrong", 1)
    explorer.root.locator(".chip[data-filter='2']").click()
    seen("9, done", 2)
    found["axe, 9 done"] = violations(explorer)
    explorer.act("story-next")
    assert explorer.view("story").is_hidden()
    assert {when: what for when, what in found.items() if what} == {}


# All that is read of a page, aloud or not: texts, attributes, and what controls hold.
READ = """[explorer.root.innerText, explorer.root.textContent,
  ...[...explorer.root.querySelectorAll("*")].flatMap((node) =>
    [...node.attributes].filter(({ name }) => /^aria-(label|value|desc)|^title/.test(name))
      .map(({ value }) => value)),
  ...[...explorer.root.querySelectorAll("input")].map(({ value }) => value)].join(" ; ")"""
COVERS = "[...['output', 'Y'].map((v) => explorer.strip[v].panel.grid.base.toDataURL()), store.describe()]"


def test_what_is_covered_is_nowhere_on_the_page(open_page: OpensPage) -> None:
    """Not in a text, a label or the live region, nor in the colour of its cell."""
    explorer = open_page(address="#1;story=2", reduced_motion="reduce")
    explorer.ask("store.select({ p: 3 })")  # announced, and another number
    explorer.settled().live()
    for p, number in ((3, 23), (0, 22)):
        explorer.ask("store.select({ p: argument })", p)
        explorer.settled().live()
        for view in ("input", "output"):
            explorer.grid(view).focus()
        assert not re.search(rf"\b{number}\b", explorer.ask(READ)), p
    covered = explorer.ask(COVERS)
    # Other numbers look the same.
    explorer.ask("store.edit('input', 2, -90)")
    explorer.settled()
    assert (
        explorer.ask("store.arithmetic().terms.reduce((sum, { product }) => sum + product, 0)") < 0
    )
    assert explorer.ask(COVERS) == covered
    explorer.ask("store.undo()")
    answer(explorer, 22)
    assert explorer.ask(COVERS) != covered
    read = explorer.ask(READ)
    assert len(re.findall(r"\b22\b", read)) >= 3
    assert "sum 22" in explorer.live()


def test_leaving_brings_back_what_was_there(explorer: Explorer) -> None:
    explorer.preset("figure-3").edit("input", 2, 2, "7").click("output", 1, 1).tab("backward").rest(
        400
    )
    past = "[store.past.length, location.hash, explorer.root.querySelector('main').innerText]"
    before, kept = explorer.state, explorer.ask(past)
    for way in ("Escape", "story-leave", "Back"):
        button = explorer.root.locator("[data-action=story]")
        button.press("Enter")
        turn(explorer, 3).page.keyboard.press("ArrowRight")
        turn(explorer, 9).act("story-press")
        assert explorer.view("controls").is_hidden()
        if way == "Escape":
            explorer.page.keyboard.press("Escape")
        elif way == "Back":
            explorer.page.go_back()
        else:
            explorer.act(way)
        explorer.settled().rest(400)
        assert explorer.view("story").is_hidden()
        assert explorer.view("controls").is_visible()
        assert explorer.state == before, way
        assert explorer.ask(past) == kept, way
        assert way == "Back" or button.evaluate("button => button === document.activeElement")
    explorer.ask("store.undo()")
    assert explorer.state["input"]["values"] != before["input"]["values"]


def test_pages_are_turned_by_keys_and_buttons_and_have_addresses(open_page: OpensPage) -> None:
    explorer = open_page(address="#1;story=5")
    story = "store.view.story"
    assert explorer.ask(story) == 5
    press = explorer.page.keyboard.press
    press("ArrowRight")
    explorer.rest(400)
    assert explorer.page.url.endswith("#1;story=6")
    press("ArrowLeft")
    press("ArrowLeft")
    assert explorer.ask(story) == 4
    assert explorer.ask("document.activeElement.textContent") == "Write each window as a row"
    # In a grid and in a field the arrows are theirs.
    explorer.press("M", "ArrowRight")
    assert (explorer.ask(story), explorer.chosen("q")) == (4, (1,))
    turn(explorer, 6).control("answer").press("ArrowUp")
    explorer.control("answer").press("ArrowLeft")
    assert explorer.ask(story) == 6
    explorer.control("answer").press("Escape")  # it ends what is typed, then the story
    assert (explorer.ask(story), explorer.control("answer").input_value()) == (6, "")
    explorer.root.get_by_role("button", name="Picture 1: A picture is numbers").click()
    assert explorer.ask(story) == 1
    press("ArrowLeft")
    assert explorer.ask(story) == 1
    press("Escape")
    assert explorer.settled().view("story").is_hidden()
    assert explorer.page.evaluate("() => document.querySelector('main').innerText.length") > 300


def test_a_finger_turns_the_pages(open_page: OpensPage) -> None:
    explorer = open_page(**PHONE, address="#1;story=2")
    swipe = """([from, to]) => {
      const { explorer } = document.querySelector('.convfc-explorer');
      const text = explorer.story.text;
      for (const [name, x] of [['touchstart', from], ['touchend', to]]) {
        const touch = new Touch({ identifier: 1, target: text, clientX: x, clientY: 80 });
        text.dispatchEvent(new TouchEvent(name, { changedTouches: [touch], bubbles: true }));
      }
      return explorer.store.view.story;
    }"""
    assert explorer.page.evaluate(swipe, [300, 120]) == 3
    assert explorer.page.evaluate(swipe, [120, 300]) == 2
    assert explorer.page.evaluate(swipe, [120, 140]) == 2
    # The text stays on top, in at most 35 % of the height, while the picture moves below it.
    explorer.page.evaluate("() => scrollTo(0, document.documentElement.scrollHeight)")
    box = turn(explorer, 6).view("story").bounding_box()  # the longest text
    assert (box["y"], box["width"]) == (0, 390)
    assert box["height"] <= 0.35 * 844 + 1


def test_it_says_the_same_in_forced_colours_and_in_calm(open_page: OpensPage) -> None:
    explorer = open_page(address="#1;story=3", forced_colors="active", reduced_motion="reduce")
    dots = explorer.view("story").locator(".dots button")
    colours = dots.evaluate_all("all => all.map((one) => getComputedStyle(one).backgroundColor)")
    assert [i for i, colour in enumerate(colours) if colour != colours[0]] == [2]
    drawn = "explorer.strip.links.element.toDataURL()"
    explorer.page.keyboard.press("ArrowRight")
    still = explorer.settled().ask(drawn)
    assert explorer.rest(100).ask(drawn) == still  # nothing flies
    assert done(explorer) == 1
