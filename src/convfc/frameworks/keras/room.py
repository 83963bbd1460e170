"""Keras as a `Room`: what its models are made of, and who does what in this room.

A layer becomes an FC layer in place: the object stays and its class is exchanged (see `forms`). So
nothing has to be put into another object's place, whatever holds the layer: a functional graph, a
list of a subclassed model, a wrapper. Only the matrix of a whole layer is several layers, for which
a graph is built again (see `copies`).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import FunctionType
from typing import Any, Literal

from convfc.extras import needing

with needing():
    import keras

# Keras imports TensorFlow where it is installed. After that triton crashes, which PyTorch's
# compiler imports: so it comes first.
if "tensorflow" not in sys.modules:
    with contextlib.suppress(ImportError):
        import triton  # type: ignore[import-untyped]  # noqa: F401

from convfc.certificate import LayerCertificate, NetworkCertificate
from convfc.errors import Refusal, UnsupportedLayer, UnsupportedModel
from convfc.frameworks.keras import copies, export, forms, models, read, simplification, unrolled
from convfc.frameworks.keras.certify import KerasNetworks, KerasPair
from convfc.frameworks.keras.certify_simplified import made_again
from convfc.frameworks.keras.certify_unrolled import UnrolledPair
from convfc.frameworks.keras.inspection import inspect
from convfc.inspection import Inspection
from convfc.layer import ConvLayer, Order
from convfc.mlp.stages import certified_whole
from convfc.operators.estimate import check_dense
from convfc.places import Where, place_in_words, refused
from convfc.room import FCForm, Room, Wanted

_CONVOLVES = frozenset(
    ["conv", "conv_transpose", "depthwise_conv", "separable_conv", "convolution"]
    + ["conv_general_dilated", "conv_with_general_padding", "conv_general_dilated_local"]
    + [f"conv{'_transpose' * turned}{n}d" for n in (1, 2, 3) for turned in (False, True)]
)
"""Functions that convolve, of `keras.ops` and of the backends."""


class KerasRoom(Room):
    """Keras, on every backend."""

    name = "Keras"
    kind = "a keras.Model"

    def owns(self, thing: object) -> bool:
        return isinstance(thing, keras.layers.Layer)

    def order_of(self, layer: Any) -> Order:
        return "channels_first" if layer.data_format == "channels_first" else "channels_last"

    def read_layer(
        self, layer: Any, input_size: Sequence[int], *, differentiable: bool = False
    ) -> ConvLayer:
        return read.read_layer(layer, input_size, differentiable=differentiable)

    def children(self, part: Any) -> Mapping[str, Any]:
        return models.children(part)

    def form_of(self, part: Any) -> Literal["native"] | FCForm | None:
        return unrolled.form_of(part)

    def unreachable(self, model: Any) -> dict[str, Refusal]:
        """Return the places whose own code convolves: it calls functions, and has no layer."""
        found: dict[str, Refusal] = {}
        for place, part in self.places(model).items():
            called = next(_convolutions_in(part), None)
            if called is not None and self.form_of(part) is None:
                found[place] = Refusal(
                    f"{type(part).__name__}: its own code calls {called}",
                    "call a CONV layer instead, whose kernel is its variable",
                    place_in_words(place),
                )
        return found

    def obstacles(
        self, model: Any, layers: Mapping[str, Any], form: FCForm, *, inplace: bool
    ) -> dict[str, Refusal]:
        found = {name: forms.obstacle(layer) for name, layer in layers.items()}
        return {
            name: refusal._replace(reason=f"{type(layers[name]).__name__}: {refusal.reason}")
            for name, refusal in found.items()
            if refusal is not None
        }

    def make_fc(self, model: Any, layers: Mapping[str, Any], wanted: Wanted) -> dict[int, Any]:
        for layer in {id(layer): layer for layer in layers.values()}.values():
            form: Any = wanted.form
            forms.to_form(layer, form, separate=wanted.separate, product=wanted.product)
        return {}

    def sizes(
        self, model: Any, layers: Mapping[str, Any], example: Any
    ) -> tuple[dict[int, Any], dict[str, Refusal], dict[str, Refusal]]:
        return unrolled.sizes(model, layers, example)

    def check_memory(
        self, layers: Mapping[str, Any], sizes: Mapping[int, Any], memory: float | None
    ) -> None:
        check_dense(
            layers,
            sizes,
            memory,
            order=self.order_of,
            dtype=lambda layer: str(layer.variable_dtype),
        )

    def make_unrolled(self, layers: Sequence[Any], sizes: Sequence[Any]) -> dict[int, Any]:
        pairs = zip(layers, sizes, strict=True)
        return {id(layer): unrolled.make_unrolled(layer, size) for layer, size in pairs}

    def unroll(self, model: Any, example: Any, **options: Any) -> Any:
        copies.check_is_graph(model)
        return super().unroll(model, example, **options)

    def back_obstacles(
        self, model: Any, layers: Mapping[str, Any], *, inplace: bool, project: bool
    ) -> dict[str, Refusal]:
        found = {
            name: unrolled.back_obstacle(layer, inplace=inplace, project=project)
            if unrolled.unrolled_of(layer)
            else forms.back_obstacle(layer)
            for name, layer in layers.items()
        }
        return refused(found)

    def make_conv(self, layers: Mapping[str, Any], *, project: bool) -> dict[int, Any]:
        new: dict[int, Any] = {}
        for name, layer in {id(layer): (name, layer) for name, layer in layers.items()}.values():
            if unrolled.unrolled_of(layer):
                new[id(layer)] = unrolled.make_conv(layer, name, project=project)
            else:
                forms.to_native(layer)
        return new

    def whole_back(self, model: Any, where: Where, *, inplace: bool) -> Any | None:
        return simplification.whole_back(model, where, inplace=inplace)

    def simplify(self, model: Any, example: Any, **options: Any) -> Any:
        return simplification.simplify(model, example, **options)

    def rounds_inputs(self, layer: Any) -> bool:
        return not unrolled.unrolled_of(layer) and any(
            child.quantization_mode == "int8" for child in layer.all_fc_layers()
        )

    def copied(self, model: Any, layers: Sequence[Any]) -> tuple[Any, list[Any]]:
        own = self.places(model)
        names = {id(part): name for name, part in own.items()}
        copied = copies.copy_of(model)
        places = self.places(copied)
        for name, part in own.items():
            # A subclassed model makes its layers itself, and knows nothing of their form.
            forms.take_form_of(places.get(name), part)
        places = self.places(copied)
        return copied, [places[names[id(layer)]] for layer in layers]

    def exchanged(self, model: Any, new: Mapping[int, Any]) -> Any:
        models.refresh(model)
        return copies.rebuilt(model, new) if new else model

    def stays(self, form: str | None) -> bool:
        return form in ("patch", "weight")

    def networks(self, before: Any, after: Any, x: Any) -> KerasNetworks:
        """Return two models on an input."""
        for name, model in (("before", before), ("after", after)):
            if not self.owns(model):
                raise UnsupportedModel(
                    "no model of Keras",
                    where=name,
                    expected=self.kind,
                    got=type(model).__name__,
                    remedy="give both models as Keras has them",
                )
            if not model.built:
                raise UnsupportedLayer(
                    "a layer that has no weights yet",
                    where=f"{name}: {model.name}",
                    remedy="run the model once on an input",
                )
        return KerasNetworks(x)

    def pair(self, name: str, before: Any, after: Any) -> KerasPair | None:
        known = (
            self.form_of(one) is not None
            and not (self.form_of(one) == "native" and forms.obstacle(one) is not None)
            for one in (before, after)
        )
        if not any(known):
            return None
        made = unrolled.unrolled_of(before) or unrolled.unrolled_of(after)
        return (UnrolledPair if made else KerasPair)(name, before, after)

    def certified_whole(
        self, before: Any, after: Any, run: Any
    ) -> tuple[list[LayerCertificate], NetworkCertificate] | None:
        return certified_whole(before, after, run, partial(made_again, run))

    def version(self) -> str:
        return f"keras {keras.__version__}, {keras.config.backend()}"

    def inspect(self, model: Any, x: Any = None) -> Inspection:
        return inspect(model, x, self.places(model), self.unreachable(model))

    def to_onnx(self, model: Any, example: Any) -> Any:
        return export.to_onnx(model, self.inspected(model, example)[1])

    def examples(self, model: Any, shapes: Sequence[Sequence[int]]) -> list[Any]:
        """Return an input; of a graph, whose sizes are known, in a batch of two."""
        own = [tuple(one.shape)[1:] for one in getattr(model, "inputs", None) or ()]
        if not shapes and own and not any(None in one for one in own):
            shapes = [(2, *one) for one in own]
        return super().examples(model, shapes)

    def layer_input(self, model: Any, place: str, x: Any) -> Any:
        return models.layer_input(model, self.places(model)[place], x)


def _convolutions_in(part: Any) -> Iterator[str]:
    """Yield the convolutions that a part's own code names, or a functional graph holds."""
    for operation in getattr(part, "operations", ()):
        kind = type(operation)
        if kind.__module__.startswith("keras.src.ops") and "Conv" in kind.__name__:
            yield f"keras.ops ({kind.__name__})"
    inside = type(part).__module__.startswith("keras.")
    if inside and "ConvLSTM" not in type(part).__name__:
        return
    for cls in type(part).__mro__:
        if cls.__module__.startswith("keras.") and not inside:
            continue
        for function in vars(cls).values():
            names = function.__code__.co_names if isinstance(function, FunctionType) else ()
            # A part of this name is a layer, or a method that is looked at itself.
            yield from (f"{n}()" for n in names if n in _CONVOLVES and not hasattr(part, n))


ROOM = KerasRoom()
