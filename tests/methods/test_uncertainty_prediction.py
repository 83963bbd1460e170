"""Predictions of many draws against SciPy; scores against scikit-learn and torchmetrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import special, stats
from sklearn import metrics
from torch import Tensor, nn

from convfc.errors import ArgumentError, NothingToConvert, ShapeError
from convfc.methods import uncertainty
from convfc.methods.uncertainty.prediction import Prediction

pytestmark = pytest.mark.usefixtures("one_thread", "seed_zero")
U = 2.0**-53


def network(per: str = "call", method: Any = "gaussian") -> nn.Module:
    cnn = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)
    )
    options = {"initial_std": 0.3} if method == "gaussian" else {"rate": 0.3}
    return uncertainty.to_bayesian(cnn, method, per=per, **options)


def images(count: int = 7) -> Tensor:
    return torch.randn(count, 1, 8, 8)


def same(one: Prediction, other: Prediction) -> bool:
    return all(
        torch.equal(getattr(one, name), getattr(other, name))
        for name in ("mean", "predictive_entropy", "expected_entropy", "mutual_information")
    )


def test_the_measures_against_scipy():
    found = uncertainty.predict(network(), images(), 20, keep=True)
    assert found.draws.shape == (20, 7, 3)
    p = special.softmax(found.draws.double().numpy(), axis=-1)
    mean = p.mean(axis=0)
    expected = stats.entropy(p, axis=-1).mean(axis=0)
    # A softmax and an entropy of three classes, and a mean of twenty: some tens of roundings of
    # numbers below 2.
    bound = 200 * U
    assert np.abs(found.mean.numpy() - mean).max() <= bound
    assert np.abs(found.predictive_entropy.numpy() - stats.entropy(mean, axis=-1)).max() <= bound
    assert np.abs(found.expected_entropy.numpy() - expected).max() <= bound
    mutual = stats.entropy(mean, axis=-1) - expected
    assert np.abs(found.mutual_information.numpy() - mutual).max() <= 2 * bound
    assert mutual.min() > 1e-3, "the draws must disagree, or nothing was tested"
    assert torch.equal(found.label, torch.tensor(mean.argmax(axis=1)))


def test_uncertainties_add_up_and_none_is_negative():
    found = uncertainty.predict(network("patch"), images(40), 5)
    assert torch.equal(found.predictive_entropy - found.expected_entropy, found.mutual_information)
    assert found.mutual_information.min() >= 0
    assert found.predictive_entropy.max() <= np.log(3) * (1 + 4 * U)
    # Draws that hardly differ: the entropy of their mean, rounded, may be the smaller one.
    quiet = network().double()
    with torch.no_grad():
        for part in quiet.modules():
            if isinstance(part, uncertainty.GaussianLinear):
                part.weight_rho.fill_(-22.0)
                part.bias_rho.fill_(-22.0)
    calm = uncertainty.predict(quiet, images(200).double(), 20)
    assert 0 <= calm.mutual_information.min() <= calm.mutual_information.max() < 1e-12
    alone = uncertainty.predict(network(), images(), 1)
    assert alone.mutual_information.abs().max() == 0


def test_weights_drawn_per_call_are_one_network_for_all_images():
    """Whatever the batch size: each draw is the network that a seed stands for."""
    model, x = network("call").double(), images(10).double()
    many = uncertainty.predict(model, x, 4, seed=3, keep=True, batch_size=256)
    few = uncertainty.predict(model, x, 4, seed=3, keep=True, batch_size=3)
    cnn = uncertainty.sample(model.eval(), seed=5)  # the third draw
    for draws in (many.draws, few.draws):
        # Products of other sizes may be added in another order: at most 144 + 9 terms of B.
        magnitude = cnn[4].weight.detach().abs().sum(1).max().item() * 40
        assert (draws[2] - cnn(x)).abs().max() <= 2 * 153 * U * magnitude
    assert (many.draws[0] - many.draws[1]).abs().max() > 0.01


def test_seeds_repeat_and_states_are_put_back():
    model = network("patch", "dropout").train()
    model[1].eval()
    statistics = model[1].running_mean.clone()
    state = torch.get_rng_state()
    one, again = (uncertainty.predict(model, images_fixed(), 5, seed=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert same(one, again)
    assert not same(one, uncertainty.predict(model, images_fixed(), 5, seed=2))
    assert torch.equal(model[1].running_mean, statistics), "BatchNorm must not learn"
    assert model.training
    assert not model[1].training


def images_fixed() -> Tensor:
    return torch.linspace(-1, 1, 3 * 64).reshape(3, 1, 8, 8)


def test_a_native_dropout_network_is_drawn_too_and_a_fixed_one_is_refused():
    native = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 20), nn.Dropout(0.5), nn.Linear(20, 3)
    ).eval()
    assert uncertainty.predict(native, images(), 10).mutual_information.min() > 0
    native[2].p = 0.0
    with pytest.raises(NothingToConvert, match=r"two draws are the same: nothing in the network is "
                       r"random.*to_bayesian"):  # fmt: skip
        uncertainty.predict(native, images(), 10)
    assert uncertainty.predict(native, images(), 1).samples == 1
    assert not native[2].training


class As(nn.Module):
    """The same network, with what it returns in another form."""

    def __init__(self, model: nn.Module, change: Any) -> None:
        super().__init__()
        self.model, self.change = model, change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.model(x))


class Recurrent(nn.Module):
    """Dropout between two recurrent layers, inside PyTorch's module."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.LSTM(64, 8, 2, dropout=0.5), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(x.flatten(1))[0])


def test_dropout_inside_pytorchs_own_layers_draws():
    """In evaluation mode an encoder layer takes another way, past its dropout."""
    encoder = nn.TransformerEncoderLayer(64, 2, 8, dropout=0.5, batch_first=True)
    attention = nn.Sequential(
        nn.Flatten(2), nn.TransformerEncoder(encoder, 2, enable_nested_tensor=False),
        nn.Flatten(), nn.Linear(64, 3),
    )  # fmt: skip
    for model in (attention, Recurrent()):
        found = uncertainty.predict(model.eval(), images(), 10)
        assert found.mutual_information.min() > 400 * U, "more than rounding"
    # Nothing known to draw is there: said after two draws, not after all.
    seen: list[int] = []
    with pytest.raises(NothingToConvert, match=r"functional.dropout draws with training=True"):
        uncertainty.predict(
            nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), images(), 50,
            progress=lambda done, *_: seen.append(done),
        )  # fmt: skip
    assert seen == [1]


def test_two_equal_draws_do_not_make_a_random_network_a_fixed_one():
    """One unit dropped in a hundred: most draws of one image are the network itself."""
    model = nn.Sequential(nn.Flatten(), nn.Dropout1d(0.01), nn.Linear(64, 3))
    found = uncertainty.predict(model, images(1), 400, keep=True)
    assert torch.equal(found.draws[0], found.draws[1])
    assert found.mutual_information.min() > 0


def test_probabilities_and_their_logarithms_as_outputs():
    model, x = network().double(), images().double()
    found = uncertainty.predict(model, x, 5)
    for output, change in (
        ("probabilities", lambda y: y.softmax(1)),
        ("log_probabilities", lambda y: y.log_softmax(1)),
    ):
        other = uncertainty.predict(As(model, change), x, 5, output=output)
        assert (found.mean - other.mean).abs().max() <= 100 * U
    sure = uncertainty.predict(
        As(model, lambda y: nn.functional.one_hot(y.argmax(1), 3).double()), x, 5,
        output="probabilities",
    )  # fmt: skip
    assert sure.expected_entropy.abs().max() == 0


def test_progress_is_told_of_every_draw(capsys: pytest.CaptureFixture[str]):
    seen: list[tuple[int, int, str]] = []
    uncertainty.predict(network(), images(), 3, progress=lambda *told: seen.append(told))
    assert seen == [(1, 3, "batch 1"), (2, 3, "batch 1"), (3, 3, "batch 1")]
    uncertainty.predict(network(), images(), 2, progress=True)
    assert "Error" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda y: y, r"numbers from -[\d.]+ to [\d.]+, with sums from"),
        (
            lambda y: y.sigmoid(),
            r"numbers from 0\.\d+ to [\d.]+, with sums from [\d.]+ to [\d.]+\.",
        ),
    ],
    ids=["logits", "several labels"],
)
def test_probabilities_that_are_none_are_refused(change: Callable[[Tensor], Tensor], got: str):
    with pytest.raises(ArgumentError, match=r"^output: the network does not .*got " + got):
        uncertainty.predict(As(network(), change), images(), 2, output="probabilities")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_probabilities_may_be_rounded(dtype: torch.dtype):
    rounded = As(network(), lambda y: y.softmax(1).to(dtype))
    found = uncertainty.predict(rounded, images(), 2, output="probabilities")
    assert (found.mean.sum(dim=1) - 1).abs().max() <= 4 * U


def test_refusals_of_predict():
    model = network()
    takes = (
        r"x: the model does not run on this input: .*; got \(7, 9\)\. Remedy: give an input that"
    )
    with pytest.raises(ShapeError, match=takes):
        uncertainty.predict(nn.Sequential(nn.Dropout(), nn.Linear(4, 3)), torch.zeros(7, 9))
    with pytest.raises(ShapeError, match=r"x: no images; expected \(n, \.\.\.\) with n >= 1"):
        uncertainty.predict(model, images(0))
    with pytest.raises(ArgumentError, match=r"batch_size: a size is too small; expected 1 or more"):
        uncertainty.predict(model, images(), batch_size=0)
    wrong = [
        (lambda y: y[:, 0], r"shape \(7, C\) or \(7, C, \*spatial\); got \(7,\). Remedy: wrap it"),
        (lambda y: y[:3], r"got \(3, 3\)"),
        (lambda y: (y, y), r"got tuple of \(7, 3\), \(7, 3\).*y: y\[0\]\).*output=\"values\""),
        (lambda y: {"out": y}, r"got dict of out.*register_forward_hook\(.*y: y\['out'\]\)$"),
        (lambda y: [], r"got list\. "),
        (lambda y: "text", r"got str\. "),
    ]
    for change, text in wrong:
        with pytest.raises(ShapeError, match=r"As: the network does not return one row of classes "
                           r"per image; .*" + text):  # fmt: skip
            uncertainty.predict(As(model, change), images())
    assert all(part.training for part in model.modules()), "modes are put back after an error"


# Outputs per pixel.


def segmenting(per: str = "patch") -> nn.Module:
    """From images (n, 1, 8, 8) to logits (n, 3, 8, 8)."""
    cnn = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.ConvTranspose2d(4, 3, 2, stride=2)
    )
    return uncertainty.to_bayesian(cnn, "gaussian", initial_std=0.3, per=per)


def test_a_map_of_classes_has_the_measures_of_its_pixels_against_scipy():
    found = uncertainty.predict(segmenting(), images(), 20, keep=True)
    assert found.draws.shape == (20, 7, 3, 8, 8)
    p = special.softmax(found.draws.double().numpy(), axis=2)
    mean, expected = p.mean(axis=0), stats.entropy(p, axis=2).mean(axis=0)
    bound = 200 * U  # as for images
    assert found.mean.shape == (7, 3, 8, 8)
    assert np.abs(found.mean.numpy() - mean).max() <= bound
    predictive = stats.entropy(mean, axis=1)
    assert np.abs(found.predictive_entropy.numpy() - predictive).max() <= bound
    assert np.abs(found.expected_entropy.numpy() - expected).max() <= bound
    assert np.abs(found.mutual_information.numpy() - (predictive - expected)).max() <= 2 * bound
    assert (predictive - expected).min() > 1e-4
    assert torch.equal(found.label, torch.tensor(mean.argmax(axis=1)))
    assert found.label.shape == (7, 8, 8)


@pytest.mark.parametrize("axes", [(), (5,), (2, 3), (2, 3, 2)], ids=str)
def test_draws_of_other_libraries_are_the_same_whatever_the_axes(axes: tuple[int, ...]):
    """Quarters: every mean of four draws is exact, and pixels do not see each other."""
    quarters = torch.tensor([[4, 0, 0], [2, 1, 1], [2, 2, 0], [1, 2, 1]], dtype=torch.float64) / 4
    chosen = torch.randint(0, 4, (4, 6, *axes))
    p = quarters[chosen].movedim(-1, 2)
    found = Prediction.of(p, p)
    assert torch.equal(found.mean, p.mean(dim=0))
    assert found.mean.shape == (6, 3, *axes)
    flat = Prediction.of(p.movedim(2, -1).reshape(4, -1, 3))
    for name in ("predictive_entropy", "expected_entropy", "mutual_information"):
        assert torch.equal(getattr(found, name).flatten(), getattr(flat, name))
    assert torch.equal(found.label.flatten(), flat.label)
    assert found.draws is p


def test_refusals_of_maps():
    model = segmenting()
    for one, other in (("logits", "zeros_like"), ("probabilities", "1 - y")):
        with pytest.raises(ShapeError, match=rf"output of As: one class alone has probability 1.*"
                           rf"got \(7, 1, 8, 8\).*{other}"):  # fmt: skip
            uncertainty.predict(As(model, lambda y: y[:, :1]), images(), output=one)
    for shape in ((4, 3), (0, 4, 3)):
        with pytest.raises(ShapeError, match=r"probabilities: not the probabilities of draws"):
            Prediction.of(torch.ones(shape))
    with pytest.raises(ShapeError, match=r"probabilities: one class alone"):
        Prediction.of(torch.ones(4, 3, 1))
    sizes = [images(), images()[..., :6]]
    with pytest.raises(ShapeError, match=r"x: the network returns maps of several sizes.*"
                       r"expected \(3, 8, 8\); got \(3, 8, 6\).*for each size"):  # fmt: skip
        uncertainty.predict(model, sizes, 2)


def test_one_number_per_pixel_is_two_classes_as_the_message_says():
    """torch.sigmoid of one logit is softmax of it beside a zero."""
    model, x = As(segmenting().double(), lambda y: y[:, :1]), images().double()
    with_zero = As(model, lambda y: torch.cat([torch.zeros_like(y), y], dim=1))
    found = uncertainty.predict(with_zero, x, 6, keep=True)
    theirs = found.draws[:, :, 1].sigmoid().mean(dim=0)
    assert (found.mean[:, 1] - theirs).abs().max() <= 20 * U


@st.composite
def predictions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    count, classes = draw(st.integers(2, 40)), draw(st.integers(2, 6))
    scores = draw(arrays.arrays(np.float64, (count, classes), elements=st.floats(-8, 8, width=16)))
    labels = draw(arrays.arrays(np.int64, count, elements=st.integers(0, classes - 1)))
    return special.softmax(scores, axis=1), labels


@settings(max_examples=20)
@given(predictions())
def test_scores_against_scikit_learn(found: tuple[np.ndarray, np.ndarray]):
    p, labels = found
    classes = list(range(p.shape[1]))
    assert uncertainty.accuracy(p, labels) == metrics.accuracy_score(labels, p.argmax(axis=1))
    bound = 10 * len(p) * U
    ours = uncertainty.negative_log_likelihood(p, labels)
    assert abs(ours - metrics.log_loss(labels, p, labels=classes)) <= bound * (1 + ours)
    # scikit-learn halves the score of two classes.
    theirs = metrics.brier_score_loss(labels, p, labels=classes, scale_by_half=False)
    assert abs(uncertainty.brier_score(p, labels) - theirs) <= bound


@settings(max_examples=20)
@given(predictions(), st.integers(1, 20))
def test_calibration_against_torchmetrics(found: tuple[np.ndarray, np.ndarray], bins: int):
    p, labels = found
    ours = uncertainty.calibration(p, labels, bins)
    confidence = p.max(axis=1)
    edges = np.linspace(0, 1, bins + 1)
    # float32 may put what is at an edge on its other side.
    if np.abs(confidence[:, None] - edges).min() > 1e-6:
        judge = torchmetrics.classification.MulticlassCalibrationError(p.shape[1], n_bins=bins)
        theirs = float(judge(torch.tensor(p), torch.tensor(labels)))
        assert abs(ours.ece - theirs) <= len(p) * 2.0**-22
    assert ours.counts.sum() == len(p)
    filled = ours.counts > 0
    assert np.isnan(ours.accuracy[~filled]).all()
    right = (ours.accuracy[filled] * ours.counts[filled]).sum()
    assert round(right) == (p.argmax(axis=1) == labels).sum()
    assert (ours.confidence[filled] >= ours.edges[:-1][filled] - U).all()
    assert (ours.confidence[filled] <= ours.edges[1:][filled] + U).all()


@settings(max_examples=20)
@given(st.data(), st.sampled_from([(3,), (2, 3), (1, 2, 2)]))
def test_scores_of_maps_against_torchmetrics_and_pytorch(data: Any, axes: tuple[int, ...]):
    """Every pixel counts once, as torchmetrics counts axes behind the classes."""
    count, classes = data.draw(st.integers(1, 4)), data.draw(st.integers(2, 5))
    shape = (count, classes, *axes)
    scores = data.draw(arrays.arrays(np.float64, shape, elements=st.floats(-8, 8, width=16)))
    y = data.draw(arrays.arrays(np.int64, (count, *axes), elements=st.integers(0, classes - 1)))
    p = torch.tensor(scores).softmax(dim=1)
    labels = torch.tensor(y)
    pixels = labels.numel()
    micro = torchmetrics.classification.MulticlassAccuracy(classes, average="micro")
    assert round(uncertainty.accuracy(p, labels) * pixels) == round(
        float(micro(p.argmax(dim=1), labels)) * pixels
    )
    bound = 10 * pixels * U
    ours = uncertainty.negative_log_likelihood(p, labels)
    assert abs(ours - float(nn.functional.nll_loss(p.log(), labels))) <= bound * (1 + ours)
    truth = nn.functional.one_hot(labels, classes).movedim(-1, 1)
    theirs = float((p - truth).square().sum(dim=1).mean())
    assert abs(uncertainty.brier_score(p, labels) - theirs) <= bound
    found = uncertainty.calibration(p, labels, 10)
    assert found.counts.sum() == pixels
    if np.abs(p.amax(dim=1).numpy()[..., None] - found.edges).min() > 1e-6:
        judge = torchmetrics.classification.MulticlassCalibrationError(classes, n_bins=10)
        assert abs(found.ece - float(judge(p, labels))) <= pixels * 2.0**-22


FEW = st.lists(st.integers(0, 5), min_size=1, max_size=30)


@settings(max_examples=20)
@given(FEW, FEW)
def test_auroc_against_scikit_learn(inside: list[int], outside: list[int]):
    truth = [0] * len(inside) + [1] * len(outside)
    theirs = metrics.roc_auc_score(truth, inside + outside)
    ours = uncertainty.out_of_distribution_auroc(inside, outside)
    assert abs(ours - theirs) <= 64 * U


def test_a_true_class_of_probability_zero_is_infinitely_wrong():
    assert uncertainty.negative_log_likelihood([[1.0, 0.0]], [1]) == np.inf


@pytest.mark.parametrize(
    ("p", "labels", "text"),
    [
        (
            [0.5, 0.5],
            [0],
            r"do not fit each other; expected \(n, C\) and \(n,\), or .*; got \(2,\)",
        ),
        ([[0.5, 0.5]], [0, 1], r"got \(1, 2\) and \(2,\)"),
        ([[0.5, 0.5]], [2], r"labels: labels are not class numbers; .*from 0 to 1; got int64"),
        ([[0.5, 0.5]], [0.0], r"got float64"),
        ([[3.0, -1.0]], [0], r"probabilities: rows are not probabilities; .*apply softmax first"),
    ],
)
def test_refusals_of_scores(p: Any, labels: Any, text: str):
    for score in (uncertainty.accuracy, uncertainty.negative_log_likelihood,
                  uncertainty.brier_score, uncertainty.calibration):  # fmt: skip
        with pytest.raises(ShapeError, match=text):
            score(p, labels)


def test_pixels_without_a_class_are_left_out_as_the_message_says():
    p = torch.rand(2, 3, 4, 4, dtype=torch.float64).softmax(dim=1)
    labels = torch.randint(0, 3, (2, 4, 4))
    labels[:, :2] = 255
    with pytest.raises(ShapeError, match=r"from 0 to 255.*probabilities.movedim\(1, -1\)\[mask\]"):
        uncertainty.accuracy(p, labels)
    mask = labels != 255
    ours = uncertainty.negative_log_likelihood(p.movedim(1, -1)[mask], labels[mask])
    theirs = nn.functional.nll_loss(p.log(), labels, ignore_index=255).item()
    assert abs(ours - theirs) <= 32 * U * theirs
    with pytest.raises(ShapeError, match=r"got \(2, 3, 4, 4\) and \(2, 4\)"):
        uncertainty.accuracy(p, labels[..., 0])


def test_auroc_takes_vectors():
    with pytest.raises(ShapeError, match=r"inside: not a vector.*map.flatten\(1\).mean\(dim=1\)"):
        uncertainty.out_of_distribution_auroc(torch.rand(2, 4, 4), [0.1])
    with pytest.raises(ShapeError, match=r"outside: not a vector of scores; got \(0,\)"):
        uncertainty.out_of_distribution_auroc([0.1], [])


def test_the_reliability_diagram_draws_what_was_counted():
    found = uncertainty.calibration([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]], [0, 1, 1], bins=10)
    figure = uncertainty.reliability_figure({"one": found, "two": found})
    above, _, below, _ = figure.axes
    bars = [bar for bar in above.patches if bar.get_hatch() is None]
    assert [(round(bar.get_x(), 6), bar.get_height()) for bar in bars] == [(0.5, 1.0), (0.8, 0.5)]
    assert [bar.get_height() for bar in below.patches] == [1, 2]
    assert "ECE 40.0 %" in above.get_title()
    four = uncertainty.reliability_figure(dict.fromkeys("abcd", found)).axes  # in two rows of three
    assert [axes.axison for axes in four] == [True] * 6 + [True, False, False] * 2
    with pytest.raises(NothingToConvert, match=r"found: no calibration to draw"):
        uncertainty.reliability_figure({})
