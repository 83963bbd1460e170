"""The CONV network that a simplified network was: the original, while the numbers are its own.

Whether they are is found by making the network again and comparing bits. That also tells, in a
certificate, what a simplified network has that the network before it does not make.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn

from convfc.comparing import bits_of, describe, same_bits
from convfc.frameworks.torch.running import deep_copy
from convfc.frameworks.torch.simplification.simplified import made_again
from convfc.mlp.simplified import Simplified
from convfc.mlp.values import check_as_made

_BLOCK = 2**21  # numbers of a weight that are compared, or multiplied by in float64, at a time


def restore(model: nn.Module, record: Simplified) -> nn.Module:
    """Return the CONV network that an unchanged simplified network was."""
    check_as_made(other_parts(made_again(record), model))
    like = next(model.parameters(), torch.empty(0, dtype=record.dtype))
    restored: nn.Module = deep_copy(record.original).to(like.device, like.dtype)
    return restored


def other_parts(again: nn.Module, after: nn.Module) -> Iterator[str]:
    """Yield, in words, what a simplified network has other than when it is made again."""
    ours, theirs = (
        {name: type(part).__name__ for name, part in model.named_modules() if name}
        for model in (again, after)
    )
    for name in ours | theirs:
        if ours.get(name) != theirs.get(name):
            yield f"{name}; expected {ours.get(name, 'none')}, got {theirs.get(name, 'none')}"
    if isinstance(again, fx.GraphModule) and getattr(after, "code", None) != again.code:
        yield "its forward; expected that of the same network made again, got another"
    numbers, found = (dict(model.named_parameters()) for model in (again, after))
    for name in numbers | found:
        mine: Tensor | None = numbers.get(name)
        other: Tensor | None = found.get(name)
        if mine is not None and other is not None:
            mine = mine.detach().to(other.dtype)
        if mine is None or other is None or describe(mine) != describe(other):
            yield f"{name}; expected {describe(mine)}, got {describe(other)}"
            continue
        if _same_entries(mine, other.detach()):
            continue
        for first, last in row_blocks(other):
            rows, others = rows_of(mine, first, last), rows_of(other.detach(), first, last)
            if not same_bits(rows, others):
                # By bits, since -0.0 equals 0.0; of a complex number two are compared.
                row, *rest = (bits_of(rows) != bits_of(others)).nonzero()[0].tolist()[: rows.dim()]
                want, got = (t[(row, *rest)].item() for t in (rows, others))
                yield f"{name} at {[first + row, *rest]}; expected {want}, got {got}"
                break


def _same_entries(mine: Tensor, other: Tensor) -> bool:
    """Say whether a dense tensor has the bits of a sparse one, without making that one dense."""
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}.get(other.dtype.itemsize)
    if mine.layout is not torch.sparse_csr or other.layout is not torch.strided or kind is None:
        return False
    rows = torch.arange(len(mine), device=other.device)
    there = other[rows.repeat_interleave(mine.crow_indices().diff()), mine.col_indices()]
    if not same_bits(mine.values(), there):
        return False
    # No bit is set anywhere else, not even that of a negative zero.
    bits, inside = (t.contiguous().view(kind) for t in (other, mine.values()))
    return bool(torch.count_nonzero(bits) == torch.count_nonzero(inside))


def row_blocks(t: Tensor) -> Iterator[tuple[int, int]]:
    """Yield where blocks of rows begin and end that stay in the processor's cache."""
    step = max(1, _BLOCK * len(t) // max(1, t.numel()))
    for first in range(0, len(t), step):
        yield first, min(first + step, len(t))


def rows_of(t: Tensor, first: int, last: int) -> Tensor:
    """Return some rows of a tensor, dense."""
    if t.layout is not torch.sparse_csr:
        return t[first:last]
    starts = t.crow_indices()[first : last + 1]
    index = slice(int(starts[0]), int(starts[-1]))
    dense = t.values().new_zeros(last - first, t.shape[1])
    row = torch.arange(last - first, device=t.device).repeat_interleave(starts.diff())
    dense[row, t.col_indices()[index]] = t.values()[index]  # `to_dense` loses signs of zeros
    return dense
