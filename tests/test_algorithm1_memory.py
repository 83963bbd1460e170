"""The memory budget: the same bits in blocks of rows, and never an M larger than allowed."""

from __future__ import annotations

import inspect
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from cases import CASES, Case, case
from hypothesis import given
from libraries import JAX, TORCH, Library, to_numpy, traced_peak
from strategies import cases, seeds
from torch.utils._python_dispatch import TorchDispatchMode

from convfc import ConvGeometry, conv_as_matmul, im2col
from convfc.algorithm1 import DEFAULT_MEMORY
from convfc.errors import MemoryBudgetError

MIB = 2**20


def bytes_per_row(subject: Case, itemsize: int = 8) -> int:
    """What one row of M takes."""
    return subject.geometry.groups * subject.geometry.taps * itemsize


@given(cases(), seeds)
def test_every_number_of_rows_gives_the_same_bits(subject: Case, seed: int):
    x, filters, bias = subject.integers(seed)
    whole = conv_as_matmul(x, filters, subject.geometry, bias)
    batch, rows, _ = subject.geometry.patch_matrix_shape(subject.batch, subject.input_size)
    for block in {*range(1, min(rows, 9)), rows - 1, rows, rows + 1, batch * rows} - {0}:
        memory = block * bytes_per_row(subject)
        blocked = conv_as_matmul(x, filters, subject.geometry, bias, memory=memory)
        assert np.array_equal(blocked, whole)


SMALL_ONES = [c for c in CASES if prod(c.input_size) < 50]
# JAX compiles every block of rows anew, so it gets few cases here.
ONE_ROW = [(TORCH, c) for c in SMALL_ONES] + [(JAX, c) for c in SMALL_ONES[1:20:9]]


@pytest.mark.parametrize(("library", "subject"), ONE_ROW, ids=str)
def test_one_row_at_a_time_in_torch_and_jax(library: Library, subject: Case):
    x, filters, bias = library.arrays(*subject.integers(dtype=np.float32))
    whole = conv_as_matmul(x, filters, subject.geometry, bias)
    memory = bytes_per_row(subject, itemsize=4)
    blocked = conv_as_matmul(x, filters, subject.geometry, bias, memory=memory)
    assert type(blocked) is type(whole)
    assert np.array_equal(to_numpy(blocked), to_numpy(whole))


BUDGET = 2 * MIB
BIG = [  # M is many times the budget, the input and the output are far smaller
    case((192, 192), (9, 9), c=1, f=1, batch=1),
    case((192, 192), (9, 9), c=1, f=1, batch=1, padding=4, padding_mode="reflect"),
    case((192, 192), (5, 5), c=4, f=4, batch=1, groups=4, padding=((4, 0), (0, 4))),
    case((96, 96), (9, 9), c=1, f=1, batch=1, transposed=True, stride=2),
    case((96, 96), (9, 9), c=1, f=1, batch=4, padding=4, dilation=(1, 2)),
    case((20000,), (128,), c=1, f=1, batch=1),
    case((40, 40, 20), (4, 4, 5), c=1, f=1, batch=1, flip=True),
]


@pytest.mark.parametrize("subject", BIG, ids=str)
def test_numpy_never_holds_m(subject: Case):
    x, filters, bias = subject.reals()
    g = subject.geometry
    size_of_m = prod(g.patch_matrix_shape(subject.batch, subject.input_size)) * 8
    assert size_of_m > 5 * BUDGET
    x_room = prod(
        (n - 1) * (s if g.transposed else 1) + 1 + low + high + e  # dilated and padded by a kernel
        for n, s, (low, high), e in zip(
            subject.input_size, g.stride, g.padding, g.effective_kernel_size, strict=True
        )
    )
    in_and_out = 8 * (subject.batch * g.in_channels * x_room + filters.size)
    in_and_out += 2 * 8 * prod((subject.batch, g.out_channels, *g.output_size(subject.input_size)))
    y, peak = traced_peak(lambda: conv_as_matmul(x, filters, g, bias, memory=BUDGET))
    assert peak < BUDGET + in_and_out + MIB // 4  # the rest: index maps of single axes
    assert np.allclose(y, conv_as_matmul(x, filters, g, bias), rtol=1e-9)


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any PyTorch operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.elements = max(self.elements, storage)
        return result


def largest_in_jaxpr(jaxpr: Any) -> int:
    """The number of elements of the largest array in a traced JAX program."""
    largest = 0
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            largest = max(largest, prod(variable.aval.shape))
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                largest = max(largest, largest_in_jaxpr(inner))
    return largest


SMALL = case((24, 24), (5, 5), c=1, f=1, batch=1, padding=2)
PADDED = 28 * 28  # the largest array there is any need for; M has 24 * 24 * 25 elements


@pytest.mark.parametrize(("memory", "expected"), [(DEFAULT_MEMORY, 14400), (20 * 25 * 4, PADDED)])
def test_torch_and_jax_never_hold_m(memory: int, expected: int):
    x, filters, _ = SMALL.reals(dtype=np.float32)
    with Largest() as seen:
        conv_as_matmul(torch.tensor(x), torch.tensor(filters), SMALL.geometry, memory=memory)
    assert seen.elements == expected
    program = jax.make_jaxpr(lambda x, w: conv_as_matmul(x, w, SMALL.geometry, memory=memory))
    assert largest_in_jaxpr(program(jnp.asarray(x), jnp.asarray(filters)).jaxpr) == expected


def giant(dtype: type = np.float32) -> np.ndarray:
    """An image of 2**40 pixels that takes the memory of one."""
    return np.broadcast_to(np.zeros((), dtype), (1, 2**20, 2**20, 1))


@pytest.mark.parametrize("padding", [0, 1])
def test_im2col_refuses_a_giant_m_before_it_allocates_anything(padding: int):
    geometry = ConvGeometry(1, 1, (3, 3), padding=padding)

    def refused() -> None:
        with pytest.raises(MemoryBudgetError, match=r"memory.*expected .* at most|bytes"):
            im2col(giant(), geometry)

    _, peak = traced_peak(refused)
    assert peak < 40 * MIB  # int64 per element of a single axis, a few times


def test_im2col_budget_is_exact():
    subject = case((5, 5), (3, 3), c=1, batch=2)
    x, _, _ = subject.integers()
    needed = 2 * 9 * 9 * 8
    assert im2col(x, subject.geometry, memory=needed).nbytes == needed
    with pytest.raises(MemoryBudgetError, match=rf"{needed - 1}"):
        im2col(x, subject.geometry, memory=needed - 1)


def test_the_default_budget_is_one_gib():
    for function in (im2col, conv_as_matmul):
        assert inspect.signature(function).parameters["memory"].default == DEFAULT_MEMORY == 2**30


@pytest.mark.parametrize("memory", [1e9, float("inf"), np.int64(4096)], ids=repr)
def test_a_budget_may_be_written_as_any_number(memory: float):
    x, filters, _ = SMALL.integers()
    y = conv_as_matmul(x, filters, SMALL.geometry, memory=memory)
    assert np.array_equal(y, conv_as_matmul(x, filters, SMALL.geometry))


@pytest.mark.parametrize("dtype", [np.float64, np.int8])
def test_a_budget_under_one_row_is_refused_and_one_row_is_enough(dtype: type):
    """Small integers count as the wide ones that they are multiplied as."""
    x, filters, _ = SMALL.integers(dtype=dtype)
    row = bytes_per_row(SMALL)
    whole = conv_as_matmul(x, filters, SMALL.geometry)
    assert np.array_equal(conv_as_matmul(x, filters, SMALL.geometry, memory=row), whole)
    with pytest.raises(MemoryBudgetError, match=rf"row.*{row}.*{row - 1}"):
        conv_as_matmul(x, filters, SMALL.geometry, memory=row - 1)
