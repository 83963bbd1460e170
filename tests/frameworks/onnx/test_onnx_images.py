"""CONV nodes of one axis as those of images: equal to the bit on integers, and home again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import defs, helper, numpy_helper
from onnx_models import Weights, conv_model, integers, plain, run

import convfc
from convfc.errors import NothingToConvert, UnsupportedLayer, UnsupportedLayerWarning
from convfc.frameworks.onnx.room import ROOM

if TYPE_CHECKING:
    from pathlib import Path

OPSETS = (7, 8, 9, 10, 11, 12, 13, 17, 21, 22, defs.onnx_opset_version())
NODES: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "plain": ("Conv", (2, 3, 11), (4, 3, 3), {}),
    "all": ("Conv", (2, 4, 11), (6, 2, 3), {
        "kernel_shape": [3], "pads": [2, 1], "strides": [2], "dilations": [3], "group": 2,
    }),
    "depthwise": ("Conv", (2, 4, 11), (4, 1, 5), {"group": 4, "pads": [0, 3]}),
    "upper": ("Conv", (2, 3, 11), (4, 3, 4), {"auto_pad": "SAME_UPPER", "strides": [3]}),
    "lower": ("Conv", (2, 3, 10), (4, 3, 3), {"auto_pad": "SAME_LOWER", "strides": [2]}),
    "valid": ("Conv", (2, 3, 11), (4, 3, 3), {"auto_pad": "VALID", "strides": [2]}),
    "turned": ("ConvTranspose", (2, 4, 5), (4, 3, 4), {
        "pads": [1, 2], "strides": [3], "dilations": [2], "output_padding": [2], "group": 2,
    }),
    "turned upper": ("ConvTranspose", (2, 3, 5), (3, 4, 3), {
        "auto_pad": "SAME_UPPER", "strides": [2]
    }),
    "turned to": ("ConvTranspose", (2, 3, 5), (3, 4, 3), {"output_shape": [10], "strides": [2]}),
}  # fmt: skip

every_node = pytest.mark.parametrize("case", NODES)


def model_of(
    case: str, *, shape: Any = None, bias: bool = True, dtype: Any = np.float32, **options: Any
) -> tuple[onnx.ModelProto, np.ndarray]:
    op, x, w, rest = NODES[case]
    filters = w[1] * rest.get("group", 1) if op == "ConvTranspose" else w[0]
    arrays = integers(w, dtype, 2), integers((filters,), dtype, 1) if bias else None
    model = conv_model(op, shape or x, *arrays, **rest, **options)
    return model, integers(x, dtype)


def as_images(model: Any, **options: Any) -> Any:
    return ROOM.to_conv(model, images=True, **options)


def node_of(model: onnx.ModelProto, op: str = "Conv") -> onnx.NodeProto:
    (found,) = (node for node in model.graph.node if node.op_type.startswith(op))
    return found


KEPT = ("initializer", "constant")


def check(
    model: onnx.ModelProto, *inputs: np.ndarray, weights: str = "initializer"
) -> onnx.ModelProto:
    """Hold a model of images to what it promises; return it."""
    kept = model.SerializeToString(deterministic=True)
    made = as_images(model)
    assert model.SerializeToString(deterministic=True) == kept
    onnx.checker.check_model(made, full_check=True)
    kinds = [node.op_type for node in made.graph.node]
    kinds = [one for one in kinds if one not in ("Add", "Cast", "Constant", "Reshape")]
    assert kinds == ["Unsqueeze", node_of(model).op_type, "Squeeze"]
    assert ("Reshape" in {node.op_type for node in made.graph.node}) == (weights not in KEPT)
    last = made.graph.node[-1]
    assert (last.name, last.doc_string, list(last.output)) == ("conv", "it", ["y"])
    for found, expected in zip(run(made, *inputs), run(model, *inputs), strict=True):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert np.array_equal(found, expected)
        assert expected.any()
    assert plain(convfc.to_conv(made)) == plain(model)
    return made


@pytest.mark.parametrize("opset", OPSETS)
@every_node
def test_a_node_of_one_axis_is_one_of_images_and_comes_back(case: str, opset: int) -> None:
    model, x = model_of(case, opset=opset)
    made = check(model, x)
    attributes = {one.name: list(one.ints) for one in node_of(made).attribute if one.ints}
    own = NODES[case][3]
    assert attributes.keys() == {name for name, value in own.items() if isinstance(value, list)}
    for name, value in attributes.items():
        assert value[1::2] == own[name]
        one = int(name not in ("pads", "output_padding"))
        assert set(value[::2]) == {one}
    (weight,) = (one for one in made.graph.initializer if one.name.startswith("W"))
    (before,) = (one for one in model.graph.initializer if one.name == "W")
    assert weight.raw_data == before.raw_data
    assert list(weight.dims) == [*before.dims[:2], 1, before.dims[2]]


@every_node
def test_its_certificate(case: str, caplog: pytest.LogCaptureFixture) -> None:
    model, _ = model_of(case)
    made = as_images(model)
    x = np.random.default_rng(3).standard_normal(NODES[case][1]).astype(np.float32)
    fc = convfc.to_fc(made)
    assert plain(fc) == plain(convfc.to_fc(model))
    for before, after, forms in (
        (model, made, ("native", "2-D")),
        (made, model, ("2-D", "native")),
        (fc, made, ("patch", "2-D")),
    ):
        certificate = convfc.verify(before, after, x)
        assert certificate.holds, certificate
        (layer,) = certificate.layers
        assert (layer.forms, layer.exact.identical) == (forms, True)
    assert not caplog.records  # onnx_ir's would be shown to users
    (row,) = convfc.inspect(made, x).rows
    assert (row.form, row.kind) == ("2-D", NODES[case][0])
    assert row.output_size == run(model, x)[0].shape[2:]


@pytest.mark.parametrize("opset", [7, 13])
@every_node
def test_sizes_that_are_not_known_stay_so(case: str, opset: int) -> None:
    model, x = model_of(case, shape=["b", NODES[case][1][1], "n"], opset=opset)
    if case == "turned to":
        with pytest.raises(UnsupportedLayer, match=r"^conv: .*output_shape is given.*of images"):
            as_images(model)
        with pytest.warns(UnsupportedLayerWarning, match="left as they are: conv"):
            assert plain(as_images(model, strict=False)) == plain(model)
        return
    made = check(model, x)
    longer = integers((1, x.shape[1], x.shape[2] + 3), seed=4)
    assert np.array_equal(run(made, longer)[0], run(model, longer)[0])
    assert convfc.verify(model, made, longer).holds


@pytest.mark.parametrize("weights", ["input", "constant", "computed", "given"])
@pytest.mark.parametrize("opset", [8, 22])
def test_weights_come_from_anywhere(weights: Weights, opset: int) -> None:
    model, x = model_of("all", weights=weights, opset=opset)
    more = [integers(shape, seed=7) for shape in ((6, 2, 3), (6,))]
    made = check(model, x, *(more if weights in ("input", "given") else ()), weights=weights)
    if weights != "given":
        assert convfc.verify(model, made, {"x": x}).holds


@pytest.mark.parametrize("case", ["all", "turned"])
def test_a_weight_in_a_file_beside_the_model_stays_there_unread(case: str, tmp_path: Path) -> None:
    model, x = model_of(case)
    saved = onnx.ModelProto.FromString(model.SerializeToString())
    options = {"save_as_external_data": True, "location": "data", "size_threshold": 0}
    onnx.save(saved, tmp_path / "model.onnx", **options)
    opened = ir.load(tmp_path / "model.onnx")
    numbers = (tmp_path / "data").read_bytes()
    (tmp_path / "data").unlink()
    made = as_images(opened)
    back = convfc.to_conv(made).graph.initializers
    (tmp_path / "data").write_bytes(numbers)
    tensors = {name[0]: value.const_value for name, value in made.graph.initializers.items()}
    held = {name: value.const_value for name, value in opened.graph.initializers.items()}
    for name, tensor in held.items():
        found = (tensor, tensors[name], back[name].const_value)
        assert all(isinstance(one, ir.ExternalTensor) for one in found)
        assert len({(one.offset, one.length, one.path) for one in found}) == 1
    ir.save(made, tmp_path / "images.onnx")
    assert np.array_equal(run(onnx.load(tmp_path / "images.onnx"), x)[0], run(model, x)[0])
    assert convfc.verify(opened, made, x).holds


NETWORK = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[b, 2, n] x) => (float[b, 5] y, float[b, 3, h, 1] z) {
        [first] a = Conv <pads = [1, 1]> (x, w)
        [second] c = Conv (a, v)
        [third] u = ConvTranspose <strides = [2]> (c, v)
        [wide] t = Unsqueeze (u, three)
        [flat] z = Conv (t, k)
        [mean] m = GlobalAveragePool (c)
        [axes] f = Flatten (m)
        [head] y = Gemm (f, g, d)
    }"""


def network() -> tuple[onnx.ModelProto, np.ndarray]:
    model = ir.to_proto(ir.from_proto(onnx.parser.parse_model(NETWORK)))
    arrays = {
        "w": integers((3, 2, 3), seed=1),
        "v": integers((3, 3, 2), seed=2),  # of two layers
        "k": integers((3, 3, 3, 1), seed=3),
        "g": integers((3, 5), seed=4),
        "d": integers((5,), seed=5),
        "three": np.array([3]),
    }
    for name, array in arrays.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model, integers((2, 2, 9), seed=6)


def test_whatever_a_network_has_becomes_convolutions_of_images() -> None:
    """From a CNN, and from its FC layers: then they are taken back first."""
    model, x = network()
    assert plain(as_images(convfc.to_fc(model))) == plain(as_images(model))
    made = check_network(model, x)
    shapes = {one.name: tuple(one.dims) for one in made.graph.initializer}
    assert sorted(map(len, shapes.values())) == [1, 1, 4, 4, 4, 4]  # v goes on being shared
    assert plain(as_images(made)) == plain(made)
    some = as_images(model, where=["second", "head"])
    assert [row.form for row in convfc.inspect(some).rows] == ["native", "2-D", *["native"] * 3]
    assert plain(convfc.to_fc(convfc.to_conv(some), where="head")) == plain(model)


def check_network(model: onnx.ModelProto, x: np.ndarray) -> onnx.ModelProto:
    made = as_images(model)
    assert not {"MatMul", "Gemm"} & {node.op_type for node in made.graph.node}
    certificate = convfc.verify(model, made, x)
    assert certificate.holds, certificate
    assert [layer.name for layer in certificate.layers] == [
        "first", "second", "third", "flat", "head"
    ]  # fmt: skip
    return made


def test_layers_in_inner_graphs() -> None:
    model, x = model_of("all")
    ((node,), weights) = model.graph.node, list(model.graph.initializer)
    info = helper.make_tensor_value_info
    inner = helper.make_graph([node], "inner", [], [info("y", 1, (2, 6, 4))], weights)
    other = helper.make_graph([helper.make_node("Identity", ["o"], ["z"])], "other", [], [
        info("z", 1, (2, 6, 4))
    ])  # fmt: skip
    one = helper.make_node("If", ["flag"], ["r"], then_branch=inner, else_branch=other)
    ins = [info("x", 1, x.shape), info("flag", onnx.TensorProto.BOOL, ()), info("o", 1, (2, 6, 4))]
    graph = helper.make_graph([one], "net", ins, [info("r", 1, (2, 6, 4))])
    opsets = [helper.make_opsetid("", 17)]
    whole = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    made = as_images(whole)
    given = {"x": x, "flag": np.array(True), "o": integers((2, 6, 4))}
    assert np.array_equal(run(made, *given.values())[0], run(whole, *given.values())[0])
    certificate = convfc.verify(whole, made, given)
    assert certificate.holds, certificate
    assert len(certificate.layers) == 1
    (back,) = (one.g for one in convfc.to_conv(made).graph.node[0].attribute if one.name[0] == "t")
    assert list(back.node) == [node]
    assert sorted(one.name for one in back.initializer) == ["B", "W"]


@pytest.mark.parametrize(("op", "name"), [("Conv", "strides"), ("Gemm", "alpha")])
def test_what_only_the_call_of_a_function_says_is_refused_by_name(op: str, name: str) -> None:
    node = helper.make_node(op, ["x", "W"], ["y"], "inner")
    kind = onnx.AttributeProto.INTS if op == "Conv" else onnx.AttributeProto.FLOAT
    node.attribute.add(name=name, ref_attr_name="given", type=kind)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    w = integers((3, 2, 3) if op == "Conv" else (2, 3))
    weight = helper.make_node("Constant", [], ["W"], value=numpy_helper.from_array(w))
    function = helper.make_function(
        "own", "F", ["x"], ["y"], [weight, node], opsets[:1], attributes=["given"]
    )
    call = helper.make_node("F", ["x"], ["z"], domain="own", given=[2] if op == "Conv" else 2.0)
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [call],
        "net",
        [info("x", 1, (1, 2, 9)[: w.ndim])],
        [info("z", 1, [None] * w.ndim)],
    )
    model = helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=10)
    message = rf"^own::F\.inner: {op}: each call of its function says its {name}.*onnx\.inliner"
    for verb in (as_images, convfc.to_fc if op == "Conv" else convfc.to_conv):
        with pytest.raises(UnsupportedLayer, match=message):
            verb(model)


CHANGES = {
    "pad": ("all", "pads", [2, 0, 1, 0]),
    "pad, as large": ("depthwise", "pads", [0, 3, 0, 0]),
    "stride": ("all", "strides", [2, 1]),
    "dilation": ("all", "dilations", [1, 1]),
    "group": ("all", "group", 1),
    "output padding": ("turned", "output_padding", [0, 0]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_attribute_that_is_lost_is_seen(change: str) -> None:
    case, name, value = CHANGES[change]
    model, x = model_of(case)
    made = as_images(model)
    assert convfc.verify(model, made, x).holds
    node = node_of(made)
    (attribute,) = (one for one in node.attribute if one.name == name)
    attribute.CopyFrom(helper.make_attribute(name, value))
    certificate = convfc.verify(model, made, x)
    assert not certificate.holds
    assert not certificate.layers[0].holds


@pytest.mark.parametrize("which", ["W", "B"])
def test_another_number_is_seen(which: str) -> None:
    model, x = model_of("all")
    made = as_images(model)
    (tensor,) = (one for one in made.graph.initializer if one.name.startswith(which))
    numbers = numpy_helper.to_array(tensor).copy()
    numbers.flat[1] += 2.0**-10
    tensor.CopyFrom(numpy_helper.from_array(numbers, tensor.name))
    certificate = convfc.verify(model, made, x)
    assert not certificate.holds
    assert not certificate.layers[0].holds
    back = {one.name: numpy_helper.to_array(one) for one in convfc.to_conv(made).graph.initializer}
    assert np.array_equal(back[which].reshape(-1), numbers.reshape(-1))  # it comes home


def test_nodes_that_a_tool_has_changed_do_not_go_home() -> None:
    made = as_images(model_of("all")[0])
    node_of(made, "Squeeze").metadata_props[1].value = "Reshape"
    node_of(made).op_type = "FusedConv"
    with pytest.raises(UnsupportedLayer, match=r"^conv: its nodes are not those that convfc made"):
        convfc.to_conv(made)


def test_nodes_of_images_are_left_alone() -> None:
    model = conv_model("Conv", (1, 2, 5, 5), integers((3, 2, 3, 3)))
    with pytest.raises(NothingToConvert, match="has no layer in patch"):
        as_images(model)
    with pytest.raises(NothingToConvert, match="has no layer in patch"):  # it has to be asked for
        convfc.to_conv(model_of("all")[0])


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_dtypes(dtype: Any) -> None:
    model, _ = model_of("turned", dtype=dtype)
    made = as_images(model)
    assert plain(convfc.to_conv(made)) == plain(model)
    assert list(node_of(made).input)[1].startswith("W")
