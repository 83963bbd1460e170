"""The target layer of a morph: found, checked, read as its kernel, and given its new part.

The layer is looked up by name, refused if its forward or its weight is not PyTorch's own, seen at
work on the example, and replaced in a copy of the model, wherever it stands. In between it is a
`Kernel`: the filters ``(f, *kernel, c / groups)`` with what the geometry adds; an `nn.Linear` is
the case without kernel axes. A larger kernel needs as much more padding (a transposed layer: crops
as much more). Where the two sides of an axis are not alike, a layer of padding in front, or of
cropping behind, says it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from convfc.comparing import dtype_name, wide
from convfc.errors import (
    ArgumentError,
    DtypeError,
    GeometryError,
    NothingToConvert,
    Refusal,
    ShapeError,
    UnsupportedLayer,
)
from convfc.frameworks.torch.forms.children import HOOKS, as_parameter, is_hooked, plain_linear
from convfc.frameworks.torch.forms.factors import linear_obstacle
from convfc.frameworks.torch.forms.form import form_of
from convfc.frameworks.torch.forms.formats import channels_last, in_format, is_channels_last
from convfc.frameworks.torch.graph import as_traced, trace
from convfc.frameworks.torch.morphism.certify import Change, Morph, finish
from convfc.frameworks.torch.places import copy_of, holders, places
from convfc.frameworks.torch.read import (
    filters_to_weight,
    geometry_of,
    native_class,
    obstacle,
    own_class,
    own_forward,
    weight_to_filters,
)
from convfc.frameworks.torch.references import exchange
from convfc.frameworks.torch.running import (
    check_can_run,
    check_module,
    deep_copy,
    run_on,
    unchanged,
)
from convfc.places import place_in_words, tied
from convfc.sizes import Sizes, per_axis

Pads: TypeAlias = tuple[tuple[int, int], ...]
"""(low, high) per axis."""

BACK = "take the model back first, with convfc.to_conv"
_PADS = {
    "zeros": "Zero",
    "reflect": "Reflection",
    "replicate": "Replication",
    "circular": "Circular",
}


# Finding the layer, and putting another one in its place


@dataclass(frozen=True, eq=False)
class Target:
    """One part of a model, and the shape of what each call of it is given on the example."""

    model: nn.Module
    name: str
    part: nn.Module
    example: Any
    shapes: tuple[tuple[int, ...], ...]

    @property
    def where(self) -> str:
        """The place in words."""
        return place_in_words(self.name)


def find_layer(model: nn.Module, name: str, example: Any) -> Target:
    """Find a CONV or FC layer to be morphed, and see it at work; refuse it if there is none."""
    check_layer(model, name)
    return find_part(model, name, example)


def check_layer(model: nn.Module, name: str) -> nn.Module:
    """Return the CONV or FC layer at a place, or refuse what cannot be morphed."""
    part = look_up(model, name)
    blocked = _layer_obstacle(model, name, part)
    if blocked is not None:
        raise blocked._replace(
            reason=f"{own_class(part).__name__}: {blocked.reason}", where=place_in_words(name)
        ).error(UnsupportedLayer, "it cannot be morphed")
    weight: Tensor = part.weight  # type: ignore[assignment]
    if not weight.is_floating_point():
        raise DtypeError(
            "morphs are for real weights",
            where=place_in_words(name),
            expected="a real floating-point dtype",
            got=dtype_name(weight.dtype),
            remedy="write the layer as two real ones",
        )
    return part


def find_part(model: nn.Module, name: str, example: Any) -> Target:
    """Find any part of a model, and see it at work when the model runs on the example."""
    part = look_up(model, name)
    shapes: list[tuple[int, ...]] = []
    others: list[str] = []

    def note(_: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        given = (*args, *kwargs.values())
        if len(given) == 1 and isinstance(given[0], Tensor) and isinstance(output, Tensor):
            shapes.append(tuple(given[0].shape))
        else:
            others.append(f"{len(given)} arguments")

    with unchanged(model):
        check_can_run(model, "example")
        # In front of the hooks of the user, which may change the output.
        handle = part.register_forward_hook(note, with_kwargs=True, prepend=True)
        try:
            run_on(model, example, "example")
        finally:
            handle.remove()
    if others or not shapes:
        raise UnsupportedLayer(
            "its call has more than one tensor" if others else "the model does not call it",
            where=place_in_words(name),
            expected="calls with one tensor",
            got=others[0] if others else "none",
            remedy="let the model call the layer as layer(x)",
        )
    if any(0 in shape for shape in shapes):
        raise empty_example()
    return Target(model, name, part, example, tuple(shapes))


def empty_example() -> ShapeError:
    """Return the refusal of an example on which a layer is called with nothing."""
    return ShapeError("the example is empty", where="example", remedy="give at least one input")


def graph_of(model: nn.Module, example: Any) -> fx.Graph | Refusal:
    """Trace a copy of a model, where torch.fx may leave attributes; or say why it cannot."""
    args = example if isinstance(example, tuple) else (example,)
    if isinstance(example, Mapping):
        bound = inspect.signature(model.forward).bind(**example)
        bound.apply_defaults()
        args = (*bound.args, *bound.kwargs.values())
    shared: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    return trace(as_traced(deep_copy(model, shared)), args)


def replaced(
    target: Target,
    make: Callable[[nn.Module], nn.Module],
    *,
    what: str,
    seed: int = 0,
    **change: Any,
) -> Morph:
    """Return the model with what ``make`` makes of a copy of the target in its place."""
    copies: dict[int, Any] = {}
    copied = copy_of(target.model, {id(target.part)}, copies)
    old = copies[id(target.part)]
    new = make(old)
    new.training = target.part.training
    model = exchange(copied, {id(old): new})
    change["rebuild"] = lambda layer: make(deep_copy(layer))
    one = Change(target.name, target.part, new, **change)
    what = f"{target.where}: {what}"
    return finish(target.model, model, target.example, [one], what=what, seed=seed)


def chained(old: nn.Module, *parts: nn.Module) -> nn.Module:
    """Return a new part as one module, which takes over mode and hooks of the old."""
    whole = parts[0] if len(parts) == 1 else nn.Sequential(*parts)
    for part in (whole, *parts):
        part.train(old.training)
    if whole is not old and is_hooked(old):
        vars(whole).update({name: vars(old)[name] for name in HOOKS})
        vars(old).update(_no_hooks())
    return whole


def generator_of(seed: int) -> torch.Generator:
    """Return a random number generator of its own, so that the global ones stay as they are."""
    return torch.Generator().manual_seed(seed)


def real_number(name: str, value: object, least: float, most: float = math.inf) -> float:
    """Return a number from ``least`` to ``most``, or refuse it."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not (least <= value <= most and math.isfinite(value))
    ):
        raise ArgumentError(
            "a number out of its range",
            where=name,
            expected=f"a number, {least:g} or more" + f", at most {most:g}" * (most < math.inf),
            got=repr(value),
            remedy="give a number in this range",
        )
    return float(value)


def look_up(model: nn.Module, name: str) -> nn.Module:
    """Return the part at a place, or refuse a name that no part has."""
    check_module(model)
    found = places(model)
    if name not in found:
        known = {n: form_of(part) == "native" for n, part in found.items()}
        layers = [n for n in known if known[n] or isinstance(found[n], nn.Linear)]
        raise NothingToConvert(
            "the model has no such part",
            where=name,
            expected=f"one of {', '.join(layers)}" if layers else "a model with layers",
            remedy="convfc.inspect(model) lists the CONV layers with their names",
        )
    return found[name]


def _layer_obstacle(model: nn.Module, name: str, part: nn.Module) -> Refusal | None:
    """Return why a part is not a layer that can be replaced; None if it is one."""
    parents = [name[:end] for end, letter in enumerate(name) if letter == "."]
    above = [model, *map(model.get_submodule, parents)] if name else []
    forms = {form_of(one) for one in (part, *above)}
    if forms & {"patch", "weight"}:
        return Refusal("it is an FC form of a CONV layer", BACK)
    if "unrolled" in forms:
        return Refusal("it is an unrolled CONV layer", BACK)
    if form_of(part) == "native":
        blocked = obstacle(part)
        if blocked is not None and own_forward(part) == blocked:
            blocked = blocked._replace(remedy="put the layer of torch.nn that it equals in place")
    elif isinstance(part, nn.Linear):
        bare = object.__new__(type(part))  # without its hooks, which are no obstacle here
        vars(bare).update(vars(part), **_no_hooks())
        blocked = linear_obstacle(bare)
    else:
        return Refusal(
            "it is not a CONV or FC layer",
            "name a layer of torch.nn: a Conv, ConvTranspose or Linear",
        )
    return blocked or tie_of(model, part)


def tie_of(model: nn.Module, part: nn.Module) -> Refusal | None:
    """Return why a layer whose parameter another module holds, too, cannot change; or None."""
    held = holders(model, but={id(part)})
    for parameter in part.parameters(recurse=False):
        if id(parameter) in held:
            reason, *_ = tied("its weight or bias", held[id(parameter)])
            return Refusal(reason, "untie them: give the layer a copy of the parameter")
    return None


def _no_hooks() -> dict[str, Any]:
    """Return the hooks of a module that has none."""
    return {name: vars(nn.Module())[name] for name in HOOKS}


# The layer as its kernel


@dataclass(frozen=True, eq=False)
class Kernel:
    """A CONV or FC layer, as the numbers that it computes with.

    ``filters`` ``(f, *size, c / groups)`` and ``bias`` are wide, on the CPU. ``pads`` are what is
    added to the input on either side of an axis; of a transposed layer, what is taken from the
    output.
    """

    filters: Tensor
    bias: Tensor | None = None
    groups: int = 1
    stride: Sizes = ()
    dilation: Sizes = ()
    pads: Pads = ()
    mode: str = "zeros"
    transposed: bool = False

    @property
    def size(self) -> Sizes:
        """The kernel's size; empty for an FC layer."""
        return tuple(self.filters.shape[1:-1])

    @property
    def by_group(self) -> list[Tensor]:
        """The filters of each group."""
        return list(self.filters.chunk(self.groups))


def kernel_of(layer: Any) -> Kernel:
    """Read a layer of `torch.nn`."""
    weight = wide(layer.weight.detach()).cpu()
    bias = None if layer.bias is None else wide(layer.bias.detach()).cpu()
    if form_of(layer) != "native":
        return Kernel(weight, bias)
    # For padding="same" the size does not matter: it asks for stride 1.
    geometry = geometry_of(layer, (1,) * (weight.dim() - 2))
    filters = weight_to_filters(weight, transposed=geometry.transposed, groups=geometry.groups)
    pads = tuple(
        (low, high - extra)
        for (low, high), extra in zip(geometry.padding, geometry.output_padding, strict=True)
    )
    walk = geometry.groups, geometry.stride, geometry.dilation
    mode = geometry.padding_mode, geometry.transposed
    return Kernel(filters.contiguous(), bias, *walk, pads, *mode)


def build(kernel: Kernel, like: nn.Module) -> list[nn.Module]:
    """Return ordinary layers like this one: the layer itself, and pads or crops around it."""
    weight = new_weight(kernel.filters.flatten(1), kernel.size, like, kernel.groups)
    bias = None
    if kernel.bias is not None:
        value = kernel.bias.to(weight.device, weight.dtype)
        bias = as_parameter(value, weight if like.bias is None else like.bias)  # type: ignore[arg-type]
    if form_of(like) != "native":
        return [plain_linear(weight, bias).train(like.training)]
    says, before, behind = (_cropping if kernel.transposed else _padding)(kernel, like)
    filters, channels = len(kernel.filters), kernel.filters.shape[-1] * kernel.groups
    says |= {"stride": kernel.stride, "dilation": kernel.dilation, "groups": kernel.groups}
    cls: Any = native_class(like)
    conv: Any = cls(channels, filters, kernel.size, **says, bias=False, device="meta")
    conv.weight, conv.bias = weight, bias
    return [part.train(like.training) for part in (*before, conv, *behind)]


def resized(kernel: Kernel, size: Sizes, at: Sequence[int]) -> Kernel:
    """Return the same layer with a larger kernel, zeros around the old one, and more padding.

    The old one begins ``at`` these taps of the new one; what stands outside is cut off.
    """
    ends = [new - old - low for new, old, low in zip(size, kernel.size, at, strict=True)]
    added = tuple(zip(at, ends, strict=True))
    pads = tuple(
        (low + d * start, high + d * end)
        for (low, high), d, (start, end) in zip(kernel.pads, kernel.dilation, added, strict=True)
    )
    # The last axis is that of the channels.
    filters = nn.functional.pad(kernel.filters, [0, 0, *_from_the_last(added)])
    return replace(kernel, filters=filters, pads=pads)


def _from_the_last(pads: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Return pads as PyTorch's functions of padding take them: the last axis first."""
    return tuple(n for pair in pads[::-1] for n in pair)


def offsets(kernel: Kernel, size: Sizes) -> Sizes:
    """Return where the old kernel begins in a larger one: where no layer of padding is needed.

    Of several such places, or without one, it is the nearest to the middle.
    """
    return tuple(_offset(kernel, axis, new) for axis, new in enumerate(size))


def check_room(kernel: Kernel, target: Target) -> None:
    """Refuse more padding of the target's inputs than its mode can make."""
    less = {"reflect": 1, "circular": 0}.get(kernel.mode)  # a circle goes round once
    if less is None:
        return
    for shape in target.shapes:
        sizes = shape[-len(kernel.size) :]
        for size, pair in zip(sizes, kernel.pads, strict=True):
            if max(pair) > size - less:
                raise GeometryError(
                    f"padding_mode={kernel.mode!r} cannot pad an axis by as much as the larger "
                    "kernel needs",
                    where=target.where,
                    expected=f"at most {size - less} for the input size {sizes}",
                    got=max(pair),
                    remedy="take a smaller kernel, or a larger example",
                )


def read_size(value: Any, kernel: Kernel, name: str) -> Sizes:
    """Read a kernel size that a user gives: one number or one per axis; of an FC layer, 1."""
    if kernel.size:
        return per_axis(name, value, len(kernel.size), least=1)
    if value not in (1, ()):
        raise ArgumentError(
            "an FC layer has no kernel",
            where=name,
            expected="1, or ()",
            got=repr(value),
            remedy="leave it out",
        )
    return ()


def in_words(size: Sizes) -> str:
    """Return a kernel's size in words; that of an FC layer is empty."""
    return "×".join(map(str, size))


def new_weight(matrix: Tensor, size: Sizes, layer: Any, groups: int) -> nn.Parameter:
    """Return an FC matrix ``(f, k)`` as a weight like a layer's: its dtype, device and format."""
    old: Tensor = layer.weight
    if form_of(layer) == "native":
        filters = matrix.unflatten(1, (*size, -1))
        matrix = filters_to_weight(filters, transposed=layer.transposed, groups=groups)
    new = as_parameter(matrix.to(old.device, old.dtype), old)
    if form_of(layer) == "native" and is_channels_last(old):
        new.data = in_format(new.data, channels_last(old.dim() - 2))
    return new


_Says: TypeAlias = tuple[dict[str, Any], list[nn.Module], list[nn.Module]]
"""What a layer says of its padding, and the layers in front of it and behind it."""


def _padding(kernel: Kernel, like: nn.Module) -> _Says:
    """Return the padding of a layer; what it cannot say becomes layers in front."""
    totals = [d * (k - 1) for k, d in zip(kernel.size, kernel.dilation, strict=True)]
    same = tuple((total // 2, total - total // 2) for total in totals)
    if like.padding == "same" and kernel.pads == same:
        return {"padding": "same", "padding_mode": kernel.mode}, [], []
    if all(low == high >= 0 for low, high in kernel.pads):
        sizes = tuple(low for low, _ in kernel.pads)
        return {"padding": sizes, "padding_mode": kernel.mode}, [], []
    added = [(max(low, 0), max(high, 0)) for low, high in kernel.pads]
    taken = [(min(low, 0), min(high, 0)) for low, high in kernel.pads]
    return {"padding": 0}, _pad_layer(kernel.mode, added) + _pad_layer("zeros", taken), []


def _cropping(kernel: Kernel, like: nn.Module) -> _Says:
    """Return padding and output padding of a transposed layer; the rest becomes a layer behind."""
    padding, extra, rest = [], [], []
    for axis, (low, high) in enumerate(kernel.pads):
        said = is_cropped(kernel, axis, low, high)
        padding.append(low if said else 0)
        extra.append(low - high if said else 0)
        rest.append((0, 0) if said else (-low, -high))
    if kernel.bias is not None and any(n > 0 for pair in rest for n in pair):
        raise ArgumentError(
            "zeros would have to be added behind a transposed layer with a bias",
            where="padding",
            remedy="take larger kernels",
        )
    says = {"padding": tuple(padding), "output_padding": tuple(extra)}
    return says, [], _pad_layer("zeros", rest)


def _pad_layer(mode: str, pads: Sequence[tuple[int, int]]) -> list[nn.Module]:
    """Return a layer that pads; none if there is nothing to pad. Negative numbers crop."""
    if not any(n for pair in pads for n in pair):
        return []
    cls: Any = getattr(nn, f"{_PADS[mode]}Pad{len(pads)}d")
    return [cls(_from_the_last(pads))]


def _offset(kernel: Kernel, axis: int, new: int) -> int:
    """Return where the old kernel begins on one axis."""
    growth = new - kernel.size[axis]
    (low, high), d = kernel.pads[axis], kernel.dilation[axis]

    def cost(start: int) -> tuple[bool, int, int]:
        first, last = low + d * start, high + d * (growth - start)
        said = first == last >= 0
        if kernel.transposed:
            said = is_cropped(kernel, axis, first, last)
        return not said, abs(2 * start - growth), start

    return min(range(min(0, growth), max(0, growth) + 1), key=cost)


def is_cropped(kernel: Kernel, axis: int, low: int, high: int) -> bool:
    """Say whether padding and output padding of a transposed layer can say what is cropped."""
    return low >= 0 and 0 <= low - high < max(kernel.stride[axis], kernel.dilation[axis])
