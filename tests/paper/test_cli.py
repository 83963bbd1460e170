"""The command line as a user calls it: what it says, its exit code, and Ctrl-C."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from small_run import EPOCHS
from typer.testing import CliRunner, Result

from convfc.cli import app

if TYPE_CHECKING:
    import pathlib

# Whatever the tests run on, the command shall choose by itself, and write wide lines.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"} | {
    "COLUMNS": "200", "PYTHONUNBUFFERED": "1",
}  # fmt: skip
# A shell's job in the background ignores Ctrl-C, and so would these tests in one.
PROGRAM = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from convfc.__main__ import main; main()"
)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})


def process(place: pathlib.Path, program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", program, *arguments],
        cwd=place,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_version() -> None:
    assert call("--version").stdout == f"convfc {importlib.metadata.version('convfc')}\n"


def test_help_names_every_option() -> None:
    shown = call("reproduce", "--help").stdout
    options = (
        "paper study epochs optimizer backend dtype data seed runs-dir name resume overwrite cost"
    )
    for option in f"{options} no-cost companion no-companion images samples seeds".split():
        assert f"--{option}" in shown
    assert "40 epochs, a few minutes" in shown


@pytest.mark.usefixtures("small_networks")
def test_a_run_is_not_run_again(trained: tuple[pathlib.Path, str]) -> None:
    folder, _ = trained
    run = ("--name", folder.name, "--runs-dir", str(folder.parent), "--epochs", str(EPOCHS))
    for options, texts in (
        (run, ("the folder exists", "--resume", "--overwrite")),
        ((*run, "--seed", "1", "--resume"), ("seed=0", "seed=1")),
        (("--name", "../outside"), ("expected one name without separators",)),
    ):
        result = call("reproduce", "--no-cost", *options)
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: ")
        assert result.stderr.count("\n") == 1
        assert all(text in result.stderr for text in texts)


def test_ctrl_c_says_how_to_continue(tmp_path: pathlib.Path) -> None:
    """Here the networks are as large as the paper's, and the command chooses the backend."""
    arguments = ("reproduce", "--optimizer", "sgd", "--no-cost", "--name", "stopped")
    running = process(tmp_path, PROGRAM, *arguments)
    try:
        assert running.stdout is not None
        assert running.stdout.readline() == "run stopped: 40 epochs, jax, in runs/stopped\n"
        assert any("float32-sgd-cnn: starts" in line for line in running.stdout)
        running.send_signal(signal.SIGINT)
        _, told = running.communicate(timeout=120)
    finally:
        running.kill()
        running.communicate()
    assert running.returncode == 130
    assert told == "Stopped. The same command with --resume goes on from the last checkpoint.\n"
    assert not list(tmp_path.rglob("*.tmp"))
    assert (tmp_path / "runs" / "stopped" / "settings.json").exists()


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
    result = call("reproduce", "--runs-dir", str(tmp_path / "runs"), *arguments)
    assert result.exit_code == 2
    assert text in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_keras_the_extra_is_named(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "keras", None)
    result = call("reproduce", "--runs-dir", str(tmp_path / "runs"))
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: backend jax: the package keras is not installed")
    assert result.stderr.endswith("pip install 'convfc[paper]'\n")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_without_typer_the_extra_is_named(tmp_path: pathlib.Path) -> None:
    """The package is hidden from the process, as if it were not installed."""
    running = process(tmp_path, "import sys; sys.modules['typer'] = None; " + PROGRAM, "reproduce")
    _, told = running.communicate(timeout=120)
    assert running.returncode == 1
    assert told.startswith("Error: ")
    assert told.count("\n") == 1
    assert "typer is not installed" in told
    assert "pip install 'convfc[cli]'" in told
