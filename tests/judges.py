"""Judges none of us wrote: PyTorch's, JAX's and SciPy's convolutions, in the canonical layout.

``torch_layer`` and ``jax_layer`` take and give their own arrays, so that gradients pass through;
``JUDGES`` holds the same three as functions from NumPy to NumPy.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
import scipy.signal
import torch
import torch.nn.functional as F
from jax import lax

if TYPE_CHECKING:
    from convfc import ConvGeometry

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
TORCH_MODE = {"zeros": "constant"}
NUMPY_MODE = {
    "zeros": "constant",
    "reflect": "reflect",
    "replicate": "edge",
    "circular": "wrap",
}


def _torch_pad(x: torch.Tensor, widths: list[tuple[int, int]], mode: str) -> torch.Tensor:
    """F.pad, which lists the axes from the last to the first."""
    if not any(low or high for low, high in widths):
        return x
    return F.pad(x, [w for pair in reversed(widths) for w in pair], TORCH_MODE.get(mode, mode))


def torch_layer(
    x: torch.Tensor,
    filters: torch.Tensor,
    geometry: ConvGeometry,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """PyTorch's own layer (1 to 3 spatial axes)."""
    spatial = list(range(1, geometry.spatial_ndim + 1))
    if geometry.flip:
        filters = torch.flip(filters, spatial)
    x = x.movedim(-1, 1)
    symmetric = geometry.padding_mode == "zeros" and all(p == q for p, q in geometry.padding)
    own_padding = [p for p, _ in geometry.padding] if symmetric else 0
    if geometry.transposed:
        y = _torch_transposed(x, filters, geometry, own_padding, bias)
    else:
        if not symmetric:
            x = _torch_pad(x, list(geometry.padding), geometry.padding_mode)
        y = CONV[geometry.spatial_ndim](
            x,
            filters.movedim(-1, 1),
            bias,
            stride=geometry.stride,
            padding=own_padding,
            dilation=geometry.dilation,
            groups=geometry.groups,
        )
    return y.movedim(1, -1)


def _torch_transposed(
    x: torch.Tensor,
    filters: torch.Tensor,
    geometry: ConvGeometry,
    own_padding: list[int] | int,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """ConvTranspose wants (c, f/groups, *kernel), and only knows symmetric padding."""
    groups = geometry.groups
    weight = filters.unflatten(0, (groups, -1)).movedim(-1, 1).flatten(0, 1)
    layer = CONV_TRANSPOSE[geometry.spatial_ndim]
    shared: dict[str, Any] = {
        "stride": geometry.stride,
        "groups": groups,
        "dilation": geometry.dilation,
    }
    if isinstance(own_padding, list):
        own_extra = geometry.output_padding
        return layer(x, weight, bias, padding=own_padding, output_padding=own_extra, **shared)
    y = layer(x, weight, **shared)
    y = _torch_pad(y, [(0, extra) for extra in geometry.output_padding], "zeros")
    for axis, (low, high) in enumerate(geometry.padding, start=2):
        y = y.narrow(axis, low, y.shape[axis] - low - high)
    return y if bias is None else y + bias.reshape(-1, *[1] * geometry.spatial_ndim)


def jax_layer(x: Any, filters: Any, geometry: ConvGeometry, bias: Any = None) -> Any:
    """XLA's convolution: any number of axes; transposed is a stride-1 one on a dilated input."""
    n = geometry.spatial_ndim
    spatial = tuple(range(1, n + 1))
    dimensions = lax.ConvDimensionNumbers(
        lhs_spec=(0, n + 1, *spatial),
        rhs_spec=(0, n + 1, *spatial),
        out_spec=(0, n + 1, *spatial),
    )
    if geometry.flip != geometry.transposed:  # scattering through a kernel reads it backwards
        filters = jnp.flip(filters, spatial)
    ones = (1,) * n
    padding = list(geometry.padding)
    if geometry.transposed:
        reach = [(k - 1) * d for k, d in zip(geometry.kernel_size, geometry.dilation, strict=True)]
        ends = zip(reach, geometry.padding, geometry.output_padding, strict=True)
        padding = [(r - low, r - high + extra) for r, (low, high), extra in ends]
    elif geometry.padding_mode != "zeros":
        x = jnp.pad(x, [(0, 0), *padding, (0, 0)], mode=NUMPY_MODE[geometry.padding_mode])
        padding = [(0, 0)] * n
    y = lax.conv_general_dilated(
        x,
        filters,
        window_strides=ones if geometry.transposed else geometry.stride,
        padding=padding,
        lhs_dilation=geometry.stride if geometry.transposed else ones,
        rhs_dilation=geometry.dilation,
        dimension_numbers=dimensions,
        feature_group_count=geometry.groups,
        precision=lax.Precision.HIGHEST,
    )
    return y if bias is None else y + bias


def _spread(a: np.ndarray, steps: tuple[int, ...]) -> np.ndarray:
    """The array with ``step - 1`` zeros between neighbours on each axis."""
    wide = np.zeros([(n - 1) * s + 1 for n, s in zip(a.shape, steps, strict=True)], a.dtype)
    wide[tuple(slice(None, None, s) for s in steps)] = a
    return wide


def scipy_layer(
    x: np.ndarray, filters: np.ndarray, geometry: ConvGeometry, bias: np.ndarray | None = None
) -> np.ndarray:
    """SciPy's N-dimensional sliding sums, one image, filter and channel at a time."""
    channels = geometry.in_channels // geometry.groups
    per_group = geometry.out_channels // geometry.groups
    dtype = np.result_type(x, filters)
    y = None
    for b, f, c in product(range(len(x)), range(geometry.out_channels), range(channels)):
        image = x[b, ..., f // per_group * channels + c].astype(dtype)
        kernel = _spread(filters[f, ..., c].astype(dtype), geometry.dilation)
        piece = (_scipy_transposed if geometry.transposed else _scipy_slide)(
            image, kernel, geometry
        )
        if y is None:
            y = np.zeros((len(x), *piece.shape, geometry.out_channels), dtype)
        y[b, ..., f] += piece
    assert y is not None
    return y if bias is None else y + bias


def _scipy_slide(image: np.ndarray, kernel: np.ndarray, geometry: ConvGeometry) -> np.ndarray:
    slide = scipy.signal.convolve if geometry.flip else scipy.signal.correlate
    padded = np.pad(image, geometry.padding, mode=NUMPY_MODE[geometry.padding_mode])
    dense = slide(padded, kernel, mode="valid", method="direct")
    return dense[tuple(slice(None, None, s) for s in geometry.stride)]


def _scipy_transposed(image: np.ndarray, kernel: np.ndarray, geometry: ConvGeometry) -> np.ndarray:
    if geometry.flip:
        kernel = np.flip(kernel)
    y = scipy.signal.convolve(_spread(image, geometry.stride), kernel, mode="full", method="direct")
    y = np.pad(y, [(0, extra) for extra in geometry.output_padding])
    ends = zip(y.shape, geometry.padding, strict=True)
    return y[tuple(slice(low, n - high) for n, (low, high) in ends)]


def judge_torch(
    x: np.ndarray, filters: np.ndarray, geometry: ConvGeometry, bias: np.ndarray | None = None
) -> np.ndarray:
    arrays = [None if a is None else torch.tensor(a) for a in (x, filters, bias)]
    return torch_layer(arrays[0], arrays[1], geometry, arrays[2]).numpy()


def judge_jax(
    x: np.ndarray, filters: np.ndarray, geometry: ConvGeometry, bias: np.ndarray | None = None
) -> np.ndarray:
    arrays = [None if a is None else jnp.asarray(a) for a in (x, filters, bias)]
    return np.asarray(jax_layer(arrays[0], arrays[1], geometry, arrays[2]))


JUDGES: dict[str, Any] = {"torch": judge_torch, "jax": judge_jax, "scipy": scipy_layer}
# Where each judge multiplies small integers without rounding; PyTorch convolves no integers.
EXACT_DTYPE = {"torch": np.float64, "jax": np.int32, "scipy": np.int64}
LARGEST_NDIM = {"torch": 3, "jax": 4, "scipy": 4}
