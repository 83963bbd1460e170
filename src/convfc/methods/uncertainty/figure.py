"""The reliability diagram: the accuracy of a classifier against its confidence."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from convfc.extras import needing

with needing():
    from matplotlib.figure import Figure

from convfc.drawing import INK, WIDTH
from convfc.errors import NothingToConvert
from convfc.methods.uncertainty.scores import Calibration


def reliability_figure(found: Mapping[str, Calibration], columns: int = 3) -> Figure:
    """Draw reliability diagrams (Guo et al. 2017, Figure 1), one per classifier.

    Bars are the accuracy of each bin of confidence, on the diagonal where a classifier is
    calibrated; the difference is hatched. Below, the number of images in each bin.

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
            below.set_ylabel("images")
    for spare in range(len(found) - columns * (rows - 1), columns):
        grid[-2][spare].set_axis_off()
        grid[-1][spare].set_axis_off()
    return figure
