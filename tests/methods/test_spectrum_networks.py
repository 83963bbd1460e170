"""Bounds that are proven: of a layer's norm, of a whole network; and what doubts them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from cases import Case
from hypothesis import event, given
from hypothesis import strategies as st
from strategies import cases, seeds
from torch import Tensor, nn
from torch.nn import functional as F

import convfc
from convfc.errors import ShapeError, UnsupportedLayer, UnsupportedModel
from convfc.methods.spectrum import (
    NormBounds,
    lipschitz_bound,
    networks,
    norm_bounds,
    rules,
    singular_values,
    spectral_norm,
    verify_bound,
)
from convfc.methods.spectrum import bounds as arithmetic

EPS = float(np.finfo(np.float64).eps)


def dense_norm(matrix: Any) -> tuple[float, float]:
    """The norm by NumPy, and how far LAPACK may be off."""
    return float(np.linalg.norm(matrix, 2)), max(matrix.shape) * EPS


def jacobian_norm(model: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """The norm of PyTorch's own Jacobian, in float64."""
    jacobian = torch.autograd.functional.jacobian(model, x)
    return float(torch.linalg.matrix_norm(jacobian.reshape(-1, x.numel()), 2))


class Net(nn.Module):
    """A network of some parts and a forward."""

    def __init__(self, forward: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.computed = forward
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.computed(self, x)


def ones_conv(channels: int, kernel: int, **rest: Any) -> nn.Conv2d:
    """A CONV layer of ones."""
    layer = nn.Conv2d(channels, channels, kernel, groups=channels, **rest)
    nn.init.ones_(layer.weight)
    return layer


def random_norm(channels: int) -> nn.BatchNorm2d:
    """A BatchNorm that has seen something, with negative scales."""
    made = nn.BatchNorm2d(channels)
    with torch.no_grad():
        made.weight.copy_(torch.randn(channels))
        made.running_var.copy_(torch.rand(channels) + 0.1)
        made.running_mean.copy_(torch.randn(channels))
    return made


# Norms of layers ----------------------------------------------------------------------------------


@given(cases(), seeds)
def test_the_norm_of_any_layer_is_between_its_bounds(case: Case, seed: int):
    geometry, size = case.geometry, case.input_size
    filters = np.random.default_rng(seed).standard_normal(geometry.filters_shape)
    norm, off = dense_norm(convfc.conv_matrix(filters, size, geometry, layout="dense"))
    found = norm_bounds(filters, size, geometry)
    assert found.lower * (1 - off) <= norm <= found.upper * (1 + off)
    assert found.upper <= norm * (1 + 3 * max(off, found.upper / norm - 1 if norm else 0))
    # What large layers are bounded by, which a small one never needs.
    layer = convfc.ConvLayer(geometry, filters)
    circle, _ = arithmetic._on_a_circle(layer, size)
    sums = arithmetic._by_sums(layer, size)
    assert norm <= circle * (1 + off)
    assert norm <= sums * (1 + off)
    if norm and not geometry.transposed:
        event(f"{geometry.padding_mode}: the circle's norm is {circle / norm:.1f} of the layer's")


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_layer_too_large_for_lapack_is_bounded_on_a_circle(
    mode: str, stride: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("convfc.methods.spectrum.singular.DENSE_LIMIT", 0)
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, 3, stride, padding=1, padding_mode=mode, dtype=torch.float64)
    size = (9, 10)
    norm, off = dense_norm(convfc.conv_matrix(conv, size, layout="dense"))
    found = norm_bounds(conv, size)
    assert norm * (1 - 1e-3) <= found.lower <= norm * (1 + off)
    assert norm <= found.upper * (1 + off)
    assert found.upper <= norm * (1.06 if mode == "zeros" else 2.2)
    geometry = convfc.ConvGeometry(2, 3, (3, 3), stride=stride, padding=1, padding_mode=mode)
    _, how = arithmetic._on_a_circle(convfc.ConvLayer(geometry, np.ones((3, 3, 3, 2))), size)
    padded = mode != "zeros"
    expected = {(1, False): "10×11", (2, False): "10×12", (1, True): "11×12", (2, True): "12×12"}
    assert f"circle of {expected[stride, padded]}" in how
    assert ("of the padding" in how) is padded


def test_a_circle_as_small_as_the_input_would_be_no_bound():
    """The second difference of 3 elements between zeros; on a circle of 3 its norm is 3 only."""
    geometry = convfc.ConvGeometry(1, 1, (3,), padding=1)
    filters = np.array([[[-1.0], [2.0], [-1.0]]])
    circle, how = arithmetic._on_a_circle(convfc.ConvLayer(geometry, filters), (3,))
    norm, _ = dense_norm(convfc.conv_matrix(filters, (3,), geometry, layout="dense"))
    assert norm == pytest.approx(2 + math.sqrt(2), rel=8 * EPS)
    assert how == "the norm on a circle of 4"
    assert 4 <= circle <= 4 * (1 + 1e-12)


@pytest.mark.parametrize(
    ("layer", "size", "norm"),
    [
        (ones_conv(1, 1), (5, 5), 1),
        (ones_conv(3, 2, stride=2), (6, 8), 2),
        (ones_conv(1, 4, stride=4), (8, 8), 4),
        (ones_conv(2, 3, padding=1, padding_mode="circular"), (6, 7), 9),
        (nn.ConvTranspose2d(1, 1, 3, stride=3, bias=False), (4, 4), 3),
    ],
    ids=["identity", "side by side", "four", "circle", "transposed"],
)
def test_the_norm_of_ones_is_an_integer_to_the_last_bit(
    layer: nn.Module, size: tuple[int, ...], norm: int
):
    nn.init.ones_(layer.weight)
    assert norm_bounds(layer, size).upper == norm
    assert lipschitz_bound(layer, torch.zeros(1, layer.in_channels, *size)).bound == norm


def test_a_layer_of_zeros_stretches_nothing():
    conv = nn.Conv2d(1, 2, 3, padding=1)
    nn.init.zeros_(conv.weight)
    assert norm_bounds(conv, (5, 5)) == NormBounds(
        0, 0, "all filters are 0, or read nothing but padding"
    )


@given(st.integers(1, 6), st.integers(1, 6), seeds)
def test_matrices_are_bounded_by_lapack_directly_or_by_their_gram_matrix(m: int, n: int, seed: int):
    matrix = np.random.default_rng(seed).standard_normal((m, n))
    norm, off = dense_norm(matrix)
    for limit in (1024, 0):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(arithmetic, "_SVD_LIMIT", limit)
            found = arithmetic.matrix_bounds(matrix)
        assert norm * (1 - off) <= found.upper <= norm * (1 + 1e-12)
        assert found.lower <= found.upper


def test_integer_and_orthogonal_matrices():
    assert arithmetic.matrix_bounds(np.diag([3.0, -7.0, 2.0])).upper == 7
    assert arithmetic.matrix_bounds(np.zeros((2, 3))).upper == 0
    orthogonal, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))
    assert 1 <= arithmetic.matrix_bounds(orthogonal).upper * (1 + 8 * EPS) <= 1 + 100 * EPS
    assert arithmetic.matrix_bounds(np.array([[1j, 0], [0, 2]])).upper >= 2


# Arithmetic ---------------------------------------------------------------------------------------

sizes = st.floats(1e-100, 1e100)


@given(st.lists(sizes, min_size=1, max_size=4))
def test_sums_and_products_of_bounds_are_rounded_upwards_and_no_further(values: list[float]):
    exact = [Fraction(value) for value in values]
    squares = sum(value**2 for value in exact)
    for found, power, true in (
        (arithmetic.product(*values), 1, math.prod(exact)),
        (arithmetic.total(values), 1, sum(exact)),
        (arithmetic.side_by_side(values), 2, squares),
    ):
        if math.isinf(found):
            assert true > Fraction(1.7e308)
            continue
        assert Fraction(found) ** power >= true
        below = math.nextafter(found, 0.0)
        assert Fraction(below) ** power < true


def test_what_is_exact_stays_exact_and_what_overflows_is_infinite():
    assert arithmetic.product(3.0, 7.0) == 21
    assert arithmetic.side_by_side([3.0, 4.0]) == 5
    assert arithmetic.product(1e200, 1e200) == arithmetic.total([1e308, 1e308]) == math.inf
    assert arithmetic.product(math.inf, 2.0) == arithmetic.side_by_side([math.inf]) == math.inf
    assert arithmetic.product(math.inf, 0.0) == 0


# Parts --------------------------------------------------------------------------------------------

PARTS: dict[str, Any] = {
    "max": nn.MaxPool2d(3, stride=2, padding=1),
    "max-dilated": nn.MaxPool2d(2, stride=2, dilation=2),
    "max-adaptive": nn.AdaptiveMaxPool2d(3),
    "average": nn.AvgPool2d(3, stride=2),
    "average-side-by-side": nn.AvgPool2d(2),
    "average-padded": nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
    "average-ceil": nn.AvgPool2d(3, stride=2, ceil_mode=True),
    "average-by-3": nn.AvgPool2d(2, divisor_override=3),
    "average-by-minus-1": nn.AvgPool2d(2, divisor_override=-1),
    "average-adaptive": nn.AdaptiveAvgPool2d(3),
    "average-of-all": nn.AdaptiveAvgPool2d(1),
    "norm": random_norm(2),
    "leaky": nn.LeakyReLU(-2.0),
    "prelu": nn.PReLU(2, init=1.5),
    "nearest": nn.Upsample(scale_factor=2),
    "bilinear": nn.Upsample(scale_factor=2, mode="bilinear"),
    "reflect": nn.ReflectionPad2d(2),
    "constant": nn.ConstantPad2d(1, 3.0),
    "softmax": nn.Softmax(dim=1),
    "log_softmax": nn.LogSoftmax(dim=1),
    "mean": lambda x: x.mean(dim=(2, 3)),
    "sum": lambda x: x.sum(dim=1),
    "amax": lambda x: x.amax(dim=(2, 3)),
    "expand": lambda x: x.mean(1, keepdim=True).expand(-1, 4, -1, -1),
    "broadcast": lambda x: x + x.mean(dim=(2, 3), keepdim=True),
    "scaled": lambda x: x * torch.tensor([-3.0, 0.5]).view(1, 2, 1, 1) / 4,
    "difference": lambda x: 2 - (x - x.flip(3)),
    "alpha": lambda x: torch.add(x, x.flip(3), alpha=-2),
    "maximum": lambda x: torch.maximum(x, -x.flip(2)),
    "clamped": lambda x: x.clamp(-0.5, 0.5),
    "split": lambda x: torch.cat([part.relu() for part in x.chunk(2, 1)], 2),
    "functional": lambda x: F.conv2d(x, FILTERS, stride=2, padding=(1, 0)),
    "functional-transposed": lambda x: F.conv_transpose2d(x, FILTERS.transpose(0, 1), stride=2),
    "matmul": lambda x: x.flatten(2) @ MATRIX,
    "linear": lambda x: F.linear(x.flatten(2), MATRIX.T),
}
torch.manual_seed(0)
FILTERS = torch.randn(3, 2, 3, 2)
MATRIX = torch.randn(49, 5)


@pytest.mark.parametrize("name", PARTS)
def test_the_bound_of_a_part_is_no_less_than_its_jacobians_norm(name: str):
    part = PARTS[name] if isinstance(PARTS[name], nn.Module) else Net(lambda _, x: PARTS[name](x))
    part.float().eval()
    x = torch.randn(1, 2, 7, 7, generator=torch.Generator().manual_seed(1))
    bound = lipschitz_bound(part, x)
    norm = jacobian_norm(part, x)
    single = 1e-5  # the Jacobian is in float32 here: constants of a forward stay in it
    assert norm <= bound.bound * (1 + single)
    assert bound.bound <= 3.01 * norm
    assert bound.shape == (2, 7, 7)


SLOPES: dict[str, nn.Module] = {
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
    "softsign": nn.Softsign(),
    "tanhshrink": nn.Tanhshrink(),
    "softshrink": nn.Softshrink(),
    "hardtanh": nn.Hardtanh(),
    "hardsigmoid": nn.Hardsigmoid(),
    "hardswish": nn.Hardswish(),
    "silu": nn.SiLU(),
    "gelu": nn.GELU(),
    "gelu-tanh": nn.GELU("tanh"),
    "mish": nn.Mish(),
    "elu": nn.ELU(),
    "elu-3": nn.ELU(3.0),
    "celu": nn.CELU(0.3),
    "selu": nn.SELU(),
    "softplus": nn.Softplus(2.0),
    "logsigmoid": nn.LogSigmoid(),
    "leaky": nn.LeakyReLU(1.5),
}


@pytest.mark.parametrize("name", SLOPES)
def test_the_slope_of_an_activation_is_its_largest(name: str):
    x = torch.linspace(-12, 12, 240001, dtype=torch.float64, requires_grad=True)
    (slopes,) = torch.autograd.grad(SLOPES[name](x).sum(), x)
    bound = lipschitz_bound(SLOPES[name], torch.zeros(1, 3)).bound
    largest = slopes.abs().max().item()
    assert largest <= bound * (1 + 4 * EPS)
    assert bound <= largest * (1 + 1e-3)


# Networks -----------------------------------------------------------------------------------------


class UNet(nn.Module):
    """A U-Net of two levels."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 3, 3, padding=1, bias=False)
        self.norm = random_norm(3)
        self.deep = nn.Conv2d(3, 6, 3, padding=1, padding_mode="replicate")
        self.up = nn.ConvTranspose2d(6, 3, 2, stride=2)
        self.out = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.norm(self.down(x)), inplace=True)
        deep = F.silu(self.deep(F.max_pool2d(skip, 2)))
        return self.out(torch.cat([skip, self.up(deep)], dim=1))


def residual() -> nn.Module:
    return Net(
        lambda m, x: m.fc(F.avg_pool2d(F.relu(m.skip(x) + m.b(F.relu(m.n(m.a(x))))), 2).flatten(1)),
        a=nn.Conv2d(1, 3, 3, 2, 1),
        n=random_norm(3),
        b=nn.Conv2d(3, 3, 3, padding=1),
        skip=nn.Conv2d(1, 3, 1, 2),
        fc=nn.Linear(12, 4),
    )


def dense() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        for name in ("a", "b"):
            x = torch.cat([x, getattr(m, name)(F.dropout(x.relu(), training=m.training))], 1)
        return x.mean(dim=(2, 3))

    return Net(
        forward, a=nn.Conv2d(1, 2, 3, padding=1), b=nn.Conv2d(3, 2, 3, padding=2, dilation=2)
    )


def mobile() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 1), random_norm(4), nn.ReLU6()),
        *(nn.Conv2d(4, 4, 3, 2, 1, groups=4), random_norm(4), nn.Hardswish()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Softmax(1)),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "u-net": UNet,
    "residual": residual,
    "dense": dense,
    "mobile": mobile,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_no_jacobian_and_no_pair_exceeds_the_bound_of_a_network(name: str):
    torch.manual_seed(3)
    model = NETWORKS[name]().eval()
    x = torch.randn(4, 1, 8, 8)
    found = lipschitz_bound(model, x)
    again = model.double()
    for one in x.double():
        assert jacobian_norm(again, one[None]) <= found.bound
    certificate = verify_bound(model, found, x)
    assert certificate.holds, certificate.failures
    assert 0 < certificate.lower <= found.bound
    assert certificate.tightness == certificate.lower / found.bound
    norms = [jacobian_norm(again, one[None]) for one in x.double()]
    assert certificate.lower == pytest.approx(max(norms), rel=0.05)
    assert all(0.99 < one.ratio <= 1 for one in certificate.layers)
    assert {one.name.split(" + ")[0] for one in certificate.layers} == {
        name
        for name, part in model.named_modules()
        if isinstance(part, nn.Conv2d | nn.Linear | nn.ConvTranspose2d)
    }


def plus(part: nn.Module) -> nn.Module:
    return Net(lambda net, x: x + net.part(x), part=part)


def drawn_conv(data: st.DataObject) -> nn.Module:
    mode = data.draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    stride, groups = (data.draw(st.integers(1, 2)) for _ in range(2))
    return nn.Conv2d(2, 2, 3, stride, padding=1, groups=groups, padding_mode=mode)


BLOCKS: list[Callable[[st.DataObject], nn.Module]] = [
    *(drawn_conv, drawn_conv, lambda _: nn.ConvTranspose2d(2, 2, 3, 2, padding=1)),
    *(lambda _: random_norm(2), lambda _: nn.Dropout(), lambda _: nn.PReLU(2, init=-1.5)),
    *(lambda _: nn.ReLU(inplace=True), lambda _: nn.ELU(2.0), lambda _: nn.SiLU(inplace=True)),
    *(lambda _: nn.MaxPool2d(2, 1, padding=1), lambda _: nn.AvgPool2d(3, 1, padding=1)),
    *(lambda _: nn.ReflectionPad2d((1, 0, 2, 1)), lambda _: nn.Upsample(scale_factor=2)),
    *(lambda _: plus(nn.Conv2d(2, 2, 1)), lambda _: plus(nn.Sequential(nn.Tanh(), random_norm(2)))),
]
"""What keeps two channels, of images of 3 × 3 and more."""


@given(st.data(), st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=5), seeds)
def test_no_measurement_exceeds_the_bound_of_a_drawn_network(
    data: st.DataObject, blocks: list[Callable[[st.DataObject], nn.Module]], seed: int
):
    torch.manual_seed(seed)
    model = nn.Sequential(*(block(data) for block in blocks), nn.Flatten()).double().eval()
    x = torch.randn(2, 2, 6, 5, dtype=torch.float64)
    before = x.clone()
    found = lipschitz_bound(model, x)
    certificate = verify_bound(model, found, x, steps=3)
    assert certificate.holds, certificate.failures
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_left_as_it_was_and_its_fc_form_has_the_same_bound(name: str):
    torch.manual_seed(3)
    model = NETWORKS[name]().train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    x = torch.randn(2, 1, 8, 8)
    found = lipschitz_bound(model, x)
    verify_bound(model, found, x, steps=2)
    assert model.training
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    fc = lipschitz_bound(convfc.to_fc(model), x)
    assert fc.parts == found.parts


def unit_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every CONV and FC layer the norm 1, so that what is left is the graph, exactly."""
    one = NormBounds(1.0, 1.0, "given")
    monkeypatch.setattr(rules, "norm_bounds", lambda *_: one)
    monkeypatch.setattr(rules, "matrix_bounds", lambda *_: one)
    monkeypatch.setattr(rules, "_SCALE_ROUNDINGS", 0)
    monkeypatch.setattr(rules, "gamma", lambda *_: 0.0)


REAL: dict[str, tuple[int, Fraction]] = {
    # Squares of the bounds: a max-pooling 3×3 with stride 2 is 2, a residual 2, a concatenation of
    # two branches √2, an average of n elements 1/√n.
    "resnet18": (64, Fraction((2 * 2**8) ** 2, 4)),
    "vgg11_bn": (224, Fraction(1)),
    "alexnet": (224, Fraction((2**3) ** 2)),
    "squeezenet1_0": (64, Fraction((2**3) ** 2 * 2**8, 9)),
    "mobilenet_v2": (64, Fraction((2**10) ** 2, 4)),
}


@pytest.mark.parametrize("name", REAL)
def test_the_graphs_of_real_networks_are_followed(name: str, monkeypatch: pytest.MonkeyPatch):
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    unit_norms(monkeypatch)
    size, square = REAL[name]
    model = getattr(models, name)()
    found = lipschitz_bound(model, torch.zeros(1, 3, size, size))
    assert found.bound == pytest.approx(math.sqrt(square), rel=1e-9)
    merged = sum("BatchNorm" in part.kind for part in found.parts)
    assert merged == sum(isinstance(part, nn.BatchNorm2d) for part in model.modules())
    assert all(" + " in part.name for part in found.parts if "BatchNorm" in part.kind)


@pytest.mark.parametrize("name", ["densenet121", "googlenet", "shufflenet_v2_x1_0"])
def test_networks_of_concatenations_and_branches_are_followed(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    unit_norms(monkeypatch)
    settings = {"init_weights": False, "transform_input": True} if name == "googlenet" else {}
    model = getattr(models, name)(**settings)
    found = lipschitz_bound(model, torch.zeros(1, 3, 64, 64))
    assert math.isfinite(found.bound)
    called = [part for part in found.parts if "Conv2d" in part.kind]
    convs = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and "aux" not in n]
    assert len(called) == len(convs)


def test_a_known_network_has_its_bound_to_the_last_bit():
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.sum(x)  # 2
        y = y + m.same(y)  # 2 + 2 * 1
        return m.triple(torch.cat([y, 3 * y], 1)).relu()  # √(4² + 12²) * ...

    triple = nn.Conv2d(4, 4, 1, bias=False)
    with torch.no_grad():
        triple.weight.copy_(3 * torch.eye(4).view(4, 4, 1, 1))
    same = nn.Conv2d(2, 2, 1)
    with torch.no_grad():
        same.weight.copy_(torch.eye(2).view(2, 2, 1, 1))
    model = Net(forward, sum=ones_conv(2, 2, stride=2), same=same, triple=triple)
    found = lipschitz_bound(model, torch.zeros(1, 2, 4, 4))
    assert found.parts[2].so_far == 4
    assert (
        Fraction(found.bound) ** 2
        >= (4**2 + 12**2) * 9
        > Fraction(found.bound * (1 - 2 * EPS)) ** 2
    )
    # Nothing is rounded, and the graph is a chain of multiples of isometries: it is attained.
    certificate = verify_bound(model, found, torch.rand(2, 2, 4, 4) + 1)
    assert certificate.holds
    assert certificate.tightness == pytest.approx(1, abs=1e-9)


def test_a_batchnorm_is_merged_only_with_a_layer_whose_output_it_alone_sees():
    conv, norm = ones_conv(1, 1), nn.BatchNorm2d(1, eps=0.0)
    norm.running_var.fill_(0.25)
    alone = lipschitz_bound(nn.Sequential(conv, norm), torch.zeros(1, 1, 3, 3))
    assert [part.name for part in alone.parts] == ["0 + 1"]
    assert alone.parts[0].kind == "Conv2d + BatchNorm2d"
    assert alone.bound == pytest.approx(2, rel=20 * EPS)
    both = Net(lambda m, x: m.norm(m.conv(x)) + m.conv(x).neg(), conv=conv, norm=norm)
    assert lipschitz_bound(both, torch.zeros(1, 1, 3, 3)).bound == pytest.approx(3, rel=20 * EPS)

    def shared(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        return m.norm(y) + y

    found = lipschitz_bound(Net(shared, conv=conv, norm=norm), torch.zeros(1, 1, 3, 3))
    assert [part.name for part in found.parts][:2] == ["conv", "norm"]
    assert found.bound == pytest.approx(3, rel=20 * EPS)

    def before(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        z = y.relu()
        return m.norm(y) + z

    nn.init.constant_(conv.weight, 3.0)
    found = lipschitz_bound(Net(before, conv=conv, norm=norm), torch.zeros(1, 1, 3, 3))
    assert found.bound == pytest.approx(9, rel=20 * EPS)


def test_the_merged_layer_is_better_than_the_product():
    conv, norm = nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2, eps=0.0)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([8.0, 1.0]).view(2, 1, 1, 1))
        norm.weight.copy_(torch.tensor([1.0, 8.0]))
    found = lipschitz_bound(nn.Sequential(conv, norm), torch.zeros(1, 1, 3, 3)).bound
    assert found == pytest.approx(math.hypot(8, 8), rel=1e-12)


def test_a_parametrized_layer_has_its_own_class():
    held = spectral_norm(nn.Conv2d(1, 2, 3), (5, 5), steps=500)
    linear = nn.utils.parametrizations.spectral_norm(nn.Linear(18, 2), n_power_iterations=500)
    found = lipschitz_bound(nn.Sequential(held, nn.Flatten(), linear), torch.zeros(1, 1, 5, 5))
    assert [part.kind for part in found.parts] == ["Conv2d", "Flatten", "Linear"]
    assert found.bound == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_networks_in_half_precision_have_a_bound(half: torch.dtype):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 2))
    x = torch.zeros(1, 1, 5, 5)
    found = lipschitz_bound(model.to(half), x.to(half))
    assert found.bound == pytest.approx(lipschitz_bound(model.float(), x).bound, rel=1e-9)


SQUEEZE = Net(
    lambda m, x: x * m.scale(x.mean((2, 3))).sigmoid()[..., None, None], scale=nn.Linear(2, 2)
)
INDEX = torch.ops.aten.log_sigmoid_forward
UNBOUNDED: dict[str, tuple[Any, str]] = {
    "squeeze": (nn.Sequential(SQUEEZE), r"^0: no bound is known for a mul\(\): a product of two"),
    "attention": (lambda x: x.flatten(2) @ x.flatten(2).mT, r"matmul\(\): a product of two values"),
    "group-norm": (nn.Sequential(nn.GroupNorm(1, 2)), r"^0: no bound is known for a GroupNorm"),
    "layer-norm": (nn.LayerNorm(5), r"no bound is known for a LayerNorm"),
    "instance": (nn.InstanceNorm2d(2), r"it does not treat each example"),
    "hard-shrink": (nn.Hardshrink(), r"no bound is known for a Hardshrink"),
    "exp": (torch.exp, r"no bound is known for a exp"),
    "quotient": (lambda x: 1 / x, r"reciprocal|divides by a value"),
    "by-zero": (lambda x: x / 0, r"it divides by 0"),
    "infinite": (lambda x: x * math.inf, r"it multiplies by no finite number"),
    "dropout": (F.dropout, r"it is always on; call it with self.training"),
    "softplus": (nn.Softplus(1.0, 5.0), r"it leaps at its threshold"),
    "bicubic": (nn.Upsample(scale_factor=2, mode="bicubic"), r"no bound is known for a Upsample"),
    "over-the-batch": (lambda x: x - x.mean(dim=0), r"mean\(\): it does not treat each example"),
    "softmax-batch": (lambda x: x.softmax(0), r"it does not treat each example of a batch"),
    "amax-batch": (lambda x: x.amax(0), r"it does not treat each example of a batch"),
    "index": (lambda x: INDEX(x)[1] + x, "it computes with what has no bound"),
    "celu": (nn.CELU(-1.0), "its alpha is negative"),
    "limits": (lambda x: x.clamp(max=x.flip(2)), "its limits are values of the network"),
    "two": (lambda x: (x, x), r"^model: it does not return one tensor"),
    "random": (lambda x: x + torch.randn(1), r"draws random numbers"),
    "branch": (lambda x: x if x.sum() > 0 else -x, r"asks what is in a tensor"),
}


@pytest.mark.parametrize("name", UNBOUNDED)
def test_what_has_no_bound_is_refused_by_name(name: str):
    part, words = UNBOUNDED[name]
    model = part if isinstance(part, nn.Module) else Net(lambda _, x: part(x))
    with pytest.raises(UnsupportedLayer, match=words):
        lipschitz_bound(model, torch.ones(1, 2, 5, 5))


@pytest.mark.parametrize(
    "x", [torch.ones(3), torch.ones(0, 2), [1.0]], ids=["1-d", "empty", "list"]
)
def test_an_input_is_one_batch(x: Any):
    with pytest.raises(
        ShapeError, match=r"^x: the bound is for inputs of one shape; expected one tensor"
    ):
        lipschitz_bound(nn.Identity(), x)


def test_one_input_without_a_batch_axis_is_said_to_be_none():
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU())
    words = r"^x: .* not on two of its rows;.*; got \(3, 8, 8\)\. Remedy: x\[None\]"
    with pytest.raises(ShapeError, match=words):
        lipschitz_bound(model, torch.ones(3, 8, 8))
    with pytest.raises(ShapeError, match=r"^x: the model does not run .*; got \(1, 4, 8, 8\)"):
        lipschitz_bound(model, torch.ones(1, 4, 8, 8))


def test_models_that_are_no_numbers_are_refused():
    with pytest.raises(UnsupportedModel, match="meta device"):
        lipschitz_bound(nn.Conv2d(1, 1, 3, device="meta"), torch.ones(1, 1, 5, 5))
    with pytest.raises(UnsupportedLayer, match="it is lazy"):
        lipschitz_bound(nn.LazyConv2d(1, 3), torch.ones(1, 1, 5, 5))


def test_the_table_leaves_out_what_stretches_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 2))
    found = lipschitz_bound(model, torch.zeros(1, 1, 5, 5))
    lines = str(found).splitlines()
    assert " ".join(lines[0].split()) == "part class at least at most so far how it is known"
    assert [line.split()[:2] for line in lines[1:3]] == [["0", "Conv2d"], ["3", "Linear"]]
    assert lines[-1] == "Not listed, since they stretch nothing: ReLU, Flatten."
    assert f"by at most {found.bound:.4g};" in str(found)
    again = json.loads(json.dumps(found.to_dict()))
    assert again["bound"] == found.bound == float(found)
    assert again["parts"][0]["norm"] == found.parts[0].norm
    assert found.estimate == found.parts[0].norm * found.parts[-1].norm <= found.bound


def test_the_estimate_is_of_the_norms_as_they_are_computed():
    torch.manual_seed(0)
    model = nn.Conv2d(2, 2, 3, padding=1)
    found = lipschitz_bound(nn.Sequential(model, model), torch.zeros(1, 2, 40, 40))
    norm = float(singular_values(model, (40, 40), k=1))
    assert found.estimate == pytest.approx(norm**2, rel=1e-4)
    assert norm**2 < found.bound < 1.05 * norm**2


def test_progress_is_told_before_every_operation_and_every_measurement(
    capsys: pytest.CaptureFixture[str],
):
    told: list[tuple[int, int, str]] = []

    def tell(*what: Any) -> None:
        told.append(what)

    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 2))
    x = torch.randn(1, 1, 5, 5)
    found = lipschitz_bound(model, x, progress=tell)
    assert told == [(number, 4, str(number)) for number in range(4)]
    told.clear()
    assert verify_bound(model, found, x, progress=tell).holds
    assert told == [(0, 5, "the network"), *((n + 1, 5, str(n)) for n in range(4))]
    # A bar takes no name for a style: "[/]" would end one that never began.
    strange = nn.ModuleDict({"[/]": model})
    named = Net(lambda net, x: net.parts["[/]"](x), parts=strange)
    assert lipschitz_bound(named, x, progress=True).bound == found.bound
    assert "Error" not in capsys.readouterr().err


# The certificate ----------------------------------------------------------------------------------


def test_a_bound_that_is_too_small_is_said_no_to():
    torch.manual_seed(0)
    model, x = residual().eval(), torch.randn(3, 1, 8, 8)
    found = lipschitz_bound(model, x)
    lower = verify_bound(model, found, x).lower
    wrong = dataclasses.replace(
        found,
        parts=(*found.parts[:-1], dataclasses.replace(found.parts[-1], so_far=lower * 0.99)),
    )
    certificate = verify_bound(model, wrong, x)
    assert not certificate.holds
    assert certificate.tightness > 1
    assert any("the network: its Jacobian at input" in reason for reason in certificate.failures)
    assert "DOES NOT HOLD" in str(certificate)
    assert "expected a stretch of at most" in certificate.failures[0]


def test_the_norm_of_one_layer_that_is_too_small_is_said_no_to():
    torch.manual_seed(0)
    model, x = residual().eval(), torch.randn(2, 1, 8, 8)
    found = lipschitz_bound(model, x)
    at = next(n for n, part in enumerate(found.parts) if part.name == "b")
    parts = list(found.parts)
    parts[at] = dataclasses.replace(parts[at], bound=parts[at].bound * 0.999)
    (failure,) = verify_bound(model, dataclasses.replace(found, parts=tuple(parts)), x).failures
    assert failure.startswith("b: LAPACK, of its Jacobian; expected a stretch of at most")


BROKEN: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "add": (lambda: Net(lambda _, x: x + x.clone()), "add"),
    "cat": (lambda: Net(lambda _, x: torch.cat([x, x], 1)), "cat"),
    "pad": (lambda: nn.ReplicationPad2d(3), "replication_pad2d"),
    "mul": (lambda: Net(lambda _, x: x * 1.5), "mul"),
    "batch-norm": (lambda: random_norm(2), "native_batch_norm"),
    "slope": (lambda: nn.LeakyReLU(-3.0), "leaky_relu"),
    "upsample": (lambda: nn.Upsample(scale_factor=3), "upsample_nearest2d"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_rule_that_is_broken_is_said_no_to(name: str, monkeypatch: pytest.MonkeyPatch):
    """Each rule in turn says that nothing is stretched."""
    torch.manual_seed(0)
    make, broken = BROKEN[name]
    model, x = make().eval(), torch.randn(2, 2, 5, 5)
    if name == "batch-norm":
        with torch.no_grad():
            model.weight.fill_(3.0)
    if broken in ("replication_pad2d",):
        broken = next(c.name for c in networks.trace_of_two(model, x, "x").calls)
    assert verify_bound(model, lipschitz_bound(model, x), x).holds

    def idle(step: Any, *operands: Any, **named: Any) -> Any:
        leaves = torch.utils._pytree.tree_leaves((operands, named))
        value = next(one for one in leaves if isinstance(one, rules.Value))
        return rules.one_input(value)

    monkeypatch.setitem(rules.BOUNDS, broken, idle)
    certificate = verify_bound(model, lipschitz_bound(model, x), x)
    assert not certificate.holds
    assert any("when the input moves" in reason for reason in certificate.failures)


def test_a_network_may_change_its_input_in_place():
    torch.manual_seed(0)
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(1, 2, 3)).double()
    x = torch.randn(2, 1, 5, 5).double()  # what verify_bound computes in, so that nothing is copied
    before = x.clone()
    assert verify_bound(model, lipschitz_bound(model, x), x).holds
    assert torch.equal(x, before)


def test_a_network_without_a_gradient_is_refused():
    def forward(_: nn.Module, x: Tensor) -> Tensor:
        y = x.sigmoid()
        z = y + 1
        return y.relu_() + z  # the slope of a sigmoid is computed from its output

    model, x = Net(forward), torch.randn(2, 3)
    found = lipschitz_bound(model, x)
    with pytest.raises(UnsupportedModel, match=r"^model: PyTorch cannot .* inplace=True$"):
        verify_bound(model, found, x)


def test_where_no_unit_is_on_a_right_bound_holds():
    model, x = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten()), torch.randn(2, 1, 5, 5)
    nn.init.constant_(model[0].bias, -1e3)
    certificate = verify_bound(model, lipschitz_bound(model, x), x)
    assert certificate.holds, certificate.failures
    assert certificate.lower == 0


def test_power_iteration_measures_large_layers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("convfc.methods.spectrum.verified._DENSE", 0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), random_norm(3), nn.ReLU())
    x = torch.randn(1, 2, 12, 12)
    found = lipschitz_bound(model, x)
    certificate = verify_bound(model, found, x, steps=60)
    (layer,) = certificate.layers
    assert layer.what == "power iteration, 60 steps"
    assert 0.98 < layer.ratio <= 1
    assert certificate.holds


def test_an_adjoint_that_is_none_is_an_error():
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> Tensor:
            return dy.cumsum(-1).flip(1) * dy.sign()

    x = torch.randn(2, 3, 4, dtype=torch.float64)
    *_, defect = convfc.methods.spectrum.verified._jacobians(Wrong.apply, x, 3, 0)
    assert defect > 0.01
    *_, defect = convfc.methods.spectrum.verified._jacobians(lambda t: 3 * t.flip(1), x, 3, 0)
    assert defect <= 8 * EPS


def test_a_certificate_is_data_and_says_what_is_between():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 4)), torch.randn(2, 1, 2, 2)
    certificate = verify_bound(model, lipschitz_bound(model, x), x)
    record = json.loads(json.dumps(certificate.to_dict()))
    assert record["holds"] is True
    assert record["tightness"] == certificate.tightness == pytest.approx(1, abs=1e-3)
    assert record["network"][0]["ratio"] == certificate.network[0].ratio
    lines = str(certificate).splitlines()
    assert lines[-1].startswith("Certificate: holds. The true constant is at least")
    assert "2 of 2 tensors" in str(certificate)
    nothing = dataclasses.replace(certificate, network=())
    assert nothing.failures == ("expected the network to be measured, got nothing",)


def test_a_bound_of_another_network_or_shape_is_refused():
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 4)), torch.randn(2, 1, 2, 2)
    found = lipschitz_bound(model, x)
    other = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(4, 4))
    with pytest.raises(
        UnsupportedModel, match=r"^1: the bound is of another network; expected Linear"
    ):
        verify_bound(other, found, x)
    with pytest.raises(ShapeError, match=r"^x: the bound is for inputs of another shape"):
        verify_bound(model, found, torch.randn(2, 4))


def test_a_network_that_ignores_its_input_is_bounded_by_0():
    model = nn.Linear(3, 2)
    nn.init.zeros_(model.weight)
    x = torch.randn(2, 3)
    found = lipschitz_bound(model, x)
    assert found.bound == 0
    assert verify_bound(model, found, x).holds
    assert np.isinf(found.radius(model(x) + torch.tensor([0.0, 9.0]))).all()


# Radii --------------------------------------------------------------------------------------------


def test_the_radius_is_attained_where_the_bound_is():
    found = lipschitz_bound(nn.Identity(), torch.zeros(1, 3))
    logits = np.array([[1.0, 3.0, -2.0], [5.0, 4.0, 4.5]])
    radius = found.radius(logits)
    assert radius == pytest.approx([2 / math.sqrt(2), 0.5 / math.sqrt(2)], rel=4 * EPS)
    for row, reach in zip(logits, radius, strict=True):
        second, first = np.argsort(row)[-2:]
        way = np.zeros(3)
        way[first], way[second] = -1 / math.sqrt(2), 1 / math.sqrt(2)
        assert np.argmax(row + 0.999 * reach * way) == first
        assert np.argmax(row + 1.001 * reach * way) == second


def test_labels_make_wrong_answers_count_as_nothing():
    found = lipschitz_bound(nn.Identity(), torch.zeros(1, 2))
    logits = torch.tensor([[0.0, 2.0], [3.0, 1.0], [1.0, 1.0]])
    assert found.radius(logits, torch.tensor([1, 1, 0])).tolist() == [2 / (math.sqrt(2) * 1), 0, 0]
    assert logits.tolist() == [[0.0, 2.0], [3.0, 1.0], [1.0, 1.0]]


def test_no_attack_within_the_radius_changes_the_class():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double()
    x = torch.randn(20, 1, 6, 6, dtype=torch.float64)
    found = lipschitz_bound(model, x)
    logits = model(x).detach()
    radius = torch.from_numpy(found.radius(logits))
    moved = x.clone()
    for _ in range(30):
        moved.requires_grad_()
        top = model(moved).topk(2, dim=1).values
        (way,) = torch.autograd.grad((top[:, 0] - top[:, 1]).sum(), moved)
        away = moved.detach() - 0.1 * way - x
        share = (radius / away.flatten(1).norm(dim=1)).clamp(max=1.0)
        moved = x + away * share.view(-1, 1, 1, 1)
    assert torch.equal(model(moved).argmax(1), logits.argmax(1))
    assert (radius > 0).all()


@pytest.mark.parametrize(
    ("logits", "labels", "words"),
    [
        ([[1.0]], None, r"^logits: a radius takes the logits of two classes or more"),
        ([1.0, 2.0], None, r"^logits: a radius takes the logits"),
        ([[1.0, 2.0]], [0, 1], r"^labels: each input has one label.*expected 1 integers"),
        ([[1.0, 2.0]], [0.5], r"^labels: each input has one label"),
    ],
)
def test_logits_and_labels_that_do_not_fit_are_refused(logits: Any, labels: Any, words: str):
    with pytest.raises(ShapeError, match=words):
        lipschitz_bound(nn.Identity(), torch.zeros(1, 2)).radius(logits, labels)
