"""A model of one's own for every command: in a file of this folder, or anywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from convfc.cli import app

if TYPE_CHECKING:
    from pathlib import Path

NETS = """
from __future__ import annotations
from dataclasses import dataclass
from torch import nn
from convs_of_mine import conv

@dataclass
class Settings:
    channels: int = 1

def net(channels=1):
    return nn.Sequential(conv(Settings(channels).channels), nn.ReLU())
"""
CONVS = """
from torch import nn

def conv(channels):
    return nn.Conv2d(channels, 4, 3)
"""
BROKEN = {
    "wrong_name.py": "from torch import nn\nnn.Conv4d",
    "wrong_syntax.py": "from torch import nn\ndef net(:",
    "wrong_need.py": "import not_there.at_all",
    "wrong_part.py": "from torch.nn import (\n    Conv4d)",
    "wrong_place.py": "from . import convs_of_mine",
    "wrong_end.py": "import sys\nsys.exit('two\\nlines')",
    "text.txt": "net = 1",
}
OF_MINE = ("nets_of_mine", "convs_of_mine", *(name.partition(".")[0] for name in BROKEN))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a network, another in a folder inside that has a name of Python's, and more."""
    (tmp_path / "sub").mkdir()
    for name, text in {"nets_of_mine.py": NETS, "convs_of_mine.py": CONVS, **BROKEN}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "sub" / "inspect.py").write_text(NETS)
    (tmp_path / "sub" / "convs_of_mine.py").write_text(CONVS.replace("4, 3", "6, 3"))
    monkeypatch.setattr(sys, "path", sys.path.copy())
    for name in OF_MINE:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def program(folder: Path, *arguments: str) -> str:
    """What the installed program prints: -P, as it does not look in the folder by itself."""
    result = subprocess.run(  # noqa: S603 (our own interpreter)
        [sys.executable, "-P", "-m", "convfc", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


@pytest.mark.parametrize(
    ("spec", "filters"),
    [("nets_of_mine:net", 4), ("./nets_of_mine.py:net", 4), ("sub/inspect.py:net", 6)],
)
def test_the_program_finds_it(here: Path, spec: str, filters: int) -> None:
    shown = json.loads(program(here, "inspect", spec, "--arg", "channels=2", "--json"))
    assert [row["geometry"]["out_channels"] for row in shown["rows"]] == [filters]


def test_the_other_commands_find_it(here: Path) -> None:
    """Each from a folder of its own, as far as the program knows."""
    spectra = program(here, "spectrum", "nets_of_mine:net", "--input", "1,6,6", "--json")
    assert [layer["name"] for layer in json.loads(spectra)["layers"]] == ["0"]
    page = ("explore", "sub/inspect.py:net", "--input", "1,6,6", "--html", "page.html")
    assert program(here, *page).splitlines()[-1] == "Page: page.html"
    assert (here / "page.html").is_file()


def test_it_is_found_by_the_whole_path_and_only_once(here: Path) -> None:
    for _ in range(2):
        result = CliRunner().invoke(app, ["inspect", f"{here}/sub/inspect.py:net"])
        assert result.exit_code == 0, result.output
    assert sys.path[:2].count(str(here / "sub")) == 1
    assert sys.modules["inspect"].__name__ == "inspect"  # Python's own stays where it is
    assert not hasattr(sys.modules["inspect"], "net")


ERRORS = {
    "nets_of_min:net": "there is no module nets_of_min; expected a module that Python can import; "
    "got no nets_of_min. Remedy: install it where convfc is, or name its file, as in ./nets.py:Net",
    "./nets_of_min.py:net": "there is no Python file nets_of_min.py; expected one like "
    "nets_of_mine.py. Remedy: give its path from this folder, as in ./nets.py:Net",
    "./nets_of_mine:net": "there is no Python file nets_of_mine; expected one like "
    "nets_of_mine.py. Remedy: give its path from this folder, as in ./nets.py:Net",
    "nowhere/nets.py:net": "there is no Python file nowhere/nets.py; expected a file that ends in "
    ".py. Remedy: give its path from this folder, as in ./nets.py:Net",
    "./text.txt:net": "there is no Python file text.txt; expected a file that ends in .py. "
    "Remedy: give its path from this folder, as in ./nets.py:Net",
    "./sub:net": "there is no Python file sub; expected a file that ends in .py. "
    "Remedy: give its path from this folder, as in ./nets.py:Net",
    "./nets_of_mine.py": "this is not a module and a factory; expected module:factory; got "
    "'./nets_of_mine.py'. Remedy: write it as in torchvision.models:resnet18, or ./nets.py:Net for "
    "a file",
    "./nets_of_mine.py:nett": "nets_of_mine has no nett; expected one like net. "
    "Remedy: check the spelling; dir() lists what it has",
    "./wrong_name.py:net": "./wrong_name.py cannot be imported, AttributeError: module 'torch.nn' "
    "has no attribute 'Conv4d'; got line 2 of {here}/wrong_name.py. "
    "Remedy: see it all with python ./wrong_name.py",
    "wrong_name:net": "wrong_name cannot be imported, AttributeError: module 'torch.nn' "
    "has no attribute 'Conv4d'; got line 2 of {here}/wrong_name.py. "
    "Remedy: see it all with python -m wrong_name",
    "wrong_syntax.py:net": "wrong_syntax.py cannot be imported, SyntaxError: invalid syntax "
    "(wrong_syntax.py, line 2). Remedy: see it all with python wrong_syntax.py",
    "wrong_need.py:net": "wrong_need.py cannot be imported: it needs not_there, which is not "
    "installed. Remedy: install not_there where convfc is",
    "wrong_part.py:net": "wrong_part.py cannot be imported, ImportError: cannot import name "
    "'Conv4d' from 'torch.nn' ({torch}); got line 1 of {here}/wrong_part.py. "
    "Remedy: see it all with python wrong_part.py",
    "wrong_place.py:net": "wrong_place.py cannot be imported, ImportError: attempted relative "
    "import with no known parent package; got line 1 of {here}/wrong_place.py. "
    "Remedy: name it by its package, as in package.nets:Net, from the folder that this is in",
    "wrong_end.py:net": "wrong_end.py cannot be imported, SystemExit: two lines; "
    "got line 2 of {here}/wrong_end.py. Remedy: see it all with python wrong_end.py",
}


@pytest.mark.parametrize("spec", ERRORS)
def test_what_cannot_be_found_or_imported_is_said_in_one_line(here: Path, spec: str) -> None:
    from torch import nn

    result = CliRunner().invoke(app, ["inspect", spec])
    said = ERRORS[spec].format(here=here.resolve(), torch=nn.__file__)
    assert (result.exit_code, result.stderr) == (1, f"Error: {spec}: {said}\n")


def test_what_failed_can_be_mended_and_named_again(here: Path) -> None:
    assert CliRunner().invoke(app, ["inspect", "wrong_name.py:net"]).exit_code == 1
    (here / "wrong_name.py").write_text(NETS)
    result = CliRunner().invoke(app, ["inspect", "wrong_name.py:net"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("command", ["inspect", "spectrum", "explore"])
def test_help_says_how_a_file_is_named(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "250"}).stdout
    assert "a file in this folder (nets:Net for nets.py) or anywhere (models/nets.py:Net)" in shown
