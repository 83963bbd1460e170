"""Section 5 from end to end: train, compare, measure, report."""

from __future__ import annotations

import importlib.metadata
import pathlib
import platform
from typing import TYPE_CHECKING, Any

from convfc.errors import RunError
from convfc.frameworks.keras.backend import choose_backend, precision
from convfc.paper import data
from convfc.paper.machine import describe_machine
from convfc.paper.runs import RunFolder, Settings, Task

if TYPE_CHECKING:
    from convfc.paper.progress import Display

__all__ = ["run_experiment"]


def run_experiment(
    run: RunFolder,
    settings: Settings,
    display: Display,
    *,
    cost: bool = True,
    checkpoint_seconds: float | None = None,
) -> pathlib.Path:
    """Run the experiment, or what is left of it, and write its report.

    Parameters
    ----------
    run : RunFolder
        An opened folder.
    settings : Settings
        What to compute; those with which the folder was opened.
    display : Display
        Where progress is shown.
    cost : bool
        Whether to measure time and memory of the product form as well.
    checkpoint_seconds : float, optional
        Least wall time between two checkpoints.

    Returns
    -------
    pathlib.Path
        ``report.html``.

    Raises
    ------
    RunError
        A file of the run is damaged, or Keras runs on another backend already.
    DataError, MissingDependencyError
        The images or a package cannot be had.
    OSError
        A file cannot be written, as on a full disk; what was written before it stays.
    """
    choose_backend(settings.backend)
    if run.finished:
        display.note(f"{run.path} is finished: only the report is drawn again")
    else:
        digits = data.load(settings.data, settings.seed, settings.images)
        results = _train_and_compare(run, settings, digits, display, checkpoint_seconds)
        if cost and not (run.path / "cost.json").exists():
            _measure_cost(run, display)
        run.write_results(results)
    display.note("drawing the figures and the report")
    from convfc.paper.report import write_report

    return write_report(run.path)


def _measure_cost(run: RunFolder, display: Display) -> None:
    """Measure the product form; a run without these figures is still a run."""
    from convfc.paper.cost import write_cost

    try:
        write_cost(run.path, progress=display.note)
    except RunError as error:
        display.note(f"the report will be without time and memory of the product form: {error}")


def _train_and_compare(
    run: RunFolder,
    settings: Settings,
    digits: data.Digits,
    display: Display,
    checkpoint_seconds: float | None,
) -> dict[str, Any]:
    """Train what is not trained yet, one precision after the other, and return ``results.json``."""
    from convfc.paper import networks
    from convfc.paper.differences import dead_outputs, run_results

    tasks, versions = settings.tasks, _versions(settings.backend)
    run.check_versions(versions)
    for task in tasks:
        run.network(task).clean()
    finished = {task: epochs for task, epochs in tasks.items() if run.network(task).finished}
    # What is damaged is said before hours of training, not after them.
    run.cost()
    for task in finished:
        run.network(task).check()
    display.plan(_named(tasks), _named(finished))
    initial = networks.initial_weights(settings.seed)
    results: dict[str, Any] = {}
    # float32 comes first: where a network of the run trains, JAX has never heard of float64.
    for dtype in dict.fromkeys(task.dtype for task in tasks):
        with precision(dtype):
            for task, epochs in tasks.items():
                if task.dtype == dtype and task not in finished:
                    _train(
                        run, settings, task, epochs, initial, digits, display, checkpoint_seconds
                    )
            if dtype == settings.dtype:
                results |= run_results(run, settings, digits, dtype)
                results["dead_outputs"] = {
                    optimizer: dead_outputs(
                        run.network(Task(dtype, optimizer, "cnn")), "cnn", initial, digits
                    )
                    for optimizer in settings.optimizers
                }
            else:
                companion = run_results(run, settings, digits, dtype)
                for numbers in companion["adam"].values():
                    numbers["epochs"] = settings.float64_epochs
                results[dtype] = companion
    seconds = {
        task.name: sum(epoch.seconds for epoch in run.network(task).history()) for task in tasks
    }
    return results | {
        "epochs": settings.epochs,
        "dtype": settings.dtype,
        "backend": settings.backend,
        "seed": settings.seed,
        "data": digits.description,
        "seconds": sum(seconds.values()),
        "seconds_per_network": seconds,
        "versions": versions,
        "machine": describe_machine(),
    }


def _train(
    run: RunFolder,
    settings: Settings,
    task: Task,
    epochs: int,
    initial: Any,
    digits: data.Digits,
    display: Display,
    checkpoint_seconds: float | None,
) -> None:
    """Train one network and show how it goes."""
    from convfc.paper.training import CHECKPOINT_SECONDS, train

    train(
        task,
        digits,
        initial,
        run.network(task),
        epochs=epochs,
        batch_size=settings.batch_size,
        seed=settings.seed,
        checkpoint_seconds=CHECKPOINT_SECONDS if checkpoint_seconds is None else checkpoint_seconds,
        on_start=lambda done: display.start(task.name, done),
        on_epoch=lambda line: display.epoch(task.name, line),
    )
    display.end(task.name)


def _named(tasks: dict[Task, int]) -> dict[str, int]:
    return {task.name: epochs for task, epochs in tasks.items()}


def _versions(backend: str) -> dict[str, str]:
    """Return the versions of everything that had a part in the numbers."""
    packages = ("numpy", "keras", backend, "mlxtend", "convfc")
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions
