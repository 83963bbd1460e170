"""inspect for Keras: every CONV layer of a model, and every call of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from convfc.errors import ConvfcError, Refusal
from convfc.frameworks.keras import forms, models, read
from convfc.inspection import Inspection, LayerRow


def inspect(
    model: Any, x: Any, places: Mapping[str, Any], unreachable: Mapping[str, Refusal]
) -> Inspection:
    """List every CONV layer of a model and the FC layer that it equals; see `convfc.inspect`.

    The model is called once, in inference mode. Without an input a layer's geometry is known where
    its padding does not depend on the size, or the size is fixed.
    """
    names: dict[int, list[str]] = {}
    layers: dict[int, Any] = {}
    for place, part in places.items():
        if forms.form_of(part) or place in unreachable:
            names.setdefault(id(part), []).append(place)
            layers[id(part)] = part
    calls: dict[int, list[Any]] = {}
    if x is not None:
        convs = [one for one in layers.values() if forms.form_of(one)]
        for layer, given in models.run_watched(model, convs, x)[1]:
            calls.setdefault(id(layer), []).append(given)
    rows: list[LayerRow] = []
    parameters: dict[int, int] = {}
    for key, layer in layers.items():
        parameters |= {id(one): math.prod(one.shape) for one in layer.weights}
        row = _row(layer, tuple(names[key]), unreachable)
        rows += [
            _of_call(row, layer, number, given) for number, given in enumerate(calls.get(key, []))
        ] or [row]
    return Inspection(
        model=type(model).__name__,
        rows=tuple(rows),
        parameters=sum(parameters.values()),
        model_parameters=model.count_params() if model.built else 0,
        was_run=x is not None,
    )


def _row(layer: Any, places: tuple[str, ...], unreachable: Mapping[str, Refusal]) -> LayerRow:
    """Return what is known of a layer that is not called."""
    form = forms.form_of(layer)
    blocked = unreachable.get(places[0])
    if form == "native":
        blocked = forms.obstacle(layer)
    size = _known_size(layer) if layer.built else None
    return LayerRow(
        places,
        type(layer).__name__,
        form or "other",
        None if size is None or form is None else _geometry(layer, size),
        sum(math.prod(one.shape) for one in layer.weights) if layer.built else None,
        "" if blocked is None else blocked.reason,
        "" if blocked is None else blocked.remedy,
    )


def _of_call(row: LayerRow, layer: Any, number: int, x: Any) -> LayerRow:
    """Return the row with what one call adds."""
    shape = tuple(x.shape)
    size = read.spatial_size(layer, shape)
    geometry, dtype = _geometry(layer, size), layer.compute_dtype
    return replace(
        row,
        geometry=geometry,
        call=number,
        batch=shape[0],
        input_size=size,
        output_size=None if geometry is None else geometry.output_size(size),
        dtype=dtype,
        itemsize=2 if dtype == "bfloat16" else np.dtype(dtype).itemsize,
    )


def _known_size(layer: Any) -> tuple[int, ...] | None:
    """Return the size that a layer was built for; any, if its padding is none; None if unknown."""
    shape = (layer.get_build_config() or {}).get("input_shape")
    if shape is None:
        return None
    size = read.spatial_size(layer, shape)
    if None not in size:
        return size
    return tuple(n or 64 for n in size) if layer.padding != "same" else None


def _geometry(layer: Any, size: tuple[int, ...]) -> Any:
    kernel = layer.depthwise_kernel if isinstance(layer, read.SEPARABLE) else layer.kernel
    try:
        return read.geometry_of(layer, kernel.shape, size)
    except ConvfcError:
        return None
