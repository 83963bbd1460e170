"""Products with constants as 1 x 1 CONV nodes: equal on integers, and back as they were."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import convfc
from convfc.errors import NothingToConvert, UnsupportedLayer, UnsupportedLayerWarning

Shape = tuple[int, ...]
MATMUL: dict[str, tuple[Shape, Shape, bool]] = {
    "2d": ((3, 4), (4, 5), False),
    "tokens": ((2, 3, 4), (4, 5), False),
    "grid": ((2, 3, 6, 4), (4, 5), False),
    "deep": ((2, 3, 2, 6, 4), (4, 5), False),
    "vector": ((4,), (4, 5), False),
    "by-vector": ((2, 3, 4), (4,), False),
    "vectors": ((4,), (4,), False),
    "ones": ((2, 3, 4), (1, 4, 5), False),
    "left": ((4, 3), (5, 4), True),
    "left-tokens": ((2, 4, 3), (5, 4), True),
    "left-grid": ((2, 3, 4, 6), (5, 4), True),
    "left-deep": ((2, 2, 3, 4, 6), (5, 4), True),
    "left-vector": ((4,), (5, 4), True),
    "left-by-vector": ((2, 4, 3), (4,), True),
}
SCALES = {
    "plain": {},
    "scaled": {"alpha": 2.0, "beta": 3.0},
    "minus": {"alpha": -1.0},
    "beta": {"beta": -2.0},
}
FLAGS = list(itertools.product((0, 1), repeat=2))


def integers(*shape: int, seed: int = 0) -> Any:
    numbers = np.random.default_rng(seed).integers(-4, 5, shape)
    return np.asarray(numbers, np.float32)


def model_of(
    op: str,
    x: Shape,
    rank: int,
    *,
    left: bool = False,
    opset: int = 17,
    attributes: dict[str, Any] | None = None,
    **weights: Any,
) -> onnx.ModelProto:
    names = ["w", "x"] if left else ["x", "w"]
    names += [name for name in weights if name != "w"]
    node = helper.make_node(op, names, ["y"], name="fc", **(attributes or {}))
    graph = helper.make_graph(
        [node],
        "net",
        [helper.make_tensor_value_info("x", 1, [f"x{axis}" for axis in range(len(x))])],
        [helper.make_tensor_value_info("y", 1, [f"y{axis}" for axis in range(rank)])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=4 if opset < 11 else 8)
    onnx.checker.check_model(model)
    return model


def matmul(case: str, **options: Any) -> tuple[onnx.ModelProto, Any]:
    x, w, left = MATMUL[case]
    a, b = (np.zeros(one) for one in ((w, x) if left else (x, w)))
    model = model_of("MatMul", x, (a @ b).ndim, left=left, w=integers(*w, seed=1), **options)
    return model, integers(*x, seed=2)


def gemm(
    c: Shape | None, *, left: bool, flags: tuple[int, int] = (0, 0), opset: int = 17, **scales: Any
) -> tuple[onnx.ModelProto, Any]:
    a, b = flags
    x = ((3, 4) if b else (4, 3)) if left else ((4, 3) if a else (3, 4))
    w = ((4, 5) if a else (5, 4)) if left else ((5, 4) if b else (4, 5))
    weights = {"w": integers(*w, seed=1)} | ({} if c is None else {"c": integers(*c, seed=3)})
    attributes = {"transA": a, "transB": b, **scales}
    model = model_of("Gemm", x, 2, left=left, opset=opset, attributes=attributes, **weights)
    return model, integers(*x, seed=2)


def run(model: onnx.ModelProto, x: Any) -> Any:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    given = x if isinstance(x, dict) else {"x": x}
    return session.run(None, given)[0]


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node if node.op_type != "Constant"]


def is_same(model: onnx.ModelProto, other: onnx.ModelProto) -> bool:
    weights = [
        sorted(one.SerializeToString() for one in m.graph.initializer) for m in (model, other)
    ]
    return list(model.graph.node) == list(other.graph.node) and weights[0] == weights[1]


def check(model: onnx.ModelProto, x: Any) -> onnx.ModelProto:
    """Hold a model to all that a rewritten one promises; return it."""
    made = convfc.to_conv(model)
    onnx.checker.check_model(made, full_check=True)
    assert "Conv" in kinds(made)
    assert not {"MatMul", "Gemm"} & set(kinds(made))
    assert made.graph.node[-1].name == "fc"
    expected, got = run(model, x), run(made, x)
    np.testing.assert_array_equal(got, expected)
    assert got.shape == expected.shape
    assert is_same(convfc.to_fc(made), model)
    real = np.random.default_rng(5).standard_normal(x.shape).astype("float32")
    for pair in ((model, made), (made, model)):
        certificate = convfc.verify(*pair, real)
        assert certificate.holds, certificate
        assert certificate.layers[0].exact.identical
    (row,) = convfc.inspect(made, x).rows
    assert (row.form, row.kind, row.multiplications) == ("native", "Conv", 4 * got.size)
    return made


@pytest.mark.parametrize("opset", [7, 21])
@pytest.mark.parametrize("case", MATMUL)
def test_matmul_with_a_constant(case: str, opset: int):
    check(*matmul(case, opset=opset))


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("c", [(5,), (1, 5), (3, 1), ()], ids=str)
@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_gemm_with_a_constant_on_the_right(flags: tuple[int, int], c: Shape, scales: str):
    made = check(*gemm(c, left=False, flags=flags, opset=13, **SCALES[scales]))
    assert ("Add" in kinds(made)) == (c not in ((5,), (1, 5)) or scales != "plain")


@pytest.mark.parametrize("c", [None, (5, 1), (3,), (5, 3)], ids=str)
@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_gemm_with_a_constant_on_the_left(flags: tuple[int, int], c: Shape | None):
    made = check(*gemm(c, left=True, flags=flags))
    assert ("Add" in kinds(made)) == (c not in (None, (5, 1)))


def test_gemm_below_opset_11():
    check(*gemm((5,), left=False, opset=9))


def test_a_sequence_is_one_image_and_one_product():
    model, _ = matmul("tokens")
    made = convfc.to_conv(model)
    assert kinds(made) == ["Transpose", "Unsqueeze", "Conv", "Squeeze", "Transpose"]
    shape = {one.name: list(one.dims) for one in made.graph.initializer}
    assert shape == {"w.conv": [5, 4, 1, 1]}


def test_a_factor_that_is_no_integer_is_certified_by_its_bound():
    model, x = gemm((5,), left=False, alpha=0.1, beta=-0.3)
    certificate = convfc.verify(model, convfc.to_conv(model), x)
    assert certificate.holds, certificate
    assert certificate.layers[0].exact.why_not == "alpha and beta are not integers"


def test_the_bound_of_a_difference_is_that_of_a_sum():
    rng = np.random.default_rng(0)
    x, w = rng.random((3, 500), np.float32), rng.random((500, 4), np.float32)
    weights = {"w": w, "c": x @ w}
    model = model_of("Gemm", x.shape, 2, attributes={"alpha": -1.0}, **weights)
    certificate = convfc.verify(model, convfc.to_conv(model), x)
    assert certificate.layers[0].own["output"].difference > 0
    assert certificate.holds, certificate


def test_a_bias_that_the_model_is_given_is_added():
    text = """<ir_version: 8, opset_import: ["" : 17]>
        net (float[n, 4] x, float[5] c) => (float[n, 5] y) {
            [fc] y = Gemm <beta = -2.0> (x, w, c)
        }"""
    model = ir.to_proto(ir.from_proto(onnx.parser.parse_model(text)))
    model.graph.initializer.append(numpy_helper.from_array(integers(4, 5, seed=1), "w"))
    x = {"x": integers(3, 4), "c": integers(5, seed=6)}
    made = convfc.to_conv(model)
    assert kinds(made) == ["Reshape", "Conv", "Reshape", "Mul", "Add"]
    np.testing.assert_array_equal(run(made, x), run(model, x))
    assert convfc.verify(model, made, x).holds
    assert is_same(convfc.to_fc(made), model)


@pytest.mark.parametrize("changed", ["w.conv", "c", "w"])
def test_a_changed_weight_is_seen(changed: str):
    model, x = gemm((5,), left=False)
    first, made = model, convfc.to_conv(model)
    for one in (first, made):
        for tensor in one.graph.initializer:
            if tensor.name == changed:
                numbers = numpy_helper.to_array(tensor).copy()
                numbers.flat[1] += 2.0**-10
                tensor.CopyFrom(numpy_helper.from_array(numbers, changed))
        if changed == "c":
            break
    certificate = convfc.verify(first, made, x)
    assert not certificate.holds
    assert not certificate.layers[0].holds


NETWORK = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[n, s, 4] x) => (float[n, s, s] y) {
        [q] q0 = MatMul (x, wq)
        [bias] q = Add (q0, b)
        [k] k = MatMul (x, wk)
        [turned] t = Transpose <perm = [0, 2, 1]> (k)
        [scores] y = MatMul (q, t)
    }"""


def attention() -> onnx.ModelProto:
    model = ir.to_proto(ir.from_proto(onnx.parser.parse_model(NETWORK)))
    weights = {"wq": integers(4, 4, seed=1), "wk": integers(4, 4, seed=2), "b": integers(4, seed=3)}
    model.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in weights.items())
    return model


def test_products_of_two_activations_are_no_layers():
    model, x = attention(), integers(2, 3, 4)
    made = convfc.to_conv(model)
    assert kinds(made).count("Conv") == 2
    assert kinds(made).count("MatMul") == 1
    np.testing.assert_array_equal(run(made, x), run(model, x))
    certificate = convfc.verify(model, made, x)
    assert certificate.holds, certificate
    assert [one.name for one in certificate.layers] == ["q", "k"]
    assert is_same(convfc.to_fc(made), model)
    assert is_same(convfc.unroll(made, x), model)
    other = convfc.to_conv(model, where="k")
    assert kinds(other).count("Conv") == 1
    with pytest.raises(NothingToConvert, match="where= selects no layer"):
        convfc.to_conv(model, where="scores")
    (scores,) = (node for node in made.graph.node if node.name == "scores")
    scores.input[0] = "q0"
    assert not convfc.verify(model, made, x).holds


def test_one_weight_of_two_products_stays_one():
    model = attention()
    model.graph.node[2].input[1] = "wq"
    model.graph.initializer.pop(1)
    made = convfc.to_conv(model)
    assert len(made.graph.initializer) == 2
    assert is_same(convfc.to_fc(made), model)


def test_fc_layers_that_to_fc_made_go_back_first():
    text = """<ir_version: 8, opset_import: ["" : 17]>
        net (float[n, 2, 4, 4] x) => (float[n, 5] y) {
            [conv] a = Conv (x, w)
            b = Flatten (a)
            [head] y = MatMul (b, h)
        }"""
    model = ir.to_proto(ir.from_proto(onnx.parser.parse_model(text)))
    weights = {"w": integers(3, 2, 3, 3, seed=1), "h": integers(12, 5, seed=2)}
    model.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in weights.items())
    fc = convfc.to_fc(model)
    assert is_same(convfc.to_conv(fc), model)
    both = convfc.to_conv(fc, where="head")  # what is named is converted
    assert kinds(both).count("MatMul") == 1
    x = integers(2, 2, 4, 4)
    np.testing.assert_array_equal(run(both, x), run(model, x))
    only = convfc.to_conv(model)
    assert kinds(only) == ["Conv", "Flatten", "Reshape", "Conv", "Reshape"]
    back = convfc.to_fc(only)
    assert kinds(back).count("MatMul") == 2
    assert is_same(convfc.to_conv(back), model)
    assert convfc.verify(model, only, x).holds


def test_inplace_and_models_of_onnx_ir():
    model, x = gemm((5,), left=False)
    opened = ir.from_proto(model)
    assert convfc.to_conv(opened, inplace=True) is opened
    np.testing.assert_array_equal(run(ir.to_proto(opened), x), run(model, x))
    assert convfc.to_conv(model) is not model
    assert kinds(model) == ["Gemm"]
    assert convfc.to_conv(model, inplace=True) is model
    assert kinds(model) == ["Reshape", "Conv", "Reshape"]
    with pytest.raises(NothingToConvert, match="the model has no layer in patch"):
        convfc.to_conv(model)


def test_layers_in_inner_graphs_and_their_certificate():
    text = """<ir_version: 8, opset_import: ["" : 17]>
        net (float[n, k] x, bool flag) => (float[n, 5] y) {
            y = If (flag) <
                then_branch = then () => (float[n, 5] t) { [inner] t = MatMul (x, w) },
                else_branch = other () => (float[n, 5] o) { [inner] o = Gemm <transB = 1> (x, v) }
            >
        }"""
    model = ir.to_proto(ir.from_proto(onnx.parser.parse_model(text)))
    weights = {"w": integers(4, 5, seed=1), "v": integers(5, 4, seed=2)}
    model.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in weights.items())
    made = convfc.to_conv(model)
    for flag in (True, False):
        x = {"x": integers(3, 4), "flag": np.array(flag)}
        np.testing.assert_array_equal(run(made, x), run(model, x))
        certificate = convfc.verify(model, made, x)
        assert certificate.holds, certificate
        assert len(certificate.layers) == 2
    assert is_same(convfc.to_fc(made), model)


REFUSED = {
    "batch of matrices": (
        "float[2, 3, 4] x",
        "MatMul (x, w)",
        integers(2, 4, 5),
        r"fc: MatMul: its constant of the shape \(2, 4, 5\) is a batch of matrices",
    ),
    "int32": ("int32[3, 4] x", "MatMul (x, w)", np.ones((4, 5), "int32"), "Conv takes no INT32"),
    "integers": (
        "uint8[3, 4] x",
        "MatMulInteger (x, w)",
        np.ones((4, 5), "uint8"),
        "fc: MatMulInteger is no product that convfc converts",
    ),
    "dequantised": (
        "float[3, 4] x",
        "MatMul (x, q)",
        np.ones((4, 5), "uint8"),
        r"fc: MatMul: its matrix is dequantised when the model runs \(DequantizeLinear\)",
    ),
    "computed": (
        "float[3, 4] x",
        "MatMul (x, v)",
        integers(5, 4),
        "fc: MatMul: its matrix is worked out of constants",
    ),
}


DEQUANTISED = "s = Constant <value = float {0.5}> () q = DequantizeLinear (w, s)"


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_conv_layer_is_refused_by_name(case: str):
    x, product, w, message = REFUSED[case]
    kind = x.partition("[")[0].replace("uint8", "int32")
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        net ({x}, float[m, 4] z) => ({kind}[a, b] y, float[m, 2] u) {{
            {DEQUANTISED if case == "dequantised" else "v = Transpose (w)"}
            [fc] y = {product}
            [other] u = MatMul (z, r)
        }}"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(w, "w"))
    model.graph.initializer.append(numpy_helper.from_array(integers(4, 2), "r"))
    if case == "batch of matrices":
        model.graph.node[0].attribute.append(helper.make_attribute("perm", [0, 2, 1]))
    with pytest.raises(UnsupportedLayer, match=message):
        convfc.to_conv(model)
    with pytest.warns(UnsupportedLayerWarning, match="left as they are: fc"):
        made = convfc.to_conv(model, strict=False)
    assert kinds(made).count("Conv") == 1


def test_an_input_of_unknown_rank_is_refused():
    model, _ = matmul("2d")
    model.graph.node.insert(0, helper.make_node("Unknown", ["x"], ["z"], domain="custom"))
    model.graph.node[1].input[0] = "z"
    model.opset_import.append(helper.make_opsetid("custom", 1))
    with pytest.raises(UnsupportedLayer, match="how many axes its input has is not known"):
        convfc.to_conv(model)


def test_nodes_that_a_tool_has_changed_are_refused():
    made = convfc.to_conv(gemm((5,), left=False)[0])
    (conv,) = (node for node in made.graph.node if node.op_type == "Conv")
    conv.op_type = "FusedConv"
    with pytest.raises(UnsupportedLayer, match="fc: its nodes are not those that convfc made"):
        convfc.to_fc(made)
