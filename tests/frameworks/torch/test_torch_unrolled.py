"""The unrolled form: plain classes, the matrix as weight; what is refused; whole networks."""

from __future__ import annotations

import copy
import pickle
import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from conv_cases import SMALL, ConvCase
from networks import net, two_convs
from torch import Tensor, nn
from torch_fixtures import in_form

import convfc
from convfc.errors import (
    MemoryBudgetError,
    ShapeError,
    UnsupportedLayer,
    UnsupportedLayerWarning,
)
from convfc.frameworks.torch.forms.form import form_of

PARTS = [nn.Flatten, nn.Linear, nn.Unflatten]


def is_unrolled(layer: nn.Module) -> bool:
    return type(layer) is nn.Sequential and [type(part) for part in layer] == PARTS


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_the_weight_is_the_layer_s_matrix_for_batches_of_every_size(case: ConvCase) -> None:
    layer = case.layer()
    after = convfc.unroll(layer, case.x(batch=3))
    assert is_unrolled(after)
    weight, bias = after[1].weight.detach().numpy(), after[1].bias
    assert np.array_equal(weight, convfc.conv_matrix(layer, case.size, layout="dense"))
    assert (bias is None) == (layer.bias is None)
    if bias is not None:
        assert np.array_equal(bias.detach().numpy(), convfc.conv_offset(layer, case.size))
    for x in (case.x(batch=5), case.x()[0], case.x()[:0]):
        assert torch.equal(after(x), layer(x))


def test_the_parts_are_plain_and_have_parameters_of_their_own() -> None:
    model, x = two_convs().train(), torch.randn(2, 3, 9, 8)
    model[0].weight.requires_grad_(requires_grad=False)
    random = torch.get_rng_state()
    after = convfc.unroll(model, x)
    assert {type(m) for m in after.modules()} == {nn.Sequential, nn.ReLU, nn.BatchNorm2d, *PARTS}
    assert is_unrolled(after[0])
    assert is_unrolled(after[2][0])
    first = dict(after[0].named_parameters())
    assert {name: p.requires_grad for name, p in first.items()} == {
        "1.weight": False,
        "1.bias": True,
    }
    assert first["1.weight"].shape == (4 * 7 * 6, 3 * 9 * 8)
    assert all(m.training for m in (*model.modules(), *after.modules()))
    assert torch.equal(torch.get_rng_state(), random)
    ours, theirs = ({p.data_ptr() for p in m.parameters()} for m in (model, after))
    assert not ours & theirs


def tied(model: nn.Sequential, *parameters: tuple[int, int, str]) -> nn.Sequential:
    """Let a layer have the weight or bias of an earlier one."""
    for first, second, name in parameters:
        setattr(model[second], name, getattr(model[first], name))
    return model


def twice(padding: int) -> nn.Module:
    """One layer at two places, called at both."""
    layer = nn.Conv2d(4, 4, 3, padding=padding)
    return net(lambda m, x: m.again(m.first(x)), first=layer, again=layer)


def test_what_is_shared_stays_shared() -> None:
    model, x = twice(padding=1).double(), torch.randn(1, 4, 6, 5, dtype=torch.float64)
    after = convfc.unroll(model, x)
    assert after.first is after.again
    torch.testing.assert_close(after(x), model(x))
    model = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2)))
    after = convfc.unroll(tied(model, (0, 1, "weight"), (0, 1, "bias")).double(), x)
    back = convfc.to_conv(after)
    for first, second in ((after[0][1], after[1][1]), back):
        assert first.weight is second.weight
        assert first.bias is second.bias


def factored(between: nn.Module) -> nn.Module:
    """A layer in patch form that a tool has factored."""
    model = convfc.to_fc(nn.Sequential(nn.Conv2d(3, 3, 3))).double()
    model[0].fc = nn.Sequential(nn.Linear(27, 2), between, nn.Linear(2, 3)).double()
    return model


def test_layers_in_another_form_are_taken_back_first() -> None:
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    model = factored(nn.Identity())
    after = convfc.unroll(model, x)
    assert [form_of(part) for part in after[0]] == ["unrolled", "unrolled"]
    torch.testing.assert_close(after(x), model(x))
    assert form_of(model[0]) == "patch"
    with pytest.raises(UnsupportedLayer, match=r"^0: .*cannot become a CONV layer"):
        convfc.unroll(factored(nn.LayerNorm(2)), x)
    conv = nn.Sequential(nn.Conv2d(1, 2, 3))
    after = convfc.unroll(conv, torch.zeros(1, 1, 5, 5))
    assert torch.equal(convfc.to_fc(after)[0].fc.weight, conv[0].weight.flatten(1))
    with torch.no_grad():
        after[0][1].weight[0, 5] = 3.0
    with pytest.raises(UnsupportedLayer, match="0: its matrix is not a convolution's"):
        convfc.to_fc(after)


# What cannot be unrolled --------------------------------------------------------------------------


REFUSED = {
    "two sizes": (lambda: twice(0), r"first: it is called on inputs of the sizes \(5, 5\) and"),
    "none called": (
        lambda: net(lambda m, x: x, left=nn.Conv2d(3, 3, 3)),
        "left: the model does not call it on the example",
    ),
    "output size": (
        lambda: net(
            lambda m, x: m.up(x, output_size=(12, 12)), up=nn.ConvTranspose2d(3, 2, 3, stride=2)
        ),
        "up: it is called with more than its input",
    ),
    "shared in a chain": (  # of which all or none can be unrolled
        lambda: tied(
            nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=n) for n in (1, 1, 0))),
            *((0, 1, "bias"), (1, 2, "weight")),
        ),
        r"1: its weight is also .* \(nor can 2, 0\)",
    ),
    "shared with a norm": (
        lambda: tied(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)), (0, 1, "bias")),
        "0: its bias is also a parameter of 1 .* stays",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_unrolled_is_refused_by_name_or_listed(make, message: str) -> None:
    x = torch.zeros(1, 4 if make is REFUSED["two sizes"][0] else 3, 5, 5)
    with pytest.raises(UnsupportedLayer, match=message):
        convfc.unroll(make(), x)
    model = make()
    with pytest.warns(UnsupportedLayerWarning, match="left as they are"):
        after = convfc.unroll(model, x, strict=False)
    assert not any(map(is_unrolled, after.modules()))
    assert torch.equal(after.eval()(x), model.eval()(x))


def test_what_the_model_does_not_call_on_the_example_is_left_and_listed() -> None:
    """It has no part in what is unrolled; a simplified network has nothing of it."""

    def run(m: Any, x: Tensor) -> Any:  # as GoogLeNet, whose other head is called in training only
        y = m.conv(x).relu()
        scores = m.out(y.flatten(1))
        return (scores, m.head(y)) if m.training else scores

    head = nn.Sequential(nn.Conv2d(4, 2, 3), nn.Flatten())
    model = net(run, conv=nn.Conv2d(3, 4, 3), head=head, out=nn.Linear(36, 2)).eval()
    x = torch.randn(2, 3, 5, 5)
    left = r"^left as they are: head\.0 \(the model does not call it on the example\)$"
    for strict in (True, False):
        with pytest.warns(UnsupportedLayerWarning, match=left):
            after = convfc.unroll(model, x, strict=strict)
        assert is_unrolled(after.conv)
        assert type(after.head[0]) is nn.Conv2d
    assert convfc.verify(model, after, x).holds
    simple = convfc.simplify(model, x)
    assert [type(part) for part in simple] == [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear]
    assert torch.equal(convfc.to_conv(simple).head[0].weight, model.head[0].weight)
    with pytest.raises(UnsupportedLayer, match=r"^head\.0: the model does not call it on the exam"):
        convfc.unroll(model, x, where="head.*")
    model.head[0].weight = model.conv.weight  # of 4 x 3 x 3 x 3
    with pytest.raises(UnsupportedLayer, match=r"conv: its weight is also a parameter of head\.0"):
        convfc.unroll(model, x)


def test_examples() -> None:
    model, x = two_convs().eval(), torch.zeros(1, 3, 9, 9)
    for example in (x.numpy(), (x,), {"input": x}):
        assert is_unrolled(convfc.unroll(model, example)[0])
    lazy = nn.Sequential(nn.Conv2d(3, 3, 3), nn.LazyConv2d(3, 3))
    with pytest.raises(UnsupportedLayer, match="it is lazy, and running the model"):
        convfc.unroll(lazy, x, strict=False)


def test_what_does_not_fit_in_memory_is_refused_before_it_is_built() -> None:
    x = torch.zeros(1, 3, 9, 8)
    needed = 4 * (3 * 9 * 8 * 4 * 7 * 6 + 4 * 7 * 6 * 4 * 5 * 4)  # both matrices, float32
    needed += (8 + 4) * 27 * 4 * 7 * 6  # the places and values of the first one's entries
    message = (
        rf"0: the matrices of the unrolled layers do not fit; expected at most {needed - 1:,} "
        rf"bytes; got 168 x 216, .* all 2 layers take {needed:,} bytes .*Remedy: convfc.to_fc "
        r"needs no such matrix; .*conv_operator.*smaller example"
    )
    with pytest.raises(MemoryBudgetError, match=message):
        convfc.unroll(two_convs(), x, memory=needed - 1)
    assert is_unrolled(convfc.unroll(two_convs(), x, memory=needed)[0])
    large = nn.Sequential(nn.Conv2d(3, 64, 7, stride=2, padding=3, dtype=torch.bfloat16))
    x = torch.zeros(1, 3, 224, 224, dtype=torch.bfloat16)
    with pytest.raises(MemoryBudgetError, match=r"0: .* got 802,816 x 150,528.* 225 GiB"):
        convfc.unroll(large, x, memory=2**37)


# One input size: simplified networks begin with the same Flatten ----------------------------------


class Doubled(nn.Module):
    """Simplified, it is a graph, not a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 3, 3, padding=1)
        self.second = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        return y + self.second(y).relu()


MADE_FOR = (1, 4, 3, 8)
MADE = {
    "unrolled": ("unrolled", lambda: nn.Sequential(nn.Conv2d(4, 3, 3), nn.ReLU())),
    "simplified": ("simplified", lambda: nn.Sequential(nn.Conv2d(4, 3, 3), nn.ReLU())),
    "graph": ("simplified", Doubled),
}
each_made = pytest.mark.parametrize(("form", "make"), MADE.values(), ids=MADE)
COPIES = {
    "itself": lambda model: model,
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),  # noqa: S301 (our own)
    "fx": torch.fx.symbolic_trace,
    "compile": lambda model: torch.compile(model, backend="eager"),
}
OTHERS = {
    "turned": (1, 4, 8, 3),
    "same number": (1, 4, 2, 12),
    "NHWC": (1, 3, 8, 4),
    "no batch": (4, 8, 3),
    "flat": (1, 96),
    "two batch axes": (1, *MADE_FOR),
    "another number": (1, 4, 3, 9),
}


@torch.no_grad()  # a compiled model that breaks off warns of what it has tracked
@pytest.mark.parametrize("how", COPIES)
@each_made
def test_examples_of_another_shape_are_refused(form: str, make, how: str) -> None:
    model = make().eval()
    after = COPIES[how](in_form(model, form, torch.zeros(MADE_FOR)))
    unbatched = form == "unrolled"
    sizes = r"\(n, 4, 3, 8\)" + r", or \(4, 3, 8\)" * unbatched
    for shape in OTHERS.values() if how == "itself" else [OTHERS["turned"]]:
        expected = (
            f"x: the FC layer is the matrix for one input size only; expected {sizes}; "
            rf"got {re.escape(str(shape))}\. Remedy: make another one, with an example of this size"
        )
        with pytest.raises(ShapeError, match=expected):
            after(torch.zeros(shape))
    for shape in (MADE_FOR, (0, 4, 3, 8)) + ((4, 3, 8),) * unbatched:
        assert after(torch.zeros(shape)).shape == model(torch.zeros(shape)).shape


@each_made
def test_no_tool_takes_the_check_of_the_shape_for_a_hook(form: str, make) -> None:
    """Models can be exported for any batch, batched by vmap, compiled by TorchScript, converted."""
    model, x = make().eval(), torch.randn(2, *MADE_FOR[1:])
    after = in_form(model, form, x)
    exported = torch.export.export(after, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    assert torch.equal(exported.module()(x[[0, 0, 1]]), after(x[[0, 0, 1]]))
    batches = torch.randn(3, 2, *MADE_FOR[1:])
    assert torch.vmap(after)(batches).shape == (3, *after(x).shape)
    with pytest.raises(ShapeError, match=r"got \(2, 4, 8, 3\)"):
        torch.vmap(after)(batches.mT)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit|The TorchScript type system")
        assert torch.equal(torch.jit.trace(after, (x,))(x), after(x))
        assert torch.equal(torch.jit.script(after)(x), after(x))
    back = convfc.to_conv(after)
    assert not any(part._forward_pre_hooks for part in back.modules())
    if form == "unrolled":
        assert torch.equal(convfc.simplify(after, x)(x), after(x))
        after[0][0].register_forward_pre_hook(lambda module, args: None)
        with pytest.raises(UnsupportedLayer, match="hooks stand on its Flatten or Unflatten"):
            convfc.to_conv(after)


# Whole networks -----------------------------------------------------------------------------------


def test_inspect_knows_the_form() -> None:
    model, x = two_convs(), torch.zeros(5, 3, 9, 8)
    after = convfc.unroll(model, x)
    rows = convfc.inspect(after, x).rows
    assert [(row.name, row.kind, row.form) for row in rows] == [
        ("0", "Conv2d", "unrolled"),
        ("2.0", "Conv2d", "unrolled"),
    ]
    assert rows[0].unrolled_shape == tuple(after[0][1].weight.shape)
    assert rows[0].batch == 5
    assert [row.geometry for row in rows] == [row.geometry for row in convfc.inspect(model, x).rows]
    (first, _) = convfc.inspect(after).rows
    assert first.unrolled_shape == (168, 216)
    assert first.parameters == 168 * 216 + 168
