"""Which axes of a network's values hold the same units: spaces, and axes made of them.

A *space* is a number of units (filters of a CONV layer, neurons of an FC layer) that can only grow
together. An axis of a value is a list of segments, one behind the other: a space, each of whose
units takes a number of places in a row. A CONV layer's output has one segment with one place per
unit; flattened, a unit takes as many places as the feature map has positions; a concatenation has
the segments of all its parts.

Adding two values makes one space of two. Where a number of units is written down, or where a layer
looks at all units at once, their space is pinned, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from convfc.errors import Refusal

__all__ = ["Axes", "Axis", "Segment", "Spaces", "reshaped"]


class Segment(NamedTuple):
    """A space within an axis; each unit takes ``repeat`` places in a row."""

    space: int
    repeat: int = 1


Axis: TypeAlias = tuple[Segment, ...]
"""The segments of one axis; an axis that holds no units is None."""
Axes: TypeAlias = tuple[Axis | None, ...]
"""All axes of a value."""


class Spaces:
    """All spaces of a network: a forest in which those that grow together have one root.

    Examples
    --------
    >>> spaces = Spaces()
    >>> one, other = spaces.new(4), spaces.new(4)
    >>> spaces.unify(one, other, Refusal("they are added", ""))
    >>> spaces.root(one[0].space) == spaces.root(other[0].space)
    True
    """

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._sizes: list[int] = []
        self._blocks: list[int] = []
        self._pins: list[list[Refusal]] = []

    def new(self, size: int, pin: Refusal | None = None) -> Axis:
        """Return an axis that is a new space."""
        self._parents.append(len(self._parents))
        self._sizes.append(size)
        self._blocks.append(1)
        self._pins.append([] if pin is None else [pin])
        return (Segment(self._parents[-1]),)

    def root(self, space: int) -> int:
        """Return the space that stands for all that grow together with this one."""
        while self._parents[space] != space:
            self._parents[space] = self._parents[self._parents[space]]
            space = self._parents[space]
        return space

    def size(self, space: int) -> int:
        """Return how many units a space has."""
        return self._sizes[self.root(space)]

    def blocks(self, space: int) -> int:
        """Return into how many blocks, which grow alike, layers with groups divide a space."""
        return self._blocks[self.root(space)]

    def pins(self, space: int) -> Sequence[Refusal]:
        """Return why a space cannot grow; nothing if it can."""
        return self._pins[self.root(space)]

    def places(self, axis: Axis) -> int:
        """Return how long an axis is."""
        return sum(self.size(segment.space) * segment.repeat for segment in axis)

    def pin(self, axis: Axis | None, pin: Refusal) -> None:
        """Note that the spaces of an axis cannot grow."""
        for segment in axis or ():
            self._pins[self.root(segment.space)].append(pin)

    def divide(self, axis: Axis, groups: int, pin: Refusal) -> None:
        """Note that a layer gives each group an equal part of an axis."""
        segment = axis[0]
        blocks = math.lcm(self.blocks(segment.space), groups)
        if len(axis) > 1 or self.size(segment.space) % blocks:
            self.pin(axis, pin)
        else:
            self._blocks[self.root(segment.space)] = blocks

    def unify(self, one: Axis, other: Axis, pin: Refusal) -> None:
        """Note that two axes hold the same units; pin both if they are not made alike."""
        shapes = [[(self.size(s.space), s.repeat) for s in axis] for axis in (one, other)]
        if shapes[0] != shapes[1]:
            self.pin(one, pin)
            self.pin(other, pin)
            return
        for mine, theirs in zip(one, other, strict=True):
            first, second = self.root(mine.space), self.root(theirs.space)
            if first == second:
                continue
            self._parents[second] = first
            self._pins[first] += self._pins[second]
            self.divide(
                (Segment(first),),
                self._blocks[second],
                pin._replace(reason="groups divide its units in two ways"),
            )

    def grown(self, axis: Axis, space: int, units: Tensor) -> Tensor:
        """Return which old place each place of an axis holds, after one space has grown.

        Parameters
        ----------
        axis : tuple of Segment
        space : int
        units : Tensor of int64
            For each unit of the grown space the old one that it copies.

        Examples
        --------
        >>> spaces = Spaces()
        >>> segment, other = spaces.new(2)[0], spaces.new(1)[0]
        >>> axis = (segment._replace(repeat=2), other)
        >>> spaces.grown(axis, segment.space, torch.tensor([0, 1, 1]))
        tensor([0, 1, 2, 3, 2, 3, 4])
        """
        places = torch.arange(self.places(axis), device=units.device)
        parts = places.split([self.size(s.space) * s.repeat for s in axis])
        return torch.cat(
            [
                part.unflatten(0, (-1, s.repeat))[units].flatten() if self.holds(s, space) else part
                for s, part in zip(axis, parts, strict=True)
            ]
        )

    def along(self, axis: Axis, space: int, values: Tensor, other: float) -> Tensor:
        """Return one number per place of an axis whose space has grown.

        Parameters
        ----------
        axis : tuple of Segment
        space : int
        values : Tensor
            One for each unit of the grown space.
        other : float
            The number of all other places.
        """
        return torch.cat(
            [
                values.repeat_interleave(s.repeat)
                if self.holds(s, space)
                else values.new_full((self.size(s.space) * s.repeat,), other)
                for s in axis
            ]
        )

    def holds(self, segment: Segment, space: int) -> bool:
        """Say whether a segment is of a space, or of one that grows together with it."""
        return self.root(segment.space) == self.root(space)


def reshaped(axes: Axes, old: Sequence[int], new: Sequence[int]) -> tuple[Axes, list[Axis]]:
    """Follow a reshape: flattening keeps the units, each with more places.

    Parameters
    ----------
    axes : tuple
        Of the value before.
    old, new : sequence of int
        The shapes before and after.

    Returns
    -------
    tuple
        The axes after, and those before whose units cannot be followed.

    Examples
    --------
    >>> axis = (Segment(0),)
    >>> reshaped((None, axis, None, None), (2, 3, 4, 5), (2, 60))
    ((None, (Segment(space=0, repeat=20),)), [])
    >>> reshaped((None, axis), (2, 6), (2, 2, 3))
    ((None, None, None), [(Segment(space=0, repeat=1),)])
    """
    result: list[Axis | None] = []
    lost: list[Axis] = []
    i = j = 0
    while i < len(old) and j < len(new):
        first, second = i, j
        before, after = old[i], new[j]
        while before != after:
            if before < after:
                i += 1
                before *= old[i]
            else:
                j += 1
                after *= new[j]
        i, j = i + 1, j + 1
        held = [(k, axis) for k in range(first, i) if (axis := axes[k]) is not None]
        wide = [k for k in range(second, j) if new[k] != 1] or [second]
        followed: Axis | None = None
        if len(held) == 1 and len(wide) == 1:
            k, axis = held[0]
            inner = math.prod(old[k + 1 : i])
            followed = tuple(Segment(s.space, s.repeat * inner) for s in axis)
            followed *= math.prod(old[first:k])
        else:
            lost += [axis for _, axis in held]
        result += [followed if k == wide[0] else None for k in range(second, j)]
    lost += [axis for axis in axes[i:] if axis is not None]
    return (*result, *[None] * (len(new) - j)), lost
