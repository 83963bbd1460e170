"""ONNX's own cases for backends: what onnxruntime passes as the file is, it passes as FC layers.

They come with the package `onnx`: cases of single operators, models that PyTorch wrote, and nine
architectures whose weights are worked out by nodes. Outputs and tolerances are the suite's.
"""

from __future__ import annotations

import pathlib
import warnings
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.backend.test
import onnx_ir as ir
import pytest
from onnx import numpy_helper, version_converter
from onnx.backend.test.case.node import collect_testcases
from onnx.backend.test.loader import load_model_tests
from onnx_models import conv_cases, run

import convfc
from convfc.errors import UnsupportedLayer

if TYPE_CHECKING:
    from onnx.backend.test.case.test_case import TestCase


@cache
def cases() -> dict[str, TestCase]:
    """All cases whose model has a Conv or a ConvTranspose, also in a function or a branch."""
    found = conv_cases()
    for kind in ("simple", "pytorch-converted", "pytorch-operator"):
        found += load_model_tests(kind=kind)
    return {case.name: case for case in found if convolves(model_of(case))}


def model_of(case: TestCase) -> onnx.ModelProto:
    path = case.model_dir and pathlib.Path(case.model_dir, "model.onnx")
    return onnx.load(path) if path else case.model


def convolves(part: Any) -> bool:
    """Whether convfc converts a node of a graph, or of a function, or of what is in them."""
    if isinstance(part, onnx.ModelProto):
        return any(convolves(one) for one in (part.graph, *part.functions))
    graphs = [a.g for node in part.node for a in node.attribute if a.HasField("g")]
    kinds = {"Conv", "ConvTranspose", "ConvInteger", "QLinearConv"}
    return any(node.op_type in kinds for node in part.node) or any(map(convolves, graphs))


def data_sets(case: TestCase) -> list[Any]:
    """The inputs and the outputs of each run."""
    if case.data_sets is not None:
        return [[[*map(np.asarray, side)] for side in one] for one in case.data_sets]
    folders = sorted(pathlib.Path(case.model_dir).glob("test_data_set_*"))
    return [[arrays(folder, side) for side in ("input", "output")] for folder in folders]


def arrays(folder: pathlib.Path, side: str) -> list[np.ndarray]:
    files = sorted(folder.glob(f"{side}_*.pb"), key=lambda file: int(file.stem.split("_")[1]))
    return [numpy_helper.to_array(onnx.TensorProto.FromString(one.read_bytes())) for one in files]


def assert_passes(case: TestCase, model: onnx.ModelProto) -> None:
    """onnxruntime runs a model, and its outputs are the suite's."""
    for inputs, outputs in data_sets(case):
        for found, expected in zip(run(model, *inputs), outputs, strict=True):
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
            np.testing.assert_allclose(found, expected, rtol=case.rtol, atol=case.atol)


REFUSED = {
    "test_convinteger_with_padding": "takes opset 11",  # nor does onnxruntime itself run it
}


@pytest.mark.parametrize("name", cases())
def test_a_case_passes_as_fc_layers(name: str) -> None:
    case = cases()[name]
    model = model_of(case)
    if name in REFUSED:
        with pytest.raises(UnsupportedLayer, match=REFUSED[name]):
            convfc.to_fc(model)
        return
    assert_passes(case, model)
    opset = next(one.version for one in model.opset_import if not one.domain)
    convs = [node for node in model.graph.node if node.op_type.startswith("Conv")]
    has_sums = any(len(one.input) > 2 or one.op_type == "ConvTranspose" for one in convs)
    if opset < 7 and has_sums:
        with pytest.raises(UnsupportedLayer, match="its sums take opset 7"):
            convfc.to_fc(model)
        model = version_converter.convert_version(model, 7)
        assert_passes(case, model)
    fc = convfc.to_fc(model)
    onnx.checker.check_model(fc, full_check=True)
    assert not convolves(fc)
    assert_passes(case, fc)
    back = convfc.to_conv(fc)
    assert back.graph.node == ir.to_proto(ir.from_proto(model)).graph.node
    assert_passes(case, back)


def test_there_are_as_many_as_there_were() -> None:
    """A case that is not found passes everywhere."""
    names = cases()
    assert len(names) >= 63
    assert {"test_convtranspose_autopad_same", "test_Conv3d_groups", "test_qlinearconv"} <= {*names}


@pytest.mark.slow
def test_no_file_without_the_word_has_a_case() -> None:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # some compute overflows
        everything = collect_testcases()
    assert {case.name for case in everything if convolves(model_of(case))} <= {*cases()}


LIGHT = sorted((pathlib.Path(onnx.backend.test.__file__).parent / "data" / "light").glob("*.onnx"))
CERTIFIED = ("light_squeezenet", "light_bvlc_alexnet")  # the others take long


@pytest.mark.parametrize("path", LIGHT, ids=lambda path: path.stem)
def test_an_architecture_passes_as_fc_layers(path: pathlib.Path) -> None:
    """Every weight is worked out by nodes, so that its matrix is, too."""
    model = onnx.load(path)
    defaults = {tensor.name for tensor in model.graph.initializer}
    (x,) = (one for one in model.graph.input if one.name not in defaults)
    shape = [size.dim_value for size in x.type.tensor_type.shape.dim]
    given = (np.arange(np.prod(shape)) / np.prod(shape)).astype(np.float32).reshape(shape)
    proto = onnx.TensorProto.FromString(path.with_name(f"{path.stem}_output_0.pb").read_bytes())
    expected, fc = numpy_helper.to_array(proto), convfc.to_fc(model)
    assert not convolves(fc)
    for one in (model, fc):
        (found,) = run(one, given)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-7)
    assert convfc.to_conv(fc).graph.node == model.graph.node
    if path.stem in CERTIFIED:
        certificate = convfc.verify(model, fc, given)
        assert certificate.holds, str(certificate)
        assert len(certificate.layers) == sum(node.op_type == "Conv" for node in model.graph.node)


def test_there_are_nine() -> None:
    assert len(LIGHT) == 9
