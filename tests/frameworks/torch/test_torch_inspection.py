"""inspect: judged by PyTorch's own counter, by the parameters themselves and by convfc.im2col."""

from __future__ import annotations

import copy
import random
import warnings
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from networks import net
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import convfc
from convfc.errors import ShapeError, UnsupportedLayer
from convfc.frameworks.torch.forms.patch import PatchConv
from convfc.inspection import Inspection


class Unet(nn.Module):
    """Transposed layers, one of them asked for an output size, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(2, 4, 3, stride=2, padding=1, padding_mode="reflect")
        self.twice = nn.Conv2d(4, 4, 3, padding="same", groups=2, dilation=2)
        self.up = nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, groups=2)
        self.last = nn.ConvTranspose2d(2, 3, 2, stride=3, output_padding=2, bias=False)

    def forward(self, x):
        y = self.twice(self.twice(self.down(x)))
        return self.last(self.up(y, output_size=x.shape[2:]))


def line() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 6, 5, stride=3, padding=4, padding_mode="circular"),
        nn.ConvTranspose1d(6, 2, 4, stride=2, dilation=3),
    )


def volume() -> nn.Module:
    return nn.Sequential(nn.Conv3d(2, 4, (1, 3, 2), stride=(1, 2, 1)), nn.ConvTranspose3d(4, 1, 2))


NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "resnet18": (torchvision.models.resnet18, (2, 3, 48, 40)),
    "unet": (Unet, (2, 2, 9, 8)),
    "line": (line, (3, 3, 20)),
    "volume": (volume, (2, 2, 4, 7, 5)),
}


Found = tuple[nn.Module, torch.Tensor, Inspection]


@pytest.fixture(params=NETWORKS, scope="module")
def found(request: pytest.FixtureRequest) -> Found:
    make, shape = NETWORKS[request.param]
    model, x = make().eval(), torch.zeros(shape)
    return model, x, convfc.inspect(model, x)


def calls_of(model: nn.Module, x: Any) -> dict[str, list[tuple[torch.Tensor, torch.Tensor]]]:
    """What each CONV layer really received and returned."""
    seen: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    with ExitStack() as stack, torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.modules.conv._ConvNd):
                calls = seen.setdefault(name, [])
                hook = module.register_forward_hook(
                    lambda m, given, y, calls=calls: calls.append((given[0], y))
                )
                stack.callback(hook.remove)
        model(x)
    return seen


def test_multiplications_are_those_that_pytorch_counts(found: Found) -> None:
    model, x, inspection = found
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    counts = counter.get_flop_counts()
    flops = {str(op): n for op, n in counts["Global"].items()}["aten.convolution"]
    assert 2 * inspection.totals.native_multiplications == flops
    for row in inspection:
        if type(model) is torchvision.models.ResNet:
            assert list(counts[f"ResNet.{row.name}"].values()) == [2 * row.multiplications]
        assert row.multiplications == row.native_multiplications or row.geometry.transposed


def test_the_patch_product_multiplies_as_often_as_said() -> None:
    """Of a transposed layer M K takes more than the native layer: M holds zeros in between."""
    layer = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2)
    (row,) = convfc.inspect(layer, torch.zeros(2, 4, 5, 5))
    patches = convfc.im2col(np.zeros((2, 5, 5, 4)), row.geometry)
    weights = np.zeros(row.filter_matrix_shape)
    per_group = (patches.shape[2] // 2, weights.shape[1] // 2)
    with FlopCounterMode(display=False) as counter:
        for _ in range(2):
            torch.zeros(*patches.shape[:2], per_group[0]) @ torch.zeros(per_group)
    assert 2 * row.multiplications == counter.get_total_flops()
    assert row.multiplications > row.native_multiplications


def test_shapes_are_those_of_the_real_calls_and_of_im2col(found: Found) -> None:
    model, x, inspection = found
    calls = calls_of(model, x)
    assert len(inspection) == sum(map(len, calls.values()))
    for row in inspection:
        given, y = calls[row.name][row.call]
        assert (row.batch, row.geometry.in_channels, *row.input_size) == tuple(given.shape)
        assert (row.batch, row.geometry.out_channels, *row.output_size) == tuple(y.shape)
        assert row.unrolled_shape == (y[0].numel(), given[0].numel())
        assert (row.dtype, row.itemsize) == ("float32", 4)
        canonical = np.zeros((row.batch, *row.input_size, row.geometry.in_channels), np.float32)
        M = convfc.im2col(canonical, row.geometry)
        assert (row.patch_matrix_shape, row.patch_matrix_bytes) == (M.shape, M.nbytes)
        weight = model.get_submodule(row.name).weight
        filters = convfc.filters_to_matrix(np.zeros(row.geometry.filters_shape), row.geometry)
        assert row.filter_matrix_shape == filters.shape
        assert filters.size == weight.numel()


def test_parameters_are_those_of_the_layers(found: Found) -> None:
    model, _, inspection = found
    layers = [m for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd)]
    for row in inspection:
        own = model.get_submodule(row.name).parameters()
        assert row.parameters == sum(p.numel() for p in own)
    totals = inspection.totals
    assert (totals.layers, totals.calls) == (totals.convertible, len(inspection))
    assert totals.layers == len(layers)
    assert totals.parameters == sum(p.numel() for layer in layers for p in layer.parameters())
    assert totals.model_parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("form", ["patch", "weight"])
def test_the_forms_have_the_rows_of_the_layers_that_they_were(form: str) -> None:
    model, x = Unet(), torch.zeros(2, 2, 9, 8)
    before, after = convfc.inspect(model, x), convfc.inspect(convfc.to_fc(model, form=form), x)
    assert [row.to_dict() for row in after] == [row.to_dict() | {"form": form} for row in before]
    assert after.totals == before.totals


def test_without_an_input_what_needs_none_is_known() -> None:
    model = Unet()
    inspection = convfc.inspect(model)
    with_input = {row.name: row for row in convfc.inspect(model, torch.zeros(1, 2, 8, 8))}
    assert [row.name for row in inspection] == ["down", "twice", "up", "last"]
    for row in inspection:
        known = with_input[row.name]
        assert (row.parameters, row.form, row.kind) == (known.parameters, "native", known.kind)
        assert row.filter_matrix_shape == known.filter_matrix_shape
        assert {row.call, row.batch, row.input_size, row.output_size} == {None}
        assert {row.patch_matrix_shape, row.multiplications, row.unrolled_shape} == {None}
    assert inspection.totals.multiplications is None
    assert inspection.rows[0].geometry == with_input["down"].geometry


def test_a_shared_layer_has_all_names_and_counts_once_and_an_idle_one_has_a_row() -> None:
    conv = nn.Conv2d(2, 2, 3, padding=1)
    inner = net(lambda m, x: m.conv(x), conv=conv, idle=nn.Conv2d(2, 2, 1, bias=False))
    model = nn.Sequential(conv, inner, nn.Conv2d(2, 2, 3))
    model[2].weight = conv.weight
    inspection = convfc.inspect(model, torch.zeros(1, 2, 4, 4))
    assert [(row.names, row.call, row.parameters) for row in inspection] == [
        (("0", "1.conv"), 0, 38),
        (("0", "1.conv"), 1, 38),
        (("1.idle",), None, 4),
        (("2",), 0, 38),
    ]
    assert (inspection.totals.layers, inspection.totals.calls) == (3, 3)
    assert inspection.totals.parameters == 38 + 4 + 2 == inspection.totals.model_parameters


def test_an_unbatched_input_is_a_batch_of_one() -> None:
    layer = nn.Conv2d(3, 2, 3)
    whole, single = (convfc.inspect(layer, torch.zeros(s)) for s in ((1, 3, 5, 6), (3, 5, 6)))
    assert single == whole
    assert single.rows[0].patch_matrix_shape == (1, 12, 27)


class Blur(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 2, 3, 3))

    def forward(self, x):
        y = F.conv2d(x, self.weight, torch.zeros(3), 2, padding=1)
        z = torch.conv_transpose2d(y, weight=torch.ones(3, 1, 2, 2), stride=[2, 2])
        w = torch.convolution(
            z, torch.ones(4, 1, 2, 1), None, [1, 1], [0, 0], [2, 1], False, [0, 0], 1
        )
        return F.conv2d(w, torch.ones(4, 1, 2, 2), groups=4, padding="same")


def test_functional_convolutions_have_a_row_for_every_call() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), Blur())
    inspection = convfc.inspect(model, torch.zeros(1, 1, 7, 6))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 1, 7, 6))
    rows = [row for row in inspection if row.form == "functional"]
    assert [(row.name, row.kind, row.call) for row in rows] == [
        ("1", "F.conv2d", 0),
        ("1", "F.conv_transpose2d", 1),
        ("1", "torch.convolution", 2),
        ("1", "F.conv2d", 3),
    ]
    assert [row.parameters for row in rows] == [54 + 3, 12, 8, 16]
    channels = [(row.geometry.in_channels, row.geometry.out_channels) for row in rows]
    assert channels == [(2, 3), (3, 1), (1, 4), (4, 4)]
    assert [row.output_size for row in rows] == [(4, 3), (8, 6), (6, 6), (6, 6)]
    assert rows[3].geometry.padding == ((0, 1), (0, 1))
    assert 2 * inspection.totals.native_multiplications == counter.get_total_flops()
    assert inspection.totals.parameters == 4 + 54 == inspection.totals.model_parameters
    assert not any(row.convertible for row in rows)
    assert rows[0].reason.startswith("its forward calls F.conv2d and F.conv_transpose2d")
    assert "nn.Conv" in rows[0].remedy
    static = convfc.inspect(model)
    assert [(row.name, row.kind, row.form) for row in static] == [("0", "Conv2d", "native")]


def test_a_convolution_with_the_weight_of_a_layer_is_a_call_of_that_layer() -> None:
    model = net(
        lambda m, x: F.conv1d(x, m.conv.weight, m.conv.bias, padding=2, groups=4),
        conv=nn.Conv1d(4, 4, 3, groups=4),
    )
    for one, form in ((model, "native"), (convfc.to_fc(model), "patch")):
        (row,) = convfc.inspect(one, torch.zeros(2, 4, 9))
        assert (row.name, row.kind, row.form) == ("conv", "Conv1d", form)
        assert row.convertible
        assert (row.output_size, row.geometry.padding) == ((11,), ((2, 2),))


class Same(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(F.pad(x, [1, 2, 1, 2]), self.weight, self.bias, self.stride)


def test_a_layer_with_a_forward_of_its_own_has_the_sizes_of_what_it_does() -> None:
    (row,) = convfc.inspect(Same(1, 2, 3, padding=0), torch.zeros(1, 1, 6, 6))
    assert row.input_size == (9, 9)
    assert row.geometry.output_size((9, 9)) == row.output_size
    assert (row.form, row.kind, row.convertible) == ("native", "Same", True)


def test_what_cannot_be_looked_into_has_a_row() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, that TorchScript is deprecated
        part = torch.jit.script(nn.Sequential(nn.Conv2d(1, 1, 2), nn.BatchNorm2d(1)))
    model = nn.Sequential(nn.Conv2d(1, 1, 1), part)
    for inspection in (convfc.inspect(model), convfc.inspect(model, torch.zeros(2, 1, 3, 3))):
        _, row = inspection
        assert (row.kind, row.form, row.parameters) == ("TorchScript", "other", 7)
        assert row.reason == "it is TorchScript with convolutions inside"
    assert part.training
    assert model[1][1].num_batches_tracked == 0


def test_parametrized_and_lazy_layers() -> None:
    model = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 2, 2)), nn.LazyConv2d(3, 1)
    )
    norm, lazy = convfc.inspect(model)
    assert (norm.kind, norm.parameters, norm.convertible) == ("Conv2d", 2 + 8 + 2, True)
    assert (lazy.parameters, lazy.geometry, lazy.reason) == (
        None,
        None,
        "LazyConv2d: its weight has no size yet",
    )
    with pytest.raises(UnsupportedLayer, match=r"^1: it is lazy, .*Remedy: run the model yourself"):
        convfc.inspect(model, torch.zeros(1, 1, 4, 4))
    assert isinstance(model[1], nn.LazyConv2d)


class Noisy(nn.Module):
    """Does what a model should not do: draws numbers, counts, writes into buffers, fails."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.utils.parametrizations.spectral_norm(nn.Conv2d(1, 1, 3))
        self.batch_norm = nn.BatchNorm2d(1)
        self.batch_norm.eval()
        self.register_buffer("count", torch.zeros(1))
        self.register_buffer("same_count", self.count)

    def forward(self, x, fail=False):
        assert not torch.is_grad_enabled()
        assert not any(module.training for module in self.modules())
        assert self.count is self.same_count
        self.count += 1
        self.same_count = self.same_count + 1
        random.random()  # noqa: S311
        if fail:
            raise RuntimeError("broken off")
        return self.batch_norm(self.norm(x)) + torch.randn(1)


def everything(model: nn.Module) -> str:
    tensors = [*model.parameters(), *model.buffers()]
    world = torch.get_rng_state().numpy().tobytes(), random.getstate(), torch.is_grad_enabled()
    return str(
        [
            *(copy.deepcopy(dict(model.state_dict())), world),
            [
                (m.training, len(m._forward_hooks), len(m._forward_pre_hooks))
                for m in model.modules()
            ],
            [(id(tensor), tensor._version, tensor.grad) for tensor in tensors],
        ]
    )


@pytest.mark.parametrize(
    "x",
    [None, torch.ones(1, 1, 4, 4), {"x": torch.ones(1, 1, 4, 4), "fail": True}],
    ids=["not-run", "run", "fails"],
)
def test_nothing_in_the_model_changes(x: Any) -> None:
    model = Noisy()
    before = everything(model)
    if isinstance(x, dict):
        with pytest.raises(
            ShapeError, match=r"^x: the model does not run .* broken off; got \(1, 1"
        ):
            convfc.inspect(model, x)
    else:
        convfc.inspect(model, x)
    assert everything(model) == before


def test_an_input_that_does_not_fit_the_patch_form_is_explained() -> None:
    with pytest.raises(ShapeError, match=r"the input does not fit the layer"):
        convfc.inspect(convfc.to_fc(nn.Conv2d(1, 1, 1)), torch.zeros(1, 2, 4, 4))


def test_what_a_tool_has_put_into_the_patch_form_is_left_alone() -> None:
    class Unwatched(nn.Linear):
        def forward(self, x):
            assert not self._forward_hooks
            assert not self._forward_pre_hooks
            return super().forward(x)

    layer = PatchConv(nn.Conv2d(1, 2, 2))
    layer.fc = nn.Sequential(Unwatched(4, 1), nn.Linear(1, 2))
    (row,) = convfc.inspect(nn.Sequential(layer), torch.zeros(1, 1, 4, 4))
    assert (row.form, row.parameters, row.multiplications) == ("patch", 5 + 4, 9 * 4 * 2)


def test_the_users_hooks_see_and_change_what_they_always_do() -> None:
    layer = nn.Conv2d(1, 1, 2, padding=1, padding_mode="reflect")
    layer.register_forward_pre_hook(lambda module, given: (F.pad(given[0], [1, 1, 1, 1]),))
    layer.register_forward_hook(lambda module, given, output: output[..., :1])
    (row,) = convfc.inspect(layer, torch.zeros(1, 1, 4, 4))
    assert (row.input_size, row.output_size) == ((6, 6), (7, 7))
    assert row.geometry.padding_mode == "reflect"


def test_a_compiled_model_has_the_same_rows() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), Blur())
    x = torch.zeros(1, 1, 9, 9)
    compiled = convfc.inspect(torch.compile(model, backend="eager"), x)
    plain = [row.to_dict() | {"names": ""} for row in convfc.inspect(model, x)]
    assert [row.to_dict() | {"names": ""} for row in compiled] == plain
    assert [row.name for row in compiled][:1] == ["_orig_mod.0"]
