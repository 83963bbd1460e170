"""What single calls in a graph of `torch.fx` ask for: their source, their axes."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn


def argument(node: fx.Node, index: int, name: str) -> Any:
    """Return an argument of a call, given by its place or by its name."""
    return node.args[index] if len(node.args) > index else node.kwargs.get(name)


def place(node: fx.Node) -> str:
    """Return where a call stands: a module's name, or the module in whose forward it is."""
    if node.op == "call_module":
        return str(node.target)
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack and stack[-1][0] else "the model's own forward"


def words(node: fx.Node) -> str:
    """Return what a call calls, for messages."""
    target = node.target
    return f"{target if isinstance(target, str) else getattr(target, '__name__', target)}()"


def source_of(node: fx.Node) -> fx.Node | None:
    """Return the first argument of a call, if it is a value of the graph.

    Examples
    --------
    >>> graph = fx.symbolic_trace(nn.ReLU()).graph
    >>> [source_of(node) for node in graph.nodes]
    [None, input_1, relu]
    """
    first = node.args[0] if node.args else node.kwargs.get("input")
    return first if isinstance(first, fx.Node) else None


def axis_of(node: fx.Node, module: nn.Module | None) -> Any:
    """Return the axis along which a softmax, module or function, or a concatenation runs.

    Examples
    --------
    >>> graph = fx.Graph()
    >>> axis_of(graph.call_function(torch.softmax, (graph.placeholder("x"), -1)), None)
    -1
    """
    if module is not None:
        return getattr(module, "dim", None)
    return node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")


def reduced_axes(node: fx.Node, ndim: int) -> set[int]:
    """Return the axes over which a mean or a maximum of a tensor with so many axes is taken.

    Examples
    --------
    >>> graph = fx.Graph()
    >>> reduced_axes(graph.call_method("mean", (graph.placeholder("x"), (-1, 2))), 4)
    {2, 3}
    """
    axes = axis_of(node, None)
    axes = axes if isinstance(axes, (tuple, list)) else (axes,)
    return {axis % ndim for axis in axes if isinstance(axis, int)}


def reordered_axes(node: fx.Node, ndim: int) -> tuple[int, ...] | None:
    """Return, for each axis of a permuted tensor, the axis it was; None if this permutes nothing.

    Examples
    --------
    >>> graph = fx.Graph()
    >>> reordered_axes(graph.call_method("permute", (graph.placeholder("x"), 0, 2, 3, 1)), 4)
    (0, 2, 3, 1)
    """
    axes: Any = node.args[1:]
    if node.target in ("permute", torch.permute):
        axes = node.kwargs.get("dims", axes)
        axes = axes[0] if isinstance(axes[0], (tuple, list)) else axes
        return tuple(axis % ndim for axis in axes)
    if node.target in ("transpose", torch.transpose) and len(axes) == 2:
        one, other = (axis % ndim for axis in axes)
        swap = {one: other, other: one}
        return tuple(swap.get(axis, axis) for axis in range(ndim))
    return tuple(range(ndim)) if node.target == "contiguous" else None


def asks_batch(node: fx.Node) -> bool:
    """Say whether a call asks a tensor for its batch size only, or for its dtype or device.

    Examples
    --------
    >>> graph = fx.Graph()
    >>> x = graph.placeholder("x")
    >>> asks_batch(graph.call_method("size", (x, 0))), asks_batch(graph.call_method("size", (x, 1)))
    (True, False)
    """
    if node.target is getattr and node.args[1] in ("dtype", "device"):
        return True
    sizes = (node.op == "call_method" and node.target == "size") or (
        node.target is getattr and node.args[1] == "shape"
    )
    if sizes and node.target == "size" and (len(node.args) > 1 or node.kwargs):
        return bool(node.args[1:] == (0,) or node.kwargs == {"dim": 0})
    firsts = [user.target is operator.getitem and user.args[1] == 0 for user in node.users]
    return bool(sizes and all(firsts))
