"""``convfc explore``: the interactive page, of its presets, a layer of a model, or a run."""

from __future__ import annotations

import pathlib
import webbrowser
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from convfc.cli.common import (
    FROM,
    FactoryArguments,
    Weights,
    ctrl_c_explained,
    errors_in_one_line,
    load_weights,
    make_model,
    shape,
)
from convfc.printable import printable


def explore(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODULE:FACTORY]",
            help=f"Where a model comes from: {FROM} The page's presets without it.",
        ),
    ] = None,
    arguments: FactoryArguments = None,
    weights: Weights = None,
    layer: Annotated[
        str | None,
        typer.Option("--layer", metavar="NAME", help="The first CONV layer if not given."),
    ] = None,
    input_: Annotated[
        str | None,
        typer.Option(
            "--input",
            metavar="SIZES",
            help="Shape of the model's input, such as 3,224,224, with or without its batch axis.",
        ),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="An image for the model, or a digit from 0 to 9; random numbers without one.",
        ),
    ] = None,
    normalize: Annotated[
        str | None,
        typer.Option(
            metavar="HOW",
            help="What the image's numbers, 0 to 1, become: imagenet, auto (what the model was "
            "trained with, if it says so), or MEAN/STD, such as 0.5,0.5,0.5/0.2,0.2,0.2.",
        ),
    ] = None,
    filters: Annotated[
        int | None,
        typer.Option("--filters", min=1, metavar="N", help="Show only the first N of the layer."),
    ] = None,
    run: Annotated[
        pathlib.Path | None,
        typer.Option(metavar="FOLDER", help="Show the first layer that this run has trained."),
    ] = None,
    html: Annotated[
        pathlib.Path | None,
        typer.Option("--html", metavar="FILE", help="Write the page to this file instead."),
    ] = None,
    film: Annotated[
        pathlib.Path | None,
        typer.Option(
            "--film", metavar="FILE", help="Write a film for slides, a GIF: the window slides."
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="0: any free port.")] = 0,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Only say where the page is.")
    ] = False,
) -> None:
    """See a convolution become a matrix product, on an interactive page.

    [bold]convfc explore[/bold]   the paper's figures and its experiment

    [bold]convfc explore torchvision.models:resnet18 --layer conv1 --image photo.png[/bold]

    [bold]convfc explore --run runs/default[/bold]   the experiment's trained filters

    [bold]convfc explore --html out.html[/bold]      a file that needs no server

    [bold]convfc explore --film out.gif[/bold]       a film for slides, of a small layer or of yours
    """
    console, errors = Console(), Console(stderr=True)
    if run is not None and model is not None:
        raise typer.BadParameter("give only one of MODULE:FACTORY and --run")
    of_model = {"layer": layer, "input": input_, "image": image, "weights": weights}
    options = [*of_model.items(), ("filters", filters), ("normalize", normalize)]
    given = [f"--{name}" for name, value in options if value is not None]
    if model is None and given:
        raise typer.BadParameter(f"{', '.join(given)} needs a MODULE:FACTORY")
    if normalize is not None and image is None:
        raise typer.BadParameter("--normalize needs an --image")
    option = "--html" if film is None else "--film"
    elsewhere = f"write it somewhere else with {option}, or leave {option} out"
    with errors_in_one_line(errors, elsewhere), ctrl_c_explained(errors, "Stopped."):
        state: dict[str, Any] | None = None
        if run is not None:
            from convfc.paper.findings import read_record
            from convfc.paper.study import explored

            state = explored(read_record(run))
        elif model is not None:
            state = _reached(
                model, arguments, layer, input_, image, filters, normalize, weights, errors
            )
        if state is not None:
            console.print(Text(printable(f"{state['title']}. {state['source']}")), soft_wrap=True)
        if film is not None:
            _film(film, state, errors)
            console.print(Text(f"Film: {film}"), soft_wrap=True)
        if html is not None:
            from convfc.explorer.page import write_page

            write_page(html, state)
            console.print(Text(f"Page: {html}"), soft_wrap=True)
        if film is None and html is None:
            _serve(state, port, console, opened=not no_browser)


def _reached(
    model: str,
    arguments: list[str] | None,
    layer: str | None,
    input_: str | None,
    image: str | None,
    filters: int | None,
    normalize: str | None,
    weights: pathlib.Path | None,
    errors: Console,
) -> dict[str, Any]:
    """Return the state of a layer in a model, with the input that reaches it."""
    from convfc.explorer.inputs import input_for, layer_in_model, normalization, trained_with
    from convfc.explorer.state import explorer_state
    from convfc.factories import named_values

    with errors.status("running the model"):
        made, name = make_model(model, arguments), model.rpartition(":")[2]
        if weights is not None:
            load_weights(made, weights, errors)
        sizes = None if input_ is None else shape(input_)
        digit = int(image) if image in list("0123456789") else image
        known = trained_with(made, model, named_values(arguments or ()))
        how = normalization(normalize, known)
        x, described = input_for(made, sizes, digit, how)
        place, found, reaching = layer_in_model(made, layer, x)
        state = explorer_state(
            found,
            reaching,
            filters=None if filters is None else range(filters),
            title=f"{name}, {place}" if place else name,
            source=f"Input: {described}",
        )
    if known is not None and how is None and image is not None:
        said = f"The image's numbers are 0 to 1. Trained with {known}: --normalize auto"
        errors.print(Text(printable(said)), soft_wrap=True)
    return state


def _film(path: pathlib.Path, state: dict[str, Any] | None, errors: Console) -> None:
    """Write the film of a state, or of an example."""
    from convfc.explorer.film import example, write_film

    with errors.status("drawing the film") as status:
        write_film(
            path,
            example() if state is None else state,
            told=lambda n, of: status.update(f"drawing the film: {n} of {of} pictures"),
        )


def _serve(state: dict[str, Any] | None, port: int, console: Console, *, opened: bool) -> None:
    """Serve the page until Ctrl-C."""
    from convfc.explorer.page import ExplorerServer

    with ExplorerServer(state, port) as server:
        console.print(Text(f"Explorer: {server.url}   (Ctrl-C ends it)"), soft_wrap=True)
        if opened:
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:  # the ordinary end
            console.print("Stopped.")
