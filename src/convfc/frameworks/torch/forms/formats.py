"""In which memory format PyTorch's own layer would give its output: the FC form gives the same."""

from __future__ import annotations

import torch
from torch import Tensor

from convfc.geometry import ConvGeometry

_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


def channels_last(spatial_ndim: int) -> torch.memory_format:
    """Return PyTorch's channels-last format of so many spatial axes; contiguous if it has none."""
    return _CHANNELS_LAST.get(spatial_ndim, torch.contiguous_format)


def is_channels_last(tensor: Tensor) -> bool:
    """Say whether PyTorch takes a tensor for channels-last: its strides decide, dense or not.

    The same rule as PyTorch's own ``suggest_memory_format``, which also decides where an axis has
    size 1 and both formats are one in memory.
    """
    ndim = tensor.dim() - 2
    if ndim not in _CHANNELS_LAST or not tensor.numel() or not tensor.stride(1):
        return False
    least = 0
    for axis in (1, *range(ndim + 1, 1, -1), 0):
        stride, size = tensor.stride(axis), tensor.shape[axis]
        if stride < least or (axis == 0 and least == tensor.stride(1)):
            return False
        least = stride * max(size, 1)
    return True


def in_format(tensor: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Return the tensor in a memory format, with the strides that PyTorch gives a new one.

    Where an axis has size 1, ``Tensor.contiguous`` leaves any stride there.
    """
    if memory_format is torch.contiguous_format:
        return tensor.contiguous().flatten().view(tensor.shape)
    last = tensor.movedim(1, -1)
    return last.contiguous().flatten().view(last.shape).movedim(-1, 1)


def likely_output_format(
    x: Tensor, padding_mode: str, *, weight_channels_last: bool
) -> torch.memory_format:
    """Return the memory format of the output as input and weight suggest it."""
    last = weight_channels_last or (is_channels_last(x) and padding_mode != "circular")
    return channels_last(x.dim() - 2) if last else torch.contiguous_format


def native_output_format(
    x: Tensor, geometry: ConvGeometry, padding_mode: str, *, weight_channels_last: bool
) -> torch.memory_format:
    """Return the memory format that PyTorch's own layer gives its output.

    It depends on the input, on the weight and on the kernel that PyTorch chooses, so PyTorch is
    asked, as its own fake tensors ask it. A layer copies its input by its ``padding_mode`` even
    where that adds nothing, and the geometry's is then ``"zeros"``.
    """
    likely = likely_output_format(x, padding_mode, weight_channels_last=weight_channels_last)
    if likely is torch.contiguous_format or not hasattr(torch._C, "_select_conv_backend"):
        return likely
    filters, *kernel, per_group = geometry.filters_shape
    first = (filters, per_group)
    padding = [min(pair) for pair in geometry.padding]
    if geometry.transposed:
        first = (geometry.in_channels, filters // geometry.groups)
    elif geometry.padding_mode != "zeros" or any(low != high for low, high in geometry.padding):
        # PyTorch pads first, and then convolves what it has padded.
        size = [n + sum(pair) for n, pair in zip(x.shape[2:], geometry.padding, strict=True)]
        x, padding = _empty((*x.shape[:2], *size), x, likely), [0] * len(padding)
    x = x.real if x.is_complex() else x  # PyTorch convolves the parts
    weight = _empty((*first, *kernel), x, likely if weight_channels_last else None)
    try:
        backend = torch._C._select_conv_backend(
            x,
            weight,
            None,
            list(geometry.stride),
            padding,
            list(geometry.dilation),
            geometry.transposed,
            list(geometry.output_padding),
            geometry.groups,
            None,
        )
    except RuntimeError:  # a question about the format must not fail the layer
        return likely
    chosen: torch.memory_format = torch._C._conv_determine_backend_memory_format(x, weight, backend)
    return chosen


def _empty(
    shape: tuple[int, ...], like: Tensor, memory_format: torch.memory_format | None
) -> Tensor:
    memory = torch.empty(shape, dtype=like.dtype, device=like.device)
    return in_format(memory, memory_format or torch.contiguous_format)
