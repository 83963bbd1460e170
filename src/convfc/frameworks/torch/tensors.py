"""Tensors in float64, compared, and described in words."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def wide(t: Tensor) -> Tensor:
    """Return a tensor in float64; in complex128 if it is complex."""
    return t.to(torch.complex128 if t.is_complex() else torch.float64)


def compare(ours: Tensor, theirs: Tensor, bound: Tensor | None) -> dict[str, Any]:
    """Return the largest difference, the largest ratio to the bound, and where that is.

    Equal infinities, and NaN in the same place, are no difference.
    """
    ours, theirs = wide(ours), wide(theirs)
    difference = (ours - theirs).abs()
    if not difference.sum().isfinite():
        same = (ours == theirs) | (ours.isnan() & theirs.isnan())
        difference = difference.nan_to_num(nan=math.inf, posinf=math.inf).masked_fill(same, 0.0)
    if not difference.numel():
        return {"difference": 0.0, "ratio": None if bound is None else 0.0, "bound": None}
    # 0 / 0 is an empty sum, which is 0 on both sides.
    ratio = None if bound is None else (difference / bound).nan_to_num(nan=0.0, posinf=math.inf)
    largest = difference if ratio is None else ratio
    index = tuple(int(i) for i in np.unravel_index(int(largest.argmax()), ours.shape))
    return {
        "difference": float(difference.max()),
        "ratio": None if ratio is None else float(ratio[index]),
        "index": index,
        "before": ours[index].item(),
        "after": theirs[index].item(),
        "bound": None if bound is None else float(bound[index]),
    }


def overflows(sums: Tensor, dtype: torch.dtype) -> bool:
    """Say whether a sum of this magnitude, wrong by as much, may be no number of this dtype."""
    return bool(sums.numel()) and not float(sums.max()) <= torch.finfo(dtype).max / 2


def not_finite(name: str, t: Tensor, remedy: str = "give an input on which they are") -> str:
    """Say in words that a tensor holds what no bound can be made of; nothing if it does not."""
    if not (t.is_floating_point() or t.is_complex()):
        return ""
    numbers = t.detach()
    if bool(numbers.isfinite().all()):
        return ""
    kinds = {"NaN": numbers.isnan(), "an infinity": numbers.isinf()}
    held = " and ".join(kind for kind, where in kinds.items() if bool(where.any()))
    return (
        f"its {name} holds {held}, so there is no rounding bound to compare with; expected finite "
        f"numbers: {remedy}"
    )


def same_bits(ours: Tensor, theirs: Tensor) -> bool:
    """Say whether two tensors of one shape and dtype hold the same bits."""
    ours, theirs = bits_of(ours), bits_of(theirs)
    if ours.device.type == theirs.device.type == "cpu":
        return np.array_equal(ours.numpy(), theirs.numpy())  # faster than torch.equal
    return torch.equal(ours, theirs)


def bits_of(t: Tensor) -> Tensor:
    """Return the bits of floating-point and complex numbers as integers; integers as they are."""
    t = t.detach()
    t = torch.view_as_real(t.resolve_conj()) if t.is_complex() else t
    return t.contiguous().view(_BITS[t.dtype.itemsize]) if t.is_floating_point() else t


def strides_of(t: Tensor) -> list[int]:
    """Return the strides that matter: an axis of one element may have any."""
    return [stride for stride, size in zip(t.stride(), t.shape, strict=True) if size > 1]


def describe(t: Tensor | None) -> str:
    """Return shape, dtype and device of a tensor, if there is one."""
    if t is None:
        return "none"
    where = "" if t.device.type == "cpu" else f" on {t.device}"
    return f"{tuple(t.shape)} of {dtype_name(t.dtype)}{where}"


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name that NumPy uses, too."""
    return str(dtype).removeprefix("torch.")


def words(error: Exception) -> str:
    r"""Return an exception as one line: its class, and what is said first.

    PyTorch's messages go on with dumps of graphs, with tables of overloads, and with advice.
    """
    return ": ".join(filter(None, (type(error).__name__, first_words(error))))


def first_words(error: Exception) -> str:
    r"""Return the first paragraph of an exception's text, as one line of at most 300 characters.

    TorchScript's messages end with what is said first elsewhere; tables of overloads are left out.
    """
    text = str(error).strip()
    if "TorchScript" in text.partition("\n")[0]:
        text = text.rpartition("\nRuntimeError: ")[2]
    for more in ("\n\n", ", but expected one of:"):
        text = text.partition(more)[0]
    return " ".join(text.split())[:300]


def sum_of_bits(t: Tensor) -> Tensor:
    """Return a number that is another one, most likely, when the tensor has been changed."""
    bits = bits_of(t).flatten()
    whole = bits.nbytes % 8 == 0 and bits.storage_offset() == 0  # fewer numbers are faster
    return (bits.view(torch.int64) if whole else bits).sum()
