"""What becomes of every layer of a model when one space of units grows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from convfc.frameworks.torch.morphism.channels import Axis
from convfc.frameworks.torch.morphism.fclayer import Columns, Growth, Rows, grow_channels
from convfc.frameworks.torch.morphism.mapping import Copies
from convfc.frameworks.torch.morphism.morph import Change
from convfc.frameworks.torch.morphism.reading import Layer, Reading
from convfc.frameworks.torch.running import deep_copy

__all__ = ["Plan", "has_theory"]


@dataclass(frozen=True, eq=False)
class Plan:
    """What becomes of each layer when one space grows.

    Parameters
    ----------
    reading : Reading
    space : int
    copies : Copies
        The new units.
    random : bool
        Whether their incoming weights are random, instead of copies.
    noise : float
        On the incoming weights of copies, relative to the standard deviation of the layer's.
    generator : torch.Generator
        Draws a seed for each layer.
    """

    reading: Reading
    space: int
    copies: Copies
    random: bool
    noise: float
    generator: torch.Generator

    def growing(self) -> list[Layer]:
        """Return all layers that change."""
        return [
            layer
            for layer in self.reading.layers.values()
            if self.in_space(layer.inputs) or self.in_space(layer.outputs)
        ]

    def in_space(self, axis: Axis | None) -> bool:
        """Say whether an axis has units of the space."""
        return any(self.reading.spaces.holds(segment, self.space) for segment in axis or ())

    def makes(self, layer: Layer) -> bool:
        """Say whether a layer's outputs are units of the space."""
        return self.in_space(layer.outputs)

    def change(self, layer: Layer, twin: nn.Module) -> Change:
        """Grow a layer's twin, and return what there is to prove."""
        rows = self._rows(layer) if self.makes(layer) else None
        grow: Callable[[nn.Module], nn.Module]
        divides: Tensor | int = 1
        if layer.kind == "channels":
            assert rows is not None, "its inputs are its outputs"  # noqa: S101
            grow = partial(grow_channels, rows=rows)
        else:
            growth = self._growth(layer, rows)
            grow, divides = growth, growth.divides(layer.module)
        behind = 1 + max(getattr(layer.module, "weight").dim() - 2, 0)  # noqa: B009
        axis = 1 if layer.kind == "channels" else -behind
        keep = rows is not None and self.random
        return Change(
            layer.name,
            layer.module,
            grow(twin),
            spread_input=self._spread(layer.inputs, axis) if self.in_space(layer.inputs) else None,
            spread_output=self._spread(layer.outputs, axis) if rows and not keep else None,
            rebuild=lambda module: grow(deep_copy(module)),
            keep_output=_picked(~rows.fresh, axis) if rows and keep else None,
            divides=divides,
            form="widened",
            why_no_integers="noise was added" if rows and self.noise else "",
        )

    def grow_held(self, model: nn.Module) -> tuple[str, ...]:
        """Grow parameters in nobody's layer, such as a scale per channel; return their names."""
        grown = []
        for name, axes in self.reading.held.items():
            where = [k for k, axis in enumerate(axes) if self.in_space(axis)]
            if not where:
                continue
            owner, _, own = name.rpartition(".")
            module = model.get_submodule(owner)
            old: Tensor = getattr(module, own)
            new = old.detach()
            for k in where:
                new = new.index_select(k, self._places(axes[k]).to(old.device))
            trains = isinstance(old, nn.Parameter)
            setattr(module, own, nn.Parameter(new, old.requires_grad) if trains else new)
            grown.append(name)
        return tuple(grown)

    def _growth(self, layer: Layer, rows: Rows | None) -> Growth:
        groups = int(getattr(layer.module, "groups", 1))
        if layer.kind == "depthwise":
            return Growth(rows, groups=len(self._places(layer.inputs)))
        if not self.in_space(layer.inputs):
            return Growth(rows, groups=groups)
        index = self._places(layer.inputs).unflatten(0, (groups, -1))
        spaces, axis = self.reading.spaces, layer.inputs
        assert axis is not None, "it has units of the space"  # noqa: S101
        per_group = spaces.places(axis) // groups
        columns = Columns(
            index - per_group * torch.arange(groups)[:, None],
            spaces.along(axis, self.space, self.copies.numerators, 1).view_as(index),
            spaces.along(axis, self.space, self.copies.denominators, 1).view_as(index),
        )
        return Growth(rows, columns, groups)

    def _rows(self, layer: Layer) -> Rows:
        fresh = self.reading.spaces.along(layer.outputs, self.space, self.copies.fresh, False)
        seed = int(torch.randint(2**31, (), generator=self.generator))
        return Rows(self._places(layer.outputs), fresh, self.random, self.noise, seed)

    def _places(self, axis: Axis | None) -> Tensor:
        return self.reading.spaces.grown(axis or (), self.space, self.copies.index)

    def _spread(self, axis: Axis | None, dim: int) -> Callable[[Tensor], Tensor]:
        return _picked(self._places(axis), dim)


def _picked(index: Tensor, dim: int) -> Callable[[Tensor], Tensor]:
    """Return a function that picks elements along an axis, by their places or by a mask."""
    places = index.nonzero().flatten() if index.dtype == torch.bool else index
    return lambda t: t.index_select(dim, places.to(t.device))


def has_theory(module: nn.Module) -> bool:
    """Say whether a module with a number per channel is a fixed map, whose rounding is bounded."""
    return isinstance(module, nn.PReLU) or (
        isinstance(module, _BatchNorm) and module.running_mean is not None
    )
