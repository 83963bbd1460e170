"""A whole CONV network of Keras as a plain MLP: Dense, ReLU, and Add where there are branches.

What is done with a network once it is read is in `convfc.mlp`; here it is read, layer by layer
along its graph (`operations` says what each layer does), and made of Keras's own layers.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from scipy import sparse

from convfc.extras import needing

with needing():
    import keras

from convfc.errors import ShapeError, UnsupportedModel
from convfc.frameworks.keras import models
from convfc.frameworks.keras.backend import compiled, wide_numbers
from convfc.frameworks.keras.copies import check_is_graph, copied, input_layers, is_graph, unchanged
from convfc.frameworks.keras.operations import Step, activation_of, made_of
from convfc.frameworks.keras.parts import CONVS
from convfc.frameworks.keras.read import numbers, read_in_turn, spatial_size
from convfc.mlp.budget import check_least, check_memory, memory_explained
from convfc.mlp.simplified import (
    ATTRIBUTE,
    MaxPool,
    Options,
    Programs,
    Simplified,
    options_for,
    programs_of,
    record_of,
)
from convfc.mlp.values import (
    Affine,
    Input,
    Program,
    Relu,
    Tracked,
    Value,
    check_as_made,
    is_chain,
    is_identity,
    refuse,
    topological,
)
from convfc.operators.estimate import MatrixEstimate, check_together, pattern_estimate
from convfc.operators.pattern import matrix_pattern
from convfc.places import Where, check_as_a_whole, nothing_to_convert

L = keras.layers
Parts: TypeAlias = dict[Value, dict[Value | None, str]]


def simplify(
    model: Any,
    example: Any,
    *,
    max_pool: MaxPool = "keep",
    sequential: bool = False,
    memory: float | None = None,
) -> Any:
    """Return a CONV network as a plain MLP that computes the same; see `convfc.simplify`."""
    options = options_for(model, max_pool, sequential=sequential)
    check_is_graph(model)
    dtype = dtype_of(model)
    found = read(model, example, options, memory)
    if _is_simple(model, found):
        raise nothing_to_convert("layer other than Dense and ReLU", None, ())
    name = str(model.inputs[0].name) if isinstance(model, keras.Model) else None
    made, _ = build(found.final, dtype, name, memory)
    original = found.original
    record = Simplified(copied(model), original.input_shape, dtype, options, original.signature)
    vars(made)[ATTRIBUTE] = record
    return made


def whole_back(model: Any, where: Where, *, inplace: bool) -> Any | None:
    """Return the CONV network that an unchanged simplified network was; None of others."""
    record = record_of(model)
    if record is None:
        return None
    check_as_a_whole(where, inplace=inplace)
    x = np.zeros((1, *record.shape), _numpy_name(record.dtype))
    found = read(record.original, x, record.options)
    again, _ = build(found.final, record.dtype, input_layers(model)[0].name)
    check_as_made(other_parts(again, model))
    return copied(record.original)


def other_parts(again: Any, after: Any) -> Iterator[str]:
    """Yield, in words, what a simplified network has other than when it is made again."""
    ours, theirs = ({part.name: part for part in model.layers} for model in (again, after))
    for name in ours | theirs:
        kinds = [type(side[name]).__name__ if name in side else "none" for side in (ours, theirs)]
        if kinds[0] != kinds[1]:
            yield f"{name}; expected {kinds[0]}, got {kinds[1]}"
            continue
        weights, others = ours[name].weights, theirs[name].weights
        if len(weights) != len(others):
            yield f"{name}; expected {len(weights)} weights, got {len(others)}"
            continue
        for mine, other in zip(weights, others, strict=True):
            mine_, other_ = _rounded(numbers(mine), other.dtype), numbers(other)
            if mine_.shape != other_.shape or mine_.tobytes() != other_.tobytes():
                yield f"{name}; expected the numbers of {mine.name} that it had, got others"
    if _calls(again) != _calls(after):
        yield "its calls; expected those of the same network made again, got others"


def _rounded(array: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    """Return numbers as a variable of a dtype holds them, in `numbers`."""
    narrow = array.astype(_numpy_name(dtype))
    return numbers(keras.ops.cast(narrow, dtype)) if dtype == "bfloat16" else narrow


def _calls(model: Any) -> Any:
    """Return which layer is called on what, in a form that can be compared."""
    layers = model.get_config()["layers"]
    if isinstance(model, keras.Sequential):
        return [layer["config"]["name"] for layer in layers]
    return [
        (layer["name"], re.findall(r"'keras_history': (\[.*?\])", str(layer["inbound_nodes"])))
        for layer in layers
    ]


# Reading ------------------------------------------------------------------------------------------


def _one_input(model: Any, example: Any) -> Any:
    """Return the one array of an example."""
    given = keras.tree.flatten(example)
    shapes = [tuple(getattr(x, "shape", ())) for x in given]
    inputs = model.inputs if isinstance(model, keras.Model) else given
    if len(given) != 1 or len(inputs) != 1 or len(shapes[0]) < 2 or shapes[0][0] < 1:
        raise ShapeError(
            "the sizes of the FC layers follow from one input",
            where="example",
            expected="one array (n, *shape), n >= 1, of a model with one input",
            got=", ".join(map(str, shapes)) or "nothing",
            remedy="give an input as the model is called with, in a batch of one or more",
        )
    if len(inputs[0].shape) != len(shapes[0]):
        raise ShapeError(
            "the example has another number of axes than the model's input",
            where="example",
            expected=tuple(inputs[0].shape),
            got=shapes[0],
            remedy="give it all axes of the input",
        )
    return given[0]


def _leaves(model: Any) -> Iterator[Any]:
    if not isinstance(model, keras.Model):
        yield model
        return
    for layer in model.layers:
        yield from _leaves(layer)


def dtype_of(model: Any) -> str:
    """Return the dtype that all of a model is in."""
    leaves = [layer for layer in _leaves(model) if not isinstance(layer, L.InputLayer)]
    dtypes: dict[str, Any] = {}
    for layer in leaves:
        for dtype in (layer.compute_dtype, *(w.dtype for w in layer.trainable_variables)):
            dtypes.setdefault(str(dtype), layer)
    if len(dtypes) > 1:
        first, *others = dtypes
        raise refuse(
            f"it computes with {others[0]} and others with {first}: numbers are rounded between "
            "them",
            f"layer {dtypes[others[0]].name}",
            "give all layers one dtype policy",
        )
    return next(iter(dtypes), keras.config.floatx())


def _numpy_name(dtype: str) -> str:
    return "float32" if dtype == "bfloat16" else dtype


def _itemsize(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def read(model: Any, example: Any, options: Options, memory: float | None = None) -> Programs:
    """Run a model on an example, read it as values, and merge them."""
    x = _one_input(model, example)
    shape = _checked_run(model, x, memory)
    walk = _Reading(tuple(map(int, x.shape[1:])), options.max_pool, memory)
    with memory_explained():
        with wide_numbers():
            end = walk.through(model, walk.made[:1])
        if not isinstance(end, Tracked):
            raise _not_one(end)
        if shape != (x.shape[0], *end.shape):
            raise refuse("its output has another shape than what was read of it", "model")
        original = walk.program(end)
        check_least(original, _itemsize(dtype_of(model)), memory)
        return programs_of(original, options)


def values(model: Any, x: Any) -> list[Any]:
    """Return what the calls of a model that was read make of its input, as ``tensors`` has it."""

    def call(x: Any) -> list[Any]:
        walk = _Running([x])
        walk.through(model, [x])
        return walk.made

    x = keras.ops.cast(models.as_inputs(model, x), dtype_of(model))
    found: list[Any] = compiled(model, call)(x)
    return found


def _not_one(end: Any) -> UnsupportedModel:
    return UnsupportedModel(
        "it does not return one tensor that depends on its input",
        where="model",
        expected="one tensor",
        got=type(end).__name__,
        remedy="make a keras.Model of its input and the one output",
    )


def _checked_run(model: Any, x: Any, memory: float | None) -> tuple[int, ...] | None:
    """Return the shape of the output, after a look at how large the layers' matrices will be."""
    estimates: dict[str, MatrixEstimate] = {}

    def add(name: str, estimate: MatrixEstimate) -> None:
        estimates[name + f", called as {len(estimates)}" * (name in estimates)] = estimate

    def note(layer: Any, x: Any) -> None:
        shape = tuple(map(int, x.shape))
        if isinstance(layer, L.Dense):
            rows = math.prod(shape[1:-1])
            nonzeros = rows * math.prod(layer.kernel.shape)
            sizes = (rows * layer.units, rows * shape[-1])
            add(layer.name, MatrixEstimate(sizes, nonzeros, 12 * nonzeros))
            return
        for read, size in read_in_turn(layer, spatial_size(layer, shape)):
            pattern = matrix_pattern(read.geometry, size, layer.data_format)
            add(layer.name, pattern_estimate(pattern, np.float64))

    watched = [layer for layer in _leaves(model) if isinstance(layer, (*CONVS, L.Dense))]
    with unchanged(model):
        output, calls = models.run_watched(model, watched, x, "example")
    for layer, given in calls:  # out of the compiled function, in which no layer can be read
        note(layer, given)
    check_together(
        estimates,
        memory,
        what="the matrices that the network is made of",
        remedy="a smaller example, or simplify a part of the network only; convfc.to_fc needs no "
        "such matrices",
    )
    outputs = keras.tree.flatten(output)
    if len(outputs) != 1:
        raise _not_one(output)
    return tuple(int(n) for n in outputs[0].shape)


class _Running:
    """Follows the calls of a model with its own layers, and notes all that they make."""

    def __init__(self, made: list[Any]) -> None:
        self.made = made

    def through(self, model: Any, inputs: list[Any]) -> Any:
        """Return what a model, or one layer, makes of its inputs."""
        if not isinstance(model, keras.Model):
            return self.call(model, inputs[0])
        if isinstance(model, keras.Sequential):
            (x,) = inputs
            for layer in model.layers:
                x = self.call(layer, x)
            return x
        # A graph's calls, in order. There is no public way to walk them without making new ones.
        return model._run_through_graph(inputs, call_fn=self.call)

    def call(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        """Return what one call makes of its inputs."""
        if isinstance(layer, keras.Model):
            if not is_graph(layer):
                raise refuse(f"the forward of a {type(layer).__name__} is its own", layer.name)
            leaves = keras.tree.flatten((args, kwargs))
            known = (isinstance(leaf, Tracked) or keras.ops.is_tensor(leaf) for leaf in leaves)
            return self.through(layer, list(itertools.compress(leaves, known)))
        results = self.results(layer, args, kwargs)
        self.made += keras.tree.flatten(results)
        return results[-1]

    def results(self, layer: Any, args: Any, kwargs: Any) -> list[Any]:
        """Return what a layer makes, and that after its activation."""
        activation = activation_of(layer)
        if activation is None:
            return [layer(*args, **kwargs)]
        with models.linear(layer):
            made = layer(*args, **kwargs)
        return [made, activation(made)]


class _Reading(_Running):
    """Follows them with values."""

    def __init__(self, shape: tuple[int, ...], max_pool: MaxPool, memory: float | None) -> None:
        self.start = Input(math.prod(shape))
        super().__init__([Tracked(self.start, shape)])
        self.max_pool, self.memory = max_pool, memory
        self.places: dict[Value, str] = {self.start: "the input"}
        self.signature: list[str] = []

    def results(self, layer: Any, args: Any, kwargs: Any) -> list[Any]:
        """Return what is known of a layer, by its class."""
        step = Step(layer, args, kwargs, self.max_pool, self.memory)
        if not step.inputs:
            raise refuse(f"{step.words} is called on nothing of the input", step.place)
        found = made_of(step)
        self.signature.append(type(layer).__name__)
        for one in keras.tree.flatten(found):
            self.places.setdefault(one.value, step.place)
        return found

    def program(self, end: Tracked) -> Program:
        """Return all that was read."""
        tensors: dict[Value, int] = {}
        for number, one in enumerate(self.made):
            tensors.setdefault(one.value, number)
        shapes = self.made[0].shape, end.shape
        signature = tuple(self.signature)
        return Program(self.start, end.value, *shapes, self.places, tensors, signature)


def _is_simple(model: Any, found: Programs) -> bool:
    """Say whether a model is nothing but Dense and ReLU, and no two Dense are to be one."""
    leaves = [layer for layer in _leaves(model) if not isinstance(layer, L.InputLayer)]
    dense = [layer for layer in leaves if type(layer) is L.Dense]
    plain = all(
        layer.activation in (None, keras.activations.linear, keras.activations.relu)
        for layer in dense
    ) and all(type(layer) in (L.Dense, L.ReLU) for layer in leaves)
    affine = [v for v in topological(found.final.output) if isinstance(v, Affine)]
    return plain and len(found.original.input_shape) == 1 and len(affine) == len(dense)


# Making -------------------------------------------------------------------------------------------


def build(
    program: Program, dtype: str, name: str | None = None, memory: float | None = None
) -> tuple[Any, Parts]:
    """Return the model of a program, and the names of its layers by the values they compute."""
    check_memory(program, _itemsize(dtype), memory)
    build = _Build(dtype)
    return build.model(program, name), build.parts


class _Build:
    """Makes the layers, with names of their own: ``dense_1``, ``relu_1``, ..."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.counts: dict[str, int] = {}
        self.weights: list[tuple[Any, Any, Any]] = []
        self.parts: Parts = {}

    def model(self, program: Program, name: str | None) -> Any:
        """Return the model of a program, Sequential if it is one sequence."""
        x = keras.Input(program.input_shape, name=name, dtype=self.dtype)
        if is_chain(program):
            made = keras.Sequential([x, *self._sequence(program)], name="simplified")
        else:
            made = keras.Model(x, self._graph(program, x), name="simplified")
        for layer, matrix, offset in self.weights:
            layer.kernel.assign(matrix.T.toarray().astype(_numpy_name(self.dtype)))
            if offset is not None:
                layer.bias.assign(offset.astype(_numpy_name(self.dtype)))
        return made

    def _sequence(self, program: Program) -> Iterator[Any]:
        yield from self._beginning(program)
        for value in topological(program.output):
            if isinstance(value, Affine):
                ((source, matrix),) = value.terms.items()
                yield self._dense(matrix, value.offset, value, source)
            elif value is not program.input:
                yield from self._own(value)
        yield from self._ending(program)

    def _graph(self, program: Program, x: Any) -> Any:
        for layer in self._beginning(program):
            x = layer(x)
        made: dict[Value, Any] = {program.input: x}
        for value in topological(program.output):
            if isinstance(value, Affine):
                made[value] = self._sum(value, made, program.input)
            elif value is not program.input:
                made[value] = made[value.source]  # type: ignore[attr-defined]
                for layer in self._own(value):
                    made[value] = layer(made[value])
        end = made[program.output]
        for layer in self._ending(program):
            end = layer(end)
        return end

    def _sum(self, value: Affine, made: dict[Value, Any], start: Value) -> Any:
        bias = value.offset if value.offset.any() else None
        terms = []
        for source, matrix in sorted(value.terms.items(), key=lambda term: is_identity(term[1])):
            term = made[source]
            if bias is not None or not is_identity(matrix):
                term, bias = self._dense(matrix, bias, value, source)(term), None
            terms.append(term)
        if not terms:  # a constant
            zero = sparse.csr_array((value.size, start.size))
            return self._dense(zero, value.offset, value, start)(made[start])
        return terms[0] if len(terms) == 1 else self._layer(L.Add, {})(terms)

    def _dense(self, matrix: Any, offset: Any, value: Value, source: Value) -> Any:
        """Return the FC layer of a matrix and an offset; its numbers come when it is built."""
        options = {"units": matrix.shape[0], "use_bias": offset is not None}
        # Zeros, since random numbers would be drawn for nothing.
        layer = self._layer(L.Dense, {**options, "kernel_initializer": "zeros"})
        self.weights.append((layer, matrix, offset))
        self.parts.setdefault(value, {})[source] = layer.name
        return layer

    def _own(self, value: Any) -> Iterator[Any]:
        modules = () if isinstance(value, Relu) else value.modules
        kinds = [(type(one), one.get_config()) for one in modules] or [(L.ReLU, {})]
        made = [self._layer(*kind) for kind in kinds]
        self.parts[value] = {None: " ".join(layer.name for layer in made)}
        yield from made

    def _beginning(self, program: Program) -> Iterator[Any]:
        if len(program.input_shape) != 1:
            yield self._layer(L.Flatten, {"data_format": "channels_last"})

    def _ending(self, program: Program) -> Iterator[Any]:
        if len(program.output_shape) != 1:
            yield self._layer(L.Reshape, {"target_shape": program.output_shape})

    def _layer(self, kind: Any, config: dict[str, Any]) -> Any:
        name = kind.__name__.lower()
        self.counts[name] = self.counts.get(name, 0) + 1
        own = {"name": f"{name}_{self.counts[name]}", "dtype": self.dtype, "trainable": True}
        return kind.from_config({**config, **own})
