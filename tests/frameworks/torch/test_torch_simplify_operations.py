"""Call by call: what is a matrix, what is ReLU, what stays, what is refused, how one is taught."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conv_cases import integers
from networks import trained
from simplified_models import each_way, lenet
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch_fixtures import in_form, with_integers
from torchvision.models import segmentation

import convfc
from convfc import simplify
from convfc.errors import MemoryBudgetError, ShapeError, UnsupportedLayer, UnsupportedModel
from convfc.frameworks.torch.simplification import OPERATIONS
from convfc.mlp import simplified
from convfc.rounding import UNIT_ROUNDOFF, gamma

Forward = Callable[[Any, Tensor, Tensor], Any]
X = torch.ones(1, 1, 12, 12)
CONV = nn.Conv2d(1, 2, 3)


class Call(nn.Module):
    """A convolution, and what a function makes of this module, its input and the convolution's."""

    def __init__(self, call: Forward) -> None:
        super().__init__()
        self.call = call
        self.weight = nn.Parameter(torch.empty(3, 1, 3, 3))
        self.register_buffer("scale", 2 * integers((3, 1, 1), seed=4))
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        return self.call(self, x, self.conv(x))


def used_after_a_change(m: Any, x: Tensor, y: Tensor) -> Tensor:
    z = y.relu_()
    return y + z


def alias_of_what_is_changed(m: Any, x: Tensor, y: Tensor) -> Tensor:
    alias = y.detach()
    y.relu_()
    return alias + 2 * y


def view_of_what_is_changed(m: Any, x: Tensor, y: Tensor) -> Tensor:
    view = y[:, 1:]
    y.relu_()
    return view + 1


def constant(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64).reshape(-1, 1, 1)


MAXIMA: dict[str, Forward] = {
    "maximum": lambda m, x, y: torch.maximum(x, y),
    "minimum": lambda m, x, y: torch.minimum(x, y),
    "maximum_of_a_constant": lambda m, x, y: torch.maximum(y, constant(3)),
    "maximum_broadcast": lambda m, x, y: torch.maximum(x, y[:, :1]),
    "clamp": lambda m, x, y: y.clamp(-3, 4),
    "clamp_min": lambda m, x, y: y.clamp(min=1),
    "clamp_max": lambda m, x, y: torch.clamp(y, max=1),
    "clamp_by_tensors": lambda m, x, y: torch.clamp(y, x - 1, x + 1),
    "relu6": lambda m, x, y: F.relu6(y),
    "hardtanh": lambda m, x, y: F.hardtanh(y, -2, 2),
    "hardtanh_above_zero": lambda m, x, y: F.hardtanh(y, 2, 5),
    "leaky_relu": lambda m, x, y: F.leaky_relu(y, 0.25),
    "prelu": lambda m, x, y: F.prelu(y, constant(0.5).flatten()),
    "prelu_by_channel": lambda m, x, y: F.prelu(y, constant(0.5, -2, 1).flatten()),
    "abs": lambda m, x, y: y.abs(),
    "where_relu": lambda m, x, y: torch.where(y > 0, y, 0.0),
    "where_not": lambda m, x, y: torch.where(y <= 0, 0.0, y),
    "where_leaky": lambda m, x, y: torch.where(y > 0, y, 0.25 * y),
    "where_leaky_from_a_threshold": lambda m, x, y: torch.where(y >= 2, y, 0.5 * y + 1),
    "where_threshold": lambda m, x, y: torch.where(y >= 2, y, 2.0),
    "where_absolute": lambda m, x, y: torch.where(y < 0, -y, y),
    "where_larger": lambda m, x, y: torch.where(x > y, x, y),
    "where_smaller": lambda m, x, y: torch.where(x > y, y, x),
    "where_by_channel": lambda m, x, y: torch.where(y > 0, y, y * constant(0.5, -2, 1)),
}
CALLS: dict[str, Forward] = {
    **MAXIMA,
    # The sign of the value is known then.
    **{f"{name}_of_a_relu": lambda m, x, y, f=f: f(m, x, F.relu(y)) for name, f in MAXIMA.items()},
    "relu": lambda m, x, y: F.relu(y),
    "relu_inplace_method": lambda m, x, y: y.relu_(),
    "adaptive": lambda m, x, y: F.adaptive_avg_pool2d(x[:, :, :4, :4], 1).flatten(1),
    "mean": lambda m, x, y: x[:, :, :4].mean((2, 3))[..., None] * 6,
    "mean_keepdim": lambda m, x, y: torch.mean(x[..., :4], dim=-1, keepdim=True),
    "sum": lambda m, x, y: x.sum(1),
    "cumsum": lambda m, x, y: x.cumsum(2),
    "view": lambda m, x, y: y.view(x.size(0), -1),
    "reshape": lambda m, x, y: torch.reshape(x, (-1, 9, 10)),
    "permute": lambda m, x, y: y.permute(0, 2, 3, 1),
    "channel_shuffle": lambda m, x, y: x.unflatten(1, (3, 1)).transpose(1, 2).flatten(1, 2),
    "cat": lambda m, x, y: torch.cat([x, y, x], dim=2),
    "stack": lambda m, x, y: torch.stack([x, y, -x], 2),
    "chunk": lambda m, x, y: torch.sub(x.chunk(2, dim=3)[1], y.chunk(2, dim=3)[0]),
    "split": lambda m, x, y: y.split([1, 2], 1)[1],
    "slice": lambda m, x, y: y[:, 1:, ::2, 1:-1],
    "picked": lambda m, x, y: y[:, [1, 0, 0]],
    "flip": lambda m, x, y: y.flip(-1),
    "pad": lambda m, x, y: F.pad(y, (1, 2, 0, 1), value=3.0),
    "reflect": lambda m, x, y: F.pad(x, (1, 2, 1, 1), mode="reflect"),
    "nearest": lambda m, x, y: F.interpolate(y, size=(9, 7)),
    "nearest_exact": lambda m, x, y: F.interpolate(y, scale_factor=0.5, mode="nearest-exact"),
    "bilinear": lambda m, x, y: F.interpolate(y, scale_factor=2, mode="bilinear"),
    "bilinear_corners": lambda m, x, y: F.interpolate(
        y, size=(9, 11), mode="bilinear", align_corners=True
    ),
    "pixel_shuffle": lambda m, x, y: F.pixel_shuffle(x.repeat(1, 4, 1, 1), 2),
    "constants": lambda m, x, y: (2 * x - m.scale) / 4 + m.scale * x - (1 - x) * -3,
    "alpha": lambda m, x, y: torch.add(x, y, alpha=3),
    "broadcast": lambda m, x, y: x + x.sum((2, 3), keepdim=True) - x[:, :1],
    "itself": lambda m, x, y: x + x + F.relu(x) - x,
    "functional_conv": lambda m, x, y: F.conv2d(x, m.weight, groups=3, padding=1),
    "functional_transposed": lambda m, x, y: F.conv_transpose2d(x, m.weight, stride=2),
    "linear": lambda m, x, y: F.linear(x, m.weight[:, 0, 0].repeat(1, 2)),
    "matmul": lambda m, x, y: x @ m.weight[0, 0].repeat(2, 1),
    "unfold": lambda m, x, y: F.unfold(x, 2, stride=2),
    "fold": lambda m, x, y: F.fold(F.unfold(x, 2), (5, 6), 2),
    "dropout": lambda m, x, y: F.dropout(y, training=m.training),
    "contiguous": lambda m, x, y: x.permute(0, 2, 3, 1).contiguous().to(x.dtype).clone(),
    "inplace_seen_later": used_after_a_change,
    "inplace_seen_by_an_alias": alias_of_what_is_changed,
    "inplace_sum": lambda m, x, y: operator.iadd(y, x),
    "if_of_a_shape": lambda m, x, y: y + 1 if y.shape[2] > 4 else y.view(-1),
}


@each_way
@pytest.mark.parametrize("name", CALLS)
def test_functions_and_methods(name: str, way: dict[str, Any]):
    model, x = with_integers(Call(CALLS[name])), 12 * integers((2, 3, 5, 6), seed=1)
    y = model(x.clone())
    simple = simplify(model, x[:1], **way)
    if way:
        plain = {nn.Linear, nn.ReLU, nn.Flatten, nn.Unflatten, nn.Sequential}
        assert {type(part) for part in simple.modules()} <= plain
    assert simple(x).shape == y.shape
    assert torch.equal(simple(x), y)


MODULES = [
    *(nn.ConstantPad2d(1, 2.5), nn.ReplicationPad2d(1), nn.CircularPad2d((1, 0, 2, 1))),
    *(nn.PixelUnshuffle(2), nn.ChannelShuffle(2), nn.Identity(), nn.Dropout2d()),
    *(nn.Linear(6, 3), nn.Flatten(2), nn.Unflatten(1, (2, 2))),
]


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_modules(module: nn.Module):
    model, x = with_integers(nn.Sequential(nn.ReLU(), module)), integers((2, 4, 4, 6))
    assert torch.equal(simplify(model, x)(x), model(x))


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


@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_pooling(pool: nn.Module):
    model = nn.Sequential(pool, nn.Flatten()).eval()
    for size in ((7, 6), (8, 5)):
        x = 8 * integers((3, 2, *size))
        y, simple = model(x), simplify(model, x, max_pool="relu")
        assert not any(isinstance(part, type(pool)) for part in simple.modules())
        if isinstance(pool, nn.AvgPool2d | nn.AdaptiveAvgPool2d):
            # A ninth is rounded once more in a matrix: two roundings of numbers of at most 16.
            assert bool(((simple(x) - y).abs() <= 36 * 16 * torch.finfo(torch.float64).eps).all())
        else:
            assert torch.equal(simple(x), y)
            kept = simplify(model, x)
            assert [type(part) for part in kept].count(type(pool)) == 1
            assert torch.equal(kept(x), y)


@pytest.mark.parametrize("ndim", [1, 3])
def test_pooling_and_interpolation_in_other_dimensions(ndim: int):
    x = 64 * integers((2, 2, *(5, 4, 4)[:ndim]))
    average, largest = (getattr(nn, f"{kind}Pool{ndim}d")(2) for kind in ("Avg", "Max"))
    linear = nn.Upsample(scale_factor=2, mode={1: "linear", 3: "trilinear"}[ndim])
    for model in (average, largest, linear):
        for max_pool in ("keep", "relu"):
            assert torch.equal(simplify(model, x, max_pool=max_pool)(x), model(x))


UPSAMPLES = {
    "bilinear": nn.Upsample(scale_factor=1.5, mode="bilinear"),
    "bicubic": nn.Upsample((9, 4), mode="bicubic"),
    "smaller": nn.Upsample((3, 3), mode="bilinear"),
    "antialias": Call(lambda m, x, y: F.interpolate(x, (3, 4), mode="bilinear", antialias=True)),
}


@pytest.mark.parametrize("name", UPSAMPLES)
def test_upsampling_is_a_matrix(name: str):
    model, x = nn.Sequential(UPSAMPLES[name]).double().eval(), torch.randn(3, 3, 5, 6).double()
    y, simple = model(x), simplify(model, x)
    (layer,) = (part for part in simple.modules() if type(part) is nn.Linear)
    terms = int((layer.weight != 0).sum(1).max())
    size = layer.weight.abs() @ x.abs().flatten(1).T
    bound = gamma(2 * terms + 9, UNIT_ROUNDOFF["float64"]) * (size.max() + 1)
    assert bool(((simple(x) - y).abs() <= bound).all())


def test_hardsigmoid_becomes_relu_but_for_the_rounding_of_a_sixth():
    x = torch.linspace(-5, 5, 101).reshape(1, 101).double()
    simple = simplify(nn.Hardsigmoid(), x)
    assert {type(part) for part in simple} == {nn.Linear, nn.ReLU}
    assert bool(((simple(x) - F.hardsigmoid(x)).abs() <= 4 * torch.finfo(x.dtype).eps).all())


KEPT = [nn.Sigmoid(), nn.Tanh(), nn.GELU(), nn.SiLU(), nn.ELU(), nn.Softplus(), nn.Hardswish()]


@pytest.mark.parametrize("activation", [*KEPT, nn.Softmax(1)], ids=str)
def test_other_activations_stay(activation: nn.Module):
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Flatten(), activation, nn.Linear(27, 2))
    model, x = with_integers(model), integers((2, 3, 5, 5))
    simple = simplify(model, x, sequential=True)
    assert [type(part) for part in simple] == [nn.Flatten, nn.Linear, type(activation), nn.Linear]
    assert torch.equal(simple[:3](x), model[:3](x))


@pytest.mark.parametrize("form", ["patch", "weight", "unrolled"])
def test_layers_in_every_form_are_read(form: str):
    model, x = with_integers(lenet()), integers((2, 1, 12, 12))
    assert torch.equal(simplify(in_form(model, form, x), x)(x), model(x))


def test_parametrized_layers_are_read():
    normed = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(1, 2, 3))).double().eval()
    simple = simplify(normed, X.double())
    assert torch.equal(simple[1].weight[0, :3], normed[0].weight[0, 0, 0])


# What is refused ----------------------------------------------------------------------------------


LAYER, MODEL = UnsupportedLayer, UnsupportedModel
EACH = "each example of a batch by itself"
REFUSED: dict[str, tuple[Forward, type[Exception], str]] = {
    "product": (lambda m, x, y: x * y, LAYER, "a product of two values"),
    "quotient": (lambda m, x, y: 1 / x, LAYER, "a division by a value"),
    "layer_norm": (lambda m, x, y: F.layer_norm(x, (6,)), LAYER, r"layer_norm\(\) is not known"),
    "batch": (lambda m, x, y: x.flip(0), LAYER, EACH),
    "batch_mean": (lambda m, x, y: x - x.mean(0, keepdim=True), LAYER, EACH),
    "other_batch": (lambda m, x, y: x.reshape(1, -1), LAYER, EACH),
    "norm_of_batch": (lambda m, x, y: F.batch_norm(x, None, None, training=True), LAYER, EACH),
    "per_example": (
        lambda m, x, y: x + torch.arange(2.0, dtype=x.dtype).reshape(2, 1, 1, 1),
        LAYER,
        "constants that differ from example to example",
    ),
    "matrix_per_example": (
        lambda m, x, y: torch.bmm(
            x.flatten(2)[:, :1, :2], torch.arange(8.0).double().view(2, 2, 2)
        ),
        LAYER,
        "constants that differ from example to example",
    ),
    "as_many_matrices_as_examples": (
        lambda m, x, y: torch.bmm(x.flatten(2), torch.ones(len(x), 30, 2).double()),
        LAYER,
        "a constant has a part for each example",
    ),
    "dropout": (lambda m, x, y: F.dropout(x), LAYER, "a dropout that is always on"),
    "random": (lambda m, x, y: x + torch.rand(1, dtype=x.dtype), LAYER, r"rand\(\) draws random"),
    "own_state": (lambda m, x, y: x * m.scale.add_(1), LAYER, r"add_\(\) changes a tensor of the"),
    "item": (lambda m, x, y: x * torch.equal(x, y), LAYER, "asks what is in a tensor"),
    "branch": (lambda m, x, y: x if x.sum() > 0 else -x, LAYER, "the forward asks what is in a"),
    "dtype": (lambda m, x, y: x.float().double(), LAYER, "changes the dtype inside"),
    "view_changed": (view_of_what_is_changed, LAYER, "an in-place operation changes a tensor"),
    "constant_written": (lambda m, x, y: torch.zeros_like(x).add_(x), LAYER, "into a constant"),
    "where": (lambda m, x, y: torch.where(x > 0, x, 1.0), LAYER, "do not meet where its condition"),
    "condition": (lambda m, x, y: x + (x > 0), LAYER, r"add\(\) computes with a condition"),
    "numpy": (lambda m, x, y: x + x.numpy().max(), MODEL, "itself: its forward cannot be followed"),
    "two outputs": (lambda m, x, y: (x, y), MODEL, "it does not return one tensor"),
}


@pytest.mark.parametrize(("call", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(call: Forward, error: type[Exception], message: str):
    model = with_integers(Call(call))
    scale = model.scale.clone()
    with pytest.raises(error, match=message):
        simplify(model, integers((2, 3, 5, 6)))
    assert torch.equal(model.scale, scale)


def with_hook() -> nn.Module:
    model = lenet().eval()
    model[3].register_forward_hook(lambda *_: None)
    return model


def with_a_result() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(1, 2, 3))
    model.kept = 2 * model[0].weight
    return model


PLACES: dict[str, tuple[Callable[[], nn.Module], type[Exception], str]] = {
    "remedy": (
        lambda: nn.Sequential(CONV, nn.LayerNorm(10)),
        LAYER,
        r"1: LayerNorm is not known .*Remedy: use convfc\.unroll, .*parts before and after it",
    ),
    "training": (
        lambda: nn.Sequential(CONV, nn.BatchNorm2d(2)),
        MODEL,
        r"1: a BatchNorm2d in training.*model\.eval\(\)",
    ),
    "untracked": (
        lambda: nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False)).eval(),
        LAYER,
        "0: a BatchNorm without running statistics",
    ),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(2, 3)), LAYER, "0: it is lazy"),
    "hooks": (with_hook, LAYER, "3: hooks run around its calls"),
    "copy": (with_a_result, MODEL, "cannot be copied"),
}


@pytest.mark.parametrize(("make", "error", "message"), PLACES.values(), ids=PLACES)
def test_refusals_name_the_place_and_the_remedy(make, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        simplify(make(), X)


EXAMPLES: dict[str, tuple[Any, str]] = {
    "no tensor": ((1,), r"^example: .* expected one tensor \(n, c, \*size\).* got int"),
    "two": ((X, 1), r"does not take these arguments: too many positional .* got Tensor, int"),
    "size": (X[..., :3], "example: the model does not run on this input: "),
    "channels": (
        X.expand(1, 2, 12, 12),
        r"Given groups=1.* 2 channels instead; got \(1, 2, 12, 12",
    ),
    "empty": (X[:0], "an empty batch"),
}


@pytest.mark.parametrize(("example", "message"), EXAMPLES.values(), ids=EXAMPLES)
def test_examples_that_cannot_be_used(example: Any, message: str):
    with pytest.raises(ShapeError, match=message):
        simplify(lenet().eval(), example)


def test_one_example_without_a_batch_axis_is_said_to_be_none():
    words = r"^example: .* not on two of its rows; .*got \(3, 8, 8\)\. Remedy: example\[None\]"
    with pytest.raises(ShapeError, match=words):
        simplify(nn.Conv2d(3, 2, 3), torch.ones(3, 8, 8))


def test_a_convolution_without_a_batch_axis_is_refused():
    with pytest.raises(UnsupportedLayer, match=r"without a batch axis; .* \(n, c, \*size\)"):
        simplify(nn.Conv2d(2, 2, 1), X[0].expand(2, 12, 12))


def test_what_cannot_go_through_another_activation_in_one_sequence():
    x = integers((1, 3, 4, 4))
    model = with_integers(Call(lambda m, x, y: x + torch.sigmoid(y)))
    with pytest.raises(UnsupportedLayer, match=r"another branch .* Sigmoid.* sequential=True"):
        simplify(model, x, sequential=True)
    pooled = with_integers(
        Call(lambda m, x, y: F.pad(F.max_pool2d(F.relu(x), 2), (0, 2, 0, 2)) + x)
    )
    with pytest.raises(UnsupportedLayer, match=r"MaxPool2d.* max_pool='relu'"):
        simplify(pooled, x, sequential=True)
    assert torch.equal(simplify(pooled, x, sequential=True, max_pool="relu")(x), pooled(x))


# Memory -------------------------------------------------------------------------------------------


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
    with pytest.raises(MemoryBudgetError, match=message):
        simplify(model, x, memory=taken - 1)
    vgg = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1))
    with pytest.raises(MemoryBudgetError, match=r"^2: .* got 3,211,264 x 3,211,264, .* 20\.6 GiB"):
        simplify(vgg, torch.zeros(1, 3, 224, 224), memory=2**33)


def test_weights_that_cannot_fit_are_refused_before_anything_is_multiplied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x = convolved_twice(), torch.zeros(1, 1, 6, 6)
    needed = 4 * (144 * 36 + 5 * 36)  # float32: before the ReLU, and the rest after the pooling
    with pytest.raises(
        MemoryBudgetError, match=r"the matrix does not fit.* 144 x 36.*convfc\.unroll"
    ):
        simplify(model, x, memory=needed - 1)
    assert simplify(model, x, memory=needed)(x).shape == (1, 5)
    seen: list[object] = []

    def merge(*args: object, **options: object) -> None:
        seen.append(options)
        raise MemoryError("Unable to allocate 484. MiB")

    monkeypatch.setattr(simplified, "merge", merge)
    least = 4 * (144 * 36 + 5 * 18)  # the output has at least as many columns as the layer before
    message = (
        f"the FC layers, with at least as many numbers as these, do not fit; .* {least:,} bytes"
    )
    with pytest.raises(MemoryBudgetError, match=message):
        simplify(model, x, memory=least - 1)
    assert not seen
    with pytest.raises(MemoryBudgetError, match=r"memory ran out .* got Unable to allocate 484"):
        simplify(model, x, memory=least)
    assert len(seen) == 1


# Segmentation, and a further operation ------------------------------------------------------------


class Backbone(nn.Module):
    """What a torchvision segmentation network expects: a dictionary of features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=4, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": F.relu(self.conv(x))}


class Scores(segmentation.DeepLabV3):
    """Its one map, by itself."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x)["out"]
        return y


def test_a_segmentation_network_of_torchvision():
    """DeepLabV3 on a small backbone: atrous pyramid, pooled branch, scores on the input's size."""
    head = segmentation.deeplabv3.DeepLabHead(8, 2, atrous_rates=(1, 2, 3))
    model, x = trained(Scores(Backbone(), head)), torch.randn(1, 3, 8, 8)
    simple = simplify(model, x)
    assert not any(isinstance(part, nn.Conv2d | nn.Upsample) for part in simple.modules())
    certificate = convfc.verify(model, simple, x)
    assert certificate.holds, str(certificate)
    assert simple(x).shape == (1, 2, 8, 8)


def test_a_further_operation_is_one_entry():
    """Of torch.xlogy nothing is known; that xlogy(x, e) is x is said here."""
    model = with_integers(Call(lambda m, x, y: torch.xlogy(y, torch.tensor(torch.e))))
    x = integers((2, 3, 3, 3))
    with pytest.raises(UnsupportedLayer, match=r"the model itself: xlogy\(\) is not known"):
        simplify(model, x)

    @OPERATIONS.register("xlogy")
    def _(step: Any, x: Any, other: Tensor) -> Any:
        return x.value

    try:
        assert simplify(model, x)(x).shape == model(x).shape
    finally:
        del OPERATIONS["xlogy"]
