"""Inputs for a model that is to be tried, where a user gives none.

A dynamic size is tried at two values, so that one that a conversion has fixed is found out. Which
sizes a model really takes it does not say: images may have to be of one height. So some that are
usual are tried, and those are taken on which the model runs. Sizes of one name are one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from convfc.comparing import words
from convfc.errors import ArgumentError, MemoryBudgetError, ShapeError, UnsupportedModel
from convfc.frameworks.onnx.certify import run

Inputs: TypeAlias = dict[str, npt.NDArray[Any]]
"""What a model is run on, by the names of its inputs."""

_SIZES: tuple[dict[int, tuple[int, ...]], ...] = (
    {2: (3,), 3: (3, 1024), 4: (3, 96, 128), 5: (3, 16, 32, 48)},
    {2: (4,), 3: (4, 1536), 4: (4, 128, 160), 5: (4, 32, 48, 64)},
    {2: (1024,), 3: (16, 256), 4: (1, 224, 224), 5: (1, 16, 112, 112)},
    {2: (1536,), 3: (80, 80), 4: (1, 48, 320), 5: (1, 16, 224, 224)},
    {2: (16_000,), 3: (128, 128), 4: (1, 48, 192), 5: (1, 64, 64, 64)},
    {2: (1,), 3: (1, 16_000), 4: (1, 32, 256), 5: (1, 96, 96, 96)},
    {2: (16,), 3: (1, 128), 4: (1, 512, 512), 5: (1, 8, 8, 8)},
)
"""What is tried, one after the other: by the number of axes, sizes of all but the first."""
_BATCHES = (2, 3, 1)
"""Sizes of the first axis: in the first try that runs, in the second, and where neither runs."""
_TRIES = 2
_MOST = 2**30
"""Bytes of an input."""
_GIVE = "give inputs of your own, as in --input inputs.npz or --input 1,3,224,224"


def generated(
    model: ir.Model | onnx.ModelProto, seed: int = 0, *, shapes: Sequence[tuple[int, ...]] = ()
) -> list[Inputs]:
    """Return inputs for a model: one set, or two if it has dynamic sizes and takes several.

    With ``shapes``, one for each input, there is one set. Floating-point numbers are normally
    distributed; integers are small, those of 8 bits any.
    """
    if isinstance(model, onnx.ModelProto):
        model = ir.from_proto(model)
    free = [value for value in model.graph.inputs if not value.is_initializer()]
    if shapes and len(shapes) != len(free):
        raise ArgumentError(
            "every input of the model has a shape",
            where="input",
            expected=f"{len(free)}, for {', '.join(value.name or '' for value in free)}",
            got=len(shapes),
            remedy="repeat --input, in this order",
        )
    if shapes or not any(map(_is_dynamic, free)):
        return [_filled(free, shapes or [_shape(value, {}, 0, {}) for value in free], seed)]
    found: list[Inputs] = []
    failed: list[Exception] = []
    for sizes in _SIZES:
        for batch in (_BATCHES[len(found)], _BATCHES[-1]):
            known: dict[Any, int] = {}
            inputs = _filled(free, [_shape(value, sizes, batch, known) for value in free], seed)
            try:
                run(model, inputs)
            except Exception as error:  # of onnxruntime, whose classes are private
                failed.append(error)
                continue
            found.append(inputs)
            break
        if len(found) == _TRIES:
            break
    if not found:
        raise ShapeError(
            f"the model runs on none of the sizes that were tried ({words(failed[0])})",
            where="input",
            remedy=_GIVE,
        ) from failed[0]
    return found


def _is_dynamic(value: ir.Value) -> bool:
    return value.shape is not None and any(_fixed(size) is None for size in value.shape)


def _fixed(size: int | ir.SymbolicDim) -> int | None:
    """Return a size that is fixed; older exporters wrote -1 for one that is not."""
    return size if isinstance(size, int) and size >= 0 else None


def _shape(
    value: ir.Value, sizes: dict[int, tuple[int, ...]], batch: int, known: dict[Any, int]
) -> tuple[int, ...]:
    """Return the shape of an input in one of the tries; sizes that have a name get ``known``."""
    if value.shape is None:
        raise UnsupportedModel(
            "it is not known how many axes this input has", where=value.name, remedy=_GIVE
        )
    usual = (batch, *sizes.get(len(value.shape), ()))
    found = []
    for axis, size in enumerate(value.shape):
        fixed = _fixed(size)
        if fixed is None:
            name = size.value if isinstance(size, ir.SymbolicDim) else None
            # "?" and the like name nothing: each of them is another size.
            key = name if name and name.strip("?") else (value.name, axis)
            fixed = known.setdefault(key, usual[min(axis, len(usual) - 1)])
        found.append(fixed)
    return tuple(found)


def _filled(values: Sequence[ir.Value], shapes: Sequence[tuple[int, ...]], seed: int) -> Inputs:
    """Return random numbers of these shapes, by name."""
    rng, pairs = np.random.default_rng(seed), zip(values, shapes, strict=True)
    return {value.name or "": _numbers(value, shape, rng) for value, shape in pairs}


def _numbers(value: ir.Value, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
    """Return random numbers of an input's dtype."""
    if not isinstance(value.type, ir.TensorType) or value.type.dtype == ir.DataType.STRING:
        got = "texts" if isinstance(value.type, ir.TensorType) else str(value.type)
        raise UnsupportedModel(
            "there are no random values for this input",
            where=value.name,
            expected="a tensor of numbers",
            got=got,
            remedy=_GIVE,
        )
    dtype = value.type.dtype.numpy()
    size = math.prod(shape) * dtype.itemsize
    if size > _MOST:
        raise MemoryBudgetError(
            "this input is too large to be made up",
            where=value.name,
            expected=f"at most {_MOST} bytes",
            got=size,
            remedy=_GIVE,
        )
    if dtype == np.bool_:
        return rng.integers(0, 2, shape).astype(dtype)
    if np.issubdtype(dtype, np.integer):
        whole = dtype.itemsize == 1
        low, high = (np.iinfo(dtype).min, np.iinfo(dtype).max) if whole else (0, 9)
        return rng.integers(low, high, shape, dtype, endpoint=True)
    return rng.standard_normal(shape).astype(dtype)
