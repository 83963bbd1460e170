"""The product of patches with an FC weight, in blocks: exact, bounded, and never holding M."""

from __future__ import annotations

import itertools
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

import bounds
import numpy as np
import pytest
import torch
from cases import CASES, Case, case
from conv_cases import CHANNELS_LAST
from hypothesis import given, settings
from judges import torch_layer
from strategies import cases, seeds
from torch.autograd import forward_ad

from convfc import ConvGeometry, conv_as_matmul, im2col
from convfc.frameworks.torch.forms import blocks, products
from convfc.frameworks.torch.forms.blocks import conv_by_blocks, conv_by_module
from convfc.frameworks.torch.forms.windows import (
    open_rules,
    open_windows,
    patch_matrix,
    patches_at_once,
    patches_by_plan,
    plan,
)

if TYPE_CHECKING:
    from collections.abc import Callable

ONE_ROW, FEW_ROWS, WHOLE = 1, 400, 2**22

NATIVE = [c for c in CASES if c.geometry.spatial_ndim <= 3]
FEW = [
    case((7, 6), (3, 2), stride=(2, 3), padding=((1, 0), (0, 2))),
    case((6, 5), (3, 3), padding=1, c=3, f=4),
    case((5, 6), (2, 3), c=6, f=4, groups=2, stride=2),
    case((6, 6), (3, 3), c=4, f=4, groups=4, padding=1),
    case((4, 5), (3, 3), padding=1, padding_mode="circular"),
    case((4, 3), (3, 3), transposed=True, stride=2, padding=1, output_padding=1),
    case((6, 5), (3, 2), flip=True, stride=2, padding=1),
    case((5, 4), (1, 1), c=3, f=2),
    case((4, 5), (2, 2), padding=((0, 3), (0, 0))),  # windows that read nothing but padding
    case((7, 5), (2, 2), stride=2),  # side by side, and a rest that nothing reads
]


@pytest.fixture(params=[ONE_ROW, FEW_ROWS, WHOLE], ids=lambda size: f"block{size}")
def block_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Blocks of one row, of some, and one block; depthwise layers tap by tap, and as others."""
    monkeypatch.setattr(products, "LONG", 99 if request.param == FEW_ROWS else 2)
    monkeypatch.setattr(products, "BLOCK_BYTES", request.param)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", request.param)
    return int(request.param)


def tensors(c: Case, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[torch.Tensor]:
    """x in PyTorch's layout, the FC weight and the bias, of small integers."""
    x, filters, bias = c.integers(seed)
    weight = np.moveaxis(filters, -1, 1)
    parts = [np.moveaxis(x, -1, 1), weight.reshape(len(weight), -1), bias]
    found = [torch.tensor(np.ascontiguousarray(part)).to(dtype) for part in parts]
    if dtype.is_complex:
        found = [part * (1 + 2j) for part in found]
    return found


def native(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, g: ConvGeometry
) -> torch.Tensor:
    """PyTorch's own layer; beyond three axes, the package's own product."""
    layer = torch_layer if g.spatial_ndim <= 3 else conv_as_matmul
    filters = weight.unflatten(1, (-1, *g.kernel_size)).movedim(1, -1)
    y: torch.Tensor = layer(x.movedim(1, -1), filters, g, bias)
    return y.movedim(-1, 1)


def gradients(
    layer: Callable[..., torch.Tensor], inputs: list[torch.Tensor], dy: torch.Tensor
) -> list[torch.Tensor]:
    leaves = [t.detach().requires_grad_() for t in inputs]
    found = torch.autograd.grad(layer(*leaves), leaves, dy, allow_unused=True)
    return [
        torch.zeros_like(leaf) if grad is None else grad
        for leaf, grad in zip(leaves, found, strict=True)
    ]


def assert_same_gradients(
    layer: Callable[..., torch.Tensor],
    inputs: list[torch.Tensor],
    g: ConvGeometry,
    dy: torch.Tensor,
) -> None:
    expected = gradients(lambda *t: native(*t, g), inputs, dy)
    assert all(map(torch.equal, gradients(layer, inputs, dy), expected))


@pytest.mark.parametrize("c", [*CASES, *FEW[-2:]], ids=str)
def test_output_and_gradients_are_exact_on_integers(c: Case, block_bytes: int) -> None:
    g, inputs = c.geometry, tensors(c)
    expected = native(*inputs, g)
    assert torch.equal(conv_by_blocks(*inputs, g), expected)
    dy = torch.randint(-3, 4, expected.shape, dtype=expected.dtype)
    assert_same_gradients(lambda *t: conv_by_blocks(*t, g), inputs, g, dy)


@settings(max_examples=60, deadline=None)
@given(c=cases(max_ndim=3), seed=seeds)
def test_drawn_geometries_are_exact_on_integers(c: Case, seed: int) -> None:
    g, inputs = c.geometry, tensors(c, torch.float32, seed)
    expected = native(*inputs, g)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "BLOCK_BYTES", seed % 997 + 1)
        patch.setattr(products, "LONG", 2 + seed % 2)
        assert torch.equal(conv_by_blocks(*inputs, g), expected)
        dy = torch.ones_like(expected)
        assert_same_gradients(lambda *t: conv_by_blocks(*t, g), inputs, g, dy)


@pytest.mark.parametrize("onednn", [True, False])
def test_both_products_are_exact(onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(products, "_takes_onednn", lambda *t: taken.append(onednn) or onednn)
    c = case((7, 6), (3, 3), c=4, f=8, padding=1)
    inputs = tensors(c, torch.float32)
    assert torch.equal(conv_by_blocks(*inputs, c.geometry), native(*inputs, c.geometry))
    assert taken


def test_the_faster_product_is_left_alone_where_it_is_switched_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a = torch.ones(2, 2)
    present = hasattr(torch.ops.mkldnn, "_linear_pointwise")
    assert products._takes_onednn(a, None) == (present and torch.backends.mkldnn.enabled)
    assert not products._takes_onednn(a, a.double())
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert not products._takes_onednn(a)


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64],
    ids=lambda dtype: str(dtype).removeprefix("torch."),
)
@pytest.mark.parametrize("c", FEW, ids=str)
def test_every_dtype_is_exact_on_integers(c: Case, dtype: torch.dtype) -> None:
    g = c.geometry
    wide = torch.complex128 if dtype.is_complex else torch.float64
    inputs = tensors(c, wide)
    y = native(*inputs, g)
    dy = torch.full_like(y, 1 - 2j if dtype.is_complex else 1)
    found = conv_by_blocks(*(t.to(dtype) for t in inputs), g)
    assert found.dtype == dtype
    assert torch.equal(found, y.to(dtype))
    narrow = [t.to(dtype) for t in inputs]
    grads = gradients(lambda *t: conv_by_blocks(*t, g), narrow, dy.to(dtype))
    expected = gradients(lambda *t: native(*t, g), inputs, dy)
    assert all(map(torch.equal, grads, [t.to(dtype) for t in expected]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sums_of_16_bit_numbers_are_rounded_once(dtype: torch.dtype) -> None:
    c = case((6, 6), (3, 3), c=16, f=16, groups=16, padding=1)
    x, weight = (9 * t + 1 for t in tensors(c)[:2])
    expected = native(x, weight, None, c.geometry)
    assert expected.abs().max() > 2048
    found = conv_by_blocks(x.to(dtype), weight.to(dtype), None, c.geometry)
    assert torch.equal(found, expected.to(dtype))


@pytest.mark.parametrize("c", FEW, ids=str)
def test_memory_formats_and_strides_do_not_matter(c: Case, block_bytes: int) -> None:
    g, (x, weight, bias) = c.geometry, tensors(c)
    expected = native(x, weight, bias, g)
    last = CHANNELS_LAST[x.ndim]
    wide = torch.zeros(2 * len(x), *x.shape[1:-1], 2 * x.shape[-1], dtype=x.dtype)
    wide[::2, ..., ::2] = x
    for given_x in (x, x.contiguous(memory_format=last), wide[::2, ..., ::2]):
        for memory_format in (torch.contiguous_format, last):
            found = conv_by_blocks(given_x, weight, bias, g, memory_format=memory_format)
            assert torch.equal(found, expected)
            assert found.is_contiguous(memory_format=memory_format)
    inputs = [x, weight.t().contiguous().t(), bias]
    dy = torch.randint(-3, 4, expected.shape).to(x.dtype).mT.contiguous().mT
    assert_same_gradients(lambda *t: conv_by_blocks(*t, g), inputs, g, dy)


@pytest.mark.parametrize("needed", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_only_needed_gradients(needed: tuple[int, ...]) -> None:
    c = FEW[0]
    inputs = [t.requires_grad_(bool(n)) for t, n in zip(tensors(c), needed, strict=True)]
    conv_by_blocks(*inputs, c.geometry).sum().backward()
    expected = gradients(
        lambda *t: native(*t, c.geometry),
        inputs,
        torch.ones(()).expand(native(*inputs, c.geometry).shape).double(),
    )
    for tensor, n, grad in zip(inputs, needed, expected, strict=True):
        assert (tensor.grad is not None) == bool(n)
        assert not n or torch.equal(tensor.grad, grad)


@pytest.mark.parametrize("c", FEW, ids=str)
def test_no_bias_no_samples(c: Case) -> None:
    x, weight, bias = tensors(c)
    g = c.geometry
    assert torch.equal(conv_by_blocks(x, weight, None, g), native(x, weight, None, g))
    none = x[:0].requires_grad_()
    weight.requires_grad_()
    y = conv_by_blocks(none, weight, bias, g)
    assert y.shape == (0, g.out_channels, *g.output_size(x.shape[2:]))
    y.sum().backward()
    assert none.grad.shape == none.shape
    assert torch.equal(weight.grad, torch.zeros_like(weight))
    assert patch_matrix(none, g).shape == g.patch_matrix_shape(0, x.shape[2:])
    fc = torch.nn.Linear(g.groups * g.taps, 2, dtype=x.dtype)
    assert conv_by_module(none, fc, g, 2).shape[:2] == (0, 2)


def test_gradient_of_gradient_where_the_weight_depends_on_the_input() -> None:
    c = FEW[1]
    g = c.geometry
    x, weight, bias = tensors(c)

    def second(layer: Callable[..., torch.Tensor]) -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        w = weight * leaf.sum()
        (dx,) = torch.autograd.grad(layer(leaf, w, bias, g).square().sum(), leaf, create_graph=True)
        return torch.autograd.grad(dx.sum(), leaf)[0]

    assert torch.equal(second(conv_by_blocks), second(native))


@pytest.mark.filterwarnings(
    "ignore:.torch.jit.script. is deprecated:FutureWarning"
)  # PyTorch's own
def test_forward_mode_derivative() -> None:
    c = FEW[0]
    x, weight, bias = tensors(c)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        y = conv_by_blocks(dual, weight, bias, c.geometry)
        tangent = torch.autograd.forward_ad.unpack_dual(y).tangent
    assert torch.equal(tangent, native(torch.ones_like(x), weight, None, c.geometry))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("c", FEW, ids=str)
def test_real_numbers_stay_within_the_rounding_bound(c: Case, dtype: str, block_bytes: int) -> None:
    number = getattr(torch, dtype)
    arrays = [torch.tensor(a).to(number) for a in c.reals()]
    x, filters, bias = arrays
    exact = [a.double().numpy() for a in arrays]
    found = conv_by_blocks(x.movedim(-1, 1), filters.movedim(-1, 1).flatten(1), bias, c.geometry)
    difference = np.abs(
        found.movedim(1, -1).double().numpy() - bounds.reference(*exact[:2], c.geometry, exact[2])
    )
    limit = bounds.conv_bound(*exact[:2], c.geometry, exact[2], dtype=dtype)
    if dtype != "float32":  # the sum of wider products is rounded to this dtype once more
        limit = limit + bounds.UNIT_ROUNDOFF[dtype] * np.abs(found.movedim(1, -1).double().numpy())
    assert (difference <= limit).all()


def test_nan_and_infinity_reach_the_outputs_that_read_them_and_no_others(
    block_bytes: int,
) -> None:
    for c in FEW:
        x, weight, _ = tensors(c)
        weight = weight.abs() + 1
        x[0, 0, 0, 0] = float("nan")
        x[-1, -1, -1, -1] = float("inf")
        found = conv_by_blocks(x, weight, None, c.geometry)
        x[0, 0, 0, 0], x[-1, -1, -1, -1] = 0, 0
        marks = torch.zeros_like(x)
        marks[0, 0, 0, 0], marks[-1, -1, -1, -1] = 1, 1
        read = native(marks, torch.ones_like(weight), None, c.geometry) > 0
        assert torch.equal(~found.isfinite(), read), str(c)


@pytest.mark.parametrize("c", CASES, ids=str)
def test_patch_matrix_is_im2col_with_the_channels_of_a_tap_apart(c: Case) -> None:
    x, g = tensors(c)[0], c.geometry
    columns = im2col(x.movedim(1, -1), g).unflatten(2, (g.groups, *g.kernel_size, -1))
    assert torch.equal(patch_matrix(x, g), columns.movedim(-1, 3).flatten(2))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # forward mode's own
@pytest.mark.parametrize("c", CASES, ids=str)
def test_m_at_once_is_m_and_so_are_its_derivatives(c: Case) -> None:
    x, g = tensors(c)[0], c.geometry
    axes = plan(g, tuple(x.shape[2:]))

    def of(build: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        leaf = x.clone().requires_grad_()
        matrix = build(leaf, axes, g.groups)
        dy = torch.arange(float(matrix.numel())).reshape(matrix.shape).to(x).requires_grad_()
        (dx,) = torch.autograd.grad(matrix, leaf, dy, create_graph=True)
        (again,) = torch.autograd.grad(dx, dy, x.flip(0))
        with forward_ad.dual_level():
            dual = build(forward_ad.make_dual(x, x.flip(0)), axes, g.groups)
            return [matrix, dx, again, forward_ad.unpack_dual(dual).tangent]

    assert all(map(torch.equal, of(patches_at_once), of(patches_by_plan)))


@pytest.mark.parametrize("c", FEW, ids=str)
def test_a_module_in_blocks_is_the_layer(c: Case, block_bytes: int) -> None:
    g, (x, weight, bias) = c.geometry, tensors(c)
    k, per_group = g.taps, g.out_channels // g.groups
    calls = []

    def layer(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        def fc(patches: torch.Tensor) -> torch.Tensor:
            calls.append(tuple(patches.shape))
            rows = patches.unflatten(2, (g.groups, k))
            filters = weight.unflatten(0, (g.groups, per_group))
            return torch.einsum("nlgk,gfk->nlgf", rows, filters).flatten(2) + bias

        return conv_by_module(x, fc, g, g.out_channels, memory_format=torch.channels_last)

    expected = native(x, weight, bias, g)
    with torch.no_grad():
        found = layer(x, weight, bias)
    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert {(len(shape), shape[2]) for shape in calls} == {(3, g.groups * k)}
    dy = torch.randint(-3, 4, expected.shape).to(x.dtype)
    assert_same_gradients(layer, [x, weight, bias], g, dy)


def high_water(call: Callable[[], object]) -> int:
    """The most bytes that PyTorch's CPU allocator holds during a call, beside those before it."""
    with torch.profiler.profile(profile_memory=True) as seen:
        kept = call()
    del kept
    events = seen.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(itertools.accumulate(size for _, size in changes))


def test_m_is_never_held() -> None:
    g = ConvGeometry(16, 4, (7, 7), padding=3)
    x = torch.randn(4, 16, 96, 96)  # 2.3 MiB, of which M makes 110
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(4, g.taps).requires_grad_()
    matrix = 4 * prod(g.patch_matrix_shape(4, (96, 96)))
    fc = torch.nn.Linear(g.taps, 4)

    def train(layer: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(layer().sum(), (x,))

    def by_blocks() -> torch.Tensor:
        return conv_by_blocks(x, weight, None, g, memory_format=torch.channels_last)

    depthwise, per_channel = replace(g, out_channels=16, groups=16), torch.randn(16, 49)

    def by_taps() -> torch.Tensor:
        return conv_by_blocks(x, per_channel, None, depthwise)

    assert high_water(lambda: train(by_blocks)) < matrix / 3
    assert high_water(lambda: train(by_taps)) < matrix / 3
    assert high_water(lambda: train(lambda: conv_by_module(x, fc, g, 4))) < matrix / 2
    # Had M been held, it would have been seen:
    assert high_water(lambda: train(lambda: patch_matrix(x, g) @ weight.t())) > matrix * 0.9


@given(cases(max_ndim=3), seeds)
def test_what_a_compiler_pads_by_itself_is_the_index_map(c: Case, seed: int) -> None:
    g = c.geometry
    x = tensors(c, seed=seed)[0]
    whole, axes = open_windows(x, *open_rules(g))
    assert tuple(axis.positions for axis in axes) == g.output_size(x.shape[2:])
    assert torch.equal(patches_by_plan(whole, axes, g.groups), patch_matrix(x, g))
