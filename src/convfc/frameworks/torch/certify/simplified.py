"""A simplified network in a certificate: stage by stage, since its layers are products of layers.

The first network is read again in float64. What is made of that has to be the same modules as the
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

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from convfc.certificate import ExactTest, LayerCertificate, NetworkCertificate
from convfc.comparing import describe, dtype_name, not_finite, wide, words
from convfc.errors import ConvfcError, ShapeError, UnsupportedModel
from convfc.frameworks.torch.certify.networks import Runner
from convfc.frameworks.torch.certify.pairs import cast
from convfc.frameworks.torch.running import deep_copy
from convfc.frameworks.torch.simplification import Simplified, record_of
from convfc.frameworks.torch.simplification.emit import emit
from convfc.frameworks.torch.simplification.operations import numbers
from convfc.frameworks.torch.simplification.simplified import Programs, made_of, programs_of
from convfc.frameworks.torch.simplification.trace import Trace, trace
from convfc.frameworks.torch.simplification.unchanged import other_parts
from convfc.measure import bounded
from convfc.mlp.values import Affine, Input, Value, is_identity, sources
from convfc.mlp.values import topological as ordered
from convfc.networks import Pairs, compare_networks

_NO_INTEGERS = "the weights of several layers are multiplied, with normalisation among them"
_NOTE = (
    "the simplified network's layers are products of layers: compared are the outputs of its "
    "stages, each on the first network's own values, and its numbers with those that it gets when "
    "it is made again from the first network {how}; there is no test of gradients or integers"
)
_IN_DOUBLE = "in float64, which is the one that the network's line compares in float64"
_OWN_DTYPE = "in its own dtype, since that one cannot run in float64"


def simplified_record(before: nn.Module, after: nn.Module) -> Simplified | None:
    """Return the record of the second network, if it alone is a simplified one."""
    return None if record_of(before) is not None else record_of(after)


def certify_simplified(
    before: nn.Module, after: nn.Module, run: Runner, *, backwards: bool = False
) -> tuple[list[LayerCertificate], NetworkCertificate]:
    """Compare a network and what it was simplified to, maybe given the other way round."""
    record = record_of(after)
    assert record is not None, "asked before"  # noqa: S101
    ours = run(before)
    given = [*run.args, *run.kwargs.values()]
    x = given[0] if len(given) == 1 else None
    layers: list[LayerCertificate] = []
    errors: list[str] = []
    exact, double = after, True
    if not isinstance(x, Tensor):
        errors.append("its input; expected one tensor, which a simplified network takes, got more")
    else:
        first, example = cast(deep_copy(before), wide), wide(x)
        try:
            try:
                found = programs_of(first, (example,), record.options, numbers=True)
            except ShapeError:
                # It makes constants of its own dtype, which is said of the network.
                first, example, double = before, x, False
                found = programs_of(first, (example,), record.options, numbers=True)
            # Sparse, since its zeros would take most of the memory.
            exact = made_of(found, first, example, sparse_weights=True)
            run.shared |= {id(exact), id(after)}
            errors += other_parts(exact, after)
            layers = list(_stages(found, before, after, x, (first, exact) if double else None))
        except (ConvfcError, RuntimeError) as error:
            errors.append(f"it cannot be made again; expected a network, got {words(error)}")
    network = compare_networks(before, after, ours, Pairs(), run, again=(exact, errors))
    note = _NOTE.format(how=_IN_DOUBLE if double else _OWN_DTYPE)
    notes = (note, *(("compared in the other direction",) if backwards else ()))
    return layers, replace(network, notes=(*network.notes, *notes))


# Stages -------------------------------------------------------------------------------------------


def _stages(
    found: Programs,
    before: nn.Module,
    after: nn.Module,
    x: Tensor,
    exact: tuple[nn.Module, nn.Module] | None,
) -> Iterator[LayerCertificate]:
    """Yield the stages, by the layer or call of the first network at whose output they end."""
    program, record = found.original, record_of(after)
    if record is None or (program.signature, program.input_shape) != (
        record.signature,
        record.shape,
    ):
        raise _another("the same calls of PyTorch's functions, on the same shape of input")
    # By value, the names of the modules that compute it: on the meta device nothing is made.
    parts = emit(found.final, torch.float32, torch.device("meta")).parts
    own = _Side(found, _run(found, before, x), after, parts)
    double = None if exact is None else own
    if exact is not None and wide(x).dtype != x.dtype:
        double = _Side(found, _run(found, exact[0], wide(x)), exact[1], parts)
    final, places = found.final, program.places
    for value in ordered(final.output):
        if not isinstance(value, Affine) or (target := own.target(value)) is None:
            continue
        expected, origins = target
        used: dict[Value, None] = {}
        layers: dict[str, None] = {}
        pairs = [(expected, own.computed(value, used, layers))]
        if double is not None and double is not own:
            known = double.target(value)
            assert known is not None, "as in the other dtype"  # noqa: S101
            pairs.append((known[0], double.computed(value, {}, {})))
        stops = {raw for stop in used for raw in own.origins(stop)}
        sums = [own.magnitude(raw, stops) for raw in origins]
        magnitude = torch.from_numpy(np.concatenate([b for b, _ in sums], axis=1))
        # One more: in float64, the magnitude is that of values that were rounded to another dtype.
        terms = 1 + max(_terms(value, used), *(n for _, n in sums))
        errors = [
            f"its output; expected {describe(before)}, got {describe(after)}"
            for before, after in pairs
            if describe(before) != describe(after)
        ]
        unbounded = not_finite("input, or a weight,", magnitude, "give finite ones of both")
        errors += [unbounded] if unbounded else []
        bound = magnitude.to(expected.device), terms
        compared = [
            {"output": bounded("output", *pair, bound, (pair[0].dtype, pair[0].dtype))}
            for pair in (() if errors else pairs)
        ]
        ends = dict.fromkeys([*layers][i] for i in (0, -1) if layers)
        yield LayerCertificate(
            name=places[origins[0]],
            forms=("stage", "Linear " + " to ".join(ends) if ends else "stage"),
            dtype=dtype_name(x.dtype),
            own=next(iter(compared), {}),
            float64=compared[-1] if compared and double is not None else {},
            exact=ExactTest(why_not=_NO_INTEGERS),
            errors=tuple(dict.fromkeys(errors)),
        )


def _run(found: Programs, network: nn.Module, x: Tensor) -> Trace:
    """Return the run of a network on all of x: the one that was read, if it was on that."""
    if len(x) <= 2 and found.run.tensors[0].dtype == x.dtype:
        return found.run
    run = trace(network, x if len(x) > 1 else x[[0, 0]], numbers=True)
    if run.signature != found.original.signature:
        raise _another("the same calls of PyTorch's functions")
    return run


def _another(expected: str) -> UnsupportedModel:
    return UnsupportedModel(
        "the simplified network was made of another one",
        where="before",
        expected=expected,
        remedy="give the network that was simplified, or a copy with other numbers",
    )


class _Side:
    """The values of both networks in one dtype: what one run had, and what modules make of it."""

    def __init__(
        self,
        found: Programs,
        run: Trace,
        after: nn.Module,
        parts: Mapping[Value, Mapping[Value | None, str]],
    ) -> None:
        self.found, self.after, self.parts = found, after, parts
        tensors = found.original.tensors
        self.raw = {value: run.tensors[i].flatten(1) for value, i in tensors.items()}
        self.real = {
            value: known
            for value in ordered(found.final.output)
            if (known := self._known(value)) is not None
        }

    def _known(self, value: Value) -> Tensor | None:
        """Return what a value of the simplified network is in the original one, if it is there."""
        if value in self.found.states:
            pieces = []
            for part, where in self.found.states[value].items():
                known = self.raw.get(self.found.merged.before[part])
                if known is None:
                    return None
                pieces += [known.relu(), (-known).relu()] if where.pair else [known]
            return torch.cat(pieces, 1)
        raw = self.found.merged.before.get(value)
        return None if raw is None else self.raw.get(raw)

    def origins(self, value: Value) -> list[Value]:
        """Return the values of the original network that a value holds."""
        held = self.found.states.get(value, {value: None})
        return [self.found.merged.before[part] for part in held]

    def target(self, value: Affine) -> tuple[Tensor, list[Value]] | None:
        """Return what an affine value should be, and the values that it holds."""
        raw = self.found.merged.before.get(value)
        if not self.found.states:
            known = None if raw is None else self.raw.get(raw)
            return None if raw is None or known is None else (known, [raw])
        if value is self.found.final.output:
            raw = self.found.merged.before[self.found.merged.program.output]
            return self.raw[raw], [raw]
        state = next(s for s in self.found.states if sources(s) == [value])
        pieces: list[Tensor] = []
        origins: list[Value] = []
        (state_before,) = value.terms
        earlier = self.found.states[state_before]
        for part, where in self.found.states[state].items():
            kept = part in earlier or where.pair or not sources(part) or isinstance(part, Affine)
            origin = self.found.merged.before[part if kept else sources(part)[0]]
            known = self.raw.get(origin)
            if known is None:
                return None
            pieces += [known, -known] if where.pair else [known]
            origins += [origin] * (1 + where.pair)
        return torch.cat(pieces, 1), origins

    def computed(self, value: Value, used: dict[Value, None], layers: dict[str, None]) -> Tensor:
        """Compute a value by the simplified network's modules, from values of the original."""
        parts = self.parts.get(value, {})
        if not isinstance(value, Affine):
            return self._module(parts[None], self._source(sources(value)[0], used, layers), layers)
        total: Tensor | None = None
        for source in sorted(value.terms, key=lambda s: is_identity(value.terms[s])):
            term = self._source(source, used, layers)
            if source in parts:
                term = self._module(parts[source], term, layers)
            total = term if total is None else total + term
        if total is None:  # a constant, computed from the input
            start = self.found.final.input
            total = self._module(parts[start], self._source(start, used, layers), layers)
        return total

    def _source(self, value: Value, used: dict[Value, None], layers: dict[str, None]) -> Tensor:
        if value in self.real:
            used[value] = None
            return self.real[value]
        return self.computed(value, used, layers)

    def _module(self, names: str, x: Tensor, layers: dict[str, None]) -> Tensor:
        try:
            modules = [self.after.get_submodule(name) for name in names.split()]
        except AttributeError as error:
            raise UnsupportedModel(
                f"its parts are not those that it was made with: {error}",
                where="after",
                remedy="verify it before a tool changes its parts",
            ) from error
        for name, module in zip(names.split(), modules, strict=True):
            if isinstance(module, nn.Linear):
                layers[name] = None
            with torch.no_grad():
                x = module(x)
        return x

    def magnitude(self, raw: Value, stops: set[Value]) -> tuple[npt.NDArray[Any], int]:
        """Return B of a value of the original network, shape (n, size), and its roundings."""
        found: dict[Value, tuple[npt.NDArray[Any], int]] = {}
        batch = len(next(iter(self.raw.values())))
        for value in ordered(raw, stops):
            if value in stops or isinstance(value, Input):
                found[value] = np.abs(numbers(self.raw[value])), 0
            elif isinstance(value, Affine):
                total = np.tile(value.offset_bound, (batch, 1))
                for source, matrix in value.terms.items():
                    total = total + (abs(matrix) @ found[source][0].T).T
                longest = max((found[source][1] for source in value.terms), default=0)
                found[value] = total, longest + _longest_sum(value) + value.roundings
            else:
                found[value] = found[sources(value)[0]]
        return found[raw]


def _terms(value: Value, used: Mapping[Value, None]) -> int:
    """Return how many roundings the simplified network's value has, at most."""
    found: dict[Value, int] = {}
    for one in ordered(value, used):
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
