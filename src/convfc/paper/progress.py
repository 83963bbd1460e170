"""Show how far an experiment is: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, Self

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

from convfc.paper.runs import Epoch

__all__ = ["Bars", "Display", "Lines", "display_for"]

_LINE_EVERY = 10


class Display(Protocol):
    """What the experiment tells while it runs."""

    def plan(self, epochs: Mapping[str, int], finished: Mapping[str, int]) -> None:
        """Announce all networks with their epochs, and those that are finished already."""

    def start(self, name: str, done: int) -> None:
        """Say that a network begins, or continues behind the epochs that are done."""

    def epoch(self, name: str, line: Epoch) -> None:
        """Say that a network has trained one epoch more."""

    def end(self, name: str) -> None:
        """Say that a network is finished."""

    def note(self, text: str) -> None:
        """Say something else that the user should know."""


class Lines:
    """Plain lines: for files, pipes and continuous integration."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._epochs: dict[str, int] = {}
        self._last: dict[str, Epoch] = {}
        self._began = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del kind, error, trace

    def plan(self, epochs: Mapping[str, int], finished: Mapping[str, int]) -> None:
        """Announce the networks; name those that are finished."""
        self._epochs = dict(epochs)
        total = sum(epochs.values())
        self.note(f"{len(epochs)} networks, {total} epochs in all")
        for name in finished:
            self.note(f"{name}: finished earlier")

    def start(self, name: str, done: int) -> None:
        """Announce a network."""
        self._began = time.monotonic()
        self.note(f"{name}: " + (f"continues after epoch {done}" if done else "starts"))

    def epoch(self, name: str, line: Epoch) -> None:
        """Show the losses of an epoch, now and then."""
        self._last[name] = line
        if line.epoch % _LINE_EVERY == 0 and line.epoch < self._epochs[name]:
            left = (self._epochs[name] - line.epoch) * line.seconds
            self.note(f"{name}: {self._losses(name)}, about {left:.0f} s left")

    def end(self, name: str) -> None:
        """Show the last losses of a network."""
        losses = self._losses(name) if name in self._last else "all epochs"
        self.note(f"{name}: done, {losses}, {time.monotonic() - self._began:.0f} s")

    def note(self, text: str) -> None:
        """Show a line."""
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)

    def _losses(self, name: str) -> str:
        line = self._last[name]
        return (
            f"epoch {line.epoch}/{self._epochs[name]}, "
            f"loss {line.loss:.6f}, validation loss {line.val_loss:.6f}"
        )


class Bars:
    """One bar per network with its losses, and one for the whole, each with its remaining time."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}"),
            console=console,
            # Epochs take seconds: look further back than rich's 30 s for a steady estimate.
            speed_estimate_period=300,
        )
        self._tasks: dict[str, TaskID] = {}
        self._all = TaskID(0)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def plan(self, epochs: Mapping[str, int], finished: Mapping[str, int]) -> None:
        """Draw all bars, finished ones full."""
        total = sum(weight(name) * count for name, count in epochs.items())
        done = sum(weight(name) * count for name, count in finished.items())
        self._all = self._bars.add_task(
            "[bold]all networks", total=total, losses="", completed=done
        )
        self._bars.update(self._all, visible=len(epochs) > 1)
        for name, count in epochs.items():
            self._tasks[name] = self._bars.add_task(
                name, total=count, start=False, losses="", completed=finished.get(name, 0)
            )

    def start(self, name: str, done: int) -> None:
        """Start a network's bar and its clock."""
        self._bars.start_task(self._tasks[name])
        self._bars.update(self._tasks[name], completed=done)
        self._bars.advance(self._all, weight(name) * done)

    def epoch(self, name: str, line: Epoch) -> None:
        """Advance a network's bar and the whole."""
        losses = f"loss {line.loss:.5f}  validation {line.val_loss:.5f}"
        self._bars.update(self._tasks[name], completed=line.epoch, losses=losses)
        self._bars.advance(self._all, weight(name))

    def end(self, name: str) -> None:
        """Stop a network's clock."""
        self._bars.stop_task(self._tasks[name])

    def note(self, text: str) -> None:
        """Show a line above the bars."""
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)


def weight(name: str) -> int:
    """Return about how many float32 epochs one epoch of this network costs, for the whole's ETA."""
    return 2 if name.startswith("float64") else 1


def display_for(console: Console) -> Bars | Lines:
    """Return bars for a terminal, lines for anything else."""
    return Bars(console) if console.is_terminal else Lines(console)
