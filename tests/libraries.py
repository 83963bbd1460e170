"""The array libraries the core takes, behind one small face for the tests."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Library:
    """How to make, recognise and read one library's arrays."""

    name: str
    array: Callable[[np.ndarray], Any]
    array_type: type
    default_integer: str

    def __str__(self) -> str:
        return self.name

    def arrays(self, *values: np.ndarray) -> list[Any]:
        return [self.array(value) for value in values]


def read_only(a: np.ndarray) -> np.ndarray:
    """A copy that cannot be written: catches every function that changes its input."""
    copy = a.copy()
    copy.flags.writeable = False
    return copy


def to_numpy(a: Any) -> np.ndarray:
    """The values of any library's array; bfloat16, which NumPy lacks, comes as float64."""
    if isinstance(a, torch.Tensor):
        a = a.detach()
        return a.double().numpy() if a.dtype == torch.bfloat16 else a.numpy()
    values = np.asarray(a)
    return values.astype(np.float64) if values.dtype.name == "bfloat16" else values


def dtype_name(a: Any) -> str:
    """``float32`` for all of numpy.float32, torch.float32 and jax's."""
    return str(a.dtype).removeprefix("torch.")


NUMPY = Library("numpy", np.array, np.ndarray, "int64")
NUMPY_READ_ONLY = Library("numpy-readonly", read_only, np.ndarray, "int64")
TORCH = Library("torch", torch.tensor, torch.Tensor, "int64")
JAX = Library("jax", jnp.asarray, jax.Array, "int32")  # without jax's 64-bit switch
LIBRARIES = [NUMPY, NUMPY_READ_ONLY, TORCH, JAX]


def traced_peak(call: Callable[[], Any]) -> tuple[Any, int]:
    """What a call returns and the most bytes NumPy held during it, its result included."""
    tracemalloc.start()
    try:
        result = call()
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
