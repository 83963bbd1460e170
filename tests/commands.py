"""The program as a user calls it, on models of the user's own, and errors in one line."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer.testing import CliRunner, Result

from convfc.cli import app

if TYPE_CHECKING:
    from types import ModuleType

    import pytest


def call(*arguments: str, columns: int = 200) -> Result:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": str(columns)})


def python(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python in another process."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 300} | options
    return subprocess.run([sys.executable, *arguments], text=True, check=False, **options)  # noqa: S603


def program(path: str) -> ModuleType:
    """A program of the repository, which is not in the package, as a module."""
    place = Path(__file__).parents[1] / path
    spec = importlib.util.spec_from_file_location(place.stem, place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def refused(result: Result, *texts: str, code: int = 1) -> str:
    """Assert that a command ended with one line that has these texts; return the line."""
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    for text in texts:
        assert text in line
    return line


def enter(place: Path, monkeypatch: pytest.MonkeyPatch, **sources: str) -> Path:
    """Go to a folder with these modules, which can be imported there."""
    for name, source in sources.items():
        (place / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(place)
    monkeypatch.chdir(place)
    return place
