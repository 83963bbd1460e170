"""The whole experiment, two epochs of it: what must come out."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from rich.console import Console

from convfc.errors import ArgumentError
from convfc.paper import data
from convfc.paper import keras_networks as networks
from convfc.paper.experiment import PaperSettings, parts
from convfc.paper.findings import summary_table
from convfc.paper.keras_networks import compare, dead_outputs
from convfc.paper.study import STUDY
from convfc.runs.folder import Result, RunFolder
from convfc.runs.progress import Lines
from convfc.runs.study import run_study

if TYPE_CHECKING:
    import pathlib

SETTINGS = PaperSettings(epochs=2, float64_epochs=1, images=40, batch_size=16, cost=False)
NETWORKS = {
    f"{dtype}-{optimizer}-{network}": epochs
    for dtype, (epochs, optimizers, networks_) in SETTINGS.precisions.items()
    for optimizer in optimizers
    for network in networks_
}
NUMBERS = {
    "output_difference_mean",
    "output_difference_printed",
    "weight_difference",
    "max_loss_difference",
}


def run_it(folder: pathlib.Path) -> tuple[RunFolder, str]:
    console = Console(file=io.StringIO(), width=100)
    with RunFolder.open(folder, SETTINGS, resume=True) as run:
        report = run_study(STUDY, run, SETTINGS, Lines(console, *STUDY.words))
    assert report == run.path / "report.html"
    console.print(summary_table(run.read().results))
    return run, console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, str]:
    return run_it(tmp_path_factory.mktemp("runs"))


def test_results_have_every_number_of_the_paper(finished: tuple[RunFolder, str]) -> None:
    results = finished[0].read().results
    for optimizer in ("sgd", "adam"):
        assert set(results[optimizer]) == {"fc", "control"}
        assert set(results[optimizer]["fc"]) == NUMBERS
        assert set(results[optimizer]["control"].values()) == {0.0}
    assert set(results["float64"]["adam"]["fc"]) == NUMBERS | {"epochs"}
    assert results["float64"]["adam"]["fc"]["epochs"] == 1
    expected = {"epochs": 2, "dtype": "float32", "backend": "jax", "seed": 0}
    assert expected.items() <= results.items()
    assert set(results["versions"]) == {"python", "numpy", "keras", "jax", "mlxtend", "convfc"}
    assert results["machine"]["cores"] >= 1


def test_differences_are_those_of_weights_and_losses() -> None:
    count = 40
    digits = data.load(count=count)
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((16, 128)).astype("float32") for _ in range(2)]
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


def test_companion_starts_where_the_run_started(finished: tuple[RunFolder, str]) -> None:
    starts = [
        finished[0].part(f"{dtype}-adam-cnn").load().arrays["first_layer"][0]
        for dtype in ("float32", "float64")
    ]
    assert [start.dtype.name for start in starts] == ["float32", "float64"]
    np.testing.assert_array_equal(*starts)


def test_report_is_drawn_and_progress_told(finished: tuple[RunFolder, str]) -> None:
    run, told = finished
    assert (run.path / "report.html").stat().st_size > 0
    assert (run.path / "report.md").stat().st_size > 0
    for name, epochs in NETWORKS.items():
        assert f"{name}: starts" in told
        assert f"{name}: done, epoch {epochs}/" in told
    assert "0.536" in told
    assert "control − FC" in told


def test_finished_run_is_only_reported_again(finished: tuple[RunFolder, str]) -> None:
    run, _ = finished
    before = {p: p.stat().st_mtime_ns for p in run.path.rglob("*.npz")}
    (run.path / "report.html").unlink()
    _, told = run_it(run.path.parent)
    assert "is finished: only the report is drawn again" in told
    assert "starts" not in told
    assert (run.path / "report.html").exists()
    assert {p: p.stat().st_mtime_ns for p in run.path.rglob("*.npz")} == before


def test_lost_network_is_trained_again_and_no_other(finished: tuple[RunFolder, str]) -> None:
    run, _ = finished
    results = run.read().results
    lost = run.part("float32-sgd-fc")
    weights = lost.weights()
    lost.path.unlink()
    run.results_path.unlink()
    _, told = run_it(run.path.parent)
    assert told.count(": starts") == 1
    assert told.count(": finished earlier") == 7
    for name, array in lost.weights().items():
        np.testing.assert_array_equal(array, weights[name], strict=True)
    for key in ("sgd", "adam", "float64", "dead_outputs"):
        assert json.dumps(run.read().results[key]) == json.dumps(results[key])


def test_dead_outputs_are_counted() -> None:
    """The second layer is given such that only output 1, the sum of layer 1, is alive."""
    digits = data.load(count=30)
    first = np.abs(networks.initial_weights(0).first)
    second = np.zeros((21632, 784), np.float32)
    initial = networks.Weights(first, second + 1)
    second[:, 1] = 1
    found = dead_outputs("cnn", initial, networks.Weights(first, second), digits)
    targets = digits.validation.reshape(30, 784)
    inked = targets.any(axis=0)
    assert found["outputs"] == 784
    assert found["dead_at_start"] == 0
    assert found["dead_at_end"] == 783
    assert found["wrongly_dead"] == inked.sum() - inked[1]
    others = np.delete(targets, 1, axis=1)
    # float32 rounds the targets once each.
    unit = float(np.finfo(np.float32).eps)
    assert found["val_loss_of_dead"] == pytest.approx(
        (others**2).sum() / targets.size, rel=3 * unit
    )
    assert found["val_loss_of_zeros"] == pytest.approx((targets**2).mean(), rel=3 * unit)
    assert found["val_loss"] > found["val_loss_of_dead"]
    mean_image = digits.training.reshape(30, 784).mean(axis=0)
    spread = ((targets - mean_image) ** 2).mean()
    assert found["val_loss_of_mean_image"] == pytest.approx(spread, rel=8 * unit)


def test_default_run_trains_all_networks_and_float64_last() -> None:
    trained = {part.name: part.steps for part in parts(PaperSettings()) if part.steps}
    assert list(trained) == [
        "float32-sgd-cnn",
        "float32-sgd-fc",
        "float32-sgd-control",
        "float32-adam-cnn",
        "float32-adam-fc",
        "float32-adam-control",
        "float64-adam-cnn",
        "float64-adam-fc",
    ]
    assert list(trained.values()) == [40] * 6 + [10] * 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "epochs: a number too small; expected 1 or more; got 0"),
        ({"optimizers": ("sgd", "lbfgs")}, "expected sgd or adam; got lbfgs"),
        ({"optimizers": ()}, "expected sgd or adam; got none"),
        ({"seed": -1}, "seed: a number too small; expected 0 or more; got -1"),
    ],
    ids=["epochs", "optimizer", "no-optimizer", "seed"],
)
def test_settings_without_meaning_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        PaperSettings(**wrong)  # type: ignore[arg-type]


def test_different_settings_have_different_names() -> None:
    variants = [
        PaperSettings(),
        PaperSettings(epochs=400),
        PaperSettings(epochs=7),
        PaperSettings(optimizers=("sgd",)),
        PaperSettings(optimizers=("adam",)),
        PaperSettings(dtype="float64", float64_epochs=0),
        PaperSettings(backend="torch"),
        PaperSettings(seed=1),
        PaperSettings(data="mnist"),
        PaperSettings(float64_epochs=0),
    ]
    assert len({settings.default_name() for settings in variants}) == len(variants)
