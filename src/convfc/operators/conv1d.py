"""An N-dimensional convolution as one 1-D convolution: Naghizadeh & Sacchi (2009).

M. Naghizadeh and M. D. Sacchi, *Multidimensional convolution via a 1D convolution algorithm*, The
Leading Edge 28(11): 1336-1337. An image is written row by row, with enough zeros between the rows
that no window of one reaches into the next; a filter is written the same way, in rows of the same
length. Then sliding one over the other is the convolution of the image. Where a window begins and
what it reads is asked of the index map, so that this holds for every geometry: the padding of a row
is what separates it from the next, a stride picks some of the results, and dilation, and reading
backwards, are places of the taps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from convfc.algorithm1 import conv_as_matmul
from convfc.arrays import Array, check_input, check_shape, namespace, take_or_zero
from convfc.geometry import ConvGeometry
from convfc.indexmap import AxisMap, IndexMap, index_map
from convfc.layer import ConvLayer
from convfc.registry import read_layer
from convfc.stretch import pad


@dataclass(frozen=True, eq=False)
class Conv1dForm:
    """A CONV layer as one 1-D convolution; `as_conv1d` makes it.

    A call does it all: ``form(x)`` is the layer's output ``(b, *output, f)`` for x of shape
    ``(b, *spatial, c)``. Its three steps are for those who have a 1-D convolution of their own::

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
        nd = self.layer.geometry
        length = int(self._taps.max()) + 1
        return ConvGeometry(nd.in_channels, nd.out_channels, (length,), groups=nd.groups)

    @cached_property
    def filters(self) -> Array:
        """The 1-D filters, shape ``(f, length, c / groups)``, with zeros between the taps."""
        filters = self.layer.filters
        xp = namespace(filters=filters)
        f, *_, channels = filters.shape
        places = np.full(self.geometry.kernel_size, -1)
        places[self._taps] = np.arange(self._taps.size)
        return take_or_zero(xp, xp.reshape(filters, (f, self._taps.size, channels)), places, axis=1)

    @property
    def length(self) -> int:
        """Elements of the laid-out input, per sample and channel."""
        return math.prod(self._sizes)

    @property
    def zeros(self) -> float:
        """The fraction of the 1-D filters' taps that are zeros in between: what it costs."""
        return 1 - self._taps.size / self.geometry.kernel_size[0]

    def lay_out(self, x: Array) -> Array:
        """Write an input in one row: padded as the index map says, and flattened.

        Parameters
        ----------
        x : array, shape (b, *spatial, c)

        Returns
        -------
        array, shape (b, length, c)

        Raises
        ------
        ShapeError, DtypeError
            If ``x`` is not such an array.
        """
        xp = namespace(x=x)
        size = (*self.where.input_size, self.layer.geometry.in_channels)
        check_input(x, ("b", *size))
        return xp.reshape(pad(xp, x, self.where), (x.shape[0], self.length, size[-1]))

    def read_out(self, y: Array) -> Array:
        """Pick the layer's output from that of the 1-D convolution.

        The rest is what it computes where no window of the layer begins: between two positions of
        a stride, and from the end of a row into the next.

        Parameters
        ----------
        y : array, shape (b, length - kernel + 1, f)

        Returns
        -------
        array, shape (b, *output, f)

        Raises
        ------
        ShapeError, DtypeError
            If ``y`` is not such an array.
        """
        xp = namespace(y=y)
        f = self.layer.geometry.out_channels
        positions = self.length - self.geometry.kernel_size[0] + 1
        check_shape("y", y, ("b", positions, f), "give the output of the 1-D convolution")
        picked = take_or_zero(xp, y, self._starts, axis=1)
        return xp.reshape(picked, (y.shape[0], *self.where.output_size, f))

    def __call__(self, x: Array) -> Array:
        """Return the layer's output, ``(b, *output, f)``, for x of shape ``(b, *spatial, c)``."""
        y = conv_as_matmul(self.lay_out(x), self.filters, self.geometry, self.layer.bias)
        return self.read_out(y)

    @property
    def _sizes(self) -> tuple[int, ...]:
        return tuple(len(axis.source) for axis in self.where.axes)

    @cached_property
    def _taps(self) -> npt.NDArray[np.int64]:
        """Where each tap of a window lies behind its first one, in the order of the filters."""
        return self._places(
            [axis.tap_step * np.arange(axis.taps) - _before(axis) for axis in self.where.axes]
        )

    @cached_property
    def _starts(self) -> npt.NDArray[np.int64]:
        """Where the window of each output position begins."""
        return self._places(
            [
                axis.first + axis.step * np.arange(axis.positions) + _before(axis)
                for axis in self.where.axes
            ]
        )

    def _places(self, of_axes: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
        """Return the places of all combinations in the row that the padded input is written in."""
        return np.ravel_multi_index(np.ix_(*of_axes), self._sizes).ravel()


def as_conv1d(
    layer: Any, input_size: Sequence[int], geometry: ConvGeometry | None = None
) -> Conv1dForm:
    """Return a CONV layer of any number of axes as one 1-D convolution.

    The padded input, with P elements on each axis, is written row by row; on the first of two axes
    neighbours are then P elements apart, the length of a row. A 3 x 3 filter becomes
    ``2 * P + 3`` taps, nine of them its own. In general the 1-D filter has
    ``1 + sum over axes of (k - 1) * dilation * row length`` taps, and the 1-D convolution computes
    a result at every element of the padded input. It is exact, and of use where a (fast) 1-D
    convolution is all there is; `Conv1dForm.zeros` says how much of it is for nothing.

    Parameters
    ----------
    layer : object
        A framework's CONV layer in any form, a `ConvLayer`, or filters ``(f, *kernel, c / groups)``
        with a geometry.
    input_size : sequence of int
        Spatial size of the input.
    geometry : ConvGeometry, optional
        Of filters; a layer has its own.

    Returns
    -------
    Conv1dForm

    Raises
    ------
    ArgumentError
        If the geometry is missing.
    GeometryError
        If it does not fit the input size.
    UnsupportedModel, UnsupportedLayer
        If this is no layer that convfc knows.

    Examples
    --------
    A 2 x 2 filter on rows of three elements: two taps, one zero that skips the rest of the row,
    and two taps of the next row.

    >>> x = np.arange(9).reshape(1, 3, 3, 1)
    >>> filters = np.array([1, 10, 100, 1000]).reshape(1, 2, 2, 1)
    >>> form = as_conv1d(filters, (3, 3), ConvGeometry(1, 1, (2, 2)))
    >>> form.filters.ravel()
    array([   1,   10,    0,  100, 1000])
    >>> form.lay_out(x).ravel()
    array([0, 1, 2, 3, 4, 5, 6, 7, 8])

    Sliding it gives the four windows, and at the third place one that runs over the end of a row
    and is left out:

    >>> y = np.correlate(form.lay_out(x).ravel(), form.filters.ravel())
    >>> y
    array([4310, 5421, 6532, 7643, 8754])
    >>> form.read_out(y.reshape(1, 5, 1))[0, :, :, 0]
    array([[4310, 5421],
           [7643, 8754]])
    >>> form(x)[0, :, :, 0]
    array([[4310, 5421],
           [7643, 8754]])

    What it costs on a layer of a network:

    >>> geometry = ConvGeometry(64, 64, (3, 3), padding=1)
    >>> form = as_conv1d(np.ones(geometry.filters_shape), (56, 56), geometry)
    >>> form.geometry.kernel_size, round(form.zeros, 3), form.length
    ((119,), 0.924, 3364)
    """
    read = read_layer(layer, geometry, input_size=input_size).layer
    return Conv1dForm(read, index_map(read.geometry, input_size))


def _before(axis: AxisMap) -> int:
    """Return how far before the first tap (0 or less) the last one lies, if read backwards."""
    return min(0, axis.tap_step * (axis.taps - 1))
