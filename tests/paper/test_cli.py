"""The command line as a user calls it: what it says, its exit code, and Ctrl-C."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from commands import call, refused
from small_run import EPOCHS

if TYPE_CHECKING:
    import pathlib

# Whatever the tests run on, the command shall choose by itself, and write wide lines.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"} | {
    "COLUMNS": "200", "PYTHONUNBUFFERED": "1",
}  # fmt: skip


def test_version() -> None:
    assert call("--version").stdout == f"convfc {importlib.metadata.version('convfc')}\n"


@pytest.mark.usefixtures("small_networks")
def test_a_run_is_not_run_again(trained: tuple[pathlib.Path, str]) -> None:
    folder, _ = trained
    run = ("--name", folder.name, "--runs-dir", str(folder.parent), "--epochs", str(EPOCHS))
    refused(call("reproduce", *run), "the folder exists", "--resume", "--overwrite")
    refused(call("reproduce", *run, "--seed", "1", "--resume"), "seed=0", "seed=1")


def test_ctrl_c_says_how_to_continue(tmp_path: pathlib.Path) -> None:
    """Here the networks are as large as the paper's, and the command chooses the backend."""
    options = ("--optimizer", "sgd", "--no-cost", "--name", "stopped")
    running = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "convfc", "reproduce", *options],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
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
