"""The networks of Figure 8: their shapes, and that all three compute one function."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import convfc
from convfc.errors import ArgumentError
from convfc.paper import keras_networks as networks
from convfc.paper.optimizers import INITIALIZERS

SHAPES = {
    "cnn": [(13, 13, 128), (13, 13, 128), (21632,), (784,), (784,), (28, 28, 1)],
    "fc": [(169, 128), (169, 128), (21632,), (784,), (784,), (28, 28, 1)],
    "control": [(13, 13, 128), (13, 13, 128), (21632,), (784,), (784,), (28, 28, 1)],
}


@pytest.fixture(scope="module")
def integers() -> networks.Weights:
    """Weights so small and sparse that every sum is exact in float32."""
    rng = np.random.default_rng(0)
    first = rng.integers(-3, 4, (16, 128)).astype("float32")
    second = rng.integers(-3, 4, (21632, 784)).astype("float32")
    return networks.Weights(first, second)


@pytest.mark.parametrize("network", networks.NETWORKS)
def test_layers_are_those_of_figure_8(network: str, integers: networks.Weights) -> None:
    model = networks.build(network, integers)
    back = networks.read_weights(model)
    np.testing.assert_array_equal(back.first, integers.first, strict=True)
    np.testing.assert_array_equal(back.second, integers.second, strict=True)
    assert [tuple(layer.output.shape[1:]) for layer in model.layers] == SHAPES[network]
    assert model.count_params() == 16 * 128 + 21632 * 784
    forms = {row.form for row in convfc.inspect(model)}
    assert forms == {"cnn": {"native"}, "fc": set(), "control": {"patch"}}[network]
    for name in ("first", "second"):
        assert model.get_layer(name).bias is None
        assert isinstance(model.get_layer(name).kernel_initializer, keras.initializers.HeUniform)


def test_all_three_compute_the_same_function(integers: networks.Weights) -> None:
    images = np.random.default_rng(1).integers(0, 4, (3, 28, 28, 1)).astype("float32")
    outputs = {
        network: keras.ops.convert_to_numpy(
            networks.build(network, integers)(networks.network_input(network, images))
        )
        for network in networks.NETWORKS
    }
    assert np.abs(outputs["cnn"]).max() < 2**24
    assert np.abs(outputs["cnn"]).max() > 0
    np.testing.assert_array_equal(outputs["fc"], outputs["cnn"])
    np.testing.assert_array_equal(outputs["control"], outputs["cnn"])


@pytest.mark.parametrize("network", networks.NETWORKS)
def test_first_layer_output_is_before_relu(network: str, integers: networks.Weights) -> None:
    images = np.random.default_rng(2).integers(0, 9, (4, 28, 28, 1)).astype("float64")
    output = networks.first_layer_output(network, integers.first, images)
    assert (output.shape, output.dtype) == ((4, 169, 128), np.float32)
    assert output.min() < 0
    # Position (1, 0) of the 13 x 13, which starts two rows down.
    expected = images[3, 2:6, 0:4].reshape(16) @ integers.first
    np.testing.assert_array_equal(output[3, 13], expected)


def test_first_weights_are_he_uniform_and_the_seeds() -> None:
    weights = networks.initial_weights(0)
    for values, fan_in in ((weights.first, 16), (weights.second, 21632)):
        limit = np.sqrt(6 / fan_in)
        assert values.dtype == np.float32
        assert 0.99 * limit < np.abs(values).max() <= np.float32(limit)
        # The variance of a mean of n uniform numbers: six standard deviations are never seen.
        assert abs(values.mean()) < 6 * limit / np.sqrt(3 * values.size)
    np.testing.assert_array_equal(networks.initial_weights(0).first, weights.first)
    assert not np.array_equal(networks.initial_weights(1).first, weights.first)


@pytest.mark.parametrize("initializer", INITIALIZERS)
def test_first_weights_have_the_scale_of_keras_initializers(initializer: str) -> None:
    """Keras draws the same layers itself; its numbers are others, their spread must be the same."""
    weights, filters = networks.initial_weights(3, 64, initializer), 64
    layers = (
        keras.layers.Conv2D(filters, 4, strides=2, kernel_initializer=initializer),
        keras.layers.Dense(784, kernel_initializer=initializer),
    )
    for layer, shape, own in zip(
        layers, ((1, 28, 28, 1), (1, 169 * filters)), (weights.first, weights.second), strict=True
    ):
        layer.build(shape)
        theirs = keras.ops.convert_to_numpy(layer.kernel.value).ravel()
        assert own.dtype == np.float32
        assert own.size == theirs.size
        # Six standard errors of a difference; numbers with shorter tails than a normal
        # distribution's, whose these are, have smaller ones.
        error = 6 * np.sqrt(2 / own.size)
        assert abs(own.var() / theirs.var() - 1) < np.sqrt(2) * error
        kurtoses = [
            float((each.astype(float) ** 4).mean() / each.var() ** 2) for each in (own, theirs)
        ]
        assert abs(kurtoses[0] - kurtoses[1]) < np.sqrt(24) * error


def test_unknown_network_is_refused(integers: networks.Weights) -> None:
    with pytest.raises(ArgumentError, match="expected 'cnn' or 'fc' or 'control'; got 'rnn'"):
        networks.build("rnn", integers)
