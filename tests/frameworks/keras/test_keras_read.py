"""Layers of Keras, read: what convfc computes of them is what Keras does, to the bit."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import pytest
import torch

import convfc
from convfc.errors import GeometryError, UnsupportedLayer, UnsupportedModel
from convfc.frameworks.keras import read
from convfc.registry import read_layer, room_of

FORMATS = ("channels_last", "channels_first")


@dataclass(frozen=True)
class Layer:
    """A layer's class by name, its positional arguments, and the input that it is tried on."""

    cls: str
    args: tuple[Any, ...]
    size: tuple[int, ...]
    channels: int = 3
    rest: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        rest = "-".join(f"{key}{value}" for key, value in self.rest.items())
        sizes = "x".join(map(str, self.size))
        return f"{self.cls}-{self.args}-{sizes}x{self.channels}-{rest}".replace(" ", "")

    def made(self, data_format: str = "channels_last") -> Any:
        """The layer, with small whole numbers as weights."""
        depthwise = "Depthwise" in self.cls or "Separable" in self.cls
        zeros = "depthwise_initializer" if depthwise else "kernel_initializer"
        options = {"data_format": data_format, zeros: "zeros", **self.rest}  # set below
        layer = getattr(keras.layers, self.cls)(*self.args, **options)
        first = data_format == "channels_first"
        layer.build(
            (None, self.channels, *self.size) if first else (None, *self.size, self.channels)
        )
        rng = np.random.default_rng(1)
        layer.set_weights([rng.integers(-4, 5, w.shape).astype("float32") for w in layer.weights])
        return layer

    def x(self) -> np.ndarray:
        rng = np.random.default_rng(2)
        return rng.integers(-4, 5, (2, *self.size, self.channels)).astype("float32")


def layer(cls: str, *args: Any, size: tuple[int, ...], channels: int = 3, **rest: Any) -> Layer:
    return Layer(cls, args, size, channels, rest)


# What "same" cuts depends on the parity of kernel and stride, and on which is larger.
TRANSPOSED = [
    layer("Conv1DTranspose", 2, kernel, size=(4,), strides=stride, padding=padding, **extra)
    for stride, kernels in {1: (2, 3), 2: (1, 2, 3, 4), 3: (1, 2, 3, 4)}.items()
    for kernel, padding in itertools.product(kernels, ("valid", "same"))
    for extra in ({}, *({"output_padding": more} for more in range(stride)))
]
SAME = [
    layer("Conv1D", 2, kernel, size=(size,), strides=stride, padding="same")
    for kernel, size, stride in itertools.product((2, 3), (5, 6), (1, 2, 3))
]
LAYERS = [
    *SAME,
    *TRANSPOSED,
    layer("Conv1D", 4, 3, size=(9,), padding="causal", dilation_rate=2),
    layer("Conv1D", 4, 3, size=(9,), padding="causal", strides=2, use_bias=False),
    layer("Conv1D", 4, 2, size=(8,), channels=4, groups=2),
    layer("Conv2D", 4, (3, 2), size=(7, 6), strides=(2, 1)),
    layer("Conv2D", 4, (3, 2), size=(7, 6), padding="same", dilation_rate=(2, 3)),
    layer("Conv2D", 6, 3, size=(7, 6), channels=4, groups=2, padding="same", activation="relu"),
    layer("Conv3D", 2, (2, 1, 3), size=(4, 3, 5), strides=(1, 2, 1), padding="same"),
    layer("Conv2DTranspose", 4, (3, 2), size=(4, 5), strides=(2, 3)),
    layer("Conv2DTranspose", 4, 3, size=(4, 5), strides=2, padding="same", use_bias=False),
    layer("Conv2DTranspose", 4, 3, size=(4, 5), dilation_rate=2),
    layer("Conv3DTranspose", 2, 2, size=(3, 2, 3), strides=2, padding="same"),
    layer("DepthwiseConv1D", 3, 2, size=(9,), padding="same"),
    layer("DepthwiseConv2D", 3, size=(7, 6), strides=2, padding="same", depth_multiplier=2),
    layer("DepthwiseConv2D", (2, 3), size=(7, 6), dilation_rate=2, use_bias=False),
]


def both(case: Layer, data_format: str) -> tuple[np.ndarray, np.ndarray]:
    """What Keras computes of a layer, and what convfc does that has read it, channels last."""
    made, x = case.made(data_format), case.x()
    given = np.moveaxis(x, -1, 1) if data_format == "channels_first" else x
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*backend.*")  # Keras says that they may differ
        theirs = keras.ops.convert_to_numpy(made(given))
    reading = read_layer(made, input_size=case.size)
    assert reading.order == data_format
    ours = np.asarray(reading.layer(x))
    if case.rest.get("activation") == "relu":
        ours = np.maximum(ours, 0)
    return np.moveaxis(theirs, 1, -1) if data_format == "channels_first" else theirs, ours


@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_a_layer_is_what_keras_computes(case: Layer) -> None:
    try:
        theirs, ours = both(case, "channels_last")
    except Exception as error:
        if not type(error).__module__.startswith("tensorflow"):
            raise
        pytest.skip("TensorFlow does not have every transposed layer")
    assert theirs.shape == ours.shape
    assert (theirs == ours).all()
    assert theirs.any(), "a comparison of zeros"


OTHER_ORDER = [case for case in LAYERS if case.cls not in ("Conv1D", "Conv1DTranspose")]


@pytest.mark.parametrize("case", OTHER_ORDER[::2], ids=str)
def test_channels_may_come_first(case: Layer) -> None:
    theirs, ours = both(case, "channels_first")
    assert theirs.shape == ours.shape
    assert (theirs == ours).all()


@pytest.mark.parametrize("data_format", FORMATS)
def test_the_matrix_of_a_layer_is_keras_on_flattened_inputs(data_format: str) -> None:
    case = layer("Conv2D", 4, (3, 2), size=(5, 4), strides=2, padding="same")
    made, x = case.made(data_format), case.x()
    if data_format == "channels_first":
        x = np.ascontiguousarray(np.moveaxis(x, -1, 1))
    A, b = convfc.conv_matrix(made, case.size), convfc.conv_offset(made, case.size)
    theirs = keras.ops.convert_to_numpy(made(x)).reshape(len(x), -1)
    assert (A @ x.reshape(len(x), -1).T + b[:, None] == theirs.T).all()
    assert (convfc.conv_operator(made, case.size) @ x[0].ravel() + b == theirs[0]).all()


def test_the_matrix_of_a_small_transposed_layer_cuts_where_keras_does() -> None:
    """Padding "same" cuts an odd element on one side only, which tensorflow#45999 is about."""
    cases = list(itertools.product((1, 2, 3, 4), (1, 2, 3), (1, 2, 3, 4, 5)))
    # Compiled one by one on JAX; sizes and kernels change at other paces than this one.
    for kernel, stride, n in cases[:: 3 if keras.config.backend() == "jax" else 1]:
        args = 2, (kernel, 5 - kernel), (stride, 4 - stride), "same"
        case = layer("Conv2DTranspose", *args, size=(n, 6 - n), channels=2)
        made, x = case.made(), case.x().reshape(2, -1)
        theirs = keras.ops.convert_to_numpy(made(case.x())).reshape(2, -1)
        A, b = convfc.conv_matrix(made, case.size), convfc.conv_offset(made, case.size)
        assert A.shape == (theirs.shape[1], x.shape[1]), str(case)
        assert (x @ A.T + b == theirs).all(), str(case)
        assert theirs.any(), "a comparison of zeros"


def test_lora_is_part_of_the_filters() -> None:
    made = layer("Conv2D", 4, 3, size=(5, 4)).made()
    made.enable_lora(2, b_initializer="ones")
    made.lora_kernel_a.assign(np.ones(made.lora_kernel_a.shape))
    found = read_layer(made, input_size=(5, 4)).layer
    before = keras.ops.convert_to_numpy(made._kernel.value)
    assert (found.filters == np.moveaxis(before, -1, 0) + 2).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_dtype_is_read_exactly(dtype: str) -> None:
    made = keras.layers.Conv2D(4, 3, dtype=dtype, data_format="channels_last")
    made.build((None, 5, 4, 2))
    found = read_layer(made, input_size=(5, 4)).layer
    theirs = keras.ops.convert_to_numpy(keras.ops.cast(made.kernel, "float32"))
    assert (found.filters.astype(np.float32) == np.moveaxis(theirs, -1, 0)).all()
    assert found.filters.dtype == (np.float32 if dtype == "bfloat16" else dtype)


def test_an_activation_is_named_since_it_is_not_part_of_the_layer() -> None:
    def name(activation: Any) -> str:
        made = keras.layers.Conv1D(2, 3, activation=activation, name="first")
        made.build((None, 9, 1))
        return read_layer(made, input_size=(9,)).layer.name

    assert name("relu") == "first, before its relu"
    assert name(None) == name("linear") == "first"


class Own(keras.layers.Conv2D):  # type: ignore[misc]
    def call(self, inputs: Any) -> Any:
        return -super().call(inputs)


def built(made: Any) -> Any:
    made.build((None, 8, 8, 2))
    return made


def model() -> Any:
    return keras.Sequential([keras.Input((8, 8, 2)), keras.layers.Conv2D(4, 3)])


REFUSED = {
    "unbuilt": (
        lambda: keras.layers.Conv2D(4, 3, name="it"),
        r"layer it: it has no weights yet; .* Remedy: call it once on an input",
    ),
    "own call": (
        lambda: built(Own(4, 3)),
        r"its class Own has its own call; .*keras\.layers\.Conv2D",
    ),
    "separable": (
        lambda: built(keras.layers.SeparableConv2D(4, 3)),
        r"it is two convolutions, one after the other; .* Remedy: make a DepthwiseConv and",
    ),
    "dense": (lambda: keras.layers.Dense(3), r"not a CONV layer that can be read; .* got Dense"),
    "model": (model, r"got Sequential\. Remedy: give one layer of the model, such as model\.get_l"),
}


@pytest.mark.parametrize(("make", "text"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_refused(make: Any, text: str) -> None:
    with pytest.raises(UnsupportedLayer, match=text):
        read_layer(make(), input_size=(8, 8))


def test_a_call_set_on_the_layer_itself_and_an_input_of_another_rank_are_refused() -> None:
    made = built(keras.layers.Conv2D(4, 3))
    with pytest.raises(GeometryError, match="input_size"):
        read_layer(made, input_size=(8,))
    made.convolution_op = lambda inputs, kernel: inputs
    with pytest.raises(UnsupportedLayer, match="has its own convolution_op"):
        read_layer(made, input_size=(8, 8))


def test_an_early_keras_on_pytorch_is_refused_where_it_cuts_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = built(keras.layers.Conv2DTranspose(4, 3, strides=2, padding="same"))
    monkeypatch.setattr(keras.config, "backend", lambda: "torch")
    read.read_layer(made, (8, 8))
    monkeypatch.setattr(keras, "__version__", "3.14.2")
    with pytest.raises(UnsupportedLayer, match=r"as no other backend does.*'keras>=3\.15'"):
        read.read_layer(made, (8, 8))
    made.padding = "valid"
    read.read_layer(made, (8, 8))


def test_verbs_that_keras_lacks_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedModel, match="to_fully_convolutional takes no models of Keras"):
        convfc.to_fully_convolutional(model(), np.zeros((1, 4, 4, 1)))
    with pytest.raises(UnsupportedModel, match="convert_optimizer_state takes no models of Keras"):
        convfc.convert_optimizer_state(None, model(), model())


def test_rooms_own_their_own() -> None:
    """Keras is imported here, and PyTorch's modules stay PyTorch's."""
    assert room_of(torch.nn.ReLU()).name == "PyTorch"
    assert room_of(keras.layers.ReLU(), kind="layer").name == "Keras"
    assert read_layer(torch.nn.Conv1d(1, 1, 1), input_size=(3,)).order == "channels_first"
