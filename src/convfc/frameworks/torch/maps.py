"""PyTorch's own convolution and its adjoint, from NumPy arrays to NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from convfc.arrays import as_numpy
from convfc.frameworks.torch.forms.windows import padded, plan
from convfc.frameworks.torch.read import filters_to_weight
from convfc.layer import ConvLayer
from convfc.room import LinearMap


def linear_maps(layer: ConvLayer, input_size: Sequence[int]) -> tuple[LinearMap, LinearMap] | None:
    """Return what a layer with filters of PyTorch multiplies by, and the adjoint, without its bias.

    Functions of NumPy arrays of any strides, from ``(b, c, *spatial)`` to ``(b, f, *output)`` and
    back; None if PyTorch has no such convolution. The filters are taken as they are now, and cast
    to the dtype of the array.
    """
    geometry = layer.geometry
    uneven = geometry.transposed and any(low != high for low, high in geometry.padding)
    if len(geometry.kernel_size) > 3 or geometry.flip or uneven:
        return None
    weight = filters_to_weight(
        layer.filters.detach(), transposed=geometry.transposed, groups=geometry.groups
    ).clone(memory_format=torch.contiguous_format)
    size = tuple(input_size)
    # PyTorch's own layer pads by a call of its own, too, unless by equal zeros on both sides.
    by_hand = not geometry.transposed and (
        geometry.padding_mode != "zeros" or any(low != high for low, high in geometry.padding)
    )
    axes = plan(geometry, size) if by_hand else ()
    # In the order in which PyTorch's convolution takes them.
    rest = (
        geometry.stride,
        [0 if by_hand else low for low, _ in geometry.padding],
        geometry.dilation,
        geometry.transposed,
        geometry.output_padding,
        geometry.groups,
    )

    def convolve(x: Tensor, weight: Tensor) -> Tensor:
        return torch.convolution(x, weight, None, *rest)

    def gradient(y: Tensor, weight: Tensor) -> Tensor:
        sizes = [len(a.before) + a.size * a.inside + len(a.after) for a in axes] or size
        like = y.new_empty((len(y), geometry.in_channels, *sizes))  # only its sizes are read
        found: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
            y, like, weight, None, *rest, [True, False, False]
        )
        return found[0]

    def forward(x: Tensor) -> Tensor:
        return _by_parts(convolve, padded(x, axes) if by_hand else x, weight)

    def adjoint(y: Tensor) -> Tensor:
        x = _by_parts(gradient, y, weight.conj())
        if not by_hand:
            return x
        with torch.enable_grad():  # the margins are added to the elements that they repeat
            zeros = x.new_zeros((*x.shape[:2], *size)).requires_grad_()
            (found,) = torch.autograd.grad(padded(zeros, axes), zeros, x)
        return found

    return _on_arrays(forward, weight.device), _on_arrays(adjoint, weight.device)


def _by_parts(linear: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor) -> Tensor:
    """Apply a map of real numbers to complex ones: (A + iB)(p + iq) = Ap - Bq + i(Aq + Bp)."""
    weight = weight.to(x.dtype)
    if not weight.is_complex():
        return linear(x, weight)
    parts = torch.cat([x.real, x.imag])
    (ap, aq), (bp, bq) = (
        linear(parts, part.contiguous()).tensor_split(2) for part in (weight.real, weight.imag)
    )
    return torch.complex(ap - bq, aq + bp)


def _on_arrays(linear: Callable[[Tensor], Tensor], device: torch.device) -> LinearMap:
    """Return a map of tensors as one of NumPy arrays, which share their memory where they can."""

    def apply(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        # PyTorch warns of read-only memory, and its strides are whole elements, and forwards.
        if not x.flags.writeable or any(step < 0 or step % x.itemsize for step in x.strides):
            x = x.copy()
        with torch.no_grad():
            return as_numpy(linear(torch.from_numpy(x).to(device)))

    return apply
