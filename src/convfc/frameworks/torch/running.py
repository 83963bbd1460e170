"""Running a user's model, which is left as it was: copies, modes, random numbers, calls."""

from __future__ import annotations

import contextlib
import copy
import copyreg
import random
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from inspect import signature
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map

from convfc.comparing import bits_of, first_words, words
from convfc.errors import ConvfcError, RunError, ShapeError, UnsupportedLayer, UnsupportedModel
from convfc.registry import ITSELF

_Module = TypeVar("_Module", bound=nn.Module)
_ATOMS = (bool, int, float, str, type(None))
_CONTAINERS = (OrderedDict, dict, set)
_COPYING = ("__new__", "__reduce__", "__reduce_ex__", "__getstate__")


def deep_copy(
    model: _Module,
    copies: dict[int, Any] | None = None,
    remedy: str = "keep no tensors of a graph in its attributes",
) -> _Module:
    """Return a deep copy of a module; ``copies`` receives that of everything inside, by ``id``."""
    memo = {} if copies is None else copies
    for part in model.modules():
        for name in _computed_before_calls(part):
            value = vars(part).get(name)  # of a graph, which PyTorch does not copy
            if isinstance(value, Tensor):
                memo.setdefault(id(value), value.detach().clone())
    try:
        _copy_modules(model, memo)
        return copy.deepcopy(model, memo)
    except (RuntimeError, TypeError) as error:
        raise UnsupportedModel(
            f"the model cannot be copied ({words(error)})",
            where=type(model).__name__,
            remedy=remedy,
        ) from error


def _computed_before_calls(part: nn.Module) -> Iterator[str]:
    """Yield the tensors that a hook computes before every call: weight norm's, and pruning's."""
    for hook in part._forward_pre_hooks.values():
        for attribute in ("name", "_tensor_name"):
            if isinstance(name := getattr(hook, attribute, None), str):
                yield name


def _copy_modules(model: nn.Module, memo: dict[int, Any]) -> None:
    """Copy all parts of a model into deepcopy's memo, if all are copied as `nn.Module` says.

    What `copy.deepcopy` would do, in a fifth of the time: a module has two dozen attributes, most
    of them flags, and dicts of hooks that are empty.
    """
    everything = list(model.modules())
    parts = [part for part in everything if id(part) not in memo]
    if not all(map(_copies_plainly, parts)):
        return
    for part in parts:  # all of them first: they may hold each other in circles
        memo[id(part)] = object.__new__(type(part))

    def copied(value: Any) -> Any:
        kind = type(value)
        if kind in _ATOMS or (kind is tuple and all(type(one) in _ATOMS for one in value)):
            return value
        if kind in _CONTAINERS and not value:
            return memo.setdefault(id(value), kind())
        return copy.deepcopy(value, memo)

    for part in parts:
        for own in (part._parameters, part._buffers, part._modules):
            if type(own) is dict and id(own) not in memo:
                memo[id(own)] = {key: copied(one) for key, one in own.items()}
        state: dict[str, Any] = part.__getstate__()
        memo[id(part)].__setstate__({name: copied(value) for name, value in state.items()})


def _copies_plainly(part: nn.Module) -> bool:
    """Say whether nothing of a module's own has a say in how it is copied."""
    cls = type(part)
    return (
        all(getattr(cls, name) is getattr(nn.Module, name) for name in _COPYING)
        and cls.__setstate__ in (nn.Module.__setstate__, _ConvNd.__setstate__)
        and not hasattr(part, "__deepcopy__")
        and cls not in copyreg.dispatch_table
        and not any("__slots__" in vars(base) for base in cls.__mro__)
    )


@contextlib.contextmanager
def in_mode(model: nn.Module, training: Callable[[nn.Module], bool]) -> Iterator[None]:
    """Put every part of a model in training mode or not, as the function says, and back."""
    modes = [(part, part.training) for part in model.modules()]
    try:
        for part, _ in modes:
            part.training = training(part)
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextlib.contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Put models in evaluation mode for a while, without gradients."""
    with contextlib.ExitStack() as stack:
        for model in models:
            stack.enter_context(in_mode(model, lambda _: False))
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.no_grad())
        yield


class RandomState:
    """The state of every random number generator that a call on these tensors may draw from."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.devices = {t.device for t in tensors if t.device.type not in ("cpu", "meta")}
        self._python, self._cpu = random.getstate(), torch.get_rng_state()
        self._others = [(d, torch.get_device_module(d).get_rng_state(d)) for d in self.devices]

    def restore(self) -> None:
        """Put the generators back."""
        random.setstate(self._python)
        torch.set_rng_state(self._cpu)
        for device, state in self._others:
            torch.get_device_module(device).set_rng_state(state, device)


@contextlib.contextmanager
def random_numbers(tensors: Iterable[Tensor], seed: int | None = None) -> Iterator[RandomState]:
    """Draw inside, from a seed if one is given, and leave the generators as they were."""
    state = RandomState(tensors)
    try:
        if seed is not None:
            torch.manual_seed(seed)
        yield state
    finally:
        state.restore()


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Let a model be run or asked in a block, in evaluation mode, and leave it as it was.

    Its buffers are copies meanwhile; what forward keeps elsewhere is not known here.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
            # A compiled forward calls no functions of torch that a mode could see.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(random_numbers((*model.parameters(), *model.buffers())))
        copies: dict[int, Tensor] = {}
        for registry in [module._buffers for module in model.modules()]:
            for name, tensor in list(registry.items()):
                stack.callback(registry.__setitem__, name, tensor)
                if tensor is not None and not is_lazy(tensor):
                    registry[name] = copies.setdefault(id(tensor), tensor.clone())
        stack.enter_context(in_mode(model, lambda _: False))
        yield


def check_can_run(model: nn.Module, given: str) -> None:
    """Refuse a model with lazy parts, whose weights a run would make."""
    for name, module in model.named_modules():
        tensors = (*module._parameters.values(), *module._buffers.values())
        if any(map(is_lazy, tensors)):
            raise UnsupportedLayer(
                "it is lazy, and running the model would give it weights",
                where=name or "the model itself",
                remedy="run the model yourself once"
                + ("; or inspect it without an input" if given == "x" else ""),
            )


def run_on(model: nn.Module, x: Any, where: str) -> None:
    """Call the model on an input; arrays become tensors as the model has them."""
    args, kwargs = call_arguments(model, x)
    call_model(model, args, kwargs, where)


def layer_input(model: nn.Module, name: str, x: Any) -> Tensor:
    """Run a model once, in evaluation mode, and return what a part of it is first called with."""
    seen: list[Any] = []
    with unchanged(model):
        check_can_run(model, "x")
        hook = model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, kwargs: seen.extend([*args, *kwargs.values()][:1]), with_kwargs=True
        )
        try:
            run_on(model, x, "x")
        finally:
            hook.remove()
    if not seen or not isinstance(seen[0], Tensor):
        raise UnsupportedLayer(
            "the model does not call it with a tensor on this input",
            where=name or "the model itself",
            remedy="choose another layer; convfc inspect lists those that are called",
        )
    return seen[0].detach()


def check_module(model: object, where: str = "model") -> None:
    """Refuse what is no model of PyTorch, before it is asked for its parts."""
    if not isinstance(model, nn.Module):
        raise UnsupportedModel(
            "this is for models of PyTorch",
            where=where,
            expected="a torch.nn.Module",
            got=f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__,
            remedy=ITSELF,
        )


def check_compiler() -> None:
    """Refuse what imports PyTorch's compiler where that would end the process.

    It imports triton, which crashes after TensorFlow (3.8 after 2.21), and not before.
    """
    if "tensorflow" in sys.modules and "triton" not in sys.modules and find_spec("triton"):
        raise RunError(
            "TensorFlow is imported already; triton, which PyTorch needs for this, would crash",
            where="triton",
            remedy="import triton before TensorFlow, or use another process",
        )


def check_has_numbers(model: nn.Module, where: str) -> None:
    """Refuse a model on the meta device, whose tensors are shapes, before its numbers are read."""
    check_module(model, where)
    for place, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise UnsupportedModel(
                f"the model is on the meta device, where {place} has a shape and no numbers",
                where=where,
                remedy="load its weights first: model.to_empty(device='cpu') and load_state_dict, "
                "or load_state_dict(..., assign=True)",
            )


def call_arguments(model: nn.Module, x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what a user gives as an input as the arguments of one call of a model."""
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))

    def tensor(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        made = torch.as_tensor(value, device=like.device)
        return made.to(like.dtype) if made.is_floating_point() else made

    if isinstance(x, Mapping):
        return (), {name: tree_map(tensor, value) for name, value in x.items()}
    return tuple(tree_map(tensor, value) for value in (x if isinstance(x, tuple) else (x,))), {}


def positional_arguments(model: nn.Module, x: Any) -> tuple[Any, ...]:
    """Return the arguments of one call, as `call_arguments` reads them, without their names."""
    args, kwargs = call_arguments(model, x)
    try:
        bound = signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise ShapeError(
            f"the model does not take these arguments: {first_words(error)}",
            where="example",
            got=", ".join((*(type(value).__name__ for value in args), *kwargs)) or "nothing",
            remedy="give an input that the model takes: a tuple for several arguments, a dict for "
            "keyword arguments",
        ) from error
    return bound.args


def call_model(
    call: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], where: str
) -> Any:
    """Return what a model returns; what it raises is said in words, with the way out."""
    try:
        return call(*args, **kwargs)
    except (
        RuntimeError,
        TypeError,
        ValueError,
        LookupError,
        AttributeError,
        AssertionError,
    ) as error:
        if isinstance(error, ConvfcError):
            raise
        shapes = (
            tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__
            for v in (*args, *kwargs.values())
        )
        raise ShapeError(
            f"the model does not run on this input: {first_words(error) or type(error).__name__}",
            where=where,
            got=", ".join(map(str, shapes)),
            remedy="give an input that the model takes: a tuple for several arguments, a dict for "
            "keyword arguments",
        ) from error


def sum_of_bits(t: Tensor) -> Tensor:
    """Return a number that is another one, most likely, when the tensor has been changed."""
    bits: Tensor = bits_of(t)
    bits = bits.flatten()
    whole = bits.nbytes % 8 == 0 and bits.storage_offset() == 0  # fewer numbers are faster
    return (bits.view(torch.int64) if whole else bits).sum()
