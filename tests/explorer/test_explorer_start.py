"""The numbers that a convolution of one's own starts with: they show something, and at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import strategies as st
from model import Model, drawn, running, settings_of

from convfc import ConvGeometry, conv_as_matmul

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZES = [(4, 4), (6, 6), (8, 5), (13, 13), (28, 28), (12,), (8,)]


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    yield from running()


def started(model: Model, settings: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the input and the filters that the page makes for settings."""
    found = model.ask("start", settings)
    assert not found["signed"], "a weight is -0"
    taps = (*settings["kernel"], settings["channels"] // settings["groups"])
    return (
        np.array(found["input"]).reshape(*settings["size"], settings["channels"]),
        np.array(found["filters"]).reshape(settings["filters"], *taps),
    )


@st.composite
def some_settings(draw: st.DrawFn) -> dict[str, Any]:
    """Settings with many filters as well as few, of one tap as well as of many."""
    axes = draw(st.integers(1, 2))
    groups = draw(st.integers(1, 3))
    geometry = ConvGeometry(
        groups * draw(st.integers(1, 4)),
        groups * draw(st.one_of(st.integers(1, 8), st.integers(9, 150))),
        draw(st.lists(st.integers(1, 4), min_size=axes, max_size=axes)),
        groups=groups,
    )
    return settings_of(geometry, draw(st.lists(st.integers(4, 9), min_size=axes, max_size=axes)))


def test_no_two_filters_to_start_with_are_equal(model: Model) -> None:
    for settings in drawn(some_settings(), 150):
        _, filters = started(model, settings)
        weights = filters.reshape(len(filters), -1)
        assert len({tuple(row) for row in weights}) == len(weights), settings
        assert weights.any(axis=1).all(), settings
        assert (weights == np.round(weights)).all(), settings
        if 2 * 5 ** (weights.shape[1] - 1) >= len(weights):  # there are so many small ones
            assert np.abs(weights).max() <= 2, settings


def test_the_first_filters_are_differences_a_sum_corners_and_a_point(model: Model) -> None:
    _, filters = started(model, settings_of(ConvGeometry(1, 5, (3, 3)), (6, 6)))
    across = [[-1, 0, 1]] * 3
    assert filters[..., 0].tolist() == [
        across,
        np.transpose(across).tolist(),
        [[1] * 3] * 3,
        [[1, 0, -1], [0, 0, 0], [-1, 0, 1]],
        [[0, 0, 0], [0, 1, 0], [0, 0, 0]],
    ]
    _, filters = started(model, settings_of(ConvGeometry(1, 3, (3,)), (6,)))
    assert filters[..., 0].tolist() == [[-1, 0, 1], [1, 1, 1], [0, 1, 0]]
    _, filters = started(model, settings_of(ConvGeometry(4, 2, (1, 1)), (6, 6)))
    assert filters.reshape(2, 4).tolist() == [[1, 1, 1, 1], [-1, -1, 1, 1]]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_input_to_start_with_gives_each_filter_something(
    model: Model, size: tuple[int, ...]
) -> None:
    geometry = ConvGeometry(1, 3 if len(size) > 1 else 2, (3,) * len(size))
    x, filters = started(model, settings_of(geometry, size))
    planes = conv_as_matmul(x[None], filters, geometry)[0]
    for plane in planes.reshape(-1, geometry.out_channels).T:
        _, counts = np.unique(plane, return_counts=True)
        assert counts.max() <= plane.size / 2
    for axis in range(len(size)):
        assert np.diff(x, axis=axis).any()


def test_the_input_to_start_with_is_of_whole_numbers_and_each_channel_has_its_own(
    model: Model,
) -> None:
    for size in SIZES:
        x, _ = started(model, settings_of(ConvGeometry(6, 1, (1,) * len(size)), size))
        assert set(np.unique(x)) <= set(range(1, 10))
        channels = {channel.tobytes() for channel in np.moveaxis(x, -1, 0)}
        assert len(channels) == 6


def test_an_input_that_grows_shows_more_of_the_same_picture(model: Model) -> None:
    geometry = ConvGeometry(2, 1, (3, 3))
    large, _ = started(model, settings_of(geometry, (20, 17)))
    for size in ((6, 6), (4, 17), (19, 5)):
        small, _ = started(model, settings_of(geometry, size))
        assert (large[: size[0], : size[1]] == small).all()


@pytest.mark.parametrize(
    ("geometry", "size"),
    [
        (ConvGeometry(50, 1, (3, 3)), (199, 200)),
        (ConvGeometry(1, 4096, (22, 22)), (22, 22)),
        (ConvGeometry(480, 1, (64, 64)), (8, 8)),
    ],
    ids=["input", "filters", "one-filter"],
)
def test_two_million_numbers_are_made_at_once(
    model: Model, geometry: ConvGeometry, size: tuple[int, ...]
) -> None:
    settings = settings_of(geometry, size)
    if geometry.kernel_size[0] > size[0]:
        settings["padding"] = [[28, 28], [28, 28]]
    assert model.ask("problems", settings) == []
    assert model.ask("startTime", settings) < 100
