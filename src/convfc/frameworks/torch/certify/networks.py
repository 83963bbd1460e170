"""Two networks as wholes: their outputs, and everything that was not to change."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from convfc.certificate import LayerCertificate, NetworkCertificate, OutputComparison
from convfc.comparing import (
    compare,
    describe,
    dtype_name,
    same_bits,
    strides_of,
    wide,
    words,
)
from convfc.errors import ShapeError
from convfc.frameworks.torch.certify.pairs import HeadConv, Pairs, cast
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
from convfc.measure import Call, Numbers, Sides, measure
from convfc.rounding import UNIT_ROUNDOFF


class Runner:
    """Runs copies of networks on one input, each time from the same random numbers."""

    def __init__(self, models: tuple[nn.Module, ...], x: Any) -> None:
        self.args, self.kwargs = call_arguments(models[0], x)
        given = [t for t in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(t, Tensor)]
        own = [t for model in models for t in (*model.parameters(), *model.buffers())]
        self.tensors = [*given, *own]
        self.random = RandomState(self.tensors)
        self.shared: set[int] = set()  # models that run in no other numbers, by id
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

    def dtypes(self, model: nn.Module) -> set[torch.dtype]:
        """Return the dtypes, of numbers that are not integers, of a model and of the input."""
        tensors = [*model.parameters(), *model.buffers()]
        tensors += [
            t for t in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(t, Tensor)
        ]
        return {t.dtype for t in tensors if t.is_floating_point() or t.is_complex()}

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Run without autocast, inference mode and warnings, and put the random numbers back.

        The networks give their warnings when their owner runs them.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(random_numbers(self.tensors))
            stack.enter_context(torch.inference_mode(mode=False))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            for device_type in {"cpu", *(device.type for device in self.random.devices)}:
                stack.enter_context(torch.autocast(device_type, enabled=False))
            yield


class Compared(Protocol):
    """A part of a network that is compared by itself, whenever it is called."""

    @property
    def called(self) -> nn.Module:
        """The part of the first network."""

    def on(self, call: Call) -> Sequence[Sides]:
        """Return it on one input, for `measure`: as one or, by the convolutions in it, several."""


def measure_calls(
    model: nn.Module, parts: Sequence[Compared], run: Runner, seed: int
) -> tuple[Any, list[list[LayerCertificate]]]:
    """Run a copy of a network once; at each call of a part, compare it on the spot.

    So no more than one layer's input is kept at a time. Returned are the network's output, and the
    certificates of each part, one per call.
    """
    found: list[list[LayerCertificate]] = [[] for _ in parts]
    failed: list[Exception] = []

    def compare(certificates: list[LayerCertificate], part: Compared) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = _call(args, kwargs, len(certificates))
            try:
                with random_numbers(run.tensors):
                    if call is not None:
                        certificates.extend(measure(one, seed=seed) for one in part.on(call))
            except Exception as error:
                failed.append(error)
                raise

        return hook

    def watch(copies: dict[int, Any]) -> None:
        for certificates, part in zip(found, parts, strict=True):
            hook = compare(certificates, part)
            copies[id(part.called)].register_forward_pre_hook(hook, with_kwargs=True)

    try:
        return run(model, prepare=watch), found
    except ShapeError:
        if failed:  # the comparison's own error, which says nothing of the input
            raise failed[0] from None
        raise


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


def compare_networks(
    before: nn.Module,
    after: nn.Module,
    ours: Any,
    found: Pairs,
    run: Runner,
    *,
    again: tuple[nn.Module, list[str]] | None = None,
) -> NetworkCertificate:
    """Compare the outputs of two networks, and their parameters and buffers outside the pairs.

    ``ours`` is what the first network returns. ``again`` is, for a second network whose weights are
    rounded products, the same one in float64, and what is known to differ between the two.
    """
    if again is None:
        errors, notes = _other_tensors(before, after, found.places, run.same)
        exact = after
    else:
        (exact, errors), notes = again, []
    dtypes = run.dtypes(before)
    first = _leaves(ours)
    second = _tried(run, after, None, "the second network", errors)
    in_double = {torch.float64, torch.complex128}
    first64: dict[str, Any] | None = first
    if not dtypes <= in_double:
        first64 = _tried(run, before, wide, "in float64, the first network", notes)
    second64 = second
    if first64 is None or second is None:
        second64 = None
    elif exact is not after or not run.dtypes(after) <= in_double:
        second64 = _tried(run, exact, wide, "in float64, only the second network", errors)
    rounded: dict[str, Any] | None = first
    rounded_to = max(map(dtype_name, dtypes), key=_roundoff, default="float32")
    if dtypes <= in_double:
        rounded_to = "float32"
        rounded = _tried(run, before, _narrow, "in float32, the first network", notes)
    heads = any(isinstance(pair.after, HeadConv) for pair in found.pairs)
    outputs = []
    for path, value in first.items() if second is not None else ():
        other = _at(second, path)
        if not isinstance(value, Tensor) or not isinstance(other, Tensor):
            errors += _other_values(path, value, other)
            continue
        if describe(value) != describe(other):
            if not heads or value.squeeze().shape != other.squeeze().shape:
                errors.append(f"output{path}; expected {describe(value)}, got {describe(other)}")
                continue
            notes.append(f"output{path} has another shape: {describe(value)}, {describe(other)}")
        elif strides_of(value) != strides_of(other):
            notes.append(f"output{path} has strides {value.stride()}, then {other.stride()}")
        difference = compare(value, other.reshape(value.shape), None)["difference"]
        size = float(wide(value).abs().nan_to_num().max()) if value.numel() else 0.0
        outputs.append(
            OutputComparison(
                path,
                dtype_name(value.dtype),
                difference,
                difference / size if size else difference,
                _distance(_at(first64, path), _at(second64, path)),
                _distance(_at(first64, path), _at(rounded, path)),
                rounded_to,
            )
        )
    more = (second or first).keys() - first.keys()
    errors += [f"output{path}; expected none, got one" for path in sorted(more)]
    if not outputs and not errors:
        errors.append("expected tensors among the outputs, got none")
    return NetworkCertificate(tuple(outputs), tuple(errors), tuple(notes))


def _tried(
    run: Runner, model: nn.Module, numbers: Numbers | None, who: str, findings: list[str]
) -> dict[str, Any] | None:
    """Return the outputs of a network; if it fails, that is a finding."""
    try:
        return _leaves(run(model, numbers))
    except Exception as error:
        cause = error.__cause__ if isinstance(error, ShapeError) else None
        raised = cause if isinstance(cause, Exception) else error  # no remedy: the input is right
        findings.append(f"{who} fails; expected an output, got {words(raised)}")
        return None


def _leaves(output: Any) -> dict[str, Any]:
    """Return all parts of nested tuples, lists and mappings by their place in them."""
    leaves, _ = pytree.tree_flatten_with_path(output)
    return {pytree.keystr(path): leaf for path, leaf in leaves}


def _at(leaves: dict[str, Any] | None, path: str) -> Any:
    return None if leaves is None else leaves.get(path)


def _distance(ours: Any, theirs: Any) -> float | None:
    """Return the largest difference of two outputs; None if one of them is not there."""
    if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor):
        return None
    if ours.numel() != theirs.numel():
        return None
    distance: float = compare(ours, theirs.reshape(ours.shape), None)["difference"]
    return distance


def _other_values(path: str, ours: Any, theirs: Any) -> list[str]:
    """Compare what is not a tensor, as far as it can be compared."""
    if type(ours) is not type(theirs):
        kinds = type(ours).__name__, type(theirs).__name__
        return [f"output{path}; expected {kinds[0]}, got {kinds[1]}"]
    if isinstance(ours, (str, int, float, type(None))):
        return [] if ours == theirs else [f"output{path}; expected {ours!r}, got {theirs!r}"]
    remedy = "register the class with torch.utils._pytree, or return a tuple or a dict"
    return [f"output{path} is a {type(ours).__name__}, whose tensors are not seen; {remedy}"]


def _other_tensors(
    before: nn.Module, after: nn.Module, places: set[str], same: dict[int, nn.Parameter]
) -> tuple[list[str], list[str]]:
    """Compare all parameters and buffers that belong to no pair, bit by bit.

    ``same`` receives the first network's parameter for each of the second that has its bits.
    """
    errors, notes = [], []
    ours, theirs = (_tensors(model, places) for model in (before, after))
    for name in ours | theirs:
        mine, other = ours.get(name), theirs.get(name)
        if mine is None or other is None or describe(mine) != describe(other):
            errors.append(f"{name}; expected {describe(mine)}, got {describe(other)}")
        elif not same_bits(mine, other):
            away = compare(mine, other, None)["difference"]
            errors.append(f"{name}; expected the same bits, got others, {away:.3g} away")
        elif strides_of(mine) != strides_of(other):
            notes.append(f"{name} has strides {mine.stride()}, then {other.stride()}")
        elif type(mine) is type(other) is nn.Parameter:
            same[id(other)] = mine
    return errors, notes


def _tensors(model: nn.Module, places: set[str]) -> dict[str, Tensor]:
    """Return parameters and buffers by name, without those inside these places."""

    def outside(name: str) -> bool:
        parts = name.split(".")[:-1]
        return not any(".".join(parts[:depth]) in places for depth in range(len(parts) + 1))

    everything = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    return {name: tensor for name, tensor in everything if outside(name)}


def _narrow(t: Tensor) -> Tensor:
    return t.to(torch.complex64 if t.is_complex() else torch.float32)


def _roundoff(dtype: str) -> float:
    return UNIT_ROUNDOFF.get(dtype, 0.0)
