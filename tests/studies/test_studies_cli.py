"""``convfc reproduce``, as a user calls it: a whole study, and what is refused."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING

import pytest
from commands import call, enter, refused

from convfc.cli.reproduce import Study
from convfc.studies.catalogue import PACKAGES
from convfc.studies.uncertainty.methods import score_table

if TYPE_CHECKING:
    import pathlib

SMALL = {
    "uncertainty": ("--epochs", "1", "--images", "30", "--samples", "2"),
    "morphism": ("--epochs", "1", "--images", "30", "--seeds", "1"),
}
FIGURES = {
    "uncertainty": {"images", "turned", "reliability", "entropy", "rates"},
    "morphism": {"curves"},
}


@pytest.fixture(autouse=True)
def place(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    return enter(tmp_path, monkeypatch)


def test_the_command_knows_every_study() -> None:
    assert {study.value for study in Study} == set(PACKAGES)


@pytest.mark.parametrize("study", SMALL)
def test_a_study_from_end_to_end(
    place: pathlib.Path, monkeypatch: pytest.MonkeyPatch, study: str
) -> None:
    monkeypatch.setitem(score_table.__kwdefaults__, "draws", 20)  # of the bootstrap
    small = ("reproduce", "--study", study, "--name", "small", *SMALL[study])
    result = call(*small)
    assert result.exit_code == 0, result.output
    run = place / "runs" / "small"
    results = json.loads((run / "results.json").read_text())
    assert results["settings"]["study"] == study
    assert results["settings"]["images"] == 30
    text, page = ((run / f"report.{kind}").read_text("utf-8") for kind in ("md", "html"))
    shown = {path.stem.removeprefix("figure-") for path in (run / "figures").glob("*.png")}
    assert shown == FIGURES[study]
    assert set(re.findall(r"figures/figure-(\w+)\.png", text)) == FIGURES[study]
    assert page.count("<table>") == len(re.findall(r"^\|-", text, re.MULTILINE)) >= 4
    assert page.count('src="data:image/svg+xml;base64,') == page.count(" src=") == len(shown)
    assert f"convfc reproduce --study {study} {' '.join(SMALL[study])}" in text
    assert "Report: runs/small/report.html" in result.stdout
    # The table on the terminal has the numbers of the report.
    rows = [line for line in text.splitlines() if re.match(r"\| (no method|teacher,) .*%", line)]
    cells = [cell.strip() for cell in rows[0].strip("|").split("|")]
    assert len(cells) in {4, 9}
    assert all(cell in result.stdout for cell in cells)
    other = next(name for name in SMALL if name != study)
    again = ("reproduce", "--name", "small", "--resume")
    refused(call(*small, "--seed", "2", "--resume"), "expected seed=0; got seed=2")
    refused(call(*again, "--study", other), f"expected study={study}")
    refused(call(*again), "the run was started with other settings")
    assert list(place.iterdir()) == [place / "runs"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--study dreams", "'uncertainty', 'morphism'"),
        ("--study morphism --paper", "--paper: an option of the paper's experiment"),
        ("--study morphism --backend jax", "--backend: an option of the paper's"),
        ("--study morphism --no-cost", "--cost: an option of the paper's"),
        ("--study morphism --samples 5", "--samples: an option of another study"),
        ("--workers 2", "--workers: an option of a sweep or a study"),
        ("--seeds 2", "--seeds: an option of a study; say which with --study"),
        ("--samples 5 --seeds 2", "--samples, --seeds: an option of a study"),
        ("--study uncertainty --samples 1", "--samples"),
        ("--epochs 0", "--epochs"),
        ("--paper --epochs 3", "give only one of --paper and --epochs"),
        ("--backend numpy", "'jax', 'torch', 'tensorflow'"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(
    place: pathlib.Path, options: str, words: str
) -> None:
    result = call("reproduce", *options.split())
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("package", "study", "where"),
    [
        ("torch", "uncertainty", "study uncertainty"),
        ("jinja2", "uncertainty", "study uncertainty"),
        ("laplace", "uncertainty", "study uncertainty"),
        ("keras", None, "backend jax"),
    ],
)
def test_a_missing_package_names_the_extra(
    place: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    study: str | None,
    where: str,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    line = refused(call("reproduce", *(("--study", study) if study else ())))
    extra = "study" if study else "paper"
    remedy = f"Remedy: pip install 'convfc[{extra}]'"
    assert line == f"Error: {where}: the package {package} is not installed. {remedy}"
    assert list(place.iterdir()) == []
