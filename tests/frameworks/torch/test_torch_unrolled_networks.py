"""Whole networks unrolled: ResNets, trained networks on photographs, and ONNX files."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchvision
from facenet_pytorch import MTCNN
from skimage import data
from torch import Tensor, nn

import convfc

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("one_thread", "no_network")


class LeNet(nn.Sequential):
    """Like LeNet-5 (LeCun et al. 1998), with ReLU."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 6, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),  # the ONNX runtime averages no float64
            nn.Flatten(),
            nn.Linear(400, 120),
            nn.ReLU(),
            nn.Linear(120, 10),
        )


class Residual(nn.Module):
    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, filters, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(filters)
        self.second = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
        self.short = nn.Conv2d(channels, filters, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.first(x)))
        return torch.relu(self.second(y) + self.short(x))


def resnet() -> nn.Module:
    """A small one, its batch statistics not those of a fresh layer."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        Residual(8, 8, 1),
        Residual(8, 12, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 10),
    )
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2)
    return model


def vision(name: str) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.get_model(name, weights=None)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "lenet": (LeNet, (2, 1, 28, 28), 2),
    "resnet": (resnet, (2, 3, 16, 12), 7),
    "squeezenet1_1": (vision("squeezenet1_1"), (1, 3, 24, 24), 26),
    "mobilenet_v3_small": (vision("mobilenet_v3_small"), (1, 3, 16, 16), 52),
}


@pytest.mark.parametrize(("make", "shape", "layers"), NETWORKS.values(), ids=NETWORKS)
def test_networks_there_and_back(make, shape: tuple[int, ...], layers: int) -> None:
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(shape)
    after = convfc.unroll(model, x)
    assert not [part for part in after.modules() if isinstance(part, nn.modules.conv._ConvNd)]
    certificate = convfc.verify(model, after, x)
    assert certificate.holds, str(certificate)
    assert len(certificate.layers) == layers
    assert {layer.forms for layer in certificate.layers} == {("conv", "unrolled")}
    state, back = model.state_dict(), convfc.to_conv(after).state_dict()
    assert list(back) == list(state)
    assert all(torch.equal(back[key], value) for key, value in state.items())


@pytest.fixture(scope="module")
def mtcnn() -> Iterator[nn.Module]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
        yield MTCNN(keep_all=True)


@pytest.mark.parametrize(("name", "size", "layers"), [("pnet", 20, 5), ("rnet", 24, 3)])
def test_trained_networks_on_a_face(mtcnn: nn.Module, name: str, size: int, layers: int) -> None:
    """The weights of MTCNN's authors on the astronaut's face, mirrored in a batch of two."""
    face = torch.from_numpy(data.astronaut()[60:200, 160:300]).permute(2, 0, 1)[None].float()
    face = nn.functional.interpolate((face - 127.5) / 128, size, mode="area")
    x = torch.cat([face, face.flip(-1)])
    before = mtcnn.get_submodule(name)
    after = convfc.unroll(before, face)
    certificate = convfc.verify(before, after, x)
    assert certificate.holds, f"{name}: {certificate}"
    assert len(certificate.layers) == layers
    back = convfc.to_conv(after).state_dict()
    assert all(torch.equal(back[key], value) for key, value in before.state_dict().items())


def test_the_largest_of_them_with_sparse_weights(mtcnn: nn.Module) -> None:
    """O-Net's matrices take 3.9 GB dense and 101 MB sparse."""
    face = torch.from_numpy(data.astronaut()[60:200, 160:300]).permute(2, 0, 1)[None].float()
    face = nn.functional.interpolate((face - 127.5) / 128, 48, mode="area")
    before = mtcnn.onet
    after = convfc.unroll(before, face, sparse=True, memory=2**27)
    with torch.no_grad():
        expected, got = before(face), after(face)
    for one, other in zip(expected, got, strict=True):
        torch.testing.assert_close(other, one)
    back = convfc.to_conv(after).state_dict()
    assert all(torch.equal(back[key], value) for key, value in before.state_dict().items())


@pytest.mark.parametrize("name", ["lenet", "resnet"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_onnx_file_without_convolutions_agrees(name: str) -> None:
    """In float64 it is nearer to the network than the network's own rounding to float32."""
    torch.manual_seed(0)
    make, shape, _ = NETWORKS[name]
    model, x = make().eval(), torch.randn(shape)
    with torch.no_grad():
        rounded, exact = model(x), model.double()(x.double())
    after = convfc.unroll(model, x.double())
    file = io.BytesIO()
    torch.onnx.export(after, (x.double(),), dynamo=True, verbose=False).save(file)
    kinds = {node.op_type for node in onnx.load_model_from_string(file.getvalue()).graph.node}
    assert "Conv" not in kinds
    assert "Gemm" in kinds
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.double().numpy()})
    assert np.abs(got - exact.numpy()).max() <= (rounded - exact).abs().max()
