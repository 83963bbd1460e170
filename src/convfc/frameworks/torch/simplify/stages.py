"""A network and what it was simplified to, side by side: each stage on the same real input.

A stage ends where the FC layers give a value that the original network computes, too: in front of
an activation, or at the output. It begins at the values of that kind before it. The original runs
once; each stage of the other network is given the original's own values, so that errors of one
stage do not reach the next.

What rounding may do: both sides are sums of products of the same numbers, in another order of
multiplying. With B the product of moduli ``|A_k| ... |A_1| |x|`` (offsets included, layer by layer
as the original network has them), each of them is within ``gamma_n B`` of the exact value (Higham,
*Accuracy and Stability of Numerical Algorithms*, chapter 3), where n is the longest chain of
roundings. ReLU carries no error on that is larger than the one it is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from convfc.errors import Refusal, UnsupportedModel
from convfc.frameworks.torch.graph import as_traced, trace
from convfc.frameworks.torch.running import evaluating
from convfc.frameworks.torch.simplify import calls
from convfc.frameworks.torch.simplify.emit import emit, runs
from convfc.frameworks.torch.simplify.ir import Affine, Input, Value, is_identity, sources
from convfc.frameworks.torch.simplify.ir import topological as ordered
from convfc.frameworks.torch.simplify.maps import numbers
from convfc.frameworks.torch.simplify.record import Plan, record_of
from convfc.frameworks.torch.simplify.running import run_nodes

__all__ = ["Stage", "stages"]


@dataclass(frozen=True, eq=False)
class Stage:
    """One stage of two networks.

    Attributes
    ----------
    name : str
        The layer or call of the original network at whose output the two are compared.
    layers : tuple of str
        The FC layers of the simplified network that compute it.
    before, after : Tensor, shape (n, size)
    magnitude : Tensor, shape (n, size)
        B, in float64.
    terms : int
        n of gamma_n.
    """

    name: str
    layers: tuple[str, ...]
    before: Tensor
    after: Tensor
    magnitude: Tensor
    terms: int


def stages(before: nn.Module, after: nn.Module, x: Tensor) -> Iterator[Stage]:
    """Run a network and its simplified form, stage by stage.

    Parameters
    ----------
    before : nn.Module
        The network, in evaluation mode or not: it is run in evaluation mode, without hooks.
    after : nn.Module
        What `simplify` made of it, its numbers changed or not.
    x : Tensor
        An input.

    Yields
    ------
    Stage

    Raises
    ------
    UnsupportedModel
        If the one was not made of the other.

    Examples
    --------
    >>> from convfc.frameworks.torch.simplify import simplify
    >>> cnn = nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU(), nn.AvgPool1d(3))
    >>> x = torch.tensor([[[1.0, 2.0, 4.0, 8.0, 16.0]]])
    >>> found = list(stages(cnn, simplify(cnn, (x,)), x))
    >>> [(stage.name, stage.layers, stage.terms) for stage in found]
    [('0', ('1',), 6), ('2', ('3',), 5)]
    """
    record = record_of(after)
    if record is None:
        raise UnsupportedModel(
            "it has no record of the network that it was",
            where="after",
            expected="what to_fc(model, form='unrolled', simplify=True) returns",
            got=type(after).__name__,
        )
    found = record.plan()
    real, places = _values(before, found, x)
    yield from _Comparison(found, real, places, after).stages()


def _values(
    model: nn.Module, found: Plan, x: Tensor
) -> tuple[dict[Value, Tensor], dict[Value, str]]:
    """Run the original network; return its values, flat, and the layers behind which they are."""
    model = as_traced(model)
    graph = trace(model, (x,))
    named = {} if isinstance(graph, Refusal) else {node.name: node for node in graph.nodes}
    values = {name: value for value, name in found.original.names.items()}
    if isinstance(graph, Refusal) or not values.keys() <= named.keys():
        raise _another(f"calls named {', '.join(list(values)[:3])} and so on")
    real: dict[Value, Tensor] = {}
    places: dict[Value, str] = {}
    with evaluating(model):
        for node, result, _ in run_nodes(model, graph, (x,)):
            value = values.get(node.name)
            if value is not None and isinstance(result, Tensor):
                if result.numel() != len(x) * value.size:
                    raise _another(f"{value.size} numbers of each example at {node.name}")
                real[value] = result.detach().reshape(len(x), -1).clone()
                places[value] = str(node.target) if node.op == "call_module" else calls.words(node)
    return real, places


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
        found: Plan,
        real: Mapping[Value, Tensor],
        places: Mapping[Value, str],
        after: nn.Module,
    ) -> None:
        self.found, self.raw, self.after, self.places = found, real, after, places
        meta = torch.device("meta")
        self.parts = emit(found.final, dtype=torch.float32, device=meta).parts
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
        with torch.no_grad():
            return runs(self.after, names, x)

    def _magnitude(self, raw: Value, stops: set[Value]) -> tuple[npt.NDArray[Any], int]:
        """Return B of a value of the original network, shape (n, size), and its roundings."""
        found: dict[Value, tuple[npt.NDArray[Any], int]] = {}
        batch = len(next(iter(self.raw.values())))
        for value in ordered(raw, stops):
            if value in stops or isinstance(value, Input):
                found[value] = np.abs(numbers(self.raw[value])), 0
            elif isinstance(value, Affine):
                total = np.tile(value.offset_modulus, (batch, 1))
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


def _longest_sum(value: Affine) -> int:
    """Return the most terms that an element is the sum of, its offset included."""
    counts = np.zeros(value.size, np.int64)
    for matrix in value.terms.values():
        counts += np.diff(matrix.indptr)
    return int(counts.max(initial=0)) + bool(value.offset_modulus.any())
