"""A report: how its text is made from a template, and the page that needs no other file."""

from __future__ import annotations

import base64
import importlib.resources
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from convfc.extras import needing

with needing():
    import jinja2
    from markdown_it import MarkdownIt
    from markdown_it.renderer import RendererHTML
    from markdown_it.token import Token

from convfc.errors import RunError
from convfc.files import replacing

# An underscore inside a word, as in x86_64, means nothing to Markdown.
_MARKS = re.compile(r"[\\`*\[\]<>|&]|(?<!\w)_|_(?!\w)")


def escaped(value: Any) -> Any:
    """Return what a file holds with all its texts such that Markdown shows them as they are.

    A file may come from somebody else, and a text in it shall be neither an image nor a link.

    >>> escaped({"machine": ["Linux x86_64", "![a](../b.png)"]})
    {'machine': ['Linux x86_64', '!&#91;a&#93;(../b.png)']}
    """
    if isinstance(value, str):
        # As entities: a backslash would be one more character where a list is shown.
        return _MARKS.sub(lambda mark: f"&#{ord(mark[0])};", " ".join(value.split()))
    if isinstance(value, Mapping):
        return {escaped(key): escaped(each) for key, each in value.items()}
    if isinstance(value, list):
        return [escaped(each) for each in value]
    return value


def render(template: str, values: Mapping[str, Any]) -> str:
    """Fill in a template of Markdown; what it asks for and is not there is an error.

    >>> render("{{ n | epochs }}: {{ gap | number }}", {"n": 1, "gap": 1.8512e-6})
    '1 epoch: 1.85e-6'
    """
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - this is Markdown; the page escapes what it is given
    )
    environment.filters |= {
        "number": number,
        "times": lambda ratio: f"{number(ratio)} times",
        "listed": listed,
        "epochs": lambda count: f"{count} epoch" if count == 1 else f"{count} epochs",
    }
    environment.globals["figure"] = lambda name, alt, caption: (
        f"![{alt}](figures/{name}.png)\n\n*{caption}*"
    )
    return environment.from_string(template).render(values)


def number(value: float) -> str:
    """Write a number with three digits, as the paper does.

    >>> [number(value) for value in (0, 1e-6, 1.8512e-6, 0.0742, 12, 31622.8, 536870912)]
    ['0', '1e-6', '1.85e-6', '0.0742', '12', '31,600', '5.37e8']
    """
    if 1e3 <= abs(value) < 1e6:
        return f"{float(f'{value:.3g}'):,.0f}"
    digits, _, power = f"{value:.3g}".partition("e")
    return f"{digits}e{int(power)}" if power else digits


def listed(values: Mapping[str, Any] | str) -> str:
    """Write the versions of packages, or the description of a machine, in one line.

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


def write_report_files(folder: pathlib.Path, text: str) -> pathlib.Path:
    """Write ``report.md`` and ``report.html``, each whole or not at all, and return the latter.

    The text is Markdown whose first line is the title. Its figures are in ``figures/`` already, as
    PNG and SVG; the page has them inside, and an image from elsewhere is an error.
    """
    for name, content in (("report.md", text), ("report.html", _page(text, folder))):
        with replacing(folder / name) as handle:
            handle.write(content.encode())
    return folder / "report.html"


def _page(markdown: str, folder: pathlib.Path) -> str:
    """Return the Markdown as a page of HTML with everything it shows inside."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")

    def image(renderer: RendererHTML, tokens: Sequence[Token], index: int, *rest: Any) -> str:
        # The page shows the drawing, and Markdown its pixels.
        path = (folder / str(tokens[index].attrs["src"])).with_suffix(".svg")
        # Links are followed first: the report of somebody else's run shall not show what is mine.
        if path.resolve().parent != folder.resolve() / "figures":
            raise RunError(
                "an image of the report is not in its folder of figures",
                where=str(path),
                expected=f"a file in {folder / 'figures'}",
                remedy="remove what the report should not show, such as a link, and write it again",
            )
        drawing = base64.b64encode(path.read_bytes()).decode()
        tokens[index].attrs["src"] = f"data:image/svg+xml;base64,{drawing}"
        return f'<span class="figure">{renderer.image(tokens, index, *rest)}</span>'

    def table(renderer: RendererHTML, tokens: Sequence[Token], index: int, *rest: Any) -> str:
        token = renderer.renderToken(tokens, index, *rest)
        opens = tokens[index].nesting == 1
        return f'<div class="table">{token}' if opens else f"{token}</div>\n"

    def unbroken(renderer: RendererHTML, *given: Any) -> str:
        # A line may end at a hyphen, but not inside a number.
        return re.sub(r"[\d.]+e-\d+", r'<span class="number">\g<0></span>', renderer.text(*given))

    parser.add_render_rule("text", unbroken)
    parser.add_render_rule("image", image)
    parser.add_render_rule("table_open", table)
    parser.add_render_rule("table_close", table)
    source = importlib.resources.files(__package__) / "page.html.j2"
    template = jinja2.Environment(autoescape=True).from_string(source.read_text("utf-8"))
    title = markdown.partition("\n")[0].lstrip("# ")
    return template.render(title=title, body=parser.render(markdown))
