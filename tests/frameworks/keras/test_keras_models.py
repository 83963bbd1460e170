"""Whole models of Keras: whatever holds the layers, what goes on afterwards, what is refused."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import keras
import numpy as np
import pytest
from keras_fixtures import numpy

import convfc
from convfc.errors import (
    NothingToConvert,
    UnsupportedLayer,
    UnsupportedLayerWarning,
    UnsupportedModel,
)
from convfc.frameworks.keras import certify, products

L = keras.layers


def integers(model: Any, seed: int = 0) -> Any:
    """The model with small whole numbers as weights."""
    numbers = np.random.default_rng(seed)
    model.set_weights([numbers.integers(-2, 3, tuple(w.shape)) for w in model.weights])
    return model


def x_of(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(-2, 3, shape).astype("float32")


def two_inputs() -> Any:
    """A functional model: two inputs, two outputs, a layer at two places, a nested model."""
    a, b = keras.Input((6, 6, 2), name="a"), keras.Input((6, 6, 2), name="b")
    shared = L.Conv2D(2, 3, padding="same", name="shared")
    inner = keras.Sequential([keras.Input((6, 6, 2)), L.Conv2D(3, 2, name="deep")], name="inner")
    y = inner(L.Add()([shared(a), shared(b)]))
    z = L.Conv2DTranspose(2, 2, name="up")(y)
    return integers(keras.Model([a, b], {"y": y, "z": z}))


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    """Layers in a list, and its own forward."""

    def __init__(self, filters: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.filters = filters
        self.conv = [L.Conv2D(filters, 2, name="first"), L.Conv2D(filters, 2, name="second")]
        self.head = L.Dense(2)

    def call(self, x: Any) -> Any:
        for layer in self.conv:
            x = keras.ops.relu(layer(x))
        return self.head(keras.ops.sum(x, axis=(1, 2)))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "filters": self.filters}


class NotToBeCopied(Subclassed):
    """Without a configuration of its own."""

    def get_config(self) -> dict[str, Any]:
        raise NotImplementedError("no configuration")


def made(model: Any) -> Any:
    model(x_of(1, 6, 6, 2))
    return integers(model)


def test_inputs_outputs_shared_and_nested_layers() -> None:
    model, x = two_inputs(), [x_of(2, 6, 6, 2), x_of(2, 6, 6, 2, seed=2)]
    fc = convfc.to_fc(model, product="matrix")
    expected, found = model(x), fc(x)
    assert found.keys() == expected.keys() == {"y", "z"}
    assert all(np.array_equal(numpy(found[k]), numpy(expected[k])) for k in "yz")
    assert [one.name for one in fc.inputs] == [one.name for one in model.inputs] == ["a", "b"]
    shared = fc.get_layer("shared")
    assert type(shared.fc) is L.Dense
    assert len(shared._inbound_nodes) == 2
    certificate = convfc.verify(model, fc, x)
    assert certificate.holds, str(certificate)
    assert [layer.name for layer in certificate.layers] == ["shared", "shared", "inner.deep", "up"]
    assert [layer.call for layer in certificate.layers] == [0, 1, 0, 0]
    back = convfc.to_conv(fc)
    assert [type(one) for one in back.layers] == [type(one) for one in model.layers]


def test_a_subclassed_model_is_copied_or_changed_in_place() -> None:
    model, x = made(Subclassed(3)), x_of(2, 6, 6, 2)
    y = numpy(model(x))
    fc = convfc.to_fc(model, product="matrix")
    assert type(fc) is Subclassed
    assert fc is not model
    assert type(fc.conv[1].fc) is L.Dense
    assert np.array_equal(numpy(fc(x)), y)
    assert convfc.verify(model, fc, x).holds
    assert {row.name for row in convfc.inspect(fc, x)} == {"conv.0", "conv.1"}
    before = model.conv[0]
    assert convfc.to_fc(model, inplace=True, product="matrix") is model
    assert model.conv[0] is before
    assert np.array_equal(numpy(model(x)), y)
    convfc.to_conv(model, inplace=True)
    assert type(model.conv[0]) is L.Conv2D


def test_a_model_without_configuration_is_refused_by_name_unless_in_place() -> None:
    model, x = made(NotToBeCopied(2, name="mine")), x_of(1, 6, 6, 2)
    with pytest.raises(UnsupportedModel, match=r"^mine: it cannot be copied .*inplace=True"):
        convfc.to_fc(model)
    y = numpy(model(x))
    convfc.to_fc(model, inplace=True, product="matrix")
    assert np.array_equal(numpy(model(x)), y)


def test_some_layers_by_name_and_what_is_left_is_listed() -> None:
    model = two_inputs()
    fc = convfc.to_fc(model, where=["inner.*", "up"])
    forms = {row.name: row.form for row in convfc.inspect(fc)}
    assert forms == {"shared": "native", "inner.deep": "patch", "up": "patch"}
    with pytest.raises(NothingToConvert, match=r"^where: where= selects no CONV layer"):
        convfc.to_fc(model, where="nothing")
    refused = keras.Sequential(
        [keras.Input((6, 6, 2)), L.Conv2D(2, 2, name="lora"), L.Conv2D(2, 2)]
    )
    refused.layers[0].enable_lora(1)
    with pytest.warns(UnsupportedLayerWarning, match=r"^left as they are: lora \(Conv2D: ") as told:
        fc = convfc.to_fc(refused, strict=False)
    ours = [warning.filename for warning in told if "left as" in str(warning.message)]
    assert ours == [__file__]
    assert [row.form for row in convfc.inspect(fc)] == ["native", "patch"]


def test_a_layer_by_itself_is_a_model() -> None:
    layer, x = L.Conv2D(2, 2, dilation_rate=2), x_of(1, 6, 6, 2)
    layer.build((None, 6, 6, 2))
    integers(layer)
    fc = convfc.to_fc(layer, product="matrix")
    assert fc is not layer
    assert np.array_equal(numpy(fc(x)), numpy(layer(x)))
    assert convfc.verify(layer, fc, x).holds
    assert type(convfc.to_conv(fc)) is L.Conv2D


def test_sizes_that_are_not_known_are_those_of_the_call() -> None:
    model = keras.Sequential(
        [keras.Input((None, None, 2)), L.Conv2D(2, 3, strides=2, padding="same", name="conv")]
    )
    integers(model)
    fc = convfc.to_fc(model, product="matrix")
    assert convfc.inspect(fc).rows[0].geometry is None  # "same" depends on the size
    for size in ((5, 6), (8, 7)):
        x = x_of(1, *size, 2)
        assert np.array_equal(numpy(fc(x)), numpy(model(x)))
        (row,) = convfc.inspect(fc, x)
        assert row.input_size == size


def test_a_compiled_model_goes_on_training() -> None:
    """From one start, as the CNN and as FC layers: the same losses bit for bit."""
    x, y = x_of(8, 6, 6, 2), np.zeros((8, 2), "float32")
    losses = []
    for convert in (lambda model: model, convfc.to_fc):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((6, 6, 2)),
                L.Conv2D(3, 3, activation="relu"),
                L.DepthwiseConv2D(2),
                L.GlobalAveragePooling2D(),
                L.Dense(2),
            ]
        )
        model.compile(keras.optimizers.SGD(0.01), "mse")
        model.predict(x, verbose=0)
        model = convert(model)
        losses.append(model.fit(x, y, epochs=3, shuffle=False, verbose=0).history["loss"])
    assert losses[0] == losses[1]
    assert losses[0][0] != losses[0][-1]
    assert [row.form for row in convfc.inspect(model)] == ["patch", "patch"]


def test_a_model_in_mixed_precision() -> None:
    model = keras.Sequential(
        [keras.Input((5, 5, 2)), L.Conv2D(3, 3, name="conv", dtype="mixed_bfloat16")]
    )
    fc, x = convfc.to_fc(model), np.random.default_rng(0).random((2, 5, 5, 2), "float32")
    assert str(fc(x).dtype).endswith("bfloat16")
    certificate = convfc.verify(model, fc, x)
    assert certificate.holds, str(certificate)
    assert certificate.layers[0].own["output"].dtype == "bfloat16"


def test_a_wrapped_layer() -> None:
    wrapped = L.TimeDistributed(L.Conv1D(2, 2, name="conv"))
    model = integers(keras.Sequential([keras.Input((3, 5, 2)), wrapped]))
    fc, x = convfc.to_fc(model, product="matrix"), x_of(2, 3, 5, 2)
    assert [row.name for row in convfc.inspect(fc)] == ["time_distributed.layer"]
    assert np.array_equal(numpy(fc(x)), numpy(model(x)))


def test_verify_measures_m_k_though_the_eager_path_is_native(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = keras.Sequential([keras.Input((5, 5, 2)), L.Conv2D(3, 2, name="conv")])
    fc, x = convfc.to_fc(model), np.random.default_rng(0).random((1, 5, 5, 2), "float32")
    right = products.patches
    monkeypatch.setattr(
        "convfc.frameworks.keras.forms.patches",
        lambda *given: keras.ops.roll(right(*given), 1, axis=1),
    )
    assert np.array_equal(numpy(fc(x)), numpy(model(x)))
    certificate = convfc.verify(model, fc, x)
    assert not certificate.holds
    assert "output" in certificate.layers[0].exact.differing


def test_verify_says_what_differs_elsewhere() -> None:
    model = two_inputs()
    x = [x_of(1, 6, 6, 2), x_of(1, 6, 6, 2)]
    other = convfc.to_fc(model)
    other.get_layer("up").fc.bias.assign(keras.ops.ones(2))
    assert not convfc.verify(model, other, x).holds
    model = keras.Sequential([keras.Input((4, 4, 1)), L.Conv2D(1, 2), L.Flatten(), L.Dense(1)])
    fc = convfc.to_fc(model)
    fc.layers[-1].kernel.assign(2 * fc.layers[-1].kernel)
    (reason,) = [
        reason
        for reason in convfc.verify(model, fc, x_of(1, 4, 4, 1)).failures
        if "the same bits" in reason
    ]
    assert re.match(r"network: dense\w*\.kernel; expected the same bits, got others", reason)


@keras.saving.register_keras_serializable(package="tests")
class Scales(L.Layer):
    """Its weights have no names: Keras numbers them, in a copy anew."""

    def build(self, shape: Any) -> None:
        self.both = [self.add_weight(shape=(shape[-1],), initializer="ones") for _ in range(2)]

    def call(self, x: Any) -> Any:
        return x * self.both[0] * self.both[1]


def test_weights_without_names_are_compared_where_they_are_held() -> None:
    model = keras.Sequential([keras.Input((4, 4, 1)), L.Conv2D(2, 2), Scales(name="scales")])
    fc, x = convfc.to_fc(model), x_of(1, 4, 4, 1)
    certificate = convfc.verify(model, fc, x)
    assert certificate.holds, str(certificate)
    fc.get_layer("scales").both[1].assign(np.full(2, 1.5))
    named = "network: scales.both.1; expected the same bits, got others, 0.5 away"
    assert named in convfc.verify(model, fc, x).failures


def test_a_layer_that_a_tool_has_touched_has_a_bound_by_the_other_side() -> None:
    """Before its activation, which is none of the bound's."""
    model = keras.Sequential(
        [keras.Input((5, 5, 2)), L.Conv2D(3, 2, activation="softmax", name="conv")]
    )
    fc, x = convfc.to_fc(model), np.random.default_rng(0).random((2, 5, 5, 2), "float32")
    layer = fc.get_layer("conv")
    layer.enable_lora(1)
    layer.fc.lora_kernel_b.assign(keras.ops.ones((1, 3)))
    layer.fc.bias.assign(keras.ops.full((3,), 9.0))
    merged = convfc.to_conv(fc)
    certificate = convfc.verify(merged, fc, x)
    assert certificate.holds, str(certificate)
    (found,) = certificate.layers
    assert found.own["output"].ratio is not None
    assert abs(found.own["output"].before) > 1
    assert layer.activation is keras.activations.softmax
    assert not convfc.verify(model, fc, x).holds


def test_what_convolves_without_a_layer_is_named() -> None:
    x = keras.Input((6, 6, 2))
    kernel = np.ones((2, 2, 2, 2), "float32")
    model = keras.Model(x, L.Conv2D(2, 2, name="layer")(keras.ops.conv(x, kernel)), name="net")
    with pytest.raises(UnsupportedLayer, match=r"Functional: its own code calls keras\.ops"):
        convfc.to_fc(model)
    row = next(row for row in convfc.inspect(model) if row.form == "other")
    assert row.names == ("",)
    assert row.reason
    lstm = keras.Sequential([keras.Input((2, 6, 6, 1)), L.ConvLSTM2D(2, 2, name="lstm")])
    with pytest.raises(UnsupportedLayer, match=r"lstm.*its own code calls"):
        convfc.to_fc(lstm)


def test_an_input_that_does_not_fit_is_said_of_x() -> None:
    model = two_inputs()
    with pytest.raises(convfc.errors.ShapeError, match=r"^x: the model does not run on it"):
        convfc.verify(model, convfc.to_fc(model), x_of(1, 6, 6, 2))


def test_weights_of_the_cnn_load_and_a_file_of_the_fc_model_does(tmp_path: pathlib.Path) -> None:
    model, x = two_inputs(), [x_of(2, 6, 6, 2), x_of(2, 6, 6, 2, seed=2)]
    path = tmp_path / "cnn.weights.h5"
    model.save_weights(path)
    fc = convfc.to_fc(integers(two_inputs(), seed=5), product="matrix")
    fc.load_weights(path)
    assert np.array_equal(numpy(fc(x)["z"]), numpy(model(x)["z"]))
    fc.save(tmp_path / "fc.keras")
    again = keras.saving.load_model(tmp_path / "fc.keras", safe_mode=True)
    assert again.get_layer("up").product == "matrix"
    assert np.array_equal(numpy(again(x)["z"]), numpy(model(x)["z"]))


def test_by_matrix_is_undone() -> None:
    fc = convfc.to_fc(two_inputs())
    layer = fc.get_layer("up")
    with certify.by_matrix([layer]):
        assert layer.product == "matrix"
    assert layer.product == "auto"


@pytest.mark.parametrize("verb", ["to_fc", "unroll", "simplify"])
def test_training_one_model_leaves_the_other_as_it_was(verb: str) -> None:
    """JAX frees the arrays that a step of training is given."""
    layers = [
        keras.Input((6, 6, 2)),
        L.Conv2D(2, 3, activation="relu"),
        L.Flatten(),
        L.Dense(3),
    ]
    cnn, x = integers(keras.Sequential(layers)), x_of(2, 6, 6, 2)
    y = numpy(cnn(x))
    after = convfc.to_fc(cnn) if verb == "to_fc" else getattr(convfc, verb)(cnn, x)
    after.compile(keras.optimizers.SGD(1e-3), "mse")
    after.fit(x, y + 1, verbose=0)
    assert np.array_equal(numpy(cnn(x)), y)
    assert (numpy(after(x)) != y).any()
