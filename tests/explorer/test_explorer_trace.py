"""The film of Algorithm 1: every step is what loops written here do, with convfc's own index map.

Hundreds of drawn geometries; the counts against closed formulas; the results against the product.
"""

from __future__ import annotations

import io
from bisect import bisect_left
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from cases import Case
from model import drawn, forwards, settings_of, turned
from PIL import Image, ImageSequence
from strategies import cases

from convfc import ConvGeometry, conv_as_matmul, conv_matrix, im2col, index_map

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model import Model

LANES = ("loops", "im2col", "matrix")
MOST = 500
"""Steps that are asked of one film: the first, the last, and drawn ones between them."""

EVERYDAY = Case(ConvGeometry(1, 4, (4, 4), stride=2), (28, 28))


def small(count: int) -> list[Case]:
    return [case for case in drawn(cases(max_ndim=2), count) if prod(case.input_size) < 200]


def asked(model: Model, case: Case, lane: str, at: list[int] | None = None) -> dict[str, Any]:
    settings = settings_of(case.geometry, case.input_size)
    if at is None:
        steps = model.ask("trace", settings, lane, [])["steps"]
        at = list(range(steps + 1))
        if steps > MOST:
            some = np.random.default_rng(steps).integers(0, steps, MOST).tolist()
            at = sorted({0, 1, steps - 1, steps, *some})
    return model.ask("trace", settings, lane, at)


# --- what a step does: loops, once more ---


def told(case: Case, lane: str) -> Iterator[tuple[int, dict[str, int], dict[str, int]]]:
    """Yield of each step its line, what it works on, and variables that it must say."""
    geometry = case.geometry
    where = index_map(forwards(geometry), case.input_size)
    L, columns = where.shape
    f, k = geometry.out_channels, geometry.taps
    N = prod(case.input_size) * geometry.in_channels
    if lane == "loops":
        for p, i, t in product(range(L), range(f), range(k)):
            q = i // (f // geometry.groups) * k + t
            yield (6 if t == k - 1 else 5), {"p": p, "f": i, "q": q}, {"f": i}
        return
    if lane == "im2col":
        for p, q in product(range(L), range(columns)):
            yield 14, {"p": p, "q": q}, {"p": p, "q": q}
        for i in range(f):
            yield 20, {"f": i, "q": None}, {"f": i}
        for p, i in product(range(L), range(f)):
            yield 23, {"p": p, "f": i, "q": None}, {"p": p, "f": i}
    else:
        for p, i, c in product(range(L), range(f), range(N)):
            said = {"r": p * f + i, "c": c}
            yield (6 if c == N - 1 else 5), {"p": p, "f": i, "element": c}, said
    for p in range(L):
        yield (7 if lane == "matrix" else 24), {"p": p, "q": None}, {"p": p}


@pytest.mark.parametrize("lane", LANES)
def test_every_step_is_what_the_loops_do(model: Model, lane: str) -> None:
    tried = zeros = 0
    for case in small(220):
        found = asked(model, case, lane)
        where = index_map(forwards(case.geometry), case.input_size)
        steps = list(told(case, lane))
        assert found["steps"] == len(steps), case
        names = [*"ij"[: case.geometry.spatial_ndim], "d"]
        for entry in found["log"]:
            line, select, said = steps[max(entry["n"], 1) - 1]
            first, last = found["lines"][0]["number"], found["lines"][-1]["number"]
            line = first if entry["n"] == 0 else last if entry["n"] == len(steps) else line
            assert (entry["line"], entry["select"]) == (line, select), (case, entry)
            variables = dict(entry["variables"])
            assert len(variables) == len(entry["variables"])
            assert said.items() <= variables.items(), (case, entry)
            if "p" in select:
                position = np.unravel_index(select["p"], where.output_size)
                assert [variables[n] for n in ("i″", "j″")[: len(names) - 1]] == list(position)
            if select.get("q") is not None:
                read = where.element(select["p"], select["q"])
                assert tuple(variables[n] for n in names) == (read or (None,) * len(names)), case
                zeros += read is None
            tried += 1
    assert tried > 15_000
    assert (zeros > 1000) == (lane != "matrix")


def test_the_corner_of_a_window_is_where_its_lines_put_it(model: Model) -> None:
    """Lines 12 and 13: ish and isw, on the input with its padding."""
    for case in [EVERYDAY, *small(60)]:
        where = index_map(forwards(case.geometry), case.input_size)
        for entry in asked(model, case, "im2col")["log"]:
            variables = dict(entry["variables"])
            if "ish" not in variables or variables["q"] != 0:
                continue
            corner = [variables[name] for name in ("ish", "isw")[: len(where.axes)]]
            source = [int(a.source[c]) for a, c in zip(where.axes, corner, strict=True)]
            read = where.element(variables["p"], 0)
            assert (None if min(source) < 0 else (*source, 0)) == read, case


# --- what is written, and what it takes ---


def test_what_is_written_and_counted_grows_step_by_step(model: Model) -> None:
    """Counters that go on by one with every product, read and look-up, against the page's."""
    for case in small(100):
        geometry = case.geometry
        f, k = geometry.out_channels, geometry.taps
        N = prod(case.input_size) * geometry.in_channels
        for lane in LANES:
            found = {entry["n"]: entry for entry in asked(model, case, lane)["log"]}
            written = {"M": 0, "K": 0, "Y": 0, "output": 0}
            counts = [0, 0, 0]
            for n, (line, select, _) in enumerate(told(case, lane), start=1):
                if lane == "im2col":
                    part = {14: "M", 20: "K", 23: "Y", 24: "output"}[line]
                    written[part] += f if part == "output" else 1
                    cost = {"M": (0, 1, 1), "K": (0, k, 0), "Y": (k, 2 * k, 0)}.get(part, (0, 0, 0))
                elif lane == "loops":
                    written["output"] += line == 6
                    cost = (1, 2, 1)
                elif "element" in select:
                    written["Y"] += select["element"] == N - 1
                    cost = (1, 2, 0)
                else:
                    written["output"] += f
                    cost = (0, 0, 0)
                counts = [a + b for a, b in zip(counts, cost, strict=True)]
                if n in found:
                    assert {name: found[n]["written"][name] for name in written} == written, case
                    assert found[n]["counts"] == counts, (case, lane, n)
            assert found[0]["counts"] == [0, 0, 0]
            assert not any(found[0]["written"].values())


def test_costs_are_the_closed_formulas(model: Model) -> None:
    for case in [EVERYDAY, *small(100)]:
        geometry = case.geometry
        L, columns = index_map(geometry, case.input_size).shape
        k, f = geometry.filter_matrix_shape
        N = prod(case.input_size) * geometry.in_channels
        ends = {lane: asked(model, case, lane, [None]) for lane in LANES}
        counts = {lane: end["log"][0]["counts"] for lane, end in ends.items()}
        assert counts == {
            "loops": [L * f * k, 2 * L * f * k, L * f * k],
            "im2col": [L * f * k, L * columns + k * f + 2 * L * f * k, L * columns],
            "matrix": [L * f * N, 2 * L * f * N, 0],
        }, case
        M = im2col(np.zeros((1, *case.input_size, geometry.in_channels)), geometry)
        T = conv_matrix(np.zeros(geometry.filters_shape), case.input_size, geometry)
        memory = {lane: end["memory"] for lane, end in ends.items()}
        assert memory == {"loops": 0, "im2col": M.size, "matrix": prod(T.shape)}, case
    assert ends["im2col"]["log"][0]["written"]["K"] == f
    assert asked(model, EVERYDAY, "matrix", [None])["memory"] == 529_984


@pytest.mark.parametrize("lane", LANES)
def test_what_the_steps_write_is_the_convolution(model: Model, lane: str) -> None:
    """The numbers, moved as the log says, give convfc's M and its output; on integers, exactly."""
    for seed, case in enumerate(small(60)):
        geometry, size = case.geometry, case.input_size
        x, filters, _ = case.integers(seed)
        x = x[0]
        L, columns = index_map(geometry, size).shape
        f = geometry.out_channels
        W = turned(filters, geometry).reshape(f, -1)
        found = asked(model, case, lane)
        if len(found["log"]) != found["steps"] + 1:
            continue  # too long to be asked as a whole
        M, Y, out = np.full((L, columns), 99), np.full((L, f), 99), np.zeros((L, f))
        T = conv_matrix(filters, size, geometry, layout="dense").reshape(L, f, -1)
        names = [*"ij"[: geometry.spatial_ndim], "d"]
        for entry in found["log"][1:]:
            at, variables = entry["select"], dict(entry["variables"])
            p, i, q = at.get("p"), at.get("f"), at.get("q")
            number = 0
            if q is not None and variables["d"] is not None:
                number = x[tuple(variables[name] for name in names)]
            if lane == "loops":
                out[p, i] += number * W[i, q % geometry.taps]
            elif lane == "matrix" and "element" in at:
                out[p, i] += T[p, i, at["element"]] * x.ravel()[at["element"]]
            elif lane == "im2col" and q is not None:
                M[p, q] = number
            elif i is not None and p is not None:
                first = i // (f // geometry.groups) * geometry.taps
                Y[p, i] = M[p, first : first + geometry.taps] @ W[i]
                out[p, i] = Y[p, i]
        if lane == "im2col":
            assert np.array_equal(M, im2col(x[None], forwards(geometry))[0]), case
        expected = conv_as_matmul(x[None], filters, geometry).reshape(L, f)
        assert np.array_equal(out, expected), case


def test_the_film_goes_on_and_back_by_numbers_rows_and_parts(model: Model) -> None:
    """Both ways it stops at the same places, and stays at its ends."""
    for case in [EVERYDAY, *small(60)]:
        L, columns = index_map(case.geometry, case.input_size).shape
        f = case.geometry.out_channels
        found = asked(model, case, "im2col", [])
        steps = found["steps"]
        numbers, rows, parts = (on for on, *_ in found["moves"])
        ends = np.cumsum([0, L * columns, f, L * f, L]).tolist()
        assert ends[-1] == steps
        if steps < 2000:
            assert numbers == list(range(steps + 1))
        assert parts == ends
        of_rows = [range(0, ends[1], columns), range(ends[1], ends[2]), range(ends[2], ends[3], f)]
        assert rows == [n for part in (*of_rows, range(ends[3], steps + 1)) for n in part]
        for entry in asked(model, case, "im2col")["log"][1:-1]:  # also from within a row
            at = bisect_left(rows, entry["n"])
            assert entry["rows"] == [rows[at - 1], rows[at + (rows[at] == entry["n"])]], case
        for lane in LANES:
            for on, back, end, start in asked(model, case, lane, [])["moves"]:
                assert len(on) == 3000 or on == back, (case, lane)
                assert (end, start) == (asked(model, case, lane, [])["steps"], 0)


def test_any_moment_of_a_long_film_is_had_at_once(model: Model) -> None:
    """Half a million steps, and twenty thousand million: nothing is stepped through."""
    large = Case(ConvGeometry(8, 16, (5, 5), padding=2), (112, 112))
    for case in (EVERYDAY, large):
        found = asked(model, case, "matrix", [0, 123_456, None])
        L, _ = index_map(case.geometry, case.input_size).shape
        N, f = prod(case.input_size) * case.geometry.in_channels, case.geometry.out_channels
        assert found["steps"] == L * f * N + L
        r, c = divmod(123_455, N)
        variables = dict(found["log"][1]["variables"])
        assert (variables["r"], variables["c"]) == (r, c)
        assert divmod(r, f) == (variables["p"], variables["f"])
        assert found["log"][1]["counts"] == [123_456, 246_912, 0]


# --- the three results ---


def test_three_ways_come_to_the_same(model: Model) -> None:
    """Nothing differs on whole numbers; on others, no more than sums in another order can."""
    for seed, case in enumerate(small(60)):
        x, filters, bias = case.integers(seed)
        state = {
            "settings": settings_of(case.geometry, case.input_size, bias=True),
            "input": {"values": x[0].ravel().tolist()},
            "filters": filters.ravel().tolist(),
            "bias": bias.tolist(),
        }
        outputs = prod(case.geometry.output_size(case.input_size)) * case.geometry.out_channels
        assert model.ask("compared", state) == {"largest": 0, "outputs": outputs}, case
    generator = np.random.default_rng(5)
    reflected = ConvGeometry(2, 3, (3, 3), padding=2, padding_mode="reflect")
    x, filters = generator.standard_normal((7, 7, 2)), generator.standard_normal((3, 3, 3, 2))
    state = {
        "settings": settings_of(reflected, (7, 7)),
        "input": {"values": x.ravel().tolist()},
        "filters": filters.ravel().tolist(),
    }
    gamma = 40 * 2.0**-53
    bound = 2 * gamma * conv_as_matmul(abs(x)[None], abs(filters), reflected).max()
    assert 0 < model.ask("compared", state)["largest"] < bound


# --- the film as a file ---


def pixels(picture: np.ndarray) -> list[int]:
    """Red, green, blue as the packed pixels of a canvas."""
    r, g, b = np.moveaxis(picture.astype(np.int64), -1, 0)
    return (r + (g << 8) + (b << 16) + (255 << 24)).ravel().tolist()


def film_of(model: Model, pictures: list[np.ndarray]) -> Image.Image:
    height, width, _ = pictures[0].shape
    data = model.ask("gif", width, height, [pixels(one) for one in pictures], 18)
    return Image.open(io.BytesIO(bytes(data)))


def test_a_film_is_read_back_as_its_pictures(model: Model) -> None:
    """Noise fills the table of LZW again and again; a still picture changes nothing."""
    generator = np.random.default_rng(1)
    colours = generator.permutation(np.stack(np.meshgrid(*[[4, 100, 250]] * 3), -1).reshape(-1, 3))
    first = colours[generator.integers(0, 27, (90, 120))]
    second = first.copy()
    second[40:60, 30:90] = colours[0]
    still = np.broadcast_to(colours[3], first.shape)
    pictures = [first, second, second, still, first]
    film = film_of(model, pictures)
    assert (film.size, film.n_frames, film.info["loop"]) == ((120, 90), 5, 0)
    for frame, picture in zip(ImageSequence.Iterator(film), pictures, strict=True):
        assert frame.info["duration"] == 180
        assert np.array_equal(np.asarray(frame.convert("RGB")), picture)


def test_a_film_of_many_colours_is_near_its_pictures(model: Model) -> None:
    ramp = np.linspace(0, 255, 400).round()
    picture = np.stack([ramp, ramp[::-1], 0 * ramp], -1)[None].repeat(8, 0)
    (frame,) = ImageSequence.Iterator(film_of(model, [picture]))
    assert abs(np.asarray(frame.convert("RGB")).astype(int) - picture).max() <= 8
