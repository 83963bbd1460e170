"""A Lipschitz bound of a whole network, from its layers' norms, and the radius that it certifies.

The network is run once, on a tensor that notes the calls (`simplification.trace`). Each value of it
gets a number: how far it is from that of another input at most, by the distance of the inputs, in
the Euclidean norm. A layer multiplies it by its norm, an addition adds, and what stands side by
side, as after a concatenation, is the root of the sum of squares.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from convfc.certificate import Record
from convfc.errors import ShapeError, UnsupportedLayer
from convfc.extras import needing

with needing():
    from torch import Tensor, nn
    from torch.utils._pytree import tree_leaves, tree_map

from convfc.frameworks.torch.running import check_can_run, check_has_numbers, unchanged
from convfc.frameworks.torch.simplification.operations import Step
from convfc.frameworks.torch.simplification.trace import Call, Ref, trace_of_two
from convfc.methods.spectrum.bounds import NormBounds, product, side_by_side, total
from convfc.methods.spectrum.rules import (
    BOUNDS,
    Result,
    Value,
    is_norm,
    kind_of,
    one_input,
    refs_of,
    unknown,
)
from convfc.mlp.maps import EACH
from convfc.progress import Progress, telling
from convfc.tables import TextTable


@dataclass(frozen=True)
class BoundedPart(Record):
    """One part of a network, and how far it stretches.

    Attributes
    ----------
    name, kind : str
        Where it stands, and what it is. A BatchNorm after a CONV or FC layer is one part with it.
    norm : float
        As it is computed: of CONV layers by `norm_bounds`, from below.
    bound : float
        From above: no two inputs of the part are stretched by more. Of a part with several inputs,
        1; their bounds are added, or stand side by side.
    how : str
        How the bound is known.
    so_far : float
        Bound of its output by the input of the network.
    estimate_so_far : float
        The same with all norms as they are computed.
    source, result : int
        Which tensors of the run it goes from and to; the source is -1 if there are several.
    """

    name: str
    kind: str
    norm: float
    bound: float
    how: str
    so_far: float
    estimate_so_far: float
    source: int = -1
    result: int = -1


@dataclass(frozen=True)
class LipschitzBound(Record):
    """How far a network stretches the difference of two inputs at most; `lipschitz_bound` makes it.

    Parameters
    ----------
    parts : tuple of BoundedPart
        In the order of the calls; the last one has the output.
    shape : tuple of int
        Of one input, without its batch axis.

    Examples
    --------
    >>> import torch
    >>> ones = nn.Linear(2, 2, bias=False)
    >>> _ = nn.init.constant_(ones.weight, 1.0)
    >>> print(lipschitz_bound(nn.Sequential(ones, nn.ReLU(), ones), torch.zeros(1, 2)))
    part  class   at least  at most  so far  how it is known
    0     Linear         2        2       2  the largest sums of a row and of a column
    0     Linear         2        2       4  the largest sums of a row and of a column
    <BLANKLINE>
    The network stretches a difference by at most 4; with the norms as they are computed, 4.
    Not listed, since they stretch nothing: ReLU.
    """

    parts: tuple[BoundedPart, ...]
    shape: tuple[int, ...] = ()
    _derived = ("bound", "estimate")

    @property
    def bound(self) -> float:
        """``‖f(x) - f(y)‖ <= bound * ‖x - y‖`` in the Euclidean norm, for all x and y."""
        return self.parts[-1].so_far if self.parts else 1.0

    @property
    def estimate(self) -> float:
        """The same with the layers' norms as they are computed; not proven."""
        return self.parts[-1].estimate_so_far if self.parts else 1.0

    def __float__(self) -> float:
        return self.bound

    def radius(self, logits: Any, labels: Any = None) -> npt.NDArray[np.float64]:
        """Return how far each input may move, in the Euclidean norm, in its class as before.

        ``margin / (√2 L)``, the margin being the largest logit less the second largest (Tsuzuku,
        Sato and Sugiyama, 2018, "Lipschitz-margin training", proposition 1). What rounds in the
        network's own arithmetic is not counted.

        Parameters
        ----------
        logits : array or tensor, shape (n, classes)
            What the network returns.
        labels : array or tensor of int, shape (n,), optional
            With the true classes the margin is that of the true class, and what is classified
            wrongly has radius 0: ``(radius > r).mean()`` is the certified accuracy at r.

        Returns
        -------
        NumPy array of float64, shape (n,)

        Raises
        ------
        ShapeError
            If there are no two classes, or not one label for each input.

        Examples
        --------
        >>> import torch
        >>> bound = lipschitz_bound(nn.Identity(), torch.zeros(1, 2))
        >>> bound.radius([[0.0, 2.0], [3.0, 3.0]]).round(3)
        array([1.414, 0.   ])
        >>> bound.radius([[0.0, 2.0], [3.0, 1.0]], labels=[1, 1]).round(3)
        array([1.414, 0.   ])
        """
        found = np.array(_array(logits), np.float64)
        if found.ndim != 2 or found.shape[1] < 2:
            raise ShapeError(
                "a radius takes the logits of two classes or more",
                where="logits",
                expected="(n, classes)",
                got=found.shape,
            )
        if labels is None:
            true = found.argmax(axis=1)
        else:
            true = np.array(_array(labels))
            if true.shape != found.shape[:1] or true.dtype.kind not in "iu":
                raise ShapeError(
                    "each input has one label, the number of its class",
                    where="labels",
                    expected=f"{len(found)} integers",
                    got=f"{true.dtype} {true.shape}",
                )
        own = np.take_along_axis(found, true[:, None], axis=1)[:, 0]
        np.put_along_axis(found, true[:, None], -np.inf, axis=1)
        margin = np.maximum(own - found.max(axis=1), 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            reach = margin / (math.sqrt(2) * self.bound)
        return np.where(margin > 0, reach, 0.0)

    def table(self) -> TextTable:
        """Return the table that ``print`` shows, without the parts that stretch nothing."""
        rows, idle = [], []
        for part in self.parts:
            if part.norm == part.bound == 1 and not part.how:
                idle.append(part.kind)
                continue
            least, most = (f"{number:.4g}" for number in (part.norm, part.bound))
            single = part.source >= 0
            sizes = (least, most) if single else ("", "")
            rows.append((part.name, part.kind, *sizes, f"{part.so_far:.4g}", part.how))
        titles = ("part", "class", "at least", "at most", "so far", "how it is known")
        notes = [
            f"The network stretches a difference by at most {self.bound:.4g}; with the norms as "
            f"they are computed, {self.estimate:.4g}."
        ]
        if idle:
            names = ", ".join(dict.fromkeys(idle))
            notes.append(f"Not listed, since they stretch nothing: {names}.")
        made = TextTable.of(titles, rows, tuple(notes), left=2, spare={"how it is known": 1})
        last = replace(made.columns[-1], right=False)
        return replace(made, columns=(*made.columns[:-1], last))

    def __str__(self) -> str:
        return self.table().text(100)

    def __rich__(self) -> TextTable:
        """Return the table for rich, as wide as the console."""
        return self.table()


def lipschitz_bound(
    model: nn.Module, x: Tensor, *, progress: Progress | bool = False
) -> LipschitzBound:
    """Return a bound for how far a network stretches the difference of two inputs.

    From the norm of every CONV layer as the linear map that it is, with its own stride and padding
    at the size that it sees, and of every FC layer; in evaluation mode. A BatchNorm after one of
    them is multiplied into it. It holds for the network in exact arithmetic, and is seldom tight.

    Parameters
    ----------
    model : torch.nn.Module
        Nothing in it changes; its forward may have branches, residuals, concatenations, and
        functions as well as modules.
    x : torch.Tensor, shape (n, ...)
        An input, for its size. The bound is for inputs of the shape of one example.
    progress : callable or bool
        Called before each operation with how many are done, how many there are, and its name; True
        shows a bar (package rich). A resnet18 at 224 × 224 takes a minute or two.

    Returns
    -------
    LipschitzBound

    Raises
    ------
    UnsupportedLayer
        For a part of which no bound is known, such as a product of two values, with its name.
    UnsupportedModel, ShapeError
        If the forward cannot be followed on this input, or does not return one tensor.

    Notes
    -----
    CONV layers: see `norm_bounds`. Matrices: LAPACK, with its backward error. Max-pooling: the root
    of how often an element is in a window. Everything that averages, moves or repeats: Schur's
    test. All sums and products are rounded upwards.

    References
    ----------
    Szegedy et al., 2014, "Intriguing properties of neural networks", section 4.3; Gouk et al.,
    2021, "Regularisation of neural networks by enforcing Lipschitz continuity".

    Examples
    --------
    >>> import torch
    >>> class Residual(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.conv = nn.Conv2d(4, 4, 3, padding=1)
    ...
    ...     def forward(self, x):
    ...         return nn.functional.relu(x + self.conv(x))
    >>> found = lipschitz_bound(Residual(), torch.zeros(1, 4, 8, 8))
    >>> conv, add, relu = found.parts
    >>> found.bound == add.so_far >= 1 + conv.bound, relu.bound  # the sum is rounded upwards
    (True, 1.0)
    """
    check_input(x)
    check_has_numbers(model, "model")
    check_can_run(model, "x")
    with unchanged(model), telling(progress) as tell:
        return LipschitzBound(_Reader(model, x).read(tell), tuple(x.shape[1:]))


def _array(thing: Any) -> Any:
    return thing.detach().cpu() if isinstance(thing, Tensor) else thing


# Reading a network --------------------------------------------------------------------------------


class _Reader:
    """Reads one network: a number for each tensor of a run."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.found = trace_of_two(model, x, "x")
        self.values = {0: Value(0, (2, *x.shape[1:]), 1.0, 1.0)}
        self.parts: list[BoundedPart] = []
        self.users: dict[int, list[Call | None]] = defaultdict(list)
        """By whom each tensor is used; None is the one who called the model."""
        for ref in refs_of(self.found.output):
            self.users[ref.number].append(None)
        self.calls: list[Call] = []
        for call in reversed(self.found.calls):  # what the output does not depend on is left out
            if any(self.users[ref.number] for ref in refs_of(call.result)):
                self.calls.insert(0, call)
                for ref in refs_of((call.args, call.kwargs)):
                    self.users[ref.number].append(call)

    def read(self, tell: Progress) -> tuple[BoundedPart, ...]:
        """Follow the calls, and return the parts; the last one has the output."""
        if not isinstance(self.found.output, Ref):
            raise UnsupportedLayer(
                "it does not return one tensor that depends on its input",
                where="model",
                expected="one tensor",
                got=type(self.found.output).__name__,
                remedy="wrap it in a module that returns the one tensor",
            )
        for done, call in enumerate(self.calls):
            tell(done, len(self.calls), call.place)
            self._follow(call)
        return tuple(self.parts)

    def _follow(self, call: Call) -> None:
        """Give the results of a call their numbers."""
        refs = refs_of((call.args, call.kwargs))
        if any(ref.number not in self.values for ref in refs):
            raise unknown(call, "it computes with what has no bound, such as an index")
        if call.name not in BOUNDS:
            raise unknown(call)
        call.check_constants()
        args, kwargs = call.arguments(
            lambda one: self.values[one.number] if isinstance(one, Ref) else one
        )
        tensors = self.found.tensors
        real = tree_map(lambda one: tensors[one.number], call.result)
        step = Step(call, tensors[refs[0].number], real, "keep", None)
        results = tree_leaves(BOUNDS[call.name](step, *args, **kwargs))
        # More results than have a bound are indices or the like, which nobody may use.
        for ref, result in zip(refs_of(call.result), results, strict=False):
            if self.users[ref.number]:
                shape = tuple(tensors[ref.number].shape)
                if shape[:1] != (2,):
                    raise unknown(call, EACH)
                self.values[ref.number] = self._value(result, ref.number, shape, call)

    def _value(self, result: Result, number: int, shape: tuple[int, ...], call: Call) -> Value:
        """Return the number of one result."""
        if result.layer is not None:
            (source, _), *_ = result.terms
            if len(self.users[number]) == 1 and is_norm(self.users[number][0]):
                put_off = (source.estimate, source.bound, result.layer, source.number)
                return Value(number, shape, *put_off)
            result = one_input(source, result.layer.bounds())
        part = self._note(result, number, call.place, kind_of(call))
        return Value(number, shape, part.estimate_so_far, part.so_far)

    def _note(self, result: Result, number: int, name: str, kind: str) -> BoundedPart:
        """Add a part."""
        bounds = [product(value.bound, factor.upper) for value, factor in result.terms]
        estimates = [value.estimate * factor.lower for value, factor in result.terms]
        if result.squares:
            so_far = side_by_side(bounds), math.hypot(*estimates)
        else:
            so_far = total(bounds), sum(estimates)
        source, norm = -1, NormBounds(1.0, 1.0)
        if len(result.terms) == 1:
            ((value, norm),) = result.terms
            source = value.number
            if value.layer is not None:
                source, merged = value.source, value.layer.call
                name, kind = f"{merged.place} + {name}", f"{kind_of(merged)} + {kind}"
        own = (norm.lower, norm.upper, result.how)
        self.parts.append(BoundedPart(name, kind, *own, *so_far, source, number))
        return self.parts[-1]


def check_input(x: Any) -> None:
    """Refuse what is no batch of one example or more."""
    if not isinstance(x, Tensor) or x.dim() < 2 or not len(x):
        raise ShapeError(
            "the bound is for inputs of one shape",
            where="x",
            expected="one tensor (n, c, *size), or (n, features), with n >= 1",
            got=tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__,
            remedy="wrap a model of several arguments in a module that is given the one tensor",
        )
