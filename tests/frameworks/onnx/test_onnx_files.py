"""Files of ONNX: what is broken or hostile is refused by name, what is written is whole."""

from __future__ import annotations

import os
import pathlib
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from convfc.errors import ArgumentError, DataError
from convfc.frameworks.onnx import files
from convfc.frameworks.onnx.files import load, save

W = np.arange(18, dtype=np.float32).reshape(2, 1, 3, 3)
CONV, RELU = ("Conv", ["x", "w"], ["y"]), ("Relu", ["x"], ["y"])
Model = onnx.ModelProto


def model_of(*nodes: Any, weight: TensorProto | None = None, imports: str = "") -> Model:
    made = [node if isinstance(node, onnx.NodeProto) else helper.make_node(*node) for node in nodes]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 5, 5])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2, 3, 3])
    weights = [numpy_helper.from_array(W, "w") if weight is None else weight]
    graph = helper.make_graph(made or [helper.make_node(*CONV)], "net", [x], [y], weights)
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(name, 1) for name in imports)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, producer_name="me")


def weight(
    dims: tuple[int, ...] = W.shape, data: bytes | None = None, kind: int = 1
) -> TensorProto:
    raw = W.tobytes() if data is None else data
    return TensorProto(name="w", data_type=kind, dims=dims, raw_data=raw)


def outside(name: str = "w", **where: object) -> TensorProto:
    """The weight, in another file."""
    place = {"location": "w.data"} | where
    tensor = TensorProto(name=name, data_type=1, dims=W.shape, data_location=TensorProto.EXTERNAL)
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def with_function(*nodes: Any, name: str = "F") -> Model:
    """A model with one function, called once."""
    made = model_of(helper.make_node("F", ["x"], ["y"], domain="f"), imports="f")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    parts = [
        node
        if isinstance(node, onnx.NodeProto)
        else helper.make_node(*node[:3], **(node[3] if node[3:] else {}))
        for node in nodes
    ]
    made.functions.append(helper.make_function("f", name, ["a"], ["b"], parts, opsets))
    return made


def changed(change: Callable[[Model], object]) -> Model:
    made = model_of()
    change(made)
    return made


def nested(depth: int) -> bytes:
    """A model in which a graph stands in a graph, so often that no reader follows."""

    def field(number: int, content: bytes) -> bytes:
        size, count = b"", len(content)
        while count > 127:
            size, count = size + bytes([count & 127 | 128]), count >> 7
        return bytes([number << 3 | 2]) + size + bytes([count]) + content

    graph = b""
    for _ in range(depth):
        graph = field(1, field(5, field(1, b"body") + field(6, graph)))
    return bytes(model_of().SerializeToString() + field(7, graph))


def with_record(text: str) -> Model:
    """A file that says that convfc has made its node."""
    made = model_of(helper.make_node("MatMul", ["x", "w"], ["y"], "y"))
    made.graph.node[0].metadata_props.add(key="convfc", value=text)
    made.graph.node[0].metadata_props.add(key="convfc.part", value="MatMul")
    return made


RECORDED = helper.make_node("Relu", ["a"], ["b"])
RECORDED.metadata_props.add(key="convfc", value="hello")
GOOD = model_of().SerializeToString()
SPARSE = helper.make_sparse_tensor(
    helper.make_tensor("s", TensorProto.FLOAT, [1], [1.0]),
    helper.make_tensor("at", TensorProto.INT64, [1], [0]),
    [5],
)
SPARSE_GRAPH = changed(lambda m: m.graph.sparse_initializer.append(SPARSE)).graph
BRANCHES = "then_branch", "else_branch"
INVALID = "damaged, or no valid ONNX; expected what onnx.checker and onnx_ir accept; got "
SIZE = "the numbers of tensor w do not fit its shape; expected "

HOSTILE: dict[str, tuple[Model | bytes, str]] = {
    "empty": (b"", INVALID + "The model does not have an ir_version"),
    "text": (b"hello world, this is no ONNX", INVALID),
    "truncated": (GOOD[: len(GOOD) // 2], INVALID + "Unable to parse proto"),
    "nested": (nested(20_000), INVALID + "Unable to parse proto"),
    "newer": (changed(lambda m: setattr(m, "ir_version", 99)), "ir_version 99 is higher"),
    "cycle": (
        model_of(("Conv", ["z", "w"], ["y"]), ("Relu", ["y"], ["z"])),
        INVALID + "Nodes in a graph must be topologically sorted, however input 'z'",
    ),
    "own-input": (model_of(("Relu", ["y"], ["y"])), "topologically sorted"),
    "undefined": (model_of(("Conv", ["x", "nothing"], ["y"])), "input 'nothing'"),
    "two-values": (model_of(CONV, RELU), "'y' has been used"),
    "two-inputs": (changed(lambda m: m.graph.input.append(m.graph.input[0])), "'x' has been used"),
    "two-weights": (
        changed(lambda m: m.graph.initializer.append(weight())),
        "w initializer name is not unique",
    ),
    "no-such-output": (changed(lambda m: setattr(m.graph.output[0], "name", "z")), "'z' is not"),
    "operator": (model_of(("Nope", ["x"], ["y"])), "No Op registered for Nope"),
    "calls-itself": (with_function(("F", ["a"], ["b"], {"domain": "f"})), "Cycle detected"),
    "huge": (model_of(weight=weight((10**12, 1, 3, 3))), INVALID + "TensorProto (tensor name: w)"),
    "overflow": (model_of(weight=weight((2**62, 2**62, 3, 3))), "product overflow"),
    "negative": (model_of(weight=weight((-2, 1, 3, 3))), "Negative dimension value"),
    "too-few": (model_of(weight=weight(data=W.tobytes()[4:])), "68 bytes"),
    "too-many": (model_of(weight=weight(data=W.tobytes() + b"1234")), SIZE + "[2, 1, 3, 3]; got"),
    "dtype": (model_of(weight=weight(kind=77)), INVALID + "77 is not a valid DataType"),
    "sparse": (
        helper.make_model(SPARSE_GRAPH, ir_version=9),
        "onnx_ir does not read all of it; expected a model without it; got sparse initializers",
    ),
    "sparse-in-a-function": (
        with_function(("If", ["a"], ["b"], dict.fromkeys(BRANCHES, SPARSE_GRAPH))),
        "got sparse initializers",
    ),
    "training": (changed(lambda m: m.training_info.add()), "got training information"),
    **{
        f"record-{kind}": (with_record(text), "record of how node y was made is damaged; expected")
        for kind, text in (
            ("text", "hello"),
            ("empty", "{}"),
            ("list", "[1]"),
            ("path", '{"form": "patch", "nodes": 1, "operands": {"x": {"path": 3}}}'),
            ("form", '{"nodes": 7}'),
        )
    },
    "record-in-a-function": (with_function(RECORDED), "record of how node (without a name)"),
    "up": (model_of(weight=outside(location="../secret")), "points outside the directory"),
    "absolute": (model_of(weight=outside(location="/etc/passwd")), "it is an absolute path"),
    "link": (model_of(weight=outside(location="link")), "symbolic link"),
    "link-inside": (model_of(weight=outside(location="inside")), "symbolic link"),
    "linked-folder": (model_of(weight=outside(location="folder/secret")), "outside model"),
    "hard-link": (model_of(weight=outside(location="hard")), "multiple hard links"),
    "pipe": (model_of(weight=outside(location="pipe")), "not regular file"),
    "folder": (model_of(weight=outside(location=".")), "not regular file"),
    "nowhere": (model_of(weight=outside(location="nowhere")), "not regular file"),
    "nameless": (model_of(weight=outside(location="")), "should not be empty"),
    "beyond": (
        model_of(weight=outside(offset=4, length=72)),
        SIZE + "72 bytes from 4 on in w.data; got a file of 72 bytes",
    ),
    "far-beyond": (model_of(weight=outside(offset=2**63)), "got a file of 72 bytes"),
    "before": (model_of(weight=outside(offset=-4)), INVALID + "External data offset must be"),
    "no-number": (model_of(weight=outside(offset="x")), INVALID + "invalid literal for int()"),
    "long": (model_of(weight=outside(length=10**15)), SIZE + "72 bytes; got 1000000000000000"),
    "short": (model_of(weight=outside(length=8)), SIZE + "72 bytes; got 8"),
    "short-file": (model_of(weight=outside(location="half")), "got a file of 36 bytes"),
    "in-a-node": (
        model_of(helper.make_node("Constant", [], ["v"], value=outside(location="../secret"))),
        "points outside the directory",
    ),
    "in-a-function": (
        with_function(
            ("Constant", [], ["v"], {"value": outside("v", location="half")}),
            ("Conv", ["a", "v"], ["b"]),
        ),
        "tensor v do not fit its shape; expected 72 bytes from 0 on in half; got a file of 36",
    ),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with data, and the ways out of it."""
    (tmp_path / "secret").write_bytes(W.tobytes())
    (tmp_path / "other").mkdir()
    (tmp_path / "other/secret").write_bytes(W.tobytes())
    place = tmp_path / "model"
    place.mkdir()
    (place / "w.data").write_bytes(W.tobytes())
    (place / "half").write_bytes(W.tobytes()[:36])
    (place / "link").symlink_to("../secret")
    (place / "inside").symlink_to("w.data")
    (place / "folder").symlink_to("../other")
    os.link(tmp_path / "secret", place / "hard")
    os.mkfifo(place / "pipe")
    return place


def put(path: pathlib.Path, model: Model | bytes) -> pathlib.Path:
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.iterdir()}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_broken_or_hostile_is_refused(
    folder: pathlib.Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a path without a folder, for which onnx_ir looks at no link."""
    model, text = HOSTILE[kind]
    put(folder / "net.onnx", model)
    monkeypatch.chdir(folder)
    with pytest.raises(DataError) as caught:
        load(pathlib.Path("net.onnx"))
    line = str(caught.value)
    assert line.startswith(f"{folder / 'net.onnx'}: ")
    assert text in line
    assert line.endswith(". Remedy: export the model once more")
    assert "\n" not in line


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_what_is_no_file_is_refused(folder: pathlib.Path, kind: str) -> None:
    with pytest.raises(DataError, match=f"{kind}: there is no such file. Remedy: check its path"):
        load(folder / kind)


def test_a_file_that_protobuf_cannot_hold_is_not_read(tmp_path: pathlib.Path) -> None:
    with (tmp_path / "net.onnx").open("wb") as handle:
        handle.truncate(2**31)
    with pytest.raises(DataError, match="too large for ONNX; expected at most 2147483647 bytes"):
        load(tmp_path / "net.onnx")


def test_links_that_come_later_are_not_followed(folder: pathlib.Path) -> None:
    model = load(put(folder / "net.onnx", model_of(weight=outside())))
    (folder / "w.data").unlink()
    (folder / "w.data").symlink_to("../secret")
    with pytest.raises(ValueError, match="outside the base directory"):
        model.graph.initializers["w"].const_value.numpy()


def everything() -> Model:
    """A model with a function, a subgraph, texts, dimensions by name, and metadata everywhere."""
    made = with_function(("Relu", ["a"], ["b"]))
    made.domain, made.model_version, made.doc_string = "org.me", 7, "what it is"
    made.producer_version = "1.2"
    helper.set_model_props(made, {"author": "me", "colour": "blue"})
    branch = helper.make_graph(
        [helper.make_node("Conv", ["x", "w2"], ["z"])],
        "branch",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 2, 3, 3])],
        [helper.make_tensor("w2", TensorProto.FLOAT, W.shape, W.ravel().tolist())],
    )
    graph = made.graph
    made.graph.node[0].output[0] = "f"
    both = {"then_branch": branch, "else_branch": branch}
    graph.node.append(helper.make_node("If", ["yes"], ["y"], "choose", "why", **both))
    graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    texts = helper.make_tensor("texts", TensorProto.STRING, [2], [b"\xff", b"a"])
    graph.node.append(helper.make_node("Constant", [], ["t"], value=texts))
    graph.value_info.append(helper.make_tensor_value_info("f", TensorProto.FLOAT, ["batch", None]))
    graph.doc_string = "of the graph"
    graph.node[0].metadata_props.add(key="layer", value="1")
    graph.initializer[0].doc_string = "of w"
    return made


MODELS = {
    "one-node": model_of(),
    "opset-7": helper.make_model(
        model_of().graph, opset_imports=[helper.make_opsetid("", 7)], ir_version=3
    ),
    "everything": everything(),
}
MODELS["opset-7"].graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, W.shape))


@pytest.mark.parametrize("kind", MODELS)
def test_nothing_is_lost_between_two_files(tmp_path: pathlib.Path, kind: str) -> None:
    put(tmp_path / "in.onnx", MODELS[kind])
    save(load(tmp_path / "in.onnx"), tmp_path / "out.onnx")
    assert onnx.load(tmp_path / "out.onnx") == MODELS[kind]
    assert sorted(contents(tmp_path)) == ["in.onnx", "out.onnx"]


LARGE = np.arange(2 * 16 * 3 * 3 * 4, dtype=np.float32).reshape(8, 16, 3, 3)


def large(folder: pathlib.Path, name: str = "in") -> pathlib.Path:
    """A file whose tensors, in an initializer, a node, a branch and a function, are in another."""

    def wide(tensor: str) -> TensorProto:
        made = numpy_helper.from_array(LARGE + ord(tensor[-1]), tensor)
        made.doc_string = f"of {tensor}"
        made.metadata_props.add(key="unit", value="1")
        return made

    def conv(tensor: str, at: str, to: str) -> list[Any]:
        return [("Constant", [], [tensor], {"value": wide(tensor)}), ("Conv", [at, tensor], [to])]

    made = with_function(*conv("wf", "a", "b"))
    graph = made.graph
    branch = helper.make_graph(
        [helper.make_node("Conv", ["x", "wb"], ["z"])],
        "branch",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 8, 3, 3])],
        [wide("wb")],
    )
    graph.node[0].output[0] = "f"
    constant, other = conv("wc", "x", "c")
    graph.node.append(helper.make_node(*constant[:3], **constant[3]))
    graph.node.append(helper.make_node(*other))
    graph.node.append(helper.make_node("Conv", ["x", "w"], ["i"]))
    graph.node.append(
        helper.make_node("If", ["yes"], ["o"], then_branch=branch, else_branch=branch)
    )
    graph.node.append(helper.make_node("Sum", ["f", "c", "i", "o"], ["y"]))
    graph.initializer[0].CopyFrom(wide("w"))
    graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    texts = helper.make_tensor("texts", TensorProto.STRING, [400], [b"text"] * 400)
    graph.node.append(helper.make_node("Constant", [], ["t"], value=texts))
    graph.node[1].attribute[0].doc_string = "of the constant"
    graph.input[0].type.tensor_type.shape.dim[1].dim_value = 16
    graph.output[0].type.tensor_type.shape.dim[1].dim_value = 8
    path = folder / f"{name}.onnx"
    options = {"location": f"{name}.onnx.data", "size_threshold": 1024, "convert_attribute": True}
    onnx.save(made, path, save_as_external_data=True, **options)
    return path


def test_numbers_beside_a_model_stay_there_until_asked_for(tmp_path: pathlib.Path) -> None:
    path = large(tmp_path)
    path.with_name("in.onnx.data").write_bytes(bytes(5 * LARGE.nbytes))  # not what was saved
    tensor = load(path).graph.initializers["w"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    assert not tensor.numpy().any()


def outputs(path: pathlib.Path) -> np.ndarray:
    x = np.random.default_rng(0).integers(-9, 10, (2, 16, 5, 5)).astype(np.float32)
    found: np.ndarray = onnxruntime.InferenceSession(path).run(None, {"x": x})[0]
    return found


def test_a_model_with_numbers_beside_it_stays_one(tmp_path: pathlib.Path) -> None:
    """Its own files are left alone; the new ones stand for themselves, in another folder."""
    path = large(tmp_path)
    wanted, whole, model, told = outputs(path), onnx.load(path), load(path), []
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    (tmp_path / "new").mkdir()
    save(model, tmp_path / "new/out.onnx", progress=lambda *told_: told.append(told_))
    assert {each.name: each.read_bytes() for each in tmp_path.glob("*.*")} == before
    for each in before:
        (tmp_path / each).unlink()
    assert sorted(contents(tmp_path / "new")) == ["out.onnx", "out.onnx.data"]
    assert np.array_equal(outputs(tmp_path / "new/out.onnx"), wanted)
    assert onnx.load(tmp_path / "new/out.onnx") == whole
    assert (tmp_path / "new/out.onnx.data").stat().st_size == 5 * LARGE.nbytes
    names = ["w", "wc", "wb", "wb", "wf"]
    assert told == [(done, 5, name) for done, name in enumerate(names)]


def test_writing_does_not_change_the_model(tmp_path: pathlib.Path) -> None:
    path = large(tmp_path)
    model = load(path)
    save(model, tmp_path / "out.onnx")
    assert files.to_proto(model) == onnx.load(path, load_external_data=False)


@pytest.mark.parametrize("limit", [LARGE.nbytes, LARGE.nbytes - 1])
def test_a_model_that_grows_large_gets_a_second_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(files, "_MOST_INSIDE", limit)
    made = model_of(weight=numpy_helper.from_array(LARGE[:2, :1], "w"))
    made.graph.initializer.append(numpy_helper.from_array(LARGE, "more"))
    made.graph.initializer[0].CopyFrom(numpy_helper.from_array(W[:, :, :0], "w"))
    save(ir.from_proto(made), tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").is_file() == (limit < LARGE.nbytes)
    assert onnx.load(tmp_path / "out.onnx").graph.initializer[1].raw_data == LARGE.tobytes()


def test_numbers_go_from_file_to_file(tmp_path: pathlib.Path) -> None:
    """None of the tensors is held in memory, let alone all of them."""
    size = 2**22
    made = model_of()
    for at in range(8):
        tensor = outside(f"w{at}", offset=4 * size * at, length=4 * size)
        tensor.ClearField("dims")
        tensor.dims.append(size)
        made.graph.initializer.append(tensor)
    with (tmp_path / "w.data").open("wb") as handle:
        handle.truncate(8 * 4 * size)
    model = load(put(tmp_path / "in.onnx", made))
    tracemalloc.start()
    try:
        save(model, tmp_path / "out.onnx")
        assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("there", ["out.onnx", "out.onnx.data"])
def test_nothing_is_overwritten_unless_it_is_said(tmp_path: pathlib.Path, there: str) -> None:
    path = large(tmp_path)
    (tmp_path / there).write_text("mine")
    before, model = contents(tmp_path), load(path)
    with pytest.raises(ArgumentError, match=rf"{there}: there is such a file already.* --force"):
        save(model, tmp_path / "out.onnx")
    assert contents(tmp_path) == before
    save(model, tmp_path / "out.onnx", force=True)
    assert np.array_equal(outputs(tmp_path / "out.onnx"), outputs(path))


def test_the_numbers_of_a_model_are_not_replaced_by_its_own(tmp_path: pathlib.Path) -> None:
    """Not even where it is said: they are read while the others are written."""
    path = large(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ArgumentError, match=r"in\.onnx\.data: the numbers of the model itself"):
        save(load(path), path, force=True)
    assert contents(tmp_path) == before


def test_a_small_model_may_replace_itself(tmp_path: pathlib.Path) -> None:
    path = put(tmp_path / "in.onnx", model_of())
    save(load(path), path, force=True)
    assert onnx.load(path) == model_of()


def test_a_folder_that_is_not_there(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ArgumentError, match="nowhere: there is no such folder"):
        save(ir.from_proto(model_of()), tmp_path / "nowhere/out.onnx")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("no space"), ValueError("broken")])
@pytest.mark.parametrize("at", ["first", "last", "model", "rename"])
def test_nothing_is_left_of_what_fails(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, at: str
) -> None:
    path = large(tmp_path)
    model, before = load(path), contents(tmp_path)

    def stop(*_: Any) -> Any:
        raise error

    def progress(done: int, _: int, __: str) -> None:
        if done == {"first": 0, "last": 4}.get(at):
            stop()

    if at == "model":
        monkeypatch.setattr(files, "_bytes", stop)
    if at == "rename":
        renamed = pathlib.Path.replace
        monkeypatch.setattr(
            pathlib.Path,
            "replace",
            lambda self, to: stop() if to.name == "out.onnx" else renamed(self, to),
        )
    kind = error if isinstance(error, type) else type(error)
    with pytest.raises(kind):
        save(model, tmp_path / "out.onnx", progress=progress)
    assert contents(tmp_path) == before
    assert files.to_proto(model) == onnx.load(path, load_external_data=False)


def test_what_protobuf_cannot_hold_is_said(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object) -> None:
        raise ValueError("Message onnx.ModelProto exceeds maximum protobuf size of 2GB: 3000000000")

    monkeypatch.setattr(ir, "to_proto", full)
    with pytest.raises(DataError, match=r"cannot be written; got Message .* exceeds maximum"):
        save(ir.from_proto(model_of()), tmp_path / "out.onnx")
    assert not contents(tmp_path)
