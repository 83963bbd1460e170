"""The public face: ``__all__`` is exactly it, and every part explains itself with an example."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path
from types import ModuleType

import pytest

import convfc
from convfc.errors import ConvfcError

CORE = ["errors", "rounding", "geometry", "indexmap", "algorithm1", "layer", "certificate"]
CORE += ["inspection", "registry", "operators", "convert"]
HOUSE = Path(convfc.__file__).parent
SRC = HOUSE.parent
PUBLIC = [name for name in convfc.__all__ if name != "__version__"]
SUBMODULES = {module.name for module in pkgutil.iter_modules(convfc.__path__)}


def test_all_is_the_public_set():
    """What a user sees with ``dir``, but for submodules, is listed, and the other way round."""
    seen = {name for name in dir(convfc) if not name.startswith("_")}
    modules = {name for name in seen if isinstance(getattr(convfc, name), ModuleType)}
    assert seen - modules == set(PUBLIC)
    assert modules <= SUBMODULES
    assert convfc.__all__ == sorted(convfc.__all__)


def test_import_star_gives_the_public_set():
    names: dict[str, object] = {}
    exec("from convfc import *", names)  # noqa: S102 (it cannot stand in a function)
    assert names.keys() - {"__builtins__"} == set(convfc.__all__)


def test_a_name_that_there_is_not_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'convfc' has no attribute 'conv_matrx'"):
        _ = convfc.conv_matrx


PACKAGES = sorted(path.parent for path in HOUSE.rglob("__init__.py"))


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda f: ".".join(f.relative_to(SRC).parts))
def test_no_name_of_a_package_hides_a_submodule(folder: Path):
    """``help(package.name)`` shows what is there, whichever of the two was imported last."""
    package = ".".join(folder.relative_to(SRC).parts)
    hidden = bound(folder / "__init__.py", package) & {
        m.name for m in pkgutil.iter_modules([folder])
    }
    assert not hidden, f"rename the modules {sorted(hidden)} of {package}, or what hides them"


def bound(path: Path, package: str) -> set[str]:
    """The names that a package's ``__init__`` makes: all but modules of the package itself."""
    names = set()
    body = ast.parse(path.read_text(encoding="utf-8")).body
    body += [each for node in body if isinstance(node, (ast.If, ast.With)) for each in node.body]
    for node in body:
        if isinstance(node, ast.ImportFrom) and node.module != package:
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            names |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    return names


def test_the_reader_of_names_sees_names():
    """It would be no test if it found nothing."""
    assert bound(HOUSE / "__init__.py", "convfc") == {*convfc.__all__, "__all__"}


@pytest.mark.parametrize("name", CORE)
def test_every_core_module_says_what_it_is_for(name: str):
    assert inspect.getdoc(importlib.import_module(f"convfc.{name}"))


def test_only_what_users_import_from_says_what_is_public():
    """The faces of rooms, and the modules that the documents name."""
    faces = {"errors.py", "algorithm1.py"}
    for path in HOUSE.rglob("*.py"):
        if path.name != "__init__.py" and path.relative_to(HOUSE).as_posix() not in faces:
            assert "__all__" not in path.read_text("utf-8"), path


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_object_has_a_docstring_with_an_example(name: str):
    text = inspect.getdoc(getattr(convfc, name)) or ""
    assert ">>> " in text
    assert "Examples\n--------" in text


METHODS = [
    (owner, name)
    for owner in PUBLIC
    if inspect.isclass(getattr(convfc, owner))
    for name, thing in vars(getattr(convfc, owner)).items()
    if not name.startswith("_") and (callable(thing) or isinstance(thing, (classmethod, property)))
]


@pytest.mark.parametrize(("owner", "name"), METHODS, ids=".".join)
def test_every_public_method_has_a_docstring(owner: str, name: str):
    assert vars(getattr(convfc, owner))[name].__doc__


@pytest.mark.parametrize("name", sorted({*convfc.errors.__all__} - {"Refusal"}))
def test_every_exception_has_a_docstring(name: str):
    exception = getattr(convfc.errors, name)
    assert issubclass(exception, (ConvfcError, Warning))
    assert "__doc__" in vars(exception)
    assert exception.__doc__


def test_the_version_is_the_distributions():
    from importlib.metadata import version

    assert convfc.__version__ == version("convfc")
