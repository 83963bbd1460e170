"""One CONV layer of Keras as an FC layer: the same numbers, files and settings, and back again."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import pytest
from keras import layers, ops
from keras_fixtures import BACKEND, needs_first, numpy
from test_keras_read import Layer, layer

from convfc.errors import ShapeError, UnsupportedLayer
from convfc.frameworks.keras import forms
from convfc.frameworks.keras.grouped import GroupedDense
from convfc.registry import read_layer

if TYPE_CHECKING:
    import pathlib


LAYERS = [
    layer("Conv1D", 4, 3, size=(9,), padding="causal", strides=2, use_bias=False),
    layer("Conv1D", 4, 2, size=(8,), channels=4, groups=2, activation="softmax"),
    layer("Conv2D", 4, (3, 2), size=(7, 6), padding="same", dilation_rate=(2, 3)),
    layer("Conv2D", 6, 3, size=(7, 6), channels=4, groups=2, padding="same", strides=2),
    layer("Conv2D", 5, 1, size=(4, 3)),
    layer("Conv3D", 2, (2, 1, 3), size=(4, 3, 5), strides=(1, 2, 1), padding="same"),
    layer("Conv1DTranspose", 2, 3, size=(4,), strides=2, output_padding=1),
    layer("Conv2DTranspose", 4, 3, size=(4, 5), strides=2, padding="same", activation="relu"),
    layer("Conv3DTranspose", 2, 2, size=(3, 2, 3), strides=2, padding="same"),
    layer("DepthwiseConv1D", 3, size=(9,), padding="same", depth_multiplier=2),
    layer("DepthwiseConv2D", (2, 3), size=(7, 6), dilation_rate=2, depth_multiplier=2),
    layer("SeparableConv1D", 4, 3, size=(9,), padding="same", depth_multiplier=2),
    layer("SeparableConv2D", 4, (2, 3), size=(7, 6), strides=2, activation="relu"),
]
WAYS: list[dict[str, Any]] = [
    {"form": "patch"},
    {"form": "patch", "product": "matrix"},
    {"form": "patch", "product": "matrix", "separate": False},
    {"form": "weight"},
]
FIRST = [case for case in LAYERS if case.cls not in ("Conv1D", "Conv1DTranspose", "Conv3D")]


def same(ours: Any, theirs: Any) -> None:
    """The same bits."""
    if isinstance(ours, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            same(one, other)
    else:
        np.testing.assert_array_equal(ours, theirs, strict=True)


def check(case: Layer, data_format: str) -> None:
    made, x = case.made(data_format), case.x()
    x = np.moveaxis(x, -1, 1) if data_format == "channels_first" else x
    expected, weights = numpy(made(x)), numpy(made.weights)
    assert expected.any(), "a comparison of zeros"
    for way in WAYS:
        forms.to_form(made, **way)
        assert forms.form_of(made) == way["form"]
        assert type(made).__name__ == case.cls
        same(numpy(made(x)), expected)
        forms.to_native(made)
        assert type(made) is getattr(layers, case.cls)
        same(numpy(made.weights), weights)
    assert forms.form_of(made) == "native"


@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_every_form_computes_what_the_layer_does_and_goes_back(case: Layer) -> None:
    check(case, "channels_last")


@needs_first
@pytest.mark.parametrize("case", FIRST[::2], ids=str)
def test_channels_may_come_first(case: Layer) -> None:
    check(case, "channels_first")


@needs_first
def test_an_activation_over_the_channels_sees_them_where_they_are() -> None:
    check(layer("Conv2D", 4, 2, size=(5, 6), activation="softmax"), "channels_first")


def test_the_fc_layers_are_dense() -> None:
    plain, groups = (case.made() for case in (LAYERS[2], LAYERS[3]))
    for made in (plain, groups):
        forms.to_form(made, "patch")
    assert type(plain.fc) is layers.Dense
    assert plain.fc.kernel.shape == (18, 4)
    assert [type(each) for each in groups.fc] == [layers.Dense] * 2
    assert tuple(groups.fc[0].kernel.shape) == (18, 3)
    many = layer("DepthwiseConv2D", 2, size=(3, 3), channels=33).made()
    forms.to_form(many, "patch")
    assert type(many.fc) is GroupedDense
    assert tuple(many.fc.kernel.shape) == (33, 4, 1)
    separable = LAYERS[-1].made()
    forms.to_form(separable, "patch")
    assert type(separable.fc) is layers.Dense
    assert [type(each) for each in separable.depthwise_fc] == [layers.Dense] * 3
    forms.to_form(separable, "weight")
    assert tuple(separable.matrix.shape) == (3, 4)
    assert tuple(separable.depthwise_matrix.shape) == (6, 3)


@pytest.mark.parametrize("n", [2, 3, 7, 10], ids=lambda n: LAYERS[n].cls)
def test_a_layer_in_a_form_is_read_as_the_layer(n: int) -> None:
    made = LAYERS[n].made()
    expected = read_layer(made, input_size=LAYERS[n].size).layer
    for form in ("patch", "weight"):
        forms.to_form(made, form)
        found = read_layer(made, input_size=LAYERS[n].size).layer
        same(found.filters, expected.filters)
        same(found.bias, expected.bias)
        assert found.geometry == expected.geometry


def network(**options: Any) -> Any:
    """Every kind of layer, one of them called twice, one in a model of its own."""
    x = inputs = keras.Input((8, 7, 2))
    options = {"padding": "same", **options}
    shared = layers.Conv2D(2, 3, name="shared", **options)
    x = shared(shared(x))
    x = keras.Sequential([keras.Input((8, 7, 2)), layers.Conv2D(4, 2, groups=2, **options)])(x)
    x = layers.Conv2DTranspose(3, 2, strides=2, name="up", **options)(x)
    options = {k.replace("kernel", "depthwise"): v for k, v in options.items() if "kernel" in k}
    x = layers.DepthwiseConv2D(3, strides=2, padding="same", name="depthwise", **options)(x)
    x = layers.SeparableConv2D(2, 2, name="separable")(x)
    return keras.Model(inputs, layers.Flatten()(x))


def convs(model: Any) -> list[Any]:
    return [each for each in model._flatten_layers() if forms.form_of(each)]


def convert(model: Any, form: str = "patch", **rest: Any) -> Any:
    for each in convs(model):
        forms.to_form(each, form, **rest)
    return model


def back(model: Any) -> Any:
    for each in convs(model):
        if forms.form_of(each) != "native":
            forms.to_native(each)
    return model


def fill(model: Any, *, whole: bool = True) -> Any:
    rng = np.random.default_rng(3)
    draw = rng.normal if not whole else lambda size: rng.integers(-1, 2, size)
    for weight in model.weights:
        weight.assign(draw(size=weight.shape).astype("float32"))
    return model


def images(*, whole: bool = True) -> np.ndarray:
    rng = np.random.default_rng(4)
    x = rng.integers(-2, 3, (2, 8, 7, 2)) if whole else rng.normal(size=(2, 8, 7, 2))
    return x.astype("float32")


def total(y: Any, outputs: Any) -> Any:
    return ops.sum(y * outputs, axis=-1)


def trained(model: Any, x: np.ndarray) -> list[Any]:
    """The weights after a step whose length is the gradient, as the CNN has them."""
    # In TensorFlow's graph a step of plain Dense networks, too, differs from run to run.
    eager = BACKEND == "tensorflow"
    model.compile(keras.optimizers.SGD(1.0), total, run_eagerly=eager)
    y = np.resize(np.array([1, -1, 2], "float32"), (len(x), *model.output_shape[1:]))
    model.train_on_batch(x, y)
    return numpy(back(model).weights)


def test_gradients_are_exact() -> None:
    expected = trained(fill(network()), images())
    for way in WAYS[1:3]:
        same(trained(convert(fill(network()), **way), images()), expected)
    assert all(weight.any() for weight in expected)


def test_untouched_layers_give_the_bits_of_the_cnn_on_real_numbers() -> None:
    x = images(whole=False)
    cnn = fill(network(), whole=False)
    expected = numpy(cnn(x)), trained(cnn, x)
    for form in ("patch", "weight"):
        fc = convert(fill(network(), whole=False), form)
        same(numpy(fc(x)), expected[0])
        same(trained(fc, x), expected[1])


def test_predict_and_fit() -> None:
    cnn, x = fill(network()), images()
    expected = cnn.predict(x, verbose=0)
    fc = convert(cnn, product="matrix")
    fc.predict_function = None
    same(fc.predict(x, verbose=0), expected)
    fc.compile(keras.optimizers.SGD(1e-6), "mse")
    history = fc.fit(x, expected + 1, epochs=2, verbose=0)
    assert history.history["loss"][1] < history.history["loss"][0]


@pytest.mark.parametrize("way", WAYS[::2] + WAYS[3:], ids=str)
def test_weight_files_of_the_cnn_are_those_of_the_fc_network(
    tmp_path: pathlib.Path, way: dict[str, Any]
) -> None:
    cnn, fc = fill(network(), whole=False), convert(network(), **way)
    cnn.save_weights(tmp_path / "cnn.weights.h5")
    fc.load_weights(tmp_path / "cnn.weights.h5")
    x = images(whole=False)
    same(
        [numpy(kernel_and_bias(each)) for each in convs(fc)],
        [numpy(kernel_and_bias(each)) for each in convs(cnn)],
    )
    fc.save_weights(tmp_path / "fc.weights.h5")
    fresh = network()
    fresh.load_weights(tmp_path / "fc.weights.h5")
    same(numpy(fresh.weights), numpy(cnn.weights))
    same(numpy(fresh(x)), numpy(cnn(x)))


def kernel_and_bias(made: Any) -> list[Any]:
    names = ("kernel", "depthwise_kernel", "pointwise_kernel", "bias")
    return [getattr(made, name) for name in names if hasattr(made, name)]


@pytest.mark.filterwarnings("ignore:Skipping nested container:UserWarning")
def test_other_weight_files_are_refused(tmp_path: pathlib.Path) -> None:
    fc = convert(network())
    other = network(use_bias=False)
    other.save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(ValueError, match="layer shared: another number of variables; expected 2"):
        fc.load_weights(tmp_path / "other.weights.h5")


def some(kind: str) -> Any:
    """A network in patch form, as a tool leaves it."""
    fc = convert(fill(network(), whole=False))
    if kind == "lora":
        for each in convs(fc):
            each.enable_lora(2, b_initializer="ones")
    elif kind == "int8":
        fc.quantize("int8")
    elif kind == "weight":
        convert(fc, "weight")
    return fc


@pytest.mark.filterwarnings("ignore:.*does not have a `quantize` method:UserWarning")
@pytest.mark.parametrize("kind", ["plain", "lora", "int8", "weight"])
def test_a_saved_model_is_the_model(tmp_path: pathlib.Path, kind: str) -> None:
    fc, x = some(kind), images(whole=False)
    fc.save(tmp_path / "fc.keras")
    loaded = keras.saving.load_model(tmp_path / "fc.keras")
    same(loaded.predict(x, verbose=0), fc.predict(x, verbose=0))
    configs = [[each.get_config() for each in convs(model)] for model in (loaded, fc)]
    assert json.dumps(configs[0]) == json.dumps(configs[1])
    assert all(
        forms.form_of(each) == ("weight" if kind == "weight" else "patch") for each in convs(loaded)
    )
    if kind == "int8":
        assert loaded.get_layer("up").fc.quantization_mode == "int8"
    if kind == "lora":
        assert loaded.get_layer("up").fc.lora_enabled


LOADING = """
import sys, keras
try:
    keras.saving.load_model(sys.argv[1])
except TypeError as error:
    assert "Could not locate class" in str(error), error
import convfc.frameworks.keras.forms
model = keras.saving.load_model(sys.argv[1])
print(type(model.get_layer("up").fc) is keras.layers.Dense)
"""


def test_another_process_loads_it_once_it_has_imported_the_forms(tmp_path: pathlib.Path) -> None:
    convert(network()).save(tmp_path / "fc.keras")
    command = [sys.executable, "-W", "ignore", "-c", LOADING, str(tmp_path / "fc.keras")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.stdout.split() == ["True"], done.stderr


def test_a_model_built_from_its_config_starts_as_the_cnn_does() -> None:
    def started(config: dict[str, Any], cls: Any) -> list[Any]:
        keras.utils.set_random_seed(5)
        made = cls.from_config(config)
        made.build((None, 5, 6, 4))
        after = layers.Dense(3)
        after.build((None, 2))
        if cls is not layers.Conv2D:
            forms.to_native(made)
        return numpy([*made.weights, after.kernel])

    made = layers.Conv2D(4, 3, groups=2)
    made.build((None, 5, 6, 4))
    config = made.get_config()
    config["kernel_initializer"]["config"]["seed"] = None
    forms.to_form(made, "patch")
    of_form = {**made.get_config(), "kernel_initializer": config["kernel_initializer"]}
    same(started(of_form, type(made)), started(config, layers.Conv2D))


@keras.saving.register_keras_serializable(package="tests")
class FirstRow(keras.regularizers.Regularizer):  # type: ignore[misc]
    """It looks at a part of the kernel that only the CONV layout knows."""

    def __call__(self, kernel: Any) -> Any:
        return ops.sum(ops.square(kernel[0])) / 4

    def get_config(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("separate", [None, False])
def test_what_acts_on_a_kernel_acts_on_the_conv_layout(separate: bool | None) -> None:
    options = {
        "kernel_regularizer": FirstRow(),
        "kernel_constraint": keras.constraints.MaxNorm(0.5, axis=[0, 1]),
    }
    cnn, x = fill(network(**options)), images()
    losses = numpy(cnn.losses)
    expected = trained(cnn, x)
    fc = convert(fill(network(**options)), separate=separate)
    assert type(fc.layers[2].layers[0].fc) is GroupedDense
    same(sorted(map(float, numpy(fc.losses))), sorted(map(float, losses)))
    fc = keras.models.clone_model(fc)
    convert(fill(back(fc)), separate=separate)
    same(trained(fc, x), expected)


def test_groups_that_are_regularised_together_are_not_apart() -> None:
    made = layer("Conv1D", 4, 2, size=(8,), channels=4, groups=2, bias_regularizer="l2").made()
    with pytest.raises(UnsupportedLayer, match=r"all groups together\. Remedy: leave out separate"):
        forms.to_form(made, "patch", separate=True)
    assert forms.form_of(made) == "native"


def test_lora_is_handed_on_and_folded_in() -> None:
    made = layer("Conv2D", 4, 3, size=(5, 4), channels=2, groups=2, kernel_regularizer=None).made()
    before, x = numpy(made.kernel), np.ones((1, 5, 4, 2), "float32")
    forms.to_form(made, "patch")
    made.enable_lora(2, b_initializer="ones")
    for child in made.fc:
        child.lora_kernel_a.assign(np.ones(child.lora_kernel_a.shape))
    same(numpy(made.kernel), before + 2)
    lifted = numpy(made(x))
    forms.to_native(made)
    same(numpy(made.kernel), before + 2)
    same(numpy(made(x)), lifted)
    assert made._kernel.trainable
    regular = layer("Conv2D", 4, 3, size=(5, 4), kernel_regularizer="l2").made()
    forms.to_form(regular, "patch")
    regular.enable_lora(2)
    assert len(regular.losses) == 2, "of the factors; the kernel does not train"


def test_lora_needs_a_dense() -> None:
    made = LAYERS[3].made()
    for way in WAYS[2:]:
        forms.to_form(made, **way)
        with pytest.raises(UnsupportedLayer, match="no Dense here that takes LoRA"):
            made.enable_lora(2)


def test_int8_comes_back_rounded_with_a_warning() -> None:
    made = layer("Conv2D", 4, 3, size=(5, 4)).made()
    made.kernel.assign(np.random.default_rng(0).normal(size=made.kernel.shape))
    before = numpy(made.kernel)
    forms.to_form(made, "patch")
    made.fc.quantize("int8")
    step = np.abs(before).max((0, 1, 2)) / 127
    forms.to_native(made)
    after = numpy(made.kernel)
    assert (after != before).any()
    assert (np.abs(after - before) <= step * 0.51).all()
    assert made._kernel.trainable
    assert after.dtype == np.float32


def test_what_is_put_in_the_place_of_a_dense_is_called() -> None:
    made, x = layer("Conv2D", 4, 3, size=(5, 4)).made(), np.ones((1, 5, 4, 3), "float32")
    expected = numpy(made(x))
    forms.to_form(made, "patch")

    class Twice(layers.Dense):  # type: ignore[misc]
        def call(self, inputs: Any, training: Any = None) -> Any:
            return 2 * super().call(inputs)

    child = made.fc
    twice = Twice(4)
    twice.build((None, 27))
    twice.set_weights(child.get_weights())
    made.fc = twice
    same(numpy(made(x)), 2 * expected)
    assert made.weights == twice.weights
    with pytest.raises(UnsupportedLayer, match=f"layer {made.name}: a Twice has taken the place"):
        forms.to_native(made)
    assert forms.form_of(made) == "patch"
    made.fc = layers.Dense(4, use_bias=False)
    made.fc.build((None, 26))
    with pytest.raises(UnsupportedLayer, match="its FC layer has no bias, unlike the CONV layer"):
        forms.to_native(made)
    made.fc = layers.Dense(4)
    made.fc.build((None, 26))
    with pytest.raises(UnsupportedLayer, match=r"its FC kernel is \(26, 4\), not \(27, 4\)"):
        forms.to_native(made)
    made.fc = child
    child.call = lambda inputs: ops.matmul(inputs, child.kernel) * 0
    assert not numpy(made(x)).any()
    assert made.get_config()["form"] == "patch"


class Own(layers.Conv2D):  # type: ignore[misc]
    def call(self, inputs: Any) -> Any:
        return -super().call(inputs)


class Named(layers.Conv2D):  # type: ignore[misc]
    """A class of the user's that computes what its base does."""

    def told(self) -> str:
        return "named"


def with_lora() -> Any:
    made = layer("Conv2D", 4, 3, size=(5, 4)).made()
    made.enable_lora(2)
    return made


def own() -> Any:
    made = Own(4, 3)
    made.build((None, 8, 8, 2))
    return made


REFUSED = {
    "own call": (own, "its class Own has its own call"),
    "unbuilt": (lambda: layers.Conv2D(4, 3), "it has no weights yet"),
    "lora": (with_lora, r"it has LoRA factors .* Remedy: convert first, then enable_lora"),
    "quantised": (
        lambda: layers.Conv2D(4, 3, dtype="int8_from_float32"),
        r"it is quantised \(int8\)|it has no weights yet",
    ),
}


@pytest.mark.parametrize(("make", "text"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_converted_is_refused(make: Any, text: str) -> None:
    made = make()
    assert forms.obstacle(made).where == f"layer {made.name}"
    with pytest.raises(UnsupportedLayer, match=text):
        forms.to_form(made, "patch")


def test_a_class_of_the_users_stays_what_it_is() -> None:
    made, x = Named(4, 3), np.ones((1, 5, 5, 2), "float32")
    expected = numpy(made(x))
    forms.to_form(made, "patch")
    assert isinstance(made, Named)
    assert made.told() == "named"
    same(numpy(made(x)), expected)
    copy = type(made).from_config(made.get_config())
    copy.build((None, 5, 5, 2))
    assert type(copy) is type(made)
    forms.to_native(made)
    assert type(made) is Named


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_a_layer_that_is_built_while_a_model_is_traced_starts_as_the_cnn_does(dtype: str) -> None:
    def inside(conv: Any) -> Any:
        class Inside(keras.Model):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__(dtype=dtype)
                self.conv = conv

            def call(self, inputs: Any) -> Any:
                return self.conv(inputs)

        model = Inside()
        return model, model.predict(images(whole=False), verbose=0)

    made = layers.Conv2D(4, 3, dtype=dtype, kernel_initializer=keras.initializers.HeNormal(seed=1))
    config = made.get_config()
    made.build((None, 8, 7, 2))
    forms.to_form(made, "patch")
    _, expected = inside(layers.Conv2D.from_config(config))
    model, outputs = inside(type(made).from_config(made.get_config()))
    assert forms.form_of(model.conv) == "patch"
    same(outputs, expected)
    same(numpy(model.conv.kernel), numpy(made.kernel))


class Subclassed(keras.Model):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.stem = layers.Conv2D(3, 3)
        self.branches = [layers.Conv2D(2, 2, groups=1), layers.DepthwiseConv2D(2)]

    def call(self, inputs: Any) -> Any:
        x = self.stem(inputs)
        return ops.concatenate([branch(x) for branch in self.branches], -1)


def test_a_subclassed_model_is_converted_where_it_stands(tmp_path: pathlib.Path) -> None:
    model, x = Subclassed(), images()
    expected = model.predict(x, verbose=0)
    model.save_weights(tmp_path / "it.weights.h5")
    convert(model)
    model.predict_function = None
    same(model.predict(x, verbose=0), expected)
    model.load_weights(tmp_path / "it.weights.h5")
    same(model.predict(x, verbose=0), expected)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_precision_stays(dtype: str) -> None:
    made, x = layers.Conv2D(4, 3, dtype=dtype), images(whole=False)
    expected = numpy(made(x))
    forms.to_form(made, "patch")
    assert made.fc.dtype_policy.name == dtype
    assert made.fc.kernel.dtype == made.dtype
    same(numpy(made(x)), expected)
    made.product = "matrix"
    product = made(x)
    assert keras.backend.standardize_dtype(product.dtype) == made.compute_dtype
    forms.to_native(made)
    same(numpy(made(x)), expected)
    assert made.kernel.dtype == made.dtype


def test_what_does_not_train_does_not_train_after() -> None:
    for form, frozen in itertools.product(("patch", "weight"), ("layer", "kernel")):
        made = layer("Conv2D", 4, 2, size=(5, 4), channels=4, groups=2).made()
        (made if frozen == "layer" else made._kernel).trainable = False
        count = 0 if frozen == "layer" else 1
        assert len(made.trainable_variables) == count
        forms.to_form(made, form)
        assert len(made.trainable_variables) == (2 if form == "patch" and count else count)
        forms.to_native(made)
        assert len(made.trainable_variables) == count
        made.trainable = False
        made.trainable = True
        assert len(made.trainable_variables) == 2


def test_inputs_of_every_size() -> None:
    made = layers.Conv2D(3, 3, strides=2, padding="same", bias_initializer="ones")
    model = keras.Sequential([keras.Input((None, None, 2)), made])
    sizes = [(5, 6), (8, 7), (5, 6)]
    x = [np.ones((2, *size, 2), "float32") for size in sizes]
    expected = [model.predict(each, verbose=0) for each in x]
    convert(fill(model))
    expected = [numpy(model(each)) for each in x]
    made.product = "matrix"
    same([numpy(model(each)) for each in x], expected)
    made.product, model.predict_function = "auto", None
    same([model.predict(each, verbose=0) for each in x], expected)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow's graphs have no sizes")
def test_a_graph_without_sizes_is_refused_if_it_needs_m() -> None:
    model = keras.Sequential([keras.Input((None, None, 2)), layers.Conv2D(3, 3, name="first")])
    convert(model, product="matrix")
    model.compile(jit_compile=False)
    with pytest.raises(ShapeError, match="layer first: M cannot be built in a graph"):
        model.predict(((np.ones((2, n, n, 2), "float32"),) for n in (5, 6, 7)), verbose=0)
