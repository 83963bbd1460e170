"""The figures of the experiment: the paper's 6 to 10, and those that go beyond it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convfc.extras import needing

with needing("paper"):
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
    from matplotlib.ticker import MaxNLocator, NullFormatter

from convfc.algorithm1 import filters_to_matrix, im2col, patch_product, rows_to_output
from convfc.drawing import INK, WIDTH
from convfc.geometry import ConvGeometry
from convfc.paper.findings import Record, measured
from convfc.paper.optimizers import TITLES
from convfc.paper.spread import Group

# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = {"cnn": "#0072B2", "fc": "#D55E00", "control": "#009E73"}
LABELS = {"cnn": "CNN", "fc": "FC network", "control": "control"}
LOSSES = {"sgd": "figure-07", "adam": "figure-10"}
"""The paper's figures of losses; those of other optimizers are named after them."""
# CNN wide and solid below, FC dashed on top, control thin: equal curves stay visible.
_STROKES: Mapping[str, Mapping[str, Any]] = {
    "cnn": {"linewidth": 4.5, "alpha": 0.55, "solid_capstyle": "butt"},
    "fc": {"linewidth": 1.8, "linestyle": (0, (4, 3))},
    "control": {"linewidth": 0.9},
}


def loss_figure(record: Record, optimizer: str) -> Figure:
    """Draw the losses of all networks against the epoch (Figures 7 and 10).

    Above, the losses; below, how far the FC network's are from the CNN's.
    """
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    rows = figure.subplots(2, 2, sharex=True, gridspec_kw={"height_ratios": [2.6, 1]})
    rows[0][1].sharey(rows[0][0])
    for (above, below), part, title in zip(
        rows.T, ("loss", "val_loss"), ("training", "validation"), strict=True
    ):
        losses = {
            name: getattr(record.networks[record.dtype, optimizer, name], part)
            for name in _STROKES
            if (record.dtype, optimizer, name) in record.networks
        }
        epochs = np.arange(1, len(losses["cnn"]) + 1)
        for name, values in losses.items():
            stroke = {"color": COLOURS[name], "label": LABELS[name], **_STROKES[name]}
            above.plot(epochs, values, **stroke)
        apart = np.abs(losses["fc"] - losses["cnn"])
        if apart.any():
            # Points, because between two of them the difference may be exactly 0.
            below.plot(epochs, _positive(apart), ".", color=INK, markersize=4)
            below.set_yscale("log")
            decades = np.log10(apart[apart > 0])
            below.set_ylim(10.0 ** np.floor(decades.min()), 10.0 ** np.ceil(decades.max() + 0.5))
        else:
            below.set_yticks([])
        equal = f"exactly 0 in {(apart == 0).sum()} of {apart.size} epochs"
        below.text(0.02, 0.95, equal, transform=below.transAxes, va="top", fontsize="small")
        above.set_title(f"{title} loss, {TITLES[optimizer]}")
        below.set_xlabel("epoch")
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
    rows[0][0].set_ylabel("mean square error")
    rows[1][0].set_ylabel("|FC − CNN|")
    rows[0][1].legend(handlelength=3.2)
    return figure


def histogram_figure(record: Record, optimizers: Sequence[str]) -> Figure:
    """Draw histograms of the first layer's weights after training (Figure 9), a panel each."""
    figure = Figure(figsize=(WIDTH, 3.1), layout="constrained")
    panels = figure.subplots(1, len(optimizers), squeeze=False, sharey=True)[0]
    strokes: Mapping[str, Mapping[str, Any]] = {
        "cnn": {"histtype": "stepfilled", "alpha": 0.5},
        "fc": {"histtype": "step", "linewidth": 1.6, "linestyle": (0, (4, 2))},
    }
    for panel, letter, optimizer in zip(panels, "abcdef", optimizers, strict=False):
        weights = [
            record.networks[record.dtype, optimizer, name].first_layer[-1].ravel()
            for name in strokes
        ]
        bins = np.linspace(np.min(weights), np.max(weights), 41)
        for (name, stroke), values in zip(strokes.items(), weights, strict=True):
            panel.hist(values, bins, color=COLOURS[name], label=LABELS[name], **stroke)
        panel.set_title(f"({letter}) {TITLES[optimizer]}")
        panel.set_xlabel("weight of the first layer")
    panels[0].set_ylabel("number of weights")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2)
    return figure


def difference_figure(record: Record) -> Figure:
    """Draw how far the first layers are apart after every epoch, on a logarithmic axis.

    What is exactly 0, which a logarithm does not have, is drawn in a band of its own below.
    """
    lines = [
        (dtype, optimizer, pair, difference)
        for pair in (("fc", "cnn"), ("control", "fc"))
        for dtype in dict.fromkeys((record.dtype, *sorted(d for d, _, _ in record.networks)))
        for optimizer in reversed(record.optimizers(dtype))
        if (difference := record.weight_difference(dtype, optimizer, *pair)) is not None
    ]
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    above, band = figure.subplots(
        2, 1, sharex=True, gridspec_kw={"height_ratios": [4, 0.17 * len(lines) + 0.1]}
    )
    dashes = {"adam": "solid", "sgd": (0, (6, 2))}
    for lane, (dtype, optimizer, (network, other), difference) in enumerate(lines):
        stroke: dict[str, Any] = {
            "color": COLOURS[network] if dtype == record.dtype else "#7B3294",
            "linestyle": dashes.get(optimizer, "solid"),
            "linewidth": 2,
        }
        label = f"{LABELS[network]} − {LABELS[other]}, {TITLES[optimizer]}, {dtype}"
        dots: dict[str, Any] = {"marker": "o" if len(difference) < 25 else None, "markersize": 3}
        epoch = np.arange(len(difference))
        above.plot(epoch, _positive(difference), label=label, **dots, **stroke)
        zero = np.where(difference == 0, -float(lane), np.nan)
        band.plot(epoch, zero, **stroke)
        alone = difference == 0  # a point between two others that are not, which has no line
        alone[1:] &= difference[:-1] != 0
        alone[:-1] &= difference[1:] != 0
        band.plot(epoch[alone], zero[alone], marker="o", markersize=4.5, **stroke)
    for dtype in sorted({d for d, _, _ in record.networks}):
        trained = next(t for (d, _, _), t in record.networks.items() if d == dtype)
        size = trained.one_rounding(epoch=0)
        above.axhline(size, color="#888888", linewidth=0.9, linestyle=":")
        text, at = f"one rounding of every weight, {dtype}", above.get_yaxis_transform()
        over: dict[str, Any] = {"xytext": (0, 2.5), "textcoords": "offset points", "ha": "right"}
        above.annotate(text, (1, size), xycoords=at, fontsize=8, color="#666666", **over)
    above.set_yscale("log")
    above.set_ylabel("‖difference of the first layers‖$_F$")
    above.grid(visible=True, which="major")
    band.set_ylim(-len(lines) + 0.3, 0.7)
    band.set_yticks([(1 - len(lines)) / 2], ["exactly 0"])
    band.grid(visible=False, axis="y")
    band.set_facecolor("#f4f4f4")
    band.set_xlabel("epoch (0: before training)")
    band.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper center", ncols=2, handlelength=3, fontsize=8.5)
    return figure


_METHODS = {
    "direct sliding": ("direct sliding", "v", "#CC79A7"),
    "product": ("M K", "o", "#D55E00"),
    "product in row blocks": ("M K in row blocks", "s", "#E69F00"),
    "native": ("native layer", "D", "#0072B2"),
}
_AXES = {
    "image": "image height and width",
    "kernel": "kernel height and width",
    "batch": "images in a batch",
}


def cost_figure(cost: Mapping[str, Any]) -> Figure:
    """Draw time and peak memory of the ways to compute a CONV layer, as its sizes grow."""
    axes = {name: rows for name, rows in cost["axes"].items() if rows}
    figure = Figure(figsize=(WIDTH, 4.8), layout="constrained")
    panels = figure.subplots(2, len(axes), squeeze=False, sharey="row", sharex="col")
    kinds = (("seconds", "time in milliseconds", 1e3), ("peak_bytes", "peak memory in MiB", 2**-20))
    for column, (name, rows) in enumerate(axes.items()):
        values = [row["value"] for row in rows]
        for panel, (kind, title, factor) in zip(panels[:, column], kinds, strict=True):
            for method, (label, marker, colour) in _METHODS.items():
                found = np.array([measured(row, method, kind) for row in rows], float)  # or a gap
                dots: dict[str, Any] = {"marker": marker, "markersize": 4}
                panel.plot(values, factor * found, color=colour, label=label, **dots)
            if kind == "peak_bytes":
                sizes = np.array([row.get("patch_matrix_bytes") or np.nan for row in rows], float)
                panel.plot(values, factor * sizes, color="#888888", linestyle=":", label="M alone")
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.set_xticks(values, [str(value) for value in values])
            panel.xaxis.minorticks_off()
            if column == 0:
                panel.set_ylabel(title)
        panels[1][column].set_xlabel(_AXES.get(name, name))
    handles, labels = panels[1][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=5, fontsize=8.5)
    return figure


def _positive(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what a logarithmic axis can show; the rest becomes a gap."""
    return np.where(values > 0, values, np.nan)


_HIGHLIGHTS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


def stretch_figure(digit: NDArray[Any], filters: NDArray[Any]) -> Figure:
    """Draw the stretch of an image and a filter to matrices, stride = kernel size (Figure 6).

    The image is ``(height, width)``, the one filter ``(1, k, k, 1)``; a few patches are marked.
    """
    kernel = filters.shape[1]
    geometry = ConvGeometry.valid(1, 1, (kernel, kernel), stride=kernel)
    batch = digit[None, :, :, None].astype(filters.dtype)
    M = im2col(batch, geometry)
    K = filters_to_matrix(filters, geometry)
    rows = patch_product(M, K, geometry)
    output = rows_to_output(rows, geometry, digit.shape)[0, :, :, 0]
    wide = output.shape[1]

    height = 4.7
    figure = Figure(figsize=(WIDTH, height))

    def place(left: float, top: float, width: float, tall: float, title: str) -> Axes:
        axes = figure.add_axes(
            (left / WIDTH, 1 - (top + tall) / height, width / WIDTH, tall / height)
        )
        axes.set_title(title, fontsize=9.5, pad=7)
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
        axes.spines[:].set_visible(True)
        return axes

    cell, top = 4.0 / len(M[0]), 0.45
    image = place(0.12, top, 2.5, 2.5, f"input {_size(digit)}, stride {kernel}")
    small = place(0.92, 3.55, 0.9, 0.9, f"filter {kernel}×{kernel}")
    matrix = place(3.0, top, cell * M.shape[2], 4.0, f"M {_size(M[0])}")
    column = place(4.75, top, 0.2, cell * len(K), f"K {_size(K)}")
    product = place(5.4, top, 0.2, 4.0, f"M K {_size(rows[0])}")
    result = place(6.0, top, 1.05, 1.05, f"output {_size(output)}")

    plain: dict[str, Any] = {"interpolation": "none", "aspect": "auto"}
    for panel, shown in ((image, batch[0, :, :, 0]), (matrix, M[0])):
        panel.imshow(shown, cmap="Greys", **plain)
    for panel, shown, most in (
        (small, filters[0, :, :, 0], np.abs(K).max()),
        (column, K, np.abs(K).max()),
        (product, rows[0], np.abs(rows).max()),
        (result, output, np.abs(rows).max()),
    ):
        panel.imshow(shown, cmap="RdBu_r", vmin=-most, vmax=most, **plain)

    for line in np.arange(kernel, digit.shape[0], kernel) - 0.5:
        image.axhline(line, color="#bbbbbb", linewidth=0.6)
        image.axvline(line, color="#bbbbbb", linewidth=0.6)
    bold: dict[str, Any] = {"fontweight": "bold", "va": "center"}
    for row, colour in zip(_busiest_rows(M[0], wide), _HIGHLIGHTS, strict=False):
        up, left = divmod(row, wide)
        frame: dict[str, Any] = {"fill": False, "edgecolor": colour, "linewidth": 1.8}
        for panel, across, down, size in (
            (image, left * kernel, up * kernel, (kernel, kernel)),
            (matrix, 0, row, (M.shape[2], 1)),
            (product, 0, row, (1, 1)),
            (result, left, up, (1, 1)),
        ):
            panel.add_patch(Rectangle((across - 0.5, down - 0.5), *size, **frame, zorder=3))
        tag: dict[str, Any] = {"bbox": {"facecolor": colour, "edgecolor": "none", "pad": 1.2}}
        tag |= {"color": "white", "fontsize": 7.5, "ha": "center", "zorder": 4, **bold}
        image.text(left * kernel - 0.5, up * kernel - 0.5, str(row), **tag)
        matrix.text(-1.2, row, str(row), color=colour, fontsize=8.5, ha="right", **bold)
    middle: dict[str, Any] = {"fontsize": 14, "ha": "center", "va": "center"}
    for between, symbol, high in ((4.52, "×", 1.1), (5.18, "=", 1.1), (5.8, "→", 0.97)):
        figure.text(between / WIDTH, 1 - high / height, symbol, **middle)
    figure.text(
        5.72 / WIDTH,
        1 - 2.0 / height,
        "A patch, read row by\nrow, is a row of M.\n"
        "The filter, read the same\nway, is the column K.\n"
        "A row of M times K is\none pixel of the output.",
        fontsize=8.2,
        va="top",
        linespacing=1.45,
    )
    return figure


def _busiest_rows(M: NDArray[Any], wide: int) -> list[int]:
    """Four rows of M with much ink, no two of them neighbours, so that their marks stay apart."""
    chosen: list[int] = []
    for row in np.argsort(-np.abs(M).sum(axis=1), kind="stable"):
        if len(chosen) == len(_HIGHLIGHTS):
            break
        apart = [abs(row // wide - c // wide) + abs(row % wide - c % wide) for c in chosen]
        if all(distance > 1 for distance in apart) and all(abs(row - c) > 2 for c in chosen):
            chosen.append(int(row))
    return sorted(chosen)


def _size(array: NDArray[Any]) -> str:
    return "×".join(str(length) for length in array.shape)


def networks_figure(models: Mapping[str, Any]) -> Figure:
    """Draw Keras models that are chains of layers, side by side (Figure 8)."""
    box, gap, head = 0.76, 0.22, 1.05
    deepest = max(len(model.layers) for model in models.values())
    height = head + deepest * (box + gap)
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(height, 0)
    axes.axis("off")
    column = WIDTH / len(models)
    for number, (network, model) in enumerate(models.items()):
        left, middle = number * column + 0.1, (number + 0.5) * column
        centre: dict[str, Any] = {"ha": "center", "va": "center"}
        axes.text(middle, 0.25, LABELS[network], fontweight="bold", **centre)
        axes.text(middle, 0.47, f"{model.count_params():,} weights", fontsize=8.5, **centre)
        # What is alike stands side by side.
        start = head + (deepest - len(model.layers)) * (box + gap)
        axes.text(middle, start - gap - 0.1, _INPUTS[network], fontsize=8.5, **centre)
        for depth, layer in enumerate(model.layers):
            top = start + depth * (box + gap)
            _draw_layer(axes, layer, (left, top), (column - 0.2, box), COLOURS[network])
            ends: Any = ((middle, top - gap), (middle, top))
            head_: Any = {"arrowstyle": "-|>", "mutation_scale": 8, "shrinkA": 0, "shrinkB": 0}
            axes.add_patch(FancyArrowPatch(*ends, color="#666666", **head_))
    return figure


_INPUTS = {"cnn": "images", "fc": "M, made before training", "control": "images"}


def _draw_layer(
    axes: Axes,
    layer: Any,
    corner: tuple[float, float],
    size: tuple[float, float],
    colour: str,
) -> None:
    name = re.sub(r"_\d+$", "", layer.name)  # Keras counts the layers of the process
    weights, kind = layer.count_params(), type(layer).__name__
    trained = weights > 0
    axes.add_patch(
        FancyBboxPatch(
            corner,
            *size,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor=(colour, 0.13) if trained else "#f6f6f6",
            edgecolor=colour if trained else "#bbbbbb",
            linewidth=1.4 if trained else 0.9,
        )
    )
    left, right, top = corner[0] + 0.09, corner[0] + size[0] - 0.09, corner[1]
    grey: dict[str, Any] = {"va": "center", "fontsize": 7.5, "color": "#666666"}
    axes.text(left, top + 0.18, name, va="center", fontsize=9, fontweight="bold")
    described = f"{kind}, {weights:,} weights" if trained else kind
    axes.text(right, top + 0.18, described, ha="right", **grey)
    for line, (word, tensor) in enumerate((("in", layer.input), ("out", layer.output))):
        low = top + 0.4 + 0.21 * line
        axes.text(left, low, word, **grey)
        axes.text(left + 0.27, low, str(tuple(tensor.shape)), va="center", fontsize=8)


_GREY = "#666666"
_RULES = {
    "sgd": "#0072B2",
    "momentum": "#56B4E9",
    "adam": "#D55E00",
    "adamw": "#E69F00",
    "rmsprop": "#CC79A7",
    "muon": "#009E73",
}

_SIZES = {"rounding": "rounding of a gradient", "size": "a gradient"}


def spread_figure(groups: Sequence[Group]) -> Figure:
    """Draw how far CNN and FC network are apart: a row per optimizer, a dot per seed.

    A bar spans the quartiles, a stroke is the median; what is exactly 0 stands in a band of its
    own, since a logarithmic axis has no 0.
    """
    height = 1.1 + 0.36 * len(groups)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    band, axes = figure.subplots(1, 2, sharey=True, gridspec_kw={"width_ratios": [1, 9]})
    for row, group in enumerate(groups):
        values, colour = group.values(), _RULES[group.optimizer]
        above = values > 0
        # Spread out by hand, the same in every drawing.
        heights = row + 0.22 * np.linspace(-1, 1, len(values)) * (len(values) > 1)
        dots: dict[str, Any] = {"color": colour, "markersize": 4, "alpha": 0.75, "linewidth": 0}
        axes.plot(values[above], heights[above], "o", **dots)
        band.plot(np.zeros((~above).sum()), heights[~above], "o", **dots)
        _, low, middle, high, _ = group.quantiles()
        if low > 0:
            axes.plot((low, high), (row, row), color=colour, linewidth=7, alpha=0.3)
        if middle > 0:
            axes.plot((middle, middle), (row - 0.3, row + 0.3), color=INK, linewidth=1.6)
    axes.set_xscale("log")
    _whole_decades(axes.xaxis, np.concatenate([group.values() for group in groups]))
    axes.set_xlabel("‖W$_{CNN}$ − W$_{FC}$‖$_F$ of the first layer, after training")
    band.set_yticks(range(len(groups)), [group.label for group in groups])
    band.set_ylim(len(groups) - 0.45, -0.55)
    band.set_xlim(-1, 1)
    band.set_xticks([0], ["exactly 0"])
    band.grid(visible=False)
    band.set_facecolor("#f4f4f4")
    axes.tick_params(axis="y", length=0)
    return figure


def _whole_decades(axis: Axis, values: NDArray[np.float64]) -> None:
    """Let a logarithmic axis go from one power of ten to another, and name nothing between."""
    decades = np.log10(values[values > 0])
    if len(decades):
        axis.set_view_interval(
            10.0 ** np.floor(decades.min()), 10.0 ** np.ceil(decades.max()), ignore=True
        )
    axis.set_minor_formatter(NullFormatter())


def epsilon_figure(lines: Sequence[Mapping[str, Any]], groups: Sequence[Group]) -> Figure:
    """Draw the difference against epsilon, with the quartiles over the seeds as a band.

    Upright stand the rounding of the gradients, which epsilon has to outweigh, and the gradients,
    beyond which it shortens every step; flat lies SGD.
    """
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = figure.subplots()
    strokes = ("solid", (0, (5, 2)), (0, (1, 1.5)))
    seen: list[str] = []
    for line in lines:
        seen.append(line["optimizer"])
        style = strokes[(seen.count(line["optimizer"]) - 1) % len(strokes)]
        epsilons = [group.epsilon for group in line["groups"]]
        spread = np.array([group.quantiles() for group in line["groups"]])
        colour = _RULES[line["optimizer"]]
        low, middle, high = (_positive(spread[:, at]) for at in (1, 2, 3))
        axes.fill_between(epsilons, low, high, color=colour, alpha=0.22, linewidth=0)
        marked: dict[str, Any] = {"marker": "o", "markersize": 4, "linestyle": style}
        axes.plot(epsilons, middle, color=colour, label=line["label"], **marked)
    axes.set_xscale("log")
    axes.set_yscale("log")
    drawn = [group for group in groups if group.epsilon is not None or group.optimizer == "sgd"]
    _whole_decades(axes.yaxis, np.concatenate([group.values() for group in drawn]))
    marks = {(line[key], title) for line in lines for key, title in _SIZES.items()}
    for size, title in sorted(marks):
        axes.axvline(size, color=_GREY, linewidth=0.9, linestyle=":")
        text: dict[str, Any] = {"rotation": 90, "fontsize": 8, "color": _GREY, "va": "top"}
        at = axes.get_xaxis_transform()
        axes.text(size * 1.15, 0.98, title, transform=at, **text)
    for group in groups:
        if group.optimizer == "sgd" and group.median > 0:
            axes.axhline(group.median, color=_RULES["sgd"], linewidth=1, linestyle="--")
            at = axes.get_yaxis_transform()
            over: dict[str, Any] = {"xytext": (0, 3), "textcoords": "offset points"}
            axes.annotate(group.label, (0.5, group.median), xycoords=at, fontsize=8, **over)
    axes.set_xlabel("ε")
    axes.set_ylabel("‖W$_{CNN}$ − W$_{FC}$‖$_F$, median and quartiles")
    axes.legend()
    return figure
