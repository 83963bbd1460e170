"""Where a command cannot write: one line with the file, the system's words and another way out."""

from __future__ import annotations

import errno
import os
import pathlib
import subprocess
import sys
from typing import IO, TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner, Result

from convfc.cli import app

if TYPE_CHECKING:
    from collections.abc import Callable

FULL = pathlib.Path("/dev/full")
NO_FULL = "only Linux has a device that is always full"
NET = "from torch import nn\n\ndef net():\n    return nn.Conv2d(1, 2, 3)\n"
SPECTRUM = ("spectrum", "flat_net:net", "--input", "1,4,4")
STUDY = ("reproduce", "--study", "morphism", "--epochs", "1", "--images", "30", "--seeds", "1")
PAPER = ("reproduce", "--epochs", "1", "--optimizer", "sgd", "--no-cost")

FILES: dict[str, Callable[[pathlib.Path], tuple[str, ...]]] = {
    "explore-model": lambda path: ("explore", *SPECTRUM[1:], "--html", str(path)),
    "spectrum": lambda path: (*SPECTRUM, "--figure", str(path)),
    "spectrum-json": lambda path: (*SPECTRUM, "--json", "--figure", str(path)),
}
RUNS: dict[str, Callable[[pathlib.Path], tuple[str, ...]]] = {
    f"{name}{option}": lambda path, start=start, option=option: (
        (*start, "--runs-dir", str(path), "--name", "run")
        if option == "-runs-dir"
        else (*start, "--runs-dir", str(path.parent), "--name", path.name, *option.split())
    )
    for name, start in {"paper": PAPER, "study": STUDY}.items()
    for option in ("-runs-dir", " --resume" if name == "study" else " --overwrite")
}


@pytest.fixture(autouse=True)
def place(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    (tmp_path / "flat_net.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "flat_net", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})


def one_line(result: Result, *texts: str) -> None:
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    for text in texts:
        assert text in line


def contents(folder: pathlib.Path) -> dict[str, bytes | str]:
    """Everything in a folder but other folders: bytes of files, targets of links."""
    return {
        str(path): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def folder(path: pathlib.Path) -> pathlib.Path:
    path.mkdir()
    (path / "kept").write_text("kept")
    return path


def file(path: pathlib.Path) -> pathlib.Path:
    path.write_text("kept")
    return path


def dangling(path: pathlib.Path) -> pathlib.Path:
    path.symlink_to("nowhere/at-all")
    return path


def loop(path: pathlib.Path) -> pathlib.Path:
    path.symlink_to(path.name)
    return path


def below(path: pathlib.Path) -> pathlib.Path:
    return file(path.with_name("file")) / path.name


def below_too_long(path: pathlib.Path) -> pathlib.Path:
    return path.with_name("n" * 300 + path.suffix) / path.name


WORDS = {  # of a place, what may be said: by the check of a figure's folder, and by the system
    folder: ("Is a directory",),
    file: ("File exists", "Not a directory"),
    dangling: ("No such file or directory", "File exists"),
    loop: ("Too many levels of symbolic links", "File exists"),
    below: ("there is no such folder", "File exists", "Not a directory"),
    below_too_long: ("File name too long",),
}


def cases(outputs: dict[str, Any], *without: Any) -> list[Any]:
    return [
        pytest.param(command, make, id=f"{name}-{make.__name__}")
        for name, command in outputs.items()
        for make in WORDS
        if make not in without
    ]


@pytest.mark.parametrize(
    ("command", "make"),
    cases(FILES, file) + cases(RUNS, folder),  # those two are where it belongs
)
def test_something_in_the_way(
    place: pathlib.Path,
    command: Callable[[pathlib.Path], tuple[str, ...]],
    make: Callable[[pathlib.Path], pathlib.Path],
) -> None:
    path = make(place / "out.svg")
    before = contents(place)
    result = call(*command(path))
    one_line(result, ". Remedy: ", path.name[:100] if make in {folder, dangling, loop} else "")
    assert any(words in result.stderr for words in WORDS[make])
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


@pytest.mark.parametrize("command", [pytest.param(c, id=n) for n, c in (FILES | RUNS).items()])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS], ids=errno.errorcode.get)
def test_a_disk_that_takes_nothing(
    place: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Callable[[pathlib.Path], tuple[str, ...]],
    error: int,
) -> None:
    before = contents(place)
    refuse_to_write(monkeypatch, error)
    arguments = command(place / "out.svg")
    result = call(*arguments)
    one_line(result, f"Error: {place / 'out.svg'}", f"({os.strerror(error)}). Remedy: ")
    ways = {
        "explore": "--html",
        "spectrum": "--figure",
        "reproduce": "another --runs-dir or --name",
    }
    assert ways[arguments[0]] in result.stderr
    assert (": the disk is full (" in result.stderr) == (error == errno.ENOSPC)
    assert ".tmp" not in result.stderr
    assert contents(place) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [((), "3×3 s1"), (("--json",), '"reshaped_norm": ')],
    ids=["table", "json"],
)
def test_what_was_computed_is_not_lost_with_its_figure(
    place: pathlib.Path, options: tuple[str, ...], words: str
) -> None:
    folder(place / "out.svg")
    result = call(*SPECTRUM, *options, "--figure", "out.svg")
    one_line(result, "out.svg: it cannot be used (Is a directory). Remedy: draw to another file")
    assert words in result.stdout


@pytest.mark.parametrize(
    ("names", "error", "words"),
    [
        ("results.json.tmp", errno.ENOSPC, "the disk is full"),
        ("curves.png.tmp", errno.EROFS, "it cannot be used"),
    ],
    ids=["results", "figure"],
)
def test_a_disk_that_fills_in_the_midst_of_a_run_loses_nothing(
    place: pathlib.Path, names: str, error: int, words: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        refuse_to_write(patch, error, f"*{names}")
        one_line(call(*STUDY), f"{names.removesuffix('.tmp')}: {words} (", "Remedy: ")
    (run,) = (place / "runs").iterdir()
    parts = contents(run / "parts")
    assert parts
    assert not list(place.rglob("*.tmp"))
    result = call(*STUDY, "--resume")
    assert result.exit_code == 0, result.output
    assert contents(run / "parts") == parts
    assert (run / "report.html").exists()


def printed_to(output: IO[Any] | int, *arguments: str) -> tuple[int, str]:
    """Run a command in another process, and return its exit code and its errors."""
    result = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "convfc", *arguments],
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    return result.returncode, result.stderr


@pytest.mark.skipif(not FULL.exists(), reason=NO_FULL)
@pytest.mark.parametrize(
    "arguments",
    [("--version",), SPECTRUM],
    ids=lambda arguments: arguments[0],
)
def test_an_output_that_takes_nothing(place: pathlib.Path, arguments: tuple[str, ...]) -> None:
    with FULL.open("w") as full:
        assert printed_to(full, *arguments) == (
            1,
            "Error: the disk is full (No space left on device). Remedy: free some space, or send "
            "the output somewhere else\n",
        )
    assert not list(place.glob("*.svg"))


def test_a_reader_that_has_seen_enough_gets_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert printed_to(writer, "--version") == (1, "")
    finally:
        os.close(writer)


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
    result = call(*start, f"--name={name}")
    one_line(
        result, f"name: not a folder's name; expected {rule}; got {name!r}. Remedy: use letters"
    )
    assert [path.name for path in place.iterdir()] == ["flat_net.py"]
