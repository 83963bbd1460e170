"""Layer by layer, and call by call: what is a matrix, what is ReLU, what stays, what is refused."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conv_cases import integers
from simplified_models import exactly, lenet
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import convfc
from convfc.errors import (
    ArgumentError,
    MemoryBudgetError,
    ShapeError,
    UnsupportedLayer,
    UnsupportedModel,
)
from convfc.frameworks.torch.simplify import simplified, simplify

pytestmark = pytest.mark.usefixtures("one_thread")


class Call(nn.Module):
    """A forward given as a function of the module and x."""

    def __init__(self, call: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.call = call
        self.weight = nn.Parameter(integers((3, 1, 3, 3), seed=3))
        self.register_buffer("scale", 2 * integers((3, 1, 1), seed=4))
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        return self.call(self, x)


POOLS = [
    nn.AvgPool2d(2),
    nn.AvgPool2d(4, 2, padding=2),
    nn.AvgPool2d((2, 4), (1, 3), padding=(0, 2), count_include_pad=False),
    nn.AvgPool2d(2, 2, padding=1, ceil_mode=True),
    nn.AvgPool2d(4, 3, padding=1, ceil_mode=True, divisor_override=8),
    nn.AdaptiveAvgPool2d(1),
    nn.AdaptiveAvgPool2d((3, None)),
    nn.MaxPool2d(2),
    nn.MaxPool2d(3, 2, padding=1),
    nn.MaxPool2d(3, 1, padding=1),
    nn.MaxPool2d((3, 2), (2, 1), padding=(1, 0), dilation=(1, 3)),
    nn.MaxPool2d(3, 2, padding=1, ceil_mode=True),
    nn.MaxPool2d(2, 3, ceil_mode=True),
    nn.MaxPool2d(5, 4, padding=2, ceil_mode=True),
    nn.MaxPool2d(1, 2),
    nn.AdaptiveMaxPool2d((3, 4)),
    nn.AdaptiveMaxPool2d(1),
]


@pytest.mark.parametrize("max_pool", ["keep", "relu"])
@pytest.mark.parametrize("size", [(7, 6), (8, 5)], ids=str)
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_pooling(pool: nn.Module, size: tuple[int, int], max_pool: str):
    model, x = nn.Sequential(pool, nn.Flatten()).eval(), 8 * integers((3, 2, *size))
    simple = simplify(model, (x,), max_pool=max_pool)
    y = model(x)
    if isinstance(pool, nn.AvgPool2d | nn.AdaptiveAvgPool2d):
        # A ninth is rounded once more in a matrix: two roundings of numbers of at most 16.
        assert bool(((simple(x) - y).abs() <= 36 * 16 * torch.finfo(torch.float64).eps).all())
    else:
        assert torch.equal(simple(x), y)
    if max_pool == "relu":
        assert not any(isinstance(part, type(pool)) for part in simple.modules())


@pytest.mark.parametrize("ndim", [1, 3])
@pytest.mark.parametrize("kind", ["AvgPool", "MaxPool"])
def test_pooling_in_other_dimensions(kind: str, ndim: int):
    model = getattr(nn, f"{kind}{ndim}d")(2)
    x = 8 * integers((2, 2, *(5, 4, 6)[:ndim]))
    for max_pool in ("keep", "relu"):
        assert torch.equal(simplify(model, (x,), max_pool=max_pool)(x), model(x))


PIECEWISE = [
    *(nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-1, 3), nn.Hardtanh(2, 5), nn.LeakyReLU(0.25)),
    *(nn.PReLU(), nn.PReLU(3)),
]


@pytest.mark.parametrize("activation", PIECEWISE, ids=str)
def test_what_is_piecewise_linear_becomes_relu(activation: nn.Module):
    model = nn.Sequential(nn.Conv2d(3, 3, 3), activation, nn.Conv2d(3, 2, 2))
    model, x = exactly(model), integers((2, 3, 5, 5))
    if isinstance(activation, nn.PReLU):
        nn.init.constant_(activation.weight, 0.5)
    for branches in ("add", "carry"):
        simple = simplify(model, (x,), branches=branches)
        assert {type(part) for part in simple} <= {nn.Flatten, nn.Linear, nn.ReLU, nn.Unflatten}
        assert torch.equal(simple(x), model(x))


KEPT = [nn.Sigmoid(), nn.Tanh(), nn.GELU(), nn.SiLU(), nn.ELU(), nn.Softplus(), nn.Hardswish()]


@pytest.mark.parametrize("activation", KEPT, ids=str)
def test_other_activations_stay(activation: nn.Module):
    model = nn.Sequential(nn.Conv2d(3, 3, 3), activation, nn.Flatten(), nn.Linear(27, 2))
    model, x = exactly(model), integers((2, 3, 5, 5))
    simple = simplify(model, (x,), branches="carry")
    assert [type(part) for part in simple] == [nn.Flatten, nn.Linear, type(activation), nn.Linear]
    assert torch.equal(simple[:3](x), activation(model[0](x)).flatten(1))


def used_after_a_change(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    z = y.relu_()
    return y + z


def alias_of_what_is_changed(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    alias = y.detach()
    y.relu_()
    return alias + 2 * y


def view_of_what_is_changed(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    view = y[:, 1:]
    y.relu_()
    return view + 1


CALLS: dict[str, Callable[[Any, Tensor], Any]] = {
    "relu": lambda m, x: F.relu(m.conv(x)),
    "relu_method": lambda m, x: m.conv(x).relu(),
    "relu_inplace_method": lambda m, x: m.conv(x).relu_(),
    "clamp": lambda m, x: m.conv(x).clamp(-3, 4),
    "clamp_min": lambda m, x: m.conv(x).clamp(min=1),
    "clamp_max": lambda m, x: torch.clamp(m.conv(x), max=1),
    "relu6": lambda m, x: F.relu6(m.conv(x)),
    "hardtanh": lambda m, x: F.hardtanh(m.conv(x), -2, 2),
    "abs": lambda m, x: m.conv(x).abs(),
    "max_pool": lambda m, x: F.max_pool2d(m.conv(x), 2, 1, 1, ceil_mode=True),
    "max_pool_torch": lambda m, x: torch.max_pool2d(m.conv(x), 3),
    "avg_pool": lambda m, x: F.avg_pool2d(m.conv(x), 2, stride=1),
    "adaptive": lambda m, x: F.adaptive_avg_pool2d(x[:, :, :4, :4], 1).flatten(1),
    "adaptive_max": lambda m, x: F.adaptive_max_pool2d(x, 2),
    "mean": lambda m, x: x[:, :, :4].mean((2, 3)),
    "mean_keepdim": lambda m, x: torch.mean(x, dim=-1, keepdim=True),
    "sum": lambda m, x: x.sum(1),
    "cumsum": lambda m, x: x.cumsum(2),
    "view": lambda m, x: m.conv(x).view(x.size(0), -1),
    "view_shape": lambda m, x: m.conv(x).view(x.shape[0], 3, -1),
    "reshape": lambda m, x: torch.reshape(x, (-1, 6, 10)),
    "permute": lambda m, x: m.conv(x).permute(0, 2, 3, 1),
    "channel_shuffle": lambda m, x: x.unflatten(1, (3, 1)).transpose(1, 2).flatten(1, 2),
    "cat": lambda m, x: torch.cat([x, m.conv(x), x], dim=2),
    "stack": lambda m, x: torch.stack((x, -x), 1),
    "chunk": lambda m, x: torch.sub(x.chunk(2, dim=3)[1], m.conv(x).chunk(2, dim=3)[0]),
    "split": lambda m, x: m.conv(x).split([1, 2], 1)[1],
    "slice": lambda m, x: m.conv(x)[:, 1:, ::2, 1:-1],
    "flip": lambda m, x: m.conv(x).flip(-1),
    "pad": lambda m, x: F.pad(m.conv(x), (1, 2, 0, 1), value=3.0),
    "reflect": lambda m, x: F.pad(x, (1, 2, 1, 1), mode="reflect"),
    "nearest": lambda m, x: F.interpolate(m.conv(x), scale_factor=2),
    "pixel_shuffle": lambda m, x: F.pixel_shuffle(x.repeat(1, 4, 1, 1), 2),
    "constants": lambda m, x: (2 * x - m.scale) / 4 + m.scale * x - (1 - x) * -3,
    "alpha": lambda m, x: torch.add(x, m.conv(x), alpha=3),
    "broadcast": lambda m, x: x + x.sum((2, 3), keepdim=True) - x[:, :1],
    "itself": lambda m, x: x + x + F.relu(x) - x,
    "functional_conv": lambda m, x: F.conv2d(x, m.weight, groups=3, padding=1),
    "functional_transposed": lambda m, x: F.conv_transpose2d(x, m.weight, stride=2),
    "linear": lambda m, x: F.linear(x, m.weight[:, 0, 0].repeat(1, 2)),
    "matmul": lambda m, x: x @ m.weight[0, 0].repeat(2, 1),
    "unfold": lambda m, x: F.unfold(x, 2, stride=2),
    "fold": lambda m, x: F.fold(F.unfold(x, 2), (5, 6), 2),
    "dropout": lambda m, x: F.dropout(m.conv(x), training=m.training),
    "contiguous": lambda m, x: x.permute(0, 2, 3, 1).contiguous().to(x.dtype).clone(),
    "inplace_seen_later": used_after_a_change,
    "inplace_seen_by_an_alias": alias_of_what_is_changed,
    "inplace_sum": lambda m, x: operator.iadd(m.conv(x), x),
    "softmax": lambda m, x: torch.softmax(x.mean((2, 3)) * 0, dim=1),
}


@pytest.mark.parametrize("max_pool", ["keep", "relu"])
@pytest.mark.parametrize("name", CALLS)
def test_functions_and_methods(name: str, max_pool: str):
    model = exactly(Call(CALLS[name]))
    x = 12 * integers((2, 3, 5, 6) if name != "reshape" else (2, 3, 4, 5), seed=1)
    if name == "mean_keepdim":
        x = x[..., :4]
    y = model(x.clone())
    simple = simplify(model, (x,), max_pool=max_pool)
    assert simple(x).shape == y.shape
    assert torch.equal(simple(x), y)


MODULES = [
    *(nn.ZeroPad2d((1, 2, 0, 1)), nn.ConstantPad2d(1, 2.5), nn.ReflectionPad2d(2)),
    *(nn.ReplicationPad2d(1), nn.CircularPad2d((1, 0, 2, 1)), nn.Upsample(scale_factor=2)),
    *(nn.PixelUnshuffle(2), nn.ChannelShuffle(2), nn.Unfold(2), nn.Identity(), nn.Dropout2d()),
    *(nn.Linear(6, 3), nn.Flatten(2), nn.Unflatten(1, (2, 2))),
]


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_modules(module: nn.Module):
    model, x = exactly(nn.Sequential(nn.ReLU(), module)), integers((2, 4, 4, 6))
    assert torch.equal(simplify(model, (x,))(x), model(x))


def test_patch_and_weight_form_and_parametrized_layers_are_read_too():
    x = integers((2, 1, 12, 12))
    model = exactly(lenet())
    y = model(x)
    for form in ("patch", "weight"):
        assert torch.equal(simplify(convfc.to_fc(model, form=form), (x,))(x), y)
    for sparse in (False, True):
        unrolled = convfc.unroll(model, x, sparse=sparse)
        assert torch.equal(simplify(unrolled, (x,))(x), y)
    normed = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(1, 2, 3))).double().eval()
    simple = simplify(normed, (x,))
    assert torch.equal(simple[1].weight[0, :3], normed[0].weight[0, 0, 0])


REFUSED: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "product": (lambda m, x: x * m.conv(x), "a product of two values"),
    "quotient": (lambda m, x: 1 / x, "a division by a value"),
    "layer_norm": (lambda m, x: F.layer_norm(x, (6,)), r"layer_norm\(\) is not known"),
    "batch": (lambda m, x: x.flip(0), "each example of a batch by itself"),
    "batch_mean": (lambda m, x: x - x.mean(0, keepdim=True), "each example of a batch by itself"),
    "per_example": (
        lambda m, x: x + torch.arange(2.0, dtype=x.dtype).reshape(2, 1, 1, 1),
        "constants that differ from example to example",
    ),
    "other_batch": (lambda m, x: x.reshape(1, -1), "each example of a batch by itself"),
    "dropout": (lambda m, x: F.dropout(x), "a dropout that is always on"),
    "norm_of_batch": (
        lambda m, x: F.batch_norm(x, None, None, training=True),
        "each example of a batch by itself",
    ),
    "random": (lambda m, x: x + torch.rand(1, dtype=x.dtype), r"rand\(\) draws random numbers"),
    "own_state": (
        lambda m, x: x + m.conv.bias.detach().mul_(1).sum(),
        r"mul_\(\) changes a tensor of the model's own",
    ),
    "item": (lambda m, x: x * torch.equal(x, m.conv(x)), "asks what is in a tensor"),
    "dtype": (lambda m, x: x.float().double(), "changes the dtype inside"),
    "view_changed": (
        view_of_what_is_changed,
        "an in-place operation changes a tensor",
    ),
    "constant_written": (lambda m, x: torch.zeros_like(x).add_(x), "writes .* into a constant"),
    "where": (lambda m, x: torch.where(x > 0, x, 1.0), "do not meet where its condition changes"),
    "condition": (lambda m, x: x + (x > 0), r"add\(\) computes with a condition"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str):
    call, message = REFUSED[name]
    with pytest.raises(UnsupportedLayer, match=message):
        simplify(exactly(Call(call)), (integers((2, 3, 5, 6)),))


def test_refusals_name_the_place_and_the_way_out():
    x = torch.ones(1, 1, 12, 12)
    with pytest.raises(UnsupportedLayer, match=r"1: LayerNorm is not known .* leave out simplify"):
        simplify(nn.Sequential(nn.Conv2d(1, 2, 3), nn.LayerNorm(10)), (x,))
    training = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    with pytest.raises(UnsupportedModel, match=r"1: a BatchNorm2d in training.*model\.eval\(\)"):
        simplify(training, (x,))
    untracked = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False)).eval()
    with pytest.raises(UnsupportedLayer, match="0: a BatchNorm without running statistics"):
        simplify(untracked, (x,))
    with pytest.raises(UnsupportedLayer, match="0: it is lazy"):
        simplify(nn.Sequential(nn.LazyConv2d(2, 3)).eval(), (x,))
    hooked = lenet().eval()
    hooked[3].register_forward_hook(lambda *_: None)
    with pytest.raises(UnsupportedLayer, match="3: hooks run around its calls"):
        simplify(hooked, (x,))
    counting = Call(lambda m, x: x * m.count.add_(1))
    counting.register_buffer("count", torch.zeros(1, dtype=x.dtype))
    with pytest.raises(UnsupportedLayer, match="changes a tensor of the model's own"):
        simplify(counting.eval(), (x.expand(1, 3, 12, 12),))
    assert counting.count == 0
    with pytest.raises(UnsupportedLayer, match="the forward asks what is in a tensor"):
        simplify(Call(lambda m, x: x if x.sum() > 0 else -x), (x.expand(1, 3, 12, 12),))
    with pytest.raises(UnsupportedModel, match="the model itself: its forward cannot be followed"):
        simplify(Call(lambda m, x: x + x.detach().numpy().max()), (x.expand(1, 3, 12, 12),))
    with pytest.raises(UnsupportedModel, match="it does not return one tensor"):
        simplify(exactly(Call(lambda m, x: (x, x))), (integers((1, 3, 4, 4)),))
    with pytest.raises(ShapeError, match=r"example: .* expected one tensor \(n, c, \*size\)"):
        simplify(lenet().eval(), ())
    with pytest.raises(ShapeError, match=r"expected one tensor .* got \(1, 1, 12, 12\), int"):
        simplify(lenet().eval(), (x, 1))
    with pytest.raises(ShapeError, match="does not run on two examples of this shape"):
        simplify(lenet().eval(), (x[..., :3],))
    with pytest.raises(
        UnsupportedLayer, match=r"itself: .* without a batch axis; .* \(n, c, \*size\)"
    ):
        simplify(nn.Conv2d(2, 2, 1), (x[0].repeat(2, 1, 1),))
    with pytest.raises(ShapeError, match="an empty batch"):
        simplify(lenet().eval(), (x[:0],))


def test_what_cannot_go_through_another_activation_in_one_sequence():
    model = Call(lambda m, x: x + torch.sigmoid(m.conv(x)))
    x = integers((1, 3, 4, 4))
    with pytest.raises(UnsupportedLayer, match=r"another branch .* Sigmoid.* branches='add'"):
        simplify(exactly(model), (x,), branches="carry")
    pooled = Call(lambda m, x: F.pad(F.max_pool2d(F.relu(x), 2), (0, 2, 0, 2)) + x)
    with pytest.raises(UnsupportedLayer, match=r"MaxPool2d.* max_pool='relu'"):
        simplify(exactly(pooled), (x,), branches="carry")
    simple = simplify(pooled, (x,), branches="carry", max_pool="relu")
    assert torch.equal(simple(x), pooled(x))


def test_a_model_that_cannot_be_copied_is_refused():
    model = nn.Sequential(nn.Conv2d(1, 2, 3))
    model.kept = 2 * model[0].weight
    with pytest.raises(UnsupportedModel, match="cannot be copied"):
        simplify(model, (torch.ones(1, 1, 4, 4),))


def test_options_and_memory():
    model, x = lenet().eval(), torch.ones(1, 1, 12, 12)
    with pytest.raises(ArgumentError, match="max_pool: there is no such way; expected 'keep' or"):
        simplify(model, (x,), max_pool="no")
    with pytest.raises(ArgumentError, match="branches: there is no such way; expected 'add' or"):
        simplify(model, (x,), branches="no")
    with pytest.raises(MemoryBudgetError, match="sparse=True keeps the non-zeros only"):
        simplify(model, (x,), memory=500_000)
    assert simplify(model, (x,), memory=500_000, sparse=True)(x).shape == (1, 5)
    with pytest.raises(MemoryBudgetError, match="matrices that the network is made of do not fit"):
        simplify(model, (x,), memory=10_000, sparse=True)


def convolved_twice() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 2, 3, padding=1), nn.Flatten(), nn.Linear(2 * 3 * 3, 5)),
    ).eval()


def test_a_large_network_is_refused_at_once() -> None:
    """By the sizes alone: the entries of each layer, 12 bytes each, and where its rows begin."""
    model, x = convolved_twice(), torch.zeros(1, 1, 6, 6)
    taken = sum(12 * entries + 4 * (rows + 1) for entries, rows in [(4 * 256, 144), (8 * 49, 18)])
    taken += 12 * 5 * 18
    message = (
        "^0: the matrices that the network is made of do not fit; expected at most "
        rf"{taken - 1:,} bytes; got 144 x 36, 1,024 entries .*; all 3 layers take {taken:,} bytes "
        "while they are made"
    )
    for options in ({}, {"sparse": True}, {"max_pool": "relu"}, {"branches": "carry"}):
        with pytest.raises(MemoryBudgetError, match=message):
            simplify(model, (x,), memory=taken - 1, **options)
    vgg = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1))
    with pytest.raises(MemoryBudgetError, match=r"^2: .* got 3,211,264 x 3,211,264, .* 20\.6 GiB"):
        simplify(vgg, (torch.zeros(1, 3, 224, 224),), memory=2**33)


def test_dense_weights_that_cannot_fit_are_refused_before_anything_is_multiplied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x = convolved_twice(), torch.zeros(1, 1, 6, 6)
    seen: list[object] = []

    def merge(*args: object, **options: object) -> None:
        seen.append(options)
        raise MemoryError("Unable to allocate 484. MiB")

    monkeypatch.setattr(simplified, "merge", merge)
    least = 4 * (144 * 36 + 5 * 18)  # float32: in front of the ReLU, and the output
    message = (
        f"the FC layers, with at least as many numbers as these, do not fit; .* {least:,} bytes"
    )
    with pytest.raises(MemoryBudgetError, match=message):
        simplify(model, (x,), memory=least - 1)
    assert not seen
    for options in ({"memory": least}, {"memory": least - 1, "sparse": True}):
        with pytest.raises(
            MemoryBudgetError, match=r"memory ran out .* got Unable to allocate 484"
        ):
            simplify(model, (x,), **options)
    assert len(seen) == 2
