"""ONNX as a `Room`: `onnx.ModelProto` and `onnx_ir.Model`, in and out the same kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime  # type: ignore[import-untyped]

from convfc.certificate import Certificate
from convfc.comparing import dtype_name
from convfc.errors import ArgumentError, Refusal, UnsupportedModel
from convfc.frameworks.onnx import forms, linear, read, unrolled
from convfc.frameworks.onnx.build import Made, Sizes
from convfc.frameworks.onnx.certify import PAIRED, NodePair, OnnxNetworks, is_unread, other_nodes
from convfc.frameworks.onnx.files import to_proto
from convfc.frameworks.onnx.images import image_obstacle, to_image
from convfc.frameworks.onnx.inputs import generated
from convfc.frameworks.onnx.inspection import inspect
from convfc.inspection import Inspection
from convfc.layer import ConvLayer, Order
from convfc.operators.estimate import check_dense
from convfc.places import Where, refuse_or_list, refused, selector
from convfc.room import FCForm, Room, Wanted


class OnnxRoom(Room):
    """ONNX; inside the room a model is an `onnx_ir.Model`, and a layer a node of it."""

    name = "ONNX"
    kind = "an onnx.ModelProto or an onnx_ir.Model"

    def owns(self, thing: object) -> bool:
        return isinstance(thing, (onnx.ModelProto, ir.Model))

    def order_of(self, layer: Any) -> Order:
        return "channels_first"

    def read_layer(
        self, layer: Any, input_size: Sequence[int], *, differentiable: bool = False
    ) -> ConvLayer:
        raise self._lacks("read_layer", layer)

    def children(self, part: Any) -> Mapping[str, Any]:
        return read.children(part)

    def form_of(self, part: Any) -> Any:  # "2-D", too
        return read.form_of(part)

    def obstacles(
        self, model: Any, layers: Mapping[str, Any], form: FCForm, *, inplace: bool
    ) -> dict[str, Refusal]:
        if form == "unrolled":  # an example says their sizes
            return {}
        sizes = Sizes(model)
        found = {name: forms.obstacle(node, sizes) for name, node in layers.items()}
        return refused(found)

    def make_fc(self, model: Any, layers: Mapping[str, Any], wanted: Wanted) -> dict[int, Any]:
        if wanted.form == "weight" or wanted.separate:
            option = "form='weight'" if wanted.form == "weight" else "groups='separate'"
            raise ArgumentError(
                "nodes of ONNX have one FC form",
                where=option.partition("=")[0],
                expected="form='patch', groups='auto' or 'batched'",
                got=option,
                remedy="leave it out",
            )
        sizes, made = Sizes(model), Made(model)
        for node in layers.values():
            if read.RECORD in node.metadata_props:  # an FC layer that is a CONV node
                forms.to_native(node, made)
            else:
                forms.to_patch(node, sizes, made)
        return {}

    def sizes(
        self, model: Any, layers: Mapping[str, Any], example: Any
    ) -> tuple[dict[int, Any], dict[str, Refusal], dict[str, Refusal]]:
        return unrolled.sizes(model, layers, example)

    def check_memory(
        self, layers: Mapping[str, Any], sizes: Mapping[int, Any], memory: float | None
    ) -> None:
        each = {key: [sized] for key, sized in sizes.items()}
        # An onnx_ir.Model holds them, and the file that is made of it.
        check_dense(layers, each, memory, order=self.order_of, dtype=_dtype_of, times=2)

    def make_unrolled(self, layers: Sequence[Any], sizes: Sequence[Any]) -> dict[int, Any]:
        made = Made()
        for node, sized in zip(layers, sizes, strict=True):
            if read.RECORD in node.metadata_props:
                forms.to_native(node, made)
            else:
                unrolled.to_unrolled(node, sized, made)
        return {}

    def back_obstacles(
        self, model: Any, layers: Mapping[str, Any], *, inplace: bool, project: bool
    ) -> dict[str, Refusal]:
        found = {name: forms.back_obstacle(node, project=project) for name, node in layers.items()}
        return refused(found)

    def make_conv(self, layers: Mapping[str, Any], *, project: bool) -> dict[int, Any]:
        made = Made()
        for name, node in layers.items():
            forms.to_native(node, made, name, project=project)
        return {}

    def rounds_inputs(self, layer: Any) -> bool:
        return False

    def copied(self, model: Any, layers: Sequence[Any]) -> tuple[Any, list[Any]]:
        names = {id(part): name for name, part in self.places(model).items()}
        places = self.places(copied := model.clone())
        return copied, [places[names[id(layer)]] for layer in layers]

    def exchanged(self, model: Any, new: Mapping[int, Any]) -> Any:
        return model

    def stays(self, form: str | None) -> bool:
        return True

    def to_fc(self, model: Any, **options: Any) -> Any:
        return _through(super().to_fc, model, **options)

    def unroll(self, model: Any, example: Any, **options: Any) -> Any:
        def verb(model: Any, *, inplace: bool, **options: Any) -> Any:
            return super(OnnxRoom, self).unroll(model, example, **options)

        return _through(verb, model, **options)

    def to_conv(self, model: Any, **options: Any) -> Any:
        """Take FC layers back; where there are none, make CONV nodes of a user's products.

        With ``images=True``, for a target that only convolves images: whatever is left then is made
        a CONV node of two axes, products and CONV nodes of one.
        """
        return _through(self._to_conv, model, **options)

    def _to_conv(
        self,
        model: Any,
        *,
        where: Where = None,
        strict: bool = True,
        inplace: bool = False,
        project: bool = False,
        images: bool = False,
    ) -> Any:
        chosen = selector(where)
        rest: dict[str, Any] = {"where": where, "strict": strict, "project": project}
        places = {name: part for name, part in self.places(model).items() if chosen(name, part)}
        has_made = any(self.form_of(part) not in (None, "native") for part in places.values())
        if has_made:
            model = super().to_conv(model, inplace=inplace, **rest)
            if not images:
                return model
            inplace = True
            places = {name: part for name, part in self.places(model).items() if chosen(name, part)}
        sizes = Sizes(model)
        layers = {
            name: part
            for name, part in places.items()
            if linear.is_product(part) or (images and read.is_1d(part, sizes))
        }
        if not (layers or has_made):
            return super().to_conv(model, inplace=inplace, **rest)
        left = refused({name: image_obstacle(node, sizes) for name, node in layers.items()})
        what = "cannot become a CONV layer" + " of images" * images
        refuse_or_list(left, what, strict=strict)
        nodes = [node for name, node in layers.items() if name not in left]
        if not inplace:
            model, nodes = self.copied(model, nodes)
            sizes = Sizes(model)
        made = Made()
        for node in nodes:
            to_image(node, sizes, made)
        return model

    def networks(self, before: Any, after: Any, x: Any) -> OnnxNetworks:
        return OnnxNetworks(before, x)

    def verify(self, before: Any, after: Any, x: Any, *, seed: int = 0) -> Certificate:
        """Compare two models; what stands outside their CONV layers has to be the same nodes."""
        models = [_opened(one, name) for name, one in (("before", before), ("after", after))]
        ours, theirs = map(self.places, models)
        for name in ours.keys() & theirs.keys():
            for one, other in ((ours[name], theirs[name]), (theirs[name], ours[name])):
                if self.form_of(other) and linear.is_product(one):
                    one.meta[PAIRED] = True
        found = super().verify(models[0], models[1], x, seed=seed)
        errors = (*found.network.errors, *other_nodes(*models))
        return replace(found, network=replace(found.network, errors=errors))

    def pair(self, name: str, before: Any, after: Any) -> NodePair | None:
        both = is_unread(before) and is_unread(after)
        return None if both else NodePair(name, before, after)

    def examples(self, model: Any, shapes: Sequence[Sequence[int]]) -> list[Any]:
        return list(generated(model, shapes=[tuple(one) for one in shapes]))

    def version(self) -> str:
        return f"onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}"

    def inspect(self, model: Any, x: Any = None) -> Inspection:
        model = _opened(model, "model")
        places = self.places(model).items()
        return inspect(model, x, {name: one for name, one in places if self.form_of(one)})

    def to_onnx(self, model: Any, example: Any = None) -> ir.Model:
        return ir.from_proto(model) if isinstance(model, onnx.ModelProto) else model


def _opened(model: Any, where: str) -> ir.Model:
    """Return a copy of a model that knows the shapes of its values, and the opset of each node."""
    if not ROOM.owns(model):
        raise UnsupportedModel(
            "no model of ONNX",
            where=where,
            expected=ROOM.kind,
            got=type(model).__name__,
            remedy="give both models as onnx or onnx_ir has them",
        )
    made = ir.from_proto(model) if isinstance(model, onnx.ModelProto) else model.clone()
    versioned(made)
    Sizes(made).note()
    return made


def _dtype_of(node: ir.Node) -> str:
    parts = forms.parts_of(node)
    tensor = None if parts is None else read.constant(parts.weight)
    return "float32" if tensor is None else dtype_name(tensor.dtype.numpy())


def versioned(model: ir.Model) -> ir.Model:
    """Let each node say the opset it is written in: a function has its own."""
    parts: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for part in parts:
        imports = part.opset_imports
        for node in read.nodes_of(part):
            node.version = imports.get("", model.opset_imports.get("", 1))
            damage = forms.damage(node)
            if damage is not None:
                raise damage.error(UnsupportedModel)
    return model


def _through(verb: Callable[..., Any], model: Any, *, inplace: bool = False, **options: Any) -> Any:
    """Convert a model of either kind, and return it as that kind."""
    if isinstance(model, ir.Model):
        return verb(versioned(model), inplace=inplace, **options)
    made = to_proto(verb(versioned(ir.from_proto(model)), inplace=True, **options))
    if not inplace:
        return made
    model.CopyFrom(made)
    return model


ROOM = OnnxRoom()
