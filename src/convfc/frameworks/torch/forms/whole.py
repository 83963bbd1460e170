"""A weight in parts: the FC children of a grouped layer hold slices of one memory.

Each child has a parameter of its own, and the layer has the whole without a copy, so that what is
written into the one is written into the other: by an optimizer, into a state dict, into ``weight``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convfc.frameworks.torch.forms.children import in_a_transform


def lay_together(parts: Sequence[Tensor], *, shared: bool = False) -> None:
    """Move parameters into one memory, one behind the other, unless they share theirs.

    ``shared`` says that this matters not: after unpickling each has a copy of the memory of all.
    """
    if len(parts) < 2 or parts[0].is_meta or _side_by_side(parts):
        return
    if shared or all(part.untyped_storage().nbytes() == part.nbytes for part in parts):
        whole = torch.cat([part.detach() for part in parts])
        for part, moved in zip(parts, split(whole, parts), strict=True):
            part.data = moved


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Return the parts as one tensor, without gradients: the memory that they share, or a copy."""
    if len(parts) == 1:
        return parts[0].detach()
    if not _side_by_side(parts):
        return torch.cat([part.detach() for part in parts])
    first = parts[0].detach()
    shape = (len(parts) * first.shape[0], *first.shape[1:])
    return first.as_strided(shape, first.stride())


class _Joined(torch.autograd.Function):
    """`joined`, through which gradients flow to the parts."""

    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Tensor:
        ctx.size = parts[0].shape[0]
        return joined(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient.split(ctx.size)


def joined_with_gradients(parts: Sequence[Tensor]) -> Tensor:
    """Return the parts as one tensor, through which gradients flow to them."""
    if len(parts) == 1:
        return parts[0]
    if in_a_transform(parts[0]):
        return torch.cat(list(parts))
    whole: Tensor = _Joined.apply(*parts)
    return whole


def split(whole: Tensor, parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the slices of a whole that belong to its parts, which are all of one size."""
    slices: tuple[Tensor, ...] = whole.split(parts[0].shape[0])
    return slices


def _side_by_side(parts: Sequence[Tensor]) -> bool:
    """Say whether the parts lie one behind the other in one memory."""
    first, place = parts[0], parts[0].data_ptr()
    size, room = first.nbytes, first.untyped_storage().nbytes()
    if not place or len(parts) * size > room - first.storage_offset() * first.itemsize:
        return False  # as separate memories do that happen to be neighbours
    for part in parts:
        if part.data_ptr() != place or part.dtype != first.dtype or not part.is_contiguous():
            return False
        place += size
    return True
