"""CONV nodes as the nodes of an FC layer: equal to the bit on integers, and home again.

The judge is onnxruntime, on the model that was converted and on the one that it was.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import oracle
import pytest
from cases import CASES, Case
from hypothesis import given
from onnx import defs, helper, numpy_helper
from onnx_models import (
    attributes_of,
    conv_model,
    integers,
    model_of,
    network,
    oldest_ir,
    plain,
    run,
    weight_of,
)
from strategies import cases

import convfc
from convfc.errors import (
    ArgumentError,
    NothingToConvert,
    UnsupportedLayer,
    UnsupportedModel,
)

if TYPE_CHECKING:
    from pathlib import Path

OPERATORS = {
    *("Pad", "Slice", "Gather", "Concat", "Reshape", "Transpose", "Unsqueeze", "Squeeze"),
    *("MatMul", "Add", "Constant", "Cast", "Shape"),
}
"""All that an FC layer is made of; where a size is worked out, arithmetic of sizes as well."""
ARITHMETIC = {"Sub", "Mul", "Div", "Greater"}
OPSETS = (7, 8, 9, 10, 11, 12, 13, 17, 18, 20, 21, 22, defs.onnx_opset_version())


@dataclass(frozen=True)
class Node:
    """A CONV node: its shapes, and its attributes."""

    op: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    rest: dict[str, Any] = field(default_factory=dict)
    bias: bool = True
    auto: bool = False
    """Whether padding depends on the size, so that opsets below 11 have to know it."""

    def __str__(self) -> str:
        rest = "-".join(f"{key}{value}" for key, value in self.rest.items())
        return f"{self.op}-{self.x}-{self.weight}-{rest}".replace(" ", "")

    def model(self, x_shape: Any = None, dtype: Any = np.float32, **options: Any) -> Any:
        groups = self.rest.get("group", 1)
        filters = self.weight[1] * groups if self.op == "ConvTranspose" else self.weight[0]
        bias = integers((filters,), dtype, 1) if self.bias else None
        weight = integers(self.weight, dtype, 2)
        return conv_model(self.op, x_shape or self.x, weight, bias, **self.rest, **options)

    def open(self, axes: slice) -> list[int | str]:
        """The shape of the input, with names for the sizes of some axes."""
        names = [f"n{axis}" for axis in range(len(self.x))]
        return [*self.x[: axes.start], *names[axes], *self.x[axes.stop :]]


def conv(x: Any, weight: Any, bias: bool = True, **rest: Any) -> Node:
    return Node("Conv", x, weight, rest, bias, rest.get("auto_pad", "V")[0] == "S")


def turned(x: Any, weight: Any, bias: bool = True, **rest: Any) -> Node:
    return Node("ConvTranspose", x, weight, rest, bias, "output_shape" in rest)


NODES = [
    conv((2, 3, 9, 8), (4, 3, 3, 2), pads=[1, 0, 2, 1], strides=[2, 1], dilations=[1, 2]),
    conv((2, 3, 9), (4, 3, 3)),
    conv((2, 3, 9, 8), (4, 3, 3, 2), bias=False, kernel_shape=[3, 2]),
    conv((2, 4, 9), (6, 2, 3), group=2, auto_pad="SAME_LOWER", strides=[2]),
    conv((2, 4, 9, 10), (6, 2, 3, 4), group=2, auto_pad="SAME_UPPER", strides=[2, 3]),
    conv((2, 4, 9, 10), (6, 2, 3, 4), group=2, auto_pad="SAME_LOWER", strides=[2, 3]),
    conv((2, 4, 9, 10), (6, 4, 4, 2), auto_pad="SAME_UPPER"),
    conv((2, 4, 9, 10), (6, 4, 4, 2), auto_pad="SAME_LOWER", bias=False),
    conv((1, 2, 8, 7), (3, 2, 1, 2), auto_pad="SAME_UPPER", strides=[3, 1]),  # none on one axis
    conv((2, 4, 9, 10), (8, 1, 3, 3), group=4, auto_pad="VALID"),
    conv((2, 4, 9, 10), (8, 1, 3, 3), group=4, auto_pad="VALID", strides=[2, 2]),
    conv((2, 4, 9, 10), (4, 1, 3, 3), group=4, auto_pad="NOTSET", pads=[1, 1, 1, 1]),  # depthwise
    conv((2, 40, 5, 6), (40, 1, 3, 3), group=40, pads=[1, 1, 1, 1]),
    conv((2, 4, 9, 10), (6, 4, 1, 1)),
    conv((2, 4, 9, 10), (6, 4, 1, 1), strides=[2, 2]),
    conv((2, 4, 9, 10), (6, 4, 1, 1), pads=[0, 1, 2, 0]),
    conv((2, 4, 8, 8), (6, 4, 4, 4), strides=[4, 4]),  # kernel == stride: a patch embedding
    conv((2, 4, 9, 10), (6, 4, 2, 2), strides=[4, 3]),  # pixels that are not read
    conv((2, 3, 4, 5), (6, 3, 4, 5)),  # one window
    conv((2, 3, 4, 5), (6, 3, 2, 5), pads=[1, 2, 0, 0], strides=[1, 2]),
    conv((1, 2, 5, 6, 7), (3, 2, 2, 3, 3), strides=[1, 2, 1], pads=[1] * 6),
    conv((1, 4, 5, 6, 7), (4, 2, 2, 3, 3), group=2, dilations=[2, 1, 3]),
    conv((1, 2, 5, 6, 7), (3, 2, 2, 3, 2), auto_pad="SAME_LOWER", strides=[2, 2, 2]),
    turned((2, 3, 5), (3, 4, 3)),
    turned((2, 3, 5, 6), (3, 4, 3, 2), strides=[2, 3], pads=[1, 0, 1, 1], output_padding=[1, 0]),
    turned((2, 3, 5, 6), (3, 4, 3, 2), strides=[2, 3], output_padding=[1, 2], kernel_shape=[3, 2]),
    turned((2, 3, 5, 6), (3, 4, 2, 2), strides=[2, 2]),
    turned((2, 3, 5, 6), (3, 4, 2, 2), strides=[3, 4], bias=False),  # gaps
    turned((2, 3, 5, 6), (3, 4, 1, 1), strides=[2, 2]),
    turned((2, 4, 5), (4, 3, 3), group=2, strides=[2], dilations=[2]),
    turned((2, 4, 5, 4), (4, 1, 3, 2), group=4, strides=[2, 1], pads=[1, 0, 1, 0]),  # depthwise
    turned((2, 4, 5, 5), (4, 3, 3, 3), dilations=[2, 1], pads=[1, 1, 1, 1]),
    turned((2, 4, 5, 5), (4, 3, 3, 3), pads=[4, 0, 1, 3]),
    turned((2, 4, 5, 5), (4, 3, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2]),
    turned((2, 4, 5, 5), (4, 3, 4, 3), auto_pad="SAME_UPPER", strides=[1, 2]),
    turned((2, 4, 5, 5), (4, 3, 3, 3), auto_pad="SAME_LOWER", strides=[2, 2]),
    turned((2, 4, 5, 5), (4, 3, 3, 3), auto_pad="VALID", strides=[2, 2]),
    turned((2, 4, 5, 5), (4, 3, 3, 3), output_shape=[10, 12], strides=[2, 2]),
    turned((2, 4, 5, 5), (4, 3, 3, 3), output_shape=[9, 10], strides=[2, 2]),
    turned((2, 4, 5, 5), (4, 3, 3, 3), output_shape=[9, 10], strides=[2, 2], auto_pad="SAME_UPPER"),
    turned((2, 4, 5, 5), (4, 3, 3, 3), output_shape=[10, 9], strides=[2, 2], auto_pad="SAME_LOWER"),
    turned((1, 2, 3, 4, 3), (2, 3, 2, 3, 2), strides=[2, 1, 3]),
    turned((1, 2, 3, 2, 3), (2, 2, 2, 1, 2), group=2, strides=[2, 1, 2], pads=[1, 0, 0, 0, 0, 1]),
    conv((2, 4, 9, 8), (6, 4, 2, 3), strides=[2, 3], dilations=[3, 1]),  # as long as its stride
]
SIZES = {"known": slice(0, 0), "batch open": slice(0, 1), "all open": slice(0, 9)}

every_node = pytest.mark.parametrize("node", NODES, ids=str)


def input_shapes(model: onnx.ModelProto) -> list[list[int]]:
    return [[d.dim_value for d in one.type.tensor_type.shape.dim] for one in model.graph.input]


def assert_equal(fc: onnx.ModelProto, model: onnx.ModelProto, *inputs: np.ndarray) -> None:
    for found, expected in zip(run(fc, *inputs), run(model, *inputs), strict=True):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert np.array_equal(found, expected)
        assert expected.any()


def converted(model: onnx.ModelProto, more: set[str] = frozenset()) -> onnx.ModelProto:
    """A valid model of known operators; the one that is given stays as it was."""
    kept = model.SerializeToString(deterministic=True)
    fc = convfc.to_fc(model)
    assert model.SerializeToString(deterministic=True) == kept
    onnx.checker.check_model(fc, full_check=True)
    assert {node.op_type for node in fc.graph.node} <= OPERATORS | more
    assert (fc.ir_version, list(fc.opset_import)) == (model.ir_version, list(model.opset_import))
    return fc


def assert_home(fc: onnx.ModelProto, model: onnx.ModelProto) -> None:
    back = convfc.to_conv(fc)
    onnx.checker.check_model(back, full_check=True)
    assert plain(back) == plain(model)


# Values, and home again.


@pytest.mark.parametrize("sizes", SIZES)
@every_node
def test_a_node_becomes_an_fc_layer_and_comes_back(node: Node, sizes: str) -> None:
    x, axes = integers(node.x), SIZES[sizes]
    model = node.model(node.open(axes))
    if sizes == "all open" and "output_shape" in node.rest:
        with pytest.raises(UnsupportedLayer, match=r"^conv: .*output_shape is given.*Remedy: give"):
            convfc.to_fc(model)
        return
    fc = converted(model, ARITHMETIC)
    assert_equal(fc, model, x)
    if sizes != "known":
        assert_equal(fc, model, x[:1])
    if sizes == "all open":
        assert_equal(
            fc,
            model,
            integers(
                [n + 3 - 2 * (n % 2) for n in node.x[:1]]
                + [node.x[1], *(n + 1 + axis for axis, n in enumerate(node.x[2:]))]
            ),
        )
    assert_home(fc, model)


@pytest.mark.parametrize("case", [c for c in CASES if attributes_of(c.geometry)], ids=str)
def test_it_is_the_definition(case: Case) -> None:
    assert_defined(case)


@given(cases(modes=("zeros",), flip=False))
def test_drawn_layers_are_the_definition(case: Case) -> None:
    assert_defined(case)


def assert_defined(case: Case) -> None:
    x, filters, bias = case.integers(dtype=np.float32)
    model = model_of_case(case, filters, bias)
    y = np.moveaxis(oracle.conv(x, filters, case.geometry, bias), -1, 1)
    fc = converted(model)
    (found,) = run(fc, np.moveaxis(x, -1, 1))
    assert np.array_equal(found, y)
    assert_home(fc, model)


def model_of_case(case: Case, filters: Any, bias: Any, **options: Any) -> onnx.ModelProto:
    attributes = attributes_of(case.geometry)
    assert attributes is not None
    x_shape = (case.batch, case.geometry.in_channels, *case.input_size)
    op = attributes.pop("op")
    return conv_model(op, x_shape, weight_of(filters, case.geometry), bias, **attributes, **options)


@pytest.mark.parametrize("opset", OPSETS)
@every_node
def test_every_opset_has_its_own_spelling(node: Node, opset: int) -> None:
    model, x = node.model(opset=opset), integers(node.x)
    fc = converted(model, ARITHMETIC)
    assert_equal(fc, model, x)
    assert_home(fc, model)


@pytest.mark.parametrize("opset", [opset for opset in OPSETS if opset < 13])
@every_node
def test_old_opsets_with_open_sizes(node: Node, opset: int) -> None:
    """What an old opset cannot say of sizes that are not known is refused with a remedy."""
    model = node.model(node.open(SIZES["all open"]), opset=opset)
    strided = node.op == "Conv" and set(node.rest.get("strides", [1])) != {1}
    if "output_shape" in node.rest:
        refused = "output_shape is given"
    elif node.auto and strided and opset < 11:
        refused = "auto_pad takes opset 11"
    elif strided and opset < 10:
        refused = "stride takes opset 10"
    else:
        fc = converted(model, ARITHMETIC)
        assert_equal(fc, model, integers(node.x))
        assert_home(fc, model)
        return
    with pytest.raises(UnsupportedLayer, match=rf"^conv: .*{refused}.*Remedy: give the model's"):
        convfc.to_fc(model)


@pytest.mark.parametrize("version", range(3, oldest_ir(OPSETS[-1]) + 1))
def test_every_ir_version(version: int) -> None:
    """In version 3 every initializer has to be an input, too."""
    opset = max(opset for opset in OPSETS if oldest_ir(opset) <= version)
    weights = "input" if version == 3 else "initializer"
    for node in (NODES[0], NODES[24]):
        model = node.model(opset=opset, weights=weights)
        model.ir_version = version
        fc = converted(model)
        assert_equal(fc, model, integers(node.x))
        assert_home(fc, model)


# Weights.


@pytest.mark.parametrize("weights", ["initializer", "input", "constant", "computed", "given"])
@pytest.mark.parametrize("opset", [7, 8, 13, 22])
@pytest.mark.parametrize("node", [NODES[0], NODES[4], NODES[11], NODES[24], NODES[29]], ids=str)
def test_weights_come_from_anywhere(node: Node, opset: int, weights: Any) -> None:
    model = node.model(opset=opset, weights=weights)
    fc = converted(model)
    inputs = [integers(node.x)]
    if weights in ("input", "given"):  # other weights than those in the file
        inputs += [integers(shape, seed=7) for shape in input_shapes(model)[1:]]
    assert_equal(fc, model, *inputs)
    assert_home(fc, model)
    matrices = {tensor.name[:2] for tensor in fc.graph.initializer if "." in tensor.name}
    assert matrices == ({"W.", "B."} if weights == "initializer" else set())


def two_layers(first: Any, second: Any, weights: str, **options: Any) -> onnx.ModelProto:
    """Two nodes, each given as keywords of `make_node`, with one weight; both outputs go out."""
    tensor = numpy_helper.from_array(integers((6, 2, 3, 3)), "W")
    constants = [helper.make_node("Constant", [], ["W"], "constant", value=tensor)]
    nodes = [
        helper.make_node(inputs=[f"x{n}", "W"], outputs=[f"y{n}"], **node)
        for n, node in enumerate((first, second))
    ]
    channels = [2 * n.get("group", 1) if n["op_type"] == "Conv" else 6 for n in (first, second)]
    infos = [
        helper.make_tensor_value_info(f"x{n}", 1, (1, c, 5, 4)) for n, c in enumerate(channels)
    ]
    graph = helper.make_graph(
        [*(constants if weights == "constant" else []), *nodes],
        "network",
        infos,
        [helper.make_tensor_value_info(name, 1, [None] * 4) for name in ("y0", "y1")],
        [] if weights == "constant" else [tensor],
        **options,
    )
    return model_of(graph, 17)


SHARED = {
    "the same": ({"op_type": "Conv"}, {"op_type": "Conv", "strides": [2, 2]}),
    "other groups": ({"op_type": "Conv"}, {"op_type": "Conv", "group": 2}),
    "transposed": ({"op_type": "Conv"}, {"op_type": "ConvTranspose"}),
    "transposed groups": ({"op_type": "ConvTranspose", "group": 3}, {"op_type": "ConvTranspose"}),
}


@pytest.mark.parametrize("weights", ["initializer", "constant"])
@pytest.mark.parametrize("layers", SHARED)
def test_layers_that_share_a_weight_go_on_sharing_it(layers: str, weights: str) -> None:
    model = two_layers(*SHARED[layers], weights)
    fc = converted(model)
    inputs = [integers(shape) for shape in input_shapes(model)]
    assert_equal(fc, model, *inputs)
    matrices = [one for one in ir.from_proto(fc).graph.initializers if one.startswith("W")]
    if weights == "initializer":
        assert len(matrices) == (1 if layers == "the same" else 2)
    assert_home(fc, model)
    first = convfc.to_fc(model, where="y0")
    assert_equal(first, model, *inputs)
    assert_home(first, model)


@pytest.mark.parametrize("use", ["node", "output"])
def test_a_weight_that_is_needed_elsewhere_stays(use: str) -> None:
    model = NODES[0].model()
    more = helper.make_tensor_value_info("W2" if use == "node" else "W", 1, (4, 3, 3, 2))
    if use == "node":
        model.graph.node.append(helper.make_node("Neg", ["W"], ["W2"]))
    model.graph.output.append(more)
    fc = converted(model, {"Neg"})
    assert_equal(fc, model, integers(NODES[0].x))
    assert "W" in {one.name for one in fc.graph.initializer}
    assert_home(fc, model)


def test_a_layer_of_one_tap_is_the_product_alone() -> None:
    """M is the input: nothing is moved, whatever its size."""
    model = NODES[13].model(NODES[13].open(SIZES["all open"]))
    moving = {"Slice", "Pad", "Transpose", "Unsqueeze"}
    assert not moving & {node.op_type for node in converted(model).graph.node}


@pytest.mark.parametrize("opset", [9, 17])
def test_a_layer_behind_a_layer_knows_its_size(opset: int) -> None:
    """Nothing between them: what the first one becomes has the shape that was known of it."""
    info = helper.make_tensor_value_info
    weights = {"V": integers((4, 3, 3, 3)), "W": integers((4, 2, 2, 2), seed=1)}
    nodes = [
        helper.make_node("Conv", ["x", "V"], ["t"], strides=[2, 1]),
        helper.make_node("ConvTranspose", ["t", "W"], ["u"], strides=[2, 2]),
        helper.make_node("Conv", ["u", "X"], ["y"], strides=[2, 3]),
    ]
    weights["X"] = integers((1, 2, 2, 2), seed=2)
    graph = helper.make_graph(
        nodes,
        "network",
        [info("x", 1, ["b", 3, 7, 6])],
        [info("y", 1, ["b", 1, 3, 3])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = model_of(graph, opset, oldest_ir(opset) + 1)
    fc = converted(model)
    assert not any(node.op_type == "Shape" for node in fc.graph.node)
    assert_equal(fc, model, integers((2, 3, 7, 6), seed=3))
    nothing = np.zeros((0, 3, 7, 6), np.float32)  # of which no size can be worked out
    assert run(fc, nothing)[0].shape == run(model, nothing)[0].shape == (0, 1, 3, 3)
    assert_home(fc, model)


def test_names_that_are_taken_are_left_alone() -> None:
    """Whatever convfc would name its values: the model's own have these names already."""
    model = NODES[0].model()
    made = convfc.to_fc(model).graph
    names = {name for node in made.node for name in node.output}
    taken = sorted(names - {"y"} | {tensor.name for tensor in made.initializer})
    for name in taken:
        model.graph.initializer.append(numpy_helper.from_array(integers((1,), seed=3), name))
    model.graph.node.append(helper.make_node("Sum", taken, ["z"]))
    model.graph.output.append(helper.make_tensor_value_info("z", 1, (1,)))
    fc = converted(model, {"Sum"})
    assert_equal(fc, model, integers(NODES[0].x))
    assert_home(fc, model)
    assert convfc.verify(model, fc, integers(NODES[0].x)).holds


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@every_node
def test_other_dtypes(node: Node, dtype: Any) -> None:
    """onnxruntime convolves float32 only; the FC layer of another dtype it multiplies."""
    model, x = node.model(dtype=dtype), integers(node.x)
    fc = converted(model, ARITHMETIC)
    (expected,) = run(node.model(), x)
    (found,) = run(fc, x.astype(dtype))
    assert found.dtype == dtype
    assert np.array_equal(found, expected)
    assert_home(fc, model)


# Models.


REST = {"BatchNormalization", "Relu"} | ARITHMETIC


def test_names_and_all_around_a_layer_stay() -> None:
    model, x = network(), integers((1, 3, 6, 5))
    fc = converted(model, REST)
    assert_equal(fc, model, x)
    ours, theirs = ({node.output[0]: node for node in one.graph.node} for one in (model, fc))
    for name in "anrcdy":
        assert (theirs[name].name, theirs[name].doc_string) == (
            ours[name].name,
            ours[name].doc_string,
        )
    for name in "nrd":
        assert theirs[name] == ours[name]
    assert {info.name for info in fc.graph.value_info} >= {"a", "c"}
    for one in ("metadata_props", "producer_name", "model_version"):
        assert getattr(fc, one) == getattr(model, one)
    for one in ("name", "doc_string", "input", "output"):
        assert getattr(fc.graph, one) == getattr(model.graph, one)
    kept = {tensor.name: tensor for tensor in fc.graph.initializer}
    for tensor in model.graph.initializer:
        assert tensor.name.endswith(("weight", "bias")) or kept[tensor.name] == tensor
    assert_home(fc, model)


def test_some_layers_alone() -> None:
    model, x = network(), integers((1, 3, 6, 5))
    fc = convfc.to_fc(model, where=["c"])
    assert [node.op_type for node in fc.graph.node if node.op_type.startswith("Conv")] == [
        "Conv",
        "ConvTranspose",
    ]
    assert_equal(fc, model, x)
    both = convfc.to_fc(fc)
    assert {node.op_type for node in both.graph.node} <= OPERATORS | REST
    assert_equal(both, model, x)
    some = convfc.to_conv(both, where="up")
    assert_equal(some, model, x)
    assert [row.form for row in convfc.inspect(some).rows] == ["patch", "patch", "native"]
    assert_home(both, model)


def test_in_place_and_as_a_model_of_onnx_ir() -> None:
    proto, x = network(), integers((1, 3, 6, 5))
    model = ir.from_proto(proto)
    fc = convfc.to_fc(model)
    assert isinstance(fc, ir.Model)
    assert plain(ir.to_proto(model)) == plain(proto)
    assert_equal(ir.to_proto(fc), proto, x)
    assert plain(ir.to_proto(convfc.to_conv(fc))) == plain(proto)
    assert convfc.to_fc(model, inplace=True) is model
    assert plain(ir.to_proto(model)) == plain(ir.to_proto(fc))
    assert convfc.to_conv(model, inplace=True) is model
    assert plain(ir.to_proto(model)) == plain(proto)

    other = network()
    assert convfc.to_fc(other, inplace=True) is other
    assert other == convfc.to_fc(proto)
    assert convfc.to_conv(other, inplace=True) is other
    assert plain(other) == plain(proto)


def test_changed_weights_come_back() -> None:
    """What a tool has written into the matrices is the CONV layer's."""
    model, x = network(), integers((1, 3, 6, 5))
    fc, double = convfc.to_fc(model), network()
    for one in (fc, double):
        for tensor in one.graph.initializer:
            if "weight" in tensor.name or "bias" in tensor.name:
                tensor.CopyFrom(
                    numpy_helper.from_array(2 * numpy_helper.to_array(tensor), tensor.name)
                )
    assert_equal(fc, double, x)
    assert_home(fc, double)


@pytest.mark.parametrize("node", [NODES[0], NODES[24], NODES[29]], ids=str)
def test_weights_in_a_file_beside_the_model(node: Node, tmp_path: Path) -> None:
    """K of a Conv is the weight, byte by byte, so that it stays in the file where it is."""
    model, x = node.model(), integers(node.x)
    path = tmp_path / "model.onnx"
    onnx.save(node.model(), path, save_as_external_data=True, location="data", size_threshold=0)
    opened = ir.load(path)
    held = {name: value.const_value for name, value in opened.graph.initializers.items()}
    assert all(isinstance(tensor, ir.ExternalTensor) for tensor in held.values())
    fc = convfc.to_fc(opened)
    for name, tensor in held.items():
        (found,) = (v.const_value for n, v in fc.graph.initializers.items() if n[0] == name)
        if node.op == "Conv" or name == "B":
            assert isinstance(found, ir.ExternalTensor)
            where = [(t.location, t.offset, t.length, t.base_dir) for t in (found, tensor)]
            assert where[0] == where[1]
    ir.save(fc, tmp_path / "fc.onnx")
    loaded = onnx.load(tmp_path / "fc.onnx")
    onnx.checker.check_model(loaded, full_check=True)
    assert_equal(loaded, model, x)
    assert convfc.verify(opened, fc, x).holds
    ir.save(convfc.to_conv(fc), tmp_path / "back.onnx")
    assert plain(onnx.load(tmp_path / "back.onnx")).graph.node == model.graph.node
    back = onnx.load(tmp_path / "back.onnx").graph.initializer
    arrays = (
        {t.name: numpy_helper.to_array(t).tobytes() for t in one}
        for one in (back, model.graph.initializer)
    )
    assert next(arrays) == next(arrays)


# What is refused.


@pytest.mark.parametrize(("option", "value"), [("form", "weight"), ("groups", "separate")])
def test_options_that_onnx_does_not_have(option: str, value: str) -> None:
    with pytest.raises(ArgumentError, match=rf"^{option}: nodes of ONNX have one FC form"):
        convfc.to_fc(network(), **{option: value})


def test_nothing_to_convert() -> None:
    model = convfc.to_fc(network())
    with pytest.raises(NothingToConvert, match="has no CONV layer that is not in patch form"):
        convfc.to_fc(model)
    with pytest.raises(NothingToConvert, match="has no layer in patch"):
        convfc.to_conv(network())


def test_a_weight_of_no_known_shape() -> None:
    model = NODES[0].model(weights="given")
    del model.graph.input[1].type.tensor_type.shape.dim[:]
    model.graph.input[1].type.tensor_type.ClearField("shape")
    with pytest.raises(
        UnsupportedLayer, match=r"^conv: Conv: the shape of its weight is not known"
    ):
        convfc.to_fc(model)


def test_nodes_that_a_tool_has_changed_do_not_go_home() -> None:
    fc = convfc.to_fc(NODES[0].model())
    (matmul,) = (node for node in fc.graph.node if node.op_type == "MatMul")
    matmul.op_type = "MatMulInteger"
    with pytest.raises(UnsupportedLayer, match=r"^conv: its nodes are not those that convfc made"):
        convfc.to_conv(fc)


@pytest.mark.parametrize("record", ["", "[]", '{"form": "patch"}', '{"form": 3}'])
def test_a_damaged_record_is_refused(record: str) -> None:
    fc = convfc.to_fc(conv_model("Conv", (1, 2, 5, 5), integers((3, 2, 3, 3))))
    (last,) = (node for node in fc.graph.node if node.name == "conv")
    (entry,) = (one for one in last.metadata_props if one.key == "convfc")
    entry.value = record
    for verb in (convfc.to_conv, convfc.inspect, convfc.to_fc):
        with pytest.raises(UnsupportedModel, match="record of how node conv was made is damaged"):
            verb(fc)


def test_functions_have_names_of_their_own() -> None:
    """Two functions and the model itself, each with a weight and an output of the same name."""

    def nodes(seed: int) -> list[onnx.NodeProto]:
        tensor = numpy_helper.from_array(integers((3, 3, 2, 2), seed=seed), "W")
        constant = helper.make_node("Constant", [], ["W"], value=tensor)
        return [constant, helper.make_node("Conv", ["x", "W"], ["y"], pads=[1, 1, 0, 0])]

    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions = [
        helper.make_function("own", f"F{seed}", ["x"], ["y"], nodes(seed), opsets[:1])
        for seed in (1, 2)
    ]
    calls = [helper.make_node(f"F{n + 1}", ["yz"[n]], ["zu"[n]], domain="own") for n in (0, 1)]
    infos = [helper.make_tensor_value_info(name, 1, (1, 3, 4, 5)) for name in "xu"]
    graph = helper.make_graph([*nodes(0), *calls], "network", infos[:1], infos[1:])
    model = helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=10)
    fc, x = converted(model, {"F1", "F2"}), integers((1, 3, 4, 5))
    assert {node.op_type for one in fc.functions for node in one.node} <= OPERATORS
    assert_equal(fc, model, x)
    assert_home(fc, model)
