"""The true norm of a CONV layer as a constraint of its training."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from convfc.errors import Refusal, UnsupportedLayer
from convfc.extras import needing

with needing():
    import torch
    from torch import Tensor, nn
    from torch.nn.utils import parametrize

from convfc.frameworks.torch.forms.calls import by_class
from convfc.frameworks.torch.forms.form import form_of
from convfc.frameworks.torch.read import geometry_of, native_class, obstacle
from convfc.frameworks.torch.running import check_module
from convfc.sizes import input_sizes, integer

_READ = (
    *("stride", "padding", "dilation", "groups", "padding_mode", "transposed", "kernel_size"),
    *("output_padding", "_reversed_padding_repeated_twice"),
)
_NO_CONV = Refusal("it is not a CONV layer", "")


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
    UnsupportedLayer, UnsupportedModel
        If it is not a CONV layer of PyTorch with a plain weight.

    Examples
    --------
    >>> from convfc.methods.spectrum import singular_values
    >>> layer = spectral_norm(nn.Conv2d(3, 8, 3, padding=1), (6, 6), steps=500)
    >>> round(float(singular_values(layer.eval(), (6, 6), k=1)), 2)
    1.0
    """
    check_module(layer, "layer")
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
