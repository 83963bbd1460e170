"""Exported programs without convolutions: each becomes pads, strided views and matrix products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from convfc.frameworks.torch.forms.calls import Convolution
from convfc.frameworks.torch.forms.windows import open_rules, open_windows, patches_by_plan
from convfc.frameworks.torch.read import weight_to_matrix


def fc_decompositions() -> dict[Any, Callable[..., Any]]:
    """Return how `torch.export` writes every convolution as the FC layer that it equals.

    For ``exported.run_decompositions(fc_decompositions())``. Afterwards no convolution is left in
    the program, whichever code it came from: layers, subclasses, functions. Each is a pad, strided
    views that make M, and a matrix product; a dynamic batch stays dynamic. For hardware and tools
    that know products of matrices only.

    Returns
    -------
    dict
        PyTorch's own default decompositions, with those of all convolutions.

    Examples
    --------
    >>> from torch import nn
    >>> cnn = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU()).eval()
    >>> x = torch.randn(2, 1, 9, 9)
    >>> exported = torch.export.export(cnn, (x,)).run_decompositions(fc_decompositions())
    >>> [node.name for node in exported.graph.nodes if "conv" in str(node.target)]
    []
    >>> torch.allclose(exported.module()(x), cnn(x), atol=1e-6)
    True
    """
    table: dict[Any, Callable[..., Any]] = dict(torch.export.default_decompositions().items())
    aten = torch.ops.aten
    table[aten.convolution.default] = _by_matrix
    for name in ("conv1d", "conv2d", "conv3d"):
        packet = getattr(aten, name)
        table[packet.default] = table[packet.padding] = _conv
    for name in ("conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input"):
        packet, overload = name.split(".")
        table[getattr(getattr(aten, packet), overload)] = _conv_transpose
    return table


def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    return _by_matrix(x, weight, bias, stride, padding, dilation, False, 0, groups)


def _conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    return _by_matrix(x, weight, bias, stride, padding, dilation, True, output_padding, groups)


def _by_matrix(
    x: Tensor,  # (N, c, *S) or (c, *S)
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Tensor:
    """Compute a convolution as M K, with operations on sizes that may be open."""
    plain = [_plain(value) for value in (stride, padding, dilation, output_padding)]
    steps = (*plain[:3], groups, transposed, plain[3])
    geometry = Convolution(x, weight, bias, *steps).geometry()
    whole = x if x.dim() == weight.dim() else x.unsqueeze(0)
    windows, axes = open_windows(whole, *open_rules(geometry))
    rows = patches_by_plan(windows, axes, groups)  # (N, L, groups * k)
    matrix = weight_to_matrix(weight, transposed=transposed, groups=groups)
    if groups == 1:
        y = torch.matmul(rows, matrix.t())
    else:
        by_group = rows.unflatten(2, (groups, -1)).transpose(1, 2)  # (N, groups, L, k)
        y = torch.matmul(by_group, matrix.unflatten(0, (groups, -1)).transpose(1, 2))
        y = y.transpose(1, 2).flatten(2)
    y = y if bias is None else y + bias
    y = y.transpose(1, 2).unflatten(2, [axis.positions for axis in axes])
    found: Tensor = y if whole is x else y.squeeze(0)
    return found


def _plain(value: Any) -> Any:
    """Return a list of numbers as a tuple of them."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(int(number) for number in value)
    return value
