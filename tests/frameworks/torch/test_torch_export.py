"""Exported programs with their convolutions as FC layers: exact, of any batch, and none left.

And models of ONNX, which keep theirs.
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
import torchvision
from conv_cases import CASES, ConvCase
from networks import Block, net
from torch import Tensor, nn

import convfc
from convfc.errors import ShapeError, UnsupportedLayer, UnsupportedModel
from convfc.frameworks.torch import fc_decompositions
from convfc.frameworks.torch.export import to_onnx

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
BATCH = torch.export.Dim("batch")


def exported(model: nn.Module, x: Tensor, **options: Any) -> Any:
    """The program without convolutions."""
    program = torch.export.export(model, (x,), **options)
    assert convolutions(program)
    found = program.run_decompositions(fc_decompositions())
    assert not convolutions(found)
    return found


def convolutions(program: Any) -> list[str]:
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    return [name for name in calls if "conv" in name]


@pytest.mark.parametrize("case", CASES[::4], ids=str)
def test_every_layer_is_exact_on_integers_for_every_batch(case: ConvCase) -> None:
    layer = case.layer()
    found = exported(layer, case.x(batch=2), dynamic_shapes=({0: BATCH},)).module()
    for batch in (2, 5):
        assert torch.equal(found(case.x(batch=batch)), layer(case.x(batch=batch)))


def test_convolutions_of_all_kinds_of_code() -> None:
    weight = torch.randn(2, 3, 1, 2)
    model = net(
        lambda m, x: m.block(F.conv2d(F.conv_transpose2d(x, weight), torch.ones(3, 3, 1, 2)))[
            "out"
        ],
        block=Block(),
    ).eval()
    x = torch.randn(2, 2, 6, 5)
    assert torch.allclose(exported(model, x).module()(x), model(x), atol=1e-5)
    one = torch.randn(3, 6, 5)
    conv = nn.Conv2d(3, 4, 3)
    assert torch.allclose(exported(conv, one).module()(one), conv(one), atol=1e-6)


def test_what_to_fc_has_made_has_none_without_them() -> None:
    fc = convfc.to_fc(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    assert not convolutions(torch.export.export(fc, (torch.randn(2, 3, 6, 6),)))


def test_an_onnx_file_of_a_resnet_holds_matrix_products(tmp_path: Path) -> None:
    model, x = torchvision.models.resnet18().eval(), torch.randn(2, 3, 64, 64)
    program = exported(model, x, dynamic_shapes=({0: BATCH},))
    torch.onnx.export(program, verbose=False).save(tmp_path / "resnet18.onnx")
    graph = onnx.load(tmp_path / "resnet18.onnx").graph
    kinds = collections.Counter(node.op_type for node in graph.node)
    assert kinds["MatMul"] == 20
    assert not {kind for kind in kinds if "Conv" in kind}
    session = onnxruntime.InferenceSession(str(tmp_path / "resnet18.onnx"))
    for batch in (2, 3):
        x = torch.randn(batch, 3, 64, 64)
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert torch.allclose(torch.from_numpy(y), model(x), atol=1e-4)


def integers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(-9, 10, shape).astype(np.float32)


def network() -> nn.Sequential:
    """One of integers, in training mode, whose BatchNorm and Dropout would show it."""
    layers = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(18, 2)
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(torch.randint_like(tensor, 1, 9))
    model[1].eps = 0.0
    model[1].running_var.fill_(4)
    return model


def outputs(model: onnx_ir.Model, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(onnx_ir.to_proto(model).SerializeToString())
    (found,) = session.run(None, {session.get_inputs()[0].name: x})
    return found


@pytest.mark.parametrize(("shape", "batches"), [((4, 1, 5, 5), [4]), ((1, 5, 5), [1, 2, 5])])
def test_a_model_of_onnx_is_exact_on_integers(shape: tuple[int, ...], batches: list[int]) -> None:
    """Of the sizes of the example, or of any batch if it has none."""
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = to_onnx(model, integers(*shape))
    first = found.graph.inputs[0].shape[0]
    assert (first == 4) if len(shape) == 4 else isinstance(first, onnx_ir.SymbolicDim)
    for batch in batches:
        x = integers(batch, 1, 5, 5)
        expected = model.eval()(torch.from_numpy(x)).detach().numpy()
        model.train()
        assert np.array_equal(outputs(found, x), expected)
    assert all(part.training for part in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_arguments_of_a_model_of_onnx_by_name() -> None:
    model = net(lambda m, x, y: m.conv(x) - y, conv=nn.Conv2d(1, 2, 3))
    found = to_onnx(model, {"y": integers(1, 2, 3, 3), "x": integers(1, 1, 5, 5)})
    assert [value.name for value in found.graph.inputs] == ["x", "y"]


def decides(_: nn.Module, x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("model", "shape", "error", "line"),
    [
        (network(), (5, 1, 9, 9), ShapeError, "example: the model does not run on this input: "),
        (network(), (7, 5, 5), ShapeError, r"example: the model .*got \(7, 5, 5\)"),
        (net(decides), (2, 2), UnsupportedModel, r"model: PyTorch does not export it \(.*yourself"),
        (nn.LazyConv2d(2, 3), (1, 1, 5, 5), UnsupportedLayer, "it is lazy"),
    ],
    ids=["sizes", "sizes-without-batch", "own-code", "lazy"],
)
def test_what_is_no_model_of_onnx_is_said(
    model: nn.Module, shape: tuple[int, ...], error: type[Exception], line: str
) -> None:
    with pytest.raises(error, match=line):
        to_onnx(model, integers(*shape))
