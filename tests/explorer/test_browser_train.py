"""The tab Train: two layers learn side by side, and their difference is counted along."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from browser import Explorer, OpensPage
    from model import Model

EPOCH = "#1;tab=train;train=1.45.sgd.1e-1.0.32"
EXPLORER = "const { explorer } = document.querySelector('.convfc-explorer')"
VIEW = "explorer.tabs.views.train"
TRAINED = f"{VIEW}.twins.nets.map((net) => net.layers.map(({{ weights }}) => [...weights]))"
NONE = "Largest difference of all weights: 0"


def after(explorer: Explorer, steps: str) -> Explorer:
    """Wait until so many steps are done."""
    explorer.view("train").get_by_text(f"after {steps}").wait_for()
    explorer.page.wait_for_function(f"() => {{ {EXPLORER}; return !{VIEW}.running; }}")
    return explorer.settled()


def difference(explorer: Explorer) -> str:
    return explorer.view("train").locator(".apart").inner_text()


def press(explorer: Explorer, name: str) -> Explorer:
    explorer.view("train").get_by_role("button", name=name, exact=True).click()
    return explorer.settled()


def test_the_same_order_differs_by_nothing_and_another_one_does(open_page: OpensPage) -> None:
    explorer = after(open_page(address=EPOCH), "45 steps (1 epoch)")
    assert difference(explorer) == NONE
    conv, fc = explorer.ask(TRAINED)
    assert sorted(conv[0]) == sorted(fc[0])
    assert conv[1] == fc[1]
    press(explorer, "in another order")
    after(explorer, "45 steps (1 epoch)")
    assert difference(explorer) != NONE
    assert "e−" in difference(explorer)
    # The link trains the same networks again.
    explorer.page.wait_for_function("() => location.hash.includes('train=1.45.sgd.1e-1.1.32')")
    other = after(open_page(address=explorer.page.evaluate("() => location.hash")), "45 steps")
    assert other.ask(TRAINED) == explorer.ask(TRAINED)
    assert difference(other) == difference(explorer)


def test_the_finding_of_the_paper_is_one_press_away(open_page: OpensPage) -> None:
    explorer = after(open_page(address="#1;tab=train", reduced_motion="reduce"), "0 steps")
    explorer.ask(f"(({SHORTER})({VIEW}), 0)")
    explorer.act("finding")
    after(explorer, "450 steps (10 epochs)")
    said = explorer.view("train").locator("canvas[aria-label^=SGD]").get_attribute("aria-label")
    same, sgd, adam = (
        next(part for part in said.split("; ") if part.startswith(name))
        for name in ("SGD, same order", "SGD, another order", "Adam, another order")
    )
    assert same == "SGD, same order: 0 after 450 steps"
    assert "e−" in sgd
    assert "e−" not in adam


SHORTER = """(view) => {
  const take = view._take.bind(view);
  view._take = (plan) => take({ ...plan, steps: plan.steps / 2 });
  view._advance = () => {
    if (view.twins.steps >= view.plan.steps) return view._count();
    while (view.twins.steps < view.plan.steps) view.twins.step();
  };
}"""
"""Half of the training, in one go: of the page's slices the other tests are judges."""


def test_training_runs_steps_pauses_and_starts_again(open_page: OpensPage) -> None:
    explorer = after(open_page(address="#1;tab=train"), "0 steps (0 epochs)")
    press(explorer, "One step: a batch of 32 digits")
    after(explorer, "1 step ")
    press(explorer, "Run")
    explorer.page.wait_for_function(f"() => {{ {EXPLORER}; return {VIEW}.twins.steps > 20; }}")
    press(explorer, "Pause")
    steps = explorer.ask(f"{VIEW}.plan.steps")
    assert 20 < steps < 900
    after(explorer, f"{steps} steps")
    assert explorer.ask(f"{VIEW}.twins.steps") == steps
    assert difference(explorer) == NONE
    assert explorer.ask("store.training") == f"1.{steps}.sgd.1e-1.0.32"
    assert NONE in explorer.root.locator("[data-live]").inner_text()
    # What is hidden waits.
    press(explorer, "Run").tab("arithmetic")
    waiting = explorer.ask(f"{VIEW}.twins.steps")
    assert explorer.rest(100).ask(f"{VIEW}.twins.steps") == waiting < 900
    explorer.tab("train")
    press(explorer, "Reset: untrained, and no older curves")
    after(explorer, "0 steps")


def test_a_pause_at_the_end_of_an_epoch_takes_no_step_more(open_page: OpensPage) -> None:
    explorer = after(open_page(address="#1;tab=train"), "0 steps (0 epochs)")
    press(explorer, "Run")
    # The unseen digits have been counted, and the next frame would go on.
    pause = f"""() => new Promise((resolve) => {{
      {EXPLORER};
      const look = () => {{
        const {{ counted, twins, run }} = {VIEW};
        if (counted !== twins.steps || !counted) return requestAnimationFrame(look);
        run.click();
        resolve(twins.steps);
      }};
      look();
    }})"""
    steps = explorer.page.evaluate(pause)
    assert steps % 45 == 0 < steps < 900
    after(explorer, f"{steps} steps")
    assert explorer.settled().ask("store.training") == f"1.{steps}.sgd.1e-1.0.32"
    assert explorer.ask(f"{VIEW}.twins.steps") == steps


def test_the_longest_training_of_an_address_keeps_nobody_waiting(open_page: OpensPage) -> None:
    explorer = open_page(address="#1;tab=train;train=1.4500.adam.5e-1.1.64")
    explorer.view("train").get_by_text("Numbers").wait_for()
    press(explorer, "Pause")
    assert explorer.ask(f"{VIEW}.twins.steps") < 4500
    explorer.tab("arithmetic").click("output", 1, 1)
    assert explorer.selection["p"] > 0


def test_a_drawing_is_guessed_and_the_trained_filters_open_in_the_picture(
    open_page: OpensPage, model: Model
) -> None:
    explorer = after(open_page(address="#1;tab=train;train=3.225.adam.5e-3.0.32"), "225 steps")
    before = explorer.state
    press(explorer, "Draw a digit and let it guess")
    box = explorer.view("pad").locator("canvas").bounding_box()
    at = [(box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in NOUGHT]
    explorer.page.mouse.move(*at[0])
    explorer.page.mouse.down()
    for point in at[1:]:
        explorer.page.mouse.move(*point, steps=4)
    explorer.page.mouse.up()
    explorer.view("pad").get_by_role("button", name="Use").click()
    assert explorer.view("train").locator(".guess").inner_text() == "Your drawing: both say 0."
    bar = explorer.view("train").locator(".classes .most").inner_text()
    assert int(bar.split()[1]) > 50, bar  # an empty picture says 0, too, with 10 %
    assert explorer.state["input"] == before["input"]  # the picture above is left alone
    # A digit told wrong is shown, with its gradient.
    explorer.view("train").locator("[data-unseen]").first.click()
    assert "say" in explorer.view("train").locator(".guess").inner_text()
    press(explorer, "Open in the picture: the trained filters and this digit")
    state = explorer.state
    assert state["settings"]["size"] == [8, 8]
    (conv, _), _ = explorer.ask(TRAINED)
    assert state["filters"] == conv
    label = explorer.ask(f"{VIEW}.digits.labels[{VIEW}.shown.at]")
    given = {
        "x": state["input"]["values"],
        "K": [conv[9 * f + tap] for tap in range(9) for f in range(4)],
        "W": explorer.ask(TRAINED)[0][1],
        "labels": [label],
        "backwards": False,
    }
    dK = model.ask("gradients", state["settings"], given)[0]["dK"]
    shown = explorer.ask("[0, 1, 2, 3].map((f) => [...store.dK(f)])")
    most = max(map(abs, dK))
    for f in range(4):  # the network's float32 gradient, to its rounding
        for tap in range(9):
            assert abs(shown[f][tap] - dK[4 * tap + f]) < 1e-5 * most
    assert explorer.view("M").is_visible()
    explorer.page.go_back()
    explorer.until("store.settings.size[0] !== 8")
    assert explorer.view("M").is_hidden()  # the networks have pictures of their own
    assert explorer.view("train").is_visible()
    guessed = int(explorer.view("train").locator(".guess").inner_text().rstrip(".")[-1])
    explorer.act("open-head")
    assert explorer.cells("M") == (1, 144)
    scores = np.array(explorer.ask("[...store.Y]"))
    assert scores.argmax() == guessed
    p = np.exp(scores - scores.max())
    # In float32 144 products and sums round; a softmax moves by twice its scores at most.
    products = "store.arithmetic(0, argument).terms.map(({ product }) => product)"
    most = max(sum(map(abs, explorer.ask(products, f))) for f in range(10))
    bound = 2 * 145 * most * 2**-24 + 2**-23
    shown = explorer.ask(f"[...{VIEW}.twins.nets[0].forward({VIEW}.input)]")
    assert (np.abs(p / p.sum() - shown) <= bound).all()
    explorer.page.go_back()
    explorer.until("store.settings.kernel[0] !== 6")
    assert explorer.state["settings"] == before["settings"]


NOUGHT = [
    (0.5, 0.2), (0.38, 0.3), (0.34, 0.5), (0.38, 0.7), (0.5, 0.8), (0.62, 0.7), (0.66, 0.5),
    (0.62, 0.3), (0.5, 0.2),
]  # fmt: skip
"""In shares of the pad."""
