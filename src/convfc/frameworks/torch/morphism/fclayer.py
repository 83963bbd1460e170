"""A layer with more units: rows and columns of its FC matrix, for CONV and FC layers alike.

Every layer is read as the FC matrix that it equals, (f, taps, c / groups): the paper's K,
transposed; an `nn.Linear` is the case of one tap. More filters are more rows, which are copies of
old ones. More units to read are more columns, with the shares of old ones. The matrix then goes
back into a weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import init

from convfc.frameworks.torch.forms import form_of
from convfc.frameworks.torch.forward.formats import channels_last, in_format, is_channels_last
from convfc.frameworks.torch.read import matrix_to_weight, weight_to_matrix
from convfc.frameworks.torch.tensors import wide

__all__ = ["Columns", "Growth", "Rows", "grow_channels"]

# What a module starts with, as its own reset_parameters has it.
_PER_CHANNEL = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
_SLOPE = 0.25


@dataclass(frozen=True, eq=False)
class Rows:
    """The filters of a grown layer.

    Parameters
    ----------
    index : Tensor of int64, shape (f',)
        For each the old one that it copies.
    fresh : Tensor of bool, shape (f',)
        Which are new.
    random : bool
        Whether new ones get random weights (He et al. 2015) and no bias, instead of copies.
    noise : float
        Standard deviation of what is added to the weights of new ones, relative to that of all.
    seed : int
    """

    index: Tensor
    fresh: Tensor
    random: bool = False
    noise: float = 0.0
    seed: int = 0

    def of(self, matrix: Tensor) -> Tensor:
        """Return the rows of a grown matrix (f, k)."""
        fresh = self.fresh.to(matrix.device)
        rows = matrix[self.index.to(matrix.device)]
        if not fresh.any():
            return rows
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.empty(int(fresh.sum()), matrix.shape[1], dtype=torch.float64)
        if self.random:
            init.kaiming_normal_(drawn, nonlinearity="relu", generator=generator)
            rows[fresh] = drawn.to(rows)
        elif self.noise:
            init.normal_(drawn, std=self.noise, generator=generator)
            rows[fresh] += drawn.to(rows) * matrix.std(correction=0)
        return rows

    def of_bias(self, bias: Tensor) -> Tensor:
        """Return the bias of the rows."""
        rows = bias[self.index.to(bias.device)]
        return rows.masked_fill(self.fresh.to(bias.device), 0.0) if self.random else rows


@dataclass(frozen=True, eq=False)
class Columns:
    """What each filter of a grown layer reads.

    Parameters
    ----------
    index : Tensor of int64, shape (groups, c' / groups)
        For each channel of a group the old one of this group that it copies.
    numerators, denominators : Tensor of float64, of the same shape
        By what its weights are multiplied, and then divided.
    """

    index: Tensor
    numerators: Tensor
    denominators: Tensor

    def of(self, matrix: Tensor) -> Tensor:
        """Return the columns of a grown matrix: (groups, f / groups, taps, c / groups)."""
        index, up, down = (
            t.to(matrix.device)[:, None, None, :]
            for t in (self.index, self.numerators, self.denominators)
        )
        return matrix.gather(3, index.expand(*matrix.shape[:3], -1)) * up / down


@dataclass(frozen=True, eq=False)
class Growth:
    """How a CONV or FC layer grows.

    Parameters
    ----------
    rows : Rows or None
    columns : Columns or None
    groups : int
        How many groups there are to be: of a depthwise layer as many as channels.

    Examples
    --------
    >>> columns = Columns(torch.tensor([[0, 0]]), torch.ones(1, 2), torch.full((1, 2), 2.0))
    >>> layer = nn.Linear(1, 1, bias=False)
    >>> _ = init.constant_(layer.weight, 3.0)
    >>> Growth(columns=columns)(layer).weight.tolist()
    [[1.5, 1.5]]
    """

    rows: Rows | None = None
    columns: Columns | None = None
    groups: int = 1

    @torch.no_grad()
    def __call__(self, layer: nn.Module) -> nn.Module:
        """Grow a layer, and return it."""
        some: Any = layer
        conv = form_of(layer) == "native"
        transposed, groups = bool(conv and some.transposed), int(some.groups) if conv else 1
        old: Tensor = some.weight
        matrix = self._matrix(old, transposed, groups)
        channels = matrix.shape[-1]
        matrix = matrix.flatten(2).flatten(0, 1)
        if self.rows is not None:
            matrix = self.rows.of(matrix)
            if some.bias is not None:
                bias = nn.Parameter(self.rows.of_bias(some.bias.detach()), some.bias.requires_grad)
                some.bias = bias
        sizes = (len(matrix), channels)
        if transposed:
            sizes = (channels * self.groups, len(matrix) // self.groups)
        shape = (*sizes, *old.shape[2:])
        new = matrix_to_weight(matrix, shape, transposed=transposed, groups=self.groups)
        new = new.to(old.dtype).clone(memory_format=torch.contiguous_format)
        if conv and is_channels_last(old):
            new = in_format(new, channels_last(old.dim() - 2))
        some.weight = nn.Parameter(new, old.requires_grad)
        if conv:
            some.groups = self.groups
            some.in_channels, some.out_channels = channels * self.groups, len(matrix)
        else:
            some.in_features, some.out_features = channels, len(matrix)
        return layer

    def divides(self, layer: nn.Module) -> Tensor | int:
        """Return by what each old weight of a layer is divided, in the weight's shape."""
        if self.columns is None:
            return 1
        some: Any = layer
        old: Tensor = some.weight
        conv = form_of(layer) == "native"
        transposed, groups = bool(conv and some.transposed), int(some.groups) if conv else 1
        matrix = self._matrix(torch.ones_like(old), transposed, groups, grown=False)
        down = matrix.new_ones(groups, matrix.shape[-1])
        down.scatter_(1, self.columns.index.to(down.device), self.columns.denominators.to(down))
        matrix = (matrix * down[:, None, None, :]).flatten(2).flatten(0, 1)
        return matrix_to_weight(matrix, old.shape, transposed=transposed, groups=groups)

    def _matrix(
        self, weight: Tensor, transposed: bool, groups: int, *, grown: bool = True
    ) -> Tensor:
        """Return the FC matrix (groups, f / groups, taps, c / groups), in float64."""
        channels = weight.shape[0] // groups if transposed else weight.shape[1]
        matrix = wide(weight_to_matrix(weight.detach(), transposed=transposed, groups=groups))
        matrix = matrix.unflatten(0, (groups, -1)).unflatten(2, (-1, channels))
        return self.columns.of(matrix) if grown and self.columns is not None else matrix


@torch.no_grad()
def grow_channels(layer: nn.Module, rows: Rows) -> nn.Module:
    """Grow a module that has one parameter, or running statistic, per channel; and return it.

    Examples
    --------
    >>> rows = Rows(torch.tensor([0, 0]), torch.tensor([False, True]))
    >>> grow_channels(nn.BatchNorm1d(1), rows).num_features
    2
    """
    index, fresh = rows.index, rows.fresh
    for name, start in _PER_CHANNEL.items():
        old = getattr(layer, name, None)
        if old is None:
            continue
        new = old.detach()[index.to(old.device)]
        if rows.random:
            value = _SLOPE if isinstance(layer, nn.PReLU) else start
            new = new.masked_fill(fresh.to(old.device), value)
        setattr(
            layer, name, nn.Parameter(new, old.requires_grad) if name in layer._parameters else new
        )
    setattr(layer, "num_parameters" if isinstance(layer, nn.PReLU) else "num_features", len(index))
    return layer
