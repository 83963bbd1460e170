"""The index map as strided views of PyTorch tensors: padding, windows, and the way back.

What a window reads is asked of `convfc.indexmap`; here the answer becomes plain numbers and views.
Three tiers: `patches_by_plan` builds all of M with ordinary differentiable operations, which every
tracer and transform follows; `patches_at_once` with one copy, whose gradient is added back tap by
tap; `gather` and `scatter` move one block of M for the products, without gradients.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from convfc.frameworks.torch.forms.children import in_a_transform
from convfc.geometry import ConvGeometry
from convfc.indexmap import index_map
from convfc.stretch import Block


class Axis(NamedTuple):
    """One axis of the index map in plain numbers, which a tracer takes as constants.

    ``before`` and ``after`` are input indices in the two margins around the input, -1 for a zero.
    Where the input does not lie in the padded axis as a whole (``inside``), ``before`` is all of
    that axis. The rest is as in `convfc.indexmap.AxisMap`.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    inside: bool
    step: int
    tap_step: int
    positions: int
    taps: int
    size: int

    @property
    def spacing(self) -> int:
        """Distance between neighbouring taps; they are read backwards where tap_step is below 0."""
        return abs(self.tap_step)

    @property
    def extent(self) -> int:
        """Padded elements from the first tap to the last."""
        return (self.taps - 1) * self.spacing + 1

    @property
    def zeros(self) -> bool:
        """Whether nothing but zeros is added around the input, or nothing at all."""
        return self.inside and max((*self.before, *self.after), default=-1) < 0


@lru_cache(maxsize=256)
def plan(geometry: ConvGeometry, input_size: tuple[int, ...]) -> tuple[Axis, ...]:
    """Ask the index map what the windows read on each axis; it refuses a size that does not fit."""
    axes = []
    for axis in index_map(geometry, input_size).axes:
        parts = axis.margins or (axis.source, ())
        before, after = (tuple(int(i) for i in part) for part in parts)
        numbers = (axis.step, axis.tap_step, axis.positions, axis.taps, axis.size)
        axes.append(Axis(before, after, axis.margins is not None, *numbers))
    return tuple(axes)


class Rule(NamedTuple):
    """How an axis of any size is padded and read, in plain numbers.

    ``spread - 1`` zeros go between its elements, ``low`` and ``high`` elements around them.
    """

    spread: int
    low: int
    high: int
    step: int
    tap_step: int
    taps: int


def open_rules(geometry: ConvGeometry) -> tuple[str, tuple[Rule, ...]]:
    """Return PyTorch's name of what is padded with, and how each axis is padded and read."""
    rules = []
    backwards = geometry.transposed != geometry.flip
    for axis, (low, high) in enumerate(geometry.padding):
        spread, margins = 1, (low, high)
        step, spacing = geometry.stride[axis], geometry.dilation[axis]
        if geometry.transposed:
            # Windows move by one over the input with stride - 1 zeros between its elements.
            spread, step = step, 1
            reach = geometry.effective_kernel_size[axis] - 1
            margins = (reach - low, reach - high + geometry.output_padding[axis])
        tap_step = -spacing if backwards else spacing
        rules.append(Rule(spread, *margins, step, tap_step, geometry.kernel_size[axis]))
    mode = geometry.padding_mode
    return "constant" if mode == "zeros" else mode, tuple(rules)


def open_windows(x: Tensor, mode: str, rules: Sequence[Rule]) -> tuple[Tensor, tuple[Axis, ...]]:
    """Pad an input whose sizes a compiler leaves open, and return how windows read what is padded.

    `plan` and `padded` look up indices for one size; this pads by PyTorch's own functions, which
    take every size. Tests compare the two.
    """
    widths: list[int] = []
    for dim, rule in enumerate(rules, start=2):
        if rule.spread > 1:
            between = [0, 0] * (x.ndim - 1 - dim) + [0, rule.spread - 1]
            x = F.pad(x.unsqueeze(dim + 1), between).flatten(dim, dim + 1)
        # The zeros behind the last element are cut off again.
        widths = [rule.low, rule.high - (rule.spread - 1), *widths]
    x = F.pad(x, widths, mode=mode) if any(widths) else x
    axes = []
    for dim, rule in enumerate(rules, start=2):
        axis = Axis((), (), True, rule.step, rule.tap_step, 1, rule.taps, x.shape[dim])
        axes.append(axis._replace(positions=(axis.size - axis.extent) // axis.step + 1))
    return x, tuple(axes)


def padded(x: Tensor, axes: Sequence[Axis]) -> Tensor:
    """Lay the input (N, C, *S) out as the windows see it, with its padding: (N, C, *padded)."""
    widths: list[int] = []
    for dim, axis in enumerate(axes, start=2):
        if axis.zeros:
            widths = [len(axis.before), len(axis.after), *widths]
            continue
        widths = [0, 0, *widths]
        if axis.inside:
            x = torch.cat([_select(x, axis.before, dim), x, _select(x, axis.after, dim)], dim)
        else:
            x = _select(x, axis.before, dim)
    return F.pad(x, widths) if any(widths) else x


def _select(x: Tensor, source: tuple[int, ...], dim: int) -> Tensor:
    """Gather along one axis; a source below 0 is a zero, whatever x holds."""
    if min(source, default=0) < 0:
        size = x.shape[dim]
        x = F.pad(x, [0, 0] * (x.ndim - 1 - dim) + [0, 1])
        source = tuple(size if i < 0 else i for i in source)
    return x.index_select(dim, torch.tensor(source, dtype=torch.long, device=x.device))


def patch_matrix(x: Tensor, geometry: ConvGeometry) -> Tensor:
    """Build the whole patch matrix M (N, L, groups * k) with ordinary, differentiable operations.

    Its columns are in PyTorch's order, ``(groups, c / groups, *kernel)``.

    A view of ``x`` where strides can say it: of a 1 x 1 layer of stride 1, and where the windows
    lie one after the other in memory.
    """
    return patches_by_plan(x, plan(geometry, tuple(x.shape[2:])), geometry.groups)


def patches_by_plan(x: Tensor, axes: Sequence[Axis], groups: int) -> Tensor:
    """Build the whole patch matrix M, of which the plan is known: see `patch_matrix`."""
    n = len(axes)
    windows = padded(x, axes)
    if torch._C._are_functorch_transforms_active():
        windows = _gathered(windows, axes)  # torch.func cannot batch the gradient of unfold
    else:
        for dim, axis in enumerate(axes, start=2):
            windows = _axis_windows(windows, dim, axis)
        backwards = [2 + n + a for a, axis in enumerate(axes) if axis.tap_step < 0]
        windows = windows.flip(backwards) if backwards else windows
    windows = windows.unflatten(1, (groups, x.shape[1] // groups))
    # (N, g, c, *positions, *taps) -> (N, *positions, g, c, *taps)
    windows = windows.permute(0, *range(3, 3 + n), 1, 2, *range(3 + n, 3 + 2 * n))
    columns = x.shape[1] * math.prod([axis.taps for axis in axes])
    positions = math.prod([axis.positions for axis in axes])
    matrix: Tensor = windows.reshape(x.shape[0], positions, columns)
    return matrix


def patches_at_once(x: Tensor, axes: Sequence[Axis], groups: int) -> Tensor:
    """Build M as `patches_by_plan` does, in a third of the time; not for tracers and transforms."""
    overlap = any(axis.step < axis.extent or axis.spacing > 1 for axis in axes)
    if in_a_transform(x) or not overlap:  # without an overlap it may be a view
        return patches_by_plan(x, axes, groups)
    matrix: Tensor = _Patches.apply(padded(x, axes), tuple(axes), groups)
    return matrix


class _Patches(torch.autograd.Function):
    """M of an input with its padding; its adjoint is `_Spread`, and the other way round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axes: tuple[Axis, ...], groups: int) -> Tensor:
        ctx.plan = axes, groups, tuple(x.shape)
        # First one tap after the other, which reads runs of memory; then channel by channel.
        by_tap = _all_windows(x.movedim(1, -1), axes, groups).contiguous()
        first = 2 + len(axes)
        backwards = [first + n for n, axis in enumerate(axes) if axis.tap_step < 0]
        by_tap = by_tap.flip(backwards) if backwards else by_tap
        matrix = by_tap.flatten(first, -2).transpose(-1, -2)
        return matrix.flatten(first - 1).flatten(1, -2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _Spread.apply(gradient, *ctx.plan), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        matrix: Tensor = _Patches.apply(tangent, *ctx.plan[:2])
        return matrix


class _Spread(torch.autograd.Function):
    """Each entry of a matrix like M added to what it was read from."""

    @staticmethod
    def forward(
        ctx: Any, matrix: Tensor, axes: tuple[Axis, ...], groups: int, shape: tuple[int, ...]
    ) -> Tensor:
        ctx.plan = axes, groups
        n, channels, *size = shape
        total = matrix.new_zeros((n, *size, channels), dtype=accumulating(matrix.dtype))
        windows = _all_windows(total, axes, groups)
        # Here the channels of a group stand before the taps.
        parts = matrix.reshape(*windows.shape[: 2 + len(axes)], -1, *[axis.taps for axis in axes])
        for tap in itertools.product(*(range(axis.taps) for axis in axes)):
            pairs = zip(tap, axes, strict=True)
            read = [axis.taps - 1 - t if axis.tap_step < 0 else t for t, axis in pairs]
            place, entry = (*[slice(None)] * (2 + len(axes)), *read), (..., *tap)
            windows[place].add_(parts[entry])  # type: ignore[index]
        return total.to(matrix.dtype).movedim(-1, 1)

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> Any:
        return _Patches.apply(dx, *ctx.plan), None, None, None


def _all_windows(x: Tensor, axes: Sequence[Axis], groups: int) -> Tensor:
    """View an input with its padding as (n, *positions, groups, *taps, channels of a group)."""
    return _windows(x, axes, groups, [(0, n) for n in (len(x), *(a.positions for a in axes))])


def _gathered(x: Tensor, axes: Sequence[Axis]) -> Tensor:
    """Copy the windows of the padded input, (N, C, *positions, *taps), axis by axis."""
    for dim, axis in enumerate(axes, start=2):
        first = -min(axis.tap_step, 0) * (axis.taps - 1)  # of a window read backwards
        at = torch.arange(axis.positions, device=x.device)[:, None] * axis.step + first
        at = at + torch.arange(axis.taps, device=x.device) * axis.tap_step
        x = x.index_select(dim, at.flatten()).unflatten(dim, at.shape).movedim(dim + 1, -1)
    return x


def _axis_windows(x: Tensor, dim: int, axis: Axis) -> Tensor:
    """Append an axis with the taps of each position: windows side by side need no overlap."""
    # A compiler that has cut off a rest of this size would compile again for one without.
    if axis.step != axis.extent or axis.spacing > 1 or torch.compiler.is_compiling():
        return x.unfold(dim, axis.extent, axis.step)[..., :: axis.spacing]
    if x.shape[dim] != axis.positions * axis.taps:
        x = x.narrow(dim, 0, axis.positions * axis.taps)
    windows: Tensor = x.unflatten(dim, (axis.positions, axis.taps)).movedim(dim + 1, -1)
    return windows


def accumulating(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of sums over blocks or taps: of 16-bit numbers they are rounded once."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


class Scratch:
    """Memory that the blocks of one layer share: taken again, it still holds what was there."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._memory: dict[str, Tensor] = {}
        self._margins: object = None

    def take(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return memory of this shape, holding anything."""
        size = math.prod(shape)
        if name not in self._memory or self._memory[name].numel() < size:
            self._memory.pop(name, None)  # before there is more
            self._memory[name] = self._like.new_empty(size)
        return self._memory[name][:size].view(shape)

    def take_with_margins(self, name: str, shape: Sequence[int], inner: Sequence[slice]) -> Tensor:
        """Return memory that is zero around its inner part, which is to be overwritten."""
        memory = self.take(name, shape)
        margins = (tuple(shape), tuple((s.start, s.stop) for s in inner))
        if margins != self._margins:
            self._margins = margins
            memory.zero_()
        return memory


def at(block: Block) -> tuple[slice, ...]:
    """Return the index of a block in what has its axes first."""
    return tuple(slice(*bounds) for bounds in block)


class Reach(NamedTuple):
    """What a block of positions reads: a part of the padded input, and of the input in it."""

    size: list[int]
    """Of the part of the padded input, per axis."""
    inner: tuple[slice, ...]
    """Where the input lies in that part."""
    input: tuple[slice, ...]
    """Where that is in the input."""


def reach(axes: Sequence[Axis], block: Block) -> Reach:
    """Return what a block reads, of axes that are padded with zeros."""
    sizes, inner, read = [], [], []
    for axis, (first, last) in zip(axes, block[1:], strict=True):
        low = len(axis.before)
        start = first * axis.step
        stop = (last - 1) * axis.step + axis.extent
        begin = min(max(start, low), stop)
        end = max(min(stop, low + axis.size), begin)
        sizes.append(stop - start)
        inner.append(slice(begin - start, end - start))
        read.append(slice(begin - low, end - low))
    return Reach(sizes, tuple(inner), tuple(read))


def gather(
    x: Tensor,  # (N, *S, C); fastest with the channels side by side in memory
    axes: Sequence[Axis],
    groups: int,
    block: Block,  # samples, and positions on each axis
    scratch: Scratch,
) -> Tensor:  # (groups, rows, k)
    """Build a block of M from an input that is padded with zeros; taps are read forwards.

    ``scratch`` holds the result until the next call, unless it is a view of ``x``, where strides
    can say it. With groups, each is held transposed.
    """
    part = _part(x, axes, groups, block, scratch)
    windows = _windows(part, axes, groups, block)
    rows = math.prod(windows.shape[: len(block)])
    columns = math.prod(windows.shape[len(block) + 1 :])
    if groups == 1 and columns == x.shape[-1]:  # a single tap
        return windows.reshape(1, rows, columns)
    if groups == 1:
        matrix = scratch.take("M", (1, rows, columns))
    else:
        # With few channels in a group positions are the longer runs: Mᵀ is held.
        matrix = scratch.take("M", (groups, columns, rows)).transpose(1, 2)
    _as_windows(matrix, windows).copy_(windows)
    return matrix


def seen_by_tap(
    x: Tensor, axes: Sequence[Axis], block: Block, scratch: Scratch
) -> Iterator[Tensor]:
    """Yield, tap by tap, what a block of positions reads of every channel: (n, *positions, C)."""
    yield from _taps(_part(x, axes, 1, block, scratch), axes, block)


def add_back(
    rows: Tensor,
    weights: Tensor,
    total: Tensor,
    axes: Sequence[Axis],
    block: Block,
    scratch: Scratch,
) -> None:
    """Add to what every tap has read its weights (k, C) times rows (n, *positions, C)."""
    size, inner, read = reach(axes, block)
    part = scratch.take("sum", (len(rows), *size, total.shape[-1])).zero_()
    for seen, weight in zip(_taps(part, axes, block), weights, strict=True):
        seen.addcmul_(rows, weight)
    total[(slice(*block[0]), *read)].add_(part[(slice(None), *inner)])


def _taps(part: Tensor, axes: Sequence[Axis], block: Block) -> Iterator[Tensor]:
    """Yield views of a part of the padded input, one per tap: (n, *positions, C)."""
    windows = _windows(part, axes, 1, block)
    for tap in itertools.product(*(range(axis.taps) for axis in axes)):
        index: Any = (*[slice(None)] * len(block), 0, *tap)
        yield windows[index]


def _as_windows(matrix: Tensor, windows: Tensor) -> Tensor:
    """View (groups, rows, k) in the shape of `_windows`."""
    groups = (windows.dim() - 1) // 2  # the axis in the middle
    taps, lengths = windows.shape[groups + 1 :], windows.shape[:groups]
    by_tap: Tensor = matrix.unflatten(2, taps).unflatten(1, lengths)
    return by_tap.movedim(0, groups)


def _part(x: Tensor, axes: Sequence[Axis], groups: int, block: Block, scratch: Scratch) -> Tensor:
    """Return the padded input that a block reads: channels last, but with groups first."""
    size, inner, read = reach(axes, block)
    samples = slice(*block[0])
    whole = all(part == slice(0, n) for part, n in zip(inner, size, strict=True))
    if whole and (groups > 1 or x.stride(-1) == 1 or x.shape[-1] == 1):
        return x[(samples, *read)]
    n, channels = block[0][1] - block[0][0], x.shape[-1]
    inner = (slice(None), *inner)
    if groups == 1:
        part = scratch.take_with_margins("input", (n, *size, channels), inner)
    else:
        part = scratch.take_with_margins("input", (channels, n, *size), inner).movedim(0, -1)
    part[inner].copy_(x[(samples, *read)])
    return part


def _windows(part: Tensor, axes: Sequence[Axis], groups: int, block: Block) -> Tensor:
    """View a part of the padded input as (n, *positions, groups, *taps, channels of a group)."""
    batch, *spatial, channel = part.stride()
    channels = part.shape[-1] // groups
    steps = [axis.step * s for axis, s in zip(axes, spatial, strict=True)]
    tap_steps = [axis.spacing * s for axis, s in zip(axes, spatial, strict=True)]
    lengths = [stop - start for start, stop in block]
    return part.as_strided(
        (*lengths, groups, *[axis.taps for axis in axes], channels),
        (batch, *steps, channels * channel, *tap_steps, channel),
    )


def scatter(
    matrix: Tensor,  # (groups, rows, k)
    total: Tensor,  # (N, *S, C), which is added to
    axes: Sequence[Axis],
    groups: int,
    block: Block,
    scratch: Scratch,
) -> None:
    """Add a block of M to what it reads: the adjoint of `gather`."""
    size, inner, read = reach(axes, block)
    samples, channels = block[0][1] - block[0][0], total.shape[-1]
    taps = [axis.taps for axis in axes]
    if groups == 1:
        part = scratch.take("sum", (samples, *size, channels)).zero_()
    else:
        part = scratch.take("sum", (channels, samples, *size)).zero_().movedim(0, -1)
    read_from = _windows(part, axes, groups, block)
    rows = _as_windows(matrix, read_from)
    apart = 1
    if groups == 1 and axes[-1].spacing == 1:
        # The taps of the last axis are one run in M and in the input alike, so that they are added
        # at once. An element may be written only once in one addition: the runs of neighbouring
        # windows overlap, those of windows so far apart do not.
        read_from, rows = read_from.flatten(-2), rows.flatten(-2)
        apart = math.ceil(taps.pop() / axes[-1].step)
    for phase, *tap in itertools.product(range(apart), *map(range, taps)):
        every = [slice(None)] * len(axes)
        index: Any = (*every, slice(phase, None, apart), slice(None), *tap)
        read_from[index].add_(rows[index])
    total[(slice(*block[0]), *read)].add_(part[(slice(None), *inner)])
