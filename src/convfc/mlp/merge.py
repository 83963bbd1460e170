"""Neighbouring affine maps multiplied, and branches in one sequence.

A value that several others use is multiplied into each of them, so a residual branch stays one. A
product can have more numbers than its factors, such as that of a bottleneck (a narrow layer between
two wide ones without an activation). An affine value is therefore multiplied away only if no more
numbers are left, or half as many more if it is used once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from convfc.mlp.values import (
    Affine,
    Opaque,
    Program,
    Relu,
    Value,
    affine,
    is_identity,
    refuse,
    sources,
    times,
    topological,
    users_of,
)

Terms = dict[Value, Any]
Row = tuple[Terms, npt.NDArray[Any]]  # a value as a sum of others, and the offset


class Merged(NamedTuple):
    """A program after merging, and for each of its values the one of the program before."""

    program: Program
    before: Mapping[Value, Value]


def merge(program: Program, *, alternating: bool = False) -> Merged:
    """Multiply neighbouring affine maps: where it pays, or as one sequence needs it."""
    work = _Work(program)
    depth = levels(program.output)
    for value in list(work.terms):
        users = [user for user in work.users[value] if isinstance(user, Affine)]
        if not users:
            continue
        if alternating:
            here = all(depth[user] == depth[value] for user in users)
            once = len(users) == len(work.users[value]) == 1
            narrow = sum(map(_width, work.terms[value])) <= _width(value)
            away = here or (once and narrow)
        else:
            away = work.gain(value, users) + work.allowance(value, users) >= 0
        if away:
            work.multiply_away(value, users)
    return work.result()


def levels(output: Value) -> dict[Value, int]:
    """Return how many activations stand before each value, at most."""
    found: dict[Value, int] = {}
    for value in topological(output):
        below = max((found[source] for source in sources(value)), default=0)
        found[value] = below + isinstance(value, (Relu, Opaque))
    return found


def _width(value: Value) -> int:
    """Return how many numbers pass a value through a ReLU."""
    return value.size if value.nonnegative else 2 * value.size


class _Work:
    """A program while its affine values are rewritten; its other values are the program's own."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.order = topological(program.output)
        self.users = users_of(program.output)
        affines = [value for value in self.order if isinstance(value, Affine)]
        self.terms: dict[Value, Terms] = {value: dict(value.terms) for value in affines}
        self.offset: dict[Value, Any] = {value: value.offset for value in affines}

    def gain(self, value: Value, users: Sequence[Value]) -> int:
        """Return by how many the numbers decrease if a value is multiplied into its users."""
        own, gained = self.terms[value], 0
        if len(users) == len(self.users[value]) and value is not self.program.output:
            gained += sum(map(_cost, own.values()))
        for user in users:
            outer = self.terms[user][value]
            gained += _cost(outer)
            for source, inner in own.items():
                there = self.terms[user].get(source)
                if there is not None:
                    gained -= user.size * source.size - _cost(there)
                else:
                    gained -= _cost(inner) if is_identity(outer) else user.size * source.size
        return gained

    def allowance(self, value: Value, users: Sequence[Value]) -> int:
        """Return how many more numbers a product may have: half of its factors', if used once."""
        if len(self.users[value]) != 1 or value is self.program.output:
            return 0
        factors = (*self.terms[value].values(), self.terms[users[0]][value])
        return sum(map(_cost, factors)) // 2

    def multiply_away(self, value: Value, users: Sequence[Value]) -> None:
        """Multiply a value into the affine values that use it."""
        own = self.terms[value]
        for user in users:
            terms = self.terms[user]
            outer = terms.pop(value)
            self.users[value].remove(user)
            self.offset[user] = self.offset[user] + outer @ self.offset[value]
            for source, inner in own.items():
                product = times(outer, inner)
                if source in terms:
                    product = sparse.csr_array(terms[source] + product)
                else:
                    self.users[source].append(user)
                terms[source] = product
        if not self.users[value] and value is not self.program.output:
            for source in self.terms.pop(value):
                self.users[source].remove(value)

    def result(self) -> Merged:
        """Return the program, made of new values."""
        new: dict[Value, Value] = {}
        for value in self.order:
            if isinstance(value, Affine):
                if value not in self.terms:
                    continue
                terms: Terms = {}
                for source, matrix in self.terms[value].items():
                    there = terms.get(new[source])
                    terms[new[source]] = matrix if there is None else there + matrix
                new[value] = affine(terms, self.offset[value], nonnegative=value.nonnegative)
            elif isinstance(value, (Relu, Opaque)):
                new[value] = replace(value, source=new[value.source])
            else:
                new[value] = value
        program = self.program
        places = {new[v]: place for v, place in program.places.items() if v in new}
        shapes = program.input_shape, program.output_shape
        merged = Program(program.input, new[program.output], *shapes, places)
        first: dict[Value, Value] = {}
        for before, after in new.items():
            first.setdefault(after, before)
        return Merged(merged, first)


def _cost(matrix: Any) -> int:
    """Return how many numbers a matrix holds; the identity is not multiplied by."""
    return 0 if is_identity(matrix) else int(np.prod(matrix.shape))


# One sequence -------------------------------------------------------------------------------------
#
# Between two ReLU layers the whole network is one vector, its state. A number that a later layer
# needs passes the ReLUs unchanged if it cannot be negative, else as the pair relu(v) and relu(-v),
# whose difference it is: one of each pair is zero, so nothing is rounded.


class Part(NamedTuple):
    """A value in a state: where it begins, and whether it is a pair."""

    first: int
    pair: bool


class Chained(NamedTuple):
    """A program that is one sequence, and which values of the first program its states contain."""

    program: Program
    states: Mapping[Value, Mapping[Value, Part]]


def as_sequence(program: Program) -> Chained:
    """Return a program as one sequence: affine, ReLU, affine, ReLU, ..., affine."""
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


def _chain(program: Program, wanted: list[list[Value]], depth: Mapping[Value, int]) -> Chained:
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
                "leave out sequential=True, or give max_pool='relu' if it is a max-pooling",
            )
        rows: list[Row] = []
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
    shapes = program.input_shape, program.output_shape
    return Chained(Program(program.input, end, *shapes), states)


def _expand(value: Value, level: int, depth: Mapping[Value, int]) -> Row:
    """Return a value as a sum over the values in the state of a level."""
    if not isinstance(value, Affine) or depth[value] < level:
        return {value: sparse.eye_array(value.size, format="csr")}, np.zeros(value.size)
    terms: Terms = {}
    offset = value.offset
    for source, outer in value.terms.items():
        inner, more = _expand(source, level, depth)
        offset = offset + outer @ more
        for origin, matrix in inner.items():
            product = times(outer, matrix)
            terms[origin] = terms[origin] + product if origin in terms else product
    return terms, offset


def _stack(rows: list[Row], state: Value, parts: Mapping[Value, Part]) -> Value:
    """Return the affine value of a state that has these rows."""
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
