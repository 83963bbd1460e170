"""Files are written whole or not at all, links and devices as what they are."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from convfc.errors import DataError
from convfc.files import replacing, write_json

if TYPE_CHECKING:
    import pathlib


def contents(path: pathlib.Path) -> list[str]:
    return sorted(each.name for each in path.iterdir())


def write(path: pathlib.Path) -> None:
    with replacing(path) as handle:
        handle.write(b"new")


def test_file_that_fails_half_way_is_not_there(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    with pytest.raises(TypeError), replacing(path) as handle:
        handle.writelines([b'{"new"', None])
    assert contents(tmp_path) == ["a.json"]
    assert json.loads(path.read_text()) == {"old": 1}


def test_an_error_of_convfc_keeps_its_words(tmp_path: pathlib.Path) -> None:
    """Some of them are errors of the system, too, whose words are made of their file's name."""
    with pytest.raises(DataError, match=r"^net: too large$"), replacing(tmp_path / "a"):
        raise DataError("too large", where="net")
    assert contents(tmp_path) == []


@pytest.mark.parametrize("old", ["old", None])
def test_a_link_stays_and_its_file_is_written(tmp_path: pathlib.Path, old: str | None) -> None:
    (tmp_path / "link").symlink_to("target")
    if old:
        (tmp_path / "target").write_text(old)
    write(tmp_path / "link")
    assert contents(tmp_path) == ["link", "target"]
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"


def test_what_is_not_a_file_is_written_to(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        write(tmp_path / "pipe")
        assert os.read(reader, 9) == b"new"
    finally:
        os.close(reader)
    assert contents(tmp_path) == ["pipe"]
    assert (tmp_path / "pipe").is_fifo()


def test_a_folder_in_the_way_costs_no_other_file(tmp_path: pathlib.Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out.tmp").touch()
    with pytest.raises(IsADirectoryError) as caught:
        write(tmp_path / "out")
    assert caught.value.filename == str(tmp_path / "out")
    assert contents(tmp_path) == ["out", "out.tmp"]
