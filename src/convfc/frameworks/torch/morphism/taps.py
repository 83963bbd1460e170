"""A layer as its FC matrix: what a morph reads, changes, and builds ordinary layers of.

CONV layers of any number of axes and FC layers are one thing here, the filters
``(f, *kernel, c / groups)`` with what the geometry adds; an `nn.Linear` is the case without kernel
axes. A larger kernel with zeros around needs as much more padding (a transposed layer: crops as
much more). Where `torch.nn` cannot express it, because the two sides of an axis are not alike, a
layer of padding in front, or of cropping behind, says it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from convfc.errors import ArgumentError, GeometryError
from convfc.frameworks.torch.forms import form_of
from convfc.frameworks.torch.forward.formats import channels_last, in_format, is_channels_last
from convfc.frameworks.torch.parts import plain_linear
from convfc.frameworks.torch.read import (
    geometry_of,
    matrix_to_weight,
    native_class,
    weight_to_matrix,
)
from convfc.sizes import Sizes, per_axis

__all__ = ["Pairs", "Taps", "build", "check_room", "grown", "kernel_sizes", "offsets", "read"]

Pairs: TypeAlias = tuple[tuple[int, int], ...]
"""(low, high) per axis."""

_PADS = {
    "zeros": (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
    "reflect": (nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    "replicate": (nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    "circular": (nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
}


@dataclass(frozen=True, eq=False)
class Taps:
    """A CONV or FC layer, as the numbers that it computes with.

    Parameters
    ----------
    filters : Tensor, shape (f, *kernel, c / groups)
        In float64, on the CPU.
    bias : Tensor or None, shape (f,)
    groups : int
    stride, dilation : tuple of int
    pads : tuple of (int, int)
        What is added to the input on either side of an axis; of a transposed layer, what is taken
        from the output.
    mode : str
        Of the padding.
    transposed : bool
    """

    filters: Tensor
    bias: Tensor | None = None
    groups: int = 1
    stride: Sizes = ()
    dilation: Sizes = ()
    pads: Pairs = ()
    mode: str = "zeros"
    transposed: bool = False

    @property
    def kernel(self) -> Sizes:
        """The kernel's size; empty for an FC layer."""
        return tuple(self.filters.shape[1:-1])

    @property
    def by_group(self) -> list[Tensor]:
        """The filters of each group."""
        return list(self.filters.chunk(self.groups))


def read(layer: nn.Module) -> Taps:
    """Read a layer of `torch.nn`.

    Examples
    --------
    >>> read(nn.Conv2d(4, 6, 3, groups=2, padding=1)).filters.shape
    torch.Size([6, 3, 3, 2])
    >>> read(nn.Linear(4, 6)).kernel
    ()
    """
    weight: Tensor = layer.weight.detach()  # type: ignore[operator]
    bias: Any = layer.bias
    bias = None if bias is None else bias.detach().double().cpu()
    weight = weight.double().cpu()
    if form_of(layer) != "native":
        return Taps(weight, bias)
    # For padding="same" the size does not matter: it asks for stride 1.
    geometry = geometry_of(layer, (1,) * (weight.dim() - 2))
    matrix = weight_to_matrix(weight, transposed=geometry.transposed, groups=geometry.groups)
    pads = tuple(
        (low, high - extra)
        for (low, high), extra in zip(geometry.padding, geometry.output_padding, strict=True)
    )
    return Taps(
        matrix.reshape(geometry.filters_shape).contiguous(),
        bias,
        geometry.groups,
        geometry.stride,
        geometry.dilation,
        pads,
        geometry.padding_mode,
        geometry.transposed,
    )


def build(taps: Taps, like: nn.Module) -> list[nn.Module]:
    """Return ordinary layers that compute this: the layer itself, and pads or crops around it.

    Parameters
    ----------
    taps : Taps
    like : nn.Module
        The layer whose class, dtype, device, mode and ``requires_grad`` they get; of an `nn.Linear`
        there is an `nn.Linear`.

    Returns
    -------
    list of nn.Module
        No random number is drawn.

    Raises
    ------
    ArgumentError
        If a transposed layer with a bias would have to add to its output on one side.

    Examples
    --------
    >>> conv = nn.Conv1d(1, 1, 3)
    >>> build(replace(read(conv), pads=((1, 2),)), conv)
    [ZeroPad1d((1, 2)), Conv1d(1, 1, kernel_size=(3,), stride=(1,))]
    """
    weight, bias = _parameters(taps, like)
    if form_of(like) != "native":
        return [plain_linear(weight, bias).train(like.training)]
    sizes: Any = {"stride": taps.stride, "dilation": taps.dilation, "groups": taps.groups}
    before: list[nn.Module] = []
    behind: list[nn.Module] = []
    if taps.transposed:
        sizes |= _cropping(taps, behind)
    else:
        sizes |= _padding(taps, like, before)
    filters, channels = len(taps.filters), taps.filters.shape[-1] * taps.groups
    cls: Any = native_class(like)
    conv: Any = cls(channels, filters, taps.kernel, **sizes, bias=False, device="meta")
    conv.weight, conv.bias = weight, bias
    return [part.train(like.training) for part in (*before, conv, *behind)]


def grown(taps: Taps, kernel: Sizes, at: Sequence[int]) -> Taps:
    """Return the same layer with a larger kernel, zeros around the old taps, and more padding.

    Parameters
    ----------
    taps : Taps
    kernel : tuple of int
        The new size. Smaller ones cut the outermost taps off.
    at : sequence of int
        Where the old kernel begins in the new one, per axis; negative where it is cut off.

    Examples
    --------
    >>> taps = grown(read(nn.Conv1d(1, 1, 3, padding=1)), (7,), (2,))
    >>> taps.kernel, taps.pads, [bool(tap) for tap in taps.filters.flatten()]
    ((7,), ((3, 3),), [False, False, True, True, True, False, False])
    """
    ends = [new - old - low for new, old, low in zip(kernel, taps.kernel, at, strict=True)]
    # What nn.functional.pad takes: the last axis first, which is that of the channels.
    amounts = [
        0,
        0,
        *(n for low, high in zip(at[::-1], ends[::-1], strict=True) for n in (low, high)),
    ]
    filters = nn.functional.pad(taps.filters, amounts)
    pads = tuple(
        (low + d * start, high + d * end)
        for (low, high), d, start, end in zip(taps.pads, taps.dilation, at, ends, strict=True)
    )
    return replace(taps, filters=filters, pads=pads)


def offsets(taps: Taps, kernel: Sizes) -> Sizes:
    """Return where the old kernel best begins in a larger one, per axis.

    In the middle; where that is between two taps, where the padding can be said without a layer of
    its own, if there is such a place.

    Examples
    --------
    >>> conv = nn.Conv1d(1, 1, 3, padding=1)
    >>> offsets(read(conv), (5,))
    (1,)
    >>> same = nn.Conv1d(1, 1, 2, padding="same")
    >>> offsets(read(same), (3,)), build(grown(read(same), (3,), (1,)), same)
    ((1,), [Conv1d(1, 1, kernel_size=(3,), stride=(1,), padding=same)])
    """
    return tuple(_offset(taps, axis, new) for axis, new in enumerate(kernel))


def check_room(taps: Taps, inputs: Sequence[Tensor], where: str) -> None:
    """Refuse more padding of an input than its mode can make.

    Raises
    ------
    GeometryError
        If reflection reaches over the whole axis, or a circle goes round more than once.
    """
    less = {"reflect": 1, "circular": 0}.get(taps.mode)
    if less is None:
        return
    for x in inputs:
        sizes = tuple(x.shape[-len(taps.kernel) :])
        for size, pair in zip(sizes, taps.pads, strict=True):
            if max(pair) > size - less:
                raise GeometryError(
                    f"padding_mode={taps.mode!r} cannot pad an axis by as much as the larger "
                    "kernel needs",
                    where=where,
                    expected=f"at most {size - less} for the input size {sizes}",
                    got=max(pair),
                    remedy="take a smaller kernel, or a larger example",
                )


def kernel_sizes(value: Any, taps: Taps, name: str) -> Sizes:
    """Read a kernel size that a user gives: one number, or one per axis of the layer.

    Raises
    ------
    ArgumentError
        If it is no size, or not one per axis; of an FC layer, if it is not 1.

    Examples
    --------
    >>> kernel_sizes(3, read(nn.Conv2d(1, 1, 5)), "kernel_size")
    (3, 3)
    >>> kernel_sizes(1, read(nn.Linear(2, 2)), "kernel_size")
    ()
    """
    if taps.kernel:
        return per_axis(name, value, len(taps.kernel), least=1)
    if value not in (1, ()):
        raise ArgumentError(
            "an FC layer has no kernel",
            where=name,
            expected="1, or ()",
            got=repr(value),
            remedy="leave it out",
        )
    return ()


def _parameters(taps: Taps, like: nn.Module) -> tuple[nn.Parameter, nn.Parameter | None]:
    """Return weight and bias in PyTorch's layout, with dtype, device and format of a layer."""
    old: Tensor = like.weight  # type: ignore[assignment]
    matrix = taps.filters.flatten(1)
    if form_of(like) == "native":
        inner = taps.filters.shape[-1]
        shape = (
            (inner * taps.groups, len(matrix) // taps.groups, *taps.kernel)
            if taps.transposed
            else (len(matrix), inner, *taps.kernel)
        )
        matrix = matrix_to_weight(matrix, shape, transposed=taps.transposed, groups=taps.groups)
    new = matrix.to(old.device, old.dtype).clone(memory_format=torch.contiguous_format)
    if is_channels_last(old):
        new = in_format(new, channels_last(old.dim() - 2))
    weight = nn.Parameter(new, requires_grad=old.requires_grad)
    if taps.bias is None:
        return weight, None
    train = old if like.bias is None else like.bias
    bias = taps.bias.to(old.device, old.dtype).clone()
    return weight, nn.Parameter(bias, requires_grad=bool(train.requires_grad))


def _padding(taps: Taps, like: nn.Module, before: list[nn.Module]) -> dict[str, Any]:
    """Return the padding of a layer; what it cannot say becomes layers in front."""
    if like.padding == "same" and taps.pads == _same(taps.kernel, taps.dilation):
        return {"padding": "same", "padding_mode": taps.mode}
    if all(low == high >= 0 for low, high in taps.pads):
        return {"padding": tuple(low for low, _ in taps.pads), "padding_mode": taps.mode}
    added = tuple((max(low, 0), max(high, 0)) for low, high in taps.pads)
    taken = tuple((min(low, 0), min(high, 0)) for low, high in taps.pads)
    before += _pad_layer(taps.mode, added) + _pad_layer("zeros", taken)
    return {"padding": (0,) * len(taps.kernel)}


def _cropping(taps: Taps, behind: list[nn.Module]) -> dict[str, Any]:
    """Return padding and output padding of a transposed layer; the rest becomes a layer behind."""
    padding, extra, rest = [], [], []
    for axis, (low, high) in enumerate(taps.pads):
        if _is_cropped(taps, axis, low, high):
            padding.append(low)
            extra.append(low - high)
            rest.append((0, 0))
        else:
            least = max(0, min(low, high))
            padding.append(least)
            extra.append(0)
            rest.append((least - low, least - high))
    if taps.bias is not None and any(n > 0 for pair in rest for n in pair):
        raise ArgumentError(
            "zeros would have to be added behind a transposed layer with a bias",
            where="padding",
            remedy="take larger kernels",
        )
    behind += _pad_layer("zeros", tuple(rest))
    return {"padding": tuple(padding), "output_padding": tuple(extra)}


def _pad_layer(mode: str, pads: Pairs) -> list[nn.Module]:
    """Return a layer that pads; none if there is nothing to pad. Negative numbers crop."""
    if not any(n for pair in pads for n in pair):
        return []
    cls: Any = _PADS[mode][len(pads) - 1]
    return [cls(tuple(n for pair in pads[::-1] for n in pair))]


def _offset(taps: Taps, axis: int, new: int) -> int:
    """Return where the old kernel begins on one axis."""
    growth = new - taps.kernel[axis]
    (low, high), d = taps.pads[axis], taps.dilation[axis]

    def cost(start: int) -> tuple[bool, int, int]:
        first, last = low + d * start, high + d * (growth - start)
        said = (
            _is_cropped(taps, axis, first, last)
            if taps.transposed
            else first == last and first >= 0
        )
        return not said, abs(2 * start - growth), start

    return min(range(min(0, growth), max(0, growth) + 1), key=cost)


def _is_cropped(taps: Taps, axis: int, low: int, high: int) -> bool:
    """Say whether padding and output padding of a transposed layer can say what is cropped."""
    return low >= 0 and 0 <= low - high < max(taps.stride[axis], taps.dilation[axis])


def _same(kernel: Sizes, dilation: Sizes) -> Pairs:
    """Return what ``padding="same"`` adds; the odd element stands behind."""
    totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    return tuple((total // 2, total - total // 2) for total in totals)
