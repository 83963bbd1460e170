"""The certificate: two networks compute the same function, as far as rounding allows.

**Proof.** The output of a CONV layer is a sum of products, and so is each of its three gradients.
For such sums theory bounds the rounding error a priori, element by element, by ``gamma_n * B`` (see
`convfc.rounding`). B is the same sum over absolute values: ``|M||K| + |b|`` for the output and,
with the gradient dy of the output, ``|dy||K|`` for the input, ``|M|^T|dy|`` for the weight and the
sum of ``|dy|`` for the bias. Two *computed* values are compared, each within ``gamma_n * B`` of the
exact one, so ``2 * gamma_n * B`` is allowed. A larger difference proves that the layers are not the
same function (or that one is not summed as a convolution is written: Winograd's and Fourier's
algorithms obey other bounds); a smaller one can come from rounding alone. Each layer is therefore
compared in four ways: in its own dtype, in float64, by the bits of its weights, and on small
integers, where nothing is rounded and another bit is another function. All four use one input, so
the layers' geometries are compared too, without what no input can show.

**Measurement.** For a network as a whole there is no such bound. The difference of its outputs is
reported as it is, and counts against the certificate only where the two networks, both in float64,
differ by more than the first one differs from itself rounded to its own dtype.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from convfc.tables import TextTable

_WIDTH = 100
_TITLES = ("layer", "form", "M", "K", "out", "d.in", "d.wt", "d.bias", "f64", "ints", "holds")


class Record:
    """Data of a certificate."""

    _derived: tuple[str, ...] = ()  # properties that `to_dict` lists after the fields

    def to_dict(self) -> dict[str, Any]:
        """Return it as values that JSON has; an infinity or a NaN as text."""
        names = [one.name for one in fields(self)]  # type: ignore[arg-type]
        return {name: as_json(getattr(self, name)) for name in (*names, *self._derived)}


@dataclass(frozen=True)
class Comparison(Record):
    """One quantity of a layer, before and after, at the element nearest to its bound."""

    quantity: str  # output, or a gradient: input, weight, bias
    dtype: str  # in which it was computed
    terms: int  # n of gamma_n, at most
    difference: float  # the largest of any two elements
    ratio: float | None  # the largest difference / bound of its element; None without a bound
    index: tuple[int, ...] = ()  # the element of the ratio, or without a bound of the difference
    before: complex = 0.0  # the two values of this element
    after: complex = 0.0
    bound: float | None = None  # of this element

    @property
    def holds(self) -> bool:
        """Whether the bound allows the difference; also where there is no bound to break."""
        return self.ratio is None or self.ratio <= 1

    def __str__(self) -> str:
        name = self.quantity if self.quantity == "output" else f"gradient of the {self.quantity}"
        allowed = f"{_short(self.bound)} (2 gamma_{self.terms} B)"
        return (
            f"{name} in {self.dtype} at {list(self.index)}; expected "
            f"{_value(self.before, self.dtype)} within {allowed}, got "
            f"{_value(self.after, self.dtype)}"
        )


@dataclass(frozen=True)
class WeightComparison(Record):
    """A weight or bias, before and after, in the layout of the CONV layer."""

    quantity: str  # weight or bias
    same_bits: bool
    difference: float = 0.0  # the largest of any two elements
    index: tuple[int, ...] = ()  # where it is
    before: complex | None = None  # the two values there; None where there is no such parameter
    after: complex | None = None

    def __str__(self) -> str:
        return (
            f"{self.quantity} has other bits at {list(self.index)}; expected "
            f"{_value(self.before)}, got {_value(self.after)}"
        )


@dataclass(frozen=True)
class ExactTest(Record):
    """The test on integers, where nothing is rounded and every quantity must be the same."""

    dtype: str = ""  # the layer's own, or a wider one if sums of this length need it
    differing: tuple[str, ...] = ()  # quantities that were not the same
    why_not: str = ""  # why the test could not be made
    _derived = ("identical",)

    @property
    def identical(self) -> bool | None:
        """Whether all quantities were the same; None if the test could not be made."""
        return None if self.why_not else not self.differing


@dataclass(frozen=True)
class LayerCertificate(Record):
    """What is known about one layer, on one input that it really received.

    A form is ``native``, ``patch``, ``weight``, ``unrolled``, or the name of another class; of a
    simplified network, ``stage`` and what that became.
    """

    name: str  # its place; empty for a network that is the layer itself
    forms: tuple[str, str]  # before and after
    patch_matrix: tuple[int, ...] = ()  # (b, L, k) of M
    filter_matrix: tuple[int, ...] = ()  # (k, f) of K
    dtype: str = ""  # of the input
    call: int = 0  # 0, 1, ... for a layer that is called more than once
    own: Mapping[str, Comparison] = field(default_factory=dict)  # by quantity, in its own dtype
    float64: Mapping[str, Comparison] = field(default_factory=dict)  # or complex128
    weights: tuple[WeightComparison, ...] = ()  # empty if a tool replaced plain parameters
    exact: ExactTest = field(default_factory=lambda: ExactTest(why_not="not run"))
    errors: tuple[str, ...] = ()  # what else is wrong, in words
    notes: tuple[str, ...] = ()  # what a reader should know, but is not a failure
    _derived = ("holds", "failures")

    @property
    def failures(self) -> tuple[str, ...]:
        """Every reason why the two layers are not the same function: where, what, expected, got."""
        found = list(self.errors)
        found += [str(c) for c in (*self.own.values(), *self.float64.values()) if not c.holds]
        found += [str(weight) for weight in self.weights if not weight.same_bits]
        if self.exact.differing:
            names = ", ".join(self.exact.differing)
            found.append(f"{names} of the integer test; expected the same bits, got others")
        for quantity, comparison in self.own.items():
            again = self.float64.get(quantity)
            if comparison.ratio is None and (again is None or again.ratio is None):
                found.append(f"{quantity}; expected a rounding bound, got none in any dtype")
        if not self.own and not found:
            found.append("expected its outputs to be compared, got no comparison")
        # A layer in float64 is compared once and is in both columns, so a reason can come twice.
        return tuple(f"{self.name or 'the model'}: {reason}" for reason in dict.fromkeys(found))

    @property
    def holds(self) -> bool:
        """Whether nothing failed."""
        return not self.failures


@dataclass(frozen=True)
class OutputComparison(Record):
    """One output of the whole network: a measurement, not a proof."""

    path: str  # its place in what the network returns; empty for one tensor
    dtype: str
    difference: float  # the largest, in the network's own dtype
    relative: float  # to the largest output
    float64: float | None = None  # the largest when both run in float64; None if they could not
    # How far the first network's output moves when it runs in `rounded_to` instead of float64.
    rounding: float | None = None
    rounded_to: str = ""  # the network's own dtype; float32 for a network in float64
    _derived = ("holds",)

    @property
    def holds(self) -> bool:
        """Whether float64 makes the difference smaller than rounding does, or is not known."""
        if self.float64 is None or self.rounding is None:
            return True
        return self.float64 <= self.rounding

    def __str__(self) -> str:
        return (
            f"output{self.path} in float64; expected a difference of at most "
            f"{_short(self.rounding)}, which is what rounding to {self.rounded_to} makes, got "
            f"{_short(self.float64)}"
        )


@dataclass(frozen=True)
class NetworkCertificate(Record):
    """The two networks as wholes: their outputs, and everything that was not to change."""

    outputs: tuple[OutputComparison, ...] = ()
    errors: tuple[str, ...] = ()  # other outputs, shapes, dtypes, parameters or buffers, in words
    notes: tuple[str, ...] = ()  # what a reader should know, but is not a failure
    _derived = ("holds", "failures")

    @property
    def failures(self) -> tuple[str, ...]:
        """Every reason why the networks are not the same function, in words."""
        found = [*self.errors, *(str(output) for output in self.outputs if not output.holds)]
        return tuple(f"network: {reason}" for reason in found)

    @property
    def holds(self) -> bool:
        """Whether nothing failed."""
        return not self.failures

    def __str__(self) -> str:
        if not self.outputs:
            return "Network: outputs not compared"
        own = max(self.outputs, key=lambda output: _order(output.relative))
        wide = max(self.outputs, key=lambda output: _order(output.float64))
        text = f"Network: outputs differ by {own.difference:.2g} in {own.dtype} (relative "
        text += f"{own.relative:.2g}), by {_short(wide.float64)} in float64"
        if wide.rounding is not None:
            text += f" (rounding to {wide.rounded_to}: {_short(wide.rounding)})"
        return text


@dataclass(frozen=True)
class Certificate(Record):
    """Whether two networks compute the same function, layer by layer and as wholes.

    `convfc.verify` makes it. ``layers`` are the proof, ``network`` is a measurement; the docstring
    of `convfc.certificate` explains both.

    Parameters
    ----------
    layers : tuple of LayerCertificate
        One per converted layer and call.
    network : NetworkCertificate
    unconverted : tuple of str
        CONV layers that cannot be converted and were not compared as layers.
    missing : tuple of str
        Places of CONV layers that the second network does not have.
    framework : str
        Name and version of the framework that computed it.
    seed : int
        Of the gradients of the outputs and of the integers.

    Examples
    --------
    >>> nothing = Certificate((), NetworkCertificate())
    >>> nothing.holds
    False
    >>> nothing.failures
    ('no converted layer was found; expected at least one pair, got none',)
    """

    layers: tuple[LayerCertificate, ...]
    network: NetworkCertificate
    unconverted: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    framework: str = ""
    seed: int = 0
    _derived = ("holds", "failures", "notes", "meaning")

    meaning = (
        "Two computed values of one sum differ by at most 2 gamma_n B, as each of them is within "
        "gamma_n B of the exact one (Higham 2002, chapter 3); a ratio is difference / bound. In "
        "a layer, a ratio above 1, another bit of a weight, or another integer is a proof that the "
        "functions differ. The network's line is a measurement."
    )

    @property
    def failures(self) -> tuple[str, ...]:
        """Every reason why the certificate does not hold: where, what, expected, got."""
        found = [reason for layer in self.layers for reason in layer.failures]
        found += [f"{name}: expected this layer in both networks, got one" for name in self.missing]
        if not self.layers:
            found.append("no converted layer was found; expected at least one pair, got none")
        return (*found, *self.network.failures)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know, but is not a failure."""
        found = [f"{layer.name}: {note}" for layer in self.layers for note in layer.notes]
        found += [f"{name}: cannot be converted, not compared" for name in self.unconverted]
        return tuple(dict.fromkeys((*found, *self.network.notes)))

    @property
    def holds(self) -> bool:
        """Whether there is a converted layer, and nothing failed."""
        return not self.failures

    def table(self) -> TextTable:
        """Return the table that `print` and ``str`` show.

        One row per layer: its form in the second network, the shapes (b, L, k) of M and (k, f) of
        K, the worst ratio of difference to bound for the output and for the gradients of input,
        weight and bias, the worst of the four in float64, the integer test, the verdict.
        """
        good = sum(layer.holds for layer in self.layers)
        verdict = "holds" if self.holds else "DOES NOT HOLD"
        notes = (
            f"{self.network}.",
            f"Certificate: {verdict}; {good} of {len(self.layers)} layers hold.",
            *(f"- failure: {reason}" for reason in self.failures),
            *(f"- note: {note}" for note in self.notes),
        )
        return TextTable.of(_TITLES, [_row(layer) for layer in self.layers], notes, left=2)

    def __str__(self) -> str:
        return self.table().text(_WIDTH)

    def print(self, width: int = _WIDTH) -> None:
        """Print the table, at most ``width`` columns wide where names allow."""
        print(self.table().text(width))  # noqa: T201 (what it is for)

    def __rich__(self) -> TextTable:
        """Return the table for rich, as wide as the console."""
        return self.table()


def _row(layer: LayerCertificate) -> tuple[str, ...]:
    """Return the cells of a layer's row, under `_TITLES`."""
    name = layer.name or "(the model)"
    double = max(layer.float64.values(), key=lambda c: _order(c.ratio), default=None)
    return (
        f"{name}#{layer.call}" if layer.call else name,
        layer.forms[1],
        "×".join(map(str, layer.patch_matrix)),
        "×".join(map(str, layer.filter_matrix)),
        *(_ratio(layer.own.get(quantity)) for quantity in ("output", "input", "weight", "bias")),
        _ratio(double),
        {True: "same", False: "OTHER", None: ""}[layer.exact.identical],
        "yes" if layer.holds else "NO",
    )


def _order(value: float | None) -> float:
    """Return a key to sort by: nothing is smallest, NaN largest."""
    if value is None:
        return -1.0
    return math.inf if math.isnan(value) else value


def _ratio(comparison: Comparison | None) -> str:
    """Return a ratio in five characters; it is at most 1 where all is well."""
    if comparison is None or comparison.ratio is None:
        return ""
    ratio = comparison.ratio
    if 0 < ratio < 0.001:
        return "<.001"
    if ratio <= 1:
        return f"{ratio:.3f}".removeprefix("0") if ratio else "0"
    if ratio < 1000:
        return f"{max(ratio, 1.001):.3f}"[:5]  # never rounded down to 1
    return f"{ratio:.0e}".replace("e+", "e")


def _short(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"


def _value(value: complex | None, dtype: str = "float64") -> str:
    """Return a number with all the digits of its dtype; a complex one only if it is complex."""
    if value is None:
        return "none"
    digits = 17 if dtype in ("float64", "complex128") else 9
    return f"{value.real:.{digits}g}" if value.imag == 0 else f"{value:.{digits}g}"


def as_json(thing: Any) -> Any:
    """Return records, mappings and tuples as what `json` writes and every reader takes."""
    if isinstance(thing, Record):
        return thing.to_dict()
    if isinstance(thing, Mapping):
        return {str(key): as_json(value) for key, value in thing.items()}
    if isinstance(thing, (tuple, list)):
        return [as_json(item) for item in thing]
    if isinstance(thing, complex):
        return as_json(thing.real) if thing.imag == 0 else str(thing)
    if isinstance(thing, float) and not math.isfinite(thing):
        return str(thing)  # JSON has no infinity
    return thing
