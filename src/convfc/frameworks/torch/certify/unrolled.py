"""The unrolled form in a certificate: its matrix read as filters, gradients folded back to them.

Beside a CONV layer the matrix A has more numbers than there are weights. Its gradient is folded by
the adjoint of the pattern, which gives the gradient of the filters; and a change of all numbers (to
their moduli, to integers, to another dtype) is made in the filters, from which A is made again,
except for the entries that are not what the filters say: these are changed themselves, so that they
stay as wrong as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from convfc.frameworks.torch.forms import Unrolled, form_of, linear_of, unrolled_of
from convfc.frameworks.torch.matrix import matrix_tensor, matrix_values
from convfc.frameworks.torch.tensors import is_sparse
from convfc.frameworks.torch.unrolled.back import bias_of
from convfc.frameworks.torch.unrolled.entries import (
    Held,
    differing,
    first_wrong,
    fold,
    held_by,
    likely_filters,
    values_in,
)

__all__ = ["UnrolledLayer", "change_unrolled"]

Change = Callable[[Tensor], Tensor]


class UnrolledLayer(nn.Module):
    """An unrolled layer with ``weight`` and ``bias`` as the CONV layer has them.

    Parameters
    ----------
    layer : nn.Module
        The ``nn.Sequential``.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    @property
    def record(self) -> Unrolled:
        """What the layer was."""
        record = unrolled_of(self.layer)
        assert record is not None, "made of unrolled layers only"  # noqa: S101
        return record

    @property
    def linear(self) -> Any:
        """The FC layer between Flatten and Unflatten."""
        return linear_of(self.layer)

    def is_plain(self) -> bool:
        """Say whether it is Flatten, exactly an ``nn.Linear`` of the right size, and Unflatten."""
        linear = self.linear
        return (
            type(linear) is nn.Linear
            and not parametrize.is_parametrized(linear)
            and linear.weight.shape == self.record.pattern.shape
        )

    @property
    def weight(self) -> Tensor:
        """The weight, in the CONV layer's layout: what the matrix has where it has it first."""
        record = self.record
        return record.weight_of(_filters(held_by(self.linear.weight, record.pattern), record))

    @property
    def bias(self) -> Tensor | None:
        """The bias, one number per filter: what the first position adds."""
        vector = self.linear.bias
        return None if vector is None else bias_of(vector, self.record)[0]

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, as its ``nn.Sequential`` computes it."""
        y: Tensor = self.layer.forward(x)
        return y

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Return what the matrix and the vector hold, as gradients, for weight and bias."""
        record, linear = self.record, self.linear
        values = values_in(linear.weight, record.pattern)
        weight = record.weight_of(fold(values, record.pattern))
        if linear.bias is None:
            return weight, None
        return weight, linear.bias.detach().unflatten(0, (-1, record.positions)).sum(1)

    def misfits(self, weight: Tensor | None, bias: Tensor | None) -> list[str]:
        """Return what the matrix has that the matrix of a weight has not, and the vector likewise.

        Parameters
        ----------
        weight : Tensor or None
            In the CONV layer's layout; None is the one that is read out of the matrix.
        bias : Tensor or None
        """
        record, linear = self.record, self.linear
        held = held_by(linear.weight, record.pattern)
        filters = _filters(held, record) if weight is None else record.filters_of(weight)
        expected = matrix_values(filters.detach().to(held.values), record.pattern)
        wrong, more = first_wrong(held, expected, record.pattern)
        found = []
        if wrong is not None:
            filter_, position = divmod(wrong.row, record.positions)
            found.append(
                f"its matrix at [{wrong.row}, {wrong.column}] (filter {filter_}, position "
                f"{position}); expected {wrong.expected}, got {wrong.got}"
                + (f", and {more} more such entries" if more else "")
            )
        if linear.bias is not None:
            table = linear.bias.detach().unflatten(0, (-1, record.positions))
            added = (table[:, 0] if bias is None else bias.detach())[:, None].expand_as(table)
            other = differing(table, added)
            if bool(other.any()):
                index = int(other.to(torch.uint8).argmax())
                filter_, position = divmod(index, record.positions)
                found.append(
                    f"its vector at [{index}] (filter {filter_}, position {position}); expected "
                    f"{added[filter_, position].item()}, got {table[filter_, position].item()}"
                )
        return found


def change_unrolled(module: nn.Module, change: Change) -> Callable[[], None]:
    """Prepare a change of all numbers of the unrolled layers in a module.

    Parameters
    ----------
    module : nn.Module
    change : callable
        Of tensors; it is applied to filters, and to single entries that they do not explain.

    Returns
    -------
    callable
        Puts the changed matrices in place, to be called when all other numbers have been changed.
    """
    made: dict[int, nn.Parameter] = {}
    places: list[tuple[Any, int]] = []
    for part in module.modules():
        layer = UnrolledLayer(part) if form_of(part) == "unrolled" else None
        if layer is None or not layer.is_plain():
            continue
        matrix = layer.linear.weight
        places.append((layer.linear, id(matrix)))
        if id(matrix) not in made:
            changed = _changed(matrix.detach(), layer.record, change)
            made[id(matrix)] = nn.Parameter(changed, matrix.requires_grad)
    for linear, _ in places:
        linear.weight = None  # nothing else is to change it meanwhile

    def put() -> None:
        for linear, key in places:
            linear.weight = made[key]

    return put


def _changed(matrix: Tensor, record: Unrolled, change: Change) -> Tensor:
    pattern = record.pattern
    held = held_by(matrix, pattern)
    filters = _filters(held, record)
    wrong = differing(held.values, matrix_values(filters, pattern))
    changed = change(filters)
    made = matrix_tensor(changed, pattern, "csr" if is_sparse(matrix) else "dense")
    if held.stray is None and not bool(wrong.any()):
        return made
    # What no convolution has stays as it is, changed number by number.
    whole = change(matrix.to_dense())
    inside = matrix_tensor(torch.ones_like(changed), pattern, "dense") != 0
    right = matrix_values(filters, pattern).new_zeros(pattern.shape, dtype=torch.bool)
    right[inside] = ~wrong
    mixed = torch.where(right, made.to_dense(), whole)
    return mixed.to_sparse_csr() if is_sparse(matrix) else mixed


def _filters(held: Held, record: Unrolled) -> Tensor:
    return likely_filters(held.values, record.pattern, record.filters_of(record.weight))
