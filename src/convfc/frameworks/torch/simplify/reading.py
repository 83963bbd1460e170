"""A model's forward, traced by ``torch.fx``, as values: sums of matrices times vectors, and ReLUs.

The graph is followed twice at once: with the values, and with real tensors (two examples, so that
nothing can depend on the number of examples unseen), which know shapes and which tensor an in-place
operation has changed. Whatever is not known to be affine or an activation is refused by name.
"""

from __future__ import annotations

import operator
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from convfc.errors import Refusal, ShapeError, UnsupportedModel
from convfc.frameworks.torch.forms import form_of
from convfc.frameworks.torch.graph import as_traced, trace
from convfc.frameworks.torch.parts import has_pre_hooks
from convfc.frameworks.torch.running import evaluating
from convfc.frameworks.torch.simplify import calls
from convfc.frameworks.torch.simplify.activations import (
    FUNCTIONS,
    KEPT,
    PIECEWISE_LINEAR,
    between,
    kept,
    leaky,
)
from convfc.frameworks.torch.simplify.ir import Input, Program, Value
from convfc.frameworks.torch.simplify.maps import (
    Tracked,
    conv_map,
    estimate,
    in_double,
    moved,
    norm_map,
    numbers,
    probed,
    refuse,
    scaled,
    shared_linear_map,
    shifted,
)
from convfc.frameworks.torch.simplify.pooling import (
    adaptive_windows,
    max_pool_kept,
    max_pool_relu,
    pool_windows,
)
from convfc.frameworks.torch.simplify.running import run_nodes
from convfc.frameworks.torch.tensors import first_words
from convfc.operators.estimate import MatrixEstimate, check_together

__all__ = ["MaxPool", "read"]

MaxPool: TypeAlias = Literal["keep", "relu"]

_BATCH = "give the example in a batch, (n, c, *size)"


def read(
    model: nn.Module, example: tuple[Any, ...], *, max_pool: MaxPool, memory: float | None = None
) -> Program:
    """Read what a model computes in evaluation mode on inputs of the example's size.

    Parameters
    ----------
    model : nn.Module
        It is run, and not changed.
    example : tuple
        The arguments of one call: one tensor ``(n, *shape)``.
    max_pool : {"keep", "relu"}
    memory : float, optional
        Bytes that the matrices of all layers may take together; by default what is free.

    Raises
    ------
    UnsupportedModel, UnsupportedLayer
        If a part of it is neither affine nor an activation.
    MemoryBudgetError
        If the matrices do not fit, before the first of them is made.

    Examples
    --------
    >>> program = read(nn.Sequential(nn.Conv1d(1, 2, 3)), (torch.ones(1, 1, 5),), max_pool="keep")
    >>> program.output_shape, program.output.size
    ((2, 3), 6)
    """
    if len(example) != 1 or not isinstance(example[0], Tensor) or example[0].dim() < 2:
        raise ShapeError(
            "the sizes of the FC layers follow from one input",
            where="example",
            expected="one tensor (n, c, *size), or (n, features)",
            got=_words(example),
            remedy="give an input as the model is called with, in a batch of one or more",
        )
    if not len(example[0]):
        raise ShapeError(
            "an empty batch shows nothing", where="example", got=_words(example), expected="n >= 1"
        )
    # Two examples: what mixes them, or counts them, cannot hide.
    x = example[0].detach()[[0, 0]].clone()
    _check(model)
    model = as_traced(model)
    graph = _traced(model, x)
    if isinstance(graph, Refusal):
        raise UnsupportedModel(
            graph.reason,
            where="model",
            expected="a forward that torch.fx can trace",
            remedy="simplify the parts of the model by themselves",
        )
    with evaluating(model):
        _check_memory(model, graph, x.clone(), memory)
        return _Reader(model, graph, (x,), max_pool, memory).program()


class _Reader:
    """One pass over a graph."""

    def __init__(
        self,
        model: nn.Module,
        graph: fx.Graph,
        example: tuple[Any, ...],
        max_pool: MaxPool,
        memory: float | None,
    ) -> None:
        self.graph, self.max_pool, self.memory = graph, max_pool, memory
        self.run = run_nodes(model, graph, example)
        self.model = model
        self.values: dict[fx.Node, Any] = {}

    def program(self) -> Program:
        """Follow the graph to its end."""
        names: dict[Value, str] = {}
        start: Tracked | None = None
        for node, real, changed in self.run:
            if node.op == "placeholder" and isinstance(real, Tensor):
                if start is not None:
                    raise refuse("the model takes more than one tensor", str(node.target))
                shape = tuple(real.shape[1:])
                start = Tracked(Input(real[0].numel()), shape)
                self.values[node] = start
            elif node.op == "output":
                return self._end(node, start, names)
            elif any(source in self.values for source in node.all_input_nodes):
                result = self._call(node, real)
                if result is not None:
                    self._check_result(node, result, real)
                    self.values[node] = result
                    for other in changed:
                        self._replace(node, other, result)
            if isinstance(self.values.get(node), Tracked):
                names.setdefault(self.values[node].value, node.name)
        raise AssertionError("a graph ends with its output")

    def _end(self, node: fx.Node, start: Tracked | None, names: dict[Value, str]) -> Program:
        result = node.args[0]
        end = self.values.get(result) if isinstance(result, fx.Node) else None
        if start is None or not isinstance(end, Tracked):
            raise UnsupportedModel(
                "it does not return one tensor that depends on its input",
                where="model",
                expected="one tensor",
                got=type(result).__name__,
                remedy="wrap it in a module that returns the one tensor",
            )
        assert isinstance(start.value, Input)  # noqa: S101 (for the type checker)
        return Program(start.value, end.value, start.shape, end.shape, names)

    def _call(  # noqa: PLR0911, PLR0912 (one for each kind)
        self, node: fx.Node, real: Any
    ) -> Any:
        """Return what a call makes of its values; None for a question about shapes."""
        place = calls.place(node)
        if node.op == "call_module":
            module = self.model.get_submodule(str(node.target))
            return self._module(module, self._only(node, place), real, place)
        kind = node.target
        if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(real)):
            if kind in calls.QUESTIONS or (
                kind is getattr and node.args[1] in calls.ATTRIBUTES  # such as x.shape
            ):
                return None
            raise refuse(f"{calls.words(node)} asks what is in a tensor", place)
        if kind is operator.getitem and not isinstance(self.values[node.args[0]], Tracked):  # type: ignore[index]
            return self.values[node.args[0]][node.args[1]]  # type: ignore[index]
        if kind in calls.SUMS:
            return self._sum(node, real)
        if kind in calls.SCALES:
            return self._scale(node, real, place)
        if calls.is_random(node):
            raise refuse("a dropout that is always on", place, "call it with self.training")
        if kind in calls.MOVES or calls.is_nearest(node):
            return self._moved(node, place)
        if kind in calls.CASTS:
            return self._cast(node, real, place)
        x = self._only(node, place)
        if kind in calls.AFFINE or kind in calls.CHANNELWISE:
            channelwise = kind in calls.CHANNELWISE
            return probed(lambda t: self._rerun(node, [t]), x, place, channelwise=channelwise)
        if kind in calls.CLAMPS:
            low, high = calls.limits(node)
            return Tracked(between(x.value, low, high), x.shape)
        if kind in calls.ABS:
            return Tracked(leaky(x.value, -1.0), x.shape)
        same = calls.as_module(node, FUNCTIONS)
        if same is not None:
            return self._module(same.eval(), x, real, place)
        raise refuse(f"{calls.words(node)} is not known to be affine or an activation", place)

    def _module(  # noqa: PLR0911, PLR0912 (one for each kind)
        self, module: nn.Module, x: Tracked, real: Any, place: str
    ) -> Tracked:
        """Return what a module makes of a value."""
        cls = type(module)
        if not isinstance(real, Tensor):
            raise refuse(f"{cls.__name__} returns more than a tensor", place)
        out = tuple(real.shape[1:])
        if form_of(module) in ("native", "patch", "weight"):
            if real.dim() != 2 + len(module.kernel_size):  # type: ignore[arg-type]
                raise refuse("a convolution of an example without a batch axis", place, _BATCH)
            return Tracked(conv_map(module, x, self.memory), out)
        if isinstance(module, nn.Linear) and cls.forward is nn.Linear.forward:
            return Tracked(shared_linear_map(module, x), out)
        if isinstance(module, _BatchNorm) and cls.forward in calls.NORM_FORWARDS:
            if module.running_mean is None:
                raise refuse("a BatchNorm without running statistics looks at the batch", place)
            return Tracked(norm_map(module, x), out)
        if cls in PIECEWISE_LINEAR:
            return Tracked(PIECEWISE_LINEAR[cls](module, x), out)
        if cls in KEPT or (cls in calls.SOFTMAXES and len(x.shape) == 1 and module.dim in (1, -1)):
            return Tracked(kept(module, x, place), out)
        if cls in calls.MAX_POOLS or cls in calls.ADAPTIVE_MAX_POOLS:
            if self.max_pool == "keep":
                return max_pool_kept(module, x, out, place)
            size = x.shape[1:]
            if cls in calls.MAX_POOLS:
                return max_pool_relu(x, pool_windows(module, size, out[1:]))
            return max_pool_relu(x, adaptive_windows(size, out[1:]))
        double = in_double(module)
        if cls in calls.CHANNELWISE:
            return probed(double.forward, x, place, channelwise=True)
        if cls in calls.AFFINE:
            return probed(double.forward, x, place)
        if cls in calls.MOVES or (cls in calls.UPSAMPLES and module.mode in calls.NEAREST):
            result: Tracked = moved(lambda t: double.forward(*t), [x], place)
            return result
        raise refuse(f"{cls.__name__} is not known to be affine or an activation", place)

    def _sum(self, node: fx.Node, real: Tensor) -> Tracked:
        """Return a sum or a difference, of values or of a value and constants."""
        first, second = calls.SUMS[node.target](node, self.run.real)
        signs, shape = (first[1], second[1]), tuple(real.shape[1:])
        result: Value | None = None
        constant = np.zeros(real[0].numel())
        for sign, operand in zip(signs, (first[0], second[0]), strict=True):
            if operand not in self.values:
                constant = constant + sign * self._spread(node, operand, real)
                continue
            x = self.values[operand]
            if x.shape != shape or sign != 1:
                x = moved(lambda t: [torch.broadcast_to(t[0], (2, *shape))], [x], calls.place(node))
                x = Tracked(affine_of(x[0].value, sign), shape)
            result = x.value if result is None else add(result, x.value)
        assert result is not None  # noqa: S101 (one of them is a value)
        return Tracked(shifted(result, constant) if constant.any() else result, shape)

    def _scale(self, node: fx.Node, real: Tensor, place: str) -> Tracked:
        """Return a product with constants, a quotient by them, or the opposite."""
        operands = [calls.argument(node, i, name) for i, name in enumerate(("input", "other"))]
        inside = [i for i, one in enumerate(operands) if self._is_value(one)]
        how = calls.SCALES[node.target]
        if how == "neg":
            return Tracked(affine_of(self.values[operands[0]].value, -1), tuple(real.shape[1:]))
        if len(inside) == 2:
            raise refuse("a product of two values of the network is not affine", place)
        if how == "div" and (inside != [0] or node.kwargs.get("rounding_mode") is not None):
            raise refuse("a division by a value of the network, or a rounded one", place)
        shape = tuple(real.shape[1:])
        factor = self._spread(node, operands[1 - inside[0]], real)
        x = self.values[operands[inside[0]]]
        if x.shape != shape:
            x = moved(lambda t: [torch.broadcast_to(t[0], (2, *shape))], [x], place)[0]
        return Tracked(scaled(x, 1 / factor if how == "div" else factor), shape)

    def _spread(self, node: fx.Node, operand: Any, real: Tensor) -> Any:
        """Return constants, one per element of an example."""
        constant = self.run.real[operand] if isinstance(operand, fx.Node) else operand
        spread = torch.broadcast_to(torch.as_tensor(constant, device=real.device), real.shape)
        if not torch.equal(spread[0], spread[1]):
            raise refuse("constants that differ from example to example", calls.place(node))
        return numbers(spread[0]).ravel()

    def _moved(self, node: fx.Node, place: str) -> Any:
        nodes = [source for source in node.all_input_nodes if self._is_value(source)]
        if len(nodes) != sum(source in self.values for source in node.all_input_nodes):
            raise refuse(f"{calls.words(node)} of a list of tensors", place)
        inputs = [self.values[source] for source in nodes]
        return moved(lambda given: self._rerun(node, given), inputs, place)

    def _rerun(self, node: fx.Node, given: list[Tensor]) -> Any:
        """Call a function or method again, on other tensors in the places of the values."""
        nodes = [source for source in node.all_input_nodes if source in self.values]
        instead = dict(zip(nodes, given, strict=True))

        def argument(source: fx.Node) -> Any:
            real = instead[source] if source in instead else self.run.real[source]
            floating = isinstance(real, Tensor) and real.is_floating_point()
            return real.cpu().double() if floating else real

        args, kwargs = fx.map_arg((node.args, node.kwargs), argument)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _cast(self, node: fx.Node, real: Tensor, place: str) -> Tracked:
        x = self._only(node, place)
        source = next(one for one in node.all_input_nodes if one in self.values)
        if real.dtype != self.run.real[source].dtype:
            raise refuse(f"{calls.words(node)} changes the dtype inside the network", place)
        return x

    def _only(self, node: fx.Node, place: str) -> Tracked:
        """Return the one value that a call is given."""
        inside = [source for source in node.all_input_nodes if source in self.values]
        if len(inside) != 1 or not self._is_value(inside[0]):
            raise refuse(f"{calls.words(node)} of several values of the network", place)
        if node.op == "call_module" and (len(node.args), node.kwargs) != (1, {}):
            raise refuse(f"{calls.words(node)} is given more than an input", place)
        tracked: Tracked = self.values[inside[0]]
        return tracked

    def _is_value(self, operand: Any) -> bool:
        return isinstance(operand, fx.Node) and isinstance(self.values.get(operand), Tracked)

    def _check_result(self, node: fx.Node, result: Any, real: Any) -> None:
        """Compare shapes with those of the real tensors."""
        if not isinstance(result, Tracked):
            return
        shape = tuple(real.shape)
        if shape[:1] != (2,) or shape[1:] != result.shape or real[0].numel() != result.value.size:
            raise refuse(
                f"{calls.words(node)} does not treat each example of a batch by itself",
                calls.place(node),
            )

    def _replace(self, node: fx.Node, other: fx.Node, result: Any) -> None:
        """Note that an in-place operation has changed another tensor of the graph."""
        if other not in self.values:
            return
        before, now = self.run.real[other], self.run.real[node]
        same = (before.data_ptr(), before.shape, before.stride()) == (
            now.data_ptr(),
            now.shape,
            now.stride(),
        )
        if same:
            self.values[other] = result
        elif any(user in self.run.ahead for user in other.users):
            raise refuse(
                "an in-place operation changes a tensor of which a view is used elsewhere",
                calls.place(node),
                "call it without inplace=True",
            )


def affine_of(value: Value, factor: float) -> Value:
    """Return a value times a number."""
    return scaled(Tracked(value, (value.size,)), np.full(value.size, float(factor)))


def add(one: Value, other: Value) -> Value:
    """Return the sum of two values.

    Examples
    --------
    >>> add(Input(2), Input(2)).size
    2
    """
    return calls.total([one, other])


def _traced(model: nn.Module, x: Tensor) -> fx.Graph | Refusal:
    """Trace a model, or say that it does not run on the example."""
    try:
        return trace(model, (x,))
    except ShapeError as error:
        cause = error.__cause__
        raise ShapeError(
            "the model does not run on two examples of this shape: "
            + (first_words(cause) if isinstance(cause, Exception) else ""),
            where="example",
            got=tuple(x.shape),
            remedy="give an input as the model is called with, in a batch of one or more",
        ) from cause


def _check(model: nn.Module) -> None:
    """Refuse what evaluation mode would silently change, and hooks."""
    for name, module in model.named_modules():
        if module._forward_hooks or has_pre_hooks(module):
            raise refuse(
                "hooks run around its calls, and may change what it computes",
                name or "model",
                "remove them (torch.nn.utils.remove_weight_norm, remove_spectral_norm, "
                "prune.remove, or handle.remove())",
            )
        if module.training and isinstance(module, calls.BY_MODE):
            raise UnsupportedModel(
                f"a {type(module).__name__} in training mode computes something else for every "
                "batch; what is simplified is the model in evaluation mode",
                where=name or "model",
                remedy="call model.eval() first",
            )


def _check_memory(model: nn.Module, graph: fx.Graph, x: Tensor, memory: float | None) -> None:
    """Refuse a network whose layers' matrices do not fit together, by its sizes alone.

    All of them are held, sparse and in float64, until they are multiplied and rounded.
    """
    estimates: dict[str, MatrixEstimate] = {}
    run = run_nodes(model, graph, (x,))
    for node, _, _ in run:
        given = [run.real[source] for source in node.all_input_nodes]
        if node.op == "call_module" and given and isinstance(given[0], Tensor):
            found = estimate(model.get_submodule(str(node.target)), given[0])
            if found is not None:
                place = calls.place(node)
                again = f", called as {node.name}" if place in estimates else ""
                estimates[place + again] = found
    check_together(
        estimates,
        memory,
        what="the matrices that the network is made of",
        remedy="a smaller example, or simplify a part of the network only; form='patch' and "
        "form='weight' need no such matrices",
    )


def _words(example: Any) -> str:
    kinds = [tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in example]
    return ", ".join(map(str, kinds)) or "nothing"
