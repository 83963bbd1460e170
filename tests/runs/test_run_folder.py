"""The run's folder: opening, refusing, checkpoints, and what a crash may leave."""

from __future__ import annotations

import dataclasses
import errno
import json
import signal
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import numpy as np
import pytest

from convfc import files
from convfc.errors import ArgumentError, RunError
from convfc.paper.experiment import PaperSettings as Settings
from convfc.runs import folder
from convfc.runs.folder import PartFiles, Result, RunFolder

if TYPE_CHECKING:
    import pathlib

SETTINGS = Settings(epochs=4, float64_epochs=1)


def contents(path: pathlib.Path) -> list[str]:
    return sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())


def opened(runs: pathlib.Path, settings: Settings = SETTINGS, **options: bool) -> RunFolder:
    """Open a run, and leave it again."""
    with RunFolder.open(runs, settings.as_json(), **options) as run:
        return run


def state(epochs: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(epochs)
    return {
        "loss": np.array([1 / 3 / (n + 1) for n in range(epochs)]),
        "first_layer": rng.random((epochs + 1, 16, 128)).astype("float32"),
        "variable_000": np.float32(rng.random((3, 2))),
        "variable_001": np.array(7),
        "variable_002": rng.random(12),
    }


def assert_same(found: dict[str, np.ndarray] | None, expected: dict[str, np.ndarray]) -> None:
    assert found is not None
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def test_a_folder_is_begun_resumed_or_overwritten(tmp_path: pathlib.Path) -> None:
    run, other = opened(tmp_path, resume=True), dataclasses.replace(SETTINGS, epochs=5)
    assert contents(tmp_path) == ["default/settings.json"]
    stored = json.loads((run.path / "settings.json").read_text())
    assert stored == {**SETTINGS.as_json(), **{k: stored[k] for k in ("format", "files", "sha256")}}
    assert SETTINGS.as_json()["learning_rates"] == {"sgd": 0.01, "adam": 0.001}
    (run.path / "results.json").touch()
    (tmp_path / "neighbour").touch()
    with pytest.raises(RunError, match=r"the folder exists\. Remedy: --resume .* --overwrite"):
        opened(tmp_path)
    with pytest.raises(ArgumentError, match="resume and overwrite exclude each other"):
        opened(tmp_path, resume=True, overwrite=True)
    message = "expected epochs=4, backend=jax; got epochs=5, backend=torch"
    with pytest.raises(RunError, match=message):
        opened(tmp_path, dataclasses.replace(other, backend="torch"), resume=True)
    assert opened(tmp_path, resume=True).finished
    assert not opened(tmp_path, other, overwrite=True).finished
    assert contents(tmp_path) == ["default/settings.json", "neighbour"]


@pytest.mark.parametrize("option", ["resume", "overwrite"])
def test_folder_that_is_no_run_is_left_as_it_was(tmp_path: pathlib.Path, option: str) -> None:
    (tmp_path / "default").mkdir()
    (tmp_path / "default" / "thesis.tex").touch()
    before = (tmp_path / "default").stat().st_mtime_ns
    with pytest.raises(RunError, match=r"the folder is not a run of convfc.*choose another --name"):
        opened(tmp_path, **{option: True})
    assert contents(tmp_path) == ["default/thesis.tex"]
    assert (tmp_path / "default").stat().st_mtime_ns == before


def test_folder_killed_at_its_birth_is_started_anew(tmp_path: pathlib.Path) -> None:
    (tmp_path / "default").mkdir()
    (tmp_path / "default" / "settings.json.tmp").write_text('{"na')
    run = opened(tmp_path)
    assert contents(run.path) == ["settings.json"]


def test_checkpoint_gives_back_its_state_and_one_that_fails_the_former_one(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = PartFiles(tmp_path, "n")
    assert part.load_checkpoint() is None
    for epochs in (2, 3):
        part.save_checkpoint(state(epochs))
        assert_same(part.load_checkpoint(), state(epochs))
        assert contents(tmp_path) == ["n.checkpoint.npz"]

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.np, "savez", full)
    with pytest.raises(OSError, match="No space left") as caught:
        part.save_checkpoint(state(4))
    assert caught.value.filename == str(part.checkpoint)
    assert contents(tmp_path) == ["n.checkpoint.npz"]
    assert_same(part.load_checkpoint(), state(3))
    assert not part.finished


def test_finished_network_keeps_nothing_of_its_training(tmp_path: pathlib.Path) -> None:
    part = PartFiles(tmp_path, "n")
    part.save_checkpoint(state(2))
    for name in ("n.json", "n.npz", "n.weights.npz", "n.checkpoint.npz"):
        (tmp_path / f"{name}.tmp").touch()
    last = state(3)
    numbers = {"loss": [0.1 + 0.2, 1e-17]}
    arrays = {"first_layer": last["first_layer"]}
    part.save(Result(numbers, arrays, {"training": 2.5}, {"first": last["first_layer"][-1]}))
    assert part.finished
    assert contents(tmp_path) == ["n.json", "n.npz", "n.weights.npz"]
    assert part.load().numbers == numbers
    assert part.load().seconds == {"training": 2.5}
    assert_same(dict(part.load().arrays), arrays)
    assert_same(part.weights(), {"first": last["first_layer"][-1]})
    text = (tmp_path / "n.json").read_text()  # with all digits
    assert "0.30000000000000004,\n" in text
    assert "1e-17\n" in text


@pytest.mark.parametrize("kind", ["arrays", "weights", "numbers"])
def test_what_has_diverged_is_not_taken_for_a_result(tmp_path: pathlib.Path, kind: str) -> None:
    value: object = float("nan") if kind == "numbers" else np.array([1, np.inf])
    with pytest.raises(
        RunError, match=r"not a finite number .*with these the training has diverged"
    ):
        PartFiles(tmp_path, "n").save(Result(**{kind: {"a": value}}))
    assert not PartFiles(tmp_path, "n").finished


def test_a_link_to_a_run_is_not_overwritten(tmp_path: pathlib.Path) -> None:
    opened(tmp_path / "elsewhere", SETTINGS)
    (tmp_path / "default").symlink_to("elsewhere/default")
    with pytest.raises(RunError, match=r"default: a link to a run.*Remedy: remove the link"):
        opened(tmp_path, overwrite=True)
    assert opened(tmp_path, resume=True).path.is_symlink()
    assert contents(tmp_path) == ["elsewhere/default/settings.json"]


def test_a_folder_of_another_version_is_one_line_and_can_be_overwritten(
    tmp_path: pathlib.Path,
) -> None:
    settings = tmp_path / "default" / "settings.json"
    settings.parent.mkdir()
    settings.write_text(json.dumps({"name": "default", "epochs": 4}))
    remedy = "Remedy: choose another --name or --runs-dir, or remove the whole"
    with pytest.raises(RunError, match=f"settings.json: .* of another version of .*{remedy}"):
        opened(tmp_path, resume=True)
    assert contents(tmp_path) == ["default/settings.json"]
    run = opened(tmp_path, overwrite=True)
    assert [path.name for path in run.path.iterdir()] == ["settings.json"]


HOLDING = """
    import pathlib, sys, time
    from convfc.paper.experiment import PaperSettings
    from convfc.runs.folder import RunFolder

    settings = PaperSettings(epochs=4, float64_epochs=1).as_json()
    with RunFolder.open(pathlib.Path(sys.argv[1]), settings):
        print("open", flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("place", ["default", "link"])
def test_another_process_is_kept_out_until_it_ends(tmp_path: pathlib.Path, place: str) -> None:
    (tmp_path / "link").symlink_to("default")
    program = textwrap.dedent(HOLDING)
    command = [sys.executable, "-c", program, str(tmp_path)]
    settings = dataclasses.replace(SETTINGS, name=place)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            for option in ("resume", "overwrite")[: 1 if place == "link" else 2]:
                got = rf"; got process {process.pid} on .* with --resume; or choose another --name"
                with pytest.raises(RunError, match=f"{place}: another process is at work.*{got}"):
                    opened(tmp_path, settings, **{option: True})
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    # What the killed process has left keeps nobody out, and goes with the next one.
    assert contents(tmp_path / "default") == [".lock", "settings.json"]
    if place == "default":
        opened(tmp_path, resume=True)
        assert contents(tmp_path / "default") == ["settings.json"]


def test_a_lock_is_that_of_the_file_with_its_name(tmp_path: pathlib.Path) -> None:
    """Who opened the file before its name was taken away has locked nothing."""
    other: list[int] = []
    take = folder._lock

    def removed_in_between(opened_file: int) -> None:
        take(opened_file)
        if not other:
            other.append(opened_file)
            (tmp_path / ".lock").unlink()
            (tmp_path / ".lock").touch()  # a third process is about to lock it

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder, "_lock", removed_in_between)
        with folder.locked(tmp_path):
            patch.undo()
            with pytest.raises(RunError, match="another process"), folder.locked(tmp_path):
                pass
    assert other
    assert contents(tmp_path) == []


def test_a_file_system_without_locks_is_worked_on(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(opened_file: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folder, "_lock", refused)
    assert contents(opened(tmp_path).path) == ["settings.json"]
