"""Objects that a command names: ``torchvision.models:resnet18``, or ``./nets.py:Net``."""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import importlib.util
import inspect
import os
import pathlib
import sys
import traceback
from collections.abc import Iterable, Mapping
from typing import Any

from convfc.errors import FactoryError, MissingDependencyError
from convfc.extras import PIP


def make(spec: str, arguments: Mapping[str, Any] | None = None) -> Any:
    """Import a module and call a function or class in it, or return any other object in it.

    ``spec`` is ``module:factory``, the module by its name or by the path of its file; the factory
    may be inside another object: ``module:Builder.small``. ``sys.path`` stays as it is; see
    `folder`. What the factory itself raises is passed on.
    """
    module_name, _, path = spec.rpartition(":")
    if not module_name or not path or not path.replace(".", "").isidentifier():
        raise FactoryError(
            "this does not name a module and a factory",
            where=spec or "the model",
            expected="module:factory",
            got=repr(spec),
            remedy="write it as in torchvision.models:resnet18, or ./nets.py:Net for a file",
        )
    thing: Any = _module(spec, module_name)
    for name in path.split("."):
        if not hasattr(thing, name):
            raise FactoryError(
                f"{getattr(thing, '__name__', type(thing).__name__)} has no {name}",
                where=spec,
                expected=_similar(name, (other for other in dir(thing) if other[0] != "_")),
                remedy="check the spelling; dir() lists what it has",
            )
        thing = getattr(thing, name)
    arguments = dict(arguments or {})
    # A model is callable too, but calling it would run it.
    if not (inspect.isroutine(thing) or isinstance(thing, (type, functools.partial))):
        if arguments:
            raise FactoryError(
                f"{path} is an object, and takes no arguments",
                where=spec,
                expected="a function or a class",
                got=type(thing).__name__,
                remedy=f"leave out {', '.join(arguments)}",
            )
        return thing
    _check_arguments(spec, thing, arguments)
    return thing(**arguments)


def folder(spec: str) -> pathlib.Path:
    """Return the folder that a program puts first in ``sys.path`` before it calls `make`.

    It is that of the file, or the current one: so ``nets:Net`` is found in the file nets.py there.
    """
    name = spec.rpartition(":")[0]
    return pathlib.Path(name).absolute().parent if _is_path(name) else pathlib.Path.cwd()


def named_values(texts: Iterable[str]) -> dict[str, Any]:
    """Read ``name=value`` texts; a value is a Python literal, or else the text itself."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise FactoryError(
                "the argument has no name",
                where=text or "an argument",
                expected="name=value",
                got=repr(text),
                remedy="write it as in weights=None",
            )
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found


def _is_path(name: str) -> bool:
    return name.endswith(".py") or name.startswith(".") or "/" in name or os.sep in name


def _module(spec: str, name: str) -> Any:
    """Import a module; where it lacks another module, the error says so."""
    try:
        return _file(spec, pathlib.Path(name)) if _is_path(name) else importlib.import_module(name)
    except (FactoryError, MissingDependencyError):
        raise
    except ModuleNotFoundError as error:
        pip = f"pip install {PIP[error.name]}" if error.name and error.name in PIP else None
        if error.name is None or _is_path(name) or not f"{name}.".startswith(f"{error.name}."):
            raise FactoryError(
                f"{name} cannot be imported: it needs {error.name}, which is not installed",
                where=spec,
                remedy=pip or f"install {error.name} where convfc is",
            ) from error
        raise FactoryError(
            f"no module {name}",
            where=spec,
            expected="a module that Python can import",
            got=f"no {error.name}",
            remedy=pip or "install it where convfc is, or name its file, as in ./nets.py:Net",
        ) from error
    except (Exception, SystemExit) as error:  # whatever a user's file raises; some end the program
        remedy = f"see it all with python {name if _is_path(name) else f'-m {name}'}"
        if isinstance(error, ImportError) and "relative import" in str(error):
            remedy = "name it by its package, as in package.nets:Net, from the folder it is in"
        trace = traceback.extract_tb(error.__traceback__)
        lines = [f"line {at.lineno} of {at.filename}" for at in trace if at.name == "<module>"]
        raise FactoryError(
            f"{name} cannot be imported, {type(error).__name__}: {' '.join(str(error).split())}",
            where=spec,
            got=lines[-1] if lines else None,
            remedy=remedy,
        ) from error


def _file(spec: str, path: pathlib.Path) -> Any:
    """Import a file by its path, as a module of its own name if no other has it."""
    if path.suffix != ".py" or not path.is_file():
        there = (each.name for each in path.absolute().parent.glob("*.py"))
        raise FactoryError(
            f"no Python file {path}",
            where=spec,
            expected=_similar(f"{path.stem}.py", there, most=1) or "a file that ends in .py",
            remedy="give its path from this folder, as in ./nets.py:Net",
        )
    place = str(path.resolve())
    known = sys.modules.get(path.stem)
    name = path.stem if known is None or getattr(known, "__file__", None) == place else place
    if name not in sys.modules:
        found = importlib.util.spec_from_file_location(name, place)
        assert found is not None  # noqa: S101 (it ends in .py)
        assert found.loader is not None  # noqa: S101
        sys.modules[name] = importlib.util.module_from_spec(found)
        try:
            found.loader.exec_module(sys.modules[name])
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _similar(name: str, known: Iterable[str], most: int = 3) -> str | None:
    """Return which of the names that are known are like one that is not."""
    similar = difflib.get_close_matches(name, list(known), n=most)
    return f"one like {', '.join(similar)}" if similar else None


def _check_arguments(spec: str, factory: Any, arguments: Mapping[str, Any]) -> None:
    """Raise if a factory cannot be called with these arguments, before it is called."""
    try:
        signature = inspect.signature(factory)
    except ValueError:  # of some functions in C it is not known
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise FactoryError(
            f"it cannot be called with these arguments: {error}",
            where=spec,
            expected=str(signature),
            got=", ".join(f"{name}={value!r}" for name, value in arguments.items()) or "none",
            remedy="give them by name, as in --arg num_classes=10",
        ) from error
