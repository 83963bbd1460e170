"""Inputs that are made up for a model: its dtypes and sizes, and sizes on which it runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from convfc.errors import ArgumentError, MemoryBudgetError, ShapeError, UnsupportedModel
from convfc.frameworks.onnx.inputs import generated

FLOAT = TensorProto.FLOAT


def model_of(nodes: list[Any], inits: Any = (), **inputs: tuple[int, Any]) -> ir.Model:
    """A model with inputs of these dtypes and shapes; its output is the last node's."""
    values = [helper.make_tensor_value_info(name, *given) for name, given in inputs.items()]
    out = helper.make_tensor_value_info(nodes[-1].output[0], FLOAT, None)
    graph = helper.make_graph(nodes, "net", values, [out], inits)
    opsets = [helper.make_opsetid("", 17)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))


def identity(name: str = "x") -> list[Any]:
    return [helper.make_node("Identity", [name], ["y"])]


def shapes(model: ir.Model, **options: Any) -> list[dict[str, tuple[int, ...]]]:
    return [{name: a.shape for name, a in each.items()} for each in generated(model, **options)]


def test_fixed_sizes_are_tried_once() -> None:
    model = model_of(identity(), x=(FLOAT, (2, 3, 5, 7)), n=(TensorProto.INT64, ()))
    assert shapes(model) == [{"x": (2, 3, 5, 7), "n": ()}]


@pytest.mark.parametrize("unknown", ["batch", None, "?", -1])
def test_dynamic_sizes_are_tried_at_two_values(unknown: object) -> None:
    model = model_of(identity(), x=(FLOAT, (unknown, 3, "height", "width")))
    assert shapes(model) == [{"x": (2, 3, 96, 128)}, {"x": (3, 3, 128, 160)}]


@pytest.mark.parametrize(
    ("sizes", "tried"),
    [
        (("b",), [(2,), (3,)]),
        (("b", "n"), [(2, 3), (3, 4)]),
        (("b", 4, "n"), [(2, 4, 1024), (3, 4, 1536)]),
        (("b", "n", 8), [(2, 3, 8), (3, 4, 8)]),
        (("b", 1, "d", "h", "w"), [(2, 1, 16, 32, 48), (3, 1, 32, 48, 64)]),
        (("b", 1, 2, 2, 2, "z"), [(2, 1, 2, 2, 2, 2), (3, 1, 2, 2, 2, 3)]),
    ],
    ids=lambda sizes: "x".join(map(str, sizes)),
)
def test_sizes_suit_the_number_of_axes(sizes: Any, tried: Any) -> None:
    assert shapes(model_of(identity(), x=(FLOAT, sizes))) == [{"x": each} for each in tried]


def test_a_name_has_one_size_everywhere_and_no_name_has_its_own() -> None:
    """Add would not run if they differed; "?" is no name, though it looks like one."""
    add = [helper.make_node("Add", ["a", "b"], ["y"])]
    model = model_of(add, a=(FLOAT, (1, 1, "h", "?")), b=(FLOAT, ("?", "h", "h", 1)))
    first, second = shapes(model)
    assert first == {"a": (1, 1, 96, 128), "b": (2, 96, 96, 1)}
    assert second == {"a": (1, 1, 128, 160), "b": (3, 128, 128, 1)}


def of_height(height: int, *, batch: int = 0) -> ir.Model:
    """It says that it takes every height, and batch, and takes one."""
    target = numpy_helper.from_array(np.array([batch, 3, height, -1], np.int64), "target")
    node = helper.make_node("Reshape", ["x", "target"], ["y"])
    add = helper.make_node("Add", ["x", "y"], ["z"])
    return model_of([node, add], [target], x=(FLOAT, ("b", 3, "h", "w")))


def test_sizes_are_tried_until_the_model_runs() -> None:
    assert shapes(of_height(48)) == [{"x": (2, 3, 48, 320)}, {"x": (3, 3, 48, 192)}]


def test_one_size_is_enough_where_no_other_runs() -> None:
    assert shapes(of_height(512)) == [{"x": (2, 3, 512, 512)}]


def test_a_batch_may_have_to_be_one() -> None:
    assert shapes(of_height(0, batch=1)) == [{"x": (1, 3, 96, 128)}, {"x": (1, 3, 128, 160)}]


def test_where_no_size_runs_the_user_is_asked() -> None:
    line = (
        r"input: the model runs on none of the sizes that were tried \(.*\)\. Remedy: give inputs "
        r"of your own, as in --input inputs\.npz or --input 1,3,224,224"
    )
    with pytest.raises(ShapeError, match=line):
        generated(of_height(37))


def test_dtypes_and_ranges() -> None:
    kinds = ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "INT64", "INT32", "UINT8", "INT8", "BOOL")
    known = {name.lower(): (getattr(TensorProto, name), (4000,)) for name in kinds}
    (found,) = generated(model_of(identity("float"), **known))
    assert {name: str(array.dtype) for name, array in found.items()} == {
        **{name.lower(): name.lower() for name in kinds},
        **{"float": "float32", "double": "float64"},
    }
    spread = {name: (array.min(), array.max()) for name, array in found.items()}
    assert spread["int64"] == spread["int32"] == (0, 9)
    assert (spread["uint8"], spread["int8"]) == ((0, 255), (-128, 127))
    assert set(found["bool"].tolist()) == {False, True}
    for name in ("float", "double", "float16", "bfloat16"):
        wide = found[name].astype(np.float64)
        assert abs(wide.mean()) < 0.1
        assert abs(wide.std() - 1) < 0.1


def test_the_same_seed_gives_the_same_numbers() -> None:
    model = model_of(identity(), x=(FLOAT, (9,)))
    first, again, other = (generated(model, seed)[0]["x"] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_weights_that_are_inputs_are_no_inputs() -> None:
    weight = numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "w")
    conv = [helper.make_node("Conv", ["x", "w"], ["y"])]
    model = model_of(conv, [weight], x=(FLOAT, (1, 1, 4, 4)), w=(FLOAT, (1, 1, 1, 1)))
    assert shapes(model) == [{"x": (1, 1, 4, 4)}]


def test_shapes_that_are_given() -> None:
    add = [helper.make_node("Add", ["a", "b"], ["y"])]
    model = model_of(add, a=(FLOAT, ("n", 2)), b=(TensorProto.INT32, ("n", 2)))
    (found,) = generated(model, shapes=[(5, 2), (6, 2)])
    assert {name: array.shape for name, array in found.items()} == {"a": (5, 2), "b": (6, 2)}
    assert found["b"].dtype == np.int32
    with pytest.raises(ArgumentError, match=r"input: every input .* expected 2, for a, b; got 1"):
        generated(model, shapes=[(5, 2)])


def sequence() -> ir.Model:
    value = helper.make_tensor_sequence_value_info("x", FLOAT, [2])
    out = helper.make_tensor_value_info("y", FLOAT, None)
    node = helper.make_node("ConcatFromSequence", ["x"], ["y"], axis=0)
    return ir.from_proto(helper.make_model(helper.make_graph([node], "net", [value], [out])))


REFUSED: dict[str, tuple[ir.Model, type[Exception], str]] = {
    "texts": (
        model_of(identity(), x=(TensorProto.STRING, (2,))),
        UnsupportedModel,
        r"^x: there are no random values for this input; expected a tensor of numbers; got texts",
    ),
    "sequence": (sequence(), UnsupportedModel, r"^x: there are no random values .* got Sequence"),
    "no-rank": (
        model_of(identity(), x=(FLOAT, None)),
        UnsupportedModel,
        r"^x: it is not known how many axes this input has",
    ),
    "huge": (
        model_of(identity(), x=(FLOAT, (2**20, 2**20))),
        MemoryBudgetError,
        r"^x: this input is too large .* expected at most 1073741824 bytes; got 4398046511104",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_made_up_is_refused_by_name(kind: str) -> None:
    model, error, line = REFUSED[kind]
    with pytest.raises(error, match=line + r".*Remedy: give inputs of your own"):
        generated(model)
