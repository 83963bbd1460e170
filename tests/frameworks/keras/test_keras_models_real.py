"""Whole networks of keras.applications: to FC layers, the same bits, and home."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import convfc
from convfc.frameworks.keras.room import ROOM


def made(name: str) -> keras.Model:
    keras.utils.set_random_seed(0)
    factory = getattr(keras.applications, name)
    # Not after softmax, which gives random networks tenths for every image.
    return factory(weights=None, input_shape=(32, 32, 3), classes=10, classifier_activation=None)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("MobileNetV2"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("ResNet50", "EfficientNetB0", "DenseNet121", "ConvNeXtTiny")
        ),
    ],
)
def test_a_real_network_goes_and_comes_home(name: str) -> None:
    cnn = made(name)
    x = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype("float32")
    fc = convfc.to_fc(cnn)
    forms = {ROOM.form_of(part) for part in ROOM.places(fc).values()}
    assert forms == {None, "patch"}
    expected = cnn.predict(x, verbose=0)
    assert len(np.unique(expected)) == expected.size
    np.testing.assert_array_equal(fc.predict(x, verbose=0), expected)
    back = convfc.to_conv(fc)
    assert [type(one) for one in back.layers] == [type(one) for one in cnn.layers]
    for ours, theirs in zip(back.get_weights(), cnn.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs, strict=True)


@pytest.mark.slow
def test_the_certificate_of_a_real_network_holds() -> None:
    cnn = made("MobileNetV2")
    x = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype("float32")
    certificate = convfc.verify(cnn, convfc.to_fc(cnn), x)
    assert certificate.holds
    assert len(certificate.layers) == 52
