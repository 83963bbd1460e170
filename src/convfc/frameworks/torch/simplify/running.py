"""A traced network run on real tensors, call by call, noting what is changed in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, fx, nn


class run_nodes:  # noqa: N801 (called as a function)
    """Runs a graph on real tensors: yields every node, its result and what it changed in place.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode; no hooks are called.
    graph : fx.Graph
    example : tuple

    Attributes
    ----------
    real : mapping of fx.Node to object
        Every result so far.
    ahead : set of fx.Node
        What has not run yet.

    Examples
    --------
    >>> from convfc.frameworks.torch.graph import trace
    >>> model = nn.Sequential(nn.Flatten())
    >>> graph = trace(model, (torch.ones(1, 2, 3),))
    >>> [node.name for node, result, changed in run_nodes(model, graph, (torch.ones(1, 2, 3),))]
    ['input_1', '_0', 'output']
    """

    def __init__(self, model: nn.Module, graph: fx.Graph, example: tuple[Any, ...]) -> None:
        self.model, self.graph, self.example = model, graph, example
        self.real: dict[fx.Node, Any] = {}
        self.ahead: set[fx.Node] = set(graph.nodes)

    def __iter__(self) -> Iterator[tuple[fx.Node, Any, list[fx.Node]]]:
        given = iter(self.example)
        for node in self.graph.nodes:
            self.ahead.discard(node)
            tensors = {n: t for n, t in self.real.items() if isinstance(t, Tensor)}
            versions = {n: t._version for n, t in tensors.items()}
            if node.op == "placeholder":
                result = next(given, node.args[0] if node.args else None)
            else:
                result = self._result(node)
            self.real[node] = result
            yield node, result, [n for n, t in tensors.items() if t._version != versions[n]]

    def _result(self, node: fx.Node) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), self.real.__getitem__)
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            return getattr(self.model.get_submodule(owner), name)
        if node.op == "call_module":
            return self.model.get_submodule(str(node.target)).forward(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        call: Callable[..., Any] = node.target  # type: ignore[assignment]
        return args[0] if node.op == "output" else call(*args, **kwargs)
