"""A case: a geometry on an input size, with an id made of its data, and the fixed table of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from convfc import ConvGeometry

if TYPE_CHECKING:
    from collections.abc import Sequence


def _axes(values: Sequence[object]) -> str:
    """One value when all axes agree, else all of them: ``3`` or ``3x2``."""
    texts = [str(v) for v in values]
    return texts[0] if len(set(texts)) == 1 else "x".join(texts)


@dataclass(frozen=True)
class Case:
    """A geometry together with the input it is tried on."""

    geometry: ConvGeometry
    input_size: tuple[int, ...]
    batch: int = 2

    def __str__(self) -> str:
        g = self.geometry
        parts = [
            f"n{g.spatial_ndim}",
            f"i{_axes(self.input_size)}",
            f"c{g.in_channels}",
            f"f{g.out_channels}",
            f"k{_axes(g.kernel_size)}",
            f"s{_axes(g.stride)}",
            f"p{_axes([f'{low}.{high}' for low, high in g.padding])}",
            f"d{_axes(g.dilation)}",
            f"g{g.groups}",
            g.padding_mode,
        ]
        if g.transposed:
            parts += ["transposed", f"op{_axes(g.output_padding)}"]
        if g.flip:
            parts.append("flip")
        return "-".join(parts)

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (self.batch, *self.input_size, self.geometry.in_channels)

    @property
    def filters_shape(self) -> tuple[int, ...]:
        g = self.geometry
        return (g.out_channels, *g.kernel_size, g.in_channels // g.groups)

    def integers(self, seed: int = 0, dtype: Any = np.int64) -> tuple[np.ndarray, ...]:
        """x, filters and bias of small integers: every sum is exact in every dtype we use."""
        rng = np.random.default_rng(seed)
        shapes = (self.x_shape, self.filters_shape, (self.geometry.out_channels,))
        return tuple(rng.integers(-4, 5, size=shape).astype(dtype) for shape in shapes)

    def reals(self, seed: int = 0, dtype: Any = np.float64) -> tuple[np.ndarray, ...]:
        """x, filters and bias with 0.5 <= |value| < 2: no product can underflow or overflow."""
        rng = np.random.default_rng(seed)
        shapes = (self.x_shape, self.filters_shape, (self.geometry.out_channels,))
        arrays = []
        for shape in shapes:
            values = rng.uniform(0.5, 1.99, shape) * rng.choice([-1.0, 1.0], shape)
            if np.issubdtype(dtype, np.complexfloating):
                values = values * np.exp(2j * np.pi * rng.uniform(size=shape))
            arrays.append(values.astype(dtype))
        return tuple(arrays)


def case(
    input_size: tuple[int, ...],
    kernel: tuple[int, ...],
    *,
    c: int = 2,
    f: int = 3,
    batch: int = 2,
    **rest: Any,
) -> Case:
    """Short hand for the table below."""
    geometry = ConvGeometry(in_channels=c, out_channels=f, kernel_size=kernel, **rest)
    return Case(geometry, input_size, batch)


FIGURE_6 = case((28, 28), (4, 4), c=1, f=1, batch=1, stride=4)
EXPERIMENT = case((28, 28), (4, 4), c=1, f=2, stride=2)
UNREAD = case((1, 3), (1, 2), padding=((1, 0), (0, 0)), stride=2)  # only padding is read

CASES = [
    FIGURE_6,
    EXPERIMENT,
    case((1,), (1,), c=1, f=1, batch=1),  # the smallest there is
    case((5, 4), (1, 1), c=3, f=2),  # 1x1: M is the input itself
    case((3, 4), (3, 4)),  # one position: the whole layer is one row
    case((6, 5), (3, 2)),  # valid
    case((6, 5), (3, 3), padding=1),  # half
    case((5, 5), (3, 3), padding=2),  # full
    case((7, 6), (3, 2), stride=(2, 3), padding=((1, 0), (0, 2))),  # every axis different
    case((8,), (3,), stride=3, c=1),  # the floor of Eq. (5): the last element is never read
    case((9,), (3,), padding=((4, 0),), dilation=2),  # causal: no output sees its future
    case((9, 8), (3, 2), dilation=(2, 3)),
    case((6, 6), (3, 3), c=4, f=4, groups=4, padding=1),  # depthwise
    case((6, 6), (3, 2), c=2, f=6, groups=2),  # depthwise with multiplier 3
    case((5, 6), (2, 3), c=6, f=4, groups=2, stride=2),  # grouped, 3 channels to 2 filters
    case((5, 6), (3, 3), padding=((2, 1), (1, 2)), padding_mode="reflect"),
    case((2, 3), (3, 3), padding=((1, 1), (2, 2)), padding_mode="reflect"),  # as wide as allowed
    case((4, 3), (3, 3), padding=((2, 1), (5, 4)), padding_mode="replicate"),
    case((4, 3), (3, 3), padding=((4, 1), (2, 3)), padding_mode="circular"),  # once around
    case((4, 5), (3, 3), padding=1, padding_mode="circular", c=4, f=2, groups=2, dilation=2),
    case((6, 5), (3, 2), flip=True, stride=2, padding=1),  # Eq. (3), the true convolution
    case((4, 3), (3, 3), transposed=True, stride=2, padding=1, output_padding=1),
    case((4, 3), (2, 3), transposed=True, stride=(3, 2), output_padding=(2, 1)),  # gaps
    case((3, 4), (3, 2), transposed=True, padding=((2, 0), (1, 0)), dilation=(1, 2)),
    case((3, 3), (3, 3), transposed=True, stride=2, c=4, f=6, groups=2, flip=True),
    case((4,), (2,), transposed=True, padding=((2, 1),), stride=1),  # crops more than it adds
    case((4, 3, 3), (2, 3, 2), stride=(2, 1, 1), padding=((0, 1), (1, 1), (1, 0))),
    case((3, 2, 2), (2, 2, 2), transposed=True, stride=2, output_padding=(1, 0, 1), c=2, f=2),
    case((3, 3, 2, 3), (2, 2, 1, 2), padding=((1, 0), (0, 0), (0, 1), (0, 0)), stride=(2, 1, 1, 1)),
    case((2, 2, 3, 2), (2, 1, 2, 2), transposed=True, stride=(2, 1, 1, 2), c=1, f=2),
    UNREAD,
    case((1,), (1,), transposed=True, padding=((1, 0),), dilation=2, output_padding=1),  # no read
]
