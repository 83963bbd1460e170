"""Settings that must be made before any framework is imported."""

from __future__ import annotations

import contextlib
import gc
import os
import pathlib
import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

# What is imported stays. Python's collector of garbage would look through all of it, a gigabyte,
# again and again: not before the tests are found, and afterwards only through what tests make.
gc.disable()

# A shell's job in the background ignores Ctrl-C, and so would each program that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Keras computes on jax in every test, wherever it is imported first; its backend cannot change.
os.environ.setdefault("KERAS_BACKEND", "jax")

# JAX compiles a program for every operation on every shape, which took most of the time of Keras's
# tests: here without optimising it, by XLA's plainer way to write loops, and once for all processes
# and runs (`make clean` forgets). `make test-all` sets XLA_FLAGS to nothing, and so computes as
# users do.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent / ".pytest_cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# Keras imports TensorFlow to save a model; triton, which PyTorch compiles with, crashes after it.
with contextlib.suppress(ImportError):
    import triton  # noqa: F401

# One worker per core: threads of several workers on one core would wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Let the collector begin where the imports have ended."""
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


# pytest reads these itself; as modules with doctests they would be one name for several files.
collect_ignore_glob = ["*conftest.py"]
