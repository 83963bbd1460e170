"""The report of a run: its figures, ``report.md``, and the same text as one self-contained page."""

from __future__ import annotations

import base64
import importlib.resources
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from matplotlib.figure import Figure

from convfc import drawing
from convfc.files import replacing
from convfc.geometry import ConvGeometry
from convfc.im2col import matrix_to_filters
from convfc.paper import data, diagrams, figures
from convfc.paper.findings import find
from convfc.paper.record import Record, read_record
from convfc.paper.runs import LEARNING_RATES

__all__ = ["report_text", "write_report"]

_QUANTITIES = {
    "output_difference_mean": "outputs, mean of ‖V_n − U_n‖_F (authors' program)",
    "output_difference_printed": "outputs, (1/{images})‖V − U‖_F (as printed)",
    "weight_difference": "weights, ‖W_cnn − W_fc‖_F",
    "max_loss_difference": "largest difference of a loss",
}


def write_report(folder: pathlib.Path) -> pathlib.Path:
    """Draw the figures of a finished run and write its report.

    Parameters
    ----------
    folder : pathlib.Path
        The run's folder; ``figures/``, ``report.md`` and ``report.html`` are written there, each
        file whole or not at all.

    Returns
    -------
    pathlib.Path
        ``report.html``: one file that loads nothing from anywhere.

    Raises
    ------
    RunError
        The folder is not a finished run, or a file of it cannot be read.
    DataError, MissingDependencyError
        The digit of Figure 6, or a package, cannot be had.
    """
    record = read_record(folder)
    with drawing.house_style():
        for name, figure in _drawn(record):
            drawing.save_figure(figure, record.folder / "figures", name)
    text = report_text(record)
    page = _page(text, record.folder)
    for name, content in (("report.md", text), ("report.html", page)):
        with replacing(record.folder / name) as handle:
            handle.write(content.encode())
    return record.folder / "report.html"


def _drawn(record: Record) -> Iterator[tuple[str, Figure]]:
    """Yield the figures that the run has the numbers for, by file name."""
    optimizers = record.optimizers()
    settings = record.settings
    some = data.load(settings["data"], settings["seed"], settings["images"]).new[:10, :, :, 0]
    digit = some[some.sum(axis=(1, 2)).argmax()]  # much ink, so that many rows of M show something
    yield "figure-06", diagrams.stretch_figure(digit, _one_filter(record))
    yield "figure-08", diagrams.networks_figure(_layers(record))
    for name, optimizer in (("figure-07", "sgd"), ("figure-10", "adam")):
        if optimizer in optimizers:
            yield name, figures.loss_figure(record, optimizer)
    yield "figure-09", figures.histogram_figure(record, optimizers)
    yield "figure-difference", figures.difference_figure(record)
    if record.cost:
        yield "figure-cost", figures.cost_figure(record.cost)


def _one_filter(record: Record) -> np.ndarray[Any, Any]:
    """Return a trained filter of the CNN, ``(1, 4, 4, 1)``."""
    matrix = record.networks[record.dtype, record.optimizers()[0], "cnn"].first_layer[-1]
    geometry = ConvGeometry.valid(1, matrix.shape[1], (4, 4))
    return np.asarray(matrix_to_filters(matrix, geometry))[:1]


def _layers(record: Record) -> dict[str, list[diagrams.DrawnLayer]]:
    """Build the run's networks, untrained, and list their layers."""
    if "keras" not in sys.modules:
        # Any backend knows the shapes; take the run's own unless another one is at work already.
        from convfc.frameworks.keras.backend import choose_backend

        choose_backend(record.settings["backend"])
    from convfc.paper.networks import NETWORKS

    trained = {network for _, _, network in record.networks}
    return {
        name: diagrams.describe_layers(build())
        for name, build in NETWORKS.items()
        if name in trained
    }


def report_text(record: Record) -> str:
    """Write the report's text, whose conclusions depend on what the run measured.

    Parameters
    ----------
    record : Record
        The run.

    Returns
    -------
    str
        Markdown; the figures are named as files below ``figures/``.
    """
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - this is Markdown; the page escapes what it is given
    )
    environment.filters |= {
        "number": number,
        "times": times,
        "listed": listed,
        "epochs": lambda count: f"{count} epoch" if count == 1 else f"{count} epochs",
    }
    template = environment.from_string(_template("report.md.j2"))
    images = record.settings["images"]
    quantities = {key: title.format(images=images) for key, title in _QUANTITIES.items()}
    return template.render(find(record), quantities=quantities, rates=LEARNING_RATES)


def _page(markdown: str, folder: pathlib.Path) -> str:
    """Return the Markdown as a page of HTML with everything it shows inside."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")

    def image(
        renderer: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any
    ) -> str:
        # The page shows the drawing where Markdown shows its pixels.
        drawing = (folder / str(tokens[index].attrs["src"])).with_suffix(".svg").read_bytes()
        tokens[index].attrs["src"] = (
            f"data:image/svg+xml;base64,{base64.b64encode(drawing).decode()}"
        )
        inner = renderer.image(tokens, index, options, env)
        return f'<span class="figure">{inner}</span>'

    def table(
        renderer: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any
    ) -> str:
        token = renderer.renderToken(tokens, index, options, env)
        opens = tokens[index].nesting == 1
        return f'<div class="table">{token}' if opens else f"{token}</div>\n"

    def unbroken(
        renderer: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any
    ) -> str:
        # A line may end at a hyphen, but not inside a number.
        text = renderer.text(tokens, index, options, env)
        return re.sub(r"[\d.]+e-\d+", r'<span class="number">\g<0></span>', text)

    parser.add_render_rule("text", unbroken)
    parser.add_render_rule("image", image)
    parser.add_render_rule("table_open", table)
    parser.add_render_rule("table_close", table)
    template = jinja2.Environment(autoescape=True).from_string(_template("page.html.j2"))
    title = markdown.partition("\n")[0].lstrip("# ")
    return template.render(title=title, body=parser.render(markdown))


def _template(name: str) -> str:
    folder = importlib.resources.files("convfc.paper") / "templates"
    return (folder / name).read_text(encoding="utf-8")


def number(value: float) -> str:
    """Write a number with three digits, as the paper does.

    Examples
    --------
    >>> [number(value) for value in (0, 1e-6, 1.8512e-6, 0.0742, 12, 31622.8, 536870912)]
    ['0', '1e-6', '1.85e-6', '0.0742', '12', '31,600', '5.37e8']
    """
    if 1e3 <= abs(value) < 1e6:
        return f"{float(f'{value:.3g}'):,.0f}"
    digits, _, power = f"{value:.3g}".partition("e")
    return f"{digits}e{int(power)}" if power else digits


def times(value: float) -> str:
    """Write a ratio.

    Examples
    --------
    >>> times(31622.8)
    '31,600 times'
    """
    return f"{number(value)} times"


def listed(values: Mapping[str, Any] | str) -> str:
    """Write the versions of packages, or the description of a machine, in one line.

    Examples
    --------
    >>> listed({"python": "3.12.1", "keras": "3.15.0"})
    'python 3.12.1, keras 3.15.0'
    >>> listed({"processor": "some CPU", "cores": 2, "system": "Linux x86_64"})
    'some CPU, 2 cores, Linux x86_64'
    """
    if isinstance(values, str):
        return values
    if "processor" in values:
        cores = f"{values.get('cores')} cores"
        return ", ".join([values["processor"], cores, str(values.get("system"))])
    return ", ".join(f"{name} {value}" for name, value in values.items())
