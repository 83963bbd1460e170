"""What a matrix of PyTorch holds in the pattern of a CONV layer, and what does not belong there."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from convfc.frameworks.torch.matrix import matrix_values
from convfc.operators.nearest import Sets, Stray, read_entries
from convfc.operators.pattern import MatrixPattern


class Held(NamedTuple):
    """What a matrix holds.

    Attributes
    ----------
    values : Tensor, shape (nonzeros of the pattern,)
    stray : Stray or None
        The first entry outside the pattern that is not 0.
    """

    values: Tensor
    stray: Stray | None


class Wrong(NamedTuple):
    """An entry that is not the convolution's.

    Attributes
    ----------
    row, column : int
    expected, got : number
    """

    row: int
    column: int
    expected: complex
    got: complex


def held_by(matrix: Tensor, pattern: MatrixPattern) -> Held:
    """Read a matrix.

    Examples
    --------
    >>> from convfc import ConvGeometry
    >>> from convfc.operators.pattern import matrix_pattern
    >>> pattern = matrix_pattern(ConvGeometry(1, 1, (2,)), (3,), "channels_first")
    >>> held = held_by(torch.tensor([[3.0, 5.0, 0.0], [7.0, 3.0, 5.0]]), pattern)
    >>> held.values, held.stray
    (tensor([3., 5., 3., 5.]), Stray(row=1, column=0, value=7.0))
    """
    matrix = matrix.detach()
    values = values_in(matrix, pattern)
    if torch.count_nonzero(values) == torch.count_nonzero(matrix):
        return Held(values, None)
    entries = read_entries(numpy_has(matrix), pattern)
    values = torch.from_numpy(entries.values.copy()).to(matrix.device, matrix.dtype)
    return Held(values, entries.stray)


def values_in(matrix: Tensor, pattern: MatrixPattern) -> Tensor:
    """Return what a dense matrix has in the pattern, whatever there is besides.

    Examples
    --------
    >>> from convfc import ConvGeometry
    >>> from convfc.operators.pattern import matrix_pattern
    >>> pattern = matrix_pattern(ConvGeometry(1, 1, (2,)), (3,), "channels_first")
    >>> values_in(torch.tensor([[3.0, 5.0, 0.0], [7.0, 3.0, 5.0]]), pattern)
    tensor([3., 5., 3., 5.])
    """
    return matrix.detach().reshape(-1)[places_in(pattern).to(matrix.device)]


def places_in(pattern: MatrixPattern) -> Tensor:
    """Return where in the raveled dense matrix each stored entry stands.

    Examples
    --------
    >>> from convfc import ConvGeometry
    >>> from convfc.operators.pattern import matrix_pattern
    >>> places_in(matrix_pattern(ConvGeometry(1, 1, (2,)), (3,), "channels_first"))
    tensor([0, 1, 4, 5])
    """
    places = np.repeat(np.arange(pattern.shape[0]), np.diff(pattern.indptr()))
    places *= pattern.shape[1]
    places += pattern.indices()
    return torch.from_numpy(places)


def numpy_has(matrix: Tensor) -> Tensor:
    """Return a tensor in a dtype of NumPy: float32 holds every number of bfloat16.

    Examples
    --------
    >>> numpy_has(torch.ones(1, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    matrix = matrix.detach()
    return matrix.float() if matrix.dtype is torch.bfloat16 else matrix


def fold(values: Tensor, pattern: MatrixPattern) -> Tensor:
    """Return the sum of all entries that hold each weight: the adjoint of `matrix_values`.

    Of the gradient of the entries it makes the gradient of the filters.

    Examples
    --------
    >>> from convfc import ConvGeometry
    >>> from convfc.operators.pattern import matrix_pattern
    >>> pattern = matrix_pattern(ConvGeometry(1, 1, (2,)), (3,), "channels_first")
    >>> fold(torch.tensor([3.0, 5.0, 4.0, 6.0]), pattern).flatten()
    tensor([ 7., 11.])
    """
    with torch.enable_grad():
        filters = values.new_zeros(pattern.geometry.filters_shape).requires_grad_()
        (folded,) = torch.autograd.grad(matrix_values(filters, pattern), filters, values)
    return folded


def likely_filters(values: Tensor, pattern: MatrixPattern, known: Tensor) -> Tensor:
    """Return the filters of a matrix that is, or was, that of a convolution.

    Parameters
    ----------
    values : Tensor, shape (nonzeros of the pattern,)
    pattern : MatrixPattern
    known : Tensor, shape (f, *kernel, c / groups)
        Filters that the matrix was made of. If it still is theirs, they are it: a matrix says
        nothing of taps that read nothing but padding, and of some taps it has only sums.

    Returns
    -------
    Tensor, shape (f, *kernel, c / groups)
        Each weight is what its first entry holds.

    Examples
    --------
    >>> from convfc import ConvGeometry
    >>> from convfc.operators.pattern import matrix_pattern
    >>> pattern = matrix_pattern(ConvGeometry(1, 1, (2,)), (3,), "channels_first")
    >>> likely_filters(torch.tensor([3.0, 5.0, 4.0, 6.0]), pattern, torch.zeros(1, 2, 1)).flatten()
    tensor([3., 5.])
    """
    known = known.detach().to(values)
    if torch.equal(matrix_values(known, pattern), values):
        return known
    sets = Sets(pattern)
    numbers = sets.first(numpy_has(values).cpu().resolve_conj().numpy())
    found = torch.from_numpy(sets.to_filters(sets.weights(numbers))).to(values)
    return with_unread(found, pattern, known)


def with_unread(filters: Tensor, pattern: MatrixPattern, known: Tensor) -> Tensor:
    """Return filters with known weights where a tap reads nothing but padding.

    Examples
    --------
    >>> from convfc import ConvGeometry
    >>> from convfc.operators.pattern import matrix_pattern
    >>> pattern = matrix_pattern(ConvGeometry(1, 1, (3,), padding=1), (1,), "channels_first")
    >>> with_unread(torch.full((1, 3, 1), 7.0), pattern, torch.ones(1, 3, 1)).flatten()
    tensor([1., 7., 1.])
    """
    ones = torch.ones(pattern.nonzeros, device=filters.device)
    return torch.where(fold(ones, pattern) > 0, filters, known.detach().to(filters))


def first_wrong(held: Held, expected: Tensor, pattern: MatrixPattern) -> tuple[Wrong | None, int]:
    """Return the first entry that is not as expected, and how many more there are at least.

    Parameters
    ----------
    held : Held
    expected : Tensor, shape (nonzeros of the pattern,)
    pattern : MatrixPattern

    Examples
    --------
    >>> from convfc import ConvGeometry
    >>> from convfc.operators.pattern import matrix_pattern
    >>> pattern = matrix_pattern(ConvGeometry(1, 1, (2,)), (3,), "channels_first")
    >>> held = held_by(torch.tensor([[3.0, 5.0, 0.0], [0.0, 3.5, 5.0]]), pattern)
    >>> first_wrong(held, torch.tensor([3.0, 5.0, 3.0, 5.0]), pattern)
    (Wrong(row=1, column=1, expected=3.0, got=3.5), 0)
    """
    found = []
    if held.stray is not None:
        found.append(Wrong(held.stray.row, held.stray.column, 0.0, held.stray.value))
    wrong = differing(held.values, expected)
    count = int(wrong.sum())
    if count:
        entry = int(wrong.to(torch.uint8).argmax())
        row = int(pattern.indptr().searchsorted(entry, side="right")) - 1
        column = int(pattern.indices()[entry])
        values = (expected[entry].item(), held.values[entry].item())
        found.append(Wrong(row, column, *values))
    first = min(found, key=lambda one: (one.row, one.column), default=None)
    return first, max(0, count + (held.stray is not None) - 1)


def differing(ours: Tensor, theirs: Tensor) -> Tensor:
    """Say where two tensors differ; NaN is what NaN is.

    Examples
    --------
    >>> differing(torch.tensor([1.0, torch.nan]), torch.tensor([2.0, torch.nan]))
    tensor([ True, False])
    """
    return (ours != theirs) & ~(ours.isnan() & theirs.isnan())
