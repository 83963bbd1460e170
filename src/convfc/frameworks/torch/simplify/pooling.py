"""Max-pooling: kept as a module, or written exactly with ReLU.

The maximum of two numbers is ``max(a, b) = a + relu(b - a)``. A window's maximum is taken axis by
axis, and along an axis as a tree of pairs; what windows share is computed once. Positions in the
padding, which are minus infinity to PyTorch, are not candidates.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse
from torch import nn

from convfc.frameworks.torch.simplify.ir import Opaque, Relu, Value, affine, linear
from convfc.frameworks.torch.simplify.maps import Tracked
from convfc.geometry import ConvGeometry
from convfc.indexmap import index_map
from convfc.sizes import geometry_errors, per_axis

__all__ = ["adaptive_windows", "max_pool_kept", "max_pool_relu", "pool_windows"]

Windows = list[tuple[int, ...]]


def pool_windows(module: Any, size: Sequence[int], out: Sequence[int]) -> list[Windows]:
    """Return, axis by axis and for each output position, the input positions of its window.

    Parameters
    ----------
    module : nn.Module
        A max-pooling of PyTorch.
    size, out : sequence of int
        Spatial sizes of its input and its output, which tell a window that ``ceil_mode`` adds.

    Examples
    --------
    >>> pool_windows(nn.MaxPool1d(3, 2, padding=1), (4,), (2,))
    [[(0, 1), (1, 2, 3)]]
    """
    n = len(size)
    with geometry_errors():
        kernel = per_axis("kernel_size", module.kernel_size, n, least=1)
        stride = per_axis("stride", module.stride, n, least=1)
        low = per_axis("padding", module.padding, n, least=0)
        dilation = per_axis("dilation", module.dilation, n, least=1)
    high = [
        max(0, (o - 1) * s + d * (k - 1) + 1 - i - p)
        for i, o, k, s, p, d in zip(size, out, kernel, stride, low, dilation, strict=True)
    ]
    geometry = ConvGeometry(
        1, 1, kernel, stride=stride, padding=list(zip(low, high, strict=True)), dilation=dilation
    )
    axes = index_map(geometry, size).axes
    return [
        [tuple(int(i) for i in row if i >= 0) for row in axis.table[:o]]
        for axis, o in zip(axes, out, strict=True)
    ]


def adaptive_windows(size: Sequence[int], out: Sequence[int]) -> list[Windows]:
    """Return the windows of an adaptive pooling: from floor(i n / m) to ceil((i + 1) n / m).

    Examples
    --------
    >>> adaptive_windows((5,), (2,))
    [[(0, 1, 2), (2, 3, 4)]]
    """
    return [
        [tuple(range(i * n // m, -(-(i + 1) * n // m))) for i in range(m)]
        for n, m in zip(size, out, strict=True)
    ]


def max_pool_relu(x: Tracked, windows: Sequence[Windows]) -> Tracked:
    """Return the maxima over windows, written with ReLU.

    Examples
    --------
    >>> from convfc.frameworks.torch.simplify.ir import Input
    >>> max_pool_relu(Tracked(Input(4), (1, 4)), [[(0, 1), (2, 3)]]).shape
    (1, 2)
    """
    value, shape = x
    for axis, positions in enumerate(windows, start=1):
        before, behind = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
        value = _maxima(value, before, shape[axis], behind, positions)
        shape = (*shape[:axis], len(positions), *shape[axis + 1 :])
    return Tracked(value, shape)


def _maxima(value: Value, before: int, n: int, behind: int, windows: Windows) -> Value:
    """Take maxima along the middle one of three axes."""

    def along(rows: Sequence[int], columns: Sequence[int], shape: tuple[int, int]) -> Any:
        one = sparse.coo_array((np.ones(len(rows)), (rows, columns)), shape=shape)
        both = sparse.kron(sparse.eye_array(before), sparse.kron(one, sparse.eye_array(behind)))
        return sparse.csr_array(both)

    while max(map(len, windows)) > 1:
        paired = [tuple(w[i : i + 2] for i in range(0, len(w), 2)) for w in windows]
        new = sorted({pair for w in paired for pair in w})
        pairs = [i for i, pair in enumerate(new) if len(pair) == 2]
        m, count = len(new), len(pairs)
        firsts = along(range(m), [pair[0] for pair in new], (m, n))
        seconds = along(range(count), [new[i][1] for i in pairs], (count, n))
        base = along(range(count), [new[i][0] for i in pairs], (count, n))
        rise = Relu(before * count * behind, linear(value, seconds - base), nonnegative=True)
        value = affine(
            {value: firsts, rise: along(pairs, range(count), (m, count))},
            np.zeros(before * m * behind),
            nonnegative=value.nonnegative,
        )
        place = {pair: i for i, pair in enumerate(new)}
        n, windows = m, [tuple(place[pair] for pair in w) for w in paired]
    return linear(value, along(range(len(windows)), [w[0] for w in windows], (len(windows), n)))


def max_pool_kept(module: nn.Module, x: Tracked, out: tuple[int, ...], name: str) -> Tracked:
    """Return the maxima over windows as PyTorch's own module computes them."""
    modules = (nn.Unflatten(1, x.shape), copy.deepcopy(module), nn.Flatten())
    value = Opaque(math.prod(out), x.value, modules, name, nonnegative=x.value.nonnegative)
    return Tracked(value, out)
