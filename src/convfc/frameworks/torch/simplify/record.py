"""What a simplified network remembers: the network that it was, and how it was simplified."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, fx, nn

from convfc.errors import MemoryBudgetError
from convfc.frameworks.torch.held import check_held
from convfc.frameworks.torch.running import deep_copy
from convfc.frameworks.torch.simplify.carry import Part, carry
from convfc.frameworks.torch.simplify.emit import check_least, is_chain
from convfc.frameworks.torch.simplify.ir import Program, Value
from convfc.frameworks.torch.simplify.merge import Merged, merge
from convfc.frameworks.torch.simplify.reading import MaxPool, read

__all__ = [
    "ATTRIBUTE",
    "Branches",
    "Options",
    "Plan",
    "Simplified",
    "attach",
    "like",
    "plan",
    "record_of",
    "remember",
]

Branches: TypeAlias = Literal["add", "carry"]

ATTRIBUTE = "simplified"
_KEPT = "_user_preserved_attributes"  # in a GraphModule's meta: what its copies get, too


@dataclass(frozen=True)
class Options:
    """How a network is simplified."""

    max_pool: MaxPool = "keep"
    branches: Branches = "add"
    sparse: bool = False


class Plan(NamedTuple):
    """A network as values: as it was, merged, and, where it had to be, in one sequence.

    ``states`` says what the values of the sequence hold; it is empty where nothing is carried.
    """

    original: Program
    merged: Merged
    final: Program
    states: Mapping[Value, Mapping[Value, Part]]


@dataclass(frozen=True, eq=False)
class Simplified:
    """The original network, and how it was simplified; it stands in ``vars(model)``.

    It is no part of the module: it has no parameters there, and follows no ``to()``. What each
    layer is made of is not kept but worked out again, by `plan`.

    Attributes
    ----------
    original : nn.Module
        A copy.
    shape : tuple of int
        Of one example.
    dtype : torch.dtype
        Of the FC layers.
    options : Options
    """

    original: nn.Module
    shape: tuple[int, ...]
    dtype: torch.dtype
    options: Options

    def plan(self) -> Plan:
        """Return the values again that the FC layers were made of."""
        parameter = next(self.original.parameters(), torch.empty(0))
        x = torch.zeros(1, *self.shape, dtype=self.dtype, device=parameter.device)
        return plan(self.original, (x,), self.options)


def plan(
    model: nn.Module,
    example: tuple[Any, ...],
    options: Options,
    memory: float | None = None,
    *,
    to_be_made: bool = False,
) -> Plan:
    """Read and merge a network.

    If the FC layers are to be made of it, those that cannot fit are refused before the merging.

    Raises
    ------
    MemoryBudgetError
        If the matrices do not fit.

    Examples
    --------
    >>> found = plan(nn.Sequential(nn.Conv1d(1, 2, 3)), (torch.ones(1, 1, 5),), Options())
    >>> found.final.output.size
    6
    """
    try:
        original = read(model, example, max_pool=options.max_pool, memory=memory)
        if to_be_made and not options.sparse:
            check_least(original, like(model, example[0]).dtype, memory)
        merged = merge(original, nonzeros=options.sparse, alternating=options.branches == "carry")
    except MemoryError as error:
        if isinstance(error, MemoryBudgetError):
            raise
        raise MemoryBudgetError(
            "the memory ran out while matrices of layers were made and multiplied",
            where="memory",
            got=str(error) or None,
            remedy="a smaller example, or leave out simplify=True",
        ) from error
    if options.branches == "add" or is_chain(merged.program):
        return Plan(original, merged, merged.program, {})
    sequence = carry(merged.program)
    return Plan(original, merged, sequence.program, sequence.states)


def like(model: nn.Module, x: Tensor) -> Tensor:
    """Return what says dtype and device of the FC layers: a parameter of the model, or the input.

    Examples
    --------
    >>> like(nn.ReLU(), torch.zeros(1)).dtype
    torch.float32
    """
    return next((p for p in model.parameters() if p.is_floating_point()), x)


def attach(module: nn.Module, record: Simplified) -> None:
    """Give a module its record; copies of it and what is loaded from a file have it, too."""
    vars(module)[ATTRIBUTE] = record
    if isinstance(module, fx.GraphModule):
        module.meta[_KEPT] = {ATTRIBUTE: record}


def record_of(module: nn.Module) -> Simplified | None:
    """Return the record of a simplified network; None of any other.

    Examples
    --------
    >>> record_of(nn.ReLU()) is None
    True
    """
    record = vars(module).get(ATTRIBUTE)
    return record if isinstance(record, Simplified) else None


def remember(model: nn.Module, x: Tensor, dtype: torch.dtype, options: Options) -> Simplified:
    """Return the record of a network that is going to be simplified.

    Raises
    ------
    UnsupportedModel
        If the network cannot be copied.
    UnsupportedLayer
        If the copy would go on using the network's own parts.
    """
    check_held(model, {id(part) for part in model.modules()}, copied=True)
    original = deep_copy(model)
    return Simplified(original, tuple(x.shape[1:]), dtype, options)
