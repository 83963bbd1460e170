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

__all__ = [
    "Array",
    "accumulating_dtype",
    "as_numpy",
    "check_shape",
    "itemsize",
    "namespace",
    "take_or_zero",
]

Array: TypeAlias = Any
"""A NumPy, PyTorch or JAX array; functions give back the kind they are given."""


def namespace(**arrays: Array) -> Any:
    """Return the array namespace of one or more arrays, given by the names users know them by.

    Raises
    ------
    DtypeError
        If one is not an array, if they come from different libraries, or if one holds neither
        numbers nor booleans.
    """
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
            expected="one library",
            got=", ".join(type(array).__module__.split(".")[0] for array in arrays.values()),
            remedy="convert them to the same library",
        ) from None
    for name, array in arrays.items():
        if not xp.isdtype(array.dtype, ("bool", "numeric")):
            raise DtypeError(
                "the array holds no numbers",
                where=name,
                expected="a boolean, integer, floating or complex dtype",
                got=array.dtype,
                remedy="cast it to a numeric dtype first",
            )
    return xp


def as_numpy(array: Array, name: str = "array") -> npt.NDArray[Any]:
    """Return an array of any of the libraries as NumPy's, out of any graph; a view where it can be.

    Raises
    ------
    DtypeError
        If NumPy has no such dtype.

    Examples
    --------
    >>> import torch
    >>> as_numpy(torch.ones(2, requires_grad=True))
    array([1., 1.], dtype=float32)
    """
    if not array_api_compat.is_torch_array(array):
        found = np.asarray(array)
        if found.dtype.kind in "biufc":
            return found
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
    if len(sizes) != len(expected) or any(
        isinstance(e, int) and e != s for e, s in zip(expected, sizes, strict=True)
    ):
        raise ShapeError(
            "wrong rank" if len(sizes) != len(expected) else "wrong size",
            where=name,
            expected="(" + ", ".join(str(e) for e in expected) + ")",
            got=sizes,
            remedy=remedy,
        )


def accumulating_dtype(xp: Any, **arrays: Array) -> Any:
    """Return the dtype in which sums of products of the arrays are kept.

    Floating and complex dtypes must be the same and stay. Booleans and integers narrower than the
    library's default integer are added up in the default integer, as its ``sum`` does, so that
    8-bit images do not wrap.

    Raises
    ------
    DtypeError
        If the dtypes differ and are not all integer or boolean, or have no common integer.
    """
    dtypes = [array.dtype for array in arrays.values()]
    exact = [xp.isdtype(dtype, ("bool", "integral")) for dtype in dtypes]
    if not all(exact):
        if any(dtype != dtypes[0] for dtype in dtypes):
            raise _mixed(arrays, "one dtype, or integers and booleans only")
        return dtypes[0]
    default = xp.__array_namespace_info__().default_dtypes()["integral"]
    integers = [default if xp.isdtype(dtype, "bool") else dtype for dtype in dtypes]
    wide = [dtype for dtype in integers if xp.iinfo(dtype).bits >= xp.iinfo(default).bits]
    if any(dtype != wide[0] for dtype in wide) or (
        wide and len(wide) < len(integers) and xp.isdtype(wide[0], "unsigned integer")
    ):
        raise _mixed(arrays, "integers that a common integer dtype holds")
    return wide[0] if wide else default


def _mixed(arrays: dict[str, Array], expected: str) -> DtypeError:
    return DtypeError(
        "the dtypes differ, and convfc never rounds in silence",
        where=" and ".join(arrays),
        expected=expected,
        got=", ".join(str(array.dtype) for array in arrays.values()),
        remedy="cast one of them",
    )


def itemsize(dtype: Any) -> int:
    """Return the bytes of one element, for the dtypes of all three libraries, or by their names.

    Examples
    --------
    >>> itemsize(np.float32), itemsize("float64")
    (4, 8)
    """
    size = getattr(dtype, "itemsize", None)  # of a class such as np.float32, a descriptor
    return size if isinstance(size, int) else int(np.dtype(dtype).itemsize)


def take_or_zero(xp: Any, x: Array, index: npt.NDArray[np.int64], axis: int) -> Array:
    """Gather along one axis; index -1 gives zero. Differentiable where the library is.

    Parameters
    ----------
    xp : namespace
    x : array
        Not empty along ``axis``.
    index : NumPy array of int, shape (n,)
    axis : int

    Examples
    --------
    >>> take_or_zero(namespace(x=np.arange(3)), np.array([5, 6, 7]), np.array([2, -1, 0]), axis=0)
    array([7, 0, 5])
    """
    if np.any(index < 0):
        first = _take(xp, x, np.zeros(1, dtype=np.int64), axis)
        # Where nothing of x is read, its first element stands for it: a gradient, of 0, has a way.
        x = first if np.all(index < 0) else x
        x = xp.concat([x, xp.zeros_like(first)], axis=axis)
        index = np.where(index < 0, x.shape[axis] - 1, index)
    return _take(xp, x, index, axis)


def _take(xp: Any, x: Array, index: npt.NDArray[np.int64], axis: int) -> Array:
    # a copy: PyTorch warns of the read-only arrays that the index map hands out
    return xp.take(x, xp.asarray(index.copy(), device=array_api_compat.device(x)), axis=axis)
