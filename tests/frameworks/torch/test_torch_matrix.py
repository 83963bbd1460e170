"""A layer of PyTorch as a tensor: SciPy's matrix, with gradients that reach the layer."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import CASES as GEOMETRIES
from cases import Case, case
from conv_cases import CASES, SMALL, ConvCase, integers
from hypothesis import given
from strategies import cases, seeds
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils import parametrizations, parametrize

import convfc
from convfc import ConvGeometry
from convfc.frameworks.torch.unrolled.entries import first_wrong, held_by
from convfc.operators import pattern as pattern_module
from convfc.operators.matrix import conv_matrix, conv_offset
from convfc.operators.pattern import matrix_pattern

if TYPE_CHECKING:
    from collections.abc import Callable

LAYOUTS = ("csr", "dense")
ORDERS = ("channels_first", "channels_last")

# Every way to multiply images, as rows of X, by A: all are PyTorch's own.
PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sparse.mm": lambda A, X: torch.sparse.mm(A, X.T).T,
    "A @ X": lambda A, X: (A @ X.T).T,
    "A @ x": lambda A, X: torch.stack([A @ x for x in X]),
    "X @ A.t()": lambda A, X: X @ A.t(),
    "F.linear": lambda A, X: F.linear(X, A),
    "to_dense": lambda A, X: X @ A.to_dense().T,
    "to_sparse_coo": lambda A, X: (A.to_sparse_coo() @ X.T).T,
    "twice": lambda A, X: (torch.sparse.mm(A, X.T) + 2 * (A @ X.T)).T - 2 * F.linear(X, A),
}


def tensor(layer: Any, size: tuple[int, ...], *geometry: ConvGeometry, **rest: Any) -> Tensor:
    return conv_matrix(layer, size, *geometry, library="torch", **rest)


def offset(layer: Any, size: tuple[int, ...], *geometry: ConvGeometry, **rest: Any) -> Tensor:
    return conv_offset(layer, size, *geometry, library="torch", **rest)


def gradients(y: Tensor, layer: nn.Module) -> list[Tensor]:
    weights = integers(y.shape, y.dtype, seed=5)
    return list(torch.autograd.grad((y * weights).sum(), list(layer.parameters())))


def check_outputs_and_gradients(y: Tensor, layer: nn.Module, x: Tensor) -> None:
    expected = layer(x).flatten(1)
    assert torch.equal(y, expected)
    for found, native in zip(gradients(y, layer), gradients(expected, layer), strict=True):
        assert torch.equal(found, native)


@pytest.mark.parametrize("subject", CASES, ids=str)
def test_it_computes_the_layer_and_its_gradients_and_is_scipy_s_matrix(subject: ConvCase):
    layer, x = subject.layer(), subject.x()
    for layout in LAYOUTS:
        A = tensor(layer, subject.size, layout=layout)
        y = x.flatten(1) @ A.t() + offset(layer, subject.size)
        check_outputs_and_gradients(y, layer, x)
    A = conv_matrix(layer, subject.size)
    sparse = tensor(layer, subject.size)
    assert sparse.layout is torch.sparse_csr
    torch._validate_sparse_csr_tensor_args(
        sparse.crow_indices(), sparse.col_indices(), sparse.values(), sparse.shape
    )
    for theirs, ours in [
        (sparse.crow_indices(), A.indptr),
        (sparse.col_indices(), A.indices),
        (sparse.values(), A.data),
        (offset(layer, subject.size), conv_offset(layer, subject.size)),
    ]:
        found = theirs.detach().numpy()
        assert found.dtype == ours.dtype
        assert np.array_equal(found, ours)


@given(cases(), seeds)
def test_every_geometry_gives_scipy_s_matrix_and_the_adjoint(subject: Case, seed: int):
    _, filters, bias = subject.integers(seed)
    leaf = torch.tensor(filters, dtype=torch.float64, requires_grad=True)
    for order in ORDERS:
        rest: Any = {"order": order}
        A = conv_matrix(filters, subject.input_size, subject.geometry, **rest)
        dense = tensor(leaf, subject.input_size, subject.geometry, layout="dense", **rest)
        assert np.array_equal(dense.detach().numpy(), A.toarray())
        given_ = (subject.input_size, subject.geometry)
        b = offset(leaf, *given_, bias=torch.from_numpy(bias), **rest)
        assert np.array_equal(b.numpy(), conv_offset(filters, *given_, bias=bias, **rest))
        sparse = tensor(leaf, subject.input_size, subject.geometry, **rest)
        pattern = matrix_pattern(subject.geometry, subject.input_size, order)
        held = np.random.default_rng(seed).integers(-9, 10, pattern.nonzeros)
        (grad,) = torch.autograd.grad(sparse.values(), leaf, torch.from_numpy(held).double())
        assert np.array_equal(grad.numpy(), pattern.fold(held))


@pytest.mark.parametrize("way", PRODUCTS)
def test_every_product_of_pytorch_passes_the_gradient_on(way: str):
    for subject in SMALL:
        layer, x = subject.layer(), subject.x()
        y = PRODUCTS[way](tensor(layer, subject.size), x.flatten(1)) + offset(layer, subject.size)
        check_outputs_and_gradients(y, layer, x)


@pytest.mark.parametrize(
    ("columns", "trace"),
    [
        ([[0], [1], [2], [3]], 10),  # the entries of the matrix itself
        ([[1], [0], [3], [2]], 0),  # as many in every row, elsewhere
        ([[0, 1], [2], [3], []], 1),  # the same list of columns, in other rows
        ([[0, 1, 2, 3]] * 4, 1 + 6 + 11 + 16),
        ([[], [], [], [2]], 0),
    ],
    ids=["same", "columns", "rows", "full", "fewer"],
)
def test_a_gradient_of_another_pattern_is_read_where_the_entries_are(
    columns: list[list[int]], trace: int
):
    layer = nn.Conv1d(1, 1, 1, bias=False, dtype=torch.float64)
    A = tensor(layer, (4,))
    indptr = np.cumsum([0, *map(len, columns)])
    values = torch.arange(1.0, 1.0 + indptr[-1], dtype=torch.float64)
    indices = torch.tensor(list(itertools.chain(*columns)))
    grad = torch.sparse_csr_tensor(
        torch.from_numpy(indptr), indices, values, (4, 4), check_invariants=True
    )
    for one in (grad, grad.to_dense()):
        (found,) = torch.autograd.grad(A, layer.weight, one, retain_graph=True)
        assert found.item() == grad.to_dense().trace() == trace


WITH_SUMS = case((3, 3), (3, 3), c=2, f=2, groups=2, padding=2, padding_mode="reflect")
CHECKED = [
    (GEOMETRIES[8], "channels_first", torch.float64),
    (GEOMETRIES[24], "channels_last", torch.complex128),
    (WITH_SUMS, "channels_first", torch.complex128),
    (WITH_SUMS, "channels_last", torch.float64),
]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # forward mode's own
@pytest.mark.parametrize(("subject", "order", "dtype"), CHECKED, ids=str)
def test_gradcheck(subject: Case, order: Any, dtype: torch.dtype):
    filters = torch.tensor(subject.reals()[1], dtype=dtype, requires_grad=True)
    size, geometry = subject.input_size, subject.geometry
    columns = matrix_pattern(geometry, size, order).shape[1]
    X = torch.tensor(np.random.default_rng(0).standard_normal((columns, 2)), dtype=dtype)

    def dense(w: Tensor) -> Tensor:
        return tensor(w, size, geometry, layout="dense", order=order)

    def sparse(w: Tensor) -> Tensor:
        return torch.sparse.mm(tensor(w, size, geometry, order=order), X)

    assert gradcheck(dense, filters, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(dense, filters, fast_mode=True)
    assert gradcheck(sparse, filters, fast_mode=True)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # forward mode's own
def test_transforms_of_torch_func():
    subject = WITH_SUMS
    filters = torch.tensor(subject.reals()[1])

    def dense(w: Tensor) -> Tensor:
        return tensor(w, subject.input_size, subject.geometry, layout="dense")

    forward = torch.func.jacfwd(dense)(filters)
    assert torch.equal(forward, torch.func.jacrev(dense)(filters))
    # The map is linear: its Jacobian times the filters is the matrix.
    ones = torch.ones_like(filters)
    assert torch.equal((forward * ones).sum(dim=tuple(range(2, forward.dim()))), dense(ones))
    several = torch.stack([filters, 2 * filters])
    assert torch.equal(torch.vmap(dense)(several), torch.stack([dense(w) for w in several]))
    last = several.movedim(0, -1)
    assert torch.equal(torch.vmap(dense, in_dims=-1)(last), torch.vmap(dense)(several))


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


@pytest.mark.parametrize("form", ["patch", "weight", "parametrized"])
def test_the_fc_forms_of_a_layer(form: Any):
    for subject in SMALL:
        layer = subject.layer()
        if form == "parametrized":
            parametrize.register_parametrization(layer, "weight", Doubled())
        else:
            layer = convfc.to_fc(layer, form=form)
        A, x = tensor(layer, subject.size), subject.x()
        y = torch.sparse.mm(A, x.flatten(1).T).T + offset(layer, subject.size)
        check_outputs_and_gradients(y, layer, x)


def test_spectral_norm_s_gradient_passes_through_the_parametrization():
    layer = parametrizations.spectral_norm(nn.Conv2d(2, 3, 3, dtype=torch.float64)).eval()
    A = tensor(layer, (5, 5))
    (grad,) = torch.autograd.grad(A.values().sum(), layer.parametrizations.weight.original)
    whole = A.values().sum()
    # Divided by its norm, the weight stays as it is when the parameter is scaled.
    scaled = (grad * layer.parametrizations.weight.original).sum().abs()
    assert scaled < 1e-12 * whole.abs().clamp(min=1)


@pytest.mark.parametrize(
    ("way", "sparse"),
    [
        ("sparse.mm", True),
        ("to_dense", True),
        ("A @ X", False),
        ("A @ x", False),
        ("F.linear", False),
    ],
)
def test_which_products_keep_the_gradient_sparse(way: str, sparse: bool):
    """What the documentation says: if PyTorch learns to keep more of them sparse, it can say so."""
    A = tensor(SMALL[0].layer(), SMALL[0].size)
    layouts = []
    A.register_hook(lambda grad: layouts.append(grad.layout))
    PRODUCTS[way](A, SMALL[0].x().flatten(1)).sum().backward()
    assert layouts == [torch.sparse_csr if sparse else torch.strided]


@pytest.mark.parametrize("way", ["sparse.mm", "values"])
def test_the_gradient_stays_sparse(way: str):
    """Dense, this matrix has 10**12 entries: four terabytes, that no machine would give."""
    geometry = ConvGeometry(1, 1, (2, 2), padding=((0, 1), (0, 1)))
    filters = torch.ones(geometry.filters_shape, requires_grad=True)
    A = tensor(filters, (1000, 1000), geometry)
    assert A.shape == (10**6, 10**6)
    entries = A.values() if way == "values" else torch.sparse.mm(A, torch.ones(10**6, 1))
    (grad,) = torch.autograd.grad(entries.sum(), filters)
    assert grad.flatten().tolist() == [1000 * 1000, 1000 * 999, 1000 * 999, 999 * 999]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (torch.bool, torch.int64),
        (torch.int8, torch.int64),
        (torch.uint8, torch.int64),
        (torch.int32, torch.int64),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.float32),
        (torch.complex64, torch.complex64),
    ],
    ids=str,
)
def test_dtypes(given: torch.dtype, kept: torch.dtype):
    filters = torch.ones(WITH_SUMS.filters_shape).to(given)
    expected = conv_matrix(np.ones(WITH_SUMS.filters_shape), (3, 3), WITH_SUMS.geometry)
    sparse = tensor(filters, (3, 3), WITH_SUMS.geometry)
    dense = tensor(filters, (3, 3), WITH_SUMS.geometry, layout="dense")
    assert sparse.dtype == dense.dtype == offset(filters, (3, 3), WITH_SUMS.geometry).dtype == kept
    assert torch.equal(dense, torch.from_numpy(expected.toarray()).to(kept))
    assert torch.equal(sparse.to_dense(), dense)


def test_a_16_bit_gradient_is_summed_in_32_bits():
    """513 inner positions and the two ends: added up in bfloat16 they would be 512."""
    geometry = ConvGeometry(1, 1, (3,), padding=1)
    filters = torch.ones(geometry.filters_shape, dtype=torch.bfloat16, requires_grad=True)
    (grad,) = torch.autograd.grad(tensor(filters, (515,), geometry).values().sum(), filters)
    assert grad.dtype == torch.bfloat16
    assert grad[0, 1, 0] == torch.tensor(515.0).bfloat16() == 516


def test_the_device_is_that_of_the_filters():
    filters = torch.ones(WITH_SUMS.filters_shape, device="meta")
    for layout in LAYOUTS:
        A = tensor(filters, (3, 3), WITH_SUMS.geometry, layout=layout)
        assert A.device.type == "meta"
    assert offset(filters, (3, 3), WITH_SUMS.geometry).device.type == "meta"


def test_indices_are_int64_where_int32_would_not_do(monkeypatch: pytest.MonkeyPatch):
    layer = SMALL[0].layer()
    narrow = tensor(layer, SMALL[0].size)
    monkeypatch.setattr(pattern_module, "_LARGEST_INT32", 1)
    wide = tensor(layer, SMALL[0].size)
    assert (narrow.col_indices().dtype, wide.col_indices().dtype) == (torch.int32, torch.int64)
    assert torch.equal(wide.to_dense(), narrow.to_dense())


def test_scipy_s_matrix_is_out_of_the_graph():
    layer = SMALL[0].layer()
    A = conv_matrix(layer, SMALL[0].size)
    assert type(A.data) is np.ndarray
    before = A.data.copy()
    with torch.no_grad():
        layer.weight.zero_()
    assert np.array_equal(A.data, before)


def test_no_warning_of_pytorch_reaches_the_user():
    """It warns of the first sparse rows in a process, here of all; and a warning is an error."""
    torch.set_warn_always(True)
    try:
        with pytest.raises(UserWarning, match="Sparse CSR tensor support"):
            torch.eye(2).to_sparse_csr()
        assert tensor(nn.Conv1d(2, 2, 3), (5,)).layout is torch.sparse_csr
    finally:
        torch.set_warn_always(False)


def test_wrong_entries_are_counted_and_the_first_is_named():
    pattern = matrix_pattern(ConvGeometry(1, 1, (2,)), (3,), "channels_first")
    held = held_by(torch.tensor([[3.0, 5.0, 0.0], [7.0, 3.5, 5.0]]), pattern)
    assert first_wrong(held, torch.tensor([3.0, 5.0, 3.0, 5.0]), pattern) == ((1, 0, 0.0, 7.0), 1)
    held = held._replace(stray=None)
    assert first_wrong(held, torch.tensor([3.0, 5.0, 3.0, 5.0]), pattern) == ((1, 1, 3.0, 3.5), 0)
    assert first_wrong(held, held.values, pattern) == (None, 0)
