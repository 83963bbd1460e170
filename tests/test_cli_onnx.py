"""``convfc convert`` and ``convfc verify``, as a user calls them; ``convfc inspect`` of ONNX."""

from __future__ import annotations

import errno
import json
import os
import pathlib
from typing import Any

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from commands import call, enter, refused
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file, save_file

import convfc
from convfc.cli import convert
from convfc.frameworks.onnx import files, profiles

NETS = """
import torch
from torch import nn
import convfc

class Net(nn.Sequential):
    def __init__(self):
        layers = nn.Conv2d(1, 2, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2)
        super().__init__(*layers)

def fc():
    return convfc.to_fc(Net())

class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, x, y):
        return self.conv(x) + y

def one():
    torch.manual_seed(1)
    return Named()

def other():
    torch.manual_seed(2)
    return Named()
"""
RNG = np.random.default_rng(0)


def weight(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(RNG.integers(-9, 10, shape).astype(np.float32), name)


def network(*, change: bool = False) -> onnx.ModelProto:
    """A CNN of integers that takes images of every size."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2, "h", "w"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3, "p", "q"])
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], "first", strides=[2, 1]),
        helper.make_node("Relu", ["a"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "w2"], ["y"], "second", pads=[1, 0, 1, 0]),
    ]
    graph = helper.make_graph(nodes, "net", [x], [y], WEIGHTS)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if change:
        array = numpy_helper.to_array(WEIGHTS[2]).copy()
        array[0, 0, 0, 0] += 1
        made.graph.initializer[2].CopyFrom(numpy_helper.from_array(array, "w2"))
    return made


WEIGHTS = [weight("w1", 4, 2, 3, 2), weight("b1", 4), weight("w2", 3, 4, 3, 3)]


@pytest.fixture(autouse=True)
def place(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    onnx.save(network(), tmp_path / "net.onnx")
    onnx.save(network(change=True), tmp_path / "other.onnx")
    return enter(tmp_path, monkeypatch, own_nets=NETS)


def operators(path: str) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def outputs(path: str) -> np.ndarray:
    x = np.random.default_rng(1).integers(-9, 10, (2, 2, 9, 8)).astype(np.float32)
    found: np.ndarray = onnxruntime.InferenceSession(path).run(None, {"x": x})[0]
    return found


def files_in(folder: pathlib.Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def test_a_file_becomes_one_without_convolutions_and_comes_back(place: pathlib.Path) -> None:
    result = call("convert", "net.onnx", "-o", "fc.onnx")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert [line for line in lines if "Input" in line] == [
        "Input: x 2×2×96×128",
        "Input: x 3×2×128×160",
    ]
    assert lines.count("Certificate: holds; 2 of 2 layers hold.") == 2
    assert lines[-1] == "Written: fc.onnx"
    assert "Conv" not in operators("fc.onnx")
    assert np.array_equal(outputs("fc.onnx"), outputs("net.onnx"))
    result = call("convert", "fc.onnx", "-o", "back.onnx", "--to", "conv")
    assert (result.exit_code, result.stderr) == (0, "")
    assert onnx.load("back.onnx") == network()
    assert files_in(place) == ["back.onnx", "fc.onnx", "net.onnx", "other.onnx", "own_nets.py"]


def test_json_is_the_data_of_verify() -> None:
    result = call("convert", "net.onnx", "-o", "fc.onnx", "--json", "--input", "1,2,9,8")
    assert (result.exit_code, result.stderr) == (0, "")
    content = json.loads(result.stdout)
    (found,) = content.pop("certificates")
    assert content == {"model": "net.onnx", "file": "fc.onnx", "holds": True}
    assert found.pop("inputs") == {"x": [1, 2, 9, 8]}
    x = np.random.default_rng(0).standard_normal((1, 2, 9, 8)).astype(np.float32)
    known = convfc.verify(onnx.load("net.onnx"), onnx.load("fc.onnx"), {"x": x})
    assert found == json.loads(json.dumps(known.to_dict()))


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["text", "json"])
def test_what_does_not_hold_is_not_written(
    place: pathlib.Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    before = files_in(place)
    wrong = files.load(place / "other.onnx")
    monkeypatch.setattr(convfc, "to_fc", lambda *_, **__: wrong)
    result = call("convert", "net.onnx", "-o", "fc.onnx", *options)
    assert result.exit_code == 1
    assert result.stderr == "The certificate does not hold; no file was written.\n"
    assert files_in(place) == before
    if options:
        content = json.loads(result.stdout)
        assert (content["file"], content["holds"]) == (None, False)
        assert "second" in " ".join(content["certificates"][0]["failures"])
    else:
        assert "DOES NOT HOLD" in result.stdout
        assert "Written" not in result.stdout


def test_without_a_certificate_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "InferenceSession", None)
    result = call("convert", "net.onnx", "-o", "fc.onnx", "--no-verify")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Written: fc.onnx\n", "")
    assert "Conv" not in operators("fc.onnx")
    again = call("convert", "net.onnx", "-o", "fc.onnx", "--no-verify", "--json", "--force")
    assert json.loads(again.stdout) == {
        "model": "net.onnx", "file": "fc.onnx", "holds": None, "certificates": []
    }  # fmt: skip


@pytest.mark.parametrize(("chosen", "left"), [(("f*",), 1), (("f*", "second"), 0)])
def test_only_some_layers(chosen: tuple[str, ...], left: int) -> None:
    names = [part for name in chosen for part in ("--where", name)]
    result = call("convert", "net.onnx", "-o", "fc.onnx", *names)
    assert result.exit_code == 0, result.output
    assert operators("fc.onnx").count("Conv") == left


def test_the_unrolled_form_is_made_for_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def unroll(model: Any, example: Any, **options: Any) -> Any:
        asked.append((example["x"].shape, options))
        return convfc.to_fc(model)

    monkeypatch.setattr(convfc, "unroll", unroll)
    options = ("-o", "fc.onnx", "--form", "unrolled", "--no-verify")
    refused(call("convert", "net.onnx", *options), "inputs of several sizes", "--input", code=2)
    result = call("convert", "net.onnx", *options, "--input", "2,2,8,9")
    assert result.exit_code == 0, result.output
    assert asked == [((2, 2, 8, 9), {"where": None})]


def test_an_unrolled_file_is_proven_and_comes_home() -> None:
    given = ("--input", "2,2,8,9")
    result = call("convert", "net.onnx", "-o", "fc.onnx", "--form", "unrolled", *given)
    assert result.exit_code == 0, result.output
    assert set(operators("fc.onnx")) - {"Constant"} == {"Flatten", "Gemm", "Relu", "Reshape"}
    result = call("convert", "fc.onnx", "-o", "back.onnx", "--to", "conv", *given)
    assert result.exit_code == 0, result.output
    assert operators("back.onnx") == operators("net.onnx")


def mlp() -> onnx.ModelProto:
    """An FC network."""
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["a"], "one"),
        helper.make_node("Relu", ["a"], ["y"], "last"),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in "xy")
    graph = helper.make_graph(nodes, "mlp", [x], [y], [weight("w", 3, 3)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("profile", ["matmul", "gemm"])
def test_a_profile_writes_only_what_its_target_takes(profile: str) -> None:
    given = ("--profile", profile, "--input", "2,2,8,9")
    assert list(profiles.PROFILES) == list(convert.Profile)
    result = call("convert", "net.onnx", "-o", "out.onnx", *given)
    assert result.exit_code == 0, result.output
    made = set(operators("out.onnx")) - {"Constant"}
    assert made <= profiles.PROFILES[profile]
    assert made & {"MatMul", "Gemm", "Conv"} == {{"matmul": "MatMul", "gemm": "Gemm"}[profile]}


def test_the_profile_of_convolutions_takes_products(place: pathlib.Path) -> None:
    model = mlp()
    onnx.save(model, place / "mlp.onnx")
    result = call("convert", "mlp.onnx", "-o", "out.onnx", "--profile", "conv")
    assert result.exit_code == 0, result.output
    assert set(operators("out.onnx")) - {"Constant"} == {"Conv", "Relu", "Reshape"}
    back = call("convert", "out.onnx", "-o", "back.onnx", "--profile", "matmul")
    assert back.exit_code == 0, back.output
    assert onnx.load("back.onnx") == model


def narrow() -> onnx.ModelProto:
    """A network of sequences: two CONV nodes of one axis."""
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", c, None])
        for name, c in (("x", 2), ("y", 4))
    )
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["a"], "one", strides=[2], pads=[1, 1]),
        helper.make_node("ConvTranspose", ["a", "w"], ["y"], "two", strides=[2]),
    ]
    graph = helper.make_graph(
        nodes, "narrow", [x], [y], [weight("v", 3, 2, 3), weight("w", 3, 4, 2)]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_the_profile_of_convolutions_has_images_only(place: pathlib.Path) -> None:
    model = narrow()
    onnx.save(model, place / "narrow.onnx")
    command = ("convert", "narrow.onnx", "-o", "out.onnx", "--profile", "conv")
    line = refused(call(*command, "--where", "one"), "--profile conv", code=2)
    assert "got ConvTranspose of one axis (two). Remedy" in line
    result = call(*command)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("Certificate: holds; 2 of 2 layers hold.") == 2
    weights = onnx.load("out.onnx").graph.initializer
    assert [len(one.dims) for one in weights] == [4, 4]
    back = call("convert", "out.onnx", "-o", "back.onnx", "--to", "conv")
    assert back.exit_code == 0, back.output
    assert onnx.load("back.onnx") == model


@pytest.mark.parametrize("profile", list(profiles.PROFILES))
def test_what_a_target_does_not_take_is_refused_by_name(place: pathlib.Path, profile: str) -> None:
    model, node = (mlp(), "last") if profile == "conv" else (network(), "relu")
    model.graph.node[1].op_type = "Selu"
    onnx.save(model, place / "selu.onnx")
    there = files_in(place)
    given = ("--profile", profile, "--input", "2,3" if profile == "conv" else "2,2,8,9")
    result = call("convert", "selu.onnx", "-o", "out.onnx", *given)
    line = refused(result, f"--profile {profile}", code=2)
    assert f"got Selu ({node}). Remedy" in line
    assert ", ".join(sorted(profiles.PROFILES[profile])) in line
    assert files_in(place) == there


@pytest.mark.parametrize("more", [("--to", "conv"), ("--form", "unrolled")])
def test_a_profile_says_itself_what_is_made(more: tuple[str, ...]) -> None:
    result = call("convert", "net.onnx", "-o", "out.onnx", "--profile", "gemm", *more)
    assert result.exit_code == 2
    assert "--profile says what is made" in " ".join(result.stderr.split())


@pytest.mark.parametrize("there", ["fc.onnx", "fc.onnx.data"])
def test_a_file_that_is_there_stays(place: pathlib.Path, there: str) -> None:
    large = network()
    large.graph.initializer.append(weight("large", 400))
    options = {"location": "large.onnx.data", "size_threshold": 1024}
    onnx.save(large, place / "large.onnx", save_as_external_data=True, **options)
    (place / there).write_text("mine")
    command = ("convert", "large.onnx", "-o", "fc.onnx")
    refused(call(*command), f"{there}: there is such a file already", "--force", code=2)
    assert (place / there).read_text() == "mine"
    assert ("fc.onnx" in files_in(place)) == (there == "fc.onnx")
    assert call(*command, "--force").exit_code == 0
    assert np.array_equal(outputs("fc.onnx"), outputs("net.onnx"))


def test_what_is_in_the_way_is_found_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "load", None)
    refused(call("convert", "net.onnx", "-o", "other.onnx"), "such a file already", code=2)
    refused(call("convert", "net.onnx", "-o", "no/fc.onnx"), "no such folder", code=2)


def cut(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


BROKEN = {
    "missing": (lambda path: path.unlink(), "there is no such file"),
    "truncated": (cut, "damaged, or no valid ONNX"),
    "text": (lambda path: path.write_text("hello"), "damaged, or no valid ONNX"),
    "empty": (lambda path: path.write_bytes(b""), "damaged, or no valid ONNX"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "there is no such file"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_one_line_and_no_file(place: pathlib.Path, kind: str) -> None:
    spoil, text = BROKEN[kind]
    spoil(place / "net.onnx")
    before = files_in(place)
    for command in (
        ("convert", "net.onnx", "-o", "fc.onnx"),
        ("verify", "other.onnx", "net.onnx"),
    ):
        result = call(*command)
        refused(result, "net.onnx: ", text, "Remedy: ", code=2)
        assert result.stdout == ""
    refused(call("inspect", "net.onnx"), "net.onnx: ", text, "Remedy: ")
    assert files_in(place) == before


X = np.ones((1, 2, 9, 8), np.float32)


@pytest.mark.parametrize("names", [{"x": X}, {"arr_0": X}], ids=["named", "in-order"])
def test_inputs_from_a_file(names: dict[str, np.ndarray]) -> None:
    np.savez("in.npz", **names)
    result = call("verify", "net.onnx", "net.onnx", "--input", "in.npz", "--json")
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)["certificates"]
    assert found["inputs"] == {"x" if "x" in names else "0": [1, 2, 9, 8]}


def pickled() -> None:
    np.savez("in.npz", x=np.array([{}], dtype=object))


INPUTS = {
    "missing": (lambda: None, "in.npz", "in.npz: it cannot be used (No such file"),
    "text": (lambda: pathlib.Path("in.npz").write_text("hello"), "in.npz", "no file of arrays"),
    "empty": (lambda: pathlib.Path("in.npz").write_bytes(b""), "in.npz", "no file of arrays"),
    "pickled": (pickled, "in.npz", "in.npz: this is no file of arrays; expected what numpy.savez"),
    "names": (lambda: np.savez("in.npz", z=X), "in.npz", "x: these are not the model's inputs"),
    "dtype": (lambda: np.savez("in.npz", x=X.astype(int)), "in.npz", "x: the model does not run"),
    "shape": (lambda: None, "1,5,9,8", "x: the model does not run on it ("),
    "count": (lambda: None, "1,2,9,8 --input 1", "every input of the model has a shape"),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_inputs_that_do_not_fit_are_one_line(place: pathlib.Path, kind: str) -> None:
    prepare, given, text = INPUTS[kind]
    prepare()
    result = call("convert", "net.onnx", "-o", "fc.onnx", "--input", *given.split())
    refused(result, text, "Remedy: ", code=2)
    assert result.stdout == ""
    assert "fc.onnx" not in files_in(place)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("-o", "fc.txt"), "-o takes a file whose name ends in .onnx"),
        (("-o", "fc.onnx", "--to", "conv", "--form", "unrolled"), "--form belongs to --to fc"),
        (("-o", "fc.onnx", "--input", "1,x"), "--input takes sizes such as"),
        (("-o", "fc.onnx", "--input", "1,2", "--input", "a.npz"), "one npz file, or sizes"),
        ((), "Missing option"),
    ],
)
def test_wrong_usage(options: tuple[str, ...], text: str) -> None:
    result = call("convert", "net.onnx", *options)
    assert result.exit_code == 2
    assert text in result.stderr


def test_a_disk_that_takes_nothing(place: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, opened = files_in(place), pathlib.Path.open

    def full(self: pathlib.Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if "w" in mode:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return opened(self, mode, *args, **options)

    monkeypatch.setattr(pathlib.Path, "open", full)
    line = refused(
        call("convert", "net.onnx", "-o", "fc.onnx"),
        "Error: fc.onnx: the disk is full (",
        "write to another file with -o",
        code=2,
    )
    assert ".tmp" not in line
    assert files_in(place) == before


def test_ctrl_c_leaves_nothing(place: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = files_in(place)
    monkeypatch.setattr(files, "_bytes", stop)
    result = call("convert", "net.onnx", "-o", "fc.onnx", "--no-verify")
    assert (result.exit_code, result.stderr) == (130, "Stopped; nothing was written.\n")
    assert files_in(place) == before


def test_a_model_of_pytorch_becomes_a_file(place: pathlib.Path) -> None:
    """Without a batch axis its file takes every batch; with one, the one that was given."""
    import own_nets

    save_file(own_nets.Net().state_dict(), "net.safetensors")
    command = ("convert", "own_nets:Net", "-o", "fc.onnx", "--weights", "net.safetensors")
    result = call(*command, "--input", "1,9,9")
    assert result.exit_code == 0, result.output
    tried = [line for line in result.stdout.splitlines() if line.startswith("Input: ")]
    assert [line.split()[-1] for line in tried] == ["2×1×9×9", "3×1×9×9"]
    assert "Conv" not in operators("fc.onnx")
    own = own_nets.Net()
    own.load_state_dict(load_file("net.safetensors"))
    x = np.random.default_rng(2).standard_normal((3, 1, 9, 9)).astype(np.float32)
    session = onnxruntime.InferenceSession("fc.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: x})
    np.testing.assert_allclose(found, own(torch.from_numpy(x)).detach(), atol=1e-5)

    np.savez("in.npz", x)
    result = call(*command, "--force", "--input", "in.npz", "--json")
    assert result.exit_code == 0, result.output
    (only,) = json.loads(result.stdout)["certificates"]
    assert only["inputs"] == {"0": [3, 1, 9, 9]}  # as they stand in the file
    refused(call(*command, "--force"), "it is not known what this model is called with", code=2)
    refused(call(*command, "--force", "--input", "9"), "does not run on this input", code=2)


@pytest.mark.skipif(keras.config.backend() != "torch", reason="Keras exports to ONNX on torch")
def test_a_model_of_keras_becomes_a_file() -> None:
    conv = keras.layers.Conv2D(4, 3, strides=2)
    model = keras.Sequential([keras.Input((9, 8, 1)), conv, keras.layers.Flatten()])
    model.save("net.keras")
    result = call("convert", "net.keras", "-o", "fc.onnx", "--input", "9,8,1")
    assert result.exit_code == 0, result.output
    assert "Conv" not in operators("fc.onnx")
    x = np.random.default_rng(2).standard_normal((3, 9, 8, 1)).astype(np.float32)
    session = onnxruntime.InferenceSession("fc.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: x})
    np.testing.assert_allclose(found, model.predict(x, verbose=0), atol=1e-5)


@pytest.mark.skipif(keras.config.backend() == "torch", reason="Keras exports to ONNX on torch")
def test_a_model_of_keras_names_the_backend_that_exports() -> None:
    model = keras.Sequential([keras.Input((9, 8, 1)), keras.layers.Conv2D(4, 3)])
    model.save("net.keras")
    result = call("convert", "net.keras", "-o", "fc.onnx", "--input", "1,9,8,1")
    refused(result, "Keras does not export it from ", "set KERAS_BACKEND=torch", code=2)


@pytest.mark.parametrize(("after", "holds"), [("net.onnx", True), ("other.onnx", False)])
def test_two_files_are_compared(after: str, holds: bool) -> None:
    result = call("verify", "net.onnx", after)
    assert (result.exit_code, result.stderr) == (0 if holds else 1, "")
    verdict = "Certificate: holds; 2 of 2" if holds else "DOES NOT HOLD; 1 of 2"
    assert result.stdout.count(verdict) == 2
    result = call("verify", "net.onnx", after, "--json")
    assert result.exit_code == (0 if holds else 1)
    content = json.loads(result.stdout)
    assert [one["holds"] for one in content.pop("certificates")] == [holds] * 2
    assert content == {"before": "net.onnx", "after": after, "holds": holds}


@pytest.mark.parametrize("sizes", ["2,9,8", "1,2,9,8"])
def test_two_files_are_compared_on_an_input_with_or_without_its_batch_axis(sizes: str) -> None:
    result = call("verify", "net.onnx", "net.onnx", "--input", sizes)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "Input: x 1×2×9×8" in result.stdout
    result = call("convert", "net.onnx", "-o", "gemm.onnx", "--profile", "gemm", "--input", sizes)
    assert (result.exit_code, result.stderr) == (0, "")


def test_two_factories_with_the_same_weights() -> None:
    import own_nets

    save_file(own_nets.Net().state_dict(), "net.safetensors")
    given = ("own_nets:Net", "own_nets:fc", "--input", "2,1,9,9")
    result = call("verify", *given, "--weights", "net.safetensors")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "Certificate: holds; 1 of 1 layers hold." in result.stdout
    assert call("verify", *given).exit_code == 1  # other random weights
    small = call("verify", *given[:2], "--input", "1,9,9", "--weights", "net.safetensors")
    assert (small.exit_code, small.stderr) == (0, "")
    assert "Input: 0 1×1×9×9" in small.stdout


def test_arguments_by_name() -> None:
    np.savez("in.npz", y=np.ones((1, 2, 3, 3), np.float32), x=np.ones((1, 1, 5, 5), np.float32))
    for after, code in (("one", 0), ("other", 1)):
        result = call("verify", "own_nets:one", f"own_nets:{after}", "--input", "in.npz")
        assert (result.exit_code, result.stderr) == (code, "")
    assert "Input: y 1×2×3×3, x 1×1×5×5" in result.stdout


def test_a_model_that_says_nothing_of_its_input() -> None:
    result = call("verify", "own_nets:one", "own_nets:one")
    refused(result, "input: it is not known what this model is called with", code=2)


def test_models_of_two_frameworks() -> None:
    result = call("verify", "net.onnx", "own_nets:Net", "--input", "1,2,9,8")
    refused(result, "after: no model of ONNX", "Remedy: ", code=2)


def test_a_table_of_a_file() -> None:
    result = call("inspect", "net.onnx", "--input", "1,2,9,8")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [["first", "Conv"], ["second", "Conv"]]
    assert "net: 2 CONV layers, all convertible" in result.stdout
    refused(call("inspect", "net.onnx", "--input", "1,5,9,8"), "the model does not run on it")
    refused(call("inspect", "net.onnx", "--arg", "a=1"), "a file holds a model, and no function")
