"""Show how far a run is: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Self

from convfc.extras import needing

with needing():
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

_LINE_EVERY = 10
_MANY = 12
"""More bars than these do not fit a small terminal: then only those at work are shown."""


class Display:
    """What a run tells of its parts, each with its steps (``unit``, such as epochs), in lines."""

    def __init__(self, console: Console, parts: str, unit: str) -> None:
        self._console, self._parts, self._unit = console, parts, unit
        self._steps: dict[str, int] = {}
        self._told: dict[str, str] = {}
        self._began: dict[str, float] = {}  # several may be at work
        self._from: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def plan(
        self, steps: Mapping[str, int], finished: Collection[str], weights: Mapping[str, int]
    ) -> None:
        """Announce all parts with their steps and how long these are, and which are finished."""
        del weights
        self._steps = dict(steps)
        total, count = sum(steps.values()), f"{len(steps)} {self._parts}"
        self.note(count if total == len(steps) else f"{count}, {total} {self._unit}s in all")
        if len(steps) > _MANY and finished:
            self.note(f"{len(finished)} of them: finished earlier")
            return
        for name in steps:
            if name in finished:
                self.note(f"{name}: finished earlier")

    def start(self, name: str, done: int) -> None:
        """Say that a part begins, or continues after the steps that are done."""
        self._began[name], self._from[name] = time.monotonic(), done
        self.note(f"{name}: " + (f"continues after {self._unit} {done}" if done else "starts"))

    def step(self, name: str, done: int, told: str) -> None:
        """Say how many steps of a part are done, with a few words on them; here every tenth."""
        count = f"{self._unit} {done}/{self._steps[name]}"
        self._told[name] = f"{count}, {told}" if told else count
        if done and done % _LINE_EVERY == 0 and done < self._steps[name]:
            seconds = (time.monotonic() - self._began[name]) / max(1, done - self._from[name])
            left = (self._steps[name] - done) * seconds
            self.note(f"{name}: {self._told[name]}, about {left:.0f} s left")

    def end(self, name: str) -> None:
        """Say that a part is finished."""
        told, now = self._told.get(name, f"all {self._unit}s"), time.monotonic()
        self.note(f"{name}: done, {told}, {now - self._began.get(name, now):.0f} s")

    def note(self, text: str) -> None:
        """Show a line, above the bars if there are any."""
        self._console.print(text, soft_wrap=True, markup=False, highlight=False, emoji=False)


class Bars(Display):
    """One bar per part with its numbers, and one for the whole, each with its remaining time."""

    def __init__(self, console: Console, parts: str, unit: str) -> None:
        super().__init__(console, parts, unit)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[told]}"),
            console=console,
            # Epochs take seconds: look further back than rich's 30 s for a steady estimate.
            speed_estimate_period=300,
        )
        self._tasks: dict[str, TaskID] = {}
        self._done: dict[str, int] = {}
        self._weights: Mapping[str, int] = {}
        self._all = TaskID(0)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def plan(  # noqa: D102
        self, steps: Mapping[str, int], finished: Collection[str], weights: Mapping[str, int]
    ) -> None:
        self._steps, self._weights = dict(steps), weights
        total, done = (
            sum(weights[name] * steps[name] for name in steps if name in counted)
            for counted in (steps, finished)
        )
        self._all = self._bars.add_task(
            f"[bold]all {self._parts}", total=total, told="", completed=done, visible=len(steps) > 1
        )
        if len(steps) <= _MANY:
            for name, count in steps.items():
                self._add(name, count if name in finished else 0)

    def _add(self, name: str, completed: int = 0) -> None:
        self._done[name] = completed
        self._tasks[name] = self._bars.add_task(
            name, total=self._steps[name], start=False, told="", completed=completed
        )

    def start(self, name: str, done: int) -> None:  # noqa: D102
        if name not in self._tasks:
            self._add(name)
        self._bars.start_task(self._tasks[name])
        self.step(name, done, "")

    def step(self, name: str, done: int, told: str) -> None:  # noqa: D102
        more, self._done[name] = done - self._done.get(name, 0), done
        self._bars.update(self._tasks[name], completed=done, told=told)
        self._bars.advance(self._all, self._weights[name] * more)

    def end(self, name: str) -> None:  # noqa: D102
        self._bars.stop_task(self._tasks[name])
        if len(self._steps) > _MANY:
            self._bars.remove_task(self._tasks.pop(name))


def display_for(console: Console, parts: str, unit: str) -> Display:
    """Return bars for a terminal, lines for anything else."""
    return (Bars if console.is_terminal else Display)(console, parts, unit)
