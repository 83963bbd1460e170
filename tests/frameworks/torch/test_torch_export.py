"""Exported programs with their convolutions as FC layers: exact, of any batch, and none left."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Any

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
import torchvision
from conv_cases import CASES, ConvCase
from networks import Block, net
from torch import Tensor, nn

import convfc
from convfc.frameworks.torch import fc_decompositions

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
