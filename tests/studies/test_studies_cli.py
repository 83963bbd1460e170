"""``convfc reproduce --study``, as a user calls it."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner, Result

from convfc.cli import app
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


@pytest.fixture
def place(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["reproduce", *arguments], env={"COLUMNS": "200"})


def test_the_command_knows_every_study() -> None:
    assert {study.value for study in Study} == set(PACKAGES)


@pytest.mark.parametrize("study", SMALL)
def test_a_study_from_end_to_end(
    place: pathlib.Path, monkeypatch: pytest.MonkeyPatch, study: str
) -> None:
    monkeypatch.setitem(score_table.__kwdefaults__, "draws", 20)  # of the bootstrap
    small = ("--study", study, "--name", "small", *SMALL[study])
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
    for arguments, words in (
        ((*small, "--seed", "2", "--resume"), "expected seed=0; got seed=2"),
        (("--study", other, "--name", "small", "--resume"), f"expected study={study}"),
        (("--name", "small", "--resume"), "the run was started with other settings"),
    ):
        refused = call(*arguments)
        assert refused.exit_code == 1
        assert words in refused.stderr
        assert refused.stderr.count("\n") == 1
    assert list(place.iterdir()) == [place / "runs"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--study", "dreams"), "'uncertainty', 'morphism'"),
        (("--study", "morphism", "--paper"), "--paper: an option of the paper's experiment"),
        (("--study", "morphism", "--backend", "jax"), "--backend: an option of the paper's"),
        (("--study", "morphism", "--no-cost"), "--cost: an option of the paper's"),
        (("--study", "morphism", "--samples", "5"), "--samples: an option of another study"),
        (("--study", "uncertainty", "--seeds", "5"), "--seeds: an option of another study"),
        (("--images", "30"), "--images: an option of a study; say which with --study"),
        (("--samples", "5", "--seeds", "2"), "--samples, --seeds: an option of a study"),
        (("--study", "uncertainty", "--samples", "1"), "--samples"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, tuple) else None,
)
def test_options_that_make_no_sense_are_refused_by_name(
    place: pathlib.Path, arguments: tuple[str, ...], words: str
) -> None:
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("package", ["torch", "jinja2", "laplace"])
def test_a_missing_package_names_the_extra(
    place: pathlib.Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    result = call("--study", "uncertainty")
    assert result.exit_code == 1
    expected = f"the package {package} is not installed. Remedy: pip install 'convfc[study]'\n"
    assert result.stderr == f"Error: study uncertainty: {expected}"
    assert list(place.iterdir()) == []
