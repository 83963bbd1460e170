"""Jobs on a cluster: one that is killed goes on elsewhere, to the same bits; failures are named."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import pathlib
import signal
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from convfc.errors import RunError
from convfc.runs import jobs
from convfc.runs.folder import Result, RunFolder
from convfc.runs.jobs import Job, Workers, failure, run_jobs
from convfc.runs.progress import Display
from convfc.runs.study import Part, Settings, Study, Work, run_study

STEPS = 6


def walk(work: Work) -> Result:
    """Walk at random, a step at a time, and be killed once where a file says so."""
    saved = work.files.load_checkpoint() or {"places": np.zeros(1)}
    places = saved["places"].tolist()
    begun = work.folder.path.parent / f"{work.settings.name}.log"
    with begun.open("a") as log:
        log.write(f"{os.getpid()} {len(places) - 1}\n")
    work.start(len(places) - 1)
    killer = work.folder.path.parent / f"{work.settings.name}.kill"
    for step in range(len(places), STEPS + 1):
        places.append(places[-1] + np.random.default_rng([work.seed, step]).normal())
        work.step(step, f"at {places[-1]:.3f}", lambda: {"places": np.array(places)})
        if step == 3 and killer.exists():
            killer.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
    if work.settings.seed == 99:
        raise RunError("the walk fell into a hole", where="walk")
    return Result({"end": places[-1]}, {"places": np.array(places)})


def no_figures(run: object) -> Iterator[tuple[str, Figure]]:
    return iter(())


WALK = Study(
    settings=Settings,
    packages=lambda settings: ("numpy",),
    parts=lambda settings: [Part("walk", walk, steps=STEPS)],
    results=lambda settings, found: {"end": found["walk"].numbers["end"]},
    figures=no_figures,
    findings=lambda run: {},
    template="# A walk\n",
    summary=lambda results: results["end"],
)


def run_walk(folder: pathlib.Path, settings: Settings, display: Display) -> None:
    with RunFolder.open(folder, settings.as_json(), resume=True) as run:
        run_study(WALK, run, settings, display, checkpoint_seconds=0)


def walks(folder: pathlib.Path, **seeds: int) -> list[Job]:
    made = {name: Settings(name=name, seed=seed) for name, seed in seeds.items()}
    return [
        Job(name, functools.partial(run_walk, folder, one), STEPS) for name, one in made.items()
    ]


def told() -> tuple[Display, io.StringIO]:
    lines = io.StringIO()
    return Display(Console(file=lines, width=200), "walks", "step"), lines


def addresses() -> set[str]:
    """Where this process and those it has started can be reached."""
    here = psutil.Process()
    family = [here, *here.children(recursive=True)]
    found: set[str] = set()
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):  # it may just have been killed
            connections = process.net_connections("inet")
            found |= {str(c.laddr.ip) for c in connections if c.status == "LISTEN"}
    return found


def test_a_job_whose_worker_is_killed_goes_on_elsewhere_to_the_same_bits(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers: one is killed when both have done a job; one job fails, one was done before."""
    whole, swept = tmp_path / "whole", tmp_path / "swept"
    seeds = {"quiet": 2, "second": 4, "killed": 1, "failing": 99}
    for name in ("killed", "quiet"):
        whole.mkdir(exist_ok=True)
        run_walk(whole, Settings(name=name, seed=seeds[name]), told()[0])
    swept.mkdir()
    (swept / "killed.kill").touch()
    display, lines = told()
    reached: set[str] = set()
    first_words = jobs._Heard.__call__

    def heard(self: Any, event: Any) -> None:
        reached.update(addresses())
        first_words(self, event)

    monkeypatch.setattr(jobs._Heard, "__call__", heard)
    needs = {"killed": ("quiet", "second"), "after": ("failing",)}
    todo = [
        replace(job, needs=needs.get(job.name, ()))
        for job in walks(swept, early=3, after=5, **seeds)
    ]
    failed = run_jobs(todo, display, finished={"early"}, workers=Workers(2))
    assert list(failed) == ["failing"]
    error = failure(failed, 3, "try again")
    assert str(error) == (
        "failing: 1 of 3 failed, and the others are done; got walk: the walk fell into a hole. "
        "Remedy: try again"
    )
    for name in ("killed", "quiet"):
        one, other = (
            (place / name / "parts" / "walk.npz").read_bytes() for place in (swept, whole)
        )
        assert one == other
    # It went on in another process, after the step that its checkpoint holds.
    (first, zero), (second, three) = (
        line.split() for line in (swept / "killed.log").read_text().splitlines()
    )
    assert (zero, three) == ("0", "3")
    assert first != second
    for name in ("early", "after"):
        assert not (swept / f"{name}.log").exists()
    # What the dead worker had done is not walked again: asked for once more, it is found finished.
    for name in ("quiet", "second"):
        assert len((swept / f"{name}.log").read_text().splitlines()) == 1
    text = lines.getvalue()
    for line in (
        "early: finished earlier",
        "killed: continues after step 3",
        "quiet: done, step 6/6",
    ):
        assert line in text
    assert reached == {"127.0.0.1"}


def test_where_no_scheduler_answers_it_says_how_to_start_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jobs, "_ANSWER_IN", 0.2)
    with pytest.raises(RunError, match=r"^tcp://127\.0\.0\.1:9: no scheduler.*dask scheduler"):
        run_jobs(
            walks(pathlib.Path(), one=1), told()[0], workers=Workers(scheduler="tcp://127.0.0.1:9")
        )


def test_nothing_is_started_where_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_connected", None)
    walk = walks(pathlib.Path(), one=1)
    assert run_jobs(walk, told()[0], finished={"one"}, workers=Workers()) == {}


def test_here_jobs_are_done_one_after_another_and_told_as_they_are() -> None:
    """Heard of at its first step, a job has not gone on behind that; ``:a:`` is no picture."""
    display, lines = told()

    def steps(shown: Display) -> None:
        shown.step("nets:a", 1, "at 3")

    assert run_jobs([Job("nets:a", steps, 2)], display) == {}
    assert lines.getvalue().splitlines() == [
        "1 walks, 2 steps in all",
        "nets:a: starts",
        "nets:a: done, step 2/2, at 3, 0 s",
    ]
