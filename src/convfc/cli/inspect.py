"""``convfc inspect``: a table of a model's CONV layers and the FC layers that they equal."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from convfc.cli.common import (
    Factory,
    FactoryArguments,
    Inputs,
    errors_in_one_line,
    examples,
    make_model,
)


def inspect(
    model: Factory,
    inputs: Inputs = None,
    arguments: FactoryArguments = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the rows and their totals as JSON.")
    ] = False,
) -> None:
    """List a model's CONV layers and the FC layers that they equal.

    With an input the model is run once: then sizes, multiplications and
    bytes are known as well.

    [bold]convfc inspect torchvision.models:resnet18 --input 1,3,224,224[/bold]

    [bold]convfc inspect ./nets.py:Net --arg channels=3 --json[/bold]

    [bold]convfc inspect model.onnx[/bold]
    """
    console = Console()
    with errors_in_one_line(Console(stderr=True)):
        import convfc
        from convfc.registry import room_of

        made = make_model(model, arguments)
        if inputs:
            (x,) = examples(made, inputs, as_given=True)
            inspection, _ = room_of(made).inspected(made, x)
        else:
            inspection = convfc.inspect(made)
    if as_json:
        typer.echo(json.dumps(inspection.to_dict(), indent=2))
    elif console.is_terminal:
        console.print(inspection)
    else:
        typer.echo(str(inspection))
