"""A simplified network in a certificate: stage by stage, since its layers are products of layers.

Nothing in it stands for one CONV layer. So the first network is read once, in float64, as it was
when it was simplified. What is made of that has to be the same modules as the second network, with
the same numbers once these are rounded to its dtype, and has to compute what the first network
computes. And the two networks are compared where both have the same value, stage by stage.

A stage ends where the FC layers give a value that the first network computes, too: in front of an
activation, or at the output. It begins at the values of that kind before it. The first network runs
once; each stage of the other network is given the first one's own values, so that errors of one
stage do not reach the next.

What rounding may do: both sides are sums of products of the same numbers, in another order of
multiplying. With B the product of moduli ``|A_k| ... |A_1| |x|`` (offsets included, layer by layer
as the first network has them), each of them is within ``gamma_n B`` of the exact value (Higham,
*Accuracy and Stability of Numerical Algorithms*, chapter 3), where n is the longest chain of
roundings. ReLU carries no error on that is larger than the one it is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from convfc.certificate import Comparison, ExactTest, LayerCertificate, NetworkCertificate
from convfc.errors import ConvfcError, ShapeError, UnsupportedModel
from convfc.frameworks.torch.certify.networks import Runner, compare_networks
from convfc.frameworks.torch.certify.pairs import Pairs, cast
from convfc.frameworks.torch.running import deep_copy
from convfc.frameworks.torch.simplify import Simplified, record_of
from convfc.frameworks.torch.simplify.emit import emit
from convfc.frameworks.torch.simplify.restore import other_parts, row_blocks
from convfc.frameworks.torch.simplify.simplified import Programs, made_of, programs_of
from convfc.frameworks.torch.simplify.trace import trace
from convfc.frameworks.torch.simplify.values import (
    Affine,
    Input,
    Value,
    is_identity,
    numbers,
    sources,
)
from convfc.frameworks.torch.simplify.values import topological as ordered
from convfc.frameworks.torch.tensors import (
    compare,
    describe,
    dtype_name,
    not_finite,
    overflows,
    wide,
    words,
)
from convfc.rounding import rounding_bound

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
    """Compare a network and what it was simplified to: stages, numbers, outputs.

    ``backwards`` says that they were given the other way round, and a note does so too.
    """
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
                found = programs_of(first, (example[:1],), record.options)
            except ShapeError:
                # It makes constants of its own dtype, which is said of the network.
                first, example, double = before, x, False
                found = programs_of(first, (example[:1],), record.options)
            layers, errors = _stage_certificates(found, (before, first), after, x)
            # Sparse, since its zeros would take most of the memory.
            exact = made_of(found, first, example, sparse_weights=True)
            run.shared |= {id(exact), id(after)}
            errors += other_parts(exact, after)
        except (ConvfcError, RuntimeError) as error:
            errors.append(f"it cannot be made again; expected a network, got {words(error)}")
    network = compare_networks(before, after, ours, Pairs(), run, again=(exact, errors))
    note = _NOTE.format(how=_IN_DOUBLE if double else _OWN_DTYPE)
    notes = (note, *(("compared in the other direction",) if backwards else ()))
    return layers, replace(network, notes=(*network.notes, *notes))


def _stage_certificates(
    found: Programs, before: tuple[nn.Module, nn.Module], after: nn.Module, x: Tensor
) -> tuple[list[LayerCertificate], list[str]]:
    """Return a certificate per stage, and errors; the first network is given in float64, too."""
    dtype = x.dtype
    try:
        own = list(_stages(found, before[0], after, x))
        again: Sequence[Stage | None] = own
        if wide(x[:0]).dtype != dtype:
            again = [None] * len(own)
            if before[1] is not before[0]:
                again = list(_stages(found, before[1], after, wide(x)))
    except (ConvfcError, RuntimeError) as error:
        return [], [f"its stages fail; expected outputs, got {words(error)}"]
    pairs = zip(own, again, strict=True)
    return [_certificate(one, other, dtype) for one, other in pairs], []


def _certificate(own: Stage, double: Stage | None, dtype: torch.dtype) -> LayerCertificate:
    first, last = own.layers[:1], own.layers[1:][-1:]
    errors = [
        f"its output; expected {describe(stage.before)}, got {describe(stage.after)}"
        for stage in (own, double)
        if stage is not None and describe(stage.before) != describe(stage.after)
    ]
    unbounded = not_finite("input, or a weight,", own.magnitude, "give finite ones of both")
    errors += [unbounded] if unbounded else []
    return LayerCertificate(
        name=own.name,
        forms=("stage", "Linear " + " to ".join((*first, *last)) if first else "stage"),
        dtype=dtype_name(dtype),
        own={} if errors else {"output": _comparison(own, dtype)},
        float64={} if errors or double is None else {"output": _comparison(double, dtype)},
        exact=ExactTest(why_not=_NO_INTEGERS),
        errors=tuple(dict.fromkeys(errors)),
    )


def _comparison(stage: Stage, dtype: torch.dtype) -> Comparison:
    """Compare a stage; the bound is that of the dtype to which the weights were rounded."""
    bound = None
    if not overflows(stage.magnitude, dtype):
        bound = rounding_bound(stage.magnitude, stage.terms, dtype_name(dtype))
    bound = None if bound is None else bound.to(stage.before.device)
    result = compare(stage.before, stage.after, bound)
    return Comparison("output", dtype_name(stage.before.dtype), stage.terms, **result)


# Stages -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Stage:
    """One stage of two networks: values of shape (n, size), with B and n of the rounding bound."""

    # The layer or call of the first network at whose output the two are compared.
    name: str
    # The FC layers of the simplified network that compute it.
    layers: tuple[str, ...]
    before: Tensor
    after: Tensor
    magnitude: Tensor
    terms: int


def stages(before: nn.Module, after: nn.Module, x: Tensor) -> Iterator[Stage]:
    """Run a network and its simplified form, whose numbers may have changed, stage by stage.

    The network is run in evaluation mode, without hooks.
    """
    record = record_of(after)
    if record is None:
        raise UnsupportedModel(
            "it has no record of the network that it was",
            where="after",
            expected="what convfc.simplify returns",
            got=type(after).__name__,
        )
    yield from _stages(programs_of(before, (x[:1],), record.options), before, after, x)


def _stages(found: Programs, before: nn.Module, after: nn.Module, x: Tensor) -> Iterator[Stage]:
    record = record_of(after)
    program = found.original
    run = trace(before, x, numbers=True)
    if record is None or (program.signature, program.input_shape) != (
        record.signature,
        record.shape,
    ):
        raise _another("the same calls of PyTorch's functions, on the same shape of input")
    if run.signature != program.signature:
        raise _another("the same calls of PyTorch's functions")
    real = {value: run.tensors[i].flatten(1) for value, i in program.tensors.items()}
    yield from _Comparison(found, real, program.places, after).stages()


def _another(expected: str) -> UnsupportedModel:
    return UnsupportedModel(
        "the simplified network was made of another one",
        where="before",
        expected=expected,
        remedy="give the network that was simplified, or a copy with other numbers",
    )


class _Comparison:
    """The stages of one pair of networks."""

    def __init__(
        self,
        found: Programs,
        real: Mapping[Value, Tensor],
        places: Mapping[Value, str],
        after: nn.Module,
    ) -> None:
        self.found, self.raw, self.after, self.places = found, real, after, places
        self.after_dtype = next((p.dtype for p in after.parameters()), None)
        meta = torch.device("meta")
        self.parts = emit(found.final, torch.float32, meta).parts
        self.real = {
            value: known
            for value in ordered(found.final.output)
            if (known := self._known(value)) is not None
        }

    def stages(self) -> Iterator[Stage]:
        """Compare every affine value of the simplified network that the original one computes."""
        targets = [
            value
            for value in ordered(self.found.final.output)
            if isinstance(value, Affine) and self._target(value) is not None
        ]
        for value in targets:
            goal = self._target(value)
            assert goal is not None  # noqa: S101 (asked above)
            expected, origins, name = goal
            used: dict[Value, None] = {}
            layers: dict[str, None] = {}
            got = self._run(value, used, layers)
            stops = {raw for stop in used for raw in self._origins(stop)}
            sums = [self._magnitude(raw, stops) for raw in origins]
            magnitude = np.concatenate([b for b, _ in sums], axis=1)
            terms = max(self._terms(value, used), *(n for _, n in sums))
            yield Stage(name, tuple(layers), expected, got, torch.from_numpy(magnitude), terms)

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

    def _origins(self, value: Value) -> list[Value]:
        """Return the values of the original network that a value holds."""
        held = self.found.states.get(value, {value: None})
        return [self.found.merged.before[part] for part in held]

    def _target(self, value: Affine) -> tuple[Tensor, list[Value], str] | None:
        """Return what an affine value should be, the values that it holds, and the place."""
        raw = self.found.merged.before.get(value)
        if not self.found.states:
            known = None if raw is None else self.raw.get(raw)
            if raw is None or known is None:
                return None
            return known, [raw], self.places[raw]
        if value is self.found.final.output:
            raw = self.found.merged.before[self.found.merged.program.output]
            return self.raw[raw], [raw], self.places[raw]
        state = next(s for s in self.found.states if sources(s) == [value])
        pieces: list[Tensor] = []
        origins: list[Value] = []
        earlier = self._parts_before(value)
        for part, where in self.found.states[state].items():
            inner = part if part in earlier or where.pair or not sources(part) else None
            if inner is None:
                inner = part if isinstance(part, Affine) else sources(part)[0]
            origin = self.found.merged.before[inner]
            known = self.raw.get(origin)
            if known is None:
                return None
            pieces += [known, -known] if where.pair else [known]
            origins += [origin] * (1 + where.pair)
        return torch.cat(pieces, 1), origins, self.places[origins[0]]

    def _parts_before(self, value: Affine) -> set[Value]:
        """Return what the state that an affine value is made of holds."""
        (state,) = value.terms
        return set(self.found.states[state])

    def _run(self, value: Value, used: dict[Value, None], layers: dict[str, None]) -> Tensor:
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
        return self._run(value, used, layers)

    def _module(self, names: str, x: Tensor, layers: dict[str, None]) -> Tensor:
        try:
            modules = [self.after.get_submodule(name) for name in names.split()]
        except AttributeError as error:
            raise UnsupportedModel(
                f"its parts are not those that it was made with: {error}",
                where="after",
                remedy="verify it before a tool changes its parts",
            ) from error
        layers.update(
            dict.fromkeys(
                name
                for name, module in zip(names.split(), modules, strict=True)
                if isinstance(module, nn.Linear)
            )
        )
        for module in modules:
            with torch.no_grad():
                x = module(x) if x.dtype == self.after_dtype else _in_double(module, x)
        return x

    def _magnitude(self, raw: Value, stops: set[Value]) -> tuple[npt.NDArray[Any], int]:
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

    def _terms(self, value: Value, used: Mapping[Value, None]) -> int:
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


def _in_double(module: nn.Module, x: Tensor) -> Tensor:
    """Call a module in float64; no copy of its weight is made."""
    if type(module) is not nn.Linear:
        return cast(deep_copy(module), wide)(x)  # type: ignore[no-any-return]
    parts = []
    for first, last in row_blocks(module.weight):
        bias = None if module.bias is None else wide(module.bias[first:last])
        parts.append(functional.linear(x, wide(module.weight[first:last]), bias))
    return torch.cat(parts, 1)


def _longest_sum(value: Affine) -> int:
    """Return the most terms that an element is the sum of, its offset included."""
    counts = np.zeros(value.size, np.int64)
    for matrix in value.terms.values():
        counts += np.diff(matrix.indptr)
    return int(counts.max(initial=0)) + bool(value.offset_bound.any())
