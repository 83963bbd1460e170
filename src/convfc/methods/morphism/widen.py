"""Wider layers that compute the same: Net2Net's and network morphism's widening, of any layer.

A layer gets more filters, or units. With it grow all layers whose outputs are added to its own,
what has a number per channel on the way, and the columns of everything that reads them.
"""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from convfc.errors import ConvfcError, UnsupportedLayer, UnsupportedModel
from convfc.frameworks.torch.heads.tracing import graph_follows_mode, trace
from convfc.frameworks.torch.read import Obstacle
from convfc.frameworks.torch.rewrite import copy_of, holders, tied
from convfc.frameworks.torch.simplify.running import as_traced
from convfc.frameworks.torch.unrolled.sparse import deep_copy
from convfc.methods.morphism.channels import Axis
from convfc.methods.morphism.fclayer import Columns, Growth, Rows, grow_channels
from convfc.methods.morphism.mapping import Copies, How, Split, draw_copies
from convfc.methods.morphism.morph import Change, Morph, finish
from convfc.methods.morphism.reading import Layer, Reading, read
from convfc.methods.morphism.site import find_layer, generator_of
from convfc.sizes import one_of

__all__ = ["widen"]

_DONE = {
    ("copy", "equal"): "copied",
    ("copy", "random"): "copied, with random shares",
    ("zero", "equal"): "new ones without outgoing weights",
}


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

    With ``how="copy"`` it is Net2WiderNet (Chen, Goodfellow & Shlens 2015, Section 3.2, Eq. (3) to
    (5)): new units are copies of old ones, drawn at random, and who reads them divides its weights
    by the number of copies. With ``how="zero"`` it is the width morphing of Wei et al. (2016,
    Section 3.4): new units have random incoming weights and outgoing weights of zero.

    A layer whose output is added to others' (a residual branch, for instance) is widened together
    with these; a depthwise layer together with what it reads; `BatchNorm` and the like follow.

    Parameters
    ----------
    model : nn.Module
        It is not changed.
    name : str
        Place of a CONV or FC layer.
    width : int, optional
        How many filters, or units, the layer is to have.
    factor : float, optional
        Instead: how many times as many; rounded up, to a number that its groups divide.
    example : Tensor, tuple or mapping
        One input, or the arguments of a call: it shows the shapes, and makes the certificate.
    how : {"copy", "zero"}
    split : {"equal", "random"}
        How the readers' weights are divided among copies. Copies with equal shares stay copies
        in training, as they get the same gradients; random ones differ from the first step on.
    noise : float
        Standard deviation of noise on the incoming weights of copies, relative to that of the
        layer's weights: Net2Net's way to make copies differ. Then the model does not compute quite
        the same, and the certificate says so.
    seed : int
        Of all random numbers.

    Returns
    -------
    Morph

    Raises
    ------
    NothingToConvert
        If there is no such layer.
    UnsupportedLayer
        If its units cannot become more without changing what the model computes: the message names
        the place and the way out.
    UnsupportedModel
        If `torch.fx` cannot trace the model, or traces something else in training.
    ConvfcError
        If an argument has no such value.

    Examples
    --------
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
    part = find_layer(model, name, example).part
    reading = read(as_traced(model), _traced(model, example))
    layer = reading.layers.get(id(part))
    if layer is None:
        raise UnsupportedLayer(
            "the model's forward does not call it as a layer of torch.nn",
            where=name,
            remedy="call it as layer(x), and let it be exactly a class of torch.nn",
        )
    space, repeat = _space(reading, layer, name)
    size = reading.spaces.size(space)
    wanted = _wanted(size * repeat, width, factor, reading.spaces.blocks(space) * repeat, name)
    generator = generator_of(seed)
    copies = draw_copies(
        size,
        wanted // repeat,
        blocks=reading.spaces.blocks(space),
        how=how,
        split=split,
        generator=generator,
    )
    plan = _Plan(reading, space, copies, how == "zero", noise, generator)
    growing = plan.growing()
    _check_tied(model, growing)
    twins: dict[int, Any] = {}
    copied = copy_of(model, {id(one.module) for one in growing}, twins)
    after = copied
    changes, others = [], {}
    for one in growing:
        change = plan.change(one, twins[id(one.module)])
        if one.kind == "channels" and not _has_theory(one.module):
            others[one.name] = "it normalises by statistics of its input"
        else:
            changes.append(change)
    held = plan.grow_held(after)
    made = [one.name for one in growing if one.kind != "channels" and plan.makes(one)]
    along = f", and with it {', '.join(sorted(set(made) - {layer.name}))}" if len(made) > 1 else ""
    what = f"{name}: widened from {size * repeat} to {wanted} ({_DONE[how, split]}){along}"
    return finish(
        model, after, example, changes, what=what, noise=noise, seed=seed, others=others, held=held
    )


@dataclass(frozen=True, eq=False)
class _Plan:
    """What becomes of each layer when one space grows."""

    reading: Reading
    space: int
    copies: Copies
    random: bool
    noise: float
    generator: torch.Generator

    def growing(self) -> list[Layer]:
        """Return all layers that change."""
        return [
            layer
            for layer in self.reading.layers.values()
            if self.in_space(layer.inputs) or self.in_space(layer.outputs)
        ]

    def in_space(self, axis: Axis | None) -> bool:
        """Say whether an axis has units of the space."""
        return any(self.reading.spaces.holds(segment, self.space) for segment in axis or ())

    def makes(self, layer: Layer) -> bool:
        """Say whether a layer's outputs are units of the space."""
        return self.in_space(layer.outputs)

    def change(self, layer: Layer, twin: nn.Module) -> Change:
        """Grow a layer's twin, and return what there is to prove."""
        rows = self._rows(layer) if self.makes(layer) else None
        grow: Callable[[nn.Module], nn.Module]
        divides: Tensor | int = 1
        if layer.kind == "channels":
            assert rows is not None, "its inputs are its outputs"  # noqa: S101
            grow = partial(grow_channels, rows=rows)
        else:
            growth = self._growth(layer, rows)
            grow, divides = growth, growth.divides(layer.module)
        behind = 1 + max(getattr(layer.module, "weight").dim() - 2, 0)  # noqa: B009
        axis = 1 if layer.kind == "channels" else -behind
        keep = rows is not None and self.random
        return Change(
            layer.name,
            layer.module,
            grow(twin),
            spread_input=self._spread(layer.inputs, axis) if self.in_space(layer.inputs) else None,
            spread_output=self._spread(layer.outputs, axis) if rows and not keep else None,
            rebuild=lambda module: grow(deep_copy(module)),
            keep_output=_picked(~rows.fresh, axis) if rows and keep else None,
            divides=divides,
            form="widened",
            why_no_integers="noise was added" if rows and self.noise else "",
        )

    def grow_held(self, model: nn.Module) -> tuple[str, ...]:
        """Grow parameters in nobody's layer, such as a scale per channel; return their names."""
        grown = []
        for name, axes in self.reading.held.items():
            where = [k for k, axis in enumerate(axes) if self.in_space(axis)]
            if not where:
                continue
            owner, _, own = name.rpartition(".")
            module = model.get_submodule(owner)
            old: Tensor = getattr(module, own)
            new = old.detach()
            for k in where:
                new = new.index_select(k, self._places(axes[k]).to(old.device))
            trains = isinstance(old, nn.Parameter)
            setattr(module, own, nn.Parameter(new, old.requires_grad) if trains else new)
            grown.append(name)
        return tuple(grown)

    def _growth(self, layer: Layer, rows: Rows | None) -> Growth:
        groups = int(getattr(layer.module, "groups", 1))
        if layer.kind == "depthwise":
            return Growth(rows, groups=len(self._places(layer.inputs)))
        if not self.in_space(layer.inputs):
            return Growth(rows, groups=groups)
        index = self._places(layer.inputs).unflatten(0, (groups, -1))
        spaces, axis = self.reading.spaces, layer.inputs
        assert axis is not None, "it has units of the space"  # noqa: S101
        per_group = spaces.places(axis) // groups
        columns = Columns(
            index - per_group * torch.arange(groups)[:, None],
            spaces.along(axis, self.space, self.copies.numerators, 1).view_as(index),
            spaces.along(axis, self.space, self.copies.denominators, 1).view_as(index),
        )
        return Growth(rows, columns, groups)

    def _rows(self, layer: Layer) -> Rows:
        fresh = self.reading.spaces.along(layer.outputs, self.space, self.copies.fresh, False)
        seed = int(torch.randint(2**31, (), generator=self.generator))
        return Rows(self._places(layer.outputs), fresh, self.random, self.noise, seed)

    def _places(self, axis: Axis | None) -> Tensor:
        return self.reading.spaces.grown(axis or (), self.space, self.copies.index)

    def _spread(self, axis: Axis | None, dim: int) -> Callable[[Tensor], Tensor]:
        return _picked(self._places(axis), dim)


def _picked(index: Tensor, dim: int) -> Callable[[Tensor], Tensor]:
    """Return a function that picks elements along an axis, by their places or by a mask."""
    places = index.nonzero().flatten() if index.dtype == torch.bool else index
    return lambda t: t.index_select(dim, places.to(t.device))


def _has_theory(module: nn.Module) -> bool:
    """Say whether a module with a number per channel is a fixed map, whose rounding is bounded."""
    return isinstance(module, nn.PReLU) or (
        isinstance(module, _BatchNorm) and module.running_mean is not None
    )


def _space(reading: Reading, layer: Layer, name: str) -> tuple[int, int]:
    """Return the space of a layer's outputs, if it can grow, and how many filters a unit has."""
    for pin in [pin for segment in layer.outputs for pin in reading.spaces.pins(segment.space)]:
        raise UnsupportedLayer(
            f"its units cannot become more, because of {pin.place}: {pin.reason}",
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
        raise ConvfcError(
            "no such width" if width % unit else "a layer can only become wider",
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
        raise ConvfcError(
            "new units without outgoing weights have no copies to tell apart",
            where="noise" if noise else "split",
            expected="how='copy'",
            got="how='zero'",
            remedy="leave it out",
        )
    if (width is None) == (factor is None):
        raise ConvfcError(
            "the new width is one number",
            where="width",
            expected="one of width= and factor=",
            got="none" if width is None else "both",
            remedy="give width=32, or factor=2",
        )
    if width is not None and (isinstance(width, bool) or not isinstance(width, int)):
        raise ConvfcError(
            "a width is an integer", where="width", got=repr(width), remedy="round it"
        )
    if factor is not None and not (1 <= factor < math.inf):
        raise ConvfcError(
            "a layer can only become wider", where="factor", expected="1 or more", got=factor
        )
    if not 0 <= noise < math.inf:
        raise ConvfcError(
            "a standard deviation is not negative", where="noise", expected="0 or more", got=noise
        )


def _check_tied(model: nn.Module, growing: list[Layer]) -> None:
    """Refuse layers that share a parameter with another module."""
    for one in growing:
        held = holders(model, but={id(one.module)})
        for parameter in one.module.parameters(recurse=False):
            if id(parameter) in held:
                reason, _ = tied("one of its parameters", held[id(parameter)])
                raise UnsupportedLayer(
                    reason, where=one.name, remedy="untie them: give it a copy of the parameter"
                )


def _traced(model: nn.Module, example: Any) -> fx.Graph:
    """Trace a model, or say in which line that fails."""
    args = example if isinstance(example, tuple) else (example,)
    if isinstance(example, Mapping):
        bound = inspect.signature(model.forward).bind(**example)
        bound.apply_defaults()
        args = (*bound.args, *bound.kwargs.values())
    graph = trace(as_traced(model), args)
    if isinstance(graph, Obstacle):
        raise UnsupportedModel(
            graph.reason,
            where=_line(model),
            expected="a forward that torch.fx can trace",
            remedy="write this line without asking what is in a tensor, or widen the part of the "
            "model that can be traced by itself",
        )
    if not graph_follows_mode(graph):
        raise UnsupportedModel(
            "its forward does something else in training, which would read the units as well",
            where=type(model).__name__,
            expected="the same operations in training and in evaluation",
            remedy="switch the other outputs off (aux_logits=False), or widen before adding them",
        )
    return graph


def _line(model: nn.Module) -> str:
    """Return the last line of the user's own code that `torch.fx` had come to."""
    try:
        fx.Tracer().trace(as_traced(model))
    except Exception as error:
        own = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if "/torch/" not in frame.filename.replace("\\", "/") and frame.filename != __file__
        ]
        if own:
            return f"{own[-1].filename}, line {own[-1].lineno}, {own[-1].line}"
    return "model"
