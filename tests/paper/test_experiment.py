"""The whole experiment, two epochs of it: what must come out."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from rich.console import Console

from convfc.paper import data
from convfc.paper import keras_networks as networks
from convfc.paper.experiment import PaperSettings
from convfc.paper.findings import summary_table
from convfc.paper.keras_networks import compare, dead_outputs
from convfc.paper.study import STUDY
from convfc.runs import progress
from convfc.runs.folder import Result, RunFolder
from convfc.runs.progress import Bars, Lines, display_for
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


def test_terminal_shows_bars_with_losses_and_remaining_time() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=140)
    steps = {"float32-sgd-cnn": 4, "float32-sgd-fc": 4}
    with display_for(console, "networks", "epoch") as bars:
        assert isinstance(bars, Bars)
        bars.plan(steps, {"float32-sgd-cnn"}, dict.fromkeys(steps, 1))
        bars.start("float32-sgd-fc", 1)
        for epoch in (2, 3, 4):
            bars.step("float32-sgd-fc", epoch, "loss 0.125000, validation loss 0.250000")
        bars.end("float32-sgd-fc")
        bars.note("and now the report")
    shown = screen.getvalue()
    for text in (
        "all networks",
        "float32-sgd-fc",
        "8/8",
        "4/4",
        "loss 0.125000",
        "validation loss 0.25",
    ):
        assert text in shown
    assert "and now the report" in shown


def test_pipe_shows_a_line_every_ten_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = display_for(Console(file=io.StringIO()), "networks", "epoch")
    assert isinstance(lines, Lines)
    told: list[str] = []
    lines.note = told.append  # type: ignore[method-assign]
    lines.plan({"n": 25}, set(), {"n": 1})
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    lines.start("n", 0)
    for epoch in range(1, 26):
        now += 2.0
        lines.step("n", epoch, "loss 0.500000, validation loss 0.250000")
    lines.end("n")
    assert told[2:4] == [
        "n: epoch 10/25, loss 0.500000, validation loss 0.250000, about 30 s left",
        "n: epoch 20/25, loss 0.500000, validation loss 0.250000, about 10 s left",
    ]
    assert told[4] == "n: done, epoch 25/25, loss 0.500000, validation loss 0.250000, 50 s"
    assert len(told) == 5


def test_a_longer_step_counts_more_in_the_whole() -> None:
    bars = Bars(Console(file=io.StringIO(), force_terminal=True, width=140), "networks")
    bars.plan({"a": 4, "b": 4, "c": 2}, {"a"}, {"a": 1, "b": 1, "c": 2})
    bars.start("c", 0)
    bars.step("c", 1, "")
    whole = bars._bars.tasks[0]
    assert (whole.total, whole.completed) == (12, 6)


def test_pipe_names_parts_and_steps_as_it_is_told_to() -> None:
    lines = display_for(Console(file=io.StringIO()), "parts", "step")
    told: list[str] = []
    lines.note = told.append  # type: ignore[method-assign]
    lines.plan({"drawn": 1, "trained": 25}, {"drawn"}, {"drawn": 1, "trained": 1})
    lines.start("trained", 5)
    for step in range(6, 26):
        lines.step("trained", step, f"loss {step}")
    lines.end("trained")
    assert told[:3] == [
        "2 parts, 26 steps in all", "drawn: finished earlier", "trained: continues after step 5",
    ]  # fmt: skip
    assert told[3].startswith("trained: step 10/25, loss 10, about ")
    assert told[4].startswith("trained: step 20/25, loss 20, about ")
    assert told[5].startswith("trained: done, step 25/25, loss 25, ")
    assert len(told) == 6


@pytest.mark.parametrize(("parts", "shown"), [(3, {0, 1, 2}), (13, {1})], ids=["few", "many"])
def test_of_many_bars_only_the_one_at_work_is_shown(parts: int, shown: set[int]) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=140)
    bars = Bars(console, "parts")
    names = [f"part-{n}" for n in range(parts)]
    bars.plan(dict.fromkeys(names, 4), set(), dict.fromkeys(names, 1))
    bars.start("part-1", 1)
    bars.step("part-1", 3, "half way")
    everything, *rows = bars._bars.tasks
    assert {n for n, row in enumerate(rows) if row.visible} == shown
    assert (everything.description, everything.completed) == ("[bold]all parts", 3)
    assert (rows[1].completed, rows[1].fields["told"]) == (3, "half way")
    bars.end("part-1")
    assert rows[1].visible is (parts == 3)
