"""A call of one of PyTorch's functions that convolve, read: its tensors and its geometry."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from convfc.frameworks.torch.read import geometry_from, hashable, sizes_of_weight
from convfc.geometry import ConvGeometry

_CONVOLVES = re.compile(r"conv\dd|conv_transpose\dd|conv_tbc|\w*convolution\w*")

CONVOLUTIONS: dict[Any, str] = {
    getattr(torch, name): name for name in dir(torch) if _CONVOLVES.fullmatch(name)
}
"""Every function of torch that convolves; `torch.nn.functional` has the same objects."""

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


class Convolution(NamedTuple):
    """One call: ``x`` (N, c, *spatial) or (c, *spatial), and what else the function was given."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: Any
    padding: Any
    dilation: Any
    groups: int
    transposed: bool
    output_padding: Any

    @property
    def spatial_ndim(self) -> int:
        """Number of spatial axes."""
        return self.weight.dim() - 2

    def geometry(self, output_padding: Sequence[int] | None = None) -> ConvGeometry:
        """Return the geometry; of a transposed call, also with another output padding."""
        channels, filters, *kernel = sizes_of_weight(
            self.weight.shape, self.groups, transposed=self.transposed
        )
        extra = self.output_padding if output_padding is None else tuple(output_padding)
        return geometry_from(
            (channels, filters, tuple(kernel)),
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            "zeros",
            self.transposed,
            extra if self.transposed else 0,
        )

    def plain(self) -> Convolution:
        """Return the call with plain tensors, without their graph."""
        with torch._C.DisableTorchFunctionSubclass():
            x, weight, bias = (
                None if t is None else t.as_subclass(Tensor).detach() for t in self[:3]
            )
        return self._replace(x=x, weight=weight, bias=bias)  # type: ignore[arg-type]

    def as_layer(self) -> nn.Module:
        """Return the CONV layer that makes this call."""
        channels, filters, *kernel = sizes_of_weight(
            self.weight.shape, self.groups, transposed=self.transposed
        )
        cls: Any = getattr(nn, f"Conv{'Transpose' * self.transposed}{self.spatial_ndim}d")
        more = {"output_padding": self.output_padding} if self.transposed else {}
        layer: nn.Module = cls(
            channels,
            filters,
            tuple(kernel),
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            bias=self.bias is not None,
            device="meta",
            **more,
        )
        for name, value in (("weight", self.weight), ("bias", self.bias)):
            if value is not None:
                setattr(layer, name, nn.Parameter(value.clone(), value.is_floating_point()))
        return layer

    def by_pytorch(self) -> Tensor:
        """Return what PyTorch's function of this call returns."""
        rest = (self.stride, self.padding)
        name, more = "conv", [self.dilation, self.groups]
        if self.transposed:
            name, more = "conv_transpose", [self.output_padding, self.groups, self.dilation]
        function = getattr(torch, f"{name}{self.spatial_ndim}d")
        y: Tensor = function(self.x, self.weight, self.bias, *rest, *more)
        return y


def by_class(
    cls: Any,
    layer: Any,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Run the forward of one of PyTorch's CONV classes with another weight and bias.

    ``layer`` need not be of the class: its attributes are read.
    """
    if not layer.transposed:
        y: Tensor = cls._conv_forward(layer, x, weight, bias)
        return y
    sizes = (layer.stride, layer.padding, layer.kernel_size)
    ndim = weight.dim() - 2
    extra = cls._output_padding(layer, x, output_size, *sizes, ndim, layer.dilation)
    rest = (layer.stride, layer.padding, extra, layer.groups, layer.dilation)
    z: Tensor = getattr(torch, f"conv_transpose{ndim}d")(x, weight, bias, *rest)
    return z


def convolution_of(
    function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Convolution | None:
    """Read a call; None if the function does not convolve, or is not one of the well-known ones."""
    name = CONVOLUTIONS.get(function, "")
    given = {**dict(zip(_ARGUMENTS.get(name, ()), args, strict=False)), **kwargs}
    if name not in _ARGUMENTS or not {"input", "weight"} <= given.keys():
        return None
    numbers = {"stride": 1, "padding": 0, "dilation": 1, "output_padding": 0, **given}
    return Convolution(
        given["input"],
        given["weight"],
        given.get("bias"),
        hashable(numbers["stride"]),
        hashable(numbers["padding"]),
        hashable(numbers["dilation"]),
        given.get("groups", 1),
        given.get("transposed", "transpose" in name),
        hashable(numbers["output_padding"]),
    )
