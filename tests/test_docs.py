"""The documents, beyond their examples: links, tables, pictures, and numbers that stand twice."""

from __future__ import annotations

import json
import operator
import pydoc
import re
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import matplotlib.image
import numpy as np
import pytest
import scipy.linalg
import yaml
from commands import program
from markdown_it import MarkdownIt

import convfc
from convfc.runs.reporting import number
from convfc.studies.catalogue import PACKAGES, load_study

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += [page for room in ("docs", "benchmarks") for page in sorted((ROOT / room).rglob("*.md"))]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
README = (ROOT / "README.md").read_text("utf-8")
PAPER_RUN = ROOT / "docs" / "paper-run"
STUDIES = ROOT / "docs" / "studies"


@pytest.fixture(scope="module")
def runs() -> ModuleType:
    return program("docs/update_runs.py")


@pytest.fixture(scope="module")
def matrices() -> ModuleType:
    return program("docs/draw_matrices.py")


@pytest.fixture(scope="module")
def website() -> ModuleType:
    return program("docs/website/website.py")


def _relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _text(path: Path) -> str:
    """What a page says; of a notebook, without its code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = json.loads(text)["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


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


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=_relative)
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
    written |= {*NOTEBOOKS}
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


def test_the_newest_version_of_the_changelog_is_the_packages() -> None:
    pattern = r"^## \[(.+?)\] - (unreleased|\d{4}-\d\d-\d\d)$"
    headings = re.findall(pattern, _text(ROOT / "CHANGELOG.md"), flags=re.MULTILINE)
    assert headings[0][0] == convfc.__version__
    assert all(date != "unreleased" for _, date in headings[1:])


# The README's numbers are those of the kept run and of the kept benchmark.


def test_block_is_made_from_the_kept_report(runs: ModuleType) -> None:
    block = runs.readme_block(_text(PAPER_RUN / "report.md"))
    assert runs.with_block(README, block) == README
    assert "convfc reproduce --paper" in block


def test_speed_is_that_of_the_kept_benchmark() -> None:
    updater = program("benchmarks/update_readme.py")
    results = ROOT / "benchmarks/results"
    block = updater.readme_block(_text(results / "torch.md"), _text(results / "tools.md"))
    assert updater.with_block(README, block) == README
    assert block.count("| geometric mean |") == 2
    assert block.count("| depthwise ") == 2
    kept = json.loads(_text(ROOT / "benchmarks/results/torch.json"))
    assert all(f"{name} {version}" in block for name, version in kept["versions"].items())


KEYS = ("output_difference_mean", "output_difference_printed")
KEYS += ("weight_difference", "max_loss_difference")


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("key", KEYS)
def test_numbers_are_those_of_the_results(optimizer: str, key: str) -> None:
    results = json.loads(_text(PAPER_RUN / "results.json"))
    block = README.partition("<!-- paper-run:begin -->")[2].partition("<!-- paper-run:end -->")[0]
    fc, control = (number(results[optimizer][pair][key]) for pair in ("fc", "control"))
    assert results["epochs"] == 400
    assert f"| {fc} | {control} |" in block


def test_installing_the_experiment_does_not_install_torch() -> None:
    """`make reproduce` installs the extra ``paper`` and nothing else."""
    project = tomllib.loads(_text(ROOT / "pyproject.toml"))["project"]
    wanted, seen = ["paper"], set()
    while wanted:
        for requirement in project["optional-dependencies"][wanted.pop()]:
            seen.add(requirement.split(">=")[0])
            if requirement.startswith("convfc["):
                wanted.append(requirement[len("convfc[") : -1])
    assert "keras" in seen
    assert not {name for name in seen if name.startswith(("torch", "tensorflow"))}


# The pictures of matrices are those that their program draws.


@pytest.fixture(scope="module")
def drawn(matrices: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("figures")
    matrices.main(folder)
    return folder


@pytest.mark.parametrize("name", ["matrix-toeplitz.png", "matrix-changes.png"])
def test_the_kept_picture_is_the_drawn_one(drawn: Path, name: str) -> None:
    folders = (ROOT / "docs" / "figures", drawn)
    kept, new = (matplotlib.image.imread(folder / name) for folder in folders)
    assert np.array_equal(kept, new), "run python docs/draw_matrices.py"


def test_the_first_picture_is_doubly_block_toeplitz(matrices: ModuleType) -> None:
    """SciPy's Toeplitz matrices: one for each row of the filter, on a diagonal of blocks."""
    matrix, _ = matrices.tap_numbers()
    taps = np.arange(1, 17).reshape(4, 4)
    blocks = [scipy.linalg.toeplitz([t[0], 0, 0, 0], [*t, 0, 0, 0]) for t in taps]
    empty = np.zeros_like(blocks[0])
    expected = np.block(
        [[blocks[j - i] if 0 <= j - i < 4 else empty for j in range(7)] for i in range(4)]
    )
    assert np.array_equal(matrix, expected)
    transposed, _ = matrices.tap_numbers(transposed=True, size=(4, 4))
    assert np.array_equal(transposed, matrix.T)


def test_every_change_is_drawn_with_another_matrix(matrices: ModuleType) -> None:
    pictures = [matrices.tap_numbers(**change)[0] for change in matrices.CHANGES.values()]
    assert len({(p.shape, p.tobytes()) for p in pictures}) == len(pictures)


# The reports of the studies say what their numbers say, and show their pictures.


def test_every_study_has_its_report() -> None:
    assert {path.parent.name for path in STUDIES.glob("*/report.md")} == set(PACKAGES)


@pytest.mark.parametrize("study", PACKAGES)
def test_the_kept_report_is_made_from_the_kept_numbers(
    runs: ModuleType, study: str, tmp_path: Path
) -> None:
    report = runs.study_report(STUDIES / study)
    assert report == _text(STUDIES / study / "report.md"), "run python docs/update_runs.py"
    others = _text(STUDIES / study / "results.json").replace("0.9", "0.8")
    (tmp_path / "results.json").write_text(others, "utf-8")
    assert runs.study_report(tmp_path) != report


@pytest.mark.parametrize("study", PACKAGES)
def test_the_kept_run_is_the_ordinary_one(study: str) -> None:
    results = json.loads(_text(STUDIES / study / "results.json"))
    assert results["settings"] == load_study(study).settings.named().as_json()
    kept = json.loads(_text(STUDIES / study / "settings.json"))
    assert results["settings"].items() <= kept.items()


@pytest.mark.parametrize("study", PACKAGES)
def test_pictures_are_those_of_the_report(study: str) -> None:
    shown = re.findall(r"\((figures/[\w-]+\.png)\)", _text(STUDIES / study / "report.md"))
    kept = {f"figures/{path.name}" for path in (STUDIES / study / "figures").iterdir()}
    assert set(shown) == kept


def test_taking_a_run_copies_its_report_and_nothing_large(
    runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    (run / "figures").mkdir(parents=True)
    (run / "parts").mkdir()
    (run / "settings.json").write_text('{"study": "morphism"}')
    for name in ("report.md", "results.json", "figures/a.png", "figures/a.svg", "parts/a.npz"):
        (run / name).write_text(name)
    monkeypatch.setattr(runs, "STUDIES", tmp_path / "studies")
    place = runs.take(run)
    assert place == tmp_path / "studies" / "morphism"
    files = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
    assert files == {"report.md", "results.json", "settings.json", "figures/a.png"}


# The site that `make docs` builds: what it is made of, and the check at the end of the build.


def test_every_public_name_is_in_the_reference(website: ModuleType) -> None:
    pages = "\n".join(website.reference().values())
    shown = re.findall(r"^::: convfc\.(\w+)$", pages, flags=re.MULTILINE)
    assert sorted(shown) == sorted(set(convfc.__all__) - {"__version__"})
    assert pages.index("::: convfc.im2col") < pages.index("::: convfc.col2im"), "not as written"


def test_a_public_name_without_a_page_stops_the_build(
    website: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(website.REFERENCE, "One matrix")
    with pytest.raises(ValueError, match=r"no page for .*'convfc\.conv_matrix'"):
        website.reference()


def test_the_menu_is_the_index_of_the_documents(website: ModuleType) -> None:
    def pages(menu: list[dict[str, object]]) -> set[str]:
        inside = [to for entry in menu for to in entry.values()]
        return {to for to in inside if isinstance(to, str)}.union(
            *(pages(to) for to in inside if isinstance(to, list))
        )

    menu = website.navigation()
    assert [next(iter(entry)) for entry in menu][:4] == [
        "Home",
        "Students",
        "Researchers",
        "Engineers",
    ]
    made = [*website.published(), *website.notebooks()]
    assert {page for page in made if page.endswith(".md")} <= pages(menu)
    for name, reader in zip(("student", "researcher", "engineer"), menu[1:4], strict=True):
        assert f"docs/notebooks/{name}.md" in pages([reader])


def test_links_to_notebooks_lead_to_their_pages(website: ModuleType) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="docs/some.md"))
    text = website.on_page_markdown("[one](notebooks/one.ipynb), `a.ipynb`", page, None, None)
    assert text == "[one](notebooks/one.md), `a.ipynb`"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=_relative)
def test_a_notebook_is_a_page_with_its_pictures(website: ModuleType, path: Path) -> None:
    made = website.notebooks()
    page = made[_relative(path.with_suffix(".md"))]
    cells = json.loads(path.read_text("utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert re.findall(r"(?s)^```python\n(.*?)\n```$", page, re.MULTILINE) == code
    assert f'href="{path.name}" download' in page.partition("## ")[0]
    assert page.index("![") < page.index("explorer/index.html") < page.index("## ")
    shown = re.findall(r"!\[(.*?)\]\((.+?)\)", page)
    assert [told for told, _ in shown] == [
        c["metadata"]["alt"] for c in cells if "alt" in c["metadata"]
    ]
    for _, name in shown:
        assert made[f"docs/notebooks/{name}"].startswith(b"\x89PNG")


def test_every_picture_of_the_documents_is_in_the_gallery_once(website: ModuleType) -> None:
    shown = re.findall(r"!\[[^]]+\]\((.+?)\)", website.gallery())
    assert len(shown) == len(set(shown))
    kept = {_relative(path) for path in (ROOT / "docs").rglob("figure*/*.png")}
    drawn = {name for name in website.notebooks() if name.endswith(".png")}
    assert {"docs/figures/matrix-toeplitz.png", "docs/paper-run/figures/figure-07.png"} <= set(
        shown
    )
    assert drawn <= set(shown) <= kept | drawn


PAGE = """<html><head><link rel="stylesheet" href="site.css"><link rel="canonical" href="https://x/">
</head><body><h2 id="here">Here</h2><a href="https://arxiv.org">paper</a><a href="#here">up</a>
<a href="room/#there">room</a><img src="dot.png" srcset="dot.png 2x">{}</body></html>"""


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A site of two pages in which all is well."""
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "index.html").write_text('<p id="there">', "utf-8")
    (tmp_path / "index.html").write_text(PAGE.format(""), "utf-8")
    (tmp_path / "site.css").write_text("a { background: url(dot.png) }", "utf-8")
    (tmp_path / "dot.png").touch()
    return tmp_path


def test_a_site_in_which_all_is_well_passes(website: ModuleType, built: Path) -> None:
    assert website.broken_links(built) == []
    assert website.requests_elsewhere(built) == []


@pytest.mark.parametrize(
    "broken",
    ['<a href="gone.html">', '<a href="#gone">', '<a href="room/#here">', '<img src="gone.png">'],
)
def test_a_broken_link_is_found(website: ModuleType, built: Path, broken: str) -> None:
    (built / "index.html").write_text(PAGE.format(broken), "utf-8")
    target = broken.split('"')[1]
    assert website.broken_links(built) == [f"index.html: no such place: {target}"]


@pytest.mark.parametrize(
    "asking",
    [
        '<script src="{}"></script>',
        '<link rel="preconnect" href="{}">',
        '<img src="dot.png" srcset="{} 2x">',
        '<p style="background: url({})">',
        '<iframe src="{}"></iframe>',
    ],
)
def test_a_request_to_another_host_is_found(website: ModuleType, built: Path, asking: str) -> None:
    for host in ("https://fonts.example/a", "//fonts.example/a"):
        (built / "index.html").write_text(PAGE.format(asking.format(host)), "utf-8")
        assert website.requests_elsewhere(built) == [f"index.html: asks another host: {host}"]


def test_a_stylesheet_that_asks_another_host_is_found(website: ModuleType, built: Path) -> None:
    (built / "site.css").write_text('@import "https://fonts.example/a";', "utf-8")
    assert website.requests_elsewhere(built) == [
        "site.css: asks another host: https://fonts.example/a"
    ]
