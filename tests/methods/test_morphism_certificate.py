"""The certificate of a morph: holds for what is the same, and says no, and where, for all else."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from morphism_layers import numbers
from morphism_models import NETWORKS, example, mlp, trained
from torch import Tensor, nn

from convfc.certificate import Certificate
from convfc.frameworks.torch.morphism.certify import Change, finish
from convfc.frameworks.torch.morphism.magnitude import Sums, magnitude, sums_of
from convfc.measure import Call
from convfc.methods.morphism import widen
from convfc.rounding import UNIT_ROUNDOFF, gamma, rounding_bound

pytestmark = pytest.mark.usefixtures("one_thread")


def certified(before: nn.Module, after: nn.Module, x: Tensor, *changes: Change) -> Certificate:
    """The certificate of a morph of these changes."""
    return finish(before, after, x, changes, what="a test").certificate


def copied(before: nn.Module, after: nn.Module, *names: str) -> list[Change]:
    """Changes that copy layers, whatever ``after`` really is."""
    return [
        Change(name, before.get_submodule(name), after.get_submodule(name), copy.deepcopy)
        for name in names
    ]


def chain() -> nn.Module:
    """What the bound goes through: CONV layers, a normalisation, slopes."""
    return trained(
        nn.Sequential(
            *(nn.Conv1d(2, 6, 3, padding=1), nn.BatchNorm1d(6), nn.ReLU()),
            *(nn.Conv1d(6, 8, 3, groups=2), nn.PReLU(8), nn.ConvTranspose1d(8, 3, 4, stride=2)),
        )
    )


# It holds


def test_a_copy_is_the_same_function():
    before = chain()
    after, x = copy.deepcopy(before), numbers((2, 2, 7), 0).float()
    certificate = certified(before, after, x, *copied(before, after, "0", "1", "3", "4", "5"))
    assert certificate.holds, str(certificate)
    assert [layer.own["output"].difference for layer in certificate.layers] == [0.0] * 5
    assert [layer.exact.identical for layer in certificate.layers] == [True, None, True, True, True]
    assert certificate.layers[0].patch_matrix == (2, 7, 6)
    assert certificate.layers[0].filter_matrix == (6, 6)
    assert json.loads(json.dumps(certificate.to_dict()))["holds"] is True


def test_a_layer_that_is_called_twice_is_compared_twice():
    before = trained(NETWORKS["volume"].make())
    after = copy.deepcopy(before)
    changes = copied(before, after, "twice", "last")
    morph = finish(before, after, example("volume"), changes, what="a test")
    calls = [("twice", 0), ("twice", 1), ("last", 0)]
    assert [(one.name, one.call) for one in morph.certificate.layers] == calls
    assert morph.changed == ("twice", "last")


def test_both_run_in_evaluation_mode_and_the_certificate_says_so():
    before = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    before[0].eval()
    morph = widen(before, "0", width=6, example=torch.ones(3, 3))
    assert morph.certificate.holds
    assert "compared in evaluation mode; in training" in morph.certificate.notes[-1]
    assert [part.training for part in before] == [part.training for part in morph.model]
    assert [part.training for part in before] == [False, True, True, True]
    assert before[1].num_batches_tracked == 0
    silent = widen(before.eval(), "0", width=6, example=torch.ones(3, 3))
    assert silent.certificate.notes == ()


def test_the_matrices_are_those_of_the_whole_new_layer():
    """Also where a part of its output is compared."""
    before = trained(nn.Sequential(nn.Conv1d(2, 3, 3, padding=1), nn.Conv1d(3, 1, 1)))
    morph = widen(before, "0", width=4, how="zero", example=numbers((5, 2, 7), 0).float())
    layer, _ = morph.certificate.layers
    assert layer.holds
    assert (layer.patch_matrix, layer.filter_matrix) == ((5, 7, 6), (6, 4))


# It does not


def test_another_weight_is_seen_in_every_way():
    before = chain().double()
    after = copy.deepcopy(before)
    with torch.no_grad():
        after[0].weight[5, 1, 2] *= 1 + 2.0**-10
    change = Change("0", before[0], after[0], lambda _: copy.deepcopy(after[0]))
    certificate = certified(before, after, numbers((2, 2, 7), 0), change)
    assert not certificate.holds
    assert certificate.failures[0].startswith("0: output in float64 at [")
    assert not certificate.network.holds


def test_a_way_to_make_the_layer_that_is_wrong_is_seen_on_integers_and_in_float64():
    before = trained(mlp())
    after = copy.deepcopy(before)

    def wrong(layer: nn.Module) -> nn.Module:
        layer = copy.deepcopy(layer)
        with torch.no_grad():
            layer.weight[0] = layer.weight[1]
        return layer

    change = Change("0", before[0], after[0], rebuild=wrong)
    certificate = certified(before, after, example("mlp"), change)
    (layer,) = certificate.layers
    assert layer.own["output"].holds
    assert not layer.float64["output"].holds
    assert layer.exact.differing == ("output",)
    assert any(reason.startswith("network: output in float64") for reason in certificate.failures)


def test_integers_that_cannot_be_divided_are_no_test():
    before = trained(mlp())

    def halved(layer: nn.Module) -> nn.Module:
        layer = copy.deepcopy(layer)
        with torch.no_grad():
            layer.weight /= 3
        return layer

    after = copy.deepcopy(before)
    found = []
    for divides in (1, 3):
        one = Change("0", before[0], after[0], rebuild=halved, divides=divides)
        (layer,) = certified(before, after, example("mlp"), one).layers
        found.append(layer.exact)
    assert found[0].why_not == "its weights, made of integers, are no integers"
    assert found[1].differing == ("output",)


def test_spread_and_kept_parts_are_what_they_say():
    """Outputs that are spread otherwise, or of which another part is kept, are other outputs."""
    before = trained(mlp())
    morph = widen(before, "0", width=7, example=example("mlp"))
    other = Change(
        *("0", before[0], morph.model[0]),
        spread_output=lambda t: t[..., [0, 1, 2, 3, 4, 0, 0]],
        rebuild=copy.deepcopy,
    )
    certificate = certified(before, morph.model, example("mlp"), other)
    assert not certificate.layers[0].holds
    assert "its output; expected (3, 7)" in " ".join(certificate.failures)


def test_integers_whose_sums_may_be_rounded_are_no_test():
    """What a chain of layers makes of them is summed up: here 3 * 1 * 3 * 2."""
    layers = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 1, bias=False))
    for layer in layers:
        nn.init.constant_(layer.weight, -1.0)
    x = torch.tensor([[3.0, -3.0]])

    def nothing(layers: nn.Module) -> nn.Module:
        return copy.deepcopy(layers).apply(
            lambda part: part.weight.data.zero_() if isinstance(part, nn.Linear) else None
        )

    for limit in (17.0, 18.0):
        (sides,) = Change("", layers, layers, rebuild=nothing).on(Call(x))
        sides.sums(x / 8)  # those of other numbers say nothing of these
        made = sides.on_integers(lambda t: t.clone(), x, limit)
        assert (made is not None) is (limit == 18.0)
        assert sides.why_no_integers == ""


def test_everything_that_changed_is_a_change_or_an_error():
    before = trained(NETWORKS["unet"].make())
    after = copy.deepcopy(before)
    with torch.no_grad():
        after.last.bias += 1
        after.norm.running_mean[0] = 7
    x, names = example("unet"), ("first", "last", "norm")
    text = " ".join(certified(before, after, x, *copied(before, after, "first")).failures)
    assert "last.bias; expected the same bits, got others" in text
    assert "norm.running_mean; expected the same bits" in text
    assert certified(before, after, x, *copied(before, after, *names)).network.errors == ()


def test_a_change_that_is_not_called_proves_nothing():
    before = nn.Sequential(nn.Linear(2, 2))
    before[0].two = nn.Linear(2, 2)
    after = copy.deepcopy(before)
    changes = copied(before, after, "0", "0.two")
    assert certified(before, after, torch.ones(1, 2), *changes).failures == (
        "0.two: it is not called with a tensor; expected a call on this input, got none",
    )


def test_without_theory_there_is_no_proof():
    before = nn.Sequential(nn.Linear(2, 2), nn.Softmax(dim=1))
    after = copy.deepcopy(before)
    change = Change("1", before[1], after[1], rebuild=copy.deepcopy)
    certificate = certified(before, after, torch.ones(1, 2), change)
    assert "1: output; expected a rounding bound, got none in any dtype" in certificate.failures


def test_random_numbers_that_a_comparison_draws_are_not_missed_by_the_network():
    class Noisy(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = super().forward(x)
            return y + torch.randn_like(y)

    def drawing(layer: nn.Module) -> nn.Module:
        torch.randn(7)
        return copy.deepcopy(layer)

    before = trained(Noisy(nn.Linear(3, 4)))
    after = copy.deepcopy(before)
    change = Change("0", before[0], after[0], rebuild=drawing)
    state = torch.get_rng_state()
    certificate = certified(before, after, torch.ones(2, 3), change)
    assert certificate.network.outputs[0].difference == 0
    assert torch.equal(torch.get_rng_state(), state)


# The bound


@pytest.mark.parametrize("longer", ["before", "after"])
def test_the_bound_is_that_of_the_longer_and_larger_side(longer: str):
    """One layer against two, whose product it is; the moduli of the two are larger."""
    single = nn.Linear(2, 1, bias=False)
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
        second.weight.copy_(torch.tensor([[2.0, -1.0]]))
        single.weight.copy_(second.weight @ first.weight)  # (1, 3)
    two = nn.Sequential(first, second)
    x = torch.tensor([[1.0, 1.0]])
    sides = (two, single) if longer == "before" else (single, two)
    before, after = (nn.Sequential(side) for side in sides)
    change = Change("0", before[0], after[0], lambda _: copy.deepcopy(after[0]).double())
    (layer,) = certified(before, after, x, change).layers
    assert layer.own["output"].holds
    assert layer.own["output"].terms == 2 * (2 + 2)
    # |W2||W1||x| = 6, and |w||x| = 4.
    assert layer.own["output"].bound == rounding_bound(6.0, 8, "float32")


def test_the_terms_of_a_chain_add_up():
    """A layer counts its taps, its bias, and two more: weights that were made, results stored."""
    x = Sums(torch.ones(1, 2, 7))
    layers = [nn.Conv1d(2, 6, 3), nn.Conv1d(6, 8, 3, groups=2), nn.Conv1d(8, 1, 1, bias=False)]
    found = [magnitude(layer, Sums(torch.ones(1, layer.in_channels, 7))) for layer in layers]
    assert [sums.terms for sums in found] == [2 * 3 + 1 + 2, 3 * 3 + 1 + 2, 8 + 2]
    up = nn.ConvTranspose1d(6, 4, 3, groups=2, stride=2)  # two taps at most read one element
    assert magnitude(up, Sums(torch.ones(2, 6, 5))).terms == 3 * 2 + 1 + 2
    assert magnitude(nn.Linear(5, 3), Sums(torch.ones(5))).terms == 5 + 1 + 2
    whole = magnitude(nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.Dropout(), layers[2]), x)
    assert whole.terms == sum(sums.terms for sums in found)


def test_moduli_go_through_a_chain():
    first, second = nn.Linear(2, 2), nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 0.0]]))
        first.bias.copy_(torch.tensor([-1.0, 2.0]))
        second.weight.copy_(torch.tensor([[-2.0, 1.0]]))
    sums = magnitude(
        nn.Sequential(first, nn.PReLU(init=-3.0), second), Sums(torch.tensor([[1.0, 1.0]]))
    )
    # |W1||x| + |b1| = (4, 5), the slope makes them (12, 15), and |W2| of that is 39.
    assert sums.values.tolist() == [[39.0]]
    less = magnitude(nn.PReLU(init=0.25), Sums(torch.tensor([[4.0]])))  # makes nothing smaller
    assert (less.values.tolist(), less.terms) == ([[4.0]], 1)


@pytest.mark.parametrize(
    ("module", "known"),
    [
        (nn.Hardtanh(-1, 1), True),
        (nn.Hardtanh(1, 2), False),
        (nn.ZeroPad2d(1), True),
        (nn.BatchNorm2d(3), True),
        (nn.BatchNorm2d(3, track_running_stats=False), False),
        (nn.GroupNorm(1, 3), False),  # on moduli alone
        (nn.LayerNorm(4), False),
        (nn.InstanceNorm2d(3), False),
        (nn.InstanceNorm2d(3, track_running_stats=True), True),
        (nn.Softmax(dim=1), False),
        (nn.Sequential(nn.ReLU(), nn.Softmax(dim=1)), False),
    ],
    ids=str,
)
def test_what_theory_knows(module: nn.Module, known: bool):
    assert (magnitude(module, Sums(torch.ones(1, 3, 4, 4))) is not None) is known


def test_a_normalisation_on_moduli():
    norm = nn.BatchNorm1d(1, eps=0.0).eval()
    norm.running_mean.fill_(-2.0)
    norm.running_var.fill_(4.0)
    nn.init.constant_(norm.weight, -3.0)
    nn.init.constant_(norm.bias, -1.0)
    sums = magnitude(norm, Sums(torch.tensor([[4.0]])))
    assert sums.values.tolist() == [[(4 + 2) * 3 / 2 + 1]]


def test_a_normalisation_of_its_own_input():
    """Of 3 and 5 with weight -3 and bias -1: mean 4, mean square 17, variance 1, with eps 4."""
    norm = nn.GroupNorm(1, 2, eps=3.0)
    nn.init.constant_(norm.weight, -3.0)
    nn.init.constant_(norm.bias, -1.0)
    sums = magnitude(norm, sums_of(torch.tensor([[3.0, 5.0]])))
    assert sums.values.tolist() == [[2 * 3 / 2 * (m + 4 + 17 / 4) + 1 for m in (3, 5)]]
    assert sums.terms == 2 * 2 + 16
    for before in (nn.ReLU(), nn.Hardtanh(), nn.Linear(2, 2), nn.PReLU(), nn.Flatten()):
        assert magnitude(nn.Sequential(before, norm), sums_of(torch.ones(1, 2))) is None


NORMALISATIONS = {
    "group": nn.GroupNorm(2, 6),
    "one-group": nn.GroupNorm(1, 6, affine=False),
    "channels": nn.GroupNorm(6, 6, eps=0.1),
    "layer": nn.LayerNorm(7),
    "image": nn.LayerNorm((6, 7), bias=False),
    "instance": nn.InstanceNorm1d(6, affine=True),
}


def normalised_rows(norm: nn.Module, x: Tensor) -> Tensor:
    """The numbers that are normalised together, on the last axis."""
    if isinstance(norm, nn.LayerNorm):
        return x.flatten(-len(norm.normalized_shape))
    return x.unflatten(1, (getattr(norm, "num_groups", 6), -1)).flatten(2)


def textbook(norm: nn.Module, x: Tensor) -> Tensor:
    """A normalisation as the worst one writes it: its variance is a difference of two means."""
    rows = normalised_rows(norm, x)
    mean, square = (sum(r.unbind(-1)) / r.shape[-1] for r in (rows, rows * rows))
    scale = 1 / (square - mean * mean + norm.eps).sqrt()
    y = ((rows - mean[..., None]) * scale[..., None]).view(x.shape)
    behind = 0 if isinstance(norm, nn.LayerNorm) else x.dim() - 2
    for parameter, combine in ((norm.weight, Tensor.mul), (norm.bias, Tensor.add)):
        if parameter is not None:
            y = combine(y, parameter.view(*parameter.shape, *[1] * behind))
    return y


@pytest.mark.parametrize("name", NORMALISATIONS)
@given(
    seed=st.integers(0, 2**20),
    scale=st.sampled_from([0.01, 1.0, 100.0]),
    shift=st.sampled_from([0.0, 1.0, 30.0]),
)
def test_rounding_stays_within_the_bound_of_a_normalisation(
    name: str, seed: int, scale: float, shift: float
):
    """PyTorch's own, and the textbook's: float32 against float64."""
    norm = trained(copy.deepcopy(NORMALISATIONS[name]), seed)
    x = (scale * (numbers((2, 6, 7), seed) + shift)).float()
    sums = magnitude(norm, sums_of(x))
    exact = copy.deepcopy(norm).double()(x.double())
    factor = gamma(sums.terms, UNIT_ROUNDOFF["float32"]) * (1 + 2.0**-20)
    rows = normalised_rows(norm, x.double())
    v = rows.var(-1, correction=0) + norm.eps
    assume(bool((4 * factor * rows.square().mean(-1) < v).all()))
    for found in (norm(x), textbook(norm, x)):
        assert ((found - exact).abs() <= factor * sums.values).all()
    assert (exact.abs() <= sums.values).all()


@given(seed=st.integers(0, 2**20), scale=st.sampled_from([0.01, 1.0, 100.0]))
def test_rounding_stays_within_the_bound_of_a_chain(seed: int, scale: float):
    """float32 against float64, whose own rounding is smaller by 2**29."""
    chain_ = trained(chain(), seed)
    x = (scale * numbers((2, 2, 7), seed)).float()
    sums = magnitude(chain_, Sums(x.abs()))
    exact = copy.deepcopy(chain_).double()(x.double())
    bound = gamma(sums.terms, UNIT_ROUNDOFF["float32"]) * (1 + 2.0**-20) * sums.values
    assert ((chain_(x) - exact).abs() <= bound).all()
    assert (exact.abs() <= sums.values).all()
