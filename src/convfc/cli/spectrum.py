"""``convfc spectrum``: singular values of models' CONV layers, as a table and a figure."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.text import Text

from convfc.cli.common import (
    FROM,
    WIDTH,
    FactoryArguments,
    Weights,
    ctrl_c_explained,
    errors_in_one_line,
    load_weights,
    make_model,
    shape,
    workers_of,
)
from convfc.errors import ArgumentError, ConvfcError, RunError
from convfc.printable import printable

if TYPE_CHECKING:
    from convfc.methods.spectrum.models import LayerSpectrum
    from convfc.runs.jobs import Workers
    from convfc.runs.progress import Display
    from convfc.tables import TextTable


class Boundary(StrEnum):
    """Which operators a layer is taken for."""

    both = "both"
    own = "own"
    circular = "circular"


def spectrum(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODULE:FACTORY",
            help=f"Where the model comes from: {FROM} Several may be given.",
        ),
    ],
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
    weights: Weights = None,
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
            metavar="FILE",
            help="Draw to this PNG or SVG; if not given, FACTORY-spectrum.svg, and of several "
            "models spectra.svg in --folder.",
        ),
    ] = None,
    no_figure: Annotated[bool, typer.Option("--no-figure", help="Draw nothing.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON; draw only with --figure.")
    ] = False,
    folder: Annotated[
        pathlib.Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Of several models: where what is found of each is kept, so that the same command "
            "goes on where it was stopped; spectra if not given.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Of several models: so many processes here, by Dask."
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Of several models: run on this cluster of Dask."),
    ] = None,
) -> None:
    """Singular values of models' CONV layers, as the linear maps they are.

    Beside them the norm of the reshaped kernel, which is often taken for
    the layer's. A model is run once, on zeros, to know the sizes.

    [bold]convfc spectrum torchvision.models:resnet18 --input 3,224,224[/bold]

    [bold]convfc spectrum ./nets.py:Net --input 1,28,28 --weights net.safetensors[/bold]

    [bold]convfc spectrum nets:A nets:B nets:C --input 1,28,28 --workers 2[/bold]
    """
    console, errors = Console(), Console(stderr=True)
    for text in inputs:
        shape(text)
    if no_figure and figure is not None:
        raise typer.BadParameter("give only one of --figure and --no-figure")
    on, several = workers_of(workers, scheduler), len(models) > 1
    if several and weights is not None:
        raise typer.BadParameter("--weights: an option of a single model")
    only = {"--folder": folder, "--workers": workers, "--scheduler": scheduler}
    if not several and (given := [name for name, value in only.items() if value is not None]):
        raise typer.BadParameter(f"{', '.join(given)}: an option of several models")
    folder = folder or pathlib.Path("spectra")
    if figure is None and not (no_figure or as_json):
        own = pathlib.Path(f"{models[0].rpartition(':')[2]}-spectrum.svg")
        figure = folder / "spectra.svg" if several else own
    asked = {
        "inputs": inputs,
        "arguments": arguments or [],
        "layers": layers or [],
        "boundary": boundary.value,
        "k": k,
        "smallest": smallest,
        "tolerance": tolerance,
    }
    elsewhere = "draw to another file with --figure, or nothing with --no-figure"
    stopped = "Stopped; nothing was written."
    if several:
        elsewhere = "choose another --folder, or another --figure"
        stopped = f"Stopped. The same command goes on with the models that are not in {folder} yet."
    with errors_in_one_line(errors, elsewhere), ctrl_c_explained(errors, stopped):
        from convfc.methods.spectrum.figure import check_figure

        if several:
            folder.mkdir(parents=True, exist_ok=True)
        if figure is not None:
            check_figure(figure)
        if several:
            _several(models, asked, folder, on, figure, as_json, console, errors)
        else:
            _single(models[0], asked, weights, figure, as_json, console, errors)


def _single(
    model: str,
    asked: Mapping[str, Any],
    weights: pathlib.Path | None,
    figure: pathlib.Path | None,
    as_json: bool,
    console: Console,
    errors: Console,
) -> None:
    """Show the spectra of one model."""
    from convfc.methods.spectrum.figure import save_spectra
    from convfc.methods.spectrum.models import spectra_table

    made = make_model(model, asked["arguments"])
    if weights is not None:
        load_weights(made, weights, errors)
    with errors.status("running the model") as status:
        spectra = _spectra(made, asked, lambda words: status.update(Text(words)))
    # What was computed is shown first: it is not lost with a figure that cannot be written.
    if as_json:
        found = {"model": model, "layers": [layer.to_dict() for layer in spectra]}
        typer.echo(json.dumps(found, indent=2))
    else:
        _show(console, spectra_table(spectra))
    if figure is not None:
        save_spectra(spectra, figure, f"{model}, {' and '.join(asked['inputs'])}")
        if not as_json:
            console.print(Text(f"Figure: {figure}"), soft_wrap=True)


def _spectra(
    made: Any, asked: Mapping[str, Any], tell: Callable[[str], None]
) -> list[LayerSpectrum]:
    """Return the spectra of a model as they were asked for; ``tell`` is told what comes."""
    from convfc.methods.spectrum.models import layer_spectra

    return layer_spectra(
        made,
        tuple(np.zeros(shape(text), np.float32) for text in asked["inputs"]),
        **{name: asked[name] for name in ("layers", "k", "boundary", "smallest", "tolerance")},
        progress=lambda done, count, name: tell(f"{printable(name)} ({done + 1} of {count})"),
    )


def _show(console: Console, table: TextTable) -> None:
    """Print a table for whoever reads it."""
    if console.is_terminal:
        console.print(table)
    else:
        typer.echo(table.text(WIDTH))


def _several(
    models: Sequence[str],
    asked: Mapping[str, Any],
    folder: pathlib.Path,
    workers: Workers | None,
    figure: pathlib.Path | None,
    as_json: bool,
    console: Console,
    errors: Console,
) -> None:
    """Compute what is not in the folder yet, and show what is there of all models."""
    from convfc.methods.spectrum.figure import save_models
    from convfc.methods.spectrum.models import spectra_table
    from convfc.runs.jobs import Job, failure, run_jobs
    from convfc.runs.progress import display_for

    files = {model: folder / f"{_file_name(model)}.json" for model in models}
    if len({str(file).casefold() for file in files.values()}) < len(models):
        raise ArgumentError(
            "two of the models have one name",
            where="models",
            got=", ".join(models),
            remedy="name each once; two in files of one name in commands of their own",
        )
    wanted = {model: {"model": model, "asked": asked, "file": _print_of(model)} for model in models}
    kept = {model: _kept(files[model], wanted[model]) for model in models}
    finished = {model for model, found in kept.items() if found is not None}
    here = pathlib.Path.cwd()
    jobs = [
        Job(model, functools.partial(compute, here, wanted[model], file.resolve()))
        for model, file in files.items()
    ]
    with display_for(errors, "models", "model") as display:
        failed = run_jobs(jobs, display, finished=finished, workers=workers)
    found = {
        model: kept[model] or _kept(file, wanted[model], must=True)
        for model, file in files.items()
        if model not in failed
    }
    layers = {model: one["layers"] for model, one in found.items() if one is not None}
    if as_json:
        told = [{"model": model, "layers": each} for model, each in layers.items()]
        reasons = {model: str(error) for model, error in failed.items()}
        typer.echo(json.dumps({"models": told, "failed": reasons}, indent=2))
    if layers:
        short = _short_names(models)
        named = [(short[model], layer) for model, each in layers.items() for layer in each]
        if not as_json:
            _show(
                console, spectra_table([layer for _, layer in named], [name for name, _ in named])
            )
        if figure is not None:
            title = f"{len(layers)} models, {' and '.join(asked['inputs'])}"
            save_models({short[model]: each for model, each in layers.items()}, figure, title)
            if not as_json:
                console.print(Text(f"Figure: {figure}"), soft_wrap=True)
    if failed:
        raise failure(failed, len(models) - len(finished), "the same command tries them once more")


def compute(
    place: pathlib.Path, wanted: Mapping[str, Any], file: pathlib.Path, display: Display
) -> None:
    """Write the spectra of one model to a file, in whichever process."""
    from convfc.runs.sealed import write_sealed

    model, asked = wanted["model"], wanted["asked"]
    try:
        with contextlib.chdir(place):
            made = make_model(model, asked["arguments"])
            spectra = _spectra(made, asked, lambda words: display.step(model, 0, words))
    except (ConvfcError, OSError):
        raise
    except Exception as error:  # whatever a user's model raises
        raise RunError(
            f"{type(error).__name__}: {' '.join(str(error).split())}",
            where=model,
            remedy="see it all with this model alone",
        ) from error
    write_sealed(file, {**wanted, "layers": [layer.to_dict() for layer in spectra]}, [])


def _kept(
    file: pathlib.Path, wanted: Mapping[str, Any], *, must: bool = False
) -> dict[str, Any] | None:
    """Return what a file holds of this model with these settings; None if that is not there."""
    from convfc.runs.sealed import read_sealed

    try:
        content = read_sealed(file, "the same command writes it anew").content
    except RunError:
        if must:
            raise
        return None
    return content if {key: content.get(key) for key in wanted} == wanted else None


def _print_of(model: str) -> str | None:
    """Return a fingerprint of the file that a model is in, if it is one of the user's own."""
    from convfc.factories import folder

    module = model.rpartition(":")[0]
    own = folder(model).joinpath(*module.split(".")).with_suffix(".py")
    for path in (pathlib.Path(model), pathlib.Path(module), own):
        if path.is_file():
            with path.open("rb") as handle:
                return hashlib.file_digest(handle, "sha256").hexdigest()
    return None


def _file_name(model: str) -> str:
    """Return a name for the file of a model that every system takes."""
    return re.sub(r"[^\w.]+", "-", model).strip("-.")


def _short_names(models: Sequence[str]) -> dict[str, str]:
    """Return the factories' names where these tell the models apart, else the whole names."""
    short = [model.rpartition(":")[2] for model in models]
    return dict(zip(models, short if len(set(short)) == len(models) else models, strict=True))
