"""One kernel as the composition of two: the linear algebra of depth morphing.

A layer with the filters A behind one with the filters B has, where nothing stands between them, the
filters ``G[t] = sum over t1 + t2 = t of B[t2] A[t1]``: matrix products over the C channels in the
middle, a full convolution over the taps (Wei et al. 2016, arXiv 1603.01670). With A given this is
linear in B, and the other way round. It can be solved for every G if the given factor makes the
system of full rank, for which the numbers have to suffice (the condition of their Algorithm 1):

- A given, of kernel K1 on c channels: ``C |K2| >= c |K|``
- B given, of kernel K2 and f filters: ``C |K1| >= f |K|``

with ``|.|`` the number of taps and K = K1 + K2 - 1. Where they suffice the rank is looked at:
random factors do not always have it on several axes. ``C >= c |K1|`` or ``C >= f |K2|`` suffices
always: then the middle layer can hold all of a patch. Where they do not, smaller kernels inside the
given ones are tried, the largest first (their Algorithm 2); the taps around stay zero.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from convfc.errors import ArgumentError
from convfc.sizes import Sizes


class Factors(NamedTuple):
    """Two kernels whose composition is a third: first A, ``(C, *K1, c)``, then B, ``(f, *K2, C)``.

    ``active`` are the sizes of the parts that are not zero, ``residual`` is the norm of what is
    missing, relative to the third kernel's; 0 where only rounding is.
    """

    first: Tensor
    second: Tensor
    active: tuple[Sizes, Sizes]
    residual: float = 0.0


class _Candidate(NamedTuple):
    """Sizes of the two kernels, and which of them is given: "first", "second" or "svd"."""

    first: Sizes
    second: Sizes
    given: str


def composed(second: Tensor, first: Tensor) -> Tensor:
    """Return the filters ``(f, *K, c)`` of one layer, ``(f, *K2, C)``, behind another."""
    system = _system(first, tuple(second.shape[1:-1]))
    product: Tensor = (second.flatten(1) @ system.flatten(1)).unflatten(1, system.shape[1:])
    return product


def factorised(
    groups: Sequence[Tensor],
    kernels: tuple[Sizes, Sizes],
    at: Sizes,
    channels: int,
    *,
    generator: torch.Generator,
    dtype: torch.dtype,
    where: str,
    allow_residual: bool = False,
) -> Factors:
    """Find two kernels whose composition is a third with zeros around, of each group.

    The third, ``(f, *K0, c)`` in float64, begins ``at`` these taps in ``K1 + K2 - 1``, which is at
    least K0 on every axis; ``channels`` is C of one group. Random are the given factor, with
    orthogonal rows or columns, and what the equation leaves free in the other, which is solved for
    when the given one has been rounded to ``dtype``. If no exact solution is known it is an error
    that says how many channels are needed, or the closest by truncated SVD.
    """
    f, *kernel, c = groups[0].shape
    old = tuple(kernel)
    for candidate in _candidates(old, kernels, channels, (f, c)):
        pairs = []
        for group in groups:
            pair = _solved(group, candidate, at, channels, generator, dtype)
            if pair is None:
                break
            pairs.append(pair)
        else:
            return _placed(pairs, candidate, kernels, at, old)
    points = [w for w in _sizes(old, kernels) if _is_point(w.first) or _is_point(w.second)]
    if allow_residual and points:
        candidate = points[0]._replace(given="svd")
        pairs = [_by_svd(group, candidate, channels, generator) for group in groups]
        found = _placed(pairs, candidate, kernels, at, old)
        missing = [(composed(b, a) - g).norm() for (a, b), g in zip(pairs, groups, strict=True)]
        norm = math.hypot(*(float(g.norm()) for g in groups))
        return found._replace(residual=math.hypot(*map(float, missing)) / (norm or 1.0))
    raise _too_few(old, kernels, channels, (f, c), len(groups), where)


def _system(given: Tensor, size: Sizes) -> Tensor:
    """Return the matrix ``(|K2| C, *K, c)`` that B is multiplied by, A being given."""
    channels, *kernel, c = given.shape
    whole = [k + n - 1 for k, n in zip(kernel, size, strict=True)]
    system = given.new_zeros(*size, channels, *whole, c)
    for tap in itertools.product(*map(range, size)):
        window: Any = tuple(slice(t, t + k) for t, k in zip(tap, kernel, strict=True))
        system[(*tap, slice(None), *window)] = given
    return system.flatten(0, len(size))


def _turned(filters: Tensor) -> Tensor:
    """Swap filters and channels, ``(f, *K, c)`` to ``(c, *K, f)``: B A transposed is A' B'."""
    return filters.transpose(0, -1)


def _sizes(old: Sizes, kernels: tuple[Sizes, Sizes]) -> list[_Candidate]:
    """Return all kernels inside the given ones whose composition covers the old, largest first."""
    axes = [
        [(a, b) for a in range(1, k1 + 1) for b in range(1, k2 + 1) if a + b - 1 >= k]
        for k, k1, k2 in zip(old, *kernels, strict=True)
    ]
    candidates = [
        _Candidate(tuple(a for a, _ in pairs), tuple(b for _, b in pairs), "")
        for pairs in itertools.product(*axes)
    ]
    return sorted(candidates, key=_fewest_taps)


def _fewest_taps(candidate: _Candidate) -> tuple[int, int]:
    first, second = math.prod(candidate.first), math.prod(candidate.second)
    return -(first + second), -first


def _candidates(
    old: Sizes, kernels: tuple[Sizes, Sizes], channels: int, sizes: tuple[int, int]
) -> Iterator[_Candidate]:
    """Yield what may be solved, by the number of unknowns."""
    f, c = sizes
    everything = _sizes(old, kernels)
    for candidate in everything:
        whole = _whole(candidate)
        # The equations fall apart into one small system per tap if the given kernel is a point.
        givens = ["first", "second"] if _is_point(candidate.first) else ["second", "first"]
        for given in givens:
            inner, unknown = (c, candidate.second) if given == "first" else (f, candidate.first)
            if channels * math.prod(unknown) >= inner * whole:
                yield candidate._replace(given=given)
    for candidate in everything:  # a kernel of low rank needs fewer channels
        if old in (candidate.first, candidate.second) and (
            _is_point(candidate.first) or _is_point(candidate.second)
        ):
            yield candidate._replace(given="svd")


def _solved(
    group: Tensor,
    candidate: _Candidate,
    at: Sizes,
    channels: int,
    generator: torch.Generator,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor] | None:
    """Return A and B of one group; None if the given factor does not make the rank."""
    if candidate.given == "svd":
        rank = int(torch.linalg.matrix_rank(_as_matrix(group, candidate)))
        return _by_svd(group, candidate, channels, generator) if rank <= channels else None
    whole = [a + b - 1 for a, b in zip(candidate.first, candidate.second, strict=True)]
    target = _inside(group, whole, _start(candidate, at, tuple(group.shape[1:-1])))
    if candidate.given == "first":
        given = (
            _orthogonal(channels, candidate.first, group.shape[-1], generator).to(dtype).double()
        )
        found = _completed(given, target, candidate.second, generator)
        return None if found is None else (given, found)
    turned = _orthogonal(channels, candidate.second, len(group), generator).to(dtype).double()
    found = _completed(turned, _turned(target), candidate.first, generator)
    return None if found is None else (_turned(found), _turned(turned))


def _completed(
    given: Tensor, target: Tensor, size: Sizes, generator: torch.Generator
) -> Tensor | None:
    """Return B of kernel ``size`` with ``composed(B, given) == target``; None without full rank.

    Of all solutions the one that is closest to random numbers as large as the smallest solution, so
    that no channel of the middle layer repeats another.
    """
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
    smallest, seen = found.solution.mT.split(len(wanted))
    scale = smallest.square().mean().sqrt()
    solution = smallest + scale * (free - seen)
    # One step of refinement, without which few terms would leave no room for rounding.
    missing = wanted - solution @ system
    solution = solution + torch.linalg.lstsq(system.mT, missing.mT, driver="gelsy").solution.mT
    second: Tensor = solution.reshape(len(target), *size, channels)
    return second


def _by_svd(
    group: Tensor, candidate: _Candidate, channels: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return A and B, one of them a point, as close as so many channels allow (Eckart-Young)."""
    f, *kernel, c = group.shape
    left, values, right = torch.linalg.svd(_as_matrix(group, candidate), full_matrices=False)
    rank = min(channels, len(values))
    roots = values[:rank].sqrt()
    left, right = left[:, :rank] * roots, roots[:, None] * right[:rank]
    # Turned at random, so that no channel is one singular vector; what is left over is random.
    drawn = torch.randn(channels, rank, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(drawn)[0]
    first, second = turn @ right, left @ turn.mT
    free = torch.randn(first.shape, generator=generator, dtype=torch.float64)
    first = first + first.square().mean().sqrt() * (free - turn @ (turn.mT @ free))
    if _is_point(candidate.second):
        return first.reshape(channels, *kernel, c), second.reshape(f, *candidate.second, channels)
    return (
        first.reshape(channels, *candidate.first, c),
        second.reshape(f, *kernel, channels),
    )


def _as_matrix(group: Tensor, candidate: _Candidate) -> Tensor:
    """Return the matrix that B A is, if one of the two kernels is a point."""
    return group.flatten(1) if _is_point(candidate.second) else group.flatten(0, -2)


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


def _start(candidate: _Candidate, at: Sizes, old: Sizes) -> Sizes:
    """Return where the old kernel begins in the composition of the active ones."""
    room = [a + b - 1 - k for a, b, k in zip(candidate.first, candidate.second, old, strict=True)]
    return tuple(map(min, at, room))


def _placed(
    pairs: Sequence[tuple[Tensor, Tensor]],
    candidate: _Candidate,
    kernels: tuple[Sizes, Sizes],
    at: Sizes,
    old: Sizes,
) -> Factors:
    """Put the active kernels into the ones asked for, so that the old one begins at its place."""
    used = _start(candidate, at, old)
    left = [start - u for start, u in zip(at, used, strict=True)]
    first_at = tuple(
        min(n, k - a) for n, k, a in zip(left, kernels[0], candidate.first, strict=True)
    )
    second_at = tuple(n - m for n, m in zip(left, first_at, strict=True))
    return Factors(
        torch.cat([_inside(a, kernels[0], first_at) for a, _ in pairs]),
        torch.cat([_inside(b, kernels[1], second_at) for _, b in pairs]),
        (candidate.first, candidate.second),
    )


def _whole(candidate: _Candidate) -> int:
    return math.prod(a + b - 1 for a, b in zip(candidate.first, candidate.second, strict=True))


def _is_point(size: Sizes) -> bool:
    return math.prod(size) == 1


def _too_few(
    old: Sizes,
    kernels: tuple[Sizes, Sizes],
    channels: int,
    sizes: tuple[int, int],
    groups: int,
    where: str,
) -> ArgumentError:
    """Return the refusal, with the number of channels that is needed and one that suffices."""
    f, c = sizes
    candidates = _sizes(old, kernels)
    needed = min(
        -(-inner * _whole(candidate) // math.prod(size))
        for candidate in candidates
        for inner, size in ((c, candidate.second), (f, candidate.first))
    )
    enough = min(
        inner * math.prod(size)
        for candidate in candidates
        for inner, size in ((c, candidate.first), (f, candidate.second))
    )
    least = f"{max(needed, channels + 1) * groups} or more"
    return ArgumentError(
        "so few channels between the two layers do not hold every such kernel",
        where=where,
        expected=least
        + ("" if enough * groups == needed * groups else f"; {enough * groups} always do"),
        got=channels * groups,
        remedy="give more channels, or kernels of which one is as large as the layer's and the "
        "other is 1; allow_residual=True then takes the closest",
    )
