"""Layers with a forward of their own, or a computed weight, and parts that use a layer's weight."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import net, through_a_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import convfc
from convfc.errors import ArgumentError, UnsupportedLayer
from convfc.frameworks.torch import PatchConv
from convfc.frameworks.torch.forms.grouped import GroupedLinear
from convfc.registry import REGISTERED


class Standardised(nn.Conv2d):
    """As in Big Transfer: the weight has mean 0 and variance 1 per filter."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6)
        weight = weight.reshape_as(self.weight)
        rest = (self.stride, self.padding, self.dilation, self.groups)
        return F.conv2d(x, weight, self.bias, *rest)


class SameSize(nn.Conv2d):
    """Pads by the size of the input, as EfficientNet does."""

    def forward(self, x: Tensor) -> Tensor:
        pads = [max((-(-n // 2) - 1) * 2 + 3 - n, 0) for n in x.shape[:1:-1]]
        return super().forward(F.pad(x, [p for n in pads for p in (n // 2, n - n // 2)]))


class Cast(nn.Conv1d):
    """Casts its weight to the input, as Whisper does."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        bias = None if bias is None else bias.to(x.dtype)
        return super()._conv_forward(x, weight.to(x.dtype), bias)


class MaxNorm(nn.Conv2d):
    """Writes into its weight before every call, as EEGNet does."""

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data = torch.renorm(self.weight.data, p=2, dim=0, maxnorm=0.3)
        return super().forward(x)


class Causal(nn.Conv1d):
    """Keeps the end of its input for the next call, as streaming models do."""

    def forward(self, x: Tensor, cache: dict[str, Tensor]) -> Tensor:
        before = cache.get("x", x.new_zeros(*x.shape[:2], 2))
        whole = torch.cat([before, x], dim=-1)
        cache["x"] = whole[..., -2:]
        return super().forward(whole)


class Chunks(nn.Conv2d):
    """Two convolutions in one call."""

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=0)
        return torch.cat([super(Chunks, self).forward(part) for part in (left, right)])


class Equalised(nn.Module):
    """None of PyTorch's CONV classes: scales its weight at every call, as StyleGAN does."""

    def __init__(self, channels: int, filters: int, groups: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(filters, channels // groups, 3, 3))
        self.bias = nn.Parameter(torch.randn(filters))
        self.parts = groups

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * 0.3, self.bias, stride=2, groups=self.parts)


class Upwards(nn.Module):
    """A transposed one without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose1d(x, self.weight, stride=2, groups=2)


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """Register the two for the tests of this file."""
    convfc.register_layer(Equalised, lambda layer: {"groups": layer.parts})
    convfc.register_layer(Upwards, lambda layer: {"groups": 2, "transposed": True})
    yield
    for cls in (Equalised, Upwards):
        REGISTERED.pop(cls)


def by_parent(*args: Any, **kwargs: Any) -> nn.Module:
    """As Mamba: the parent convolves with its child's weight."""
    return net(
        lambda m, x: F.conv1d(x, m.conv.weight, m.conv.bias, padding=2, groups=m.conv.groups),
        conv=nn.Conv1d(*args, **kwargs),
    )


def by_method(*args: Any, **kwargs: Any) -> nn.Module:
    """The parent calls a method of its child."""
    return net(
        lambda m, x: m.conv._conv_forward(x, m.conv.weight, m.conv.bias),
        conv=nn.Conv2d(*args, **kwargs),
    )


def old_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, that it is deprecated
        return nn.utils.weight_norm(layer)


def pruned(layer: nn.Module) -> nn.Module:
    return prune.l1_unstructured(layer, "weight", amount=0.5)


IMAGE, GROUPED, SIGNAL = (2, 3, 9, 8), (2, 4, 9, 8), (2, 4, 9)
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "standardised": (lambda: Standardised(3, 6, 3, padding=1), IMAGE),
    "standardised-groups": (lambda: Standardised(4, 6, 3, groups=2, bias=False), GROUPED),
    "same-size": (lambda: SameSize(3, 6, 3, stride=2), IMAGE),
    "cast": (lambda: Cast(4, 6, 3), SIGNAL),
    "max-norm": (lambda: MaxNorm(3, 6, 3), IMAGE),
    "max-norm-groups": (lambda: MaxNorm(4, 6, 3, groups=2), GROUPED),
    "chunks": (lambda: Chunks(3, 6, 3), IMAGE),
    "by-parent": (lambda: by_parent(4, 4, 3, groups=4), SIGNAL),
    "by-parent-batched": (lambda: by_parent(40, 40, 3, groups=40), (2, 40, 9)),
    "by-method": (lambda: by_method(3, 6, 3), IMAGE),
    "registered": (lambda: Equalised(3, 6), IMAGE),
    "registered-groups": (lambda: Equalised(4, 6, groups=2), GROUPED),
    "registered-transposed": (Upwards, SIGNAL),
    "weight-norm": (lambda: parametrizations.weight_norm(nn.Conv2d(3, 6, 3)), IMAGE),
    "weight-norm-transposed": (
        lambda: parametrizations.weight_norm(nn.ConvTranspose1d(4, 6, 3, groups=2)),
        SIGNAL,
    ),
    "weight-norm-old": (lambda: old_norm(nn.Conv2d(3, 6, 3)), IMAGE),
    "weight-norm-old-groups": (lambda: old_norm(nn.ConvTranspose1d(4, 6, 3, groups=2)), SIGNAL),
    "spectral-norm": (lambda: parametrizations.spectral_norm(nn.Conv2d(3, 6, 3)), IMAGE),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Conv2d(3, 6, 3)), IMAGE),
    "pruned": (lambda: pruned(nn.Conv2d(3, 6, 3)), IMAGE),
    "weight-norm-standardised": (
        lambda: parametrizations.weight_norm(Standardised(3, 6, 3, padding=1)),
        IMAGE,
    ),
}


@pytest.fixture(params=MODELS)
def made(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    """A model with such a layer, and an input."""
    make, shape = MODELS[request.param]
    return nn.Sequential(make(), nn.Identity()), torch.randn(shape)


def linears(model: nn.Module) -> list[nn.Module]:
    return [part for part in model.modules() if type(part) in (nn.Linear, GroupedLinear)]


def trained(model: nn.Module, x: Tensor) -> list[float]:
    """The losses of a few steps of training."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(3):
        loss = (model(x) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_untouched_it_is_the_native_layer_bit_for_bit(made: tuple[nn.Module, Tensor]) -> None:
    model, x = made
    fc = convfc.to_fc(model)
    assert not [part for part in fc.modules() if isinstance(part, nn.modules.conv._ConvNd)]
    assert list(fc.state_dict()) == list(model.state_dict())
    assert trained(fc, x) == trained(model, x)
    for name, value in model.state_dict().items():
        assert torch.equal(fc.state_dict()[name], value), name


def test_the_fc_layer_is_called_on_m_as_soon_as_it_is_touched(
    made: tuple[nn.Module, Tensor],
) -> None:
    model, x = made
    fc = convfc.to_fc(model.eval())
    expected, seen = model(x), []
    for linear in linears(fc):
        linear.register_forward_hook(lambda m, args, y: seen.append(args[0].dim()) or 2 * y)
    assert torch.allclose(fc(x), 2 * expected, atol=1e-5)
    assert seen
    assert set(seen) == {3}


def test_the_certificate_holds_and_says_no(made: tuple[nn.Module, Tensor]) -> None:
    model, x = made
    fc = convfc.to_fc(model)
    certificate = convfc.verify(model, fc, x)
    assert certificate.holds, certificate.failures
    assert {layer.exact.identical for layer in certificate.layers} == {True}
    wrong = copy.deepcopy(fc)
    for linear in linears(wrong):
        linear.forward = lambda rows, own=linear: type(own).forward(own, rows.roll(1, -1))
    assert not convfc.verify(model, wrong, x).holds
    with torch.no_grad():
        next(p for p in fc.parameters() if p.dim() > 1)[0, 0] += 1
    assert not convfc.verify(model, fc, x).holds


def test_back_it_is_the_layer_that_it_was(made: tuple[nn.Module, Tensor]) -> None:
    model, x = made
    fc = convfc.to_fc(model)
    back = convfc.to_conv(fc)
    layer, same = (list(m.modules())[1] for m in (model, back))
    assert convfc.frameworks.torch.read.own_class(same) is convfc.frameworks.torch.read.own_class(
        layer
    )
    assert list(back.state_dict()) == list(model.state_dict())
    back.load_state_dict(fc.state_dict())
    model.load_state_dict(fc.state_dict())
    assert trained(back, x) == trained(model, x)


def test_an_optimizers_state_goes_with_the_model(made: tuple[nn.Module, Tensor]) -> None:
    model, x = made
    first = torch.optim.Adam(model.parameters(), lr=0.05)
    model(x).square().mean().backward()
    first.step()
    fc = convfc.to_fc(model)
    second = torch.optim.Adam(fc.parameters(), lr=0.05)
    second.load_state_dict(convfc.convert_optimizer_state(first, model, fc))
    for one, optimizer in ((model, first), (fc, second)):
        optimizer.zero_grad()
        one(x).square().mean().backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(fc.state_dict()[name], value), name


def test_a_copy_trains_by_itself(made: tuple[nn.Module, Tensor]) -> None:
    model, x = made
    fc = convfc.to_fc(model)
    before = {name: value.clone() for name, value in fc.state_dict().items()}
    assert trained(convfc.to_fc(model), x) == trained(copy.deepcopy(convfc.to_fc(model)), x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_forward_with_a_cache_over_two_calls() -> None:
    model, x = Causal(4, 6, 3), torch.randn(2, 4, 8)
    fc, ours, theirs = convfc.to_fc(model, product="matrix"), {}, {}
    for part in x.chunk(2, dim=-1):
        assert torch.allclose(fc(part, ours), model(part, cache=theirs), atol=1e-6)
    assert torch.equal(ours["x"], theirs["x"])


class Wrapper(nn.Module):
    """What a tool puts in the place of the FC layer."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.more = nn.Linear(base_layer.in_features, 6, bias=False)

    def forward(self, rows: Tensor) -> Tensor:
        return self.base_layer(rows) + self.more(rows)


def test_what_a_tool_adds_counts_in_whatever_forward() -> None:
    model, x = Standardised(3, 6, 3), torch.randn(IMAGE)
    fc = convfc.to_fc(model)
    fc.fc = Wrapper(fc.fc)
    added = convfc.to_fc(nn.Conv2d(3, 6, 3, bias=False))
    with torch.no_grad():
        added.fc.weight.copy_(fc.fc.more.weight)
    y = fc(x)
    assert torch.allclose(y, model(x) + added(x), atol=1e-5)
    y.sum().backward()
    assert all(p.grad is not None for p in fc.parameters())
    assert type(convfc.to_fc(nn.Sequential(nn.Conv1d(4, 6, 3)))[0].weight) is not Tensor


def test_a_wrapped_weight_convolves_and_does_nothing_else() -> None:
    model = by_parent(4, 6, 3)
    fc, x = convfc.to_fc(model), torch.randn(SIGNAL)
    fc.conv.fc = Wrapper(fc.conv.fc)
    with torch.no_grad():
        fc.conv.fc.more.weight.zero_()
    assert torch.allclose(fc(x), model(x), atol=1e-6)
    assert fc.conv.weight.shape == (6, 4, 3)
    with pytest.raises(ArgumentError, match=r"^weight: .* it only convolves; .* merge what"):
        fc.conv.weight * 2


@pytest.mark.parametrize("groups", [1, 2, 40])
def test_the_bias_is_the_one_that_the_convolution_is_given(groups: int) -> None:
    conv = nn.Conv1d(2 * groups, 2 * groups, 3, groups=groups)
    fc, x, other = convfc.to_fc(conv), torch.randn(2, 2 * groups, 9), torch.randn(2 * groups)
    for part in linears(fc):
        part.register_forward_hook(lambda m, args, y: None)
    for given, expected in ((fc.bias, conv.bias), (None, None), (other, other), (fc.bias * 2,) * 2):
        y = F.conv1d(x, fc.weight, given, groups=groups)
        assert torch.allclose(y, F.conv1d(x, conv.weight, expected, groups=groups), atol=1e-5)


class NoFCLayer(nn.Module):
    """A tool's own FC layer, which holds its weight in its own way."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.transposed = nn.Parameter(linear.weight.detach().t().clone())
        self.offset = nn.Parameter(linear.bias.detach().clone())

    def forward(self, rows: Tensor) -> Tensor:
        return rows @ self.transposed + self.offset


@pytest.mark.parametrize(
    ("name", "works"), [("by-parent", True), ("cast", True), ("max-norm", False)]
)
def test_an_fc_layer_of_a_tools_own_convolves(name: str, works: bool) -> None:
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model, x = nn.Sequential(make()), torch.randn(shape)
    fc = convfc.to_fc(model)
    (layer,) = (part for part in fc.modules() if isinstance(part, PatchConv))
    if isinstance(layer.fc, nn.ModuleList):
        layer.fc = nn.ModuleList(map(NoFCLayer, layer.fc))
    else:
        layer.fc = NoFCLayer(layer.fc)
    if not works:  # its forward computes with the weight
        with pytest.raises(ArgumentError, match="it only convolves"):
            fc(x)
        return
    y = fc(x)
    assert torch.allclose(y, model(x), atol=1e-6)
    y.sum().backward()
    assert all(p.grad is not None for p in fc.parameters())


def test_a_weight_used_for_another_convolution_is_plain() -> None:
    fc = convfc.to_fc(nn.Conv2d(4, 6, 3, groups=2))
    x = torch.randn(1, 2, 5, 5)
    native = convfc.to_conv(fc)
    assert torch.equal(F.conv2d(x, fc.weight, fc.bias), F.conv2d(x, native.weight, native.bias))
    fc.fc[0] = Wrapper(fc.fc[0])
    with pytest.raises(UnsupportedLayer, match="no plain weight"):
        F.conv2d(x, fc.weight)


class Slice(nn.Conv2d):
    """Convolves with a part of its filters, as slimmable networks do."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight[:2], self.bias[:2])


class ByLinear(nn.Conv2d):
    """Computes itself as an FC layer."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x.movedim(1, -1), self.weight.flatten(1), self.bias)
        return y.movedim(-1, 1)


@pytest.mark.parametrize("make", [lambda: Slice(3, 6, 3), lambda: ByLinear(3, 6, 1)])
def test_a_tool_on_a_layer_that_does_not_convolve_with_its_weight_is_refused(
    make: Callable[[], nn.Module],
) -> None:
    model, x = make(), torch.randn(IMAGE)
    fc = convfc.to_fc(model)
    assert torch.allclose(fc(x), model(x), atol=1e-6)
    handle = fc.fc.register_forward_hook(lambda m, args, y: 2 * y)
    with pytest.raises(UnsupportedLayer, match=r"no plain weight|has not convolved"):
        fc(x)
    handle.remove()
    fc.fc = Wrapper(fc.fc)
    with pytest.raises(UnsupportedLayer, match=r"no plain weight|has not convolved"):
        fc(x)


@pytest.mark.parametrize("how", ["pruned", "parametrized"])
def test_a_child_that_computes_its_own_weight_is_called_or_refused(how: str) -> None:
    plain, own, x = nn.Conv2d(3, 6, 3), Standardised(3, 6, 3), torch.randn(IMAGE)
    for layer in (plain, own):
        fc = convfc.to_fc(layer)
        if how == "pruned":
            prune.l1_unstructured(fc.fc, "weight", amount=0.5)
        else:
            parametrizations.weight_norm(fc.fc)
        assert not [key for key in fc.state_dict() if not key.startswith("fc.")]
        if layer is plain:
            assert fc(x).shape == layer(x).shape
            assert torch.equal(fc(x), layer(x)) is False
        else:
            with pytest.raises(ArgumentError, match="it only convolves"):
                fc(x)


@pytest.mark.parametrize("whole", [True, False])
def test_an_adapter_on_a_layer_that_computes_another_weight_does_not_go_home(whole: bool) -> None:
    peft = pytest.importorskip("peft")
    fc = convfc.to_fc(nn.Sequential(Standardised(3, 6, 3), Cast(6, 4, 3)))
    config = peft.LoraConfig(r=2, target_modules=["0.fc"], init_lora_weights=False)
    tuned = peft.get_peft_model(fc, config)
    tuned.base_model.model[0](torch.randn(IMAGE))
    with pytest.raises(UnsupportedLayer, match=r"0: its forward computes another weight"):
        convfc.to_conv(tuned if whole else tuned.base_model.model)
    back = convfc.to_conv(tuned.unload())
    assert type(back[0]) is Standardised


def test_a_registered_class_is_converted_by_its_convolution_alone() -> None:
    model, x = nn.Sequential(Equalised(4, 6, groups=2)), torch.randn(GROUPED)
    (row,) = convfc.inspect(model, x)
    assert (row.kind, row.form, row.convertible, row.parameters) == (
        "Equalised",
        "native",
        True,
        114,
    )
    assert repr(convfc.to_fc(model)[0]).startswith("PatchConv(\n  Equalised: 6, 2, 3, 3\n")
    assert set(vars(convfc.to_conv(convfc.to_fc(model))[0])) == set(vars(model[0]))
    for refused in (lambda: convfc.to_fc(model, form="weight"), lambda: convfc.unroll(model, x)):
        with pytest.raises(UnsupportedLayer, match=r"^0: Equalised: it is registered, and no more"):
            refused()
    model[0].weight = None
    with pytest.raises(UnsupportedLayer, match=r"^0: .* with a CONV weight as its parameter"):
        convfc.to_fc(model)
    with pytest.raises(ArgumentError, match=r"^cls: .* got Equalised"):
        convfc.register_layer(Equalised(2, 2), lambda layer: {})


def test_in_inference_mode_and_saved_whole() -> None:
    model, x = (
        nn.Sequential(Standardised(3, 6, 3), old_norm(nn.Conv2d(6, 4, 3))),
        torch.randn(IMAGE),
    )
    fc = convfc.to_fc(model)
    with torch.inference_mode():
        assert torch.equal(fc(x), model(x))
        hook = fc[0].fc.register_forward_hook(lambda m, args, y: None)
        assert torch.allclose(fc(x), model(x), atol=1e-5)
        hook.remove()
    again = through_a_file(fc)
    assert torch.equal(again(x), model(x))
    assert type(again(x)) is Tensor


def test_a_weight_with_two_names_is_refused() -> None:
    layer = Standardised(3, 6, 3)
    layer.again = layer.weight
    with pytest.raises(UnsupportedLayer, match="its weight is also its parameter again"):
        convfc.to_fc(layer)


def test_compiled_and_exported_it_computes_the_same() -> None:
    model, x = nn.Sequential(Standardised(3, 6, 3), nn.ReLU()), torch.randn(IMAGE)
    fc = convfc.to_fc(model)
    assert torch.equal(torch.compile(fc, backend="eager")(x), model(x))
    exported = torch.export.export(fc, (x,), strict=False).module()
    assert torch.allclose(exported(x), model(x), atol=1e-6)
    fc[0].fc.register_forward_hook(lambda m, args, y: 2 * y)
    with pytest.raises(UnsupportedLayer, match=r"no plain weight|has not convolved"):
        torch.export.export(fc, (x,), strict=False)


def test_another_weight_cannot_be_set_in_a_forward() -> None:
    class Sets(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            self.weight = nn.Parameter(self.weight * 2)
            return super().forward(x)

    with pytest.raises(UnsupportedLayer, match=r"^weight: a layer in patch form"):
        convfc.to_fc(Sets(3, 4, 3))(torch.zeros(1, 3, 5, 5))


def test_a_computed_weight_goes_home_with_the_hook_that_computes_it() -> None:
    fc = convfc.to_fc(nn.Sequential(pruned(nn.Conv2d(3, 6, 3))))
    assert isinstance(fc[0], PatchConv)
    back = convfc.to_conv(fc)[0]
    prune.remove(back, "weight")
    assert (back.weight == 0).sum() == 81
    x = torch.randn(IMAGE)
    wrapped, written = copy.deepcopy(fc), copy.deepcopy(fc)
    wrapped[0].fc = Wrapper(fc[0].fc)
    written[0].fc.weight.data += 1  # as PEFT merges, which the next call would not see
    for model in (wrapped, written):
        with pytest.raises(UnsupportedLayer, match=r"^0: its weight is computed before every call"):
            convfc.to_conv(model)
    assert wrapped(x).shape == fc(x).shape
    with pytest.raises(UnsupportedLayer, match="a tool has written into the weight"):
        written(x)
