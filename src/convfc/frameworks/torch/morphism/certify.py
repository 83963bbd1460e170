"""The certificate of a morph: each changed layer on its own input, and the networks as wholes.

A changed layer is compared with the layer that it was made from, on the input which that one really
receives: in its own dtype and, made again from the old layer's numbers, in float64, element by
element against ``2 * gamma_n * B``. B and n are those of the longer of the two chains (see
`magnitude`). On integers, which the new layer's weights divide, there is no rounding and all has to
be the same.

Both networks run in evaluation mode, where morphs hold. In training, batch normalisation uses the
statistics of the batch, and a dropout draws for each unit by itself, also for two that are copies.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import product
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from convfc.certificate import Certificate, Comparison, ExactTest, LayerCertificate
from convfc.frameworks.torch.certify.measures import Call, cast, integers_of
from convfc.frameworks.torch.certify.networks import Runner, compare_networks
from convfc.frameworks.torch.certify.pairs import Pairs, has_own_weights, word_for
from convfc.frameworks.torch.held import exchange
from convfc.frameworks.torch.morphism.magnitude import Sums, magnitude
from convfc.frameworks.torch.places import places as all_places
from convfc.frameworks.torch.running import deep_copy, evaluating, random_numbers
from convfc.frameworks.torch.tensors import (
    compare,
    describe,
    dtype_name,
    not_finite,
    overflows,
    same_bits,
    wide,
    words,
)
from convfc.frameworks.torch.vocabulary import BY_MODE
from convfc.rounding import exact_limit, rounding_bound

__all__ = ["Change", "certify"]

_MODE = (
    "compared in evaluation mode; in training, BatchNorm uses the statistics of the batch and "
    "Dropout draws for every unit, copy or not"
)


@dataclass(frozen=True, eq=False)
class Change:
    """One layer, or chain of layers, before and after a morph.

    Parameters
    ----------
    name : str
        Its place in the model before; empty for a model that is the layer itself.
    before, after : nn.Module
        Parts of the two models, where they stand.
    spread_input, spread_output : callable, optional
        What the new layer's input is, given the old layer's input; and what its output has to be,
        given the old layer's output. None: the same.
    rebuild : callable, optional
        Makes the new layer again, from an old layer with other numbers or another dtype.
    keep_output : callable, optional
        Which part of the new layer's output is compared, if there is more in it than was before.
    divides : Tensor or int
        By what ``rebuild`` divides the old layer's weight; a tensor that broadcasts with it.
    form : str
        What the layer has become, in a word; what it is by default.
    why_no_integers : str
        Why there is no test on integers, if there is none.
    """

    name: str
    before: nn.Module
    after: nn.Module
    spread_input: Callable[[Tensor], Tensor] | None = None
    spread_output: Callable[[Tensor], Tensor] | None = None
    rebuild: Callable[[nn.Module], nn.Module] | None = None
    keep_output: Callable[[Tensor], Tensor] | None = None
    divides: Tensor | int = 1
    form: str = ""
    why_no_integers: str = ""

    def again(self, before: nn.Module) -> nn.Module:
        """Return the new layer as it is made of this old one, in evaluation mode."""
        if self.rebuild is None:
            return cast(deep_copy(self.after), wide).eval()
        return self.rebuild(before).eval()


def certify(
    before: nn.Module,
    after: nn.Module,
    example: Any,
    changes: Sequence[Change],
    *,
    seed: int = 0,
    others: Mapping[str, str] = MappingProxyType({}),
    held: Collection[str] = (),
) -> Certificate:
    """Compare a model with what a morph has made of it.

    Parameters
    ----------
    before, after : nn.Module
        They are run as copies, in evaluation mode.
    example : Tensor, tuple or mapping
        One input, or the positional or keyword arguments of a call.
    changes : sequence of Change
    seed : int
        Of the integers.
    others : mapping
        Places of parts that have changed and cannot be compared by themselves, with the reasons.
    held : collection of str
        Names of parameters and buffers that have changed and belong to no layer.

    Returns
    -------
    Certificate
        Of every change, at every call; and of the networks as wholes.
    """
    run = _Runner(before, after, example, changes)
    with ExitStack() as stack:
        stack.enter_context(evaluating(before))
        stack.enter_context(evaluating(after))
        stack.enter_context(run.undisturbed())
        layers, output = _measured(before, changes, run, seed)
        changed = {id(before.get_submodule(name)) for name in others}
        changed |= {id(change.before) for change in changes}
        around = {name.rpartition(".")[0] for name in held}
        places = {name for name, part in all_places(before).items() if id(part) in changed}
        found = Pairs(places=places | around)
        network = compare_networks(before, after, output, found, run)
    errors = [*network.errors, *_beside(before, after, held, places)]
    notes = [*network.notes, *(f"{name}: not compared, as {why}" for name, why in others.items())]
    notes += [f"{name}: compared as a part of the network only" for name in held]
    if any(isinstance(part, BY_MODE) and part.training for part in before.modules()):
        notes.append(_MODE)
    network = replace(network, errors=tuple(errors), notes=tuple(notes))
    return Certificate(tuple(layers), network, framework=f"torch {torch.__version__}", seed=seed)


class _Runner(Runner):
    """Runs the second network, when it is asked for in float64, with its layers made in float64.

    Their weights may have been rounded to their own dtype, which is no property of the morph.
    """

    def __init__(
        self, before: nn.Module, after: nn.Module, example: Any, changes: Sequence[Change]
    ) -> None:
        super().__init__((before, after), example)
        self.after, self.changes = after, changes

    def __call__(
        self,
        model: nn.Module,
        change: Callable[[Tensor], Tensor] | None = None,
        prepare: Callable[[dict[int, Any]], None] | None = None,
    ) -> Any:
        if model is self.after and change is wide:
            model = self._made_in_double()
        return super().__call__(model, change, prepare)

    def _made_in_double(self) -> nn.Module:
        twins: dict[int, Any] = {}
        model = cast(deep_copy(self.after, twins), wide)
        new = {
            id(twins[id(change.after)]): change.again(cast(deep_copy(change.before), wide))
            for change in self.changes
            if change.rebuild is not None
        }
        return exchange(model, new)


def _beside(
    before: nn.Module, after: nn.Module, held: Collection[str], places: Collection[str]
) -> Iterator[str]:
    """Compare what stands beside a changed parameter, in the same module and below, bit by bit."""
    for name in {name.rpartition(".")[0] for name in held}:
        ours, theirs = (
            dict(m.get_submodule(name).state_dict(prefix=name and name + "."))
            for m in (before, after)
        )
        for key, value in ours.items():
            inside = any(key.startswith(f"{place}.") for place in places)
            if key not in held and not inside and not same_bits(value, theirs[key]):
                yield f"{key}; expected the same bits, got others"


def _measured(
    model: nn.Module, changes: Sequence[Change], run: Runner, seed: int
) -> tuple[list[LayerCertificate], Any]:
    """Run a copy of the first network; at each call of a changed layer, compare on the spot."""
    made: dict[int, list[LayerCertificate]] = {id(change): [] for change in changes}

    def compare_on(change: Change) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not args or not isinstance(args[0], Tensor):
                return
            found = made[id(change)]
            call = Call(args[0].detach(), args[1:], kwargs, number=len(found))
            with random_numbers(run.tensors):
                found.append(_Measurement(change, call, seed).certificate())

        return hook

    def watch(twins: dict[int, Any]) -> None:
        for change in changes:
            twins[id(change.before)].register_forward_pre_hook(compare_on(change), with_kwargs=True)

    output = run(model, prepare=watch)
    not_called = "it is not called with a tensor; expected a call on this input, got none"
    for change in changes:
        if not made[id(change)]:
            made[id(change)].append(
                LayerCertificate(change.name, _forms(change), errors=(not_called,))
            )
    return [one for change in changes for one in made[id(change)]], output


def _forms(change: Change) -> tuple[str, str]:
    return word_for(change.before), change.form or word_for(change.after)


class _Measurement:
    """One change on one input."""

    def __init__(self, change: Change, call: Call, seed: int) -> None:
        self.change, self.call = change, call
        self.generator = torch.Generator().manual_seed(seed)
        self.errors: list[str] = []

    def certificate(self) -> LayerCertificate:
        """Run everything; what fails is a finding, not an accident."""
        change, dtype = self.change, self.call.x.dtype
        own: dict[str, Comparison] = {}
        double: dict[str, Comparison] = {}
        exact = ExactTest(why_not="not run")
        m: tuple[int, ...] = ()
        try:
            y, own = self._compare(change.before, change.after, self.call.x)
            m = _patch_matrix(change.after, y)
            double = own
            if wide(self.call.x[:0]).dtype != dtype or change.rebuild is not None:
                before = cast(deep_copy(change.before), wide)
                _, double = self._compare(before, change.again(before), wide(self.call.x))
            exact = self._exact()
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            self.errors.append(f"its comparison fails; expected outputs, got {words(error)}")
        return LayerCertificate(
            name=change.name,
            forms=_forms(change),
            patch_matrix=m,
            filter_matrix=(m[-1], _filters(change.after)) if m else (),
            dtype=dtype_name(dtype),
            call=self.call.number,
            own=own,
            float64=double,
            exact=exact,
            errors=tuple(dict.fromkeys(self.errors)),
        )

    def _compare(
        self, before: nn.Module, after: nn.Module, x: Tensor
    ) -> tuple[Tensor, dict[str, Comparison]]:
        """Compare the outputs of two layers."""
        ours, theirs = self._outputs(before, after, x)
        if describe(ours) != describe(theirs):
            self.errors.append(f"its output; expected {describe(ours)}, got {describe(theirs)}")
            return theirs, {}
        unbounded = not_finite("input", x)
        if unbounded:
            self.errors.append(unbounded)
            return theirs, {}
        sums = self._sums(before, after, x)
        bound = None
        if sums is not None and not overflows(sums.values, x.dtype):
            bound = rounding_bound(sums.values, sums.terms, dtype_name(x.dtype))
        terms = 0 if sums is None else sums.terms
        result = compare(ours, theirs, bound)
        return theirs, {"output": Comparison("output", dtype_name(x.dtype), terms, **result)}

    def _outputs(self, before: nn.Module, after: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the new layer's output has to be, and what it is."""
        ours = _changed(self.change.spread_output, self.call(before, x))
        theirs = self.call(after, _changed(self.change.spread_input, x))
        return ours, _changed(self.change.keep_output, theirs)

    def _sums(self, before: nn.Module, after: nn.Module, x: Tensor) -> Sums | None:
        """Return the larger B of both sides, and the larger n; None if one of them has none."""
        caller = self.call.__call__
        ours = magnitude(before, Sums(wide(x).abs()), caller)
        theirs = magnitude(after, Sums(wide(_changed(self.change.spread_input, x)).abs()), caller)
        if ours is None or theirs is None:
            return None
        values = _changed(self.change.spread_output, ours.values)
        others = _changed(self.change.keep_output, theirs.values)
        return Sums(torch.maximum(values, others), max(ours.terms, theirs.terms))

    def _exact(self) -> ExactTest:
        """Compare on integers, in the narrowest dtype in which such sums are exact."""
        change, x = self.change, self.call.x
        parts = [part for side in (change.before, change.after) for part in side.modules()]
        why_not = change.why_no_integers
        if any(isinstance(part, _BatchNorm) for part in parts):
            why_not = "normalisation divides by a square root"
        if change.rebuild is None:
            why_not = "there is no way to make the layer again from integers"
        drawn = torch.randn(x.shape, generator=self.generator, dtype=torch.float64).to(x.device)
        tries = [] if why_not else product(_widening(x.dtype), (256, 64, 16, 4, 1))
        for dtype, largest in tries:
            before = self._integer_layer(largest, dtype)
            after = change.again(before)
            integers = integers_of(drawn, largest).to(dtype)
            sums = self._sums(before, after, integers)
            whole = all(bool((p == p.round()).all()) for p in after.parameters())
            if sums is None or not (whole or change.keep_output is not None):
                why_not = "its weights, made of integers, are no integers"
                break
            if not sums.values.numel() or sums.values.max() <= exact_limit(dtype_name(dtype)):
                same = torch.equal(*self._outputs(before, after, integers))
                return ExactTest(dtype_name(dtype), () if same else ("output",))
        return ExactTest(why_not=why_not or "its sums are too long to be exact in float64")

    def _integer_layer(self, largest: int, dtype: torch.dtype) -> nn.Module:
        """Return the old layer with integers as its numbers, its weight to be divided."""
        layer = cast(
            deep_copy(self.change.before), lambda t: integers_of(wide(t), largest).to(dtype)
        )
        weight = layer._parameters.get("weight")
        if weight is not None:
            with torch.no_grad():
                weight.mul_(torch.as_tensor(self.change.divides, device=weight.device).to(dtype))
        return layer


def _changed(change: Callable[[Tensor], Tensor] | None, t: Tensor) -> Tensor:
    return t if change is None else change(t)


def _widening(dtype: torch.dtype) -> list[torch.dtype]:
    """Return a dtype and the wider ones."""
    wider = [kind for kind in (torch.float32, torch.float64) if kind.itemsize > dtype.itemsize]
    return [dtype, *wider]


def _filters(layer: nn.Module) -> int:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    groups: Any = getattr(layer, "groups", 1)
    return weight.shape[1] * groups if getattr(layer, "transposed", False) else weight.shape[0]


def _patch_matrix(layer: nn.Module, y: Tensor) -> tuple[int, ...]:
    """Return the shape (b, L, k) of M, if it is one layer of weights that made this output."""
    if not has_own_weights(layer) or not y.numel():
        return ()
    weight: Tensor = layer.weight  # type: ignore[assignment]
    spatial = max(weight.dim() - 2, 0)
    filters = _filters(layer)
    rows = y.shape[y.dim() - spatial :].numel() if spatial else 1
    return (y.numel() // (rows * filters) or 1, rows, weight.numel() // filters)
