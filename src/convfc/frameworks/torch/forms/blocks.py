"""A CONV layer as the product of its patches with an FC layer, which never holds all patches.

`conv_by_blocks` takes the FC weight, which is the fastest; `conv_by_module` calls any FC layer. One
that only multiplies may be called on `Unbuilt`, which stands for M.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from convfc.frameworks.torch.forms.formats import channels_last, in_format
from convfc.frameworks.torch.forms.products import BLOCK_BYTES, Layer, adjoint
from convfc.frameworks.torch.forms.whole import joined, split
from convfc.frameworks.torch.forms.windows import (
    Axis,
    at,
    padded,
    patch_matrix,
    patches_at_once,
    plan,
)
from convfc.geometry import ConvGeometry
from convfc.stretch import Block, row_blocks


def conv_by_blocks(
    x: Tensor,  # (N, C, *S); channels-last memory is the fastest
    weight: Tensor | Sequence[Tensor],  # (f, k)
    bias: Tensor | Sequence[Tensor | None] | None,  # (f,)
    geometry: ConvGeometry,
    *,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:  # (N, f, *O)
    """Compute a CONV layer as the product of patches with an FC weight; M is never held.

    Neither is it for the backward pass, which builds its blocks again. Gradients of gradients are
    there too; they go through the whole of M. The columns of a weight are taps in the order
    ``(c, *kernel)``, its rows belong to the groups one after the other. A sequence holds such rows
    in parts: where they lie so in memory, nothing is copied.
    """
    weights = (weight,) if isinstance(weight, Tensor) else tuple(weight)
    given = (bias,) if bias is None or isinstance(bias, Tensor) else bias
    biases = tuple(part for part in given if part is not None)
    if any(forward_ad.unpack_dual(t).tangent is not None for t in (x, *weights, *biases)):
        y = _by_whole_matrix(x, weights, biases, geometry)
    else:
        zero_padded = _zero_padded(x, geometry)
        y = _Product.apply(*zero_padded, memory_format, len(weights), *weights, *biases)
    return in_format(y, memory_format)


def _by_whole_matrix(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], geometry: ConvGeometry
) -> Tensor:
    """Compute the layer with ordinary operations only, which can be differentiated again."""
    rows = patch_matrix(x, geometry).unflatten(2, (geometry.groups, geometry.taps))
    blocks = torch.cat(list(weights)).unflatten(0, (geometry.groups, -1))
    y = torch.einsum("nlgk,gfk->nlgf", rows, blocks).flatten(2)
    y = y + torch.cat(list(biases)) if biases else y
    output_size = geometry.output_size(x.shape[2:])
    return y.transpose(1, 2).reshape(len(x), geometry.out_channels, *output_size)


def _zero_padded(x: Tensor, geometry: ConvGeometry) -> tuple[Tensor, ConvGeometry]:
    """Reduce the layer to one that pads with zeros, or to the adjoint of such a one."""
    axes = plan(geometry, tuple(x.shape[2:]))
    if geometry.transposed:
        size = adjoint(geometry).output_size(geometry.output_size(x.shape[2:]))
        simple = size == tuple(x.shape[2:])
    else:
        simple = all(axis.zeros for axis in axes)
    if simple:
        return x, geometry
    return padded(x, axes), replace(
        geometry,
        stride=tuple(axis.step for axis in axes),
        padding=((0, 0),) * len(axes),
        output_padding=(0,) * len(axes),
        padding_mode="zeros",
        transposed=False,
        flip=axes[0].tap_step < 0,
    )


class _Product(torch.autograd.Function):
    """The layer; keeps x and the weights for the backward pass, and nothing of M.

    It takes each part of the weight by itself: PyTorch then sees if one was changed in between.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        geometry: ConvGeometry,
        memory_format: torch.memory_format,
        parts: int,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, *parameters)
        ctx.geometry, ctx.parts = geometry, parts
        weights, biases = parameters[:parts], parameters[parts:]
        layer = Layer(geometry, x.shape[2:])
        run = layer.scattered if geometry.transposed else layer.gathered
        bias = joined(biases) if biases else None
        return run(x, layer.filters(joined(weights)), bias, memory_format)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, *parameters = ctx.saved_tensors
        geometry, parts = ctx.geometry, ctx.parts
        for_x, _, _, _, *needed = ctx.needs_input_grad
        if torch.is_grad_enabled():
            # Aliases: a gradient must not flow on into what the inputs were computed from.
            inputs = [t.view_as(t) for t in (x, *parameters)]
            y = _by_whole_matrix(inputs[0], inputs[1 : parts + 1], inputs[parts + 1 :], geometry)
            needs = (for_x, *needed)
            wanted = [t for t, needs_it in zip(inputs, needs, strict=True) if needs_it]
            found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
            for_inputs = [next(found) if needs_it else None for needs_it in needs]
            return for_inputs[0], None, None, None, *for_inputs[1:]
        layer = Layer(geometry, x.shape[2:])
        dx = None
        gradients: list[Tensor | None] = [None] * len(parameters)
        if for_x:
            back = layer.gathered if geometry.transposed else layer.scattered
            filters = layer.filters(joined(parameters[:parts]))
            dx = back(dy, filters.conj(), None, _memory_format(x))
        if any(needed[:parts]):
            if geometry.transposed:
                whole = layer.weight(layer.product_of(dy, x)).conj().resolve_conj()
            else:
                whole = layer.weight(layer.product_of(x, dy))
            gradients[:parts] = split(whole, parameters[:parts])
        if any(needed[parts:]):
            whole = dy.sum([0, *range(2, dy.ndim)])
            gradients[parts:] = split(whole, parameters[parts:])
        return dx, None, None, None, *gradients


def _patches(whole: Tensor, axes: Sequence[Axis], groups: int, block: Block) -> Tensor:
    """Build rows of M with ordinary operations, from an input with its padding."""
    part = whole[slice(*block[0])]
    cut = []
    for dim, (axis, (first, last)) in enumerate(zip(axes, block[1:], strict=True), start=2):
        length = (last - first - 1) * axis.step + axis.extent
        part = part.narrow(dim, first * axis.step, length)
        cut.append(axis._replace(before=(), after=(), inside=True, positions=last - first))
    return patches_at_once(part, cut, groups)


def conv_by_module(
    x: Tensor,  # (N, C, *S)
    fc_call: Callable[[Tensor], Tensor],
    geometry: ConvGeometry,
    out_channels: int,
    *,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:  # (N, out_channels, *O)
    """Apply any FC layer, ``(n, l, groups * k)`` to ``(n, l, out_channels)``, block by block.

    While gradients are recorded each block is built again in the backward pass
    (`torch.utils.checkpoint`), so that M is not kept.
    """
    axes, groups = plan(geometry, tuple(x.shape[2:])), geometry.groups
    output_size = tuple(axis.positions for axis in axes)
    whole = padded(x, axes)
    # As long as M is no larger than what it is read from, it may be held.
    limit = max(BLOCK_BYTES, whole.nbytes) // (groups * geometry.taps * x.itemsize)

    def rows(part: Tensor, block: Block) -> Tensor:
        return fc_call(_patches(part, axes, groups, block))

    def laid_out(y: Tensor) -> Tensor:
        y = y.reshape(len(x), *output_size, out_channels).movedim(-1, 1)
        return in_format(y, memory_format)

    if len(x) * math.prod(output_size) <= limit:
        return laid_out(rows(whole, [(0, n) for n in (len(x), *output_size)]))
    samples = max(1, limit // math.prod(output_size))
    # Split first: the gradient of what a block reads is then no larger than its samples.
    parts = [
        (first * samples, part, block)
        for first, part in enumerate(whole.split(samples))
        for block in row_blocks((len(part), *output_size), max(1, limit))
    ]
    if torch.is_grad_enabled():
        pieces = (checkpoint(rows, *part, use_reentrant=False) for _, *part in parts)
        return laid_out(torch.cat([piece.flatten(0, 1) for piece in pieces]))
    written = None
    for first, part, block in parts:
        product = rows(part, block)
        if written is None:
            y = torch.empty(
                (len(x), out_channels, *output_size),
                dtype=product.dtype,
                device=product.device,
                memory_format=memory_format,
            )
            written = y.movedim(1, -1)
        place = written[first:][at(block)]
        place.copy_(product.reshape(place.shape))
    return y


class Unbuilt(Tensor):
    """M for a child that only multiplies it: each product is a convolution, which needs no M.

    Every other function of torch is given M itself, which is built then.
    """

    _x: Tensor
    _build: Callable[[Tensor], Tensor]
    _convolve: Callable[[Tensor, Tensor, Tensor | None], Tensor]

    @classmethod
    def of(
        cls,
        x: Tensor,
        shape: Sequence[int],
        build: Callable[[Tensor], Tensor],
        convolve: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    ) -> Unbuilt:
        """Return what stands for M = ``build(x)``; ``convolve`` takes x, and an FC layer's own."""
        # Whoever could look past this class would see that there is nothing.
        matrix = x.detach().new_full((), math.nan).expand(*shape).as_subclass(cls)
        matrix._x, matrix._build, matrix._convolve = x, build, convolve
        return matrix

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Convolve where M is multiplied with a plain weight; say what M is like; or build it."""
        named = kwargs or {}
        if args and isinstance(args[0], cls):
            m, rest = args[0], args[1:]
            with torch._C.DisableTorchFunctionSubclass():
                if func in _LIKE_M:
                    return func(m)
                if func is Tensor.to:
                    return cls.of(m._x.to(*rest, **named), m.shape, m._build, m._convolve)
                plain = not named and {type(t) for t in rest} <= _PLAIN
                if func is F.linear and plain and rest[0].dim() == 2:
                    return m._convolve(m._x, *(*rest, None)[:2]).flatten(2).transpose(1, 2)
        given = pytree.tree_map_only(cls, lambda m: m._build(m._x), (args, named))
        return func(*given[0], **given[1])


_LIKE_M = {vars(torch._C.TensorBase)[name].__get__ for name in ("shape", "dtype", "device")}
_PLAIN = {Tensor, nn.Parameter, type(None)}


def _memory_format(x: Tensor) -> torch.memory_format:
    """Return the format of a tensor, for another of its kind."""
    last = channels_last(x.ndim - 2)
    if x.is_contiguous() or not x.is_contiguous(memory_format=last):
        return torch.contiguous_format
    return last
