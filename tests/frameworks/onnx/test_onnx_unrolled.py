"""Each CONV node of a model of ONNX as one Gemm: equal on integers, home bit for bit, certified."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import convfc
from convfc.errors import (
    ArgumentError,
    MemoryBudgetError,
    NothingToConvert,
    ShapeError,
    UnsupportedLayer,
    UnsupportedLayerWarning,
)
from convfc.frameworks.onnx.profiles import PROFILES, check_profile

CASES: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "2d": ("Conv", (2, 3, 9, 8), (4, 3, 3, 2), {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
    "1d-same-lower": ("Conv", (2, 4, 9), (6, 2, 3), {"group": 2, "auto_pad": "SAME_LOWER"}),
    "same-upper-s2": (
        "Conv",
        (1, 2, 9, 6),
        (3, 2, 3, 4),
        {"auto_pad": "SAME_UPPER", "strides": [2, 3]},
    ),
    "depthwise": ("Conv", (2, 4, 5, 6), (8, 1, 3, 3), {"group": 4, "dilations": [2, 1]}),
    "3d": ("Conv", (1, 2, 4, 5, 3), (3, 2, 2, 3, 3), {"pads": [1] * 6}),
    "t2d": (
        "ConvTranspose",
        (2, 3, 3, 4),
        (3, 4, 3, 2),
        {"strides": [2, 3], "pads": [1, 0, 1, 1], "output_padding": [1, 0]},
    ),
    "t1d-groups": ("ConvTranspose", (2, 4, 5), (4, 3, 3), {"group": 2, "strides": [2]}),
    "t-output-shape": (
        "ConvTranspose",
        (1, 2, 4, 5),
        (2, 3, 3, 3),
        {"output_shape": [8, 10], "strides": [2, 2]},
    ),
}


def integers(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(dtype)


def layer(
    case: str, *, bias: bool = True, opset: int = 17, known: bool = False, dtype: Any = np.float32
) -> tuple[onnx.ModelProto, Any]:
    op, x_shape, w_shape, attributes = CASES[case]
    groups = attributes.get("group", 1)
    f = w_shape[1] * groups if op == "ConvTranspose" else w_shape[0]
    weights = {"w": integers(*w_shape, seed=1, dtype=dtype)}
    weights["w"].flat[0] = -0.0
    if bias:
        weights["b"] = integers(f, seed=2, dtype=dtype)
    node = helper.make_node(op, ["x", *weights], ["y"], name="conv", **attributes)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    open_ = ["n", x_shape[1], *(f"s{axis}" for axis in range(len(x_shape) - 2))]
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", kind, x_shape if known else open_)],
        [helper.make_tensor_value_info("y", kind, [f"y{axis}" for axis in range(len(x_shape))])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=4 if opset < 11 else 8)
    onnx.checker.check_model(model)
    return model, integers(*x_shape, seed=3, dtype=dtype)


NETWORK = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[n, 2, 6, 6] x) => (float[n, 5] y) {
        [first] a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w, b)
        [relu] c = Relu (a)
        [second] d = Conv (c, w2)
        [flat] e = Flatten (d)
        [head] y = Gemm <transB = 1> (e, h)
    }"""


def network(text: str = NETWORK, **weights: Any) -> onnx.ModelProto:
    model = onnx.parser.parse_model(text)
    if not weights:
        shapes = {"w": (4, 2, 3, 3), "b": (4,), "w2": (3, 4, 2, 2), "h": (5, 12)}
        weights = {name: integers(*shapes[name], seed=n) for n, name in enumerate(shapes)}
    model.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in weights.items())
    onnx.checker.check_model(model)
    return ir.to_proto(ir.from_proto(model))  # the parser says of every node that it has no domain


def run(model: onnx.ModelProto, x: Any) -> Any:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def kinds(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node} - {"Constant"}


def is_same(model: onnx.ModelProto, other: onnx.ModelProto) -> bool:
    """Whether two models have the same nodes, and initializers to the bit."""
    weights = [
        sorted(one.SerializeToString() for one in m.graph.initializer) for m in (model, other)
    ]
    return list(model.graph.node) == list(other.graph.node) and weights[0] == weights[1]


def altered(model: onnx.ModelProto, name: str, at: int, by: float = 1.0) -> onnx.ModelProto:
    """Return a copy with one number of an initializer changed."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    (tensor,) = (one for one in made.graph.initializer if one.name == name)
    numbers = numpy_helper.to_array(tensor).copy()
    numbers.flat[at] += by
    tensor.CopyFrom(numpy_helper.from_array(numbers, name))
    return made


def matrix_of(model: onnx.ModelProto, number: int = 0) -> tuple[str, Any]:
    gemm = [node for node in model.graph.node if node.op_type == "Gemm"][number]
    (tensor,) = (one for one in model.graph.initializer if one.name == gemm.input[1])
    return tensor.name, numpy_helper.to_array(tensor)


@pytest.mark.parametrize("opset", [9, 21])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("case", CASES)
def test_a_layer_is_one_gemm_and_comes_home_bit_for_bit(case: str, bias: bool, opset: int):
    model, x = layer(case, bias=bias, opset=opset)
    unrolled = convfc.unroll(model, x)
    onnx.checker.check_model(unrolled, full_check=True)
    assert kinds(unrolled) == {"Flatten", "Gemm", "Reshape"}
    assert unrolled.graph.node[-1].name == "conv"
    expected = run(model, x)
    for batch in (x, np.concatenate([x, -x, x])):
        got = run(unrolled, batch)
        np.testing.assert_array_equal(got[: len(expected)], expected)
        assert got.shape == (len(batch), *expected.shape[1:])
    assert is_same(convfc.to_conv(unrolled), model)


def test_the_matrix_is_that_of_the_layer():
    geometry = convfc.ConvGeometry(4, 8, (3, 3), groups=4, dilation=(2, 1))
    model, x = layer("depthwise")
    weight = np.moveaxis(numpy_helper.to_array(model.graph.initializer[0]), 1, -1)
    expected = convfc.conv_matrix(
        weight, x.shape[2:], geometry, layout="dense", order="channels_first"
    )
    np.testing.assert_array_equal(matrix_of(convfc.unroll(model, x))[1], expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float64], ids=str)
def test_other_dtypes_are_kept(dtype: Any):
    model, x = layer("2d", dtype=dtype)
    unrolled = convfc.unroll(model, x) if dtype is np.float16 else None
    if unrolled is None:  # onnxruntime has no CONV in float64, so that no run says the sizes
        with pytest.raises(ShapeError, match="example: the model does not run on it"):
            convfc.unroll(model, x)
        return
    np.testing.assert_array_equal(run(unrolled, x), run(model, x))
    assert is_same(convfc.to_conv(unrolled), model)


def test_weights_that_meet_padding_only_come_home():
    case = "Conv", (1, 2, 1, 1), (3, 2, 3, 3), {"pads": [1, 1, 1, 1]}
    CASES["unread"] = case
    try:
        model, x = layer("unread")
    finally:
        del CASES["unread"]
    unrolled = convfc.unroll(model, x)
    assert matrix_of(unrolled)[1].shape == (3, 2)
    assert is_same(convfc.to_conv(unrolled), model)


def test_a_network_is_gemm_and_relu_and_its_certificate_holds():
    model, x = network(), integers(3, 2, 6, 6)
    before = model.SerializeToString()
    unrolled = convfc.unroll(model, x)
    assert model.SerializeToString() == before
    assert kinds(unrolled) == {"Flatten", "Gemm", "Relu", "Reshape"}
    np.testing.assert_array_equal(run(unrolled, x), run(model, x))
    x = np.random.default_rng(0).standard_normal(x.shape).astype("float32")
    certificate = convfc.verify(model, unrolled, x)
    assert certificate.holds, certificate
    assert [one.forms for one in certificate.layers] == [("native", "unrolled")] * 2
    assert all(one.exact.identical for one in certificate.layers)
    assert is_same(convfc.to_conv(unrolled), model)
    # Both forms against each other, and from one to the other.
    assert convfc.verify(unrolled, convfc.to_fc(unrolled), x).holds
    assert is_same(convfc.to_conv(convfc.to_fc(unrolled)), model)
    assert kinds(convfc.unroll(convfc.to_fc(model), x)) == kinds(unrolled)


def gemm(x: Any, b: Any, c: Any = 0.0, *, alpha: float = 1, beta: float = 1, transB: int = 0):
    return alpha * (x @ (b.T if transB else b)) + beta * c


CLOSED = {
    "Add": np.add,
    "Constant": lambda *, value: numpy_helper.to_array(value),
    "Flatten": lambda x, axis=1: x.reshape(int(np.prod(x.shape[:axis])), -1),
    "Gemm": gemm,
    "Relu": lambda x: np.maximum(x, 0),
    "Reshape": lambda x, to: x.reshape([n or x.shape[at] for at, n in enumerate(to)]),
}
"""A target that knows six operators, and so the network of one."""


def test_a_target_of_six_operators_runs_what_the_profile_names():
    assert set(CLOSED) == PROFILES["gemm"]
    model, x = network(), integers(3, 2, 6, 6, seed=9)
    fc = convfc.unroll(model, x)
    check_profile(ir.from_proto(fc), "gemm")
    values = {one.name: numpy_helper.to_array(one) for one in fc.graph.initializer} | {"x": x}
    for node in fc.graph.node:
        settings = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        given = [values[name] for name in node.input]
        values[node.output[0]] = CLOSED[node.op_type](*given, **settings)
    assert np.array_equal(values[fc.graph.output[0].name], run(model, x))


def test_part_of_a_network_and_models_of_onnx_ir():
    model, x = ir.from_proto(network()), integers(3, 2, 6, 6)
    unrolled = convfc.unroll(model, x, where="second")
    assert isinstance(unrolled, ir.Model)
    forms = {row.name: row.form for row in convfc.inspect(unrolled, x).rows}
    assert forms == {"first": "native", "second": "unrolled"}
    (row,) = (row for row in convfc.inspect(unrolled, x).rows if row.name == "second")
    assert row.unrolled_shape == (12, 36)
    assert (row.kind, row.parameters) == ("Conv", 12 * 36)
    assert is_same(ir.to_proto(convfc.to_conv(unrolled)), network())


CHANGES = {"inside": np.argmax, "outside": lambda numbers: np.argmax(numbers.ravel() == 0)}


@pytest.mark.parametrize("where", CHANGES)
def test_a_changed_entry_is_seen_and_refused(where: str):
    model, x = network(), integers(2, 2, 6, 6)
    unrolled = convfc.unroll(model, x)
    name, numbers = matrix_of(unrolled)
    numbers = np.abs(numbers)
    wrong = altered(unrolled, name, int(CHANGES[where](numbers)), 2.0**-6)
    certificate = convfc.verify(model, wrong, x)
    assert not certificate.holds
    assert certificate.layers[1].holds  # the second one is as it was
    assert "is not that of a convolution" in str(certificate.layers[0].errors)
    with pytest.raises(UnsupportedLayer, match=r"first: its matrix is not a convol.*project"):
        convfc.to_conv(wrong)
    with pytest.warns(UnsupportedLayerWarning, match="first: the closest convolution is .* away"):
        projected = convfc.to_conv(wrong, project=True)
    assert [node.op_type for node in projected.graph.node] == [
        node.op_type for node in model.graph.node
    ]
    assert kinds(convfc.to_conv(wrong, strict=False, where="second")) >= {"Conv", "Gemm"}


def test_a_changed_bias_is_seen_and_refused():
    model, x = network(), integers(2, 2, 6, 6)
    unrolled = convfc.unroll(model, x)
    (gemm, *_) = (node for node in unrolled.graph.node if node.op_type == "Gemm")
    wrong = altered(unrolled, gemm.input[2], 1)
    assert not convfc.verify(model, wrong, x).holds
    with pytest.raises(UnsupportedLayer, match="the bias of a filter differs from position"):
        convfc.to_conv(wrong)
    with pytest.warns(UnsupportedLayerWarning, match="first: the mean of its bias is"):
        convfc.to_conv(wrong, project=True)


def test_a_scaled_matrix_comes_home_scaled():
    model, x = network(), integers(2, 2, 6, 6)
    unrolled = convfc.unroll(model, x)
    name, numbers = matrix_of(unrolled, 1)
    (tensor,) = (one for one in unrolled.graph.initializer if one.name == name)
    tensor.CopyFrom(numpy_helper.from_array(2 * numbers, name))
    back = {one.name: one for one in convfc.to_conv(unrolled).graph.initializer}
    (old,) = (one for one in model.graph.initializer if one.name == "w2")
    np.testing.assert_array_equal(numpy_helper.to_array(back["w2"]), 2 * numpy_helper.to_array(old))
    assert not convfc.verify(model, unrolled, x).holds


def test_one_weight_of_layers_of_two_sizes_comes_home_as_one():
    model = network(
        """<ir_version: 8, opset_import: ["" : 17]>
        net (float[n, 2, 6, 6] x) => (float[n, 2, 2, 2] y) {
            a = Conv (x, w)
            y = Conv (a, w)
        }""",
        w=integers(2, 2, 3, 3),
    )
    x = integers(2, 2, 6, 6)
    unrolled = convfc.unroll(model, x)
    assert len(unrolled.graph.initializer) == 2
    np.testing.assert_array_equal(run(unrolled, x), run(model, x))
    assert is_same(convfc.to_conv(unrolled), model)


BRANCHES = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[{sizes}] x, bool flag) => (float[n, f, a, b] y) {{
        y = If (flag) <
            then_branch = then () => (float[n, f, a, b] t) {{ [inner] t = Conv (x, w) }},
            else_branch = other () => (float[n, f, a, b] o) {{ [inner] o = Conv (x, w) }}
        >
    }}"""


def test_layers_in_inner_graphs_need_a_size_in_the_model():
    w, example = integers(3, 2, 2, 2), {"x": integers(1, 2, 4, 4), "flag": np.array(True)}
    known = network(BRANCHES.format(sizes="n, 2, 4, 4"), w=w)
    unrolled = convfc.unroll(known, example)
    certificate = convfc.verify(known, unrolled, example)
    assert certificate.holds, certificate
    assert len(certificate.layers) == 2
    assert is_same(convfc.to_conv(unrolled), known)
    unknown = network(BRANCHES.format(sizes="n, 2, h, w0"), w=w)
    with pytest.raises(UnsupportedLayer, match=r"then_branch.inner: Conv: it stands in a function"):
        convfc.unroll(unknown, example)


def test_what_cannot_be_unrolled_is_refused_by_name():
    model, x = network(), integers(2, 2, 6, 6)
    with pytest.raises(ArgumentError, match="example: these are not the model's inputs"):
        convfc.unroll(model, {"z": x})
    with pytest.raises(ShapeError, match=r"example: the model does not run.*x \(2, 2, 6\)"):
        convfc.unroll(model, x[..., 0])
    with pytest.raises(MemoryBudgetError, match="matrices of the unrolled layers do not fit"):
        convfc.unroll(model, x, memory=1000)
    held = 4 * (36 * 72 + 12 * 36)  # without what is needed besides, it is not enough
    with pytest.raises(MemoryBudgetError, match="first"):
        convfc.unroll(model, x, memory=2 * held)
    convfc.unroll(model, x, memory=2 * held + 36 * 72 * 12)
    with pytest.raises(NothingToConvert, match="no CONV layer that is not in unrolled form"):
        convfc.unroll(convfc.unroll(model, x), x)
    given = network()
    given.graph.input.append(helper.make_tensor_value_info("w2", TensorProto.FLOAT, [3, 4, 2, 2]))
    with pytest.raises(UnsupportedLayer, match="second: Conv: its weight is no constant"):
        convfc.unroll(given, x)
    with pytest.warns(UnsupportedLayerWarning, match="left as they are: second"):
        assert kinds(convfc.unroll(given, x, strict=False)) >= {"Conv", "Gemm"}


def test_operators_of_other_numbers_and_other_makers_are_refused():
    text = """<ir_version: 8, opset_import: ["" : 17]>
        net (uint8[n, 2, 5, 5] x) => (int32[n, 3, 3, 3] y) { [whole] y = ConvInteger (x, w) }"""
    model, x = network(text, w=integers(3, 2, 3, 3, dtype=np.int8)), np.ones((1, 2, 5, 5), np.uint8)
    with pytest.raises(UnsupportedLayer, match="whole: ConvInteger: Gemm takes no integers"):
        convfc.unroll(model, x)
    fused, x = network(), integers(1, 2, 6, 6)
    fused.graph.node[2].op_type, fused.graph.node[2].domain = "FusedConv", "com.microsoft"
    fused.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(
        UnsupportedLayer, match=r"second: com\.microsoft\.FusedConv is no CONV operator"
    ):
        convfc.unroll(fused, x)
    with pytest.warns(UnsupportedLayerWarning, match="left as they are: second"):
        made = convfc.unroll(fused, x, strict=False)
    np.testing.assert_array_equal(run(made, x), run(network(), x))
    assert len(convfc.inspect(made, x).rows) == 2


def test_nodes_that_a_tool_has_changed_are_refused():
    model, x = network(), integers(2, 2, 6, 6)
    unrolled = convfc.unroll(model, x)
    (gemm, *_) = (node for node in unrolled.graph.node if node.op_type == "Gemm")
    gemm.op_type = "FusedGemm"
    with pytest.raises(UnsupportedLayer, match="first: its nodes are not those that convfc made"):
        convfc.to_conv(unrolled)
