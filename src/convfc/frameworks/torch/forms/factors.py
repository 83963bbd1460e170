"""What an FC child is, after a tool has worked on it: the matrices that it multiplies by.

Tools leave plain `nn.Linear` layers with new numbers, or put something else in their place: a
product of thin factors, an adapter beside the weight, quantised weights. Each is read into a chain
of products and of functions of single elements, or refused by name.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from convfc.errors import Refusal
from convfc.frameworks.torch.forms.children import FC, is_hooked
from convfc.frameworks.torch.vocabulary import is_pointwise


@dataclass(frozen=True, eq=False)
class Product:
    """``x @ weight.T + bias``, the FC layer of a weight ``(f, k)`` and a bias ``(f,)`` or None.

    The weight of a `GroupedLinear` is ``(groups, f / groups, k)``.
    """

    weight: Tensor
    bias: Tensor | None = None


_OF_ACTIVATIONS = ("act_quant_kwargs", "activation_quantization", "input_quant_func")
"""How weights of torchao call what they do to activations."""

DISTRIBUTED = Refusal(
    "its weight is a DTensor, of which a process may hold a part only (fully_shard, tensor "
    "parallelism)",
    "load the whole into a model of its own: to_fc(model).load_state_dict(torch.distributed."
    "checkpoint.state_dict.get_model_state_dict(sharded, options=StateDictOptions("
    "full_state_dict=True)))",
)
"""Why nothing is made of a weight that is spread over processes."""

Chain: TypeAlias = list[Product | nn.Module]
"""Products and pointwise modules, in the order of their application."""


def chain_of(module: nn.Module) -> Chain | Refusal:  # noqa: PLR0911 (one per kind of child)
    """Read an FC child as a chain, or say why it is none.

    A plain `nn.Linear` gives its own parameters. A quantised one gives its weight dequantised (what
    it did to activations is dropped: see `quantises_activations`). An adapter of PEFT is folded in
    as PEFT's own ``merge`` does it, in a copy: the active adapters, unless they are merged already
    or disabled; dropout inside the adapter is dropped. An `nn.Sequential` gives the chain of its
    parts. A module with a method ``as_plain`` is asked for the plain modules that compute the same,
    or for the obstacle.
    """
    if callable(as_plain := getattr(module, "as_plain", None)):
        plain = as_plain()
        return plain if isinstance(plain, Refusal) else _hooks_obstacle(module) or chain_of(plain)
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    if tuners is not None and isinstance(module, tuners.BaseTunerLayer):
        return _adapted(module)
    quantised = sys.modules.get("torch.ao.nn.quantized")
    if quantised is not None and isinstance(module, quantised.Linear):  # the dynamic one is too
        return _hooks_obstacle(module) or [Product(module.weight().dequantize(), module.bias())]
    if isinstance(module, FC):
        if (blocked := linear_obstacle(module, quantised=True)) is not None:
            return blocked
        if type(module.weight) is nn.Parameter:
            return [Product(module.weight, module.bias)]
        if getattr(module.weight, "act_pre_scale", None) is not None:
            return Refusal(
                "its quantised weight scales the input before every call (act_pre_scale)",
                "quantise without it: no SmoothQuant and no AWQ",
            )
        weight: Tensor = module.weight.dequantize()
        if type(weight) not in (Tensor, nn.Parameter):
            return Refusal(
                f"its weight is a {type(module.weight).__name__} that dequantize() leaves as it is",
                "make it a plain tensor first",
            )
        return [Product(weight.detach(), module.bias)]
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        return _hooks_obstacle(module) or _joined(list(module))
    if is_pointwise(module):
        return _hooks_obstacle(module) or ([] if type(module) is nn.Identity else [module])
    return Refusal(
        f"its FC part is a {type(module).__name__}",
        "merge or take out what the tool has put there, so that an nn.Linear, an nn.Sequential of "
        "nn.Linear, a quantised Linear or an adapter of PEFT remains",
    )


def quantises_activations(module: nn.Module) -> bool:
    """Say whether a quantised Linear rounds its input, too, which no chain of products does.

    That is `torch.ao`'s, but for the dynamic one of float16, and where a weight of torchao says so.
    """
    quantised = sys.modules.get("torch.ao.nn.quantized")
    if quantised is not None and isinstance(module, quantised.Linear):
        return module._packed_params.dtype is not torch.float16
    weight = module._parameters.get("weight")
    return any(getattr(weight, name, None) is not None for name in _OF_ACTIVATIONS)


def is_distributed(weight: object) -> bool:
    """Say whether a weight is spread over processes."""
    distributed = sys.modules.get("torch.distributed.tensor")
    return distributed is not None and isinstance(weight, distributed.DTensor)


def linear_obstacle(  # noqa: PLR0911 (one per obstacle)
    module: nn.Module, *, quantised: bool = False
) -> Refusal | None:
    """Return why an `nn.Linear` is not what its parameters say; None if it is.

    Where ``quantised`` holds, the weight may be a tensor of another class than plain parameters.
    """
    name = type(module).__name__
    if isinstance(module, LazyModuleMixin):
        return Refusal("its weight has no size yet", "run the model once on an input")
    if is_distributed(module._parameters.get("weight")):
        return DISTRIBUTED
    if parametrize.is_parametrized(module):
        names = ", ".join(module.parametrizations)  # type: ignore[arg-type]
        return Refusal(
            f"its {names} is computed by a parametrization",
            "torch.nn.utils.parametrize.remove_parametrizations first",
        )
    if type(module).forward not in [kind.forward for kind in FC] or "forward" in vars(module):
        return Refusal(
            f"it is a {name} with a forward of its own", "put the nn.Linear that it equals in place"
        )
    if module._parameters.get("weight") is None or "bias" not in module._parameters:
        return Refusal(
            "its weight or bias is computed before every call",
            "make it permanent first (torch.nn.utils.prune.remove, remove_weight_norm, "
            "remove_spectral_norm)",
        )
    if type(module.weight) is not nn.Parameter and not quantised:
        return Refusal(
            f"its weight is a {type(module.weight).__name__}, not a plain parameter",
            "make it a plain parameter first",
        )
    return _hooks_obstacle(module)


def by_groups(chains: Sequence[Chain]) -> Chain | Refusal:
    """Join the chains of the groups of one layer into one chain of grouped products.

    The weights are stacked, one group after the other. Where groups have factors of unequal rank,
    the thinner ones are filled up with zeros, and likewise where only some have a bias.
    """
    if len(chains) == 1:
        return chains[0]
    joined: Chain = []
    for steps in zip(*chains, strict=False):
        products = [step for step in steps if isinstance(step, Product)]
        if len(products) == len(steps):
            joined.append(_stacked(products))
        elif not products and len({repr(step) for step in steps}) == 1:
            joined.append(steps[0])
    if any(len(chain) != len(joined) for chain in chains):
        return Refusal(
            "the FC parts of its groups are not of one kind",
            "give every group the same kind of layers (their ranks may differ)",
        )
    return joined


def _stacked(products: Sequence[Product]) -> Product:
    """Stack the weights and biases of groups, filled up with zeros to one size."""
    sizes = [product.weight.shape for product in products]
    rows, columns = (max(size[axis] for size in sizes) for axis in (0, 1))
    weights = [product.weight for product in products]
    with_bias = any(product.bias is not None for product in products)
    biases = [p.weight.new_zeros(len(p.weight)) if p.bias is None else p.bias for p in products]
    return Product(_stack(weights, (rows, columns)), _stack(biases, (rows,)) if with_bias else None)


def _stack(parts: Sequence[Tensor], size: tuple[int, ...]) -> nn.Parameter:
    """Return one parameter, and its gradient, of several filled up with zeros to one size."""

    def filled(tensors: Sequence[Tensor]) -> Tensor:
        whole = tensors[0].new_zeros(len(tensors), *size)
        for place, tensor in zip(whole, tensors, strict=True):
            place[tuple(map(slice, tensor.shape))] = tensor
        return whole.flatten(0, 1)

    gradients = [torch.zeros_like(part) if part.grad is None else part.grad for part in parts]
    known = any(part.grad is not None for part in parts)
    parameter = nn.Parameter(
        filled([part.detach() for part in parts]),
        requires_grad=any(part.requires_grad for part in parts),
    )
    parameter.grad = filled(gradients) if known else None
    return parameter


def _joined(parts: Sequence[nn.Module]) -> Chain | Refusal:
    """Return the chain of several modules called one after the other."""
    chain: Chain = []
    for part in parts:
        steps = chain_of(part)
        if isinstance(steps, Refusal):
            return steps
        chain += steps
    return chain


def _adapted(module: Any) -> Chain | Refusal:
    """Read an adapter layer of PEFT: its base layer, with the adapters that are in effect."""
    if (blocked := _hooks_obstacle(module)) is not None:
        return blocked
    name = f"{type(module).__module__.split('.')[2]} adapter of PEFT"
    if module.disable_adapters and module.merged:
        return Refusal(f"it has a disabled, merged {name}", "call unmerge() on the adapter")
    if not (module.disable_adapters or module.merged):
        module = copy.deepcopy(module)
        try:
            module.merge()
        except (NotImplementedError, AttributeError, RuntimeError, ValueError, TypeError) as error:
            return Refusal(
                f"its {name} cannot be merged into a weight ({type(error).__name__}: {error})",
                "take the adapter out with unload(), or use a tuner whose effect is a change of "
                "the weight",
            )
    return chain_of(module.base_layer)


def _hooks_obstacle(module: nn.Module) -> Refusal | None:
    """Return that hooks stand on a module; a CONV layer has no FC layer to call them on."""
    if not is_hooked(module):
        return None
    remedy = "remove the hooks (handle.remove()), or register them on the layer itself"
    owners = (type(getattr(hook, "__self__", None)) for hook in module._forward_hooks.values())
    if any(owner.__module__.partition(".")[0] == "opacus" for owner in owners):
        remedy = (
            "they are of Opacus: give to_conv what model.to_standard_module() returns, where model "
            "is the GradSampleModule (or what make_private returned)"
        )
    return Refusal(f"hooks stand on its FC part ({type(module).__name__})", remedy)
