"""What the text of each preset says is so, in the numbers that the page's model makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pytest
from browser import PRESETS

from convfc import ConvGeometry, conv_matrix, im2col
from convfc.explorer.state import state_layer

if TYPE_CHECKING:
    from model import Model


@dataclass
class Shown:
    """A preset: its text, its numbers as arrays, its settings, and all that the model says."""

    text: str
    x: np.ndarray
    filters: np.ndarray
    M: np.ndarray
    planes: np.ndarray  # (*output, f)
    settings: dict[str, Any]
    model: dict[str, Any]

    def windows(self, group: int = 0) -> np.ndarray:
        """Return what a group reads at each position: (L, *kernel, channels of the group)."""
        shape = (*self.settings["kernel"], self.filters.shape[-1])
        columns = np.prod(shape)
        return self.M[:, group * columns : (group + 1) * columns].reshape(-1, *shape)


Presets: TypeAlias = dict[str, Shown]


@pytest.fixture(scope="module")
def presets(model: Model, facts: dict[str, Any]) -> Presets:
    found = {}
    for preset in facts["presets"]:
        numbers = model.ask("numbers", preset["state"])
        layer, x = state_layer(numbers["state"])
        x, filters = np.asarray(x, dtype=float), np.asarray(layer.filters)
        size = layer.geometry.output_size(x.shape[:-1])
        found[preset["id"]] = Shown(
            preset["text"],
            x,
            filters,
            im2col(x[None], layer.geometry)[0],
            np.array(numbers["Y"]).reshape(*size, len(filters)),
            numbers["state"]["settings"],
            numbers,
        )
    assert tuple(found) == PRESETS
    return found


def flat(shown: Shown, f: int) -> np.ndarray:
    """Return the plane of a filter, one number per row of M."""
    return shown.planes[..., f].ravel()


def finds_edges(plane: np.ndarray, windows: np.ndarray, axis: int) -> None:
    """Nothing where a window is the same along the axis, most where all of it changes."""
    change = windows.take(-1, axis) - windows.take(0, axis)
    still = (windows == windows.take([0], axis)).all((1, 2))
    assert (plane[still] == 0).all()
    rises, falls = (change > 0).all(1), (change < 0).all(1)
    largest = np.abs(plane) == np.abs(plane).max()
    assert (rises | falls)[largest].all()
    assert (plane[rises] > 0).all()
    assert (plane[falls] < 0).all()
    assert rises.any()
    assert falls.any()


@pytest.mark.parametrize("preset", PRESETS)
def test_no_two_filters_are_equal_and_each_finds_something(presets: Presets, preset: str) -> None:
    shown = presets[preset]
    weights = shown.filters.reshape(len(shown.filters), -1)
    assert len({tuple(row) for row in weights}) == len(weights)
    for f in range(len(weights)):
        plane = flat(shown, f)
        if preset in {"figure-6", "experiment"}:  # around a digit there is nothing to be found
            plane = plane[shown.M.any(axis=1)]
        _, counts = np.unique(plane, return_counts=True)
        assert counts.max() <= max(1, plane.size / 2), f


def test_figure_2_is_nine_products_and_one_sum_until_it_is_flipped(
    presets: Presets, model: Model
) -> None:
    shown = presets["figure-2"]
    assert "A 3 × 3 patch meets a 3 × 3 filter: nine products, one sum." in shown.text
    x, w = shown.x.ravel(), shown.filters.ravel()
    terms = [product for *_, product in shown.model["terms"][0]]
    assert terms == (x * w).tolist()
    assert len(terms) == 9
    assert shown.planes.tolist() == [[[sum(terms)]]]
    assert "Flip it to see what Eq. (3) means." in shown.text
    state = shown.model["state"]
    flipped = model.ask("numbers", {**state, "settings": {**shown.settings, "flip": True}})
    assert flipped["Y"] == [(x[::-1] * w).sum()] != [sum(terms)]  # the filter runs against x


def test_figure_3_is_three_channels_and_a_plane_for_each_of_three_filters(presets: Presets) -> None:
    shown = presets["figure-3"]
    assert "Three filters slide over an input with three channels" in shown.text
    assert "Each makes a plane of the output." in shown.text
    assert shown.x.shape == (6, 6, 3)
    assert shown.filters.shape == (3, 3, 3, 3)
    assert shown.planes.shape == (4, 4, 3)
    standing, lying, box = np.moveaxis(shown.x, -1, 0)
    assert (standing == [[0, 0, 9, 9, 0, 0]]).all()
    assert (lying == standing.T).all()
    assert (box == np.minimum(standing, lying)).all()
    assert "for vertical edges, for horizontal edges, for the sum" in shown.text
    windows = shown.windows().sum(-1)
    finds_edges(flat(shown, 0), windows, axis=2)
    finds_edges(flat(shown, 1), windows, axis=1)
    assert (flat(shown, 2) == windows.sum((1, 2))).all()


def test_figure_6_reads_each_pixel_once(presets: Presets, model: Model) -> None:
    shown = presets["figure-6"]
    assert "Stride and kernel are both 4, so patches do not overlap" in shown.text
    assert shown.settings["stride"] == shown.settings["kernel"] == [4, 4]
    counts = model.ask("map", shown.settings)["readerCounts"]
    assert [count["entries"] for count in counts] == [1] * 28 * 28
    assert "28 × 28 pixels become 49 rows of 16" in shown.text
    assert shown.x.shape == (28, 28, 1)
    assert shown.M.shape == (49, 16)
    finds_edges(flat(shown, 0), shown.windows().sum(-1), axis=2)


def test_the_experiment_has_169_rows_of_16_and_four_filters(presets: Presets) -> None:
    shown = presets["experiment"]
    assert "4 × 4 windows at stride 2: 169 rows of 16." in shown.text
    assert (shown.settings["kernel"], shown.settings["stride"]) == ([4, 4], [2, 2])
    assert shown.M.shape == (169, 16)
    assert "The paper trains 128 filters; here are four." in shown.text
    assert shown.filters.shape == (4, 4, 4, 1)
    assert shown.planes.shape == (13, 13, 4)


def test_depthwise_reads_one_channel_with_each_filter(presets: Presets) -> None:
    shown = presets["depthwise"]
    assert "As many groups as channels: every filter reads one channel" in shown.text
    assert "M falls into blocks" in shown.text
    assert shown.settings["groups"] == shown.x.shape[-1] == 3
    for f in range(3):
        terms = shown.model["terms"][24 * 3 + f]
        assert [q for q, *_ in terms] == list(range(9 * f, 9 * f + 9))
        assert {element % 3 for element, _ in shown.model["T"][24 * 3 + f]} == {f}
        # The other channels are nothing to it.
        y = shown.windows(f).reshape(-1, 9) @ shown.filters[f].ravel()
        assert (y == flat(shown, f)).all()
    finds_edges(flat(shown, 0), shown.windows(0).sum(-1), axis=2)
    finds_edges(flat(shown, 1), shown.windows(1).sum(-1), axis=1)
    cross = shown.planes[..., 2]
    assert (cross[2:5, 2:5] == cross.max()).all()  # where its arms meet
    assert (cross == cross.max()).sum() == 9


def test_dilated_taps_are_two_apart(presets: Presets) -> None:
    shown = presets["dilated"]
    assert "Taps two apart: a 3 × 3 kernel looks at a 5 × 5 neighbourhood." in shown.text
    assert shown.settings["kernel"] == [3, 3]
    middle = 4 * 9 + 4
    filters = len(shown.filters)
    read = {divmod(element, 9) for element, _ in shown.model["T"][middle * filters]}
    assert read == {(i, j) for i in (2, 4, 6) for j in (2, 4, 6)}
    assert max(read) == (min(read)[0] + 5 - 1, min(read)[1] + 5 - 1)
    finds_edges(flat(shown, 0), shown.windows().sum(-1), axis=2)
    finds_edges(flat(shown, 1), shown.windows().sum(-1), axis=1)
    assert (shown.planes[:, 4, 0] == 0).all()  # the box in the middle has equal sides
    assert (shown.planes[..., 1] == shown.planes[..., 0].T).all()


def test_transposed_is_the_adjoint_and_fills_in_between(presets: Presets, model: Model) -> None:
    shown = presets["transposed"]
    assert "The adjoint" in shown.text
    forward = ConvGeometry(2, 1, (3, 3), stride=2, padding=1)
    filters = shown.filters.transpose(3, 1, 2, 0)
    matrix = conv_matrix(filters, (8, 8), forward, layout="dense", order="channels_last")
    found = np.zeros((128, 16))
    for row, entries in enumerate(shown.model["T"]):
        for element, weight in entries:
            found[row, int(element)] = weight
    assert (found == np.asarray(matrix).T).all()
    assert "the input is spread apart with zeros" in shown.text
    corner = [element >= 0 for element in model.ask("map", shown.settings)["flat"][:9]]
    assert corner == [False] * 4 + [True, False, False, False, False]  # the others are zeros
    assert "the output is larger than the input" in shown.text
    x = shown.x[..., 0]
    assert (x.shape, shown.planes.shape) == ((4, 4), (8, 8, 2))
    assert "One filter repeats each number" in shown.text
    assert (shown.planes[..., 0] == x.repeat(2, 0).repeat(2, 1)).all()
    assert "the other fills in the means between them" in shown.text
    between = shown.planes[:7, :7, 1]
    assert (between[::2, ::2] == x).all()
    assert (between[1::2, ::2] == (x[1:] + x[:-1]) / 2).all()
    assert (between[::2, 1::2] == (x[:, 1:] + x[:, :-1]) / 2).all()
    corners = x[1:, 1:] + x[1:, :-1] + x[:-1, 1:] + x[:-1, :-1]
    assert (between[1::2, 1::2] == corners / 4).all()


def test_a_signal_has_its_moving_difference_and_its_moving_mean(presets: Presets) -> None:
    shown = presets["signal"]
    text = "One axis: a moving difference and a moving mean of twelve numbers."
    assert shown.text == text
    assert shown.x.shape == (12, 1)
    padded = np.pad(shown.x[:, 0], 1)
    assert (shown.planes[:, 0] == padded[2:] - padded[:-2]).all()
    mean = np.lib.stride_tricks.sliding_window_view(padded, 3).mean(1)
    assert (shown.planes[:, 1] == mean).all()  # exactly: the sums are multiples of three
