"""A CONV layer as Flatten, Dense, Reshape: its whole matrix is the Dense's kernel; and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from convfc.extras import needing

with needing():
    import keras

from convfc.errors import ConvfcError, NotAConvolution, Refusal
from convfc.frameworks.keras import forms, models
from convfc.frameworks.keras.copies import RECORDS, copied, unchanged
from convfc.frameworks.keras.read import numbers, read_layer, spatial_size
from convfc.geometry import ConvGeometry
from convfc.layer import ConvLayer, Order
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


class SizedGeometry(NamedTuple):
    """What a layer computes, and the one spatial size that its matrix is for."""

    geometry: ConvGeometry
    input_size: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Unrolled:
    """The CONV layer that an unrolled layer was, untouched, and the one size that it is for."""

    layer: Any
    geometry: ConvGeometry
    input_size: tuple[int, ...]

    @property
    def order(self) -> Order:
        """How it lays out inputs and outputs."""
        order: Order = self.layer.data_format
        return order


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
) -> tuple[dict[int, SizedGeometry], Refusals, Refusals]:
    """Return what each layer is called on, by ``id``, and why others are refused, or idle."""
    found: dict[int, dict[tuple[int, ...], None]] = {}

    with unchanged(model):
        _, calls = models.run_watched(model, layers.values(), example, "example")
    for layer, x in calls:
        size = spatial_size(layer, tuple(map(int, x.shape)))
        found.setdefault(id(layer), {})[size] = None
    sized: dict[int, SizedGeometry] = {}
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
                geometry = read_layer(layer, seen[0]).geometry
            except ConvfcError as error:
                what, _, remedy = str(error).partition(". Remedy: ")
                refused[name] = Refusal(what, remedy, cause=error)
                continue
            sized[id(layer)] = SizedGeometry(geometry, seen[0])
    return sized, refused, idle


def make_unrolled(layer: Any, sized: SizedGeometry) -> Any:
    """Return the unrolled layer: Flatten, Dense, Reshape, and the activation if there is one."""
    geometry, size = sized
    record = Unrolled(copied(layer), geometry, size)
    reading = read_layer(layer, size)
    order: Order = layer.data_format
    policy = {"dtype": layer.dtype_policy}
    shape, out = (
        (channels, *each) if order == "channels_first" else (*each, channels)
        for channels, each in (
            (geometry.in_channels, size),
            (geometry.out_channels, geometry.output_size(size)),
        )
    )
    dense = keras.layers.Dense(
        int(np.prod(out)), use_bias=layer.bias is not None, name="dense", **policy
    )
    parts = [flat(**policy), dense, keras.layers.Reshape(out, name="reshape", **policy)]
    if not _is_linear(layer.activation):
        parts.append(keras.layers.Activation(layer.activation, name="activation", **policy))
    parts[-1].activity_regularizer = layer.activity_regularizer
    whole = keras.Sequential(
        [keras.Input(shape, dtype=layer.compute_dtype), *parts], name=layer.name
    )
    whole.dtype_policy = layer.dtype_policy  # or it would cast its input to Keras's default
    whole.trainable = layer.trainable
    dense.kernel.assign(conv_matrix(reading, size, layout="dense", order=order).T)
    dense.kernel.trainable = kernel_of(layer).trainable
    if layer.bias is not None:
        dense.bias.assign(conv_offset(reading, size, order=order))
        dense.bias.trainable = layer.bias.trainable
    vars(whole)[ATTRIBUTE] = record
    return whole


def flat(**options: Any) -> Any:
    """Return a Flatten that keeps the order of the elements, whatever Keras's own setting is."""
    return keras.layers.Flatten(data_format="channels_last", name="flatten", **options)


def kernel_of(layer: Any) -> Any:
    """Return the variable that holds a CONV layer's kernel, without what LoRA adds to it."""
    kernel = getattr(layer, "_kernel", None)
    return layer.kernel if kernel is None else kernel


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
        _filters(layer.layers[1], record)
        _bias(layer.layers[1], record)
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
    parts = layer.layers
    kinds = [keras.layers.Flatten, keras.layers.Dense, keras.layers.Reshape]
    kinds += [keras.layers.Activation] * (len(parts) == len(kinds) + 1)
    if [type(part) for part in parts] != kinds:
        found = ", ".join(type(part).__name__ for part in parts)
        return Refusal(
            f"its parts are {found or 'gone'}, not Flatten, Dense, Reshape and an activation",
            "put the three back",
        )
    dense = parts[1]
    if dense.quantization_mode is not None or not _is_linear(dense.activation):
        what = "quantised" if dense.quantization_mode is not None else "given an activation"
        return Refusal(f"its Dense layer was {what}", "take that out first")
    shape = tuple(dense.kernel.shape)[::-1]
    wanted = _pattern(record).shape
    if shape != wanted:
        return Refusal(
            f"its FC part has the sizes {shape}, where {wanted} is expected",
            "give it an FC layer of the size that it had",
        )
    if (dense.bias is None) != (record.layer.bias is None):
        have = "no bias, and the layer had one" if dense.bias is None else "a bias that it had not"
        return Refusal(f"its Dense layer has {have}", "give it a Dense layer as it was")
    return None


def make_conv(layer: Any, name: str = "", *, project: bool = False) -> Any:
    """Return the CONV layer of an unrolled one that `back_obstacle` lets pass."""
    record = _record(layer)
    dense, conv = layer.layers[1], copied(record.layer)
    conv.trainable = layer.trainable
    kernel = kernel_of(conv)
    kernel.trainable = dense.kernel.trainable
    filters, away = _filters(dense, record, project=project)
    if away:
        _warn(name, f"the closest convolution is {away:.3g} away from its matrix")
    if not np.array_equal(filters, _known(record).filters, equal_nan=True):
        kernel.assign(_kernel_of(filters, record.geometry, kernel.shape))
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


def _known(record: Unrolled) -> ConvLayer:
    return read_layer(record.layer, record.input_size)


def _filters(
    dense: Any, record: Unrolled, *, project: bool = False
) -> tuple[npt.NDArray[Any], float]:
    """Return a kernel's filters, or with ``project`` the closest, and how far away they are."""
    return filters_in(
        numbers(dense.kernel).T,
        _pattern(record),
        _known(record).filters,
        project=project,
    )


def _bias(
    dense: Any, record: Unrolled, *, project: bool = False
) -> tuple[npt.NDArray[Any] | None, float]:
    if dense.bias is None:
        return None, 0.0
    return bias_in(numbers(dense.bias), _pattern(record), project=project)


def _pattern(record: Unrolled) -> MatrixPattern:
    return matrix_pattern(record.geometry, record.input_size, record.order)


def _kernel_of(
    filters: npt.NDArray[Any], geometry: ConvGeometry, shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    """Return filters ``(f, *kernel, c / groups)`` as Keras lays them out: `read_layer` reversed."""
    kernel = np.moveaxis(filters, 0, -2 if geometry.transposed else -1)
    return kernel.reshape(shape)  # of a depthwise layer (*kernel, c, filters of a channel)


def folded(record: Unrolled, entries: list[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    """Return a gradient of a Dense's kernel, and of its bias, as that of the CONV layer's."""
    pattern, geometry = _pattern(record), record.geometry
    values = read_entries(entries[0].T, pattern).values
    filters = pattern.fold(values)
    kernel = _kernel_of(filters, geometry, kernel_of(record.layer).shape)
    count = geometry.out_channels
    first = record.order == "channels_first"
    biases = (
        bias.reshape(count, -1).sum(1) if first else bias.reshape(-1, count).sum(0)
        for bias in entries[1:]
    )
    return [kernel, *biases]


def _warn(name: str, what: str) -> None:
    warn(f"{place_in_words(name)}: {what}")
