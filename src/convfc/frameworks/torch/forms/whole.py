"""A weight in parts: the FC children of a grouped layer hold slices of one memory.

Each child has a parameter of its own, and the layer has the whole without a copy, so that what is
written into the one is written into the other: by an optimizer, into a state dict, into ``weight``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

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


class Written(Tensor):
    """A copy that stands for what it was made of: what is written into it is written there, too.

    Strides cannot show every weight in the CONV layer's layout: not that of a transposed layer with
    groups of several channels, nor parts that a tool has moved away from each other. What is
    computed with it is plain, but for what shares its memory: ``.data``, or a slice.
    """

    _source: tuple[Tensor, Callable[[Tensor], None]]
    """The copy as a plain tensor, and what writes it back."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run a function of torch on plain tensors, and write back what it has changed."""
        given = (args, kwargs or {})
        held = {id(t): t for t in pytree.tree_leaves(given) if isinstance(t, cls)}
        with torch._C.DisableTorchFunctionSubclass():
            if func == vars(torch._C.TensorBase)["grad"].__get__:
                return func(*args)
            plain = {key: t.as_subclass(Tensor) for key, t in held.items()}
            versions = {key: t._version for key, t in plain.items()}
            args, kwargs = pytree.tree_map(lambda value: plain.get(id(value), value), given)
            result = func(*args, **kwargs)
            for key, t in held.items():
                if plain[key]._version != versions[key]:
                    copy, write = t._source
                    write(copy)
            sources = {_memory(t): t._source for t in held.values()}
            return pytree.tree_map_only(
                Tensor, lambda t: _written(t, sources.get(_memory(t))), result
            )


def _written(t: Tensor, source: Any) -> Tensor:
    if source is None or isinstance(t, nn.Parameter):
        return t
    written = t.as_subclass(Written)
    written._source = source
    return written


def _memory(t: Tensor) -> int:
    return t.untyped_storage().data_ptr()


def weight_of(
    parts: Sequence[Tensor],
    there: Callable[[Tensor], Tensor],
    back: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return the CONV weight that parts hold, with its gradient; writing into it writes into them.

    ``there`` and ``back`` go from the parts, joined, to the CONV weight, and the other way.
    """
    if any(map(in_a_transform, parts)):
        return there(joined_with_gradients(parts))
    weight = _through(there(joined_with_gradients(parts)), parts, back)
    gradients = [part.grad for part in parts if part.is_leaf and part.grad is not None]
    if len(gradients) == len(parts):
        with torch._C.DisableTorchFunctionSubclass():
            weight.grad = _through(there(joined(gradients)), gradients, back)
    return weight


def _through(weight: Tensor, parts: Sequence[Tensor], back: Callable[[Tensor], Tensor]) -> Tensor:
    """Return a tensor as it is if it shows the memory of the parts, and written through if not."""
    if not weight.numel() or _memory(weight) == _memory(parts[0]):
        return weight

    @torch.no_grad()
    def write(value: Tensor) -> None:
        for part, new in zip(parts, split(back(value), parts), strict=True):
            part.copy_(new)

    with torch.inference_mode(mode=False):  # whose tensors do not count what is written
        weight = weight.clone() if weight.is_inference() else weight
    return _written(weight, (weight.detach(), write))
