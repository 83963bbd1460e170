"""A CONV layer of PyTorch as one matrix: reading it, and matrices that are tensors.

The entries of the matrix are weights, each many times. `_Along` is the map of
`convfc.operators.pattern` from filters to entries, and its adjoint, one strided copy or sum per
box. Each is the other's backward pass, so gradients of any order flow.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from convfc.errors import Refusal, UnsupportedLayer
from convfc.frameworks.torch.forms.form import form_of
from convfc.frameworks.torch.forms.patch import PatchConv
from convfc.frameworks.torch.read import CONV_CLASSES, conv_layer, obstacle, own_forward
from convfc.layer import ConvLayer
from convfc.operators.estimate import Layout
from convfc.operators.pattern import Block, MatrixPattern


def read_layer(
    module: nn.Module, input_size: Sequence[int], *, differentiable: bool = False
) -> ConvLayer:
    """Read a CONV layer in any form: native, patch or weight form, parametrized or not."""
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

    Filters are ``(f, *kernel, c / groups)``; the matrix is on their device.
    """
    indptr, indices = (_index(index, filters) for index in (pattern.indptr(), pattern.indices()))
    values = matrix_values(filters, pattern)
    if layout == "dense":
        zeros = values.new_zeros(pattern.shape[0] * pattern.shape[1])
        return zeros.scatter(0, places(indptr, indices, pattern.shape), values).view(pattern.shape)
    matrix: Tensor = _SparseRows.apply(values, indptr, indices, pattern.shape)
    return matrix


def matrix_values(filters: Tensor, pattern: MatrixPattern) -> Tensor:
    """Return the stored entries of the matrix, shape ``(nonzeros,)``: `MatrixPattern.values`."""
    ordered = filters.movedim(-1, 1) if pattern.tap_axis == 2 else filters
    values: Tensor = _Along.apply(ordered, pattern, False)
    return values


def fold(values: Tensor, pattern: MatrixPattern) -> Tensor:
    """Return the sum of all entries that hold each weight: the adjoint of `matrix_values`."""
    filters: Tensor = _Along.apply(values, pattern, True)
    return filters.movedim(1, -1) if pattern.tap_axis == 2 else filters


def places(indptr: Tensor, indices: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return where in the flattened dense matrix each stored entry stands."""
    rows = torch.arange(shape[0], device=indptr.device)
    repeated = rows.repeat_interleave(indptr.diff(), output_size=len(indices))
    return repeated.mul_(shape[1]).add_(indices)


def _entries(filters: Tensor, pattern: MatrixPattern) -> Tensor:
    """From filters, their axes in the order of a row's, to the stored entries."""
    sums = filters
    for a, axis in enumerate(pattern.axes, start=pattern.tap_axis):
        sets, taps = (_index(members, sums) for members in axis.members)
        sums = sums.index_select(a, taps)
        if axis.repeats:
            shape = (*sums.shape[:a], len(axis.contains), *sums.shape[a + 1 :])
            sums = sums.new_zeros(shape).index_add_(a, sets, sums)
    values = filters.new_empty(pattern.nonzeros)
    ones = (1,) * len(pattern.axes)
    for block in pattern.blocks():
        held = sums[_at(block, sums)]
        part = values.as_strided(block.shape, block.strides, block.offset)
        part.copy_(held.reshape(len(held), *ones, *held.shape[1:]))
    return values


def _filters(values: Tensor, pattern: MatrixPattern) -> Tensor:
    """From entries to filters, their axes in the order of a row's: sums over all that share one."""
    values = values.contiguous()
    # 16 bits would lose every entry after the first few thousand.
    wide = torch.promote_types(values.dtype, torch.float32)
    folded = values.new_zeros(pattern.sums_shape, dtype=wide)
    begin = values.storage_offset()  # which as_strided does not add by itself
    for block in pattern.blocks():
        sums = values.as_strided(block.shape, block.strides, begin + block.offset)
        for _ in pattern.positions:  # all axes in one sum take PyTorch ten times as long
            sums = sums.sum(dim=1, dtype=wide)
        folded[_at(block, sums)] += sums  # a set stands once in a box
    for a, axis in enumerate(pattern.axes, start=pattern.tap_axis):
        sets, taps = (_index(members, folded) for members in axis.members)
        shape = (*folded.shape[:a], axis.axis.taps, *folded.shape[a + 1 :])
        folded = folded.new_zeros(shape).index_add_(a, taps, folded.index_select(a, sets))
    return folded.to(values.dtype)


class _Along(torch.autograd.Function):
    """From filters to entries, or ``back``: each is the other's gradient."""

    @staticmethod
    def forward(x: Tensor, pattern: MatrixPattern, back: bool) -> Tensor:
        return _filters(x, pattern) if back else _entries(x, pattern)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, MatrixPattern, bool], output: Tensor) -> None:
        _, ctx.pattern, ctx.back = inputs

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        return _Along.apply(grads[0], ctx.pattern, not ctx.back), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        moved: Tensor = _Along.apply(tangents[0], ctx.pattern, ctx.back)
        return moved

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, pattern: MatrixPattern, back: bool) -> Any:
        batch = x.movedim(in_dims[0], 0)  # the boxes are those of one
        return torch.stack([_Along.apply(one, pattern, back) for one in batch]), 0


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
        there = places(indptr, indices, (grad.shape[0], grad.shape[1]))
        return dense.flatten().gather(0, there), None, None, None


def _index(numbers: Any, beside: Tensor) -> Tensor:
    return torch.from_numpy(numbers).to(beside.device)


def _at(block: Block, beside: Tensor) -> tuple[Any, ...]:
    """Return the place of a box among the sums, as PyTorch takes it."""
    return tuple(at if isinstance(at, slice) else _index(at, beside) for at in block.at)


def _unreadable(module: nn.Module) -> Refusal | None:
    if isinstance(module, PatchConv):
        return None
    if form_of(module) not in ("native", "patch", "weight"):
        return Refusal("it is not a CONV layer", "give one layer of the model, such as model.conv1")
    if not isinstance(module, CONV_CLASSES) or isinstance(module, LazyModuleMixin):
        return obstacle(module)
    return own_forward(module)
