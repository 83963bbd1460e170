"""Certificates of ONNX models: they hold for every layer, and say no to every single change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import model_of, network, run
from test_onnx_forms import NODES, Node, every_node, input_shapes

import convfc
from convfc.errors import ArgumentError, ShapeError, UnsupportedModel
from convfc.frameworks.onnx import certify

if TYPE_CHECKING:
    from collections.abc import Callable

X = (1, 3, 6, 5)


def reals(shape: Any, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def trained(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with weights of many digits."""
    for seed, tensor in enumerate(model.graph.initializer):
        if tensor.name != "v":
            shape = tuple(tensor.dims)
            array = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


def fc_of(model: onnx.ModelProto) -> onnx.ModelProto:
    return convfc.to_fc(model)


# It holds.


@every_node
def test_it_holds_in_both_directions(node: Node) -> None:
    model, x = trained(node.model()), reals(node.x)
    fc = fc_of(model)
    for pair in ((model, fc), (fc, model), (fc, fc)):
        certificate = convfc.verify(*pair, x)
        assert certificate.holds, str(certificate)
        (layer,) = certificate.layers
        assert layer.exact.identical is True
        assert layer.own["output"].ratio is not None
        assert layer.float64["output"].ratio is not None
        assert [one.quantity for one in layer.weights] == ["weight", "bias"][: 1 + node.bias]


@pytest.mark.parametrize("weights", ["input", "constant", "computed", "given"])
@pytest.mark.parametrize("node", [NODES[0], NODES[4], NODES[24], NODES[30]], ids=str)
def test_weights_come_from_anywhere(node: Node, weights: Any) -> None:
    model = node.model(node.open(slice(0, 9)), weights=weights)
    names = ["x"] if weights != "given" else [one.name for one in model.graph.input]
    shapes = [node.x, *input_shapes(model)[1:]]
    inputs = {name: reals(shape) for name, shape in zip(names, shapes, strict=False)}
    certificate = convfc.verify(model, fc_of(model), inputs)
    assert certificate.holds, str(certificate)
    assert certificate.layers[0].exact.identical is True


def test_a_network() -> None:
    model, x = trained(network()), reals(X)
    certificate = convfc.verify(model, fc_of(model), {"x": x})
    assert certificate.holds, str(certificate)
    assert [layer.name for layer in certificate.layers] == ["one", "c", "up"]
    assert {layer.forms for layer in certificate.layers} == {("native", "patch")}
    assert "onnxruntime" in certificate.framework
    part = convfc.verify(model, convfc.to_fc(model, where="c"), x)
    assert part.holds, str(part)
    assert [layer.forms[1] for layer in part.layers] == ["native", "patch", "native"]


# It says no.


def tensor(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(one for one in model.graph.initializer if one.name.startswith(name))


def constant(model: onnx.ModelProto, kind: str, number: int) -> onnx.TensorProto:
    """The tensor that is the input of a number of the first node of a kind in an FC layer."""
    node = next(one for one in model.graph.node if one.op_type == kind and one.metadata_props)
    (made,) = (one for one in model.graph.node if one.output[0] == node.input[number])
    return made.attribute[0].t


def put(tensor: onnx.TensorProto, change: Callable[[np.ndarray], None]) -> None:
    array = numpy_helper.to_array(tensor).copy()
    change(array)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def one_weight(model: onnx.ModelProto) -> None:
    def change(array: np.ndarray) -> None:
        array.flat[3] = np.nextafter(array.flat[3], np.float32(np.inf))

    put(tensor(model, "one.weight"), change)


def one_bias(model: onnx.ModelProto) -> None:
    def change(array: np.ndarray) -> None:
        array.flat[1] *= np.float32(1.001)

    put(tensor(model, "one.bias"), change)


def a_slice(model: onnx.ModelProto) -> None:
    """Tap 0 reads what tap 1 reads."""

    def change(array: np.ndarray) -> None:
        array += 1

    for number in (1, 2):
        put(constant(model, "Slice", number), change)


def a_pad(model: onnx.ModelProto) -> None:
    """One zero from below to above."""

    def change(array: np.ndarray) -> None:
        array[3] += 1
        array[7] -= 1

    put(constant(model, "Pad", 1), change)


def node_of(model: onnx.ModelProto, output: str) -> onnx.NodeProto:
    return next(one for one in model.graph.node if one.output[0] == output)


def another_activation(model: onnx.ModelProto) -> None:
    node_of(model, "r").op_type = "Abs"


def an_attribute(model: onnx.ModelProto) -> None:
    node_of(model, "n").attribute[0].f = 1e-3


def an_initializer(model: onnx.ModelProto) -> None:
    def change(array: np.ndarray) -> None:
        array[0] = np.nextafter(array[0], np.float32(np.inf))

    put(tensor(model, "one.s"), change)


def an_input_of_a_node(model: onnx.ModelProto) -> None:
    node_of(model, "d").input[1] = tensor(model, "one.bias").name


def an_input_of_a_layer(model: onnx.ModelProto) -> None:
    """The second layer no longer sees the activation."""
    for node in model.graph.node:
        if node.output[0] != "r":
            node.input[:] = ["n" if name == "r" else name for name in node.input]


def an_output(model: onnx.ModelProto) -> None:
    more = helper.make_tensor_value_info("d", 1, (1, 4, None, None))
    model.graph.output.append(more)


def another_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "d"


def an_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 18


def a_node_more(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Neg", ["d"], ["unused"]))


def a_layer_less(model: onnx.ModelProto) -> None:
    """The whole second layer is replaced by something with its name and output."""
    keep = [n for n in model.graph.node if not (n.metadata_props and n.output[0].startswith("c"))]
    position = [n.output[0] for n in keep].index("r") + 1
    pool = helper.make_node("MaxPool", ["r"], ["c"], kernel_shape=[2, 2], strides=[2, 2])
    keep.insert(position, pool)
    del model.graph.node[:]
    model.graph.node.extend(keep)


CHANGES: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "the last bit of a weight": (one_weight, "one: weight"),
    "a bias": (one_bias, "one: bias"),
    "a slice": (a_slice, "one: output"),
    "a pad": (a_pad, "one: output"),
    "another activation": (another_activation, "node relu; expected r = Relu"),
    "an attribute": (an_attribute, "node norm; expected n = BatchNormalization"),
    "an initializer outside": (
        an_initializer,
        "network: initializer one.s; expected the same bits",
    ),
    "an input of a node": (an_input_of_a_node, "node twice; expected d = Add"),
    "an input of a layer": (an_input_of_a_layer, "c: its input; expected r, got n"),
    "an output more": (an_output, "network: output"),
    "another output": (another_output, "network: output"),
    "an opset": (an_opset, "opset"),
    "a node more": (a_node_more, "node unused; expected none, got unused = Neg"),
    "a layer less": (a_layer_less, "c: "),
}


@pytest.mark.parametrize("change", CHANGES)
def test_it_says_no(change: str) -> None:
    model, x = trained(network()), reals(X)
    fc, (corrupt, words) = fc_of(model), CHANGES[change]
    corrupt(fc)
    for pair in ((model, fc), (fc, model)):
        certificate = convfc.verify(*pair, x)
        assert not certificate.holds
    certificate = convfc.verify(model, fc, x)
    assert any(words in failure for failure in certificate.failures), certificate.failures


@pytest.mark.parametrize("which", ["weight", "input"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite(value: float, which: str) -> None:
    model, x = trained(network()), reals(X)
    if which == "weight":

        def change(array: np.ndarray) -> None:
            array.flat[0] = value

        put(tensor(model, "one.weight"), change)
    else:
        x[0, 0, 0, 0] = value
    certificate = convfc.verify(model, fc_of(model), x)
    assert not certificate.holds
    assert any("finite" in failure for failure in certificate.failures), certificate.failures


def unread(weight: np.ndarray, strides: int = 2) -> onnx.ModelProto:
    """A CONV node that convfc reads, and one that it does not: its padding is not known."""
    nodes = [
        helper.make_node("Conv", ["x", "one"], ["a"], "one"),
        helper.make_node(
            "ConvTranspose", ["a", "two"], ["y"], "two", strides=[strides] * 2, output_shape=[7, 7]
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", 1, (1, 2, "h", "w"))],
        [helper.make_tensor_value_info("y", 1, (1, 3, None, None))],
        [
            numpy_helper.from_array(reals((2, 2, 2, 2)), "one"),
            numpy_helper.from_array(weight, "two"),
        ],
    )
    return model_of(graph, 17)


def test_layers_that_are_not_converted_have_to_be_the_same() -> None:
    weight = reals((2, 3, 3, 3))
    model, x = unread(weight), reals((1, 2, 5, 5))
    with pytest.warns(UserWarning, match="output_shape is given"):
        fc = convfc.to_fc(model, strict=False)
    certificate = convfc.verify(model, fc, x)
    assert certificate.holds, str(certificate)
    assert certificate.unconverted == ("two",)
    weight.flat[0] += 1
    with pytest.warns(UserWarning, match="output_shape is given"):
        other = convfc.to_fc(unread(weight), strict=False)
    assert "network: initializer two" in str(convfc.verify(model, other, x).failures)
    node_of(fc, "y").attribute[0].ints[:] = [7, 8]
    assert "node two" in str(convfc.verify(model, fc, x).failures)


def branches(scale: float) -> onnx.ModelProto:
    """A CONV node and an initializer in a branch."""
    tensors = [
        numpy_helper.from_array(reals((2, 2, 2, 2)), "W"),
        numpy_helper.from_array(np.full((1,), scale, np.float32), "scale"),
    ]
    output = [helper.make_tensor_value_info("z", 1, (1, 2, 4, 4))]
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["c"], "conv"),
        helper.make_node("Mul", ["c", "scale"], ["z"], "times"),
    ]
    graph = helper.make_graph(nodes, "branch", [], output, tensors)
    given = helper.make_node("If", ["flag"], ["y"], "if", then_branch=graph, else_branch=graph)
    infos = [
        helper.make_tensor_value_info("x", 1, (1, 2, 5, 5)),
        helper.make_tensor_value_info("flag", 9, ()),
        helper.make_tensor_value_info("y", 1, (1, 2, 4, 4)),
    ]
    return model_of(helper.make_graph([given], "network", infos[:2], infos[2:]), 17)


def test_numbers_in_a_branch() -> None:
    model, x = branches(2.0), [reals((1, 2, 5, 5)), np.array(True)]
    fc = fc_of(model)
    assert np.array_equal(run(fc, *x)[0], run(model, *x)[0])
    certificate = convfc.verify(model, fc, x)
    assert certificate.holds, str(certificate)
    names = {layer.name for layer in certificate.layers}
    assert names == {"if.then_branch.conv", "if.else_branch.conv"}
    other = convfc.verify(model, fc_of(branches(np.nextafter(np.float32(2), np.float32(3)))), x)
    assert "initializer scale of inner graph 1; expected the same bits" in str(other.failures)
    (back,) = convfc.to_conv(fc).graph.node
    for one, given in zip(back.attribute, model.graph.node[0].attribute, strict=True):
        assert one.g.node == given.g.node
        kept = ({t.name: t for t in side.g.initializer} for side in (one, given))
        assert next(kept) == next(kept)


def whole(shape: Any) -> np.ndarray:
    return np.random.default_rng(0).integers(-9, 10, shape).astype(np.float32)


def large(inner: bool) -> onnx.ModelProto:
    """Initializers that are not copied: of a CONV node, perhaps in a branch, and of a constant."""
    tensors = {"W": (16, 16, 2, 2), "summand": (1024,), "unused": (1024,)}
    held = [numpy_helper.from_array(whole(shape), name) for name, shape in tensors.items()]
    held.append(numpy_helper.from_array(np.array([1, 16, 8, 8]), "shape"))
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["c"], "conv"),
        helper.make_node("Reshape", ["summand", "shape"], ["s"], "folded"),
        helper.make_node("Add", ["c", "s"], ["y"], "add"),
    ]
    x = helper.make_tensor_value_info("x", 1, (1, 16, 9, 9))
    y = helper.make_tensor_value_info("y", 1, (1, 16, 8, 8))
    if inner:
        branch = helper.make_graph(nodes, "branch", [], [y])
        true = helper.make_node("Constant", [], ["true"], value_ints=[1])
        flag = helper.make_node("Cast", ["true"], ["flag"], to=TensorProto.BOOL)
        given = helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch)
        nodes = [true, flag, given]
    return model_of(helper.make_graph(nodes, "network", [x], [y], held), 17)


@pytest.mark.parametrize("inner", [False, True])
def test_models_run_as_onnxruntime_runs_their_files(inner: bool) -> None:
    model, x = large(inner), whole((1, 16, 9, 9))
    (found,) = certify.run(ir.from_proto(model), {"x": x}).values()
    assert np.array_equal(found, run(model, x)[0])


# Dtypes, inputs.


def test_float16_is_compared_in_float16_and_float64() -> None:
    node = NODES[0]
    model, x = node.model(dtype=np.float16), reals(node.x, np.float16)
    certificate = convfc.verify(model, fc_of(model), x)
    assert certificate.holds, str(certificate)
    (layer,) = certificate.layers
    assert (layer.dtype, layer.exact.identical) == ("float16", True)
    assert layer.float64["output"].ratio is not None


def test_what_onnxruntime_does_not_convolve_is_said_in_one_line() -> None:
    node = NODES[0]
    model, x = node.model(dtype=np.float64), reals(node.x, np.float64)
    words = r"^x: the model does not run on it \(NotImplemented: .*Conv.*Remedy: .*a dtype that"
    for verb in (lambda: convfc.verify(model, fc_of(model), x), lambda: convfc.inspect(model, x)):
        with pytest.raises(ShapeError, match=words):
            verb()
    fc = fc_of(model)
    assert convfc.verify(fc, fc, x).holds
    assert run(fc, x)[0].dtype == np.float64


@pytest.mark.parametrize("given", [{"y": reals(X)}, {}, {"x": reals(X), "z": reals(X)}])
def test_inputs_of_other_names(given: dict[str, np.ndarray]) -> None:
    model = network()
    with pytest.raises(ArgumentError, match=r"^x: these are not the model's inputs.*expected x"):
        convfc.verify(model, fc_of(model), given)


def test_an_input_of_another_size() -> None:
    model = network()
    with pytest.raises(ShapeError, match=r"^x: the model does not run on it"):
        convfc.verify(model, fc_of(model), reals((1, 2, 6, 5)))


def test_another_kind_of_model() -> None:
    model = network()
    with pytest.raises(UnsupportedModel, match=r"^after: this is not a model that convfc"):
        convfc.verify(model, model.SerializeToString(), reals(X))


def test_verify_leaves_both_as_they_were() -> None:
    model = trained(network())
    fc = fc_of(model)
    kept = [one.SerializeToString(deterministic=True) for one in (model, fc)]
    convfc.verify(model, fc, reals(X))
    assert [one.SerializeToString(deterministic=True) for one in (model, fc)] == kept
    ours, theirs = ir.from_proto(model), ir.from_proto(fc)
    assert convfc.verify(ours, theirs, reals(X)).holds
    assert [ir.to_proto(one).graph.node for one in (ours, theirs)] == [
        one.graph.node for one in (model, fc)
    ]


# inspect.


def test_inspect_lists_every_layer() -> None:
    model, x = network(), reals(X)
    for one, form in ((model, "native"), (fc_of(model), "patch")):
        found = convfc.inspect(one)
        assert [(row.name, row.form) for row in found.rows] == [
            (n, form) for n in ("one", "c", "up")
        ]
        assert found.parameters == 3 * 4 * 9 + 4 + 4 * 2 * 9 + 4 * 2 * 4
        assert found.model_parameters == found.parameters + 4 * 4
        ran = convfc.inspect(one, x)
        assert [row.input_size for row in ran.rows] == [(6, 5), (6, 5), (3, 3)]
        assert [row.output_size for row in ran.rows] == [(6, 5), (3, 3), (6, 6)]
        assert ran.rows[1].geometry.padding == ((0, 1), (1, 1))


def test_inspect_says_what_cannot_be_converted() -> None:
    found = convfc.inspect(unread(reals((2, 3, 3, 3))))
    assert [bool(row.reason) for row in found.rows] == [False, True]
    assert "output_shape is given" in str(found)
