"""A model's forward as a graph, with the shape that every value has on an example."""

from __future__ import annotations

import operator
from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.lazy import LazyModuleMixin

from convfc.errors import Refusal
from convfc.frameworks.torch.forms.form import form_of
from convfc.frameworks.torch.forms.patch import PatchConv
from convfc.frameworks.torch.read import own_forward
from convfc.frameworks.torch.running import call_model, in_mode
from convfc.frameworks.torch.vocabulary import Call


class _Tracer(fx.Tracer):
    """PyTorch's own modules are calls, and so is the patch form; hooks do not see the tracing."""

    def __init__(self, leaves: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self.leaves = leaves
        self.failed = ""  # the module in whose forward the tracing has stopped

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            isinstance(m, PatchConv)
            or (form_of(m) == "native" and own_forward(m) is None)
            or (isinstance(m, nn.Linear) and type(m).forward is nn.Linear.forward)
            or module_qualified_name in self.leaves
            or super().is_leaf_module(m, module_qualified_name)
        )

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        self.failed = name = self.path_of_module(m)
        result = super().call_module(m, m.forward, args, kwargs)
        self.failed = name.rpartition(".")[0]
        return result


class _Shapes(fx.Interpreter):
    """Runs a graph on an example and notes the shape of every value; calls no hooks."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta["shape"] = tuple(result.shape)
        return result

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.fetch_attr(target).forward(*args, **kwargs)


def shape_of(node: Any) -> tuple[int, ...] | None:
    """Return the shape that a value had on the example; None if it is not a tensor."""
    return node.meta.get("shape") if isinstance(node, fx.Node) else None


def as_traced(model: nn.Module) -> nn.Module:
    """Return a model as `torch.fx` is to see it: one layer alone is a call, not its own forward."""
    alone = form_of(model) in ("native", "patch", "weight") or (
        type(model).__module__.startswith("torch.nn") and not isinstance(model, nn.Sequential)
    )
    return nn.Sequential(model).train(model.training) if alone else model


def trace(model: nn.Module, example: tuple[Any, ...]) -> fx.Graph | Refusal:
    """Return the graph of a model's forward, with every value's shape on the example.

    The example, which is the arguments of one call, is run in evaluation mode, without gradients
    and without hooks; afterwards the model is as before.
    """
    for name, module in model.named_modules():
        if isinstance(module, LazyModuleMixin):
            return Refusal(f"{name or 'it'} has no size yet", "run the model once on an input")
    leaves: frozenset[str] = frozenset()
    with in_mode(model, lambda part: part.training):  # as it is; it is put back at the end
        while True:
            training, failed_training = _trace(model.train(), leaves)
            graph, failed = _trace(model.eval(), leaves)
            asks = _compare_modes(model, graph, training) | {failed_training, failed}
            # What has no parts has no flattening between layers inside it.
            more = {n for n in asks if n and not list(model.get_submodule(n).children())} - leaves
            if not more:
                break
            leaves |= more  # called as they are, they need not be traced
        if isinstance(graph, fx.Graph):
            with torch.no_grad():
                call_model(_Shapes(model, graph=graph).run, example, {}, "example")
    return graph


def graph_follows_mode(graph: fx.Graph) -> bool:
    """Say whether a graph of `trace` is the forward in training too, `dropouts_by_mode` aside."""
    return not any(node.meta.get("mode") for node in graph.nodes)


def dropouts_by_mode(graph: fx.Graph) -> dict[fx.Node, nn.Module]:
    """Return the functional dropouts that ask ``self.training``, and modules that go on asking."""
    return {node: node.meta["dropout"] for node in graph.nodes if "dropout" in node.meta}


def _trace(model: nn.Module, leaves: frozenset[str]) -> tuple[fx.Graph | Refusal, str]:
    """Trace a model in the mode that it is in; if that fails, say in which part."""
    tracer = _Tracer(leaves)
    try:
        return tracer.trace(model), ""
    except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        return Refusal(
            f"torch.fx cannot trace the forward of the model ({type(model).__name__}): {error}",
            "convert the part that holds the head by itself, with the feature map that it "
            "receives as example=",
        ), tracer.failed


def _compare_modes(
    model: nn.Module, graph: fx.Graph | Refusal, training: fx.Graph | Refusal
) -> set[str]:
    """Note on the nodes what training does otherwise; return in which parts of the model."""
    if isinstance(graph, Refusal):
        return set()
    words: dict[fx.Node, str] = {}
    steps = _steps(model, graph, words)
    others = [] if isinstance(training, Refusal) else _steps(model, training, words)
    parts: set[str] = set()
    for call, then in zip_longest(steps, others):
        node, other = (None if one is None else one.node for one in (call, then))
        if node is None or other is None or (node.op, node.target) != (other.op, other.target):
            next(iter(graph.nodes)).meta["mode"] = True
            return parts | {_part(one) for one in (node, other) if one is not None}
        if _given(words, node.args, node.kwargs) == _given(words, other.args, other.kwargs):
            continue
        on = {**call.arguments, "train" if "train" in call.arguments else "training": True}
        if "dropout" in call.kind and _given(words, on) == _given(words, then.arguments):
            node.meta["dropout"] = call.as_module()
        else:
            node.meta["mode"] = True
            parts.add(_part(node))
    return parts


def _steps(model: nn.Module, graph: fx.Graph, words: dict[fx.Node, str]) -> list[Call]:
    """Return the calls that compute something; ``words`` receives what stands for every value.

    Where numbers lie in memory is nothing computed: such a call is its argument.
    """
    steps: list[Call] = []
    for node in graph.nodes:
        call = Call.of(node, model)
        idle = call.name == "contiguous" or type(call.module) is nn.Identity
        if idle and call.source is not None:
            words[node] = words[call.source]
        else:
            words[node] = f"value {len(steps)}"
            steps.append(call)
    return steps


def _given(words: dict[fx.Node, str], *given: Any) -> str:
    """Return what calls are given, with the same words for the same values in every graph."""
    return str(fx.node.map_arg(given, words.__getitem__))


def _part(node: fx.Node) -> str:
    """Return the name of the innermost module in whose forward a call stands."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else ""


def place(node: fx.Node) -> str:
    """Return where a call stands: a module's name, or the module in whose forward it is."""
    if node.op == "call_module":
        return str(node.target)
    return _part(node) or "the model's own forward"


def words(node: fx.Node) -> str:
    """Return what a call of a function or method calls, for messages."""
    return f"{getattr(node.target, '__name__', node.target)}()"


def asks_batch(node: fx.Node) -> bool:
    """Say whether a call asks a tensor for its batch size only, or for its dtype or device."""
    attribute = node.args[1] if node.target is getattr else None
    if attribute in ("dtype", "device"):
        return True
    size = node.op == "call_method" and node.target == "size"
    if size and (len(node.args) > 1 or node.kwargs):
        return bool(node.args[1:] == (0,) or node.kwargs == {"dim": 0})
    firsts = [user.target is operator.getitem and user.args[1] == 0 for user in node.users]
    return bool((size or attribute == "shape") and all(firsts))
