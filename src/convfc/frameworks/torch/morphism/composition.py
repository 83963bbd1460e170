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


class _Way(NamedTuple):
    """Sizes of the two kernels, and which of them is given: "first", "second" or "svd"."""

    first: Sizes
    second: Sizes
    given: str


def composed(second: Tensor, first: Tensor) -> Tensor:
    """Return the filters of one layer behind another.

    Parameters
    ----------
    second : Tensor, shape (f, *K2, C)
    first : Tensor, shape (C, *K1, c)

    Returns
    -------
    Tensor, shape (f, *K, c)
        With K = K1 + K2 - 1.

    Examples
    --------
    >>> composed(torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[1.0], [1.0]]])).flatten()
    tensor([1., 3., 2.])
    """
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
    """Find two kernels whose composition is a third with zeros around.

    Parameters
    ----------
    groups : sequence of Tensor, shape (f, *K0, c)
        The third kernel, of each group; in float64.
    kernels : tuple
        K1 and K2; ``K1 + K2 - 1`` is at least K0 on every axis.
    at : tuple of int
        Where the third kernel begins in ``K1 + K2 - 1``.
    channels : int
        C, of one group.
    generator : torch.Generator
        Of the given factor, which is random with orthogonal rows or columns, and of what the
        equation leaves free in the other.
    dtype : torch.dtype
        To which the given factor is rounded before the other is solved for.
    where : str
        For the message.
    allow_residual : bool
        Whether to take the closest there is if no exact one is known (truncated SVD).

    Returns
    -------
    Factors
        Of all groups, one after the other.

    Raises
    ------
    ArgumentError
        If no exact solution is found.
    """
    f, *kernel, c = groups[0].shape
    old = tuple(kernel)
    for way in _ways(old, kernels, channels, (f, c)):
        pairs = []
        for group in groups:
            pair = _solved(group, way, at, channels, generator, dtype)
            if pair is None:
                break
            pairs.append(pair)
        else:
            return _placed(pairs, way, kernels, at, old)
    points = [w for w in _sizes(old, kernels) if _is_point(w.first) or _is_point(w.second)]
    if allow_residual and points:
        way = points[0]._replace(given="svd")
        pairs = [_by_svd(group, way, channels, generator) for group in groups]
        found = _placed(pairs, way, kernels, at, old)
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


def _sizes(old: Sizes, kernels: tuple[Sizes, Sizes]) -> list[_Way]:
    """Return all kernels inside the given ones whose composition covers the old, largest first."""
    axes = [
        [(a, b) for a in range(1, k1 + 1) for b in range(1, k2 + 1) if a + b - 1 >= k]
        for k, k1, k2 in zip(old, *kernels, strict=True)
    ]
    ways = [
        _Way(tuple(a for a, _ in pairs), tuple(b for _, b in pairs), "")
        for pairs in itertools.product(*axes)
    ]
    return sorted(ways, key=_fewest_taps)


def _fewest_taps(way: _Way) -> tuple[int, int]:
    first, second = math.prod(way.first), math.prod(way.second)
    return -(first + second), -first


def _ways(
    old: Sizes, kernels: tuple[Sizes, Sizes], channels: int, sizes: tuple[int, int]
) -> Iterator[_Way]:
    """Yield what may be solved, by the number of unknowns."""
    f, c = sizes
    everything = _sizes(old, kernels)
    for way in everything:
        whole = _whole(way)
        # The equations fall apart into one small system per tap if the given kernel is a point.
        givens = ["first", "second"] if _is_point(way.first) else ["second", "first"]
        for given in givens:
            inner, unknown = (c, way.second) if given == "first" else (f, way.first)
            if channels * math.prod(unknown) >= inner * whole:
                yield way._replace(given=given)
    for way in everything:  # a kernel of low rank needs fewer channels
        if old in (way.first, way.second) and (_is_point(way.first) or _is_point(way.second)):
            yield way._replace(given="svd")


def _solved(
    group: Tensor,
    way: _Way,
    at: Sizes,
    channels: int,
    generator: torch.Generator,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor] | None:
    """Return A and B of one group; None if the given factor does not make the rank."""
    if way.given == "svd":
        rank = int(torch.linalg.matrix_rank(_as_matrix(group, way)))
        return _by_svd(group, way, channels, generator) if rank <= channels else None
    whole = [a + b - 1 for a, b in zip(way.first, way.second, strict=True)]
    target = _inside(group, whole, _start(way, at, tuple(group.shape[1:-1])))
    if way.given == "first":
        given = _orthogonal(channels, way.first, group.shape[-1], generator).to(dtype).double()
        found = _completed(given, target, way.second, generator)
        return None if found is None else (given, found)
    turned = _orthogonal(channels, way.second, len(group), generator).to(dtype).double()
    found = _completed(turned, _turned(target), way.first, generator)
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
    group: Tensor, way: _Way, channels: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return A and B, one of them a point, as close as so many channels allow (Eckart-Young)."""
    f, *kernel, c = group.shape
    left, values, right = torch.linalg.svd(_as_matrix(group, way), full_matrices=False)
    rank = min(channels, len(values))
    roots = values[:rank].sqrt()
    left, right = left[:, :rank] * roots, roots[:, None] * right[:rank]
    # Turned at random, so that no channel is one singular vector; what is left over is random.
    drawn = torch.randn(channels, rank, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(drawn)[0]
    first, second = turn @ right, left @ turn.mT
    free = torch.randn(first.shape, generator=generator, dtype=torch.float64)
    first = first + first.square().mean().sqrt() * (free - turn @ (turn.mT @ free))
    if _is_point(way.second):
        return first.reshape(channels, *kernel, c), second.reshape(f, *way.second, channels)
    return (
        first.reshape(channels, *way.first, c),
        second.reshape(f, *kernel, channels),
    )


def _as_matrix(group: Tensor, way: _Way) -> Tensor:
    """Return the matrix that B A is, if one of the two kernels is a point."""
    return group.flatten(1) if _is_point(way.second) else group.flatten(0, -2)


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


def _start(way: _Way, at: Sizes, old: Sizes) -> Sizes:
    """Return where the old kernel begins in the composition of the active ones."""
    room = [a + b - 1 - k for a, b, k in zip(way.first, way.second, old, strict=True)]
    return tuple(map(min, at, room))


def _placed(
    pairs: Sequence[tuple[Tensor, Tensor]],
    way: _Way,
    kernels: tuple[Sizes, Sizes],
    at: Sizes,
    old: Sizes,
) -> Factors:
    """Put the active kernels into the ones asked for, so that the old one begins at its place."""
    used = _start(way, at, old)
    left = [start - u for start, u in zip(at, used, strict=True)]
    first_at = tuple(min(n, k - a) for n, k, a in zip(left, kernels[0], way.first, strict=True))
    second_at = tuple(n - m for n, m in zip(left, first_at, strict=True))
    return Factors(
        torch.cat([_inside(a, kernels[0], first_at) for a, _ in pairs]),
        torch.cat([_inside(b, kernels[1], second_at) for _, b in pairs]),
        (way.first, way.second),
    )


def _whole(way: _Way) -> int:
    return math.prod(a + b - 1 for a, b in zip(way.first, way.second, strict=True))


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
    ways = _sizes(old, kernels)
    needed = min(
        -(-inner * _whole(way) // math.prod(size))
        for way in ways
        for inner, size in ((c, way.second), (f, way.first))
    )
    enough = min(
        inner * math.prod(size) for way in ways for inner, size in ((c, way.first), (f, way.second))
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
