"""What `predict` takes: batches of a DataLoader, several arguments; what it refuses, and how."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from convfc.errors import ArgumentError, ConvfcError, ShapeError, UnsupportedModel
from convfc.methods import uncertainty
from convfc.methods.uncertainty import Prediction

pytestmark = pytest.mark.usefixtures("one_thread", "seed_zero")
X, Y = torch.linspace(-1, 1, 7 * 64).reshape(7, 1, 8, 8), torch.arange(7)
FIELDS = ("mean", "predictive_entropy", "expected_entropy", "mutual_information", "draws")


def network(per: str = "patch") -> nn.Module:
    cnn = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    )
    return uncertainty.to_bayesian(cnn, "gaussian", per=per, initial_std=0.3)


def check_same(one: Prediction, other: Prediction) -> None:
    for name in FIELDS:
        assert torch.equal(getattr(one, name), getattr(other, name)), name


class Counted(Dataset):
    """Images with labels that note how often each was loaded."""

    def __init__(self) -> None:
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.loaded.append(index)
        return X[index], Y[index]


class Stream(IterableDataset):
    """Images of which nobody knows how many there are."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter(X)


BATCHES = {
    "DataLoader of pairs": lambda: DataLoader(Counted(), batch_size=3),
    "DataLoader of images": lambda: DataLoader(Stream(), batch_size=3),
    "list": lambda: [X[:3], X[3:6], X[6:]],
    "pairs": lambda: [(X[:3], Y[:3]), [X[3:6]], (X[6:], None)],
    "generator": lambda: (part for part in X.split(3)),
    "arrays": lambda: [part.numpy() for part in X.split(3)],
    "array": X.numpy,
}


@pytest.mark.parametrize("per", ["patch", "call"])
@pytest.mark.parametrize("kind", BATCHES)
def test_batches_give_the_bits_of_the_tensor_that_they_are_of(kind: str, per: str):
    model = network(per)
    options: dict[str, Any] = {"samples": 4, "keep": True, "seed": 2, "batch_size": 3}
    expected = uncertainty.predict(model, X, **options)
    check_same(uncertainty.predict(model, BATCHES[kind](), **options), expected)
    assert expected.draws.shape == (4, 7, 3)
    assert len(expected.draws.flatten(1).unique(dim=0)) == 4, "the draws must differ"


def test_every_image_is_loaded_once_and_before_the_next_batch_all_draws_are_made():
    images, seen = Counted(), []
    uncertainty.predict(
        network(), DataLoader(images, batch_size=3), 5,
        progress=lambda *told: seen.append((*told, len(images.loaded))),
    )  # fmt: skip
    assert images.loaded == list(range(7))
    assert [told[:2] for told in seen] == [(number, 15) for number in range(1, 16)]
    batches = [("batch 1", 3)] * 5 + [("batch 2", 6)] * 5 + [("batch 3", 7)] * 5
    assert [told[2:] for told in seen] == batches


@pytest.mark.parametrize("kind", ["generator", "DataLoader of images"])
def test_where_nobody_knows_how_many_batches_there_are_progress_says_none(
    kind: str, capsys: pytest.CaptureFixture[str]
):
    seen: list[Any] = []
    uncertainty.predict(
        network(), BATCHES[kind](), 2, progress=lambda done, passes, _: seen.append((done, passes))
    )
    assert seen == [(number, None) for number in range(1, 7)]
    uncertainty.predict(network(), BATCHES[kind](), 2, progress=True)
    assert "Error" not in capsys.readouterr().err


def test_workers_and_shuffling_leave_the_users_random_numbers_alone():
    model = network()
    # Not by a fork, which JAX warns of where another test has imported it.
    worker = {"num_workers": 1, "multiprocessing_context": "spawn"}
    loader = DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True, **worker)
    state = torch.get_rng_state()
    one, again = (uncertainty.predict(model, loader, 3, keep=True) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    check_same(one, again)
    whole = uncertainty.predict(model, X, 3)
    assert not torch.equal(one.mean, whole.mean), "shuffled"


def test_images_that_the_loader_makes_are_not_those_of_the_draws_seeds():
    """Each batch is drawn with the same seed; what the loader draws between goes on."""
    made: list[Tensor] = []

    def noise() -> Iterator[Tensor]:
        for _ in range(3):
            made.append(torch.randn(2, 1, 8, 8))
            yield made[-1]

    uncertainty.predict(network(), noise(), 2)
    assert not torch.equal(made[0], made[1])
    assert not torch.equal(made[1], made[2])


@pytest.mark.parametrize("output", ["logits", "values"])
def test_memory_does_not_grow_with_the_draws(output: Any):
    """At the last draw as many tensors of the output's shape are alive as at the third."""

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls, self.alive = network(), 0, []

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x)
            self.calls += 1
            if self.calls in (3, 20):  # it takes time
                alive = [o for o in gc.get_objects() if type(o) is Tensor and o.shape == y.shape]
                self.alive.append(len(alive))
            return y

    for keep, more in ((False, 0), (True, 17)):
        model = Watched()
        uncertainty.predict(model, X[:5], 20, output=output, keep=keep)
        third, last = model.alive
        assert last == third + more


def test_a_network_may_write_all_its_outputs_into_one_tensor():
    """As what is compiled with CUDA graphs does."""

    class Overwritten(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.y = network(), torch.zeros(7, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.y.copy_(self.inner(x))

    model = Overwritten()
    for output in ("logits", "values"):
        expected = uncertainty.predict(model.inner, X, 4, output=output, keep=True)
        got = uncertainty.predict(model, X, 4, output=output, keep=True)
        assert torch.equal(got.mean, expected.mean)
        assert torch.equal(got.draws, expected.draws)


# Several arguments.


class Two(nn.Module):
    """Of two inputs, by place or by name."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network("call")

    def forward(self, image: Tensor, scale: Tensor | float = 1.0, *, shift: Any = 0.0) -> Tensor:
        return self.inner(image) * scale + shift


SCALE = torch.arange(1.0, 8)[:, None]


def test_several_arguments_go_as_convfc_verify_takes_them():
    model, options = Two(), {"samples": 3, "keep": True, "batch_size": 3}
    expected = uncertainty.predict(model, X, **options).draws * SCALE
    for x in (
        (X, SCALE),
        {"image": X, "scale": SCALE},
        (X.numpy(), SCALE.numpy()),
    ):
        assert torch.equal(uncertainty.predict(model, x, **options).draws, expected)
    shifted = uncertainty.predict(model, {"image": X, "scale": SCALE, "shift": 2.0}, **options)
    assert torch.equal(shifted.draws, expected + 2.0)
    assert torch.equal(uncertainty.predict(model, (X, 1.0), **options).draws * SCALE, expected)


def test_one_function_says_what_of_a_batch_the_model_takes():
    model, options = Two(), {"samples": 3, "keep": True}
    expected = uncertainty.predict(model, (X, SCALE), batch_size=3, **options).draws
    pairs = DataLoader(TensorDataset(X, SCALE), batch_size=3)
    named = [
        {"image": x, "scale": s, "label": 0}
        for x, s in zip(X.split(3), SCALE.split(3), strict=True)
    ]
    for loader, inputs in (
        (pairs, tuple),
        (pairs, lambda batch: {"image": batch[0], "scale": batch[1]}),
        (named, lambda batch: (batch["image"], batch["scale"])),
    ):
        assert torch.equal(
            uncertainty.predict(model, loader, inputs=inputs, **options).draws, expected
        )
    # By default a pair is (images, labels); and a table that is no row per image goes with a batch.
    alone = uncertainty.predict(model, pairs, **options).draws
    assert torch.equal(alone * SCALE, expected)
    table = torch.tensor([[2.0, 3.0, 4.0]])
    got = uncertainty.predict(model, [(X[:3], table), (X[3:], table)], inputs=tuple, **options)
    assert got.mean.shape == (7, 3)


# What is refused.

UNKNOWN = r"^x: it is not known what of a batch the model takes; .*"
REFUSED = [
    (X[:0], ShapeError, r"^x: no images; expected \(n, ...\) with n >= 1; got \(0, 1, 8, 8\)$"),
    ([], ShapeError, r"^x: no images; expected at least one batch; got none$"),
    ((), ShapeError, r"^x: no images"),
    (torch.tensor(1.0), ShapeError, r"^x: no images"),
    (
        (X, SCALE[:3]),
        ShapeError,
        r"^x: arguments of several lengths; .*got \(7, 1, 8, 8\), \(3, 1\).*inputs=tuple$",
    ),
    ((X, SCALE, X), ShapeError, r"^x: the model does not run on this input.*a tuple for several"),
    (Counted(), ArgumentError, r"^x: neither images nor batches.*got Counted.*DataLoader\(dataset"),
    (Stream(), ArgumentError, r"^x: neither images nor batches.*got Stream"),
    (5, ArgumentError, r"^x: neither images nor batches of them; .*got int"),
    (
        [{"image": X, "label": Y}],
        ArgumentError,
        UNKNOWN + r"got a dict of image, label\. Remedy: say it, such as inputs=lambda batch: "
        r"batch\['image'\]; a tuple holds several arguments, a dict keyword arguments$",
    ),
    (
        [[{"image": X}, Y]],
        ArgumentError,
        UNKNOWN + r"a list whose first is a dict of image\. .*: batch\[0\]\['image'\]; ",
    ),
    (
        [((X, SCALE), Y)],
        ArgumentError,
        UNKNOWN + r"first is a tuple\. .*lambda batch: batch\[0\]; ",
    ),
    ([()], ArgumentError, UNKNOWN + r"got a tuple\. "),
    ([X, "text"], ArgumentError, UNKNOWN + r"got a str\. "),
]


@pytest.mark.parametrize(("x", "error", "text"), REFUSED)
def test_refused_inputs(x: Any, error: type[ConvfcError], text: str):
    model = Two()
    with pytest.raises(error, match=text):
        uncertainty.predict(model, x, 2)
    assert all(part.training for part in model.modules()), "modes are put back after an error"


def test_a_model_without_numbers_is_refused():
    with torch.device("meta"):
        model = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(64, 3))
    with pytest.raises(UnsupportedModel, match=r"model: the model is on the meta device"):
        uncertainty.predict(model, X, 2)


def test_images_go_where_the_model_is(monkeypatch: pytest.MonkeyPatch):
    """Without a second device here, what is asked of each tensor is noted."""
    asked: list[Any] = []
    moved = Tensor.to
    monkeypatch.setattr(Tensor, "to", lambda t, *a, **k: asked.append(a) or moved(t, *a, **k))
    model = Two()
    uncertainty.predict(model, (X, SCALE), 1)
    assert asked.count((torch.device("cpu"),)) == 2


def test_halves_are_run_as_they_are():
    model = network().half()
    got = uncertainty.predict(model, [X.half()], 3, keep=True)
    assert got.draws.dtype == torch.float16
    assert got.mean.dtype == torch.float64
    assert got.mutual_information.min() > 0
    arrays = uncertainty.predict(model, np.asarray(X), 3, keep=True)  # arrays become as the model
    check_same(arrays, got)
    for per in ("patch", "image", "call"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = uncertainty.predict(network(per), X, 3, keep=True)
        assert got.draws.dtype == torch.bfloat16
