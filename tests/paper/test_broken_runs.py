"""A broken run ends in one line that says which file and what to remove, and loses nothing."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from commands import call, refused
from small_run import reproduce
from synthetic import results_of, synthetic_cost

from convfc.errors import RunError
from convfc.runs import sealed
from convfc.runs.folder import PartFiles, RunFolder
from convfc.runs.folder import Result as Found

if TYPE_CHECKING:
    from collections.abc import Callable

    from typer.testing import Result

CNN = "parts/float32-sgd-cnn"
SETTINGS, RESULTS, COST = "settings.json", "results.json", "parts/cost.json"
LOSSES, LAYER, WEIGHTS = (f"{CNN}.{kind}" for kind in ("json", "npz", "weights.npz"))
COMPARED = "parts/float32-sgd-compared.json"
FILES = (SETTINGS, RESULTS, COST, COMPARED, LOSSES, LAYER, WEIGHTS)
KINDS = ("missing", "empty", "half", "flipped", "type", "nan", "version")


def explore(folder: pathlib.Path) -> Result:
    return call("explore", "--run", str(folder), "--html", str(folder.parent / "page.html"))


@pytest.fixture(scope="module")
def whole(
    small_networks: None,
    trained: tuple[pathlib.Path, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> pathlib.Path:
    """The finished run with costs that are made up."""
    folder = shutil.copytree(trained[0], tmp_path_factory.mktemp("whole") / "run")
    run, cost = RunFolder(folder), synthetic_cost()
    results = run.read().results
    run.part("cost").save(Found(cost))
    run.write_results({**results, "cost": cost, "seconds": {**results["seconds"], "cost": {}}})
    return folder


@pytest.fixture
def copied(whole: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """The run once more, to be damaged: its very files, which are removed and not written into."""
    return pathlib.Path(shutil.copytree(whole, tmp_path / "run", copy_function=os.link))


def damage(path: pathlib.Path, kind: str) -> None:
    whole = path.read_bytes()
    text = path.suffix == ".json"
    path.unlink()
    if kind == "type":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "half":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "flipped":
        flipped = bytearray(whole)
        number = re.search(rb": \d\.", whole)  # of JSON a digit, so that it is still JSON
        flipped[number.end() if number else len(whole) // 2] ^= 1
        path.write_bytes(flipped)
    elif kind == "nan" and text:
        path.write_text(re.sub(r": [\d.]+(?=,?\n)", ": NaN", whole.decode(), count=1))
    elif kind == "nan":
        np.savez(path, first_layer=np.full((3, 16, 4), np.nan), first=np.full((16, 4), np.nan))
    elif kind == "version" and text:
        content = json.loads(whole)
        del content["sha256"]
        content["format"] += 1
        path.write_text(json.dumps(content | {"sha256": sealed._print_of(content)}))
    elif kind == "version":
        np.savez(path, K=np.zeros((16, 4), np.float32))


def state_of(folder: pathlib.Path) -> dict[pathlib.Path, tuple[int, int, int]]:
    found = {path: path.lstat() for path in folder.rglob("*")}
    return {path: (s.st_ino, s.st_size, s.st_mtime_ns) for path, s in found.items()}


def assert_refused(
    command: Callable[[pathlib.Path], Result], folder: pathlib.Path, *texts: str
) -> str:
    """One line, exit code 1, and the folder as it was; return what the remedy says."""
    before = state_of(folder)
    line = refused(command(folder), *texts)
    assert len(line) < 700
    assert state_of(folder) == before
    return line.partition("Remedy: ")[2]


CASES = [
    pytest.param(command, finished, file, kind, id=f"{command.__name__}-{state}-{name}-{kind}")
    for command, finished, state in (
        (explore, True, "finished"),
        (reproduce, True, "finished"),
        (reproduce, False, "unfinished"),
    )
    for file in FILES
    for kind in KINDS
    if (name := pathlib.PurePath(file).name)
    # A finished run needs no more than the networks and the results, an unfinished one has no
    # results, and what is missing there is made.
    and not (finished and file in {WEIGHTS, COST, COMPARED})
    and not (file == RESULTS and (not finished or (command is reproduce and kind == "missing")))
    and not (not finished and (file, kind) in {(f, "missing") for f in (LOSSES, COST, COMPARED)})
]


@pytest.mark.parametrize(("command", "finished", "file", "kind"), CASES)
def test_damage_is_refused_in_one_line(
    copied: pathlib.Path,
    command: Callable[[pathlib.Path], Result],
    finished: bool,
    file: str,
    kind: str,
) -> None:
    if not finished:
        (copied / RESULTS).unlink()
        # Another part is to be trained: damage is said before that, not after it.
        (copied / "parts" / "float32-adam-fc.json").unlink()
    damage(copied / file, kind)
    named = copied if (file, kind) == (SETTINGS, "missing") else copied / file
    remedy = assert_refused(command, copied, str(named))
    remedies = ("remove ", "choose another --name", "finish the run with", "repeat the first sett")
    assert remedy.startswith(remedies)


DEEP = b"[" * 100_000


def encrypted(path: pathlib.Path) -> bytes:
    """Return a zip file whose members say that they are encrypted."""
    whole = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        whole[whole.index(mark) + place] |= 1
    return bytes(whole)


@pytest.mark.parametrize("command", [explore, reproduce])
@pytest.mark.parametrize(
    ("file", "content"),
    [(SETTINGS, b"[]"), (SETTINGS, b"null"), (SETTINGS, b"5"), (SETTINGS, DEEP)]
    + [(RESULTS, content) for content in (b"{}", b"[]", DEEP, b'{"a": Infinity}', b"\xff\xfe")]
    + [(LAYER, bytes(3000)), (LAYER, b"encrypted"), (LOSSES, b"{}"), (LOSSES, DEEP)],
    ids=lambda value: repr(value[:12]) if isinstance(value, bytes) else pathlib.Path(value).name,
)
def test_what_is_no_such_file_is_refused_in_one_line(
    copied: pathlib.Path, command: Callable[[pathlib.Path], Result], file: str, content: bytes
) -> None:
    path = copied / file
    content = encrypted(path) if content == b"encrypted" else content
    path.unlink()
    path.write_bytes(content)
    assert_refused(command, copied, str(path), "Remedy: ")


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        (np.full((2, 16, 4), np.nan), "not finite"),
        (np.zeros((2, 16, 4), complex), "do not belong together"),
        (np.zeros((3, 16, 4)), "do not belong together"),
        (np.zeros((2, 16)), "do not belong together"),
    ],
    ids=["nan", "complex", "epochs", "axes"],
)
def test_sealed_weights_without_meaning_are_refused(
    copied: pathlib.Path, weights: np.ndarray[Any, Any], text: str
) -> None:
    run, results = RunFolder(copied), results_of(copied)
    (copied / LAYER).unlink()
    np.savez(copied / LAYER, first_layer=weights)
    content = {"numbers": {"loss": [0.5], "val_loss": [0.5]}, "seconds": {}}
    sealed.write_sealed(copied / LOSSES, content, [copied / LAYER])
    run.write_results(results)
    assert_refused(explore, copied, CNN, text)


@pytest.mark.parametrize("command", [explore, reproduce])
def test_sealed_results_of_something_else_are_refused(
    copied: pathlib.Path, command: Callable[[pathlib.Path], Result]
) -> None:
    RunFolder(copied).write_results({"dtype": "float16"})
    assert_refused(command, copied, RESULTS, "Remedy: remove ")


def removed(remedy: str) -> list[pathlib.Path]:
    """Remove what a remedy names."""
    names = remedy.removeprefix("remove ").partition(", and continue with --resume")[0]
    paths = [pathlib.Path(name) for name in names.split(" and ")]
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return paths


@pytest.mark.parametrize("files", [(RESULTS, COST, LAYER), (WEIGHTS,)], ids=["all", "weights"])
def test_what_the_remedies_name_can_be_removed_and_resume_goes_on(
    copied: pathlib.Path, whole: pathlib.Path, files: tuple[str, ...]
) -> None:
    if RESULTS not in files:
        (copied / RESULTS).unlink()
    for file in files:
        damage(copied / file, "half")
    gone = [path for _ in files for path in removed(assert_refused(reproduce, copied))]
    assert set(gone) == {copied / LOSSES, *(copied / f for f in files if f in {RESULTS, COST})}
    outcome = reproduce(copied)
    assert outcome.exit_code == 0, outcome.output
    assert outcome.stdout.count(": starts") == 1
    found, expected = (results_of(folder) for folder in (copied, whole))
    for key in ("sgd", "adam", "float64", "dead_outputs"):
        assert found[key] == expected[key]
    for file in (LAYER, WEIGHTS):
        assert (copied / file).read_bytes() == (whole / file).read_bytes()
    assert explore(copied).exit_code == 0


@pytest.mark.parametrize(
    ("name", "finished"), [("figures", True), ("parts", True), ("parts", False)]
)
def test_a_file_in_the_place_of_a_folder(copied: pathlib.Path, name: str, finished: bool) -> None:
    place = copied / name
    shutil.rmtree(place)
    place.touch()
    if name == "figures":
        assert_refused(reproduce, copied, f"{place}: a file in the place of a folder")
        place.unlink()
        assert reproduce(copied).exit_code == 0
    elif finished:
        remedy = assert_refused(reproduce, copied, str(place))
        assert removed(remedy) == [place, copied / RESULTS]
    else:
        (copied / RESULTS).unlink()
        remedy = assert_refused(reproduce, copied, f"{place}: a file in the place of a fold")
        assert remedy == "move this file away, and continue with --resume"


def test_a_damaged_checkpoint_costs_time_at_most(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, state = PartFiles(tmp_path, "n"), {"first": np.zeros(3), "first_layer": np.ones((2, 3))}
    for kind in KINDS:
        files.save_checkpoint(state)
        assert files.load_checkpoint() is not None
        damage(files.checkpoint, kind)
        assert files.load_checkpoint() is None
        if kind == "type":
            files.checkpoint.rmdir()
    with monkeypatch.context() as patch:
        patch.setattr(sealed, "FORMAT", sealed.FORMAT + 1)
        files.save_checkpoint(state)
        assert files.load_checkpoint() is not None
    assert files.load_checkpoint() is None
    assert [path.name for path in tmp_path.iterdir()] == ["n.checkpoint.npz"]


def test_a_run_is_not_finished_with_other_versions(copied: pathlib.Path) -> None:
    place = copied / "versions.json"
    versions = json.loads(place.read_text())["versions"] | {"keras": "2.0", "numpy": "1.0"}
    sealed.write_sealed(place, {"versions": versions}, [])
    assert reproduce(copied).exit_code == 0  # only drawn again
    (copied / RESULTS).unlink()
    found = "expected numpy=1.0, keras=2.0; got numpy="
    assert_refused(reproduce, copied, found, "start a new run with --name")


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (PermissionError(13, "Permission denied"), r"\(Permission denied\).*the right to read it$"),
        (MemoryError(), r"\(MemoryError\)\. Remedy: free some memory$"),
    ],
    ids=["denied", "memory"],
)
def test_nobody_is_told_to_remove_a_file_that_may_be_whole(error: Exception, remedy: str) -> None:
    path = pathlib.Path("a.json")
    with (
        pytest.raises(RunError, match=rf"a\.json: the file cannot be read {remedy}"),
        sealed.readable(path, "remove it"),
    ):
        raise error


def test_a_run_of_a_study_has_no_filters_to_show(copied: pathlib.Path) -> None:
    results = results_of(copied)
    settings = results["settings"] | {"study": "morphism"}
    RunFolder(copied).write_results(results | {"settings": settings})
    remedy = assert_refused(explore, copied, f"{copied}: a run of the study morphism; expected one")
    assert remedy == "give another run, or start one with convfc reproduce"
