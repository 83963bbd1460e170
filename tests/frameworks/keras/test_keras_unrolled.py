"""unroll for Keras: a layer as Flatten, Dense and Reshape in its place in a model, and back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import pytest
from keras import layers
from keras_fixtures import BACKEND, FORMATS, integers, numpy
from test_keras_read import LAYERS, Layer

import convfc
from convfc.errors import (
    MemoryBudgetError,
    NotAConvolution,
    NothingToConvert,
    ShapeError,
    UnsupportedLayer,
    UnsupportedLayerWarning,
    UnsupportedModel,
)
from convfc.frameworks.keras.backend import wide_numbers
from convfc.frameworks.keras.copies import rebuilt
from convfc.rounding import rounding_bound

if TYPE_CHECKING:
    from collections.abc import Callable


def with_integers(model: Any) -> Any:
    rng = np.random.default_rng(1)
    for weight in model.weights:
        numbers = rng.integers(-3, 4, weight.shape)
        # Powers of four, so that a BatchNorm rounds nothing.
        weight.assign(4.0 ** (numbers % 3 - 1) if "variance" in weight.name else numbers)
    return model


def same(model: Any, other: Any) -> None:
    """Two models, weight for weight and setting for setting."""
    assert type(model) is type(other)
    ours, theirs = model.get_weights(), other.get_weights()
    assert [w.name for w in model.weights] == [w.name for w in other.weights]
    for mine, its in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, its, strict=True)
    ours, theirs = (
        json.dumps(one.get_config(), default=str, sort_keys=True) for one in (model, other)
    )
    assert ours == theirs
    for one, its_ in zip(model.weights, other.weights, strict=True):
        assert one.trainable == its_.trainable, one.path


def branched() -> tuple[Any, dict[str, Any]]:
    """Two inputs and outputs, a layer that is called twice, a nested model that is, too."""
    inner = keras.Sequential(
        [keras.Input((6, 6, 4)), layers.Conv2D(4, 3, activation="relu", name="in")], name="inner"
    )
    image, other = keras.Input((8, 8, 2), name="image"), keras.Input((8, 8, 2), name="other")
    shared = layers.Conv2D(4, 3, name="shared", use_bias=False)
    first, second = shared(image), shared(other)
    x = layers.BatchNormalization(epsilon=0.0, name="norm")(first)
    x = layers.Add(name="sum")([inner(x), inner(second)]) * 2.0
    head = layers.Flatten(name="flat")(layers.Dropout(0.5, name="drop")(x))
    model = keras.Model({"image": image, "other": other}, {"map": x, "flat": head}, name="net")
    inner.layers[0].trainable = False
    x = {"image": integers(2, 8, 8, 2), "other": integers(2, 8, 8, 2, seed=1)}
    return with_integers(model), x


def net() -> Any:
    made = keras.Sequential(
        [
            keras.Input((7, 6, 3)),
            layers.Conv2D(4, 3, padding="same", strides=2, activation="relu", name="first"),
            layers.DepthwiseConv2D(2, name="second"),
        ]
    )
    return with_integers(made)


X = integers(2, 7, 6, 3)


ONE_OF_EACH = {case.cls: case for case in LAYERS}
CAUSAL = next(case for case in LAYERS if case.rest.get("padding") == "causal")


@pytest.mark.parametrize("case", [*ONE_OF_EACH.values(), CAUSAL], ids=str)
def test_a_layer_is_its_matrix_and_goes_back_to_the_bit(case: Layer) -> None:
    layer, x = case.made(), case.x()
    try:
        expected = numpy(layer(x))
    except Exception as error:
        if not type(error).__module__.startswith("tensorflow"):
            raise
        pytest.skip("TensorFlow does not have every transposed layer")
    after = convfc.unroll(layer, x)
    kinds = ["Flatten", "Dense", "Reshape", *["Activation"] * ("activation" in case.rest)]
    assert [type(part).__name__ for part in after.layers] == kinds
    assert (type(after), after.name) == (keras.Sequential, layer.name)
    found = numpy(after(x))
    assert found.dtype == expected.dtype
    assert (found == expected).all()
    assert expected.any(), "a comparison of zeros"
    back = convfc.to_conv(after)
    same(back, layer)
    assert (numpy(back(x)) == expected).all()


@pytest.mark.parametrize("data_format", FORMATS)
def test_the_kernel_is_the_matrix_of_the_layer_in_its_own_order(data_format: str) -> None:
    case = next(case for case in LAYERS if case.cls == "Conv2D" and case.rest.get("groups") == 2)
    layer, x = case.made(data_format), case.x()
    x = np.moveaxis(x, -1, 1) if data_format == "channels_first" else x
    after = convfc.unroll(layer, x)
    A = convfc.conv_matrix(layer, case.size, layout="dense")
    np.testing.assert_array_equal(numpy(after.layers[1].kernel), A.T)
    np.testing.assert_array_equal(numpy(after.layers[1].bias), convfc.conv_offset(layer, case.size))
    assert (numpy(after(x)) == numpy(layer(x))).all()
    same(convfc.to_conv(after), layer)


def test_a_graph_keeps_its_names_its_shared_parts_and_its_flags() -> None:
    model, x = branched()
    before = model(x)
    after = convfc.unroll(model, x)
    assert [one.name for one in after.operations] == [one.name for one in model.operations]
    assert [x.name for x in after.inputs] == [x.name for x in model.inputs]
    found = after(x)
    for name, value in before.items():
        assert (numpy(value) == numpy(found[name])).all(), name
    assert type(after.get_layer("shared")) is keras.Sequential
    assert after.get_layer("inner").get_layer("in").layers[1].kernel.trainable is False
    assert len(after.trainable_variables) == len(model.trainable_variables)
    assert len(after.weights) == len(model.weights)  # what is shared stands once
    np.testing.assert_array_equal(
        after.get_layer("norm").get_weights(), model.get_layer("norm").get_weights()
    )
    same(convfc.to_conv(after), model)


def test_the_model_stays_as_it_was() -> None:
    model, x = branched()
    always = layers.Dropout(0.5)
    noisy = keras.Model(model.inputs, always(model.outputs[0], training=True))
    states = [numpy(v) for v in noisy.variables]
    assert len(states) > len(noisy.weights), "no state of random numbers"
    config = noisy.get_config()
    convfc.unroll(noisy, (x["image"], x["other"]))
    for before, after in zip(states, noisy.variables, strict=True):
        np.testing.assert_array_equal(before, numpy(after))
    assert noisy.get_config() == config
    assert "call" not in vars(model.get_layer("shared"))


def test_where_and_twice() -> None:
    model = net()
    once = convfc.unroll(model, X, where="second")
    assert [type(part).__name__ for part in once.layers] == ["Conv2D", "Sequential"]
    both = convfc.unroll(once, X)
    assert (numpy(both(X)) == numpy(model(X))).all()
    same(convfc.to_conv(both), model)
    with pytest.raises(NothingToConvert, match="no CONV layer that is not in unrolled form"):
        convfc.unroll(both, X)


def test_fc_layers_in_patch_form_are_unrolled_too() -> None:
    model = net()
    after = convfc.unroll(convfc.to_fc(model), X)
    assert (numpy(after(X)) == numpy(model(X))).all()
    patch = convfc.to_fc(after)
    assert [convfc.inspect(patch).rows[n].form for n in range(2)] == ["patch", "patch"]


def test_a_part_of_mobilenet() -> None:
    whole = keras.applications.MobileNetV2(weights=None, input_shape=(32, 32, 3), alpha=0.35)
    # A residual branch: depthwise layers, BatchNormalization, ReLU6.
    start, end = (whole.get_layer(n).output for n in ("block_3_project_BN", "block_4_add"))
    model = keras.Model(start, end)
    x = np.random.default_rng(0).random((2, *start.shape[1:]), dtype=np.float32)
    convs = [one for one in model.layers if "Conv" in type(one).__name__]
    after = convfc.unroll(model, x)
    unrolled = [one for one in after.layers if isinstance(one, keras.Sequential)]
    assert len(unrolled) == len(convs) == 3
    assert after(x).shape == model(x).shape
    for layer in unrolled:
        native = model.get_layer(layer.name)
        shape = (2, *layer.input_shape[1:])
        given = np.random.default_rng(1).standard_normal(shape).astype("float32")
        A = numpy(layer.layers[1].kernel).astype(float)
        flat = given.reshape(2, -1).astype(float)
        bound = rounding_bound(np.abs(flat) @ np.abs(A), A.shape[0], "float32")
        away = np.abs(numpy(layer(given)) - numpy(native(given)).astype(float)).reshape(2, -1)
        assert bound is not None
        assert (away <= 2 * bound).all()
    same(convfc.to_conv(after), model)


SEPARABLE: dict[str, dict[str, Any]] = {
    "1D": {"kernel_size": 3, "strides": 2, "activation": "relu", "depth_multiplier": 2},
    "2D": {"kernel_size": (3, 2), "padding": "same", "dilation_rate": 2},
    "2D, no bias": {"kernel_size": 2, "use_bias": False, "depth_multiplier": 3},
}


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("name", SEPARABLE)
def test_a_separable_layer_is_two_matrices_and_goes_back_to_the_bit(
    name: str, data_format: str
) -> None:
    options: dict[str, Any] = {**SEPARABLE[name], "data_format": data_format, "name": "apart"}
    layer = getattr(layers, f"SeparableConv{name[:2]}")(4, **options)
    x = integers(2, 7, 6, 3) if "2D" in name else integers(2, 9, 3)
    x = np.moveaxis(x, -1, 1) if data_format == "channels_first" else x
    layer.build(x.shape)
    with_integers(layer)
    layer.depthwise_kernel.trainable = False
    after = convfc.unroll(layer, x)
    kinds = ["Flatten", "Dense", "Dense", "Reshape", *["Activation"] * ("activation" in options)]
    assert [type(part).__name__ for part in after.layers] == kinds
    depth, point = after.layers[1:3]
    assert (depth.name, depth.use_bias, depth.kernel.trainable) == ("depthwise", False, False)
    assert (point.name, point.use_bias, point.kernel.trainable) == (
        *("dense", options.get("use_bias", True)),
        True,
    )
    expected = numpy(layer(x))
    assert (numpy(after(x)) == expected).all()
    assert expected.any(), "a comparison of zeros"
    same(convfc.to_conv(after), layer)
    same(convfc.to_conv(convfc.unroll(convfc.to_fc(layer), x)), layer)
    depth.kernel.assign(2 * numpy(depth.kernel))
    point.kernel.assign(3 * numpy(point.kernel))
    back = convfc.to_conv(after).get_weights()
    for factor, mine, its in zip((2, 3, 1), layer.get_weights(), back, strict=False):
        np.testing.assert_array_equal(factor * mine, its)
    certificate = convfc.verify(after, convfc.to_conv(after), x)
    assert certificate.holds, certificate


@pytest.mark.parametrize("data_format", FORMATS)
def test_both_matrices_of_a_separable_layer_are_proven(data_format: str) -> None:
    first = data_format == "channels_first"
    options = {"data_format": data_format, "activation": "relu", "name": "apart"}
    parts = [
        keras.Input((2, 6, 5) if first else (6, 5, 2)),
        layers.SeparableConv2D(4, 3, **options),
    ]
    model = keras.Sequential(parts)
    x = np.random.default_rng(0).standard_normal((2, *model.input_shape[1:])).astype("float32")
    after = convfc.unroll(model, x)
    for pair in ((model, after), (after, model), (convfc.to_fc(model), after)):
        certificate = convfc.verify(*pair, x)
        assert certificate.holds, certificate
        (layer,) = certificate.layers
        assert layer.exact.identical
        names = {"output", "input", "depthwise weight", "weight", "bias"}
        assert {*layer.own} == {*layer.float64} == names
        assert all(one.ratio is not None for one in layer.own.values())
    for number, part in ((1, "depthwise"), (2, "dense")):
        changed = convfc.unroll(model, x)
        kernel = changed.get_layer("apart").layers[number].kernel
        entries = numpy(kernel)
        entries[tuple(np.argwhere(entries)[0])] *= 1.5
        kernel.assign(entries)
        certificate = convfc.verify(model, changed, x)
        assert not certificate.holds, part
        assert "its matrix is not a convolution's" in certificate.failures[0]
        with pytest.raises(UnsupportedLayer, match="apart: its matrix is not a convolution's"):
            convfc.to_conv(changed)


def test_inspect_lists_them_with_the_layer_that_they_were() -> None:
    parts = [keras.Input((8, 7, 3)), layers.Conv2D(4, 3, strides=2, padding="same", name="first")]
    model = keras.Sequential([*parts, layers.SeparableConv2D(5, 2, name="apart")])
    x = integers(2, 8, 7, 3)
    after = convfc.unroll(model, x)
    for given in (None, x):
        for native, row in zip(
            convfc.inspect(model, x).rows, convfc.inspect(after, given).rows, strict=True
        ):
            assert row.form == "unrolled"
            for name in ("names", "kind", "geometry", "input_size", "output_size"):
                assert getattr(row, name) == getattr(native, name), name
            for name in ("call", "batch", "dtype", "itemsize") if given is not None else ():
                assert getattr(row, name) == getattr(native, name), name
            layer = after.get_layer(row.name)
            assert row.parameters == layer.count_params()
    assert convfc.inspect(after).rows[0].unrolled_shape == (64, 168)


# Back ---------------------------------------------------------------------------------------------


def test_a_scaled_matrix_goes_back_and_any_other_is_refused() -> None:
    model = net()
    after = convfc.unroll(model, X)
    dense = after.get_layer("first").layers[1]
    dense.kernel.assign(2 * numpy(dense.kernel))
    back = convfc.to_conv(after)
    kernel = model.get_layer("first").get_weights()[0]
    np.testing.assert_array_equal(back.get_layer("first").get_weights()[0], 2 * kernel)
    entry = numpy(dense.kernel)
    entry[0, 0] += 1
    dense.kernel.assign(entry)
    with pytest.raises(UnsupportedLayer, match="first: its matrix is not a convolution's") as info:
        convfc.to_conv(after)
    assert isinstance(info.value.__cause__, NotAConvolution)
    with pytest.warns(UnsupportedLayerWarning, match=r"first: the closest convolution is 0\.\d+"):
        close = convfc.to_conv(after, project=True)
    away = close.get_layer("first").get_weights()[0] - 2 * kernel
    assert 0 < np.abs(away).max() < 1


@pytest.mark.parametrize("data_format", FORMATS)
def test_a_bias_that_differs_from_position_to_position(data_format: str) -> None:
    layer = layers.Conv2D(2, 3, data_format=data_format)
    x = integers(1, 4, 4, 1) if data_format == "channels_last" else integers(1, 1, 4, 4)
    layer.build(x.shape)
    after = convfc.unroll(layer, x)
    dense = after.layers[1]
    dense.bias.assign([5.0, 6.0, 5.0, 6.0, 5.0, 6.0, 5.0, 6.0])
    if data_format == "channels_last":
        assert convfc.to_conv(after).get_weights()[1].tolist() == [5.0, 6.0]
        return
    with pytest.raises(UnsupportedLayer, match=r"bias\[1\]: .* expected 5.0, as at .* got 6.0"):
        convfc.to_conv(after)
    with pytest.warns(UnsupportedLayerWarning, match="the mean over positions is 1.41 away"):
        assert convfc.to_conv(after, project=True).get_weights()[1].tolist() == [5.5, 5.5]


def test_weights_that_no_output_reads_are_kept() -> None:
    """On one pixel a 3x3 kernel reads padding with eight of its nine taps."""
    layer = layers.Conv2D(3, 3, padding="same")
    layer.build((None, 1, 1, 2))
    after = convfc.unroll(layer, np.zeros((1, 1, 1, 2), "float32"))
    after.layers[1].kernel.assign(2 * numpy(after.layers[1].kernel))
    kernel, back = layer.get_weights()[0], convfc.to_conv(after).get_weights()[0]
    np.testing.assert_array_equal(back[1, 1], 2 * kernel[1, 1])
    np.testing.assert_array_equal(back[0], kernel[0])


def other_parts(after: Any) -> Any:
    """The same with a part less, as a tool may leave it."""
    dense = after.layers[1]
    made = keras.Sequential([after.layers[0], dense])
    vars(made).update({name: vars(after)[name] for name in vars(after) if "convfc" in name})
    return made


def test_what_is_not_as_it_was_made_is_refused() -> None:
    layer = layers.Conv2D(2, 3, name="it")
    layer.build((None, 4, 4, 1))
    after = convfc.unroll(layer, integers(1, 4, 4, 1))
    with pytest.raises(UnsupportedLayer, match="its parts are Flatten, Dense, not Flatten, Dense"):
        convfc.to_conv(other_parts(after))
    after.layers[1].quantize("int8")
    with pytest.raises(UnsupportedLayer, match="its Dense layer was quantised"):
        convfc.to_conv(after)


def test_in_place_there_is_no_other_layer_in_a_graph() -> None:
    model = convfc.unroll(net(), X)
    with pytest.raises(UnsupportedLayer, match=r"first: .*cannot be given.*leave out inplace=True"):
        convfc.to_conv(model, inplace=True)


# Certificates -------------------------------------------------------------------------------------


@pytest.mark.parametrize("data_format", FORMATS)
def test_verify_runs_the_matrix_and_says_no_to_another(data_format: str) -> None:
    first = data_format == "channels_first"
    parts = [keras.Input((2, 5, 4) if first else (5, 4, 2))]
    parts += [
        layers.Conv2D(3, 2, padding="same", activation="relu", data_format=data_format, name="c")
    ]
    parts += [layers.DepthwiseConv2D(2, strides=2, data_format=data_format, name="d")]
    model = keras.Sequential(parts)
    x = np.random.default_rng(0).standard_normal((2, 2, 5, 4) if first else (2, 5, 4, 2))
    x = x.astype("float32")
    after = convfc.unroll(model, x)
    for pair in ((model, after), (after, model), (convfc.to_fc(model), after)):
        certificate = convfc.verify(*pair, x)
        assert certificate.holds, certificate
        assert [one.exact.identical for one in certificate.layers] == [True, True]
        assert {*certificate.layers[0].own} == {"output", "input", "weight", "bias"}
        assert certificate.layers[0].forms[1] in ("unrolled", "native")
    kernel = after.get_layer("c").layers[1].kernel
    changed = numpy(kernel)
    changed[tuple(np.argwhere(changed)[0])] += 1
    kernel.assign(changed)
    certificate = convfc.verify(model, after, x)
    assert [one.holds for one in certificate.layers] == [False, True]
    assert "its matrix is not a convolution's" in certificate.failures[0]


def test_wide_numbers_are_wide_in_products_and_sums() -> None:
    """Where Keras itself makes float32 of them, on JAX and PyTorch."""
    x = np.array([[1.0]]) + 2.0**-40
    with wide_numbers():
        dense = keras.layers.Dense(1, kernel_initializer="ones", dtype="float64")
        inside = numpy(dense(keras.ops.convert_to_tensor(x, "float64")))
    assert inside.tolist() == x.tolist()
    assert keras.backend.result_type("float64") == (
        "float64" if BACKEND == "tensorflow" else "float32"
    )


# Refused ------------------------------------------------------------------------------------------


class Own(keras.Model):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(name="own")
        self.inside = layers.Conv2D(2, 3, name="conv")

    def build(self, shape: Any) -> None:
        self.inside.build(shape)

    def call(self, x: Any) -> Any:
        return self.inside(x)


class Holder(keras.layers.Layer):  # type: ignore[misc]
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.inside = layers.Conv2D(2, 3, name="conv")

    def build(self, shape: Any) -> None:
        self.inside.build(shape)

    def call(self, x: Any) -> Any:
        return self.inside(x)


def two_sizes() -> Any:
    x = keras.Input((8, 8, 2))
    conv = layers.Conv2D(2, 3, padding="same", name="twice")
    return keras.Model(x, layers.Flatten()(conv(layers.MaxPooling2D()(conv(x)))))


def built(model: Any) -> Any:
    model.build((None, 8, 8, 2))
    return model


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "subclassed": (
        lambda: built(Own()),
        UnsupportedModel,
        r"its forward is written in its class.* got Own\. Remedy: build it as a keras\.Sequential",
    ),
    "inside": (
        lambda: keras.Sequential([keras.Input((8, 8, 2)), Holder(name="holder")]),
        UnsupportedLayer,
        r"layer conv of holder: it stands in a Holder, whose own class calls it.*where=",
    ),
    "two sizes": (
        two_sizes,
        UnsupportedLayer,
        r"twice: it is called on inputs of the sizes \(8, 8\) and \(4, 4\).*convfc\.to_fc",
    ),
    "nothing": (
        lambda: keras.Sequential([keras.Input((8, 8, 2)), layers.Flatten()]),
        NothingToConvert,
        "the model has no CONV layer",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_unrolled_is_named(name: str) -> None:
    make, kind, text = REFUSED[name]
    with pytest.raises(kind, match=text):
        convfc.unroll(make(), integers(1, 8, 8, 2))


def test_a_layer_that_the_model_does_not_call_and_one_that_does_not_fit() -> None:
    x = keras.Input((8, 8, 2))
    conv, idle = layers.Conv2D(2, 3, name="runs"), layers.Conv2D(2, 3, name="idle")
    idle.build((None, 8, 8, 2))
    model = keras.Model(x, conv(x))
    model.kept = idle
    with pytest.warns(UnsupportedLayerWarning, match="idle .the model does not call it on the ex"):
        after = convfc.unroll(model, integers(1, 8, 8, 2))
    assert type(after.get_layer("runs")) is keras.Sequential
    with pytest.raises(MemoryBudgetError, match=r"first: the matrices .* expected at most 100 by"):
        convfc.unroll(net(), X, memory=100)
    apart = keras.Sequential([keras.Input((4, 4, 1)), layers.SeparableConv2D(5, 3, name="apart")])
    with pytest.raises(MemoryBudgetError, match=r"apart \(matrix 2\): .* got 20 x 4, 20 entries"):
        convfc.unroll(apart, integers(1, 4, 4, 1), memory=100)
    with pytest.raises(ShapeError, match=r"example: the model does not run on it .*\(1, 9, 9, 9\)"):
        convfc.unroll(net(), integers(1, 9, 9, 9))


# Copies -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "mixed_float16"])
def test_every_policy_is_kept_and_goes_back_to_the_bit(dtype: str) -> None:
    if dtype == "float64" and BACKEND == "jax":
        pytest.skip("JAX has no float64 unless it is switched on")
    layer = layers.Conv2D(3, 2, dtype=dtype, data_format="channels_last")
    layer.build((None, 4, 4, 2))
    after = convfc.unroll(layer, integers(1, 4, 4, 2))
    assert {part.dtype_policy.name for part in after.layers} == {dtype}
    assert after.layers[1].kernel.dtype == layer._kernel.dtype
    again = rebuilt(after, {})
    x = np.random.default_rng(0).integers(-99, 99, (1, 4, 4, 2)) / 2**8  # more than bfloat16 has
    for made in (after, again):
        assert numpy(made(x)).dtype == numpy(layer(x)).dtype
        assert made.dtype_policy.name == dtype
        if dtype == "float64" and BACKEND == "tensorflow":  # elsewhere Keras multiplies in float32
            assert (numpy(made(x + 2.0**-40)) != numpy(made(x))).all()
    back = convfc.to_conv(again)
    assert back.dtype_policy.name == dtype
    for one, other in zip(back.weights, layer.weights, strict=True):
        assert one.dtype == other.dtype
        assert (numpy(keras.ops.equal(one, other))).all()


def test_a_copy_keeps_lambdas_adapted_layers_and_the_flags_of_single_weights() -> None:
    factor = 3.0
    norm = layers.Normalization(name="norm")
    norm.adapt(integers(50, 4, 4, 2))
    conv = layers.Conv2D(2, 3, name="conv")
    model = keras.Sequential(
        [keras.Input((4, 4, 2)), norm, layers.Lambda(lambda x: factor * x, name="times"), conv]
    )
    conv.bias.trainable = False
    again, x = rebuilt(model, {}), integers(2, 4, 4, 2)
    assert (numpy(again(x)) == numpy(model(x))).all()
    flags = [v.trainable for v in again.get_layer("conv").weights]
    assert flags == [True, False]
    model.trainable = False
    conv.trainable = True
    again = rebuilt(model, {})
    assert [one.trainable for one in again.layers] == [False, False, True]
    assert not again.trainable


class Forgets(keras.layers.Layer):  # type: ignore[misc]
    """Says too little of itself."""

    def __init__(self, size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = size

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name}

    def call(self, x: Any) -> Any:
        return x


def test_a_layer_that_cannot_be_made_again_is_named() -> None:
    parts = [keras.Input((4, 4, 2)), layers.Conv2D(2, 3), Forgets(3, name="forgets")]
    with pytest.raises(UnsupportedLayer, match=r"forgets: a Forgets cannot be made again.*get_con"):
        rebuilt(keras.Sequential(parts), {})
