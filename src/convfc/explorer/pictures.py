"""Images as inputs of a layer: files, and the library's digits."""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convfc.errors import DataError, MissingDependencyError

__all__ = ["FORMATS", "read_image"]

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
"""Formats that are read; none of them can do anything but hold a picture."""


def read_image(
    path: pathlib.Path, channels: int, size: Sequence[int] | None = None
) -> NDArray[np.float64]:
    """Return an image as numbers from 0 to 1.

    Parameters
    ----------
    path : pathlib.Path
        One of `FORMATS`.
    channels : int
        1 for grey values, 3 for red, green and blue; for another number grey values are repeated.
    size : sequence of two int, optional
        Height and width; what the image has beyond this shape is cut off on both sides, and the
        rest is made smaller or larger.

    Returns
    -------
    numpy.ndarray, shape (height, width, channels)

    Raises
    ------
    DataError
        If there is no such file, or it is no image that can be read.
    MissingDependencyError
        If Pillow is not installed.

    Examples
    --------
    >>> read_image(pathlib.Path("nowhere.png"), 1)
    Traceback (most recent call last):
    ...
    convfc.errors.DataError: nowhere.png: there is no such file. Remedy: check the path
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise MissingDependencyError(
            "Pillow, which reads images, is not installed",
            where=str(path),
            remedy="pip install 'convfc[explorer]'",
        ) from error
    if not path.is_file():
        raise DataError("there is no such file", where=str(path), remedy="check the path")
    try:
        with warnings.catch_warnings():
            # Of an image that is far larger than it says: not to be unpacked.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as opened:
                picture = ImageOps.exif_transpose(opened).convert("RGB" if channels == 3 else "L")
    except (
        UnidentifiedImageError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
        OSError,
        SyntaxError,  # what Pillow raises for a damaged PNG
        ValueError,
    ) as error:
        raise DataError(
            f"it is no image that can be read ({type(error).__name__}: {error})",
            where=str(path),
            expected=", ".join(FORMATS),
            remedy="save it as PNG",
        ) from error
    if size is not None:
        height, width = size
        picture = ImageOps.fit(picture, (width, height))
    values: NDArray[Any] = np.asarray(picture, dtype=np.float64) / 255
    values = np.round(values, 4)  # 256 steps: more digits would only make the page longer
    if channels == 3:
        return values
    return np.repeat(values[..., None], channels, axis=-1)
