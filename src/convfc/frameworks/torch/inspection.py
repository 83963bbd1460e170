"""inspect for PyTorch: every CONV layer of a model, every call of it, and what convolves besides.

With an input the model is run once: hooks note what each module receives and returns, and a mode
that sees every function of torch notes the convolutions among them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from convfc.frameworks.torch.forms.form import form_of, unrolled_of
from convfc.frameworks.torch.forms.patch import PatchConv
from convfc.frameworks.torch.reach import out_of_reach
from convfc.frameworks.torch.read import geometry_of, obstacle, own_class
from convfc.frameworks.torch.running import unchanged
from convfc.frameworks.torch.watch import Call, Watch, geometry_or_none, watched_run
from convfc.inspection import Inspection, LayerRow

_FUNCTION_REMEDY = "call an nn.Conv module instead, whose weight is its parameter"


def inspect(model: nn.Module, x: Any = None) -> Inspection:
    """List every CONV layer of a model and the FC layer that it equals; see `convfc.inspect`.

    The model is run in evaluation mode, without gradients, on copies of its buffers. NumPy arrays
    of real numbers become tensors of the model's dtype, on its device.
    """
    with unchanged(model):
        watch = Watch() if x is None else watched_run(model, x)
        rows, parameters = _rows(model, watch, was_run=x is not None)
    return Inspection(
        model=own_class(model).__name__,
        rows=tuple(rows),
        parameters=sum(parameters.values()),
        model_parameters=sum(_sizes(model).values()),
        was_run=x is not None,
    )


def _rows(
    model: nn.Module, watch: Watch, *, was_run: bool
) -> tuple[list[LayerRow], dict[int, int]]:
    """Return the rows in the model's order, and the sizes of their parameters by id."""
    findings = {found.where: (kind, found) for kind, found in out_of_reach(model)}
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    own = _sizes(model)
    _give_to_layers(model, watch)
    rows: list[LayerRow] = []
    parameters: dict[int, int] = {}
    for place, module in model.named_modules():
        (kind, found), places = findings.get(place, ("", None)), tuple(names[id(module)])
        calls = watch.calls.get(id(module)) or watch.functional.get(id(module), [])
        counted = _sizes(module)
        if form_of(module):
            row = _layer_row(module, places)
        elif found is not None:
            row = LayerRow(places, kind, "other", parameters=sum(counted.values()))
        elif calls:
            row = LayerRow(places, "function", "functional")
            counted = {id(t): own[id(t)] for c in calls for t in c.tensors if id(t) in own}
        else:
            continue
        if found is not None:
            row = replace(row, reason=found.reason, remedy=found.remedy)
        elif row.form == "functional":
            used = " and ".join(dict.fromkeys(call.kind for call in calls))
            row = replace(row, reason=f"its forward calls {used}", remedy=_FUNCTION_REMEDY)
        parameters |= counted
        rows += [_row_of_call(row, *numbered) for numbered in enumerate(calls)] or [row]
    return rows, parameters


def _give_to_layers(model: nn.Module, watch: Watch) -> None:
    """Count a convolution with a layer's weight as a call of that layer, wherever it was made."""
    holders = {
        id(part._parameters.get("weight")): part for part in model.modules() if form_of(part)
    }
    for calls in watch.functional.values():
        for call in [call for call in calls if call.tensors]:
            weight = call.tensors[0]
            role = getattr(weight, "_role", None)
            layer = holders.get(id(weight)) if role is None else role.layer
            if layer is not None:
                calls.remove(call)
                watch.calls.setdefault(id(layer), []).append(call)


def _layer_row(module: nn.Module, places: tuple[str, ...]) -> LayerRow:
    """Return what is known of a layer that is not called."""
    record = unrolled_of(module)
    if record is not None:
        size, sizes = record.input_size, _sizes(module)
        row = LayerRow(places, record.native.__name__, "unrolled", record.geometry)
        output = record.geometry.output_size(size)
        return replace(row, parameters=sum(sizes.values()), input_size=size, output_size=output)
    form = form_of(module)
    blocked = obstacle(module, patch=True) if form == "native" else None
    sizes, lazy = _sizes(module), any(map(is_lazy, module.parameters()))
    hidden = not hasattr(module, "kernel_size")  # of a registered class, only its calls tell
    return LayerRow(
        places,
        module.native.__name__ if isinstance(module, PatchConv) else own_class(module).__name__,
        form or "native",
        None if lazy or hidden else geometry_or_none(partial(geometry_of, module, ())),
        None if lazy else sum(sizes.values()),
        "" if blocked is None else f"{type(module).__name__}: {blocked.reason}",
        "" if blocked is None else blocked.remedy,
    )


def _row_of_call(row: LayerRow, number: int, call: Call) -> LayerRow:
    """Return the row with what one call adds; of a function the call is all that is known."""
    row = replace(row, call=number, geometry=call.geometry, **call.facts)
    if row.form != "functional":
        return row
    return replace(row, kind=call.kind, parameters=sum(t.numel() for t in call.tensors))


def _sizes(module: nn.Module) -> dict[int, int]:
    """Return how many numbers each parameter has, by its id."""
    return {id(p): p.numel() for p in module.parameters() if not is_lazy(p)}
