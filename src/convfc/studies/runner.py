"""Run a study: its parts in their order, each once, each the same whether interrupted or not."""

from __future__ import annotations

import contextlib
import importlib.metadata
import pathlib
import platform
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from convfc.extras import needing

with needing("study"):
    import torch
    from matplotlib.figure import Figure

from convfc import drawing
from convfc.paper.machine import describe_machine
from convfc.paper.stored import require_folder
from convfc.reporting import escaped, render, write_report_files
from convfc.studies.folder import Array, PartFile, Result, StudyFolder
from convfc.studies.settings import StudySettings
from convfc.tables import TextTable

if TYPE_CHECKING:
    from convfc.paper.progress import Display

__all__ = ["CHECKPOINT_SECONDS", "Part", "Study", "Work", "run_study", "seed_of", "write_report"]

CHECKPOINT_SECONDS = 20.0
"""Time of training that a kill may cost, about."""

Results = Mapping[str, Result]


@dataclass(frozen=True)
class Part:
    """One part of a study: a function of the settings and of earlier parts.

    Attributes
    ----------
    name : str
        Also the name of its files.
    run : callable
        Given a `Work`, it returns a `Result`. Its random numbers are PyTorch's, from a seed of its
        own; nothing else may decide what it finds.
    needs : tuple of str
        The earlier parts whose results it is given.
    steps : int
        What it counts while it works: epochs, or draws.
    """

    name: str
    run: Callable[[Work], Result]
    needs: tuple[str, ...] = ()
    steps: int = 1


@dataclass(frozen=True)
class Study:
    """What there is to run, and to say about it.

    Attributes
    ----------
    name : str
    packages : tuple of str
        Distributions whose versions have a part in its numbers, beside NumPy and PyTorch.
    parts : callable
        Given the settings, its parts in an order in which each comes after those that it needs.
    results : callable
        Given the settings and the results of all parts: what ``results.json`` holds.
    figures : callable
        Given ``results.json`` and a function that returns a part's result: figures by name.
    findings : callable
        Given ``results.json``: the values of the report's template. Conclusions are drawn here,
        from numbers alone.
    template : str
        Of the report, in Markdown.
    summary : callable
        Given ``results.json``: the table for the terminal.
    """

    name: str
    packages: tuple[str, ...]
    parts: Callable[[Any], Sequence[Part]]
    results: Callable[[Any, Results], dict[str, Any]]
    figures: Callable[[Mapping[str, Any], Callable[[str], Result]], Iterator[tuple[str, Figure]]]
    findings: Callable[[Mapping[str, Any]], dict[str, Any]]
    template: str
    summary: Callable[[Mapping[str, Any]], TextTable]


@dataclass
class Work:
    """What a part works with.

    Attributes
    ----------
    settings : StudySettings
    results : mapping
        Results of the parts that it needs.
    seed : int
        Its own.
    name, steps : str, int
        Those of the part.
    done : int
        Steps that it has said to be done.
    """

    settings: Any
    results: Results
    seed: int
    name: str
    steps: int
    _file: PartFile
    _display: Display
    _pause: float
    _last: float = field(default_factory=time.monotonic)
    done: int = 0

    def saved(self) -> dict[str, Array] | None:
        """Return what `save` wrote before the study was interrupted, or None."""
        return self._file.load_checkpoint()

    def save(self, arrays: Callable[[], Mapping[str, Array]]) -> None:
        """Write a checkpoint, if the last one is some time ago."""
        if time.monotonic() - self._last >= self._pause:
            self._file.save_checkpoint(arrays())
            self._last = time.monotonic()

    def start(self, done: int = 0) -> None:
        """Say that the part begins, or goes on behind the steps that are done."""
        self._display.start(self.name, done)

    def step(self, done: int, told: str = "") -> None:
        """Say how many steps are done."""
        self.done = done
        self._display.step(self.name, done, told)


def run_study(
    study: Study,
    run: StudyFolder,
    settings: StudySettings,
    display: Display,
    *,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> pathlib.Path:
    """Run what is left of a study, and write its report.

    Parameters
    ----------
    study : Study
    run : StudyFolder
        An opened folder.
    settings : StudySettings
        Those with which the folder was opened.
    display : Display
        Where progress is shown.
    checkpoint_seconds : float
        Least time between two checkpoints of a part.

    Returns
    -------
    pathlib.Path
        ``report.html``.

    Raises
    ------
    RunError
        The file of a finished part is damaged, or the study was begun with packages of other
        versions.
    DataError, MissingDependencyError
        The images or a package cannot be had.
    OSError
        A file cannot be written, as on a full disk; what was written before it stays.
    """
    if run.finished:
        display.note(f"{run.path} is finished: only the report is drawn again")
    else:
        versions = _versions(study)
        run.check_versions(versions)
        found = _run_parts(study, run, settings, display, checkpoint_seconds)
        results = study.results(settings, found) | {
            "settings": settings.as_json(),
            "seconds": {name: dict(result.seconds) for name, result in found.items()},
            "versions": versions,
            "machine": describe_machine(),
        }
        run.write_results(results)
    display.note("drawing the figures and the report")
    return write_report(study, run)


def write_report(study: Study, run: StudyFolder) -> pathlib.Path:
    """Draw the figures of a finished run and write its report; return ``report.html``."""
    results = run.results()
    require_folder(run.path / "figures")
    with drawing.house_style():
        for name, figure in study.figures(results, lambda name: run.part(name).load()):
            drawing.save_figure(figure, run.path / "figures", name)
    return write_report_files(run.path, render(study.template, study.findings(escaped(results))))


def _run_parts(
    study: Study, run: StudyFolder, settings: StudySettings, display: Display, pause: float
) -> dict[str, Result]:
    """Run the parts that have no result yet, and return all results."""
    parts = study.parts(settings)
    steps = {part.name: part.steps for part in parts}
    for name in steps:
        run.part(name).clean()
    display.plan(steps, {name: count for name, count in steps.items() if run.part(name).finished})
    found: dict[str, Result] = {}
    for part in parts:
        file = run.part(part.name)
        if not file.finished:
            needed = {name: found[name] for name in part.needs}
            seed = seed_of(settings.seed, part.name)
            work = Work(settings, needed, seed, part.name, part.steps, file, display, pause)
            with _threads(settings.threads), torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                result = part.run(work)
            file.save(result)
            if work.done < part.steps:
                work.step(part.steps)
            display.end(part.name)
        # As it was written: what comes later sees the same, whether this run or another wrote it.
        found[part.name] = file.load()
    return found


def seed_of(seed: int, *names: str | int) -> int:
    """Return a seed for something that has a name, from the seed of the run.

    Examples
    --------
    >>> seed_of(0, "plain") == seed_of(0, "plain") != seed_of(0, "concrete")
    True
    """
    words = [zlib.crc32(str(name).encode()) for name in names]
    return int(np.random.SeedSequence([seed, *words]).generate_state(1)[0])


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with so many threads inside: their number decides the order of additions."""
    former = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(former)


def _versions(study: Study) -> dict[str, str]:
    """Return the versions of everything that had a part in the numbers."""
    found = {"python": platform.python_version()}
    for package in ("numpy", "torch", *study.packages, "convfc"):
        found[package] = importlib.metadata.version(package)
    return found
