"""Where a command cannot write: one line with the file, the system's words and another way out."""

from __future__ import annotations

import errno
import os
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
from commands import call, enter, python, refused

FULL = pathlib.Path("/dev/full")
NO_FULL = "only Linux has a device that is always full"
NET = "from torch import nn\n\ndef net():\n    return nn.Conv2d(1, 2, 3)\n"
SPECTRUM = ("spectrum", "flat_net:net", "--input", "1,4,4")
STUDY = ("reproduce", "--study", "morphism", "--epochs", "1", "--images", "30", "--seeds", "1")
PAPER = ("reproduce", "--epochs", "1", "--optimizer", "sgd", "--no-cost")

Command = Callable[[pathlib.Path], tuple[str, ...]]
FILES: dict[str, Command] = {
    "explore": lambda path: ("explore", *SPECTRUM[1:], "--html", str(path)),
    "spectrum": lambda path: (*SPECTRUM, "--figure", str(path)),
    "spectrum-json": lambda path: (*SPECTRUM, "--json", "--figure", str(path)),
}
RUNS: dict[str, Command] = {
    "paper": lambda path: (*PAPER, "--runs-dir", str(path.parent), "--name", path.name),
    "paper-runs-dir": lambda path: (*PAPER, "--runs-dir", str(path), "--name", "run"),
    "study-resume": lambda path: (
        *STUDY, "--runs-dir", str(path.parent), "--name", path.name, "--resume"
    ),
    "study-runs-dir": lambda path: (*STUDY, "--runs-dir", str(path), "--name", "run"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def place(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    return enter(tmp_path, monkeypatch, flat_net=NET)


def contents(folder: pathlib.Path) -> dict[str, bytes | str]:
    """Everything in a folder but other folders: bytes of files, targets of links."""
    return {
        str(path): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


PLACES = {  # what is in the way, and how the figure's check or the system names it
    "folder": ("Is a directory",),
    "file": ("File exists", "Not a directory"),
    "dangling": ("No such file or directory", "File exists"),
    "loop": ("Too many levels of symbolic links", "File exists"),
    "below": ("there is no such folder", "File exists", "Not a directory"),
    "long": ("File name too long",),
}


def blocked(kind: str, path: pathlib.Path) -> pathlib.Path:
    """Put something in the way of a path; return the path, or one below it."""
    if kind == "folder":
        path.mkdir()
        (path / "kept").write_text("kept")
    elif kind in ("dangling", "loop"):
        path.symlink_to("nowhere/at-all" if kind == "dangling" else path.name)
    elif kind == "long":
        return path.with_name("n" * 300 + path.suffix) / path.name
    else:
        path.write_text("kept")
    return path / path.name if kind == "below" else path


IN_THE_WAY = [
    pytest.param(command, kind, id=f"{name}-{kind}")
    for outputs, right in ((FILES, "file"), (RUNS, "folder"))
    for name, command in outputs.items()
    for kind in PLACES
    if kind != right
]


@pytest.mark.parametrize(("command", "kind"), IN_THE_WAY)
def test_something_in_the_way(place: pathlib.Path, command: Command, kind: str) -> None:
    path = blocked(kind, place / "out.svg")
    before = contents(place)
    named = path.name if kind in ("folder", "dangling", "loop") else ""
    line = refused(call(*command(path)), ". Remedy: ", named)
    assert any(words in line for words in PLACES[kind])
    assert contents(place) == before


def refuse_to_write(monkeypatch: pytest.MonkeyPatch, error: int, names: str = "*") -> None:
    """Be a full disk, or one that is only read, for these files."""
    if error == errno.ENOSPC and not FULL.exists():
        pytest.skip(NO_FULL)
    opened, made = pathlib.Path.open, pathlib.Path.mkdir

    def open_(self: pathlib.Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if "w" not in mode or not self.match(names):
            return opened(self, mode, *args, **kwargs)
        if error == errno.ENOSPC:
            opened(self, mode).close()  # a file can be made, but holds nothing
            return opened(FULL, mode)
        raise OSError(error, os.strerror(error), str(self))

    def mkdir(self: pathlib.Path, *args: Any, **kwargs: Any) -> None:
        if error != errno.ENOSPC and self.match(names) and not self.exists():
            raise OSError(error, os.strerror(error), str(self))
        made(self, *args, **kwargs)

    monkeypatch.setattr(pathlib.Path, "open", open_)
    monkeypatch.setattr(pathlib.Path, "mkdir", mkdir)


@pytest.mark.parametrize("command", (FILES | RUNS).values(), ids=FILES | RUNS)
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS], ids=errno.errorcode.get)
def test_a_disk_that_takes_nothing(
    place: pathlib.Path, monkeypatch: pytest.MonkeyPatch, command: Command, error: int
) -> None:
    before = contents(place)
    refuse_to_write(monkeypatch, error)
    arguments = command(place / "out.svg")
    remedies = {"explore": "--html", "spectrum": "--figure"}
    remedy = remedies.get(arguments[0], "another --runs-dir or --name")
    texts = (f"Error: {place / 'out.svg'}", f"({os.strerror(error)}). Remedy: ", remedy)
    line = refused(call(*arguments), *texts)
    assert (": the disk is full (" in line) == (error == errno.ENOSPC)
    assert ".tmp" not in line
    assert contents(place) == before


@pytest.mark.parametrize(
    ("option", "words"), [(("--json",), '"reshaped_norm": '), ((), "σ max")], ids=["json", "table"]
)
def test_what_was_computed_is_not_lost_with_its_figure(
    place: pathlib.Path, option: tuple[str, ...], words: str
) -> None:
    blocked("folder", place / "out.svg")
    result = call(*SPECTRUM, *option, "--figure", "out.svg")
    refused(result, "out.svg: it cannot be used (Is a directory). Remedy: draw to another file")
    assert words in result.stdout


def test_a_disk_that_fills_during_a_run_loses_nothing(place: pathlib.Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        refuse_to_write(patch, errno.ENOSPC, "*results.json.tmp")
        refused(call(*STUDY), "results.json: the disk is full (", "Remedy: ")
    (run,) = (place / "runs").iterdir()
    parts = contents(run / "parts")
    assert parts
    assert not list(place.rglob("*.tmp"))
    result = call(*STUDY, "--resume")
    assert result.exit_code == 0, result.output
    assert contents(run / "parts") == parts
    assert (run / "report.html").exists()


@pytest.mark.skipif(not FULL.exists(), reason=NO_FULL)
@pytest.mark.parametrize("arguments", [("--version",), ("explore", "--html", "page.html")])
def test_an_output_that_takes_nothing(arguments: tuple[str, ...]) -> None:
    with FULL.open("w") as full:
        run = python("-m", "convfc", *arguments, stdout=full)
    assert (run.returncode, run.stderr) == (
        1,
        "Error: the disk is full (No space left on device). Remedy: free some space, or send "
        "the output somewhere else\n",
    )


def test_a_reader_that_has_seen_enough_gets_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    run = python("-m", "convfc", "--version", stdout=writer)
    os.close(writer)
    assert (run.returncode, run.stderr) == (1, "")


SEPARATORS, PRINTABLE = "one name without separators", "printable characters only"
DEVICE = "no name that Windows keeps for a device"
NAMES = {
    **dict.fromkeys(["", "..", "../up", "a\\b", "/root", "C:x"], SEPARATORS),
    **dict.fromkeys(["a\nb", "\x1b[2J", "a\u2028b", "\u202ea", "\udcff"], PRINTABLE),
    **dict.fromkeys(["-", "--resume"], "no - at its beginning"),
    **dict.fromkeys(["a.", "a ", "...", " "], "no dot or space at its end"),
    **dict.fromkeys(["con", "NUL", "LPT9", "com¹", "conout$", "nul.txt", "com1 .x"], DEVICE),
}
STARTS = [pytest.param(STUDY, *each, id=f"study-{each[0]!a}") for each in NAMES.items()]
STARTS += [pytest.param(PAPER, "a/b", SEPARATORS, id="paper-a/b")]


@pytest.mark.parametrize(("start", "name", "rule"), STARTS)
def test_a_name_that_is_not_a_folders(
    place: pathlib.Path, start: tuple[str, ...], name: str, rule: str
) -> None:
    text = f"name: not a folder's name; expected {rule}; got {name!r}. Remedy: use letters"
    refused(call(*start, f"--name={name}"), text)
    assert [path.name for path in place.iterdir()] == ["flat_net.py"]
