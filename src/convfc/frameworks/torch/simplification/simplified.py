"""A whole CONV network as a plain MLP, and what the MLP remembers of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from convfc.errors import ShapeError, UnsupportedModel
from convfc.frameworks.torch.forms.children import has_pre_hooks
from convfc.frameworks.torch.references import check_references
from convfc.frameworks.torch.running import (
    check_can_run,
    check_has_numbers,
    deep_copy,
    positional_arguments,
)
from convfc.frameworks.torch.simplification import emit
from convfc.frameworks.torch.simplification.operations import OPERATIONS, Condition, Step, estimate
from convfc.frameworks.torch.simplification.trace import Call, Ref, Trace, trace_of_two
from convfc.frameworks.torch.vocabulary import BY_MODE
from convfc.mlp.budget import check_least, check_memory, memory_explained
from convfc.mlp.simplified import (
    ATTRIBUTE,
    MaxPool,
    Options,
    Programs,
    Simplified,
    options_for,
    programs_of,
)
from convfc.mlp.values import Affine, Input, Program, Tracked, Value, refuse, topological
from convfc.operators.estimate import MatrixEstimate, check_together
from convfc.places import nothing_to_convert

_KEPT = "_user_preserved_attributes"  # in a GraphModule's meta: what its copies get, too


@torch.inference_mode(mode=False)  # what is made here is to be trained
def simplify(
    model: nn.Module,
    example: Any,
    *,
    max_pool: MaxPool = "keep",
    sequential: bool = False,
    memory: float | None = None,
) -> nn.Module:
    """Return a CONV network as a plain MLP that computes the same; see `convfc.simplify`."""
    options = options_for(model, max_pool, sequential=sequential)
    check_has_numbers(model, "model")
    arguments = positional_arguments(model, example)
    run, found = read(model, arguments, options, memory, to_be_made=True)
    if _is_simple(model, run, found):
        raise nothing_to_convert("layer other than nn.Linear and ReLU", None, ())
    made = made_of(found, model, arguments[0], memory)
    check_references(model, {id(part) for part in model.modules()}, copied=True)
    shape, dtype = found.original.input_shape, like(model, arguments[0]).dtype
    record = Simplified(deep_copy(model), shape, dtype, options, found.original.signature)
    vars(made)[ATTRIBUTE] = record
    if isinstance(made, fx.GraphModule):  # copies of it, and what is loaded from a file, have it
        made.meta[_KEPT] = {ATTRIBUTE: record}
    return made.train(model.training)


def _is_simple(model: nn.Module, run: Trace, found: Programs) -> bool:
    """Say whether a model is nothing but Linear and ReLU, and no two Linears are to be one."""
    leaves = {type(part) for part in model.modules() if not part._modules}
    names = [call.name for call in run.calls]
    linears = sum(isinstance(value, Affine) for value in topological(found.final.output))
    plain = leaves <= {nn.Linear, nn.ReLU} and set(names) <= {"linear", "relu"}
    return plain and len(found.original.input_shape) == 1 and names.count("linear") == linears


def made_of(
    found: Programs,
    model: nn.Module,
    x: Tensor,
    memory: float | None = None,
    *,
    sparse_weights: bool = False,
) -> nn.Module:
    """Return the plain MLP of a network that was read; with sparse weights, only to compare it."""
    one = like(model, x)
    if not sparse_weights:
        check_memory(found.final, one.dtype.itemsize, memory)
    return emit.emit(found.final, one.dtype, one.device, sparse_weights=sparse_weights).module


class Read(NamedTuple):
    """A network that was run, and what it is as values."""

    run: Trace
    programs: Programs


def made_again(record: Simplified) -> nn.Module:
    """Return a simplified network again, with sparse weights."""
    parameter = next(record.original.parameters(), torch.empty(0))
    x = torch.zeros(1, *record.shape, dtype=record.dtype, device=parameter.device)
    found = read(record.original, (x,), record.options).programs
    return made_of(found, record.original, x, sparse_weights=True)


def read(
    model: nn.Module,
    example: tuple[Any, ...],
    options: Options,
    memory: float | None = None,
    *,
    to_be_made: bool = False,
    numbers: bool = False,
) -> Read:
    """Read and merge a network; with numbers, its run keeps every value of two examples."""
    with memory_explained():
        run = _run(model, example, memory, numbers=numbers)
        original = _program(run, options.max_pool, memory)
        if to_be_made:
            check_least(original, like(model, example[0]).dtype.itemsize, memory)
        return Read(run, programs_of(original, options))


def like(model: nn.Module, x: Tensor) -> Tensor:
    """Return what says dtype and device of the FC layers: a parameter of the model, or an input."""
    return next((p for p in model.parameters() if p.is_floating_point()), x)


# Reading ------------------------------------------------------------------------------------------


def _run(
    model: nn.Module, example: tuple[Any, ...], memory: float | None, *, numbers: bool
) -> Trace:
    """Run a model in evaluation mode on an example, and note its calls."""
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
    _check(model)
    found = trace_of_two(model, example[0], "example", numbers=numbers)
    _check_memory(found, memory)
    return found


def _program(found: Trace, max_pool: str, memory: float | None) -> Program:
    """Follow the calls of a trace with values."""
    x = found.tensors[0]
    start = Input(x[0].numel())
    values: dict[int, Any] = {0: Tracked(start, tuple(x.shape[1:]))}
    places: dict[Value, str] = {start: "the input"}
    tensors: dict[Value, int] = {start: 0}
    for call in found.calls:

        def value(one: Any, call: Call = call) -> Any:
            if not isinstance(one, Ref):
                return one
            if values[one.number] is None:
                raise refuse(f"{call.words} asks for more than the first result", call.place)
            if isinstance(values[one.number], Condition) and call.name != "where":
                raise refuse(f"{call.words} computes with a condition", call.place)
            return values[one.number]

        args, kwargs = call.arguments(value)
        refs = _refs(call.result)
        given = next(found.tensors[one.number] for one in _refs((call.args, call.kwargs)))
        real = tree_map(lambda one: found.tensors[one.number], call.result)
        step = Step(call, given, real, max_pool, memory)
        if call.name not in OPERATIONS:
            raise refuse(f"{call.words} is not known to be affine or an activation", call.place)
        call.check_constants()
        results = tree_leaves(OPERATIONS[call.name](step, *args, **kwargs))
        for ref, result in zip(refs, results, strict=True):
            like = found.tensors[ref.number]
            values[ref.number] = made = (
                Tracked(result, tuple(like.shape[1:])) if isinstance(result, Value) else result
            )
            if isinstance(made, Tracked):
                _check_result(call, like, made)
                places.setdefault(made.value, call.label)
                tensors.setdefault(made.value, ref.number)
    end = values.get(found.output.number) if isinstance(found.output, Ref) else None
    if not isinstance(end, Tracked):
        raise UnsupportedModel(
            "it does not return one tensor that depends on its input",
            where="model",
            expected="one tensor",
            got=type(found.output).__name__,
            remedy="wrap it in a module that returns the one tensor",
        )
    shapes = tuple(x.shape[1:]), end.shape
    return Program(start, end.value, *shapes, places, tensors, found.signature)


def _refs(tree: Any) -> list[Ref]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Ref)]


def _check_result(call: Call, like: Tensor, result: Tracked) -> None:
    """Compare a value with what PyTorch returned."""
    shape = tuple(like.shape)
    if shape[:1] != (2,) or shape[1:] != result.shape or like[0].numel() != result.value.size:
        raise refuse(f"{call.words} does not treat each example of a batch by itself", call.place)


def _check(model: nn.Module) -> None:
    """Refuse lazy parts, what evaluation mode would silently change, and hooks."""
    check_can_run(model, "example")
    for name, module in model.named_modules():
        if module._forward_hooks or has_pre_hooks(module):
            raise refuse(
                "hooks run around its calls, and may change what it computes",
                name or "model",
                "remove them (torch.nn.utils.remove_weight_norm, remove_spectral_norm, "
                "prune.remove, or handle.remove())",
            )
        if module.training and isinstance(module, BY_MODE):
            raise UnsupportedModel(
                f"a {type(module).__name__} in training mode computes something else for every "
                "batch; what is simplified is the model in evaluation mode",
                where=name or "model",
                remedy="call model.eval() first",
            )


def _check_memory(found: Trace, memory: float | None) -> None:
    """Refuse matrices that do not fit together, before the first of them is made."""
    estimates: dict[str, MatrixEstimate] = {}
    for call in found.calls:
        first = _refs((call.args, call.kwargs))[0]
        size = estimate(call, found.tensors[first.number])
        if size is not None:
            place = call.place
            again = f", called as {len(estimates)}" if place in estimates else ""
            estimates[place + again] = size
    check_together(
        estimates,
        memory,
        what="the matrices that the network is made of",
        remedy="a smaller example, or simplify a part of the network only; convfc.to_fc needs no "
        "such matrices",
    )


def _words(example: Any) -> str:
    kinds = [tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in example]
    return ", ".join(map(str, kinds)) or "nothing"
