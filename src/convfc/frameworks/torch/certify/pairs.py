"""Which layer of one network stands for which of the other: the pairs that a certificate compares.

Two networks are walked together by the names of their parts. Where either of them has a CONV layer,
in whatever form, the walk stops and the place is a pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from convfc.errors import GeometryError
from convfc.frameworks.torch.certify.unrolled import UnrolledLayer
from convfc.frameworks.torch.forms import form_of
from convfc.frameworks.torch.layers import PatchConv
from convfc.frameworks.torch.read import geometry_of, obstacle, own_forward
from convfc.frameworks.torch.weights import steps_of
from convfc.geometry import ConvGeometry

__all__ = [
    "HeadConv",
    "Pair",
    "Pairs",
    "find_pairs",
    "form_of",
    "has_own_weights",
    "is_linear_map",
    "other_geometry",
]


@dataclass(frozen=True, eq=False)
class Pair:
    """A place of both networks; for a layer that stands at several, the first of them.

    ``part`` is the first network's own part there, if ``before`` is an adapter of it.
    """

    name: str
    before: nn.Module
    after: nn.Module
    part: nn.Module | None = None

    @property
    def called(self) -> nn.Module:
        """The part of the first network that is called."""
        return self.before if self.part is None else self.part

    @property
    def forms(self) -> tuple[str, str]:
        """What the layer is before and after, in one word each."""
        return word_for(self.before), word_for(self.after)


@dataclass
class Pairs:
    """What `find_pairs` found; ``places`` are the names of all parts that a pair covers."""

    pairs: list[Pair] = field(default_factory=list)
    places: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    unconverted: list[str] = field(default_factory=list)


class HeadConv(nn.Module):
    """A CONV layer in the place of an ``nn.Linear``, called with what the ``nn.Linear`` receives.

    `convfc.to_conv` makes such heads: the kernel is as large as the feature map that was flattened,
    so that there is one output position.
    """

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    @property
    def weight(self) -> Tensor:
        """The weight, as the ``nn.Linear`` has it."""
        weight: Tensor = self.conv.weight  # type: ignore[assignment]
        return weight.flatten(1)

    @property
    def bias(self) -> Tensor | None:
        """The bias."""
        return self.conv.bias  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs ``(..., f)`` of rows ``(..., k)``."""
        weight: Tensor = self.conv.weight  # type: ignore[assignment]
        y: Tensor = self.conv(x.reshape(-1, *weight.shape[1:]))
        return y.reshape(*x.shape[:-1], y.shape[1])


def word_for(module: nn.Module) -> str:
    """Say in one word what a layer is, for a certificate.

    Examples
    --------
    >>> word_for(nn.Conv2d(3, 8, 3)), word_for(nn.Linear(3, 8))
    ('conv', 'Linear')
    """
    if isinstance(module, UnrolledLayer):
        return "unrolled"
    form = "native" if isinstance(module, HeadConv) else form_of(module)
    return "conv" if form == "native" else form or type(module).__name__


def has_own_weights(module: nn.Module) -> bool:
    """Say whether a layer's weight is its own parameter, element by element, in any layout.

    Examples
    --------
    >>> has_own_weights(nn.Conv2d(3, 8, 3)), has_own_weights(nn.ReLU())
    (True, False)
    """
    if isinstance(module, PatchConv):
        return module.holds_conv_weight()
    form = form_of(module)
    if form == "weight":
        return len(steps_of(module)) == 1
    if form == "native":
        return obstacle(module) is None
    if isinstance(module, HeadConv):
        return has_own_weights(module.conv)
    if isinstance(module, UnrolledLayer):
        return module.is_plain()
    own = isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
    return own and not parametrize.is_parametrized(module)


def is_linear_map(module: nn.Module) -> bool:
    """Say whether a module is made of such layers, one behind the other, and of nothing else.

    Then the moduli of its parameters on the modulus of its input give the magnitude B.
    """
    if type(module) is nn.Sequential:
        return len(module) > 0 and all(map(is_linear_map, module))
    return has_own_weights(module)


def other_geometry(pair: Pair) -> Iterator[str]:
    """Yield, in words, what the second layer's geometry has other than the first one's.

    One input may not show it: where there is one output position, every stride computes the same.
    What no input can show is no difference (see `_as_seen`). The layers' own geometries are
    compared; an ``output_size`` changes the output padding of one call only.

    Examples
    --------
    >>> list(other_geometry(Pair("0", nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3, stride=2))))
    ['its stride; expected (1, 1), got (2, 2)']
    >>> list(other_geometry(Pair("0", nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1, dilation=2))))
    []
    """
    ours, theirs = (_geometry(side) for side in (pair.before, pair.after))
    if ours is None or theirs is None:
        return
    for name, mine in ours.items():
        if mine != theirs[name]:
            yield f"its {name}; expected {mine}, got {theirs[name]}"


def _geometry(layer: nn.Module) -> dict[str, Any] | None:
    """Return the geometry of a layer that computes what its attributes say; else None."""
    if isinstance(layer, UnrolledLayer):
        return _as_seen(layer.record.geometry)
    form = form_of(layer)
    if form not in ("patch", "weight") and not (form == "native" and own_forward(layer) is None):
        return None
    try:
        return _as_seen(geometry_of(layer, ()))
    except GeometryError:
        return None  # no convolution has it: the layer fails when it is run, which is told


def _as_seen(geometry: ConvGeometry) -> dict[str, Any]:
    """Return what a geometry consists of, by name, without what no input can show.

    One tap has no distance to another; and a transposed layer of one tap that neither steps, pads
    nor cuts is the layer that is not transposed.
    """
    axes = zip(geometry.kernel_size, geometry.dilation, strict=True)
    apart = tuple(1 if taps == 1 else dilation for taps, dilation in axes)
    per_position = {*geometry.kernel_size, *geometry.stride} == {1}
    moved = any(map(any, geometry.padding)) or any(geometry.output_padding)
    transposed = geometry.transposed and (moved or not per_position)
    # No geometry of these: an output padding may be as large as a dilation that is of no effect.
    return {**vars(geometry), "dilation": apart, "transposed": transposed}


def find_pairs(before: nn.Module, after: nn.Module) -> Pairs:
    """Walk two networks together and pair their CONV layers, whatever form they have.

    Parameters
    ----------
    before, after : nn.Module

    Returns
    -------
    Pairs
        A place where both have a CONV layer that convfc does not know is ``unconverted``, one that
        only one network has is ``missing``.

    Examples
    --------
    >>> first, second = nn.Sequential(nn.Conv2d(3, 8, 3)), nn.Sequential(nn.Conv2d(3, 8, 3))
    >>> [pair.name for pair in find_pairs(first, second).pairs]
    ['0']
    """
    found = Pairs()
    _walk(before, after, "", found, set())
    return found


def _walk(
    before: nn.Module, after: nn.Module, name: str, found: Pairs, seen: set[tuple[int, int]]
) -> None:
    layers = [module for module in (before, after) if form_of(module)]
    if layers:
        if not any(map(_is_known, layers)):
            found.unconverted.append(name)
            return
        found.places.add(name)
        if (id(before), id(after)) not in seen:
            seen.add((id(before), id(after)))
            found.pairs.append(_pair(name, before, after))
        return
    ours = {key: part for key, part in before._modules.items() if part is not None}
    theirs = {key: part for key, part in after._modules.items() if part is not None}
    for key in ours | theirs:
        place = f"{name}.{key}" if name else key
        if key in ours and key in theirs:
            _walk(ours[key], theirs[key], place, found, seen)
            continue
        alone = ours.get(key, theirs.get(key))
        assert alone is not None, "one of the two has it"  # noqa: S101
        for inner, module in alone.named_modules(prefix=place, remove_duplicate=False):
            if form_of(module):
                found.missing.append(inner)


def _pair(name: str, before: nn.Module, after: nn.Module) -> Pair:
    """Return the pair of a place; a head that became a CONV layer is called as it was."""
    if type(before) is nn.Linear and form_of(after) in ("native", "weight"):
        return Pair(name, before, HeadConv(after))
    return Pair(name, _callable(before), _callable(after), before)


def _callable(layer: nn.Module) -> nn.Module:
    return UnrolledLayer(layer) if form_of(layer) == "unrolled" else layer


def _is_known(module: nn.Module) -> bool:
    form = form_of(module)
    return form is not None and (form != "native" or obstacle(module) is None)
