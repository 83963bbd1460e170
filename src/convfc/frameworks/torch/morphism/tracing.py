"""The graph of a model's forward, or the line that stands in the way."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from convfc.errors import Refusal, UnsupportedModel
from convfc.frameworks.torch.graph import as_traced, graph_follows_mode, trace
from convfc.frameworks.torch.running import deep_copy

__all__ = ["traced"]

_CONSTANT = "_tensor_constant"  # what torch.fx calls a tensor that a forward makes


def traced(model: nn.Module, example: Any) -> fx.Graph:
    """Trace a model.

    Parameters
    ----------
    model : nn.Module
        A single layer is traced as a call of it.
    example : Tensor, tuple or mapping
        One input, or the arguments of a call.

    Raises
    ------
    UnsupportedModel
        If `torch.fx` cannot trace the forward, with the line that stands in the way; or if the
        forward calls something else in training, where its layers would be read as well.

    Examples
    --------
    >>> import torch
    >>> [node.name for node in traced(nn.ReLU(), torch.ones(2)).nodes]
    ['input_1', '_0', 'output']
    """
    args = example if isinstance(example, tuple) else (example,)
    if isinstance(example, Mapping):
        bound = inspect.signature(model.forward).bind(**example)
        bound.apply_defaults()
        args = (*bound.args, *bound.kwargs.values())
    # A copy, as torch.fx may leave attributes behind.
    graph = trace(as_traced(deep_copy(model)), args)
    if isinstance(graph, Refusal):
        raise UnsupportedModel(
            graph.reason,
            where=_line(model),
            expected="a forward that torch.fx can trace",
            remedy="write this line without asking what is in a tensor, or widen the part of the "
            "model that can be traced by itself",
        )
    if any(str(node.target).startswith(_CONSTANT) for node in graph.nodes):
        raise UnsupportedModel(
            "its forward makes tensors of its own, which torch.fx takes for another one every time",
            where=type(model).__name__,
            remedy="make them in __init__, with register_buffer",
        )
    if not graph_follows_mode(graph):
        raise UnsupportedModel(
            "its forward does something else in training, which would read the units as well",
            where=type(model).__name__,
            expected="the same operations in training and in evaluation",
            remedy="switch the other outputs off (aux_logits=False), or widen before adding them",
        )
    return graph


def _line(model: nn.Module) -> str:
    """Return the last line of the user's own code that `torch.fx` had come to."""
    try:
        fx.Tracer().trace(as_traced(deep_copy(model)))
    except Exception as error:  # whatever a user's forward raises: only its place is wanted
        own = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if "/torch/" not in frame.filename.replace("\\", "/") and frame.filename != __file__
        ]
        if own:
            return f"{own[-1].filename}, line {own[-1].lineno}, {own[-1].line}"
    return "model"
