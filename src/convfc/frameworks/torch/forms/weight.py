"""The weight form: the CONV layer stays, its parameter is the FC matrix ``(f, k)``.

PyTorch's parametrization mechanism folds the matrix to the layer's weight at every call, so the
native convolution does the arithmetic and no patch matrix is ever built. It serves tools that look
at weights only: Muon, low rank, pruning, singular values. ``layer.weight`` shows the matrix in the
CONV layer's layout; the native convolution is given a copy in the memory format that it had.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from convfc.frameworks.torch.forms.calls import by_class
from convfc.frameworks.torch.forms.children import as_parameter, in_front, no_new_parameter, taken
from convfc.frameworks.torch.forms.formats import channels_last, in_format, is_channels_last
from convfc.frameworks.torch.forms.shown import Shown, weight_of
from convfc.frameworks.torch.read import matrix_to_weight, own_class, weight_to_matrix

_ORIGINAL = "parametrizations.weight.original"


class FilterMatrix(nn.Module):
    """The parametrization: FC matrix ``(f, k)`` to CONV weight, and back."""

    def __init__(self, weight: Tensor, *, transposed: bool, groups: int) -> None:
        super().__init__()
        self.transposed, self.groups = transposed, groups
        self.weight_shape = tuple(weight.shape)
        self.channels_last = is_channels_last(weight)

    def forward(self, matrix: Tensor) -> Tensor:
        """Fold the FC matrix ``(f, k)`` to the CONV weight: what is written there is written here.

        With the matrix's gradient, if it has one.
        """
        return weight_of([matrix], self.unfold, self.right_inverse)

    def native(self, weight: Tensor) -> Tensor:
        """Return the CONV weight as the layer held it: plain, in the memory format it had."""
        weight = weight.as_subclass(Tensor) if type(weight) is Shown else weight
        last = channels_last(weight.dim() - 2)
        return in_format(weight, last if self.channels_last else torch.contiguous_format)

    def unfold(self, matrix: Tensor) -> Tensor:
        """Return the matrix in the CONV weight's layout, as a view if possible."""
        return matrix_to_weight(
            matrix, self.weight_shape, transposed=self.transposed, groups=self.groups
        )

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Stretch a CONV weight to the FC matrix ``(f, k)``."""
        matrix = weight_to_matrix(weight, transposed=self.transposed, groups=self.groups)
        return matrix.contiguous()


def is_weight_form(module: nn.Module) -> bool:
    """Say whether a module is a CONV layer in weight form."""
    if not parametrize.is_parametrized(module, "weight"):
        return False
    return isinstance(steps_of(module)[0], FilterMatrix)


def to_weight_form(conv: nn.Module, shared: nn.Parameter | None = None) -> nn.Module:
    """Make the FC matrix ``(f, k)`` the parameter of a CONV layer, in place; return the layer.

    ``shared`` is the matrix of another layer, if both had the same weight. The state dict stays
    that of the CONV layer; it can be copied, pickled and compiled.
    """
    weight = conv._parameters["weight"]
    assert weight is not None, "to_fc refuses layers without one"  # noqa: S101
    transposed, groups = bool(conv.transposed), int(conv.groups)  # type: ignore[arg-type]
    grad = weight.grad
    fold = FilterMatrix(weight, transposed=transposed, groups=groups)
    if shared is None:
        if grad is not None:
            grad = fold.right_inverse(grad)
        shared = as_parameter(fold.right_inverse(weight.detach()), weight, grad)
    # PyTorch turns the parameter itself into the matrix; another layer may still hold this one.
    conv.weight = _placeholder(weight.shape, weight.dtype)
    return _parametrize(conv, fold, shared)


def from_weight_form(conv: nn.Module) -> nn.Module:
    """Make the CONV weight the parameter again, in place: `to_weight_form` read backwards.

    Other parametrizations that a tool has put on the matrix are made permanent.
    """
    steps = steps_of(conv)
    fold, matrix = steps[0], steps.original
    with torch.no_grad():
        computed: Any = conv.weight
    own = fold.native(computed.detach()).clone()
    weight = nn.Parameter(own, requires_grad=matrix.requires_grad)
    if matrix.grad is not None:
        weight.grad = fold.native(fold.unfold(matrix.grad)).clone()
    conv.__class__ = own_class(conv)
    # Not PyTorch's remove_parametrizations: it breaks the copies that share the class.
    del conv.parametrizations
    conv._parameters = {"weight": weight, **conv._parameters}
    return conv


def _parametrize(conv: nn.Module, fold: FilterMatrix, matrix: nn.Parameter) -> nn.Module:
    """Register the parametrization of a layer whose weight has the right shape, on a matrix."""
    parametrize.register_parametrization(conv, "weight", fold, unsafe=True)
    steps_of(conv).original = matrix
    conv.get_submodule("parametrizations").train(conv.training)
    # A parametrized layer cannot say by itself how it is saved, pickled and called. The class is
    # new, made by PyTorch for this layer and its copies, so that no other layer is changed.
    cls: Any = type(conv)
    cls.state_dict, cls._load_from_state_dict = state_dict, _load_from_state_dict
    cls.__reduce_ex__, cls.__setattr__ = _reduce, _setattr
    if fold.transposed:
        cls.forward = _transposed_forward
    else:
        cls._conv_forward = _conv_forward
    return conv


def steps_of(conv: nn.Module) -> Any:
    """Return the parametrizations of a layer in weight form: its `FilterMatrix`, then a tool's."""
    return conv.get_submodule("parametrizations.weight")


def _placeholder(shape: tuple[int, ...], dtype: torch.dtype) -> nn.Parameter:
    """Return a weight without memory, for PyTorch to register the parametrization on."""
    return nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)


def _conv_forward(self: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Run the native convolution, which chooses its kernel and memory format by the weight's."""
    return by_class(own_class(self), self, input, steps_of(self)[0].native(weight), bias)


def _transposed_forward(
    self: Any, input: Tensor, output_size: Sequence[int] | None = None
) -> Tensor:
    """Run the native transposed convolution."""
    weight = steps_of(self)[0].native(self.weight)
    return by_class(own_class(self), self, input, weight, self.bias, output_size)


def _above(self: Any) -> Any:
    """Return what `super` is to the methods that `_parametrize` gives the class of a layer.

    That is not always the layer's own class: `fully_shard` makes one of it.
    """
    made = next(cls for cls in type(self).__mro__ if vars(cls).get("__setattr__") is _setattr)
    return super(made, self)


def _setattr(self: Any, name: str, value: Any) -> None:
    """Set an attribute; the weight is the FC matrix."""
    if name == "weight":
        raise no_new_parameter(name, "weight form", "its FC matrix")
    _above(self).__setattr__(name, value)


def state_dict(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Return the CONV layer's state; only what other parametrizations need is left as it is."""
    state = _above(self).state_dict(*args, **kwargs)
    prefix = args[1] if len(args) > 1 else kwargs.get("prefix", "")
    matrix = state.get(prefix + _ORIGINAL)
    steps = steps_of(self)
    if matrix is None or len(steps) > 1:
        return state
    entries = {f"{prefix}weight": steps[0](matrix)}
    if f"{prefix}bias" in state:
        entries[f"{prefix}bias"] = state[f"{prefix}bias"]
    return in_front(state, entries, prefix, prefix + _ORIGINAL)


def _load_from_state_dict(
    self: Any, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
) -> None:
    """Take the state of the CONV layer; its weight is on the way to the parametrization's list."""
    fold = steps_of(self)[0]
    own = fold.unfold(steps_of(self).original.detach())
    given = taken(state_dict, f"{prefix}weight", own, args[-1] if args else kwargs["error_msgs"])
    if given is not None:
        state_dict[prefix + _ORIGINAL] = fold.right_inverse(given)
    _above(self)._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _reduce(self: nn.Module, protocol: Any) -> Any:
    """Pickle as the user's own class and the parts: PyTorch's class for this layer has no name."""
    return _unpickled, (own_class(self), vars(self))


def _unpickled(cls: type[nn.Module], state: dict[str, Any]) -> nn.Module:
    """Make a weight-form layer of its parts."""
    conv = cls.__new__(cls)
    modules = dict(state["_modules"])
    steps = modules.pop("parametrizations")["weight"]
    vars(conv).update({**state, "_modules": modules})
    fold, matrix, rest = steps[0], steps.original, list(steps)[1:]
    conv.register_parameter("weight", _placeholder(fold.weight_shape, matrix.dtype))
    _parametrize(conv, fold, matrix)
    steps_of(conv).extend(rest)
    return conv
