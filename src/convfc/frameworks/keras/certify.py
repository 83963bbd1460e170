"""verify for Keras: two models on one input, their CONV layers compared one by one.

The models are called as they are, in inference mode, which changes nothing in them; FC layers
compute M K, also where PyTorch's, JAX's or TensorFlow's own convolution would. What is compared in
other numbers is made again of configuration and weights. Numbers are compared as NumPy's.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from convfc.extras import needing

with needing():
    import keras

from convfc.certificate import LayerCertificate, WeightComparison
from convfc.comparing import cast_to, compare, describe, dtype_name, same_bits, wide
from convfc.frameworks.keras import backend, forms, models, read, unrolled
from convfc.measure import LARGEST, Call, Numbers, Run, Side, Sides, Sums, measure
from convfc.networks import Networks
from convfc.places import walk

Array: TypeAlias = npt.NDArray[Any]
_NOT_PLAIN = "one side is more than a plain layer"


class KerasNetworks(Networks):
    """Models that run on one input."""

    def __init__(self, x: Any) -> None:
        self.x = x
        self.shared = set()

    def __call__(
        self,
        model: Any,
        numbers: Numbers | None = None,
        run: Callable[[Any, Any], Any] = models.run,
    ) -> Any:
        """Return the output of a model, by M K; in other numbers, of a copy of it.

        ``run`` makes something else of a model and its input.
        """
        if numbers is None:
            with self._as_compared(model):
                return run(model, self.x)
        dtype = dtype_name(numbers(np.zeros(1, np.float32)).dtype)
        with backend.precision(dtype), backend.wide_numbers():
            inputs = models.as_inputs(model, self.x)
            inputs = keras.tree.map_structure(lambda a: _cast_inputs(a, dtype), inputs)
            shared = id(model) in self.shared
            copied = model if shared else _in_dtype(model, dtype, inputs)
            with by_matrix(models.all_layers(copied)):
                output = run(copied, inputs)
            return keras.tree.map_structure(models.to_numpy, output)

    def _as_compared(self, model: Any) -> contextlib.AbstractContextManager[Any]:
        """Have a model compute M K, and in float64 if it is, of which Keras may make float32."""
        stack = contextlib.ExitStack()
        stack.enter_context(by_matrix(models.all_layers(model)))
        if self.dtypes(model) == {"float64"}:
            stack.enter_context(backend.wide_numbers())
        return stack

    def measure(
        self, model: Any, pairs: Sequence[Any], seed: int
    ) -> tuple[Any, list[LayerCertificate]]:
        """Run a model once, and compare each call of a pair.

        Not on the spot: inside a layer's call Keras casts variables to the dtype of that layer.
        """
        with self._as_compared(model):
            output, found = models.run_watched(model, [pair.called for pair in pairs], self.x)
        given: dict[int, list[Array]] = {}
        for layer, x in found:
            given.setdefault(id(layer), []).append(models.to_numpy(x))
        layers: list[LayerCertificate] = []
        for pair in pairs:
            inputs = given.pop(id(pair.called), [])
            calls = (Call(x, number=number) for number, x in enumerate(inputs))
            sides = [one for call in calls for one in pair.on(call)]
            layers += [measure(one, seed=seed) for one in sides] or pair.unreached(seed)
        return output, layers

    def leaves(self, output: Any) -> dict[str, Any]:
        """Return the arrays of an output by their place in it."""
        flat = keras.tree.flatten(output)
        names = [""] if len(flat) == 1 else [f"[{number}]" for number in range(len(flat))]
        if isinstance(output, dict):
            names = [f"[{key!r}]" for key in sorted(output)]
        return {
            name: models.to_numpy(leaf) if keras.ops.is_tensor(leaf) else leaf
            for name, leaf in zip(names, flat, strict=True)
        }

    def dtypes(self, model: Any) -> set[str]:
        """Return the dtypes in which the layers of a model compute, and hold their variables."""
        found = {one.compute_dtype for one in models.all_layers(model)}
        found |= {one.variable_dtype for one in models.all_layers(model)}
        return {name for name in found if name is not None and name.startswith(("float", "bfloat"))}

    def tensors(self, model: Any) -> Mapping[str, Array]:
        """Return the variables of all parts by the names of these, and of what holds them there.

        Not by their own: Keras numbers those anew that were given none.
        """
        found: dict[str, Array] = {}
        for place, part in walk(model, models.children).items():
            held = {id(one): name.lstrip("_") for name, one in models.held_in(vars(part))}
            for number, variable in enumerate(
                [*part._trainable_variables, *part._non_trainable_variables]
            ):
                name = f"{place}.{held[id(variable)]}" if place else held[id(variable)]
                name = f"{name}#{number}" if name in found else name
                found[name] = models.to_numpy(variable.value)
        return found

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Run without warnings: the models give theirs when their owner runs them."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                yield
            finally:
                backend.COMPILED.clear()


def _cast_inputs(array: Any, dtype: str) -> Any:
    numbers = models.to_numpy(array) if keras.ops.is_tensor(array) else array
    return numbers.astype(dtype) if "float" in dtype_name(numbers.dtype) else numbers


def _in_dtype(model: Any, dtype: str, inputs: Any) -> Any:
    """Return a copy of a model that holds and computes everything in a dtype, by default, too."""

    def changed(config: Any) -> Any:
        if isinstance(config, Mapping):
            if "DTypePolicy" in str(config.get("class_name")):
                return dtype
            if config.get("module") == "keras.initializers":
                return "zeros"  # what it would draw is not kept
            return {
                key: _dtype(key, value, dtype) or changed(value) for key, value in config.items()
            }
        return [changed(one) for one in config] if isinstance(config, (list, tuple)) else config

    with keras.saving.custom_object_scope(models.own_classes(model)):
        config = changed(keras.saving.serialize_keras_object(model))
        copied = keras.saving.deserialize_keras_object(config, safe_mode=False)
        if not copied.built:
            models.run(copied, inputs)
    for ours, theirs in zip(forms.convs_in(model), forms.convs_in(copied), strict=True):
        forms.take_form_of(theirs, ours)
    copied.set_weights(models.weights_of(model))
    return copied


def _dtype(key: str, value: Any, dtype: str) -> str | None:
    """Return the dtype if this entry of a configuration is one of numbers that are no integers."""
    is_one = key == "dtype" and isinstance(value, str) and "float" in value
    return dtype if is_one else None


@dataclass(frozen=True, eq=False)
class KerasPair:
    """A place of both models; for a layer that stands at several, the first of them."""

    name: str
    before: Any
    after: Any
    reshapes = False

    @property
    def called(self) -> Any:
        """The layer of the first model."""
        return self.before

    @property
    def forms(self) -> tuple[str, str]:
        """What the layer is before and after, in one word each."""
        sides = self.before, self.after
        first, second = (unrolled.form_of(one) or type(one).__name__ for one in sides)
        return first, second

    def on(self, call: Call) -> list[Sides]:
        """Return the pair on one input, for `measure`."""
        return [LayerSides(self, call)]

    def unreached(self, seed: int) -> list[LayerCertificate]:
        """Compare a pair that the model does not call on this input, on random numbers."""
        shape = self.before.get_build_config().get("input_shape")
        if shape is None:
            error = "it is not called; expected a call on this input, got none"
            return [LayerCertificate(self.name, self.forms, errors=(error,))]
        size = tuple(n or (1 if axis == 0 else 8) for axis, n in enumerate(shape))
        x = np.random.default_rng(seed).standard_normal(size)
        note = f"not called on this input, so compared on random numbers of shape {size}"
        call = Call(x.astype(self.before.compute_dtype))
        return [measure(one, seed=seed, notes=(note,)) for one in self.on(call)]


class LayerSides(Sides):
    """The two layers of a pair on one input; everything runs on layers that are made again."""

    def __init__(self, pair: KerasPair, call: Call) -> None:
        self.name, self.forms = pair.name, pair.forms
        self.parts = pair.before, pair.after
        self.call = replace(call, x=cast_to(call.x, pair.before.compute_dtype))
        self.plain = all(map(_is_plain, self.parts))
        self.errors = list(self._other_settings())
        if self.plain:
            self.weights = tuple(self._weights())
        else:
            self.why_no_integers = _NOT_PLAIN
            self.notes = (f"{_NOT_PLAIN}: no test of weights and integers",)

    def made(self, numbers: Numbers | None) -> tuple[Side, Side]:
        """Return both layers, with other numbers if some are given."""
        before, after = (self._layer(part, numbers) for part in self.parts)
        return partial(self._run, before), partial(self._run, after)

    def _layer(self, part: Any, numbers: Numbers | None) -> Any:
        """Return a layer made again, in the dtype of the numbers, without its activation."""
        if not _is_plain(part):
            return part
        weights = models.weights_of(part)
        policy: Any = part.dtype_policy.name
        if numbers is not None:
            weights = [numbers(one) for one in weights]
            policy = dtype_name(numbers(self.call.x[:0]).dtype)
        config = {**part.get_config(), "dtype": policy, "trainable": True, "activation": "linear"}
        for name in config:  # it is given its numbers, and trains by no loss
            if name.endswith(("initializer", "regularizer", "constraint")):
                config[name] = "zeros" if name.endswith("initializer") else None
        with backend.wide_numbers():
            made = type(part).from_config(config)
            made.build_from_config(part.get_build_config())
            made.set_weights(weights)
        return made

    def _run(self, layer: Any, x: Array) -> Run:
        with backend.wide_numbers(), by_matrix([layer]), models.linear(layer):
            y, pull = backend.pullback(layer, x, self._key(layer, x))

        def gradients(dy: Array) -> dict[str, Array]:
            with backend.wide_numbers(), by_matrix([layer]), models.linear(layer):
                dx, *others = map(models.to_numpy, pull(dy))
            named = {"input": dx}
            if self.plain:
                named |= self._in_conv_layout(layer, others)
            return named

        return Run(models.to_numpy(y), gradients)

    def _key(self, layer: Any, x: Array) -> str | None:
        """Return what layers that compute the same function have in common; None if unknown."""
        if not self.plain:
            return None
        config = {key: value for key, value in layer.get_config().items() if key != "name"}
        return f"{forms.form_of(layer)} {type(layer).__name__} {config} {x.shape} {x.dtype}"

    def _in_conv_layout(self, layer: Any, gradients: list[Array]) -> dict[str, Array]:
        """Return gradients of a layer's variables as those of the CONV layer's kernel and bias."""
        held = [models.to_numpy(one.value) for one in layer.trainable_variables]
        with backend.wide_numbers():
            for variable, gradient in zip(layer.trainable_variables, gradients, strict=True):
                variable.assign(gradient)
            found = {name: models.to_numpy(value) for name, value in _held(layer).items()}
            for variable, numbers in zip(layer.trainable_variables, held, strict=True):
                variable.assign(numbers)
        return found

    def parameters(self) -> Iterable[tuple[str, Array]]:
        """Return the weights of both layers, by name."""
        return (
            (one.name, models.to_numpy(one.value)) for part in self.parts for one in part.weights
        )

    def sums(self, x: Array, dy: Array | None) -> Sums:
        """B is the reference layer on absolute values. On ones it counts."""
        known = [part for part in self.parts if _is_plain(part)]
        if not known or dy is None:
            return {}
        reference = min(known, key=lambda part: forms.form_of(part) != "native")

        def quantities(numbers: Numbers, x: Array, dy: Array) -> dict[str, Array]:
            run = self._run(self._layer(reference, numbers), numbers(x))
            assert run.gradients is not None, "of plain layers"  # noqa: S101
            return {"output": run.output, **run.gradients(numbers(dy))}

        magnitudes = quantities(_absolute, x, dy)
        counts = quantities(lambda t: np.ones(t.shape), x, dy)
        return {
            name: (magnitude, round(float(counts[name].max(initial=0))))
            for name, magnitude in magnitudes.items()
        }

    def integers(self, longest: int, limit: float) -> Iterable[int]:
        """Return how large integers may be so that such sums are within the limit."""
        room, factors = limit / longest, 2 + isinstance(self.parts[0], read.SEPARABLE)
        return [] if room < 1 else [min(2 ** int(np.log2(room) / factors), LARGEST)]

    def on_integers(self, numbers: Numbers, x: Array, limit: float) -> tuple[Side, Side]:
        """Return both layers on integers."""
        return self.made(numbers)

    def matrices(self, y: Array) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of M and K."""
        if not self.plain:
            return (), ()
        layer = self.parts[0]
        spatial = read.spatial_size(layer, self.call.x.shape)
        kernel, *_ = _held(layer).values()
        geometry = read.geometry_of(layer, kernel.shape, spatial)
        shape = geometry.filter_matrix_shape
        rows = int(np.prod(geometry.output_size(spatial)))
        return (len(y), rows, shape[0]), shape

    def _weights(self) -> Iterator[WeightComparison]:
        """Compare kernel and bias bit by bit."""
        ours, theirs = map(_held, self.parts)
        for name in dict.fromkeys([*ours, *theirs]):
            pair = [
                None if side.get(name) is None else models.to_numpy(side[name])
                for side in (ours, theirs)
            ]
            mine, other = pair
            if describe(mine) != describe(other):
                self.errors.append(f"its {name}; expected {describe(mine)}, got {describe(other)}")
            elif mine is not None and other is not None:
                result = compare(mine, other, None)
                del result["ratio"], result["bound"]
                yield WeightComparison(name, same_bits(mine, other), **result)

    def _other_settings(self) -> Iterator[str]:
        """Yield, in words, what the second layer is set to other than the first one."""
        if None in map(forms.form_of, self.parts):
            return
        ours, theirs = map(_settings, self.parts)
        for name in ours.keys() & theirs.keys():
            if ours[name] != theirs[name]:
                yield f"its {name}; expected {ours[name]}, got {theirs[name]}"


@contextlib.contextmanager
def by_matrix(layers: Iterable[Any]) -> Iterator[None]:
    """Have layers in patch form compute M K, though nothing has touched them."""
    patch = [layer for layer in layers if forms.form_of(layer) == "patch"]
    products = [layer.product for layer in patch]
    for layer in patch:
        vars(layer)["product"] = "matrix"
    try:
        yield
    finally:
        for layer, product in zip(patch, products, strict=True):
            vars(layer)["product"] = product


def _is_plain(layer: Any) -> bool:
    """Say whether the variables of a layer are those of a CONV layer, in any layout."""
    form = forms.form_of(layer)
    if form == "native":
        return forms.obstacle(layer) is None
    return form == "weight" or (form == "patch" and layer.is_untouched())


def _held(layer: Any) -> dict[str, Any]:
    """Return the kernels and the bias of a layer, in the CONV layout."""
    names = {"weight": "kernel", "bias": "bias"}
    if isinstance(layer, read.SEPARABLE):
        names = {
            "depthwise weight": "depthwise_kernel",
            "weight": "pointwise_kernel",
            "bias": "bias",
        }
    held = {name: getattr(layer, attribute) for name, attribute in names.items()}
    return {name: value for name, value in held.items() if value is not None}


_SETTINGS = ("strides", "padding", "dilation_rate", "output_padding", "data_format")


def _settings(layer: Any) -> dict[str, Any]:
    """Return what a layer is set to beside its kernel; distances of a single tap are no matter."""
    found = {name: getattr(layer, name, None) for name in _SETTINGS}
    kernel, *_ = _held(layer).values()
    apart = zip(layer.kernel_size, layer.dilation_rate, strict=True)
    return {
        **found,
        "dilation_rate": tuple(1 if taps == 1 else dilation for taps, dilation in apart),
        "kernel": tuple(kernel.shape),
    }


def _absolute(t: Array) -> Array:
    found: Array = np.abs(wide(t))
    return found
