"""The four ways to compute a layer compute it, and what is measured of them is what they take."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import numpy as np
import oracle
import pytest
from commands import python

from convfc import ConvGeometry
from convfc.errors import RunError
from convfc.paper import cost
from convfc.runs import machine

MEGABYTE = 2**20
TINY = {
    "layer": {"batch": 2, "image": 8, "channels": 2, "filters": 3, "kernel": 3, "stride": 1},
    "series": {"image": [6, 9], "kernel": [2], "batch": [1]},
    "rounds": 3,
    "seconds": 0.0,
}
LAYERS = [
    {"batch": 2, "image": 7, "channels": 3, "filters": 4, "kernel": 3, "stride": 1},
    {"batch": 3, "image": 9, "channels": 1, "filters": 5, "kernel": 4, "stride": 2},
    {"batch": 1, "image": 5, "channels": 2, "filters": 1, "kernel": 1, "stride": 3},
]


def layer_id(layer: dict[str, int]) -> str:
    return "-".join(f"{name[0]}{size}" for name, size in layer.items())


def arrays(layer: dict[str, int]) -> tuple[np.ndarray, np.ndarray, ConvGeometry]:
    batch, image, channels, filters, kernel, stride = layer.values()
    geometry = ConvGeometry.valid(channels, filters, (kernel, kernel), stride=stride)
    random = np.random.default_rng(5)
    x, weights = (
        random.integers(-8, 9, shape).astype(np.float32)
        for shape in ((batch, image, image, channels), geometry.filters_shape)
    )
    return x, weights, geometry


@pytest.mark.parametrize("layer", LAYERS, ids=layer_id)
def test_every_way_computes_the_layer(layer: dict[str, int]) -> None:
    x, filters, geometry = arrays(layer)
    expected = oracle.conv(x, filters, geometry)
    ways = cost._ways(x, filters, geometry)
    assert tuple(ways) == cost.WAYS
    for way in ways.values():
        np.testing.assert_array_equal(np.asarray(way()), expected)


@pytest.mark.parametrize("name", cost.WAYS)
def test_a_way_that_computes_another_layer_is_not_measured(name: str) -> None:
    x, filters, geometry = arrays(LAYERS[0])
    ways = cost._ways(x, filters, geometry)
    right = ways[name]
    if name == "native":  # may round, so it has to be further away than rounding can lead
        ways[name] = lambda: np.asarray(right()) + 1
    else:  # exact, so the next number is one too many; the product is what the others are held to
        ways[name] = lambda: np.nextafter(right(), np.float32(np.inf))
    where = "direct sliding" if name == "product" else name
    message = "this way does not compute the layer; expected the product M K; got a difference of"
    with pytest.raises(RunError, match=f"^{where}: {message}"):
        cost._check(ways, x, filters, geometry)


@pytest.mark.parametrize(
    ("rounds", "seconds", "expected"), [(3, 0.0, 3), (3, 7.5, 4), (3, 1e9, 25), (99, 0.0, 99)]
)
def test_the_ways_take_turns_until_the_time_is_over(
    monkeypatch: pytest.MonkeyPatch, rounds: int, seconds: float, expected: int
) -> None:
    now, calls = 0.0, []

    def way(name: str, duration: float) -> None:
        nonlocal now
        calls.append(name)
        now += duration

    monkeypatch.setattr(cost.time, "perf_counter", lambda: now)
    ways = {"a": lambda: way("a", 1.5), "b": lambda: way("b", 0.5)}
    times = cost.take_turns(ways, rounds=rounds, seconds=seconds)
    assert times == {"a": [1.5] * expected, "b": [0.5] * expected}
    assert calls == ["a", "b"] * expected


def test_a_layer_has_the_median_of_its_times(monkeypatch: pytest.MonkeyPatch) -> None:
    def times(ways: cost.Ways, *, rounds: int, seconds: float) -> dict[str, list[float]]:
        del rounds, seconds
        return {name: [9.0, number, number + 0.5] for number, name in enumerate(ways)}

    monkeypatch.setattr(cost, "take_turns", times)
    methods = cost._measure_layer(TINY["layer"], rounds=3, seconds=0.0)["methods"]
    assert [methods[name]["seconds"] for name in cost.WAYS] == [0.5, 1.5, 2.5, 3.5]


PEAKS = """
import sys
import numpy as np
from convfc.paper import cost

size, megabyte = int(sys.argv[1]), int(sys.argv[2])

def call():
    np.ones(size, np.uint8)  # freed before the call ends, and still counted
    return np.ones(megabyte, np.uint8)

call()
for _ in range(2):  # memory that the first call freed hides nothing of the second
    print(cost._peak_bytes(call, native=False))
"""


@pytest.mark.skipif(not machine.has_high_water_mark(), reason="no resettable VmHWM on this system")
def test_the_peak_is_what_a_call_takes_at_its_highest() -> None:
    megabytes = 64
    # In a process of its own, as the costs are measured: other tests leave threads and pages here.
    run = python("-c", PEAKS, str(megabytes * MEGABYTE), str(MEGABYTE))
    peaks = [int(line) for line in run.stdout.split()]
    assert len(peaks) == 2
    for peak in peaks:
        assert abs(peak - megabytes * MEGABYTE) < 2 * MEGABYTE


def test_without_a_high_water_mark_numpy_is_traced_and_the_native_way_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr(machine, "_RESET", tmp_path / "no" / "clear_refs")
    assert not machine.has_high_water_mark()

    def call() -> np.ndarray:
        np.ones(8 * MEGABYTE, np.uint8)
        return np.ones(MEGABYTE, np.uint8)

    assert cost._peak_bytes(call, native=True) is None
    peak = cost._peak_bytes(call, native=False)
    assert peak is not None
    assert 8 * MEGABYTE <= peak < 9 * MEGABYTE


@pytest.mark.skipif(not machine.has_high_water_mark(), reason="no resettable VmHWM on this system")
def test_the_product_holds_m_and_row_blocks_do_not() -> None:
    layer = {"batch": 4, "image": 64, "channels": 16, "filters": 4, "kernel": 5, "stride": 1}
    row = cost._measure_layer(layer, rounds=1, seconds=0.0)
    peaks = {name: measured["peak_bytes"] for name, measured in row["methods"].items()}
    assert row["patch_matrix_bytes"] == 4 * 60 * 60 * 5 * 5 * 16 * 4
    assert row["input_bytes"] == 4 * 64 * 64 * 16 * 4
    assert row["output_bytes"] == 4 * 60 * 60 * 4 * 4
    m_and_output = row["patch_matrix_bytes"] + row["output_bytes"]
    assert abs(peaks["product"] - m_and_output) < 0.1 * m_and_output
    assert peaks["product in row blocks"] < 0.5 * row["patch_matrix_bytes"]
    assert peaks["direct sliding"] < 0.5 * row["patch_matrix_bytes"]


def test_costs_are_measured_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "QUICK", TINY)
    lines: list[str] = []
    found = cost.measure_cost(quick=True, progress=lines.append)
    assert json.loads(json.dumps(found)) == found
    layers = enumerate(("image 6", "image 9", "kernel 2", "batch 1"), 1)
    assert lines == [f"cost of the product form: {layer} ({n} of 4)" for n, layer in layers]
    values = {name: [row["value"] for row in rows] for name, rows in found["axes"].items()}
    assert values == TINY["series"]
    for name, rows in found["axes"].items():
        for row in rows:
            assert {key: row[key] for key in TINY["layer"]} == {**TINY["layer"], name: row["value"]}
            assert tuple(row["methods"]) == cost.WAYS
            assert all(measured["seconds"] > 0 for measured in row["methods"].values())
    assert set(found["machine"]) == {"processor", "cores", "system", "byte_order"}
    assert re.search("resident set|tracemalloc", found["memory_method"])


def test_a_failed_measurement_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "_backend", lambda: "abacus")
    message = r"measuring the cost .* failed; .*got exit code 1: .*ArgumentError: .*abacus"
    with pytest.raises(RunError, match=message):
        cost.measure_cost(quick=True)


def test_an_interruption_ends_the_measuring_process(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    popen = cost.subprocess.Popen

    def remember(*arguments: Any, **options: Any) -> Any:
        started.append(popen(*arguments, **options))
        return started[-1]

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt(line)

    monkeypatch.setattr(cost, "QUICK", TINY)
    monkeypatch.setattr(cost.subprocess, "Popen", remember)
    with pytest.raises(KeyboardInterrupt, match="image 6"):
        cost.measure_cost(quick=True, progress=interrupt)
    assert started[0].poll() is not None
