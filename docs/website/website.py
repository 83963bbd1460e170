"""What `make docs` does beyond MkDocs: which files are pages, the navigation, and the last check.

The pages are the repository's Markdown files and notebooks, and nothing is written twice: the
navigation is the table in ``docs/README.md``, the reference is what ``__all__`` names, the gallery
is every picture of the pages with its text. The functions named ``on_...`` are MkDocs' hooks.
MkDocs and mkdocstrings are imported where they are used: the tests read this file without them.
"""

from __future__ import annotations

import ast
import functools
import html
import posixpath
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "convfc"
INDEX = "docs/README.md"
PUBLISHED = (
    "*.md",
    "LICENSE",
    "CITATION.cff",
    "benchmarks/**/*.md",
    "docs/**/*.md",
    "docs/**/*.png",
    "docs/notebooks/*.ipynb",
    "docs/website/*.*s*",
)
"""What of the repository is on the site; every link in it leads to another of these."""

MOVED = {INDEX: "documents.html", "LICENSE": "LICENSE.txt", "CITATION.cff": "CITATION.txt"}
EXPLORER = "explorer/index.html"
GALLERY = "gallery.md"

REFERENCE = {
    "Models": ("models", "convert certificate inspection registry"),
    "Algorithm 1": ("algorithm", "algorithm1 geometry indexmap layer"),
    "One matrix": ("matrix", "operators"),
    "Singular values": ("spectrum", "methods.spectrum"),
    "Uncertainty": ("uncertainty", "methods.uncertainty"),
    "Network morphism": ("morphism", "methods.morphism"),
    "In models of PyTorch": ("torch", "frameworks.torch"),
    "The explorer": ("explorer", "explorer"),
    "Errors": ("errors", "errors"),
}
"""Pages of the reference: a title, its address, and the modules whose public names it shows."""

HOME = """
<div class="readers" markdown>

[**Students**<br>The paper beside the code:
each equation, figure and step, with the function that it is](docs/paper.md)
[**Researchers**<br>Uncertainty, morphism, singular values:
what is known of FC layers, on CONV layers](docs/uncertainty.md)
[**Engineers**<br>I want to use Muon, LoRA, K-FAC,
a verifier, an accelerator … on a CNN](docs/i-want-to.md)
[**The explorer, live**<br>A window, its row of M, a column of K
and an output, on a picture of yours](explorer/index.html)

</div>
"""

LIVE = """
<p class="live-link">
<a class="md-button md-button--primary" href="explorer/index.html">Open the explorer, live</a>
</p>
<iframe class="live" src="explorer/index.html" title="The explorer, live" loading="lazy"></iframe>
"""

NOTEBOOK = """
<p class="live-link"><a class="md-button" href="{}" download>Download this notebook</a></p>
"""

STILL = """
<p class="live-link">
<a class="md-button md-button--primary" href="../explorer/index.html">Open the explorer, live</a>
</p>
"""


def published() -> dict[str, str]:
    """Return every file of the repository that is on the site, with its address there."""
    found = {}
    for pattern in PUBLISHED:
        for path in sorted(ROOT.glob(pattern)):
            source = path.relative_to(ROOT).as_posix()
            place = MOVED.get(source, source.removeprefix("docs/"))
            if path.suffix == ".md" and source not in MOVED:
                folder, name = posixpath.split(place[: -len(".md")])
                place = posixpath.join(folder, "index" if name == "README" else name) + ".html"
            found[source] = place
    return found


def navigation() -> list[dict[str, Any]]:
    """Return the index of the documents as a menu: its headings, and the rows of its tables."""
    menu: list[dict[str, Any]] = []
    for part in re.split(r"^## ", (ROOT / INDEX).read_text("utf-8"), flags=re.MULTILINE)[1:]:
        rows = re.findall(r"^\| \[(.+?)\]\((.+?)\) \|", part, flags=re.MULTILINE)
        places = {text: posixpath.normpath(posixpath.join("docs", to)) for text, to in rows}
        places = {text: re.sub(r"\.ipynb$", ".md", to) for text, to in places.items()}
        pages = [{text: to} for text, to in places.items() if to != "README.md"]  # it is the home
        menu.append({part.partition("\n")[0]: pages})
    reference = [{title: f"reference/{name}.md"} for title, (name, _) in REFERENCE.items()]
    engineers = menu[-2][next(iter(menu[-2]))]
    measured = sorted(ROOT.glob("benchmarks/results/*.md"))
    engineers.append(
        {"Measured": [{p.stem.capitalize(): p.relative_to(ROOT).as_posix()} for p in measured]}
    )
    menu.insert(-1, {"Reference": [*reference, {"Commands": "reference/commands.md"}]})
    menu[-1]["The project"] += [{"All documents": INDEX}]
    menu[0][next(iter(menu[0]))].append({"Gallery": GALLERY})
    return [{"Home": "README.md"}, *menu]


def public(module: str) -> list[str]:
    """Return what users import from a module, by the shortest name that each of them has."""
    short = _imports(SOURCE / "__init__.py")
    path = _file(module)
    mine = short.get(f"convfc.{module}", [])
    names = dict.fromkeys([*mine, *(n for n in _all(path) if not n.isupper())])
    known = {name for taken in short.values() for name in taken}
    # Functions first, and in the order in which they are written or imported: that of the story.
    order = [getattr(node, "name", None) for node in _parsed(path).body]
    order += [name for taken in _imports(path).values() for name in taken]
    told = sorted(names, key=lambda name: (name[0].isupper(), order.index(name)))
    return [f"convfc.{n}" if n in known else f"convfc.{module}.{n}" for n in told]


def about(module: str) -> str:
    """Return what a module says of itself, without its table of files."""
    text = ast.get_docstring(_parsed(_file(module))) or ""
    return "\n\n".join(p for p in text.split("\n\n") if not p.startswith("==="))


def _file(module: str) -> Path:
    path = SOURCE / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@functools.cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def _all(path: Path) -> list[str]:
    for node in _parsed(path).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def _imports(path: Path) -> dict[str, list[str]]:
    """Return what a module takes from others, by their names, in the order of its ``__all__``."""
    found: dict[str, list[str]] = {}
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [alias.name for alias in node.names if not alias.asname]
            found.setdefault(node.module, []).extend(n for n in names if n in _all(path))
    return found


def reference() -> dict[str, str]:
    """Return the pages of the reference, as Markdown for mkdocstrings."""
    pages, shown = {}, set()
    for title, (name, modules) in REFERENCE.items():
        names = [n for module in modules.split() for n in public(module)]
        shown |= set(names)
        head = [f"# {title}", about(modules.split()[0])]
        pages[f"reference/{name}.md"] = "\n\n".join([*head, *(f"::: {n}" for n in names)])
    missing = {f"convfc.{n}" for n in _all(SOURCE / "__init__.py")} - shown
    if missing != {"convfc.__version__"}:
        raise ValueError(f"REFERENCE has no page for {sorted(missing)}")
    return pages


@functools.cache
def notebooks() -> dict[str, str | bytes]:
    """Return the notebooks as pages of Markdown, with the outputs that they have, and pictures."""
    import nbformat
    from nbconvert import MarkdownExporter

    found: dict[str, str | bytes] = {}
    for path in sorted(ROOT.glob("docs/notebooks/*.ipynb")):
        source = path.relative_to(ROOT)
        cells = nbformat.read(path, as_version=4)
        names = {"unique_key": path.stem, "output_files_dir": ""}
        text, made = MarkdownExporter().from_notebook_node(cells, names)
        alts = [cell.metadata.get("alt", "") for cell in cells.cells]
        text = re.sub(
            r"!\[png\](\(\w+?_(\d+)_\d+\.png\))",
            lambda shown, alts=alts: f"![{alts[int(shown[2])]}]{shown[1]}",
            text,
        )
        text = text.replace("\n\n", f"\n{NOTEBOOK.format(path.name)}\n", 1)
        text = re.sub(r"(?m)^!\[.*\)$", lambda still: f"{still[0]}\n{STILL}", text, count=1)
        found[source.with_suffix(".md").as_posix()] = text
        found |= {(source.parent / name).as_posix(): of for name, of in made["outputs"].items()}
    return found


def commands() -> str:
    """Return the commands' own help, as a page."""
    import click
    from typer.main import get_command

    from convfc.cli import app

    group = get_command(app)
    context = click.Context(group)
    text = ["# Commands", "`pip install 'convfc[cli]'`; what a command needs beyond it, it says."]
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        # Its examples are bold in a terminal.
        told = re.sub(r"\[bold\](.+?)\[/(?:bold)?\]", r"`\1`", str(command.help)).replace("\b", "")
        text += [f"## convfc {name}", told, "| option | |\n|---|---|"]
        for option in command.params:
            names = ", ".join(f"`{n}`" for n in (*option.opts, *option.secondary_opts))
            told = " ".join((getattr(option, "help", None) or "").split()).replace("|", "\\|")
            text[-1] += f"\n| {names} | {told} |"
    return "\n\n".join(text)


def gallery() -> str:
    """Return every picture of the documents, once, under the page that shows it."""
    head = "---\nhide: [toc]\n---\n# Gallery"
    parts, seen = [head, "Every figure of the documents, with the page that explains it."], set()
    pages = [source for source in published() if re.match(r"docs/.*\.md$", source)]
    texts = {source: (ROOT / source).read_text("utf-8") for source in pages}
    texts |= {source: text for source, text in notebooks().items() if isinstance(text, str)}
    for source, text in texts.items():
        figures = []
        for told, target in re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", text):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
            if path not in seen:
                seen.add(path)
                figures.append(
                    f'<figure markdown="span">[![{told}]({path}){{ loading=lazy }}]({source})'
                    f"<figcaption>{told}</figcaption></figure>"
                )
        if figures:
            title = text.partition("# ")[2].partition("\n")[0]
            shown = "\n\n".join(figures)
            parts.append(f'## {title}\n\n<div class="gallery" markdown>\n\n{shown}\n\n</div>')
    return "\n\n".join(parts)


# MkDocs' hooks.


def on_config(config: Any) -> Any:
    """Give the site its navigation, and types in docstrings as they are written."""
    from griffe._internal.docstrings import numpy as docstrings

    # "array, shape (f,)" is no Python, but reads as a call in a tuple, and would be shown as that.
    parse = docstrings.parse_docstring_annotation
    docstrings.parse_docstring_annotation = lambda text, *rest, **options: (
        text if "," in text else parse(text, *rest, **options)
    )
    config.nav = navigation()
    return config


def on_files(files: Any, config: Any) -> Any:
    """Put the published files in the place of what MkDocs found, at their own places."""
    from mkdocs.structure.files import File

    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    for source, place in published().items():
        file = File.generated(config, source, abs_src_path=str(ROOT / source))
        file.dest_uri = place
        files.append(file)
    made = {**reference(), "reference/commands.md": commands(), GALLERY: gallery(), EXPLORER: ""}
    for source, content in made.items():
        files.append(File.generated(config, source, content=content))
    for source, content in notebooks().items():
        file = File.generated(config, source, content=content)
        file.dest_uri = re.sub(r"\.md$", ".html", source.removeprefix("docs/"))
        files.append(file)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Mark the examples as sessions, and add what only a site has."""
    markdown = re.sub(r"^```python(?=\n>>>)", "```pycon", markdown, flags=re.MULTILINE)
    markdown = re.sub(r"(\]\([\w./-]+)\.ipynb\)", r"\1.md)", markdown)
    match page.file.src_uri:
        case "README.md":
            return re.sub(r"(?m)^\[!\[The explorer", lambda m: f"{HOME}\n{m[0]}", markdown, count=1)
        case "docs/explorer.md":
            return markdown.replace("\n\n", f"\n\n{LIVE}\n\n", 1)
    return markdown


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Make a link of every public name, and one colon of two that announce an example."""
    from mkdocs.utils import get_relative_url

    def link(found: re.Match[str]) -> str:
        names = found[1].split(", ")
        places = [_ADDRESSES.get(name.removesuffix("()")) for name in names]
        return (
            ", ".join(
                f'<a href="{get_relative_url(to, page.url)}"><code>{name}</code></a>'
                if to
                else f"<code>{name}</code>"
                for name, to in zip(names, places, strict=True)
            )
            if any(places)
            else found[0]
        )

    # Not in a heading or in a link.
    parts = re.split(r"(<(a|h\d)\b.*?</\2>)", html, flags=re.DOTALL)
    kept = [re.sub(r"<code>([\w., ()]+)</code>", link, text) for text in parts[::3]]
    parts[::3] = kept
    return "".join(text for n, text in enumerate(parts) if n % 3 != 2).replace("::</p>", ":</p>")


def on_post_build(config: Any) -> None:
    """Write the explorer, and refuse a site with a broken link or a request to another host."""
    from mkdocs.exceptions import PluginError

    from convfc.explorer.page import write_page

    folder = Path(config.site_dir)
    write_page(folder / EXPLORER)
    if faults := [*broken_links(folder), *requests_elsewhere(folder)]:
        raise PluginError("\n".join(faults))


def _addresses() -> dict[str, str]:
    """Return where each public name stands, by its full name and by the name alone."""
    found = {}
    for name, modules in REFERENCE.values():
        for full in (n for module in modules.split() for n in public(module)):
            found[full] = found[full.rpartition(".")[2]] = f"reference/{name}.html#{full}"
    return found


_ADDRESSES = _addresses()


# The last check, of the pages as browsers read them.


class _Page(HTMLParser):
    """The ids of a page, its links, and what it asks for when it is opened."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids, self.links, self.asked = {""}, [], []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag in ("a", "area"):
            self.links += [given["href"]] if "href" in given else []
            return
        sources = [given[name] for name in ("src", "data", "poster") if name in given]
        sources += re.findall(r"([^\s,]+)[^,]*", given.get("srcset", ""))
        sources += re.findall(r"url\(['\"]?([^)'\"]+)", given.get("style", ""))
        if tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            sources.append(given.get("href", ""))
        self.asked += sources


def broken_links(folder: Path) -> list[str]:
    """Return links and pictures of a built site that lead to no file, or to no place in one."""
    pages = {path: _Page(path) for path in folder.rglob("*.html") if path.name != "404.html"}
    found = []
    for path, page in pages.items():
        for link in dict.fromkeys([*page.links, *page.asked]):
            if re.match(r"[a-z]+:|//", link):
                continue
            target, _, fragment = html.unescape(link).partition("#")
            to = (path.parent / target.partition("?")[0]).resolve() if target else path
            to = to / "index.html" if to.is_dir() else to
            there = to.exists() and (to not in pages or fragment in pages[to].ids)
            if not there and not fragment.startswith("__"):  # the theme's own, made by its script
                found.append(f"{path.relative_to(folder)}: no such place: {link}")
    return found


def requests_elsewhere(folder: Path) -> list[str]:
    """Return what the pages and stylesheets of a built site would ask other hosts for."""
    asked = {path: _Page(path).asked for path in folder.rglob("*.html")}
    for path in folder.rglob("*.css"):
        asked[path] = re.findall(r"(?:url\(|@import )['\"]?([^)'\"]+)", path.read_text("utf-8"))
    return [
        f"{path.relative_to(folder)}: asks another host: {source}"
        for path, sources in asked.items()
        for source in sources
        if re.match(r"https?:|//", source)
    ]
