"""Predictions of a network with random weights: many draws, their mean, and how far they disagree.

Of a classifier, the measures are those of Gal (2016, Section 3.3.1), in nats: the *predictive
entropy* of the mean is all uncertainty; the *expected entropy* of the single draws remains when the
weights are known (aleatoric); their difference, the *mutual information* of prediction and weights,
is what more data can reduce (epistemic; Houlsby et al. 2011 call it BALD).

Of a regression, they are those of Kendall & Gal (2017, arXiv:1703.04977, Eq. (9)), the law of total
variance: the variance of the values over the draws (epistemic), and the mean of the variances that
the network itself predicts (aleatoric).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias, TypeVar, overload

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import Dataset

from convfc.errors import ArgumentError, NothingToConvert, ShapeError
from convfc.frameworks.torch.running import (
    call_arguments,
    call_model,
    check_has_numbers,
    in_mode,
    random_numbers,
)
from convfc.methods.uncertainty.layers import draws
from convfc.progress import Progress, telling
from convfc.sizes import integer, one_of

Classes: TypeAlias = Literal["logits", "probabilities", "log_probabilities"]
Output: TypeAlias = Literal["logits", "probabilities", "log_probabilities", "values"]
Inputs: TypeAlias = Callable[[Any], Any]
_NEARLY = 0.01  # bfloat16 rounds a probability by 0.4 %


@dataclass(frozen=True, eq=False)
class Prediction:
    """What `predict` found for n images and C classes; float64, on the CPU.

    Outputs per pixel, as in segmentation, have their spatial axes behind the class axis.

    Parameters
    ----------
    mean : Tensor, shape (n, C) or (n, C, *spatial)
        Mean probability of each class over the draws.
    predictive_entropy, expected_entropy, mutual_information : Tensor, shape (n,) or (n, *spatial)
        In nats. All uncertainty, its aleatoric and its epistemic part; the first is the sum of the
        other two.
    draws : Tensor, shape (samples, *shape of mean), or None
        What the network returned at every draw, if ``keep`` was set.
    samples : int
    """

    mean: Tensor
    predictive_entropy: Tensor
    expected_entropy: Tensor
    mutual_information: Tensor
    draws: Tensor | None
    samples: int

    @property
    def label(self) -> Tensor:
        """The most probable class of each image or pixel, shape (n,) or (n, *spatial)."""
        return self.mean.argmax(dim=1)

    @classmethod
    def of(cls, probabilities: Tensor, draws: Tensor | None = None) -> Prediction:
        """Return the prediction of draws that another library made, such as laplace-torch.

        Parameters
        ----------
        probabilities : Tensor, shape (samples, n, C) or (samples, n, C, *spatial)
            At each draw; those of the classes are divided by their sum.
        draws : Tensor, optional
            What to keep in the field of this name.

        Raises
        ------
        ShapeError
            If there are fewer than three axes, fewer than two classes, or no draws.

        Examples
        --------
        >>> found = Prediction.of(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
        >>> bool(found.mutual_information == found.predictive_entropy)  # each draw is certain
        True
        """
        if probabilities.dim() < 3 or not len(probabilities):
            raise ShapeError(
                "not the probabilities of draws",
                where="probabilities",
                expected="(samples, n, C) or (samples, n, C, *spatial)",
                got=tuple(probabilities.shape),
                remedy="of a single draw, give probabilities[None]",
            )
        if probabilities.shape[2] < 2:
            raise _one_class("probabilities", probabilities.shape, "probabilities")
        sums = _Classes("probabilities")
        for one in probabilities.detach():
            sums.add(one)
        return sums.found(draws)


@dataclass(frozen=True, eq=False)
class RegressionPrediction:
    """What `predict` found of values, with their variances; float64, on the CPU.

    Parameters
    ----------
    mean : Tensor, shape (n, ...)
        Mean of the values over the draws, in the shape that the network returns.
    variance, epistemic_variance, aleatoric_variance : Tensor, shape (n, ...)
        The whole variance is the sum of the other two: that of the values over the draws (their
        mean square distance from the mean), and the mean of the variances that the network
        predicts, zero if it predicts none.
    draws : Tensor, pair of Tensor, or None
        What the network returned at every draw, ``(samples, n, ...)``, if ``keep`` was set.
    samples : int
    """

    mean: Tensor
    variance: Tensor
    epistemic_variance: Tensor
    aleatoric_variance: Tensor
    draws: Tensor | tuple[Tensor, ...] | None
    samples: int

    @property
    def std(self) -> Tensor:
        """The whole standard deviation, shape (n, ...)."""
        return self.variance.sqrt()


_Found = TypeVar("_Found", Prediction, RegressionPrediction)


class _Classes:
    """The means over the draws of a classifier's probabilities and of their entropy."""

    def __init__(self, output: Output) -> None:
        self.output, self.samples = output, 0
        self.total: Any = 0.0
        self.entropy: Any = 0.0

    def add(self, y: Tensor) -> None:
        y = _precise(y)
        p = _normal(y) if self.output == "probabilities" else y.softmax(dim=1)
        self.total += p
        self.entropy += _entropy(p)
        self.samples += 1

    def found(self, kept: Any) -> Prediction:
        mean = (self.total / self.samples).cpu()
        predictive = _entropy(mean)
        # The expected entropy is at most the predictive one (Jensen); rounding can change that.
        expected = torch.minimum((self.entropy / self.samples).cpu(), predictive)
        return Prediction(mean, predictive, expected, predictive - expected, kept, self.samples)


class _Values:
    """Mean and variance over the draws of a regression's values, and the mean of its variances.

    The variance is Welford's (1962): squares of the values themselves would lose its digits.
    """

    def __init__(self, output: Output) -> None:
        self.samples = 0
        self.mean: Any = 0.0
        self.squares: Any = 0.0
        self.noise: Any = 0.0

    def add(self, y: Tensor, log_variance: Tensor | None = None) -> None:
        y = _precise(y)
        self.samples += 1
        before = y - self.mean
        self.mean += before / self.samples
        self.squares += before * (y - self.mean)
        if log_variance is not None:
            self.noise += _precise(log_variance).exp()

    def found(self, kept: Any) -> RegressionPrediction:
        mean, epistemic = self.mean.cpu(), (self.squares / self.samples).cpu()
        aleatoric = torch.zeros_like(mean).add_(torch.as_tensor(self.noise / self.samples).cpu())
        return RegressionPrediction(
            mean, epistemic + aleatoric, epistemic, aleatoric, kept, self.samples
        )


@overload
def predict(
    model: nn.Module,
    x: Any,
    samples: int = 100,
    *,
    output: Literal["values"],
    seed: int = 0,
    batch_size: int = 256,
    inputs: Inputs | None = None,
    keep: bool = False,
    progress: Progress | bool = False,
) -> RegressionPrediction: ...


@overload
def predict(
    model: nn.Module,
    x: Any,
    samples: int = 100,
    *,
    output: Classes = "logits",
    seed: int = 0,
    batch_size: int = 256,
    inputs: Inputs | None = None,
    keep: bool = False,
    progress: Progress | bool = False,
) -> Prediction: ...


def predict(
    model: nn.Module,
    x: Any,
    samples: int = 100,
    *,
    output: Output = "logits",
    seed: int = 0,
    batch_size: int = 256,
    inputs: Inputs | None = None,
    keep: bool = False,
    progress: Progress | bool = False,
) -> Prediction | RegressionPrediction:
    """Predict with many draws of a network's random weights: classes, or values.

    Random layers and every kind of PyTorch's dropout draw, also in networks that are not convfc's,
    and inside recurrent layers and transformers; the rest, such as BatchNorm, is in evaluation
    mode. (So is a function in a forward, ``dropout(x, training=self.training)``, which does not
    draw.) Modes and random generators are restored.

    Parameters
    ----------
    model : nn.Module
        It takes a batch of images and returns what ``output`` says.
    x : Tensor, array, tuple, dict, or iterable of batches
        Images ``(n, ...)``. A tuple holds several arguments, a dict keyword arguments, of n rows
        each. Or a DataLoader, a list or a generator of batches: all draws of a batch are made
        before the next is asked for, so that each image is loaded once. Tensors are moved to the
        model's device.
    samples : int
        Draws, or forward passes.
    output : {"logits", "probabilities", "log_probabilities", "values"}
        What the network returns. Of a classifier, ``(n, C)``, or per pixel ``(n, C, *spatial)``.
        "values", of a regression: a tensor ``(n, ...)``, or a pair of such tensors, the values and
        the logarithms of their variances.
    seed : int
        Each draw has its own seed, the same for all batches: weights drawn once per call
        (``per="call"``) are one network for all images, whatever the batch size.
    batch_size : int
        Images that are run at a time, where ``x`` does not come in batches.
    inputs : function, optional
        From a batch to what the model takes: a tensor, a tuple of several arguments, or a dict of
        keyword arguments. By default a batch that comes as a list or tuple, such as (images,
        labels), gives its first tensor.
    keep : bool
        Whether to keep what the network returned. Without it, memory does not grow with
        ``samples``.
    progress : callable or bool
        Called with the forward passes done, all of them (draws times batches, or None where nobody
        knows how many batches there are), and the batch; True shows a bar (package rich).

    Returns
    -------
    Prediction
        Or a `RegressionPrediction`, of values. It holds all images: where that is too much, call
        ``predict`` batch by batch. The draws are the same.

    Raises
    ------
    NothingToConvert
        If nothing in the network is random: all draws are the same bits.
    ShapeError
        If there are no images, or the network does not take them or returns something else, or maps
        of several sizes.
    ArgumentError
        If a number is below one, the output does not exist or is not what the network returns, or
        it is not known what of a batch the model takes.

    Examples
    --------
    >>> from convfc.methods.uncertainty import to_bayesian
    >>> cnn = nn.Sequential(nn.Conv2d(1, 8, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(1352, 10))
    >>> found = predict(to_bayesian(cnn, "dropout"), torch.rand(5, 1, 28, 28), samples=20)
    >>> found.mean.shape, found.mutual_information.shape
    (torch.Size([5, 10]), torch.Size([5]))
    >>> bool((found.mean.sum(dim=1) - 1).abs().max() < 1e-12)
    True
    >>> fields = to_bayesian(nn.Conv2d(3, 1, 3, padding=1), "gaussian")
    >>> predict(fields, torch.rand(5, 3, 9, 9), samples=20, output="values").variance.shape
    torch.Size([5, 1, 9, 9])
    """
    one_of("output", output, Output)
    samples = integer("samples", samples, least=1)
    batch_size = integer("batch_size", batch_size, least=1)
    check_has_numbers(model, "model")
    batches, count = _batches(x, batch_size)
    passes = None if count is None else count * samples
    read = inputs or (_first if batches is x else _itself)
    parts: list[Any] = []
    known, same = any(map(draws, model.modules())), samples > 1
    with (
        in_mode(model, draws),
        torch.no_grad(),
        random_numbers(model.parameters()),  # a DataLoader draws, too
        telling(progress) as tell,
    ):
        for batch in batches:
            args, kwargs = _on_device_of(model, call_arguments(model, read(batch)))
            sums = _Values(output) if output == "values" else _Classes(output)
            first: list[Tensor] = []
            kept: list[list[Tensor]] = []
            for number in range(samples):
                drawn = _one_draw(model, args, kwargs, output, seed + number)
                sums.add(*drawn)
                if keep:  # copied: a network may write all its outputs into one tensor
                    kept.append([part.to("cpu", copy=True) for part in drawn])
                first = first or [part.clone() for part in drawn]
                same = same and (number == 0 or all(map(torch.equal, first, drawn)))
                if same and number == 1 and not known:
                    raise _nothing_random(model)
                tell(len(parts) * samples + number + 1, passes, f"batch {len(parts) + 1}")
            whole = tuple(map(torch.stack, zip(*kept, strict=True)))
            parts.append(sums.found(whole if len(whole) > 1 else next(iter(whole), None)))
            _check_sizes(parts[0].mean, parts[-1].mean)
    if not parts:
        raise ShapeError("no images", where="x", expected="at least one batch", got="none")
    if same:
        raise _nothing_random(model)
    found: Prediction | RegressionPrediction = _joined(parts)
    return found


def _entropy(p: Tensor) -> Tensor:
    """Return the entropy over the axis of the classes, in nats."""
    entropy: Tensor = torch.special.entr(p).sum(dim=1)
    return entropy


def _normal(y: Tensor) -> Tensor:
    """Return probabilities without the rounding of their dtype, which has them sum to about 1."""
    sums = y.sum(dim=1, keepdim=True)
    if bool((y < 0).any() or ((sums - 1).abs() > _NEARLY).any()):
        raise ArgumentError(
            "the network does not return probabilities",
            where="output",
            expected="numbers from 0 to 1 that sum to 1 over the classes",
            got=f"numbers from {y.min().item():.3g} to {y.max().item():.3g}, with sums from "
            f"{sums.min().item():.3g} to {sums.max().item():.3g}",
            remedy='output="logits" for what goes into a softmax',
        )
    return y / sums


def _precise(y: Tensor) -> Tensor:
    """Return a tensor in float64, where it is; Apple's GPUs have none."""
    return (y.cpu() if y.device.type == "mps" else y).double()


def _batches(x: Any, batch_size: int) -> tuple[Iterable[Any], int | None]:
    """Return the batches of what a user gives, and how many there are, if that is known."""
    if not isinstance(x, (Tensor, np.ndarray, tuple, Mapping)):
        if isinstance(x, Dataset) or not isinstance(x, Iterable):
            raise ArgumentError(
                "neither images nor batches of them",
                where="x",
                expected="a tensor, an array, a tuple or dict of them, or an iterable of batches",
                got=type(x).__name__,
                remedy="of a data set, give a torch.utils.data.DataLoader(dataset, batch_size=...)",
            )
        return x, operator.length_hint(x, 0) or None
    x = dict(x) if isinstance(x, Mapping) else x
    rows = {len(leaf) for leaf in tree_leaves(x) if _has_rows(leaf)}
    count = rows.pop() if len(rows) == 1 else 0
    if count == 0:
        raise ShapeError(
            "arguments of several lengths" if rows else "no images",
            where="x",
            expected="(n, ...) with n >= 1",
            got=", ".join(str((*leaf.shape,)) for leaf in tree_leaves(x) if _has_rows(leaf)),
            remedy="what is not one row per image goes with a batch: x=[(images, table)], "
            "inputs=tuple"
            if rows
            else None,
        )

    def part(start: int) -> Any:
        chosen = slice(start, start + batch_size)
        return tree_map(lambda leaf: leaf[chosen] if _has_rows(leaf) else leaf, x)

    starts = range(0, count, batch_size)
    return map(part, starts), len(starts)


def _has_rows(leaf: Any) -> bool:
    return isinstance(leaf, (Tensor, np.ndarray)) and leaf.ndim > 0


def _itself(batch: Any) -> Any:
    return batch


def _first(batch: Any) -> Any:
    """Return the images of a batch: the batch itself, or the first of (images, labels)."""
    first = batch[0] if isinstance(batch, (list, tuple)) and batch else batch
    if isinstance(first, (Tensor, np.ndarray)):
        return first
    of, taken = f"a {type(first).__name__}", "batch" if first is batch else "batch[0]"
    if isinstance(first, Mapping) and first:
        of += f" of {', '.join(map(str, first))}"
        taken += f"[{next(iter(first))!r}]"
    raise ArgumentError(
        "it is not known what of a batch the model takes",
        where="x",
        expected="a tensor, or a list or tuple whose first is one",
        got=of if first is batch else f"a {type(batch).__name__} whose first is {of}",
        remedy=f"say it, such as inputs=lambda batch: {taken}; a tuple holds several arguments, a "
        "dict keyword arguments",
    )


def _on_device_of(model: nn.Module, arguments: Any) -> Any:
    """Return the arguments of a call with their tensors where the model's first parameter is."""
    device = next((p.device for p in model.parameters()), None)
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, arguments)


def _one_draw(
    model: nn.Module, args: Any, kwargs: Any, output: Output, seed: int
) -> tuple[Tensor, ...]:
    """Run one batch from a seed; return what the network returns, as the tensors to be added."""
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    with random_numbers((*given, *model.parameters()), seed):
        y = call_model(model, args, kwargs, "x")
    parts = tuple(y) if isinstance(y, (tuple, list)) else (y,)
    rows = {len(leaf) for leaf in given if leaf.dim()}
    most, axes = (2, 1) if output == "values" else (1, 2)
    if (
        all(isinstance(part, Tensor) and part.dim() >= axes for part in parts)
        and 1 <= len(parts) <= most
        and parts[0].shape == parts[-1].shape
        and len(parts[0]) in rows
    ):
        if output == "values" or parts[0].shape[1] > 1:
            return parts
        raise _one_class(f"the output of {type(model).__name__}", parts[0].shape, output)
    raise _not_understood(model, y, output, min(rows, default=0))


def _one_class(where: str, shape: torch.Size, output: Output) -> ShapeError:
    """Return that one number per image or pixel is no distribution over classes."""
    zero = {"logits": "torch.zeros_like(y)", "probabilities": "1 - y"}.get(
        output, "(-y.expm1()).log()"
    )
    return ShapeError(
        "one class alone has probability 1",
        where=where,
        expected="two classes or more on the axis of the classes",
        got=tuple(shape),
        remedy=f"if y is of the second of two, give both: torch.cat([{zero}, y], dim=1)",
    )


def _not_understood(model: nn.Module, y: Any, output: Output, count: int) -> ShapeError:
    """Return why what a network returned is not what `output` says, and the way out."""

    def told(y: Any) -> str:
        if isinstance(y, Tensor):
            return str(tuple(y.shape))
        held = y if isinstance(y, Mapping) else map(told, y) if isinstance(y, (tuple, list)) else ()
        return " of ".join(filter(None, (type(y).__name__, ", ".join(map(str, held)))))

    values = output == "values"
    expected = f"a tensor of shape ({count}, C) or ({count}, C, *spatial)"
    if values:
        expected = f"values of shape ({count}, ...), or a pair: values and log variances"
    remedy = "wrap it in a module that does"
    if not isinstance(y, Tensor):
        keys = list(y) if isinstance(y, Mapping) and y else [0]
        chosen = [f"y[{key!r}]" for key in keys[: 1 + values]]
        hook = f"lambda module, inputs, y: {chosen[0]}"
        if len(chosen) > 1:
            hook = f"lambda module, inputs, y: ({', '.join(chosen)})"
        remedy = f"have it return them alone, such as with model.register_forward_hook({hook})"
        if isinstance(y, (tuple, list)) and not values:
            remedy += '; of a regression, ask for output="values"'
    return ShapeError(
        f"the network does not return one row of {'values' if values else 'classes'} per image",
        where=type(model).__name__,
        expected=expected,
        got=told(y),
        remedy=remedy,
    )


def _nothing_random(model: nn.Module) -> NothingToConvert:
    return NothingToConvert(
        "two draws are the same: nothing in the network is random",
        where=type(model).__name__,
        remedy="make it random with convfc.methods.uncertainty.to_bayesian, or ask for one sample; "
        "a function such as torch.nn.functional.dropout draws with training=True",
    )


def _check_sizes(first: Tensor, mean: Tensor) -> None:
    """Refuse images whose outputs cannot stand in one tensor."""
    if first.shape[1:] != mean.shape[1:]:
        raise ShapeError(
            "the network returns maps of several sizes, which are no one tensor",
            where="x",
            expected=tuple(first.shape[1:]),
            got=tuple(mean.shape[1:]),
            remedy="call predict for each size; the draws are the same",
        )


def _joined(parts: list[_Found]) -> _Found:
    """Return the predictions of several batches as one."""

    def together(values: list[Any], axis: int) -> Any:
        if isinstance(values[0], tuple):
            return tuple(together(list(one), axis) for one in zip(*values, strict=True))
        return torch.cat(values, axis) if isinstance(values[0], Tensor) else values[0]

    names = [field.name for field in fields(parts[0])]
    columns = {name: [getattr(part, name) for part in parts] for name in names}
    return type(parts[0])(
        **{name: together(column, int(name == "draws")) for name, column in columns.items()}
    )
