"""Which old unit each new unit copies, and how copies share what they have to say.

Net2Net's random mapping (Chen, Goodfellow & Shlens 2015, Net2WiderNet): the first units are
the old ones, every other one is a copy of an old one drawn at random. Who reads them divides its
weights by the number of copies, or, to the same sum, takes a random share for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

__all__ = ["Copies", "How", "Split", "draw_copies"]

How: TypeAlias = Literal["copy", "zero"]
Split: TypeAlias = Literal["equal", "random"]

# Of random shares, 1/64 or less is the unit: enough for few copies to differ much.
_FEWEST_PARTS = 64


@dataclass(frozen=True, eq=False)
class Copies:
    """The new units of a space.

    Parameters
    ----------
    index : Tensor of int64, shape (n',)
        For each new unit the old one that it copies: g of Net2WiderNet.
    fresh : Tensor of bool, shape (n',)
        Which are new; the others are the old ones, in their order.
    numerators, denominators : Tensor of float64, shape (n',)
        By what the outgoing weights of each are multiplied, and then divided. For each old unit
        the quotients add up to 1, exactly.
    """

    index: Tensor
    fresh: Tensor
    numerators: Tensor
    denominators: Tensor


def draw_copies(
    size: int,
    width: int,
    *,
    blocks: int = 1,
    how: How = "copy",
    split: Split = "equal",
    generator: torch.Generator,
) -> Copies:
    """Draw the mapping from new units to old ones.

    Parameters
    ----------
    size, width : int
        How many units there are, and how many there are to be.
    blocks : int
        Into how many parts of equal size the units are divided: copies stay in theirs.
    how : {"copy", "zero"}
        With ``"zero"`` the outgoing weights of new units are nothing, those of old ones as before.
    split : {"equal", "random"}
        Equal shares; or random ones, no two of a unit alike, so that copies differ in what they
        learn: multiples of a power of two, which add up without rounding.
    generator : torch.Generator

    Examples
    --------
    >>> copies = draw_copies(2, 4, generator=torch.Generator().manual_seed(0))
    >>> copies.index, copies.fresh, copies.denominators
    (tensor([0, 1, 0, 1]), tensor([False, False,  True,  True]),
     tensor([2., 2., 2., 2.], dtype=torch.float64))
    """
    old, more = size // blocks, (width - size) // blocks
    first = torch.arange(old).expand(blocks, -1)
    drawn = torch.randint(old, (blocks, more), generator=generator)
    starts = torch.arange(blocks)[:, None] * old
    index = (torch.cat([first, drawn], dim=1) + starts).flatten()
    fresh = (torch.arange(old + more) >= old).repeat(blocks)
    if how == "zero":
        return Copies(index, fresh, (~fresh).double(), torch.ones(width, dtype=torch.float64))
    counts = index.bincount(minlength=size)
    if split == "equal":
        ones = torch.ones(width, dtype=torch.float64)
        return Copies(index, fresh, ones, counts[index].double())
    numerators = torch.empty(width, dtype=torch.float64)
    denominators = torch.empty(width, dtype=torch.float64)
    for unit in range(size):
        parts = _different_parts(int(counts[unit]), generator)
        numerators[index == unit] = parts.double()
        denominators[index == unit] = float(parts.sum())
    return Copies(index, fresh, numerators, denominators)


def _different_parts(count: int, generator: torch.Generator) -> Tensor:
    """Return random positive integers, no two alike, whose sum is a power of two."""
    if count == 1:
        return torch.ones(1, dtype=torch.int64)
    least = count * (count + 1) // 2
    total = 1 << (max(_FEWEST_PARTS, 2 * least) - 1).bit_length()
    # Random sizes in order, and 1, 2, 3, ... on top of them: then they grow strictly.
    cuts = torch.randint(total - least + 1, (count - 1,), generator=generator).sort().values
    ends = torch.tensor([0]), torch.tensor([total - least])
    parts = torch.cat([ends[0], cuts, ends[1]]).diff().sort().values + torch.arange(1, count + 1)
    return parts[torch.randperm(count, generator=generator)]
