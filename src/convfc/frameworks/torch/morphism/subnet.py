"""Sub-network morphing: one layer becomes a chain of layers, or branches that are added up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from convfc.errors import ArgumentError
from convfc.frameworks.torch.morphism.depth import middle_channels, split, starting
from convfc.frameworks.torch.morphism.magnitude import Caller, Sums, magnitude
from convfc.frameworks.torch.morphism.morph import Morph
from convfc.frameworks.torch.morphism.site import Site, chained, find_layer, generator_of, morphed
from convfc.frameworks.torch.morphism.taps import (
    Taps,
    build,
    check_room,
    grown,
    kernel_sizes,
    offsets,
    read,
)
from convfc.sizes import Sizes

__all__ = ["ParallelSum", "morph_subnet"]

Chain: TypeAlias = Sequence[tuple[Any, int | None]]
"""Kernel and channels of one layer after the other; the last has None, the layer's own filters."""

# Shares are multiples of 1/64: they are exact, and so is what they are shares of, if it is 64 n.
_PARTS = 64


class ParallelSum(nn.ModuleList):
    """Branches on one input, added up.

    Examples
    --------
    >>> branches = ParallelSum([nn.Identity(), nn.ReLU(), nn.Identity()])
    >>> branches(torch.tensor([-1.0, 2.0]))
    tensor([-2.,  6.])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of what the branches return."""
        first, *others = self
        total: Tensor = first(x)
        for branch in others:
            total = total + branch(x)
        return total


@magnitude.register
def _(module: ParallelSum, sums: Sums, call: Caller = nn.Module.__call__) -> Sums | None:
    found = [magnitude(branch, sums, call) for branch in module]
    values = terms = None
    for one in found:
        if one is None:
            return None
        values = one.values if values is None else values + one.values
        terms = one.terms if terms is None else max(terms, one.terms)
    return None if values is None else Sums(values, (terms or 0) + len(found) - 1)


class _Step(NamedTuple):
    """One layer of a chain: its kernel, and how many filters it has."""

    kernel: Sizes
    channels: int


@torch.inference_mode(mode=False)  # what is made here is to be trained
def morph_subnet(
    model: nn.Module,
    name: str,
    *,
    example: Any,
    layers: Chain | None = None,
    branches: Sequence[Chain] | None = None,
    activation: nn.Module | str | None = "prelu",
    seed: int = 0,
) -> Morph:
    """Make a sub-network of one layer (subnet morphing of Wei et al. 2016).

    Sequential, with ``layers``: depth morphing again and again. Stacked, with ``branches``: the
    kernel is the sum of one kernel per branch (random shares of every weight), and every branch is
    a chain again.

    Parameters
    ----------
    model : nn.Module
        It stays as it is.
    name : str
        Place of a CONV or FC layer; empty for the model itself.
    example : Tensor, array, tuple or dict
        An input; a tuple holds several arguments, a dict keyword arguments.
    layers : sequence of (kernel, channels), optional
        The chain, in order; the last one's channels are None. An FC layer's kernels are 1.
    branches : sequence of such chains, optional
        Of a chain, all kernels together, K1 + K2 - 1 and so on, are its reach. One branch at least
        reaches over the layer's kernel; the others may reach less, or more.
    activation : nn.Module, "prelu" or None
        Between the layers of a chain, starting as the identity; as for `morph_depth`.
    seed : int
        Of shares and factors.

    Returns
    -------
    Morph

    Raises
    ------
    NothingToConvert
        If no part has this name.
    UnsupportedLayer
        If the part is no layer that can be morphed.
    ArgumentError
        If a chain is not one, if its kernels are too small or its channels too few.

    Examples
    --------
    >>> conv, x = nn.Conv2d(4, 4, 3, padding=1), torch.randn(1, 4, 8, 8)
    >>> morph = morph_subnet(conv, "", example=x, branches=[[(3, None)], [(1, 4), (1, None)]])
    >>> morph.model
    ParallelSum(
      (0): Conv2d(4, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
      (1): Sequential(
        (0): Conv2d(4, 4, kernel_size=(1, 1), stride=(1, 1), bias=False)
        (1): PReLU(num_parameters=1)
        (2): Conv2d(4, 4, kernel_size=(1, 1), stride=(1, 1), bias=False)
      )
    )
    >>> morph.certificate.holds
    True
    """
    site = find_layer(model, name, example)
    taps = read(site.part)
    if (layers is None) == (branches is None):
        raise ArgumentError(
            "a sub-network is either a chain or branches",
            where="layers, branches",
            expected="one of the two",
            got="both" if layers is not None else "none",
            remedy="give layers=[(3, 16), (1, None)], or branches=, a list of such lists",
        )
    chains = (
        [_steps(layers, taps, "layers", site.where)]
        if layers is not None
        else [
            _steps(branch, taps, f"branches[{number}]", site.where)
            for number, branch in enumerate(branches or ())
        ]
    )
    _check_reach(chains, taps)

    def make(layer: nn.Module) -> nn.Module:
        whole = read(layer)
        parts = [whole] if layers is not None else _shares(whole, chains, layer, seed)
        made = [
            _chain(layer, part, chain, activation, seed + number, site)
            for number, (part, chain) in enumerate(zip(parts, chains, strict=True))
        ]
        if layers is not None:
            return chained(layer, *made[0])
        branched = [one[0] if len(one) == 1 else nn.Sequential(*one) for one in made]
        return chained(layer, ParallelSum(branched))

    single = all(len(chain) == 1 for chain in chains)
    said = " + ".join("(" + ", ".join(f"{_said(s)}" for s in chain) + ")" for chain in chains)
    return morphed(
        site,
        make,
        what=("a chain of layers " if layers is not None else "a sum of branches ") + said,
        form="chain" if layers is not None else "branches",
        divides=_PARTS,
        why_no_integers="" if single else "its factors are real numbers",
        seed=seed,
    )


def _chain(
    layer: nn.Module,
    taps: Taps,
    chain: Sequence[_Step],
    activation: nn.Module | str | None,
    seed: int,
    site: Site,
) -> list[nn.Module]:
    """Return the layers of a chain that computes this.

    Split off one by one from the front; where the channels do not suffice for that, from the back.
    """
    try:
        steps = _peeled(layer, taps, chain, seed, site.where, front=True)
    except ArgumentError as error:
        try:
            steps = _peeled(layer, taps, chain, seed, site.where, front=False)
        except ArgumentError:
            raise error from None
    check_room(steps[0], site.inputs, site.where)
    made: list[nn.Module] = []
    for number, step in enumerate(steps):
        if number and activation is not None:
            made.append(starting(activation, layer))
        made += build(step, layer)
    return made


def _peeled(
    layer: nn.Module, taps: Taps, chain: Sequence[_Step], seed: int, where: str, *, front: bool
) -> list[Taps]:
    """Return what each layer of a chain computes."""
    if len(chain) == 1:
        reach = chain[0].kernel
        return [grown(taps, reach, offsets(taps, reach))]
    cut = 1 if front else len(chain) - 1
    halves = chain[:cut], chain[cut:]
    kernels = (_reach(halves[0]), _reach(halves[1]))
    channels = chain[cut - 1].channels
    first, second, _ = split(layer, taps, kernels, channels, seed=seed, where=where)
    return [
        *_peeled(layer, first, halves[0], seed + 1000, where, front=front),
        *_peeled(layer, second, halves[1], seed + 1000, where, front=front),
    ]


def _shares(
    taps: Taps, chains: Sequence[Sequence[_Step]], layer: nn.Module, seed: int
) -> list[Taps]:
    """Share the kernel out among branches: every weight at random among those that reach it.

    The bias goes to the first branch that reaches everything.
    """
    generator = generator_of(seed)
    reaches = [_reach(chain) for chain in chains]
    full = next(n for n, reach in enumerate(reaches) if _covers(reach, taps.kernel))
    left = torch.full_like(taps.filters, _PARTS)
    parts: list[Taps] = []
    for number, reach in enumerate(reaches):
        size = tuple(map(min, reach, taps.kernel))
        at = offsets(taps, size)
        drawn = torch.randint(
            1, _PARTS // len(chains), taps.filters.shape, generator=generator
        ).double()
        back = tuple(-start for start in at)
        inside = grown(replace(taps, filters=torch.ones_like(taps.filters)), size, at)
        mask = grown(inside, taps.kernel, back).filters
        share = drawn * mask
        if number != full:
            left = left - share
        part = replace(taps, filters=taps.filters * share / _PARTS, bias=None)
        parts.append(grown(part, size, at))
    parts[full] = replace(taps, filters=taps.filters * left / _PARTS)
    return parts


def _reach(chain: Sequence[_Step]) -> Sizes:
    """Return the kernel of a chain as one layer."""
    kernels = [step.kernel for step in chain]
    return tuple(sum(axis) - len(chain) + 1 for axis in zip(*kernels, strict=True))


def _covers(reach: Sizes, kernel: Sizes) -> bool:
    return all(new >= old for new, old in zip(reach, kernel, strict=True))


def _steps(chain: Any, taps: Taps, name: str, where: str) -> list[_Step]:
    """Read a chain that a user gives."""
    given = chain if isinstance(chain, (tuple, list)) else ()
    pairs: list[Any] = [
        pair if isinstance(pair, (tuple, list)) and len(pair) == 2 else None for pair in given
    ]
    good = bool(pairs) and None not in pairs
    if not good or pairs[-1][1] is not None or any(pair[1] is None for pair in pairs[:-1]):
        raise ArgumentError(
            "this is no chain of layers",
            where=name,
            expected="pairs (kernel, channels), the last one with None for the layer's filters",
            got=repr(chain),
            remedy="write it as [(3, 16), (1, None)]",
        )
    return [
        _Step(
            kernel_sizes(kernel, taps, f"{name}[{number}]"),
            middle_channels(channels, taps, where),
        )
        for number, (kernel, channels) in enumerate(pairs)
    ]


def _check_reach(chains: Sequence[Sequence[_Step]], taps: Taps) -> None:
    reaches = [_reach(chain) for chain in chains]
    if not any(_covers(reach, taps.kernel) for reach in reaches):
        raise ArgumentError(
            "no chain of kernels reaches over the layer's kernel",
            where="layers or branches",
            expected=f"K1 + K2 - 1 and so on of at least {taps.kernel} in one of them",
            got=" and ".join(map(str, reaches)) or "none",
            remedy="take larger kernels, or more layers",
        )
    if len(chains) > _PARTS // 2:
        raise ArgumentError(
            "too many branches",
            where="branches",
            expected=f"{_PARTS // 2} at most",
            got=len(chains),
            remedy="morph a branch again",
        )


def _said(step: _Step) -> str:
    return f"{'×'.join(map(str, step.kernel)) or 1} to {step.channels}"
