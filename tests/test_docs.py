"""The documents, beyond their examples: links, tables, and facts that stand twice."""

from __future__ import annotations

import operator
import pydoc
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

import convfc

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += [page for room in ("docs", "benchmarks") for page in sorted((ROOT / room).rglob("*.md"))]


def _relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _links(page: Path) -> list[str]:
    """Every target that the page links to or shows as a picture, in Markdown and in HTML."""
    found = []
    for block in MarkdownIt("commonmark").enable("table").parse(_text(page)):
        for token in (block, *(block.children or [])):
            found += [str(token.attrs[key]) for key in ("href", "src") if key in token.attrs]
            if token.type in ("html_block", "html_inline"):
                found += re.findall(r'(?:href|src|srcset)="([^"]+)"', token.content)
    return found


def _anchors(page: Path) -> set[str]:
    """What a `#fragment` may name: explicit ids, and headings as GitHub turns them into ids."""
    text = _text(page)
    headings = re.findall(r"^#+ +(.+)$", text, flags=re.MULTILINE)
    slugs = (re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)
    return {*slugs, *re.findall(r'<a id="([^"]+)">', text)}


@pytest.mark.parametrize("page", PAGES, ids=_relative)
def test_relative_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in _links(page):
        target, _, fragment = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = page.parent / target if target else page
        if not path.exists() or (fragment and fragment not in _anchors(path)):
            broken.append(link)
    assert broken == []


def test_every_document_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / link).resolve() for link in _links(index)}
    written = {page for page in PAGES if page.parent in (ROOT, index.parent)} - {index}
    assert written <= linked


def test_every_help_that_a_page_names_is_there() -> None:
    asked = {
        name for page in PAGES for name in re.findall(r"`help\(convfc\.([\w.]+)\)`", _text(page))
    }
    assert {"algorithm1", "im2col", "index_map"} <= asked
    assert [name for name in asked if not operator.attrgetter(name)(convfc).__doc__] == []


def test_the_help_that_the_index_names_shows_the_steps_of_algorithm_1() -> None:
    shown = pydoc.plain(pydoc.render_doc(convfc.algorithm1)).splitlines()
    rows = [line.split("`")[1] for line in shown if line.startswith("    Step ")]
    steps = ["im2col", "filters_to_matrix", "patch_product", "rows_to_output"]
    assert rows == ["ConvGeometry.output_size", *steps]


ERRATA = re.split(r"^## ", _text(ROOT / "docs" / "errata.md"), flags=re.MULTILINE)[1:-1]


def test_every_erratum_stands_once() -> None:
    found = [n for part in ERRATA for n in re.findall(r"^- \*\*(\w+)\*\*", part, re.MULTILINE)]
    ranges = {"E": 17, "P": 4, "W": 11}
    numbers = {f"{kind}{n}" for kind, last in ranges.items() for n in range(1, last + 1)}
    assert len(found) == len(numbers)
    assert set(found) == numbers


@pytest.mark.parametrize("part", ERRATA, ids=lambda part: part.partition("\n")[0])
def test_every_erratum_has_an_example(part: str) -> None:
    text, _, code = part.partition("```python\n")
    # An example begins at the line that names its entry, and has a result.
    _, *examples = re.split(r"^>>> .*# (?=[EPW]\d)", code.partition("```")[0], flags=re.MULTILINE)
    shown = {
        re.match(r"\w+", example)[0]
        for example in examples
        if any(line and line[:3] not in (">>>", "...") for line in example.splitlines()[1:])
    }
    assert shown == set(re.findall(r"^- \*\*(\w+)\*\*", text, re.MULTILINE))


def test_citation_names_the_paper_and_the_version() -> None:
    citation = yaml.safe_load(_text(ROOT / "CITATION.cff"))
    project = tomllib.loads(_text(ROOT / "pyproject.toml"))["project"]
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert citation["license"] == project["license"]
    assert citation["version"] == project["version"] == convfc.__version__
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Ma", "Lu"]
    assert paper["doi"] == "10.48550/arXiv.1712.01252"
    assert paper["identifiers"][0]["value"] == "arXiv:1712.01252"


def test_changelog_has_a_place_for_what_is_next() -> None:
    headings = re.findall(r"^## \[(.+?)\]", _text(ROOT / "CHANGELOG.md"), flags=re.MULTILINE)
    assert headings[0] == "Unreleased"
