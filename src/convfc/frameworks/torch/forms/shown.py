"""A layer's weight and bias as users and forwards see them, in the CONV layer's layout.

What is written into them is written into the FC weight that they stand for; and a convolution that
is given them, wherever it is called, is computed by the FC child. So a forward of a user's own, or
of a part that uses the weight of another, needs no change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from convfc.errors import ArgumentError
from convfc.frameworks.torch.forms.calls import convolution_of
from convfc.frameworks.torch.forms.children import in_a_transform
from convfc.frameworks.torch.forms.whole import joined, joined_with_gradients, split

_SET_DATA = vars(torch._C.TensorBase)["data"].__set__
_GET_GRAD = vars(torch._C.TensorBase)["grad"].__get__


class Role(NamedTuple):
    """Of which layer a tensor is the weight or the bias.

    ``own`` says that it is just what the FC child holds, and not computed from it; ``wrapped`` that
    a tool has wrapped the FC child, so that nothing but a convolution knows what to do with it;
    ``touched`` that calls of the FC child matter. ``calls`` notes the convolutions of a forward.
    """

    layer: Any
    name: str
    own: bool = True
    wrapped: bool = False
    touched: bool = False
    calls: list[str] | None = None


class Shown(Tensor):
    """A weight or bias that is shown to a user; what is computed with it is plain.

    But for what shares its memory (``.data``, or a slice), and for what has as many elements: that
    is a weight that was cast, normalised or masked, with which a forward goes on to convolve.
    """

    _source: tuple[Tensor, Callable[[Tensor], None]] | None
    """Of a copy: the copy as a plain tensor, and what writes it back."""
    _role: Role | None

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run a function of torch on plain tensors; write back what it has changed."""
        given = (args, kwargs or {})
        held = {id(t): t for t in pytree.tree_leaves(given) if isinstance(t, cls)}
        with torch._C.DisableTorchFunctionSubclass():
            if func == _GET_GRAD:
                return func(*args)
            call = convolution_of(func, *given)
            plain = {key: t.as_subclass(Tensor) for key, t in held.items()}
            args, kwargs = pytree.tree_map(lambda value: plain.get(id(value), value), given)
            role = getattr(call.weight, "_role", None) if call else None
            if call and role and role.name == "weight":
                return role.layer.convolve(call, convolution_of(func, args, kwargs))
            versions = {key: _version(t) for key, t in plain.items()}
            if func == _SET_DATA and id(given[0][0]) in held:
                args[0].detach().copy_(args[1])
                result = None
            else:
                result = func(*args, **kwargs)
            for key, t in held.items():
                if _version(plain[key]) != versions[key] and t._source is not None:
                    copy, write = t._source
                    write(copy)
            if not any(isinstance(t, Tensor) for t in pytree.tree_leaves(result)):
                return result  # a size stays a `torch.Size`
            return pytree.tree_map_only(Tensor, lambda t: _result(t, held, plain), result)


def _result(t: Tensor, held: dict[int, Shown], plain: dict[int, Tensor]) -> Tensor:
    """Return a result as it is shown: an operand itself, what was made of one, or plain."""
    for key, operand in held.items():
        if t is plain[key]:
            return operand
    source = role = None
    for operand in held.values():
        if operand._source is not None and _memory(t) == _memory(operand):
            source = operand._source
        if operand._role is not None and operand._role.wrapped:
            raise ArgumentError(  # a TypeError in an operator would be lost
                "the FC layer has no plain weight of its own any more: it only convolves",
                where=operand._role.name,
                expected="a convolution with it",
                got="something else computed with it",
                remedy="merge what the tool has put in place, or take the model back with "
                "convfc.to_conv",
            )
        # Of a touched layer no part of the weight may convolve in the FC child's stead.
        own = operand._role
        strict = own is not None and own.touched and own.calls is not None
        if (strict or t.numel() == operand.numel()) and (t.is_floating_point() or t.is_complex()):
            role = own
    return as_shown(t, source, None if role is None else role._replace(own=False))


def as_shown(t: Tensor, source: Any, role: Role | None) -> Tensor:
    """Return a tensor that stands for a source, has a role, or both; or as it is."""
    if (source is None and role is None) or isinstance(t, nn.Parameter):
        return t
    shown = t.as_subclass(Shown)
    shown._source, shown._role = source, role
    return shown


def as_plain(t: Tensor) -> Tensor:
    """Return what is shown as a plain tensor."""
    with torch._C.DisableTorchFunctionSubclass():
        return t.as_subclass(Tensor)


def _version(t: Tensor) -> int | None:
    """Return the number that grows with whatever is written; inference tensors have none."""
    return None if t.is_inference() else t._version


def _memory(t: Tensor) -> int:
    return t.untyped_storage().data_ptr()


def weight_of(
    parts: Sequence[Tensor],
    there: Callable[[Tensor], Tensor],
    back: Callable[[Tensor], Tensor],
    role: Role | None = None,
    *,
    with_gradient: bool = True,
) -> Tensor:
    """Return the CONV weight that parts hold, with its gradient; writing into it writes into them.

    ``there`` and ``back`` go from the parts, joined, to the CONV weight, and the other way. Strides
    cannot show every weight in the CONV layer's layout: not that of a transposed layer with groups
    of several channels, nor parts that a tool has moved away from each other.
    """
    if any(map(in_a_transform, parts)):
        return there(joined_with_gradients(parts))
    weight = _through(there(joined_with_gradients(parts)), parts, back, role)
    gradients = [part.grad for part in parts if part.is_leaf and part.grad is not None]
    if with_gradient and len(gradients) == len(parts):
        with torch._C.DisableTorchFunctionSubclass():
            weight.grad = _through(there(joined(gradients)), gradients, back)
    return weight


def _through(
    weight: Tensor,
    parts: Sequence[Tensor],
    back: Callable[[Tensor], Tensor],
    role: Role | None = None,
) -> Tensor:
    """Return a tensor that shows the memory of the parts, or is written through to it."""
    if not weight.numel() or _memory(weight) == _memory(parts[0]):
        return as_shown(weight, None, role)

    @torch.no_grad()
    def write(value: Tensor) -> None:
        for part, new in zip(parts, split(back(value), parts), strict=True):
            part.copy_(new)

    with torch.inference_mode(mode=False):  # whose tensors do not count what is written
        weight = weight.clone() if weight.is_inference() else weight
    return as_shown(weight, (weight.detach(), write), role)
