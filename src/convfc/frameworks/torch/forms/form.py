"""What form a module is a CONV layer in: PyTorch's own, patch, weight or unrolled form.

An unrolled layer is an ``nn.Sequential`` of ``nn.Flatten``, ``nn.Linear`` and ``nn.Unflatten`` and
nothing else. The record is one of its attributes, no part of its state: it is copied and pickled
with it, and tools that look at modules, parameters and buffers do not see it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from convfc.frameworks.torch.forms.patch import PatchConv
from convfc.frameworks.torch.forms.weight import is_weight_form
from convfc.frameworks.torch.read import filters_to_weight, is_registered, weight_to_filters
from convfc.geometry import ConvGeometry
from convfc.operators.pattern import MatrixPattern, matrix_pattern
from convfc.room import FCForm

ATTRIBUTE = "unrolled"
"""Where the record stands, in ``vars`` of the ``nn.Sequential``."""


@dataclass(frozen=True, eq=False)
class Unrolled:
    """The CONV layer that an unrolled layer was, in convfc's terms for its one input size.

    ``attributes`` are what its forward reads, as they were. ``weight`` is as it was, too: the
    matrix is read first, but it says nothing of a tap that only ever reads padding, and less than
    everything of taps that always read one element together.
    """

    native: type[nn.Module]
    attributes: Mapping[str, Any]
    geometry: ConvGeometry
    input_size: tuple[int, ...]
    weight: Tensor
    weight_channels_last: bool

    @property
    def pattern(self) -> MatrixPattern:
        """Where the matrix has entries, and which weight each of them holds."""
        return matrix_pattern(self.geometry, self.input_size, "channels_first")

    @property
    def positions(self) -> int:
        """Number of output positions."""
        return self.pattern.where.shape[0]

    def filters_of(self, weight: Tensor) -> Tensor:
        """Return a CONV weight as filters ``(f, *kernel, c / groups)``."""
        geometry = self.geometry
        return weight_to_filters(weight, transposed=geometry.transposed, groups=geometry.groups)

    def weight_of(self, filters: Tensor) -> Tensor:
        """Return filters in the CONV layer's layout: `filters_of` read backwards."""
        geometry = self.geometry
        return filters_to_weight(filters, transposed=geometry.transposed, groups=geometry.groups)


def form_of(module: nn.Module) -> Literal["native"] | FCForm | None:
    """Return the form in which a module is a CONV layer; None if it is none.

    A subclass of PyTorch's CONV layers, a lazy one, and a registered class is native, whatever its
    forward computes.
    """
    if isinstance(module, PatchConv):
        return "patch"
    if isinstance(module, _ConvNd):
        return "weight" if is_weight_form(module) else "native"
    if is_registered(module):
        return "native"
    return None if unrolled_of(module) is None else "unrolled"


def unrolled_of(module: nn.Module) -> Unrolled | None:
    """Return the record of an unrolled layer; None of anything else."""
    record = vars(module).get(ATTRIBUTE)
    return record if type(module) is nn.Sequential and isinstance(record, Unrolled) else None


def linear_of(layer: nn.Module) -> nn.Module | None:
    """Return what stands between ``nn.Flatten`` and ``nn.Unflatten``; None if the three do not."""
    parts = list(layer._modules.values())
    if len(parts) != 3 or (type(parts[0]), type(parts[2])) != (nn.Flatten, nn.Unflatten):
        return None
    return parts[1]
