"""module:factory, as a command is given it: in a module, in a file of this folder, or anywhere."""

from __future__ import annotations

import json
import math
import sys
from fractions import Fraction
from typing import TYPE_CHECKING

import pytest
from commands import call, enter, python, refused

from convfc.errors import FactoryError
from convfc.factories import make, named_values

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = """
import functools

class Builder:
    @staticmethod
    def small(size=1):
        return ("small", size)

double = functools.partial(Builder.small, size=2)
thing = object()

def fails(size):
    raise TypeError("a mistake of its own")
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    enter(tmp_path, monkeypatch, of_a_user=SOURCE)
    return "of_a_user"


def test_functions_classes_and_objects(module: str) -> None:
    assert make("fractions:Fraction", {"numerator": 6, "denominator": 4}) == Fraction(3, 2)
    assert make(f"{module}:Builder.small", {"size": 3}) == ("small", 3)
    assert make(f"{module}:double") == ("small", 2)
    assert make(f"{module}:thing") is sys.modules[module].thing


def test_a_file_by_its_path_leaves_the_search_path_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("by_path", "math"):
        (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.delitem(sys.modules, "by_path", raising=False)
    before = sys.path.copy()
    assert make(f"{tmp_path}/by_path.py:Builder.small", {"size": 3}) == ("small", 3)
    assert make("by_path:thing") is make(f"{tmp_path}/by_path.py:thing")
    assert make(f"{tmp_path}/math.py:double") == ("small", 2)
    assert make("math:pi") == math.pi
    assert sys.path == before


def test_what_the_factory_raises_is_passed_on(module: str) -> None:
    with pytest.raises(TypeError, match=r"^a mistake of its own$"):
        make(f"{module}:fails", {"size": 1})


@pytest.mark.parametrize(
    ("spec", "arguments", "text"),
    [
        ("math", {}, r"^math: this does not name a .*; expected module:factory; got 'math'"),
        ("", {}, r"^the model: this does not name"),
        (":sqrt", {}, r"Remedy: write it as in torchvision.models:resnet18"),
        ("math:sq rt", {}, r"not name a module and a factory"),
        ("os.pth:join", {}, r"no module os.pth; .*got no os.pth"),
        ("of_a_user:Builder.smal", {}, r"Builder has no smal; expected one like small. Remedy: "),
        ("of_a_user:fails", {}, r"missing a required argument: 'size'; expected \(size\)"),
        ("of_a_user:thing", {"sizes": 5}, "an object, and takes no arg.*Remedy: leave out sizes"),
        ("of_a_user:Builder.small", {"sizes": 5}, r"unexpected .* 'sizes'.*; got sizes=5\. Rem"),
    ],
)
@pytest.mark.usefixtures("module")
def test_errors_say_what_and_the_remedy(spec: str, arguments: dict[str, int], text: str) -> None:
    with pytest.raises(FactoryError, match=text):
        make(spec, arguments)


def test_values_are_literals_or_else_texts() -> None:
    texts = ["a=1", "b=None", "c=(1, 2)", "d=reflect", "e=", "f=a=b", "g='1'", "h=1e-3"]
    values = [1, None, (1, 2), "reflect", "", "a=b", "1", 0.001]
    assert named_values(texts) == dict(zip("abcdefgh", values, strict=True))


@pytest.mark.parametrize("text", ["weights", "=3", "two words=3", ""])
def test_no_value_is_refused(text: str) -> None:
    with pytest.raises(FactoryError, match=r"the argument has no name; expected name=value"):
        named_values([text])


# A user's own model, for every command.

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
    "wrong_name": "from torch import nn\nnn.Conv4d",
    "wrong_syntax": "from torch import nn\ndef net(:",
    "wrong_need": "import not_there.at_all",
    "wrong_part": "from torch.nn import (\n    Conv4d)",
    "wrong_place": "from . import convs_of_mine",
    "wrong_end": "import sys\nsys.exit('two\\nlines')",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a network, another in a folder inside that has a name of Python's, and more."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "inspect.py").write_text(NETS)
    (tmp_path / "sub" / "convs_of_mine.py").write_text(CONVS.replace("4, 3", "6, 3"))
    enter(tmp_path, monkeypatch, nets_of_mine=NETS, convs_of_mine=CONVS, **BROKEN)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each not in ("", str(tmp_path))])
    return tmp_path


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("spec", "filters"),
    [("nets_of_mine:net", 4), ("./nets_of_mine.py:net", 4), ("sub/inspect.py:net", 6)],
)
def test_a_command_finds_it(spec: str, filters: int) -> None:
    result = call("inspect", spec, "--arg", "channels=2", "--json")
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["rows"]
    assert row["geometry"]["out_channels"] == filters


def test_the_program_finds_it_in_this_folder(here: Path) -> None:
    """-P: it does not look there by itself. What it finds here has no model, and no PyTorch."""
    (here / "plain_of_mine.py").write_text("def net(): ...")
    run = python("-P", "-m", "convfc", "inspect", "plain_of_mine:nett", cwd=here)
    assert (run.returncode, run.stdout) == (1, "")
    assert "plain_of_mine has no nett; expected one like net. Remedy: check" in run.stderr


def test_the_other_commands_find_it(here: Path) -> None:
    spectra = call("spectrum", "nets_of_mine:net", "--input", "1,6,6", "--json").stdout
    assert [layer["name"] for layer in json.loads(spectra)["layers"]] == ["0"]
    page = call("explore", "sub/inspect.py:net", "--input", "1,6,6", "--html", "page.html")
    assert page.stdout.splitlines()[-1] == "Page: page.html"
    assert (here / "page.html").is_file()


def test_it_is_found_by_the_whole_path_and_only_once(here: Path) -> None:
    for _ in range(2):
        result = call("inspect", f"{here}/sub/inspect.py:net")
        assert result.exit_code == 0, result.output
    assert sys.path[:2].count(str(here / "sub")) == 1
    assert sys.modules["inspect"].__name__ == "inspect"  # Python's own stays where it is
    assert not hasattr(sys.modules["inspect"], "net")


ERRORS = {
    "nets_of_min:net": "no module nets_of_min; expected a module that Python can import; "
    "got no nets_of_min. Remedy: install it where convfc is, or name its file, as in ./nets.py:Net",
    "./nets_of_min.py:net": "no Python file nets_of_min.py; expected one like "
    "nets_of_mine.py. Remedy: give its path from this folder, as in ./nets.py:Net",
    "./nets_of_mine:net": "no Python file nets_of_mine; expected one like "
    "nets_of_mine.py. Remedy: give its path from this folder, as in ./nets.py:Net",
    "./sub:net": "no Python file sub; expected a file that ends in .py. "
    "Remedy: give its path from this folder, as in ./nets.py:Net",
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
    "Remedy: name it by its package, as in package.nets:Net, from the folder it is in",
    "wrong_end.py:net": "wrong_end.py cannot be imported, SystemExit: two lines; "
    "got line 2 of {here}/wrong_end.py. Remedy: see it all with python wrong_end.py",
}


@pytest.mark.parametrize("spec", ERRORS)
def test_what_cannot_be_found_or_imported_is_one_line(here: Path, spec: str) -> None:
    from torch import nn

    message = ERRORS[spec].format(here=here.resolve(), torch=nn.__file__)
    assert refused(call("inspect", spec)) == f"Error: {spec}: {message}"


def test_what_failed_can_be_mended_and_named_again(here: Path) -> None:
    assert call("inspect", "wrong_name.py:net").exit_code == 1
    (here / "wrong_name.py").write_text(NETS)
    result = call("inspect", "wrong_name.py:net")
    assert result.exit_code == 0, result.output
