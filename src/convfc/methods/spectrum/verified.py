"""The certificate of a Lipschitz bound: stretches that were measured, none of which may exceed it.

Whatever is measured is a lower bound of the true constant, less what rounding may have added: one
measurement above the bound proves the bound wrong. All are made by PyTorch, in float64, with the
network as it is; of what the bound was computed with, nothing is used. Three are made: the Jacobian
at each input given, and pairs of them; of each CONV or FC layer its own norm, by LAPACK from the
Jacobian of a small one, else by power iteration; and how far every tensor of the network moves when
the input moves as the Jacobian stretches most.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from convfc.certificate import Record
from convfc.comparing import first_words
from convfc.errors import ShapeError, UnsupportedModel
from convfc.extras import needing

with needing():
    import torch
    from torch import Tensor, nn
    from torch.utils._pytree import tree_map

from convfc.frameworks.torch.running import call_model, check_module, deep_copy, in_mode
from convfc.frameworks.torch.simplification.trace import LAYER, Call, Ref, Trace, trace
from convfc.methods.spectrum.networks import BoundedPart, LipschitzBound, check_input
from convfc.methods.spectrum.rules import is_norm, kind_of, refs_of
from convfc.progress import Progress, telling
from convfc.rounding import UNIT_ROUNDOFF, gamma
from convfc.sizes import integer
from convfc.tables import TextTable

Function: TypeAlias = Callable[[Tensor], Tensor]
_LINEAR = frozenset([LAYER, "convolution", "linear", "matmul", "mm", "addmm"])
_DENSE = 2**20
"""Entries of a Jacobian up to which LAPACK finds the norm."""
_NEAR = 1e-2
"""How far the input moves, by its norm."""


@dataclass(frozen=True)
class Stretch(Record):
    """One measurement: by how much something was stretched, and what the bound allows."""

    name: str
    what: str
    measured: float
    allowed: float
    _derived = ("holds", "ratio")

    @property
    def holds(self) -> bool:
        """Whether the bound allows it; not a number is never allowed."""
        return self.measured <= self.allowed

    @property
    def ratio(self) -> float:
        """What was measured by what is allowed: at most 1, and 1 if the bound is tight."""
        return self.measured / self.allowed if self.allowed else math.inf * self.measured

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.what}; expected a stretch of at most {self.allowed:.6g}, got "
            f"{self.measured:.6g}"
        )


@dataclass(frozen=True)
class LipschitzCertificate(Record):
    """Whether anything that was measured exceeds a Lipschitz bound; `verify_bound` makes it.

    Attributes
    ----------
    network : tuple of Stretch
        The Jacobian at each input, and the pair of inputs that is stretched most.
    layers : tuple of Stretch
        Each CONV or FC layer by itself, with a BatchNorm that is one part with it.
    tensors : tuple of Stretch
        The output of each part when the input moves, by the bound from the input up to there.
    errors : tuple of str
        What else is wrong, in words.
    """

    network: tuple[Stretch, ...]
    layers: tuple[Stretch, ...] = ()
    tensors: tuple[Stretch, ...] = ()
    errors: tuple[str, ...] = ()
    _derived = ("lower", "tightness", "holds", "failures")

    @property
    def lower(self) -> float:
        """The largest stretch of the network that was measured: its true constant is not less."""
        return max((one.measured for one in self.network), default=math.nan)

    @property
    def tightness(self) -> float:
        """`lower` by the bound: the true constant is between this share of the bound and all."""
        return max((one.ratio for one in self.network), default=math.nan)

    @property
    def failures(self) -> tuple[str, ...]:
        """Every measurement that the bound does not allow: where, what, expected, got."""
        every = (*self.network, *self.layers, *self.tensors)
        none = () if self.network else ("expected the network to be measured, got nothing",)
        return (*none, *self.errors, *(str(one) for one in every if not one.holds))

    @property
    def holds(self) -> bool:
        """Whether nothing that was measured exceeds the bound."""
        return not self.failures

    def table(self) -> TextTable:
        """Return the table that ``print`` shows: the layers, then the network."""
        rows = []
        for one in (*self.layers, *self.network):
            numbers = (f"{one.measured:.4g}", f"{one.allowed:.4g}", f"{one.ratio:.3f}")
            rows.append((one.name, one.what, *numbers, "yes" if one.holds else "NO"))
        good = sum(one.holds for one in self.tensors)
        verdict = "holds" if self.holds else "DOES NOT HOLD"
        notes = (
            f"{good} of {len(self.tensors)} tensors inside the network moved no further than their "
            "bounds.",
            f"Certificate: {verdict}. The true constant is at least {self.lower:.4g}, "
            f"{self.tightness:.2g} of the bound.",
            *(f"- failure: {reason}" for reason in self.failures),
        )
        titles = ("part", "measured by", "stretch", "allowed", "ratio", "holds")
        return TextTable.of(titles, rows, notes, left=2)

    def __str__(self) -> str:
        return self.table().text(100)

    def __rich__(self) -> TextTable:
        """Return the table for rich, as wide as the console."""
        return self.table()


def verify_bound(
    model: nn.Module,
    bound: LipschitzBound,
    x: Tensor,
    *,
    steps: int = 20,
    seed: int = 0,
    progress: Progress | bool = False,
) -> LipschitzCertificate:
    """Measure how far a network stretches, and hold a Lipschitz bound against it.

    Parameters
    ----------
    model : torch.nn.Module
        The network of the bound. A copy in float64 is run, in evaluation mode.
    bound : LipschitzBound
        Of `lipschitz_bound`, or one that is to be doubted.
    x : torch.Tensor, shape (n, ...)
        Inputs of the size of the bound's. Two or more are compared with each other, too.
    steps : int
        Of power iteration.
    seed : int
        Of the vectors that it begins with.
    progress : callable or bool
        Called before each measurement with how many are done, how many there are, and of what; True
        shows a bar (package rich).

    Returns
    -------
    LipschitzCertificate

    Raises
    ------
    ShapeError
        If the inputs have another shape than the bound is for.
    UnsupportedModel
        If the bound is of another network, or this is none of PyTorch, or has no gradient there.
    ArgumentError
        If there is no step.

    Examples
    --------
    >>> from convfc.methods.spectrum import lipschitz_bound
    >>> _ = torch.manual_seed(0)
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    >>> x = torch.randn(3, 1, 8, 8)
    >>> found = verify_bound(net, lipschitz_bound(net, x), x)
    >>> found.holds, found.tightness > 0.1
    (True, True)
    """
    check_module(model)
    check_input(x)
    steps = integer("steps", steps, least=1)
    if tuple(x.shape[1:]) != bound.shape:
        raise ShapeError(
            "the bound is for inputs of another shape",
            where="x",
            expected=("n", *bound.shape),
            got=tuple(x.shape),
            remedy="lipschitz_bound(model, x) for inputs of this shape",
        )
    copied = deep_copy(model).cpu().double()
    given = x.detach().cpu().double()
    with (
        in_mode(copied, lambda _: False),
        torch.inference_mode(mode=False),
        torch.enable_grad(),
        telling(progress) as tell,
    ):
        return _measured(copied, bound, given, steps, seed, tell)


def _measured(
    model: nn.Module, bound: LipschitzBound, x: Tensor, steps: int, seed: int, tell: Progress
) -> LipschitzCertificate:
    """Make all measurements."""

    def network(t: Tensor) -> Tensor:
        y: Tensor = call_model(model, (t.clone(),), {}, "x")  # it may change its input in place
        return y

    count = 1 + len(bound.parts)
    tell(0, count, "the network")
    try:
        norms, directions, defect = _jacobians(network, x, steps, seed)
    except RuntimeError as error:  # of autograd
        raise UnsupportedModel(
            f"PyTorch cannot differentiate it: {first_words(error)}",
            where="model",
            remedy="call its activations without inplace=True",
        ) from error
    moved = directions[0] * (_NEAR * (x[0].norm().item() or 1.0))
    run = trace(model, torch.stack([x[0], x[0] + moved]), numbers=True)
    # A sum of n products is off by gamma_n |A| |v|, and the norm of |A| is at most the root of the
    # number of columns times that of A; n is no more than these.
    rounding = gamma(sum((t.numel() / 2) ** 1.5 for t in run.tensors), UNIT_ROUNDOFF["float64"])
    made = {ref.number: call for call in run.calls for ref in refs_of(call.result)}
    found, errors = [], []
    for done, part in enumerate(bound.parts, start=1):
        tell(done, count, part.name)
        calls = _calls_of(part, made)
        if part.source >= 0 and all(call.name in _LINEAR or is_norm(call) for call in calls):
            function, point = _function(part, calls), run.tensors[part.source][:1]
            norm, how, off = _norm_of(function, point, steps, seed)
            found.append(Stretch(part.name, how, norm / (1 + rounding), part.bound))
            if not off <= rounding:
                errors.append(_adjoint_words(part.name, off, rounding))
    if not defect <= rounding:
        errors.append(_adjoint_words("the network", defect, rounding))
    whole = [
        Stretch("the network", f"its Jacobian at input {n}", norm / (1 + rounding), bound.bound)
        for n, norm in enumerate(norms)
    ]
    if len(x) > 1:
        with torch.no_grad():
            y = network(x)
        whole.append(_widest_pair(x, y, rounding, bound.bound))
    tensors = [_moved(part, run, rounding) for part in bound.parts]
    return LipschitzCertificate(tuple(whole), tuple(found), tuple(tensors), tuple(errors))


def _adjoint_words(name: str, defect: float, rounding: float) -> str:
    return (
        f"{name}: expected ⟨J v, u⟩ = ⟨v, Jᵀ u⟩ within {rounding:.1e} of them, got a difference of "
        f"{defect:.1e}"
    )


def _jacobians(
    function: Function, x: Tensor, steps: int, seed: int
) -> tuple[list[float], Tensor, float]:
    """Return ‖J v‖ at each input, its unit vector v, and how far the adjoint law is broken.

    By power iteration, on all inputs at once. One backward pass gives Jᵀ u; it is linear in u, so
    that another one, through it, gives J v. Where J is 0, as behind a ReLU that is off, v is any.
    """
    x = x.detach().clone().requires_grad_()
    y = function(x)
    u = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    probe = torch.zeros_like(u).requires_grad_()
    (pulled,) = torch.autograd.grad(
        y, x, probe, create_graph=True, materialize_grads=True, allow_unused=True
    )
    best, vectors, defect = [0.0] * len(x), _units(torch.ones_like(x.detach())), 0.0
    for _ in range(steps):
        u = _units(u)
        (back,) = torch.autograd.grad(
            y, x, u, retain_graph=True, materialize_grads=True, allow_unused=True
        )
        v = _units(back.detach())
        ahead = torch.zeros_like(u)
        if pulled.requires_grad:
            (ahead,) = torch.autograd.grad(
                pulled, probe, v, retain_graph=True, materialize_grads=True, allow_unused=True
            )
        norms = ahead.flatten(1).norm(dim=1).tolist()
        for n, norm in enumerate(norms):
            if norm > best[n] or math.isnan(norm):
                best[n], vectors[n] = norm, v[n]
            law = ((ahead[n] * u[n]).sum() - (v[n] * back[n]).sum()).abs().item()
            defect = max(defect, law / norm if norm else law)
        u = ahead
    return best, vectors, defect


def _units(t: Tensor) -> Tensor:
    """Return vectors of norm 1, one for each example; of a zero vector, zeros."""
    sizes = t.flatten(1).norm(dim=1).view(-1, *[1] * (t.dim() - 1))
    return t / torch.where(sizes > 0, sizes, 1.0)


def _norm_of(function: Function, point: Tensor, steps: int, seed: int) -> tuple[float, str, float]:
    """Return the norm of a linear part, how it is measured, and the defect of its adjoint."""
    result = function(point)
    if result.numel() * point.numel() <= _DENSE:
        matrix = torch.autograd.functional.jacobian(function, point, vectorize=False)
        matrix = matrix.reshape(result.numel(), point.numel())
        return torch.linalg.matrix_norm(matrix, 2).item(), "LAPACK, of its Jacobian", 0.0
    (norm,), _, defect = _jacobians(function, point, steps, seed)
    return norm, f"power iteration, {steps} steps", defect


def _calls_of(part: BoundedPart, made: dict[int, Call]) -> list[Call]:
    """Return the calls from the part's source to its result: one, or a layer and a BatchNorm."""
    calls = [made[part.result]] if part.result in made else []
    given = refs_of((calls[0].args, calls[0].kwargs)) if calls else []
    if part.source >= 0 and Ref(part.source) not in given:
        calls = [made[ref.number] for ref in given[:1] if ref.number in made] + calls
    names = " + ".join(call.place for call in calls)
    kinds = " + ".join(map(kind_of, calls))
    if (names, kinds) != (part.name, part.kind):
        raise UnsupportedModel(
            "the bound is of another network",
            where=part.name,
            expected=part.kind,
            got=kinds or "no such call",
            remedy="lipschitz_bound(model, x) of this network",
        )
    return calls


def _function(part: BoundedPart, calls: list[Call]) -> Function:
    """Return a part as a function of its one input."""

    def apply(x: Tensor) -> Tensor:
        values = {part.source: x}
        for call in calls:
            args, kwargs = tree_map(
                lambda one: values[one.number] if isinstance(one, Ref) else one,
                (call.args, call.kwargs),
            )
            result = call.function(*args, **kwargs)
            first = result if isinstance(result, Tensor) else result[0]
            values[refs_of(call.result)[0].number] = first
        return values[part.result]

    return apply


def _widest_pair(x: Tensor, y: Tensor, rounding: float, allowed: float) -> Stretch:
    """Return the pair of inputs that is stretched most, less the rounding of their outputs."""
    x, y = x.flatten(1), y.flatten(1)
    best, pair = 0.0, (0, 1)
    sizes = y.norm(dim=1)
    for n in range(len(x) - 1):
        apart = (x[n + 1 :] - x[n]).norm(dim=1)
        off = rounding * (sizes[n + 1 :] + sizes[n])
        stretch = ((y[n + 1 :] - y[n]).norm(dim=1) - off) / apart
        stretch = torch.where(apart > 0, stretch, 0.0)
        if not stretch.max().item() <= best:
            best, pair = stretch.max().item(), (n, n + 1 + int(stretch.argmax()))
    return Stretch("the network", f"inputs {pair[0]} and {pair[1]}", best, allowed)


def _moved(part: BoundedPart, run: Trace, rounding: float) -> Stretch:
    """Return how far the result of a part has moved, by how far the input has."""
    (before, after), (x, y) = run.tensors[part.result], run.tensors[0]
    off = rounding * (before.norm() + after.norm())
    stretch = ((after - before).norm() - off) / (y - x).norm()
    return Stretch(part.name, f"{part.kind}, when the input moves", stretch.item(), part.so_far)
