"""The matrix of a CONV layer: y = A x + b for the flattened input x and output y.

A CONV layer is a special FC layer (Section 3 of Ma & Lu, 2017); this is that FC layer's matrix. It
is sparse, and with zero padding and stride 1 doubly block Toeplitz. `convfc.operators.pattern`
knows where its entries are; here they become an array of SciPy, or a tensor in a framework's room.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import array_api_compat
import numpy as np
import numpy.typing as npt
from scipy import sparse

from convfc.arrays import Array, accumulating_dtype, as_numpy, namespace
from convfc.errors import ArgumentError, DtypeError
from convfc.geometry import ConvGeometry
from convfc.layer import Order
from convfc.operators.estimate import Layout, check_fits, pattern_estimate
from convfc.operators.pattern import MatrixPattern, matrix_pattern
from convfc.registry import ROOMS, read_layer
from convfc.sizes import one_of

Library: TypeAlias = Literal["scipy", "torch"]
"""Whose arrays a matrix is made of."""


def conv_matrix(
    layer: Any,
    input_size: Sequence[int],
    geometry: ConvGeometry | None = None,
    *,
    layout: Layout = "csr",
    order: Order | None = None,
    library: Library = "scipy",
    memory: float | None = None,
) -> Any:
    """Return the matrix A of a CONV layer: A @ x.ravel() + b == layer(x).ravel() for one input x.

    MATLAB's ``convmtx2``, which PyTorch's users have asked for (pytorch#26781), for every geometry:
    any number of axes, channels, groups, stride, dilation, padding of every mode, transposed and
    flipped. b is `conv_offset`.

    Parameters
    ----------
    layer : object
        A framework's CONV layer in any form, a `ConvLayer`, or filters ``(f, *kernel, c / groups)``
        of NumPy, PyTorch or JAX with a geometry.
    input_size : sequence of int
        Spatial size of the input, one per axis.
    geometry : ConvGeometry, optional
        Of filters; a layer has its own.
    layout : {"csr", "dense"}
        Compressed sparse rows, or every entry.
    order : {"channels_first", "channels_last"}, optional
        How x and y are flattened: (c, *spatial), or (*spatial, c). By default that of the layer's
        framework; channels last for filters.
    library : {"scipy", "torch"}
        SciPy and NumPy, or, for a layer or filters of PyTorch, a tensor on the filters' device
        through which gradients flow to them; see Notes.
    memory : int or float, optional
        Bytes that it may take; by default what the machine has free now. A dense matrix counts
        together with the sparse one that it is made of.

    Returns
    -------
    scipy.sparse.csr_array, NumPy array or torch.Tensor, shape (f * L, c * product of input_size)
        Sparse: in canonical form, with int32 indices where they suffice, else int64. Every entry
        that the geometry has is stored, also where the weight happens to be 0;
        ``A.eliminate_zeros()`` drops these. An entry that several taps of a window share, because
        the padding repeats elements, is their sum. The dtype is that of the filters; booleans
        and small integers are widened, so that no sum wraps.

    Raises
    ------
    MemoryBudgetError
        If it would not fit; `conv_operator` applies the same matrix without building it.
    DtypeError
        If SciPy has no sparse matrix of the dtype (float16, bfloat16).
    ArgumentError, GeometryError
        If a geometry is missing, or does not fit the input size, or there is no such layout,
        library or order, or ``library="torch"`` is asked for filters of another library.
    UnsupportedModel, UnsupportedLayer
        If this is not a layer that convfc knows.

    Notes
    -----
    With a sparse tensor of PyTorch, ``torch.sparse.mm(A, X)`` for X of shape ``(columns, b)``,
    ``A.values()`` and ``A.to_dense()`` keep the gradient of A sparse. ``A @ x``,
    ``F.linear(x, A)``, ``x @ A.t()`` and ``A.to_sparse_coo()`` give the same gradient, but PyTorch
    makes a dense one of A's whole shape on the way. It has no sparse products of integers and
    16-bit numbers on a CPU, and no second derivatives of them: for these take the dense tensor.

    Examples
    --------
    >>> geometry = ConvGeometry(1, 1, (2,))
    >>> A = conv_matrix(np.array([3, 5]).reshape(1, 2, 1), (4,), geometry)
    >>> A.toarray()
    array([[3, 5, 0, 0],
           [0, 3, 5, 0],
           [0, 0, 3, 5]])
    >>> A @ np.array([1, 0, 0, 2])
    array([ 3,  0, 10])

    A layer of PyTorch, on a batch as PyTorch flattens it; gradients reach the layer:

    >>> import torch
    >>> layer = torch.nn.Conv2d(2, 3, 3, padding=1)
    >>> A = conv_matrix(layer, (5, 5), library="torch")
    >>> b = conv_offset(layer, (5, 5), library="torch")
    >>> x = torch.randn(8, 2, 5, 5)
    >>> y = torch.sparse.mm(A, x.flatten(1).T).T + b
    >>> y.shape == layer(x).flatten(1).shape
    True
    >>> y.sum().backward()
    >>> layer.weight.grad.shape
    torch.Size([3, 2, 3, 3])
    """
    reading = read_layer(
        layer, geometry, input_size=input_size, order=order, differentiable=library == "torch"
    )
    filters = reading.layer.filters
    room = _room(library, filters)
    pattern = matrix_pattern(reading.layer.geometry, input_size, reading.order)
    xp = namespace(filters=filters)
    dtype = accumulating_dtype(xp, filters=filters)
    needed = pattern_estimate(pattern, dtype, layout)
    if layout == "dense":  # it is made of the sparse one
        needed = replace(needed, bytes=needed.bytes + pattern_estimate(pattern, dtype).bytes)
    check_fits(needed, memory)
    if room is not None:
        return room.matrix_tensor(xp.astype(filters, dtype), pattern, layout)
    weights = as_numpy(xp.astype(filters, dtype, copy=False), "filters")
    return _dense(pattern, weights) if layout == "dense" else _sparse(pattern, weights)


def conv_offset(
    layer: Any,
    input_size: Sequence[int],
    geometry: ConvGeometry | None = None,
    *,
    bias: Array | None = None,
    order: Order | None = None,
    library: Library = "scipy",
) -> Any:
    """Return the bias of a CONV layer as a vector b that the matrix is given: y = A x + b.

    Parameters
    ----------
    layer, input_size, geometry, order, library
        As for `conv_matrix`, which raises the same errors.
    bias : array, shape (f,), optional
        With filters; a layer has its own.

    Returns
    -------
    NumPy array or torch.Tensor, shape (f * L,)
        Zeros, of the matrix's dtype, without a bias.

    Examples
    --------
    >>> geometry = ConvGeometry(1, 2, (2,))
    >>> conv_offset(np.ones((2, 2, 1)), (4,), geometry, bias=np.array([3.0, 5.0]))
    array([3., 5., 3., 5., 3., 5.])
    """
    rest: dict[str, Any] = {"bias": bias, "order": order, "differentiable": library == "torch"}
    reading = read_layer(layer, geometry, input_size=input_size, **rest)
    filters, b = reading.layer.filters, reading.layer.bias
    positions = math.prod(reading.layer.geometry.output_size(input_size))
    xp = namespace(filters=filters)
    if b is None:
        dtype = accumulating_dtype(xp, filters=filters)
        b = xp.zeros(filters.shape[0], dtype=dtype, device=array_api_compat.device(filters))
    if _room(library, b) is None:
        xp, b = np, as_numpy(b, "bias")
    first = reading.order == "channels_first"
    return xp.repeat(b, positions) if first else xp.tile(b, (positions,))


def _sparse(pattern: MatrixPattern, weights: npt.NDArray[Any]) -> sparse.csr_array:
    if weights.dtype == np.float16:
        raise DtypeError(
            "SciPy has no sparse matrix of this dtype",
            where="filters",
            expected="float32, float64, longdouble, a complex or an integer dtype",
            got=weights.dtype,
            remedy="cast them, for instance with layer.float(), or ask for layout='dense'",
        )
    matrix = sparse.csr_array(pattern.shape, dtype=weights.dtype)
    # Its constructor would look through all indices, and might copy them.
    matrix.indptr, matrix.indices = pattern.indptr(), pattern.indices()
    matrix.data = pattern.values(weights)
    matrix.has_canonical_format = True
    return matrix


def _dense(pattern: MatrixPattern, weights: npt.NDArray[Any]) -> npt.NDArray[Any]:
    # SciPy's has no float16, but float16 to float32 and back is exact.
    wide = weights.astype(np.float32) if weights.dtype == np.float16 else weights
    dense: npt.NDArray[Any] = _sparse(pattern, wide).toarray()
    return dense.astype(weights.dtype, copy=False)


def _room(library: Library, array: Array) -> Any:
    """Return what makes PyTorch's tensors of PyTorch's arrays; None if SciPy's are wanted."""
    one_of("library", library, Library)
    if library == "scipy":
        return None
    if not array_api_compat.is_torch_array(array):
        raise ArgumentError(
            "a matrix of PyTorch is made of PyTorch's filters",
            where="library",
            got=type(array).__name__,
            remedy="convert them with torch.as_tensor, or leave library out",
        )
    return importlib.import_module(f"{ROOMS['torch']}.matrix")
