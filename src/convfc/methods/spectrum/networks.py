"""A Lipschitz bound of a whole network, from its layers' norms, and the radius that it certifies.

The network is run once, on a tensor that notes the calls (`simplification.trace`). Each value of it
gets a number: how far it is from that of another input at most, by the distance of the inputs, in
the Euclidean norm. A layer multiplies it by its norm, an addition adds, and what stands side by
side, as after a concatenation, is the root of the sum of squares.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from convfc.certificate import Record
from convfc.errors import ShapeError, UnsupportedLayer
from convfc.extras import needing

with needing():
    import torch
    from torch import Tensor, nn
    from torch.utils._pytree import tree_leaves, tree_map

from convfc.frameworks.torch.matrix import read_layer
from convfc.frameworks.torch.read import weight_to_filters
from convfc.frameworks.torch.running import check_can_run, check_has_numbers, unchanged
from convfc.frameworks.torch.simplification.operations import AVERAGES, MOVES, Step, numbers
from convfc.frameworks.torch.simplification.trace import LAYER, Call, Ref, Trace, trace
from convfc.geometry import ConvGeometry
from convfc.layer import ConvLayer
from convfc.methods.spectrum.bounds import (
    NormBounds,
    matrix_bounds,
    norm_bounds,
    product,
    root,
    total,
)
from convfc.mlp.pieces import adaptive_windows, pool_windows
from convfc.mlp.values import Operations
from convfc.rounding import UNIT_ROUNDOFF, gamma
from convfc.tables import TextTable

_U = UNIT_ROUNDOFF["float64"]
_SCALE_ROUNDINGS = 8  # of a BatchNorm: eps, the root, its inverse, a product, and what is spare


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
    >>> double = nn.Linear(2, 2, bias=False)
    >>> _ = nn.init.constant_(double.weight, 1.0)
    >>> found = lipschitz_bound(nn.Sequential(double, nn.ReLU(), double), torch.zeros(1, 2))
    >>> print(found)
    part  class   at least  at most  how it is known                         so far
    0     Linear         2        2  the largest sums of a row and of a ...
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
        return self.table().text(120)

    def __rich__(self) -> TextTable:
        """Return the table for rich, as wide as the console."""
        return self.table()


def lipschitz_bound(model: nn.Module, x: Tensor) -> LipschitzBound:
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
    >>> class Residual(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.conv = nn.Conv2d(4, 4, 3, padding=1)
    ...
    ...     def forward(self, x):
    ...         return nn.functional.relu(x + self.conv(x))
    >>> found = lipschitz_bound(Residual(), torch.zeros(1, 4, 8, 8))
    >>> conv, add, relu = found.parts
    >>> found.bound == add.so_far == 1 + conv.bound, relu.bound
    (True, 1.0)
    """
    return _Reader(model, x).read()


def _array(thing: Any) -> Any:
    return thing.detach().cpu() if isinstance(thing, Tensor) else thing


# Reading a network --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Layer:
    """A CONV or FC layer whose output nobody but a BatchNorm sees."""

    weight: ConvLayer | npt.NDArray[Any]
    size: tuple[int, ...]
    call: Call

    def bounds(self, scale: npt.NDArray[Any] | None = None) -> NormBounds:
        """Return the norm, after a multiplication of each filter if there is one."""
        one = self.weight
        conv = isinstance(one, ConvLayer)
        filters: npt.NDArray[Any] = one.filters if isinstance(one, ConvLayer) else one
        if scale is not None:
            filters = filters * scale.reshape(-1, *[1] * (filters.ndim - 1))
        if not isinstance(one, ConvLayer):
            return matrix_bounds(filters)
        layer = ConvLayer(one.geometry, filters)
        found = norm_bounds(layer, self.size)
        at = f"at {'×'.join(map(str, self.size))}: {found.how}"
        return replace(found, how=at) if conv else found


@dataclass(frozen=True, eq=False)
class _Value:
    """A tensor of the network: how far it is from that of another input, by their distance."""

    number: int
    shape: tuple[int, ...]  # of two examples
    estimate: float
    bound: float
    layer: _Layer | None = None  # then the numbers are those of the layer's input, ``source``
    source: int = -1


@dataclass(frozen=True, eq=False)
class _Result:
    """One result of a call: its inputs, each with what it is multiplied by, and how they are one.

    With ``side_by_side`` it is the root of the sum of squares, else the sum.
    """

    terms: tuple[tuple[_Value, NormBounds], ...]
    how: str = ""
    side_by_side: bool = False
    layer: _Layer | None = None


def _one(value: _Value, factor: float | NormBounds = 1.0, how: str = "") -> _Result:
    """Return the result of a call with one input."""
    if not isinstance(factor, NormBounds):
        factor = NormBounds(factor, factor, how)
    return _Result(((value, factor),), factor.how)


class _Reader:
    """Reads one network."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        _check_input(x)
        check_has_numbers(model, "model")
        check_can_run(model, "x")
        self.model, self.x = model, x.detach()[[0, 0]]  # what mixes two examples cannot hide
        self.parts: list[BoundedPart] = []

    def read(self) -> LipschitzBound:
        """Follow the calls of one run."""
        found = trace(self.model, self.x)
        values = {0: _Value(0, tuple(self.x.shape), 1.0, 1.0)}
        users = _users(found)
        with unchanged(self.model):
            for call in found.calls:
                self._follow(call, found, values, users)
        if not isinstance(found.output, Ref) or found.output.number not in values:
            raise UnsupportedLayer(
                "it does not return one tensor that depends on its input",
                where="model",
                expected="one tensor",
                got=type(found.output).__name__,
                remedy="wrap it in a module that returns the one tensor",
            )
        last = values[found.output.number]
        if not self.parts or self.parts[-1].result != last.number:
            self._note(_one(last), last.number, "output", "")
        return LipschitzBound(tuple(self.parts), tuple(self.x.shape[1:]))

    def _follow(
        self,
        call: Call,
        found: Trace,
        values: dict[int, _Value],
        users: dict[int, list[Call | None]],
    ) -> None:
        """Give the results of a call their numbers."""

        def value(one: Any) -> Any:
            return values.get(one.number) if isinstance(one, Ref) else one

        refs = _refs((call.args, call.kwargs))
        for ref in refs:
            if ref.number not in values:
                raise _unknown(call, "it computes with what is no activation, such as an index")
        args, kwargs = call.arguments(value)
        real = tree_map(lambda one: found.tensors[one.number], call.result)
        step = Step(call, found.tensors[refs[0].number], real, "keep", None)
        if call.name not in BOUNDS:
            raise _unknown(call)
        call.check_constants()
        results = tree_leaves(BOUNDS[call.name](step, *args, **kwargs))
        # More results than have a bound are indices or the like, which nobody may use.
        for ref, result in zip(_refs(call.result), results, strict=False):
            number, shape = ref.number, tuple(found.tensors[ref.number].shape)
            if shape[:1] != (2,):
                raise _unknown(call, "it does not treat each example of a batch by itself")
            after = users[number]
            if result.layer is not None and len(after) == 1 and _is_norm(after[0]):
                source = result.terms[0][0]
                numbers_ = source.estimate, source.bound
                values[number] = _Value(number, shape, *numbers_, result.layer, source.number)
                continue
            if result.layer is not None:
                result = _one(result.terms[0][0], result.layer.bounds())
            part = self._note(result, number, call.place, call.words)
            values[number] = _Value(number, shape, part.estimate_so_far, part.so_far)

    def _note(self, result: _Result, number: int, place: str, kind: str) -> BoundedPart:
        """Add a part."""
        terms = result.terms
        bounds = [product(value.bound, factor.upper) for value, factor in terms]
        estimates = [value.estimate * factor.lower for value, factor in terms]
        if result.side_by_side:
            so_far = root(Fraction(b) ** 2 for b in bounds) if all(
                map(math.isfinite, bounds)
            ) else math.inf
            estimate = math.hypot(*estimates)
        else:
            so_far, estimate = total(bounds), sum(estimates)
        single = len(terms) == 1
        (value, factor), norm = terms[0], NormBounds(1.0, 1.0)
        merged = value.layer if single else None
        if merged is not None:
            place, kind = f"{merged.call.place} + {place}", f"{merged.call.words} + {kind}"
        norm = factor if single else norm
        source = -1 if not single else value.source if merged is not None else value.number
        part = BoundedPart(
            place, kind, norm.lower, norm.upper, result.how, so_far, estimate, source, number
        )
        self.parts.append(part)
        return part


def _check_input(x: Any) -> None:
    if not isinstance(x, Tensor) or x.dim() < 2 or not len(x):
        raise ShapeError(
            "the bound is for inputs of one shape",
            where="x",
            expected="one tensor (n, c, *size), or (n, features), with n >= 1",
            got=tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__,
            remedy="wrap a model of several arguments in a module that is given the one tensor",
        )


def _refs(tree: Any) -> list[Ref]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Ref)]


def _users(found: Trace) -> dict[int, list[Call | None]]:
    """Return by whom each tensor is used; None is the one who called the model."""
    users: dict[int, list[Call | None]] = defaultdict(list)
    for call in found.calls:
        for ref in _refs((call.args, call.kwargs)):
            users[ref.number].append(call)
    for ref in _refs(found.output):
        users[ref.number].append(None)
    return users


def _unknown(call: Call, why: str = "") -> UnsupportedLayer:
    """Return the error for a part without a bound."""
    return UnsupportedLayer(
        f"no bound is known for a {call.words}" + (f": {why}" if why else ""),
        where=call.place,
        expected="CONV and FC layers, BatchNorm, pooling, sums, concatenations, and activations "
        "such as ReLU",
        remedy="take the bounds of the parts before and after it",
    )


# What each operation does -------------------------------------------------------------------------

BOUNDS = Operations()
"""By the names of operations in a trace: a `_Result` for each result."""

_NORMS = ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm")
_PRODUCT = "a product of two values of the network stretches without bound"


def _is_norm(call: Call | None) -> bool:
    return call is not None and call.name in _NORMS


def _axes(*names: str) -> list[str]:
    return [name.replace("*", n) for name in names for n in "123"]


def _spread(step: Step, value: _Value) -> float:
    """Return how far broadcasting to the shape of the result stretches."""
    return root([Fraction(step.result.numel(), math.prod(value.shape))])


def _factor(step: Step, constant: Any) -> tuple[float, float]:
    """Return the smallest and the largest size of constants, as given and as the network rounds."""
    given = torch.as_tensor(constant).detach().cpu()
    both = [given.double(), given.to(step.given.dtype).double()]
    sizes = torch.stack(both).abs()
    if not sizes.numel() or not bool(sizes.isfinite().all()):
        raise _unknown(step.call, "it multiplies by no finite number")
    return sizes.min().item(), sizes.max().item()


@BOUNDS.register(LAYER)
def _(step: Step, x: _Value) -> _Result:
    module: Any = step.call.module
    if len(x.shape) != 2 + len(module.kernel_size):
        raise _unknown(step.call, "an example without a batch axis")
    size = tuple(x.shape[2:])
    read = read_layer(module, size)
    layer = _Layer(ConvLayer(read.geometry, numbers(read.filters)), size, step.call)
    return _Result(((x, NormBounds(1.0, 1.0)),), layer=layer)


@BOUNDS.register("convolution")
def _(step: Step, x: Any, weight: Any, bias: Any, **rest: Any) -> _Result:
    if not isinstance(x, _Value) or isinstance(weight, _Value):
        raise _unknown(step.call, _PRODUCT)
    transposed, groups, padding = rest["transposed"], rest["groups"], rest["padding"]
    filters = numbers(weight_to_filters(weight, transposed=transposed, groups=groups))
    f, *kernel, per_group = filters.shape
    geometry = ConvGeometry(
        per_group * groups,
        f,
        tuple(kernel),
        stride=tuple(rest["stride"]),
        padding=tuple((low, low) for low in padding),
        dilation=tuple(rest["dilation"]),
        groups=groups,
        transposed=transposed,
        output_padding=tuple(rest["output_padding"]) if transposed else 0,
    )
    layer = _Layer(ConvLayer(geometry, filters), tuple(x.shape[2:]), step.call)
    return _Result(((x, NormBounds(1.0, 1.0)),), layer=layer)


@BOUNDS.register("linear")
def _(step: Step, x: Any, weight: Any, bias: Any = None) -> _Result:
    if not isinstance(x, _Value) or isinstance(weight, _Value) or isinstance(bias, _Value):
        raise _unknown(step.call, _PRODUCT)
    layer = _Layer(numbers(weight), (), step.call)
    plain = _Result(((x, NormBounds(1.0, 1.0)),), layer=layer)
    return plain if len(x.shape) == 2 else _one(x, layer.bounds())


@BOUNDS.register("matmul", "mm", "addmm")
def _(step: Step, *operands: Any, **named: Any) -> _Result:
    """Multiply by a constant matrix."""
    tensors = [one for one in (*operands, *named.values()) if isinstance(one, _Value | Tensor)]
    first, second = tensors[-2:]
    alone = sum(isinstance(one, _Value) for one in tensors) == 1
    if not alone or named.get("alpha", 1) != 1 or isinstance(second, _Value):
        raise _unknown(step.call, _PRODUCT if not alone else "")
    if not isinstance(first, _Value) or second.dim() != 2:
        raise _unknown(step.call, "it multiplies by no matrix")
    return _one(first, matrix_bounds(numbers(second)))


@BOUNDS.register(*_NORMS)
def _(
    step: Step,
    x: _Value,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    training: bool,
    **more: Any,
) -> _Result:
    if training or running_var is None:
        raise _unknown(step.call, "without running statistics it divides by those of the batch")
    scale = 1 / np.sqrt(numbers(running_var) + more.get("eps", more.get("epsilon")))
    scale = np.abs(scale if weight is None else scale * numbers(weight))
    share = gamma(_SCALE_ROUNDINGS, _U)
    if x.layer is None:
        largest = float(scale.max())
        found = NormBounds(largest, largest, "the largest scale of a channel")
    else:
        # The product of filter and scale is rounded: by u of each tap's matrix, whose Frobenius
        # norm is at most the root of its rank, which is less than its columns, times the norm.
        given = x.layer.weight
        one = given.filters if isinstance(given, ConvLayer) else given
        found = x.layer.bounds(scale)
        share += gamma(one[0].size, _U)
    return _one(x, found.widened(share))


@BOUNDS.register("add", "sub", "rsub")
def _(step: Step, x: Any, other: Any, alpha: float = 1) -> _Result:
    factors = {"add": (1, alpha), "sub": (1, alpha), "rsub": (alpha, 1)}[step.call.name]
    terms = [
        (one, product(abs(float(factor)), _spread(step, one)))
        for one, factor in zip((x, other), factors, strict=True)
        if isinstance(one, _Value)
    ]
    how = "the sum of its inputs" if len(terms) == 2 else ""
    return _Result(tuple((one, NormBounds(size, size)) for one, size in terms), how)


@BOUNDS.register("maximum", "fmax", "minimum", "fmin")
def _(step: Step, x: Any, other: Any) -> _Result:
    terms = [(one, _spread(step, one)) for one in (x, other) if isinstance(one, _Value)]
    how = "the root of the sum of squares" if len(terms) == 2 else ""
    made = tuple((one, NormBounds(size, size)) for one, size in terms)
    return _Result(made, how, side_by_side=True)


@BOUNDS.register("mul")
def _(step: Step, x: Any, other: Any) -> _Result:
    if isinstance(x, _Value) and isinstance(other, _Value):
        raise _unknown(step.call, _PRODUCT)
    value, constant = (x, other) if isinstance(x, _Value) else (other, x)
    _, largest = _factor(step, constant)
    return _one(value, product(largest, _spread(step, value)), "the largest factor")


@BOUNDS.register("div")
def _(step: Step, x: Any, other: Any = None, rounding_mode: str | None = None) -> _Result:
    if not isinstance(x, _Value) or isinstance(other, _Value) or rounding_mode is not None:
        raise _unknown(step.call, "it divides by a value of the network, or rounds")
    smallest, _ = _factor(step, other)
    if not smallest:
        raise _unknown(step.call, "it divides by 0")
    up = math.nextafter(1 / smallest, math.inf) if math.frexp(smallest)[0] != 0.5 else 1 / smallest
    return _one(x, product(up, _spread(step, x)), "the smallest divisor")


@BOUNDS.register(*MOVES, "sum", "cumsum")
def _(step: Step, /, *operands: Any, **named: Any) -> list[_Result]:
    return _nonnegative(step, (operands, named), exact=True)


@BOUNDS.register(*AVERAGES, "mean")
def _(step: Step, /, *operands: Any, **named: Any) -> list[_Result]:
    return _nonnegative(step, (operands, named), exact=False)


def _nonnegative(step: Step, operands: Any, *, exact: bool) -> list[_Result]:
    """Return ``sqrt(‖A‖₁ ‖A‖∞)`` of a linear map without negative numbers (Schur's test).

    Its largest sums of a row and of a column are those of A and of its adjoint on ones. Exact are
    sums of ones.
    """
    inputs = [one for one in tree_leaves(operands) if isinstance(one, _Value)]
    with torch.enable_grad():
        zeros = [torch.zeros(one.shape, dtype=torch.float64).requires_grad_() for one in inputs]
        origin = tree_leaves(step.again(zeros))
    ahead = tree_leaves(step.again([_first_ones(one) for one in zeros]))
    made = []
    for result, image in zip(origin, ahead, strict=True):
        if len(result) != 2:
            raise _unknown(step.call, "it does not treat each example of a batch by itself")
        rows = image - result.detach()
        columns = torch.autograd.grad(
            result, zeros, _first_ones(result), retain_graph=True, materialize_grads=True
        )
        if any(bool(one[1].any()) for one in (rows, *columns)):
            raise _unknown(step.call, "it does not treat each example of a batch by itself")
        sums = (rows.max().item(), max(one.max().item() for one in columns))
        terms = sum(one.numel() for one in (result, *zeros))
        norm = root([Fraction(sums[0]) * Fraction(sums[1])])
        norm = norm if exact else product(norm, 1 + gamma(terms, _U))
        how = "the root of the sum of squares" if len(inputs) > 1 else ""
        if norm != 1:
            how = "the largest sums of a row and of a column"
        one = NormBounds(norm, norm)
        made.append(_Result(tuple((value, one) for value in inputs), how, side_by_side=True))
    return made


def _first_ones(like: Tensor) -> Tensor:
    ones = torch.zeros_like(like)
    ones[0] = 1
    return ones


@BOUNDS.register("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout")
@BOUNDS.register("feature_dropout", "feature_alpha_dropout")
def _(step: Step, x: _Value, p: float = 0.5, training: Any = None, *_: Any, **more: Any) -> _Result:
    if more.get("train", True) if training is None else training:
        raise _unknown(step.call, "it is always on; call it with self.training")
    return _one(x)


@BOUNDS.register("_to_copy")
def _(step: Step, x: _Value, **more: Any) -> _Result:
    if not step.result.is_floating_point():
        raise _unknown(step.call, "it rounds to integers")
    return _one(x)


# Activations --------------------------------------------------------------------------------------

_SLOPES = {
    **dict.fromkeys(("relu", "neg", "abs", "hardtanh", "relu6", "tanh", "softsign"), 1.0),
    **dict.fromkeys(("tanhshrink", "softshrink", "sin", "cos", "atan", "amax", "amin"), 1.0),
    **dict.fromkeys(("detach", "clone", "alias", "lift_fresh"), 1.0),
    "sigmoid": 0.25,
    "hardsigmoid": math.nextafter(1 / 6, 1),
    "hardswish": 1.5,
    "silu": 1.0999,  # at x = 2.3994: 1.09984
    "gelu": 1.1290,  # at x = √2: 1.12890; with tanh 1.12892
    "mish": 1.0885,  # at x = 1.4867: 1.08850
    "erf": 1.1284,  # 2 / √π
}
"""The largest slope of a function of each element alone, or of a choice of one."""


@BOUNDS.register(*_SLOPES)
def _(step: Step, x: _Value, *_: Any, **__: Any) -> _Result:
    slope = _SLOPES[step.call.name]
    return _one(x, slope, "the slope" if slope != 1 else "")


@BOUNDS.register("log_sigmoid_forward")
def _(step: Step, x: _Value) -> list[_Result]:
    return [_one(x)]


@BOUNDS.register("clamp", "clamp_min", "clamp_max")
def _(step: Step, x: Any, min: Any = None, max: Any = None) -> _Result:
    if not isinstance(x, _Value) or isinstance(min, _Value) or isinstance(max, _Value):
        raise _unknown(step.call, "its limits are values of the network")
    return _one(x, _spread(step, x))


@BOUNDS.register("leaky_relu")
def _(step: Step, x: _Value, negative_slope: float = 0.01) -> _Result:
    slope = max(1.0, _factor(step, negative_slope)[1])
    return _one(x, slope, "the slope" if slope != 1 else "")


@BOUNDS.register("_prelu_kernel")
def _(step: Step, x: _Value, weight: Any) -> _Result:
    slope = max(1.0, _factor(step, weight)[1])
    return _one(x, slope, "the slope" if slope != 1 else "")


@BOUNDS.register("elu")
def _(
    step: Step, x: _Value, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0
) -> _Result:
    inner = math.nextafter(abs(alpha * input_scale), math.inf) if input_scale != 1 else abs(alpha)
    slope = product(abs(scale), max(1.0, inner))
    if alpha * input_scale == 1 == scale:
        slope = 1.0
    return _one(x, slope, "the slope" if slope != 1 else "")


@BOUNDS.register("softplus")
def _(step: Step, x: _Value, beta: float = 1.0, threshold: float = 20.0) -> _Result:
    if threshold < 20:  # it leaps there, by exp(-threshold) / beta
        raise _unknown(step.call, "it leaps at its threshold")
    return _one(x)


@BOUNDS.register("_softmax")
def _(step: Step, x: _Value, dim: int, *_: Any, **__: Any) -> _Result:
    """For p as a distribution, the Jacobian's form is a variance, at most (max - min)² / 4."""
    _check_axis(step, x, dim)
    return _one(x, 0.5, "the slope")


@BOUNDS.register("_log_softmax")
def _(step: Step, x: _Value, dim: int, *_: Any, **__: Any) -> _Result:
    """The Jacobian I - 1 pᵀ is convex in p, and has the norm √n at the corners."""
    _check_axis(step, x, dim)
    return _one(x, root([Fraction(x.shape[dim])]), "the root of the number of classes")


def _check_axis(step: Step, x: _Value, dim: int) -> None:
    if dim % len(x.shape) == 0:
        raise _unknown(step.call, "it does not treat each example of a batch by itself")


@BOUNDS.register(*_axes("max_pool*d"))
def _(
    step: Step,
    x: _Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> _Result:
    ndim = int(step.call.name[-2])
    first = step.result if isinstance(step.result, Tensor) else step.result[0]
    windows = pool_windows(
        x.shape[-ndim:],
        first.shape[-ndim:],
        kernel=kernel_size,
        stride=stride or kernel_size,
        low=padding,
        dilation=dilation,
    )
    return _in_windows(x, windows)


@BOUNDS.register(*_axes("adaptive_max_pool*d"))
def _(step: Step, x: _Value, output_size: Any, return_indices: bool = False) -> _Result:
    ndim = int(step.call.name[-2])
    first = step.result if isinstance(step.result, Tensor) else step.result[0]
    return _in_windows(x, adaptive_windows(x.shape[-ndim:], first.shape[-ndim:]))


def _in_windows(x: _Value, windows: Sequence[Any]) -> _Result:
    """Return the bound of maxima: an element counts as often as there are windows with it."""
    often = math.prod(
        int(np.bincount([i for window in axis for i in window], minlength=1).max())
        for axis in windows
    )
    how = "an element is in several windows" if often > 1 else ""
    return _one(x, root([Fraction(often)]), how)
