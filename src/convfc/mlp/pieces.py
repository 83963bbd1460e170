"""What is written with ReLU, and what is made of one value element by element."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from convfc.mlp.values import Relu, Tracked, Value, affine, diagonal, identity, linear, relu


def scaled(x: Value, factor: float | npt.NDArray[Any]) -> Value:
    """Return a value times a constant, or constants, one for each element."""
    return linear(x, diagonal(np.broadcast_to(1.0 * np.asarray(factor), x.size)), roundings=1)


def shifted(x: Value, offset: npt.NDArray[Any]) -> Value:
    """Return a value plus constants, one for each element."""
    return affine({x: identity(x.size)}, offset, roundings=1)


def leaky(x: Value, slope: float | npt.NDArray[Any]) -> Value:
    """Return relu(x) - slope * relu(-x): one of the two is zero, so only the product is rounded."""
    eye = identity(x.size)
    halves = relu(linear(x, sparse.vstack([eye, -eye], format="csr")))
    slopes = diagonal(np.broadcast_to(-np.asarray(slope, float), x.size))
    return linear(halves, sparse.hstack([eye, slopes], format="csr"), roundings=1)


def between(x: Value, low: float | None, high: float | None) -> Value:
    """Return x clamped to two numbers: low + relu(x - low) - relu(x - high).

    From ``high`` to twice that, x - (x - high) is exact (Sterbenz); farther out it is rounded once.
    """
    n, eye = x.size, identity(x.size)
    if low is None:  # high - relu(high - x)
        if high is None:
            return x
        top = np.full(n, float(high))
        return affine({relu(affine({x: -eye}, top, roundings=1)): -eye}, top, roundings=1)
    limits = [low] if high is None else [low, high]
    away = -np.repeat(np.array(limits, float), n)
    above = relu(affine({x: sparse.vstack([eye] * len(limits), format="csr")}, away, roundings=1))
    back = sparse.hstack([eye, -eye][: len(limits)], format="csr")
    known = low >= 0 and (high is None or high >= low)
    return affine({above: back}, np.full(n, float(low)), nonnegative=known, roundings=1)


# Max-pooling --------------------------------------------------------------------------------------
#
# The maximum of two numbers is max(a, b) = a + relu(b - a). A window's maximum is taken axis by
# axis, and along an axis as a tree of pairs; what windows share is computed once. Positions in the
# padding, which are minus infinity, are left out.

Windows = list[tuple[int, ...]]


def pool_windows(
    size: Sequence[int],
    out: Sequence[int],
    *,
    kernel: int | Sequence[int],
    stride: int | Sequence[int],
    low: int | Sequence[int],
    dilation: int | Sequence[int] = 1,
) -> list[Windows]:
    """Return, for each axis and output position, the input positions of the window."""
    settings = kernel, stride, low, dilation
    each = (np.broadcast_to(one, len(size)).tolist() for one in settings)
    return [
        [tuple(i for t in range(k) if 0 <= (i := o * s - p + t * d) < n) for o in range(m)]
        for n, m, k, s, p, d in zip(size, out, *each, strict=True)
    ]


def adaptive_windows(size: Sequence[int], out: Sequence[int]) -> list[Windows]:
    """Return those of an adaptive pooling: from floor(i n / m) to ceil((i + 1) n / m)."""
    return [
        [tuple(range(i * n // m, -(-(i + 1) * n // m))) for i in range(m)]
        for n, m in zip(size, out, strict=True)
    ]


def maxima(x: Tracked, windows: Sequence[Windows], first: int) -> Value:
    """Return the maxima over windows of the axes from the first one on."""
    value, shape = x.value, x.shape
    for axis, positions in enumerate(windows, start=first):
        before, after = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
        value = _maxima(value, before, shape[axis], after, positions)
        shape = (*shape[:axis], len(positions), *shape[axis + 1 :])
    return value


def _maxima(value: Value, before: int, n: int, after: int, windows: Windows) -> Value:
    """Return the maxima over windows of the middle axis of a value (before, n, after)."""

    def along(rows: Sequence[int], columns: Sequence[int], shape: tuple[int, int]) -> Any:
        one = sparse.coo_array((np.ones(len(rows)), (rows, columns)), shape=shape)
        both = sparse.kron(sparse.eye_array(before), sparse.kron(one, sparse.eye_array(after)))
        return sparse.csr_array(both)

    while max(map(len, windows)) > 1:
        paired = [tuple(w[i : i + 2] for i in range(0, len(w), 2)) for w in windows]
        new = sorted({pair for w in paired for pair in w})
        pairs = [i for i, pair in enumerate(new) if len(pair) == 2]
        m, count = len(new), len(pairs)
        firsts = along(range(m), [pair[0] for pair in new], (m, n))
        seconds = along(range(count), [new[i][1] for i in pairs], (count, n))
        base = along(range(count), [new[i][0] for i in pairs], (count, n))
        rise = Relu(before * count * after, linear(value, seconds - base), nonnegative=True)
        value = affine(
            {value: firsts, rise: along(pairs, range(count), (m, count))},
            np.zeros(before * m * after),
            nonnegative=value.nonnegative,
        )
        place = {pair: i for i, pair in enumerate(new)}
        n, windows = m, [tuple(place[pair] for pair in w) for w in paired]
    return linear(value, along(range(len(windows)), [w[0] for w in windows], (len(windows), n)))
