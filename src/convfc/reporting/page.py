"""A report as two files: Markdown, and the same text as one page that loads nothing."""

from __future__ import annotations

import base64
import importlib.resources
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jinja2
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

from convfc.errors import RunError
from convfc.files import replacing

__all__ = ["write_report_files"]


def write_report_files(folder: pathlib.Path, text: str) -> pathlib.Path:
    """Write ``report.md`` and ``report.html``, each whole or not at all.

    Parameters
    ----------
    folder : pathlib.Path
        Where to; the figures that the text shows are there already, as PNG and SVG.
    text : str
        Markdown; its first line is the title.

    Returns
    -------
    pathlib.Path
        ``report.html``, with its figures inside.

    Raises
    ------
    RunError
        The text shows an image from elsewhere than ``figures/``.
    """
    for name, content in (("report.md", text), ("report.html", _page(text, folder))):
        with replacing(folder / name) as handle:
            handle.write(content.encode())
    return folder / "report.html"


def _drawing(folder: pathlib.Path, source: str) -> pathlib.Path:
    """Return the drawing that the page shows where Markdown shows its pixels."""
    path = (folder / source).with_suffix(".svg")
    # Links are followed first: the report of somebody else's run shall not show what is mine.
    if path.resolve().parent != folder.resolve() / "figures":
        raise RunError(
            "an image of the report is not in its folder of figures",
            where=str(path),
            expected=f"a file in {folder / 'figures'}",
            remedy="remove what the report should not show, such as a link, and write it again",
        )
    return path


def _page(markdown: str, folder: pathlib.Path) -> str:
    """Return the Markdown as a page of HTML with everything it shows inside."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")

    def image(
        renderer: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any
    ) -> str:
        drawing = _drawing(folder, str(tokens[index].attrs["src"])).read_bytes()
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
    source = importlib.resources.files("convfc.reporting") / "page.html.j2"
    template = jinja2.Environment(autoescape=True).from_string(source.read_text("utf-8"))
    title = markdown.partition("\n")[0].lstrip("# ")
    return template.render(title=title, body=parser.render(markdown))
