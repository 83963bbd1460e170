"""to_conv for PyTorch: FC layers, whatever a tool has made of them, become CONV layers again."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from convfc.errors import ArgumentError, Refusal, UnsupportedLayer
from convfc.frameworks.torch.forms.children import (
    FC,
    HOOKS,
    as_parameter,
    is_hooked,
    move_attributes,
)
from convfc.frameworks.torch.forms.factors import (
    DISTRIBUTED,
    Chain,
    Product,
    by_groups,
    chain_of,
    is_distributed,
)
from convfc.frameworks.torch.forms.form import form_of
from convfc.frameworks.torch.forms.formats import channels_last, in_format
from convfc.frameworks.torch.forms.patch import PatchConv
from convfc.frameworks.torch.forms.weight import from_weight_form, steps_of
from convfc.frameworks.torch.places import copy_of, holders
from convfc.frameworks.torch.reach import asked_for_class
from convfc.frameworks.torch.references import blocked_references
from convfc.frameworks.torch.running import check_has_numbers
from convfc.frameworks.torch.simplification import restore
from convfc.frameworks.torch.unrolled.back import FromUnrolled, unrolled_obstacle
from convfc.frameworks.torch.vocabulary import CONVS
from convfc.mlp.simplified import record_of
from convfc.places import Shared, check_as_a_whole, tied


def back_obstacles(
    model: nn.Module, layers: Mapping[str, nn.Module], *, inplace: bool, project: bool
) -> dict[str, Refusal]:
    """Return the FC layers that cannot be CONV layers again, by place, with the reason."""
    left: dict[str, Refusal] = {}
    chains: dict[str, Chain] = {}
    for name, layer in layers.items():
        read = _read(layer, project=project)
        if isinstance(read, Refusal):
            left[name] = read
        else:
            chains[name] = read
    # Layers in weight form stay the objects that they are.
    moving = {
        id(layer)
        for name, layer in layers.items()
        if name not in left and not (inplace and form_of(layer) == "weight")
    }
    left |= blocked_references(model, moving, copied=not inplace)
    several = {name: layers[name] for name, chain in chains.items() if len(chain) > 1}
    for name, why in asked_for_class(model, several).items():
        reason, remedy = f"{why.reason}, and it would be several", "multiply its factors into one"
        left[name] = why._replace(reason=reason, remedy=f"{remedy} nn.Linear, or {why.remedy}")
    ready = {name: layer for name, layer in layers.items() if name not in left}
    return left | _shared_with_others(model, ready)


def make_conv(layers: Mapping[str, nn.Module], *, project: bool) -> dict[int, nn.Module]:
    """Return the CONV layers of FC layers without obstacles, by the ``id`` of these.

    A layer in patch form whose FC child is still one `nn.Linear` goes back to an object of its
    class, with the hyper-parameters, hooks and other attributes that it has now. A factored child,
    ``Sequential(Linear(k, r), Linear(r, f))``, becomes ``Sequential`` of a CONV layer with r
    filters and the geometry of the layer, and a 1x1 CONV layer; likewise longer products, with
    functions of single elements between or after them (network in network). Groups whose factors
    have unequal ranks are filled up with zeros. What is folded in or dequantised trains if the
    weight it was made of did.
    """
    build, from_unrolled = _Builder(), FromUnrolled(project=project)
    new: dict[int, nn.Module] = {}
    for name, layer in layers.items():
        if id(layer) in new:
            continue
        if form_of(layer) == "unrolled":
            new[id(layer)] = from_unrolled(layer, name)
        else:
            chain = _chain(layer)
            assert not isinstance(chain, Refusal), "asked before"  # noqa: S101
            new[id(layer)] = build(layer, chain)
    return new


def whole_back(model: nn.Module, where: Any, *, inplace: bool) -> nn.Module | None:
    """Return the CONV network that a simplified network was, as a new object; None of others."""
    record = record_of(model)
    if record is not None or any(form_of(part) == "unrolled" for part in model.modules()):
        check_has_numbers(model, "model")
    if record is None:
        return None
    check_as_a_whole(where, inplace=inplace)
    return restore(model, record)


class _Builder:
    """Builds CONV layers; what two layers share, a layer or a parameter, stays shared."""

    def __init__(self) -> None:
        self.shared = Shared()

    def __call__(self, layer: nn.Module, chain: Chain) -> nn.Module:
        """Return the CONV layer or, of a longer chain, the `nn.Sequential`."""
        if not isinstance(layer, PatchConv):
            return self._from_matrix(layer)
        if layer.is_computed:
            return _computed(layer)
        first, *others = chain
        assert isinstance(first, Product), "see _chain"  # noqa: S101
        weight = self._weight(layer, first)
        conv = _native(layer, weight.shape, self._bias(layer, first), weight)
        if not others:
            return conv
        parts = [_point(layer, step) if isinstance(step, Product) else step for step in others]
        whole = nn.Sequential(conv, *parts)
        whole.training = layer.training
        for name in HOOKS:  # they stand on the layer, which is the whole of these now
            vars(whole)[name], vars(conv)[name] = vars(conv)[name], vars(whole)[name]
        return whole

    def _from_matrix(self, layer: nn.Module) -> nn.Module:
        """Give a layer in weight form its weight back."""
        steps = steps_of(layer)
        matrix, alone = steps.original, len(steps) == 1
        conv = from_weight_form(layer)
        if alone:
            weight, key = conv.weight, (steps[0].weight_shape, conv.transposed, conv.groups)
            conv.weight = self.shared([matrix], key, lambda: weight)
        return conv

    def _weight(self, layer: PatchConv, product: Product) -> nn.Parameter:
        """Return the CONV weight of a product, one for all layers with the same FC weight."""

        def make() -> nn.Parameter:
            gradient = product.weight.grad
            weight = as_parameter(
                layer.to_weight(product.weight.detach()),
                product.weight,
                None if gradient is None else layer.to_weight(gradient),
            )
            if layer.weight_channels_last:
                form = channels_last(layer.spatial_ndim)
                weight.data = in_format(weight.data, form)
            return weight

        key = ("weight", layer.weight_shape, layer.transposed)
        return self.shared(_sources(layer, "weight"), key, make)

    def _bias(self, layer: PatchConv, product: Product) -> nn.Parameter | None:
        """Return the bias of a product: the very parameter, if one FC child has it."""
        bias = product.bias
        if bias is None:
            return None
        if len(layer.children_fc) == 1 and type(bias) is nn.Parameter:
            return bias
        make = partial(as_parameter, bias, bias, bias.grad)
        return self.shared(_sources(layer, "bias"), "bias", make)


def _read(layer: nn.Module, *, project: bool) -> Chain | Refusal:
    """Return what a layer in any form is made of, or what stands in the way."""
    if form_of(layer) == "unrolled":
        return unrolled_obstacle(layer, project=project) or []
    return _chain(layer)


def _chain(layer: nn.Module) -> Chain | Refusal:
    """Read a layer, and check that it is as large as the CONV layer; of a weight form, nothing."""
    if not isinstance(layer, PatchConv):
        return _weight_form_obstacle(layer) or []
    if layer.is_computed:
        return _computed_obstacle(layer) or []
    if (blocked := _adapter_obstacle(layer)) is not None:
        return blocked
    chains = []
    for child in layer.children_fc:
        chain = chain_of(child)
        if isinstance(chain, Refusal):
            return chain
        chains.append(chain)
    if len(chains) not in (1, layer.groups):
        return Refusal(
            f"it has {len(chains)} FC parts for {layer.groups} groups", "give every group one"
        )
    misfits = (_misfit(chain, layer, layer.groups // len(chains)) for chain in chains)
    return next(filter(None, misfits), None) or by_groups(chains)


def _misfit(chain: Chain, layer: PatchConv, groups: int) -> Refusal | None:
    """Return why a chain does not go from one patch to one output position; None if it does.

    ``groups`` says how many groups of the layer it is for.
    """
    weights = [step.weight for step in chain if isinstance(step, Product)]
    if any(math.prod(weight.shape[:-2]) != groups for weight in weights):
        return Refusal(
            f"its FC part is one for all {layer.groups} groups, and mixes them",
            "give every group an FC part of its own: to_fc(model, groups='separate')",
        )
    first, second, *kernel = layer.weight_shape
    channels = first // layer.groups if layer.transposed else second
    filters = second * layer.groups if layer.transposed else first
    want = [math.prod(kernel) * channels, filters // layer.groups]
    sizes = [size for weight in weights for size in weight.shape[:-3:-1]]
    fits = sizes[:1] == want[:1] and sizes[-1:] == want[1:] and sizes[1:-1:2] == sizes[2:-1:2]
    if not fits:
        return Refusal(
            f"its FC part has the sizes {' -> '.join(map(str, sizes)) or 'of its input'}, where "
            f"{want[0]} -> {want[1]} is expected",
            "give it an FC part that reads one patch and returns one number per filter",
        )
    if not isinstance(chain[0], Product):
        return Refusal(
            f"its FC part begins with a {type(chain[0]).__name__}, before the first nn.Linear",
            "move it in front of the layer, if it leaves the zeros of the padding zero",
        )
    return None


def _weight_form_obstacle(layer: nn.Module) -> Refusal | None:
    """Return why a layer in weight form cannot get its weight back; None if it can."""
    steps = steps_of(layer)
    if "original" not in steps._parameters:
        return Refusal(
            "its FC matrix is computed before every call",
            "make it permanent first (torch.nn.utils.prune.remove on parametrizations.weight)",
        )
    if is_distributed(steps.original):
        return DISTRIBUTED
    if is_hooked(steps) or any(map(is_hooked, steps)):
        return Refusal("hooks stand on its parametrization", "remove the hooks (handle.remove())")
    return None


def _adapter_obstacle(layer: nn.Module) -> Refusal | None:
    """Return why an adapter of PEFT cannot be merged into a layer; None if nothing is to merge."""
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    if tuners is None or not isinstance(layer, PatchConv) or not layer.changes_weight:
        return None
    adapters = (part for part in layer.fc.modules() if isinstance(part, tuners.BaseTunerLayer))
    if all(adapter.merged or adapter.disable_adapters for adapter in adapters):
        return None
    return Refusal(
        "its forward computes another weight from its own, to which the adapter adds; merged into "
        "its own weight it would be another function",
        "take the adapter out with unload(), or leave the layer out of the tool's targets",
    )


def _computed_obstacle(layer: PatchConv) -> Refusal | None:
    """Return why a layer whose weight is computed cannot be the CONV layer again."""
    if layer.holds_computed_weight():
        return None
    return Refusal(
        "its weight is computed before every call, and a tool has changed its FC part",
        "merge what the tool has put there, or make the weight permanent before to_fc "
        "(torch.nn.utils.parametrize.remove_parametrizations, remove_weight_norm, prune.remove)",
    )


def _computed(layer: PatchConv) -> nn.Module:
    """Return the CONV layer of a layer whose weight is computed: nothing has touched that."""
    bias = layer.bias
    if bias is not None and type(bias) is not nn.Parameter:  # of several groups
        own: list[Any] = [child.bias for child in layer.children_fc]
        grads = [one.grad for one in own if one.grad is not None]
        bias = as_parameter(
            torch.cat(own), own[0], torch.cat(grads) if len(grads) == len(own) else None
        )
    conv = _native(layer, layer.weight_shape, bias)
    steps = layer._modules.get("parametrizations")
    if steps is not None:  # PyTorch's own way to the class that computes the weight
        conv.register_parameter(
            "weight", nn.Parameter(torch.empty(layer.weight_shape, device="meta"))
        )
        parametrize.register_parametrization(conv, "weight", nn.Identity(), unsafe=True)
        conv._modules["parametrizations"] = steps
    return conv


def _shared_with_others(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, Refusal]:
    """Return the layers whose FC weight is also a parameter of something that stays as it is."""
    inside = {id(part) for layer in layers.values() for part in layer.modules()}
    staying = holders(model, but=inside)
    return {
        name: tied("its FC weight", staying[id(weight)])
        for name, layer in layers.items()
        for weight in layer.parameters()
        if (weight.dim() > 1 or form_of(layer) == "unrolled") and id(weight) in staying
    }


def _native(
    layer: PatchConv,
    shape: Sequence[int],
    bias: nn.Parameter | None,
    weight: nn.Parameter | None = None,
) -> nn.Module:
    """Return an object of the layer's own class, with everything that the layer has now."""
    conv: Any = layer.native.__new__(layer.native)
    nn.Module.__init__(conv)
    if weight is not None:
        conv.register_parameter("weight", weight)
    if bias is not None or issubclass(layer.native, _ConvNd):
        conv.register_parameter("bias", bias)
    move_attributes(layer, conv)
    first, second, *_ = shape
    if "out_channels" in vars(conv):
        conv.out_channels = second * layer.groups if layer.transposed else first
    native: nn.Module = conv
    return native


def _point(layer: PatchConv, product: Product) -> nn.Module:
    """Return the 1x1 CONV layer of a product, with the groups of its layer."""
    filters, channels = product.weight.flatten(0, -2).shape
    ones = (1,) * layer.spatial_ndim
    cls: Any = CONVS[layer.spatial_ndim]
    conv = cls(
        channels * layer.groups, filters, ones, groups=layer.groups, bias=False, device="meta"
    )
    weight, bias = product.weight, product.bias
    gradient = None if weight.grad is None else weight.grad.reshape(filters, channels, *ones)
    conv.weight = as_parameter(weight.reshape(filters, channels, *ones), weight, gradient)
    conv.bias = None if bias is None else as_parameter(bias, bias, bias.grad)
    point: nn.Module = conv.train(layer.training)
    return point


def _sources(layer: PatchConv, name: str) -> list[Any]:
    """Return what identifies a parameter that its FC children may share with another layer's."""
    parts = [fc._parameters.get(name) for fc in layer.children_fc if isinstance(fc, FC)]
    own = len(parts) == len(layer.children_fc) and all(type(p) is nn.Parameter for p in parts)
    return parts if own else [layer]


def without_peft(model: nn.Module, *, inplace: bool) -> tuple[nn.Module, bool]:
    """Return the model inside a `peft.PeftModel`, its adapters merged; and whether it is ours."""
    peft = sys.modules.get("peft.peft_model")
    if peft is None or not isinstance(model, peft.PeftModel):
        return model, inplace
    where = type(model).__name__
    if inplace:
        raise ArgumentError(
            "a model of PEFT cannot become the model inside it in place",
            where=where,
            remedy="give to_conv what its merge_and_unload() returns, or leave out inplace=True",
        )
    if any(getattr(part, "disable_adapters", False) is True for part in model.modules()):
        raise UnsupportedLayer(
            "adapters of the model are disabled",
            where=where,
            remedy="enable them, or give to_conv what its unload() returns",
        )
    for name, part in model.named_modules():
        if (blocked := _adapter_obstacle(part)) is not None:
            raise blocked._replace(where=name).error(UnsupportedLayer)
    copied: Any = copy_of(model, (), {})
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "All adapters are already merged")
            return copied.merge_and_unload(), True
    except (AttributeError, NotImplementedError, RuntimeError, ValueError, TypeError) as error:
        raise UnsupportedLayer(
            f"its adapters cannot be merged into the weights ({error})",
            where=where,
            remedy="give to_conv what its unload() returns, which leaves the adapters out",
        ) from error
