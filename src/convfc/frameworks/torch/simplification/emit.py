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
from convfc.mlp.values import (
    Affine,
    Input,
    Program,
    Relu,
    Value,
    is_chain,
    is_identity,
    topological,
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
