"""to_conv after a tool has worked on the FC part: factors, adapters, quantised, refusals."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.ao.nn.quantized
from conv_cases import CASES, GROUPED, SMALL, ConvCase, integers
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm

import convfc
from convfc.errors import ArgumentError, UnsupportedLayer, UnsupportedLayerWarning
from convfc.frameworks.torch import GroupedLinear, PatchConv
from convfc.frameworks.torch.read import matrix_to_weight, weight_to_matrix

peft = pytest.importorskip("peft")


def set_integers(model: nn.Module) -> None:
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            parameter.copy_(integers(parameter.shape, parameter.dtype, seed + 30))


def swap(layer: PatchConv, make: Any) -> None:
    """Put ``make(child, group)`` in the place of every FC child, as tools do."""
    if isinstance(layer.fc, nn.ModuleList):
        for group, child in enumerate(list(layer.fc)):
            layer.fc[group] = make(child, group)
    else:
        layer.fc = make(layer.fc, 0)
    set_integers(layer)


def factored(*between: nn.Module, ranks: tuple[int, ...] = (2,), bias: bool = True) -> Any:
    """A maker of ``Linear(k, r), *between, Linear(r, f)``, with one rank per group."""

    def make(child: nn.Linear, group: int) -> nn.Sequential:
        rank = ranks[group % len(ranks)]
        options = {"dtype": child.weight.dtype}
        first = nn.Linear(child.in_features, rank, bias=bias, **options)
        return nn.Sequential(first, *between, nn.Linear(rank, child.out_features, **options))

    return make


def assert_equal_function(fc: PatchConv, back: nn.Module, x: Tensor) -> None:
    """Outputs and input gradients, to the last bit, on integers."""
    x, z = x.clone().requires_grad_(), x.clone().requires_grad_()
    want, got = fc(x), back(z)
    assert torch.equal(got, want)
    cotangent = integers(want.shape, want.dtype, 7)
    want.backward(cotangent)
    got.backward(cotangent)
    assert torch.equal(z.grad, x.grad)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", CASES[1::2], ids=str)
def test_two_factors_become_two_conv_layers(case: ConvCase, bias: bool) -> None:
    fc = convfc.to_fc(case.layer())
    swap(fc, factored(bias=bias))
    back = convfc.to_conv(fc)
    first, second = back
    assert type(back) is nn.Sequential
    assert type(first) is case.cls
    assert (first.stride, first.padding, first.groups) == (fc.stride, fc.padding, fc.groups)
    assert first.out_channels == 2 * fc.groups
    assert (first.bias is not None) == bias
    assert type(second) in (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    assert set(second.kernel_size) == {1}
    assert (second.in_channels, second.out_channels) == (2 * fc.groups, fc.out_channels)
    assert_equal_function(fc, back, case.x())


@pytest.mark.parametrize("case", GROUPED, ids=str)
def test_batched_factors_become_two_conv_layers(case: ConvCase) -> None:
    fc = convfc.to_fc(case.layer(), groups="batched")
    groups, filters, columns = fc.fc.weight.shape
    sizes = (groups, 2, columns), (groups, filters, 2)
    first, second = (nn.Parameter(torch.zeros(size, dtype=torch.float64)) for size in sizes)
    bias = nn.Parameter(torch.zeros(2 * groups, dtype=torch.float64))
    fc.fc = nn.Sequential(GroupedLinear(first, bias), nn.ReLU(), GroupedLinear(second, None))
    set_integers(fc)
    back = convfc.to_conv(fc)
    assert [type(part) for part in back[:2]] == [case.cls, nn.ReLU]
    assert (back[0].out_channels, back[2].in_channels) == (2 * groups, 2 * groups)
    assert_equal_function(fc, back, case.x())


class Tool(nn.Module):
    """What a tool may put in the place of a batched child, and say what it equals."""

    def __init__(self, inner: GroupedLinear) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.inner(x)

    def as_plain(self) -> nn.Module:
        weight, bias = (nn.Parameter(2 * p.detach()) for p in self.inner.parameters())
        return GroupedLinear(weight, bias)


def test_a_tool_s_module_for_all_groups_says_what_it_equals() -> None:
    layer = nn.Conv2d(40, 40, 3, groups=40, dtype=torch.float64)
    fc = convfc.to_fc(layer)
    fc.fc = Tool(fc.fc)
    back = convfc.to_conv(fc)
    assert torch.equal(back.weight, 2 * layer.weight)
    assert torch.equal(back.bias, 2 * layer.bias)


@pytest.mark.parametrize("case", GROUPED, ids=str)
def test_groups_of_unequal_rank_are_filled_up(case: ConvCase) -> None:
    fc = convfc.to_fc(case.layer())
    swap(fc, factored(ranks=(1, 3)))
    back = convfc.to_conv(fc)
    assert back[0].out_channels == 3 * fc.groups
    assert_equal_function(fc, back, case.x())


@pytest.mark.parametrize("case", GROUPED, ids=str)
def test_groups_of_which_one_has_no_bias(case: ConvCase) -> None:
    fc = convfc.to_fc(case.layer())

    def make(child: nn.Linear, group: int) -> nn.Linear:
        size = child.in_features, child.out_features
        return nn.Linear(*size, bias=group != 0, dtype=child.weight.dtype)

    swap(fc, make)
    back = convfc.to_conv(fc)
    assert type(back) is case.cls
    assert_equal_function(fc, back, case.x())


@pytest.mark.parametrize(
    "between", [(nn.ReLU(),), (nn.Hardtanh(-3, 5), nn.Linear(2, 2).double(), nn.LeakyReLU(2.0))],
    ids=["Linear-ReLU-Linear", "Linear-Hardtanh-Linear-LeakyReLU-Linear"],
)  # fmt: skip
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_networks_in_the_network(case: ConvCase, between: tuple[nn.Module, ...]) -> None:
    fc = convfc.to_fc(case.layer())
    swap(fc, factored(*(copy.deepcopy(part) for part in between)))
    back = convfc.to_conv(fc)
    kinds = [type(part) for part in back[1:]]
    conv = kinds[-1]
    assert kinds == [conv if type(part) is nn.Linear else type(part) for part in between] + [conv]
    assert_equal_function(fc, back, case.x())


def test_identities_fall_away_and_nested_sequentials_are_flat() -> None:
    layer = nn.Conv2d(3, 4, 3, dtype=torch.float64)
    fc = convfc.to_fc(layer)
    child = fc.fc
    fc.fc = nn.Sequential(nn.Identity(), nn.Sequential(child))
    back = convfc.to_conv(fc)
    assert type(back) is nn.Conv2d
    assert torch.equal(back.weight, layer.weight)


def test_hooks_and_modes_of_a_factored_layer_stand_on_the_whole() -> None:
    fc = convfc.to_fc(nn.Conv2d(3, 4, 3, dtype=torch.float64)).eval()
    handle = fc.register_forward_hook(lambda module, args, out: out + 1)
    swap(fc, factored())
    fc.fc[0].weight.requires_grad_(False)
    back = convfc.to_conv(fc)
    assert [part.training for part in back.modules()] == [False] * 3
    assert [p.requires_grad for p in back.parameters()] == [False, True, True, True]
    x = integers((1, 3, 6, 6))
    assert torch.equal(back(x), fc(x))
    handle.remove()
    plain = nn.Sequential(back)  # the copy has the hook still, as copies have
    (again,) = convfc.to_conv(nn.Sequential(fc), inplace=True)
    assert torch.equal(again(x) + 1, plain(x))


# ------------------------------------------------------------------------------------------ PEFT


def adapted(config: Any, *, groups: int = 1) -> tuple[nn.Module, Any]:
    """A network with one CONV layer in patch form, and PEFT's model of it; small integers."""
    torch.manual_seed(0)
    fc = convfc.to_fc(nn.Sequential(nn.Conv2d(4, 6, 3, groups=groups, dtype=torch.float64)))
    set_integers(fc)
    return fc, peft.get_peft_model(fc, config)


CHILD = ["fc"]
LORA = {"r": 2, "lora_alpha": 4}  # a scaling of 2: exact


@pytest.mark.parametrize("merged", [False, True], ids=["unmerged", "merged"])
@pytest.mark.parametrize("groups", [1, 2])
def test_lora_comes_back_as_weight_plus_delta(groups: int, merged: bool) -> None:
    target = CHILD if groups == 1 else ["fc.0", "fc.1"]
    fc, model = adapted(peft.LoraConfig(**LORA, target_modules=target), groups=groups)
    layer = fc[0]
    with torch.no_grad():
        for seed, (name, p) in enumerate(model.named_parameters()):
            if "lora_" in name:
                p.copy_(integers(p.shape, p.dtype, seed))
    children = layer.children_fc
    deltas = [2 * c.lora_B["default"].weight @ c.lora_A["default"].weight for c in children]
    matrix = torch.cat([c.base_layer.weight for c in children]) + torch.cat(deltas)
    shape = (len(matrix), 4 // groups, 3, 3)
    want = matrix_to_weight(matrix, shape, transposed=False, groups=groups)
    if merged:
        model.merge_adapter()
    for whole in (fc, model):  # what PEFT has wrapped, and its wrapper
        back = convfc.to_conv(whole)
        assert type(back) is nn.Sequential
        assert type(back[0]) is nn.Conv2d
        assert torch.equal(back[0].weight, want)
        x = integers((2, 4, 7, 7))
        assert torch.equal(back(x), model(x))
    assert isinstance(layer, PatchConv)  # the tool's model is left alone
    assert layer.children_fc[0].merged == merged


def test_disabled_adapters_do_not_count() -> None:
    fc, model = adapted(peft.LoraConfig(**LORA, target_modules=CHILD))
    set_integers(fc)
    base = fc[0].fc.get_base_layer().weight
    with model.disable_adapter():
        back = convfc.to_conv(fc)[0]
        with pytest.raises(UnsupportedLayer, match=r"adapters of the model are disabled.*unload"):
            convfc.to_conv(model)
    assert torch.equal(weight_to_matrix(back.weight, transposed=False, groups=1), base)
    model.merge_adapter()
    fc[0].fc._disable_adapters = True
    with pytest.raises(UnsupportedLayer, match=r"disabled, merged lora adapter of PEFT.*unmerge"):
        convfc.to_conv(fc)


def test_only_active_adapters_count() -> None:
    fc, model = adapted(peft.LoraConfig(**LORA, target_modules=CHILD))
    model.add_adapter("second", peft.LoraConfig(**LORA, target_modules=CHILD))
    set_integers(fc)
    x = integers((1, 4, 7, 7))
    for name in ("second", "default"):
        model.set_adapter(name)
        assert torch.equal(convfc.to_conv(fc)(x), fc(x))


def test_an_adapter_that_cannot_be_merged_is_refused_by_name() -> None:
    fc, model = adapted(peft.LoraConfig(**LORA, target_modules=CHILD))

    def merge() -> None:
        raise NotImplementedError("not linear")

    fc[0].fc.merge = merge
    with pytest.raises(UnsupportedLayer, match=r"lora adapter of PEFT cannot be m.*not linear"):
        convfc.to_conv(fc)
    model.merge_and_unload = merge
    with pytest.raises(UnsupportedLayer, match="adapters cannot be merged into the weights"):
        convfc.to_conv(model)


def test_hooks_on_an_adapter_are_refused() -> None:
    fc, _ = adapted(peft.LoraConfig(**LORA, target_modules=CHILD))
    fc[0].fc.register_forward_hook(lambda module, args, out: out)
    with pytest.raises(UnsupportedLayer, match=r"^0: hooks stand on its FC part \(Linear\)"):
        convfc.to_conv(fc)


def test_a_model_of_peft_is_not_changed_in_place() -> None:
    _, model = adapted(peft.LoraConfig(**LORA, target_modules=CHILD))
    with pytest.raises(ArgumentError, match=r"cannot become the model inside it.*unload"):
        convfc.to_conv(model, inplace=True)


# ------------------------------------------------------------------------------- quantised weights

INPUT_TOO = "only the rounded weights come back: the quantised FC layer rounds its input as well"


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_a_dynamically_quantised_linear_is_dequantised() -> None:
    fc = convfc.to_fc(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    tool = torch.ao.quantization.quantize_dynamic(fc, {nn.Linear}, dtype=torch.qint8)
    child = tool[0].fc
    assert isinstance(child, torch.ao.nn.quantized.dynamic.Linear)
    with pytest.warns(UnsupportedLayerWarning, match=rf"^0: {INPUT_TOO}") as told:
        back = convfc.to_conv(tool)[0]
    assert [warning.filename for warning in told] == [__file__]
    assert type(back) is nn.Conv2d
    assert (back.weight.dtype, back.weight.requires_grad) == (torch.float32, False)
    matrix = weight_to_matrix(back.weight, transposed=False, groups=1)
    assert torch.equal(matrix, child.weight().dequantize())
    assert not torch.equal(matrix, fc[0].fc.weight)
    assert torch.equal(back.bias, fc[0].bias)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
def test_a_weight_of_float16_loses_nothing_on_the_way_back() -> None:
    """Its input is not rounded: `torch.ao` calls it dynamic all the same. A warning would fail."""
    fc = convfc.to_fc(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    tool = torch.ao.quantization.quantize_dynamic(fc, {nn.Linear}, dtype=torch.float16)
    assert isinstance(tool[0].fc, torch.ao.nn.quantized.dynamic.Linear)
    back = convfc.to_conv(tool)
    assert torch.equal(back[0].weight, convfc.to_conv(fc)[0].weight.half().float())


def test_only_the_layers_that_come_back_are_warned_of() -> None:
    fc = convfc.to_fc(nn.Sequential(*(nn.Conv2d(3, 3, 3, groups=3) for _ in range(3))))
    for layer in fc:
        for child in layer.fc:
            child.weight = nn.Parameter(Rounds(torch.ones(1, 9)), requires_grad=False)
    fc[1].fc[0] = nn.Bilinear(1, 1, 1)
    with pytest.warns(UnsupportedLayerWarning) as told:
        convfc.to_conv(fc, strict=False)
    listed, rounds = (str(warning.message) for warning in told)
    assert listed.startswith("left as they are: 1 (its FC part is a Bilinear)")
    assert rounds.startswith(f"0, 2: {INPUT_TOO}")


def test_a_static_quantised_linear_is_dequantised() -> None:
    fc = convfc.to_fc(nn.Conv2d(3, 4, 3, bias=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weight = torch.quantize_per_tensor(fc.fc.weight.detach(), 0.05, 0, torch.qint8)
        fc.fc = torch.ao.nn.quantized.Linear(27, 4, bias_=False)
    fc.fc.set_weight_bias(weight, None)
    with pytest.warns(UnsupportedLayerWarning, match=f"^the model itself: {INPUT_TOO}"):
        back = convfc.to_conv(fc)
    assert torch.equal(
        weight_to_matrix(back.weight, transposed=False, groups=1), weight.dequantize()
    )
    assert back.bias is None


class Halves(Tensor):
    """A weight kept as integers, as torchao keeps them: a tensor of a class of its own."""

    scale = 0.5

    @staticmethod
    def __new__(cls, codes: Tensor) -> Halves:
        shown = torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)
        shown.codes = codes
        return shown

    def dequantize(self) -> Tensor:
        return self.codes * self.scale

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any, kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return type(args[0])(args[0].codes)
        if func in (torch.ops.aten.clone.default, torch.ops.aten._to_copy.default):
            return type(args[0])(args[0].codes.clone())
        raise NotImplementedError(func)

    def __deepcopy__(self, memo: Any) -> Halves:
        copied = nn.Parameter(type(self)(self.codes.clone()), requires_grad=self.requires_grad)
        memo[id(self)] = copied
        return copied


class Rounds(Halves):
    """One that rounds inputs, too, as torchao's Int8Tensor says it."""

    act_quant_kwargs = "symmetric"


class Scales(Halves):
    """One that scales inputs before every call, as SmoothQuant and AWQ do."""

    act_pre_scale = 0.5


def test_a_weight_of_a_tensor_class_is_dequantised() -> None:
    fc = convfc.to_fc(nn.Conv2d(3, 4, 3))
    codes = torch.randint(-8, 8, (4, 27))
    fc.fc.weight = nn.Parameter(Halves(codes), requires_grad=False)
    assert type(fc.fc.weight) is Halves
    back = convfc.to_conv(fc)
    assert type(back.weight) is nn.Parameter
    assert torch.equal(weight_to_matrix(back.weight, transposed=False, groups=1), codes * 0.5)


# ----------------------------------------------------------------------------------------- refusals


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def hooked(child: nn.Linear) -> nn.Linear:
    child.register_forward_hook(lambda module, args, out: out)
    return child


def with_forward(child: nn.Linear) -> nn.Linear:
    child.forward = lambda x: x
    return child


def pruned(child: nn.Linear) -> nn.Linear:
    prune.l1_unstructured(child, "weight", amount=0.5)
    return child


def of_another_class(child: nn.Linear) -> nn.Linear:
    """A tensor class whose dequantize() gives the class itself."""
    child.weight = nn.Parameter(child.weight.detach().as_subclass(Odd))
    return child


class Odd(Tensor):
    pass


def smoothed(child: nn.Linear) -> nn.Linear:
    child.weight = nn.Parameter(Scales(torch.ones(4, 27)), requires_grad=False)
    return child


REFUSED = {
    "hook": (hooked, r"hooks stand on its FC part \(Linear\).*handle\.remove"),
    "hook-inside": (lambda c: nn.Sequential(hooked(c)), r"hooks stand on its FC part \(Linear\)"),
    "parametrized": (parametrizations.orthogonal, "weight is computed by a par.*remove_parametr"),
    "weight-norm": (parametrizations.weight_norm, "weight is computed by a parametrization"),
    "pruned": (pruned, r"computed before every call.*prune\.remove"),
    "spectral-norm": (spectral_norm, r"computed before every call.*remove_spectral_norm"),
    "own-forward": (lambda c: Scaled(27, 4), "it is a Scaled with a forward of its own"),
    "own-forward-of-the-object": (with_forward, "it is a Linear with a forward of its own"),
    "lazy": (lambda c: nn.LazyLinear(4), "its weight has no size yet.*run the model once"),
    "another-module": (lambda c: nn.Bilinear(27, 27, 4), "its FC part is a Bilinear"),
    "another-part": (lambda c: nn.Sequential(c, nn.LayerNorm(4)), "its FC part is a LayerNorm"),
    "tensor-class": (of_another_class, r"its weight is a Odd that dequantize\(\) leaves"),
    "scaled-input": (smoothed, r"scales the input before every call \(act_pre_scale\).*no SmoothQ"),
    "sizes": (lambda c: nn.Linear(27, 5), "the sizes 27 -> 5, where 27 -> 4 is expected"),
    "sizes-inside": (
        lambda c: nn.Sequential(nn.Linear(27, 2), nn.Linear(3, 4)),
        "the sizes 27 -> 2 -> 3 -> 4, where 27 -> 4 is expected",
    ),
    "nothing": (lambda c: nn.Identity(), "the sizes of its input, where 27 -> 4 is expected"),
    "first-nonlinear": (lambda c: nn.Sequential(nn.ReLU(), c), "begins with a ReLU, before the"),
    # Of two groups, which are held apart, and of many, which are held together:
    "one-more": (lambda c: c.append(nn.Linear(18, 3)), "has 3 FC parts for 2 groups", 2),
    "one-otherwise": (
        lambda c: c.insert(0, nn.Sequential(c.pop(0), nn.ReLU())) or c,
        "not of one kind",
        2,
    ),
    "other-functions": (
        lambda c: c.extend([nn.Sequential(c.pop(0), f) for f in (nn.ReLU(), nn.SiLU())]),
        "not of one kind",
        2,
    ),
    "mixed": (
        lambda c: nn.Linear(360, 40),
        r"one for all 40 groups, and mixes them.*groups='separate'",
        40,
    ),
    "mixed-behind": (
        lambda c: nn.Sequential(c, nn.Linear(40, 40)),
        r"one for all 40 groups, and mixes them",
        40,
    ),
    "hook-many": (hooked, r"hooks stand on its FC part \(GroupedLinear\)", 40),
    "pruned-many": (pruned, r"computed before every call.*prune\.remove", 40),
}
LAYERS = {1: (3, 4, 3), 2: (4, 6, 3), 40: (40, 40, 3)}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.spectral_norm`")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_taken_back_is_refused_by_name(kind: str) -> None:
    make, message, groups = (*REFUSED[kind], 1)[:3]
    fc = convfc.to_fc(nn.ModuleDict({"stem": nn.Conv2d(*LAYERS[groups], groups=groups)}))
    fc["stem"].fc = make(fc["stem"].fc)
    with pytest.raises(UnsupportedLayer, match=rf"^stem: .*{message}"):
        convfc.to_conv(fc)
