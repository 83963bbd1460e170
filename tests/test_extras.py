"""Where an extra is not installed, whatever needs it names the pip line that brings it."""

from __future__ import annotations

import functools
import importlib
import json
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

import pytest
from commands import python
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import convfc
from convfc.errors import MissingDependencyError
from convfc.extras import PIP, missing, needing

EXTRAS = metadata.metadata("convfc").get_all("Provides-Extra") or []
NEED_AN_EXTRA = re.compile(
    r"convfc\.(cli|drawing|explorer\.(film|widget)|frameworks\.(keras|onnx|torch)"
    r"|methods\.(morphism|spectrum\.(lipschitz|networks|rules|verified)|uncertainty)"
    r"|paper|runs|studies)\b"
)
LINE = re.compile(r"the package (\w+) is not installed\. Remedy: pip install 'convfc\[(\w+)\]'")

# A process in which packages are hidden as if they were not installed.
HIDDEN = """
import json, sys
from importlib.machinery import PathFinder

class Finder:
    def __init__(self, finders, modules, distributions):
        self.finders, self.modules, self.distributions = finders, modules, distributions

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.modules:
            return None
        specs = (finder.find_spec(name, path, target) for finder in self.finders)
        return next((spec for spec in specs if spec is not None), None)

    def find_distributions(self, *context):
        found = PathFinder.find_distributions(*context)
        return (each for each in found if each.metadata["Name"] not in self.distributions)

sys.meta_path[:] = [Finder(list(sys.meta_path), *json.loads(sys.argv.pop()))]
"""
WALK = """
import importlib, warnings
warnings.simplefilter("ignore")
found = {}
for name in json.loads(sys.argv.pop()):
    try:
        importlib.import_module(name)
    except ImportError as error:
        found[name] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""


@functools.cache
def of_module() -> Mapping[str, list[str]]:
    """The distributions that bring a module; every file of the environment is looked at."""
    return metadata.packages_distributions()


@functools.cache
def brought(*extras: str) -> set[str]:
    """The distributions that pip installs with convfc and these extras, by their metadata."""
    todo, seen = [("convfc", extra) for extra in ("", *extras)], set()
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            requirements = [Requirement(text) for text in metadata.requires(name) or ()]
        except metadata.PackageNotFoundError:  # of another system
            continue
        for each in requirements:
            if each.marker is None or each.marker.evaluate({"extra": extra}):
                todo += [(canonicalize_name(each.name), e) for e in ("", *each.extras)]
    return {name for name, _ in seen}


def brings(module: str, *extras: str) -> bool:
    return not brought(*extras).isdisjoint(map(canonicalize_name, of_module()[module]))


def process(*arguments: str, program: str, extras: tuple[str, ...]) -> subprocess.CompletedProcess:
    """Run a program where nothing but these extras is installed."""
    hidden = [module for module in of_module() if not brings(module, *extras)]
    distributions = [name for module in hidden for name in of_module()[module]]
    return python("-c", HIDDEN + program, *arguments, json.dumps([hidden, distributions]))


def modules(folder: Path, prefix: str) -> Iterator[str]:
    """The names of all modules in a package, none of which is imported."""
    for module in pkgutil.iter_modules([str(folder)], prefix):
        yield module.name
        if module.ispkg:
            yield from modules(folder / module.name.rpartition(".")[2], f"{module.name}.")


ALL = sorted(modules(Path(convfc.__file__).parent, "convfc."))


@pytest.mark.parametrize("extras", [(), ("torch",)], ids=",".join)
def test_every_module_imports_or_names_the_extra_that_it_lacks(extras: tuple[str, ...]) -> None:
    run = process(json.dumps(ALL), program=WALK, extras=extras)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found
    for name, error in found.items():
        assert NEED_AN_EXTRA.match(name), f"{name} needs no extra: {error}"
        line = LINE.search(error)
        assert error.startswith("MissingDependencyError: "), f"{name}: {error}"
        assert line, f"{name}: {error}"
        package, extra = line.groups()
        assert not brings(package, *extras)
        assert brings(package, extra), f"{name}: {extra} does not bring {package}"


def test_the_walk_meets_every_module() -> None:
    """It would not be a test if it found nothing."""
    assert {"convfc.algorithm1", "convfc.frameworks.torch.certify.pairs"} <= set(ALL)
    assert {"numpy", "scipy"} <= brought()
    assert "torch" not in brought("spectrum")
    assert {"torch", "rich"} <= brought("study")


@pytest.mark.parametrize("module", PIP)
def test_the_extras_are_those_of_the_distribution(module: str) -> None:
    extra, beside = re.fullmatch(r"'convfc\[(\w+)\]'(?: (\w+))?", PIP[module]).groups()
    assert extra in EXTRAS
    assert brings(module, extra) or beside in of_module()[module]


def test_the_extra_of_who_asks_and_another_remedy() -> None:
    error = missing("matplotlib", "study", where="a figure", otherwise="no figure")
    assert str(error) == (
        "a figure: the package matplotlib is not installed. "
        "Remedy: pip install 'convfc[study]', or no figure"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import not_there", "No module named 'not_there'"),
        ("import anywidget.part", "No module named 'anywidget.part'"),
        ("from anywidget import part", "cannot import name 'part'"),
    ],
)
def test_a_package_that_is_there_and_broken_speaks_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    (tmp_path / "anywidget.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "anywidget", raising=False)
    with pytest.raises(ImportError, match=said) as caught, needing():
        importlib.import_module("anywidget")
    assert not isinstance(caught.value, MissingDependencyError)


MAIN = "sys.argv[0] = 'convfc'; from convfc.__main__ import main; main()"
FIRST = "torchvision.models:resnet18: no module torchvision.models; expected a module "
TORCH = "the package torch is not installed. Remedy: pip install 'convfc[torch]'$"


@pytest.mark.parametrize(
    ("extras", "arguments", "error"),
    [
        ((), "--help", "the package (typer|rich) .* pip install 'convfc[cli]', or 'convfc[paper]'"),
        (("cli",), "inspect torchvision.models:resnet18", f"{FIRST}.* 'convfc[torch]' torchvision"),
        (("cli",), "inspect convfc.frameworks.torch:to_fc", TORCH),
        (("cli",), "inspect keras.applications:ResNet50", "keras.* pip install 'convfc[paper]'"),
    ],
)
def test_a_command_names_the_pip_line_in_one_line(
    extras: tuple[str, ...], arguments: str, error: str
) -> None:
    run = process(*arguments.split(" "), program=MAIN, extras=extras)
    pattern = error.replace("[", r"\[").replace("]", r"\]")
    assert re.match(f"Error: {pattern}", run.stderr), run.stderr
    assert run.stderr.count("\n") == 1
    assert (run.returncode, run.stdout) == (1, "")
