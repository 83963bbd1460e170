"""Sweeps: which points a file describes, how they are run, and what their numbers say."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import subprocess
import sys
from typing import Any

import pytest
from commands import call, refused
from small_run import FILTERS, undrawn
from synthetic import make_run
from typer.testing import Result

from convfc.cli import reproduce
from convfc.errors import ConvfcError, Diverged
from convfc.paper import sweep
from convfc.paper.experiment import PaperSettings
from convfc.paper.figures import epsilon_figure, spread_figure
from convfc.paper.optimizers import LEARNING_RATES
from convfc.paper.spread import findings, groups_of
from convfc.paper.sweep import read_sweep, sweep_study, toml_of
from convfc.runs.jobs import Workers
from convfc.runs.progress import Display
from convfc.runs.reporting import render

TOML = """
seeds = 2
seed = 3
optimizer = ["sgd", "adam"]
epsilon = [1e-7, 1e-4, 1e-7]
dtype = ["float32", "float64"]
filters = 4
images = 128
epochs = 2
"""


def written(place: pathlib.Path, text: str) -> pathlib.Path:
    path = place / "wide.toml"
    path.write_text(text)
    return path


def test_points_are_runs_and_epsilon_is_of_those_that_have_one(tmp_path: pathlib.Path) -> None:
    found = read_sweep(written(tmp_path, TOML))
    points = found.points()
    assert [(p.seed, p.optimizers, p.epsilon, p.dtype) for p in points] == [
        (seed, (optimizer,), epsilon, dtype)
        for seed in (3, 4)
        for optimizer, epsilons in (("sgd", (None,)), ("adam", (1e-7, 1e-4)))
        for dtype in ("float32", "float64")
        for epsilon in epsilons
    ]
    assert len({point.name for point in points}) == len(points) == 12
    assert {(p.filters, p.images, p.epochs, p.float64_epochs, p.cost) for p in points} == {
        (4, 128, 2, 0, False)
    }
    assert found.name == "wide"
    # What the report prints describes the same sweep.
    again = read_sweep(written(tmp_path, toml_of(found.as_json())))
    assert again == found


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("seed_count = 3", r"wide\.toml: no such setting of a sweep; expected .*'seeds'"),
        ('seeds = "3"', r"seeds: a value of another kind; expected a whole number; got '3'"),
        ("seeds = true", r"seeds: a value of another kind; expected a whole number; got True"),
        (
            "seeds = [1, 2]",
            r"seeds: a value of another kind; expected a whole number; got \[1, 2\]",
        ),
        ("filters = [4, 2.5]", r"filters: .*expected a whole number, or a list of such; got 2\.5"),
        ("optimizer = []", r"optimizer: there is nothing to run; .*got \[\]"),
        ("seeds = 0", r"seeds: a number too small; expected 1 or more; got 0"),
        ("filters = [8, 0]", r"filters: a number too small; expected 1 or more; got 0"),
        ('optimizer = "lbfgs"', r"optimizer: no such choice; .*'muon'; got 'lbfgs'"),
        ('dtype = "float16"', r"dtype: no such choice; expected 'float32' or 'float64'"),
        ("rate = -1", r"rate: .*expected a number above 0; got -1\.0"),
        ('epsilon = 1e-4\noptimizer = "sgd"', r"epsilon: none of the optimizers has one"),
        ("seeds = 5001", r"sweep: too many points; expected 1 to 10,000 runs; got 10,002"),
        ('initializer = "zeros"', r"initializer: no such choice; .*'he_normal'.*; got 'zeros'"),
        ("weights = 1", r"weights: a value of another kind; expected true or false; got 1"),
        ("seeds = = 3", r"wide\.toml: this is no TOML"),
    ],
    ids=lambda value: value[:14],
)
def test_a_file_that_is_wrong_is_refused(tmp_path: pathlib.Path, text: str, match: str) -> None:
    with pytest.raises(ConvfcError, match=match) as caught:
        read_sweep(written(tmp_path, text))
    assert "wide.toml" in str(caught.value)


def test_the_command_refuses_what_a_sweep_has_in_its_file(tmp_path: pathlib.Path) -> None:
    refused(
        call("reproduce", "--sweep", str(tmp_path / "none.toml")), "none.toml: it cannot be read"
    )
    file = str(written(tmp_path, TOML))
    for options, words in (
        (("--sweep", file, "--seed", "1"), "--seed: an option of a single run"),
        (("--sweep", file, "--workers", "2", "--scheduler", "tcp://a:1"), "only one of"),
        (("--workers", "2"), "--workers: an option of a sweep or a study"),
    ):
        outcome = call("reproduce", *options)
        assert outcome.exit_code == 2
        assert words in outcome.output
    assert list(reproduce.Optimizer) == list(LEARNING_RATES)


def test_names_and_commands_say_what_is_not_ordinary() -> None:
    made = PaperSettings.named(optimizers=("adam",), epsilon=1e-4, rate=0.01, filters=8, images=60)
    assert made.name == "default-adam-images60-filters8-epsilon0.0001-rate0.01"
    command = PaperSettings.command(made.as_json())
    assert command == (
        "convfc reproduce --optimizer adam --images 60 --filters 8 --epsilon 0.0001 --rate 0.01"
    )
    assert made.as_json()["learning_rates"] == {"adam": 0.01}
    assert PaperSettings.named(seed=12345678).name == "default-seed12345678"
    made = PaperSettings.named(initializer="lecun_normal", seed=2)
    assert made.name == "default-lecun_normal-seed2"
    assert PaperSettings.command(made.as_json()).endswith(" --initializer lecun_normal --seed 2")
    # A run that was begun before there were others goes on.
    assert "initializer" not in PaperSettings.named(seed=2).as_json()


def point(**given: Any) -> dict[str, Any]:
    usual = {"optimizer": "adam", "epsilon": 1e-7, "rate": None, "dtype": "float32"}
    usual |= {"initializer": "he_uniform"}
    usual |= {"filters": 8, "seed": 0, "weights": 1e-6, "outputs": 2e-6, "roundings": 9.0}
    return usual | {"control": 0.0, "gradient": 1e-9, "gradient_size": 1e-3, "seconds": 2.0} | given


def points(**changes: float) -> list[dict[str, Any]]:
    """SGD, Adam with a small and a large epsilon, and Adam in float64, with three seeds each."""
    medians = {"sgd": 1e-8, "small": 1e-6, "large": 1e-8, "wide": 1e-15} | changes
    kinds: dict[str, dict[str, Any]] = {
        "sgd": {"optimizer": "sgd", "epsilon": None},
        "small": {},
        "large": {"epsilon": 1e-4},
        "wide": {"dtype": "float64"},
    }
    return [
        point(seed=seed, weights=medians[kind] * (1 + seed / 10), **own)
        for seed in range(3)
        for kind, own in kinds.items()
    ]


def report(found: list[dict[str, Any]], diverged: list[dict[str, Any]] | None = None) -> str:
    settings = sweep.SweepSettings(name="s", seeds=3, filters=(8,)).as_json()
    results = {"points": found, "diverged": diverged or [], "settings": settings}
    results |= {"versions": {}, "machine": "a machine"}
    values = {"results": results, "settings": settings, "toml": toml_of(settings)}
    return render(sweep_study().template, values | findings(found, diverged or ()))


def test_the_report_says_what_the_numbers_say() -> None:
    """Every conclusion, and the same where the numbers turn."""
    text = report(points())
    for said in (
        "**Adam, ε 1e-7, float32:** the gap is larger than SGD's in 3 of 3 seeds; medians: 100",
        "exactly 0 at every point, after every epoch",
        "**Adam, float32, ε from 1e-7 to 0.0001:** the gap shrinks in every seed; medians: 100",
        "smaller than in float32: that is what rounding does",
        "smaller in each of the 3 seeds. So it must be where the division by small gradients",
        "| SGD, float32 | 1e-8 | 1.05e-8 | 1.1e-8 | 1.15e-8 | 1.2e-8 | 9 | 0 |",
    ):
        assert said in text
    assert "Muon" not in text
    assert "every gap is smaller than one rounding" not in text
    short = report([one | {"roundings": 0.9} for one in points()])
    assert "every gap is smaller than one rounding of every weight" in short
    turned = points(small=1e-8, large=1e-6, wide=1e-8)
    turned[5]["control"] = 0.5
    text = report([*turned, point(optimizer="muon", epsilon=None)])
    for said in (
        "is not 0 everywhere: at most 0.5",
        "**Adam, ε 1e-7, float32:** the gap is larger than SGD's in 0 of 3 seeds",
        "the gap is smaller at the larger ε in 0 of 3 seeds",
        "which the division by small gradients does not explain",
        "that is not what rounding does",
        "## Muon is another matter",
    ):
        assert said in text
    text = report([one | {"gradient": 1e-3} for one in points()])
    assert "No ε here is past the rounding, so this sweep does not decide it." in text


def test_runs_that_diverged_are_named_and_the_others_are_compared_seed_by_seed() -> None:
    """Adam's seed 0 is lost, and all of AdamW's: what is left of Adam is held against SGD's."""
    lost = ("name", "rate", "dtype", "filters", "initializer", "seed", "optimizer", "epsilon")
    found = [p for p in points() if (p["optimizer"], p["epsilon"], p["seed"]) != ("adam", 1e-7, 0)]
    made = [point(seed=0), *(point(optimizer="adamw", seed=seed) for seed in (0, 1))]
    diverged = [{key: one[key] for key in lost if key in one} for one in made]
    text = report(found, diverged)
    for said in (
        "- **Diverged:** Adam, ε 1e-7, float32, seed 0: numbers that are not finite.",
        "- **Diverged:** AdamW, ε 1e-7, float32, seeds 0, 1: numbers that are not finite.",
        "**Adam, ε 1e-7, float32:** the gap is larger than SGD's in 2 of 2 seeds",
        "the gap shrinks in every seed",
        "smaller in each of the 2 seeds",
        "| Points | 13: seeds 0 to 2; 5 settings; 3 diverged |",
        "# Does it stand on one seed? The paper's experiment, 13 times",
    ):
        assert said in text
    assert "| AdamW" not in text
    settings = {"epochs": 2, "seeds": 3}
    table = sweep_study().summary({"settings": settings, "points": found, "diverged": diverged})
    assert len(list(table.columns[0].cells)) == 4
    assert table.caption == (
        "Diverged, and not counted: Adam, ε 1e-7, float32 (seed 0); AdamW, ε 1e-7, float32 "
        "(seed 0, 1)"
    )


def test_figures_show_every_seed_quantiles_and_the_rounding() -> None:
    found = points()
    found[0]["weights"] = 0.0  # of SGD
    groups = groups_of(found)
    band, axes = spread_figure(groups).axes
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [len(line.get_xdata()) for line in dots] == [2, 3, 3, 3]
    assert [len(line.get_xdata()) for line in band.lines] == [1, 0, 0, 0]
    assert [label.get_text() for label in band.get_yticklabels()] == [g.label for g in groups]
    (axes,) = epsilon_figure(findings(found)["epsilons"], groups).axes
    line = next(line for line in axes.lines if line.get_label() == "Adam, float32")
    assert list(line.get_xdata()) == [1e-7, 1e-4]
    assert list(line.get_ydata()) == [1.1e-6, pytest.approx(1.1e-8, rel=1e-15)]
    upright = [line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1]
    assert upright == [1e-9, 1e-3]


def test_a_sweep_runs_what_is_left_and_grows_and_compares_all(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the jobs are done in this process, and the runs are made up; one of them diverges."""
    asked: list[tuple[list[str], set[str], Workers]] = []

    def here(todo: Any, display: Display, *, finished: set[str], workers: Workers) -> dict:
        asked.append(([job.name for job in todo], finished, workers))
        for job in todo:
            assert job.steps == 6  # three networks, two epochs
            if job.name not in finished:
                job.run(display)
            if len(asked) == 1:
                raise KeyboardInterrupt
        return {}

    def made(runs: pathlib.Path, study: object, settings: PaperSettings, *_: Any, **how: Any):
        assert how == {"resume": True, "weights": False}
        place = runs / settings.name
        if settings.seed == 1 and settings.optimizers == ("sgd",):
            (place / "parts").mkdir(parents=True)
            (place / "parts" / "float32-sgd-cnn.checkpoint.npz").touch()
            raise Diverged("a result is not a finite number")
        make_run(place, optimizers=settings.optimizers, epochs=2, companion=False, cost=False)

    def resumed() -> Result:
        with undrawn():
            outcome = call(*arguments, "--resume")
        assert outcome.exit_code == 0, outcome.output
        return outcome

    monkeypatch.setattr(sweep, "run_jobs", here)
    file = written(tmp_path, "seeds = 2\nepochs = 2\n")
    arguments = ("reproduce", "--sweep", str(file), "--runs-dir", str(tmp_path), "--workers", "7")
    monkeypatch.setattr(sweep, "run_in", made)
    stopped = call(*arguments)
    assert stopped.exit_code == 130
    assert "The same command with --resume goes on" in stopped.stderr
    outcome = resumed()
    names = [
        f"epochs2-{optimizer}{seed}"
        for seed in ("", "-seed1")
        for optimizer in ("sgd", "adam-nocompanion")
    ]
    assert asked == [(names, set(), Workers(7)), (names, {names[0]}, Workers(7))]
    folder = tmp_path / "wide"
    assert f"Report: {folder / 'report.html'}\n" in outcome.stdout
    text = (folder / "report.md").read_text()
    assert "exactly 0 at every point" in text
    assert "**Diverged:** SGD, seed 1:" in text
    assert [path.name for path in (folder / "points" / names[2]).iterdir()] == ["diverged.json"]
    assert "seeds = 2\nepochs = 2" in text or "epochs = 2\nseeds = 2" in text
    # More seeds and values: what is done stays done, and what has diverged is not tried again.
    file.write_text('seeds = 3\nepochs = 2\nfilters = [128, 4]\noptimizer = ["adam", "sgd"]\n')
    resumed()
    todo, finished, _ = asked[-1]
    assert (len(todo), finished) == (12, set(names))
    text = (folder / "report.md").read_text()
    assert "| Points | 12: seeds 0 to 2; 4 settings; 2 diverged |" in text
    file.write_text("seeds = 4\nepochs = 3\n")
    refused(
        call(*arguments, "--resume"),
        "wide: the sweep was started with other settings; expected epochs=2, seeds=3",
        "got epochs=3, seeds=4",
        "seeds and values can be added",
    )
    assert (folder / "report.md").read_text() == text
    assert len(asked) == 3


@pytest.mark.slow
def test_a_killed_worker_leaves_the_bits_of_convfc_reproduce(tmp_path: pathlib.Path) -> None:
    """The command with two processes, one of them killed in its training; then runs by hand."""
    text = f"seeds = 2\nfilters = {FILTERS}\nimages = 256\nepochs = 60\n"
    command = [sys.executable, "-m", "convfc", "reproduce", "--runs-dir"]
    environment = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"} | {
        "PYTHONUNBUFFERED": "1", "COLUMNS": "200",
    }  # fmt: skip
    options = ["--sweep", str(written(tmp_path, text)), "--workers", "2"]
    running = subprocess.Popen(  # noqa: S603
        [*command, str(tmp_path), *options], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert running.stdout is not None
    lines = []
    for line in running.stdout:
        lines.append(line)
        if re.search(r": epoch \d+/", line):
            break
    killed = re.match(r"(\S+): epoch", lines[-1])[1]  # type: ignore[index]
    lock = (tmp_path / "wide" / "points" / killed / ".lock").read_text()
    os.kill(int(lock.split()[1]), signal.SIGKILL)
    rest, _ = running.communicate(timeout=600)
    assert running.returncode == 0
    assert re.search(rf"{killed}: (starts|continues)", rest)
    for point in read_sweep(tmp_path / "wide.toml").points():
        words = PaperSettings.command(point.as_json()).split()[2:]
        subprocess.run(  # noqa: S603
            [*command, str(tmp_path / "alone"), *words, "--no-cost"], env=environment, check=True
        )
        one, other = (
            {path.name: path.read_bytes() for path in (place / point.name / "parts").glob("*.npz")}
            for place in (tmp_path / "wide" / "points", tmp_path / "alone")
        )
        assert len(other) == 6
        assert one == {k: v for k, v in other.items() if not k.endswith(".weights.npz")}
        assert len(one) == 3
