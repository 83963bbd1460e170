"""Hypothesis strategies for cases, valid by construction: nothing is drawn and thrown away."""

from __future__ import annotations

from math import prod
from typing import Any

from cases import Case
from hypothesis import strategies as st

from convfc import ConvGeometry

MODES = ("zeros", "reflect", "replicate", "circular")

# The more axes, the smaller each of them: the oracle visits every element in Python.
LARGEST_INPUT = {1: 9, 2: 6, 3: 4, 4: 3}
LARGEST_KERNEL = {1: 4, 2: 3, 3: 2, 4: 2}
LARGEST_PADDING = 3

seeds = st.integers(0, 2**32 - 1)


def _widest(mode: str, n: int) -> int:
    """The widest padding that a mode has on an axis of n elements."""
    return {"reflect": min(LARGEST_PADDING, n - 1), "circular": min(LARGEST_PADDING, n)}.get(
        mode, LARGEST_PADDING
    )


@st.composite
def _ordinary_axis(
    draw: st.DrawFn, ndim: int, mode: str, padded: bool, unit_stride: bool
) -> dict[str, Any]:
    n = draw(st.integers(1, LARGEST_INPUT[ndim]))
    low = draw(st.integers(0, _widest(mode, n))) if padded else 0
    high = draw(st.integers(0, _widest(mode, n))) if padded else 0
    d = draw(st.integers(1, 3))
    fits = (low + n + high - 1) // d + 1  # the largest kernel that fits the padded input
    k = draw(st.integers(1, min(LARGEST_KERNEL[ndim], fits)))
    s = 1 if unit_stride else draw(st.integers(1, 3))
    return {"n": n, "padding": (low, high), "dilation": d, "kernel_size": k, "stride": s}


@st.composite
def _transposed_axis(draw: st.DrawFn, ndim: int) -> dict[str, Any]:
    n = draw(st.integers(1, min(4, LARGEST_INPUT[ndim])))
    k = draw(st.integers(1, LARGEST_KERNEL[ndim]))
    s = draw(st.integers(1, 3))
    d = draw(st.integers(1, 3))
    extra = draw(st.integers(0, max(s, d) - 1))
    whole = (n - 1) * s + d * (k - 1) + 1 + extra
    low = draw(st.integers(0, min(LARGEST_PADDING, whole - 1)))  # one element at least is left
    high = draw(st.integers(0, min(LARGEST_PADDING, whole - 1 - low)))
    return {
        "n": n,
        "padding": (low, high),
        "dilation": d,
        "kernel_size": k,
        "stride": s,
        "output_padding": extra,
    }


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    max_ndim: int = 4,
    modes: tuple[str, ...] = MODES,
    transposed: bool | None = None,
    flip: bool | None = None,
) -> Case:
    """A case with 1 to ``max_ndim`` spatial axes; None means either."""
    ndim = draw(st.integers(1, max_ndim))
    groups = draw(st.integers(1, 3))
    channels = draw(st.integers(1, 2))  # of a group; 1 with several groups is depthwise
    multiplier = draw(st.integers(1, 2))
    is_transposed = draw(st.booleans()) if transposed is None else transposed
    mode = "zeros" if is_transposed else draw(st.sampled_from(modes))
    # What is so on every axis at once has ways of its own, and is seldom drawn axis by axis.
    padded, unit_stride = draw(st.booleans()), draw(st.booleans())
    axis = (
        _transposed_axis(ndim) if is_transposed else _ordinary_axis(ndim, mode, padded, unit_stride)
    )
    axes = draw(st.lists(axis, min_size=ndim, max_size=ndim))
    values = {name: tuple(a[name] for a in axes) for name in axes[0]}
    input_size = values.pop("n")
    geometry = ConvGeometry(
        in_channels=groups * channels,
        out_channels=groups * multiplier,
        groups=groups,
        padding_mode=mode,
        transposed=is_transposed,
        flip=draw(st.booleans()) if flip is None else flip,
        **values,
    )
    batch = draw(st.integers(1, 2)) if prod(input_size) <= 64 else 1
    return Case(geometry, input_size, batch)
