"""One kernel as the composition of two: the linear algebra of depth morphing.

A layer with the filters A, followed by one with the filters B and nothing between them, has the
filters ``G[t] = sum over t1 + t2 = t of B[t2] A[t1]``: matrix products over the C channels in the
middle, a full convolution over the taps (Wei et al. 2016, arXiv 1603.01670). With A given this is
linear in B, and the other way round. It can be solved for every G if the given factor makes the
system of full rank, for which the numbers have to suffice (the condition of their Algorithm 1):

- A given, of kernel K1 on c channels: ``C |K2| >= c |K|``
- B given, of kernel K2 and f filters: ``C |K1| >= f |K|``

with ``|.|`` the number of taps and K = K1 + K2 - 1. Where they suffice the rank is looked at:
random factors do not always have it on several axes. ``C >= c |K1|`` or ``C >= f |K2|`` suffices
always: then the middle layer can hold all of a patch. Where they do not, one of the two kernels is
made smaller until they do (their Algorithm 2); the taps around stay zero.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from convfc.errors import ArgumentError
from convfc.sizes import Sizes

_Pair: TypeAlias = tuple[Sizes, Sizes]
"""The sizes of both kernels."""


class Factors(NamedTuple):
    """Two kernels whose composition is a third; ``active`` are the parts that are not zero."""

    first: Tensor  # (C, *K1, c)
    second: Tensor  # (f, *K2, C)
    active: _Pair


def factorised(
    groups: Sequence[Tensor],
    kernels: _Pair,
    at: Sizes,
    channels: int,
    *,
    generator: torch.Generator,
    dtype: torch.dtype,
    where: str,
) -> Factors:
    """Find two kernels whose composition is a third with zeros around, of each group.

    The third, ``(f, *K0, c)`` in float64, begins ``at`` these taps in ``K1 + K2 - 1``; ``channels``
    is C of one group. The given factor is random and orthogonal, and rounded to ``dtype`` before
    the other is solved for; what the equation leaves free there is random, too.
    """
    f, *kernel, c = groups[0].shape
    old = tuple(kernel)
    sizes = _sizes(old, kernels)
    for active in sizes:
        room = [a + b - 1 - k for a, b, k in zip(*active, old, strict=True)]
        start = tuple(map(min, at, room))  # of the old kernel in the composition of the active
        # The equations fall apart into one small system per tap if the given kernel is a point.
        point = math.prod(active[0]) == 1
        for first_given in (point, not point):
            inner, unknown = (c, active[1]) if first_given else (f, active[0])
            if inner * _taps(active) > channels * math.prod(unknown):
                continue
            given = active, start, channels, generator, dtype, first_given
            pairs = [pair for group in groups if (pair := _solved(group, *given)) is not None]
            if len(pairs) == len(groups):
                return _placed(pairs, active, kernels, at, start)
    raise _too_few(sizes, channels, (f, c), len(groups), where)


def _system(given: Tensor, size: Sizes) -> Tensor:
    """Return the matrix ``(|K2| C, *K, c)`` that B is multiplied by, A being given."""
    channels, *kernel, c = given.shape
    whole = [k + n - 1 for k, n in zip(kernel, size, strict=True)]
    system = given.new_zeros(*size, channels, *whole, c)
    for tap in itertools.product(*map(range, size)):
        window: Any = tuple(slice(t, t + k) for t, k in zip(tap, kernel, strict=True))
        system[(*tap, slice(None), *window)] = given
    return system.flatten(0, len(size))


def _sizes(old: Sizes, kernels: _Pair) -> list[_Pair]:
    """Return the given sizes, and those with one kernel smaller that still reach over the old."""
    found = []
    for less in range(max((*kernels[0], *kernels[1], 1))):
        for one, other in ((1, 0), (0, 1)):
            whole = zip(kernels[one], kernels[other], old, strict=True)
            fewer = tuple(max(n - less, k - m + 1, 1) for n, m, k in whole)
            found.append((kernels[0], fewer) if one else (fewer, kernels[1]))
    return list(dict.fromkeys(found))


def _solved(
    group: Tensor,
    active: _Pair,
    start: Sizes,
    channels: int,
    generator: torch.Generator,
    dtype: torch.dtype,
    first_given: bool,
) -> tuple[Tensor, Tensor] | None:
    """Return A and B of one group; None if the given factor does not make the rank."""
    whole = [a + b - 1 for a, b in zip(*active, strict=True)]
    target = _inside(group, whole, start)
    if not first_given:  # the same equation with filters and channels swapped: A' B'
        target = target.transpose(0, -1)
    own, other = active if first_given else active[::-1]
    given = _orthogonal(channels, own, target.shape[-1], generator).to(dtype).double()
    found = _completed(given, target, other, generator)
    if found is None or first_given:
        return found if found is None else (given, found)
    return found.transpose(0, -1), given.transpose(0, -1)


def _completed(
    given: Tensor, target: Tensor, size: Sizes, generator: torch.Generator
) -> Tensor | None:
    """Return B of kernel ``size`` whose composition with A is the target, if there is one."""
    channels, *kernel, c = given.shape
    if math.prod(kernel) == 1:
        system, wanted = given.reshape(channels, c), target.reshape(-1, c)
    else:
        system, wanted = _system(given, size).flatten(1), target.flatten(1)
    free = torch.randn(len(wanted), len(system), generator=generator, dtype=torch.float64)
    if len(system) <= system.shape[1]:
        free.zero_()  # nothing is free: taps that are to be zero get exactly zero
    both = torch.cat([wanted, free @ system])
    found = torch.linalg.lstsq(system.mT, both.mT, driver="gelsy")
    if int(found.rank) < system.shape[1]:
        return None
    # Random, so that no channel in between repeats another.
    smallest, seen = found.solution.mT.split(len(wanted))
    scale = smallest.square().mean().sqrt()
    solution = smallest + scale * (free - seen)
    # One step of refinement, without which few terms would leave no room for rounding.
    missing = wanted - solution @ system
    solution = solution + torch.linalg.lstsq(system.mT, missing.mT, driver="gelsy").solution.mT
    second: Tensor = solution.reshape(len(target), *size, channels)
    return second


def _orthogonal(rows: int, size: Sizes, columns: int, generator: torch.Generator) -> Tensor:
    """Return a random kernel ``(rows, *size, columns)`` with rows of norm 1, orthogonal if few."""
    inner = math.prod(size) * columns
    drawn = torch.randn(rows, inner, generator=generator, dtype=torch.float64)
    matrix: Tensor = torch.linalg.qr(drawn.mT if rows <= inner else drawn)[0]
    matrix = matrix.mT if rows <= inner else matrix * math.sqrt(rows / inner)
    return matrix.reshape(rows, *size, columns)


def _inside(filters: Tensor, size: Sequence[int], at: Sizes) -> Tensor:
    """Return a kernel with zeros around it."""
    f, *kernel, c = filters.shape
    larger = filters.new_zeros(f, *size, c)
    window = tuple(slice(start, start + k) for start, k in zip(at, kernel, strict=True))
    larger[(slice(None), *window)] = filters
    return larger


def _placed(
    pairs: Sequence[tuple[Tensor, Tensor]], active: _Pair, kernels: _Pair, at: Sizes, start: Sizes
) -> Factors:
    """Put the active kernels into the ones asked for, so that the old one begins at its place."""
    left = [n - m for n, m in zip(at, start, strict=True)]
    first_at = tuple(min(n, k - a) for n, k, a in zip(left, kernels[0], active[0], strict=True))
    second_at = tuple(n - m for n, m in zip(left, first_at, strict=True))
    return Factors(
        torch.cat([_inside(a, kernels[0], first_at) for a, _ in pairs]),
        torch.cat([_inside(b, kernels[1], second_at) for _, b in pairs]),
        active,
    )


def _taps(active: _Pair) -> int:
    """Return how many taps the composition has."""
    return math.prod(a + b - 1 for a, b in zip(*active, strict=True))


def _too_few(
    sizes: Sequence[_Pair], channels: int, ends: tuple[int, int], groups: int, where: str
) -> ArgumentError:
    """Return the refusal, with the number of channels that is needed and one that suffices."""
    f, c = ends
    ways = [(c, *active, _taps(active)) for active in sizes]
    ways += [(f, second, first, _taps((first, second))) for first, second in sizes]
    needed = min(-(-inner * whole // math.prod(unknown)) for inner, _, unknown, whole in ways)
    enough = min(inner * math.prod(given) for inner, given, _, _ in ways)
    least = f"{max(needed, channels + 1) * groups} or more"
    return ArgumentError(
        "so few channels between the two layers do not hold every such kernel",
        where=where,
        expected=least + ("" if enough == needed else f"; {enough * groups} always do"),
        got=channels * groups,
        remedy="give more channels, or kernels of which one is as large as the layer's and the "
        "other is 1",
    )
