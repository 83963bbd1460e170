"""Progress: bars with their numbers on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from convfc.runs import progress
from convfc.runs.progress import Bars, Display, display_for


def test_terminal_shows_bars_with_losses_and_remaining_time() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=140)
    steps = {"float32-sgd-cnn": 4, "float32-sgd-fc": 4}
    with display_for(console, "networks", "epoch") as bars:
        assert isinstance(bars, Bars)
        bars.plan(steps, {"float32-sgd-cnn"}, dict.fromkeys(steps, 1))
        bars.start("float32-sgd-fc", 1)
        for epoch in (2, 3, 4):
            bars.step("float32-sgd-fc", epoch, "loss 0.125000, validation loss 0.250000")
        bars.end("float32-sgd-fc")
        bars.note("and now the report")
    shown = screen.getvalue()
    for text in ("all networks", "float32-sgd-fc", "8/8", "4/4", "validation loss 0.25"):
        assert text in shown
    assert "and now the report" in shown


def test_pipe_shows_a_line_every_ten_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = display_for(Console(file=io.StringIO()), "networks", "epoch")
    assert type(lines) is Display
    told: list[str] = []
    lines.note = told.append  # type: ignore[method-assign]
    lines.plan({"m": 1, "n": 25}, {"m"}, {"m": 1, "n": 1})
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    lines.start("n", 5)
    for epoch in range(6, 26):
        now += 2.0
        lines.step("n", epoch, "loss 0.500000, validation loss 0.250000")
    lines.end("n")
    assert told == [
        "2 networks, 26 epochs in all",
        "m: finished earlier",
        "n: continues after epoch 5",
        "n: epoch 10/25, loss 0.500000, validation loss 0.250000, about 30 s left",
        "n: epoch 20/25, loss 0.500000, validation loss 0.250000, about 10 s left",
        "n: done, epoch 25/25, loss 0.500000, validation loss 0.250000, 40 s",
    ]


def bars_in_memory() -> Bars:
    return Bars(Console(file=io.StringIO(), force_terminal=True, width=140), "parts", "step")


def test_a_longer_step_counts_more_in_the_whole() -> None:
    bars = bars_in_memory()
    bars.plan({"a": 4, "b": 4, "c": 2}, {"a"}, {"a": 1, "b": 1, "c": 2})
    bars.start("c", 0)
    bars.step("c", 1, "")
    whole = bars._bars.tasks[0]
    assert (whole.total, whole.completed) == (12, 6)


@pytest.mark.parametrize(("parts", "shown"), [(3, {0, 1, 2}), (13, {1})], ids=["few", "many"])
def test_of_many_bars_only_the_one_at_work_is_shown(parts: int, shown: set[int]) -> None:
    bars = bars_in_memory()
    names = [f"part-{n}" for n in range(parts)]
    bars.plan(dict.fromkeys(names, 4), set(), dict.fromkeys(names, 1))
    bars.start("part-1", 1)
    bars.step("part-1", 3, "half way")
    everything, *rows = bars._bars.tasks
    assert {n for n, row in enumerate(rows) if row.visible} == shown
    assert (everything.description, everything.completed) == ("[bold]all parts", 3)
    assert (rows[1].completed, rows[1].fields["told"]) == (3, "half way")
    bars.end("part-1")
    assert rows[1].visible is (parts == 3)
