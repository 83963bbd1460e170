"""The whole experiment, two epochs of it: what must come out."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from rich.console import Console

from convfc.paper import data, networks
from convfc.paper.differences import compare, dead_outputs
from convfc.paper.experiment import run_experiment
from convfc.paper.progress import Bars, Lines, display_for
from convfc.paper.runs import RunFolder, Settings, Task
from convfc.paper.summary import summary_table
from convfc.paper.trained import Epoch, NetworkFolder

if TYPE_CHECKING:
    import pathlib

SETTINGS = Settings(epochs=2, float64_epochs=1, images=40, batch_size=16)
NUMBERS = {
    "output_difference_mean",
    "output_difference_printed",
    "weight_difference",
    "max_loss_difference",
}


def run_it(folder: pathlib.Path) -> tuple[RunFolder, str]:
    console = Console(file=io.StringIO(), width=100)
    run = RunFolder.open(folder, SETTINGS, resume=True)
    report = run_experiment(run, SETTINGS, Lines(console), cost=False)
    assert report == run.path / "report.html"
    console.print(summary_table(run.results()))
    return run, console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, str]:
    return run_it(tmp_path_factory.mktemp("runs"))


def test_results_have_every_number_of_the_paper(finished: tuple[RunFolder, str]) -> None:
    results = finished[0].results()
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


def test_differences_are_those_of_weights_and_losses(tmp_path: pathlib.Path) -> None:
    run, count = RunFolder(tmp_path), 40
    digits = data.load(count=count)
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((16, 128)).astype("float32") for _ in range(2)]
    pair = (Task("float32", "adam", "cnn"), Task("float32", "adam", "fc"))
    histories = [Epoch(1, 0.5, 0.5, 1.0), Epoch(2, 0.25, 0.5, 1.0)], [Epoch(1, 0.5, 0.25, 9.0)] * 2
    for task, first, history in zip(pair, weights, histories, strict=True):
        run.network(task).finish(history, [first], {"first": first})
    numbers = compare(run, pair, digits)

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
        finished[0].network(Task(dtype, "adam", "cnn")).trajectory()[0]
        for dtype in ("float32", "float64")
    ]
    assert [start.dtype.name for start in starts] == ["float32", "float64"]
    np.testing.assert_array_equal(*starts)


def test_report_is_drawn_and_progress_told(finished: tuple[RunFolder, str]) -> None:
    run, told = finished
    assert (run.path / "report.html").stat().st_size > 0
    assert (run.path / "report.md").stat().st_size > 0
    for task in SETTINGS.tasks:
        assert f"{task.name}: starts" in told
        assert f"{task.name}: done, epoch {SETTINGS.tasks[task]}/" in told
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
    results = run.results()
    lost = run.network(Task("float32", "sgd", "fc")).path / "weights.npz"
    weights = lost.read_bytes()
    (lost.parent / "sha256.json").unlink()
    run.results_path.unlink()
    _, told = run_it(run.path.parent)
    assert told.count(": starts") == 1
    assert told.count(": finished earlier") == 7
    assert lost.read_bytes() == weights
    for key in ("sgd", "adam", "float64", "dead_outputs"):
        assert json.dumps(run.results()[key]) == json.dumps(results[key])


def test_dead_outputs_are_counted(tmp_path: pathlib.Path) -> None:
    """The second layer is given such that only output 1, the sum of layer 1, is alive."""
    digits = data.load(count=30)
    first = np.abs(networks.initial_weights(0).first)
    second = np.zeros((21632, 784), np.float32)
    initial = networks.Weights(first, second + 1)
    second[:, 1] = 1
    folder = NetworkFolder(tmp_path)
    folder.finish([], [first], {"first": first, "second": second})
    found = dead_outputs(folder, "cnn", initial, digits)
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
    with display_for(console) as bars:
        assert isinstance(bars, Bars)
        bars.plan({"float32-sgd-cnn": 4, "float32-sgd-fc": 4}, {"float32-sgd-cnn": 4})
        bars.start("float32-sgd-fc", 1)
        for epoch in (2, 3, 4):
            bars.epoch("float32-sgd-fc", Epoch(epoch, 0.125, 0.25, 1.0))
        bars.end("float32-sgd-fc")
        bars.note("and now the report")
    shown = screen.getvalue()
    for text in ("all networks", "float32-sgd-fc", "8/8", "4/4", "loss 0.12500", "validation 0.25"):
        assert text in shown
    assert "and now the report" in shown


def test_pipe_shows_a_line_every_ten_epochs() -> None:
    lines = display_for(Console(file=io.StringIO()))
    assert isinstance(lines, Lines)
    told: list[str] = []
    lines.note = told.append  # type: ignore[method-assign]
    lines.plan({"n": 25}, {})
    lines.start("n", 0)
    for epoch in range(1, 26):
        lines.epoch("n", Epoch(epoch, 0.5, 0.25, 2.0))
    lines.end("n")
    assert told[2:4] == [
        "n: epoch 10/25, loss 0.500000, validation loss 0.250000, about 30 s left",
        "n: epoch 20/25, loss 0.500000, validation loss 0.250000, about 10 s left",
    ]
    assert len(told) == 5


def test_pipe_names_parts_and_steps_as_it_is_told_to() -> None:
    lines = display_for(Console(file=io.StringIO()), "parts", "step")
    told: list[str] = []
    lines.note = told.append  # type: ignore[method-assign]
    lines.plan({"drawn": 1, "trained": 25}, {"drawn": 1})
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
    bars.plan({f"part-{n}": 4 for n in range(parts)}, {})
    bars.start("part-1", 1)
    bars.step("part-1", 3, "half way")
    everything, *rows = bars._bars.tasks
    assert {n for n, row in enumerate(rows) if row.visible} == shown
    assert (everything.description, everything.completed) == ("[bold]all parts", 3)
    assert (rows[1].completed, rows[1].fields["told"]) == (3, "half way")
    bars.end("part-1")
    assert rows[1].visible is (parts == 3)
