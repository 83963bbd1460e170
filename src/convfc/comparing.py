"""Numbers of any array library: in float64, as integers, compared, and described in words.

NumPy's arrays, with the dtypes that ``ml_dtypes`` adds, and PyTorch's tensors on any device. A
dtype goes by its name, which is the same in both.
"""

from __future__ import annotations

import math
import re
from typing import Any

import array_api_compat
import numpy as np

from convfc.arrays import Array
from convfc.rounding import LARGEST_FINITE


def dtype_name(dtype: Any) -> str:
    """Return the name that NumPy uses, too."""
    return str(dtype).removeprefix("torch.")


def is_floating(t: Array) -> bool:
    """Say whether an array holds floating-point or complex numbers."""
    return dtype_name(t.dtype).startswith(("float", "bfloat", "complex"))


def is_complex(dtype: Any) -> bool:
    """Say whether numbers of a dtype have two parts."""
    return dtype_name(dtype).startswith("complex")


def cast_to(t: Array, name: str) -> Array:
    """Return an array in the dtype of a name; itself if it has it."""
    if dtype_name(t.dtype) == name:
        return t
    xp = array_api_compat.array_namespace(t)
    return xp.astype(t, getattr(xp, name, None) or np.dtype(name))


def wide_name(dtype: Any) -> str:
    """Return the name of the widest dtype of a kind."""
    return "complex128" if is_complex(dtype) else "float64"


def wide(t: Array) -> Array:
    """Return an array in float64; in complex128 if it is complex."""
    return cast_to(t, wide_name(t.dtype))


def compare(ours: Array, theirs: Array, bound: Array | None) -> dict[str, Any]:
    """Return the largest difference, the largest ratio to the bound, and where that is.

    Equal infinities, and NaN in the same place, are no difference.
    """
    xp = array_api_compat.array_namespace(ours)
    ours, theirs = wide(ours), wide(theirs)
    with np.errstate(all="ignore"):
        difference = xp.abs(ours - theirs)
        if not math.isfinite(xp.sum(difference)):
            same = (ours == theirs) | (xp.isnan(ours) & xp.isnan(theirs))
            difference = xp.where(xp.isnan(difference), math.inf, difference)
            difference = xp.where(same, 0.0, difference)
        if 0 in difference.shape:
            return {"difference": 0.0, "ratio": None if bound is None else 0.0, "bound": None}
        ratio = None if bound is None else difference / bound
    if ratio is not None:  # 0 / 0 is an empty sum, which is 0 on both sides
        ratio = xp.where(xp.isnan(ratio), 0.0, ratio)
    largest = difference if ratio is None else ratio
    index = tuple(int(i) for i in np.unravel_index(int(xp.argmax(largest)), tuple(ours.shape)))
    return {
        "difference": float(xp.max(difference)),
        "ratio": None if ratio is None else float(ratio[index]),
        "index": index,
        "before": ours[index].item(),
        "after": theirs[index].item(),
        "bound": None if bound is None else float(bound[index]),
    }


def same_numbers(ours: Array, theirs: Array) -> bool:
    """Say whether two arrays have one shape and equal numbers; a NaN equals nothing."""
    xp = array_api_compat.array_namespace(ours)
    return tuple(ours.shape) == tuple(theirs.shape) and bool(xp.all(ours == theirs))


def bits_of(t: Array) -> Array:
    """Return the bits of floating-point and complex numbers as integers; integers as they are."""
    t = _plain(t)
    xp = array_api_compat.array_namespace(t)
    if is_complex(t.dtype):
        t = xp.stack([xp.real(t), xp.imag(t)])
    return t.view(getattr(xp, f"int{8 * t.dtype.itemsize}")) if is_floating(t) else t


def same_bits(ours: Array, theirs: Array) -> bool:
    """Say whether two arrays of one shape and dtype hold the same bits."""
    ours, theirs = bits_of(ours), bits_of(theirs)
    if array_api_compat.is_torch_array(ours) and ours.device.type == theirs.device.type == "cpu":
        ours, theirs = ours.numpy(), theirs.numpy()  # faster than PyTorch's own comparison
    return same_numbers(ours, theirs)


def overflows(sums: Array, dtype: Any) -> bool:
    """Say whether a sum of this magnitude, wrong by as much, may be no number of this dtype."""
    xp = array_api_compat.array_namespace(sums)
    largest = LARGEST_FINITE.get(dtype_name(dtype), math.inf)  # sums of integers start over
    return 0 not in sums.shape and not float(xp.max(sums)) <= largest / 2


def not_finite(name: str, t: Array, remedy: str = "give an input on which they are") -> str:
    """Say in words that an array holds what no bound can be made of; nothing if it does not."""
    if not is_floating(t):
        return ""
    numbers = _plain(t)
    xp = array_api_compat.array_namespace(numbers)
    if bool(xp.all(xp.isfinite(numbers))):
        return ""
    kinds = {"NaN": xp.isnan(numbers), "an infinity": xp.isinf(numbers)}
    held = " and ".join(kind for kind, where in kinds.items() if bool(xp.any(where)))
    return (
        f"its {name} holds {held}, so there is no rounding bound to compare with; expected finite "
        f"numbers: {remedy}"
    )


def describe(t: Array | None) -> str:
    """Return shape, dtype and device of an array, if there is one."""
    if t is None:
        return "none"
    where = str(getattr(t, "device", "cpu"))
    on = "" if where.startswith("cpu") else f" on {where}"
    return f"{tuple(t.shape)} of {dtype_name(t.dtype)}{on}"


def strides_of(t: Array) -> list[int]:
    """Return the strides that matter: an axis of one element may have any."""
    strides = t.stride() if array_api_compat.is_torch_array(t) else t.strides
    return [stride for stride, size in zip(strides, t.shape, strict=True) if size > 1]


def normal(like: Array, generator: np.random.Generator) -> Array:
    """Return random numbers of the normal distribution, the same ones in every library."""
    part: Any = "float64" if dtype_name(like.dtype) in ("float64", "complex128") else "float32"
    drawn = generator.standard_normal(tuple(like.shape), part)
    if is_complex(like.dtype):
        drawn = drawn + 1j * generator.standard_normal(tuple(like.shape), part)
    xp = array_api_compat.array_namespace(like)
    return xp.asarray(drawn, device=array_api_compat.device(like))


def as_laid_out(numbers: Array, like: Array, name: str) -> Array:
    """Return numbers in the dtype of a name, laid out in memory like another array."""
    xp = array_api_compat.array_namespace(like)
    made = xp.empty_like(like, dtype=getattr(xp, name, None) or np.dtype(name))
    made[...] = cast_to(numbers, name)
    return made


def integers_of(t: Array, largest: int) -> Array:
    """Turn each number into an integer from -largest to largest that depends on its bits alone.

    So numbers that have changed places are integers that have changed places, and a changed number
    is, most often, another integer. Zero stays zero, as in a block-diagonal matrix it must, and
    nothing else becomes zero. ``largest`` is a power of two.
    """
    t = _plain(t)
    xp = array_api_compat.array_namespace(t)
    if is_complex(t.dtype):
        parts = (cast_to(integers_of(part, largest), dtype_name(t.dtype)) for part in _parts(t))
        real, imaginary = parts
        return real + 1j * imaginary
    bits = wide(t).view(xp.int64)
    # Multiplicative (Fibonacci) hashing: the highest bits of the product depend on all bits.
    value = (bits * 0x1E3779B97F4A7C15) >> (64 - (2 * largest).bit_length() + 1)
    value = value + xp.astype(value >= 0, xp.int64)
    value = value * xp.astype(t != 0, xp.int64)
    return cast_to(value, dtype_name(t.dtype))


def _parts(t: Array) -> tuple[Array, Array]:
    xp = array_api_compat.array_namespace(t)
    return xp.real(t), xp.imag(t)


def _plain(t: Array) -> Array:
    """Return a tensor of PyTorch out of its graph; another array as it is."""
    return t.detach() if array_api_compat.is_torch_array(t) else t


def words(error: Exception) -> str:
    r"""Return an exception as one line: its class, and what is said first.

    Frameworks' messages go on with dumps of graphs, with tables of overloads, and with advice.
    """
    return ": ".join(filter(None, (type(error).__name__, first_words(error))))


def first_words(error: Exception) -> str:
    r"""Return the first paragraph of an exception's text, as one line of at most 300 characters.

    TorchScript's messages end with what is said first elsewhere, and Keras puts a sentence before
    what it is told, or what it tries to read; tables of overloads are left out.
    """
    text = re.sub(r"\x1b\[\d*m", "", str(error)).strip()
    text = text.rpartition("\n\nException encountered: ")[2]
    if text.startswith("Exception encountered when calling"):
        text = text.partition("\n\n")[2].strip()
    if "TorchScript" in text.partition("\n")[0]:
        text = text.rpartition("\nRuntimeError: ")[2]
    for more in ("\n\n", ", but expected one of:", " Full object config: "):
        text = text.partition(more)[0]
    return " ".join(text.split())[:300]
