"""Scores of probabilities: accuracy, likelihood, Brier score, calibration, foreign images.

Of probabilities per pixel, ``(n, C, *spatial)``, every pixel counts once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import mannwhitneyu

from convfc.arrays import as_numpy
from convfc.errors import NothingToConvert, ShapeError
from convfc.extras import needing
from convfc.sizes import integer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Calibration:
    """Accuracy of a classifier against its confidence, in bins; `calibration` makes it.

    Parameters
    ----------
    edges : ndarray, shape (bins + 1,)
        Of the bins of confidence.
    counts : ndarray, shape (bins,)
        Images, or pixels, in each.
    confidence, accuracy : ndarray, shape (bins,)
        Their mean confidence, and the share of them that is right; NaN in an empty bin.
    ece : float
        Expected calibration error: mean of ``|accuracy - confidence|`` over the images, or pixels
        (Naeini et al. 2015; Guo et al. 2017, arXiv:1706.04599).
    """

    edges: Numbers
    counts: NDArray[np.int64]
    confidence: Numbers
    accuracy: Numbers
    ece: float


def accuracy(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Return the share of images, or pixels, whose most probable class is right.

    Parameters
    ----------
    probabilities : array, shape (n, C) or (n, C, *spatial)
    labels : array of int, shape (n,) or (n, *spatial)

    Raises
    ------
    ShapeError
        If the two do not fit each other.

    Examples
    --------
    >>> accuracy([[0.9, 0.1], [0.4, 0.6]], [0, 0])
    0.5
    """
    p, y = _checked(probabilities, labels)
    return float((p.argmax(axis=1) == y).mean())


def negative_log_likelihood(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean of -ln p(label), in nats; infinite where a true class has probability 0.

    Arguments and errors are those of `accuracy`.

    Examples
    --------
    >>> round(negative_log_likelihood([[0.5, 0.5]], [1]), 4)
    0.6931
    """
    p, y = _checked(probabilities, labels)
    with np.errstate(divide="ignore"):
        return float(-np.log(p[np.arange(len(y)), y]).mean())


def brier_score(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean squared distance of the probabilities from the truth (Brier 1950): 0 to 2.

    Arguments and errors are those of `accuracy`.

    Examples
    --------
    >>> brier_score([[0.5, 0.5]], [1])
    0.5
    """
    p, y = _checked(probabilities, labels)
    truth = np.eye(p.shape[1])[y]
    return float(((p - truth) ** 2).sum(axis=1).mean())


def calibration(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> Calibration:
    """Compare confidence and accuracy in bins of equal width.

    The confidence is the largest probability of a row. Arguments and errors are those of
    `accuracy`, and an ArgumentError if ``bins`` is below 1.

    Examples
    --------
    >>> found = calibration([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]], [0, 1, 1], bins=10)
    >>> found.counts[[5, 8]].tolist(), round(found.ece, 3)
    ([1, 2], 0.4)
    """
    bins = integer("bins", bins, least=1)
    p, y = _checked(probabilities, labels)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == y
    edges = np.linspace(0, 1, bins + 1)
    # A bin holds its upper edge, so that a confidence of 1 is in the last one.
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(place, confidence, bins) / counts
        share_right = np.bincount(place, right, bins) / counts
    ece = float(np.nansum(np.abs(share_right - mean_confidence) * counts) / len(y))
    return Calibration(edges, counts, mean_confidence, share_right, ece)


def reliability_figure(found: Mapping[str, Calibration], columns: int = 3) -> Figure:
    """Draw reliability diagrams (Guo et al. 2017, Figure 1), one per classifier.

    Bars are the accuracy of each bin of confidence, on the diagonal where a classifier is
    calibrated; the difference is hatched. Below, the number of images, or pixels, in each bin.

    Parameters
    ----------
    found : mapping from str to Calibration
    columns : int
        Diagrams side by side.

    Returns
    -------
    matplotlib.figure.Figure
        Draw it inside `convfc.drawing.house_style`.

    Raises
    ------
    NothingToConvert
        If ``found`` is empty.
    """
    with needing():
        from matplotlib.figure import Figure
    from convfc.drawing import INK, WIDTH

    if not found:
        raise NothingToConvert("no calibration to draw", where="found")
    columns = min(columns, len(found))
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(WIDTH, 0.6 + 2.9 * rows), layout="constrained")
    grid = figure.subplots(
        2 * rows, columns, squeeze=False, sharex=True, gridspec_kw={"height_ratios": [3, 1] * rows}
    )
    for number, (name, one) in enumerate(found.items()):
        row, column = divmod(number, columns)
        above, below = grid[2 * row][column], grid[2 * row + 1][column]
        filled = one.counts > 0
        place = {"x": one.edges[:-1][filled], "width": np.diff(one.edges)[filled], "align": "edge"}
        right, sure = one.accuracy[filled], one.confidence[filled]
        above.bar(height=right, color="#0072B2", edgecolor="white", linewidth=0.5, **place)
        hatched = {"color": "none", "edgecolor": "#D55E00", "hatch": "////", "linewidth": 0.8}
        above.bar(height=sure - right, bottom=right, **hatched, **place)
        above.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        above.set(ylim=(0, 1), xlim=(0, 1))
        above.set_title(f"{name}\nECE {100 * one.ece:.1f} %")
        below.bar(height=one.counts[filled], color="#999999", edgecolor="white", **place)
        below.set_yscale("log")
        below.set_xlabel("confidence")
        if column == 0:
            above.set_ylabel("accuracy")
            below.set_ylabel("count")
    for spare in range(len(found) - columns * (rows - 1), columns):
        grid[-2][spare].set_axis_off()
        grid[-1][spare].set_axis_off()
    return figure


def out_of_distribution_auroc(inside: ArrayLike, outside: ArrayLike) -> float:
    """Return how well an uncertainty separates foreign images from familiar ones.

    The area under the receiver operating characteristic: the probability that a foreign image has
    the larger uncertainty, ties counting half (Mann & Whitney's U divided by the number of pairs).

    Parameters
    ----------
    inside, outside : array, shape (n,) and (m,)
        An uncertainty, such as the predictive entropy, of familiar and of foreign images; of pixels
        choose those to compare, ``entropy[mask]``, or give one number per image.

    Raises
    ------
    ShapeError
        If one of the two is empty or not a vector.

    Examples
    --------
    >>> out_of_distribution_auroc([0.1, 0.2], [0.3, 0.2])
    0.875
    """
    familiar = np.asarray(as_numpy(inside, "inside"), np.float64)
    foreign = np.asarray(as_numpy(outside, "outside"), np.float64)
    for name, values in (("inside", familiar), ("outside", foreign)):
        if values.ndim != 1 or not len(values):
            raise ShapeError(
                "not a vector of scores",
                where=name,
                got=values.shape,
                remedy="of a map, give one score per image: map.flatten(1).mean(dim=1); or per "
                "pixel: map.flatten()"
                if values.ndim > 1
                else None,
            )
    larger = mannwhitneyu(foreign, familiar, method="asymptotic").statistic
    return float(larger / (len(familiar) * len(foreign)))


def _checked(probabilities: ArrayLike, labels: ArrayLike) -> tuple[Numbers, Any]:
    """Return both as arrays that belong together, ``(m, C)`` and ``(m,)``; pixels are rows."""
    p = np.asarray(as_numpy(probabilities, "probabilities"), np.float64)
    y = as_numpy(labels, "labels")
    if p.ndim < 2 or y.shape != p.shape[:1] + p.shape[2:] or not y.size:
        raise ShapeError(
            "probabilities and labels do not fit each other",
            expected="(n, C) and (n,), or (n, C, *spatial) and (n, *spatial)",
            got=f"{p.shape} and {y.shape}",
        )
    pixels = p.ndim > 2
    p, y = np.moveaxis(p, 1, -1).reshape(-1, p.shape[1]), y.reshape(-1)
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= p.shape[1]:
        raise ShapeError(
            "labels are not class numbers",
            where="labels",
            expected=f"whole numbers from 0 to {p.shape[1] - 1}",
            got=f"{y.dtype}, from {y.min()} to {y.max()}",
            remedy="leave out pixels without a class: probabilities.movedim(1, -1)[mask], "
            "labels[mask]"
            if pixels
            else None,
        )
    if not np.abs(p.sum(axis=1) - 1).max() < 1e-3 or p.min() < 0:
        raise ShapeError(
            "rows are not probabilities",
            where="probabilities",
            expected="numbers of at least 0 that sum to 1",
            got=f"sums from {p.sum(axis=1).min():.3g} to {p.sum(axis=1).max():.3g}",
            remedy="apply softmax first",
        )
    return p, y
