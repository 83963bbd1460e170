"""ConvGeometry: everything about a convolution but its weights (Section 3 of Ma & Lu, 2017)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from convfc.errors import GeometryError
from convfc.sizes import (
    Padding,
    PerAxis,
    Sizes,
    flag,
    geometry_errors,
    input_sizes,
    integer,
    one_of,
    padding_pairs,
    per_axis,
)

PaddingMode: TypeAlias = Literal["zeros", "reflect", "replicate", "circular"]


@dataclass(frozen=True, init=False)
class ConvGeometry:
    """Everything about a convolution but its weights, for any number of spatial axes.

    With input ``x`` of shape ``(b, *spatial, c)`` and filters ``W`` of shape
    ``(f, *kernel, c / groups)``, one spatial axis and one group, it stands for::

        y[o, f] = sum over t, c of  x[o * stride + t * dilation - low, c] * W[f, t, c]

    the cross-correlation that networks call a convolution (Section 3), or, transposed, for its
    adjoint, in which input element ``i`` adds to output ``i * stride + t * dilation - low``.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of the input, and the number f of filters, Eq. (7). ``groups`` divides both.
    kernel_size : sequence of int
        One size per spatial axis; its length is the number of spatial axes.
    stride, dilation : int or sequence of int
        Step of the window, and distance between its taps. One number serves every axis.
    padding : int, sequence of int, or sequence of (low, high)
        Elements added before and after each axis; kept as ``((low, high), ...)``. Of a transposed
        convolution: how much of the output is cut off.
    groups : int
        Number of equal parts into which channels and filters are split; ``groups=in_channels`` is
        a depthwise convolution.
    padding_mode : {"zeros", "reflect", "replicate", "circular"}
        What the added elements hold, in PyTorch's names. Where nothing is added it is ``"zeros"``,
        whatever is given: equal functions have equal geometries.
    transposed : bool
        Whether this is the transposed convolution.
    output_padding : int or sequence of int
        Elements added at the high end of a transposed convolution's output.
    flip : bool
        Whether the window is read in reverse order along every axis: the true convolution of
        Eq. (3).

    Raises
    ------
    GeometryError
        If a value breaks its rule; the message names the value, the rule and the remedy.

    Examples
    --------
    The CONV layer of the paper's experiment, on MNIST: 13 x 13 positions, 16 taps.

    >>> geometry = ConvGeometry(1, 128, kernel_size=(4, 4), stride=2)
    >>> geometry.output_size((28, 28))
    (13, 13)
    >>> geometry.patch_matrix_shape(1000, (28, 28))
    (1000, 169, 16)
    >>> geometry.padding
    ((0, 0), (0, 0))
    """

    in_channels: int
    out_channels: int
    kernel_size: Sizes
    stride: Sizes
    padding: tuple[tuple[int, int], ...]
    dilation: Sizes
    groups: int
    padding_mode: PaddingMode
    transposed: bool
    output_padding: Sizes
    flip: bool

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sequence[int],
        *,
        stride: PerAxis = 1,
        padding: Padding = 0,
        dilation: PerAxis = 1,
        groups: int = 1,
        padding_mode: PaddingMode = "zeros",
        transposed: bool = False,
        output_padding: PerAxis = 0,
        flip: bool = False,
    ) -> None:
        if isinstance(kernel_size, str) or not isinstance(kernel_size, Sequence) or not kernel_size:
            raise GeometryError(
                "a kernel needs one size per spatial axis",
                where="kernel_size",
                got=repr(kernel_size),
                remedy="give a tuple, such as (3,) in 1-D or (3, 3) in 2-D",
            )
        ndim = len(kernel_size)
        with geometry_errors():
            values: dict[str, Any] = {
                "in_channels": integer("in_channels", in_channels, least=1),
                "out_channels": integer("out_channels", out_channels, least=1),
                "kernel_size": per_axis("kernel_size", kernel_size, ndim, least=1),
                "stride": per_axis("stride", stride, ndim, least=1),
                "padding": padding_pairs(padding, ndim),
                "dilation": per_axis("dilation", dilation, ndim, least=1),
                "groups": integer("groups", groups, least=1),
                "padding_mode": padding_mode,
                "transposed": flag("transposed", transposed),
                "output_padding": per_axis("output_padding", output_padding, ndim, least=0),
                "flip": flag("flip", flip),
            }
            remedy = "for another mode, pad the input yourself and use padding=0"
            one_of("padding_mode", padding_mode, PaddingMode, remedy=remedy)
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self._check()
        if not np.any(self.padding):
            # Otherwise `replace` with another padding would switch on a mode that had no effect.
            object.__setattr__(self, "padding_mode", "zeros")

    @classmethod
    def valid(
        cls, in_channels: int, out_channels: int, kernel_size: Sequence[int], **rest: Any
    ) -> ConvGeometry:
        """No padding: the paper's first way (printed there as "non-zero padding").

        Takes what `ConvGeometry` takes, but for ``padding``.
        """
        plain = cls(in_channels, out_channels, kernel_size, **rest)
        return plain._padded([(0, 0)] * plain.spatial_ndim, rest)

    @classmethod
    def half(
        cls, in_channels: int, out_channels: int, kernel_size: Sequence[int], **rest: Any
    ) -> ConvGeometry:
        """Half padding: floor(k / 2) on each side, which keeps the size if k is odd and stride 1.

        Dumoulin & Visin (2016), section 2.3.1, with the dilated kernel's extent as k. Takes what
        `valid` takes. For a size that is kept whatever the kernel, see `same`.
        """
        plain = cls(in_channels, out_channels, kernel_size, **rest)
        halves = [(extent // 2, extent // 2) for extent in plain.effective_kernel_size]
        return plain._padded(halves, rest)

    @classmethod
    def full(
        cls, in_channels: int, out_channels: int, kernel_size: Sequence[int], **rest: Any
    ) -> ConvGeometry:
        """Full padding: k - 1 on each side, so that every partial overlap counts.

        Dumoulin & Visin (2016), section 2.3.2. Takes what `valid` takes.
        """
        plain = cls(in_channels, out_channels, kernel_size, **rest)
        margins = [(extent - 1, extent - 1) for extent in plain.effective_kernel_size]
        return plain._padded(margins, rest)

    @classmethod
    def same(
        cls,
        in_channels: int,
        out_channels: int,
        kernel_size: Sequence[int],
        *,
        input_size: Sequence[int],
        odd: Literal["upper", "lower"] = "upper",
        **rest: Any,
    ) -> ConvGeometry:
        """Return the geometry whose output has ceil(input / stride) positions per axis.

        This is ``padding="same"`` of TensorFlow and Keras, and ``auto_pad`` of ONNX. It depends on
        the input size. Transposed, the output has input * stride positions.

        Parameters
        ----------
        in_channels, out_channels, kernel_size, **rest
            As for `ConvGeometry`, but for ``padding`` and ``output_padding``.
        input_size : sequence of int
            Spatial size of the input, one per axis.
        odd : {"upper", "lower"}
            The side that gets the extra element when the total is odd: ``"upper"`` is TensorFlow,
            Keras and ``SAME_UPPER``, ``"lower"`` is ``SAME_LOWER``. Of a transposed convolution:
            the side that is cut by one more.

        Examples
        --------
        >>> ConvGeometry.same(3, 8, (3, 3), stride=2, input_size=(28, 27)).padding
        ((0, 1), (1, 1))
        """
        with geometry_errors():
            one_of("odd", odd, ("upper", "lower"))
        plain = cls(in_channels, out_channels, kernel_size, **rest)
        pairs, output_padding = [], []
        for size, extent, step in zip(
            input_sizes(input_size, plain.spatial_ndim),
            plain.effective_kernel_size,
            plain.stride,
            strict=True,
        ):
            if plain.transposed:
                total = extent - step
                output_padding.append(max(-total, 0))
            else:
                total = (math.ceil(size / step) - 1) * step + extent - size
                output_padding.append(0)
            less, more = max(total, 0) // 2, (max(total, 0) + 1) // 2
            pairs.append((less, more) if odd == "upper" else (more, less))
        return plain._padded(pairs, rest, output_padding=output_padding)

    @property
    def spatial_ndim(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel_size)

    @property
    def effective_kernel_size(self) -> Sizes:
        """Extent of the dilated kernel on each axis, dilation * (k - 1) + 1."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel_size, self.dilation, strict=True))

    @property
    def taps(self) -> int:
        """Number k of columns of one group's patch matrix: kernel size times its channels."""
        return math.prod(self.kernel_size) * (self.in_channels // self.groups)

    @property
    def filters_shape(self) -> Sizes:
        """Shape ``(f, *kernel, c / groups)`` of the filters."""
        return (self.out_channels, *self.kernel_size, self.in_channels // self.groups)

    @property
    def filter_matrix_shape(self) -> tuple[int, int]:
        """Shape ``(k, f)`` of the filter matrix K."""
        return (self.taps, self.out_channels)

    def output_size(self, input_size: Sequence[int]) -> Sizes:
        """Return the number of output positions per axis: Eq. (5) and (6), with their floor.

        Per axis, floor((n + low + high - dilation * (k - 1) - 1) / stride) + 1; transposed,
        (n - 1) * stride - low - high + dilation * (k - 1) + output_padding + 1.

        Raises
        ------
        GeometryError
            If the kernel does not fit into the padded input, or reflection asks for more elements
            than the input has.

        Examples
        --------
        >>> ConvGeometry(1, 1, (3, 3), stride=2).output_size((6, 7))
        (2, 3)
        """
        sizes = input_sizes(input_size, self.spatial_ndim)
        return tuple(self._output_size(axis, size) for axis, size in enumerate(sizes))

    def patch_matrix_shape(self, batch: int, input_size: Sequence[int]) -> tuple[int, int, int]:
        """Return the shape ``(b, L, groups * k)`` of the patch matrix M."""
        return (batch, math.prod(self.output_size(input_size)), self.groups * self.taps)

    def _output_size(self, axis: int, size: int) -> int:
        (low, high), extent = self.padding[axis], self.effective_kernel_size[axis]
        step = self.stride[axis]
        if self.transposed:
            out = (size - 1) * step - low - high + extent + self.output_padding[axis]
            if out < 1:
                raise GeometryError(
                    f"padding {(low, high)} cuts away the whole transposed output of {size} "
                    f"elements on axis {axis}",
                    where="padding",
                    expected=f"low + high below {out + low + high}",
                    got=low + high,
                    remedy="use less padding, more output_padding or a larger input",
                )
            return out
        if self.padding_mode == "reflect" and max(low, high) >= size:
            raise GeometryError(
                f"reflection cannot take {max(low, high)} elements from the {size} of axis {axis}",
                where="padding",
                expected=f"at most {size - 1} on each side (the edge itself is not repeated)",
                got=(low, high),
                remedy="use less padding, a larger input or padding_mode='replicate'",
            )
        if extent > size + low + high:
            raise GeometryError(
                f"the kernel is larger than the padded input on axis {axis}",
                where="kernel_size",
                expected=f"dilation * (k - 1) + 1 to be at most {size} + {low} + {high}",
                got=extent,
                remedy="use a larger input, more padding, or a smaller kernel or dilation",
            )
        return (size + low + high - extent) // step + 1

    def _padded(
        self, pairs: Sequence[tuple[int, int]], given: dict[str, Any], **worked_out: Any
    ) -> ConvGeometry:
        """Return it with the padding that a constructor worked out, and the mode that was given."""
        worked_out["padding"] = pairs
        for name in worked_out:
            if np.any(getattr(self, name)):
                raise GeometryError(
                    f"this constructor works out the {name} itself",
                    where=name,
                    got=getattr(self, name),
                    remedy=f"leave {name} out, or call ConvGeometry(...) with it",
                )
        mode = given.get("padding_mode", self.padding_mode)
        return replace(self, padding_mode=mode, **worked_out)

    def _check(self) -> None:
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % self.groups:
                raise GeometryError(
                    f"groups do not divide {name}",
                    where="groups",
                    expected=f"a divisor of {getattr(self, name)}",
                    got=self.groups,
                    remedy=f"change groups, or make {name} a multiple of it",
                )
        if self.transposed and self.padding_mode != "zeros":
            raise GeometryError(
                "a transposed convolution can only be padded with zeros",
                where="padding_mode",
                got=repr(self.padding_mode),
                remedy="pad its input yourself",
            )
        if not self.transposed and any(self.output_padding):
            raise GeometryError(
                "only a transposed convolution has output padding",
                where="output_padding",
                got=self.output_padding,
                remedy="set transposed=True, or leave output_padding out",
            )
        for axis, extra in enumerate(self.output_padding):
            if extra >= (most := max(self.stride[axis], self.dilation[axis])) and extra:
                raise GeometryError(
                    f"the output padding is too large on axis {axis}",
                    where="output_padding",
                    expected=f"below max(stride, dilation) = {most}",
                    got=extra,
                    remedy="use a smaller output_padding, or pad the output yourself",
                )


def checked(geometry: ConvGeometry) -> ConvGeometry:
    """Return the geometry, or raise if it is something else, such as sizes."""
    if not isinstance(geometry, ConvGeometry):
        raise GeometryError(
            "no ConvGeometry",
            where="geometry",
            got=type(geometry).__name__,
            remedy="ConvGeometry(in_channels, out_channels, kernel_size, ...)",
        )
    return geometry
