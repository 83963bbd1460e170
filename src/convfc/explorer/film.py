"""A film of the window that slides, with M, K, Y and the output, as a GIF for slides.

It shows what the page shows of the same state, without a browser: windows are read forwards, and
filters turned where convfc reads backwards. One picture per output position; of more than
`PICTURES`, evenly chosen ones.
"""

from __future__ import annotations

import functools
import pathlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convfc.algorithm1 import conv_as_matmul, filters_to_matrix, im2col
from convfc.errors import ArgumentError, DataError, GeometryError
from convfc.explorer.state import explorer_state, state_layer
from convfc.extras import needing
from convfc.files import replacing
from convfc.geometry import ConvGeometry
from convfc.indexmap import index_map

with needing():
    from PIL import Image, ImageDraw, ImageFont

Numbers = NDArray[np.float64]

PICTURES = 60
"""Pictures of a film, at most: with those times it takes ten seconds, or less."""
EACH, LAST = 9000 // PICTURES, 1000
SLOW = 500
"""Milliseconds of a picture, of the last one, and where there are few."""

HIGH, WIDE, SIDE = 400, 560, 230
"""Pixels for the rows of M, for the columns of M, K and Y, and for the sides of a picture."""
LARGEST = 30
"""Pixels of a cell, at most."""
PLANES = 4
"""Channels of the input, and of the output, that are drawn below each other, at most."""
GAP, SMALL, EDGE, HEAD = 34, 12, 20, 26
TOP = EDGE + 2 * HEAD

PAPER, INK, MUTED, LINE = (255, 255, 255), (27, 36, 48), (90, 102, 117), (223, 228, 234)
EMPTY, OUTSIDE, WINDOW = (226, 230, 236), (238, 240, 243), (176, 18, 127)
POSITIVE, NEGATIVE = (18, 58, 105), (176, 72, 14)
"""The page's light colours (web/src/views/palette.js)."""


SEVEN = "02891 00193 00740 03900 05600"
"""The picture of the page's first preset (web/src/model/presets.js)."""

# The default font has no signs: they are drawn.
ARROW = (((-24, 0), (2, 0)), ((-4, -5), (2, 0), (-4, 5)))
TIMES = (((-5, -5), (5, 5)), ((-5, 5), (5, -5)))
EQUAL = (((-6, -3), (6, -3)), ((-6, 3), (6, 3)))


def example() -> dict[str, Any]:
    """Return the state that the page opens with: a small picture, and two filters for edges."""
    x = np.array([[int(digit) for digit in row] for row in SEVEN.split()])[..., None]
    across = np.repeat([[-1, 0, 1]], 3, axis=0)
    filters = np.stack([across, across.T])[..., None]
    return explorer_state(filters, x, ConvGeometry(1, 2, (3, 3)), title="A sliding window")


def colours(values: Any, largest: float) -> NDArray[np.uint8]:
    """Return the colours of numbers on the page's scale, in 255 steps on each side of 0."""
    share = np.clip(np.asarray(values, dtype=float) / (largest or 1.0), -1, 1)
    step = np.floor(share * 255 + 0.5) / 255
    ends = np.where(step[..., None] < 0, NEGATIVE, POSITIVE)
    mixed = np.add(PAPER, (ends - np.array(PAPER)) * np.abs(step[..., None]) ** 0.85)
    coloured: NDArray[np.uint8] = np.floor(mixed + 0.5).astype(np.uint8)
    return coloured


def write_film(
    path: str | pathlib.Path,
    state: Mapping[str, Any],
    *,
    told: Callable[[int, int], None] = lambda done, count: None,
) -> None:
    """Write the film of a state as a GIF, whole or not at all.

    Parameters
    ----------
    path : path
        Its name ends with ``.gif``.
    state : mapping
        What `convfc.explorer.explorer_state` returns, for an input, or the widget's ``state``.
    told : callable, optional
        Called with the number of pictures that are drawn, and of all.

    Raises
    ------
    ArgumentError
        If the file is no GIF.
    DataError
        If the state has no numbers of an input, or is none.
    GeometryError
        If the matrices have more rows or columns than a picture has room for.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_film(pathlib.Path(folder) / "film.gif", example())
    ...     (pathlib.Path(folder) / "film.gif").read_bytes()[:6]
    b'GIF89a'
    """
    path = pathlib.Path(path)
    if path.suffix.lower() != ".gif":
        raise ArgumentError(
            "a film is a GIF",
            where="film",
            expected="a name that ends with .gif",
            got=str(path),
            remedy=f"call it {path.with_suffix('.gif').name}",
        )
    film = Film(state)
    positions = film.positions()
    pictures = []
    for p in positions:
        pictures.append(film.picture(p))
        told(len(pictures), len(positions))
    palette = _Palette(pictures[-1], pictures[0])
    first, *others = map(palette.of, pictures)
    each = min(SLOW, max(EACH, 9000 // len(positions))) // 10 * 10
    durations = [each] * len(others) + [LAST]
    with replacing(path) as handle:
        first.save(handle, "GIF", save_all=True, append_images=others, duration=durations, loop=0)


@dataclass(frozen=True)
class Panel:
    """Numbers as cells: where they are, how large, and of which scale."""

    name: str
    values: Numbers
    largest: float
    x: int
    y: int
    cell: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        rows, columns = self.values.shape[:2]
        return columns * self.cell[0], rows * self.cell[1]

    def box(self, r0: int, c0: int, r1: int, c1: int) -> tuple[int, int, int, int]:
        """Return the corners of cells, the last ones included."""
        (w, h), x, y = self.cell, self.x, self.y
        return x + c0 * w, y + r0 * h, x + (c1 + 1) * w, y + (r1 + 1) * h


@dataclass
class _Row:
    """Places panels from left to right, each in the middle of the height."""

    left: int = EDGE

    def matrix(self, name: str, values: Numbers, largest: float, cell: tuple[int, int]) -> Panel:
        top = TOP + (HIGH - len(values) * cell[1]) // 2
        made = Panel(f"{name}  {_sizes(values.shape)}", values, largest, self.left, top, cell)
        self.left += max(made.size[0], 74) + GAP
        return made

    def images(self, name: str, parts: list[Numbers], largest: float) -> list[Panel]:
        rows, columns = parts[0].shape[:2]
        across = 2 if rows > 1 and len(parts) > 1 else 1
        down = -(-len(parts) // across)
        side = min((SIDE + 80 * (across - 1)) // across, HIGH // down) - SMALL
        cell = max(1, min(LARGEST, side // max(rows, columns)))
        wide, high = columns * cell + SMALL, rows * cell + SMALL
        top = TOP + (HIGH - down * high + SMALL) // 2
        places = [(self.left + i % across * wide, top + i // across * high) for i in range(PLANES)]
        self.left += max(across * wide - SMALL, 110) + 2 * GAP
        return [
            Panel(name, values, largest, *place, (cell, cell))
            for values, place in zip(parts, places, strict=False)
        ]


class Film:
    """Everything that the pictures of a film share: a state laid out, or refused."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        layer, x = state_layer(state)
        if x is None:
            raise DataError(
                "a film needs the numbers of an input",
                where="input",
                remedy="give explorer_state an input, or take the widget's .state",
            )
        geometry, filters = layer.geometry, np.asarray(layer.filters, dtype=float)
        forwards = replace(geometry, flip=geometry.transposed)
        self.title = layer.name or ""
        self.where = index_map(forwards, x.shape[:-1])
        rows, columns = self.where.shape
        f = geometry.out_channels
        _check_room(max(rows, geometry.taps), columns, f)
        kernel = tuple(range(1, 1 + geometry.spatial_ndim))
        turned = np.flip(filters, kernel) if geometry.flip != geometry.transposed else filters
        images = np.asarray(x, dtype=float)[None]
        M = im2col(images, forwards)[0]
        K = filters_to_matrix(turned, geometry)
        Y = conv_as_matmul(images, filters, geometry, layer.bias)[0]
        span = state["input"].get("range")
        largest = max(map(abs, span)) if span else _largest(x)
        wide = min(LARGEST, WIDE // (columns + 2 * f))
        high = min(LARGEST, HIGH // rows)
        row = _Row()
        padded = self._padded(images[0])
        self.inputs = row.images(f"input  {_sizes(x.shape)}", _planes(padded, span), largest)
        self.M = row.matrix("M", M, largest, (wide, high))
        # As on the page: many weights are as large as the largest.
        self.K = row.matrix("K", K, 1.5 * _largest(K), (wide, min(LARGEST, HIGH // len(K))))
        self.Y = row.matrix("Y", Y.reshape(rows, f), _largest(Y), (wide, high))
        row.left += GAP
        self.outputs = row.images(f"output  {_sizes(Y.shape)}", _planes(Y, None), _largest(Y))
        self.width, self.height = row.left - 2 * GAP + EDGE, TOP + HIGH + EDGE + HEAD

    def _padded(self, x: Numbers) -> Numbers:
        """Return the input as it is read, with padding or spread apart; note what is its own."""
        geometry = self.where.geometry
        own: NDArray[np.bool_] = np.ones((), dtype=bool)
        for a, axis in enumerate(self.where.axes):
            read = axis.source >= 0
            x = np.moveaxis(x, a, -1)
            x = np.moveaxis(np.where(read, x[..., np.maximum(axis.source, 0)], 0), -1, a)
            index = np.arange(len(read)) - geometry.padding[a][0]
            inside = read if geometry.transposed else (index >= 0) & (index < axis.size)
            own = own[..., None] & inside
        self.own = own.reshape(-1, own.shape[-1])
        return x

    def window(self, p: int) -> tuple[int, int, int, int]:
        """Return the first and the last row and column that output position p reads."""
        position = np.unravel_index(p, self.where.output_size)
        starts = [int(o) * a.step for o, a in zip(position, self.where.axes, strict=True)]
        reach = [(a.taps - 1) * a.tap_step for a in self.where.axes]
        ends = [start + r for start, r in zip(starts, reach, strict=True)]
        (r0, c0), (r1, c1) = ([0] * (2 - len(starts)) + corner for corner in (starts, ends))
        return r0, c0, r1, c1

    def positions(self) -> list[int]:
        """Return the output positions that the pictures show."""
        last = self.where.shape[0] - 1
        return sorted({round(p) for p in np.linspace(0, last, PICTURES)})

    def picture(self, p: int) -> Image.Image:
        """Draw what is there once position p has been computed."""
        image = Image.new("RGB", (self.width, self.height), PAPER)
        draw = ImageDraw.Draw(image)
        draw.text((EDGE, EDGE), self.title.replace("×", "x"), INK, _font(16))
        columns = self.outputs[0].values.shape[1]
        for panel in self.inputs:
            self._cells(image, panel, ~self.own, OUTSIDE)
        rows = np.arange(len(self.M.values))[:, None] > p
        for panel, empty in (
            (self.M, rows),
            (self.K, np.zeros((1, 1), dtype=bool)),
            (self.Y, rows),
        ):
            self._cells(image, panel, np.broadcast_to(empty, panel.values.shape), EMPTY)
        for panel in self.outputs:
            empty = np.arange(panel.values.size).reshape(panel.values.shape) > p
            self._cells(image, panel, empty, EMPTY)
        for panel in (self.inputs[0], self.M, self.K, self.Y, self.outputs[0]):
            draw.text((panel.x, panel.y - 20), panel.name, INK, _font(13))
        y = TOP + HIGH // 2
        for panel, lines in (
            (self.M, ARROW),
            (self.K, TIMES),
            (self.Y, EQUAL),
            (self.outputs[0], ARROW),
        ):
            for line in lines:
                draw.line([(panel.x - GAP // 2 + i, y + j) for i, j in line], MUTED, 2)
        for panel in self.inputs:
            _outline(draw, panel.box(*self.window(p)), WINDOW)
        for panel in (self.M, self.Y):
            _outline(draw, panel.box(p, 0, p, panel.values.shape[1] - 1), WINDOW)
        for panel in self.outputs:
            at = divmod(p, columns)
            _outline(draw, panel.box(*at, *at), WINDOW)
        position = ", ".join(str(int(i)) for i in np.unravel_index(p, self.where.output_size))
        words = f"output ({position}): row {p} of M, times K"
        draw.text((EDGE, self.height - EDGE), words, MUTED, _font(13), anchor="lm")
        return image

    def _cells(
        self, image: Image.Image, panel: Panel, empty: NDArray[np.bool_], ground: Sequence[int]
    ) -> None:
        """Paint cells; those of a mask in one colour, and without numbers unless they have any."""
        outside = ground is OUTSIDE
        values = panel.values
        coloured = values.ndim == 3
        pixels = (values * 255).round().astype(np.uint8) if coloured else None
        if pixels is None:
            pixels = colours(values, panel.largest)
        # Of padding that holds numbers of the input, these stay, faintly.
        faint = pixels // 2 + np.array(ground, dtype=np.uint8) // 2
        holds = values.any(-1) if coloured else values != 0
        there = empty & holds if outside else np.zeros_like(empty)
        pixels = np.where(there[..., None], faint, pixels)
        pixels = np.where((empty & ~there)[..., None], np.array(ground, np.uint8), pixels)
        (w, h), draw = panel.cell, ImageDraw.Draw(image)
        whole = pixels.repeat(h, axis=0).repeat(w, axis=1)
        image.paste(Image.fromarray(whole), (panel.x, panel.y))
        rows, columns = values.shape[:2]
        x0, y0, x1, y1 = panel.box(0, 0, rows - 1, columns - 1)
        if min(w, h) >= 10:
            for c in range(1, columns):
                draw.line([(x0 + c * w, y0), (x0 + c * w, y1)], LINE)
            for r in range(1, rows):
                draw.line([(x0, y0 + r * h), (x1, y0 + r * h)], LINE)
        draw.rectangle((x0 - 1, y0 - 1, x1, y1), outline=LINE)
        if coloured or h < 11 or w < 10:
            return
        texts = [[_short(v) for v in row] for row in values]
        font = _font(min(13, int(h * 0.62)))
        if max(font.getlength(text) for row in texts for text in row) > w - 2:
            return
        for r, c in np.argwhere(~empty | there | outside):
            red, green, blue = (int(v) for v in pixels[r, c])
            dark = 0.3 * red + 0.59 * green + 0.11 * blue < 140
            ink = PAPER if dark else MUTED if empty[r, c] else INK
            at = x0 + (int(c) + 0.5) * w, y0 + (int(r) + 0.5) * h
            draw.text(at, texts[r][c], ink, font, anchor="mm")


class _Palette:
    """The most frequent colours of some pictures, no two of them closer than can be seen."""

    def __init__(self, *pictures: Image.Image) -> None:
        counts: Counter[Any] = Counter()
        for one in pictures:
            of_one: Any = one.getcolors(one.width * one.height)
            counts.update({colour: count for count, colour in of_one})
        found: dict[tuple[int, ...], tuple[int, ...]] = {}
        for colour, _ in counts.most_common():
            found.setdefault(tuple(v >> 3 for v in colour), colour)
        self.colours = np.array(list(found.values())[:256])
        self.nearest = np.full(2**24, -1, dtype=np.int16)  # of every colour, once it is met

    def of(self, picture: Image.Image) -> Image.Image:
        """Return a picture in these colours: what is among them stays exactly what it is."""
        pixels = np.asarray(picture).astype(np.int32) @ (2**16, 2**8, 1)
        fresh = np.unique(pixels[self.nearest[pixels] < 0])
        parts = np.stack([fresh >> 16, fresh >> 8 & 255, fresh & 255], axis=-1)
        off = ((parts[:, None] - self.colours) ** 2).sum(-1)
        self.nearest[fresh] = off.argmin(-1)
        indexed = Image.fromarray(self.nearest[pixels].astype(np.uint8))
        indexed.putpalette(self.colours.ravel().tolist())
        return indexed


def _planes(values: Numbers, span: Sequence[float] | None) -> list[Numbers]:
    """Return what is drawn of ``(*spatial, c)``: one picture in colour, or the first channels."""
    if values.ndim == 2:
        values = values[None]
    if values.shape[-1] == 3 and span:
        low, high = span
        return [np.clip((values - low) / ((high - low) or 1), 0, 1)]
    return [values[..., d] for d in range(min(PLANES, values.shape[-1]))]


def _check_room(rows: int, columns: int, f: int) -> None:
    """Raise if a cell would be smaller than a pixel."""
    if rows <= HIGH and columns + 2 * f <= WIDE:
        return
    many = rows > HIGH
    raise GeometryError(
        "a film has no room for so many " + ("windows" if many else "columns"),
        where="layer",
        expected=f"at most {HIGH} rows of M and of K, and {WIDE} columns of M, K and Y together",
        got=f"{rows} rows, {columns} + {f} + {f} columns",
        remedy="make the input smaller, such as --input 1,16,16"
        if many
        else "show fewer filters, such as --filters 4, or an earlier layer",
    )


def _outline(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], colour: Any) -> None:
    """Frame cells, however small they are."""
    x0, y0, x1, y1 = box
    lack = max(0, 5 - (x1 - x0)), max(0, 5 - (y1 - y0))
    grown = (x0 - lack[0] // 2, y0 - lack[1] // 2, x1 + lack[0] // 2, y1 + lack[1] // 2)
    draw.rectangle((grown[0] - 1, grown[1] - 1, grown[2], grown[3]), outline=colour, width=2)


def _short(value: float) -> str:
    """Return a number with few digits: whole ones as they are."""
    return str(int(value)) if value == int(value) and abs(value) < 1e6 else f"{value:.2g}"


def _sizes(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _largest(values: Any) -> float:
    return float(np.abs(values).max(initial=0))


@functools.lru_cache
def _font(size: int) -> Any:
    """Return Pillow's own font."""
    return ImageFont.load_default(size)
