"""Units that are normalised together become more, if each gets equally many copies beside it."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from morphism_models import NETWORKS, assert_proven, example, trained
from networks import net
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune
from torch_fixtures import with_integers

from convfc.errors import ArgumentError, UnsupportedLayer
from convfc.frameworks.torch.morphism import widening
from convfc.methods.morphism import Morph, widen

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE = (2, 2, 6, 5)


def numbers(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=dtype)


class Residual(nn.Module):
    """A residual network with GroupNorm: before a sum and behind it, and one layer in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(2, 4)
        self.conv1 = nn.Conv2d(4, 6, 3, padding=1)
        self.norm1 = nn.GroupNorm(3, 6, affine=False)
        self.conv2 = nn.Conv2d(6, 4, 3, padding=1, groups=2)
        self.norm2 = nn.GroupNorm(4, 4, eps=0.1)
        self.last = nn.GroupNorm(1, 4, bias=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        y = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(self.norm2(self.conv2(y)) + x)
        y: Tensor = self.head(self.last(x).mean((2, 3)))
        return y


class Diffusion(nn.Module):
    """Blocks as diffusers writes them: the time added per channel, a skip that is concatenated.

    The first normalisation behind the concatenation has a group with channels of both parts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(2, 3, 3, padding=1)
        self.middle = nn.Conv2d(3, 5, 3, padding=1)
        self.norm1 = nn.GroupNorm(2, 8, eps=1e-6)
        self.conv1 = nn.Conv2d(8, 4, 3, padding=1)
        self.time = nn.Linear(3, 4)
        self.norm2 = nn.GroupNorm(2, 4, eps=1e-6)
        self.dropout = nn.Dropout(0.1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.shortcut = nn.Conv2d(8, 4, 1)
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        skip = self.down(x)
        x = torch.cat([skip, self.middle(functional.silu(skip))], dim=1)
        y = self.conv1(functional.silu(self.norm1(x)))
        y = y + self.time(functional.silu(time))[:, :, None, None]
        y = self.conv2(self.dropout(functional.silu(self.norm2(y))))
        y = functional.silu(functional.group_norm(self.shortcut(x) + y, 2))
        out: Tensor = self.out(y)
        return out


# Per network what it is given, and each layer with all whose units become more with its own.
NETS: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, set[str]]]] = {
    "residual": (
        Residual,
        numbers(*SHAPE),
        {"stem": {"stem", "conv2"}, "conv1": {"conv1"}, "conv2": {"stem", "conv2"}},
    ),
    "diffusion": (
        Diffusion,
        (numbers(*SHAPE), numbers(2, 3)),
        {
            "down": {"down", "middle"},
            "middle": {"down", "middle"},
            "conv1": {"conv1", "time"},
            "time": {"conv1", "time"},
            "conv2": {"conv2", "shortcut"},
        },
    ),
    "tokens": (NETWORKS["tokens"].make, example("tokens", torch.float64), {}),
}
NETS["tokens"][2].update({"embed": {"embed", "down"}, "down": {"embed", "down"}})
CASES = [(name, layer) for name, (_, _, layers) in NETS.items() for layer in layers]


def assert_rounded_alike(model: nn.Module, other: nn.Module, *args: Tensor) -> None:
    """Two networks of float64 are apart by what rounding does there: to float32 it is 2**29 more.

    For sums of other lengths and in another order, 32 times that is allowed.
    """
    with torch.no_grad():
        expected, found = model(*args), other(*args)
        rounded = copy.deepcopy(model).float()(*(one.float() for one in args))
    rounding = (rounded - expected).abs().max() * 2.0**-29
    assert 0 < rounding < 1e-12
    assert (found - expected).abs().max() <= 32 * rounding


def widths(model: nn.Module) -> dict[str, int]:
    return {
        name: len(part.weight)
        for name, part in model.named_modules()
        if isinstance(part, (nn.Conv2d, nn.Linear))
    }


@pytest.mark.parametrize("split", ["equal", "random"])
@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize(("name", "layer"), CASES)
def test_wider_networks_are_the_same_function(name: str, layer: str, factor: int, split: str):
    make, x, layers = NETS[name]
    model = trained(make()).double()
    morph = widen(model, layer, factor=factor, example=x, split=split)
    assert_proven(morph)
    before, after = widths(model), widths(morph.model)
    assert after == {n: w * (factor if n in layers[layer] else 1) for n, w in before.items()}
    for place, part in morph.model.named_modules():
        if isinstance(part, nn.GroupNorm):
            assert part.num_groups == model.get_submodule(place).num_groups
            assert part.weight is None or len(part.weight) == part.num_channels
    args = x if isinstance(x, tuple) else (x,)
    assert model(*args).std() > 0.01
    assert_rounded_alike(model, morph.model, *args)
    assert_rounded_alike(model, morph.model, *(2 * one for one in args))  # not the example


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_to_the_bit_on_integers_whose_square_root_is_one(groups: int, factor: int):
    """Values are 2 and -2, as often: the mean is 0 and the variance 4, however it is summed up."""
    model = nn.Sequential(
        *(nn.Conv1d(1, 4, 1, bias=False), nn.GroupNorm(groups, 4, eps=0.0)),
        *(nn.ReLU(), nn.Conv1d(4, 3, 1)),
    ).double()
    model = with_integers(model, multiple=6)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -1, 1, 1]).view(4, 1, 1))
    x = torch.tensor([[[2.0, -2, -2, 2]], [[-2, 2, -2, 2]]], dtype=torch.float64)
    morph = widen(model, "0", factor=factor, example=x)
    assert_proven(morph)
    expected = model(x)
    assert expected.unique().numel() > 2
    assert torch.equal(expected, expected.round())
    assert torch.equal(expected, morph.model(x))


def test_a_copy_stands_beside_its_unit():
    """As `repeat_interleave` writes it, and readers are divided by 2, which does not round."""
    model = trained(Residual()).double()
    new = widen(model, "conv1", factor=2, example=numbers(*SHAPE)).model.state_dict()
    expected = copy.deepcopy(model.state_dict())
    for name in ("conv1.weight", "conv1.bias"):
        expected[name] = expected[name].repeat_interleave(2, 0)
    expected["conv2.weight"] = expected["conv2.weight"].repeat_interleave(2, 1) / 2
    assert expected.keys() == new.keys()
    assert all(torch.equal(expected[name], new[name]) for name in expected)


def test_the_other_parts_of_a_concatenation_grow_by_the_same_factor():
    """Also of one that is called at two places, and of other concatenations of these parts."""
    layers = {"one": nn.Conv1d(1, 2, 1), "two": nn.Conv1d(1, 4, 1), "three": nn.Conv1d(1, 6, 1)}
    norms = {"first": nn.GroupNorm(3, 6), "second": nn.GroupNorm(1, 10)}
    heads = {"a": nn.Conv1d(6, 1, 1), "b": nn.Conv1d(10, 1, 1)}

    def wiring(m: Any, x: Tensor) -> Tensor:
        one, two, three = m.one(x), m.two(x), m.three(x)
        a = m.first(torch.cat([two, one], 1))
        return m.a(a) + m.b(m.second(torch.cat([three, two], 1)))

    model = trained(net(wiring, **layers, **norms, **heads)).double()
    for name in layers:
        morph = widen(model, name, factor=2, example=numbers(2, 1, 5))
        assert_proven(morph)
        assert [len(morph.model.get_submodule(n).weight) for n in layers] == [4, 8, 12]
        assert f"{name}: widened" in morph.what
        assert all(other in morph.what for other in layers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes(dtype: torch.dtype):
    model = trained(Residual()).to(dtype)
    morph = widen(model, "stem", factor=2, example=numbers(*SHAPE, dtype=dtype))
    assert morph.certificate.holds, str(morph.certificate)
    assert {p.dtype for p in morph.model.parameters()} == {dtype}


def test_noise_is_reported_here_too():
    morph = widen(chain(nn.GroupNorm(2, 4)), "0", factor=2, example=numbers(*SHAPE), noise=0.1)
    assert not morph.certificate.holds
    assert [layer.holds for layer in morph.certificate.layers] == [False, True, True]


def test_it_does_not_matter_which_of_two_that_are_added_is_beside_another():
    layers = {name: nn.Conv1d(1, 2, 1) for name in ("one", "two", "three")}
    more = {"norm": nn.GroupNorm(1, 4), "head": nn.Conv1d(4, 1, 1), "last": nn.Conv1d(2, 1, 1)}

    def wiring(m: Any, x: Tensor) -> Tensor:
        one = m.one(x)
        y = m.head(m.norm(torch.cat([one, m.two(x)], 1)))
        return y + m.last(m.three(x) + one)

    model = trained(net(wiring, **layers, **more)).double()
    for name in layers:
        morph = widen(model, name, factor=3, example=numbers(2, 1, 5))
        assert_proven(morph)
        assert [len(morph.model.get_submodule(n).weight) for n in layers] == [6, 6, 6]


# In which ways a normalisation is written


class Own(nn.GroupNorm):
    """A forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Like(nn.GroupNorm):
    """A subclass, and no more."""


class Mine(nn.Module):
    """Numbers of its own for a function."""

    def __init__(self, function: Callable[..., Tensor], *more: str) -> None:
        super().__init__()
        self.function = function
        self.names = ("gamma", "beta", *more)
        for name in self.names:
            setattr(self, name, nn.Parameter(torch.ones(4)))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *(getattr(self, name) for name in self.names))


SPELLINGS: dict[str, Callable[[], nn.Module]] = {
    "layer": lambda: nn.GroupNorm(2, 4),
    "own-forward": lambda: Own(2, 4),
    "subclass": lambda: Like(2, 4),
    "no-affine": lambda: nn.GroupNorm(2, 4, affine=False),
    "function": lambda: Mine(lambda x, w, b: functional.group_norm(x, 2, w, b, 0.5)),
    "torch": lambda: Mine(lambda x, w, b: torch.group_norm(x, 2, w, b)),
    "by-name": lambda: Mine(
        lambda x, w, b: functional.group_norm(weight=w, bias=b, input=x, num_groups=4)
    ),
    "instance": lambda: nn.InstanceNorm2d(4),
    "instance-affine": lambda: nn.InstanceNorm2d(4, affine=True),
    "instance-tracked": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
}


def chain(norm: nn.Module, seed: int = 0) -> nn.Module:
    """A CONV layer, a normalisation, and a reader."""
    model = nn.Sequential(nn.Conv2d(2, 4, 3), norm, nn.SiLU(), nn.Conv2d(4, 2, 3))
    return trained(model, seed).double()


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_followed(spelling: str):
    model, x = chain(SPELLINGS[spelling]()), numbers(*SHAPE)
    model[1].requires_grad_(False)
    morph = widen(model, "0", factor=3, example=x)
    assert_proven(morph)
    assert morph.changed == ("0", "1", "3")
    assert type(morph.model[1]) is type(model[1])
    assert_rounded_alike(model, morph.model, x)
    for name, parameter in morph.model[1].named_parameters():
        assert not parameter.requires_grad
        assert len(parameter) == 12
        assert set(parameter.tolist()) == set(getattr(model[1], name).tolist())


def test_the_bound_of_a_function_is_that_of_the_layer():
    x, found = numbers(*SHAPE), []
    for norm in (nn.GroupNorm(2, 4, eps=0.5), SPELLINGS["function"]()):
        layer = widen(chain(norm), "0", factor=2, example=x).certificate.layers[1]
        found.append((layer.own["output"].bound, layer.own["output"].terms, layer.exact.why_not))
    assert found[0] == found[1]
    assert found[0][0] > 0


@pytest.mark.parametrize("norm", ["instance", "instance-affine", "instance-tracked"])
def test_what_normalises_each_unit_by_itself_takes_any_width(norm: str):
    model = chain(SPELLINGS[norm]())
    for how in ("copy", "zero"):
        assert_proven(widen(model, "0", width=7, how=how, example=numbers(*SHAPE)))


def test_what_normalises_another_axis_leaves_units_to_themselves():
    model = nn.Sequential(nn.Conv1d(1, 4, 1), nn.LayerNorm(5), nn.Conv1d(4, 1, 1))
    assert_proven(widen(trained(model), "0", width=7, example=numbers(2, 1, 5).float()))


def test_an_instance_normalisation_without_a_batch_is_no_channels_first():
    model = nn.Sequential(nn.Conv1d(1, 4, 1), nn.InstanceNorm1d(4), nn.Conv1d(4, 1, 1))
    with pytest.raises(UnsupportedLayer, match=r"0: .* InstanceNorm1d at 1: it is not"):
        widen(model, "0", factor=2, example=numbers(1, 5).float())


@pytest.mark.parametrize("name", ["one", "two"])
def test_what_is_added_to_a_normalised_value_is_copied_as_evenly(name: str):
    """Whichever of the two is normalised, and before or behind the sum."""
    layers = {n: nn.Conv1d(1, 4, 1) for n in ("one", "two")}
    norm, head = nn.GroupNorm(2, 4), nn.Conv1d(4, 1, 1)
    wirings: list[Callable[[Any, Tensor], Tensor]] = [
        lambda m, x: m.head(m.norm(m.one(x)) + m.two(x)),
        lambda m, x: m.head(m.one(x) + m.norm(m.two(x))),
        lambda m, x: m.head(m.norm(m.one(x) + m.two(x))),
    ]
    for wiring in wirings:
        model, x = trained(net(wiring, **layers, norm=norm, head=head)), numbers(2, 1, 5).float()
        assert_proven(widen(model, name, width=8, example=x))
        with pytest.raises(ArgumentError, match=f"{name}, width: .* GroupNorm at norm"):
            widen(model, name, width=6, example=x)


def test_a_flattened_map_is_normalised_in_groups_of_whole_units():
    def flat(groups: int) -> nn.Module:
        layers = nn.Conv1d(1, 4, 1), nn.Flatten(), nn.GroupNorm(groups, 20), nn.Linear(20, 2)
        return trained(nn.Sequential(*layers)).double()

    for groups in (1, 2, 4):
        assert_proven(widen(flat(groups), "0", factor=2, example=numbers(2, 1, 5)))
    text = "0: .* GroupNorm at 2: its 10 groups do not divide them into whole units"
    with pytest.raises(UnsupportedLayer, match=text):
        widen(flat(10), "0", factor=2, example=numbers(2, 1, 5))


# What is refused


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"width": 6}, "0, width: .*; expected a multiple of 4; got 6"),
        ({"width": 5, "split": "random"}, "0, width: .*; expected a multiple of 4; got 5"),
        ({"factor": 1.5}, r"0, factor: .*; expected an integer; got 1\.5"),
        ({"factor": 2, "how": "zero"}, "0, how: .*; expected 'copy'; got 'zero'"),
    ],
    ids=str,
)
def test_copies_that_are_not_equally_many_are_refused(options: dict, text: str):
    model = chain(nn.GroupNorm(2, 4))
    with pytest.raises(ArgumentError, match=text) as refusal:
        widen(model, "0", example=numbers(*SHAPE), **options)
    message = str(refusal.value)
    assert "this does not fit GroupNorm at 1: it normalises over several of them" in message
    assert "Remedy: give an integer factor, such as factor=2" in message


def beside_input() -> nn.Module:
    layers = {"conv": nn.Conv2d(2, 4, 1), "norm": nn.GroupNorm(2, 6), "head": nn.Conv2d(6, 1, 1)}
    return net(lambda m, x: m.head(m.norm(torch.cat([m.conv(x), x], 1))), **layers)


def pruned(norm: nn.Module) -> nn.Module:
    model = chain(norm)
    prune.random_unstructured(model[1], "weight", 0.5)
    return model


def twice(norm: nn.Module) -> nn.Module:
    """One normalisation at two places: of what is given, and of units."""
    layers = {"conv": nn.Conv2d(2, 2, 1), "norm": norm, "head": nn.Conv2d(2, 1, 1)}
    return net(lambda m, x: m.head(m.norm(m.conv(m.norm(x)))), **layers)


def borrowed() -> nn.Module:
    layers = {"conv": nn.Conv2d(2, 4, 1), "norm": nn.GroupNorm(2, 4), "head": nn.Conv2d(4, 1, 1)}

    def wiring(m: Any, x: Tensor) -> Tensor:
        return m.head(functional.group_norm(m.conv(x), 2, m.norm.weight, m.norm.bias))

    return net(wiring, **layers)


def scaled(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return 2 * functional.group_norm(x, 2, weight, bias)


def unused(x: Tensor, weight: Tensor, bias: Tensor, other: Tensor) -> Tensor:
    return functional.group_norm(x, 2, weight, bias)


def counted(x: Tensor) -> Tensor:
    return functional.group_norm(x, x.shape[1] // 2)


class Reading(Mine):
    """A CONV layer of its own reads what is normalised."""

    def __init__(self) -> None:
        super().__init__(lambda x, w, b: functional.group_norm(x, 2, w, b))
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(super().forward(x))
        return y


class Taking(Mine):
    """It has numbers of its own, and takes another one's."""

    def __init__(self, other: Mine) -> None:
        super().__init__(lambda x, w, b: x)
        self.others = [other]

    def forward(self, x: Tensor) -> Tensor:
        return functional.group_norm(x, 2, self.others[0].gamma, self.others[0].beta)


def taking() -> nn.Module:
    other = Mine(lambda x, w, b: functional.group_norm(x, 2, w, b))
    return nn.Sequential(chain(other), nn.Conv2d(2, 4, 1), Taking(other), nn.Conv2d(4, 1, 1))


class Given(nn.Module):
    """The weight is given as an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.group_norm(x, 2, weight, self.beta)


def given() -> nn.Module:
    layers = {"conv": nn.Conv2d(2, 4, 1), "norm": Given(), "head": nn.Conv2d(4, 1, 1)}
    return net(lambda m, x: m.head(m.norm(m.conv(x), m.head.bias.expand(4))), **layers)


NOT_ALONE = r"group_norm\(\) at {}: its weight and bias .*Remedy: put an nn.GroupNorm there"
REFUSED: list[tuple[Callable[[], nn.Module], str, str]] = [
    (beside_input, "conv", r"conv: .* cat\(\) at .* beside values whose number cannot change"),
    (lambda: pruned(nn.GroupNorm(2, 4)), "0", "0: .* GroupNorm at 1: it is not a plain layer"),
    (lambda: pruned(nn.BatchNorm2d(4)), "0", "0: .* BatchNorm2d at 1: it is not a plain layer"),
    *(
        (
            partial(twice, norm),
            "conv",
            f"conv: .*{type(norm).__name__} at norm: the layer is called several times",
        )
        for norm in (nn.GroupNorm(1, 2), nn.BatchNorm2d(2))
    ),
    (borrowed, "conv", NOT_ALONE.format("the model's own forward")),
    (given, "conv", NOT_ALONE.format("norm")),
    (taking, "1", NOT_ALONE.format("2")),
    (lambda: chain(Reading()), "0", NOT_ALONE.format("1")),
    (lambda: chain(Mine(scaled)), "0", NOT_ALONE.format("1")),
    (lambda: chain(Mine(unused, "other")), "0", NOT_ALONE.format("1")),
    (lambda: chain(net(lambda m, x: counted(x))), "0", "0: its units cannot become more"),
    (lambda: chain(nn.RMSNorm(4)), "0", "0: .*RMSNorm at 1: it normalises over several"),
]


@pytest.mark.parametrize(("make", "name", "text"), REFUSED, ids=range(len(REFUSED)))
def test_normalisations_that_cannot_become_wider_are_refused(
    make: Callable[[], nn.Module], name: str, text: str
):
    shape = (2, 2, 6, 6)
    with pytest.raises(UnsupportedLayer, match=text):
        widen(make().double(), name, factor=2, example=numbers(*shape))


# A copy in another group


@pytest.mark.parametrize(("groups", "same"), [(1, True), (2, False), (4, False)])
def test_the_certificate_says_no_if_a_copy_stands_in_another_group(
    groups: int, same: bool, monkeypatch: pytest.MonkeyPatch
):
    """And with one group it does not matter."""
    real = widening.draw_copies
    options = {"factor": 2, "example": numbers(*SHAPE)}
    model = chain(nn.GroupNorm(groups, 4))

    def morphed() -> Morph:
        return widen(model, "0", **options)

    assert morphed().certificate.holds

    def behind(size: int, width: int, **how: Any) -> widening.Copies:
        made = real(size, width, **how)
        index = torch.arange(width) % size
        return widening.Copies(index, made.fresh, made.numerators, made.denominators)

    monkeypatch.setattr(widening, "draw_copies", behind)
    certificate = morphed().certificate
    assert certificate.holds is same
    layers = {layer.name: layer.holds for layer in certificate.layers}
    assert layers == {"0": True, "1": same, "3": True}
    assert certificate.network.holds is same
    if not same:
        assert re.match(r"1: output in float64 at \[", certificate.failures[0])
