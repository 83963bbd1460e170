"""Photographs that scikit-image ships inside its package, so that no test needs the network."""

from __future__ import annotations

import numpy as np
import torch
from skimage import data, transform


def face_sheet(rows: int, columns: int) -> np.ndarray:
    """Return faces of Labeled Faces in the Wild side by side, doubled in size, as RGB bytes."""
    faces = data.lfw_subset()[: rows * columns]  # the first half of it; the second is not faces
    side = faces.shape[1]
    sheet = faces.reshape(rows, columns, side, side).transpose(0, 2, 1, 3)
    sheet = np.uint8(255 * sheet.reshape(rows * side, columns * side))
    return np.repeat(np.kron(sheet, np.ones((2, 2), np.uint8))[..., None], 3, axis=2)


def shot(photograph: np.ndarray, frames: int, size: tuple[int, int]) -> torch.Tensor:
    """Return what a camera sees that moves over a photograph: RGB bytes ``(frames, *size, 3)``."""
    height, width = (6 * n for n in size)
    windows = [photograph[2 * i : 2 * i + height, 4 * i : 4 * i + width] for i in range(frames)]
    small = [transform.resize(window, size, anti_aliasing=True) for window in windows]
    return torch.from_numpy(np.uint8(255 * np.stack(small)))
