"""Tensors in float64, compared, described in words; and what PyTorch lacks for sparse ones.

On the CPU PyTorch multiplies by a weight in compressed sparse rows (CSR) in float32, float64 and
their complex kin, forward and backward. It has no deep copy of a sparse parameter (see `running`),
and no optimizer changes one: the gradient that it makes is dense.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_BETA = "Sparse CSR tensor support is in beta state"
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def wide(t: Tensor) -> Tensor:
    """Return a tensor in float64; in complex128 if it is complex.

    Examples
    --------
    >>> wide(torch.ones(2, dtype=torch.bfloat16))
    tensor([1., 1.], dtype=torch.float64)
    """
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
    """Say in words that a tensor holds what no bound can be made of; nothing if it does not.

    Examples
    --------
    >>> not_finite("input", torch.tensor([1.0, math.nan]))
    'its input holds NaN, so there is no rounding bound to compare with; expected finite ...'
    >>> not_finite("input", torch.ones(2))
    ''
    """
    if not (t.is_floating_point() or t.is_complex()):
        return ""
    numbers = (
        t.detach() if t.layout is torch.strided else t.detach().to_sparse_coo().coalesce().values()
    )
    if bool(numbers.isfinite().all()):
        return ""
    kinds = {"NaN": numbers.isnan(), "an infinity": numbers.isinf()}
    held = " and ".join(kind for kind, where in kinds.items() if bool(where.any()))
    return (
        f"its {name} holds {held}, so there is no rounding bound to compare with; expected finite "
        f"numbers: {remedy}"
    )


def same_bits(ours: Tensor, theirs: Tensor) -> bool:
    """Say whether two tensors of one shape and dtype hold the same bits.

    Examples
    --------
    >>> same_bits(torch.tensor(0.0), torch.tensor(-0.0))
    False
    """
    if ours.is_complex():
        ours, theirs = (torch.view_as_real(t.detach().resolve_conj()) for t in (ours, theirs))
    if ours.is_floating_point() and ours.dtype.itemsize in _BITS:
        kind = _BITS[ours.dtype.itemsize]
        ours, theirs = (t.detach().contiguous().view(kind) for t in (ours, theirs))
        if ours.device.type == theirs.device.type == "cpu":
            return np.array_equal(ours.numpy(), theirs.numpy())  # faster than torch.equal
    return torch.equal(ours, theirs)


def strides_of(t: Tensor) -> list[int]:
    """Return the strides that matter: an axis of one element may have any."""
    return [stride for stride, size in zip(t.stride(), t.shape, strict=True) if size > 1]


def describe(t: Tensor | None) -> str:
    """Return shape, dtype and device of a tensor, if there is one.

    Examples
    --------
    >>> describe(torch.zeros(2, 3))
    '(2, 3) of float32'
    """
    if t is None:
        return "none"
    where = "" if t.device.type == "cpu" else f" on {t.device}"
    return f"{tuple(t.shape)} of {dtype_name(t.dtype)}{where}"


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name that NumPy uses, too.

    Examples
    --------
    >>> dtype_name(torch.bfloat16)
    'bfloat16'
    """
    return str(dtype).removeprefix("torch.")


def words(error: Exception) -> str:
    r"""Return an exception as one line: its class, and what is said first.

    PyTorch's messages go on with dumps of graphs, with tables of overloads, and with advice.

    Examples
    --------
    >>> words(RuntimeError("the sizes\ndiffer\n\nWhile executing %c : [num_users=1]"))
    'RuntimeError: the sizes differ'
    >>> words(AssertionError())
    'AssertionError'
    """
    return ": ".join(filter(None, (type(error).__name__, first_words(error))))


def first_words(error: Exception) -> str:
    r"""Return the first paragraph of an exception's text, as one line of at most 300 characters.

    TorchScript's messages end with what is said first elsewhere; tables of overloads are left out.

    Examples
    --------
    >>> first_words(KeyError("size"))
    "'size'"
    >>> first_words(RuntimeError("The following ... TorchScript\nTraceback\nRuntimeError: no\n"))
    'no'
    """
    text = str(error).strip()
    if "TorchScript" in text.partition("\n")[0]:
        text = text.rpartition("\nRuntimeError: ")[2]
    for more in ("\n\n", ", but expected one of:"):
        text = text.partition(more)[0]
    return " ".join(text.split())[:300]


def is_sparse(t: Tensor) -> bool:
    """Say whether a tensor is in a sparse layout.

    Examples
    --------
    >>> is_sparse(torch.zeros(2)), is_sparse(torch.zeros(2).to_sparse())
    (False, True)
    """
    return t.layout is not torch.strided


def multiplies(dtype: torch.dtype, device: torch.device) -> bool:
    """Say whether PyTorch multiplies by sparse weights of a dtype on a device: it is tried.

    Examples
    --------
    >>> multiplies(torch.float32, torch.device("cpu"))
    True
    >>> multiplies(torch.bfloat16, torch.device("cpu"))
    False
    """
    one = torch.ones(1, 1, dtype=dtype, device=device)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", _BETA)
            nn.functional.linear(one, one.to_sparse_csr())
    except (RuntimeError, NotImplementedError):
        return False
    return True


def change_sparse(model: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """Change the stored numbers of every sparse parameter of a model, which gets new parameters.

    PyTorch's own ``_apply`` leaves a sparse parameter with numbers of two dtypes.

    Examples
    --------
    >>> model = nn.Linear(1, 1, bias=False)
    >>> model.weight = nn.Parameter(torch.ones(1, 1).to_sparse_coo())
    >>> change_sparse(model, lambda t: 2 * t.double())
    >>> model.weight.detach().to_dense()
    tensor([[2.]], dtype=torch.float64)
    """
    made: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # held: no id is used twice
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or not is_sparse(parameter):
                continue
            if id(parameter) not in made:
                copied = nn.Parameter(_changed(parameter.detach(), change), parameter.requires_grad)
                made[id(parameter)] = (parameter, copied)
            module._parameters[name] = made[id(parameter)][1]


def _changed(matrix: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", _BETA)
        if matrix.layout is torch.sparse_csr:
            return torch.sparse_csr_tensor(
                matrix.crow_indices(),
                matrix.col_indices(),
                change(matrix.values().clone()),  # no view: it has no strides
                size=matrix.shape,
                check_invariants=False,
            )
        coordinates = matrix.to_sparse_coo().coalesce()
        changed = torch.sparse_coo_tensor(
            coordinates.indices(),
            change(coordinates.values().clone()),
            size=matrix.shape,
            check_invariants=False,
        )
        return (
            changed
            if matrix.layout is torch.sparse_coo
            else changed.to_sparse(layout=matrix.layout)
        )
