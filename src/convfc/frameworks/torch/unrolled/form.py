"""A CONV layer as Flatten, Linear, Unflatten: its whole matrix is the Linear's weight."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from convfc.errors import Refusal
from convfc.frameworks.torch.forms.children import flatten_of, move_attributes, plain_linear
from convfc.frameworks.torch.forms.form import ATTRIBUTE, Unrolled
from convfc.frameworks.torch.forms.formats import is_channels_last
from convfc.frameworks.torch.forms.patch import PatchConv
from convfc.frameworks.torch.matrix import matrix_tensor, matrix_values
from convfc.frameworks.torch.places import Shared
from convfc.frameworks.torch.read import own_class
from convfc.frameworks.torch.running import unchanged
from convfc.frameworks.torch.tensors import dtype_name, multiplies
from convfc.frameworks.torch.unrolled.entries import places_in
from convfc.frameworks.torch.watch import watched_run
from convfc.geometry import ConvGeometry
from convfc.operators.estimate import Layout, MatrixEstimate, check_together, pattern_estimate
from convfc.operators.pattern import matrix_pattern

Refusals = dict[str, Refusal]

_READ_BY_FORWARD = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "transposed",
    "output_padding",
    "groups",
    "padding_mode",
    "_reversed_padding_repeated_twice",
)
_PATCH = "use form='patch', which takes every size"


class Plan(NamedTuple):
    """What a layer is unrolled for."""

    geometry: ConvGeometry
    input_size: tuple[int, ...]


def plan_layers(
    model: nn.Module, layers: Mapping[str, nn.Module], example: Any, *, sparse: bool = False
) -> tuple[dict[int, Plan], Refusals, Refusals]:
    """Run a model once on an example, and return what each layer was called on.

    Parameters
    ----------
    model : nn.Module
        It is run in evaluation mode, and nothing in it changes.
    layers : mapping
        CONV layers by name.
    example : Tensor, array, tuple or dict
        A tuple holds several arguments, a dict keyword arguments.
    sparse : bool
        Whether the weights are to be sparse, which PyTorch does not have in every dtype.

    Returns
    -------
    tuple
        Plans by the ``id`` of the layer; by name, why others have none, and the way out; and the
        layers that are not called, which have no part in what the model does with the example.

    Raises
    ------
    ShapeError
        If the model does not run on the example.

    Examples
    --------
    >>> conv = nn.Conv2d(1, 8, 4, stride=2)
    >>> plans, *_ = plan_layers(conv, {"": conv}, torch.zeros(1, 1, 28, 28))
    >>> plans[id(conv)].input_size
    (28, 28)
    """
    with unchanged(model):
        calls = watched_run(model, example, "example").calls
    plans: dict[int, Plan] = {}
    refused: Refusals = {}
    idle: Refusals = {}
    for name, layer in layers.items():
        found = calls.get(id(layer), [])
        sizes = list(dict.fromkeys(call.facts["input_size"] for call in found))
        geometry = found[0].geometry if found else None
        extra = {key for key, part in layer._modules.items() if part is not None}
        extra -= {"fc", "parametrizations"}  # the forms' own
        if not found:
            reason = "the model does not call it on the example"
            idle[name] = Refusal(
                reason, "give an example on which the model does, or use form='patch'"
            )
        elif len(sizes) > 1:
            reason = f"it is called on inputs of the sizes {sizes[0]} and {sizes[1]}"
            refused[name] = Refusal(f"{reason}, and one matrix is for one size", _PATCH)
        elif geometry is None or any(call.arguments > 1 for call in found):
            reason = "it is called with more than its input, such as an output_size"
            refused[name] = Refusal(reason, "use form='patch', which takes it")
        elif extra:
            reason = f"it has parts of its own ({', '.join(sorted(extra))})"
            refused[name] = Refusal(reason, "an nn.Sequential would call them; take them out first")
        elif sparse and not multiplies(_weight(layer).dtype, _weight(layer).device):
            dtype, device = dtype_name(_weight(layer).dtype), _weight(layer).device
            reason = f"PyTorch multiplies by no sparse weight of {dtype} on {device}"
            refused[name] = Refusal(
                reason, "leave out sparse=True, or convert the model to float32 first"
            )
        else:
            plans[id(layer)] = Plan(geometry, sizes[0])
    return plans, refused, idle


def refusals(
    layers: Mapping[str, nn.Module],
    plans: Mapping[int, Plan],
    holders: Callable[[Collection[int]], Mapping[int, str]],
) -> Refusals:
    """Return the layers that share a parameter with something of another size, and the way out.

    Two layers can share a matrix if they compute the same thing at the same size. A layer that is
    left as it is keeps its parameters, so that others which share them are left, too.

    Parameters
    ----------
    layers : mapping
        By name; all with plans.
    plans : mapping
        By the ``id`` of the layer.
    holders : callable
        Given the ``id`` of modules, it returns who else holds each parameter, by its ``id``.
    """
    found: Refusals = {}
    while True:
        ready = {name: layer for name, layer in layers.items() if name not in found}
        staying = holders({id(part) for layer in ready.values() for part in layer.modules()})
        users: dict[int, dict[str, Plan]] = {}
        for name, layer in ready.items():
            for parameter in layer.parameters():
                users.setdefault(id(parameter), {})[name] = plans[id(layer)]
        more: Refusals = {}
        for name, layer in ready.items():
            for key, parameter in layer.named_parameters():
                plan = plans[id(layer)]
                others = (o for o, its in users[id(parameter)].items() if its != plan)
                other = staying.get(id(parameter)) or next(others, None)
                if other is not None:
                    does = "stays as it is" if id(parameter) in staying else "has another matrix"
                    reason = f"its {_role(key)} is also a parameter of {other}, which {does}"
                    more[name] = Refusal(reason, "untie the two first, or use form='patch'")
        if not more:
            return found
        found |= more


def check_memory(
    layers: Mapping[str, nn.Module],
    plans: Mapping[int, Plan],
    *,
    sparse: bool,
    memory: float | None,
) -> None:
    """Raise unless the matrices of all layers fit together, before any of them is built.

    Parameters
    ----------
    layers : mapping
        By name; all with plans.
    plans : mapping
        By the ``id`` of the layer.
    sparse : bool
    memory : float or None
        Bytes; None is what the machine has free.

    Raises
    ------
    MemoryBudgetError
        The message names the largest layer.
    """
    layout: Layout = "csr" if sparse else "dense"
    estimates: dict[str, MatrixEstimate] = {}
    working = 0  # bytes that are needed for a moment: the entries of one layer and their places
    unique = {id(layer): (name, layer) for name, layer in list(layers.items())[::-1]}
    for key, (name, layer) in reversed(unique.items()):
        dtype = _weight(layer).dtype
        # bfloat16 takes what float16 takes, and NumPy does not know it.
        known = "float16" if dtype is torch.bfloat16 else dtype_name(dtype)
        pattern = matrix_pattern(*plans[key], "channels_first")
        estimates[name] = pattern_estimate(pattern, known, layout)
        if not sparse:
            working = max(working, pattern.nonzeros * (8 + dtype.itemsize))
    check_together(
        estimates,
        memory,
        what="the matrices of the unrolled layers",
        remedy=("" if sparse else "sparse=True keeps the entries and leaves out the zeros; ")
        + "form='patch' and form='weight' need no such matrix; convfc.conv_operator(layer, "
        "input_size) applies it without building it; or give a smaller example, or name fewer "
        "layers with where=",
        working=working,
    )


class ToUnrolled:
    """Makes unrolled layers; what two layers share, they go on sharing.

    Parameters
    ----------
    sparse : bool
        Whether the weight is in compressed sparse rows.

    Examples
    --------
    >>> conv = nn.Conv2d(1, 2, 3, padding=1)
    >>> plans, *_ = plan_layers(conv, {"": conv}, torch.zeros(1, 1, 4, 4))
    >>> ToUnrolled(sparse=False)(conv, plans[id(conv)])
    Sequential(
      (0): Flatten(start_dim=-3, end_dim=-1)
      (1): Linear(in_features=16, out_features=32, bias=True)
      (2): Unflatten(dim=-1, unflattened_size=(2, 4, 4))
    )
    """

    def __init__(self, *, sparse: bool) -> None:
        self.sparse = sparse
        self.shared = Shared()

    def __call__(self, layer: nn.Module, plan: Plan) -> nn.Sequential:
        """Return the unrolled layer of a native one, or of one in patch form.

        Its parameters are new; hooks and other attributes move over.
        """
        weight = _weight(layer)
        bias: Any = layer.bias
        geometry, size = plan
        record = Unrolled(
            native=layer.native if isinstance(layer, PatchConv) else own_class(layer),
            attributes={
                name: vars(layer)[name] for name in _READ_BY_FORWARD if name in vars(layer)
            },
            geometry=geometry,
            input_size=size,
            weight=weight.clone(),
            weight_channels_last=(
                layer.weight_channels_last
                if isinstance(layer, PatchConv)
                else is_channels_last(weight)
            ),
        )
        matrix = self._parameter(layer, "weight", plan, lambda: self._matrix(record))
        offset = None
        if bias is not None:
            offset = self._parameter(
                layer, "bias", plan, lambda: bias.detach().repeat_interleave(record.positions)
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

    def _matrix(self, record: Unrolled) -> Tensor:
        filters, pattern = record.filters_of(record.weight), record.pattern
        if self.sparse:
            return matrix_tensor(filters, pattern, "csr")
        matrix = filters.new_zeros(pattern.shape)  # in place: `matrix_tensor` needs twice as much
        matrix.view(-1)[places_in(pattern).to(filters.device)] = matrix_values(filters, pattern)
        return matrix

    def _parameter(self, layer: nn.Module, name: str, plan: Plan, make: Any) -> nn.Parameter:
        """Return the parameter of the FC layer, one for all layers with the same CONV parameter."""
        sources = [p for key, p in layer.named_parameters() if _role(key) == name]
        trains = any(source.requires_grad for source in sources)

        def made() -> nn.Parameter:
            with torch.no_grad():
                return nn.Parameter(make(), requires_grad=trains)

        return self.shared(sources, (name, plan), made)


def _weight(layer: nn.Module) -> Tensor:
    """Return the weight of a layer in any form, in the CONV layer's layout."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight.detach()


def _role(key: str) -> str:
    """Return what a parameter of a layer in any form is: its weight, its bias, or its own name."""
    return "weight" if key == "parametrizations.weight.original" else key.rpartition(".")[2]
