"""The whole experiment, two epochs of it: what must come out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from small_run import EPOCHS, FILTERS

from convfc.errors import ArgumentError
from convfc.paper import data
from convfc.paper import keras_networks as networks
from convfc.paper.experiment import PaperSettings, parts
from convfc.paper.keras_networks import compare, dead_outputs
from convfc.runs.folder import Result, RunFolder

if TYPE_CHECKING:
    import pathlib

NETWORKS = {
    f"{dtype}-{optimizer}-{network}": epochs
    for dtype, optimizer, epochs in (
        ("float32", "sgd", EPOCHS), ("float32", "adam", EPOCHS), ("float64", "adam", 1),
    )
    for network in ("cnn", "fc", "control")[: 2 if dtype == "float64" else 3]
}  # fmt: skip
NUMBERS = {
    *("output_difference_mean", "output_difference_printed"),
    *("weight_difference", "max_loss_difference"),
}


@pytest.fixture(scope="module")
def run(trained: tuple[pathlib.Path, str]) -> RunFolder:
    return RunFolder(trained[0])


def test_results_have_every_number_of_the_paper(run: RunFolder) -> None:
    results = run.read().results
    for optimizer in ("sgd", "adam"):
        assert set(results[optimizer]) == {"fc", "control"}
        assert set(results[optimizer]["fc"]) == NUMBERS
        assert set(results[optimizer]["control"].values()) == {0.0}
    assert set(results["float64"]["adam"]["fc"]) == NUMBERS | {"epochs"}
    assert results["float64"]["adam"]["fc"]["epochs"] == 1
    expected = {"epochs": EPOCHS, "dtype": "float32", "backend": "jax", "seed": 0}
    assert expected.items() <= results.items()
    assert set(results["versions"]) == {"python", "numpy", "keras", "jax", "mlxtend", "convfc"}
    assert results["machine"]["cores"] >= 1


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_control_is_the_fc_network_to_the_bit(run: RunFolder, optimizer: str) -> None:
    control, fc = (run.part(f"float32-{optimizer}-{name}") for name in ("control", "fc"))
    for kind in (".npz", ".weights.npz"):
        one, other = (part.path.with_suffix(kind) for part in (control, fc))
        assert one.read_bytes() == other.read_bytes()
    assert control.load().numbers == fc.load().numbers


def test_differences_are_those_of_weights_and_losses() -> None:
    count = 40
    digits = data.load(count=count)
    rng = np.random.default_rng(0)
    shape = (16, FILTERS)
    weights = [rng.standard_normal(shape).astype("float32") for _ in range(2)]
    losses = (
        {"loss": [0.5, 0.25], "val_loss": [0.5, 0.5]},
        {"loss": [0.5] * 2, "val_loss": [0.25] * 2},
    )
    pair = {
        name: Result(numbers, {"first_layer": first[None]})
        for name, numbers, first in zip(("cnn", "fc"), losses, weights, strict=True)
    }
    numbers = compare(pair, ("cnn", "fc"), digits)

    assert numbers["max_loss_difference"] == 0.25
    exact = [first.astype(np.float64) for first in weights]
    distance = np.linalg.norm(exact[0] - exact[1])
    assert numbers["weight_difference"] == pytest.approx(float(distance), rel=1e-12)
    # In exact arithmetic V - U = M (K_cnn - K_fc), image by image. In float32 the images are
    # rounded once, and each of V and U adds 16 products.
    M = networks.network_input("fc", digits.new)
    norms = np.linalg.norm(M @ (exact[0] - exact[1]), axis=(1, 2))
    terms = 18 * float(np.finfo(np.float32).eps) / 2
    bound = sum(terms / (1 - terms) * np.linalg.norm(M @ np.abs(w), axis=(1, 2)) for w in exact)
    assert abs(numbers["output_difference_mean"] - norms.mean()) <= bound.mean()
    whole = np.linalg.norm(norms) / count
    assert abs(numbers["output_difference_printed"] - whole) <= np.linalg.norm(bound) / count
    assert bound.mean() < norms.mean() / 1000


def test_companion_starts_where_the_run_started(run: RunFolder) -> None:
    starts = [
        run.part(f"{dtype}-adam-cnn").load().arrays["first_layer"][0]
        for dtype in ("float32", "float64")
    ]
    assert [start.dtype.name for start in starts] == ["float32", "float64"]
    np.testing.assert_array_equal(*starts)


def test_report_is_drawn_and_progress_told(trained: tuple[pathlib.Path, str]) -> None:
    folder, told = trained
    assert (folder / "report.md").stat().st_size > 0
    for name, epochs in NETWORKS.items():
        assert f"{name}: starts" in told
        assert f"{name}: done, epoch {epochs}/{epochs}, loss " in told
    assert told.count(": starts") == len(NETWORKS)  # no other optimizer is taken unasked
    report = f"Report: {folder / 'report.html'}\n"
    for words in (f"Differences after {EPOCHS} epochs", "0.536", "control − FC", report):
        assert words in told


@pytest.mark.usefixtures("small_networks")
def test_dead_outputs_are_counted() -> None:
    """The second layer is given such that only output 1, the sum of layer 1, is alive."""
    digits = data.load(count=30)
    first = np.abs(networks.initial_weights(0, FILTERS).first)
    second = np.zeros((676, 784), np.float32)
    initial = networks.Weights(first, second + 1)
    second[:, 1] = 1
    found = dead_outputs(initial, networks.Weights(first, second), digits)
    targets = digits.validation.reshape(30, 784)
    inked = targets.any(axis=0)
    expected = {
        "outputs": 784,
        "dead_at_start": 0,
        "dead_at_end": 783,
        "wrongly_dead": inked.sum() - inked[1],
    }
    assert expected.items() <= found.items()
    mean_image = digits.training.reshape(30, 784).mean(axis=0)
    for name, loss, roundings in (
        ("dead", (np.delete(targets, 1, axis=1) ** 2).sum() / targets.size, 3),
        ("zeros", (targets**2).mean(), 3),
        ("mean_image", ((targets - mean_image) ** 2).mean(), 8),
    ):
        # float32 rounds the targets once each.
        rounded = pytest.approx(loss, rel=roundings * float(np.finfo(np.float32).eps))
        assert found[f"val_loss_of_{name}"] == rounded
    assert found["val_loss"] > found["val_loss_of_dead"]


def test_default_run_trains_all_networks_and_float64_last() -> None:
    trained = {part.name: part.steps for part in parts(PaperSettings()) if part.steps}
    assert list(trained) == list(NETWORKS)
    assert list(trained.values()) == [40] * 6 + [10] * 2


@pytest.mark.parametrize(("wrong", "got"), [(("sgd", "lbfgs"), "'lbfgs'"), ((), "None")])
def test_unknown_optimizers_are_refused(wrong: tuple[str, ...], got: str) -> None:
    with pytest.raises(ArgumentError, match=f"expected 'sgd' or .* or 'muon'; got {got}"):
        PaperSettings(optimizers=wrong)


def test_different_settings_have_different_names() -> None:
    changes = [
        *({}, {"epochs": 400}, {"epochs": 7}, {"seed": 1}, {"backend": "torch"}, {"data": "mnist"}),
        *({"optimizers": (optimizer,)} for optimizer in ("sgd", "adam")),
        *({"dtype": dtype, "float64_epochs": 0} for dtype in ("float32", "float64")),
    ]
    names = {PaperSettings(**change).default_name() for change in changes}  # type: ignore[arg-type]
    assert len(names) == len(changes)
