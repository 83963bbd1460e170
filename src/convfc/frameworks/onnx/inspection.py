"""inspect for ONNX: every CONV layer of a model, and the FC layer that it equals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import onnx_ir as ir

from convfc.comparing import dtype_name
from convfc.frameworks.onnx import forms, read
from convfc.frameworks.onnx.build import Sizes
from convfc.frameworks.onnx.certify import as_inputs, watched
from convfc.inspection import Inspection, LayerRow


def inspect(model: ir.Model, x: Any, nodes: Mapping[str, ir.Node]) -> Inspection:
    """List every CONV layer of a model; with an input, it is run once.

    Without one, sizes are known where the file says them.
    """
    given = None if x is None else as_inputs(model, x)
    found = {} if given is None else watched(model, nodes.values(), given)[0]
    rows: list[LayerRow] = []
    weights: set[tuple[ir.Value, int]] = set()
    for name, node in nodes.items():
        refusal = forms.obstacle(node, Sizes()) if read.form_of(node) == "native" else None
        parts = None if refusal else forms.parts_of(node)
        row = LayerRow((name,), node.op_type, read.form_of(node) or "other")
        if refusal is not None:
            row = replace(row, reason=refusal.reason, remedy=refusal.remedy)
        if parts is not None:
            layer = read.read(parts.conv, Sizes())
            own = {
                value: tensor.size
                for value in (parts.weight, parts.bias)
                if value is not None and (tensor := read.constant(value)) is not None
            }
            weights |= own.items()
            row = replace(
                row, kind=parts.conv.op_type, geometry=layer.geometry, parameters=sum(own.values())
            )
            received = found.get(parts.x.name or "")
            if given is not None and received is not None:
                row = _of_call(row, layer, parts.as_image(received))
        rows.append(row)
    held = (value.const_value for value in model.graph.initializers.values())
    return Inspection(
        model=model.graph.name or "model",
        rows=tuple(rows),
        parameters=sum(count for _, count in weights),
        model_parameters=sum(tensor.size for tensor in held if tensor is not None),
        was_run=x is not None,
    )


def _of_call(row: LayerRow, layer: read.ConvNode, x: Any) -> LayerRow:
    """Return the row with what one call adds."""
    size = x.shape[2:]
    geometry = layer.for_size(size)
    return replace(
        row,
        geometry=geometry,
        call=0,
        batch=len(x),
        input_size=size,
        output_size=geometry.output_size(size),
        dtype=dtype_name(x.dtype),
        itemsize=x.dtype.itemsize,
    )
