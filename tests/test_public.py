"""The public face: ``__all__`` is exactly it, and every part explains itself with an example."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest

import convfc
from convfc.errors import ConvfcError

CORE = [
    "errors",
    "rounding",
    "geometry",
    "indexmap",
    "im2col",
    "layer",
    "certificate",
    "inspection",
    "registry",
    "operators",
    "operators.matrix",
    "operators.estimate",
    "operators.pattern",
    "operators.matrixfree",
    "operators.nearest",
    "operators.conv1d",
    "convert",
]
PUBLIC = [name for name in convfc.__all__ if name != "__version__"]
SUBMODULES = {module.name for module in pkgutil.iter_modules(convfc.__path__)}


def test_all_is_the_public_set():
    """What a user sees with ``dir`` and is no submodule is listed, and the other way round."""
    names = {
        name
        for name, thing in vars(convfc).items()
        if not name.startswith("_") and not isinstance(thing, ModuleType)
    }
    assert names == set(PUBLIC)
    assert convfc.__all__ == sorted(convfc.__all__)


def test_nothing_but_submodules_hides_beside_the_public_set():
    modules = {name for name, thing in vars(convfc).items() if isinstance(thing, ModuleType)}
    assert modules <= SUBMODULES


@pytest.mark.parametrize("name", CORE)
def test_every_core_module_says_what_is_public_and_what_it_is_for(name: str):
    module = importlib.import_module(f"convfc.{name}")
    assert inspect.getdoc(module)
    defined = {
        key
        for key, thing in vars(module).items()
        if not key.startswith("_") and getattr(thing, "__module__", None) == module.__name__
    }
    assert defined <= set(module.__all__)
    assert all(hasattr(module, key) for key in module.__all__)


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


@pytest.mark.parametrize("name", sorted(convfc.errors.__all__))
def test_every_exception_has_a_docstring(name: str):
    exception = getattr(convfc.errors, name)
    assert issubclass(exception, (ConvfcError, Warning))
    assert "__doc__" in vars(exception)
    assert exception.__doc__


def test_the_version_is_the_distributions():
    from importlib.metadata import version

    assert convfc.__version__ == version("convfc")
