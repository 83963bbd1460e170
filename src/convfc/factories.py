"""Loading what a command is told as ``module:factory``: ``torchvision.models:resnet18``."""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from convfc.errors import FactoryError

__all__ = ["make", "named_values"]


def make(spec: str, arguments: Mapping[str, Any] | None = None) -> Any:
    """Import a module and call a function or class in it, or return any other object in it.

    Parameters
    ----------
    spec : str
        ``module:factory``, the module by its name as in ``import``, not by a path. The factory may
        be inside another object: ``module:Builder.small``.
    arguments : mapping, optional
        Keyword arguments of the factory.

    Raises
    ------
    FactoryError
        If there is no such module or factory, or it does not take these arguments. What the
        factory itself raises is passed on.

    Examples
    --------
    >>> make("fractions:Fraction", {"numerator": 2, "denominator": 4})
    Fraction(1, 2)
    >>> make("fraction:Fraction")
    Traceback (most recent call last):
    ...
    convfc.errors.FactoryError: fraction:Fraction: there is no module fraction; expected ...
    """
    module_name, _, path = spec.partition(":")
    if not module_name or not path or not path.replace(".", "").isidentifier():
        raise FactoryError(
            "this is not a module and a factory",
            where=spec or "the model",
            expected="module:factory",
            got=repr(spec),
            remedy="write it as in torchvision.models:resnet18",
        )
    thing: Any = _module(spec, module_name)
    for name in path.split("."):
        thing = _attribute(spec, thing, name)
    arguments = dict(arguments or {})
    # A model is callable, too: calling it would be running it.
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


def named_values(texts: Iterable[str]) -> dict[str, Any]:
    """Read ``name=value`` texts; a value is a Python literal, or else the text itself.

    Raises
    ------
    FactoryError
        If a text has no ``=`` or its name is no name.

    Examples
    --------
    >>> named_values(["weights=None", "num_classes=10", "padding_mode=reflect"])
    {'weights': None, 'num_classes': 10, 'padding_mode': 'reflect'}
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise FactoryError(
                "this is not an argument",
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


def _module(spec: str, name: str) -> Any:
    """Import a module; a module that it needs itself is another matter than one that is not."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise FactoryError(
                f"{name} cannot be imported: it needs {error.name}, which is not installed",
                where=spec,
                remedy=f"install {error.name} where convfc is",
            ) from error
        raise FactoryError(
            f"there is no module {name}",
            where=spec,
            expected="a module that Python can import",
            got=f"no {error.name}",
            remedy="install it where convfc is; for a file in this folder, use python -m convfc",
        ) from error


def _attribute(spec: str, owner: Any, name: str) -> Any:
    """Return a part of a module or class, or say which ones have a similar name."""
    try:
        return getattr(owner, name)
    except AttributeError:
        known = [other for other in dir(owner) if not other.startswith("_")]
        similar = difflib.get_close_matches(name, known, n=3)
        where = getattr(owner, "__name__", type(owner).__name__)
        raise FactoryError(
            f"{where} has no {name}",
            where=spec,
            expected=f"one like {', '.join(similar)}" if similar else None,
            remedy="check the spelling; dir() lists what it has",
        ) from None


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
