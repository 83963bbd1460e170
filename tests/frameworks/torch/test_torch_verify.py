"""verify on PyTorch says yes to every form of every layer, and leaves the networks as they are."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from networks import Block, net
from proofs import assert_proven, only
from torch import Tensor, nn
from torch_fixtures import in_form

import convfc
from convfc import verify
from convfc.errors import DtypeError, ShapeError, UnsupportedLayer, UnsupportedModel
from convfc.frameworks.torch.certify import networks, pairs
from convfc.frameworks.torch.room import ROOM
from convfc.frameworks.torch.running import deep_copy
from convfc.methods.spectrum import singular_values
from convfc.networks import find_pairs


@pytest.mark.parametrize(
    ("form", "training"), [("patch", True), ("weight", False), ("unrolled", False)]
)
def test_a_network_with_everything(form: str, training: bool):
    model, x = Block().train(training), torch.randn(2, 3, 6, 6)
    after = in_form(model, form, x)
    certificate = verify(model, after, x)
    assert_proven(certificate)
    first = certificate.layers[0]
    assert (first.patch_matrix, first.filter_matrix) == ((2, 36, 27), (27, 4))
    assert {(*layer.forms, layer.dtype) for layer in certificate.layers} == {
        ("native", form, "float32")
    }
    assert form in str(certificate)
    calls = [(layer.name, layer.call) for layer in certificate.layers]
    assert calls == [("stem", 0), ("stem", 1), ("twice", 0), ("twice", 1), ("head", 0)]
    paths = [output.path for output in certificate.network.outputs]
    assert paths == ["['out']", "['features'][0]", "['features'][1][0]"]
    back = verify(after, convfc.to_conv(after), x)
    assert_proven(back)
    assert {layer.forms for layer in back.layers} == {(form, "native")}
    assert find_pairs(ROOM, model, after).places == {"stem", "twice", "head", "same.place"}


@pytest.mark.parametrize("which", ["input", "weight"])
def test_channels_last_and_unbatched_and_empty(which: str):
    layer, x = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 6, 7)
    if which == "input":
        x = x.to(memory_format=torch.channels_last)
    else:
        layer = layer.to(memory_format=torch.channels_last)
    for form in ("patch", "weight"):
        fc = convfc.to_fc(layer, form=form)
        for given in (x, x[0], x[:0]):
            certificate = verify(layer, fc, given)
            assert certificate.holds, str(certificate)
            assert certificate.notes == ()


UP = nn.ConvTranspose2d(3, 2, 3, stride=2)


def test_arguments_of_a_call():
    model = Block().eval()
    fc = convfc.to_fc(model)
    x = torch.randn(1, 3, 6, 6)
    with torch.inference_mode():
        assert_proven(verify(model, fc, {"x": x, "scale": 2.0}))
    assert_proven(verify(model, fc, (x,)))
    decoder = net(lambda m, x, size: m.up(x, output_size=size), up=UP)
    certificate = verify(decoder, convfc.to_fc(decoder), (x, [14, 14]))
    assert_proven(certificate)
    assert only(certificate).patch_matrix[1] == 14 * 14
    decoder = net(lambda m, x, size: m.up(output_size=size, input=x), up=UP)
    assert_proven(verify(decoder, convfc.to_fc(decoder, form="weight"), (x, [14, 14])))


def test_a_layer_that_the_input_does_not_reach_is_compared_on_random_numbers():
    model = net(
        lambda m, x: m.used(x),
        used=nn.Conv2d(3, 4, 3),
        mirrored=nn.Conv2d(
            4, 6, (5, 3), stride=3, padding=(4, 2), padding_mode="reflect", groups=2
        ),
        up=nn.ConvTranspose1d(4, 6, 3, padding=4),
    )
    fc = convfc.to_fc(model)
    certificate = verify(model, fc, torch.randn(1, 3, 6, 6))
    assert_proven(certificate)
    assert len(certificate.layers) == 3
    assert [layer.name for layer in certificate.layers if layer.notes] == ["mirrored", "up"]
    assert "not called on this input" in certificate.notes[0]
    fc.mirrored.padding_mode = "replicate"
    failures = verify(model, fc, torch.randn(1, 3, 6, 6)).failures
    assert any("mirrored: " in failure for failure in failures)


def test_nothing_of_the_two_networks_or_the_world_is_changed():
    model = Block().train()
    fc = convfc.to_fc(model)
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    model.stem.weight.grad = torch.ones_like(model.stem.weight)
    fc.norm.weight.requires_grad_(requires_grad=False)
    models = (model, fc)
    state = [copy.deepcopy(m.state_dict()) for m in models]
    hooks = [len(m._forward_pre_hooks) for whole in models for m in whole.modules()]
    before = (torch.get_rng_state(), random.getstate(), x.detach().clone())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        certificate = verify(model, fc, x)
        assert torch.is_autocast_enabled("cpu")
    assert {layer.dtype for layer in certificate.layers} == {"float32"}
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert torch.equal(x, before[2])
    for whole, kept in zip(models, state, strict=True):
        assert all(m.training for m in whole.modules())
        assert all(torch.equal(value, kept[key]) for key, value in whole.state_dict().items())
    grads = {name for name, p in model.named_parameters() if p.grad is not None}
    assert grads == {"stem.weight"}
    assert x.grad is None
    assert all(p.grad is None for p in fc.parameters() if p.dim() == 4)
    assert not fc.norm.weight.requires_grad
    assert hooks == [len(m._forward_pre_hooks) for whole in models for m in whole.modules()]


def test_random_numbers_and_warnings_of_a_network_are_its_own():
    def run(model: Any, x: Tensor) -> Any:
        assert not torch.is_grad_enabled()  # no graph of the whole network is kept
        warnings.warn("heard before", UserWarning, stacklevel=1)
        return x + torch.rand_like(x) + random.random()  # noqa: S311 (any will do)

    def draw(*_: Any) -> None:
        torch.rand(1)

    model = nn.Sequential(convfc.to_fc(nn.Conv2d(3, 4, 3)), net(run))
    model[0].fc.register_forward_hook(draw)
    certificate = verify(model, copy.deepcopy(model), torch.randn(1, 3, 6, 6))
    assert_proven(certificate)
    assert certificate.network.outputs[0].difference == 0


def test_hooks_are_gone_when_a_network_raises():
    def run(model: Any, x: Tensor) -> Tensor:
        raise ValueError(f"no {model.conv(x).shape}")

    model, state = net(run, conv=nn.Conv2d(3, 4, 3)), torch.get_rng_state()
    with pytest.raises(ValueError, match=r"no torch\.Size"):
        verify(model, copy.deepcopy(model), torch.randn(1, 3, 6, 6))
    assert not model.conv._forward_pre_hooks
    assert not torch.equal(torch.get_rng_state(), state)  # torch.randn's doing, here
    assert torch.is_grad_enabled()


def test_an_error_of_the_comparison_is_not_told_as_one_of_the_input(
    monkeypatch: pytest.MonkeyPatch,
):
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory, for instance")

    monkeypatch.setattr("convfc.frameworks.torch.certify.networks.measure", fail)
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(RuntimeError, match=r"^out of memory, for instance$"):
        verify(model, convfc.to_fc(model), torch.randn(1, 3, 6, 6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_network_runs_once_in_each_dtype_and_few_copies_are_made(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    runs: list[torch.dtype] = []

    def run(model: Any, x: Tensor) -> Any:
        runs.append(x.dtype)
        return model.second(model.first(x).relu())

    copies: list[nn.Module] = []

    def counted(thing: nn.Module, *options: Any) -> nn.Module:
        copies.append(thing)
        return deep_copy(thing, *options)

    model = net(run, first=nn.Conv2d(3, 4, 3), second=nn.Conv2d(4, 2, 1)).to(dtype)
    after = convfc.to_fc(model)
    for module in (networks, pairs):
        monkeypatch.setattr(module, "deep_copy", counted)
    assert verify(model, after, torch.randn(1, 3, 6, 6, dtype=dtype)).holds
    assert len(runs) == 4 - (dtype == torch.float64)  # one of them in float32, for comparison
    assert len(copies) == len(runs) + 2 * 3


def test_what_cannot_be_run_or_copied_is_refused():
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3)), torch.randn(1, 3, 6, 6)
    for models in ((model, "model"), ("model", model)):
        with pytest.raises(
            UnsupportedModel, match=r"expected a torch\.nn\.Module, a keras\.Model or .*; got str"
        ):
            verify(*models, x)
    lazy = nn.Sequential(nn.LazyConv2d(4, 3))
    with pytest.raises(UnsupportedLayer, match=r"before: 0\.weight: .* run the model once"):
        verify(lazy, copy.deepcopy(lazy), x)
    after = convfc.to_fc(model)
    model.kept = 2 * model[0].weight
    with pytest.raises(UnsupportedModel, match="cannot be copied"):
        verify(model, after, x)


def test_pairs_of_nested_and_shared_layers():
    model = Block()
    apart = convfc.to_fc(model)
    apart.same["place"] = convfc.to_fc(copy.deepcopy(model.stem))
    assert [pair.name for pair in find_pairs(ROOM, model, apart).pairs][:3] == [
        "stem",
        "twice",
        "same.place",
    ]


@pytest.mark.parametrize(
    "given",
    [
        lambda x: x.numpy(),
        lambda x: (x.double().numpy(), torch.tensor(2.0)),
        lambda x: {"x": x.numpy(), "scale": torch.tensor(2.0)},
        lambda x: MappingProxyType({"x": x}),
    ],
    ids=["array", "tuple", "dict", "mapping"],
)
def test_an_input_is_what_inspect_takes_as_well(given: Callable[[Tensor], Any]):
    model = net(lambda m, x, scale=1.0: m.conv(x) * scale, conv=nn.Conv2d(3, 4, 3))
    x = given(torch.randn(2, 3, 6, 6))
    assert_proven(verify(model, convfc.to_fc(model), x))
    assert [row.input_size for row in convfc.inspect(model, x).rows] == [(6, 6)]


DOES_NOT_RUN: dict[str, tuple[Any, str]] = {
    "channels": (torch.zeros(1, 2, 6, 6), r"Given groups=1, .* got \(1, 2, 6, 6\)"),
    "array": (np.zeros((1, 2, 6, 6)), r"Given groups=1, .* got \(1, 2, 6, 6\)"),
    "axes": (torch.zeros(6), r"Expected 3D .* got \(6,\)"),
    "arguments": ((torch.zeros(1, 3, 6, 6), 1), r".*takes 2 positional .* got \(1, 3, 6, 6\), int"),
    "a name": ({"y": torch.zeros(1, 3, 6, 6)}, r".*unexpected keyword argument 'y'"),
    "a word": ("image", r".*must be Tensor, not str|.*invalid combination .* got str"),
    "numbers": (
        [1, 2],
        r"conv2d\(\) received an invalid combination of arguments - got \(list, .*\); ",
    ),
}


@pytest.mark.parametrize(("x", "what"), DOES_NOT_RUN.values(), ids=DOES_NOT_RUN)
def test_an_input_that_the_model_does_not_take_is_explained_by_every_verb(x: Any, what: str):
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    fc = convfc.to_fc(model)
    remedy = "Remedy: give an input that the model takes: a tuple for several arguments, a dict"
    for where, run in {
        "x": lambda: verify(model, fc, x),
        "x ": lambda: convfc.inspect(model, x),
        "example": lambda: convfc.unroll(model, x),
    }.items():
        message = f"^{where.strip()}: the model does not run on this input: {what}.*{remedy}"
        with pytest.raises(ShapeError, match=message) as caught:
            run()
        assert isinstance(caught.value.__cause__, (RuntimeError, TypeError))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [KeyError("k"), AssertionError(), AttributeError("shape")])
def test_whatever_a_forward_raises_is_told(error: Exception):
    def run(model: Any, x: Tensor) -> Tensor:
        raise error

    model = net(run, conv=nn.Conv2d(3, 4, 3))
    said = str(error) or "AssertionError"
    with pytest.raises(ShapeError, match=f"does not run on this input: {said}; got"):
        verify(model, model, torch.zeros(1, 3, 6, 6))


def test_a_model_or_an_input_without_numbers_is_refused():
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3)), torch.zeros(1, 3, 6, 6)
    empty = copy.deepcopy(model).to("meta")
    for name, pair in {"before": (empty, model), "after": (model, empty)}.items():
        message = (
            f"{name}: the model is on the meta device, where 0.weight has a shape and no numbers.*"
        )
        with pytest.raises(UnsupportedModel, match=f"{message}to_empty.*load_state_dict"):
            verify(*pair, x)
    unrolled = convfc.unroll(model, x).to("meta")
    simplified = convfc.simplify(model, x).to("meta")
    for run in (
        lambda: convfc.to_conv(unrolled),
        lambda: convfc.to_conv(simplified),
        lambda: convfc.simplify(empty, x.to("meta")),
    ):
        with pytest.raises(UnsupportedModel, match=r"^model: the model is on the meta device, whe"):
            run()
    assert convfc.to_conv(convfc.to_fc(empty))[0].weight.is_meta
    with pytest.raises(DtypeError, match=r"^filters: an array on the meta device has a shape but"):
        singular_values(empty[0], (6, 6))
    message = r"x: an input on the meta device has a shape and no numbers; got \(1, 3, 6, 6\)"
    with pytest.raises(ShapeError, match=message):
        verify(model, model, x.to("meta"))


def test_a_forward_that_writes_into_its_parameters_starts_anew_each_time():
    def halved(model: Any, x: Tensor) -> Tensor:
        model.scale.data.mul_(0.5)
        return model.conv(x) * model.scale

    model = net(halved, conv=nn.Conv2d(3, 4, 3))
    model.scale = nn.Parameter(torch.ones(()))
    assert verify(model, convfc.to_fc(model), torch.randn(1, 3, 6, 6)).holds
    assert model.scale == 1
