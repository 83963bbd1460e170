"""Branches in one sequence of FC layers and ReLUs: what is needed later is carried through.

Between two ReLU layers the whole network is one vector, its state. A number that a later layer
needs goes through the ReLUs unchanged if it cannot be negative, else as the pair relu(v) and
relu(-v), whose difference it is: of each pair one is zero, so not a bit is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from convfc.frameworks.torch.simplify.ir import (
    Affine,
    Opaque,
    Program,
    Relu,
    Value,
    affine,
    sources,
    times,
    topological,
)
from convfc.frameworks.torch.simplify.maps import refuse
from convfc.frameworks.torch.simplify.merge import levels

__all__ = ["Part", "Sequence", "carry"]


class Part(NamedTuple):
    """A value in a state: where it begins, and whether it is a pair."""

    first: int
    pair: bool


class Sequence(NamedTuple):
    """A program that is one sequence, and what its states hold.

    ``states`` gives, for each value of the sequence that is no affine map, the values of the first
    program in it and their parts.
    """

    program: Program
    states: Mapping[Value, Mapping[Value, Part]]


def carry(program: Program) -> Sequence:
    """Return a program as one sequence: affine, ReLU, affine, ReLU, ..., affine.

    Raises
    ------
    UnsupportedLayer
        If a value would have to go through an activation that is no ReLU.

    Examples
    --------
    A residual connection around a ReLU; its input can be negative, so it is carried as a pair.

    >>> from convfc.frameworks.torch.simplify.calls import total
    >>> from convfc.frameworks.torch.simplify.ir import Input, relu
    >>> x = Input(2)
    >>> sequence = carry(Program(x, total([x, relu(x)]), (2,), (2,), {}))
    >>> [value.size for value in topological(sequence.program.output)]
    [2, 6, 6, 2]
    """
    depth = levels(program.output)
    last = depth[program.output]
    wanted: list[list[Value]] = [[] for _ in range(last + 1)]
    wanted[last] = list(_expand(program.output, last, depth)[0])
    for level in range(last, 0, -1):
        needed: dict[Value, None] = {}
        for value in wanted[level]:
            inner = sources(value)[0] if depth[value] == level and _acts(value) else value
            needed.update(dict.fromkeys(_expand(inner, level - 1, depth)[0]))
        wanted[level - 1] = sorted(needed, key=_number(program))
    return _chain(program, wanted, depth)


def _chain(program: Program, wanted: list[list[Value]], depth: Mapping[Value, int]) -> Sequence:
    """Build the states, from the input on."""
    state: Value = program.input
    parts: dict[Value, Part] = {program.input: Part(0, pair=False)} if wanted[0] else {}
    states: dict[Value, Mapping[Value, Part]] = {state: parts}
    for level in range(1, len(wanted)):
        made = [value for value in wanted[level] if depth[value] == level and _acts(value)]
        others = [value for value in wanted[level] if value not in made]
        opaque = next((value for value in made if isinstance(value, Opaque)), None)
        if opaque is not None and len(wanted[level]) > 1:
            raise refuse(
                "values of another branch would have to go through "
                + " and ".join(type(module).__name__ for module in opaque.modules),
                opaque.name,
                "branches='add', or max_pool='relu' if it is a max-pooling",
            )
        rows: list[tuple[dict[Value, Any], npt.NDArray[Any]]] = []
        new: dict[Value, Part] = {}
        size = 0
        for value in made + others:
            inner = sources(value)[0] if value in made else value
            row = _expand(inner, level - 1, depth)
            pair = value in others and not value.nonnegative
            new[value] = Part(size, pair)
            rows.append(row)
            if pair:
                rows.append(({s: -m for s, m in row[0].items()}, -row[1]))
            size += value.size * (1 + pair)
        before = _stack(rows, state, parts)
        if opaque is None:
            state = Relu(size, before, nonnegative=True)
        else:
            state = Opaque(opaque.size, before, opaque.modules, opaque.name)
        parts = new
        states[state] = parts
    end = _stack([_expand(program.output, len(wanted) - 1, depth)], state, parts)
    chained = Program(program.input, end, program.input_shape, program.output_shape, {})
    return Sequence(chained, states)


def _expand(
    value: Value, level: int, depth: Mapping[Value, int]
) -> tuple[dict[Value, Any], npt.NDArray[Any]]:
    """Return a value as a sum over what stands in the state of a level, and the offset."""
    if not isinstance(value, Affine) or depth[value] < level:
        return {value: sparse.eye_array(value.size, format="csr")}, np.zeros(value.size)
    terms: dict[Value, Any] = {}
    offset = value.offset
    for source, outer in value.terms.items():
        inner, more = _expand(source, level, depth)
        offset = offset + outer @ more
        for origin, matrix in inner.items():
            product = times(outer, matrix)
            terms[origin] = terms[origin] + product if origin in terms else product
    return terms, offset


def _stack(
    rows: list[tuple[dict[Value, Any], npt.NDArray[Any]]],
    state: Value,
    parts: Mapping[Value, Part],
) -> Value:
    """Return the affine map of a state that has these rows."""
    data, at, columns, first = [], [], [], 0
    for terms, offset in rows:
        for value, matrix in terms.items():
            entries, part = sparse.coo_array(matrix), parts[value]
            for sign in (1, -1) if part.pair else (1,):
                data.append(sign * entries.data)
                at.append(entries.coords[0] + first)
                shift = part.first + (value.size if sign < 0 else 0)
                columns.append(entries.coords[1] + shift)
        first += len(offset)
    empty = np.zeros(0, np.int64)
    coords = (np.concatenate([*at, empty]), np.concatenate([*columns, empty]))
    entries = sparse.coo_array(
        (np.concatenate([*data, np.zeros(0)]), coords), shape=(first, state.size)
    )
    return affine({state: sparse.csr_array(entries)}, np.concatenate([o for _, o in rows]))


def _acts(value: Value) -> bool:
    return isinstance(value, (Relu, Opaque))


def _number(program: Program) -> Any:
    """Return the order of the values in a program, as a key."""
    return {value: i for i, value in enumerate(topological(program.output))}.__getitem__
