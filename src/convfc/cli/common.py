"""What the commands share: arguments that name a model, and how they end when they cannot go on."""

from __future__ import annotations

import contextlib
import errno
import importlib
import pathlib
import sys
from collections.abc import Iterator
from typing import Annotated, Any, TypeAlias

import typer
from rich.console import Console
from rich.text import Text

from convfc.errors import ConvfcError, RunError
from convfc.printable import printable

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

_STOPPED = 130
"""The exit code of a program that Ctrl-C ended."""

WIDTH = 160
"""Characters of a table in what is no terminal."""

FROM = (
    "a function or a class in a module, which may be a file in this folder (nets:Net for nets.py) "
    "or anywhere (models/nets.py:Net)."
)
"""What MODULE:FACTORY can be, in the words of --help."""

Factory: TypeAlias = Annotated[
    str,
    typer.Argument(metavar="MODULE:FACTORY", help=f"Where the model comes from: {FROM}"),
]
FactoryArguments: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--arg", metavar="NAME=VALUE", help="An argument of the factory; may be repeated."
    ),
]

Weights: TypeAlias = Annotated[
    pathlib.Path | None,
    typer.Option("--weights", metavar="FILE", help="Take the weights from this safetensors file."),
]


def make_model(model: str, arguments: list[str] | None) -> Any:
    """Make the model that a command was given, from the folder it was given in as well."""
    from convfc.factories import folder, make, named_values

    here = str(folder(model))
    if sys.path[:1] != [here]:  # as python file.py has it, and flask, gunicorn and uvicorn
        sys.path.insert(0, here)
    return make(model, named_values(arguments or ()))


def load_weights(made: Any, path: pathlib.Path, errors: Console) -> None:
    """Give a model the weights of a safetensors file, and say which of them became other numbers.

    Other formats are not read: loading them may run code.
    """
    from convfc.registry import room_of

    checkpoint = importlib.import_module(f"{room_of(made).__name__}.checkpoint")
    cast = checkpoint.load_weights(made, path)
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


@contextlib.contextmanager
def errors_in_one_line(
    errors: Console, elsewhere: str | None = None, full: str = "free some space"
) -> Iterator[None]:
    """Show an error of convfc or of the system without its traceback, and end with exit code 1.

    ``elsewhere`` says how the command writes to another place, ``full`` how it goes on after a full
    disk.
    """
    try:
        yield
    except ConvfcError as error:
        shown = error
    except OSError as error:
        if error.errno == errno.EPIPE:  # a reader that has seen enough: no failure
            raise
        shown = _explained(error, elsewhere, full)
    else:
        return
    errors.print(Text(f"Error: {shown}", style="red"), soft_wrap=True)
    raise SystemExit(1)


def _explained(error: OSError, elsewhere: str | None, full: str) -> RunError:
    """Return an error of the system as one of convfc, with a way out."""
    if error.filename is None or elsewhere is None:  # only what is printed has no name
        elsewhere = "send the output somewhere else"
    if error.errno in _FULL:
        what, remedy = "the disk is full", f"{full}, or {elsewhere}"
    else:
        what, remedy = "it cannot be used", elsewhere
    where = None if error.filename is None else str(error.filename)
    return RunError(f"{what} ({error.strerror or error})", where=where, remedy=remedy)


@contextlib.contextmanager
def ctrl_c_explained(
    errors: Console,
    what: str = "Stopped. The same command with --resume goes on from the last checkpoint.",
) -> Iterator[None]:
    """End as a program does that Ctrl-C stopped, but say first what that means."""
    try:
        yield
    except KeyboardInterrupt:
        errors.print(what)
        raise typer.Exit(_STOPPED) from None
