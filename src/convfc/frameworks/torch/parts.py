"""The parts of converted layers: FC children, and what moves over from one layer to another."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

__all__ = [
    "HOOKS",
    "Survey",
    "as_parameter",
    "carry_over",
    "in_front",
    "is_hooked",
    "plain_linear",
    "survey",
]

# What every module has, of which the hooks move over as they are.
_MODULE = frozenset(vars(nn.Module()))
HOOKS = frozenset(name for name in _MODULE if "hook" in name)
# What a layer in patch form has besides the attributes of the CONV layer.
_OWN = {"fc", "native", "weight_shape", "weight_channels_last"}
_PLAIN = (nn.Parameter, Tensor)  # a tensor while torch.func calls the model with its own


class Survey(NamedTuple):
    """What the FC children of a layer are at the moment.

    ``weights`` is None unless every child is exactly an ``nn.Linear`` with plain weights, to which
    ``biases`` belong; ``hooked`` says whether calls of a child, or of a part of it, run hooks;
    ``whole`` whether a part asks for all rows of M in one call, by a true ``wants_all_rows``: what
    it draws at random, say, holds for a whole image.
    """

    weights: list[Tensor] | None
    biases: list[Tensor | None]
    hooked: bool
    whole: bool


def survey(fc: nn.Module) -> Survey:
    """Look at the FC children: one, or the ones that a ``ModuleList`` holds.

    In one pass, and without generators: a depthwise layer has hundreds, at every call.

    Examples
    --------
    >>> survey(nn.Linear(2, 3)).hooked, survey(nn.ReLU()).weights
    (False, None)
    """
    weights: list[Tensor] = []
    biases: list[Tensor | None] = []
    hooked, plain, whole = bool(_has_any_global_hook()), True, False
    for child in fc._modules.values() if type(fc) is nn.ModuleList else (fc,):
        assert child is not None, "a ModuleList holds modules"  # noqa: S101
        state = vars(child)
        parameters = state["_parameters"]
        weight, bias = parameters.get("weight"), parameters.get("bias")
        if (
            type(child) is nn.Linear
            and type(weight) in _PLAIN
            and (bias is None or type(bias) in _PLAIN)
            and "bias" in parameters
            and "forward" not in state
        ):
            weights.append(weight)
            biases.append(bias)
            hooked = hooked or is_hooked(child)
        else:
            plain = False
            hooked = hooked or any(map(is_hooked, child.modules()))
            whole = whole or any(getattr(part, "wants_all_rows", False) for part in child.modules())
    return Survey(weights if plain else None, biases, hooked, whole)


def is_hooked(module: nn.Module) -> bool:
    """Say whether calls of a module run hooks of its own.

    Examples
    --------
    >>> layer = nn.Flatten()
    >>> handle = layer.register_forward_hook(lambda module, args, output: None)
    >>> is_hooked(layer), is_hooked(nn.Flatten())
    (True, False)
    """
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def carry_over(old: nn.Module, new: nn.Module) -> None:
    """Give a module everything of another but its weight, bias and what each form has of its own.

    Hooks are shared, not copied, so that a handle that the user kept still removes its hook.
    """
    not_carried = _MODULE | _OWN | {"parametrizations", "_compiled_call_impl"}
    for name, value in vars(old).items():
        if name in HOOKS or name not in not_carried:
            vars(new)[name] = value
    new.training = old.training
    for registry in ("_parameters", "_buffers", "_modules"):
        extra = {
            name: part
            for name, part in vars(old)[registry].items()
            if name not in {"weight", "bias", "fc", "parametrizations"}
        }
        vars(new)[registry].update(extra)


def in_front(state: Any, entries: dict[str, Any], prefix: str, replaced: str) -> Any:
    """Put a layer's weight and bias where a CONV layer's state has them, for what they replace."""
    own = {key: state.pop(key) for key in list(state) if key.startswith(prefix)}
    rest = {key: value for key, value in own.items() if not key.startswith(replaced)}
    state.update({**entries, **{key: rest[key] for key in rest if key not in entries}})
    return state


def as_parameter(value: Tensor, like: Tensor, grad: Tensor | None = None) -> nn.Parameter:
    """Return a parameter of its own memory, contiguous, that trains if the other one does."""
    value = value.detach().clone(memory_format=torch.contiguous_format)
    parameter = nn.Parameter(value, requires_grad=like.requires_grad)
    if grad is not None:
        parameter.grad = grad.clone(memory_format=torch.contiguous_format)
    return parameter


def plain_linear(weight: nn.Parameter, bias: nn.Parameter | Tensor | None) -> nn.Linear:
    """Return exactly an ``nn.Linear`` around these parameters; no random number is drawn."""
    rows, columns = weight.shape
    linear = nn.Linear(columns, rows, bias=False, device="meta")
    linear.weight = weight
    linear.bias = bias  # type: ignore[assignment]
    return linear
