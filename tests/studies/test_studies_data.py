"""What the studies learn from and are asked about."""

from __future__ import annotations

import pathlib

import matplotlib
import numpy as np
import pytest
from matplotlib.ft2font import FT2Font

from convfc.digits import labelled_digits
from convfc.errors import DataError
from convfc.studies import images as data
from convfc.studies.images import FONTS, LETTERS, Images


@pytest.fixture(scope="module")
def digits() -> data.Digits:
    return data.load_digits(seed=3)


@pytest.fixture(scope="module")
def letters() -> Images:
    return data.render_letters(320, seed=3)


def test_sets_are_disjoint_digits_with_their_labels(digits: data.Digits) -> None:
    sets = (digits.training, digits.validation, digits.test)
    assert [len(one) for one in sets] == [3000, 1000, 1000]
    pictures, labels = labelled_digits()
    known = {p.astype(np.float32).tobytes(): n for p, n in zip(pictures, labels, strict=True)}
    assert len(known) == 5000
    for one in sets:
        assert one.images.shape == (len(one), 1, 28, 28)
        # Every image is taken once: what one set has, no later one finds.
        assert [known.pop(image.tobytes()) for image in one.images] == one.labels.tolist()
        shares = np.bincount(one.labels, minlength=10) / len(one)
        assert shares.min() > 0.05
    assert "seed 3" in digits.description
    first, again, other = (data.load_digits(30, seed).test.images for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    with pytest.raises(ValueError, match="read-only"):
        pictures[0] = 1


def test_letters_are_drawn_as_digits_are(letters: Images) -> None:
    assert letters.images.shape == (320, 1, 28, 28)
    assert (letters.images.min(), letters.images.max()) == (0, 1)
    rows, columns = np.mgrid[:28, :28] + 0.5
    ink = letters.images[:, 0] / letters.images[:, 0].sum(axis=(1, 2), keepdims=True)
    for axis in (rows, columns):
        # The centre of mass is at most a pixel beside the middle; drawing rounds to 1/255.
        assert np.abs((ink * axis).sum(axis=(1, 2)) - 14).max() < 1.1
    sides = [max(np.ptp(np.nonzero(image[0])[axis]) + 1 for axis in (0, 1))
             for image in letters.images]  # fmt: skip
    assert min(sides) >= 17
    assert max(sides) <= 23
    # Smooth edges: many pixels are neither black nor white.
    between = (letters.images > 0.05) & (letters.images < 0.95)
    assert between.mean() > 0.05
    # Every letter comes as often, and no image twice.
    assert letters.labels.tolist() == [*range(16)] * 20
    assert len(np.unique(letters.images.reshape(320, -1), axis=0)) == 320


def test_letters_are_no_digits(letters: Images, digits: data.Digits) -> None:
    """A letter's nearest neighbour among the digits is further than a digit's, as a rule."""
    assert not set(LETTERS) & set("BDGIJLOQSZ")
    known = digits.training.images.reshape(3000, -1)

    def nearest(images: np.ndarray) -> np.ndarray:
        flat = images.reshape(len(images), -1)
        squares = (flat**2).sum(1)[:, None] - 2 * flat @ known.T + (known**2).sum(1)
        return np.sqrt(squares.min(axis=1))

    far, near = nearest(letters.images[:96]), nearest(digits.test.images[:96])
    assert np.median(far) > np.quantile(near, 0.75)


def test_the_seed_decides_the_letters(letters: Images) -> None:
    assert np.array_equal(data.render_letters(320, seed=3).images, letters.images)
    assert not np.array_equal(data.render_letters(320, seed=4).images, letters.images)
    # More letters begin with the same ones.
    assert np.array_equal(data.render_letters(16, seed=3).images, letters.images[:16])


def test_every_font_is_inside_matplotlib_and_has_the_letters() -> None:
    for font in FONTS:
        path = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
        assert set(map(ord, LETTERS)) <= set(FT2Font(str(path)).get_charmap()), font


def test_turning_by_right_angles_moves_pixels_only() -> None:
    image = np.random.default_rng(0).integers(0, 2, (1, 28, 28)).astype(np.float32)
    turned = data.rotated(image, [0, 90, 180])
    expected = [np.rot90(image[0], count) for count in range(3)]
    # Sines of right angles are not quite 0 and 1, so an edge may take a little of its neighbour.
    for one, other in zip(turned[:, 0], expected, strict=True):
        assert np.array_equal(np.rint(one[1:-1, 1:-1]), other[1:-1, 1:-1])


def test_moved_digits_keep_their_labels_and_most_of_their_ink(digits: data.Digits) -> None:
    given = digits.test.first(50)
    far = data.moved(given, seed=1)
    assert np.array_equal(far.labels, given.labels)
    assert not (far.images == given.images).all(axis=(1, 2, 3)).any()
    ink = far.images.sum(axis=(1, 2, 3)) / given.images.sum(axis=(1, 2, 3))
    assert ink.min() > 0.6
    assert ink.max() < 1.1
    assert np.array_equal(data.moved(given, seed=1).images, far.images)
    assert not np.array_equal(data.moved(given, seed=2).images, far.images)


def test_the_most_upright_digit_is_found() -> None:
    upright = np.zeros((1, 28, 28), np.float32)
    upright[0, 4:24, 13:15] = 1
    given = Images(data.rotated(upright, [-20, 0, 25]), np.array([3, 3, 3]))
    assert np.array_equal(data.most_upright(given, 3), given.images[1])
    with pytest.raises(DataError, match=r"digit: there is no 1 among these.*got the digits \[3\]"):
        data.most_upright(given, 1)
