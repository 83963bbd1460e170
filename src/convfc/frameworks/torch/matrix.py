"""A CONV layer of PyTorch as one matrix: reading it, and matrices that are tensors.

The entries of the matrix are weights, each many times. Two linear maps that are each other's
adjoint move them, one strided copy or sum per box of `convfc.operators.pattern`: `_Entries`, from
filters to entries, and `_Filters`, back. Each is the other's backward pass, so gradients of any
order flow.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convfc.errors import Refusal, UnsupportedLayer
from convfc.frameworks.torch.forms.form import form_of
from convfc.frameworks.torch.forms.patch import PatchConv
from convfc.frameworks.torch.read import CONV_CLASSES, conv_layer, obstacle, own_forward
from convfc.layer import ConvLayer
from convfc.operators.estimate import Layout
from convfc.operators.pattern import MatrixPattern


def read_layer(
    module: nn.Module, input_size: Sequence[int], *, differentiable: bool = False
) -> ConvLayer:
    """Read a CONV layer in any form: native, patch or weight form, parametrized or not.

    Raises
    ------
    UnsupportedLayer
        If it is no CONV layer, has no size yet, or a forward of its own.

    Examples
    --------
    >>> read_layer(nn.Conv1d(2, 3, 5), (9,)).filters.shape
    torch.Size([3, 5, 2])
    """
    blocked = _unreadable(module)
    if blocked is not None:
        raise UnsupportedLayer(
            f"{blocked.reason}; it cannot be read as one convolution",
            where=type(module).__name__,
            expected="a Conv1d ... ConvTranspose3d of torch.nn, or a form that convfc gave it",
            remedy=blocked.remedy,
        )
    return conv_layer(module, input_size, differentiable=differentiable)


def matrix_tensor(filters: Tensor, pattern: MatrixPattern, layout: Layout) -> Tensor:
    """Return the matrix of a CONV layer as a tensor, differentiable: `convfc.conv_matrix`'s door.

    Parameters
    ----------
    filters : Tensor, shape (f, *kernel, c / groups)
    pattern : MatrixPattern
    layout : {"csr", "dense"}

    Returns
    -------
    Tensor, shape ``pattern.shape``
        On the filters' device.

    Examples
    --------
    >>> from convfc import ConvGeometry
    >>> from convfc.operators.pattern import matrix_pattern
    >>> pattern = matrix_pattern(ConvGeometry(1, 1, (2,)), (3,), "channels_first")
    >>> matrix_tensor(torch.tensor([[[3], [5]]]), pattern, "dense")
    tensor([[3, 5, 0],
            [0, 3, 5]])
    """
    indptr, indices = (
        torch.from_numpy(index).to(filters.device)
        for index in (pattern.indptr(), pattern.indices())
    )
    values = matrix_values(filters, pattern)
    if layout == "dense":
        places = _places(indptr, indices, pattern.shape[1])
        zeros = values.new_zeros(pattern.shape[0] * pattern.shape[1])
        return zeros.scatter(0, places, values).view(pattern.shape)
    matrix: Tensor = _SparseRows.apply(values, indptr, indices, pattern.shape)
    return matrix


def matrix_values(filters: Tensor, pattern: MatrixPattern) -> Tensor:
    """Return the stored entries of the matrix, shape ``(nonzeros,)``: `MatrixPattern.values`.

    Examples
    --------
    >>> from convfc import ConvGeometry
    >>> from convfc.operators.pattern import matrix_pattern
    >>> pattern = matrix_pattern(ConvGeometry(1, 1, (2,)), (3,), "channels_first")
    >>> matrix_values(torch.tensor([[[3], [5]]]), pattern)
    tensor([3, 5, 3, 5])
    """
    ordered = filters.movedim(-1, 1) if pattern.order == "channels_first" else filters
    values: Tensor = _Entries.apply(ordered, pattern)
    return values


class _Entries(torch.autograd.Function):
    """From filters, their axes in the order of a row's, to the stored entries."""

    @staticmethod
    def forward(filters: Tensor, pattern: MatrixPattern) -> Tensor:
        values = filters.new_empty(pattern.nonzeros)
        ndim = len(pattern.axes)
        filters = filters.contiguous()
        for block in pattern.blocks():
            weights = filters
            for axis, run in enumerate(block.runs, start=pattern.tap_axis):
                weights = weights.index_select(axis, _index(run.taps, weights))
                if run.repeats:
                    shape = (*weights.shape[:axis], len(run.first), *weights.shape[axis + 1 :])
                    sums = weights.new_zeros(shape)
                    weights = sums.index_add_(axis, _index(run.elements, weights), weights)
            part = values.as_strided(block.shape, block.strides, block.offset)
            part.copy_(weights.view(len(weights), *(1,) * ndim, *weights.shape[1:]))
        return values

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, MatrixPattern], output: Tensor) -> None:
        ctx.pattern = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        return _Filters.apply(grads[0], ctx.pattern), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        values: Tensor = _Entries.apply(tangents[0], ctx.pattern)
        return values

    @staticmethod
    def vmap(info: Any, in_dims: Any, filters: Tensor, pattern: MatrixPattern) -> Any:
        return _one_by_one(_Entries, filters, in_dims[0], pattern)


class _Filters(torch.autograd.Function):
    """From entries to filters, their axes in the order of a row's: sums over all that share one."""

    @staticmethod
    def forward(values: Tensor, pattern: MatrixPattern) -> Tensor:
        values = values.contiguous()
        first, *kernel, last = pattern.geometry.filters_shape
        shape = (first, *kernel, last) if pattern.tap_axis == 1 else (first, last, *kernel)
        # 16 bits would lose every entry after the first few thousand.
        wide = torch.promote_types(values.dtype, torch.float32)
        folded = values.new_zeros(shape, dtype=wide)
        ndim = len(kernel)
        begin = values.storage_offset()  # which as_strided does not add by itself
        for block in pattern.blocks():
            sums = values.as_strided(block.shape, block.strides, begin + block.offset)
            for _ in range(ndim):  # all axes in one sum take PyTorch ten times as long
                sums = sums.sum(dim=1, dtype=wide)
            taps: list[Any] = [slice(None)] * pattern.tap_axis
            for axis, run in enumerate(block.runs):
                sums = sums.index_select(pattern.tap_axis + axis, _index(run.elements, sums))
                places = _index(run.taps, sums)
                taps.append(places.view(-1, *(1,) * (ndim - 1 - axis)))
            folded[tuple(taps)] += sums  # a tap stands once in a run
        return folded.to(values.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, MatrixPattern], output: Tensor) -> None:
        ctx.pattern = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        return _Entries.apply(grads[0], ctx.pattern), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        filters: Tensor = _Filters.apply(tangents[0], ctx.pattern)
        return filters

    @staticmethod
    def vmap(info: Any, in_dims: Any, values: Tensor, pattern: MatrixPattern) -> Any:
        return _one_by_one(_Filters, values, in_dims[0], pattern)


class _SparseRows(torch.autograd.Function):
    """From stored entries to the sparse tensor; PyTorch's own would make its gradient dense."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, indptr: Tensor, indices: Tensor, shape: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(indptr, indices)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)
            return torch.sparse_csr_tensor(indptr, indices, values, shape, check_invariants=False)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None, None]:
        indptr, indices = ctx.saved_tensors
        grad: Tensor = grads[0]
        if grad.layout is torch.sparse_csr and len(grad.values()) == len(indices):
            same = (grad.crow_indices() == indptr).all() & (grad.col_indices() == indices).all()
            if same:
                return grad.values(), None, None, None
        dense = grad if grad.layout is torch.strided else grad.to_dense()
        places = _places(indptr, indices, grad.shape[1])
        return dense.flatten().gather(0, places), None, None, None


def _places(indptr: Tensor, indices: Tensor, columns: int) -> Tensor:
    """Where in the flattened dense matrix each stored entry stands."""
    rows = torch.arange(len(indptr) - 1, device=indptr.device)
    repeated = rows.repeat_interleave(indptr.diff(), output_size=len(indices))
    return repeated.mul_(columns).add_(indices)


def _index(numbers: Any, beside: Tensor) -> Tensor:
    return torch.from_numpy(numbers).to(beside.device)


def _one_by_one(
    function: Any, batch: Tensor, in_dim: int, pattern: MatrixPattern
) -> tuple[Tensor, int]:
    """Batched by ``torch.vmap``: the boxes are those of one."""
    return torch.stack([function.apply(one, pattern) for one in batch.movedim(in_dim, 0)]), 0


def _unreadable(module: nn.Module) -> Refusal | None:
    if isinstance(module, PatchConv):
        return None
    if form_of(module) not in ("native", "patch", "weight"):
        return Refusal("it is no CONV layer", "give one layer of the model, such as model.conv1")
    if not isinstance(module, CONV_CLASSES):
        return obstacle(module)
    return own_forward(module)
