"""Values as modules: ``nn.Linear``, ``nn.ReLU`` and what is kept, in a sequence or a graph."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor, fx, nn

from convfc.frameworks.torch.forms.children import flatten_of, plain_linear
from convfc.frameworks.torch.simplification.values import (
    Affine,
    Input,
    Program,
    Relu,
    Value,
    is_identity,
    sources,
    topological,
)
from convfc.operators.estimate import MatrixEstimate, check_fits, check_together

_REMEDY = (
    "a smaller example; a part of the network only; or convfc.unroll with where= for some layers "
    "(the bytes are those of all FC layers together, the sizes those of the largest)"
)


@dataclass(frozen=True, eq=False)
class Emitted:
    """A module, and which of its parts compute which value."""

    module: nn.Module
    parts: Mapping[Value, Mapping[Value | None, str]]


def emit(
    program: Program, dtype: torch.dtype, device: torch.device, *, sparse_weights: bool = False
) -> Emitted:
    """Build the module of a program."""
    build = _Build(dtype, device, sparse_weights)
    return _sequential(program, build) if is_chain(program) else _graph(program, build)


def is_chain(program: Program) -> bool:
    """Say whether a program is one sequence: each value but the input is made of one other."""
    order = topological(program.output)
    return all(value is program.input or len(sources(value)) == 1 for value in order)


def check_memory(program: Program, dtype: torch.dtype, memory: float | None) -> None:
    """Refuse weights that do not fit into memory, before the first of them is made."""
    largest, total, nonzeros = (0, 0), 0, 0
    for value in topological(program.output):
        for matrix in value.terms.values() if isinstance(value, Affine) else ():
            if not is_identity(matrix):
                largest = max(largest, matrix.shape, key=np.prod)
                nonzeros += matrix.nnz
                total += dtype.itemsize * int(np.prod(matrix.shape))
    if total:
        check_fits(MatrixEstimate(largest, nonzeros, total), memory, _REMEDY)


def check_least(program: Program, dtype: torch.dtype, memory: float | None) -> None:
    """Refuse weights whose least size does not fit, before anything is multiplied.

    The input of an activation is never multiplied away, and its matrix has at least as many columns
    as the narrowest of the affine values that it may be multiplied with.
    """
    least: dict[Value, int] = {}
    mixing: set[Value] = set()  # no mere permutations, which another one may undo
    estimates: dict[str, MatrixEstimate] = {}
    order = topological(program.output)
    for value in order:
        if isinstance(value, Affine) and value.terms:
            least[value] = min(min(s.size, least.get(s, s.size)) for s in value.terms)
            if not mixing.isdisjoint(value.terms) or any(
                matrix.nnz > value.size for matrix in value.terms.values()
            ):
                mixing.add(value)
    kept = dict.fromkeys(s for v in order if not isinstance(v, Affine) for s in sources(v))
    for value in [*kept, program.output]:
        if value in mixing:
            entries = value.size * least[value]
            name = program.places.get(value, "max-pooling")
            name += f" ({len(estimates)})" * (name in estimates)
            shape = (value.size, least[value])
            estimates[name] = MatrixEstimate(shape, entries, dtype.itemsize * entries)
    what = "the FC layers, with at least as many numbers as these,"
    check_together(estimates, memory, what=what, remedy=_REMEDY)


@dataclass(frozen=True)
class _Build:
    """Makes the layers."""

    dtype: torch.dtype
    device: torch.device
    sparse_weights: bool

    def linear(self, matrix: Any, offset: npt.NDArray[Any] | None) -> nn.Linear:
        """Return the FC layer of a matrix and an offset."""
        if self.device.type == "meta":  # only the names of the parts are asked for
            weight = torch.empty(matrix.shape, dtype=self.dtype, device=self.device)
            return plain_linear(nn.Parameter(weight), None)
        values = torch.from_numpy(matrix.data).to(self.device, self.dtype)
        if self.sparse_weights:
            index = (self._index(matrix.indptr), self._index(matrix.indices))
            with warnings.catch_warnings():  # PyTorch's note that these are in beta
                warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")
                weight = torch.sparse_csr_tensor(
                    *index, values, matrix.shape, check_invariants=False
                )
        else:
            weight = torch.zeros(matrix.shape, dtype=self.dtype, device=self.device)
            rows, columns = map(self._index, sparse.coo_array(matrix).coords)
            weight[rows, columns] = values
        bias = None
        if offset is not None:
            bias = nn.Parameter(torch.from_numpy(offset).to(self.device, self.dtype))
        return plain_linear(nn.Parameter(weight), bias)

    def _index(self, index: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(index.astype(np.int64)).to(self.device)


def _sequential(program: Program, build: _Build) -> Emitted:
    modules = _beginning(program)
    parts: dict[Value, Mapping[Value | None, str]] = {}
    for value in topological(program.output):
        if isinstance(value, Affine):
            ((source, matrix),) = value.terms.items()
            parts[value] = {source: str(len(modules))}
            modules.append(build.linear(matrix, value.offset))
        elif not isinstance(value, Input):
            own = _own_modules(value)
            parts[value] = {None: " ".join(str(len(modules) + i) for i in range(len(own)))}
            modules += own
    return Emitted(nn.Sequential(*modules, *_ending(program)), parts)


def _graph(program: Program, build: _Build) -> Emitted:
    root, graph = nn.Module(), fx.Graph()
    parts: dict[Value, Mapping[Value | None, str]] = {}
    counts: dict[str, int] = {}

    def call(kind: str, module: nn.Module, source: fx.Node) -> tuple[fx.Node, str]:
        counts[kind] = counts.get(kind, 0) + 1
        name = f"{kind}{counts[kind]}"
        root.add_module(name, module)
        return graph.call_module(name, (source,)), name

    x = graph.placeholder("x")
    for module in _beginning(program):
        x, _ = call("flatten", module, x)
    nodes: dict[Value, fx.Node] = {program.input: x}
    for value in topological(program.output):
        if isinstance(value, Affine):
            node, bias = None, value.offset if value.offset.any() else None
            own: dict[Value | None, str] = {}
            identities_last = sorted(value.terms.items(), key=lambda term: is_identity(term[1]))
            for source, matrix in identities_last:
                term = nodes[source]
                if bias is not None or not is_identity(matrix):
                    linear = build.linear(matrix, bias)
                    term, own[source] = call("linear", linear, term)
                    bias = None
                node = term if node is None else graph.call_function(operator.add, (node, term))
            parts[value] = own
            if node is None:  # a constant
                zero = sparse.csr_array((value.size, program.input.size))
                node, own[program.input] = call("linear", build.linear(zero, value.offset), x)
            nodes[value] = node
        elif value is not program.input:
            nodes[value] = nodes[value.source]  # type: ignore[attr-defined]
            names = []
            for module in _own_modules(value):
                kind = type(module).__name__.lower()
                nodes[value], name = call(kind, module, nodes[value])
                names.append(name)
            parts[value] = {None: " ".join(names)}
    end = nodes[program.output]
    for module in _ending(program):
        end, _ = call(type(module).__name__.lower(), module, end)
    graph.output(end)
    return Emitted(fx.GraphModule(root, graph, "Simplified"), parts)


def _own_modules(value: Any) -> list[nn.Module]:
    return [nn.ReLU()] if isinstance(value, Relu) else list(value.modules)


def _beginning(program: Program) -> list[nn.Module]:
    """Return what flattens an input, and refuses one of another shape."""
    shape = program.input_shape
    return [flatten_of(shape, 1)] if len(shape) != 1 else []


def _ending(program: Program) -> list[nn.Module]:
    """Return what gives the output its shape."""
    shape = program.output_shape
    if len(shape) == 1:
        return []
    return [nn.Unflatten(1, shape)] if shape else [nn.Flatten(0)]
