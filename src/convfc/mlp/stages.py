"""A simplified network in a certificate: stage by stage, since its layers are products of layers.

The first network is read again in float64. What is made of that has to be the same layers as the
second network, with the same numbers once they are rounded to its dtype. And the two are compared
stage by stage. A stage ends where the FC layers give a value that the first network computes, too:
in front of an activation, or at the output. Each is given the first network's own values, so that
errors do not reach the next. In float64 the second network is the one that was made again.

Both sides are sums of products of the same numbers, multiplied in another order. With B the product
``|A_k| ... |A_1| |x|`` of absolute values (offsets included, layer by layer as the first network
has them), each is within ``gamma_n B`` of the exact value (Higham, *Accuracy and Stability of
Numerical Algorithms*, chapter 3), n being the longest chain of roundings. ReLU adds no error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import array_api_compat
import numpy as np
import numpy.typing as npt

from convfc.arrays import Array, as_numpy
from convfc.certificate import ExactTest, LayerCertificate, NetworkCertificate
from convfc.comparing import describe, dtype_name, not_finite, wide, words
from convfc.errors import UnsupportedModel
from convfc.measure import bounded
from convfc.mlp.simplified import Programs, record_of
from convfc.mlp.values import Affine, Input, Value, is_identity, sources, topological
from convfc.networks import Networks, Pairs, compare_networks

_NO_INTEGERS = "the weights of several layers are multiplied, with normalisation among them"
_NOTE = (
    "the simplified network's layers are products of layers: compared are the outputs of its "
    "stages, each on the first network's own values, and its numbers with those that it gets when "
    "it is made again from the first network {how}; there is no test of gradients or integers"
)
_IN_DOUBLE = "in float64, which is the one that the network's line compares in float64"
_OWN_DTYPE = "in its own dtype, since that one cannot run in float64"


@dataclass(frozen=True, eq=False)
class Again:
    """What a room makes of the first network once more, and both networks' layers and values."""

    programs: Programs
    network: Any
    """The simplified network, in float64 if `double`."""
    differences: Iterable[str]
    """What the second network has other than this one, in words."""
    sides: Callable[[], Iterable[Side]]
    """The values in the networks' own dtype and, where that is another one, in float64."""
    fc: str
    """What the framework calls an FC layer."""
    calls: str
    """What a signature holds, in words."""
    double: bool = True


def certified_whole(
    before: Any, after: Any, run: Networks, made_again: Callable[[Any, Any], Again]
) -> tuple[list[LayerCertificate], NetworkCertificate] | None:
    """Compare a network and what it was simplified to, in either order; None of two others."""
    backwards = record_of(before) is not None
    if backwards is (record_of(after) is not None):
        return None
    if backwards:
        before, after = after, before
    ours = run(before)
    layers: list[LayerCertificate] = []
    errors: list[str] = []
    exact, double = after, True
    try:
        again = made_again(before, after)
        exact, double = again.network, again.double
        run.shared |= {id(exact), id(after)}
        errors += again.differences
        layers = list(_stages(again, after))
    except Exception as error:
        errors.append(f"it cannot be made again; expected a network, got {words(error)}")
    network = compare_networks(before, after, ours, Pairs(), run, again=(exact, errors))
    note = _NOTE.format(how=_IN_DOUBLE if double else _OWN_DTYPE)
    notes = (note, *(("compared in the other direction",) if backwards else ()))
    return layers, replace(network, notes=(*network.notes, *notes))


def another(expected: str) -> UnsupportedModel:
    """Return the error of a first network that is not the one that was simplified."""
    return UnsupportedModel(
        "the simplified network was made of another one",
        where="before",
        expected=expected,
        remedy="give the network that was simplified, or a copy with other numbers",
    )


def _stages(again: Again, after: Any) -> Iterator[LayerCertificate]:
    """Yield the stages, by the layer or call of the first network at whose output they end."""
    program, record = again.programs.original, record_of(after)
    known = record and (record.signature, record.shape)
    if (program.signature, program.input_shape) != known:
        raise another(f"{again.calls}, on the same shape of input")
    own, *others = again.sides()
    for value in topological(again.programs.final.output):
        if not isinstance(value, Affine) or (target := own.target(value)) is None:
            continue
        expected, origins = target
        used: dict[Value, None] = {}
        layers: dict[str, None] = {}
        pairs = [(expected, own.computed(value, used, layers))]
        for side in others:
            known_there = side.target(value)
            assert known_there is not None, "as in the other dtype"  # noqa: S101
            pairs.append((known_there[0], side.computed(value, {}, {})))
        stops = {raw for stop in used for raw in own.origins(stop)}
        sums = [own.magnitude(raw, stops) for raw in origins]
        magnitude = np.concatenate([b for b, _ in sums], axis=1)
        # One more: in float64, the magnitude is that of values that were rounded to another dtype.
        terms = 1 + max(_terms(value, used), *(n for _, n in sums))
        errors = [
            f"its output; expected {describe(before)}, got {describe(after)}"
            for before, after in pairs
            if describe(before) != describe(after)
        ]
        unbounded = not_finite("input, or a weight,", magnitude, "give finite ones of both")
        errors += [unbounded] if unbounded else []
        xp, device = array_api_compat.array_namespace(expected), array_api_compat.device(expected)
        bound = xp.asarray(magnitude, device=device), terms
        compared = [
            {"output": bounded("output", *pair, bound, (pair[0].dtype, pair[0].dtype))}
            for pair in (() if errors else pairs)
        ]
        ends = dict.fromkeys([*layers][i] for i in (0, -1) if layers)
        yield LayerCertificate(
            name=program.places[origins[0]],
            forms=("stage", f"{again.fc} " + " to ".join(ends) if ends else "stage"),
            dtype=dtype_name(expected.dtype),
            own=next(iter(compared), {}),
            float64=compared[-1] if compared and again.double else {},
            exact=ExactTest(why_not=_NO_INTEGERS),
            errors=tuple(dict.fromkeys(errors)),
        )


class Side:
    """The values of both networks in one dtype: what one run had, and what layers make of it."""

    def __init__(
        self,
        programs: Programs,
        tensors: Mapping[Value, Array],
        parts: Mapping[Value, Mapping[Value | None, str]],
        layers: Mapping[str, Callable[[Array], Array]],
    ) -> None:
        """``tensors`` are the first network's; of the second, ``parts`` names the layers.

        ``parts`` has for each value, by the values that it is made of, the names between spaces;
        those of an activation stand under None.
        """
        self.programs, self.parts, self.layers = programs, parts, layers
        self.before = programs.merged.before
        self.raw = {value: t.reshape(len(t), -1) for value, t in tensors.items()}
        self.real = {
            value: known
            for value in topological(programs.final.output)
            if (known := self._known(value)) is not None
        }

    def _known(self, value: Value) -> Array | None:
        """Return what a value of the simplified network is in the original one, if it is there."""
        if value not in self.programs.states:
            raw = self.before.get(value)
            return None if raw is None else self.raw.get(raw)
        pieces = []
        for part, where in self.programs.states[value].items():
            known = self.raw.get(self.before[part])
            if known is None:
                return None
            pieces += [_positive(known), _positive(-known)] if where.pair else [known]
        return _joined(pieces)

    def origins(self, value: Value) -> list[Value]:
        """Return the values of the original network that a value holds."""
        held = self.programs.states.get(value, {value: None})
        return [self.before[part] for part in held]

    def target(self, value: Affine) -> tuple[Array, list[Value]] | None:
        """Return what an affine value should be, and the values that it holds."""
        states, final = self.programs.states, self.programs.final
        if not states:
            raw = self.before.get(value)
            known = None if raw is None else self.raw.get(raw)
            return None if raw is None or known is None else (known, [raw])
        if value is final.output:
            raw = self.before[self.programs.merged.program.output]
            return self.raw[raw], [raw]
        state = next(s for s in states if sources(s) == [value])
        pieces: list[Array] = []
        origins: list[Value] = []
        (state_before,) = value.terms
        earlier = states[state_before]
        for part, where in states[state].items():
            kept = part in earlier or where.pair or not sources(part) or isinstance(part, Affine)
            origin = self.before[part if kept else sources(part)[0]]
            known = self.raw.get(origin)
            if known is None:
                return None
            pieces += [known, -known] if where.pair else [known]
            origins += [origin] * (1 + where.pair)
        return _joined(pieces), origins

    def computed(self, value: Value, used: dict[Value, None], layers: dict[str, None]) -> Array:
        """Compute a value by the simplified network's layers, from values of the original.

        Noted are the values that it begins with, and the names of FC layers.
        """
        parts = self.parts.get(value, {})
        if not isinstance(value, Affine):
            return self._through(parts[None], self._source(sources(value)[0], used, layers), {})
        total: Array | None = None
        for source in sorted(value.terms, key=lambda s: is_identity(value.terms[s])):
            term = self._source(source, used, layers)
            if source in parts:
                term = self._through(parts[source], term, layers)
            total = term if total is None else total + term
        if total is None:  # a constant, computed from the input
            start = self.programs.final.input
            total = self._through(parts[start], self._source(start, used, layers), layers)
        return total

    def _source(self, value: Value, used: dict[Value, None], layers: dict[str, None]) -> Array:
        if value in self.real:
            used[value] = None
            return self.real[value]
        return self.computed(value, used, layers)

    def _through(self, names: str, x: Array, layers: dict[str, None]) -> Array:
        for name in names.split():
            if name not in self.layers:
                raise UnsupportedModel(
                    f"its parts are not those that it was made with: it has no {name}",
                    where="after",
                    remedy="verify it before a tool changes its parts",
                )
            layers[name] = None
            x = self.layers[name](x)
        return x

    def magnitude(self, raw: Value, stops: set[Value]) -> tuple[npt.NDArray[Any], int]:
        """Return B of a value of the original network, shape (n, size), and its roundings."""
        found: dict[Value, tuple[npt.NDArray[Any], int]] = {}
        batch = len(next(iter(self.raw.values())))
        for value in topological(raw, stops):
            if value in stops or isinstance(value, Input):
                found[value] = np.abs(as_numpy(wide(self.raw[value]))), 0
            elif isinstance(value, Affine):
                total = np.tile(value.offset_bound, (batch, 1))
                for source, matrix in value.terms.items():
                    total = total + (abs(matrix) @ found[source][0].T).T
                longest = max((found[source][1] for source in value.terms), default=0)
                found[value] = total, longest + _longest_sum(value) + value.roundings
            else:
                found[value] = found[sources(value)[0]]
        return found[raw]


def _positive(t: Array) -> Array:
    xp = array_api_compat.array_namespace(t)
    return xp.maximum(t, xp.zeros_like(t))


def _joined(pieces: list[Array]) -> Array:
    return array_api_compat.array_namespace(*pieces).concat(pieces, axis=1)


def _terms(value: Value, used: Mapping[Value, None]) -> int:
    """Return how many roundings the simplified network's value has, at most."""
    found: dict[Value, int] = {}
    for one in topological(value, used):
        if one in used:
            found[one] = 0
        else:
            below = max((found[source] for source in sources(one)), default=0)
            # Each entry has been rounded to the dtype, on top of its rounding in float64.
            found[one] = below + (_longest_sum(one) + 2 if isinstance(one, Affine) else 0)
    return found[value]


def _longest_sum(value: Affine) -> int:
    """Return the most terms that an element is the sum of, its offset included."""
    counts = np.zeros(value.size, np.int64)
    for matrix in value.terms.values():
        counts += np.diff(matrix.indptr)
    return int(counts.max(initial=0)) + bool(value.offset_bound.any())
