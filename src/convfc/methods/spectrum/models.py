"""Every layer of a model: its singular values at the size that it sees."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias

from convfc.errors import MemoryBudgetError, NotConverged, NothingToConvert
from convfc.geometry import ConvGeometry
from convfc.inspection import Inspection, short_geometry
from convfc.methods.spectrum.algorithms import operator_shape
from convfc.methods.spectrum.singular import TOLERANCE, SingularValues, condition, singular_values
from convfc.printable import printable
from convfc.progress import Progress, telling
from convfc.registry import room_of
from convfc.sizes import Sizes, one_of
from convfc.tables import Column, TextTable

Boundaries: TypeAlias = Literal["own", "circular", "both"]
"""Which operators: with the layer's own padding, on a circle, or both."""


@dataclass(frozen=True, eq=False)
class LayerSpectrum:
    """The singular values of one layer of a model at one input size; `layer_spectra` makes it.

    Attributes
    ----------
    name : str
        Where the layer stands in its model.
    geometry, input_size
    own : SingularValues or None
        The k largest with the layer's own padding.
    circular : SingularValues or None
        Of the layer on a circle: all of them, or the k largest where the stride does not divide the
        input size.
    smallest : SingularValues or None
        The smallest one with the layer's own padding, if it was asked for and found.
    seconds : float
    note : str
        What could not be found, and why.

    Examples
    --------
    >>> import torch
    >>> layer = layer_spectra(torch.nn.Conv2d(1, 4, 3, padding=1), torch.zeros(1, 1, 8, 8))[0]
    >>> layer.shape, layer.own.complete, layer.circular.complete
    ((256, 64), False, True)
    """

    name: str
    geometry: ConvGeometry
    input_size: Sizes
    own: SingularValues | None = None
    circular: SingularValues | None = None
    smallest: SingularValues | None = None
    seconds: float = 0.0
    note: str = ""

    @property
    def best(self) -> SingularValues:
        """With the layer's own padding, if that was asked for."""
        found = self.own or self.circular
        assert found is not None, "one of the two is always asked for"  # noqa: S101
        return found

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the operator."""
        return self.best.shape

    @property
    def norm(self) -> float:
        """The largest singular value."""
        return float(self.best.values[0])

    @property
    def ratio(self) -> float:
        """The norm to that of the reshaped kernel; NaN if that is 0."""
        reshaped = self.best.reshaped_norm
        return self.norm / reshaped if reshaped else math.nan

    @property
    def condition_number(self) -> float:
        """The largest to the smallest with the layer's own padding; NaN if that is not known."""
        return math.nan if self.smallest is None else condition(self.norm, self.smallest)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the long list of all circular values, as `json` writes it."""
        parts: dict[str, Any] = {
            name: None if (found := getattr(self, name)) is None else found.to_dict()
            for name in ("own", "circular", "smallest")
        }
        if self.circular is not None:
            values = parts["circular"].pop("values")
            parts["circular"] |= {"largest": values[0], "smallest_found": values[-1]}
            if self.circular.complete:
                parts["circular"] |= {
                    "condition_number": _finite(self.circular.condition_number),
                    "effective_rank": self.circular.effective_rank,
                }
        return {
            **vars(self),
            "geometry": short_geometry(self.geometry),
            "input_size": list(self.input_size),
            "shape": list(self.shape),
            "norm": self.norm,
            "reshaped_norm": self.best.reshaped_norm,
            "ratio": _finite(self.ratio),
            "condition_number": _finite(self.condition_number),
            **parts,
        }


def layer_spectra(
    model: Any,
    x: Any,
    *,
    layers: Sequence[str] = (),
    k: int = 1,
    boundary: Boundaries = "both",
    smallest: bool = False,
    tolerance: float = TOLERANCE,
    progress: Progress | bool = False,
) -> list[LayerSpectrum]:
    """Return the singular values of every CONV layer of a model, at the size that it sees.

    Parameters
    ----------
    model : torch.nn.Module
        Nothing in it changes; it is run once, as `convfc.inspect` does.
    x : array or tuple of arrays
        An input, or one for each argument; where the model does not run on it, a batch axis of 1 is
        put before.
    layers : sequence of str
        Names, or patterns such as ``"layer4.*"``; all layers without.
    k : int
        How many of the largest singular values with the layer's own padding.
    boundary : {"own", "circular", "both"}
    smallest : bool
        Whether to look for the smallest one with the own padding, too; that can take long.
    tolerance : float
        See `singular_values`.
    progress : callable or bool
        Called before each layer with how many are done, how many there are, and its name; True
        shows a bar (package rich).

    Raises
    ------
    ArgumentError
        If there is no such boundary, or k is below one.
    ShapeError
        If the model does not run on the input.
    NothingToConvert
        If the model calls no CONV layer, or none of these names.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Conv2d(4, 4, 1))
    >>> [(layer.name, layer.own.method) for layer in layer_spectra(model, torch.zeros(1, 8, 8))]
    [('0', 'dense'), ('1', 'kernel')]
    """
    one_of("boundary", boundary, Boundaries)
    room, found = room_of(model), []
    inspection, _ = room.inspected(model, x)
    rows = list(_rows(inspection, layers))
    places = room.places(model)
    with telling(progress) as tell:
        for number, (name, geometry, size) in enumerate(rows):
            tell(number, len(rows), name)
            began = time.perf_counter()
            layer = places[name]
            asked: dict[str, dict[str, Any]] = {}
            if boundary != "circular":
                asked["own"] = {"k": min(k, *operator_shape(geometry, size, circular=False))}
                if smallest:
                    asked["smallest"] = {"k": 1, "which": "smallest"}
            if boundary != "own":
                asked["circular"] = {"boundary": "circular"}
            values: dict[str, Any] = {}
            notes = []
            for what, options in asked.items():
                try:
                    values[what] = singular_values(layer, size, tolerance=tolerance, **options)
                except NotConverged as error:
                    notes.append(f"{what}: {error}")
                except MemoryBudgetError:
                    # On a circle that the stride does not divide: then some of them have to do.
                    options.setdefault("k", k)
                    values[what] = singular_values(layer, size, tolerance=tolerance, **options)
            seconds, note = time.perf_counter() - began, "; ".join(notes)
            named = (name or type(model).__name__, geometry, size)
            found.append(LayerSpectrum(*named, **values, seconds=seconds, note=note))
    return found


def _rows(
    inspection: Inspection, patterns: Sequence[str]
) -> Iterator[tuple[str, ConvGeometry, Sizes]]:
    """Yield the layers that were called, once for each input size."""
    seen: set[tuple[Any, ...]] = set()
    for row in inspection:
        wanted = not patterns or any(fnmatchcase(n, p) for n in row.names for p in patterns)
        key = (row.names, row.input_size)
        if row.form not in ("native", "patch", "weight") or not wanted or key in seen:
            continue
        if row.geometry is not None and row.input_size is not None:
            seen.add(key)
            yield row.name, row.geometry, row.input_size
    if not seen:
        raise NothingToConvert(
            "no CONV layer was called" + (" of these names" if patterns else ""),
            where=inspection.model,
            expected=", ".join(patterns) or None,
            got=", ".join(row.name for row in inspection) or "no CONV layers",
            remedy="the names are those of convfc inspect; * stands for any characters",
        )


def spectra_table(
    spectra: Sequence[LayerSpectrum | Mapping[str, Any]], models: Sequence[str] = ()
) -> TextTable:
    """Return the table, one line for each layer; ° marks what is known on a circle only.

    A layer may be what `LayerSpectrum.to_dict` has made of it; with the name of the model of each,
    these stand in front.
    """
    layers = [layer if isinstance(layer, Mapping) else layer.to_dict() for layer in spectra]
    cells = [_cells(layer) for layer in layers]
    rows = [(model, *row) for model, row in zip(models, cells, strict=True)] if models else cells
    titles = ("model",) * bool(models) + ("layer", "in", "σ max", "σ min", "cond.", "‖K‖", "method")
    spare = {"in": 2, "method": 1}
    columns = tuple(
        Column(title, cells, right=title in titles[-5:-1], spare=spare.get(title, 0))
        for title, cells in zip(titles, zip(*rows, strict=True), strict=True)
    )
    notes = [
        "σ max: how far the layer stretches an input at most; cond.: σ max to σ min; ‖K‖: the norm "
        "of the reshaped kernel, as torch.nn.utils.spectral_norm takes it."
    ]
    if any("°" in cell for row in cells for cell in row[2:]):
        notes.append("°: of the layer on a circle.")
    named = zip(models or [""] * len(layers), layers, strict=True)
    notes += [
        f"{model} {layer['name']}: {layer['note']}".strip()
        for model, layer in named
        if layer["note"]
    ]
    return TextTable(columns, tuple(notes))


def _cells(layer: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a row of the table, of what `LayerSpectrum.to_dict` returns."""
    least, ratio, mark = layer["smallest"], layer["condition_number"], ""
    smallest = None if least is None else least["values"][-1]
    circle = layer["circular"]
    if least is None and circle is not None and circle["complete"]:
        smallest, ratio, mark = circle["smallest_found"], circle["condition_number"], "°"
    ends = [f"{layer['norm']:.4g}" + "°" * (layer["own"] is None), "", ""]
    if smallest is not None:  # then the condition is known: a number, or infinite
        ends[1:] = f"{smallest:.4g}{mark}", f"{math.inf if ratio is None else ratio:.4g}{mark}"
    size = "×".join(map(str, layer["input_size"]))
    method = (layer["own"] or circle)["method"]
    return (printable(layer["name"]), size, *ends, f"{layer['reshaped_norm']:.4g}", method)


def _finite(value: float) -> float | None:
    """Return a number as JSON has it: neither infinite nor NaN."""
    return value if math.isfinite(value) else None
