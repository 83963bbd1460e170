"""A user's Keras model: its parts, copies of it, and what its layers are called with."""

from __future__ import annotations

import contextlib
import pathlib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from convfc.extras import needing

with needing():
    import keras

from convfc.comparing import words
from convfc.errors import ConvfcError, DataError, ShapeError
from convfc.frameworks.keras import backend


def children(part: Any) -> dict[str, Any]:
    """Return the layers that a model or a layer holds, by name.

    In a Sequential or a Functional model that is the layer's name; elsewhere the attribute's, since
    a copy's layers are numbered anew.
    """
    layers = part._flatten_layers(include_self=False, recursive=False)
    held = {id(one): one for one in layers if not isinstance(one, keras.layers.InputLayer)}
    found: dict[str, Any] = {}
    if not hasattr(part, "operations"):
        attributes = {**vars(part), **(getattr(part, "_modules", None) or {})}
        for name, layer in held_in(attributes):
            if id(layer) in held and not name.startswith("_"):
                found[name] = held.pop(id(layer))
    for layer in held.values():
        name, number = layer.name, 1
        while name in found:
            name, number = f"{layer.name}_{number}", number + 1
        found[name] = layer
    return found


def held_in(attributes: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield what attributes hold, by their names and the places in a list or a dict."""
    for name, value in attributes.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{key}", one) for key, one in value.items())
        elif isinstance(value, (list, tuple)):
            yield from ((f"{name}.{number}", one) for number, one in enumerate(value))
        else:
            yield name, value


def all_layers(model: Any) -> Iterator[Any]:
    """Yield a model and every layer in it, once."""
    return iter(model._flatten_layers(include_self=True, recursive=True))


def own_classes(model: Any) -> dict[str, type]:
    """Return the classes in a model that are not Keras's, which no file of Keras knows."""
    kinds = {type(one) for one in all_layers(model)}
    return {kind.__name__: kind for kind in kinds if not kind.__module__.startswith("keras.")}


def load(path: pathlib.Path) -> Any:
    """Read a model's file as data: code in it, such as that of a Lambda layer, is not run."""
    if not path.is_file():
        raise DataError("there is no such file", where=str(path), remedy="check its path")
    damaged = DataError(
        "it is damaged, or no file of Keras",
        where=str(path),
        expected="what model.save writes",
        remedy="save the model once more",
    )
    if path.suffix == ".keras" and not zipfile.is_zipfile(path):
        raise damaged
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except OSError as error:  # HDF5's
        raise damaged from error
    except Exception as error:  # anything that zip, JSON or a layer raise
        raise DataError(
            f"Keras cannot read it as data ({words(error)})",
            where=str(path),
            expected="a whole model, of Keras's own layers",
            remedy="load it in Python, with your custom_objects, and give convfc the model",
        ) from error


def weights_of(model: Any) -> list[np.ndarray[Any, Any]]:
    """Return the numbers of all variables, as ``set_weights`` takes them."""
    return [to_numpy(variable.value) for variable in model.weights]


def refresh(model: Any) -> None:
    """Have a model find its variables anew, and compile for them; its optimizer starts anew."""
    for part in all_layers(model):
        if isinstance(part, keras.Model):
            part.train_function = part.test_function = part.predict_function = None
            if getattr(part, "compiled", False) and part.optimizer is not None:
                old = part.optimizer
                part.optimizer = type(old).from_config(old.get_config())
    if keras.config.backend() == "torch":  # its lists of parameters, as after Keras's `quantize`
        modules = {id(each): each for part in all_layers(model) for each in part.modules()}
        for each in modules.values():  # a Sequential holds a Functional that is none of its layers
            if isinstance(each, keras.layers.Layer):
                each._track_variables()


def run(model: Any, x: Any, name: str = "x") -> Any:
    """Call a model, in inference mode; what it raises is said of its input."""
    return run_watched(model, (), x, name)[0]


def run_watched(
    model: Any, layers: Iterable[Any], x: Any, name: str = "x"
) -> tuple[Any, list[tuple[Any, Any]]]:
    """Return a model's output, and every call of some layers: the layer, and its input."""
    called: list[Any] = []

    def call(x: Any) -> tuple[Any, list[Any]]:
        called.clear()
        given: list[Any] = []

        def note(layer: Any, x: Any) -> None:
            called.append(layer)
            given.append(x)

        with _watching(layers, note):
            return model(x), given

    built = all(one.built for one in all_layers(model))
    try:
        run = backend.compiled(model, call) if built else call
        output, given = run(as_inputs(model, x))
        return output, list(zip(called, given, strict=True))
    except ConvfcError:
        raise
    except Exception as error:
        shapes = keras.tree.map_structure(lambda a: tuple(np.shape(a)), x)
        raise ShapeError(
            f"the model does not run on it ({words(error)})",
            where=name,
            got=shapes,
            remedy="give what the model is called with",
        ) from error


def as_inputs(model: Any, x: Any) -> Any:
    """Return an input as the model takes it: numbers that are not integers in its own dtype.

    A tuple of one is this one, as where a tuple holds several arguments.
    """
    if isinstance(x, tuple) and len(x) == 1:
        (x,) = x

    def own(array: Any) -> Any:
        if keras.ops.is_tensor(array):
            return array
        array = np.asarray(array)
        return array.astype(model.variable_dtype) if array.dtype.kind == "f" else array

    return keras.tree.map_structure(own, x)


def to_numpy(tensor: Any) -> np.ndarray[Any, Any]:
    """Return a tensor's numbers, out of any graph; bfloat16 as ``ml_dtypes`` has it."""
    if keras.backend.standardize_dtype(tensor.dtype) == "bfloat16":
        import ml_dtypes

        wide = keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32"))
        return np.asarray(wide).astype(ml_dtypes.bfloat16)
    return np.array(keras.ops.convert_to_numpy(tensor))


@contextlib.contextmanager
def _watching(layers: Iterable[Any], note: Callable[[Any, Any], None]) -> Iterator[None]:
    """Note every call of some layers, before it happens: the layer, and its input."""
    watched = {id(layer): layer for layer in layers}

    def spy(layer: Any) -> Callable[..., Any]:
        call = layer.call

        def noted(x: Any, *args: Any, **kwargs: Any) -> Any:
            note(layer, x)
            return call(x, *args, **kwargs)

        return noted

    for layer in watched.values():
        vars(layer)["call"] = spy(layer)
    try:
        yield
    finally:
        for layer in watched.values():
            vars(layer).pop("call", None)


@contextlib.contextmanager
def linear(layer: Any) -> Iterator[None]:
    """Leave out a layer's activation."""
    activation = layer.activation
    vars(layer)["activation"] = keras.activations.linear
    try:
        yield
    finally:
        vars(layer)["activation"] = activation


def layer_input(model: Any, layer: Any, x: Any) -> Any:
    """Return what a layer is first called with when the model is run on an input."""
    _, calls = run_watched(model, [layer], x)
    if not calls:
        raise ShapeError(
            "the model does not call the layer on this input",
            where=layer.name,
            remedy="give another layer, or an input on which it is called",
        )
    return to_numpy(calls[0][1])
