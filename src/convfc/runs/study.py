"""What a study is, and how it is run: its parts in their order, each once, interrupted or not."""

from __future__ import annotations

import contextlib
import functools
import pathlib
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from convfc.errors import ArgumentError
from convfc.extras import needing

with needing():
    from matplotlib.figure import Figure

from convfc import drawing
from convfc.runs.folder import FinishedRun, PartFiles, Result, RunFolder, locked
from convfc.runs.jobs import Job, Workers, failure, require_dask, run_jobs
from convfc.runs.machine import describe_machine, versions_of
from convfc.runs.reporting import escaped, render, write_report_files
from convfc.runs.sealed import Array, readable, require_folder

if TYPE_CHECKING:
    from convfc.runs.progress import Display

CHECKPOINT_SECONDS = 20.0  # time of training that a kill may cost, about
CHECKPOINT_SHARE = 0.02  # of the time, that writing checkpoints may take, at most
RESUME = "--resume runs what has failed once more"


@dataclass(frozen=True)
class Settings:
    """Everything that decides the numbers of a run; each study adds its own.

    ``seed`` decides images, first weights, order of batches and every draw.
    """

    study: ClassVar[str] = ""
    least: ClassVar[Mapping[str, int]] = {"seed": 0}
    # What not every version had: as it usually is it is not written, and former runs go on.
    later: ClassVar[Mapping[str, Any]] = {}

    name: str = ""
    epochs: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for field_ in fields(self):
            value, least = getattr(self, field_.name), self.least.get(field_.name, 1)
            if field_.type == "int" and value < least:
                raise ArgumentError(
                    "a number too small",
                    where=field_.name,
                    expected=f"{least} or more",
                    got=value,
                )

    @classmethod
    def named(cls, name: str | None = None, **given: Any) -> Self:
        """Return the settings with what is given; without a name they get one made from them."""
        own = cls(**{key: value for key, value in given.items() if value is not None})
        return replace(own, name=own.default_name() if name is None else name)

    def default_name(self) -> str:
        """Return a name made from the settings."""
        other = [f"-{key}{value}" for key, value in self._unusual(asdict(self))]
        return self.study + "".join(other)

    @classmethod
    def command(cls, settings: Mapping[str, Any]) -> str:
        """Return the command that repeats a run with these settings."""
        options = [f" --{key} {value}" for key, value in cls._unusual(settings)]
        return f"convfc reproduce --study {cls.study}{''.join(options)}"

    @classmethod
    def _unusual(cls, given: Mapping[str, Any]) -> list[tuple[str, Any]]:
        """Return the settings that are options and differ from the usual ones."""
        usual = asdict(cls())
        own = [key for key in usual if key not in ("name", "threads")]
        found = {**cls.later, **given}
        return [(key, found[key]) for key in own if found[key] != usual[key]]

    def outdated(self, found: Mapping[str, Any]) -> Sequence[str] | None:
        """Return which parts are done again where a run with other settings goes on with these.

        None if it cannot.
        """
        del found
        return None

    @property
    def title(self) -> str:
        """What is said of the run when it begins."""
        return f"study {self.study}, run {self.name}"

    def as_json(self) -> dict[str, Any]:
        """Return what ``settings.json`` holds."""
        own = {"study": self.study, **asdict(self)}
        return {key: value for key, value in own.items() if self.later.get(key, ...) != value}


@dataclass(frozen=True)
class Part:
    """One part of a study: a function of the settings, a seed of its own, and earlier parts."""

    name: str
    run: Callable[[Work], Result | None]  # None where it could find nothing; no part may need it
    needs: tuple[str, ...] = ()
    steps: int = 1  # what it counts, such as epochs; with 0 progress does not show it
    weight: int = 1  # how much longer its steps take than those of others, about


@dataclass(frozen=True)
class Study:
    """What there is to run, and to say about it."""

    settings: type[Settings]
    # Of the settings: the packages whose versions have a part in the numbers.
    packages: Callable[[Any], Sequence[str]]
    parts: Callable[[Any], Sequence[Part]]  # of the settings; each after those that it needs
    # Of the settings and the results of all parts: what ``results.json`` holds.
    results: Callable[[Any, Mapping[str, Result]], dict[str, Any]]
    figures: Callable[[FinishedRun], Iterator[tuple[str, Figure]]]
    # What the template takes beside results, settings and command.
    findings: Callable[[FinishedRun], dict[str, Any]]
    template: str
    summary: Callable[[Mapping[str, Any]], Any]  # of ``results.json``: the table for the terminal
    # Of the settings and a seed: the context in which each part is run.
    surroundings: Callable[[Any, int], contextlib.AbstractContextManager[None]] = (
        lambda settings, seed: contextlib.nullcontext()
    )
    # Of the settings: raises if the study cannot run, before there is a folder.
    prepare: Callable[[Any], None] = lambda settings: None
    beside: Callable[[FinishedRun], None] = lambda run: None  # writes what else the report needs
    words: tuple[str, str] = ("parts", "step")  # what progress calls its parts and their steps


@dataclass
class Work:
    """What a part works with: the settings, what earlier parts found, and a seed of its own."""

    settings: Any
    part: Part
    seed: int
    results: Mapping[str, Result]
    folder: RunFolder
    display: Display
    pause: float = CHECKPOINT_SECONDS
    done: int = 0
    next_checkpoint: float = field(init=False)

    def __post_init__(self) -> None:
        self.next_checkpoint = time.monotonic() + self.pause

    @property
    def files(self) -> PartFiles:
        """Where the part is kept."""
        return self.folder.part(self.part.name)

    def weights(self, name: str) -> dict[str, Array]:
        """Return the weights that an earlier part found."""
        return self.folder.part(name).weights()

    def start(self, done: int = 0) -> None:
        """Say that the part begins, or goes on behind the steps that are done."""
        self.done = done
        self.display.start(self.part.name, done)

    def step(
        self, done: int, told: str = "", state: Callable[[], Mapping[str, Array]] | None = None
    ) -> None:
        """Say how many steps are done, and now and then write the state as a checkpoint."""
        self.done = done
        began = time.monotonic()
        if state is not None and began >= self.next_checkpoint and done < self.part.steps:
            self.files.save_checkpoint(state())
            now = time.monotonic()
            # On a slow disk less often, so that their share of the time stays small.
            pause = max(self.pause, (now - began) / CHECKPOINT_SHARE) if self.pause else 0
            self.next_checkpoint = now + pause
        self.display.step(self.part.name, done, told)


def run_in(
    runs: pathlib.Path,
    study: Study,
    settings: Settings,
    display: Display,
    *,
    resume: bool = False,
    overwrite: bool = False,
    weights: bool = True,
    workers: Workers | None = None,
) -> pathlib.Path:
    """Open the run's folder among the runs, run what is left of it, and return its report."""
    # Before the folder is made: a missing package leaves nothing behind.
    study.prepare(settings)
    if workers is not None:
        require_dask()
    how: Any = {"resume": resume, "overwrite": overwrite, "outdated": settings.outdated}
    opened = RunFolder.open(runs, settings.as_json(), **how)
    with opened as run:
        display.note(f"{settings.title}, in {run.path}")
        return run_study(study, run, settings, display, weights=weights, workers=workers)


def run_study(
    study: Study,
    run: RunFolder,
    settings: Settings,
    display: Display,
    *,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    weights: bool = True,
    workers: Workers | None = None,
) -> pathlib.Path:
    """Run what is left of a study in an opened folder, write its report, and return that.

    Parts run one after another here, or, where there are workers, on them as soon as those that
    they need are done. Without ``weights``, those that parts found are removed when all are done.
    """
    if run.finished:
        display.note(f"{run.path} is finished: only the report is drawn again")
    else:
        versions = versions_of(study.packages(settings))
        run.check_versions(versions)
        found = _run_parts(study, run, settings, display, checkpoint_seconds, workers)
        for name in () if weights else found:
            run.part(name).forget_weights()
        results = study.results(settings, found) | {
            "settings": settings.as_json(),
            "seconds": {name: dict(result.seconds) for name, result in found.items()},
            "versions": versions,
            "machine": describe_machine(),
        }
        run.write_results(results)
    display.note("drawing the figures and the report")
    return write_report(study, run)


def write_report(study: Study, folder: RunFolder) -> pathlib.Path:
    """Draw the figures of a finished run and write its report; return ``report.html``."""
    run = folder.read()
    text = report_text(study, run)
    require_folder(folder.path / "figures")
    with drawing.house_style():
        for name, figure in study.figures(run):
            drawing.save_figure(figure, folder.path / "figures", name)
    study.beside(run)
    return write_report_files(folder.path, text)


def report_text(study: Study, run: FinishedRun) -> str:
    """Return the report in Markdown; its figures are named as files below ``figures/``."""
    run = replace(run, results=escaped(run.results))
    # The numbers may be sealed and yet not what this report is made of.
    with readable(run.folder.results_path, run.remedy):
        settings = run.results["settings"]
        values = {
            "results": run.results,
            "settings": settings,
            "command": study.settings.command(settings),
        }
        return render(study.template, values | study.findings(run))


def _run_parts(
    study: Study,
    run: RunFolder,
    settings: Settings,
    display: Display,
    pause: float,
    workers: Workers | None,
) -> dict[str, Result]:
    """Run the parts that have no result yet, and return all results."""
    parts = study.parts(settings)
    files = {part.name: run.part(part.name) for part in parts}
    require_folder(run.path / "parts")
    for file in files.values():
        file.clean()
        # What is damaged is said before hours of training, not after them.
        if file.finished:
            file.check()
    finished = {name for name, file in files.items() if file.finished}
    path = run.path if workers is None else run.path.resolve()
    what = functools.partial(_run_part, study.surroundings, settings, path, pause)
    if workers is not None:
        jobs = [
            Job(part.name, functools.partial(what, part), part.steps, part.weight, part.needs)
            for part in parts
        ]
        if failed := run_jobs(jobs, display, finished=finished, workers=workers):
            count = len(parts) - len(finished)
            raise failure(failed, count, RESUME)
    else:
        shown = [part for part in parts if part.steps]
        if shown:
            display.plan(
                {part.name: part.steps for part in shown},
                {part.name for part in shown} & finished,
                {part.name: part.weight for part in shown},
            )
        for part in parts:
            if part.name not in finished:
                what(part, display)
    return {name: file.load() for name, file in files.items() if file.finished}


def _run_part(
    surroundings: Callable[[Any, int], contextlib.AbstractContextManager[None]],
    settings: Settings,
    path: pathlib.Path,
    pause: float,
    part: Part,
    display: Display,
) -> None:
    """Run one part of the run in this folder, in whichever process."""
    run = RunFolder(path)
    file, seed = run.part(part.name), seed_of(settings.seed, part.name)
    file.path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the run's own lock: a worker that was taken for dead may still be at this part.
    with locked(file.path.parent, f"{part.name}.lock"):
        if file.finished:  # by that worker
            return
        # As they were written: all that comes later sees the same, whichever run wrote it.
        needed = {name: run.part(name).load() for name in part.needs}
        work = Work(settings, part, seed, needed, run, display, pause)
        with surroundings(settings, seed):
            result = part.run(work)
        if result is not None:
            file.save(result)
    if part.steps:
        if work.done < part.steps:
            work.step(part.steps)
        display.end(part.name)


def seed_of(seed: int, *names: str | int) -> int:
    """Return a seed for something that has a name, from the seed of the run."""
    words = [zlib.crc32(str(name).encode()) for name in names]
    return int(np.random.SeedSequence([seed, *words]).generate_state(1)[0])
