"""A CONV layer as a SciPy operator: the matrix of `conv_matrix`, of which nothing is ever built.

Forwards it is Algorithm 1 in blocks of rows of M; its adjoint turns the steps round, tap by tap. A
layer of a framework is multiplied by the framework's own convolution instead, if its room has
`Room.linear_maps`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse.linalg import LinearOperator

from convfc.algorithm1 import conv_as_matmul
from convfc.arrays import accumulating_dtype, as_numpy
from convfc.errors import DtypeError
from convfc.geometry import ConvGeometry
from convfc.indexmap import IndexMap, index_map
from convfc.layer import ConvLayer, Order
from convfc.registry import read_layer, room_of_filters
from convfc.room import LinearMap, Room

_BLOCK = 2**22
"""Bytes of M that are held at a time: they stay in the cache, and larger blocks are no faster."""

_NATIVE = frozenset({"float32", "float64", "complex64", "complex128"})
"""Dtypes that are handed to a framework; integers and the rest stay with NumPy."""


class ConvOperator(LinearOperator):  # type: ignore[misc]  # SciPy has no types
    """A CONV layer without its bias as a linear operator; `conv_operator` makes it.

    Everything that SciPy's `LinearOperator` has: ``@``, ``matmat``, ``rmatmat``, ``.H``, ``.T``,
    sums, multiples, powers, and products with other operators.

    Attributes
    ----------
    shape : (int, int)
        ``(f * product of the output size, c * product of the input size)``.
    dtype : numpy.dtype
        Of the filters; booleans and small integers widened, as NumPy's sums are.
    geometry : ConvGeometry
    input_size, output_size : tuple of int
        Spatial sizes.
    order : {"channels_first", "channels_last"}
        Of the axes of input and output, before they are flattened.
    filters : NumPy array, shape (f, *kernel, c / groups)
        A copy, and all that is held.
    """

    def __init__(self, layer: ConvLayer, where: IndexMap, order: Order, room: Room | None):
        filters = np.array(as_numpy(layer.filters, "filters"))
        geometry = where.geometry
        shape = (
            geometry.out_channels * where.shape[0],
            geometry.in_channels * math.prod(where.input_size),
        )
        super().__init__(accumulating_dtype(np, filters=filters), shape)
        filters.setflags(write=False)
        self.geometry, self.filters, self.order = geometry, filters, order
        self.input_size, self.output_size = where.input_size, where.output_size
        self._where = where
        self._native: tuple[LinearMap, LinearMap] | None = None
        if room is not None:
            self._native = room.linear_maps(layer, where.input_size)

    def _matmat(self, X: Any) -> npt.NDArray[Any]:
        return self._apply(X, adjoint=False)

    def _rmatmat(self, X: Any) -> npt.NDArray[Any]:
        return self._apply(X, adjoint=True)

    def _rmatvec(self, x: Any) -> npt.NDArray[Any]:  # SciPy makes _matvec of _matmat itself
        return self._apply(np.asarray(x).reshape(-1, 1), adjoint=True)

    def _apply(self, X: Any, *, adjoint: bool) -> npt.NDArray[Any]:
        """Multiply all columns at once: they are a batch."""
        X = np.asarray(X)
        if X.dtype.kind not in "biufc":
            raise DtypeError(
                "the vectors hold no numbers",
                where="X",
                got=X.dtype,
                remedy="give a dense NumPy array of numbers",
            )
        dtype = np.result_type(self.dtype, X.dtype)
        if dtype.kind == "c" and self.dtype.kind != "c":
            # Real filters act on both parts alone: half of what complex filters would cost.
            both = self._apply(np.concatenate([X.real, X.imag], axis=1), adjoint=adjoint)
            product = np.empty((len(both), X.shape[1]), dtype, order="F")
            product.real, product.imag = np.split(both, 2, axis=1)
            return product
        channels, spatial = self.geometry.in_channels, self.input_size
        if adjoint:
            channels, spatial = self.geometry.out_channels, self.output_size
        first = self.order == "channels_first"
        axes = (channels, *spatial) if first else (*spatial, channels)
        batch = X.T.astype(dtype, copy=False).reshape(X.shape[1], *axes)
        if self._native is not None and dtype.name in _NATIVE:
            product = self._native[adjoint](batch if first else np.moveaxis(batch, -1, 1))
            product = product if first else np.moveaxis(product, 1, -1)
        else:
            filters = self.filters.astype(dtype, copy=False)
            batch = np.moveaxis(batch, 1, -1) if first else batch
            if adjoint:
                product = _multiply_adjoint(batch, filters, self._where)
            else:
                memory = max(_BLOCK, self._where.shape[1] * dtype.itemsize)
                product = conv_as_matmul(batch, filters, self.geometry, memory=memory)
            product = np.moveaxis(product, -1, 1) if first else product
        return product.reshape(X.shape[1], self.shape[adjoint]).T


def conv_operator(
    layer: Any,
    input_size: Sequence[int],
    geometry: ConvGeometry | None = None,
    *,
    order: Order | None = None,
) -> ConvOperator:
    """Return a CONV layer as a linear operator that holds nothing but its filters.

    ``conv_operator(...) @ x`` is ``conv_matrix(...) @ x``: the layer on the flattened input,
    without its bias (`conv_offset`). Iterative methods (SciPy's ``svds``, ``lsqr``, ``eigsh``) then
    work on layers whose matrix would fit into no memory.

    Arguments and errors are those of `conv_matrix`; multiplying raises a `DtypeError` for vectors
    without numbers. A copy of the filters is kept: the operator does not change with the layer.

    Notes
    -----
    The columns of ``op.matmat(X)`` are one batch, convolved in one call. A layer of PyTorch, or
    filters that are its tensors, are multiplied by PyTorch's own convolution and its adjoint, on
    their device; everything else (arrays, integers, float16) by NumPy. Integers are exact. A
    product has the dtype that NumPy gives the two: with a float64 vector a float32 layer calculates
    in float64. Cast the vector to ``op.dtype`` for speed.

    Examples
    --------
    >>> geometry = ConvGeometry(1, 1, (2,))
    >>> op = conv_operator(np.array([3, 5]).reshape(1, 2, 1), (4,), geometry)
    >>> op @ np.array([1, 0, 0, 2])
    array([ 3,  0, 10])
    >>> op.H @ np.array([1, 0, 0])
    array([3, 5, 0, 0])

    Two layers in sequence are the product of their operators:

    >>> (op.H @ op).shape
    (4, 4)
    """
    reading = read_layer(layer, geometry, input_size=input_size, order=order)
    where = index_map(reading.layer.geometry, input_size)
    room = reading.room or room_of_filters(reading.layer.filters)
    return ConvOperator(reading.layer, where, reading.order, room)


def _multiply_adjoint(
    y: npt.NDArray[Any], filters: npt.NDArray[Any], where: IndexMap
) -> npt.NDArray[Any]:
    """Return ``(b, *spatial, c)`` of ``(b, *output, f)``."""
    f, *kernel, per_group = filters.shape
    groups, batch = where.geometry.groups, len(y)
    by_group = filters.conj().reshape(groups, f // groups, *kernel, per_group)
    columns = np.moveaxis(y.reshape(-1, groups, f // groups), 1, 0)
    sizes = (len(axis.source) for axis in where.axes)
    padded = np.zeros((groups, batch, *sizes, per_group), y.dtype)
    for tap in np.ndindex(*kernel):
        product = columns @ by_group[(slice(None), slice(None), *tap)]
        window = [slice(None), slice(None)]
        for axis, t in zip(where.axes, tap, strict=True):
            first = axis.first + t * axis.tap_step
            window.append(slice(first, first + axis.positions * axis.step, axis.step))
        padded[tuple(window)] += product.reshape(groups, batch, *where.output_size, per_group)
    # Every element of the padded input is added to the one it holds: the adjoint of `stretch.pad`.
    for a, axis in enumerate(where.axes, start=2):
        places = np.moveaxis(padded, a, 0)
        held = np.flatnonzero(axis.source >= 0)
        elements, once = np.unique(axis.source[held], return_index=True)
        total = np.zeros((axis.size, *places.shape[1:]), y.dtype)
        total[elements] = places[held[once]]
        for again in np.delete(held, once):
            total[axis.source[again]] += places[again]
        padded = np.moveaxis(total, 0, a)
    return np.moveaxis(padded, 0, -2).reshape(batch, *where.input_size, -1)
