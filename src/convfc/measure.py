"""One layer of a certificate: two callables on one input, against the bound and on integers.

Compared are outputs and, where there are any, gradients: in the layer's own dtype and in float64
against the a-priori bound, whose B is the layer on absolute values (see `convfc.rounding`), and on
integers, where nothing is rounded. What is compared, and how it is had with other numbers, says a
description (`Sides`), one for each framework and what is compared in it: two forms of a layer, a
morph's change. Arrays are the framework's own where `convfc.comparing` knows them, or NumPy's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import numpy as np

from convfc.arrays import Array, itemsize
from convfc.certificate import Comparison, ExactTest, LayerCertificate, WeightComparison
from convfc.comparing import (
    as_laid_out,
    cast_to,
    compare,
    describe,
    dtype_name,
    integers_of,
    is_complex,
    is_floating,
    normal,
    not_finite,
    overflows,
    same_numbers,
    strides_of,
    wide,
    wide_name,
    words,
)
from convfc.rounding import exact_limit, rounding_bound

LARGEST = 256
"""The largest integer of the test on integers, which every floating dtype holds."""

_FIRST, _SECOND = "the first layer", "the second layer"

Numbers: TypeAlias = Callable[[Array], Array]
"""Makes other numbers of a tensor's: in another dtype, integers, absolute values."""
Sums: TypeAlias = Mapping[str, tuple[Array, int]]
"""Of each quantity the magnitude B, in float64, and n: of how many terms its longest sum is."""
_Result = TypeVar("_Result")


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer: its input, and what else it was given."""

    x: Array
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    number: int = 0

    def __call__(self, layer: Callable[..., Array], x: Array) -> Array:
        """Call a layer on this input or another, with what else it was given."""
        return layer(x, *self.args, **self.kwargs)


@dataclass(frozen=True, eq=False)
class Run:
    """What one side computed; its gradients, by name, are asked for with that of the output."""

    output: Array
    gradients: Callable[[Array], dict[str, Array]] | None = None


Side: TypeAlias = Callable[[Array], Run]
"""The layer before, or what stands there after; both are called with the input of the first."""


class Sides(ABC):
    """What is to be the same function, on one call; `measure` asks for the two sides in turn."""

    name: str
    forms: tuple[str, str]
    call: Call
    weights: tuple[WeightComparison, ...] = ()
    errors: list[str]
    """What is known to differ, before anything is run."""
    notes: tuple[str, ...] = ()
    plain: bool = True
    """Whether all weights are known: in float64 theirs is the bound of float64."""
    remade: bool = False
    """Whether the second side in other numbers is made of the first, and not of its own."""
    compares_strides: bool = False
    why_no_integers: str = ""
    failing: str = "{} fails; expected an output"

    @abstractmethod
    def made(self, numbers: Numbers | None) -> tuple[Side, Side]:
        """Return both sides, with other numbers if some are given."""

    @abstractmethod
    def parameters(self) -> Iterable[tuple[str, Array]]:
        """Return the numbers of both sides, by name: bounds are made of them."""

    @abstractmethod
    def sums(self, x: Array, dy: Array | None) -> Sums:
        """Return B and n of the sides that were last made; nothing where theory knows none."""

    @abstractmethod
    def integers(self, longest: int, limit: float) -> Iterable[int]:
        """Return how large integers may be, so that sums of so many terms may be within a limit."""

    @abstractmethod
    def on_integers(self, numbers: Numbers, x: Array, limit: float) -> tuple[Side, Side] | None:
        """Return both sides on integers; None if their sums may not be within the limit."""

    @abstractmethod
    def matrices(self, y: Array) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of M and of K, if there are any, from the output."""


def measure(sides: Sides, *, seed: int, notes: tuple[str, ...] = ()) -> LayerCertificate:
    """Compare two sides on one input; if one cannot be run, the certificate says so.

    ``seed`` is that of the gradient of the output, and of the integers.
    """
    return _Measurement(sides, seed, notes).certificate()


def bounded(
    quantity: str,
    ours: Array,
    theirs: Array,
    sums: tuple[Array | None, int],
    dtypes: tuple[Any, Any],
) -> Comparison:
    """Compare two tensors of one shape with the bound of B and n, if there is one.

    The dtypes are the one they were computed in, and the one whose rounding they have.
    """
    (magnitude, terms), (dtype, rounded) = sums, dtypes
    bound = None
    if magnitude is not None and not overflows(magnitude, dtype):
        bound = rounding_bound(magnitude, terms, dtype_name(rounded))
    return Comparison(quantity, dtype_name(dtype), terms, **compare(ours, theirs, bound))


class _Measurement:
    """Two sides on one input."""

    def __init__(self, sides: Sides, seed: int, notes: tuple[str, ...]) -> None:
        self.sides, self.x = sides, sides.call.x
        self.generator = np.random.default_rng(seed)
        self.dy: Array | None = None
        self.errors: list[str] = []
        self.notes = list(notes)

    def certificate(self) -> LayerCertificate:
        """Run everything, as long as the two are comparable at all."""
        sides, x = self.sides, self.x
        own: dict[str, Comparison] = {}
        double: dict[str, Comparison] = {}
        exact = ExactTest(why_not="not run")
        found = self._results(self._attempt(_FIRST, sides.made, None), x, self._drawn)
        if len(found) > 1 and self._finite():
            sums = sides.sums(x, self.dy)
            own = double = self._compared(found, x.dtype, sums)
            if is_floating(x) and (sides.remade or wide_name(x.dtype) != dtype_name(x.dtype)):
                double = self._in_double(sums)
            if not self.errors:
                exact = self._exact(sums)
        m, k = sides.matrices(found[0]["output"]) if found else ((), ())
        return LayerCertificate(
            name=sides.name,
            forms=sides.forms,
            patch_matrix=m,
            filter_matrix=k,
            dtype=dtype_name(x.dtype),
            call=sides.call.number,
            own=own,
            float64=double,
            weights=sides.weights,
            exact=exact,
            errors=tuple(dict.fromkeys((*sides.errors, *self.errors))),
            notes=tuple(dict.fromkeys((*self.notes, *sides.notes))),
        )

    def _results(
        self,
        made: tuple[Side, Side] | None,
        x: Array,
        gradient: Callable[[Array], Array],
        *,
        strict: bool = True,
    ) -> list[dict[str, Array]]:
        """Return all quantities of one side after the other, until one of them fails."""
        found: list[dict[str, Array]] = []
        for which, side in zip((_FIRST, _SECOND), made or (), strict=False):
            run = self._attempt(which, side, x)
            if run is None:
                break
            if found and strict and not self._comparable(found[0]["output"], run.output):
                break
            more: dict[str, Array] | None = {}
            if run.gradients is not None:
                dy = gradient(run.output)
                more = self._attempt(f"the gradient of {which}", run.gradients, dy)
            if more is None:
                break
            found.append({"output": run.output, **more})
        return found

    def _attempt(self, doing: str, function: Callable[..., _Result], *args: Any) -> _Result | None:
        """Run a layer that may be anything: what it raises is a finding."""
        try:
            return function(*args)
        except Exception as error:
            self.errors.append(f"{self.sides.failing.format(doing)}, got {words(error)}")
            return None

    def _comparable(self, ours: Array, theirs: Array) -> bool:
        """Say whether the second side gives an output of the first one's shape and dtype."""
        if describe(theirs) != describe(ours):
            self.errors.append(f"its output; expected {describe(ours)}, got {describe(theirs)}")
            return False
        if self.sides.compares_strides and strides_of(theirs) != strides_of(ours):
            strides = [t.stride() for t in (ours, theirs)]
            self.notes.append(f"strides of its output: {strides[0]}, then {strides[1]}")
        return True

    def _finite(self) -> bool:
        """Say whether all that the bounds are made of is finite."""
        found = not_finite("input", self.x)
        for name, parameter in self.sides.parameters():
            found = found or not_finite(name, parameter, "verify it with finite weights")
        self.errors += [found] if found else []
        return not found

    def _drawn(self, y: Array) -> Array:
        """Return the gradient of the output, drawn when it is first asked for."""
        if self.dy is None:
            self.dy = as_laid_out(normal(y, self.generator), y, dtype_name(y.dtype))
        return self.dy

    def _in_double(self, sums: Sums) -> dict[str, Comparison]:
        """Compare in float64; what a tool has put into a layer may have none."""
        sides, x, known = self.sides, wide(self.x), len(self.errors)
        made = self._attempt(_FIRST, sides.made, wide)
        found = self._results(made, x, lambda y: wide(self._drawn(y)), strict=sides.plain)
        if len(found) > 1:
            return self._compared(found, x.dtype, sides.sums(x, None) if sides.remade else sums)
        if not sides.plain:
            self.notes += self.errors[known:]
            del self.errors[known:]
        return {}

    def _compared(
        self, found: list[dict[str, Array]], dtype: Any, sums: Sums
    ) -> dict[str, Comparison]:
        """Compare all quantities in one dtype."""
        ours, theirs = found
        if ("input" in ours) != ("input" in theirs):
            sides = ["one" if "input" in side else "none" for side in found]
            self.errors.append(f"gradient of the input; expected {sides[0]}, got {sides[1]}")
        dtypes = dtype, dtype if self.sides.plain else self.x.dtype
        return {
            name: bounded(name, value, theirs[name], sums.get(name, (None, 0)), dtypes)
            for name, value in ours.items()  # a weight or bias of another kind is an error already
            if name in theirs and theirs[name].shape == value.shape
        }

    def _exact(self, sums: Sums) -> ExactTest:
        """Compare on integers, in the narrowest dtype in which their sums are exact."""
        sides = self.sides
        drawn = [normal(t, self.generator) for t in (self.x, self.dy) if t is not None]
        longest = max([1, *(terms for _, terms in sums.values())])
        for dtype in () if sides.why_no_integers else _widening(self.x.dtype):
            # The absolute value of a complex integer is sqrt(2) times as large as its parts.
            limit = exact_limit(dtype) / (1 + is_complex(dtype))
            for largest in sides.integers(longest, limit):
                test = self._on_integers(drawn, dtype, largest, limit)
                if test is not None:
                    return test
        why_not = sides.why_no_integers or "its sums are too long to be exact in float64"
        return ExactTest(why_not=why_not)

    def _on_integers(
        self, drawn: list[Array], dtype: str, largest: int, limit: float
    ) -> ExactTest | None:
        """Compare on integers of one size; None if their sums may not be exact."""

        def numbers(t: Array) -> Array:
            drawn = integers_of(t, largest)
            whole = not is_floating(self.x)  # beyond its range an integer starts over
            return cast_to(cast_to(drawn, "int64") if whole else drawn, dtype)

        x = as_laid_out(numbers(drawn[0]), self.x, dtype)
        made = self._attempt(_FIRST, self.sides.on_integers, numbers, x, limit)
        if made is None:
            return ExactTest(why_not="not run") if self.errors else None
        found = self._results(made, x, lambda y: as_laid_out(numbers(drawn[1]), y, dtype))
        if len(found) < 2:
            return ExactTest(why_not="not run")
        ours, theirs = found
        other = (
            name
            for name, value in ours.items()
            if name not in theirs or not same_numbers(value, theirs[name])
        )
        return ExactTest(dtype, tuple(other))


def _widening(dtype: Any) -> list[str]:
    """Return the names of a dtype and of the wider ones of its kind."""
    kinds = ("complex64", "complex128") if is_complex(dtype) else ("float32", "float64")
    wider = [kind for kind in kinds if itemsize(kind) > itemsize(dtype)]
    return [dtype_name(dtype), *wider]
