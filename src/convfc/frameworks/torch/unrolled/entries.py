"""What a matrix of PyTorch holds in the pattern of a CONV layer, and what does not belong there."""

from __future__ import annotations

import torch
from torch import Tensor

from convfc.arrays import as_numpy
from convfc.frameworks.torch.matrix import fold, matrix_values, places
from convfc.operators.nearest import Entries, Sets, Wrong, read_entries, wrong_entry
from convfc.operators.pattern import MatrixPattern


def held_by(matrix: Tensor, pattern: MatrixPattern) -> Entries:
    """Read a matrix; the values are a tensor."""
    matrix = matrix.detach()
    values = values_in(matrix, pattern)
    if torch.count_nonzero(values) == torch.count_nonzero(matrix):
        return Entries(values, None, 0.0)
    entries = read_entries(numpy_has(matrix), pattern)
    values = torch.from_numpy(entries.values.copy()).to(matrix.device, matrix.dtype)
    return entries._replace(values=values)


def values_in(matrix: Tensor, pattern: MatrixPattern) -> Tensor:
    """Return what a dense matrix has in the pattern, whatever there is besides."""
    return matrix.detach().reshape(-1)[places_in(pattern).to(matrix.device)]


def places_in(pattern: MatrixPattern) -> Tensor:
    """Return where in the raveled dense matrix each stored entry stands."""
    indptr, indices = map(torch.from_numpy, (pattern.indptr(), pattern.indices()))
    return places(indptr, indices, pattern.shape)


def numpy_has(matrix: Tensor) -> Tensor:
    """Return a tensor in a dtype of NumPy: float32 holds every number of bfloat16."""
    matrix = matrix.detach()
    return matrix.float() if matrix.dtype is torch.bfloat16 else matrix


def likely_filters(values: Tensor, pattern: MatrixPattern, known: Tensor) -> Tensor:
    """Return the filters ``(f, *kernel, c / groups)`` of a matrix that is, or was, a convolution's.

    Each weight is what its first entry holds, unless the matrix still is that of the known filters:
    it says nothing of taps that read nothing but padding, and of some taps it has only sums.
    """
    known = known.detach().to(values)
    if torch.equal(matrix_values(known, pattern), values):
        return known
    sets = Sets(pattern)
    found = sets.filters(sets.first(as_numpy(numpy_has(values))))
    return with_unread(torch.from_numpy(found).to(values), pattern, known)


def with_unread(filters: Tensor, pattern: MatrixPattern, known: Tensor) -> Tensor:
    """Return filters with known weights where a tap reads nothing but padding."""
    read = fold(torch.ones(pattern.nonzeros, device=filters.device), pattern) > 0
    return torch.where(read, filters, known.detach().to(filters))


def first_wrong(
    held: Entries, expected: Tensor, pattern: MatrixPattern
) -> tuple[Wrong | None, int]:
    """Return the first entry that is not as expected, and how many more there are at least."""
    wrong = differing(held.values, expected)
    first = wrong_entry(held, wrong.cpu().numpy(), expected, pattern)
    return first, max(0, int(wrong.sum()) + (held.stray is not None) - 1)


def differing(ours: Tensor, theirs: Tensor) -> Tensor:
    """Say where two tensors differ; NaN is what NaN is."""
    return (ours != theirs) & ~(ours.isnan() & theirs.isnan())
