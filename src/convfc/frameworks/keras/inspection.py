"""inspect for Keras: every CONV layer of a model, and every call of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from convfc.errors import ConvfcError, Refusal
from convfc.frameworks.keras import forms, models, read, unrolled
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
        if unrolled.form_of(part) or place in unreachable:
            names.setdefault(id(part), []).append(place)
            layers[id(part)] = part
    calls: dict[int, list[Any]] = {}
    if x is not None:
        convs = [one for one in layers.values() if unrolled.form_of(one)]
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
    form, conv, record = unrolled.form_of(layer), _conv(layer), unrolled.unrolled_of(layer)
    blocked = unreachable.get(places[0])
    if form == "native":
        blocked = forms.obstacle(layer)
    size = _known_size(conv) if conv.built else None
    row = LayerRow(
        places,
        type(conv).__name__,
        form or "other",
        None if size is None or form is None else _geometry(conv, size),
        sum(math.prod(one.shape) for one in layer.weights) if layer.built else None,
        "" if blocked is None else blocked.reason,
        "" if blocked is None else blocked.remedy,
    )
    return row if record is None else _sized(row, conv, record.steps[0].input_size)


def _conv(layer: Any) -> Any:
    """Return a layer; of one in unrolled form, the CONV layer that it was."""
    record = unrolled.unrolled_of(layer)
    return layer if record is None else record.layer


def _sized(row: LayerRow, conv: Any, size: tuple[int, ...]) -> LayerRow:
    """Return the row with what follows from an input's size."""
    geometry = _geometry(conv, size)
    output = None if geometry is None else geometry.output_size(size)
    return replace(row, geometry=geometry, input_size=size, output_size=output)


def _of_call(row: LayerRow, layer: Any, number: int, x: Any) -> LayerRow:
    """Return the row with what one call adds."""
    shape, dtype = tuple(x.shape), layer.compute_dtype
    conv = _conv(layer)
    return replace(
        _sized(row, conv, read.spatial_size(conv, shape)),
        call=number,
        batch=shape[0],
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
