"""Algorithm 1 of Ma & Lu (2017), step by step: a convolution as the matrix product M K.

====== ====================================== =====================
Step 1 output size, Eq. (5) and (6)           `ConvGeometry.output_size`
Step 2 stretch the input to M                 `im2col`
Step 3 stretch the filters to K               `filters_to_matrix`
Step 4 the product M K                        `patch_product`
Step 5 reshape rows to output positions       `rows_to_output`
====== ====================================== =====================

`conv_as_matmul` is the whole, `col2im` the adjoint of `im2col`. Every function takes NumPy, PyTorch
or JAX arrays and returns the same kind, with gradients where the library has them. Which element an
entry of M reads is defined in `convfc.indexmap` alone. Inputs are ``(b, *spatial, c)``, filters
``(f, *kernel, c / groups)``, outputs ``(b, *output size, f)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from convfc.arrays import (
    Array,
    accumulating_dtype,
    check_input,
    check_shape,
    itemsize,
    namespace,
    take_or_zero,
)
from convfc.errors import MemoryBudgetError
from convfc.geometry import ConvGeometry, checked
from convfc.indexmap import IndexMap, index_map
from convfc.sizes import budget
from convfc.stretch import pad, row_blocks, stack_rows, stretch

__all__ = [
    "DEFAULT_MEMORY",
    "col2im",
    "conv_as_matmul",
    "filters_to_matrix",
    "im2col",
    "matrix_to_filters",
    "patch_product",
    "rows_to_output",
]

DEFAULT_MEMORY = 2**30
"""Bytes that a patch matrix may take unless ``memory=`` says otherwise: 1 GiB."""

_DEFAULT = f"leave it out for the default of {DEFAULT_MEMORY} bytes"


def im2col(x: Array, geometry: ConvGeometry, *, memory: float = DEFAULT_MEMORY) -> Array:
    """Stretch the input to the patch matrix M: step 2 of Algorithm 1.

    Parameters
    ----------
    x : array, shape (b, *spatial, c)
        Of any numeric or boolean dtype, which M keeps.
    geometry : ConvGeometry
    memory : int or float
        Bytes that M may take.

    Returns
    -------
    array, shape (b, L, groups * k)
        One row per output position. With groups, columns ``g * k`` to ``(g + 1) * k`` are the patch
        matrix of group g. Of a 1 x 1 convolution it may share memory with ``x``.

    Raises
    ------
    ShapeError, DtypeError
        If ``x`` is not such an array.
    GeometryError
        If the geometry does not fit the size of ``x``.
    MemoryBudgetError
        If M would take more than ``memory`` bytes.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.arange(9).reshape(1, 3, 3, 1)
    >>> im2col(x, ConvGeometry(1, 1, (2, 2)))
    array([[[0, 1, 3, 4],
            [1, 2, 4, 5],
            [3, 4, 6, 7],
            [4, 5, 7, 8]]])
    """
    xp, where = _input(x, geometry)
    shape = geometry.patch_matrix_shape(x.shape[0], where.input_size)
    needed = math.prod(shape) * itemsize(x.dtype)
    if needed > budget(memory, remedy=_DEFAULT):
        raise MemoryBudgetError(
            f"the patch matrix {shape} of {x.dtype} is larger than the budget",
            where="memory",
            expected=f"at least {needed} bytes",
            got=memory,
            remedy="use conv_as_matmul(x, filters, geometry, memory=...), which never holds M, "
            f"or allow it with im2col(x, geometry, memory={needed})",
        )
    whole = [(0, n) for n in (x.shape[0], *where.output_size)]
    return xp.reshape(stretch(xp, pad(xp, x, where), where, whole), shape)


def col2im(patches: Array, geometry: ConvGeometry, input_size: Sequence[int]) -> Array:
    """Add every entry of a patch matrix to the input element it reads: the adjoint of `im2col`.

    For every x and M, ``sum(im2col(x) * M) == sum(x * col2im(M))``; it is how gradients flow back
    through Algorithm 1, and how a transposed convolution is computed from a product.

    Parameters
    ----------
    patches : array, shape (b, L, groups * k)
        Integers and booleans are added up as ``sum`` adds them, in the default integer.
    geometry : ConvGeometry
    input_size : sequence of int
        Spatial size of the result: L does not determine it.

    Returns
    -------
    array, shape (b, *spatial, c)

    Raises
    ------
    ShapeError, DtypeError, GeometryError
        If the patches are not a patch matrix of this geometry and input size.

    Examples
    --------
    Patches of ones count how many windows see each element.

    >>> import numpy as np
    >>> col2im(np.ones((1, 4, 4), dtype=int), ConvGeometry(1, 1, (2, 2)), (3, 3))[0, :, :, 0]
    array([[1, 2, 1],
           [2, 4, 2],
           [1, 2, 1]])
    """
    xp = namespace(patches=patches)
    where = index_map(geometry, input_size)
    check_shape("patches", patches, ("b", *where.shape), "give M as im2col builds it")
    dtype = accumulating_dtype(xp, patches=patches)
    ndim = geometry.spatial_ndim
    total = xp.reshape(
        xp.astype(patches, dtype, copy=False), (patches.shape[0], *where.entry_shape)
    )
    # (b, *positions, g, *taps, c) -> (b, position, tap, position, tap, ..., g, c), so that each
    # spatial axis is a pair that its own table folds to one.
    pairs = [axis for a in range(ndim) for axis in (1 + a, 2 + ndim + a)]
    total = xp.permute_dims(total, (0, *pairs, 1 + ndim, 2 + 2 * ndim))
    for a, axis in enumerate(where.axes):
        folded = (*total.shape[: 1 + a], axis.positions * axis.taps, *total.shape[3 + a :])
        total = xp.reshape(total, folded)
        total = sum(
            (take_or_zero(xp, total, readers, 1 + a) for readers in axis.readers.T[1:]),
            start=take_or_zero(xp, total, axis.readers.T[0], 1 + a),
        )
    return xp.reshape(total, (patches.shape[0], *where.input_size, geometry.in_channels))


def filters_to_matrix(filters: Array, geometry: ConvGeometry) -> Array:
    """Stretch the filters to the filter matrix K: step 3 of Algorithm 1.

    Parameters
    ----------
    filters : array, shape (f, *kernel, c / groups)
    geometry : ConvGeometry

    Returns
    -------
    array, shape (k, f)
        One column per filter; a view where the library has views.

    Raises
    ------
    ShapeError, DtypeError
        If ``filters`` is not such an array.

    Examples
    --------
    >>> import numpy as np
    >>> filters_to_matrix(np.arange(8).reshape(2, 2, 2, 1), ConvGeometry(1, 2, (2, 2)))
    array([[0, 4],
           [1, 5],
           [2, 6],
           [3, 7]])
    """
    xp, shape = namespace(filters=filters), checked(geometry).filters_shape
    check_shape("filters", filters, shape, "use the layout (f, *kernel, c/groups)")
    return xp.permute_dims(xp.reshape(filters, geometry.filter_matrix_shape[::-1]), (1, 0))


def matrix_to_filters(matrix: Array, geometry: ConvGeometry) -> Array:
    """Fold a filter matrix K back to filters: `filters_to_matrix` read backwards.

    Parameters
    ----------
    matrix : array, shape (k, f)
    geometry : ConvGeometry

    Returns
    -------
    array, shape (f, *kernel, c / groups)

    Raises
    ------
    ShapeError, DtypeError
        If ``matrix`` is not such an array.

    Examples
    --------
    >>> import numpy as np
    >>> matrix_to_filters(np.eye(4), ConvGeometry(1, 4, (2, 2)))[1, :, :, 0]
    array([[0., 1.],
           [0., 0.]])
    """
    xp = namespace(matrix=matrix)
    check_shape("matrix", matrix, checked(geometry).filter_matrix_shape, "use the layout (k, f)")
    return xp.reshape(xp.permute_dims(matrix, (1, 0)), geometry.filters_shape)


def patch_product(patches: Array, matrix: Array, geometry: ConvGeometry) -> Array:
    """Multiply M and K: step 4 of Algorithm 1, the FC layer itself.

    Parameters
    ----------
    patches : array, shape (b, L, groups * k)
        M, or any number of its rows.
    matrix : array, shape (k, f)
        K. The filters of group g, columns ``g * f / groups`` and on, meet the columns of M that
        belong to group g.
    geometry : ConvGeometry

    Returns
    -------
    array, shape (b, L, f)
        In the dtype of M and K; integers that it holds may stand beside a floating one. Integers
        and booleans alone are added up in the default integer, so that nothing wraps.

    Raises
    ------
    ShapeError, DtypeError
        If M and K do not fit the geometry or each other.

    Examples
    --------
    >>> import numpy as np
    >>> patch_product(np.ones((1, 3, 4)), np.ones((4, 2)), ConvGeometry(1, 2, (2, 2))).shape
    (1, 3, 2)
    """
    xp = namespace(patches=patches, matrix=matrix)
    k, f = checked(geometry).filter_matrix_shape
    groups = geometry.groups
    check_shape("patches", patches, ("b", "L", groups * k), "give M as im2col builds it")
    check_shape("matrix", matrix, (k, f), "give K as filters_to_matrix builds it")
    dtype = accumulating_dtype(xp, patches=patches, matrix=matrix)
    patches = xp.astype(patches, dtype, copy=False)
    matrix = xp.astype(matrix, dtype, copy=False)
    b, rows = patches.shape[:2]
    if groups == 1:
        return xp.reshape(xp.matmul(xp.reshape(patches, (b * rows, k)), matrix), (b, rows, f))
    by_group = xp.permute_dims(xp.reshape(patches, (b, rows, groups, k)), (0, 2, 1, 3))
    filters = xp.permute_dims(xp.reshape(matrix, (k, groups, f // groups)), (1, 0, 2))
    product = xp.matmul(by_group, filters)
    return xp.reshape(xp.permute_dims(product, (0, 2, 1, 3)), (b, rows, f))


def rows_to_output(rows: Array, geometry: ConvGeometry, input_size: Sequence[int]) -> Array:
    """Reshape the rows of the product to output positions: step 5 of Algorithm 1.

    Parameters
    ----------
    rows : array, shape (b, L, f)
    geometry : ConvGeometry
    input_size : sequence of int
        Spatial size of the input, from which the output size follows.

    Returns
    -------
    array, shape (b, *output size, f)

    Raises
    ------
    ShapeError, DtypeError, GeometryError
        If the rows are not those of this geometry and input size.

    Examples
    --------
    >>> import numpy as np
    >>> geometry = ConvGeometry(1, 128, (4, 4), stride=2)
    >>> rows_to_output(np.zeros((10, 169, 128)), geometry, (28, 28)).shape
    (10, 13, 13, 128)
    """
    xp, out = namespace(rows=rows), checked(geometry).output_size(input_size)
    f = geometry.out_channels
    check_shape("rows", rows, ("b", math.prod(out), f), "give the rows as patch_product does")
    return xp.reshape(rows, (rows.shape[0], *out, f))


def conv_as_matmul(
    x: Array,
    filters: Array,
    geometry: ConvGeometry,
    bias: Array | None = None,
    *,
    memory: float = DEFAULT_MEMORY,
) -> Array:
    """Compute a convolution as the matrix product M K + bias: Algorithm 1 as a whole.

    Where M would take more than ``memory`` bytes it is built, multiplied and dropped in blocks of
    rows, and never held. (While gradients are recorded the library itself keeps each block for the
    backward pass.)

    NaN and infinity in ``x`` reach the outputs that read them, as in the native layers. An infinite
    filter meets the zeros of the padding as well, and ``0 * inf`` is NaN: JAX's layer does the
    same, PyTorch's skips the padding. A transposed convolution also has zeros between elements.

    Parameters
    ----------
    x : array, shape (b, *spatial, c)
    filters : array, shape (f, *kernel, c / groups)
    geometry : ConvGeometry
    bias : array, shape (f,), optional
    memory : int or float
        Bytes that the patch matrix, or a block of its rows, may take.

    Returns
    -------
    array, shape (b, *output size, f)
        In the dtype of the inputs; booleans, and integers that the dtype holds, may stand beside a
        floating one: 8-bit images and float32 filters give float32. Integers and booleans alone
        give the default integer, where small ones cannot wrap.

    Raises
    ------
    ShapeError, DtypeError, GeometryError
        If the arrays do not fit the geometry or each other.
    MemoryBudgetError
        If ``memory`` does not hold a single row of M.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.arange(9).reshape(1, 3, 3, 1)
    >>> box = np.ones((1, 2, 2, 1), dtype=int)
    >>> conv_as_matmul(x, box, ConvGeometry(1, 1, (2, 2)))[0, :, :, 0]
    array([[ 8, 12],
           [20, 24]])
    """
    named = {"x": x, "filters": filters} | ({} if bias is None else {"bias": bias})
    xp = namespace(**named)
    _, where = _input(x, geometry)
    matrix = filters_to_matrix(filters, geometry)
    dtype = accumulating_dtype(xp, **named)
    if bias is not None:
        check_shape("bias", bias, (geometry.out_channels,), "give one number per filter")
    row_bytes = where.shape[1] * itemsize(dtype)
    rows = budget(memory, remedy=_DEFAULT) // row_bytes
    if rows < 1:
        raise MemoryBudgetError(
            "not even one row of the patch matrix fits",
            where="memory",
            expected=f"at least {row_bytes} bytes",
            got=memory,
            remedy="allow more memory, or use a geometry with fewer taps",
        )
    padded, positions = pad(xp, x, where), (x.shape[0], *where.output_size)
    blocks = (
        patch_product(stretch(xp, padded, where, block)[None, ...], matrix, geometry)[0, ...]
        for block in row_blocks(positions, rows)
    )
    product = stack_rows(xp, blocks, (math.prod(positions), geometry.out_channels))
    if bias is not None:
        product = product + xp.astype(bias, dtype, copy=False)
    return xp.reshape(product, (*positions, geometry.out_channels))


def _input(x: Array, geometry: ConvGeometry) -> tuple[Any, IndexMap]:
    xp = namespace(x=x)
    sizes = [f"size {a}" for a in range(checked(geometry).spatial_ndim)]
    check_input(x, ("b", *sizes, geometry.in_channels))
    return xp, index_map(geometry, tuple(x.shape[1:-1]))
