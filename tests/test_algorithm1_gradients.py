"""Gradients through conv_as_matmul and im2col, against the native layers' own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import torch
from bounds import UNIT_ROUNDOFF, gamma, sum_bound
from cases import CASES, Case
from hypothesis import given
from judges import jax_layer, torch_layer
from strategies import cases, seeds

from convfc import conv_as_matmul, im2col

if TYPE_CHECKING:
    from collections.abc import Sequence


def cotangent(subject: Case, seed: int, dtype: Any) -> np.ndarray:
    """What flows back into the output: small integers."""
    g = subject.geometry
    shape = (subject.batch, *g.output_size(subject.input_size), g.out_channels)
    return np.random.default_rng(seed).integers(-4, 5, size=shape).astype(dtype)


def torch_gradients(layer: Any, subject: Case, seed: int, **rest: Any) -> list[np.ndarray]:
    leaves = [torch.tensor(a, requires_grad=True) for a in subject.integers(seed, np.float64)]
    x, filters, bias = leaves
    y = layer(x, filters, subject.geometry, bias, **rest)
    y.backward(torch.tensor(cotangent(subject, seed, np.float64)))
    assert all(leaf.grad is not None for leaf in leaves)
    return [leaf.grad.numpy() for leaf in leaves]


def vjp_in_jax(
    layer: Any, subject: Case, arrays: Sequence[np.ndarray], v: np.ndarray, **rest: Any
) -> list[np.ndarray]:
    @jax.jit
    def pulled_back(leaves: list[jax.Array], v: jax.Array) -> tuple[jax.Array, ...]:
        return jax.vjp(lambda x, w, b: layer(x, w, subject.geometry, b, **rest), *leaves)[1](v)

    gradients = pulled_back([jnp.asarray(a) for a in arrays], jnp.asarray(v))
    return [np.asarray(gradient) for gradient in gradients]


def jax_gradients(layer: Any, subject: Case, seed: int, **rest: Any) -> list[np.ndarray]:
    v = cotangent(subject, seed, np.float32)
    return vjp_in_jax(layer, subject, subject.integers(seed, np.float32), v, **rest)


def same(ours: list[np.ndarray], native: list[np.ndarray]) -> None:
    for name, mine, theirs in zip(("x", "filters", "bias"), ours, native, strict=True):
        assert np.array_equal(mine, theirs), name


@given(cases(max_ndim=3), seeds)
def test_torch_gradients_are_the_native_layers(subject: Case, seed: int):
    native = torch_gradients(torch_layer, subject, seed)
    same(torch_gradients(conv_as_matmul, subject, seed), native)


@pytest.mark.parametrize("subject", CASES[2:], ids=str)
def test_torch_gradients_in_blocks_of_rows_are_the_same(subject: Case):
    whole = torch_gradients(conv_as_matmul, subject, 0)
    memory = 2 * subject.geometry.groups * subject.geometry.taps * 8  # two rows
    same(torch_gradients(conv_as_matmul, subject, 0, memory=memory), whole)


@pytest.mark.parametrize("subject", CASES[2:], ids=str)
def test_jax_gradients_are_the_native_layers(subject: Case):
    same(jax_gradients(conv_as_matmul, subject, 0), jax_gradients(jax_layer, subject, 0))


@pytest.mark.parametrize("subject", CASES[2:12:3], ids=str)
def test_jax_gradients_in_blocks_of_rows_are_the_same(subject: Case):
    whole = jax_gradients(conv_as_matmul, subject, 0)
    _, rows, columns = subject.geometry.patch_matrix_shape(1, subject.input_size)
    memory = -(-rows // 3) * columns * 4  # a third of an image: JAX unrolls the blocks
    same(jax_gradients(conv_as_matmul, subject, 0, memory=memory), whole)


@pytest.mark.parametrize("subject", CASES[2:], ids=str)
def test_the_gradient_of_im2col_is_col2im(subject: Case):
    x = torch.tensor(subject.integers(dtype=np.float64)[0], requires_grad=True)
    M = im2col(x, subject.geometry)
    v = np.random.default_rng(0).integers(-4, 5, size=tuple(M.shape)).astype(np.float64)
    M.backward(torch.tensor(v))
    expected = np.zeros(subject.x_shape)
    for p, row in enumerate(oracle.readings(subject.geometry, subject.input_size)):
        for q, element in enumerate(row):
            if element is not None:
                expected[(slice(None), *element)] += v[:, p, q]
    assert np.array_equal(x.grad.numpy(), expected)


@pytest.mark.parametrize("subject", CASES[5:20:3], ids=str)
def test_second_derivatives_are_the_native_layers(subject: Case):
    """The gradient for x is linear in the filters: its own gradient is exact too."""

    def second(layer: Any) -> np.ndarray:
        x, filters, _ = (
            torch.tensor(a, requires_grad=True) for a in subject.integers(0, np.float64)
        )
        v = torch.tensor(cotangent(subject, 0, np.float64))
        (first,) = torch.autograd.grad(layer(x, filters, subject.geometry), x, v, create_graph=True)
        u = torch.tensor(subject.integers(1, np.float64)[0])
        return torch.autograd.grad(first, filters, u)[0].numpy()

    assert np.array_equal(second(conv_as_matmul), second(torch_layer))


REAL = [c for c in CASES[2:] if c.geometry.spatial_ndim == 2][::3]


@pytest.mark.parametrize("subject", REAL, ids=str)
def test_real_jax_gradients_are_the_native_layers_within_rounding(subject: Case):
    """Each is a sum of products, so two orders of it differ by two bounds at most."""
    g = subject.geometry
    arrays = subject.reals(dtype=np.float32)
    v = np.random.default_rng(1).uniform(0.5, 2, size=cotangent(subject, 0, int).shape)
    v = v.astype(np.float32)

    magnitudes = vjp_in_jax(jax_layer, subject, [np.abs(a) for a in arrays], v)
    ours = vjp_in_jax(conv_as_matmul, subject, arrays, v)
    native = vjp_in_jax(jax_layer, subject, arrays, v)
    # An element of x is read at most by every tap at every position, for all filters; a filter's
    # tap and a bias sum over all positions of the batch.
    positions = v.size // g.out_channels
    terms = [positions * g.taps * g.out_channels, positions, positions]
    triples = zip(("x", "filters", "bias"), ours, native, magnitudes, terms, strict=True)
    for name, mine, theirs, magnitude, count in triples:
        # The magnitude is a float32 sum too, of positive terms: at least 1 - gamma of the true one.
        true = magnitude.astype(np.float64) / (1 - gamma(count, UNIT_ROUNDOFF["float32"]))
        allowed = 2 * sum_bound(true, count, "float32")
        assert (np.abs(mine.astype(np.float64) - theirs) <= allowed).all(), name


@pytest.mark.parametrize("subject", CASES[3:22:6], ids=str)
def test_only_what_is_asked_for_gets_a_gradient(subject: Case):
    x, filters, bias = (torch.tensor(a) for a in subject.integers(dtype=np.float32))
    assert not conv_as_matmul(x, filters, subject.geometry, bias).requires_grad
    filters.requires_grad_()
    conv_as_matmul(x, filters, subject.geometry, bias).sum().backward()
    assert x.grad is None
    assert filters.grad is not None
