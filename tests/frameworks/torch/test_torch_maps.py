"""A layer of PyTorch as an operator: its own convolution does the work, exactly, in every form."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from conv_cases import CASES, SMALL, ConvCase, case
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode

from convfc import to_fc
from convfc.errors import DtypeError, UnsupportedLayer
from convfc.frameworks.torch import maps
from convfc.frameworks.torch.matrix import read_layer
from convfc.operators.matrix import conv_matrix
from convfc.operators.matrixfree import conv_operator
from convfc.rounding import rounding_bound

ORDERS = ("channels_first", "channels_last")
EXACT = (torch.float32, torch.float64, torch.complex64, torch.complex128)
# Where a border case of the padding meets a stride, a dilation or groups.
MORE = [
    case(nn.Conv2d, (2, 2, 3), 4, 3, padding=(3, 1), padding_mode="replicate"),
    case(nn.Conv1d, (2, 2, 3), 3, padding=3, padding_mode="circular", stride=2),
    case(nn.Conv2d, (2, 2, (2, 4)), 5, 6, padding="same", padding_mode="reflect"),
    case(nn.Conv2d, (2, 2, 3), 8, 9, stride=3, padding=1),  # elements that are never read
    case(nn.Conv2d, (4, 4, 2), 8, 7, stride=3, padding=1, padding_mode="circular", groups=2),
    case(nn.ConvTranspose1d, (2, 2, 2), 4, stride=2, dilation=3, output_padding=2),
    case(nn.ConvTranspose2d, (2, 4, 3), 4, 3, padding=2, dilation=2, output_padding=1),
]


class Calls(TorchDispatchMode):
    """Counts the convolutions that PyTorch computes."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "convolution" in func.__name__:
            self.batches.append(len(args[0]))
        return func(*args, **(kwargs or {}))


def without_bias(layer: nn.Module) -> nn.Module:
    layer = copy.deepcopy(layer)
    layer.bias = None
    return layer


def columns(images: torch.Tensor, order: str) -> np.ndarray:
    images = images.detach()
    images = images.movedim(1, -1) if order == "channels_last" else images
    return images.flatten(1).numpy().T


@pytest.mark.parametrize("subject", CASES + MORE, ids=str)
def test_it_is_the_layer_and_its_adjoint(subject: ConvCase):
    """Each product of a batch is one convolution."""
    for number, dtype in enumerate(EXACT):
        order = ORDERS[number % 2]
        layer, x = subject.layer(dtype), subject.x(dtype, batch=3)
        op = conv_operator(layer, subject.size, order=order)
        expected = columns(without_bias(layer)(x), order)
        with Calls() as calls:
            assert np.array_equal(op @ columns(x, order), expected)
        # Of complex filters each part is a convolution of a complex batch's two parts.
        assert calls.batches == ([6, 6] if dtype.is_complex else [3])
        A = conv_matrix(layer, subject.size, order=order, layout="dense")
        assert op.shape == A.shape
        assert op.dtype == A.dtype
        y = np.random.default_rng(0).integers(-2, 3, size=(op.shape[0], 3)).astype(op.dtype)
        if op.dtype.kind == "c":
            y += 1j * y[::-1]
        with Calls() as calls:
            found = op.H @ y
        assert calls.batches == ([6, 6] if dtype.is_complex else [3])
        assert found.dtype == op.dtype
        assert np.array_equal(found, A.conj().T @ y)
        assert np.array_equal(op @ np.zeros((op.shape[1], 0)), np.zeros((op.shape[0], 0)))


@pytest.mark.parametrize("form", ["patch", "weight"])
def test_every_form_of_a_layer(form: str):
    for subject in SMALL:
        layer, x = subject.layer(), subject.x()
        op = conv_operator(to_fc(nn.Sequential(copy.deepcopy(layer)), form=form)[0], subject.size)
        y = columns(without_bias(layer)(x), "channels_first")
        with Calls() as native:
            assert np.array_equal(op @ columns(x, "channels_first"), y)
        assert native.batches == [2]


def test_a_parametrized_layer_is_read_once():
    """Its weight changes whenever it is read, so the operator must be of one piece."""
    torch.manual_seed(0)
    layer = parametrizations.spectral_norm(nn.Conv2d(3, 4, 3, dtype=torch.float64))
    op = conv_operator(layer, (7, 6))
    A = conv_matrix(op.filters, (7, 6), op.geometry, order="channels_first")
    x = np.random.default_rng(0).integers(-2, 3, size=op.shape[1]).astype(float)
    bound = rounding_bound(abs(A) @ np.abs(x), 27, "float64")
    assert (np.abs(op @ x - A @ x) <= bound).all()
    assert (np.abs(op @ x - conv_matrix(layer, (7, 6)) @ x) > bound).any()


def test_wider_and_complex_vectors_make_it_calculate_so():
    """float64 vectors meet float32 filters in float64, as they would in NumPy."""
    layer = nn.Conv2d(3, 4, 3, padding=1)
    op = conv_operator(layer, (7, 6))
    x = np.random.default_rng(0).standard_normal(op.shape[1])
    y = op @ x
    A = conv_matrix(layer.double(), (7, 6))
    assert (np.abs(y - A @ x) <= rounding_bound(abs(A) @ np.abs(x), 27, "float64")).all()
    assert (op.dtype, y.dtype) == (np.float32, np.float64)
    assert (op @ x.astype(np.float32)).dtype == np.float32
    with Calls() as parts:  # real filters act on both parts at once
        assert (op @ (x + 1j)).dtype == np.complex128
    assert parts.batches == [2]


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float16], ids=str)
def test_what_pytorch_does_not_multiply_well_stays_with_numpy(dtype: torch.dtype):
    layer = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    values = torch.arange(layer.weight.numel()).reshape(layer.weight.shape) % 5
    layer.weight = nn.Parameter(values.to(dtype), requires_grad=False)
    op = conv_operator(layer, (7, 6))
    exact = nn.functional.conv2d(torch.ones(1, 3, 7, 6), values.float(), padding=1)
    with Calls() as native:
        y = op @ np.ones(op.shape[1], np.int8)
    assert native.batches == []
    assert np.array_equal(y, exact.numpy().ravel())
    with Calls() as native:  # in a wider dtype it does
        y = op @ np.ones(op.shape[1])
    assert native.batches == [1]
    assert np.array_equal(y, exact.numpy().ravel())


def test_strange_arrays_reach_pytorch_without_a_warning():
    subject = SMALL[0]
    op = conv_operator(subject.layer(), subject.size)
    x = np.arange(2.0 * op.shape[1])
    still = x[: op.shape[1]].copy()
    still.setflags(write=False)
    expected = op @ still.copy()
    assert np.array_equal(op @ still, expected)
    assert np.array_equal(op @ still[::-1], op @ still[::-1].copy())
    assert np.array_equal(op @ x[::2], op @ x[::2].copy())
    assert np.array_equal(op @ still.astype(">f8"), expected)
    records = np.zeros(len(still), [("name", "S3"), ("value", "f8")])
    records["value"] = still
    assert np.array_equal(op @ records["value"], expected)
    layer = read_layer(subject.layer(), subject.size)
    forward, _ = maps.linear_maps(layer, subject.size)
    images = still.reshape(1, layer.geometry.in_channels, *subject.size)
    assert np.array_equal(forward(images[:, ::-1][:, ::-1]).ravel(), expected)
    backwards = np.flip(np.flip(images).copy())
    assert np.array_equal(forward(backwards).ravel(), expected)


def test_a_layer_of_a_real_network():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
    op = conv_operator(conv, (64, 64))
    x = torch.randn(1, 3, 64, 64, requires_grad=True)
    native = conv(x)
    assert np.array_equal(op @ columns(x, "channels_first")[:, 0], native.detach().numpy().ravel())
    # The adjoint, judged by PyTorch's gradients within the rounding bound.
    y = torch.randn(native.shape)
    (gradient,) = torch.autograd.grad(native, x, y)
    moduli = copy.deepcopy(conv).double()
    moduli.weight.data.abs_()
    wide = x.detach().double().requires_grad_(True)
    (magnitude,) = torch.autograd.grad(moduli(wide), wide, y.double().abs())
    bound = rounding_bound(magnitude.numpy().ravel(), op.geometry.taps * 64, "float32")
    found = op.H @ y.numpy().ravel()
    assert (np.abs(found - gradient.numpy().ravel()) <= bound).all()
    assert np.any(found)


def test_what_is_no_layer_is_refused():
    with pytest.raises(UnsupportedLayer, match="it is not a CONV layer"):
        conv_operator(nn.Linear(3, 4), (3,))
    with pytest.raises(DtypeError, match="NumPy has no such dtype"):
        conv_operator(nn.Conv2d(3, 4, 3, dtype=torch.bfloat16), (7, 6))
