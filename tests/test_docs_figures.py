"""The pictures in docs/ are those that their program draws, of the matrices of the package."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import matplotlib.image
import numpy as np
import pytest
import scipy.linalg

DOCS = Path(__file__).parents[1] / "docs"
FIGURES = ("matrix-toeplitz.png", "matrix-changes.png")


@pytest.fixture(scope="module")
def program() -> ModuleType:
    """docs/draw_matrices.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("draw_matrices", DOCS / "draw_matrices.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def drawn(program: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("figures")
    program.main(folder)
    return folder


@pytest.mark.parametrize("name", FIGURES)
def test_the_kept_picture_is_the_drawn_one(drawn: Path, name: str):
    kept, new = (matplotlib.image.imread(folder / name) for folder in (DOCS / "figures", drawn))
    assert np.array_equal(kept, new), "run python docs/draw_matrices.py"


def test_the_first_picture_is_doubly_block_toeplitz(program: ModuleType):
    """SciPy's Toeplitz matrices: one for each row of the filter, on a diagonal of blocks."""
    matrix, _ = program.tap_numbers()
    taps = np.arange(1, 17).reshape(4, 4)
    blocks = [scipy.linalg.toeplitz([t[0], 0, 0, 0], [*t, 0, 0, 0]) for t in taps]
    empty = np.zeros_like(blocks[0])
    expected = np.block(
        [[blocks[j - i] if 0 <= j - i < 4 else empty for j in range(7)] for i in range(4)]
    )
    assert np.array_equal(matrix, expected)


def test_the_transposed_picture_is_the_transpose_of_the_first(program: ModuleType):
    matrix, _ = program.tap_numbers()
    transposed, _ = program.tap_numbers(transposed=True, size=(4, 4))
    assert np.array_equal(transposed, matrix.T)


def test_every_change_is_drawn_with_another_matrix(program: ModuleType):
    pictures = [program.tap_numbers(**change)[0] for change in program.CHANGES.values()]
    assert len({(p.shape, p.tobytes()) for p in pictures}) == len(pictures)
