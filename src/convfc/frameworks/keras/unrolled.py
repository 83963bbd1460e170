"""A CONV layer as Flatten, Dense, Reshape: its whole matrix is the Dense's kernel; and back.

A separable layer has two, one for each of its convolutions: of their product nobody could say which
of the two kernels had changed, and it would be rounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from convfc.extras import needing

with needing():
    import keras

from convfc.errors import ConvfcError, NotAConvolution, Refusal
from convfc.frameworks.keras import forms, models
from convfc.frameworks.keras.copies import RECORDS, copied, unchanged
from convfc.frameworks.keras.read import SEPARABLE, numbers, read_in_turn, spatial_size
from convfc.geometry import ConvGeometry
from convfc.layer import ConvLayer, Order
from convfc.operators.estimate import SizedGeometry
from convfc.operators.matrix import conv_matrix, conv_offset
from convfc.operators.nearest import bias_in, filters_in, read_entries
from convfc.operators.pattern import MatrixPattern, matrix_pattern
from convfc.places import place_in_words, warn
from convfc.room import FCForm

Refusals = dict[str, Refusal]
ATTRIBUTE = RECORDS[0]

_REMEDY = (
    "to_conv(..., project=True) takes the closest convolution; what convfc.to_fc makes goes back "
    "with any numbers"
)


@dataclass(frozen=True, eq=False)
class Unrolled:
    """The CONV layer that an unrolled layer was, untouched, and the one size that it is for."""

    layer: Any
    steps: tuple[SizedGeometry, ...]

    @property
    def order(self) -> Order:
        """How it lays out inputs and outputs."""
        order: Order = self.layer.data_format
        return order

    @property
    def output_size(self) -> tuple[int, ...]:
        """Of its outputs, the spatial part."""
        last, size = self.steps[-1]
        return last.output_size(size)

    @property
    def patterns(self) -> list[MatrixPattern]:
        """The places of its matrices' entries, one after the other."""
        return [matrix_pattern(*step, self.order) for step in self.steps]


def unrolled_of(layer: Any) -> Unrolled | None:
    """Return the record of an unrolled layer; None of anything else."""
    record = vars(layer).get(ATTRIBUTE)
    known = type(layer) is keras.Sequential and isinstance(record, Unrolled)
    return record if known else None


def form_of(layer: Any) -> Literal["native"] | FCForm | None:
    """Return the form in which a layer is a CONV layer, the unrolled one among them."""
    return forms.form_of(layer) or ("unrolled" if unrolled_of(layer) else None)


# To the unrolled form -----------------------------------------------------------------------------


def sizes(
    model: Any, layers: Mapping[str, Any], example: Any
) -> tuple[dict[int, tuple[SizedGeometry, ...]], Refusals, Refusals]:
    """Return what each layer is called on, by ``id``, and why others are refused, or idle."""
    found: dict[int, dict[tuple[int, ...], None]] = {}

    with unchanged(model):
        _, calls = models.run_watched(model, layers.values(), example, "example")
    for layer, x in calls:
        size = spatial_size(layer, tuple(map(int, x.shape)))
        found.setdefault(id(layer), {})[size] = None
    sized: dict[int, tuple[SizedGeometry, ...]] = {}
    refused: Refusals = {}
    idle: Refusals = {}
    for name, layer in layers.items():
        seen = list(found.get(id(layer), ()))
        if not seen:
            reason = "the model does not call it on the example"
            remedy = "give an example on which the model does, or use convfc.to_fc"
            idle[name] = Refusal(reason, remedy)
        elif len(seen) > 1:
            reason = f"it is called on inputs of the sizes {seen[0]} and {seen[1]}, and one "
            remedy = "use convfc.to_fc, whose layers take every size"
            refused[name] = Refusal(f"{reason}matrix is for one size", remedy)
        else:
            try:
                read = read_in_turn(layer, seen[0])
            except ConvfcError as error:
                what, _, remedy = str(error).partition(". Remedy: ")
                refused[name] = Refusal(what, remedy, cause=error)
                continue
            sized[id(layer)] = tuple(SizedGeometry(conv.geometry, size) for conv, size in read)
    return sized, refused, idle


def make_unrolled(layer: Any, steps: tuple[SizedGeometry, ...]) -> Any:
    """Return the unrolled layer: Flatten, Dense, Reshape, and the activation if there is one."""
    record = Unrolled(copied(layer), steps)
    order, policy = record.order, {"dtype": layer.dtype_policy}
    (first, size), (last, _), out = steps[0], steps[-1], record.output_size
    shape, out = (
        (channels, *each) if order == "channels_first" else (*each, channels)
        for channels, each in ((first.in_channels, size), (last.out_channels, out))
    )
    readings = read_in_turn(layer, size)
    dense = [
        keras.layers.Dense(pattern.shape[0], use_bias=conv.bias is not None, name=name, **policy)
        for pattern, (conv, _), name in zip(record.patterns, readings, _names(steps), strict=True)
    ]
    parts = [flat(**policy), *dense, keras.layers.Reshape(out, name="reshape", **policy)]
    if not _is_linear(layer.activation):
        parts.append(keras.layers.Activation(layer.activation, name="activation", **policy))
    parts[-1].activity_regularizer = layer.activity_regularizer
    whole = keras.Sequential(
        [keras.Input(shape, dtype=layer.compute_dtype), *parts], name=layer.name
    )
    whole.dtype_policy = layer.dtype_policy  # or it would cast its input to Keras's default
    whole.trainable = layer.trainable
    for made, (conv, size), kernel in zip(dense, readings, kernels_of(layer), strict=True):
        made.kernel.assign(conv_matrix(conv, size, layout="dense", order=order).T)
        made.kernel.trainable = kernel.trainable
    if layer.bias is not None:
        dense[-1].bias.assign(conv_offset(*readings[-1], order=order))
        dense[-1].bias.trainable = layer.bias.trainable
    vars(whole)[ATTRIBUTE] = record
    return whole


def _names(steps: Sequence[Any]) -> tuple[str, ...]:
    return ("depthwise", "dense")[-len(steps) :]


def dense_of(layer: Any) -> list[Any]:
    """Return the Dense layers of an unrolled layer."""
    found: list[Any] = layer.layers[1 : 1 + len(_record(layer).steps)]
    return found


def flat(**options: Any) -> Any:
    """Return a Flatten that keeps the order of the elements, whatever Keras's own setting is."""
    return keras.layers.Flatten(data_format="channels_last", name="flatten", **options)


def kernels_of(layer: Any) -> list[Any]:
    """Return the variables that hold a CONV layer's kernels, without what LoRA adds to them."""
    if isinstance(layer, SEPARABLE):
        return [layer.depthwise_kernel, layer.pointwise_kernel]
    kernel = getattr(layer, "_kernel", None)
    return [layer.kernel if kernel is None else kernel]


def _is_linear(activation: Any) -> bool:
    return activation is None or activation is keras.activations.linear


# And back -----------------------------------------------------------------------------------------


def back_obstacle(layer: Any, *, inplace: bool = False, project: bool = False) -> Refusal | None:
    """Return why an unrolled layer cannot become a CONV layer; None if it can."""
    if inplace:
        return Refusal(
            "a graph of Keras cannot be given another layer",
            "leave out inplace=True, and use the model that is returned",
        )
    record = _record(layer)
    other = _other_parts(layer, record)
    if other is not None or project:
        return other
    try:
        for n, dense in enumerate(dense_of(layer)):
            _filters(dense, record, n)
        _bias(dense, record)
    except NotAConvolution as error:
        what = str(error).partition(". Remedy:")[0]
        return Refusal(f"its matrix is not a convolution's: {what}", _REMEDY, cause=error)
    return None


def _record(layer: Any) -> Unrolled:
    record = unrolled_of(layer)
    assert record is not None, "asked of unrolled layers only"  # noqa: S101
    return record


def _other_parts(layer: Any, record: Unrolled) -> Refusal | None:
    """Return what an unrolled layer is made of if it is not what it was made of."""
    parts, count = layer.layers, len(record.steps)
    kinds = [keras.layers.Flatten, *[keras.layers.Dense] * count, keras.layers.Reshape]
    kinds += [keras.layers.Activation] * (len(parts) == len(kinds) + 1)
    if [type(part) for part in parts] != kinds:
        found = ", ".join(type(part).__name__ for part in parts)
        return Refusal(
            f"its parts are {found or 'gone'}, not Flatten, {'Dense, ' * count}Reshape and an "
            "activation",
            "put them back",
        )
    for dense, pattern in zip(dense_of(layer), record.patterns, strict=True):
        if dense.quantization_mode is not None or not _is_linear(dense.activation):
            what = "quantised" if dense.quantization_mode is not None else "given an activation"
            return Refusal(f"its Dense layer was {what}", "take that out first")
        shape = tuple(dense.kernel.shape)[::-1]
        if shape != pattern.shape:
            return Refusal(
                f"its FC part has the sizes {shape}, where {pattern.shape} is expected",
                "give it an FC layer of the size that it had",
            )
        had = record.layer.bias is not None and dense is dense_of(layer)[-1]
        if (dense.bias is not None) != had:
            have = "no bias, and the layer had one" if had else "a bias that it had not"
            return Refusal(f"its Dense layer has {have}", "give it a Dense layer as it was")
    return None


def make_conv(layer: Any, name: str = "", *, project: bool = False) -> Any:
    """Return the CONV layer of an unrolled one that `back_obstacle` lets pass."""
    record = _record(layer)
    conv = copied(record.layer)
    conv.trainable = layer.trainable
    for n, (dense, kernel) in enumerate(zip(dense_of(layer), kernels_of(conv), strict=True)):
        kernel.trainable = dense.kernel.trainable
        filters, away = _filters(dense, record, n, project=project)
        if away:
            _warn(name, f"the closest convolution is {away:.3g} away from its matrix")
        if np.array_equal(filters, _known(record, n).filters, equal_nan=True):
            continue
        kernel.assign(_kernel_of(filters, record.steps[n].geometry, kernel.shape))
        if getattr(conv, "lora_enabled", False):  # the matrix has it in it
            conv.lora_kernel_b.assign(np.zeros(conv.lora_kernel_b.shape))
    bias, away = _bias(dense, record, project=project)
    if bias is not None:
        if away:
            what = f"its bias is not a convolution's; the mean over positions is {away:.3g} away"
            _warn(name, what)
        conv.bias.assign(bias)
        conv.bias.trainable = dense.bias.trainable
    conv.activation = getattr(layer.layers[-1], "activation", keras.activations.linear)
    return conv


def _known(record: Unrolled, n: int) -> ConvLayer:
    return read_in_turn(record.layer, record.steps[0].input_size)[n][0]


def _filters(
    dense: Any, record: Unrolled, n: int, *, project: bool = False
) -> tuple[npt.NDArray[Any], float]:
    """Return the filters of a kernel, the n-th, or the closest, and how far away they are."""
    known = _known(record, n).filters
    return filters_in(numbers(dense.kernel).T, record.patterns[n], known, project=project)


def _bias(
    dense: Any, record: Unrolled, *, project: bool = False
) -> tuple[npt.NDArray[Any] | None, float]:
    if dense.bias is None:
        return None, 0.0
    return bias_in(numbers(dense.bias), record.patterns[-1], project=project)


def _kernel_of(
    filters: npt.NDArray[Any], geometry: ConvGeometry, shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    """Return filters ``(f, *kernel, c / groups)`` as Keras lays them out: `_as_read` reversed."""
    kernel = np.moveaxis(filters, 0, -2 if geometry.transposed else -1)
    return kernel.reshape(shape)  # of a depthwise layer (*kernel, c, filters of a channel)


def folded(record: Unrolled, entries: list[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    """Return gradients of the Dense layers' kernels, and of a bias, as those of the CONV layer."""
    *_, last = patterns = record.patterns
    kernels = [
        _kernel_of(pattern.fold(read_entries(entry.T, pattern).values), pattern.geometry, own.shape)
        for entry, pattern, own in zip(entries, patterns, kernels_of(record.layer), strict=False)
    ]
    count = last.geometry.out_channels
    first = record.order == "channels_first"
    biases = (
        bias.reshape(count, -1).sum(1) if first else bias.reshape(-1, count).sum(0)
        for bias in entries[len(kernels) :]
    )
    return [*kernels, *biases]


def _warn(name: str, what: str) -> None:
    warn(f"{place_in_words(name)}: {what}")
