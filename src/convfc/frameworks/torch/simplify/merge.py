"""Neighbouring affine maps multiplied, and what nobody needs any more left out.

A value that several others use is multiplied into each of them, so a residual branch stays what it
is. That can cost more than it saves: a bottleneck (a narrow layer between two wide ones without an
activation) has more numbers as a product than as two factors. An affine value is therefore removed
only if fewer numbers, or as many, are left: entries of dense matrices, or non-zeros of sparse ones;
of sparse ones also where it is used once and one of the two factors has two entries a row at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
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
    is_identity,
    sources,
    times,
    topological,
    users_of,
)

__all__ = ["Merged", "levels", "merge"]

Terms = dict[Value, Any]


class Merged(NamedTuple):
    """A program after merging, and the value of the first program that each of its values is."""

    program: Program
    before: Mapping[Value, Value]


def merge(program: Program, *, nonzeros: bool = False, alternating: bool = False) -> Merged:
    """Multiply neighbouring affine maps.

    Parameters
    ----------
    program : Program
        It is not changed.
    nonzeros : bool
        Whether non-zeros are what counts, not entries.
    alternating : bool
        For one sequence of affine maps and activations: a value is multiplied away where it is used
        before the next activation; one that has to be carried through it, only if it is used once
        and is no narrower than what it is made of.

    Returns
    -------
    Merged

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from convfc.frameworks.torch.simplify.reading import read
    >>> model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2), nn.AvgPool1d(3)).eval()
    >>> program = read(model, (torch.ones(1, 1, 5),), max_pool="keep")
    >>> len(topological(program.output)), len(topological(merge(program).program.output))
    (4, 2)
    """
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
            away = (nonzeros and work.is_light(value, users)) or (
                work.gain(value, users, nonzeros=nonzeros) + work.allowance(value, users, nonzeros)
                >= 0
            )
        if away:
            work.multiply_away(value, users)
    return work.result()


def levels(output: Value) -> dict[Value, int]:
    """Return how many activations stand in front of each value, at most.

    Examples
    --------
    >>> from convfc.frameworks.torch.simplify.ir import Input, relu
    >>> list(levels(relu(Input(2))).values())
    [0, 1]
    """
    found: dict[Value, int] = {}
    for value in topological(output):
        below = max((found[source] for source in sources(value)), default=0)
        found[value] = below + isinstance(value, (Relu, Opaque))
    return found


def _width(value: Value) -> int:
    """Return how many numbers of ReLU's range carry a value."""
    return value.size if value.nonnegative else 2 * value.size


class _Work:
    """A program while its affine values are rewritten; its other values are the program's own."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.order = topological(program.output)
        self.terms: dict[Value, Terms] = {}
        self.offset: dict[Value, npt.NDArray[Any]] = {}
        self.users = users_of(program.output)
        for value in self.order:
            if isinstance(value, Affine):
                self.terms[value] = dict(value.terms)
                self.offset[value] = value.offset

    def gain(self, value: Value, users: Sequence[Value], *, nonzeros: bool) -> int:
        """Return how many numbers fewer there are if a value is multiplied into its users."""
        own, gained = self.terms[value], 0
        if len(users) == len(self.users[value]) and value is not self.program.output:
            gained += sum(_cost(matrix, nonzeros) for matrix in own.values())
        for user in users:
            outer = self.terms[user][value]
            gained += _cost(outer, nonzeros)
            for source, inner in own.items():
                there = self.terms[user].get(source)
                if is_identity(outer):
                    product = _cost(inner, nonzeros)
                elif nonzeros:  # a bound, known without multiplying
                    product = int((np.diff(inner.indptr)[outer.indices]).sum())
                else:
                    product = user.size * source.size
                if there is not None:
                    old = _cost(there, nonzeros)
                    product = product if nonzeros else user.size * source.size - old
                gained -= product
        return gained

    def allowance(self, value: Value, users: Sequence[Value], nonzeros: bool) -> int:
        """Return how many numbers more a product may have: half of its factors', if used once."""
        if nonzeros or len(self.users[value]) != 1 or value is self.program.output:
            return 0
        factors = (*self.terms[value].values(), self.terms[users[0]][value])
        return sum(_cost(matrix, nonzeros) for matrix in factors) // 2

    def is_light(self, value: Value, users: Sequence[Value]) -> bool:
        """Say whether a value that is used once is, or becomes, at most a difference of two."""
        if len(self.users[value]) != 1 or value is self.program.output:
            return False
        outer = self.terms[users[0]][value]
        own = self.terms[value].values()
        return bool(outer.nnz <= 2 * outer.shape[0] or sum(m.nnz for m in own) <= 2 * value.size)

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
        """Return the program of new values."""
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
        start = new.get(program.input, program.input)
        names = {new[v]: name for v, name in program.names.items() if v in new}
        merged = Program(
            start,  # type: ignore[arg-type]
            new[program.output],
            program.input_shape,
            program.output_shape,
            names,
        )
        first: dict[Value, Value] = {}
        for before, after in new.items():
            first.setdefault(after, before)
        return Merged(merged, first)


def _cost(matrix: Any, nonzeros: bool) -> int:
    """Return how many numbers a matrix holds; the identity is not multiplied by."""
    if is_identity(matrix):
        return 0
    return int(matrix.nnz) if nonzeros else int(np.prod(matrix.shape))
