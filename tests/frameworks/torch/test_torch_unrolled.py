"""The unrolled form: plain classes, the matrix as weight, exact for every layer and parameter."""

from __future__ import annotations

import copy
import io
import pickle
import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from cases import Case
from conv_cases import CASES, SMALL, ConvCase, integers
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import cases
from torch import Tensor, nn

import convfc
from convfc.errors import (
    ArgumentError,
    MemoryBudgetError,
    NothingToConvert,
    ShapeError,
    UnsupportedLayer,
    UnsupportedLayerWarning,
)
from convfc.frameworks.torch.forms.patch import PatchConv

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
    pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning"),
]
PARTS = [nn.Flatten, nn.Linear, nn.Unflatten]


def unroll(model: nn.Module, x: object, **options: object) -> nn.Module:
    return convfc.unroll(model, x, **options)


def is_unrolled(layer: nn.Module) -> bool:
    return type(layer) is nn.Sequential and [type(part) for part in layer] == PARTS


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    )


def in_form(layer: nn.Module, source: str) -> nn.Module:
    return layer if source == "native" else convfc.to_fc(layer, form=source)


@pytest.mark.parametrize("source", ["native", "patch", "weight"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_layer_is_exact_on_integers(case: ConvCase, source: str) -> None:
    layer, x = case.layer(), case.x()
    after = unroll(in_form(layer, source), x)
    assert is_unrolled(after)
    assert torch.equal(after(x), layer(x))
    A = convfc.conv_matrix(layer, case.size, layout="dense")
    assert np.array_equal(after[1].weight.detach().numpy(), A)
    if layer.bias is None:
        assert after[1].bias is None
    else:
        b = convfc.conv_offset(layer, case.size)
        assert np.array_equal(after[1].bias.detach().numpy(), b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_every_dtype(case: ConvCase, dtype: torch.dtype) -> None:
    layer, x = case.layer(dtype), case.x(dtype)
    after = unroll(layer, x)
    assert after[1].weight.dtype == dtype
    assert torch.equal(after(x), layer(x))


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_batches_of_every_size_and_none(case: ConvCase) -> None:
    layer = case.layer()
    after = unroll(layer, case.x(batch=3))
    for x in (case.x(batch=1), case.x(batch=5), case.x()[0], case.x()[:0]):
        assert torch.equal(after(x), layer(x))


def torch_layer(case: Case) -> nn.Module:
    """The layer of a geometry, with the lower padding on both sides: PyTorch has no other."""
    geometry = case.geometry
    name = f"Conv{'Transpose' * geometry.transposed}{geometry.spatial_ndim}d"
    extra = {"output_padding": geometry.output_padding} if geometry.transposed else {}
    padding = tuple(min(pair) for pair in geometry.padding)
    layer: nn.Module = getattr(nn, name)(
        geometry.in_channels,
        geometry.out_channels,
        geometry.kernel_size,
        stride=geometry.stride,
        padding=padding,
        dilation=geometry.dilation,
        groups=geometry.groups,
        padding_mode=geometry.padding_mode,
        dtype=torch.float64,
        **extra,
    )
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(integers(parameter.shape, seed=seed))
    return layer


@given(case=cases(max_ndim=3, flip=False), batch=st.integers(1, 3))
def test_any_layer_there_and_back(case: Case, batch: int) -> None:
    layer = torch_layer(case)
    x = integers((batch, case.geometry.in_channels, *case.input_size), seed=7)
    try:
        y = layer(x)
    except RuntimeError:  # less padding than was drawn: the kernel may not fit any more
        assume(False)
    after = unroll(layer, x)
    assert torch.equal(after(x), y)
    back = convfc.to_conv(after)
    assert type(back) is type(layer)
    assert torch.equal(back.weight, layer.weight)
    assert torch.equal(back.bias, layer.bias)


def test_the_parts_are_plain_and_only_the_linear_has_parameters() -> None:
    model = network()
    after = unroll(model, torch.randn(2, 3, 9, 8))
    assert type(after) is nn.Sequential
    assert is_unrolled(after[0])
    assert is_unrolled(after[2][0])
    kinds = {type(m) for m in after.modules()}
    assert kinds == {nn.Sequential, nn.ReLU, nn.BatchNorm2d, *PARTS}
    assert [name for name, _ in after[0].named_parameters()] == ["1.weight", "1.bias"]
    assert all(type(p) is nn.Parameter for p in after.parameters())
    assert after[0][1].in_features == 3 * 9 * 8
    assert after[0][1].out_features == 4 * 7 * 6


def test_a_copy_leaves_the_model_alone_and_in_place_changes_it() -> None:
    model, x = network().train(), torch.randn(2, 3, 9, 8)
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    after = unroll(model, x)
    assert type(model[0]) is nn.Conv2d
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(m.training for m in (*model.modules(), *after.modules()))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not {p.data_ptr() for p in model.parameters()} & {
        p.data_ptr() for p in after.parameters()
    }
    assert unroll(model.eval(), x, inplace=True) is model
    assert is_unrolled(model[0])
    assert not any(m.training for m in model.modules())


def test_a_bare_layer_cannot_change_in_place() -> None:
    with pytest.raises(ArgumentError, match="the model is itself the CONV layer"):
        unroll(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 5, 5), inplace=True)


@pytest.mark.parametrize("where", ["2.*", ["2.0"], lambda name, module: name == "2.0"])
def test_where_selects(where: object) -> None:
    after = unroll(network(), torch.randn(1, 3, 9, 8), where=where)
    assert type(after[0]) is nn.Conv2d
    assert is_unrolled(after[2][0])


def test_where_that_selects_nothing_is_an_error() -> None:
    with pytest.raises(NothingToConvert, match=r"where= selects no CONV layer"):
        unroll(network(), torch.randn(1, 3, 9, 8), where="layer9")


def test_what_trains_trains() -> None:
    layer = nn.Conv2d(3, 4, 3)
    layer.weight.requires_grad_(requires_grad=False)
    after = unroll(layer, torch.zeros(1, 3, 5, 5))
    assert (after[1].weight.requires_grad, after[1].bias.requires_grad) == (False, True)
    patch = unroll(convfc.to_fc(layer), torch.zeros(1, 3, 5, 5))
    assert (patch[1].weight.requires_grad, patch[1].bias.requires_grad) == (False, True)


def test_hooks_and_attributes_move_over() -> None:
    layer, calls = nn.Conv2d(3, 4, 3), []
    handle = layer.register_forward_hook(lambda module, args, output: calls.append(output.shape))
    layer.note = "mine"
    layer.register_buffer("extra", torch.ones(2))
    after = unroll(layer, torch.zeros(1, 3, 5, 5))
    calls.clear()
    after(torch.zeros(2, 3, 5, 5))
    assert calls == [(2, 4, 3, 3)]
    assert after.note == "mine"
    assert torch.equal(after.extra, layer.extra)
    assert after.kernel_size == (3, 3)  # what another part of the model may ask
    handle.remove()
    del calls[:]
    layer(torch.zeros(2, 3, 5, 5))
    assert not calls


class Twice(nn.Module):
    def __init__(self, padding: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, padding=padding)
        self.again = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.first(x))


def test_a_layer_at_two_places_stays_one() -> None:
    model, x = Twice().double(), torch.randn(1, 4, 6, 5, dtype=torch.float64)
    after = unroll(model, x)
    assert after.first is after.again
    assert is_unrolled(after.first)
    torch.testing.assert_close(after(x), model(x))


def test_layers_that_share_parameters_go_on_sharing_them() -> None:
    model = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2)))
    model[1].weight, model[1].bias = model[0].weight, model[0].bias
    after = unroll(model, torch.zeros(1, 4, 5, 5))
    assert after[0][1].weight is after[1][1].weight
    assert after[0][1].bias is after[1][1].bias
    back = convfc.to_conv(after)
    assert back[0].weight is back[1].weight
    assert back[0].bias is back[1].bias


class Untaken(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return self[0](x)


class WithHead(nn.Module):
    """As GoogLeNet: the auxiliary head is called in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Sequential(nn.Conv2d(4, 2, 3), nn.Flatten())
        self.out = nn.Linear(36, 2)

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x).relu()
        scores = self.out(y.flatten(1))
        return (scores, self.head(y)) if self.training else scores


class Asked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 2, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x, output_size=(12, 12))


def shared_across_sizes() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3))
    model[1].weight = model[0].weight
    return model


def chained() -> nn.Module:
    """The first two share a bias, the last two a weight: all or none can be unrolled."""
    model = nn.Sequential(
        nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3)
    )
    model[1].bias = model[0].bias
    model[2].weight = model[1].weight
    return model


def shared_with_another() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3))
    model[1].bias = model[0].bias
    return model


def with_a_part() -> nn.Module:
    layer = nn.Conv2d(3, 3, 3)
    layer.observer = nn.Identity()
    return nn.Sequential(layer)


def patch_with_a_part() -> nn.Module:
    model = convfc.to_fc(nn.Sequential(nn.Conv2d(3, 3, 3)))
    model[0].observer = nn.Identity()
    return model


def worked_on() -> nn.Module:
    model = convfc.to_fc(nn.Sequential(nn.Conv2d(3, 3, 3)))
    model[0].fc = nn.Sequential(nn.Linear(27, 2), nn.Linear(2, 3))
    return model


REFUSED = {
    "two sizes": (lambda: Twice(0), r"first: it is called on inputs of the sizes \(5, 5\) and"),
    "none called": (
        lambda: Untaken(nn.Identity(), nn.Conv2d(3, 3, 3)),
        "1: the model does not call it on the example",
    ),
    "output size": (Asked, "up: it is called with more than its input"),
    "shared, two sizes": (shared_across_sizes, "0: its weight is also a parameter of 1, which"),
    "shared in a chain": (chained, r"1: its weight is also .* \(nor can 2, 0\)"),
    "shared with a norm": (shared_with_another, "0: its bias is also a parameter of 1 "),
    "a part of its own": (with_a_part, r"0: it has parts of its own \(observer\)"),
    "a part of a patch form": (patch_with_a_part, r"0: it has parts of its own \(observer\)"),
    "changed by a tool": (worked_on, "0: PatchConv: a tool has changed its FC part"),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(3, 3)), "0: LazyConv2d: its weight has no size"),
}


def test_what_the_model_does_not_call_on_the_example_is_left_and_told() -> None:
    """It has no part in what is unrolled; a simplified network has nothing of it."""
    model, x = WithHead().eval(), integers((2, 3, 5, 5)).float()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(integers(parameter.shape, seed=number))
    left = r"^left as they are: head\.0 \(the model does not call it on the example\)$"
    for strict in (True, False):
        with pytest.warns(UnsupportedLayerWarning, match=left):
            after = unroll(model, x, strict=strict)
        assert is_unrolled(after.conv)
        assert type(after.head[0]) is nn.Conv2d
        assert convfc.verify(model, after, x).holds
        for ours, theirs in zip(after.train()(x), copy.deepcopy(model).train()(x), strict=True):
            assert torch.equal(ours, theirs)
        back = convfc.to_conv(after)
        assert [type(part) for part in (back.conv, back.head[0])] == [nn.Conv2d] * 2
    simple = unroll(model, x, simplify=True)
    assert [type(part) for part in simple] == [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear]
    assert convfc.verify(model, simple, x).holds
    assert torch.equal(convfc.to_conv(simple).head[0].weight, model.head[0].weight)
    with pytest.raises(UnsupportedLayer, match=r"^head\.0: the model does not call it on the exam"):
        unroll(model, x, where="head.*")
    model.head[0].weight = model.conv.weight  # of 4 x 3 x 3 x 3
    with pytest.raises(UnsupportedLayer, match=r"conv: its weight is also a parameter of head\.0"):
        unroll(model, x)


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_unrolled_is_refused_by_name_or_listed(make, message: str) -> None:
    x = torch.zeros(1, 4 if make is REFUSED["two sizes"][0] else 3, 5, 5)
    with pytest.raises(UnsupportedLayer, match=message):
        unroll(make(), x)
    model = make()
    if make is REFUSED["lazy"][0]:  # then the model cannot be run on the example at all
        with pytest.raises(UnsupportedLayer, match="it is lazy, and running the model"):
            unroll(model, x, strict=False)
        return
    with pytest.warns(UnsupportedLayerWarning, match="left as they are"):
        after = unroll(model, x, strict=False)
    assert not any(map(is_unrolled, after.modules())) or make is REFUSED["not called"][0]
    assert torch.equal(after.eval()(x), model.eval()(x))


def test_an_example_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ShapeError, match="example: the model does not run on this input"):
        unroll(network(), torch.zeros(1, 4, 9, 9))


class Doubled(nn.Module):
    """Simplified, it is a graph, not a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 3, 3, padding=1)
        self.second = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        return y + self.second(y).relu()


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "itself": lambda model: model,
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),  # noqa: S301 (our own)
    "torch.save": saved,
    "fx": torch.fx.symbolic_trace,
    "compile": lambda model: torch.compile(model, backend="eager"),
}
MADE_FOR = (1, 4, 6, 12)
OTHERS = {
    "turned": (1, 4, 12, 6),
    "same number": (1, 4, 8, 9),
    "NHWC": (1, 6, 12, 4),
    "no batch": (4, 12, 6),
    "flat": (1, 288),
    "two batch axes": (1, *MADE_FOR),
    "another number": (1, 4, 6, 13),
}


@torch.no_grad()  # a compiled model that breaks off warns of what it has tracked
@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("simplify", [False, True], ids=["unrolled", "simplified"])
@pytest.mark.parametrize("model", [nn.Sequential(nn.Conv2d(4, 3, 3), nn.ReLU()), Doubled()])
def test_examples_of_another_shape_are_refused(model: nn.Module, simplify: bool, how: str) -> None:
    after = unroll(model.eval(), torch.zeros(MADE_FOR), simplify=simplify)
    after = COPIES[how](after)
    sizes = r"\(n, 4, 6, 12\)" + ("" if simplify else r", or \(4, 6, 12\)")
    for shape in OTHERS.values():
        expected = (
            f"x: the FC layer is the matrix for one input size only; expected {sizes}; "
            rf"got {re.escape(str(shape))}\. Remedy: make another one: to_fc\(model, "
        )
        with pytest.raises(ShapeError, match=expected):
            after(torch.zeros(shape))
    for shape in (MADE_FOR, (5, 4, 6, 12), (0, 4, 6, 12)) + (((4, 6, 12),) * (not simplify)):
        assert after(torch.zeros(shape)).shape == model(torch.zeros(shape)).shape


@pytest.mark.parametrize("simplify", [False, True], ids=["unrolled", "simplified"])
def test_the_refusal_is_in_no_tool_s_way(simplify: bool) -> None:
    """It counts as no hook of the user's; it is exported and batched; compiled, it is left out."""
    model, x = nn.Sequential(nn.Conv2d(4, 3, 3), nn.ReLU()).eval(), torch.randn(2, *MADE_FOR[1:])
    after = unroll(model, x, simplify=simplify)
    flatten = after[0] if simplify else after[0][0]
    assert type(flatten) is nn.Flatten
    any_batch = ({0: torch.export.Dim.AUTO},)
    for strict in (False, True):
        exported = torch.export.export(after, (x,), dynamic_shapes=any_batch, strict=strict)
        assert torch.equal(exported.module()(x[[0, 0, 1]]), after(x[[0, 0, 1]]))
    batches = integers((3, 2, 4, 6, 12)).float()
    assert torch.vmap(after)(batches).shape == (3, *after(x).shape)
    with pytest.raises(ShapeError, match=r"got \(2, 4, 12, 6\)"):
        torch.vmap(after)(batches.mT)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit")
        assert torch.equal(torch.jit.trace(after, (x,))(x), after(x))
        assert torch.equal(torch.jit.script(after)(x), after(x))
    assert torch.equal(unroll(after, x, simplify=True)(x), after(x))
    back = convfc.to_conv(after)
    assert not any(part._forward_pre_hooks for part in back.modules())
    flatten.register_forward_pre_hook(lambda module, args: None)
    if not simplify:
        with pytest.raises(UnsupportedLayer, match="hooks stand on its Flatten or Unflatten"):
            convfc.to_conv(after)


def test_arrays_tuples_and_dicts_are_examples() -> None:
    model = network().eval()
    x = torch.zeros(1, 3, 9, 9)
    for example in (x.numpy(), (x,), {"input": x}):
        assert is_unrolled(unroll(model, example)[0])


OPTIONS = {
    "form": ({"form": "toeplitz"}, r"form: there is no such form; expected 'patch' or 'weight' or"),
    "no example": ({"form": "unrolled"}, r"example: the matrix of a layer is for one input size"),
    "example": ({"example": torch.zeros(1)}, r"example: only the unrolled form has this option"),
    "simplify": ({"simplify": True}, r"simplify: only the unrolled form has this option"),
    "sparse": ({"sparse": True, "form": "weight"}, r"sparse: only the unrolled form .*'weight'"),
    "memory": ({"memory": 100}, r"memory: only the unrolled form has this option"),
    "max_pool": ({"max_pool": "relu"}, r"max_pool: only the unrolled form has this option"),
    "branches": ({"branches": "carry"}, r"branches: only the unrolled form has this option"),
    "groups": (
        {"form": "unrolled", "groups": "separate", "example": torch.zeros(1)},
        "groups: the unrolled form holds all groups of a layer in one matrix",
    ),
    "max_pool alone": (
        {"form": "unrolled", "max_pool": "relu", "example": torch.zeros(1)},
        "max_pool: only a simplified network has this option; expected simplify=True",
    ),
    "branches alone": (
        {"form": "unrolled", "branches": "carry", "example": torch.zeros(1)},
        "branches: only a simplified network has this option",
    ),
    "unknown max_pool": (
        {"form": "unrolled", "max_pool": "mean", "example": torch.zeros(1)},
        "max_pool: there is no such max_pool; expected 'keep' or 'relu'; got 'mean'",
    ),
    "unknown branches": (
        {"form": "unrolled", "branches": "cut", "example": torch.zeros(1)},
        "branches: there is no such branches; expected 'add' or 'carry'",
    ),
    **{
        name: (
            {"form": "unrolled", "simplify": True, "example": torch.zeros(1), name: value},
            f"{name}: only a conversion layer by layer has this option",
        )
        for name, value in {"inplace": True, "where": "0", "strict": False}.items()
    },
}


@pytest.mark.parametrize(("options", "message"), OPTIONS.values(), ids=OPTIONS)
def test_options_that_do_not_apply_are_refused_by_name(options, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        convfc.to_fc(network(), **options)


def test_what_does_not_fit_in_memory_is_refused_before_it_is_built() -> None:
    x = torch.zeros(1, 3, 9, 8)
    needed = 4 * (3 * 9 * 8 * 4 * 7 * 6 + 4 * 7 * 6 * 4 * 5 * 4)  # both matrices, float32
    needed += (8 + 4) * 27 * 4 * 7 * 6  # the places and values of the first one's entries
    message = (
        rf"0: the matrices of the unrolled layers do not fit; expected at most {needed - 1:,} "
        rf"bytes; got 168 x 216, .* all 2 layers take {needed:,} bytes .*Remedy: sparse=True .*"
        r"form='patch'.*conv_operator.*smaller example"
    )
    with pytest.raises(MemoryBudgetError, match=message):
        unroll(network(), x, memory=needed - 1)
    assert is_unrolled(unroll(network(), x, memory=needed)[0])
    assert is_unrolled(unroll(network(), x, memory=needed - 1, sparse=True)[0])
    with pytest.raises(MemoryBudgetError, match="memory: this is not an amount of memory"):
        unroll(network(), x, memory=-1)


def test_a_large_network_is_refused_at_once() -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 7, stride=2, padding=3, dtype=torch.bfloat16))
    x = torch.zeros(1, 3, 224, 224, dtype=torch.bfloat16)
    with pytest.raises(MemoryBudgetError, match=r"0: .* got 802,816 x 150,528.* 225 GiB"):
        unroll(model, x, memory=2**37)


def test_it_can_be_copied_pickled_saved_and_loaded() -> None:
    model = network().eval()
    x = torch.randn(2, 3, 9, 8)
    after = unroll(model, x)
    y = after(x)
    file = io.BytesIO()
    torch.save(after, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for twin in (copy.deepcopy(after), loaded):
        assert torch.equal(twin(x), y)
        back = convfc.to_conv(twin)
        assert torch.equal(back[0].weight, model[0].weight)
    other = unroll(network(), x)
    file = io.BytesIO()
    torch.save(after.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.eval()(x), y)


def test_from_the_unrolled_form_to_the_others() -> None:
    model, x = network().eval(), torch.randn(2, 3, 9, 8)
    after = unroll(model, x)
    patch, weight = (convfc.to_fc(after, form=form) for form in ("patch", "weight"))
    assert isinstance(patch[0], PatchConv)
    assert type(weight[2][0]).__name__ == "ParametrizedConv2d"
    for other in (patch, weight):
        assert torch.equal(convfc.to_conv(other)[0].weight, model[0].weight)
    again = unroll(after, x)
    assert is_unrolled(again[0])
    assert torch.equal(again(x), after(x))
    with torch.no_grad():
        after[0][1].weight[0, 5] = 3.0
    with pytest.raises(UnsupportedLayer, match=r"0: Sequential: its matrix is no convolution"):
        convfc.to_fc(after, form="patch")


def test_inspect_knows_the_form() -> None:
    model, x = network(), torch.zeros(5, 3, 9, 8)
    after = unroll(model, x)
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
