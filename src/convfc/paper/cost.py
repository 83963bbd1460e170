"""What the product form costs: "more efficient [...] but needs much memory storage" (Section 1).

Four ways to compute one CONV layer, while the image, the kernel and the batch grow: direct sliding
of the window over the image (Section 3, Eq. (4)); the product M K (Algorithm 1); the same product
in row blocks, holding no more than a block of M at a time; and Keras's own, native convolution on
the run's backend, compiled.

Time is the median over rounds in which the ways take turns, so that a slow moment of the machine
meets all of them. Memory is what one call adds at its highest point, its output included. All of it
is measured in a process of its own: where networks were trained before, freed memory that the
allocator keeps would hide what a call takes.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convfc.algorithm1 import (
    conv_as_matmul,
    filters_to_matrix,
    im2col,
    patch_product,
    rows_to_output,
)
from convfc.errors import RunError
from convfc.frameworks.keras.backend import choose_backend
from convfc.geometry import ConvGeometry
from convfc.runs import machine

Array = NDArray[np.float32]
Ways = Mapping[str, Callable[[], Any]]

WAYS = ("direct sliding", "product", "product in row blocks", "native")

BLOCK_BYTES = 2**20
"""Bytes of M that the product in row blocks holds: they fit a processor's second-level cache."""

# A layer as it is found inside a network. The first layer of Section 5, 128 filters on one channel,
# would hide the point: its output is eight times as large as its M.
LAYER = {"batch": 8, "image": 48, "channels": 16, "filters": 32, "kernel": 3, "stride": 1}
QUICK: dict[str, Any] = {
    "layer": LAYER,
    "series": {"image": [12, 24, 48, 96], "kernel": [1, 3, 5, 7, 9], "batch": [1, 4, 16, 64]},
    "rounds": 3,
    "seconds": 0.5,
}
FULL: dict[str, Any] = {
    "layer": LAYER | {"image": 56, "channels": 32},
    "series": {
        "image": [14, 28, 56, 112, 224],
        "kernel": [1, 3, 5, 7, 11],
        "batch": [1, 4, 16, 32, 64],
    },
    "rounds": 5,
    "seconds": 3.0,
}
MOST_ROUNDS = 25

_RESOLUTION = 2**18  # Linux counts resident pages per processor and adds them up now and then
_UNIT_ROUNDOFF = 2.0**-24


def measure_cost(*, quick: bool, progress: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Measure time and memory of the four ways, in a process of its own.

    Quick is the small series, about half a minute on two cores; otherwise it takes some minutes.
    A peak that cannot be measured is None.
    """
    plan = json.dumps({"backend": _backend(), **(QUICK if quick else FULL)})
    command = [sys.executable, "-P", "-m", "convfc.paper.cost", plan]
    # One arena: glibc gives back the unused end of the first one only.
    environment = os.environ | {"MALLOC_ARENA_MAX": "1"}
    result: dict[str, Any] | None = None
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        # Our own interpreter and module: nothing here comes from outside.
        with subprocess.Popen(  # noqa: S603
            command, stdout=subprocess.PIPE, stderr=errors, encoding="utf-8", env=environment
        ) as process:
            try:
                for line in process.stdout or ():
                    if line.startswith("{"):
                        result = json.loads(line)
                    elif progress is not None:
                        progress(line.strip())
            except BaseException:
                process.kill()
                raise
        errors.seek(0)
        last_words = errors.read().strip().splitlines()[-1:]
    if process.returncode or result is None:
        raise RunError(
            "measuring the cost of the product form failed",
            where="python -m convfc.paper.cost",
            expected="exit code 0 and a result",
            got=": ".join([f"exit code {process.returncode}", *last_words]),
            remedy="a negative exit code is a signal, often for want of memory: "
            "close other programs",
        )
    return result


def take_turns(ways: Ways, *, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Time several warm ways to do one thing, a call of each in turn, so that drift meets all.

    There are at least so many rounds, and 25 at most until the seconds are over.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    end = time.perf_counter() + seconds
    for count in range(max(rounds, MOST_ROUNDS)):
        if count >= rounds and time.perf_counter() > end:
            break
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - began)
    return times


def _backend() -> str:
    """Return the backend of the run, so that the process that measures takes the same."""
    if "keras" in sys.modules:
        return str(sys.modules["keras"].config.backend())
    return os.environ.get("KERAS_BACKEND", "jax")


def _measure(plan: Mapping[str, Any], progress: Callable[[str], None]) -> dict[str, Any]:
    """Measure every layer of a plan in this process."""
    choose_backend(plan["backend"])
    axes: dict[str, list[dict[str, Any]]] = {axis: [] for axis in plan["series"]}
    sizes = [(axis, value) for axis, values in plan["series"].items() for value in values]
    for count, (axis, value) in enumerate(sizes, 1):
        progress(f"cost of the product form: {axis} {value} ({count} of {len(sizes)})")
        layer = {**plan["layer"], axis: value}
        row = _measure_layer(layer, rounds=plan["rounds"], seconds=plan["seconds"])
        axes[axis].append({"value": value, **layer, **row})
    return {
        "machine": machine.describe_machine(),
        "backend": plan["backend"],
        "dtype": "float32",
        "memory_method": "high-water mark of the resident set (VmHWM)"
        if machine.has_high_water_mark()
        else "tracemalloc: NumPy's arrays only, so nothing of the native layer",
        "row_block_bytes": BLOCK_BYTES,
        "axes": axes,
    }


def _measure_layer(layer: Mapping[str, int], *, rounds: int, seconds: float) -> dict[str, Any]:
    """Check, time and weigh every way to compute one layer."""
    channels, kernel = (layer["channels"], layer["filters"]), (layer["kernel"],) * 2
    geometry = ConvGeometry.valid(*channels, kernel, stride=layer["stride"])
    generator = np.random.default_rng(0)

    def small_integers(*shape: int) -> Array:
        # Their products and sums are exact in float32, so that the ways can be compared by ==.
        return generator.integers(-8, 9, shape).astype(np.float32)

    x = small_integers(layer["batch"], layer["image"], layer["image"], layer["channels"])
    filters = small_integers(*geometry.filters_shape)
    ways = _ways(x, filters, geometry)
    output_bytes = _check(ways, x, filters, geometry)
    times = take_turns(ways, rounds=rounds, seconds=seconds)
    methods = {}
    for name, way in ways.items():
        peak = _peak_bytes(way, native=name == "native")
        # Less than its own output: this library serves its arrays from memory that it keeps.
        known = peak is not None and peak + _RESOLUTION >= output_bytes
        seconds = statistics.median(times[name])
        methods[name] = {"seconds": seconds, "peak_bytes": peak if known else None}
    numbers = math.prod(geometry.patch_matrix_shape(len(x), x.shape[1:-1]))
    return {
        "methods": methods,
        "patch_matrix_bytes": numbers * x.itemsize,
        "input_bytes": x.nbytes,
        "output_bytes": output_bytes,
    }


def _ways(x: Array, filters: Array, geometry: ConvGeometry) -> dict[str, Callable[[], Any]]:
    """Return the four ways to compute a layer without padding, each a call without arguments."""

    def product() -> Any:
        patches = im2col(x, geometry, memory=sys.maxsize)
        rows = patch_product(patches, filters_to_matrix(filters, geometry), geometry)
        return rows_to_output(rows, geometry, x.shape[1:-1])

    def in_blocks() -> Any:
        return conv_as_matmul(x, filters, geometry, memory=BLOCK_BYTES)

    slide, native = partial(_slide, x, filters, geometry), _native(x, filters, geometry)
    return dict(zip(WAYS, (slide, product, in_blocks, native), strict=True))


def _slide(x: Array, filters: Array, geometry: ConvGeometry) -> Array:
    """Section 3 as every tutorial draws it, for all images and filters at each position."""
    (height, width), (stride, _) = geometry.kernel_size, geometry.stride
    rows, columns = geometry.output_size(x.shape[1:-1])
    output = np.empty((len(x), rows, columns, geometry.out_channels), x.dtype)
    for i in range(rows):
        for j in range(columns):
            top, left = i * stride, j * stride
            window = x[:, top : top + height, left : left + width]
            # Not optimised: einsum then multiplies and adds, and makes no matrix product of it.
            output[:, i, j] = np.einsum("bhwc,fhwc->bf", window, filters, optimize=False)
    return output


def _native(x: Array, filters: Array, geometry: ConvGeometry) -> Callable[[], Any]:
    """Return Keras's own convolution, compiled; a call returns when it is computed."""
    import keras

    options = {"padding": "valid", "data_format": "channels_last"}
    convolve = partial(keras.ops.conv, strides=geometry.stride, **options)
    with keras.device("cpu:0"):  # where the other ways compute, and memory is measured
        inputs = keras.ops.convert_to_tensor(x)
        kernel = keras.ops.convert_to_tensor(np.moveaxis(filters, 0, -1))
    if keras.config.backend() != "jax":
        return lambda: convolve(inputs, kernel)  # one operation, which comes compiled
    import jax

    compiled = jax.jit(convolve)
    return lambda: compiled(inputs, kernel).block_until_ready()


def _check(ways: Ways, x: Array, filters: Array, geometry: ConvGeometry) -> int:
    """Compare every way with the product, which warms it up, too; return the output's bytes."""
    # On integers the NumPy ways are exact. The native layer may use an algorithm that divides: it
    # stays within gamma_k |M||K|, gamma_k = k u / (1 - k u) (Higham 2002, ch. 3).
    exact = ways["product"]()
    gamma = geometry.taps * _UNIT_ROUNDOFF / (1 - geometry.taps * _UNIT_ROUNDOFF)
    bound = gamma * conv_as_matmul(np.abs(x), np.abs(filters), geometry)
    for name, way in ways.items():
        found = np.asarray(way())
        difference = np.abs(found - exact)
        if found.shape != exact.shape or np.any(difference > (bound if name == "native" else 0)):
            raise RunError(
                "this way does not compute the layer",
                where=name,
                expected="the product M K",
                got=f"a difference of {difference.max()}",
                remedy="nothing was measured; please report it with the versions installed",
            )
    return int(exact.nbytes)


def _peak_bytes(way: Callable[[], Any], *, native: bool) -> int | None:
    """Return how far memory rises above the level before the call, at its highest."""
    if machine.has_high_water_mark():
        return machine.peak_of(way)[1]
    if native:
        return None
    tracemalloc.start()
    try:
        way()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


if __name__ == "__main__":
    say = partial(print, flush=True)
    say(json.dumps(_measure(json.loads(sys.argv[1]), say)))
