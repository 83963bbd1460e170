"""Two networks side by side: which layer stands for which, and what they compute as wholes.

The networks are walked together by the names of their parts. Where either of them has a CONV layer,
in whatever form, the walk stops and the place is a pair. What was not to change, parameters outside
the pairs, has to have the same bits; outputs are compared in their own dtype and in float64.
"""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import array_api_compat

from convfc.arrays import Array
from convfc.certificate import LayerCertificate, NetworkCertificate, OutputComparison
from convfc.comparing import (
    cast_to,
    compare,
    describe,
    dtype_name,
    is_complex,
    same_bits,
    strides_of,
    wide,
    words,
)
from convfc.errors import ShapeError
from convfc.measure import Call, Numbers, Sides
from convfc.rounding import UNIT_ROUNDOFF

_IN_DOUBLE = {"float64", "complex128"}


class Pair(Protocol):
    """A part of a network that is compared by itself, whenever it is called."""

    @property
    def called(self) -> Any:
        """The part of the first network."""

    @property
    def reshapes(self) -> bool:
        """Whether what comes out has other axes of one element, as of a head made a CONV layer."""

    def unreached(self, seed: int) -> list[LayerCertificate]:
        """Return its certificates if the network does not call it on this input."""

    def on(self, call: Call) -> Sequence[Sides]:
        """Return it on one input, for `measure`: as one or, by the convolutions in it, several."""


@dataclass
class Pairs:
    """What `find_pairs` found; ``places`` are the names of all parts that a pair covers."""

    pairs: list[Pair] = field(default_factory=list)
    places: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    unconverted: list[str] = field(default_factory=list)


class Parts(Protocol):
    """What says of which parts a model is made."""

    def form_of(self, part: Any) -> str | None:
        """Return the form in which a part is a CONV layer; None if it is none."""

    def children(self, part: Any) -> Mapping[str, Any]:
        """Return the parts of a part, by name."""

    def places(self, model: Any) -> Mapping[str, Any]:
        """Return every place that holds a part."""

    def pair(self, name: str, before: Any, after: Any) -> Pair | None:
        """Return a place to be compared; None if neither side can be read."""


def find_pairs(room: Parts, before: Any, after: Any) -> Pairs:
    """Walk two networks together and pair their CONV layers, whatever form they have.

    A place where both have a CONV layer that convfc does not know is ``unconverted``, one that only
    one network has is ``missing``.
    """
    found, seen = Pairs(), set()

    def walk(before: Any, after: Any, name: str) -> None:
        if room.form_of(before) or room.form_of(after):
            if (id(before), id(after)) not in seen:
                pair = room.pair(name, before, after)
                if pair is None:
                    found.unconverted.append(name)
                    return
                seen.add((id(before), id(after)))
                found.pairs.append(pair)
            found.places.add(name)
            return
        ours, theirs = room.children(before), room.children(after)
        for key in [*ours, *(key for key in theirs if key not in ours)]:
            place = f"{name}.{key}" if name else key
            if key in ours and key in theirs:
                walk(ours[key], theirs[key], place)
                continue
            alone = room.places(ours[key] if key in ours else theirs[key])
            found.missing.extend(
                ".".join(filter(None, (place, inner)))
                for inner, part in alone.items()
                if room.form_of(part)
            )

    walk(before, after, "")
    return found


class Networks(ABC):
    """Two networks that run on one input, on copies and each time from the same random numbers."""

    compares_strides = False
    shared: set[int]
    """Models that run in no other numbers than their own, by ``id``."""

    @abstractmethod
    def __call__(self, model: Any, numbers: Numbers | None = None) -> Any:
        """Return the output of a copy of one of them, perhaps in another dtype."""

    @abstractmethod
    def measure(
        self, model: Any, pairs: Sequence[Pair], seed: int
    ) -> tuple[Any, list[LayerCertificate]]:
        """Run a copy of a network once, and compare each call of a pair on what it received.

        Returned are the network's output, and the certificates, one per call; pairs that are not
        called are compared on random numbers.
        """

    @abstractmethod
    def leaves(self, output: Any) -> dict[str, Any]:
        """Return all parts of nested tuples, lists and mappings by their place in them."""

    @abstractmethod
    def dtypes(self, model: Any) -> set[str]:
        """Return the dtypes, of numbers that are not integers, of a model and of the input."""

    @abstractmethod
    def tensors(self, model: Any) -> Mapping[str, Array]:
        """Return parameters and buffers by name: that of a part, a dot, and their own."""

    def has_same(self, mine: Array, other: Array) -> None:  # noqa: B027 (most need no note)
        """Note that a parameter of the second network has the bits of one of the first."""

    @abstractmethod
    def undisturbed(self) -> contextlib.AbstractContextManager[None]:
        """Return the context in which networks are compared: nothing of it is left behind."""


def compare_networks(
    before: Any,
    after: Any,
    ours: Any,
    found: Pairs,
    run: Networks,
    *,
    again: tuple[Any, list[str]] | None = None,
) -> NetworkCertificate:
    """Compare the outputs of two networks, and their parameters and buffers outside the pairs.

    ``ours`` is what the first network returns. ``again`` is, for a second network whose weights are
    rounded products, the same one in float64, and what is known to differ between the two.
    """
    if again is None:
        errors, notes = _other_tensors(run, before, after, found.places)
        exact = after
    else:
        (exact, errors), notes = again, []
    dtypes = run.dtypes(before)
    first = run.leaves(ours)
    second = _tried(run, after, None, "the second network", errors)
    first64: dict[str, Any] | None = first
    if not dtypes <= _IN_DOUBLE:
        first64 = _tried(run, before, wide, "in float64, the first network", notes)
    second64 = second
    if first64 is None or second is None:
        second64 = None
    elif exact is not after or not run.dtypes(after) <= _IN_DOUBLE:
        second64 = _tried(run, exact, wide, "in float64, only the second network", errors)
    rounded: dict[str, Any] | None = first
    rounded_to = max(dtypes, key=lambda dtype: UNIT_ROUNDOFF.get(dtype, 0.0), default="float32")
    if dtypes <= _IN_DOUBLE:
        rounded_to = "float32"
        rounded = _tried(run, before, _narrow, "in float32, the first network", notes)
    reshaped = any(pair.reshapes for pair in found.pairs)
    outputs = []
    for path, value in first.items() if second is not None else ():
        other = _at(second, path)
        if not _is_array(value) or not _is_array(other):
            errors += _other_values(path, value, other)
            continue
        if describe(value) != describe(other):
            if not reshaped or _long_axes(value) != _long_axes(other):
                errors.append(f"output{path}; expected {describe(value)}, got {describe(other)}")
                continue
            notes.append(f"output{path} has another shape: {describe(value)}, {describe(other)}")
        elif run.compares_strides and strides_of(value) != strides_of(other):
            notes.append(f"output{path} has strides {value.stride()}, then {other.stride()}")
        difference = compare(value, other.reshape(value.shape), None)["difference"]
        size = _largest(value)
        outputs.append(
            OutputComparison(
                path,
                dtype_name(value.dtype),
                difference,
                difference / size if size else difference,
                _distance(_at(first64, path), _at(second64, path)),
                _distance(_at(first64, path), _at(rounded, path)),
                rounded_to,
            )
        )
    more = (second or first).keys() - first.keys()
    errors += [f"output{path}; expected none, got one" for path in sorted(more)]
    if not outputs and not errors:
        errors.append("expected tensors among the outputs, got none")
    return NetworkCertificate(tuple(outputs), tuple(errors), tuple(notes))


def _tried(
    run: Networks, model: Any, numbers: Numbers | None, who: str, findings: list[str]
) -> dict[str, Any] | None:
    """Return the outputs of a network; if it fails, that is a finding."""
    try:
        return run.leaves(run(model, numbers))
    except Exception as error:
        cause = error.__cause__ if isinstance(error, ShapeError) else None
        raised = cause if isinstance(cause, Exception) else error  # no remedy: the input is right
        findings.append(f"{who} fails; expected an output, got {words(raised)}")
        return None


def _is_array(value: Any) -> bool:
    return bool(array_api_compat.is_array_api_obj(value))


def _at(leaves: Mapping[str, Any] | None, path: str) -> Any:
    return None if leaves is None else leaves.get(path)


def _long_axes(value: Array) -> list[int]:
    return [n for n in value.shape if n != 1]


def _largest(value: Array) -> float:
    """Return the largest absolute value that is finite; 0 if there is none."""
    xp = array_api_compat.array_namespace(value)
    sizes = xp.abs(wide(value))
    return float(xp.max(xp.where(xp.isfinite(sizes), sizes, 0.0))) if 0 not in value.shape else 0.0


def _distance(ours: Any, theirs: Any) -> float | None:
    """Return the largest difference of two outputs; None if one of them is not there."""
    if not _is_array(ours) or not _is_array(theirs):
        return None
    if math.prod(ours.shape) != math.prod(theirs.shape):
        return None
    distance: float = compare(ours, theirs.reshape(ours.shape), None)["difference"]
    return distance


def _other_values(path: str, ours: Any, theirs: Any) -> list[str]:
    """Compare what is not an array, as far as it can be compared."""
    if type(ours) is not type(theirs):
        kinds = type(ours).__name__, type(theirs).__name__
        return [f"output{path}; expected {kinds[0]}, got {kinds[1]}"]
    if isinstance(ours, (str, int, float, type(None))):
        return [] if ours == theirs else [f"output{path}; expected {ours!r}, got {theirs!r}"]
    remedy = "register the class with torch.utils._pytree, or return a tuple or a dict"
    return [f"output{path} is a {type(ours).__name__}, whose tensors are not seen; {remedy}"]


def _other_tensors(
    run: Networks, before: Any, after: Any, places: set[str]
) -> tuple[list[str], list[str]]:
    """Compare all parameters and buffers that belong to no pair, bit by bit."""
    errors, notes = [], []
    ours, theirs = (_outside(run.tensors(model), places) for model in (before, after))
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        mine, other = ours.get(name), theirs.get(name)
        if mine is None or other is None or describe(mine) != describe(other):
            errors.append(f"{name}; expected {describe(mine)}, got {describe(other)}")
        elif not same_bits(mine, other):
            away = compare(mine, other, None)["difference"]
            errors.append(f"{name}; expected the same bits, got others, {away:.3g} away")
        elif run.compares_strides and strides_of(mine) != strides_of(other):
            notes.append(f"{name} has strides {mine.stride()}, then {other.stride()}")
        else:
            run.has_same(mine, other)
    return errors, notes


def _outside(tensors: Mapping[str, Array], places: set[str]) -> dict[str, Array]:
    """Return tensors by name, without those inside these places."""

    def outside(name: str) -> bool:
        parts = name.split(".")[:-1]
        return not any(".".join(parts[:depth]) in places for depth in range(len(parts) + 1))

    return {name: tensor for name, tensor in tensors.items() if outside(name)}


def _narrow(t: Array) -> Array:
    return cast_to(t, "complex64" if is_complex(t.dtype) else "float32")
