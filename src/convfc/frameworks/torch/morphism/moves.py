"""What moves and reshapes do to units, and what is noted where units are lost.

See `reading`, which follows a graph with it.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import fx, nn
from torch.utils._pytree import tree_leaves

from convfc.errors import Refusal
from convfc.frameworks.torch.graph import asks_batch, shape_of
from convfc.frameworks.torch.morphism import operations
from convfc.frameworks.torch.morphism.channels import Axes, Axis, Spaces, reshaped
from convfc.frameworks.torch.simplify import calls
from convfc.frameworks.torch.vocabulary import Call

__all__ = ["ELSEWHERE", "UNKNOWN", "Follower"]

ELSEWHERE = "widen a layer whose units do not get there"
UNKNOWN = f"put an operation there that works on each channel by itself, or {ELSEWHERE}"
_DYNAMIC = "let it follow the sizes: x.flatten(1), or x.view(x.size(0), -1)"


class Follower:
    """Values of a graph with their axes.

    Parameters
    ----------
    model : nn.Module

    Attributes
    ----------
    spaces : Spaces
    axes : dict
        Of every tensor that has been followed.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.spaces = Spaces()
        self.axes: dict[fx.Node, Axes] = {}

    def reduction(self, node: fx.Node, axes: Axes, shape: tuple[int, ...]) -> Axes | None:
        """Follow a mean, a sum or a maximum along axes."""
        gone = Call.of(node, self.model).axes(len(axes)) or set(range(len(axes)))
        why = "it takes one value of all of them, in which a copy would count twice"
        left = self.along(node, axes, gone, why)
        if len(shape) == len(axes):
            return left
        return tuple(axis for k, axis in enumerate(axes) if k not in gone)

    def reshape(
        self, node: fx.Node, x: fx.Node, shape: tuple[int, ...], sizes: tuple[Any, ...]
    ) -> Axes:
        """Follow a reshape; a size that is written down is one that cannot change."""
        axes, lost = reshaped(self.axes[x], shape_of(x) or (), shape)
        for axis in lost:
            self.spaces.pin(axis, self.pin(node, "it divides them over several axes", UNKNOWN))
        self._written(node, axes, sizes)
        return axes

    def expand(self, node: fx.Node, axes: Axes, shape: tuple[int, ...]) -> Axes:
        """Follow an expansion to sizes that are given."""
        result: Axes = (*[None] * (len(shape) - len(axes)), *axes)
        self._written(node, result, node.args[1:])
        return result

    def _written(self, node: fx.Node, axes: Axes, sizes: tuple[Any, ...]) -> None:
        """Pin the units whose number is given as a number."""
        for axis, size in zip(axes, tree_leaves(sizes), strict=False):
            if axis is not None and isinstance(size, int) and size > 0:
                why = f"their number, {size}, is written down there"
                self.spaces.pin(axis, self.pin(node, why, _DYNAMIC))

    def indexed(self, node: fx.Node, axes: Axes) -> Axes | None:
        """Follow ``x[:, :, 0]``: whole axes stay, of the others the units are lost."""
        index: Any = node.args[1]
        index = index if isinstance(index, tuple) else (index,)
        if any(isinstance(one, fx.Node) for one in index):
            return self.unknown(node)
        named = sum(one is not None and one is not Ellipsis for one in index)
        result: list[Axis | None] = []
        left = list(axes)
        for one in (*index, *([] if Ellipsis in index else [Ellipsis])):
            if one is None:
                result.append(None)
            elif one is Ellipsis:
                result += [left.pop(0) for _ in range(len(axes) - named)]
            else:
                axis = left.pop(0)
                if one != slice(None):
                    self.spaces.pin(axis, self.pin(node, "it picks some of them", UNKNOWN))
                    axis = None
                if isinstance(one, slice):
                    result.append(axis)
                elif not isinstance(one, int):
                    return self.unknown(node)
        return tuple(result)

    def squeezed(self, node: fx.Node, axes: Axes) -> Axes | None:
        """Follow squeeze and unsqueeze."""
        dim: Any = calls.argument(node, 1, "dim")
        name = getattr(node.target, "__name__", node.target)
        if name == "unsqueeze" and isinstance(dim, int):
            at = dim % (len(axes) + 1)
            return (*axes[:at], None, *axes[at:])
        source = shape_of(node.args[0])
        if name != "squeeze" or source is None:
            return self.unknown(node)
        dims = dim if isinstance(dim, (tuple, list)) else [dim]
        asked = {d % len(axes) for d in dims if isinstance(d, int)} or set(range(len(axes)))
        gone = {k for k in asked if source[k] == 1}
        for k in gone:
            reason = "it takes the axis away that they are on"
            self.spaces.pin(axes[k], self.pin(node, reason, ELSEWHERE))
        return tuple(axis for k, axis in enumerate(axes) if k not in gone)

    def trailing(self, node: fx.Node, axes: Axes, count: int) -> Axes:
        """Follow what works on so many last axes, in each unit by itself."""
        why = "it works along the axis that they are on"
        return self.along(node, axes, set(range(len(axes) - count, len(axes))), why)

    def along(self, node: fx.Node, axes: Axes, where: set[int], why: str) -> Axes:
        """Pin the units on the axes along which something works, and keep the others."""
        for k in where:
            self.spaces.pin(axes[k], self.pin(node, why, UNKNOWN))
        return tuple(None if k in where else axis for k, axis in enumerate(axes))

    # What is not followed

    def no_tensor(self, node: fx.Node) -> None:
        """Look at what is no tensor: sizes that a forward asks for, tuples of tensors."""
        sources = [one for one in node.all_input_nodes if one in self.axes]
        if not sources or asks_batch(node):
            return
        if node.target == "size" or (node.target is getattr and node.args[1] == "shape"):
            self._sizes(node, self.axes[sources[0]])
        elif node.target is not getattr and node.target not in calls.QUESTIONS:
            self.unknown(node)

    def _sizes(self, node: fx.Node, axes: Axes) -> None:
        """Pin units whose number a forward computes with, unless it reshapes only."""
        asked = calls.argument(node, 1, "dim") if node.target == "size" else None
        for axis, users in self._asked(node, asked, axes):
            if axis is not None and not all(map(_only_reshapes, users)):
                why = "the forward computes with their number"
                self.spaces.pin(axis, self.pin(node, why, ELSEWHERE))

    def _asked(
        self, node: fx.Node, dim: Any, axes: Axes
    ) -> list[tuple[Axis | None, list[fx.Node]]]:
        """Return each axis whose size is asked for, with who uses the size."""
        if isinstance(dim, int):
            return [(axes[dim], list(node.users))]
        found: list[tuple[Axis | None, list[fx.Node]]] = []
        for user in node.users:
            index = user.args[1] if user.target is operator.getitem else slice(None)
            picked = axes[index] if isinstance(index, slice) else (axes[index],)  # type: ignore[index]
            users = [user] if user.target is not operator.getitem else list(user.users)
            found += [(axis, users) for axis in picked]
        return found

    def unknown(self, node: fx.Node) -> Axes | None:
        """Pin all units that something is given which is in no table."""
        module = self.model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if (node.target if module is None else type(module)) in operations.NORMS:
            return self.lost(node, "it normalises over several of them", UNKNOWN)
        return self.lost(node, "it is not known to leave each of them to itself", UNKNOWN)

    def lost(self, node: fx.Node, why: str, remedy: str) -> Axes | None:
        """Pin all units that something is given."""
        for source in node.all_input_nodes:
            self.pin_all(source, self.pin(node, why, remedy))
        return None

    def pin_all(self, value: Any, pin: Refusal) -> None:
        """Pin all units of a value."""
        for axis in self.axes.get(value, ()) if isinstance(value, fx.Node) else ():
            self.spaces.pin(axis, pin)

    def pin(self, node: fx.Node, why: str, remedy: str) -> Refusal:
        """Return a reason with its place: which module or call."""
        what = calls.words(node)
        if node.op == "call_module":
            what = type(self.model.get_submodule(str(node.target))).__name__
        return Refusal(why, remedy, f"{what} at {calls.place(node)}")


def _only_reshapes(node: fx.Node) -> bool:
    """Say whether a size goes nowhere but into the shape of a value."""
    if node.target in (*operations.RESHAPES, *operations.EXPANSIONS):
        return True
    numbers = node.target in operations.NUMBERS and shape_of(node) is None
    return numbers and all(map(_only_reshapes, node.users))
