"""Settings that must be made before any framework is imported."""

import contextlib
import os

# Keras computes on jax in every test, wherever it is imported first; its backend cannot change.
os.environ.setdefault("KERAS_BACKEND", "jax")

# Keras imports TensorFlow to save a model; triton, which PyTorch compiles with, crashes after it.
with contextlib.suppress(ImportError):
    import triton  # noqa: F401

# One worker per core: threads of several workers on one core would wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# pytest reads these itself; as modules with doctests they would be one name for several files.
collect_ignore_glob = ["*conftest.py"]
