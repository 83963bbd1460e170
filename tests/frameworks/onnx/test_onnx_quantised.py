"""Quantised CONV nodes: the same integers as FC layers, to the last bit, and home again.

The judge of integers is NumPy, and onnxruntime that of rounding: what is made has to give each
number that onnxruntime's own operators give, with its optimisations and without them.
"""

from __future__ import annotations

import itertools
import logging
import pathlib
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import conv_cases
from onnxruntime import quantization
from onnxruntime.quantization import QuantFormat, QuantType
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

import convfc
from convfc.errors import UnsupportedLayer, UnsupportedLayerWarning
from convfc.frameworks.onnx.read import OPERANDS

LEVELS = onnxruntime.GraphOptimizationLevel
DTYPES = [("uint8", "int8"), ("uint8", "uint8"), ("int8", "int8")]
"""Of inputs and weights: those that onnxruntime multiplies."""
NODES: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((2, 3, 9, 8), (4, 3, 3, 2), {"pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [1, 2]}),
    ((2, 4, 9), (6, 2, 3), {"group": 2, "auto_pad": "SAME_LOWER", "strides": [2]}),
    ((2, 4, 9, 10), (8, 1, 3, 3), {"group": 4, "pads": [1, 1, 1, 1]}),
    ((2, 4, 9, 10), (4, 1, 3, 3), {"group": 4, "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ((2, 4, 9, 10), (6, 4, 1, 1), {"strides": [2, 2]}),
    ((2, 4, 8, 8), (6, 4, 4, 4), {"strides": [4, 4]}),
    ((1, 2, 5, 6, 7), (3, 2, 2, 3, 3), {"pads": [1, 1, 1, 1, 1, 1]}),
]
Model = onnx.ModelProto


def drawn(dtype: str, shape: Iterable[int], seed: int) -> np.ndarray:
    """All values that the dtype has."""
    info, rng = np.iinfo(dtype), np.random.default_rng(seed)
    return rng.integers(info.min, info.max, tuple(shape), dtype, endpoint=True)


def weights_of(dtype: str, shape: Iterable[int]) -> np.ndarray:
    """Of int8 half of the values: without VNNI, onnxruntime saturates sums of two products."""
    found = drawn(dtype, shape, 1)
    return found // 2 if dtype == "int8" else found


def info_of(name: str, dtype: Any, shape: Any) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), shape)


def model_of(
    nodes: list[onnx.NodeProto],
    x: tuple[Any, Any],
    y: tuple[Any, int],
    constants: dict[str, np.ndarray],
    opset: int = 17,
) -> Model:
    """A model from x, of a dtype and a shape, to y, of a dtype and so many axes."""
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    out = info_of("y", np.dtype(y[0]), [None] * y[1])
    graph = helper.make_graph(nodes, "net", [info_of("x", np.dtype(x[0]), x[1])], [out], tensors)
    imports = [helper.make_opsetid("", opset)]
    version = helper.find_min_ir_version_for(imports)
    made = helper.make_model(graph, opset_imports=imports, ir_version=version)
    onnx.checker.check_model(made, full_check=True)
    return made


def constants_of(
    op: str, weight: tuple[int, ...], dtypes: tuple[str, str], *, each: bool, ties: bool
) -> dict[str, np.ndarray]:
    """Scales and zero points, of each filter or of all; with ties, where rounding has to choose."""
    filters, (of_x, of_w) = weight[0], dtypes
    rng = np.random.default_rng(5)
    scale = rng.uniform(0.001, 0.02, filters).astype(np.float32)
    if ties:
        scale = (2.0 ** -rng.integers(4, 7, filters)).astype(np.float32)
    first = slice(None) if each else 0
    found = {
        "weight": weights_of(of_w, weight),
        "x_scale": np.float32(1 / 8 if ties else 0.013),
        "x_zero_point": drawn(of_x, (), 2),
        "w_scale": scale[first],
        "w_zero_point": drawn(of_w, (filters,), 3)[first],
        "y_scale": np.float32(2 if ties else 1.7),
        "y_zero_point": drawn(of_x, (), 4),
        "bias": rng.integers(-9000, 9000, filters, np.int32),
    }
    return {name: np.asarray(found[name]) for name in OPERANDS[op][1:]}


def conv_model(
    op: str,
    x: tuple[int, ...],
    weight: tuple[int, ...],
    *,
    dtypes: tuple[str, str] = DTYPES[0],
    each: bool = False,
    ties: bool = False,
    without: tuple[str, ...] = (),
    opset: int = 17,
    sizes: bool = True,
    **attributes: Any,
) -> Model:
    """One node named conv; without some of its operands, or the sizes of its input."""
    given = constants_of(op, weight, dtypes, each=each, ties=ties)
    inputs = ["" if name in without else name for name in OPERANDS[op]]
    while not inputs[-1]:
        inputs.pop()
    node = helper.make_node(op, inputs, ["y"], name="conv", **attributes)
    constants = {name: given[name] for name in inputs[1:] if name}
    shape = x if sizes else ("n", x[1], *(f"n{axis}" for axis in x[2:]))
    made = dtypes[0] if op == "QLinearConv" else "int32"
    return model_of([node], (dtypes[0], shape), (made, len(x)), constants, opset)


def run(model: Model, x: np.ndarray, level: Any = LEVELS.ORT_DISABLE_ALL) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = level, 4
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
    (y,) = session.run(None, {"x": x})
    return y


def counted(model: Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def is_home(model: Model, back: Model) -> bool:
    """Whether it is the model that it was, but for what onnx_ir says of initializers' types."""
    return plain(model) == plain(back)


def plain(model: Model) -> Model:
    found = onnx.ModelProto.FromString(model.SerializeToString())
    found.graph.initializer.sort(key=lambda tensor: tensor.name)
    names = {name for node in found.graph.node for name in node.output}
    kept = [one for one in found.graph.value_info if one.name in names]
    del found.graph.value_info[:]
    found.graph.value_info.extend(sorted(kept, key=lambda one: one.name))
    return found


def check(model: Model, x: np.ndarray, *, certified: bool = True) -> Model:
    """Equal numbers, valid, certified and home again; return the FC network."""
    fc = convfc.to_fc(model)
    onnx.checker.check_model(fc, full_check=True)
    assert not any("Conv" in node.op_type for node in fc.graph.node)
    assert all(node.input[-1] for node in fc.graph.node if node.input)
    y = run(model, x)
    for level in (LEVELS.ORT_DISABLE_ALL, LEVELS.ORT_ENABLE_ALL):
        got = run(fc, x, level)
        assert got.dtype == y.dtype
        np.testing.assert_array_equal(got, y)
    if certified:
        certificate = convfc.verify(model, fc, x)
        assert certificate.holds, certificate
        assert all(layer.exact.identical for layer in certificate.layers)
        assert {c.bound for one in certificate.layers for c in one.own.values()} == {0.0}
    assert is_home(model, convfc.to_conv(fc))
    return fc


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize(("x", "weight", "rest"), NODES, ids=str)
@pytest.mark.parametrize(
    ("op", "without", "made"),
    [
        ("ConvInteger", (), "MatMulInteger"),
        ("ConvInteger", ("w_zero_point",), "MatMulInteger"),
        ("ConvInteger", ("x_zero_point",), "MatMulInteger"),
        ("ConvInteger", ("x_zero_point", "w_zero_point"), "MatMulInteger"),
        ("QLinearConv", (), "MatMulInteger"),
        ("QLinearConv", ("bias",), "QLinearMatMul"),
    ],
)
def test_integers_are_the_same(
    op: str, without: tuple[str, ...], made: str, x: Any, weight: Any, rest: Any, dtypes: Any
) -> None:
    for each, sizes in itertools.product((False, True), repeat=2):
        if op == "ConvInteger" and each:  # onnxruntime has none
            continue
        model = conv_model(
            op, x, weight, dtypes=dtypes, without=without, each=each, sizes=sizes, **rest
        )
        fc = check(model, drawn(dtypes[0], x, 0), certified=sizes)
        assert counted(fc)[made] == 1


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("without", [(), ("bias",)], ids=["bias", "no bias"])
@pytest.mark.parametrize("each", [False, True])
def test_ties_are_rounded_as_by_onnxruntime(dtypes: Any, without: Any, each: bool) -> None:
    """Scales that are powers of two put sums just between two numbers."""
    model = conv_model(
        "QLinearConv", (4, 2, 64, 64), (6, 2, 1, 1), dtypes=dtypes, each=each, ties=True,
        without=without,
    )  # fmt: skip
    x = drawn(dtypes[0], (4, 2, 64, 64), 0)
    c = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    exact = np.einsum(
        "fc,bcij->bfij",
        (c["weight"].astype(np.int64) - c["w_zero_point"].reshape(-1, 1, 1, 1))[..., 0, 0],
        x.astype(np.int64) - c["x_zero_point"],
    )
    exact = exact + c.get("bias", np.zeros(6, np.int32)).reshape(-1, 1, 1)
    scaled = exact * (c["x_scale"] * c["w_scale"].astype(np.float64) / c["y_scale"]).reshape(
        -1, 1, 1
    )
    info, rounded = np.iinfo(dtypes[0]), np.round(scaled) + c["y_zero_point"]  # half to even
    y = np.clip(rounded, info.min, info.max)
    assert ((y == rounded) & (abs(scaled) % 1 == 0.5)).sum() > 100
    np.testing.assert_array_equal(run(check(model, x), x), y)


@pytest.mark.parametrize("without", [(), ("bias",)], ids=["bias", "no bias"])
def test_what_is_nearly_a_tie_is_rounded_as_by_onnxruntime(without: Any) -> None:
    """0.1 times 0.1 to 0.6, by 2.56: another order of operations gives other numbers."""
    shape = (4, 2, 64, 64)
    model = conv_model("QLinearConv", shape, (6, 2, 1, 1), each=True, without=without)
    scales = {"x_scale": 0.1, "w_scale": np.arange(1, 7) / 10, "y_scale": 2.56}
    for tensor in model.graph.initializer:
        if tensor.name in scales:
            array = np.asarray(scales[tensor.name], np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    check(model, drawn("uint8", shape, 0))


def test_zero_points_of_filters_are_exact() -> None:
    """onnxruntime has no ConvInteger with several; the reference is NumPy."""
    x, weight = drawn("uint8", (2, 4, 7), 0), (6, 2, 3)
    model = conv_model("ConvInteger", x.shape, weight, each=True, group=2)
    c = {one.name: numpy_helper.to_array(one).astype(np.int64) for one in model.graph.initializer}
    windows = np.lib.stride_tricks.sliding_window_view(x - c["x_zero_point"], 3, 2)
    k = (c["weight"] - c["w_zero_point"].reshape(-1, 1, 1)).reshape(2, 3, 2, 3)
    y = np.einsum("bgclt,gfct->bgfl", windows.reshape(2, 2, 2, 5, 3), k).reshape(2, 6, 5)
    np.testing.assert_array_equal(run(convfc.to_fc(model), x), y)


@pytest.mark.parametrize("opset", [11, 12, 13, 18, 19, 21, 23, 24, 25])
@pytest.mark.parametrize("op", ["ConvInteger", "QLinearConv"])
def test_every_opset_from_11_on(op: str, opset: int) -> None:
    model = conv_model(op, (2, 4, 9, 10), (6, 2, 3, 3), opset=opset, group=2, pads=[1, 0, 2, 1])
    check(model, drawn("uint8", (2, 4, 9, 10), 0))


def test_groups_have_to_know_whose_scales_are_given() -> None:
    def opened(groups: int) -> Model:
        model = conv_model("ConvInteger", (2, 4, 9), (6, 4 // groups, 3), group=groups)
        held = [one for one in model.graph.initializer if one.name != "w_zero_point"]
        del model.graph.initializer[:]
        model.graph.initializer.extend(held)
        model.graph.input.append(info_of("w_zero_point", np.dtype("int8"), None))
        return model

    with pytest.raises(UnsupportedLayer, match="whether each filter has a scale of its own is not"):
        convfc.to_fc(opened(2))
    assert counted(convfc.to_fc(opened(1)))["MatMulInteger"] == 1


@pytest.mark.parametrize("op", ["ConvInteger", "QLinearConv"])
def test_opset_10_pads_no_integers(op: str) -> None:
    check(conv_model(op, (2, 3, 9, 8), (4, 3, 3, 3), opset=10), drawn("uint8", (2, 3, 9, 8), 0))
    padded = conv_model(op, (2, 3, 9, 8), (4, 3, 3, 3), opset=10, pads=[1, 1, 1, 1])
    with pytest.raises(UnsupportedLayer, match="padding is of integers, which takes opset 11"):
        convfc.to_fc(padded)


def test_conformance_cases_of_onnx() -> None:
    """With the weights as constants, so that they become K; as inputs, they are computed."""
    kinds = ("test_convinteger", "test_qlinearconv")
    cases = [one for one in conv_cases() if one.name.startswith(kinds)]
    assert len(cases) >= 3
    for case, held in itertools.product(cases, (False, True)):
        model = onnx.ModelProto.FromString(case.model.SerializeToString())
        model.opset_import[0].version = 13  # its operators are those of 10
        ((arrays, (expected,)),) = case.data_sets
        given = [np.asarray(array) for array in arrays]
        names = [one.name for one in model.graph.input]
        if held:
            tensors = [numpy_helper.from_array(array, n) for n, array in zip(names, given)][1:]  # noqa: B905
            model.graph.initializer.extend(tensors)
            del model.graph.input[1:], names[1:]
        fc = convfc.to_fc(model)
        options = onnxruntime.SessionOptions()
        session = onnxruntime.InferenceSession(fc.SerializeToString(), options)
        (y,) = session.run(None, dict(zip(names, given, strict=False)))
        assert "MatMul" in str(counted(fc))
        np.testing.assert_array_equal(y, expected)
        assert is_home(model, convfc.to_conv(fc))


@pytest.mark.parametrize("op", ["ConvInteger", "QLinearConv"])
def test_the_certificate_sees_one_number(op: str) -> None:
    """Integers have no bound: one more in a weight, a bias or a zero point is another function."""
    x = drawn("uint8", (2, 4, 9, 10), 0)
    model = conv_model(op, x.shape, (6, 2, 3, 3), group=2, pads=[1, 1, 1, 1])
    fc = convfc.to_fc(model)
    names = [one.name for one in fc.graph.initializer]
    for number, name in enumerate(names):
        broken = onnx.ModelProto.FromString(fc.SerializeToString())
        array = numpy_helper.to_array(broken.graph.initializer[number]).copy()
        array.flat[0] = array.flat[0] * 1.5 if array.dtype == np.float32 else array.flat[0] ^ 1
        broken.graph.initializer[number].CopyFrom(numpy_helper.from_array(array, name))
        certificate = convfc.verify(model, broken, x)
        assert not certificate.holds, name
        (layer,) = certificate.layers
        assert any("other bits" in failure for failure in layer.failures), name
        assert layer.own["output"].ratio == np.inf or "bias" in name, name


def test_the_certificate_sees_other_nodes_of_equal_weights() -> None:
    """The same windows with their columns in another order."""
    x = drawn("uint8", (2, 4, 9, 10), 0)
    model = conv_model("QLinearConv", x.shape, (6, 4, 3, 3))
    fc = convfc.to_fc(model)
    node, _ = (one for one in fc.graph.node if one.op_type == "Concat")
    turned = list(node.input)[::-1]
    del node.input[:]
    node.input.extend(turned)
    certificate = convfc.verify(model, fc, x)
    assert not certificate.holds
    assert certificate.layers[0].exact.differing == ("output",)


@pytest.mark.parametrize("op", ["ConvInteger", "QLinearConv"])
def test_a_layer_of_integers_in_a_branch_is_compared(op: str) -> None:
    plain = conv_model(op, (2, 4, 9), (6, 2, 3), group=2, pads=[1, 1])
    inner = helper.make_graph(plain.graph.node, "branch", [], plain.graph.output)
    twice = {"then_branch": inner, "else_branch": inner}
    node = helper.make_node("If", ["which"], ["out"], **twice)
    graph = plain.graph
    outer = helper.make_graph(
        [node],
        "net",
        [*graph.input, info_of("which", np.dtype(bool), ())],
        [helper.make_tensor_value_info("out", graph.output[0].type.tensor_type.elem_type, None)],
        graph.initializer,
    )
    imports = [helper.make_opsetid("", 17)]
    model = helper.make_model(outer, opset_imports=imports, ir_version=8)
    fc = convfc.to_fc(model)
    certificate = convfc.verify(model, fc, {"x": drawn("uint8", (2, 4, 9), 0), "which": True})
    assert certificate.holds, certificate
    assert [one.exact.identical for one in certificate.layers] == [True, True]


@pytest.mark.parametrize(
    ("op", "without"),
    [
        ("ConvInteger", ()),
        ("ConvInteger", ("x_zero_point", "w_zero_point")),
        ("QLinearConv", ()),
    ],
)
def test_a_layer_of_integers_in_a_function_is_compared(op: str, without: tuple[str, ...]) -> None:
    """Nothing is inferred there: the constants themselves say what they are."""
    each = op == "QLinearConv"
    plain = conv_model(op, (2, 4, 9), (6, 2, 3), group=2, pads=[1, 1], each=each, without=without)
    tensors = plain.graph.initializer
    nodes = [helper.make_node("Constant", [], [one.name], value=one) for one in tensors]
    nodes += [helper.make_node("Identity", ["given"], ["x"]), *plain.graph.node]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    function = helper.make_function("mine", "F", ["given"], ["y"], nodes, imports[:1])
    call = helper.make_node("F", ["x"], ["y"], "call", domain="mine")
    graph = helper.make_graph([call], "net", plain.graph.input, plain.graph.output)
    model = helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=8)
    x = drawn("uint8", (2, 4, 9), 0)
    fc = convfc.to_fc(model)
    np.testing.assert_array_equal(run(fc, x), run(model, x))
    certificate = convfc.verify(model, fc, x)
    assert certificate.holds, certificate
    assert [(one.dtype, one.exact.identical) for one in certificate.layers] == [("uint8", True)]
    assert convfc.to_conv(fc).functions[0] == function


def test_a_weight_that_a_tool_has_changed_comes_home() -> None:
    model = conv_model("QLinearConv", (2, 4, 9, 10), (6, 2, 3, 3), group=2)
    fc = convfc.to_fc(model)
    held = {one.name: one for one in fc.graph.initializer}
    (name,) = [name for name in held if name.startswith("weight")]
    k = numpy_helper.to_array(held[name])  # (g, k, f / g)
    held[name].CopyFrom(numpy_helper.from_array(np.flip(k, 1).copy(), name))
    held["w_zero_point"].CopyFrom(numpy_helper.from_array(np.array(9, np.int8), "w_zero_point"))
    back = convfc.to_conv(fc)
    found = {one.name: numpy_helper.to_array(one) for one in back.graph.initializer}
    weight = numpy_helper.to_array(
        next(one for one in model.graph.initializer if one.name == "weight")
    )
    np.testing.assert_array_equal(
        found["weight"], weight.reshape(6, 18)[:, ::-1].reshape(6, 2, 3, 3)
    )
    assert found["w_zero_point"] == 9
    x = drawn("uint8", (2, 4, 9, 10), 0)
    np.testing.assert_array_equal(run(back, x), run(fc, x))


def test_a_zero_point_of_its_own_in_the_product_is_refused() -> None:
    """Padding has another one then: no CONV node computes that."""
    model = conv_model("ConvInteger", (2, 3, 9), (4, 3, 3), pads=[1, 1])
    fc = convfc.to_fc(model)
    fc.graph.initializer.append(numpy_helper.from_array(np.array(1, np.uint8), "other"))
    for node in fc.graph.node:
        if node.op_type == "MatMulInteger":
            node.input[2] = "other"
    with pytest.raises(UnsupportedLayer, match="a tool has changed them"):
        convfc.to_conv(fc)


def qdq_model(each: bool, groups: int = 1) -> Model:
    """QuantizeLinear and DequantizeLinear around a CONV node; all sums are exact in float32."""
    filters = 6
    first = slice(None) if each else 0
    scale = 2.0 ** -np.arange(2, 2 + filters, dtype=np.float32)
    constants = {
        "xs": np.float32(0.25),
        "xz": np.uint8(100),
        "w": weights_of("int8", (filters, 4 // groups, 3, 3)),
        "ws": scale[first],
        "wz": np.zeros(filters, np.int8)[first],
        "b": np.arange(-200, 400, 100, np.int32),
        "bs": (scale * np.float32(0.25))[first],
        "bz": np.zeros(filters, np.int32)[first],
        "ys": np.float32(32),
        "yz": np.uint8(120),
    }
    axis = {"axis": 0} if each else {}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], **axis),
        helper.make_node("DequantizeLinear", ["b", "bs", "bz"], ["bd"], **axis),
        helper.make_node(
            "Conv", ["xd", "wd", "bd"], ["c"], "conv", pads=[1, 1, 1, 1], group=groups
        ),
        helper.make_node("QuantizeLinear", ["c", "ys", "yz"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "ys", "yz"], ["y"]),
    ]
    held = {name: np.asarray(array) for name, array in constants.items()}
    return model_of(nodes, ("float32", ("n", 4, "h", "w")), ("float32", 4), held)


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_pairs_around_a_conv_node_stay(each: bool, groups: int) -> None:
    """The int8 weight stays in the file as it is, and the model makes K of it."""
    model = qdq_model(each, groups)
    x = np.random.default_rng(0).uniform(-25, 40, (3, 4, 9, 8)).astype(np.float32)
    fc = convfc.to_fc(model)
    pairs = {"QuantizeLinear": 2, "DequantizeLinear": 4}
    assert counted(fc) & Counter(pairs) == Counter(pairs)
    assert [one for one in fc.graph.initializer if one.name == "w"] == [
        one for one in model.graph.initializer if one.name == "w"
    ]
    y = run(model, x)
    assert len(np.unique(y)) > 50
    for level in (LEVELS.ORT_DISABLE_ALL, LEVELS.ORT_ENABLE_ALL):
        np.testing.assert_array_equal(run(fc, x, level), y)
        np.testing.assert_array_equal(run(model, x, level), y)
    assert convfc.verify(model, fc, x).holds
    assert is_home(model, convfc.to_conv(fc))


def cnn() -> Model:
    """A small CNN of float: plain, depthwise, 1 x 1 without bias, grouped."""
    rng = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.3, shape).astype(np.float32)

    constants = {
        "w1": weight(8, 3, 3, 3), "b1": weight(8), "w2": weight(8, 1, 3, 3), "b2": weight(8),
        "w3": weight(12, 8, 1, 1), "w4": weight(6, 6, 3, 3), "b4": weight(6),
        "w5": weight(10, 96), "b5": weight(10),
    }  # fmt: skip
    pads = [1, 1, 1, 1]
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "c1", pads=pads, strides=[2, 2]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "c2", pads=pads, group=8),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("Conv", ["r2", "w3"], ["c3"], "c3"),
        helper.make_node("Relu", ["c3"], ["r3"]),
        helper.make_node(
            "Conv", ["r3", "w4", "b4"], ["c4"], "c4", pads=pads, group=2, strides=[2, 2]
        ),
        helper.make_node("Flatten", ["c4"], ["f"]),
        helper.make_node("Gemm", ["f", "w5", "b5"], ["y"], transB=1),
    ]
    return model_of(nodes, ("float32", ("n", 3, 16, 16)), ("float32", 2), constants)


IMAGES = np.random.default_rng(1).normal(size=(5, 3, 16, 16)).astype(np.float32)


class Calibration(quantization.CalibrationDataReader):
    def __init__(self) -> None:
        self.images = iter([{"x": IMAGES}, {"x": IMAGES[::-1].copy()}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.images, None)


def quantised(
    model: Model, folder: pathlib.Path, function: Callable[..., None], *args: Any, **options: Any
) -> Model:
    logging.disable(logging.WARNING)  # it recommends to pre-process the model
    onnx.save(model, str(folder / "float.onnx"))
    function(str(folder / "float.onnx"), str(folder / "quantised.onnx"), *args, **options)
    logging.disable(logging.NOTSET)
    return onnx.load(str(folder / "quantised.onnx"))


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("per_channel", [False, True])
def test_networks_of_quantised_operators(
    dtypes: tuple[str, str], per_channel: bool, tmp_path: pathlib.Path
) -> None:
    kinds = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}
    model = quantised(
        cnn(),
        tmp_path,
        quantization.quantize_static,
        Calibration(),
        quant_format=QuantFormat.QOperator,
        activation_type=kinds[dtypes[0]],
        weight_type=kinds[dtypes[1]],
        reduce_range=dtypes[1] == "int8",
        per_channel=per_channel,
    )
    assert counted(model)["QLinearConv"] == 4
    found = counted(check(model, IMAGES))
    assert (found["MatMulInteger"], found["QLinearMatMul"]) == (3, 1)


@pytest.mark.parametrize("per_channel", [False, True])
def test_networks_of_pairs(per_channel: bool, tmp_path: pathlib.Path) -> None:
    """Between the pairs a CONV node computes in float32: within the bound, as any other."""
    model = quantised(
        cnn(),
        tmp_path,
        quantization.quantize_static,
        Calibration(),
        quant_format=QuantFormat.QDQ,
        per_channel=per_channel,
    )
    fc = convfc.to_fc(model)
    assert counted(fc)["MatMul"] == counted(model)["Conv"] == 4
    assert convfc.verify(model, fc, IMAGES).holds
    assert is_home(model, convfc.to_conv(fc))


@pytest.mark.parametrize("kind", [QuantType.QUInt8, QuantType.QInt8], ids=str)
def test_networks_quantised_when_they_run(kind: QuantType, tmp_path: pathlib.Path) -> None:
    """The zero point of a layer's input is known only then, and pads it."""
    reduced = kind is QuantType.QInt8
    model = quantised(
        cnn(), tmp_path, quantization.quantize_dynamic, weight_type=kind, reduce_range=reduced
    )
    assert counted(model)["ConvInteger"] == 4
    found = counted(check(model, IMAGES))
    assert found["MatMulInteger"] == counted(model)["MatMulInteger"] + 4


def test_weights_alone_are_quantised_only_on_the_right(tmp_path: pathlib.Path) -> None:
    """Tools for weights look at a product's second operand; K is the first, and stays as it is."""
    model = cnn()
    fc = convfc.to_fc(model)
    options = {"op_types_to_quantize": ["MatMul"]}
    dynamic = quantised(fc, tmp_path, quantization.quantize_dynamic, **options)
    assert counted(dynamic)["MatMul"] == 4
    assert counted(convfc.to_conv(dynamic))["Conv"] == 4
    tool = MatMulNBitsQuantizer(convfc.to_fc(model), block_size=16)
    tool.process()
    assert counted(tool.model.model)["MatMul"] == 4


@pytest.mark.parametrize("kind", [QuantFormat.QOperator, QuantFormat.QDQ], ids=str)
def test_an_fc_network_that_was_quantised_stays_one(
    kind: QuantFormat, tmp_path: pathlib.Path
) -> None:
    """Its nodes are others now: refused by name, with the way that there is."""
    model = cnn()
    fc = quantised(
        convfc.to_fc(model),
        tmp_path,
        quantization.quantize_static,
        Calibration(),
        quant_format=kind,
        op_types_to_quantize=["MatMul"],
    )
    with pytest.raises(UnsupportedLayer, match=r"c1: .*nor can c2, c3, c4.*quantise the CNN"):
        convfc.to_conv(fc)
    with pytest.warns(UnsupportedLayerWarning, match="left as they are: c1 .*c4"):
        left = convfc.to_conv(fc, strict=False)
    np.testing.assert_array_equal(run(left, IMAGES), run(fc, IMAGES))
    assert not convfc.verify(model, fc, IMAGES).holds


@pytest.mark.parametrize(
    ("domain", "op"),
    [
        ("com.microsoft", "FusedConv"),
        ("com.microsoft", "NhwcConv"),
        ("com.microsoft", "NhwcFusedConv"),
        ("com.microsoft", "QLinearConv"),
        ("com.microsoft", "ConvTransposeWithDynamicPads"),
        ("com.microsoft.nchwc", "Conv"),
        ("com.ms.internal.nhwc", "Conv"),
        ("com.ms.internal.nhwc", "ConvTranspose"),
        ("com.ms.internal.nhwc", "QLinearConv"),
        ("", "DeformConv"),
    ],
)
def test_other_operators_are_refused_by_name(domain: str, op: str) -> None:
    node = helper.make_node(op, ["x", "w"], ["y"], "layer", domain=domain)
    x = info_of("x", np.dtype("float32"), (1, 3, 8, 8))
    y = info_of("y", np.dtype("float32"), None)
    w = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
    graph = helper.make_graph([node], "net", [x], [y], [w])
    imports = [helper.make_opsetid("", 19), helper.make_opsetid(domain or "a", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=9)
    which = f"{domain}.{op}" if domain else op
    with pytest.raises(UnsupportedLayer, match=f"layer: {which} is no CONV operator that convfc"):
        convfc.to_fc(model)
    assert which in str(convfc.inspect(model))


def test_a_function_that_is_named_like_an_operator_is_none() -> None:
    node = helper.make_node("Conv", ["x"], ["y"], "call", domain="mine")
    inner = [helper.make_node("Relu", ["a"], ["b"])]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    function = helper.make_function("mine", "Conv", ["a"], ["b"], inner, imports[:1])
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, 3)) for n in "xy"]
    graph = helper.make_graph([node], "net", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=8)
    assert not convfc.inspect(model).rows


@pytest.mark.parametrize("level", [LEVELS.ORT_ENABLE_EXTENDED, LEVELS.ORT_ENABLE_ALL], ids=str)
def test_models_that_onnxruntime_has_optimised_are_refused(
    level: Any, tmp_path: pathlib.Path
) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = level, 4
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(
        cnn().SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    model = onnx.load(str(tmp_path / "optimised.onnx"))
    others = [node for node in model.graph.node if "Conv" in node.op_type and node.domain]
    assert others
    with pytest.raises(UnsupportedLayer, match=f"{others[0].domain}.{others[0].op_type} is no"):
        convfc.to_fc(model)
