"""Choose the backend on which Keras computes, and the precision in which it does."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from convfc.errors import RunError
from convfc.extras import missing
from convfc.sizes import one_of

BACKENDS = ("jax", "torch", "tensorflow")
DTYPES = ("float32", "float64")


def choose_backend(name: str) -> None:
    """Make Keras compute on this backend, in this process, from its first import on."""
    one_of("backend", name, BACKENDS)
    for package in ("keras", name):
        if sys.modules.get(package) is None and importlib.util.find_spec(package) is None:
            raise missing(package, where=f"backend {name}")
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = name
        # TensorFlow prints lines about the processor and a missing GPU at every start.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import keras

    if keras.config.backend() != name:
        raise RunError(
            "Keras was imported with another backend, which cannot change within a process",
            where="backend",
            expected=name,
            got=keras.config.backend(),
            remedy="start a new process, or set KERAS_BACKEND before the first import of keras",
        )


@contextlib.contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Let Keras, and JAX under it, compute in this dtype; restore the former state at the end.

    JAX has float64 only if it is enabled for the whole process, and a model built in one state must
    not be used in the other, so everything of one precision belongs inside one ``with``.
    """
    one_of("dtype", dtype, DTYPES)
    import keras

    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    restore_jax = _enable_x64(dtype == "float64") if keras.config.backend() == "jax" else None
    keras.config.set_floatx(dtype)
    # The default policy is remembered from the first layer on, so floatx alone would not change it.
    keras.config.set_dtype_policy(dtype)
    try:
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)
        if restore_jax is not None:
            _enable_x64(restore_jax)


def _enable_x64(on: bool) -> bool:
    """Switch JAX's 64-bit types on or off, and return what they were."""
    import jax

    former = bool(jax.config.jax_enable_x64)  # type: ignore[attr-defined]
    jax.config.update("jax_enable_x64", on)  # type: ignore[no-untyped-call]
    return former


@contextlib.contextmanager
def wide_numbers() -> Iterator[None]:
    """Let Keras, and JAX under it, have float64 for what is made and run inside.

    Keras makes float32 of the float64 of a product or a sum, but on TensorFlow, whatever is set.
    """
    import keras
    from keras.src.backend.common.dtypes import BIT64_TO_BIT32_DTYPE as NARROWED

    former = _enable_x64(True) if keras.config.backend() == "jax" else None
    narrowed = NARROWED["float64"]
    NARROWED["float64"] = "float64"
    try:
        yield
    finally:
        NARROWED["float64"] = narrowed
        if former is not None:
            _enable_x64(former)


COMPILED: dict[str, tuple[Any, Any]] = {}
"""What JAX has compiled for layers of one function, by what they have in common, and its output."""


def compiled(model: Any, call: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a function that calls a model as one that JAX compiles as a whole.

    Otherwise JAX compiles every operation on every shape by itself, in fifty times the time.
    """
    import keras

    if keras.config.backend() != "jax":
        return call
    import jax

    def run(x: Any) -> Any:
        held = model.variables

        def whole(x: Any, values: list[Any]) -> Any:
            with keras.StatelessScope(zip(held, values, strict=True)):
                return call(x)

        try:
            return jax.jit(whole)(x, [one.value for one in held])
        except (TypeError, jax.errors.JAXTypeError):  # its own code asks for numbers
            return call(x)

    return run


def pullback(layer: Any, x: Any, key: str | None = None) -> tuple[Any, Callable[[Any], list[Any]]]:
    """Return a layer's output, and what makes gradients of the output's gradient.

    They are those of the input and of the layer's trainable variables, in this order. Layers with
    the same key compute the same function of their variables: JAX compiles it once.
    """
    import keras

    name, variables = keras.config.backend(), layer.trainable_variables
    if name == "jax":
        import jax

        trained = [one.value for one in variables]
        fixed = [one.value for one in layer.non_trainable_variables]

        def call(x: Any, trained: list[Any], fixed: list[Any]) -> Any:
            # Not `stateless_call`, which leaves out a layer's casts.
            held = [*layer.trainable_variables, *layer.non_trainable_variables]
            with keras.StatelessScope(zip(held, [*trained, *fixed], strict=True)):
                return layer(x)

        def both(x: Any, trained: list[Any], fixed: list[Any], dy: Any) -> Any:
            y, pull = jax.vjp(lambda x, trained: call(x, trained, fixed), x, trained)
            return y, pull(dy)

        x = jax.numpy.asarray(x)
        found = None if key is None else COMPILED.get(key)
        made, shape = found or (jax.jit(both), jax.eval_shape(call, x, trained, fixed))
        if key is not None:
            COMPILED[key] = made, shape
        y, _ = made(x, trained, fixed, jax.numpy.zeros(shape.shape, shape.dtype))

        def pulled(dy: Any) -> list[Any]:
            dx, others = made(x, trained, fixed, jax.numpy.asarray(dy))[1]
            return [dx, *others]

        return y, pulled
    if name == "torch":
        import torch

        with torch.enable_grad():
            given = keras.ops.convert_to_tensor(x).detach().requires_grad_()
            y = layer(given)
        inputs = [given, *(one.value for one in variables)]
        return y.detach(), lambda dy: list(
            torch.autograd.grad(y, inputs, keras.ops.convert_to_tensor(dy))
        )
    import tensorflow

    with tensorflow.GradientTape() as tape:
        given = tensorflow.convert_to_tensor(x)
        tape.watch(given)
        y = layer(given)
    inputs = [given, *(one.value for one in variables)]
    return y, lambda dy: list(tape.gradient(y, inputs, tensorflow.convert_to_tensor(dy)))
