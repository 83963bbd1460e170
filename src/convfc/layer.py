"""ConvLayer: a geometry with its filters and bias, whichever framework they came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from convfc.algorithm1 import conv_as_matmul, filters_to_matrix
from convfc.arrays import Array, check_shape, namespace
from convfc.geometry import ConvGeometry, checked

Order: TypeAlias = Literal["channels_first", "channels_last"]
"""How an input and an output are laid out in memory: (c, *spatial), or (*spatial, c)."""


@dataclass(frozen=True, eq=False)
class ConvLayer:
    """A CONV layer in convfc's own terms, read from a framework's layer or made by hand.

    Parameters
    ----------
    geometry : ConvGeometry
    filters : array, shape (f, *kernel, c / groups)
        Of NumPy, PyTorch or JAX.
    bias : array, shape (f,), optional
        Of the same library.
    name : str
        Place of the layer in its model; for messages and tables.

    Raises
    ------
    ShapeError, DtypeError, GeometryError
        If the arrays do not fit the geometry or each other.

    Examples
    --------
    >>> import numpy as np
    >>> layer = ConvLayer(ConvGeometry(1, 2, (2, 2)), np.ones((2, 2, 2, 1)), np.array([0.0, 1.0]))
    >>> layer.matrix.shape
    (4, 2)
    >>> layer(np.ones((1, 2, 2, 1)))
    array([[[[4., 5.]]]])
    """

    geometry: ConvGeometry
    filters: Array
    bias: Array | None = None
    name: str = ""

    def __post_init__(self) -> None:
        given = {"filters": self.filters, "bias": self.bias}
        namespace(**{name: array for name, array in given.items() if array is not None})
        shape = checked(self.geometry).filters_shape
        check_shape("filters", self.filters, shape, "use the layout (f, *kernel, c/groups)")
        if self.bias is not None:
            check_shape("bias", self.bias, shape[:1], "give one number per filter")

    @property
    def matrix(self) -> Array:
        """The filter matrix K, shape ``(k, f)``."""
        return filters_to_matrix(self.filters, self.geometry)

    def __call__(self, x: Array) -> Array:
        """Return the layer's output, ``(b, *output, f)``, for x of shape ``(b, *spatial, c)``."""
        return conv_as_matmul(x, self.filters, self.geometry, self.bias)
