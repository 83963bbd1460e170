"""Morphs of one layer's kernel: a larger kernel, two layers in a row, a sub-network.

A larger kernel has zeros around the old one, and as much more padding. Of two layers whose
composition is the one, the first takes the padding, so that whatever the padding mode the second
reads what the old layer's taps would have read; the second has none. A stride s belongs to the
second: from ``z[q] = sum A[t1] x[q + d t1]`` it makes ``y[p] = sum B[t2] z[s p + d t2]``, which
reads ``x[s p + d (t1 + t2)]``. A transposed layer writes instead of reading: there the first layer
has the stride, and the second crops. Dilation and groups are both layers'. A sub-network is a chain
of such layers, or branches that are added up.

Wei, Wang, Rui & Chen 2016, arXiv 1603.01670.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import add
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from convfc.errors import ArgumentError, UnsupportedLayer
from convfc.frameworks.torch.forms.form import form_of
from convfc.frameworks.torch.morphism.certify import Morph
from convfc.frameworks.torch.morphism.composition import factorised
from convfc.frameworks.torch.morphism.identity import identity_start
from convfc.frameworks.torch.morphism.magnitude import Caller, Sums, magnitude
from convfc.frameworks.torch.morphism.target import (
    Kernel,
    Pads,
    Target,
    build,
    chained,
    check_room,
    find_layer,
    generator_of,
    in_words,
    is_cropped,
    kernel_of,
    offsets,
    read_size,
    replaced,
    resized,
)
from convfc.sizes import Sizes, integer, one_of

Chain: TypeAlias = Sequence[tuple[Any, int | None]]
"""Kernel and channels of one layer after the other; the last has None, the layer's own filters."""

_PADDING = ("padding", "padding_mode", "output_padding", "_reversed_padding_repeated_twice")
# Shares are multiples of 1/64: they are exact, and so is what they are shares of, if it is 64 n.
_PARTS = 64


# A larger kernel


@torch.inference_mode(mode=False)  # what is made here is to be trained
def morph_kernel(
    model: nn.Module, name: str, *, example: Any, kernel_size: Any, seed: int = 0
) -> Morph:
    """Give a CONV layer a larger kernel (kernel size morphing of Wei et al. 2016).

    The new taps are zero and train like the others. The old kernel stands in the middle of the new
    one. Where that is between two taps, and the padding of the two sides would differ, a layer of
    padding (of the layer's padding mode) is put in front; after a transposed layer, one that crops.

    Parameters
    ----------
    model, name, example, seed
        As for every morph: see `convfc.methods.morphism`.
    kernel_size : int or tuple of int
        At least the old one on every axis, even or odd.

    Raises
    ------
    ArgumentError
        If the kernel is smaller.
    GeometryError
        If the input is too small for the padding that a padding mode would have to make.

    Examples
    --------
    >>> model, x = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1)), torch.randn(1, 1, 8, 8)
    >>> morph = morph_kernel(model, "0", example=x, kernel_size=7)
    >>> morph.model
    Sequential(
      (0): Conv2d(1, 4, kernel_size=(7, 7), stride=(1, 1), padding=(3, 3))
    )
    >>> morph.certificate.holds, morph.certificate.layers[0].exact.identical
    (True, True)
    """
    target = find_layer(model, name, example)
    if form_of(target.part) != "native":
        raise UnsupportedLayer(
            "an FC layer has no kernel",
            where=target.where,
            remedy="name a CONV layer; what a Linear can be given is width or depth",
        )
    old = kernel_of(target.part)
    size = read_size(kernel_size, old, "kernel_size")
    if not _covers(size, old.size):
        raise ArgumentError(
            "a kernel cannot become smaller without losing taps",
            where="kernel_size",
            expected=f"at least {old.size}",
            got=size,
            remedy="give a larger kernel",
        )
    at = offsets(old, size)
    check_room(resized(old, size, at), target)

    def make(layer: nn.Module) -> nn.Module:
        parts = build(resized(kernel_of(layer), size, at), layer)
        (fresh,) = (part for part in parts if form_of(part) == "native")
        # It stays the same object, with all that it has.
        for attribute in ("kernel_size", "weight", *_PADDING):
            setattr(layer, attribute, getattr(fresh, attribute))
        return chained(layer, *(layer if part is fresh else part for part in parts))

    what = f"a kernel of {in_words(size)}"
    return replaced(target, make, what=what, form="larger kernel", seed=seed)


# Two layers


@torch.inference_mode(mode=False)  # what is made here is to be trained
def morph_depth(
    model: nn.Module,
    name: str,
    *,
    example: Any,
    kernel_sizes: tuple[Any, Any] | None = None,
    channels: int | None = None,
    activation: nn.Module | str | None = "prelu",
    seed: int = 0,
) -> Morph:
    """Make two layers of one, both trainable everywhere (Wei et al. 2016, arXiv 1603.01670).

    Neither is the identity: one of the two is random, with orthogonal filters, the other is the
    solution of the linear equation that is left, in float64 (their Algorithm 1). Where the channels
    do not suffice for the kernels, smaller ones inside them are solved for and the taps around
    start at zero (Algorithm 2). Taps that start at zero have gradients, and train.

    Parameters
    ----------
    model, name, example, seed
        As for every morph: see `convfc.methods.morphism`. The seed is that of the random factor.
    kernel_sizes : tuple of two, optional
        Of the first and of the second layer, each one number or one per axis. K1 + K2 - 1 may be
        larger than the layer's kernel: that gets zeros around, and the padding grows with it. By
        default the layer's own, then 1.
    channels : int, optional
        Between the two; as many as there are filters by default. A multiple of the groups.
    activation : nn.Module, "prelu" or None
        Between the two, starting as the identity: PReLU with slope 1 by default, or what
        `morph_activation` makes of the one given. None for none.

    Raises
    ------
    ArgumentError
        If the kernels are too small, or the channels too few; it says how many are needed.

    Notes
    -----
    A state dict gets the keys ``name.0.weight`` and so on. The first layer gets a bias of zeros if
    the layer has one; the second gets the layer's.

    Examples
    --------
    >>> conv, x = nn.Conv2d(3, 8, 3, stride=2, padding=1), torch.randn(2, 3, 9, 9)
    >>> morph = morph_depth(conv, "", example=x)
    >>> morph.model
    Sequential(
      (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
      (1): PReLU(num_parameters=1)
      (2): Conv2d(8, 8, kernel_size=(1, 1), stride=(2, 2))
    )
    >>> morph.certificate.holds
    True
    >>> morph_depth(conv, "", example=x, kernel_sizes=(3, 3), channels=24).model[0]
    Conv2d(3, 24, kernel_size=(3, 3), stride=(1, 1), padding=(2, 2))
    """
    target = find_layer(model, name, example)
    kernel = kernel_of(target.part)
    sizes = _two_sizes(kernel, kernel_sizes)
    count = _middle_channels(channels, kernel, target.where)
    chain = [_Step(sizes[0], count), _Step(sizes[1], len(kernel.filters))]
    _check_reach([chain], kernel, "kernel_sizes")

    def make(layer: nn.Module) -> nn.Module:
        return chained(layer, *_in_a_row(target, layer, kernel_of(layer), chain, activation, seed))

    _, _, active = _split(target.part, kernel, sizes, count, seed, target.where)
    said = [in_words(size) or "1" for size in (*sizes, *active)]
    what = f"two layers with the kernels {said[0]} and {said[1]} and {count} channels between them"
    if active != sizes:
        what += f", of which {said[2]} and {said[3]} are not zero"
    why = "its factors are real numbers"
    return replaced(target, make, what=what, form="two layers", why_no_integers=why, seed=seed)


def _split(
    layer: Any,
    kernel: Kernel,
    sizes: tuple[Sizes, Sizes],
    channels: int,
    seed: int,
    where: str,
) -> tuple[Kernel, Kernel, tuple[Sizes, Sizes]]:
    """Return the two kernels that one becomes, in a layer's dtype, and how much is not zero."""
    whole = tuple(a + b - 1 for a, b in zip(*sizes, strict=True))
    at = offsets(kernel, whole)
    random: Any = {"generator": generator_of(seed), "dtype": layer.weight.dtype}
    per_group = channels // kernel.groups
    found = factorised(kernel.by_group, sizes, at, per_group, where=where, **random)
    written, read = resized(kernel, whole, at).pads, ((0, 0),) * len(whole)
    ones = (1,) * len(whole)
    bias = None if kernel.bias is None else torch.zeros(channels, dtype=torch.float64)
    first = replace(kernel, filters=found.first, bias=bias, pads=written, stride=ones)
    second = replace(kernel, filters=found.second, pads=read, mode="zeros")
    if kernel.transposed:
        written, read = _two_crops(replace(kernel, pads=written))
        first = replace(first, pads=written, stride=kernel.stride)
        second = replace(second, pads=read, stride=ones)
    return first, second, found.active


def _in_a_row(
    target: Target,
    layer: nn.Module,
    kernel: Kernel,
    chain: Sequence[_Step],
    activation: nn.Module | str | None,
    seed: int,
) -> list[nn.Module]:
    """Return a chain of layers like this one that is a kernel, and activations between them."""
    if not isinstance(activation, nn.Module):
        one_of("activation", activation, ("prelu", None), remedy="give a module: nn.SiLU()")
    first, *others = _chain(layer, kernel, chain, seed, target.where)
    check_room(first, target)
    made = build(first, layer)
    for one in others:
        if activation is not None:
            like = None if isinstance(activation, str) else activation
            made.append(identity_start(like, layer))
        made += build(one, layer)
    return made


def _two_crops(kernel: Kernel) -> tuple[Pads, Pads]:
    """Share out what a transposed layer crops: the first gets the output padding, of zeros."""
    written, cropped = [], []
    for axis, (low, high) in enumerate(kernel.pads):
        said = is_cropped(kernel, axis, low, high)
        written.append((0, high - low if said else 0))
        cropped.append((low, low if said else high))
    return tuple(written), tuple(cropped)


def _middle_channels(channels: int | None, kernel: Kernel, where: str) -> int:
    """Return how many channels stand between two layers: as many as filters, or as asked for."""
    if channels is None:
        return len(kernel.filters)
    count = integer("channels", channels, least=1)
    if count % kernel.groups:
        raise ArgumentError(
            "the channels between the two layers cannot be shared out among the groups",
            where=where,
            expected=f"a multiple of {kernel.groups}",
            got=count,
            remedy=f"give {-(-count // kernel.groups) * kernel.groups}",
        )
    return count


def _two_sizes(kernel: Kernel, given: tuple[Any, Any] | None) -> tuple[Sizes, Sizes]:
    """Return the kernel sizes of the two layers."""
    if given is None:
        return kernel.size, (1,) * len(kernel.size)
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise ArgumentError(
            "two layers have two kernels",
            where="kernel_sizes",
            expected="a pair, such as (3, 1) or ((3, 3), (1, 1))",
            got=repr(given),
            remedy="give the first layer's, then the second's",
        )
    first, second = (read_size(one, kernel, f"kernel_sizes[{n}]") for n, one in enumerate(given))
    return first, second


# Sub-networks


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
        total: Tensor = reduce(add, [branch(x) for branch in self])
        return total


@magnitude.register
def _(module: ParallelSum, sums: Sums, call: Caller = nn.Module.__call__) -> Sums | None:
    found = [magnitude(branch, sums, call) for branch in module]
    known = [one for one in found if one is not None]
    if not known or len(known) < len(found):
        return None
    values = reduce(add, [one.values for one in known])
    return Sums(values, max(one.terms for one in known) + len(known) - 1)


class _Step(NamedTuple):
    """One layer of a chain: its kernel size, and how many filters it has."""

    size: Sizes
    channels: int

    def __str__(self) -> str:
        return f"{in_words(self.size) or 1} to {self.channels}"


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
    model, name, example, seed
        As for every morph: see `convfc.methods.morphism`. The seed is that of shares and factors.
    layers : sequence of (kernel, channels), optional
        The chain, in order; the last one's channels are None. An FC layer's kernels are 1.
    branches : sequence of such chains, optional
        Of a chain, all kernels together, K1 + K2 - 1 and so on, are its reach. One branch at least
        reaches over the layer's kernel; the others may reach less, or more.
    activation : nn.Module, "prelu" or None
        Between the layers of a chain, starting as the identity; as for `morph_depth`.

    Raises
    ------
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
    target = find_layer(model, name, example)
    kernel = kernel_of(target.part)
    if (layers is None) == (branches is None):
        raise ArgumentError(
            "a sub-network is either a chain or branches",
            where="layers, branches",
            expected="one of the two",
            got="both" if layers is not None else "none",
            remedy="give layers=[(3, 16), (1, None)], or branches=, a list of such lists",
        )
    given = {f"branches[{number}]": branch for number, branch in enumerate(branches or ())}
    if layers is not None:
        given = {"layers": layers}
    chains = [_steps(chain, kernel, said, target.where) for said, chain in given.items()]
    _check_reach(chains, kernel, "layers or branches")

    def make(layer: nn.Module) -> nn.Module:
        whole = kernel_of(layer)
        parts = [whole] if layers is not None else _shares(whole, chains, seed)
        made = []
        for number, (part, chain) in enumerate(zip(parts, chains, strict=True)):
            made.append(_in_a_row(target, layer, part, chain, activation, seed + number))
        if layers is not None:
            return chained(layer, *made[0])
        branched = [one[0] if len(one) == 1 else nn.Sequential(*one) for one in made]
        return chained(layer, ParallelSum(branched))

    single = all(len(chain) == 1 for chain in chains)
    said = " + ".join("(" + ", ".join(map(str, chain)) + ")" for chain in chains)
    return replaced(
        target,
        make,
        what=("a chain of layers " if layers is not None else "a sum of branches ") + said,
        form="chain" if layers is not None else "branches",
        divides=_PARTS,
        why_no_integers="" if single else "its factors are real numbers",
        seed=seed,
    )


def _chain(
    layer: nn.Module, kernel: Kernel, chain: Sequence[_Step], seed: int, where: str
) -> list[Kernel]:
    """Return what each layer of a chain computes; they are split off one by one from the front."""
    found = []
    for number, step in enumerate(chain[:-1]):
        sizes = step.size, _reach(chain[number + 1 :])
        first, kernel, _ = _split(layer, kernel, sizes, step.channels, seed + 1000 * number, where)
        found.append(first)
    return [*found, resized(kernel, chain[-1].size, offsets(kernel, chain[-1].size))]


def _shares(kernel: Kernel, chains: Sequence[Sequence[_Step]], seed: int) -> list[Kernel]:
    """Share every weight out at random among the branches that reach it, the bias to the first."""
    generator = generator_of(seed)
    reaches = [_reach(chain) for chain in chains]
    full = next(n for n, reach in enumerate(reaches) if _covers(reach, kernel.size))
    left = torch.full_like(kernel.filters, _PARTS)
    parts: list[Kernel] = []
    for number, reach in enumerate(reaches):
        size = tuple(map(min, reach, kernel.size))
        at = offsets(kernel, size)  # not positive: the branch reaches a part of the kernel
        inside = (slice(None), *(slice(-n, k - n) for n, k in zip(at, size, strict=True)))
        drawn = torch.randint(1, _PARTS // len(chains), left.shape, generator=generator).double()
        share = torch.zeros_like(left)
        share[inside] = drawn[inside]
        if number != full:
            left -= share
        part = replace(kernel, filters=kernel.filters * share / _PARTS, bias=None)
        parts.append(resized(part, size, at))
    parts[full] = replace(kernel, filters=kernel.filters * left / _PARTS)
    return parts


def _reach(chain: Sequence[_Step]) -> Sizes:
    """Return the kernel size of a chain as one layer."""
    sizes = [step.size for step in chain]
    return tuple(sum(axis) - len(chain) + 1 for axis in zip(*sizes, strict=True))


def _covers(size: Sizes, old: Sizes) -> bool:
    return all(new >= k for new, k in zip(size, old, strict=True))


def _steps(chain: Any, kernel: Kernel, name: str, where: str) -> list[_Step]:
    """Read a chain that a user gives."""
    pairs = list(chain) if isinstance(chain, (tuple, list)) else []
    good = all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs)
    if not good or [n for n, pair in enumerate(pairs) if pair[1] is None] != [len(pairs) - 1]:
        raise ArgumentError(
            "this is not a chain of layers",
            where=name,
            expected="pairs (kernel, channels), the last one with None for the layer's filters",
            got=repr(chain),
            remedy="write it as [(3, 16), (1, None)]",
        )
    sizes = [read_size(size, kernel, f"{name}[{n}]") for n, (size, _) in enumerate(pairs)]
    counts = [_middle_channels(channels, kernel, where) for _, channels in pairs]
    return list(map(_Step, sizes, counts))


def _check_reach(chains: Sequence[Sequence[_Step]], kernel: Kernel, where: str) -> None:
    reaches = [_reach(chain) for chain in chains]
    if not any(_covers(reach, kernel.size) for reach in reaches):
        raise ArgumentError(
            "no chain of kernels reaches over the layer's kernel",
            where=where,
            expected=f"K1 + K2 - 1 and so on of at least {kernel.size} in one of them",
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
