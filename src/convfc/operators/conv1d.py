"""An N-dimensional convolution as one 1-D convolution: Naghizadeh & Sacchi (2009).

M. Naghizadeh and M. D. Sacchi, *Multidimensional convolution via a 1D convolution algorithm*, The
Leading Edge 28(11): 1336-1337. An image is written row by row, with enough zeros between the rows
that no window of one reaches into the next; a filter is written the same way, in rows of the same
length. Then sliding one over the other is the convolution of the image. Where a window begins and
what it reads is asked of the index map, so that this holds for every geometry: the padding of a row
separates it from the next, a stride picks some of the results, and dilation, and reading backwards,
are places of the taps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from convfc.algorithm1 import conv_as_matmul
from convfc.arrays import Array, check_input, check_shape, namespace, take_or_zero
from convfc.geometry import ConvGeometry
from convfc.indexmap import IndexMap, Indices, index_map
from convfc.layer import ConvLayer
from convfc.registry import read_layer
from convfc.stretch import pad


@dataclass(frozen=True, eq=False)
class Conv1dForm:
    """A CONV layer as one 1-D convolution; `as_conv1d` makes it.

    ``form(x)`` is the layer's output ``(b, *output, f)`` for x of shape ``(b, *spatial, c)``. Its
    steps are for those who have a 1-D convolution of their own::

        y = form.read_out(my_conv1d(form.lay_out(x), form.filters)) + bias

    Arrays are of the library that the layer's filters are of, and gradients flow to the input.

    Attributes
    ----------
    layer : ConvLayer
        The layer that this is.
    where : IndexMap
        What its windows read.
    """

    layer: ConvLayer
    where: IndexMap

    @cached_property
    def geometry(self) -> ConvGeometry:
        """The 1-D convolution: the same channels, filters and groups; no stride and no padding."""
        nd, length = self.layer.geometry, int(self._places[0].max()) + 1
        return ConvGeometry(nd.in_channels, nd.out_channels, (length,), groups=nd.groups)

    @cached_property
    def filters(self) -> Array:
        """The 1-D filters, shape ``(f, length, c / groups)``, with zeros between the taps."""
        filters, (taps, _) = self.layer.filters, self._places
        xp = namespace(filters=filters)
        places = np.full(self.geometry.kernel_size, -1)
        places[taps] = np.arange(taps.size)
        f, *_, channels = filters.shape
        return take_or_zero(xp, xp.reshape(filters, (f, taps.size, channels)), places, axis=1)

    @property
    def length(self) -> int:
        """Elements of the laid-out input, per sample and channel."""
        return math.prod(len(axis.source) for axis in self.where.axes)

    @property
    def zeros(self) -> float:
        """The fraction of the 1-D filters' taps that are zeros in between: what it costs."""
        return 1 - self._places[0].size / self.geometry.kernel_size[0]

    def lay_out(self, x: Array) -> Array:
        """Write ``(b, *spatial, c)`` in one row, ``(b, length, c)``: padded, and flattened."""
        xp = namespace(x=x)
        size = (*self.where.input_size, self.layer.geometry.in_channels)
        check_input(x, ("b", *size))
        return xp.reshape(pad(xp, x, self.where), (x.shape[0], self.length, size[-1]))

    def read_out(self, y: Array) -> Array:
        """Pick ``(b, *output, f)`` from the 1-D output, ``(b, length - kernel + 1, f)``.

        The rest is what it computes where no window of the layer begins: between two positions of
        a stride, and from the end of a row into the next.
        """
        xp, f = namespace(y=y), self.layer.geometry.out_channels
        positions = self.length - self.geometry.kernel_size[0] + 1
        check_shape("y", y, ("b", positions, f), "give the output of the 1-D convolution")
        picked = take_or_zero(xp, y, self._places[1], axis=1)
        return xp.reshape(picked, (y.shape[0], *self.where.output_size, f))

    def __call__(self, x: Array) -> Array:
        """Return the layer's output, ``(b, *output, f)``, for x of shape ``(b, *spatial, c)``."""
        y = conv_as_matmul(self.lay_out(x), self.filters, self.geometry, self.layer.bias)
        return self.read_out(y)

    @cached_property
    def _places(self) -> tuple[Indices, Indices]:
        """Where in the row each tap lies, from a window's first one on, and where windows begin."""
        taps, starts, axes = [], [], self.where.axes
        for axis in axes:
            before = min(0, axis.tap_step * (axis.taps - 1))  # the last tap's place, read backwards
            taps.append(axis.tap_step * np.arange(axis.taps) - before)
            starts.append(axis.first + axis.step * np.arange(axis.positions) + before)
        sizes = [len(axis.source) for axis in axes]
        first, second = (
            np.ravel_multi_index(np.ix_(*places), sizes).ravel() for places in (taps, starts)
        )
        return first, second


def as_conv1d(
    layer: Any, input_size: Sequence[int], geometry: ConvGeometry | None = None
) -> Conv1dForm:
    """Return a CONV layer of any number of axes as one 1-D convolution.

    The 1-D filter has ``1 + sum over axes of (k - 1) * dilation * row length`` taps, where the
    rows are those of the padded input; `Conv1dForm.zeros` says how many of them are zeros. The
    result is exact, and of use where a (fast) 1-D convolution is all there is.

    Parameters
    ----------
    layer, input_size, geometry
        As for `conv_matrix`.

    Returns
    -------
    Conv1dForm

    Raises
    ------
    ArgumentError, GeometryError, UnsupportedModel, UnsupportedLayer
        As for `conv_matrix`.

    Examples
    --------
    A 2 x 2 filter on rows of three elements: two taps, one zero that skips the rest of the row,
    and two taps of the next row. The third window runs over the end of a row and is left out:

    >>> x = np.arange(9).reshape(1, 3, 3, 1)
    >>> filters = np.array([1, 10, 100, 1000]).reshape(1, 2, 2, 1)
    >>> form = as_conv1d(filters, (3, 3), ConvGeometry(1, 1, (2, 2)))
    >>> form.filters.ravel()
    array([   1,   10,    0,  100, 1000])
    >>> y = np.correlate(form.lay_out(x).ravel(), form.filters.ravel())
    >>> y
    array([4310, 5421, 6532, 7643, 8754])
    >>> form.read_out(y.reshape(1, 5, 1))[0, :, :, 0]
    array([[4310, 5421],
           [7643, 8754]])
    """
    read = read_layer(layer, geometry, input_size=input_size).layer
    return Conv1dForm(read, index_map(read.geometry, input_size))
