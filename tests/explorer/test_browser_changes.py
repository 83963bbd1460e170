"""Every change can be seen, undone, and gone back from; what was given comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from convfc import ConvGeometry
from convfc.explorer.state import explorer_state, state_layer

if TYPE_CHECKING:
    from browser import Explorer, OpensPage

# The test says how time goes by: `later()` ends the pause after which a typed number is taken
# (600 ms, web/src/views/dom.js), and the second after which another change of a setting is another.
HELD = """(() => {
  const { setTimeout, clearTimeout } = window;
  const held = new Map();
  let [now, count] = [0, 0];
  Date.now = () => now;
  window.setTimeout = (run, after, ...rest) => {
    if (after !== 600) return setTimeout(run, after, ...rest);
    held.set(`held-${(count += 1)}`, run);
    return `held-${count}`;
  };
  window.clearTimeout = (timer) => held.delete(timer) || clearTimeout(timer);
  window.later = () => {
    now += 1000;
    for (const [timer, run] of [...held]) held.delete(timer) && run();
  };
})();"""


def trained() -> dict[str, Any]:
    """A layer and a photograph, as a researcher gives them: no number occurs twice."""
    rng = np.random.default_rng(0)
    geometry = ConvGeometry(3, 16, (5, 5), stride=2, padding=2)
    return explorer_state(
        rng.normal(size=geometry.filters_shape),
        rng.random((20, 24, 3)),
        geometry,
        title="net, conv1",
        source="Input: photo.png",
    )


@pytest.fixture
def layer(open_page: OpensPage) -> Explorer:
    return open_page(trained(), script=HELD)


def numbers(explorer: Explorer) -> tuple[list[float], ...]:
    state = explorer.state
    return state["input"]["values"], state["filters"]


def later(explorer: Explorer) -> None:
    """Let more time go by than any pause takes."""
    explorer.page.evaluate("() => later()")
    explorer.settled()


def retype(explorer: Explorer, name: str, text: str, slowly: bool = False) -> None:
    """Select what is in a field and type over it, key by key."""
    control = explorer.control(name)
    control.click()
    control.press("Control+a")
    for key in text:
        explorer.page.keyboard.press(key)
        if slowly:
            later(explorer)


def head(explorer: Explorer) -> str:
    return explorer.root.locator(".intro").inner_text()


@pytest.mark.parametrize("slowly", [False, True], ids=["quickly", "slowly"])
def test_a_number_typed_over_itself_changes_nothing(layer: Explorer, slowly: bool) -> None:
    """Slowly, the page takes "1" on the way to "16"; what was given comes back all the same."""
    before = numbers(layer.switch("lock", False))
    for name, text in (("filters", "16"), ("size-0", "20"), ("kernel-1", "5"), ("channels", "3")):
        retype(layer, name, text, slowly)
        layer.control(name).press("Enter")
        assert numbers(layer.settled()) == before, name
        assert head(layer).startswith("net, conv1")
        assert "changed here" not in head(layer)
        assert "given" not in layer.state


@pytest.mark.parametrize("end", ["Enter", "Tab", "pause"])
def test_a_typed_number_is_taken_when_it_is_meant(layer: Explorer, end: str) -> None:
    layer.ask("store.subscribe((kind) => kind === 'settings' && (window.taken ??= []).push(1))")
    retype(layer, "filters", "12")
    assert layer.settings["filters"] == 16
    if end == "pause":
        later(layer)
    else:
        layer.control("filters").press(end)
    assert layer.settled().settings["filters"] == 12
    assert layer.page.evaluate("() => window.taken") == [1]  # and never "1"


def test_smaller_and_larger_again_gives_the_same_numbers_back(layer: Explorer) -> None:
    before = numbers(layer)
    layer.edit("K", 4, 2, "7")
    layer.enter(filters=2).enter(size__0=6, size__1=7).enter(kernel__0=2).enter(axes=1)
    assert layer.state["settings"]["axes"] == 1
    assert "axes 2 → 1" in head(layer)
    assert "kernel" not in head(layer)  # that it has one number now goes without saying
    layer.enter(axes=2).enter(filters=16, kernel__0=5, kernel__1=5, size__0=20, size__1=24)
    layer.enter(stride__1=2, padding__1__low=2, padding__1__high=2)
    image, filters = numbers(layer)
    assert image == before[0]
    changed = [at for at, value in enumerate(filters) if value != before[1][at]]
    assert changed == [2 * 75 + 4]  # what was changed by hand is still there, and nothing else
    assert filters[changed[0]] == 7


def test_the_head_says_what_is_not_as_it_was_given(layer: Explorer) -> None:
    back = layer.root.locator("[data-action=restore]")
    value = layer.ask("store.filters[0]")
    layer.edit("K", 0, 0, "3")
    assert "changed here" in head(layer)
    layer.edit("K", 0, 0, str(value))  # as if nothing had been
    assert "changed here" not in head(layer)
    assert "Input: photo.png" in head(layer)
    assert back.is_hidden()
    layer.enter(stride__0=1)
    assert head(layer).startswith("net, conv1, changed here")
    assert "Changed: stride 2 × 2 → 1 × 1" in head(layer)
    assert "photo.png" not in head(layer).replace("Back to net, conv1", "")
    layer.edit("K", 0, 0, "1").edit("K", 1, 0, "2")
    assert "2 numbers of the filters" in head(layer)
    layer.enter(filters=17)
    assert "75 numbers of the filters made up" in head(layer)
    layer.root.locator("[data-digit='4']").click()
    layer.settled()
    assert "the input: a digit" in head(layer)
    assert back.inner_text() == "Back to net, conv1"
    back.click()
    layer.settled()
    assert head(layer).startswith("net, conv1\n") or head(layer).startswith("net, conv1 ")
    assert "Input: photo.png" in head(layer)
    given = trained()
    assert numbers(layer) == (given["input"]["values"], given["filters"])
    assert layer.settings["stride"] == [2, 2]
    layer.act("undo")
    assert "the input: a digit" in head(layer)  # also this can be undone


def test_python_is_told_what_was_given_and_that_it_was_changed(layer: Explorer) -> None:
    layer.enter(filters=20, size__0=18)
    state = layer.state
    found, x = state_layer(state)
    assert found.name == "net, conv1, changed here"
    assert np.shape(found.filters)[0] == 20
    assert np.shape(x) == (18, 24, 3)
    original = state_layer({**state, **state["given"], "given": None})[0]
    assert original.name == "net, conv1"
    assert np.asarray(original.filters).ravel().tolist() == trained()["filters"]
    # Loaded again, as a notebook does, it still knows; and goes back.
    layer.ask("store.load(argument)", state)
    layer.settled()
    assert "changed here" in head(layer)
    layer.act("restore")
    assert numbers(layer) == (trained()["input"]["values"], trained()["filters"])
    assert "given" not in layer.state


def test_every_change_is_undone_and_redone(explorer: Explorer) -> None:
    undo, redo = (explorer.root.locator(f"[data-action={name}]") for name in ("undo", "redo"))
    assert undo.is_disabled()
    assert redo.is_disabled()
    states = [explorer.state]
    for change in (
        lambda: explorer.enter(stride__0=3),
        lambda: explorer.edit("input", 5, 5, "4"),
        lambda: explorer.preset("dilated"),
        lambda: explorer.switch("flip"),
        lambda: explorer.root.locator("[data-digit='7']").click(),
        lambda: explorer.edit("filters", 0, 0, "-8"),
    ):
        change()
        explorer.settled()
        states.append(explorer.state)
    parts = ("settings", "input", "filters", "bias", "title", "preset")

    def same(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
        return all(found[part] == wanted[part] for part in parts)

    explorer.grid("input").focus()
    for state in states[-2::-1]:
        explorer.page.keyboard.press("Control+z")
        explorer.settled()
        assert same(explorer.state, state)
    assert undo.is_disabled()
    for state in states[1:]:
        redo.click()
        explorer.settled()
        assert same(explorer.state, state)
    assert redo.is_disabled()
    undo.click()
    explorer.page.keyboard.press("Control+Shift+z")
    explorer.settled()
    assert same(explorer.state, states[-1])
    undo.click()
    explorer.enter(filters=3)
    assert redo.is_disabled()  # what was undone is gone once something else is done
    assert explorer.control("filters").input_value() == "3"
    undo.click()
    assert explorer.control("filters").input_value() == str(states[-2]["settings"]["filters"])


def test_undo_in_a_text_field_is_the_fields_own_until_the_number_is_taken(layer: Explorer) -> None:
    layer.enter(stride__0=3)
    retype(layer, "kernel-0", "4")
    layer.page.keyboard.press("Control+z")
    assert layer.settled().settings["stride"] == [3, 3]
    retype(layer, "filters", "12")
    layer.page.keyboard.press("Enter")  # the focus is still in the field
    for key, filters in (("Control+z", 16), ("Control+Shift+z", 12)):
        assert layer.settled().settings["filters"] == 28 - filters
        layer.page.keyboard.press(key)
        assert layer.settled().settings["filters"] == filters


def test_back_goes_to_what_was_there_before_the_preset(open_page: OpensPage) -> None:
    explorer = open_page(trained())
    page = explorer.page
    explorer.edit("K", 3, 3, "5")
    explorer.tab("algorithm")
    own = explorer.state
    explorer.preset("dilated")
    explorer.tab("code")  # stays open, and does not make the address be read instead
    explorer.enter(stride__0=2)
    dilated = explorer.state
    explorer.preset("signal")
    signal = explorer.state

    def arrives(title: str) -> dict[str, Any]:
        page.wait_for_function(
            "(title) => document.querySelector('.convfc-explorer').explorer.store.title === title",
            arg=title,
        )
        explorer.settled()
        return explorer.state

    parts = ("settings", "input", "filters", "title", "preset")
    page.go_back()
    found = arrives("Dilated")
    assert [found[part] for part in parts] == [dilated[part] for part in parts]
    assert "preset=dilated" in page.url
    page.go_back()
    found = arrives("net, conv1")
    assert [found[part] for part in parts] == [own[part] for part in parts]
    assert "changed here" in head(explorer)
    page.go_forward()
    arrives("Dilated")
    page.go_forward()
    found = arrives("A signal")
    assert [found[part] for part in parts] == [signal[part] for part in parts]


def test_back_beyond_a_reload_goes_by_the_addresses(open_page: OpensPage) -> None:
    explorer = open_page()
    page = explorer.page
    explorer.preset("dilated").preset("signal")
    page.wait_for_function("() => location.hash.includes('signal')")
    page.reload()
    explorer.ready()
    explorer.preset("figure-2")
    titles = ["The experiment", "Dilated", "A signal", "One patch, one filter"]
    for go, shown in ((page.go_back, titles[-2::-1]), (page.go_forward, titles[1:])):
        for title in shown:
            go()
            page.wait_for_function(
                "(title) => document.querySelector('.title').textContent === title", arg=title
            )


def test_a_page_opened_anew_on_an_address_of_its_layer_keeps_the_layer(
    open_page: OpensPage,
) -> None:
    explorer = open_page(trained())
    explorer.enter(filters=12, stride__0=1)
    explorer.page.wait_for_function("() => location.hash.includes('f=12')")
    explorer.page.reload()
    assert explorer.ready().settings["filters"] == 12
    assert explorer.state["filters"] == trained()["filters"][: 12 * 75]
    assert head(explorer).startswith("net, conv1, changed here")
    explorer.act("restore")
    assert numbers(explorer) == (trained()["input"]["values"], trained()["filters"])


def test_a_link_of_another_layer_is_not_taken_for_this_one(open_page: OpensPage) -> None:
    explorer = open_page(trained(), address="#1;c=3;f=16;k=5.5;n=20.24;own=other;cut=1")
    assert "net, conv1" not in head(explorer)
    assert "too many for an address" in head(explorer)


def test_the_layer_of_the_page_is_the_first_to_start_from(open_page: OpensPage) -> None:
    explorer = open_page(trained())
    tiles = explorer.root.locator("[data-preset]")
    assert tiles.first.inner_text().split("\n") == ["net, conv1", "your layer"]
    assert tiles.first.get_attribute("aria-checked") == "true"
    explorer.preset("dilated")
    assert tiles.first.get_attribute("aria-checked") == "false"
    explorer.preset("own")
    assert numbers(explorer) == (trained()["input"]["values"], trained()["filters"])
    assert head(explorer).startswith("net, conv1")
    assert tiles.first.get_attribute("aria-checked") == "true"


def test_made_up_filters_do_not_wash_out_the_given_ones(layer: Explorer) -> None:
    """Beside small weights, made-up ones are no larger than the largest of them."""
    state = trained()
    state["filters"] = (np.array(state["filters"]) / 100).tolist()
    layer.ask("store.load(argument)", state)
    before = layer.picture("filters", "base")
    largest = layer.ask("store.largest('filters')")
    layer.enter(filters=18)
    assert layer.ask("store.largest('filters')") == pytest.approx(largest)
    assert layer.picture("filters", "base") == before


def test_escape_puts_back_what_was_there(layer: Explorer) -> None:
    retype(layer, "filters", "3")
    layer.page.keyboard.press("Escape")
    later(layer)
    assert layer.settings["filters"] == 16
    assert layer.control("filters").input_value() == "16"


def test_what_is_wrong_is_undone_first_and_alone(layer: Explorer) -> None:
    layer.enter(stride__0=1)
    retype(layer, "kernel-0", "99")
    layer.page.keyboard.press("Enter")
    layer.settled()
    assert layer.problem("kernel").is_visible()
    layer.page.keyboard.press("Control+z")
    layer.settled()
    assert layer.problem("kernel").is_hidden()
    assert layer.control("kernel-0").input_value() == "5"
    assert layer.settings["stride"] == [1, 1]
    retype(layer, "kernel-0", "99")  # the same once more is said once more
    layer.page.keyboard.press("Enter")
    layer.settled()
    assert layer.problem("kernel").is_visible()
    layer.act("undo").act("undo")
    assert layer.settings["stride"] == [2, 2]


def test_steps_of_one_setting_right_after_each_other_are_one_change(layer: Explorer) -> None:
    layer.switch("lock", False).enter(stride__0=3)
    later(layer)
    control = layer.control("stride-0")
    control.click()
    for _ in range(3):
        control.press("ArrowUp")
    assert layer.settled().settings["stride"] == [6, 2]
    assert layer.act("undo").settings["stride"] == [3, 2]
    assert layer.act("undo").settings["stride"] == [2, 2]
