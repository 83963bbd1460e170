"""module:factory, as a command is given it."""

from __future__ import annotations

import math
import sys
from fractions import Fraction
from typing import TYPE_CHECKING

import pytest

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
    (tmp_path / "of_a_user.py").write_text(SOURCE)
    (tmp_path / "in_need.py").write_text("import not_there.at_all")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("of_a_user", "in_need"):
        monkeypatch.delitem(sys.modules, name, raising=False)
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
    ("spec", "text"),
    [
        ("math", r"^math: this is not a module and a factory; expected module:factory; got 'math'"),
        ("", r"^the model: this is not"),
        (":sqrt", r"Remedy: write it as in torchvision.models:resnet18"),
        ("math:", r"not a module and a factory"),
        ("math:sq rt", r"not a module and a factory"),
        ("nets/mine.py:Net", r"there is no Python file nets/mine\.py; .* as in \./nets\.py:Net$"),
        ("mth:sqrt", r"^mth:sqrt: there is no module mth; .*got no mth"),
        ("os.pth:join", r"there is no module os.pth; .*got no os.pth"),
        ("math:sqrd", r"^math:sqrd: math has no sqrd; expected one like sqrt"),
        ("of_a_user:Builder.smal", r"Builder has no smal; expected one like small. Remedy: check"),
        ("of_a_user:fails", r"arguments: missing a required argument: 'size'; expected \(size\)"),
        ("in_need:Net", r"in_need cannot be imported: it needs not_there, which is not installed"),
    ],
)
@pytest.mark.usefixtures("module")
def test_errors_say_what_and_the_way_out(spec: str, text: str) -> None:
    with pytest.raises(FactoryError, match=text):
        make(spec)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (
            "of_a_user:thing",
            "thing is an object, and takes no arguments; .*Remedy: leave out sizes",
        ),
        ("of_a_user:Builder.small", r"unexpected keyword argument 'sizes'.*; got sizes=5\. Remedy"),
    ],
)
@pytest.mark.usefixtures("module")
def test_wrong_arguments_are_explained(spec: str, text: str) -> None:
    with pytest.raises(FactoryError, match=text):
        make(spec, {"sizes": 5})


def test_values_are_literals_or_else_texts() -> None:
    texts = ["a=1", "b=None", "c=(1, 2)", "d=reflect", "e=", "f=a=b", "g='1'", "h=1e-3"]
    assert named_values(texts) == {
        "a": 1,
        "b": None,
        "c": (1, 2),
        "d": "reflect",
        "e": "",
        "f": "a=b",
        "g": "1",
        "h": 0.001,
    }


@pytest.mark.parametrize("text", ["weights", "=3", "two words=3", ""])
def test_no_value_is_refused(text: str) -> None:
    with pytest.raises(FactoryError, match=r"this is not an argument; expected name=value"):
        named_values([text])
