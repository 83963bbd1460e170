"""Which layer of one network stands for which of the other, and how the two are compared.

Two networks are walked together by the names of their parts. Where either of them has a CONV layer,
in whatever form, the walk stops and the place is a pair. Both sides of it get the same gradients,
in the CONV layer's layout, from the layer's own ``weight`` and ``bias``: the parameters of a copy
become their gradients for a moment, and the copy is asked.

The matrix A of the unrolled form has more numbers than there are weights. Its gradient is folded by
the adjoint of the pattern, which gives the gradient of the filters; and a change of all numbers (to
their absolute values, to integers, to another dtype) is made in the filters, from which A is made
again, except for the entries that are not what the filters say: these are changed themselves, so
that they stay as wrong as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from convfc.certificate import LayerCertificate, WeightComparison
from convfc.comparing import compare, describe, dtype_name, same_bits, wide, words
from convfc.errors import GeometryError
from convfc.frameworks.torch.forms.calls import Convolution, convolution_of
from convfc.frameworks.torch.forms.form import Unrolled, form_of, linear_of, unrolled_of
from convfc.frameworks.torch.forms.patch import PatchConv, by_matrix
from convfc.frameworks.torch.forms.shown import Shown, as_plain
from convfc.frameworks.torch.forms.weight import steps_of
from convfc.frameworks.torch.matrix import fold, matrix_tensor, matrix_values
from convfc.frameworks.torch.read import geometry_of, obstacle, own_forward
from convfc.frameworks.torch.running import deep_copy
from convfc.frameworks.torch.unrolled.back import bias_of
from convfc.frameworks.torch.unrolled.entries import (
    differing,
    first_wrong,
    held_by,
    likely_filters,
    values_in,
)
from convfc.geometry import ConvGeometry
from convfc.measure import LARGEST, Call, Numbers, Run, Side, Sides, Sums, measure
from convfc.operators.nearest import Entries

_NOT_PLAIN = "one side is more than a plain layer"


@dataclass(frozen=True, eq=False)
class Pair:
    """A place of both networks; for a layer that stands at several, the first of them.

    ``part`` is the first network's own part there, if ``before`` is an adapter of it.
    """

    name: str
    before: nn.Module
    after: nn.Module
    part: nn.Module | None = None
    errors: tuple[str, ...] = ()

    @property
    def called(self) -> nn.Module:
        """The part of the first network that is called."""
        return self.before if self.part is None else self.part

    @property
    def forms(self) -> tuple[str, str]:
        """What the layer is before and after, in one word each."""
        return word_for(self.before), word_for(self.after)

    @property
    def reshapes(self) -> bool:
        """Whether it is a head that was made a CONV layer."""
        return isinstance(self.after, HeadConv)

    def on(self, call: Call) -> list[Sides]:
        """Return the pair on one input, for `measure`; its layers are copied.

        Of layers with a forward of their own, or with a computed weight, it is the convolutions
        inside: what runs before, between and after them is the same code.
        """
        if runs_own_forward(self.before) or runs_own_forward(self.after):
            return [_Layers(pair, inner) for pair, inner in _inside(self, call)]
        return [_Layers(self, call)]

    def unreached(self, seed: int) -> list[LayerCertificate]:
        """Compare a pair that the network does not call on this input, on random numbers."""
        sides = (self.before, self.after)
        layer = next((one for one in sides if has_own_weights(one) or runs_own_forward(one)), None)
        if layer is None or not hasattr(layer, "kernel_size"):
            error = "it is not called; expected a call on this input, got none"
            return [LayerCertificate(self.name, self.forms, errors=(error,))]
        weight: Tensor = layer.weight.detach()  # type: ignore[operator]
        unrolled = [side for side in (self.before, self.after) if isinstance(side, UnrolledLayer)]
        if unrolled:
            record = unrolled[0].record
            size: tuple[int, ...] = (1, record.geometry.in_channels, *record.input_size)
        elif weight.dim() == 2:
            size = (1, weight.shape[1])
        else:
            geometry = geometry_of(layer, (1,) * (weight.dim() - 2))
            # Large enough for the kernel, and for every padding mode.
            spatial = [
                d * (k - 1) + 3 + 2 * max(0, *pad)
                for k, d, pad in zip(
                    geometry.kernel_size, geometry.dilation, geometry.padding, strict=True
                )
            ]
            size = (1, geometry.in_channels, *spatial)
        x = torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(weight)
        note = f"not called on this input, so compared on random numbers of shape {size}"
        return [measure(one, seed=seed, notes=(note,)) for one in self.on(Call(x))]


class HeadConv(nn.Module):
    """A CONV layer in the place of an ``nn.Linear``, called with what the ``nn.Linear`` receives.

    `convfc.to_conv` makes such heads: the kernel is as large as the feature map that was flattened,
    so that there is one output position.
    """

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.layer = conv

    @property
    def weight(self) -> Tensor:
        """The weight, as the ``nn.Linear`` has it."""
        weight: Tensor = self.layer.weight  # type: ignore[assignment]
        return weight.flatten(1)

    @property
    def bias(self) -> Tensor | None:
        """The bias."""
        return self.layer.bias  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs ``(..., f)`` of rows ``(..., k)``."""
        weight: Tensor = self.layer.weight  # type: ignore[assignment]
        y: Tensor = self.layer(x.reshape(-1, *weight.shape[1:]))
        return y.reshape(*x.shape[:-1], y.shape[1])


class UnrolledLayer(nn.Module):
    """An unrolled layer with ``weight`` and ``bias`` as the CONV layer has them."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    @property
    def record(self) -> Unrolled:
        """What the layer was."""
        record = unrolled_of(self.layer)
        assert record is not None, "made of unrolled layers only"  # noqa: S101
        return record

    @property
    def linear(self) -> Any:
        """The FC layer between Flatten and Unflatten."""
        return linear_of(self.layer)

    def is_plain(self) -> bool:
        """Say whether it is Flatten, exactly an ``nn.Linear`` of the right size, and Unflatten."""
        linear = self.linear
        return (
            type(linear) is nn.Linear
            and not parametrize.is_parametrized(linear)
            and linear.weight.shape == self.record.pattern.shape
        )

    @property
    def weight(self) -> Tensor:
        """The weight, in the CONV layer's layout: what the matrix has where it has it first."""
        record = self.record
        return record.weight_of(_filters(held_by(self.linear.weight, record.pattern), record))

    @property
    def bias(self) -> Tensor | None:
        """The bias, one number per filter: what the first position adds."""
        vector = self.linear.bias
        return None if vector is None else bias_of(vector, self.record)[0]

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, as its ``nn.Sequential`` computes it."""
        y: Tensor = self.layer.forward(x)
        return y

    def folded(self, matrix: Tensor, vector: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return gradients of the matrix and the vector as those of weight and bias."""
        record = self.record
        weight = record.weight_of(fold(values_in(matrix, record.pattern), record.pattern))
        if vector is None:
            return weight, None
        return weight, vector.detach().unflatten(0, (-1, record.positions)).sum(1)

    def wrong_entries(self, weight: Tensor | None, bias: Tensor | None) -> list[str]:
        """Return what matrix and vector have that those of a weight and a bias have not.

        None is the weight, or the bias, that is read out of them.
        """
        record, linear = self.record, self.linear
        held = held_by(linear.weight, record.pattern)
        filters = _filters(held, record) if weight is None else record.filters_of(weight)
        expected = matrix_values(filters.detach().to(held.values), record.pattern)
        wrong, more = first_wrong(held, expected, record.pattern)

        def row(number: int) -> str:
            filter_, position = divmod(number, record.positions)
            return f"(filter {filter_}, position {position})"

        found = []
        if wrong is not None:
            found.append(
                f"its matrix at [{wrong.row}, {wrong.column}] {row(wrong.row)}; expected "
                f"{wrong.expected}, got {wrong.got}"
                + (f", and {more} more such entries" if more else "")
            )
        if linear.bias is not None:
            vector = linear.bias.detach()
            each = vector[:: record.positions] if bias is None else bias.detach()
            added = each.repeat_interleave(record.positions)
            other = differing(vector, added)
            if bool(other.any()):
                at = int(other.to(torch.uint8).argmax())
                found.append(
                    f"its vector at [{at}] {row(at)}; expected {added[at].item()}, got "
                    f"{vector[at].item()}"
                )
        return found


def word_for(module: nn.Module) -> str:
    """Say in one word what a layer is, for a certificate: its form, or its class if it has none."""
    if isinstance(module, (UnrolledLayer, HeadConv)):
        module = module.layer
    form = form_of(module)
    return form or type(module).__name__


def has_own_weights(module: nn.Module) -> bool:
    """Say whether a layer's weight is its own parameter, element by element, in any layout."""
    if isinstance(module, PatchConv):
        return module.holds_conv_weight() and not runs_own_forward(module)
    form = form_of(module)
    if form == "weight":
        return len(steps_of(module)) == 1
    if form == "native":
        return obstacle(module) is None
    if isinstance(module, HeadConv):
        return has_own_weights(module.layer)
    if isinstance(module, UnrolledLayer):
        return module.is_plain()
    own = isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
    return own and not parametrize.is_parametrized(module)


def runs_own_forward(layer: nn.Module) -> bool:
    """Say whether a layer runs a forward of its own class, or has its weight computed."""
    if isinstance(layer, PatchConv):
        return layer.own_forward or layer.is_computed
    own = form_of(layer) == "native" and obstacle(layer) is not None
    return own and obstacle(layer, patch=True) is None


class _Convolutions(TorchFunctionMode):
    """Notes what is convolved, with plain tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Convolution] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        found = convolution_of(func, args, kwargs or {})
        if found is not None:
            self.found.append(found.plain())
        return func(*args, **(kwargs or {}))


def _inside(pair: Pair, call: Call) -> Iterator[tuple[Pair, Call]]:
    """Yield the convolutions inside one call, each as a pair of layers on what it received."""
    noted: list[list[Convolution]] = []
    errors: tuple[str, ...] = ()
    for which, layer in (("first", pair.before), ("second", pair.after)):
        with _Convolutions() as mode, torch.no_grad():
            try:
                call(by_matrix(deep_copy(layer)).forward, call.x)
            except Exception as error:
                errors += (f"the {which} layer fails; expected an output, got {words(error)}",)
        noted.append(mode.found)
    ours, theirs = noted
    if len(ours) != len(theirs) or not ours:
        errors += (f"its convolutions; expected {len(ours)}, got {len(theirs)}",)
    if errors:
        yield replace(pair, errors=errors), call
        return
    for number, (mine, other) in enumerate(zip(ours, theirs, strict=True), start=call.number):
        inner = Pair(pair.name, mine.as_layer(), _as_child(pair.after, other))
        yield inner, Call(mine.x, number=number)


def _as_child(layer: nn.Module, convolution: Convolution) -> nn.Module:
    """Return a convolution inside a layer as a layer: in patch form with the FC children of it."""
    native = convolution.as_layer()
    if not isinstance(layer, PatchConv):
        return native
    made = PatchConv(native, separate=isinstance(layer.fc, nn.ModuleList), product="matrix")
    made.put_children(deep_copy(layer.fc))
    return made


def is_linear_map(module: nn.Module) -> bool:
    """Say whether a module is made of such layers, one behind the other, and of nothing else.

    Then it computes the magnitude B, with the absolute values of its parameters and its input.
    """
    if type(module) is nn.Sequential:
        return len(module) > 0 and all(map(is_linear_map, module))
    return has_own_weights(module)


def other_geometry(pair: Pair) -> Iterator[str]:
    """Yield, in words, what the second layer's geometry has other than the first one's.

    One input may not show it: where there is one output position, every stride computes the same.
    What no input can show is no difference (see `_as_seen`). The layers' own geometries are
    compared; an ``output_size`` changes the output padding of one call only.
    """
    ours, theirs = (_geometry(side) for side in (pair.before, pair.after))
    if ours is None or theirs is None:
        return
    for name, mine in ours.items():
        if mine != theirs[name]:
            yield f"its {name}; expected {mine}, got {theirs[name]}"


def _geometry(layer: nn.Module) -> dict[str, Any] | None:
    """Return the geometry of a layer that computes what its attributes say; else None."""
    if isinstance(layer, UnrolledLayer):
        return _as_seen(layer.record.geometry)
    form = form_of(layer)
    if form not in ("patch", "weight") and not (form == "native" and own_forward(layer) is None):
        return None
    try:
        return _as_seen(geometry_of(layer, ()))
    except GeometryError:
        return None  # no convolution has it: the layer fails when it is run, which is told


def _as_seen(geometry: ConvGeometry) -> dict[str, Any]:
    """Return what a geometry consists of, by name, without what no input can show.

    One tap has no distance to another; and a transposed layer of one tap that neither steps, pads
    nor cuts is the layer that is not transposed.
    """
    axes = zip(geometry.kernel_size, geometry.dilation, strict=True)
    apart = tuple(1 if taps == 1 else dilation for taps, dilation in axes)
    per_position = {*geometry.kernel_size, *geometry.stride} == {1}
    moved = any(map(any, geometry.padding)) or any(geometry.output_padding)
    transposed = geometry.transposed and (moved or not per_position)
    # No geometry of these: an output padding may be as large as a dilation that is of no effect.
    return {**vars(geometry), "dilation": apart, "transposed": transposed}


def pair_of(name: str, before: nn.Module, after: nn.Module) -> Pair | None:
    """Return the pair of a place; a head that became a CONV layer is called as it was.

    None of layers that convfc does not know, on both sides.
    """
    if not any(map(_is_known, (before, after))):
        return None
    if type(before) is nn.Linear and form_of(after) in ("native", "weight"):
        return Pair(name, before, HeadConv(after))
    return Pair(name, _callable(before), _callable(after), before)


def _callable(layer: nn.Module) -> nn.Module:
    return UnrolledLayer(layer) if form_of(layer) == "unrolled" else layer


def _is_known(module: nn.Module) -> bool:
    form = form_of(module)
    return form is not None and (form != "native" or obstacle(module, patch=True) is None)


class _Layers(Sides):
    """The two layers of a pair on one input; everything runs on copies of them."""

    compares_strides = True

    def __init__(self, pair: Pair, call: Call) -> None:
        self.name, self.forms, self.call = pair.name, pair.forms, call
        self.parts = pair.before, pair.after
        self.plain = all(map(has_own_weights, self.parts))
        self.copies: list[nn.Module] = []
        # The native layer, where there is one, tells how large the sums are.
        sides = sorted(self.parts, key=_far_from_native)
        self.reference = next(filter(is_linear_map, sides), None)
        self.errors = [*pair.errors, *other_geometry(pair)]
        if self.plain:
            self.weights = tuple(self._weights())
            self.errors += self._wrong_entries()
        else:
            self.why_no_integers = _NOT_PLAIN
            self.notes = (
                f"{_NOT_PLAIN}: no test of weights and integers; in float64 the bound is that of "
                f"{dtype_name(call.x.dtype)}, to which weights may have been rounded",
            )

    def made(self, numbers: Numbers | None) -> tuple[Side, Side]:
        # What a tool has put in may keep something of a run: then the next one has its own copies.
        if not self.copies or not self.plain:
            self.copies = [by_matrix(deep_copy(part)) for part in self.parts]
        if numbers is not None:
            for copied in self.copies:
                cast(copied, numbers)
        before, after = self.copies
        return partial(self._run, before), partial(self._run, after)

    def _run(self, layer: nn.Module, x: Tensor) -> Run:
        """Run a copied layer forward, and backward when the gradients are asked for."""
        x = x.detach().requires_grad_()
        parameters = list(layer.parameters()) if self.plain else []
        for parameter in parameters:
            parameter.requires_grad_()
        with torch.enable_grad():
            y = self.call(layer.forward, x)

        def gradients(dy: Tensor) -> dict[str, Tensor]:
            if not y.requires_grad:  # a quantised layer, for instance
                return {}
            dx, *found = torch.autograd.grad(y, [x, *parameters], dy, allow_unused=True)
            named: dict[str, Tensor | None] = {"input": dx}
            if self.plain:
                named["weight"], named["bias"] = _in_conv_layout(layer, parameters, found)
            return {name: value for name, value in named.items() if value is not None}

        return Run(y.detach(), gradients)

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        return (named for part in self.parts for named in part.named_parameters())

    def sums(self, x: Tensor, dy: Tensor | None) -> Sums:
        """B is the reference layer on absolute values. On ones, and one image, it counts."""
        if self.reference is None or dy is None:
            return {}
        layer = by_matrix(deep_copy(self.reference))
        batched = x.dim() > 1 + _spatial_ndim(layer)
        images = x.shape[0] if batched else 1

        def quantities(numbers: Numbers, *tensors: Tensor) -> dict[str, Tensor]:
            cast(layer, numbers)
            x, dy = map(numbers, tensors)
            run = self._run(layer, x)
            return {"output": run.output, **(run.gradients(dy) if run.gradients else {})}

        first = slice(0, 1) if batched else slice(None)
        magnitudes = quantities(_absolute, x, dy)
        counts: dict[str, Tensor] = {}
        for dtype in (torch.float32, torch.float64):  # the first is faster, and counts so far only
            ones = partial(torch.ones_like, dtype=dtype)
            counts = quantities(ones, *(_absolute(t[first]) for t in (x, dy)))
            if all(not n.numel() or float(n.max()) < 2**20 for n in counts.values()):
                break
        found = {}
        for name, magnitude in magnitudes.items():
            terms = round(float(counts[name].max())) if counts[name].numel() else 0
            found[name] = magnitude, terms * (images if name in ("weight", "bias") else 1)
        return found

    def integers(self, longest: int, limit: float) -> Iterable[int]:
        room = limit / longest
        return [] if room < 1 else [min(2 ** int(math.log2(room) / 2), LARGEST)]

    def on_integers(self, numbers: Numbers, x: Tensor, limit: float) -> tuple[Side, Side]:
        return self.made(numbers)

    def matrices(self, y: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return matrices_of(next(filter(has_own_weights, self.parts), None), y)

    def _weights(self) -> Iterator[WeightComparison]:
        """Compare weight and bias bit by bit."""
        for name in ("weight", "bias"):
            ours, theirs = (_held(part, name) for part in self.parts)
            if describe(ours) != describe(theirs):
                self.errors.append(f"its {name}; expected {describe(ours)}, got {describe(theirs)}")
            elif ours is not None:
                result = compare(ours.detach(), theirs.detach(), None)
                del result["ratio"], result["bound"]
                yield WeightComparison(name, same_bits(ours, theirs), **result)

    def _wrong_entries(self) -> Iterator[str]:
        """Compare every entry of an unrolled layer's matrix with the weight of the other side."""
        for side, other in (self.parts, self.parts[::-1]):
            if not isinstance(side, UnrolledLayer):
                continue
            known = not isinstance(other, UnrolledLayer)
            weight, bias = (other.weight, other.bias) if known else (None, None)
            if weight is None or weight.shape == side.record.weight.shape:
                yield from side.wrong_entries(weight, bias)  # type: ignore[arg-type]


def _far_from_native(layer: nn.Module) -> int:
    """Return how many numbers stand for one of the CONV layer: order the two sides by it."""
    return 2 if isinstance(layer, UnrolledLayer) else int(isinstance(layer, PatchConv))


def _spatial_ndim(layer: nn.Module) -> int:
    """Return the number of spatial axes of a layer's input; 0 for rows."""
    while isinstance(layer, nn.Sequential):
        layer = layer[0]
    return max(layer.weight.dim() - 2, 0)  # type: ignore[operator]


def matrices_of(layer: nn.Module | None, y: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes (b, L, k) of M and (k, f) of K of a layer with this output."""
    if layer is None or not has_own_weights(layer) or not y.numel():
        return (), ()
    channels = y.dim() - 1 - _spatial_ndim(layer)
    # Of a widened layer, the output may be a part.
    filters: Any = getattr(layer, "out_channels", getattr(layer, "out_features", y.shape[channels]))
    taps = _held(layer, "weight").numel() // filters
    images, rows = math.prod(y.shape[:channels]), math.prod(y.shape[channels + 1 :])
    return (images, rows, taps), (taps, filters)


@torch.no_grad()
def _in_conv_layout(
    layer: nn.Module, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor | None]:
    """Return gradients of a layer's parameters as those of the CONV layer's weight and bias."""
    if isinstance(layer, UnrolledLayer):
        given: dict[int, Any] = dict(zip(map(id, parameters), gradients, strict=True))
        linear = layer.linear
        return layer.folded(given[id(linear.weight)], given.get(id(linear.bias)))
    own = [parameter.data for parameter in parameters]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.data = torch.zeros_like(parameter) if gradient is None else gradient
    weight, bias = (_held(layer, name) for name in ("weight", "bias"))
    found = weight.detach(), None if bias is None else bias.detach()
    for parameter, numbers in zip(parameters, own, strict=True):
        parameter.data = numbers
    return found


def _held(layer: nn.Module, name: str) -> Any:
    """Return a layer's weight or bias, plain: nothing here convolves with it."""
    value = getattr(layer, name)
    return as_plain(value) if isinstance(value, Shown) else value


def _absolute(t: Tensor) -> Tensor:
    absolute: Tensor = wide(t.detach()).abs()
    return absolute


def cast(layer: nn.Module, numbers: Numbers) -> nn.Module:
    """Change every parameter and buffer of numbers that are not integers, in place."""

    def change(t: Tensor) -> Tensor:
        return numbers(t) if t.is_floating_point() or t.is_complex() else t

    put = _change_unrolled(layer, numbers)
    layer._apply(change)
    put()
    return layer


def _change_unrolled(module: nn.Module, change: Numbers) -> Callable[[], None]:
    """Change the numbers of the unrolled layers in a module, through their filters.

    What is returned puts the changed matrices in place, when all other numbers have been changed.
    """
    made: dict[int, nn.Parameter] = {}
    places: list[tuple[Any, int]] = []
    for part in module.modules():
        layer = UnrolledLayer(part) if form_of(part) == "unrolled" else None
        if layer is None or not layer.is_plain():
            continue
        matrix = layer.linear.weight
        places.append((layer.linear, id(matrix)))
        if id(matrix) not in made:
            changed = _changed(matrix.detach(), layer.record, change)
            made[id(matrix)] = nn.Parameter(changed, matrix.requires_grad)
    for linear, _ in places:
        linear.weight = None  # nothing else is to change it meanwhile

    def put() -> None:
        for linear, key in places:
            linear.weight = made[key]

    return put


def _changed(matrix: Tensor, record: Unrolled, change: Numbers) -> Tensor:
    pattern = record.pattern
    held = held_by(matrix, pattern)
    filters = _filters(held, record)
    wrong = differing(held.values, matrix_values(filters, pattern))
    changed = change(filters)
    made = matrix_tensor(changed, pattern, "dense")
    if held.stray is None and not bool(wrong.any()):
        return made
    # What no convolution has stays as it is, changed number by number.
    whole = change(matrix)
    inside = matrix_tensor(torch.ones_like(changed), pattern, "dense") != 0
    right = matrix_values(filters, pattern).new_zeros(pattern.shape, dtype=torch.bool)
    right[inside] = ~wrong
    return torch.where(right, made, whole)


def _filters(held: Entries, record: Unrolled) -> Tensor:
    return likely_filters(held.values, record.pattern, record.filters_of(record.weight))
