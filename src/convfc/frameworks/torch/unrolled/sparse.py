"""A Linear with a sparse weight: what PyTorch can do with it, and what has to be done for it.

On the CPU PyTorch multiplies by a weight in compressed sparse rows (CSR) in float32, float64 and
their complex kin, forward and backward; state dicts are saved and loaded. It has no deep copy of a
sparse parameter, and no optimizer changes one: the gradient that it makes is dense.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["change_sparse", "deep_copy", "is_sparse", "multiplies", "sparse_twins"]

_Module = TypeVar("_Module", bound=nn.Module)
_BETA = "Sparse CSR tensor support is in beta state"


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


def sparse_twins(model: nn.Module) -> dict[int, Any]:
    """Return copies of a model's sparse parameters by their ``id``: a memo for `copy.deepcopy`.

    PyTorch cannot copy them in this way itself.

    Examples
    --------
    >>> sparse_twins(nn.Linear(2, 2))
    {}
    """
    twins: dict[int, Any] = {}
    for parameter in model.parameters():
        if is_sparse(parameter):
            twins[id(parameter)] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
    return twins


def deep_copy(model: _Module, twins: dict[int, Any] | None = None) -> _Module:
    """Return a deep copy of a module, its weights sparse or not.

    Parameters
    ----------
    model : nn.Module
    twins : dict, optional
        It receives the copies of everything inside by the ``id`` of what they are copies of.

    Examples
    --------
    >>> layer = nn.Linear(2, 2)
    >>> deep_copy(layer).weight is layer.weight
    False
    """
    memo = {} if twins is None else twins
    memo.update(sparse_twins(model))
    return copy.deepcopy(model, memo)


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
                twin = nn.Parameter(_changed(parameter.detach(), change), parameter.requires_grad)
                made[id(parameter)] = (parameter, twin)
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
