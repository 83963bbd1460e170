"""simplify for Keras: a network as Dense and ReLU, to the bit on integers, or refused by name."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops
from keras_fixtures import FORMATS, integers, numpy

import convfc
from convfc.errors import (
    ArgumentError,
    MemoryBudgetError,
    NothingToConvert,
    ShapeError,
    UnsupportedLayer,
    UnsupportedModel,
)
from convfc.rounding import rounding_bound

if TYPE_CHECKING:
    from collections.abc import Callable

PLAIN = {"InputLayer", "Flatten", "Dense", "ReLU", "Add", "Reshape"}


def with_integers(model: Any) -> Any:
    """The model with small whole weights, and variances whose roots are powers of two."""
    rng = np.random.default_rng(1)
    for weight in model.weights:
        numbers = rng.integers(-2, 3, weight.shape)
        if "variance" in weight.name:
            numbers = 4.0 ** rng.integers(-1, 2, weight.shape)
        if weight.dtype != "uint32":  # the state of random numbers
            weight.assign(numbers)
    return model


def with_real_numbers(model: Any) -> Any:
    """The model with normally distributed weights."""
    rng = np.random.default_rng(1)
    for weight in model.weights:
        numbers = rng.standard_normal(weight.shape)
        if weight.dtype != "uint32":
            weight.assign(np.abs(numbers) + 0.1 if "variance" in weight.name else numbers)
    return model


def kinds(model: Any) -> list[str]:
    return [type(layer).__name__ for layer in model.layers]


def check(model: Any, x: np.ndarray[Any, Any], **options: Any) -> Any:
    """Simplify a model; on integers, not a bit differs. Return what is made."""
    made = convfc.simplify(model, x[:1], **options)
    ours, theirs = numpy(model(x)), numpy(made(x))
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    assert (ours == theirs).all()
    assert ours.any(), "a comparison of zeros"
    return made


def network(data_format: str) -> tuple[Any, np.ndarray[Any, Any]]:
    """A bit of everything, with a branch."""
    first = data_format == "channels_first"
    form: dict[str, Any] = {"data_format": data_format}
    x = keras.Input((2, 8, 8) if first else (8, 8, 2))
    y = L.Conv2D(4, 3, padding="same", **form)(x)
    y = L.BatchNormalization(epsilon=0, axis=1 if first else -1)(y)
    r = L.ReLU()(y)
    z = L.DepthwiseConv2D(3, padding="same", activation="relu6", **form)(r)
    y = L.Add()([r, z])
    y = L.MaxPooling2D(2, padding="same", **form)(y)
    y = L.SeparableConv2D(4, 3, **form)(L.ZeroPadding2D(1, **form)(y))
    y = L.AveragePooling2D(2, **form)(L.LeakyReLU(0.5)(y))
    y = L.Concatenate(axis=1 if first else -1)([y, y * 2.0 + 1.0])
    y = L.Dense(5)(L.Dropout(0.5)(L.GlobalAveragePooling2D(**form)(y)))
    shape = (3, 2, 8, 8) if first else (3, 8, 8, 2)
    return with_integers(keras.Model(x, y)), integers(*shape)


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("ways", [{}, {"max_pool": "relu"}, {"sequential": True}], ids=str)
def test_on_integers_not_a_bit_differs(data_format: str, ways: dict[str, Any]) -> None:
    if ways.get("sequential"):
        ways = {**ways, "max_pool": "relu"}
    model, x = network(data_format)
    made = check(model, x, **ways)
    pooled = {"MaxPooling2D"} if "max_pool" not in ways else set()
    assert set(kinds(made)) <= PLAIN | pooled
    assert pooled <= set(kinds(made))
    chain = ways.get("sequential", False)
    assert (type(made) is keras.Sequential) is chain
    assert ("Add" in kinds(made)) is not chain


def test_neighbours_become_one_dense_layer() -> None:
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), L.Conv2D(4, 3), L.ReLU(), L.AveragePooling2D(2), L.Flatten()]
    )
    model.add(L.Dense(10))
    made = check(with_integers(model), integers(2, 8, 8, 1))
    assert kinds(made) == ["Flatten", "Dense", "ReLU", "Dense"]
    assert [tuple(w.shape) for w in made.weights] == [(64, 144), (144,), (144, 10), (10,)]


def one(*parts: Any) -> Any:
    return lambda: keras.Sequential([keras.Input((4, 6, 3)), *(part() for part in parts)])


def graph(function: Callable[[Any], Any]) -> Any:
    def make() -> Any:
        x = keras.Input((4, 6, 3))
        return keras.Model(x, function(L.Conv2D(3, 3, padding="same")(x)))

    return make


def adapted(invert: bool) -> Any:
    return lambda: L.Normalization(mean=[1.0, 2.0, 3.0], variance=[4.0, 16.0, 1.0], invert=invert)


CASES: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "transposed": (one(lambda: L.Conv2DTranspose(2, 3, strides=2)), ["Dense"]),
    "dense on the last axis": (one(lambda: L.Dense(4, activation="relu")), ["Dense", "ReLU"]),
    "cropping": (one(lambda: L.Cropping2D(1)), ["Dense"]),
    "up": (one(lambda: L.UpSampling2D(2)), ["Dense"]),
    "bilinear": (one(lambda: L.UpSampling2D(2, interpolation="bilinear")), ["Dense"]),
    "permute": (one(lambda: L.Permute((3, 1, 2)), lambda: L.Reshape((9, 8))), ["Dense"]),
    "average padded": (one(lambda: L.AveragePooling2D(2, 2, padding="same")), ["Dense"]),
    "rescaling": (one(lambda: L.Rescaling([2.0, 4.0, 0.5], [1.0, 0.0, 2.0])), ["Dense"]),
    "normalization": (one(adapted(invert=False)), ["Dense"]),
    "normalization back": (one(adapted(invert=True)), ["Dense"]),
    "relu6": (one(lambda: L.ReLU(6.0)), ["Dense", "ReLU", "Dense"]),
    "leaky and capped": (one(lambda: L.ReLU(3.0, negative_slope=0.25)), ["Dense", "ReLU"] * 2),
    "prelu": (one(lambda: L.PReLU(shared_axes=[1, 2])), ["Dense", "ReLU", "Dense"]),
    "hard tanh": (one(lambda: L.Activation("hard_tanh")), ["Dense", "ReLU", "Dense"]),
    "leaky": (one(lambda: L.Activation("relu")), ["ReLU"]),
    "average": (graph(lambda x: L.Average()([x, L.ReLU()(x)])), ["Dense", "ReLU", "Dense", "Add"]),
    "subtract": (graph(lambda x: L.Subtract()([L.ReLU()(x), x])), ["Dense", "ReLU"]),
    "maximum": (graph(lambda x: L.Maximum()([x, ops.flip(x, axis=1)])), ["Dense", "ReLU", "Add"]),
    "minimum": (graph(lambda x: L.Minimum()([x, 2 - x])), ["Dense", "ReLU"]),
    "mean": (graph(lambda x: ops.sum(ops.relu(x), axis=(1, 2))), ["Dense", "ReLU", "Dense"]),
    "slice": (graph(lambda x: ops.transpose(x[:, 1:, ::2], (0, 2, 1, 3)) / 4), ["Dense"]),
    "split": (graph(lambda x: ops.split(x, 3, axis=-1)[1] - 1), ["Dense"]),
    "constants": (graph(lambda x: 3 - x * np.ones((4, 6, 1), "float32") * 2), ["Dense"]),
}


@pytest.mark.parametrize("name", CASES)
def test_each_layer_to_the_bit(name: str) -> None:
    make, expected = CASES[name]
    made = check(with_integers(make()), integers(2, 4, 6, 3))
    assert set(kinds(made)) <= PLAIN
    found = [kind for kind in kinds(made) if kind in ("Dense", "ReLU", "Add")]
    assert [kind for kind in expected if kind not in found] == []


@pytest.mark.parametrize("pool", ["MaxPooling2D", "GlobalMaxPooling2D"])
@pytest.mark.parametrize("data_format", FORMATS)
def test_max_pooling_as_it_is_and_as_relu(pool: str, data_format: str) -> None:
    first = data_format == "channels_first"
    options = {"pool_size": 3, "strides": 2, "padding": "same"} if "G" not in pool else {}
    parts = [keras.Input((3, 5, 4) if first else (5, 4, 3))]
    parts += [L.Conv2D(2, 1, data_format=data_format)]
    parts += [getattr(L, pool)(data_format=data_format, **options)]
    model = with_integers(keras.Sequential(parts))
    x = integers(2, 3, 5, 4) if first else integers(2, 5, 4, 3)
    kept = kinds(check(model, x))
    assert kept[:4] == ["Flatten", "Dense", "Reshape", pool]
    assert set(kinds(check(model, x, max_pool="relu"))) <= PLAIN


def test_other_activations_stay_as_they_are() -> None:
    parts = [keras.Input((4, 4, 1)), L.Conv2D(2, 3, activation="tanh"), L.Flatten()]
    parts += [L.Dense(3, activation="softmax"), L.ELU(0.5)]
    model = keras.Sequential(parts)
    x = integers(2, 4, 4, 1)
    made = convfc.simplify(model, x)
    found = ["Flatten", "Dense", "Activation", "Dense", "Activation", "ELU"]
    assert kinds(made) == found
    assert [made.layers[n].activation.__name__ for n in (2, 4)] == ["tanh", "softmax"]
    assert made.layers[5].alpha == 0.5
    np.testing.assert_allclose(numpy(made(x)), numpy(model(x)), rtol=1e-5, atol=1e-6)


def test_nested_models_and_one_layer() -> None:
    parts = [keras.Input((6, 6, 2)), L.Conv2D(2, 3, padding="same", activation="relu")]
    inner = keras.Sequential(parts)
    x = keras.Input((6, 6, 2))
    y = inner(inner(x))
    outer = with_integers(keras.Model(x, L.Flatten()(y), name="outer"))
    made = check(keras.Sequential([keras.Input((6, 6, 2)), outer]), integers(2, 6, 6, 2))
    assert kinds(made) == ["Flatten", "Dense", "ReLU", "Dense", "ReLU"]
    layer = L.Conv2D(2, 3)
    layer.build((None, 4, 4, 1))
    assert kinds(check(with_integers(layer), integers(2, 4, 4, 1))) == [
        "Flatten",
        "Dense",
        "Reshape",
    ]


def test_what_convfc_has_made_is_simplified_too() -> None:
    model = with_integers(
        keras.Sequential(
            [keras.Input((6, 6, 2)), L.Conv2D(2, 3, activation="relu"), L.Conv2D(2, 2)]
        )
    )
    x = integers(2, 6, 6, 2)
    expected = check(model, x)
    for made in (convfc.to_fc(model), convfc.unroll(model, x), convfc.to_fc(model, form="weight")):
        again = check(made, x)
        for ours, theirs in zip(expected.get_weights(), again.get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_real_numbers_are_within_the_rounding_of_both_networks() -> None:
    """On absolute values a ReLU network adds up all that its roundings are relative to."""
    x = keras.Input((4, 4, 6))
    y = L.Conv2D(12, 1, use_bias=False)(x)
    y = L.ReLU()(L.BatchNormalization()(y))
    y = L.ReLU()(L.BatchNormalization()(L.DepthwiseConv2D(3, padding="same")(y)))
    model = keras.Model(x, L.Add()([x, L.BatchNormalization()(L.Conv2D(6, 1)(y))]))
    absolute, rng = keras.models.clone_model(model), np.random.default_rng(0)
    for weight, other in zip(model.weights, absolute.weights, strict=True):
        numbers = rng.standard_normal(weight.shape).astype("float32")
        numbers = np.abs(numbers) + 0.1 if "variance" in weight.name else numbers
        weight.assign(numbers)
        other.assign(-np.abs(numbers) if "mean" in weight.name else np.abs(numbers))
    x = rng.standard_normal((2, 4, 4, 6)).astype("float32")
    made = convfc.simplify(model, x)
    B = numpy(absolute(np.abs(x))).astype(float)
    steps = 10  # of a BatchNormalization, and a bias
    terms = [6 + 9 + 12 + 3 * steps, sum(w.shape[0] + 3 for w in made.weights if w.ndim == 2)]
    first, second = (rounding_bound(B, n, "float32") for n in terms)
    assert first is not None
    assert second is not None
    away = np.abs(numpy(model(x)) - numpy(made(x)).astype(float))
    assert (away <= first + second).all()
    assert away.any(), "nothing was rounded"


# Back ---------------------------------------------------------------------------------------------


def test_an_unchanged_network_goes_back_and_a_changed_one_does_not() -> None:
    model, x = network("channels_last")
    made = convfc.simplify(model, x)
    back = convfc.to_conv(made)
    assert kinds(back) == kinds(model)
    for ours, theirs in zip(model.get_weights(), back.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(NothingToConvert, match="not simplified already"):
        convfc.simplify(made, x)
    with pytest.raises(ArgumentError, match="where: a simplified network goes back as a whole"):
        convfc.to_conv(made, where="dense_1")
    bias = made.get_layer("dense_2").bias
    bias.assign(np.nextafter(numpy(bias), np.float32(9)))
    with pytest.raises(UnsupportedLayer, match=r"dense_2: this is not as convfc.simplify made it"):
        convfc.to_conv(made)


# Certificates -------------------------------------------------------------------------------------

STAGES = ["batch_normalization", "add", "average_pooling2d", "dense"]
PROVEN: dict[str, tuple[dict[str, Any], list[str]]] = {
    "graph": ({}, STAGES),
    "relu": ({"max_pool": "relu"}, [STAGES[0], "max_pooling2d", *STAGES[2:]]),
    "sequence": ({"max_pool": "relu", "sequential": True}, [STAGES[0], STAGES[3]]),
}


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("way", PROVEN)
def test_it_is_proven_stage_by_stage(way: str, data_format: str) -> None:
    options, names = PROVEN[way]
    model, x = network(data_format)
    with_real_numbers(model)
    after = convfc.simplify(model, x[:1], **options)
    before = [numpy(weight) for weight in (*model.weights, *after.weights)]
    there, backwards = convfc.verify(model, after, x), convfc.verify(after, model, x)
    for certificate in (there, backwards, convfc.verify(convfc.to_fc(model), after, x)):
        assert certificate.holds, str(certificate)
        assert [layer.name.rstrip("_0123456789") for layer in certificate.layers] == names
        for layer in certificate.layers:
            assert layer.forms[0] == "stage"
            assert layer.forms[1].startswith("Dense dense_")
            assert 0 <= layer.own["output"].ratio <= 1  # type: ignore[operator]
            assert 0 <= layer.float64["output"].ratio <= 1  # type: ignore[operator]
            assert layer.float64["output"].dtype == "float64"
        assert any(layer.own["output"].difference for layer in certificate.layers)
        assert "products of layers" in str(certificate.notes)
    (output,) = there.network.outputs
    assert output.float64 is not None
    assert "compared in the other direction" in backwards.notes
    json.dumps(there.to_dict(), allow_nan=False)
    for ours, weight in zip(before, (*model.weights, *after.weights), strict=True):
        np.testing.assert_array_equal(ours, numpy(weight))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_every_dtype_is_proven(dtype: str) -> None:
    wide = dtype == "float64"
    if wide and keras.config.backend() == "jax":
        pytest.skip("JAX has no float64 unless it is switched on")
    former = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        model = with_real_numbers(small())
        x = np.random.default_rng(0).standard_normal((3, 6, 6, 2)).astype("float32")
        after = convfc.simplify(model, x)
        certificate = convfc.verify(model, after, x)
    finally:
        keras.config.set_dtype_policy(former)
    assert certificate.holds, str(certificate)
    assert {layer.dtype for layer in certificate.layers} == {dtype}
    assert {layer.float64["output"].dtype for layer in certificate.layers} == {"float64"}


def small() -> Any:
    parts = [keras.Input((6, 6, 2)), L.Conv2D(3, 3, activation="relu", name="conv")]
    parts += [L.AveragePooling2D(3, strides=1), L.Flatten()]
    return keras.Sequential([*parts, L.Dense(4, name="head")])


def away(weight: Any, by: float) -> None:
    numbers = numpy(weight)
    numbers[np.unravel_index(0, numbers.shape)] += by
    weight.assign(numbers)


def with_parts(after: Any, *parts: Any) -> Any:
    """Another network that passes for one that was simplified."""
    made = keras.Sequential([keras.Input(after.input_shape[1:], name=after.inputs[0].name), *parts])
    vars(made).update({name: vars(after)[name] for name in vars(after) if "convfc" in name})
    return made


def dense_2(**options: Any) -> Any:
    return L.Dense(options.pop("units", 4), name="dense_2", **options)


CHANGED: dict[str, tuple[Callable[[Any], Any], str, set[str]]] = {
    "a weight": (
        lambda m: away(m.get_layer("dense_2").kernel, 0.5),
        "dense_2; expected the numbers of kernel that it had",
        {"head"},
    ),
    "a bit": (
        lambda m: away(m.get_layer("dense_2").bias, 2.0**-20),
        "dense_2; expected the numbers of bias that it had",
        set(),
    ),
    "an activation": (
        lambda m: with_parts(m, *m.layers[:2], L.ELU(name="relu_1"), m.layers[3]),
        "relu_1; expected ReLU, got ELU",
        set(),  # its input is the first network's own
    ),
    "a part": (
        lambda m: with_parts(m, *m.layers, L.ReLU(name="relu_2")),
        "relu_2; expected none, got ReLU",
        set(),
    ),
    "a part gone": (
        lambda m: with_parts(m, *m.layers[:3]),
        "dense_2; expected Dense, got none",
        {"no stages"},
    ),
    "no bias": (
        lambda m: with_parts(m, *m.layers[:3], dense_2(use_bias=False)),
        "dense_2; expected 2 weights, got 1",
        {"head"},
    ),
    "a size": (
        lambda m: with_parts(m, *m.layers[:3], dense_2(units=5)),
        "dense_2; expected the numbers of kernel that it had",
        {"head"},
    ),
}


@pytest.mark.parametrize("name", CHANGED)
def test_what_is_not_as_it_was_made_is_refused_and_refuted(name: str) -> None:
    change, words, stages = CHANGED[name]
    model, x = with_real_numbers(small()), integers(2, 6, 6, 2)
    after = convfc.simplify(model, x)
    assert convfc.verify(model, after, x).holds
    after = change(after) or after
    place, _, found = words.partition("; ")
    with pytest.raises(UnsupportedLayer, match=f"{place}: this is not as .* made it; {found}"):
        convfc.to_conv(after)
    certificate = convfc.verify(model, after, x)
    assert any(one.startswith(f"network: {words}") for one in certificate.failures)
    if certificate.layers:
        assert {layer.name for layer in certificate.layers if not layer.holds} == stages
    else:
        assert stages == {"no stages"}
        assert "parts are not those that it was made with: it has no dense_2" in str(
            certificate.failures
        )


def test_other_calls_of_the_same_layers_are_refuted() -> None:
    x = keras.Input((3, 3, 1))
    y = L.Conv2D(2, 2, name="conv")(x)
    model = with_real_numbers(keras.Model(x, L.Add()([y, L.ReLU()(y)])))
    after = convfc.simplify(model, integers(1, 3, 3, 1))
    flatten, dense, relu, add, reshape = after.layers[1:]
    z = keras.Input((3, 3, 1), name=after.inputs[0].name)
    acted = relu(dense(flatten(z)))
    other = keras.Model(z, reshape(add([acted, acted])))
    vars(other).update({name: vars(after)[name] for name in vars(after) if "convfc" in name})
    for made, expected in ((after, True), (other, False)):
        certificate = convfc.verify(model, made, integers(2, 3, 3, 1))
        assert certificate.holds is expected
    assert certificate.failures[0] == (
        "network: its calls; expected those of the same network made again, got others"
    )


def test_a_certificate_knows_the_network_that_it_is_of() -> None:
    x = integers(2, 6, 6, 2)
    model = with_real_numbers(small())
    after = convfc.simplify(model, x)
    alike, other = with_real_numbers(small()), keras.Sequential([small(), L.Dropout(0.5)])
    assert convfc.verify(alike, after, x).holds
    away(alike.get_layer("conv").kernel, 0.5)
    assert not convfc.verify(alike, after, x).holds
    certificate = convfc.verify(other, after, x)
    words = "it cannot be made again.*made of another one; expected the same layers, in this order"
    assert re.search(words, str(certificate.failures))


# Refused ------------------------------------------------------------------------------------------


class Own(L.Layer):  # type: ignore[misc]
    def call(self, x: Any) -> Any:
        return x


class OwnReLU(L.ReLU):  # type: ignore[misc]
    def call(self, x: Any) -> Any:
        return -x


class OwnSeparable(L.SeparableConv2D):  # type: ignore[misc]
    def call(self, x: Any) -> Any:
        return -super().call(x)


def two_inputs() -> Any:
    inputs = [keras.Input((4, 6, 3)), keras.Input((4, 6, 3))]
    return keras.Model(inputs, L.Add()(inputs))


def two_outputs() -> Any:
    x = keras.Input((4, 6, 3))
    return keras.Model(x, [L.Conv2D(2, 3)(x), L.ReLU()(x)])


def rounded() -> Any:
    return L.Conv2D(2, 2, dtype="float16", name="half")


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "unknown": (
        one(lambda: L.LayerNormalization(name="norm")),
        UnsupportedLayer,
        "norm: a LayerNormalization is not known to be affine.*Remedy: use convfc.unroll",
    ),
    "own class": (one(lambda: Own(name="own")), UnsupportedLayer, "own: a Own is not known"),
    "own call": (one(lambda: OwnReLU(name="own")), UnsupportedLayer, "OwnReLU has its own call"),
    "own separable": (
        one(lambda: OwnSeparable(2, 3, name="own")),
        UnsupportedLayer,
        "own: its class OwnSeparable has its own call",
    ),
    "product": (
        graph(lambda x: x * x),
        UnsupportedLayer,
        "multiply.*: a product of two values of the network is not affine",
    ),
    "gate": (
        graph(lambda x: L.Multiply(name="gate")([x, L.GlobalAveragePooling2D(keepdims=True)(x)])),
        UnsupportedLayer,
        "gate: a Multiply is not known",
    ),
    "sum of two shapes": (
        graph(lambda x: L.Add(name="sum")([x, L.GlobalAveragePooling2D(keepdims=True)(x)])),
        UnsupportedLayer,
        r"sum: a Add of values of the shapes \(4, 6, 3\) and \(1, 1, 3\)",
    ),
    "function": (graph(ops.sort), UnsupportedLayer, "keras.ops's Sort is not known"),
    "activation": (
        one(lambda: L.Activation(lambda x: x * x, name="square")),
        UnsupportedLayer,
        "square: its activation <lambda> is not known",
    ),
    "softmax": (
        one(lambda: L.Softmax(name="soft")),
        UnsupportedLayer,
        "soft: a Softmax over one of several axes",
    ),
    "threshold": (one(lambda: L.ReLU(threshold=1.0)), UnsupportedLayer, "jumps there"),
    "dropout": (
        graph(lambda x: L.Dropout(0.5, name="always")(x, training=True)),
        UnsupportedLayer,
        "always: a dropout that is always on",
    ),
    "norm in training": (
        graph(lambda x: L.BatchNormalization(name="norm")(x, training=True)),
        UnsupportedLayer,
        "norm: a BatchNormalization that is always in training mode",
    ),
    "half": (
        one(lambda: L.Conv2D(2, 3), rounded),
        UnsupportedLayer,
        "layer half: it computes with float16 and others with float32",
    ),
    "batch": (
        graph(lambda x: ops.flip(x, axis=0)),
        UnsupportedLayer,
        "it does not treat each example of a batch by itself",
    ),
    "two inputs": (two_inputs, ShapeError, "example: the sizes of the FC layers follow from one"),
    "two outputs": (two_outputs, UnsupportedModel, "it does not return one tensor"),
    "nothing": (
        lambda: keras.Sequential([keras.Input((4,)), L.Dense(3, activation="relu"), L.Dense(2)]),
        NothingToConvert,
        "layer other than Dense and ReLU",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_affine_is_named(name: str) -> None:
    make, kind, text = REFUSED[name]
    model = make()
    with pytest.raises(kind, match=text):
        convfc.simplify(model, integers(1, *model.inputs[0].shape[1:]))


def test_arguments_sizes_and_memory() -> None:
    model, x = network("channels_last")
    with pytest.raises(ArgumentError, match=r"max_pool: .*'keep'"):
        convfc.simplify(model, x, max_pool="trees")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"example: the example has another number of axes"):
        convfc.simplify(model, x[0])
    with pytest.raises(ShapeError, match=r"example: .* got \(0, 8, 8, 2\)"):
        convfc.simplify(model, x[:0])
    with pytest.raises(ShapeError, match=r"example: the model does not run on it"):
        convfc.simplify(model, integers(1, 8, 8, 3))
    with pytest.raises(MemoryBudgetError, match="the matrices that the network is made of"):
        convfc.simplify(model, x, memory=1000)
    with pytest.raises(UnsupportedLayer, match=r"branch would have to go through .*MaxPoo"):
        convfc.simplify(graph_with_pool(), x, sequential=True)


def graph_with_pool() -> Any:
    x = keras.Input((8, 8, 2))
    y = L.Conv2D(2, 3, padding="same")(x)
    z = L.Cropping2D(2)(L.ReLU()(y))
    return keras.Model(x, L.Add()([L.MaxPooling2D(2)(y), z]))
