"""Building M: against the memory's own speed, and against every library that builds it.

Each way gets its input in its own layout and gives M in its own; the values are checked, not timed.
The yardstick is ``numpy.copyto`` of an array of M's size into new memory: the least that building M
in new memory can take.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import statistics
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from harness import CORES, header, milliseconds, ratio, table, use_two_cores

from convfc import ConvGeometry, im2col
from convfc.paper.cost import take_turns

COPY = "copy of M's size"
OURS = "convfc, NumPy"
Ways = dict[str, Callable[[], Any]]

# name: (input shape, geometry)
LAYERS = {
    "experiment: 1000x28x28x1, 4x4 s2": (
        (1000, 28, 28, 1),
        ConvGeometry.valid(1, 128, (4, 4), stride=2),
    ),
    "8x56x56x64, 3x3 p1": ((8, 56, 56, 64), ConvGeometry(64, 64, (3, 3), padding=1)),
    "8x28x28x128, 3x3 p1": ((8, 28, 28, 128), ConvGeometry(128, 128, (3, 3), padding=1)),
    "8x224x224x3, 7x7 s2 p3": (
        (8, 224, 224, 3),
        ConvGeometry(3, 64, (7, 7), stride=2, padding=3),
    ),
    "8x56x56x64, 1x1": ((8, 56, 56, 64), ConvGeometry(64, 64, (1, 1))),
    "64x28x28x1, 5x5 p2": ((64, 28, 28, 1), ConvGeometry(1, 6, (5, 5), padding=2)),
    "8x56x56x64, 3x3 circular": (
        (8, 56, 56, 64),
        ConvGeometry(64, 64, (3, 3), padding=1, padding_mode="circular"),
    ),
    "8x56x56x64, 3x3 p2 d2": (
        (8, 56, 56, 64),
        ConvGeometry(64, 64, (3, 3), padding=2, dilation=2),
    ),
    "8x28x28x128, 3x3 p1 depthwise": (
        (8, 28, 28, 128),
        ConvGeometry(128, 128, (3, 3), padding=1, groups=128),
    ),
}
NUMPY_MODES = {"zeros": "constant", "circular": "wrap"}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="least calls of each way")
    parser.add_argument("--seconds", type=float, default=2.0, help="about so long per layer")
    arguments = parser.parse_args()
    use_two_cores()
    os.environ.setdefault("KERAS_BACKEND", "jax")
    header(
        f"Building M on {CORES} threads", "numpy", "torch", "jax", "keras", "unfoldnd", "einconv"
    )
    numpy_ratios = []
    for name, (shape, geometry) in LAYERS.items():
        x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        patches = im2col(x, geometry)
        ways = {COPY: lambda patches=patches: np.copyto(np.empty_like(patches), patches)}
        for builders in (with_convfc, with_numpy, with_torch, with_jax):
            ways |= builders(x, geometry, patches)
        times = take_turns(ways, rounds=arguments.rounds, seconds=arguments.seconds)
        took = {way: statistics.median(seconds) for way, seconds in times.items()}
        least = {way: min(seconds) for way, seconds in times.items()}
        numpy_ratios.append([name, ratio(took[OURS], took[COPY]), ratio(least[OURS], least[COPY])])
        table(
            f"{name}: M is {patches.nbytes / 1e6:.1f} MB",
            ["way", "median, ms", "least, ms", "GB/s of M", "to the copy", "to convfc, NumPy"],
            [
                [
                    way,
                    milliseconds(took[way]),
                    milliseconds(least[way]),
                    f"{patches.nbytes / took[way] / 1e9:.2f}",
                    ratio(took[way], took[COPY]),
                    ratio(took[way], took[OURS]),
                ]
                for way in ways
            ],
        )
    table("convfc, NumPy, to the copy", ["layer", "medians", "least times"], numpy_ratios)


def checked(name: str, found: Any, patches: np.ndarray) -> None:
    """Stop when a way does not build M: its time would say nothing."""
    if not np.array_equal(np.asarray(found), patches):
        raise SystemExit(f"{name} does not build this M")


def with_convfc(x: np.ndarray, geometry: ConvGeometry, patches: np.ndarray) -> Ways:
    """Return convfc on the arrays of three libraries."""
    import jax
    import torch

    tensor = torch.from_numpy(x)
    array = jax.numpy.asarray(x)
    compiled = jax.jit(lambda inputs: im2col(inputs, geometry))
    ways: Ways = {
        OURS: lambda: im2col(x, geometry),
        "convfc, torch": lambda: im2col(tensor, geometry),
        "convfc, jax (jit)": lambda: compiled(array).block_until_ready(),
    }
    for name, way in ways.items():
        checked(name, way(), patches)
    return ways


def with_numpy(x: np.ndarray, geometry: ConvGeometry, patches: np.ndarray) -> Ways:
    """Return what one writes with NumPy: a sliding window, and the loop of Algorithm 1."""
    (kh, kw), (sh, sw), (dh, dw) = geometry.kernel_size, geometry.stride, geometry.dilation
    rows, columns = geometry.output_size(x.shape[1:-1])
    high, wide = geometry.effective_kernel_size
    mode: Any = NUMPY_MODES[geometry.padding_mode]
    pairs = ((0, 0), *geometry.padding, (0, 0))

    def padded() -> np.ndarray:
        return np.pad(x, pairs, mode=mode) if is_padded(geometry) else x

    def sliding_window_view() -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(padded(), (high, wide), axis=(1, 2))
        windows = windows[:, ::sh, ::sw, :, ::dh, ::dw]
        by_group = windows.reshape(len(x), rows, columns, geometry.groups, -1, kh, kw)
        return by_group.transpose(0, 1, 2, 3, 5, 6, 4).reshape(patches.shape)

    def loop() -> np.ndarray:
        image = padded()
        built = np.empty(patches.shape, x.dtype)
        for p, (i, j) in enumerate(itertools.product(range(rows), range(columns))):
            top, left = i * sh, j * sw
            window = image[:, top : top + high : dh, left : left + wide : dw]
            by_group = window.reshape(len(x), kh * kw, geometry.groups, -1).swapaxes(1, 2)
            built[:, p] = by_group.reshape(len(x), -1)
        return built

    ways: Ways = {"numpy sliding_window_view": sliding_window_view, "Algorithm 1's loop": loop}
    for name, way in ways.items():
        checked(name, way(), patches)
    return ways


def with_torch(x: np.ndarray, geometry: ConvGeometry, patches: np.ndarray) -> Ways:
    """Return torch's unfold, unfoldNd and einconv: channels first, and M as (b, c * taps, L)."""
    import torch
    from torch.nn import functional

    torch.set_num_threads(CORES)
    tensor = torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))
    (low, _), _ = geometry.padding
    circular = geometry.padding_mode == "circular"
    sizes = {
        "dilation": geometry.dilation,
        "padding": 0 if circular else low,
        "stride": geometry.stride,
    }

    def padded() -> torch.Tensor:
        return functional.pad(tensor, (low,) * 4, mode="circular") if circular else tensor

    ways: Ways = {
        "torch unfold": lambda: functional.unfold(padded(), geometry.kernel_size, **sizes),
    }
    if importlib.util.find_spec("unfoldNd"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import unfoldNd
        ways["unfoldNd"] = lambda: unfoldNd.unfoldNd(padded(), geometry.kernel_size, **sizes)
    if importlib.util.find_spec("einconv"):
        from einconv.expressions import convNd_unfold

        # Its index patterns are made once, and not timed.
        equation, operands, shape = convNd_unfold.einsum_expression(
            padded(), geometry.kernel_size, **sizes
        )
        ways["einconv"] = lambda: torch.einsum(equation, *operands).reshape(shape)
    for name, way in ways.items():
        checked(name, channels_last(np.asarray(way()).swapaxes(1, 2), geometry), patches)
    return ways


def with_jax(x: np.ndarray, geometry: ConvGeometry, patches: np.ndarray) -> Ways:
    """Return jax.lax's patches, and those of keras.ops; both compiled."""
    import jax
    import keras

    array = jax.numpy.asarray(x)
    pairs = ((0, 0), *geometry.padding, (0, 0))

    def padded(inputs: jax.Array) -> jax.Array:
        if geometry.padding_mode == "circular":
            return jax.numpy.pad(inputs, pairs, mode="wrap")
        return jax.numpy.pad(inputs, pairs) if is_padded(geometry) else inputs

    @jax.jit
    def lax_patches(inputs: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated_patches(
            padded(inputs),
            geometry.kernel_size,
            geometry.stride,
            "VALID",
            rhs_dilation=geometry.dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    @jax.jit
    def keras_patches(inputs: jax.Array) -> jax.Array:
        return keras.ops.image.extract_patches(
            padded(inputs),
            geometry.kernel_size,
            strides=geometry.stride,
            dilation_rate=geometry.dilation,
            padding="valid",
            data_format="channels_last",
        )

    ways: Ways = {"jax.lax patches (jit)": lambda: lax_patches(array).block_until_ready()}
    found = channels_last(np.asarray(lax_patches(array)), geometry)
    checked("jax.lax patches (jit)", found, patches)
    # Keras refuses a stride together with a dilation.
    if max(geometry.stride) == 1 or max(geometry.dilation) == 1:
        checked("keras.ops patches", grouped(np.asarray(keras_patches(array)), geometry), patches)
        ways["keras.ops patches (jit)"] = lambda: keras_patches(array).block_until_ready()
    return ways


def channels_last(found: np.ndarray, geometry: ConvGeometry) -> np.ndarray:
    """Bring columns ordered (c, *kernel) into convfc's order: (groups, *kernel, c / groups)."""
    taps = int(np.prod(geometry.kernel_size))
    by_channel = found.reshape(len(found), -1, geometry.in_channels, taps)
    return grouped(by_channel.swapaxes(2, 3), geometry)


def grouped(found: np.ndarray, geometry: ConvGeometry) -> np.ndarray:
    """Bring columns ordered (*kernel, c) into convfc's order: (groups, *kernel, c / groups)."""
    taps, groups = int(np.prod(geometry.kernel_size)), geometry.groups
    by_group = found.reshape(len(found), -1, taps, groups, geometry.in_channels // groups)
    return by_group.swapaxes(2, 3).reshape(*by_group.shape[:2], -1)


def is_padded(geometry: ConvGeometry) -> bool:
    """Whether there is anything to pad."""
    return any(sum(pair) for pair in geometry.padding)


if __name__ == "__main__":
    main()
