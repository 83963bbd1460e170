"""The oracle against numbers worked out by hand: the judge of the judges."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
from cases import FIGURE_6, Case, case


def line(*values: int) -> np.ndarray:
    """A batch of one, a single axis, a single channel."""
    return np.array(values).reshape(1, -1, 1)


@pytest.mark.parametrize(
    ("mode", "extended"),
    [
        ("zeros", [None, None, 0, 1, 2, None, None]),
        ("reflect", [2, 1, 0, 1, 2, 1, 0]),
        ("replicate", [0, 0, 0, 1, 2, 2, 2]),
        ("circular", [1, 2, 0, 1, 2, 0, 1]),
    ],
)
def test_source_extends_an_axis_of_three_by_two_on_both_sides(mode, extended):
    assert [oracle.source(j, 3, mode) for j in range(-2, 5)] == extended


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        (case((5,), (3,), c=1, f=1), [14, 20, 26]),
        (case((5,), (3,), c=1, f=1, flip=True), [10, 16, 22]),
        (case((5,), (3,), c=1, f=1, stride=2), [14, 26]),
        (case((5,), (3,), c=1, f=1, dilation=2), [22]),
        (case((5,), (3,), c=1, f=1, padding=((1, 0),)), [8, 14, 20, 26]),
        (case((2,), (3,), c=1, f=1, transposed=True), [1, 4, 7, 6]),
        (case((2,), (3,), c=1, f=1, transposed=True, flip=True), [3, 8, 5, 2]),
        (case((2,), (3,), c=1, f=1, transposed=True, stride=2), [1, 2, 5, 4, 6]),
        (
            case((2,), (3,), c=1, f=1, transposed=True, stride=2, padding=1, output_padding=1),
            [2, 5, 4, 6],
        ),
    ],
    ids=str,
)
def test_conv_of_one_two_three_by_hand(subject: Case, expected):
    x = line(*range(1, subject.input_size[0] + 1))
    y = oracle.conv(x, line(1, 2, 3), subject.geometry)
    assert y.ravel().tolist() == expected


def test_groups_read_their_own_channels_and_write_their_own_filters():
    subject = case((1,), (1,), c=4, f=4, groups=2)
    x = np.array([[[1, 10, 100, 1000]]])
    filters = np.array([[1, 2], [3, 4], [5, 6], [7, 8]]).reshape(4, 1, 2)
    y = oracle.conv(x, filters, subject.geometry)
    assert y.ravel().tolist() == [21, 43, 6500, 8700]
    assert oracle.im2col(x, subject.geometry).ravel().tolist() == [1, 10, 100, 1000]


def test_figure_6_cuts_the_image_into_49_patches_row_by_row():
    image = np.arange(28 * 28).reshape(1, 28, 28, 1)
    M = oracle.im2col(image, FIGURE_6.geometry)
    tiles = image.reshape(7, 4, 7, 4).transpose(0, 2, 1, 3)  # (row of patches, column of patches)
    assert M.shape == (1, 49, 16)
    assert M.ravel().tolist() == tiles.ravel().tolist()
