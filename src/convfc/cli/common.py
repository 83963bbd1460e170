"""What the commands share: arguments that name a model, and errors in one line."""

from __future__ import annotations

import contextlib
import errno
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer
from rich.console import Console
from rich.text import Text

from convfc.errors import ArgumentError, ConvfcError, DataError, RunError
from convfc.printable import printable

if TYPE_CHECKING:
    from convfc.runs.jobs import Workers

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

WIDTH = 160
"""Characters of a table where the output is not a terminal."""

FROM = (
    "a function or a class in a module, which may be a file in this folder (nets:Net for nets.py) "
    "or anywhere (models/nets.py:Net). Or a model's file (model.onnx, model.keras)."
)

KERAS_FILES = (".keras", ".h5", ".hdf5")
"""How the names of files end in which Keras keeps a model."""
ONNX_FILES = (".onnx",)

Factory: TypeAlias = Annotated[
    str, typer.Argument(metavar="MODULE:FACTORY", help=f"Where the model comes from: {FROM}")
]
FactoryArguments: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--arg", metavar="NAME=VALUE", help="Argument of the factory; may be repeated."),
]
Inputs: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="FILE|SIZES",
        help="What the model is run on: an npz file of its inputs by name, or the shape of random "
        "numbers, such as 1,3,224,224, with or without its batch axis; one for each input.",
    ),
]
Weights: TypeAlias = Annotated[
    pathlib.Path | None,
    typer.Option("--weights", metavar="FILE", help="Take the weights from this safetensors file."),
]


def make_model(model: str, arguments: list[str] | None) -> Any:
    """Make the model that a command was given, from the folder it was given in as well.

    A file is read as data: what it would have to run is refused.
    """
    from convfc.factories import folder, make, named_values

    path = pathlib.Path(model)
    if path.suffix in KERAS_FILES + ONNX_FILES:
        if arguments:
            raise ArgumentError(
                "a file holds a model, and no function that takes arguments",
                where="arg",
                got=", ".join(arguments),
                remedy="leave --arg out",
            )
        if path.suffix in ONNX_FILES:
            from convfc.frameworks.onnx.files import load as load_onnx

            return load_onnx(path)
        from convfc.frameworks.keras.models import load

        return load(path)
    here = str(folder(model))
    if sys.path[:1] != [here]:  # as with python file.py, flask, gunicorn and uvicorn
        sys.path.insert(0, here)
    return make(model, named_values(arguments or ()))


def examples(made: Any, given: list[str] | None, *, as_given: bool = False) -> list[Any]:
    """Return what a model is to be tried on: one input, or several where none was given.

    It gets a batch axis where the model does not run without, if it is not to be as it was given.
    """
    from convfc.registry import room_of

    room, given = room_of(made), given or []
    if any(text.endswith(".npz") for text in given):
        if len(given) > 1:
            raise typer.BadParameter("--input takes one npz file, or sizes")
        found = [_arrays(pathlib.Path(given[0]))]
    else:
        found = room.examples(made, [shape(text) for text in given])
    return found if as_given or not given else [room.inspected(made, found[0])[1]]


def _arrays(path: pathlib.Path) -> Any:
    """Read a model's arguments: by name, or in their order if they have none."""
    from convfc.files import read_arrays

    try:
        arrays = read_arrays(path)
    except OSError:
        raise
    except Exception as error:  # of zip, or of NumPy
        raise DataError(
            "this is no file of arrays",
            where=str(path),
            expected="what numpy.savez writes",
            got=" ".join(str(error).split()),
            remedy="numpy.savez('inputs.npz', x=x) for an input that is named x",
        ) from error
    unnamed = [f"arr_{number}" for number in range(len(arrays))]
    return tuple(arrays[name] for name in unnamed) if set(unnamed) == set(arrays) else arrays


def certify(
    before: Any, after: Any, inputs: list[Any], errors: Console, *, show: bool
) -> tuple[bool, list[dict[str, Any]]]:
    """Compare two models on each of these inputs, and show the certificates.

    Returned are whether all hold, and their data.
    """
    import convfc

    console, holds, found = Console(), True, []
    for x in inputs:
        with errors.status("comparing the models"):
            certificate = convfc.verify(before, after, x)
        holds = holds and certificate.holds
        shapes = _shapes(x)
        found.append({"inputs": shapes, **certificate.to_dict()})
        if show:
            sizes = (f"{name} {'×'.join(map(str, shape))}" for name, shape in shapes.items())
            console.print(Text(printable(f"Input: {', '.join(sizes)}")), soft_wrap=True)
            if console.is_terminal:
                console.print(certificate)
            else:
                typer.echo(certificate.table().text(WIDTH))
    return holds, found


def _shapes(x: Any) -> dict[str, list[int]]:
    """Return the shapes of inputs by their names or, where they have none, their numbers."""
    named = x if isinstance(x, Mapping) else {str(at): array for at, array in enumerate(x)}
    return {name: list(array.shape) for name, array in named.items()}


def load_weights(made: Any, path: pathlib.Path, errors: Console) -> None:
    """Give a model the weights of a safetensors file, and print which of them were cast.

    Other formats are not read, as loading them may run code.
    """
    from convfc.registry import room_of

    cast = room_of(made).load_weights(made, path)
    if cast:
        errors.print(Text(printable(f"Weights: {path}: {cast}")), soft_wrap=True)


def shape(text: str) -> tuple[int, ...]:
    """Read 1,3,224,224."""
    try:
        sizes = tuple(int(size) for size in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise typer.BadParameter(f"--input takes sizes such as 1,3,224,224, not {text!r}")
    return sizes


def workers_of(number: int | None, scheduler: str | None) -> Workers | None:
    """Return the workers that a command was given, if any."""
    if number and scheduler:
        raise typer.BadParameter("give only one of --workers and --scheduler")
    if not (number or scheduler):
        return None
    from convfc.runs.jobs import Workers

    return Workers(number, scheduler)


@contextlib.contextmanager
def errors_in_one_line(
    errors: Console,
    elsewhere: str | None = None,
    full: str = "free some space",
    *,
    code: int = 1,
) -> Iterator[None]:
    """Show an error of convfc or of the system without its traceback, and exit with this code.

    The remedies: ``elsewhere`` for a place that cannot be written, ``full`` for a full disk.
    """
    shown: ConvfcError
    try:
        yield
    except ConvfcError as error:
        shown = error
    except OSError as error:
        if error.errno == errno.EPIPE:  # the reader has closed the pipe, which is not an error
            raise
        where = None if error.filename is None else str(error.filename)
        what, remedy = "it cannot be used", elsewhere
        if where is None or remedy is None:  # without a name it was standard output
            remedy = "send the output somewhere else"
        if error.errno in _FULL:
            what, remedy = "the disk is full", f"{full}, or {remedy}"
        shown = RunError(f"{what} ({error.strerror or error})", where=where, remedy=remedy)
    else:
        return
    errors.print(Text(f"Error: {shown}", style="red"), soft_wrap=True)
    raise SystemExit(code)


@contextlib.contextmanager
def ctrl_c_explained(
    errors: Console,
    what: str = "Stopped. The same command with --resume goes on from the last checkpoint.",
) -> Iterator[None]:
    """Print what Ctrl-C has stopped, and exit with the code for that."""
    try:
        yield
    except KeyboardInterrupt:
        errors.print(what)
        raise typer.Exit(130) from None
