"""An N-dimensional convolution as one 1-D convolution: Naghizadeh & Sacchi (2009).

M. Naghizadeh and M. D. Sacchi, *Multidimensional convolution via a 1D convolution algorithm*, The
Leading Edge 28(11): 1336-1337. An image is written row by row, padded so that no window of one row
reaches into the next, and a filter in rows of the same length. Sliding one over the other is the
convolution. The index map says where windows begin and what they read, for every geometry.
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

    Its steps are for those who have a 1-D convolution of their own::

        y = form.read_out(my_conv1d(form.lay_out(x), form.filters)) + bias

    Arrays are of the library of the layer's filters, and gradients flow to the input.

    Attributes
    ----------
    layer : ConvLayer
    where : IndexMap
        What its windows read.
    """

    layer: ConvLayer
    where: IndexMap

    @cached_property
    def geometry(self) -> ConvGeometry:
        """The 1-D convolution: the same channels, filters and groups; no stride and no padding."""
        nd, taps = self.layer.geometry, self._places[0]
        size = (int(taps.max()) + 1,)
        return ConvGeometry(nd.in_channels, nd.out_channels, size, groups=nd.groups)

    @cached_property
    def filters(self) -> Array:
        """The 1-D filters, shape ``(f, length, c / groups)``, with zeros between the taps."""
        filters, (taps, _) = self.layer.filters, self._places
        xp, (f, *_, channels) = namespace(filters=filters), filters.shape
        places = np.full(self.geometry.kernel_size, -1)
        places[taps] = np.arange(taps.size)
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

        The rest of it begins where no window does: within a stride, or across the end of a row.
        """
        xp, f = namespace(y=y), self.layer.geometry.out_channels
        (positions,) = self.geometry.output_size((self.length,))
        check_shape("y", y, ("b", positions, f), "give the output of the 1-D convolution")
        picked = take_or_zero(xp, y, self._places[1], axis=1)
        return xp.reshape(picked, (y.shape[0], *self.where.output_size, f))

    def __call__(self, x: Array) -> Array:
        """Return the layer's output, ``(b, *output, f)``, for x of shape ``(b, *spatial, c)``."""
        y = conv_as_matmul(self.lay_out(x), self.filters, self.geometry, self.layer.bias)
        return self.read_out(y)

    @cached_property
    def _places(self) -> tuple[Indices, Indices]:
        """Where in the row each tap lies, from a window's first element on; where windows begin."""
        axes = self.where.axes
        row = np.arange(self.length).reshape([len(axis.source) for axis in axes])
        taps = [axis.first + axis.tap_step * np.arange(axis.taps) for axis in axes]
        starts = [axis.step * np.arange(axis.positions) for axis in axes]
        return row[np.ix_(*taps)].ravel(), row[np.ix_(*starts)].ravel()


def as_conv1d(
    layer: Any, input_size: Sequence[int], geometry: ConvGeometry | None = None
) -> Conv1dForm:
    """Return a CONV layer of any number of axes as one 1-D convolution.

    The 1-D filter has ``1 + sum over axes of (k - 1) * dilation * row length`` taps, where rows are
    those of the padded input; the share `Conv1dForm.zeros` of them are zeros. It is exact, and of
    use where a (fast) 1-D convolution is all there is. Arguments and errors are those of
    `conv_matrix`.

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
