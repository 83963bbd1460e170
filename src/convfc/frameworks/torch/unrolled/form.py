"""A CONV layer as Flatten, Linear, Unflatten: its whole matrix is the Linear's weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from convfc.errors import Refusal
from convfc.frameworks.torch.forms.children import flatten_of, move_attributes, plain_linear
from convfc.frameworks.torch.forms.form import ATTRIBUTE, Unrolled
from convfc.frameworks.torch.forms.formats import is_channels_last
from convfc.frameworks.torch.matrix import matrix_values
from convfc.frameworks.torch.places import holders
from convfc.frameworks.torch.read import own_class
from convfc.frameworks.torch.running import unchanged
from convfc.frameworks.torch.unrolled.entries import places_in
from convfc.frameworks.torch.watch import watched_run
from convfc.geometry import ConvGeometry
from convfc.places import Shared

Refusals = dict[str, Refusal]

_READ_BY_FORWARD = (
    *nn.Conv2d.__constants__,
    *("transposed", "_reversed_padding_repeated_twice"),
)


class SizedGeometry(NamedTuple):
    """What a layer computes, and the one spatial size that its matrix is for."""

    geometry: ConvGeometry
    input_size: tuple[int, ...]


def sized_geometries(
    model: nn.Module, layers: Mapping[str, nn.Module], example: Any
) -> tuple[dict[int, SizedGeometry], Refusals, Refusals]:
    """Return what each layer is called on, by ``id``, and why others are refused, or idle."""
    with unchanged(model):
        calls = watched_run(model, example, "example").calls
    sized: dict[int, SizedGeometry] = {}
    refused: Refusals = {}
    idle: Refusals = {}
    for name, layer in layers.items():
        found = calls.get(id(layer), [])
        sizes = list(dict.fromkeys(call.facts["input_size"] for call in found))
        geometry = found[0].geometry if found else None
        extra = sorted(key for key, part in layer._modules.items() if part is not None)
        if not found:
            reason = "the model does not call it on the example"
            remedy = "give an example on which the model does, or use convfc.to_fc"
            idle[name] = Refusal(reason, remedy)
        elif len(sizes) > 1:
            reason = f"it is called on inputs of the sizes {sizes[0]} and {sizes[1]}, and one "
            remedy = "use convfc.to_fc, whose layers take every size"
            refused[name] = Refusal(f"{reason}matrix is for one size", remedy)
        elif geometry is None or any(call.arguments > 1 for call in found):
            reason = "it is called with more than its input, such as an output_size"
            refused[name] = Refusal(reason, "use convfc.to_fc, which takes it")
        elif extra:
            reason = f"it has parts of its own ({', '.join(extra)})"
            refused[name] = Refusal(reason, "an nn.Sequential would call them; take them out first")
        else:
            sized[id(layer)] = SizedGeometry(geometry, sizes[0])
    return sized, refused, idle


def differing_ties(
    model: nn.Module, layers: Mapping[str, nn.Module], sized: Mapping[int, SizedGeometry]
) -> Refusals:
    """Return the layers, by name, that share a parameter with what has another matrix, or stays."""
    found: Refusals = {}
    while True:
        ready = {name: layer for name, layer in layers.items() if name not in found}
        staying = holders(model, but={id(layer) for layer in ready.values()})
        users: dict[int, dict[str, SizedGeometry]] = {}
        for name, layer in ready.items():
            for parameter in layer.parameters():
                users.setdefault(id(parameter), {})[name] = sized[id(layer)]
        more: Refusals = {}
        for name, layer in ready.items():
            for role, parameter in layer.named_parameters():
                own = sized[id(layer)]
                others = (o for o, its in users[id(parameter)].items() if its != own)
                other = staying.get(id(parameter)) or next(others, None)
                if other is not None:
                    does = "stays as it is" if id(parameter) in staying else "has another matrix"
                    reason = f"its {role} is also a parameter of {other}, which {does}"
                    more[name] = Refusal(reason, "untie the two first, or use convfc.to_fc")
        if not more:
            return found
        found |= more


class ToUnrolled:
    """Makes unrolled layers of native ones; what two layers share stays shared."""

    def __init__(self) -> None:
        self.shared = Shared()

    def __call__(self, layer: Any, sized: SizedGeometry) -> nn.Sequential:
        """Return the unrolled layer, with new parameters and the layer's hooks and attributes."""
        weight, bias = layer.weight.detach(), layer.bias
        geometry, size = sized
        record = Unrolled(
            native=own_class(layer),
            attributes={key: vars(layer)[key] for key in _READ_BY_FORWARD if key in vars(layer)},
            geometry=geometry,
            input_size=size,
            weight=weight.clone(),
            weight_channels_last=is_channels_last(weight),
        )
        matrix = self._parameter(layer.weight, ("weight", sized), lambda: _matrix(record))
        offset = None
        if bias is not None:
            offset = self._parameter(
                bias, ("bias", sized), lambda: bias.repeat_interleave(record.positions)
            )
        ndim = len(size)
        whole = nn.Sequential(
            flatten_of((geometry.in_channels, *size), -ndim - 1),
            plain_linear(matrix, offset),
            nn.Unflatten(-1, (geometry.out_channels, *geometry.output_size(size))),
        )
        whole.train(layer.training)
        move_attributes(layer, whole)
        vars(whole)[ATTRIBUTE] = record
        return whole

    def _parameter(self, source: nn.Parameter, key: Any, make: Any) -> nn.Parameter:
        """Return the parameter of the FC layer, one for all layers with the same CONV parameter."""

        def made() -> nn.Parameter:
            with torch.no_grad():
                return nn.Parameter(make(), requires_grad=source.requires_grad)

        return self.shared([source], key, made)


def _matrix(record: Unrolled) -> Tensor:
    filters, pattern = record.filters_of(record.weight), record.pattern
    matrix = filters.new_zeros(pattern.shape)  # in place: `matrix_tensor` needs twice as much
    matrix.view(-1)[places_in(pattern).to(filters.device)] = matrix_values(filters, pattern)
    return matrix
