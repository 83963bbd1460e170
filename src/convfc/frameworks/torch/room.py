"""PyTorch as a `Room`: what its models are made of, and who does what in this room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from convfc.certificate import LayerCertificate, NetworkCertificate
from convfc.comparing import dtype_name
from convfc.errors import Refusal, ShapeError, UnsupportedLayer
from convfc.frameworks.torch import checkpoint
from convfc.frameworks.torch.certify.networks import Runner
from convfc.frameworks.torch.certify.pairs import Pair, pair_of
from convfc.frameworks.torch.certify.simplified import made_again
from convfc.frameworks.torch.convert import heads, optimizers, to_conv, to_fc
from convfc.frameworks.torch.export import to_onnx
from convfc.frameworks.torch.forms.factors import DISTRIBUTED, is_distributed, quantises_activations
from convfc.frameworks.torch.forms.form import form_of
from convfc.frameworks.torch.inspection import inspect
from convfc.frameworks.torch.maps import linear_maps
from convfc.frameworks.torch.matrix import read_layer
from convfc.frameworks.torch.places import copy_of, places
from convfc.frameworks.torch.reach import out_of_reach
from convfc.frameworks.torch.references import exchange
from convfc.frameworks.torch.running import check_has_numbers, check_module, layer_input
from convfc.frameworks.torch.simplification import simplify
from convfc.frameworks.torch.unrolled.form import ToUnrolled, differing_ties, sized_geometries
from convfc.inspection import Inspection
from convfc.layer import ConvLayer, Order
from convfc.mlp.stages import certified_whole
from convfc.networks import find_pairs
from convfc.operators.estimate import check_dense
from convfc.places import Where
from convfc.room import FCForm, Room, Wanted


class TorchRoom(Room):
    """PyTorch."""

    name = "PyTorch"
    kind = "a torch.nn.Module"

    def owns(self, thing: object) -> bool:
        return isinstance(thing, nn.Module)

    def order_of(self, layer: Any) -> Order:
        return "channels_first"

    def linear_maps(self, layer: ConvLayer, input_size: Sequence[int]) -> Any:
        return linear_maps(layer, input_size)

    def read_layer(
        self, layer: Any, input_size: Sequence[int], *, differentiable: bool = False
    ) -> ConvLayer:
        return read_layer(layer, input_size, differentiable=differentiable)

    def children(self, part: nn.Module) -> Mapping[str, nn.Module]:
        return {key: child for key, child in part._modules.items() if child is not None}

    def form_of(self, part: Any) -> Literal["native"] | FCForm | None:
        return form_of(part)

    def places(self, model: nn.Module) -> dict[str, nn.Module]:
        return places(model)

    def unreachable(self, model: nn.Module) -> dict[str, Refusal]:
        return {refusal.where: refusal for _, refusal in out_of_reach(model)}

    def obstacles(
        self, model: nn.Module, layers: Mapping[str, nn.Module], form: FCForm, *, inplace: bool
    ) -> dict[str, Refusal]:
        return to_fc.obstacles(model, layers, form, inplace=inplace)

    def make_fc(
        self, model: nn.Module, layers: Mapping[str, nn.Module], wanted: Wanted
    ) -> dict[int, nn.Module]:
        return to_fc.make_fc(model, layers, wanted)

    def sizes(
        self, model: nn.Module, layers: Mapping[str, nn.Module], example: Any
    ) -> tuple[dict[int, Any], dict[str, Refusal], dict[str, Refusal]]:
        sized, left, idle = sized_geometries(model, layers, example)
        called = {name: layer for name, layer in layers.items() if id(layer) in sized}
        return sized, left | differing_ties(model, called, sized), idle

    def check_memory(
        self, layers: Mapping[str, nn.Module], sizes: Mapping[int, Any], memory: float | None
    ) -> None:
        check_dense(
            layers,
            {key: [size] for key, size in sizes.items()},
            memory,
            order=self.order_of,
            dtype=lambda layer: dtype_name(layer.weight.dtype),
        )

    def make_unrolled(
        self, layers: Sequence[nn.Module], sizes: Sequence[Any]
    ) -> dict[int, nn.Module]:
        unrolled = ToUnrolled()
        return {id(layer): unrolled(layer, size) for layer, size in zip(layers, sizes, strict=True)}

    def back_obstacles(
        self, model: nn.Module, layers: Mapping[str, nn.Module], *, inplace: bool, project: bool
    ) -> dict[str, Refusal]:
        return to_conv.back_obstacles(model, layers, inplace=inplace, project=project)

    def make_conv(self, layers: Mapping[str, nn.Module], *, project: bool) -> dict[int, nn.Module]:
        return to_conv.make_conv(layers, project=project)

    def unwrapped(self, model: nn.Module, *, inplace: bool) -> tuple[nn.Module, bool]:
        return to_conv.without_peft(model, inplace=inplace)

    def whole_back(self, model: nn.Module, where: Where, *, inplace: bool) -> nn.Module | None:
        return to_conv.whole_back(model, where, inplace=inplace)

    def rounds_inputs(self, layer: nn.Module) -> bool:
        return any(map(quantises_activations, layer.modules()))

    def copied(
        self, model: nn.Module, layers: Sequence[nn.Module]
    ) -> tuple[nn.Module, list[nn.Module]]:
        copies: dict[int, nn.Module] = {}
        model = copy_of(model, {id(layer) for layer in layers}, copies)
        return model, [copies[id(layer)] for layer in layers]

    def exchanged(self, model: nn.Module, new: Mapping[int, nn.Module]) -> nn.Module:
        return exchange(model, dict(new))

    def stays(self, form: str | None) -> bool:
        return form == "weight"

    def to_fc(self, model: nn.Module, **options: Any) -> nn.Module:
        with torch.inference_mode(mode=False):  # what is made here is to be trained
            made: nn.Module = super().to_fc(model, **options)
        return made

    def to_conv(self, model: nn.Module, **options: Any) -> nn.Module:
        with torch.inference_mode(mode=False):
            made: nn.Module = super().to_conv(model, **options)
        return made

    def unroll(self, model: nn.Module, example: Any, **options: Any) -> nn.Module:
        with torch.inference_mode(mode=False):
            made: nn.Module = super().unroll(model, example, **options)
        return made

    def simplify(self, model: nn.Module, example: Any, **options: Any) -> nn.Module:
        return simplify(model, example, **options)

    def to_fully_convolutional(self, model: nn.Module, example: Any, **options: Any) -> nn.Module:
        return heads.to_fully_convolutional(model, example, **options)

    def convert_optimizer_state(self, optimizer: Any, before: Any, after: Any) -> dict[str, Any]:
        pairs = partial(find_pairs, self)
        return optimizers.convert_optimizer_state(optimizer, before, after, pairs)

    def inspect(self, model: nn.Module, x: Any = None) -> Inspection:
        return inspect(model, x)

    def load_weights(self, model: nn.Module, path: Any) -> str:
        return checkpoint.load_weights(model, path)

    def to_onnx(self, model: Any, example: Any) -> Any:
        return to_onnx(model, example)

    def layer_input(self, model: nn.Module, place: str, x: Any) -> Any:
        return layer_input(model, place, x)

    def networks(self, before: nn.Module, after: nn.Module, x: Any) -> Runner:
        """Return two models on an input.

        Everything runs on copies, without autocast, and the random number generators are put back.
        Hooks of the networks run with the copies; hooks around a CONV layer itself are no part of
        the comparison of that layer. What is compared in float64 needs a device that has it.
        """
        for name, model in (("before", before), ("after", after)):
            _check(name, model)
        run = Runner(before, after, x)
        for value in tree_leaves((run.args, run.kwargs)):
            if isinstance(value, Tensor) and value.is_meta:
                raise ShapeError(
                    "an input on the meta device has a shape and no numbers",
                    where="x",
                    got=tuple(value.shape),
                    remedy="give real numbers: torch.randn(x.shape)",
                )
        return run

    def pair(self, name: str, before: nn.Module, after: nn.Module) -> Pair | None:
        return pair_of(name, before, after)

    def certified_whole(
        self, before: nn.Module, after: nn.Module, run: Any
    ) -> tuple[list[LayerCertificate], NetworkCertificate] | None:
        return certified_whole(before, after, run, partial(made_again, run))

    def version(self) -> str:
        return f"torch {torch.__version__}"


ROOM = TorchRoom()


def _check(name: str, model: nn.Module) -> None:
    """Refuse what is not a network, or none yet, or has no numbers to compare."""
    check_module(model, name)
    for place, parameter in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(parameter):
            raise UnsupportedLayer(
                "a lazy layer that has no size yet",
                where=f"{name}: {place}",
                remedy="run the model once on an input",
            )
        if is_distributed(parameter):
            where = f"{name}: {place.rpartition('.')[0]}" if "." in place else name
            raise DISTRIBUTED._replace(where=where).error(UnsupportedLayer)
    check_has_numbers(model, name)
