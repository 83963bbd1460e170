"""The Keras layer of Algorithm 1 against the package's own im2col: the same bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import keras
import numpy as np
import pytest
from cases import CASES, Case

from convfc import ConvGeometry, im2col
from convfc.errors import ArgumentError, ShapeError
from convfc.frameworks.keras.layers import Im2Col

if TYPE_CHECKING:
    import pathlib

# Keras on torch hands NumPy 2 a tensor whose __array__ is of the old kind.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

FORMATS = ("channels_last", "channels_first")


def as_given(x: np.ndarray, data_format: str) -> np.ndarray:
    return np.moveaxis(x, -1, 1) if data_format == "channels_first" else x


IN_ORDER = [(case, FORMATS[0]) for case in CASES] + [(case, FORMATS[1]) for case in CASES[5::6]]


@pytest.mark.parametrize(("case", "data_format"), IN_ORDER, ids=str)
def test_layer_moves_what_im2col_moves(case: Case, data_format: str) -> None:
    x, *_ = case.integers(dtype=np.float32)
    layer = Im2Col(case.geometry, data_format=data_format)
    given = as_given(x, data_format)
    M = keras.ops.convert_to_numpy(layer(given))
    np.testing.assert_array_equal(M, im2col(x, case.geometry), strict=True)
    assert layer.compute_output_shape((None, *given.shape[1:])) == (None, *M.shape[1:])


@pytest.mark.parametrize("data_format", FORMATS)
def test_saved_model_computes_the_same(tmp_path: pathlib.Path, data_format: str) -> None:
    geometry = ConvGeometry(3, 6, (3, 2), stride=(2, 1), padding=((1, 0), (0, 2)), groups=3)
    x = np.random.default_rng(0).integers(-9, 10, (4, 7, 6, 3)).astype("float32")
    given = as_given(x, data_format)
    model = keras.Sequential([keras.Input(given.shape[1:]), Im2Col(geometry, data_format)])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].geometry == geometry
    assert loaded.layers[0].data_format == data_format
    np.testing.assert_array_equal(
        loaded.predict(given, verbose=0), im2col(x, geometry), strict=True
    )


@pytest.mark.parametrize(
    ("shape", "got"),
    [((None, 9, 9, 3), "3"), ((None, 9, 2), "9, 2"), ((None, None, 9, 2), "None, None, 9, 2")],
    ids=["channels", "rank", "unknown-size"],
)
def test_input_that_does_not_fit_is_refused(shape: tuple[int | None, ...], got: str) -> None:
    layer = Im2Col(ConvGeometry.valid(2, 4, (3, 3)), data_format="channels_last", name="stretch")
    with pytest.raises(ShapeError, match=rf"layer stretch: .* got \(.*{got}\)\. Remedy: give"):
        layer.build(shape)


def test_layout_is_keras_own_setting_when_left_out_and_an_unknown_one_is_refused() -> None:
    assert Im2Col(ConvGeometry.valid(1, 1, (2,))).data_format == keras.config.image_data_format()
    with pytest.raises(ArgumentError, match=r"data_format: no such choice; .* got 'channels_m"):
        Im2Col(ConvGeometry.valid(2, 4, (3, 3)), data_format="channels_middle")
