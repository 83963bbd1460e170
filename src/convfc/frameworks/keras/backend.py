"""Choose the backend on which Keras computes, and the precision in which it does."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator

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
