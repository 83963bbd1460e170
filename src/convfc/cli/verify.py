"""``convfc verify``: a certificate that two models compute the same, or why they do not."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from convfc.cli.common import (
    FROM,
    FactoryArguments,
    Inputs,
    Weights,
    certify,
    ctrl_c_explained,
    errors_in_one_line,
    examples,
    load_weights,
    make_model,
)


def verify(
    before: Annotated[
        str, typer.Argument(metavar="BEFORE", help=f"Where the first model comes from: {FROM}")
    ],
    after: Annotated[str, typer.Argument(metavar="AFTER", help="Where the second comes from.")],
    inputs: Inputs = None,
    arguments: FactoryArguments = None,
    weights: Weights = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the certificates as JSON.")
    ] = False,
) -> None:
    """Prove that two models compute the same function.

    Every pair of layers is compared on what it really receives, against
    the rounding bound of theory and on integers. Exit code 0: it holds;
    1: it does not; 2: it could not be found out. Arguments and weights
    are given to both models. Without an input, one is made up for a model
    of ONNX; two, where it takes several sizes.

    [bold]convfc verify model.onnx model-fc.onnx[/bold]

    [bold]convfc verify nets:Net nets:net_fc --input 1,3,32,32 --weights net.safetensors[/bold]
    """
    errors = Console(stderr=True)
    with errors_in_one_line(errors, code=2), ctrl_c_explained(errors, "Stopped."):
        first, second = (make_model(model, arguments) for model in (before, after))
        if weights is not None:
            for one in (first, second):
                load_weights(one, weights, errors)
        tried = examples(first, inputs)
        holds, found = certify(first, second, tried, errors, show=not as_json)
        if as_json:
            content = {"before": before, "after": after, "holds": holds, "certificates": found}
            typer.echo(json.dumps(content, indent=2))
    if not holds:
        raise typer.Exit(1)
