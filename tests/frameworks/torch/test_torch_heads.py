"""FC heads as CONV layers, judged by the sliding window: the first network on every crop."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from conv_cases import integers
from networks import net
from torch import Tensor, fx, nn
from torch.nn import functional
from torch_fixtures import with_integers

import convfc
from convfc.errors import NothingToConvert, ShapeError, UnsupportedLayer, UnsupportedLayerWarning
from convfc.frameworks.torch import PatchConv

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
MAX_POOLS = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
ADAPTIVE = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}


def sequential(ndim: int, *, norm: bool = False) -> nn.Sequential:
    """Convolutions and a head of two layers: made for a size of 9 per axis, windows 2 apart."""
    return nn.Sequential(
        CONVS[ndim](2, 3, 2),
        nn.ReLU(),
        MAX_POOLS[ndim](2),
        nn.Flatten(),
        nn.Linear(3 * 4**ndim, 5),
        nn.BatchNorm1d(5) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(5, 4, bias=False),
    )


class LeNet(nn.Module):
    """A forward of its own; ``flatten`` is how it flattens. Made for 9, windows 2 apart."""

    def __init__(
        self, flatten: Callable[[Tensor], Tensor], features: int = 48, pool: Any = None
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 2)
        self.pool = nn.Identity() if pool is None else pool
        self.fc1, self.fc2 = nn.Linear(features, 5), nn.Linear(5, 4)
        self.drop = nn.Dropout()
        self.flatten = flatten

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(functional.max_pool2d(functional.relu(self.conv(x)), 2))
        x = self.flatten(x)
        return self.fc2(self.drop(torch.relu(self.fc1(x))))


FLATTENS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch.flatten": lambda x: torch.flatten(x, 1),
    "flatten": lambda x: x.flatten(start_dim=1),
    "view": lambda x: x.view(x.size(0), -1),
    "view-number": lambda x: x.view(-1, 48),
    "reshape-shape": lambda x: x.reshape(x.shape[0], 48),
    "torch.reshape": lambda x: torch.reshape(x, (x.size()[0], -1)),
    "channels-last": lambda x: x.permute(0, 2, 3, 1).reshape(x.size(0), -1),
    "width-first": lambda x: (y := x.permute((0, 3, 2, 1)).contiguous()).view(y.shape[0], -1),
    "transposed-twice": lambda x: x.transpose(1, 2).transpose(-1, 2).flatten(1),
    "twice": lambda x: x.flatten(2).flatten(1).view(x.size(0), -1),
}
POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "adaptive": lambda x: functional.adaptive_avg_pool2d(x, 1).flatten(1),
    "adaptive-max": lambda x: functional.adaptive_max_pool2d(x, (1, 1)).flatten(1),
    "mean": lambda x: x.mean((2, 3)),
    "mean-negative": lambda x: torch.mean(x, dim=(-1, -2)),
    "mean-keepdim": lambda x: x.mean((-1, -2), keepdim=True).flatten(1),
    "amax": lambda x: x.amax((2, 3)),
    "relu-between": lambda x: torch.relu(functional.adaptive_avg_pool2d(x, 1)).flatten(1),
    "squeeze": lambda x: functional.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1),
}
EVERYWHERE: dict[str, Callable[[Tensor], Tensor]] = {
    "hardtanh_": lambda x: functional.hardtanh_(x.flatten(1), -9.0, 9.0),
    "square": lambda x: x.flatten(1).square_(),
    "maximum": lambda x: torch.maximum(y := x.flatten(1), -y),
}


def crops(x: Tensor, size: int, step: int) -> Any:
    """Every position of the window, and the crop there."""
    counts = [(n - size) // step + 1 for n in x.shape[2:]]
    for position in itertools.product(*map(range, counts)):
        window = tuple(slice(i * step, i * step + size) for i in position)
        yield position, x[(..., *window)]


def assert_slides(before: nn.Module, after: nn.Module, x: Tensor, size: int, step: int) -> None:
    """On integers: at every position exactly what the first network gives on the crop there."""
    scores = after(x)
    assert scores.dim() == x.dim()
    seen = 0
    for position, crop in crops(x, size, step):
        assert torch.equal(scores[(..., *position)], before(crop))
        seen += 1
    assert seen == scores[0, 0].numel() > 1
    one = after(x[(..., *[slice(size)] * (x.dim() - 2))])
    assert one.shape[2:] == (1,) * (x.dim() - 2)


def slid(model: nn.Module, size: int = 9, step: int = 2, on: tuple[int, ...] = (13, 11)) -> Any:
    """Convert a model of two channels, made for a size, and see that it slides; return it."""
    after = convfc.to_fully_convolutional(with_integers(model), integers((1, 2, *[size] * len(on))))
    assert list(after.state_dict()) == list(model.state_dict())
    assert_slides(model, after, integers((2, 2, *on), seed=5), size, step)
    return after


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batchnorm"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_a_sequential_slides(ndim: int, norm: bool) -> None:
    model = sequential(ndim, norm=norm)
    after = slid(model, on=(13, 17, 11)[:ndim])
    assert type(after) is nn.Sequential
    conv = CONVS[ndim]
    assert [type(after[i]) for i in (3, 4, 8)] == [nn.Identity, conv, conv]
    assert after[4].kernel_size == (4,) * ndim
    assert after[8].kernel_size == (1,) * ndim
    for name, tensor in model.state_dict().items():
        assert torch.equal(after.state_dict()[name].reshape(tensor.shape), tensor)


@pytest.mark.parametrize(
    ("features", "how"),
    [(48, FLATTENS[how]) for how in FLATTENS]
    + [(48, EVERYWHERE[how]) for how in EVERYWHERE]
    + [(3, POOLINGS[how]) for how in POOLINGS],
    ids=[*FLATTENS, *EVERYWHERE, *POOLINGS],
)
def test_a_forward_that_flattens_becomes_a_graph_module(
    features: int, how: Callable[[Tensor], Tensor]
) -> None:
    model = LeNet(how, features)
    assert isinstance(slid(model), fx.GraphModule)
    assert type(model.fc1) is nn.Linear


def test_a_graph_module_can_be_copied_and_pickled() -> None:
    model = LeNet(FLATTENS["flatten"])
    after = slid(model)
    for copied in (copy.deepcopy(after), pickle.loads(pickle.dumps(after))):  # noqa: S301 (ours)
        assert_slides(model, copied, integers((2, 2, 11, 11), seed=6), 9, 2)


def test_a_forward_that_calls_flatten_modules_stays_what_it_is() -> None:
    after = slid(LeNet(nn.Flatten(), 12, nn.AdaptiveAvgPool2d((1, None))), on=(13, 17))
    assert type(after) is LeNet
    assert (type(after.flatten), type(after.pool)) == (nn.Identity, nn.AvgPool2d)
    assert (after.pool.kernel_size, after.pool.stride) == ((4, 1), (1, 1))


@pytest.mark.parametrize(
    ("pooled", "kernel", "stride", "ndim"),
    [(4, 1, 1, 2), (2, 2, 2, 1), (2, 2, 2, 3), (1, 4, 1, 2)],
    ids=["4to4", "4to2-1d", "4to2-3d", "4to1"],
)
def test_adaptive_pooling_keeps_its_windows(
    pooled: int, kernel: int, stride: int, ndim: int
) -> None:
    model = sequential(ndim)
    model.insert(3, ADAPTIVE[ndim](pooled))
    model[5] = nn.Linear(3 * pooled**ndim, 5)
    after = slid(model, step=2 * stride, on=(17, 13, 13)[:ndim])
    if kernel == 1:
        assert type(after[3]) is nn.Identity
    else:
        assert after[3].kernel_size == (kernel,) * ndim
        assert after[3].stride == (stride,) * ndim


def test_windows_of_unequal_size_are_refused() -> None:
    model = sequential(2)
    model.insert(3, nn.AdaptiveAvgPool2d(3))
    model[5] = nn.Linear(27, 5)
    with pytest.raises(
        UnsupportedLayer,
        match=r"^5: 3 \(AdaptiveAvgPool2d\) pools a map of \(4, 4\) into \(3, 3\).*multiple of",
    ):
        convfc.to_fully_convolutional(model, integers((1, 2, 9, 9), torch.float32))


@pytest.mark.parametrize(
    ("name", "channels", "size"), [("alexnet", 256, 6), ("vgg11_bn", 512, 7), ("resnet18", 512, 4)]
)
def test_torchvision_models_run_on_larger_images_and_their_heads_slide(
    name: str, channels: int, size: int
) -> None:
    with torch.device("meta"):
        model = getattr(torchvision.models, name)(num_classes=5).eval()
        after = convfc.to_fully_convolutional(model, torch.empty(1, 3, 224, 224))
        assert isinstance(after, fx.GraphModule)
        assert list(after.state_dict()) == list(model.state_dict())
        assert after(torch.empty(1, 3, 288, 256)).shape == (1, 5, 3, 2)
        for part, _ in list(model.named_children()):
            if part not in ("fc", "avgpool", "classifier"):
                setattr(model, part, nn.Identity())
        if name != "resnet18":  # thinner between the ends of the head
            positions = model.avgpool.output_size[0] ** 2
            sizes = [(channels * positions, 6), (6, 6), (6, 5)]
            linears = [i for i, part in enumerate(model.classifier) if isinstance(part, nn.Linear)]
            for place, pair in zip(linears, sizes, strict=True):
                model.classifier[place] = nn.Linear(*pair)
    with_integers(model.to_empty(device="cpu"))
    after = convfc.to_fully_convolutional(model, integers((1, channels, size, size)))
    assert_slides(model, after, integers((2, channels, size + 2, size + 1), seed=5), size, 1)


@pytest.mark.parametrize("dropout", [functional.dropout, torch.dropout], ids=["F", "torch"])
def test_functional_dropout_goes_on_asking_for_the_mode(dropout: Any) -> None:
    def run(model: Any, x: Tensor) -> Tensor:
        if model.training:
            x = x.contiguous()  # computes nothing: no other forward
        x = dropout(x.contiguous().flatten(1), 0.25, model.training)
        return dropout(model.fc(x), 1.0, False)

    model = net(run, fc=nn.Linear(2 * 16, 3)).train()
    after = convfc.to_fully_convolutional(model, torch.ones(1, 2, 4, 4))
    dropouts = [part for part in after.modules() if isinstance(part, nn.Dropout)]
    assert [(part.p, part.training) for part in dropouts] == [(0.25, True)]
    x = torch.ones(4, 2, 4, 4)
    assert not torch.equal(after(x), after(x))
    after.eval()
    assert torch.equal(after(x), after(x))
    assert torch.count_nonzero(after(x))  # the one that is off at all times is off


def test_a_part_that_asks_for_the_mode_is_called_as_it_is() -> None:
    noise = net(lambda m, x: x + torch.rand_like(x) if m.training else x)
    data = net(lambda m, x: x if float(x.detach().sum()) > 0 else -x)
    model = with_integers(LeNet(FLATTENS["flatten"], pool=nn.Sequential(noise, data)))
    after = convfc.to_fully_convolutional(model, integers((1, 2, 9, 9)))
    assert isinstance(after, fx.GraphModule)
    x = integers((2, 2, 9, 9), seed=5)
    assert torch.equal(after(x)[..., 0, 0], model(x))
    after.train()
    assert not torch.equal(after.pool(x), after.pool(x))


def test_softmax_runs_over_the_classes() -> None:
    last = {"module": nn.Softmax(dim=-1), "first": nn.LogSoftmax(dim=1)}
    for part in last.values():
        model = sequential(2).append(part).double().eval()
        after = convfc.to_fully_convolutional(model, integers((1, 2, 9, 9)))
        x = integers((1, 2, 13, 9), seed=5)
        for (i, j), crop in crops(x, 9, 2):
            torch.testing.assert_close(after(x)[..., i, j], model(crop))


def test_branches_that_join() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        a, b = m.a(x.flatten(1)), m.b(-x.reshape(x.size(0), -1))
        return m.c(torch.cat([a + b, 2 * a], dim=-1))

    model = net(run, a=nn.Linear(32, 3), b=nn.Linear(32, 3), c=nn.Linear(6, 2))
    slid(model, 4, 1, on=(6, 5))


def test_layers_in_another_form_stay_in_it() -> None:
    model = with_integers(sequential(2))
    x = integers((1, 2, 9, 9))
    half = convfc.to_fully_convolutional(convfc.to_fc(model), x)
    assert isinstance(half[0], PatchConv)
    assert type(half[4]) is nn.Conv2d
    assert_slides(model, half, integers((2, 2, 13, 17), seed=5), 9, 2)
    assert type(convfc.to_conv(half)[0]) is nn.Conv2d


@pytest.mark.parametrize("verb", [convfc.unroll, convfc.simplify])
def test_a_network_for_one_size_only_is_refused(verb: Any) -> None:
    x = torch.ones(1, 2, 9, 9)
    fixed = verb(sequential(2).eval(), x)
    with pytest.raises(UnsupportedLayer, match=r"inputs of one size only.*first, with convfc.to_c"):
        convfc.to_fully_convolutional(fixed, x)


def test_nothing_to_convert_is_an_error() -> None:
    x = torch.ones(1, 2, 4, 4)
    with pytest.raises(NothingToConvert, match=r"^model: the model has no nn\.Linear layer\. Rem"):
        convfc.to_fully_convolutional(convfc.to_fc(nn.Conv2d(2, 3, 3)), x)
    with pytest.raises(NothingToConvert, match=r"^where: .*expected at least one of 1; got fc\. R"):
        convfc.to_fully_convolutional(head(), x, where="fc")


def test_in_place_attributes_gradients_and_frozen_weights_are_kept() -> None:
    model = with_integers(sequential(2))
    model[4].note = "kept"
    model[8].weight.requires_grad_(False)
    model(integers((2, 2, 9, 9))).sum().backward()
    before, weight, bias = copy.deepcopy(model), model[4].weight, model[4].bias
    assert convfc.to_fully_convolutional(model, integers((1, 2, 9, 9)), inplace=True) is model
    assert model[4].weight.data_ptr() == weight.data_ptr()
    assert model[4].bias is bias
    assert (model[4].note, hasattr(model[4], "in_features")) == ("kept", False)
    assert torch.equal(model[4].weight.grad.flatten(1), weight.grad)
    assert (model[4].weight.requires_grad, model[8].weight.requires_grad) == (True, False)
    assert_slides(before, model, integers((2, 2, 13, 17), seed=5), 9, 2)


def test_the_given_model_and_its_hooks_do_not_notice() -> None:
    model = sequential(2, norm=True).train()
    model[1] = nn.Sequential(model[1])
    model[0].eval()
    calls = []
    model[1].register_forward_hook(lambda m, args, out: calls.append("inner"))
    model[0].register_forward_hook(lambda m, args, out: calls.append("hook"))
    model.register_forward_pre_hook(lambda m, args: calls.append("pre"))
    state = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    after = convfc.to_fully_convolutional(model, torch.ones(1, 2, 9, 9))
    assert not calls
    assert [part.training for part in model] == [part.training for part in after]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    after(torch.ones(2, 2, 11, 11))
    assert calls == ["pre", "hook", "inner"]


def test_a_maximum_over_the_channels_is_no_pooling() -> None:
    model = net(lambda m, x: m.fc(x.amax(1, keepdim=True).flatten(1)), fc=nn.Linear(16, 3))
    slid(model, 4, 1, on=(6, 5))


def test_a_module_with_another_task_as_well_keeps_it() -> None:
    def run(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return m.fc(m.flat(m.pool(x * m.pool(x)))), m.flat(x)

    model = net(run, pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(2, 3))
    after = convfc.to_fully_convolutional(with_integers(model), integers((1, 2, 4, 4)))
    assert list(after.state_dict()) == list(model.state_dict())
    x = integers((2, 2, 4, 4), seed=5)
    (scores, flat), (want, features) = after(x), model(x)
    assert torch.equal(scores[..., 0, 0], want)
    assert torch.equal(flat, features)
    assert after(integers((2, 2, 6, 5)))[0].shape == (2, 3, 3, 2)


@pytest.mark.parametrize("one", [True, False], ids=["layer", "weight"])
def test_what_is_shared_stays_shared(one: bool) -> None:
    a, b = nn.Linear(32, 3), nn.Linear(32, 3)
    b.weight = a.weight
    model = net(lambda m, x: (m.a(m.flat(x)), m.b(m.flat(-x))), a=a, b=a if one else b)
    model.flat = nn.Flatten()
    after = convfc.to_fully_convolutional(with_integers(model), integers((1, 2, 4, 4)))
    assert type(after) is type(model)
    assert (after.a is after.b) == one
    assert after.a.weight is after.b.weight
    x = integers((2, 2, 4, 4), seed=5)
    for got, want in zip(after(x), model(x), strict=True):
        assert torch.equal(got[..., 0, 0], want)


def attention() -> nn.Module:
    """Squeeze and excitation: scores that scale the map they come from, and a head."""

    def run(m: Any, x: Tensor) -> Tensor:
        scale = m.squeeze(x.mean((2, 3))).view(x.size(0), -1, 1, 1)
        return m.head((x * scale).flatten(1))

    return with_integers(net(run, squeeze=nn.Linear(2, 2), head=nn.Linear(32, 3)))


def run_permuted(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.permute(0, 2, 3, 1)
    return m.fc(x.flatten(1)), x


def of_fc(run: Callable[..., Any], *sizes: int) -> Callable[[], nn.Module]:
    return lambda: net(run, fc=nn.Linear(*sizes or (32, 3)))


def head(*parts: nn.Module, features: int = 32) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(features, 3), *parts)


def hooked(model: nn.Sequential, place: int) -> nn.Sequential:
    model[place].register_forward_hook(lambda m, args, out: out)
    return model


X = (1, 2, 4, 4)
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "tokens": (lambda: nn.Linear(4, 3), "^the model itself: .*not called on a flattened"),
    "layer-norm": (lambda: head(nn.LayerNorm(3)), r"^1: 2 \(LayerNorm\) in the same head"),
    "batch-norm": (
        lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(32), nn.Linear(32, 3)),
        r"1 \(BatchNorm1d\) in the same head does not do the same at every position",
    ),
    "softmax-0": (lambda: head(nn.Softmax(dim=0)), r"2 \(Softmax\) in the same head"),
    "prelu": (
        lambda: nn.Sequential(nn.Flatten(), nn.PReLU(32), nn.Linear(32, 3)),
        r"^2: 1 \(PReLU\) in the same head",
    ),
    "without-a-call": (
        of_fc(lambda m, x: m.fc(x.flatten(1)) + m.fc.weight.sum()),
        r"^fc: forward uses fc\.weight without a call",
    ),
    "elsewhere-too": (
        of_fc(lambda m, x: (m.fc(x.mean((2, 3))), m.fc(x[..., :2])), 2, 4),
        "^fc: fc is called on something else too",
    ),
    "training": (
        of_fc(lambda m, x: 2 * m.fc(x.flatten(1)) if m.training else m.fc(x.flatten(1))),
        "^fc: the forward of the model.*another way in training.*nn.Flatten",
    ),
    "training-argument": (  # a function, not a dropout, with an argument that follows the mode
        of_fc(lambda m, x: functional.rrelu(m.fc(x.flatten(1)), 0.5, 2.0, m.training)),
        r"^fc: the forward of .*another way in training",
    ),
    "permuted": (of_fc(run_permuted), "^fc: the call of permute is used elsewhere too"),
    "parameter": (  # along the last axis, which is the channels' no more
        of_fc(lambda m, x: m.fc(x.flatten(1)) + m.fc.bias),
        "^fc: the call of add in the same head",
    ),
    "unlike": (  # features of a whole map and of one position
        of_fc(lambda m, x: x.flatten(1) + m.fc(x.flatten(1)), 32, 32),
        "^fc: the call of add in the same head",
    ),
    "joined": (
        lambda: net(
            lambda m, x: m.norm(m.a(x.flatten(1)) + m.b((-x).flatten(1))),
            **{"a": nn.Linear(32, 3), "b": nn.Linear(32, 3), "norm": nn.LayerNorm(3)},
        ),
        r"^a: norm \(LayerNorm\) in the same head.*nor can b",
    ),
    "data": (
        of_fc(lambda m, x: m.fc(x.flatten(1)) if x.sum() > 0 else x),
        "^fc: torch.fx cannot trace the forward of the model.*by itself",
    ),
    "hook": (lambda: hooked(head(), 1), r"^1: hooks stand on .*handle\.remove"),
    "hook-flatten": (lambda: hooked(head(), 0), r"^1: hooks stand on 0 \(Flatten\)"),
    "hook-norm": (lambda: hooked(head(nn.BatchNorm1d(3)), 2), r"hooks stand on 2 \(BatchNorm1d"),
    "lazy": (lambda: head(nn.LazyLinear(3)), "^1: 2 has no size yet.*run the model once"),
    "parametrized": (
        lambda: head(nn.utils.parametrizations.orthogonal(nn.Linear(3, 3))),
        "^1: 2 is in the same head, and its weight is computed by a parametrization",
    ),
}


def test_scores_that_become_a_map_again_are_refused_and_the_head_is_not() -> None:
    model = attention()
    example = integers((1, 2, 4, 4))
    message = r"^squeeze: the call of mul in the same head does not do the same at every position"
    with pytest.raises(UnsupportedLayer, match=message):
        convfc.to_fully_convolutional(model, example)
    with pytest.warns(UnsupportedLayerWarning, match=r"left as they are: squeeze \(the call of"):
        after = convfc.to_fully_convolutional(model, example, strict=False)
    assert (type(after.squeeze), type(after.head)) == (nn.Linear, nn.Conv2d)
    x = integers((2, 2, 4, 4), seed=5)
    assert torch.equal(after(x)[..., 0, 0], model(x))


def test_where_takes_a_whole_head_or_nothing() -> None:
    model = sequential(2)
    example = torch.ones(1, 2, 9, 9)
    with pytest.raises(UnsupportedLayer, match=r"^4: where= leaves out 8, which is in the same"):
        convfc.to_fully_convolutional(model, example, where="4")
    after = convfc.to_fully_convolutional(attention(), integers(X), where="head")
    assert (type(after.squeeze), type(after.head)) == (nn.Linear, nn.Conv2d)


def test_a_weight_shared_with_a_layer_that_stays_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Flatten(), nn.Linear(32, 4), nn.ReLU())
    model[0].weight = nn.Parameter(torch.ones(4, 32))
    model[2].weight = model[0].weight
    model[0] = nn.Sequential(
        nn.Flatten(), model[0], nn.Unflatten(1, (2, 1, 2)), nn.Upsample((4, 4))
    )
    with pytest.raises(UnsupportedLayer, match=r"^2: the weight of 2 is that of 0\.1 too, which"):
        convfc.to_fully_convolutional(model, torch.ones(X), where="2")


def test_a_forward_cannot_change_in_place_nor_under_hooks() -> None:
    model = LeNet(FLATTENS["view"])
    example = torch.ones(1, 2, 9, 9)
    with pytest.raises(UnsupportedLayer, match=r"^fc1: the forward of the model \(LeNet\)"):
        convfc.to_fully_convolutional(model, example, inplace=True)
    model.conv.register_forward_hook(lambda m, args, out: out)  # goes on being called
    convfc.to_fully_convolutional(model, example)
    model.register_forward_hook(lambda m, args, out: out)
    with pytest.raises(UnsupportedLayer, match="hooks on it would not be called any more"):
        convfc.to_fully_convolutional(model, example)


@pytest.mark.parametrize("kind", REFUSED)
def test_heads_that_cannot_be_converted_are_refused_by_name(kind: str) -> None:
    make, message = REFUSED[kind]
    model, example = make().eval(), torch.ones(X)
    with pytest.raises(UnsupportedLayer, match=message):
        convfc.to_fully_convolutional(model, example)
    with pytest.warns(UnsupportedLayerWarning, match="left as they are"):
        after = convfc.to_fully_convolutional(model, example, strict=False)
    assert [type(part) for part in after.modules()] == [type(part) for part in model.modules()]


def test_an_example_is_an_array_or_the_arguments_of_one_call() -> None:
    model = net(
        lambda m, batch: m.fc(m.conv(batch["x"] * batch["scale"]).flatten(1)),
        **{"conv": nn.Conv2d(2, 3, 3), "fc": nn.Linear(12, 2)},
    )
    batch = {"scale": torch.full((1, 2, 4, 4), 3.0), "x": torch.ones(1, 2, 4, 4).numpy()}
    for example in ((batch,), {"batch": batch}):
        assert type(convfc.to_fully_convolutional(model, example).fc) is nn.Conv2d
    with pytest.raises(
        ShapeError, match=r"^example: the model does not run .* got \(1, 3, 5\)\."
    ) as e:
        convfc.to_fully_convolutional(head(), torch.ones(1, 3, 5))
    assert "While executing" not in str(e.value)
