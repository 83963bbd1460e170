"""The unrolled form with sparse weights: what PyTorch does with them, and what it does not."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conv_cases import CASES, ConvCase, integers
from torch import nn

import convfc
from convfc.errors import MemoryBudgetError, UnsupportedLayer

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
    pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning"),
]


def unroll(model: nn.Module, x: object, **options: object) -> nn.Module:
    return convfc.unroll(model, x, **options, sparse=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_layer_is_exact_forward_and_backward(case: ConvCase, dtype: torch.dtype) -> None:
    layer, x = case.layer(dtype), case.x(dtype)
    after = unroll(layer, x)
    assert type(after[1]) is nn.Linear
    assert after[1].weight.layout is torch.sparse_csr
    A = convfc.conv_matrix(layer, case.size)
    assert len(after[1].weight.values()) == A.nnz
    for given in (x, x[:1], x[0], x[:0]):
        first, second = (given.clone().requires_grad_() for _ in range(2))
        y, z = layer(first), after(second)
        assert torch.equal(y, z)
        layer.zero_grad()
        after.zero_grad()
        dy = integers(y.shape, dtype, 3)
        y.backward(dy)
        z.backward(dy)
        assert torch.equal(first.grad, second.grad)
    after.zero_grad()
    after(x).backward(integers(layer(x).shape, dtype, 3))
    layer.zero_grad()
    layer(x).backward(integers(layer(x).shape, dtype, 3))
    back = convfc.to_conv(nn.Sequential(after), inplace=True)[0]
    assert torch.equal(back.weight, layer.weight)
    assert torch.equal(back.weight.grad, layer.weight.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_dtype_that_pytorch_multiplies_no_sparse_weights_of_is_refused(
    dtype: torch.dtype,
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, dtype=dtype))
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(
        UnsupportedLayer, match=f"0: PyTorch multiplies by no sparse weight of {name}"
    ):
        unroll(model, torch.zeros(1, 3, 5, 5, dtype=dtype))


def test_state_dicts_and_whole_models_are_saved_and_loaded() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3)), torch.randn(2, 3, 5, 6)
    after, other = unroll(model, x), unroll(nn.Sequential(nn.Conv2d(3, 4, 3)), x)
    file = io.BytesIO()
    torch.save(after.state_dict(), file)
    file.seek(0)
    with pytest.warns(UserWarning, match="Validating sparse tensor invariants"):
        other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), after(x))
    file = io.BytesIO()
    torch.save(after, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(x), after(x))
    assert torch.equal(convfc.to_conv(loaded)[0].weight, model[0].weight)


def test_convfc_copies_what_pytorch_does_not() -> None:
    """The first part is why the others must not use deepcopy alone; it may be gone some day."""
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)), torch.randn(2, 3, 7, 6)
    after = unroll(model, x)
    with pytest.raises(RuntimeError, match="memory format"):
        copy.deepcopy(after)
    y = after(x)
    some = convfc.to_conv(after, where="0")
    assert [type(part) for part in some] == [nn.Conv2d, nn.Sequential]
    assert torch.equal(some[1](some[0](x)), some(x))
    assert convfc.verify(model, after, x).holds
    assert convfc.verify(after, model, x).holds
    assert torch.equal(after(x), y)
    assert after[0][1].weight.grad is None


def test_a_layer_that_no_dense_matrix_would_fit_for() -> None:
    layer, x = nn.Conv2d(4, 8, 3, padding=1), torch.randn(1, 4, 48, 48)
    with pytest.raises(MemoryBudgetError, match="sparse=True keeps the entries"):
        convfc.unroll(layer, x, memory=2**24)
    after = unroll(layer, x, memory=2**24)
    torch.testing.assert_close(after(x), layer(x))
    assert torch.equal(convfc.to_conv(after).weight, layer.weight)
    with pytest.raises(MemoryBudgetError, match="Remedy: form='patch'"):
        unroll(layer, x, memory=2**18)


def test_what_a_tool_has_changed_in_sparse_weights() -> None:
    layer, x = nn.Conv2d(2, 3, 3, padding=1), torch.randn(1, 2, 5, 5)
    after = unroll(nn.Sequential(layer), x)
    with torch.no_grad():
        after[0][1].weight.values().mul_(2)
    assert torch.equal(convfc.to_conv(after)[0].weight, 2 * layer.weight)
    with torch.no_grad():
        after[0][1].weight.values()[7] += 1
    with pytest.raises(UnsupportedLayer, match=r"0: .*matrix\["):
        convfc.to_conv(after)


EXPORTS = {
    "onnx": "torch.onnx.export(fc, (x,), 'model.onnx', dynamo=True)",
    "export": "torch.export.export(fc, (x,)).run_decompositions()",
}
PROGRAM = """
import sys, torch, convfc
from torch import nn
model, x = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()).eval(), torch.randn(1, 1, 5, 5)
fc = convfc.to_fc(model, form="unrolled", example=x, sparse=True, simplify={simplify})
try:
    {export}
except Exception as error:
    while error:
        print(type(error).__name__, error)
        error = error.__cause__
"""


@pytest.mark.parametrize(
    ("export", "simplify"), [("onnx", False), ("onnx", True), ("export", False)]
)
def test_an_export_is_refused_where_pytorch_would_end_the_process(
    export: str, simplify: bool, tmp_path: Path
) -> None:
    """In a process of its own, which PyTorch 2.14 aborts without the refusal."""
    program = PROGRAM.format(simplify=simplify, export=EXPORTS[export])
    run = subprocess.run(  # noqa: S603 (our own interpreter)
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert (
        "Linear(in_features=25, out_features=18, bias=True): what PyTorch exports of sparse "
        "weights, to ONNX or else, would end this process. Remedy: convert without sparse=True: "
        "unroll(model, x)"
    ) in run.stdout
    assert not (tmp_path / "model.onnx").exists()


def test_dense_weights_in_the_place_of_sparse_ones_are_exported() -> None:
    model, x = nn.Sequential(nn.Conv2d(1, 2, 3)).eval(), torch.randn(1, 1, 5, 5)
    after = unroll(model, x)
    after[0][1].weight = nn.Parameter(after[0][1].weight.detach().to_dense())
    exported = torch.export.export(after, (x,)).run_decompositions()
    assert torch.equal(exported.module()(x), after(x))


@pytest.mark.filterwarnings("ignore:`torch.jit.script:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_the_refusal_counts_as_no_hook() -> None:
    model, x = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()).eval(), torch.randn(1, 1, 5, 5)
    after = unroll(model, x)
    mlp = convfc.simplify(after, x)
    assert torch.equal(mlp[1].weight, after[0][1].weight.to_dense())
    assert torch.equal(torch.jit.script(after)(x), after(x))
    handle = after[0][1].register_forward_pre_hook(lambda module, args: None)
    with pytest.raises(UnsupportedLayer, match="hooks run around its calls"):
        convfc.simplify(after, x)
    with pytest.raises(UnsupportedLayer, match="hooks stand on its FC part"):
        convfc.to_conv(after)
    handle.remove()
    assert torch.equal(convfc.to_conv(after)[0].weight, model[0].weight)
