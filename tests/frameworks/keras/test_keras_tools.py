"""Tools of Keras that know Dense layers, or matrices, on what were CONV layers."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import pytest
from keras import layers
from keras_fixtures import BACKEND, numpy
from sklearn.datasets import load_digits

import convfc
from convfc.errors import UnsupportedLayerWarning

if TYPE_CHECKING:
    import pathlib

FORMER = ("first", "second")
"""The layers that were CONV layers."""
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network() -> keras.Sequential:
    keras.utils.set_random_seed(0)
    parts = [
        keras.Input((8, 8, 1), name="x"),
        layers.Conv2D(16, 3, padding="same", activation="relu", name="first"),
        layers.Conv2D(16, 3, strides=2, groups=2, activation="relu", name="second"),
        layers.Flatten(name="flat"),
        layers.Dense(10, name="head"),
    ]
    return keras.Sequential(parts, name="net")


def images(count: int = 4) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, 8, 8, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    read = load_digits()
    return (read.images[..., None] / 16).astype(np.float32), read.target


@pytest.fixture(scope="module")
def cnn(digits: tuple[np.ndarray, np.ndarray]) -> keras.Sequential:
    """It tells digits apart."""
    model, (x, kinds) = network(), digits
    model.compile(keras.optimizers.Adam(0.01), LOSS)
    model.fit(x[:1200], kinds[:1200], batch_size=50, epochs=3, verbose=0)
    return model


def accuracy(model: Any, digits: tuple[np.ndarray, np.ndarray]) -> float:
    x, kinds = digits
    found = numpy(model(x[1200:])).argmax(-1)
    return float((found == kinds[1200:]).mean())


def test_lora_of_former_conv_layers_trains_and_is_merged(
    cnn: keras.Sequential, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    """To another order of the digits."""
    fc = convfc.to_fc(cnn)
    fc.get_layer("head").trainable = False
    for name in FORMER:
        fc.get_layer(name).enable_lora(2)
    ends = {weight.path.rpartition("/")[2] for weight in fc.trainable_weights}
    assert ends == {"bias", "lora_kernel_a", "lora_kernel_b"}
    x, kinds = digits[0][:200], (digits[1][:200] + 1) % 10
    fc.compile(keras.optimizers.Adam(0.05), LOSS)
    told = fc.fit(x, kinds, batch_size=50, epochs=3, verbose=0).history["loss"]
    assert told[-1] < told[0] / 2
    back = convfc.to_conv(fc)
    assert [type(layer) for layer in back.layers] == [type(layer) for layer in cnn.layers]
    child = fc.get_layer("first").fc
    merged = numpy(child.kernel)  # Keras's own sum of the kernel and its factors
    assert (merged != numpy(child._kernel)).any()
    assert (numpy(back.get_layer("first").kernel).reshape(9, 16) == merged).all()
    before, after = (numpy(model.get_layer("first").kernel) for model in (cnn, back))
    added = (after - before).reshape(9, 16)
    assert np.linalg.matrix_rank(added, tol=1e-4) == 2
    assert (numpy(cnn.get_layer("head").kernel) == numpy(back.get_layer("head").kernel)).all()


def size(model: Any) -> int:
    """Bytes of the layers that were CONV layers."""
    weights = [weight for name in FORMER for weight in model.get_layer(name).weights]
    return sum(numpy(weight).nbytes for weight in weights)


@pytest.mark.filterwarnings("ignore:.*does not have a `quantize` method:UserWarning")
def test_int8_of_former_conv_layers(
    cnn: keras.Sequential, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    """Keras quantises no CONV layer."""
    left = convfc.to_conv(convfc.to_fc(cnn))
    left.quantize("int8")
    assert [left.get_layer(name).quantization_mode for name in FORMER] == [None, None]
    fc = convfc.to_fc(cnn)
    fc.quantize("int8")
    assert {child.quantization_mode for child in fc.get_layer("second").fc} == {"int8"}
    assert size(cnn) == 4 * (9 * 16 + 16 + 72 * 16 + 16)
    assert size(fc) == 9 * 16 + 72 * 16 + 4 * (2 * 16 + 2 * 16)  # biases, and scales of filters
    exact = accuracy(cnn, digits)
    assert exact > 0.85
    assert abs(accuracy(fc, digits) - exact) < 0.02
    with pytest.warns(UnsupportedLayerWarning) as told:
        back = convfc.to_conv(fc)
    (said,) = [str(each.message) for each in told if each.category is UnsupportedLayerWarning]
    assert said.startswith("first, second: only the rounded weights come back: the quantised FC")
    assert type(back.get_layer("second")) is layers.Conv2D
    assert abs(accuracy(back, digits) - exact) < 0.02
    before, after = (numpy(model.get_layer("second").kernel) for model in (cnn, back))
    step = np.abs(before).max((0, 1, 2)) / 127
    assert (before != after).any()
    assert (np.abs(before - after) <= step * 0.51).all()


@pytest.mark.parametrize("converted", [False, True])
def test_what_is_exported_multiplies_and_does_not_convolve(
    tmp_path: pathlib.Path, converted: bool
) -> None:
    """To what Keras exports on this backend; and the CNN's, which does convolve."""
    model, x = network(), images(1)
    if converted:
        model = convfc.to_fc(model, product="matrix")
    expected, path = numpy(model(x)), tmp_path / "exported"
    if BACKEND == "torch":
        import onnx
        import onnxruntime

        signature = [keras.InputSpec(shape=x.shape, dtype="float32", name="x")]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter
            model.export(path, format="onnx", verbose=False, input_signature=signature)
        names = {node.op_type for node in onnx.load(path).graph.node}
        session = onnxruntime.InferenceSession(path)
        np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, atol=1e-5)
    elif BACKEND == "tensorflow":
        import tensorflow as tf

        model.export(path, format="tf_saved_model", verbose=False)
        served = tf.saved_model.load(path)
        graph = served.signatures["serving_default"].graph.as_graph_def()
        names = {node.op for function in graph.library.function for node in function.node_def}
        np.testing.assert_allclose(served.serve(x), expected, atol=1e-5)
    else:
        import jax

        program = jax.export.export(jax.jit(model))(jax.ShapeDtypeStruct(x.shape, x.dtype))
        text = program.mlir_module()
        words = {"stablehlo.dot_general": "MatMul", "stablehlo.convolution": "Conv"}
        names = {name for word, name in words.items() if word in text}
        np.testing.assert_allclose(program.call(x), expected, atol=1e-5)
    assert "MatMul" in names
    assert any(name.startswith("Conv") for name in names) != converted


@pytest.mark.skipif(BACKEND != "torch", reason="parameters() is PyTorch's")
def test_parameters_on_pytorch_are_those_of_the_fc_layers() -> None:
    model, x = convfc.to_fc(network()), images()
    for shape in ((9, 16), (3, 3, 1, 16)):
        held = [tuple(each.shape) for each in model.parameters()]
        assert shape in held
        assert len(held) == len(model.trainable_weights)
        model(x).sum().backward()
        assert all(each.grad is not None for each in model.parameters())
        if shape == (9, 16):
            convfc.to_conv(model, inplace=True)


def test_muon_takes_the_kernels_of_the_weight_form() -> None:
    """It is told by what it keeps: moments of Adam's of whatever it does not take itself."""
    taken = {}
    for form, model in (("native", network()), ("weight", convfc.to_fc(network(), form="weight"))):
        muon = keras.optimizers.Muon(0.01, exclude_layers=["head"])
        model.compile(muon, LOSS)
        model.train_on_batch(images(), np.arange(4))
        kept = zip(model.trainable_weights, muon.adam_velocities, strict=True)
        taken[form] = [tuple(weight.shape) for weight, adams in kept if adams is None]
    assert taken == {"native": [], "weight": [(9, 16), (72, 16)]}
