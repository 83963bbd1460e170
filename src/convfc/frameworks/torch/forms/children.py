"""The parts of converted layers: FC children, and what moves over from one layer to another."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._C import _are_functorch_transforms_active, _get_tracing_state
from torch.compiler import is_compiling
from torch.nn.modules.module import _has_any_global_hook

from convfc.errors import ShapeError, UnsupportedLayer
from convfc.frameworks.torch.forms.grouped import GroupedLinear
from convfc.frameworks.torch.vocabulary import is_pointwise

# What every module has, of which the hooks move over as they are.
_MODULE = frozenset(vars(nn.Module()))
HOOKS = frozenset(name for name in _MODULE if "hook" in name)
# What a layer in patch form has besides the attributes of the CONV layer.
_OWN = {"fc", "native", "own_forward", "product", "shown_bits", "changes_weight"}
_OWN |= {"weight_shape", "weight_channels_last", "added"}
FC = (nn.Linear, GroupedLinear)
"""What `to_fc` makes of a layer, or of its groups."""
_PLAIN = (nn.Parameter, Tensor)  # a tensor while torch.func calls the model with its own
# Of PEFT, those that change an nn.Linear by further products of every row. Others draw a rank or a
# rotation for a whole call.
_LORA = ("peft.tuners.lora.layer", "Linear")
_ADAPTERS = {_LORA, ("peft.tuners.vera.layer", "Linear")}


class Survey(NamedTuple):
    """What the FC children of a layer are at the moment.

    ``weights`` is None unless every child is exactly of a class in `FC`, with plain weights, to
    which ``biases`` belong; ``hooked`` says whether calls of a child, or of its parts, run hooks;
    ``whole`` whether a child must see all rows of M in one call: unless it is known to treat every
    row alone, what it draws at random, or measures of its input, may hold for a whole image;
    ``multiplied`` whether all that the children do with M is to multiply it by weights; ``bare``
    whether every child is exactly of a class in `FC`, with plain weights or with one that is
    computed before every call.
    """

    weights: list[Tensor] | None
    biases: list[Tensor | None]
    hooked: bool
    whole: bool
    multiplied: bool
    bare: bool

    @property
    def untouched(self) -> bool:
        """Whether nothing but the layer's own weight, or a computed one, is in a call of it."""
        return self.bare and not self.hooked


def survey(fc: nn.Module) -> Survey:
    """Look at the FC children: one, or the ones that a ``ModuleList`` holds.

    In one pass, and without generators: a layer may have dozens, at every call.
    """
    weights: list[Tensor] = []
    biases: list[Tensor | None] = []
    hooked, plain, whole, bare = bool(_has_any_global_hook()), True, False, True
    multiplied = True
    for child in fc._modules.values() if type(fc) is nn.ModuleList else (fc,):
        assert child is not None, "a ModuleList holds modules"  # noqa: S101
        if _is_plain_linear(child):
            parameters = child._parameters
            weights.append(parameters["weight"])  # type: ignore[arg-type]
            biases.append(parameters["bias"])
            hooked = hooked or is_hooked(child)
        elif type(child) in FC and "weight" in vars(child) and "forward" not in vars(child):
            plain = False
            biases.append(child._parameters["bias"])
            hooked = hooked or is_hooked(child)
        else:
            plain = bare = False
            hooked = hooked or any(map(is_hooked, child.modules()))
            whole = whole or not _row_by_row(child)
            multiplied = multiplied and _only_multiplies(child)
    return Survey(weights if plain else None, biases, hooked, whole, multiplied, bare)


def is_untouched(child: nn.Module) -> bool:
    """Say whether a child is exactly an FC layer with plain weights, unhooked: see `Survey`."""
    return _is_plain_linear(child) and not is_hooked(child) and not _has_any_global_hook()


def inner_layer(
    child: nn.Module, size: tuple[int, int], *, computed: bool
) -> tuple[str, nn.Module] | None:
    """Return the FC layer in what a tool has made of an FC child, and its name there.

    It is the first that has the size ``(f, k)`` of the FC layer, and a weight that is a plain
    parameter or, if ``computed``, a tensor that is given to it before every call.
    """
    traced = transforming()
    for name, part in child.named_modules():
        held = vars(part) if computed else part._parameters
        weight: Any = held.get("weight") if isinstance(part, FC) else None
        plain = type(weight) in _PLAIN or (traced and isinstance(weight, Tensor))
        if plain and weight.flatten(0, -2).shape == size:
            return name, part
    return None


def _is_plain_linear(module: nn.Module) -> bool:
    """Say whether a module is exactly an FC layer of `FC` with plain weights."""
    if type(module) not in FC or "forward" in vars(module):
        return False
    parameters = module._parameters
    bias = parameters.get("bias")
    return (
        type(parameters.get("weight")) in _PLAIN
        and (bias is None or type(bias) in _PLAIN)
        and "bias" in parameters
    )


def _row_by_row(module: nn.Module) -> bool:
    """Say whether a module is known to treat every row alone, so that rows may come in blocks.

    It may promise so itself, by a true ``takes_blocks``. Random numbers that are drawn for every
    element, as `nn.Dropout` does, are the same in blocks.
    """
    promise = getattr(module, "takes_blocks", None)
    if promise is not None:
        return bool(promise)
    kind = type(module)
    if "forward" in vars(module):
        return False
    if is_pointwise(module):
        return True
    adapter = (kind.__module__, kind.__name__) in _ADAPTERS and not vars(module).get("lora_variant")
    if adapter or kind is nn.Sequential or kind.forward is nn.Module.forward:
        return all(map(_row_by_row, module.children()))
    return _is_plain_linear(module)


def _only_multiplies(module: nn.Module) -> bool:
    """Say whether all that a module does with the rows that it is given is `F.linear`."""
    kind, parts = type(module), module._modules
    if "forward" in vars(module) or module._compiled_call_impl is not None:
        return False
    if kind is nn.Sequential:
        first = next(iter(parts.values()), None)
        return first is not None and _only_multiplies(first)
    if (kind.__module__, kind.__name__) != _LORA or vars(module).get("lora_variant"):
        return kind.forward is nn.Linear.forward
    base, down, dropouts = (parts[name] for name in ("base_layer", "lora_A", "lora_dropout"))
    return all(type(part) is nn.Identity for part in dropouts.children()) and all(  # type: ignore[union-attr]
        map(_only_multiplies, (base, *down.children()))  # type: ignore[union-attr]
    )


def is_hooked(module: nn.Module) -> bool:
    """Say whether calls of a module run hooks of its own."""
    return bool(
        module._forward_hooks
        or (module._forward_pre_hooks and has_pre_hooks(module))
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def in_a_transform(x: Tensor) -> bool:
    """Say whether PyTorch is tracing or transforming a call: then ordinary operations only."""
    return type(x) not in _PLAIN or transforming()


def transforming() -> bool:
    """Say whether PyTorch is tracing or transforming whatever is called now."""
    return is_compiling() or _are_functorch_transforms_active() or _get_tracing_state() is not None


def move_attributes(old: nn.Module, new: nn.Module) -> None:
    """Give a module everything of another but its weight, bias and what each form has of its own.

    Hooks are shared, not copied, so that a handle that the user kept still removes its hook.
    """
    not_carried = (
        _MODULE
        | _OWN
        | set(vars(old).get("added", ()))
        | {"parametrizations", "_compiled_call_impl"}
    )
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


def taken(state: dict[str, Any], key: str, own: Tensor, messages: list[str]) -> Tensor | None:
    """Take an entry out of a state dict; one of another size is replaced by the layer's own.

    With PyTorch's words for it: what loading leaves as it is, is not missing.
    """
    given: Tensor | None = state.pop(key, None)
    if given is None or given.shape == own.shape:
        return given
    messages.append(
        f"size mismatch for {key}: copying a param with shape {given.shape} from checkpoint, "
        f"the shape in current model is {own.shape}."
    )
    return own


def no_new_parameter(name: str, form: str, holder: str) -> UnsupportedLayer:
    """Return why a layer's weight or bias cannot be another tensor, and the way out."""
    return UnsupportedLayer(
        f"a layer in {form} has its {name} in {holder}, so that another tensor cannot be it",
        where=name,
        remedy=f"write the numbers into it: with torch.no_grad(): layer.{name}.copy_(value). "
        "torch.func.functional_call takes dict(model.named_parameters()), not the state dict",
    )


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


def flatten_of(shape: tuple[int, ...], start_dim: int) -> nn.Flatten:
    """Return exactly an ``nn.Flatten`` that refuses examples of another shape than this one.

    What follows sees the number of elements only, which other shapes have, too. With a negative
    ``start_dim`` an example may come without a batch axis. The hook is a function, not an
    object that holds the shape: `torch.jit.script` compiles functions only.
    """
    flatten = nn.Flatten(start_dim)
    vars(flatten)["example_shape"] = shape
    flatten.register_forward_pre_hook(_refuse_shapes)
    return flatten


def has_pre_hooks(module: nn.Module) -> bool:
    """Say whether hooks of others stand before a module's forward."""
    return any(hook is not _refuse_shapes for hook in module._forward_pre_hooks.values())


def _refuse_shapes(flatten: nn.Module, inputs: tuple[Tensor]) -> None:
    """Stop examples of another shape; while `torch.jit` traces or runs, a shape is not a number."""
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        _refuse_shape(flatten, inputs[0])


def _refuse_shape(flatten: nn.Module, x: Tensor) -> None:
    if not isinstance(x, Tensor) or torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return  # `torch.fx` traces with an object that is not a tensor
    shape: Any = flatten.example_shape
    start: Any = flatten.start_dim
    axes = (1,) if start == 1 else (1, 0)
    if x.shape[-len(shape) :] != shape or x.dim() - len(shape) not in axes:
        sizes = ", ".join(map(str, shape))
        raise ShapeError(
            "the FC layer is the matrix for one input size only",
            where="x",
            expected=f"(n, {sizes})" + f", or ({sizes})" * (0 in axes),
            got=tuple(x.shape),
            remedy="make another one, with an example of this size; what convfc.to_fc makes takes "
            "every size",
        )
