"""Networks of PyTorch side by side: copies that run on one input, and the calls of their layers."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from convfc.certificate import LayerCertificate
from convfc.comparing import dtype_name, is_floating
from convfc.errors import ShapeError
from convfc.frameworks.torch.certify.pairs import cast
from convfc.frameworks.torch.forms.form import form_of
from convfc.frameworks.torch.forms.patch import by_matrix
from convfc.frameworks.torch.running import (
    RandomState,
    call_arguments,
    call_model,
    deep_copy,
    random_numbers,
    sum_of_bits,
)
from convfc.measure import Call, Numbers, measure
from convfc.networks import Networks, Pair


class Runner(Networks):
    """Runs copies of two networks on one input, each time from the same random numbers."""

    compares_strides = True

    def __init__(self, before: nn.Module, after: nn.Module, x: Any) -> None:
        self.before, self.after = before, after
        self.args, self.kwargs = call_arguments(before, x)
        given = [t for t in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(t, Tensor)]
        own = [t for one in (before, after) for t in (*one.parameters(), *one.buffers())]
        self.tensors_used = [*given, *own]
        self.random = RandomState(self.tensors_used)
        self.shared = set()
        self.same: dict[int, nn.Parameter] = {}  # by id, a parameter of the same bits
        self._made: dict[tuple[int, Numbers | None], tuple[nn.Parameter, Tensor]] = {}

    def copy(self, model: nn.Module, numbers: Numbers | None, copies: dict[int, Any]) -> nn.Module:
        """Return a copy, with other numbers if some are asked for; `deep_copy` says ``copies``.

        All copies share their parameters, which are not the model's.
        """
        shared = id(model) in self.shared
        # An unrolled matrix has other numbers than its filters, of which `cast` makes it again.
        plain = not any(form_of(part) == "unrolled" for part in model.modules())
        for parameter in model.parameters():
            if type(parameter) is nn.Parameter and (shared or plain or numbers is None):
                made = parameter if shared else self._in(numbers, parameter)
                copies.setdefault(id(parameter), made)
        copied = by_matrix(deep_copy(model, copies))
        return copied if numbers is None or shared else cast(copied, numbers)

    def _in(self, numbers: Numbers | None, parameter: nn.Parameter) -> nn.Parameter:
        """Return a parameter in other numbers, made once, unless a forward has written into it."""
        parameter = self.same.get(id(parameter), parameter)
        key = id(parameter), numbers
        made, known = self._made.get(key, (None, None))
        if made is None or known is None or not torch.equal(sum_of_bits(made), known):
            t = parameter.detach()
            floating = t.is_floating_point() or t.is_complex()
            value = numbers(t) if numbers is not None and floating else t.clone()
            made = nn.Parameter(value, parameter.requires_grad)
            self._made[key] = made, sum_of_bits(made)
        return made

    def __call__(
        self,
        model: nn.Module,
        numbers: Numbers | None = None,
        prepare: Callable[[dict[int, Any]], None] | None = None,
    ) -> Any:
        """Return the output of a copy of the model, perhaps in another dtype.

        ``prepare`` is given the copies of the model's parts by the ``id`` of the parts.
        """
        copies: dict[int, Any] = {}
        copied = self.copy(model, numbers, copies)
        if prepare is not None:
            prepare(copies)

        def own(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            value = value.detach().clone()
            floating = value.is_floating_point() or value.is_complex()
            return value if numbers is None or not floating else numbers(value)

        args, kwargs = pytree.tree_map(own, (self.args, self.kwargs))
        self.random.restore()
        with torch.no_grad():
            return call_model(copied, args, kwargs, "x")

    def measure(
        self, model: nn.Module, pairs: Sequence[Pair], seed: int
    ) -> tuple[Any, list[LayerCertificate]]:
        # On the spot, so that no more than one layer's input is kept at a time.
        found: list[list[LayerCertificate]] = [[] for _ in pairs]
        failed: list[Exception] = []

        def compare(certificates: list[LayerCertificate], pair: Pair) -> Callable[..., None]:
            def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                call = _call(args, kwargs, len(certificates))
                try:
                    with random_numbers(self.tensors_used):
                        if call is not None:
                            certificates.extend(measure(one, seed=seed) for one in pair.on(call))
                except Exception as error:
                    failed.append(error)
                    raise

            return hook

        def watch(copies: dict[int, Any]) -> None:
            for certificates, pair in zip(found, pairs, strict=True):
                hook = compare(certificates, pair)
                copies[id(pair.called)].register_forward_pre_hook(hook, with_kwargs=True)

        try:
            output = self(model, prepare=watch)
        except ShapeError:
            if failed:  # the comparison's own error, which says nothing of the input
                raise failed[0] from None
            raise
        layers = [
            certificates or pair.unreached(seed)
            for pair, certificates in zip(pairs, found, strict=True)
        ]
        return output, list(itertools.chain.from_iterable(layers))

    def leaves(self, output: Any) -> dict[str, Any]:
        leaves, _ = pytree.tree_flatten_with_path(output)
        return {pytree.keystr(path): leaf for path, leaf in leaves}

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        return {
            **dict(model.named_parameters(remove_duplicate=False)),
            **dict(model.named_buffers(remove_duplicate=False)),
        }

    def has_same(self, mine: Tensor, other: Tensor) -> None:
        if type(mine) is type(other) is nn.Parameter:
            self.same[id(other)] = mine

    def dtypes(self, model: nn.Module) -> set[str]:
        tensors = [*model.parameters(), *model.buffers()]
        tensors += [
            t for t in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(t, Tensor)
        ]
        return {dtype_name(t.dtype) for t in tensors if is_floating(t)}

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Run without autocast, inference mode and warnings, and put the random numbers back.

        The networks give their warnings when their owner runs them.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(random_numbers(self.tensors_used))
            stack.enter_context(torch.inference_mode(mode=False))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            for device_type in {"cpu", *(device.type for device in self.random.devices)}:
                stack.enter_context(torch.autocast(device_type, enabled=False))
            yield


def _call(args: tuple[Any, ...], kwargs: dict[str, Any], number: int) -> Call | None:
    """Return a call of a layer, if it is given a tensor."""
    if args:
        return Call(args[0].detach(), args[1:], kwargs, number) if _is_tensor(args[0]) else None
    name = next((name for name, value in kwargs.items() if _is_tensor(value)), None)
    if name is None:
        return None
    rest = {key: value for key, value in kwargs.items() if key != name}
    return Call(kwargs[name].detach(), (), rest, number)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)
