"""The measures of one pair of layers: outputs and gradients against the bound, and on integers.

Everything runs on copies. Gradients of FC parameters come back in the CONV layer's layout by way of
the layer's own ``weight`` and ``bias``: a copy takes the gradients as its parameters and is asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from convfc.certificate import Comparison, ExactTest, LayerCertificate, WeightComparison
from convfc.frameworks.torch.certify.pairs import (
    Pair,
    has_own_weights,
    is_linear_map,
    other_geometry,
)
from convfc.frameworks.torch.certify.unrolled import (
    UnrolledLayer,
    change_unrolled,
)
from convfc.frameworks.torch.layers import PatchConv
from convfc.frameworks.torch.running import deep_copy
from convfc.frameworks.torch.tensors import (
    change_sparse,
    compare,
    describe,
    dtype_name,
    is_sparse,
    not_finite,
    overflows,
    same_bits,
    strides_of,
    wide,
    words,
)
from convfc.rounding import exact_limit, rounding_bound

__all__ = ["Call", "cast", "integers_of", "measure"]

_LAYER = "one side is more than a plain layer"


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer: its input, and what else it was given."""

    x: Tensor
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    number: int = 0

    def __call__(self, layer: nn.Module, x: Tensor | None = None) -> Tensor:
        """Call a layer's forward, without the hooks around it, on this input or another."""
        y: Tensor = layer.forward(self.x if x is None else x, *self.args, **self.kwargs)
        return y


@dataclass(frozen=True)
class _Run:
    """What a layer computed: its output and the gradients, in the CONV layer's layout."""

    output: Tensor
    input: Tensor | None
    weight: Tensor | None = None
    bias: Tensor | None = None

    def items(self) -> list[tuple[str, Tensor]]:
        """Return the quantities that there are, by name."""
        return [(name, value) for name, value in vars(self).items() if value is not None]


def measure(pair: Pair, call: Call, *, seed: int, notes: tuple[str, ...] = ()) -> LayerCertificate:
    """Compare the two layers of a pair on one input.

    Parameters
    ----------
    pair : Pair
        Its layers are not changed.
    call : Call
    seed : int
        Of the gradient of the output, and of the integers.
    notes : tuple of str
        To pass on.

    Returns
    -------
    LayerCertificate
        If the second layer cannot be run, or gives something of another kind, it says so.
    """
    with torch.enable_grad():
        return _Measurement(pair, call, seed, notes).certificate()


class _Measurement:
    """One pair on one input."""

    def __init__(self, pair: Pair, call: Call, seed: int, notes: tuple[str, ...]) -> None:
        self.pair, self.call = pair, call
        self.plain = has_own_weights(pair.before) and has_own_weights(pair.after)
        # The native layer, where there is one, tells how large the sums are.
        sides = sorted((pair.before, pair.after), key=_far_from_native)
        self.reference = next(filter(is_linear_map, sides), None)
        self.generator = torch.Generator().manual_seed(seed)
        self.errors: list[str] = []
        self.notes = list(notes)

    def certificate(self) -> LayerCertificate:
        """Run everything, as long as the two are comparable at all."""
        dtype, double_dtype = self.call.x.dtype, wide(self.call.x[:0]).dtype
        own: dict[str, Comparison] = {}
        double: dict[str, Comparison] = {}
        exact = ExactTest(why_not="not run")
        weights = self._weights() if self.plain else ()
        y = self._output(self.pair.before, "the first layer")
        if y is not None and self._comparable(y) and self._finite():
            dy = torch.empty_like(y).copy_(self._normal(y))
            sums, terms = self._sums(dy)
            own = double = self._compare(dtype, dy, sums, terms)
            if double_dtype != dtype:
                double = self._compare(double_dtype, dy, sums, terms)
            if not self.errors:
                exact = self._exact(y, terms)
        if not self.plain:
            self.notes.append(
                f"{_LAYER}: no test of weights and integers; in float64 the bound is that of "
                f"{dtype_name(dtype)}, to which weights may have been rounded"
            )
        geometry, entries = other_geometry(self.pair), self._entries() if self.plain else []
        m, k = ((), ()) if y is None else self._matrices(y)
        return LayerCertificate(
            name=self.pair.name,
            forms=self.pair.forms,
            patch_matrix=m,
            filter_matrix=k,
            dtype=dtype_name(dtype),
            call=self.call.number,
            own=own,
            float64=double,
            weights=weights,
            exact=exact,
            errors=tuple(dict.fromkeys((*geometry, *self.errors, *entries))),
            notes=tuple(self.notes),
        )

    def _comparable(self, y: Tensor) -> bool:
        """Say whether the second layer gives an output of the first one's shape and dtype."""
        other = self._output(self.pair.after, "the second layer")
        if other is None:
            return False
        if describe(other) != describe(y):
            self.errors.append(f"its output; expected {describe(y)}, got {describe(other)}")
            return False
        if strides_of(other) != strides_of(y):
            self.notes.append(f"strides of its output: {y.stride()}, then {other.stride()}")
        return True

    def _finite(self) -> bool:
        """Say whether all that the bounds are made of is finite."""
        found = not_finite("input", self.call.x)
        for side in (self.pair.before, self.pair.after):
            for name, parameter in side.named_parameters():
                found = found or not_finite(name, parameter, "verify it with finite weights")
        self.errors += [found] if found else []
        return not found

    @torch.no_grad()
    def _output(self, layer: nn.Module, who: str) -> Tensor | None:
        y: Tensor | None = self._attempt(lambda: self.call(deep_copy(layer)), who)
        return y

    def _attempt(self, run: Callable[[], Any], doing: str) -> Any:
        """Run a layer that may be anything: what it raises is a finding, not an accident."""
        try:
            return run()
        except Exception as error:
            self.errors.append(f"{doing} fails; expected an output, got {words(error)}")
            return None

    def _compare(
        self, dtype: torch.dtype, dy: Tensor, sums: Mapping[str, Tensor], terms: Mapping[str, int]
    ) -> dict[str, Comparison]:
        """Compare all quantities in one dtype."""

        def run(layer: nn.Module) -> _Run:
            layer = deep_copy(layer)
            if dtype == self.call.x.dtype:
                return _run(layer, self.call, self.call.x, dy, weights=self.plain)
            layer = cast(layer, wide)
            return _run(layer, self.call, wide(self.call.x), wide(dy), weights=self.plain)

        known = len(self.errors)
        ours = self._attempt(lambda: run(self.pair.before), "the gradient of the first layer")
        theirs = self._attempt(lambda: run(self.pair.after), "the gradient of the second layer")
        if ours is None or theirs is None:
            if not self.plain and dtype != self.call.x.dtype:
                self.notes += self.errors[known:]  # a quantised layer has no float64
                del self.errors[known:]
            return {}
        if (ours.input is None) != (theirs.input is None):
            sides = ["none" if side.input is None else "one" for side in (ours, theirs)]
            self.errors.append(f"gradient of the input; expected {sides[0]}, got {sides[1]}")
        others, found = dict(theirs.items()), {}
        for name, value in ours.items():
            if name not in others or others[name].shape != value.shape:
                continue  # a weight or bias of another kind, which is an error already
            bound = None
            if name in sums and not overflows(sums[name], dtype):
                theory = dtype if self.plain else self.call.x.dtype
                bound = rounding_bound(sums[name], terms[name], dtype_name(theory))
            result = compare(value, others[name], bound)
            found[name] = Comparison(name, dtype_name(dtype), terms.get(name, 0), **result)
        return found

    def _sums(self, dy: Tensor) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Return B of each quantity, and how many terms its longest sum has.

        B is the reference layer on moduli. On ones, and one image, the same layer counts.
        """
        if self.reference is None:
            return {}, {}
        weights = self.plain
        x, dy = _modulus(self.call.x), _modulus(dy)
        moduli = cast(deep_copy(self.reference), _modulus)
        sums = _run(moduli, self.call, x, dy, weights=weights)
        counter = cast(moduli, torch.ones_like)
        images = self._images()
        first = slice(0, 1) if images is not None else slice(None)
        ones = torch.ones_like(x[first]), torch.ones_like(dy[first])
        counts = _run(counter, self.call, *ones, weights=weights).items()
        terms = {name: int(count.max()) if count.numel() else 0 for name, count in counts}
        for name in ("weight", "bias"):
            if name in terms and images is not None:
                terms[name] *= images
        return dict(sums.items()), terms

    def _exact(self, y: Tensor, terms: Mapping[str, int]) -> ExactTest:
        """Compare on integers, in the narrowest dtype in which sums of so many terms are exact."""
        if not self.plain:
            return ExactTest(why_not=_LAYER)
        longest = max(1, *terms.values())
        for dtype in _widening(self.call.x.dtype):
            # A modulus of two complex integers is sqrt(2) times as large as their parts.
            room = exact_limit(dtype_name(dtype)) / (longest * (1 + dtype.is_complex))
            if room < 1:
                continue
            largest = min(2 ** int(math.log2(room) / 2), 256)
            x, dy = (
                torch.empty_like(t, dtype=dtype).copy_(integers_of(self._normal(t), largest))
                for t in (self.call.x, y)
            )

            def change(t: Tensor, largest: int = largest, dtype: torch.dtype = dtype) -> Tensor:
                return integers_of(t, largest).to(dtype)

            ours, theirs = (
                dict(_run(cast(deep_copy(side), change), self.call, x, dy).items())
                for side in (self.pair.before, self.pair.after)
            )
            differing = [
                name for name, value in ours.items() if not torch.equal(value, theirs[name])
            ]
            return ExactTest(dtype_name(dtype), tuple(differing))
        return ExactTest(why_not="its sums are too long to be exact in float64")

    def _weights(self) -> tuple[WeightComparison, ...]:
        """Compare weight and bias bit by bit."""
        found = []
        for name in ("weight", "bias"):
            ours, theirs = getattr(self.pair.before, name), getattr(self.pair.after, name)
            if describe(ours) != describe(theirs):
                self.errors.append(f"its {name}; expected {describe(ours)}, got {describe(theirs)}")
            elif ours is not None:
                result = compare(ours.detach(), theirs.detach(), None)
                del result["ratio"], result["bound"]
                found.append(WeightComparison(name, same_bits(ours, theirs), **result))
        return tuple(found)

    def _entries(self) -> list[str]:
        """Compare every entry of an unrolled layer's matrix with the weight of the other side."""
        found: list[str] = []
        sides = (self.pair.before, self.pair.after)
        for side, other in (sides, sides[::-1]):
            if not isinstance(side, UnrolledLayer):
                continue
            known = not isinstance(other, UnrolledLayer)
            weight, bias = (other.weight, other.bias) if known else (None, None)
            if weight is None or weight.shape == side.record.weight.shape:
                found += side.misfits(weight, bias)  # type: ignore[arg-type]
        return found

    def _normal(self, like: Tensor) -> Tensor:
        """Return random numbers of the normal distribution, the same ones on every device."""
        dtype = torch.complex128 if like.is_complex() else torch.float64
        drawn = torch.randn(like.shape, generator=self.generator, dtype=dtype)
        return drawn.to(like.device)

    def _images(self) -> int | None:
        """Return the size of the batch axis; None if there is no such axis."""
        x = self.call.x
        return x.shape[0] if x.dim() > 1 + _spatial_ndim(self.reference) else None

    def _matrices(self, y: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of M and of K."""
        layer = next(filter(has_own_weights, (self.pair.before, self.pair.after)), None)
        if layer is None or not y.numel():
            return (), ()
        channels = y.dim() - 1 - _spatial_ndim(layer)
        filters = y.shape[channels]
        taps = layer.weight.numel() // filters  # type: ignore[operator]
        images, rows = math.prod(y.shape[:channels]), math.prod(y.shape[channels + 1 :])
        return (images, rows, taps), (taps, filters)


def _far_from_native(layer: nn.Module) -> int:
    """Return how many numbers stand for one of the CONV layer: order the two sides by it."""
    return 2 if isinstance(layer, UnrolledLayer) else int(isinstance(layer, PatchConv))


def _spatial_ndim(layer: nn.Module | None) -> int:
    """Return the number of spatial axes of a layer's input; 0 for rows."""
    while isinstance(layer, nn.Sequential):
        layer = layer[0]
    return 0 if layer is None else max(layer.weight.dim() - 2, 0)  # type: ignore[operator]


def _run(layer: nn.Module, call: Call, x: Tensor, dy: Tensor, *, weights: bool = True) -> _Run:
    """Run a copied layer forward and backward; its parameters become their gradients."""
    x = x.detach().requires_grad_()
    parameters = [p for p in layer.parameters() if weights]
    for parameter in parameters:
        parameter.requires_grad_()
    y = call(layer, x)
    if not y.requires_grad:  # a quantised layer, for instance
        return _Run(y, None)
    dx, *gradients = torch.autograd.grad(y, [x, *parameters], dy, allow_unused=True)
    if not weights:
        return _Run(y.detach(), dx)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if not is_sparse(parameter):
                parameter.copy_(torch.zeros_like(parameter) if gradient is None else gradient)
            elif isinstance(layer, UnrolledLayer):
                layer.linear.weight = nn.Parameter(gradient)  # it is dense
        if isinstance(layer, UnrolledLayer):
            return _Run(y.detach(), dx, *layer.folded())
        if isinstance(layer, PatchConv):
            _clear_off_blocks(layer)
        bias = layer.bias
        return _Run(y.detach(), dx, layer.weight.detach(), None if bias is None else bias.detach())  # type: ignore[operator]


def _clear_off_blocks(layer: PatchConv) -> None:
    """Drop the gradient of a block-diagonal weight's zeros: the CONV layer has no such weights."""
    if layer.groups == 1 or isinstance(layer.fc, nn.ModuleList):
        return
    weight: Tensor = layer.fc.weight  # type: ignore[assignment]
    rows, columns = (size // layer.groups for size in weight.shape)
    block = weight.new_ones(rows, columns)
    weight.mul_(torch.block_diag(*[block] * layer.groups))


def cast(layer: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """Change every parameter and buffer of numbers that are not integers, in place."""

    def change_numbers(t: Tensor) -> Tensor:
        return change(t) if (t.is_floating_point() or t.is_complex()) and not is_sparse(t) else t

    put = change_unrolled(layer, change)
    change_sparse(layer, change)
    layer._apply(change_numbers)
    put()
    return layer


def _modulus(t: Tensor) -> Tensor:
    return wide(t.detach()).abs()


def _widening(dtype: torch.dtype) -> list[torch.dtype]:
    """Return a dtype and the wider ones of its kind."""
    kinds = (
        [torch.complex64, torch.complex128] if dtype.is_complex else [torch.float32, torch.float64]
    )
    return list(dict.fromkeys([dtype, *(kind for kind in kinds if kind.itemsize > dtype.itemsize)]))


def integers_of(t: Tensor, largest: int) -> Tensor:
    """Turn each number into an integer from -largest to largest that depends on its bits alone.

    So numbers that have changed places are integers that have changed places, and a changed number
    is, most often, another integer. Zero stays zero, as in a block-diagonal matrix it must, and
    nothing else becomes zero. ``largest`` is a power of two.

    Examples
    --------
    >>> integers_of(torch.tensor([0.1, 0.0, 0.2, 0.1]), 4)
    tensor([3., 0., 1., 3.])
    """
    if t.is_complex():
        return torch.view_as_complex(integers_of(torch.view_as_real(t.resolve_conj()), largest))
    bits = t.detach().to(torch.float64).view(torch.int64)
    # Multiplicative (Fibonacci) hashing: the highest bits of the product depend on all bits.
    value = (bits * 0x1E3779B97F4A7C15) >> (64 - (2 * largest).bit_length() + 1)
    value += value >= 0
    value *= t != 0
    return value.to(t.dtype)
