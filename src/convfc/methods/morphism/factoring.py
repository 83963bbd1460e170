"""Low rank, the inverse of depth morphing: K by its singular value decomposition, as two layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convfc.convert import to_conv, to_fc
from convfc.errors import ArgumentError
from convfc.frameworks.torch.forms.children import as_parameter, plain_linear
from convfc.frameworks.torch.forms.form import form_of
from convfc.frameworks.torch.morphism.certify import Morph
from convfc.frameworks.torch.morphism.target import (
    chained,
    find_layer,
    kernel_of,
    real_number,
    replaced,
)
from convfc.sizes import integer


@dataclass(frozen=True, eq=False)
class Factored(Morph):
    """A morph of `factor`, with what it costs.

    Parameters
    ----------
    rank : int
        Of every group.
    error : float
        ``||K - K_r||_F / ||K||_F``, of all groups together.
    energy : float
        Share of the squared singular values that is kept, of all groups together.
    """

    rank: int = 0
    error: float = 0.0
    energy: float = 1.0

    def __str__(self) -> str:
        first = f"Rank {self.rank}: relative error {self.error:.3g}, energy {self.energy:.6g}."
        return f"{first}\n{super().__str__()}"

    __repr__ = __str__


@torch.inference_mode(mode=False)  # what is made here is to be trained
def factor(
    model: nn.Module,
    name: str,
    *,
    example: Any,
    rank: int | None = None,
    energy: float | None = None,
    seed: int = 0,
) -> Factored:
    """Write a layer as two of low rank: r filters of its kernel, then a 1x1 CONV layer.

    The FC method, on the FC layer that the CONV layer equals: `convfc.to_fc`, the singular value
    decomposition of K instead of K, and `convfc.to_conv`. Of all matrices of rank r this one is
    closest to K (Eckart & Young 1936), group by group. An `nn.Linear` becomes two.

    Parameters
    ----------
    model, name, example, seed
        As for every morph: see `convfc.methods.morphism`.
    rank : int, optional
        Of every group.
    energy : float, optional
        Instead of a rank: the share, up to 1, of the squared singular values that is kept in every
        group, with the smallest rank that does.

    Returns
    -------
    Factored
        With full rank the certificate holds; with less it says no, and how far the outputs are
        apart. ``.error`` is that of K.

    Raises
    ------
    ArgumentError
        If neither rank nor energy is given, or both, or a rank that K does not have.

    Examples
    --------
    >>> conv, x = nn.Conv2d(8, 16, 3, stride=2, padding=1), torch.randn(2, 8, 9, 9)
    >>> full = factor(conv, "", example=x, rank=16)
    >>> full.model
    Sequential(
      (0): Conv2d(8, 16, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), bias=False)
      (1): Conv2d(16, 16, kernel_size=(1, 1), stride=(1, 1))
    )
    >>> full.certificate.holds
    True
    >>> half = factor(conv, "", example=x, energy=0.5)
    >>> half.certificate.holds, half.rank < 16, half.energy >= 0.5
    (False, True, True)
    """
    if (rank is None) == (energy is None):
        raise ArgumentError(
            "a factorisation is asked for by its rank or by the energy it keeps",
            where="rank, energy",
            expected="one of the two",
            got="none" if rank is None else "both",
            remedy="give rank=8, or energy=0.95",
        )
    target = find_layer(model, name, example)
    kernel = kernel_of(target.part)
    values = [torch.linalg.svdvals(group.flatten(1)) for group in kernel.by_group]
    r = _rank(values, rank, energy)

    def make(layer: nn.Module) -> nn.Module:
        return _two_layers(layer, r)

    what = f"two layers of rank {r}" + (f" in each of {kernel.groups} groups" * (kernel.groups > 1))
    why = "its factors are real numbers"
    morph = replaced(target, make, what=what, form="low rank", why_no_integers=why, seed=seed)
    kept, all_of_it = (float(sum(v[:n].square().sum() for v in values)) for n in (r, None))
    lost = float(sum(v[r:].square().sum() for v in values))
    return Factored(
        **vars(morph),
        rank=r,
        error=(lost / all_of_it) ** 0.5 if all_of_it else 0.0,
        energy=kept / all_of_it if all_of_it else 1.0,
    )


def _rank(values: list[Tensor], rank: int | None, energy: float | None) -> int:
    """Return the rank of every group."""
    most = len(values[0])
    if rank is not None:
        r = integer("rank", rank, least=1)
        if r > most:
            raise ArgumentError(
                "the filter matrix has no such rank",
                where="rank",
                expected=f"{most} at most",
                got=r,
                remedy=f"give {most} for the exact product",
            )
        return r
    share = real_number("energy", energy, 0, 1)
    return max(_smallest(group.square(), share) for group in values)


def _smallest(squares: Tensor, share: float) -> int:
    """Return how many of the largest squares make up this share of all; 1 at least."""
    if share == 1:  # not by sums, in which the smallest are lost
        return max(1, int((squares > 0).sum()))
    kept = squares.cumsum(0)
    return int((kept[:-1] < share * kept[-1]).sum()) + 1


def _two_layers(layer: nn.Module, rank: int) -> nn.Module:
    """Return the layer as two, by way of its FC form."""
    if form_of(layer) != "native":
        return chained(layer, *_factors(layer, rank))
    fc: Any = to_fc(layer, groups="separate")
    grouped = isinstance(fc.fc, nn.ModuleList)
    children = [nn.Sequential(*_factors(child, rank)) for child in (fc.fc if grouped else [fc.fc])]
    fc.fc = nn.ModuleList(children) if grouped else children[0]
    back: nn.Module = to_conv(fc)
    return back


def _factors(linear: Any, rank: int) -> tuple[nn.Module, nn.Module]:
    """Return the two FC layers of a truncated SVD, each with the root of the singular values."""
    old = linear.weight
    weight = old.detach().double().cpu()
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    left, roots, right = left[:, :rank], values[:rank].sqrt(), right[:rank]
    thin, wide = roots[:, None] * right, left * roots
    # One step of refinement of one of the two, given the other as it is stored: where the rank is
    # full, every number then is as exact as its own size asks for, and not that of the largest.
    if rank == len(weight):
        wide = wide.to(old.dtype).double()
        thin = thin + torch.linalg.lstsq(wide, weight - wide @ thin).solution
    else:
        thin = thin.to(old.dtype).double()
        wide = wide + torch.linalg.lstsq(thin.mT, (weight - wide @ thin).mT).solution.mT
    first, second = (as_parameter(part.to(old.device, old.dtype), old) for part in (thin, wide))
    parts = plain_linear(first, None), plain_linear(second, linear.bias)
    for part in parts:
        part.train(linear.training)
    return parts
