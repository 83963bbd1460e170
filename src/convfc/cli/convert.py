"""``convfc convert``: a file of ONNX with FC layers instead of a model's CONV layers, or back."""

from __future__ import annotations

import json
import pathlib
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from convfc.cli.common import (
    ONNX_FILES,
    Factory,
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
from convfc.errors import ArgumentError
from convfc.printable import printable


class Direction(StrEnum):
    """What the layers become."""

    fc = "fc"
    conv = "conv"


class Form(StrEnum):
    """How an FC layer is made."""

    patch = "patch"
    unrolled = "unrolled"


class Profile(StrEnum):
    """Which products a target takes."""

    matmul = "matmul"
    gemm = "gemm"
    conv = "conv"


_MADE = {
    Profile.matmul: (Direction.fc, Form.patch),
    Profile.gemm: (Direction.fc, Form.unrolled),
    Profile.conv: (Direction.conv, Form.patch),
}


def convert(
    model: Factory,
    output: Annotated[
        pathlib.Path,
        typer.Option("-o", "--output", metavar="OUT.onnx", help="The file that is written."),
    ],
    to: Annotated[Direction, typer.Option(help="Which layers it has afterwards.")] = Direction.fc,
    form: Annotated[
        Form,
        typer.Option(help="One product for all positions, or the matrix of each whole layer."),
    ] = Form.patch,
    profile: Annotated[
        Profile | None,
        typer.Option(
            help="Write only what a target takes that has such products, instead of --to and "
            "--form: any other operator is refused by name."
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where", metavar="GLOB", help="Only these layers, such as 'layer4*'; may be repeated."
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option(help="Write the file only if its certificate holds.")
    ] = True,
    inputs: Inputs = None,
    arguments: FactoryArguments = None,
    weights: Weights = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the certificates as JSON.")
    ] = False,
) -> None:
    """Write a model with FC layers instead of its CONV layers, to a file of ONNX.

    It holds standard operators only, and no convolution. Before it is
    written, it is proven to compute the same; if it does not, no file is
    written. Without an input, one is made up; two, where the model takes
    several sizes. Exit code 0: it was written; 1: the certificate does
    not hold; 2: it could not be done.

    [bold]convfc convert model.onnx -o model-fc.onnx[/bold]

    [bold]convfc convert torchvision.models:resnet18 --input 3,224,224 -o net.onnx[/bold]

    [bold]convfc convert model-fc.onnx -o model.onnx --to conv[/bold]   the way back

    [bold]convfc convert model.onnx -o out.onnx --profile gemm --input 1,1,28,28[/bold]
    """
    errors = Console(stderr=True)
    if output.suffix not in ONNX_FILES:
        raise typer.BadParameter("-o takes a file whose name ends in .onnx")
    to, form = _wanted(to, form, profile)
    elsewhere, stopped = "write to another file with -o", "Stopped; nothing was written."
    found: list[dict[str, Any]] = []
    with errors_in_one_line(errors, elsewhere, code=2), ctrl_c_explained(errors, stopped):
        from convfc.frameworks.onnx.files import check_free, save
        from convfc.frameworks.onnx.profiles import check_profile
        from convfc.registry import room_of

        check_free(output, force=force)
        made = make_model(model, arguments)
        if weights is not None:
            load_weights(made, weights, errors)
        room, example = room_of(made), None
        if room.name != "ONNX":
            example = examples(made, inputs, as_given=True)[0]
            # Sizes, and perhaps a batch axis, are then those of the model.
            inputs = [text for text in inputs or () if text.endswith(".npz")]
        with errors.status("exporting the model"):
            before = room.to_onnx(made, example)
        tried = examples(before, inputs) if verify or form is Form.unrolled else []
        with errors.status("converting the model"):
            images = profile is Profile.conv
            after = _converted(before, tried, to, form, where, images=images)
            if profile is not None:
                check_profile(after, profile)
        holds: bool | None = None
        if verify:
            holds, found = certify(before, after, tried, errors, show=not as_json)
        written = holds is not False
        if written:
            with errors.status("writing the file") as status:
                save(
                    after,
                    output,
                    force=force,
                    progress=lambda done, count, name: status.update(
                        Text(f"writing {printable(name)} ({done + 1} of {count})")
                    ),
                )
        if as_json:
            file = str(output) if written else None
            content = {"model": model, "file": file, "holds": holds, "certificates": found}
            typer.echo(json.dumps(content, indent=2))
        elif written:
            Console().print(Text(printable(f"Written: {output}")), soft_wrap=True)
    if not written:
        reason = "The certificate does not hold; no file was written."
        errors.print(reason, style="red")
        raise typer.Exit(1)


def _wanted(to: Direction, form: Form, profile: Profile | None) -> tuple[Direction, Form]:
    if to is Direction.conv and form is not Form.patch:
        raise typer.BadParameter("--form belongs to --to fc")
    if profile is None:
        return to, form
    if (to, form) != (Direction.fc, Form.patch):
        raise typer.BadParameter("--profile says what is made: leave out --to and --form")
    return _MADE[profile]


def _converted(
    before: Any,
    tried: list[Any],
    to: Direction,
    form: Form,
    where: list[str] | None,
    *,
    images: bool = False,
) -> Any:
    import convfc
    from convfc.frameworks.onnx.room import ROOM

    if images:
        return ROOM.to_conv(before, where=where, images=True)
    if form is Form.patch:
        verb = convfc.to_fc if to is Direction.fc else convfc.to_conv
        return verb(before, where=where)
    sizes = {str([x.shape[1:] for x in one.values()]) for one in tried if isinstance(one, dict)}
    if len(sizes) > 1:
        raise ArgumentError(
            "the model takes inputs of several sizes, and an unrolled one is made for one",
            where="--form unrolled, --profile gemm",
            remedy="give it, as in --input 1,3,224,224",
        )
    return convfc.unroll(before, tried[0], where=where)
