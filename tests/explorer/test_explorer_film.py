"""``convfc explore --film``: pictures of what convfc computes, in a file that is whole."""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from model import drawn, forwards
from PIL import Image, ImageSequence
from strategies import cases
from typer.testing import CliRunner, Result

from convfc import ConvGeometry, conv_as_matmul, im2col
from convfc.cli import app
from convfc.errors import ArgumentError, DataError, GeometryError
from convfc.explorer import explorer_state, film

if TYPE_CHECKING:
    from pathlib import Path

    from cases import Case
    from model import Model


def state_of(case: Case, seed: int) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    x, filters, _ = case.integers(seed)
    return explorer_state(filters, x[0], case.geometry), x[:1], filters


def some(count: int) -> list[Case]:
    found = [case for case in drawn(cases(max_ndim=2), count) if np.prod(case.input_size) < 150]
    assert len(found) > count / 2
    return found


def pixel(image: Image.Image, panel: film.Panel, r: int, c: int) -> tuple[int, ...]:
    """Return the colour near a cell's lower right corner, where neither lines nor numbers are."""
    x0, y0, x1, y1 = panel.box(r, c, r, c)
    return image.getpixel((max(x0, x1 - 3), max(y0, y1 - 3)))


# --- what it shows ---


def test_a_window_holds_the_row_of_m_that_is_outlined() -> None:
    """The numbers on the input, within the frame, are the row of M; of every geometry."""
    transposed = 0
    for seed, case in enumerate(some(300)):
        geometry = case.geometry
        state, x, _ = state_of(case, seed)
        shown = film.Film(state)
        padded = shown._padded(x[0].astype(float)).reshape(*shown.own.shape, -1)
        M = im2col(x, forwards(geometry))[0]
        dilation = (1, *geometry.dilation)[-2:]
        for p, row in enumerate(M):
            r0, c0, r1, c1 = shown.window(p)
            window = padded[r0 : r1 + 1 : dilation[0], c0 : c1 + 1 : dilation[1]]
            grouped = window.reshape(*window.shape[:2], geometry.groups, -1)
            assert np.array_equal(np.moveaxis(grouped, 2, 0).ravel(), row), (case, p)
        transposed += geometry.transposed
        if not geometry.transposed:  # of which padding cuts elements away
            assert np.array_equal(padded[shown.own], x[0].reshape(-1, x.shape[-1])), case
    assert transposed > 20


def test_a_picture_has_the_rows_that_are_computed_and_no_others() -> None:
    for seed, case in enumerate(some(80)):
        geometry = case.geometry
        state, x, filters = state_of(case, seed)
        shown = film.Film(state)
        M = im2col(x, forwards(geometry))[0]
        Y = conv_as_matmul(x, filters, geometry).reshape(len(M), -1)
        last = len(M) - 1
        for p in {0, last // 2, last}:
            image = shown.picture(p)
            for panel, values, largest in ((shown.M, M, abs(x).max()), (shown.Y, Y, abs(Y).max())):
                if min(panel.cell) < 8:
                    continue
                expected = film.colours(values, float(largest))
                for r, c in np.ndindex(values.shape):
                    if r == p:
                        continue
                    colour = tuple(expected[r, c]) if r < p else film.EMPTY
                    assert pixel(image, panel, r, c) == colour, (case, p, panel.name, r, c)
                x0, y0, *_ = panel.box(p, 0, p, 0)
                assert image.getpixel((x0 - 1, y0 + 2)) == film.WINDOW
            for f, panel in enumerate(shown.outputs):
                if min(panel.cell) < 8:
                    continue
                shape = panel.values.shape
                expected = film.colours(Y[:, f].reshape(shape), float(abs(Y).max()))
                for at in set(np.ndindex(shape)) - {divmod(p, shape[1])}:
                    there = np.ravel_multi_index(at, shape) < p
                    colour = tuple(expected[at]) if there else film.EMPTY
                    assert pixel(image, panel, *at) == colour, (case, p, f, at)


def test_colours_are_the_ones_of_the_page(model: Model) -> None:
    values = [*np.linspace(-1.2, 1.2, 97).tolist(), 0, 1, -1]
    for largest in (1, 0.7, 9):
        found = model.ask("colours", values, largest)
        ours = [f"rgb({r}, {g}, {b})" for r, g, b in film.colours(values, largest)]
        assert ours == found["cells"]
    assert found["empty"] == "rgb({}, {}, {})".format(*film.EMPTY)
    assert found["window"] == "#{:02x}{:02x}{:02x}".format(*film.WINDOW)


def test_a_picture_in_colour_and_many_channels_have_room() -> None:
    geometry = ConvGeometry(3, 40, (3, 3))
    x = np.random.default_rng(0).random((9, 9, 3))
    state = explorer_state(np.ones((40, 3, 3, 3)), x, geometry)
    assert len(film.Film(state).inputs) == 3
    state["input"]["range"] = [0.0, 1.0]
    shown = film.Film(state)
    assert (len(shown.inputs), len(shown.outputs)) == (1, film.PLANES)
    r, g, b = pixel(shown.picture(0), shown.inputs[0], 7, 5)
    assert [r, g, b] == (x[7, 5] * 255).round().tolist()


def test_without_a_layer_it_is_what_the_page_opens_with(
    model: Model, facts: dict[str, Any]
) -> None:
    opens = model.ask("load", facts["presets"][0]["state"])
    shown = film.example()
    for part in ("title", "settings", "filters"):
        assert shown[part] == opens[part]
    assert shown["input"]["values"] == opens["input"]["values"]


# --- the file ---


def read(path: Path) -> tuple[list[np.ndarray], list[int]]:
    pictures, durations = [], []
    with Image.open(path) as image:
        for frame in ImageSequence.Iterator(image):
            pictures.append(np.asarray(frame.convert("RGB")))
            durations.append(frame.info["duration"])
    return pictures, durations


@pytest.mark.parametrize(("side", "count"), [(6, 16), (18, 60)])
def test_a_film_takes_ten_seconds_or_less(tmp_path: Path, side: int, count: int) -> None:
    x = np.random.default_rng(0).integers(0, 9, (side, side, 1))
    state = explorer_state(np.ones((1, 3, 3, 1)), x, ConvGeometry(1, 1, (3, 3)))
    heard: list[tuple[int, int]] = []
    film.write_film(tmp_path / "out.gif", state, told=lambda *done: heard.append(done))
    assert heard == [(n + 1, count) for n in range(count)]
    pictures, durations = read(tmp_path / "out.gif")
    assert len(pictures) == count
    assert 5000 < sum(durations) <= 10_000
    assert durations[-1] == film.LAST
    for p, picture in ((0, pictures[0]), (-1, pictures[-1])):
        shown = film.Film(state)
        drawn_ = np.asarray(shown.picture(shown.positions()[p])).astype(int)
        assert abs(drawn_ - picture).max() < 40  # 256 colours
        assert (drawn_ == picture).mean() > 0.9
        assert (picture[0, 0] == 255).all()


def test_a_film_that_is_not_finished_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out.gif").write_bytes(b"before")

    def full(image: Image.Image, handle: Any, *options: Any, **others: Any) -> None:
        handle.write(b"GIF89a")
        raise OSError(errno.ENOSPC, "no room left")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="no room left"):
        film.write_film(tmp_path / "out.gif", film.example())
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("out.gif", b"before")]


def test_what_has_no_room_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.gif"
    many = explorer_state(np.ones((1, 1, 1, 1)), np.ones((21, 20, 1)), ConvGeometry(1, 1, (1, 1)))
    with pytest.raises(GeometryError, match=r"so many windows.*400 rows.*got 420 rows, 1 \+ 1 \+"):
        film.write_film(path, many)
    geometry = ConvGeometry(4, 263, (3, 3))
    wide = explorer_state(np.ones(geometry.filters_shape), np.ones((4, 4, 4)), geometry)
    with pytest.raises(GeometryError, match=r"so many columns.*fewer filters, such as --filters 4"):
        film.write_film(path, wide)
    geometry = ConvGeometry(45, 1, (3, 3))
    tall = explorer_state(np.ones(geometry.filters_shape), np.ones((4, 4, 45)), geometry)
    with pytest.raises(GeometryError, match="400 rows of M and of K"):
        film.write_film(path, tall)
    with pytest.raises(DataError, match="needs the numbers of an input"):
        film.write_film(path, {**film.example(), "input": None})
    with pytest.raises(ArgumentError, match=r"a film is a GIF.*call it out\.gif"):
        film.write_film(tmp_path / "out.mp4", film.example())
    assert not list(tmp_path.iterdir())


# --- the command ---


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["explore", *arguments], env={"COLUMNS": "200"})


def test_the_command_writes_films(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("--film", "out.gif")
    assert (result.exit_code, result.stdout) == (0, "Film: out.gif\n")
    assert len(read(tmp_path / "out.gif")[0]) == 9
    (tmp_path / "filmed_net.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Conv2d(1, 3, 3))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    result = call("filmed_net:net", "--input", "1,5,5", "--film", "net.gif", "--html", "net.html")
    assert result.exit_code == 0, result.output
    assert len(read(tmp_path / "net.gif")[0]) == 9
    assert (tmp_path / "net.html").stat().st_size > 100_000
    for options, said in (
        (["--input", "1,60,60", "--film", "no.gif"], "no room for so many windows"),
        (["--input", "1,5,5", "--film", "none/no.gif"], "with --film, or leave --film out"),
    ):
        result = call("filmed_net:net", *options)
        assert result.exit_code == 1
        assert re.fullmatch(rf"Error: [^\n]*{said}[^\n]*\n", result.stderr), result.stderr
    assert not (tmp_path / "no.gif").exists()
