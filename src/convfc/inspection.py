"""Inspection: a model's CONV layers and the FC layers that they equal, as data and as a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from convfc.certificate import as_json
from convfc.geometry import ConvGeometry
from convfc.printable import printable
from convfc.sizes import Sizes
from convfc.tables import Column, TextTable

_WIDTH = 120
"""Characters in a line of plain text."""


@dataclass(frozen=True)
class LayerRow:
    """One CONV layer in one call, and the FC layer that it equals.

    ``form`` is ``native``, ``patch``, ``weight``, ``unrolled``, ``functional`` (a function inside a
    forward), or ``other`` (a scripted or quantised part, which cannot be read).

    Examples
    --------
    >>> row = LayerRow(
    ...     ("stem",), "Conv2d", "native", ConvGeometry(3, 64, (7, 7), stride=2, padding=3), 9408,
    ...     call=0, batch=1, input_size=(224, 224), output_size=(112, 112), itemsize=4,
    ... )
    >>> row.patch_matrix_shape, row.filter_matrix_shape, row.unrolled_shape
    ((1, 12544, 147), (147, 64), (802816, 150528))
    >>> row.multiplications, row.patch_matrix_bytes
    (118013952, 7375872)
    """

    names: tuple[str, ...]  # all its places; the empty name is the model itself
    kind: str  # its class, or the function that convolves
    form: str
    geometry: ConvGeometry | None = None  # None if it is not known, or only from an input
    parameters: int | None = None  # numbers in its parameters, the bias included
    reason: str = ""  # why it cannot be converted
    remedy: str = ""  # what to do about it
    call: int | None = None  # 0, 1, ...; None if the model did not call the layer, or was not run
    batch: int | None = None  # samples of that call; 1 for an input without batch axis
    input_size: Sizes | None = None  # spatial sizes of that call
    output_size: Sizes | None = None
    dtype: str = ""  # of the input of that call
    itemsize: int = 0  # bytes of one number of it

    @property
    def name(self) -> str:
        """The first of its places."""
        return self.names[0]

    @property
    def convertible(self) -> bool:
        """Whether it is or can be turned into an FC layer."""
        return not self.reason

    @property
    def patch_matrix_shape(self) -> tuple[int, int, int] | None:
        """Shape ``(b, L, groups * k)`` of M."""
        if self.geometry is None or self.batch is None or self.output_size is None:
            return None
        positions = math.prod(self.output_size)
        return (self.batch, positions, self.geometry.groups * self.geometry.taps)

    @property
    def filter_matrix_shape(self) -> tuple[int, int] | None:
        """Shape ``(k, f)`` of K."""
        return None if self.geometry is None else self.geometry.filter_matrix_shape

    @property
    def unrolled_shape(self) -> tuple[int, int] | None:
        """Elements of one output and of one input: the shape of the layer as one large matrix."""
        if self.geometry is None or self.input_size is None or self.output_size is None:
            return None
        rows = math.prod(self.output_size) * self.geometry.out_channels
        return (rows, math.prod(self.input_size) * self.geometry.in_channels)

    @property
    def multiplications(self) -> int | None:
        """Multiplications in the product M K: b L f k, with the k of one group."""
        if self.geometry is None or self.patch_matrix_shape is None:
            return None
        return math.prod(self.patch_matrix_shape[:2]) * math.prod(self.geometry.filter_matrix_shape)

    @property
    def native_multiplications(self) -> int | None:
        """Multiplications of the native layer, padding counted.

        The same but for a transposed layer, whose M also holds the zeros between the positions.
        """
        if self.geometry is None or self.input_size is None or self.batch is None:
            return None
        if not self.geometry.transposed:
            return self.multiplications
        positions = self.batch * math.prod(self.input_size)
        return positions * math.prod(self.geometry.filter_matrix_shape)

    @property
    def patch_matrix_bytes(self) -> int | None:
        """Bytes of M, if all of it is held at once in the input's dtype."""
        shape = self.patch_matrix_shape
        return None if shape is None else math.prod(shape) * self.itemsize

    def to_dict(self) -> dict[str, Any]:
        """Return every field and derived number, as `json` writes them."""
        derived = [name for name, of in vars(LayerRow).items() if isinstance(of, property)]
        found: dict[str, Any] = as_json(
            asdict(self) | {name: getattr(self, name) for name in derived if name != "name"}
        )
        return found


@dataclass(frozen=True)
class Totals:
    """Sums over the rows of an inspection; None what only a run of the model shows."""

    layers: int  # CONV layers; a shared one counts once, however often it is called
    convertible: int  # those that are FC layers, or can be
    calls: int  # of them, with the given input
    parameters: int  # numbers in their parameters; what is shared counts once
    model_parameters: int
    multiplications: int | None = None  # of all calls
    native_multiplications: int | None = None
    patch_matrix_bytes: int | None = None
    largest_patch_matrix_bytes: int | None = None  # of the call with the largest M


@dataclass(frozen=True)
class Inspection:
    """Every CONV layer of a model: `convfc.inspect` makes it; printed, it is a table.

    Parameters
    ----------
    model : str
        The model's class.
    rows : tuple of LayerRow
        In the model's order; a layer that is called more than once has a row for every call.
    parameters, model_parameters : int
        As in `Totals`.
    was_run : bool
        Whether the model was run on an input.

    Examples
    --------
    >>> row = LayerRow(("conv",), "Conv2d", "native", ConvGeometry(1, 8, (4, 4), stride=2), 136)
    >>> print(Inspection("Net", (row,), parameters=136, model_parameters=500))
    layer  type    geometry  K     param.
    conv   Conv2d  4×4 s2    16×8     136
    <BLANKLINE>
    Net: 1 CONV layer, convertible; 136 of 500 parameters
    """

    model: str
    rows: tuple[LayerRow, ...]
    parameters: int
    model_parameters: int
    was_run: bool = False

    def __iter__(self) -> Iterator[LayerRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def totals(self) -> Totals:
        """Sums over the rows."""
        layers: dict[tuple[Any, ...], bool] = {}
        for row in self.rows:
            key = (row.names, row.kind)
            layers[key] = layers.get(key, True) and row.convertible

        def total(name: str, of: Callable[[list[int]], int] = sum) -> int | None:
            numbers = [0, *(getattr(row, name) or 0 for row in self.rows)]
            return of(numbers) if self.was_run else None

        return Totals(
            layers=len(layers),
            convertible=sum(layers.values()),
            calls=sum(row.call is not None for row in self.rows),
            parameters=self.parameters,
            model_parameters=self.model_parameters,
            multiplications=total("multiplications"),
            native_multiplications=total("native_multiplications"),
            patch_matrix_bytes=total("patch_matrix_bytes"),
            largest_patch_matrix_bytes=total("patch_matrix_bytes", max),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return rows and totals as lists, numbers and strings, as `json` writes them."""
        return {
            "model": self.model,
            "was_run": self.was_run,
            "rows": [row.to_dict() for row in self.rows],
            "totals": asdict(self.totals),
        }

    def table(self) -> TextTable:
        """Return the table: one line for each row, then the totals, reasons and remedies."""
        rows = self.rows
        batches = {row.batch for row in rows if row.batch is not None}
        one_batch = len(batches) == 1
        reasons = dict.fromkeys((row.reason, row.remedy) for row in rows if row.reason)
        numbers = {reason: f"[{number}]" for number, reason in enumerate(reasons, 1)}

        def column(title: str, cell: Callable[[LayerRow], str], **rest: Any) -> Column:
            return Column(title, tuple(cell(row) for row in rows), **rest)

        def verdict(row: LayerRow) -> str:
            if not reasons:
                return ""
            return f"no {numbers[row.reason, row.remedy]}" if row.reason else "yes"

        columns = (
            column("layer", _place),
            column("type", _type, spare=3),
            column("geometry", lambda row: short_geometry(row.geometry) if row.geometry else ""),
            column("in", lambda row: _shape(row.input_size), spare=5),
            column("out", lambda row: _shape(row.output_size), spare=2),
            column(
                f"M (b={batches.pop()})" if one_batch else "M",
                lambda row: _shape((row.patch_matrix_shape or ())[one_batch:]),
            ),
            column("K", lambda row: _shape(row.filter_matrix_shape), spare=4),
            column("param.", lambda row: _count(row.parameters), right=True, spare=1),
            column("mult.", lambda row: _count(row.multiplications), right=True),
            column("M bytes", lambda row: _bytes(row.patch_matrix_bytes), right=True),
            column("unrolled", lambda row: _short_shape(row.unrolled_shape), spare=6),
            column("to FC", verdict),
        )
        notes = [
            f"{number} {reason}" + (f". Remedy: {remedy}" if remedy else "")
            for (reason, remedy), number in numbers.items()
        ]
        return TextTable(columns, (self._summary(), *notes))

    def _summary(self) -> str:
        """Return the totals in words."""
        totals = self.totals
        if not totals.layers:
            return f"{self.model}: no CONV layers"
        layers = "1 CONV layer" if totals.layers == 1 else f"{totals.layers} CONV layers"
        if totals.convertible == totals.layers:
            convertible = "convertible" if totals.layers == 1 else "all convertible"
        else:
            convertible = f"{totals.convertible} convertible"
        text = f"{self.model}: {layers}, {convertible}; "
        text += f"{_count(totals.parameters)} of {_count(totals.model_parameters)} parameters"
        if self.was_run:
            text += f", {_count(totals.multiplications)} multiplications"
            if totals.native_multiplications != totals.multiplications:
                text += f" ({_count(totals.native_multiplications)} in the native layers)"
            text += f", patch matrices {_bytes(totals.patch_matrix_bytes)}"
            if totals.calls > 1:
                text += f" (largest {_bytes(totals.largest_patch_matrix_bytes)})"
        return text

    def __str__(self) -> str:
        return self.table().text(_WIDTH)

    def __rich__(self) -> TextTable:
        """Return the table for rich, as wide as the console."""
        return self.table()

    def _repr_html_(self) -> str:
        """Return the table for a notebook."""
        return self.table().html()


def short_geometry(geometry: ConvGeometry) -> str:
    """Return a geometry in a few characters, without what has its default value.

    Kernel, stride s, padding p (``low.high`` where they differ), dilation d, groups g, output
    padding op, padding mode; T for transposed.
    """
    pads = [low if low == high else f"{low}.{high}" for low, high in geometry.padding]
    parts = [
        "T" * geometry.transposed,
        _shape(geometry.kernel_size),
        f"s{_axes(geometry.stride)}",
        f"p{_axes(pads)}",
        f"d{_axes(geometry.dilation)}",
        f"g{geometry.groups}",
        f"op{_axes(geometry.output_padding)}",
        geometry.padding_mode,
        "flip" * geometry.flip,
    ]
    return " ".join(part for part in parts if part not in ("", "p0", "d1", "g1", "op0", "zeros"))


def _axes(values: Sequence[object]) -> str:
    """Return one value when all axes agree, else all of them."""
    return _shape(values[:1] if len(set(values)) == 1 else values)


def _place(row: LayerRow) -> str:
    names = "\n= ".join(printable(name) or "(itself)" for name in row.names)
    return f"{names}#{row.call}" if row.call else names


def _type(row: LayerRow) -> str:
    return f"{row.kind} ({row.form})" if row.form in ("patch", "weight", "unrolled") else row.kind


def _shape(sizes: Sequence[object] | None) -> str:
    return "×".join(map(str, sizes or ()))


def _short_shape(sizes: Sequence[int] | None) -> str:
    return "×".join(_count(size).replace(" ", "") for size in sizes or ())


def _count(number: int | None) -> str:
    return "" if number is None else _scaled(number, 1000, ("", "k", "M", "G", "T", "P", "E"))


def _bytes(number: int | None) -> str:
    return "" if number is None else _scaled(number, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"))


def _scaled(number: int, base: int, units: Sequence[str]) -> str:
    """Return a number in three digits, with the largest unit that it has one of."""
    value, unit = float(number), 0
    while round(value) >= base and unit < len(units) - 1:
        value, unit = value / base, unit + 1
    decimals = 0 if not unit or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{decimals}f} {units[unit]}".rstrip()
