"""Reading the sizes that users give: integers, one per axis, (low, high) pairs, choices."""

from __future__ import annotations

import contextlib
import numbers
import operator
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias, get_args

import numpy as np

from convfc.errors import ArgumentError, GeometryError, MemoryBudgetError

Sizes: TypeAlias = tuple[int, ...]
PerAxis: TypeAlias = int | Sequence[int]
Padding: TypeAlias = int | Sequence[int] | Sequence[tuple[int, int]]


@contextlib.contextmanager
def geometry_errors() -> Iterator[None]:
    """Raise as a `GeometryError` what is wrong with numbers that describe a geometry."""
    try:
        yield
    except ArgumentError as error:
        raise GeometryError(str(error)) from None


def integer(name: str, value: object, *, least: int) -> int:
    """Return an integer of at least ``least``; True and 2.5 are refused."""
    try:
        if isinstance(value, bool):
            raise TypeError  # True is an int to Python, never a size to a user
        number = operator.index(value)  # type: ignore[arg-type]  # raises TypeError itself
    except TypeError:
        raise ArgumentError(
            "a size is not an integer",
            where=name,
            expected=f"an integer, {least} or more",
            got=repr(value),
            remedy="give a whole number, such as int(x)",
        ) from None
    if number < least:
        remedy = "crop the input" if name.startswith("padding") else f"use {least} or more"
        expected = f"{least} or more"
        raise ArgumentError(
            "a size is too small", where=name, expected=expected, got=number, remedy=remedy
        )
    return number


def budget(memory: float, *, remedy: str) -> int:
    """Return a number of bytes, 1 or more; an infinite one is the largest that there is."""
    if isinstance(memory, bool) or not isinstance(memory, numbers.Real) or not memory >= 1:
        raise MemoryBudgetError(
            "this is not an amount of memory",
            where="memory",
            expected="a number of bytes, 1 or more",
            got=repr(memory),
            remedy=remedy,
        )
    return int(min(memory, sys.maxsize))


def per_axis(name: str, value: PerAxis, ndim: int, *, least: int) -> Sizes:
    """Return one integer per axis; a single one serves every axis."""
    if not isinstance(value, Sequence):
        return (integer(name, value, least=least),) * ndim
    if isinstance(value, str) or len(value) != ndim:
        raise ArgumentError(
            f"the kernel has {ndim} spatial axes",
            where=name,
            expected=f"{ndim} numbers",
            got=repr(value),
            remedy="give one number per axis of kernel_size",
        )
    return tuple(integer(f"{name}[{axis}]", v, least=least) for axis, v in enumerate(value))


def flag(name: str, value: object) -> bool:
    """Return a bool, NumPy's included; nothing else is one."""
    if not isinstance(value, (bool, np.bool_)):
        raise ArgumentError(
            "this is a yes or a no",
            where=name,
            expected="True or False",
            got=repr(value),
            remedy="leave it out for False",
        )
    return bool(value)


def one_of(
    name: str,
    value: object,
    choices: Any,
    *,
    what: str = "no such choice",
    remedy: str | None = None,
) -> None:
    """Raise an ``ArgumentError`` unless a value is one of a `typing.Literal`, or of a sequence."""
    choices = get_args(choices) or choices
    if value not in choices:
        raise ArgumentError(
            what,
            where=name,
            expected=" or ".join(map(repr, choices)),
            got=repr(value),
            remedy=remedy,
        )


@geometry_errors()
def input_sizes(input_size: Sequence[int], ndim: int) -> Sizes:
    """Return the spatial size of an input: one integer per axis, of any sequence."""
    try:
        sizes: PerAxis = tuple(input_size)
    except TypeError:
        raise ArgumentError(
            "an input has one size per spatial axis",
            where="input_size",
            expected=f"{ndim} numbers",
            got=repr(input_size),
            remedy="give a tuple, such as (28, 28)",
        ) from None
    return per_axis("input_size", sizes, ndim, least=1)


def padding_pairs(padding: Padding, ndim: int) -> tuple[tuple[int, int], ...]:
    """Return one (low, high) per axis, from a number, one per axis, or the pairs themselves."""
    if isinstance(padding, str):
        raise ArgumentError(
            "padding inside convfc is always explicit",
            where="padding",
            expected="a number, one per axis, or one (low, high) per axis",
            got=repr(padding),
            remedy="use ConvGeometry.valid, .half, .full or .same(..., input_size=...)",
        )
    if isinstance(padding, Sequence) and any(isinstance(pair, Sequence) for pair in padding):
        if len(padding) != ndim or not all(
            isinstance(pair, Sequence) and len(pair) == 2 for pair in padding
        ):
            raise ArgumentError(
                f"the kernel has {ndim} spatial axes",
                where="padding",
                expected=f"{ndim} pairs (low, high)",
                got=repr(padding),
                remedy="give one pair per axis of kernel_size",
            )
        pairs: Any = enumerate(padding)
        sides = (per_axis(f"padding[{axis}]", pair, 2, least=0) for axis, pair in pairs)
        return tuple((low, high) for low, high in sides)
    sizes = per_axis("padding", padding, ndim, least=0)  # type: ignore[arg-type]
    return tuple((size, size) for size in sizes)
