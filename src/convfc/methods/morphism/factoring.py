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
from convfc.frameworks.torch.morphism.target import (
    Kernel,
    Morph,
    Target,
    chained,
    check_share,
    find_layer,
    generator_of,
    kernel_of,
    replaced,
)
from convfc.frameworks.torch.read import geometry_of
from convfc.sizes import integer


@dataclass(frozen=True, eq=False)
class Factored(Morph):
    """A morph of `factor`, with what it saves and what it costs.

    Parameters
    ----------
    rank : int
        Of every group.
    error : float
        ``||K - K_r||_F / ||K||_F``, of all groups together.
    energy : float
        Share of the squared singular values that is kept, of all groups together.
    parameters : tuple of int
        Of the layer, before and after.
    multiplications : tuple of int
        Of the native layers on the example, all calls together, before and after.
    """

    rank: int = 0
    error: float = 0.0
    energy: float = 1.0
    parameters: tuple[int, int] = (0, 0)
    multiplications: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        first = (
            f"Rank {self.rank}: relative error {self.error:.3g}, energy {self.energy:.6g}; "
            f"parameters {self.parameters[0]:,} to {self.parameters[1]:,}, multiplications "
            f"{self.multiplications[0]:,} to {self.multiplications[1]:,}."
        )
        return f"{first}\n{super().__str__()}"

    __repr__ = __str__


@torch.inference_mode(mode=False)  # what is made here is to be trained
def factor(
    model: nn.Module,
    name: str = "",
    *,
    rank: int | None = None,
    energy: float | None = None,
    example: Any = None,
    seed: int = 0,
) -> Factored:
    """Write a layer as two of low rank: r filters of its kernel, then a 1x1 CONV layer.

    The FC method, on the FC layer that the CONV layer equals: `convfc.to_fc`, the singular value
    decomposition of K instead of K, and `convfc.to_conv`. Of all matrices of rank r this one is
    closest to K (Eckart & Young 1936), group by group. An `nn.Linear` becomes two.

    Parameters
    ----------
    model, name
        The model, which stays as it is; the place of a CONV or FC layer, empty for the model
        itself.
    rank : int, optional
        Of every group.
    energy : float, optional
        Instead of a rank: the share, up to 1, of the squared singular values that is kept in every
        group, with the smallest rank that does.
    example : Tensor, array, tuple or dict
        An input; a tuple holds several arguments, a dict keyword arguments. A layer alone can do
        without: it is then tried on random numbers.
    seed : int
        Of these random numbers.

    Returns
    -------
    Factored
        With full rank the certificate holds; with less it says no, and how far the outputs are
        apart. ``.error`` is that of K.

    Raises
    ------
    NothingToConvert, UnsupportedLayer
        If no part has this name, or it is no layer that can be morphed.
    ArgumentError
        If neither rank nor energy is given, or both, or a rank that K does not have; or if a model
        comes without an example.

    Examples
    --------
    >>> conv = nn.Conv2d(8, 16, 3, stride=2, padding=1)
    >>> full = factor(conv, rank=16)
    >>> full.model
    Sequential(
      (0): Conv2d(8, 16, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), bias=False)
      (1): Conv2d(16, 16, kernel_size=(1, 1), stride=(1, 1))
    )
    >>> full.certificate.holds
    True
    >>> half = factor(conv, energy=0.5)
    >>> half.certificate.holds, half.rank < 16, half.energy >= 0.5, half.parameters[0]
    (False, True, True, 1168)
    """
    if (rank is None) == (energy is None):
        raise ArgumentError(
            "a factorisation is asked for by its rank or by the energy it keeps",
            where="rank, energy",
            expected="one of the two",
            got="none" if rank is None else "both",
            remedy="give rank=8, or energy=0.95",
        )
    target = find_layer(model, name, _example(model, seed) if example is None else example)
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
    after = morph.model.get_submodule(name)
    return Factored(
        **vars(morph),
        rank=r,
        error=(lost / all_of_it) ** 0.5 if all_of_it else 0.0,
        energy=kept / all_of_it if all_of_it else 1.0,
        parameters=(_count(target.part), _count(after)),
        multiplications=_multiplications(target, kernel, r),
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
    share = check_share("energy", energy, most=1.0)
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


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _multiplications(target: Target, kernel: Kernel, rank: int) -> tuple[int, int]:
    """Return the multiplications of the native layers in all calls, before and after."""
    f, k = len(kernel.filters), kernel.filters[0].numel()
    before = after = 0
    for x, y in zip(target.inputs, target.outputs, strict=True):
        rows = y.numel() // f
        # A transposed layer multiplies once per input position.
        own = x.numel() // (kernel.filters.shape[-1] * kernel.groups) if kernel.transposed else rows
        before += own * f * k
        after += own * rank * kernel.groups * k + rows * f * rank
    return before, after


def _example(model: nn.Module, seed: int) -> Tensor:
    """Return random numbers that a layer alone takes."""
    weight = getattr(model, "weight", None)
    if not isinstance(weight, Tensor) or not (
        form_of(model) == "native" or isinstance(model, nn.Linear)
    ):
        raise ArgumentError(
            "a model is tried on an example",
            where="example",
            expected="an input of the model",
            got="none",
            remedy="give example=, or the layer alone",
        )
    size: tuple[int, ...] = (2, weight.shape[-1])
    if form_of(model) == "native":
        geometry = geometry_of(model, (1,) * (weight.dim() - 2))
        spatial = [
            d * (k - 1) + 3 + 2 * max(pair)
            for k, d, pair in zip(
                geometry.kernel_size, geometry.dilation, geometry.padding, strict=True
            )
        ]
        size = (2, geometry.in_channels, *spatial)
    return torch.randn(size, generator=generator_of(seed)).to(weight)
