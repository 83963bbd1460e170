"""The report says what the run's files say, alone and in one file."""

from __future__ import annotations

import base64
import html
import json
import pathlib
import re
import runpy
import shutil
import xml.etree.ElementTree as ET
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from commands import call
from small_run import FILTERS, undrawn
from synthetic import DEAD, make_run, results_of

from convfc.cli import reproduce
from convfc.errors import RunError
from convfc.explorer.state import state_layer
from convfc.geometry import ConvGeometry
from convfc.paper.experiment import PaperSettings as Settings
from convfc.paper.findings import PAPER, find, read_record
from convfc.paper.study import STUDY
from convfc.runs import study
from convfc.runs.folder import RunFolder
from convfc.runs.reporting import number, write_report_files

ROOT = pathlib.Path(__file__).parents[2]
QUANTITIES = {
    "output_difference_mean": "outputs, mean of ‖V_n − U_n‖_F (authors' program)",
    "output_difference_printed": "outputs, (1/1000)‖V − U‖_F (as printed)",
    "weight_difference": "weights, ‖W_cnn − W_fc‖_F",
    "max_loss_difference": "largest difference of a loss",
}


def write_report(folder: pathlib.Path) -> pathlib.Path:
    return study.write_report(STUDY, RunFolder(folder))


def text_from(folder: pathlib.Path) -> str:
    return study.report_text(STUDY, RunFolder(folder).read())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run with every optional part, and its report."""
    folder = make_run(tmp_path_factory.mktemp("report") / "run")
    assert write_report(folder) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run without any optional part: SGD alone, no control, float64 or cost; and its report."""
    folder = tmp_path_factory.mktemp("report") / "small"
    left_out = {"control": False, "companion": False, "cost": False}
    make_run(folder, optimizers=["sgd"], epochs=1, filters=FILTERS, **left_out)
    results = results_of(folder)
    del results["dead_outputs"]
    RunFolder(folder).write_results(results)
    with undrawn():
        write_report(folder)
    return folder


@pytest.fixture
def copied(small: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """The smaller run once more, to be changed."""
    return pathlib.Path(shutil.copytree(small, tmp_path / "run"))


def text_of(folder: pathlib.Path) -> str:
    return (folder / "report.md").read_text(encoding="utf-8")


def page_of(folder: pathlib.Path) -> tuple[list[tuple[str, dict[str, str]]], str]:
    """The elements of a page with their attributes, and its text."""
    page = (folder / "report.html").read_text(encoding="utf-8")
    elements = [
        (tag, {key: html.unescape(value) for key, value in re.findall(r'(\w+)="(.*?)"', rest)})
        for tag, rest in re.findall(r"<(\w+)([^>]*)>", page)
    ]
    return elements, html.unescape(re.sub("<[^>]*>", "", page))


def test_page_loads_nothing(run: pathlib.Path) -> None:
    elements, text = page_of(run)
    loading = [
        (tag, key, value)
        for tag, attributes in elements
        for key, value in attributes.items()
        if key in {"src", "srcset", "href", "data", "action", "poster"}
    ]
    assert loading
    for tag, key, value in loading:
        if tag == "a":
            assert value.startswith("https://arxiv.org/") or value == "explorer.html"
        else:
            assert (tag, key) == ("img", "src")
            assert value.startswith("data:image/svg+xml;base64,")
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in elements}
    assert not re.search(r"@import|url\(", text)


def test_explorer_beside_the_report_shows_the_trained_layer(run: pathlib.Path) -> None:
    assert ("a", {"href": "explorer.html"}) in page_of(run)[0]
    page = (run / "explorer.html").read_text(encoding="utf-8")
    (written,) = re.findall(r'id="convfc-state">(.*?)</script>', page, flags=re.DOTALL)
    layer, _ = state_layer(json.loads(written))
    walk = np.load(run / "parts" / "float32-sgd-cnn.npz")["first_layer"]
    K = np.asarray(layer.matrix, dtype=np.float32)  # JSON holds float32's own few digits
    assert np.array_equal(K, walk[-1])
    assert layer.geometry == ConvGeometry(1, 128, (4, 4), stride=2)


def test_kept_copy_of_a_report_does_not_name_the_page(
    run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = runpy.run_path(str(ROOT / "docs" / "update_runs.py"))
    monkeypatch.setitem(program["take"].__globals__, "KEPT", tmp_path / "kept")
    kept = text_of(program["take"](run))
    (line,) = set(text_of(run).splitlines()) - set(kept.splitlines())
    assert "(explorer.html)" in line
    assert not (tmp_path / "kept" / "explorer.html").exists()


def test_page_shows_the_drawings_of_the_folder(run: pathlib.Path) -> None:
    named = re.findall(r"!\[([^\]]+)\]\((figures/[\w-]+)\.png\)", text_of(run))
    shown = [attributes for tag, attributes in page_of(run)[0] if tag == "img"]
    assert [attributes["alt"] for attributes in shown] == [alt for alt, _ in named]
    for attributes, (_, figure) in zip(shown, named, strict=True):
        drawing = base64.b64decode(attributes["src"].partition(",")[2])
        assert drawing == (run / f"{figure}.svg").read_bytes()
    assert {f"figures/{path.stem}" for path in (run / "figures").iterdir()} == {f for _, f in named}


def test_all_figures_are_there_and_valid_in_both_formats(run: pathlib.Path) -> None:
    for name in ("06", "07", "08", "09", "10", "difference", "cost"):
        pixels = mpl.image.imread(run / "figures" / f"figure-{name}.png")
        assert pixels.shape[1] >= 1200, "too small for a README on a dense screen"
        assert pixels.min() < 0.5 < pixels.max(), "nothing is drawn"
        root = ET.parse(run / "figures" / f"figure-{name}.svg").getroot()  # noqa: S314 - ours
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root.findall(".//{http://www.w3.org/2000/svg}path")


def test_page_has_the_words_of_the_markdown(run: pathlib.Path) -> None:
    page = " ".join(page_of(run)[1].replace("*", "").split())
    marks = r"!\[.*|\[([^\]]*)\]\([^)]*\)|```|[#*`]|^\|[-:|]+$|\||^- "
    text = re.sub(marks, r"\1", text_of(run), flags=re.MULTILINE)
    for line in filter(None, map(str.strip, text.splitlines())):
        assert " ".join(line.split()) in page


def table_row(text: str, start: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_table_has_the_papers_and_the_measured_numbers(run: pathlib.Path, optimizer: str) -> None:
    label = {"sgd": "SGD", "adam": "Adam"}[optimizer]
    results = results_of(run)[optimizer]
    for quantity, title in QUANTITIES.items():
        paper, measured, control = table_row(text_of(run), f"{label}: {title}")
        assert paper == PAPER[optimizer].get(quantity, "–")
        assert float(measured) == float(f"{results['fc'][quantity]:.3g}")
        assert control == "0"


DECIDED = "It is the order of rounding, enlarged by Adam's division"
UNDECIDED = "All three are needed, so this run alone does not decide it."


def test_control_of_zero_and_fine_float64_decide_the_question(run: pathlib.Path) -> None:
    text = text_of(run)
    for words in (
        "| paper, 400 epochs | measured, 8 epochs |",
        "This run has 8 epochs and the paper 400",
        "It differs from the FC network by exactly 0, after every epoch, with both optimizers",
        DECIDED,
    ):
        assert words in text
    assert UNDECIDED not in text


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"control_difference": 1e-3},
            ("**The control is not exactly 0 here.**", "shows: no control of exactly 0;"),
        ),
        (
            {"float64_rounding": 2.0**-24},
            ("so rounding alone does not explain the gap", "no such small gap in float64"),
        ),
    ],
    ids=["control", "float64"],
)
def test_another_control_or_gap_changes_the_text(
    tmp_path: pathlib.Path, changed: dict[str, float], words: tuple[str, ...]
) -> None:
    folder = make_run(tmp_path / "run", cost=False, **changed)
    text, control = text_from(folder), find(read_record(folder))["control"]
    assert all(each in text for each in (*words, UNDECIDED))
    assert DECIDED not in text
    told = " and ".join(f"{number(control['largest'][o])} with {o}" for o in control["unequal"])
    assert told in text.replace("SGD", "sgd").replace("Adam", "adam")
    assert ("exactly 0 in every number" in text) == control["exact"] == (not told)


def test_run_without_optional_parts_leaves_them_out(small: pathlib.Path) -> None:
    text = text_of(small).replace("(None,", "")
    assert "which this run did not train" in text
    assert "was not trained in this run, so it says nothing here" in text
    assert "after 1 epoch the first layers" in text
    for words in ("Conclusion", "More efficient", "Adam:", "float64:", "final ReLU", "None", "nan"):
        assert words not in text


def test_same_run_gives_the_same_bytes(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    again = shutil.copytree(run, tmp_path / "run")
    for path in (again / "report.md", again / "report.html"):
        path.unlink()
    shutil.rmtree(again / "figures")
    write_report(again)
    one, other = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")}
        for folder in (run, again)
    )
    assert one == other


@pytest.mark.parametrize(
    ("loss", "verdict"),
    [
        (0.12, "worse than always answering 0"),
        (0.08, "better than always answering 0, but worse than always answering the mean"),
        (0.06, "better than always answering the mean training image"),
    ],
)
def test_loss_is_judged_by_constant_answers(
    loss: float, verdict: str, copied: pathlib.Path
) -> None:
    results = results_of(copied) | {"dead_outputs": {"sgd": DEAD | {"val_loss": loss}}}
    RunFolder(copied).write_results(results)
    text = text_from(copied)
    assert f"The CNN's validation loss is {loss}, {verdict}" in text
    assert table_row(text, "always answering the mean training image")[-1] == "0.07"
    share = round(100 * DEAD["val_loss_of_dead"] / loss)
    assert f"The dead outputs make up {share} % of the validation loss." in text
    assert "For 179 of them 0 is right" in text


def test_costs_are_ratios_of_what_was_measured(run: pathlib.Path) -> None:
    cost = find(read_record(run))["cost"]
    assert cost["points"] == 9
    assert cost["time"]["direct"] == pytest.approx({"least": 0.1, "median": 0.1, "most": 0.1})
    assert cost["time"]["blocks"] == pytest.approx({"least": 1.25, "median": 1.25, "most": 1.25})
    assert cost["memory"]["native"] == pytest.approx({"least": 4.5, "median": 4.5, "most": 4.5})
    text = text_of(run)
    assert "takes 0.1 times as long. It is more efficient at every size." in text
    assert "2 times as long. The native layer is faster at every size." in text


@pytest.mark.parametrize(
    ("changed", "options"),
    [
        ({}, ""),
        ({"epochs": 400, "float64_epochs": 100}, " --paper"),
        (
            {"epochs": 3, "optimizers": ("adam",), "float64_epochs": 0, "seed": 5},
            " --epochs 3 --optimizer adam --seed 5 --no-companion",
        ),
        (
            {"dtype": "float64", "float64_epochs": 0, "backend": "torch", "data": "mnist"},
            " --backend torch --dtype float64 --data mnist",
        ),
        ({"optimizers": ("sgd",), "float64_epochs": 0}, " --optimizer sgd"),
    ],
)
def test_command_repeats_the_settings(
    changed: dict[str, Any], options: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(name="a-run", **changed)
    assert Settings.command(settings.as_json()) == f"convfc reproduce{options}"
    asked: list[Settings] = []
    monkeypatch.setattr(reproduce, "_run", lambda console, which, found, *rest: asked.append(found))
    outcome = call("reproduce", *options.split(), "--name", "a-run")
    assert outcome.exit_code == 0, outcome.output
    assert asked == [settings]


SECRET = b"<svg xmlns='http://www.w3.org/2000/svg'><text>mine alone</text></svg>"


@pytest.mark.parametrize(
    "evil",
    [
        "![x](figures/../../secret.png)",
        "\n\n![x]\n\n[x]: ../secret.png",
        "`` ` ``![x](../secret.png)",
        "\\![x](../secret.png)\\",
        "[x](javascript:alert(1)) <https://evil.example> <img src=x>",
        "&#33;&#91;x](../secret.png) | cell | **bold** _slanted_",
    ],
)
def test_texts_of_a_strange_run_are_shown_as_they_are(copied: pathlib.Path, evil: str) -> None:
    (copied.parent / "secret.svg").write_bytes(SECRET)
    texts = {"data": evil, "seed": [evil], "machine": evil, "backend": evil}
    RunFolder(copied).write_results(results_of(copied) | texts | {"versions": {evil: evil}})
    page = write_report_files(copied, text_from(copied)).read_text("utf-8")
    cells = re.findall(r"<td[^>]*>Backend</td>\s*<td[^>]*>(.*?)</td>", page)
    assert [html.unescape(cell) for cell in cells] == [" ".join(evil.split())]
    assert "<" not in cells[0]
    images = re.findall(r"<img [^>]*", page)
    assert len(images) == len(list((copied / "figures").glob("*.svg")))


@pytest.mark.parametrize("source", ["../secret.png", "/etc/x.png", "figures/link.png", "x.png"])
def test_page_shows_no_image_from_elsewhere(tmp_path: pathlib.Path, source: str) -> None:
    (tmp_path / "secret.svg").write_bytes(SECRET)
    folder = tmp_path / "run"
    (folder / "figures").mkdir(parents=True)
    (folder / "x.svg").write_bytes(SECRET)
    (folder / "figures" / "link.svg").symlink_to(tmp_path / "secret.svg")
    with pytest.raises(RunError, match="is not in its folder of figures"):
        write_report_files(folder, f"# Title\n\n![x]({source})\n")
    assert not (folder / "report.html").exists()
