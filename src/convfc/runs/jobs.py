"""Named jobs on a cluster of Dask: each once, on whichever worker is free, begun again if it dies.

Dask hands out the jobs and notices dead workers. What a job has done so far is in its files, so
that another worker goes on from there; nothing but words travels between the processes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from convfc.errors import ConvfcError, RunError
from convfc.extras import needing

with needing():
    import dask
    from distributed import Client, LocalCluster, as_completed, get_worker
    from distributed.scheduler import KilledWorker

from convfc.runs.progress import Display

_TELL_EVERY = 0.5  # seconds, at most, between two words of a job: many jobs share one scheduler
_ANSWER_IN = 10  # seconds
_LOOPBACK = "127.0.0.1"
# Ctrl-C reaches every process of a terminal; the workers are stopped by the one that started them.
_DEAF = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
# Frameworks have global state, such as the precision of Keras, which two jobs must not share.
_ALONE = threading.Lock()


@dataclass(frozen=True)
class Job:
    """What is done in another process, which may die: ``run`` then goes on from its own files.

    It is sent there by pickle, with the display that it tells how many of its steps are done.
    """

    name: str
    run: Callable[[Display], object]
    steps: int = 1


def run_jobs(
    jobs: Sequence[Job],
    display: Display,
    *,
    finished: Collection[str] = (),
    workers: int | None = None,
    scheduler: str | None = None,
) -> None:
    """Run all jobs but the finished ones on so many processes here, or on a cluster that is there.

    A job that fails stops no other one: its error is raised when all are done.
    """
    left = [job for job in jobs if job.name not in finished]
    steps = {job.name: job.steps for job in jobs}
    display.plan(steps, finished, dict.fromkeys(steps, 1))
    if not left:
        return
    topic, heard, failed = f"convfc-{uuid.uuid4().hex}", _Heard(display, steps), {}
    with _connected(min(workers or _cores(), len(left)), scheduler) as client:
        client.subscribe_topic(topic, heard)
        keys = [(topic, number) for number in range(len(left))]
        futures = client.map(_run, left, topic=topic, key=keys, pure=False)
        names = {future.key: job.name for future, job in zip(futures, left, strict=True)}
        try:
            for future in as_completed(futures, loop=client.loop):
                name = names[future.key]
                if future.status == "finished":
                    heard.end(name)
                else:
                    failed[name] = future.exception()
                    display.note(f"{name}: failed")
        finally:
            client.cancel(futures)
    if failed:
        raise _failure(failed, len(left))


def _failure(failed: Mapping[str, BaseException], count: int) -> BaseException:
    """Return one error for all jobs that failed: the first one's, with its name."""
    name, error = next(iter(failed.items()))
    if isinstance(error, KilledWorker):
        reason = "its worker died every time: it may have needed more memory than there is"
    elif isinstance(error, ConvfcError):
        reason = str(error)
    else:
        return error
    return RunError(
        f"{len(failed)} of {count} failed, and the others are done",
        where=name,
        got=reason,
        remedy="--resume runs what has failed once more",
    )


@contextlib.contextmanager
def _connected(workers: int, scheduler: str | None) -> Iterator[Client]:
    """Yield a client of the scheduler at this address, or of a cluster made here for the time."""
    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=_ANSWER_IN, set_as_default=False)
        except (OSError, ValueError) as error:
            raise RunError(
                "no scheduler of Dask answers",
                where=scheduler,
                got=" ".join(str(error).split()),
                remedy="start one with dask scheduler, and give the address that it prints",
            ) from error
        with client:
            yield client
        return
    # One job per worker at a time: what waits in a worker that dies would count as its killer.
    with (
        dask.config.set({"distributed.scheduler.worker-saturation": 1.0}),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host=_LOOPBACK,
            # With None they would still listen, on a port of Dask's choice.
            dashboard_address=f"{_LOOPBACK}:0",
            worker_dashboard_address=f"{_LOOPBACK}:0",
            scheduler_kwargs={"dashboard": False},
            preload=[_DEAF],
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def _cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _run(job: Job, topic: str) -> None:
    """Run a job in a worker."""
    with _ALONE:
        job.run(_Told(job.name, topic))


class _Stopped(Exception):  # noqa: N818
    """Nobody waits for this job any more."""


class _Told(Display):
    """A display in a worker: it sends on how many steps of the whole job are done."""

    def __init__(self, name: str, topic: str) -> None:
        self._name, self._topic = name, topic
        self._worker = get_worker()
        self._key = self._worker.get_current_task()
        self._done: dict[str, int] = {}
        self._next = 0.0

    def plan(
        self, steps: Mapping[str, int], finished: Collection[str], weights: Mapping[str, int]
    ) -> None:
        self._done = {name: steps[name] for name in finished}
        self._send(None)

    def start(self, name: str, done: int) -> None:
        if done:
            self._done[name] = done
            self._send(None)

    def step(self, name: str, done: int, told: str) -> None:
        # Of a cluster that goes on without us: a thread cannot be killed, but it can stop here.
        task = self._worker.state.tasks.get(self._key)
        if task is None or task.state == "cancelled":
            raise _Stopped
        self._done[name] = done
        if time.monotonic() >= self._next:
            self._send(f"{name}: {told}" if told else name)

    def end(self, name: str) -> None:
        """Say nothing: the whole job goes on."""

    def note(self, text: str) -> None:
        """Say nothing: many jobs talk at once."""

    def _send(self, told: str | None) -> None:
        self._next = time.monotonic() + _TELL_EVERY
        self._worker.log_event(self._topic, (self._name, sum(self._done.values()), told))


class _Heard:
    """What is heard of jobs, shown; words that come late are not."""

    def __init__(self, display: Display, steps: Mapping[str, int]) -> None:
        self._display, self._steps = display, steps
        self._lock = threading.Lock()
        self._told: dict[str, str] = {}
        self._over: set[str] = set()

    def __call__(self, event: tuple[float, Any]) -> None:
        name, done, told = event[1]
        with self._lock:
            if name in self._over:
                return
            if told is None or name not in self._told:
                self._display.start(name, done)
            self._told[name] = told or ""
            if told is not None:
                self._display.step(name, done, told)

    def end(self, name: str) -> None:
        """Show that a job is done, whatever was heard of it."""
        with self._lock:
            if name not in self._told:
                self._display.start(name, 0)
            self._over.add(name)
            self._display.step(name, self._steps[name], self._told.get(name, ""))
            self._display.end(name)
