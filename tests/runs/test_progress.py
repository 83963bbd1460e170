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


@pytest.mark.parametrize("parts", [3, 13], ids=["few", "many"])
def test_of_many_bars_only_those_at_work_are_shown(parts: int) -> None:
    bars = bars_in_memory()
    names = [f"part-{n}" for n in range(parts)]
    bars.plan(dict.fromkeys(names, 4), set(), dict.fromkeys(names, 1))
    bars.start("part-1", 1)
    bars.step("part-1", 3, "half way")
    bars.start("part-2", 0)

    def rows() -> dict[str, float]:
        return {task.description: task.completed for task in bars._bars.tasks if task.visible}

    few = dict.fromkeys(names, 0) if parts == 3 else {}
    assert rows() == few | {"[bold]all parts": 3, "part-1": 3, "part-2": 0}
    assert bars._bars.tasks[-2 if parts == 3 else 1].fields["told"] == "half way"
    bars.end("part-1")
    bars.step("part-2", 4, "")
    ended = {"part-1": 3} if parts == 3 else {}
    assert rows() == few | ended | {"[bold]all parts": 7, "part-2": 4}
