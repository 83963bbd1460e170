"""Named jobs, each once: in this process, or on Dask's workers, and begun again if one dies.

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
from typing import TYPE_CHECKING, Any

from convfc.errors import ConvfcError, RunError
from convfc.extras import needing
from convfc.runs.progress import Display

if TYPE_CHECKING:
    from distributed import Client, Future

_TELL_EVERY = 0.5  # seconds, at most, between two words of a job: many jobs share one scheduler
_ANSWER_IN = 10  # seconds
_LOOPBACK = "127.0.0.1"
# Ctrl-C reaches every process of a terminal; the workers are stopped by the one that started them.
# Some packages make every logger talk when they are imported; what Dask does concerns nobody here.
_QUIET = """
import logging, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
logging.getLogger("distributed").propagate = False
"""
# Frameworks have global state, such as the precision of Keras, which two jobs must not share.
_ALONE = threading.Lock()


@dataclass(frozen=True)
class Job:
    """What may be done in another process, which may die: ``run`` goes on from its own files.

    It is sent there by pickle, with the display that it tells how many of its steps are done.
    """

    name: str
    run: Callable[[Display], object]
    steps: int = 1
    weight: int = 1  # how much longer its steps take than those of others, about
    needs: tuple[str, ...] = ()  # jobs that are done before


@dataclass(frozen=True)
class Workers:
    """So many processes here, one per core without a number, or a cluster that is there."""

    number: int | None = None
    scheduler: str | None = None  # its address


def require_dask() -> None:
    """Raise where Dask is not installed, before anything is begun."""
    with needing():
        import distributed as _  # noqa: F401


def run_jobs(
    jobs: Sequence[Job],
    display: Display,
    *,
    finished: Collection[str] = (),
    workers: Workers | None = None,
) -> dict[str, Exception]:
    """Run all jobs but the finished ones, one after another here if there are no workers.

    A job that fails stops none but those that need it. Returned are the errors of those that
    failed, by their names.
    """
    steps = {job.name: job.steps for job in jobs}
    display.plan(steps, finished, {job.name: job.weight for job in jobs})
    left = {job.name: job for job in jobs if job.name not in finished}
    if not left:
        return {}
    heard, done = _Heard(display, steps), set(finished)
    failed: dict[str, Exception] = {}
    run: contextlib.AbstractContextManager[Ended] = contextlib.nullcontext(_here(heard))
    if workers is not None:
        run = _there(heard, workers, len(left))

    def ready() -> list[Job]:
        found = [job for job in left.values() if done.issuperset(job.needs)]
        for job in found:
            del left[job.name]
        return found

    with run as ended:
        for name, error in ended(ready):
            if error is None:
                done.add(name)
                heard.end(name)
            else:
                failed[name] = error
                display.note(f"{name}: failed: {reason_of(error).removeprefix(f'{name}: ')}")
    return failed


def reason_of(error: BaseException) -> str:
    """Return in a line why a job failed."""
    if type(error).__name__ == "KilledWorker":  # of Dask, which need not be there
        return "its worker died every time: it may have needed more memory than there is"
    words = " ".join(str(error).split())
    return words if isinstance(error, ConvfcError) else f"{type(error).__name__}: {words}"


def failure(failed: Mapping[str, Exception], count: int, remedy: str) -> Exception:
    """Return one error for all jobs that failed; one that nobody foresaw is returned as it is."""
    name, error = next(iter(failed.items()))
    if not isinstance(error, ConvfcError) and type(error).__name__ != "KilledWorker":
        return error
    return RunError(
        f"{len(failed)} of {count} failed, and the others are done",
        where=", ".join(failed),
        got=reason_of(error).removeprefix(f"{name}: "),
        remedy=remedy,
    )


Ready = Callable[[], list[Job]]
"""Takes away the jobs that can be run, and returns them."""
Ended = Callable[[Ready], Iterator[tuple[str, Exception | None]]]
"""Runs what is ready until nothing is, and yields each name when it has ended."""


def _here(heard: _Heard) -> Ended:
    """Run jobs in this process."""

    def ended(ready: Ready) -> Iterator[tuple[str, Exception | None]]:
        while jobs := ready():
            for job in jobs:
                try:
                    job.run(_Told(job.name, lambda event: heard((0.0, event))))
                except Exception as error:  # whatever a user's model raises
                    yield job.name, error
                else:
                    yield job.name, None

    return ended


@contextlib.contextmanager
def _there(heard: _Heard, workers: Workers, most: int) -> Iterator[Ended]:
    """Run jobs on workers."""
    require_dask()
    from distributed import as_completed

    topic = f"convfc-{uuid.uuid4().hex}"
    futures: dict[Any, Future[None]] = {}
    with _connected(min(workers.number or _cores(), most), workers.scheduler) as client:
        client.subscribe_topic(topic, heard)

        def ended(ready: Ready) -> Iterator[tuple[str, Exception | None]]:
            running = as_completed(loop=client.loop)

            def submit() -> None:
                jobs = ready()
                keys = [(topic, job.name) for job in jobs]
                made = client.map(_run, jobs, topic=topic, key=keys, pure=False)
                futures.update((future.key, future) for future in made)
                running.update(made)

            submit()
            for future in running:
                name = future.key[1]
                error = None if future.status == "finished" else future.exception()
                # Let go: what is done is seldom asked for again when its worker dies.
                futures.pop(future.key).release()
                yield name, error
                submit()

        try:
            yield ended
        finally:
            client.cancel(list(futures.values()))


@contextlib.contextmanager
def _connected(workers: int, scheduler: str | None) -> Iterator[Client]:
    """Yield a client of the scheduler at this address, or of a cluster made here for the time."""
    import dask
    from distributed import Client, LocalCluster

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
    logging.getLogger("distributed").propagate = False
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
            preload=[_QUIET],
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
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def send(event: Event) -> None:
        worker.log_event(topic, event)

    def check() -> None:
        # Of a cluster that goes on without us: a thread cannot be killed, but it can stop here.
        task = worker.state.tasks.get(key)
        if task is None or task.state == "cancelled":
            raise _Stopped

    with _ALONE:
        job.run(_Told(job.name, send, check))


class _Stopped(Exception):  # noqa: N818
    """Nobody waits for this job any more."""


Event = tuple[str, int, str | None]
"""The name of a job, how many of its steps are done, and a few words if it is at one."""


class _Told(Display):
    """The display of a job: it sends on how many steps of the whole job are done."""

    def __init__(
        self, name: str, send: Callable[[Event], None], check: Callable[[], None] = lambda: None
    ) -> None:
        self._name, self._send_on, self._check = name, send, check
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
        self._check()
        self._done[name] = done
        if time.monotonic() >= self._next:
            # A job that is one part of a run needs no second name.
            self._send(": ".join(word for word in (name * (name != self._name), told) if word))

    def end(self, name: str) -> None:
        """Say nothing: the whole job goes on."""

    def note(self, text: str) -> None:
        """Say nothing: many jobs talk at once."""

    def _send(self, told: str | None) -> None:
        self._next = time.monotonic() + _TELL_EVERY
        self._send_on((self._name, sum(self._done.values()), told))


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
                # A job that is heard of at its first steps was not resumed behind them.
                self._display.start(name, done if told is None else 0)
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
