"""The certificate: two networks compute the same function, as far as rounding lets anyone say.

**Proof.** The output of a CONV layer is a sum of products, and so is each of its three gradients.
For such sums theory bounds the rounding error a priori, element by element, by ``gamma_n * B`` (see
`convfc.rounding`). B is the same sum over absolute values: ``|M||K| + |b|`` for the output and,
with the gradient dy of the output, ``|dy||K|`` for the input, ``|M|^T|dy|`` for the weight and the
sum of ``|dy|`` for the bias. Two *computed* values are compared, each within ``gamma_n * B`` of the
exact one, so what is allowed is ``2 * gamma_n * B``. A larger difference proves that the layers are
not the same function (or that one of them is not summed as a convolution is written: Winograd's and
Fourier's algorithms obey other bounds); a smaller one says that rounding alone can be the reason.
Each layer is therefore compared in four ways: in its own dtype, in float64, by the bits of its
weights, and on small integers, where nothing is rounded and one other bit is another function. All
four are made on one input; so a layer's geometry is compared, too, without what no input can show.

**Measurement.** For a network as a whole there is no such bound. The difference of its outputs is
reported as it is, and counts against the certificate only where the two networks, both in float64,
differ by more than the first one differs from itself rounded to its own dtype.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from convfc.tables import Column, TextTable

_WIDTH = 100
_TITLES = ("layer", "form", "M", "K", "out", "d.in", "d.wt", "d.bias", "f64", "ints", "holds")


class _Record:
    """What all parts of a certificate share: they are data."""

    _derived: tuple[str, ...] = ()  # properties that stand beside the fields in `to_dict`

    def to_dict(self) -> dict[str, Any]:
        """Return it as values that JSON knows; an infinity or a NaN as text."""
        names = [one.name for one in fields(self)]  # type: ignore[arg-type]
        return {name: _json(getattr(self, name)) for name in (*names, *self._derived)}


@dataclass(frozen=True)
class Comparison(_Record):
    """One quantity of a layer, before against after, where it comes nearest to its bound.

    Parameters
    ----------
    quantity : str
        ``output``, ``input``, ``weight`` or ``bias``; the last three are gradients.
    dtype : str
        In which it was computed.
    terms : int
        n of gamma_n, at most.
    difference : float
        The largest difference of two elements.
    ratio : float or None
        The largest difference relative to the bound of its element; None if there is no bound.
    index : tuple of int
        The element with the largest ratio, or the largest difference if there is no bound.
    before, after : complex
        The two values of this element.
    bound : float or None
        The bound of this element.
    """

    quantity: str
    dtype: str
    terms: int
    difference: float
    ratio: float | None
    index: tuple[int, ...] = ()
    before: complex = 0.0
    after: complex = 0.0
    bound: float | None = None

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
class WeightComparison(_Record):
    """A weight or bias, before against after, in the layout of the CONV layer.

    Parameters
    ----------
    quantity : str
        ``weight`` or ``bias``.
    same_bits : bool
    difference : float
        The largest difference of two elements.
    index : tuple of int
        Where it is.
    before, after : complex or None
        The two values there; None on the side that has no such parameter.
    """

    quantity: str
    same_bits: bool
    difference: float = 0.0
    index: tuple[int, ...] = ()
    before: complex | None = None
    after: complex | None = None

    def __str__(self) -> str:
        return (
            f"{self.quantity} has other bits at {list(self.index)}; expected "
            f"{_value(self.before)}, got {_value(self.after)}"
        )


@dataclass(frozen=True)
class ExactTest(_Record):
    """The test on integers, where nothing is rounded and every quantity must be the same.

    Parameters
    ----------
    dtype : str
        In which it ran: the layer's own, or a wider one if sums of this length need it.
    differing : tuple of str
        The quantities that were not the same.
    why_not : str
        Why the test could not be made; empty if it was.
    """

    dtype: str = ""
    differing: tuple[str, ...] = ()
    why_not: str = ""
    _derived = ("identical",)

    @property
    def identical(self) -> bool | None:
        """Whether all was the same; None if the test could not be made."""
        return None if self.why_not else not self.differing


@dataclass(frozen=True)
class LayerCertificate(_Record):
    """What is known about one layer, on one input that it really received.

    Parameters
    ----------
    name : str
        The place in the network; empty for a network that is the layer itself.
    forms : tuple of str
        Before and after: ``conv``, ``patch``, ``weight``, ``unrolled``, or the name of another
        class; of a simplified network, ``stage`` and what that became.
    patch_matrix, filter_matrix : tuple of int
        Shapes (b, L, k) of M and (k, f) of K.
    dtype : str
        Of the input.
    call : int
        0, 1, ... for a layer that is called more than once.
    own, float64 : mapping
        The `Comparison` of each quantity in the layer's own dtype, and in float64 (complex128).
    weights : tuple of WeightComparison
        Empty if a tool has put something else than plain parameters there.
    exact : ExactTest
    errors : tuple of str
        What is wrong besides, in words.
    notes : tuple of str
        What a reader should know, but is no failure.
    """

    name: str
    forms: tuple[str, str]
    patch_matrix: tuple[int, ...] = ()
    filter_matrix: tuple[int, ...] = ()
    dtype: str = ""
    call: int = 0
    own: Mapping[str, Comparison] = field(default_factory=dict)
    float64: Mapping[str, Comparison] = field(default_factory=dict)
    weights: tuple[WeightComparison, ...] = ()
    exact: ExactTest = field(default_factory=lambda: ExactTest(why_not="not run"))
    errors: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
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
        # A layer in float64 is compared in float64 once, and stands in both columns.
        return tuple(f"{self.name or 'the model'}: {reason}" for reason in dict.fromkeys(found))

    @property
    def holds(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.failures


@dataclass(frozen=True)
class OutputComparison(_Record):
    """One output of the whole network: a measurement, not a proof.

    Parameters
    ----------
    path : str
        Its place in what the network returns; empty for a network that returns one tensor.
    dtype : str
    difference, relative : float
        The largest difference in the network's own dtype, and relative to the largest output.
    float64 : float or None
        The largest difference when both networks run in float64; None if they could not.
    rounding : float or None
        How far the *first* network's output moves when that network runs in ``rounded_to`` instead
        of float64: what rounding does to this network on this input, measured.
    rounded_to : str
        The network's own dtype; float32 for a network in float64.
    """

    path: str
    dtype: str
    difference: float
    relative: float
    float64: float | None = None
    rounding: float | None = None
    rounded_to: str = ""
    _derived = ("holds",)

    @property
    def holds(self) -> bool:
        """Whether float64 takes the difference below what rounding does; also if not measured."""
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
class NetworkCertificate(_Record):
    """The two networks as wholes: their outputs, and everything that was not to change.

    Parameters
    ----------
    outputs : tuple of OutputComparison
    errors : tuple of str
        Missing outputs, other shapes or dtypes, other parameters or buffers: in words.
    notes : tuple of str
        What a reader should know, but is no failure.
    """

    outputs: tuple[OutputComparison, ...] = ()
    errors: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    _derived = ("holds", "failures")

    @property
    def failures(self) -> tuple[str, ...]:
        """Every reason why the networks are not the same function, in words."""
        found = [*self.errors, *(str(output) for output in self.outputs if not output.holds)]
        return tuple(f"network: {reason}" for reason in found)

    @property
    def holds(self) -> bool:
        """Whether nothing speaks against it."""
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
class Certificate(_Record):
    """Whether two networks compute the same function, layer by layer and as wholes.

    `convfc.verify` makes it. ``layers`` are the proof, ``network`` is a measurement: the head of
    `convfc.certificate` says what each of them means.

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
        """What a reader should know, but is no failure."""
        found = [f"{layer.name}: {note}" for layer in self.layers for note in layer.notes]
        found += [f"{name}: cannot be converted, not compared" for name in self.unconverted]
        return tuple(dict.fromkeys((*found, *self.network.notes)))

    @property
    def holds(self) -> bool:
        """Whether there is a converted layer, and nothing speaks against any."""
        return not self.failures

    def table(self) -> TextTable:
        """Return the table that `print` and ``str`` show.

        One row per layer: its form in the second network, the shapes (b, L, k) of M and (k, f) of
        K, the worst ratio of difference to bound for the output and for the gradients of input,
        weight and bias, the worst of the four in float64, the integer test, the verdict.
        """
        cells = zip(*map(_row, self.layers), strict=True) if self.layers else [()] * len(_TITLES)
        columns = (
            Column(title, tuple(column), right=number > 1)
            for number, (title, column) in enumerate(zip(_TITLES, cells, strict=True))
        )
        good = sum(layer.holds for layer in self.layers)
        verdict = "holds" if self.holds else "DOES NOT HOLD"
        return TextTable(
            tuple(columns),
            (
                f"{self.network}.",
                f"Certificate: {verdict}; {good} of {len(self.layers)} layers hold.",
                *(f"- failure: {reason}" for reason in self.failures),
                *(f"- note: {note}" for note in self.notes),
            ),
        )

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


def _json(thing: Any) -> Any:
    """Return records, mappings and tuples as what `json` writes and every reader takes."""
    if isinstance(thing, _Record):
        return thing.to_dict()
    if isinstance(thing, Mapping):
        return {str(key): _json(value) for key, value in thing.items()}
    if isinstance(thing, (tuple, list)):
        return [_json(item) for item in thing]
    if isinstance(thing, complex):
        return _json(thing.real) if thing.imag == 0 else str(thing)
    if isinstance(thing, float) and not math.isfinite(thing):
        return str(thing)  # JSON has no infinity
    return thing
