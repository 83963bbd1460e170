"""Models in use: torchvision's, as PyTorch exports them, and the three that read text."""

from __future__ import annotations

import importlib.util
import pathlib
import warnings
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from onnx_models import plain, run
from skimage import data, transform
from torchvision import models

import convfc

if TYPE_CHECKING:
    from pathlib import Path

CONVS = {"Conv", "ConvTranspose"}

# Each network with the number of its CONV layers; the sizes of its input.
NETWORKS: dict[str, tuple[int, tuple[int, ...]]] = {
    "resnet18": (20, (2, 3, 64, 64)),
    "mobilenet_v3_small": (52, (2, 3, 64, 64)),
    "densenet121": (120, (2, 3, 64, 64)),
    "convnext_tiny": (22, (2, 3, 32, 32)),
    "efficientnet_b0": (81, (2, 3, 32, 32)),
    "shufflenet_v2_x0_5": (56, (2, 3, 64, 64)),
    "r3d_18": (20, (2, 3, 4, 16, 16)),
    "fcn_resnet50": (55, (2, 3, 32, 32)),
    "vit_b_16": (1, (2, 3, 224, 224)),
}
IN_EVERY_RUN = ("resnet18", "mobilenet_v3_small")


def exported(name: str, *, batch: bool) -> onnx.ModelProto:
    """The file that torch.onnx.export writes, of any batch or of one."""
    torch.manual_seed(1712)
    options = {"weights_backbone": None} if name.startswith("fcn") else {}
    model = models.get_model(name, weights=None, **options).eval()
    if name == "vit_b_16":
        model.encoder.layers = model.encoder.layers[:1]
    sizes = ({0: torch.export.Dim("batch")},) if batch else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        x = torch.zeros(NETWORKS[name][1])
        program = torch.onnx.export(
            model, (x,), dynamo=True, verbose=False, dynamic_shapes=sizes, external_data=False
        )
    assert program is not None
    return ir.to_proto(program.model)


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in IN_EVERY_RUN else pytest.mark.slow) for n in NETWORKS],
)
def test_what_pytorch_exports(name: str) -> None:
    count, sizes = NETWORKS[name]
    model = exported(name, batch=name != "vit_b_16")
    x = np.random.default_rng(1259).standard_normal(sizes).astype(np.float32)
    fc = convfc.to_fc(model)
    onnx.checker.check_model(fc, full_check=True)
    assert sum(node.op_type in CONVS for node in model.graph.node) == count
    assert not any(node.op_type in CONVS for node in fc.graph.node)
    certificate = convfc.verify(model, fc, x)
    assert certificate.holds, str(certificate)
    assert len(certificate.layers) == count
    assert all(layer.exact.identical for layer in certificate.layers)
    assert plain(convfc.to_conv(fc)) == plain(model)
    if name in IN_EVERY_RUN:  # of any batch
        assert run(fc, x[:1])[0].shape == run(model, x[:1])[0].shape


# The models of RapidOCR: their weights are Constant nodes, their strides (2, 1) and (1, 2).

SPEC = importlib.util.find_spec("rapidocr_onnxruntime")
READS_TEXT = pytest.mark.skipif(
    SPEC is None, reason="rapidocr-onnxruntime is not installed: it has no release for this Python"
)
FILES = {
    "det": ("ch_PP-OCRv4_det_infer.onnx", 64, (1, 3, 64, 96)),
    "rec": ("ch_PP-OCRv4_rec_infer.onnx", 38, (1, 3, 48, 96)),
    "cls": ("ch_ppocr_mobile_v2.0_cls_infer.onnx", 53, (1, 3, 48, 96)),
}
# Where the lines of scikit-image's page are: rows and columns.
LINES = {
    "Region-based segmentation": (slice(12, 34), slice(7, 292)),
    "Let us first determine markers of the coins and the": (slice(47, 66), slice(4, 378)),
    "background.These markers are pixels that we can label": (slice(63, 87), slice(3, 379)),
    "unambiguously as either object or background. Here,": (slice(81, 105), slice(3, 378)),
}


@cache
def reader(which: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """One of the three models, and what it becomes."""
    assert SPEC is not None
    assert SPEC.origin is not None
    model = onnx.load(pathlib.Path(SPEC.origin).parent / "models" / FILES[which][0])
    return model, convfc.to_fc(model)


@READS_TEXT
@pytest.mark.parametrize("which", FILES)
def test_models_that_read_text_are_proven_equal_and_come_back(which: str) -> None:
    _, count, shape = FILES[which]
    model, fc = reader(which)
    onnx.checker.check_model(fc, full_check=True)
    assert not any(node.op_type in CONVS for node in fc.graph.node)
    x = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    certificate = convfc.verify(model, fc, x)
    assert certificate.holds, str(certificate)
    assert len(certificate.layers) == count
    back = convfc.to_conv(fc)
    for found, expected in zip(back.graph.node, model.graph.node, strict=True):
        assert same(found, expected)


def same(one: onnx.NodeProto, other: onnx.NodeProto) -> bool:
    """Whether nodes are the same, a constant's numbers to the bit, however they are stored."""
    ours, theirs = (onnx.NodeProto.FromString(node.SerializeToString()) for node in (one, other))
    for node in (ours, theirs):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                tensor = attribute.t
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    return ir.to_proto(ir.from_proto(ours)) == ir.to_proto(ir.from_proto(theirs))


def read_line(model: onnx.ModelProto, line: np.ndarray) -> str:
    """What a model reads in a line of text: at each place the likeliest sign, if it is new."""
    (signs,) = (one.value.split("\n") for one in model.metadata_props if one.key == "character")
    size = (48, 48 * line.shape[1] // line.shape[0])
    image = 2 * transform.resize(line / 255, size, anti_aliasing=True) - 1
    x = np.repeat(image[None, None], 3, axis=1).astype(np.float32)
    found = run(model, x)[0][0].argmax(-1)
    new = found[np.flatnonzero(np.diff(found, prepend=0))]
    return "".join([*signs, " "][sign - 1] for sign in new if sign)


@READS_TEXT
@pytest.mark.parametrize("text", LINES)
def test_they_read_the_same_text(text: str) -> None:
    """Lines of several lengths, of a model whose sizes are open."""
    for model in reader("rec"):
        assert read_line(model, data.page()[LINES[text]]) == text


@READS_TEXT
def test_a_whole_page_is_read(tmp_path: Path) -> None:
    """With RapidOCR's own program, which needs OpenCV."""
    for needed in ("cv2", "pyclipper", "shapely"):
        pytest.importorskip(needed, reason=f"RapidOCR's program needs {needed}")
    from rapidocr_onnxruntime import RapidOCR

    paths: dict[str, Any] = {}
    for which in FILES:
        path = paths[f"{which}_model_path"] = tmp_path / FILES[which][0]
        onnx.save(reader(which)[1], path)
    page = np.repeat(data.page()[..., None], 3, axis=2)
    texts = [[line[1] for line in program(page)[0]] for program in (RapidOCR(), RapidOCR(**paths))]
    assert texts[0] == texts[1]
    assert "Let us first determine markers of the coins and the" in texts[1]
