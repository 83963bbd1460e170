"""The program ``convfc``: its commands and its own options."""

from __future__ import annotations

import importlib.metadata
from typing import Annotated

import typer

from convfc.cli.convert import convert
from convfc.cli.explore import explore
from convfc.cli.inspect import inspect
from convfc.cli.reproduce import reproduce
from convfc.cli.spectrum import spectrum
from convfc.cli.verify import verify

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
    Start with [bold]convfc reproduce[/bold], or [bold]convfc explore[/bold].
    """


for command in (reproduce, explore, inspect, spectrum, convert, verify):
    app.command()(command)
