"""How far long work is: told to a function of the user's, or shown as a bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from convfc.extras import needing
from convfc.printable import printable

Progress: TypeAlias = Callable[[int, int | None, str], None]
"""Takes how much is done, how much there is (None where nobody knows), and what is at work."""


@contextmanager
def telling(progress: Progress | bool) -> Iterator[Progress]:
    """Yield what is told of every step: the user's function, a bar for True, or nothing."""
    if progress is not True:
        yield progress or (lambda done, count, name: None)
        return
    with needing():
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar
    name = TextColumn("{task.description}", markup=False)  # a layer may be called [red]
    with Bar(name, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), transient=True) as bar:
        task = bar.add_task("")
        yield lambda done, count, name: bar.update(
            task, completed=done, total=count, description=printable(name)
        )
