"""inspect for PyTorch: every CONV layer of a model, every call of it, and what convolves besides.

With an input the model is run once: hooks note what each module receives and returns, and a mode
that sees every function of torch notes the convolutions among them.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from convfc.errors import ConvfcError, GeometryError, ShapeError, UnsupportedLayer
from convfc.frameworks.torch.functional import (
    CONVOLUTIONS,
    FUNCTION_REMEDY,
    functional_convolutions,
)
from convfc.frameworks.torch.layers import PatchConv, is_conv_layer
from convfc.frameworks.torch.read import (
    geometry_from,
    geometry_of,
    is_conv,
    obstacle,
    own_class,
)
from convfc.frameworks.torch.weights import is_weight_form
from convfc.geometry import ConvGeometry
from convfc.inspection import Inspection, LayerRow

__all__ = ["inspect"]

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSE = (*_CONV[:5], "output_padding", "groups", "dilation")
_GENERAL = (*_CONV[:6], "transposed", "output_padding", "groups")
_ARGUMENTS = {
    **{f"conv{n}d": _CONV for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": _TRANSPOSE for n in (1, 2, 3)},
    "convolution": _GENERAL,
    "_convolution": _GENERAL,
}
"""How the functions of torch name their arguments; of the others only the name is told."""


class _Call(NamedTuple):
    """One convolution as it happened: what a row says about a call."""

    kind: str
    geometry: ConvGeometry | None
    facts: dict[str, Any]
    tensors: tuple[Tensor, ...] = ()


def inspect(model: nn.Module, x: Any = None) -> Inspection:
    """List every CONV layer of a model and the FC layer that it equals.

    Parameters
    ----------
    model : nn.Module
        Nothing in it changes: it is run in evaluation mode, without gradients, on copies of its
        buffers, and the random number generators go on where they were.
    x : Tensor, array, tuple or dict, optional
        An input; a tuple holds several arguments, a dict keyword arguments. NumPy arrays of real
        numbers become tensors of the model's dtype, on its device. Without an input, what depends
        on its size stays empty.

    Returns
    -------
    Inspection

    Raises
    ------
    UnsupportedLayer
        If the model is to be run and has lazy parts without weights: running would make them.
    ShapeError
        If the model does not run on this input.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(1, 128, 4, stride=2), nn.ReLU())
    >>> print(inspect(model, torch.zeros(1000, 1, 28, 28)))
    layer  type    geometry  in     out    M (b=1000)  K       param.  mult.  M bytes   unrolled
    0      Conv2d  4×4 s2    28×28  13×13  169×16      16×128  2.18 k  346 M  10.3 MiB  21.6k×784
    <BLANKLINE>
    Sequential: 1 CONV layer, convertible; 2.18 k of 2.18 k parameters, 346 M multiplications, ...
    """
    watch = _Watch()
    with _unchanged(model):
        if x is not None:
            _check_can_run(model)
            with watch.over(model):
                _run(model, x)
        rows, parameters = _rows(model, watch, was_run=x is not None)
    return Inspection(
        model=own_class(model).__name__,
        rows=tuple(rows),
        parameters=sum(parameters.values()),
        model_parameters=sum(_sizes(model).values()),
        was_run=x is not None,
    )


class _Watch(TorchFunctionMode):
    """Notes the calls of CONV layers and of functions that convolve, by the module that ran.

    ``calls`` are those of a CONV layer, ``functional`` those in any other module's forward.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[int, list[_Call]] = {}
        self.functional: dict[int, list[_Call]] = {}
        self._running: list[tuple[nn.Module, tuple[Any, ...], list[_Call]]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run a function of torch, and note it if it convolves."""
        result = func(*args, **(kwargs or {}))
        name = CONVOLUTIONS.get(func)
        if name is not None and self._running:
            self._running[-1][2].append(_function_call(name, args, kwargs or {}, result))
        return result

    @contextlib.contextmanager
    def over(self, model: nn.Module) -> Iterator[None]:
        """Watch a model for the length of a block."""
        with contextlib.ExitStack() as stack:
            for module in _watched(model):
                for hook in (
                    module.register_forward_pre_hook(self._enters, with_kwargs=True),
                    module.register_forward_hook(self._leaves, prepend=True, always_call=True),
                ):
                    stack.callback(hook.remove)
            stack.enter_context(self)
            yield

    def _enters(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._running.append((module, (*args, *kwargs.values()), []))

    def _leaves(self, module: nn.Module, args: Any, output: Any) -> None:
        """Note the call; of a CONV layer with a forward of its own, what that has convolved."""
        _, given, convolved = self._running.pop()
        if not is_conv_layer(module):
            self.functional.setdefault(id(module), []).extend(convolved)
        elif isinstance(output, Tensor):  # not an exception
            call = _layer_call(module, given, output)
            known = [call] if call.geometry is not None or not convolved else convolved
            self.calls.setdefault(id(module), []).extend(known)


def _rows(
    model: nn.Module, watch: _Watch, *, was_run: bool
) -> tuple[list[LayerRow], dict[int, int]]:
    """Return the rows in the model's order, and the sizes of their parameters by id."""
    findings = {finding.place: finding for finding in functional_convolutions(model)}
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    own = _sizes(model)
    rows: list[LayerRow] = []
    parameters: dict[int, int] = {}
    for place, module in model.named_modules():
        found, places = findings.get(place), tuple(names[id(module)])
        calls = watch.calls.get(id(module)) or watch.functional.get(id(module), [])
        counted = _sizes(module)
        if is_conv_layer(module):
            row = _layer_row(module, places)
        elif found is not None and found.kind != "function":
            row = LayerRow(places, found.kind, "other", parameters=sum(counted.values()))
        elif found is not None or calls:
            row = LayerRow(places, "function", "functional")
            counted = {id(t): own[id(t)] for c in calls for t in c.tensors if id(t) in own}
        else:
            continue
        if found is not None:
            row = replace(row, reason=found.what, remedy=found.remedy)
        elif row.form == "functional":
            used = " and ".join(dict.fromkeys(call.kind for call in calls))
            row = replace(row, reason=f"its forward calls {used}", remedy=FUNCTION_REMEDY)
        parameters |= counted
        rows += [_row_of_call(row, *numbered) for numbered in enumerate(calls)] or [row]
    return rows, parameters


def _layer_row(module: nn.Module, places: tuple[str, ...]) -> LayerRow:
    """Return what is known of a layer that is not called."""
    blocked = obstacle(module) if is_conv(module) and not is_weight_form(module) else None
    form = "native"
    if isinstance(module, PatchConv):
        form = "patch"
    elif is_weight_form(module):
        form = "weight"
    sizes, lazy = _sizes(module), any(map(is_lazy, module.parameters()))
    return LayerRow(
        places,
        module.native.__name__ if isinstance(module, PatchConv) else own_class(module).__name__,
        form,
        None if lazy else _geometry(partial(geometry_of, module, ())),
        None if lazy else sum(sizes.values()),
        "" if blocked is None else f"{type(module).__name__}: {blocked.reason}",
        "" if blocked is None else blocked.remedy,
    )


def _row_of_call(row: LayerRow, number: int, call: _Call) -> LayerRow:
    """Return the row with what one call adds; of a function the call is all that is known."""
    row = replace(row, call=number, geometry=call.geometry, **call.facts)
    if row.form != "functional":
        return row
    return replace(row, kind=call.kind, parameters=sum(t.numel() for t in call.tensors))


def _layer_call(module: nn.Module, given: Sequence[Any], output: Tensor) -> _Call:
    """Return a call of a CONV layer; without geometry if it did not do what its attributes say."""
    x = next((value for value in given if isinstance(value, Tensor)), output)
    ndim = len(module.kernel_size)  # type: ignore[arg-type]
    batch, size, new_size = _batch(x, ndim), tuple(x.shape[-ndim:]), tuple(output.shape[-ndim:])
    geometry = _geometry(partial(geometry_of, module, size), size, new_size)
    channels = (x.shape[-ndim - 1], output.shape[-ndim - 1])
    if geometry is not None and channels != (geometry.in_channels, geometry.out_channels):
        geometry = None
    return _Call(type(module).__name__, geometry, _facts(batch, size, new_size, x))


def _function_call(name: str, args: Sequence[Any], kwargs: dict[str, Any], y: Tensor) -> _Call:
    """Return a call of a function; without geometry if it is not one of the well-known ones."""
    kind = f"F.{name}" if hasattr(nn.functional, name) else f"torch.{name}"
    given = dict(zip(_ARGUMENTS.get(name, ()), args, strict=False)) | kwargs
    if name not in _ARGUMENTS:
        return _Call(kind, None, {})
    x, weight, bias = given["input"], given["weight"], given.get("bias")
    first, second, *kernel = weight.shape
    ndim, groups = len(kernel), given.get("groups", 1)
    transposed = given.get("transposed", "transpose" in name)
    channels, filters = first, second * groups
    if not transposed:
        channels, filters = filters, channels
    stride, padding, dilation = (
        tuple(value) if isinstance(value, (list, tuple)) else value
        for value in (given.get("stride", 1), given.get("padding", 0), given.get("dilation", 1))
    )

    def geometry(extra: Sequence[int] | None) -> ConvGeometry:
        sizes = (channels, filters, tuple(kernel))
        extra = tuple(extra or ()) if transposed else ()
        return geometry_from(
            sizes, stride, padding, dilation, groups, "zeros", transposed, extra or 0
        )

    size, new_size = tuple(x.shape[-ndim:]), tuple(y.shape[-ndim:])
    facts = _facts(_batch(x, ndim), size, new_size, x)
    tensors = tuple(t for t in (weight, bias) if t is not None)
    return _Call(kind, _geometry(geometry, size, new_size), facts, tensors)


def _facts(
    batch: int, input_size: tuple[int, ...], output_size: tuple[int, ...], x: Tensor
) -> dict[str, Any]:
    """Return the fields of a row that a call fills."""
    return {
        "batch": batch,
        "input_size": input_size,
        "output_size": output_size,
        "dtype": str(x.dtype).removeprefix("torch."),
        "itemsize": x.itemsize,
    }


def _batch(x: Tensor, ndim: int) -> int:
    return x.shape[0] if x.dim() == ndim + 2 else 1


def _geometry(
    given_extra: Callable[[Sequence[int] | None], ConvGeometry],
    input_size: tuple[int, ...] = (),
    output_size: tuple[int, ...] | None = None,
) -> ConvGeometry | None:
    """Return the geometry that makes this output size; None if there is none.

    ``given_extra`` returns it for an output padding: a transposed layer may be asked for another
    output size in every call.
    """
    try:
        geometry = given_extra(None)
        if output_size is None:
            return geometry
        if geometry.transposed:
            least = given_extra((0,) * len(input_size)).output_size(input_size)
            geometry = given_extra([n - m for n, m in zip(output_size, least, strict=True)])
        return geometry if geometry.output_size(input_size) == output_size else None
    except GeometryError:
        return None


def _watched(model: nn.Module) -> Iterator[nn.Module]:
    """Yield every module that can be hooked, but what is inside a layer: that is its own affair."""
    layers = filter(is_conv_layer, model.modules())
    inside = {id(part) for layer in layers for part in layer.modules() if part is not layer}
    for module in model.modules():
        if id(module) not in inside and not isinstance(module, torch.jit.ScriptModule):
            yield module


def _sizes(module: nn.Module) -> dict[int, int]:
    """Return how many numbers each parameter has, by its id."""
    return {id(p): p.numel() for p in module.parameters() if not is_lazy(p)}


def _check_can_run(model: nn.Module) -> None:
    for name, module in model.named_modules():
        tensors = (*module._parameters.values(), *module._buffers.values())
        if any(map(is_lazy, tensors)):
            raise UnsupportedLayer(
                "it is lazy, and running the model would give it weights",
                where=name or "the model itself",
                remedy="run the model yourself once, or inspect it without an input",
            )


def _run(model: nn.Module, x: Any) -> None:
    """Call the model on an input; arrays become tensors as the model has them."""
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))

    def tensor(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        made = torch.as_tensor(value, device=like.device)
        return made.to(like.dtype) if made.is_floating_point() else made

    kwargs = {name: tensor(value) for name, value in x.items()} if isinstance(x, dict) else {}
    args = () if isinstance(x, dict) else tuple(map(tensor, x if isinstance(x, tuple) else (x,)))
    try:
        model(*args, **kwargs)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, ConvfcError):
            raise
        given = {**dict(enumerate(args)), **kwargs}.values()
        shapes = (tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__ for v in given)
        raise ShapeError(
            f"the model does not run on this input: {error}",
            where="x",
            got=", ".join(map(str, shapes)),
            remedy="give an input that the model takes: a tuple for several arguments, a dict for "
            "keyword arguments",
        ) from error


@contextlib.contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Let a model be run or asked in a block, in evaluation mode, and leave it as it was.

    Its buffers are copies meanwhile; what forward keeps elsewhere is not known here.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(module._buffers, dict(module._buffers)) for module in model.modules()]
    devices = {t.device for t in (*model.parameters(), *model.buffers())}
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
            # A compiled forward calls no functions of torch that a mode could see.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.random.fork_rng(devices=()))
        for device in devices:
            if device.type not in ("cpu", "meta"):
                fork = torch.random.fork_rng([device], device_type=device.type)
                stack.enter_context(fork)
        stack.callback(random.setstate, random.getstate())
        copies: dict[int, Tensor] = {}
        for registry, kept in buffers:
            for name, tensor in kept.items():
                stack.callback(registry.__setitem__, name, tensor)
                if tensor is not None and not is_lazy(tensor):
                    copies.setdefault(id(tensor), tensor.clone())
                    registry[name] = copies[id(tensor)]
        for module, mode in modes:
            stack.callback(setattr, module, "training", mode)
            module.training = False
        yield
