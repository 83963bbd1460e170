"""The figures show the run's numbers."""

from __future__ import annotations

import itertools
import pathlib
import sys

import matplotlib as mpl
import matplotlib.colors
import numpy as np
import pytest
from synthetic import make_run, synthetic_cost

from convfc import drawing
from convfc.frameworks.keras.backend import choose_backend
from convfc.paper import figures
from convfc.paper.findings import Record, read_record


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return read_record(make_run(tmp_path_factory.mktemp("figures") / "run"))


DIGIT = np.arange(28 * 28, dtype=np.float64).reshape(28, 28) % 251
FILTER = (np.arange(16, dtype=np.float64) - 7).reshape(1, 4, 4, 1)


def test_the_users_own_settings_change_nothing(record: Record, tmp_path: pathlib.Path) -> None:
    for name, own in (("usual", {}), ("own", {"font.size": 30, "svg.hashsalt": None})):
        with mpl.rc_context(own), drawing.house_style():
            drawing.save_figure(figures.histogram_figure(record, ["sgd"]), tmp_path, name)
    assert (tmp_path / "usual.svg").read_bytes() == (tmp_path / "own.svg").read_bytes()


def test_stretch_shows_the_patches_as_rows_of_m_and_their_product() -> None:
    panels = {axes.get_title(): axes for axes in figures.stretch_figure(DIGIT, FILTER).axes}
    shown = {title: np.asarray(axes.images[0].get_array()) for title, axes in panels.items()}
    rows = [
        DIGIT[up : up + 4, left : left + 4].ravel()
        for up in range(0, 28, 4)
        for left in range(0, 28, 4)
    ]
    assert (shown["M 49×16"] == np.array(rows)).all()
    assert (shown["K 16×1"] == FILTER.reshape(16, 1)).all()
    products = [[float((row * FILTER.ravel()).sum())] for row in rows]
    assert (shown["M K 49×1"] == products).all()
    assert (shown["output 7×7"] == np.reshape(products, (7, 7))).all()
    # The same patches are marked everywhere.
    image, matrix, output = (
        {patch.get_edgecolor(): patch.get_xy() for patch in panels[title].patches}
        for title in ("input 28×28, stride 4", "M 49×16", "output 7×7")
    )
    assert len(matrix) == 4
    for colour, (_, row) in matrix.items():
        up, left = divmod(round(row + 0.5), 7)
        assert image[colour] == (left * 4 - 0.5, up * 4 - 0.5)
        assert output[colour] == (left - 0.5, up - 0.5)


def test_networks_are_drawn_with_the_shapes_and_weights_of_the_models() -> None:
    if "keras" not in sys.modules:
        choose_backend("jax")
    import keras

    model = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Conv2D(3, 2, use_bias=False, name="first"),
            keras.layers.ReLU(name="re_lu_17"),
        ]
    )
    (axes,) = figures.networks_figure({"cnn": model}).axes
    small, large = "(None, 3, 3, 3)", "(None, 4, 4, 1)"
    assert [text.get_text() for text in axes.texts] == [
        *("CNN", "12 weights", "images"),
        *("first", "Conv2D, 12 weights", "in", large, "out", small),
        *("re_lu", "ReLU", "in", small, "out", small),
    ]


def test_losses_are_the_histories_in_each_networks_colour(record: Record) -> None:
    training, validation = figures.loss_figure(record, "adam").axes[:2]
    for axes, part in ((training, "loss"), (validation, "val_loss")):
        lines = {line.get_label(): line for line in axes.lines}
        assert set(lines) == {"CNN", "FC network", "control"}
        for network, label in figures.LABELS.items():
            trained = record.networks["float32", "adam", network]
            assert (lines[label].get_ydata() == getattr(trained, part)).all()
            assert lines[label].get_color() == figures.COLOURS[network]


def test_histograms_count_every_weight_in_the_networks_colour(record: Record) -> None:
    panel = figures.histogram_figure(record, ["adam"]).axes[0]
    filled, outline = panel.patches
    assert matplotlib.colors.to_hex(filled.get_facecolor()).upper() == figures.COLOURS["cnn"]
    assert matplotlib.colors.to_hex(outline.get_edgecolor()).upper() == figures.COLOURS["fc"]
    for shape in (filled, outline):
        # A step goes through every bin's left and right edge at its count, and the bins are 40.
        tops = shape.get_path().vertices[1:81:2, 1]
        assert len(tops) == 40
        assert tops.sum() == 16 * 128


def test_difference_draws_zero_in_the_band_and_the_rest_above(record: Record) -> None:
    above, band = figures.difference_figure(record).axes
    lines = {line.get_label(): line.get_ydata() for line in above.lines}
    for optimizer, label in (("adam", "Adam"), ("sgd", "SGD")):
        apart = record.weight_difference("float32", optimizer, "fc", "cnn")
        assert apart is not None
        shown = lines[f"FC network − CNN, {label}, float32"]
        assert np.isnan(shown[0])
        assert (shown[1:] == apart[1:]).all()
        assert np.isnan(lines[f"control − FC network, {label}, float32"]).all()
    assert len(lines["FC network − CNN, Adam, float64"]) == 3
    start = record.networks["float32", "sgd", "cnn"].first_layer[0].astype(np.float64)
    marks = {line.get_ydata()[0] for line in above.lines if line.get_linestyle() == ":"}
    assert 2.0**-24 * np.linalg.norm(start) in marks
    assert above.get_yscale() == "log"
    assert band.get_yscale() == "linear"
    assert [tick.get_text() for tick in band.get_yticklabels()] == ["exactly 0"]
    full = [line for line in band.lines if np.isfinite(line.get_ydata()).sum() == 9]
    assert {line.get_color() for line in full} == {figures.COLOURS["control"]}
    assert len(full) == 2


def test_difference_shows_a_control_that_is_not_zero(tmp_path: pathlib.Path) -> None:
    record = read_record(make_run(tmp_path / "run", control_difference=1e-3))
    above, band = figures.difference_figure(record).axes
    lines = {line.get_label(): line.get_ydata() for line in above.lines}
    assert (lines["control − FC network, Adam, float32"][1:] > 0).all()
    assert max(np.isfinite(line.get_ydata()).sum() for line in band.lines) == 1


def test_cost_leaves_gaps_where_nothing_was_measured() -> None:
    panels = itertools.product(("time", "memory"), ("image", "kernel", "batch"))
    gaps = {
        (*place, number)
        for place, axes in zip(panels, figures.cost_figure(synthetic_cost()).axes, strict=True)
        for number, line in enumerate(axes.lines)
        if np.isnan(line.get_ydata()).any()
    }
    sliding, product, native = 0, 1, 3
    assert gaps == {
        ("time", "image", sliding),
        ("memory", "image", sliding),
        ("time", "batch", product),
        ("memory", "batch", product),
        ("memory", "kernel", native),
    }


def test_cost_draws_the_axes_that_are_there() -> None:
    cost = synthetic_cost()
    cost["axes"] = {"batch": cost["axes"]["batch"], "kernel": []}
    time, memory = figures.cost_figure(cost).axes
    assert memory.get_xlabel() == "images in a batch"
    assert time.get_ylabel() == "time in milliseconds"
