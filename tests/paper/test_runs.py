"""The run's folder: opening, refusing, checkpoints, and what a crash may leave."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

from convfc import files
from convfc.errors import ArgumentError, RunError
from convfc.files import replacing, write_arrays, write_json
from convfc.paper.runs import RunFolder, Settings, Task, default_name
from convfc.paper.trained import Epoch, NetworkFolder, State

if TYPE_CHECKING:
    import pathlib

SETTINGS = Settings(epochs=4, float64_epochs=1)


def contents(path: pathlib.Path) -> list[str]:
    return sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())


def state(epochs: int) -> State:
    rng = np.random.default_rng(epochs)
    history = [Epoch(n + 1, 1 / 3 / (n + 1), rng.random(), 0.1) for n in range(epochs)]
    trajectory = [rng.random((16, 128)).astype("float32") for _ in range(epochs + 1)]
    variables = [np.float32(rng.random((3, 2))), np.int64(7), rng.random(12)]
    return State([np.asarray(v) for v in variables], history, trajectory)


def assert_same(found: State | None, expected: State) -> None:
    assert found is not None
    assert found.history == expected.history
    for one, other in (
        (found.variables, expected.variables),
        (found.trajectory, expected.trajectory),
    ):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b, strict=True)


def test_default_run_trains_all_networks_and_float64_last() -> None:
    tasks = Settings().tasks
    assert [task.name for task in tasks] == [
        "float32-sgd-cnn",
        "float32-sgd-fc",
        "float32-sgd-control",
        "float32-adam-cnn",
        "float32-adam-fc",
        "float32-adam-control",
        "float64-adam-cnn",
        "float64-adam-fc",
    ]
    assert list(tasks.values()) == [40] * 6 + [10] * 2


def test_new_folder_holds_its_settings(tmp_path: pathlib.Path) -> None:
    run = RunFolder.open(tmp_path / "runs", SETTINGS)
    assert contents(tmp_path) == ["runs/default/settings.json"]
    assert json.loads((run.path / "settings.json").read_text()) == SETTINGS.as_json()
    assert SETTINGS.as_json()["learning_rates"] == {"sgd": 0.01, "adam": 0.001}


def test_existing_folder_needs_a_decision(tmp_path: pathlib.Path) -> None:
    RunFolder.open(tmp_path, SETTINGS)
    with pytest.raises(RunError, match=r"the folder exists\. Remedy: --resume .* --overwrite"):
        RunFolder.open(tmp_path, SETTINGS)


def test_resume_continues_an_equal_run_and_starts_a_missing_one(tmp_path: pathlib.Path) -> None:
    run = RunFolder.open(tmp_path, SETTINGS, resume=True)
    (run.path / "mark").touch()
    again = RunFolder.open(tmp_path, SETTINGS, resume=True)
    assert (again.path / "mark").exists()


def test_resume_with_other_settings_names_them(tmp_path: pathlib.Path) -> None:
    RunFolder.open(tmp_path, SETTINGS)
    other = dataclasses.replace(SETTINGS, epochs=5, backend="torch")
    with pytest.raises(RunError) as caught:
        RunFolder.open(tmp_path, other, resume=True)
    assert "expected epochs=4, backend=jax; got epochs=5, backend=torch" in str(caught.value)


def test_overwrite_removes_the_former_run_only(tmp_path: pathlib.Path) -> None:
    run = RunFolder.open(tmp_path, SETTINGS)
    (run.path / "results.json").touch()
    (tmp_path / "neighbour").touch()
    other = dataclasses.replace(SETTINGS, epochs=5)
    assert not RunFolder.open(tmp_path, other, overwrite=True).finished
    assert contents(tmp_path) == ["default/settings.json", "neighbour"]


@pytest.mark.parametrize("option", ["resume", "overwrite"])
def test_folder_that_is_no_run_is_left_alone(tmp_path: pathlib.Path, option: str) -> None:
    (tmp_path / "default").mkdir()
    (tmp_path / "default" / "thesis.tex").touch()
    with pytest.raises(RunError, match=r"the folder is no run of convfc.*choose another --name"):
        RunFolder.open(tmp_path, SETTINGS, **{option: True})
    assert contents(tmp_path) == ["default/thesis.tex"]


def test_folder_killed_at_its_birth_is_started_anew(tmp_path: pathlib.Path) -> None:
    (tmp_path / "default").mkdir()
    (tmp_path / "default" / "settings.json.tmp").write_text('{"na')
    run = RunFolder.open(tmp_path, SETTINGS)
    assert contents(run.path) == ["settings.json"]


def test_resume_and_overwrite_exclude_each_other(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ArgumentError, match="resume and overwrite exclude each other"):
        RunFolder.open(tmp_path, SETTINGS, resume=True, overwrite=True)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "epochs: nothing to train; expected 1 or more; got 0"),
        ({"optimizers": ("sgd", "lbfgs")}, "expected sgd or adam; got lbfgs"),
        ({"optimizers": ()}, "expected sgd or adam; got none"),
        ({"seed": -1}, "seed: a negative seed; expected 0 or more; got -1"),
    ],
    ids=["epochs", "optimizer", "no-optimizer", "seed"],
)
def test_settings_without_meaning_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Settings(**wrong)  # type: ignore[arg-type]


def test_different_settings_have_different_names() -> None:
    variants = [
        Settings(),
        Settings(epochs=400),
        Settings(epochs=7),
        Settings(optimizers=("sgd",)),
        Settings(optimizers=("adam",)),
        Settings(dtype="float64", float64_epochs=0),
        Settings(backend="torch"),
        Settings(seed=1),
        Settings(data="mnist"),
        Settings(float64_epochs=0),
    ]
    assert len({default_name(settings) for settings in variants}) == len(variants)


def test_checkpoint_gives_back_its_state(tmp_path: pathlib.Path) -> None:
    folder = NetworkFolder(tmp_path / "n")
    assert folder.load_checkpoint() is None
    for epochs in (2, 3):
        folder.save_checkpoint(state(epochs))
        assert_same(folder.load_checkpoint(), state(epochs))
        assert [path.name for path in folder.path.iterdir()] == [f"checkpoint-{epochs:06d}"]
    assert not folder.finished


def test_damaged_checkpoint_gives_way_to_an_older_one(tmp_path: pathlib.Path) -> None:
    folder = NetworkFolder(tmp_path / "n")
    folder.save_checkpoint(state(2))
    (folder.path / "checkpoint-000002").rename(tmp_path / "kept")
    folder.save_checkpoint(state(3))
    (tmp_path / "kept").rename(folder.path / "checkpoint-000002")
    newest = folder.path / "checkpoint-000003" / "state.npz"
    newest.write_bytes(newest.read_bytes()[:200])
    assert_same(folder.load_checkpoint(), state(2))


def test_checkpoint_that_fails_leaves_the_former_one(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = NetworkFolder(tmp_path / "n")
    folder.save_checkpoint(state(2))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.np, "savez", full)
        with pytest.raises(OSError, match="No space left") as caught:
            folder.save_checkpoint(state(3))
    unfinished = folder.path / "checkpoint-000003.tmp"
    assert caught.value.filename == str(unfinished / "state.npz")
    assert [path.name for path in folder.path.iterdir()] == ["checkpoint-000002"]
    assert_same(folder.load_checkpoint(), state(2))


def test_finished_network_keeps_nothing_of_its_training(tmp_path: pathlib.Path) -> None:
    folder = NetworkFolder(tmp_path / "n")
    folder.save_checkpoint(state(2))
    (folder.path / "weights.npz.tmp").touch()
    (folder.path / "checkpoint-000003.tmp").mkdir()
    last = state(3)
    folder.finish(last.history, last.trajectory, {"first": last.trajectory[-1]})
    assert folder.finished
    assert contents(folder.path) == [
        "first_layer.npz", "history.csv", "sha256.json", "weights.npz",
    ]  # fmt: skip
    assert folder.history() == last.history
    np.testing.assert_array_equal(folder.trajectory(), np.stack(last.trajectory), strict=True)


def test_history_is_readable_csv_with_all_digits(tmp_path: pathlib.Path) -> None:
    folder = NetworkFolder(tmp_path)
    folder.finish([Epoch(1, 0.1 + 0.2, 1e-17, 2.5)], [np.zeros((16, 128))], {})
    text = (tmp_path / "history.csv").read_text()
    assert text == "epoch,loss,val_loss,seconds\n1,0.30000000000000004,1e-17,2.5\n"


def test_file_that_fails_half_way_is_not_there(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def write_half() -> None:
        with replacing(path) as handle:
            handle.write(b'{"new"')
            raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        write_half()
    assert contents(tmp_path) == ["a.json"]
    assert json.loads(path.read_text()) == {"old": 1}


def test_arrays_are_stored_without_pickle(tmp_path: pathlib.Path) -> None:
    write_arrays(tmp_path / "a.npz", {"x": np.arange(3.0)})
    with np.load(tmp_path / "a.npz", allow_pickle=False) as stored:
        np.testing.assert_array_equal(stored["x"], np.arange(3.0), strict=True)


def write(path: pathlib.Path) -> None:
    with replacing(path) as handle:
        handle.write(b"new")


@pytest.mark.parametrize("old", ["old", None])
def test_a_link_stays_and_its_file_is_written(tmp_path: pathlib.Path, old: str | None) -> None:
    (tmp_path / "link").symlink_to("target")
    if old:
        (tmp_path / "target").write_text(old)
    write(tmp_path / "link")
    assert contents(tmp_path) == ["link", "target"]
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"


def test_what_is_no_file_is_written_to(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        write(tmp_path / "pipe")
        assert os.read(reader, 9) == b"new"
    finally:
        os.close(reader)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
    assert (tmp_path / "pipe").is_fifo()


def test_a_folder_in_the_way_costs_no_other_file(tmp_path: pathlib.Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out.tmp").touch()
    with pytest.raises(IsADirectoryError) as caught:
        write(tmp_path / "out")
    assert caught.value.filename == str(tmp_path / "out")
    assert contents(tmp_path) == ["out.tmp"]


def test_a_link_to_a_run_is_not_overwritten(tmp_path: pathlib.Path) -> None:
    RunFolder.open(tmp_path / "elsewhere", SETTINGS)
    (tmp_path / "default").symlink_to("elsewhere/default")
    with pytest.raises(RunError, match=r"default: a link to a run.*Remedy: remove the link"):
        RunFolder.open(tmp_path, SETTINGS, overwrite=True)
    assert RunFolder.open(tmp_path, SETTINGS, resume=True).path.is_symlink()
    assert contents(tmp_path) == ["elsewhere/default/settings.json"]


def test_task_names_its_folder(tmp_path: pathlib.Path) -> None:
    path = RunFolder(tmp_path).network(Task("float32", "adam", "cnn")).path
    assert path == tmp_path / "networks" / "float32-adam-cnn"
