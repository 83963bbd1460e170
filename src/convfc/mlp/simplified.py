"""What `simplify` is in every room: how it is asked for, a network merged, what is remembered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from convfc.mlp.merge import Merged, Part, as_sequence, merge
from convfc.mlp.values import Program, Value, is_chain
from convfc.places import nothing_to_convert
from convfc.sizes import one_of

MaxPool: TypeAlias = Literal["keep", "relu"]

ATTRIBUTE = "convfc_simplified"
"""Where a simplified network holds its record."""


@dataclass(frozen=True)
class Options:
    """How a network is simplified."""

    max_pool: MaxPool = "keep"
    sequential: bool = False


@dataclass(frozen=True, eq=False)
class Simplified:
    """The original network, and how it was simplified; it follows no ``to()``."""

    original: Any
    shape: tuple[int, ...]
    dtype: Any
    options: Options
    signature: tuple[Any, ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Simplified:
        """Return it: copies of a network share it, as nothing changes it."""
        return self


class Programs(NamedTuple):
    """A network as values: as it was, merged, in one sequence; what its values hold."""

    original: Program
    merged: Merged
    final: Program
    states: Mapping[Value, Mapping[Value, Part]]


def options_for(model: Any, max_pool: MaxPool, *, sequential: bool) -> Options:
    """Read the options of `simplify`, of a model that is not simplified already."""
    remedy = "'keep' leaves max-pooling as it is, 'relu' writes it with ReLU"
    one_of("max_pool", max_pool, MaxPool, remedy=remedy)
    if record_of(model) is not None:
        raise nothing_to_convert("layer that is not simplified already", None, ())
    return Options(max_pool, sequential)


def record_of(model: Any) -> Simplified | None:
    """Return the record of a simplified network; None of any other."""
    record = vars(model).get(ATTRIBUTE)
    return record if isinstance(record, Simplified) else None


def programs_of(original: Program, options: Options) -> Programs:
    """Merge a network, into one sequence if that is asked for."""
    merged = merge(original, alternating=options.sequential)
    if not options.sequential or is_chain(merged.program):
        return Programs(original, merged, merged.program, {})
    sequence = as_sequence(merged.program)
    return Programs(original, merged, sequence.program, sequence.states)
