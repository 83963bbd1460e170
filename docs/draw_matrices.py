"""Draw the matrices of `docs/matrix.md`: ``python docs/draw_matrices.py`` writes them anew.

Every picture is the matrix that `convfc.conv_matrix` gives, of filters that hold the number of each
tap; the colour of an entry says which tap it is.
"""

from __future__ import annotations

import colorsys
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from convfc import ConvGeometry, conv_matrix
from convfc.drawing import WIDTH, house_style
from convfc.files import replacing

FIGURES = pathlib.Path(__file__).with_name("figures")
KERNEL = (4, 4)
SIZE = (7, 7)
HUES = (0.58, 0.08, 0.43, 0.92)  # one per row of the filter; its columns go from dark to light
GRID = "#9a9a9a"

CHANGES = {
    "stride 2\nevery second row of blocks, every second row in them": {"stride": 2},
    "dilation 2, on 8 × 8\nthe taps stand apart": {"dilation": 2, "size": (8, 8)},
    "zero padding of 1\nthe border's rows miss the taps that read zeros": {"padding": 1},
    "circular padding of 1\nthe missing taps read from the other end": {
        "padding": 1,
        "padding_mode": "circular",
    },
    "two channels, two filters\nfour such matrices, one for each pair": {"channels": 2},
    "two channels, two filters, groups 2\nonly the blocks on the diagonal are left": {
        "channels": 2,
        "groups": 2,
    },
    "flip\nthe true convolution: the taps in reverse": {"flip": True},
    "transposed, on 4 × 4\nthe transpose of the first picture": {
        "transposed": True,
        "size": (4, 4),
    },
}
HEIGHTS = (0.55, 1.7, 1, 1.5)  # of the rows of pictures


def colours() -> ListedColormap:
    """Return white for no entry, and then one colour for each of the sixteen taps."""
    taps = [
        colorsys.hls_to_rgb(hue, 0.30 + 0.45 * column / (KERNEL[1] - 1), 0.75)
        for hue in HUES
        for column in range(KERNEL[1])
    ]
    return ListedColormap([(1.0, 1.0, 1.0), *taps])


def tap_numbers(
    *, channels: int = 1, size: tuple[int, int] = SIZE, **rest: Any
) -> tuple[np.ndarray[Any, Any], ConvGeometry]:
    """Return which tap each entry of a layer's matrix is, from 1; 0 where there is none."""
    geometry = ConvGeometry(channels, channels, KERNEL, **rest)
    numbers = np.arange(1, math.prod(KERNEL) + 1).reshape(1, *KERNEL, 1)
    filters = np.broadcast_to(numbers, geometry.filters_shape)
    matrix = conv_matrix(filters, size, geometry, layout="dense", order="channels_first")
    return matrix, geometry


def draw(axes: Axes, matrix: np.ndarray[Any, Any], blocks: Sequence[int]) -> None:
    """Draw a matrix, with a line around each block of these rows and columns."""
    last = math.prod(KERNEL)
    axes.imshow(matrix, cmap=colours(), vmin=0, vmax=last, interpolation="nearest")
    rows, columns = blocks
    for edge in range(0, matrix.shape[0] + 1, rows):
        axes.axhline(edge - 0.5, color=GRID, linewidth=0.4, clip_on=False)
    for edge in range(0, matrix.shape[1] + 1, columns):
        axes.axvline(edge - 0.5, color=GRID, linewidth=0.4, clip_on=False)
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def toeplitz_figure() -> Figure:
    """Return the filter beside the matrix of its layer: a block per pair of image rows."""
    matrix, geometry = tap_numbers()
    height = geometry.output_size(SIZE)
    figure = Figure(figsize=(WIDTH, 2.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 4.4))
    draw(left, np.arange(1, math.prod(KERNEL) + 1).reshape(KERNEL), (1, 1))
    for (i, j), number in np.ndenumerate(np.arange(math.prod(KERNEL)).reshape(KERNEL)):
        ink = "white" if j < KERNEL[1] / 2 else "black"
        left.text(j, i, f"w{number}", ha="center", va="center", color=ink, fontsize=7)
    left.set_title("the filter, 4 × 4")
    draw(right, matrix, (height[1], SIZE[1]))
    right.set_title(f"A, {matrix.shape[0]} × {matrix.shape[1]}: one row for each output pixel")
    right.set_xticks([SIZE[1] * (i + 0.5) - 0.5 for i in range(SIZE[0])])
    right.set_xticklabels([f"image row {i}" for i in range(SIZE[0])], fontsize=7)
    right.set_yticks([height[1] * (i + 0.5) - 0.5 for i in range(height[0])])
    right.set_yticklabels([f"output row {i}" for i in range(height[0])], fontsize=7)
    right.tick_params(length=0)
    return figure


def changes_figure() -> Figure:
    """Return small pictures of what each hyper-parameter makes of it."""
    figure = Figure(figsize=(WIDTH, 7.0), layout="constrained")
    places = figure.subplots(len(HEIGHTS), 2, height_ratios=HEIGHTS)
    for axes, (title, change) in zip(places.flat, CHANGES.items(), strict=True):
        matrix, geometry = tap_numbers(**change)
        size = change.get("size", SIZE)
        draw(axes, matrix, (geometry.output_size(size)[1], size[1]))
        headline, _, rest = title.partition("\n")
        axes.set_title(f"{headline}: {matrix.shape[0]} × {matrix.shape[1]}\n{rest}", fontsize=8)
    return figure


def main(folder: pathlib.Path = FIGURES) -> None:
    """Write both pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    with house_style():
        pictures = {"matrix-toeplitz": toeplitz_figure(), "matrix-changes": changes_figure()}
        for name, figure in pictures.items():
            with replacing(folder / f"{name}.png") as handle:
                figure.savefig(handle, format="png", metadata={"Software": "convfc"})


if __name__ == "__main__":
    main()
