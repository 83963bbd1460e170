"""Wider layers that compute the same: Net2Net's and network morphism's widening, of any layer.

A layer gets more filters, or units. With it grow all layers whose channels are coupled with its
own, what has a number per channel on the way, and the columns of everything that reads them.

Every layer is read as the FC matrix that it equals, ``(f, taps, c / groups)``: the paper's K,
transposed; an `nn.Linear` is the case of one tap. More filters are more rows, which are copies of
old ones. More units to read are more columns, with the shares of old ones. The matrix then goes
back into a weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn import init

from convfc.errors import ArgumentError, UnsupportedLayer
from convfc.frameworks.torch.forms.form import form_of
from convfc.frameworks.torch.morphism.certify import Change, Morph, finish
from convfc.frameworks.torch.morphism.channels import (
    Axis,
    DependencyGraph,
    Layer,
    dependencies,
)
from convfc.frameworks.torch.morphism.target import (
    check_layer,
    generator_of,
    new_weight,
    real_number,
)
from convfc.frameworks.torch.places import copy_of, holders, tied
from convfc.frameworks.torch.read import matrix_to_weight, weight_to_matrix
from convfc.frameworks.torch.running import check_can_run, deep_copy
from convfc.frameworks.torch.tensors import wide
from convfc.sizes import integer, one_of

How: TypeAlias = Literal["copy", "zero"]
Split: TypeAlias = Literal["equal", "random"]

_DONE = {
    ("copy", "equal"): "copied",
    ("copy", "random"): "copied, with random shares",
    ("zero", "equal"): "new ones without outgoing weights",
}
# Of random shares, 1/64 or less is the unit: enough for few copies to differ much.
_FEWEST_PARTS = 64
# What a module starts with, as its own reset_parameters has it.
_PER_CHANNEL = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
_SLOPE = 0.25


@torch.inference_mode(mode=False)  # what is made here is to be trained
def widen(
    model: nn.Module,
    name: str,
    *,
    width: int | None = None,
    factor: float | None = None,
    example: Any,
    how: How = "copy",
    split: Split = "equal",
    noise: float = 0.0,
    seed: int = 0,
) -> Morph:
    """Return a model that computes the same with more filters, or units, in a layer.

    With ``how="copy"`` it is Net2WiderNet (Chen, Goodfellow & Shlens 2015, arXiv:1511.05641): new
    units are copies of old ones, drawn at random, and who reads them divides its weights by the
    number of copies. With ``how="zero"`` it is the width morphing of Wei et al. (2016): new
    units have random incoming weights and outgoing weights of zero.

    A layer whose output is added to others' (a residual branch, for instance) is widened together
    with these; a depthwise layer together with what it reads; `BatchNorm` and the like follow.

    Parameters
    ----------
    model, name, example, seed
        As for every morph: see `convfc.methods.morphism`.
    width : int, optional
        How many filters, or units, the layer is to have.
    factor : float, optional
        Instead: how many times as many; rounded up, to a number that its groups divide.
    how : {"copy", "zero"}
    split : {"equal", "random"}
        How the readers' weights are divided among copies. Copies with equal shares stay copies
        in training, as they get the same gradients; random ones differ from the first step on.
    noise : float
        Standard deviation of noise on the incoming weights of copies, relative to that of the
        layer's weights: Net2Net's way to make copies differ. Then the model does not compute quite
        the same, and the certificate says so.

    Returns
    -------
    Morph

    Raises
    ------
    UnsupportedLayer
        If its units cannot become more without changing what the model computes: the message names
        the place and the way out.
    UnsupportedModel
        If `torch.fx` cannot trace the model, or traces something else in training.
    ArgumentError
        If an argument has no such value.

    Examples
    --------
    >>> import torch
    >>> conv, bn, fc = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(144, 10)
    >>> model = nn.Sequential(conv, bn, nn.ReLU(), nn.Flatten(), fc)
    >>> morph = widen(model, "0", width=6, example=torch.ones(2, 1, 8, 8))
    >>> morph.model[0], morph.model[4]
    (Conv2d(1, 6, kernel_size=(3, 3), stride=(1, 1)),
     Linear(in_features=216, out_features=10, bias=True))
    >>> morph.certificate.holds
    True
    >>> morph.what
    '0: widened from 4 to 6 (copied)'
    """
    _check_options(width, factor, how, split, noise)
    part = check_layer(model, name)
    check_can_run(model, "example")
    graph = dependencies(model, example)
    layer = graph.layers.get(id(part))
    if layer is None:
        raise UnsupportedLayer(
            "the model's forward does not call it as a layer of torch.nn",
            where=name,
            remedy="call it as layer(x), and let its forward be that of a class of torch.nn",
        )
    space, repeat = _space(graph, layer, name)
    size, blocks = graph.spaces.size(space), graph.spaces.blocks(space)
    wanted = _wanted(size * repeat, width, factor, blocks * repeat, name)
    generator = generator_of(seed)
    units = draw_copies(
        size, wanted // repeat, blocks=blocks, how=how, split=split, generator=generator
    )
    growth = _Growth(graph, space, units, how == "zero", noise, generator)
    growing = growth.layers()
    _check_tied(model, growing)
    copies: dict[int, Any] = {}
    after = copy_of(model, {id(one.module) for one in growing}, copies)
    changes = [growth.change(one, copies[id(one.module)]) for one in growing]
    made = [one.name for one in growing if one.kind != "channels" and growth.holds(one.outputs)]
    along = f", and with it {', '.join(sorted(set(made) - {layer.name}))}" if len(made) > 1 else ""
    what = f"{name}: widened from {size * repeat} to {wanted} ({_DONE[how, split]}){along}"
    return finish(model, after, example, changes, what=what, noise=noise, seed=seed)


def _space(graph: DependencyGraph, layer: Layer, name: str) -> tuple[int, int]:
    """Return the space of a layer's outputs, if it can grow, and how many filters a unit has."""
    for pin in [pin for segment in layer.outputs for pin in graph.spaces.pins(segment.space)]:
        raise UnsupportedLayer(
            f"its units cannot become more, because of {pin.where}: {pin.reason}",
            where=name or "the model itself",
            remedy=pin.remedy,
        )
    if len(layer.outputs) > 1:
        raise UnsupportedLayer(
            "a depthwise layer on a concatenation has units of several layers",
            where=name,
            remedy="widen one of the layers before it",
        )
    return layer.outputs[0].space, layer.outputs[0].repeat


def _wanted(now: int, width: int | None, factor: float | None, unit: int, name: str) -> int:
    """Return how many filters there are to be."""
    if factor is not None:
        exact = Fraction(str(factor)) * now
        return math.ceil(exact / unit) * unit
    assert width is not None, "checked before"  # noqa: S101
    if width < now or width % unit:
        raise ArgumentError(
            "this width does not fit the groups"
            if width % unit
            else "a layer can only become wider",
            where=f"{name}, width",
            expected=f"{now} or more" + (f", a multiple of {unit}" if unit > 1 else ""),
            got=width,
            remedy="give factor=, which is rounded up to what the groups allow"
            if width % unit
            else "train a smaller network instead",
        )
    return width


def _check_options(
    width: int | None, factor: float | None, how: str, split: str, noise: float
) -> None:
    one_of("how", how, get_args(How), what="there is no such way", remedy="leave it out to copy")
    one_of("split", split, get_args(Split), what="there is no such split", remedy="leave it out")
    if how == "zero" and (split != "equal" or noise):
        raise ArgumentError(
            "new units without outgoing weights have no copies to tell apart",
            where="noise" if noise else "split",
            expected="how='copy'",
            got="how='zero'",
            remedy="leave it out",
        )
    if (width is None) == (factor is None):
        raise ArgumentError(
            "the new width is one number",
            where="width",
            expected="one of width= and factor=",
            got="none" if width is None else "both",
            remedy="give width=32, or factor=2",
        )
    if width is not None:
        integer("width", width, least=1)
    real_number("factor", 1 if factor is None else factor, 1)
    real_number("noise", noise, 0)


def _check_tied(model: nn.Module, growing: list[Layer]) -> None:
    """Refuse layers that share a parameter with another module."""
    for one in growing:
        held = holders(model, but={id(one.module)})
        for parameter in one.module.parameters(recurse=False):
            if id(parameter) in held:
                reason, *_ = tied("one of its parameters", held[id(parameter)])
                raise UnsupportedLayer(
                    reason, where=one.name, remedy="untie them: give it a copy of the parameter"
                )


# Which old unit each new unit copies, and how copies share what they have to say


@dataclass(frozen=True, eq=False)
class Copies:
    """The new units of a space.

    ``index`` (int64) says for each the old one that it copies, g of Net2WiderNet; ``fresh`` which
    are new. By ``numerators`` the outgoing weights of each are multiplied, and then divided by
    ``denominators`` (float64). For each old unit the quotients add up to 1, exactly.
    """

    index: Tensor
    fresh: Tensor
    numerators: Tensor
    denominators: Tensor


def draw_copies(
    size: int,
    width: int,
    *,
    blocks: int = 1,
    how: How = "copy",
    split: Split = "equal",
    generator: torch.Generator,
) -> Copies:
    """Draw Net2Net's random mapping from new units to old ones.

    In each of the blocks, which are alike, the first units are the old ones, every other one is a
    copy of an old one drawn at random. Who reads them divides its weights by the number of copies.
    To the same sum, copies get random shares, no two of a unit alike, so that they differ in what
    they learn: multiples of a power of two, which add up without rounding. With ``how="zero"`` the
    outgoing weights of new units are nothing, those of old ones as before.
    """
    old, more = size // blocks, (width - size) // blocks
    first = torch.arange(old).expand(blocks, -1)
    drawn = torch.randint(old, (blocks, more), generator=generator)
    starts = torch.arange(blocks)[:, None] * old
    index = (torch.cat([first, drawn], dim=1) + starts).flatten()
    fresh = (torch.arange(old + more) >= old).repeat(blocks)
    if how == "zero":
        return Copies(index, fresh, (~fresh).double(), torch.ones(width, dtype=torch.float64))
    counts = index.bincount(minlength=size)
    if split == "equal":
        ones = torch.ones(width, dtype=torch.float64)
        return Copies(index, fresh, ones, counts[index].double())
    numerators = torch.empty(width, dtype=torch.float64)
    denominators = torch.empty(width, dtype=torch.float64)
    for unit in range(size):
        parts = _different_parts(int(counts[unit]), generator)
        numerators[index == unit] = parts.double()
        denominators[index == unit] = float(parts.sum())
    return Copies(index, fresh, numerators, denominators)


def _different_parts(count: int, generator: torch.Generator) -> Tensor:
    """Return random positive integers, no two alike, whose sum is a power of two."""
    if count == 1:
        return torch.ones(1, dtype=torch.int64)
    least = count * (count + 1) // 2
    total = 1 << (max(_FEWEST_PARTS, 2 * least) - 1).bit_length()
    # Random sizes in order, and 1, 2, 3, ... on top of them: then they grow strictly.
    cuts = torch.randint(total - least + 1, (count - 1,), generator=generator).sort().values
    ends = torch.tensor([0]), torch.tensor([total - least])
    parts = torch.cat([ends[0], cuts, ends[1]]).diff().sort().values + torch.arange(1, count + 1)
    return parts[torch.randperm(count, generator=generator)]


# Layers with more rows and columns


@dataclass(frozen=True, eq=False)
class Rows:
    """The filters of a grown layer: for each the old one that it copies, and which are new.

    New ones are copies, with noise relative to the standard deviation of all weights; or random
    (He et al. 2015) and without a bias.
    """

    index: Tensor
    fresh: Tensor
    random: bool = False
    noise: float = 0.0
    seed: int = 0

    def of(self, matrix: Tensor) -> Tensor:
        """Return the rows of a grown matrix (f, k)."""
        fresh = self.fresh.to(matrix.device)
        rows = matrix[self.index.to(matrix.device)]
        if not fresh.any():
            return rows
        generator = generator_of(self.seed)
        drawn = torch.empty(int(fresh.sum()), matrix.shape[1], dtype=torch.float64)
        if self.random:
            init.kaiming_normal_(drawn, nonlinearity="relu", generator=generator)
            rows[fresh] = drawn.to(rows)
        elif self.noise:
            init.normal_(drawn, std=self.noise, generator=generator)
            rows[fresh] += drawn.to(rows) * matrix.std(correction=0)
        return rows

    def of_bias(self, bias: Tensor) -> Tensor:
        """Return the bias of the rows."""
        rows = bias[self.index.to(bias.device)]
        return rows.masked_fill(self.fresh.to(bias.device), 0.0) if self.random else rows


@dataclass(frozen=True, eq=False)
class Columns:
    """The channels that a grown layer reads, ``(groups, c / groups)``.

    For each there is the old one of its group that it copies, and by what its weights are
    multiplied, and then divided.
    """

    index: Tensor
    numerators: Tensor
    denominators: Tensor

    def of(self, matrix: Tensor) -> Tensor:
        """Return the columns of a grown matrix: (groups, f / groups, taps, c / groups)."""
        index, up, down = (
            t.to(matrix.device)[:, None, None, :]
            for t in (self.index, self.numerators, self.denominators)
        )
        return matrix.gather(3, index.expand(*matrix.shape[:3], -1)) * up / down


@torch.no_grad()
def grow_weights(
    layer: nn.Module, rows: Rows | None = None, columns: Columns | None = None, groups: int = 1
) -> nn.Module:
    """Grow a CONV or FC layer, which then has so many groups, and return it."""
    some: Any = layer
    matrix = _fc_matrix(some, some.weight)
    if columns is not None:
        matrix = columns.of(matrix)
    channels = matrix.shape[-1]
    matrix = matrix.flatten(2).flatten(0, 1)
    if rows is not None:
        matrix = rows.of(matrix)
        if some.bias is not None:
            some.bias = nn.Parameter(rows.of_bias(some.bias.detach()), some.bias.requires_grad)
    filters = len(matrix)
    sizes = (filters, channels)
    if getattr(some, "transposed", False):
        sizes = (channels * groups, filters // groups)
    some.weight = new_weight(matrix, (*sizes, *some.weight.shape[2:]), some, groups)
    if form_of(layer) == "native":
        some.groups = groups
        some.in_channels, some.out_channels = channels * groups, filters
    else:
        some.in_features, some.out_features = channels, filters
    return layer


def _divisors(layer: nn.Module, columns: Columns | None) -> Tensor | int:
    """Return by what each old weight of a layer is divided, in the weight's shape."""
    if columns is None:
        return 1
    some: Any = layer
    matrix = _fc_matrix(some, torch.ones_like(some.weight))
    groups = len(matrix)
    down = matrix.new_ones(groups, matrix.shape[-1])
    down.scatter_(1, columns.index.to(down.device), columns.denominators.to(down))
    matrix = (matrix * down[:, None, None, :]).flatten(2).flatten(0, 1)
    transposed = getattr(some, "transposed", False)
    return matrix_to_weight(matrix, some.weight.shape, transposed=transposed, groups=groups)


def _fc_matrix(layer: Any, weight: Tensor) -> Tensor:
    """Return a weight as the FC matrix (groups, f / groups, taps, c / groups), in float64."""
    transposed, groups = getattr(layer, "transposed", False), getattr(layer, "groups", 1)
    channels = weight.shape[0] // groups if transposed else weight.shape[1]
    matrix = wide(weight_to_matrix(weight.detach(), transposed=transposed, groups=groups))
    grouped: Tensor = matrix.unflatten(0, (groups, -1)).unflatten(2, (-1, channels))
    return grouped


@torch.no_grad()
def grow_channels(layer: nn.Module, rows: Rows) -> nn.Module:
    """Grow a module that has one parameter, or running statistic, per channel; and return it."""
    index, fresh = rows.index, rows.fresh
    for name, start in _PER_CHANNEL.items():
        old = getattr(layer, name, None)
        if old is None:
            continue
        new = old.detach()[index.to(old.device)]
        if rows.random:
            value = _SLOPE if isinstance(layer, nn.PReLU) else start
            new = new.masked_fill(fresh.to(old.device), value)
        setattr(
            layer, name, nn.Parameter(new, old.requires_grad) if name in layer._parameters else new
        )
    setattr(layer, "num_parameters" if isinstance(layer, nn.PReLU) else "num_features", len(index))
    return layer


# What becomes of every layer of a model when one space of units grows


@dataclass(frozen=True, eq=False)
class _Growth:
    """The growth of one space.

    The incoming weights of new units are random, or copies with noise; the generator draws a seed
    for each layer.
    """

    graph: DependencyGraph
    space: int
    units: Copies
    random: bool
    noise: float
    generator: torch.Generator

    def layers(self) -> list[Layer]:
        """Return all layers that change."""
        every = self.graph.layers.values()
        return [one for one in every if self.holds(one.inputs) or self.holds(one.outputs)]

    def holds(self, axis: Axis | None) -> bool:
        """Say whether an axis has units of the space."""
        return any(self.graph.spaces.holds(segment, self.space) for segment in axis or ())

    def change(self, layer: Layer, copied: nn.Module) -> Change:
        """Grow a layer's copy, and return what there is to prove."""
        rows = self._rows(layer) if self.holds(layer.outputs) else None
        grow: Callable[[nn.Module], nn.Module]
        divides: Tensor | int = 1
        if layer.kind == "channels":
            assert rows is not None, "its inputs are its outputs"  # noqa: S101
            grow = partial(grow_channels, rows=rows)
        else:
            columns = self._columns(layer)
            groups = getattr(layer.module, "groups", 1)
            if layer.kind == "depthwise":
                groups = len(self._places(layer.inputs))
            grow = partial(grow_weights, rows=rows, columns=columns, groups=groups)
            divides = _divisors(layer.module, columns)
        behind = 1 + max(getattr(layer.module, "weight").dim() - 2, 0)  # noqa: B009
        axis = 1 if layer.kind == "channels" else -behind
        keep = rows is not None and self.random
        return Change(
            layer.name,
            layer.module,
            grow(copied),
            spread_input=self._spread(layer.inputs, axis) if self.holds(layer.inputs) else None,
            spread_output=self._spread(layer.outputs, axis) if rows and not keep else None,
            rebuild=lambda module: grow(deep_copy(module)),
            keep_output=_picked(~rows.fresh, axis) if rows and keep else None,
            divides=divides,
            form="widened",
            why_no_integers="noise was added" if rows and self.noise else "",
        )

    def _rows(self, layer: Layer) -> Rows:
        fresh = self.graph.spaces.along(layer.outputs, self.space, self.units.fresh, False)
        seed = int(torch.randint(2**31, (), generator=self.generator))
        return Rows(self._places(layer.outputs), fresh, self.random, self.noise, seed)

    def _columns(self, layer: Layer) -> Columns | None:
        axis, spaces = layer.inputs, self.graph.spaces
        if axis is None or layer.kind == "depthwise" or not self.holds(axis):
            return None
        groups = int(getattr(layer.module, "groups", 1))
        index = self._places(axis).unflatten(0, (groups, -1))
        per_group = spaces.places(axis) // groups
        return Columns(
            index - per_group * torch.arange(groups)[:, None],
            spaces.along(axis, self.space, self.units.numerators, 1).view_as(index),
            spaces.along(axis, self.space, self.units.denominators, 1).view_as(index),
        )

    def _places(self, axis: Axis | None) -> Tensor:
        return self.graph.spaces.grown(axis or (), self.space, self.units.index)

    def _spread(self, axis: Axis | None, dim: int) -> Callable[[Tensor], Tensor]:
        return _picked(self._places(axis), dim)


def _picked(index: Tensor, dim: int) -> Callable[[Tensor], Tensor]:
    """Return a function that picks elements along an axis, by their places or by a mask."""
    places = index.nonzero().flatten() if index.dtype == torch.bool else index
    return lambda t: t.index_select(dim, places.to(t.device))
