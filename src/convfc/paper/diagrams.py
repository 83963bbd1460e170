"""The paper's two explaining pictures: the stretch example and the networks (Figures 6 and 8)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convfc.extras import needing

with needing("paper"):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from convfc.algorithm1 import filters_to_matrix, im2col, patch_product, rows_to_output
from convfc.drawing import WIDTH
from convfc.geometry import ConvGeometry
from convfc.paper.figures import COLOURS, LABELS

__all__ = ["DrawnLayer", "describe_layers", "networks_figure", "stretch_figure"]

_HIGHLIGHTS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


def stretch_figure(digit: NDArray[Any], filters: NDArray[Any]) -> Figure:
    """Draw the stretch of an image and a filter to matrices, stride = kernel size (Figure 6).

    Parameters
    ----------
    digit : numpy.ndarray
        A grey image, shape ``(height, width)``.
    filters : numpy.ndarray
        One filter, shape ``(1, k, k, 1)``; the stride is k, so the patches do not overlap.

    Returns
    -------
    matplotlib.figure.Figure
        Image, M, K, M K and the output; a few patches carry the same colour in all of them.
    """
    kernel = filters.shape[1]
    geometry = ConvGeometry.valid(1, 1, (kernel, kernel), stride=kernel)
    batch = digit[None, :, :, None].astype(filters.dtype)
    M = im2col(batch, geometry)
    K = filters_to_matrix(filters, geometry)
    rows = patch_product(M, K, geometry)
    output = rows_to_output(rows, geometry, digit.shape)[0, :, :, 0]
    wide = output.shape[1]
    chosen = _busiest_rows(M[0], wide)

    height = 4.7
    figure = Figure(figsize=(WIDTH, height))

    def place(left: float, top: float, width: float, tall: float, title: str) -> Axes:
        axes = figure.add_axes(
            (left / WIDTH, 1 - (top + tall) / height, width / WIDTH, tall / height)
        )
        axes.set_title(title, fontsize=9.5, pad=7)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(visible=False)
        axes.spines[:].set_visible(True)
        return axes

    cell = 4.0 / len(M[0])
    top = 0.45
    image = place(0.12, top, 2.5, 2.5, f"input {_size(digit)}, stride {kernel}")
    small = place(0.92, 3.55, 0.9, 0.9, f"filter {kernel}×{kernel}")
    matrix = place(3.0, top, cell * M.shape[2], 4.0, f"M {_size(M[0])}")
    column = place(4.75, top, 0.2, cell * len(K), f"K {_size(K)}")
    product = place(5.4, top, 0.2, 4.0, f"M K {_size(rows[0])}")
    result = place(6.0, top, 1.05, 1.05, f"output {_size(output)}")

    grey: dict[str, Any] = {"cmap": "Greys", "interpolation": "none", "aspect": "auto"}
    signed: dict[str, Any] = {"cmap": "RdBu_r", "interpolation": "none", "aspect": "auto"}
    filter_range = {"vmin": -np.abs(K).max(), "vmax": np.abs(K).max()}
    output_range = {"vmin": -np.abs(rows).max(), "vmax": np.abs(rows).max()}
    image.imshow(batch[0, :, :, 0], **grey)
    small.imshow(filters[0, :, :, 0], **signed, **filter_range)
    matrix.imshow(M[0], **grey)
    column.imshow(K, **signed, **filter_range)
    product.imshow(rows[0], **signed, **output_range)
    result.imshow(output, **signed, **output_range)

    for line in np.arange(kernel, digit.shape[0], kernel) - 0.5:
        image.axhline(line, color="#bbbbbb", linewidth=0.6)
        image.axvline(line, color="#bbbbbb", linewidth=0.6)
    for row, colour in zip(chosen, _HIGHLIGHTS, strict=False):
        up, left = divmod(row, wide)
        _outline(image, (left * kernel, up * kernel), kernel, kernel, colour)
        _outline(matrix, (0, row), M.shape[2], 1, colour)
        _outline(product, (0, row), 1, 1, colour)
        _outline(result, (left, up), 1, 1, colour)
        tag = {"facecolor": colour, "edgecolor": "none", "pad": 1.2}
        image.text(
            left * kernel - 0.5,
            up * kernel - 0.5,
            str(row),
            color="white",
            fontsize=7.5,
            fontweight="bold",
            ha="center",
            va="center",
            bbox=tag,
            zorder=4,
        )
        matrix.text(
            -1.2,
            row,
            str(row),
            color=colour,
            fontsize=8.5,
            fontweight="bold",
            ha="right",
            va="center",
        )
    for between, symbol, high in ((4.52, "×", 1.1), (5.18, "=", 1.1), (5.8, "→", 0.97)):
        figure.text(
            between / WIDTH, 1 - high / height, symbol, fontsize=14, ha="center", va="center"
        )
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


def _outline(axes: Axes, corner: tuple[int, int], wide: int, tall: int, colour: str) -> None:
    at = (corner[0] - 0.5, corner[1] - 0.5)
    axes.add_patch(Rectangle(at, wide, tall, fill=False, edgecolor=colour, linewidth=1.8, zorder=3))


def _size(array: NDArray[Any]) -> str:
    return "×".join(str(length) for length in array.shape)


@dataclass(frozen=True)
class DrawnLayer:
    """One box of Figure 8: a layer's name and class, its shapes and its number of weights."""

    name: str
    kind: str
    input: tuple[int | None, ...]
    output: tuple[int | None, ...]
    weights: int


def describe_layers(model: Any) -> list[DrawnLayer]:
    """List a sequential Keras model's layers.

    Parameters
    ----------
    model : keras.Model
        A built model whose layers form a chain.

    Returns
    -------
    list of DrawnLayer
        In the order of computation, the input layer left out.
    """
    return [
        DrawnLayer(
            name=re.sub(r"_\d+$", "", layer.name),  # Keras counts the layers of the process
            kind=type(layer).__name__,
            input=tuple(layer.input.shape),
            output=tuple(layer.output.shape),
            weights=layer.count_params(),
        )
        for layer in model.layers
        if type(layer).__name__ != "InputLayer"
    ]


def networks_figure(networks: Mapping[str, Sequence[DrawnLayer]]) -> Figure:
    """Draw networks as chains of layers, side by side (Figure 8).

    Parameters
    ----------
    networks : mapping
        ``"cnn"``, ``"fc"``, ``"control"`` to the layers of each.

    Returns
    -------
    matplotlib.figure.Figure
        One column per network; the batch size is written as None, as Keras does.
    """
    box, gap, head = 0.76, 0.22, 1.05
    deepest = max(len(layers) for layers in networks.values())
    height = head + deepest * (box + gap)
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(height, 0)
    axes.axis("off")
    column = WIDTH / len(networks)
    for number, (network, layers) in enumerate(networks.items()):
        left, middle = number * column + 0.1, (number + 0.5) * column
        total = sum(layer.weights for layer in layers)
        axes.text(middle, 0.25, LABELS[network], ha="center", va="center", fontweight="bold")
        axes.text(middle, 0.47, f"{total:,} weights", ha="center", va="center", fontsize=8.5)
        start = head + (deepest - len(layers)) * (box + gap)  # what is alike stands side by side
        axes.text(
            middle, start - gap - 0.1, _INPUTS[network], ha="center", va="center", fontsize=8.5
        )
        for depth, layer in enumerate(layers):
            top = start + depth * (box + gap)
            _draw_layer(axes, layer, (left, top), (column - 0.2, box), COLOURS[network])
            arrow = FancyArrowPatch(
                (middle, top - gap),
                (middle, top),
                arrowstyle="-|>",
                mutation_scale=8,
                shrinkA=0,
                shrinkB=0,
                color="#666666",
            )
            axes.add_patch(arrow)
    return figure


_INPUTS = {"cnn": "images", "fc": "M, made before training", "control": "images"}


def _draw_layer(
    axes: Axes,
    layer: DrawnLayer,
    corner: tuple[float, float],
    size: tuple[float, float],
    colour: str,
) -> None:
    trained = layer.weights > 0
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
    kind = f"{layer.kind}, {layer.weights:,} weights" if trained else layer.kind
    axes.text(left, top + 0.18, layer.name, va="center", fontsize=9, fontweight="bold")
    axes.text(right, top + 0.18, kind, ha="right", **grey)
    for line, (word, shape) in enumerate((("in", layer.input), ("out", layer.output))):
        low = top + 0.4 + 0.21 * line
        axes.text(left, low, word, **grey)
        axes.text(left + 0.27, low, str(shape), va="center", fontsize=8)
