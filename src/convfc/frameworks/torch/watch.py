"""What a model convolves when it is run once on an input, noted without disturbing anything.

Hooks note what each module receives and returns, and a mode that sees every function of torch notes
the convolutions among them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from convfc.comparing import dtype_name
from convfc.errors import GeometryError
from convfc.frameworks.torch.forms.calls import CONVOLUTIONS, convolution_of
from convfc.frameworks.torch.forms.form import form_of, unrolled_of
from convfc.frameworks.torch.read import geometry_of
from convfc.frameworks.torch.running import check_can_run, run_on
from convfc.geometry import ConvGeometry


class Call(NamedTuple):
    """One convolution as it happened: its class or function, geometry, and what a row says of it.

    ``tensors`` are the parameters of a function, ``arguments`` says how many a layer was given.
    """

    kind: str
    geometry: ConvGeometry | None
    facts: dict[str, Any]
    tensors: tuple[Tensor, ...] = ()
    arguments: int = 1


class Watch(TorchFunctionMode):
    """Notes the calls of CONV layers and of functions that convolve, by the module that ran.

    ``calls`` are those of a CONV layer, ``functional`` those in any other module's forward.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[int, list[Call]] = {}
        self.functional: dict[int, list[Call]] = {}
        self._running: list[tuple[nn.Module, tuple[Any, ...], list[Call]]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run a function of torch, and note it if it convolves."""
        result = func(*args, **(kwargs or {}))
        if func in CONVOLUTIONS and self._running:
            self._running[-1][2].append(_function_call(func, args, kwargs or {}, result))
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
        if form_of(module) is None:
            self.functional.setdefault(id(module), []).extend(convolved)
        elif isinstance(output, Tensor):  # not an exception
            call = _layer_call(module, given, output)
            known = [call] if call.geometry is not None or not convolved else convolved
            self.calls.setdefault(id(module), []).extend(known)


def _layer_call(module: nn.Module, given: Sequence[Any], output: Tensor) -> Call:
    """Return a call of a CONV layer; without geometry if it did not do what its attributes say."""
    x = next((value for value in given if isinstance(value, Tensor)), output)
    record = unrolled_of(module)
    if not hasattr(module, "kernel_size") and record is None:
        return Call(type(module).__name__, None, _facts(x, output, x.dim() - 2))
    ndim = len(module.kernel_size) if record is None else len(record.input_size)  # type: ignore[arg-type]
    facts = _facts(x, output, ndim)
    size = facts["input_size"]
    if record is None:
        geometry = geometry_or_none(partial(geometry_of, module, size), size, facts["output_size"])
    else:
        geometry = record.geometry
    channels = (x.shape[-ndim - 1], output.shape[-ndim - 1])
    if geometry is not None and channels != (geometry.in_channels, geometry.out_channels):
        geometry = None
    return Call(type(module).__name__, geometry, facts, arguments=len(given))


def _function_call(function: Any, args: Sequence[Any], kwargs: dict[str, Any], y: Tensor) -> Call:
    """Return a call of a function; without geometry if it is not one of the well-known ones."""
    name = CONVOLUTIONS[function]
    kind = f"F.{name}" if hasattr(nn.functional, name) else f"torch.{name}"
    call = convolution_of(function, args, kwargs)
    if call is None:
        return Call(kind, None, {})
    facts = _facts(call.x, y, call.spatial_ndim)
    tensors = tuple(t for t in (call.weight, call.bias) if t is not None)
    found = geometry_or_none(call.geometry, facts["input_size"], facts["output_size"])
    return Call(kind, found, facts, tensors)


def _facts(x: Tensor, y: Tensor, ndim: int) -> dict[str, Any]:
    """Return the fields of a row that a call fills."""
    return {
        "batch": x.shape[0] if x.dim() == ndim + 2 else 1,
        "input_size": tuple(x.shape[-ndim:]),
        "output_size": tuple(y.shape[-ndim:]),
        "dtype": dtype_name(x.dtype),
        "itemsize": x.itemsize,
    }


def geometry_or_none(
    given_extra: Callable[[Sequence[int] | None], ConvGeometry],
    input_size: tuple[int, ...] = (),
    output_size: tuple[int, ...] | None = None,
) -> ConvGeometry | None:
    """Return the geometry that makes this output size; None if there is none.

    ``given_extra`` returns it for an output padding: each call of a transposed layer may ask for
    another output size.
    """
    try:
        geometry = given_extra(None)
        if output_size is None:
            return geometry
        if geometry.transposed:
            # Not `output_size` of no output padding: without it there may be no output at all.
            axes = zip(
                input_size,
                output_size,
                geometry.stride,
                geometry.padding,
                geometry.effective_kernel_size,
                strict=True,
            )
            geometry = given_extra(
                [new - ((n - 1) * s - sum(p) + extent) for n, new, s, p, extent in axes]
            )
        return geometry if geometry.output_size(input_size) == output_size else None
    except GeometryError:
        return None


def _watched(model: nn.Module) -> Iterator[nn.Module]:
    """Yield every module that can be hooked, but not those inside a layer."""
    layers = (part for part in model.modules() if form_of(part))
    inside = {id(part) for layer in layers for part in layer.modules() if part is not layer}
    for module in model.modules():
        if id(module) not in inside and not isinstance(module, torch.jit.ScriptModule):
            yield module


def watched_run(model: nn.Module, x: Any, where: str = "x") -> Watch:
    """Run a model once on an input and return what it convolved; only inside `unchanged`.

    ``where`` is the argument that gave the input, for messages.
    """
    check_can_run(model, where)
    watch = Watch()
    with watch.over(model):
        run_on(model, x, where)
    return watch
