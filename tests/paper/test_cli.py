"""The command line as a user calls it: another process, its output and its exit code."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import pathlib

COMMAND = (sys.executable, "-m", "convfc")
SHORT = ("reproduce", "--epochs", "1", "--optimizer", "sgd", "--no-cost")
# Whatever the tests run on, the command shall choose by itself, and write wide lines.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"} | {"COLUMNS": "200"}


def call(place: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603
        [*COMMAND, *arguments],
        cwd=place,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def assert_one_error_line(result: subprocess.CompletedProcess[str], *texts: str) -> None:
    assert result.returncode == 1, result.stdout + result.stderr
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    for text in texts:
        assert text in result.stderr


def test_version(tmp_path: pathlib.Path) -> None:
    result = call(tmp_path, "--version")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"convfc {importlib.metadata.version('convfc')}\n"


def test_help_names_every_option(tmp_path: pathlib.Path) -> None:
    assert "reproduce" in call(tmp_path, "--help").stdout
    shown = call(tmp_path, "reproduce", "--help").stdout
    options = (
        "paper study epochs optimizer backend dtype data seed runs-dir name resume overwrite cost"
    )
    for option in f"{options} no-cost companion no-companion images samples seeds".split():
        assert f"--{option}" in shown
    assert "40 epochs, a few minutes" in shown


def test_run_resume_and_refuse(tmp_path: pathlib.Path) -> None:
    result = call(tmp_path, *SHORT)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "runs" / "epochs1-sgd"
    results = json.loads((run / "results.json").read_text())
    assert set(results["sgd"]["control"].values()) == {0.0}
    assert (run / "report.html").exists()
    assert "Differences after 1 epochs" in result.stdout
    assert "2.12e-7" in result.stdout
    assert "Report: runs/epochs1-sgd/report.html" in result.stdout

    assert_one_error_line(call(tmp_path, *SHORT), "the folder exists", "--resume", "--overwrite")
    other = call(tmp_path, *SHORT, "--name", "epochs1-sgd", "--seed", "1", "--resume")
    assert_one_error_line(other, "seed=0", "seed=1")

    again = call(tmp_path, *SHORT, "--resume")
    assert again.returncode == 0, again.stderr
    assert "is finished: only the report is drawn again" in again.stdout
    assert list(tmp_path.iterdir()) == [tmp_path / "runs"]


def test_ctrl_c_says_how_to_continue(tmp_path: pathlib.Path) -> None:
    arguments = ("reproduce", "--optimizer", "sgd", "--no-cost", "--name", "stopped")
    # A shell's job in the background ignores Ctrl-C, and so would these tests in one.
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from convfc.__main__ import main; main()"
    )
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", program, *arguments],
        cwd=tmp_path,
        env=ENVIRONMENT | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert any("float32-sgd-cnn: starts" in line for line in process.stdout)
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=120)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert told == "Stopped. The same command with --resume goes on from the last checkpoint.\n"
    assert not list(tmp_path.rglob("*.tmp"))
    assert (tmp_path / "runs" / "stopped" / "settings.json").exists()


@pytest.mark.parametrize("name", ["../outside", ".."])
def test_name_cannot_leave_the_runs_folder(tmp_path: pathlib.Path, name: str) -> None:
    result = call(tmp_path, *SHORT, "--name", name)
    assert_one_error_line(result, "expected one name without separators")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--epochs", "0"), "--epochs"),
        (("--paper", "--epochs", "3"), "give only one of --paper and --epochs"),
        (("--backend", "numpy"), "'jax', 'torch', 'tensorflow'"),
    ],
    ids=["epochs", "paper-and-epochs", "backend"],
)
def test_wrong_usage_is_explained(
    tmp_path: pathlib.Path, arguments: tuple[str, ...], text: str
) -> None:
    result = call(tmp_path, "reproduce", *arguments)
    assert result.returncode == 2
    assert text in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("package", "remedy"),
    [("typer", "pip install 'convfc[cli]'"), ("keras", "pip install 'convfc[paper]'")],
)
def test_missing_package_names_its_extra(tmp_path: pathlib.Path, package: str, remedy: str) -> None:
    """The package is hidden from the process, as if it were not installed."""
    program = (
        f"import sys; sys.modules[{package!r}] = None; sys.argv = ['convfc', 'reproduce']; "
        "from convfc.__main__ import main; main()"
    )
    result = subprocess.run(  # noqa: S603
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert_one_error_line(result, package, "not installed", remedy)
    assert list(tmp_path.iterdir()) == []
