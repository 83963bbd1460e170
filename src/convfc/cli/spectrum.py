"""``convfc spectrum``: singular values of a model's CONV layers, as a table and a figure."""

from __future__ import annotations

import json
import pathlib
from enum import StrEnum
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.text import Text

from convfc.cli.common import (
    WIDTH,
    Factory,
    FactoryArguments,
    Weights,
    ctrl_c_explained,
    errors_in_one_line,
    load_weights,
    make_model,
    shape,
)
from convfc.printable import printable


class Boundary(StrEnum):
    """Which operators a layer is taken for."""

    both = "both"
    own = "own"
    circular = "circular"


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

    [bold]convfc spectrum ./nets.py:Net --input 1,28,28 --weights net.safetensors[/bold]
    """
    console, errors, shapes = Console(), Console(stderr=True), [shape(text) for text in inputs]
    if no_figure and figure is not None:
        raise typer.BadParameter("give only one of --figure and --no-figure")
    if figure is None and not (no_figure or as_json):
        figure = pathlib.Path(f"{model.rpartition(':')[2]}-spectrum.svg")
    elsewhere = "draw to another file with --figure, or nothing with --no-figure"
    stopped = "Stopped; nothing was written."
    with errors_in_one_line(errors, elsewhere), ctrl_c_explained(errors, stopped):
        from convfc.methods.spectrum.figure import check_figure, save_spectra
        from convfc.methods.spectrum.models import layer_spectra, spectra_table

        if figure is not None:
            check_figure(figure)
        made = make_model(model, arguments)
        if weights is not None:
            load_weights(made, weights, errors)
        with errors.status("running the model") as status:
            spectra = layer_spectra(
                made,
                tuple(np.zeros(shape, np.float32) for shape in shapes),
                layers=layers or (),
                k=k,
                boundary=boundary.value,
                smallest=smallest,
                tolerance=tolerance,
                progress=lambda done, count, name: status.update(
                    Text(f"{printable(name)} ({done + 1} of {count})")
                ),
            )
        # What was computed is shown first: it is not lost with a figure that cannot be written.
        if as_json:
            found = {"model": model, "layers": [layer.to_dict() for layer in spectra]}
            typer.echo(json.dumps(found, indent=2))
        elif console.is_terminal:
            console.print(spectra_table(spectra))
        else:
            typer.echo(spectra_table(spectra).text(WIDTH))
        if figure is not None:
            save_spectra(spectra, figure, f"{model}, {' and '.join(inputs)}")
            if not as_json:
                console.print(Text(f"Figure: {figure}"), soft_wrap=True)
