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

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from convfc.certificate import Certificate, LayerCertificate
from convfc.comparing import wide
from convfc.frameworks.torch.certify.networks import Runner
from convfc.frameworks.torch.certify.pairs import cast, matrices_of, word_for
from convfc.frameworks.torch.morphism.magnitude import NORMS, magnitude, sums_of
from convfc.frameworks.torch.morphism.magnitude import Sums as Sum
from convfc.frameworks.torch.places import places as all_places
from convfc.frameworks.torch.running import deep_copy, evaluating
from convfc.frameworks.torch.vocabulary import BY_MODE
from convfc.measure import LARGEST, Call, Numbers, Run, Side, Sides, Sums
from convfc.networks import Pairs, compare_networks

_MODE = (
    "compared in evaluation mode; in training, BatchNorm uses the statistics of the batch and "
    "Dropout draws for every unit, copy or not"
)


@dataclass(frozen=True, eq=False)
class Morph:
    """A network that computes what another one computes, with other layers.

    Parameters
    ----------
    model : nn.Module
        The new network; the one that was given is as before.
    certificate : Certificate
        Whether the two compute the same function, measured on the example.
    what : str
        What was done where, as a sentence without its full stop.
    noise : float
        Relative standard deviation of the noise that was added to break symmetries; 0 for none.
    changed : tuple of str
        The places that changed.
    """

    model: nn.Module
    certificate: Certificate
    what: str
    noise: float = 0.0
    changed: tuple[str, ...] = ()

    def __str__(self) -> str:
        noise = f"noise of {self.noise:g} of the weights' standard deviation was added"
        lines = (self.what + ".", *([f"Symmetry breaking: {noise}."] if self.noise else []))
        return "\n".join((*lines, str(self.certificate)))

    __repr__ = __str__


def _same(t: Tensor) -> Tensor:
    return t


@dataclass(frozen=True, eq=False)
class Change:
    """One layer, or chain of layers, before and after a morph, where they stand in the two models.

    ``rebuild`` makes the new layer again, from an old layer with other numbers or another dtype; it
    divides the weight by ``divides``, which broadcasts with it. ``spread_input`` makes the new
    layer's input of the old one's, ``spread_output`` what its output has to be; ``keep_output`` is
    the part of it that is compared. ``form`` says in a word what the layer has become. ``alike``
    makes of a layer that theory does not know one of `torch.nn` that computes the same.
    """

    name: str
    before: nn.Module
    after: nn.Module
    rebuild: Callable[[nn.Module], nn.Module]
    spread_input: Callable[[Tensor], Tensor] = _same
    spread_output: Callable[[Tensor], Tensor] = _same
    keep_output: Callable[[Tensor], Tensor] = _same
    alike: Callable[[nn.Module], nn.Module] | None = None
    divides: Tensor | int = 1
    form: str = ""
    why_no_integers: str = ""

    @property
    def called(self) -> nn.Module:
        """The part of the model before."""
        return self.before

    @property
    def forms(self) -> tuple[str, str]:
        """What it is before and after, in one word each."""
        return word_for(self.before), self.form or word_for(self.after)

    @property
    def reshapes(self) -> bool:
        """Whether the output has other axes of one element: of no morph."""
        return False

    def unreached(self, seed: int) -> list[LayerCertificate]:
        """Return the certificate of a change that is never called."""
        error = "it is not called with a tensor; expected a call on this input, got none"
        return [LayerCertificate(self.name, self.forms, errors=(error,))]

    def on(self, call: Call) -> list[Sides]:
        """Return the two layers on one input of the old one, to be measured."""
        return [_Changed(self, call)]


def finish(
    before: nn.Module,
    after: nn.Module,
    example: Any,
    changes: Sequence[Change],
    *,
    what: str,
    noise: float = 0.0,
    seed: int = 0,
) -> Morph:
    """Return a morph with its certificate, of every change at every call, and of the wholes.

    The two models share no part, and stay as they are. What differs is said, not raised.
    """
    run = _Runner(before, after, example, changes)
    with ExitStack() as stack:
        stack.enter_context(evaluating(before, after))
        stack.enter_context(run.undisturbed())
        output, layers = run.measure(before, changes, seed)
        changed = {id(change.before) for change in changes}
        places = {name for name, part in all_places(before).items() if id(part) in changed}
        network = compare_networks(before, after, output, Pairs(places=places), run)
    if any(isinstance(part, BY_MODE) and part.training for part in before.modules()):
        network = replace(network, notes=(*network.notes, _MODE))
    framework = f"torch {torch.__version__}"
    certificate = Certificate(tuple(layers), network, framework=framework, seed=seed)
    changed_places = tuple(dict.fromkeys(change.name for change in changes))
    return Morph(after, certificate, what, noise, changed_places)


class _Runner(Runner):
    """Runs the second network in float64 with layers made in float64, not rounded before."""

    def __init__(
        self, before: nn.Module, after: nn.Module, example: Any, changes: Sequence[Change]
    ) -> None:
        super().__init__(before, after, example)
        self.changes = changes

    def copy(self, model: nn.Module, numbers: Numbers | None, copies: dict[int, Any]) -> nn.Module:
        if model is self.after and numbers is wide:
            copies |= {
                id(change.after): change.rebuild(cast(deep_copy(change.before), wide)).eval()
                for change in self.changes
            }
        return super().copy(model, numbers, copies)


class _Changed(Sides):
    """The two layers of a change on one input of the old one; gradients are not compared."""

    failing = "its comparison fails; expected outputs"
    remade = True

    def __init__(self, change: Change, call: Call) -> None:
        self.change, self.call = change, call
        self.name, self.forms, self.errors = change.name, change.forms, []
        self.parts = self.now = change.before, change.after
        self.ours: Sum | None = None  # of the first side, until it gets other numbers
        self.why_no_integers = change.why_no_integers
        parts = map(change.alike, self.parts) if change.alike else self.parts
        if any(isinstance(module, NORMS) for part in parts for module in part.modules()):
            self.why_no_integers = "normalisation divides by a square root"

    def made(self, numbers: Numbers | None, divides: Tensor | int = 1) -> tuple[Side, Side]:
        change = self.change
        if numbers is not None:
            before = cast(deep_copy(change.before), numbers)
            self.ours = self.ours if numbers is wide else None
            weight = before._parameters.get("weight")
            if weight is not None:
                weight.data.mul_(torch.as_tensor(divides, device=weight.device).to(weight.dtype))
            self.now = before, change.rebuild(before).eval()
        before, after = self.now
        return (
            lambda x: Run(change.spread_output(self.call(before.forward, x))),
            lambda x: Run(change.keep_output(self.call(after.forward, change.spread_input(x)))),
        )

    def parameters(self) -> Iterable[tuple[str, Tensor]]:
        return (named for part in self.parts for named in part.named_parameters())

    def sums(self, x: Tensor, dy: Tensor | None = None) -> Sums:
        """Return the larger B of both sides, and the larger n."""
        change = self.change

        def call(layer: nn.Module, x: Tensor) -> Tensor:
            y: Tensor = self.call(layer.forward, x)
            return y

        before, after = map(change.alike, self.now) if change.alike else self.now
        ours = self.ours = self.ours or magnitude(before, sums_of(x), call)
        theirs = magnitude(after, sums_of(change.spread_input(x)), call)
        if ours is None or theirs is None:
            return {}
        values, others = change.spread_output(ours.values), change.keep_output(theirs.values)
        return {"output": (torch.maximum(values, others), max(ours.terms, theirs.terms))}

    def integers(self, longest: int, limit: float) -> Iterable[int]:
        return LARGEST, 64, 16, 4, 1  # what a chain of layers makes of them is to be seen

    def on_integers(self, numbers: Numbers, x: Tensor, limit: float) -> tuple[Side, Side] | None:
        made = self.made(numbers, self.change.divides)
        values, _ = self.sums(x).get("output", (None, 0))
        whole = all(bool((p == p.round()).all()) for p in self.now[1].parameters())
        if values is None or not (whole or self.change.keep_output is not _same):
            self.why_no_integers = "its weights, made of integers, are no integers"
            return None
        return made if not values.numel() or values.max() <= limit else None

    def matrices(self, y: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return matrices_of(self.change.after, y)
