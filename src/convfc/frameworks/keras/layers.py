"""Keras layers of the FC form, written with ``keras.ops``: the same on every backend."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from convfc.extras import needing

with needing():
    import keras

from convfc.errors import ShapeError
from convfc.frameworks.keras.products import patches
from convfc.geometry import ConvGeometry
from convfc.indexmap import index_map
from convfc.sizes import one_of


@keras.saving.register_keras_serializable(package="convfc")
class Im2Col(keras.layers.Layer):  # type: ignore[misc]
    """Algorithm 1, steps 1 and 2, inside the graph: a feature map becomes its patch matrix M.

    It only moves elements: M, ``(b, L, groups * k)``, holds the bits of the input. A
    ``Dense(f, use_bias=False)`` after it is the CONV layer of this geometry (Ma & Lu 2017,
    Section 4).

    Parameters
    ----------
    geometry : ConvGeometry or mapping
        The convolution; a saved model holds a mapping of its arguments.
    data_format : {"channels_last", "channels_first"}, optional
        The layout of the input: ``(b, *spatial, c)`` or ``(b, c, *spatial)``; Keras's own setting
        when left out.
    **kwargs
        Those of every Keras layer.

    Examples
    --------
    >>> import numpy as np
    >>> from convfc import ConvGeometry
    >>> layer = Im2Col(ConvGeometry.valid(1, 8, (2, 2), stride=2), data_format="channels_last")
    >>> M = layer(np.arange(16, dtype="float32").reshape(1, 4, 4, 1))
    >>> keras.ops.convert_to_numpy(M)[0, 1].tolist()
    [2.0, 3.0, 6.0, 7.0]
    """

    def __init__(
        self,
        geometry: ConvGeometry | Mapping[str, Any],
        data_format: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not isinstance(geometry, ConvGeometry):
            geometry = ConvGeometry(**geometry)
        self.geometry = geometry
        self.data_format = keras.config.image_data_format() if data_format is None else data_format
        one_of("data_format", self.data_format, ("channels_last", "channels_first"))

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Check that the geometry fits this input size."""
        index_map(self.geometry, self._spatial(input_shape))
        self.built = True

    def call(self, inputs: Any) -> Any:
        """Return the patch matrix M, ``(b, L, groups * k)``, of the inputs."""
        if self.data_format == "channels_first":
            inputs = keras.ops.moveaxis(inputs, 1, -1)
        return patches(inputs, self.geometry)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return ``(b, L, groups * k)``."""
        _, rows, columns = self.geometry.patch_matrix_shape(1, self._spatial(input_shape))
        return input_shape[0], rows, columns

    def get_config(self) -> dict[str, Any]:
        """Return the layer's arguments as plain JSON values."""
        geometry = json.loads(json.dumps(dataclasses.asdict(self.geometry)))
        return {**super().get_config(), "geometry": geometry, "data_format": self.data_format}

    def _spatial(self, input_shape: tuple[int | None, ...]) -> tuple[int, ...]:
        """Return the input's spatial size, after checking the shape against the geometry."""
        first = self.data_format == "channels_first"
        channels = input_shape[1] if first else input_shape[-1]
        spatial = input_shape[2:] if first else input_shape[1:-1]
        known = tuple(n for n in spatial if n is not None)
        axes, wanted = self.geometry.spatial_ndim, self.geometry.in_channels
        if not len(known) == len(spatial) == axes or channels != wanted:
            raise ShapeError(
                "the input does not fit the geometry",
                where=f"layer {self.name}",
                expected=f"{axes} known spatial axes and {wanted} channels, {self.data_format}",
                got=tuple(input_shape),
                remedy="give keras.Input its full size, or set data_format",
            )
        return known
