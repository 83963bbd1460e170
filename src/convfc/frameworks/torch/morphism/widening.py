"""Wider layers that compute the same: Net2Net's and network morphism's widening, of any layer.

A layer gets more filters, or units. With it grow all layers whose outputs are added to its own,
what has a number per channel on the way, and the columns of everything that reads them.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, get_args

import torch
from torch import nn

from convfc.errors import ArgumentError, UnsupportedLayer
from convfc.frameworks.torch.graph import as_traced
from convfc.frameworks.torch.morphism.mapping import How, Split, draw_copies
from convfc.frameworks.torch.morphism.morph import Morph, finish
from convfc.frameworks.torch.morphism.plan import Plan, has_theory
from convfc.frameworks.torch.morphism.reading import Layer, Reading, read
from convfc.frameworks.torch.morphism.site import find_layer, generator_of
from convfc.frameworks.torch.morphism.tracing import traced
from convfc.frameworks.torch.places import copy_of, holders, tied
from convfc.sizes import one_of

__all__ = ["widen"]

_DONE = {
    ("copy", "equal"): "copied",
    ("copy", "random"): "copied, with random shares",
    ("zero", "equal"): "new ones without outgoing weights",
}


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
    part = find_layer(model, name, example).part
    reading = read(as_traced(model), traced(model, example))
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
    plan = Plan(reading, space, copies, how == "zero", noise, generator)
    growing = plan.growing()
    _check_tied(model, growing)
    twins: dict[int, Any] = {}
    after = copy_of(model, {id(one.module) for one in growing}, twins)
    changes, others = [], {}
    for one in growing:
        change = plan.change(one, twins[id(one.module)])
        if one.kind == "channels" and not has_theory(one.module):
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


def _space(reading: Reading, layer: Layer, name: str) -> tuple[int, int]:
    """Return the space of a layer's outputs, if it can grow, and how many filters a unit has."""
    for pin in [pin for segment in layer.outputs for pin in reading.spaces.pins(segment.space)]:
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
    if width is not None and (isinstance(width, bool) or not isinstance(width, int)):
        raise ArgumentError(
            "a width is an integer", where="width", got=repr(width), remedy="round it"
        )
    for what, value, least in (("factor", 1 if factor is None else factor, 1), ("noise", noise, 0)):
        if not isinstance(value, (int, float)) or not least <= value < math.inf:
            raise ArgumentError(
                "a number out of its range",
                where=what,
                expected=f"a number, {least} or more",
                got=repr(value),
                remedy="a layer can only become wider" if what == "factor" else "leave it out",
            )


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
