"""The matrices of layers and functions that are affine, and of those that only move numbers.

CONV layers, ``nn.Linear`` and BatchNorm are built from their parameters. What only moves numbers
(flattening, permuting, padding, concatenating, slicing) is run on numbered elements, and the rest
on the vectors of a basis: there PyTorch itself says what it does.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from convfc.errors import UnsupportedLayer
from convfc.frameworks.torch.forms import form_of
from convfc.frameworks.torch.matrix import read_layer
from convfc.frameworks.torch.simplify.ir import Value, affine, linear
from convfc.frameworks.torch.tensors import wide
from convfc.layer import ConvLayer
from convfc.operators.estimate import MatrixEstimate, pattern_estimate
from convfc.operators.matrix import conv_matrix, conv_offset
from convfc.operators.pattern import matrix_pattern

__all__ = [
    "Tracked",
    "conv_map",
    "estimate",
    "in_double",
    "moved",
    "norm_map",
    "numbers",
    "probed",
    "refuse",
    "scaled",
    "shared_linear_map",
    "shifted",
]

_BLOCK = 2**26  # bytes of basis vectors, or of their images, that are held at a time
_NORM_ROUNDINGS = 8  # eps, the root, its inverse, two products, a difference, a sum, one to store
_REMEDY = (
    "leave out simplify=True, which keeps every layer and unrolls the convolutions only, or "
    "simplify the parts before and behind it"
)


class Tracked(NamedTuple):
    """A value of the network, and the shape that one example's tensor has."""

    value: Value
    shape: tuple[int, ...]


def refuse(what: str, where: str, remedy: str = _REMEDY) -> UnsupportedLayer:
    """Return the error for something that no plain MLP computes, or that is not known to be one.

    Examples
    --------
    >>> print(refuse("it normalises each example", "norm", "leave it out"))
    norm: it normalises each example; it cannot be simplified. Remedy: leave it out
    """
    return UnsupportedLayer(f"{what}; it cannot be simplified", where=where, remedy=remedy)


def numbers(t: Tensor) -> npt.NDArray[Any]:
    """Return a tensor as float64 or complex128.

    Examples
    --------
    >>> numbers(torch.ones(1, dtype=torch.bfloat16))
    array([1.])
    """
    t = t.detach().cpu()
    t = t if t.layout is torch.strided else t.to_dense()
    array: npt.NDArray[Any] = wide(t).resolve_conj().numpy()
    return array


def estimate(module: nn.Module, x: Tensor) -> MatrixEstimate | None:
    """Return how large the matrix of a layer will be that is called on a tensor; None without one.

    Zeros of an ``nn.Linear`` are left out, so that those of an unrolled layer cost nothing.

    Examples
    --------
    >>> print(estimate(nn.Conv1d(1, 2, 3), torch.zeros(1, 1, 5)))
    6 x 5, 18 entries (60 %), 244 bytes
    """
    if form_of(module) in ("native", "patch", "weight"):
        size = tuple(x.shape[-len(module.kernel_size) :])  # type: ignore[arg-type]
        pattern = matrix_pattern(read_layer(module, size).geometry, size, "channels_first")
        return pattern_estimate(pattern, _wide(module.weight))  # type: ignore[arg-type]
    if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
        weight, rows = module.weight, math.prod(x.shape[1:-1])
        dense = weight.layout is torch.strided
        nonzeros = rows * int(torch.count_nonzero(weight) if dense else weight._nnz())
        shape = (rows * module.out_features, rows * module.in_features)
        index = 4  # bytes
        return MatrixEstimate(shape, nonzeros, (_wide(weight).itemsize + index) * nonzeros)
    return None


def _wide(weight: Tensor) -> np.dtype[Any]:
    return np.dtype(np.complex128 if weight.is_complex() else np.float64)


def conv_map(module: nn.Module, x: Tracked, memory: float | None) -> Value:
    """Return what a CONV layer, in any form, makes of a value."""
    layer = read_layer(module, x.shape[1:])
    bias = None if layer.bias is None else numbers(layer.bias)
    layer = ConvLayer(layer.geometry, numbers(layer.filters), bias)
    size = x.shape[1:]
    matrix = conv_matrix(layer, size, order="channels_first", memory=memory)
    offset = conv_offset(layer, size, order="channels_first").astype(matrix.dtype)
    return affine({x.value: matrix}, offset, layer=module, input_size=tuple(size))


def shared_linear_map(module: nn.Module, x: Tracked) -> Value:
    """Return what an ``nn.Linear`` makes of the last axis of a value."""
    weight: Any = module.weight
    matrix, rows = sparse.csr_array(numbers(weight)), math.prod(x.shape[:-1])
    bias = np.zeros(matrix.shape[0]) if module.bias is None else numbers(module.bias)  # type: ignore[arg-type]
    whole = matrix if rows == 1 else sparse.kron(sparse.eye_array(rows), matrix, format="csr")
    return affine({x.value: whole}, np.tile(bias, rows), layer=module)


def norm_map(module: Any, x: Tracked) -> Value:
    """Return what a BatchNorm in evaluation mode makes of a value: a scale and a shift.

    From the running mean m and variance v, ``(x - m) * weight / sqrt(v + eps) + bias``.
    """
    mean, variance = numbers(module.running_mean), numbers(module.running_var)
    scale = 1 / np.sqrt(variance + module.eps)
    if module.weight is not None:
        scale = scale * numbers(module.weight)
    bias = np.zeros_like(mean) if module.bias is None else numbers(module.bias)
    each = math.prod(x.shape[1:])
    return affine(
        {x.value: sparse.diags_array(np.repeat(scale, each), format="csr")},
        np.repeat(bias - mean * scale, each),
        layer=module,
        offset_modulus=np.repeat(np.abs(bias) + np.abs(mean * scale), each),
        roundings=_NORM_ROUNDINGS,
    )


def scaled(x: Tracked, factor: npt.NDArray[Any]) -> Value:
    """Return a value times constants, one per element."""
    return linear(x.value, sparse.diags_array(factor.ravel(), format="csr"), roundings=1)


def shifted(x: Value, offset: npt.NDArray[Any]) -> Value:
    """Return a value plus constants, one per element."""
    return affine({x: sparse.eye_array(x.size, format="csr")}, offset.ravel(), roundings=1)


def moved(call: Callable[[list[Tensor]], Any], inputs: Sequence[Tracked], where: str) -> Any:
    """Return what a call that only moves numbers, or puts constants beside them, makes of values.

    Parameters
    ----------
    call : callable
        Of one tensor ``(n, *shape)`` per input; it may return tensors in tuples and lists.
    inputs : sequence of Tracked
    where : str
        For messages.

    Returns
    -------
    Tracked
        Or tuples and lists of them.

    Raises
    ------
    UnsupportedLayer
        If numbers of one example reach another example, or the batch axis is not the first one.
    """
    total = sum(one.value.size for one in inputs)
    given, first = [], 1
    for one in inputs:
        index = torch.arange(first, first + one.value.size, dtype=torch.float64)
        given.append(torch.stack([index, index + total]).reshape(2, *one.shape))
        first += one.value.size
    constants: list[Tensor] = []
    tree_map(constants.append, call([torch.zeros_like(t) for t in given]))
    constant = iter(constants)

    def read(result: Tensor) -> Tracked:
        offset = next(constant)
        index = result - offset
        row, other = index[0], index[1] if index.dim() and len(index) == 2 else index
        if (
            index.dim() == 0
            or len(index) != 2
            or not torch.equal(other, torch.where(row > 0, row + total, 0.0))
        ):
            raise refuse("it does not treat each example of a batch by itself", where)
        shape, number = tuple(row.shape), row.flatten().numpy().astype(np.int64) - 1
        return Tracked(_selected(inputs, number, offset[0].flatten().numpy()), shape)

    return tree_map(read, call(given))


def _selected(
    inputs: Sequence[Tracked], number: npt.NDArray[Any], offset: npt.NDArray[Any]
) -> Value:
    """Return the value whose elements are these ones of the inputs, -1 for none."""
    terms: dict[Value, Any] = {}
    first = 0
    for one in inputs:
        n = one.value.size
        rows = np.flatnonzero((number >= first) & (number < first + n))
        if len(rows):
            entries = (np.ones(len(rows)), (rows, number[rows] - first))
            matrix = sparse.csr_array(sparse.coo_array(entries, shape=(len(number), n)))
            terms[one.value] = terms[one.value] + matrix if one.value in terms else matrix
        first += n
    return affine(terms, offset)


def probed(
    call: Callable[[Tensor], Tensor], x: Tracked, where: str, *, channelwise: bool = False
) -> Tracked:
    """Return what an affine call makes of a value: its matrix is found on the vectors of a basis.

    Parameters
    ----------
    call : callable
        Of a tensor ``(n, *shape)`` in float64.
    x : Tracked
    where : str
        For messages.
    channelwise : bool
        Whether it does the same to every channel; then one channel is enough.

    Raises
    ------
    UnsupportedLayer
        If numbers of one example reach another example, or the batch axis is not the first one.
    """
    shape = (1, *x.shape[1:]) if channelwise else x.shape
    zero = call(torch.zeros(2, *shape, dtype=torch.float64))
    if not zero.dim() or len(zero) != 2 or not _by_example(call, shape):
        raise refuse("it does not treat each example of a batch by itself", where)
    n, rows = math.prod(shape), zero[0].numel()
    step = max(1, _BLOCK // (8 * max(n, rows, 1)))
    blocks = []
    for first in range(0, n, step):
        basis = torch.zeros(min(step, n - first), n, dtype=torch.float64)
        basis.diagonal(first).fill_(1)
        image = call(basis.reshape(-1, *shape)) - zero[:1]
        blocks.append(sparse.csr_array(image.flatten(1).numpy()))
    matrix = sparse.csr_array(sparse.vstack(blocks).T)
    offset, out = zero[0].flatten().numpy(), tuple(zero.shape[1:])
    if channelwise:
        channels = x.shape[0]
        matrix = sparse.kron(sparse.eye_array(channels), matrix, format="csr")
        offset, out = np.tile(offset, channels), (channels, *out[1:])
    return Tracked(affine({x.value: matrix}, offset, roundings=2), out)


def _by_example(call: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> bool:
    """Say whether the first example's result is the same whatever the second one is."""
    ramp = torch.arange(2 * math.prod(shape), dtype=torch.float64).reshape(2, *shape)
    return torch.equal(call(ramp)[:1], call(ramp[[0, 0]])[:1])


def in_double(module: nn.Module) -> nn.Module:
    """Return a copy of a module that computes in float64."""
    return copy.deepcopy(module).cpu().double()
