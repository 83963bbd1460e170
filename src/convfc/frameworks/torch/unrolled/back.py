"""An unrolled layer as a CONV layer again, with the numbers that a tool has given it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from convfc.errors import NotAConvolution, Refusal
from convfc.frameworks.torch.forms.children import as_parameter, is_hooked, move_attributes
from convfc.frameworks.torch.forms.factors import Product, chain_of
from convfc.frameworks.torch.forms.form import ATTRIBUTE, Unrolled, linear_of, unrolled_of
from convfc.frameworks.torch.forms.formats import channels_last, in_format
from convfc.frameworks.torch.matrix import fold, matrix_values
from convfc.frameworks.torch.unrolled.entries import (
    first_wrong,
    held_by,
    likely_filters,
    numpy_has,
    values_in,
    with_unread,
)
from convfc.operators.nearest import differing_bias, nearest_conv
from convfc.places import Shared, place_in_words, warn

_REMEDY = (
    "to_conv(..., project=True) takes the closest convolution; what convfc.to_fc makes goes back "
    "with any numbers"
)


def product_of(layer: nn.Module) -> Product | Refusal:
    """Return the matrix and vector of an unrolled layer: factors multiplied, adapters merged."""
    record, linear = _record(layer), linear_of(layer)
    if linear is None:
        parts = ", ".join(type(part).__name__ for part in layer._modules.values())
        return Refusal(
            f"its parts are {parts or 'gone'}, not Flatten, an FC layer and Unflatten",
            "put the three back",
        )
    if any(is_hooked(part) for part in layer.children() if part is not linear):
        return Refusal("hooks stand on its Flatten or Unflatten", "remove the hooks")
    chain = chain_of(linear)
    if isinstance(chain, Refusal):
        return chain
    products = [step for step in chain if isinstance(step, Product)]
    if len(products) != len(chain) or not products:
        return Refusal(
            "its FC part is not a product of matrices",
            "take out what stands between the nn.Linear layers; a CONV layer has nothing there",
        )
    whole = products[0] if len(products) == 1 else _multiplied(products)
    shape = tuple(whole.weight.shape)
    if shape != record.pattern.shape:
        return Refusal(
            f"its FC part has the sizes {shape}, where {record.pattern.shape} is expected",
            "give it an FC layer of the size that it had",
        )
    return whole


def _multiplied(products: list[Product]) -> Product:
    """Return several products as one, which is trained if a factor was."""
    with torch.no_grad():
        weight, bias = products[0].weight, products[0].bias
        for step in products[1:]:
            earlier = None if bias is None else step.weight @ bias
            bias = step.bias if earlier is None else earlier
            if earlier is not None and step.bias is not None:
                bias = earlier + step.bias
            weight = step.weight @ weight
    trains = any(product.weight.requires_grad for product in products)
    return Product(
        nn.Parameter(weight.detach(), requires_grad=trains),
        None if bias is None else nn.Parameter(bias.detach(), requires_grad=trains),
    )


def bias_of(vector: Tensor, record: Unrolled) -> tuple[Tensor, tuple[int, int] | None]:
    """Return one bias per filter, and the first (filter, position) where the vector differs."""
    table = vector.detach().unflatten(0, (record.geometry.out_channels, record.positions))
    first = table[:, :1]
    wrong = (table != first) & ~(table.isnan() & first.isnan())
    if not bool(wrong.any()):
        return first[:, 0].clone(), None
    index = int(wrong.to(torch.uint8).argmax())
    return first[:, 0].clone(), divmod(index, record.positions)


def unrolled_obstacle(layer: nn.Module, *, project: bool = False) -> Refusal | None:
    """Return why an unrolled layer cannot become a CONV layer; None if it can."""
    product = product_of(layer)
    if isinstance(product, Refusal):
        return product
    if project:
        return None
    record = _record(layer)
    try:
        _filters(product.weight, record)
        if product.bias is not None:
            _check_bias(product.bias, record)
    except NotAConvolution as error:
        what = str(error).partition(". Remedy:")[0]
        return Refusal(f"its matrix is not a convolution's: {what}", _REMEDY, cause=error)
    return None


def _check_bias(vector: Tensor, record: Unrolled) -> None:
    bias, wrong = bias_of(vector, record)
    if wrong is not None:
        filter_, position = wrong
        index = filter_ * record.positions + position
        raise differing_bias(index, bias[filter_].item(), vector[index].item())


def _record(layer: nn.Module) -> Unrolled:
    record = unrolled_of(layer)
    assert record is not None, "asked of unrolled layers only"  # noqa: S101
    return record


def _filters(matrix: Tensor, record: Unrolled, *, project: bool = False) -> tuple[Tensor, float]:
    """Return a matrix's filters, or with ``project`` the closest, and how far away they are."""
    pattern, known = record.pattern, record.filters_of(record.weight)
    entries = held_by(matrix, pattern)
    likely = likely_filters(entries.values, pattern, known)
    if first_wrong(entries, matrix_values(likely, pattern), pattern)[0] is None:
        return likely, 0.0
    filters, distance = nearest_conv(
        numpy_has(matrix),
        record.geometry,
        record.input_size,
        order="channels_first",
        project=project,
    )
    return with_unread(torch.from_numpy(filters).to(likely), pattern, known), distance


class FromUnrolled:
    """Makes CONV layers of unrolled ones; what two of them share stays shared."""

    def __init__(self, *, project: bool = False) -> None:
        self.project = project
        self.shared = Shared()

    def __call__(self, layer: nn.Module, name: str = "") -> nn.Module:
        """Return the CONV layer of an unrolled one that `unrolled_obstacle` lets pass."""
        record, product = _record(layer), product_of(layer)
        assert isinstance(product, Product), product  # noqa: S101
        conv: Any = record.native.__new__(record.native)
        nn.Module.__init__(conv)
        matrix, vector = product.weight, product.bias
        key = "weight", record.geometry
        conv.weight = self.shared([matrix], key, lambda: self._weight(matrix, record, name))
        conv.register_parameter("bias", None)
        if vector is not None:
            conv.bias = self.shared([vector], "bias", lambda: self._bias(vector, record, name))
        parts, layer._modules = layer._modules, {}
        move_attributes(layer, conv)
        layer._modules = parts
        del vars(conv)[ATTRIBUTE]
        vars(conv).update(record.attributes)
        native: nn.Module = conv
        return native

    def _weight(self, matrix: Tensor, record: Unrolled, name: str) -> nn.Parameter:
        filters, distance = _filters(matrix, record, project=self.project)
        if distance and self.project:
            _warn(name, f"the closest convolution is {distance:.3g} away from its matrix")
        gradient = None
        if matrix.grad is not None:
            values = values_in(matrix.grad, record.pattern)
            gradient = record.weight_of(fold(values, record.pattern))
        weight = as_parameter(record.weight_of(filters), matrix, gradient)
        if record.weight_channels_last:
            weight.data = in_format(weight.data, channels_last(len(record.input_size)))
        return weight

    def _bias(self, vector: Tensor, record: Unrolled, name: str) -> nn.Parameter:
        bias, wrong = bias_of(vector, record)
        by_filter = (record.geometry.out_channels, record.positions)
        if wrong is not None:
            table = vector.detach().unflatten(0, by_filter)
            bias = table.mean(1)
            away = f"{float((table - bias[:, None]).abs().norm()):.3g} away"
            _warn(name, f"its bias is not a convolution's; the mean over positions is {away}")
        gradient = None if vector.grad is None else vector.grad.unflatten(0, by_filter).sum(1)
        return as_parameter(bias, vector, gradient)


def _warn(name: str, what: str) -> None:
    warn(f"{place_in_words(name)}: {what}")
