"""The vocabulary of operations, judged by PyTorch: all spellings of one compute the same."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from convfc.frameworks.torch.vocabulary import (
    OPERATIONS,
    Call,
    Operation,
    by_operation,
    is_pointwise,
    operation_of,
)

POSITIVE = ("log", "sqrt", "rsqrt", "pow")
X = torch.linspace(-3.0, 8.0, 48, dtype=torch.float64).reshape(2, 4, 6)
OTHER = torch.linspace(0.5, 2.0, 48, dtype=torch.float64).reshape(2, 4, 6)
# What a function or method is given behind its first argument; and modules, where that is another.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "celu": (0.5,),
    "elu": (0.5,),
    "gelu": (),
    "hardshrink": (0.7,),
    "hardtanh": (-0.5, 0.25),
    "leaky_relu": (0.25,),
    "prelu": (torch.tensor([0.25], dtype=torch.float64),),
    "rrelu": (0.25, 0.75, False),
    "softplus": (2.0,),
    "softshrink": (0.7,),
    "threshold": (0.5, -2.0),
    "clamp": (-0.5, 0.25),
    "reshape": ((2, -1),),
    "squeeze": (0,),
    "unflatten": (1, (2, 2)),
    "permute": ((0, 2, 1),),
    "transpose": (1, 2),
    "group_norm": (2, torch.ones(4).double(), torch.zeros(4).double()),
    "layer_norm": ((6,),),
    "rms_norm": ((6,),),
    "local_response_norm": (3,),
    **dict.fromkeys(("softmax", "log_softmax", "flatten", "unsqueeze"), (1,)),
    **dict.fromkeys(("mean", "sum", "amax", "amin"), ((1, 2),)),
    **dict.fromkeys(("interpolate", "upsample_nearest", "upsample_bilinear"), (None, 2)),
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d"), (0.5, False)),
    **dict.fromkeys(("alpha_dropout", "feature_alpha_dropout"), (0.5, False)),
    **dict.fromkeys(("maximum", "minimum", "pow", "add", "sub", "mul", "div"), (OTHER,)),
    **{f"{kind}_pool{n}d": (2,) for kind in ("avg", "max") for n in (1, 2, 3)},
    **{f"adaptive_{kind}_pool{n}d": (2,) for kind in ("avg", "max") for n in (1, 2, 3)},
    **{f"lp_pool{n}d": (2.0, 2) for n in (1, 2, 3)},
}
MODULES: dict[str, tuple[Any, ...]] = {"prelu": (), "clone": (), "group_norm": (2, 4)}
COMPARED = [
    operation
    for operation in OPERATIONS.values()
    if len((*operation.modules, *operation.functions, *operation.methods)) > 1
]


def given(operation: Operation) -> Tensor:
    axes = {"dropout3d": 3, "dropout2d": 2}.get(operation.name, operation.axes or 1)
    axes = 2 if operation.name.startswith("upsample") else axes
    x = X if axes == 1 else torch.stack([X] * 6 ** (axes - 1), -1).reshape(2, 4, *[6] * axes)
    return x.abs() + 0.25 if operation.name in POSITIVE else x.clone()


def results(operation: Operation) -> Iterator[tuple[Any, Tensor]]:
    """Each spelling, and what it computes."""
    arguments = ARGUMENTS.get(operation.name, ())
    for module in operation.modules:
        made = module(*MODULES.get(operation.name, arguments)).double().eval()
        yield module, made(given(operation))
    for function in operation.functions:
        x = given(operation)
        first: Any = [x, x] if operation.kind == "concatenation" else x
        yield function, function(first, *arguments)
    for method in operation.methods:
        yield method, getattr(given(operation), method)(*arguments)


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize("operation", COMPARED, ids=lambda operation: operation.name)
def test_all_spellings_compute_the_same(operation: Operation) -> None:
    (_, expected), *others = results(operation)
    assert others
    for spelling, result in others:
        assert torch.equal(result, expected), spelling


def spellings(operation: Operation) -> list[Any]:
    return [*operation.modules, *operation.functions, *operation.methods]


def test_every_spelling_is_of_one_operation() -> None:
    every = [one for operation in OPERATIONS.values() for one in spellings(operation)]
    assert len(every) == len(set(every))
    for operation in OPERATIONS.values():
        assert spellings(operation)
        assert all(operation_of(one) is operation for one in spellings(operation))
    assert not OPERATIONS.keys() & {operation.kind for operation in OPERATIONS.values()}


def test_a_module_with_another_forward_is_no_operation() -> None:
    module = nn.ReLU()
    assert is_pointwise(module)
    module.forward = lambda x: x.flip(0)  # type: ignore[method-assign]
    assert operation_of(module) is None
    assert not is_pointwise(module)


def everything(x: Tensor) -> list[Tensor]:
    return [
        torch.softmax(x, 1),
        functional.softmax(x, dim=1),
        x.softmax(1),
        x.mean((1, 2)),
        torch.mean(x, dim=(1, 2)),
        x.amax(dim=(-2, -1)),
        torch.cat([x, x], 1),
        torch.concatenate(tensors=[x, x], dim=1),
        x.permute(0, 2, 1),
        torch.permute(x, (0, -1, 1)),
        x.transpose(1, 2),
        torch.transpose(x, dim0=-2, dim1=-1),
        x.view(2, -1),
        x.reshape((2, -1)),
        x.squeeze(1),
        functional.max_pool1d(x, 2, 1),
        functional.interpolate(x, scale_factor=2),
        x.clamp(0, max=6),
        x + 1,
        torch.sub(x, 1, alpha=2),
        functional.hardtanh_(x, -2.0),
        x.relu_(),
    ]


def test_arguments_are_known_by_name() -> None:
    traced = fx.symbolic_trace(everything)
    calls = [Call.of(node, traced) for node in traced.graph.nodes][1:-1]
    x = calls[0].node.args[0]
    assert all(call.source is x for call in calls if call.name != "cat")
    found = [(call.name, call.axes(3) or call.order(3)) for call in calls[:12]]
    assert found[:3] == [("softmax", {1})] * 3
    assert found[3:5] == [("mean", {1, 2})] * 2
    assert found[5:8] == [("amax", {1, 2}), ("cat", {1}), ("cat", {1})]
    assert [call["tensors"] for call in calls[6:8]] == [[x, x]] * 2
    assert found[8:] == [(name, (0, 2, 1)) for name in ("permute",) * 2 + ("transpose",) * 2]
    view, reshape, squeeze, pool, resize, clamp, plus, minus, hardtanh, relu = calls[12:]
    assert [tuple(call["shape"]) for call in (view, reshape)] == [(2, -1)] * 2
    assert (squeeze["dim"], pool["kernel_size"], pool["stride"]) == (1, 2, 1)
    assert (resize["scale_factor"], resize["mode"]) == (2, "nearest")
    assert (clamp["min"], clamp["max"], plus["other"], plus["alpha"]) == (0, 6, 1, 1)
    assert (minus["other"], minus["alpha"]) == (1, 2)
    assert (hardtanh["min_val"], hardtanh["max_val"], relu.kind) == (-2, 1, "activation")
    made: Any = hardtanh.as_module()
    assert (type(made), made.min_val, made.max_val) == (nn.Hardtanh, -2, 1)
    assert str(relu.as_module()) == "ReLU()"
    assert plus.as_module() is None


def test_modules_give_their_attributes_as_arguments() -> None:
    model = nn.Sequential(nn.Softmax(dim=-1), nn.Linear(2, 2))
    _, softmax, linear, end = (
        Call.of(node, model) for node in fx.symbolic_trace(model).graph.nodes
    )
    assert (softmax.name, softmax["dim"], softmax.axes(3)) == ("softmax", -1, {2})
    assert softmax["p"] is None
    assert (linear.operation, linear.name, linear["in_features"]) == (None, "", 2)
    assert (end.module, end.kind) == (None, "")


def test_a_name_goes_before_its_kind_and_unknown_ones_are_no_names() -> None:
    @by_operation
    def what(of: Any) -> str:
        return "else"

    what.register("activation")(lambda of: "kind")
    what.register("relu", "distribution")(lambda of: "name")
    assert [what(nn.ReLU()), what(nn.Tanh()), what(operator.add)] == ["name", "kind", "else"]
    assert [what(nn.Softmax(1)), what(nn.Linear(2, 2))] == ["name", "else"]
    with pytest.raises(KeyError, match="no operation or kind gleu"):
        what.register("relu", "gleu")
