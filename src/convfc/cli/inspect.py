"""``convfc inspect``: a table of a model's CONV layers and the FC layers that they equal."""

from __future__ import annotations

import json
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from convfc.cli.common import Factory, FactoryArguments, errors_in_one_line, make_model, shape


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

    [bold]convfc inspect ./nets.py:Net --arg channels=3 --json[/bold]
    """
    console, shapes = Console(), [shape(text) for text in inputs or ()]
    with errors_in_one_line(Console(stderr=True)):
        import convfc

        zeros = tuple(np.zeros(shape, np.float32) for shape in shapes)
        inspection = convfc.inspect(make_model(model, arguments), zeros or None)
    if as_json:
        typer.echo(json.dumps(inspection.to_dict(), indent=2))
    elif console.is_terminal:
        console.print(inspection)
    else:
        typer.echo(str(inspection))
