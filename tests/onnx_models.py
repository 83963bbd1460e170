"""Small ONNX models of one CONV node: of a geometry, or of attributes; and how they are run."""

from __future__ import annotations

import importlib
import math
import pathlib
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import helper, numpy_helper
from onnx.backend.test.case import node as own_cases

from convfc import ConvGeometry

if TYPE_CHECKING:
    from onnx.backend.test.case.test_case import TestCase

Weights = Literal["initializer", "input", "constant", "computed", "given"]
"""Where a node's weights come from: an initializer, one that users may replace as well, a Constant
node, other nodes, or a user at every run."""


def conv_model(
    op: str,
    x_shape: Sequence[int | str | None],
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    opset: int = 22,
    weights: Weights = "initializer",
    **attributes: Any,
) -> onnx.ModelProto:
    """Return a model of one node named ``conv``, x to y, in the oldest IR that has the opset."""
    arrays = {"W": weight} | ({} if bias is None else {"B": bias})
    kind = helper.np_dtype_to_tensor_dtype(weight.dtype)
    node = helper.make_node(op, ["x", *arrays], ["y"], name="conv", doc_string="it", **attributes)
    nodes, initializers = [node], []
    inputs = [helper.make_tensor_value_info("x", kind, x_shape)]
    for name, array in arrays.items():
        tensor = numpy_helper.from_array(array, name)
        info = helper.make_tensor_value_info(name, kind, array.shape)
        if weights == "constant":
            nodes.insert(0, helper.make_node("Constant", [], [name], f"{name}.node", value=tensor))
        elif weights == "computed":
            half = numpy_helper.from_array(array / 2, f"{name}/2")
            nodes.insert(0, helper.make_node("Add", [half.name] * 2, [name], f"{name}.node"))
            initializers.append(half)
        if weights in ("initializer", "input"):
            initializers.append(tensor)
        if weights in ("input", "given"):
            inputs.append(info)
    output = helper.make_tensor_value_info("y", kind, [None] * len(x_shape))
    graph = helper.make_graph(nodes, "network", inputs, [output], initializers, doc_string="graph")
    return model_of(graph, opset, max(4, oldest_ir(opset)))


def oldest_ir(opset: int) -> int:
    """Return the oldest version of the IR that has an opset."""
    return helper.find_min_ir_version_for([helper.make_opsetid("", opset)])


def model_of(graph: onnx.GraphProto, opset: int, ir_version: int = 10) -> onnx.ModelProto:
    """Return a valid model of a graph, with metadata."""
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(
        graph,
        opset_imports=opsets,
        ir_version=ir_version,
        producer_name="tests",
        model_version=3,
    )
    helper.set_model_props(model, {"author": "a test"})
    onnx.checker.check_model(model, full_check=True)
    return model


def attributes_of(geometry: ConvGeometry) -> dict[str, Any] | None:
    """Return op and attributes of a geometry; None if ONNX has no such node."""
    g = geometry
    if g.flip or g.padding_mode != "zeros":
        return None
    lows, highs = zip(*g.padding, strict=True)
    found = {
        "op": "Conv" + "Transpose" * g.transposed,
        "kernel_shape": g.kernel_size,
        "strides": g.stride,
        "pads": [*lows, *highs],
        "dilations": g.dilation,
        "group": g.groups,
    }
    return found | ({"output_padding": g.output_padding} if g.transposed else {})


def weight_of(filters: np.ndarray, geometry: ConvGeometry) -> np.ndarray:
    """Return filters ``(f, *kernel, c / g)`` as a node has them."""
    weight = np.moveaxis(filters, -1, 1)  # (f, c / g, *kernel)
    if geometry.transposed:  # (c, f / g, *kernel)
        filters = len(weight) // geometry.groups
        weight = weight.reshape(geometry.groups, filters, *weight.shape[1:])
        weight = weight.swapaxes(1, 2).reshape(-1, filters, *geometry.kernel_size)
    return np.ascontiguousarray(weight)


def integers(shape: Sequence[int], dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    """-3 to 3, odd ones more often: sums of many thousands are exact in float32."""
    return np.random.default_rng([seed, math.prod(shape)]).integers(-3, 4, shape).astype(dtype)


def network() -> onnx.ModelProto:
    """Three CONV nodes, of which one has no name and one is between others, and a BatchNorm."""
    arrays = {
        "one.weight": integers((4, 3, 3, 3)),
        "one.bias": integers((4,)),
        "one.s": integers((4,), seed=4),  # of another node than "one"
        **{name: integers((4,), seed=ord(name)) for name in "bm"},
        "v": np.full(4, 4.0, np.float32),
        "two.weight": integers((4, 2, 3, 3), seed=1),
        "up.weight": integers((4, 2, 2, 2), seed=2),
    }
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "one.weight", "one.bias"], ["a"], "one", "first", pads=[1] * 4),
        node("BatchNormalization", ["a", "one.s", *"bmv"], ["n"], "norm", epsilon=0.0),
        node("Relu", ["n"], ["r"], "relu"),
        node("Conv", ["r", "two.weight"], ["c"], group=2, auto_pad="SAME_UPPER", strides=[2, 2]),
        node("Add", ["c", "c"], ["d"], "twice"),
        node("ConvTranspose", ["d", "up.weight"], ["y"], "up", strides=[2, 2]),
    ]
    for one in (nodes[0], nodes[2]):
        entry = one.metadata_props.add()
        entry.key, entry.value = "namespace", f"model/{one.name}"
    shapes = {"a": (1, 4, "h", "w"), "c": (1, 4, None, None)}
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", 1, (1, 3, "h", "w"))],
        [helper.make_tensor_value_info("y", 1, (1, 2, None, None))],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
        value_info=[
            helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes.items()
        ],
    )
    return model_of(graph, 17)


def run(model: onnx.ModelProto | ir.Model, *arrays: np.ndarray) -> list[np.ndarray]:
    """Return what onnxruntime makes of a model's inputs; its optimisations are left out.

    They are onnxruntime's business: what is compared is what the files say.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    given = session.get_inputs() + session.get_overridable_initializers()
    names = [one.name for one in given][: len(arrays)]
    return session.run(None, dict(zip(names, arrays, strict=True)))


def plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """All that a model says, but for the order of its initializers and their shapes said twice."""
    found = onnx.ModelProto.FromString(model.SerializeToString())
    initializers = sorted(model.graph.initializer, key=lambda tensor: tensor.name)
    names = {tensor.name for tensor in initializers}
    del found.graph.initializer[:], found.graph.value_info[:]
    found.graph.initializer.extend(initializers)
    found.graph.value_info.extend(one for one in model.graph.value_info if one.name not in names)
    return found


def conv_cases() -> list[TestCase]:
    """Return ONNX's own cases of single operators, of those of its files that name a Conv.

    A file computes its cases when it is imported; all of them take seconds.
    """
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # they compute overflows, too
        for file in sorted(pathlib.Path(own_cases.__file__).parent.glob("*.py")):
            if "Conv" in file.read_text("utf-8"):
                importlib.import_module(f"{own_cases.__name__}.{file.stem}")
    return list(own_cases._NodeTestCases)
