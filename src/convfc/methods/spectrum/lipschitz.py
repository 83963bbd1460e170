"""The true norm of a CONV layer as a constraint, and a Lipschitz bound for a whole network."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from convfc.errors import Refusal, UnsupportedLayer
from convfc.extras import needing

with needing():
    import torch
    from torch import Tensor, nn
    from torch.nn.utils import parametrize

from convfc.frameworks.torch.forms.calls import by_class
from convfc.frameworks.torch.forms.form import form_of
from convfc.frameworks.torch.read import geometry_of, native_class, obstacle, own_class
from convfc.frameworks.torch.running import deep_copy, evaluating
from convfc.methods.spectrum.singular import singular_values
from convfc.sizes import input_sizes, integer, per_axis
from convfc.tables import Column, TextTable

_READ = (
    *("stride", "padding", "dilation", "groups", "padding_mode", "transposed", "kernel_size"),
    *("output_padding", "_reversed_padding_repeated_twice"),
)
_MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_AVG_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_NO_CONV = Refusal("it is not a CONV layer", "")
_AT_MOST_ONE = (
    *(nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Tanh, nn.Sigmoid, nn.Softsign, nn.LogSigmoid),
    *(nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
)
"""Modules that never stretch a difference of two inputs, in evaluation mode."""


def spectral_norm(layer: nn.Module, input_size: Sequence[int], *, steps: int = 1) -> nn.Module:
    """Divide the weight of a CONV layer by the layer's own norm before every call, in place.

    As ``torch.nn.utils.parametrizations.spectral_norm``, which divides by the norm of the reshaped
    kernel. That is not the norm of the layer, which may stretch an input by more than 1. Here the
    norm is that of the linear map on inputs of this size, with its stride, padding of every mode,
    dilation, groups, transposed or not. The bias stays.

    Parameters
    ----------
    layer : torch.nn.Module
        One of PyTorch's CONV layers, with a plain weight.
    input_size : sequence of int
        Spatial size of its inputs, for which the norm is 1.
    steps : int
        Steps of power iteration per call in training mode, each with the layer and its adjoint.
        They go on where the last call ended.

    Returns
    -------
    torch.nn.Module
        The same layer. `torch.nn.utils.parametrize.remove_parametrizations` makes its weight
        permanent.

    Raises
    ------
    UnsupportedLayer
        If it is not a CONV layer with a plain weight.

    Examples
    --------
    >>> layer = spectral_norm(nn.Conv2d(3, 8, 3, padding=1), (6, 6), steps=500)
    >>> round(float(singular_values(layer.eval(), (6, 6), k=1)), 2)
    1.0
    """
    blocked = obstacle(layer) if form_of(layer) == "native" else _NO_CONV
    if blocked is not None:
        raise UnsupportedLayer(
            blocked.reason,
            where="layer",
            expected="a CONV layer of torch.nn with a plain weight",
            got=type(layer).__name__,
            remedy="normalise the layer before convfc.to_fc, which keeps the parametrization",
        )
    steps = integer("steps", steps, least=1)
    size = input_sizes(input_size, len(layer.kernel_size))  # type: ignore[arg-type]
    parametrize.register_parametrization(layer, "weight", OperatorNorm(layer, size, steps))
    return layer


class OperatorNorm(nn.Module):
    """The parametrization of `spectral_norm`.

    ``direction`` is the right singular vector that was found so far, ``(1, c, *input_size)``.
    """

    direction: Tensor

    def __init__(self, layer: nn.Module, size: tuple[int, ...], steps: int) -> None:
        super().__init__()
        self.native: Any = native_class(layer)
        self.steps = steps
        self.layer = SimpleNamespace(**{name: vars(layer).get(name) for name in _READ})
        weight: Tensor = layer.weight.detach()  # type: ignore[operator]
        shape = (1, geometry_of(layer, size).in_channels, *size)
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        self.register_buffer("direction", _unit(drawn.to(weight)))
        self._turn(weight, max(steps, 15))  # as many as PyTorch's own begins with

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with which the layer has norm 1, as far as the iteration has come."""
        if self.training:
            self._turn(weight.detach(), self.steps)
        # A copy: a step in a later call must not change what this backward pass needs.
        y = self._map(weight, self.direction.clone())
        norm: Tensor = (_unit(y.detach()) * y).sum()
        return weight / norm.clamp(min=torch.finfo(norm.dtype).tiny)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return the weight to begin with, which is the layer's."""
        return weight

    def _map(self, weight: Tensor, x: Tensor) -> Tensor:
        """Return the layer without its bias on an input."""
        return by_class(self.native, self.layer, x, weight, None)

    def _turn(self, weight: Tensor, steps: int) -> None:
        """Take steps of power iteration; the adjoint is the gradient of the layer."""
        for _ in range(steps):
            with torch.enable_grad():
                x = self.direction.detach().clone().requires_grad_()
                y = self._map(weight, x)
                (back,) = torch.autograd.grad(y, x, _unit(y.detach()))
            self.direction.copy_(_unit(back))


def _unit(t: Tensor) -> Tensor:
    size: Tensor = t.norm()
    return t / size.clamp(min=torch.finfo(t.dtype).tiny)


@dataclass(frozen=True)
class LipschitzBound:
    """How far a network stretches the difference of two inputs at most; `lipschitz_bound` makes it.

    Parameters
    ----------
    parts : tuple of (str, str, float, str)
        Of every part its name, its class, its own bound, and how that is known.

    Examples
    --------
    >>> print(LipschitzBound((("0", "Linear", 2.0, "the norm"), ("1", "Linear", 0.5, "the norm"))))
    part  class   bound  how it is known
    0     Linear  2      the norm
    1     Linear  0.5    the norm
    <BLANKLINE>
    The whole: at most 1.
    """

    parts: tuple[tuple[str, str, float, str], ...]

    @property
    def bound(self) -> float:
        """The product of all: ``‖f(x) - f(y)‖ <= bound * ‖x - y‖`` in the Euclidean norm."""
        return math.prod(part[2] for part in self.parts)

    def __float__(self) -> float:
        return self.bound

    def __str__(self) -> str:
        rows = [(name, kind, f"{bound:.4g}", how) for name, kind, bound, how in self.parts]
        titles = ("part", "class", "bound", "how it is known")
        columns = tuple(
            Column(title, cells)
            for title, cells in zip(titles, zip(*rows, strict=True), strict=True)
        )
        return TextTable(columns, (f"The whole: at most {self.bound:.4g}.",)).text(100)


def lipschitz_bound(model: nn.Module, x: Tensor) -> LipschitzBound:
    """Return a bound for how far a sequential network stretches the difference of two inputs.

    The product of the norms of its layers, each CONV layer's with its own stride and padding at the
    size that it sees (`singular_values`), in evaluation mode. A bound, and seldom the best one.

    Parameters
    ----------
    model : torch.nn.Module
        A layer, or an ``nn.Sequential`` of CONV and FC layers, BatchNorms, pooling and functions
        that stretch nothing, such as ReLU; other ``nn.Sequential`` inside.
    x : torch.Tensor
        An input, for its size.

    Raises
    ------
    UnsupportedLayer
        For a part of which no bound is known, with its name.

    Examples
    --------
    >>> conv = spectral_norm(nn.Conv2d(1, 4, 3), (8, 8), steps=500)
    >>> net = nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2))
    >>> bound = lipschitz_bound(net, torch.zeros(1, 1, 8, 8))
    >>> norm = float(torch.linalg.matrix_norm(net[4].weight.detach(), 2))
    >>> round(float(bound) / norm, 2)
    1.0
    """
    copied = deep_copy(model)
    with evaluating(copied):
        return LipschitzBound(tuple(_parts(copied, "", [x])))


def _parts(
    module: nn.Module, name: str, state: list[Tensor]
) -> Iterator[tuple[str, str, float, str]]:
    """Yield what is known of every part; ``state`` holds the input of the next one."""
    if type(module) is nn.Sequential:
        for key, part in module.named_children():
            yield from _parts(part, f"{name}.{key}" if name else key, state)
        return
    bound, how = _bound_of(module, name, state[0])
    state[0] = module(state[0])
    kind = vars(module).get("native") or own_class(module)
    yield name or "the model itself", kind.__name__, bound, how


def _bound_of(module: nn.Module, name: str, x: Tensor) -> tuple[float, str]:
    """Return the bound of one part, and how it is known."""
    some: Any = module
    if form_of(module) is not None:
        size = tuple(x.shape[2:])
        found = singular_values(module, size, k=1)
        return float(found) * (1 + found.residual), f"at {'×'.join(map(str, size))}: {found.method}"
    if type(module) is nn.Linear:
        norm = torch.linalg.matrix_norm(some.weight.double(), 2).item()
        rounded = max(some.weight.shape) * float(np.finfo(np.float64).eps)
        return norm * (1 + rounded), "the norm of the matrix"
    if type(module) in _BATCH_NORMS and some.running_var is not None:
        scale = (some.running_var.double() + some.eps).rsqrt()
        scale = scale if some.weight is None else scale * some.weight.double()
        return scale.abs().max().item(), "the largest scale of a channel"
    if type(module) in (*_MAX_POOLS, *_AVG_POOLS):
        return _pool(some, x.dim() - 2), "elements in several windows"
    if type(module) is nn.LeakyReLU:
        return max(1.0, abs(some.negative_slope)), "the slope"
    if type(module) in _AT_MOST_ONE:
        return 1.0, ""
    raise UnsupportedLayer(
        f"no bound is known for a {type(module).__name__}",
        where=name or "model",
        expected="an nn.Sequential of CONV and FC layers, BatchNorm, pooling and ReLU or its kin",
        remedy="take the bounds of the parts that are sequential, and multiply",
    )


def _pool(pool: Any, ndim: int) -> float:
    """Return a bound for pooling: an element counts as often as there are windows with it."""
    kernel, step, apart = (
        per_axis(name, getattr(pool, name, 1), ndim, least=1)
        for name in ("kernel_size", "stride", "dilation")
    )
    often = math.prod(
        math.ceil(k / s) if d == 1 else k for k, s, d in zip(kernel, step, apart, strict=True)
    )
    if type(pool) in _MAX_POOLS or not pool.count_include_pad or pool.ceil_mode:
        return math.sqrt(often)
    size = getattr(pool, "divisor_override", None) or math.prod(kernel)
    return math.sqrt(often * math.prod(kernel)) / size
