"""What NumPy, PyTorch and JAX arrays share: their namespace, exact dtypes, zeros and gathering.

No framework is imported here; array-api-compat finds the one that an array belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import array_api_compat
import numpy as np
import numpy.typing as npt

from convfc.errors import DtypeError, ShapeError

Array: TypeAlias = Any
"""A NumPy, PyTorch or JAX array; functions give back the kind they are given."""


def namespace(**arrays: Array) -> Any:
    """Return the namespace of arrays; the keywords are the names that users know them by."""
    for name, array in arrays.items():
        masked = isinstance(array, np.ma.MaskedArray)  # its mask would be lost in silence
        if masked or not array_api_compat.is_array_api_obj(array):
            raise DtypeError(
                "this is not an array",
                where=name,
                expected="a NumPy, PyTorch or JAX array",
                got=type(array).__name__,
                remedy="convert it first, for instance with numpy.asarray",
            )
    try:
        xp = array_api_compat.array_namespace(*arrays.values())
    except TypeError:
        raise DtypeError(
            "the arrays come from different libraries",
            where=" and ".join(arrays),
            got=", ".join(type(array).__module__.split(".")[0] for array in arrays.values()),
            remedy="convert them to the same library",
        ) from None
    for name, array in arrays.items():
        if not xp.isdtype(array.dtype, ("bool", "numeric")):
            raise DtypeError(
                "the array does not hold numbers",
                where=name,
                got=array.dtype,
                remedy="cast it to a numeric dtype first",
            )
    return xp


def as_numpy(array: Array, name: str = "array") -> npt.NDArray[Any]:
    """Return any library's array as NumPy's, out of any graph; a view where it can be."""
    if not array_api_compat.is_torch_array(array):
        found = np.asarray(array)
        if found.dtype.kind in "biufc":
            return found
    elif array.is_meta:
        raise DtypeError(
            "an array on the meta device has a shape but no numbers",
            where=name,
            remedy="load the model's weights first, for instance with load_state_dict(..., "
            "assign=True)",
        )
    elif "bfloat16" not in str(array.dtype):
        plain: npt.NDArray[Any] = array.detach().cpu().resolve_conj().resolve_neg().numpy()
        return plain
    raise DtypeError(
        "NumPy has no such dtype",
        where=name,
        expected="a boolean, integer, floating or complex dtype of NumPy",
        got=array.dtype,
        remedy="convert it first, for instance with layer.float()",
    )


def check_shape(name: str, array: Array, expected: Sequence[int | str], remedy: str) -> None:
    """Raise ShapeError unless the array has the expected sizes; a string stands for any size."""
    sizes = tuple(array.shape)
    if not _fits(sizes, expected):
        raise ShapeError(
            "wrong rank" if len(sizes) != len(expected) else "wrong size",
            where=name,
            expected=f"({', '.join(map(str, expected))})",
            got=sizes,
            remedy=remedy,
        )


def check_input(x: Array, expected: Sequence[int | str]) -> None:
    """Raise ShapeError unless x has the expected sizes; the remedy is a line that gives it them."""
    sizes = tuple(x.shape)
    if _fits(sizes, expected):
        return
    moved = _spelled(x, "np.moveaxis(x, {}, -1)", "x.movedim({}, -1)", "jnp.moveaxis(x, {}, -1)")
    lines = {
        "x[None]": (1, *sizes),
        "x[None, ..., None]": (1, *sizes, 1),
        "x[..., None]": (*sizes, 1),
        moved.format(1): (*sizes[:1], *sizes[2:], *sizes[1:2]),
        f"{moved.format(0)}[None]": (1, *sizes[1:], *sizes[:1]),
    }
    fitting = [f": type {line}" for line, made in lines.items() if _fits(made, expected)]
    check_shape("x", x, expected, "".join(["use the layout (b, *spatial, c)", *fitting[:1]]))


def _fits(sizes: Sequence[int], expected: Sequence[int | str]) -> bool:
    return len(sizes) == len(expected) and all(
        isinstance(e, str) or e == s for e, s in zip(expected, sizes, strict=True)
    )


def _spelled(array: Array, numpy: str, torch: str, jax: str) -> str:
    """Return the spelling in the array's own library."""
    if array_api_compat.is_torch_array(array):
        return torch
    return jax if array_api_compat.is_jax_array(array) else numpy


def accumulating_dtype(xp: Any, **arrays: Array) -> Any:
    """Return the dtype in which sums of products of the arrays are kept.

    Floating and complex dtypes must be the same and stay; beside them may stand booleans, and
    integers that they hold: up to 2**53 in float64, 2**24 in float32, 2**11 in float16, 2**8 in
    bfloat16. Booleans and integers alone are added up in the default integer or a wider one.
    """
    dtypes = [array.dtype for array in arrays.values()]
    integers = [dtype for dtype in dtypes if xp.isdtype(dtype, "integral")]
    floating = [dtype for dtype in dtypes if not xp.isdtype(dtype, ("bool", "integral"))]
    default = xp.__array_namespace_info__().default_dtypes()["integral"]
    if floating:
        dtype = xp.result_type(*floating)
    else:
        dtype = max([default, *integers], key=lambda each: xp.iinfo(each).max)
    if all(_joins(xp, each, dtype) for each in dtypes):
        return dtype
    raise _mixed(xp, arrays, dtype if floating else default, floating)


def _joins(xp: Any, dtype: Any, other: Any) -> bool:
    """Return whether the other dtype has every number of this one, which is whole or the same."""
    if dtype == other or xp.isdtype(dtype, "bool"):
        return True
    if not xp.isdtype(dtype, "integral"):
        return False
    low, high = xp.iinfo(dtype).min, xp.iinfo(dtype).max
    if xp.isdtype(other, "integral"):
        return bool(xp.iinfo(other).min <= low and high <= xp.iinfo(other).max)
    return bool(high <= _largest(xp, other))


def _largest(xp: Any, dtype: Any) -> int:
    """Return the number up to which a floating or complex dtype has every integer."""
    return int(2 / float(xp.finfo(dtype).eps))


def _mixed(xp: Any, arrays: dict[str, Array], dtype: Any, floating: list[Any]) -> DtypeError:
    """Return the error whose remedy is the lines after which the arrays have one dtype."""
    if any(each != floating[0] for each in floating):
        what, expected = "the dtypes differ", "one floating dtype"
    elif floating:
        what = "the dtypes differ, and convfc never rounds in silence"
        expected = f"integers that {dtype} has, up to 2**{_largest(xp, dtype).bit_length() - 1}"
    else:
        what, expected = "the dtypes differ", "integers that a common integer dtype holds"
    name = str(dtype).removeprefix("torch.")
    cast = [
        each + _spelled(array, f".astype(np.{name})", f".to(torch.{name})", f".astype(jnp.{name})")
        for each, array in arrays.items()
        if not _joins(xp, array.dtype, dtype)
    ]
    return DtypeError(
        what,
        where=" and ".join(arrays),
        expected=expected,
        got=", ".join(str(array.dtype) for array in arrays.values()),
        remedy=f"type {' and '.join(cast)}",
    )


def itemsize(dtype: Any) -> int:
    """Return the bytes of one element, for the dtypes of all three libraries, or by their names."""
    size = getattr(dtype, "itemsize", None)  # of a class such as np.float32, a descriptor
    return size if isinstance(size, int) else int(np.dtype(dtype).itemsize)


def take_or_zero(xp: Any, x: Array, index: npt.NDArray[np.int64], axis: int) -> Array:
    """Gather along an axis that is not empty; index -1 gives zero. Differentiable."""
    if np.any(index < 0):
        first = _take(xp, x, np.zeros(1, dtype=np.int64), axis)
        # Where nothing of x is read, its first element stands in, so that x gets a gradient of 0.
        x = first if np.all(index < 0) else x
        x = xp.concat([x, xp.zeros_like(first)], axis=axis)
        index = np.where(index < 0, x.shape[axis] - 1, index)
    return _take(xp, x, index, axis)


def _take(xp: Any, x: Array, index: npt.NDArray[np.int64], axis: int) -> Array:
    # A copy, because PyTorch warns of the read-only arrays that the index map hands out.
    return xp.take(x, xp.asarray(index.copy(), device=array_api_compat.device(x)), axis=axis)
