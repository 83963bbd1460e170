"""verify for ONNX: onnxruntime runs both models, and each CONV layer apart, on what it receives.

In float64, for which onnxruntime has no CONV, the CONV node is computed by its definition. (ONNX's
own reference computes transposed layers of several groups wrong: onnx 1.23.)
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from convfc.extras import needing

with needing():
    import onnxruntime  # type: ignore[import-untyped]

from convfc.algorithm1 import conv_as_matmul
from convfc.certificate import LayerCertificate, WeightComparison
from convfc.comparing import (
    compare,
    describe,
    dtype_name,
    is_floating,
    same_bits,
    wide,
    words,
)
from convfc.errors import ArgumentError, ShapeError
from convfc.frameworks.onnx import forms, read
from convfc.frameworks.onnx.build import PART, Sizes
from convfc.frameworks.onnx.matrices import filters_of
from convfc.measure import LARGEST, Call, Numbers, Run, Side, Sides, Sums, measure
from convfc.networks import Networks
from convfc.places import walk
from convfc.rounding import UNIT_ROUNDOFF

Array: TypeAlias = npt.NDArray[Any]
_SMALL = 1024
"""Bytes of an initializer that goes with the model; a larger one stays where it is in memory."""
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
PAIRED = "convfc.paired"
"""Mark of a product where the other model has a CONV layer."""
_CHANGED = "its nodes are not those that to_fc made; expected them, got others"


def session(
    model: onnx.ModelProto,
    folder: str = "",
    held: Mapping[str, Array] | None = None,
    *,
    once: bool = False,
) -> onnxruntime.InferenceSession:
    """Return what runs a model, perhaps but once; data beside its file are in that folder.

    Arrays that are held for initializers are used where they are, and not copied.
    """
    options = onnxruntime.SessionOptions()
    if once:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_cpu_mem_arena = False
    # Threads that wait for more work would take the cores from NumPy's.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # what goes wrong is raised, too
    if folder:
        options.add_session_config_entry(_DATA_FOLDER, folder)
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in (held or {}).values()]
    options.add_external_initializers(list(held or {}), values)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(model: ir.Model, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return the outputs of a model by name."""
    model = model.clone()
    held: dict[str, Array] = {}
    folders = set()
    for name, value in model.graph.initializers.items():
        t = value.const_value
        folders |= {str(t.base_dir)} if isinstance(t, ir.ExternalTensor) else set()
        dtype = np.dtype(object) if t is None else t.dtype.numpy()
        plain = dtype.kind == "f" and dtype.isbuiltin == 1 and value.uses()  # integers are shapes
        if t is not None and plain and t.nbytes > _SMALL:
            held[name] = np.asarray(t.numpy(), order="C")
            shape = ir.Shape(held[name].shape)
            value.const_value = ir.ExternalTensor(
                "held", 0, t.nbytes, t.dtype, shape=shape, name=name
            )
    running = session(ir.to_proto(model), next(iter(folders), ""), held)
    names = [one.name for one in running.get_outputs()]
    return dict(zip(names, running.run(names, dict(inputs)), strict=True))


def watched(
    model: ir.Model, nodes: Iterable[ir.Node], inputs: Mapping[str, Array], where: str = "x"
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Run a model once; return all that its CONV layers receive, by name, and its outputs."""
    copied = model.clone()
    copies = dict(zip(model.graph, copied.graph, strict=True))
    outputs = [value.name or "" for value in copied.graph.outputs]
    seen = {*outputs, *inputs}
    for node in nodes:
        parts = _parts_of(copies[node]) if node in copies else None
        given = (parts.x, parts.weight, parts.bias, *parts.others.values()) if parts else ()
        for value in given:
            if value and value.name not in seen and read.constant(value) is None:
                seen.add(value.name or "")
                copied.graph.outputs.append(value)
    try:
        found = {**inputs, **run(copied, inputs)}
    except Exception as error:  # of onnxruntime, whose classes are private
        raise ShapeError(
            f"the model does not run on it ({words(error)})",
            where=where,
            got=", ".join(f"{name} {describe(array)}" for name, array in inputs.items()),
            remedy="give what the model is called with, in a dtype that onnxruntime convolves",
        ) from error
    return found, {name: found[name] for name in outputs}


class OnnxNetworks(Networks):
    """Two models on one input."""

    def __init__(self, before: ir.Model, x: Any) -> None:
        self.inputs = as_inputs(before, x)

    def __call__(self, model: Any, numbers: Numbers | None = None) -> Any:
        """Return the outputs of a model by name; nothing in other numbers."""
        return run(model, self.inputs) if numbers is None else {}

    def measure(
        self, model: Any, pairs: Sequence[Any], seed: int
    ) -> tuple[Any, list[LayerCertificate]]:
        """Run a model once, with what its CONV nodes receive as outputs, and compare each pair."""
        found, outputs = watched(model, [pair.before for pair in pairs], self.inputs)
        layers: list[LayerCertificate] = []
        for pair in pairs:
            call = pair.call(model, found)
            layers += (
                pair.unreached(seed) if call is None else [measure(pair.on(call)[0], seed=seed)]
            )
        return outputs, layers

    def leaves(self, output: Any) -> dict[str, Any]:
        """Return the outputs by name."""
        return {f"[{name!r}]": value for name, value in output.items()}

    def dtypes(self, model: Any) -> set[str]:
        """Return the dtypes of inputs, outputs and weights, of numbers that are not integers."""
        values = [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]
        names = {dtype_name(one.dtype.numpy()) for one in values if one.dtype is not None}
        return names & UNIT_ROUNDOFF.keys()

    def tensors(self, model: Any) -> Mapping[str, Array]:
        """Return the initializers, but for those that only CONV layers use."""
        found = {}
        for number, graph in enumerate(model.graphs()):
            inner = f" of inner graph {number}" if number else ""
            for name, value in graph.initializers.items():
                users = [use.node for use in value.uses()]
                if not (users and _of_layers(users)) and value.const_value is not None:
                    found[f"initializer {name}{inner}"] = value.const_value.numpy()
        return found

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Run without the warnings of the reference's arithmetic."""
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield


def as_inputs(model: ir.Model, x: Any, where: str = "x") -> dict[str, Array]:
    """Return what a model is run on, by the names of its inputs."""
    free = [value.name or "" for value in model.graph.inputs if not value.is_initializer()]
    many = x if isinstance(x, (tuple, list)) else [x]
    given = dict(x) if isinstance(x, Mapping) else dict(zip(free, many, strict=False))
    known = {value.name for value in model.graph.inputs}
    if not set(free) <= set(given) <= known:
        raise ArgumentError(
            "these are not the model's inputs",
            where=where,
            expected=", ".join(free),
            got=", ".join(given) or "none",
            remedy="give a mapping from names to arrays, or one array for the only input",
        )
    return {name: np.asarray(value) for name, value in given.items()}


def other_nodes(before: ir.Model, after: ir.Model) -> list[str]:
    """Say in words which nodes outside the CONV layers are others, or of another opset."""
    ours, theirs = (dict(_described(model)) for model in (before, after))
    found = []
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        mine, other = (side.get(name, "none") for side in (ours, theirs))
        if mine != other:
            found.append(f"{name}; expected {mine}, got {other}")
    return found


def _described(model: ir.Model) -> Iterator[tuple[str, str]]:
    """Yield every node outside CONV layers by its place, with all that it computes in words."""
    for name, part in {"the model": model, **read.children(model)}.items():
        if isinstance(part, (ir.Model, ir.Function)):
            yield f"opsets of {name}", str(dict(part.opset_imports))
    for place, node in walk(model, read.children).items():
        if not isinstance(node, ir.Node) or _of_layers([node]):
            continue
        users = [use.node for use in node.outputs[0].uses()]
        if node.op_type == "Constant" and users and _of_layers(users):
            continue  # a weight
        given = ", ".join("" if one is None else one.name or "" for one in node.inputs)
        made = ", ".join(one.name or "" for one in node.outputs)
        settings = {
            key: one.value
            for key, one in node.attributes.items()
            if one.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        }
        shown = ", ".join(f"{key}={_in_words(value)}" for key, value in settings.items())
        yield f"node {place}", f"{made} = {node.domain}{node.op_type}({given}; {shown})"


def _of_layers(nodes: Iterable[ir.Node]) -> bool:
    """Say whether all nodes are layers that are compared, or belong to some."""
    return all(
        (read.form_of(node) and not is_unread(node))
        or PART in node.metadata_props
        or PAIRED in node.meta
        for node in nodes
    )


def is_unread(node: ir.Node) -> bool:
    """Say whether a node is a CONV node that convfc cannot read, and so does not compare."""
    native = read.form_of(node) == "native" and read.RECORD not in node.metadata_props
    return native and read.unreadable(node, Sizes()) is not None


def _in_words(value: Any) -> str:
    """Return an attribute, of a tensor what tells it from others."""
    if isinstance(value, ir.TensorProtocol):
        return f"{value.shape} {value.dtype} {hashlib.sha256(value.tobytes()).hexdigest()[:16]}"
    return str(value)


@dataclass(frozen=True, eq=False)
class NodePair:
    """A place of both models; their values have the sizes that are known of them."""

    name: str
    before: ir.Node
    after: ir.Node
    reshapes = False

    @property
    def called(self) -> ir.Node:
        """The node of the first model."""
        return self.before

    @property
    def forms(self) -> tuple[str, str]:
        """What the layer is before and after, in one word each."""
        first, second = (read.form_of(one) or one.op_type for one in (self.before, self.after))
        return first, second

    def call(self, model: ir.Model, found: Mapping[str, Array]) -> Call | None:
        """Return the layer's input among the values of a run; None if it is not among them."""
        parts = _parts_of(self.before)
        if parts is None or self.before.graph is not model.graph or parts.x.name not in found:
            return None
        return Call(found[parts.x.name or ""], kwargs=found)

    def on(self, call: Call) -> list[Sides]:
        """Return the pair on one input, for `measure`."""
        return [NodeSides(self, call)]

    def unreached(self, seed: int) -> list[LayerCertificate]:
        """Compare a pair inside another node's graph, or in a function, on random numbers."""
        parts = _parts_of(self.before)
        if parts is None:
            return [LayerCertificate(self.name, self.forms, errors=(_CHANGED,))]
        layer = read.read(parts.conv, Sizes())
        g, rng = layer.geometry, np.random.default_rng(seed)
        extents = [extent + 3 for extent in g.effective_kernel_size]
        shape = Sizes().shape(parts.x) or (None,) * (2 + len(extents))
        smallest = [1, *extents, *extents][: len(shape) - 1]
        smallest.insert(parts.axis, g.in_channels)
        size = tuple(n or small for n, small in zip(shape, smallest, strict=True))
        same: tuple[ir.Value | None, ...] = (parts.weight, parts.bias, parts.x)
        if layer.is_quantised:
            same = (parts.x, parts.others.get("x_zero_point"))
        dtype = _dtype_of(*same, default="uint8" if layer.is_quantised else "float32")
        shapes = {value: Sizes().shape(value) or () for value in parts.others.values()}
        shapes |= {parts.x: size, parts.weight: layer.weight_shape}
        if parts.bias is not None:
            shapes[parts.bias] = (g.out_channels,)
        drawn = {
            value.name or "": _random(shape, _dtype_of(value, default=dtype), rng)
            for value, shape in shapes.items()
            if read.constant(value) is None
        }
        note = f"in an inner graph, so compared on random numbers of shape {size}"
        call = Call(drawn[parts.x.name or ""], kwargs=drawn)
        return [measure(one, seed=seed, notes=(note,)) for one in self.on(call)]


def _parts_of(node: ir.Node) -> forms.Parts | None:
    """Return what a layer is made of, if it is one, and convfc can read it."""
    return None if is_unread(node) else forms.parts_of(node)


def _random(shape: Sequence[Any], dtype: Any, rng: np.random.Generator) -> Array:
    """Return random numbers; of integers, all that the dtype has."""
    if np.issubdtype(dtype, np.integer):
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, shape, dtype, endpoint=True)
    return rng.standard_normal(shape).astype(dtype)


def _dtype_of(*values: ir.Value | None, default: Any) -> Any:
    for value in values:
        tensor = None if value is None else ir.convenience.get_const_tensor(value)
        if tensor is not None:
            return tensor.numpy().dtype
        if value is not None and value.dtype is not None:
            return value.dtype.numpy()
    return np.dtype(default)


class NodeSides(Sides):
    """The two layers of a pair on one input, each run apart from its model."""

    def __init__(self, pair: NodePair, call: Call) -> None:
        self.name, self.forms = pair.name, pair.forms
        self.call = replace(call, kwargs={})
        self.errors = []
        self.same: list[str] = []  # weights of the same bits in the same order
        nodes = (pair.before, pair.after)
        self.layers = [_Layer(node, call.kwargs) for node in nodes if _parts_of(node)]
        if len(self.layers) < len(nodes):
            self.errors.append(_CHANGED)
        else:
            self.weights = tuple(self._compared_weights())
            ours, theirs = (layer.outside for layer in self.layers)
            self.errors += [
                f"its {role}; expected {ours.get(role)}, got {theirs.get(role)}"
                for role in {**ours, **theirs}
                if ours.get(role) != theirs.get(role)
            ]
            for node in nodes:
                if read.form_of(node) == "unrolled":
                    refusal = forms.back_obstacle(node)
                    self.errors += [] if refusal is None else [refusal.reason]
        self.reference = min(self.layers, key=lambda one: one.form != "native")
        if any(scale % 1 for layer in self.layers for scale in layer.scales):
            self.why_no_integers = "alpha and beta are not integers"

    def made(self, numbers: Numbers | None) -> tuple[Side, Side]:
        """Return both layers, with other numbers if some are given."""
        if len(self.layers) < len(self.forms):
            raise ValueError(_CHANGED)
        first, second = self.layers
        held = first.numbers(numbers)
        same = {name: held[name] for name in self.same if name in held}
        theirs = second.numbers(numbers, same)
        return partial(first.run, held=held), partial(second.run, held=theirs)

    def parameters(self) -> Iterable[tuple[str, Array]]:
        """Return the weights of both layers, by name."""
        return [item for layer in self.layers for item in layer.held.items()]

    def sums(self, x: Array, dy: Array | None) -> Sums:
        """B is the layer on absolute values; what rounding may take from it is added again.

        Sums of integers are not rounded, and any B will do.
        """
        layer = self.reference
        largest = int(np.ceil(np.abs(layer.scales).max()))
        terms = (layer.geometry.taps + ("bias" in layer.held) + largest) * max(1, largest)
        if not is_floating(x):
            return {"output": (wide(layer.run(x).output), terms)}
        sizes = _sizes if x.dtype == np.float32 else _wide_sizes  # float32 is faster
        b = sizes(layer.run(sizes(x), layer.numbers(sizes), alike=True).output)
        return {"output": (wide(b) * (1 + 2 * terms * UNIT_ROUNDOFF["float32"]), terms)}

    def integers(self, longest: int, limit: float) -> Iterable[int]:
        """Return how large integers may be so that such sums are within the limit."""
        room = min(limit / longest, LARGEST**2)
        return [] if room < 1 else [2 ** int(np.log2(room) / 2)]

    def on_integers(self, numbers: Numbers, x: Array, limit: float) -> tuple[Side, Side]:
        """Return both layers on integers."""
        return self.made(numbers)

    def matrices(self, y: Array) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of M and K."""
        g, batch = self.reference.geometry, len(y) if y.ndim > 1 else 1
        positions = y.size // max(1, batch * g.out_channels)
        return (batch, positions, g.groups * g.taps), g.filter_matrix_shape

    def _compared_weights(self) -> Iterator[WeightComparison]:
        """Compare weight and bias bit by bit, in the CONV node's shape."""
        ours, theirs = (layer.in_conv_layout() for layer in self.layers)
        for name in dict.fromkeys([*ours, *theirs]):
            mine, other = ours.get(name), theirs.get(name)
            if describe(mine) != describe(other):
                self.errors.append(f"its {name}; expected {describe(mine)}, got {describe(other)}")
            elif mine is not None and other is not None:
                same = same_bits(mine, other)
                first = (slice(0, 1 if same else None),) * mine.ndim  # one says that all are
                result = compare(mine[first], other[first], None)
                del result["ratio"], result["bound"]
                yield WeightComparison(name, same, **result)
                raw = [layer.held[name].reshape(-1) for layer in self.layers]
                if same and same_bits(*raw):
                    self.same.append(name)


class _Layer:
    """A CONV node, or the nodes of an FC layer, as a model of its own: its weights are inputs."""

    def __init__(self, node: ir.Node, given: Mapping[str, Array]) -> None:
        parts = forms.parts_of(node)
        assert parts is not None  # noqa: S101 (it is asked before)
        self.node, self.form = node, read.form_of(node)
        known, x = Sizes(), given.get(parts.x.name or "")
        if x is not None and parts.conv.inputs[0] is not None:
            known = known.with_shape(parts.conv.inputs[0], x.shape)
        self.layer = read.read(parts.conv, known)
        self.geometry = self.layer.geometry
        self.names = {"x": parts.x.name or "x"}
        self.outside = {"input": parts.x.name, "output": node.outputs[0].name}
        self.scales = parts.scales
        self.held: dict[str, Array] = {}
        held = {"weight": parts.weight, "bias": parts.bias, **parts.others}
        for name, value in held.items():
            if value is not None:
                tensor = read.constant(value)
                self.names[name] = value.name or name
                self.outside |= {name: value.name} if tensor is None else {}
                self.held[name] = given[value.name or ""] if tensor is None else tensor.numpy()
        self._nodes = [ir.to_proto(one) for one in parts.nodes]
        self._output = node.outputs[0].name or "y"
        self._opset = node.version or 1
        self._made: dict[str, Any] = {}

    def in_conv_layout(self) -> dict[str, Array]:
        """Return weight and bias as the CONV node has them."""
        return {name: forms.in_conv_layout(self.node, name, w) for name, w in self.held.items()}

    def numbers(
        self, numbers: Numbers | None, known: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """Return weight and bias in other numbers, some of which are known in another shape."""
        if numbers is None or self.layer.is_quantised:
            return self.held
        known = known or {}
        return {
            name: known[name].reshape(w.shape) if name in known else numbers(w)
            for name, w in self.held.items()
        }

    def run(self, x: Array, held: Mapping[str, Array] | None = None, *, alike: bool = False) -> Run:
        """Run it, perhaps with other numbers for weight and bias, or all terms of one sign."""
        given = {"x": x, **(self.held if held is None else held)}
        if alike and "bias" in given and np.prod(self.scales) < 0:
            given["bias"] = -given["bias"]
        inputs = {self.names[name]: np.asarray(array) for name, array in given.items()}
        dtype = dtype_name(x.dtype)
        if dtype not in self._made:
            self._made[dtype] = self._model(inputs)
        (output,) = self._made[dtype].run(None, inputs)
        return Run(output)

    def _model(self, inputs: Mapping[str, Array]) -> Any:
        """Return what runs it in the dtype of these inputs."""
        kinds = {n: helper.np_dtype_to_tensor_dtype(array.dtype) for n, array in inputs.items()}
        infos = [
            helper.make_tensor_value_info(
                name, kinds[name], [None] * array.ndim if name == self.names["x"] else array.shape
            )
            for name, array in inputs.items()
        ]
        kind = made = kinds[self.names["x"]]
        whole = kind in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
        if whole:
            made = kinds.get(self.names.get("y_zero_point", ""), onnx.TensorProto.INT32)
        output = helper.make_tensor_value_info(self._output, made, None)
        nodes = [one if whole else _in_dtype(one, kind) for one in self._nodes]
        graph = helper.make_graph(nodes, "layer", infos, [output])
        opset = helper.make_opsetid("", self._opset)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
        if self.form in ("native", "2-D") and kind != onnx.TensorProto.FLOAT and not whole:
            return ReferenceEvaluator(model, new_ops=_DEFINED)
        return session(model, once=True)


class _Defined(OpRun):
    """A CONV node by its definition, as the dtypes need it that onnxruntime does not convolve."""

    def _run(self, x: Array, weight: Array, bias: Array | None = None, **_: Any) -> tuple[Array]:
        shapes = (ir.Value(name="", shape=ir.Shape(array.shape)) for array in (x, weight))
        attributes = map(ir.serde.deserialize_attribute, self.onnx_node.attribute)
        node = ir.Node("", self.onnx_node.op_type, [*shapes], attributes)
        g = read.read(node, Sizes()).geometry
        y = conv_as_matmul(np.moveaxis(x, 1, -1), filters_of(weight, g), g, bias)
        return (np.moveaxis(y, -1, 1),)


_DEFINED = [type(name, (_Defined,), {}) for name in ("Conv", "ConvTranspose")]


def _in_dtype(node: onnx.NodeProto, kind: int) -> onnx.NodeProto:
    """Return a node whose constant, if it is no integer, has another dtype."""
    if node.op_type != "Constant" or not node.attribute[0].HasField("t"):
        return node
    numbers = onnx.numpy_helper.to_array(node.attribute[0].t)
    if numbers.dtype.kind == "i":
        return node
    numbers = numbers.astype(helper.tensor_dtype_to_np_dtype(kind))
    value = onnx.numpy_helper.from_array(numbers)
    return helper.make_node("Constant", [], node.output, name=node.name, value=value)


def _sizes(t: Array) -> Array:
    found: Array = np.abs(t)
    return found


def _wide_sizes(t: Array) -> Array:
    return _sizes(wide(t))
