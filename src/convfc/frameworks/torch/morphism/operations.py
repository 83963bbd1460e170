"""What PyTorch's modules, functions and methods do to the units of a value: tables."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx, nn

from convfc.frameworks.torch.vocabulary import OPERATIONS, POINTWISE

__all__ = [
    "CONCATENATIONS",
    "ELEMENTWISE",
    "EXPANSIONS",
    "FLATTENS",
    "NORMS",
    "NUMBERS",
    "REDUCED",
    "RESHAPES",
    "RESIZES",
    "SOFTMAXES",
    "TRAILING",
    "arguments",
    "is_stochastic_depth",
]


def _spellings(*kinds: str) -> frozenset[Any]:
    """Return all spellings of the operations of these names or kinds."""
    return frozenset(
        spelling
        for operation in OPERATIONS.values()
        if operation.kind in kinds or operation.name in kinds
        for spelling in (*operation.modules, *operation.functions, *operation.methods)
    )


TRAILING = {
    spelling: operation.axes
    for operation in OPERATIONS.values()
    if operation.kind in ("pooling", "adaptive pooling", "padding") and operation.axes
    for spelling in (*operation.modules, *operation.functions)
}
"""What works on so many trailing axes, the same for all units."""
RESIZES = _spellings("resizing")
"""They work on all axes behind the second."""
ELEMENTWISE = _spellings(*POINTWISE, "dropout of channels")
FLATTENS = _spellings("flatten")
RESHAPES = _spellings("flatten", "reshape", "unflatten")
EXPANSIONS = _spellings("expansion")
REDUCED = _spellings("reduction")
"""One value of all along an axis; copies of a unit would count more than once."""
NORMS = _spellings("normalisation")
"""They normalise over several units."""
CONCATENATIONS = _spellings("concatenation")
SOFTMAXES = _spellings("distribution")

NUMBERS = frozenset(
    [
        *(operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv),
        *(operator.mod, operator.neg, operator.getitem, int, max, min),
    ]
)
"""What a forward computes sizes with."""


def is_stochastic_depth(thing: Any) -> bool:
    """Say whether a module or function is torchvision's, which drops whole residual branches.

    Examples
    --------
    >>> is_stochastic_depth(nn.Dropout())
    False
    """
    what = type(thing) if isinstance(thing, nn.Module) else thing
    home = str(getattr(what, "__module__", ""))
    name = getattr(what, "__name__", "")
    return home.startswith("torchvision.ops") and name in ("StochasticDepth", "stochastic_depth")


def arguments(node: fx.Node) -> tuple[Any, ...]:
    """Return all arguments of a call behind the first, and those with names.

    Examples
    --------
    >>> graph = fx.Graph()
    >>> arguments(graph.call_method("view", (graph.placeholder("x"), 2, -1)))
    (2, -1)
    """
    return (*node.args[1:], *node.kwargs.values())
