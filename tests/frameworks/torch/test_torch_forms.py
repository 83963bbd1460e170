"""Each form of one layer computes what PyTorch's layer computes: outputs, gradients, formats."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from conv_cases import CASES, CHANNELS_LAST, SMALL, ConvCase, integers
from torch import Tensor, nn
from torch_fixtures import in_form

import convfc
from convfc import ConvGeometry
from convfc.errors import GeometryError, ShapeError, UnsupportedLayer
from convfc.frameworks.torch import GroupedLinear, PatchConv

FORMS = ("patch", "weight")


def run(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output and the gradient with respect to the input, for a cotangent of integers."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.backward(integers(y.shape, y.dtype, 3))
    assert x.grad is not None
    return y.detach(), x.grad


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", [c for c in CASES if len(c.size) > 1], ids=str)
def test_the_output_has_the_memory_format_of_the_native_layer(
    case: ConvCase, dtype: torch.dtype, form: str
) -> None:
    last = CHANNELS_LAST[len(case.size) + 2]
    for weight, given in itertools.product((torch.contiguous_format, last), repeat=2):
        layer = case.layer(dtype).to(memory_format=weight)
        x = case.x(dtype).contiguous(memory_format=given)
        after = in_form(layer, form)
        with torch.no_grad():
            y, z = layer(x), after(x)
        assert torch.equal(y, z)
        assert y.stride() == z.stride() == after(x).stride()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_patch_form_calls_exactly_linear_on_rows_of_m(case: ConvCase) -> None:
    layer = case.layer()
    after = in_form(layer, "patch")
    linears = [m for m in after.modules() if isinstance(m, nn.Linear)]
    assert all(type(m) is nn.Linear for m in linears)
    assert len(linears) == layer.groups
    calls: list[tuple[int, ...]] = []
    for m in linears:
        m.register_forward_hook(lambda module, args, out: calls.append(tuple(args[0].shape)))
    y = after(case.x())
    assert torch.equal(y, layer(case.x()))
    taps = layer.weight[0].numel() if not layer.transposed else 0
    taps = taps or layer.weight.numel() // layer.out_channels
    assert calls == [(2, y[0, 0].numel(), taps)] * layer.groups
    patches = convfc.im2col(
        case.x().movedim(1, -1), convfc.frameworks.torch.read.geometry_of(layer, case.size)
    )
    kernel = layer.weight.shape[2:]
    last = patches[..., -taps:].unflatten(2, (*kernel, -1)).movedim(-1, 2).flatten(2)
    seen: list[Tensor] = []
    linears[-1].register_forward_hook(lambda module, args, out: seen.append(args[0]))
    after(case.x())
    assert torch.equal(seen[0], last)


@pytest.mark.parametrize(("groups", "held"), [(32, nn.ModuleList), (33, GroupedLinear)])
def test_how_groups_are_held(groups: int, held: type[nn.Module]) -> None:
    layer = nn.Conv2d(groups, 2 * groups, 3, groups=groups, bias=False)
    assert type(in_form(layer, "patch").fc) is held
    separate = convfc.to_fc(layer, groups="separate").fc
    assert [tuple(child.weight.shape) for child in separate] == [(2, 9)] * groups
    batched = convfc.to_fc(layer, groups="batched").fc
    assert [(name, tuple(p.shape)) for name, p in batched.named_parameters()] == [
        ("weight", (groups, 2, 9))
    ]
    assert repr(batched).endswith(f"out_features={2 * groups}, groups={groups}, bias=False)")
    alone = convfc.to_fc(nn.Conv2d(3, 4, 3), groups="batched")
    assert type(alone.fc) is nn.Linear


def test_a_batched_child_is_called_once_on_all_of_m() -> None:
    layer = ConvCase(nn.Conv2d, (40, 80, 3), (5, 4), {"groups": 40, "padding": 1}).layer()
    after, x = in_form(layer, "patch"), integers((2, 40, 5, 4))
    assert after.is_plain()
    seen: list[Tensor] = []
    handle = after.fc.register_forward_hook(lambda module, args, y: seen.append(args[0]) or 2 * y)
    assert torch.equal(after(x), 2 * layer(x))
    (rows,) = seen
    by_group = rows.unflatten(2, (40, 9)).transpose(1, 2)
    one_channel = convfc.im2col(x[:, 7:8].movedim(1, -1), ConvGeometry(1, 1, (3, 3), padding=1))
    assert torch.equal(by_group[:, 7], one_channel)
    handle.remove()
    assert torch.equal(after(x), layer(x))


@pytest.mark.parametrize("form", ["patch", "untouched"])
def test_one_linear_for_all_groups_is_no_conv_weight(form: str) -> None:
    after = in_form(nn.Conv2d(4, 6, 3, groups=2), form)
    after.fc = nn.Linear(36, 6)
    assert after(torch.zeros(1, 4, 5, 5)).shape == (1, 6, 3, 3)
    with pytest.raises(UnsupportedLayer, match=r"expected nn.Linear or GroupedLinear; got Linear"):
        after.matrix()
    assert list(after.state_dict()) == ["fc.weight", "fc.bias"]


class Doubled(nn.Linear):
    """What a tool might put in the place of a Linear."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.dim() == 3
        return 2 * super().forward(x)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_a_swapped_child_is_called(case: ConvCase) -> None:
    layer = case.layer()
    after = in_form(layer, "patch")
    for child in after.children_fc:
        child.__class__ = Doubled
    for seed in range(2):
        x = case.x() + seed
        y, dx = run(after, x)
        z, dz = run(layer, x)
        assert torch.equal(y, 2 * z)
        assert torch.equal(dx, 2 * dz)


@pytest.mark.parametrize("change", ["weight class", "instance forward", "global hook"])
def test_what_is_not_plain_is_called(change: str) -> None:
    layer = CASES[0].layer()
    after = in_form(layer, "patch")
    x = CASES[0].x()
    calls = []
    handle = None
    if change == "weight class":

        class Tagged(nn.Parameter):
            pass

        after.fc.weight = Tagged(after.fc.weight.detach())
        assert not after.is_plain()
    elif change == "instance forward":
        after.fc.forward = lambda x: calls.append(1) or nn.Linear.forward(after.fc, x)
    else:
        handle = nn.modules.module.register_module_forward_hook(
            lambda m, args, out: calls.append(1) if m is after.fc else None
        )
    try:
        assert torch.equal(after(x), layer(x))
    finally:
        if handle is not None:
            handle.remove()
    assert calls or change == "weight class"


def test_hooks_on_the_child_see_and_change_its_output() -> None:
    layer = CASES[0].layer()
    after = in_form(layer, "patch")
    handle = after.fc.register_forward_hook(lambda module, args, out: out + 1)
    assert torch.equal(after(CASES[0].x()), layer(CASES[0].x()) + 1)
    handle.remove()
    assert torch.equal(after(CASES[0].x()), layer(CASES[0].x()))


# As users spell them; the laws change one setting after the other.
CHANGES = [
    {"stride": 2},
    {"dilation": (2, 1), "padding": "same"},
    {"padding": [1, 2]},
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_a_geometry_changed_on_the_module_counts(changes: dict, form: str) -> None:
    layer, x = CASES[0].layer(), CASES[0].x()
    after = in_form(layer, form)
    for name, value in changes.items():
        setattr(layer, name, value)
        setattr(after, name, value)
    y = layer(x)
    assert y.shape != CASES[0].layer()(x).shape
    assert torch.equal(after(x), y)


def test_a_padding_that_the_native_layer_ignores_is_ignored() -> None:
    """With another padding mode PyTorch pads by what the constructor was given."""
    layer = nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect")
    layer.padding = (2, 2)
    x = torch.randn(1, 2, 6, 6)
    assert in_form(layer, "patch")(x).shape == layer(x).shape == (1, 3, 6, 6)


def test_a_weight_of_another_shape_counts() -> None:
    """Channels are often cut by giving a layer another weight, its attributes left as they are."""
    layer = nn.Conv2d(3, 4, 3, dtype=torch.float64)
    layer.weight = nn.Parameter(integers((4, 1, 2, 2)))
    with torch.no_grad():
        layer.bias.zero_()
    x = integers((2, 1, 5, 5))
    for form in FORMS:
        assert torch.equal(in_form(layer, form)(x), layer(x))


@pytest.mark.parametrize("form", FORMS)
def test_output_size_of_a_transposed_layer(form: str) -> None:
    case = next(c for c in CASES if c.rest.get("stride") == (2, 3))
    layer = case.layer()
    after = in_form(layer, form)
    sizes = set()
    for size in itertools.product((7, 8), (12, 13, 14)):
        y = after(case.x(), output_size=size)
        assert torch.equal(y, layer(case.x(), output_size=size))
        sizes.add(tuple(y.shape[2:]))
    assert len(sizes) == 6
    with pytest.raises(ValueError, match="requested an output size"):
        after(case.x(), output_size=(99, 99))


@pytest.mark.parametrize("form", FORMS)
def test_the_input_by_name(form: str) -> None:
    layer = CASES[0].layer()
    after = in_form(layer, form)
    assert torch.equal(after(input=CASES[0].x()), layer(input=CASES[0].x()))


def test_patches_side_by_side_are_a_view_where_strides_allow() -> None:
    image = torch.randn(2, 3, 5, 6)
    for layer, x in (
        (nn.Conv2d(3, 4, 1), image),
        (nn.Conv2d(3, 4, 1), image.contiguous(memory_format=torch.channels_last)),
        (nn.Conv1d(1, 5, 4, stride=4), torch.randn(2, 1, 12)),
        (nn.Conv2d(1, 5, (2, 4), stride=(2, 4)), torch.randn(2, 1, 6, 4)),
    ):
        after, seen = in_form(layer, "patch"), []
        after.fc.register_forward_pre_hook(lambda m, args, seen=seen: seen.append(args[0]))
        after(x)
        assert [rows.data_ptr() for rows in seen] == [x.data_ptr()]


@pytest.mark.parametrize("shape", [(2, 4, 7, 6), (3, 7), (1, 2, 3, 7, 6), (7, 6, 3)], ids=str)
def test_an_input_of_the_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    after = in_form(CASES[0].layer(), "patch")
    with pytest.raises(ShapeError, match=r"expected \(N, 3, size 0, size 1\)"):
        after(torch.zeros(shape, dtype=torch.float64))


def test_an_input_smaller_than_the_kernel_is_refused() -> None:
    with pytest.raises(GeometryError, match="the kernel is larger than the padded input"):
        in_form(nn.Conv2d(1, 1, 5), "patch")(torch.zeros(1, 1, 4, 9))


def test_same_padding_with_a_stride_is_refused_as_pytorch_refuses_it() -> None:
    layer = nn.Conv2d(1, 1, 3, padding="same")
    layer.stride = (2, 2)
    with pytest.raises(GeometryError, match="stride 1 only"):
        in_form(layer, "patch")(torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("groups", [1, 40])
def test_a_mixed_dtype_is_refused_as_linear_refuses_it(layer: Any, groups: int) -> None:
    after = in_form(layer(groups, groups, 3, groups=groups), "patch")
    with pytest.raises(RuntimeError, match=r"dtype|expected scalar type"):
        after(torch.zeros(1, groups, 8, 8, dtype=torch.float64))


def test_the_patch_form_says_what_it_is() -> None:
    text = repr(convfc.to_fc(nn.Conv2d(3, 8, 4, stride=2)))
    assert "Conv2d: 3, 8, kernel_size=(4, 4), stride=(2, 2)" in text
    assert "(fc): Linear(in_features=48, out_features=8, bias=True)" in text
    assert isinstance(convfc.to_fc(nn.Conv2d(3, 8, 4)), PatchConv)
