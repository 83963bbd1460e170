"""Exported programs without convolutions: each becomes pads, strided views and matrix products.

And models of ONNX, with their convolutions.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from convfc.comparing import words
from convfc.errors import ShapeError, UnsupportedModel
from convfc.extras import needing
from convfc.frameworks.torch.forms.calls import convolution_of
from convfc.frameworks.torch.forms.windows import open_rules, open_windows, patches_by_plan
from convfc.frameworks.torch.read import weight_to_matrix
from convfc.frameworks.torch.running import (
    call_model,
    check_can_run,
    check_compiler,
    positional_arguments,
    unchanged,
)


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
    >>> for parameter in cnn.parameters():  # integers, which nothing rounds
    ...     _ = parameter.data.random_(-9, 10)
    >>> x = torch.randint(-9, 10, (2, 1, 9, 9)).float()
    >>> exported = torch.export.export(cnn, (x,)).run_decompositions(fc_decompositions())
    >>> [node.name for node in exported.graph.nodes if "conv" in str(node.target)]
    []
    >>> torch.equal(exported.module()(x), cnn(x))
    True
    """
    table: dict[Any, Callable[..., Any]] = dict(torch.export.default_decompositions().items())
    for name, overloads in _OVERLOADS.items():
        for overload in overloads:
            operator = getattr(getattr(torch.ops.aten, name), overload)
            table[operator] = partial(_by_matrix, getattr(torch, name))
    return table


_OVERLOADS = {
    "convolution": ("default",),
    **{f"conv{n}d": ("default", "padding") for n in (1, 2, 3)},
    "conv_transpose1d": ("default",),
    "conv_transpose2d": ("input",),
    "conv_transpose3d": ("input",),
}
"""The operators that convolve, by the function of torch that takes the same arguments."""


def _by_matrix(function: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Compute a convolution as M K, with operations on sizes that may be open."""
    call = convolution_of(function, args, kwargs)
    assert call is not None, "every operator of _OVERLOADS is a known one"  # noqa: S101
    x, weight, groups = call.x, call.weight, call.groups
    whole = x if x.dim() == weight.dim() else x.unsqueeze(0)
    windows, axes = open_windows(whole, *open_rules(call.geometry()))
    rows = patches_by_plan(windows, axes, groups)  # (N, L, groups * k)
    matrix = weight_to_matrix(weight, transposed=call.transposed, groups=groups)
    if groups == 1:
        y = torch.matmul(rows, matrix.t())
    else:
        by_group = rows.unflatten(2, (groups, -1)).transpose(1, 2)  # (N, groups, L, k)
        y = torch.matmul(by_group, matrix.unflatten(0, (groups, -1)).transpose(1, 2))
        y = y.transpose(1, 2).flatten(2)
    y = y if call.bias is None else y + call.bias
    y = y.transpose(1, 2).unflatten(2, [axis.positions for axis in axes])
    found: Tensor = y if whole is x else y.squeeze(0)
    return found


def to_onnx(model: nn.Module, example: Any) -> Any:
    """Return a model as an `onnx_ir.Model`, for inputs of the sizes of an example.

    Where the model does not run on it without a batch axis, the batch may have any size.
    """
    with needing():
        import onnx  # noqa: F401
        import onnx_ir  # noqa: F401
        import onnxscript  # noqa: F401
    check_can_run(model, "example")
    check_compiler()
    args, axes = positional_arguments(model, example), {}
    with unchanged(model):
        try:
            call_model(model, args, {}, "example")
        except ShapeError as error:
            args, axes = tree_map(_twice, args), {0: torch.export.Dim.AUTO}
            try:
                call_model(model, args, {}, "example")
            except ShapeError:
                raise error from None
        shapes = tree_map(lambda value: dict(axes) if isinstance(value, Tensor) else None, args)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                program = torch.export.export(model, args, dynamic_shapes=shapes)
                exported: Any = torch.onnx.export(program, verbose=False)
                return exported.model
        except Exception as error:  # of every part of PyTorch's exporter
            raise UnsupportedModel(
                f"PyTorch does not export it ({words(error)})",
                where="model",
                remedy="export it yourself with torch.onnx.export, and convert the file",
            ) from error


def _twice(value: Any) -> Any:
    """Return a batch of two equal inputs: one of one would be a constant of the program."""
    return torch.stack([value, value]) if isinstance(value, Tensor) else value
